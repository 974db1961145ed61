"""What may be said of a timm ViT beyond its section of the configuration: the name is in timm's own registry."""

import difflib

from mgi.config import ImageEncoder
from mgi.errors import ConfigError
from mgi.model.image_encoder import import_timm
from mgi.names import quote


def check_vit(encoder: ImageEncoder, where: str = "image_encoder") -> None:
    """Check that timm's registry has the ViT; its options are checked by their section.

    Parameters
    ----------
    encoder : ImageEncoder
        Name and options, from a configuration or a model's description.
    where : str
        What the message calls the encoder.

    Raises
    ------
    ConfigError
        Naming the key, its value and what would be right.
    """
    timm = import_timm()
    # create_model would read `hf-hub:`, `local-dir:` and the like from the network or the disk.
    if not timm.is_model(encoder.name) or ":" in encoder.name:
        near = difflib.get_close_matches(encoder.name, timm.list_models("*vit*"), n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "`timm.list_models('vit*')` lists them"
        raise ConfigError(f"'{where}.name' is {quote(encoder.name)}, which is not in timm's registry: {hint}")
