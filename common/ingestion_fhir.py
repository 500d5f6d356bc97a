"""FHIR R4: DocumentReference and DiagnosticReport, in bundles, single resources and NDJSON.

A note is one plain-text attachment (base64) of a resource; a report without one gives its conclusion. The patient
reference becomes the patient, `type` or `code` the column `note_type`. Other resources are counted
(`ignored_resources`). An attachment that is only a URL is refused: reading opens no connection.

FHIR has no place for entities. They come from `NAME.spans.jsonl` beside `NAME.json` or `NAME.ndjson`, one line
`{"id": note id, "spans": [...]}` a note; a note without such a line is counted as `unannotated`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from common.errors import DataError
from common.ingestion_json_stream import stream_array
from common.ingestion_jsonl import record_lines, record_objects, require_records, span_list
from common.ingestion_records import Place, Reading, identifier, parse_object, require_note_text
from common.records import EntitySpan, Note
from common.text_files import read_head, read_text

SPANS_SUFFIX = ".spans.jsonl"
_PLAIN = ("text/plain", "text/markdown", "")
_ATTACHMENTS = {"DocumentReference": "content", "DiagnosticReport": "presentedForm"}

_Spans = Mapping[str, tuple[object, Place]]


def fhir_notes(path: Path, reading: Reading, *, by_line: bool) -> Iterator[Note]:
    """Yield the notes of one file.

    Args:
        path: A UTF-8 file.
        reading: What the split's files share.
        by_line: Whether each line is a resource (NDJSON), rather than the file a bundle or one resource.

    Raises:
        DataError: The file or a resource is not usable, and nobody listens to rejects.
    """
    gold = _gold(path, reading)
    records = 0
    for place, entry in _resources(path, reading, by_line=by_line):
        records += 1
        resource = entry.get("resource", entry) if isinstance(entry, dict) else None
        if not isinstance(resource, dict) or resource.get("resourceType") not in _ATTACHMENTS:
            reading.counts["ignored_resources"] += 1
            continue
        yield from _notes(resource, gold, reading, place)
    require_records(records, path, reading)


def _resources(path: Path, reading: Reading, *, by_line: bool) -> Iterator[tuple[Place, object]]:
    """Yield the resources of a file, bundle entries still wrapped."""
    if by_line:
        for line, resource in record_objects(path, reading):
            yield from _unbundled(resource, Place(path=path, line=line))
        return
    head = "".join(read_head(path).split())
    if head.startswith("{") and '"entry":' not in head and '"resourceType":"Bundle"' not in head:
        place = Place(path=path, line=1)
        yield place, parse_object(read_text(path), place)
        return
    for line, entry in stream_array(path, keys=("entry",)):
        yield Place(path=path, line=line), entry


def _unbundled(resource: Mapping[str, object], place: Place) -> Iterator[tuple[Place, object]]:
    """Yield a resource, or the entries of a bundle on one line."""
    entries = resource.get("entry")
    if resource.get("resourceType") == "Bundle" and isinstance(entries, list):
        for entry in entries:
            yield place, entry
        return
    yield place, resource


def _notes(resource: Mapping[str, Any], gold: _Spans, reading: Reading, place: Place) -> Iterator[Note]:
    """Yield the notes of one resource, an attachment each."""
    given = resource.get("id")
    note_id = given if isinstance(given, str) and given else None
    try:
        texts = _texts(resource, place)
        _validate(resource, place)
        facts = _facts(resource, place)
    except DataError as error:
        reading.refuse(error, note_id=note_id)
        return
    for number, text in enumerate(texts):
        name = note_id if note_id is None or number == 0 else f"{note_id}.{number + 1}"
        try:
            claimed = reading.claim(name, place)
            require_note_text(text, place, name="attachment")
            spans = _spans(claimed, text, gold, reading)
        except DataError as error:
            reading.refuse(error, note_id=name)
            continue
        yield reading.counted(
            Note(note_id=claimed, text=text, spans=spans, document_id=note_id or claimed, **facts)
        )


def _texts(resource: Mapping[str, Any], place: Place) -> list[str]:
    """Return the texts of a resource's attachments, decoded strictly: the parser forgives what base64 is not."""
    listed = resource.get(_ATTACHMENTS[resource["resourceType"]]) or []
    if not isinstance(listed, list):
        raise place.error("has attachments that are no list.", "not-fhir")
    attachments = [one.get("attachment", one) if isinstance(one, dict) else one for one in listed]
    texts = [_decoded(one, place) for one in attachments]
    if not texts and isinstance(resource.get("conclusion"), str):
        texts = [resource["conclusion"]]
    if not texts:
        raise place.error("has no attachment with text.", "no-text")
    return texts


