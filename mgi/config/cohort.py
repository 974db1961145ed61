"""The whole configuration of a cohort: its sections, its variants, and how it is read."""

import json
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field

from mgi.config.acquire import Gdc, Simulate
from mgi.config.evaluate import Evaluate
from mgi.config.prepare import Expression, Mri, Slides, Split
from mgi.config.section import Section, validate_section
from mgi.config.train import MAX_SEED, Finetune, Pretrain
from mgi.errors import ConfigError
from mgi.names import NAME_PATTERN


class Resources(Section):
    """What a job asks of a cluster; `gpu: 1` is added to training where `device` is cuda."""

    prepare_mem_mb: int = Field(4000, ge=100, description="memory of a preparing job")
    prepare_runtime_min: int = Field(120, ge=1, description="time limit of a preparing job")
    train_mem_mb: int = Field(16000, ge=100, description="memory of a training job")
    train_runtime_min: int = Field(1440, ge=1, description="time limit of a training job")


class Config(Section):
    """The whole configuration."""

    cohort: str = Field(pattern=NAME_PATTERN, description="name of the cohort: outputs go to results/{cohort}")
    seed: int = Field(0, ge=0, le=MAX_SEED, description="seed of everything random")
    device: Literal["cpu", "cuda"] = Field("cpu", description="where training runs")
    threads: int = Field(1, ge=1, description="CPU threads of a training job; results depend on it, so it is a setting")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of training: `auto` is bfloat16 where the processor or GPU computes it in hardware"
    )
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
        return {"seed": self.seed, "device": self.device, "threads": self.threads, "precision": self.precision}


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
    config = validate_section(Config, _resolve_variants(raw))
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
    return validate_section(section, raw)


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
