"""Slides cut into tiles of one physical size."""

import json
import os
import signal
import time

import numpy as np
import openslide
import pyarrow.parquet as pq
import pytest
import pyvips
import tifffile
from PIL import Image, ImageDraw
from scipy import ndimage

from mgi.codecs import decode_image, decode_mask
from mgi.config import TileOptions
from mgi.errors import AnnotationError, MissingInputError, SlideError
from mgi.evaluate.masks import stitch
from mgi.prepare import isolation, reader, slides, tiling, tissue
from mgi.prepare.slides import tile_slides
from mgi.prepare.tissue import tissue_mask
from mgi.tables import IMAGES_SCHEMA, SOURCES_SCHEMA
from tests.prepare.conftest import tissue_picture, write_slide

CASE = "TCGA-S1-0001"


def options(mpp=0.5, tile_px=64, **given):
    return TileOptions().model_copy(update={"mpp": mpp, "tile_px": tile_px, **given})


def tiled(paths, output, status=None, **given):
    case_ids = [path.name[:12] for path in paths]
    tile_slides(paths, case_ids, output, options(**given), status)
    return pq.read_table(output).to_pandas()


@pytest.fixture
def slide(tmp_path):
    return write_slide(tmp_path / f"{CASE}-01Z-00-DX1.uuid.svs", tissue_picture(1024, 1024), 0.5)


def test_tiles_cover_the_tissue_and_nothing_else(slide, tmp_path):
    tiles = tiled([slide], tmp_path / "t.parquet")
    assert pq.read_schema(tmp_path / "t.parquet").equals(IMAGES_SCHEMA)
    assert len(tiles) == 12 * 12 and tiles.tissue_fraction.min() > 0.9
    assert (tiles.x.min(), tiles.x.max(), tiles.y.min(), tiles.y.max()) == (128, 832, 128, 832)
    assert set(tiles["size"]) == {64} and set(tiles.mpp) == {0.5} and tiles["mask"].isna().all()
    assert (tiles.source_id == f"{CASE}-01Z-00-DX1").all() and (tiles.case_id == CASE).all()
    order = list(zip(tiles.y, tiles.x, strict=True))
    assert order == sorted(order)


def test_tile_has_the_pixels_of_its_place(slide, tmp_path):
    picture = tissue_picture(1024, 1024).astype(float)
    for tile in tiled([slide], tmp_path / "t.parquet").itertuples():
        expected = picture[tile.y : tile.y + 64, tile.x : tile.x + 64].mean(axis=(0, 1))
        assert np.abs(decode_image(tile.image).mean(axis=(0, 1)) - expected).max() < 3


def test_physical_size_does_not_depend_on_the_scanner(tmp_path):
    """The same tissue scanned at 0.5, 0.25 and 0.3125 microns gives the same tiles."""
    large = Image.fromarray(tissue_picture(2048, 1536))
    scans = {0.5: (1024, 768), 0.25: (2048, 1536), 0.4: (1280, 960)}
    found = {}
    for mpp, size in scans.items():
        path = write_slide(tmp_path / f"{mpp}" / f"{CASE}.svs", np.asarray(large.resize(size)), mpp)
        found[mpp] = tiled([path], tmp_path / f"{mpp}.parquet")
    reference = found.pop(0.5)
    for mpp, tiles in found.items():
        assert len(tiles) == len(reference)
        assert np.abs(tiles.x * mpp - reference.x * 0.5).max() <= mpp
        pairs = zip(tiles.image, reference.image, strict=True)
        assert np.mean([np.abs(decode_image(a).astype(int) - decode_image(b)).mean() for a, b in pairs]) < 3


