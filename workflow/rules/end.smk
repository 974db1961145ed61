"""What a run ends with: its results, or the logs of the jobs that failed."""

import subprocess

from snakemake.settings.enums import Quietness

# `make demo` runs like this, and prints the table itself.
QUIET = Quietness.RULES in (workflow.output_settings.quiet or [])


def show_results():
    """Print the table of results and the path of the page, where the default target is complete."""
    if QUIET or not all(placed_path(path).exists() for path in within_results(PLAN.final_outputs())):
        return
    # In a process of its own: the checkout may have been updated since this one began.
    table = [sys.executable, "-P", "-m", "mgi", "report", "table", placed_path(f"<results>/{CFG.cohort}")]
    subprocess.run(table, env=os.environ | {"PYTHONPATH": str(CHECKOUT)}, check=False)


def show_failed_logs():
    """Print the logs of failed jobs where `--quiet rules` hides them."""
    for job in workflow.scheduler.failed if QUIET else []:
        for path in filter(os.path.exists, job.log):
            logger.error("\n".join([f"{job.rule.name} failed; the end of {path}:", *tail(path)]))


def tail(path, lines=30):
    """The last lines of a log."""
    with open(path, errors="replace") as file:
        return [line.rstrip() for line in file][-lines:]


onsuccess:
    show_results()


onerror:
    show_failed_logs()
