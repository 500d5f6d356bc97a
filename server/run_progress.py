"""Where a run stands, in a small file that any process may read, and the way to ask it to stop.

The ServerApp is Flower's child: its console goes nowhere, so it writes `progress.json` into the run's
folder. It is a view for people; a resume reads checkpoints alone.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from common.errors import FedwardError, RoundError
from server.json_log import told
from server.processes import Process
from server.rounds import RoundListener
from server.run_folder import STOP_REQUEST

PROGRESS: Final = "progress.json"

WAITING, RUNNING, FINISHED, FAILED, STOPPED, CRASHED = (
    "waiting",
    "running",
    "finished",
    "failed",
    "stopped",
    "crashed",
)

_PATIENCE = 0.5
"""Least seconds between two writes for single replies: a thousand sites must not make a thousand files."""

_log = logging.getLogger(__name__)


class RunStopped(RoundError):
    """Somebody asked the run to stop, and it did so between two rounds."""

    code = "stopped"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands.

    Attributes:
        state: `waiting` for sites, `running`, `finished`, `failed` on purpose, `stopped` on request, or `crashed`.
        process: The ServerApp's process.
        round: The round at hand, 0 before the first.
        rounds: Rounds of the plan.
        stage: The round's stage.
        sites: What each site of the stage did: `asked`, `answered` or a fixed code.
        present: Sites that can be reached, while waiting.
        needed: Sites that are needed, while waiting.
        message: One sentence on how it ended.
        updated: When this was written, UTC.
    """

    state: str = WAITING
    process: Process | None = None
    round: int = 0
    rounds: int = 0
    stage: str = ""
    sites: Mapping[str, str] = field(default_factory=dict)
    present: int = 0
    needed: int = 0
    message: str = ""
    updated: str = ""

    @property
    def ended(self) -> bool:
        """Whether the ServerApp has said that it is done."""
        return self.state in (FINISHED, FAILED, STOPPED, CRASHED)


def read_progress(folder: Path) -> Progress | None:
    """Return where the run in a folder stands, or None before it has begun."""
    try:
        table = json.loads((folder / PROGRESS).read_text("utf-8"))
        known = {one.name for one in fields(Progress)}
        process = table.pop("process", None)
        return Progress(
            process=None if process is None else Process(**process),
            **{name: value for name, value in table.items() if name in known},
        )
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def request_stop(folder: Path) -> None:
    """Ask the run in a folder to stop after its current round."""
    (folder / STOP_REQUEST).touch()


class ProgressWatch:
    """Writes `progress.json` as the run goes on, and passes every event to another listener too.

    Use it as a context manager around the run, so that its end is written down.

    Args:
        folder: The run's folder.
        rounds: Rounds of the plan.
        also: Another listener.
        clock: Seconds that only grow; replaced in tests.
    """

    def __init__(
        self,
        folder: Path,
        rounds: int,
        also: RoundListener,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.progress = Progress(rounds=rounds, process=Process.this())
        self._folder, self._also, self._clock = folder, also, clock
        self._written = 0.0

    def __enter__(self) -> Self:
        """Begin; a request to stop an earlier attempt is forgotten."""
        (self._folder / STOP_REQUEST).unlink(missing_ok=True)
        self._set(state=WAITING)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Write how the run ended."""
        if error is None:
            self._set(state=FINISHED, stage="", sites={})
        elif isinstance(error, RunStopped):
            self._set(state=STOPPED, message=told(error))
        elif isinstance(error, FedwardError):
            self._set(state=FAILED, message=told(error))
        else:
            self._set(state=CRASHED, message=told(error))

    def on_round(self, server_round: int, rounds: int) -> None:
        """Start a round."""
        _log.info("Round %d of %d begins.", server_round, rounds)
        self._set(state=RUNNING, round=server_round, rounds=rounds, stage="", sites={})
        self._also.on_round(server_round, rounds)

    def on_stage(self, stage: str, sites: Sequence[str]) -> None:
        """Start a stage."""
        self._set(state=RUNNING, stage=stage, sites=dict.fromkeys(sites, "asked"))
        self._also.on_stage(stage, sites)

    def on_reply(self, stage: str, site: str, refusal: str | None) -> None:
        """Write down what a site did."""
        answers = {**self.progress.sites, site: refusal or "answered"}
        self.progress = replace(self.progress, sites=answers)
        if refusal is not None:
            _log.warning("%s did not take part in %s: %s.", site, stage, refusal)
        if refusal or "asked" not in answers.values() or self._clock() - self._written > _PATIENCE:
            self._set()
        self._also.on_reply(stage, site, refusal)

    def on_wait(self, present: int, needed: int) -> None:
        """Say that sites are missing."""
        if (self.progress.state, self.progress.present) != (WAITING, present):
            _log.info("Waiting for sites: %d of at least %d are there.", present, needed)
        self._set(state=WAITING, present=present, needed=needed)
        self._also.on_wait(present, needed)
        self._require_not_stopped()

    def on_metrics(self, metrics: Mapping[str, Any]) -> None:
        """End a round, which is checkpointed, and the run too if somebody asked for it.

        Raises:
            RunStopped: There was a request to stop.
        """
        _log.info("Round %d ended after %.1f s.", metrics["round"], metrics["seconds"])
        self._set(stage="", sites={})
        self._also.on_metrics(metrics)
        if self.progress.round < self.progress.rounds:
            self._require_not_stopped()

    def _require_not_stopped(self) -> None:
        """Raise if there was a request to stop."""
        if (self._folder / STOP_REQUEST).exists():
            raise RunStopped(
                f"The run was stopped on request in round {self.progress.round} of {self.progress.rounds}; "
                "everything before is kept, and it can be resumed."
            )

    def _set(self, **changes: Any) -> None:
        """Change the progress and write it."""
        self.progress = replace(
            self.progress, updated=datetime.now(UTC).isoformat(timespec="seconds"), **changes
        )
        self._written = self._clock()
        # Renamed into place, so that a reader sees one whole state; no fsync, since nothing depends on it.
        partial = self._folder / f".{PROGRESS}.{os.getpid()}.part"
        partial.write_text(json.dumps(asdict(self.progress)) + "\n", encoding="utf-8")
        os.replace(partial, self._folder / PROGRESS)
