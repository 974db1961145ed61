"""Slides of the Imaging Data Commons: told by its index, fetched by its library, believed when the files agree."""

import gzip
import shutil
import sys
import types

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from mgi.acquire import fetch as stage
from mgi.acquire import idc
from mgi.acquire.manifest import SLIDES
from mgi.cli import app
from mgi.config import TileOptions
from mgi.errors import FetchError, MissingPackageError
from mgi.prepare.slides import tile_slides
from mgi.tables import MANIFEST_SCHEMA, write_table

from .dicom import write_slide

TUMOUR, NORMAL = "TCGA-A1-A0SB-01Z-00-DX1", "TCGA-A1-A0SB-11A-01-TS2"
RECORDS = {
    TUMOUR: ("00000001-2222-4333-8444-555555555555", "1.2.826.1", "FFPE HE TP DX1"),
    NORMAL: ("00000002-2222-4333-8444-555555555555", "1.2.826.2", "Frozen HE NT TS2"),
}


class Client:
    """In place of the library's client: its index, and its one request, which copies from a folder per series."""

    def __init__(self, archive):
        self.archive, self.requests = archive, []
        rows = []
        for barcode, (_, series, description) in RECORDS.items():
            sizes = [path.stat().st_size for path in (archive / series).iterdir()]
            rows.append(
                {"PatientID": barcode[:12], "Modality": "SM", "SeriesDescription": description}
                | {"SeriesInstanceUID": series, "series_aws_url": f"s3://idc-open-data/{series}/*"}
                | {"instanceCount": len(sizes), "series_size_MB": sum(sizes) / 1e6}
            )
        self.index = pd.DataFrame(rows)

    def get_idc_version(self):
        return "v25"

    def download_dicom_series(self, series, folder, **options):
        self.requests.append((series, folder, options))
        for name in series:
            shutil.copytree(self.archive / name, f"{folder}/{name}", dirs_exist_ok=True)


@pytest.fixture
def client(tmp_path, monkeypatch):
    tissue = np.full((256, 320, 3), (200, 120, 180), np.uint8)
    for barcode, (_, series, _) in RECORDS.items():
        folder = tmp_path / "archive" / series
        folder.mkdir(parents=True)
        write_slide(folder / "b.dcm", tissue, barcode, series)
        (folder / "a.dcm").write_bytes(b"a label")
    made = Client(tmp_path / "archive")
    module = types.ModuleType("idc_index")
    module.IDCClient = types.SimpleNamespace(client=lambda: made)
    monkeypatch.setitem(sys.modules, "idc_index", module)
    return made


@pytest.fixture
def manifest(tmp_path):
    rows = [
        dict.fromkeys(MANIFEST_SCHEMA.names)
        | {"file_id": file_id, "file_name": f"{barcode}.A-B.svs", "md5": "0" * 32, "size": 1, "data_type": SLIDES}
        | {"case_id": barcode[:12], "aliquot": barcode}
        for barcode, (file_id, *_) in RECORDS.items()
    ]
    write_table(pa.Table.from_pylist(rows, MANIFEST_SCHEMA), tmp_path / "manifest.parquet")
    return tmp_path / "manifest.parquet"


def test_slides_are_asked_for_by_series_and_tiled_from_where_they_are_put(client, manifest, tmp_path):
    partial, out = tmp_path / "partial", tmp_path / "out"
    idc.fetch_slides(manifest, out, partial=partial, receipt=tmp_path / "receipt.tsv")
    options = {"dirTemplate": "%SeriesInstanceUID", "use_s5cmd_sync": True, "show_progress_bar": False}
    assert client.requests == [(["1.2.826.1", "1.2.826.2"], str(partial), options)]
    assert list(partial.iterdir()) == []
    receipt = pd.read_csv(tmp_path / "receipt.tsv", sep="\t", dtype=str).set_index("file_id")
    for barcode, (file_id, series, _) in RECORDS.items():
        assert receipt.series_instance_uid[file_id] == series
        name = receipt.file_name[file_id]
        assert {path.name for path in (out / file_id).iterdir()} == {f"{barcode}.A-B.dcm", "a.dcm"}
        tiles, status = tmp_path / f"{barcode}.parquet", tmp_path / f"{barcode}.status.parquet"
        tile_slides([out / file_id / name], [barcode[:12]], tiles, TileOptions(mpp=1.0, tile_px=64), status)
        assert pd.read_parquet(status)[["source_id", "status", "n_images"]].values.tolist() == [[barcode, "ok", 4]]
    assert set(receipt.idc_version) == {"v25"} and set(receipt.state) == {"complete"}


def test_complete_slides_are_kept_and_only_the_rest_is_asked_for(client, manifest, tmp_path):
    idc.fetch_slides(manifest, tmp_path / "out", file_ids=[RECORDS[TUMOUR][0]])
    idc.fetch_slides(manifest, tmp_path / "out")
    idc.fetch_slides(manifest, tmp_path / "out")
    assert [series for series, *_ in client.requests] == [["1.2.826.1"], ["1.2.826.2"]]


