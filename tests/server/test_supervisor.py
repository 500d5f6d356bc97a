"""Children that are kept alive, and processes that are told apart by their start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from server.deployment_state import ChildState, DeploymentState, end_leftovers, read_state
from server.processes import Process
from server.supervisor import LONGEST_PAUSE, STEADY, Child, Supervisor, quiet_environment

SLEEPER = "import time; time.sleep(100)"


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def wait_until(ready):
    until = time.monotonic() + 20
    while not ready():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.fixture
def child(tmp_path):
    """A function that makes a supervisor of one child."""
    made = []

    def make(code, **more):
        one = Child(
            name="one",
            command=[sys.executable, "-c", code],
            environment=dict(os.environ),
            log=tmp_path / "one.log",
            **more,
        )
        supervisor = Supervisor([one], clock=Clock())
        made.append(supervisor)
        return supervisor, one

    yield make
    for supervisor in made:
        supervisor.stop()


def test_what_is_killed_comes_back_after_a_pause_that_grows(child):
    supervisor, one = child(SLEEPER)
    supervisor.start("one")
    pauses = []
    for _ in range(7):
        first = one.process
        os.kill(first.pid, signal.SIGKILL)
        wait_until(one.ended)
        assert supervisor.poll() == []
        began = supervisor._clock.now
        while not supervisor.poll():
            supervisor._clock.now += 0.5
        pauses.append(supervisor._clock.now - began)
        assert one.process != first
    assert pauses == [2, 4, 8, 16, LONGEST_PAUSE, LONGEST_PAUSE, LONGEST_PAUSE]
    assert one.restarts == 7
    # One that has run for a while begins with the short pause again.
    os.kill(one.process.pid, signal.SIGKILL)
    wait_until(one.ended)
    supervisor._clock.now += STEADY + 1
    supervisor.poll()
    supervisor._clock.now += 1
    assert supervisor.poll() == ["one"]


def test_what_a_child_has_started_ends_with_it(child, tmp_path):
    file = tmp_path / "pid"
    code = (
        "import subprocess, sys, pathlib, time\n"
        f"p = subprocess.Popen([sys.executable, '-c', {SLEEPER!r}])\n"
        f"pathlib.Path({str(file)!r}).write_text(str(p.pid))\ntime.sleep(100)"
    )
    supervisor, one = child(code)
    supervisor.start("one")
    wait_until(lambda: file.exists() and file.read_text())
    grandchild = Process.of(int(file.read_text()))
    assert grandchild.alive
    os.kill(one.process.pid, signal.SIGKILL)
    wait_until(one.ended)
    supervisor.poll()
    wait_until(lambda: not grandchild.alive)


def test_one_that_ignores_the_request_is_ended_by_force(child):
    supervisor, one = child(
        f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); {SLEEPER}",
        grace=0.3,
    )
    supervisor.start("one")
    wait_until(lambda: b"up" in one.log.read_bytes())
    process = one.process
    supervisor.stop()
    assert not process.alive


def test_the_environment_of_flower_is_quiet(tmp_path):
    environment = quiet_environment(tmp_path, EXTRA="1")
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert environment["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert environment["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert environment["EXTRA"] == "1"
    assert environment["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)


def test_a_number_that_was_given_out_again_is_not_ours():
    this = Process.this()
    assert this.alive
    other = Process(pid=this.pid, started=this.started - 1)
    assert not other.alive
    other.end(seconds=0)  # Nothing is sent to the process that has the number now.


def test_a_zombie_is_not_alive():
    child = subprocess.Popen([sys.executable, "-c", ""])
    process = Process.of(child.pid)
    wait_until(lambda: not process.alive)
    child.wait()


def test_leftovers_of_a_killed_server_are_ended(tmp_path):
    left = subprocess.Popen([sys.executable, "-c", SLEEPER], start_new_session=True)
    state = DeploymentState(
        process=Process(pid=2**22, started=1),
        out=str(tmp_path),
        children={"superlink": ChildState(process=Process.of(left.pid)), "proxy": ChildState(process=None)},
    )
    state.write(tmp_path)
    again = read_state(tmp_path)
    assert again.children == state.children
    assert not again.running
    assert end_leftovers(again, seconds=2) == ["superlink"]
    assert left.wait(10) != 0


def test_a_damaged_state_is_told(tmp_path):
    (tmp_path / "state.json").write_text('{"process": 1}')
    with pytest.raises(Exception, match="state.json is damaged"):
        read_state(tmp_path)
    assert read_state(tmp_path / "none") is None
