"""What training reads: the images of some cases, their expression, and their role in a fold."""

import hashlib
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch
from torch import Tensor

from mgi.codecs import decode_ignore, decode_image, decode_mask
from mgi.errors import CohortError, ImageTableError
from mgi.prepare.profiles import read_matrix
from mgi.tables import read_table

T = TypeVar("T")
PLACE = ["case_id", "source_id", "x", "y", "z", "size", "mpp"]


@dataclass
class Images:
    """Encoded images of a set of cases, decoded when asked for.

    Attributes
    ----------
    frame : DataFrame, one row per image
        case_id, source_id, x, y, z, size and mpp.
    encoded, masks : list of bytes
        Image and mask of each row; a mask is None where the source has no annotation.
    positive : ndarray of bool
        Whether the mask holds any tumour.
    """

    frame: pd.DataFrame
    encoded: list[bytes]
    masks: list[bytes | None]
    positive: np.ndarray

    def __len__(self) -> int:
        """Count the images."""
        return len(self.encoded)

    @property
    def image_px(self) -> int:
        """Edge of the images, pixels."""
        return decode_image(self.encoded[0]).shape[0]

    @property
    def mpp(self) -> float | None:
        """Microns per pixel of the images, None where they state none.

        Raises
        ------
        ImageTableError
            If they state several.
        """
        stated = sorted({float(f"{value:.4g}") for value in self.frame.mpp.dropna().unique()})
        if len(stated) > 1:
            raise ImageTableError(f"images of different mpp: {', '.join(map(str, stated))}; tile them alike")
        return stated[0] if stated else None

    def load(self, rows: np.ndarray) -> np.ndarray:
        """Decode images to uint8 [rows, height, width, 3].

        Raises
        ------
        ImageTableError
            If they differ in size.
        """
        images = [decode_image(self.encoded[row]) for row in rows]
        sizes = sorted({image.shape[1::-1] for image in images})
        if len(sizes) > 1:
            said = ", ".join(f"{width} x {height}" for width, height in sizes)
            raise ImageTableError(f"images of different sizes in one table: {said} px; tile or import them alike")
        return np.stack(images)

    def load_masks(self, rows: np.ndarray) -> np.ndarray:
        """Decode masks to uint8 [rows, height, width], 0 or 1."""
        return np.stack([decode_mask(self.masks[row]) for row in rows])

    def load_ignore(self, rows: np.ndarray) -> np.ndarray:
        """Decode the pixels that are left out of loss and metrics to bool [rows, height, width]."""
        return np.stack([decode_ignore(self.masks[row]) for row in rows])

    def digest(self) -> str:
        """Tell these images, their masks and whose they are from any others."""
        content = hashlib.sha256()
        for case, image, mask in zip(self.frame.case_id, self.encoded, self.masks, strict=True):
            for part in (case.encode(), image, mask or b""):
                content.update(hashlib.sha256(part).digest())
        return content.hexdigest()


def read_images(sources: Path, cases: set[str], labelled: bool = False, images_per_source: int | None = None) -> Images:
    """Read the images of `cases`: with `labelled` only those with a mask, at most `images_per_source` of each source.

    Raises
    ------
    ImageTableError
        If none is left, or the images are not all of one size.
    """
    return _joined(list(iterate_images(sources, cases, labelled, images_per_source)), str(sources))


def iterate_images(
    sources: Path, cases: set[str], labelled: bool = False, images_per_source: int | None = None
) -> Iterator[Images]:
    """Give the images of `cases` one table after the other, so that no more than one need be in memory.

    Raises
    ------
    ImageTableError
        If there is none.
    """
    listed = read_table(sources, "table of sources", ["case_id", "status", "table"]).to_pandas()
    usable = listed[(listed.status == "ok") & listed.case_id.isin(cases)]
    found = False
    for name in usable.table.unique():
        images = read_image_table(sources.parent / "images" / f"{name}.parquet", cases, labelled, images_per_source)
        if len(images):
            found = True
            yield images
    if not found:
        raise ImageTableError(f"no usable image for these cases in {sources}; see the reasons in that table")


