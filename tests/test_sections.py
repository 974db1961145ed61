"""What sections refuse by themselves: names, addresses, seeds, the options of a ViT."""

import copy
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from mgi.config import MAX_SEED, Config, FetchOptions, SplitOptions, load_config, load_options
from mgi.config.train import MAX_STEPS
from mgi.errors import ConfigError

RAW: dict[str, Any] = {
    "cohort": "trial",
    "gdc": {"projects": ["TCGA-BRCA"]},
    "slides": {"mpp": 0.5},
    "pretrain": {"mgi": {}},
    "finetune": {"mgi": {}},
    "evaluate": {"variants": ["mgi"]},
}


def refuse(**changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(copy.deepcopy(RAW) | changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


UNSAFE = ["", "..", "../x", "a b", "a/b", "a{b}", "a'b", 'a"b', "$(id)", "a;b", "-a", ".a", "é", "a\n", "a" * 201]


@pytest.mark.parametrize("name", UNSAFE)
def test_unsafe_names_are_rejected_wherever_they_enter(name):
    assert "'cohort' cannot be" in refuse(cohort=name)
    assert "'gdc.projects.0' cannot be" in refuse(gdc={"projects": [name]})
    assert "'finetune' has a variant named" in refuse(finetune={"mgi": {}, name: {}})
    assert "'pretrain' has a variant named" in refuse(pretrain={"mgi": {}, name: {"base": "mgi"}})
    assert "'evaluate.variants.0' cannot be" in refuse(evaluate={"variants": [name], "reference": name})
    assert "'finetune.mgi.encoders' cannot be" in refuse(finetune={"mgi": {"encoders": name}})


def test_model_alone_rejects_what_loading_rejects():
    for changes in ({"finetune": {"mgi": {"encoders": "x"}}}, {"mri": {"folder": "k"}}, {"gdc": None}):
        with pytest.raises(ValidationError):
            Config.model_validate(RAW | changes)
    assert Config.model_validate(RAW) == load_config(RAW)


@pytest.mark.parametrize("name", ["1", 1, True, None])
def test_variant_names_are_text(name):
    if isinstance(name, str):
        assert name in load_config(RAW | {"finetune": {"mgi": {}, name: {}}}).finetune
    else:
        refuse(finetune={"mgi": {}, name: {}})


@pytest.mark.parametrize("file_id", ["", "x", "$(id)", "be002a2c-3b27-43f3-9e0f-fd47db92a6b", "../be002a2c"])
def test_annotation_is_named_by_a_uuid(file_id):
    assert "'expression.annotation_file_id' cannot be" in refuse(expression={"annotation_file_id": file_id})


@pytest.mark.parametrize(
    "column", ["grade (WHO)", "IDH status", "IDH/codel subtype", "Tumor's grade", "IDH{x}", "Größe"]
)
def test_any_label_can_stratify(column):
    options = load_options(SplitOptions, {"stratify_table": "t.csv", "stratify_column": column})
    assert options.stratify_column == column


@pytest.mark.parametrize("column", ["", " ", "a\nb", "a\x1b[2J", "\u202egrade", 3])
def test_labels_that_hide_what_they_are_are_rejected(column):
    assert "'split.stratify_column' cannot be" in refuse(split={"stratify_table": "t", "stratify_column": column})


SECRETS = [
    "https://user:hunter2@host/{file_id}",
    "https://hunter2@host",
    "ftp://user:hunter2@host",
    "https://user:hunter2@[::1/x",
    "https:/user:hunter2@host",
    "HTTPS://user:hunter2@host",
    f"https://user:hunter2{'x' * 200}@host",
]


@pytest.mark.parametrize("address", SECRETS)
def test_secrets_in_addresses_are_rejected_and_not_repeated(address):
    gdc = {"projects": ["TCGA-BRCA"]}
    for changes in ({"mirrors": [address]}, {"api_url": address}, {"mirrors": ["http://[bad", address]}):
        message = refuse(gdc=gdc | changes)
        assert "hunter2" not in message and "user name or a password" in message
    for changes in ({"mirrors": address}, {"workers": address}, {"slides": [address]}):
        assert ":hunter2" not in refuse(gdc=gdc | changes)


def test_unencrypted_addresses_of_other_machines_need_an_explicit_word():
    for options in ({"api_url": "http://mirror.example"}, {"mirrors": ["http://10.0.0.1/{file_id}"]}):
        with pytest.raises(ConfigError, match="is not encrypted: use https://, or set 'allow_http: true'"):
            load_options(FetchOptions, options)
        load_options(FetchOptions, options | {"allow_http": True})
    for address in ("http://127.0.0.1:8080", "http://localhost/x", "http://[::1]:9"):
        assert load_options(FetchOptions, {"api_url": address}).api_url == address


@pytest.mark.parametrize(
    "address",
    ["", "api.gdc.cancer.gov", "ftp://host", "file:///etc", "https://", "local:", "https://a b", "https://h:x"],
)
def test_addresses_of_other_kinds_are_rejected(address):
    with pytest.raises(ConfigError, match="api_url"):
        load_options(FetchOptions, {"api_url": address})


def test_unknown_fields_of_a_mirror_are_rejected():
    with pytest.raises(ConfigError, match=r"'\{md5\}' is unknown in a mirror"):
        load_options(FetchOptions, {"mirrors": ["https://host/{file_id}/{md5}"]})
    load_options(FetchOptions, {"mirrors": ["/data/tcga", "https://host/{file_id}/{file_name}"]})


def test_largest_seed_is_one_that_torch_takes():
    torch.Generator().manual_seed(MAX_SEED * 1_000_003 + MAX_STEPS)
    assert load_config(RAW | {"seed": MAX_SEED}).seed == MAX_SEED
    assert f"less than or equal to {MAX_SEED}" in refuse(seed=MAX_SEED + 1)
    refuse(seed=-1)


VIT = {
    "registry": ({"name": "hf-hub:timm/vit"}, "image_encoder.name' cannot be 'hf-hub:timm/vit'"),
    "folder": ({"name": "local-dir:/tmp"}, "image_encoder.name' cannot be"),
    "path": ({"name": "../vit"}, "image_encoder.name' cannot be"),
    "checkpoint": (
        {"options": {"checkpoint_path": "/x"}},
        "unknown key 'pretrain.mgi.image_encoder.options.check",
    ),
    "mistyped": ({"options": {"embed_dims": 32}}, "did you mean 'embed_dim'?"),
    "text": ({"options": {"depth": "3"}}, "options.depth' cannot be '3': a number is needed"),
    "heads": ({"options": {"embed_dim": 32, "num_heads": 3}}, "which 3 heads do not divide"),
}


@pytest.mark.parametrize("case", VIT)
def test_options_of_a_vit_are_a_list_of_known_types(case):
    encoder, words = VIT[case]
    assert words in refuse(pretrain={"mgi": {"image_encoder": encoder}})


def test_more_patients_in_a_batch_than_simulated_is_a_warning():
    simulated = RAW | {"simulate": {"cases": 8}, "gdc": {"projects": ["TCGA-SIM"], "api_url": "local:sim"}}
    (warning,) = load_config(simulated).warnings()
    assert "'pretrain.mgi.batch_patients' is 32, but the cohort has 8 patients" in warning
    assert load_config(RAW).warnings() == []


def test_options_of_each_command_are_what_decides_its_outputs():
    changed = copy.deepcopy(RAW)
    changed["gdc"] |= {"workers": 9, "token_file": "t"}
    changed["slides"] |= {"in_flight": 3, "keep_slides": True}
    before, after = load_config(RAW), load_config(changed)
    assert before.tile_options() == after.tile_options()
    assert before.query_options("TCGA-BRCA") == after.query_options("TCGA-BRCA")
    assert before.fetch_options() != after.fetch_options()


def test_many_errors_are_cut_short():
    message = refuse(**{f"key{number}": 1 for number in range(100)})
    assert message.count("unknown key") == 5 and message.endswith("and 95 more errors")


def test_invalid_values_are_shortened_to_one_line():
    assert len(refuse(cohort="x" * 10**6)) < 400
    assert r"\x1b" in refuse(cohort="a\x1b[2J\n")
    assert len(refuse(slides={"mpp": list(range(10**5))})) < 400


def test_training_job_asks_for_its_gpus_and_starts_a_process_for_each():
    def plan(device: str, gpus: int, nodes: int) -> tuple[dict, list[str]]:
        config = load_config(RAW | {"device": device, "threads": 3, "resources": {"gpus": gpus, "nodes": nodes}})
        return config.gpu_resources(), config.launcher(["mgi"])

    asked, command = plan("cpu", 4, 2)
    assert asked["gpu"] == 0 and "nodes" not in asked and command == ["mgi"]
    asked, command = plan("cuda", 1, 1)
    assert asked["gpu"] == 1 and command == ["mgi"]
    asked, command = plan("cuda", 4, 1)
    assert asked["gpu"] == 4 and command == ["mgi", "launch", "--processes=4", "--nodes=1"]
    asked, command = plan("cuda", 4, 2)
    assert "gpu" not in asked
    assert (asked["nodes"], asked["tasks"], asked["mpi"], asked["slurm_extra"]) == (2, 2, "srun", "--gpus-per-node=4")
    assert command[:4] == ["srun", "--nodes=2", "--ntasks=2", "--cpus-per-task=12"]
    assert command[4:] == ["mgi", "launch", "--processes=4", "--nodes=2"]


def test_rejects_batch_smaller_than_the_processes_that_share_it():
    message = refuse(device="cuda", resources={"gpus": 64, "nodes": 64})
    assert "batch_patients" in message and "4096 processes" in message


@pytest.mark.parametrize("key", ["genes", "vit", "pretrained"])
def test_rejects_parts_that_a_published_network_does_not_have(key):
    without = {"genes": "none", "vit": False, "pretrained": False, "network": "segformer-b0"}
    variant = {"base": "mgi"} | {name: value for name, value in without.items() if name != key}
    assert f"has no part for 'finetune.baseline.{key}'" in refuse(finetune={"mgi": {}, "baseline": variant})
    load_config(RAW | {"finetune": {"mgi": {}, "baseline": {"base": "mgi"} | without}})
