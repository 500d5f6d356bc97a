"""Running a token classifier over notes: windows in, one tag per word and exact character spans out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from common.batching import batches_by_length, collate
from common.labels import LabelSchema
from common.metrics import EntityCounts, TokenCounts, count_entities, count_tokens
from common.model import autocast, autocast_dtype
from common.records import EntitySpan, Example, Note
from common.tokenization import encode, gold_tags, predicted_tags, stitch
from common.word_features import WordFeatures

_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How notes become windows; the plan's `[model]` and `[features]`, and the tokenizer."""

    tokenizer: Any = field(repr=False)
    schema: LabelSchema
    max_tokens: int
    stride: int
    features: WordFeatures | None = field(default=None, repr=False)

    def examples(self, notes: Iterable[Note], *, unit: str = "record") -> list[Example]:
        """Return the windows of notes, note after note."""
        notes = list(notes)
        found = encode(
            notes,
            self.tokenizer,
            self.schema,
            max_tokens=self.max_tokens,
            stride=self.stride,
            unit=unit,
        )
        return found if self.features is None else self.features.add(found, notes)

    @property
    def pad_id(self) -> int:
        """The tokenizer's padding id."""
        return int(self.tokenizer.pad_token_id or 0)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Addable counts of a model's predictions against gold spans; scores come from the sums."""

    entities: EntityCounts
    tokens: TokenCounts
    num_notes: int

    @property
    def micro_f1(self) -> float:
        """Strict entity F1 over all types, 0 to 1."""
        return self.entities.scores().micro.f1

    def to_dict(self) -> dict[str, Any]:
        """Return scores and counts as plain values for JSON and for tables."""
        table = self.entities.scores().to_dict()
        table["per_entity"] = table.pop("per_class")
        return {**table, "token": self.tokens.scores().to_dict()["per_class"], "num_notes": self.num_notes}


def predict_tags(
    model: nn.Module,
    examples: Sequence[Example],
    *,
    pad_id: int,
    precision: str = "auto",
    on_batch: Callable[[int, int], None] | None = None,
) -> list[NDArray[np.int64]]:
    """Return the most likely tag id of each piece of each window, `(tokens,)`, in the order given."""
    device = next(model.parameters()).device
    dtype = autocast_dtype(device, precision)
    position = {id(example): i for i, example in enumerate(examples)}
    tags: list[NDArray[np.int64]] = [np.zeros(0, dtype=np.int64)] * len(examples)
    was_training = model.training
    model.eval()
    done = 0
    with torch.inference_mode(), autocast(device, dtype):
        for batch in batches_by_length(examples, batch_size=_BATCH):
            inputs = collate(batch, pad_id).to(device)
            logits = model(**inputs.inputs).logits
            best = logits.argmax(dim=-1).cpu().numpy()
            for row, example in zip(best, batch, strict=True):
                tags[position[id(example)]] = row[: example.num_tokens].astype(np.int64)
            done += len(batch)
            if on_batch is not None:
                on_batch(done, len(examples))
    model.train(was_training)
    return tags


def predict_spans(
    model: nn.Module, notes: Sequence[Note], encoding: Encoding
) -> Iterator[tuple[Note, tuple[EntitySpan, ...]]]:
    """Yield each note with its predicted entities, at exact character offsets of its text."""
    for note, examples, tags in _by_note(model, notes, encoding):
        yield note, stitch(note, examples, tags, encoding.schema)


def evaluate(
    model: nn.Module,
    notes: Sequence[Note],
    encoding: Encoding,
    *,
    precision: str = "auto",
    on_batch: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Compare predictions with gold spans: entities as seqeval's strict mode counts them, and words by tag."""
    pairs = [
        (gold_tags(note, encoding.schema).tag_ids, predicted_tags(note, examples, tags))
        for note, examples, tags in _by_note(model, notes, encoding, precision=precision, on_batch=on_batch)
    ]
    return Evaluation(
        entities=count_entities(pairs, encoding.schema),
        tokens=count_tokens(pairs, encoding.schema),
        num_notes=len(notes),
    )


def _by_note(
    model: nn.Module,
    notes: Sequence[Note],
    encoding: Encoding,
    *,
    precision: str = "auto",
    on_batch: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[Note, list[Example], list[NDArray[np.int64]]]]:
    """Yield each note with its windows and their predicted tag ids."""
    examples = encoding.examples(notes)
    tags = predict_tags(model, examples, pad_id=encoding.pad_id, precision=precision, on_batch=on_batch)
    place = 0
    for note in notes:
        first = place
        while place < len(examples) and examples[place].note_id == note.note_id:
            place += 1
        yield note, examples[first:place], tags[first:place]
