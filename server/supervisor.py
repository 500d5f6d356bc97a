"""Child processes that are kept alive: what dies is started again, each time after a longer pause."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.command import QUIET_FLOWER
from server.processes import Process

_log = logging.getLogger(__name__)

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 30.0
STEADY = 60.0
"""Seconds after which a child counts as well, so that its next pause is a short one again."""


@dataclass(kw_only=True)
class Child:
    """One command that should always run.

    Attributes:
        name: For people and for its log's name.
        command: Program and arguments.
        environment: Of the process.
        log: Where its output goes; appended to.
        grace: Seconds that it gets to end in.
        restarts: How often it was started again.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(repr=False)
    log: Path
    grace: float = 10.0
    restarts: int = 0
    process: Process | None = None
    exit_code: int | None = None
    _popen: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _began: float = 0.0
    _due: float = 0.0
    _pause: float = FIRST_PAUSE

    def start(self, now: float) -> None:
        """Start the process, as the leader of a session, so that whatever it starts can be ended with it."""
        with self.log.open("ab") as log:
            self._popen = subprocess.Popen(
                list(self.command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(self.environment),
                start_new_session=True,
            )
        self.process, self.exit_code, self._began = Process.of(self._popen.pid), None, now

    def ended(self) -> bool:
        """Whether the process has ended; its exit code is kept."""
        if self._popen is None:
            return True
        self.exit_code = self._popen.poll()
        return self.exit_code is not None

    def clear(self) -> None:
        """End what the process has left behind, which could hold its port."""
        if self.process is not None:
            self.process.end(seconds=0, group=True)

    def stop(self) -> None:
        """Ask the process to end, and end it and its children by force after its grace."""
        if self._popen is None:
            return
        if self._popen.poll() is None:
            self._popen.send_signal(signal.SIGTERM)
            try:
                self._popen.wait(timeout=self.grace)
            except subprocess.TimeoutExpired:
                _log.warning("%s did not end within %g s and is ended by force.", self.name, self.grace)
        self.clear()
        self._popen.wait()
        self._popen = None

    def revive(self, now: float) -> bool:
        """Start the process again if it has ended and its pause is over; return whether it was started."""
        if not self.ended():
            return False
        if self._due == 0.0:
            self._pause = FIRST_PAUSE if now - self._began > STEADY else min(2 * self._pause, LONGEST_PAUSE)
            self._due = now + self._pause
            _log.warning(
                "%s ended with exit code %s; it is started again in %g s.",
                self.name,
                self.exit_code,
                self._pause,
            )
            self.clear()
        if now < self._due:
            return False
        self._due = 0.0
        self.restarts += 1
        self.start(now)
        return True


class Supervisor:
    """Starts children in order, keeps them alive, and ends them in reverse.

    Args:
        children: In the order of their start.
        clock: Seconds that only grow; replaced in tests.
    """

    def __init__(self, children: Sequence[Child], *, clock: Callable[[], float] = time.monotonic) -> None:
        self.children = tuple(children)
        self._clock = clock

    def start(self, name: str) -> None:
        """Start one child for the first time."""
        self.child(name).start(self._clock())

    def child(self, name: str) -> Child:
        """Return a child by name."""
        return next(child for child in self.children if child.name == name)

    def poll(self) -> list[str]:
        """Start what has died and is due; return the names of what was started again."""
        now = self._clock()
        return [child.name for child in self.children if child.process is not None and child.revive(now)]

    def stop(self) -> None:
        """End all children, the last one first."""
        for child in reversed(self.children):
            child.stop()


def quiet_environment(home: Path, **more: str) -> dict[str, str]:
    """Return the environment of a Flower process: a home of its own, and no reports, look-ups or installs.

    Args:
        home: Its `FLWR_HOME`.
        more: Further variables.
    """
    # Flower starts its helpers by name, so this environment's own come first.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {
        **os.environ,
        "PATH": path,
        **QUIET_FLOWER,
        "FLWR_HOME": str(home),
        **more,
    }
