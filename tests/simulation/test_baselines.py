"""The arms of a comparison train on what they say, choose on the development set, and are kept."""

from __future__ import annotations

import json

import pytest

from common.errors import InputError
from common.host import ModelHost
from simulation import baselines
from simulation.baselines import compare, fit_centrally, summarise


def test_central_training_repeats_and_counts(make_plan, make_data):
    plan, data = make_plan(), make_data(16)
    lines: list[str] = []
    hosts = [ModelHost.build(plan, device="cpu") for _ in range(2)]
    one, two = (fit_centrally(plan, data.train, data, name="c", report=lines.append, host=h) for h in hosts)
    assert hosts[0].read().tobytes() == hosts[1].read().tobytes()
    assert (one.epoch, one.tokens) == (two.epoch, two.tokens)
    assert one.tokens == 2 * sum(e.num_tokens for e in hosts[0].encoding.examples(data.train))
    assert [line.partition(",")[0] for line in lines[:2]] == ["c: epoch 1/2", "c: epoch 2/2"]


def test_the_epoch_is_chosen_on_the_development_set(make_plan, make_data, monkeypatch):
    scores = iter([0.3, 0.9, 0.5])
    monkeypatch.setattr(baselines, "_devel_score", lambda *arguments: next(scores))
    found = fit_centrally(make_plan(federation__rounds=3), make_data(8).train, make_data(8), name="c")
    assert found.epoch == 2


def test_without_a_development_set_the_last_epoch_is_taken(make_plan, make_data):
    data = make_data(8)
    bare = type(data)(train=data.train, test=data.test)
    assert fit_centrally(make_plan(), data.train, bare, name="c").epoch == 2


def test_a_site_alone_sees_its_own_notes_and_the_shared_test_set(make_plan, make_data, tmp_path, monkeypatch):
    seen: list[tuple[str, int, int]] = []

    def fit(plan, notes, data, *, name, **options):
        seen.append((name, len(notes), len(data.test)))
        raise KeyboardInterrupt

    monkeypatch.setattr(baselines, "fit_centrally", fit)
    with pytest.raises(KeyboardInterrupt):
        compare(make_plan(), make_data(), tmp_path, seeds=[1], arms=["alone"])
    assert seen == [("site-1", 12, 8)]


def test_finished_arms_are_kept_for_this_plan_alone(make_plan, make_data, tmp_path, monkeypatch):
    calls: list[int] = []
    monkeypatch.setattr(baselines, "lexicon_baseline", lambda train, test: calls.append(1) or 0.5)
    for plan in (make_plan(), make_plan(), make_plan(federation__rounds=3)):
        compare(plan, make_data(8), tmp_path, seeds=[1], arms=["lexicon"])
    assert len(calls) == 2
    assert json.loads((tmp_path / "compare.json").read_text())["lexicon"]["micro_f1"] == 0.5


def test_the_summary_is_the_mean_over_seeds():
    runs = [{"micro_f1": f1, "seconds": s, "seed": i} for i, (f1, s) in enumerate([(0.2, 1.0), (0.6, 3.0)])]
    entity = {"per_entity": {"Drug": {"f1": 0.5}}, "epsilon": None}
    table = summarise(
        {"central": [run | entity for run in runs], "alone-site-1": runs, "alone-site-2": runs[:1]}
    )
    assert table["central"]["micro_f1"] == pytest.approx(0.4)
    assert table["central"]["micro_f1_spread"] == pytest.approx(0.2)
    assert table["central"]["seconds"] == 2.0
    assert table["central"]["per_entity"] == {"Drug": 0.5}
    assert [entry["site"] for entry in table["alone"]] == ["site-1", "site-2"]
    assert table["alone_mean_micro_f1"] == pytest.approx(0.3)


def test_an_arm_that_is_not_one(make_plan, make_data, tmp_path):
    with pytest.raises(InputError, match="must be one of alone, central, federated, lexicon"):
        compare(make_plan(), make_data(8), tmp_path / "out", seeds=[1], arms=["centre"])
    with pytest.raises(InputError, match="has no arm"):
        compare(make_plan(), make_data(8), tmp_path / "out", seeds=[1], arms=[])
    assert not (tmp_path / "out").exists()
