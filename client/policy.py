"""What a site will take part in: the numbers of `[policy]` in its site.toml, which no server can change.

A plan that breaks the policy is refused with every clause it breaks, so that the consortium mends it once.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.ledger import LifetimeLimit
from client.ledger_book import require_hash
from common.accounting import UNITS, require_delta
from common.errors import PlanError, PolicyError, ValidationError
from common.validation import (
    require_bool,
    require_choice,
    require_float,
    require_int,
    require_known_keys,
    require_text,
)

_MANY = 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanFacts:
    """The numbers of a plan that a policy speaks of.

    Attributes:
        plan_hash: SHA-256 of the plan, 64 hexadecimal digits.
        unit: The privacy unit; None where the plan is not private. Then the six fields below are None too.
        q: Sampling rate, in (0, 1].
        steps: Noised steps of one site over all planned rounds.
        reserve_rounds: Rounds that may be trained once more.
        noise_multiplier: Of every step, above 0.
        epsilon: Of the whole plan at one site, reserve included.
        delta: Of that epsilon.
        rounds: Planned rounds.
        minimum_cohort: Fewest sites that a sum may be of.
        collusion_tolerance: Sites that may collude with the server without opening another site's update.
        secure_aggregation: Whether the server sees only the sum.
        sites: Members of the roster.
    """

    plan_hash: str
    unit: str | None
    q: float | None
    steps: int | None
    reserve_rounds: int | None
    noise_multiplier: float | None
    epsilon: float | None
    delta: float | None
    rounds: int
    minimum_cohort: int
    collusion_tolerance: int
    secure_aggregation: bool
    sites: int

    def __post_init__(self) -> None:
        """Check the ranges, and that a plan is private as a whole or not at all."""
        require_hash("plan_hash", self.plan_hash)
        require_int("rounds", self.rounds, minimum=1, maximum=_MANY)
        require_int("minimum_cohort", self.minimum_cohort, minimum=1, maximum=_MANY)
        require_int("collusion_tolerance", self.collusion_tolerance, minimum=0, maximum=_MANY)
        require_int("sites", self.sites, minimum=1, maximum=_MANY)
        require_bool("secure_aggregation", self.secure_aggregation)
        if self.unit is None:
            for name in _PRIVATE:
                if getattr(self, name) is not None:
                    raise ValidationError(f"{name} is given although the plan has no privacy unit.")
            return
        require_choice("unit", self.unit, UNITS)
        require_float("q", self.q, minimum=0, maximum=1, open_minimum=True)
        require_int("steps", self.steps, minimum=1, maximum=10 * _MANY)
        require_int("reserve_rounds", self.reserve_rounds, minimum=0, maximum=_MANY)
        require_float("noise_multiplier", self.noise_multiplier, minimum=0, maximum=1e6, open_minimum=True)
        require_float("epsilon", self.epsilon, minimum=0, maximum=1e300)
        require_delta(self.delta)

    @property
    def most_steps(self) -> int:
        """Noised steps of one site, the reserve included; 0 where the plan is not private."""
        if self.steps is None or self.reserve_rounds is None:
            return 0
        return self.steps + self.reserve_rounds * -(-self.steps // self.rounds)


_PRIVATE = ("q", "steps", "reserve_rounds", "noise_multiplier", "epsilon", "delta")


def _setting(check: Callable[[str, object], object], **default: Any) -> Any:
    """Declare a setting whose value passes through `check(name, value)`."""
    return dataclasses.field(metadata={"check": check}, **default)


def _whole(minimum: int) -> Callable[[str, object], object]:
    """Return a check for a whole number from `minimum`."""
    return lambda name, value: require_int(name, value, minimum=minimum, maximum=10 * _MANY)


def _real(maximum: float, *, zero: bool = False) -> Callable[[str, object], object]:
    """Return a check for a number up to `maximum`."""
    return lambda name, value: require_float(name, value, minimum=0, maximum=maximum, open_minimum=not zero)


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The limits that a site holds every plan and every charge against.

    Attributes:
        max_epsilon: Most that the site will ever spend on one account, and most that one plan may cost.
        max_delta: Largest delta of an account or plan.
        approvals: File of the plans that the operator approved, signed with the site's key.
        required_unit: Narrowest privacy unit: `record` < `document` < `patient`; `none` lets plans without
            privacy in too, which must be written out.
        min_noise_multiplier: Least noise of a step.
        max_q: Largest sampling rate.
        max_steps: Most noised steps of one plan, its reserve included.
        max_rounds: Most rounds of one plan.
        max_recharges: Most rounds that a plan may have trained and charged once more.
        min_cohort: Fewest sites whose sum may be opened.
        min_collusion_tolerance: Fewest colluding sites that the plan must withstand.
        max_collusion_tolerance: Largest tolerance that the site believes a plan can have. A plan that claims
            more rests on more honest sites than its roster can be trusted to hold.
        secure_aggregation_mandatory: Refuse a plan under which the server sees single updates.
    """

    max_epsilon: float = _setting(_real(1e6))
    max_delta: float = _setting(lambda name, value: require_delta(value))
    approvals: Path = _setting(lambda name, value: value)  # noqa: RUF009
    required_unit: str = _setting(
        lambda name, value: require_choice(name, value, ("none", *UNITS)), default="patient"
    )
    min_noise_multiplier: float = _setting(_real(1e6, zero=True), default=0.5)
    max_q: float = _setting(_real(1.0), default=0.5)
    max_steps: int = _setting(_whole(1), default=10_000)
    max_rounds: int = _setting(_whole(1), default=500)
    max_recharges: int = _setting(_whole(0), default=5)
    min_cohort: int = _setting(_whole(1), default=3)
    min_collusion_tolerance: int = _setting(_whole(0), default=1)
    max_collusion_tolerance: int = _setting(_whole(0), default=100_000)
    secure_aggregation_mandatory: bool = _setting(require_bool, default=True)

    def __post_init__(self) -> None:
        """Check every setting."""
        for one in dataclasses.fields(self):
            one.metadata["check"](one.name, getattr(self, one.name))
        if self.min_collusion_tolerance > self.max_collusion_tolerance:
            raise ValidationError(
                f"min_collusion_tolerance is {self.min_collusion_tolerance} and max_collusion_tolerance is "
                f"{self.max_collusion_tolerance}; no plan can meet both."
            )

    @classmethod
    def from_table(cls, table: Mapping[str, object], *, site_file: Path) -> Policy:
        """Return the policy of a site file's `[policy]` table.

        Args:
            table: The table; `max_epsilon`, `max_delta` and `approvals` must be there. `approvals` is a path,
                taken from the site file's folder.
            site_file: The file, for messages and for relative paths.

        Raises:
            PlanError: A setting is missing, unknown or out of range; the sentence names file and setting.
        """
        fields = {one.name: one for one in dataclasses.fields(cls)}
        try:
            require_known_keys("[policy]", table, fields)
            for name, one in fields.items():
                if one.default is dataclasses.MISSING and name not in table:
                    raise ValidationError(
                        f"{name} is missing; a site must say it itself, there is no safe default."
                    )
            path = Path(require_text("approvals", table["approvals"]))
            return cls(**{**table, "approvals": site_file.parent / path})  # type: ignore[arg-type]
        except ValidationError as error:
            raise PlanError(f"{site_file}, [policy]: {error}") from error

    @property
    def limit(self) -> LifetimeLimit:
        """The lifetime limit that the ledger enforces."""
        return LifetimeLimit(max_epsilon=self.max_epsilon, max_delta=self.max_delta)

    def violations(self, facts: PlanFacts) -> tuple[str, ...]:
        """Return a sentence for every clause that a plan breaks, approval aside; empty where there is "
        "none."""
        return (*self._privacy_violations(facts), *self._federation_violations(facts))

    def check(self, facts: PlanFacts, *, approved: Container[str]) -> None:
        """Return if the site may take part in a plan.

        Args:
            facts: The plan's numbers.
            approved: Hashes of the approved plans, or `Approvals`.

        Raises:
            PolicyError: It may not; the message lists every clause that the plan breaks.
        """
        broken = list(self.violations(facts))
        if facts.plan_hash not in approved:
            broken.append(
                "approvals: the operator has not approved this plan; read what it would do with "
                "`fedward-site approve plan.toml`."
            )
        if broken:
            count = f"{len(broken)} clause{'s' if len(broken) > 1 else ''}"
            lines = "".join(f"\n  - {sentence}" for sentence in broken)
            raise PolicyError(
                f"plan {facts.plan_hash[:12]} breaks {count} of this site's policy; nothing was "
                f"charged:{lines}"
            )

    def _privacy_violations(self, facts: PlanFacts) -> Iterator[str]:
        """Yield what is wrong with the plan's privacy."""
        if facts.unit is None:
            if self.required_unit != "none":
                yield f"required_unit: the plan is not private; unit {self.required_unit} is required."
            return
        if self.required_unit != "none" and UNITS.index(facts.unit) < UNITS.index(self.required_unit):
            yield f"required_unit: the plan's unit is {facts.unit}; {self.required_unit} is required."
        yield from _most("max_epsilon", "the plan's epsilon", facts.epsilon, self.max_epsilon)
        yield from _most("max_delta", "the plan's delta", facts.delta, self.max_delta)
        yield from _least(
            "min_noise_multiplier", "its noise multiplier", facts.noise_multiplier, self.min_noise_multiplier
        )
        yield from _most("max_q", "its sampling rate q", facts.q, self.max_q)
        yield from _most("max_steps", "its steps with the reserve", facts.most_steps, self.max_steps)
        yield from _most("max_recharges", "its reserve_rounds", facts.reserve_rounds, self.max_recharges)

    def _federation_violations(self, facts: PlanFacts) -> Iterator[str]:
        """Yield what is wrong with the plan's federation."""
        yield from _most("max_rounds", "its rounds", facts.rounds, self.max_rounds)
        yield from _least("min_cohort", "its minimum cohort", facts.minimum_cohort, self.min_cohort)
        if not facts.secure_aggregation:
            if self.secure_aggregation_mandatory:
                yield (
                    "secure_aggregation_mandatory: the plan switches secure aggregation off, so that the "
                    "server would see this site's own update."
                )
            return
        tolerance = facts.collusion_tolerance
        yield from _least(
            "min_collusion_tolerance", "its collusion tolerance", tolerance, self.min_collusion_tolerance
        )
        yield from _most(
            "max_collusion_tolerance", "its collusion tolerance", tolerance, self.max_collusion_tolerance
        )


