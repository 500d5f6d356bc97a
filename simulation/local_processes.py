"""Processes of this machine: started in a session of their own, ended with what they started, and seen from /proc."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from common.errors import FedwardError


def start_process(
    command: Sequence[str | Path], *, log: Path, folder: Path, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own.

    Args:
        command: Program and arguments.
        log: Where its output is appended.
        folder: Its working folder.
        environment: Its whole environment.
    """
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            cwd=folder,
            start_new_session=True,
        )


def end_process(process: subprocess.Popen[bytes], *, seconds: float) -> None:
    """Ask a process to end, wait for it, and end by force whatever is left of its session."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=seconds)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def commands_naming(folder: Path) -> dict[int, str]:
    """Return the command lines, by process id, of processes that name a folder there or in their environment.

    This process is left out. The children of a session's leader are found too, whatever session they are in.
    """
    mark, found = str(folder).encode(), dict[int, str]()
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            named = mark in command or mark in Path(f"/proc/{pid}/environ").read_bytes()
            if named and pid != os.getpid():
                found[pid] = command.replace(b"\0", b" ").decode("utf-8", "replace")
    return found


def status_bytes(field: str, *, pid: int | str = "self") -> int:
    """Return a field of a process's /proc status in bytes; unlike ru_maxrss, it does not carry over from the parent.

    Args:
        field: `VmRSS` or `VmHWM`.
        pid: The process; this one by default.

    Raises:
        FedwardError: There is no such field: the process has ended, or this is not Linux.
    """
    for line in Path(f"/proc/{pid}/status").read_text("utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise FedwardError(f"/proc/{pid}/status has no {field}; memory is measured on Linux only.")
