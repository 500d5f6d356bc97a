"""The agent around a site: one request at a time, codes alone, malicious streams, and a clean stop."""

import os
import threading
import time

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from client.agent import SERVICE, AgentSettings, AgentWatch, SiteAgent, StoppingError, StopSignal
from client.agent_client import OPTIONS, ask_agent
from client.agent_pb2 import Opening, Part, Vector
from client.agent_pb2_grpc import SiteAgentStub
from client.agent_wire import PROTOCOL_VERSION, parts_of
from common.errors import AgentError, DataError, DecodeError, LedgerError
from common.messages import HELLO, ISOLATION, TRAIN, UPLOAD, Envelope, refusal_of
from common.training import Progress

SECRET = "Mrs Example has gout"
PARAMETERS = 300_000


class Site:
    """Answers with what it was asked, after `work`."""

    name = "st-mary"

    def __init__(self):
        self.asked = []
        self.work = lambda request: None

    def handle(self, request):
        self.asked.append(request)
        self.work(request)
        return Envelope(kind=request.kind, header={"ok": True}, arrays=request.arrays)


@pytest.fixture
def site():
    return Site()


@pytest.fixture
def agent(site, tmp_path):
    """A function that starts an agent around the site."""
    started = []

    def start(**settings):
        watch, stop = settings.pop("watch", None), settings.pop("stop_signal", None)
        wanted = {"socket": tmp_path / "run" / "a.sock", "uids": {os.geteuid()}, **settings}
        started.append(
            SiteAgent(
                site, parameters=PARAMETERS, settings=AgentSettings(**wanted), watch=watch, stop_signal=stop
            )
        )
        return started[-1]

    yield start
    for one in started:
        if one.settings.socket.exists():
            one.stop(seconds=0)


def ask(agent, kind=TRAIN, timeout=20.0, **header):
    return ask_agent(agent.settings.socket, Envelope(kind=kind, header=header), timeout=timeout)


def test_a_request_and_its_answer_go_through(agent, site):
    model = np.arange(PARAMETERS, dtype=np.float32)
    request = Envelope(kind=TRAIN, header={"round": 3, "nonce": b"n" * 32}, arrays={"model": model})
    reply = ask_agent(agent().settings.socket, request, timeout=20)
    assert dict(site.asked[0].header) == {"round": 3, "nonce": b"n" * 32}
    np.testing.assert_array_equal(reply.arrays["model"], model)


@pytest.mark.parametrize(("isolated", "said"), [(True, "users"), (False, "off")])
def test_hello_says_whether_the_relay_is_isolated(agent, isolated, said):
    assert ask(agent(isolated=isolated), HELLO).header[ISOLATION] == said


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataError(SECRET), "bad-data"),
        (LedgerError(SECRET), "refused-ledger"),
        (ValueError(SECRET), "failed"),
        (MemoryError(), "failed"),
    ],
)
def test_only_a_code_leaves(agent, site, error, code):
    def fail(request):
        raise error

    site.work = fail
    reply = ask(agent())
    assert (dict(reply.header), dict(reply.arrays)) == ({"code": code}, {})


