"""One layer's share of the per-unit gradients: its squared norms, and its clipped sum.

Three forms. `GramGradient` never builds a unit's gradient: the squared norm of `G^T A` is the sum over
token pairs of `(a_s . a_t)(g_s . g_t)` (Goodfellow 2015; Li et al. 2022, "ghost norm"), and the clipped sum
is one matrix product over all tokens. `UnitGradient` holds a small or already summed gradient per unit.
`RowGradient` holds the rows of an embedding table that a unit touched.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Rounding that the Gram form cannot see is charged to the norm: (sum of |a_t||g_t|)^2 times this number is
# added to the squared norm. It covers float32 dot products whose terms cancel: the norm is an upper bound.
GRAM_ALLOWANCE = 2.0**-22
# An element of an instantiated gradient is written, read and added: on CPUs as dear as this many products.
_ELEMENT_COST = 36
# Instantiated gradients may take this many times the memory of the activations and gradients they replace.
_MEMORY_FACTOR = 2

# The parameters that are trained; while a pass runs, `requires_grad` does not say so.
Trained = Set[Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitBlock:
    """Consecutive units that all have the same number of windows.

    Attributes:
        units: The units, a range of positions.
        windows: Their windows, a range of rows of the batch.
        depth: Windows of each unit.
    """

    units: slice
    windows: slice
    depth: int

    @property
    def num_units(self) -> int:
        """Units in the block."""
        return int(self.units.stop - self.units.start)

    def tokens(self, tensor: Tensor) -> Tensor:
        """Return `(windows, tokens, features)` as `(units, depth * tokens, features)`, a view."""
        rows = tensor[self.windows]
        return rows.reshape(self.num_units, self.depth * rows.shape[1], rows.shape[2])


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitLayout:
    """How the rows of a sorted batch belong to units.

    Attributes:
        order: `(windows,)` row of the given batch for each sorted row.
        owner: `(windows,)` position of the unit of each sorted row.
        numbers: `(units,)` the batch's own number of each unit position.
        blocks: Runs of units of equal depth; together they cover all rows.
    """

    order: Tensor
    owner: Tensor
    numbers: Tensor
    blocks: tuple[UnitBlock, ...]

    @classmethod
    def of(cls, units: Tensor) -> UnitLayout:
        """Sort windows by the depth of their unit, then by unit.

        Args:
            units: `(windows,)` the unit number of each window.
        """
        numbers, inverse, depths = torch.unique(units, return_inverse=True, return_counts=True)
        by_depth = torch.argsort(depths, stable=True)
        position = torch.empty_like(by_depth)
        position[by_depth] = torch.arange(len(by_depth), device=units.device)
        owner, order = torch.sort(position[inverse], stable=True)
        return cls(order=order, owner=owner, numbers=numbers[by_depth], blocks=_blocks(depths[by_depth]))

    @property
    def num_units(self) -> int:
        """Units present in the batch."""
        return int(self.numbers.shape[0])

    def sum(self, rows: Tensor) -> Tensor:
        """Sum `(windows, ...)` over the windows of each unit: `(units, ...)`."""
        if self.num_units == rows.shape[0]:
            return rows
        return rows.new_zeros(self.num_units, *rows.shape[1:]).index_add_(0, self.owner, rows)


def _blocks(depths: Tensor) -> tuple[UnitBlock, ...]:
    """Return the runs of equal depth in `(units,)` ascending depths."""
    found, unit, window = [], 0, 0
    values, counts = torch.unique_consecutive(depths, return_counts=True)
    for depth, count in zip(values.tolist(), counts.tolist(), strict=True):
        units, windows = slice(unit, unit + count), slice(window, window + count * depth)
        found.append(UnitBlock(units=units, windows=windows, depth=depth))
        unit, window = units.stop, windows.stop
    return tuple(found)


class Sums:
    """A float32 sum for each parameter, made when the first term comes.

    Starting from zeros would touch the memory of every parameter twice more than autograd does.
    """

    def __init__(self) -> None:
        """Start with no terms."""
        self._sums: dict[Tensor, Tensor] = {}

    def add(self, parameter: Tensor, term: Tensor, *, factor: float = 1.0) -> None:
        """Add `factor` times `term`, which has the parameter's shape and stays the caller's."""
        self.dense(parameter).add_(term, alpha=factor)

    def add_product(self, parameter: Tensor, left: Tensor, right: Tensor) -> None:
        """Add the product of a matrix with a matrix or vector, of the parameter's shape or flat."""
        known = self._sums.get(parameter)
        if known is None:
            self._sums[parameter] = (left @ right).view(parameter.shape)
        elif right.dim() == 2:
            known.addmm_(left, right)
        else:
            known.view(-1).addmv_(left, right)

    def dense(self, parameter: Tensor) -> Tensor:
        """Return the parameter's sum so far, to be added to in place."""
        if parameter not in self._sums:
            self._sums[parameter] = torch.zeros(parameter.shape, dtype=torch.float32, device=parameter.device)
        return self._sums[parameter]


