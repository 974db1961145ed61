"""Everything that a configuration and this machine tell before a run, refused in the same words wherever it is asked.

`mgi config`, `mgi check` and `mgi doctor` call this; the workflow calls `mgi.plan` while it builds its graph, and
`mgi check` in a first job, where torch is installed.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgi.config import Config, load_config
from mgi.console import log
from mgi.errors import MissingPackageError

if TYPE_CHECKING:
    from mgi.plan import Plan

MANIFEST = "resources/gdc/{project}/manifest.parquet"


def check_configuration(source: Path | str | dict[str, Any]) -> Config:
    """Check a configuration, the files that it names, and, where torch is installed, its models.

    Raises
    ------
    MGIError
        For the first thing that would fail.
    """
    config = load_config(source)
    for warning in check_inputs(config).warnings():
        log.warning("configuration: %s", warning)
    try:
        check_models(config)
    except MissingPackageError as error:
        log.warning("the models were not built: %s; the workflow does it in a first job", error)
    return config


def check_inputs(config: Config) -> "Plan":
    """Check the files that a configuration names, and the manifests that pin its cohort; return the workflow's plan.

    Raises
    ------
    MGIError
        If one is missing or does not fit.
    """
    from mgi.plan import Plan

    return Plan(config, lambda project: Path(MANIFEST.format(project=project)))


def check_models(config: Config) -> None:
    """Build the models of every variant without memory for their weights, and look for the device.

    Raises
    ------
    ConfigError
        If a model cannot be built for images of this size, or the device is missing.
    MissingPackageError
        If torch or timm is not installed.
    """
    try:
        from mgi.train.preflight import check_models as check
    except ImportError as error:
        raise MissingPackageError(f"{error.name or 'a package'} is not installed here") from error
    check(config)
