"""Haematoxylin-and-eosin-like tissue, drawn with a planted look and two tumour-like textures.

Colour follows the Beer-Lambert law as in Ruifrok and Johnston (2001): a pixel is `exp(-(h * H + e * E))` for the
amounts `h`, `e` of the two stains and their optical-density vectors `H`, `E`. Everything smooth is decided on a map of
1/4 of the resolution; the pixels are painted band by band, so that a large slide needs little memory beyond its own.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

MAP_SCALE = 4
STROMA, TEXTURE_A, TEXTURE_B = 0, 1, 2
LOOK_FACTORS = 6
TEXTURE_SHARE = 0.22
CORD_PERIOD_PX = 32.0
BAND_ROWS = 64

HAEMATOXYLIN = np.array([0.65, 0.70, 0.30], np.float32)
HAEMATOXYLIN_HUE = np.array([-0.20, 0.08, 0.12], np.float32)
EOSIN = np.array([0.10, 0.92, 0.24], np.float32)
EOSIN_HUE = np.array([-0.07, -0.12, 0.22], np.float32)
PEN_COLOURS = np.array([[38, 60, 160], [30, 110, 60], [25, 25, 30]], np.float32)


@dataclass(frozen=True)
class Look:
    """How a patient's tissue looks; each number follows one look factor, monotone and saturating at +-2."""

    hue: float
    eosin: float
    stroma_density: float
    nuclear_radius_px: float
    fibre_px: float
    lumen_density: float

    @classmethod
    def from_factors(cls, factors: np.ndarray) -> "Look":
        """Return what is drawn for six factors, each N(0, 1) over patients."""
        hue, eosin, density, radius, fibre, lumen = (float(value) for value in np.clip(factors, -2, 2))
        return cls(
            hue=hue / 2,
            eosin=float(np.exp(0.35 * eosin)),
            stroma_density=0.45 + 0.2 * density,
            nuclear_radius_px=6.0 * float(np.exp(0.2 * radius)),
            fibre_px=18.0 * float(np.exp(0.35 * fibre)),
            lumen_density=0.34 + 0.15 * lumen,
        )


@dataclass(frozen=True)
class Stamps:
    """Ellipses: centres, semi-axes in level-0 pixels, angle in radians and height, each float32 [n]."""

    x: np.ndarray
    y: np.ndarray
    major: np.ndarray
    minor: np.ndarray
    angle: np.ndarray
    height: np.ndarray


