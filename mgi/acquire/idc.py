"""Slides from the Imaging Data Commons (IDC), which keeps TCGA's as DICOM, by way of its library `idc-index`.

IDC wrapped the compressed tiles of the GDC's slides again, so the manifest's md5 says nothing about its files. The
index that comes with the library states a slide's series, the number of its files and their bytes, and the files
themselves state the barcode: all of it must hold.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openslide
import pandas as pd

from mgi.acquire.fetch import refuse_without_room
from mgi.acquire.manifest import dicom_name, read_manifest, select_rows
from mgi.acquire.reasons import group_problems
from mgi.barcodes import Barcode
from mgi.console import log
from mgi.errors import FetchError, MissingPackageError
from mgi.names import check_name, quote
from mgi.tables import write_tsv

# What IDC's descriptions of series call the sample codes of barcodes; they have no word for others.
TISSUES = {"01": "TP", "11": "NT"}


def fetch_slides(
    manifest: Path,
    out: Path,
    *,
    file_ids: list[str] | None = None,
    partial: Path | None = None,
    receipt: Path | None = None,
) -> None:
    """Fetch a manifest's slides as DICOM, each to a folder `out/{file_id}`, keeping complete ones.

    OpenSlide opens a slide by any of its files; the largest is named after the manifest's file_name, by `dicom_name`.

    Parameters
    ----------
    manifest
        Manifest made by `mgi.acquire.gdc.query`.
    out
        Folder to fill.
    file_ids
        Only these slides.
    partial
        Folder for what is under way, on the file system of `out`, which is `out` itself by default. A file that is
        whole there is not fetched again.
    receipt
        Table (TSV: file_id, file_name, series_instance_uid, url, idc_version, files, size in bytes, state) written
        last, only when every slide is complete.

    Raises
    ------
    ManifestError
        If the manifest is unusable, or holds not one of the slides.
    MissingPackageError
        If `idc-index` is not installed.
    FetchError
        If the index does not state a slide's series, the disk is too small, or a series does not arrive whole.
    """
    rows = select_rows(read_manifest(manifest), manifest, "slides", file_ids)
    client = _client()
    slides = [_Slide.from_row(row, client.index) for row in rows.itertuples()]
    missing = [slide for slide in slides if slide.problem_in(out / slide.file_id)]
    staging = partial or out
    refuse_without_room(sum(slide.size for slide in missing), staging)
    if missing:
        log.info("%d of %d slides to fetch, %.1f MB", len(missing), len(slides), sum(s.size for s in missing) / 1e6)
        # The library does not raise what went wrong: the files tell.
        client.download_dicom_series(
            [slide.series for slide in missing], str(staging), dirTemplate="%SeriesInstanceUID", use_s5cmd_sync=True,
            show_progress_bar=False,
        )  # fmt: skip
    moved = list(_move_complete(missing, staging, out))
    problems = [(f"{slide.barcode} ({slide.url})", problem) for slide, problem in moved if problem]
    if problems:
        raise FetchError(
            f"{len(problems)} of {len(slides)} slides could not be fetched from IDC: {group_problems(problems)}; the "
            f"others are kept in {out}: repeat the command to try again"
        )
    for slide in slides:
        slide.name_largest(out / slide.file_id)
    if receipt is not None:
        write_tsv(pd.DataFrame([slide.record(client.get_idc_version()) for slide in slides]), receipt)


def find_series(index: pd.DataFrame, barcode: str) -> Any:
    """Return the row of IDC's index that is a slide, found by patient, preparation, tissue and section.

    Raises
    ------
    FetchError
        If there is none, or more than one: the index does not distinguish the vials of a sample.
    """
    parsed = Barcode.parse(barcode)
    if parsed is None or parsed.section is None:
        raise FetchError(f"{quote(barcode)} is not the barcode of a TCGA slide, by which IDC's index is searched")
    preparation = "FFPE" if parsed.is_diagnostic else "Frozen"
    description = f"{preparation} HE {TISSUES.get(parsed.sample or '', '')} {barcode.rsplit('-', 1)[-1]}"
    found = index[index.PatientID == parsed.case_id]
    found = found[(found.Modality == "SM") & (found.SeriesDescription == description)]
    if len(found) != 1:
        raise FetchError(
            f"IDC's index has {len(found)} series '{description}' of {parsed.case_id}, so it does not say which is "
            f"{barcode}; leave that slide out of the manifest, or fetch it from the GDC"
        )
    return found.iloc[0]


@dataclass(frozen=True)
class _Slide:
    """A slide, and what IDC's index says of it; size in bytes."""

    file_id: str
    name: str
    barcode: str
    series: str
    url: str
    files: int
    size: int

    @classmethod
    def from_row(cls, row: Any, index: pd.DataFrame) -> "_Slide":
        """Return the slide of a manifest's row."""
        found = find_series(index, str(row.aliquot))
        # The index gives the bytes in millions, not rounded.
        size = round(found.series_size_MB * 1e6)
        uid = check_name(found.SeriesInstanceUID, "series of IDC's index", FetchError)
        url, files = found.series_aws_url, int(found.instanceCount)
        return cls(row.file_id, dicom_name(row.file_name), row.aliquot, uid, url, files, size)

    def problem_in(self, folder: Path) -> str:
        """Return what keeps a folder's files from being this slide, nothing if they are."""
        sizes = {path: path.stat().st_size for path in folder.glob("*.dcm")}
        if (len(sizes), sum(sizes.values())) != (self.files, self.size):
            return f"{len(sizes)} of {self.files} files arrived, {sum(sizes.values())} of {self.size} bytes"
        try:
            with openslide.OpenSlide(max(sizes, key=lambda path: sizes[path])) as slide:
                stated = slide.properties.get("dicom.ContainerIdentifier")
        except (openslide.OpenSlideError, OSError, ValueError) as error:
            return f"OpenSlide cannot read it: {quote(str(error), 200)}"
        return "" if stated == self.barcode else f"its files say that it is {quote(stated)}"

    def name_largest(self, folder: Path) -> None:
        """Name the file by which the slide is opened."""
        if not (folder / self.name).exists():
            os.replace(max(folder.glob("*.dcm"), key=lambda path: path.stat().st_size), folder / self.name)

    def record(self, version: str) -> dict[str, Any]:
        """Return the slide's row of the receipt."""
        return {
            "file_id": self.file_id,
            "file_name": self.name,
            "series_instance_uid": self.series,
            "url": self.url,
            "idc_version": version,
            "files": self.files,
            "size": self.size,
            "state": "complete",
        }


def _client() -> Any:
    try:
        from idc_index import IDCClient
    except ImportError as error:
        raise MissingPackageError(
            "slides from the Imaging Data Commons need its library idc-index; run: pip install idc-index"
        ) from error
    return IDCClient.client()


def _move_complete(slides: list[_Slide], staging: Path, out: Path) -> Iterator[tuple[_Slide, str]]:
    """Move slides that arrived whole to their folders; yield each with what is wrong with it, if anything is."""
    for slide in slides:
        arrived, folder = staging / slide.series, out / slide.file_id
        problem = slide.problem_in(arrived)
        if not problem:
            folder.mkdir(parents=True, exist_ok=True)
            for path in folder.glob("*.dcm"):
                path.unlink()
            for path in arrived.glob("*.dcm"):
                os.replace(path, folder / path.name)
            shutil.rmtree(arrived)
        log.info(
            "%s %s (%s)%s", "failed" if problem else "fetched", slide.name, slide.series, problem and f": {problem}"
        )
        yield slide, problem
