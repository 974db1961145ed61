"""What may be said of a timm ViT: a name of timm's own registry, and options of known type and range."""

from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationError

from mgi.config.section import Section, describe_error, sentence

# Of timm's own registry: `hf-hub:`, `local-dir:` and the like would reach the network or the disk.
VIT_NAME_PATTERN = r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?$"
MAX_WIDTH = 16_384
MAX_DEPTH = 256
MAX_IMAGE_PX = 65_536

Rate = Field(default=None, ge=0, lt=1)


class VitOptions(Section):
    """Keyword arguments of `timm.create_model` that change the shape or the regularisation of a ViT, and no others.

    Arguments that reach the network or the disk (`checkpoint_path`, `pretrained_cfg`, `cache_dir`) or change what a ViT
    reads and returns (`in_chans`, `num_classes`) are not among them. An option left out keeps timm's value.
    """

    reads_text: ClassVar[bool] = False

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


def check_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that are set, for a validator: what is no option of a ViT is refused.

    Raises
    ------
    PydanticCustomError
        Naming the key, its value and what would be right.
    """
    try:
        checked = VitOptions.model_validate(options)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise sentence(describe_error(VitOptions, first, "{here}.")) from error
    if checked.embed_dim and checked.num_heads and checked.embed_dim % checked.num_heads:
        raise sentence(
            f"'{{here}}.embed_dim' is {checked.embed_dim}, which {checked.num_heads} heads do not divide: make it a "
            "multiple of num_heads"
        )
    return {name: value for name, value in options.items() if value is not None}
