"""Cases of images beside cases of expression: which lack the other, and which ids are probably meant to be one."""

import re
from collections.abc import Iterable, Sequence

from mgi.barcodes import Barcode, standardise_barcode
from mgi.errors import CohortError
from mgi.names import SHOWN, first_few, quote


def check_paired(imaged: Sequence[str], expressed: Sequence[str], images: str, expression: str) -> None:
    """Raise `CohortError` where no case has both; `images` and `expression` say where the cases are from."""
    if not set(imaged) & set(expressed):
        raise CohortError(
            f"no case has both images and expression: {images} has cases such as {first_few(imaged[:1])}, "
            f"{expression} such as {first_few(expressed[:1]) or '(none)'}; write each case id the same way in both"
        )


def describe_lacking(imaged: Iterable[str], expressed: Iterable[str]) -> list[str]:
    """Return what there is to say of cases with images, in sentences.

    Which look like others with images, which have no expression, and which of these look like cases with expression.
    """
    cases = sorted(set(imaged))
    known = set(expressed)
    lacking = [case_id for case_id in cases if case_id not in known]
    sentences = _describe_alike(cases)
    if not lacking:
        return sentences
    sentences += [f"{len(lacking)} of {len(cases)} cases with images have no expression: {first_few(lacking)}"]
    forms = index_reduced(known - set(cases))
    alike = [f"{quote(name)} and {quote(forms[reduce_id(name)])}" for name in lacking if reduce_id(name) in forms]
    if alike:
        more = f" and {len(alike) - SHOWN} more" if len(alike) > SHOWN else ""
        sentences.append(
            f"{len(alike)} of them look alike but are written differently with images and with expression: "
            f"{', '.join(alike[:SHOWN])}{more}; write each case id the same way"
        )
    return sentences


def _describe_alike(cases: list[str]) -> list[str]:
    """Return a sentence on cases that differ in leading zeros or punctuation alone, where there are any."""
    alike: dict[str, list[str]] = {}
    for case_id in cases:
        parts = re.split(r"[^a-z0-9]+", re.sub(r"0*(\d+)", r"\1", case_id.casefold()))
        alike.setdefault("-".join(filter(None, parts)) or case_id, []).append(case_id)
    several = [names for names in alike.values() if len(names) > 1]
    if not several:
        return []
    return [
        f"{len(several)} cases with images may be written in several ways, the first {first_few(several[0])}: they are "
        "taken for several patients, whom folds part; write each case id the same way"
    ]


def index_reduced(case_ids: Iterable[str]) -> dict[str, str]:
    """Return case ids by their reduced form."""
    return {reduce_id(case_id): case_id for case_id in sorted(case_ids)}


def reduce_id(case_id: str) -> str:
    """Return what is left of a case id without case, punctuation, leading zeros and the sample part of a barcode."""
    barcode = Barcode.parse(standardise_barcode(case_id))
    text = re.sub(r"[^a-z0-9]", "", (barcode.case_id if barcode else case_id).casefold())
    # R puts an X before names that begin with a digit, spreadsheets and pandas add .0 to numbers.
    return re.sub(r"0*(\d+)", r"\1", re.sub(r"^x(?=\d)", "", text))
