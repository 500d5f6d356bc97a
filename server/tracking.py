"""Where a run's numbers are shown while it lasts: TensorBoard always, MLflow and Weights & Biases by plan.

Trackers get numbers and names, never text of a note. They write into the run's folder and open no
connection, unless the person who starts the server sets the tool's own variable for that
(`MLFLOW_TRACKING_URI`, `WANDB_MODE=online`).
"""

from __future__ import annotations

import importlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from common.errors import InputError
from server.run_folder import RunFolder, plain_metrics

Parameter = str | int | float | bool
_log = logging.getLogger(__name__)


class Tracker(Protocol):
    """Something that shows a run's numbers."""

    name: str

    def log_round(self, round_number: int, metrics: Mapping[str, float]) -> None:
        """Take the numbers of one round by name, such as `micro_f1` or `durations/train`."""

    def log_result(self, result: Mapping[str, float]) -> None:
        """Take the final numbers."""

    def close(self, *, finished: bool) -> None:
        """Write what is left and let go; `finished` is false when the run ended early."""


class TensorBoardTracker:
    """Scalars in TensorBoard's event files, through TensorBoard's own writer (no torch).

    Args:
        folder: Where the event files go.
        first_round: The first round that will be logged. TensorBoard hides what an earlier process left
            of that round and later ones, so that a resumed run's curve has each round once.
    """

    name = "TensorBoard"

    def __init__(self, folder: Path, *, first_round: int = 1) -> None:
        """Open a new event file."""
        self._writer = EventFileWriter(str(folder))
        self._last_round = first_round - 1
        start = SessionLog(status=SessionLog.START)
        self._writer.add_event(Event(wall_time=time.time(), step=first_round, session_log=start))

    def log_round(self, round_number: int, metrics: Mapping[str, float]) -> None:
        """Add one scalar for each number."""
        values = [Summary.Value(tag=tag, simple_value=number) for tag, number in metrics.items()]
        event = Event(wall_time=time.time(), step=round_number, summary=Summary(value=values))
        self._writer.add_event(event)
        self._writer.flush()
        self._last_round = round_number

    def log_result(self, result: Mapping[str, float]) -> None:
        """Add the final numbers under `result/`."""
        self.log_round(self._last_round, {f"result/{name}": number for name, number in result.items()})

    def close(self, *, finished: bool) -> None:
        """Close the event file."""
        self._writer.close()


class MLflowTracker:
    """A run in MLflow: in `mlflow/` of the run's folder, or where `MLFLOW_TRACKING_URI` says.

    Args:
        folder: The run's folder.
        run_id: fedward's run id, kept as the tag `fedward_run_id`; a resumed run continues under it.
        name: The run's name.
        parameters: What the run was started with.
    """

    name = "MLflow"

    def __init__(self, folder: Path, *, run_id: str, name: str, parameters: Mapping[str, Parameter]) -> None:
        """Begin the run, or find the one that is being resumed."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if uri is None:
            # MLflow 3 opens a plain folder only when asked; its alternative is a database with more packages.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            uri = (folder / "mlflow").resolve().as_uri()
        tracking = _extra("mlflow.tracking", "mlflow")
        self._metric = _extra("mlflow.entities", "mlflow").Metric
        self._client = tracking.MlflowClient(tracking_uri=uri)
        experiment = self._client.get_experiment_by_name("fedward")
        number = experiment.experiment_id if experiment else self._client.create_experiment("fedward")
        found = self._client.search_runs([number], filter_string=f"tags.fedward_run_id = '{run_id}'")
        if found:
            self._run = found[0].info.run_id
            self._client.set_terminated(self._run, status="RUNNING")
            return
        run = self._client.create_run(number, run_name=name, tags={"fedward_run_id": run_id})
        self._run = run.info.run_id
        for key, value in parameters.items():
            self._client.log_param(self._run, _mlflow_key(key), value)

    def log_round(self, round_number: int, metrics: Mapping[str, float]) -> None:
        """Log the numbers at the round's step."""
        now = int(time.time() * 1000)
        values = [
            self._metric(_mlflow_key(key), number, now, round_number) for key, number in metrics.items()
        ]
        # One request takes at most 1,000 metrics.
        for start in range(0, len(values), 1000):
            self._client.log_batch(self._run, metrics=values[start : start + 1000])

    def log_result(self, result: Mapping[str, float]) -> None:
        """Log the final numbers under `result/`."""
        self.log_round(0, {f"result/{name}": number for name, number in result.items()})

    def close(self, *, finished: bool) -> None:
        """Mark the run as finished or failed."""
        self._client.set_terminated(self._run, status="FINISHED" if finished else "FAILED")


