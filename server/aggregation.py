"""From the sites' updates to the next model: sum, then mean, then the server optimizer.

Replies arrive in whatever order the network likes, so the sum must not depend on it: a resumed run has
to end with the same weights to the bit. Floating-point addition is not associative; `RunningSum` rounds
each contribution once to a fixed grid and adds whole numbers, which is exact in every order.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from common.errors import InputError, RoundError
from common.records import ModelUpdate
from common.validation import require_choice, require_float

FloatVector = NDArray[np.float32]

GRID_BITS: Final = 50
"""Contributions are rounded to multiples of 2**-50, about 1e-15 and far below a float32 weight's own step."""

MAX_MAGNITUDE: Final = 2.0**38
"""The largest weighted contribution to one coordinate that a sum accepts."""

MAX_SITES: Final = 10_000
"""The most contributions to one sum: a fraction is at most 2**49 grid steps, and 2**63 / 2**49 is 16,384."""

# One block's scratch arrays fit a core's cache, so peak memory stays that of the vectors themselves.
_BLOCK: Final = 1 << 16


def _blocks(size: int) -> Iterator[slice]:
    """Cut `[0, size)` into slices that are small enough for the cache."""
    return (slice(start, min(start + _BLOCK, size)) for start in range(0, size, _BLOCK))


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
        for block in _blocks(self.size):
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
        for block in _blocks(self.size):
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
    for block in _blocks(values.shape[0]):
        # max propagates NaN, and a comparison with NaN is false.
        if not float(np.abs(values[block]).max()) * factor <= MAX_MAGNITUDE:
            raise RoundError(
                f"The update's field {name!r} holds a number that is not finite or above {MAX_MAGNITUDE:.3g}."
            )


class ServerOptimizer(ABC):
    """A step on the server that treats the mean change of the sites as a pseudo-gradient.

    Reddi et al. 2021, "Adaptive Federated Optimization" (arXiv:2003.00295v5), Algorithm 2: with the mean
    change Delta_t, the model moves by `learning_rate` times a direction that each subclass makes of it.
    Everything is elementwise in float32 and works block by block, so a step allocates the new weights
    and the state, and nothing else of their size.

    Args:
        learning_rate: The server's learning rate, eta in the paper, above 0 and up to 100.
    """

    name: ClassVar[str]
    state_names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *, learning_rate: float = 1.0) -> None:
        """Begin without state."""
        self.learning_rate = require_float(
            "server learning_rate", learning_rate, minimum=0.0, maximum=100.0, open_minimum=True
        )
        self._state: dict[str, FloatVector] = {}

    def step(
        self, weights: FloatVector, mean_delta: FloatVector, *, out: FloatVector | None = None
    ) -> FloatVector:
        """Return the next weights and advance the optimizer's state.

        Args:
            weights: The model's trained parameters, `(parameters,)`.
            mean_delta: The sites' weighted mean change, `(parameters,)`; not modified.
            out: Where to write the result; pass `weights` to update in place. By default a new vector.

        Raises:
            RoundError: The vectors do not fit together or the change is not finite; the weights and
                the state are then as before.
        """
        self._check_step(weights, mean_delta)
        if not self._state:
            self._state = {name: self._initial(name, weights.shape[0]) for name in self.state_names}
        result = np.empty_like(weights) if out is None else out
        for block in _blocks(weights.shape[0]):
            state = {name: vector[block] for name, vector in self._state.items()}
            direction = self._direction(mean_delta[block], state)
            np.add(weights[block], self.learning_rate * direction, out=result[block])
        return result

    def state(self) -> dict[str, FloatVector]:
        """Return the state's vectors by name: views, so save them before the next step. Empty at first."""
        return dict(self._state)

    def load_state(self, state: Mapping[str, NDArray[np.float32]]) -> None:
        """Take a copy of what `state` returned, as it was saved.

        Raises:
            InputError: The state is not one of this optimizer.
        """
        if state and set(state) != set(self.state_names):
            raise InputError(
                f"The saved optimizer state holds {', '.join(sorted(state))}, but {self.name} keeps "
                f"{', '.join(self.state_names) or 'nothing'}; resume with the plan that the run began with."
            )
        if any(vector.dtype != np.float32 or vector.ndim != 1 for vector in state.values()):
            raise InputError(f"The saved state of {self.name} is not made of float32 vectors.")
        self._state = {name: np.array(state[name]) for name in self.state_names if name in state}

    def _check_step(self, weights: FloatVector, mean_delta: FloatVector) -> None:
        """Raise unless weights, change and state fit together and the change is finite."""
        sizes = {vector.shape for vector in (weights, mean_delta, *self._state.values())}
        if weights.dtype != np.float32 or mean_delta.dtype != np.float32 or len(sizes) != 1:
            raise RoundError(
                f"{self.name} needs float32 vectors of one size; it got {weights.shape} {weights.dtype} "
                f"weights and a {mean_delta.shape} {mean_delta.dtype} change."
            )
        if not all(np.isfinite(mean_delta[block]).all() for block in _blocks(mean_delta.shape[0])):
            raise RoundError(
                "The sites' mean change holds numbers that are not finite; the model is unchanged."
            )

    def _initial(self, name: str, size: int) -> FloatVector:
        """Return a state vector's value before the first step."""
        del name
        return np.zeros(size, dtype=np.float32)

    @abstractmethod
    def _direction(self, delta: FloatVector, state: Mapping[str, FloatVector]) -> FloatVector:
        """Return the direction for one block of the change, updating the block's state in place."""


