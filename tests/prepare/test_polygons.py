"""Outlines: classes, repaired geometry, objects that are left out, and what is looked at."""

import json

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import Polygon, box, mapping

from mgi.config import TileOptions
from mgi.errors import AnnotationError
from mgi.prepare.annotations import read_annotation

SLIDE = (1000, 800)
SQUARE = box(100, 100, 300, 300)


def feature(geometry, classification=None, **properties):
    if classification is not None:
        properties["classification"] = classification
    return {"type": "Feature", "geometry": geometry and mapping(geometry), "properties": properties}


def read(tmp_path, *features, bounds=None, **options):
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return read_annotation(path, SLIDE, TileOptions(**options), bounds)


def test_only_tumour_classes_are_tumour(tmp_path):
    annotation = read(
        tmp_path,
        feature(SQUARE, {"name": "Tumor", "color": [200, 0, 0]}),
        feature(box(500, 100, 600, 200), {"name": "Stroma", "colorRGB": -1}),
        feature(box(700, 100, 800, 200), "Necrosis"),
        feature(box(0, 700, 10, 710)),
    )
    assert annotation.tumour.area_px == 200 * 200 and annotation.tumour.bounds == (100, 100, 300, 300)
    assert annotation.classes == {"Necrosis": 1, "Stroma": 1, "Tumor": 1, "unclassified": 1}


def test_objects_of_other_classes_within_tumour_are_counted(tmp_path, caplog):
    annotation = read(
        tmp_path,
        feature(SQUARE, "Tumor"),
        feature(box(120, 120, 140, 140), "Necrosis"),
        feature(box(150, 150, 160, 160), "Stroma"),
        feature(box(170, 170, 180, 180)),
        feature(box(0, 0, 900, 700), "Region*"),
        feature(box(500, 100, 600, 200), "Stroma"),
    )
    assert annotation.tumour.area_px == 200 * 200
    assert annotation.dropped == {"objects of other classes within tumour": 2}
    assert "2 objects of other classes lie within tumour, and count as tumour: 'Necrosis', 'Stroma'" in caplog.text


@pytest.mark.parametrize(
    "name", ["tumour", "TUMOR", "Tumor: Positive", {"names": ["Tumor", "Positive"]}, {"name": "Tumor"}]
)
def test_tumour_is_written_in_many_ways(tmp_path, name):
    stroma = feature(box(500, 100, 600, 200), "Stroma")
    assert read(tmp_path, feature(SQUARE, name), stroma).tumour.area_px == 200 * 200


def test_the_user_names_the_tumour_classes(tmp_path):
    features = feature(SQUARE, "Invasive carcinoma"), feature(box(500, 100, 600, 200), "Tumor")
    assert read(tmp_path, *features, tumour_classes=["invasive Carcinoma"]).tumour.area_px == 200 * 200


def test_classes_of_which_none_is_tumour_mean_no_tumour(tmp_path):
    assert read(tmp_path, feature(SQUARE, "Stroma")).tumour.area_px == 0


def test_all_is_tumour_where_nothing_has_a_class(tmp_path):
    features = feature(SQUARE), feature(box(500, 100, 600, 200), None, name="left"), feature(SQUARE, {"name": None})
    assert read(tmp_path, *features).tumour.area_px == 200 * 200 + 100 * 100


@pytest.mark.parametrize("name", ["Ignore*", "ignore", {"name": "Ignore*: artefact"}])
def test_ignored_region_is_cut_out_of_the_tumour(tmp_path, name):
    inner = box(150, 150, 200, 200)
    annotation = read(tmp_path, feature(SQUARE, "Tumor"), feature(inner, name), feature(inner, "Tumor"))
    assert annotation.tumour.area_px == 200 * 200 - 50 * 50 and annotation.ignored.area_px == 50 * 50
    mask, ignore = annotation.mask(100, 100, 200, 200), annotation.ignore(100, 100, 200, 200)
    assert not (mask & ignore).any() and (mask | ignore).all() and ignore[50:100, 50:100].all()


@pytest.mark.parametrize("name", [5, ["Tumor"], {"name": 7}, {"names": 3}, "Tum\u0000or", "x" * 600])
def test_rejects_invalid_class(tmp_path, name):
    with pytest.raises(AnnotationError):
        read(tmp_path, feature(SQUARE, name))


