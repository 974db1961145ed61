"""A whole-slide image as a DICOM series, as small as OpenSlide accepts (PS3.3 A.32.8, PS3.5 explicit little endian)."""

import struct
from pathlib import Path

import numpy as np

WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
TILE = 64


def _element(tag: int, kind: str, value: str | int | bytes | list[bytes]) -> bytes:
    if isinstance(value, list):
        value = b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item for item in value)
    elif isinstance(value, int):
        value = struct.pack({"US": "<H", "UL": "<I"}[kind], value)
    elif isinstance(value, str):
        value = value.encode()
    value += (b"\0" if kind in ("UI", "OB") else b" ") * (len(value) % 2)
    long = kind in ("OB", "OW", "SQ")
    length = struct.pack("<HI", 0, len(value)) if long else struct.pack("<H", len(value))
    return struct.pack("<HH", tag >> 16, tag & 0xFFFF) + kind.encode() + length + value


def write_slide(path: Path, pixels: np.ndarray, container: str, series: str, mpp: float = 0.5) -> None:
    """Write an image (uint8 [rows, columns, 3], multiples of 64) as the only level of a series."""
    rows, columns = (edge // TILE for edge in pixels.shape[:2])
    frames = pixels.reshape(rows, TILE, columns, TILE, 3).swapaxes(1, 2)
    spacing = _element(0x00280030, "DS", f"{mpp / 1000}\\{mpp / 1000}")
    instance = f"{series}.1"
    meta = b"".join(
        _element(*given)
        for given in (
            (0x00020001, "OB", b"\0\1"),
            (0x00020002, "UI", WHOLE_SLIDE),
            (0x00020003, "UI", instance),
            (0x00020010, "UI", EXPLICIT_LITTLE_ENDIAN),
        )
    )
    data = b"".join(
        _element(*given)
        for given in (
            (0x00080008, "CS", "ORIGINAL\\PRIMARY\\VOLUME\\NONE"),
            (0x00080016, "UI", WHOLE_SLIDE),
            (0x00080018, "UI", instance),
            (0x0020000E, "UI", series),
            (0x00209311, "CS", "TILED_FULL"),
            (0x00280002, "US", 3),
            (0x00280004, "CS", "RGB"),
            (0x00280006, "US", 0),
            (0x00280008, "IS", str(rows * columns)),
            (0x00280010, "US", TILE),
            (0x00280011, "US", TILE),
            (0x00280100, "US", 8),
            (0x00280101, "US", 8),
            (0x00280102, "US", 7),
            (0x00280103, "US", 0),
            (0x00400512, "LO", container),
            (0x00480006, "UL", pixels.shape[1]),
            (0x00480007, "UL", pixels.shape[0]),
            (0x00480303, "UL", 1),
            (0x52009229, "SQ", [_element(0x00289110, "SQ", [spacing])]),
            (0x7FE00010, "OW", frames.tobytes()),
        )
    )
    path.write_bytes(bytes(128) + b"DICM" + _element(0x00020000, "UL", len(meta)) + meta + data)