def draw_slide(rng: np.random.Generator, factors: np.ndarray, px: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one slide.

    Parameters
    ----------
    rng
        Source of everything random in this slide.
    factors
        The patient's look factors, float [6].
    px
        Edge of the slide at level 0, pixels of 0.5 microns.

    Returns
    -------
    pixels
        uint8 [px, px, 3], RGB.
    regions
        uint8 [ceil(px / 4), ceil(px / 4)]: `STROMA` (or background), `TEXTURE_A` or `TEXTURE_B`. Both textures cover
        exactly the same number of map pixels, each `MAP_SCALE` level-0 pixels wide.
    """
    look = Look.from_factors(factors)
    outline = _tissue_outline(rng, px)
    regions = _regions(rng, outline > 0, px)
    waves = {
        "cord": _Wave(rng, px, CORD_PERIOD_PX, bend=3.5, bend_px=260),
        "fibre": _Wave(rng, px, look.fibre_px, bend=5.0, bend_px=9 * look.fibre_px),
        "weave": _Wave(rng, px, 1.7 * look.fibre_px, bend=5.0, bend_px=7 * look.fibre_px),
    }
    cells = _nuclei(rng, look, outline > 0, regions, waves, px)
    lumens = _lumens(rng, look, px)
    pen = _pen_marks(rng, px)
    patchiness = _smooth_noise(rng, px, 160)
    pixels = np.empty((px, px, 3), np.uint8)
    for top in range(0, px, BAND_ROWS):
        rows = np.arange(top, min(top + BAND_ROWS, px))
        stains = _stain_amounts(rows, px, regions, waves, patchiness, _paint_stamps(cells, rows, px), look)
        tissue = np.clip(_magnify(outline, rows, px) * 40, 0, 1) * (1 - _paint_stamps(lumens, rows, px))
        ink = _paint_stamps(pen[0], rows, px) * (tissue < 0.5) if pen else None
        pixels[rows] = _colours(rng, stains, tissue, look, ink, pen[1] if pen else None)
    return pixels, regions


def _map_px(px: int) -> int:
    return -(-px // MAP_SCALE)


def _smooth_noise(rng: np.random.Generator, px: int, scale_px: float) -> np.ndarray:
    """Return Gaussian noise of unit variance, smooth over about `scale_px`, float32 on the map [m, m]."""
    size = _map_px(px)
    step = max(scale_px / 3 / MAP_SCALE, 1.0)
    lattice = int(np.ceil(size / step)) + 6
    coarse = ndimage.gaussian_filter(rng.standard_normal((lattice, lattice)), 1.0)
    places = 3 + np.arange(size) / step
    fine = ndimage.map_coordinates(coarse, np.meshgrid(places, places, indexing="ij"), order=3)
    return ((fine - fine.mean()) / fine.std()).astype(np.float32)


def _tissue_outline(rng: np.random.Generator, px: int) -> np.ndarray:
    """Return a field on the map that is positive inside the tissue, which covers 50 to 65% of the slide."""
    size = _map_px(px)
    across = np.abs(np.linspace(-1, 1, size, dtype=np.float32))
    radius = (across[:, None] ** 4 + across[None, :] ** 4) ** 0.25
    field = 0.33 * _smooth_noise(rng, px, px / 3) + 0.05 * _smooth_noise(rng, px, px / 24) - 3.0 * radius**2
    field[(across[:, None] > 0.96) | (across[None, :] > 0.96)] -= 10
    share = rng.uniform(0.50, 0.65)
    return field - np.quantile(field, 1 - share).astype(np.float32)


def _regions(rng: np.random.Generator, tissue: np.ndarray, px: int) -> np.ndarray:
    """Return where the textures lie: the two ends of one smooth field, cut to exactly equal areas."""
    field = _smooth_noise(rng, px, 190)
    inside = ndimage.binary_erosion(tissue, iterations=5)
    places = np.flatnonzero(inside)
    order = places[np.argsort(field.ravel()[places], kind="stable")]
    count = min(int(TEXTURE_SHARE * tissue.sum()), len(order) // 2)
    regions = np.full(tissue.size, STROMA, np.uint8)
    regions[order[:count]] = TEXTURE_A
    regions[order[len(order) - count :]] = TEXTURE_B
    return regions.reshape(tissue.shape)


class _Wave:
    """Wavy parallel lines: a plane wave whose phase is bent by smooth noise."""

    def __init__(self, rng: np.random.Generator, px: int, period_px: float, bend: float, bend_px: float):
        angle = rng.uniform(0, np.pi)
        self.direction = np.array([np.cos(angle), np.sin(angle)], np.float32) * np.float32(2 * np.pi / period_px)
        self.bend = np.float32(bend) * _smooth_noise(rng, px, bend_px)

    def at(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return the phase in radians at points, float32 [n]."""
        bend = ndimage.map_coordinates(self.bend, [y / MAP_SCALE - 0.5, x / MAP_SCALE - 0.5], order=1, mode="nearest")
        return x * self.direction[0] + y * self.direction[1] + bend

    def slope(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the gradient of the phase, radians per pixel, along x and y."""
        here = self.at(x, y)
        return (self.at(x + MAP_SCALE, y) - here) / MAP_SCALE, (self.at(x, y + MAP_SCALE) - here) / MAP_SCALE

    def band(self, rows: np.ndarray, px: int) -> np.ndarray:
        """Return the phase of whole rows, float32 [rows, px]."""
        plane = (
            rows[:, None].astype(np.float32) * self.direction[1] + np.arange(px, dtype=np.float32) * self.direction[0]
        )
        return plane + _magnify(self.bend, rows, px)


def _magnify(field: np.ndarray, rows: np.ndarray, px: int) -> np.ndarray:
    """Return rows of a map field at level 0, linearly interpolated, float32 [rows, px]."""

    def neighbours(places: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        at = np.clip((places + 0.5) / MAP_SCALE - 0.5, 0, len(field) - 1)
        low = np.minimum(at.astype(np.intp), len(field) - 2)
        return low, low + 1, (at - low).astype(np.float32)

    low, high, weight = neighbours(rows)
    lines = field[low] + (field[high] - field[low]) * weight[:, None]
    low, high, weight = neighbours(np.arange(px))
    left = lines[:, low]
    return left + (lines[:, high] - left) * weight


def _scatter_points(rng: np.random.Generator, px: int, spacing: float, jitter: float) -> tuple[np.ndarray, np.ndarray]:
    """Return points of a staggered grid, each moved at random by up to `jitter` of the spacing."""
    count = int(px / spacing) + 2
    row, column = np.mgrid[:count, :count].astype(np.float32)
    x = (column + 0.5 * (row % 2)).ravel() * spacing
    y = row.ravel() * spacing
    move = rng.uniform(-jitter, jitter, (2, x.size)).astype(np.float32) * np.float32(spacing)
    inside = (x + move[0] < px) & (y + move[1] < px) & (x + move[0] >= 0) & (y + move[1] >= 0)
    return (x + move[0])[inside], (y + move[1])[inside]


def _on_map(field: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return field[(y / MAP_SCALE).astype(np.intp), (x / MAP_SCALE).astype(np.intp)]


def _nuclei(
    rng: np.random.Generator, look: Look, tissue: np.ndarray, regions: np.ndarray, waves: dict[str, _Wave], px: int
) -> Stamps:
    """Return the nuclei: sheets of round ones in A, as many drawn together into cords in B, spindles in the stroma."""
    radius = look.nuclear_radius_px
    x, y = _scatter_points(rng, px, 2.7 * radius, jitter=0.28)
    kind = _on_map(regions, x, y)
    tumour = [_ellipses(rng, x[kind == TEXTURE_A], y[kind == TEXTURE_A], radius, 1.12)]
    x, y = x[kind == TEXTURE_B], y[kind == TEXTURE_B]
    along_x, along_y = waves["cord"].slope(x, y)
    phase = waves["cord"].at(x, y)
    away = 0.85 * (phase - 2 * np.pi * np.round(phase / (2 * np.pi))) / np.maximum(along_x**2 + along_y**2, 1e-3)
    x = np.clip(x - away * along_x, 0, px - 1).astype(np.float32)
    y = np.clip(y - away * along_y, 0, px - 1).astype(np.float32)
    tumour.append(_ellipses(rng, x, y, radius, 1.12))

    x, y = _scatter_points(rng, px, 20.0, jitter=0.45)
    present = (_on_map(regions, x, y) == STROMA) & _on_map(tissue, x, y) & (rng.random(x.size) < look.stroma_density)
    x, y = x[present], y[present]
    along_x, along_y = waves["fibre"].slope(x, y)
    spindles = _ellipses(rng, x, y, 0.85 * radius, 1.8, angle=np.arctan2(along_y, along_x) + np.float32(np.pi / 2))
    return _join_stamps([*tumour, spindles])


def _ellipses(
    rng: np.random.Generator,
    x: np.ndarray,
    y: np.ndarray,
    radius: float,
    aspect: float,
    angle: np.ndarray | None = None,
) -> Stamps:
    """Return nuclei of one kind: area kept, shape and darkness varied a little."""
    size = radius * rng.normal(1, 0.09, x.size).clip(0.7, 1.3)
    stretch = np.sqrt(aspect * rng.normal(1, 0.08, x.size).clip(0.8, 1.25))
    turned = rng.uniform(0, np.pi, x.size) if angle is None else angle + rng.normal(0, 0.25, x.size)
    height = rng.normal(1, 0.1, x.size).clip(0.7, 1.25)
    arrays = (x, y, size * stretch, size / stretch, turned, height)
    return Stamps(*(np.asarray(values, np.float32) for values in arrays))


def _join_stamps(parts: list[Stamps]) -> Stamps:
    names = ("x", "y", "major", "minor", "angle", "height")
    return Stamps(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def _lumens(rng: np.random.Generator, look: Look, px: int) -> Stamps:
    """Return round white holes, in stroma and textures alike."""
    x, y = _scatter_points(rng, px, 60.0, jitter=0.3)
    present = rng.random(x.size) < look.lumen_density
    holes = _ellipses(rng, x[present], y[present], 13.0, 1.15)
    return replace(holes, height=np.ones_like(holes.height))


def _pen_marks(rng: np.random.Generator, px: int) -> tuple[Stamps, np.ndarray] | None:
    """Return a felt-tip stroke across a corner of every third slide: discs along a Bezier curve, and its colour."""
    marked, corner, colour = rng.random() < 1 / 3, rng.integers(4), rng.integers(len(PEN_COLOURS))
    ends, bulge = rng.uniform(0.18, 0.5, 2), rng.uniform(0.05, 0.2)
    if not marked:
        return None
    t = np.linspace(0, 1, max(px // 8, 64), dtype=np.float32)
    x = (1 - t) ** 2 * ends[0] + 2 * t * (1 - t) * bulge + t**2 * 0.015
    y = (1 - t) ** 2 * 0.015 + 2 * t * (1 - t) * bulge + t**2 * ends[1]
    x, y = (1 - x if corner % 2 else x) * px, (1 - y if corner // 2 else y) * px
    width = np.full(t.size, 14, np.float32)
    return Stamps(x, y, width, width, np.zeros_like(t), np.ones_like(t)), PEN_COLOURS[colour]


def _paint_stamps(stamps: Stamps, rows: np.ndarray, px: int) -> np.ndarray:
    """Paint the ellipses that reach into `rows`, with soft edges, the highest winning: float32 [rows, px]."""
    reach = int(np.ceil(stamps.major.max(initial=1) + 2))
    chosen = np.flatnonzero((stamps.y > rows[0] - reach) & (stamps.y < rows[-1] + reach))
    canvas = np.zeros((len(rows) + 2 * reach + 2, px + 2 * reach + 2), np.float32)
    offsets = np.arange(-reach, reach + 1, dtype=np.int32)
    for part in np.array_split(chosen, max(len(chosen) * len(offsets) ** 2 // 4_000_000, 1)):
        x, y, major, minor, angle, height = (
            getattr(stamps, name)[part][:, None, None] for name in ("x", "y", "major", "minor", "angle", "height")
        )
        column, row = np.rint(x).astype(np.int32) + offsets, np.rint(y).astype(np.int32) + offsets[:, None]
        right, down = column - x, row - y
        u = (right * np.cos(angle) + down * np.sin(angle)) / major
        v = (down * np.cos(angle) - right * np.sin(angle)) / minor
        value = height * np.clip((1 - np.sqrt(u * u + v * v)) * minor / 1.5 + 0.5, 0, 1)
        line = row - rows[0] + reach
        covered = (value > 0) & (line >= 0) & (line < len(canvas))
        flat = (line * canvas.shape[1] + column + reach)[covered]
        np.maximum.at(canvas.reshape(-1), flat, value[covered])
    return canvas[reach : reach + len(rows), reach : reach + px]


def _stain_amounts(
    rows: np.ndarray,
    px: int,
    regions: np.ndarray,
    waves: dict[str, _Wave],
    patchiness: np.ndarray,
    nuclei: np.ndarray,
    look: Look,
) -> tuple[np.ndarray, np.ndarray]:
    """Return haematoxylin and eosin of whole rows, each float32 [rows, px].

    The cords of B hold as much of both stains on average as the even cytoplasm of A.
    """
    kind = np.repeat(regions[rows // MAP_SCALE], MAP_SCALE, axis=1)[:, :px]
    cord = 0.5 + 0.5 * np.clip(1.6 * np.cos(waves["cord"].band(rows, px)), -1, 1)
    fibre = np.sin(waves["fibre"].band(rows, px)) + 0.6 * np.sin(waves["weave"].band(rows, px))
    patch = 0.06 * _magnify(patchiness, rows, px)
    haematoxylin = np.select([kind == TEXTURE_A, kind == TEXTURE_B], [np.float32(0.24), 0.07 + 0.66 * cord], 0.07)
    eosin = np.select(
        [kind == TEXTURE_A, kind == TEXTURE_B], [np.float32(0.40), 0.32 + 0.24 * cord], 0.50 + 0.24 * fibre
    )
    eosin = np.maximum(eosin + patch, 0.08) * np.float32(look.eosin)
    haematoxylin = haematoxylin + nuclei * (1.25 - haematoxylin)
    return haematoxylin.astype(np.float32), (eosin * (1 - 0.6 * nuclei)).astype(np.float32)


def _colours(
    rng: np.random.Generator,
    stains: tuple[np.ndarray, np.ndarray],
    tissue: np.ndarray,
    look: Look,
    ink: np.ndarray | None,
    ink_colour: np.ndarray | None,
) -> np.ndarray:
    """Return RGB of whole rows, uint8 [rows, px, 3]: stains by Beer-Lambert, ink on the glass, noise."""
    haematoxylin, eosin = stains[0] * tissue, stains[1] * tissue
    stain_h = HAEMATOXYLIN + np.float32(look.hue) * HAEMATOXYLIN_HUE
    stain_e = EOSIN + np.float32(look.hue) * EOSIN_HUE
    pixels = np.empty((*tissue.shape, 3), np.float32)
    grain = rng.standard_normal(tissue.shape, np.float32) * 4
    for channel, glass in enumerate((244, 243, 246)):
        colour = glass * np.exp(-(haematoxylin * stain_h[channel] + eosin * stain_e[channel]))
        if ink is not None and ink_colour is not None:
            colour += ink * (ink_colour[channel] - colour)
        pixels[..., channel] = colour + grain * (0.35 + 0.65 * tissue)
    return np.clip(pixels, 0, 255).astype(np.uint8)
