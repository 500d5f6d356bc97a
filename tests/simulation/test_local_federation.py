"""Folders of a whole federation on one machine, and what watches its processes."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time

import pytest

from client.opening import open_site
from client.settings import read_settings
from common.plan import read_plan
from common.private_plan import round_mechanism
from server.settings import read_server_settings
from simulation.byte_relay import ByteRelay
from simulation.local_federation import free_ports, write_federation
from simulation.process_watch import ProcessWatch

PRIVATE = {
    "privacy__unit": "record",
    "privacy__q": 0.5,
    "privacy__steps": 4,
    "privacy__noise_multiplier": 1.0,
    "secure_aggregation__enabled": True,
    "federation__minimum_cohort": 3,
}


@pytest.mark.parametrize("changes", [{}, PRIVATE])
def test_every_party_can_open_its_folder(make_plan, make_data, tmp_path, changes):
    fed = write_federation(make_plan(**changes), make_data(), tmp_path, through=4711)
    settings = read_server_settings(fed.config)
    assert settings.server.listen == f"127.0.0.1:{fed.port}"
    plan = read_plan(settings.run.plan)
    assert plan.federation.roster_sha256
    assert [site.name for site in fed.sites] == ["site-1", "site-2", "site-3"]
    for path in fed.sites:
        site = read_settings(path / "site.toml")
        assert site.server.address == "127.0.0.1:4711"
        with open_site(site) as opened:
            assert opened.plan.hash == plan.hash
            if changes:
                ledger = opened.budget.ledger
                (account,) = ledger.spent()
                assert (account.spent.epsilon, account.charges) == (0, 0)
                # The policy's limit holds the whole run as the ledger counts it, and no more.
                rounds = plan.federation.rounds
                assert ledger.rounds_left("trial", [round_mechanism(plan)]) == rounds


def echo_once(listener: socket.socket, reply: bytes) -> None:
    connection, _ = listener.accept()
    with connection:
        while connection.recv(4096):
            pass
        connection.sendall(reply)


def test_the_relay_counts_bytes_both_ways():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=echo_once, args=(listener, b"x" * 700), daemon=True).start()
        with (
            ByteRelay(listener.getsockname()[1]) as relay,
            socket.create_connection(("127.0.0.1", relay.port)) as ours,
        ):
            ours.sendall(b"y" * 300_000)
            ours.shutdown(socket.SHUT_WR)
            received = b""
            while chunk := ours.recv(4096):
                received += chunk
        assert received == b"x" * 700
        assert (relay.sent, relay.received) == (300_000, 700)


def test_the_relay_stands_before_a_server_that_is_not_there():
    (port,) = free_ports(1)
    with ByteRelay(port) as relay, socket.create_connection(("127.0.0.1", relay.port)) as ours:
        assert ours.recv(10) == b""


def test_the_watch_sees_the_peak_of_processes_that_name_the_folder(tmp_path):
    program = "import sys, time; block = bytearray(80_000_000); del block; print('ready', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", program, "flower-supernode"]
    with ProcessWatch(tmp_path) as watch:
        ours = subprocess.Popen([*command, str(tmp_path / "x")], stdout=subprocess.PIPE)
        other = subprocess.Popen([*command, "/elsewhere"], stdout=subprocess.PIPE)
        try:
            assert ours.stdout.readline() + other.stdout.readline() == b"ready\n" * 2
            until = time.monotonic() + 30
            while watch.peaks.get("supernode", 0) < 80_000_000 and time.monotonic() < until:
                time.sleep(0.05)
        finally:
            for process in (ours, other):
                process.kill()
                process.wait()
                process.stdout.close()
    assert watch.peaks["supernode"] >= 80_000_000
    assert watch.started == {"supernode": 1}
