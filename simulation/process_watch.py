"""The peak memory of other processes, by the part they play, seen from /proc while they live."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from common.errors import FedwardError
from simulation.local_processes import commands_naming, status_bytes

_EVERY_SECONDS = 0.3

_ROLES: Mapping[str, str] = {
    "flwr-clientapp": "clientapp",
    "flwr-serverapp": "serverapp",
    "flower-supernode": "supernode",
    "server.superlink_process": "superlink",
    "flower-superexec": "superexec",
    "client.cli agent": "agent",
    "server.cli up": "server",
    "client.cli run": "site",
    "nginx": "proxy",
}
"""What a command line holds, and what that process is; the first that fits counts."""


class ProcessWatch:
    """Looks at every process whose command line or environment names a folder.

    Args:
        folder: The folder.

    Attributes:
        peaks: Peak resident memory in bytes by role, the largest of its processes.
    """

    def __init__(self, folder: Path) -> None:
        """Prepare; `with` starts and ends it."""
        self.peaks: dict[str, int] = {}
        self._folder = folder
        self._seen: set[tuple[str, int]] = set()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        """Begin to look."""
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """End."""
        self._end.set()
        self._thread.join()

    @property
    def started(self) -> dict[str, int]:
        """How many processes of each role were seen."""
        return dict(Counter(role for role, _ in self._seen))

    def look(self) -> None:
        """Take every process's peak as it is now."""
        for pid, command in commands_naming(self._folder).items():
            role = next((name for part, name in _ROLES.items() if part in command), None)
            # A process may end while it is looked at.
            with contextlib.suppress(OSError, FedwardError):
                if role is not None:
                    self.peaks[role] = max(self.peaks.get(role, 0), status_bytes("VmHWM", pid=pid))
                    self._seen.add((role, pid))

    def _run(self) -> None:
        while not self._end.wait(_EVERY_SECONDS):
            self.look()
