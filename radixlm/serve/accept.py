"""Takes connections off a listening socket, many per turn of the event loop.

The loop's own server takes one per turn. While thousands of streams flow a turn is long, and newcomers would wait for
seconds behind each other.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable

logger = logging.getLogger(__name__)

_PER_TURN = 128
_PAUSE_S = 0.2  # when the process may open no more files


class Acceptor:
    """Serves `listener` with protocols from `make` until closed. The socket stays its maker's."""

    def __init__(
        self, listener: socket.socket, make: Callable[[], asyncio.Protocol], tls: ssl.SSLContext | None
    ) -> None:
        self._listener = listener
        self._make = make
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._open = True
        self._connecting: set[asyncio.Task[object]] = set()
        self._resume()

    def close(self) -> None:
        """Takes no more."""
        self._open = False
        self._loop.remove_reader(self._listener.fileno())

    def _resume(self) -> None:
        if self._open:
            self._loop.add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(_PER_TURN):
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return  # another process was faster, or the client was
            except OSError as error:
                logger.warning("no connection can be accepted for now: %s", error.strerror)
                self._loop.remove_reader(self._listener.fileno())
                self._loop.call_later(_PAUSE_S, self._resume)
                return
            connection.setblocking(False)
            task = self._loop.create_task(self._connect(connection))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def _connect(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._make, connection, ssl=self._tls)
        except (OSError, ssl.SSLError) as error:
            logger.debug("a connection was lost before it began: %s", error)
