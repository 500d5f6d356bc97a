"""From the stages that a plan and a site name to the stages that run, and a site's training notes through them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from client.deidentification_settings import DeidentificationTable
from client.preprocessing import Pipeline, Rejected, Scope, Stage
from client.preprocessing_duplicates import NearDuplicates
from client.preprocessing_parts import Boilerplate, RepeatedParts, SectionHeaders, all_phrases
from client.preprocessing_text import LineBreakRepair, UnicodeCleaning, WhiteSpace
from common.errors import DataError, ValidationError
from common.plan import Plan
from common.preparation import StageChoice, require_within_units
from common.records import Note

_log = logging.getLogger(__name__)

ACROSS_NOTES = frozenset({"near_duplicates"})
"""Stages that remember notes: one of them sees all notes of a site, in their order."""

TOKENS = "tokenisation"
DEIDENTIFY = "deidentify"


class NoteLength:
    """Rejects notes that are too short to say anything, or longer than any note can be.

    Args:
        minimum: Fewest characters, white space aside.
        maximum: Most characters.
    """

    name = "length"
    scope: Scope = "unit"

    def __init__(self, *, minimum: int = 2, maximum: int = 10_000_000) -> None:
        if maximum < minimum:
            raise ValidationError(f"length.maximum is {maximum}; it must be at least {minimum}, the minimum.")
        self._minimum, self._maximum = minimum, maximum
        self._counts = {"too_short": 0, "too_long": 0}

    def apply(self, note: Note) -> Note:
        """Return the note as it is.

        Raises:
            Rejected: It is too short or too long.
        """
        length = len("".join(note.text.split()))
        if length < self._minimum:
            self._counts["too_short"] += 1
            raise Rejected("too-short", note_id=note.note_id)
        if len(note.text) > self._maximum:
            self._counts["too_long"] += 1
            raise Rejected("too-long", note_id=note.note_id)
        return note

    def counts(self) -> Mapping[str, int]:
        """Return how many notes were rejected."""
        return {kind: number for kind, number in self._counts.items() if number}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that stages are made of, in a form that another process can be given.

    Attributes:
        stages: The stages, in order.
        phrases: Boilerplate phrases of the site, besides those in `stages`.
        privacy_unit: The unit of a private plan; None where the plan is not private.
        tokens_of: A plan whose word pieces and windows are counted; None counts none.
        deidentification: How the site de-identifies; a site that says so always does it.
        device: Where a tagger of the de-identification runs.
    """

    stages: tuple[StageChoice, ...] = ()
    phrases: tuple[str, ...] = ()
    privacy_unit: str | None = None
    tokens_of: Plan | None = field(default=None, repr=False)
    deidentification: DeidentificationTable | None = field(default=None, repr=False)
    device: str = "auto"

    def build(self) -> tuple[Stage, ...]:
        """Make the stages anew; their counts are at zero.

        Raises:
            ValidationError: An option does not work, or a private plan has a stage that looks across units.
        """
        if self.privacy_unit is not None:
            require_within_units("the site's preparation", self.stages)
        return tuple(_MAKERS[choice.name](self, dict(choice.options)) for choice in self.choices)

    @property
    def choices(self) -> tuple[StageChoice, ...]:
        """The stages, with those that follow from the rest of the recipe put in."""
        choices = self.stages
        names = [choice.name for choice in choices]
        if self.phrases and "boilerplate" not in names:
            choices = (*choices, StageChoice(name="boilerplate"))
        if self.deidentification is not None and DEIDENTIFY not in names:
            choices = _before_copies(choices, StageChoice(name=DEIDENTIFY))
        if choices and "length" not in names:
            # After the cleaning, and before copies are looked for: all empty notes are alike.
            choices = _before_copies(choices, StageChoice(name="length"))
        if self.tokens_of is not None:
            choices = _before_copies(choices, StageChoice(name=TOKENS))
        return choices

    def split(self) -> tuple[Recipe, Recipe]:
        """Return what can run note by note in any process, and the rest, which needs all notes in order."""
        border = _first_across(self.choices)
        return self._part(0, border), self._part(border, len(self.choices))

    def _part(self, start: int, end: int) -> Recipe:
        """Return the stages from `start` up to `end`."""
        return _Part(
            stages=self.choices[start:end],
            phrases=self.phrases,
            privacy_unit=self.privacy_unit,
            tokens_of=self.tokens_of,
            deidentification=self.deidentification,
            device=self.device,
        )


@dataclass(frozen=True, kw_only=True)
class _Part(Recipe):
    """Some stages of a recipe."""

    @property
    def choices(self) -> tuple[StageChoice, ...]:
        """The stages, and nothing more."""
        return self.stages