def read_image_table(
    path: Path, cases: set[str] | None = None, labelled: bool = False, images_per_source: int | None = None
) -> Images:
    """Read one table of images, whole or for some cases; of each source at most so many, at even distances.

    Raises
    ------
    MissingInputError
        If it is not there.
    ImageTableError
        If it is no such table.
    """
    filters = None if cases is None else [("case_id", "in", sorted(cases))]
    table = read_table(path, "table of images", [*PLACE, "mask", "image"], ImageTableError, filters)
    if labelled:
        table = table.filter(table["mask"].is_valid())
    if images_per_source is not None:
        table = table.take(_spread_by_source(table["source_id"].to_pylist(), images_per_source))
    masks = table["mask"].to_pylist()
    # Most masks of a slide are the same few: all tumour or none.
    tumour = {mask: mask is not None and bool(decode_mask(mask).any()) for mask in set(masks)}
    positive = np.array([tumour[mask] for mask in masks], dtype=bool)
    return Images(table.select(PLACE).to_pandas(), table["image"].to_pylist(), masks, positive)


def spread(rows: np.ndarray, count: int) -> np.ndarray:
    """Take up to `count` of the rows at even distances."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, count).round().astype(int))]


def _spread_by_source(sources: list[str], count: int) -> np.ndarray:
    groups = pd.Series(sources, dtype=str).groupby(sources).indices
    return np.sort(np.concatenate([spread(np.sort(rows), count) for rows in groups.values()] or [np.empty(0, int)]))


def _joined(parts: list[Images], where: str) -> Images:
    frame = pd.concat([part.frame for part in parts], ignore_index=True)
    encoded = [item for part in parts for item in part.encoded]
    masks = [item for part in parts for item in part.masks]
    joined = Images(frame, encoded, masks, np.concatenate([part.positive for part in parts]))
    sizes = {decode_image(part.encoded[0]).shape[:2] for part in parts}
    if len(sizes) > 1:
        raise ImageTableError(f"the image tables of {where} hold images of different sizes: {sorted(sizes)}")
    return joined


@dataclass
class Profiles:
    """Expression profiles by case, in the unit of the table.

    Attributes
    ----------
    values : Tensor, [cases, genes], float32
    row : dict of str to int
        The row of each case that has a profile.
    genes : list of str
        Gene ids in the order of `values`.
    unit : str or None
        Unit of the values, None where the table states none.
    """

    values: Tensor
    row: dict[str, int]
    genes: list[str]
    unit: str | None = None

    def of(self, cases: list[str]) -> tuple[Tensor, Tensor]:
        """Give the profiles [cases, genes] and whether each case has one [cases]; the others are zero."""
        rows = torch.tensor([self.row.get(case, -1) for case in cases])
        present = rows >= 0
        values = torch.zeros(len(cases), self.values.shape[1])
        values[present] = self.values[rows[present]]
        return values, present

    def digest(self, cases: list[str]) -> str:
        """Tell the profiles of these cases from any others."""
        values, present = self.of(cases)
        return hashlib.sha256(values.numpy().tobytes() + present.numpy().tobytes()).hexdigest()

    def deranged(self, groups: list[list[str]], seed: int) -> "Profiles":
        """Give every case another case's profile of its own group; a case alone in its group loses its profile.

        The negative control: a gain that survives it is not a gain from genes.
        """
        row = {}
        for index, group in enumerate(groups):
            paired = sorted(case for case in group if case in self.row)
            order = np.random.default_rng([seed, index]).permutation(paired).tolist()
            if len(order) > 1:
                row |= {case: self.row[other] for case, other in zip(order, order[1:] + order[:1], strict=True)}
        return replace(self, row=row)


# What a model without genes is given: no gene, and no case that has one.
NO_PROFILES = Profiles(torch.zeros(1, 0), {}, [])


def read_profiles(expression: Path, cases: Collection[str] | None = None) -> Profiles:
    """Read expression.parquet, whole or for some cases, and the gene ids of the genes.parquet beside it."""
    found, values = read_matrix(expression, cases)
    genes = read_table(expression.parent / "genes.parquet", "table of genes", ["gene_id"])["gene_id"].to_pylist()
    unit = (pq.read_schema(expression).metadata or {}).get(b"unit", b"").decode() or None
    return Profiles(torch.from_numpy(values), {case: row for row, case in enumerate(found)}, genes, unit)


def read_roles(splits: Path, fold: str) -> dict[str, list[str]]:
    """Give the cases of each role (train, val, test) in a fold; for the fold `all` every case trains.

    Raises
    ------
    CohortError
        If the table has no such fold.
    """
    table = read_table(splits, "table of splits", ["case_id", "fold", "role"]).to_pandas()
    if fold == "all":
        return {"train": sorted(table.case_id.unique()), "val": [], "test": []}
    rows = table[table.fold.astype(str) == fold]
    if rows.empty:
        folds = ", ".join(map(str, sorted(table.fold.unique())))
        raise CohortError(f"no fold '{fold}' in {splits}; it has {folds}, and 'all' trains on every case")
    return {role: sorted(rows[rows.role == role].case_id) for role in ("train", "val", "test")}


class Ahead(Generic[T]):
    """Draws the batch of the next step in a thread while that of this step is worked on.

    Since a batch depends on its step alone, it is the same as if it were drawn when asked for.

    Parameters
    ----------
    draw : callable
        The batch of a step: decoding and augmentation, no computation on a device.
    steps : int
        Steps of the run; after the last, nothing is drawn and the thread ends.
    """

    def __init__(self, draw: Callable[[int], T], steps: int) -> None:
        self._draw, self._steps = draw, steps
        self._thread = ThreadPoolExecutor(1)
        self._drawn: dict[int, Future[T]] = {}

    def __call__(self, step: int) -> T:
        """Give the batch of `step`; what its drawing raised is raised here."""
        batch = self._drawn.pop(step, None) or self._thread.submit(self._draw, step)
        if step + 1 < self._steps:
            self._drawn = {step + 1: self._thread.submit(self._draw, step + 1)}
        else:
            self._thread.shutdown(wait=False)
        return batch.result()


def to_tensor(images: np.ndarray, device: torch.device) -> Tensor:
    """Turn uint8 [batch, height, width, 3] into float32 [batch, 3, height, width] in 0..1."""
    return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 255


def augment(
    images: np.ndarray, masks: np.ndarray | None, how: str, jitter: float, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray | None]:
    """Flip, turn and change the intensities of each image at random, its mask alike.

    Parameters
    ----------
    images : uint8 ndarray, [batch, height, width, 3]
    masks : uint8 ndarray, [batch, height, width], or None
    how : {"none", "flip", "dihedral"}
    jitter : float
        Largest relative change of a channel's intensity: stain of a slide, gain of an MRI sequence.
    """
    images = images.copy()
    masks = None if masks is None else masks.copy()
    turns = random.integers(0, 4, len(images)) * (how == "dihedral")
    flips = (random.random(len(images)) < 0.5) & (how != "none")
    gains = 1 + jitter * random.uniform(-1, 1, (len(images), 3))
    for index, (turn, flip, gain) in enumerate(zip(turns, flips, gains, strict=True)):
        for stack in (images, masks):
            if stack is not None:
                picture = np.rot90(stack[index], turn)
                stack[index] = picture[:, ::-1] if flip else picture
        if jitter:
            images[index] = np.clip(images[index] * gain, 0, 255).astype(np.uint8)
    return images, masks
