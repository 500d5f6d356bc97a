"""BioC JSON: a collection of `documents` with `passages`, or one document a line.

A note is a document: its passages (or their sentences) at their offsets, gaps filled with line ends and spaces.
Of several locations of one annotation that only white space separates, one span is made; of others the
longest stays. Relations are counted and left. Of nested annotations the outermost is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from common.annotations import SourceSpan
from common.errors import DataError
from common.ingestion_json_stream import stream_array
from common.ingestion_jsonl import record_objects, require_records
from common.ingestion_records import (
    Place,
    Reading,
    identifier,
    offset,
    require_note_text,
    scalar_columns,
)
from common.records import Note

COLLECTION_KEYS = ("documents", "PubTator3")
_LONGEST_GAP = 1000


def bioc_notes(path: Path, reading: Reading, *, by_line: bool) -> Iterator[Note]:
    """Yield the notes of one file.

    Args:
        path: A UTF-8 file.
        reading: What the split's files share.
        by_line: Whether each line is a document, rather than the file a collection.

    Raises:
        DataError: The file or a document is not usable, and nobody listens to rejects.
    """
    documents = record_objects(path, reading) if by_line else stream_array(path, keys=COLLECTION_KEYS)
    records = 0
    for line, document in documents:
        records += 1
        place, note_id = Place(path=path, line=line), None
        try:
            if not isinstance(document, dict):
                raise place.error("a document must be an object with id and passages.", "bad-record")
            note_id = reading.claim(identifier(document, "id", place), place)
            note = _note(note_id, document, reading, place)
        except DataError as error:
            reading.refuse(error, note_id=note_id)
            continue
        yield reading.counted(note)
    require_records(records, path, reading)


def _note(note_id: str, document: Mapping[str, object], reading: Reading, place: Place) -> Note:
    """Build the note of one document."""
    parts = list(_parts(document, place))
    text = require_note_text(_joined(parts, place), place, name="passages")
    reading.counts["ignored_annotations"] += sum(
        len(_list(p, "relations", place)) for p in [document, *parts]
    )
    annotations = [a for part in [document, *parts] for a in _list(part, "annotations", place)]
    found = [_span(f"annotations[{i}]", a, text, reading, place) for i, a in enumerate(annotations)]
    infons = _table(document, "infons", place)
    return Note(
        note_id=note_id,
        text=text,
        spans=reading.spans(found, place, allow_nested=True),
        document_id=note_id,
        patient_id=identifier(infons, "patient_id", place),
        columns=scalar_columns(infons, frozenset({"patient_id"}), reading.counts),
    )


def _parts(document: Mapping[str, object], place: Place) -> Iterator[Mapping[str, object]]:
    """Yield what carries text: passages, or the sentences of passages without text of their own."""
    for passage in _list(document, "passages", place):
        yield passage
        if not passage.get("text"):
            yield from _list(passage, "sentences", place)


def _joined(parts: Iterable[Mapping[str, object]], place: Place) -> str:
    """Return the text with every part at its offset."""
    text = ""
    for part in parts:
        content = part.get("text")
        if content is None or content == "":
            continue
        if not isinstance(content, str):
            raise place.error("field passages.text must be a text.", "no-text")
        start = offset("passages", "offset", part.get("offset"), place)
        gap = start - len(text)
        if not 0 <= gap <= _LONGEST_GAP:
            raise place.error(
                f"a passage begins at {start} where the text so far has {len(text)} characters; passages must "
                "come in order, and offsets count characters, not bytes.",
                "bad-span",
            )
        text += ("\n" + " " * (gap - 1) if gap else "") + content
    return text


def _span(
    name: str, annotation: Mapping[str, object], text: str, reading: Reading, place: Place
) -> SourceSpan | None:
    """Return one checked span, or None where the mapping drops its label."""
    label = _table(annotation, "infons", place).get("type")
    ranges = []
    for location in _list(annotation, "locations", place):
        start = offset(name, "offset", location.get("offset"), place)
        ranges.append((start, start + offset(name, "length", location.get("length"), place)))
    if not ranges:
        raise place.error(f"field {name}.locations is empty; an annotation needs a place.", "bad-span")
    ranges.sort()
    mention = annotation.get("text")
    covered = "".join(text[start:end] for start, end in ranges)
    if isinstance(mention, str) and "".join(covered.split()) != "".join(mention.split()):
        raise place.error(
            f"field {name}.text is not what the document has there; offsets count characters, not bytes.",
            "bad-span",
        )
    joined = [ranges[0]]
    for start, end in ranges[1:]:
        if text[joined[-1][1] : start].strip():
            joined.append((start, end))
        else:
            joined[-1] = (joined[-1][0], end)
    start, end = max(joined, key=lambda found: found[1] - found[0])
    span = reading.span(name, start, end, label, text, place)
    if span is None or len(joined) == 1:
        return span
    reading.counts["discontinuous_cut"] += 1
    return SourceSpan(start=start, end=end, label=span.label, line=place.line, name=name, is_cut=True)


def _list(record: Mapping[str, object], key: str, place: Place) -> list[Mapping[str, object]]:
    """Return a list of objects, empty where the field is absent."""
    value = record.get(key) or []
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise place.error(f"field {key} must be a list of objects.", "bad-record")
    return value


def _table(record: Mapping[str, object], key: str, place: Place) -> Mapping[str, object]:
    """Return an object, empty where the field is absent."""
    value = record.get(key) or {}
    if not isinstance(value, dict):
        raise place.error(f"field {key} must be an object.", "bad-record")
    return value
