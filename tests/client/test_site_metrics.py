"""What Prometheus may read."""

import socket
import urllib.request

import pytest

from client.ledger import Account, AccountBudget
from client.site_metrics import SiteMetrics
from common.accounting import Epsilon
from common.errors import InputError
from common.messages import TRAIN, Envelope, refusal_of


def spent():
    account = Account(name="wards", unit="patient", delta=1e-5, declaration="All patients.")
    epsilon = Epsilon(epsilon=1.5, delta=1e-5, unit="patient", method="rdp-filter")
    return (AccountBudget(account=account, spent=epsilon, limit=8.0, charges=3),)


def test_metrics_are_served_on_loopback():
    metrics = SiteMetrics(isolated=True, spent=spent)
    request = Envelope(kind=TRAIN, header={"round": 2})
    metrics.on_request(TRAIN)
    metrics.on_reply(request, Envelope(kind=TRAIN), 1.5)
    metrics.on_reply(request, refusal_of(TRAIN, "refused-ledger"), 0.1)
    metrics.on_bytes(100, 50)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = metrics.serve(port)
    try:
        assert server.server_address[0] == "127.0.0.1"
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
        with pytest.raises(InputError, match=r"agent\.metrics_port"):
            metrics.serve(port)
    finally:
        server.shutdown()
        server.server_close()
    for line in (
        'fedward_site_requests_total{outcome="answered",stage="train"} 1.0',
        'fedward_site_requests_total{outcome="refused-ledger",stage="train"} 1.0',
        'fedward_site_socket_bytes_total{direction="received"} 100.0',
        'fedward_site_epsilon_spent{account="wards",unit="patient"} 1.5',
        'fedward_site_epsilon_limit{account="wards",unit="patient"} 8.0',
        'fedward_site_charges{account="wards",unit="patient"} 3.0',
        "fedward_site_isolated 1.0",
        "fedward_site_busy 0.0",
        "fedward_site_round 2.0",
    ):
        assert line in text


def test_a_site_without_a_ledger_has_no_budget():
    from prometheus_client import generate_latest

    assert b"epsilon" not in generate_latest(SiteMetrics(isolated=False).registry)
