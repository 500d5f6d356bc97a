"""A real server: what somebody who reaches only the proxy can do, and what one shell sees of a server in another."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import urllib.request

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest, StartRunRequest
from flwr.proto.fleet_pb2 import ActivateNodeRequest, RegisterNodeFleetRequest
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

pytestmark = [
    pytest.mark.slow,
    pytest.mark.deployment,
]


@pytest.fixture
def connect():
    """A function that makes a client of one of Flower's APIs."""
    with contextlib.ExitStack() as stack:

        def make(kind, address, authority, key=None):
            interceptors = [NodeAuthHttpInterceptor(key, key.public_key())] if key else []
            client = kind.from_server_address(address, False, authority.read_bytes(), interceptors)
            return stack.enter_context(contextlib.closing(client))

        yield make


def status_of(call, request) -> int:
    """The HTTP status of a call that is refused."""
    with pytest.raises(httpx.HTTPStatusError) as refused:
        call(request)
    return refused.value.response.status_code


def test_a_server_seen_from_outside(federation, connect):
    fed = federation(sites=2, federation__rounds=1)
    metrics_port = fed.port + 1 if fed.port < 65_000 else fed.port - 1
    text = fed.config.read_text("utf-8").replace("[server]", f"[server]\nmetrics_port = {metrics_port}")
    fed.config.write_text(text, "utf-8")
    server = fed.up()
    fed.wait("SuperLink that waits for sites", lambda: fed.progress and fed.progress.needed)
    outside = f"127.0.0.1:{fed.port}"
    inside = text.split("superlink_port = ")[1].split()[0]

    # Starting a run, registering a node and acquiring a task are not for whoever reaches the proxy.
    control = connect(ControlHttpClient, outside, fed.authority)
    stranger = ec.generate_private_key(ec.SECP384R1())
    pem = public_key_to_bytes(stranger.public_key())
    assert status_of(control.StartRun, StartRunRequest()) == 404
    assert status_of(control.RegisterNode, RegisterNodeRequest(public_key=pem)) == 404
    assert status_of(control.ListNodes, ListNodesRequest()) == 404
    runtime = connect(RuntimeHttpClient, outside, fed.authority)
    wanted = AcquireTaskRequest(supported_task_types=["flwr-serverapp"])
    assert status_of(runtime.AcquireTask, wanted) == 404
    # On this machine too, a task is given to nobody without SuperExec's secret.
    assert (
        status_of(connect(RuntimeHttpClient, f"127.0.0.1:{inside}", fed.authority).AcquireTask, wanted) == 401
    )

    # A SuperNode whose key nobody has enrolled can neither register itself nor connect.
    fleet = connect(FleetHttpClient, outside, fed.authority, stranger)
    assert status_of(fleet.RegisterNode, RegisterNodeFleetRequest(public_key=pem)) == 404
    assert (
        400 <= status_of(fleet.ActivateNode, ActivateNodeRequest(public_key=pem, heartbeat_interval=30)) < 500
    )
    fed.wait("word of the stranger", lambda: "a key that is not enrolled" in fed.log("server"))
    # An enrolled key does not open the door to another path either.
    own = load_ssh_private_key((fed.sites[0] / "supernode.key").read_bytes(), None)
    member = connect(ControlHttpClient, outside, fed.authority, own)
    assert status_of(member.StartRun, StartRunRequest()) == 404

    # Who trusts another authority does not talk to this server.
    other = fed.folder / "other"
    fed.start("pki", *fed.command("pki", "init", "--dir", other, "--host", "127.0.0.1")).wait(120)
    with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
        connect(ControlHttpClient, outside, other / "ca.pem").StartRun(StartRunRequest())

    # A second shell sees the run; a second server is told why it cannot start.
    said = run(fed, "status", "--config", fed.config, "--json")
    assert (said["running"], said["headline"]) == (True, "Waiting for sites: 0 of at least 2 are there.")
    second = fed.start("second", *fed.command("up", "--config", fed.config))
    assert second.wait(120) == 2
    assert "Another process is at work in" in fed.log("second")
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=5) as answer:
        metrics = answer.read().decode()
    assert "fedward_sites_rostered 2.0" in metrics
    assert 'fedward_restarts_total{process="proxy"} 0.0' in metrics

    # It ends when it is told to, and nothing of it is left.
    server.send_signal(signal.SIGTERM)
    code, log = fed.finish(server)
    assert (code, "The server was stopped. Go on with 'fedward-server resume" in log) == (0, True)
    assert [pid for pid in fed.left() if pid != server.pid] == []
    assert run(fed, "status", "--config", fed.config, "--json")["running"] is False


def run(fed, *arguments):
    """Run a command to its end and return the JSON that it prints."""
    done = subprocess.run(
        [str(part) for part in fed.command(*arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        cwd=fed.folder,
    )
    return json.loads(done.stdout)
