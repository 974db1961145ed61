"""What every section of the configuration shares: strict types, and validation errors as sentences."""

import difflib
import re
from collections.abc import Iterable
from typing import Any, ClassVar, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from mgi.errors import ConfigError
from mgi.names import quote

SENTENCE = "sentence"
MAX_MESSAGES = 5
_PLAIN = {
    int: re.compile(r"[-+]?(0|[1-9][0-9]{0,17})"),
    float: re.compile(r"[-+]?[0-9]{1,17}(\.[0-9]*)?([eE][-+]?[0-9]{1,3})?"),
    bool: re.compile(r"true|false|True|False"),
}
_NUMBERS = ("int_type", "float_type")


class Section(BaseModel):
    """A part of the configuration; an unknown key is an error, and no type is converted to another."""

    # An input in a message could be a password.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, hide_input_in_errors=True)
    reads_text: ClassVar[bool] = True

    @field_validator("*", mode="before")
    @classmethod
    def _read_text(cls, value: Any, info: ValidationInfo) -> Any:
        """Read numbers and booleans given as text: all of Snakemake's nested `--config` values, and YAML's `1e-3`."""
        if not cls.reads_text:
            return value
        kinds = _scalar_kinds(cls.model_fields[str(info.field_name)].annotation)
        return [_convert(one, kinds) for one in value] if isinstance(value, list) else _convert(value, kinds)


def _scalar_kinds(annotation: Any) -> set[Any]:
    """Return the types that a field's type is made of."""
    inner = get_args(annotation)
    return {annotation}.union(*map(_scalar_kinds, inner)) if inner else {annotation}


def _convert(value: Any, kinds: set[Any]) -> Any:
    """Return a number or boolean that is written plainly in decimal digits; what is not stays text."""
    if not isinstance(value, str) or str in kinds:
        return value
    for kind, pattern in _PLAIN.items():
        if kind in kinds and pattern.fullmatch(value):
            return value.lower() == "true" if kind is bool else kind(value)
    return value


SectionType = TypeVar("SectionType", bound=Section)


def sentence(text: str) -> PydanticCustomError:
    """Return a validator's error that is a whole sentence.

    In it `{here}` stands for the key that is validated, and `{at}` for the same with a dot: what keys within it begin
    with.
    """
    return PydanticCustomError(SENTENCE, "{text}", {"text": text})


def invalid(reason: str) -> PydanticCustomError:
    """Return a validator's error that ends the sentence "KEY cannot be VALUE: "."""
    return PydanticCustomError("invalid", "{text}", {"text": reason})


def validate_section(section: type[SectionType], raw: object, source: str = "configuration") -> SectionType:
    """Return `raw` as a `section`.

    Parameters
    ----------
    source
        What is validated, for the messages.

    Raises
    ------
    ConfigError
        With one sentence for each of the first errors.
    """
    try:
        return section.model_validate(raw)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        sentences = [describe_error(section, one) for one in errors[:MAX_MESSAGES]]
        more = [f"and {len(errors) - MAX_MESSAGES} more errors"] if len(errors) > MAX_MESSAGES else []
        raise ConfigError(f"{source}: {'; '.join(sentences + more)}") from error


def suggest(name: str, valid: Iterable[str]) -> str:
    """Return a hint for an unknown name: the nearest valid one, or all of them."""
    names = list(valid)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'?" if near else f"valid keys are {', '.join(names)}"


def describe_error(section: type[Section], error: ErrorDetails, within: str = "") -> str:
    """Return one validation error in words, with the nearest valid key for an unknown one.

    Parameters
    ----------
    within
        Path of `section` in the whole configuration, with a dot at its end.
    """
    path = [str(part) for part in error["loc"]]
    where = quote(within + ".".join(path), 200)
    message = error["msg"]
    if error["type"] == SENTENCE:
        return message.replace("{at}", "".join(f"{part}." for part in path)).replace("{here}", ".".join(path))
    if path[-1:] == ["[key]"]:
        return f"'{'.'.join(path[:-2])}' has a variant named {_show(error['input'])}: {message}"
    if error["type"] == "extra_forbidden":
        return f"unknown key {where}: {suggest(path[-1], _section_at(section, path[:-1]).model_fields)}"
    if error["type"] == "missing":
        return f"{where} is missing; see config/README.md"
    if error["type"] == "model_type":
        message = "a mapping of keys is needed"
    if error["type"] in _NUMBERS and isinstance(error["input"], str):
        message = "a number is needed, in decimal digits and without quotes"
        if "e" in error["input"].lower():
            message += "; YAML reads a number such as 1e-5 as text: write 1.0e-5"
    if error["type"] == "string_type":
        message = "text is needed; write it in quotes"
    return f"{where} cannot be {_show(error['input'])}: {message[0].lower()}{message[1:]}"


def _show(value: object) -> str:
    """Return a value as it would be written, in quotes only where it is text, without passwords."""
    text = value if isinstance(value, str) else repr(value)
    # Before an @ may stand a password, wherever the address was written by mistake.
    if "@" in text and (":" in text or "//" in text):
        text = f"***{text[text.rindex('@') :]}"
    return quote(text) if isinstance(value, str) else quote(text)[1:-1]


def _section_at(section: type[Section], path: list[str]) -> type[Section]:
    """Find the section of the configuration that `path` leads to."""
    for key in path:
        field = section.model_fields.get(key)
        if field is not None:
            section = inner_section(field.annotation) or section
    return section


def inner_section(annotation: Any) -> type[Section] | None:
    """Return the section that a field's type holds, if any."""
    kinds = [annotation, *get_args(annotation)]
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)
