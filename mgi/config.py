"""The one definition of the configuration.

`config/config.yaml` is read into `Config`; the JSON schema and the table in `config/README.md` are generated from it
(`python -m mgi config --write config`), and a test fails when they drift. Units stand in the names: `mpp` is microns
per pixel, `_px` pixels, `_min` minutes, `_mb` megabytes.
"""

import difflib
import json
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from mgi.errors import ConfigError, MissingInputError
from mgi.files import atomic_write
from mgi.names import NAME_PATTERN

GDC_API = "https://api.gdc.cancer.gov"
GENCODE_V36_FILE_ID = "be002a2c-3b27-43f3-9e0f-fd47db92a6b5"
ATTENTION_HEADS = 4

REFERENCE_BEGIN = "<!-- reference: begin -->"
REFERENCE_END = "<!-- reference: end -->"
TYPE_NAMES = {int: "integer", float: "number", str: "text", bool: "true or false", dict: "mapping", NoneType: "null"}
LIMITS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below", "min_length": "of length at least"}


class Section(BaseModel):
    """A part of the configuration; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Simulate(Section):
    """The simulated cohort, with planted truth, in the GDC's own formats."""

    cases: int = Field(48, ge=2, description="patients")
    genes: int = Field(2000, ge=1000, le=60660, description="genes in each STAR table")
    slide_px: int = Field(2048, ge=512, le=16384, description="edge of a slide at level 0, pixels of 0.5 microns")


class Gdc(Section):
    """Where the cohort's files come from: the GDC, or a folder in its formats."""

    api_url: str = Field(
        GDC_API, description="the GDC API, or `local:DIR`, a folder made by `mgi simulate` that each call serves itself"
    )
    projects: list[str] = Field(min_length=1, description="GDC projects, such as TCGA-BRCA")
    workers: int = Field(4, ge=1, le=32, description="downloads at once in one job")
    files_per_job: int = Field(500, ge=1, description="STAR tables fetched by one job")
    mirrors: list[str] = Field(
        [],
        description="tried before the GDC, in order: a folder of `{file_id}/{file_name}` or `{file_name}`, or an "
        "http(s) address, with these names in it or else with the API's paths",
    )
    token_file: str | None = Field(
        None, description="file of a GDC token (mode 0600), for controlled access; sent to `api_url` only"
    )
    slides: list[Literal["diagnostic", "frozen"]] = Field(
        ["diagnostic"], min_length=1, description="kinds of slides queried: FFPE (-DX), frozen (-TS, -BS, -MS)"
    )
    sample_types: list[str] = Field(
        [],
        description="only these, in order of preference; empty: all but normal tissue, primary tumours before others",
    )
    aliquots: Literal["first", "best"] = Field(
        "first",
        description="the STAR table of a case with several: `first` the lowest barcode, `best` analyte H, R, T and "
        "then the highest barcode; sample type counts before either",
    )
    slides_per_case: Literal["all", "first", "best"] = Field(
        "all",
        description="the slides of a case: `first` the lowest barcode, `best` the largest file; sample type and "
        "diagnostic before frozen count before either",
    )
    exclude: str | None = Field(None, description="table of files to leave out of the query: file_id, reason")


class Expression(Section):
    """Gene expression: STAR counts of the GDC, or a ready table."""

    table: str | None = Field(None, description="a ready table (Parquet, CSV or TSV) instead of the GDC's STAR counts")
    positions: str | None = Field(
        None,
        description="own gene positions, a GTF or a table: for `table` gene_name (or gene_id), chromosome, start; for "
        "STAR counts gene_id, chromosome, start, length (bases of the exon union), in place of the GDC's annotation",
    )
    gene_types: list[str] = Field(
        ["protein_coding"], description="GENCODE gene types kept from STAR counts; an empty list keeps all"
    )
    genes: str | None = Field(
        None, description="file of the genes kept from STAR counts instead, ids or symbols, one a line"
    )
    unit: Literal["log2-tpm", "counts", "log2-fpkm-uq"] = Field(
        "log2-tpm",
        description="what STAR counts become: log2(TPM+1) over the genes kept, raw counts, or log2(FPKM-UQ+1), the "
        "GDC's upper-quartile normalisation",
    )
    annotation_file_id: str = Field(
        GENCODE_V36_FILE_ID, description="GDC file id of the GTF that gives positions and exon-union lengths"
    )


