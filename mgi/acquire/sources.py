"""Where files come from: folders of this machine, mirrors on the web, and the GDC."""

import re
from contextlib import ExitStack, closing
from pathlib import Path
from urllib.parse import quote as quote_path

from mgi.acquire.answers import check_status, content_length
from mgi.acquire.partial import CHUNK, MAX_UNSIZED_BYTES, Part
from mgi.acquire.retry import (
    PASSING,
    Attempts,
    ExhaustedError,
    RetryPolicy,
    TryAgainError,
    describe,
)
from mgi.acquire.web import Server
from mgi.console import log
from mgi.errors import ConfigError, FetchError, MissingInputError
from mgi.names import quote

MIRROR_TRIES = 2
# So many files in a row, and a mirror is not asked any more.
MAX_MIRROR_FAILURES = 3
RANGE_NOT_SATISFIABLE = 416
PARTIAL_CONTENT = 206


class Source:
    """Where files come from.

    Attributes
    ----------
    policy : RetryPolicy
        How often it may fail for one file.
    failures : int
        Files in a row that it failed for.
    """

    def __init__(self, policy: RetryPolicy):
        self.policy, self.failures = policy, 0

    def stream(self, part: Part) -> None:
        """Append what is missing of a file."""
        raise NotImplementedError


class Folder(Source):
    """A mirror on this machine, such as a folder that the GDC's own client filled."""

    def __init__(self, folder: Path):
        super().__init__(RetryPolicy(tries=1, mismatches=1, patient=False))
        self.folder = folder

    def __str__(self) -> str:
        """Return the folder, for messages."""
        return str(self.folder)

    def find(self, file_id: str, name: str) -> Path | None:
        """Return the path of a file, None if it is not there."""
        paths = (self.folder / file_id / name, self.folder / name, self.folder / file_id / f"{name}.partial")
        return next((path for path in paths if path.is_file()), None)

    def has_whole(self, file_id: str, name: str, size: int | None) -> bool:
        """Return whether a file is there, and not only a part of its size in bytes; None: of an unknown size."""
        path = self.find(file_id, name)
        if path is None or path.suffix == ".partial":
            return False
        return size is None or path.stat().st_size == size

    def stream(self, part: Part) -> None:
        """Append what is missing of a file."""
        path = self.find(part.file.file_id, part.file.name)
        if path is None:
            raise FetchError(f"{self.folder} does not have it")
        if part.file.size is not None and path.stat().st_size > part.file.size:
            raise FetchError(f"{path} is longer than the file: {path.stat().st_size} of {part.file.size} bytes")
        with open(path, "rb") as source:
            source.seek(part.have)
            part.append(lambda: source.read(CHUNK))


class Site(Source):
    """The GDC, or a mirror on the web; `path` is what follows the address."""

    def __init__(self, server: Server, path: str, policy: RetryPolicy):
        super().__init__(policy)
        self.server, self.path = server, path

    def __str__(self) -> str:
        """Return the address, for messages."""
        return str(self.server)

    def stream(self, part: Part) -> None:
        """Append what is missing of a file; begin again where the server does not continue at the right byte."""
        path = self.path.replace("{file_id}", part.file.file_id).replace("{file_name}", quote_path(part.file.name))
        headers = {"Range": f"bytes={part.have}-"} if part.have else {}
        with closing(self.server.request("GET", path, headers)) as answer:
            span = answer.headers.get("Content-Range", "")
            if answer.status_code == RANGE_NOT_SATISFIABLE:
                if part.file.size is None and span == f"bytes */{part.have}":
                    return
                part.restart()
                raise TryAgainError("the server cannot continue the partial file; it was dropped")
            check_status(answer)
            continues = answer.status_code == PARTIAL_CONTENT
            self._refuse_other_length(part, content_length(answer), span if continues else None)
            if "html" in answer.headers.get("Content-Type", "").lower():
                raise TryAgainError("the server answered with a web page instead of the file")
            if continues and not span.startswith(f"bytes {part.have}-"):
                part.restart()
                raise TryAgainError("the server continued at another byte than asked")
            if not continues and part.have:
                part.restart()
            # Not `read`, which throws away what came before the connection broke off.
            part.append(lambda: answer.raw.read1(CHUNK, decode_content=False))

    def _refuse_other_length(self, part: Part, stated: int | None, span: str | None) -> None:
        """Raise before a body is taken that is stated to be of another length than the file."""
        size = part.file.size
        if span is not None:
            total = re.fullmatch(r"bytes \d{1,18}-\d{1,18}/(\d{1,18})", span)
            stated = int(total[1]) if total else None
        if size is None:
            if (stated or 0) > MAX_UNSIZED_BYTES:
                raise FetchError(f"the server offers {stated} bytes; the limit for files of unknown size is "
                                 f"{MAX_UNSIZED_BYTES}")  # fmt: skip
        elif stated is not None and stated != size:
            raise TryAgainError(f"the server offers {stated} bytes, but the file has {size}")


