"""TCGA barcodes taken apart, and the order of a case's aliquots and slides."""

import pytest

from mgi.barcodes import Barcode, is_diagnostic, is_tumour, rank_aliquot, rank_slide


@pytest.mark.parametrize(
    ("text", "case_id", "sample_type", "tumour", "analyte", "section"),
    [
        ("TCGA-E6-A1LZ", "TCGA-E6-A1LZ", None, None, None, None),
        ("TCGA-E6-A1LZ-01", "TCGA-E6-A1LZ", "Primary Tumor", True, None, None),
        ("TCGA-E6-A1LZ-11A", "TCGA-E6-A1LZ", "Solid Tissue Normal", False, None, None),
        ("TCGA-AA-0001-02A-11R-A000-07", "TCGA-AA-0001", "Recurrent Tumor", True, "R", None),
        ("TCGA-AA-0001-01Z-00-DX12", "TCGA-AA-0001", "Primary Tumor", True, None, "DX"),
        ("TCGA-AA-0001-06A-01-MSA", "TCGA-AA-0001", "Metastatic", True, None, "MS"),
        ("TCGA-AA-0001-20A-01R-1234-07", "TCGA-AA-0001", None, False, "R", None),
    ],
)
def test_parses_barcodes_of_every_level(text, case_id, sample_type, tumour, analyte, section):
    parsed = Barcode.parse(text)
    assert (parsed.case_id, parsed.sample_type, parsed.is_tumour) == (case_id, sample_type, tumour)
    assert (parsed.analyte, parsed.section) == (analyte, section)
    assert parsed.site == text[5:7]


@pytest.mark.parametrize(
    "text",
    ["", "TCGA-AA", "tcga-aa-0001", "TCGA.AA.0001", "TCGA-AA-0001-", "TCGA-AA-0001-01A-11R-A000-07\n", "TARGET-30-PAN",
     "TCGA-AA-0001x", "TCGA-AA-0001-1", "xTCGA-AA-0001", "TCGA-AA-00011"],
)  # fmt: skip
def test_rejects_what_is_no_barcode(text):
    assert Barcode.parse(text) is None
    assert is_tumour(text) is None
    assert is_diagnostic(text) is None


def test_best_aliquot_is_of_rna_h_then_of_the_highest_portion_and_plate():
    order = [
        "TCGA-AA-0001-01A-11H-A000-07", "TCGA-AA-0001-01B-11R-A000-07", "TCGA-AA-0001-01A-21R-A000-07",
        "TCGA-AA-0001-01A-11R-B000-07", "TCGA-AA-0001-01A-11T-A000-07", "TCGA-AA-0001-01A", "CPT0000000001",
    ]  # fmt: skip
    assert sorted(sorted(order), key=rank_aliquot) == order


def test_diagnostic_slides_come_before_frozen_ones():
    assert sorted(["TCGA-AA-0001-01A-01-TS1", "TCGA-AA-0001-01Z-00-DX1"], key=rank_slide)[0].endswith("DX1")
    assert not rank_slide("C3L-00001-21")
