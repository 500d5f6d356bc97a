"""The in-process grid is Flower's `Grid`: lazy, in order, with faults where a network would have them."""

from __future__ import annotations

import time

import pytest
from flwr.app import Error
from flwr.serverapp import Grid

from client.app import make_client_app
from common.flower import from_record_dict, message_type, to_record_dict
from common.messages import TRAIN, UPLOAD, Envelope
from simulation.faults import FaultSchedule
from simulation.grid import InProcessGrid

SITES = ("site-1", "site-2", "site-3")


class Bench:
    """A grid whose sites note that they were asked."""

    def __init__(self, *faults):
        self.asked: list[tuple[str, str]] = []
        self.crashed: list[str] = []
        schedule = FaultSchedule.parse(faults, sites=SITES, rounds=5)
        self.grid = InProcessGrid(
            make_client_app(self.handler_of), SITES, faults=schedule, on_crash=self.crashed.append
        )

    def handler_of(self, context):
        site = SITES[context.node_config["partition-id"]]

        def handler(request):
            self.asked.append((site, request.kind))
            return Envelope(kind=request.kind, header={"site": site})

        return handler

    def push(self, kind=TRAIN, server_round=1):
        content = to_record_dict(Envelope(kind=kind))
        messages = [
            self.grid.create_message(content, message_type(kind), node, str(server_round))
            for node in self.grid.get_node_ids()
        ]
        return list(self.grid.push_messages(messages))

    def answers(self, ids):
        return [
            "error" if reply.has_error() else from_record_dict(reply.content).header["site"]
            for message_id in ids
            for reply in self.grid.pull_messages([message_id])
        ]


def test_it_implements_flowers_grid():
    assert isinstance(Bench().grid, Grid)
    assert not InProcessGrid.__abstractmethods__


def test_nothing_runs_until_a_reply_is_pulled():
    bench = Bench()
    ids = bench.push()
    assert bench.asked == []
    assert bench.answers(ids[1:2]) == ["site-2"]
    assert bench.asked == [("site-2", TRAIN)]


def test_a_reply_is_pulled_once_and_belongs_to_its_message():
    bench = Bench()
    ids = bench.push()
    (reply,) = bench.grid.pull_messages(ids[:1])
    assert reply.metadata.reply_to_message_id == ids[0]
    assert list(bench.grid.pull_messages(ids[:1])) == []
    assert list(bench.grid.pull_messages(["unknown"])) == []


@pytest.mark.parametrize("kind", ["drop", "crash"])
def test_a_site_that_is_gone_stays_gone_for_the_round(kind):
    bench = Bench(f"{kind}:site-2@1")
    assert bench.answers(bench.push(TRAIN)) == ["site-1", "error", "site-3"]
    assert bench.answers(bench.push(UPLOAD)) == ["site-1", "error", "site-3"]
    assert bench.answers(bench.push(TRAIN, 2)) == list(SITES)
    assert set(bench.crashed) == ({"site-2"} if kind == "crash" else set())


def test_a_failure_is_of_one_stage():
    bench = Bench("fail:site-1@1/upload")
    assert bench.answers(bench.push(TRAIN)) == list(SITES)
    assert bench.answers(bench.push(UPLOAD)) == ["error", "site-2", "site-3"]
    assert bench.answers(bench.push(TRAIN, 2)) == list(SITES)


def test_a_dropped_site_never_hears_the_request():
    bench = Bench("drop:site-1@1")
    bench.answers(bench.push())
    assert ("site-1", TRAIN) not in bench.asked


def test_a_slow_site_answers_late_and_once():
    bench = Bench("slow:site-1@1:300ms")
    ids = bench.push()
    assert bench.answers(ids) == ["site-2", "site-3"]
    assert bench.answers(ids) == []
    time.sleep(0.35)
    assert bench.answers(ids) == ["site-1"]
    assert bench.asked.count(("site-1", TRAIN)) == 1


def test_send_and_receive_gathers_all_replies_and_gives_up_in_time():
    bench = Bench("slow:site-3@1:60s")
    content = to_record_dict(Envelope(kind=TRAIN))
    messages = [bench.grid.create_message(content, "train", n, "1") for n in bench.grid.get_node_ids()]
    assert len(list(bench.grid.send_and_receive(messages, timeout=0.3))) == 2


def test_the_contexts_name_the_partition_and_last():
    bench = Bench()
    seen = []
    grid = InProcessGrid(
        make_client_app(lambda c: seen.append(c) or (lambda r: Envelope(kind=r.kind))), SITES
    )
    bench.grid = grid
    for _ in range(2):
        for message_id in bench.push():
            list(grid.pull_messages([message_id]))
    assert [context.node_config["partition-id"] for context in seen] == [0, 1, 2, 0, 1, 2]
    assert seen[0] is seen[3]
    assert seen[0].node_config["num-partitions"] == 3


def test_an_error_carries_a_code_outside_flowers_own():
    bench = Bench("drop:site-1@1")
    (reply,) = bench.grid.pull_messages(bench.push()[:1])
    assert isinstance(reply.error, Error)
    assert reply.error.code == 900
