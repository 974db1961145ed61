"""The configuration: what it refuses and how it says so, variants, and the reference generated from it."""

import difflib
import json
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import yaml

from mgi.config import (
    ATTENTION_HEADS,
    REFERENCE_BEGIN,
    REFERENCE_END,
    FinetuneOptions,
    PretrainOptions,
    load_config,
    load_options,
    read_yaml,
    reference_files,
    write_reference,
)
from mgi.errors import ConfigError, MissingInputError

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = sorted(path.name for path in (ROOT / "config").glob("*.yaml"))
# All but that of precomputed features.
SEGMENTING = [name for name in SHIPPED if name != "patch-features.yaml"]
REPAIR = "python -m mgi config --write config"


@pytest.fixture
def raw() -> dict[str, Any]:
    """The smallest configuration of a slide cohort with three compared variants."""
    return {
        "cohort": "trial",
        "gdc": {"projects": ["TCGA-BRCA"]},
        "slides": {"mpp": 0.5},
        "pretrain": {"mgi": {"steps": 10, "gene_encoder": {"dim": 32, "stride": 4}}},
        "finetune": {
            "mgi": {"lr": 1e-3},
            "image-only": {"base": "mgi", "genes": "none"},
            "shuffled-genes": {"base": "image-only", "genes": "shuffled"},
        },
    }


def refusal(raw: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(raw)
    return str(caught.value)


def test_smallest_configuration_is_accepted_and_defaults_filled(raw: dict[str, Any]) -> None:
    config = load_config(raw)
    assert config.split.folds == 5 and config.folds_to_run() == [0, 1, 2, 3, 4]
    assert config.evaluate.reference == "mgi"


@pytest.mark.parametrize(
    ("path", "key", "nearest"),
    [
        ((), "slidess", "slides"),
        (("slides",), "tile_pix", "tile_px"),
        (("gdc",), "project", "projects"),
        (("finetune", "mgi"), "learning_rat", None),
        (("finetune", "mgi"), "weight_deca", "weight_decay"),
        (("pretrain", "mgi", "gene_encoder"), "stridee", "stride"),
    ],
)
def test_unknown_key_names_the_nearest_valid_one(
    raw: dict[str, Any], path: tuple[str, ...], key: str, nearest: str | None
) -> None:
    section = raw
    for part in path:
        section = section[part]
    section[key] = 1
    said = refusal(raw)
    assert f"unknown key '{'.'.join((*path, key))}'" in said
    assert f"did you mean '{nearest}'?" in said if nearest else "valid keys are" in said


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("slides", "mpp"), -0.5, "'slides.mpp' cannot be -0.5"),
        (("device",), "gpu", "'device' cannot be 'gpu'"),
        (("cohort",), "../out", "'cohort' cannot be '../out'"),
        (("finetune", "mgi"), "fast", "'finetune.mgi' must be a mapping"),
        (("finetune",), ["mgi"], "'finetune' cannot be"),
        (("finetune", "image-only", "base"), ["mgi"], "'finetune.image-only.base' cannot be"),
        (("split",), {"run": [7]}, "fold 7, but folds go from 0 to 4"),
        (("split",), {"stratify_column": "bit"}, "go together"),
        (("slides",), None, "either 'slides' or 'mri'"),
        (("mri",), {"folder": "kaggle_3m"}, "either 'slides' or 'mri'"),
        (("slides", "store"), "coordinates", "'slides.keep_slides' is false and they are deleted once tiled: set"),
        (
            ("slides",),
            {"store": "coordinates", "folder": "s", "stain": "macenko"},
            "'slides.stain' is 'macenko', which is estimated while slides are tiled, but 'slides.store' is",
        ),
        (("gdc",), None, "give 'slides.table' or 'slides.folder', or 'gdc.projects'"),
        (("split",), {"site_table": "s.csv"}, "'split.site_table' and 'split.site_column' go together"),
        (
            ("expression",),
            {"table": "z.parquet", "positions": "p.tsv", "genes": "g.txt"},
            "'expression.genes' chooses from STAR counts",
        ),
        (("expression",), {"unit": "fpkm"}, "'expression.unit' cannot be 'fpkm'"),
        (("finetune", "mgi", "encoders"), "large", "'finetune.mgi.encoders' is 'large', but pretrain has 'mgi'"),
        (
            ("finetune", "mgi", "neighbours"),
            1,
            "'finetune.mgi.neighbours' is 1, but tiles of slides have no neighbouring",
        ),
        (("evaluate",), {"variants": ["mgi", "no-vit"]}, "'evaluate.variants' has 'no-vit', but finetune has 'mgi'"),
        (
            ("evaluate",),
            {"reference": "mgi", "variants": ["image-only"]},
            "'evaluate.reference' is 'mgi', which 'evaluate.variants' lacks",
        ),
        (("evaluate",), {"variants": ["mgi", "mgi"]}, "'evaluate.variants' has mgi twice"),
        (("split",), {"folds": 5, "run": []}, "'split.run' is empty"),
        (("split",), {"folds": 5, "run": [0, 0]}, "'split.run' has 0 twice"),
        (("simulate",), {"cases": 8}, "'simulate' makes the folder that 'gdc.api_url' names: write it as local:DIR"),
        (("finetune", "mgi", "channels"), [8, 0], "'finetune.mgi.channels' cannot be [8, 0]: a width is 1 to 16384"),
        (("finetune", "mgi", "channels"), [8, 18], "cannot be [8, 18]: the last is divided among 4 attention heads"),
    ],
)
def test_impossible_value_is_refused_in_words(
    raw: dict[str, Any], path: tuple[str, ...], value: object, said: str
) -> None:
    section = raw
    for part in path[:-1]:
        section = section[part]
    section[path[-1]] = value
    assert said in refusal(raw)


