"""Real agents in processes of their own, and the server's own code in this one."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import tomli_w

import common

ROOT = Path(common.__file__).resolve().parents[1]

PLAN = {
    "privacy__unit": "record",
    "privacy__q": 0.5,
    "privacy__noise_multiplier": 1.0,
    "privacy__reserve_rounds": 1,
    "secure_aggregation__enabled": True,
    "federation__minimum_cohort": 3,
}
POLICY = {
    "max_epsilon": 5000.0,
    "max_delta": 1e-5,
    "approvals": "approvals.json",
    "required_unit": "record",
    "min_noise_multiplier": 0.5,
}
LEDGER = {
    "path": "ledger/ledger.db",
    "witness": "witness/head.json",
    "account": "wards",
    "unit": "record",
    "delta": 1e-5,
    "declaration": "All records of this made-up site.",
}


class Nursery:
    """Starts agents and ends them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.running: dict[Path, int] = {}
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("agent_nursery.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )

    def start(self, site: Path, fault: str | None = None) -> int:
        """Start the agent of a site and return its process id, once it listens."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        log = self.log(site)
        order = {"site": str(site / "site.toml"), "log": str(log), "fault": fault}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        assert answer["listens"], log.read_text("utf-8")[-3000:]
        self.running[site] = answer["pid"]
        return int(answer["pid"])

    def log(self, site: Path) -> Path:
        """Return where a site's agents write what they say."""
        return self._folder / f"{site.name}.log"

    def lives(self, site: Path) -> bool:
        """Return whether a site's agent is running."""
        try:
            state = Path(f"/proc/{self.running[site]}/stat").read_text("utf-8").rpartition(")")[2].split()[0]
        except OSError:
            return False
        return state not in "ZX"

    def end(self) -> None:
        """End every agent and the nursery."""
        for pid in self.running.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert self._process.stdin is not None
        self._process.stdin.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """Starts real agents."""
    started = Nursery(tmp_path_factory.mktemp("n"))
    yield started
    started.end()


@pytest.fixture
def make_sites(tmp_path: Path, make_plan: Callable[..., Any], make_data: Callable[..., Any]) -> Iterator[Any]:
    """A function that writes the folders of sites whose plan is approved and whose ledger is open.

    `agent` is the `[agent]` table of every site; other arguments change the plan.
    """
    from client.declaration import declare_account
    from client.plan_approval import PlanApproval
    from client.settings import read_settings
    from client.site_files import plan_files
    from simulation.sites import write_sites

    def make(count: int, *, agent: Mapping[str, Any] = {}, data: Any = None, **changes: Any) -> list[Path]:
        plan = make_plan(**{**PLAN, "simulation__sites": count, **changes})
        write_sites(plan, data or make_data(12 * count), tmp_path / "f")
        sites = [tmp_path / "f" / f"site-{number}" for number in range(1, count + 1)]
        for site in sites:
            path = site / "site.toml"
            table = tomllib.loads(path.read_text("utf-8")) | {
                "policy": dict(POLICY),
                "ledger": dict(LEDGER),
                "agent": dict(agent),
            }
            table["policy"]["secure_aggregation_mandatory"] = plan.secure_aggregation.enabled
            table["policy"]["min_cohort"] = plan.federation.minimum_cohort
            path.write_text(tomli_w.dumps(table), encoding="utf-8")
            declare_account(read_settings(path), create=True)
            PlanApproval.of(plan_files(path, plan=None, roster=None, key=None, policy=None)).give()
        return sites

    yield make
    shutil.rmtree(tmp_path / "f", ignore_errors=True)
