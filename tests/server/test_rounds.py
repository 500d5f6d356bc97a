"""The round loop asks, folds, steps and checkpoints; what goes wrong at a site stays that site's."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from common.errors import PlanError, RoundError
from common.messages import TRAIN, UPLOAD, Envelope, refusal_of
from common.roster import Member, Roster
from server.checkpoint import CheckpointStore
from server.exchange import Reply
from server.optimizer import make_server_optimizer
from server.rounds import Conversation, PlainAggregator, RoundLoop, RoundRequest, RunState

SITES = ("a", "b", "c")
UNITS = {"a": 10, "b": 20, "c": 40}
ROSTER = Roster(tuple(Member(name=n, identity_key=n.encode() * 32, public_units=UNITS[n]) for n in SITES))
SIZE = 5


class Listener:
    def __init__(self):
        self.events: list[tuple[Any, ...]] = []

    def __getattr__(self, name):
        return lambda *arguments: self.events.append((name, *arguments))


class Sites:
    """Stands in for the exchange: sites whose change pulls the model towards their own target."""

    def __init__(self, order=SITES, changed=None):
        self.order, self.changed = order, changed or {}
        self.seen: list[tuple[int, str, str]] = []
        self.sent: dict[str, np.ndarray] = {}

    def run(self, requests, *, deadline, group):
        for site in (s for s in self.order if s in requests):
            request = requests[site]
            self.seen.append((request.integer("round"), request.kind, site))
            stage = (request.kind, site)
            answer = self.changed.get(stage, self.changed.get((request.integer("round"), *stage)))
            if answer is not None:
                yield from (Reply(site=site, envelope=envelope) for envelope in answer)
                continue
            if request.kind == TRAIN:
                self.sent[site] = request.vector("model", np.float32)
            yield Reply(site=site, envelope=self.answer(site, request))

    def answer(self, site, request):
        if request.kind == TRAIN:
            return Envelope(kind=TRAIN)
        return upload(site, delta=(UNITS[site] / 10 - self.sent[site]) * np.float32(ROSTER.weight(site)))


def upload(site, delta, loss=1.5):
    arrays = {
        "delta": delta,
        "num_examples": [UNITS[site]],
        "num_tokens": [2],
        "num_clipped": [0],
        "train_loss": [loss * ROSTER.weight(site)],
    }
    return Envelope(kind=UPLOAD, arrays={k: np.asarray(v, np.float32) for k, v in arrays.items()})


class Present:
    """Stands in for the cohort: all sites are there."""

    def gather(self, *, deadline, on_wait=None):
        return list(SITES)


def loop_of(plan, folder, sites, *, evaluate=None, optimizer="fedavg"):
    conversation = Conversation(sites, plan, Listener())
    return RoundLoop(
        plan=plan,
        roster=ROSTER,
        cohort=Present(),
        conversation=conversation,
        aggregator=PlainAggregator(conversation, ROSTER),
        optimizer=make_server_optimizer(optimizer),
        store=CheckpointStore(folder),
        evaluate=evaluate,
    )


def start():
    return RunState(run_id="run1", weights=np.zeros(SIZE, np.float32))


@pytest.fixture
def plan(make_plan):
    return make_plan(federation__minimum_cohort=2, federation__rounds=3)


def test_one_round_is_the_weighted_mean(plan, tmp_path):
    state = loop_of(plan, tmp_path, Sites()).run_round(start())
    expected = np.average([1, 2, 4], weights=[10, 20, 40])
    np.testing.assert_allclose(state.weights, np.full(SIZE, expected), rtol=1e-6)
    row = state.history[0]
    assert (row["round"], row["sites"], row["attempts"]) == (1, ["a", "b", "c"], 1)
    assert (row["num_examples"], row["num_tokens"], row["train_loss"]) == (70, 6, 1.5)


class Irregular(Sites):
    """Sites whose changes no floating-point sum adds exactly, so that a sum's order would show."""

    def answer(self, site, request):
        if request.kind == TRAIN:
            return Envelope(kind=TRAIN)
        rng = np.random.default_rng([UNITS[site], request.integer("round")])
        return upload(site, rng.standard_normal(SIZE) * 10.0 ** rng.integers(-3, 3, SIZE))


