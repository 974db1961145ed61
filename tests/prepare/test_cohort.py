"""Batches of slides, what became of them, and folds by patient."""

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from mgi.acquire.manifest import EXPRESSION, SLIDES, read_manifest
from mgi.config import SplitOptions
from mgi.errors import AnnotationError, CohortError, ManifestError, MissingInputError
from mgi.prepare.cohort import collect_sources, slide_batches, split
from mgi.tables import write_sources, write_table
from tests.prepare.conftest import write_manifest


def barcode(number, site="S1"):
    return f"TCGA-{site}-{number:04d}"


def source(case_id, status="ok", n_images=3, labelled=True, reason=None, kind="01Z-00-DX1", **more):
    row = {"source_id": f"{case_id}-{kind}", "case_id": case_id, "status": status, "reason": reason}
    return row | {"n_images": n_images, "labelled": labelled, "table": "t"} | more


def slide_row(case_id, kind="01Z-00-DX1", tail="A"):
    return {"file_name": f"{case_id}-{kind}.{tail}.svs", "data_type": SLIDES, "case_id": case_id}


@pytest.fixture
def cohort(tmp_path):
    """A function that writes sources and expression, and returns the arguments of `split` for two folds."""

    def write(sources, expressed):
        write_sources(sources, tmp_path / "sources.parquet")
        write_table(pa.table({"case_id": expressed}), tmp_path / "expression.parquet")
        paths = {name: tmp_path / f"{name}.parquet" for name in ("sources", "expression")}
        return paths | {"output": tmp_path / "splits.parquet", "folds": 2, "val_fraction": 0.2}

    return write


def run(sources, expression, output, manifests=None, flow=None, **options):
    """Split with options given by name."""
    options = {key: str(value) if isinstance(value, Path) else value for key, value in options.items()}
    split(sources, expression, output, SplitOptions(**options), manifests, flow)


def splits(options):
    run(**options)
    return pd.read_parquet(options["output"])


def test_batches_keep_the_order_and_take_the_first_slides_name(tmp_path):
    rows = [slide_row(barcode(k)) for k in range(5)] + [{"file_name": "e.tsv", "data_type": EXPRESSION}]
    batches = slide_batches(read_manifest(write_manifest(tmp_path / "m.parquet", rows)), 2)
    assert list(batches) == [f"{barcode(k)}-01Z-00-DX1" for k in (0, 2, 4)]
    assert [len(batch) for batch in batches.values()] == [2, 2, 1]


def test_rejects_two_files_of_one_slide(tmp_path):
    rows = [slide_row(barcode(0), tail="A"), slide_row(barcode(0), tail="B")]
    manifest = write_manifest(tmp_path / "m.parquet", rows)
    with pytest.raises(ManifestError, match=r"A\.svs and .*B\.svs"):
        slide_batches(read_manifest(manifest), 1)
    one = write_manifest(tmp_path / "one.parquet", rows[:1])
    with pytest.raises(ManifestError, match=r"1 slides of .* are also in another manifest"):
        collect_sources(tmp_path, [one, one], 1, None, tmp_path / "s.parquet")


def test_sources_collect_every_batch(tmp_path):
    manifest = write_manifest(tmp_path / "m.parquet", [slide_row(barcode(k)) for k in range(3)])
    write_sources([source(barcode(0)), source(barcode(1))], tmp_path / f"{barcode(0)}-01Z-00-DX1.status.parquet")
    with pytest.raises(MissingInputError, match=barcode(2)):
        collect_sources(tmp_path, [manifest], 2, None, tmp_path / "s.parquet")
    write_sources([source(barcode(2))], tmp_path / f"{barcode(2)}-01Z-00-DX1.status.parquet")
    (tmp_path / "notes").mkdir()
    collect_sources(tmp_path, [manifest], 2, tmp_path / "notes", tmp_path / "s.parquet")
    assert pd.read_parquet(tmp_path / "s.parquet").case_id.tolist() == [barcode(k) for k in range(3)]
    with pytest.raises(CohortError, match="its batch"):
        collect_sources(tmp_path, [manifest], 3, None, tmp_path / "s.parquet")
    (tmp_path / "notes" / "TCGA-S9-9999-01Z-00-DX1.geojson").write_text("{}")
    with pytest.raises(AnnotationError, match="TCGA-S9-9999"):
        collect_sources(tmp_path, [manifest], 2, tmp_path / "notes", tmp_path / "s.parquet")


