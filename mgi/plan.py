"""What the workflow asks of a configuration: what is refused, which files there are, and which options a job gets.

The Snakefile calls this while it builds its graph; nothing here knows Snakemake.
"""

import hashlib
import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from mgi.acquire.manifest import ANNOTATION, EXPRESSION, dicom_name, read_manifest
from mgi.config import Config
from mgi.errors import ManifestError
from mgi.inputs import PIN_AGAIN, check_given_files, check_pinned
from mgi.names import check_name, first_few
from mgi.prepare.annotations import check_annotations
from mgi.prepare.cohort import group_slides, slide_batches
from mgi.prepare.features import describe_unusable, fingerprint_features, inspect_features, list_features
from mgi.prepare.folds import check_enough, check_enough_paired
from mgi.prepare.local import LocalSlide, describe_stray_mpp, list_local_slides, read_mpp_table, tabulate_slides
from mgi.prepare.matrix import list_cases
from mgi.prepare.pairing import check_paired, describe_lacking
from mgi.prepare.series import Series, find_series, fingerprint


@dataclass(frozen=True)
class Batch:
    """The slides that one job fetches and one job tiles.

    Parameters
    ----------
    project : str or None
        Their project; None of the user's own slides.
    rows : pandas.DataFrame
        Their rows of its manifest, with a column source_id; of own slides, those of `tabulate_slides`.
    """

    project: str | None
    rows: pd.DataFrame


