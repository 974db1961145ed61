"""Check before a run that every variant of a configuration can be built here: seconds, and nothing is written."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from mgi.config import Config, Finetune, ImageEncoder, Pretrain
from mgi.config import GeneEncoder as GeneEncoderOptions
from mgi.errors import ConfigError, MGIError
from mgi.model.alignment import Aligner
from mgi.model.backbone import find_published_weights
from mgi.model.baseline import Baseline
from mgi.model.feature_encoder import FeatureEncoder
from mgi.model.gene_encoder import GeneEncoder
from mgi.model.image_encoder import ImageEncoder as Vit
from mgi.model.image_encoder import import_timm
from mgi.model.segmenter import Segmenter
from mgi.train import checkpoint
from mgi.train.device import find_missing_for_cuda
from mgi.train.vit import check_vit

# Neither the number of genes nor that of features is known before they are read, and no shape that can be wrong depends
# on it.
GENES = 64
FEATURES = 64
# timm fits these to another patch or image size when it loads published weights.
RESIZED = ("pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias")


def check_models(config: Config) -> None:
    """Build every pre-training and fine-tuning variant on torch's meta device at the configured image size.

    Raises
    ------
    ConfigError
        If a variant cannot be built, or the device is missing on this machine: one sentence that names the key.
    """
    if config.device == "cuda" and (missing := find_missing_for_cuda(_encodes_genes(config))):
        raise ConfigError(f"configuration: 'device' is cuda, but {missing}; set 'device: cpu', or train elsewhere")
    if config.features is not None:
        for name, encoders in config.pretrain.items():
            _check_alignment(f"pretrain.{name}", encoders, FeatureEncoder(FEATURES))
        return
    size = config.image_px or 0
    vits = {name: _check_pretraining(f"pretrain.{name}", variant, size) for name, variant in config.pretrain.items()}
    for name, variant in config.finetune.items():
        encoders = config.pretrain[variant.encoders]
        _check_finetuning(f"finetune.{name}", variant, encoders, vits[variant.encoders], size)


def _check_pretraining(where: str, variant: Pretrain, image_px: int) -> Vit:
    vit = _check_image_encoder(variant.image_encoder, image_px, f"{where}.image_encoder")
    _check_alignment(where, variant, vit)
    return vit


def _check_alignment(where: str, variant: Pretrain, images: Vit | FeatureEncoder) -> None:
    with _naming(f"{where}.gene_encoder"):
        genes = _build_gene_encoder(variant.gene_encoder)
    with _naming(where), torch.device("meta"):
        Aligner(genes, images, variant.embed_dim)


def _check_finetuning(where: str, variant: Finetune, encoders: Pretrain, vit: Vit, image_px: int) -> None:
    with _naming(where), torch.device("meta"):
        genes = None if variant.genes == "none" else _build_gene_encoder(encoders.gene_encoder)
        if variant.network != "mgi":
            model: Segmenter = Baseline(variant.network, variant.neighbours)
        else:
            backbone = variant.backbone is not None
            if backbone:
                find_published_weights()
            model = Segmenter(
                variant.channels, vit if variant.vit else None, genes, variant.neighbours, backbone=backbone
            )
        images = torch.empty(1, 3 * (1 + 2 * variant.neighbours), image_px, image_px)
        tokens = None if genes is None else torch.empty(1, 1, genes.dim)
        model.segment(images, tokens, torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.bool))


def _encodes_genes(config: Config) -> bool:
    """Whether a variant that the default target trains encodes genes; pre-training always does."""
    if config.features is not None:
        return True
    return any(
        config.finetune[name].genes != "none" or config.needs_pretraining(name) for name in config.evaluate.variants
    )


def _check_image_encoder(encoder: ImageEncoder, image_px: int, where: str) -> Vit:
    try:
        check_vit(encoder, where)
    except ConfigError as error:
        raise ConfigError(f"configuration: {error}") from error
    with _naming(where), torch.device("meta"):
        vit = Vit(encoder.name, image_px, encoder.options)
        vit(torch.empty(1, 3, image_px, image_px))
        vit.feature_map(torch.empty(1, 3, image_px, image_px))
    if encoder.weights:
        _check_published_weights(encoder, vit, where)
    return vit


def _check_published_weights(encoder: ImageEncoder, vit: Vit, where: str) -> None:
    """Check that timm has weights for this ViT, and that the options leave the shapes they have."""
    timm = import_timm()
    published = timm.get_pretrained_cfg(encoder.name, allow_unregistered=False)
    if published is None or not published.has_weights:
        raise ConfigError(f"configuration: '{where}.weights' is true, but timm has none for '{encoder.name}'")
    with torch.device("meta"):
        shapes = _shapes(timm.create_model(encoder.name, num_classes=0))
    changed = sorted(set(shapes.items()) ^ set(_shapes(vit.vit).items()))
    if changed:
        raise ConfigError(
            f"configuration: '{where}.weights' is true, but the options change the shape of '{changed[0][0]}': leave "
            f"{', '.join(encoder.options)} as published, or set 'weights: false'"
        )


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items() if name not in RESIZED}


def _build_gene_encoder(options: GeneEncoderOptions) -> GeneEncoder:
    with torch.device("meta"):
        return checkpoint.build_gene_encoder(options, GENES)


@contextmanager
def _naming(where: str) -> Iterator[None]:
    """Name the part of the configuration that torch, timm or a network refused."""
    try:
        yield
    except MGIError as error:
        raise ConfigError(f"configuration: '{where}': {error}") from error
    except (RuntimeError, ValueError, TypeError, AssertionError, ArithmeticError, MemoryError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"configuration: '{where}' describes no network that can be built: {reason}") from error
