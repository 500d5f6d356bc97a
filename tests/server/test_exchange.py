"""Replies come one by one, errors become codes, and a deadline is a deadline."""

from __future__ import annotations

import threading
import time

import pytest
from flwr.app import Error, Message, RecordDict

from client.app import make_client_app
from common.messages import CONFIRM, TRAIN, Envelope
from server.exchange import Exchange
from simulation.grid import InProcessGrid

SITES = ("a", "b", "c")


def grid_of(handler, *, cls=InProcessGrid):
    by_index = list(SITES)
    return cls(
        make_client_app(lambda c: lambda e: handler(by_index[c.node_config["partition-id"]], e)), SITES
    )


def exchange_of(handler, *, pullers=1, cls=InProcessGrid):
    grid = grid_of(handler, cls=cls)
    exchange = Exchange(grid, pullers=pullers)
    exchange.nodes = dict(zip(SITES, grid.get_node_ids(), strict=True))
    return exchange


def ask(exchange, *, deadline=10.0, kind=TRAIN):
    requests = {site: Envelope(kind=kind, header={"for": site}) for site in SITES}
    return {reply.site: reply for reply in exchange.run(requests, deadline=deadline, group="1")}


def echo(site, request):
    return Envelope(kind=request.kind, header={"site": site, "for": request.header["for"]})


@pytest.mark.parametrize("pullers", [0, 1, 4])
def test_every_site_is_asked_its_own_question(pullers):
    replies = ask(exchange_of(echo, pullers=pullers))
    assert {site: reply.envelope.header["for"] for site, reply in replies.items()} == {s: s for s in SITES}
    assert all(
        reply.refusal is None and reply.site == reply.envelope.header["site"] for reply in replies.values()
    )


def test_a_site_that_fails_is_a_code_and_the_others_go_on():
    def handler(site, request):
        if site == "b":
            raise RuntimeError("the text stays at the site")
        return echo(site, request)

    replies = ask(exchange_of(handler))
    assert {site: reply.refusal for site, reply in replies.items()} == {"a": None, "b": "failed", "c": None}


def test_an_answer_to_another_stage_is_refused():
    replies = ask(exchange_of(lambda site, request: Envelope(kind=CONFIRM)))
    assert {reply.refusal for reply in replies.values()} == {"bad-message"}


def test_flowers_own_error_is_a_code():
    class Failing(InProcessGrid):
        def _answer(self, waiting):
            if waiting.message.metadata.dst_node_id == 1002:
                waiting.reply = Message(Error(code=1, reason="quoted text"), reply_to=waiting.message)
            else:
                super()._answer(waiting)

    replies = ask(exchange_of(echo, cls=Failing))
    assert {site: reply.refusal for site, reply in replies.items()} == {
        "a": None,
        "b": None,
        "c": "node-error",
    }
    assert "quoted" not in str(replies["c"].envelope.header)


def test_content_that_does_not_decode_is_a_code():
    class Foreign(InProcessGrid):
        def _answer(self, waiting):
            waiting.reply = Message(RecordDict({}), reply_to=waiting.message)

    assert {reply.refusal for reply in ask(exchange_of(echo, cls=Foreign)).values()} == {"bad-message"}


@pytest.mark.parametrize("pullers", [1, 2])
def test_a_reply_that_cannot_be_pulled_does_not_stop_the_others(pullers):
    class Broken(InProcessGrid):
        def pull_messages(self, message_ids):
            if "00000001" in message_ids:
                raise ConnectionError("gone")
            return super().pull_messages(message_ids)

    replies = ask(exchange_of(echo, pullers=pullers, cls=Broken))
    assert {site: reply.refusal for site, reply in replies.items()} == {
        "a": "node-error",
        "b": None,
        "c": None,
    }


def test_silence_ends_at_the_deadline_with_what_there_is():
    class Silent(InProcessGrid):
        def pull_messages(self, message_ids):
            return [] if "00000002" in message_ids else super().pull_messages(message_ids)

    started = time.monotonic()
    replies = ask(exchange_of(echo, cls=Silent), deadline=0.6)
    assert set(replies) == {"a", "c"}
    assert 0.5 < time.monotonic() - started < 5


def test_a_pull_that_hangs_is_abandoned():
    release = threading.Event()

    class Hanging(InProcessGrid):
        def pull_messages(self, message_ids):
            if "00000001" in message_ids:
                release.wait(20)
                return []
            return super().pull_messages(message_ids)

    exchange = exchange_of(echo, pullers=2, cls=Hanging)
    try:
        assert set(ask(exchange, deadline=1.0)) == {"b", "c"}
    finally:
        release.set()


def test_sites_are_not_answered_ahead_of_who_takes_their_replies():
    sites = tuple(f"s{i}" for i in range(8))
    answered: list[str] = []

    def handler(site, request):
        answered.append(site)
        return echo(site, request)

    app = make_client_app(lambda c: lambda e: handler(sites[c.node_config["partition-id"]], e))
    grid = InProcessGrid(app, sites)
    exchange = Exchange(grid, pullers=1)
    exchange.nodes = dict(zip(sites, grid.get_node_ids(), strict=True))
    requests = {site: Envelope(kind=TRAIN, header={"for": site}) for site in sites}
    replies = exchange.run(requests, deadline=10.0, group="1")
    next(replies)
    time.sleep(0.4)
    # One was taken, one waits in the queue, one is in the puller's hand.
    assert len(answered) <= 3
    assert len(list(replies)) == 7


def test_nobody_to_ask():
    assert list(exchange_of(echo).run({}, deadline=1.0, group="1")) == []
