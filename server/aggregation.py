"""From the sites' updates to the next model: sum, then mean, then the server optimizer.

Replies arrive in whatever order the network likes, so the sum must not depend on it: a resumed run has
to end with the same weights to the bit. Floating-point addition is not associative; `RunningSum` rounds
each contribution once to a fixed grid and adds whole numbers, which is exact in every order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.errors import RoundError
from common.records import ModelUpdate
from common.validation import require_float
from server.optimizer import FloatVector, ServerOptimizer, blocks, make_server_optimizer

__all__ = [
    "GRID_BITS",
    "MAX_MAGNITUDE",
    "MAX_SITES",
    "FloatVector",
    "RunningSum",
    "ServerOptimizer",
    "make_server_optimizer",
]

GRID_BITS: Final = 50
"""Contributions are rounded to multiples of 2**-50, about 1e-15 and far below a float32 weight's own step."""

MAX_MAGNITUDE: Final = 2.0**38
"""The largest weighted contribution to one coordinate that a sum accepts."""

MAX_SITES: Final = 10_000
"""The most contributions to one sum: a fraction is at most 2**49 grid steps, and 2**63 / 2**49 is 16,384."""


class _FieldSum:
    """The exact sum of one field: whole numbers, and grid steps of the fraction.

    The whole part is made only once a contribution reaches one half, so that the sum of weight changes
    costs 8 bytes a parameter and the sum of counts is exact all the same.
    """

    def __init__(self, size: int) -> None:
        self._fraction: NDArray[np.int64] = np.zeros(size, dtype=np.int64)
        self._whole: NDArray[np.int64] | None = None

    @property
    def size(self) -> int:
        """Coordinates of the field."""
        return int(self._fraction.shape[0])

    def add(self, values: FloatVector, factor: float) -> None:
        """Add `factor * values`, each product rounded once to the grid."""
        for block in blocks(self.size):
            product = np.multiply(values[block], factor, dtype=np.float64)
            whole = np.rint(product)
            if whole.any():
                if self._whole is None:
                    self._whole = np.zeros(self.size, dtype=np.int64)
                self._whole[block] += whole.astype(np.int64)
                product -= whole
            # Scaling by a power of two is exact, so this rint is the only rounding after the product.
            np.rint(np.ldexp(product, GRID_BITS), out=product)
            self._fraction[block] += product.astype(np.int64)

    def divided(self, divisor: float, out: NDArray[np.float32] | NDArray[np.float64]) -> None:
        """Write the sum over `divisor` into `out`."""
        for block in blocks(self.size):
            total = np.ldexp(self._fraction[block].astype(np.float64), -GRID_BITS)
            if self._whole is not None:
                total += self._whole[block]
            out[block] = total / divisor


class RunningSum:
    """The sum of the sites' fields, folded one reply at a time; no update is kept.

    Formal guarantees:
        The totals and means are a function of the set of `(fields, weight)` added, to the bit: every
        contribution is rounded once, to a multiple of 2**-50, without regard to what was added before;
        the rest is integer addition, and weights are added by `math.fsum`, which rounds correctly.
        Per site, rounding moves a coordinate by at most 2**-51, and by 2**-53 of the weighted value itself.

    Args:
        weighted_fields: The fields that `add` multiplies by the site's weight. Pass `()` where a stage
            has multiplied them already. The other fields (counts, losses) are summed as they are.
    """

    def __init__(self, *, weighted_fields: tuple[str, ...] = ("delta",)) -> None:
        """Begin with no site."""
        self._weighted = frozenset(weighted_fields)
        self._sums: dict[str, _FieldSum] = {}
        self._weights: list[float] = []

    @property
    def num_sites(self) -> int:
        """How many contributions the sum holds."""
        return len(self._weights)

    @property
    def total_weight(self) -> float:
        """The sum of the weights, correctly rounded."""
        return math.fsum(self._weights)

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of the fields, sorted."""
        return tuple(sorted(self._sums))

    def add(self, fields: Mapping[str, FloatVector], weight: float) -> None:
        """Fold one site's fields into the sum.

        Args:
            fields: Name to float32 vector, `(size,)`; every site gives the same names and sizes.
            weight: The site's public weight, above 0.

        Raises:
            RoundError: The fields differ from the first site's, or hold a number that is not finite or
                is too large. The sum is unchanged, so the caller may go on without this site.
        """
        weight = require_float("weight", weight, minimum=0.0, maximum=1e9, open_minimum=True)
        if self.num_sites >= MAX_SITES:
            raise RoundError(f"The sum already holds {MAX_SITES} sites, the most that it adds exactly.")
        factors = {name: weight if name in self._weighted else 1.0 for name in fields}
        self._check_layout(fields)
        for name, values in fields.items():
            _check_values(name, values, factors[name])
        if not self._sums:
            self._sums = {name: _FieldSum(values.shape[0]) for name, values in fields.items()}
        for name, values in fields.items():
            self._sums[name].add(values, factors[name])
        self._weights.append(weight)

    def add_update(self, update: ModelUpdate) -> None:
        """Fold a `ModelUpdate`; see `add`."""
        self.add(update.fields, update.weight)

    def mean(self, name: str = "delta") -> FloatVector:
        """Return the field's sum over the total weight, `(size,)` float32.

        Raises:
            RoundError: No site has been added.
        """
        field = self._field(name)
        out = np.empty(field.size, dtype=np.float32)
        field.divided(self.total_weight, out)
        return out

    def total(self, name: str) -> NDArray[np.float64]:
        """Return the field's sum, `(size,)` float64.

        Raises:
            RoundError: No site has been added.
        """
        field = self._field(name)
        out = np.empty(field.size, dtype=np.float64)
        field.divided(1.0, out)
        return out

    def _field(self, name: str) -> _FieldSum:
        """Return the sum of one field, or say that there is none."""
        if not self._weights:
            raise RoundError("No site's update was added, so there is nothing to average.")
        if name not in self._sums:
            raise RoundError(f"The updates have no field {name!r}; they have {', '.join(self.fields)}.")
        return self._sums[name]

    def _check_layout(self, fields: Mapping[str, FloatVector]) -> None:
        """Raise unless the names, types and sizes are those of the first site."""
        for name, values in fields.items():
            if values.dtype != np.float32 or values.ndim != 1:
                raise RoundError(f"The update's field {name!r} is not a vector of float32.")
        if self._sums and fields.keys() != self._sums.keys():
            raise RoundError(f"The update has other fields than the first site's {', '.join(self.fields)}.")
        for name, field in self._sums.items():
            if fields[name].shape[0] != field.size:
                raise RoundError(
                    f"The update's field {name!r} has {fields[name].shape[0]} values; "
                    f"the first site's has {field.size}."
                )


def _check_values(name: str, values: FloatVector, factor: float) -> None:
    """Raise if a weighted value is not finite or would leave the exact range."""
    for block in blocks(values.shape[0]):
        # max propagates NaN, and a comparison with NaN is false.
        if not float(np.abs(values[block]).max()) * factor <= MAX_MAGNITUDE:
            raise RoundError(
                f"The update's field {name!r} holds a number that is not finite or above {MAX_MAGNITUDE:.3g}."
            )
