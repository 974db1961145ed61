"""Pre-training and fine-tuning: encoders, optimisation, and the complete options of a training job."""

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from mgi.config.names import Name
from mgi.config.section import Section, invalid, sentence
from mgi.config.vit import VIT_NAME_PATTERN, check_options

ATTENTION_HEADS = 4
MAX_STEPS = 10_000_000
# What torch takes as a seed, and numpy everywhere.
MAX_SEED = 2**32 - 1


class Seed(Section):
    """The seed of everything random."""

    seed: int = Field(0, ge=0, le=MAX_SEED, description="seed of everything random")


class GeneEncoder(Section):
    """A stack of Mamba blocks over the genes in genomic order."""

    dim: int = Field(128, ge=8, le=16384, description="width of a gene token")
    depth: int = Field(4, ge=1, le=256, description="Mamba blocks")
    stride: int = Field(1, ge=1, description="neighbouring genes folded into one token")
    state_dim: int = Field(16, ge=1, le=1024, description="state of the selective scan per channel")
    bidirectional: bool = Field(False, description="scan the genome in both directions")


class ImageEncoder(Section):
    """A timm Vision Transformer."""

    name: str = Field(
        "vit_small_patch16_224", pattern=VIT_NAME_PATTERN, description="any ViT of timm's registry, by name"
    )
    options: dict[str, Any] = Field(
        {}, description="keyword arguments of `timm.create_model`, such as patch_size, depth, embed_dim, num_heads"
    )
    weights: bool = Field(False, description="start from timm's published weights")

    @field_validator("options")
    @classmethod
    def _check_options(cls, options: dict[str, Any]) -> dict[str, Any]:
        return check_options(options)


class Optimisation(Section):
    """AdamW with linear warm-up and cosine decay."""

    steps: int = Field(2000, ge=1, le=MAX_STEPS, description="optimiser steps")
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

    base: Name | None = Field(None, description="the variant that this one differs from")
    gene_encoder: GeneEncoder = Field(GeneEncoder(), description="the Mamba encoder of the genes")
    image_encoder: ImageEncoder = Field(ImageEncoder(), description="the ViT of the images")
    embed_dim: int = Field(128, ge=2, le=16384, description="width of the space that genes and images share")
    batch_patients: int = Field(32, ge=2, description="patients in a batch")
    images_per_patient: int = Field(4, ge=1, description="images of each patient in a batch")


class Finetune(Optimisation):
    """Segmentation fine-tuning."""

    base: Name | None = Field(None, description="the variant that this one differs from")
    encoders: Name = Field("mgi", description="the pre-training variant that defines the encoders")
    pretrained: bool = Field(True, description="start from that variant's weights")
    genes: Literal["matched", "none", "shuffled"] = Field(
        "matched", description="`shuffled`: the negative control, another patient's profile of the same fold and role"
    )
    vit: bool = Field(True, description="use the ViT; without it the convolutional path is alone")
    channels: list[int] = Field(
        [16, 32, 64, 128],
        min_length=2,
        max_length=16,
        description="widths of the convolutional path, one per halving of the resolution",
    )
    batch_images: int = Field(16, ge=1, description="images in a batch")
    positive_fraction: float = Field(0.5, ge=0, le=1, description="share of a batch drawn from images with tumour")
    encoder_lr_scale: float = Field(1.0, ge=0, description="learning rate of the encoders relative to `lr`")

    @field_validator("channels")
    @classmethod
    def _check_widths(cls, channels: list[int]) -> list[int]:
        if min(channels) < 1:
            raise invalid("a width is at least 1")
        return channels

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.channels[-1] % ATTENTION_HEADS and self.genes != "none":
            raise sentence(
                f"'{{at}}channels' cannot be {self.channels}: the last is divided among {ATTENTION_HEADS} attention "
                "heads to the genes; make it a multiple of that"
            )
        return self


class RunOptions(Seed):
    """What every training job is told besides its variant."""

    device: Literal["cpu", "cuda"] = Field(
        "cpu", description="where training runs; with `cuda` every training job asks for one GPU"
    )
    threads: int = Field(
        1, ge=1, le=1024, description="CPU threads of a training job; results depend on it, so it is a setting"
    )


class PretrainOptions(Pretrain, RunOptions):
    """The options of `mgi pretrain`, complete."""


class FinetuneOptions(Finetune, RunOptions):
    """The options of `mgi finetune`, complete."""

    gene_encoder: GeneEncoder = Field(GeneEncoder(), description="the Mamba encoder of the genes")
    image_encoder: ImageEncoder = Field(ImageEncoder(), description="the ViT of the images")
