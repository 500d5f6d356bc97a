"""Child processes that are started, watched, and started again when they die."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import queue
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from client.isolation import HostUser

_log = logging.getLogger(__name__)

_LONGEST_PAUSE = 60.0
_STEADY_SECONDS = 60.0
"""A child that ran so long is not one that fails at its start: its next pause is the shortest again."""

_FAREWELL_SECONDS = 10.0

_PR_SET_PDEATHSIG = 1
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_LINE_CHARACTERS = 2000


@dataclass(frozen=True, kw_only=True)
class ChildSpec:
    """How a child is started.

    Attributes:
        name: What it is called in the log.
        command: Program and arguments.
        environment: Its whole environment.
        user: The user that it runs as.
        gid: A further group that it is a member of.
        folder: Its working folder.
        ready: Whether it says on a pipe when it is ready; `--ready-fd N` is appended to its command.
        logged: Whether its output goes line by line into this process's log, instead of to its standard error.
        lost: A line of its output after which it lives on and does nothing more; it is ended then, and so started
            again.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(repr=False)
    user: HostUser
    gid: int | None
    folder: Path
    ready: bool = False
    logged: bool = False
    lost: re.Pattern[str] | None = None


class Child:
    """A running child.

    Args:
        spec: How it is started.
        on_event: Called, from a thread of its own, with the child and "ready", "lost" or "ended".
    """

    def __init__(self, spec: ChildSpec, on_event: Callable[[Child, str], None]) -> None:
        self.spec = spec
        self.started = time.monotonic()
        self._on_event = on_event
        command, inherited, ours = list(spec.command), list[int](), None
        if spec.ready:
            ours, theirs = os.pipe()
            command += ["--ready-fd", str(theirs)]
            inherited.append(theirs)
        try:
            self.process: subprocess.Popen[bytes] = subprocess.Popen(
                command,
                env=dict(spec.environment),
                cwd=spec.folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if spec.logged else None,
                stderr=subprocess.STDOUT if spec.logged else None,
                pass_fds=inherited,
                # Ctrl-C in a terminal is this process's to handle; and its children's children go with it.
                start_new_session=True,
                preexec_fn=_end_with_parent(os.getpid()),
                **_identity(spec),
            )
        finally:
            for descriptor in inherited:
                os.close(descriptor)
        if ours is not None:
            threading.Thread(target=self._await_ready, args=(ours,), daemon=True).start()
        if self.process.stdout is not None:
            threading.Thread(target=self._copy_lines, args=(self.process.stdout,), daemon=True).start()
        threading.Thread(target=self._await_end, daemon=True).start()

    def ask_to_end(self) -> None:
        """Send SIGTERM."""
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()

    def end(self, *, seconds: float) -> None:
        """Wait for the end, and end the whole session once the time is up."""
        try:
            self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            _log.warning("%s did not end within %g s and is killed.", self.spec.name, seconds)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _await_ready(self, descriptor: int) -> None:
        """Report that the child is ready, if it ever says so."""
        with os.fdopen(descriptor, "rb") as pipe:
            if pipe.read():
                self._on_event(self, "ready")

    def _copy_lines(self, output: IO[bytes]) -> None:
        """Put the child's output into the log, and report the line after which it is of no use."""
        with output:
            for line in output:
                text = _COLOURS.sub("", line.decode("utf-8", "replace")).rstrip()
                if text:
                    _log.info("%s: %s", self.spec.name, text[:_LINE_CHARACTERS])
                if self.spec.lost is not None and self.spec.lost.search(text):
                    self._on_event(self, "lost")

    def _await_end(self) -> None:
        """Report the child's end."""
        self.process.wait()
        self._on_event(self, "ended")


