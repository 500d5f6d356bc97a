"""The frozen values that stages exchange: notes, entity spans, training examples, updates.

`repr` never shows note text, token ids or an update: these values end up in tracebacks and logs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class EntitySpan:
    """One entity mention: characters `[start, end)` of the note's text, and its label."""

    start: int
    end: int
    label: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Note:
    """One record of a site: a sentence, a report or a whole document, as its format defines.

    Attributes:
        note_id: Unique within the data set; the unit `record`.
        text: The note's characters, exactly as the spans count them.
        spans: Entity mentions in order of `start`, without overlap.
        document_id: The document the note belongs to, where the format has one; the unit `document`.
        patient_id: The patient, where the data has one; the unit `patient`.
        words: Character offsets `[start, end)` of the words, where the source is already tokenised.
        columns: Further public fields of the record, for partitioning in simulation.
    """

    note_id: str
    text: str = field(repr=False)
    spans: tuple[EntitySpan, ...] = field(default=(), repr=False)
    document_id: str | None = None
    patient_id: str | None = None
    words: tuple[tuple[int, int], ...] | None = field(default=None, repr=False)
    columns: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One window of one note, ready for the model. Windows never cross a note.

    Attributes:
        note_id: The note that the window is of.
        unit_id: The privacy unit (record, document or patient) that the window belongs to.
        input_ids: Piece ids with the special tokens, `(tokens,)` int32.
        labels: Tag id on a word's first piece where this window owns the word, else -100, `(tokens,)` int64.
        words: Index into the note's words on an owned word's first piece, else -1, `(tokens,)` int32.
        features: Word features on owned first pieces, else 0, `(tokens, kinds)` int32; None where the plan
            has none.
    """

    note_id: str
    unit_id: str
    input_ids: NDArray[np.int32] = field(repr=False)
    labels: NDArray[np.int64] = field(repr=False)
    words: NDArray[np.int32] = field(repr=False)
    features: NDArray[np.int32] | None = field(default=None, repr=False)

    @property
    def num_tokens(self) -> int:
        """Pieces in the window, special tokens included."""
        return int(self.input_ids.shape[0])


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelUpdate:
    """What a site gives to one round: named fields, each a float32 vector that can be summed over sites.

    Attributes:
        fields: `delta` (parameters,) is the change of the trained parameters; further fields are
            statistics that ride along (`num_examples`, `loss_sum`, entity counts).
        weight: The site's public weight in (0, 1]; already applied once a `WeightStage` ran.
    """

    fields: Mapping[str, NDArray[np.float32]] = field(repr=False)
    weight: float
