"""What the files become: expression, tiles or slices, folds."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from mgi.config.acquire import GENCODE_V36_FILE_ID, UUID_PATTERN
from mgi.config.names import Label
from mgi.config.section import Section, sentence
from mgi.config.train import Seed


class StarCounts(Section):
    """What the GDC's STAR counts become."""

    gene_types: list[str] = Field(
        ["protein_coding"], description="GENCODE gene types kept from STAR counts; an empty list keeps all"
    )
    genes: str | None = Field(
        None,
        min_length=1,
        description="file of the genes kept from STAR counts instead, Ensembl ids or symbols, one a line; a `#` begins "
        "a comment",
    )
    unit: Literal["log2-tpm", "counts", "log2-fpkm-uq"] = Field(
        "log2-tpm",
        description="what STAR counts become: log2(TPM+1) over the genes kept, raw counts, or log2(FPKM-UQ+1), the "
        "GDC's upper-quartile normalisation, which does not depend on the genes kept",
    )


class TableImport(Section):
    """How a ready table of expression is read: the options of `mgi expression import`."""

    table_unit: Literal["log2-tpm", "counts", "log2-fpkm-uq", "z-score", "log2", "tpm", "linear"] | None = Field(
        None, description="what the values of the table are; null recognises it where only one unit fits"
    )
    normalise: bool = Field(
        False, description="turn a table of counts into log2(TPM+1) as STAR counts are; the positions need lengths"
    )
    duplicates: Literal["first", "mean", "max-variance"] = Field(
        "first", description="which of several rows of one gene in the table is used, or their mean"
    )
    leave_out: bool = Field(
        False,
        description="leave out the columns and rows of the table that cannot be used (no gene, mistyped barcode, no "
        "value), named in the log; false refuses the table",
    )


class Expression(StarCounts, TableImport):
    """Gene expression: STAR counts of the GDC, or a ready table."""

    annotation_file_id: str = Field(
        GENCODE_V36_FILE_ID,
        pattern=UUID_PATTERN,
        description="GDC file id of the GTF that gives positions and exon-union lengths; the default is GENCODE v36, "
        "with which the GDC counts",
    )
    table: str | None = Field(
        None,
        min_length=1,
        description="a ready table instead of the GDC's STAR counts, cases by genes or genes by cases: delimited text "
        "(own, cBioPortal, Xena, Firehose, TCGAbiolinks, recount3), GCT, Parquet or h5ad",
    )
    positions: str | None = Field(
        None,
        min_length=1,
        description="own gene positions: a GTF, a GFF3 or a table (own, BioMart, Xena probemap) of gene_name or "
        "gene_id, chromosome, start and, for STAR counts, gene_id and length (bases of the exon union), in place of "
        "the GDC's annotation; null where `table` has these columns itself",
    )

    @model_validator(mode="after")
    def _check_table(self) -> Self:
        if self.table is not None and self.genes is not None:
            raise sentence("'{at}genes' chooses from STAR counts; leave genes out of '{at}table' by hand")
        return self


class MaskValues(Section):
    """What the values of a mask mean; all others are background."""

    tumour: list[int] = Field(min_length=1, description="values that are tumour")
    ignore: list[int] = Field([], description="values that are left out of loss and metrics")

    @model_validator(mode="after")
    def _refuse_double_meaning(self) -> Self:
        if both := sorted(set(self.tumour) & set(self.ignore)):
            raise sentence(f"the mask value {both[0]} is both tumour and ignored: give it one meaning")
        return self


Stain = Literal["macenko"]
Store = Literal["images", "coordinates"]


