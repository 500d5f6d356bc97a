"""The keeper of a run: when it resumes, when it gives up, and what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from types import SimpleNamespace

import pytest

from common.errors import FedwardError
from server.processes import Process
from server.run_keeper import FAREWELL_SECONDS, RunKeeper
from server.run_progress import CRASHED, FAILED, FINISHED, PROGRESS, RUNNING, STOPPED, Progress
from server.settings import RunTable, ServerSettings, ServerTable
from server.superlink import RunStatus

DEAD = Process(pid=2**22, started=1)


class Link:
    """A SuperLink that writes down what it is asked."""

    def __init__(self):
        self.started, self.stopped, self.away = [], [], False
        self.status = RunStatus(status="running", sub_status="", details="")

    def start_run(self, config):
        if self.away:
            raise FedwardError("away")
        self.started.append(config)
        return len(self.started)

    def run_status(self, run_id):
        if self.away:
            raise FedwardError("away")
        return self.status

    def stop_run(self, run_id):
        self.stopped.append(run_id)


class Bench:
    """A keeper with a clock and a ServerApp of paper."""

    def __init__(self, folder, most_resumes=2):
        self.now, self.said, self.link = 100.0, [], Link()
        self.out = folder / "run"
        self.out.mkdir()
        settings = ServerSettings(
            path=folder / "server.toml",
            server=ServerTable(most_resumes=most_resumes),
            run=RunTable(data=folder, out=self.out),
        )
        self.keeper = RunKeeper(self.link, settings, say=self.said.append, clock=lambda: self.now)
        self.keeper.submit()

    def app(self, state=RUNNING, process=None, **more):
        progress = Progress(state=state, process=process or Process.this(), rounds=4, **more)
        (self.out / PROGRESS).write_text(json.dumps(asdict(progress)))
        (self.out / "plan.toml").touch()

    def wait(self, seconds):
        self.now += seconds
        return self.keeper.poll()


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def test_a_run_that_goes_well(bench):
    assert bench.link.started[0]["resume"] is False
    assert bench.keeper.poll() is None
    bench.app(round=1)
    assert bench.wait(5) is None
    bench.app(FINISHED, DEAD)
    outcome = bench.wait(1)
    assert (outcome.exit_code, "has finished" in outcome.message) == (0, True)
    assert bench.link.started[1:] == []


def test_a_serverapp_that_dies_is_resumed_after_a_pause(bench):
    bench.app(round=2, process=DEAD)
    assert bench.wait(1) is None
    assert bench.said == ["The ServerApp has died in round 2; the run is resumed from its checkpoint in 1 s."]
    assert bench.wait(0.5) is None
    assert len(bench.link.started) == 1
    assert bench.wait(1) is None
    assert bench.link.started[1]["resume"] is True
    assert bench.link.stopped == [1]
    assert (bench.keeper.resumes, bench.keeper.flower_run_id) == (1, 2)
    # What the dead one wrote is gone, so that it is not taken for the new one's.
    assert bench.keeper.progress is None


def test_one_that_dies_before_its_folder_is_begun_starts_anew(bench):
    bench.link.status = RunStatus(
        status="finished", sub_status="failed", details="Task failed with no heartbeat."
    )
    bench.wait(5)
    bench.wait(5)
    assert [config["resume"] for config in bench.link.started] == [False, False]


def test_it_gives_up_where_no_round_is_reached(bench):
    outcomes = []
    for _ in range(3):
        bench.app(round=1, process=DEAD) if not outcomes else bench.app(
            CRASHED, DEAD, round=1, message="OSError"
        )
        outcomes += [bench.wait(1), bench.wait(60)]
    bench.app(CRASHED, DEAD, round=1, message="OSError")
    outcome = bench.wait(1)
    assert outcome.exit_code == 1
    assert "The ServerApp failed (OSError), 3 times in round 1" in outcome.message
    assert "fedward-server resume" in outcome.message


def test_each_round_that_is_reached_counts_anew(bench):
    for server_round in range(1, 8):
        bench.app(round=server_round, process=DEAD)
        assert bench.wait(1) is None
        assert bench.wait(60) is None
    assert bench.keeper.resumes == 7


@pytest.mark.parametrize(("state", "code"), [(FAILED, 1), (STOPPED, 0)])
def test_an_end_on_purpose_is_told_and_not_resumed(bench, state, code):
    bench.app(state, DEAD, message="Two of three sites are missing.")
    outcome = bench.wait(1)
    assert outcome.exit_code == code
    assert outcome.message.startswith("Two of three sites are missing. Go on with 'fedward-server resume")
    assert len(bench.link.started) == 1


@pytest.fixture
def other():
    """A process that stands for a ServerApp."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    yield process
    process.kill()
    process.wait()


def test_a_serverapp_gets_time_to_say_farewell(bench, other):
    bench.app(FINISHED, Process.of(other.pid))
    assert bench.wait(1) is None
    assert other.poll() is None
    assert bench.wait(FAREWELL_SECONDS + 1).exit_code == 0
    assert other.wait(5) != 0


def test_it_is_not_waited_for_once_flower_knows(bench, other):
    bench.app(FINISHED, Process.of(other.pid))
    bench.link.status = RunStatus(status="finished", sub_status="completed", details="")
    assert bench.wait(1).exit_code == 0


def test_a_run_that_cannot_begin_is_told_in_flowers_words(bench):
    bench.link.status = RunStatus(
        status="finished",
        sub_status="failed",
        details="ServerApp failed with exception: x has no split test.",
    )
    outcome = bench.wait(5)
    assert outcome.exit_code == 1
    assert outcome.message.endswith("x has no split test.")


def test_a_superlink_that_is_away_is_waited_for(bench):
    bench.link.away = True
    bench.app(round=2, process=DEAD)
    bench.wait(1)
    bench.wait(5)
    assert (bench.keeper.resumes, len(bench.link.started)) == (0, 1)
    bench.link.away = False
    bench.wait(5)
    assert bench.keeper.resumes == 1


def test_a_run_that_flower_gave_up_is_resumed_although_its_process_lives(bench, other):
    bench.app(round=2, process=Process.of(other.pid))
    bench.link.status = RunStatus(status="finished", sub_status="failed", details="expired")
    bench.wait(5)
    bench.wait(FAREWELL_SECONDS + 5)
    bench.wait(5)
    assert bench.keeper.resumes == 1
    assert other.wait(5) != 0


def test_a_full_disk_is_named_since_the_server_app_cannot_say_so(bench, monkeypatch):
    bench.app(process=DEAD, round=2)
    bench.keeper.poll()
    assert "disk" not in bench.said[-1]
    monkeypatch.setattr("server.run_keeper.shutil.disk_usage", lambda path: SimpleNamespace(free=4096))
    bench.wait(60)
    bench.app(process=DEAD, round=2)
    bench.wait(1)
    assert f"the disk of {bench.out} is full: make room" in bench.said[-1]
