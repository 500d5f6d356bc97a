"""The site's agent: a gRPC service around one long-lived `Site`, behind a UNIX socket.

What arrives is treated as a malicious server's: sizes and kinds are checked here before anything is read,
plan, policy and roster by the site, and what a failure was about stays at the site; a fixed code leaves it.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from client.agent_client import OPTIONS
from client.agent_pb2 import Opening, Part
from client.agent_pb2_grpc import add_SiteAgentServicer_to_server
from client.agent_socket import GuardedSocket
from client.agent_wire import Limits, parts_of, read_body, read_opening
from common.errors import DecodeError, FedwardError, RefusedError
from common.messages import HELLO, ISOLATION, Envelope, refusal_of

if TYPE_CHECKING:
    from common.training import Progress

SERVICE = "fedward.agent.v1.SiteAgent"

_WAITING = 4
"""Requests that may wait for their turn; a relay asks one thing at a time."""

_STALLED_SECONDS = 60.0
"""A request that stops arriving for so long is dropped, so that it does not keep the site from others."""

_POLL_SECONDS = 0.5

_LAST_SECONDS = 5.0
"""How long a stop waits for the last answers to leave."""

_log = logging.getLogger(__name__)


class AnsweringSite(Protocol):
    """What the agent needs of a `client.site.Site`."""

    name: str

    def handle(self, request: Envelope) -> Envelope:
        """Answer one request."""


class AgentWatch:
    """Is told what an agent does; this one looks on."""

    def on_request(self, kind: str) -> None:
        """A request has its turn."""

    def on_reply(self, request: Envelope, reply: Envelope, seconds: float) -> None:
        """A request was answered; `seconds` do not count the waiting."""

    def on_bytes(self, received: int, sent: int) -> None:
        """Parts of so many bytes went through."""


class StoppingError(RefusedError):
    """The agent is stopping; nothing more is trained."""

    code = "stopping"


@dataclass
class StopSignal:
    """Ends a training at its next step once the agent has no more time for it."""

    _stop: threading.Event = field(default_factory=threading.Event)

    def set(self) -> None:
        """Let the training under way end."""
        self._stop.set()

    def on_step(self, site: str, progress: Progress) -> None:
        """Give up the training if the agent must end.

        Raises:
            StoppingError: It must. What was charged stays charged, and nothing of the training is kept.
        """
        if self._stop.is_set():
            raise StoppingError(
                f"The training was given up at step {progress.step} of {progress.steps}: the agent is stopping."
            )


@dataclass(frozen=True, kw_only=True)
class AgentSettings:
    """How an agent is reached.

    Attributes:
        socket: Its socket.
        uids: Users whose connections are taken.
        gid: Group of the socket; None leaves the process's own.
        isolated: Whether the relay runs as another user than the agent.
    """

    socket: Path
    uids: Collection[int]
    gid: int | None = None
    isolated: bool = False


class SiteAgent:
    """Serves one site until it is stopped.

    Args:
        site: The site.
        parameters: The model's number of trained parameters; no request may bring more.
        settings: How the agent is reached.
        stop_signal: Ends a training when the agent is stopped; its `on_step` is the site's.
        watch: Is told what happens.

    Raises:
        InputError: The socket cannot be used.
    """

    def __init__(
        self,
        site: AnsweringSite,
        *,
        parameters: int,
        settings: AgentSettings,
        stop_signal: StopSignal | None = None,
        watch: AgentWatch | None = None,
    ) -> None:
        self.settings = settings
        self._stop_signal = stop_signal or StopSignal()
        self._service = _Service(
            site,
            limits=Limits.of_requests(parameters),
            isolated=settings.isolated,
            watch=watch or AgentWatch(),
        )
        # Nobody but this user can enter a folder of mkdtemp, so gRPC's own socket needs no guard.
        self._private = Path(tempfile.mkdtemp(prefix="fedward-"))
        try:
            self._health = health.HealthServicer()
            self._server = _serve(self._service, self._health, self._private / "grpc.sock")
            self.socket = GuardedSocket(
                settings.socket, behind=self._private / "grpc.sock", uids=settings.uids, gid=settings.gid
            )
        except BaseException:
            shutil.rmtree(self._private, ignore_errors=True)
            raise
        for name in ("", SERVICE):
            self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    def stop(self, *, seconds: float) -> bool:
        """Take no more requests, let the one under way end, and stop.

        A training that is not done in time is given up at its next step. Its charge stays; the round may be
        trained again, and charged again, as far as its plan's reserve goes.

        Args:
            seconds: How long the request under way may take.

        Returns:
            Whether it ended by itself.
        """
        self._health.enter_graceful_shutdown()
        self.socket.stop_listening()
        self._service.close()
        finished = self._service.wait_idle(seconds)
        if not finished:
            self._stop_signal.set()
            self._service.wait_idle(_STALLED_SECONDS)
        self._server.stop(grace=_LAST_SECONDS).wait()
        self.socket.close(seconds=_LAST_SECONDS)
        shutil.rmtree(self._private, ignore_errors=True)
        return finished


class _Service:
    """Answers requests one at a time; the site is not made for two at once."""

    def __init__(
        self,
        site: AnsweringSite,
        *,
        limits: Limits,
        isolated: bool,
        watch: AgentWatch,
    ) -> None:
        self._site = site
        self._limits = limits
        self._isolated = isolated
        self._watch = watch
        self._turn = threading.Lock()
        self._waiting = threading.BoundedSemaphore(_WAITING)
        self._closed = False

    def close(self) -> None:
        """Refuse every request that has not had its turn yet."""
        self._closed = True

    def wait_idle(self, seconds: float) -> bool:
        """Return whether no request is under way, after waiting for the one that is."""
        if self._turn.acquire(timeout=seconds):
            self._turn.release()
            return True
        return False

    def Answer(self, parts: Iterator[Part], context: Any) -> Iterator[Part]:  # noqa: N802
        """Read a request, have the site answer it, and yield the answer."""
        if not self._waiting.acquire(blocking=False):
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy")
        try:
            reply = self._answer(_Counted(parts, self._watch), context)
        finally:
            self._waiting.release()
        for part in parts_of(reply):
            self._watch.on_bytes(0, part.ByteSize())
            yield part

    def _answer(self, parts: Iterator[Part], context: Any) -> Envelope:
        """Return the answer to what arrives."""
        try:
            with _dropped_when_stalled(context):
                opening = read_opening(parts, self._limits)
        except DecodeError as error:
            _log.warning("A request was not read: %s", error)
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, error.code)
            raise
        # The turn comes before the arrays: waiting requests take no room.
        with self._in_turn(context):
            try:
                return self._answer_one(opening, parts, context)
            except FedwardError as error:
                _log.warning("%s was not answered: %s", opening.kind, error)
                return refusal_of(opening.kind, error.code)
            except Exception:
                # The text of somebody else's exception could quote a record, so it goes nowhere.
                _log.exception("%s failed", opening.kind)
                return refusal_of(opening.kind, FedwardError.code)

    def _answer_one(self, opening: Opening, parts: Iterator[Part], context: Any) -> Envelope:
        """Read the rest of a request and have the site answer it."""
        if self._closed:
            raise StoppingError("The agent is stopping and takes no more requests.")
        with _dropped_when_stalled(context):
            request = read_body(opening, parts)
        if not context.is_active():
            # The relay gave up while it waited; nothing is trained or charged for nobody.
            raise DecodeError("The relay went away before its request had its turn.")
        started = time.monotonic()
        self._watch.on_request(request.kind)
        reply = self._site.handle(request)
        if request.kind == HELLO and reply.refusal is None:
            isolation = "users" if self._isolated else "off"
            reply = Envelope(kind=HELLO, header={**reply.header, ISOLATION: isolation}, arrays=reply.arrays)
        self._watch.on_reply(request, reply, time.monotonic() - started)
        return reply

    @contextlib.contextmanager
    def _in_turn(self, context: Any) -> Iterator[None]:
        """Wait until no other request is under way, or nobody waits for this one any more."""
        while not self._turn.acquire(timeout=_POLL_SECONDS):
            if not context.is_active():
                context.abort(grpc.StatusCode.CANCELLED, "gone")
        try:
            yield
        finally:
            self._turn.release()


class _Counted:
    """A stream of parts whose bytes are counted."""

    def __init__(self, parts: Iterator[Part], watch: AgentWatch) -> None:
        self._parts = parts
        self._watch = watch

    def __iter__(self) -> Iterator[Part]:
        """Return itself."""
        return self

    def __next__(self) -> Part:
        """Return the next part."""
        try:
            part = next(self._parts)
        except grpc.RpcError:
            raise DecodeError("The relay went away in the middle of its request.") from None
        self._watch.on_bytes(part.ByteSize(), 0)
        return part


@contextlib.contextmanager
def _dropped_when_stalled(context: Any) -> Iterator[None]:
    """End the call if the block takes too long."""
    timer = threading.Timer(_STALLED_SECONDS, context.cancel)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _serve(service: _Service, healthy: health.HealthServicer, path: Path) -> grpc.Server:
    """Start gRPC's server on a socket of this user's own."""
    # Health answers while requests wait: it has threads that they cannot take.
    server = grpc.server(ThreadPoolExecutor(max_workers=_WAITING + 4), options=OPTIONS)
    add_SiteAgentServicer_to_server(service, server)
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    server.add_insecure_port(f"unix:{path}")
    server.start()
    return server
