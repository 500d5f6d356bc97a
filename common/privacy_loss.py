"""Privacy loss random variables of subsampled Gaussians, composed with Opacus's Fourier machinery.

Opacus composes the loss of *removing* a unit alone. That it is the worse direction is proved for one
step, not for a composition (Lebeda et al. 2024, arXiv 2405.20769), so the loss of *adding* a unit is
composed too and the larger epsilon is returned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from opacus.accountants.analysis.prv import (
    Domain,
    TruncatedPrivacyRandomVariable,
    compose_heterogeneous,
    discretize,
)
from scipy.special import ndtr

from common.accounting import rdp_epsilon
from common.mechanisms import PoissonSubsampledGaussian

_LARGEST_GRID = 2**23  # Points; a finer mesh would cost gigabytes for the third decimal.


@dataclass(frozen=True, kw_only=True)
class SubsampledGaussianPRV:
    """The privacy loss of one step, for one direction of the neighbouring relation.

    Attributes:
        q: Sampling rate, in (0, 1].
        noise_multiplier: Above 0.
        removed: True for the loss where the unit is in the data, False for where it is not.
    """

    q: float
    noise_multiplier: float
    removed: bool

    def cdf(self, t: ArrayLike) -> NDArray[np.float64]:
        """Return the probability that the loss is at most `t`, of `t`'s shape."""
        # With N = N(0, sigma^2) and M = (1 - q) N + q N(1, sigma^2), the loss at x is L(x) = log M/N (x),
        # increasing in x. Removing: P[L <= t] under M. Adding: P[-L <= t] under N, so L >= -t.
        # Gopi et al. 2021 (arXiv 2106.02848), propositions B.1 and B.4, in a form that cannot overflow.
        loss = np.asarray(t, dtype=np.float64) * (1 if self.removed else -1)
        x = self._point(loss)
        if self.removed:
            below = (1 - self.q) * ndtr(x / self.noise_multiplier)
            return np.asarray(below + self.q * ndtr((x - 1) / self.noise_multiplier))
        return np.asarray(ndtr(-x / self.noise_multiplier))

    def _point(self, loss: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the x at which log M/N is `loss`; minus infinity where it is everywhere larger."""
        # exp(loss) - (1 - q) = exp(loss) (1 - (1 - q) exp(-loss)); positive only above log(1 - q).
        lowest = math.log1p(-self.q) if self.q < 1 else -math.inf
        inside = loss > lowest
        safe = np.where(inside, loss, 0.0)
        rest = np.log1p(-(1 - self.q) * np.exp(-safe)) if self.q < 1 else np.zeros_like(safe)
        point = self.noise_multiplier**2 * (safe + rest - math.log(self.q)) + 0.5
        return np.where(inside, point, -np.inf)


def prv_epsilon(parts: Sequence[PoissonSubsampledGaussian], *, delta: float) -> float:
    """Return the larger upper bound on epsilon of the two directions.

    Args:
        parts: Mechanisms, equal ones already merged.
        delta: In (0, 1).
    """
    return max(_direction(parts, delta=delta, removed=removed) for removed in (True, False))


def _direction(parts: Sequence[PoissonSubsampledGaussian], *, delta: float, removed: bool) -> float:
    """Return the upper bound for one direction."""
    delta_error = delta / 1000
    eps_error, domain = _grid(parts, delta, delta_error)
    losses = [
        SubsampledGaussianPRV(q=one.q, noise_multiplier=one.noise_multiplier, removed=removed)
        for one in parts
    ]
    discrete = [
        discretize(TruncatedPrivacyRandomVariable(one, domain.t_min, domain.t_max), domain) for one in losses
    ]
    composed = compose_heterogeneous(discrete, [one.steps for one in parts])
    _, _, upper = composed.compute_epsilon(delta, delta_error, eps_error)
    return max(0.0, float(upper))


def _grid(
    parts: Sequence[PoissonSubsampledGaussian], delta: float, delta_error: float
) -> tuple[float, Domain]:
    """Return the error in epsilon that the bound carries, and the grid of losses that keeps it."""
    steps = sum(one.steps for one in parts)
    # Gopi et al. 2021 (arXiv 2106.02848), remark 5.6 for the width and theorem 5.5 for the mesh.
    width = rdp_epsilon(parts, delta=delta_error / 4)
    for one in parts:
        single = PoissonSubsampledGaussian(q=one.q, noise_multiplier=one.noise_multiplier, steps=1)
        width = max(width, rdp_epsilon([single], delta=delta_error / (8 * steps)))
    eps_error = min(0.01, max(rdp_epsilon(parts, delta=delta), 1e-3) / 100)
    width = max(width, eps_error) + 3
    fineness = math.sqrt(steps * math.log(12 / delta_error) / 2)
    eps_error = max(eps_error, 2 * width * fineness / _LARGEST_GRID)
    return eps_error, Domain.create_aligned(-width, width, eps_error / fineness)
