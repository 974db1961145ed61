"""The whole configuration of a cohort: its sections, and what each stage is told of them."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any, Self

from pydantic import Field, model_validator

from mgi.config.acquire import LOCAL, FetchOptions, Gdc, QueryOptions, Simulate
from mgi.config.evaluate import Bootstrap, Evaluate, PredictOptions, Probe
from mgi.config.images import check_features, check_image_size, check_kind_of_image, check_stains
from mgi.config.names import Name
from mgi.config.prepare import (
    Expression,
    Features,
    Folds,
    Mri,
    MriOptions,
    OwnFiles,
    Slides,
    Split,
    StarCounts,
    TableImport,
    TileOptions,
)
from mgi.config.reading import read_mapping, read_yaml
from mgi.config.section import Section, SectionType, sentence, validate_section
from mgi.config.train import Finetune, Pretrain, RunOptions
from mgi.config.variants import resolve_variants
from mgi.names import first_few

# Keys that Snakemake itself reads from a configuration file.
SNAKEMAKE_KEYS = ("pathvars",)


class Resources(Section):
    """What a job asks of a cluster, and the GPUs of a training job where `device` is cuda."""

    prepare_mem_mb: int = Field(4000, ge=100, description="memory of a preparing job")
    prepare_runtime_min: int = Field(120, ge=1, description="time limit of a preparing job")
    train_mem_mb: int = Field(16000, ge=100, description="memory of a training job")
    train_runtime_min: int = Field(1440, ge=1, description="time limit of a training job")
    gpus: int = Field(1, ge=1, le=64, description="GPUs of a training job on each node, with a process for each")
    nodes: int = Field(
        1, ge=1, le=64, description="nodes of a training job; more than one only by the SLURM profile, through srun"
    )


class Cohort(Section):
    """The name of the cohort."""

    cohort: Name = Field(description="name of the cohort: outputs go to results/{cohort}")


class Config(RunOptions, Cohort):
    """The whole configuration."""

    simulate: Simulate | None = Field(
        None, description="make the simulated cohort in the folder that `gdc.api_url` names; null for real data"
    )
    gdc: Gdc | None = Field(None, description="files from the GDC; null where everything is local")
    expression: Expression = Field(
        Expression(), description="gene expression: the GDC's STAR counts, or a ready `table`"
    )
    slides: Slides | None = Field(
        None, description="whole-slide images; a cohort has one of `slides`, `mri` and `features`"
    )
    mri: Mri | None = Field(None, description="brain MRI; a cohort has one of `slides`, `mri` and `features`")
    features: Features | None = Field(
        None,
        description="precomputed features of patches (UNI, CONCH, ...) in place of images, for pre-training, "
        "embeddings and probes; nothing is segmented",
    )
    split: Split = Field(
        Split(),
        description="folds by patient; selection, early stopping and thresholds use val, test is read once",
    )
    pretrain: dict[Name, Pretrain] = Field(
        min_length=1, description="pre-training variants, each stating how it differs from its base"
    )
    finetune: dict[Name, Finetune] = Field(
        {}, description="fine-tuning variants, each stating how it differs from its base; none with `features`"
    )
    evaluate: Evaluate = Field(Evaluate(), description="comparison and report")
    probe: Probe = Field(Probe(), description="labels that the embeddings of pre-training are asked for")
    resources: Resources = Field(Resources(), description="memory and time of jobs")

    @model_validator(mode="before")
    @classmethod
    def _resolve_variants(cls, raw: Any) -> Any:
        return resolve_variants(raw) if isinstance(raw, dict) else raw

    @model_validator(mode="after")
    def _check_images(self) -> Self:
        check_kind_of_image(self)
        if self.features is not None:
            check_features(self)
        else:
            check_image_size(self)
        check_stains(self)
        return self

    @model_validator(mode="after")
    def _check_variants(self) -> Self:
        for name, variant in self.finetune.items():
            if variant.encoders not in self.pretrain:
                raise sentence(
                    f"'finetune.{name}.encoders' is '{variant.encoders}', but pretrain has {first_few(self.pretrain)}"
                )
            if variant.neighbours and self.slides is not None:
                raise sentence(
                    f"'finetune.{name}.neighbours' is {variant.neighbours}, but tiles of slides have no neighbouring "
                    "slices: leave it out"
                )
            if variant.genes == "site" and self.split.by == "site":
                raise sentence(
                    f"'finetune.{name}.genes' is 'site' and 'split.by' too: no site that is tested is trained on, so "
                    "there is no profile of it; split by patient"
                )
        stage, variants = ("pretrain", self.pretrain) if self.features else ("finetune", self.finetune)
        for name in self.compared:
            if name not in variants:
                raise sentence(f"'evaluate.variants' has '{name}', but {stage} has {first_few(variants)}")
        if self.evaluate.reference not in self.compared:
            raise sentence(f"'evaluate.reference' is '{self.evaluate.reference}', which 'evaluate.variants' lacks")
        return self

    @model_validator(mode="after")
    def _check_shares(self) -> Self:
        """Check that each process of a training job has a part of every batch."""
        processes = self.gpus * self.resources.nodes
        batches = {f"pretrain.{name}.batch_patients": one.batch_patients for name, one in self.pretrain.items()}
        batches |= {f"finetune.{name}.batch_images": one.batch_images for name, one in self.finetune.items()}
        for name, variant in self.finetune.items() if processes > 1 else ():
            if variant.network != "mgi":
                raise sentence(
                    f"'finetune.{name}.network' is '{variant.network}', which normalises over a batch, and 'resources' "
                    f"share each batch among {processes} processes: train it by one, in a configuration of its own"
                )
        for key, count in batches.items():
            if count < processes:
                raise sentence(
                    f"'{key}' is {count}, too few for 'resources.gpus' times 'resources.nodes', {processes} processes: "
                    "use larger batches or fewer processes"
                )
        return self

    @property
    def image_px(self) -> int | None:
        """Edge of the images that models read, pixels; None where they read precomputed features."""
        images = self.slides or self.mri
        return None if images is None else images.tile_px if isinstance(images, Slides) else images.image_px

    @property
    def own(self) -> OwnFiles | None:
        """Where the user's own slides or files of features are listed; None where there are none."""
        listed = self.slides or self.features
        return listed if listed is not None and listed.own else None

    @property
    def compared(self) -> list[str]:
        """The variants that the default target compares: of fine-tuning, or with features of pre-training."""
        stated = self.features is None or "variants" in self.evaluate.model_fields_set
        return self.evaluate.variants if stated else [self.evaluate.reference]

    @property
    def embedded(self) -> list[str]:
        """The pre-training variants whose embeddings are compared; the reference's comes first."""
        if self.features is None:
            return [self.finetune[self.evaluate.reference].encoders]
        return sorted(self.compared, key=lambda name: name != self.evaluate.reference)

    @property
    def fetches_slides(self) -> bool:
        """Whether the slides come from the GDC or a copy of it."""
        return self.slides is not None and self.slides.own is None

    @property
    def gpus(self) -> int:
        """GPUs of a training job on each node."""
        return self.resources.gpus if self.device == "cuda" else 0

    @property
    def training_threads(self) -> int:
        """Threads of a training job on each node."""
        return self.threads * max(self.gpus, 1)

    def gpu_resources(self) -> dict[str, int | str]:
        """Return the GPUs, and nodes if several, that a training job asks of Snakemake's executors."""
        nodes = self.resources.nodes
        if nodes == 1 or not self.gpus:
            return {"gpu": self.gpus}
        # The plugin for SLURM starts a job of several tasks once, on the first node, and the job starts them by srun.
        return {"nodes": nodes, "tasks": nodes, "mpi": "srun", "slurm_extra": f"--gpus-per-node={self.gpus}"}

    def launcher(self, mgi: list[str]) -> list[str]:
        """Return the command that starts a training command in as many processes as there are GPUs.

        Parameters
        ----------
        mgi : list of str
            The command `mgi`.
        """
        nodes = self.resources.nodes
        if not self.gpus or self.gpus * nodes == 1:
            return mgi
        by_srun = ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", f"--cpus-per-task={self.training_threads}"]
        return [*(by_srun if nodes > 1 else []), *mgi, "launch", f"--processes={self.gpus}", f"--nodes={nodes}"]

    def query_options(self, *projects: str) -> dict[str, Any]:
        """Return the options of `mgi gdc query` for some projects: only what this configuration reads is listed."""
        gdc = self._gdc()
        needs_star = self.expression.table is None
        needed = {"expression": needs_star, "slides": self.fetches_slides}
        options = _select(gdc, QueryOptions) | {"projects": list(projects)}
        options["data_types"] = [name for name, is_needed in needed.items() if is_needed]
        if needs_star and self.expression.positions is None:
            options["annotation_file_id"] = self.expression.annotation_file_id
        return options

    def fetch_options(self) -> dict[str, Any]:
        """Return the options of `mgi gdc fetch`."""
        return _select(self._gdc(), FetchOptions)

    def simulate_options(self) -> dict[str, Any]:
        """Return the options of `mgi simulate`."""
        return {} if self.simulate is None else self.simulate.model_dump() | {"seed": self.seed}

    def expression_options(self) -> dict[str, Any]:
        """Return the options of `mgi expression build`."""
        return _select(self.expression, StarCounts)

    def import_options(self) -> dict[str, Any]:
        """Return the options of `mgi expression import`."""
        return _select(self.expression, TableImport)

    @property
    def table_import(self) -> TableImport:
        """How the ready table of expression is read."""
        return TableImport(**self.import_options())

    def tile_options(self) -> dict[str, Any]:
        """Return the options of `mgi slide tile`."""
        return {} if self.slides is None else _select(self.slides, TileOptions)

    def mri_options(self) -> dict[str, Any]:
        """Return the options of `mgi mri import`."""
        return {} if self.mri is None else _select(self.mri, MriOptions)

    def predict_options(self, stated: dict[str, Any]) -> dict[str, Any]:
        """Return the options of `mgi predict`, with what is stated of the mpp of single slides."""
        images = self.slides or self.mri
        assert images is not None  # a configuration has one or the other
        mpp = {name: {"mpp": one["mpp"]} for name, one in stated.items() if one.get("mpp")}
        return _select(images, PredictOptions) | {"allow_missing": True, "stated": mpp}

    def split_options(self) -> dict[str, Any]:
        """Return the options of `mgi split`."""
        unlabelled = {"labelled": False} if self.features else {}
        return _select(self.split, Folds) | {"seed": self.seed} | unlabelled

    def pretrain_options(self, variant: str) -> dict[str, Any]:
        """Return the options of `mgi pretrain` for `variant`."""
        options = self.pretrain[variant].model_dump(exclude={"base"}, exclude_none=True)
        return options | _select(self, RunOptions)

    def finetune_options(self, variant: str) -> dict[str, Any]:
        """Return the options of `mgi finetune` for `variant`, the architecture of its encoders included."""
        options = self.finetune[variant].model_dump(exclude={"base"}, exclude_none=True)
        encoders = self.pretrain[self.finetune[variant].encoders].model_dump()
        architecture = {key: encoders[key] for key in ("gene_encoder", "image_encoder")}
        return options | architecture | _select(self, RunOptions)

    def replicates(self) -> dict[str, list[str]]:
        """Return the compared variants that others repeat with another seed alone, each with those others."""
        found: dict[str, dict[int, str]] = {}
        # The reference is nobody's repetition; else the first number is repeated by the others.
        key = lambda name: (name != self.evaluate.reference, self.finetune[name].replicate)  # noqa: E731
        for variant in () if self.features else sorted(self.compared, key=key):
            options = self.finetune_options(variant)
            number = options.pop("replicate")
            # A second variant of the same number is the same run.
            found.setdefault(json.dumps(options, sort_keys=True), {}).setdefault(number, variant)
        return {first: others for first, *others in (list(names.values()) for names in found.values()) if others}

    def evaluate_options(self) -> dict[str, Any]:
        """Return the options of `mgi summarise` and `mgi compare`."""
        return _select(self.evaluate, Bootstrap) | {"seed": self.seed}

    def probe_options(self) -> dict[str, Any]:
        """Return the options of `mgi probe`."""
        return _select(self.probe, Probe) | self.evaluate_options()

    def needs_pretraining(self, variant: str) -> bool:
        """Whether `variant` starts from pre-trained weights that it uses."""
        chosen = self.finetune[variant]
        return chosen.pretrained and (chosen.vit or chosen.genes != "none")

    def folds_to_run(self) -> list[int]:
        """Return the folds that the default target trains."""
        return self.split.folds_to_run()

    def given_files(self) -> dict[str, str]:
        """Return the files that the user provides before anything can run, by the key that names each."""
        given = {f"expression.{key}": getattr(self.expression, key) for key in ("table", "positions", "genes")}
        if self.gdc is not None:
            given |= {"gdc.exclude": self.gdc.exclude, "gdc.token_file": self.gdc.token_file}
        given |= {f"split.{key}": getattr(self.split, key) for key in ("stratify_table", "site_table")}
        given["probe.labels"] = self.probe.labels
        if self.slides is not None:
            given |= {f"slides.{key}": getattr(self.slides, key) for key in ("table", "folder", "mpp_table")}
        if self.features is not None:
            given |= {f"features.{key}": getattr(self.features, key) for key in ("table", "folder")}
        return {key: path for key, path in given.items() if path and not self._is_simulated(path)}

    def warnings(self) -> list[str]:
        """Return what is valid but probably not meant, one sentence each."""
        if self.simulate is None:
            return []
        return [
            f"'pretrain.{name}.batch_patients' is {variant.batch_patients}, but the cohort has {self.simulate.cases} "
            "patients: a batch holds every training patient"
            for name, variant in self.pretrain.items()
            if variant.batch_patients > self.simulate.cases
        ]

    def _is_simulated(self, path: str) -> bool:
        """Whether `mgi simulate` makes a file."""
        return self.simulate is not None and PurePath(path).is_relative_to(self._gdc().api_url.removeprefix(LOCAL))

    def _gdc(self) -> Gdc:
        if self.gdc is None:
            raise ValueError("the configuration has no section 'gdc'")
        return self.gdc


