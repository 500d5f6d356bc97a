"""Children that are kept running: the order of starts, restarts, back-off, and a clean end."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from client.isolation import HostUser
from client.supernode import LOST
from client.supervisor import ChildSpec, Supervisor

AGENT = """
import os, pathlib, signal, sys, time
pathlib.Path("{name}.starts").open("a").write(str(os.getpid()) + "\\n")
fd = int(sys.argv[sys.argv.index("--ready-fd") + 1]) if "--ready-fd" in sys.argv else None
{body}
"""
READY = "os.write(fd, b'ready\\n'); os.close(fd)\n"
WAIT = "signal.pause()\n"


@pytest.fixture
def child(tmp_path):
    """A function that describes a child whose program is `body`."""

    def make(name, body, *, ready=False, logged=False):
        return ChildSpec(
            name=name,
            command=[sys.executable, "-c", AGENT.format(name=name, body=body)],
            environment={"PATH": os.environ["PATH"]},
            user=HostUser.current(),
            gid=None,
            folder=tmp_path,
            ready=ready,
            logged=logged,
        )

    return make


@pytest.fixture(autouse=True)
def _handlers():
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def starts(folder: Path, name: str) -> list[int]:
    path = folder / f"{name}.starts"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def later(ready, act):
    """Act once `ready()` holds."""

    def wait():
        until = time.monotonic() + 30
        while not ready() and time.monotonic() < until:
            time.sleep(0.02)
        act()

    threading.Thread(target=wait, daemon=True).start()


def stop():
    os.kill(os.getpid(), signal.SIGTERM)


def test_the_others_start_once_the_first_is_ready_and_all_end(child, tmp_path):
    first, second = child("agent", READY + WAIT, ready=True), child("supernode", WAIT)
    later(lambda: starts(tmp_path, "supernode"), stop)
    assert Supervisor(first, [second], stop_seconds=10).run() == 0
    assert not any(map(lives, starts(tmp_path, "agent") + starts(tmp_path, "supernode")))


def test_a_first_child_that_never_gets_ready_ends_everything_with_its_code(child, tmp_path):
    assert (
        Supervisor(child("agent", "sys.exit(2)", ready=True), [child("b", WAIT)], stop_seconds=5).run() == 2
    )
    assert starts(tmp_path, "b") == []


@pytest.mark.parametrize("victim", ["agent", "supernode"])
def test_a_killed_child_is_started_again(child, tmp_path, victim):
    first, second = child("agent", READY + WAIT, ready=True), child("supernode", WAIT)

    def kill():
        os.kill(starts(tmp_path, victim)[0], signal.SIGKILL)
        later(lambda: len(starts(tmp_path, victim)) == 2, stop)

    later(lambda: starts(tmp_path, "supernode"), kill)
    assert Supervisor(first, [second], stop_seconds=10, pause=0.05).run() == 0
    other = "supernode" if victim == "agent" else "agent"
    assert (len(starts(tmp_path, victim)), len(starts(tmp_path, other))) == (2, 1)


def test_pauses_grow_and_input_that_went_bad_ends_everything(child, tmp_path, caplog):
    body = READY + "n = len(open('agent.starts').readlines()); sys.exit(2 if n == 4 else 1)"
    started = time.monotonic()
    assert Supervisor(child("agent", body, ready=True), [], stop_seconds=5, pause=0.1).run() == 2
    assert time.monotonic() - started > 0.7
    pauses = [record.args[-1] for record in caplog.records if "started again" in record.msg]
    assert pauses == [0.1, 0.2, 0.4]


def test_a_child_that_does_not_end_is_killed_with_its_own_children(child, tmp_path):
    body = (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "if os.fork() == 0: pathlib.Path('grandchild.starts').write_text(str(os.getpid()))\n"
        "time.sleep(60)\n"
    )
    first = child("agent", READY + WAIT, ready=True)
    later(lambda: starts(tmp_path, "grandchild"), stop)
    assert Supervisor(first, [child("supernode", body)], stop_seconds=0.3).run() == 0
    assert not any(map(lives, starts(tmp_path, "supernode") + starts(tmp_path, "grandchild")))


def test_children_end_with_a_supervisor_that_is_killed(tmp_path):
    code = f"""
import os, sys
sys.path[:0] = {sys.path!r}
from dataclasses import replace
from pathlib import Path
from client.isolation import HostUser
from client.supernode import LOST
from client.supervisor import ChildSpec, Supervisor
body = "import os, pathlib, signal; pathlib.Path('a.starts').write_text(str(os.getpid())); signal.pause()"
spec = ChildSpec(name="a", command=[sys.executable, "-c", body], environment={{}}, user=HostUser.current(),
                 gid=None, folder=Path({str(tmp_path)!r}), ready=True)
Supervisor(spec, [], stop_seconds=5).run()
"""
    supervisor = subprocess.Popen([sys.executable, "-c", code])
    until = time.monotonic() + 60
    while not starts(tmp_path, "a") and time.monotonic() < until:
        time.sleep(0.02)
    (pid,) = starts(tmp_path, "a")
    supervisor.kill()
    supervisor.wait()
    while lives(pid) and time.monotonic() < until:
        time.sleep(0.02)
    assert not lives(pid)


def test_output_goes_into_the_log_without_colours(child, tmp_path, caplog):
    caplog.set_level("INFO")
    first = child("agent", READY + WAIT, ready=True)
    second = child("supernode", "print('\\x1b[92mINFO\\x1b[0m hello', flush=True)\n" + WAIT, logged=True)
    later(lambda: any("hello" in record.getMessage() for record in caplog.records), stop)
    assert Supervisor(first, [second], stop_seconds=10).run() == 0
    assert "supernode: INFO hello" in [record.getMessage() for record in caplog.records]


GIVEN_UP = "ERROR :     Server error '500 Internal Server Error' for url 'https://h:1/v1/fleet/pull-messages'"


def test_a_supernode_that_lives_on_without_its_connection_is_started_again(child, tmp_path, caplog):
    """Its thread that asks for messages has ended, and nothing but a line of its output says so."""
    first = child("agent", READY + WAIT, ready=True)
    body = f"print({GIVEN_UP!r}, flush=True) if len(open('supernode.starts').readlines()) == 1 else None\n"
    second = replace(child("supernode", body + WAIT, logged=True), lost=LOST)
    later(lambda: len(starts(tmp_path, "supernode")) == 2, stop)
    assert Supervisor(first, [second], stop_seconds=10, pause=0.05).run() == 0
    assert len(starts(tmp_path, "supernode")) == 2
    assert not any(map(lives, starts(tmp_path, "supernode")))
    assert "lives on but has given up its work" in caplog.text


@pytest.mark.parametrize(
    ("line", "lost"),
    [
        (GIVEN_UP, True),
        (
            "ERROR :     Client error '413 Request Entity Too Large' for url 'https://h:1/v1/fleet/push-object'",
            True,
        ),
        ("WARNING :   Connection attempt failed, retrying in 1.36 seconds", False),
        (
            "ERROR :     Failed to push task output: Server error '500 Internal Server Error' for url 'x'",
            False,
        ),
        ("ERROR :     ClientApp raised an exception", False),
        ("httpx.HTTPStatusError: Server error '500 Internal Server Error' for url 'x'", False),
    ],
)
def test_the_line_that_says_so(line, lost):
    assert bool(LOST.search(line)) is lost
