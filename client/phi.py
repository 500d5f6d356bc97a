"""What de-identification looks for: the types of protected health information, and where one was found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

PERSON = "PERSON"
DATE = "DATE"
AGE = "AGE"
PHONE = "PHONE"
EMAIL = "EMAIL"
URL = "URL"
ID = "ID"
LOCATION = "LOCATION"
ORGANIZATION = "ORGANIZATION"
WARD = "WARD"
SEX = "SEX"
RELATIVE = "RELATIVE"
PROFESSION = "PROFESSION"
OTHER = "OTHER"

PHI_TYPES = (
    PERSON,
    DATE,
    AGE,
    PHONE,
    EMAIL,
    URL,
    ID,
    LOCATION,
    ORGANIZATION,
    WARD,
    SEX,
    RELATIVE,
    PROFESSION,
    OTHER,
)
"""The types; the last four are found by a trained tagger alone."""

OF_PRESIDIO: Mapping[str, str] = {
    "EMAIL_ADDRESS": EMAIL,
    "URL": URL,
    "IP_ADDRESS": URL,
    "DATE_TIME": DATE,
    "CREDIT_CARD": ID,
    "IBAN_CODE": ID,
    "ES_NIF": ID,
    "ES_NIE": ID,
    "ES_PASSPORT": ID,
    "US_SSN": ID,
    "US_MBI": ID,
    "UK_NHS": ID,
    "UK_POSTCODE": LOCATION,
}
"""What Presidio's own recognisers call things."""


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class PhiSpan:
    """Characters `[start, end)` that identify somebody.

    Attributes:
        start: First character.
        end: One past the last.
        kind: One of `PHI_TYPES`, or a type that only a tagger of the site's own knows.
        score: How sure the recogniser is, 0 to 1.
    """

    start: int
    end: int
    kind: str
    score: float = 1.0


def merged(found: Iterable[PhiSpan]) -> tuple[PhiSpan, ...]:
    """Return disjoint spans in order that cover every character of `found`.

    Spans that overlap become one, of the type of the surest of them, of the longest where equally sure. A
    character that any recogniser found is covered: masking too much is safe, masking too little is not.
    """
    spans: list[PhiSpan] = []
    best: list[PhiSpan] = []
    for span in sorted(found, key=lambda one: (one.start, -one.end, one.kind)):
        if not spans or span.start >= spans[-1].end:
            spans.append(span)
            best.append(span)
            continue
        if _rank(span) > _rank(best[-1]):
            best[-1] = span
        spans[-1] = PhiSpan(
            start=spans[-1].start,
            end=max(spans[-1].end, span.end),
            kind=best[-1].kind,
            score=best[-1].score,
        )
    return tuple(spans)


def _rank(span: PhiSpan) -> tuple[float, int]:
    """Return what decides between two overlapping spans."""
    return span.score, span.end - span.start