class Selection:
    """The factors of all units, and which windows take part in the clipped sum.

    Windows of units that are not finite are left out of the products altogether: zero times NaN is NaN.
    """

    def __init__(self, factors: Tensor, finite: Tensor, layout: UnitLayout) -> None:
        """Spread `(units,)` factors and finiteness over windows."""
        self.factors = factors
        self.all_finite = bool(finite.all())
        self._finite = finite
        self._windows = factors[layout.owner]
        self._finite_windows = finite[layout.owner]
        self._last: tuple[Tensor, Tensor] | None = None

    def units(self, rows: Tensor, units: slice) -> tuple[Tensor, Tensor]:
        """Return the finite ones of `(units, ...)` and their factors."""
        factors = self.factors[units]
        if self.all_finite:
            return rows, factors
        keep = self._finite[units]
        return rows[keep], factors[keep]

    def windows(self, rows: Tensor, windows: slice) -> Tensor:
        """Return the finite ones of `(windows, tokens, features)` as `(tokens, features)` in float32."""
        if not self.all_finite:
            rows = rows[self._finite_windows[windows]]
        return rows.flatten(0, 1).float()

    def scaled(self, rows: Tensor, windows: slice) -> Tensor:
        """Return `windows(rows)` times each window's factor; the last answer is kept for layers in a row."""
        if self._last is None or not _same(self._last[0], rows):
            self._last = rows, self.windows(rows * self._windows[windows].view(-1, 1, 1), windows)
        return self._last[1]

    def tokens(self, windows: slice, length: int) -> Tensor:
        """Return the factors of the finite windows' tokens, `(tokens,)`."""
        factors = self._windows[windows]
        if not self.all_finite:
            factors = factors[self._finite_windows[windows]]
        return factors.repeat_interleave(length)


class LayerGradient(Protocol):
    """What one layer gives for a run of units."""

    units: slice
    squared_norms: Tensor

    def add_clipped(self, selection: Selection, sums: Sums) -> None:
        """Add the sum over units of factor times gradient."""


class GramGradient:
    """A linear layer's weight and bias gradients for one block of units, kept as tokens."""

    def __init__(
        self,
        layer: nn.Linear,
        trained: Trained,
        *,
        inputs: Tensor,
        gradients: Tensor,
        block: UnitBlock,
        gram: Gram,
    ) -> None:
        """Measure the block.

        Args:
            layer: The layer.
            trained: The trained parameters, the layer's weight among them.
            inputs: `(windows, tokens, in)` of all windows.
            gradients: `(windows, tokens, out)`, with respect to the layer's output.
            block: Which units.
            gram: Inner products of the block's inputs, one added to each where the layer has a trained bias:
                a bias is a weight on an input of constant 1.
        """
        self.units, self._windows = block.units, block.windows
        self._weight = layer.weight
        self._bias = layer.bias if layer.bias is not None and layer.bias in trained else None
        self._inputs, self._gradients = inputs[block.windows], gradients[block.windows]
        outputs = Gram.of(gradients, block)
        size = (gram.diagonal() * outputs.diagonal()).sqrt().sum(dim=1)
        self.squared_norms = gram.dot(outputs).clamp(min=0.0) + GRAM_ALLOWANCE * size.square()

    def add_clipped(self, selection: Selection, sums: Sums) -> None:
        """Form the clipped sum as one product, scaling whichever operand is narrower."""
        if self._inputs.shape[2] <= self._gradients.shape[2]:
            inputs = selection.scaled(self._inputs, self._windows)
            gradients = selection.windows(self._gradients, self._windows)
        else:
            inputs = selection.windows(self._inputs, self._windows)
            gradients = selection.scaled(self._gradients, self._windows)
        sums.add_product(self._weight, gradients.t(), inputs)
        if self._bias is not None:
            unscaled = selection.windows(self._gradients, self._windows)
            factors = selection.tokens(self._windows, self._gradients.shape[1])
            sums.add_product(self._bias, unscaled.t(), factors)