def test_every_case_is_tested_once_and_has_one_role_per_fold(cohort):
    cases = [barcode(k) for k in range(23)]
    table = splits(cohort([source(case) for case in cases], cases[2:]) | {"folds": 5})
    assert len(table) == 23 * 5 and not table.duplicated(["case_id", "fold"]).any()
    assert (table[table.role == "test"].groupby("case_id").size() == 1).all()
    assert table[table.role == "test"].groupby("fold").size().between(4, 5).all()
    assert set(table.role) == {"train", "val", "test"} and set(table.site) == {"S1"}
    assert table[table.fold == 0].paired.sum() == 21
    assert table[(table.role == "test") & ~table.paired].fold.nunique() == 2


def test_two_slides_of_a_case_are_one_row(cohort):
    cases = [barcode(k) for k in range(6)]
    rows = [source(case) for case in cases] + [source(cases[0], labelled=False, kind="01Z-00-DX2")]
    table = splits(cohort(rows, cases))
    assert len(table) == 12 and table.labelled.all()


@pytest.mark.parametrize(("val_fraction", "sizes"), [(0.25, [24, 18, 6]), (0.15, [24, 20, 4])])
def test_balanced_classes_stay_balanced_in_every_role(cohort, tmp_path, val_fraction, sizes):
    cases = [barcode(k) for k in range(48)]
    bits = pd.DataFrame({"case_id": cases, "bit": [k * 7 % 48 < 24 for k in range(48)]})
    bits.to_csv(tmp_path / "truth.csv", index=False)
    options = cohort([source(case) for case in cases], cases)
    options |= {"val_fraction": val_fraction, "stratify_table": tmp_path / "truth.csv", "stratify_column": "bit"}
    table = splits(options).merge(bits)
    counts = table.groupby(["fold", "role"]).bit.agg(["sum", "size"])
    assert (counts["sum"] * 2 == counts["size"]).all()
    assert counts["size"].unstack().to_numpy().tolist() == [sizes] * 2


def test_quantity_to_stratify_by_is_named(cohort, tmp_path, said):
    cases = [barcode(k) for k in range(20)]
    pd.DataFrame({"case_id": cases, "age": [20.5 + k for k in range(20)]}).to_csv(tmp_path / "t.csv", index=False)
    options = cohort([source(case) for case in cases], cases)
    splits(options | {"stratify_table": tmp_path / "t.csv", "stratify_column": "age"})
    assert "has 20 distinct values for 20 cases, such as '20.5', '21.5', '22.5' and 17 more: hardly classes" in said()


def test_labelled_and_paired_cases_are_spread_over_folds(cohort):
    cases = [barcode(k) for k in range(40)]
    rows = [source(case, labelled=k % 5 == 0) for k, case in enumerate(cases)]
    table = splits(cohort(rows, cases[10:]) | {"folds": 4})
    tested = table[table.role == "test"].groupby("fold")[["labelled", "paired"]].sum()
    assert (tested.labelled == 2).all() and tested.paired.between(7, 8).all()


def test_classes_of_annotations_without_tumour_are_named(tmp_path, caplog):
    manifest = write_manifest(tmp_path / "m.parquet", [slide_row(barcode(k)) for k in range(5)])
    stated = ['{"Tumor": 2}', '{"Carcinoma": 1}', '{"Carcinoma": 1, "Stroma": 4}', '{"0": 900, "1": 5}', "{}"]
    rows = [source(barcode(k), tumour_px=int(k == 0), classes=classes) for k, classes in enumerate(stated)]
    write_sources(rows, tmp_path / f"{barcode(0)}-01Z-00-DX1.status.parquet")
    collect_sources(tmp_path, [manifest], 5, None, tmp_path / "s.parquet")
    assert (
        "4 of 5 annotated slides have no tumour; their classes of outlines or values of masks are 'Carcinoma' (2 "
        "slides), 'Stroma' (1 slides), '1' (1 slides)" in caplog.text
    )


def test_cases_that_differ_in_leading_zeros_alone_are_named(cohort, said):
    cases = [f"P{k:02d}" for k in range(20)]
    splits(cohort([source(case) for case in [*cases, "P1", "p-2"]], cases))
    assert "1 cases with images may be written in several ways, the first 'P01', 'P1': they are taken for" in said()


def test_sites_written_in_two_ways_are_rejected(cohort):
    cases = [f"P{k:02d}" for k in range(20)]
    rows = [source(case, site=("ULM", "Ulm", "Bonn", "Kiel", "Jena")[k % 5]) for k, case in enumerate(cases)]
    with pytest.raises(CohortError, match="the cohort writes one site in two ways, 'ULM' and 'Ulm': write each site"):
        run(**cohort(rows, cases) | {"by": "site"})
    run(**cohort(rows, cases))