def test_objects_that_are_left_out_are_counted(tmp_path):
    point, line = shapely.Point(5, 5), shapely.LineString([(0, 0), (5, 5)])
    collection = shapely.GeometryCollection([SQUARE, point])
    far = box(5000, 5000, 5100, 5100)
    flat = Polygon([(1, 1), (5, 5), (1, 1), (5, 5)])
    features = [feature(geometry) for geometry in (point, line, collection, None, far, flat)]
    annotation = read(tmp_path, *features)
    assert annotation.tumour.area_px == 200 * 200 and annotation.classes == {"unclassified": 6}
    assert annotation.dropped == {
        "objects without geometry": 1,
        "outlines off the slide": 1,
        "outlines without area": 1,
        "points and lines": 3,
    }


def test_parts_and_holes_are_kept(tmp_path):
    holed = Polygon(
        [(400, 100), (600, 100), (600, 300), (400, 300)], [[(450, 150), (450, 250), (550, 250), (550, 150)]]
    )
    annotation = read(tmp_path, feature(shapely.MultiPolygon([SQUARE, holed])))
    assert annotation.tumour.area_px == 200 * 200 * 2 - 100 * 100


def ring(radius, turns=1.0, clockwise=False, shift=0.0):
    angle = np.linspace(0, turns * 2 * np.pi, int(turns * 200))[:: -1 if clockwise else 1]
    return np.round(np.stack([500 + shift + radius * np.cos(angle), 400 + radius * np.sin(angle)], axis=1), 3)


ROUND = np.pi * 200**2


@pytest.mark.parametrize(
    ("points", "area"),
    [
        (ring(200, turns=2), ROUND),
        (np.concatenate([ring(200), ring(198, shift=1)]), ROUND),
        (np.concatenate([ring(200), ring(199, clockwise=True, shift=1)]), ROUND),
        (np.concatenate([ring(200), ring(200, clockwise=True)]), ROUND),
        (np.array([(0, 0), (100, 100), (100, 0), (0, 100)]), 2 * 50 * 50),
    ],
    ids=["twice", "twice by hand", "to and fro by hand", "to and fro", "bow tie"],
)
def test_area_inside_a_crossing_outline_is_tumour(tmp_path, points, area):
    annotation = read(tmp_path, feature(Polygon(points)))
    assert annotation.tumour.area_px == pytest.approx(area, rel=0.02)
    assert annotation.mask(0, 0, 1000, 1000).sum() == pytest.approx(area, rel=0.02)


def test_hole_joined_to_the_outline_by_a_cut_stays_a_hole(tmp_path):
    outer, inner = (
        [(0, 0), (400, 0), (400, 400), (0, 400), (0, 0)],
        [(100, 100), (100, 300), (300, 300), (300, 100), (100, 100)],
    )
    assert read(tmp_path, feature(Polygon([*outer, *inner]))).tumour.area_px == 400**2 - 200**2


@pytest.mark.parametrize("shift", [0, 150, 600])
def test_holes_of_a_crossing_outline_take_away_what_they_cover(tmp_path, shift):
    hole = box(450 + shift, 350, 550 + shift, 450)
    annotation = read(tmp_path, feature(Polygon(ring(200, turns=2), [hole.exterior])))
    assert annotation.tumour.area_px == pytest.approx(Polygon(ring(200)).difference(hole).area, rel=0.01)


@pytest.mark.parametrize("shape", [box(0.2, 0.2, 0.6, 0.6), Polygon([(9, 9), (99, 99), (9, 9)])])
def test_outlines_without_area_are_refused(tmp_path, shape):
    with pytest.raises(AnnotationError, match="less than a pixel"):
        read(tmp_path, feature(shape))


@pytest.mark.parametrize(
    "text",
    ["5", '"x"', "null", "[[5]]", '{"type": "FeatureCollection", "features": {}}',
     '{"type": "Feature", "geometry": 5}', '{"type": "Polygon", "coordinates": []}'],
)  # fmt: skip
def test_json_of_another_shape_is_refused_in_words(tmp_path, text):
    (tmp_path / "a.geojson").write_text(text)
    with pytest.raises(AnnotationError, match=r"object is needed|no list|no rings"):
        read_annotation(tmp_path / "a.geojson", SLIDE)


def test_outlines_beyond_the_edge_are_cut(tmp_path):
    assert read(tmp_path, feature(box(900, 700, 1500, 1500))).tumour.area_px == 100 * 100


@pytest.mark.parametrize("shape", [box(5000, 0, 6000, 100), box(-300, -300, -100, -100), box(0, 800, 100, 900)])
def test_annotation_off_the_slide_is_refused(tmp_path, shape):
    with pytest.raises(AnnotationError, match="off the slide"):
        read(tmp_path, feature(shape))