class TileOptions(Section):
    """How slides are cut into tiles: the options of `mgi slide tile`."""

    mpp: float = Field(0.5, gt=0, le=16, description="microns per pixel of a tile")
    tile_px: int = Field(256, ge=32, le=4096, description="edge of a tile, pixels")
    default_mpp: float | None = Field(
        None,
        gt=0,
        description="level-0 microns per pixel of slides that state none, or an impossible one; null skips them",
    )
    min_tissue: float = Field(0.1, ge=0, le=1, description="least tissue fraction of a tile")
    min_focus: float = Field(
        0.05,
        ge=0,
        le=1,
        description="least sharpness of a tile, as a share of the upper quartile of its slide: blurrier tiles are out "
        "of focus and left out; 0 keeps all",
    )
    stain: Stain | None = Field(
        None,
        description="normalise each slide's haematoxylin and eosin to a reference's: `macenko` (2009), from 32 of its "
        "tiles; tiles are not copied as they are stored then",
    )
    store: Store = Field(
        "images",
        description="what a table of tiles holds: `images`, as JPEG, or `coordinates`, some hundred times less, whose "
        "pixels training and evaluation read from the slides, which must stay where they are",
    )
    partial_tiles: bool = Field(
        False,
        description="keep tiles that reach beyond the right and bottom margins of a slide: what lies beyond is white, "
        "is no tissue, and is left out of loss and metrics; for fields of a few tiles",
    )
    max_tiles: int | None = Field(
        None,
        ge=1,
        description="most tiles of a slide, spread evenly over its tissue; null keeps all. Tumour in the others counts "
        "as missed",
    )
    annotations: str | None = Field(
        None,
        min_length=1,
        description="folder of tumour annotations, `{slide}.geojson` or a mask `{slide}_mask.tiff`, `.png` or `.jpg`; "
        "slides without one train the encoders only",
    )
    tumour_classes: list[Label] = Field(
        ["Tumor", "Tumour"],
        min_length=1,
        description="classes of outlines that are tumour, case ignored; `Ignore*` is left out of loss and metrics, "
        "others are background; where no outline of a file has a class, all are tumour",
    )
    mask_values: MaskValues | None = Field(
        None, description="what the values of masks mean; null: 0 and one other value, which is tumour"
    )
    mpp_table: str | None = Field(
        None,
        min_length=1,
        description="table (CSV, TSV or Parquet) of slide and mpp: level-0 mpp that beats what the files state",
    )

    @model_validator(mode="after")
    def _check_store(self) -> Self:
        if self.store == "coordinates" and self.stain is not None:
            raise sentence(
                f"'{{at}}stain' is '{self.stain}', which is estimated while slides are tiled, but '{{at}}store' is "
                "'coordinates', so that tiles are read later: use 'images', or leave '{at}stain' out"
            )
        return self


class StatedSlide(Section):
    """What the user states of one slide."""

    mpp: float | None = Field(None, gt=0, description="level-0 microns per pixel, which beat what the file states")
    annotation: str | None = Field(None, min_length=1, description="annotation of this slide")
    site: str | None = Field(None, min_length=1, description="where the case is from")


class TileJob(TileOptions):
    """The options of `mgi slide tile`, complete."""

    stated: dict[str, StatedSlide] = Field({}, description="what is stated of single slides, by their source_id")


class OwnFiles(Section):
    """Where the user's own files are listed, one per slide, and whose each is."""

    table: str | None = Field(
        None,
        min_length=1,
        description="own slides in place of the GDC's: a table (CSV, TSV or Parquet) of case_id and slide and, where "
        "known, mpp, annotation and site; relative paths are taken from the folder of the table",
    )
    folder: str | None = Field(
        None,
        min_length=1,
        description="own slides in place of the GDC's: a folder of them, folders within it included; a folder of "
        "`.dcm` files is one slide",
    )
    case_pattern: str | None = Field(
        None,
        min_length=1,
        description="regular expression for the case id of each slide in `folder`, matched at the start of its path "
        "there without the suffix: the first group, or the whole match; null: the TCGA barcode that the name begins "
        "with, else the whole name",
    )

    @property
    def own(self) -> str | None:
        """The table or folder of the user's own files; None where there is none."""
        return self.table or self.folder

    @field_validator("case_pattern")
    @classmethod
    def _check_pattern(cls, pattern: str | None) -> str | None:
        try:
            groups = re.compile(pattern or "").groups
        except re.error as error:
            raise sentence(f"'{{here}}' is no regular expression: {error}") from error
        if groups > 1:
            raise sentence(f"'{{here}}' has {groups} groups: put the case id alone in (), others in (?:)")
        return pattern

    @model_validator(mode="after")
    def _check_listing(self) -> Self:
        if self.table is not None and self.folder is not None:
            raise sentence("'{at}table' and '{at}folder' both list the slides: give one")
        if self.case_pattern is not None and self.folder is None:
            raise sentence("'{at}case_pattern' reads the names in '{at}folder', which is not given")
        return self


class Slides(OwnFiles, TileOptions):
    """Whole-slide images cut into tiles of one physical size."""

    fetch_from: Literal["gdc", "idc"] = Field(
        "gdc",
        description="`idc`: TCGA's slides as DICOM from the Imaging Data Commons, through its library `idc-index`",
    )
    per_job: int = Field(1, ge=1, description="slides fetched and tiled by one job")
    preview: bool = Field(
        True,
        description="make a picture of each slide with its tissue, tiles and annotation, and a sheet of them for the "
        "report",
    )
    coordinates: bool = Field(
        False,
        description="write the coordinates of each slide's tiles as HDF5, from which TRIDENT and CLAM extract features",
    )
    keep_slides: bool = Field(False, description="keep slides once they are tiled; else they are deleted")
    in_flight: int = Field(
        8, ge=1, description="most jobs at once that fetch or tile; the disk holds `per_job` slides for each"
    )

    @model_validator(mode="after")
    def _check_own(self) -> Self:
        if self.table is not None and self.mpp_table is not None:
            raise sentence("'{at}table' states the mpp of its slides in a column mpp: leave '{at}mpp_table' out")
        if self.own is not None and self.fetch_from == "idc":
            raise sentence("'{at}fetch_from' fetches slides, but these are your own: leave it out")
        if self.store == "coordinates" and self.own is None and not self.keep_slides:
            raise sentence(
                "'{at}store' is 'coordinates', so that training reads the slides, but '{at}keep_slides' is false and "
                "they are deleted once tiled: set '{at}keep_slides: true', or store 'images'"
            )
        return self


