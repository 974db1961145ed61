"""Importing MRI: the kaggle_3m layout and NIfTI."""

import gzip
import io
import os
import shutil
import struct
import tracemalloc
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import tifffile
from PIL import Image

from mgi.codecs import decode_image, decode_mask
from mgi.config import MriOptions
from mgi.errors import CohortError, MissingInputError, MriError
from mgi.prepare import kaggle
from mgi.prepare.kaggle import read_volume
from mgi.prepare.mri import DEVIATION, MEDIAN, import_mri
from mgi.prepare.series import find_series, fingerprint
from tests.prepare.nifti import brain, write_nifti

NAME = "TCGA_CS_4941_19960909"
OTHER = "TCGA_DU_5849_19950405"


def write_slices(folder: Path, numbers: list[int], size: int = 32) -> None:
    folder.mkdir(parents=True)
    for number in numbers:
        Image.fromarray(np.full((size, size, 3), number, np.uint8)).save(folder / f"{folder.name}_{number}.tif")
        mask = np.zeros((size, size), np.uint8)
        mask[:number] = 255
        Image.fromarray(mask).save(folder / f"{folder.name}_{number}_mask.tif")


def test_slices_come_in_numeric_order_with_their_own_masks(tmp_path):
    write_slices(tmp_path / NAME, [10, 2, 1])
    (series,) = find_series(tmp_path)
    volume = read_volume(series.folder)
    assert series.case_id == "TCGA-CS-4941"
    assert volume.numbers.tolist() == [1, 2, 10]
    assert volume.image[:, 0, 0, 0].tolist() == [1, 2, 10]
    assert volume.mask.sum(axis=(1, 2)).tolist() == [32, 64, 320]


def test_missing_folder_names_the_source_of_the_set(tmp_path):
    with pytest.raises(MissingInputError, match="Kaggle"):
        find_series(tmp_path / "nowhere")


def test_file_that_is_no_zip_is_refused(tmp_path):
    (tmp_path / "archive.zip").write_bytes(b"PK\3\4 and then the download broke off")
    with pytest.raises(MissingInputError, match=r"neither a folder nor a whole zip; get the set .*kaggle\.com"):
        find_series(tmp_path / "archive.zip")


@pytest.fixture
def archive(tmp_path) -> Path:
    """The set as Kaggle serves it: every patient twice in one zip."""
    for root in ("archive/kaggle_3m", "archive/lgg-mri-segmentation/kaggle_3m"):
        write_slices(tmp_path / root / NAME, [10, 2, 1])
        write_slices(tmp_path / root / OTHER, [1])
        (tmp_path / root / "data.csv").touch()
    return Path(shutil.make_archive(str(tmp_path / "archive"), "zip", tmp_path / "archive"))


def test_published_zip_is_read_as_its_folder_is(archive):
    packed, unpacked = find_series(archive), find_series(archive.with_suffix("") / "kaggle_3m")
    assert [series.source_id for series in packed] == [NAME, OTHER]
    for one, other in zip(packed, unpacked, strict=True):
        assert (one.source_id, one.case_id) == (other.source_id, other.case_id)
        one, other = read_volume(one.folder), read_volume(other.folder)
        assert (one.numbers == other.numbers).all()
        assert (one.image == other.image).all() and (one.mask == other.mask).all()


def test_unpacked_archive_is_found_within(archive):
    assert [series.source_id for series in find_series(archive.with_suffix(""))] == [NAME, OTHER]


def test_damaged_slice_in_a_zip_is_named(archive):
    content = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as packed:
        info = packed.getinfo(f"kaggle_3m/{NAME}/{NAME}_2.tif")
    start = info.header_offset + 30 + len(info.filename)
    content[start : start + info.compress_size] = bytes(info.compress_size)
    archive.write_bytes(content)
    with pytest.raises(MriError, match=r"unreadable image: .*_2\.tif"):
        read_volume(find_series(archive)[0].folder)


def test_folder_without_patients_is_refused(tmp_path):
    (tmp_path / "notes").mkdir()
    with pytest.raises(MissingInputError, match="TCGA_CS_4941_19960909"):
        find_series(tmp_path)


