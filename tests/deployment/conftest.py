"""A small real federation: a folder made by the commands' own code, a server as a process, sites as another."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from client.enrolment import enrol
from server.deployment_state import DeploymentState, read_state
from server.enrolment import accept_requests
from server.pki import init_pki
from server.run_progress import Progress, read_progress
from simulation.engine import split_notes
from simulation.sites import write_notes

ROOT = Path(__file__).resolve().parents[2]
LIGHT_SITES = Path(__file__).with_name("light_sites.py")
SECONDS = 300.0


@dataclass
class Federation:
    """The folders of one federation on this machine, and the processes that a test starts in it."""

    folder: Path
    port: int
    sites: list[Path]
    light_sites: Path = LIGHT_SITES
    server: subprocess.Popen[bytes] | None = None
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def config(self) -> Path:
        return self.folder / "fed" / "server.toml"

    @property
    def state_folder(self) -> Path:
        return self.folder / "fed" / "state"

    @property
    def out(self) -> Path:
        return self.folder / "fed" / "runs" / "first"

    @property
    def authority(self) -> Path:
        return self.folder / "fed" / "ca.pem"

    @property
    def state(self) -> DeploymentState | None:
        return read_state(self.state_folder)

    @property
    def progress(self) -> Progress | None:
        return read_progress(self.out)

    def start(self, name: str, *command: object, prefix: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        """Start a process in a session of its own; its output is in NAME.log."""
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_HOME": str(self.folder / "home"),
        }
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [*prefix, *map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=self.folder,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def command(self, *arguments: object) -> list[object]:
        """Return a `fedward-server` command of this checkout."""
        return [sys.executable, "-m", "server.cli", *arguments]

    def up(self, *arguments: object) -> subprocess.Popen[bytes]:
        """Start the server."""
        self.server = self.start("server", *self.command(*(arguments or ("up", "--config", self.config))))
        return self.server

    def start_sites(self, *names: str, address: str = "") -> subprocess.Popen[bytes]:
        """Start the sites of these names, by default all, in one process."""
        folders = [site for site in self.sites if not names or site.name in names]
        return self.start(
            "sites",
            sys.executable,
            LIGHT_SITES,
            address or f"127.0.0.1:{self.port}",
            self.authority,
            *folders,
        )

    def wait(self, what: str, ready: Callable[[], Any], *, seconds: float = SECONDS) -> Any:
        """Wait until `ready` returns something; the logs are shown if the server ends before, or the time is over."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if found := ready():
                return found
            if self.server is not None and self.server.poll() is not None:
                pytest.fail(f"The server ended before the {what}.\n{self.logs()}")
            time.sleep(0.2)
        pytest.fail(f"No {what} after {seconds:g} s.\n{self.logs()}")

    def finish(self, server: subprocess.Popen[bytes], *, seconds: float = SECONDS) -> tuple[int, str]:
        """Wait for the server's end and return its exit code and what it said."""
        try:
            code = server.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"The server did not end after {seconds:g} s.\n{self.logs()}")
        return code, self.log("server")

    def result(self) -> dict[str, Any]:
        """Return the run's result."""
        return json.loads((self.out / "result.json").read_text("utf-8"))

    def rows(self) -> list[dict[str, Any]]:
        """Return the metrics of the rounds."""
        lines = (self.out / "metrics.jsonl").read_text("utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def log(self, name: str) -> str:
        """Return what a process has said."""
        return (self.folder / f"{name}.log").read_text("utf-8", "replace")

    def logs(self) -> str:
        """Return the end of every log."""
        paths = [
            *self.folder.glob("*.log"),
            *self.state_folder.glob("logs/*.log"),
            *self.out.glob("log.jsonl"),
        ]
        return "\n".join(f"== {path.name}\n{path.read_text('utf-8', 'replace')[-2500:]}" for path in paths)

    def leaks(self) -> list[Path]:
        """Return the files of the server and of every log that hold a note's text, the records themselves aside."""
        texts = {
            json.loads(line)["text"].encode()
            for file in self.folder.rglob("data/*.jsonl")
            for line in file.read_text("utf-8").splitlines()
        }
        files = [*(self.folder / "fed").rglob("*"), *self.folder.glob("*.log")]
        files = [file for file in files if file.is_file() and file.parent.name != "data"]
        return [file for file in files if any(text in file.read_bytes() for text in texts)]

    def end(self) -> None:
        """End every process, also those that the server had started."""
        for process in reversed(self.processes):
            if process.poll() is None:
                process.terminate()
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=30)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        left = self.left()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def left(self) -> list[int]:
        """Return the processes that have this federation's folder in their command line or Flower home."""
        mark, found = str(self.folder).encode(), []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
                if int(pid) != os.getpid() and mark in text:
                    found.append(int(pid))
        return found


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def build(
    folder: Path, plan: Any, data: Any, *, hosts: Sequence[str], listen: str = "127.0.0.1"
) -> Federation:
    """Make the folders of a federation as its operators would, with notes split over the plan's sites."""
    port, link_port = free_ports(2)
    fed = folder / "fed"
    init_pki(fed, hosts, port=port)
    shares = split_notes(plan, data.train)
    sites = [folder / f"site-{number}" for number in range(1, len(shares) + 1)]
    for site, notes in zip(sites, shares, strict=True):
        enrol(name=site.name, server=f"{hosts[0]}:{port}", out=site, public_units=len(notes))
        (site / "data").mkdir()
        write_notes(site / "data" / "train.jsonl", notes)
    (folder / "draft.toml").write_text(plan.to_toml(), "utf-8")
    accept_requests([site / "enrolment.json" for site in sites], fed, plan=folder / "draft.toml")
    for site in sites:
        table = {
            "site": {
                "name": site.name,
                "data": "data",
                "spool": "spool",
                "roster": str(fed / "roster.toml"),
                "plan": str(fed / "plan.toml"),
                "device": "cpu",
            },
            "keys": {"identity": "identity.pem"},
        }
        (site / "site.toml").write_text(tomli_w.dumps(table), "utf-8")
    (fed / "data").mkdir()
    for split in ("devel", "test"):
        write_notes(fed / "data" / f"{split}.jsonl", getattr(data, split))
    server = {"listen": f"{listen}:{port}", "pki": ".", "state": "state", "superlink_port": link_port}
    run = {"plan": "plan.toml", "roster": "roster.toml", "data": "data", "out": "runs/first"}
    (fed / "server.toml").write_text(tomli_w.dumps({"server": server, "run": run}), "utf-8")
    return Federation(folder=folder, port=port, sites=sites)


@pytest.fixture
def federation(tmp_path: Path, make_plan: Any, make_data: Any) -> Iterator[Callable[..., Federation]]:
    """A function that makes a federation; its processes end with the test, and none may be left."""
    made: list[Federation] = []

    def make(
        *, sites: int = 2, hosts: Sequence[str] = ("127.0.0.1",), listen: str = "127.0.0.1", **plan: Any
    ) -> Federation:
        defaults = {
            "federation__rounds": 2,
            "federation__minimum_cohort": sites,
            "federation__train_deadline": 120.0,
            "federation__exchange_deadline": 60.0,
            "simulation__sites": sites,
        }
        one = build(
            tmp_path / "work",
            make_plan(**(defaults | plan)),
            make_data(train=8 * sites),
            hosts=hosts,
            listen=listen,
        )
        made.append(one)
        return one

    (tmp_path / "work").mkdir()
    yield make
    for one in made:
        one.end()
        assert one.leaks() == []