def _decoded(attachment: object, place: Place) -> str:
    """Return the text of one attachment."""
    if not isinstance(attachment, dict):
        raise place.error("has an attachment that is no object.", "not-fhir")
    kind, _, parameters = str(attachment.get("contentType", "")).lower().partition(";")
    if kind.strip() not in _PLAIN:
        raise place.error(
            "has an attachment that is no plain text; convert it to text/plain first.", "not-plain-text"
        )
    data = attachment.get("data")
    if not isinstance(data, str) or not data:
        raise place.error(
            "has an attachment without data; a URL is never followed, so put the data into the export.",
            "no-attachment-data",
        )
    try:
        raw = base64.b64decode("".join(data.split()), validate=True)
    except (binascii.Error, ValueError):
        raise place.error("has an attachment that is not base64.", "bad-base64") from None
    charset = parameters.rpartition("charset=")[2].strip(' "') or "utf-8"
    try:
        return raw.decode(charset)
    except (UnicodeDecodeError, LookupError):
        raise place.error("has an attachment that is not in its character set.", "not-utf8") from None


def _validate(resource: Mapping[str, Any], place: Place) -> None:
    """Hold a resource against FHIR's own definition.

    Raises:
        DataError: It is no valid resource; the sentence names fields, never values.
    """
    # Half a second of imports, for this format alone.
    from fhir.resources.R4B.diagnosticreport import DiagnosticReport
    from fhir.resources.R4B.documentreference import DocumentReference
    from pydantic import ValidationError as FhirError

    models: dict[str, Any] = {"DocumentReference": DocumentReference, "DiagnosticReport": DiagnosticReport}
    try:
        models[resource["resourceType"]].model_validate(resource)
    except FhirError as error:
        fields = [".".join(str(part) for part in one["loc"]) for one in error.errors(include_input=False)]
        dates = all(_is_date(field) for field in fields)
        raise place.error(
            f"is no valid {resource['resourceType']} of FHIR R4; look at {', '.join(fields[:3])}.",
            "bad-date" if dates else "not-fhir",
        ) from None


def _is_date(field: str) -> bool:
    """Return whether a field holds a date or a time."""
    last = field.rpartition(".")[2]
    return last.lower().endswith(("date", "datetime", "instant", "issued", "creation", "start", "end"))


def _facts(resource: Mapping[str, Any], place: Place) -> dict[str, Any]:
    """Return the patient and the columns of a resource."""
    reference = str(_at(resource, "subject", "reference") or "")
    patient = reference.rpartition("Patient/")[2].partition("/")[0].removeprefix("urn:uuid:")
    if not patient:
        patient = str(_at(resource, "subject", "identifier", "value") or "")
    concept = resource.get("type" if resource["resourceType"] == "DocumentReference" else "code")
    codings = _at(concept, "coding")
    first = codings[0] if isinstance(codings, list) and codings else None
    kind = _at(concept, "text") or _at(first, "display") or _at(first, "code")
    return {
        "patient_id": patient or None,
        "columns": {"note_type": str(kind)} if kind else {},
    }


def _at(value: object, *keys: str) -> Any:
    """Return what stands at the end of a path of keys, or None."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _gold(path: Path, reading: Reading) -> _Spans:
    """Return the spans beside a file, by note id."""
    beside = path.with_name(path.name.split(".")[0] + SPANS_SUFFIX)
    found: dict[str, tuple[object, Place]] = {}
    if not beside.is_file():
        return found
    for place, content in record_lines(beside, reading):
        try:
            record = parse_object(content, place)
            note_id = identifier(record, "id", place)
            if note_id is None:
                raise place.error("field id is missing.", "bad-id")
            found[note_id] = (record.get("spans"), place)
        except DataError as error:
            reading.refuse(error)
    return found


def _spans(note_id: str, text: str, gold: _Spans, reading: Reading) -> tuple[EntitySpan, ...]:
    """Return a note's entities."""
    if note_id not in gold:
        reading.counts["unannotated"] += 1
        return ()
    value, place = gold[note_id]
    return reading.spans(span_list(value, text, reading, place), place, allow_nested=False)
