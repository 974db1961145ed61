"""Tumour annotations of slides: outlines or masks, found by the slide's name and rasterised for any window.

An annotation is named after its slide: `{slide}` or `{slide}_mask`, with the slide's own suffix or the UUID of the GDC
behind it or without, and the suffix of the annotation: `.geojson` or `.json` for outlines, `.tif`, `.tiff`, `.png`,
`.jpg` or `.jpeg` for a mask. So `TCGA-A4-8098-01Z-00-DX1.geojson`, `S21.1234.A.svs.geojson` and
`TCGA-AC-A23C-01Z-00-DX1.0E67C785-..._mask.tiff`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from mgi.config import TileOptions
from mgi.console import log
from mgi.errors import AnnotationError, MissingInputError
from mgi.files import is_system_file
from mgi.names import first_few
from mgi.prepare.masks import read_mask
from mgi.prepare.polygons import read_outlines
from mgi.tables import source_of

OUTLINES = (".geojson", ".json")
MASKS = (".tif", ".tiff")
PICTURES = (".png", ".jpg", ".jpeg")
# Such a file is something else where the slide has another annotation; not so a picture with `_mask` in its name.
DOUBTFUL = (*PICTURES, ".json")
SLIDE_SUFFIX = re.compile(r"\.(svs|ndpi|scn|mrxs|bif|vms|svslide|dcm|ome\.tiff?|tiff?|png|jpe?g)$", re.IGNORECASE)
NAMED_SO = "name an annotation {slide}.geojson or {slide}_mask.tiff"


class Region(Protocol):
    """An area of a slide."""

    @property
    def area_px(self) -> int:
        """Its area in level-0 pixels."""
        ...

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """The box around it: left, top, right and bottom in level-0 pixels; all 0 where it is empty."""
        ...

    def rasterise(self, x: float, y: float, size: float, px: int) -> np.ndarray:
        """Rasterise a square window to uint8 [px, px]: 1 where a pixel's centre lies in the area, else 0.

        `x`, `y` and `size` are the window's top-left corner and edge in level-0 pixels.
        """
        ...


@dataclass(frozen=True)
class Annotation:
    """What is known of one slide.

    Attributes
    ----------
    tumour : Region
        The tumour.
    ignored : Region or None
        What is neither tumour nor background.
    classes : dict of str to int
        Objects by class, or a mask's pixels by value.
    dropped : dict of str to int
        Objects left out, by reason.
    """

    tumour: Region
    ignored: Region | None = None
    classes: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)

    def mask(self, x: float, y: float, size: float, px: int) -> np.ndarray:
        """Rasterise the tumour of a window: see `Region.rasterise`."""
        return self.tumour.rasterise(x, y, size, px)

    def ignore(self, x: float, y: float, size: float, px: int) -> np.ndarray | None:
        """Rasterise what is ignored in a window; None where nothing is on the whole slide."""
        return None if self.ignored is None else self.ignored.rasterise(x, y, size, px)


def read_annotation(
    path: Path,
    dimensions: tuple[int, int],
    options: TileOptions | None = None,
    bounds: tuple[int, int, int, int] | None = None,
) -> Annotation:
    """Read an annotation of a slide.

    A GeoJSON file without any object means a slide without tumour.

    Parameters
    ----------
    path : Path
        Outlines or a mask.
    dimensions : (int, int)
        Width and height of level 0.
    options : TileOptions, optional
        What classes and values mean.
    bounds : (int, int, int, int), optional
        x, y, width and height of the scanned part of level 0, where the slide states it. QuPath shows that part alone,
        so the coordinates of outlines start at its corner, and a mask may be of it.

    Raises
    ------
    AnnotationError
        If the file is of another kind or unreadable, holds no polygon, lies off the slide, has classes or values
        without a meaning, or is a mask whose extent is not the slide's.
    """
    options = options or TileOptions()
    if path.suffix.lower() not in OUTLINES + MASKS + PICTURES:
        raise AnnotationError(
            f"unknown annotation: {path.name}; outlines are read from {' and '.join(OUTLINES)}, masks from "
            f"{' '.join(MASKS + PICTURES)}: export the outlines as GeoJSON, as QuPath does"
        )
    if path.suffix.lower() in OUTLINES:
        origin = bounds[:2] if bounds else (0, 0)
        tumour, ignored, classes, dropped = read_outlines(path, dimensions, origin, options.tumour_classes)
        return Annotation(tumour, ignored, classes, dropped)
    return Annotation(*read_mask(path, dimensions, bounds, options.mask_values))


def find_annotation(folder_or_file: Path | str, source_id: str) -> Path | None:
    """Return the annotation of a slide in a folder, or the file itself; None if the slide has none, which is logged.

    Raises
    ------
    MissingInputError
        If the folder is not there.
    AnnotationError
        If the slide has two.
    """
    path = Path(folder_or_file)
    if path.is_file():
        return path
    found, strangers, unused = _match(path, [source_id])
    if not found:
        alike = [name for name in (*strangers, *unused) if _bare(Path(name).stem) == _bare(source_id)]
        if alike:
            log.warning("%s has no annotation in %s, but %s is there; %s", source_id, path, first_few(alike), NAMED_SO)
        else:
            log.info("%s has no annotation in %s", source_id, path)
    return found.get(source_id)


def check_annotations(folder: Path | str, source_ids: Iterable[str]) -> dict[str, Path]:
    """Return the annotations of a folder by slide, each of which must belong to one; log the files that are none.

    Raises
    ------
    MissingInputError
        If the folder is not there.
    AnnotationError
        If an annotation belongs to none of the slides, a slide has two, or no file of the folder is an annotation.
    """
    found, strangers, unused = _match(Path(folder), source_ids)
    if strangers:
        raise AnnotationError(
            f"{len(strangers)} of the annotations in {folder} belong to no slide of the cohort: "
            f"{first_few(strangers)}; {NAMED_SO}, or move it out of the folder"
        )
    if unused and not found:
        raise AnnotationError(f"no annotation in {folder}: {first_few(unused)} cannot be read as one; {NAMED_SO}")
    if unused:
        log.warning("%d files in %s are not used as annotations: %s", len(unused), folder, first_few(unused))
    log.info("%d slides have an annotation in %s", len(found), folder)
    return found


def _match(folder: Path, source_ids: Iterable[str]) -> tuple[dict[str, Path], list[str], list[str]]:
    """Match the files of a folder with slides; return also the annotations of no slide, and the other files."""
    if not folder.is_dir():
        raise MissingInputError(f"annotations not found: {folder}")
    known = set(source_ids)
    found: dict[str, Path] = {}
    strangers, unused, doubtful = [], [], []
    for path in sorted(folder.iterdir()):
        suffix = path.suffix.lower()
        if is_system_file(path.name):
            continue
        if path.is_dir() or suffix not in OUTLINES + MASKS + PICTURES:
            unused.append(path.name)
        elif suffix in DOUBTFUL and not path.stem.endswith("_mask"):
            doubtful.append(path)
        else:
            source_id = _owner(path, known)
            if source_id is None:
                strangers.append(path.name)
            elif source_id in found:
                raise AnnotationError(
                    f"the slide {source_id} has two annotations: {found[source_id].name} and {path.name}; keep one"
                )
            else:
                found[source_id] = path
    for path in doubtful:
        source_id = _owner(path, known)
        if source_id is None or source_id in found:
            unused.append(path.name)
        else:
            found[source_id] = path
    return found, strangers, unused


def _bare(name: str) -> str:
    """Return the letters and digits of a name."""
    return re.sub(r"[^a-z0-9]", "", SLIDE_SUFFIX.sub("", name.removesuffix("_mask")).casefold())


def _owner(path: Path, known: set[str]) -> str | None:
    """Return the slide that an annotation is named after: by its whole name, before any shorter one."""
    name = path.stem.removesuffix("_mask")
    bare = SLIDE_SUFFIX.sub("", name)
    # `source_of` drops a suffix, so that it needs one.
    return next((one for one in (name, bare, source_of(f"{bare}.svs")) if one in known), None)
