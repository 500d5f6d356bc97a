"""Trackers get each round once, stay offline, and an extra that is missing is named."""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from common.errors import InputError
from server.run_folder import RunFolder
from server.tracking import (
    MLflowTracker,
    TensorBoardTracker,
    Trackers,
    flatten,
    open_trackers,
    require_extras,
)


@pytest.fixture
def folder(tmp_path):
    with RunFolder.create(tmp_path / "demo", "seed = 1\n") as run:
        yield run


def row(number: int, f1: float = 0.5) -> dict[str, Any]:
    return {"round": number, "sites": ["a", "b"], "devel": {"micro": {"f1": f1}}, "train_loss": 1.0 / number}


def shown(path: Path) -> dict[str, dict[int, float]]:
    """Read scalars as TensorBoard does: a session's start hides what came before it at later steps."""
    scalars: dict[str, dict[int, float]] = {}
    for file in sorted(path.iterdir(), key=lambda item: item.stat().st_ctime_ns):
        for event in EventFileLoader(str(file)).Load():
            if event.HasField("session_log"):
                for steps in scalars.values():
                    for step in [step for step in steps if step >= event.step]:
                        del steps[step]
            for value in event.summary.value:
                number = value.tensor.float_val[0] if value.HasField("tensor") else value.simple_value
                scalars.setdefault(value.tag, {})[event.step] = number
    return scalars


def test_nested_numbers_are_joined_by_slashes():
    values = {"a": {"b": 1, "c": {"d": 0.5}}, "text": "no", "none": None, "list": [1], "e": True}
    assert dict(flatten(values)) == {"a/b": 1.0, "a/c/d": 0.5, "e": 1.0}


def test_tensorboard_shows_the_rounds_and_the_result(folder):
    with open_trackers(folder, run_id="r", parameters={}) as trackers:
        assert trackers.names == ["TensorBoard"]
        trackers.log_round(row(1))
        trackers.log_round(row(2, 0.75))
        trackers.log_result({"micro_f1": 0.875, "epsilon": None, "per_entity": {"Disease": {"f1": 0.5}}})
    scalars = shown(folder.tensorboard_path)
    assert scalars["devel/micro/f1"] == {1: 0.5, 2: 0.75}
    assert scalars["train_loss"] == {1: 1.0, 2: 0.5}
    assert scalars["result/micro_f1"] == {2: 0.875}
    assert "round" not in scalars


def test_a_resumed_run_has_each_round_once(folder):
    first = open_trackers(folder, run_id="r", parameters={})
    for number in (1, 2, 3):
        first.log_round(row(number, 0.125))
    first.close(finished=False)
    # Checkpoint 2 is the newest whole one: round 3 is run again.
    with open_trackers(
        folder, run_id="r", parameters={}, first_round=3, history=[row(1, 0.5), row(2, 0.5)]
    ) as second:
        second.log_round(row(3, 0.75))
    assert shown(folder.tensorboard_path)["devel/micro/f1"] == {1: 0.5, 2: 0.5, 3: 0.75}


def test_without_history_the_earlier_rounds_stay(folder):
    first = TensorBoardTracker(folder.tensorboard_path)
    for number in (1, 2, 3):
        first.log_round(number, {"f1": 0.25})
    first.close(finished=False)
    second = TensorBoardTracker(folder.tensorboard_path, first_round=3)
    second.close(finished=True)
    assert shown(folder.tensorboard_path)["f1"] == {1: 0.25, 2: 0.25}


@pytest.mark.parametrize("extra", ["mlflow", "wandb"])
def test_a_missing_extra_is_named_before_anything_is_written(folder, monkeypatch, extra):
    monkeypatch.setitem(sys.modules, extra, None)
    with pytest.raises(InputError, match=rf"pip install '\.\[{extra}\]'"):
        require_extras(**{extra: True})
    with pytest.raises(InputError, match=rf"\[tracking\] {extra} is true"):
        open_trackers(folder, run_id="r", parameters={}, **{extra: True})
    assert list(folder.tensorboard_path.iterdir()) == []


class Failing:
    """A tracker that fails from its second round on."""

    name = "Failing"

    def __init__(self) -> None:
        self.rounds: list[int] = []

    def log_round(self, round_number, metrics):
        if self.rounds:
            raise ConnectionError("secret address")
        self.rounds.append(round_number)

    def log_result(self, result):
        raise AssertionError("dropped trackers get nothing")

    def close(self, *, finished):
        raise AssertionError("dropped trackers get nothing")