@pytest.mark.parametrize(
    "number", ["NaN", "Infinity", "-Infinity", "1e999", "1e300", "10000000000", '"5"', "null", "[]"]
)
def test_coordinate_that_is_no_place_is_refused(tmp_path, number):
    ring = f"[[[0, 0], [{number}, 0], [100, 100], [0, 100], [0, 0]]]"
    (tmp_path / "a.geojson").write_text(f'{{"type": "Polygon", "coordinates": {ring}}}')
    with pytest.raises(AnnotationError, match=r"a\.geojson is not GeoJSON"):
        read_annotation(tmp_path / "a.geojson", SLIDE)


@pytest.mark.parametrize(
    "text", ["[" * 10**5, '{"type":"FeatureCollection","features":' * 500 + "1", "9" * 5000, "\udcff", ""]
)
def test_deep_long_and_broken_json_is_refused(tmp_path, text):
    (tmp_path / "a.geojson").write_text(text, errors="surrogateescape")
    with pytest.raises(AnnotationError, match=r"a\.geojson is not GeoJSON"):
        read_annotation(tmp_path / "a.geojson", SLIDE)


def test_array_of_features_and_third_coordinates_are_read(tmp_path):
    coordinates = [[[0, 0, 1], [100, 0, 1], [100, 100, 1], [0, 100, 1]]]
    features = [{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": coordinates}}]
    (tmp_path / "a.geojson").write_text(json.dumps(features))
    assert read_annotation(tmp_path / "a.geojson", SLIDE).tumour.area_px == 100 * 100


def test_outlines_start_at_the_corner_of_the_scanned_part(tmp_path):
    annotation = read(tmp_path, feature(SQUARE), bounds=(50, 60, 700, 600))
    assert annotation.tumour.bounds == (150, 160, 350, 360)


def test_windows_of_many_outlines_equal_the_whole(tmp_path):
    random = np.random.default_rng(0)
    cells = [
        shapely.Point(*place).buffer(size)
        for place, size in zip(random.uniform(-20, 1020, (400, 2)), random.uniform(2, 60, 400), strict=True)
    ]
    star = Polygon(
        np.stack([500 + 300 * np.cos(np.arange(301) * 1.2), 400 + 300 * np.sin(np.arange(301) * 1.2)], axis=1)
    )
    annotation = read(tmp_path, *map(feature, [*cells, star]))
    whole = annotation.mask(-24, -24, 1088, 1088)
    for y in range(0, 1088, 136):
        for x in range(0, 1088, 136):
            window = annotation.mask(x - 24, y - 24, 136, 136)
            assert np.array_equal(window, whole[y : y + 136, x : x + 136])


def test_window_costs_its_own_outlines(tmp_path):
    angle = np.linspace(0, 2 * np.pi, 30, endpoint=False)
    circle = 1.5 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    cells = [
        {"type": "Polygon", "coordinates": [(circle + place).tolist()]}
        for place in np.argwhere(np.ones((100, 80))) * 10
    ]
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps(cells))
    annotation = read_annotation(path, SLIDE)
    looked_at, edges = [], annotation.tumour.edges

    class Recorder:
        def __getitem__(self, index: np.ndarray) -> np.ndarray:
            looked_at.append(len(index))
            return edges[index]

    object.__setattr__(annotation.tumour, "edges", Recorder())
    assert annotation.mask(500, 400, 50, 64).any()
    # The window holds 25 cells, and touches some more, of 8,000.
    assert len(edges) == 8000 * 30 and sum(looked_at) < 60 * 30


VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers(-(10**6), 10**6) | st.sampled_from(["Polygon", "Tumor", ""]),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(
            st.sampled_from(
                ["type", "features", "geometry", "geometries", "coordinates", "properties", "classification"]
            ),
            inner,
        )
    ),
    max_leaves=12,
)
KINDS = st.sampled_from(["FeatureCollection", "Feature", "Polygon", "MultiPolygon", "GeometryCollection"])
POINTS = st.lists(st.tuples(st.floats(-1500, 1500), st.floats(-1500, 1500)), min_size=0, max_size=12)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.one_of(
        VALUES,
        st.fixed_dictionaries({"type": KINDS, "features": VALUES, "geometry": VALUES, "coordinates": VALUES}),
        st.builds(lambda rings: {"type": "Polygon", "coordinates": rings}, st.lists(POINTS, max_size=3)),
    )
)
def test_any_json_is_read_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("fuzz") / "a.geojson"
    path.write_text(json.dumps(content))
    try:
        annotation = read_annotation(path, SLIDE)
    except AnnotationError:
        return
    assert 0 <= annotation.tumour.area_px <= SLIDE[0] * SLIDE[1]
    annotation.mask(0, 0, 1000, 100)
