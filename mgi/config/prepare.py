"""What the files become: expression, tiles or slices, folds."""

from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from mgi.config.acquire import GENCODE_V36_FILE_ID
from mgi.config.section import Section


class Expression(Section):
    """Gene expression: STAR counts of the GDC, or a ready table."""

    table: str | None = Field(None, description="a ready table (Parquet, CSV or TSV) instead of the GDC's STAR counts")
    positions: str | None = Field(
        None,
        description="own gene positions, a GTF or a table: for `table` gene_name (or gene_id), chromosome, start; for "
        "STAR counts gene_id, chromosome, start, length (bases of the exon union), in place of the GDC's annotation",
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
    annotation_file_id: str = Field(
        GENCODE_V36_FILE_ID, description="GDC file id of the GTF that gives positions and exon-union lengths"
    )


class MaskValues(Section):
    """What the values of a mask mean; all others are background."""

    tumour: list[int] = Field(min_length=1, description="values that are tumour")
    ignore: list[int] = Field([], description="values that are left out of loss and metrics")

    @model_validator(mode="after")
    def _refuse_double_meaning(self) -> Self:
        if both := sorted(set(self.tumour) & set(self.ignore)):
            raise PydanticCustomError("values", "the value {value} is both tumour and ignored", {"value": both[0]})
        return self


class Tiling(Section):
    """What decides the tiles of a slide."""

    mpp: float = Field(0.5, gt=0, le=16, description="microns per pixel of a tile")
    tile_px: int = Field(256, ge=32, description="edge of a tile, pixels")
    default_mpp: float | None = Field(
        None, gt=0, description="level-0 mpp of slides that state none, or an impossible one; null skips them"
    )
    min_tissue: float = Field(0.5, ge=0, le=1, description="least tissue fraction of a tile")
    annotations: str | None = Field(
        None,
        description="folder of tumour annotations, `{slide}.geojson` or a mask `{slide}_mask.tiff`, `.png` or `.jpg`",
    )
    tumour_classes: list[str] = Field(
        ["Tumor", "Tumour"],
        min_length=1,
        description="classes of outlines that are tumour, case ignored; `Ignore*` is left out of loss and metrics, "
        "others are background; where no outline of a file has a class, all are tumour",
    )
    mask_values: MaskValues | None = Field(
        None, description="what the values of masks mean; null: two values, of which the larger is tumour"
    )
    mpp_table: str | None = Field(
        None, description="table (CSV, TSV or Parquet) of slide and mpp: level-0 mpp that beats what the files state"
    )


class Slides(Tiling):
    """Whole-slide images cut into tiles of one physical size."""

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
        "patient", description="`site` keeps each tissue-source site within one fold"
    )
    stratify_table: str | None = Field(None, description="a table (Parquet or CSV) with case_id and `stratify_column`")
    stratify_column: str | None = Field(None, description="the column whose classes every fold holds alike")