@pytest.mark.parametrize("kept", [{"keep_slides": True}, {"folder": "s"}])
def test_coordinates_alone_may_be_stored_of_slides_that_stay(raw: dict[str, Any], kept: dict[str, Any]) -> None:
    raw["slides"] |= {"store": "coordinates"} | kept
    assert load_config(raw).tile_options()["store"] == "coordinates"


def test_simulated_cohort_without_gdc_is_refused(raw: dict[str, Any]) -> None:
    local = {"expression": {"table": "z.parquet", "positions": "genes.tsv"}, "mri": {"folder": "kaggle_3m"}}
    said = refusal(raw | local | {"simulate": {"cases": 8}, "gdc": None, "slides": None})
    assert "'simulate' makes the folder that 'gdc.api_url' names" in said


def test_heads_are_those_of_the_model() -> None:
    pytest.importorskip("torch")
    from mgi.model.segmenter import GeneAttention

    assert GeneAttention(8, 8).heads == ATTENTION_HEADS


def test_widths_are_free_where_no_gene_attends(raw: dict[str, Any]) -> None:
    raw["finetune"]["mgi"] |= {"channels": [8, 18], "genes": "none"}
    raw["finetune"]["shuffled-genes"]["channels"] = [8, 20]
    assert load_config(raw).finetune["image-only"].channels == [8, 18]


def test_missing_section_is_named(raw: dict[str, Any]) -> None:
    del raw["finetune"]
    assert "'finetune' is missing" in refusal(raw)


def test_replicate_differs_in_seed_alone_and_is_found_among_those_compared(raw: dict[str, Any]) -> None:
    raw |= {"seed": 5}
    raw["finetune"] |= {"again": {"base": "mgi", "replicate": 2}, "other": {"base": "mgi", "replicate": 1, "lr": 0.01}}
    raw["finetune"] |= {"same": {"base": "again"}}
    raw["evaluate"] = {"variants": ["mgi", "again", "other", "same"], "reference": "mgi"}
    config = load_config(raw)
    assert config.finetune_options("again") == config.finetune_options("mgi") | {"replicate": 2}
    assert config.replicates() == {"mgi": ["again"]}, "the same run twice is no repetition"
    assert FinetuneOptions(**config.finetune_options("again")).replicate_seed == 7
    raw["evaluate"]["variants"] = ["again", "mgi", "other"]
    assert load_config(raw).replicates() == {"mgi": ["again"]}, "the reference is nobody's repetition"
    raw["evaluate"] |= {"variants": ["again", "mgi", "other"], "reference": "other"}
    assert load_config(raw).replicates() == {"mgi": ["again"]}


def test_profiles_of_sites_need_sites_that_are_trained_on(raw: dict[str, Any]) -> None:
    raw["finetune"]["mgi"] |= {"genes": "site"}
    raw["split"] = {"by": "site"}
    with pytest.raises(ConfigError, match=r"'finetune.mgi.genes' is 'site' and 'split.by' too"):
        load_config(raw)


def test_slices_of_mri_have_no_stain_by_hand_either() -> None:
    with pytest.raises(ConfigError, match=r"'stain_jitter' is 0.1 and 'neighbours' 1"):
        load_options(FinetuneOptions, {"neighbours": 1, "stain_jitter": 0.1})


def test_slices_that_stand_beside_their_neighbours_are_all_read() -> None:
    with pytest.raises(ConfigError, match=r"'images_per_source' is 8 and 'neighbours' 1: a slice's neighbours"):
        load_options(FinetuneOptions, {"neighbours": 1, "images_per_source": 8})


