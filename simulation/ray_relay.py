"""What runs in Flower's Ray workers: the way from a node to the actor that hosts its site.

Apart from `ray_engine`, so that these workers, which hold no model, need not load torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from flwr.app import Context

from client.app import Handler
from common.messages import Envelope


@dataclass(frozen=True, kw_only=True)
class RaySites:
    """The actors that host a run's sites.

    Attributes:
        actors: Their handles; the site of partition `i` lives in actor `i` modulo their number.
    """

    actors: Sequence[Any] = field(repr=False)

    def handler_of(self, context: Context) -> Handler:
        """Return the way to the site behind a node."""
        import ray

        partition = int(context.node_config["partition-id"])
        actor = self.actors[partition % len(self.actors)]

        def relay(request: Envelope) -> Envelope:
            return cast(Envelope, ray.get(actor.handle.remote(partition, request)))

        return relay
