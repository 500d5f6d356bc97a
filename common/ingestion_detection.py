"""Which format a file or folder is in, found by its content, with a sentence that says why.

The first rule that holds decides; `docs/formats.md` lists the same rules for people.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from common.errors import DataError
from common.ingestion_bioc import COLLECTION_KEYS
from common.ingestion_brat import DOCUMENT_TABLE
from common.ingestion_fhir import SPANS_SUFFIX
from common.ingestion_pubtator import TEXT_LINE
from common.ingestion_tables import TableLayout
from common.tag_schemes import split_tag
from common.text_files import read_head
from common.validation import require_choice

_PARQUET_MARK = b"PAR1"
_DELIMITERS = (",", ";", "\t")
_LINES_LOOKED_AT = 100
_PRODIGY_KEYS = ("_task_hash", "_input_hash", "answer")
_KEY = re.compile(r'"((?:[^"\\]|\\.){1,40})"\s*:')


class DataFormat(StrEnum):
    """The formats that ingestion reads."""

    COLUMNS = "columns"
    BRAT = "brat"
    JSONL = "jsonl"
    PUBTATOR = "pubtator"
    BIOC = "bioc"
    PRODIGY = "prodigy"
    LABEL_STUDIO = "label-studio"
    CLUENER = "cluener"
    FHIR = "fhir"
    CSV = "csv"
    PARQUET = "parquet"


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectedFormat:
    """A format, and one sentence that says what gave it away."""

    format: DataFormat
    reason: str


def named_format(name: str) -> DetectedFormat | None:
    """Return the format that an operator named, or None for `auto`.

    Raises:
        ValidationError: There is no such format.
    """
    require_choice("format", name, ["auto", *DataFormat])
    return None if name == "auto" else DetectedFormat(format=DataFormat(name), reason="It was named.")


def detect_format(path: Path | str, *, table: TableLayout | None = None) -> DetectedFormat:
    """Find the format of a file or folder by looking at it.

    Args:
        path: A file or a folder.
        table: The names of a table's columns, by which CSV is known.

    Raises:
        DataError: It does not exist, is empty, or is a folder without usable files.
    """
    path, layout = Path(path), table or TableLayout()
    if path.is_dir():
        if any(path.rglob("*.ann")):
            return _found(DataFormat.BRAT, "The folder holds .ann files.")
        first = data_files(path)[0]
        inner = detect_format(first, table=layout)
        return DetectedFormat(format=inner.format, reason=f"In {first.name}: {inner.reason}")
    if path.suffix in (".txt", ".ann") and path.with_suffix(".ann").exists():
        return _found(DataFormat.BRAT, "A .ann file belongs to the .txt file.")
    if _mark(path) == _PARQUET_MARK:
        return _found(DataFormat.PARQUET, "The file begins with PAR1.")
    line = _first_line(path)
    if line.lstrip().startswith(("{", "[")) and not _is_row(line):
        return _json_format(path, line.strip())
    if TEXT_LINE.fullmatch(line):
        return _found(DataFormat.PUBTATOR, "The first line reads ID|t|title.")
    if path.suffix == ".csv" or _csv_delimiter(line, layout) is not None:
        why = (
            "The name ends with .csv."
            if path.suffix == ".csv"
            else "The first line names columns of a table."
        )
        return _found(DataFormat.CSV, why)
    if path.suffix == ".txt" and not line.startswith("#") and len(line.split()) > 5:
        raise DataError(
            "looks like a document, but no .ann file is beside it; add one, empty if it has no entities.",
            path=path,
            reason="no-annotation-file",
        )
    return _found(
        DataFormat.COLUMNS,
        "The first line is no JSON object, table header or PubTator title, and no .ann file is there.",
    )


def is_by_line(path: Path) -> bool:
    """Return whether each line of a JSON file is an object of its own, a lone bundle or collection aside."""
    head = read_head(path)
    first = _first_object(head)
    if first is None:
        return False
    return head.strip().count("\n") > 0 or not {"entry", *COLLECTION_KEYS} & set(first)


def delimiter_of(path: Path, table: TableLayout) -> str:
    """Return what separates the fields of a CSV file."""
    line = _first_line(path)
    return _csv_delimiter(line, table) or max(_DELIMITERS, key=line.count)


def data_files(path: Path) -> list[Path]:
    """Return a file, or the visible files under a folder in order.

    Raises:
        DataError: The folder has none.
    """
    if not path.is_dir():
        return [path]
    files = sorted(
        p
        for p in path.rglob("*")
        if p.is_file()
        and p.name != DOCUMENT_TABLE
        and not p.name.endswith(SPANS_SUFFIX)
        and not any(part.startswith(".") for part in p.relative_to(path).parts)
    )
    if not files:
        raise DataError(
            "is an empty folder; put the split's files into it, or leave it out.",
            path=path,
            reason="empty-file",
        )
    return files


def _found(found: DataFormat, reason: str) -> DetectedFormat:
    """Return a format with its reason."""
    return DetectedFormat(format=found, reason=reason)


def _json_format(path: Path, line: str) -> DetectedFormat:
    """Tell the JSON formats apart by the keys of the first object."""
    head = read_head(path)
    first = _first_object(head)
    keys = set(_KEY.findall(head)) if first is None else set(first)
    if "resourceType" in keys:
        return _found(DataFormat.FHIR, "The first object has a resourceType, as FHIR resources have.")
    if keys & {"passages", *COLLECTION_KEYS}:
        return _found(DataFormat.BIOC, "The file holds documents with passages, as BioC has.")
    if line.startswith("["):
        if keys & {"annotations", "completions", "annotator", "lead_time"}:
            return _found(
                DataFormat.LABEL_STUDIO, "The file is an array of annotated tasks, as Label Studio exports."
            )
        raise DataError(
            "is a JSON array; write JSONL, which has one object a line.", path=path, line=1, reason="not-json"
        )
    if first is not None:
        return _line_format(first)
    return _found(DataFormat.JSONL, "The first line opens a JSON object.")


def _line_format(first: Mapping[str, object]) -> DetectedFormat:
    """Tell formats of one object a line apart."""
    if isinstance(first.get("label"), dict):
        return _found(
            DataFormat.CLUENER, "The first object has a table of mentions under label, as CLUENER has."
        )
    if marks := [key for key in _PRODIGY_KEYS if key in first]:
        return _found(DataFormat.PRODIGY, f"The first object has {marks[0]}, as Prodigy exports.")
    return _found(DataFormat.JSONL, "The first line opens a JSON object.")


def _first_object(head: str) -> Mapping[str, object] | None:
    """Return the first object that is a line of its own; the first lines may be broken records."""
    for line in head.split("\n")[:_LINES_LOOKED_AT]:
        # What an object in lines of its own has inside is indented.
        if line.startswith("{"):
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(value, dict) and value:
                return value
    return None


def _csv_delimiter(line: str, layout: TableLayout) -> str | None:
    """Return the delimiter of a header that names the text and something else we know, or None."""
    known = layout.names
    for delimiter in _DELIMITERS:
        try:
            header = {name.strip() for name in next(csv.reader([line], delimiter=delimiter), [])}
        except csv.Error:
            continue
        if layout.text in header and len(header & known) > 1:
            return delimiter
    return None


def _is_row(line: str) -> bool:
    """Return whether a line that opens with a bracket is the word `{` or `[` with its tag."""
    return split_tag(line.split()[-1]) is not None


def _mark(path: Path) -> bytes:
    """Return the first four bytes of a file."""
    try:
        with path.open("rb") as file:
            return file.read(len(_PARQUET_MARK))
    except FileNotFoundError:
        raise DataError("does not exist.", path=path, reason="unreadable") from None
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror}).", path=path, reason="unreadable") from error


def _first_line(path: Path) -> str:
    """Return the first line that is not blank, or "" of a file with blank lines only."""
    lines = read_head(path).split("\n")
    return next((line.removesuffix("\r") for line in lines if line.strip()), "")