def test_two_folders_of_one_case_are_both_named(tmp_path):
    write_slices(tmp_path / NAME, [1])
    write_slices(tmp_path / "TCGA_CS_4941_20010101", [1])
    with pytest.raises(CohortError, match=r"TCGA-CS-4941.*19960909.*20010101"):
        find_series(tmp_path)


def test_fingerprint_changes_with_a_changed_added_or_removed_file(tmp_path):
    write_slices(tmp_path / NAME, [1, 2])
    (tmp_path / "notes.txt").touch()
    seen = [fingerprint(tmp_path, find_series(tmp_path))]
    assert fingerprint(tmp_path, find_series(tmp_path)) == seen[0]
    mask = tmp_path / NAME / f"{NAME}_2_mask.tif"
    mask.touch()
    seen.append(fingerprint(tmp_path, find_series(tmp_path)))
    (tmp_path / NAME / f"{NAME}_3.tif").touch()
    seen.append(fingerprint(tmp_path, find_series(tmp_path)))
    mask.unlink()
    seen.append(fingerprint(tmp_path, find_series(tmp_path)))
    assert len(set(seen)) == 4


def test_slice_without_mask_is_named(tmp_path):
    write_slices(tmp_path / NAME, [1, 2])
    (tmp_path / NAME / f"{NAME}_2_mask.tif").unlink()
    with pytest.raises(MriError, match=r"missing mask: .*_2_mask\.tif"):
        read_volume(find_series(tmp_path)[0].folder)


def test_mask_of_another_shape_is_named(tmp_path):
    write_slices(tmp_path / NAME, [1])
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(tmp_path / NAME / f"{NAME}_1_mask.tif")
    with pytest.raises(MriError, match="16 x 16"):
        read_volume(find_series(tmp_path)[0].folder)


def test_truncated_slice_is_named(tmp_path):
    write_slices(tmp_path / NAME, [1])
    path = tmp_path / NAME / f"{NAME}_1.tif"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(MriError, match=r"unreadable image: .*_1\.tif"):
        read_volume(find_series(tmp_path)[0].folder)


def imported(folder, tmp_path, **options):
    options = MriOptions(image_px=32, **options)
    import_mri(folder, tmp_path / "t.parquet", tmp_path / "s.parquet", options)
    return pq.read_table(tmp_path / "t.parquet").to_pandas(), pq.read_table(tmp_path / "s.parquet").to_pylist()


@pytest.mark.parametrize("code", ["LPS", "RAS", "PSR", "ILA"])
def test_nifti_is_read_whatever_its_orientation(tmp_path, code):
    write_nifti(tmp_path / "in" / "BraTS20_Training_001", "BraTS20_Training_001", brain(), code=code)
    tiles, (row,) = imported(tmp_path / "in", tmp_path)
    assert (row["source_id"], row["case_id"], row["status"]) == ("BraTS20_Training_001",) * 2 + ("ok",)
    assert (row["mpp"], row["slice_mm"], row["tumour_px"], row["has_tumour"]) == (1000, 3, 24, True)
    assert row["classes"] == '{"0": 2376, "2": 20, "4": 4}' and row["dropped"] == '{"sequences not read": 1}'
    assert tiles.z.tolist() == [0, 1, 2, 3, 4] and set(tiles["size"]) == {24}
    masks = np.stack([decode_mask(mask) for mask in tiles["mask"]])
    assert masks.any(axis=(1, 2)).tolist() == [False, False, False, True, False]
    rows, columns = np.nonzero(masks[3])
    # The slice is shown from below: the patient's left is at the right; padding is at the right.
    assert (columns.min(), columns.max() + 1) == pytest.approx((12 * 32 / 24, 16 * 32 / 24), abs=1)
    assert (rows.min(), rows.max() + 1) == pytest.approx((14 * 32 / 24, 20 * 32 / 24), abs=1)


