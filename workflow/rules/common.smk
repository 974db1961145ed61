"""What the rules share: the validated configuration, and small getters that turn it into file names."""

import functools
import json
import re
import shlex
import sys

from snakemake.exceptions import WorkflowError

CHECKOUT = Path(workflow.basedir).parent
sys.path.insert(0, str(CHECKOUT))

from mgi.acquire.manifest import ANNOTATION, EXPRESSION
from mgi.acquire.manifest import dicom_name, read_exclusions, read_manifest, refuse_other_choice
from mgi.prepare.mri import fingerprint
from mgi.config import load_config
from mgi.errors import MGIError
from mgi.prepare.annotations import check_annotations, find_annotation
from mgi.prepare.cohort import slide_batches


def refused(function):
    """Turn an error that the user can put right into Snakemake's own, which shows its sentence without a traceback."""

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except MGIError as problem:
            raise WorkflowError(str(problem)) from None

    return wrapper


CFG = refused(load_config)(config)
PROJECTS = CFG.gdc.projects if CFG.gdc else []
SIMULATED = CFG.gdc.api_url.removeprefix("local:") if CFG.simulate else None
FOLDS = CFG.folds_to_run()
ENCODERS = CFG.finetune[CFG.evaluate.reference].encoders
GPU = 1 if CFG.device == "cuda" else 0
TRAINING_ENV = f"../envs/train-{'gpu' if GPU else 'cpu'}.yaml"

# A manifest pins a cohort: one that is there is an input like any other, which no change of the configuration or of
# this workflow makes anew. The simulated cohort's follows its simulation.
MANIFEST = "resources/gdc/{project}/manifest.parquet"
PINNED = [] if CFG.simulate else [name for name in PROJECTS if Path(MANIFEST.format(project=name)).exists()]


def one_of(names):
    """A regular expression for exactly these names; it matches nothing where there are none."""
    return "|".join(map(re.escape, names)) or "(?!)"


wildcard_constraints:
    cohort=re.escape(CFG.cohort),
    project=one_of(PROJECTS),
    source=r"[^/.]+",
    part=r"\d+",
    variant=one_of([*CFG.pretrain, *CFG.finetune]),
    fold=one_of(map(str, range(CFG.split.folds))),
    run=one_of([*(f"fold{fold}" for fold in range(CFG.split.folds)), "all"]),