class UnitGradient:
    """One parameter's gradient for each unit, built."""

    def __init__(self, parameter: Tensor, gradients: Tensor, units: slice) -> None:
        """Keep `(units, *shape)` float32 gradients."""
        self.units = units
        self._parameter = parameter
        self._gradients = gradients.flatten(1)
        self.squared_norms = torch.linalg.vector_norm(self._gradients, dim=1).square()

    def add_clipped(self, selection: Selection, sums: Sums) -> None:
        """Form the weighted sum over units."""
        gradients, factors = selection.units(self._gradients, self.units)
        sums.add_product(self._parameter, gradients.t(), factors)


class RowGradient:
    """An embedding table's gradient for each unit: the rows that the unit touched, summed per row."""

    def __init__(self, layer: nn.Embedding, ids: Tensor, gradients: Tensor, layout: UnitLayout) -> None:
        """Sum the output gradients of equal ids within each unit.

        Args:
            layer: The embedding.
            ids: `(windows, tokens)` int64.
            gradients: `(windows, tokens, features)`.
            layout: Which window belongs to which unit.
        """
        self.units = slice(0, layout.num_units)
        self._weight = layer.weight
        size = layer.num_embeddings
        pairs, place = torch.unique(layout.owner.unsqueeze(1) * size + ids, return_inverse=True)
        features = gradients.shape[2]
        self._rows = torch.zeros(len(pairs), features, dtype=torch.float32, device=ids.device)
        self._rows.index_add_(0, place.flatten(), gradients.reshape(-1, features).float())
        self._owner, self._ids = pairs // size, pairs % size
        if layer.padding_idx is not None:
            # Autograd gives the padding row no gradient, so neither the norm nor the sum may see it.
            self._rows.masked_fill_((self._ids == layer.padding_idx).unsqueeze(1), 0.0)
        squares = torch.linalg.vector_norm(self._rows, dim=1).square()
        self.squared_norms = squares.new_zeros(layout.num_units).index_add_(0, self._owner, squares)

    def add_clipped(self, selection: Selection, sums: Sums) -> None:
        """Scale each row by its unit's factor and add it to the table."""
        factors = selection.factors[self._owner].unsqueeze(1)
        rows = self._rows * factors
        if not selection.all_finite:
            rows = rows.masked_fill(factors == 0.0, 0.0)
        sums.dense(self._weight).index_add_(0, self._ids, rows)


@dataclass(frozen=True, kw_only=True, slots=True)
class Gram:
    """Inner products of the tokens of each unit, float32, without the quarter that symmetry gives.

    Attributes:
        near: `(units, half, half)` of the first half of the tokens with itself.
        far: `(units, tokens - half, tokens)` of the second half with all.
    """

    near: Tensor
    far: Tensor

    @classmethod
    def of(cls, tensor: Tensor, block: UnitBlock) -> Gram:
        """Return the products of `(windows, tokens, features)` within each unit of the block."""
        tokens = block.tokens(tensor).float()
        half = tokens.shape[1] // 2
        first, second = tokens[:, :half], tokens[:, half:]
        return cls(
            near=torch.bmm(first, first.transpose(1, 2)), far=torch.bmm(second, tokens.transpose(1, 2))
        )

    def plus_one(self) -> Gram:
        """Return the products of the tokens with a constant 1 appended."""
        return Gram(near=self.near + 1.0, far=self.far + 1.0)

    def dot(self, other: Gram) -> Tensor:
        """Return `(units,)` sums over all token pairs of the products of entries."""
        near, far = self.near * other.near, self.far * other.far
        crossed = far[:, :, : near.shape[2]]
        return near.sum(dim=(1, 2)) + far.sum(dim=(1, 2)) + crossed.sum(dim=(1, 2))

    def diagonal(self) -> Tensor:
        """Return `(units, tokens)` squared norms of the tokens."""
        half = self.near.shape[1]
        parts = self.near.diagonal(dim1=1, dim2=2), self.far[:, :, half:].diagonal(dim1=1, dim2=2)
        return torch.cat(parts, dim=1)


