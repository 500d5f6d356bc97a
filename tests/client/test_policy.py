"""The site's policy: each clause refuses by itself, and all of them are listed at once."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import pytest

from client.policy import PlanFacts, Policy, describe
from common.errors import PlanError, PolicyError, ValidationError

HASH = "a" * 64
FACTS = PlanFacts(
    plan_hash=HASH,
    unit="patient",
    q=0.2,
    steps=60,
    reserve_rounds=2,
    noise_multiplier=1.5,
    epsilon=6.4,
    delta=1e-5,
    rounds=6,
    minimum_cohort=4,
    collusion_tolerance=2,
    secure_aggregation=True,
    sites=6,
)
NOT_PRIVATE: dict[str, Any] = dict.fromkeys(
    ("unit", "q", "steps", "reserve_rounds", "noise_multiplier", "epsilon", "delta")
)
TIGHT: dict[str, Any] = {
    "max_epsilon": 6.4,
    "max_delta": 1e-5,
    "required_unit": "patient",
    "min_noise_multiplier": 1.5,
    "max_q": 0.2,
    "max_steps": 80,
    "max_rounds": 6,
    "max_recharges": 2,
    "min_cohort": 4,
    "min_collusion_tolerance": 2,
    "max_collusion_tolerance": 2,
    "secure_aggregation_mandatory": True,
}
POLICY = Policy(approvals=Path("approvals.json"), **TIGHT)

BREACHES: list[tuple[str, dict[str, Any]]] = [
    ("max_epsilon", {"epsilon": 6.41}),
    ("max_delta", {"delta": 1.1e-5}),
    ("required_unit", {"unit": "document"}),
    ("required_unit", NOT_PRIVATE),
    ("min_noise_multiplier", {"noise_multiplier": 1.49}),
    ("max_q", {"q": 0.21}),
    ("max_steps", {"steps": 66}),
    ("max_rounds", {"rounds": 7, "steps": 56}),
    ("max_recharges", {"reserve_rounds": 3, "steps": 48}),
    ("min_cohort", {"minimum_cohort": 3}),
    ("min_collusion_tolerance", {"collusion_tolerance": 1}),
    ("max_collusion_tolerance", {"collusion_tolerance": 3}),
    ("secure_aggregation_mandatory", {"secure_aggregation": False}),
]


def test_a_plan_at_every_limit_passes() -> None:
    assert POLICY.violations(FACTS) == ()
    POLICY.check(FACTS, approved=[HASH])


@pytest.mark.parametrize(
    ("clause", "change"), BREACHES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_each_clause_refuses_by_itself(clause: str, change: dict[str, Any]) -> None:
    facts = dataclasses.replace(FACTS, **change)
    (sentence,) = POLICY.violations(facts)
    assert sentence.startswith(f"{clause}: ")
    assert sentence.endswith(".")
    with pytest.raises(PolicyError, match=rf"breaks 1 clause of this site's policy.*\n  - {clause}: "):
        POLICY.check(facts, approved=[HASH])


def test_no_setting_is_without_a_breach() -> None:
    settings = {one.name for one in dataclasses.fields(Policy)} - {"approvals"}
    assert {clause for clause, _ in BREACHES} == settings == TIGHT.keys()


def test_every_broken_clause_is_listed() -> None:
    worst = dataclasses.replace(
        FACTS, unit="record", q=1.0, steps=700, reserve_rounds=9, noise_multiplier=0.1, epsilon=900.0,
        delta=0.5, rounds=7, minimum_cohort=1, collusion_tolerance=0, sites=2,
    )  # fmt: skip
    with pytest.raises(PolicyError) as caught:
        POLICY.check(worst, approved=[])
    message = str(caught.value)
    named = [line.removeprefix("  - ").split(":")[0] for line in message.splitlines()[1:]]
    assert named == [
        "required_unit", "max_epsilon", "max_delta", "min_noise_multiplier", "max_q", "max_steps",
        "max_recharges", "max_rounds", "min_cohort", "min_collusion_tolerance", "approvals",
    ]  # fmt: skip
    assert "breaks 11 clauses" in message


def test_an_unapproved_plan_is_refused() -> None:
    with pytest.raises(PolicyError, match=r"approvals: the operator has not approved this plan"):
        POLICY.check(FACTS, approved=["b" * 64])


def test_a_wider_unit_than_required_passes_and_privacy_can_be_waived_only_in_writing() -> None:
    lax = dataclasses.replace(POLICY, required_unit="record")
    assert lax.violations(FACTS) == ()
    waived = dataclasses.replace(POLICY, required_unit="none")
    assert waived.violations(dataclasses.replace(FACTS, **NOT_PRIVATE)) == ()
    assert Policy(max_epsilon=1, max_delta=1e-6, approvals=Path("a")).required_unit == "patient"


@pytest.mark.parametrize(
    "change",
    [
        {"unit": None},
        {"epsilon": None},
        {"epsilon": float("nan")},
        {"epsilon": float("inf")},
        {"plan_hash": "x"},
        {"secure_aggregation": 1},
    ],
)
def test_facts_are_whole(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        dataclasses.replace(FACTS, **change)


def test_reserve_counts_whole_rounds() -> None:
    assert dataclasses.replace(FACTS, steps=61, rounds=6, reserve_rounds=2).most_steps == 61 + 2 * 11


class TestSiteFile:
    text = 'max_epsilon = 8\nmax_delta = 1e-5\napprovals = "approved.json"\n'

    def load(self, more: str = "", *, text: str | None = None) -> Policy:
        table = tomllib.loads((self.text if text is None else text) + more)
        return Policy.from_table(table, site_file=Path("/srv/ward/site.toml"))

    def test_a_short_one_is_strict_by_default(self) -> None:
        policy = self.load()
        assert policy.secure_aggregation_mandatory
        assert policy.required_unit == "patient"
        assert policy.approvals == Path("/srv/ward/approved.json")
        assert (policy.limit.max_epsilon, policy.limit.max_delta) == (8.0, 1e-5)

    @pytest.mark.parametrize(
        ("more", "sentence"),
        [
            ("max_epsilom = 3", r"unknown key 'max_epsilom'; did you mean 'max_epsilon'"),
            ("max_q = 1.5", "max_q is 1.5"),
            ("max_steps = 2.5", "max_steps is 2.5"),
            ("required_unit = 'pateint'", "Did you mean 'patient'"),
            ("secure_aggregation_mandatory = 'no'", "must be true or false"),
            ("min_collusion_tolerance = 3\nmax_collusion_tolerance = 2", "no plan can meet both"),
        ],
    )
    def test_a_mistake_names_file_and_setting(self, more: str, sentence: str) -> None:
        with pytest.raises(PlanError, match=rf"^/srv/ward/site.toml, \[policy\]: .*{sentence}"):
            self.load(more)

    @pytest.mark.parametrize("name", ["max_epsilon", "max_delta", "approvals"])
    def test_what_has_no_safe_default_must_be_there(self, name: str) -> None:
        lines = [line for line in self.text.splitlines() if not line.startswith(name)]
        with pytest.raises(PlanError, match=f"{name} is missing"):
            self.load(text="\n".join(lines))


class TestDescription:
    def test_it_says_what_leaves_and_what_it_costs(self) -> None:
        text = describe(FACTS)
        for words in (
            "6 sites train together for 6 rounds",
            "only the sum over at least 4 sites",
            "at most 2 of them collude",
            "Each of 60 steps draws every patient with probability 0.2",
            "noise of 1.5 times",
            "up to 2 rounds may be trained and charged again: at most 80 steps",
            "epsilon 6.4 at delta 1e-05 for one patient added or removed",
            "odds of at most 602 to 1",
            "sum of the sites' epsilons",
        ):
            assert words in text

    def test_it_warns_of_what_is_off(self) -> None:
        text = describe(dataclasses.replace(FACTS, secure_aggregation=False, **NOT_PRIVATE))
        assert "Secure aggregation is OFF" in text
        assert "The plan is NOT private" in text
        assert "A patient with several records is protected less" in describe(
            dataclasses.replace(FACTS, unit="record")
        )
