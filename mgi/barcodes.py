"""TCGA barcodes, and the rules which sample, aliquot and slide of a case to prefer.

https://docs.gdc.cancer.gov/Encyclopedia/pages/TCGA_Barcode
"""

import re
from dataclasses import dataclass

SAMPLE_TYPES = {
    "01": "Primary Tumor",
    "02": "Recurrent Tumor",
    "03": "Primary Blood Derived Cancer - Peripheral Blood",
    "05": "Additional - New Primary",
    "06": "Metastatic",
    "07": "Additional Metastatic",
    "10": "Blood Derived Normal",
    "11": "Solid Tissue Normal",
}
# Codes from here on are normal tissue, controls, cell lines and xenografts.
FIRST_NON_TUMOUR_CODE = "10"
ANALYTES_BY_PREFERENCE = "HRT"

_BARCODE = re.compile(
    r"TCGA-(?P<site>[A-Z0-9]{2})-(?P<participant>[A-Z0-9]{4})"
    r"(?:-(?P<sample>\d{2})(?P<vial>[A-Z])?"
    r"(?:-(?P<portion>\d{2})(?P<analyte>[A-Z])?"
    r"(?:-(?P<section>DX|TS|BS|MS)[A-Z0-9]*|-[A-Z0-9]{4}(?:-\d{2})?)?)?)?"
)

# A longer name is another patient's.
_CASE = re.compile(r"TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}(?![A-Z0-9])")


@dataclass(frozen=True)
class Barcode:
    """A TCGA barcode of a case, sample, portion, aliquot or slide, taken apart.

    Attributes
    ----------
    site : str
        Tissue-source site, two characters.
    participant : str
        The patient at that site, four characters.
    sample : str or None
        Code of the sample's type, two digits: "01" is a primary tumour.
    vial, portion, analyte : str or None
        Their letter, two digits and letter.
    section : str or None
        "DX" of a diagnostic (FFPE) slide; "TS", "BS" or "MS" of a frozen one.
    """

    site: str
    participant: str
    sample: str | None = None
    vial: str | None = None
    portion: str | None = None
    analyte: str | None = None
    section: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Barcode | None":
        """Return the barcode that `text` is, or None if it is none: upper case, joined by hyphens, nothing after it."""
        match = _BARCODE.fullmatch(text)
        return cls(**match.groupdict()) if match else None

    @property
    def case_id(self) -> str:
        """The first 12 characters, which identify the patient."""
        return f"TCGA-{self.site}-{self.participant}"

    @property
    def sample_type(self) -> str | None:
        """The sample's type in the GDC's words, None where the barcode has no code or an uncommon one."""
        return SAMPLE_TYPES.get(self.sample or "")

    @property
    def is_tumour(self) -> bool | None:
        """Whether the sample is tumour, None where the barcode ends before it."""
        return None if self.sample is None else self.sample < FIRST_NON_TUMOUR_CODE

    @property
    def is_diagnostic(self) -> bool | None:
        """Whether a slide is diagnostic rather than frozen, None where the barcode is no slide's."""
        return None if self.section is None else self.section == "DX"


def standardise_barcode(name: str) -> str:
    """Return a name in capitals joined by hyphens, the form of a TCGA barcode."""
    return re.sub(r"[._ ]", "-", name.strip()).upper()


def find_case(name: str) -> str | None:
    """Return the case of the TCGA barcode, in any case and joined by `-`, `_` or `.`, that a name begins with."""
    match = _CASE.match(standardise_barcode(name))
    return match[0] if match else None


def is_tumour(barcode: str) -> bool | None:
    """Return whether a barcode's sample is tumour, None where it does not say or is not TCGA's."""
    parsed = Barcode.parse(barcode)
    return parsed.is_tumour if parsed else None


def is_diagnostic(barcode: str) -> bool | None:
    """Return whether a slide is diagnostic rather than frozen, None where its barcode does not say or is not TCGA's."""
    parsed = Barcode.parse(barcode)
    return parsed.is_diagnostic if parsed else None


def rank_aliquot(barcode: str) -> tuple[int, list[int]]:
    """Return the key that sorts a case's aliquots of RNA, the best first.

    The replicate filters of the Broad's Firehose: analyte H before R before T, then the highest barcode, which has the
    highest portion and plate. Aliquots without a TCGA barcode come last.
    """
    parsed = Barcode.parse(barcode)
    analyte = ANALYTES_BY_PREFERENCE.find(parsed.analyte or "-") if parsed else -1
    return analyte if analyte >= 0 else len(ANALYTES_BY_PREFERENCE), [-ord(letter) for letter in barcode]


def rank_slide(barcode: str) -> bool:
    """Return the key that sorts a case's slides, diagnostic before frozen; what does not say counts as diagnostic."""
    return is_diagnostic(barcode) is False
