"""What `fedward-server up` leaves for `status`, `stop` and its own next start: `state.json` in the state folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from common.errors import InputError
from common.files import write_atomically
from server.processes import Process

STATE: Final = "state.json"


@dataclass(frozen=True, kw_only=True)
class ChildState:
    """One child process.

    Attributes:
        process: The process; None while it waits to be started again.
        restarts: How often it was started again.
    """

    process: Process | None
    restarts: int = 0


@dataclass(frozen=True, kw_only=True)
class DeploymentState:
    """What a server is doing.

    Attributes:
        process: The `fedward-server up` itself.
        out: The run's folder.
        children: By name.
        server_app: The ServerApp's process, once it has said which one it is.
        flower_run_id: Flower's id of the run, which changes with every resume.
        resumes: How often the ServerApp was resumed by itself.
        online: Sites whose SuperNodes are connected.
        refusals: The last sentences about connections that were refused.
        message: How it ended; empty while it runs.
        updated: When this was written, UTC.
    """

    process: Process
    out: str
    children: Mapping[str, ChildState] = field(default_factory=dict)
    server_app: Process | None = None
    flower_run_id: int = 0
    resumes: int = 0
    online: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()
    message: str = ""
    updated: str = ""

    @property
    def running(self) -> bool:
        """Whether the server is there now."""
        return self.process.alive

    def write(self, folder: Path) -> None:
        """Write it into the state folder."""
        table = {**asdict(self), "updated": datetime.now(UTC).isoformat(timespec="seconds")}
        write_atomically(folder / STATE, json.dumps(table, indent=2) + "\n")


def read_state(folder: Path) -> DeploymentState | None:
    """Return what the last server left, or None if there was none.

    Raises:
        InputError: The file is damaged.
    """
    path = folder / STATE
    if not path.exists():
        return None
    try:
        table = json.loads(path.read_text("utf-8"))
        known = {one.name for one in fields(DeploymentState)}
        table = {name: value for name, value in table.items() if name in known}
        children = {
            name: ChildState(process=_process(child["process"]), restarts=int(child["restarts"]))
            for name, child in table.pop("children").items()
        }
        return DeploymentState(
            process=Process(**table.pop("process")),
            server_app=_process(table.pop("server_app")),
            children=children,
            online=tuple(table.pop("online")),
            refusals=tuple(table.pop("refusals")),
            **table,
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise InputError(
            f"{path} is damaged; see with 'ps' whether a server is still there, end it, and remove the file."
        ) from None


def end_leftovers(state: DeploymentState, *, seconds: float = 10.0) -> list[str]:
    """End what a server that was killed has left running; return the names."""
    left = [name for name, child in state.children.items() if child.process and child.process.alive]
    if state.server_app is not None and state.server_app.alive:
        state.server_app.end(seconds=seconds)
        left.append("the ServerApp")
    for child in reversed(tuple(state.children.values())):
        if child.process and child.process.alive:
            child.process.end(seconds=seconds, group=True)
    return left


def _process(table: Mapping[str, int] | None) -> Process | None:
    """Return a process from its table."""
    return None if table is None else Process(**table)
