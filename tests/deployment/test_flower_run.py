"""One real run on loopback: a SuperLink, sites and `flwr run`, each a process, as docs/flower-run.md says."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import tomli_w

import common
from client.declaration import declare_account
from client.keys import load_identity_key
from client.ledger import Ledger
from client.plan_approval import PlanApproval
from client.settings import read_settings
from client.site_files import plan_files
from common.audit_log import verify
from common.command import QUIET_FLOWER
from simulation.local_federation import free_ports
from simulation.local_processes import commands_naming, end_process, start_process
from simulation.sites import write_sites

ROOT = Path(common.__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
SITES = 3
SECONDS = 900.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.deployment,
    pytest.mark.skipif(
        not (BIN / "flower-superlink").exists(), reason="Flower's commands are not beside Python"
    ),
]

Start = Callable[..., subprocess.Popen[bytes]]


def environment(home: Path) -> dict[str, str]:
    """Return a Flower process's environment with a home of its own."""
    home.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join([str(BIN), os.environ.get("PATH", "")])
    return {**os.environ, **QUIET_FLOWER, "OMP_NUM_THREADS": "1", "FLWR_HOME": str(home), "PATH": path}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """A function that starts a command in a session of its own; all are ended with their children."""
    started: list[subprocess.Popen[bytes]] = []

    def run(name: str, *arguments: object, home: Path, cwd: Path) -> subprocess.Popen[bytes]:
        process = start_process(
            [BIN / str(arguments[0]), *map(str, arguments[1:])],
            log=tmp_path / f"{name}.log",
            folder=cwd,
            environment=environment(home),
        )
        started.append(process)
        return process

    yield run
    for process in reversed(started):
        end_process(process, seconds=20)
    assert not children_of(tmp_path), "A process of the run is left."


def children_of(folder: Path) -> list[int]:
    """End processes that name `folder`, which may have sessions of their own; return those left."""
    for _ in range(20):
        left = list(commands_naming(folder))
        if not left:
            return []
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.5)
    return left


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


PRIVATE_AND_SECURE = {
    "privacy__unit": "record",
    "privacy__q": 0.5,
    "privacy__steps": 4,
    "privacy__noise_multiplier": 1.0,
    "secure_aggregation__enabled": True,
    "federation__rounds": 2,
    "federation__minimum_cohort": SITES,
    "federation__train_deadline": SECONDS,
    "federation__exchange_deadline": SECONDS,
    "simulation__sites": SITES,
}
POLICY = {
    "max_epsilon": 500.0,
    "max_delta": 1e-5,
    "approvals": "approvals.json",
    "required_unit": "record",
    "min_noise_multiplier": 0.5,
}


def write_out(site: Path) -> None:
    """Give a site a policy and a ledger; declare its population and approve its plan, as its operator would."""
    path = site / "site.toml"
    ledger = {
        "path": "ledger/ledger.db",
        "witness": "witness/head.json",
        "account": "wards",
        "unit": "record",
        "delta": 1e-5,
        "declaration": "All records of this made-up site.",
    }
    table = tomllib.loads(path.read_text(encoding="utf-8")) | {"policy": POLICY, "ledger": ledger}
    table["agent"] = {"log": "agent.log"}
    path.write_text(tomli_w.dumps(table), encoding="utf-8")
    declare_account(read_settings(path), create=True)
    files = plan_files(path, plan=None, roster=None, key=None, policy=None)
    PlanApproval.of(files).give()


def jobs_of(site: Path) -> list[tuple[int, int]]:
    """Return rounds and charges of every job in a site's ledger."""
    settings = read_settings(site / "site.toml")
    key = load_identity_key(settings.keys.identity)
    assert settings.ledger is not None
    assert settings.policy is not None
    with Ledger(
        path=settings.ledger.path,
        witness=settings.ledger.witness,
        key=key,
        limit=settings.policy.limit,
        read_only=True,
    ) as ledger:
        return [(job.rounds, job.charges) for job in ledger.by_job()]


def audited(site: Path) -> list[str]:
    """Return what a site's audit log, whose chain and signatures hold, says it did."""
    key = load_identity_key(site / "identity.pem").public_key()
    entries = verify(site / "spool" / "audit.jsonl", key=key)
    return [str(entry.values.get("stage", entry.kind)) for entry in entries]


def connected(logs: Path, site: Path) -> int:
    """Return how often a site's SuperNode has connected."""
    return (logs / f"{site.name}.log").read_text("utf-8").count("SuperNode ID: ")


def test_superlink_sites_and_flwr_run(start, tmp_path, make_plan, make_data):
    """Secure aggregation and privacy, two rounds; every process a real one."""
    link, *_ = free_ports(1)
    local = tmp_path / "f"
    write_sites(make_plan(**PRIVATE_AND_SECURE), make_data(), local, superlink=f"127.0.0.1:{link}")
    options = ("--insecure", "--port", link)
    superlink = start("superlink", "flower-superlink", *options, home=tmp_path / "link", cwd=tmp_path)
    alive = {"superlink": superlink}
    wait_for("SuperLink", lambda: listens(link), tmp_path, alive=alive)
    sites = [local / f"site-{number}" for number in range(1, SITES + 1)]
    for site in sites:
        write_out(site)
        alive[site.name] = start(
            site.name,
            "fedward-site",
            "run",
            "--site",
            site / "site.toml",
            home=site / "flower",
            cwd=site,
        )
    # A SuperNode that dies is started again, and its site takes part as if nothing had been.
    log = tmp_path / "site-1.log"
    wait_for("SuperNodes", lambda: all(connected(tmp_path, site) for site in sites), tmp_path, alive=alive)
    os.kill(
        int(re.findall(r"supernode was started as process (\d+)", log.read_text("utf-8"))[0]), signal.SIGKILL
    )
    wait_for("SuperNode again", lambda: connected(tmp_path, sites[0]) == 2, tmp_path, alive=alive)
    assert "supernode was killed by SIGKILL; it is started again in 1 s." in log.read_text("utf-8")
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
    assert (found["rounds"], found["sites"], found["secure_aggregation"]) == (2, SITES, True)
    rows = [json.loads(line) for line in (local / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert [row["sites"] for row in rows] == [[site.name for site in sites]] * 2
    assert (local / "run" / "model" / "config.json").is_file()
    report = (local / "run" / "report.html").read_text("utf-8")
    assert "Isolation was off at site-1, site-2, site-3" in report
    for site in sites:
        assert found["privacy"][site.name]["epsilon"] > 0
        assert jobs_of(site) == [(2, 2)]
        stages = ["charge", "advertise", "share-keys", "upload", "confirm", "unmask"]
        assert audited(site) == ["approval", *stages, *stages]
        # One process held records, keys, masks and model from the first message to the last.
        log = [json.loads(line) for line in (site / "agent.log").read_text("utf-8").splitlines()]
        assert sum("listens on" in line["message"] for line in log) == 1
        assert any(line["message"].startswith("Isolation is off") for line in log)
        alive[site.name].terminate()
        assert alive[site.name].wait(timeout=60) == 0
        assert not (site / "run" / "agent.sock").exists()
