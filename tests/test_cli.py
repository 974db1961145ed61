"""The command line: help, exit codes, one sentence for a user error."""

import errno
import os
import subprocess
import sys

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from mgi.cli import app, main
from mgi.console import log


def mgi(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "mgi", *map(str, arguments)], capture_output=True, text=True)


def commands(group=None, path=()):
    group = group or get_command(app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


@pytest.mark.parametrize("name, command", [pytest.param(*pair, id=pair[0]) for pair in commands()])
def test_every_command_has_help_and_an_example(name, command):
    assert command.help
    assert f"mgi {name}" in command.epilog
    assert all(getattr(parameter, "help", None) for parameter in command.params if parameter.name != "help")
    printed = CliRunner().invoke(app, [*name.split(), "--help"]).output
    assert "".join(command.epilog.split()) in "".join(printed.split()), "what is printed can be copied"


def test_user_error_is_one_sentence_and_exit_code_1(tmp_path):
    result = mgi("pretrain", "--sources", "s", "--expression", "e", "--splits", tmp_path / "p.parquet", "-o", tmp_path)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert f"error: table of splits not found: {tmp_path / 'p.parquet'}" in result.stderr


@pytest.fixture
def refusal(monkeypatch, capsys):
    """A function that runs a command which must fail, in this process, and returns the last line it logs."""
    monkeypatch.setattr(log, "propagate", log.propagate)
    monkeypatch.setattr(log, "handlers", list(log.handlers))

    def run(words):
        monkeypatch.setattr(sys, "argv", ["mgi", *words])
        with pytest.raises(SystemExit) as left:
            main()
        assert left.value.code == 1
        return capsys.readouterr().err.splitlines()[-1]

    return run


@pytest.fixture
def foreign(tmp_path):
    """A file that is no table."""
    path = tmp_path / "x.csv"
    path.write_text("a,b\n")
    return path


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("evaluate {model} --images {foreign} -o {out}", "table of images {foreign} is not a Parquet file"),
        ("evaluate {model} --images {genes} -o {out}", "table of images {genes} lacks the column case_id; it has "),
        ("evaluate {foreign} --images {images} -o {out}", "description of a model not found"),
        ("evaluate {model} --images {images} --expression {foreign} -o {out}", "{foreign} is not a Parquet file"),
        ("evaluate {model} --images {images} -o {foreign}", "error: cannot write {foreign}: file exists"),
        ("finetune {tables} --options {narrow} -o {out}", "'channels' cannot be [8, 18]: the last is divided among"),
        ("split {pair} --stratify-table {foreign} --stratify-column b -o {out}", "{foreign} lacks the column"),
        ("split {pair} --stratify-table {empty} --stratify-column b -o {out}", "{empty} is empty"),
        ("split {pair} --folds 9 -o {out}", "8 labelled patients are too few for 9 folds"),
        ("summarise {foreign} -o {out}", "predictions {foreign} is not a Parquet file"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(command, said, cohort, finetuned, foreign, refusal, tmp_path):
    empty = tmp_path / "empty.csv"
    empty.touch()
    pair = f"--sources {cohort.sources} --expression {cohort.expression}"
    names = {
        "model": finetuned,
        "images": cohort.folder / "images" / "all.parquet",
        "genes": cohort.folder / "genes.parquet",
        "pair": pair,
        "tables": f"{pair} --splits {cohort.splits}",
        "narrow": '{"channels":[8,18]}',
        "foreign": foreign,
        "empty": empty,
        "out": tmp_path / "out",
    }
    words = [word for part in command.split() for word in part.format(**names).split()]
    assert said.format(**names) in refusal(words)


def test_wrong_usage_is_exit_code_2():
    assert mgi("split").returncode == 2
    assert mgi("nonsense").returncode == 2


def test_an_unknown_option_of_a_variant_suggests_the_nearest(tmp_path):
    paths = ("--sources", "s", "--expression", "e", "--splits", "p", "-o", tmp_path)
    result = mgi("finetune", *paths, "--options", '{"batch_image": 4}')
    assert result.returncode == 1
    assert "unknown key 'batch_image': did you mean 'batch_images'?" in result.stderr


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_missing_input_is_found_before_torch_is_imported(command, monkeypatch, refusal):
    monkeypatch.setitem(sys.modules, f"mgi.train.{command}", None)
    line = refusal([command, "--sources", "s", "--expression", "e", "--splits", "p", "-o", "o"])
    assert "table of splits not found: p" in line


def test_verbose_shows_the_cause_of_an_error(tmp_path, monkeypatch, refusal):
    assert "FileNotFoundError" not in refusal(["config", str(tmp_path / "gone.yaml")])
    assert "DEBUG caused by FileNotFoundError: " in refusal(["--verbose", "config", str(tmp_path / "gone.yaml")])


def test_version_is_printed():
    assert mgi("--version").stdout.startswith("mgi 0.")


def test_flags_replace_options_and_keep_their_one_default(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("mgi.simulate.cohort.simulate_cohort", lambda out, **options: seen.append(options))
    (tmp_path / "options.yaml").write_text("cases: 12\nseed: 3\n")
    command = ["simulate", str(tmp_path / "out"), "--options", str(tmp_path / "options.yaml"), "--cases", "8"]
    assert CliRunner().invoke(app, command).exit_code == 0
    chosen = {"cases": 8, "seed": 3, "genes": 2000, "slide_px": 2048}
    assert chosen.items() <= seen[0].items()
    assert CliRunner().invoke(app, [*command, "--genes", "7"]).exit_code == 1


def test_full_disk_is_one_sentence(monkeypatch, refusal):
    def write(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/truth.parquet")

    monkeypatch.setattr("mgi.simulate.cohort.simulate_cohort", write)
    line = refusal(["simulate", "out"])
    assert line.endswith(
        "cannot write /data/truth.parquet: no space left on device; free some space and run the same command again"
    )


def test_help_does_not_load_torch():
    code = "import sys; sys.argv = ['mgi', '--help']\ntry:\n    import mgi.cli; mgi.cli.main()\nfinally:\n"
    code += "    assert not {'torch', 'pandas', 'pyarrow'} & set(sys.modules), 'heavy imports'"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
