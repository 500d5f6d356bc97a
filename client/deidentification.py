"""De-identification of a site's notes as a stage: what identifies somebody is masked, tagged or replaced.

Rules
-----
- What any recogniser finds is covered; see `client.phi.merged`.
- An edit that would cut a clinical entity's border rejects the note (`edit-crosses-entity`), and so does a date
  or age that cannot be (`impossible-date`, `impossible-age`), in surrogate mode. Nothing is left as it was because
  it was difficult.
- PHI whose form has no surrogate gets its type in brackets, and is counted as `tagged_instead`.

Formal scope
------------
The stage is a function of one note, its patient's id, the site's secret and its lists: it never looks at another
note, so it may run under any privacy unit. A tagger that was trained on the site's own records brings what it learnt
from them along, and is accounted for by the plan that trained it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import ClassVar

from client.phi import PhiSpan
from client.preprocessing import Scope
from client.surrogates import Surrogates
from common.errors import ValidationError
from common.records import Note
from common.text_edits import Edit, apply_edits
from common.tokenization import words_of
from common.validation import require_choice

MODES = ("mask", "tag", "surrogate")

MASK = "***"
"""Stands for any PHI in mode `mask`; always as long, so that it tells neither type nor length."""

Find = Callable[[str], tuple[PhiSpan, ...]]


class Deidentification:
    """The stage `deidentify`.

    Args:
        find: Returns the PHI of a text, disjoint and in order.
        mode: `mask`, `tag` or `surrogate`.
        surrogates: Makes surrogates; needed in mode `surrogate`.
        keep: PHI types that stay in the text; they are counted as `kept`.

    Raises:
        ValidationError: The mode is unknown, or has no surrogates to use.
    """

    name: ClassVar[str] = "deidentify"
    scope: ClassVar[Scope] = "unit"

    def __init__(
        self, find: Find, *, mode: str, surrogates: Surrogates | None = None, keep: Collection[str] = ()
    ) -> None:
        require_choice("deidentification.mode", mode, MODES)
        if (mode == "surrogate") != (surrogates is not None):
            raise ValidationError(
                f"deidentification.mode is {mode!r}; surrogates are needed in mode surrogate, and in no other."
            )
        self._find, self._mode, self._surrogates = find, mode, surrogates
        self._keep = frozenset(keep)
        self._counts = Counter[str]()
        self._found = Counter[str]()

    def apply(self, note: Note) -> Note:
        """Return the note without its PHI, entities on their characters.

        Raises:
            Rejected: A date or age cannot be, or a pattern took too long.
            EditConflict: PHI crosses the border of an entity.
        """
        found = self._find(note.text)
        edits, counts = [], Counter[str]()
        for span in found:
            if span.kind in self._keep:
                counts["kept"] += 1
                continue
            text = note.text[span.start : span.end]
            replacement = self._replacement(span.kind, text, note, counts)
            if replacement != text:
                edits.append(Edit(start=span.start, end=span.end, replacement=replacement))
                counts["replaced"] += 1
        clean = apply_edits(note, edits)
        # Counted once the note is kept: a rejected note has changed nothing.
        self._counts.update(counts)
        self._counts.update(notes=1, tokens=len(words_of(note)))
        self._found.update(span.kind for span in found)
        return clean

    def counts(self) -> Mapping[str, int]:
        """Return notes, tokens, spans replaced, kept and tagged instead, and `found.TYPE` for each type."""
        return {**self._counts, **{f"found.{kind}": number for kind, number in sorted(self._found.items())}}

    def per_thousand_tokens(self) -> Mapping[str, float]:
        """Return the PHI found per type and 1,000 tokens of the notes that were kept."""
        tokens = self._counts["tokens"]
        return {kind: 1000 * number / tokens for kind, number in self._found.items()} if tokens else {}

    def _replacement(self, kind: str, text: str, note: Note, counts: Counter[str]) -> str:
        """Return what stands in place of one PHI."""
        if self._mode == "mask":
            return MASK
        if self._surrogates is not None:
            made = self._surrogates.replace(kind, text, patient_of(note))
            if made is not None:
                return made
            counts["tagged_instead"] += 1
        return f"[{kind}]"


def patient_of(note: Note) -> str:
    """Return whom a note is about, as far as the data tells: its patient, else its document, else itself."""
    if note.patient_id is not None:
        return f"patient {note.patient_id}"
    return f"note {note.note_id}" if note.document_id is None else f"document {note.document_id}"