def test_networks_that_normalise_over_a_batch_are_trained_by_one_process(raw: dict[str, Any]) -> None:
    raw |= {"device": "cuda", "resources": {"gpus": 2}}
    raw["finetune"]["other"] = {"network": "unet-resnet18", "genes": "none", "vit": False, "pretrained": False}
    with pytest.raises(ConfigError, match=r"'finetune.other.network' is 'unet-resnet18', which normalises"):
        load_config(raw)
    raw["resources"] = {"gpus": 1}
    assert load_config(raw).finetune["other"].network == "unet-resnet18"


def test_backbone_has_maps_for_six_widths_and_a_published_network_none_of_it() -> None:
    keys = {"backbone": "efficientnet-lite0", "genes": "none", "vit": False, "pretrained": False}
    assert load_options(FinetuneOptions, keys | {"channels": 6 * [8]}).backbone == "efficientnet-lite0"
    with pytest.raises(ConfigError, match=r"'channels' are 7 widths, and 'efficientnet-lite0' has maps for 6: state"):
        load_options(FinetuneOptions, keys | {"channels": 7 * [8]})
    with pytest.raises(ConfigError, match=r"'network' is 'segformer-b0', which has no part for 'backbone': set"):
        load_options(FinetuneOptions, keys | {"network": "segformer-b0"})


def test_mri_has_no_stain_to_change(raw: dict[str, Any]) -> None:
    local = {"expression": {"table": "z.parquet", "positions": "genes.tsv"}, "mri": {"folder": "kaggle_3m"}}
    raw |= local | {"slides": None, "gdc": None}
    raw["finetune"]["mgi"] |= {"stain_jitter": 0.05}
    with pytest.raises(ConfigError, match=r"'finetune.mgi.stain_jitter' is 0.05, but MRI has no stain"):
        load_config(raw)


def test_mri_without_gdc_needs_a_table(raw: dict[str, Any]) -> None:
    raw |= {"mri": {"folder": "kaggle_3m"}, "slides": None, "gdc": None}
    assert "expression.table" in refusal(raw)
    raw["expression"] = {"table": "z.parquet", "positions": "genes.tsv"}
    assert load_config(raw).mri.folder == "kaggle_3m"


def test_variant_takes_its_bases_values_through_every_level(raw: dict[str, Any]) -> None:
    raw["pretrain"]["wide"] = {"base": "mgi", "gene_encoder": {"dim": 64}}
    config = load_config(raw)
    assert config.finetune["shuffled-genes"].lr == 1e-3
    assert config.finetune["shuffled-genes"].genes == "shuffled"
    assert (config.pretrain["wide"].gene_encoder.dim, config.pretrain["wide"].gene_encoder.stride) == (64, 4)
    assert config.pretrain["wide"].steps == 10


def test_changing_one_variant_changes_only_what_builds_on_it(raw: dict[str, Any]) -> None:
    before = load_config(raw)
    raw["finetune"]["image-only"]["lr"] = 5e-4
    after = load_config(raw)
    changed = {name for name in raw["finetune"] if before.finetune_options(name) != after.finetune_options(name)}
    assert changed == {"image-only", "shuffled-genes"}


def test_circle_of_bases_is_reported_as_its_path(raw: dict[str, Any]) -> None:
    raw["finetune"]["mgi"]["base"] = "shuffled-genes"
    assert "by way of mgi -> shuffled-genes -> image-only -> mgi" in refusal(raw)
    raw["finetune"]["mgi"]["base"] = "mgi"
    assert refusal(raw).endswith("by way of mgi -> mgi")


def test_unknown_base_lists_the_variants(raw: dict[str, Any]) -> None:
    raw["finetune"]["image-only"]["base"] = "mgy"
    assert "'finetune.image-only.base' is 'mgy', but finetune has 'mgi', 'image-only', 'shuffled-genes'" in refusal(raw)


def test_options_of_a_variant_survive_the_trip_through_json(raw: dict[str, Any]) -> None:
    config = load_config(raw | {"seed": 7, "threads": 2})
    tuned = load_options(FinetuneOptions, json.dumps(config.finetune_options("image-only")))
    assert (tuned.genes, tuned.gene_encoder.dim, tuned.seed, tuned.threads) == ("none", 32, 7, 2)
    trained = load_options(PretrainOptions, json.dumps(config.pretrain_options("mgi")))
    assert (trained.steps, trained.gene_encoder.stride) == (10, 4)


