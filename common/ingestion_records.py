"""What the readers of JSON-like formats share: ids, texts and spans out of parsed values, checked one by one.

Offsets count Unicode characters of the text (not bytes, not UTF-16 units) unless a reader says otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from common.annotations import Counts, SourceSpan, resolve_label, resolve_overlaps
from common.errors import DataError
from common.ingestion_rejects import OnReject, refuse
from common.labels import LabelSchema
from common.records import EntitySpan, Note


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a record stands, for messages."""

    path: Path
    line: int

    def error(self, message: str, reason: str) -> DataError:
        """Return an error about this place."""
        return DataError(message, path=self.path, line=self.line, reason=reason)


class Reading:
    """One split being read: what all its files and records share.

    Args:
        schema: The entity types.
        split: The split's name; a record without id is called `<split>-<number>`.
        counts: Receives the counts of `common.annotations`.
        on_reject: Receives what cannot be read; without it, the first such thing raises.
        first_number: The number of the first record.
        seen_ids: Ids of the split so far.
    """

    def __init__(
        self,
        schema: LabelSchema,
        split: str,
        counts: Counts,
        *,
        on_reject: OnReject | None = None,
        first_number: int = 0,
        seen_ids: set[str] | None = None,
    ) -> None:
        self.schema = schema
        self.split = split
        self.counts = counts
        self.on_reject = on_reject
        self.number = first_number
        self.seen_ids = set[str]() if seen_ids is None else seen_ids

    def refuse(self, error: DataError, *, note_id: str | None = None) -> None:
        """Count and report an error, or raise it where nobody listens."""
        refuse(error, self.on_reject, note_id=note_id)
        self.counts["rejected"] += 1

    def claim(self, given: str | None, place: Place) -> str:
        """Return the record's id, and remember it.

        Raises:
            DataError: Another record of the split has it.
        """
        note_id = given or f"{self.split}-{self.number}"
        self.number += 1
        if note_id in self.seen_ids:
            raise place.error(
                f"field id repeats {note_id!r}; every note needs an id of its own.", "repeated-id"
            )
        self.seen_ids.add(note_id)
        return note_id

    def spans(
        self, found: Iterable[SourceSpan | None], place: Place, *, allow_nested: bool
    ) -> tuple[EntitySpan, ...]:
        """Return the spans that are kept, disjoint and in order; see `resolve_overlaps`."""
        kept = [span for span in found if span is not None]
        return resolve_overlaps(kept, self.counts, place.path, allow_nested=allow_nested)

    def span(
        self, name: str, start: object, end: object, label: object, text: str, place: Place
    ) -> SourceSpan | None:
        """Return one checked span, or None where the mapping drops its label.

        Raises:
            DataError: An offset or the label is not usable.
        """
        first, last = offset(name, "start", start, place), offset(name, "end", end, place)
        if not isinstance(label, str):
            raise place.error(f"field {name}.label must be a text.", "bad-span")
        if last > len(text):
            raise place.error(
                f"field {name} [{first}, {last}) goes past the text, which has {len(text)} characters; "
                "offsets count characters, not bytes or UTF-16 units.",
                "bad-span",
            )
        if first >= last:
            raise place.error(f"field {name} [{first}, {last}) is empty or reversed.", "bad-span")
        resolved = resolve_label(label, self.schema, self.counts, place.path, place.line)
        if not resolved:
            return None
        return SourceSpan(start=first, end=last, label=resolved, line=place.line, name=name)

    def counted(self, note: Note) -> Note:
        """Return the note, counted."""
        self.counts["notes"] += 1
        return note


def parse_object(content: str, place: Place) -> Mapping[str, object]:
    """Return the JSON object of one line.

    Raises:
        DataError: The line is no whole JSON object.
    """
    try:
        record = json.loads(content)
    except json.JSONDecodeError as error:
        raise place.error(
            f"is not JSON ({error.msg} at column {error.colno}); each line must hold one whole object.",
            "not-json",
        ) from None
    except ValueError:
        raise place.error("holds a number with too many digits.", "not-json") from None
    except RecursionError:
        raise place.error("is nested too deeply for a record.", "not-json") from None
    if not isinstance(record, dict):
        raise place.error("must be a JSON object with id, text and spans.", "not-json")
    return record


def require_note_text(value: object, place: Place, *, name: str = "text") -> str:
    """Return a non-empty text that UTF-8 can hold.

    Raises:
        DataError: It is not.
    """
    if not isinstance(value, str) or not value:
        raise place.error(f"field {name} must be a non-empty text.", "no-text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise place.error(
            f"field {name} holds half of a surrogate pair at character {error.start}; it is not valid Unicode.",
            "bad-unicode",
        ) from None
    return value


def identifier(record: Mapping[str, object], name: str, place: Place) -> str | None:
    """Return an id as text, or None where the field is absent or null.

    Raises:
        DataError: It is neither text nor whole number.
    """
    value = record.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise place.error(f"field {name} must be a non-empty text or a whole number.", "bad-id")
    return str(value)


def offset(name: str, key: str, value: object, place: Place) -> int:
    """Return a whole number of at least 0.

    Raises:
        DataError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise place.error(f"field {name}.{key} must be a whole number of at least 0.", "bad-span")
    return value


def scalar_columns(record: Mapping[str, object], known: frozenset[str], counts: Counts) -> dict[str, str]:
    """Return the fields that are not `known` and hold a scalar as text; others are counted and left."""
    columns = {}
    for key, value in record.items():
        if key in known or value is None:
            continue
        if isinstance(value, bool):
            columns[key] = "true" if value else "false"
        elif isinstance(value, str | int | float):
            columns[key] = str(value)
        else:
            counts["ignored_fields"] += 1
    return columns
