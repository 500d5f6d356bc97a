"""Notes into windows of word pieces for a Hugging Face encoder, and predictions back onto the notes.

- Only a word's first piece carries its label; further pieces, special tokens and padding are -100, so that
  loss and metrics count each word once.
- A note longer than `max_tokens` becomes windows that overlap by at most `stride` pieces and begin and end at
  word borders. Each word is *owned* by exactly one window, the one in which it has the most context: the
  one whose nearer end is farthest away, where the note's own ends count as infinitely far.
- A word that the tokenizer deletes altogether (control characters, say) becomes one unknown token, so that
  every word has a prediction. A word of more than `capacity - stride` pieces is cut to that many.
- A window never crosses a note, so it never crosses a privacy unit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from common.errors import DataError, ModelError, ValidationError
from common.labels import LabelSchema, WordTags, spans_to_tags, tags_to_spans
from common.records import EntitySpan, Example, Note
from common.validation import require_choice, require_int
from common.word_splitter import WordSplitter

IGNORED = -100
UNITS = ("record", "document", "patient")
# So many notes go to the tokenizer at once: enough for its speed, few enough for flat memory.
_NOTES_PER_CALL = 256

Ids = NDArray[np.int32]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pieces:
    """The pieces of one note: ids `(pieces,)`, and where each word starts, `(words + 1,)`."""

    ids: Ids = field(repr=False)
    starts: NDArray[np.int64] = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Frame:
    """The special tokens around a window, and the id that stands for a word without pieces."""

    prefix: Ids
    suffix: Ids
    unknown_id: int | None


def load_tokenizer(name_or_path: str | Path, *, local_files_only: bool = False) -> PreTrainedTokenizerBase:
    """Open a fast tokenizer, with the leading space that byte-level ones need for words.

    Raises:
        ModelError: The name or folder has no tokenizer, or only a slow one.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(name_or_path), local_files_only=local_files_only, add_prefix_space=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{name_or_path} has no tokenizer that can be opened ({type(error).__name__}); "
            "give a model folder or the name of a model."
        ) from error
    _require_fast(tokenizer)
    return tokenizer


def words_of(note: Note, splitter: WordSplitter | None = None) -> tuple[tuple[int, int], ...]:
    """Return the note's own words, or else those that the splitter finds."""
    return note.words if note.words is not None else (splitter or WordSplitter()).split(note.text)


def gold_tags(note: Note, schema: LabelSchema, splitter: WordSplitter | None = None) -> WordTags:
    """Return the tags of the note's words, with counts of spans that were widened or lost."""
    return spans_to_tags(note.spans, words_of(note, splitter), schema)


def unit_id(note: Note, unit: str) -> str:
    """Return the id of the note's privacy unit.

    Raises:
        ValidationError: The unit is none of record, document and patient.
        DataError: The note has no such id; a unit is never replaced by another.
    """
    require_choice("unit", unit, UNITS)
    found = {"record": note.note_id, "document": note.document_id, "patient": note.patient_id}[unit]
    if found is None:
        raise DataError(
            f"note {note.note_id} has no {unit} id, which the unit {unit!r} needs; "
            f"add {unit} ids to the data, or choose another unit."
        )
    return found


def encode(
    notes: Iterable[Note],
    tokenizer: PreTrainedTokenizerBase,
    schema: LabelSchema,
    *,
    max_tokens: int,
    stride: int,
    unit: str = "record",
    splitter: WordSplitter | None = None,
) -> list[Example]:
    """Turn notes into windows, in order; a note without words has none.

    Args:
        notes: The notes; spans are labelled with entity types.
        tokenizer: A fast tokenizer.
        schema: The tag ids.
        max_tokens: Pieces of a window, special tokens included, at least 8.
        stride: Most pieces that two neighbouring windows share, from 0 to half of a window.
        unit: The privacy unit whose id the examples carry: record, document or patient.
        splitter: Splits notes that have no words of their own.

    Raises:
        ValidationError: A size or the unit is out of range.
        DataError: A note lacks the unit's id.
        ModelError: The tokenizer is slow, or cannot encode words.
    """
    examples = iter_examples(
        notes, tokenizer, schema, max_tokens=max_tokens, stride=stride, unit=unit, splitter=splitter
    )
    return list(examples)


