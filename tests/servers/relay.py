"""A relay between a client and a server, which cuts what the client sends."""

from __future__ import annotations

import re
import select
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial

from support import Connection, Server, close

#: In a letter: what follows is cut so many octets later.
HERE = re.compile(rb"HERE(\d)")
_PAUSE = 0.002  # seconds between two pieces: makes it likely that they are read one by one


def whole(data: bytes) -> Iterator[bytes]:
    yield data


def cut(data: bytes) -> Iterator[bytes]:
    """Yield the pieces of *data*, with ends where the marks say."""
    start = 0
    for mark in HERE.finditer(data):
        end = min(mark.end() + int(mark[1]), len(data))
        if end > start:
            yield data[start:end]
            time.sleep(_PAUSE)
            start = end
    yield data[start:]


def relay(address: tuple[str, int], pieces: Callable[[bytes], Iterator[bytes]] = whole) -> Server:
    """Return a server that passes everything on to the one at *address* and back."""
    return Server(partial(_pass_on, address, pieces))


def _pass_on(
    address: tuple[str, int],
    pieces: Callable[[bytes], Iterator[bytes]],
    client: Connection,
) -> None:
    with socket.create_connection(address) as server:
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            ready, _, _ = select.select([client.sock, server], [], [])
            if server in ready:
                if not (data := server.recv(1 << 16)):
                    close(client)
                client.send(data)
            if client.sock in ready:
                for piece in pieces(client.receive()):
                    server.sendall(piece)
