"""`config/config.yaml`: the configuration of the simulated cohort with every key, its value and its description."""

import textwrap
from collections.abc import Iterator
from typing import Any, get_origin

import yaml
from pydantic.fields import FieldInfo

from mgi.config.cohort import Config
from mgi.config.demo import COMMENTS, DEMO, EXAMPLES, HEADER
from mgi.config.section import Section, inner_section

LINE_LENGTH = 120
MAX_INDENT = 8
SCHEMA_LINE = "# yaml-language-server: $schema=schema.json"


def render_demo() -> str:
    """Return the text of config.yaml."""
    lines = [SCHEMA_LINE, *(f"# {line}" for line in HEADER.strip().splitlines())]
    return "\n".join([*lines, *_render_section(Config, DEMO, "")]) + "\n"


def _render_section(section: type[Section], values: dict[str, Any], prefix: str) -> Iterator[str]:
    """Yield the lines of a section: each key with its description, its value or its default."""
    for name, field in section.model_fields.items():
        key = f"{prefix}{name}"
        if name == "base":
            continue
        if not prefix:
            yield ""
        yield from _comment(str(field.description), COMMENTS.get(key, ""))
        yield from _render_field(key, field, values)


def _render_field(key: str, field: FieldInfo, values: dict[str, Any]) -> Iterator[str]:
    name = key.rpartition(".")[2]
    inner = inner_section(field.annotation)
    if inner is None:
        default = EXAMPLES.get(key) if field.is_required() else field.get_default()
        yield f"{name}: {_scalar(values.get(name, default))}"
    elif get_origin(field.annotation) is dict:
        yield f"{name}:"
        yield from map(_indent, _render_variants(inner, values[name], name))
    elif name in values or field.get_default() is not None:
        yield f"{name}:"
        yield from map(_indent, _render_section(inner, values.get(name, {}), f"{key}."))
    else:
        yield f"{name}: null"
        lines = [f"{name}:", *map(_indent, _render_section(inner, {}, f"{key}."))]
        yield from (f"# {line}" for line in lines)


def _render_variants(section: type[Section], variants: dict[str, Any], stage: str) -> Iterator[str]:
    """Yield the lines of variants: the first with every key, the others with what they change."""
    for name, values in variants.items():
        key = f"{stage}.{name}"
        if key in COMMENTS:
            yield from _comment(COMMENTS[key])
        if "base" in values:
            yield f"{name}: {_scalar(values)}"
        else:
            yield f"{name}:"
            yield from map(_indent, _render_section(section, values, f"{stage}.{{variant}}."))


def _comment(*sentences: str) -> Iterator[str]:
    """Yield sentences as comment lines, short enough to be indented."""
    text = " ".join(f"{one[0].upper()}{one[1:].rstrip('.')}." for one in sentences if one)
    yield from (f"# {line}" for line in textwrap.wrap(text, LINE_LENGTH - MAX_INDENT - 2, break_on_hyphens=False))


def _indent(line: str) -> str:
    return f"  {line}" if line else ""


def _scalar(value: Any) -> str:
    """Return a value in one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=float("inf"), allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...").strip()
