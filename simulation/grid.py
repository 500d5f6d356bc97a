"""A Flower Grid inside this process: messages are answered when their replies are pulled, one at a time.

Adapter module (flwr 1.42: the seven abstract members of `Grid`). Nothing runs until a reply is pulled, so
memory does not grow with the number of sites, and the order is the same in every run. Faults strike
here, between server and site, as a network or a dead host would.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from threading import Lock

from flwr.app import Context, Error, Message, RecordDict
from flwr.app.metadata import Metadata
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from common.messages import HELLO, TRAIN
from simulation.faults import Fault, FaultSchedule

SERVER_NODE = 1
_FIRST_NODE = 1000
_UNREACHABLE = 900
"""Flower's own codes end at 206 (flwr 1.42, ErrorCode); this one is the simulation's."""


@dataclass
class _Waiting:
    message: Message
    due: float = 0.0
    reply: Message | None = None


class InProcessGrid(Grid):
    """Runs a ClientApp for each node in this process.

    Args:
        app: The ClientApp, the same that a SuperNode runs.
        sites: The sites' names; node ids follow their order.
        faults: What goes wrong; empty by default.
        on_crash: Called with a site's name when it loses what it holds in memory.
    """

    def __init__(
        self,
        app: ClientApp,
        sites: Iterable[str],
        *,
        faults: FaultSchedule | None = None,
        on_crash: Callable[[str], None] | None = None,
    ) -> None:
        self._app = app
        self._run = Run.create_empty(run_id=1)
        self._sites = {_FIRST_NODE + i: name for i, name in enumerate(sites)}
        self._contexts: dict[int, Context] = {}
        self._faults = faults
        self._on_crash = on_crash or (lambda site: None)
        self._waiting: dict[str, _Waiting] = {}
        self._count = 0
        self._lock = Lock()

    def set_run(self, run: Run) -> None:
        """Set the run that messages belong to."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run that messages belong to."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Make a message from the server to a node."""
        metadata = Metadata(
            run_id=self._run.run_id,
            message_id="",
            src_node_id=SERVER_NODE,
            dst_node_id=dst_node_id,
            reply_to_message_id="",
            group_id=group_id,
            created_at=time.time(),
            ttl=ttl or 3600.0,
            message_type=message_type,
        )
        return Message(metadata=metadata, content=content)  # type: ignore[call-overload, no-any-return]

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes, one a site."""
        return list(self._sites)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Keep messages until their replies are pulled."""
        ids = []
        for message in messages:
            self._count += 1
            message_id = f"{self._count:08d}"
            message.metadata.__dict__["_message_id"] = message_id
            self._waiting[message_id] = _Waiting(message)
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Answer the messages that are due and return their replies."""
        replies = []
        for message_id in message_ids:
            waiting = self._waiting.get(message_id)
            if waiting is None:
                continue
            if waiting.reply is None:
                with self._lock:
                    self._answer(waiting)
            if waiting.reply is not None and time.monotonic() >= waiting.due:
                del self._waiting[message_id]
                replies.append(waiting.reply)
        return replies

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push messages and pull their replies until all are there or the time is up."""
        pending = set(self.push_messages(messages))
        end = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while pending and (end is None or time.monotonic() < end):
            for reply in self.pull_messages(sorted(pending)):
                pending.discard(reply.metadata.reply_to_message_id)
                replies.append(reply)
            if pending:
                time.sleep(0.05)
        return replies

    def _answer(self, waiting: _Waiting) -> None:
        """Run the ClientApp on a message, or let a fault answer in its place."""
        message = waiting.message
        node = message.metadata.dst_node_id
        fault = self._fault(message, self._sites[node])
        if fault is not None and fault.kind in ("drop", "crash", "fail"):
            if fault.kind == "crash":
                self._on_crash(fault.site)
            # A dead node is told at once, so that a simulation does not sit out its deadlines.
            error = Error(code=_UNREACHABLE, reason=f"simulated fault: {fault.kind}")
            waiting.reply = Message(error, reply_to=message)
            return
        if fault is not None:
            waiting.due = time.monotonic() + fault.seconds
        waiting.reply = self._app(message, self._context(node))

    def _fault(self, message: Message, site: str) -> Fault | None:
        """Return the fault that strikes a message, if any."""
        stage = message.metadata.message_type.rpartition(".")[2]
        if self._faults is None or stage == HELLO:
            return None
        return self._faults.lookup(site, int(message.metadata.group_id), stage or TRAIN)

    def _context(self, node: int) -> Context:
        """Return a node's Flower context; the partition's number is in its node config."""
        if node not in self._contexts:
            config: Mapping[str, int] = {
                "partition-id": node - _FIRST_NODE,
                "num-partitions": len(self._sites),
            }
            self._contexts[node] = Context(
                run_id=self._run.run_id,
                node_id=node,
                node_config=dict(config),
                state=RecordDict(),
                run_config={},
            )
        return self._contexts[node]