@pytest.mark.parametrize("optimizer", ["fedavg", "fedadam"])
def test_the_order_of_replies_changes_no_bit(plan, tmp_path, optimizer):
    found = set()
    for i, order in enumerate(itertools.permutations(SITES)):
        loop = loop_of(plan, tmp_path / str(i), Irregular(order), optimizer=optimizer)
        found.add(loop.run(start()).weights.tobytes())
    assert len(found) == 1


BAD_UPLOADS = {
    "refused": [refusal_of(UPLOAD, "refused")],
    "silent": [],
    "too short": [upload("a", np.ones(SIZE - 1))],
    "too long": [upload("a", np.ones(SIZE + 1))],
    "not finite": [upload("a", np.full(SIZE, np.nan))],
    "enormous": [upload("a", np.full(SIZE, 1e30))],
    "nothing in it": [Envelope(kind=UPLOAD)],
    "another type": [Envelope(kind=UPLOAD, arrays={"delta": np.ones(SIZE)})],
    "other fields": [Envelope(kind=UPLOAD, arrays={"delta": np.ones(SIZE, np.float32)})],
}


@pytest.mark.parametrize("place", [1, 2])
@pytest.mark.parametrize("name", BAD_UPLOADS)
def test_a_bad_upload_is_left_out_and_the_round_goes_on(plan, tmp_path, name, place):
    order = ("a", "b", "c") if place == 1 else ("b", "a", "c")
    sites = Sites(order, {(UPLOAD, "a"): BAD_UPLOADS[name]})
    state = loop_of(plan, tmp_path, sites).run_round(start())
    assert state.history[0]["sites"] == ["b", "c"]
    np.testing.assert_allclose(state.weights, np.average([2, 4], weights=[20, 40]), rtol=1e-6)


def test_a_site_that_uploads_twice_counts_once(plan, tmp_path):
    sites = Sites(changed={(UPLOAD, "a"): [upload("a", np.ones(SIZE)), upload("a", np.full(SIZE, 100.0))]})
    one = loop_of(plan, tmp_path / "1", sites).run_round(start())
    two = loop_of(
        plan, tmp_path / "2", Sites(changed={(UPLOAD, "a"): [upload("a", np.ones(SIZE))]})
    ).run_round(start())
    assert one.weights.tobytes() == two.weights.tobytes()


def test_a_site_that_did_not_train_is_not_asked_to_upload(plan, tmp_path):
    sites = Sites(changed={(TRAIN, "b"): [refusal_of(TRAIN, "bad-data")]})
    loop = loop_of(plan, tmp_path, sites)
    state = loop.run_round(start())
    assert state.history[0]["sites"] == ["a", "c"]
    assert (1, UPLOAD, "b") not in sites.seen
    assert ("on_reply", TRAIN, "b", "bad-data") in loop.listener.events


def test_every_request_carries_plan_run_round_and_model(plan, tmp_path):
    headers = []

    class Watched(Sites):
        def run(self, requests, *, deadline, group):
            headers.extend(dict(request.header) for request in requests.values())
            return super().run(requests, deadline=deadline, group=group)

    loop_of(plan, tmp_path, Watched()).run_round(start())
    assert {tuple(sorted(header)) for header in headers} == {("model_hash", "plan_hash", "round", "run_id")}
    assert len({header["model_hash"] for header in headers}) == 1


def test_below_the_minimum_the_round_fails_and_the_run_goes_on_from_there(plan, tmp_path):
    bad = {(2, UPLOAD, s): [refusal_of(UPLOAD, "failed")] for s in ("a", "b")}
    with pytest.raises(RoundError, match=r"Round 2 ended with 1 of at least 2 sites .* can be resumed"):
        loop_of(plan, tmp_path / "x", Sites(changed=bad), optimizer="fedadam").run(start())
    store = CheckpointStore(tmp_path / "x")
    assert store.latest().round == 1
    again = loop_of(plan, tmp_path / "x", Sites(), optimizer="fedadam")
    resumed = again.run(again.restore(store.latest()))
    whole = loop_of(plan, tmp_path / "y", Sites(), optimizer="fedadam").run(start())
    assert resumed.weights.tobytes() == whole.weights.tobytes()
    assert [row["round"] for row in resumed.history] == [1, 2, 3]


def test_nobody_trained(plan, tmp_path):
    sites = Sites(changed={(TRAIN, s): [] for s in SITES})
    with pytest.raises(RoundError, match="ended with 0 of at least 2"):
        loop_of(plan, tmp_path, sites).run(start())


