"""Tumour annotations: polygons and coarse masks."""

import json

import numpy as np
import pytest
from PIL import Image
from shapely.geometry import Polygon, mapping

from mgi.errors import AnnotationError, MissingInputError
from mgi.prepare.annotations import check_annotations, find_annotation, read_annotation

HOLED = Polygon(
    [(150.3, 120.7), (900.2, 200.1), (820.9, 860.4), (470.0, 700.6), (180.5, 930.2)],
    [[(400, 350), (560.5, 380), (500, 540.5)]],
)


def write_geojson(path, *geometries):
    features = [{"type": "Feature", "properties": {}, "geometry": geometry} for geometry in geometries]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def test_area_of_a_polygon_with_a_hole_is_kept(tmp_path):
    annotation = read_annotation(write_geojson(tmp_path / "a.geojson", mapping(HOLED)), (1024, 1024))
    mask = annotation.mask(0, 0, 1024, 256)
    assert mask.dtype == np.uint8 and set(np.unique(mask)) == {0, 1}
    assert abs(mask.sum() * 16 / HOLED.area - 1) < 0.01


def test_windows_tile_the_whole_mask(tmp_path):
    annotation = read_annotation(write_geojson(tmp_path / "a.geojson", mapping(HOLED)), (1024, 1024))
    rows = [np.hstack([annotation.mask(x, y, 256, 64) for x in range(0, 1024, 256)]) for y in range(0, 1024, 256)]
    assert np.array_equal(np.vstack(rows), annotation.mask(0, 0, 1024, 256))


def test_a_pixel_is_tumour_where_its_centre_is(tmp_path):
    square = Polygon([(2, 2), (6, 2), (6, 5), (2, 5)])
    annotation = read_annotation(write_geojson(tmp_path / "a.geojson", mapping(square)), (8, 8))
    expected = np.zeros((8, 8), np.uint8)
    expected[2:5, 2:6] = 1
    assert np.array_equal(annotation.mask(0, 0, 8, 8), expected)
    assert annotation.mask(100, 100, 8, 8).sum() == 0


def test_overlapping_features_and_collections_are_united(tmp_path):
    one, two = Polygon([(0, 0), (6, 0), (6, 6), (0, 6)]), Polygon([(4, 4), (8, 4), (8, 8), (4, 8)])
    collection = {"type": "GeometryCollection", "geometries": [mapping(one)]}
    multi = {"type": "MultiPolygon", "coordinates": [mapping(two)["coordinates"]]}
    annotation = read_annotation(write_geojson(tmp_path / "a.geojson", collection, multi), (8, 8))
    assert annotation.mask(0, 0, 8, 8).sum() == 36 + 16 - 4


def test_no_feature_means_no_tumour(tmp_path):
    assert read_annotation(write_geojson(tmp_path / "a.geojson"), (8, 8)).mask(0, 0, 8, 8).sum() == 0


@pytest.mark.parametrize("text", ["not json", "5", '{"type": "Feature"}', '{"type": "Polygon", "coordinates": [[1]]}'])
def test_foreign_file_is_refused(tmp_path, text):
    (tmp_path / "a.geojson").write_text(text)
    with pytest.raises(AnnotationError, match=r"a\.geojson is not GeoJSON"):
        read_annotation(tmp_path / "a.geojson", (8, 8))


def test_points_alone_are_refused(tmp_path):
    with pytest.raises(AnnotationError, match="outline the tumour"):
        read_annotation(write_geojson(tmp_path / "a.geojson", {"type": "Point", "coordinates": [1, 2]}), (8, 8))


def test_real_coarse_mask_covers_its_sixteenth(data_dir):
    path = find_annotation(data_dir / "annotations", "TCGA-AC-A23C-01Z-00-DX1")
    with Image.open(path) as image:
        pixels = np.asarray(image)
    # The slide's size is that of the mask times 16, less what the last pixel may lack.
    annotation = read_annotation(path, (pixels.shape[1] * 16 - 7, pixels.shape[0] * 16 - 9))
    mask = annotation.mask(9600, 6400, 4096, 256)
    assert np.array_equal(mask, pixels[400:656, 600:856]) and 0 < mask.mean() < 1
    finer = annotation.mask(9600, 6400, 2048, 256)
    assert np.array_equal(finer, np.kron(pixels[400:528, 600:728], np.ones((2, 2), np.uint8)))


def test_mask_of_another_shape_is_refused(data_dir):
    path = find_annotation(data_dir / "annotations", "TCGA-AC-A23C-01Z-00-DX1")
    with pytest.raises(AnnotationError, match="mask of another shape"):
        read_annotation(path, (10000, 40000))


def test_annotation_of_an_absent_slide_is_named(data_dir):
    known = ["TCGA-AC-A23C-01Z-00-DX1", "TCGA-AC-A3W5-01Z-00-DX1"]
    check_annotations(data_dir / "annotations", [*known, "TCGA-AC-A62V-01Z-00-DX1", "without-annotation"])
    with pytest.raises(AnnotationError, match="TCGA-AC-A62V"):
        check_annotations(data_dir / "annotations", known)


def test_two_annotations_of_one_slide_are_refused(tmp_path):
    write_geojson(tmp_path / "S1.geojson")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "S1.9936E591-5577-56C1-9057-00BD6AB95F64_mask.tiff")
    with pytest.raises(AnnotationError, match=r"S1 has two annotations"):
        find_annotation(tmp_path, "S1")


def test_slide_without_annotation_has_none_and_a_missing_folder_is_an_error(tmp_path):
    assert find_annotation(tmp_path, "S1") is None
    with pytest.raises(MissingInputError, match="annotations not found"):
        find_annotation(tmp_path / "nowhere", "S1")
