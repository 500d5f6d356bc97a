"""A relay on loopback that counts what passes: bytes on the wire, TLS and all, without a look inside."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from typing import Self

_CHUNK = 1 << 18
_HOST = "127.0.0.1"


class ByteRelay:
    """Listens on one port of loopback and hands every connection on to another.

    Args:
        target: The port that connections are handed on to.

    Attributes:
        port: Where it listens.
        sent: Bytes from those that connect to the target, so far.
        received: Bytes back, so far.
    """

    def __init__(self, target: int) -> None:
        """Take a port; `with` starts and ends the relaying."""
        self.sent = 0
        self.received = 0
        self._target = target
        self._lock = threading.Lock()
        relay = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                relay._serve(self.request)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            # A connection that a peer keeps open must not keep the measurement from ending.
            block_on_close = False

        self._server = Server((_HOST, 0), Handler)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)

    def __enter__(self) -> Self:
        """Relay."""
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Take no further connection; those that are open last until either end closes."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _serve(self, near: socket.socket) -> None:
        """Pass on both ways until both have ended."""
        try:
            far = socket.create_connection((_HOST, self._target))
        except OSError:
            # The server is not there yet or was killed: the peer sees what it would have seen without a relay.
            return
        with far:
            back = threading.Thread(target=self._pass_on, args=(far, near, False), daemon=True)
            back.start()
            self._pass_on(near, far, True)
            back.join()

    def _pass_on(self, source: socket.socket, sink: socket.socket, outwards: bool) -> None:
        """Copy one way until it ends; the other way may go on."""
        with contextlib.suppress(OSError):
            while chunk := source.recv(_CHUNK):
                with self._lock:
                    if outwards:
                        self.sent += len(chunk)
                    else:
                        self.received += len(chunk)
                sink.sendall(chunk)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
