"""Types of the fields of foreign records."""

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field, ValidationError

from mgi.errors import InvalidNameError
from mgi.names import check_name, check_text, quote

MAX_FILE_BYTES = 1 << 44


def _checked(check: Callable[[object, str], str]) -> Callable[[str], str]:
    def validate(value: str) -> str:
        try:
            return check(value, "value")
        except InvalidNameError as error:
            raise ValueError(str(error).removeprefix("invalid value ")) from error

    return validate


Name = Annotated[str, AfterValidator(_checked(check_name))]
"""What becomes a path, a wildcard or part of a command."""

Text = Annotated[str, AfterValidator(_checked(check_text))]
"""A label, trimmed."""

FileId = Annotated[
    str,
    Field(pattern=r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"),
    AfterValidator(str.lower),
]
"""A GDC file id (a UUID), in lower case."""

Md5 = Annotated[str, Field(pattern=r"^[0-9a-fA-F]{32}$"), AfterValidator(str.lower)]
"""An md5, in lower case."""

Size = Annotated[int, Field(strict=True, ge=0, le=MAX_FILE_BYTES)]
"""A number of bytes, up to 16 TiB."""

_EXPECTED = {"file_id": "a UUID", "id": "a UUID", "md5": "32 hexadecimal digits", "md5sum": "32 hexadecimal digits"}


def describe_errors(error: ValidationError, names: dict[str, str] | None = None) -> str:
    """Return what is wrong with a record: its first fault, by the name of the field."""
    first = error.errors(include_url=False)[0]
    path = [str(part) for part in first["loc"] if not isinstance(part, int)]
    field = ".".join(path) or "it"
    last = (names or {}).get(path[-1], path[-1]) if path else field
    value: Any = first["input"]
    if first["type"] == "missing" or value is None:
        return f"it lacks '{last}'"
    if isinstance(value, dict | list | BaseModel):
        return f"its '{field}' is no {first['type'].partition('_')[0]}"
    if field in _EXPECTED or last in _EXPECTED:
        return f"its '{last}' {quote(value)} is not {_EXPECTED.get(field) or _EXPECTED[last]}"
    if last in ("size", "file_size"):
        return f"its '{last}' {quote(value)} is no number of bytes"
    said = first["msg"].removeprefix("Value error, ").removeprefix(quote(value)).removeprefix(": ")
    return f"its '{last}' is {quote(value)}: {said[:1].lower()}{said[1:]}"
