"""Word features for the head: the word's shape, and its part of speech by spaCy. Adapter module (spacy).

Ids start at 1; 0 says that nothing is known (a piece that is no word's first, padding).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import ModelError
from common.plan_augmentation import Features
from common.records import Example, Note
from common.tokenization import words_of

SHAPES = (
    "lower",
    "capital",
    "capitals",
    "mixed",
    "digits",
    "with-digits",
    "caseless",
    "punctuation",
    "other",
)
COARSE = ("function", "number", "punctuation", "symbol", "content")
"""What spaCy's lexical rules tell without a model."""
UNIVERSAL = (
    *("ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "INTJ", "NOUN", "NUM", "PART", "PRON", "PROPN", "PUNCT"),
    *("SCONJ", "SYM", "VERB", "X", "SPACE"),
)
_BLANK = "blank:"
_PROBE = ("the", "patient", "has", "pain")


@dataclass(frozen=True, kw_only=True)
class WordFeatures:
    """Turns words into feature ids.

    Attributes:
        section: The plan's `[features]`.
        pipeline: The spaCy pipeline, where the section has a tagger.
    """

    section: Features
    pipeline: Any = field(default=None, repr=False)

    @classmethod
    def open(cls, section: Features) -> WordFeatures:
        """Open what the section needs; nothing is ever downloaded.

        Raises:
            ModelError: The tagger is not installed, or does not tag.
        """
        return cls(section=section, pipeline=_pipeline(section.tagger) if section.tagger else None)

    def of(self, note: Note) -> NDArray[np.int32]:
        """Return the ids of a note's words, `(words, kinds)` int32."""
        words = [note.text[start:end] for start, end in words_of(note)]
        columns = []
        if self.section.shape:
            columns.append([1 + SHAPES.index(shape_of(word)) for word in words])
        if self.section.tagger:
            columns.append(self._tags(words))
        return np.asarray(columns, dtype=np.int32).reshape(len(columns), len(words)).T

    def add(self, examples: Sequence[Example], notes: Sequence[Note]) -> list[Example]:
        """Return the windows with the features of their words.

        Args:
            examples: All windows of the notes, note after note.
            notes: The notes, in order; a note may have no window.
        """
        found: list[Example] = []
        remaining = iter(notes)
        note, ids = None, np.zeros((0, 0), dtype=np.int32)
        for example in examples:
            # Two notes may share an id; a window that owns the first word begins a note.
            if note is None or note.note_id != example.note_id or 0 in example.words:
                note = next(n for n in remaining if n.note_id == example.note_id and words_of(n))
                ids = self.of(note)
            features = np.zeros((example.num_tokens, ids.shape[1]), dtype=np.int32)
            owned = example.words >= 0
            features[owned] = ids[example.words[owned]]
            found.append(replace(example, features=features))
        return found

    def _tags(self, words: Sequence[str]) -> list[int]:
        from spacy.tokens import Doc

        doc = Doc(self.pipeline.vocab, words=list(words))
        if self.section.tagger.startswith(_BLANK):
            return [1 + COARSE.index(_coarse(token)) for token in doc]
        for _, component in self.pipeline.pipeline:
            doc = component(doc)
        return [1 + UNIVERSAL.index(token.pos_) if token.pos_ in UNIVERSAL else 0 for token in doc]


def feature_sizes(section: Features) -> tuple[int, ...]:
    """Return how many ids each kind of feature has, 0 included."""
    tags = COARSE if section.tagger.startswith(_BLANK) else UNIVERSAL
    return (*((1 + len(SHAPES),) if section.shape else ()), *((1 + len(tags),) if section.tagger else ()))


def shape_of(word: str) -> str:
    """Return a word's shape, one of `SHAPES`."""
    if not any(c.isalnum() for c in word):
        return "punctuation"
    if any(c.isdigit() for c in word):
        return "digits" if not any(c.isalpha() for c in word) else "with-digits"
    if word.upper() == word.lower():
        return "caseless"
    if word.islower():
        return "lower"
    if word.isupper():
        return "capitals" if len(word) > 1 else "capital"
    if word[:1].isupper() and word[1:].islower():
        return "capital"
    return "mixed" if word[:1].isalpha() else "other"


def _coarse(token: Any) -> str:
    """Return what the rules say about a spaCy token, one of `COARSE`."""
    if token.is_punct or token.is_bracket or token.is_quote:
        return "punctuation"
    if token.like_num:
        return "number"
    if token.is_stop:
        return "function"
    return "content" if any(c.isalnum() for c in token.text) else "symbol"


def _pipeline(tagger: str) -> Any:
    """Open a spaCy pipeline."""
    import spacy

    try:
        if tagger.startswith(_BLANK):
            return spacy.blank(tagger.removeprefix(_BLANK))
        pipeline = spacy.load(tagger)
    except (OSError, ImportError, ValueError) as error:
        raise ModelError(
            f"features.tagger is {tagger!r}, which spaCy cannot open ({type(error).__name__}); give `blank:en` (or "
            "another language of spaCy), or the folder or installed package of a pipeline."
        ) from error
    opened = WordFeatures(section=Features(shape=False, tagger=tagger), pipeline=pipeline)
    if not any(opened._tags(_PROBE)):
        raise ModelError(
            f"features.tagger is {tagger!r}, a pipeline that gives no word a part of speech; give one that tags."
        )
    return pipeline
