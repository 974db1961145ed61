"""Trained models on disk: model.safetensors and config.json, enough to build the model anywhere."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from mgi import __version__
from mgi.errors import CheckpointError
from mgi.files import existing, written_aside
from mgi.model.alignment import Aligner
from mgi.model.gene_encoder import GeneEncoder
from mgi.model.image_encoder import ImageEncoder
from mgi.model.segmenter import Segmenter

WEIGHTS, DESCRIPTION = "model.safetensors", "config.json"


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
    with written_aside(folder / DESCRIPTION) as aside:
        aside.write_text(json.dumps({"mgi": __version__} | config, indent=1) + "\n")
    with written_aside(folder / WEIGHTS) as aside:
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
    description = existing(folder / DESCRIPTION, "description of a model")
    weights = existing(folder / WEIGHTS, "weights of a model")
    try:
        config = json.loads(description.read_text())
        model = BUILDERS[config["kind"]](config)
        model.load_state_dict(load_file(weights))
    except (KeyError, ValueError, RuntimeError, SafetensorError) as problem:
        reason = " ".join(str(problem).split())
        raise CheckpointError(f"{folder} holds no model that this version can load: {reason}") from None
    model.config = config
    return model.eval()


def check_genes(config: dict[str, Any], genes: list[str], folder: Path | str) -> None:
    """Raise `CheckpointError` unless `genes` are the genes of the model in `folder`, in its order."""
    expected = config["genes"]
    if expected == genes:
        return
    shared = len(set(expected) & set(genes))
    raise CheckpointError(
        f"the model in {folder} was trained on {len(expected)} genes and the expression table has {len(genes)}, "
        f"{shared} of them shared: use the table it was trained on, or train again on this one"
    )
