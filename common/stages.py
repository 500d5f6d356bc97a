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
"""The field that holds the change of the trained parameters, `(parameters,)`."""

SUM_STATISTICS = ("num_examples", "num_tokens", "num_clipped")
"""Counts that a site without privacy sends along, each a vector of one; the server sees their sums."""

MEAN_STATISTICS = ("train_loss",)
"""Values that a site without privacy sends along, weighted like the delta; the server sees their mean."""

_WEIGHTED = frozenset((DELTA, *MEAN_STATISTICS))


def field_names(*, private: bool) -> tuple[str, ...]:
    """Return the fields of every site's update; under privacy the delta travels alone."""
    return (DELTA,) if private else (DELTA, *SUM_STATISTICS, *MEAN_STATISTICS)


class UpdateStage(Protocol):
    """One reversible step between a site's update and what travels."""

    def apply(self, fields: Fields, *, weight: float) -> Fields:
        """Map one site's fields."""

    def undo(self, total: Fields, *, weights: Sequence[float]) -> Fields:
        """Map the fields of the sum over the sites with these weights."""


@dataclass(frozen=True)
class Weighting:
    """Multiplies what is averaged by the site's public weight; the server divides by the weights' sum."""

    def apply(self, fields: Fields, *, weight: float) -> Fields:
        """Weight the delta and the mean statistics; counts stay as they are."""
        return {k: v * np.float32(weight) if k in _WEIGHTED else v for k, v in fields.items()}

    def undo(self, total: Fields, *, weights: Sequence[float]) -> Fields:
        """Turn weighted sums into weighted means."""
        divisor = math.fsum(weights)
        return {k: v / divisor if k in _WEIGHTED else v for k, v in total.items()}


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
