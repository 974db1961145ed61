"""Where the files come from: the simulated cohort, or the GDC."""

from typing import Literal

from pydantic import Field

from mgi.config.section import Section

GDC_API = "https://api.gdc.cancer.gov"
GENCODE_V36_FILE_ID = "be002a2c-3b27-43f3-9e0f-fd47db92a6b5"


class Simulate(Section):
    """The simulated cohort, with planted truth, in the GDC's own formats."""

    cases: int = Field(48, ge=2, description="patients")
    genes: int = Field(2000, ge=1000, le=60660, description="genes in each STAR table")
    slide_px: int = Field(2048, ge=512, le=16384, description="edge of a slide at level 0, pixels of 0.5 microns")


class Gdc(Section):
    """Where the cohort's files come from: the GDC, or a folder in its formats."""

    api_url: str = Field(
        GDC_API, description="the GDC API, or `local:DIR`, a folder made by `mgi simulate` that each call serves itself"
    )
    projects: list[str] = Field(min_length=1, description="GDC projects, such as TCGA-BRCA")
    workers: int = Field(4, ge=1, le=32, description="downloads at once in one job")
    files_per_job: int = Field(500, ge=1, description="STAR tables fetched by one job")
    mirrors: list[str] = Field(
        [],
        description="tried before the GDC, in order: a folder of `{file_id}/{file_name}` or `{file_name}`, or an "
        "http(s) address, with these names in it or else with the API's paths",
    )
    token_file: str | None = Field(
        None, description="file of a GDC token (mode 0600), for controlled access; sent to `api_url` only"
    )
    slides: list[Literal["diagnostic", "frozen"]] = Field(
        ["diagnostic"], min_length=1, description="kinds of slides queried: FFPE (-DX), frozen (-TS, -BS, -MS)"
    )
    sample_types: list[str] = Field(
        [],
        description="only these, in order of preference; empty: all but normal tissue, primary tumours before others",
    )
    aliquots: Literal["first", "best"] = Field(
        "first",
        description="the STAR table of a case with several: `first` the lowest barcode, `best` analyte H, R, T and "
        "then the highest barcode; sample type counts before either",
    )
    slides_per_case: Literal["all", "first", "best"] = Field(
        "all",
        description="the slides of a case: `first` the lowest barcode, `best` the largest file; sample type and "
        "diagnostic before frozen count before either",
    )
    exclude: str | None = Field(None, description="table of files to leave out of the query: file_id, reason")
