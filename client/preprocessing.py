"""What a site does to its notes before tokenisation: a list of stages, each a function of one note.

Stages change text through `common.text_edits.apply_edits` alone, so an entity stays on its characters or the
note is refused. A stage of scope `unit` looks at one privacy unit and public data; one of scope `site` looks
across notes, and a private plan refuses it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, Protocol

from common.errors import DataError
from common.records import Note
from common.text_edits import EditConflict

Scope = Literal["unit", "site"]


class Rejected(DataError):
    """A stage cannot keep a note.

    Args:
        reason_code: A fixed word of letters and hyphens, which may stand in a file; never text of the note.
        note_id: The note, where the stage wants it named.
    """

    def __init__(self, reason_code: str, *, note_id: str | None = None) -> None:
        self.reason_code = reason_code
        self.note_id = note_id
        named = "a note" if note_id is None else f"note {note_id}"
        super().__init__(f"{named} was rejected: {reason_code}.", reason=reason_code)

    def __reduce__(self) -> tuple[Any, ...]:
        """Let the error pass from a worker process to the one that started it."""
        return partial(type(self), self.reason_code, note_id=self.note_id), ()


class Dropped(Rejected):
    """A stage leaves a note out on purpose, a copy for instance: it is listed, and no strict run stops for it."""


class Stage(Protocol):
    """One step. It keeps counts of what it changed, and nothing else of a note unless its scope is `site`.

    Attributes:
        name: As the plan writes it.
        scope: Whether `apply` is a function of one unit (and public data), or looks across a site's notes.
    """

    @property
    def name(self) -> str:
        """The stage's name."""

    @property
    def scope(self) -> Scope:
        """What the stage looks at."""

    def apply(self, note: Note) -> Note:
        """Return the note after this stage.

        Raises:
            Rejected: The note cannot be kept; the pipeline lists it and goes on.
            EditConflict: An edit would cut an entity; the pipeline lists the note and goes on.
        """

    def counts(self) -> Mapping[str, int]:
        """Return what was changed so far, by kind; the numbers describe private data and stay at the site."""


OnReject = Callable[[str, str, str], None]
"""Receives a rejected note's id, the stage's name and the reason code."""


class Pipeline:
    """Runs notes through stages, one at a time, in order.

    Args:
        stages: The stages.
        strict: Stop at the first note that a stage rejects.
        on_reject: Receives each rejected note's id, the stage and the reason code.
    """

    def __init__(
        self, stages: Sequence[Stage], *, strict: bool = False, on_reject: OnReject | None = None
    ) -> None:
        self.stages = tuple(stages)
        self._strict = strict
        self._on_reject = on_reject
        self._seconds = Counter[str]()
        self._rejects = Counter[tuple[str, str]]()

    def run(self, notes: Iterable[Note]) -> Iterator[Note]:
        """Yield the notes that every stage kept.

        Raises:
            Rejected, EditConflict: A stage rejected a note, and the pipeline is strict.
        """
        for note in notes:
            kept = self.prepare(note)
            if kept is not None:
                yield kept

    def prepare(self, note: Note) -> Note | None:
        """Return one note after all stages, or None (counted) where a stage rejected it."""
        for stage in self.stages:
            begin = time.process_time()
            try:
                note = stage.apply(note)
            except (Rejected, EditConflict) as error:
                if self._strict and not isinstance(error, Dropped):
                    raise
                self._reject(note, stage, error)
                return None
            finally:
                self._seconds[stage.name] += time.process_time() - begin  # type: ignore[assignment]
        return note

    def counts(self) -> Mapping[str, Mapping[str, int]]:
        """Return what each stage changed, by stage and kind."""
        return {stage.name: dict(stage.counts()) for stage in self.stages}

    def rejects(self) -> Mapping[tuple[str, str], int]:
        """Return how many notes were rejected, by stage and reason code."""
        return dict(self._rejects)

    def seconds(self) -> Mapping[str, float]:
        """Return the processor time of each stage so far."""
        return dict(self._seconds)

    def _reject(self, note: Note, stage: Stage, error: Rejected | EditConflict) -> None:
        """Count and report one note."""
        self._rejects[stage.name, error.reason] += 1
        if self._on_reject is not None:
            self._on_reject(note.note_id, stage.name, error.reason)
