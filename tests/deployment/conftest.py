"""A small real federation: a folder made by the commands' own code, a server as a process, sites as another."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from common.command import QUIET_FLOWER
from common.errors import InputError
from server.deployment_state import DeploymentState, read_state
from server.proxy import require_nginx
from server.run_progress import Progress, read_progress
from simulation.local_federation import write_federation
from simulation.local_processes import commands_naming, end_process, start_process

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
        return self.folder / "server" / "server.toml"

    @property
    def state_folder(self) -> Path:
        return self.folder / "server" / "state"

    @property
    def out(self) -> Path:
        return self.folder / "server" / "runs" / "first"

    @property
    def authority(self) -> Path:
        return self.folder / "server" / "ca.pem"

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
            **QUIET_FLOWER,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "FLWR_HOME": str(self.folder / "home"),
        }
        process = start_process(
            [*prefix, *map(str, command)],
            log=self.folder / f"{name}.log",
            folder=self.folder,
            environment=environment,
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
        files = [*(self.folder / "server").rglob("*"), *self.folder.glob("*.log")]
        files = [file for file in files if file.is_file() and file.parent.name != "data"]
        return [file for file in files if any(text in file.read_bytes() for text in texts)]

    def end(self) -> None:
        """End every process, also those that the server had started."""
        for process in reversed(self.processes):
            if process.poll() is None:
                process.terminate()
        for process in self.processes:
            end_process(process, seconds=30)
        for pid in self.left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def left(self) -> list[int]:
        """Return the processes that have this federation's folder in their command line or environment."""
        return list(commands_naming(self.folder))


@pytest.fixture
def nginx() -> None:
    """Skip a test that needs the proxy where there is none."""
    try:
        require_nginx()
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture
def federation(
    nginx: None, tmp_path: Path, make_plan: Any, make_data: Any
) -> Iterator[Callable[..., Federation]]:
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
        folders = write_federation(
            make_plan(**(defaults | plan)),
            make_data(train=8 * sites),
            tmp_path / "work",
            hosts=hosts,
            listen=listen,
        )
        made.append(Federation(folder=tmp_path / "work", port=folders.port, sites=list(folders.sites)))
        return made[-1]

    (tmp_path / "work").mkdir()
    yield make
    for one in made:
        one.end()
        assert one.leaks() == []


@pytest.fixture
def processes(nginx: None) -> Iterator[Callable[..., Federation]]:
    """A function that returns a federation of folders which a test makes itself; its processes end with the test."""
    made: list[Federation] = []

    def make(folder: Path, port: int, sites: list[Path]) -> Federation:
        made.append(Federation(folder=folder, port=port, sites=sites))
        return made[-1]

    yield make
    for one in made:
        one.end()
