"""Metrics of one pair of masks, and the plane that a slide's tiles make.

Conventions, where libraries differ: Dice and IoU of two empty masks are 1 (nnU-Net: undefined; MONAI: undefined, and
every empty reference is dropped by default). HD95 takes the percentile over the distances of both surfaces together, as
MedPy does (MONAI: the larger of the two directions' percentiles), and a missed tumour has the image's diagonal.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage
from scipy.spatial import KDTree

from mgi.errors import ImageTableError


def confusion(prediction: np.ndarray, reference: np.ndarray) -> tuple[int, int, int]:
    """Count true-positive, false-positive and false-negative pixels of two boolean masks of equal shape."""
    both = int(np.count_nonzero(prediction & reference))
    return both, int(np.count_nonzero(prediction)) - both, int(np.count_nonzero(reference)) - both


def dice(tp: ArrayLike, fp: ArrayLike, fn: ArrayLike) -> np.ndarray:
    """Dice coefficient 2 TP / (2 TP + FP + FN) of pixel counts of any shape; 1 where all three are 0."""
    return _divide(2 * np.asarray(tp), 2 * np.asarray(tp) + np.asarray(fp) + np.asarray(fn))


def iou(tp: ArrayLike, fp: ArrayLike, fn: ArrayLike) -> np.ndarray:
    """Intersection over union TP / (TP + FP + FN) of pixel counts of any shape; 1 where all three are 0."""
    return _divide(np.asarray(tp), np.asarray(tp) + np.asarray(fp) + np.asarray(fn))


def _divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.ones(np.shape(whole)), where=np.asarray(whole) > 0)


def hd95(prediction: np.ndarray, reference: np.ndarray) -> float:
    """95th percentile of the symmetric surface distances of two boolean masks [H, W], in pixels.

    The surface of a mask is its pixels with a 4-neighbour outside it; beyond the border counts as outside. The
    distances of each surface's pixels to the other surface are pooled before the percentile is taken. A k-d tree over
    the surfaces, since a distance map of a whole slide would fill the memory.

    Returns
    -------
    float
        NaN where the reference is empty, whatever the prediction. Where the prediction alone is empty, the diagonal of
        the image, the largest distance there can be: so no distance can be improved by predicting nothing.
    """
    if not reference.any():
        return float("nan")
    if not prediction.any():
        return float(np.hypot(*reference.shape))
    ours, theirs = _surface(prediction), _surface(reference)
    there, _ = KDTree(theirs).query(ours)
    back, _ = KDTree(ours).query(theirs)
    return float(np.percentile(np.concatenate([there, back]), 95))


def _surface(mask: np.ndarray) -> np.ndarray:
    """Coordinates [n, 2] of the pixels of `mask` that touch its outside."""
    return np.argwhere(mask & ~ndimage.binary_erosion(mask))


def count_lesions(prediction: np.ndarray, reference: np.ndarray) -> tuple[int, int, int]:
    """Count lesions, found lesions and false lesions of two boolean masks [H, W] or volumes [D, H, W].

    A lesion is a part of the reference whose pixels touch by a side or a corner; it is found where the prediction holds
    at least one of its pixels. A false lesion is such a part of the prediction that touches no pixel of the reference.
    """
    lesions, count = _label(reference)
    found = len(np.unique(lesions[prediction & reference]))
    predicted, parts = _label(prediction)
    right = len(np.unique(predicted[prediction & reference]))
    return count, found, parts - right


def _label(mask: np.ndarray) -> tuple[np.ndarray, int]:
    labels, count = ndimage.label(mask, np.ones((3,) * mask.ndim, bool))
    return labels, int(count)


def stitch(tiles: np.ndarray, x: np.ndarray, y: np.ndarray, size: float) -> np.ndarray:
    """Assemble the tiles of one plane; where no tile was cut there is 0.

    Parameters
    ----------
    tiles
        Masks or images [n, P, P] or [n, P, P, channels].
    x, y
        Top-left corners [n] in level-0 pixels: nodes of a grid of `size`, each rounded on its own to a whole pixel.
    size
        Exact edge of a tile in level-0 pixels, fractions included: rounded, it would add up over a wide slide.

    Raises
    ------
    ImageTableError
        If two tiles fall on one place of the grid.
    """
    column = np.rint((x - x.min()) / size).astype(int)
    row = np.rint((y - y.min()) / size).astype(int)
    columns, edge = int(column.max()) + 1, tiles.shape[1]
    places, first = np.unique(row * columns + column, return_index=True)
    if len(places) < len(tiles):
        other = int(np.setdiff1d(np.arange(len(tiles)), first)[0])
        raise ImageTableError(
            f"the tile at x={x[other]}, y={y[other]} overlaps another of its slide; cut tiles of {size:g} level-0"
            " pixels side by side, each once"
        )
    plane = np.zeros((int(row.max()) + 1, edge, columns, edge, *tiles.shape[3:]), dtype=tiles.dtype)
    plane[row, :, column] = tiles
    return plane.reshape(plane.shape[0] * edge, columns * edge, *tiles.shape[3:])
