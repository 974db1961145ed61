"""Names that enter from outside: what may become a path or a wildcard, and what only labels a patient or a class.

Every name that MGI reads from a file, a server or the configuration goes through one of these functions where it
enters, so that nothing after that has to ask whether a name is safe.
"""

import re
import unicodedata
from collections.abc import Iterable

from mgi.errors import InvalidNameError, MGIError

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
MAX_NAME_LENGTH = 200
MAX_TEXT_LENGTH = 500
SHOWN = 3

# Letters of other scripts that look like a Latin one, in both cases.
_LOOK_ALIKES = str.maketrans(
    "АВЕЅІЈКМНОРСТУХаеѕіјорсухΑΒΕΖΗΙΚΜΝΟΡΤΥΧοѵԛԝ",  # noqa: RUF001
    "ABESIJKMHOPCTYXaesijopcyxABEZHIKMNOPTYXovqw",
)
# Letters and marks that leave no trace, beside those of the categories below.
_INVISIBLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0]")
_NAME = re.compile(NAME_PATTERN.removesuffix("$") + r"\Z")


def is_name(text: str) -> bool:
    """Return whether `check_name` accepts a text."""
    return len(text) <= MAX_NAME_LENGTH and _NAME.match(text) is not None


def check_name(value: object, what: str, error: type[MGIError] = InvalidNameError) -> str:
    """Return `value` if it can safely become part of a path, a wildcard or a command.

    Parameters
    ----------
    value : object
        The name: ASCII letters, digits, `.`, `_` and `-`, the first a letter or digit, at most 200 characters.
    what : str
        What it names, for the message: "file name", "variant".
    error : type of MGIError
        What to raise.

    Raises
    ------
    MGIError
        `error`, if it is no such name.
    """
    if isinstance(value, str) and is_name(value):
        return value
    raise error(
        f"invalid {what} {quote(value)}: use ASCII letters, digits, '.', '_' and '-', starting with a letter or digit"
    )


def check_text(value: object, what: str, error: type[MGIError] = InvalidNameError) -> str:
    """Return a label, such as a case id or a class, trimmed and in Unicode form NFC.

    Raises
    ------
    MGIError
        `error`, if it is no text, is empty or longer than 500 characters, or holds a control or invisible character or
        a dash other than `-`, which would make two labels of one that look alike.
    """
    if not isinstance(value, str):
        raise error(f"invalid {what} {quote(value)}: text is needed")
    text = unicodedata.normalize("NFC", value).strip()
    if not text or len(text) > MAX_TEXT_LENGTH:
        raise error(f"invalid {what} {quote(value)}: give 1 to {MAX_TEXT_LENGTH} characters")
    if text.isascii() and text.isprintable():
        return text
    if found := _INVISIBLE.search(text):
        raise error(f"invalid {what} {value!a}: it holds U+{ord(found[0]):04X}, which is invisible")
    for character in text:
        category = unicodedata.category(character)
        if category[0] == "C" or category in ("Zl", "Zp") or (category in ("Pd", "Zs") and character not in "- "):
            name = unicodedata.name(character, f"U+{ord(character):04X}")
            raise error(f"invalid {what} {quote(value)}: it holds {name} (U+{ord(character):04X}); use '-' or a space")
    return text


def check_case_ids(
    values: Iterable[object], where: str, error: type[MGIError] = InvalidNameError, what: str = "case id"
) -> list[str]:
    """Return case ids, or labels of another kind, trimmed, of which no two may be one written in two ways.

    A case id may occur several times; each occurrence is returned.

    Raises
    ------
    MGIError
        `error`, if one is missing or no label, or two look alike: they differ in upper and lower case only, or in
        letters of several scripts.
    """
    checked = [check_text(value, f"{what} in {where}", error) for value in values]
    seen: dict[str, str] = {}
    for case_id in checked:
        looks = unicodedata.normalize("NFKC", case_id).translate(_LOOK_ALIKES).casefold()
        other = seen.setdefault(looks, case_id)
        if other != case_id:
            raise error(
                f"{where} writes one {what} in two ways, {_spell(other)} and {_spell(case_id)}: write each {what} the "
                "same way everywhere"
            )
    return checked


def _spell(case_id: str) -> str:
    return f"'{case_id}'" if case_id.isascii() else f"'{case_id}' ({case_id!a})"


def quote(value: object, length: int = 80) -> str:
    """Return `value` in quotes for a message, cut to `length`, with control and invisible characters escaped."""
    text = value if isinstance(value, str) else repr(value)
    shown = text if len(text) <= length else f"{text[: length - 3]}..."
    return f"'{escape(shown)}'"


def escape(text: str) -> str:
    """Return text in one line, with control and invisible characters escaped."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def first_few(values: Iterable[object]) -> str:
    """Return the first three values, quoted, and how many there are beyond: `'a', 'b', 'c' and 5 more`."""
    listed = list(values)
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return ", ".join(map(quote, listed[:SHOWN])) + more


def match_exactly(names: Iterable[object]) -> str:
    """Return a regular expression for exactly these safe names; it matches nothing where there are none."""
    return "|".join(re.escape(str(name)) for name in names) or "(?!)"
