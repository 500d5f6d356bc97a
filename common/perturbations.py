"""Random changes of a note that keep its entities: what augmentation trains on and robustness is measured by.

Each operation reads a note and says which words it changes, as `Edit`s; `common.text_edits` moves the spans.
No operation crosses an entity's border or removes an entity, so the labels of the result are valid IOB2 and
there are as many entities as before. Words outside entities change in `synonym`, `insertion`, `replacement`,
`swap` and `deletion` (Wei and Zou, "EDA", EMNLP 2019); entities in `mention`; words of either kind, under
their own tag, in `label_wise` (Dai and Adel, COLING 2020), `case` and `typo`.

Randomness is an argument: a seeded `random.Random`, or `random.SystemRandom` where privacy needs secrets.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from common.errors import ValidationError
from common.labels import OUTSIDE
from common.records import EntitySpan, Note
from common.text_edits import Edit, EditConflict, apply_edits
from common.tokenization import words_of
from common.validation import nearest
from common.word_splitter import WordSplitter

_SPLITTER = WordSplitter()
_SHORTEST_FOR_TYPO = 4
_KEYBOARD_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_NEIGHBOURS = {
    key: row[max(0, i - 1) : i] + row[i + 1 : i + 2] for row in _KEYBOARD_ROWS for i, key in enumerate(row)
}


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What operations take other words from.

    Attributes:
        synonyms: Synonyms by lower-case word.
        mentions: Mentions by entity type.
        words: Words by IOB2 tag, `O` included.
        fillers: Words outside entities, for insertion and replacement.
    """

    synonyms: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    mentions: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    fillers: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Word:
    """One word of a note.

    Attributes:
        start: First character.
        end: One past the last character.
        text: The characters.
        tag: Its IOB2 tag, or None where an entity covers only a part of it: such a word is left alone.
    """

    start: int
    end: int
    text: str = field(repr=False)
    tag: str | None

    @property
    def is_free(self) -> bool:
        """Whether it is outside entities and more than punctuation, so that it can go, move or be replaced."""
        return self.tag == OUTSIDE and any(c.isalnum() for c in self.text)


def words_with_tags(note: Note) -> list[Word]:
    """Return a note's words with the tags that its spans give them."""
    words, spans = [], iter(note.spans)
    span: EntitySpan | None = next(spans, None)
    previous: EntitySpan | None = None
    for start, end in words_of(note, _SPLITTER):
        while span is not None and span.end <= start:
            span = next(spans, None)
        tag: str | None = OUTSIDE
        if span is not None and span.start < end:
            whole = span.start <= start and end <= span.end
            tag = f"{'I' if span is previous else 'B'}-{span.label}" if whole else None
            previous = span
        words.append(Word(start=start, end=end, text=note.text[start:end], tag=tag))
    return words


def gather(notes: Iterable[Note], *, synonyms: Mapping[str, tuple[str, ...]] | None = None) -> Sources:
    """Return what the notes themselves hold: mentions by type, words by tag, and fillers.

    Args:
        notes: The notes of one unit, or of a site where the plan allows it.
        synonyms: Public synonyms to go with them.
    """
    mentions: dict[str, dict[str, None]] = {}
    words: dict[str, dict[str, None]] = {}
    fillers: dict[str, None] = {}
    for note in notes:
        for span in note.spans:
            mentions.setdefault(span.label, {})[note.text[span.start : span.end]] = None
        for word in words_with_tags(note):
            if word.tag is not None and any(c.isalnum() for c in word.text):
                words.setdefault(word.tag, {})[word.text] = None
            if word.is_free:
                fillers[word.text] = None
    return Sources(
        synonyms=synonyms or {},
        mentions={label: tuple(found) for label, found in mentions.items()},
        words={tag: tuple(found) for tag, found in words.items()},
        fillers=tuple(fillers),
    )


Operation = Callable[[Note, float, Sources, random.Random], list[Edit]]