def open_mirror(address: str, stack: ExitStack, *, allow_http: bool) -> Source:
    """Return the mirror at an address, closed with `stack`.

    Parameters
    ----------
    address : str
        A folder that holds `{file_id}/{file_name}` or `{file_name}`, or an http(s) address, to which `/data/{file_id}`
        is appended unless it holds `{file_id}` or `{file_name}` itself.

    Raises
    ------
    ConfigError
        If it is an address that cannot be used.
    MissingInputError
        If it is a folder that is missing.
    """
    if "://" not in address:
        if not Path(address).is_dir():
            raise MissingInputError(f"the mirror {address} is missing; a mirror is a folder or an http(s) address")
        return Folder(Path(address))
    cut = address.rfind("/", 0, address.index("{")) if "{" in address else len(address)
    base, path = address[:cut], address[cut:] or "/data/{file_id}"
    unknown = set(re.findall(r"{(.*?)}", address)) - {"file_id", "file_name"}
    if unknown and "@" not in address:
        raise ConfigError(
            f"the mirror {quote(address)} has {{{min(unknown)}}}; only {{file_id}} and {{file_name}} are known"
        )
    if base.endswith((":/", "://")):
        raise ConfigError(f"the mirror {quote(address)} names no host before its first '{{'")
    server = stack.enter_context(Server(base, allow_http=allow_http))
    return Site(server, path, RetryPolicy(tries=MIRROR_TRIES, mismatches=1, patient=False))


def complete_part(part: Part, sources: list[Source]) -> None:
    """Complete a `.part` from the first source that can.

    Raises
    ------
    FetchError
        The failure of the last source.
    """
    for source in sources[:-1]:
        if source.failures >= MAX_MIRROR_FAILURES:
            continue
        try:
            _complete_from(source, part)
            return
        except (FetchError, OSError) as error:
            if part.meter.stop.is_set():
                raise
            log.debug("%s: %s: %s; the next source is tried", part.file.name, source, error)
            # A mirror that lacks a file is not down.
            source.failures = source.failures + 1 if isinstance(error, ExhaustedError) else 0
            if source.failures == MAX_MIRROR_FAILURES:
                log.warning("the mirror %s failed for %d files in a row and is left out: %s",
                            source, MAX_MIRROR_FAILURES, error)  # fmt: skip
    try:
        _complete_from(sources[-1], part)
    except ExhaustedError:
        part.meter.health.record_failed_file()
        raise


def _complete_from(source: Source, part: Part) -> None:
    """Complete a `.part` from one source, attempt by attempt."""
    attempts = Attempts(source.policy, part.meter.health, part.file.size, part.have)
    while True:
        part.attempts += 1
        try:
            if part.have != part.file.size:
                source.stream(part)
            part.verify()
            source.failures = 0
            return
        except PASSING as error:
            try:
                pause = attempts.pause_after(error, part.have)
            except FetchError as final:
                lasting = "; if this persists, exclude the file and pin the cohort again" if attempts.mismatches else ""
                raise type(final)(f"{final} (after {part.attempts} attempts{lasting})") from error
            log.info("%s: %s; attempt %d in %.0f s", part.file.name, describe(error), part.attempts + 1, pause)
            part.meter.stop.pause(pause)
