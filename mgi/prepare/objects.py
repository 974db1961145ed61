"""The objects of a GeoJSON file as QuPath exports it: polygons with their classes, and what is left out.

The class of an object is `properties.classification`: its name, or an object with `name` or `names`, which may be
written as JSON text. Cells, tiles and TMA cores, which QuPath exports beside annotations, count only where they have a
class: without one they outline no tumour.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from mgi.console import log
from mgi.errors import AnnotationError
from mgi.names import check_text, first_few, quote

NO_CLASS = "unclassified"
# QuPath's `objectType`, or before its version 0.4 the id, of what is no annotation.
OTHER_OBJECTS = {
    "cell": "cells", "detection": "detections", "tile": "tiles", "tma_core": "TMA cores",
    "pathcellobject": "cells", "pathdetectionobject": "detections", "pathtileobject": "tiles",
    "tmacoreobject": "TMA cores",
}  # fmt: skip
# Where other programs than QuPath write a class.
FOREIGN_CLASSES = ("class", "class_name", "classname", "class_label", "label", "labels", "category", "tissue", "group")
MAX_BYTES = 2**30
MAX_DEPTH = 16
# Beyond any slide, in level-0 pixels.
MAX_COORDINATE = 1e8
READ_ERRORS = (
    OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, MemoryError, RecursionError,
    shapely.errors.ShapelyError,
)  # fmt: skip


@dataclass
class Objects:
    """The objects of a GeoJSON file: polygons and their classes, and what was left out.

    Attributes
    ----------
    polygons : list of Polygon
    classes : list of str or None
        The class of each polygon.
    counts : Counter
        Objects by class.
    dropped : Counter
        Objects left out, by reason.
    hints : dict of str to set of str
        Of polygons without a class, what their other properties say that may be meant as one, by property.
    """

    polygons: list[shapely.Polygon] = field(default_factory=list)
    classes: list[str | None] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    hints: dict[str, set[str]] = field(default_factory=dict)

    def check_meaning(self, tumour: Iterable[str], name: str) -> None:
        """Refuse objects without a class of which another property says that some are no tumour.

        Parameters
        ----------
        tumour : iterable of str
            Tumour classes in lower case.
        name : str
            The file's, for messages.

        Raises
        ------
        AnnotationError
            If a property that other programs take for the class has other values than tumour classes, or only some of
            the objects are named as one.
        """
        known = set(tumour)
        for key, values in self.hints.items():
            other = sorted(value for value in values if value.casefold().strip() not in known)
            if not other:
                continue
            if key == "name" and len(other) == len(values):
                log.warning("%s: its objects have no class, so all are tumour, though named %s", name, first_few(other))
                continue
            raise AnnotationError(
                f"no class: the objects of {name} have no classification but a {key}, {first_few(sorted(values))}; "
                "write what each is as its properties.classification, as QuPath does"
            )


def read_objects(path: Path) -> Objects:
    """Read the objects of a GeoJSON file.

    Raises
    ------
    AnnotationError
        If it is none, or a coordinate is no number of a slide.
    """
    objects = Objects()
    try:
        if not path.is_file():
            raise ValueError("it is no regular file")
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it is larger than {MAX_BYTES >> 20} MiB")
        for feature in _features(json.loads(path.read_bytes()), 0):
            _add_feature(objects, feature)
    except READ_ERRORS as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)[:200]
        raise AnnotationError(f"unreadable annotation: {path.name} is not GeoJSON: {reason}") from error
    return objects


def _features(node: Any, depth: int) -> Iterator[dict[str, Any]]:
    """Yield the objects, bare geometries as features."""
    if depth > MAX_DEPTH:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
    if isinstance(node, list):
        for inner in node:
            yield from _features(inner, depth + 1)
        return
    _require_object(node)
    if node["type"] == "FeatureCollection":
        if not isinstance(node["features"], list):
            raise ValueError("its 'features' are no list")
        yield from _features(node["features"], depth)
    elif node["type"] == "Feature":
        if node["geometry"] is not None:
            _require_object(node["geometry"])
        yield node
    else:
        yield {"geometry": node}


def _require_object(node: Any) -> None:
    if not isinstance(node, dict):
        raise ValueError(f"{quote(node, 40)} stands where an object is needed")


def _add_feature(objects: Objects, feature: dict[str, Any]) -> None:
    """Add the polygons of an object, or the reason why it has none."""
    geometry, properties = feature["geometry"], feature.get("properties") or {}
    name = _class(properties)
    objects.counts[name or NO_CLASS] += 1
    if geometry is None:
        objects.dropped["objects without geometry"] += 1
        return
    kind = properties.get("objectType") or properties.get("object_type") or feature.get("id")
    other = OTHER_OBJECTS.get(str(kind).casefold())
    if name is None and other:
        objects.dropped[f"{other} without a class"] += 1
        return
    for part in _geometries(geometry, 0):
        if part["type"] not in ("Polygon", "MultiPolygon"):
            objects.dropped["points and lines"] += 1
            continue
        for polygon in [part["coordinates"]] if part["type"] == "Polygon" else part["coordinates"]:
            objects.polygons.append(_polygon(polygon))
            objects.classes.append(name)
    if name is None:
        for key, value in properties.items():
            if isinstance(value, str | int) and (key == "name" or key.casefold() in FOREIGN_CLASSES):
                objects.hints.setdefault(key, set()).add(str(value))


def _class(properties: dict[str, Any]) -> str | None:
    """Return the class of an object, None where it has none."""
    named = properties.get("classification")
    # Geographic libraries write an object within the properties as text.
    if isinstance(named, str) and named.startswith("{"):
        named = json.loads(named)
    if isinstance(named, dict):
        names = named.get("names")
        named = ": ".join(names) if names else named.get("name")
    if named is None or named == "":
        return None
    return check_text(named, "class", AnnotationError)


def _geometries(node: dict[str, Any], depth: int) -> list[dict[str, Any]]:
    """List the plain geometries of a geometry."""
    if depth > MAX_DEPTH:
        raise ValueError(f"its geometries are nested more than {MAX_DEPTH} deep")
    if node["type"] == "GeometryCollection":
        return [part for inner in node["geometries"] for part in _geometries(inner, depth + 1)]
    return [node]


def _polygon(rings: list[Any]) -> shapely.Polygon:
    """Build a polygon of its rings; raise ValueError where a coordinate is no number of a slide."""
    if not isinstance(rings, list) or not rings:
        raise ValueError("a polygon has no rings")
    arrays = [np.array([point[:2] for point in ring]) for ring in rings]
    for points in arrays:
        if points.ndim != 2 or points.shape[1] != 2 or points.dtype.kind not in "if":
            raise ValueError("a ring is not a list of points, pairs of numbers")
        # Comparing with <= finds NaN, too.
        if (odd := points[~(np.abs(points) <= MAX_COORDINATE)]).size:
            raise ValueError(f"a coordinate is {odd[0]}, which is no place on a slide")
    shell, *holes = arrays
    return shapely.Polygon(shell, holes)