# Rules call this checkout's code in whatever environment they run; without conda or containers that is the one of the
# running Snakemake, activated or not.
DEPLOYED = bool(workflow.deployment_settings.deployment_method)
shell.prefix(
    "set -euo pipefail; "
    + ("" if DEPLOYED else f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH; ")
    + f"export PYTHONPATH={shlex.quote(str(CHECKOUT))}${{{{PYTHONPATH:+:$PYTHONPATH}}}}; "
)


# A slide is on the disk from its fetch to its tiles. Tiling goes first, so this bounds both together.
if CFG.slides and "slides_in_flight" not in workflow.global_resources:
    workflow.register_resource("slides_in_flight", CFG.slides.in_flight)


# What the user gives is looked for now: an error in an input function would come with a traceback.
for key, path in CFG.given_files().items():
    if not Path(path).exists():
        raise WorkflowError(f"configuration: '{key}' is {path}, which is not there: put it there or correct the key")


# ---- acquire


def manifest(wildcards):
    """The manifest of a project."""
    pinned = MANIFEST.format(project=wildcards.project)
    return pinned if wildcards.project in PINNED else checkpoints.query.get(project=wildcards.project).output.manifest


def manifests(wildcards):
    """The manifests of all projects."""
    return [
        MANIFEST.format(project=name) if name in PINNED else checkpoints.query.get(project=name).output.manifest
        for name in PROJECTS
    ]


def queried():
    """Options of `mgi gdc query`: only what this configuration reads is pinned."""
    star = "--data-type expression "
    star += "" if CFG.expression.positions else f"--annotation-file-id {CFG.expression.annotation_file_id} "
    options = [f"--slides={name}" for name in CFG.gdc.slides]
    options += [f"--sample-type={name}" for name in CFG.gdc.sample_types]
    options += [f"--aliquots={CFG.gdc.aliquots}", f"--slides-per-case={CFG.gdc.slides_per_case}"]
    options += [f"--exclude={CFG.gdc.exclude}"] if CFG.gdc.exclude else []
    kinds = (star if CFG.expression.table is None else "") + ("--data-type slides " if CFG.slides else "")
    return kinds + shlex.join(options)


def source_options(wildcards):
    """Options of `mgi gdc fetch` that say where from and how.

    They are given as a resource, which a job is not run again for: a file is the same wherever it comes from.
    """
    options = ["--api-url", CFG.gdc.api_url, "--workers", str(CFG.gdc.workers)]
    options += [f"--mirror={address}" for address in CFG.gdc.mirrors]
    options += [f"--token-file={CFG.gdc.token_file}"] if CFG.gdc.token_file else []
    return shlex.join(options)


@refused
def refuse_excluded(path):
    """A pinned manifest is not made anew, so one that holds what is to be left out is refused."""
    excluded = read_exclusions(CFG.gdc.exclude)
    held = [file_id for file_id in read_manifest(path).file_id if file_id in excluded]
    if held:
        raise WorkflowError(
            f"{path} pins {len(held)} files that gdc.exclude leaves out, {held[0]} the first: "
            "move it away and run `snakemake pin` to pin the cohort anew"
        )


for name in PINNED:
    if CFG.gdc.exclude:
        refuse_excluded(MANIFEST.format(project=name))
    refused(refuse_other_choice)(
        MANIFEST.format(project=name),
        slides=sorted(CFG.gdc.slides),
        sample_types=CFG.gdc.sample_types,
        aliquots=CFG.gdc.aliquots,
        slides_per_case=CFG.gdc.slides_per_case,
    )


def expression_receipts(wildcards):
    """The receipts of the jobs that fetch the STAR tables of every project, so many at a time."""
    receipts = []
    for project, path in zip(PROJECTS, manifests(wildcards), strict=True):
        files = int((refused(read_manifest)(path).data_type == EXPRESSION).sum())
        parts = range(-(-files // CFG.gdc.files_per_job))
        receipts += [f"resources/gdc/{project}/receipts/expression/{part}.tsv" for part in parts]
    return receipts


def rows_of_part(wildcards):
    """The STAR tables that one job fetches."""
    start = int(wildcards.part) * CFG.gdc.files_per_job
    return f"{start}:{start + CFG.gdc.files_per_job}"


def kept_or_temporary(folder):
    """The folder of a batch's slides; a whole cohort of them may be larger than the disk."""
    return directory(folder) if CFG.slides.keep_slides else temp(directory(folder))


@refused
@functools.cache
def batches_of(*paths):
    """The batches of these manifests, once it is sure that every annotation belongs to a slide of theirs."""
    found = {
        name: (project, rows)
        for project, path in zip(PROJECTS, paths, strict=True)
        for name, rows in slide_batches(read_manifest(path), CFG.slides.per_job).items()
    }
    if CFG.slides.annotations:
        check_annotations(CFG.slides.annotations, [name for _, rows in found.values() for name in rows.source_id])
    return found


def batches(wildcards):
    """The slides that one job fetches and one job tiles: {name: (project, their rows of its manifest)}."""
    return batches_of(*manifests(wildcards))


def batch(wildcards):
    """The project and the rows of one batch."""
    found = batches(wildcards)
    if wildcards.source not in found:
        raise WorkflowError(f"no slides are taken together as {wildcards.source}; the batches are {', '.join(found)}")
    return found[wildcards.source]


def slide_folder(wildcards):
    """The folder of a batch's slides."""
    return f"resources/gdc/{batch(wildcards)[0]}/slides/{wildcards.source}"


def slide_files(wildcards):
    """The slides of a batch."""
    folder, rows = slide_folder(wildcards), batch(wildcards)[1]
    names = rows.file_name.map(dicom_name) if CFG.slides.fetch_from == "idc" else rows.file_name
    return [f"{folder}/{file_id}/{name}" for file_id, name in zip(rows.file_id, names, strict=True)]


def kept_genes():
    """Options of `mgi expression build` that say which genes are kept."""
    if CFG.expression.genes:
        return [f"--genes={CFG.expression.genes}"]
    return [f"--gene-type={name}" for name in CFG.expression.gene_types or ["all"]]


def annotation_files(wildcards):
    """The annotations of a batch's slides: a slide that gains one, or whose own changes, is tiled again."""
    if not CFG.slides.annotations:
        return []
    found = (find_annotation(CFG.slides.annotations, name) for name in batch(wildcards)[1].source_id)
    return [str(path) for path in found if path]


@refused
def annotation_file(wildcards):
    """The gene annotation: the user's, or the one that the manifest of the first project pins."""
    if CFG.expression.positions:
        return CFG.expression.positions
    path = manifests(wildcards)[0]
    pinned = read_manifest(path)
    for row in pinned[pinned.data_type == ANNOTATION].itertuples():
        return f"resources/gdc/{PROJECTS[0]}/annotation/{row.file_id}/{row.file_name}"
    raise WorkflowError(f"{path} pins no gene annotation: move it away and run `snakemake pin` to pin the cohort anew")


if CFG.slides and len(PINNED) == len(PROJECTS):
    batches_of(*(MANIFEST.format(project=name) for name in PROJECTS))


# ---- prepare to report


def image_tables(wildcards):
    """The tables of images of the cohort."""
    names = ["mri"] if CFG.mri else batches(wildcards)
    return [f"results/{CFG.cohort}/images/{name}.parquet" for name in names]


def status_tables(wildcards):
    """What became of the slides of every batch."""
    return [f"results/{CFG.cohort}/images/{name}.status.parquet" for name in batches(wildcards)]


def stratification():
    """Options of `mgi split` that name the classes which every fold holds alike."""
    if CFG.split.stratify_table is None:
        return ""
    return f"--stratify-table {shlex.quote(CFG.split.stratify_table)} --stratify-column {CFG.split.stratify_column}"


def options(stage):
    """A function that gives a variant's options as text, so that only a change of its own options reruns it."""
    return lambda wildcards: json.dumps(getattr(CFG, f"{stage}_options")(wildcards.variant), sort_keys=True)


def profiles(wildcards):
    """The expression and its genes, where a fine-tuning variant reads them."""
    read = CFG.finetune[wildcards.variant].genes != "none"
    return [f"results/{{cohort}}/{name}.parquet" for name in ("expression", "genes")] if read else []


def encoders(run):
    """An input function for the pre-trained encoders that a fine-tuning variant starts from, if it does."""

    def getter(wildcards):
        if not CFG.needs_pretraining(wildcards.variant):
            return []
        folder = f"results/{{cohort}}/pretrain/{CFG.finetune[wildcards.variant].encoders}/{run}"
        return [f"{folder}/model.safetensors", f"{folder}/config.json"]

    return getter


def compared(file):
    """The file of each variant that is compared."""
    return [f"results/{CFG.cohort}/finetune/{variant}/{file}" for variant in CFG.evaluate.variants]


def metrics():
    """The training curves of every run that the comparison rests on."""
    fine = [f"finetune/{variant}/fold{fold}" for variant in CFG.evaluate.variants for fold in FOLDS]
    used = {CFG.finetune[name].encoders: None for name in CFG.evaluate.variants if CFG.needs_pretraining(name)}
    pre = [f"pretrain/{variant}/fold{fold}" for variant in used for fold in FOLDS]
    return [f"results/{CFG.cohort}/{run}/metrics.csv" for run in pre + fine]


def final_outputs():
    """What a bare `snakemake` makes."""
    names = [
        "evaluate/comparison.csv",
        *(f"report/{name}.png" for name in ("flow", "losses", "comparison", "overlays")),
    ]
    if CFG.needs_pretraining(CFG.evaluate.reference):
        names.append("evaluate/retrieval.csv")
    return [f"results/{CFG.cohort}/{name}" for name in names]
