"""The trivial baseline: look up every mention of the training notes, longest first.

A corpus on which this does well teaches nothing about context. On the synthetic notes it must stay below
0.7 strict micro F1; `compare` prints it beside the trained models.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from common.records import EntitySpan, Note

# Words of an alphabet, single ideographs and single signs; mentions begin and end with one of these.
_TOKEN = re.compile(r"[^\W_\u3400-\u9fff]+|[\u3400-\u9fff]|[^\w\s]|_")


@dataclass(frozen=True, slots=True)
class MentionLexicon:
    """Mentions to look up, by lower-cased characters, with the label that each had most often.

    Attributes:
        labels: Label by mention.
        lengths: The lengths in characters of the mentions that begin with the same token, longest first.
    """

    labels: Mapping[str, str] = field(repr=False)
    lengths: Mapping[str, tuple[int, ...]] = field(repr=False)

    @classmethod
    def of(cls, labels: Mapping[str, str]) -> MentionLexicon:
        """Index the mentions by their first token."""
        lengths: defaultdict[str, set[int]] = defaultdict(set)
        for mention in labels:
            first = _TOKEN.match(mention)
            if first is not None:
                lengths[first[0]].add(len(mention))
        return cls(labels, {token: tuple(sorted(each, reverse=True)) for token, each in lengths.items()})

    @classmethod
    def from_notes(cls, notes: Sequence[Note]) -> MentionLexicon:
        """Collect the mentions of `notes`, leaving out those that are more often no entity."""
        counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for note in notes:
            for span in note.spans:
                counts[_folded(note.text[span.start : span.end])][span.label] += 1
        every = {mention: _most_frequent(of_mention) for mention, of_mention in counts.items()}
        naive = cls.of(every)
        outside: Counter[str] = Counter()
        for note in notes:
            gold = set(note.spans)
            for span in naive.find(note.text):
                outside[_folded(note.text[span.start : span.end])] += span not in gold
        return cls.of({m: label for m, label in every.items() if outside[m] <= counts[m].total()})

    def find(self, text: str) -> Iterator[EntitySpan]:
        """Yield the longest known mention at each place, from left to right, of whole tokens."""
        folded = _folded(text)
        tokens = [(token[0], token.start(), token.end()) for token in _TOKEN.finditer(folded)]
        ends = {end for _, _, end in tokens}
        position = 0
        for token, start, _ in tokens:
            if start < position:
                continue
            for end in (start + length for length in self.lengths.get(token, ())):
                if end in ends and folded[start:end] in self.labels:
                    yield EntitySpan(start=start, end=end, label=self.labels[folded[start:end]])
                    position = end
                    break


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
    """Lower-case `text`; where that would move offsets, letter by letter."""
    lowered = text.lower()
    if len(lowered) == len(text):
        return lowered
    return "".join(low if len(low := character.lower()) == 1 else character for character in text)


def _most_frequent(labels: Counter[str]) -> str:
    """Return the most frequent label; of equals, the first by name."""
    return min(labels, key=lambda label: (-labels[label], label))
