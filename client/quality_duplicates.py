"""Notes that are there twice: word for word, or nearly, by MinHash of their word runs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from client.preprocessing_duplicates import SketchIndex
from client.preprocessing_shingles import minhash, shingles
from common.records import Note

SIMILARITY = 0.85
"""Two notes are near duplicates from this share of common runs of four words on, as MinHash estimates it."""

_SHORTEST = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Duplicates:
    """How many notes repeat an earlier one.

    Attributes:
        notes: Notes seen.
        exact: Notes whose text an earlier note has, case and white space aside.
        near: Further notes that are nearly an earlier one; notes of fewer than 8 words are not compared.
    """

    notes: int
    exact: int
    near: int


def count_duplicates(notes: Iterable[Note]) -> Duplicates:
    """Count exact and near duplicates within some notes."""
    seen, index = set[bytes](), SketchIndex()
    number = exact = near = 0
    for note in notes:
        number += 1
        words = note.text.casefold().split()
        digest = hashlib.sha256(" ".join(words).encode("utf-8", "surrogatepass")).digest()
        if digest in seen:
            exact += 1
            continue
        seen.add(digest)
        if len(words) < _SHORTEST:
            continue
        sketch = minhash(shingles(note.text)).hashvalues.astype(np.uint32)
        near += index.resembles(sketch, 0, SIMILARITY)
        index.add(sketch, 0)
    return Duplicates(notes=number, exact=exact, near=near)
