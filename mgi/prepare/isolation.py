"""A function in a process of its own: what hangs, crashes or takes too much memory there costs that call alone."""

import multiprocessing
import pickle
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

STALL_S = 300.0
TIME_LIMIT_S = 3600.0
MAX_MEMORY = 3 * 2**30


class IsolationError(Exception):
    """The process hung, crashed or ran out of memory; the text says which."""


def run_isolated(
    function: Callable[..., Any], *arguments: Any, stall_s: float = STALL_S, time_limit_s: float = TIME_LIMIT_S
) -> Any:
    """Call `function(beat, *arguments)` in a child process, and return what it returns.

    Parameters
    ----------
    function : callable
        Of a module; calls `beat()`, which takes no argument, whenever it has got on.
    arguments
        What can be pickled.
    stall_s, time_limit_s : float
        Longest time without a beat, and in all.

    Raises
    ------
    IsolationError
        If the child hangs, dies or needs more than 3 GiB.
    Exception
        What the function raises.
    """
    # A fork starts at once and needs no import; other systems than Linux cannot be relied on to survive it.
    context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=_answer, args=(theirs, function, arguments), daemon=True)
    child.start()
    theirs.close()
    deadline = time.monotonic() + time_limit_s
    try:
        while True:
            if not ours.poll(min(stall_s, max(deadline - time.monotonic(), 0))):
                late = time.monotonic() >= deadline
                limit = f"was not done after {time_limit_s:g} s" if late else f"did nothing for {stall_s:g} s"
                raise IsolationError(f"the reader {limit}")
            kind, value = ours.recv()
            if kind == "error":
                raise value
            if kind == "result":
                return value
    except EOFError as error:
        child.join()
        code = child.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        raise IsolationError(f"the reader {how}") from error
    finally:
        child.kill()
        child.join()
        ours.close()


def _answer(pipe: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Send beats, and at last the result or the error."""
    _limit_memory()
    try:
        answer = ("result", function(lambda: pipe.send(("beat", None)), *arguments))
    except MemoryError:
        answer = ("error", IsolationError(f"the reader needs more than {MAX_MEMORY >> 30} GiB"))
    except Exception as error:  # sent to the parent, which raises it
        answer = ("error", error)
    try:
        content = pickle.dumps(answer)
        pickle.loads(content)
    except Exception:  # an error that cannot be pickled may raise anything
        content = pickle.dumps(("error", RuntimeError(f"{type(answer[1]).__name__}: {answer[1]}")))
    pipe.send_bytes(content)


def _limit_memory() -> None:
    """Let this process take 3 GiB beyond what it has inherited, where the system can tell."""
    try:
        import resource

        with open("/proc/self/statm") as file:
            held = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + MAX_MEMORY, resource.RLIM_INFINITY))
    except (ImportError, OSError, ValueError):
        return
