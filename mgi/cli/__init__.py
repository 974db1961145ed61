"""The `mgi` command: what every rule of the workflow calls, and what a user calls by hand.

Each command only reads its arguments and calls one function of its stage; heavy libraries are imported inside it, so
that `mgi --help` answers at once. Exit codes: 0 done, 1 a user error, in one sentence, 2 wrong usage.
"""

import os
import sys

from mgi.cli.common import app
from mgi.console import log_error, set_up_logging
from mgi.errors import MGIError, describe_memory_error, describe_os_error

# Each registers its commands; `mgi --help` lists them in this order.
from mgi.cli import machine, simulate, acquire, prepare, train, evaluate, report  # noqa: F401  # isort: skip

__all__ = ["app", "main"]


def main() -> None:
    """Run the command; print a user error in one sentence and exit with 1."""
    set_up_logging()
    try:
        app()
    except MGIError as error:
        log_error(error, str(error))
        sys.exit(1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        log_error(error, describe_os_error(error))
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:
        reason = describe_memory_error(error)
        if reason is None:
            raise
        log_error(error, reason)
        sys.exit(1)
