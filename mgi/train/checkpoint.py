"""Trained models on disk: model.safetensors and config.json, enough to build the model anywhere."""

import math
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from mgi.config import FinetuneOptions
from mgi.config import GeneEncoder as GeneEncoderOptions
from mgi.config import ImageEncoder as ImageEncoderOptions
from mgi.errors import CheckpointError, ConfigError
from mgi.files import atomic_write, require_file
from mgi.model.alignment import Aligner
from mgi.model.baseline import HALVINGS, Baseline
from mgi.model.feature_encoder import FeatureEncoder
from mgi.model.gene_encoder import GeneEncoder
from mgi.model.image_encoder import ImageEncoder
from mgi.model.segmenter import Segmenter
from mgi.names import first_few
from mgi.train.data import Images
from mgi.train.description import AlignerDescription, SegmenterDescription, read_description

WEIGHTS, DESCRIPTION = "model.safetensors", "config.json"
MPP_TOLERANCE = 0.01


def build_gene_encoder(options: GeneEncoderOptions, n_genes: int) -> GeneEncoder:
    """Build the gene encoder that the options describe."""
    return GeneEncoder(n_genes, **options.model_dump())


def build_image_encoder(options: ImageEncoderOptions, image_px: int, weights: bool = False) -> ImageEncoder:
    """Build the ViT that the options describe, without published weights unless asked."""
    return ImageEncoder(options.name, image_px, options.options, weights, options.texture)


def build_aligner(description: AlignerDescription, weights: bool = False) -> Aligner:
    """Build the pre-training model that is described."""
    options = description.options
    genes = build_gene_encoder(options.gene_encoder, len(description.genes))
    images: ImageEncoder | FeatureEncoder
    if description.features is not None:
        images = FeatureEncoder(description.features)
    else:
        assert description.image_px is not None  # a description has one or the other
        images = build_image_encoder(options.image_encoder, description.image_px, weights)
    return Aligner(genes, images, options.embed_dim, options.bags)


def build_segmenter(description: SegmenterDescription, weights: bool = False) -> Segmenter:
    """Build the segmenter that is described."""
    options = description.options
    if options.network != "mgi":
        return Baseline(options.network, options.neighbours, options.average_flips)
    genes = images = None
    if options.genes != "none":
        genes = build_gene_encoder(options.gene_encoder, len(description.genes))
    if options.vit:
        images = build_image_encoder(options.image_encoder, description.image_px, weights)
    return Segmenter(
        options.channels, images, genes, options.neighbours, options.average_flips, options.gene_gate,
        options.backbone is not None,
    )  # fmt: skip


def build(description: AlignerDescription | SegmenterDescription) -> Aligner | Segmenter:
    """Build the model that is described, with random weights."""
    if isinstance(description, AlignerDescription):
        return build_aligner(description)
    return build_segmenter(description)


def count_halvings(options: FinetuneOptions) -> int:
    """Return how often a segmenter halves its images, whose edge must be a multiple of 2 to this power."""
    return len(options.channels) - 1 if options.network == "mgi" else HALVINGS


def save(model: nn.Module, description: AlignerDescription | SegmenterDescription, folder: Path) -> None:
    """Write config.json, then model.safetensors, into `folder`.

    Raises
    ------
    CheckpointError
        If the disk is full or cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / DESCRIPTION) as aside:
        aside.write_text(description.model_dump_json(indent=1, exclude={"options": {"base", "device"}}) + "\n")
    try:
        with atomic_write(folder / WEIGHTS) as aside:
            save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, aside)
    except SafetensorError as error:
        raise CheckpointError(f"cannot write {folder / WEIGHTS}: {' '.join(str(error).split())}") from error


def load(folder: Path | str) -> Aligner | Segmenter:
    """Load a model written by `mgi pretrain` or `mgi finetune`, in evaluation mode on the CPU.

    Returns
    -------
    Aligner or Segmenter
        With its description as the attribute `description`.

    Raises
    ------
    MissingInputError
        If the folder lacks model.safetensors or config.json.
    CheckpointError
        If config.json describes no model, or not the one whose weights lie beside it.
    """
    folder = Path(folder)
    description = read_description(folder / DESCRIPTION)
    path = require_file(folder / WEIGHTS, "weights of a model")
    if isinstance(description, SegmenterDescription):
        _check_edge(description, folder)
    try:
        # Compared by the file's header before anything of the described size is allocated.
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            expected = {name: list(value.shape) for name, value in build(description).state_dict().items()}
        with safe_open(path, "pt") as file:
            found = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        if differing:
            raise CheckpointError(
                f"{path} does not hold the model that {DESCRIPTION} beside it describes: missing, unexpected or of "
                f"another shape are {first_few(differing)}"
            )
        with torch.random.fork_rng(devices=[]):  # the weights are overwritten: the caller's numbers stay as they are
            model = build(description)
        model.load_state_dict(load_file(path))
    except (ConfigError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{folder} holds no model that this version can load: {reason}") from error
    model.description = description
    if isinstance(description, SegmenterDescription):
        model.uses_genes = description.uses_genes
    return model.eval()


def _check_edge(description: SegmenterDescription, folder: Path) -> None:
    halvings = count_halvings(description.options)
    if description.image_px % 2**halvings:
        raise CheckpointError(
            f"{folder / DESCRIPTION} does not describe a model: images of {description.image_px} px cannot be halved "
            f"{halvings} times"
        )


def check_unit(description: AlignerDescription | SegmenterDescription, unit: str | None, folder: Path | str) -> None:
    """Raise `CheckpointError` if the model in `folder` was trained on expression in another unit.

    A unit that either does not state is not compared.
    """
    if description.unit and unit and description.unit != unit:
        raise CheckpointError(
            f"the model in {folder} was trained on {description.unit} and the expression table holds {unit}: make the "
            "table in that unit, or train again on this one"
        )


def check_images(
    description: AlignerDescription | SegmenterDescription,
    images: Images | SegmenterDescription,
    folder: Path | str,
    where: Path | str,
) -> None:
    """Raise `CheckpointError` unless the images of `where` have the size, mpp and stain of the model in `folder`.

    An mpp that either does not state is not compared.

    Parameters
    ----------
    images : Images or SegmenterDescription
        The images, or what a model states of those that it was trained on.
    """
    if description.image_px is None:
        raise CheckpointError(f"{where} holds images and the model in {folder} was trained on precomputed features")
    if images.image_px != description.image_px:
        raise CheckpointError(
            f"{where} holds images of {images.image_px} px and the model in {folder} was trained on "
            f"{description.image_px} px: import or tile at that size"
        )
    expected, mpp = description.mpp, images.mpp
    if expected and mpp and not math.isclose(expected, mpp, rel_tol=MPP_TOLERANCE):
        raise CheckpointError(
            f"{where} holds images of {mpp:g} mpp and the model in {folder} was trained on {expected:g}: tile at that"
        )
    if images.stain != description.stain:
        raise CheckpointError(
            f"{where} holds images of stain normalisation {images.stain or 'none'} and the model in {folder} was "
            f"trained on {description.stain or 'none'}: tile with that `stain`"
        )


def check_images_or_features(
    description: AlignerDescription, images: Images, folder: Path | str, where: Path | str
) -> None:
    """Raise `CheckpointError` unless a pre-trained model reads such images, or features of such a width."""
    if images.features is None:
        check_images(description, images, folder, where)
    elif images.features != description.features:
        trained = "images" if description.features is None else f"features of {description.features} values"
        raise CheckpointError(
            f"{where} holds features of {images.features} values and the model in {folder} was trained on {trained}: "
            "give those of the same encoder"
        )
