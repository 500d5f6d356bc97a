"""Notes that are there twice: exactly, but for case and spacing, or nearly, by MinHash of their word runs."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from datasketch import MinHash, MinHashLSH

from common.records import Note
from common.tokenization import words_of

SIMILARITY = 0.8
"""Two notes are near duplicates from this share of common word runs (Jaccard) on, as MinHash estimates it."""

_RUN = 4
_PERMUTATIONS = 64
_SEED = 1
_SHORTEST = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Duplicates:
    """How many notes repeat an earlier one.

    Attributes:
        notes: Notes seen.
        exact: Notes whose text an earlier note has, case and spacing aside.
        near: Further notes that are nearly an earlier one; notes of fewer than 8 words are not compared.
    """

    notes: int
    exact: int
    near: int


def count_duplicates(notes: Iterable[Note]) -> Duplicates:
    """Count exact and near duplicates within some notes."""
    seen = Counter[bytes]()
    index = MinHashLSH(threshold=SIMILARITY, num_perm=_PERMUTATIONS)
    number = near = 0
    for note in notes:
        number += 1
        words = [note.text[start:end].casefold() for start, end in words_of(note)]
        digest = hashlib.sha256("\n".join(words).encode("utf-8", "surrogatepass")).digest()
        seen[digest] += 1
        if seen[digest] > 1 or len(words) < _SHORTEST:
            continue
        sketch = MinHash(num_perm=_PERMUTATIONS, seed=_SEED)
        sketch.update_batch(list(_runs(words)))
        near += bool(index.query(sketch))
        index.insert(str(number), sketch)
    return Duplicates(notes=number, exact=number - len(seen), near=near)


def _runs(words: list[str]) -> Iterator[bytes]:
    """Yield the word runs of a note."""
    for start in range(max(1, len(words) - _RUN + 1)):
        yield " ".join(words[start : start + _RUN]).encode("utf-8", "surrogatepass")
