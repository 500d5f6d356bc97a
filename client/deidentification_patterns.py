"""The patterns that every language shares, and the parts that the languages' own patterns are made of.

A pattern is a text for the `regex` package and a score. `\\K` keeps what follows it: what stands before it, a
label such as `MRN:`, must be there and is not part of the match.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from client.phi import DATE

Patterns = tuple[tuple[str, float], ...]

LABELLED = 0.85
"""The score of what follows a label."""

SHAPED = 0.6
"""The score of what has the shape of a type and no label."""

CAPITALISED = r"\p{Lu}(?:\.(?=[ ]?\p{Lu})|[\p{L}\p{M}'’]*+(?:-\p{L}[\p{L}\p{M}'’]*+)*+)"
"""A word that begins with a capital, its hyphenated parts with it, or an initial with its full stop."""

CODE = r"(?=[\p{L}-]{0,6}\d)[\p{L}\d](?:[ ./-]?[\p{L}\d]){2,19}+"
"""A number of a person or a case: letters and digits, parted by single signs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguagePatterns:
    """What one language adds.

    Attributes:
        code: ISO 639-1.
        patterns: PHI type to patterns.
        regions: Regions whose telephone numbers are looked for, ISO 3166-1.
        day_first: Whether `3/4/2016` is the third of April.
    """

    code: str
    patterns: Mapping[str, Patterns]
    regions: tuple[str, ...]
    day_first: bool


# Presidio's dates end at word borders, which are not there between a digit and an ideograph or a `T`.
# They begin with what is rare, the digit, and look back from there: scanning for it is fast.
_YEAR_FIRST = r"(?:19|20)(?<!\d\d\d)\d\d([-/.])(?:0?[1-9]|1[0-2])\1(?:0?[1-9]|[12]\d|3[01])(?!\d)"
_YEAR_LAST = (
    r"\d(?<![\d.,/-]\d)\d?+(?<=\b0?[1-9]|[12]\d|3[01])"
    r"([-/.])(?:0?[1-9]|[12]\d|3[01])\1(?:19|20)?\d\d(?![\d/]|[.,-]\d)"
)

SHARED: Mapping[str, Patterns] = {DATE: ((_YEAR_FIRST, SHAPED), (_YEAR_LAST, SHAPED))}


def any_of(words: Iterable[str]) -> str:
    """Return a pattern for one of several words, the longest first."""
    return "(?:" + "|".join(sorted(words, key=lambda word: (-len(word), word))) + ")"


def after(label: str, value: str, *, sign: str = r"[ \t]*[:：][ \t]*") -> str:
    """Return a pattern for a value that follows a label, whatever the label's case."""
    return rf"\b(?i:{label}){sign}\K{value}"