def test_edge_that_is_no_whole_number_does_not_drift(tmp_path):
    """At 0.37 microns a tile of 64 pixels of 0.5 microns is 86.49 pixels wide."""
    width, edge = 2000, 64 * 0.5 / 0.37
    wave = 90 + 70 * np.abs(np.arange(width) % 1000 / 250 - 2) - 70
    pixels = np.broadcast_to(np.stack([np.full(width, 210), wave, np.full(width, 190)], -1), (300, width, 3))
    slide = write_slide(tmp_path / f"{CASE}.svs", np.rint(pixels).astype(np.uint8), 0.37)
    tiles = tiled([slide], tmp_path / "t.parquet")
    row = tiles[tiles.y == 0]
    assert row.x.tolist() == [round(k * edge) for k in range(int(width // edge))]
    means = np.array([decode_image(image)[..., 1].mean() for image in row.image])
    centres = row.x.to_numpy()[:, None] + (np.arange(64) + 0.5) * edge / 64 - 0.5
    expected = np.interp(centres, np.arange(width), wave).mean(axis=1)
    # The wave rises 0.28 levels a pixel: losing the fraction of the edge would come to 3 levels at the last tile.
    assert np.abs(means - expected).max() < 1


def test_wide_slide_is_put_together_from_its_table(tmp_path):
    """At 0.37 microns a tile of 16 pixels of 0.5 microns is 21.62 pixels wide: 92 tiles of 22 would be 35 too long."""
    slide = write_slide(tmp_path / f"{CASE}.svs", np.full((64, 2000, 3), (210, 90, 190), np.uint8), 0.37)
    tiles = tiled([slide], tmp_path / "t.parquet", tile_px=16)
    assert len(tiles) == 92 * 2 and set(tiles["size"]) == {16 * 0.5 / 0.37}
    pixels = np.stack([decode_image(image) for image in tiles.image])
    plane = stitch(pixels, tiles.x.to_numpy(), tiles.y.to_numpy(), tiles["size"][0])
    assert plane.shape == (2 * 16, 92 * 16, 3) and plane.min() > 50


@pytest.mark.parametrize(("mpp", "tile_px"), [(0.61, 40), (2.0, 16)])
def test_tiles_do_not_depend_on_the_blocks_they_were_read_in(tmp_path, monkeypatch, mpp, tile_px):
    noise = np.random.default_rng(0).integers(-40, 40, (1024, 1024, 1))
    slide = write_slide(tmp_path / f"{CASE}.svs", (tissue_picture(1024, 1024) - abs(noise)).astype(np.uint8), 0.5)
    whole = tiled([slide], tmp_path / "t.parquet", mpp=mpp, tile_px=tile_px)
    monkeypatch.setattr(reader, "BLOCK_PX", 150)
    blocks = tiled([slide], tmp_path / "t.parquet", mpp=mpp, tile_px=tile_px)
    assert blocks[["x", "y", "tissue_fraction"]].equals(whole[["x", "y", "tissue_fraction"]]) and len(whole) > 100
    for one, other in zip(blocks.image, whole.image, strict=True):
        # Only JPEG's rounding may differ; a pixel's shift of this noise would give a mean of about 8.
        assert np.abs(decode_image(one).astype(int) - decode_image(other)).mean() < 0.5


def test_masks_are_cut_from_the_annotation(slide, tmp_path):
    ring = [[200, 150], [700, 150], [700, 600], [200, 600], [200, 150]]
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / f"{CASE}-01Z-00-DX1.geojson").write_text(
        json.dumps({"type": "Polygon", "coordinates": [ring]})
    )
    tiles = tiled([slide], tmp_path / "t.parquet", annotations=tmp_path / "notes", status=tmp_path / "s.parquet")
    assert sum(decode_mask(mask).sum() for mask in tiles["mask"]) == 500 * 450
    tile = tiles[(tiles.x == 192) & (tiles.y == 192)].iloc[0]
    assert decode_mask(tile["mask"])[:, :8].sum() == 0 and decode_mask(tile["mask"])[:, 8:].all()
    assert pq.read_table(tmp_path / "s.parquet")["labelled"].to_pylist() == [True]


@pytest.mark.parametrize("form", ["polygon", "mask", "far"])
def test_annotated_tumour_in_no_tile_is_counted(tmp_path, form):
    """The tissue spans 125 to 875 of 1,000, tiles end at 960, and the drawing leaves the slide."""
    slide = write_slide(tmp_path / f"{CASE}.svs", tissue_picture(1000, 1000), 0.5)
    left, top, right, bottom = (100, 200, 1200, 700) if form != "far" else (20, 20, 60, 100)
    (tmp_path / "notes").mkdir()
    if form == "mask":
        pixels = np.zeros((100, 100), np.uint8)
        pixels[top // 10 : bottom // 10, left // 10 : right // 10] = 255
        Image.fromarray(pixels).save(tmp_path / "notes" / f"{CASE}_mask.tiff")
    else:
        ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
        (tmp_path / "notes" / f"{CASE}.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    tiles = tiled([slide], tmp_path / "t.parquet", annotations=tmp_path / "notes", status=tmp_path / "s.parquet")
    tiled_px = sum(decode_mask(mask).sum() for mask in tiles["mask"])
    (untiled,) = pq.read_table(tmp_path / "s.parquet")["untiled_tumour_px"].to_pylist()
    assert untiled > 0 and (tiled_px > 0) == (form != "far")
    assert untiled + tiled_px == (min(right, 1000) - left) * (bottom - top)


@pytest.mark.parametrize("changes", [{"min_tissue": 1.0, "tile_px": 512}, {"stain": "macenko"}])
def test_annotated_tumour_of_a_slide_without_tiles_is_counted(tmp_path, changes, monkeypatch):
    slide = write_slide(tmp_path / f"{CASE}.svs", tissue_picture(1024, 1024), 0.5)
    ring = [[300, 300], [500, 300], [500, 700], [300, 700], [300, 300]]
    (tmp_path / f"{CASE}.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))

    def refuse(pixels):
        raise SlideError("no stain to be found")

    monkeypatch.setattr(tiling.Stain, "estimate", refuse)
    chosen = TileOptions(**{"mpp": 0.5, "tile_px": 64, "annotations": str(tmp_path / f"{CASE}.geojson")} | changes)
    tile_slides([slide], [CASE], tmp_path / "t.parquet", chosen, tmp_path / "s.parquet")
    (row,) = pq.read_table(tmp_path / "s.parquet").to_pylist()
    assert row["status"] == "skipped" and row["reason"].startswith("no ") and not row["labelled"]
    assert (row["n_images"], row["tumour_px"], row["untiled_tumour_px"]) == (0, 200 * 400, 200 * 400)
    with pytest.raises(SlideError, match=r"no (tissue|stain)"):
        tile_slides([slide], [CASE], tmp_path / "t.parquet", chosen)


def test_slide_without_annotation_has_no_count_of_tumour_in_no_tile(slide, tmp_path):
    tiled([slide], tmp_path / "t.parquet", status=tmp_path / "s.parquet")
    assert pq.read_table(tmp_path / "s.parquet")["untiled_tumour_px"].to_pylist() == [None]


def test_bad_slides_are_recorded_with_their_reasons_and_the_run_goes_on(slide, tmp_path):
    (tmp_path / "TCGA-S1-0002.svs").write_text("no slide at all")
    cut = tmp_path / "TCGA-S1-0003.svs"
    cut.write_bytes(slide.read_bytes()[: slide.stat().st_size // 2])
    blank = write_slide(tmp_path / "TCGA-S1-0004.svs", np.full((512, 512, 3), 242, np.uint8), 0.5)
    nameless = write_slide(tmp_path / "TCGA-S1-0005.svs", tissue_picture(512, 512), None)
    coarse = write_slide(tmp_path / "TCGA-S1-0006.svs", tissue_picture(512, 512), 2.0)
    folder = tmp_path / "TCGA-S1-0007.svs"
    folder.mkdir()
    pipe = tmp_path / "TCGA-S1-0008.svs"
    os.mkfifo(pipe)
    bad = [tmp_path / "TCGA-S1-0002.svs", cut, blank, nameless, coarse, folder, pipe]
    tiles = tiled([*bad, slide], tmp_path / "t.parquet", status=tmp_path / "s.parquet")
    status = pq.read_table(tmp_path / "s.parquet")
    assert status.schema.equals(SOURCES_SCHEMA)
    rows = status.to_pylist()
    assert [row["status"] for row in rows] == ["ok", *["failed"] * 2, *["skipped"] * 3, *["failed"] * 2]
    kinds = ["unreadable", "unreadable", "no tissue", "no mpp", "too coarse", "unreadable", "unreadable"]
    assert [row["reason"].split(":")[0] for row in rows[1:]] == kinds
    assert rows[0]["n_images"] == len(tiles) > 0 and set(tiles.source_id) == {f"{CASE}-01Z-00-DX1"}
    assert rows[0]["mpp"] == 0.5 and rows[0]["mpp_from"] == "metadata" and rows[0]["table"] == "t"


def test_only_bad_slides_leave_an_empty_table(tmp_path):
    (tmp_path / f"{CASE}.svs").write_text("no slide at all")
    assert tiled([tmp_path / f"{CASE}.svs"], tmp_path / "t.parquet", status=tmp_path / "s.parquet").empty
    assert pq.read_schema(tmp_path / "t.parquet").equals(IMAGES_SCHEMA)


def test_bad_slide_by_hand_is_an_error_and_leaves_nothing(tmp_path):
    (tmp_path / f"{CASE}.svs").write_text("no slide at all")
    with pytest.raises(SlideError, match=rf"{CASE}\.svs: unreadable"):
        tiled([tmp_path / f"{CASE}.svs"], tmp_path / "t.parquet")
    assert [path.name for path in tmp_path.iterdir()] == [f"{CASE}.svs"]


def test_broken_annotation_fails_its_slide_only(slide, tmp_path):
    other = write_slide(tmp_path / "TCGA-S1-0009.svs", tissue_picture(512, 512), 0.5)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "TCGA-S1-0009.geojson").write_text("{")
    tiled([slide, other], tmp_path / "t.parquet", annotations=tmp_path / "notes", status=tmp_path / "s.parquet")
    rows = pq.read_table(tmp_path / "s.parquet").to_pylist()
    assert [row["status"] for row in rows] == ["ok", "failed"] and "unreadable annotation" in rows[1]["reason"]
    with pytest.raises(AnnotationError, match="one annotation for 2 slides"):
        tiled([slide, other], tmp_path / "t.parquet", annotations=tmp_path / "notes" / "TCGA-S1-0009.geojson")


def test_wrong_calls_are_refused(slide, tmp_path):
    copy = write_slide(tmp_path / "copy" / slide.name, tissue_picture(512, 512), 0.5)
    with pytest.raises(SlideError, match=rf"two slides are both {CASE}-01Z-00-DX1"):
        tiled([slide, copy], tmp_path / "t.parquet", status=tmp_path / "s.parquet")
    with pytest.raises(SlideError, match="1 slides but 2 case ids"):
        tile_slides([slide], [CASE, CASE], tmp_path / "t.parquet", options())
    with pytest.raises(MissingInputError, match=r"absent\.svs"):
        tiled([tmp_path / "absent.svs"], tmp_path / "t.parquet", status=tmp_path / "s.parquet")


def test_tiling_is_reproducible_to_the_byte(slide, tmp_path):
    tiled([slide], tmp_path / "t.parquet", status=tmp_path / "s.parquet")
    first = (tmp_path / "t.parquet").read_bytes()
    tiled([slide], tmp_path / "t.parquet", status=tmp_path / "s.parquet")
    assert (tmp_path / "t.parquet").read_bytes() == first


@pytest.mark.parametrize("ink", [(20, 60, 190), (30, 140, 60), (25, 25, 30)])
def test_pen_is_not_tissue(ink):
    picture = Image.fromarray(tissue_picture(200, 200))
    ImageDraw.Draw(picture).line([(5, 5), (195, 12)], fill=ink, width=9)
    expected = np.zeros((200, 200), bool)
    expected[25:-25, 25:-25] = True
    assert (tissue_mask(np.asarray(picture), 8.0) ^ expected).mean() < 0.01


def test_separates_glass_alone_from_tissue_alone():
    noise = np.random.default_rng(0).integers(-3, 4, (100, 100, 3))
    assert not tissue_mask((240 + noise).astype(np.uint8), 8.0).any()
    assert tissue_mask((np.array([200, 120, 170]) + noise).astype(np.uint8), 8.0).all()


def test_dust_is_not_tissue():
    pixels = np.full((100, 100, 3), 242, np.uint8)
    pixels[10:16, 10:16] = (200, 100, 170)
    assert not tissue_mask(pixels, 8.0).any()


@pytest.mark.parametrize(("mpp", "count"), [(0.5, 43), (1.0, 14)])
def test_real_slide_has_tiles_of_the_requested_size(data_dir, tmp_path, mpp, count):
    slide = data_dir / "slides" / "cmu-1-small-region.svs"
    tiles = tiled([slide], tmp_path / "t.parquet", mpp=mpp, tile_px=256)
    assert set(tiles["size"]) == {256 * mpp / 0.499} and len(tiles) == count
    assert all(decode_image(image).shape == (256, 256, 3) for image in tiles.image)
    greenest = [decode_image(image).mean(axis=(0, 1)).argmin() for image in tiles.image]
    assert set(greenest) == {1}, "stained tissue absorbs green most"


def test_real_slide_without_mpp_is_skipped_with_its_reason(data_dir, tmp_path):
    slide = data_dir / "slides" / "tcga-cr-7395-01a-01-ts1.svs"
    assert tiled([slide], tmp_path / "t.parquet", status=tmp_path / "s.parquet").empty
    (row,) = pq.read_table(tmp_path / "s.parquet").to_pylist()
    assert row["status"] == "skipped" and row["reason"].startswith("no mpp") and row["mpp"] is None
    with pytest.raises(SlideError, match=r"no mpp.*--default-mpp.*leave the slide out"):
        tiled([slide], tmp_path / "t.parquet")
    tiles = tiled([slide], tmp_path / "t.parquet", tile_px=256, default_mpp=0.25, status=tmp_path / "s.parquet")
    (row,) = pq.read_table(tmp_path / "s.parquet").to_pylist()
    assert row["mpp_from"] == "default" and set(tiles["size"]) == {512} and len(tiles) > 20


def test_stated_mpp_beats_the_file_and_an_implausible_one_is_called_so(tmp_path):
    table = tmp_path / "mpp.csv"
    table.write_text(f"slide,mpp\n{CASE}.svs,0.5\n")
    for stated in (2.0, 0.0, 499.0, 352.778):
        path = write_slide(tmp_path / f"{stated}" / f"{CASE}.svs", tissue_picture(512, 512), stated)
        tiled([path], tmp_path / "t.parquet", tmp_path / "s.parquet", mpp_table=str(table))
        (row,) = pq.read_table(tmp_path / "s.parquet").to_pylist()
        assert (row["status"], row["mpp"], row["mpp_from"]) == ("ok", 0.5, "table")
        tiled([path], tmp_path / "t.parquet", tmp_path / "s.parquet")
        (row,) = pq.read_table(tmp_path / "s.parquet").to_pylist()
        assert row["reason"].split(":")[0] in ("too coarse" if stated == 2 else "implausible mpp", "no mpp")
        if stated != 2:
            tiled([path], tmp_path / "t.parquet", tmp_path / "s.parquet", default_mpp=0.5)
            assert pq.read_table(tmp_path / "s.parquet")["mpp_from"].to_pylist() == ["default"]


@pytest.mark.parametrize(
    ("properties", "expected"),
    [
        ({"mpp-x": "0.25", "mpp-y": "0.25"}, (0.25, "metadata")),
        ({"mpp-x": "0.25", "mpp-y": "0.25", "vendor": "generic-tiff"}, (0.4, "default")),
        ({"mpp-x": "264.58", "mpp-y": "264.58", "vendor": "generic-tiff"}, (0.4, "default")),
        ({"mpp-x": "0.25", "mpp-y": "0.5"}, (0.4, "default")),
        ({"mpp-x": "nan", "mpp-y": "0.25"}, (0.4, "default")),
        ({"mpp-x": "-0.25", "mpp-y": "-0.25"}, (0.4, "default")),
        ({"mpp-x": "a", "mpp-y": "0.25"}, (0.4, "default")),
        ({}, (0.4, "default")),
    ],
)
def test_default_stands_in_for_what_the_file_does_not_state(properties, expected):
    properties = {f"openslide.{key}": value for key, value in properties.items()}
    found = reader.resolve_mpp(properties, 0.5, default_mpp=0.4)
    assert (found.mpp, found.source) == expected
    stated = reader.resolve_mpp(properties, 0.5, 0.4, stated_mpp=0.3)
    assert (stated.mpp, stated.source) == (0.3, "table")


def test_slide_that_hangs_or_crashes_the_reader_costs_itself_alone(slide, tmp_path, monkeypatch):
    hanging, crashing, greedy = (
        write_slide(tmp_path / f"TCGA-S1-000{k}.svs", tissue_picture(512, 512), 0.5) for k in (2, 3, 4)
    )
    real = slides.open_slide

    def opened(path):
        if path == hanging:
            time.sleep(60)
        if path == crashing:
            os.kill(os.getpid(), signal.SIGKILL)
        if path == greedy:
            np.ones(2**40, np.uint8)
        return real(path)

    monkeypatch.setattr(slides, "open_slide", opened)
    monkeypatch.setattr(isolation.run_isolated, "__kwdefaults__", {"stall_s": 5.0, "time_limit_s": 60.0})
    tiled([hanging, crashing, greedy, slide], tmp_path / "t.parquet", tmp_path / "s.parquet")
    rows = pq.read_table(tmp_path / "s.parquet").to_pylist()
    assert [row["status"] for row in rows] == ["ok", "failed", "failed", "failed"]
    reasons = [row["reason"] for row in rows[1:]]
    assert "did nothing for 5 s" in reasons[0] and "SIGKILL" in reasons[1] and "GiB" in reasons[2]


def test_header_that_claims_too_much_is_refused_before_anything_is_allocated(tmp_path):
    tifffile.imwrite(
        tmp_path / f"{CASE}.tif",
        (np.zeros((64, 64, 3), np.uint8) for _ in range(4)),
        shape=(128, 128, 3), dtype=np.uint8, tile=(64, 64), photometric="rgb",
    )  # fmt: skip
    path = tmp_path / f"{CASE}.tif"
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        for name in ("ImageWidth", "ImageLength"):
            offset = tiff.pages[0].tags[name].valueoffset
            content[offset : offset + 2] = (60000).to_bytes(2, "little")
    path.write_bytes(content)
    tiled([path], tmp_path / "t.parquet", tmp_path / "s.parquet", default_mpp=0.5)
    (row,) = pq.read_table(tmp_path / "s.parquet").to_pylist()
    assert row["status"] in ("skipped", "failed") and row["n_images"] == 0


def test_slides_with_dots_in_their_names_have_their_own_annotations(tmp_path):
    (tmp_path / "notes").mkdir()
    paths = []
    for letter, edge in (("A", 320), ("B", 448)):
        paths.append(write_slide(tmp_path / f"S21.1234.{letter}.svs", tissue_picture(512, 512), 0.5))
        ring = [[64, 64], [edge, 64], [edge, edge], [64, edge], [64, 64]]
        (tmp_path / "notes" / f"S21.1234.{letter}.geojson").write_text(
            json.dumps({"type": "Polygon", "coordinates": [ring]})
        )
    tile_slides(paths, ["p", "q"], tmp_path / "t.parquet", options(annotations=str(tmp_path / "notes")), tmp_path / "s")
    assert pq.read_table(tmp_path / "s")["tumour_px"].to_pylist() == [256**2, 384**2]


@pytest.mark.parametrize("size", [(1024, 1024), (700, 611)])
def test_native_tiles_are_the_pixels_of_openslide(tmp_path, size):
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    path = write_slide(tmp_path / f"{CASE}.svs", noise, 0.5)
    with reader.open_slide(path) as slide:
        assert 0 in slide.native
        for level in slide.native:
            width, height = slide.level_dimensions[level]
            expected = np.asarray(slide.read_region((0, 0), level, (width, height)))[..., :3]
            assert np.array_equal(slide.native[level].read(0, 0, width, height), expected)
            x, y = width // 5, height // 7
            window = slide.native[level].read(x, y, width // 2, height // 3)
            assert np.array_equal(window, expected[y : y + height // 3, x : x + width // 2])


def noisy_slide(path, quality, stored_px=64):
    """Write noise on tissue as an SVS of RGB (quality 90 and above) or YCbCr tiles."""
    noise = np.random.default_rng(3).integers(-40, 40, (500, 700, 3))
    pixels = (np.array([200, 110, 175]) + noise).clip(0, 255).astype(np.uint8)
    image = pyvips.Image.new_from_array(pixels).copy()
    image.set_type(pyvips.GValue.gstr_type, "image-description", "Aperio Image Library v11|AppMag = 20|MPP = 0.5")
    edges = {"tile_width": stored_px, "tile_height": stored_px}
    image.tiffsave(str(path), tile=True, pyramid=True, compression="jpeg", Q=quality, **edges)
    return path


@pytest.mark.parametrize("quality", [75, 95])
@pytest.mark.parametrize("mpp", [0.5, 1.0])
def test_tiles_that_are_the_slides_own_are_copied(tmp_path, monkeypatch, quality, mpp):
    """Their pixels are OpenSlide's, to the bit."""
    slide = noisy_slide(tmp_path / f"{CASE}.svs", quality)
    monkeypatch.setattr(tiling, "_encode_image", lambda _: pytest.fail("encoded again"))
    tiles = tiled([slide], tmp_path / "t.parquet", mpp=mpp, min_tissue=0.9)
    assert len(tiles) == {0.5: 10 * 7, 1.0: 5 * 3}[mpp]
    with openslide.OpenSlide(slide) as opened:
        for tile in tiles.itertuples():
            window = opened.read_region((tile.x, tile.y), {0.5: 0, 1.0: 1}[mpp], (64, 64))
            assert np.array_equal(decode_image(tile.image), np.asarray(window.convert("RGB")))


def test_copied_tiles_have_the_masks_of_their_places(tmp_path):
    slide = noisy_slide(tmp_path / f"{CASE}.svs", 75)
    ring = [[32, 32], [160, 32], [160, 160], [32, 160], [32, 32]]
    (tmp_path / "a.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    tiles = tiled([slide], tmp_path / "t.parquet", annotations=str(tmp_path / "a.geojson"))
    assert sum(decode_mask(mask).sum() for mask in tiles["mask"]) == 128 * 128


@pytest.mark.parametrize("given", [{"tile_px": 32}, {"mpp": 0.51}, {"tile_px": 128}])
def test_tiles_that_are_not_the_slides_own_are_read(tmp_path, monkeypatch, given):
    slide = noisy_slide(tmp_path / f"{CASE}.svs", 75)
    encode = tiling._encode_image
    monkeypatch.setattr(tiling, "_encode_image", lambda pixels: b"read" + encode(pixels))
    tiles = tiled([slide], tmp_path / "t.parquet", **given)
    assert len(tiles) and all(image.startswith(b"read") for image in tiles.image)


def test_partial_tile_is_not_copied(tmp_path):
    slide = noisy_slide(tmp_path / f"{CASE}.svs", 75)
    tiles = tiled([slide], tmp_path / "t.parquet", partial_tiles=True, min_tissue=0)
    assert len(tiles) == 11 * 8
    corner = decode_image(tiles[(tiles.x == 640) & (tiles.y == 448)].image.iloc[0])
    assert corner[:, 61:].min() > 240 and corner[53:].min() > 240 and corner[:51, :59].mean() < 200


@pytest.mark.parametrize("spoil", [lambda part: part[:-20] + b"\0" * 20, lambda part: b"\0" * len(part)])
def test_damaged_stored_tile_costs_its_slide(tmp_path, spoil):
    slide = noisy_slide(tmp_path / f"{CASE}.svs", 75)
    with tifffile.TiffFile(slide) as tiff:
        offset, length = tiff.pages[0].dataoffsets[3], tiff.pages[0].databytecounts[3]
    content = bytearray(slide.read_bytes())
    content[offset : offset + length] = spoil(bytes(content[offset : offset + length]))
    slide.write_bytes(content)
    assert tiled([slide], tmp_path / "t.parquet", tmp_path / "s.parquet").empty
    (record,) = pq.read_table(tmp_path / "s.parquet").to_pylist()
    assert record["status"] == "failed" and "tile 3 is damaged" in record["reason"]


def test_median_and_morphology_are_those_of_scipy():
    rng = np.random.default_rng(0)
    values, mask = rng.random((60, 71)).astype(np.float32), rng.random((60, 71)) > 0.4
    assert np.array_equal(tissue._filter_median(values), ndimage.median_filter(values, size=3))
    assert np.array_equal(tissue._open(mask), ndimage.binary_opening(mask))
    assert np.array_equal(tissue._dilate(mask), ndimage.binary_dilation(mask))


def test_tissue_does_not_depend_on_the_bands_it_is_looked_at_in(monkeypatch):
    blocks = np.random.default_rng(0).integers(40, 255, (30, 20, 3))
    thumbnail = np.kron(blocks, np.ones((37, 31, 1))).astype(np.uint8)
    whole = tissue_mask(thumbnail, 8.0)
    monkeypatch.setattr(tissue, "ROWS", 7)
    assert np.array_equal(tissue_mask(thumbnail, 8.0), whole) and 0.1 < whole.mean() < 0.9


def test_most_tiles_of_a_slide_are_spread_over_its_tissue(slide, tmp_path):
    """Of 12 x 12 tiles 36 are kept, nine in each quarter, and the others counted."""
    tiles = tiled([slide], tmp_path / "t.parquet", tmp_path / "s.parquet", max_tiles=36)
    assert len(tiles) == 36 and not tiles.duplicated(["x", "y"]).any()
    quarters = tiles.groupby([tiles.x < 512, tiles.y < 512]).size()
    assert quarters.min() >= 8 and quarters.max() <= 10
    (record,) = pq.read_table(tmp_path / "s.parquet").to_pylist()
    assert json.loads(record["dropped"]) == {"glass": 112, "over the most of a slide": 108}
    again = tiled([slide], tmp_path / "t.parquet", max_tiles=144)
    assert len(again) == 144


def test_tiles_without_tissue_are_counted_by_what_they_are(tmp_path):
    """Of 8 x 8 tiles: 6 x 6 of tissue, less 4 under blue ink, less 4 that are black; and 3 of ink on the glass."""
    pixels = tissue_picture(1024, 1024)
    pixels[128:384, 128:384] = (60, 80, 190)
    pixels[512:768, 512:768] = 10
    pixels[:128, 512:896] = (60, 80, 190)
    slide = write_slide(tmp_path / f"{CASE}.svs", pixels, 0.5)
    tiled([slide], tmp_path / "t.parquet", tmp_path / "s.parquet", tile_px=128)
    (record,) = pq.read_table(tmp_path / "s.parquet").to_pylist()
    assert json.loads(record["dropped"]) == {"black": 4, "glass": 64 - 36 - 3, "pen": 4 + 3}
    assert record["n_images"] == 36 - 8
