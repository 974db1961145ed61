"""The plan of a configuration: what it refuses, the batches of slides, and the options of each job."""

import copy
import json
from pathlib import Path

import pandas as pd
import pytest

from mgi.acquire.manifest import ANNOTATION, EXPRESSION, SLIDES
from mgi.config import load_config, read_configuration
from mgi.errors import (
    AnnotationError,
    CohortError,
    ConfigError,
    ManifestError,
    MGIError,
    MissingInputError,
    SlideError,
)
from mgi.names import match_exactly
from mgi.plan import Plan

COHORT = {
    "cohort": "small",
    "gdc": {"projects": ["TCGA-AA"], "files_per_job": 2, "mirrors": ["/a mirror"], "token_file": None},
    "slides": {"per_job": 2},
    "pretrain": {"mgi": {}},
    "finetune": {
        "mgi": {},
        "image-only": {"base": "mgi", "genes": "none"},
        "no-vit": {"base": "image-only", "vit": False},
        "shuffled-genes": {"base": "mgi", "genes": "shuffled"},
    },
    "split": {"folds": 2},
}


def file_id(number: int) -> str:
    return f"00000000-0000-4000-9000-{number:012d}"


def rows(names: list[str], kind: str, first: int) -> list[dict]:
    return [
        {
            "file_id": file_id(first + number), "file_name": name, "md5": "0" * 32, "size": 1, "data_type": kind,
            "case_id": "TCGA-AA-0001", "sample_type": "Primary Tumor", "aliquot": None, "project": "TCGA-AA",
        }
        for number, name in enumerate(names)
    ]  # fmt: skip


def write_manifest(folder: Path, slides: list[str], project: str = "TCGA-AA") -> Path:
    """A manifest of these slides, three STAR tables and the gene annotation."""
    tables = [f"{number}.rna_seq.augmented_star_gene_counts.tsv" for number in range(3)]
    table = rows(["genes.gtf.gz"], ANNOTATION, 900) + rows(tables, EXPRESSION, 800) + rows(slides, SLIDES, 0)
    path = folder / f"{project}.parquet"
    pd.DataFrame(table).to_parquet(path)
    return path


@pytest.fixture
def make_plan(tmp_path, monkeypatch):
    """Make the plan of a changed configuration in a working directory of its own."""
    monkeypatch.chdir(tmp_path)

    def make(change=lambda config: None, slides=("S1.svs", "S2.svs", "S3.svs")) -> Plan:
        if slides:
            write_manifest(tmp_path, list(slides))
        config = copy.deepcopy(COHORT)
        change(config)
        return Plan(load_config(config), lambda project: tmp_path / f"{project}.parquet")

    return make


def test_batches_are_named_after_their_first_slide(make_plan):
    plan = make_plan()
    assert {name: list(batch.rows.source_id) for name, batch in plan.batches.items()} == {
        "S1": ["S1", "S2"],
        "S3": ["S3"],
    }
    assert plan.slide_files("S3") == [f"{file_id(2)}/S3.svs"]


def test_repetitions_are_told_to_the_comparison(make_plan):
    def change(config):
        config["finetune"] |= {"again": {"base": "mgi", "replicate": 1}}
        config["evaluate"] = {"variants": ["mgi", "again"], "reference": "mgi"}

    told = ["--variant=mgi", "--variant=again", "--replicate=mgi=again", "--reference=mgi"]
    assert make_plan(change).compared_options() == told


def test_slides_of_the_idc_have_dicom_names(make_plan):
    plan = make_plan(lambda config: config["slides"].update(fetch_from="idc"))
    assert plan.slide_files("S3") == [f"{file_id(2)}/S3.dcm"]


def test_unknown_batch_is_refused_with_those_there_are(make_plan):
    with pytest.raises(ManifestError, match="no batch of slides is named 'S2'; there are 'S1', 'S3'"):
        make_plan().batch("S2")


def test_slide_in_two_projects_is_refused(make_plan, tmp_path):
    write_manifest(tmp_path, ["S1.svs"], "TCGA-BB")
    with pytest.raises(ManifestError, match="TCGA-AA and TCGA-BB both have the slide S1"):
        make_plan(lambda config: config["gdc"].update(projects=["TCGA-AA", "TCGA-BB"]))


def test_slide_whose_name_is_a_command_is_refused(make_plan):
    with pytest.raises(ManifestError, match=r"touch PWNED"):
        make_plan(slides=("S1.svs", "S2$(touch PWNED).svs"))


def test_star_tables_are_fetched_so_many_per_job(make_plan):
    plan = make_plan()
    assert list(plan.expression_parts("TCGA-AA")) == [0, 1]
    assert plan.rows_of_part(1) == "2:4"


def test_gene_annotation_is_the_pinned_one(make_plan):
    assert make_plan().gene_annotation() == f"{file_id(900)}/genes.gtf.gz"


def test_manifest_without_gene_annotation_is_refused_where_it_is_asked_for(make_plan, tmp_path):
    plan = make_plan()
    table = pd.read_parquet(tmp_path / "TCGA-AA.parquet")
    table[table.data_type != ANNOTATION].to_parquet(tmp_path / "TCGA-AA.parquet")
    plan._manifests.clear()
    with pytest.raises(ManifestError, match="pins no gene annotation: move it away"):
        plan.gene_annotation()


@pytest.mark.parametrize("kind, name", [(SLIDES, "slides"), (EXPRESSION, "expression")])
def test_manifest_pinned_for_another_configuration_is_refused_before_anything_is_fetched(
    make_plan, tmp_path, kind, name
):
    make_plan()
    table = pd.read_parquet(tmp_path / "TCGA-AA.parquet")
    table[table.data_type != kind].to_parquet(tmp_path / "TCGA-AA.parquet")
    with pytest.raises(ManifestError, match=rf"TCGA-AA.parquet pins no {name}, which this configuration reads: move"):
        make_plan(slides=())


def test_missing_file_is_refused_by_the_key_that_names_it(make_plan):
    with pytest.raises(ConfigError, match=r"'expression.genes' is absent.txt, which does not exist"):
        make_plan(lambda config: config.update(expression={"genes": "absent.txt"}))


def test_excluded_file_that_is_pinned_is_refused(make_plan, tmp_path):
    (tmp_path / "exclude.tsv").write_text(f"file_id\treason\n{file_id(1)}\tpen marks\n")
    with pytest.raises(ManifestError, match=f"pins 1 files that gdc.exclude leaves out, '{file_id(1)}'"):
        make_plan(lambda config: config["gdc"].update(exclude="exclude.tsv"))


def test_annotation_without_a_slide_is_refused(make_plan, tmp_path):
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks/S9.geojson").touch()
    with pytest.raises(AnnotationError, match=r"S9.geojson"):
        make_plan(lambda config: config["slides"].update(annotations="masks"))


def test_missing_annotations_are_refused_once_slides_are_known(make_plan):
    with pytest.raises(MissingInputError, match="annotations not found: masks"):
        make_plan(lambda config: config["slides"].update(annotations="masks"))


def test_unpinned_cohort_waits_for_its_manifest(make_plan):
    plan = make_plan(slides=())
    assert plan.pinned == []


def test_query_asks_for_what_the_configuration_reads(make_plan, tmp_path):
    usual = json.loads(make_plan().options("query", "TCGA-AA"))
    assert usual["data_types"] == ["expression", "slides"]
    assert usual["annotation_file_id"] == load_config(COHORT).expression.annotation_file_id
    (tmp_path / "places.tsv").touch()
    own = make_plan(lambda config: config.update(expression={"positions": "places.tsv"})).options("query", "TCGA-AA")
    assert "annotation_file_id" not in json.loads(own)


