"""What config.json says of a trained model: one validated description, whoever wrote the file."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from mgi.config import FinetuneOptions, PretrainOptions
from mgi.config.prepare import Stain
from mgi.config.vit import MAX_IMAGE_PX, MAX_WIDTH
from mgi.errors import CheckpointError, ConfigError
from mgi.files import require_file
from mgi.names import MAX_NAME_LENGTH, NAME_PATTERN, quote
from mgi.train.decision import Decision
from mgi.train.vit import check_vit

MAX_DESCRIPTION_BYTES = 64 * 2**20
MAX_GENES = 1_000_000
MAX_CASES = 1_000_000


class Description(BaseModel):
    """What every trained model states.

    Attributes
    ----------
    mgi : str
        Version of mgi that wrote it.
    code : str
        Hash of the code that trained it.
    fold : str
        The fold whose training patients it saw, or `all`.
    cases : list of str
        The training and validation patients: to warn where one of them is predicted.
    mpp : float or None
        Microns per pixel of its images, None where they stated none.
    stain : str or None
        How their stain was normalised.
    genes, gene_names : list of str
        Ids and symbols of its genes, in their order; both empty for a model without genes.
    unit : str or None
        Unit of its expression values.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    mgi: str = ""
    code: str = ""
    fold: str = Field(pattern=NAME_PATTERN, max_length=MAX_NAME_LENGTH)
    cases: list[str] = Field([], max_length=MAX_CASES)
    mpp: float | None = Field(None, gt=0)
    stain: Stain | None = None
    genes: list[str] = Field(max_length=MAX_GENES)
    gene_names: list[str] = Field([], max_length=MAX_GENES)
    unit: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        options: Any = self.options  # type: ignore[attr-defined]
        if len(set(self.genes)) < len(self.genes):
            raise ValueError("'genes' lists a gene twice")
        if self.gene_names and len(self.gene_names) != len(self.genes):
            raise ValueError(f"'gene_names' lists {len(self.gene_names)} and 'genes' {len(self.genes)}")
        try:
            check_vit(options.image_encoder, "options.image_encoder")
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return self


class AlignerDescription(Description):
    """A pre-trained model.

    Attributes
    ----------
    image_px : int or None
        Edge of its images, pixels; None where it reads precomputed features.
    features : int or None
        Number of values of those features.
    """

    kind: Literal["aligner"] = "aligner"
    options: PretrainOptions
    image_px: int | None = Field(None, ge=1, le=MAX_IMAGE_PX)
    features: int | None = Field(None, ge=1, le=MAX_WIDTH)

    @model_validator(mode="after")
    def _check_inputs(self) -> Self:
        if (self.image_px is None) == (self.features is None):
            raise ValueError("one of 'image_px' and 'features' is needed")
        return self


class SegmenterDescription(Description):
    """A fine-tuned model, and the `Decision` by which its probabilities become a mask.

    Attributes
    ----------
    image_px : int
        Edge of its images, pixels.
    """

    kind: Literal["segmenter"] = "segmenter"
    options: FinetuneOptions
    image_px: int = Field(ge=1, le=MAX_IMAGE_PX)
    threshold: float = Field(ge=0, le=1)
    min_component: float = Field(0.0, ge=0, le=1)
    uses_genes: bool = True
    temperature: float = Field(0.0, ge=0, le=100)

    @property
    def decision(self) -> Decision:
        """Which pixels are tumour, and whether by the genes."""
        return Decision(self.threshold, self.min_component, self.uses_genes, self.temperature)


ModelDescription = Annotated[AlignerDescription | SegmenterDescription, Field(discriminator="kind")]
_READER: TypeAdapter[AlignerDescription | SegmenterDescription] = TypeAdapter(ModelDescription)


def read_description(path: Path) -> AlignerDescription | SegmenterDescription:
    """Read config.json of a trained model.

    Raises
    ------
    MissingInputError
        If it is not there.
    CheckpointError
        If it describes no model, naming the first key that is wrong.
    """
    size = require_file(path, "description of a model").stat().st_size
    if size > MAX_DESCRIPTION_BYTES:
        raise CheckpointError(f"{path} is {size / 2**20:.0f} MB, too large for the description of a model")
    try:
        return _READER.validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        # The first part is the kind, by which pydantic tells the two descriptions apart.
        key = ".".join(map(str, first["loc"][1:]))
        value = f" {quote(first['input'])}" if key and first["type"] != "missing" else ""
        reason = first["msg"].removeprefix("Value error, ").replace("{here}", key).replace("{at}", f"{key}.")
        reason = " ".join(reason.split())
        raise CheckpointError(
            f"{path} does not describe a model: {f'{quote(key)}:{value} ' if key else ''}{quote(reason, 300)[1:-1]}"
        ) from error
