"""One exchange of a round: a request to each site, replies as they come, and a deadline.

Adapter module (flwr Grid). Replies are pulled one at a time, in threads that are abandoned at the deadline:
Flower's pull can block on a reply that stops in the middle. At most as many replies as there are pullers
are in memory, so that a large cohort costs no more than a small one.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from common.errors import DecodeError, FedwardError
from common.flower import from_record_dict, message_type, to_array_record, to_record_dict
from common.messages import Envelope, refusal_of

_log = logging.getLogger(__name__)
NODE_ERROR = "node-error"
"""The code of a node that Flower says has failed or not answered in time."""

_POLL_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What one site answered: an envelope, or one with nothing but a code."""

    site: str
    envelope: Envelope

    @property
    def refusal(self) -> str | None:
        """The site's fixed code if it did not do what was asked."""
        return self.envelope.refusal


class Exchange:
    """Sends requests over a grid and yields replies.

    Args:
        grid: Flower's grid, or the simulation's.
        pullers: Threads that pull at once. 0 pulls in the calling thread, one message after the other: for a
            grid in this process, which cannot hang and whose memory should stay flat.
    """

    def __init__(self, grid: Grid, *, pullers: int = 4) -> None:
        self.grid = grid
        self.pullers = pullers
        self.nodes: dict[str, int] = {}

    def run(self, requests: Mapping[str, Envelope], *, deadline: float, group: str) -> Iterator[Reply]:
        """Send one request per site and yield what comes back before the deadline.

        Args:
            requests: Site name to request; every site must be among `nodes`.
            deadline: Seconds from now.
            group: Flower's group id; the round.
        """
        nodes = {self.nodes[site]: request for site, request in requests.items()}
        names = {node: site for site, node in self.nodes.items()}
        for node, envelope in self.to_nodes(nodes, deadline=deadline, group=group):
            yield Reply(site=names[node], envelope=envelope)

    def to_nodes(
        self, requests: Mapping[int, Envelope], *, deadline: float, group: str
    ) -> Iterator[tuple[int, Envelope]]:
        """As `run`, for nodes whose site is not known yet."""
        if self.pullers == 0:
            yield from self._one_by_one(requests, deadline=deadline, group=group)
            return
        records = _SharedArrays()
        waiting: queue.Queue[tuple[str, int, str]] = queue.Queue()
        ready: queue.Queue[tuple[int, Envelope]] = queue.Queue(maxsize=1)
        stop = threading.Event()
        end = time.monotonic() + deadline
        for node, request in requests.items():
            waiting.put((self._push(node, request, records, deadline, group), node, request.kind))
        workers = min(self.pullers, len(requests))
        for _ in range(workers):
            threading.Thread(target=self._pull, args=(waiting, ready, stop), daemon=True).start()
        try:
            for _ in range(len(requests)):
                yield ready.get(timeout=max(0.0, end - time.monotonic()))
        except queue.Empty:
            return
        finally:
            stop.set()

    def _one_by_one(
        self, requests: Mapping[int, Envelope], *, deadline: float, group: str
    ) -> Iterator[tuple[int, Envelope]]:
        """Push and pull one request after the other; those that are not answered at once are asked again."""
        records = _SharedArrays()
        end = time.monotonic() + deadline
        waiting = deque((node, "", request) for node, request in requests.items())
        while waiting and time.monotonic() < end:
            node, message_id, request = waiting.popleft()
            fresh = not message_id
            message_id = message_id or self._push(node, request, records, deadline, group)
            replies = list(self.grid.pull_messages([message_id]))
            if replies and time.monotonic() < end:
                yield node, _decode(replies[0], request.kind)
            elif not replies:
                waiting.append((node, message_id, request))
                if not fresh:
                    time.sleep(_POLL_SECONDS)

    def _push(self, node: int, request: Envelope, records: _SharedArrays, deadline: float, group: str) -> str:
        """Push one request; its time to live ends with the exchange."""
        message = self.grid.create_message(
            records.record_dict(request), message_type(request.kind), node, group, ttl=deadline
        )
        (message_id,) = self.grid.push_messages([message])
        return message_id

    def _pull(
        self,
        waiting: queue.Queue[tuple[str, int, str]],
        ready: queue.Queue[tuple[int, Envelope]],
        stop: threading.Event,
    ) -> None:
        """Pull replies until none is awaited or the exchange is over."""
        while not stop.is_set():
            try:
                message_id, node, kind = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                replies = list(self.grid.pull_messages([message_id]))
            except Exception:
                # A puller that died would leave the other sites' replies unread until the deadline.
                _log.exception("The reply of node %d could not be pulled", node)
                _offer(ready, (node, refusal_of(kind, NODE_ERROR)), stop)
                continue
            if not replies:
                waiting.put((message_id, node, kind))
                stop.wait(_POLL_SECONDS)
                continue
            _offer(ready, (node, _decode(replies[0], kind)), stop)


class _SharedArrays:
    """Turns the arrays that many requests share into one Flower record, so that the model exists once."""

    def __init__(self) -> None:
        self._arrays: Mapping[str, NDArray[Any]] | None = None
        self._record: ArrayRecord | None = None

    def record_dict(self, request: Envelope) -> RecordDict:
        """Return a request's RecordDict; its arrays are those of the last request where they are the same."""
        if self._record is None or self._arrays is not request.arrays:
            self._arrays, self._record = request.arrays, to_array_record(request.arrays)
        return to_record_dict(request, self._record)


def _offer(
    ready: queue.Queue[tuple[int, Envelope]], item: tuple[int, Envelope], stop: threading.Event
) -> None:
    """Hand over a reply, unless the exchange ends first."""
    while not stop.is_set():
        try:
            ready.put(item, timeout=_POLL_SECONDS)
            return
        except queue.Full:
            continue


def _decode(message: Message, kind: str) -> Envelope:
    """Return the reply's envelope, or one that carries a code."""
    if message.has_error():
        return refusal_of(kind, NODE_ERROR)
    try:
        envelope = from_record_dict(message.content)
    except FedwardError as error:
        return refusal_of(kind, error.code)
    return envelope if envelope.kind == kind else refusal_of(kind, DecodeError.code)
