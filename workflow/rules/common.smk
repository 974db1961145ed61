"""What the rules share: the plan of the configuration, and small getters that turn it into file names and options."""

import functools

from snakemake.logging import logger

from mgi.config import read_configuration
from mgi.errors import MGIError
from mgi.names import match_exactly
from mgi.plan import Plan
from mgi.prepare.series import open_named

MANIFEST = "<resources>/gdc/{project}/manifest.parquet"
# Module and path variables of this workflow; while jobs are planned, Snakemake has those of the importing workflow.
MODIFIER, PATHVARS = workflow.modifier, workflow.pathvars


def refusing(function):
    """Turn an error that the user can correct into Snakemake's own, which shows its sentence without a traceback."""

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except MGIError as error:
            raise WorkflowError(str(error)) from error

    return wrapper


def placed_path(path):
    """Return the place of a file of this workflow, with its prefix and its path variables."""
    return Path(PATHVARS.apply(str(MODIFIER.modify_path(path))))


def manifest_path(project):
    """Return the place of a project's manifest."""
    return placed_path(MANIFEST.format(project=project))


def configuration_files():
    """The configuration files of this workflow; those of an importing workflow are its own."""
    if not MODIFIER.is_main_snakefile():
        return []
    return [Path(file) for file in workflow.overwrite_configfiles] or [CHECKOUT / "config/config.yaml"]


CFG = refusing(read_configuration)(config, configuration_files())
PLAN = refusing(Plan)(CFG, manifest_path)
TRAINING_ENV = environment("train-gpu" if CFG.gpus else "train-cpu")


wildcard_constraints:
    cohort=match_exactly([CFG.cohort]),
    project=match_exactly(PLAN.projects),
    # Not the table of what became of a batch's slides.
    source=r"[A-Za-z0-9][A-Za-z0-9._-]*(?<!\.status)",
    part="[0-9]+",
    variant=match_exactly([*CFG.pretrain, *CFG.finetune]),
    fold=match_exactly(range(CFG.split.folds)),
    run=match_exactly([*(f"fold{fold}" for fold in range(CFG.split.folds)), "all"]),


# A slide is on the disk from its fetch to its tiles. Tiling goes first, so this bounds both together.
if CFG.fetches_slides and "slides_in_flight" not in workflow.global_resources:
    workflow.register_resource("slides_in_flight", CFG.slides.in_flight)


if workflow.is_main_process:
    for sentence in refusing(PLAN.warnings)():
        logger.warning(sentence)


CHECKED = f"<results>/checks/{PLAN.check_digest()}.json"


def checked(wildcards):
    """Wait for the check of the models where the default target asks for it; it is no input.

    A job that waits is planned anew afterwards. A job in a process of its own and a dry run do not wait, nor does a
    single target, which is checked as the run starts where this environment has torch; where a job must refuse after
    all, it keeps the outputs of an earlier run.
    """
    asked = set(workflow.dag_settings.targets) <= {"all"} and MODIFIER.is_main_snakefile()
    if asked and workflow.is_main_process and not workflow.dryrun:
        checkpoints.check.get()
    return []


def given(path):
    """Return an input function for a file that the user names, which takes no prefix of a module."""
    return lambda wildcards: local(path) if path else []


def training_command(wildcards, threads):
    """The command `mgi` that starts training, in a process for each GPU. As `mgi_command`, no reason to train again."""
    return CFG.launcher(mgi_command(wildcards, threads))


def options(command, *names):
    """A function that returns the options of a command, so that only a change of its own options runs a job again."""
    return lambda wildcards: PLAN.options(command, *(getattr(wildcards, name) for name in names))


def within_results(names):
    """Files of the cohort's results."""
    return [f"<results>/{CFG.cohort}/{name}" for name in names]


# ---- acquire


def project_manifest(project):
    """The manifest of a project, awaited where the workflow makes it."""
    if project not in PLAN.pinned:
        checkpoints.query.get(project=project)
    return MANIFEST.format(project=project)


def manifest(wildcards):
    """The manifest of a job's project."""
    return project_manifest(wildcards.project)


def unchanged_manifest(wildcards):
    """The manifest of a batch's project. A slide is fetched again when its own row changed, not when any row did."""
    return ancient(manifest(wildcards))


def manifests(wildcards):
    """The manifests of all projects."""
    return [project_manifest(name) for name in PLAN.projects]


def slide_manifests(wildcards):
    """The manifests that list the slides; none where the user does."""
    return manifests(wildcards) if CFG.fetches_slides else []


def fetch_options(wildcards, threads):
    """Where files come from and how. A file is the same wherever it comes from, so a change fetches nothing again."""
    return PLAN.options("fetch")


@refusing
def expression_receipts(wildcards):
    """Return the receipts of the jobs that fetch the STAR tables, `gdc.files_per_job` each."""
    manifests(wildcards)
    return [
        f"<resources>/gdc/{project}/receipts/expression/{part}.tsv"
        for project in PLAN.projects
        for part in PLAN.expression_parts(project)
    ]


def annotation_receipt(wildcards):
    """The gene annotation: the user's, or the receipt of the one that is fetched."""
    fetched = f"<resources>/gdc/{PLAN.projects[0]}/receipts/annotation.tsv"
    return local(CFG.expression.positions) if CFG.expression.positions else fetched


