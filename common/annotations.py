"""What all formats do with a source's annotations: map the labels, refuse or resolve overlaps, count.

Counts go into a `collections.Counter` that the caller passes in. Its keys are `notes`, `words`, `spans`,
`spans.TYPE`, and one per thing that was left out or changed: `dropped_by_mapping`, `dropped_nested`,
`discontinuous_cut`, `repaired_tags`, `ignored_annotations`, `ignored_fields`, `ignored_comments`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from common.errors import DataError, ValidationError
from common.labels import LabelSchema
from common.records import EntitySpan

Counts = Counter[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceSpan:
    """A span as a file gives it.

    Attributes:
        start: First character.
        end: One past the last character.
        label: The entity type, already mapped.
        line: The line that holds it.
        name: What to call it in a message (`T7`, `spans[3]`).
        is_cut: Whether it is what remains of a discontinuous span.
    """

    start: int
    end: int
    label: str
    line: int
    name: str
    is_cut: bool = False


def resolve_label(label: str, schema: LabelSchema, counts: Counts, path: Path, line: int) -> str:
    """Return the entity type of a source label, or "" (counted) where the mapping drops it.

    Raises:
        DataError: The schema does not know the label.
    """
    try:
        resolved = schema.resolve(label)
    except ValidationError as error:
        raise DataError(str(error), path=path, line=line, reason="unknown-label") from error
    if not resolved:
        counts["dropped_by_mapping"] += 1
    return resolved


def resolve_overlaps(
    spans: Iterable[SourceSpan], counts: Counts, path: Path, *, allow_nested: bool
) -> tuple[EntitySpan, ...]:
    """Return disjoint spans in order of start.

    Of nested spans the outermost is kept (of equal ones the first in the file) and the others are
    counted. Spans that cross are an error, except that one cut from a discontinuous span gives way.

    Raises:
        DataError: Spans cross, or nest where `allow_nested` is false.
    """
    kept: list[SourceSpan] = []
    # Outer spans come first, so each span need be compared with the last one kept only.
    for span in sorted(spans, key=lambda s: (s.start, -s.end, s.is_cut)):
        if not kept or span.start >= kept[-1].end:
            kept.append(span)
            continue
        outer = kept[-1]
        nested = span.end <= outer.end
        if nested and allow_nested:
            counts["dropped_nested"] += 1
        elif span.is_cut or outer.is_cut:
            counts["dropped_nested"] += 1
            if outer.is_cut and not span.is_cut:
                kept[-1] = span
        else:
            raise DataError(
                _overlap(outer, span, nested), path=path, line=span.line, reason="overlapping-spans"
            )
    for kept_span in kept:
        counts["spans"] += 1
        counts[f"spans.{kept_span.label}"] += 1
    return tuple(EntitySpan(start=s.start, end=s.end, label=s.label) for s in kept)


def _overlap(outer: SourceSpan, span: SourceSpan, nested: bool) -> str:
    """Say which spans are in each other's way."""
    return (
        f"span {span.name} [{span.start}, {span.end}) {'lies inside' if nested else 'crosses'} "
        f"{outer.name} [{outer.start}, {outer.end}) of line {outer.line}; "
        "keep one of them: a character can belong to one entity only."
    )
