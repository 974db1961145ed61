"""What may be said of a timm ViT: a name in timm's own registry and options of known type and range."""

import difflib
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mgi.config import ImageEncoder
from mgi.errors import ConfigError
from mgi.names import quote

MAX_WIDTH = 16_384
MAX_DEPTH = 256
MAX_IMAGE_PX = 65_536

Rate = Field(default=None, ge=0, lt=1)


class VitOptions(BaseModel):
    """Keyword arguments of `timm.create_model` that change the shape or the regularisation of a ViT, and no others.

    Arguments that reach the network or the disk (`checkpoint_path`, `pretrained_cfg`, `cache_dir`) or change what a ViT
    reads and returns (`in_chans`, `num_classes`) are not among them. An option left out keeps timm's value.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    img_size: int | None = Field(None, ge=1, le=MAX_IMAGE_PX)
    patch_size: int | None = Field(None, ge=1, le=MAX_IMAGE_PX)
    embed_dim: int | None = Field(None, ge=1, le=MAX_WIDTH)
    depth: int | None = Field(None, ge=2, le=MAX_DEPTH)
    num_heads: int | None = Field(None, ge=1, le=MAX_WIDTH)
    mlp_ratio: float | None = Field(None, gt=0, le=64)
    reg_tokens: int | None = Field(None, ge=0, le=MAX_WIDTH)
    init_values: float | None = Field(None, gt=0)
    qkv_bias: bool | None = None
    proj_bias: bool | None = None
    qk_norm: bool | None = None
    scale_attn_norm: bool | None = None
    scale_mlp_norm: bool | None = None
    class_token: bool | None = None
    no_embed_class: bool | None = None
    pool_include_prefix: bool | None = None
    pre_norm: bool | None = None
    final_norm: bool | None = None
    fc_norm: bool | None = None
    dynamic_img_size: bool | None = None
    pos_embed: Literal["", "none", "learn"] | None = None
    global_pool: Literal["avg", "avgmax", "max", "token", "map"] | None = None
    weight_init: Literal["", "skip", "reset", "jax", "jax_nlhb", "moco"] | None = None
    drop_rate: float | None = Rate
    pos_drop_rate: float | None = Rate
    patch_drop_rate: float | None = Rate
    proj_drop_rate: float | None = Rate
    attn_drop_rate: float | None = Rate
    drop_path_rate: float | None = Rate


def check_vit(encoder: ImageEncoder, where: str = "image_encoder") -> None:
    """Check that timm's registry has the ViT and that every option is known and of the right type.

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
    import timm  # after mgi.model.image_encoder, which makes it importable beside another build of torch

    # create_model would read `hf-hub:`, `local-dir:` and the like from the network or the disk.
    if not timm.is_model(encoder.name) or ":" in encoder.name:
        near = difflib.get_close_matches(encoder.name, timm.list_models("*vit*"), n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "`timm.list_models('vit*')` lists them"
        raise ConfigError(f"'{where}.name' is {quote(encoder.name)}, which is not in timm's registry: {hint}")
    try:
        options = VitOptions.model_validate(encoder.options)
    except ValidationError as error:
        first = error.errors()[0]
        key = f"{where}.options.{'.'.join(map(str, first['loc']))}"
        if first["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(first["loc"][0]), VitOptions.model_fields, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"valid are {', '.join(VitOptions.model_fields)}"
            raise ConfigError(f"{quote(key, 200)} is no option of a ViT here: {hint}") from error
        reason = first["msg"][0].lower() + first["msg"][1:]
        message = f"'{key}' cannot be {quote(first['input'])}: {reason}"
        if isinstance(first["input"], str) and first["type"] in ("float_type", "int_type"):
            message += "; YAML reads a number such as 1e-5 as text: write 1.0e-5, without quotes"
        raise ConfigError(message) from error
    if options.embed_dim and options.num_heads and options.embed_dim % options.num_heads:
        raise ConfigError(
            f"'{where}.options.embed_dim' is {options.embed_dim}, which {options.num_heads} heads do "
            "not divide: make it a multiple of num_heads"
        )