def test_labels_and_channels_are_chosen(tmp_path):
    write_nifti(tmp_path / "in" / "a", "a", brain())
    _, (row,) = imported(tmp_path / "in", tmp_path, labels=[4], channels=["t2", "t2", "flair"])
    assert row["tumour_px"] == 4


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"t1ce": None}, "missing sequence: no file of t1ce"),
        ({"seg": None}, "missing sequence: no file of seg"),
        ({"seg": brain()["seg"] * 0.4}, "labels are no whole numbers"),
        ({"flair": np.full((20, 24, 5), np.nan)}, "NaN"),
        ({"flair": np.zeros((20, 24, 6), np.int16)}, "grids differ"),
        ({"seg": -np.eye(20, 24)[..., None].repeat(5, 2)}, "not labels"),
        ({"flair": np.zeros((20, 24, 5, 2), np.int16)}, "not a volume"),
    ],
)
def test_skips_invalid_nifti_with_its_reason(tmp_path, changes, reason):
    write_nifti(tmp_path / "in" / "a", "a", brain())
    write_nifti(tmp_path / "in" / "b", "b", brain())
    for key, volume in changes.items():
        (tmp_path / "in" / "a" / f"a_{key}.nii.gz").unlink()
        if volume is not None:
            nib.save(
                nib.Nifti1Image(volume.astype(np.float32), np.diag([-1.0, -1, 3, 1])),
                tmp_path / "in" / "a" / f"a_{key}.nii.gz",
            )
    _, (one, other) = imported(tmp_path / "in", tmp_path)
    assert one["status"] == "skipped" and reason in one["reason"] and other["status"] == "ok"


def test_nifti_names_of_other_releases_are_understood(tmp_path):
    renamed = {"t1": "t1n", "t1ce": "t1c", "t2": "t2w", "flair": "t2f", "seg": "seg"}
    name = "TCGA-CS-4941_2000.09.05"
    write_nifti(tmp_path / "in" / "deep" / name, name, {renamed[key]: volume for key, volume in brain().items()})
    _, (row,) = imported(tmp_path / "in", tmp_path)
    assert (row["source_id"], row["case_id"], row["status"]) == (name, "TCGA-CS-4941", "ok")


@pytest.mark.parametrize("label", ["segm", "tumor_segmentation"])
def test_labels_of_other_releases_are_read_and_those_of_no_series_named(tmp_path, caplog, label):
    folder = tmp_path / "in" / "UCSF-PDGM-0004"
    write_nifti(folder, "UCSF-PDGM-0004", {label if key == "seg" else key: v for key, v in brain().items()})
    write_nifti(folder, "UCSF-PDGM-0004_parenchyma", {"segmentation": brain()["seg"]})
    _, (row,) = imported(tmp_path / "in", tmp_path)
    assert (row["case_id"], row["status"], row["has_tumour"]) == ("UCSF-PDGM-0004", "ok", True)
    assert "1 files of labels have the name of no series and are left out: 'UCSF-PDGM-0004_parenchyma" in caplog.text


@pytest.mark.parametrize(
    "names",
    [
        ("BraTS-GLI-00001-000", "BraTS-GLI-00001-001"),
        ("UPENN-GBM-00001_11", "UPENN-GBM-00001_21"),
        ("sub-01_ses-1", "sub-01_ses-2"),
    ],
)
def test_visits_of_one_patient_are_not_two_patients(tmp_path, names):
    for name in (*names, "BraTS-GLI-00002-000", "UPENN-GBM-00002_11", "sub-02_ses-1", "BraTS20_Training_001"):
        write_nifti(tmp_path / "in" / name, name, brain())
    with pytest.raises(CohortError, match=f"1 patients have several MRI series, the first '{names[0]}', '{names[1]}'"):
        imported(tmp_path / "in", tmp_path)
    shutil.rmtree(tmp_path / "in" / names[1])
    _, rows = imported(tmp_path / "in", tmp_path)
    assert len(rows) == 5 and {row["status"] for row in rows} == {"ok"}


def test_labels_without_background_are_not_all_tumour(tmp_path):
    write_nifti(tmp_path / "in" / "a", "a", brain() | {"seg": brain()["seg"] + 1})
    _, (row,) = imported(tmp_path / "in", tmp_path)
    assert row["status"] == "skipped" and row["reason"].startswith("no background: its labels are '1'")
    _, (row,) = imported(tmp_path / "in", tmp_path, labels=[5])
    assert row["tumour_px"] == 4