def _most(setting: str, what: str, value: float | None, limit: float) -> Iterator[str]:
    """Yield a sentence if a value is above its limit."""
    # Written so that a value that does not compare is refused.
    if value is None or not value <= limit:
        yield f"{setting}: {what} is {_number(value)}, at most {_number(limit)} is allowed."


def _least(setting: str, what: str, value: float | None, limit: float) -> Iterator[str]:
    """Yield a sentence if a value is below its limit."""
    if value is None or not value >= limit:
        yield f"{setting}: {what} is {_number(value)}, at least {_number(limit)} is required."


def _number(value: float | None) -> str:
    """Return a number so that two that differ read differently."""
    return "missing" if value is None else str(value) if isinstance(value, int) else f"{value:.6g}"


def describe(facts: PlanFacts) -> str:
    """Return, in plain words, what a plan would do with this site's data and what that would cost."""
    return "\n".join([f"Plan {facts.plan_hash}", *_describe_federation(facts), *_describe_privacy(facts)])


def _describe_federation(facts: PlanFacts) -> Iterator[str]:
    """Yield what would leave the site, and who could read it."""
    yield f"{facts.sites} sites train together for {facts.rounds} rounds; this site trains in each."
    if not facts.secure_aggregation:
        yield "Secure aggregation is OFF: the server sees what this site sends, by itself, in every round."
        return
    yield (
        f"The server can open only the sum over at least "
        f"{max(facts.minimum_cohort, facts.collusion_tolerance + 2)} sites, as long as at most "
        f"{facts.collusion_tolerance} of them collude with it."
    )


