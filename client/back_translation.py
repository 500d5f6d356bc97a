"""Back-translation by any pair of Hugging Face sequence-to-sequence models: another wording, the same entities.

Entities travel as placeholders. A note is given back unchanged, with the reason counted, where a placeholder
got lost, came twice, or grew together with a word: an entity is never guessed. Adapter module (transformers).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from common.errors import ModelError
from common.model import quiet
from common.records import EntitySpan, Note
from common.tokenization import words_of
from common.word_splitter import WordSplitter

LOST = "a placeholder got lost"
EMPTY = "nothing came back"
_STEM = "ENT"
_SENTENCE = re.compile(r"(?<=[.!?。！？])\s+|\s*\n\s*")
_MOST_PIECES = 256
_SENTENCES_PER_CALL = 16
_KEPT = 4096

OnRefusal = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Translator:
    """One direction: greedy and without randomness, so that a note always gives the same translation."""

    model: Any = field(repr=False)
    tokenizer: Any = field(repr=False)

    @classmethod
    def open(cls, folder: str) -> Translator:
        """Open a model folder, without a network.

        Raises:
            ModelError: It holds no sequence-to-sequence model with a tokenizer.
        """
        if not Path(folder).is_dir():
            raise ModelError(f"{folder} is not a folder; give the folder of a saved translation model.")
        try:
            with quiet():
                model = AutoModelForSeq2SeqLM.from_pretrained(folder, local_files_only=True)
                tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
            raise ModelError(
                f"{folder} cannot be opened as a translation model ({type(error).__name__}); give a folder that "
                "transformers saved a sequence-to-sequence model and its tokenizer in."
            ) from error
        return cls(model=model.eval(), tokenizer=tokenizer)

    def translate(self, sentences: Sequence[str]) -> list[str]:
        """Return the translation of each sentence."""
        found: list[str] = []
        for start in range(0, len(sentences), _SENTENCES_PER_CALL):
            batch = self.tokenizer(
                list(sentences[start : start + _SENTENCES_PER_CALL]),
                return_tensors="pt",
                padding=True,
                truncation=True,
                max_length=_MOST_PIECES,
            )
            with torch.inference_mode():
                ids = self.model.generate(
                    input_ids=batch["input_ids"],
                    attention_mask=batch["attention_mask"],
                    max_new_tokens=min(_MOST_PIECES, 2 * int(batch["input_ids"].shape[1]) + 8),
                    do_sample=False,
                    num_beams=1,
                )
            found += self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return found


class BackTranslator:
    """Translates notes there and back.

    Args:
        there: Into another language.
        back: From that language.
    """

    def __init__(self, there: Translator, back: Translator) -> None:
        self._there = there
        self._back = back
        # Translation is the same every time, and slow; the notes that come again most are kept.
        self._kept: dict[tuple[str, tuple[EntitySpan, ...], bool], Note | str] = {}

    @classmethod
    def open(cls, folders: Sequence[str]) -> BackTranslator:
        """Open the pair of models.

        Raises:
            ModelError: One cannot be opened.
        """
        there, back = folders
        return cls(Translator.open(there), Translator.open(back))

    def translate(self, note: Note, *, on_refusal: OnRefusal = lambda reason: None) -> Note:
        """Return the note in other words, with its entities' own characters; or unchanged, with a reason."""
        key = (note.text, note.spans, note.words is None)
        if key not in self._kept:
            if len(self._kept) >= _KEPT:
                self._kept.clear()
            self._kept[key] = self._attempt(note)
        found = self._kept[key]
        if isinstance(found, str):
            on_refusal(found)
            return note
        return replace(note, text=found.text, spans=found.spans, words=found.words)

    def _attempt(self, note: Note) -> Note | str:
        """Return the translated note, or the reason why there is none."""
        names = _placeholders(note)
        pieces = list(_pieces(_hidden(note, names)))
        texts = [text for text, _ in pieces if text.strip()]
        answers = iter(self._back.translate(self._there.translate(texts)) if texts else [])
        hidden = "".join((next(answers).strip() if text.strip() else text) + gap for text, gap in pieces)
        if not hidden.strip():
            return EMPTY
        return _shown(note, hidden, names) or LOST


def _placeholders(note: Note) -> list[str]:
    """Return a word for each entity that does not occur in the note."""
    stem = _STEM
    while re.search(rf"(?<!\w){stem}", note.text):
        stem += "X"
    return [f"{stem}{i}" for i in range(len(note.spans))]


def _hidden(note: Note, names: Sequence[str]) -> str:
    """Return the text with placeholders in the place of entities."""
    parts, position = [], 0
    for span, name in zip(note.spans, names, strict=True):
        parts += [note.text[position : span.start], name]
        position = span.end
    return "".join([*parts, note.text[position:]])


def _pieces(text: str) -> Iterator[tuple[str, str]]:
    """Yield sentences or lines with the white space after each."""
    cuts = [(match.start(), match.end()) for match in _SENTENCE.finditer(text)]
    for (_, start), (end, after) in pairwise([(0, 0), *cuts, (len(text), len(text))]):
        yield text[start:end], text[end:after]


def _shown(note: Note, hidden: str, names: Sequence[str]) -> Note | None:
    """Return the note with its entities back in their places, or None where one is not there just once."""
    parts: list[str] = []
    spans: list[EntitySpan] = []
    position = length = 0
    owner = dict(zip(names, note.spans, strict=True))
    for match in re.finditer(
        "|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in names) or r"(?!)", hidden
    ):
        span = owner.pop(match.group(), None)
        if span is None:
            return None
        mention = note.text[span.start : span.end]
        parts += [hidden[position : match.start()], mention]
        start = length + match.start() - position
        length = start + len(mention)
        spans.append(EntitySpan(start=start, end=length, label=span.label))
        position = match.end()
    if owner:
        return None
    changed = replace(note, text="".join([*parts, hidden[position:]]), spans=tuple(spans), words=None)
    words = words_of(changed, WordSplitter())
    if not words:
        return None
    # A note that came as words goes on as words, by the common rule.
    return replace(changed, words=None if note.words is None else words)
