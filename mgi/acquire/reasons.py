"""Many problems of few kinds, told in one sentence."""

import re
from collections import defaultdict
from collections.abc import Iterable

from mgi.names import SHOWN, quote

SHOWN_KINDS = 3
MAX_SHOWN_NAME = 160


def group_problems(problems: Iterable[tuple[str, str]]) -> str:
    """Return what is wrong with which files, one kind of problem after the other, the commonest first.

    Parameters
    ----------
    problems : iterable of (str, str)
        The name of each file and what is wrong with it. Reasons that differ only in numbers are of one kind, for which
        the first stands.
    """
    kinds: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for name, reason in problems:
        kinds[re.sub(r"\d+|[0-9a-f]{32}", "0", reason)].append((name, reason))
    ordered = sorted(kinds.values(), key=len, reverse=True)
    told = [f"{found[0][1]} ({_list_names([name for name, _ in found])})" for found in ordered[:SHOWN_KINDS]]
    more = [f"{len(ordered) - SHOWN_KINDS} more kinds of problem"] if len(ordered) > SHOWN_KINDS else []
    return "; ".join(told + more)


def _list_names(names: list[str]) -> str:
    """Return the first three names, quoted at greater length than elsewhere: those of the GDC's files are long."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(quote(name, MAX_SHOWN_NAME) for name in names[:SHOWN]) + more