def _describe_privacy(facts: PlanFacts) -> Iterator[str]:
    """Yield what the released model could tell, and what the ledger would be charged."""
    if facts.unit is None:
        yield (
            "The plan is NOT private: no noise is added, the trained model may repeat what it learnt from a "
            "single patient, and no epsilon bounds it."
        )
        return
    numbers = (facts.q, facts.noise_multiplier, facts.epsilon, facts.delta, facts.steps)
    q, noise, epsilon, delta, steps = (math.nan if value is None else value for value in numbers)
    yield (
        f"Each of {steps} steps draws every {facts.unit} with probability {q:g}, bounds what it contributes, "
        f"and adds noise of {noise:g} times that bound before anything leaves the site."
    )
    if facts.reserve_rounds:
        yield (
            f"After a crash, up to {facts.reserve_rounds} rounds may be trained and charged again: at most "
            f"{facts.most_steps} steps."
        )
    yield (
        f"Together that costs epsilon {epsilon:.3g} at delta {delta:g} for one {facts.unit} added or "
        "removed. "
        f"Whoever tries to tell from the model whether one {facts.unit} was there gains odds of at most "
        f"{_odds(epsilon)}, save with probability about {delta:g}. A person treated at several sites bears "
        "the sum of the sites' epsilons."
    )
    if facts.unit != "patient":
        yield (
            f"A patient with several {facts.unit}s is protected less: epsilon grows with the number of "
            f"{facts.unit}s."
        )


def _odds(epsilon: float) -> str:
    """Return e to the epsilon as a factor in words."""
    return f"{math.exp(epsilon):,.3g} to 1" if epsilon < 20 else "more than 100 million to 1"


def read_policy(path: Path) -> Policy:
    """Read the policy of a `site.toml`, or of a file that holds the fields of `[policy]` alone.

    Raises:
        PlanError: The file cannot be read, or a setting is missing, unknown or out of range.
    """
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise PlanError(f"{path}: the policy cannot be read ({error}).") from None
    inner = table.get("policy", table)
    if not isinstance(inner, dict):
        raise PlanError(f"{path}: [policy] must be a table, not {inner!r}.")
    return Policy.from_table(inner, site_file=path)
