"""Comparison and report."""

from typing import Self

from pydantic import Field, field_validator, model_validator

from mgi.config.names import Name
from mgi.config.prepare import Sequences, StatedSlide
from mgi.config.section import Section, sentence
from mgi.config.train import Seed


class Bootstrap(Section):
    """How intervals are computed."""

    bootstrap_samples: int = Field(2000, ge=100, le=1_000_000, description="bootstrap resamples of the patients")


class Evaluate(Bootstrap):
    """Which variants are trained, compared and reported by the default target."""

    variants: list[Name] = Field(
        ["image-only", "mgi", "shuffled-genes"],
        min_length=1,
        description="fine-tuning variants, or with `features` pre-training variants, that a bare `snakemake` trains "
        "and compares; every other is one target",
    )
    reference: Name = Field("mgi", description="the variant that the others are compared with, patient by patient")

    @field_validator("variants")
    @classmethod
    def _refuse_duplicates(cls, variants: list[str]) -> list[str]:
        for name in variants:
            if variants.count(name) > 1:
                raise sentence(f"'{{here}}' has {name} twice")
        return variants

    @model_validator(mode="after")
    def _check_reference(self) -> Self:
        # With features the reference alone is compared where nothing is stated: `Config.compared`.
        if self.reference not in self.variants and "variants" in self.model_fields_set:
            raise sentence(f"'{{at}}reference' is '{self.reference}', which '{{at}}variants' lacks")
        return self


class EvaluateOptions(Bootstrap, Seed):
    """The options of `mgi summarise`, `mgi compare` and `mgi evaluate`, complete."""


class Probe(Section):
    """What the frozen embeddings of pre-training are asked; made as `results/{cohort}/evaluate/probe.csv`."""

    labels: str | None = Field(
        None, description="a table with case_id and labels of the patients; null probes the tissue-source site alone"
    )
    columns: list[str] = Field(
        [],
        description="its columns to probe: numbers of more than 10 distinct values are quantities (R²), the rest "
        "classes (AUROC)",
    )
    survival: list[str] = Field(
        [],
        max_length=2,
        description="its two columns of survival, the time and whether the event was seen (0 or 1), for a C-index",
    )
    images_per_source: int = Field(
        64, ge=1, description="most images of a slide or series that are embedded, evenly spread"
    )
    resamples: int = Field(100, ge=1, le=100_000, description="draws of the few patients of each class that are fitted")

    @model_validator(mode="after")
    def _check_columns(self) -> Self:
        if (self.labels is None) == bool(self.columns or self.survival):
            raise sentence("'{at}labels' goes together with '{at}columns' or '{at}survival': give both or neither")
        if len(self.survival) == 1:
            raise sentence("'{at}survival' names one column; it needs two, the time and the event")
        return self


class ProbeOptions(Probe, Bootstrap, Seed):
    """The options of `mgi probe`, complete."""


class PredictOptions(Section):
    """How one image is segmented: the options of `mgi predict`."""

    default_mpp: float | None = Field(None, gt=0, description="level-0 microns per pixel of a slide that states none")
    min_tissue: float = Field(0.1, ge=0, le=1, description="least tissue fraction of a tile")
    channels: Sequences = Field(
        ["t1", "flair", "t1ce"], description="NIfTI sequences of the three channels, as in training"
    )
    allow_missing: bool = Field(
        False, description="segment a case that has no profile in the table by its images alone; false refuses it"
    )
    partial_tiles: bool = Field(
        False, description="keep tiles that reach beyond the margins of a slide, as in training"
    )
    stated: dict[str, StatedSlide] = Field({}, description="the mpp of single slides, by their source_id")
    min_area: float = Field(2500, ge=0, description="smallest region of tumour on a slide that is kept, square microns")
    min_voxels: int = Field(
        0,
        ge=0,
        description="smallest region of tumour in an MRI series that is kept, voxels in touching slices",
    )
