"""`fedward-site run` as an operator starts it: one agent, kept running, and ended with one signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import common
from client.agent_client import ask_agent
from client.approvals import Approvals
from client.keys import load_identity_key
from common.errors import AgentError
from common.messages import HELLO, Envelope
from common.plan import read_plan

pytestmark = [pytest.mark.slow, pytest.mark.deployment]

ROOT = Path(common.__file__).resolve().parents[1]
SECONDS = 400.0


def start(site, log):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with log.open("wb") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", "client.cli", "run", "--site", site / "site.toml", "--supernode", "none"],
            stderr=errors,
            env=environment,
            cwd=site,
            start_new_session=True,
        )


def wait_for(what, ready, process):
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        if found := ready():
            return found
        assert process.poll() is None, f"It ended with {process.returncode}."
        time.sleep(0.2)
    pytest.fail(f"No {what}.")


def answers(site):
    """Return whether the agent answers."""
    try:
        reply = ask_agent(site / "run" / "agent.sock", Envelope(kind=HELLO), timeout=60)
    except AgentError:
        return False
    return reply.header.get("site") == site.name


def agent_of(process):
    """Return the process id of the agent below a supervisor, or None."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text("utf-8").split()
    return int(children[0]) if children else None


def test_a_site_from_start_to_end(make_sites, tmp_path):
    (site, *_) = make_sites(3, federation__rounds=2, privacy__steps=4)
    log, other = tmp_path / "run.log", tmp_path / "second.log"
    process = start(site, log)
    try:
        wait_for("agent", lambda: answers(site), process)
        first = agent_of(process)
        # A second one is refused in one sentence, and the first goes on.
        second = start(site, other)
        assert second.wait(timeout=SECONDS) == 2
        assert "another agent of this site is running; stop it first" in other.read_text("utf-8").replace(
            "\n", " "
        )
        assert answers(site)
        os.kill(first, signal.SIGKILL)
        wait_for("restart", lambda: agent_of(process) not in (None, first), process)
        wait_for("agent after its restart", lambda: answers(site), process)
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=60)
    assert code == 0
    text = log.read_text("utf-8")
    assert "agent was killed by SIGKILL; it is started again in 1 s." in text
    assert "Isolation is off" in text
    assert "A stale socket of an agent that ended was replaced" in text
    assert not (site / "run" / "agent.sock").exists()


def test_a_plan_that_is_not_approved_is_one_sentence(make_sites, tmp_path):
    (site, *_) = make_sites(3, federation__rounds=2, privacy__steps=4)
    key = load_identity_key(site / "identity.pem")
    approvals = Approvals.load(site / "approvals.json", key.public_key())
    approvals.revoke(read_plan(site.parent / "plan.toml").hash, key)
    process = start(site, tmp_path / "run.log")
    assert process.wait(timeout=SECONDS) == 1
    assert "the operator has not approved this plan" in (tmp_path / "run.log").read_text("utf-8").replace(
        "\n", " "
    )
