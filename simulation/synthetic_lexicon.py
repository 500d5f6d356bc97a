"""The mention grammar of the synthetic notes: how entity mentions are composed from parts.

A mention is either one of a few `common` ones that every split shares, or composed from a pattern such as
`{severity} {site} {finding}`. Each composed mention belongs to exactly one split by a keyed hash of its
characters, so a mention that is reserved for the test set is never written by any hospital: a lexicon
cannot know it, while its modifiers, heads and endings are all learnable.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LABELS: tuple[str, ...] = ("Anatomy", "Disease", "Dosage", "Drug", "Procedure")
NOTE_TYPES: tuple[str, ...] = ("admission", "discharge", "nursing", "pathology", "progress", "radiology")

# Shares of the composed mentions that only devel or only test may use; hospitals have the rest.
_RESERVED_DEVEL = 0.20
_RESERVED_TEST = 0.40
_MAX_DRAWS = 2000
_SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """One section of a note type.

    Attributes:
        headers: Ways to write the section's header; each hospital keeps to one.
        templates: Its sentences or rows, in the template language of `synthetic_notes`.
        rows: Whether the templates are rows of a list or table rather than sentences.
    """

    headers: tuple[str, ...]
    templates: tuple[str, ...]
    rows: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Lexicon:
    """Everything that is written in one language for one audience (the hospitals, or the public corpus).

    Attributes:
        language: `en` or `zh`.
        locale: The Faker locale that names and places come from.
        joiner: What stands between two sentences of a paragraph.
        parts: Word lists by part name.
        patterns: Patterns over parts by entity type; one that stands twice is drawn twice as often.
        common: Whole mentions by entity type that every split of this audience shares.
        sections: Sections by note type, in writing order.
        titles: The title of each note type.
        shorthand: Full form to abbreviation; each hospital uses some of them.
        confusions: Characters that are mistaken for each other, where typing errors are not letter swaps.
        date_formats: `strftime` formats, one per house style.
        identity: Ways to write the patient line, with PHI slots.
        namesakes: Surnames of staff that are also words of diseases or places.
    """

    language: str
    locale: str
    joiner: str
    parts: Mapping[str, tuple[str, ...]]
    patterns: Mapping[str, tuple[str, ...]]
    common: Mapping[str, tuple[str, ...]]
    sections: Mapping[str, tuple[Section, ...]]
    titles: Mapping[str, str]
    shorthand: Mapping[str, str]
    confusions: Mapping[str, str]
    date_formats: tuple[str, ...]
    identity: tuple[str, ...]
    namesakes: tuple[str, ...]


def listed(text: str) -> tuple[str, ...]:
    """Return the items of a list that is written with commas, Latin or Chinese."""
    return tuple(item.strip() for item in re.split("[,、]", text))


def stable_fraction(*key: object) -> float:
    """Return a number in [0, 1) that depends on `key` alone, on every machine and in every process."""
    digest = hashlib.blake2b("/".join(str(part) for part in key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def reserved_split(mention: str, *, seed: int) -> str:
    """Return the one split (`train`, `devel` or `test`) that may write the composed `mention`."""
    place = stable_fraction("mention", seed, mention.casefold())
    if place < _RESERVED_TEST:
        return "test"
    return "devel" if place < _RESERVED_TEST + _RESERVED_DEVEL else "train"


def house_subset(items: Sequence[str], share: float, *key: object) -> tuple[str, ...]:
    """Return the `share` of `items` (at least two) that the house named by `key` uses, in their order."""
    count = min(len(items), max(2, math.ceil(share * len(items))))
    kept = sorted(set(items), key=lambda item: stable_fraction(*key, item))[:count]
    return tuple(item for item in items if item in set(kept))


class MentionGrammar:
    """Draws mentions for one split, and for a hospital's training notes from its own share of the parts.

    Args:
        lexicon: The language and audience.
        split: `train`, `devel` or `test`.
        seed: The corpus seed, which also keys the reservation of mentions.
        house: The hospital whose dialect it is, or None for the whole grammar.
        share: The part of every word list that a house uses, in (0, 1].
        common_rate: How often a mention is a common one, in [0, 1].
        unseen_rate: How often devel or test draw a mention reserved for them, in [0, 1].
    """

    def __init__(
        self,
        lexicon: Lexicon,
        *,
        split: str,
        seed: int,
        house: int | None,
        share: float = 0.6,
        common_rate: float = 0.35,
        unseen_rate: float = 0.55,
    ) -> None:
        """Choose the house's share of the parts."""
        self._split = split
        self._seed = seed
        self._common_rate = common_rate
        self._unseen_rate = 0.0 if split == "train" else unseen_rate
        self._patterns = lexicon.patterns
        self._all_common = {mention.casefold() for words in lexicon.common.values() for mention in words}
        self._parts = dict(lexicon.parts)
        self._common = dict(lexicon.common)
        if house is not None:
            self._parts = {n: house_subset(w, share, seed, house, n) for n, w in lexicon.parts.items()}
            self._common = {n: house_subset(w, share, seed, house, n) for n, w in lexicon.common.items()}

    def draw(self, label: str, rng: random.Random) -> str:
        """Return a mention of `label`."""
        if rng.random() < self._unseen_rate:
            return self._compose(label, self._split, rng)
        if rng.random() < self._common_rate:
            return rng.choice(self._common[label])
        return self._compose(label, "train", rng)

    def _compose(self, label: str, split: str, rng: random.Random) -> str:
        """Compose mentions until one belongs to `split`."""
        for _ in range(_MAX_DRAWS):
            pattern = rng.choice(self._patterns[label])
            mention = _SLOT.sub(lambda slot: rng.choice(self._parts[slot[1]]), pattern)
            if mention.casefold() in self._all_common:
                continue
            if reserved_split(mention, seed=self._seed) == split:
                return mention
        # With the shipped word lists every split owns hundreds of mentions of every type.
        raise RuntimeError(f"The grammar has no {label} mention for the {split} split.")
