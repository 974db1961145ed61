"""When another attempt is made, how long is waited, and when a source is given up."""

import time

import pytest
import requests

from mgi.acquire import retry
from mgi.acquire.retry import (
    Attempts,
    ExhaustedError,
    Health,
    MismatchError,
    RetryPolicy,
    TryAgainError,
    describe,
    with_retries,
)
from mgi.errors import FetchError

BROKEN = requests.ConnectionError("broken")


@pytest.fixture
def health():
    return Health(patience=2)


def fail(attempts, error, times, done=0):
    return [attempts.pause_after(error, done) for _ in range(times)]


def test_source_is_given_up_after_so_many_failures_in_a_row(health):
    attempts = Attempts(RetryPolicy(tries=3), health, 1000, 0)
    assert len(fail(attempts, BROKEN, 2)) == 2
    with pytest.raises(ExhaustedError, match="the connection failed"):
        attempts.pause_after(BROKEN, 0)


def test_progress_of_a_hundredth_starts_the_count_again(health):
    attempts = Attempts(RetryPolicy(tries=2), health, 1000, 0)
    for done in range(10, 1000, 10):
        attempts.pause_after(BROKEN, done)
    with pytest.raises(ExhaustedError):
        attempts.pause_after(BROKEN, 999)


def test_less_progress_than_that_does_not_count(health):
    attempts = Attempts(RetryPolicy(tries=2), health, 1000, 0)
    attempts.pause_after(BROKEN, 9)
    with pytest.raises(ExhaustedError):
        attempts.pause_after(BROKEN, 18)


def test_wrong_bytes_are_counted_whatever_the_progress(health):
    attempts = Attempts(RetryPolicy(mismatches=2), health, 1000, 0)
    attempts.pause_after(MismatchError("other bytes"), 500)
    with pytest.raises(FetchError, match="other bytes") as caught:
        attempts.pause_after(MismatchError("other bytes"), 1000)
    assert not isinstance(caught.value, ExhaustedError)


def test_outage_of_a_server_that_worked_is_waited_for_by_the_patient_only(health, monkeypatch):
    monkeypatch.setattr(retry, "OUTAGE_AFTER_SECONDS", 0.0)
    health.record_bytes()
    fail(Attempts(RetryPolicy(tries=2), health, 1000, 0), BROKEN, 50)
    with pytest.raises(ExhaustedError):
        fail(Attempts(RetryPolicy(tries=2, patient=False), health, 1000, 0), BROKEN, 2)
    with pytest.raises(ExhaustedError):
        fail(Attempts(RetryPolicy(tries=2), health, 1000, 0), TryAgainError("of this file only"), 2)
    monkeypatch.setattr(retry, "OUTAGE_SECONDS", time.monotonic() - health.last_received)
    with pytest.raises(ExhaustedError):
        fail(Attempts(RetryPolicy(tries=2), health, 1000, 0), BROKEN, 2)


def test_server_that_never_worked_is_not_waited_for(health, monkeypatch):
    monkeypatch.setattr(retry, "OUTAGE_AFTER_SECONDS", 0.0)
    with pytest.raises(ExhaustedError):
        fail(Attempts(RetryPolicy(tries=2), health, 1000, 0), BROKEN, 2)


def test_files_are_tried_once_when_too_many_failed_and_often_again_when_bytes_arrive(health):
    health.record_failed_file()
    fail(Attempts(RetryPolicy(tries=2), health, 1000, 0), BROKEN, 1)
    health.record_failed_file()
    with pytest.raises(ExhaustedError):
        fail(Attempts(RetryPolicy(tries=2), health, 1000, 0), BROKEN, 1)
    health.record_bytes()
    fail(Attempts(RetryPolicy(tries=2), health, 1000, 0), BROKEN, 1)


def test_pauses_double_up_to_a_limit_and_keep_to_what_the_server_asks(health):
    pauses = fail(Attempts(RetryPolicy(tries=2000), health, 1000, 0), BROKEN, 1500)
    for number, pause in enumerate(pauses[:7]):
        assert 0.5 * 2**number <= pause <= min(1.5 * 2**number, 90)
    assert max(pauses) <= 1.5 * retry.MAX_BACKOFF_SECONDS
    asked = TryAgainError("busy", after=700.0)
    assert fail(Attempts(RetryPolicy(), health, 1000, 0), asked, 1) == [700.0]
    assert fail(Attempts(RetryPolicy(patient=False), health, 1000, 0), asked, 1)[0] < 2


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (requests.exceptions.SSLError("CERTIFICATE_VERIFY_FAILED"), "certificate is not trusted"),
        (requests.exceptions.ProxyError("Tunnel connection failed: 403 Forbidden'))"), "403 Forbidden"),
    ],
)
def test_what_does_not_pass_is_not_tried_again(health, error, said):
    with pytest.raises(FetchError, match=said):
        Attempts(RetryPolicy(), health, 1000, 0).pause_after(error, 0)


def test_proxy_that_refuses_is_named_without_its_password(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://me:s3cret@proxy.example:3128")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    request = requests.Request("GET", "https://gdc.example/status").prepare()
    said = describe(requests.exceptions.ProxyError("Tunnel connection failed: 407 Auth\x1b[2J'", request=request))
    assert "the proxy proxy.example:3128 refused" in said
    assert "s3cret" not in said
    assert "\x1b" not in said


def test_request_is_repeated_so_many_times(no_waiting):
    asked = []

    def attempt():
        asked.append(1)
        raise TryAgainError("busy")

    with pytest.raises(FetchError, match=r"busy \(after 10 attempts"):
        with_retries(attempt)
    assert len(asked) == retry.MAX_TRIES
