"""How many word pieces and windows prepared notes make under a plan, counted and not kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from client.preprocessing import Scope
from common.host import build_encoding
from common.plan import Plan
from common.records import Note


class TokenCount:
    """Encodes each note as training will, and counts.

    Args:
        plan: Names the encoder and the windows.

    Raises:
        ModelError: The encoder's tokenizer cannot be opened.
    """

    name = "tokenisation"
    scope: Scope = "unit"

    def __init__(self, plan: Plan) -> None:
        self._encoding = build_encoding(plan)
        self._counts = Counter[str]()

    def apply(self, note: Note) -> Note:
        """Return the note as it is."""
        # Labels are the source's own here; pieces do not depend on them.
        examples = self._encoding.examples([replace(note, spans=())])
        self._counts["windows"] += len(examples)
        self._counts["pieces"] += sum(example.num_tokens for example in examples)
        self._counts["notes_in_windows"] += len(examples) > 1
        return note

    def counts(self) -> Mapping[str, int]:
        """Return windows, their pieces, and notes that take more than one window."""
        return dict(self._counts)
