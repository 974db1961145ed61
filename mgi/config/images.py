"""What a cohort's images must be for its models: of one kind, and of a size that they can read."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mgi.config.acquire import LOCAL
from mgi.config.section import sentence
from mgi.config.train import Optimisation

if TYPE_CHECKING:
    from mgi.config.cohort import Config

VIT_PATCH = re.compile(r"_patch([1-9][0-9]*)(?:_|$)")
# Of a pre-training variant: what only pixels have.
OF_PIXELS = ("image_encoder", "augment", "intensity_jitter", "channel_swap", "stain_jitter")


def check_kind_of_image(config: "Config") -> None:
    """Check that a configuration has one kind of image, and names where it and the expression come from.

    Raises
    ------
    PydanticCustomError
        With a sentence for the validator.
    """
    kinds = [config.slides, config.mri, config.features]
    if sum(kind is not None for kind in kinds) != 1:
        raise sentence("give either 'slides' or 'mri', or 'features': one cohort has one kind of image")
    if config.simulate is not None and (config.gdc is None or not config.gdc.api_url.startswith(LOCAL)):
        raise sentence("'simulate' makes the folder that 'gdc.api_url' names: write it as local:DIR")
    if config.slides is not None and config.slides.own is None and config.gdc is None:
        raise sentence("give 'slides.table' or 'slides.folder', or 'gdc.projects' for slides of the GDC")
    if config.expression.table is None and config.gdc is None:
        raise sentence("give 'expression.table', or 'gdc.projects' for STAR counts")


def check_features(config: "Config") -> None:
    """Check that nothing of a configuration with precomputed features needs pixels; raises as the first check."""
    if config.finetune:
        raise sentence(
            "'finetune' segments images, and 'features' have no pixels: leave 'finetune' out, or give 'slides' in "
            "place of 'features'"
        )
    for name, variant in config.pretrain.items():
        if stated := [key for key in OF_PIXELS if key in variant.model_fields_set]:
            raise sentence(f"'pretrain.{name}.{stated[0]}' is of images, and 'features' have no pixels: leave it out")


def check_image_size(config: "Config") -> None:
    """Check that the size of the images fits every variant's patches and halvings; raises as the first check."""
    if not config.finetune:
        raise sentence("'finetune' is missing; see config/README.md")
    image_px = config.image_px or 0
    key = "slides.tile_px" if config.slides is not None else "mri.image_px"
    for name, pretrain in config.pretrain.items():
        where = f"pretrain.{name}.image_encoder"
        patch = pretrain.image_encoder.options.get("patch_size")
        if patch and image_px % patch:
            raise sentence(
                f"'{where}.options.patch_size' is {patch}, which does not divide '{key}', {image_px}: make one a "
                "multiple of the other"
            )
        named = VIT_PATCH.search(pretrain.image_encoder.name)
        if not patch and named and image_px % int(named[1]):
            raise sentence(
                f"'{where}.name' has patches of {named[1]} px, which do not divide '{key}', {image_px}: change one, or "
                f"set '{where}.options.patch_size'"
            )
    for name, finetune in config.finetune.items():
        halvings = len(finetune.channels) - 1
        if image_px % 2**halvings:
            raise sentence(
                f"'finetune.{name}.channels' has {halvings + 1} widths and so halves the images {halvings} times, but "
                f"'{key}' is {image_px}: make it a multiple of {2**halvings}, or use fewer widths"
            )


def check_stains(config: "Config") -> None:
    """Check that no variant changes the stain of MRI; raises as the first check."""
    sections: dict[str, Mapping[str, Optimisation]] = {"pretrain": config.pretrain, "finetune": config.finetune}
    for stage, variants in sections.items() if config.mri is not None else ():
        for name, variant in variants.items():
            if variant.stain_jitter:
                raise sentence(
                    f"'{stage}.{name}.stain_jitter' is {variant.stain_jitter}, but MRI has no stain: leave it out, and "
                    "use 'intensity_jitter'"
                )