class Plan:
    """The jobs that a configuration asks for.

    Parameters
    ----------
    config : Config
        A valid configuration.
    manifest_path : callable
        Returns the path of a project's manifest from the project's name.

    Raises
    ------
    MGIError
        If a job would fail with this configuration, the files that it names or the pinned manifests.
    """

    def __init__(self, config: Config, manifest_path: Callable[[str], Path]) -> None:
        self.config = config
        self.projects = config.gdc.projects if config.gdc else []
        self.folds = config.folds_to_run()
        self._manifest_path = manifest_path
        # A manifest that is there pins the cohort: no change of the configuration or of the workflow makes it again.
        # That of the simulated cohort follows its simulation.
        self.pinned = [] if config.simulate else [name for name in self.projects if manifest_path(name).exists()]
        self._check()

    def _check(self) -> None:
        check_given_files(self.config)
        for name in self.pinned:
            check_pinned(self.config, name, self._manifest_path(name))
        if self._lists_slides:
            _ = self.annotations, self.stray_mpp
        _ = self.mri_state, self.features_state

    def check_labelled(self, unusable: Collection[str] = (), without_tumour: Collection[str] = ()) -> None:
        """Raise `CohortError` where too few cases with own images are labelled for the folds, or have tumour.

        The arguments are source_ids: images that will be left out, and those of whose annotation nothing is tumour.
        """
        labelled = self._labelled - set(unusable)
        cases, tumour = ({self.imaged[name] for name in names} for names in (labelled, labelled - set(without_tumour)))
        self._check_enough(cases, tumour, "labelled")

    @property
    def _labelled(self) -> set[str]:
        return (self.imaged.keys() & self.annotations) | {one.source_id for one in self.series if one.is_labelled}

    def _check_enough(self, labelled: set[str], useful: set[str], kind: str) -> None:
        cases = pd.DataFrame({"group": sorted(set(self.imaged.values()))})
        cases["labelled"] = cases["group"].isin(labelled)
        check_enough(cases, cases["group"].isin(useful).to_numpy(), self.config.split.folds, kind)

    # ---- acquire

    @property
    def simulated(self) -> str | None:
        """The folder of the simulated cohort, or None for real data."""
        if self.config.simulate is None or self.config.gdc is None:
            return None
        return self.config.gdc.api_url.removeprefix("local:")

    def options(self, command: str, *arguments: str) -> str:
        """Return the options of a command as JSON: what of the configuration decides its outputs, and nothing else."""
        return json.dumps(getattr(self.config, f"{command}_options")(*arguments), sort_keys=True)

    def check_options(self) -> str:
        """Return as JSON what of the configuration decides whether models can be built here."""
        config = self.config
        known = {"cohort", "seed", "device", "threads", "pretrain", "finetune"}
        options = config.model_dump(include=known, exclude_defaults=True)
        for variant in (*options["pretrain"].values(), *options.get("finetune", {}).values()):
            variant.pop("base", None)  # it is complete by now
        options["evaluate"] = {"variants": config.compared, "reference": config.evaluate.reference}
        if config.gdc:
            options["gdc"] = {"projects": config.gdc.projects}
        if config.expression.table:
            options["expression"] = config.expression.model_dump(include={"table", "positions"})
        files = {"table", "folder", "tile_px", "image_px"}
        for key, part in (("slides", config.slides), ("features", config.features), ("mri", config.mri)):
            if part is not None:
                options[key] = part.model_dump(include=files, exclude_none=True)
        return json.dumps(options, sort_keys=True)

    def check_digest(self) -> str:
        """Return a name for what is checked, so that a configuration that passed is not checked again."""
        return hashlib.sha256(self.check_options().encode()).hexdigest()[:16]

    def warnings(self) -> list[str]:
        """Return what is valid but probably not meant, one sentence each.

        Raises as `find_unpaired` and `mgi.prepare.features.inspect_features` do.
        """
        unusable = describe_unusable(self.own_slides, self.unusable) if self.config.features else []
        return self.config.warnings() + self.find_unpaired() + unusable + self.stray_mpp

    @cached_property
    def unusable(self) -> dict[str, str]:
        """Why files of features cannot be used, by source_id."""
        return inspect_features(self.own_slides)[1] if self.config.features else {}

    def find_unpaired(self) -> list[str]:
        """Return what there is to say of the cases with own images that have no expression, one sentence each.

        Raises
        ------
        CohortError
            If none has expression, or too few are labelled or paired for the folds.
        ExpressionError
            If the table of expression cannot be used.
        """
        expression = self.config.expression
        if not self.imaged:
            return []
        if expression.table is not None:
            where = expression.table
            positions = None if expression.positions is None else Path(expression.positions)
            expressed = list_cases(Path(where), positions, self.config.table_import)
        elif len(self.pinned) == len(self.projects):
            where = "the pinned manifests"
            tables = [self.manifest(name) for name in self.projects]
            expressed = [case for one in tables for case in one.loc[one["data_type"] == EXPRESSION, "case_id"].dropna()]
        else:
            return []
        imaged, own, mri = list(self.imaged.values()), self.config.own, self.config.mri
        check_paired(imaged, expressed, str(own.own if own else mri and mri.folder), where)
        usable = self.imaged.keys() - self.unusable
        paired = {self.imaged[name] for name in usable} & set(expressed)
        labelled = {self.imaged[name] for name in self._labelled}
        if self.config.features:
            self._check_enough(paired, paired, "paired")
        else:
            self.check_labelled()
        if self.config.features or any(map(self._needs_genes, self.config.compared)):
            check_enough_paired(len(paired), len(labelled - paired), self.config.split.folds)
        return describe_lacking(imaged, expressed)

    def manifest(self, project: str) -> pd.DataFrame:
        """Read the manifest of a project, once."""
        if project not in self._manifests:
            self._manifests[project] = read_manifest(self._manifest_path(project))
        return self._manifests[project]

    @cached_property
    def _manifests(self) -> dict[str, pd.DataFrame]:
        return {}

    def expression_parts(self, project: str) -> range:
        """Return the numbers of the jobs that fetch a project's STAR tables."""
        files = int((self.manifest(project)["data_type"] == EXPRESSION).sum())
        return range(-(-files // self._files_per_job))

    def rows_of_part(self, part: int) -> str:
        """Return the STAR tables that one job fetches, as START:STOP."""
        return f"{part * self._files_per_job}:{(part + 1) * self._files_per_job}"

    @property
    def _files_per_job(self) -> int:
        return self.config.gdc.files_per_job if self.config.gdc else 1

    def gene_annotation(self) -> str:
        """Return {file_id}/{file_name} of the annotation that the first manifest pins, or raise `ManifestError`."""
        project = self.projects[0]
        manifest = self.manifest(project)
        for row in manifest[manifest["data_type"] == ANNOTATION].itertuples():
            return f"{row.file_id}/{row.file_name}"
        raise ManifestError(f"{self._manifest_path(project)} pins no gene annotation: {PIN_AGAIN}")

    @cached_property
    def batches(self) -> dict[str, Batch]:
        """The batches of slides, of all manifests or own ones, by the name of their image table.

        Raises
        ------
        ManifestError
            If two files are one slide.
        SlideError
            If the table or folder of own slides cannot be used.
        """
        slides = self.config.slides
        if slides is None:
            return {}
        own = group_slides(tabulate_slides(self.own_slides), slides.per_job) if slides.own else {}
        found = {name: Batch(None, rows) for name, rows in own.items()}
        for project in self.projects if self.config.fetches_slides else ():
            for name, rows in slide_batches(self.manifest(project), slides.per_job).items():
                if name in found:
                    raise ManifestError(
                        f"the projects {found[name].project} and {project} both have the slide {name}: keep one of them"
                    )
                for source_id in rows["source_id"]:
                    check_name(source_id, "slide", ManifestError)
                found[name] = Batch(project, rows)
        return found

    @cached_property
    def annotations(self) -> dict[str, Path]:
        """The annotations of all slides, by source_id.

        Raises
        ------
        AnnotationError
            If an annotation belongs to no slide, or a slide has two.
        """
        folder = self.config.slides.annotations if self.config.slides else None
        names = [name for batch in self.batches.values() for name in batch.rows["source_id"]]
        found = check_annotations(folder, names) if folder else {}
        return found | {slide.source_id: slide.annotation for slide in self.own_slides if slide.annotation}

    @cached_property
    def stray_mpp(self) -> list[str]:
        """What there is to say of the table of mpp: the slides in it that the cohort does not have, in a sentence."""
        table = self.config.slides.mpp_table if self.config.slides else None
        if table is None or not self._lists_slides:
            return []
        return describe_stray_mpp(table, [name for batch in self.batches.values() for name in batch.rows["source_id"]])

    @property
    def _lists_slides(self) -> bool:
        """Whether it is known which slides there are: the user's own, or those of pinned manifests."""
        slides = self.config.slides
        return slides is not None and (slides.own is not None or len(self.pinned) == len(self.projects))

    @cached_property
    def own_slides(self) -> list[LocalSlide]:
        """The user's own slides, or files of their features; none where slides come from the GDC."""
        own, list_own = self.config.own, list_features if self.config.features else list_local_slides
        return list_own(own.own, own.case_pattern) if own and own.own else []

    @cached_property
    def series(self) -> list[Series]:
        """The MRI series; none where images are slides."""
        return find_series(self.config.mri.folder) if self.config.mri else []

    @cached_property
    def imaged(self) -> dict[str, str]:
        """The cases of own slides, files of features and MRI series, by source_id."""
        own = {one.source_id: one.case_id for one in self.own_slides}
        return own | {one.source_id: one.case_id for one in self.series}

    @property
    def draws_previews(self) -> bool:
        """Whether a picture of each slide is made."""
        return self.config.slides is not None and self.config.slides.preview

    def batch(self, source: str) -> Batch:
        """Return the batch named `source`, or raise `ManifestError` naming those there are."""
        if source not in self.batches:
            raise ManifestError(f"no batch of slides is named '{source}'; there are {first_few(self.batches)}")
        return self.batches[source]

    def slide_files(self, source: str) -> list[str]:
        """List the slides of a batch: own ones by their path, those of the GDC as {file_id}/{file_name}."""
        rows = self.batch(source).rows
        if self.own_slides:
            return [str(path) for path in rows["path"]]
        from_idc = self.config.slides is not None and self.config.slides.fetch_from == "idc"
        names = rows["file_name"].map(dicom_name) if from_idc else rows["file_name"]
        return [f"{file_id}/{name}" for file_id, name in zip(rows["file_id"], names, strict=True)]

    # ---- prepare

    def annotation_files(self, source: str) -> list[str]:
        """List the annotations of a batch's slides: a slide that gains one, or whose own changes, is tiled again."""
        names = self.batch(source).rows["source_id"]
        return [str(self.annotations[name]) for name in names if name in self.annotations]

    def tile_options(self, source: str) -> str:
        """Return the options of `mgi slide tile` for a batch as JSON: what is stated of other slides is left out."""
        options = self.config.tile_options()
        if table := options.pop("mpp_table", None):
            stated = read_mpp_table(table)
            names = [name for name in self.batch(source).rows["source_id"] if name in stated]
            options["stated"] = {name: {"mpp": stated[name]} for name in names}
        elif self.own_slides:
            rows = self.batch(source).rows[["source_id", "mpp", "annotation", "site"]].to_dict("records")
            options["stated"] = {
                row.pop("source_id"): {key: cell if key == "mpp" else str(cell) for key, cell in row.items() if cell}
                for row in rows
            }
        return json.dumps(options, sort_keys=True)

    def source_options(self) -> list[str]:
        """Return the options of `mgi sources`."""
        slides = self.config.slides
        if slides is None:
            return []
        own = [f"--slides={slides.own}"] if slides.own else []
        given = {"annotations": slides.annotations, "case-pattern": slides.case_pattern}
        return [f"--per-job={slides.per_job}", *own, *(f"--{key}={value}" for key, value in given.items() if value)]

    @cached_property
    def mri_state(self) -> str:
        """A hash of the names, sizes and times of the MRI folder's files, which changes with a corrected mask."""
        return fingerprint(self.config.mri.folder, self.series) if self.config.mri else ""

    @cached_property
    def features_state(self) -> str:
        """A hash of the files of features, their cases, sizes and times."""
        return fingerprint_features(self.own_slides) if self.config.features else ""

    def predict_options(self, source: str) -> str:
        """Return the options of `mgi predict` for a series or a batch of slides as JSON."""
        stated = json.loads(self.tile_options(source)).get("stated", {}) if self.config.slides else {}
        return json.dumps(self.config.predict_options(stated), sort_keys=True)

    # ---- train and evaluate

    def reads_genes(self, variant: str) -> bool:
        """Return whether a fine-tuning variant reads gene expression."""
        return self.config.finetune[variant].genes != "none"

    def encoders(self, variant: str) -> str | None:
        """Return the pre-training variant that a fine-tuning variant starts from, if it does."""
        return self.config.finetune[variant].encoders if self.config.needs_pretraining(variant) else None

    def _needs_genes(self, variant: str) -> bool:
        """Whether a fine-tuning variant, or the pre-training it starts from, learns from profiles."""
        return self.config.finetune[variant].genes != "none" or self.encoders(variant) is not None

    def runs(self) -> list[str]:
        """List the folders of the training runs that the comparison rests on."""
        compared, segments = self.config.compared, not self.config.features
        encoders = [name for name in map(self.encoders, compared) if name] if segments else compared
        stages = {f"pretrain/{name}": None for name in encoders}
        stages |= {f"finetune/{name}": None for name in compared if segments}
        return [f"{stage}/fold{fold}" for stage in stages for fold in self.folds]

    def compared_options(self) -> list[str]:
        """Return the options of `mgi compare` that name the variants."""
        named = [f"--variant={variant}" for variant in self.config.evaluate.variants]
        for first, others in self.config.replicates().items():
            named += [f"--replicate={first}={other}" for other in others]
        return [*named, f"--reference={self.config.evaluate.reference}"]

    def map_label(self) -> tuple[str, str]:
        """Return the table that colours the map of embeddings, "" for that of the folds, and its column."""
        probe = self.config.probe
        return (probe.labels, probe.columns[0]) if probe.labels and probe.columns else ("", "site")

    def page_inputs(self) -> list[str]:
        """List what the report's page shows, within results/{cohort}."""
        names = ["report/flow.png", "report/losses.png"]
        if self.config.features or self.encoders(self.config.evaluate.reference):
            names += ["evaluate/retrieval.csv", "report/map.png"]
        if not self.config.features:
            names += ["evaluate/comparison.csv", "evaluate/projects.csv", "evaluate/seeds.csv"]
            figures = ["comparison", "overlays", *(["slides"] if self.draws_previews else [])]
            names += [f"report/{name}.png" for name in figures]
            names += [f"finetune/{name}/summary.json" for name in self.config.compared]
        return [*names, "cohort_flow.csv", "expression.parquet"]

    def final_outputs(self) -> list[str]:
        """List what the default target makes, within results/{cohort}."""
        names = [name for name in self.page_inputs() if name.startswith(("evaluate/", "report/"))]
        return [*names, "report/index.html"]
