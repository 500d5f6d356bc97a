"""Server optimizers: how the global model moves by the sites' mean change.

Reddi et al. 2021, "Adaptive Federated Optimization" (arXiv:2003.00295v5), treats the mean change as a
pseudo-gradient. Everything here is elementwise in float32, so a step gives the same bits however the
vector is cut into blocks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from common.errors import InputError, RoundError
from common.plan import SERVER_OPTIMIZERS
from common.validation import require_choice, require_float

FloatVector = NDArray[np.float32]

# One block's scratch arrays fit a core's cache, so peak memory stays that of the vectors themselves.
_BLOCK: Final = 1 << 16


def blocks(size: int) -> Iterator[slice]:
    """Cut `[0, size)` into slices that are small enough for the cache."""
    return (slice(start, min(start + _BLOCK, size)) for start in range(0, size, _BLOCK))


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
        self,
        weights: FloatVector,
        mean_delta: FloatVector,
        *,
        factor: float = 1.0,
        out: FloatVector | None = None,
    ) -> FloatVector:
        """Return the next weights and advance the optimizer's state.

        Args:
            weights: The model's trained parameters, `(parameters,)`.
            mean_delta: The sites' weighted mean change, `(parameters,)`; not modified.
            factor: Of the learning rate in this step, in [0, 1].
            out: Where to write the result; pass `weights` to update in place. By default a new vector.

        Raises:
            RoundError: The vectors do not fit together or the change is not finite; the weights and
                the state are then as before.
        """
        self._check_step(weights, mean_delta)
        if not self._state:
            self._state = {name: self._initial(name, weights.shape[0]) for name in self.state_names}
        result = np.empty_like(weights) if out is None else out
        for block in blocks(weights.shape[0]):
            state = {name: vector[block] for name, vector in self._state.items()}
            direction = self._direction(mean_delta[block], state)
            np.add(weights[block], self.learning_rate * factor * direction, out=result[block])
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
        if not all(np.isfinite(mean_delta[block]).all() for block in blocks(mean_delta.shape[0])):
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


def decay_factor(decay: str, server_round: int, rounds: int) -> float:
    """Return the factor of the server's learning rate in a 1-based round: 1, or linear from 1 to 1 / rounds.

    Reddi et al. 2021, Section 5, decay the server's rate too: without it an adaptive step never gets smaller,
    however much of it is noise.
    """
    return 1.0 if decay == "none" else (rounds - server_round + 1) / rounds


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