class WandbTracker:
    """A run in Weights & Biases: offline in `wandb/` of the run's folder, unless `WANDB_MODE` says otherwise.

    Only the numbers are recorded: no console output, no code, no git state, no facts about the machine.

    Args:
        folder: The run's folder.
        run_id: fedward's run id; a resumed run continues under it.
        name: The run's name.
        parameters: What the run was started with.
    """

    name = "Weights & Biases"

    def __init__(self, folder: Path, *, run_id: str, name: str, parameters: Mapping[str, Parameter]) -> None:
        """Begin or continue the run."""
        # Weights & Biases reports its own errors to its makers unless told not to, before it is imported.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        wandb = _extra("wandb", "wandb")
        settings = wandb.Settings(
            console="off",
            silent=True,
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_disable_stats=True,
        )
        self._run = wandb.init(
            project="fedward",
            id=re.sub(r"[^-\w]", "-", run_id),
            name=name,
            dir=str(folder),
            mode=os.environ.get("WANDB_MODE", "offline"),
            resume="allow",
            config=dict(parameters),
            settings=settings,
        )

    def log_round(self, round_number: int, metrics: Mapping[str, float]) -> None:
        """Log the numbers at the round's step."""
        self._run.log(dict(metrics), step=round_number)

    def log_result(self, result: Mapping[str, float]) -> None:
        """Put the final numbers into the run's summary."""
        self._run.summary.update(dict(result))

    def close(self, *, finished: bool) -> None:
        """End the run."""
        self._run.finish(exit_code=0 if finished else 1)


class Trackers:
    """All trackers of one run. Use it as a context manager: leaving it by an error marks the run failed.

    TensorBoard's files are part of the run, so its errors stop it. A tool that the plan adds may lose its
    connection or its disk: it is then dropped with a warning, and the training goes on.

    Args:
        required: Trackers whose errors are raised.
        optional: Trackers that are dropped when they fail.
    """

    def __init__(self, required: list[Tracker], optional: list[Tracker]) -> None:
        """Take the open trackers."""
        self._required = list(required)
        self._optional = list(optional)
        self.warnings: list[str] = []

    @property
    def names(self) -> list[str]:
        """The trackers that are still recording."""
        return [tracker.name for tracker in (*self._required, *self._optional)]

    def log_round(self, row: Mapping[str, Any]) -> None:
        """Record a row of `metrics.jsonl`: its numbers, with nested names joined by `/`."""
        plain = plain_metrics(row)
        numbers = dict(flatten({key: value for key, value in plain.items() if key != "round"}))
        self._each(lambda tracker: tracker.log_round(plain["round"], numbers))

    def log_result(self, result: Mapping[str, Any]) -> None:
        """Record the numbers of `result.json`."""
        numbers = dict(flatten(result))
        self._each(lambda tracker: tracker.log_result(numbers))

    def close(self, *, finished: bool) -> None:
        """Close them all."""
        self._each(lambda tracker: tracker.close(finished=finished))

    def __enter__(self) -> Self:
        """Return the trackers."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the trackers."""
        self.close(finished=kind is None)

    def _each(self, action: Callable[[Tracker], None]) -> None:
        """Do something with each tracker; an optional one that fails is dropped."""
        for tracker in self._required:
            action(tracker)
        for tracker in list(self._optional):
            try:
                action(tracker)
            except Exception as error:
                self._optional.remove(tracker)
                # Only the error's type: its text is not ours.
                warning = f"{tracker.name} stopped recording ({type(error).__name__}); the run goes on."
                self.warnings.append(warning)
                _log.warning(warning)


def require_extras(*, mlflow: bool = False, wandb: bool = False) -> None:
    """Raise if a tracker that the plan asks for is not installed; call it before anything is written.

    Raises:
        InputError: The sentence says what to install.
    """
    for wanted, extra in ((mlflow, "mlflow"), (wandb, "wandb")):
        if wanted:
            _extra(extra, extra)


def open_trackers(
    folder: RunFolder,
    *,
    run_id: str,
    parameters: Mapping[str, Parameter],
    mlflow: bool = False,
    wandb: bool = False,
    first_round: int = 1,
    history: Sequence[Mapping[str, Any]] = (),
) -> Trackers:
    """Open the trackers of a run.

    Args:
        folder: The run's folder.
        run_id: fedward's run id, the same across resumes.
        parameters: Public facts of the run, such as the plan's hash, the seed and the learning rate.
        mlflow: The plan's `[tracking] mlflow`.
        wandb: The plan's `[tracking] wandb`.
        first_round: The first round to come, above 1 after a resume.
        history: The checkpoint's rows, on a resume. They are logged again, because the run may have been
            killed after a checkpoint and before its round was logged; each tool shows one value a step.

    Raises:
        InputError: An extra is missing.
    """
    require_extras(mlflow=mlflow, wandb=wandb)
    start = history[0]["round"] if history else first_round
    required: list[Tracker] = [TensorBoardTracker(folder.tensorboard_path, first_round=start)]
    optional: list[Tracker] = []
    if mlflow:
        optional.append(MLflowTracker(folder.path, run_id=run_id, name=folder.name, parameters=parameters))
    if wandb:
        optional.append(WandbTracker(folder.path, run_id=run_id, name=folder.name, parameters=parameters))
    trackers = Trackers(required, optional)
    for row in history:
        trackers.log_round(row)
    return trackers


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers in nested mappings, names joined by `/`; texts, lists and nulls are left out."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{key}", float(value)


def _extra(module: str, extra: str) -> Any:
    """Import a module of an optional package, or say how to get it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise InputError(
            f"[tracking] {extra} is true, but {extra} is not installed; run `pip install '.[{extra}]'` in "
            f"fedward's folder, or set it to false."
        ) from error


def _mlflow_key(name: str) -> str:
    """Return a name that MLflow accepts: ASCII letters, digits and `_-./`; the rest becomes `_`."""
    return re.sub(r"[^-\w./]", "_", name, flags=re.ASCII)
