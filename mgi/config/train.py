"""Pre-training and fine-tuning: encoders, optimisation, and the complete options of a training job."""

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from mgi.config.names import Name
from mgi.config.section import Section, invalid, sentence
from mgi.config.vit import MAX_DEPTH, MAX_WIDTH, VIT_NAME_PATTERN, check_options

ATTENTION_HEADS = 4
# Full resolution, and the five halvings of EfficientNet.
BACKBONE_LEVELS = 6
MAX_STEPS = 10_000_000
# What torch takes as a seed, and numpy everywhere.
MAX_SEED = 2**32 - 1


class Seed(Section):
    """The seed of everything random."""

    seed: int = Field(0, ge=0, le=MAX_SEED, description="seed of everything random")


class GeneEncoder(Section):
    """The encoder of the genes: tokens in genomic order through Mamba, or what it is compared with."""

    kind: Literal["mamba", "transformer", "mlp", "linear"] = Field(
        "mamba",
        description="`mamba` and `transformer` read a token per gene; `mlp` and `linear` the whole profile at once",
    )
    dim: int = Field(128, ge=8, le=MAX_WIDTH, description="width of a gene token")
    depth: int = Field(4, ge=1, le=MAX_DEPTH, description="blocks of a Mamba or Transformer, hidden layers of an MLP")
    stride: int = Field(1, ge=1, le=MAX_WIDTH, description="neighbouring genes folded into one token")
    order: Literal["genome", "random", "shuffled-fixed"] = Field(
        "genome",
        description="sequence of the genes; an ablation: `random` draws one in each training step, `shuffled-fixed` "
        "one for good",
    )
    state_dim: int = Field(16, ge=1, le=1024, description="state of Mamba's selective scan per channel")
    bidirectional: bool = Field(False, description="Mamba scans the genome in both directions")
    pooling: Literal["mean", "attention"] = Field(
        "mean", description="how tokens become one vector; `attention` weights them by a learnt score"
    )
    dropped_genes: Literal["mean", "mask"] = Field(
        "mean",
        description="what `gene_dropout` makes of a gene: the training mean, the others scaled up, or a learnt mask",
    )
    components: int = Field(
        0,
        ge=0,
        le=1024,
        description="principal components of the training profiles, whitened and frozen, of which a trained linear map "
        "is added to every token and is what pooling starts from; 0 for none",
    )


class ImageEncoder(Section):
    """A timm Vision Transformer."""

    name: str = Field(
        "vit_small_patch16_224", pattern=VIT_NAME_PATTERN, description="any ViT of timm's registry, by name"
    )
    options: dict[str, Any] = Field(
        {}, description="keyword arguments of `timm.create_model`, such as patch_size, depth, embed_dim, num_heads"
    )
    weights: bool = Field(False, description="start from timm's published weights")
    texture: bool = Field(
        False,
        description="in pre-training, start from a linear map of colour and texture statistics, to which the ViT is "
        "added through a gate that starts closed: for few patients",
    )

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
        None,
        ge=1,
        description="most images of a slide or series that are trained and validated on, evenly spread; null takes all",
    )
    encoder_lr_scale: float = Field(
        1.0,
        ge=0,
        description="learning rate of the encoders relative to `lr`; in pre-training the maps of gene components and "
        "image statistics learn at `lr` itself",
    )
    intensity_jitter: float = Field(0.0, ge=0, lt=1, description="largest relative change of each channel's intensity")
    channel_swap: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the images in which a channel drawn at random shows another or the same, as where a "
        "sequence of MRI is missing",
    )
    stain_jitter: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="slides: largest relative change of the amounts of haematoxylin, eosin and DAB, and largest amount "
        "added, in optical density; 0.05 is light, 0.2 strong",
    )
    ema_decay: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="decay of a running average of the weights, such as 0.999, which is validated and kept in place of "
        "the best validated step; 0 for none",
    )
    max_missing_genes: float = Field(
        0.2,
        ge=0,
        le=1,
        description="largest share of the model's genes that another expression table may lack; they are set to their "
        "training mean",
    )
    sd_prior: float = Field(
        0.0,
        ge=0,
        description="shrinks each gene's standard deviation, which few training patients measure badly, towards the "
        "median over genes, with the weight of so many patients",
    )


class Pretrain(Optimisation):
    """Contrastive pre-training of the two encoders on paired training patients."""

    base: Name | None = Field(None, description="the variant that this one differs from")
    gene_encoder: GeneEncoder = Field(GeneEncoder(), description="the encoder of the genes")
    image_encoder: ImageEncoder = Field(ImageEncoder(), description="the ViT of the images")
    genes: Literal["matched", "shuffled"] = Field(
        "matched",
        description="the negative control: `shuffled` aligns each patient's images with another patient's profile of "
        "the same fold and role",
    )
    embed_dim: int = Field(128, ge=2, le=MAX_WIDTH, description="width of the space that genes and images share")
    batch_patients: int = Field(32, ge=2, description="patients in a batch")
    images_per_patient: int = Field(4, ge=1, description="images of each patient in a batch")
    bags: bool = Field(
        True,
        description="pool the images of a patient by attention before they are compared with its genes; without it "
        "each image is compared by itself",
    )
    micro_batch: int | None = Field(
        None,
        ge=1,
        description="images, and patients' profiles, encoded at once in a step: less memory and the same gradient for "
        "a third more time; null encodes the whole batch",
    )