def perturb(note: Note, operation: str, rate: float, sources: Sources, rng: random.Random) -> Note:
    """Return the note after one operation, or the note itself where the result would blur an entity's border.

    Args:
        note: The note.
        operation: One of `PERTURBATIONS`.
        rate: The chance, in [0, 1], that a word (or mention) that can be changed is.
        sources: Where other words come from.
        rng: The randomness.

    Raises:
        ValidationError: The operation is unknown.
    """
    if operation not in PERTURBATIONS:
        hint = nearest(operation, PERTURBATIONS)
        raise ValidationError(
            f"operation is {operation!r}; it must be one of {', '.join(PERTURBATIONS)}."
            + (f" Did you mean {hint!r}?" if hint else "")
        )
    edits = PERTURBATIONS[operation](note, rate, sources, rng)
    try:
        changed = apply_edits(note, edits)
    except EditConflict:
        return note
    # In running text a new word could grow together with an entity beside it; then nothing is changed.
    pairs = zip(_clear(note), _clear(changed), strict=True)
    return changed if all(after or not before for before, after in pairs) else note


def _clear(note: Note) -> list[bool]:
    """Return of each entity whether its first and last border are borders of words, and whether a word is its own.

    A word that two entities share is the first one's, as in training.
    """
    words = words_of(note, _SPLITTER)
    starts, ends = {start for start, _ in words}, {end for _, end in words}
    owners = {
        next((i for i, span in enumerate(note.spans) if span.start < end and start < span.end), None)
        for start, end in words
    }
    return [
        clear
        for i, span in enumerate(note.spans)
        for clear in (span.start in starts, span.end in ends, i in owners)
    ]


def _synonym(note: Note, rate: float, sources: Sources, rng: random.Random) -> list[Edit]:
    """Replace words outside entities by synonyms, in the word's own case."""
    edits = []
    for word in words_with_tags(note):
        known = sources.synonyms.get(word.text.lower(), ()) if word.is_free else ()
        if known and rng.random() < rate:
            edits.append(_replaced(word, _cased(rng.choice(known), word.text)))
    return edits


def _insertion(note: Note, rate: float, sources: Sources, rng: random.Random) -> list[Edit]:
    """Put a word after words outside entities: a synonym of theirs, or another word of the source."""
    edits = []
    for word in words_with_tags(note):
        if word.is_free and rng.random() < rate:
            choices = sources.synonyms.get(word.text.lower(), ()) or sources.fillers
            if choices:
                new = rng.choice(choices)
                edits.append(_replaced(word, word.text + _joint(word.text, new) + new))
    return edits


def _replacement(note: Note, rate: float, sources: Sources, rng: random.Random) -> list[Edit]:
    """Replace words outside entities by other such words."""
    edits = []
    for word in words_with_tags(note):
        if word.is_free and rng.random() < rate:
            new = _other(sources.fillers, word.text, rng)
            if new is not None:
                edits.append(_replaced(word, new))
    return edits


def _label_wise(note: Note, rate: float, sources: Sources, rng: random.Random) -> list[Edit]:
    """Replace words by other words of the same tag."""
    edits = []
    for word in words_with_tags(note):
        if word.tag is not None and any(c.isalnum() for c in word.text) and rng.random() < rate:
            new = _other(sources.words.get(word.tag, ()), word.text, rng)
            if new is not None:
                edits.append(_replaced(word, new))
    return edits


def _mention(note: Note, rate: float, sources: Sources, rng: random.Random) -> list[Edit]:
    """Replace entities by other mentions of their type."""
    edits = []
    for span in note.spans:
        if rng.random() < rate:
            new = _other(sources.mentions.get(span.label, ()), note.text[span.start : span.end], rng)
            if new is not None:
                edits.append(Edit(start=span.start, end=span.end, replacement=new))
    return edits