class FedAvg(ServerOptimizer):
    """The mean itself: McMahan et al. 2017 at `learning_rate` 1; Reddi et al. 2021, Section 2."""

    name = "fedavg"

    def _direction(self, delta: FloatVector, state: Mapping[str, FloatVector]) -> FloatVector:
        return delta


class FedAvgM(ServerOptimizer):
    """Server momentum: Hsu et al. 2019 (arXiv:1909.06335), Section 4.3.

    Args:
        learning_rate: The server's learning rate.
        momentum: beta in the paper, from 0 to below 1.
    """

    name = "fedavgm"
    state_names = ("momentum",)

    def __init__(self, *, learning_rate: float = 1.0, momentum: float = 0.9) -> None:
        """Begin without velocity."""
        super().__init__(learning_rate=learning_rate)
        self.momentum = require_float("server momentum", momentum, minimum=0.0, maximum=0.99999)

    def _direction(self, delta: FloatVector, state: Mapping[str, FloatVector]) -> FloatVector:
        # Hsu et al. 2019, Section 4.3: v <- beta v + Delta, and w moves by v (there with the other sign).
        velocity = state["momentum"]
        velocity *= self.momentum
        velocity += delta
        return velocity


class _Adaptive(ServerOptimizer):
    """What FedAdam and FedYogi share: moments without bias correction, as in Algorithm 2.

    Args:
        learning_rate: eta, the server's learning rate.
        beta1: Decay of the first moment, from 0 to below 1.
        beta2: Decay of the second moment, from 0 to below 1.
        tau: Degree of adaptivity, above 0; the second moment begins at tau squared.
    """

    state_names = ("first_moment", "second_moment")

    def __init__(
        self, *, learning_rate: float = 0.01, beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3
    ) -> None:
        super().__init__(learning_rate=learning_rate)
        self.beta1 = require_float("server beta1", beta1, minimum=0.0, maximum=0.99999)
        self.beta2 = require_float("server beta2", beta2, minimum=0.0, maximum=0.99999)
        self.tau = require_float("server tau", tau, minimum=1e-12, maximum=1.0)

    def _initial(self, name: str, size: int) -> FloatVector:
        # Algorithm 2 asks for v_{-1} >= tau^2.
        start = self.tau**2 if name == "second_moment" else 0.0
        return np.full(size, start, dtype=np.float32)

    def _direction(self, delta: FloatVector, state: Mapping[str, FloatVector]) -> FloatVector:
        # Algorithm 2: m_t = beta1 m_{t-1} + (1 - beta1) Delta_t, and
        # x_{t+1} = x_t + eta m_t / (sqrt(v_t) + tau).
        first, second = state["first_moment"], state["second_moment"]
        first *= self.beta1
        first += (1.0 - self.beta1) * delta
        self._update_second(second, np.square(delta))
        denominator: FloatVector = np.sqrt(second)
        denominator += self.tau
        direction: FloatVector = first / denominator
        return direction

    @abstractmethod
    def _update_second(self, second: FloatVector, square: FloatVector) -> None:
        """Update the second moment in place with the squared change."""


class FedAdam(_Adaptive):
    """FedAdam, Reddi et al. 2021, Algorithm 2; see `_Adaptive` for the arguments."""

    name = "fedadam"

    def _update_second(self, second: FloatVector, square: FloatVector) -> None:
        # Algorithm 2: v_t = beta2 v_{t-1} + (1 - beta2) Delta_t^2.
        second *= self.beta2
        second += (1.0 - self.beta2) * square


class FedYogi(_Adaptive):
    """FedYogi, Reddi et al. 2021, Algorithm 2; see `_Adaptive` for the arguments."""

    name = "fedyogi"

    def _update_second(self, second: FloatVector, square: FloatVector) -> None:
        # Algorithm 2: v_t = v_{t-1} - (1 - beta2) Delta_t^2 sign(v_{t-1} - Delta_t^2).
        second -= (1.0 - self.beta2) * square * np.sign(second - square)


SERVER_OPTIMIZERS: Final = ("fedavg", "fedavgm", "fedadam", "fedyogi")


def make_server_optimizer(
    name: str,
    *,
    learning_rate: float = 1.0,
    momentum: float = 0.9,
    beta1: float = 0.9,
    beta2: float = 0.99,
    tau: float = 1e-3,
) -> ServerOptimizer:
    """Return the server optimizer that a plan names; it takes of the settings those that it has.

    Args:
        name: One of `SERVER_OPTIMIZERS`.
        learning_rate: eta, above 0 and up to 100.
        momentum: FedAvgM's beta, from 0 to below 1.
        beta1: First-moment decay of FedAdam and FedYogi.
        beta2: Second-moment decay of FedAdam and FedYogi.
        tau: Degree of adaptivity of FedAdam and FedYogi, above 0.

    Raises:
        ValidationError: An unknown name, or a setting outside its range.
    """
    require_choice("server optimizer", name, SERVER_OPTIMIZERS)
    if name == "fedavg":
        return FedAvg(learning_rate=learning_rate)
    if name == "fedavgm":
        return FedAvgM(learning_rate=learning_rate, momentum=momentum)
    adaptive = FedAdam if name == "fedadam" else FedYogi
    return adaptive(learning_rate=learning_rate, beta1=beta1, beta2=beta2, tau=tau)
