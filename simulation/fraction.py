"""A part of the training notes, chosen by seed: how a method does where data is scarce."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace

from common.errors import InputError
from common.ingestion import Dataset
from common.records import Note
from common.seeding import derive_seed
from common.validation import require_float


def take_fraction(data: Dataset, fraction: float, *, seed: int) -> Dataset:
    """Return the data set with a fraction of its training notes; development and test notes stay whole.

    Notes are ranked by a hash of seed, place and id, so under one seed a smaller fraction is a part of a larger one.

    Args:
        data: The data set.
        fraction: Above 0, up to 1; the number of notes is rounded up.
        seed: Another seed chooses other notes.

    Raises:
        ValidationError: The fraction is out of range.
        InputError: There are no training notes.
    """
    require_float("--fraction", fraction, minimum=0.0, maximum=1.0, open_minimum=True)
    if not data.train:
        raise InputError("There are no training notes to take a fraction of.")
    if fraction == 1.0:
        return data
    key = derive_seed(seed, "fraction")
    ranked = sorted(range(len(data.train)), key=lambda i: _rank(key, i, data.train[i]))
    kept = sorted(ranked[: math.ceil(fraction * len(ranked))])
    return replace(data, train=tuple(data.train[i] for i in kept))


def _rank(key: int, place: int, note: Note) -> bytes:
    """Return what notes are ranked by; the place tells notes of one id apart."""
    return hashlib.sha256(f"{key}\x1f{place}\x1f{note.note_id}".encode()).digest()
