"""The servers of ``fastsmtp demo``, in a process of their own.

One is aiosmtpd: nobody can say that it was written to suit us.  The other does
as little as a server can, so that it is not what is measured.
"""

import asyncio
import contextlib
import re
import signal
from hashlib import sha256
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

#: What identifies a message that arrived: sender, recipients, octets, digest.
Receipt = tuple[str, tuple[str, ...], int, str]
_PATH = re.compile(rb"(?i)(?:MAIL FROM|RCPT TO):<([^>]*)>")
_OFFER = b"250-localhost\r\n250-PIPELINING\r\n250-CHUNKING\r\n250-8BITMIME\r\n250 SIZE\r\n"
_DOT = b"\r\n.\r\n"


def receipt(sender: str, recipients: "tuple[str, ...]", content: "bytes | bytearray") -> Receipt:
    """Return what tells a message from all others."""
    return sender, recipients, len(content), sha256(content).hexdigest()


def serve(pipe: "Connection[Any, Any]") -> None:
    """Run both servers: tell their ports, then what arrived, each time it is asked."""
    # Ctrl-C is for the process that started this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(EOFError, BrokenPipeError):  # it ended early, and has said why
        asyncio.run(_serve(pipe))


async def _serve(pipe: "Connection[Any, Any]") -> None:
    from aiosmtpd.smtp import SMTP

    received: list[Receipt] = []
    loop = asyncio.get_running_loop()
    recorder = Recorder(received)
    servers = [
        await loop.create_server(
            lambda: SMTP(recorder, hostname="localhost", loop=loop), "127.0.0.1", 0
        ),
        await loop.create_server(lambda: Receiver(received), "127.0.0.1", 0),
    ]
    pipe.send([server.sockets[0].getsockname()[1] for server in servers])
    while await loop.run_in_executor(None, pipe.recv):
        pipe.send(received)
        received.clear()
    for server in servers:
        server.close()


class Recorder:
    """What aiosmtpd asks: takes every message."""

    def __init__(self, received: list[Receipt]) -> None:
        self._received = received

    async def handle_EHLO(
        self, server: Any, session: Any, envelope: Any, name: str, responses: list[str]
    ) -> list[str]:
        # aiosmtpd reads one command at a time and keeps the rest buffered: all that RFC 2920 asks
        # of a server. It just does not say so.
        session.host_name = name
        return [*responses[:-1], "250-PIPELINING", responses[-1]]

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        recipients = tuple(envelope.rcpt_tos)
        self._received.append(receipt(envelope.mail_from, recipients, envelope.content))
        return "250 OK"


class Receiver(asyncio.Protocol):
    """A server that takes every message by DATA or BDAT, and answers what is in order.

    It trusts its client with the order: only the demo speaks to it.
    """

    def __init__(self, received: list[Receipt]) -> None:
        self._received = received
        self._buffer = bytearray()
        self._in_data = self._ended = False
        self._sender = ""
        self._recipients: list[str] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(b"220 localhost\r\n")

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        replies: list[bytes] = []
        while (reply := self._next()) is not None:
            replies.append(reply)
        if replies:
            self._transport.write(b"".join(replies))
        if self._ended:
            self._transport.close()

    def _next(self) -> "bytes | None":
        """Take the next thing from the buffer; return the reply, None if it is not whole."""
        buffer = self._buffer
        if self._in_data:
            # The line end before the first line is the one of the command.
            end = 0 if buffer.startswith(_DOT[2:]) else buffer.find(_DOT) + 2
            if end < 2 and not buffer.startswith(_DOT[2:]):
                return None
            content = bytes(buffer[:end])
            del buffer[: end + len(_DOT) - 2]
            self._in_data = False
            return self._take(re.sub(rb"(?m)^\.", b"", content))
        end = buffer.find(b"\n")
        if end < 0:
            return None
        line = bytes(buffer[:end])
        verb = line[:4].upper()
        if verb == b"BDAT":
            size = int(line.split()[1])  # one chunk a message: the demo's client sends no other
            if len(buffer) < end + 1 + size:
                return None
            content = bytes(buffer[end + 1 : end + 1 + size])
            del buffer[: end + 1 + size]
            return self._take(content)
        del buffer[: end + 1]
        return self._command(verb, line)

    def _command(self, verb: bytes, line: bytes) -> bytes:
        if match := _PATH.match(line):
            address = match[1].decode("ascii")
            if verb == b"MAIL":
                self._sender = address
            else:
                self._recipients.append(address)
            return b"250 OK\r\n"
        if verb == b"DATA":
            self._in_data = True
            return b"354 go ahead\r\n"
        if verb == b"EHLO":
            return (
                b"250-localhost\r\n250-PIPELINING\r\n250-CHUNKING\r\n250-8BITMIME\r\n250 SIZE\r\n"
            )
        if verb == b"QUIT":
            self._ended = True
            return b"221 bye\r\n"
        return b"250 OK\r\n" if verb in (b"RSET", b"NOOP") else b"500 what?\r\n"

    def _take(self, content: bytes) -> bytes:
        self._received.append(receipt(self._sender, tuple(self._recipients), content))
        self._recipients = []
        return b"250 OK\r\n"
