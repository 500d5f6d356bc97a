"""A real server whose processes are killed, and whose sites come late, fall silent or answer by halves."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess

import pytest

from common.plan import read_plan
from server.checkpoint import CheckpointStore

pytestmark = [
    pytest.mark.slow,
    pytest.mark.deployment,
]


def begun(fed, server_round, stage="train"):
    """Whether the run is in a stage of a round."""
    progress = fed.progress
    return progress is not None and (progress.round, progress.stage) == (server_round, stage)


def fedward_run_id(fed):
    """Our own id of the run, which is in every checkpoint."""
    return CheckpointStore(fed.out / "checkpoints").latest().run_id


def test_serverapp_and_superlink_are_killed(federation):
    """Each is killed in the middle of a round; the run completes by itself, with every round once."""
    fed = federation(sites=2, federation__rounds=4)
    server = fed.up()
    fed.start_sites()
    fed.wait("round 2", lambda: begun(fed, 2))
    run_id, flower_run = fedward_run_id(fed), fed.state.flower_run_id
    os.kill(fed.progress.process.pid, signal.SIGKILL)
    fed.wait("resumed run", lambda: fed.state.resumes == 1 and fed.state.flower_run_id != flower_run)
    fed.wait("round 3", lambda: begun(fed, 3, "upload") or begun(fed, 4))
    os.kill(fed.state.children["superlink"].process.pid, signal.SIGKILL)
    code, said = fed.finish(server)
    assert code == 0, fed.logs()
    assert "superlink was started again." in said
    assert [row["round"] for row in fed.rows()] == [1, 2, 3, 4]
    assert all(row["sites"] == ["site-1", "site-2"] for row in fed.rows())
    assert fedward_run_id(fed) == run_id
    assert read_plan(fed.out / "plan.toml").hash == read_plan(fed.folder / "server" / "plan.toml").hash
    assert fed.result()["rounds"] == 4


def test_a_leak_would_be_found(federation):
    """Every test here ends with a search for the notes' texts in whatever the server wrote; this plants one."""
    fed = federation(sites=2)
    text = json.loads((fed.sites[0] / "data" / "train.jsonl").read_text("utf-8").splitlines()[0])["text"]
    leak = fed.folder / "server" / "state" / "logs" / "superlink.log"
    leak.parent.mkdir(parents=True)
    leak.write_text(f"ERROR could not read {text!r}\n", "utf-8")
    assert fed.leaks() == [leak]
    leak.unlink()


def test_too_few_sites_and_a_server_that_is_killed(federation):
    """The run waits, says so, gives up at the plan's deadline, and goes on when the late site is there."""
    fed = federation(sites=2, federation__rounds=2, federation__train_deadline=30.0)
    (fed.sites[1] / "absent").touch()
    fed.start_sites()
    server = fed.up()
    code, said = fed.finish(server)
    assert code == 1
    assert "Waiting for sites: 1 of at least 2 are there." in said
    assert "the run stopped after 30 s and can be resumed. Go on with 'fedward-server resume" in said
    # The plan is the consortium's, so the deadline stays; the late site comes in its time.
    (fed.sites[1] / "absent").unlink()
    server = fed.up("resume", fed.out, "--config", fed.config)
    fed.wait("round 1", lambda: begun(fed, 1) or begun(fed, 2))
    server.send_signal(signal.SIGKILL)
    server.wait()
    assert len(fed.left()) > 1, "The children of a server that is killed live on."
    server = fed.up("resume", "first", "--config", fed.config)
    code, said = fed.finish(server)
    assert code == 0, fed.logs()
    assert "An earlier server was killed; ended what it had left: " in said
    assert [row["round"] for row in fed.rows()] == [1, 2]


def test_a_site_that_never_answers_and_one_that_stops_in_the_middle(federation):
    """Deadlines are ours: the others' round goes on, and the site takes part again once it answers."""
    fed = federation(
        sites=3,
        federation__rounds=3,
        federation__minimum_cohort=2,
        federation__train_deadline=45.0,
        federation__exchange_deadline=45.0,
    )
    server = fed.up()
    fed.start_sites()
    fed.wait("round 2", lambda: begun(fed, 2))
    (fed.sites[2] / "silent").touch()
    fed.wait("round 3", lambda: begun(fed, 3))
    (fed.sites[2] / "silent").unlink()
    (fed.sites[2] / "broken").touch()
    code, _ = fed.finish(server)
    assert code == 0, fed.logs()
    sites = [row["sites"] for row in fed.rows()]
    assert sites[0] == ["site-1", "site-2", "site-3"]
    assert sites[2] == ["site-1", "site-2"]
    assert all(row["seconds"] < 180 for row in fed.rows()[1:])


def test_stop_ends_after_the_round_and_the_run_can_be_resumed(federation):
    fed = federation(sites=2, federation__rounds=5)
    server = fed.up()
    fed.start_sites()
    fed.wait("round 1", lambda: begun(fed, 1))
    stop = fed.start("stop", *fed.command("stop", "--config", fed.config))
    code, _ = fed.finish(server)
    assert (code, stop.wait(60)) == (0, 0)
    done = len(fed.rows())
    assert 1 <= done < 5
    assert f"The run was stopped on request in round {done} of 5" in fed.log("stop")
    server = fed.up("resume", fed.out, "--config", fed.config)
    assert fed.finish(server)[0] == 0
    assert [row["round"] for row in fed.rows()] == [1, 2, 3, 4, 5]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a small disk")
def test_a_disk_that_fills(federation, tmp_path):
    """The run's disk is full in the middle of the run: nothing is half-written, and with room it goes on."""
    fed = federation(sites=2, federation__rounds=3)
    runs, filler = fed.out.parent, fed.out.parent / "filler"
    fed.config.write_text(
        fed.config.read_text("utf-8").replace("[run]", "most_resumes = 1\n\n[run]", 1), "utf-8"
    )
    runs.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "none", runs], check=True)
    try:
        server = fed.up()
        fed.start_sites()
        fed.wait("round 2", lambda: begun(fed, 2))
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        code, said = fed.finish(server)
        assert code == 1, fed.logs()
        assert f"the disk of {fed.out} is full: make room" in " ".join(said.split())
        assert "fedward-server resume" in said
        assert all(json.loads(line)["round"] == 1 for line in whole_lines(fed.out / "metrics.jsonl"))
        filler.unlink()
        code, _ = fed.finish(fed.up("resume", fed.out, "--config", fed.config))
        assert code == 0, fed.logs()
        assert [row["round"] for row in fed.rows()] == [1, 2, 3]
        assert (fed.out / "model" / "config.json").is_file()
    finally:
        fed.end()
        subprocess.run(["umount", "-l", runs], check=True)


def whole_lines(path):
    """The lines of a file that were written to their end."""
    return [line for line in path.read_text("utf-8").splitlines(keepends=True) if line.endswith("\n")]