def _swap(note: Note, rate: float, _sources: Sources, rng: random.Random) -> list[Edit]:
    """Let neighbouring words outside entities change places; each word moves at most once."""
    edits: list[Edit] = []
    moved = False
    for first, second in pairwise(words_with_tags(note)):
        moved = not moved and first.is_free and second.is_free and rng.random() < rate
        if moved:
            edits += [_replaced(first, second.text), _replaced(second, first.text)]
    return edits


def _deletion(note: Note, rate: float, _sources: Sources, rng: random.Random) -> list[Edit]:
    """Take words outside entities out, with one of the spaces around them; one word at least stays."""
    words = words_with_tags(note)
    gone = [i for i, word in enumerate(words) if word.is_free and rng.random() < rate]
    if gone and len(gone) == len(words):
        del gone[rng.randrange(len(gone))]
    edits = []
    for i in gone:
        word, text = words[i], note.text
        before = word.start == 0 or text[word.start - 1].isspace()
        follows = words[i + 1].start if i + 1 < len(words) else len(text)
        # Only plain white space goes with a word; control characters between words stay where they are.
        if before and text[word.end : follows].isspace():
            edits.append(Edit(start=word.start, end=follows, replacement=""))
        elif before:
            edits.append(Edit(start=word.start, end=word.end, replacement=""))
        else:
            edits.append(_replaced(word, " "))
    return edits


def _case(note: Note, rate: float, _sources: Sources, rng: random.Random) -> list[Edit]:
    """Write words in capitals, in small letters or with a capital first."""
    edits = []
    for word in words_with_tags(note):
        if word.tag is not None and rng.random() < rate:
            forms = {word.text.upper(), word.text.lower(), word.text[:1].upper() + word.text[1:].lower()}
            choices = sorted(forms - {word.text})
            if choices:
                edits.append(_replaced(word, rng.choice(choices)))
    return edits


def _typo(note: Note, rate: float, _sources: Sources, rng: random.Random) -> list[Edit]:
    """Mistype words of at least four letters, never their first letter."""
    edits = []
    for word in words_with_tags(note):
        long_enough = len(word.text) >= _SHORTEST_FOR_TYPO and word.text.isalpha()
        if word.tag is not None and long_enough and rng.random() < rate:
            edits.append(_replaced(word, _mistyped(word.text, rng)))
    return edits


def _mistyped(text: str, rng: random.Random) -> str:
    """Swap two letters, drop one, double one, or hit the key beside it."""
    at = rng.randrange(1, len(text) - 1)
    kind = rng.randrange(4)
    if kind == 0:
        return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    if kind == 1:
        return text[:at] + text[at + 1 :]
    if kind == 2:
        return text[: at + 1] + text[at:]
    beside = _NEIGHBOURS.get(text[at].lower(), text[at])
    new = rng.choice(beside)
    return text[:at] + (new.upper() if text[at].isupper() else new) + text[at + 1 :]


def _replaced(word: Word, text: str) -> Edit:
    """Return the edit that writes `text` in the place of a word."""
    return Edit(start=word.start, end=word.end, replacement=text)


def _other(choices: tuple[str, ...], own: str, rng: random.Random) -> str | None:
    """Return one of the choices that is not the text itself, or None."""
    rest = [choice for choice in choices if choice != own]
    return rng.choice(rest) if rest else None


def _cased(new: str, old: str) -> str:
    """Give a word the capitals of the one whose place it takes."""
    if len(old) > 1 and old.isupper():
        return new.upper()
    return new[:1].upper() + new[1:] if old[:1].isupper() else new


def _joint(first: str, second: str) -> str:
    """Return what separates two words: nothing in scripts that are written without spaces."""
    return "" if len(_SPLITTER.split(first[-1:] + second[:1])) == 2 else " "


PERTURBATIONS: Mapping[str, Operation] = {
    "synonym": _synonym,
    "insertion": _insertion,
    "replacement": _replacement,
    "label_wise": _label_wise,
    "mention": _mention,
    "swap": _swap,
    "deletion": _deletion,
    "case": _case,
    "typo": _typo,
}
"""The operations by name. Back-translation needs models and is in `client.back_translation`."""