def test_stated_label_that_no_series_has_is_named(tmp_path, caplog):
    seg = brain()["seg"]
    write_nifti(tmp_path / "in" / "a", "a", brain() | {"seg": np.where(seg == 4, 3, seg)})
    imported(tmp_path / "in", tmp_path, labels=[2, 4])
    assert "no series has the label 4, which is stated to be tumour; they have 0, " in caplog.text


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b", b"\x5c\x01\0\0" + bytes(344), b"%!PS"])
def test_damaged_nifti_is_skipped(tmp_path, content):
    write_nifti(tmp_path / "in" / "a", "a", brain())
    (tmp_path / "in" / "a" / "a_t1.nii.gz").write_bytes(content)
    _, (row,) = imported(tmp_path / "in", tmp_path)
    assert row["status"] == "skipped" and row["reason"].split(":")[0] in ("unreadable image", "not a volume")


def test_nifti_header_that_claims_too_much_is_refused(tmp_path):
    write_nifti(tmp_path / "in" / "a", "a", brain())
    path = tmp_path / "in" / "a" / "a_t1.nii.gz"
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[40:48] = struct.pack("<4h", 3, 30000, 30000, 30000)
    path.write_bytes(gzip.compress(bytes(content)))
    _, (row,) = imported(tmp_path / "in", tmp_path)
    assert "implausible size" in row["reason"]


def test_nifti_is_unpacked_no_further_than_its_header_says(tmp_path):
    write_nifti(tmp_path / "in" / "a", "a", brain())
    path = tmp_path / "in" / "a" / "a_t1.nii.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + bytes(40 << 20)))
    tracemalloc.start()
    _, (row,) = imported(tmp_path / "in", tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()
    assert "larger than its header says" in row["reason"]


@pytest.mark.parametrize("name", ["/a_1.tif", "a//a_1.tif", "../a/a_1.tif", "a/./a_1.tif", "a\\a_1.tif", "/", "//"])
def test_zip_with_an_improper_name_is_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), b"")
    with pytest.raises(MissingInputError, match="proper name"):
        find_series(tmp_path / "a.zip")


def test_files_of_the_system_are_ignored_and_others_counted(tmp_path):
    write_slices(tmp_path / "in" / "deep" / "Patient 7".replace(" ", "-"), [1, 2])
    folder = tmp_path / "in" / "deep" / "Patient-7"
    for name in ("._Patient-7_1.tif", "._Patient-7_1_mask.tif", "Thumbs.db", ".DS_Store", "notes.txt"):
        (folder / name).write_bytes(b"junk")
    _, (row,) = imported(tmp_path / "in", tmp_path)
    assert (row["case_id"], row["n_images"], row["dropped"]) == ("Patient-7", 2, '{"files not read": 1}')


def test_masks_of_a_series_mean_one_thing(tmp_path):
    write_slices(tmp_path / NAME, [1, 2])
    mask = tmp_path / NAME / f"{NAME}_2_mask.tif"
    Image.fromarray(np.asarray(Image.open(mask)) // 255 * 2).save(mask)
    with pytest.raises(MriError, match="beside 0 its masks have '2', '255'"):
        read_volume(tmp_path / NAME)


def test_gap_between_slices_is_told(tmp_path, caplog):
    write_slices(tmp_path / NAME, [1, 4])
    read_volume(tmp_path / NAME)
    assert "lacks 2 slices between others, by their numbers: '2', '3'" in caplog.text


def test_barcode_in_lower_case_is_the_same_patient(tmp_path):
    write_slices(tmp_path / NAME, [1])
    write_slices(tmp_path / "tcga-cs-4941_2", [1])
    with pytest.raises(CohortError, match="belong to the case TCGA-CS-4941"):
        find_series(tmp_path)


@pytest.mark.parametrize("form", ["bool", "rgb"])
def test_masks_are_read_as_written(tmp_path, form):
    write_slices(tmp_path / "in" / NAME, [5])
    mask = np.zeros((32, 32), bool)
    mask[:5] = True
    pixels = mask if form == "bool" else np.stack([mask * np.uint8(255)] * 3, axis=-1)
    tifffile.imwrite(tmp_path / "in" / NAME / f"{NAME}_5_mask.tif", pixels)
    tiles, (row,) = imported(tmp_path / "in", tmp_path)
    assert row["tumour_px"] == 5 * 32 and np.array_equal(decode_mask(tiles["mask"][0]), mask)


def test_slice_that_is_no_image_is_skipped(tmp_path):
    write_slices(tmp_path / "in" / NAME, [1])
    write_slices(tmp_path / "in" / OTHER, [1])
    (tmp_path / "in" / NAME / f"{NAME}_1.tif").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n")
    _, (one, other) = imported(tmp_path / "in", tmp_path)
    assert one["status"] == "skipped" and one["reason"].startswith("unreadable image") and other["status"] == "ok"


def test_zip_that_lies_about_a_size_is_read_no_further_than_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(kaggle, "MAX_SLICE_BYTES", 1 << 20)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as writer:
        writer.writestr(f"{NAME}/{NAME}_1.tif", b"\0" * (20 << 20))
    content = bytearray(buffer.getvalue())
    entry = content.find(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = struct.pack("<I", 2 << 20)
    (tmp_path / "a.zip").write_bytes(content)
    tracemalloc.start()
    with pytest.raises(MriError, match="larger than 1 MiB"):
        read_volume(find_series(tmp_path / "a.zip")[0].folder)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_pipe_among_the_slices_is_not_waited_for(tmp_path):
    write_slices(tmp_path / "in" / NAME, [1])
    (tmp_path / "in" / NAME / f"{NAME}_1.tif").unlink()
    os.mkfifo(tmp_path / "in" / NAME / f"{NAME}_1.tif")
    _, (row,) = imported(tmp_path / "in", tmp_path)
    assert "no regular file" in row["reason"]


def test_slices_that_are_not_square_are_padded(tmp_path):
    folder = tmp_path / "in" / NAME
    folder.mkdir(parents=True)
    Image.fromarray(np.full((24, 32, 3), 90, np.uint8)).save(folder / f"{NAME}_1.tif")
    Image.fromarray(np.full((24, 32), 255, np.uint8)).save(folder / f"{NAME}_1_mask.tif")
    tiles, (row,) = imported(tmp_path / "in", tmp_path)
    assert row["tumour_px"] == 24 * 32 and set(tiles["size"]) == {32}
    assert decode_mask(tiles["mask"][0]).sum() == 24 * 32 and decode_mask(tiles["mask"][0])[:24].all()


def test_two_folders_of_one_name_with_other_slices_are_refused(tmp_path):
    write_slices(tmp_path / "a" / NAME, [1])
    write_slices(tmp_path / "b" / NAME, [1, 2])
    with pytest.raises(CohortError, match=rf"both {NAME}"):
        find_series(tmp_path)


def test_scalp_and_air_do_not_set_the_contrast_of_the_brain(tmp_path):
    """Two series of one brain, one with bright fat in a scanner's own scale and one with air that is not zero."""
    random = np.random.default_rng(0)
    brain = random.normal(60, 8, (3, 64, 64, 3)).round()
    head, scalp = np.zeros((64, 64), bool), np.zeros((64, 64), bool)
    head[8:56, 8:56] = True
    scalp[8:12, 8:56] = True
    dark = np.where(head[..., None], brain, 0)
    bright = np.where(scalp[..., None], 250, np.where(head[..., None], brain / 2, 0)).round()
    bright[:, ~head, 0] = 104
    for name, image in (("TCGA_AA_0001_20000101", dark), ("TCGA_AA_0002_20000101", bright)):
        (tmp_path / name).mkdir()
        for number, plane in enumerate(image.astype(np.uint8), 1):
            Image.fromarray(plane).save(tmp_path / name / f"{name}_{number}.tif")
            Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / name / f"{name}_{number}_mask.tif")
    import_mri(tmp_path, tmp_path / "mri.parquet", None, MriOptions(image_px=64))
    table = pd.read_parquet(tmp_path / "mri.parquet")
    pixels = np.stack([decode_image(row) for row in table.image]).reshape(2, 3, 64, 64, 3)
    inside = pixels[:, :, 16:48, 16:48]
    assert np.abs(np.median(inside, axis=(1, 2, 3)) - MEDIAN).max() <= 3
    assert np.abs(inside.std(axis=(1, 2, 3)) - DEVIATION).max() <= 6
    assert not pixels[:, :, ~head].any()


def test_missing_sequences_filled_with_zero_do_not_hide_the_head(tmp_path):
    name = "TCGA_AA_0001_20000101"
    (tmp_path / name).mkdir()
    image = np.zeros((64, 64, 3), np.uint8)
    image[16:48, 16:48, 1] = np.random.default_rng(0).normal(60, 8, (32, 32))
    Image.fromarray(image).save(tmp_path / name / f"{name}_1.tif")
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / name / f"{name}_1_mask.tif")
    import_mri(tmp_path, tmp_path / "mri.parquet", None, MriOptions(image_px=64))
    table = pd.read_parquet(tmp_path / "mri.parquet")
    pixels = decode_image(table.image[0])
    assert table.tissue_fraction[0] == 0.25
    assert abs(pixels[16:48, 16:48, 1].std() - DEVIATION) < 6 and not pixels[:8].any()


