"""What people and Prometheus see of a run."""

from __future__ import annotations

import json
import socket
import urllib.request
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from common.errors import InputError
from common.roster import Member, Roster
from server.deployment_state import ChildState, DeploymentState
from server.monitoring import serve_metrics
from server.processes import Process
from server.run_progress import PROGRESS, Progress
from server.run_view import RunView

ROSTER = Roster(tuple(Member(name=name, identity_key=name.encode() * 16) for name in ("aa", "bb")))


@pytest.fixture
def state(tmp_path):
    return DeploymentState(
        process=Process.this(),
        out=str(tmp_path),
        children={"proxy": ChildState(process=None, restarts=2)},
        online=("aa",),
        refusals=("A SuperNode was refused.",),
    )


def write(folder, progress, rows=()):
    (folder / PROGRESS).write_text(json.dumps(asdict(progress)))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


ROW = {
    "round": 1,
    "sites": ["aa", "bb"],
    "seconds": 2.5,
    "train_loss": 0.5,
    "devel": {"micro": {"f1": 0.25}},
    "seconds_by_stage": {"train": 2.0},
}


def shown(view):
    console = Console(width=120, record=True, file=None, force_terminal=False)
    with console.capture() as captured:
        console.print(view.render())
    return captured.get()


def test_sites_by_stage_and_rounds_so_far(state, tmp_path):
    sites = {"aa": "answered", "bb": "refused-policy"}
    write(tmp_path, Progress(state="running", round=2, rounds=3, stage="share_keys", sites=sites), [ROW])
    view = RunView.of(state, ROSTER)
    text = shown(view)
    for word in (
        "Round 2 of 3, share keys.",
        "refused-policy",
        "0.2500",
        "0.5000",
        "proxy 2×",
        "was refused",
    ):
        assert word in text
    table = view.table()
    assert (table["sites"], table["round"], table["rounds_done"]) == (sites, 2, 1)
    json.dumps(table)


@pytest.mark.parametrize(
    ("progress", "headline"),
    [
        (Progress(present=1, needed=3), "Waiting for sites: 1 of at least 3 are there."),
        (Progress(state="running", rounds=3), "The run begins."),
        (Progress(state="running", round=3, rounds=3), "Round 3 of 3."),
        (Progress(state="failed", round=3, rounds=3, message="Why."), "Why."),
        (Progress(state="finished", round=3, rounds=3), "The run has finished."),
    ],
)
def test_headlines(state, tmp_path, progress, headline):
    write(tmp_path, progress)
    assert RunView.of(state, ROSTER).headline() == headline


def test_headlines_without_progress(state):
    assert RunView.of(state, ROSTER).headline() == "The ServerApp is being started."
    gone = replace(state, process=Process(pid=2**22, started=1))
    assert "not running; 'fedward-server resume" in RunView.of(gone, ROSTER).headline()
    assert RunView.of(replace(state, message="Over."), ROSTER).headline() == "Over."


def test_metrics_on_loopback(state, tmp_path):
    write(
        tmp_path,
        Progress(state="running", round=2, rounds=3),
        [ROW, {**ROW, "round": 2, "lost": True, "sites": []}],
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    end = datetime.now(UTC) + timedelta(days=1)
    with serve_metrics(port, lambda: RunView.of(state, ROSTER), end):
        with (
            pytest.raises(InputError, match=f"Port {port} .* server.metrics_port"),
            serve_metrics(port, lambda: None, end),
        ):
            pass
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    for line in (
        "fedward_rounds_done 2.0",
        "fedward_rounds_lost 1.0",
        "fedward_sites_connected 1.0",
        'fedward_stage_seconds{stage="train"} 2.0',
        'fedward_restarts_total{process="proxy"} 2.0',
        "fedward_devel_micro_f1 0.25",
    ):
        assert line in text
    with serve_metrics(0, lambda: None, end):
        pass
