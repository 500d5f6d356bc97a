"""Whole private runs in one process: epsilon in the result, budgets that end, secure aggregation on top."""

import json

import pytest

from client.private_trainer import PrivateTrainer
from common.errors import InputError, PolicyError, RoundError
from simulation.budgets import SiteFolders, lifetime_epsilon
from simulation.cli import main
from simulation.engine import simulate

PRIVATE = {
    "privacy__unit": "record",
    "privacy__q": 0.5,
    "privacy__steps": 4,
    "privacy__noise_multiplier": 1.0,
    "federation__minimum_cohort": 2,
}
SECURE = {"secure_aggregation__enabled": True, "federation__minimum_cohort": 3, "simulation__sites": 5}


def test_the_result_states_each_sites_epsilon(make_plan, make_data, tmp_path):
    result = simulate(make_plan(**PRIVATE), make_data(24), tmp_path / "run")
    assert set(result["privacy"]) == {"site-1", "site-2", "site-3"}
    claim = result["privacy"]["site-1"]
    assert result["epsilon"] == claim["epsilon"] > 0
    assert claim["delta"] == 1e-5
    assert claim["neighbouring"] == "add-or-remove-one record"
    assert claim["composition"] == {
        "mechanism": "poisson-subsampled-gaussian",
        "trainings": 2,
        "steps": 4,
        "q": 0.5,
        "noise_multiplier": 1.0,
    }
    assert result["privacy_across_sites"]["epsilon"] == pytest.approx(3 * claim["epsilon"])
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "the bounds add up" in page
    assert "4 steps in 2 trainings at sampling rate 0.5 with noise multiplier 1" in page
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert not {"train_loss", "num_examples", "num_tokens", "num_clipped"} & set().union(*rows)


def test_a_second_run_is_refused_when_the_budget_is_gone(make_plan, make_data, tmp_path, monkeypatch):
    plan, data, ledgers = make_plan(**PRIVATE), make_data(24), tmp_path / "ledgers"
    simulate(plan, data, tmp_path / "first", ledgers=ledgers)
    trained = []
    monkeypatch.setattr(PrivateTrainer, "train", lambda *_, **__: trained.append(1))
    monkeypatch.setattr("client.round_training.SiteRecords.examples", lambda self: trained.append(2))
    with pytest.raises(RoundError, match=r"site-1 \(refused-ledger\)") as caught:
        simulate(make_plan(8, **PRIVATE), data, tmp_path / "second", ledgers=ledgers)
    assert "0 sites trained" in str(caught.value)
    assert trained == []


def test_a_plan_that_costs_more_than_the_site_ever_spends_is_refused(make_plan, make_data, tmp_path):
    with pytest.raises(PolicyError, match=r"max_epsilon: the plan's epsilon is .* at most 0.5"):
        simulate(make_plan(**PRIVATE), make_data(24), tmp_path / "run", max_epsilon=0.5)


def test_a_sites_limit_is_set_once(make_plan, make_data, tmp_path):
    plan = make_plan(**PRIVATE)
    simulate(plan, make_data(24), tmp_path / "one", ledgers=tmp_path / "ledgers", max_epsilon=60)
    with pytest.raises(InputError, match="a site's limit is set once"):
        simulate(plan, make_data(24), tmp_path / "two", ledgers=tmp_path / "ledgers", max_epsilon=90)


def test_a_first_policy_lets_its_plan_through_once(make_plan, tmp_path):
    plan = make_plan(**PRIVATE, privacy__reserve_rounds=1)
    folders = SiteFolders(tmp_path)
    with folders.budgets(plan, {"a": folders.identity_key("a")}) as budgets:
        ledger, policy = budgets["a"].ledger, budgets["a"].policy
        assert policy.max_epsilon == pytest.approx(lifetime_epsilon(plan))
        from common.private_plan import round_mechanism

        assert ledger.rounds_left("records", [round_mechanism(plan)]) == 3


def test_secure_aggregation_and_privacy_together_survive_dropouts(make_plan, make_data, tmp_path):
    plan = make_plan(**{**PRIVATE, **SECURE})
    result = simulate(
        plan, make_data(30), tmp_path / "run", faults=["drop:site-2@1/upload", "drop:site-5@2/share_keys"]
    )
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [len(row["sites"]) for row in rows] == [4, 4]
    assert result["secure_aggregation"]
    # A site that trained and dropped out later has spent all the same.
    assert result["privacy"]["site-2"]["composition"]["trainings"] == 2


def test_a_retry_of_an_attempt_charges_nobody_again(make_plan, make_data, tmp_path):
    plan = make_plan(**{**PRIVATE, **SECURE, "federation__attempts": 2, "federation__minimum_cohort": 5})
    faults = ["drop:site-2@1/share_keys"]
    result = simulate(plan, make_data(30), tmp_path / "run", faults=faults, ledgers=tmp_path / "ledgers")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row.get("lost", False) for row in rows] == [True, False]
    assert result["privacy"]["site-1"]["composition"]["trainings"] == 2
    folders = SiteFolders(tmp_path / "ledgers")
    with folders.budgets(plan, {"site-1": folders.identity_key("site-1")}) as budgets:
        jobs = budgets["site-1"].ledger.by_job()
    assert [(job.rounds, job.charges) for job in jobs] == [(2, 2)]


def test_the_warm_up_is_disclosed(make_plan, make_data, tmp_path):
    plan = make_plan(**PRIVATE, warmup__notes=6, warmup__epochs=1)
    result = simulate(plan, make_data(24), tmp_path / "run")
    facts = result["warmup"]
    assert (facts["source"], facts["notes"], facts["epochs"]) == ("synthetic", 6, 1)
    assert {"devel_micro_f1", "test_micro_f1"} <= set(facts)
    assert "Public warm-up" in (tmp_path / "run" / "report.html").read_text("utf-8")


def test_the_command_says_what_was_spent(make_plan, data_folder, tmp_path, call):
    path = tmp_path / "plan.toml"
    path.write_text(make_plan(**PRIVATE).to_toml(), encoding="utf-8")
    code, out, _ = call(
        main, "run", path, "--data", data_folder, "--out", tmp_path / "run", "--ledgers", tmp_path / "ledgers"
    )
    assert code == 0
    assert "site-1: epsilon" in out
    assert "For somebody with records at every site the bounds add up" in out
    assert (tmp_path / "ledgers" / "site-1" / "ledger" / "ledger.db").exists()
