"""Names that enter from outside."""

import pytest

from mgi.errors import InvalidNameError, ManifestError
from mgi.names import check_case_ids, check_name, check_text, first_few, quote

UNSAFE = [
    "",
    ".",
    "..",
    "../x",
    "a/b",
    "a b",
    "$(touch x)",
    "a;b",
    "`id`",
    "-rf",
    ".hidden",
    "a\n",
    "a\\b",
    "é",
    "a" * 201,
]


@pytest.mark.parametrize("name", ["TCGA-AA-0001-01Z-00-DX1.2D89.svs", "a", "7", "S21.1234.A", "x_y-z", "a" * 200])
def test_accepts_plain_names(name):
    assert check_name(name, "file name") == name


@pytest.mark.parametrize("name", [*UNSAFE, "a" * 201, None, 7])
def test_rejects_names_unsafe_in_a_path_or_a_shell(name):
    with pytest.raises(ManifestError, match="invalid file name"):
        check_name(name, "file name", ManifestError)


def test_text_is_trimmed_and_normalised():
    assert check_text("  IDH status (WHO)  ", "column") == "IDH status (WHO)"
    assert check_text("Gru\u0308n", "class") == "Gr\u00fcn"


@pytest.mark.parametrize(
    "text",
    ["", "   ", None, 3.0, "a\nb", "a\x1b[2J", "TCGA\u2010AA\u20100001", "a\u200bb", "a\u00a0b", "\u202ea"],
)
def test_rejects_text_that_hides_what_it_is(text):
    with pytest.raises(InvalidNameError, match="invalid case id"):
        check_text(text, "case id")


def test_case_ids_differing_only_in_case_are_rejected():
    assert check_case_ids([" A-1", "B", "A-1 "], "table") == ["A-1", "B", "A-1"]
    with pytest.raises(InvalidNameError, match="'A-1' and 'a-1'"):
        check_case_ids(["A-1", "B", "a-1"], "table")


@pytest.mark.parametrize("other", ["\u0410\u04301", "\uff21a1", "A\u04301"])
def test_case_ids_of_letters_that_look_alike_are_rejected(other):
    with pytest.raises(InvalidNameError, match=r"in two ways, 'Aa1' and '.*' \('.*\\u"):
        check_case_ids(["Aa1", other], "table")


@pytest.mark.parametrize("character", ["\ufe0f", "\u034f", "\u3164"])
def test_marks_that_leave_no_trace_are_rejected(character):
    with pytest.raises(InvalidNameError, match="invisible"):
        check_text(f"A{character}1", "case id")


@pytest.mark.parametrize("missing", [None, float("nan"), ""])
def test_missing_case_id_is_rejected(missing):
    with pytest.raises(InvalidNameError, match="case id in table"):
        check_case_ids(["A", missing], "table")


def test_messages_escape_control_characters_and_stay_short():
    assert quote("a\nb\x1b") == r"'a\nb\x1b'"
    assert len(quote("x" * 1000)) < 100
    assert first_few("abcdefgh") == "'a', 'b', 'c' and 5 more"
