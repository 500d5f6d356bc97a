"""Only sites of the roster and of this plan take part, and a round waits for its minimum."""

from __future__ import annotations

import logging

import pytest

import server.cohort
from client.app import make_client_app
from common.errors import AgentError, RoundError
from common.messages import HELLO, ISOLATION, Envelope, refusal_of
from common.roster import Member, Roster
from server.cohort import Cohort
from server.exchange import Exchange
from simulation.grid import InProcessGrid

PLAN = "ab" * 32
ROSTER = Roster(tuple(Member(name=f"site-{i}", identity_key=bytes([i]) * 32) for i in (1, 2, 3)))


class Nodes:
    """Nodes that come and go, each with its answer to hello."""

    def __init__(self, answers):
        self.answers = list(answers)
        self.asked: list[int] = []
        app = make_client_app(
            lambda context: lambda request: self.answer(context.node_config["partition-id"])
        )
        self.grid = InProcessGrid(app, [str(i) for i in range(len(self.answers))])

    def answer(self, index):
        self.asked.append(index)
        answer = self.answers[index]
        return Envelope(kind=HELLO, header=answer) if isinstance(answer, dict) else refusal_of(HELLO, answer)


def hello(number, plan=PLAN):
    return {"site": f"site-{number}", "plan_hash": plan}


def cohort_of(nodes, minimum=1):
    return Cohort(Exchange(nodes.grid, pullers=1), ROSTER, PLAN, minimum)


def test_sites_are_found_behind_their_nodes():
    cohort = cohort_of(Nodes([hello(2), hello(1)]))
    assert cohort.gather(deadline=5) == ["site-1", "site-2"]
    assert cohort.exchange.nodes == {"site-2": 1000, "site-1": 1001}


@pytest.mark.parametrize(
    "stranger",
    [hello(9), {"site": 3, "plan_hash": PLAN}, {}, hello(2, "cd" * 32), "refused", {"site": "site-2"}],
    ids=str,
)
def test_strangers_and_other_plans_are_left_out(stranger, caplog):
    with caplog.at_level(logging.WARNING):
        assert cohort_of(Nodes([hello(1), stranger])).gather(deadline=5) == ["site-1"]
    assert "left out" in caplog.text


def test_a_site_whose_agent_was_not_there_is_asked_again():
    nodes = Nodes([hello(1), AgentError.code])
    cohort = cohort_of(nodes)
    assert cohort.gather(deadline=5) == ["site-1"]
    nodes.answers[1] = hello(2)
    assert cohort.gather(deadline=5) == ["site-1", "site-2"]


def test_sites_without_isolation_are_told_of():
    nodes = Nodes([hello(1) | {ISOLATION: "off"}, hello(2) | {ISOLATION: "users"}, hello(3)])
    cohort = cohort_of(nodes)
    cohort.gather(deadline=5)
    (sentence,) = cohort.warnings()
    assert sentence.startswith("Isolation was off at site-1: ")
    cohort.open_sites.clear()
    assert cohort.warnings() == []


def test_each_node_is_asked_once():
    nodes = Nodes([hello(1), hello(2), "refused"])
    cohort = cohort_of(nodes)
    cohort.gather(deadline=5)
    cohort.gather(deadline=5)
    assert sorted(nodes.asked) == [0, 1, 2]


def test_a_node_that_left_is_forgotten_and_one_that_came_back_is_asked_again(monkeypatch):
    nodes = Nodes([hello(1), hello(2)])
    cohort = cohort_of(nodes)
    present = {1000, 1001}
    monkeypatch.setattr(nodes.grid, "get_node_ids", lambda: set(present))
    assert cohort.gather(deadline=5) == ["site-1", "site-2"]
    present.discard(1001)
    assert cohort.gather(deadline=5) == ["site-1"]
    present.add(1001)
    assert cohort.gather(deadline=5) == ["site-1", "site-2"]


def test_a_site_that_is_late_is_waited_for(monkeypatch):
    monkeypatch.setattr(server.cohort, "_POLL_SECONDS", 0.01)
    nodes = Nodes([hello(1), hello(2)])
    cohort = cohort_of(nodes, minimum=2)
    present = {1000}
    monkeypatch.setattr(nodes.grid, "get_node_ids", lambda: set(present))
    waited: list[tuple[int, int]] = []

    def on_wait(here, needed):
        waited.append((here, needed))
        present.add(1001)

    assert cohort.gather(deadline=5, on_wait=on_wait) == ["site-1", "site-2"]
    assert waited == [(1, 2)]


def test_too_few_at_the_deadline_is_a_round_error(monkeypatch):
    monkeypatch.setattr(server.cohort, "_POLL_SECONDS", 0.01)
    with pytest.raises(RoundError, match=r"1 sites .* the plan needs 2 .* can be resumed"):
        cohort_of(Nodes([hello(1)]), minimum=2).gather(deadline=0.05)
