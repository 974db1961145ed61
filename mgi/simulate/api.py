"""Queries of the GDC's `/files`, answered from a list of records.

https://docs.gdc.cancer.gov/API/Users_Guide/Search_and_Retrieval
"""

import json
from operator import itemgetter
from typing import Any

DEFAULT_SIZE = 10


class BadRequestError(Exception):
    """A request that the GDC would answer with 400 and a message."""


def list_files(records: list[dict], query: dict[str, Any]) -> dict:
    """Return the answer to a query of `/files`: the matching records' fields, one page of them.

    Parameters
    ----------
    records
        Records as the GDC lists them, nested.
    query
        `filters` (a mapping, or its JSON), `fields` (names, comma-separated or a list), `from`, `size`, `sort`.
    """
    filters = query.get("filters")
    if isinstance(filters, str) and filters:
        try:
            filters = json.loads(filters)
        except (ValueError, RecursionError) as error:
            raise BadRequestError("filters is not JSON") from error
    if str(query.get("format", "JSON")).upper() != "JSON":
        raise BadRequestError(f"format {query['format']} is not served here; ask for JSON")
    try:
        start, size = int(query.get("from", 0)), int(query.get("size", DEFAULT_SIZE))
    except (TypeError, ValueError, OverflowError) as error:
        raise BadRequestError("from and size must be whole numbers") from error
    if start < 0 or size < 0:
        raise BadRequestError("from and size must not be negative")
    try:
        found = [record for record in records if not filters or _matches(record, filters)]
    except RecursionError as error:
        raise BadRequestError("filters is nested too deeply") from error
    found = _sort_records(found, str(query.get("sort") or ""))
    fields = query.get("fields") or []
    fields = fields.split(",") if isinstance(fields, str) else fields
    if not isinstance(fields, list) or not all(isinstance(field, str) for field in fields):
        raise BadRequestError("fields must be names, separated by commas or in a list")
    hits = [_select_fields(record, fields) for record in found[start : start + size]]
    pagination = {
        "count": len(hits),
        "total": len(found),
        "size": size,
        "from": start,
        "sort": query.get("sort") or "",
        "page": start // size + 1 if size else 1,
        "pages": -(-len(found) // size) if size else 1,
    }
    return {"data": {"hits": hits, "pagination": pagination}, "warnings": {}}


def _sort_records(records: list[dict], sort: str) -> list[dict]:
    """Return records in the order of `field:asc,field:desc`, the first field counting most."""
    for key in reversed([part for part in sort.split(",") if part]):
        field, _, direction = key.partition(":")
        keyed = [([str(value) for value in _values(record, field)], record) for record in records]
        records = [record for _, record in sorted(keyed, key=itemgetter(0), reverse=direction == "desc")]
    return records


def _values(record: Any, field: str) -> list[Any]:
    """Return every value of a dotted field, through the lists on its way."""
    found = [record]
    for key in field.removeprefix("files.").split("."):
        inner = [value[key] for value in found if isinstance(value, dict) and key in value]
        found = [item for value in inner for item in (value if isinstance(value, list) else [value])]
    return found


def _matches(record: dict, node: Any) -> bool:
    """Return whether a record passes a filter of the GDC's query language."""
    operator = node.get("op") if isinstance(node, dict) else None
    content = node.get("content") if isinstance(node, dict) else None
    if operator in ("and", "or") and isinstance(content, list):
        results = (_matches(record, part) for part in content)
        return all(results) if operator == "and" else any(results)
    if (
        operator not in ("=", "!=", "in", "exclude")
        or not isinstance(content, dict)
        or not isinstance(content.get("field"), str)
    ):
        raise BadRequestError(f"cannot read the filter {json.dumps(node)}; operators are and, or, =, !=, in, exclude")
    wanted = content.get("value")
    wanted = {str(value) for value in (wanted if isinstance(wanted, list) else [wanted])}
    present = any(str(value) in wanted for value in _values(record, content["field"]))
    return present == (operator in ("=", "in"))


def _select_fields(record: dict, fields: list[str]) -> dict:
    """Return the record reduced to the named fields, nested as before; its id is always there."""
    if not fields:
        return {key: value for key, value in record.items() if not isinstance(value, dict | list)}
    paths = [field.strip().split(".") for field in fields]
    return {"id": record["file_id"]} | _prune(record, paths)


def _prune(value: Any, paths: list[list[str]]) -> Any:
    if isinstance(value, list):
        kept = [_prune(item, paths) for item in value]
        return [item for item in kept if item != {}]
    if not isinstance(value, dict) or [] in paths:
        return value
    result = {}
    for key, inner in value.items():
        deeper = [path[1:] for path in paths if path and path[0] == key]
        if deeper and (kept := _prune(inner, deeper)) not in ({}, []):
            result[key] = kept
    return result
