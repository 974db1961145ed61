"""Break the code at random places, one at a time, and see whether its tests notice: cosmic-ray on a bounded sample.

Needs `pip install cosmic-ray==8.7.0`. Runs in a copy of the checkout, with the tests of the same folder:

    python dev/mutate.py mgi/evaluate/masks.py mgi/evaluate/statistics.py --mutants 60 --seed 0
"""

import argparse
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import TestOutcome, WorkerOutcome, WorkResult

ROOT = Path(__file__).resolve().parent.parent
CONFIG = """
[cosmic-ray]
module-path = {modules}
timeout = {timeout}.0
excluded-modules = []
test-command = {command}
[cosmic-ray.distributor]
name = "local"
"""
SKIPPED = WorkResult(worker_outcome=WorkerOutcome.SKIPPED, output="not in the sample")


def main() -> None:
    """Mutate, test, and list the mutants that live; exit with 1 if fewer than 85% are killed."""
    options = _parse_options()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Path(folder) / "checkout"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", "results", "resources", "logs"))
        tests = options.tests or sorted(
            {path.replace("mgi/", "tests/", 1).rpartition("/")[0] for path in options.paths}
        )
        command = f"{sys.executable} -m pytest -x -q -n 0 {shlex.join(tests)}"
        modules = "[" + ", ".join(f'"{path}"' for path in options.paths) + "]"
        text = CONFIG.format(modules=modules, timeout=options.timeout, command=f'"{command}"')
        (copy / "mutation.toml").write_text(text)
        _run("init", "mutation.toml", "mutation.sqlite", cwd=copy)
        with use_db(copy / "mutation.sqlite", WorkDB.Mode.open) as database:
            chosen = _draw_sample(database, options.mutants, options.seed)
        _run("exec", "mutation.toml", "mutation.sqlite", cwd=copy)
        with use_db(copy / "mutation.sqlite", WorkDB.Mode.open) as database:
            killed = _report(database, chosen)
    sys.exit(killed < 0.85 * len(chosen))


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", help="files or folders, such as mgi/model")
    parser.add_argument("--tests", nargs="+", help="tests to run; default those of the same folders")
    parser.add_argument("--mutants", type=int, default=200, help="how many, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=int, default=300, help="seconds for one run of the tests")
    return parser.parse_args()


def _run(*command: str, cwd: Path) -> None:
    subprocess.run([sys.executable, "-m", "cosmic_ray.cli", *command], cwd=cwd, check=True)


def _draw_sample(database: WorkDB, count: int, seed: int) -> set[str]:
    """Mark all mutants but `count` as skipped, and return the jobs that are left."""
    jobs = [item.job_id for item in database.work_items]
    chosen = set(random.Random(seed).sample(jobs, min(count, len(jobs))))
    database.set_multiple_results(set(jobs) - chosen, SKIPPED)
    return chosen


def _report(database: WorkDB, chosen: set[str]) -> int:
    """Print the mutants that live and the share killed, and return how many were."""
    results = {job: result for job, result in database.results if job in chosen}
    killed = sum(result.test_outcome is not TestOutcome.SURVIVED for result in results.values())
    for item in database.work_items:
        if item.job_id in chosen and results[item.job_id].test_outcome is TestOutcome.SURVIVED:
            print(results[item.job_id].diff)
    print(f"{killed} of {len(chosen)} mutants killed")
    return killed


if __name__ == "__main__":
    main()