def kept_or_temporary(folder):
    """The folder of a batch's slides; a whole cohort of them may be larger than the disk."""
    return directory(folder) if CFG.slides.keep_slides else temp(directory(folder))


@refusing
def batch(wildcards):
    """The project and the rows of one batch of slides."""
    slide_manifests(wildcards)
    return PLAN.batch(wildcards.source)


# ---- prepare to report


@refusing
def slides(wildcards):
    """The user's own slides of a batch, or the folder of those that are fetched."""
    if not CFG.fetches_slides:
        return [local(path) for path in PLAN.slide_files(wildcards.source)]
    return f"<resources>/gdc/{batch(wildcards).project}/slides/{wildcards.source}"


@refusing
def slide_files(wildcards, input):
    """The slides of a batch; the folder of those that are fetched is the job's first input."""
    batch(wildcards)
    names = PLAN.slide_files(wildcards.source)
    return [f"{input[0]}/{name}" for name in names] if CFG.fetches_slides else names


@refusing
def tile_options(wildcards):
    """The options of a batch's slides."""
    batch(wildcards)
    return PLAN.tile_options(wildcards.source)


def slide_names(wildcards):
    """The case and the name of each slide of a batch, as options."""
    rows = batch(wildcards).rows
    return [
        *(f"--case-id={case_id}" for case_id in rows.case_id),
        *(f"--name={source_id}" for source_id in rows.source_id),
    ]


@refusing
def annotation_files(wildcards):
    """The annotations of a batch's slides."""
    batch(wildcards)
    return [local(path) for path in PLAN.annotation_files(wildcards.source)]


@refusing
def gene_annotation(wildcards, input):
    """The gene annotation: the user's, or the one that the first project's manifest pins."""
    if CFG.expression.positions:
        return CFG.expression.positions
    manifests(wildcards)
    return Path(input.annotation).parents[1] / "annotation" / PLAN.gene_annotation()


@refusing
def image_names(wildcards):
    """The names of the cohort's tables of images."""
    slide_manifests(wildcards)
    return ["mri"] if CFG.mri else ["features"] if CFG.features else list(PLAN.batches)


def image_tables(wildcards):
    """The tables of images of the cohort."""
    return within_results(f"images/{name}.parquet" for name in image_names(wildcards))


def status_tables(wildcards):
    """What became of the slides of every batch."""
    return within_results(f"images/{name}.status.parquet" for name in image_names(wildcards))


def preview_folder(folder):
    """The folder of the previews of a batch's slides, where they are made."""
    return directory(folder) if PLAN.draws_previews else []


def coordinates_folder(folder):
    """The folder of the coordinates of a batch's tiles, where they are written."""
    return directory(folder) if CFG.slides.coordinates else []


def preview_folders(wildcards):
    """The previews of every batch."""
    return within_results(f"previews/{name}" for name in image_names(wildcards))


def profiles(wildcards):
    """The expression and its genes, where a fine-tuning variant reads them."""
    return within_results(["expression.parquet", "genes.parquet"]) if PLAN.reads_genes(wildcards.variant) else []


def encoders(wildcards):
    """The pre-trained encoders that a fine-tuning variant starts from, if it does."""
    name = PLAN.encoders(wildcards.variant)
    run = f"fold{wildcards.fold}" if hasattr(wildcards, "fold") else "all"
    files = ("model.safetensors", "config.json") if name else ()
    return within_results(f"pretrain/{name}/{run}/{file}" for file in files)


def reference_embeddings(wildcards):
    """The embeddings of every fold's test patients, by the encoders of the reference variant."""
    return within_results(f"pretrain/{CFG.embedded[0]}/fold{fold}/embeddings.parquet" for fold in PLAN.folds)


def compared_embeddings(wildcards):
    """The embeddings of every fold's test patients, by all encoders whose retrieval is compared."""
    return within_results(
        f"pretrain/{name}/fold{fold}/embeddings.parquet" for name in CFG.embedded for fold in PLAN.folds
    )


def fold_models(wildcards):
    """The folds' models, whose validation patients decide for the model of every patient; none for a fold's own."""
    if hasattr(wildcards, "fold"):
        return []
    return within_results(f"finetune/{wildcards.variant}/fold{fold}/config.json" for fold in PLAN.folds)


@refusing
def images_to_predict(wildcards):
    """The folder of a series, or the slides of a batch."""
    return local(open_named(CFG.mri.folder, wildcards.source).folder) if CFG.mri else slides(wildcards)


@refusing
def files_to_predict(wildcards, input):
    """The folder of a series, or each slide of a batch."""
    return input.images if CFG.mri else slide_files(wildcards, input)


@refusing
def cases_to_predict(wildcards):
    """The case of each image, as options, where a variant reads genes, and the name of each slide."""
    names = [] if CFG.mri else [f"--name={source_id}" for source_id in batch(wildcards).rows.source_id]
    if not PLAN.reads_genes(wildcards.variant):
        return names
    found = [open_named(CFG.mri.folder, wildcards.source).case_id] if CFG.mri else batch(wildcards).rows.case_id
    return [*names, *(f"--case-id={case_id}" for case_id in found)]