class Slides(Section):
    """Whole-slide images cut into tiles of one physical size."""

    mpp: float = Field(0.5, gt=0, le=16, description="microns per pixel of a tile")
    tile_px: int = Field(256, ge=32, description="edge of a tile, pixels")
    default_mpp: float | None = Field(None, gt=0, description="level-0 mpp of slides that state none; null skips them")
    min_tissue: float = Field(0.5, ge=0, le=1, description="least tissue fraction of a tile")
    annotations: str | None = Field(
        None, description="folder of tumour annotations, `{slide}.geojson` or `{slide}_mask.tiff`"
    )
    fetch_from: Literal["gdc", "idc"] = Field(
        "gdc",
        description="`idc`: TCGA's slides as DICOM from the Imaging Data Commons, through its library `idc-index`",
    )
    per_job: int = Field(1, ge=1, description="slides fetched and tiled by one job")
    keep_slides: bool = Field(False, description="keep slides once they are tiled; else they are deleted")
    in_flight: int = Field(8, ge=1, description="jobs at once that fetch or tile, so slides on the disk, by `per_job`")


class Mri(Section):
    """Brain MRI with tumour masks in the public kaggle_3m layout."""

    folder: str = Field(
        description="the kaggle_3m folder: one folder per patient, `*_N.tif` and `*_N_mask.tif`; or Kaggle's zip of it"
    )
    image_px: int = Field(128, ge=32, description="edge of a slice after resampling, pixels")


class Split(Section):
    """Folds by patient; selection, early stopping and thresholds use val, test is read once."""

    folds: int = Field(5, ge=2, description="folds")
    run: list[int] | None = Field(None, description="folds to train, counted from 0; null trains all")
    val_fraction: float = Field(0.15, gt=0, lt=1, description="share of the patients outside test that go to val")
    by: Literal["patient", "site"] = Field(
        "patient", description="`site` keeps each tissue-source site within one fold"
    )
    stratify_table: str | None = Field(None, description="a table (Parquet or CSV) with case_id and `stratify_column`")
    stratify_column: str | None = Field(None, description="the column whose classes every fold holds alike")


class GeneEncoder(Section):
    """A stack of Mamba blocks over the genes in genomic order."""

    dim: int = Field(128, ge=8, description="width of a gene token")
    depth: int = Field(4, ge=1, description="Mamba blocks")
    stride: int = Field(1, ge=1, description="neighbouring genes folded into one token")
    state_dim: int = Field(16, ge=1, description="state of the selective scan per channel")
    bidirectional: bool = Field(False, description="scan the genome in both directions")


class ImageEncoder(Section):
    """A timm Vision Transformer."""

    name: str = Field("vit_small_patch16_224", description="any timm ViT")
    options: dict[str, Any] = Field({}, description="keyword arguments of `timm.create_model`")
    weights: bool = Field(False, description="start from timm's published weights")


class Optimisation(Section):
    """AdamW with linear warm-up and cosine decay."""

    steps: int = Field(2000, ge=1, description="optimiser steps")
    lr: float = Field(3e-4, gt=0, description="peak learning rate")
    weight_decay: float = Field(0.05, ge=0, description="decoupled weight decay")
    warmup_steps: int = Field(50, ge=0, description="steps of linear warm-up")
    val_every: int = Field(100, ge=1, description="steps between validations and checkpoints")
    gene_dropout: float = Field(0.3, ge=0, lt=1, description="share of genes set to the training mean in each step")
    augment: Literal["none", "flip", "dihedral"] = Field(
        "dihedral", description="`flip`: left to right; `dihedral`: flips and quarter turns"
    )
    images_per_source: int | None = Field(
        None, ge=1, description="most images of a slide or series that are trained on, evenly spread; null takes all"
    )
    intensity_jitter: float = Field(0.0, ge=0, lt=1, description="largest relative change of each channel's intensity")


