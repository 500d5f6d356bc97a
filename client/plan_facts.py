"""A plan's numbers in the form that a site's policy and its operator judge."""

from __future__ import annotations

from client.policy import PlanFacts
from common.plan import Plan
from common.private_plan import noise_multiplier, whole_epsilon


def facts_of(plan: Plan, *, sites: int) -> PlanFacts:
    """Return what a policy speaks of.

    Args:
        plan: The plan.
        sites: Members of its roster.

    Raises:
        PlanError: No noise can meet the plan's target epsilon.
    """
    privacy = plan.privacy
    return PlanFacts(
        plan_hash=plan.hash,
        unit=privacy.unit if privacy else None,
        q=privacy.q if privacy else None,
        steps=privacy.steps if privacy else None,
        reserve_rounds=privacy.reserve_rounds if privacy else None,
        noise_multiplier=noise_multiplier(plan) if privacy else None,
        epsilon=whole_epsilon(plan).epsilon if privacy else None,
        delta=privacy.delta if privacy else None,
        rounds=plan.federation.rounds,
        minimum_cohort=plan.federation.minimum_cohort,
        collusion_tolerance=plan.secure_aggregation.collusion_tolerance,
        secure_aggregation=plan.secure_aggregation.enabled,
        sites=sites,
    )
