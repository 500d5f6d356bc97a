"""One real run on loopback: a SuperLink, SuperNodes and `flwr run`, each a process, as docs/flower-run.md says."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import common
from simulation.sites import write_sites

ROOT = Path(common.__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
SITES = 2
SECONDS = 900.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.deployment,
    pytest.mark.skipif(
        not (BIN / "flower-superlink").exists(), reason="Flower's commands are not beside Python"
    ),
]

ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "OMP_NUM_THREADS": "1",
}

Start = Callable[..., subprocess.Popen[bytes]]


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def environment(home: Path) -> dict[str, str]:
    """Return a Flower process's environment with a home of its own."""
    home.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join([str(BIN), os.environ.get("PATH", "")])
    return {**os.environ, **ENVIRONMENT, "FLWR_HOME": str(home), "PATH": path}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """A function that starts a command in a session of its own; all are ended with their children."""
    started: list[subprocess.Popen[bytes]] = []

    def run(name: str, *arguments: object, home: Path, cwd: Path) -> subprocess.Popen[bytes]:
        log = (tmp_path / f"{name}.log").open("wb")
        process = subprocess.Popen(
            [BIN / str(arguments[0]), *map(str, arguments[1:])],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment(home),
            cwd=cwd,
            start_new_session=True,
        )
        log.close()
        started.append(process)
        return process

    yield run
    for process in reversed(started):
        end(process)
    assert not children_of(tmp_path), "A process of the run is left."


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end, then end its whole session."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=20)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def children_of(folder: Path) -> list[int]:
    """End processes whose Flower home is below `folder`, which may have sessions of their own; return those left."""
    for _ in range(20):
        left = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if belongs(pid, folder)]
        if not left:
            return []
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.5)
    return left


def belongs(pid: int, folder: Path) -> bool:
    """Return whether a living process was started with a Flower home below `folder`."""
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
    return f"\0FLWR_HOME={folder}".encode() in b"\0" + variables


def wait_for(
    what: str, ready: Callable[[], Any], logs: Path, *, alive: Mapping[str, subprocess.Popen[bytes]]
) -> Any:
    """Wait until `ready` returns something; a process that ends before, or the time's end, fails the test."""
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        if found := ready():
            return found
        for name, process in alive.items():
            assert process.poll() is None, (
                f"{name} ended early:\n{(logs / f'{name}.log').read_text()[-3000:]}"
            )
        time.sleep(1.0)
    texts = {path.name: path.read_text()[-2000:] for path in logs.glob("*.log")}
    pytest.fail(
        f"No {what} after {SECONDS:g} s:\n" + "\n".join(f"== {name}\n{text}" for name, text in texts.items())
    )


def listens(port: int) -> bool:
    """Return whether somebody listens on the port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_superlink_supernodes_and_flwr_run(start, tmp_path, make_plan, make_data):
    plan = make_plan(
        federation__rounds=1,
        federation__minimum_cohort=SITES,
        federation__train_deadline=SECONDS,
        federation__exchange_deadline=SECONDS,
        simulation__sites=SITES,
    )
    link, *nodes = free_ports(1 + SITES)
    local = tmp_path / "local"
    write_sites(plan, make_data(), local, superlink=f"127.0.0.1:{link}")
    alive = {
        "superlink": start(
            "superlink",
            "flower-superlink",
            "--insecure",
            "--port",
            link,
            home=tmp_path / "link",
            cwd=tmp_path,
        )
    }
    wait_for("SuperLink", lambda: listens(link), tmp_path, alive=alive)
    for number, port in enumerate(nodes, 1):
        site = local / f"site-{number}"
        alive[site.name] = start(
            site.name,
            "flower-supernode",
            "--insecure",
            "--superlink",
            f"127.0.0.1:{link}",
            "--port",
            port,
            "--node-config",
            f'site="{site / "site.toml"}"',
            home=site / "flower",
            cwd=site,
        )
    submit = start(
        "flwr",
        "flwr",
        "run",
        ".",
        "fedward",
        "--run-config",
        local / "run.toml",
        home=local / "flower",
        cwd=ROOT,
    )
    assert submit.wait(timeout=SECONDS) == 0, (tmp_path / "flwr.log").read_text()
    result = local / "run" / "result.json"
    wait_for("result", result.exists, tmp_path, alive=alive)
    found = json.loads(result.read_text(encoding="utf-8"))
    assert (found["rounds"], found["sites"], found["secure_aggregation"]) == (1, SITES, False)
    (row,) = (local / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(row)["sites"] == ["site-1", "site-2"]
    assert (local / "run" / "model" / "config.json").is_file()
