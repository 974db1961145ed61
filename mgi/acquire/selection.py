"""Which of a project's files are kept: tumour, not FFPE, and of each case as the rule says."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from mgi.acquire.manifest import EXPRESSION, SLIDES, Row
from mgi.acquire.samples import Sample, is_tumour_sample
from mgi.barcodes import is_diagnostic, rank_aliquot, rank_slide
from mgi.config import ImportOptions, QueryOptions
from mgi.console import log
from mgi.errors import ManifestError
from mgi.names import check_case_ids, first_few

Rule = Literal["all", "first", "best"]
# What of a cohort is kept.
Choice = QueryOptions | ImportOptions


@dataclass(frozen=True)
class Candidate:
    """A file that may be kept, and its samples as recorded."""

    row: Row
    samples: tuple[Sample, ...]

    @property
    def barcode(self) -> str:
        """The aliquot's or slide's barcode, or what stands for it."""
        return self.row.aliquot or ""


def select_files(candidates: list[Candidate], kind: str, where: str, choice: Choice) -> list[Row]:
    """Return the files of one kind that a choice keeps; log how many it leaves out, and why.

    Parameters
    ----------
    candidates : list of Candidate
        Files of one data type.
    kind : str
        That data type.
    where : str
        Where they come from, for messages.
    choice : Choice
        Sample types, kinds of slides, and the rule for several files of a case: `all` of them; the `first`, by sample
        type in the order of `sample_types`, diagnostic before frozen, the lowest barcode; the `best`, by sample type
        and diagnostic before frozen likewise, then of STAR counts by `rank_aliquot` and of slides the largest file,
        which shows the most tissue at the finest resolution. What still ties is decided by the lowest file id.

    Raises
    ------
    ManifestError
        If none is left, or two case ids differ in upper and lower case only.
    """
    reasons = [(candidate, _reason_to_leave_out(candidate, kind, choice)) for candidate in candidates]
    usable = [candidate for candidate, reason in reasons if not reason]
    left_out: dict[str, list[str]] = {}
    for candidate, reason in reasons:
        if reason:
            left_out.setdefault(reason, []).append(candidate.row.file_name)
    check_case_ids((candidate.row.case_id for candidate in usable), where, ManifestError)
    rule: Rule = choice.aliquots if kind == EXPRESSION else choice.slides_per_case
    kept = usable
    if rule != "all":
        order = choice.sample_types or ["Primary Tumor"]
        worst_first = sorted(usable, key=lambda candidate: _rank(candidate.row, kind, rule, order), reverse=True)
        kept = list({candidate.row.case_id: candidate for candidate in worst_first}.values())
        others = [candidate.row.file_name for candidate in usable if candidate not in kept]
        if others:
            left_out[f"of each case the {rule} is kept"] = others
    for reason, names in left_out.items():
        log.info("%s, %s: %d of %d files left out, %s: %s",
                 where, kind, len(names), len(candidates), reason, first_few(names))  # fmt: skip
    if not kept:
        said = "; ".join(f"{len(names)} left out, {reason}" for reason, names in left_out.items())
        raise ManifestError(f"{where} has {len(candidates)} files of '{kind}', but none to use: {said}")
    return [candidate.row for candidate in kept]


def _reason_to_leave_out(candidate: Candidate, kind: str, choice: Choice) -> str:
    """Return why a file is not used, nothing if it is."""
    row = candidate.row
    if kind == SLIDES:
        diagnostic = is_diagnostic(candidate.barcode)
        if diagnostic is not None and ("diagnostic" if diagnostic else "frozen") not in choice.slides:
            return f"not {' or '.join(choice.slides)} slides"
    if choice.sample_types:
        if row.sample_type not in choice.sample_types:
            return f"not of {', '.join(choice.sample_types)}"
    elif not is_tumour_sample(candidate.samples, candidate.barcode):
        return "normal tissue, controls, cell lines or models"
    if kind == EXPRESSION and any(sample.is_preserved_in_ffpe for sample in candidate.samples):
        return "RNA of FFPE samples"
    return ""


def _rank(row: Row, kind: str, rule: Rule, order: Iterable[str]) -> tuple[object, ...]:
    """Return the key that sorts the files of a case, the one to keep first."""
    barcode, types = row.aliquot or "", list(order)
    rank = types.index(row.sample_type) if row.sample_type in types else len(types)
    if rule == "best" and kind == EXPRESSION:
        inner: tuple[object, ...] = rank_aliquot(barcode)
    else:
        inner = (rank_slide(barcode), -(row.size or 0) if rule == "best" else 0, barcode)
    return rank, *inner, row.file_id
