"""The agent's UNIX socket: only some users get through, whatever the file's mode says.

gRPC's Python server does not tell who is at the other end of a UNIX socket. So the socket that others can
reach is this one: it asks the kernel for the peer's user (SO_PEERCRED), and hands what an allowed peer says on
to gRPC's own socket, in a folder that nobody but the agent's user can enter.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import stat
import struct
import threading
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from common.errors import InputError

_log = logging.getLogger(__name__)

AGENT_SOCKET = "agent-socket"
"""The key of a SuperNode's `--node-config` that names the agent's socket."""

SOCKET_MODE = 0o660
FOLDER_MODE = 0o750

_BUFFER_BYTES = 1 << 18
_CONNECTIONS = 32
_LONGEST_PATH = 107
"""Linux's `sun_path` holds 108 bytes with the final zero."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Who is at the other end of a UNIX socket, as the kernel says."""

    pid: int
    uid: int
    gid: int

    @classmethod
    def of(cls, connection: socket.socket) -> Peer:
        """Return the peer that connected."""
        layout = "3i"
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize(layout))
        pid, uid, gid = struct.unpack(layout, raw)
        return cls(pid=pid, uid=uid, gid=gid)


class GuardedSocket:
    """A listening UNIX socket that checks its peers and hands their bytes on.

    Args:
        path: The socket; its folder is made with mode 0750 where absent.
        behind: The socket that the bytes are handed on to.
        uids: The users whose connections are taken.
        gid: The group that the socket and a new folder are given; None leaves the process's own.

    Raises:
        InputError: The folder is open to others, another agent listens there, or the path is not usable.
    """

    def __init__(self, path: Path, *, behind: Path, uids: Collection[int], gid: int | None = None) -> None:
        self.path = path
        self.refused = 0
        self._behind = behind
        self._uids = frozenset(uids)
        self._room = threading.BoundedSemaphore(_CONNECTIONS)
        self._open: set[socket.socket] = set()
        self._changed = threading.Condition()
        _prepare_folder(path.parent, gid)
        self._listener = _listen(path, gid)
        self._inode = path.stat().st_ino
        self._thread = threading.Thread(target=self._accept, name="agent-socket", daemon=True)
        self._thread.start()

    def stop_listening(self) -> None:
        """Take no new connection and remove the socket; connections that are open stay."""
        with contextlib.suppress(OSError):
            # Wakes up the thread that waits in `accept`; closing alone does not.
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        with contextlib.suppress(OSError):
            if self.path.stat().st_ino == self._inode:
                self.path.unlink()

    def close(self, *, seconds: float = 0.0) -> None:
        """Stop listening and end every connection.

        Args:
            seconds: How long connections may still hand on what is under way. They end by themselves once the
                socket behind has closed its side.
        """
        self.stop_listening()
        with self._changed:
            self._changed.wait_for(lambda: not self._open, timeout=seconds)
            left = list(self._open)
        for connection in left:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        """Take connections until the listener is closed."""
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ECONNABORTED):
                    continue
                return
            peer = Peer.of(connection)
            if peer.uid not in self._uids:
                self.refused += 1
                _log.warning("A connection of user %d (process %d) was refused.", peer.uid, peer.pid)
                connection.close()
            elif not self._room.acquire(blocking=False):
                _log.warning("A connection was refused: %d are open.", _CONNECTIONS)
                connection.close()
            else:
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, outer: socket.socket) -> None:
        """Hand bytes on in both directions until both sides have ended."""
        inner = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with self._changed:
            self._open |= {outer, inner}
        try:
            inner.connect(str(self._behind))
            back = threading.Thread(target=_pump, args=(inner, outer), daemon=True)
            back.start()
            _pump(outer, inner)
            back.join()
        except OSError as error:
            _log.warning("A connection could not be handed on (%s).", error.strerror)
        finally:
            with self._changed:
                self._open -= {outer, inner}
                self._changed.notify_all()
            outer.close()
            inner.close()
            self._room.release()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    """Copy until `source` ends, then tell `sink` so."""
    room = memoryview(bytearray(_BUFFER_BYTES))
    with contextlib.suppress(OSError):
        while count := source.recv_into(room):
            sink.sendall(room[:count])
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
    with contextlib.suppress(OSError):
        source.shutdown(socket.SHUT_RD)


def _prepare_folder(folder: Path, gid: int | None) -> None:
    """Make the socket's folder, or check that others cannot enter it."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        pass
    except OSError as error:
        raise InputError(f"{folder}: the socket's folder cannot be made ({error.strerror}).") from None
    else:
        if gid is not None:
            _give(folder, gid)
        folder.chmod(FOLDER_MODE)
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & 0o027:
        raise InputError(
            f"{folder}: the socket's folder has mode {mode:04o}; others must not enter it. Run "
            f"'chmod 750 {folder}'."
        )


def _listen(path: Path, gid: int | None) -> socket.socket:
    """Bind and listen, in place of a socket that nobody listens on any more."""
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise InputError(
            f"{path}: the socket's path has {len(os.fsencode(path))} bytes and Linux allows {_LONGEST_PATH}; name "
            "a shorter one as agent.socket."
        )
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # The file is born with this mode, and nobody can connect before `listen`.
        os.fchmod(listener.fileno(), 0o600)
        _bind(listener, path)
        if gid is not None:
            _give(path, gid)
        path.chmod(SOCKET_MODE)
        listener.listen(_CONNECTIONS)
    except OSError as error:
        listener.close()
        raise InputError(f"{path}: the agent cannot listen there ({error.strerror}).") from None
    except InputError:
        listener.close()
        raise
    return listener


def _bind(listener: socket.socket, path: Path) -> None:
    """Bind to the path; a socket whose process is gone is replaced, and nothing else ever is."""
    try:
        listener.bind(str(path))
        return
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
    if not stat.S_ISSOCK(path.lstat().st_mode):
        raise InputError(f"{path}: something that is no socket is there; name another path as agent.socket.")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        if probe.connect_ex(str(path)) != errno.ECONNREFUSED:
            raise InputError(
                f"{path}: another agent listens there; stop it, or name another path as agent.socket."
            )
    _log.warning("A stale socket of an agent that ended was replaced: %s.", path)
    path.unlink()
    listener.bind(str(path))


def _give(path: Path, gid: int) -> None:
    """Give a file to a group."""
    try:
        os.chown(path, -1, gid)
    except PermissionError:
        raise InputError(
            f"{path} cannot be given to group {gid}; the agent's user must be a member of agent.socket_group."
        ) from None
