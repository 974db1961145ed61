"""Find and call this workflow's own Python code, also when another Snakefile imports the workflow as a module."""

import os
import shutil
import sys
import tarfile
import tempfile

from snakemake.exceptions import WorkflowError
from snakemake.settings.types import DeploymentMethod
from snakemake.sourcecache import HostingProviderFile, LocalGitFile, LocalSourceFile


def find_checkout(rules):
    """Return the folder that contains `mgi/`, from the folder of the rules; unpack it from git where it is remote."""
    if isinstance(rules, LocalSourceFile):
        return Path(rules.get_path_or_uri(secret_free=True)).parents[1]
    if not isinstance(rules, HostingProviderFile | LocalGitFile):
        raise WorkflowError(f"{rules}: name a checkout of this workflow, or github(), gitlab() or gitfile()")
    from git import Repo

    repository = Repo(rules.repo_path) if isinstance(rules, LocalGitFile) else rules.hosted_repo.repo
    commit = repository.commit(rules.ref).hexsha
    checkout = Path(workflow.sourcecache.cache_path) / "mgi" / commit
    if not checkout.exists():
        checkout.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=checkout.parent))
        with tempfile.TemporaryFile() as archive:
            repository.archive(archive, commit, path=["mgi", "config"])
            archive.seek(0)
            with tarfile.open(fileobj=archive) as files:
                files.extractall(aside, filter="data")
        try:
            aside.rename(checkout)
        except OSError:
            # Another process was faster.
            shutil.rmtree(aside)
    return checkout


CHECKOUT = find_checkout(workflow.current_basedir)
# Nothing is written into a checkout that is read-only.
READ_ONLY = not CHECKOUT.stat().st_mode & 0o222 or not os.access(CHECKOUT, os.W_OK)
sys.dont_write_bytecode |= READ_ONLY
sys.path.insert(0, str(CHECKOUT))
# Another checkout may have been imported before, as a module of the same Snakefile.
if "mgi" in sys.modules and Path(sys.modules["mgi"].__file__).parents[1] != CHECKOUT:
    for name in [name for name in sys.modules if name.partition(".")[0] == "mgi"]:
        del sys.modules[name]


def literal(path):
    """A path without wildcards."""
    return path.replace("{", "{{").replace("}", "}}")


def environment(name):
    """The conda environment `name`, beside the rules."""
    file = f"envs/{name}.yaml"
    local_file = CHECKOUT / "workflow" / file
    return literal(str(local_file)) if local_file.exists() else f"../{file}"


def deployed():
    """Whether rules run in an environment of their own: conda, or a container that the user added."""
    methods = workflow.deployment_settings.deployment_method
    in_container = DeploymentMethod.APPTAINER in methods and workflow.modifier.global_container_img
    return DeploymentMethod.CONDA in methods or bool(in_container)


# At parse time: while jobs are planned, the modifier is that of the importing workflow.
DEPLOYED = deployed()


def mgi_command(wildcards, threads):
    """The command `mgi` of this checkout, without the working directory on Python's path.

    It asks for `threads` because Snakemake does not compare such parameters with those of an earlier run: another
    place of the checkout or of Python is no reason to run a job again.
    """
    inherited = "" if DEPLOYED else os.getenv("PYTHONPATH", "")
    settings = [f"PYTHONPATH={os.pathsep.join(filter(None, [str(CHECKOUT), inherited]))}"]
    settings += ["PYTHONSAFEPATH=1", *(["PYTHONDONTWRITEBYTECODE=1"] if READ_ONLY else [])]
    return ["env", *settings, "python" if DEPLOYED else sys.executable, "-m", "mgi"]
