"""What annotation tools export: Prodigy JSONL, Label Studio JSON, and JSON in the style of CLUENER.

Records that nobody has accepted are left out and counted: `skipped_answers` (Prodigy's reject and ignore),
`skipped_unannotated` (Label Studio's tasks without a finished annotation).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from common.annotations import SourceSpan
from common.errors import DataError
from common.ingestion_json_stream import stream_array
from common.ingestion_jsonl import record_objects, require_records, span_list
from common.ingestion_records import (
    Place,
    Reading,
    identifier,
    offset,
    require_note_text,
    scalar_columns,
)
from common.records import EntitySpan, Note

_Record = Mapping[str, object]
_Build = Callable[[_Record, Reading, Place], Note | None]

_PRODIGY_FIELDS = frozenset(
    {"id", "text", "spans", "tokens", "meta", "answer", "document_id", "patient_id", "options", "accept"}
)
_IDS = frozenset({"id", "document_id", "patient_id"})
_CLUENER_FIELDS = frozenset({"text", "label"}) | _IDS


def prodigy_notes(path: Path, reading: Reading) -> Iterator[Note]:
    """Yield the accepted notes of a Prodigy export; a record's id is `id`, or `id` of its `meta`."""
    yield from _notes(record_objects(path, reading), path, reading, _prodigy)


def label_studio_notes(path: Path, reading: Reading) -> Iterator[Note]:
    """Yield the annotated notes of a Label Studio export, JSON or JSON-MIN.

    Of several annotations of a task the one marked as ground truth is taken, or else the first. The offsets of
    older versions count UTF-16 units: where a span's own text shows it, they are converted (`utf16_offsets`).
    """
    yield from _notes(stream_array(path, keys=("tasks",)), path, reading, _label_studio)


def cluener_notes(path: Path, reading: Reading) -> Iterator[Note]:
    """Yield the notes of JSON lines `{"text", "label": {type: {mention: [[start, end]]}}}`, ends inclusive."""
    yield from _notes(record_objects(path, reading), path, reading, _cluener)


def _notes(
    records: Iterable[tuple[int, object]], path: Path, reading: Reading, build: _Build
) -> Iterator[Note]:
    """Yield the notes that `build` makes of records."""
    number = 0
    for line, record in records:
        number += 1
        place = Place(path=path, line=line)
        try:
            if not isinstance(record, dict):
                raise place.error("a record must be an object.", "bad-record")
            note = build(record, reading, place)
        except DataError as error:
            given = record.get("id") if isinstance(record, dict) else None
            reading.refuse(error, note_id=str(given) if isinstance(given, str | int) else None)
            continue
        if note is not None:
            yield reading.counted(note)
    require_records(number, path, reading)


def _prodigy(record: _Record, reading: Reading, place: Place) -> Note | None:
    """Build a note of a Prodigy record, or return None where its answer is not accept."""
    if record.get("answer", "accept") != "accept":
        reading.counts["skipped_answers"] += 1
        return None
    meta = record.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    text = require_note_text(record.get("text"), place)
    known = {key: record.get(key) if record.get(key) is not None else meta.get(key) for key in _IDS}
    fields = {key: value for key, value in record.items() if not key.startswith("_")}
    columns = scalar_columns(fields, _PRODIGY_FIELDS, reading.counts)
    return Note(
        note_id=reading.claim(identifier(known, "id", place), place),
        text=text,
        # Prodigy leaves the key out where nothing was marked.
        spans=reading.spans(
            span_list(record.get("spans") or [], text, reading, place), place, allow_nested=False
        ),
        document_id=identifier(known, "document_id", place),
        patient_id=identifier(known, "patient_id", place),
        columns={**scalar_columns(meta, _IDS, reading.counts), **columns},
    )


def _cluener(record: _Record, reading: Reading, place: Place) -> Note:
    """Build a note of a record with a table of mentions."""
    text = require_note_text(record.get("text"), place)
    return Note(
        note_id=reading.claim(identifier(record, "id", place), place),
        text=text,
        spans=reading.spans(_cluener_spans(record, text, reading, place), place, allow_nested=True),
        document_id=identifier(record, "document_id", place),
        patient_id=identifier(record, "patient_id", place),
        columns=scalar_columns(record, _CLUENER_FIELDS, reading.counts),
    )


