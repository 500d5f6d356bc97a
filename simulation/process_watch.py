"""The peak memory of other processes, by the part they play, seen from /proc while they live."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Self

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
    """Looks at every process whose command line or Flower home names a folder.

    Args:
        folder: The folder.

    Attributes:
        peaks: Peak resident memory in bytes by role, the largest of its processes.
        started: How many processes of each role were seen.
    """

    def __init__(self, folder: Path) -> None:
        """Prepare; `with` starts and ends it."""
        self.peaks: dict[str, int] = {}
        self.started: dict[str, int] = {}
        self._mark = str(folder).encode()
        self._seen: dict[int, str] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        """Begin to look."""
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Look a last time and end."""
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(_EVERY_SECONDS):
            self.look()

    def look(self) -> None:
        """Take every process's peak as it is now."""
        for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
            try:
                role = self._seen.get(pid) or self._role(pid)
                if role:
                    self.peaks[role] = max(self.peaks.get(role, 0), peak_of(pid))
            except OSError:
                # It ended while it was looked at.
                self._seen.pop(pid, None)

    def _role(self, pid: int) -> str:
        """Return what a process of the folder is, "" for any other."""
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        if self._mark not in command and self._mark not in Path(f"/proc/{pid}/environ").read_bytes():
            return ""
        line = command.replace(b"\0", b" ").decode("utf-8", "replace")
        role = next((name for part, name in _ROLES.items() if part in line), "")
        if role:
            self._seen[pid] = role
            self.started[role] = self.started.get(role, 0) + 1
        return role


def peak_of(pid: int) -> int:
    """Return the peak resident memory of a process in bytes; 0 for one that has ended."""
    for line in Path(f"/proc/{pid}/status").read_text("utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
