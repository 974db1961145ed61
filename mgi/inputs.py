"""The files that a configuration names, and the manifests that pin its cohort: refused before a job refuses them."""

from pathlib import Path

from mgi.acquire.manifest import EXPRESSION, SLIDES, read_exclusions, read_manifest, refuse_other_choice
from mgi.config import Config
from mgi.errors import CohortError, ConfigError, ManifestError
from mgi.names import first_few
from mgi.tables import read_any_table

PIN_AGAIN = "move it away and run `snakemake pin` to pin the cohort again"
KINDS = {"expression": EXPRESSION, "slides": SLIDES}


def check_given_files(config: Config) -> None:
    """Refuse files that are not there, and tables of patients that lack a column.

    Raises
    ------
    MGIError
        For the first of them.
    """
    for key, path in config.given_files().items():
        if not Path(path).exists():
            raise ConfigError(f"configuration: '{key}' is {path}, which does not exist; create it or correct the key")
    split, probe = config.split, config.probe
    for what, table, columns in (
        ("table to stratify by", split.stratify_table, [split.stratify_column]),
        ("table of sites", split.site_table, [split.site_column]),
        ("table of labels", probe.labels, [*probe.columns, *probe.survival]),
    ):
        # That of the simulated cohort is not there yet.
        if table is not None and Path(table).exists():
            read_any_table(table, what, ["case_id", *map(str, columns)], CohortError)


def check_pinned(config: Config, project: str, path: Path) -> None:
    """Refuse a pinned manifest that differs from what the configuration asks for: it is not made again.

    Raises
    ------
    ManifestError
        If it holds what is to be left out, was pinned by another choice, or has no file of a kind that is read.
    """
    gdc = config.gdc
    assert gdc is not None
    manifest = read_manifest(path)
    if gdc.exclude:
        excluded = read_exclusions(gdc.exclude)
        held = [file_id for file_id in manifest["file_id"] if file_id in excluded]
        if held:
            raise ManifestError(
                f"{path} pins {len(held)} files that gdc.exclude leaves out, {first_few(held)}: {PIN_AGAIN}"
            )
    refuse_other_choice(
        path,
        slides=sorted(gdc.slides),
        sample_types=gdc.sample_types,
        aliquots=gdc.aliquots,
        slides_per_case=gdc.slides_per_case,
    )
    for name in config.query_options(project)["data_types"]:
        if not (manifest["data_type"] == KINDS[name]).any():
            raise ManifestError(f"{path} pins no {name}, which this configuration reads: {PIN_AGAIN}")
