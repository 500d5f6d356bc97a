"""Privacy mechanisms as data: what was done to one unit's contribution, for an accountant to interpret.

A mechanism says nothing about epsilon. `common.accounting` interprets it, and raises on one it does not
know, so that a new kind of release cannot be charged as nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from common.errors import ValidationError
from common.validation import require_choice, require_float, require_int, require_known_keys

UNITS = ("record", "document", "patient")
"""The privacy units, from the narrowest to the widest."""

_MAX_NOISE = 1e6
_MAX_STEPS = 10_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Mechanism:
    """Base of the mechanisms that a ledger can be charged for."""

    kind: ClassVar[str] = ""

    def to_dict(self) -> dict[str, object]:
        """Return the mechanism as plain JSON values, `mechanism` naming its kind."""
        return {"mechanism": self.kind} | dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class PoissonSubsampledGaussian(Mechanism):
    """`steps` sums of clipped contributions of a Poisson sample, each with Gaussian noise.

    Attributes:
        q: Rate at which each unit is drawn, in (0, 1].
        noise_multiplier: Standard deviation of the noise over the sum's sensitivity to one unit, above 0.
        steps: How many such sums were released, from 1.
    """

    kind: ClassVar[str] = "poisson-subsampled-gaussian"
    q: float
    noise_multiplier: float
    steps: int

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_float("q", self.q, minimum=0, maximum=1, open_minimum=True)
        require_float(
            "noise_multiplier", self.noise_multiplier, minimum=0, maximum=_MAX_NOISE, open_minimum=True
        )
        require_int("steps", self.steps, minimum=1, maximum=_MAX_STEPS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Gaussian(Mechanism):
    """One sum over all units with Gaussian noise, such as a noised count.

    Attributes:
        noise_multiplier: Standard deviation of the noise over the sum's sensitivity to one unit, above 0.
    """

    kind: ClassVar[str] = "gaussian"
    noise_multiplier: float

    def __post_init__(self) -> None:
        """Check the range."""
        require_float(
            "noise_multiplier", self.noise_multiplier, minimum=0, maximum=_MAX_NOISE, open_minimum=True
        )


_KINDS: dict[str, type[Mechanism]] = {one.kind: one for one in (PoissonSubsampledGaussian, Gaussian)}


def mechanism_from_dict(values: Mapping[str, object]) -> Mechanism:
    """Return the mechanism that `to_dict` wrote.

    Raises:
        ValidationError: The kind is unknown, a field is missing or unknown, or a value is out of range.
    """
    kind = require_choice("mechanism", values.get("mechanism"), _KINDS)
    names = {one.name for one in dataclasses.fields(_KINDS[kind])}
    fields = {name: value for name, value in values.items() if name != "mechanism"}
    require_known_keys(f"mechanism {kind}", fields, names)
    for name in sorted(names - fields.keys()):
        raise ValidationError(f"mechanism {kind} lacks the field {name!r}.")
    return _KINDS[kind](**fields)
