"""Keeps one run going: submits it, sees its ServerApp die, and resumes it under a new Flower run id.

Flower 1.42 restarts no ServerApp. Ours checkpoints every round and says in `progress.json` which process it is, so
that a death is seen at once. The plan hash and fedward's own run id stay the same over all resumes.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from common.errors import FedwardError
from server.run_progress import CRASHED, FINISHED, PROGRESS, STOPPED, Progress, read_progress
from server.settings import ServerSettings
from server.superlink import FINISHED as FLOWER_FINISHED
from server.superlink import RunStatus

_log = logging.getLogger(__name__)

STATUS_SECONDS = 3.0
"""How often the SuperLink is asked about the run."""

FAREWELL_SECONDS = 20.0
"""How long a ServerApp may outlive its run before it is ended."""

_LITTLE_BYTES = 2**20
"""A disk with less than this is full: a checkpoint needs several times as much."""

_LONGEST_PAUSE = 30.0


class RunLink(Protocol):
    """What is asked of a SuperLink about runs."""

    def start_run(self, config: dict[str, str | bool]) -> int:
        """Submit a run and return Flower's id."""

    def run_status(self, run_id: int) -> RunStatus:
        """Return how it is doing."""

    def stop_run(self, run_id: int) -> None:
        """End it."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended.

    Attributes:
        exit_code: Of the command.
        message: One sentence or two.
    """

    exit_code: int
    message: str


class RunKeeper:
    """Watches one run.

    Args:
        link: The SuperLink.
        settings: Which run, and how often it may be resumed without getting further.
        say: Gets a sentence now and then.
        clock: Seconds that only grow; replaced in tests.
    """

    def __init__(
        self,
        link: RunLink,
        settings: ServerSettings,
        *,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.link, self.settings, self._say, self._clock = link, settings, say, clock
        self.out: Path = settings.run.out
        self.flower_run_id = 0
        self.resumes = 0
        self._without_progress = 0
        self._best_round = 0
        self._due: float | None = None
        self._ask_at = 0.0
        self._finished_since: float | None = None

    @property
    def progress(self) -> Progress | None:
        """Where the run stands."""
        return read_progress(self.out)

    def submit(self) -> None:
        """Submit the run; it is resumed where its folder has begun.

        Raises:
            FedwardError: The SuperLink did not take it.
        """
        (self.out / PROGRESS).unlink(missing_ok=True)
        run = self.settings.run
        config: dict[str, str | bool] = {
            "plan": str(run.plan),
            "roster": str(run.roster),
            "data": str(run.data),
            "out": str(run.out),
            "resume": (self.out / "plan.toml").exists(),
        }
        self.flower_run_id = self.link.start_run(config)
        self._finished_since = None
        _log.info("The run was submitted as Flower's run %d.", self.flower_run_id)

    def poll(self) -> Outcome | None:
        """Look after the run; return how it ended once it has."""
        if self._due is not None:
            return self._resume_when_due()
        progress = self.progress
        if progress is not None and progress.state == CRASHED:
            return self._plan_resume(progress, f"The ServerApp failed ({progress.message})")
        if progress is not None and progress.ended:
            return self._concluded(progress)
        if progress is not None and progress.process is not None and not progress.process.alive:
            return self._plan_resume(progress, "The ServerApp has died")
        return self._ask_flower(progress)

    def end_server_app(self, *, seconds: float) -> None:
        """End the ServerApp, if it is there."""
        progress = self.progress
        if progress is not None and progress.process is not None:
            progress.process.end(seconds=seconds)

    def _concluded(self, progress: Progress) -> Outcome | None:
        """Return the outcome that the ServerApp has written, once it is gone or had time to go."""
        now = self._clock()
        self._finished_since = self._finished_since or now
        alive = progress.process is not None and progress.process.alive
        if alive and now - self._finished_since < FAREWELL_SECONDS and not self._flower_knows():
            return None
        # Flower's own farewell can take many seconds more; everything of ours is on the disk.
        self.end_server_app(seconds=1.0)
        if progress.state == FINISHED:
            return Outcome(exit_code=0, message=f"The run has finished; open {self.out / 'report.html'}.")
        if progress.state == STOPPED:
            return Outcome(exit_code=0, message=f"{progress.message} {self._how_to_resume()}")
        return Outcome(exit_code=1, message=f"{progress.message} {self._how_to_resume()}")

    def _flower_knows(self) -> bool:
        """Return whether the ServerApp has told the SuperLink that it is done."""
        try:
            return self.link.run_status(self.flower_run_id).status == FLOWER_FINISHED
        except FedwardError:
            return False

    def _ask_flower(self, progress: Progress | None) -> Outcome | None:
        """Ask the SuperLink now and then whether the run is still one."""
        now = self._clock()
        if now < self._ask_at:
            return None
        self._ask_at = now + STATUS_SECONDS
        try:
            status = self.link.run_status(self.flower_run_id)
        except FedwardError:
            return None  # The SuperLink is away, and the supervisor is at it.
        if status.status != FLOWER_FINISHED:
            self._finished_since = None
            return None
        if progress is None and "exception" in status.details:
            # Before the run's folder is open, Flower's word for it is all there is.
            return Outcome(exit_code=1, message=f"The run could not begin: {status.details}")
        self._finished_since = self._finished_since or now
        if progress is None or now - self._finished_since > FAREWELL_SECONDS:
            return self._plan_resume(progress, "Flower has given up the run")
        return None

    def _plan_resume(self, progress: Progress | None, reason: str) -> Outcome | None:
        """Decide when the run is resumed, or that it has died too often."""
        reason += _of_the_disk(self.out)
        reached = progress.round if progress else 0
        self._without_progress = 0 if reached > self._best_round else self._without_progress + 1
        self._best_round = max(self._best_round, reached)
        if self._without_progress > self.settings.server.most_resumes:
            return Outcome(
                exit_code=1,
                message=f"{reason}, {self._without_progress} times in round {reached}; see {self.out / 'log.jsonl'}. "
                f"{self._how_to_resume()}",
            )
        pause = min(_LONGEST_PAUSE, 2.0**self._without_progress)
        self._due = self._clock() + pause
        self._say(f"{reason} in round {reached}; the run is resumed from its checkpoint in {pause:g} s.")
        return None

    def _resume_when_due(self) -> Outcome | None:
        """Resume the run when its pause is over and the SuperLink is there."""
        if self._due is None or self._clock() < self._due:
            return None
        try:
            self.end_server_app(seconds=5.0)
            # Its messages must not reach the sites any more.
            self.link.stop_run(self.flower_run_id)
            self.submit()
        except FedwardError as error:
            _log.warning("The run could not be resumed yet: %s", error)
            self._due = self._clock() + 2.0
            return None
        self._due = None
        self.resumes += 1
        return None

    def _how_to_resume(self) -> str:
        """Return how to go on."""
        return f"Go on with 'fedward-server resume {self.out} --config {self.settings.path}'."


def _of_the_disk(out: Path) -> str:
    """Return a remark where the disk of the run's folder is full: then the ServerApp cannot say so itself."""
    try:
        free = shutil.disk_usage(out).free
    except OSError:
        return ""
    return "" if free >= _LITTLE_BYTES else f", and the disk of {out} is full: make room"
