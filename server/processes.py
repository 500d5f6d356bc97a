"""Processes by id and start time, so that a number which was given out again is never mistaken for ours."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_POLL_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class Process:
    """A process of this host.

    Attributes:
        pid: Its id.
        started: When it started, in the kernel's ticks since boot.
    """

    pid: int
    started: int

    @classmethod
    def this(cls) -> Self:
        """Return this process."""
        return cls.of(os.getpid())

    @classmethod
    def of(cls, pid: int) -> Self:
        """Return the process that has an id now."""
        return cls(pid=pid, started=_started(pid))

    @property
    def alive(self) -> bool:
        """Whether it still runs; a zombie does not."""
        return self.started > 0 and _started(self.pid) == self.started

    def end(self, *, seconds: float, group: bool = False) -> None:
        """Ask it to end, and end it by force when the time is over.

        Args:
            seconds: How long it is waited for.
            group: Whether the rest of its process group is ended too; the process leads one then.
        """
        if self.alive:
            self.signal(signal.SIGTERM)
            until = time.monotonic() + seconds
            while self.alive and time.monotonic() < until:
                time.sleep(_POLL_SECONDS)
        if group:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        elif self.alive:
            self.signal(signal.SIGKILL)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens if the process is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)


def _started(pid: int) -> int:
    """Return when a process started (field 22 of /proc/PID/stat), or 0 if it is not there or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return 0
    # The second field is the command in brackets and may hold anything, so count from its end.
    rest = text.rpartition(")")[2].split()
    return 0 if rest[0] in "ZX" else int(rest[19])