def test_sites_stay_within_one_role(cohort):
    cases = [barcode(k, site=f"S{k % 9}") for k in range(45)]
    table = splits(cohort([source(case) for case in cases], cases) | {"folds": 3, "by": "site"})
    assert (table.groupby(["fold", "site"]).role.nunique() == 1).all()
    assert (table[table.role == "test"].groupby("fold").size() == 15).all()


def test_tiny_cohort_still_has_every_role(cohort):
    cases = [barcode(k) for k in range(4)]
    table = splits(cohort([source(case) for case in cases], cases) | {"val_fraction": 0.15})
    assert table.groupby(["fold", "role"]).size().unstack().to_numpy().tolist() == [[2, 1, 1]] * 2


def test_seed_determines_the_folds(cohort):
    cases = [barcode(k) for k in range(30)]
    options = cohort([source(case) for case in cases], cases)
    first = splits(options)
    data = options["output"].read_bytes()
    splits(options)
    assert options["output"].read_bytes() == data
    assert not splits(options | {"seed": 1}).equals(first)


def test_flow_counts_lost_cases_with_reasons(cohort, tmp_path):
    cases = [barcode(k) for k in range(8)]
    rows = [source(case, labelled=k != 0) for k, case in enumerate(cases[:6])]
    rows.append(source(cases[6], "skipped", 0, False, "no mpp: its metadata state none"))
    rows.append(source(cases[5], "failed", 0, False, "unreadable: not a slide", "01Z-00-DX2"))
    files = [slide_row(case) for case in cases[:7]]
    files += [{"file_name": f"{case}.tsv", "data_type": EXPRESSION, "case_id": case} for case in cases[1:]]
    manifest = write_manifest(tmp_path / "m.parquet", files)
    run(**cohort(rows, cases[1:]), manifests=[manifest], flow=tmp_path / "flow.csv")
    flow = pd.read_csv(tmp_path / "flow.csv", keep_default_na=False).set_index("step")
    assert flow.columns.tolist() == ["cases", "lost", "reason"]
    assert flow.cases.to_dict() == {
        "in the manifest": 8,
        "with an expression file": 7,
        "with a slide": 7,
        "in the expression table": 7,
        "with an image source": 7,
        "with usable images": 6,
        "with masks": 5,
        "paired with expression": 5,
        "in the folds": 6,
    }
    assert flow.reason["with usable images"] == "1 failed: unreadable; 1 skipped: no mpp"
    assert flow.lost["with usable images"] == 1 and flow.lost["paired with expression"] == 1


def test_rejects_duplicate_case_in_expression(cohort):
    cases = [barcode(k) for k in range(6)]
    with pytest.raises(CohortError, match=f"duplicate case '{cases[3]}'"):
        run(**cohort([source(case) for case in cases], [*cases, cases[3]]))


def test_no_paired_case_shows_an_id_of_each_table(cohort):
    options = cohort([source(barcode(k)) for k in range(6)], ["TCGA-ZZ-0001"])
    with pytest.raises(CohortError, match=rf"{barcode(0)}.*TCGA-ZZ-0001"):
        run(**options)
    assert not options["output"].exists()


def test_rejects_fewer_labelled_patients_than_folds(cohort):
    cases = [barcode(k) for k in range(8)]
    rows = [source(case, labelled=k < 4) for k, case in enumerate(cases)]
    with pytest.raises(CohortError, match="4 labelled patients are too few for 5 folds"):
        run(**cohort(rows, cases) | {"folds": 5})
    with pytest.raises(CohortError, match="1 sites, too few for 2 folds by site"):
        run(**cohort(rows, cases) | {"by": "site"})


def test_no_usable_image_lists_the_reasons(cohort):
    rows = [source(barcode(0), "skipped", 0, False, "no mpp: none stated")]
    with pytest.raises(CohortError, match="1 skipped: no mpp"):
        run(**cohort(rows, [barcode(0)]))


def test_rejects_stratifying_table_without_a_class_for_each_case(cohort, tmp_path):
    cases = [barcode(k) for k in range(6)]
    options = cohort([source(case) for case in cases], cases)
    options |= {"stratify_table": tmp_path / "t.parquet", "stratify_column": "bit"}
    frame = pd.DataFrame({"case_id": cases, "bit": [0, 1] * 3})
    for table, message in [
        (frame[:-1], f"lacks 1 cases that have images: '{cases[-1]}'"),
        (frame.rename(columns={"bit": "grade"}), "lacks the column bit; it has case_id, grade"),
        (pd.concat([frame, frame.assign(bit=2)[:1]]), f"puts 1 cases in several classes of 'bit': '{cases[0]}'"),
    ]:
        write_table(table, tmp_path / "t.parquet")
        with pytest.raises(CohortError, match=message):
            run(**options)