def recipe_of(
    plan: Plan | None,
    *,
    stages: Sequence[StageChoice] = (),
    phrases: Sequence[str] = (),
    deidentification: DeidentificationTable | None = None,
    device: str = "auto",
) -> Recipe:
    """Return the plan's stages, and then the site's own.

    Args:
        plan: The plan, if there is one.
        stages: The site's own stages; one that the plan has as well is the plan's.
        phrases: The site's own boilerplate phrases.
        deidentification: How the site de-identifies.
        device: Where a tagger of the de-identification runs.

    Raises:
        ValidationError: A private plan would have a stage that looks across units, or a stage lacks what it needs.
        InputError: A file that the de-identification needs cannot be used.
    """
    agreed = plan.preparation.stages if plan is not None else ()
    names = {choice.name for choice in agreed}
    recipe = Recipe(
        stages=(*agreed, *(choice for choice in stages if choice.name not in names)),
        phrases=tuple(phrases),
        privacy_unit=plan.privacy.unit if plan is not None and plan.privacy is not None else None,
        deidentification=deidentification,
        device=device,
    )
    recipe.build()
    return recipe


def prepare_notes(notes: Iterable[Note], recipe: Recipe) -> tuple[Note, ...]:
    """Return a site's training notes after its stages; how many were left out, and why, goes to the site's log.

    Raises:
        DataError: No note is left.
    """
    if not recipe.choices:
        return tuple(notes)
    pipeline = Pipeline(recipe.build())
    kept = tuple(pipeline.run(notes))
    for (stage, reason), number in sorted(pipeline.rejects().items()):
        _log.warning("%d notes were left out by %s (%s).", number, stage, reason)
    if not kept and pipeline.rejects():
        raise DataError(
            "the preparation rejects every note; run `fedward-site prepare --dry-run` to see what it does."
        )
    return kept


def _first_across(choices: Sequence[StageChoice]) -> int:
    """Return the place of the first stage that remembers notes, or the end."""
    return next((i for i, choice in enumerate(choices) if choice.name in ACROSS_NOTES), len(choices))


def _before_copies(choices: tuple[StageChoice, ...], added: StageChoice) -> tuple[StageChoice, ...]:
    """Put a stage after those that work note by note."""
    border = _first_across(choices)
    return (*choices[:border], added, *choices[border:])


def _boilerplate(recipe: Recipe, options: dict[str, Any]) -> Stage:
    """Make the stage with the plan's and the site's phrases."""
    phrases = all_phrases(options.pop("phrases", ()), recipe.phrases)
    return Boilerplate(phrases=phrases, **options)


def _near_duplicates(recipe: Recipe, options: dict[str, Any]) -> Stage:
    """Make the stage; under privacy its unit is the plan's."""
    if recipe.privacy_unit is not None:
        options["unit"] = recipe.privacy_unit
    return NearDuplicates(**options)


def _sections(recipe: Recipe, options: dict[str, Any]) -> Stage:
    """Make the stage with its table of names."""
    return SectionHeaders(names=dict(options.get("names", ())))


def _deidentify(recipe: Recipe, options: dict[str, Any]) -> Stage:
    """Make the stage that a site's `[deidentification]` describes."""
    # Presidio comes in here, where it is asked for.
    from client.deidentification_setup import build_deidentification

    if recipe.deidentification is None:
        raise ValidationError(
            "the stage deidentify needs [deidentification] of a site.toml, which says how: mode, languages and lists. "
            "No site is de-identified by guesses."
        )
    return build_deidentification(recipe.deidentification, device=recipe.device)


def _tokens(recipe: Recipe, options: dict[str, Any]) -> Stage:
    """Make the stage that counts word pieces."""
    # torch and transformers come in here, where they are asked for.
    from client.preprocessing_tokens import TokenCount

    if recipe.tokens_of is None:
        raise ValidationError(
            "the stage tokenisation counts the pieces of a plan's encoder, and there is no plan."
        )
    return TokenCount(recipe.tokens_of)


_MAKERS: Mapping[str, Callable[[Recipe, dict[str, Any]], Stage]] = {
    "unicode": lambda recipe, options: UnicodeCleaning(),
    "line_breaks": lambda recipe, options: LineBreakRepair(**options),
    "whitespace": lambda recipe, options: WhiteSpace(),
    "boilerplate": _boilerplate,
    "sections": _sections,
    "repeated_parts": lambda recipe, options: RepeatedParts(**options),
    "near_duplicates": _near_duplicates,
    "length": lambda recipe, options: NoteLength(**options),
    DEIDENTIFY: _deidentify,
    TOKENS: _tokens,
}
