"""The list of stages that a site's update passes through, and that the server undoes in reverse.

A stage on the site maps one site's fields; its inverse on the server maps the fields of the sum. The list
is a function of the plan alone, so both ends have the same one. Masking is not a stage of this list: it is
a conversation (`secure_aggregation`) around the vector that the last stage leaves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Fields = Mapping[str, NDArray[Any]]

DELTA = "delta"
"""The field that holds the change of the trained parameters; the only one that is weighted."""

STATISTICS = ("num_examples", "num_tokens", "loss_sum")
"""Scalar fields that a site without privacy sends along; each is a vector of one."""


class UpdateStage(Protocol):
    """One reversible step between a site's update and what travels."""

    def apply(self, fields: Fields, *, weight: float) -> Fields:
        """Map one site's fields."""

    def undo(self, total: Fields, *, weights: Sequence[float]) -> Fields:
        """Map the fields of the sum over the sites with these weights."""


@dataclass(frozen=True)
class Weighting:
    """Multiplies the delta by the site's public weight; the server divides by the weights' sum."""

    def apply(self, fields: Fields, *, weight: float) -> Fields:
        """Weight the delta and leave the statistics."""
        return {k: v * np.float32(weight) if k == DELTA else v for k, v in fields.items()}

    def undo(self, total: Fields, *, weights: Sequence[float]) -> Fields:
        """Turn the summed delta into the weighted mean."""
        divisor = math.fsum(weights)
        return {k: v / divisor if k == DELTA else v for k, v in total.items()}


def apply_stages(stages: Sequence[UpdateStage], fields: Fields, *, weight: float) -> Fields:
    """Run an update forward through all stages."""
    for stage in stages:
        fields = stage.apply(fields, weight=weight)
    return fields


def undo_stages(stages: Sequence[UpdateStage], total: Fields, *, weights: Sequence[float]) -> Fields:
    """Run a sum backward through all stages."""
    for stage in reversed(stages):
        total = stage.undo(total, weights=weights)
    return total
