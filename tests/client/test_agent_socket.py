"""The guarded socket: modes, stale files, second agents, and peers that the kernel says are others."""

import os
import socket
import stat
import tempfile
import threading
from pathlib import Path

import pytest

from client.agent_socket import GuardedSocket, Peer
from common.errors import InputError

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="root alone can become another user")
NOBODY = 65534
ME = os.geteuid()


@pytest.fixture
def echo(tmp_path):
    """A socket that sends back what it gets; what it got is in its list."""
    path, got = tmp_path / "behind.sock", []
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                while data := connection.recv(1 << 16):
                    got.append(data)
                    connection.sendall(data)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield path, got
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


@pytest.fixture
def guarded(tmp_path, echo):
    opened = []

    def make(path=tmp_path / "run" / "agent.sock", uids=(ME,), gid=None):
        opened.append(GuardedSocket(path, behind=echo[0], uids=uids, gid=gid))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def say(path, text):
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(path))
        try:
            peer.sendall(text)
            peer.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: peer.recv(1 << 16), b""))
        except OSError:
            # A peer that is refused sees its connection closed, or reset.
            return b""


def test_bytes_go_through_in_both_directions(guarded):
    text = os.urandom(1 << 20)
    assert say(guarded().path, text) == text


def test_modes(guarded):
    path = guarded().path
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o750


def test_a_peer_of_another_user_is_refused(guarded, echo):
    one = guarded(uids=(NOBODY - 1,))
    assert say(one.path, b"hello") == b""
    assert (one.refused, echo[1]) == (1, [])


def connect_as(uid, path):
    """Return what a process of another user gets back from the socket."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            os.write(writing, say(path, b"x"))
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading, "rb") as pipe:
        return pipe.read()


@ROOT_ONLY
# The child that is forked uses nothing that another thread could hold.
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize(("uids", "got"), [((0,), b""), ((0, NOBODY), b"x")])
def test_the_kernel_says_who_the_peer_is(guarded, uids, got):
    """Another user gets through only where it is listed, even if every mode is as wrong as it can be."""
    # A folder of its own: pytest closes its folders to other users.
    with tempfile.TemporaryDirectory(prefix="fedward-") as name:
        folder = Path(name)
        one = guarded(folder / "run" / "agent.sock", uids=uids)
        one.path.chmod(0o666)
        for each in (folder, one.path.parent):
            each.chmod(0o755)
        assert connect_as(NOBODY, one.path) == got
        one.close()


def test_a_stale_socket_is_replaced(guarded, tmp_path):
    path = tmp_path / "run" / "agent.sock"
    path.parent.mkdir(mode=0o750)
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    assert say(guarded().path, b"x") == b"x"


def test_a_second_agent_is_refused_and_the_first_goes_on(guarded):
    first = guarded()
    with pytest.raises(InputError, match="another agent listens there"):
        guarded()
    assert say(first.path, b"x") == b"x"


def test_a_file_that_is_no_socket_stays(guarded, tmp_path):
    path = tmp_path / "run" / "agent.sock"
    path.parent.mkdir(mode=0o750)
    path.write_text("mine")
    with pytest.raises(InputError, match="something that is no socket"):
        guarded()
    assert path.read_text() == "mine"


def test_a_folder_that_others_can_enter_is_refused(guarded, tmp_path):
    (tmp_path / "run").mkdir(mode=0o755)
    with pytest.raises(InputError, match="chmod 750"):
        guarded()


def test_a_path_that_linux_cannot_bind_is_named(guarded, tmp_path):
    with pytest.raises(InputError, match="Linux allows 107"):
        guarded(tmp_path / "run" / ("s" * 108))


def test_closing_removes_the_socket_and_ends_connections(guarded):
    one = guarded()
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(one.path))
        peer.sendall(b"x")
        assert peer.recv(1) == b"x"
        one.close()
        assert peer.recv(1) == b""
    assert not one.path.exists()


def test_the_socket_of_a_successor_is_not_removed(guarded, tmp_path):
    one = guarded()
    one.path.unlink()
    other = guarded()
    one.close()
    assert say(other.path, b"x") == b"x"


def test_peer_is_this_process():
    left, right = socket.socketpair(socket.AF_UNIX)
    with left, right:
        assert Peer.of(left) == Peer(pid=os.getpid(), uid=os.geteuid(), gid=os.getegid())
