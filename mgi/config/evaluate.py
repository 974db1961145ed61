"""Comparison and report."""

from pydantic import Field

from mgi.config.section import Section


class Evaluate(Section):
    """Which variants are trained, compared and reported by the default target."""

    variants: list[str] = Field(
        ["image-only", "mgi", "shuffled-genes"], min_length=1, description="fine-tuning variants"
    )
    reference: str = Field("mgi", description="the variant that the others are compared with, patient by patient")
    bootstrap_samples: int = Field(2000, ge=100, description="bootstrap resamples of the patients")
