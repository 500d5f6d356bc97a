"""What an operator's Prometheus may read of an agent, on a loopback port and only where the site asks for it.

Counts, times and sizes; no text at all, and no label whose values come from outside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from client.agent import AgentWatch
from client.ledger import AccountBudget
from common.errors import InputError
from common.messages import Envelope

_SECONDS = (0.01, 0.1, 1, 10, 60, 300, 1800, 7200)


class SiteMetrics(AgentWatch):
    """Counts what an agent does.

    Args:
        isolated: Whether the relay is another user than the agent.
        spent: Returns what the ledger's accounts have spent; asked at every scrape. None without a ledger.
    """

    def __init__(self, *, isolated: bool, spent: Callable[[], Iterable[AccountBudget]] | None = None) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "fedward_site_requests",
            "Requests answered, by outcome.",
            ["stage", "outcome"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "fedward_site_request_seconds",
            "How long the site worked on a request.",
            ["stage"],
            registry=self.registry,
            buckets=_SECONDS,
        )
        self._busy = Gauge("fedward_site_busy", "1 while a request is under way.", registry=self.registry)
        self._bytes = Counter(
            "fedward_site_socket_bytes", "Bytes through the socket.", ["direction"], registry=self.registry
        )
        self._round = Gauge("fedward_site_round", "The round last asked for.", registry=self.registry)
        isolation = Gauge(
            "fedward_site_isolated", "1 if agent and SuperNode are two users.", registry=self.registry
        )
        isolation.set(1 if isolated else 0)
        if spent is not None:
            self.registry.register(_Spent(spent))

    def on_request(self, kind: str) -> None:
        """Note that the site is at work."""
        self._busy.set(1)

    def on_reply(self, request: Envelope, reply: Envelope, seconds: float) -> None:
        """Count an answer."""
        self._busy.set(0)
        self._requests.labels(stage=request.kind, outcome=reply.refusal or "answered").inc()
        self._seconds.labels(stage=request.kind).observe(seconds)
        number = request.header.get("round")
        if isinstance(number, int) and reply.refusal is None:
            self._round.set(number)

    def on_bytes(self, received: int, sent: int) -> None:
        """Count bytes."""
        self._bytes.labels(direction="received").inc(received)
        self._bytes.labels(direction="sent").inc(sent)

    def serve(self, port: int) -> WSGIServer:
        """Serve the metrics on a loopback port until the server that is returned is shut down.

        Raises:
            InputError: The port is in use.
        """
        try:
            server, _ = start_http_server(port, addr="127.0.0.1", registry=self.registry)
        except OSError as error:
            raise InputError(
                f"agent.metrics_port: port {port} cannot be used ({error.strerror}); choose another one."
            ) from None
        return server


class _Spent(Collector):
    """What the accounts have spent and have left, as the ledger says at that moment."""

    def __init__(self, spent: Callable[[], Iterable[AccountBudget]]) -> None:
        self._spent = spent

    def collect(self) -> Iterable[Metric]:
        """Return the two gauges and the number of charges."""
        labels = ["account", "unit"]
        spent = GaugeMetricFamily(
            "fedward_site_epsilon_spent", "Spent, by the lifetime filter.", labels=labels
        )
        limit = GaugeMetricFamily("fedward_site_epsilon_limit", "The site's limit.", labels=labels)
        charges = GaugeMetricFamily("fedward_site_charges", "Trainings charged.", labels=labels)
        for one in self._spent():
            values = [one.account.name, one.account.unit]
            spent.add_metric(values, one.spent.epsilon)
            limit.add_metric(values, one.limit)
            charges.add_metric(values, one.charges)
        return (spent, limit, charges)
