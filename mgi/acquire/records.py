"""The GDC's records and answers, each validated as it enters."""

from collections.abc import Iterator
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from mgi.acquire.fields import FileId, Md5, Name, Size, Text, describe_errors
from mgi.acquire.samples import Sample
from mgi.errors import FetchError
from mgi.names import quote

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

Listed = Annotated[list[T], BeforeValidator(lambda value: [] if value is None else value)]


class Record(BaseModel):
    """A part of an answer; fields that nobody asked for are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Status(Record):
    """The answer of `/status`."""

    data_release: Text | None = None


class Pagination(Record):
    """How many records a query finds."""

    total: int = Field(strict=True, ge=0)


class Page(Record):
    """A page of records of `/files`, each still to be validated."""

    hits: list[Any]
    pagination: Pagination


class FilesAnswer(Record):
    """The answer of `/files`."""

    data: Page


class Entity(Record):
    """An aliquot or a slide."""

    submitter_id: Text | None = None


class Analyte(Record):
    """An analyte and its aliquots."""

    aliquots: Listed[Entity] = []


class Portion(Record):
    """A portion of a sample: cut into slides, or made into analytes."""

    slides: Listed[Entity] = []
    analytes: Listed[Analyte] = []


class FileSample(Sample):
    """A sample of a file."""

    portions: Listed[Portion] = Field(default=[])

    def barcodes(self) -> Iterator[str]:
        """Yield the barcodes of its aliquots and slides."""
        for portion in self.portions:
            entities = [*portion.slides, *(aliquot for analyte in portion.analytes for aliquot in analyte.aliquots)]
            yield from (entity.submitter_id for entity in entities if entity.submitter_id)


class FileCase(Record):
    """A case that a file belongs to."""

    submitter_id: Text
    samples: Listed[FileSample] = []


class FileRecord(Record):
    """A file that can be pinned, whatever it is of."""

    file_id: FileId
    file_name: Name
    md5sum: Md5
    file_size: Size


class CaseFileRecord(FileRecord):
    """A file of patients."""

    data_type: Text | None = None
    cases: list[FileCase]


class FileState(Record):
    """What the GDC says of a file that is pinned already."""

    file_id: FileId
    md5sum: Md5 | None = None
    state: Text | None = None


class Version(Record):
    """A version of a file in the answer of `/history`."""

    uuid: Text | None = None
    file_change: Text | None = None
    data_release: Text | int | float | None = None


def parse_answer(model: type[M], answer: Any, where: str, what: str) -> M:
    """Return an answer as `model`.

    Raises
    ------
    FetchError
        If it is none.
    """
    try:
        return model.model_validate(answer)
    except (ValidationError, RecursionError) as error:
        raise FetchError(f"{where} answers no {what}: {quote(answer, 200)}; is it the GDC's API?") from error


def parse_versions(answer: Any, where: str) -> list[Version]:
    """Return the versions of a file.

    Raises
    ------
    FetchError
        If the answer is no list of versions.
    """
    try:
        return TypeAdapter(list[Version]).validate_python(answer)
    except (ValidationError, RecursionError) as error:
        raise FetchError(f"{where} answers no list of versions: {quote(answer, 200)}") from error


def parse_records(model: type[M], hits: list[Any]) -> tuple[list[M], list[tuple[str, str]]]:
    """Return the records that are valid, and of the others the file id and what is wrong."""
    records, problems = [], []
    for number, hit in enumerate(hits, 1):
        try:
            records.append(model.model_validate(hit))
        except ValidationError as error:
            file_id = hit.get("file_id") if isinstance(hit, dict) else None
            name = file_id if isinstance(file_id, str) else f"record {number}"
            problems.append((name, describe_errors(error, {"md5sum": "md5", "file_size": "size"})))
    return records, problems
