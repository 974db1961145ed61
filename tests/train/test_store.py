"""Tiles that a table holds the place of alone: the pixels of their slides, the same model, and what is refused."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace

import numpy as np
import openslide
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy import ndimage
from typer.testing import CliRunner

from mgi.cli import app
from mgi.codecs import encode_png
from mgi.config import TileOptions
from mgi.errors import ConfigError, ImageTableError, SlideError
from mgi.evaluate.external import evaluate_tables
from mgi.evaluate.yardstick import measure_images
from mgi.prepare import pixels, store, tiling
from mgi.prepare.pixels import TileReader
from mgi.prepare.slides import tile_slides
from mgi.report import figures
from mgi.tables import write_sources, write_table
from mgi.train.data import read_image_table
from mgi.train.finetune import finetune
from tests.prepare.conftest import tissue_picture, write_slide
from tests.tables import CASES, ROLES

NOISE = np.random.default_rng(0).integers(-40, 40, (600, 900, 1))
RING = [[100, 100], [500, 130], [420, 470], [100, 100]]


@pytest.fixture(autouse=True)
def closed():
    """No slide is open before a test, nor after."""
    store._kept.clear()
    yield
    store._kept.clear()


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    """Noise on tissue, the left third out of focus, with an annotation, at 0.5 microns; stored in tiles of 256."""
    picture = (tissue_picture(900, 600) + NOISE).clip(0, 255).astype(np.uint8)
    picture[:, :300] = ndimage.gaussian_filter(picture[:, :300], (6, 6, 0))
    path = write_slide(tmp_path_factory.mktemp("slides") / "TCGA-S1-0001.svs", picture, 0.5)
    path.with_suffix(".geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [RING]}))
    return path


def tile(paths, output, kind, overlap=0.0, **given):
    """Tile slides and read their table."""
    options = TileOptions(**{"mpp": 0.5, "tile_px": 64, "store": kind} | given)
    beside = {"previews": output.parent / f"{kind}_p", "coordinates": output.parent / f"{kind}_c"}
    tile_slides(paths, [path.stem for path in paths], output, options, output.with_suffix(".status"), overlap, **beside)
    return read_image_table(output)


GEOMETRIES = {
    "own scale": {"mpp": 0.5},
    "coarser": {"mpp": 1.3},
    "finer": {"mpp": 0.41, "tile_px": 48},
    "copied": {"mpp": 0.5, "tile_px": 256, "min_tissue": 0.01, "min_focus": 0.01},
    "partial": {"mpp": 0.9, "partial_tiles": True, "min_tissue": 0.0},
    "overlapping": {"mpp": 0.7, "overlap": 0.5, "annotations": None},
    "few": {"mpp": 0.5, "max_tiles": 17, "min_focus": 0.0},
}


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_tiles_are_those_that_would_be_stored(slide, tmp_path, monkeypatch, geometry):
    given = {"annotations": str(slide.with_suffix(".geojson"))} | GEOMETRIES[geometry]
    usual = tile([slide], tmp_path / "usual.parquet", "images", **given)
    places = tile([slide], tmp_path / "places.parquet", "coordinates", **given)
    # Encoded without loss, in the process that tiles, they are the pixels before encoding.
    monkeypatch.setattr(tiling, "_encode_image", encode_png)
    exact = tile([slide], tmp_path / "exact.parquet", "images", **given)
    rows = np.arange(len(exact))
    assert len(rows) > 1 and places.frame.equals(exact.frame) and places.shape == exact.shape
    assert places.masks == exact.masks and places.positive.any() == (geometry != "overlapping")
    with ThreadPoolExecutor(3) as pool:
        read = places.load(rows, pool)
    assert np.array_equal(read, exact.load(rows)) and read.std() > 10
    error = np.abs(read.astype(int) - usual.load(rows)).mean()
    assert error == 0 if geometry == "copied" else 0 < error < 10
    held = [pq.read_table(tmp_path / f"{name}.parquet").drop_columns("image") for name in ("usual", "places")]
    assert held[0].equals(held[1])
    assert pq.read_table(tmp_path / "places.parquet")["image"].null_count == len(rows)
    statuses = [pq.read_table(tmp_path / f"{name}.status").drop_columns("table") for name in ("usual", "places")]
    assert statuses[0].equals(statuses[1])
    for folder in ("p", "c"):
        (one,) = (tmp_path / f"images_{folder}").iterdir()
        assert one.read_bytes() == (tmp_path / f"coordinates_{folder}" / one.name).read_bytes()


def test_tiles_out_of_focus_are_left_out_by_either_store(slide, tmp_path):
    dropped = {}
    for kind in ("images", "coordinates"):
        tile([slide], tmp_path / "t.parquet", kind, min_focus=0.2)
        dropped[kind] = json.loads(pq.read_table(tmp_path / "t.status")["dropped"][0].as_py())
    assert dropped["images"] == dropped["coordinates"] and dropped["images"]["blur"] >= 10


def test_table_of_places_is_small(slide, tmp_path):
    sizes = {}
    for kind in ("images", "coordinates"):
        count = len(tile([slide], tmp_path / "t.parquet", kind, min_focus=0.0))
        sizes[kind] = (tmp_path / "t.parquet").stat().st_size / count
    assert sizes["coordinates"] < 150 < 20 * sizes["coordinates"] < sizes["images"]


def test_no_tile_is_encoded_for_a_table_of_places(slide, tmp_path, monkeypatch):
    monkeypatch.setattr(tiling, "_encode_image", lambda _: pytest.fail("encoded"))
    assert len(tile([slide], tmp_path / "t.parquet", "coordinates"))


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory):
    """Eight cases with a slide each, tiled twice: the tables of places, and of exact images."""
    folder = tmp_path_factory.mktemp("cohort")
    random, made = np.random.default_rng(1), {}
    paths = []
    for case in CASES:
        picture = (tissue_picture(512, 512) + random.integers(-30, 30, (512, 512, 1))).clip(0, 255).astype(np.uint8)
        paths.append(write_slide(folder / "slides" / f"{case}.svs", picture, 0.5))
        ring = [[280, 80], [440, 80], [440, 400], [280, 400], [280, 80]]
        (folder / f"{case}.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiling, "_encode_image", encode_png)
        for kind in ("images", "coordinates"):
            here = folder / kind
            (here / "images").mkdir(parents=True)
            options = TileOptions(mpp=0.55, tile_px=32, max_tiles=12, store=kind, annotations=str(folder))
            tile_slides(paths, CASES, here / "images/all.parquet", options, here / "status.parquet")
            write_sources(pq.read_table(here / "status.parquet").to_pylist(), here / "sources.parquet")
            write_table(pd.DataFrame({"case_id": CASES, "fold": 0, "role": ROLES}), here / "splits.parquet")
            made[kind] = SimpleNamespace(
                folder=here, sources=here / "sources.parquet", splits=here / "splits.parquet", slides=paths
            )
    return made


@pytest.fixture(scope="module")
def models(cohorts, finetune_options, tmp_path_factory):
    """A model trained for three steps from each table, by two threads."""
    made = {}
    for kind, data in cohorts.items():
        options = finetune_options(steps=3, val_every=3, genes="none", pretrained=False, threads=2)
        made[kind] = tmp_path_factory.mktemp(kind)
        finetune(options, data.sources, None, data.splits, "0", None, made[kind])
    return made


def test_training_from_places_gives_the_same_model(models):
    for name in ("model.safetensors", "predictions.parquet"):
        assert (models["images"] / name).read_bytes() == (models["coordinates"] / name).read_bytes()
    assert len(pq.read_table(models["coordinates"] / "predictions.parquet")) > 20


def test_every_reader_of_tables_reads_places(cohorts, models, tmp_path):
    tables = {kind: data.folder / "images/all.parquet" for kind, data in cohorts.items()}
    for kind, table in tables.items():
        evaluate_tables(models[kind], [table], None, tmp_path / kind, 20)
    summaries = [(tmp_path / kind / "summary.json").read_bytes() for kind in tables]
    assert summaries[0] == summaries[1]
    statistics = [measure_images(images, np.arange(len(images))) for images in map(read_image_table, tables.values())]
    assert np.array_equal(*statistics)
    rows = figures._plane_to_show(models["images"] / "predictions.parquet", CASES[-1])
    mosaics = [figures._mosaic(rows, data.sources)[0] for data in cohorts.values()]
    assert np.array_equal(*mosaics) and mosaics[0].std() > 10


def test_digest_tells_places_slides_and_their_sizes(cohorts, tmp_path):
    data = cohorts["coordinates"]
    table = pq.read_table(data.folder / "images/all.parquet")
    digests = []

    def add(change, table=table):
        stated = json.loads(table.schema.metadata[b"slides"])
        for one in stated["slides"].values():
            change(one)
        write_table(table.replace_schema_metadata({"slides": json.dumps(stated)}), tmp_path / "t.parquet")
        digests.append(read_image_table(tmp_path / "t.parquet").digest())

    def move(one):
        name = os.path.basename(one["path"])
        (tmp_path / "moved").mkdir(exist_ok=True)
        shutil.copy(one["path"], tmp_path / "moved" / name)
        one["path"] = str(tmp_path / "moved" / name)

    def grow(one):
        move(one)
        with open(one["path"], "ab") as file:
            file.write(b"\0")
        one["size"] += 1

    def rename(one):
        move(one)
        os.rename(one["path"], f"{one['path']}.svs")
        one["path"] += ".svs"

    add(lambda one: None)
    add(move)
    assert digests[0] == digests[1]
    add(grow)
    add(rename)
    shifted = pa.array(np.asarray(table["x"]) + 1, pa.int32())
    add(lambda one: None, table.set_column(table.schema.get_field_index("x"), "x", shifted))
    assert len(set(digests)) == 4


def test_a_slide_is_opened_once_for_all_threads_and_closed_when_others_need_room(cohorts, monkeypatch):
    images = read_image_table(cohorts["coordinates"].folder / "images/all.parquet")
    opened, now, real = [], [], store.open_slide

    class Counted:
        def __init__(self, path, share):
            self.path, self.context = path, real(path, share)

        def __enter__(self):
            opened.append(self.path.stem)
            now.append(self.path.stem)
            return self.context.__enter__()

        def __exit__(self, *error):
            now.remove(self.path.stem)
            return self.context.__exit__(*error)

    monkeypatch.setattr(store, "open_slide", Counted)
    rows = np.arange(len(images))
    with ThreadPoolExecutor(6) as pool:
        expected = images.load(rows, pool)
        images.load(rows, pool)
        assert sorted(opened) == sorted(now) == CASES
        monkeypatch.setattr(store, "MAX_OPEN_BYTES", 2 * store.SLIDE_BYTES)
        store._kept.clear()
        assert now == []
        shuffled = np.random.default_rng(0).permutation(rows)
        assert np.array_equal(images.load(shuffled, pool), expected[shuffled])
    assert len(now) <= 2 and len(opened) > 2 * len(CASES)


def test_open_pictures_count_by_their_pixels(tmp_path, monkeypatch):
    paths = [tmp_path / f"{name}.png" for name in "abc"]
    for path in paths:
        Image.fromarray(tissue_picture(600, 400)).save(path)
    options = TileOptions(mpp=0.5, tile_px=32, default_mpp=0.5, store="coordinates")
    tile_slides(paths, ["A", "B", "C"], tmp_path / "t.parquet", options)
    images = read_image_table(tmp_path / "t.parquet")
    monkeypatch.setattr(store, "MAX_OPEN_BYTES", 2 * 3 * 600 * 400)
    images.load(np.arange(len(images)))
    assert [slide.path.name for slide in store._kept] == ["b.png", "c.png"]


def test_slide_that_is_gone_or_changed_is_refused_at_once_and_later(slide, tmp_path):
    copy = tmp_path / slide.name
    copy.write_bytes(slide.read_bytes())
    images = tile([copy], tmp_path / "t.parquet", "coordinates")
    with open(copy, "ab") as file:
        file.write(b"\0")
    size = slide.stat().st_size
    changed = rf"{copy}', from which tiles are read, has {size + 1} bytes and had {size} when it was tiled: bring that"
    copy_gone = rf"{copy}', from which tiles are read, is missing: bring that file back, or tile the slides again"
    for refused in (changed, copy_gone):
        with pytest.raises(ImageTableError, match=refused):
            images.load(np.array([0]))
        with pytest.raises(ImageTableError, match=refused):
            read_image_table(tmp_path / "t.parquet")
        copy.unlink(missing_ok=True)
    # It may come back in the same run.
    copy.write_bytes(slide.read_bytes())
    assert images.load(np.array([0])).shape == (1, 64, 64, 3)


def state(path, **changes):
    """Change what a table of places states of its slides."""
    table = pq.read_table(path)
    stated = json.loads(table.schema.metadata[b"slides"]) | changes
    write_table(table.replace_schema_metadata({"slides": json.dumps(stated)}), path)


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        (None, "has rows without an image, and states no slides with them: make it again"),
        (b"", "EOF while parsing"),
        (b"\xff", "does not state the slides that its tiles are read from"),
        (b"[" * 10**5, "does not state the slides"),
        (b"[]", "Input should be an object"),
        (b"{}", "'tile_px': Field required"),
        (b'{"tile_px": "64", "slides": {}}', "'tile_px': Input should be a valid integer"),
        (b'{"tile_px": 1000000, "slides": {}}', "'tile_px': Input should be less than or equal to 4096"),
        (b'{"tile_px": 64, "slides": {}, "more": 1}', "'more': Extra inputs are not permitted"),
        (
            b'{"tile_px": 64, "slides": {"A": {"path": 7, "size": 1}}}',
            "'slides.A.path': Input should be a valid string",
        ),
        (b'{"tile_px": 64, "slides": {"A": {"path": "/a", "size": -1}}}', "'slides.A.size': Input should be greater"),
        (b'{"tile_px": 64, "slides": {}}', "states no slide of 'TCGA-S1-0001', whose tiles it lacks"),
        (b'{"tile_px": 64, "slides": {"TCGA-S1-0001": {"path": "/a\\u0000", "size": 1}}}', r"'/a\\x00', .*is missing"),
        (b'{"tile_px": 64, "slides": {"TCGA-S1-0001": {"path": "/dev/zero", "size": 0}}}', "'/dev/zero', .*is missing"),
    ],
)
def test_malformed_statement_of_slides_is_refused(slide, tmp_path, stated, said):
    path = tmp_path / "t.parquet"
    tile([slide], path, "coordinates")
    write_table(pq.read_table(path).replace_schema_metadata(None if stated is None else {"slides": stated}), path)
    with pytest.raises(ImageTableError, match=said) as refused:
        read_image_table(path)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 700


@pytest.mark.parametrize("content", [b"no slide at all", b"II*\0" + bytes(300), b"\x89PNG\r\n\x1a\n" + bytes(50)])
def test_path_that_is_no_slide_is_refused(slide, tmp_path, content):
    (tmp_path / "other.svs").write_bytes(content)
    tile([slide], tmp_path / "t.parquet", "coordinates")
    entry = {"path": str(tmp_path / "other.svs"), "size": len(content)}
    state(tmp_path / "t.parquet", slides={"TCGA-S1-0001": entry})
    images = read_image_table(tmp_path / "t.parquet")
    with pytest.raises(ImageTableError, match=r"other\.svs', from which tiles are read, cannot be read: not a slide"):
        images.load(np.array([0]))


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("x", 900, "of 900 x 600 pixels has no tile of 64 pixels at 900, "),
        ("x", -1, "has no tile"),
        ("y", 2**31 - 1, "has no tile"),
        ("size", 1e300, "has no tile"),
        ("size", 1e-300, "has no tile"),
        ("size", -64.0, "has no tile"),
        ("size", float("nan"), "neither an image nor its place"),
        ("x", None, "neither an image nor its place"),
        ("source_id", None, "states no slide of "),
    ],
)
def test_place_outside_of_the_slide_is_refused(slide, tmp_path, column, value, said):
    path = tmp_path / "t.parquet"
    tile([slide], path, "coordinates")
    table = pq.read_table(path)
    cells = table[column].to_pylist()
    cells[0] = value
    field = table.schema.field(column)
    write_table(table.set_column(table.schema.get_field_index(column), field, pa.array(cells, field.type)), path)
    with pytest.raises(ImageTableError, match=said):
        read_image_table(path).load(np.array([0]))


def test_damaged_tile_of_a_slide_is_refused(slide, tmp_path):
    copy = tmp_path / slide.name
    copy.write_bytes(slide.read_bytes())
    images = tile([copy], tmp_path / "t.parquet", "coordinates")
    content = bytearray(copy.read_bytes())
    content[1000:-3000] = bytes(len(content) - 4000)
    copy.write_bytes(content)
    with pytest.raises(ImageTableError, match=r"TCGA-S1-0001\.svs', from which tiles are read, cannot be read: "):
        images.load(np.arange(len(images)))


def test_tile_of_a_slide_with_too_few_levels_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(pixels, "MAX_REGION_PX", 300 * 300)
    path = write_slide(tmp_path / "a.svs", tissue_picture(1024, 1024), 0.5)
    with openslide.OpenSlide(path) as slide:
        TileReader(slide, 256, 256)
        with pytest.raises(SlideError, match=r"too few levels: a tile of 301 x 301 pixels covers .* of its level 0"):
            TileReader(slide, 301, 256)


def test_path_that_no_table_can_state_is_refused(slide, tmp_path):
    folder = tmp_path / os.fsdecode(b"\xff")
    folder.mkdir()
    (folder / slide.name).write_bytes(slide.read_bytes())
    with pytest.raises(SlideError, match="is not UTF-8: rename its folders"):
        tile([folder / slide.name], tmp_path / "t.parquet", "coordinates")


def test_command_stores_places_and_refuses_stain_with_them(slide, tmp_path, monkeypatch):
    command = ["slide", "tile", slide.name, "--case-id", "A", "--tile-px", "64", "--store", "coordinates"]
    monkeypatch.chdir(slide.parent)
    run = partial(CliRunner().invoke, app)
    assert run([*command, "-o", str(tmp_path / "t.parquet")]).exit_code == 0
    monkeypatch.chdir(tmp_path)
    images = read_image_table(tmp_path / "t.parquet")
    assert images.load(np.array([0])).shape == (1, 64, 64, 3)
    refused = run([*command, "--options", '{"stain": "macenko"}', "-o", str(tmp_path / "o.parquet")])
    assert isinstance(refused.exception, ConfigError) and "'stain' is 'macenko'" in str(refused.exception)


@pytest.mark.parametrize("raised", [KeyboardInterrupt, RuntimeError])
def test_interruption_while_a_slide_is_opened_is_no_fault_of_the_slide(slide, monkeypatch, raised):
    stored = store.StoredSlide(slide, slide.stat().st_size, 64)
    opened = store.open_slide

    def fail(*_):
        raise raised("while it was opened")

    monkeypatch.setattr(store, "open_slide", fail)
    with pytest.raises(KeyboardInterrupt if raised is KeyboardInterrupt else ImageTableError):
        store.SlideTile(stored, 0, 0, 64.0).read()
    monkeypatch.setattr(store, "open_slide", opened)
    assert store.SlideTile(stored, 0, 0, 64.0).read().shape == (64, 64, 3), "it is opened anew"