def iter_examples(
    notes: Iterable[Note],
    tokenizer: PreTrainedTokenizerBase,
    schema: LabelSchema,
    *,
    max_tokens: int,
    stride: int,
    unit: str = "record",
    splitter: WordSplitter | None = None,
) -> Iterator[Example]:
    """Yield what `encode` returns, a few hundred notes at a time."""
    require_choice("unit", unit, UNITS)
    _require_fast(tokenizer)
    frame = _frame(tokenizer)
    require_int("max_tokens", max_tokens, minimum=8, maximum=1 << 20)
    capacity = max_tokens - len(frame.prefix) - len(frame.suffix)
    require_int("stride", stride, minimum=0, maximum=capacity // 2)
    splitter = splitter or WordSplitter()
    remaining = iter(notes)
    while chunk := list(islice(remaining, _NOTES_PER_CALL)):
        words = [words_of(note, splitter) for note in chunk]
        all_pieces = _tokenize(chunk, words, tokenizer, frame.unknown_id, capacity - stride)
        for note, offsets, pieces in zip(chunk, words, all_pieces, strict=True):
            tags = np.asarray(spans_to_tags(note.spans, offsets, schema).tag_ids, dtype=np.int64)
            yield from _examples(note, unit_id(note, unit), tags, pieces, frame, capacity, stride)


def predicted_tags(
    note: Note,
    examples: Sequence[Example],
    predictions: Sequence[Sequence[int] | NDArray[np.integer]],
    *,
    splitter: WordSplitter | None = None,
) -> list[int]:
    """Return one predicted tag id per word, each from the window that owns the word.

    Args:
        note: The note.
        examples: All of its windows, in any order.
        predictions: One tag id per piece of each window, `(tokens,)`; padding after them is ignored.
        splitter: The splitter that `encode` used.

    Raises:
        ValidationError: Windows are of another note, are missing or come twice, or predictions are too short.
    """
    tags = np.full(len(words_of(note, splitter)), -1, dtype=np.int64)
    num_owned = 0
    for example, prediction in zip(examples, predictions, strict=True):
        if example.note_id != note.note_id or len(prediction) < example.num_tokens:
            raise ValidationError(
                f"a window of note {example.note_id!r} with {len(prediction)} predictions was given for note "
                f"{note.note_id!r}; give the note's own windows, with a prediction per piece."
            )
        owned = example.words >= 0
        tags[example.words[owned]] = np.asarray(prediction)[: example.num_tokens][owned]
        num_owned += int(owned.sum())
    if num_owned != len(tags) or (tags < 0).any():
        raise ValidationError(
            f"the windows of note {note.note_id!r} own {num_owned} words of {len(tags)}; "
            "give all of them, once each."
        )
    result: list[int] = tags.tolist()
    return result


def stitch(
    note: Note,
    examples: Sequence[Example],
    predictions: Sequence[Sequence[int] | NDArray[np.integer]],
    schema: LabelSchema,
    *,
    splitter: WordSplitter | None = None,
) -> tuple[EntitySpan, ...]:
    """Return the predicted entities at exact characters of the note's text; arguments as in `predicted_tags`.

    Tags are read strictly, as the metrics read them: an `I-` without its `B-` is no entity.
    """
    tags = predicted_tags(note, examples, predictions, splitter=splitter)
    return tags_to_spans(tags, words_of(note, splitter), schema)


def _require_fast(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise unless the tokenizer can say which word a piece is of."""
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"{type(tokenizer).__name__} is a slow tokenizer; choose a model with a tokenizer.json, "
            "which alone tells which word a piece belongs to."
        )


def _call(tokenizer: PreTrainedTokenizerBase, batch: list[list[str]], **options: bool) -> Any:
    """Encode lists of words, neither cut nor padded."""
    try:
        return tokenizer(
            batch, is_split_into_words=True, truncation=False, padding=False, verbose=False, **options
        )
    except (ValueError, AssertionError) as error:
        raise ModelError(
            f"{type(tokenizer).__name__} cannot encode words; "
            "open it with load_tokenizer, which sets add_prefix_space."
        ) from error


def _frame(tokenizer: PreTrainedTokenizerBase) -> _Frame:
    """Find the special tokens by encoding one word with them."""
    encoded = _call(tokenizer, [["a"]], return_special_tokens_mask=True)
    ids = np.asarray(encoded["input_ids"][0], dtype=np.int32)
    (inner,) = np.nonzero(np.asarray(encoded["special_tokens_mask"][0]) == 0)
    if not len(inner):
        raise ModelError(
            f"{type(tokenizer).__name__} gives no piece for the word 'a'; it is not a text tokenizer."
        )
    unknown_id = tokenizer.unk_token_id
    return _Frame(
        prefix=ids[: inner[0]],
        suffix=ids[inner[-1] + 1 :],
        unknown_id=None if unknown_id is None else int(unknown_id),
    )


def _tokenize(
    notes: Sequence[Note],
    words: Sequence[Sequence[tuple[int, int]]],
    tokenizer: PreTrainedTokenizerBase,
    unknown_id: int | None,
    longest_word: int,
) -> list[_Pieces]:
    """Return the pieces of each note, without special tokens."""
    batch = [
        [note.text[start:end] for start, end in offsets] for note, offsets in zip(notes, words, strict=True)
    ]
    encoded = _call(tokenizer, batch, add_special_tokens=False)
    return [
        _word_pieces(
            np.asarray(encoding.ids, dtype=np.int32),
            np.asarray(encoding.word_ids, dtype=np.int64),
            len(offsets),
            unknown_id,
            longest_word,
        )
        for encoding, offsets in zip(encoded.encodings, words, strict=True)
    ]


def _word_pieces(
    ids: Ids, word_ids: NDArray[np.int64], num_words: int, unknown_id: int | None, longest_word: int
) -> _Pieces:
    """Give every word at least one piece and at most `longest_word`."""
    counts = np.bincount(word_ids, minlength=num_words)
    (missing,) = np.nonzero(counts == 0)
    if len(missing):
        if unknown_id is None:
            raise ModelError(
                "the tokenizer deletes some words and has no unknown token to put in their place."
            )
        ids = np.insert(ids, np.searchsorted(word_ids, missing), unknown_id)
        counts[missing] = 1
    if len(counts) and counts.max() > longest_word:
        first = np.repeat(np.cumsum(counts) - counts, counts)
        ids = ids[np.arange(len(ids)) - first < longest_word]
        counts = np.minimum(counts, longest_word)
    return _Pieces(ids=ids, starts=np.concatenate(([0], np.cumsum(counts))))


def _windows(starts: NDArray[np.int64], capacity: int, stride: int) -> list[tuple[int, int]]:
    """Return word ranges of at most `capacity` pieces that overlap by at most `stride` pieces.

    No word has more than `capacity - stride` pieces, so each window reaches at least one new word.
    """
    num_words = len(starts) - 1
    windows: list[tuple[int, int]] = []
    first, end = 0, 0
    while end < num_words:
        end = int(np.searchsorted(starts, starts[first] + capacity, side="right")) - 1
        windows.append((first, end))
        first = int(np.searchsorted(starts, starts[end] - stride, side="left"))
    return windows


def _owners(starts: NDArray[np.int64], windows: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """Return for each word the window in which it has the most context; the earlier one where equal."""
    num_words = len(starts) - 1
    owners = np.zeros(num_words, dtype=np.int64)
    best = np.full(num_words, -1, dtype=np.int64)
    boundless = int(starts[-1]) + 1
    for number, (first, end) in enumerate(windows):
        left = starts[first:end] - starts[first] if first else np.full(end - first, boundless)
        right = (
            starts[end] - starts[first + 1 : end + 1] if end < num_words else np.full(end - first, boundless)
        )
        context = np.minimum(left, right)
        better = context > best[first:end]
        owners[first:end][better] = number
        best[first:end][better] = context[better]
    return owners


def _examples(
    note: Note, unit: str, tags: NDArray[np.int64], pieces: _Pieces, frame: _Frame, capacity: int, stride: int
) -> Iterator[Example]:
    """Yield the windows of one note."""
    windows = _windows(pieces.starts, capacity, stride)
    owners = _owners(pieces.starts, windows)
    for number, (first, end) in enumerate(windows):
        begin = int(pieces.starts[first])
        input_ids = np.concatenate((frame.prefix, pieces.ids[begin : pieces.starts[end]], frame.suffix))
        owned = first + np.nonzero(owners[first:end] == number)[0]
        positions = pieces.starts[owned] - begin + len(frame.prefix)
        labels = np.full(len(input_ids), IGNORED, dtype=np.int64)
        words = np.full(len(input_ids), -1, dtype=np.int32)
        labels[positions], words[positions] = tags[owned], owned
        yield Example(note_id=note.note_id, unit_id=unit, input_ids=input_ids, labels=labels, words=words)
