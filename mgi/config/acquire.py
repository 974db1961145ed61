"""Where the files come from: the simulated cohort, or the GDC."""

import re
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from mgi.config.names import Name
from mgi.config.section import Section, invalid, sentence
from mgi.config.train import Seed

GDC_API = "https://api.gdc.cancer.gov"
GENCODE_V36_FILE_ID = "be002a2c-3b27-43f3-9e0f-fd47db92a6b5"
UUID_PATTERN = r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"
LOCAL = "local:"
MIRROR_FIELDS = ("{file_id}", "{file_name}")
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Simulate(Section):
    """The simulated cohort, with planted truth, in the GDC's own formats."""

    cases: int = Field(48, ge=2, description="patients, with one or two slides each")
    genes: int = Field(2000, ge=1000, le=60660, description="genes in each STAR table")
    slide_px: int = Field(2048, ge=512, le=16384, description="edge of a slide at level 0, pixels of 0.5 microns")
    tumour_by: Literal["bit", "look"] = Field(
        "bit",
        description="what decides which of the two textures is the tumour: a bit that only the switch genes tell, or a "
        "look factor that its genes tell and the tissue shows faintly",
    )
    switch_sd: float = Field(
        2.0, ge=0, le=10, description="difference that the bit makes to the switch genes, standard deviations; 0: none"
    )
    switch_genes: int = Field(200, ge=0, le=200, description="switch genes")


class Server(Section):
    """A server that speaks the GDC's API."""

    api_url: str = Field(
        GDC_API, description="the GDC API, or `local:DIR`, a folder made by `mgi simulate` that each call serves itself"
    )
    allow_http: bool = Field(
        False,
        description="allow `http://` addresses of other machines, where whoever is on the line can change the "
        "manifest's md5 and the files alike",
    )

    @field_validator("api_url")
    @classmethod
    def _check_api_url(cls, address: str) -> str:
        if not address.startswith(LOCAL):
            check_address(address, "the address of an API starts with https:// or local:")
        elif not address.removeprefix(LOCAL):
            raise sentence("'{here}' needs a folder: write it as local:DIR")
        return address

    @model_validator(mode="after")
    def _refuse_http(self) -> Self:
        for address in self.addresses():
            if not self.allow_http and address.startswith("http:") and urlsplit(address).hostname not in LOOPBACK:
                raise sentence(f"'{address}' is not encrypted: use https://, or set '{{at}}allow_http: true'")
        return self

    def addresses(self) -> list[str]:
        """Return all addresses that are asked."""
        return [self.api_url]


class Downloads(Server):
    """How files are fetched: from where, and how many at once."""

    workers: int = Field(4, ge=1, le=32, description="downloads at once in one job")
    mirrors: list[str] = Field(
        [],
        description="tried before the GDC, in order: a folder of `{file_id}/{file_name}` or `{file_name}`, or an "
        "http(s) address, with these names in it or else with the API's paths. What comes from a mirror must have the "
        "manifest's md5",
    )
    token_file: str | None = Field(
        None,
        min_length=1,
        description="file of a GDC token (mode 0600), for controlled access; sent to `api_url` only, over https",
    )

    @field_validator("mirrors")
    @classmethod
    def _check_mirrors(cls, mirrors: list[str]) -> list[str]:
        for mirror in mirrors:
            refuse_credentials(mirror)
        for mirror in mirrors:
            if "://" in mirror or mirror.lower().startswith(("http:", "https:")):
                check_address(mirror, "a mirror is a folder or an address that starts with https://")
                unknown = [name for name in re.findall(r"\{.*?\}|[{}]", mirror) if name not in MIRROR_FIELDS]
                if unknown:
                    raise invalid(f"'{unknown[0]}' is unknown in a mirror; use {' and '.join(MIRROR_FIELDS)}")
            elif not mirror.strip():
                raise invalid("a mirror is a folder or an address")
        return mirrors

    def addresses(self) -> list[str]:
        """Return all addresses that are asked."""
        return [self.api_url, *self.mirrors]


class Selection(Section):
    """Which files of the GDC make the cohort."""

    projects: list[Name] = Field(
        min_length=1,
        description="GDC projects, such as TCGA-BRCA. The cohorts of one checkout share a project's manifest",
    )
    slides: list[Literal["diagnostic", "frozen"]] = Field(
        ["diagnostic"], min_length=1, description="kinds of slides queried: FFPE (-DX), frozen (-TS, -BS, -MS)"
    )
    sample_types: list[str] = Field(
        [],
        description="only these sample types in the GDC's words, such as Primary Tumor, in order of preference; empty: "
        "all but normal tissue, primary tumours before others",
    )
    slides_per_case: Literal["all", "first", "best"] = Field(
        "all",
        description="the slides of a case: sample type decides first, then diagnostic before frozen; of "
        "equal ones `first` takes the lowest barcode, `best` the largest file",
    )
    exclude: str | None = Field(
        None, min_length=1, description="table of files to leave out of the query: file_id, reason"
    )

    @field_validator("projects", "slides", "sample_types")
    @classmethod
    def _refuse_duplicates(cls, names: list[str]) -> list[str]:
        for name in names:
            if names.count(name) > 1:
                raise invalid(f"it has '{name}' twice")
        return names


class Gdc(Selection, Downloads):
    """The cohort's files: from the GDC, or from a folder in its formats."""

    aliquots: Literal["first", "best"] = Field(
        "first",
        description="the STAR table of a case with several: sample type decides first; then `first` takes the lowest "
        "barcode, `best` analyte H, R, T and of these the highest barcode",
    )
    files_per_job: int = Field(500, ge=1, description="STAR tables fetched by one job")


class SimulateOptions(Simulate, Seed):
    """The options of `mgi simulate`, complete."""


class QueryOptions(Selection, Server):
    """The options of `mgi gdc query`, complete."""

    aliquots: Literal["first", "best", "all"] = Field("first", description="STAR tables kept of a case with several")
    data_types: list[Literal["expression", "slides"]] = Field(
        ["expression", "slides"], min_length=1, description="what is listed"
    )
    annotation_file_id: str | None = Field(
        None, pattern=UUID_PATTERN, description="GDC file id of the gene annotation to list"
    )


class ImportOptions(Section):
    """The options of `mgi gdc import`, complete."""

    slides: list[Literal["diagnostic", "frozen"]] = Field(
        ["diagnostic", "frozen"], min_length=1, description="kinds of slides kept"
    )
    sample_types: list[str] = Field(
        [], description="only these sample types, in order of preference; empty: all but normal tissue"
    )
    aliquots: Literal["first", "best", "all"] = Field("first", description="STAR tables kept of a case with several")
    slides_per_case: Literal["all", "first", "best"] = Field("all", description="slides kept of a case with several")


class FetchOptions(Downloads):
    """The options of `mgi gdc fetch`, complete."""


def refuse_credentials(address: str) -> None:
    """Refuse a user name or a password in an address; no message repeats it."""
    if "@" in address:
        raise sentence("an address in '{here}' holds a user name or a password: leave it out; ~/.netrc can hold it")


def check_address(address: str, expected: str) -> None:
    """Refuse what is no http(s) address, or holds a password."""
    refuse_credentials(address)
    try:
        parts = urlsplit(address)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError as error:
        raise invalid(f"not an address: {error}") from error
    if not usable or not address.isprintable() or " " in address:
        raise invalid(expected)