def _cluener_spans(record: _Record, text: str, reading: Reading, place: Place) -> Iterator[SourceSpan | None]:
    """Yield the spans of the table of a record; a mention must be what the text has at its places."""
    table = record.get("label")
    if not isinstance(table, dict):
        raise place.error("field label must be an object; write {} for a note without entities.", "bad-span")
    for label, mentions in table.items():
        if not isinstance(mentions, dict):
            raise place.error("each type in field label must be an object of mentions.", "bad-span")
        for number, (mention, places) in enumerate(mentions.items()):
            name = f"label.{label}[{number}]"
            if not isinstance(places, list) or not all(isinstance(p, list) and len(p) == 2 for p in places):
                raise place.error(f"field {name} must be a list of [start, end].", "bad-span")
            for first, last in places:
                start = offset(name, "start", first, place)
                end = offset(name, "end", last, place) + 1
                span = reading.span(name, start, end, label, text, place)
                if text[start:end] != mention:
                    raise place.error(
                        f"field {name} is not what the note has at [{start}, {end - 1}]; ends are inclusive.",
                        "bad-span",
                    )
                yield span


def _label_studio(record: _Record, reading: Reading, place: Place) -> Note | None:
    """Build a note of a task, or return None where nobody has finished annotating it."""
    is_task = isinstance(record.get("data"), dict)
    data: _Record = record["data"] if is_task else record  # type: ignore[assignment]
    results = _finished(record, reading, place) if is_task else _minimal(record)
    if results is None:
        reading.counts["skipped_unannotated"] += 1
        return None
    text = require_note_text(data.get("text"), place, name="data.text")
    found = [_region(f"result[{i}]", value, text, reading, place) for i, value in enumerate(results)]
    known = {key: data.get(key) for key in _IDS}
    if known["id"] is None:
        known["id"] = record.get("id")
    spans: tuple[EntitySpan, ...] = reading.spans(found, place, allow_nested=True)
    fields = data if is_task else {k: v for k, v in data.items() if isinstance(v, str)}
    return Note(
        note_id=reading.claim(identifier(known, "id", place), place),
        text=text,
        spans=spans,
        document_id=identifier(known, "document_id", place),
        patient_id=identifier(known, "patient_id", place),
        columns=scalar_columns(fields, _IDS | {"text", "label"}, reading.counts),
    )


def _finished(record: _Record, reading: Reading, place: Place) -> list[_Record] | None:
    """Return the regions of the annotation that counts, or None where there is none."""
    annotations = record.get("annotations", record.get("completions")) or []
    if not isinstance(annotations, list) or not all(isinstance(entry, dict) for entry in annotations):
        raise place.error("field annotations must be a list of objects.", "bad-record")
    finished = [entry for entry in annotations if not entry.get("was_cancelled")]
    if not finished:
        return None
    chosen = next((entry for entry in finished if entry.get("ground_truth")), finished[0])
    reading.counts["ignored_annotations"] += len(annotations) - 1
    results = chosen.get("result")
    if not isinstance(results, list) or not all(isinstance(entry, dict) for entry in results):
        raise place.error("field annotations.result must be a list of objects.", "bad-record")
    regions = [entry["value"] for entry in results if isinstance(entry.get("value"), dict)]
    spans = [value for value in regions if "labels" in value]
    reading.counts["ignored_annotations"] += len(results) - len(spans)
    return spans


def _minimal(record: _Record) -> list[_Record] | None:
    """Return the regions of a JSON-MIN record, or None where it has none at all."""
    label = record.get("label")
    return [entry for entry in label if isinstance(entry, dict)] if isinstance(label, list) else None


def _region(name: str, value: _Record, text: str, reading: Reading, place: Place) -> SourceSpan | None:
    """Return one checked span, or None where the mapping drops its label."""
    labels = value.get("labels")
    if not isinstance(labels, list) or not labels:
        raise place.error(f"field {name}.labels must be a list with a label.", "bad-span")
    reading.counts["ignored_annotations"] += len(labels) - 1
    start, end = (offset(name, key, value.get(key), place) for key in ("start", "end"))
    mention = value.get("text")
    if isinstance(mention, str) and text[start:end] != mention:
        start, end = _from_utf16(text, start), _from_utf16(text, end)
        if text[start:end] != mention:
            raise place.error(
                f"field {name}.text is not what the task has at its offsets; export it again.", "bad-span"
            )
        reading.counts["utf16_offsets"] += 1
    return reading.span(name, start, end, labels[0], text, place)


def _from_utf16(text: str, units: int) -> int:
    """Return how many characters the first `units` UTF-16 units of a text are."""
    return len(text.encode("utf-16-le")[: 2 * units].decode("utf-16-le", "ignore"))
