"""A plan's numbers in the form that a site's policy and its operator judge."""

from __future__ import annotations

from client.policy import PlanFacts
from common.accounting import calibrate_noise_multiplier, plan_epsilon
from common.mechanisms import PoissonSubsampledGaussian
from common.plan import Plan


def facts_of(plan: Plan, *, sites: int) -> PlanFacts:
    """Return what a policy speaks of.

    Args:
        plan: The plan.
        sites: Members of its roster.

    Raises:
        ValidationError: No noise can meet the plan's target epsilon.
    """
    privacy = plan.privacy
    noise, epsilon = _cost(plan)
    return PlanFacts(
        plan_hash=plan.hash,
        unit=privacy.unit if privacy else None,
        q=privacy.q if privacy else None,
        steps=privacy.steps if privacy else None,
        reserve_rounds=privacy.reserve_rounds if privacy else None,
        noise_multiplier=noise,
        epsilon=epsilon,
        delta=privacy.delta if privacy else None,
        rounds=plan.federation.rounds,
        minimum_cohort=plan.federation.minimum_cohort,
        collusion_tolerance=plan.secure_aggregation.collusion_tolerance,
        secure_aggregation=plan.secure_aggregation.enabled,
        sites=sites,
    )


def _cost(plan: Plan) -> tuple[float | None, float | None]:
    """Return the noise multiplier and the epsilon of the whole plan, its reserve included."""
    privacy, rounds = plan.privacy, plan.federation.rounds
    if privacy is None:
        return None, None
    noise = privacy.noise_multiplier or calibrate_noise_multiplier(
        target_epsilon=privacy.target_epsilon,
        delta=privacy.delta,
        q=privacy.q,
        steps=privacy.steps,
        rounds=rounds,
        reserve_rounds=privacy.reserve_rounds,
    )
    steps = privacy.steps + privacy.reserve_rounds * (privacy.steps // rounds)
    spent = PoissonSubsampledGaussian(q=privacy.q, noise_multiplier=noise, steps=steps)
    return noise, plan_epsilon([spent], delta=privacy.delta, unit=privacy.unit).epsilon
