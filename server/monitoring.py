"""Prometheus metrics of the server, on a loopback port where `server.toml` asks for one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from common.errors import InputError
from server.run_view import RunView


class RunCollector(Collector):
    """Reads the run anew for each scrape; labels are names of sites, stages and processes alone.

    Args:
        view: Returns the run as it is now; None before there is one.
        certificate_end: When the proxy's certificate ends, UTC.
    """

    def __init__(self, view: Callable[[], RunView | None], certificate_end: datetime) -> None:
        self._view = view
        self._certificate_end = certificate_end

    def collect(self) -> Iterable[Metric]:
        """Yield every metric."""
        left = (self._certificate_end - datetime.now(UTC)).total_seconds()
        yield _gauge("fedward_certificate_seconds_left", "Until the proxy's certificate ends.", left)
        view = self._view()
        if view is None:
            return
        progress = view.progress
        yield _gauge("fedward_rounds_planned", "Rounds of the plan.", progress.rounds if progress else 0)
        yield _gauge("fedward_rounds_done", "Rounds that are checkpointed.", len(view.rows))
        lost = sum(bool(row.get("lost")) for row in view.rows)
        yield _gauge("fedward_rounds_lost", "Rounds that ended without a sum.", lost)
        yield _gauge("fedward_sites_rostered", "Members of the roster.", len(view.sites))
        yield _gauge("fedward_sites_connected", "SuperNodes that are connected.", len(view.state.online))
        yield from _of_last_round(view)
        restarts = CounterMetricFamily(
            "fedward_restarts", "How often a process was started again.", labels=["process"]
        )
        for name, child in view.state.children.items():
            restarts.add_metric([name], child.restarts)
        restarts.add_metric(["serverapp"], view.state.resumes)
        yield restarts


@contextlib.contextmanager
def serve_metrics(port: int, view: Callable[[], RunView | None], certificate_end: datetime) -> Iterator[None]:
    """Serve metrics on 127.0.0.1 while the block lasts; port 0 serves none.

    Raises:
        InputError: The port is in use.
    """
    if port == 0:
        yield
        return
    registry = CollectorRegistry(auto_describe=False)
    registry.register(RunCollector(view, certificate_end))
    try:
        server, thread = start_http_server(port, addr="127.0.0.1", registry=registry)
    except OSError:
        raise InputError(f"Port {port} of 127.0.0.1 is in use; choose another server.metrics_port.") from None
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _of_last_round(view: RunView) -> Iterator[Metric]:
    """Yield what the last round took, and its score."""
    if not view.rows:
        return
    row = view.rows[-1]
    yield _gauge("fedward_round_seconds", "The last round, from its start to its checkpoint.", row["seconds"])
    yield _gauge("fedward_round_sites", "Sites in the last round's sum.", len(row["sites"]))
    stages = GaugeMetricFamily("fedward_stage_seconds", "The last round's stages.", labels=["stage"])
    for stage, seconds in row.get("seconds_by_stage", {}).items():
        stages.add_metric([stage], seconds)
    yield stages
    f1 = row.get("devel", {}).get("micro", {}).get("f1")
    if f1 is not None:
        yield _gauge("fedward_devel_micro_f1", "On the server's development set.", f1)


def _gauge(name: str, help_text: str, value: float) -> Metric:
    """Return a metric without labels."""
    return GaugeMetricFamily(name, help_text, value=value)