class Pretrain(Optimisation):
    """Contrastive pre-training of the two encoders on paired training patients."""

    base: str | None = Field(None, description="the variant that this one differs from")
    gene_encoder: GeneEncoder = Field(GeneEncoder(), description="the Mamba encoder of the genes")
    image_encoder: ImageEncoder = Field(ImageEncoder(), description="the ViT of the images")
    embed_dim: int = Field(128, ge=2, description="width of the shared space")
    batch_patients: int = Field(32, ge=2, description="patients in a batch")
    images_per_patient: int = Field(4, ge=1, description="images of each patient in a batch")


class Finetune(Optimisation):
    """Segmentation fine-tuning."""

    base: str | None = Field(None, description="the variant that this one differs from")
    encoders: str = Field("mgi", description="the pre-training variant that defines the encoders")
    pretrained: bool = Field(True, description="start from that variant's weights")
    genes: Literal["matched", "none", "shuffled"] = Field(
        "matched", description="`shuffled`: the negative control, another patient's profile of the same fold and role"
    )
    vit: bool = Field(True, description="use the ViT; without it the convolutional path is alone")
    channels: list[int] = Field([16, 32, 64, 128], min_length=2, description="widths of the convolutional path")
    batch_images: int = Field(16, ge=1, description="images in a batch")
    positive_fraction: float = Field(0.5, ge=0, le=1, description="share of a batch drawn from images with tumour")
    encoder_lr_scale: float = Field(1.0, ge=0, description="learning rate of the encoders relative to `lr`")

    @field_validator("channels")
    @classmethod
    def _refuse_impossible_widths(cls, channels: list[int], read: ValidationInfo) -> list[int]:
        if min(channels) < 1:
            raise PydanticCustomError("width", "a width is at least 1")
        if channels[-1] % ATTENTION_HEADS and read.data.get("genes") != "none":
            told = (
                f"the last is divided among {ATTENTION_HEADS} attention heads to the genes; make it a multiple of that"
            )
            raise PydanticCustomError("width", told)
        return channels


class Evaluate(Section):
    """Which variants are trained, compared and reported by the default target."""

    variants: list[str] = Field(
        ["image-only", "mgi", "shuffled-genes"], min_length=1, description="fine-tuning variants"
    )
    reference: str = Field("mgi", description="the variant that the others are compared with, patient by patient")
    bootstrap_samples: int = Field(2000, ge=100, description="bootstrap resamples of the patients")


class Resources(Section):
    """What a job asks of a cluster; `gpu: 1` is added to training where `device` is cuda."""

    prepare_mem_mb: int = Field(4000, ge=100, description="memory of a preparing job")
    prepare_runtime_min: int = Field(120, ge=1, description="time limit of a preparing job")
    train_mem_mb: int = Field(16000, ge=100, description="memory of a training job")
    train_runtime_min: int = Field(1440, ge=1, description="time limit of a training job")