class Supervisor:
    """Keeps children running until it is told to stop.

    Args:
        first: The child that the others need: it must be ready before they start, and if it ends before it ever
            was, or ends for bad input, everything stops with its exit code.
        others: The rest.
        stop_seconds: How long children have to end.
        pause: Seconds before a child is started again the first time; doubled up to a minute.
    """

    def __init__(
        self, first: ChildSpec, others: Sequence[ChildSpec], *, stop_seconds: float, pause: float = 1.0
    ) -> None:
        self._first = first
        self._others = others
        self._stop_seconds = stop_seconds
        self._pause = pause
        self._pauses: dict[str, float] = {}
        self._events: queue.SimpleQueue[tuple[Child | None, str]] = queue.SimpleQueue()
        self._children: dict[str, Child] = {}
        self._due: dict[str, float] = {}
        self._was_ready = False

    def run(self) -> int:
        """Start the children and keep them running; return the exit code once all have ended."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._events.put((None, "stop")))
        code: int | None = None
        try:
            self._start(self._first)
            while code is None:
                code = self._step()
        finally:
            self._end_all()
        return code

    def _step(self) -> int | None:
        """Handle the next event; return an exit code when it is time to stop."""
        timeout = max(0.0, min(self._due.values()) - time.monotonic()) if self._due else None
        try:
            child, event = self._events.get(timeout=timeout)
        except queue.Empty:
            self._start_due()
            return None
        if child is None:
            _log.info("Stopping.")
            return 0
        if self._children.get(child.spec.name) is not child:
            return None
        if event == "ready":
            self._on_ready()
            return None
        if event == "lost":
            _log.warning("%s lives on but has given up its work; it is ended.", child.spec.name)
            child.ask_to_end()
            child.end(seconds=_FAREWELL_SECONDS)
            return None
        return self._on_end(child)

    def _on_ready(self) -> None:
        """Start what waits for the first child."""
        self._was_ready = True
        for spec in self._others:
            if spec.name not in self._children and spec.name not in self._due:
                self._start(spec)

    def _on_end(self, child: Child) -> int | None:
        """Plan another start, or give up."""
        spec, code = child.spec, child.process.returncode
        del self._children[spec.name]
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        if spec is self._first and (not self._was_ready or code == 2):
            _log.error("%s %s; its last lines say why.", spec.name, how)
            return code if code > 0 else 1
        # What is left of its session must not work beside its successor.
        child.end(seconds=0.0)
        if time.monotonic() - child.started >= _STEADY_SECONDS:
            self._pauses.pop(spec.name, None)
        pause = self._pauses.get(spec.name, self._pause)
        self._pauses[spec.name] = min(2 * pause, _LONGEST_PAUSE)
        self._due[spec.name] = time.monotonic() + pause
        _log.warning("%s %s; it is started again in %g s.", spec.name, how, pause)
        return None

    def _start_due(self) -> None:
        """Start the children whose pause is over."""
        now = time.monotonic()
        for spec in (self._first, *self._others):
            if self._due.get(spec.name, now + 1) <= now:
                del self._due[spec.name]
                self._start(spec)

    def _start(self, spec: ChildSpec) -> None:
        """Start a child."""
        self._children[spec.name] = Child(spec, lambda child, event: self._events.put((child, event)))
        _log.info("%s was started as process %d.", spec.name, self._children[spec.name].process.pid)

    def _end_all(self) -> None:
        """End the children: those that talk to the network first, the first child last."""
        names = sorted(self._children, key=lambda name: name == self._first.name)
        for name in names:
            self._children[name].ask_to_end()
            self._children[name].end(seconds=self._stop_seconds)


def _identity(spec: ChildSpec) -> dict[str, Any]:
    """Return the user and groups that a child is started with, where they are not this process's own."""
    if os.geteuid() != 0:
        return {}
    groups = set(spec.user.groups) | ({spec.gid} if spec.gid is not None else set())
    return {"user": spec.user.uid, "group": spec.user.gid, "extra_groups": sorted(groups)}


def _end_with_parent(parent: int) -> Callable[[], None]:
    """Return what a child runs before its program: it is asked to end when this process dies."""
    library = ctypes.CDLL(None, use_errno=True)

    def prepare() -> None:
        # Set after the change of user, which would clear it.
        library.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    return prepare