class Features(OwnFiles):
    """Precomputed features of patches in place of images, for pre-training alone."""

    table: str | None = Field(
        None,
        min_length=1,
        description="the HDF5 files of patch features: a table (CSV, TSV or Parquet) of case_id and slide, which names "
        "the file, and, where known, site; relative paths are taken from the folder of the table",
    )
    folder: str | None = Field(
        None,
        min_length=1,
        description="folder of HDF5 files as TRIDENT and CLAM write them, one per slide, folders within it included: "
        "the datasets `features` [patches, values] and `coords` [patches, 2], pixels of level 0",
    )

    @model_validator(mode="after")
    def _require_listing(self) -> Self:
        if self.own is None:
            raise sentence("give '{at}folder' or '{at}table': the HDF5 files of patch features")
        return self


Sequences = Annotated[list[Literal["t1", "t1ce", "t2", "flair"]], Field(min_length=3, max_length=3)]


class MriOptions(Section):
    """How MRI series become slices: the options of `mgi mri import`."""

    image_px: int = Field(128, ge=32, le=4096, description="edge of a slice after resampling, pixels")
    channels: Sequences = Field(
        ["t1", "flair", "t1ce"],
        description="NIfTI sequences that become the three channels; kaggle_3m has its own",
    )
    labels: list[int] = Field([], description="NIfTI labels that are tumour; empty: all but 0")


class Mri(MriOptions):
    """Brain MRI with tumour masks."""

    folder: str = Field(
        min_length=1,
        description="folder or zip of series: NIfTI, `{case}_{t1,t1ce,t2,flair,seg}.nii.gz` as in BraTS, or kaggle_3m, "
        "one folder per patient with `*_N.tif` and `*_N_mask.tif`",
    )


class Folds(Section):
    """How cases are split into folds."""

    folds: int = Field(5, ge=2, le=1000, description="folds")
    val_fraction: float = Field(0.15, gt=0, lt=1, description="share of the patients outside test that go to val")
    by: Literal["patient", "site"] = Field(
        "patient", description="`site` keeps each site within one fold: TCGA's tissue-source site, or `site_column`"
    )
    stratify_table: str | None = Field(
        None, min_length=1, description="a table (Parquet, CSV or TSV) with case_id and `stratify_column`"
    )
    stratify_column: Label | None = Field(
        None, description="the column whose classes every fold holds alike; any name, such as grade (WHO)"
    )
    site_table: str | None = Field(
        None, min_length=1, description="a table (Parquet, CSV or TSV) with case_id and `site_column`"
    )
    site_column: Label | None = Field(None, description="the column that names each case's site, instead of barcodes")

    @model_validator(mode="after")
    def _check_tables(self) -> Self:
        if (self.stratify_table is None) != (self.stratify_column is None):
            raise sentence("'{at}stratify_table' and '{at}stratify_column' go together: give both or neither")
        if (self.site_table is None) != (self.site_column is None):
            raise sentence("'{at}site_table' and '{at}site_column' go together: give both or neither")
        return self


class Split(Folds):
    """Folds by patient; selection, early stopping and thresholds use val, test is read once."""

    run: list[int] | None = Field(None, description="folds to train, counted from 0; null trains all")

    @field_validator("run")
    @classmethod
    def _check_run(cls, run: list[int] | None) -> list[int] | None:
        if run is not None and not run:
            raise sentence("'{here}' is empty: name the folds to train, or leave it out to train all")
        for fold in run or []:
            if run is not None and run.count(fold) > 1:
                raise sentence(f"'{{here}}' has {fold} twice")
        return run

    @model_validator(mode="after")
    def _check_run_within_folds(self) -> Self:
        for fold in self.run or []:
            if not 0 <= fold < self.folds:
                raise sentence(f"'{{at}}run' names fold {fold}, but folds go from 0 to {self.folds - 1}")
        return self

    def folds_to_run(self) -> list[int]:
        """Return the folds that the default target trains."""
        return list(range(self.folds)) if self.run is None else self.run


class SplitOptions(Folds, Seed):
    """The options of `mgi split`, complete."""

    labelled: bool = Field(
        True,
        description="whether every fold needs labelled patients; false for pre-training alone, where each needs "
        "patients with images and expression",
    )
