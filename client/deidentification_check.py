"""How well PHI is found where gold PHI exists: strict, and by the characters that would be left or lost.

Formal meaning
--------------
*Strict*: a span counts as found if its type and both borders are right. *By characters*, white space aside:
`leak_recall` of a type is the share of its gold characters that some found span covers, whatever that span's type: what
is not covered stays in the text. `precision` of a type is the share of the characters found as it that are gold PHI of
any type: the rest is text lost without need. Both are sums divided once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from client.phi import PhiSpan
from common.metrics import Tally
from common.records import EntitySpan, Note
from common.tokenization import words_of

Find = Callable[[str], Sequence[PhiSpan]]


@dataclass(kw_only=True)
class PhiTallies:
    """Addable counts of found against gold PHI.

    Attributes:
        strict: Type to true positives, false positives and false negatives.
        gold: Type to its gold characters.
        covered: Type to its gold characters that were found as any type.
        found: Type to the characters found as it.
        right: Type to the characters found as it that are gold PHI of any type.
        spans: Type to the spans found as it.
        notes: Notes seen.
        tokens: Words seen.
    """

    strict: dict[str, Tally] = field(default_factory=dict)
    gold: Counter[str] = field(default_factory=Counter)
    covered: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    right: Counter[str] = field(default_factory=Counter)
    spans: Counter[str] = field(default_factory=Counter)
    notes: int = 0
    tokens: int = 0

    def add(self, note: Note, found: Sequence[PhiSpan]) -> None:
        """Count one note, whose own spans are the gold PHI."""
        self.notes += 1
        self.tokens += len(words_of(note))
        self.spans.update(one.kind for one in found)
        self._add_strict(note.spans, found)
        gold_at = _places(note.text, note.spans)
        found_at = _places(note.text, [EntitySpan(start=f.start, end=f.end, label=f.kind) for f in found])
        for place, label in gold_at.items():
            self.gold[label] += 1
            self.covered[label] += place in found_at
        for place, label in found_at.items():
            self.found[label] += 1
            self.right[label] += place in gold_at

    def _add_strict(self, gold: Sequence[EntitySpan], found: Sequence[PhiSpan]) -> None:
        """Count spans by type and both borders."""
        wanted = {(one.start, one.end, one.label) for one in gold}
        got = {(one.start, one.end, one.kind) for one in found}
        for _, _, label in wanted & got:
            self._count(label, Tally(tp=1))
        for _, _, label in got - wanted:
            self._count(label, Tally(fp=1))
        for _, _, label in wanted - got:
            self._count(label, Tally(fn=1))

    def _count(self, label: str, tally: Tally) -> None:
        """Add to one type's tally."""
        self.strict[label] = self.strict.get(label, Tally()) + tally

    def to_dict(self) -> dict[str, Any]:
        """Return scores and counts as plain values, divided once."""
        kinds = sorted({*self.strict, *self.gold, *self.found})
        total = sum(self.strict.values(), Tally())
        return {
            "notes": self.notes,
            "tokens": self.tokens,
            "strict": _scores(total),
            "leak_recall": _share(self.covered.total(), self.gold.total()),
            "character_precision": _share(self.right.total(), self.found.total()),
            "per_thousand_tokens": per_thousand(self.spans, self.tokens),
            "per_type": {kind: self._of(kind) for kind in kinds},
        }

    def _of(self, kind: str) -> dict[str, Any]:
        """Return one type's scores."""
        return {
            "strict": _scores(self.strict.get(kind, Tally())),
            "leak_recall": _share(self.covered[kind], self.gold[kind]),
            "character_precision": _share(self.right[kind], self.found[kind]),
            "gold_characters": self.gold[kind],
        }


def check(notes: Iterable[Note], find: Find, *, on_note: Callable[[], None] | None = None) -> PhiTallies:
    """Hold what `find` finds against the notes' gold PHI.

    Args:
        notes: Notes whose spans are gold PHI.
        find: Returns the PHI of a text.
        on_note: Called after each note, for progress bars.
    """
    tallies = PhiTallies()
    for note in notes:
        tallies.add(note, find(note.text))
        if on_note is not None:
            on_note()
    return tallies


def per_thousand(spans: Counter[str], tokens: int) -> dict[str, float]:
    """Return the PHI found per type and 1,000 tokens, most frequent first."""
    return {kind: 1000 * number / tokens for kind, number in spans.most_common()} if tokens else {}


def _places(text: str, spans: Sequence[EntitySpan]) -> dict[int, str]:
    """Return the label of each character in a span, white space aside."""
    return {i: one.label for one in spans for i in range(one.start, one.end) if not text[i].isspace()}


def _scores(tally: Tally) -> dict[str, float]:
    """Return strict scores as plain values."""
    scores = tally.scores()
    return {
        "precision": scores.precision,
        "recall": scores.recall,
        "f1": scores.f1,
        "support": scores.support,
    }


def _share(part: int, whole: int) -> float | None:
    """Return the share, or None of nothing."""
    return part / whole if whole else None
