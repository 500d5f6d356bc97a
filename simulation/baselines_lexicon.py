"""The trivial baseline: look up every mention of the training notes, longest first.

A corpus on which this does well teaches nothing about context. On the synthetic notes it must stay below
0.7 strict micro F1; `compare` prints it beside the trained models.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from common.records import EntitySpan, Note


@dataclass(frozen=True, slots=True)
class MentionLexicon:
    """Mentions to look up, by lower-cased characters, with the label that each had most often.

    Attributes:
        labels: Label by mention.
        longest: Characters of the longest mention.
    """

    labels: dict[str, str] = field(repr=False)
    longest: int

    @classmethod
    def from_notes(cls, notes: Sequence[Note]) -> MentionLexicon:
        """Collect the mentions of `notes`, leaving out those that are more often no entity."""
        counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for note in notes:
            for span in note.spans:
                counts[_folded(note.text[span.start : span.end])][span.label] += 1
        # Ties go to the label that sorts first, so that the order of the notes does not matter.
        every = {m: min(c, key=lambda label, c=c: (-c[label], label)) for m, c in counts.items()}  # type: ignore[misc]
        naive = cls(every, max(map(len, every), default=0))
        outside: Counter[str] = Counter()
        for note in notes:
            gold = set(note.spans)
            for span in naive.find(note.text):
                outside[_folded(note.text[span.start : span.end])] += span not in gold
        kept = {m: label for m, label in every.items() if outside[m] <= counts[m].total()}
        return cls(kept, max(map(len, kept), default=0))

    def find(self, text: str) -> Iterator[EntitySpan]:
        """Yield the longest known mention at each place, from left to right, on word boundaries."""
        folded = _folded(text)
        position = 0
        while position < len(folded):
            end = self._longest_at(folded, position)
            if end is None:
                position += 1
                continue
            yield EntitySpan(start=position, end=end, label=self.labels[folded[position:end]])
            position = end

    def _longest_at(self, folded: str, start: int) -> int | None:
        """Return where the longest known mention at `start` ends, or None."""
        if not _is_boundary(folded, start):
            return None
        for end in range(min(len(folded), start + self.longest), start, -1):
            if folded[start:end] in self.labels and _is_boundary(folded, end):
                return end
        return None


def lexicon_baseline(train: Sequence[Note], test: Sequence[Note]) -> float:
    """Return the strict micro F1, in [0, 1], on `test` of looking up the mentions of `train`."""
    lexicon = MentionLexicon.from_notes(train)
    right = found = wanted = 0
    for note in test:
        predicted = set(lexicon.find(note.text))
        right += len(predicted & set(note.spans))
        found += len(predicted)
        wanted += len(note.spans)
    return 2 * right / (found + wanted) if found + wanted else 0.0


def unseen_share(train: Sequence[Note], test: Sequence[Note]) -> float:
    """Return the share, in [0, 1], of the mentions in `test` whose characters no mention in `train` has."""
    known = mentions(train)
    wanted = [_folded(note.text[span.start : span.end]) for note in test for span in note.spans]
    return sum(mention not in known for mention in wanted) / len(wanted) if wanted else 0.0


def mentions(notes: Sequence[Note]) -> frozenset[str]:
    """Return the distinct mentions of `notes`, lower-cased."""
    return frozenset(_folded(note.text[span.start : span.end]) for note in notes for span in note.spans)


def _folded(text: str) -> str:
    """Lower-case character by character, so that offsets stay what they were."""
    return "".join(low if len(low := character.lower()) == 1 else character for character in text)


def _is_boundary(text: str, place: int) -> bool:
    """Tell whether a mention may begin or end at `place`: not inside a word of an alphabet."""
    if not 0 < place < len(text):
        return True
    before, after = text[place - 1], text[place]
    return not (_in_alphabet(before) and _in_alphabet(after))


def _in_alphabet(character: str) -> bool:
    """Tell whether the character belongs to words that spaces part (ideographs do not)."""
    return character.isalnum() and not "\u3400" <= character <= "\u9fff"
