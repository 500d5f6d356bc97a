"""What a plan says about privacy, as the accountant's own values; sites and server compute the same.

Everything here is a function of the plan (and, where it says so, of the public roster) alone. The trainer
draws, clips and noises by the mechanism that `round_mechanism` returns, the ledger is charged with it, and
the server's report is computed from it, so that the three cannot drift apart.
"""

from __future__ import annotations

import dataclasses
import functools
import math

from common.accounting import Epsilon, calibrate_noise_multiplier, plan_epsilon
from common.errors import PlanError, ValidationError
from common.mechanisms import PoissonSubsampledGaussian
from common.plan import Plan, Privacy
from common.roster import Roster

NOISE_STEP = 1000
"""A calibrated noise multiplier is rounded up to a multiple of one over this."""


def private_section(plan: Plan) -> Privacy:
    """Return the plan's `[privacy]`.

    Raises:
        PlanError: The plan has none.
    """
    if plan.privacy is None:
        raise PlanError("The plan has no [privacy] section, and a private step was asked for.")
    return plan.privacy


def steps_per_round(plan: Plan) -> int:
    """Return the noised steps that one site takes in one round; a plan's steps divide evenly."""
    return private_section(plan).steps // plan.federation.rounds


def noise_multiplier(plan: Plan) -> float:
    """Return the noise multiplier of every step: the plan's own, or calibrated to its target epsilon.

    The target covers all planned steps and the reserved rounds. A calibrated value is rounded up to three
    decimals, so that the last bits of a machine's Fourier transform do not show in it.

    Raises:
        PlanError: No noise can meet the target.
    """
    return _noise(private_section(plan), plan.federation.rounds)


@functools.lru_cache(maxsize=64)
def _noise(privacy: Privacy, rounds: int) -> float:
    if privacy.noise_multiplier:
        return privacy.noise_multiplier
    try:
        least = calibrate_noise_multiplier(
            target_epsilon=privacy.target_epsilon,
            delta=privacy.delta,
            q=privacy.q,
            steps=privacy.steps,
            rounds=rounds,
            reserve_rounds=privacy.reserve_rounds,
        )
    except ValidationError as error:
        raise PlanError(f"The plan's [privacy] cannot be met: {error}") from None
    return math.ceil(least * NOISE_STEP) / NOISE_STEP


def round_mechanism(plan: Plan) -> PoissonSubsampledGaussian:
    """Return what one training of one round releases about a site's units."""
    return PoissonSubsampledGaussian(
        q=private_section(plan).q, noise_multiplier=noise_multiplier(plan), steps=steps_per_round(plan)
    )


def most_trainings(plan: Plan) -> int:
    """Return the most trainings that one site is charged for in one run: rounds and reserve."""
    return plan.federation.rounds + private_section(plan).reserve_rounds


def trainings_epsilon(plan: Plan, trainings: int) -> Epsilon:
    """Return what so many trainings of one site cost, up to `most_trainings`; 0 for none."""
    privacy = private_section(plan)
    if trainings == 0:
        return Epsilon(epsilon=0.0, delta=privacy.delta, unit=privacy.unit, method="prv")
    return _epsilon(round_mechanism(plan), min(trainings, most_trainings(plan)), privacy.delta, privacy.unit)


@functools.lru_cache(maxsize=256)
def _epsilon(mechanism: PoissonSubsampledGaussian, trainings: int, delta: float, unit: str) -> Epsilon:
    total = dataclasses.replace(mechanism, steps=mechanism.steps * trainings)
    return plan_epsilon([total], delta=delta, unit=unit)


def whole_epsilon(plan: Plan) -> Epsilon:
    """Return what the whole plan costs at one site, its reserve included."""
    return trainings_epsilon(plan, most_trainings(plan))


def denominator(plan: Plan, public_units: int) -> float:
    """Return what a noised sum is divided by: q times the roster's public number, never the actual one."""
    return private_section(plan).q * public_units


def check_private_plan(plan: Plan, roster: Roster) -> None:
    """Refuse a private plan whose promise means nothing, before anything runs.

    Raises:
        PlanError: No noise can meet the target, delta is not below one over a site's public units, or a site
            declares so few that a step would hold less than one.
    """
    if plan.privacy is None:
        return
    noise_multiplier(plan)
    for member in roster:
        # The noised sum is divided by this number: below one, the noise would be scaled up and nothing learnt.
        if denominator(plan, member.public_units) < 1:
            raise PlanError(
                f"{member.name} declares {member.public_units} public units, and privacy.q is "
                f"{plan.privacy.q:g}: that is less than one {plan.privacy.unit} a step. Enrol the site with about as "
                "many as it has (--public-units)."
            )
        # A mechanism that publishes one unit at random is (0, 1/n)-DP: such a delta promises nothing.
        if plan.privacy.delta * member.public_units >= 1:
            raise PlanError(
                f"privacy.delta is {plan.privacy.delta:g}, and {member.name} declares {member.public_units} "
                f"units; delta must be below one over the units, which is {1 / member.public_units:.3g}."
            )
