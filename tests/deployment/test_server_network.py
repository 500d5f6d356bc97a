"""Server and sites in network namespaces of their own, with a partition in the middle of the run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from server.proxy import require_nginx

SERVER = "10.77.0.1"
PREFIX = f"fw{os.getpid() % 100_000}"


def ip(*arguments, check=True):
    """Run `ip`."""
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=check)


def possible() -> bool:
    """Whether this machine has nginx and lets us make namespaces with links between them."""
    try:
        require_nginx()
    except Exception:
        return False
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    probe = f"{PREFIX}probe"
    made = ip("netns", "add", probe, check=False).returncode == 0
    linked = (
        made
        and ip(
            "-n",
            probe,
            "link",
            "add",
            "name",
            "probe0",
            "type",
            "veth",
            "peer",
            "name",
            "probe1",
            check=False,
        ).returncode
        == 0
    )
    ip("netns", "delete", probe, check=False)
    return linked


pytestmark = [
    pytest.mark.slow,
    pytest.mark.deployment,
    pytest.mark.skipif(not possible(), reason="needs nginx, root and network namespaces"),
]


@pytest.fixture
def network():
    """Namespaces around a switch: their names, and whether the kernel has netem."""
    names = ["hub", "server", "1", "2", "3"]
    space = {name: f"{PREFIX}{name}" for name in names}
    for one in space.values():
        ip("netns", "add", one)
    try:
        hub = space["hub"]
        ip("-n", hub, "link", "add", "name", "switch", "type", "bridge")
        ip("-n", hub, "link", "set", "switch", "up")
        rough = True
        for number, name in enumerate(names[1:], 1):
            ip(
                "-n",
                hub,
                "link",
                "add",
                f"to-{name}",
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "netns",
                space[name],
            )
            ip("-n", hub, "link", "set", f"to-{name}", "master", "switch", "up")
            ip("-n", space[name], "address", "add", f"10.77.0.{number}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", space[name], "link", "set", device, "up")
            netem = [
                "tc",
                "-n",
                space[name],
                "qdisc",
                "add",
                "dev",
                "eth0",
                "root",
                "netem",
                "delay",
                "40ms",
                "loss",
                "1%",
            ]
            rough &= subprocess.run(netem, capture_output=True, check=False).returncode == 0
        yield space, rough
    finally:
        for one in space.values():
            ip("netns", "delete", one, check=False)


def test_a_partition_heals(federation, network):
    """One site's cable is out for 90 s while a round runs; the run ends as planned all the same."""
    space, rough = network
    print("delay and loss:", "netem, 40 ms and 1%" if rough else "this kernel has no netem; partition alone")
    fed = federation(
        sites=3,
        hosts=(SERVER,),
        listen=SERVER,
        federation__rounds=3,
        federation__minimum_cohort=2,
        federation__train_deadline=240.0,
        federation__exchange_deadline=120.0,
    )
    inside = {name: ["ip", "netns", "exec", one] for name, one in space.items()}
    server = fed.start("server", *fed.command("up", "--config", fed.config), prefix=inside["server"])
    for number, site in enumerate(fed.sites, 1):
        script = [sys.executable, fed.light_sites, f"{SERVER}:{fed.port}", fed.authority, site]
        fed.start(f"sites-{number}", *script, prefix=inside[str(number)])
    fed.wait("round 2", lambda: fed.progress and (fed.progress.round, fed.progress.stage) == (2, "train"))
    ip("-n", space["hub"], "link", "set", "to-1", "down")
    # Nobody outside the server's namespace reaches the SuperLink, whatever the state of the cables.
    port = fed.config.read_text("utf-8").split("superlink_port = ")[1].split()[0]
    reach = f"import socket; socket.create_connection(('{SERVER}', {port}), 3)"
    refused = subprocess.run(
        [*inside["2"], sys.executable, "-c", reach], capture_output=True, text=True, check=False
    )
    assert "ConnectionRefusedError" in refused.stderr
    fed.wait("90 s of partition", _after(90.0))
    ip("-n", space["hub"], "link", "set", "to-1", "up")
    code, _ = fed.finish(server)
    assert code == 0, fed.logs()
    rows = fed.rows()
    assert [row["round"] for row in rows] == [1, 2, 3]
    assert rows[0]["sites"] == ["site-1", "site-2", "site-3"]
    # TCP may need longer than the exchange's deadline to find out that the cable is back.
    assert all({"site-2", "site-3"} <= set(row["sites"]) for row in rows)


def _after(seconds):
    """A condition that is met after so many seconds."""
    import time

    until = time.monotonic() + seconds
    return lambda: time.monotonic() > until