def _select(section: Section, model: type[Section]) -> dict[str, Any]:
    """Return the values of `section` that `model` has, as plain values."""
    return section.model_dump(include=set(model.model_fields), exclude_none=True)


def load_config(source: Path | str | dict[str, Any]) -> Config:
    """Read and validate a configuration: a YAML file, JSON text, or the mapping that Snakemake merged.

    Raises
    ------
    ConfigError
        For an unknown key (with the nearest valid one), an impossible value, or a variant or fold that does not exist.
    """
    raw = source if isinstance(source, dict) else read_mapping(source, "configuration")
    return validate_section(Config, {key: value for key, value in raw.items() if key not in SNAKEMAKE_KEYS})


def read_configuration(settings: Mapping[str, Any], files: Iterable[Path] = ()) -> Config:
    """Validate the mapping that Snakemake merged from configuration files and its command line.

    Parameters
    ----------
    settings : mapping
        What Snakemake merged.
    files : iterable of Path
        The files that it read; they are read again, strictly, since Snakemake takes the last of duplicate keys and
        numbers such as 010.

    Raises
    ------
    ConfigError
        If a file is not read as it is meant, a key is unknown or a value impossible.
    """
    for file in files:
        read_yaml(file)
    return load_config(dict(settings))


def load_options(section: type[SectionType], source: str | dict[str, Any], **flags: object) -> SectionType:
    """Read the options of one command.

    Parameters
    ----------
    section
        The options' model.
    source
        JSON text (what the workflow passes), the name of a YAML file, or a mapping.
    **flags
        Values that replace those of `source`, unless they are None.

    Raises
    ------
    ConfigError
        As `load_config`.
    """
    raw = source if isinstance(source, dict) else read_mapping(source, "options")
    given = {name: value for name, value in flags.items() if value is not None}
    return validate_section(section, raw | given, "options")
