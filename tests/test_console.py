"""Messages: one line each, whatever names are in them."""

import logging

import pytest

from mgi import console
from mgi.console import log, log_error, progress, set_up_logging


@pytest.fixture(autouse=True)
def restored_log(monkeypatch):
    monkeypatch.setattr(log, "propagate", log.propagate)
    monkeypatch.setattr(log, "handlers", list(log.handlers))
    yield
    log.setLevel(logging.NOTSET)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_control_characters_are_escaped(is_terminal, monkeypatch, capsys):
    terminal = console.Console(stderr=True, force_terminal=is_terminal, color_system=None, width=200)
    monkeypatch.setattr(console, "_terminal", terminal)
    set_up_logging()
    log.info("slide %s", "a\n2026-01-01 00:00:00 INFO all is well\x1b[2J\r")
    written = capsys.readouterr().err
    assert written.count("\n") == 1 and "\x1b[2J" not in written and "\r" not in written
    assert r"a\n2026-01-01 00:00:00 INFO all is well\x1b" in written


def test_debug_messages_need_verbose(capsys):
    for verbose in (False, True):
        set_up_logging(verbose)
        log.debug("details")
        assert ("details" in capsys.readouterr().err) == verbose


def test_chain_of_causes_is_logged_for_debugging(capsys):
    set_up_logging(verbose=True)
    try:
        try:
            int("x")
        except ValueError as error:
            raise KeyError("column") from error
    except KeyError as error:
        log_error(error, "no such column")
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("ERROR error: no such column")
    assert "DEBUG caused by ValueError: invalid literal" in second


def test_markup_in_names_is_shown_as_it_is(monkeypatch, capsys):
    terminal = console.Console(stderr=True, force_terminal=True, color_system=None, width=100)
    monkeypatch.setattr(console, "_terminal", terminal)
    assert list(progress([1, 2], "[red]slides[/nonsense]")) == [1, 2]
