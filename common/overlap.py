"""Whether two sets of notes share text, wherever their files cut documents into notes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from common.records import Note

_RUN = 20
"""So many words in a row are not the same by chance, as shorter phrases and headings are."""

_SHORTEST = 40
"""Letters from which a whole note shorter than a run is taken for the same note."""


def overlapping(notes: Sequence[Note], held: Iterable[Note]) -> list[str]:
    """Return the ids of the notes that share text with `held`.

    Two notes share text where 20 words in a row agree, case and punctuation aside, or where both are shorter
    than that, agree as a whole and have at least 40 letters. Ids are not compared: formats without document ids
    are given ones by counting.

    Args:
        notes: What is checked.
        held: What it must not overlap.
    """
    known = {run for note in held for run in _runs(note)}
    return [note.note_id for note in notes if any(run in known for run in _runs(note))]


def _runs(note: Note) -> Iterator[int]:
    """Yield a hash of each run of words of a note, or of the whole where it is shorter."""
    words = re.findall(r"\w+", note.text.casefold())
    if len(words) < _RUN:
        if sum(map(len, words)) >= _SHORTEST:
            yield hash(tuple(words))
        return
    for start in range(len(words) - _RUN + 1):
        yield hash(tuple(words[start : start + _RUN]))
