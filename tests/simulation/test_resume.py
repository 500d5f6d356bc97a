"""A run that is killed at any moment and resumed ends with the same weights, to the bit."""

from __future__ import annotations

import json
import multiprocessing
import signal

import pytest

from server.checkpoint import CheckpointStore

# Runs in a fresh process each; a name in `moment` is the call before which the process kills itself.
RUN = """
import importlib, os, signal
from pathlib import Path
from common.plan import read_plan
from simulation.engine import read_data, simulate

if moment:
    module, owner, name, number = moment
    target = importlib.import_module(module)
    target = getattr(target, owner) if owner else target
    original = getattr(target, name)
    calls = []

    def dies(*arguments, **options):
        calls.append(name)
        if len(calls) == number:
            if torn:
                # Half of a line is on the disk when the power goes.
                with open(Path(out) / "metrics.jsonl", "ab") as file:
                    file.write(b'{"round": 2, "si')
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    setattr(target, name, dies)

plan = read_plan(Path(plan_file))
simulate(plan, read_data(Path(data), plan), Path(out), resume=resume, device="cpu")
"""

MOMENTS = {
    "before the first checkpoint": ("server.checkpoint", "CheckpointStore", "save", 1),
    "before anybody trains": ("client.round_training", "PlainTraining", "_fit", 1),
    "in the middle of a site's training": ("common.training", "FitSession", "_step", 3),
    "in round 2, one site trained": ("client.round_training", "PlainTraining", "_fit", 5),
    "before a finished update is spooled": ("client.spool", "UpdateSpool", "save", 5),
    "between training and upload": ("client.site", "Site", "_upload", 1),
    "in the middle of the uploads of round 2": ("client.site", "Site", "_upload", 5),
    "before the optimizer's step of round 2": ("server.rounds", None, "undo_stages", 2),
    "inside the writing of a checkpoint": ("server.checkpoint", None, "save_file", 3),
    "before a checkpoint is named": ("common.files", None, "sync", 4),
    "between checkpoint and metrics": ("server.run_folder", "RunFolder", "append_metrics", 2),
    "before the model is saved": ("server.federation", None, "save_model", 1),
    "between model and result": ("server.run_folder", "RunFolder", "write_result", 1),
}


@pytest.fixture(scope="module")
def processes():
    """Starts processes from a server that has imported everything once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["simulation.engine"])
    return context


@pytest.fixture(scope="module")
def execute(processes, make_plan, data_folder, tmp_path_factory):
    """A function that runs a federation in a process of its own and returns the exit code."""
    plan_file = tmp_path_factory.mktemp("plan") / "plan.toml"
    plan = make_plan(
        federation__optimizer="fedadam", federation__server_learning_rate=0.01, training__batch_size=6
    )
    plan_file.write_text(plan.to_toml(), encoding="utf-8")

    def run(out, *, resume=False, moment=None, torn=False):
        names = {"plan_file": str(plan_file), "data": str(data_folder), "out": str(out)}
        names |= {"resume": resume, "moment": moment, "torn": torn}
        process = processes.Process(target=exec, args=(RUN, names))
        process.start()
        process.join(300)
        return process.exitcode

    return run


@pytest.fixture(scope="module")
def whole(execute, tmp_path_factory):
    """The run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert execute(folder) == 0
    return folder


def traces(folder):
    """Return everything of a run that must not depend on interruptions."""
    checkpoint = CheckpointStore(folder / "checkpoints").latest()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    for row in rows:
        del row["seconds"], row["seconds_by_stage"]
    result = json.loads((folder / "result.json").read_text("utf-8"))
    return {
        "weights": checkpoint.weights.tobytes(),
        "optimizer": {name: vector.tobytes() for name, vector in checkpoint.optimizer_state.items()},
        "model": (folder / "model" / "model.safetensors").read_bytes(),
        "rows": rows,
        "result": {key: result[key] for key in ("micro_f1", "per_entity", "rounds", "chosen_round")},
        "files": sorted(path.name for path in folder.iterdir()),
    }


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS)
def test_killed_and_resumed_is_the_same_to_the_bit(execute, whole, tmp_path, moment):
    out = tmp_path / "run"
    assert execute(out, moment=moment) == -signal.SIGKILL
    assert not (out / "result.json").exists()
    assert execute(out, resume=True) == 0
    assert traces(out) == traces(whole)


@pytest.mark.slow
def test_killed_with_half_a_line_of_metrics_on_the_disk(execute, whole, tmp_path):
    out = tmp_path / "run"
    assert execute(out, moment=MOMENTS["between checkpoint and metrics"], torn=True) == -signal.SIGKILL
    assert execute(out, resume=True) == 0
    assert traces(out) == traces(whole)


@pytest.mark.slow
def test_killed_three_times(execute, whole, tmp_path):
    out = tmp_path / "run"
    assert execute(out, moment=MOMENTS["in the middle of a site's training"]) == -signal.SIGKILL
    assert execute(out, resume=True, moment=("client.site", "Site", "_upload", 2)) == -signal.SIGKILL
    assert execute(out, resume=True, moment=MOMENTS["between checkpoint and metrics"]) == -signal.SIGKILL
    assert execute(out, resume=True) == 0
    assert traces(out) == traces(whole)


@pytest.mark.slow
def test_killed_before_the_folder_is_a_run_it_can_be_started_anew(execute, whole, tmp_path):
    out = tmp_path / "run"
    assert execute(out, moment=("server.run_folder", None, "write_atomically", 1)) == -signal.SIGKILL
    assert not (out / "plan.toml").exists()
    assert execute(out) == 0
    assert traces(out) == traces(whole)