def test_sources_state_project_site_and_tumour(tmp_path):
    rows = [
        slide_row(barcode(0, "A7")) | {"project": "TCGA-BRCA"},
        slide_row("C3L-00001", "21") | {"project": "CPTAC-3"},
    ]
    manifest = write_manifest(tmp_path / "m.parquet", rows)
    statuses = [source(barcode(0, "A7"), tumour_px=5), source("C3L-00001", tumour_px=0, source_id="C3L-00001-21.A")]
    write_sources(statuses, tmp_path / f"{read_manifest(manifest).file_name[0].split('.')[0]}.status.parquet")
    collect_sources(tmp_path, [manifest], 2, None, tmp_path / "s.parquet")
    found = pd.read_parquet(tmp_path / "s.parquet").set_index("case_id")[["project", "site", "has_tumour"]].fillna("")
    assert found.loc[barcode(0, "A7")].tolist() == ["TCGA-BRCA", "A7", True]
    assert found.loc["C3L-00001"].tolist() == ["CPTAC-3", "", False]


def test_tables_of_an_earlier_version_are_read(cohort):
    cases = [barcode(k) for k in range(6)]
    options = cohort([source(case) for case in cases], cases)
    table = pd.read_parquet(options["sources"])
    table[["source_id", "case_id", "status", "reason", "n_images", "labelled"]].to_parquet(options["sources"])
    table = splits(options)
    assert set(table.site) == {"S1"} and table.project.isna().all()


@pytest.mark.parametrize(
    ("imaged", "expressed", "pair"),
    [
        ("095", "95", "'095' and '95'"),
        ("pat-1", "PAT1", "'pat-1' and 'PAT1'"),
        ("7", "7 ", "'7' and '7 '"),
        ("001", "X001", "'001' and 'X001'"),
        ("TCGA-S9-0001", "TCGA.S9.0001.01A", "'TCGA-S9-0001' and 'TCGA.S9"),
    ],
)
def test_unpaired_cases_are_logged_with_similar_ids(cohort, said, tmp_path, imaged, expressed, pair):
    cases = [barcode(k) for k in range(6)]
    options = cohort([source(case) for case in [*cases, imaged]], [*cases, expressed, "OTHER"])
    table = splits(options | {"flow": tmp_path / "flow.csv"})
    assert not table[table.case_id == imaged].paired.any()
    assert f"1 of 7 cases with images have no expression: '{imaged}'" in said()
    assert "2 of 8 cases with expression have no images: " in said()
    assert f"1 of them look alike but are written differently with images and with expression: {pair}" in said()
    flow = pd.read_csv(tmp_path / "flow.csv", keep_default_na=False).set_index("step")
    assert flow.reason["paired with expression"] == f"no expression, kept for images: '{imaged}'"


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("tcga-s1-0001", "writes one case id in two ways, 'TCGA-S1-0001' and 'tcga-s1-0001'"),
        ("TCGA-S1-0001 ", "writes case ids in two ways, with spaces around them and without: 'TCGA-S1-0001 '"),
        ("TCGA\u2010S1-0001", "it holds HYPHEN"),
        (None, "invalid case id"),
    ],
)
@pytest.mark.parametrize("where", ["sources", "expression"])
def test_rejects_one_patient_written_in_two_ways(cohort, extra, message, where):
    cases = [barcode(k) for k in range(6)]
    options = cohort([source(case) for case in cases], cases)
    table = pd.read_parquet(options[where])
    pd.concat([table, table[:1].assign(case_id=extra, source_id="x")]).to_parquet(options[where])
    with pytest.raises(CohortError, match=message):
        run(**options)


def test_sites_come_from_barcodes_or_a_stated_table(cohort, tmp_path):
    cases = [f"PAT{k:03d}" for k in range(24)]
    options = cohort([source(case) for case in cases], cases) | {"by": "site"}
    with pytest.raises(
        CohortError, match="24 cases have no site to split by: 'PAT000', 'PAT001', 'PAT002' and 21 more"
    ):
        run(**options)
    pd.DataFrame({"case_id": cases, "clinic": [f"0{k % 6}" for k in range(24)]}).to_csv(tmp_path / "c.csv", index=False)
    table = splits(options | {"site_table": tmp_path / "c.csv", "site_column": "clinic"})
    assert set(table.site) == {f"0{k}" for k in range(6)}
    assert (table.groupby(["fold", "site"]).role.nunique() == 1).all()
    options = cohort([source(case, site=f"H{k % 5}") for k, case in enumerate(cases)], cases) | {"by": "site"}
    assert set(splits(options).site) == {f"H{k}" for k in range(5)}


