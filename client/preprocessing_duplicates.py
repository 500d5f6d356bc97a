"""Notes that nearly repeat an earlier one: copies forward, double exports.

The index holds sketches and hashes only: at most `BYTES_PER_NOTE` for each note that is kept, however long the
notes are.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from client.preprocessing import Dropped, Rejected, Scope
from client.preprocessing_negation import cue_digest
from client.preprocessing_shingles import PERMUTATIONS, minhash, shingles
from common.records import Note
from common.validation import require_choice, require_float

BYTES_PER_NOTE = 1024
WITHIN = ("unit", "site")
UNITS = ("record", "document", "patient")

_BANDS = 16
_ROWS = PERMUTATIONS // _BANDS
# A table is at most so full; then it doubles.
_FULLEST = 0.5
_PAGE = 1024
_FREE = 0


class NearDuplicates:
    """Drops a note that resembles an earlier one by at least `threshold`, and has the same negation cues in order.

    Within `unit`, a note is held against earlier notes of the same privacy unit alone, so what happens to a unit's
    notes depends on that unit. Within `site`, it is held against all: a private plan refuses that.

    Args:
        within: `unit` or `site`.
        unit: Whose id says what belongs together, for `unit`: record, document or patient.
        threshold: Least estimated Jaccard similarity of word shingles, from 0.5 to 1.
    """

    name = "near_duplicates"

    def __init__(self, *, within: str = "unit", unit: str = "patient", threshold: float = 0.85) -> None:
        self._within = require_choice("near_duplicates.within", within, WITHIN)
        self._unit = require_choice("near_duplicates.unit", unit, UNITS)
        self._threshold = require_float("near_duplicates.threshold", threshold, minimum=0.5, maximum=1.0)
        self._index = SketchIndex()
        self._counts = Counter[str]()

    @property
    def scope(self) -> Scope:
        """Whether the stage looks across units."""
        return "unit" if self._within == "unit" else "site"

    @property
    def index_bytes(self) -> int:
        """Size of the index."""
        return self._index.size

    def apply(self, note: Note) -> Note:
        """Return the note, which later notes are then held against.

        Raises:
            Dropped: An earlier note is nearly the same.
            Rejected: The note has no id of the unit.
        """
        pieces = shingles(note.text)
        if not pieces:
            return note
        sketch = minhash(pieces).hashvalues.astype(np.uint32)
        # The group is part of every key, so that notes of other groups change nothing for this one.
        group = _digest(f"{self._group(note)}\x1f{cue_digest(note.text)}")
        if self._index.resembles(sketch, group, self._threshold):
            self._counts["notes_dropped"] += 1
            raise Dropped("near-duplicate", note_id=note.note_id)
        self._index.add(sketch, group)
        return note

    def counts(self) -> Mapping[str, int]:
        """Return how many notes were dropped, and the size of the index in bytes."""
        return {**self._counts, "index_bytes": self._index.size}

    def _group(self, note: Note) -> str:
        """Return what the note may be compared within."""
        if self._within == "site":
            return ""
        found = {"record": note.note_id, "document": note.document_id, "patient": note.patient_id}[self._unit]
        if found is None:
            raise Rejected(f"no-{self._unit}-id", note_id=note.note_id)
        return found


class SketchIndex:
    """Sketches in bands (locality-sensitive hashing), in open addressing over plain arrays.

    Two sketches meet if all rows of some band agree: with 16 bands of 4 rows, texts of similarity 0.85 meet with
    probability above 0.9999. What meets is compared in full.
    """

    def __init__(self) -> None:
        self._pages: list[NDArray[np.uint32]] = []
        self._groups = array("Q")
        self._table = array("I", bytes(4 * _PAGE))
        self._used = 0

    @property
    def size(self) -> int:
        """Bytes of all arrays."""
        pages = sum(page.nbytes for page in self._pages)
        return pages + len(self._groups) * 8 + len(self._table) * self._table.itemsize

    def resembles(self, sketch: NDArray[np.uint32], group: int, threshold: float) -> bool:
        """Return whether a sketch of the group is at least so similar."""
        least = threshold * PERMUTATIONS
        seen = set[int]()
        for key in _keys(sketch, group):
            for number in self._slots(key):
                if number not in seen and self._groups[number] == group:
                    seen.add(number)
                    if int((self._sketch(number) == sketch).sum()) >= least:
                        return True
        return False

    def add(self, sketch: NDArray[np.uint32], group: int) -> None:
        """Remember a sketch."""
        number = len(self._groups)
        if number % _PAGE == 0:
            self._pages.append(np.zeros((_PAGE, PERMUTATIONS), dtype=np.uint32))
        self._pages[-1][number % _PAGE] = sketch
        self._groups.append(group)
        if (self._used + _BANDS) > _FULLEST * len(self._table):
            self._grow()
        self._place(number, sketch, group)

    def _sketch(self, number: int) -> NDArray[np.uint32]:
        """Return a remembered sketch."""
        sketch: NDArray[np.uint32] = self._pages[number // _PAGE][number % _PAGE]
        return sketch

    def _slots(self, key: int) -> Iterator[int]:
        """Yield the numbers that stand from a key's slot on, up to the first free one; some have other keys."""
        size = len(self._table)
        slot = key % size
        while (entry := self._table[slot]) != _FREE:
            yield entry - 1
            slot = (slot + 1) % size

    def _place(self, number: int, sketch: NDArray[np.uint32], group: int) -> None:
        """Put a number into a free slot for each band."""
        size = len(self._table)
        for key in _keys(sketch, group):
            slot = key % size
            while self._table[slot] != _FREE:
                slot = (slot + 1) % size
            self._table[slot] = number + 1
            self._used += 1

    def _grow(self) -> None:
        """Double the table."""
        self._table = array("I", bytes(2 * self._table.itemsize * len(self._table)))
        self._used = 0
        for number, group in enumerate(self._groups):
            if number < len(self._groups) - 1:
                self._place(number, self._sketch(number), group)


def _keys(sketch: NDArray[np.uint32], group: int) -> list[int]:
    """Return one hash a band."""
    rows = sketch.reshape(_BANDS, _ROWS).astype(np.uint64)
    mixed: NDArray[np.uint64] = np.arange(_BANDS, dtype=np.uint64) ^ np.uint64(group)
    for row in range(_ROWS):
        # The finaliser of SplitMix64 (Steele et al., OOPSLA 2014): spreads every bit over the word.
        mixed = np.bitwise_xor(mixed, rows[:, row])
        mixed = np.bitwise_xor(mixed, mixed >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = np.bitwise_xor(mixed, mixed >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        mixed = np.bitwise_xor(mixed, mixed >> np.uint64(31))
    keys: list[int] = mixed.tolist()
    return keys


def _digest(text: str) -> int:
    """Return 64 bits of a hash."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
