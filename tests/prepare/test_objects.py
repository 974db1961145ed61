"""Objects of QuPath and of other programs: which are outlines, and what says their class."""

import json

import pytest
from shapely.geometry import Point, box, mapping

from mgi.errors import AnnotationError
from mgi.prepare.annotations import check_annotations, find_annotation, read_annotation

SLIDE = (1000, 800)
SQUARE, OTHER = box(100, 100, 300, 300), box(500, 100, 600, 200)


def feature(geometry, **properties):
    return {"type": "Feature", "geometry": mapping(geometry), "properties": properties}


def read(tmp_path, *features):
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return read_annotation(path, SLIDE)


@pytest.mark.parametrize(
    ("properties", "counted"),
    [
        ({"objectType": "tma_core", "name": "A-1", "isMissing": False}, "TMA cores"),
        ({"objectType": "cell", "measurements": {"Nucleus: Area": 20.5}}, "cells"),
        ({"object_type": "detection"}, "detections"),
    ],
)
def test_cores_and_cells_without_a_class_are_no_tumour(tmp_path, properties, counted):
    whole = feature(box(0, 0, 1000, 800), **properties)
    annotation = read(tmp_path, feature(SQUARE, objectType="annotation"), whole)
    assert annotation.tumour.area_px == 200 * 200
    assert annotation.dropped == {f"{counted} without a class": 1}
    with pytest.raises(AnnotationError, match=rf"1 objects .*\(1 {counted} without a class"):
        read(tmp_path, whole)


def test_kind_of_an_object_is_its_id_before_qupath_4(tmp_path):
    cell = feature(box(0, 0, 1000, 800)) | {"id": "PathCellObject"}
    assert read(tmp_path, feature(SQUARE) | {"id": "PathAnnotationObject"}, cell).tumour.area_px == 200 * 200


def test_cells_with_a_class_count(tmp_path):
    cells = [feature(shape, objectType="cell", classification={"name": name}) for shape, name in
             ((SQUARE, "Tumor"), (OTHER, "Stroma"))]  # fmt: skip
    assert read(tmp_path, *cells).tumour.area_px == 200 * 200


@pytest.mark.parametrize(
    "properties",
    [
        [{"label": "tumor"}, {"label": "stroma"}],
        [{"Class": "stroma"}, {"Class": "stroma"}],
        [{"category": 1}, {"category": 2}],
        [{"name": "Tumor"}, {"name": "Stroma"}],
    ],
)
def test_class_that_is_written_elsewhere_is_not_overlooked(tmp_path, properties):
    shapes = zip((SQUARE, OTHER), properties, strict=True)
    with pytest.raises(AnnotationError, match=r"no class: .* a (label|Class|category|name), "):
        read(tmp_path, *(feature(shape, **stated) for shape, stated in shapes))


def test_names_of_regions_are_no_classes(tmp_path, caplog):
    assert read(tmp_path, feature(SQUARE, name="ROI 1"), feature(OTHER)).tumour.area_px == 200 * 200 + 100 * 100
    assert "all are tumour, though named 'ROI 1'" in caplog.text
    assert read(tmp_path, feature(SQUARE, label="Tumor", name="tumour")).tumour.area_px == 200 * 200


def test_class_written_as_json_text_is_read(tmp_path):
    text = json.dumps({"name": "Tumor", "color": [200, 0, 0]})
    stroma = feature(OTHER, classification=json.dumps({"name": "Stroma"}))
    assert read(tmp_path, feature(SQUARE, classification=text), stroma).tumour.area_px == 200 * 200


@pytest.mark.parametrize("shape", [Point(200, 200), SQUARE.exterior, box(5000, 5000, 5100, 5100)])
def test_tumour_that_is_no_polygon_on_the_slide_is_not_lost(tmp_path, shape):
    stroma = feature(OTHER, classification="Stroma")
    with pytest.raises(AnnotationError, match=r"no tumour polygon: .* class 'Tumor', .* [(]1 (points|outlines)"):
        read(tmp_path, stroma, feature(shape, classification="Tumor"))


@pytest.mark.parametrize("name", ["a.xml", "a.annotations", "a.session.xml", "a.geojson.gz"])
def test_annotation_of_another_program_is_named(tmp_path, name):
    (tmp_path / name).write_text("<ASAP_Annotations/>")
    with pytest.raises(AnnotationError, match=r"unknown annotation: a.* as GeoJSON"):
        read_annotation(tmp_path / name, SLIDE)


def test_slide_without_annotation_is_logged_with_files_named_like_it(tmp_path, caplog):
    caplog.set_level("INFO")
    (tmp_path / "S_1.svs.geojson").write_text("{}")
    (tmp_path / "S-2.xml").write_text("<ASAP_Annotations/>")
    for source in ("S-1", "S-2", "S-3"):
        assert find_annotation(tmp_path, source) is None
    assert f"S-1 has no annotation in {tmp_path}, but 'S_1.svs.geojson' is there; name an annotation" in caplog.text
    assert f"S-2 has no annotation in {tmp_path}, but 'S-2.xml' is there" in caplog.text
    assert f"S-3 has no annotation in {tmp_path}\n" in caplog.text


def test_geojson_named_json_is_read_where_it_belongs_to_a_slide(tmp_path):
    for name in ("a.json", "b.json", "b.geojson", "labels.json"):
        (tmp_path / name).write_text(json.dumps(feature(SQUARE)))
    found = check_annotations(tmp_path, ["a", "b"])
    assert {source: path.name for source, path in found.items()} == {"a": "a.json", "b": "b.geojson"}
    assert read_annotation(found["a"], SLIDE).tumour.area_px == 200 * 200
