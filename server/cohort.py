"""Which sites of the roster can be reached, and through which node of the grid."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from common.errors import AgentError, RoundError
from common.messages import HELLO, ISOLATION, Envelope
from common.roster import Roster
from server.exchange import NODE_ERROR, Exchange

_log = logging.getLogger(__name__)
_POLL_SECONDS = 1.0


@dataclass
class Cohort:
    """Keeps `exchange.nodes` (site name to node id) up to date by asking new nodes who they are.

    Attributes:
        exchange: The exchange whose nodes are kept.
        roster: Who may take part.
        plan_hash: A site that has agreed to another plan is left out.
        minimum: The fewest sites that a round starts with.
        asked: Nodes that have answered, so that each is asked once.
        open_sites: Sites whose agents said that code of the server could read their records.
    """

    exchange: Exchange
    roster: Roster
    plan_hash: str
    minimum: int
    asked: set[int] = field(default_factory=set)
    open_sites: set[str] = field(default_factory=set)

    def gather(self, *, deadline: float, on_wait: Callable[[int, int], None] | None = None) -> list[str]:
        """Return the names of the sites that can be reached, in order.

        Waits until at least the minimum are there; sites that are late for one round join a later one.

        Args:
            deadline: Seconds to wait at most.
            on_wait: Called with the number present and the minimum whenever fewer are there.

        Raises:
            RoundError: The deadline passed with fewer.
        """
        end = time.monotonic() + deadline
        while True:
            present = self._present(deadline=min(30.0, deadline))
            if len(present) >= self.minimum:
                return present
            if time.monotonic() > end:
                raise RoundError(
                    f"{len(present)} sites of the roster can be reached and the plan needs {self.minimum} "
                    f"(federation.minimum_cohort); the run stopped after {deadline:g} s and can be resumed."
                )
            if on_wait is not None:
                on_wait(len(present), self.minimum)
            time.sleep(_POLL_SECONDS)

    def _present(self, *, deadline: float) -> list[str]:
        """Ask new nodes for their names and forget nodes that are gone."""
        nodes = set(self.exchange.grid.get_node_ids())
        self.exchange.nodes = {site: node for site, node in self.exchange.nodes.items() if node in nodes}
        self.asked &= nodes
        hello = Envelope(kind=HELLO, header={"plan_hash": self.plan_hash})
        fresh = dict.fromkeys(sorted(nodes - self.asked), hello)
        for node, reply in self.exchange.to_nodes(fresh, deadline=deadline, group="hello"):
            # A node that broke down, or was too slow to start, may be well by the next round; so may an agent.
            if reply.refusal not in (NODE_ERROR, AgentError.code):
                self.asked.add(node)
            self._welcome(node, reply)
        return sorted(self.exchange.nodes)

    def _welcome(self, node: int, reply: Envelope) -> None:
        """Take a node's site in, if it is of this roster and plan."""
        site = reply.header.get("site")
        if reply.refusal or not isinstance(site, str) or site not in self.roster:
            _log.warning(
                "Node %d is not a site of the roster (%s); it is left out.", node, reply.refusal or "unknown"
            )
        elif reply.header.get("plan_hash") != self.plan_hash:
            _log.warning(
                "Site %s has agreed to another plan; it is left out until it approves this one.", site
            )
        else:
            self.exchange.nodes[site] = node
            self.open_sites.discard(site)
            if reply.header.get(ISOLATION) == "off":
                self.open_sites.add(site)

    def warnings(self) -> list[str]:
        """Return what a reader of the run's report must know of the sites."""
        if not self.open_sites:
            return []
        return [
            f"Isolation was off at {', '.join(sorted(self.open_sites))}: agent and SuperNode ran as one user there, so "
            "that code which the server ships could have read records and keys."
        ]
