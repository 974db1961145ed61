"""What the files become: expression, tiles or slices, folds."""

from typing import Literal

from pydantic import Field

from mgi.config.acquire import GENCODE_V36_FILE_ID
from mgi.config.section import Section


class Expression(Section):
    """Gene expression: STAR counts of the GDC, or a ready table."""

    table: str | None = Field(
        None,
        description="a ready table instead of the GDC's STAR counts, either way round: delimited text (own, "
        "cBioPortal, Xena, Firehose, TCGAbiolinks, recount3), GCT, Parquet or h5ad",
    )
    positions: str | None = Field(
        None,
        description="own gene positions: a GTF, a GFF3, or a table (own, BioMart, Xena probemap) of gene_name or "
        "gene_id, chromosome and start, and for STAR counts length (bases of the exon union) as well, in place of the "
        "GDC's annotation; null where `table` has these columns itself",
    )
    gene_types: list[str] = Field(
        ["protein_coding"], description="GENCODE gene types kept from STAR counts; an empty list keeps all"
    )
    genes: str | None = Field(
        None, description="file of the genes kept from STAR counts instead, ids or symbols, one a line"
    )
    unit: Literal["log2-tpm", "counts", "log2-fpkm-uq"] = Field(
        "log2-tpm",
        description="what STAR counts become: log2(TPM+1) over the genes kept, raw counts, or log2(FPKM-UQ+1), the "
        "GDC's upper-quartile normalisation",
    )
    table_unit: Literal["log2-tpm", "counts", "log2-fpkm-uq", "z-score", "log2", "tpm", "linear"] | None = Field(
        None, description="what the values of `table` are; null recognises it where only one unit fits"
    )
    normalise: bool = Field(
        False, description="turn a `table` of counts into log2(TPM+1) as STAR counts are; `positions` need lengths"
    )
    duplicates: Literal["first", "mean", "max-variance"] = Field(
        "first", description="which of several rows of one gene in `table` is used, or their mean"
    )
    leave_out: bool = Field(
        False,
        description="leave out the columns and rows of `table` that cannot be used (no genes, mistyped barcodes, no "
        "value), named in the log; false refuses the table",
    )
    annotation_file_id: str = Field(
        GENCODE_V36_FILE_ID, description="GDC file id of the GTF that gives positions and exon-union lengths"
    )


class Slides(Section):
    """Whole-slide images cut into tiles of one physical size."""

    mpp: float = Field(0.5, gt=0, le=16, description="microns per pixel of a tile")
    tile_px: int = Field(256, ge=32, description="edge of a tile, pixels")
    default_mpp: float | None = Field(None, gt=0, description="level-0 mpp of slides that state none; null skips them")
    min_tissue: float = Field(0.5, ge=0, le=1, description="least tissue fraction of a tile")
    annotations: str | None = Field(
        None, description="folder of tumour annotations, `{slide}.geojson` or `{slide}_mask.tiff`"
    )
    fetch_from: Literal["gdc", "idc"] = Field(
        "gdc",
        description="`idc`: TCGA's slides as DICOM from the Imaging Data Commons, through its library `idc-index`",
    )
    per_job: int = Field(1, ge=1, description="slides fetched and tiled by one job")
    keep_slides: bool = Field(False, description="keep slides once they are tiled; else they are deleted")
    in_flight: int = Field(8, ge=1, description="jobs at once that fetch or tile, so slides on the disk, by `per_job`")


class Mri(Section):
    """Brain MRI with tumour masks in the public kaggle_3m layout."""

    folder: str = Field(
        description="the kaggle_3m folder: one folder per patient, `*_N.tif` and `*_N_mask.tif`; or Kaggle's zip of it"
    )
    image_px: int = Field(128, ge=32, description="edge of a slice after resampling, pixels")


class Split(Section):
    """Folds by patient; selection, early stopping and thresholds use val, test is read once."""

    folds: int = Field(5, ge=2, description="folds")
    run: list[int] | None = Field(None, description="folds to train, counted from 0; null trains all")
    val_fraction: float = Field(0.15, gt=0, lt=1, description="share of the patients outside test that go to val")
    by: Literal["patient", "site"] = Field(
        "patient", description="`site` keeps each site within one fold: TCGA's tissue-source site, or `site_column`"
    )
    stratify_table: str | None = Field(
        None, description="a table (Parquet or delimited text) with case_id and `stratify_column`"
    )
    stratify_column: str | None = Field(None, description="the column whose classes every fold holds alike")
    site_table: str | None = Field(
        None, description="a table (Parquet or delimited text) with case_id and `site_column`"
    )
    site_column: str | None = Field(None, description="the column that names each case's site, in place of barcodes")