def test_requests_have_their_turns(agent, site):
    """Two at once would share one model and one attempt."""
    inside, most = [], []

    def work(request):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.05)
        inside.pop()

    site.work = work
    one = agent()
    threads = [threading.Thread(target=ask, args=(one,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1]


def test_too_many_waiting_requests_are_turned_away(agent, site):
    going, done = threading.Event(), threading.Event()
    site.work = lambda request: (going.set(), done.wait(20))
    one, answers = agent(), []

    def try_once():
        try:
            answers.append(ask(one).header)
        except AgentError as error:
            answers.append(str(error))

    threads = [threading.Thread(target=try_once) for _ in range(6)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 10
    while len(answers) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    done.set()
    for thread in threads:
        thread.join()
    assert sum("more requests waiting" in str(one) for one in answers) == 2


def test_a_relay_that_went_away_while_it_waited_costs_nothing(agent, site):
    """Nothing is trained or charged for an answer that nobody reads."""
    going, done = threading.Event(), threading.Event()
    site.work = lambda request: (going.set(), done.wait(20))
    one = agent()
    first = threading.Thread(target=ask, args=(one,), kwargs={"kind": UPLOAD})
    first.start()
    assert going.wait(10)
    with pytest.raises(AgentError, match="deadline had passed"):
        ask(one, timeout=0.2)
    done.set()
    first.join()
    assert ask(one, HELLO).header["ok"]
    assert [request.kind for request in site.asked] == [UPLOAD, HELLO]


def stream(agent, parts):
    with grpc.insecure_channel(f"unix:{agent.settings.socket}", options=OPTIONS) as channel:
        return list(SiteAgentStub(channel).Answer(iter(parts), timeout=20))


@pytest.mark.parametrize(
    "parts",
    [
        [Part(piece=b"x")],
        [Part(opening=Opening(version=99, kind=TRAIN))],
        [Part(opening=Opening(version=PROTOCOL_VERSION, kind="format-disk"))],
        [
            Part(
                opening=Opening(
                    version=PROTOCOL_VERSION,
                    kind=TRAIN,
                    vectors=[Vector(name="model", dtype="float32", length=PARAMETERS + 1)],
                )
            )
        ],
    ],
)
def test_a_stream_that_is_not_allowed_never_reaches_the_site(agent, site, parts):
    one = agent()
    with pytest.raises(grpc.RpcError) as caught:
        stream(one, parts)
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.INVALID_ARGUMENT, "bad-message")
    assert ask(one, HELLO).header["ok"]
    assert len(site.asked) == 1


def test_a_part_that_is_too_long_is_refused_by_grpc(agent, site):
    parts = [
        Part(
            opening=Opening(
                version=PROTOCOL_VERSION,
                kind=TRAIN,
                vectors=[Vector(name="model", dtype="float32", length=PARAMETERS)],
            )
        ),
        Part(piece=b"\0" * (4 * PARAMETERS)),
    ]
    with (
        grpc.insecure_channel(
            f"unix:{agent().settings.socket}", options=[("grpc.max_send_message_length", -1)]
        ) as channel,
        pytest.raises(grpc.RpcError),
    ):
        list(SiteAgentStub(channel).Answer(iter(parts), timeout=20))
    assert site.asked == []


def test_an_unfinished_request_never_reaches_the_site(agent, site):
    one = agent()
    parts = [
        Part(
            opening=Opening(
                version=PROTOCOL_VERSION,
                kind=TRAIN,
                vectors=[Vector(name="model", dtype="float32", length=9)],
            )
        )
    ]
    (reply,) = stream(one, parts)
    assert reply.opening.scalars["code"].text == "bad-message"
    assert site.asked == []


def test_a_stalled_request_does_not_keep_others_out(agent, site, monkeypatch):
    monkeypatch.setattr("client.agent._STALLED_SECONDS", 0.3)
    one, release = agent(), threading.Event()

    def stalls():
        yield Part(
            opening=Opening(
                version=PROTOCOL_VERSION,
                kind=TRAIN,
                vectors=[Vector(name="model", dtype="float32", length=9)],
            )
        )
        release.wait(20)

    ended = []

    def ask_and_stall():
        try:
            stream(one, stalls())
        except grpc.RpcError as error:
            ended.append(error.code())

    stalled = threading.Thread(target=ask_and_stall)
    stalled.start()
    time.sleep(0.1)
    assert ask(one, HELLO).header["ok"]
    release.set()
    stalled.join()
    assert ended == [grpc.StatusCode.CANCELLED]
    assert [request.kind for request in site.asked] == [HELLO]


def test_no_agent_is_one_clear_sentence(tmp_path):
    with pytest.raises(AgentError, match=r"start the agent with `fedward-site run`"):
        ask_agent(tmp_path / "none.sock", Envelope(kind=HELLO), timeout=5)


def test_a_user_that_is_not_listed_is_told_so(agent):
    one = agent(uids={65533})
    with pytest.raises(AgentError, match="does not take connections of this user"):
        ask(one)


def health_of(agent, service=SERVICE):
    with grpc.insecure_channel(f"unix:{agent.settings.socket}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status


def test_health(agent, site):
    going, done = threading.Event(), threading.Event()
    site.work = lambda request: (going.set(), done.wait(20))
    one = agent()
    busy = threading.Thread(target=ask, args=(one,))
    busy.start()
    assert going.wait(10)
    assert health_of(one) == health_of(one, "") == health_pb2.HealthCheckResponse.SERVING
    done.set()
    busy.join()


def test_a_stop_lets_the_request_under_way_end(agent, site):
    going, answers = threading.Event(), []

    def work(request):
        going.set()
        time.sleep(0.3)

    site.work = work
    one = agent()
    asking = threading.Thread(target=lambda: answers.append(ask(one)))
    asking.start()
    assert going.wait(10)
    assert one.stop(seconds=20)
    asking.join()
    assert answers[0].header["ok"]
    assert not one.settings.socket.exists()


def test_a_stop_gives_a_long_training_up_at_its_next_step(agent, site):
    stop, going, answers = StopSignal(), threading.Event(), []

    def work(request):
        going.set()
        for step in range(2000):
            stop.on_step("st-mary", Progress(step=step, steps=2000))
            time.sleep(0.01)

    def handle(request):
        try:
            work(request)
        except StoppingError as error:
            return refusal_of(request.kind, error.code)
        raise AssertionError("The training went on.")

    site.handle = handle
    one = agent(stop_signal=stop)
    asking = threading.Thread(target=lambda: answers.append(ask(one)))
    asking.start()
    assert going.wait(10)
    assert not one.stop(seconds=0.05)
    asking.join()
    assert answers[0].refusal == "stopping"


def test_a_waiting_request_is_not_begun_once_the_agent_stops(agent, site):
    going, done, answers = threading.Event(), threading.Event(), []
    site.work = lambda request: (going.set(), done.wait(20))
    one = agent()
    first = threading.Thread(target=lambda: answers.append(ask(one, UPLOAD)))
    first.start()
    assert going.wait(10)
    second = threading.Thread(target=lambda: answers.append(ask(one)))
    second.start()
    time.sleep(0.3)
    stopping = threading.Thread(target=one.stop, kwargs={"seconds": 20})
    stopping.start()
    time.sleep(0.2)
    done.set()
    for thread in (first, second, stopping):
        thread.join()
    assert [request.kind for request in site.asked] == [UPLOAD]
    assert sorted(str(reply.refusal) for reply in answers) == ["None", "stopping"]


def test_the_watch_is_told(agent):
    class Watch(AgentWatch):
        seen: list = []  # noqa: RUF012

        def on_reply(self, request, reply, seconds):
            self.seen.append((request.kind, reply.refusal, seconds >= 0))

        def on_bytes(self, received, sent):
            self.seen.append((received > 0, sent > 0))

    watch = Watch()
    ask(agent(watch=watch), HELLO)
    assert watch.seen == [(True, False), (HELLO, None, True), (False, True)]


def test_a_relay_of_another_version_is_told_so(agent, monkeypatch):
    one = agent()
    real = list(parts_of(Envelope(kind=HELLO)))
    real[0].opening.version = 7
    monkeypatch.setattr("client.agent_client.parts_of", lambda request: iter(real))
    with pytest.raises(DecodeError, match="of the same version"):
        ask(one, HELLO)