def test_a_failing_extra_is_dropped_with_a_warning_and_the_run_goes_on(caplog):
    trackers = Trackers([], [Failing()])
    with caplog.at_level(logging.WARNING), trackers:
        for number in (1, 2, 3):
            trackers.log_round(row(number))
        trackers.log_result({"micro_f1": 0.5})
    assert trackers.names == []
    assert trackers.warnings == ["Failing stopped recording (ConnectionError); the run goes on."]
    assert "secret address" not in caplog.text


def test_a_failing_required_tracker_stops_the_run():
    trackers = Trackers([Failing()], [])
    trackers.log_round(row(1))
    with pytest.raises(ConnectionError):
        trackers.log_round(row(2))


def test_leaving_by_an_error_marks_the_run_failed():
    ends: list[bool] = []
    tracker = types.SimpleNamespace(name="t", close=lambda *, finished: ends.append(finished))
    with pytest.raises(RuntimeError), Trackers([tracker], []):
        raise RuntimeError
    with Trackers([tracker], []):
        pass
    assert ends == [False, True]


def test_text_does_not_reach_a_tracker():
    tracker = types.SimpleNamespace(name="t", log_round=lambda *_: pytest.fail("reached"))
    with pytest.raises(ValueError, match="is not a word"):
        Trackers([tracker], []).log_round({"round": 1, "note": "two words"})


class FakeWandb(types.ModuleType):
    """Stands in for the package and records what it is told."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.told: dict[str, Any] = {}
        self.rounds: list[tuple[int, dict[str, float]]] = []
        self.summary: dict[str, float] = {}
        self.exit_code: int | None = None

    def Settings(self, **settings):  # noqa: N802 (the package's name)
        return settings

    def init(self, **told):
        self.told = told
        return self

    def log(self, metrics, step):
        self.rounds.append((step, metrics))

    def finish(self, exit_code):
        self.exit_code = exit_code


def test_wandb_is_offline_and_told_numbers_only(folder, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    with open_trackers(folder, run_id="r 1", parameters={"seed": 7}, wandb=True) as trackers:
        trackers.log_round(row(1))
        trackers.log_result({"micro_f1": 0.5})
    assert (fake.told["mode"], fake.told["id"], fake.told["dir"]) == ("offline", "r-1", str(folder.path))
    assert fake.told["config"] == {"seed": 7}
    assert fake.told["settings"]["console"] == "off"
    assert fake.told["settings"]["disable_code"] is True
    assert fake.told["settings"]["x_disable_meta"] is True
    assert fake.rounds == [(1, {"devel/micro/f1": 0.5, "train_loss": 1.0})]
    assert (fake.summary, fake.exit_code) == ({"micro_f1": 0.5}, 0)


def only_with(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        importlib.util.find_spec(package) is None, reason=f"the extra {package} is not installed"
    )


@pytest.fixture
def no_network(monkeypatch):
    """Fail on any connection beyond this machine."""
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a connection to {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@only_with("mlflow")
@pytest.mark.filterwarnings("default")
def test_mlflow_itself_keeps_one_run_across_a_resume(folder, monkeypatch, no_network):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name in ("MLFLOW_DISABLE_TELEMETRY", "MLFLOW_ALLOW_FILE_STORE"):
        monkeypatch.setenv(name, "true")
    with open_trackers(folder, run_id="r1", parameters={"seed": 7}, mlflow=True) as trackers:
        trackers.log_round(row(1))
    with open_trackers(
        folder, run_id="r1", parameters={"seed": 7}, mlflow=True, first_round=2, history=[row(1)]
    ) as trackers:
        trackers.log_round(row(2, 0.75))
        trackers.log_result({"micro_f1": 0.8, "per_entity": {"疾病": {"f1": 0.5}}})
        assert trackers.names == ["TensorBoard", "MLflow"]
    again = MLflowTracker(folder.path, run_id="r1", name="demo", parameters={})
    run = again._client.get_run(again._run)
    assert run.data.params == {"seed": "7"}
    assert run.data.metrics["devel/micro/f1"] == 0.75
    assert run.data.metrics["result/per_entity/__/f1"] == 0.5
    steps = [metric.step for metric in again._client.get_metric_history(again._run, "train_loss")]
    assert sorted(set(steps)) == [1, 2]
    assert (folder.path / "mlflow").is_dir()


@only_with("wandb")
@pytest.mark.filterwarnings("default")
def test_wandb_itself_writes_only_into_the_runs_folder(folder, monkeypatch, no_network):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    with open_trackers(folder, run_id="r1", parameters={"seed": 7}, wandb=True) as trackers:
        trackers.log_round(row(1))
        trackers.log_result({"micro_f1": 0.8})
        assert trackers.names == ["TensorBoard", "Weights & Biases"]
    assert trackers.warnings == []
    assert list((folder.path / "wandb").glob("offline-run-*"))
