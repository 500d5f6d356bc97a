"""JSONL: one note a line, `{"id", "text", "spans": [{"start", "end", "label"}], ...}`.

Offsets count Unicode characters of `text` (not bytes, not UTF-16 units). Spans must not overlap. A line's
other fields with a text, a number or a truth value become columns of the note.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from common.annotations import Counts, SourceSpan
from common.errors import DataError
from common.ingestion_records import (
    Place,
    Reading,
    identifier,
    offset,
    parse_object,
    require_note_text,
    scalar_columns,
)
from common.ingestion_rejects import OnReject
from common.labels import LabelSchema
from common.records import Note
from common.text_files import read_lines

_FIELDS = frozenset({"id", "text", "spans", "document_id", "patient_id"})


def read_jsonl(
    path: Path,
    schema: LabelSchema,
    split: str,
    counts: Counts,
    *,
    first_number: int = 0,
    seen_ids: set[str] | None = None,
    on_reject: OnReject | None = None,
) -> Iterator[Note]:
    """Yield the notes of one file.

    Args:
        path: A UTF-8 file; blank lines are skipped.
        schema: The entity types.
        split: A note without `id` is called `<split>-<number>`.
        counts: Receives the counts of `common.annotations`.
        first_number: The number of the file's first note.
        seen_ids: Ids of the split so far; repeated ids are refused.
        on_reject: Receives the lines that cannot be read; without it, the first raises.

    Raises:
        DataError: The file, a line or a field is not usable.
    """
    reading = Reading(
        schema, split, counts, on_reject=on_reject, first_number=first_number, seen_ids=seen_ids
    )
    yield from jsonl_notes(path, reading)


def jsonl_notes(path: Path, reading: Reading) -> Iterator[Note]:
    """Yield the notes of one file; see `read_jsonl`."""
    records = 0
    for place, content in record_lines(path, reading):
        records += 1
        note_id = None
        try:
            record = parse_object(content, place)
            note_id = reading.claim(identifier(record, "id", place), place)
            note = _note(note_id, record, reading, place)
        except DataError as error:
            reading.refuse(error, note_id=note_id)
            continue
        yield reading.counted(note)
    require_records(records, path, reading)


def record_lines(path: Path, reading: Reading) -> Iterator[tuple[Place, str]]:
    """Yield the lines of a file that are not blank, with their places."""
    for line, content in read_lines(path, on_error=reading.refuse if reading.on_reject else None):
        if content.strip():
            yield Place(path=path, line=line), content


def record_objects(path: Path, reading: Reading) -> Iterator[tuple[int, Mapping[str, object]]]:
    """Yield the object on each line that is not blank, with the line's number; what is none is refused."""
    for place, content in record_lines(path, reading):
        try:
            yield place.line, parse_object(content, place)
        except DataError as error:
            reading.refuse(error)


def require_records(records: int, path: Path, reading: Reading) -> None:
    """Raise for a file without records, unless what it held was rejected."""
    if not records and not reading.counts["rejected"]:
        raise DataError(
            "has no records, only blank lines; leave the file out.", path=path, reason="empty-file"
        )


def json_line(note: Note) -> str:
    """Return a note as one line of JSON, which `read_jsonl` reads back.

    The words of a source that is split into words already are not kept: readers split the text anew.
    """
    spans = [{"start": span.start, "end": span.end, "label": span.label} for span in note.spans]
    record = {"id": note.note_id, "text": note.text, "spans": spans}
    ids = {"document_id": note.document_id, "patient_id": note.patient_id}
    known = {name: value for name, value in ids.items() if value is not None}
    return json.dumps({**note.columns, **record, **known}, ensure_ascii=False)


def span_list(
    spans: object, text: str, reading: Reading, place: Place, *, name: str = "spans"
) -> Iterator[SourceSpan | None]:
    """Yield the checked spans of a list of `{"start", "end", "label"}`; a span may repeat its `text`.

    Raises:
        DataError: The list or one of its spans is not usable.
    """
    if not isinstance(spans, list):
        raise place.error(f"field {name} must be a list; write [] for a note without entities.", "bad-span")
    for index, span in enumerate(spans):
        yield _span(f"{name}[{index}]", span, text, reading, place)


def _note(note_id: str, record: Mapping[str, object], reading: Reading, place: Place) -> Note:
    """Build one note from a parsed line."""
    text = require_note_text(record.get("text"), place)
    return Note(
        note_id=note_id,
        text=text,
        spans=reading.spans(span_list(record.get("spans"), text, reading, place), place, allow_nested=False),
        document_id=identifier(record, "document_id", place),
        patient_id=identifier(record, "patient_id", place),
        columns=scalar_columns(record, _FIELDS, reading.counts),
    )


def _span(name: str, span: object, text: str, reading: Reading, place: Place) -> SourceSpan | None:
    """Return one checked span, or None where the mapping drops its label."""
    if not isinstance(span, dict):
        raise place.error(f"field {name} must be an object with start, end and label.", "bad-span")
    start, end = (offset(name, key, span.get(key), place) for key in ("start", "end"))
    found = reading.span(name, start, end, span.get("label"), text, place)
    if "text" in span and span["text"] != text[start:end]:
        raise place.error(
            f"field {name}.text is not what the note has at [{start}, {end}); correct the offsets.",
            "bad-span",
        )
    return found
