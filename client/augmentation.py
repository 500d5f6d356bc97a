"""Views: changed copies of a unit to train on, as the plan's `[augmentation]` says.

A view is a function of the unit's own notes, of what the plan declares (public word lists and translation
models) and of randomness; under a plan without privacy also of the site's other notes, where the plan says so.

- Without privacy, a view follows from the plan's seed by note, round, epoch and number of the view, so it is
  the same wherever the note lies in a batch.
- Under privacy the randomness is the operating system's. All views of a unit are windows of that one unit: its
  loss is the mean over the views, and one clip covers them together.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from client.back_translation import BackTranslator
from client.sampling import Unit, group_units
from common.lexicons import Lexicon, read_mentions, read_synonyms
from common.perturbations import Sources, gather, perturb
from common.plan import Plan
from common.plan_augmentation import Augmentation
from common.prediction import Encoding
from common.records import Example, Note
from common.seeding import derive_seed
from common.tokenization import unit_id

_log = logging.getLogger(__name__)


class Augmenter:
    """Makes views of notes.

    Args:
        section: The plan's `[augmentation]`.
        entity_types: The plan's types, which a lexicon of mentions may speak of.
        site: The site's notes, for the operations that may take words from all of them; none under privacy.

    Raises:
        DataError: A lexicon cannot be used.
        ModelError: A translation model cannot be opened.
    """

    def __init__(
        self, section: Augmentation, *, entity_types: tuple[str, ...], site: Sequence[Note] = ()
    ) -> None:
        self.section = section
        self.refused: Counter[str] = Counter()
        """Notes that back-translation gave back unchanged, by reason; for this machine alone."""
        self._synonyms = _synonyms(section)
        self._mentions = _mentions(section, entity_types)
        self._site = gather(site) if section.uses_site else Sources()
        self._translator = (
            BackTranslator.open(section.translation_models) if section.back_translation else None
        )

    @classmethod
    def of(cls, plan: Plan, notes: Sequence[Note]) -> Augmenter | None:
        """Return the augmenter of a plan at a site with these notes; None where the plan has none."""
        if plan.augmentation is None:
            return None
        site = () if plan.privacy is not None else notes
        return cls(plan.augmentation, entity_types=plan.task.entity_types, site=site)

    def view(self, notes: Sequence[Note], rng: random.Random) -> list[Note]:
        """Return one view of the notes of one unit; ids and number of notes stay.

        Args:
            notes: All notes of the unit.
            rng: The view's own randomness.
        """
        sources = self._sources(notes)
        return [self._changed(note, sources, rng) for note in notes]

    def views(self, notes: Sequence[Note], rng_of: Callable[[int], random.Random]) -> list[list[Note]]:
        """Return every view of a unit: itself first, where the plan keeps it, then `section.views` others.

        Args:
            notes: All notes of the unit.
            rng_of: Returns the randomness of a view by its number, from 0.
        """
        own = [list(notes)] if self.section.keep_original else []
        return own + [self.view(notes, rng_of(number)) for number in range(self.section.views)]

    @property
    def views_per_unit(self) -> int:
        """How many views a unit is trained on, itself included where it is kept."""
        return self.section.views + self.section.keep_original

    def _changed(self, note: Note, sources: Sources, rng: random.Random) -> Note:
        for operation, rate in self.section.rates.items():
            if operation != "back_translation":
                note = perturb(note, operation, rate, sources, rng)
            elif self._translator is not None and rng.random() < rate:
                note = self._translator.translate(note, on_refusal=self._count)
        return note

    def _count(self, reason: str) -> None:
        self.refused[reason] += 1
        _log.debug("A note was not translated: %s.", reason)

    def _sources(self, notes: Sequence[Note]) -> Sources:
        """Return what the operations may draw from for this unit."""
        own = gather(notes)
        mentions: Mapping[str, tuple[str, ...]] = {
            "unit": own.mentions,
            "site": self._site.mentions,
            "lexicon": self._mentions,
        }[self.section.mention_source]
        words = self._site.words if self.section.label_wise_source == "site" else own.words
        return Sources(synonyms=self._synonyms, mentions=mentions, words=words, fillers=own.fillers)


@dataclass(frozen=True, kw_only=True)
class EpochViews:
    """The windows of one round of training without privacy, epoch by epoch.

    Attributes:
        augmenter: Makes the views.
        notes: The site's notes; each is a unit.
        windows: The notes' own windows, encoded already.
        encoding: How views become windows.
        seed: The plan's seed.
        names: What else the views are keyed by, such as the round.
    """

    augmenter: Augmenter
    notes: Sequence[Note]
    windows: Sequence[Example]
    encoding: Encoding
    seed: int
    names: tuple[object, ...]

    def __len__(self) -> int:
        """Windows of one epoch, counted on the notes as they are; a view may have one more or less."""
        return len(self.windows) * self.augmenter.views_per_unit

    def epoch(self, number: int) -> list[Example]:
        """Return the windows of an epoch of this round, from 0; the same number gives the same windows."""
        section = self.augmenter.section
        found = list(self.windows) if section.keep_original else []
        for view in range(section.views):
            found += self.encoding.examples(
                self.augmenter.view([note], self._rng(note, number, view))[0] for note in self.notes
            )
        return found

    def _rng(self, note: Note, epoch: int, view: int) -> random.Random:
        """Return the randomness of one view, by name and never by place."""
        return random.Random(derive_seed(self.seed, "augment", *self.names, note.note_id, epoch, view))


class UnitViews:
    """Puts the views of drawn units in their place, for private training.

    Formal guarantees: The windows that stand for a unit are a function of that unit's notes, of the plan's
    public sources, of the model's tokenizer and of secret randomness that no other unit touches. They keep the
    unit's id, so an engine adds them up before it clips, and the unit's sensitivity is that of one unit.

    Args:
        augmenter: Makes the views.
        notes: The site's notes.
        encoding: How views become windows.
        unit: The privacy unit.
        max_windows: Most windows of one view that take part.
        window_key: Public bytes that decide which windows of a large view do.
        rng: Secret randomness.
    """

    def __init__(
        self,
        augmenter: Augmenter,
        *,
        notes: Sequence[Note],
        encoding: Encoding,
        unit: str,
        max_windows: int,
        window_key: bytes,
        rng: random.Random | None = None,
    ) -> None:
        self._augmenter = augmenter
        self._encoding = encoding
        self._unit = unit
        self._max_windows = max_windows
        self._window_key = window_key
        self._rng = rng or random.SystemRandom()
        self._site = notes
        self._grouped: dict[str, list[Note]] | None = None

    def __call__(self, units: Sequence[Unit]) -> tuple[Unit, ...]:
        """Return the units, each with the windows of all of its views."""
        return tuple(self._viewed(unit) for unit in units)

    def _viewed(self, unit: Unit) -> Unit:
        views = self._augmenter.views(self._notes()[unit.unit_id], lambda number: self._rng)
        windows = [self._windows(view) for view in views]
        return Unit(
            unit_id=unit.unit_id,
            windows=tuple(window for view in windows for window in view),
            views=tuple(len(view) for view in windows),
        )

    def _notes(self) -> Mapping[str, list[Note]]:
        """Return the notes of each unit."""
        if self._grouped is None:
            self._grouped = {}
            for note in self._site:
                self._grouped.setdefault(unit_id(note, self._unit), []).append(note)
        return self._grouped

    def _windows(self, view: Sequence[Note]) -> tuple[Example, ...]:
        """Return the windows of one view that take part."""
        examples = self._encoding.examples(view, unit=self._unit)
        grouped = group_units(examples, max_windows_per_unit=self._max_windows, key=self._window_key)
        return grouped[0].windows if grouped else ()


def _synonyms(section: Augmentation) -> Mapping[str, tuple[str, ...]]:
    if not section.synonyms:
        return {}
    return _noted(section.synonyms, read_synonyms(Path(section.synonyms), sha256=section.synonyms_sha256))


def _mentions(section: Augmentation, entity_types: tuple[str, ...]) -> Mapping[str, tuple[str, ...]]:
    if not section.mentions:
        return {}
    lexicon = read_mentions(Path(section.mentions), sha256=section.mentions_sha256, entity_types=entity_types)
    return _noted(section.mentions, lexicon)


def _noted(path: str, lexicon: Lexicon) -> Mapping[str, tuple[str, ...]]:
    """Say on this machine how much of a lexicon was used."""
    _log.info("%s: %d keys, %d empty lines passed over.", path, len(lexicon.entries), lexicon.skipped)
    return lexicon.entries
