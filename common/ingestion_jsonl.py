"""JSONL: one note a line, `{"id", "text", "spans": [{"start", "end", "label"}], ...}`.

Offsets count Unicode characters of `text` (not bytes, not UTF-16 units). Spans must not overlap. A line's
other fields with a text, a number or a truth value become columns of the note.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from common.annotations import Counts, SourceSpan, resolve_label, resolve_overlaps
from common.errors import DataError
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
) -> Iterator[Note]:
    """Yield the notes of one file.

    Args:
        path: A UTF-8 file; blank lines are skipped.
        schema: The entity types.
        split: A note without `id` is called `<split>-<number>`.
        counts: Receives the counts of `common.annotations`.
        first_number: The number of the file's first note.
        seen_ids: Ids of the split so far; repeated ids are refused.

    Raises:
        DataError: The file, a line or a field is not usable.
    """
    seen = set[str]() if seen_ids is None else seen_ids
    number = first_number
    for line, content in read_lines(path):
        if not content.strip():
            continue
        record = _parse(content, path, line)
        note_id = _identifier(record, "id", path, line) or f"{split}-{number}"
        if note_id in seen:
            raise DataError(
                f"field id repeats {note_id!r}; every note needs an id of its own.", path=path, line=line
            )
        seen.add(note_id)
        number += 1
        counts["notes"] += 1
        yield _note(note_id, record, schema, counts, path, line)
    if number == first_number:
        raise DataError("has no records, only blank lines; leave the file out.", path=path)


def _note(
    note_id: str, record: Mapping[str, object], schema: LabelSchema, counts: Counts, path: Path, line: int
) -> Note:
    """Build one note from a parsed line."""
    text = _text(record, path, line)
    spans = record.get("spans")
    if not isinstance(spans, list):
        raise DataError(
            "field spans must be a list; write [] for a note without entities.", path=path, line=line
        )
    found = (_span(index, span, text, schema, counts, path, line) for index, span in enumerate(spans))
    return Note(
        note_id=note_id,
        text=text,
        spans=resolve_overlaps(
            [span for span in found if span is not None], counts, path, allow_nested=False
        ),
        document_id=_identifier(record, "document_id", path, line),
        patient_id=_identifier(record, "patient_id", path, line),
        columns=_columns(record, counts),
    )


def _parse(content: str, path: Path, line: int) -> Mapping[str, object]:
    """Return the object of one line."""
    try:
        record = json.loads(content)
    except json.JSONDecodeError as error:
        raise DataError(
            f"is not JSON ({error.msg} at column {error.colno}); each line must hold one whole object.",
            path=path,
            line=line,
        ) from None
    except ValueError:
        raise DataError("holds a number with too many digits.", path=path, line=line) from None
    except RecursionError:
        raise DataError("is nested too deeply for a record.", path=path, line=line) from None
    if not isinstance(record, dict):
        raise DataError("must be a JSON object with id, text and spans.", path=path, line=line)
    return record


def _text(record: Mapping[str, object], path: Path, line: int) -> str:
    """Return the field `text`, which must be a non-empty text that UTF-8 can hold."""
    text = record.get("text")
    if not isinstance(text, str) or not text:
        raise DataError("field text must be a non-empty text.", path=path, line=line)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"field text holds half of a surrogate pair at character {error.start}; it is not valid Unicode.",
            path=path,
            line=line,
        ) from None
    return text


def _identifier(record: Mapping[str, object], name: str, path: Path, line: int) -> str | None:
    """Return an id as text, or None where the field is absent or null."""
    value = record.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise DataError(f"field {name} must be a non-empty text or a whole number.", path=path, line=line)
    return str(value)


def _span(
    index: int, span: object, text: str, schema: LabelSchema, counts: Counts, path: Path, line: int
) -> SourceSpan | None:
    """Return one checked span, or None where the mapping drops its label."""
    name = f"spans[{index}]"
    if not isinstance(span, dict):
        raise DataError(f"field {name} must be an object with start, end and label.", path=path, line=line)
    start, end = (_offset(span, name, key, path, line) for key in ("start", "end"))
    label = span.get("label")
    if not isinstance(label, str):
        raise DataError(f"field {name}.label must be a text.", path=path, line=line)
    if end > len(text):
        raise DataError(
            f"field {name} [{start}, {end}) goes past the text, which has {len(text)} characters; "
            "offsets count characters, not bytes or UTF-16 units.",
            path=path,
            line=line,
        )
    if start >= end:
        raise DataError(f"field {name} [{start}, {end}) is empty or reversed.", path=path, line=line)
    if "text" in span and span["text"] != text[start:end]:
        raise DataError(
            f"field {name}.text is not what the note has at [{start}, {end}); correct the offsets.",
            path=path,
            line=line,
        )
    resolved = resolve_label(label, schema, counts, path, line)
    if not resolved:
        return None
    return SourceSpan(start=start, end=end, label=resolved, line=line, name=name)


def _offset(span: Mapping[str, object], name: str, key: str, path: Path, line: int) -> int:
    """Return a whole number of at least 0."""
    value = span.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise DataError(f"field {name}.{key} must be a whole number of at least 0.", path=path, line=line)
    return value


def _columns(record: Mapping[str, object], counts: Counts) -> dict[str, str]:
    """Return the further scalar fields as text; others are counted and left."""
    columns = {}
    for key, value in record.items():
        if key in _FIELDS or value is None:
            continue
        if isinstance(value, bool):
            columns[key] = "true" if value else "false"
        elif isinstance(value, str | int | float):
            columns[key] = str(value)
        else:
            counts["ignored_fields"] += 1
    return columns