class GramCache:
    """Gram matrices of inputs, so that query, key and value share one."""

    def __init__(self) -> None:
        """Start empty."""
        self._last: tuple[Tensor, UnitBlock, bool, Gram] | None = None

    def get(self, inputs: Tensor, block: UnitBlock, *, bias: bool) -> Gram:
        """Return the inputs' products, plus one for a bias, once for layers in a row on the same input."""
        last = self._last
        if last is None or last[1] is not block or last[2] != bias or not _same(last[0], inputs):
            gram = Gram.of(inputs, block)
            last = self._last = inputs, block, bias, gram.plus_one() if bias else gram
        return last[3]


def _same(one: Tensor, other: Tensor) -> bool:
    """Return whether two live tensors are the same memory, seen in the same way."""
    return (
        one.data_ptr() == other.data_ptr()
        and one.shape == other.shape
        and one.stride() == other.stride()
        and one.dtype == other.dtype
    )


def linear_gradients(
    layer: nn.Linear,
    trained: Trained,
    *,
    inputs: Tensor,
    gradients: Tensor,
    layout: UnitLayout,
    cache: GramCache,
) -> list[LayerGradient]:
    """Return a linear layer's gradients, block by block in whichever form is cheaper.

    Args:
        layer: The layer.
        trained: The trained parameters.
        inputs: `(windows, tokens, in)`.
        gradients: `(windows, tokens, out)`, with respect to the layer's output.
        layout: Which window belongs to which unit.
        cache: Gram matrices of the layers before.
    """
    found: list[LayerGradient] = []
    for block in layout.blocks:
        if layer.weight in trained and _prefers_gram(layer, block.depth * inputs.shape[1]):
            gram = cache.get(inputs, block, bias=layer.bias is not None and layer.bias in trained)
            found.append(
                GramGradient(layer, trained, inputs=inputs, gradients=gradients, block=block, gram=gram)
            )
        else:
            found.extend(_built(layer, trained, inputs, gradients, block))
    return found


def _prefers_gram(layer: nn.Linear, tokens: int) -> bool:
    """Return whether the Gram form is cheaper than building, for units of `tokens` tokens."""
    width, size = layer.in_features + layer.out_features, layer.in_features * layer.out_features
    slower = tokens * tokens * width > _ELEMENT_COST * size
    return not (slower and size <= _MEMORY_FACTOR * tokens * width)


def _built(
    layer: nn.Linear, trained: Trained, inputs: Tensor, gradients: Tensor, block: UnitBlock
) -> list[LayerGradient]:
    """Return a block's weight and bias gradients, built for each unit."""
    outputs = block.tokens(gradients).float()
    found: list[LayerGradient] = []
    if layer.weight in trained:
        weight = torch.bmm(outputs.transpose(1, 2), block.tokens(inputs).float())
        found.append(UnitGradient(layer.weight, weight, block.units))
    if layer.bias is not None and layer.bias in trained:
        found.append(UnitGradient(layer.bias, outputs.sum(dim=1), block.units))
    return found


def layer_norm_gradients(
    layer: nn.LayerNorm, trained: Trained, *, inputs: Tensor, gradients: Tensor, layout: UnitLayout
) -> list[LayerGradient]:
    """Return a layer normalisation's gradients; both tensors are `(windows, ..., *normalized_shape)`."""
    units = slice(0, layout.num_units)
    shape = layer.normalized_shape
    outputs = gradients.float()

    def per_unit(values: Tensor) -> Tensor:
        """Sum over tokens, then over the windows of each unit."""
        return layout.sum(values.reshape(values.shape[0], -1, *shape).sum(dim=1))

    found: list[LayerGradient] = []
    if layer.weight is not None and layer.weight in trained:
        normal = F.layer_norm(inputs.float(), shape, eps=layer.eps)
        found.append(UnitGradient(layer.weight, per_unit(normal * outputs), units))
    if layer.bias is not None and layer.bias in trained:
        found.append(UnitGradient(layer.bias, per_unit(outputs), units))
    return found
