"""Privacy units: grouping windows by unit, Poisson sampling, and physical batches that fit in memory.

A unit is what one clipped contribution covers. Whatever is chosen here about a unit (which of its windows
are kept, how they are weighted) depends on that unit and on public values alone, so that adding or
removing another unit changes nothing about it.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from common.batching import padded_features
from common.errors import DataError, ValidationError
from common.records import Example
from common.secure_random import SecureGenerator
from common.validation import require_float, require_int

IGNORED_LABEL = -100


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """One privacy unit with all windows that it contributes.

    Attributes:
        unit_id: The record, document or patient.
        windows: Every window of every note (and view) of the unit, in the order of the data.
        views: How many of the windows belong to each view of the unit, in order; empty for one view of all.

    Raises:
        ValidationError: The views do not add up to the windows.
    """

    unit_id: str
    windows: tuple[Example, ...] = field(repr=False)
    views: tuple[int, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        """Check that each window is of one view."""
        if self.views and sum(self.views) != len(self.windows):
            raise ValidationError(
                f"the views of a unit hold {sum(self.views)} windows and the unit has {len(self.windows)}."
            )

    @property
    def longest(self) -> int:
        """Pieces in the longest window."""
        return max(window.num_tokens for window in self.windows)

    @property
    def supervised(self) -> int:
        """Labelled words in all windows together."""
        return sum(_labelled(window) for window in self.windows)

    def weights(self) -> list[float]:
        """Return each window's weight: the unit's loss is the mean over views of a view's mean over words.

        A view without a labelled word weighs 0 and still counts as a view.
        """
        views = self.views or (len(self.windows),)
        remaining = iter(self.windows)
        weights: list[float] = []
        for size in views:
            words = sum(_labelled(window) for window in itertools.islice(remaining, size))
            weights += [1.0 / (words * len(views)) if words else 0.0] * size
        return weights


def _labelled(window: Example) -> int:
    """Return the labelled words of a window."""
    return int((window.labels != IGNORED_LABEL).sum())


def group_units(
    examples: Sequence[Example], *, max_windows_per_unit: int | None = None, key: bytes = b""
) -> tuple[Unit, ...]:
    """Group windows by privacy unit, in the order in which the units first appear.

    A unit with more than `max_windows_per_unit` windows keeps those with the smallest HMAC-SHA-256 of
    (unit id, index of the window within the unit): a rule that depends on the unit alone.

    Args:
        examples: The site's windows.
        max_windows_per_unit: The planned maximum, or None for no maximum.
        key: Public bytes that the choice is keyed with, such as the plan hash.

    Raises:
        DataError: A window has no unit id. There is no fallback: a guessed unit would void the guarantee.
    """
    if max_windows_per_unit is not None:
        require_int("max_windows_per_unit", max_windows_per_unit, minimum=1, maximum=1_000_000)
    grouped: dict[str, list[Example]] = {}
    for position, example in enumerate(examples, start=1):
        # The type says str, but a reader may still leave None here, and None must not become a unit.
        if not isinstance(example.unit_id, str) or not example.unit_id.strip():
            raise DataError(
                f"Window {position} of {len(examples)} (note {example.note_id!r}) has no unit id. "
                "Give every note the id of the plan's privacy unit, or plan for a unit that the data has."
            )
        grouped.setdefault(example.unit_id, []).append(example)
    return tuple(
        Unit(unit_id=unit_id, windows=_kept(unit_id, windows, max_windows_per_unit, key))
        for unit_id, windows in grouped.items()
    )


def _kept(unit_id: str, windows: list[Example], maximum: int | None, key: bytes) -> tuple[Example, ...]:
    """Return at most `maximum` windows, chosen by keyed hash, in their own order."""
    if maximum is None or len(windows) <= maximum:
        return tuple(windows)
    ranked = sorted(range(len(windows)), key=lambda index: _rank(unit_id, index, key))
    return tuple(windows[index] for index in sorted(ranked[:maximum]))


def _rank(unit_id: str, index: int, key: bytes) -> bytes:
    """Return the keyed hash that a window is ranked by; the length prefix keeps ids and indices apart."""
    name = unit_id.encode()
    message = len(name).to_bytes(8, "big") + name + index.to_bytes(8, "big")
    return hmac.new(key, b"fedward window v1" + message, hashlib.sha256).digest()


class PoissonSampler:
    """Draws logical batches: every unit is in a batch with probability `sampling_rate`, independently.

    Formal guarantees: Inclusion is decided by a secure generator, one independent coin for each unit, so
    each step is a Poisson-subsampled mechanism at rate `sampling_rate` under addition or removal of one
    unit. The size of a batch is sensitive; the denominator of a mean is `sampling_rate` times a public
    number of units, never this size.

    Args:
        units: The site's units.
        sampling_rate: The public rate q in `(0, 1]`.
        generator: Secret randomness, never seeded from the plan.

    Raises:
        ValidationError: The rate is out of range.
    """

    def __init__(self, units: Sequence[Unit], *, sampling_rate: float, generator: SecureGenerator) -> None:
        """Keep the units; draw nothing yet."""
        self.sampling_rate = require_float(
            "sampling_rate", sampling_rate, minimum=0.0, maximum=1.0, open_minimum=True
        )
        self._units = tuple(units)
        self._generator = generator

    def draw(self) -> tuple[Unit, ...]:
        """Return the next logical batch, in the order of the data; it may be empty."""
        mask = self._generator.bernoulli(len(self._units), probability=self.sampling_rate)
        return tuple(itertools.compress(self._units, mask))


@dataclass(frozen=True, kw_only=True, slots=True)
class PhysicalBatch:
    """Windows that go through the model together.

    The loss of a unit is the sum over its windows of `weights` times the window's loss. Windows of one
    unit need not be adjacent.

    Attributes:
        input_ids: `(windows, tokens)` int64.
        attention_mask: `(windows, tokens)` int64, 1 on pieces and 0 on padding.
        labels: `(windows, tokens)` int64, -100 where there is no label.
        units: `(windows,)` int64, from 0 to `num_units - 1`: which unit of this batch a window belongs to.
        weights: `(windows,)` float32, a function of the window's unit alone.
        num_units: Units in this batch.
        features: `(windows, tokens, kinds)` int64 word features, where the model takes them.
        offsets: `(windows, tokens, hidden)` float32 added to the word embeddings, in adversarial training.
        complete: False where the batch is a part of one large unit that the next batch goes on with.
    """

    input_ids: Tensor = field(repr=False)
    attention_mask: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    units: Tensor = field(repr=False)
    weights: Tensor = field(repr=False)
    num_units: int
    features: Tensor | None = field(default=None, repr=False)
    offsets: Tensor | None = field(default=None, repr=False)
    complete: bool = True

    @property
    def num_windows(self) -> int:
        """Rows of the batch."""
        return int(self.input_ids.shape[0])

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What the model is called with."""
        given = {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        return given if self.features is None else {**given, "features": self.features}

    def to(self, device: torch.device | str) -> PhysicalBatch:
        """Return the batch on another device."""
        return self._map(lambda tensor: tensor.to(device))

    def take(self, windows: Tensor) -> PhysicalBatch:
        """Return the batch with the given rows alone, in the given order; units keep their numbers."""
        return self._map(lambda tensor: tensor[windows])

    def _map(self, change: Callable[[Tensor], Tensor]) -> PhysicalBatch:
        """Return the batch with each tensor changed."""
        return replace(
            self,
            input_ids=change(self.input_ids),
            attention_mask=change(self.attention_mask),
            labels=change(self.labels),
            units=change(self.units),
            weights=change(self.weights),
            features=None if self.features is None else change(self.features),
            offsets=None if self.offsets is None else change(self.offsets),
        )


def physical_batches(
    units: Sequence[Unit], *, token_budget: int, pad_token_id: int = 0
) -> Iterator[PhysicalBatch]:
    """Split one drawn logical batch into physical batches of at most `token_budget` padded tokens.

    Units are sorted by length here, inside the drawn batch, and nowhere else. A unit that alone exceeds the
    budget gets batches of its own, all but the last with `complete=False`; a clipping engine adds the
    parts up before it clips, so the budget does not change the result beyond rounding.

    Each window's weight is `Unit.weights`: the loss of a unit is the mean over its labelled words, or over its
    views of that mean. A unit without a labelled word has weight 0 and still counts as a unit.

    Args:
        units: A logical batch.
        token_budget: Most tokens, padding included, in a physical batch.
        pad_token_id: The piece id to pad with.

    Raises:
        DataError: A single window is longer than the budget.
    """
    require_int("token_budget", token_budget, minimum=1, maximum=2**40)
    ordered = sorted(units, key=lambda unit: (unit.longest, len(unit.windows)))
    if ordered and ordered[-1].longest > token_budget:
        raise DataError(
            f"A window has {ordered[-1].longest} tokens but token_budget is {token_budget}. "
            "Raise token_budget or make the windows shorter."
        )
    pending: list[Unit] = []
    for unit in ordered:
        if _padded([unit]) > token_budget:
            yield from _parts(unit, token_budget, pad_token_id)
            continue
        if _padded([*pending, unit]) > token_budget:
            yield _collate(pending, pad_token_id)
            pending = []
        pending.append(unit)
    if pending:
        yield _collate(pending, pad_token_id)


def _padded(units: Sequence[Unit]) -> int:
    """Return the tokens of the units' windows, padded to the longest."""
    return sum(len(unit.windows) for unit in units) * max(unit.longest for unit in units)


def _parts(unit: Unit, token_budget: int, pad_token_id: int) -> Iterator[PhysicalBatch]:
    """Yield the batches of one unit that is larger than the budget."""
    rows = max(1, token_budget // unit.longest)
    weights = unit.weights()
    for start in range(0, len(unit.windows), rows):
        part = unit.windows[start : start + rows]
        batch = _pad(part, [0] * len(part), weights[start : start + rows], pad_token_id)
        yield replace(batch, num_units=1, complete=start + rows >= len(unit.windows))


def _collate(units: Sequence[Unit], pad_token_id: int) -> PhysicalBatch:
    """Return one batch of whole units."""
    windows = [window for unit in units for window in unit.windows]
    owners = [index for index, unit in enumerate(units) for _ in unit.windows]
    weights = [weight for unit in units for weight in unit.weights()]
    return replace(_pad(windows, owners, weights, pad_token_id), num_units=len(units))


def _pad(
    windows: Sequence[Example], owners: Sequence[int], weights: Sequence[float], pad_token_id: int
) -> PhysicalBatch:
    """Return the windows as padded tensors."""
    shape = (len(windows), max(window.num_tokens for window in windows))
    ids, labels = np.full(shape, pad_token_id, np.int64), np.full(shape, IGNORED_LABEL, np.int64)
    mask = np.zeros(shape, np.int64)
    for row, window in enumerate(windows):
        ids[row, : window.num_tokens] = window.input_ids
        labels[row, : window.num_tokens] = window.labels
        mask[row, : window.num_tokens] = 1
    return PhysicalBatch(
        input_ids=torch.from_numpy(ids),
        attention_mask=torch.from_numpy(mask),
        labels=torch.from_numpy(labels),
        units=torch.tensor(owners, dtype=torch.int64),
        weights=torch.tensor(weights, dtype=torch.float32),
        features=padded_features(windows),
        num_units=0,
    )