@pytest.mark.parametrize("air", [0.0, -1.5])
def test_scores_below_zero_are_as_much_brain_as_those_above(tmp_path, air):
    random = np.random.default_rng(0)
    brain = np.zeros((32, 32, 5), bool)
    brain[8:24, 8:24] = True
    volume = np.where(brain, random.normal(0, 1, (4, 32, 32, 5)), air).astype(np.float32)
    folder = tmp_path / "P1"
    folder.mkdir()
    for name, sequence in zip(("t1", "t1ce", "t2", "flair"), volume, strict=True):
        nib.save(nib.Nifti1Image(sequence, np.eye(4)), folder / f"P1_{name}.nii.gz")
    nib.save(nib.Nifti1Image(brain.astype(np.uint8), np.eye(4)), folder / "P1_seg.nii.gz")
    import_mri(tmp_path, tmp_path / "mri.parquet", None, MriOptions(image_px=32))
    table = pd.read_parquet(tmp_path / "mri.parquet")
    assert np.allclose(table.tissue_fraction, 0.25)
    pixels = np.stack([decode_image(row) for row in table.image])
    inside = pixels[:, 8:24, 8:24]
    assert abs(np.median(inside) - MEDIAN) <= 3 and abs(inside.std() - DEVIATION) < 4 and not pixels[:, :7].any()


@pytest.mark.parametrize("scale", [3e38, 1e-40])
def test_intensities_that_cannot_be_computed_with_are_refused(tmp_path, scale):
    volume = (scale * np.random.default_rng(0).choice([-1, 1], (16, 16, 3))).astype(np.float32)
    folder = tmp_path / "P1"
    folder.mkdir()
    for name in ("t1", "t1ce", "t2", "flair", "seg"):
        scan = np.ones(volume.shape, np.uint8) if name == "seg" else volume
        nib.save(nib.Nifti1Image(scan, np.eye(4)), folder / f"P1_{name}.nii.gz")
    with pytest.raises(MriError, match="implausible intensities: the largest is"):
        import_mri(tmp_path, tmp_path / "mri.parquet", None, MriOptions(image_px=32))


def test_sequence_of_one_intensity_is_normalised(tmp_path):
    name = "TCGA_AA_0001_20000101"
    (tmp_path / name).mkdir()
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(tmp_path / name / f"{name}_1.tif")
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / name / f"{name}_1_mask.tif")
    import_mri(tmp_path, tmp_path / "mri.parquet", None, MriOptions(image_px=64))
    assert (decode_image(pd.read_parquet(tmp_path / "mri.parquet").image[0]) == MEDIAN).all()
