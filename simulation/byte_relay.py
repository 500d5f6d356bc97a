"""A relay on loopback that counts what passes: bytes on the wire, TLS and all, without a look inside."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Self

_CHUNK = 1 << 18


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
        """Prepare; `with` starts and ends it."""
        self.port = 0
        self.sent = 0
        self.received = 0
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        """Listen."""
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *exception: object) -> None:
        """Cut every connection and end."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            # The server is not there yet or was killed: the peer sees what it would have seen without a relay.
            writer.close()
            return
        await asyncio.gather(
            self._pass_on(reader, far_writer, outwards=True),
            self._pass_on(far_reader, writer, outwards=False),
        )

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, outwards: bool
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while chunk := await reader.read(_CHUNK):
                if outwards:
                    self.sent += len(chunk)
                else:
                    self.received += len(chunk)
                writer.write(chunk)
                await writer.drain()
        writer.close()
