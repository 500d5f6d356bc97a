"""How much privacy mechanisms cost: epsilon for a plan, a filter for a lifetime, noise for a target.

Three questions, three answers, all for the add-or-remove-one-unit relation:

* *What does this plan cost?* Its mechanisms are fixed before the first of them runs, so numerical
  composition of privacy loss random variables gives a tight upper bound: `plan_epsilon`.
* *May this site go on, whatever it is asked next?* Jobs are chosen by somebody who saw the earlier
  results, and numerical composition does not cover that. `RDPFilter` does.
* *How much noise does a target need?* `calibrate_noise_multiplier`.

Formal guarantees
-----------------
`plan_epsilon`: if the mechanisms' parameters and their greatest number are fixed in advance, the joint
release is (epsilon, delta)-DP. Stopping early, and choosing after a crash whether to use a reserved
round, keep it: what was released is a prefix of the accounted sequence.

`RDPFilter`: let every mechanism, its parameters included, depend on all earlier outputs. A run that
never charges what the filter does not admit is (epsilon, delta)-DP for the filter's limit. At one fixed
order this is the Rényi filter of Feldman & Zrnic 2021 (arXiv 2008.11193v4). Several orders
share delta in equal parts: partition the transcripts by the order whose budget was never passed; on
each part the run equals one stopped by that order's filter alone, which loses at most its share of
delta; the shares add. Without the split the order would be chosen from the outputs, unaccounted.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, log_ndtr, logsumexp

from common.errors import ValidationError
from common.mechanisms import (
    UNITS,
    Gaussian,
    Mechanism,
    PoissonSubsampledGaussian,
    mechanism_from_dict,
)
from common.validation import require_choice, require_float, require_int

__all__ = [
    "FILTER_ORDERS",
    "UNITS",
    "Epsilon",
    "Gaussian",
    "Mechanism",
    "PoissonSubsampledGaussian",
    "RDPFilter",
    "analytic_gaussian_epsilon",
    "calibrate_noise_multiplier",
    "compose_across_sites",
    "mechanism_from_dict",
    "plan_epsilon",
    "rdp",
    "rdp_epsilon",
]

FILTER_ORDERS = (2, 3, 4, 6, 10, 24)
"""Orders at which a lifetime is filtered: few, because each takes an equal share of delta."""

_RDP_ORDERS = (*range(2, 65), 72, 80, 96, 112, 128, 160, 192, 256, 384, 512, 768, 1024)
_LARGEST_NUMERICAL = 60.0  # Above this epsilon no claim is worth a convolution: RDP bounds it.
_LARGEST_NOISE = 10_000.0

_Plan = Callable[[float], list[Mechanism]]
_Bound = Callable[[float], float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Epsilon:
    """A privacy loss, with everything it means nothing without.

    Attributes:
        epsilon: The bound, at least 0; infinite where nothing finite is claimed.
        delta: The probability with which the bound may fail, in (0, 1).
        unit: What one contribution covers: `record`, `document` or `patient`.
        method: How it was bounded: `prv`, `analytic-gaussian`, `rdp`, `rdp-filter` or `sum-over-sites`.
    """

    epsilon: float
    delta: float
    unit: str
    method: str

    def __post_init__(self) -> None:
        """Check the ranges."""
        if math.isnan(self.epsilon) or self.epsilon < 0:
            raise ValidationError(f"epsilon is {self.epsilon!r}; it must be a number from 0.")
        require_delta(self.delta)
        require_choice("unit", self.unit, UNITS)

    @property
    def neighbouring(self) -> str:
        """The relation between the data sets that the bound compares."""
        return f"add-or-remove-one {self.unit}"

    def __str__(self) -> str:
        """Say the bound with its delta, unit, relation and method."""
        return f"epsilon {self.epsilon:.2f} at delta {self.delta:g} ({self.neighbouring}, {self.method})"

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON values for a report; an infinite epsilon becomes null."""
        return {
            "epsilon": self.epsilon if math.isfinite(self.epsilon) else None,
            "delta": self.delta,
            "unit": self.unit,
            "neighbouring": self.neighbouring,
            "method": self.method,
        }


def require_delta(value: object) -> float:
    """Return `value` if it is a delta, above 0 and below 1."""
    delta = require_float("delta", value, minimum=0, maximum=1, open_minimum=True)
    if delta >= 1:
        raise ValidationError(f"delta is {value!r}; it must be below 1, and below one over the units.")
    return delta


def as_subsampled(mechanism: Mechanism) -> PoissonSubsampledGaussian:
    """Return the mechanism in the one form that every accountant here understands.

    Raises:
        ValidationError: The mechanism is not known. Nothing may be charged for it as if it cost nothing.
    """
    # Exact types: a subclass may do more to the data than its parent says.
    if type(mechanism) is PoissonSubsampledGaussian:
        return mechanism
    if type(mechanism) is Gaussian:
        return PoissonSubsampledGaussian(q=1.0, noise_multiplier=mechanism.noise_multiplier, steps=1)
    raise ValidationError(
        f"mechanism {type(mechanism).__name__} is unknown to the accountant; it knows "
        f"{PoissonSubsampledGaussian.__name__} and {Gaussian.__name__}."
    )