@pytest.mark.parametrize("spoilt", ["a.dcm", "b.dcm"])
def test_damaged_slide_is_fetched_again(client, manifest, tmp_path, spoilt):
    idc.fetch_slides(manifest, tmp_path / "out")
    folder = tmp_path / "out" / RECORDS[NORMAL][0]
    path = folder / spoilt if spoilt == "a.dcm" else folder / f"{NORMAL}.A-B.dcm"
    path.write_bytes(b"short")
    idc.fetch_slides(manifest, tmp_path / "out")
    assert path.read_bytes() == (client.archive / RECORDS[NORMAL][1] / spoilt).read_bytes()
    assert len(list(folder.iterdir())) == 2


def lose(folder):
    (folder / "a.dcm").unlink()


def spoil(folder):
    (folder / "b.dcm").write_bytes(bytes((folder / "b.dcm").stat().st_size))


def mistake(folder):
    content = (folder / "b.dcm").read_bytes()
    (folder / "b.dcm").write_bytes(content.replace(b"A0SB", b"A0SC"))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lose, "1 of 2 files arrived"),
        (spoil, "OpenSlide cannot read it"),
        (mistake, "its files say that it is 'TCGA-A1-A0SC-11A-01-TS2'"),
    ],
)
def test_series_that_is_not_the_slide_is_refused_and_the_others_kept(client, manifest, tmp_path, harm, said):
    harm(client.archive / RECORDS[NORMAL][1])
    with pytest.raises(FetchError, match=rf"1 of 2 slides.*{said}.*{NORMAL} \(s3://idc-open-data/1.2.826.2/"):
        idc.fetch_slides(manifest, tmp_path / "out", receipt=tmp_path / "receipt.tsv")
    assert not (tmp_path / "receipt.tsv").exists()
    assert not (tmp_path / "out" / RECORDS[NORMAL][0]).exists()
    assert (tmp_path / "out" / RECORDS[TUMOUR][0]).is_dir()


def test_slide_that_the_index_does_not_tell_is_refused(client, manifest, tmp_path):
    with pytest.raises(FetchError, match="has 0 series 'Frozen HE TP BS1' of TCGA-A1-A0SB"):
        idc.find_series(client.index, "TCGA-A1-A0SB-01A-01-BS1")
    client.index = pd.concat([client.index, client.index])
    with pytest.raises(FetchError, match=f"2 series.*does not say which is {TUMOUR}"):
        idc.fetch_slides(manifest, tmp_path / "out")
    assert client.requests == []


def test_full_disk_is_reported_before_any_request(client, manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(stage.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=1000))
    with pytest.raises(FetchError, match="make room"):
        idc.fetch_slides(manifest, tmp_path / "out")
    assert client.requests == []


def test_absent_library_is_named_with_how_to_get_it(manifest, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "idc_index", None)
    with pytest.raises(MissingPackageError, match="pip install idc-index"):
        idc.fetch_slides(manifest, tmp_path / "out")


def test_command_line_passes_every_option_to_the_fetch(client, manifest, tmp_path):
    options = {
        "--file-id": RECORDS[NORMAL][0],
        "--partial": tmp_path / "partial",
        "--receipt": tmp_path / "r.tsv",
    }
    given = [f"{name}={value}" for name, value in options.items()]
    done = CliRunner().invoke(app, ["idc", "fetch", str(manifest), "-o", str(tmp_path / "out"), *given])
    assert done.exit_code == 0, done.output
    assert [series for series, *_ in client.requests] == [["1.2.826.2"]]
    assert (tmp_path / "r.tsv").exists()


def test_real_index_finds_all_but_94_slides_of_tcga(data_dir):
    data = pytest.importorskip("idc_index_data", reason="idc-index is not installed")
    columns = ["PatientID", "Modality", "SeriesDescription", "SeriesInstanceUID"]
    index = pd.read_parquet(data.IDC_INDEX_PARQUET_FILEPATH, columns=columns, filters=[("Modality", "==", "SM")])
    by_patient = dict(list(index.groupby("PatientID")))
    with gzip.open(data_dir / "gdc/manifest_all_tcga_svs.tsv.gz", "rt") as handle:
        barcodes = pd.read_csv(handle, sep="\t").filename.str.split(".").str[0]
    found, refused = {}, []
    for barcode in barcodes:
        try:
            found[barcode] = idc.find_series(by_patient[barcode[:12]], barcode).SeriesInstanceUID
        except FetchError:
            refused.append(barcode)
    assert len(set(found.values())) == len(found) == 29_981
    assert len(refused) == 94
    assert sum("-DX" in barcode for barcode in refused) == 4
