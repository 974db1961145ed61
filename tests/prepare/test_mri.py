"""Reading the kaggle_3m layout."""

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mgi.errors import CohortError, MissingInputError, MriError
from mgi.prepare.mri import find_series, fingerprint, read_series

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
    volume = read_series(series)
    assert series.case_id == "TCGA-CS-4941"
    assert volume.numbers.tolist() == [1, 2, 10]
    assert volume.image[:, 0, 0, 0].tolist() == [1, 2, 10]
    assert volume.mask.sum(axis=(1, 2)).tolist() == [32, 64, 320]


def test_missing_folder_says_where_to_get_the_set(tmp_path):
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
        one, other = read_series(one), read_series(other)
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
        read_series(find_series(archive)[0])


def test_folder_without_patients_is_refused(tmp_path):
    (tmp_path / "notes").mkdir()
    with pytest.raises(MissingInputError, match="TCGA_CS_4941_19960909"):
        find_series(tmp_path)


def test_two_folders_of_one_case_are_both_named(tmp_path):
    write_slices(tmp_path / NAME, [1])
    write_slices(tmp_path / "TCGA_CS_4941_20010101", [1])
    with pytest.raises(CohortError, match=r"TCGA-CS-4941.*19960909.*20010101"):
        find_series(tmp_path)


def test_fingerprint_tells_a_changed_an_added_and_a_removed_file(tmp_path):
    write_slices(tmp_path / NAME, [1, 2])
    (tmp_path / "notes.txt").touch()
    seen = [fingerprint(tmp_path)]
    assert fingerprint(tmp_path) == seen[0]
    mask = tmp_path / NAME / f"{NAME}_2_mask.tif"
    mask.touch()
    seen.append(fingerprint(tmp_path))
    (tmp_path / NAME / f"{NAME}_3.tif").touch()
    seen.append(fingerprint(tmp_path))
    mask.unlink()
    seen.append(fingerprint(tmp_path))
    assert len(set(seen)) == 4


def test_slice_without_mask_is_named(tmp_path):
    write_slices(tmp_path / NAME, [1, 2])
    (tmp_path / NAME / f"{NAME}_2_mask.tif").unlink()
    with pytest.raises(MriError, match=r"missing mask: .*_2_mask\.tif"):
        read_series(find_series(tmp_path)[0])


def test_mask_of_another_shape_is_named(tmp_path):
    write_slices(tmp_path / NAME, [1])
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(tmp_path / NAME / f"{NAME}_1_mask.tif")
    with pytest.raises(MriError, match="16 x 16"):
        read_series(find_series(tmp_path)[0])


def test_truncated_slice_is_named(tmp_path):
    write_slices(tmp_path / NAME, [1])
    path = tmp_path / NAME / f"{NAME}_1.tif"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(MriError, match=r"unreadable image: .*_1\.tif"):
        read_series(find_series(tmp_path)[0])