class Config(Section):
    """The whole configuration."""

    cohort: str = Field(pattern=NAME_PATTERN, description="name of the cohort: outputs go to results/{cohort}")
    seed: int = Field(0, ge=0, description="seed of everything random")
    device: Literal["cpu", "cuda"] = Field("cpu", description="where training runs")
    threads: int = Field(1, ge=1, description="CPU threads of a training job; results depend on it, so it is a setting")
    simulate: Simulate | None = Field(None, description="make the simulated cohort first; null for real data")
    gdc: Gdc | None = Field(None, description="files from the GDC; null where everything is local")
    expression: Expression = Field(Expression(), description="gene expression")
    slides: Slides | None = Field(None, description="whole-slide images; null for none")
    mri: Mri | None = Field(None, description="brain MRI; null for none")
    split: Split = Field(Split(), description="folds")
    pretrain: dict[str, Pretrain] = Field(
        description="pre-training variants, each stating how it differs from its base"
    )
    finetune: dict[str, Finetune] = Field(description="fine-tuning variants, each stating how it differs from its base")
    evaluate: Evaluate = Field(Evaluate(), description="comparison and report")
    resources: Resources = Field(Resources(), description="memory and time of jobs")

    def pretrain_options(self, variant: str) -> dict[str, Any]:
        """Everything `mgi pretrain` needs to know of `variant`, as plain values."""
        options = self.pretrain[variant].model_dump(exclude={"base"}, exclude_none=True)
        return options | self._run_options()

    def finetune_options(self, variant: str) -> dict[str, Any]:
        """Everything `mgi finetune` needs to know of `variant`, the architecture of its encoders included."""
        options = self.finetune[variant].model_dump(exclude={"base"}, exclude_none=True)
        encoders = self.pretrain[self.finetune[variant].encoders].model_dump()
        architecture = {key: encoders[key] for key in ("gene_encoder", "image_encoder")}
        return options | architecture | self._run_options()

    def needs_pretraining(self, variant: str) -> bool:
        """Whether `variant` starts from pre-trained weights that it uses."""
        chosen = self.finetune[variant]
        return chosen.pretrained and (chosen.vit or chosen.genes != "none")

    def folds_to_run(self) -> list[int]:
        """List the folds that the default target trains."""
        return list(range(self.split.folds)) if self.split.run is None else self.split.run

    def given_files(self) -> dict[str, str]:
        """Files that the user provides before anything can run, by the key that names each."""
        given = {f"expression.{key}": getattr(self.expression, key) for key in ("table", "positions", "genes")}
        if self.gdc is not None:
            given |= {"gdc.exclude": self.gdc.exclude, "gdc.token_file": self.gdc.token_file}
        if self.simulate is None:
            given["split.stratify_table"] = self.split.stratify_table
        return {key: path for key, path in given.items() if path}

    def _run_options(self) -> dict[str, Any]:
        return {"seed": self.seed, "device": self.device, "threads": self.threads}


def load_config(source: Path | str | dict[str, Any]) -> Config:
    """Read and validate a configuration: a YAML file, or the mapping that Snakemake merged.

    Raises
    ------
    ConfigError
        For an unknown key (with the nearest valid one), an impossible value, or a variant or fold that does not exist.
    """
    if isinstance(source, dict):
        raw = source
    else:
        try:
            raw = yaml.safe_load(Path(source).read_text())
        except OSError as problem:
            raise ConfigError(f"cannot read the configuration {source}: {problem.strerror}") from None
        except yaml.YAMLError as problem:
            raise ConfigError(f"{source} is not valid YAML: {' '.join(str(problem).split())}") from None
        if not isinstance(raw, dict):
            raise ConfigError(f"{source} holds no mapping; start from config/config.yaml")
    config = _validated(Config, _resolve_variants(raw))
    _check_references(config)
    return config


def load_options(section: type[Section], text: str) -> Section:
    """Read the options of one variant: JSON text (what the workflow passes) or the name of a YAML file."""
    try:
        raw = json.loads(text) if text.lstrip().startswith("{") else yaml.safe_load(Path(text).read_text()) or {}
    except OSError as problem:
        raise ConfigError(f"cannot read the options {text}: {problem.strerror}") from None
    except (json.JSONDecodeError, yaml.YAMLError) as problem:
        raise ConfigError(f"the options {text} are neither JSON nor YAML: {' '.join(str(problem).split())}") from None
    return _validated(section, raw)


class RunOptions(Section):
    """What every training job is told besides its variant."""

    seed: int = Field(0, ge=0, description="seed of everything random")
    device: Literal["cpu", "cuda"] = Field("cpu", description="where training runs")
    threads: int = Field(1, ge=1, description="CPU threads")


class PretrainOptions(Pretrain, RunOptions):
    """The options of `mgi pretrain`, complete."""