def merged(mechanisms: Iterable[Mechanism]) -> list[PoissonSubsampledGaussian]:
    """Return the mechanisms in one form, equal ones merged by adding their steps; never empty."""
    steps: dict[tuple[float, float], int] = {}
    for one in map(as_subsampled, mechanisms):
        steps[one.q, one.noise_multiplier] = steps.get((one.q, one.noise_multiplier), 0) + one.steps
    if not steps:
        raise ValidationError("there is no mechanism to account for; give at least one.")
    return [PoissonSubsampledGaussian(q=q, noise_multiplier=s, steps=n) for (q, s), n in steps.items()]


@functools.lru_cache(maxsize=4096)
def _step_rdp(q: float, noise_multiplier: float, order: int) -> float:
    """Return the Rényi divergence of one step at an integer order."""
    if q == 1.0:
        # Mironov 2017 (arXiv 1702.07476), corollary 3.
        return order / (2 * noise_multiplier**2)
    # Mironov, Talwar & Zhang 2019 (arXiv 1908.10530), section 3.3.
    drawn = np.arange(order + 1, dtype=np.float64)
    binomial = gammaln(order + 1) - gammaln(drawn + 1) - gammaln(order - drawn + 1)
    terms = binomial + drawn * math.log(q) + (order - drawn) * math.log1p(-q)
    terms += (drawn**2 - drawn) / (2 * noise_multiplier**2)
    return max(float(logsumexp(terms)), 0.0) / (order - 1)


def rdp(mechanisms: Iterable[Mechanism], orders: Sequence[int]) -> NDArray[np.float64]:
    """Return the summed Rényi divergence at each order, `(orders,)`.

    Args:
        mechanisms: What was done, in any order.
        orders: Integer Rényi orders, each at least 2.

    Raises:
        ValidationError: A mechanism is unknown.
    """
    total = np.zeros(len(orders), dtype=np.float64)
    for one in map(as_subsampled, mechanisms):
        total += one.steps * np.array([_step_rdp(one.q, one.noise_multiplier, order) for order in orders])
    return total


def _conversion(orders: Sequence[int], delta: float) -> NDArray[np.float64]:
    """Return what turning a Rényi divergence into epsilon adds at each order, `(orders,)`."""
    # Balle et al. 2020 (arXiv 1905.09982v2), theorem 21.
    alpha = np.asarray(orders, dtype=np.float64)
    return np.asarray(np.log1p(-1 / alpha) - (math.log(delta) + np.log(alpha)) / (alpha - 1))


def rdp_epsilon(mechanisms: Iterable[Mechanism], *, delta: float) -> float:
    """Return an upper bound on epsilon by Rényi differential privacy; looser than `plan_epsilon`, and "
    "fast."""
    total = rdp(mechanisms, _RDP_ORDERS)
    return max(0.0, float(np.min(total + _conversion(_RDP_ORDERS, require_delta(delta)))))


def analytic_gaussian_epsilon(noise_multiplier: float, *, delta: float) -> float:
    """Return the exact epsilon of one Gaussian mechanism.

    Args:
        noise_multiplier: Standard deviation over sensitivity, above 0.
        delta: In (0, 1).
    """

    def excess(epsilon: float) -> float:
        # Balle & Wang 2018 (arXiv 1805.06530v2), theorem 8, with sensitivity 1.
        left = log_ndtr(1 / (2 * noise_multiplier) - epsilon * noise_multiplier)
        right = log_ndtr(-1 / (2 * noise_multiplier) - epsilon * noise_multiplier)
        return float(np.exp(left) - np.exp(epsilon + right)) - delta

    require_delta(delta)
    if excess(0.0) <= 0:
        return 0.0
    low, high = 0.0, 1.0
    while excess(high) > 0:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return high


def plan_epsilon(mechanisms: Iterable[Mechanism], *, delta: float, unit: str) -> Epsilon:
    """Return an upper bound on the epsilon of mechanisms that were all fixed in advance.

    Args:
        mechanisms: Every release of the plan at one site, reserved rounds included.
        delta: In (0, 1).
        unit: The privacy unit that the mechanisms' sensitivity is stated for.

    Returns:
        The bound, by the exact Gaussian formula where nothing is subsampled, else by privacy loss random
        variables; where even these would exceed 60, by Rényi differential privacy (`method` says which).

    Raises:
        ValidationError: A mechanism is unknown, or delta or unit is out of range.
    """
    parts = merged(mechanisms)
    require_delta(delta)
    if all(one.q == 1.0 for one in parts):
        # Gaussians compose to one whose inverse squared noise is the sum (Dong et al. 2019, corollary 3.3).
        precision = sum(one.steps / one.noise_multiplier**2 for one in parts)
        exact = analytic_gaussian_epsilon(1 / math.sqrt(precision), delta=delta)
        return Epsilon(epsilon=exact, delta=delta, unit=unit, method="analytic-gaussian")
    rough = rdp_epsilon(parts, delta=delta)
    if rough > _LARGEST_NUMERICAL:
        return Epsilon(epsilon=rough, delta=delta, unit=unit, method="rdp")
    from common.privacy_loss import prv_epsilon  # Brings Opacus and torch: only where it is needed.

    return Epsilon(epsilon=prv_epsilon(parts, delta=delta), delta=delta, unit=unit, method="prv")


