"""Records as the GDC lists them, and a local GDC that lists any."""

import json
from pathlib import Path
from typing import Any

from mgi.acquire.manifest import EXPRESSION, SLIDES

PROJECT = "TCGA-SIM"


def file_id_of(number: int) -> str:
    return f"{number:08d}-2222-4333-8444-555555555555"


def record(
    number: int,
    barcode: str,
    *,
    project: str = PROJECT,
    sample_type: str | None = None,
    size: int = 100,
    case_id: str | None = None,
    is_slide: bool | None = None,
    **sample: Any,
) -> dict[str, Any]:
    """Return a record of `/files` for a slide or a STAR table; `sample` describes its sample further."""
    file_id = file_id_of(number)
    if is_slide is None:
        is_slide = barcode.split("-")[-1][:2] in ("DX", "TS", "BS", "MS")
    entity = {"submitter_id": barcode}
    portion = {"slides": [entity]} if is_slide else {"analytes": [{"aliquots": [entity]}]}
    strategy = "Diagnostic Slide" if "-DX" in barcode else "Tissue Slide"
    name = f"{barcode}.{file_id}.svs" if is_slide else f"{file_id}.rna_seq.augmented_star_gene_counts.tsv"
    return {
        "file_id": file_id, "file_name": name, "file_size": size,
        "md5sum": f"{number:032x}", "access": "open", "data_type": SLIDES if is_slide else EXPRESSION,
        "experimental_strategy": strategy if is_slide else "RNA-Seq", "analysis": {"workflow_type": "STAR - Counts"},
        "cases": [{
            "submitter_id": case_id or barcode[:12], "project": {"project_id": project},
            "samples": [{"sample_type": sample_type or "unknown", "portions": [portion], **sample}],
        }],
    }  # fmt: skip


def make_listing(folder: Path, records: list[Any]) -> str:
    """Make a folder that a local GDC serves, which lists these records; return its address."""
    folder.mkdir(exist_ok=True)
    (folder / "manifest.tsv").touch()
    (folder / "status.json").write_text(json.dumps({"data_release": "Simulated 1.0"}))
    (folder / "files.json").write_text(json.dumps(records))
    return f"local:{folder}"