def test_options_quote_any_text(make_plan, tmp_path):
    (tmp_path / "my table.csv").write_text("case_id,grade (WHO) {x}\nA,1\n")
    stratified = {"folds": 2, "stratify_table": "my table.csv", "stratify_column": "grade (WHO) {x}"}
    options = json.loads(make_plan(lambda config: config.update(split=stratified)).options("split"))
    assert options["stratify_column"] == "grade (WHO) {x}"
    assert options["stratify_table"] == "my table.csv"


@pytest.mark.parametrize("name", ["clinical.csv", "clinical.parquet"])
def test_column_that_its_table_lacks_is_refused(name, make_plan, tmp_path):
    table = pd.DataFrame({"case_id": ["A"], "grade": ["2"]})
    table.to_csv(tmp_path / "clinical.csv", index=False)
    table.to_parquet(tmp_path / "clinical.parquet")
    stratified = {"folds": 2, "stratify_table": name, "stratify_column": "sex"}
    with pytest.raises(CohortError, match=r"table to stratify by .* lacks the column sex"):
        make_plan(lambda config: config.update(split=stratified))
    sites = {"folds": 2, "by": "site", "site_table": name, "site_column": "hospital"}
    with pytest.raises(CohortError, match=r"table of sites .* lacks the column hospital"):
        make_plan(lambda config: config.update(split=sites))
    for probe in ({"columns": ["grade", "stage"]}, {"survival": ["stage", "grade"]}):
        with pytest.raises(CohortError, match=r"table of labels .* lacks the column stage"):
            make_plan(lambda config, probe=probe: config.update(probe={"labels": name} | probe))


def test_options_of_a_variant_are_its_own(make_plan):
    plan = make_plan()
    changed = make_plan(lambda config: config["finetune"]["image-only"].update(lr=0.5))
    assert changed.options("finetune", "mgi") == plan.options("finetune", "mgi")
    assert json.loads(changed.options("finetune", "image-only"))["lr"] == 0.5


def test_check_sees_every_variant_and_nothing_that_models_do_not_depend_on(make_plan):
    plan = make_plan(lambda config: config["finetune"]["no-vit"].update(channels=[8, 24]))
    checked = load_config(plan.check_options())
    assert checked.finetune["no-vit"].channels == [8, 24]
    assert checked.finetune["no-vit"].genes == "none"
    assert not checked.finetune["no-vit"].vit
    assert checked.image_px == plan.config.image_px
    other = make_plan(
        lambda config: (config["finetune"]["no-vit"].update(channels=[8, 24]), config["gdc"].update(workers=9))
    )
    assert other.check_options() == plan.check_options()


