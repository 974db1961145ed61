"""Strict reading of configurations: what would be misread is refused, with its place."""

import json
from pathlib import Path

import pytest
import yaml

from mgi.config import FinetuneOptions, PretrainOptions, load_config, load_options, read_mapping, read_yaml
from mgi.config import reading as limits
from mgi.errors import ConfigError

from .conftest import ROOT


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


REFUSED = {
    "duplicate key": ("seed: 3\nsteps: 1\nseed: 7\n", "line 3, column 1: duplicate key 'seed', first in line 1"),
    "duplicate key in flow": ("a: {b: 1, b: 1}", "duplicate key 'b'"),
    "octal": ("steps: 010", "line 1, column 8: '010' is not read as it is written"),
    "octal in a list": ("a: [1, 07]", "'07' is not read as it is written"),
    "sexagesimal": ("steps: 1:30", "'1:30' is not read as it is written"),
    "sexagesimal float": ("lr: 1:30.5", "'1:30.5' is no finite decimal number"),
    "hexadecimal": ("steps: 0x10", "'0x10' is not read"),
    "infinity": ("lr: .inf", "'.inf' is no finite decimal number"),
    "minus infinity": ("lr: -.INF", "'-.INF' is no finite decimal number"),
    "not a number": ("lr: .nan", "'.nan' is no finite decimal number"),
    "overflow": ("lr: 1.0e+999", "is no finite decimal number"),
    "huge integer": ("steps: " + "9" * 5000, "not valid YAML"),
    "number as key": ("1: a", "a key is text: write '1' in quotes"),
    "boolean as key": ("pretrain:\n  on: {}", "line 2, column 3: a key is text: write 'on' in quotes"),
    "list as key": ("? [a, b]\n: c", "a key is text"),
    "alias to itself": ("a: &a [*a]", "an alias refers to what it is part of"),
    "deep": ("a: " + "[" * 5000 + "]" * 5000, "nested more than 50 deep"),
    "python tag": ("a: !!python/object/apply:os.system [id]", "could not determine a constructor"),
    "bad tag": ("a: !!int x", "not read as it is written"),
    "control character": ("a: \x07", "line 1, column 4"),
    "two documents": ("a: 1\n---\nb: 2\n", "line 2, column 1: expected a single document"),
    "list": ("- a", "holds no mapping"),
    "empty": ("", "holds no mapping"),
    "latin-1": ("# K\u00f6ln".encode("latin-1"), "not UTF-8: byte 0xf6 at line 1, column 4"),
    "latin-1 further down": ("# K\u00f6ln\n\nsite: K\u00f6l".encode() + b"\xf6", "byte 0xf6 at line 3, column 10"),
    "utf-16": ("seed: 1".encode("utf-16"), "not UTF-8: byte 0xff at line 1, column 1"),
    "too large": ("#" * limits.MAX_BYTES + "\n", "more than 1000000 bytes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_rejects_what_would_be_misread(case, tmp_path):
    text, words = REFUSED[case]
    with pytest.raises(ConfigError) as caught:
        read_yaml(write(tmp_path, text))
    message = str(caught.value)
    assert words in message and str(tmp_path / "config.yaml") in message
    assert len(message) < 500 and "\n" not in message


def test_rejects_aliases_that_explode(tmp_path):
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    with pytest.raises(ConfigError, match="aliases written out"):
        read_yaml(write(tmp_path, "\n".join(lines)))
    merges = ["a0: &a0 {x: 1}"] + [f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}" for n in range(1, 40)]
    with pytest.raises(ConfigError, match="aliases written out"):
        read_yaml(write(tmp_path, "\n".join(merges)))


def test_accepts_plain_yaml_with_anchors_merges_and_a_byte_order_mark(tmp_path):
    text = "\ufeffbase: &base {steps: 1_000, lr: 1.0e-3, cohort: '010'}\nother: {<<: *base, steps: 20}\nname: Köln\n"
    read = read_yaml(write(tmp_path, text))
    assert read["other"] == {"steps": 20, "lr": 1e-3, "cohort": "010"}
    assert read["base"]["steps"] == 1000 and read["name"] == "Köln"


def test_reads_the_shipped_files_as_yaml_does():
    for path in (ROOT / "config").glob("*.yaml"):
        assert read_yaml(path) == yaml.safe_load(path.read_text())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"seed": 1, "seed": 2}', "duplicate key 'seed'"),
        ('{"lr": NaN}', "NaN is no finite number"),
        ('{"lr": -Infinity}', "no finite number"),
        ('{"a": ' * 3000 + "1" + "}" * 3000, "not valid JSON"),
        ('{"a": ' * 100 + "1" + "}" * 100, "nested more than 50 deep"),
        ('{"seed": ' + "9" * 5000 + "}", "not valid JSON"),
        ('{"api_url": "https://user:secret@host"', "not valid JSON"),
    ],
)
def test_rejects_json_that_would_be_misread(text, words):
    with pytest.raises(ConfigError, match=words) as caught:
        read_mapping(text, "options")
    assert "secret" not in str(caught.value) and len(str(caught.value)) < 300


def test_unreadable_paths_are_sentences(tmp_path):
    for path, words in ((tmp_path, "is a directory"), ("a\0b", "null"), ("x" * 5000, "file name too long")):
        with pytest.raises(ConfigError, match=words):
            read_yaml(path)


NUMBERS = {
    "as text": ("steps", "10", 10),
    "exponent": ("lr", "1e-3", 1e-3),
    "octal text": ("steps", "010", None),
    "exponent of an integer": ("steps", "1e3", None),
    "nan text": ("lr", "nan", None),
    "overflowing text": ("lr", "1e999", None),
    "boolean": ("steps", True, None),
    "boolean for a fraction": ("lr", True, None),
    "fraction": ("steps", 3.0, None),
    "number for a boolean": ("vit", 1, None),
    "yes": ("vit", "yes", None),
    "true": ("vit", "true", True),
    "list": ("channels", ["8", "16"], [8, 16]),
    "huge": ("threads", 10**30, None),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_only_plain_numbers_are_read_from_text(case):
    key, value, expected = NUMBERS[case]
    if expected is None:
        with pytest.raises(ConfigError, match=f"options: '{key}' cannot be "):
            load_options(FinetuneOptions, {key: value})
    else:
        assert getattr(load_options(FinetuneOptions, {key: value}), key) == expected


def test_number_that_yaml_takes_for_text_is_named():
    options = {"image_encoder": {"options": {"init_values": "1e-5"}}}
    with pytest.raises(ConfigError) as caught:
        load_options(PretrainOptions, options)
    assert "'image_encoder.options.init_values' cannot be '1e-5'" in str(caught.value)
    assert "write 1.0e-5" in str(caught.value)


def test_flags_replace_values_of_the_file(tmp_path):
    path = write(tmp_path, "steps: 5\nlr: 0.1\n")
    options = load_options(PretrainOptions, str(path), steps=7, lr=None)
    assert (options.steps, options.lr) == (7, 0.1)


def test_configuration_given_as_json_equals_the_file():
    path = ROOT / "config" / "config.yaml"
    assert load_config(json.dumps(read_yaml(path))) == load_config(path)
