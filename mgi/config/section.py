"""What every section of the configuration shares: unknown keys are errors, and errors are sentences."""

import difflib
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from mgi.errors import ConfigError


class Section(BaseModel):
    """A part of the configuration; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def validate_section(section: type[Section], raw: dict[str, Any]) -> Any:
    """Return `raw` as a `section`, or raise `ConfigError` with a sentence for each error."""
    try:
        return section.model_validate(raw)
    except ValidationError as problem:
        raise ConfigError("; ".join(_sentence(section, error) for error in problem.errors())) from None


def _sentence(section: type[Section], error: dict[str, Any]) -> str:
    """One validation error in words, with the nearest valid key for an unknown one."""
    path = [str(part) for part in error["loc"]]
    where = ".".join(path)
    if error["type"] == "extra_forbidden":
        valid = list(_section_at(section, path[:-1]).model_fields)
        near = difflib.get_close_matches(path[-1], valid, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"valid keys are {', '.join(valid)}"
        return f"configuration: unknown key '{where}': {hint}"
    if error["type"] == "missing":
        return f"configuration: '{where}' is missing; see config/README.md"
    return f"configuration: '{where}' cannot be {error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}"


def _section_at(section: type[Section], path: list[str]) -> type[Section]:
    """Find the section of the configuration that `path` leads to."""
    for key in path:
        field = section.model_fields.get(key)
        if field is None:
            continue
        section = inner_section(field.annotation) or section
    return section


def inner_section(annotation: Any) -> type[Section] | None:
    """Return the section that a field's type holds, if any."""
    kinds = [annotation, *get_args(annotation)]
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)