class Finetune(Optimisation):
    """Segmentation fine-tuning."""

    base: Name | None = Field(None, description="the variant that this one differs from")
    encoders: Name = Field("mgi", description="the pre-training variant that defines the encoders")
    pretrained: bool = Field(True, description="start from that variant's weights")
    replicate: int = Field(
        0,
        ge=0,
        le=1000,
        description="number of a repetition with another seed, to see the spread over seeds: it draws other batches, "
        "initial weights and shuffled profiles, but starts from the same pre-trained encoders",
    )
    genes: Literal["matched", "none", "shuffled", "shuffled-within-site", "noise", "site"] = Field(
        "matched",
        description="the negative controls: `shuffled`, another patient's profile of the same fold and role, whose "
        "class of `stratify_column` does not depend on the own; `shuffled-within-site`, one of the same site too; "
        "`noise`, nobody's, of each gene's training mean and standard deviation; `site`, the mean profile of a site's "
        "training patients, which carries nothing but the site",
    )
    patient_dropout: float = Field(
        0.0, ge=0, lt=1, description="share of the patients in each step that are trained on as if without a profile"
    )
    gene_gate: float = Field(
        1.0,
        ge=0,
        le=1,
        description="strength of the genes' effect on the image before training: 0 starts without any, and it grows "
        "where it helps, which is safe where genes tell little; 1 learns faster what they tell",
    )
    network: Literal["mgi", "unet-resnet18", "segformer-b0"] = Field(
        "mgi",
        description="`mgi`, or a published network in its place as a baseline, trained from random weights without ViT "
        "and genes: U-Net on a ResNet-18, or SegFormer on MiT-B0",
    )
    vit: bool = Field(True, description="use the ViT; without it the convolutional path is alone")
    channels: list[int] = Field(
        [16, 32, 64, 128],
        min_length=2,
        max_length=16,
        description="widths of the convolutional path, one per halving of the resolution",
    )
    backbone: Literal["efficientnet-lite0"] | None = Field(
        None,
        description="encoder of the convolutional path: EfficientNet-Lite0 from weights of ImageNet, each of its maps "
        "projected to a width of `channels`, of which there are at most 6; null starts from random weights",
    )
    neighbours: int = Field(
        0, ge=0, le=8, description="MRI: slices on either side that the convolutional path sees beside each slice"
    )
    batch_images: int = Field(16, ge=1, description="images in a batch")
    positive_fraction: float = Field(0.5, ge=0, le=1, description="share of a batch drawn from images with tumour")
    rotation: float = Field(0.0, ge=0, le=180, description="largest rotation of a training image, degrees")
    zoom: float = Field(0.0, ge=0, le=1, description="largest relative enlargement of a training image, and reduction")
    gamma: float = Field(
        0.0,
        ge=0,
        le=1,
        description="contrast: the exponent of each channel's intensities is drawn from 1/(1 + gamma) to 1 + gamma",
    )
    noise: float = Field(
        0.0,
        ge=0,
        le=1,
        description="largest standard deviation of the Gaussian noise that is added to a training image, intensities "
        "being 0 to 1",
    )
    average_flips: bool = Field(False, description="predict an image as the mean over it and its mirror image")

    @field_validator("channels")
    @classmethod
    def _check_widths(cls, channels: list[int]) -> list[int]:
        if not 1 <= min(channels) <= max(channels) <= MAX_WIDTH:
            raise invalid(f"a width is 1 to {MAX_WIDTH}")
        return channels

    @model_validator(mode="after")
    def _check_network(self) -> Self:
        parts = {
            "genes": self.genes != "none", "vit": self.vit, "pretrained": self.pretrained,
            "backbone": self.backbone is not None,
        }  # fmt: skip
        if self.network != "mgi" and any(parts.values()):
            key = next(key for key, used in parts.items() if used)
            raise sentence(
                f"'{{at}}network' is '{self.network}', which has no part for '{{at}}{key}': set 'genes: none', 'vit: "
                "false', 'pretrained: false' and 'backbone: null'"
            )
        if self.backbone is not None and len(self.channels) > BACKBONE_LEVELS:
            raise sentence(
                f"'{{at}}channels' are {len(self.channels)} widths, and '{self.backbone}' has maps for "
                f"{BACKBONE_LEVELS}: state fewer, or leave '{{at}}backbone' out"
            )
        return self

    @model_validator(mode="after")
    def _check_stains(self) -> Self:
        if self.neighbours and self.stain_jitter:
            raise sentence(
                f"'{{at}}stain_jitter' is {self.stain_jitter} and '{{at}}neighbours' {self.neighbours}: slides have no "
                "neighbouring slices, and MRI no stain; leave one out"
            )
        if self.neighbours and self.images_per_source:
            raise sentence(
                f"'{{at}}images_per_source' is {self.images_per_source} and '{{at}}neighbours' {self.neighbours}: a "
                "slice's neighbours would not be read; leave one out"
            )
        return self

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
        "cpu", description="where training runs; with `cuda` a training job asks for `resources.gpus` GPUs"
    )
    threads: int = Field(
        1, ge=1, le=4096, description="CPU threads of a training job; results depend on it, so it is a setting"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of training: `auto` is bfloat16 where the processor or GPU computes it in hardware"
    )


class PretrainOptions(Pretrain, RunOptions):
    """The options of `mgi pretrain`, complete."""


class FinetuneOptions(Finetune, RunOptions):
    """The options of `mgi finetune`, complete."""

    @property
    def replicate_seed(self) -> int:
        """The seed of this repetition's weights and batches."""
        return (self.seed + self.replicate) % (MAX_SEED + 1)

    gene_encoder: GeneEncoder = Field(GeneEncoder(), description="the encoder of the genes")
    image_encoder: ImageEncoder = Field(ImageEncoder(), description="the ViT of the images")