class Breaking(Sites):
    """Sites of which some break down the first times that they are asked to train."""

    def __init__(self, times, code="node-error"):
        super().__init__()
        self.times, self.code = dict(times), code

    def answer(self, site, request):
        if request.kind == TRAIN and self.times.get(site, 0) > 0:
            self.times[site] -= 1
            return refusal_of(TRAIN, self.code)
        return super().answer(site, request)

    def asked(self):
        return [site for _, kind, site in self.seen if kind == TRAIN]


@pytest.mark.parametrize("code", ["node-error", "agent-unreachable"])
def test_sites_that_broke_down_are_asked_again_where_the_round_needs_them(plan, tmp_path, monkeypatch, code):
    """Two of three are down when at least two are needed; the third's training is not wasted."""
    pauses = []
    monkeypatch.setattr("server.rounds.time.sleep", pauses.append)
    sites = Breaking({"a": 1, "b": 2}, code)
    state = loop_of(plan, tmp_path, sites).run_round(start())
    assert sites.asked() == ["a", "b", "c", "a", "b"]
    assert state.history[0]["sites"] == ["a", "c"]
    assert pauses == [10.0]


def test_a_round_that_has_enough_sites_waits_for_nobody(plan, tmp_path, monkeypatch):
    monkeypatch.setattr("server.rounds.time.sleep", lambda seconds: pytest.fail("It waited."))
    sites = Breaking({"a": 1})
    assert loop_of(plan, tmp_path, sites).run_round(start()).history[0]["sites"] == ["b", "c"]


def test_sites_that_stay_down_are_asked_as_often_as_the_plan_says(plan, tmp_path, monkeypatch):
    pauses = []
    monkeypatch.setattr("server.rounds.time.sleep", pauses.append)
    sites = Breaking(dict.fromkeys(SITES, 99))
    with pytest.raises(RoundError, match="ended with 0 of at least 2"):
        loop_of(plan, tmp_path, sites).run_round(start())
    assert sites.asked() == list(SITES) * plan.federation.attempts
    assert pauses == [10.0, 20.0]


@pytest.mark.parametrize("code", ["refused-ledger", "refused-policy", "failed"])
def test_a_refusal_is_no_breakdown(plan, tmp_path, monkeypatch, code):
    monkeypatch.setattr("server.rounds.time.sleep", lambda seconds: pytest.fail("It waited."))
    sites = Breaking({"a": 1, "b": 1}, code)
    with pytest.raises(RoundError):
        loop_of(plan, tmp_path, sites).run_round(start())
    assert sites.asked() == list(SITES)


def test_the_best_round_on_the_development_set_is_kept(plan, tmp_path):
    scores = iter([0.2, 0.7, 0.7])
    loop = loop_of(
        plan, tmp_path, Sites(), optimizer="fedadam", evaluate=lambda vector: {"micro": {"f1": next(scores)}}
    )
    state = loop.run(start())
    assert (state.best_round, state.best_score) == (2, 0.7)
    assert state.best.tobytes() != state.weights.tobytes()
    restored = loop.restore(loop.store.latest())
    assert (restored.best_round, restored.best_score) == (2, 0.7)
    assert restored.best.tobytes() == state.best.tobytes()


def test_a_round_is_checkpointed_before_anyone_hears_of_it(plan, tmp_path):
    loop = loop_of(plan, tmp_path, Sites())
    at_row: list[tuple[int, int]] = []
    loop.on_row = (lambda row: at_row.append((row["round"], loop.store.latest().round)),)
    loop.run(start())
    assert at_row == [(1, 1), (2, 2), (3, 3)]


def test_a_checkpoint_of_another_plan_is_refused(plan, make_plan, tmp_path):
    loop_of(plan, tmp_path, Sites()).run(start())
    other = loop_of(make_plan(federation__rounds=4), tmp_path, Sites())
    with pytest.raises(PlanError, match=r"resume with the plan\.toml in the run's folder"):
        other.restore(other.store.latest())


def test_the_listener_hears_a_round_in_order(plan, tmp_path):
    loop = loop_of(plan, tmp_path, Sites())
    loop.run(start())
    first = [event[0] for event in loop.listener.events][:10]
    assert first == ["on_round", "on_stage", *["on_reply"] * 3, "on_stage", *["on_reply"] * 3, "on_metrics"]


def test_repr_shows_no_weights(plan):
    request = RoundRequest(run_id="r", server_round=1, vector=np.ones(2, np.float32), model_hash="m")
    assert "1." not in repr(request)
    assert "weights" not in repr(start())
