"""Types of the names and labels in a configuration."""

from typing import Annotated

from pydantic import AfterValidator

from mgi.config.section import invalid
from mgi.errors import InvalidNameError
from mgi.names import check_name, check_text


def _check_name(value: str) -> str:
    try:
        return check_name(value, "name")
    except InvalidNameError as error:
        raise invalid(str(error).rpartition(": ")[2]) from error


def _check_label(value: str) -> str:
    try:
        return check_text(value, "label")
    except InvalidNameError as error:
        raise invalid(str(error).rpartition(": ")[2]) from error


Name = Annotated[str, AfterValidator(_check_name)]
"""A name that becomes part of paths, wildcards and commands."""

Label = Annotated[str, AfterValidator(_check_label)]
"""A label in any script, trimmed, such as the name of a column."""