class FinetuneOptions(Finetune, RunOptions):
    """The options of `mgi finetune`, complete."""

    gene_encoder: GeneEncoder = Field(GeneEncoder(), description="the Mamba encoder of the genes")
    image_encoder: ImageEncoder = Field(ImageEncoder(), description="the ViT of the images")


def _validated(section: type[Section], raw: dict[str, Any]) -> Any:
    try:
        return section.model_validate(raw)
    except ValidationError as problem:
        raise ConfigError("; ".join(_sentence(section, error) for error in problem.errors())) from None


def _sentence(section: type[Section], error: dict[str, Any]) -> str:
    """One validation error in words, with the nearest valid key for an unknown one."""
    path = [str(part) for part in error["loc"]]
    where = ".".join(path)
    if error["type"] == "extra_forbidden":
        valid = list(_section_at(section, path[:-1]).model_fields)
        near = difflib.get_close_matches(path[-1], valid, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"valid keys are {', '.join(valid)}"
        return f"configuration: unknown key '{where}': {hint}"
    if error["type"] == "missing":
        return f"configuration: '{where}' is missing; see config/README.md"
    return f"configuration: '{where}' cannot be {error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}"


def _section_at(section: type[Section], path: list[str]) -> type[Section]:
    """Find the section of the configuration that `path` leads to."""
    for key in path:
        field = section.model_fields.get(key)
        if field is None:
            continue
        section = _inner_section(field.annotation) or section
    return section


def _resolve_variants(raw: dict[str, Any]) -> dict[str, Any]:
    """Replace each variant by its base's values with its own laid over them."""
    resolved = dict(raw)
    for stage in ("pretrain", "finetune"):
        variants = raw.get(stage)
        if not isinstance(variants, dict):
            continue
        for name, variant in variants.items():
            if not isinstance(variant, dict | None):
                raise ConfigError(f"configuration: '{stage}.{name}' must be a mapping, not {variant!r}")
        resolved[stage] = {name: _with_base(stage, variants, name, ()) for name in variants}
    return resolved


def _with_base(stage: str, variants: dict[str, Any], name: str, seen: tuple[str, ...]) -> dict[str, Any]:
    own = variants[name] or {}
    base = own.get("base")
    if not isinstance(base, str):
        return own
    if base in (*seen, name):
        raise ConfigError(
            f"configuration: '{stage}.{name}' is its own base by way of {' -> '.join((*seen, name, base))}"
        )
    if base not in variants:
        raise ConfigError(f"configuration: '{stage}.{name}.base' is '{base}', but {stage} has {', '.join(variants)}")
    return _overlay(_with_base(stage, variants, base, (*seen, name)), own)


def _overlay(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _overlay(merged[key], value) if both else value
    return merged


def _check_references(config: Config) -> None:
    """Raise `ConfigError` where one part of the configuration names something that another does not have."""
    for name, variant in config.finetune.items():
        if variant.encoders not in config.pretrain:
            raise ConfigError(
                f"configuration: 'finetune.{name}.encoders' is '{variant.encoders}', "
                f"but pretrain has {', '.join(config.pretrain)}"
            )
    for name in (*config.evaluate.variants, config.evaluate.reference):
        if name not in config.finetune:
            raise ConfigError(
                f"configuration: evaluate names the variant '{name}', but finetune has {', '.join(config.finetune)}"
            )
    if config.evaluate.reference not in config.evaluate.variants:
        raise ConfigError(
            f"configuration: 'evaluate.reference' is '{config.evaluate.reference}', which is not compared"
        )
    for key, names in (("evaluate.variants", config.evaluate.variants), ("split.run", config.folds_to_run())):
        twice = [name for name in names if names.count(name) > 1]
        if twice or not names:
            raise ConfigError(f"configuration: '{key}' {f'has {twice[0]} twice' if twice else 'is empty'}")
    beyond = [fold for fold in config.folds_to_run() if not 0 <= fold < config.split.folds]
    if beyond:
        raise ConfigError(
            f"configuration: 'split.run' names fold {beyond[0]}, but folds go from 0 to {config.split.folds - 1}"
        )
    if (config.slides is None) == (config.mri is None):
        raise ConfigError("configuration: give either 'slides' or 'mri': one cohort has one kind of image")
    if config.simulate is not None and (config.gdc is None or not config.gdc.api_url.startswith("local:")):
        raise ConfigError("configuration: 'simulate' makes the folder that 'gdc.api_url' names: write it as local:DIR")
    if config.slides is not None and config.gdc is None:
        raise ConfigError("configuration: 'slides' come from the GDC: give 'gdc.projects'")
    if config.expression.table is None and config.gdc is None:
        raise ConfigError("configuration: give 'expression.table', or 'gdc.projects' for STAR counts")
    if config.expression.table is not None and config.expression.positions is None:
        raise ConfigError("configuration: 'expression.table' needs 'expression.positions' to put its genes in order")
    if config.expression.table is not None and config.expression.genes is not None:
        raise ConfigError(
            "configuration: 'expression.genes' chooses from STAR counts; leave genes out of 'expression.table' by hand"
        )
    if (config.split.stratify_table is None) != (config.split.stratify_column is None):
        raise ConfigError("configuration: 'split.stratify_table' and 'split.stratify_column' go together")


def write_reference(folder: Path | str) -> None:
    """Write schema.json into `folder`, and the table of all keys into its README.md, between the two markers.

    Raises
    ------
    MissingInputError
        If README.md is not there.
    ConfigError
        If it lacks a marker.
    """
    for path, text in reference_files(folder).items():
        with atomic_write(path) as aside:
            aside.write_text(text)


def reference_files(folder: Path | str) -> dict[Path, str]:
    """Make what schema.json and README.md in `folder` should hold; raises as `write_reference` does."""
    readme = Path(folder) / "README.md"
    if not readme.exists():
        raise MissingInputError(f"the configuration's README not found: {readme}")
    before, begin, rest = readme.read_text().partition(REFERENCE_BEGIN)
    _, end, after = rest.partition(REFERENCE_END)
    if not (begin and end):
        raise ConfigError(f"{readme} lacks the markers {REFERENCE_BEGIN} and {REFERENCE_END} around its table of keys")
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    lines += ["| " + " | ".join(cells) + " |" for cells in _reference_rows(Config, "")]
    table = "\n".join(lines)
    return {
        readme.with_name("schema.json"): json.dumps(Config.model_json_schema(), indent=2) + "\n",
        readme: f"{before}{begin}\n{table}\n{end}{after}",
    }


def _reference_rows(section: type[Section], prefix: str) -> Iterator[tuple[str, str, str, str]]:
    """Yield key, type, default and meaning of every key of `section`, those of inner sections right after theirs."""
    for name, field in section.model_fields.items():
        key, inner = f"{prefix}{name}", _inner_section(field.annotation)
        yield f"`{key}`", _type_words(field), _default_words(field, inner), field.description.replace("|", "\\|")
        if inner is not None:
            named = get_origin(field.annotation) is dict
            yield from _reference_rows(inner, f"{key}.{{variant}}." if named else f"{key}.")


def _inner_section(annotation: Any) -> type[Section] | None:
    kinds = [annotation, *get_args(annotation)]
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)


def _type_words(field: FieldInfo) -> str:
    limits = [
        f"{words} {getattr(limit, name)}"
        for limit in field.metadata
        for name, words in LIMITS.items()
        if getattr(limit, name, None) is not None
    ]
    return ", ".join([_annotation_words(field.annotation), *limits])


def _annotation_words(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin is list:
        return f"list of {_annotation_words(inner[0])}"
    if origin is UnionType:
        return " or ".join(_annotation_words(kind) for kind in inner)
    if _inner_section(annotation) is not None:
        return "named variants" if origin is dict else "section"
    return TYPE_NAMES[origin or annotation]


def _default_words(field: FieldInfo, inner: type[Section] | None) -> str:
    if field.is_required():
        return "required"
    if inner is not None and field.default is not None:
        return ""
    return f"`{json.dumps(field.default)}`"