def compose_across_sites(epsilons: Sequence[Epsilon]) -> Epsilon:
    """Return what is claimed for somebody whose data lies at every one of these sites.

    Epsilons add and so do deltas: basic composition, the only one that needs nothing about how the
    sites' releases depend on each other.

    Raises:
        ValidationError: There is none, the units differ, or the deltas add up to 1 or more.
    """
    units = sorted({one.unit for one in epsilons})
    if len(units) != 1:
        raise ValidationError(f"epsilons of units {', '.join(units) or 'none'} do not add; give one unit.")
    return Epsilon(
        epsilon=math.fsum(one.epsilon for one in epsilons),
        delta=math.fsum(one.delta for one in epsilons),
        unit=units[0],
        method="sum-over-sites",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class RDPFilter:
    """Decides whether adaptively chosen mechanisms stay within one lifetime limit.

    Attributes:
        epsilon: The limit, above 0.
        delta: The limit's delta, in (0, 1), shared in equal parts by the orders.
        orders: Integer Rényi orders, fixed before the first charge.
    """

    epsilon: float
    delta: float
    orders: tuple[int, ...] = FILTER_ORDERS

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_float("max_epsilon", self.epsilon, minimum=0, maximum=1e6, open_minimum=True)
        require_delta(self.delta)

    def spent(self, mechanisms: Iterable[Mechanism]) -> float:
        """Return the smallest limit under which a filter would have admitted all of these; 0 for none."""
        charged = list(mechanisms)
        if not charged:
            return 0.0
        total = rdp(charged, self.orders)
        return max(0.0, float(np.min(total + _conversion(self.orders, self.delta / len(self.orders)))))

    def admits(self, charged: Iterable[Mechanism], asked: Iterable[Mechanism]) -> bool:
        """Return whether `asked` may follow `charged` without passing the limit."""
        return self.spent([*charged, *asked]) <= self.epsilon


def calibrate_noise_multiplier(
    *,
    target_epsilon: float,
    delta: float,
    q: float,
    steps: int,
    rounds: int,
    reserve_rounds: int = 0,
    others: Sequence[Mechanism] = (),
) -> float:
    """Return the least noise multiplier (to 0.1 %) that keeps a whole plan at or below a target.

    Args:
        target_epsilon: Above 0.
        delta: In (0, 1).
        q: Sampling rate, in (0, 1].
        steps: Noised steps of one site over all planned rounds, from 1; each round has as many, rounded up.
        rounds: Planned rounds, from 1.
        reserve_rounds: Rounds that may be trained and charged once more after a crash, from 0.
        others: Everything else that the plan releases with noise of its own, over the whole plan.

    Raises:
        ValidationError: A value is out of range, or no noise can meet the target.
    """
    require_float("target_epsilon", target_epsilon, minimum=0, maximum=1e6, open_minimum=True)
    require_int("steps", steps, minimum=1, maximum=10_000_000)
    require_int("rounds", rounds, minimum=1, maximum=1_000_000)
    require_int("reserve_rounds", reserve_rounds, minimum=0, maximum=1_000_000)
    total = steps + reserve_rounds * -(-steps // rounds)

    def plan(noise: float) -> list[Mechanism]:
        return [PoissonSubsampledGaussian(q=q, noise_multiplier=noise, steps=total), *others]

    def bound(noise: float) -> float:
        return plan_epsilon(plan(noise), delta=delta, unit="record").epsilon

    # The fast bound decides nearly always; the fine grid that a tiny epsilon needs is slow.
    loose = rdp_epsilon(plan(_LARGEST_NOISE), delta=delta)
    if loose > target_epsilon and bound(_LARGEST_NOISE) > target_epsilon:
        raise ValidationError(
            f"target_epsilon is {target_epsilon!r}: no noise can meet it at delta {delta:g} over {total} "
            "steps "
            f"at q {q:g}{' beside the other releases' if others else ''}; raise target_epsilon or delta, or "
            "lower steps, rounds, reserve_rounds or the other releases."
        )
    return _least_noise(bound, _start(plan, target_epsilon, delta), target_epsilon)


def _start(plan: _Plan, target: float, delta: float) -> float:
    """Return about the noise at which the fast Rényi bound meets the target."""
    low, high = 1e-2, _LARGEST_NOISE
    for _ in range(40):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if rdp_epsilon(plan(middle), delta=delta) > target else (low, middle)
    return high


def _least_noise(bound: _Bound, start: float, target: float) -> float:
    """Return the least noise that meets the target, to 0.1 % and on the safe side."""
    low = high = start
    while bound(high) > target:
        low, high = high, min(high * 1.2, _LARGEST_NOISE)
    while low == high or bound(low) <= target:
        low, high = low / 1.2, low
    while high > low * 1.001:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if bound(middle) > target else (low, middle)
    return high
