"""CSV and Parquet: one note a row, in named columns.

`spans` holds a JSON list as in JSONL; without that column, notes are counted as `unannotated`. Columns that
the layout does not name become columns of the note.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from common.errors import DataError
from common.ingestion_jsonl import require_records, span_list
from common.ingestion_records import Place, Reading, identifier, require_note_text, scalar_columns
from common.records import EntitySpan, Note
from common.text_files import read_lines, report_bytes

_ROWS_PER_BATCH = 256
_LARGEST_FIELD = 1 << 26


@dataclass(frozen=True, kw_only=True, slots=True)
class TableLayout:
    """Which columns of a table hold what; only the text must be there.

    Attributes:
        text: The note's text.
        id: Its id.
        document: Its document's id.
        patient: Its patient's id.
        spans: Its entities, a JSON list of `{"start", "end", "label"}`.
    """

    text: str = "text"
    id: str = "id"
    document: str = "document_id"
    patient: str = "patient_id"
    spans: str = "spans"

    @property
    def names(self) -> frozenset[str]:
        """All columns that it names."""
        return frozenset(getattr(self, one.name) for one in fields(self))


def csv_notes(path: Path, reading: Reading, layout: TableLayout, *, delimiter: str) -> Iterator[Note]:
    """Yield the notes of a CSV file, row by row; a quoted field may hold line ends.

    Raises:
        DataError: The file, its header or a row is not usable, and nobody listens to rejects.
    """
    csv.field_size_limit(_LARGEST_FIELD)
    damage = list[DataError]()
    lines = read_lines(path, on_error=damage.append if reading.on_reject else None, keep_ends=True)
    rows = csv.reader((line for _, line in lines), delimiter=delimiter, strict=True)
    header = _header(rows, path)
    _require_text_column(header, layout, path)
    records = 0
    while True:
        place = Place(path=path, line=rows.line_num + 1)
        try:
            row = next(rows, None)
            if row is None:
                break
            records += bool(row)
            if damage:
                raise damage.pop()
            if not row:
                continue
            if len(row) != len(header):
                raise place.error(f"has {len(row)} fields; the header names {len(header)}.", "bad-row")
            note = _note(dict(zip(header, row, strict=True)), reading, layout, place)
        except csv.Error:
            reading.refuse(place.error("is no CSV row; look at its quotes.", "bad-row"))
            continue
        except DataError as error:
            reading.refuse(error)
            continue
        yield reading.counted(note)
    for broken in damage:
        reading.refuse(broken)
    require_records(records, path, reading)


def parquet_notes(path: Path, reading: Reading, layout: TableLayout) -> Iterator[Note]:
    """Yield the notes of a Parquet file, a batch of rows at a time; a place is the row, counted from 1.

    Raises:
        DataError: The file, its schema or a row is not usable, and nobody listens to rejects.
    """
    # A large library, for this format alone.
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _require_text_column(file.schema_arrow.names, layout, path)
            size = path.stat().st_size
            for batch in file.iter_batches(batch_size=_ROWS_PER_BATCH):
                report_bytes(size * batch.num_rows // max(file.metadata.num_rows, 1))
                for row in batch.to_pylist():
                    number += 1
                    yield from _kept(row, reading, layout, Place(path=path, line=number))
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"is no whole Parquet file ({type(error).__name__}); export it again.",
            path=path,
            reason="bad-parquet",
        ) from None
    require_records(number, path, reading)


def _kept(row: Mapping[str, Any], reading: Reading, layout: TableLayout, place: Place) -> Iterator[Note]:
    """Yield the note of a row, or nothing where it is rejected."""
    try:
        note = _note(row, reading, layout, place)
    except DataError as error:
        given = row.get(layout.id)
        reading.refuse(error, note_id=None if given is None else str(given))
        return
    yield reading.counted(note)


def _header(rows: Iterator[list[str]], path: Path) -> list[str]:
    """Return the names of the columns."""
    try:
        header = [name.strip() for name in next(rows, [])]
    except csv.Error:
        header = []
    if not header or len(set(header)) != len(header):
        raise DataError(
            "must begin with a row of column names, each once.", path=path, line=1, reason="bad-header"
        )
    return header


def _require_text_column(header: list[str], layout: TableLayout, path: Path) -> None:
    """Raise unless the table has the column of the text."""
    if layout.text not in header:
        raise DataError(
            f"has no column {layout.text!r}; it has {', '.join(header)}. Name the column of the text.",
            path=path,
            reason="bad-header",
        )


def _note(row: Mapping[str, Any], reading: Reading, layout: TableLayout, place: Place) -> Note:
    """Build the note of one row; an empty cell is an absent value."""
    filled = {key: value for key, value in row.items() if value is not None and value != ""}
    text = require_note_text(filled.get(layout.text), place, name=layout.text)
    return Note(
        note_id=reading.claim(identifier(filled, layout.id, place), place),
        text=text,
        spans=_spans(filled.get(layout.spans), text, reading, layout, place),
        document_id=identifier(filled, layout.document, place),
        patient_id=identifier(filled, layout.patient, place),
        columns=scalar_columns(filled, layout.names, reading.counts),
    )


def _spans(
    value: object, text: str, reading: Reading, layout: TableLayout, place: Place
) -> tuple[EntitySpan, ...]:
    """Return the entities of a cell; an empty cell says that nobody has annotated the note."""
    if value is None:
        reading.counts["unannotated"] += 1
        return ()
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise place.error(f"field {layout.spans} is not JSON.", "bad-span") from None
    found = span_list(value, text, reading, place, name=layout.spans)
    return reading.spans(found, place, allow_nested=False)
