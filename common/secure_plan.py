"""What a plan says about secure aggregation, as the protocol's own values; both ends compute the same."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from common.aggregation_graph import design_graph
from common.errors import PlanError, ValidationError
from common.plan import Plan
from common.quantization import LARGEST_SUM, FieldSpec, RingLayout
from common.roster import Roster
from common.secagg_parameters import AttemptContext, SecureAggregationParameters
from common.stages import DELTA, MEAN_STATISTICS, SUM_STATISTICS

_LARGEST_COUNT = 2**24
_LOSS_BOUND = 64.0


def secure_parameters(plan: Plan) -> SecureAggregationParameters:
    """Return the protocol's parameters.

    Raises:
        PlanError: They do not fit each other.
    """
    section, federation = plan.secure_aggregation, plan.federation
    try:
        return SecureAggregationParameters(
            collusion_tolerance=section.collusion_tolerance,
            threshold=section.threshold,
            minimum_cohort=federation.minimum_cohort,
            bits=section.bits,
            dropout_tolerance=section.dropout_tolerance,
            rounds=federation.rounds,
            attempts=federation.attempts,
        )
    except ValidationError as error:
        raise PlanError(f"The plan's [secure_aggregation] cannot be used: {error}") from None


def ring_layout(plan: Plan, *, parameters: int, sites: int) -> RingLayout:
    """Return how an update of so many parameters lies in the ring, for a roster of so many sites.

    The delta arrives weighted (`common.stages.Weighting`), so no field is weighted again here. Under privacy
    the delta travels alone.

    Raises:
        PlanError: A sum could wrap.
    """
    section = plan.secure_aggregation
    fields = [FieldSpec.real(DELTA, size=parameters, bound=section.clip, bits=section.bits, weighted=False)]
    if plan.privacy is None:
        count = min(_LARGEST_COUNT, LARGEST_SUM // sites)
        fields += [FieldSpec.count(name, bound=count) for name in SUM_STATISTICS]
        fields += [
            FieldSpec.real(name, size=1, bound=_LOSS_BOUND, bits=section.bits, weighted=False)
            for name in MEAN_STATISTICS
        ]
    try:
        return RingLayout(fields=tuple(fields), maximum_sites=sites)
    except ValidationError as error:
        raise PlanError(f"secure_aggregation.bits is {section.bits}: {error}") from None


def check_secure_plan(plan: Plan, roster: Roster, *, parameters: int) -> None:
    """Refuse a plan whose secure aggregation cannot work with this roster, before anything runs.

    Raises:
        PlanError: The cohort is too small, too large for its graph, or a sum could wrap.
    """
    if not plan.secure_aggregation.enabled:
        return
    settings = secure_parameters(plan)
    ring_layout(plan, parameters=parameters, sites=len(roster))
    try:
        settings.check_cohort(len(roster))
        design_graph(len(roster), settings)
    except ValidationError as error:
        raise PlanError(f"The plan's [secure_aggregation] does not fit the roster: {error}") from None


def attempt_context(
    plan: Plan, layout: RingLayout, *, model_hash: str, server_round: int, attempt: int, nonce: bytes
) -> AttemptContext:
    """Return what one attempt is bound to: plan, model, parameters, round, attempt and nonce."""
    return AttemptContext.of(
        secure_parameters(plan),
        layout,
        plan_hash=bytes.fromhex(plan.hash),
        model_hash=bytes.fromhex(model_hash),
        round=server_round,
        attempt=attempt,
        nonce=nonce,
    )


def clip_counts(values: NDArray[np.float32], *, sites: int) -> NDArray[np.float32]:
    """Bound a count field to what its place in the ring holds exactly."""
    return np.minimum(values, np.float32(min(_LARGEST_COUNT, LARGEST_SUM // sites)))
