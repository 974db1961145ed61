"""The files of `config/` that are generated from the model: config.yaml, schema.json and the table in README.md."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from mgi.config.cohort import Config
from mgi.config.example import render_demo
from mgi.config.section import Section, inner_section
from mgi.errors import ConfigError, MissingInputError
from mgi.files import atomic_write

REFERENCE_BEGIN = "<!-- reference: begin -->"
REFERENCE_END = "<!-- reference: end -->"
TYPE_NAMES = {int: "integer", float: "number", str: "text", bool: "true or false", dict: "mapping", NoneType: "null"}
LIMITS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below", "min_length": "of length at least"}


def write_reference(folder: Path | str) -> None:
    """Write config.yaml and schema.json into `folder`, and the table of keys into its README.md.

    Raises
    ------
    MissingInputError
        If README.md is not there.
    ConfigError
        If it lacks one of the two markers around the table.
    """
    for path, text in reference_files(folder).items():
        with atomic_write(path) as part:
            part.write_text(text)


def reference_files(folder: Path | str) -> dict[Path, str]:
    """Return the text of each generated file in `folder`; raises as `write_reference` does."""
    readme = Path(folder) / "README.md"
    if not readme.exists():
        raise MissingInputError(f"README of the configuration not found: {readme}")
    before, begin, rest = readme.read_text().partition(REFERENCE_BEGIN)
    _, end, after = rest.partition(REFERENCE_END)
    if not (begin and end):
        raise ConfigError(f"{readme} lacks the markers {REFERENCE_BEGIN} and {REFERENCE_END} around its table of keys")
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    lines += ["| " + " | ".join(cells) + " |" for cells in _reference_rows(Config, "")]
    table = "\n".join(lines)
    return {
        readme.with_name("config.yaml"): render_demo(),
        readme.with_name("schema.json"): json.dumps(Config.model_json_schema(), indent=2) + "\n",
        readme: f"{before}{begin}\n{table}\n{end}{after}",
    }


def _reference_rows(section: type[Section], prefix: str) -> Iterator[tuple[str, str, str, str]]:
    """Yield key, type, default and meaning of every key of `section`, those of inner sections right after theirs."""
    for name, field in section.model_fields.items():
        key, inner = f"{prefix}{name}", inner_section(field.annotation)
        yield f"`{key}`", _type_words(field), _default_words(field, inner), str(field.description).replace("|", "\\|")
        if inner is not None:
            named = get_origin(field.annotation) is dict
            yield from _reference_rows(inner, f"{key}.{{variant}}." if named else f"{key}.")


def _type_words(field: FieldInfo) -> str:
    limits = [
        f"{words} {getattr(limit, name)}"
        for limit in field.metadata
        for name, words in LIMITS.items()
        if getattr(limit, name, None) is not None
    ]
    return ", ".join([_annotation_words(field.annotation), *limits])


def _annotation_words(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _annotation_words(inner[0])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin is list:
        return f"list of {_annotation_words(inner[0])}"
    if origin in (UnionType, Union):
        return " or ".join(_annotation_words(kind) for kind in inner)
    if inner_section(annotation) is not None:
        return "named variants" if origin is dict else "section"
    return TYPE_NAMES[origin or annotation]


def _default_words(field: FieldInfo, inner: type[Section] | None) -> str:
    if field.is_required():
        return "required"
    if inner is not None and field.default is not None:
        return ""
    return f"`{json.dumps(field.default)}`"
