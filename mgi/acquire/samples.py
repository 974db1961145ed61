"""What a file's samples are by their record: tumour or not, FFPE or frozen."""

import re
from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict

from mgi.acquire.fields import Text
from mgi.barcodes import Barcode

# Words of the GDC for samples that are not the patient's tumour, wherever a record uses them.
_NOT_TUMOUR = re.compile(
    r"\b(normal|peritumou?ral|control|cell lines?|cell line derived|xenograft|model|organoids?|spheroids?|"
    r"neurospheres?|conditionally reprogrammed|adherent|buccal|saliva|granulocytes|fibroblasts)\b",
    re.IGNORECASE,
)
_FFPE = re.compile(r"\b(FFPE|formalin|paraffin)\b", re.IGNORECASE)
_UNKNOWN = ("", "unknown", "not reported", "not applicable", "not allowed to collect", "--")
_DESCRIPTORS = {"primary": "Primary Tumor", "metastatic": "Metastatic", "recurrence": "Recurrent Tumor"}


class Sample(BaseModel):
    """A sample, as the GDC or a sample sheet describes it; None where it says nothing."""

    model_config = ConfigDict(frozen=True)

    sample_type: Text | None = None
    tissue_type: Text | None = None
    tumor_descriptor: Text | None = None
    specimen_type: Text | None = None
    composition: Text | None = None
    preservation_method: Text | None = None
    is_ffpe: bool | Text | None = None

    @property
    def is_preserved_in_ffpe(self) -> bool:
        """Whether the record says that the sample is formalin-fixed and paraffin-embedded."""
        said = (self.preservation_method, self.sample_type)
        stated = self.is_ffpe is True or str(self.is_ffpe).lower() in ("true", "yes")
        return stated or any(_FFPE.search(text) for text in said if text)

    @property
    def is_not_tumour(self) -> bool:
        """Whether the record says that the sample is normal tissue, a control, a cell line or a model of a tumour."""
        said = (self.sample_type, self.tissue_type, self.specimen_type, self.composition)
        return any(is_said_not_tumour(text) for text in said if text)

    @property
    def type_name(self) -> str | None:
        """The sample's type in the GDC's words, made of tissue type and descriptor where the record has no type."""
        if is_known(self.sample_type):
            return self.sample_type
        if (self.tissue_type or "").lower() == "tumor":
            return _DESCRIPTORS.get((self.tumor_descriptor or "").lower(), "Tumor")
        return self.tissue_type if is_known(self.tissue_type) else None


def is_known(text: str | None) -> bool:
    """Return whether a field of the GDC says anything."""
    return text is not None and text.strip().lower() not in _UNKNOWN


def is_said_not_tumour(text: str) -> bool:
    """Return whether the words for a sample or its tissue are those for normal tissue, a control or a model."""
    return _NOT_TUMOUR.search(text) is not None


def sample_type_of(samples: Iterable[Sample], barcode: str) -> str | None:
    """Return the type of a file's sample: what its TCGA barcode says, else what the record says; None if neither."""
    parsed = Barcode.parse(barcode)
    if parsed is not None and parsed.sample_type:
        return parsed.sample_type
    return next((sample.type_name for sample in samples if sample.type_name), None)


def is_tumour_sample(samples: Iterable[Sample], barcode: str) -> bool:
    """Return whether a file's samples are tumour: neither its barcode nor the record says otherwise."""
    parsed = Barcode.parse(barcode)
    return (parsed is None or parsed.is_tumour is not False) and not any(sample.is_not_tumour for sample in samples)
