"""Trained models on disk: model.safetensors and config.json, enough to build the model anywhere."""

import json
import math
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from mgi import __version__
from mgi.errors import CheckpointError
from mgi.files import atomic_write, require_file
from mgi.model.alignment import Aligner
from mgi.model.gene_encoder import GeneEncoder
from mgi.model.image_encoder import ImageEncoder
from mgi.model.segmenter import Segmenter
from mgi.train.data import Profiles

WEIGHTS, DESCRIPTION = "model.safetensors", "config.json"
MPP_TOLERANCE = 0.01


def build_gene_encoder(options: dict[str, Any], n_genes: int) -> GeneEncoder:
    """Build the gene encoder that the options describe."""
    return GeneEncoder(n_genes, **options)


def build_image_encoder(options: dict[str, Any], image_px: int, weights: bool = False) -> ImageEncoder:
    """Build the ViT that the options describe, without published weights unless asked."""
    return ImageEncoder(options["name"], image_px, options["options"], weights)


def build_aligner(config: dict[str, Any], weights: bool = False) -> Aligner:
    """Build the pre-training model that a config.json describes."""
    genes = build_gene_encoder(config["options"]["gene_encoder"], len(config["genes"]))
    images = build_image_encoder(config["options"]["image_encoder"], config["image_px"], weights)
    return Aligner(genes, images, config["options"]["embed_dim"])


def build_segmenter(config: dict[str, Any], weights: bool = False) -> Segmenter:
    """Build the segmenter that a config.json describes."""
    options = config["options"]
    genes = images = None
    if options["genes"] != "none":
        genes = build_gene_encoder(options["gene_encoder"], len(config["genes"]))
    if options["vit"]:
        images = build_image_encoder(options["image_encoder"], config["image_px"], weights)
    return Segmenter(options["channels"], images, genes)


BUILDERS = {"aligner": build_aligner, "segmenter": build_segmenter}


def save(model: nn.Module, config: dict[str, Any], folder: Path) -> None:
    """Write config.json, then model.safetensors, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / DESCRIPTION) as aside:
        aside.write_text(json.dumps({"mgi": __version__} | config, indent=1) + "\n")
    with atomic_write(folder / WEIGHTS) as aside:
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, aside)


def load(folder: Path | str) -> nn.Module:
    """Load a model written by `mgi pretrain` or `mgi finetune`, in evaluation mode on the CPU.

    Returns
    -------
    Aligner or Segmenter
        With its description as the attribute `config`.

    Raises
    ------
    MissingInputError
        If the folder lacks model.safetensors or config.json.
    CheckpointError
        If the two do not belong together.
    """
    folder = Path(folder)
    description = require_file(folder / DESCRIPTION, "description of a model")
    weights = require_file(folder / WEIGHTS, "weights of a model")
    try:
        config = json.loads(description.read_text())
        model = BUILDERS[config["kind"]](config)
        model.load_state_dict(load_file(weights))
    except (KeyError, ValueError, RuntimeError, SafetensorError) as problem:
        reason = " ".join(str(problem).split())
        raise CheckpointError(f"{folder} holds no model that this version can load: {reason}") from None
    model.config = config
    return model.eval()


def check_expression(config: dict[str, Any], profiles: Profiles, folder: Path | str) -> None:
    """Raise `CheckpointError` unless the profiles have the genes of the model in `folder`, in its order, and its unit.

    A unit that either does not state is not compared.
    """
    expected = config["genes"]
    if expected != profiles.genes:
        shared = len(set(expected) & set(profiles.genes))
        raise CheckpointError(
            f"the model in {folder} was trained on {len(expected)} genes and the expression table has "
            f"{len(profiles.genes)}, {shared} of them shared: use the table it was trained on, or train again on this "
            "one"
        )
    unit = config.get("unit")
    if unit and profiles.unit and unit != profiles.unit:
        raise CheckpointError(
            f"the model in {folder} was trained on {unit} and the expression table holds {profiles.unit}: make the "
            "table in that unit, or train again on this one"
        )


def check_images(
    config: dict[str, Any], image_px: int, mpp: float | None, folder: Path | str, where: Path | str
) -> None:
    """Raise `CheckpointError` unless the images of `where` have the size and the mpp of the model in `folder`.

    An mpp that either does not state is not compared.
    """
    if image_px != config["image_px"]:
        raise CheckpointError(
            f"{where} holds images of {image_px} px and the model in {folder} was trained on {config['image_px']} px: "
            "import or tile at that size"
        )
    expected = config.get("mpp")
    if expected and mpp and not math.isclose(expected, mpp, rel_tol=MPP_TOLERANCE):
        raise CheckpointError(
            f"{where} holds images of {mpp:g} mpp and the model in {folder} was trained on {expected:g}: tile at that"
        )
