"""Physical batches of examples: sorted by length to save padding, padded to their longest example.

A physical batch is about speed alone. What privacy rests on (which units are drawn, what one clip covers) is
decided before, in `client.sampling`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from common.errors import ValidationError
from common.records import Example
from common.tokenization import IGNORED
from common.validation import require_int


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """A padded batch for a token classifier; each tensor is `(batch, tokens)` int64, features have one more axis.

    Attributes:
        input_ids: Piece ids, padded with the tokenizer's padding id.
        attention_mask: 1 on pieces, 0 on padding.
        labels: Tag ids on owned first pieces, -100 elsewhere and on padding.
        features: `(batch, tokens, kinds)` int64 word features, where the windows have them.
    """

    input_ids: torch.Tensor = field(repr=False)
    attention_mask: torch.Tensor = field(repr=False)
    labels: torch.Tensor = field(repr=False)
    features: torch.Tensor | None = field(default=None, repr=False)

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        """What the model is called with."""
        given = {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        return given if self.features is None else {**given, "features": self.features}

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on a device."""
        return Batch(
            input_ids=self.input_ids.to(device, non_blocking=True),
            attention_mask=self.attention_mask.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            features=None if self.features is None else self.features.to(device, non_blocking=True),
        )


def collate(examples: Sequence[Example], pad_id: int) -> Batch:
    """Pad examples to the longest of them.

    Raises:
        ValidationError: There is no example.
    """
    if not examples:
        raise ValidationError("a batch holds no example; give at least one.")
    shape = (len(examples), max(example.num_tokens for example in examples))
    input_ids = np.full(shape, pad_id, dtype=np.int64)
    attention_mask = np.zeros(shape, dtype=np.int64)
    labels = np.full(shape, IGNORED, dtype=np.int64)
    for row, example in enumerate(examples):
        input_ids[row, : example.num_tokens] = example.input_ids
        attention_mask[row, : example.num_tokens] = 1
        labels[row, : example.num_tokens] = example.labels
    return Batch(
        input_ids=torch.from_numpy(input_ids),
        attention_mask=torch.from_numpy(attention_mask),
        labels=torch.from_numpy(labels),
        features=padded_features(examples),
    )


def padded_features(examples: Sequence[Example]) -> torch.Tensor | None:
    """Return the windows' features padded with 0, `(batch, tokens, kinds)` int64; None where there are none.

    Raises:
        ValidationError: Some windows have features and others have none.
    """
    given = [example.features for example in examples if example.features is not None]
    if not given:
        return None
    if len(given) != len(examples):
        raise ValidationError(
            "a batch holds windows with word features and windows without; encode all alike."
        )
    padded = np.zeros((len(given), max(len(rows) for rows in given), given[0].shape[1]), dtype=np.int64)
    for row, features in enumerate(given):
        padded[row, : len(features)] = features
    return torch.from_numpy(padded)


def batches_by_length(
    examples: Sequence[Example],
    *,
    batch_size: int | None = None,
    max_tokens_per_batch: int | None = None,
    generator: np.random.Generator | None = None,
    pool: int | None = None,
) -> list[list[Example]]:
    """Cut examples into batches of similar length; every example is in exactly one.

    Args:
        examples: Windows of any length.
        batch_size: Examples per batch (the last ones may have fewer); or
        max_tokens_per_batch: Most `examples x longest` of a batch; a longer example is alone in its batch.
        generator: Shuffles examples of equal length, and the batches; without it the order is fixed,
            short to long.
        pool: Examples that are sorted together after the shuffle; None sorts all. A smaller pool mixes
            examples better from epoch to epoch and wastes a little more padding. It needs a generator.

    Raises:
        ValidationError: Not exactly one of the two sizes is given, or a size is out of range.
    """
    if (batch_size is None) == (max_tokens_per_batch is None):
        raise ValidationError("exactly one of batch_size and max_tokens_per_batch must be given.")
    size = (
        require_int("batch_size", batch_size, minimum=1, maximum=1 << 20)
        if batch_size is not None
        else 1 << 20
    )
    tokens = 1 << 62
    if max_tokens_per_batch is not None:
        tokens = require_int("max_tokens_per_batch", max_tokens_per_batch, minimum=1, maximum=1 << 40)
    if pool is not None:
        require_int("pool", pool, minimum=size if batch_size is not None else 1, maximum=1 << 40)
        if generator is None:
            raise ValidationError("pool needs a generator; without one all examples are sorted together.")
    lengths = np.fromiter((example.num_tokens for example in examples), dtype=np.int64, count=len(examples))
    order = np.arange(len(examples)) if generator is None else generator.permutation(len(examples))
    batches = list(_cut(_sorted_in_pools(order, lengths, pool), lengths, size, tokens))
    if generator is not None:
        generator.shuffle(batches)
    return [[examples[index] for index in batch] for batch in batches]


def padding_waste(batches: Iterable[Sequence[Example]]) -> float:
    """Return the share of padding among all tokens that the padded batches hold, in `[0, 1)`."""
    used = padded = 0
    for batch in batches:
        lengths = [example.num_tokens for example in batch]
        used += sum(lengths)
        padded += max(lengths, default=0) * len(lengths)
    return 1.0 - used / padded if padded else 0.0


def _sorted_in_pools(order: np.ndarray, lengths: np.ndarray, pool: int | None) -> Iterator[list[int]]:
    """Yield pools of indices, each sorted by length; equal lengths keep their (shuffled) order."""
    step = pool or max(len(order), 1)
    for start in range(0, len(order), step):
        part = order[start : start + step]
        yield part[np.argsort(lengths[part], kind="stable")].tolist()


def _cut(pools: Iterable[list[int]], lengths: np.ndarray, size: int, tokens: int) -> Iterator[list[int]]:
    """Yield batches of at most `size` examples and `tokens` padded tokens, none across pools."""
    for pool in pools:
        batch: list[int] = []
        for index in pool:
            # The pool is sorted, so this example would be the longest of the batch.
            if batch and (len(batch) == size or (len(batch) + 1) * int(lengths[index]) > tokens):
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch
