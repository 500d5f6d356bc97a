"""Which privacy parameters a site's data supports: how many units there are, and what epsilon a run would cost them.

The number of units describes private data: it stays at the site, and a plan's sampling rate rests on a declared
public number instead.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from common.accounting import PoissonSubsampledGaussian, rdp_epsilon

BATCHES = (32, 128, 512)
"""Expected units in a step."""

NOISES = (0.6, 0.8, 1.0, 1.5, 2.0, 4.0)
"""Noise multipliers, from little to much."""

EPOCHS = 10
"""How often each unit is drawn on average."""

_LARGEST_RATE = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class PrivacyRow:
    """What one batch size costs.

    Attributes:
        q: The sampling rate, in (0, 1].
        steps: Noised steps of `EPOCHS` epochs.
        batch: Expected units in a step.
        epsilon: Noise multiplier to an upper bound on epsilon (Rényi; a plan's own bound is a little lower).
    """

    q: float
    steps: int
    batch: int
    epsilon: dict[float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class PrivacySupport:
    """What a unit supports.

    Attributes:
        unit: `record`, `document` or `patient`.
        units: How many the training notes hold.
        delta: One over ten times the units, the largest that a careful plan would take.
        rows: One for each batch size that is at most half of the units.
    """

    unit: str
    units: int
    delta: float
    rows: tuple[PrivacyRow, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "unit": self.unit,
            "units": self.units,
            "delta": self.delta,
            "epochs": EPOCHS,
            "rows": [
                {
                    "q": row.q,
                    "steps": row.steps,
                    "batch": row.batch,
                    "epsilon": {f"{noise:g}": value for noise, value in row.epsilon.items()},
                }
                for row in self.rows
            ],
        }


def support(unit: str, ids: Iterable[str]) -> PrivacySupport:
    """Return what the data supports for one unit.

    Args:
        unit: `record`, `document` or `patient`.
        ids: The unit's id of each training note.
    """
    units = len(set(ids))
    delta = 1 / (10 * max(units, 1))
    rows = [_row(units, batch, delta) for batch in BATCHES if batch <= units * _LARGEST_RATE]
    return PrivacySupport(unit=unit, units=units, delta=delta, rows=tuple(rows))


def _row(units: int, batch: int, delta: float) -> PrivacyRow:
    """Return what one batch size costs."""
    q = batch / units
    steps = -(-EPOCHS * units // batch)
    epsilon = {
        noise: rdp_epsilon([PoissonSubsampledGaussian(q=q, noise_multiplier=noise, steps=steps)], delta=delta)
        for noise in NOISES
    }
    return PrivacyRow(q=q, steps=steps, batch=batch, epsilon=epsilon)