def test_stratifying_table_is_matched_as_text(cohort, tmp_path):
    cases = [f"{k:03d}" for k in range(24)]
    options = cohort([source(case) for case in cases], cases)
    options |= {"stratify_table": tmp_path / "c.csv", "stratify_column": "grade (WHO)"}
    frame = pd.DataFrame({"case_id": cases, "grade (WHO)": [k % 2 for k in range(24)]})
    frame.to_csv(tmp_path / "c.csv", index=False)
    table = splits(options).merge(frame)
    assert (table[table.role == "test"].groupby("fold")["grade (WHO)"].mean() == 0.5).all()
    frame.assign(case_id=range(24)).to_csv(tmp_path / "c.csv", index=False)
    with pytest.raises(CohortError, match=r"lacks 24 cases .* it has '0', which looks like '000'; add them"):
        run(**options)


def test_projects_are_kept_and_spread_alike(cohort):
    cases = [barcode(k) for k in range(30)]
    projects = ["TCGA-LGG" if k < 20 else "TCGA-GBM" for k in range(30)]
    rows = [source(case, project=project) for case, project in zip(cases, projects, strict=True)]
    table = splits(cohort(rows, cases) | {"folds": 5})
    tested = table[table.role == "test"].groupby("fold").project.value_counts().unstack()
    assert (tested["TCGA-LGG"] == 4).all() and (tested["TCGA-GBM"] == 2).all()


@pytest.mark.parametrize("seed", range(20))
def test_every_fold_trains_and_chooses_on_patients_with_tumour(cohort, seed):
    """4 of 20 patients have tumour: most random deals would leave some validation set without."""
    cases = [barcode(k) for k in range(20)]
    rows = [source(case, has_tumour=k % 5 == 0) for k, case in enumerate(cases)]
    table = splits(cohort(rows, cases) | {"folds": 4, "seed": seed})
    with_tumour = table[table.case_id.isin(cases[::5])].groupby(["fold", "role"]).size().unstack(fill_value=0)
    assert (with_tumour[["train", "val", "test"]] >= 1).all().all()


def test_rejects_too_few_patients_with_tumour(cohort):
    cases = [barcode(k) for k in range(20)]
    rows = [source(case, has_tumour=k < 2) for k, case in enumerate(cases)]
    with pytest.raises(
        CohortError, match=r"2 labelled patients have tumour: too few for 4 folds .*, 3 are needed; label"
    ):
        run(**cohort(rows, cases) | {"folds": 4})


@pytest.mark.parametrize("sizes", [[20, 2, 2, 2], [9, 9, 1, 1], [5, 1, 1, 1, 1]])
@pytest.mark.parametrize("folds", [2, 3])
def test_few_sites_are_dealt_where_a_deal_exists(cohort, sizes, folds):
    cases = [barcode(100 * site + k, f"S{site}") for site, size in enumerate(sizes) for k in range(size)]
    for seed in range(5):
        options = cohort([source(case) for case in cases], cases) | {"folds": folds, "by": "site", "seed": seed}
        table = splits(options)
        assert (table.groupby(["fold", "site"]).role.nunique() == 1).all()
        assert (table.groupby("fold").role.nunique() == 3).all()
    with pytest.raises(
        CohortError, match=r"3 sites, too few for 2 folds by site .* 4 are needed; ask for fewer folds, or"
    ):
        run(**cohort([source(case) for case in cases if "S3" not in case and "S4" not in case], cases)
            | {"folds": 2, "by": "site"})  # fmt: skip


def test_pretraining_alone_spreads_paired_patients_and_needs_no_labels(cohort, tmp_path):
    cases = [barcode(k) for k in range(12)]
    options = cohort([source(case, labelled=False) for case in cases], cases[:6]) | {"labelled": False}
    table = splits(options | {"flow": tmp_path / "flow.csv"})
    for _, fold in table.groupby("fold"):
        assert fold[fold.paired].groupby("role").size().to_dict() == {"test": 3, "train": 2, "val": 1}
    assert not table.labelled.any() and "with masks" not in (tmp_path / "flow.csv").read_text()
    with pytest.raises(CohortError, match=r"6 paired patients are too few for 7 folds .* add patients with both"):
        run(**options | {"folds": 7})
