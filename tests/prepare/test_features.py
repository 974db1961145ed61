"""Files of patch features: what is read of them, and that no foreign file costs more than itself."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from mgi.errors import MissingInputError, SlideError
from mgi.prepare import features as features_stage
from mgi.prepare import hdf5
from mgi.prepare.features import (
    describe_unusable,
    fingerprint_features,
    import_features,
    inspect_features,
    list_features,
)
from mgi.train.data import iterate_images
from tests.prepare.features import WIDTH, write_features

VALUES = np.random.default_rng(1).normal(size=(6, WIDTH)).astype(np.float32)


def describe(slides):
    return describe_unusable(slides, inspect_features(slides)[1])


def run(folder: Path, **options) -> pd.DataFrame:
    """Import a folder and return the table of slides by source_id."""
    import_features(folder / "h5", folder / "images/features.parquet", folder / "sources.parquet", **options)
    return pd.read_parquet(folder / "sources.parquet").set_index("source_id")


@pytest.mark.parametrize(
    ("stored", "rtol"),
    [(VALUES, 0), (VALUES[None], 0), (VALUES.astype(np.float16), 1e-3), (VALUES.astype(np.float64), 0)],
)
def test_features_are_those_of_the_file_in_its_order(tmp_path, stored, rtol):
    coords = np.array([[512, 0], [0, 0], [7, 9], [0, 512], [3, 3], [70000, 1]])
    write_features(tmp_path / "h5/A.h5", stored, coords[None] if stored.ndim == 3 else coords)
    sources = run(tmp_path)
    assert sources.loc["A", ["status", "n_images", "table", "case_id"]].tolist() == ["ok", 6, "features", "A"]
    (found,) = iterate_images(tmp_path / "sources.parquet", {"A"})
    np.testing.assert_allclose(found.load(np.arange(6)), VALUES, rtol=rtol)
    assert found.features == WIDTH and found.frame[["x", "y"]].to_numpy().tolist() == coords.tolist()
    assert set(found.frame["size"]) == {512.0} and found.mpp is None


def test_features_are_read_in_blocks_of_whole_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(hdf5, "BLOCK_VALUES", 5 * WIDTH)
    values = np.random.default_rng(2).normal(size=(40, WIDTH)).astype(np.float32)
    write_features(tmp_path / "h5/A.h5", patches=40)
    with h5py.File(tmp_path / "h5/A.h5", "r+") as file:
        del file["features"]
        file.create_dataset("features", data=values, chunks=(3, WIDTH), compression="gzip")
    with hdf5.open_patches(tmp_path / "h5/A.h5") as patches:
        assert [len(block) for block in patches.iterate_features()] == [6] * 6 + [4]
    run(tmp_path)
    (found,) = iterate_images(tmp_path / "sources.parquet", {"A"})
    np.testing.assert_array_equal(found.load(np.arange(40)), values)


def test_each_slide_is_a_row_group_and_few_patches_of_it_are_read(tmp_path):
    for number, name in enumerate(["P1.A", "P1.B", "P2.A"]):
        write_features(tmp_path / f"h5/{name}.h5", patches=20, seed=number)
    sources = run(tmp_path, case_pattern="([^.]+)")
    assert sources.case_id.tolist() == ["P1", "P1", "P2"]
    assert pq.ParquetFile(tmp_path / "images/features.parquet").num_row_groups == 3
    parts = list(iterate_images(tmp_path / "sources.parquet", {"P1"}, images_per_source=3))
    assert [part.frame.source_id.unique().tolist() for part in parts] == [["P1.A"], ["P1.B"]]
    assert [part.frame.x.tolist() for part in parts] == [[0, 512 * 10, 512 * 19]] * 2


def test_unusable_patches_are_left_out_and_counted(tmp_path):
    values = VALUES.copy()
    values[1, 3], values[2, 0], values[4] = np.nan, np.inf, 0
    write_features(tmp_path / "h5/A.h5", values)
    write_features(tmp_path / "h5/B.h5", np.full_like(VALUES, np.nan))
    sources = run(tmp_path)
    assert json.loads(sources.dropped["A"]) == {"NaN or infinite": 2, "all zero": 1}
    assert sources.reason["B"] == "no usable features: of 6 patches 6 are NaN or infinite"
    (found,) = iterate_images(tmp_path / "sources.parquet", {"A", "B"})
    np.testing.assert_array_equal(found.load(np.arange(3)), VALUES[[0, 3, 5]])


def rewrite(path: Path, name: str, value: object) -> None:
    """Put something else in the place of a dataset."""
    with h5py.File(path, "r+") as file:
        del file[name]
        if isinstance(value, dict):
            file.create_dataset(name, **value)
        elif value is not None:
            file[name] = value


def virtual(path: Path) -> None:
    layout = h5py.VirtualLayout((6, WIDTH), "f4")
    layout[:] = h5py.VirtualSource("A.h5", "features", (6, WIDTH))
    with h5py.File(path, "r+") as file:
        del file["features"]
        file.create_virtual_dataset("features", layout)


def soft(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["other"] = h5py.ExternalLink("A.h5", "/")
        del file["features"]
        file["features"] = h5py.SoftLink("/other/features")


def claim(patches: int, width: int) -> Callable[[Path], None]:
    """Return a function that makes a file claim so many patches of so many values, of which it stores none."""

    def write(path: Path) -> None:
        for name, columns in (("features", width), ("coords", 2)):
            rewrite(path, name, {"shape": (patches, columns), "dtype": "f4", "chunks": (64, columns)})

    return write


def blosc(path: Path) -> None:
    """Compress the features by a filter that h5py does not have: written as stored, since no byte of it is read."""
    with h5py.File(path, "r+") as file:
        del file["features"]
        stored = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        stored.set_chunk((6, WIDTH))
        stored.set_filter(32001, h5py.h5z.FLAG_OPTIONAL)
        space = h5py.h5s.create_simple((6, WIDTH))
        made = h5py.h5d.create(file.id, b"features", h5py.h5t.IEEE_F32LE, space, stored)
        made.write_direct_chunk((0, 0), VALUES.tobytes())


def put(name: str, value: object) -> Callable[[Path], None]:
    """Return a function that puts something else in the place of a dataset."""
    return lambda path: rewrite(path, name, value)


UNWRITTEN = {"shape": (6, WIDTH), "dtype": "f4"}
FOREIGN = {
    "no HDF5": (lambda path: path.write_bytes(b"features"), "unreadable: no HDF5 file, or damaged"),
    "empty": (lambda path: path.write_bytes(b""), "unreadable: no HDF5 file, or damaged"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:900]), "unreadable: no HDF5 file, or damaged"),
    "pipe": (lambda path: (path.unlink(), os.mkfifo(path)), "unreadable: no regular file"),
    "dangling": (lambda path: (path.unlink(), path.symlink_to("gone.h5")), "unreadable: no regular file"),
    "no coords": (put("coords", None), "no dataset 'coords': it holds 'features'"),
    "group": (put("features", h5py.SoftLink("/")), "a link: 'features' may lie in another file"),
    "external": (put("features", h5py.ExternalLink("A.h5", "/features")), "a link: 'features' may lie"),
    "soft": (soft, "a link: 'features' may lie in another file"),
    "virtual": (virtual, "a link: 'features' may lie in another file"),
    "raw file": (
        put("features", UNWRITTEN | {"external": [("A.h5", 0, 4096)]}),
        "a link: 'features' may lie in another file",
    ),
    "counts": (put("coords", np.zeros((5, 2), int)), "counts differ: 6 features and 5 coord"),
    "3d": (put("coords", np.zeros((6, 3), int)), "no coordinates: 'coords' is (6, 3)"),
    "vector": (put("features", np.ones(WIDTH)), f"no patches: 'features' is ({WIDTH},)"),
    "none": (lambda path: write_features(path, patches=0), "no patches: both datasets are empty"),
    "text": (put("features", np.full((6, WIDTH), b"1")), "unexpected types: 'features' holds |S1"),
    "negative": (put("coords", np.full((6, 2), -5)), "impossible coordinates: 6 of 6, such as"),
    "microns": (put("coords", np.full((6, 2), 0.5)), "impossible coordinates: 6 of 6, such as"),
    "whole": (put("features", np.ones((6, WIDTH), np.int8)), "unexpected types: 'features' holds int8"),
    "filter": (blosc, "unreadable: 'features' is compressed by HDF5's filter 32001, which is not here"),
    "unwritten": (put("features", UNWRITTEN), "no features: its space was reserved and never written"),
    "long": (claim(2**21, WIDTH), "implausible size: it claims 2097152 patches of 16 values"),
    "wide": (claim(64, 2**15), "implausible size: it claims 64 patches of 32768 values"),
    "large": (claim(2**18, 2**13), "implausible size: it claims 262144 patches of 8192 values"),
    "chunk": (
        put("features", UNWRITTEN | {"chunks": (2**26, WIDTH), "maxshape": (None, WIDTH)}),
        "implausible size: 'features' is stored in chunks",
    ),
    "narrow": (
        lambda path: write_features(path, VALUES[:, :8]),
        "another encoder: features of 8 values, and of most slides 16",
    ),
}


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """A folder of two good files and one of each foreign kind, imported."""
    folder = tmp_path_factory.mktemp("foreign")
    for number, name in enumerate("AB"):
        write_features(folder / f"h5/{name}.h5", seed=number)
    for name, (spoil, _) in FOREIGN.items():
        spoil(write_features(folder / "h5" / f"{name.replace(' ', '-')}.h5"))
    return folder, run(folder), describe(list_features(folder / "h5"))


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_file_costs_itself_alone_and_says_why(foreign, name):
    _, sources, _ = foreign
    row = sources.loc[name.replace(" ", "-")]
    assert row.status == "skipped" and row.n_images == 0 and row.reason.startswith(FOREIGN[name][1])
    assert (sources.status == "ok").sum() == 2 and set(sources.index[sources.status == "ok"]) == {"A", "B"}


def test_headers_tell_beforehand_what_will_be_left_out(foreign):
    _, sources, sentences = foreign
    told = sum(int(sentence.split(" of ")[0]) for sentence in sentences)
    only_read = {"negative", "microns"}
    assert told == (sources.status == "skipped").sum() - len(only_read)
    assert (
        "1 of 28 files of features will be left out, 'counts': counts differ: 6 features and 5 coordinates" in sentences
    )


def test_reader_that_crashes_costs_its_file_alone(tmp_path, monkeypatch):
    def crash(path: Path) -> tuple[int, int]:
        if path.stem == "B":
            os.kill(os.getpid(), signal.SIGKILL)
        return hdf5.read_header(path)

    monkeypatch.setattr(features_stage, "read_header", crash)
    for number, name in enumerate("ABC"):
        write_features(tmp_path / f"h5/{name}.h5", seed=number)
    sources = run(tmp_path)
    assert sources.status.tolist() == ["ok", "skipped", "ok"]
    assert sources.reason["B"] == "unreadable: the reader was killed by SIGKILL"


def test_features_of_two_encoders_are_refused_with_both_named(tmp_path):
    write_features(tmp_path / "h5/A.h5")
    write_features(tmp_path / "h5/B.h5", VALUES[:, :8])
    with pytest.raises(SlideError, match="several encoders: 16 values in 'A' and 8 values in 'B'; keep those of one"):
        run(tmp_path)
    (tmp_path / "h5/A.h5").write_bytes(b"x")
    (tmp_path / "h5/B.h5").write_bytes(b"x")
    with pytest.raises(SlideError, match=r"none of 2 files of features can be used: .*A.h5: unreadable"):
        run(tmp_path)


def test_missing_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(MissingInputError, match="not found"):
        run(tmp_path)
    (tmp_path / "h5").mkdir()
    (tmp_path / "h5/A.pt").touch()
    with pytest.raises(SlideError, match=r"holds no slide; .h5 .hdf5 are read"):
        run(tmp_path)


def test_table_states_case_and_site(tmp_path):
    write_features(tmp_path / "h5/a.h5")
    write_features(tmp_path / "h5/b.h5", seed=1)
    (tmp_path / "h5/slides.csv").write_text("case_id,slide,site\n001,a.h5,Ulm\n002,b.h5,Jena\n")
    assert describe(list_features(tmp_path / "h5/slides.csv")) == []
    import_features(tmp_path / "h5/slides.csv", tmp_path / "images/features.parquet", tmp_path / "sources.parquet")
    sources = pd.read_parquet(tmp_path / "sources.parquet")
    (tmp_path / "h5/slides.csv").write_text("case_id,slide,mpp\n001,a.h5,0.25\n002,b.h5,\n")
    (sentence,) = describe(list_features(tmp_path / "h5/slides.csv"))
    assert sentence == "1 slides state an mpp or an annotation, which features do not use: 'a'"
    assert sources[["case_id", "site"]].to_numpy().tolist() == [["001", "Ulm"], ["002", "Jena"]]


def test_fingerprint_changes_with_a_file_and_whose_it_is(tmp_path):
    path = write_features(tmp_path / "h5/A.h5")
    before = fingerprint_features(list_features(tmp_path / "h5"))
    assert fingerprint_features(list_features(tmp_path / "h5")) == before
    assert fingerprint_features(list_features(tmp_path / "h5", "(.)")) == before
    os.utime(path, (1, 1))
    after = fingerprint_features(list_features(tmp_path / "h5"))
    (tmp_path / "h5/notes.txt").touch()
    assert after != before and fingerprint_features(list_features(tmp_path / "h5")) == after