def test_options_from_a_yaml_file_and_bad_ones(tmp_path: Path) -> None:
    (tmp_path / "fast.yaml").write_text("steps: 5\n")
    assert load_options(PretrainOptions, str(tmp_path / "fast.yaml")).steps == 5
    for text, said in (("{steps: 5", "not valid JSON"), (str(tmp_path / "no.yaml"), "cannot read")):
        with pytest.raises(ConfigError, match=said):
            load_options(PretrainOptions, text)


def test_variant_without_genes_and_vit_needs_no_pretraining(raw: dict[str, Any]) -> None:
    raw["finetune"] |= {
        "no-pretraining": {"base": "mgi", "pretrained": False},
        "no-vit": {"base": "image-only", "vit": False},
    }
    config = load_config(raw)
    needs = {name: config.needs_pretraining(name) for name in raw["finetune"]}
    assert needs == {
        "mgi": True, "image-only": True, "shuffled-genes": True, "no-pretraining": False, "no-vit": False,
    }  # fmt: skip


def test_mapping_that_snakemake_merged_equals_the_file(raw: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(raw))
    snakemake_utils = pytest.importorskip("snakemake.utils")
    merged: dict[str, Any] = OrderedDict(yaml.safe_load(file.read_text()))
    assert load_config(merged) == load_config(file)
    snakemake_utils.update_config(merged, {"finetune": {"image-only": {"lr": 5e-4}}})
    config = load_config(merged)
    assert (config.finetune["image-only"].lr, config.finetune["image-only"].genes) == (5e-4, "none")
    assert config.finetune["mgi"].lr == 1e-3


def test_reports_unreadable_files(tmp_path: Path) -> None:
    for content, said in (
        ("a: [", "line 1, column 5"),
        ("- a", "holds no mapping"),
        (None, "cannot read"),
    ):
        file = tmp_path / "config.yaml"
        file.unlink(missing_ok=True)
        if content is not None:
            file.write_text(content)
        with pytest.raises(ConfigError, match=said):
            load_config(file)


@pytest.mark.parametrize("name", SEGMENTING)
def test_every_shipped_configuration_has_a_control_that_sees_no_genes_in_either_stage(name: str) -> None:
    config = load_config(ROOT / "config" / name)
    control = config.finetune["image-only-no-pretraining"]
    assert control.genes == "none" and not config.needs_pretraining("image-only-no-pretraining")
    assert control == config.finetune["image-only"].model_copy(
        update={"base": "image-only", "pretrained": False, "encoder_lr_scale": 1.0}
    )


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configuration_is_valid(name: str) -> None:
    config = load_config(ROOT / "config" / name)
    assert {"mgi", "image-only"} <= set(config.finetune) or name not in SEGMENTING
    assert all(config.finetune_options(variant)["steps"] > 0 for variant in config.finetune)


def test_default_configuration_ships_the_ablations_and_the_negative_control() -> None:
    config = load_config(ROOT / "config" / "config.yaml")
    assert {"mgi", "no-pretraining", "image-only", "shuffled-genes", "no-vit"} <= set(config.finetune)
    assert config.finetune["no-pretraining"].encoder_lr_scale == 1.0
    assert config.finetune["shuffled-genes"].genes == "shuffled" and config.simulate is not None


def test_default_configuration_shows_every_key() -> None:
    table = (ROOT / "config" / "README.md").read_text().partition(REFERENCE_BEGIN)[2]
    rows = re.findall(r"^\| `(?:[^`]*\.)?(\w+)` \|", table, flags=re.MULTILINE)
    text = (ROOT / "config" / "config.yaml").read_text()
    assert "tile_px" in rows and text.startswith("# yaml-language-server: $schema=schema.json\n")
    assert [key for key in rows if f"{key}:" not in text] == []


def test_default_configuration_agrees_with_the_schema() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((ROOT / "config" / "schema.json").read_text())
    for name in SHIPPED:
        jsonschema.validate(read_yaml(ROOT / "config" / name), schema)


def test_reference_in_config_is_current() -> None:
    for path, expected in reference_files(ROOT / "config").items():
        found = path.read_text() if path.exists() else ""
        diff = difflib.unified_diff(
            found.splitlines(), expected.splitlines(), str(path.relative_to(ROOT)), "mgi/config", lineterm="", n=0
        )
        assert found == expected, "\n".join([f"{path.name} has drifted; repair: {REPAIR}", *diff])