def test_file_with_a_duplicate_key_is_refused_though_its_mapping_is_valid(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("seed: 3\nseed: 7\n")
    with pytest.raises(ConfigError, match="duplicate key 'seed'"):
        read_configuration(COHORT, [file])


def test_runs_are_those_that_the_comparison_rests_on(make_plan):
    change = {"variants": ["no-vit", "mgi"], "reference": "mgi"}
    plan = make_plan(lambda config: config.update(evaluate=change))
    assert plan.runs() == [
        "pretrain/mgi/fold0",
        "pretrain/mgi/fold1",
        "finetune/no-vit/fold0",
        "finetune/no-vit/fold1",
        "finetune/mgi/fold0",
        "finetune/mgi/fold1",
    ]
    assert plan.encoders("no-vit") is None
    assert not plan.reads_genes("no-vit")


def test_retrieval_is_made_where_the_reference_is_pretrained(make_plan):
    assert "evaluate/retrieval.csv" in make_plan().final_outputs()
    alone = make_plan(lambda config: config["finetune"]["mgi"].update(pretrained=False))
    assert "evaluate/retrieval.csv" not in alone.final_outputs()


def test_sheet_of_slides_is_a_result_where_previews_are_made(make_plan):
    assert "report/slides.png" in make_plan().final_outputs()
    assert "report/slides.png" not in make_plan(lambda config: config["slides"].update(preview=False)).final_outputs()


def test_key_of_snakemake_is_no_unknown_key():
    assert read_configuration(COHORT | {"pathvars": {"results": "out"}}).cohort == "small"
    with pytest.raises(ConfigError, match="unknown key 'pathvar'"):
        read_configuration(COHORT | {"pathvar": {}})


@pytest.mark.parametrize(("names", "pattern"), [(["a.b", "c"], r"a\.b|c"), ([], "(?!)")])
def test_constraint_matches_exactly_these_names(names, pattern):
    assert match_exactly(names) == pattern


@pytest.fixture
def own(make_plan, tmp_path):
    """Make the plan of own slides in a folder and a table of expression of some cases."""
    (tmp_path / "slides").mkdir()
    (tmp_path / "annotations").mkdir()
    for name in ("A_1.svs", "A_2.png", "B_1.tif", "C_1.svs", "D_1.svs", "E_1.svs", "F_1.svs"):
        (tmp_path / "slides" / name).touch()
        (tmp_path / "annotations" / name).with_suffix(".geojson").touch()
    (tmp_path / "positions.tsv").write_text("gene_name\tchromosome\tstart\nTP53\tchr17\t5\nEGFR\tchr7\t9\n")

    def make(cases="ABCDEF", variants=None, **slides) -> Plan:
        (tmp_path / "table.csv").write_text("".join(["case_id,TP53,EGFR\n", *(f"{case},1.5,2\n" for case in cases)]))

        def change(config):
            del config["gdc"]
            if variants:
                for name in ("mgi", "image-only"):
                    config["finetune"][f"random-{name}"] = {"base": name, "pretrained": False}
                config["evaluate"] = {"variants": variants, "reference": variants[0]}
            config["expression"] = {"table": "table.csv", "positions": "positions.tsv", "table_unit": "log2"}
            config["slides"] = {
                "per_job": 2, "folder": "slides", "case_pattern": "([^_]+)_", "annotations": "annotations"
            } | slides  # fmt: skip

        return make_plan(change, slides=())

    return make


def test_own_slides_are_batched_without_a_manifest(own):
    plan = own()
    assert plan.projects == [] and plan.slide_files("A_1") == ["slides/A_1.svs", "slides/A_2.png"]
    assert list(plan.batches) == ["A_1", "B_1", "D_1", "F_1"] and plan.batch("B_1").project is None
    given = ["--annotations=annotations", "--case-pattern=([^_]+)_"]
    assert plan.source_options() == ["--per-job=2", "--slides=slides", *given]
    assert plan.warnings() == []
    assert load_config(json.loads(plan.check_options())).slides.folder == "slides"


def test_job_is_told_what_is_stated_of_its_own_slides(own, tmp_path):
    (tmp_path / "a.geojson").touch()
    (tmp_path / "slides.csv").write_text(
        "case_id,slide,mpp,annotation,site\nA,slides/A_1.svs,0.25,a.geojson,Ulm\nB,slides/B_1.tif,,,\n"
    )
    plan = own(table="slides.csv", folder=None, case_pattern=None, annotations=None, per_job=1)
    stated = {"A_1": {"mpp": 0.25, "annotation": "a.geojson", "site": "Ulm"}}
    assert json.loads(plan.tile_options("A_1"))["stated"] == stated
    assert json.loads(plan.tile_options("B_1"))["stated"] == {"B_1": {}}
    assert plan.annotation_files("A_1") == ["a.geojson"] and plan.annotation_files("B_1") == []


def test_job_is_told_the_mpp_of_its_slides_alone(make_plan, tmp_path):
    (tmp_path / "mpp.csv").write_text("slide,mpp\nS1.svs,0.25\nS3.svs,0.5\n")
    plan = make_plan(lambda config: config["slides"].update(mpp_table="mpp.csv"))
    assert json.loads(plan.tile_options("S3"))["stated"] == {"S3": {"mpp": 0.5}}
    assert "mpp_table" not in plan.tile_options("S3")


def test_mpp_of_slides_that_are_not_of_the_cohort_is_named(make_plan, tmp_path):
    change = lambda config: config["slides"].update(mpp_table="mpp.csv")  # noqa: E731
    (tmp_path / "mpp.csv").write_text("slide,mpp\nS1.svs,0.25\nS-2.svs,0.5\n")
    assert "1 of 2 slides in mpp.csv are not of the cohort: 'S-2.svs'" in make_plan(change).warnings()
    (tmp_path / "mpp.csv").write_text("slide,mpp\ns1.svs,0.25\n")
    with pytest.raises(SlideError, match=r"mpp of 's1\.svs', and the cohort has no such slide, but 'S1', 'S2', 'S3'"):
        make_plan(change)
    (tmp_path / "TCGA-AA.parquet").unlink()
    assert make_plan(change, slides=()).stray_mpp == []


def test_own_slides_without_expression_are_named(own):
    (sentence,) = own(cases="ACEF").warnings()
    assert sentence == "2 of 6 cases with images have no expression: 'B', 'D'"
    with pytest.raises(CohortError, match="no case has both images and expression"):
        own(cases=["X", "Y"]).warnings()


def test_own_slides_are_checked_beside_the_star_counts_of_the_gdc(own, make_plan, tmp_path):
    def change(config):
        config["slides"] = {"folder": "slides", "case_pattern": "([^_]+)_", "annotations": "annotations"}

    own()
    with pytest.raises(CohortError, match="the pinned manifests such as 'TCGA-AA-0001'"):
        make_plan(change).warnings()
    assert "slides" not in make_plan(change).config.query_options("TCGA-AA")["data_types"]


@pytest.mark.parametrize(
    ("slides", "message"),
    [
        ({"table": "table.csv"}, "'slides.table' and 'slides.folder' both"),
        ({"case_pattern": "("}, "'slides.case_pattern' is no regular expression"),
        ({"case_pattern": "(a)(b)"}, "has 2 groups"),
        ({"case_pattern": "Z"}, "does not match 7 of 7 slides"),
        ({"fetch_from": "idc"}, "'slides.fetch_from' fetches slides"),
        ({"folder": "absent"}, "'slides.folder' is absent, which does not exist"),
        ({"folder": None}, "'slides.case_pattern' reads the names"),
    ],
)
def test_own_slides_that_cannot_be_used_are_refused(own, slides, message):
    with pytest.raises(MGIError, match=message):
        own(**slides)


def test_too_few_annotated_slides_are_refused_before_a_run(own, tmp_path):
    for name in "DEF":
        (tmp_path / f"annotations/{name}_1.geojson").unlink()
    with pytest.raises(CohortError, match="3 labelled patients are too few for 2 folds"):
        own().warnings()


def test_too_few_paired_slides_to_pretrain_on_are_refused_before_a_run(own, tmp_path):
    # Validation may take patients without expression.
    assert own(cases="ABCD").warnings() == ["2 of 6 cases with images have no expression: 'E', 'F'"]
    (tmp_path / "slides/F_1.svs").unlink()
    (tmp_path / "annotations/F_1.geojson").unlink()
    with pytest.raises(
        CohortError, match=r"5 patients with both images and expression are too few for 2 folds .* 6 are"
    ):
        own().warnings()
    # But not in the fold that tests the only one.
    with pytest.raises(CohortError, match=r"4 patients with both images and expression .* 5 are needed"):
        own(cases="ABCD").warnings()
    with pytest.raises(CohortError, match=r"3 patients with both images and expression .* 4 are needed"):
        own(cases="ABC").warnings()
    # Genes are standardised over two patients at least without pre-training, too; images alone need none.
    with pytest.raises(CohortError, match=r"3 patients .* 4 are needed; add some, or compare variants without genes"):
        own(cases="ABC", variants=["random-image-only", "random-mgi"]).warnings()
    assert len(own(cases="ABC", variants=["random-image-only", "no-vit"]).warnings()) == 1
