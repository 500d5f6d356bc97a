"""The plan's privacy as numbers: the same at every party, and within the target."""

import dataclasses
import subprocess
import sys

import pytest

from common import private_plan
from common.accounting import plan_epsilon
from common.errors import PlanError, ValidationError
from common.mechanisms import PoissonSubsampledGaussian
from common.plan import Federation, Plan, Privacy, read_plan
from common.private_plan import (
    check_private_plan,
    denominator,
    most_trainings,
    noise_multiplier,
    round_mechanism,
    trainings_epsilon,
    whole_epsilon,
)
from common.roster import Member, Roster

TARGET = Plan(
    federation=Federation(rounds=5),
    privacy=Privacy(q=1.0, steps=10, target_epsilon=4.0, delta=1e-5, reserve_rounds=1),
)


def roster(public_units):
    return Roster((Member(name="a", identity_key=b"k" * 32, public_units=public_units),))


def test_a_plans_own_noise_is_taken_as_it_is():
    plan = Plan(privacy=Privacy(q=0.3, steps=16, noise_multiplier=1.234567))
    assert round_mechanism(plan) == PoissonSubsampledGaussian(q=0.3, noise_multiplier=1.234567, steps=2)


def test_a_target_is_met_with_the_reserve_and_not_missed_by_much():
    whole = whole_epsilon(TARGET)
    assert 3.9 < whole.epsilon <= 4.0
    assert most_trainings(TARGET) == 6
    twelve = PoissonSubsampledGaussian(q=1.0, noise_multiplier=noise_multiplier(TARGET), steps=12)
    assert whole == plan_epsilon([twelve], delta=1e-5, unit="record")


def test_the_calibrated_noise_is_the_same_in_another_process(tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text(TARGET.to_toml(), encoding="utf-8")
    code = (
        "import sys, pathlib; from common.plan import read_plan; from common.private_plan import noise_multiplier;"
        "print(repr(noise_multiplier(read_plan(pathlib.Path(sys.argv[1])))))"
    )
    told = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert float(told.stdout) == noise_multiplier(TARGET)
    assert round(noise_multiplier(TARGET), 3) == noise_multiplier(TARGET)


def test_the_calibration_runs_once_for_a_plan(monkeypatch):
    noise_multiplier(TARGET)
    monkeypatch.setattr(
        private_plan, "calibrate_noise_multiplier", lambda **_: pytest.fail("calibrated again")
    )
    assert noise_multiplier(dataclasses.replace(TARGET, seed=99)) == noise_multiplier(TARGET)


def test_trainings_cost_more_one_by_one_and_never_more_than_the_plan():
    costs = [trainings_epsilon(TARGET, n).epsilon for n in range(8)]
    assert costs[0] == 0.0
    assert costs[:7] == sorted(set(costs[:7]))
    assert costs[7] == costs[6] == whole_epsilon(TARGET).epsilon


def test_the_denominator_is_a_public_product():
    assert denominator(Plan(privacy=Privacy(q=0.2, steps=8, noise_multiplier=1.0)), 1500) == 300.0


def test_a_target_that_no_noise_can_meet_is_refused():
    plan = dataclasses.replace(TARGET, privacy=Privacy(q=1.0, steps=10, target_epsilon=1e-9, delta=1e-9))
    with pytest.raises(PlanError, match="no noise can meet it"):
        check_private_plan(plan, roster(10))


@pytest.mark.parametrize(("units", "good"), [(99_999, True), (100_000, False)])
def test_delta_is_below_one_over_the_units(units, good):
    if good:
        check_private_plan(TARGET, roster(units))
        return
    with pytest.raises(PlanError, match=r"must be below one over the units, which is 1e-05"):
        check_private_plan(TARGET, roster(units))


def test_a_plan_without_privacy_has_nothing_to_check():
    check_private_plan(Plan(), roster(10**9))
    with pytest.raises(PlanError, match=r"no \[privacy\] section"):
        round_mechanism(Plan())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[federation]\nlocal_epochs = 1", "local_epochs is 1; under .* no accountant here covers"),
        ("[federation]\nlocal_epochs = 3", "local_epochs is 3"),
        ("[federation]\nlocal_steps = 3\nlocal_epochs = 0", "local_steps is 3"),
        ("[training]\nphysical_tokens = 100", "whether a window fits must not depend on the records"),
        ('engine = "ghost"\nclipping = "per_layer"', "one weighted loss cannot clip each layer"),
    ],
)
def test_what_breaks_the_claim_is_refused_with_its_reason(tmp_path, text, message):
    path = tmp_path / "plan.toml"
    path.write_text(f"[privacy]\nsteps = 8\nnoise_multiplier = 1.0\n{text}\n", encoding="utf-8")
    with pytest.raises(PlanError, match=message):
        read_plan(path)


def test_a_private_plan_has_no_epochs_and_reads_back_equal(tmp_path):
    plan = Plan(privacy=Privacy(steps=8, noise_multiplier=1.0))
    assert plan.federation.local_epochs == 0
    path = tmp_path / "plan.toml"
    path.write_text(plan.to_toml(), encoding="utf-8")
    assert read_plan(path) == plan
    with pytest.raises(ValidationError, match="local_epochs is 2"):
        Plan(federation=Federation(local_epochs=2), privacy=plan.privacy)
