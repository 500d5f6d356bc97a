"""The house style of a synthetic hospital: what its notes are about, and how they are typed."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass

from simulation.synthetic_lexicon import LABELS, Lexicon, house_subset, stable_fraction

_HEADERS = ("{}: ", "{}:\n", "## {}\n", "[{}]\n", "-- {} --\n", "{} - ")
_WORD = re.compile(r"[A-Za-z]{5,}")
_CASES = ("title", "upper", "lower")
_BULLETS = ("- ", "* ", "", "\u2022 ", "+ ")
_CELLS = (" ", " | ", ", ", "\t", " - ")


@dataclass(frozen=True, kw_only=True, slots=True)
class HouseStyle:
    """How one hospital writes.

    Attributes:
        hospital: The hospital's index, which also chooses among the ways to write a header.
        header_format: A format with one place for the header.
        header_case: `title`, `upper` or `lower`.
        bullet: What stands before a row.
        cell: What stands between the cells of a row.
        sentence_break: What stands between two sentences.
        date_format: For `strftime`.
        identity: The patient line's template.
        glued_units: Whether a dose is typed without its space.
        typo_rate: Typing errors per word, in [0, 1].
        shorthand: The abbreviations in use, longest full form first.
        confusions: Characters that the house mistakes for each other.
        note_types: How often each note type is written; sums to one.
        tilt: How eagerly sentences with each entity type are written; above 0.
    """

    hospital: int
    header_format: str
    header_case: str
    bullet: str
    cell: str
    sentence_break: str
    date_format: str
    identity: str
    glued_units: bool
    typo_rate: float
    shorthand: tuple[tuple[str, str], ...]
    confusions: Mapping[str, str]
    note_types: Mapping[str, float]
    tilt: Mapping[str, float]

    def typed(self, text: str, rng: random.Random) -> str:
        """Return `text` as the house types it: abbreviated, and now and then mistyped."""
        for full, short in self.shorthand:
            text = _replace_word(text, full, short)
        for right, wrong in self.confusions.items():
            if right in text and rng.random() < self.typo_rate:
                text = text.replace(right, wrong, 1)
        return _WORD.sub(lambda word: self._word(word[0], rng), text)

    def _word(self, word: str, rng: random.Random) -> str:
        """Return the word, or a misspelling of it."""
        return _misspell(word, rng) if rng.random() < self.typo_rate else word


def house_style(lexicon: Lexicon, hospital: int, *, seed: int, skew: float) -> HouseStyle:
    """Return the style of `hospital`; neighbours differ in every choice that has two values or more.

    Args:
        lexicon: The hospital's language.
        hospital: Its index, 0 or more.
        seed: The corpus seed.
        skew: How far note types and entity types lean to the hospital's own; 0 is not at all.
    """
    rng = random.Random(f"style/{seed}/{lexicon.language}/{hospital}")
    turn = int(stable_fraction("turn", seed) * 1000) + hospital
    shorthand = house_subset(tuple(lexicon.shorthand), 0.5, seed, hospital, "shorthand")
    return HouseStyle(
        hospital=hospital,
        header_format=_HEADERS[turn % len(_HEADERS)],
        header_case=_CASES[turn % len(_CASES)],
        bullet=_BULLETS[turn % len(_BULLETS)],
        cell=_CELLS[turn % len(_CELLS)],
        sentence_break=lexicon.joiner if turn % 2 else "\n",
        date_format=lexicon.date_formats[turn % len(lexicon.date_formats)],
        identity=lexicon.identity[turn % len(lexicon.identity)],
        glued_units=lexicon.language == "en" and turn % 3 == 0,
        typo_rate=rng.choice((0.005, 0.01, 0.02)),
        shorthand=tuple((full, lexicon.shorthand[full]) for full in sorted(shorthand, key=len, reverse=True)),
        confusions=lexicon.confusions,
        note_types=_leaning(tuple(lexicon.sections), turn, skew, rng),
        tilt=_tilt(turn, skew),
    )


def neutral(style: HouseStyle) -> HouseStyle:
    """Return the same way of typing without any leaning in content, for devel and test."""
    count = len(style.note_types)
    return HouseStyle(
        **{name: getattr(style, name) for name in HouseStyle.__slots__ if name not in ("note_types", "tilt")},
        note_types=dict.fromkeys(style.note_types, 1 / count),
        tilt=dict.fromkeys(LABELS, 1.0),
    )


def _leaning(note_types: tuple[str, ...], turn: int, skew: float, rng: random.Random) -> dict[str, float]:
    """Return note-type weights that lean to one type, which goes round with the hospitals."""
    raw = {name: 1.0 + min(skew, 1.0) * rng.uniform(-0.5, 0.5) for name in note_types}
    raw[note_types[turn % len(note_types)]] += 4.0 * skew
    total = sum(raw.values())
    return {name: weight / total for name, weight in raw.items()}


def _tilt(turn: int, skew: float) -> dict[str, float]:
    """Return a factor per entity type: one favoured, one neglected, going round with the hospitals."""
    tilt = dict.fromkeys(LABELS, 1.0)
    tilt[LABELS[turn % len(LABELS)]] = 1.0 + 3.0 * skew
    tilt[LABELS[(turn + 2) % len(LABELS)]] = 1.0 / (1.0 + 5.0 * skew)
    return tilt


def _replace_word(text: str, full: str, short: str) -> str:
    """Replace `full` where it is not part of a longer word of Latin letters."""
    if full not in text:
        return text
    guard = r"(?<![A-Za-z]){}(?![A-Za-z])" if full.isascii() else "{}"
    return re.sub(guard.format(re.escape(full)), lambda _: short, text)


def _misspell(word: str, rng: random.Random) -> str:
    """Swap, drop or double one inner letter."""
    place = rng.randrange(1, len(word) - 2)
    kind = rng.randrange(3)
    if kind == 0:
        return word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    return word[:place] + word[place + 1 :] if kind == 1 else word[: place + 1] + word[place:]