def test_reference_replaces_only_what_is_between_the_markers(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{REFERENCE_BEGIN}\nstale row\n{REFERENCE_END}\nafter\n")
    write_reference(tmp_path)
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "stale row" not in text
    assert "| `slides.mpp` | number, above 0, at most 16 | `0.5` | microns per pixel of a tile |" in text
    kinds = "`matched` or `none` or `shuffled` or `shuffled-within-site` or `noise` or `site`"
    assert f"| `finetune.{{variant}}.genes` | {kinds} |" in text
    assert json.loads((tmp_path / "schema.json").read_text())["additionalProperties"] is False
    write_reference(tmp_path)
    assert readme.read_text() == text


def test_reference_has_a_row_for_every_key_that_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"{REFERENCE_BEGIN}{REFERENCE_END}")
    write_reference(tmp_path)
    rows = [line for line in (tmp_path / "README.md").read_text().splitlines() if line.startswith("| `")]
    schema = json.loads((tmp_path / "schema.json").read_text())
    assert len(rows) == len(schema["properties"]) + sum(len(part["properties"]) for part in schema["$defs"].values())
    assert all(row.count(" | ") == 3 for row in rows)


def test_reference_covers_what_the_readme_lacks(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"README\.md"):
        write_reference(tmp_path)
    (tmp_path / "README.md").write_text("no markers")
    with pytest.raises(ConfigError, match="lacks the markers"):
        write_reference(tmp_path)


@pytest.mark.parametrize(
    ("tile_px", "message"),
    [
        (100, "'pretrain.mgi.image_encoder.options.patch_size' is 8, which does not divide 'slides.tile_px', 100"),
        (72, None),
        (68, "which does not divide"),
    ],
)
def test_rejects_images_that_patches_do_not_divide(tile_px, message):
    raw = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    raw["slides"]["tile_px"] = tile_px
    if message is None:
        assert load_config(raw).image_px == tile_px
        return
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config(raw)


def test_rejects_images_that_halve_to_fractions():
    raw = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    raw["finetune"]["mgi"]["channels"] = [8] * 8
    with pytest.raises(ConfigError, match="has 8 widths and so halves the images 7 times"):
        load_config(raw)


def test_rejects_images_that_the_patches_of_a_name_do_not_divide():
    raw = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    del raw["pretrain"]["mgi"]["image_encoder"]["options"]["patch_size"]
    raw["slides"]["tile_px"] = 72
    with pytest.raises(ConfigError, match=r"image_encoder.name' has patches of 16 px, which do not divide"):
        load_config(raw)


@pytest.fixture
def of_features() -> dict[str, Any]:
    """The smallest configuration of precomputed features."""
    return {
        "cohort": "trial",
        "expression": {"table": "e.csv", "positions": "p.tsv"},
        "features": {"folder": "features"},
        "pretrain": {"mgi": {"steps": 10}, "linear": {"base": "mgi", "gene_encoder": {"kind": "linear"}}},
    }


def test_features_need_no_finetuning_and_compare_pretraining(of_features: dict[str, Any]) -> None:
    config = load_config(of_features)
    assert config.compared == config.embedded == ["mgi"] and config.split_options()["labelled"] is False
    assert config.given_files()["features.folder"] == "features" and config.image_px is None
    config = load_config(of_features | {"evaluate": {"variants": ["linear", "mgi"]}})
    assert config.compared == ["linear", "mgi"] and config.embedded == ["mgi", "linear"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"finetune": {"mgi": {}}}, "'finetune' segments images, and 'features' have no pixels: leave 'finetune' out"),
        ({"slides": {"folder": "s"}}, "give either 'slides' or 'mri', or 'features'"),
        ({"features": {}}, "give 'features.folder' or 'features.table'"),
        ({"features": {"folder": "a", "table": "b"}}, "'features.table' and 'features.folder' both list the slides"),
        ({"features": {"folder": "a", "case_pattern": "(a)(b)"}}, "'features.case_pattern' has 2 groups"),
        ({"pretrain": {"mgi": {"stain_jitter": 0.1}}}, "'pretrain.mgi.stain_jitter' is of images, and 'features'"),
        ({"pretrain": {"mgi": {"channel_swap": 0.1}}}, "'pretrain.mgi.channel_swap' is of images, and 'features'"),
        ({"pretrain": {"mgi": {"image_encoder": {}}}}, "'pretrain.mgi.image_encoder' is of images, and 'features'"),
        ({"evaluate": {"variants": ["mgi", "other"]}}, "'evaluate.variants' has 'other', but pretrain has 'mgi'"),
        ({"features": None, "slides": {"folder": "s"}}, "'finetune' is missing; see config/README.md"),
    ],
)
def test_features_refuse_what_needs_pixels(of_features: dict[str, Any], change: dict[str, Any], said: str) -> None:
    assert said in refusal(of_features | change)
