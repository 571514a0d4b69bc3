"""A model server whose every reply names the command that it answers, and whims to order.

``250 sender ok [7 MAIL FROM:<a@example.org>]`` is the seventh reply of its
connection: a client that takes it for another command's is caught at once.  So
is one that has not read all that came, for the last number is known here.
Challenges of AUTH have no room for it.

A whim is what happens in place of the usual reply.  Those that end the stream
let the server go on as if it had said what was due, so "drop" after the final
dot is a message that is stored, and whose client cannot know.
"""

from __future__ import annotations

import re
import socket
import threading
from collections import Counter
from collections.abc import Mapping
from typing import Any

from support import TIMEOUT, Connection, Hangup, ModelServer, Reply, Session, reset

#: Another reply than the usual one, and all goes on.
REFUSALS = ("450", "550")
#: The reply in two pieces.
PIECES = "pieces"
#: The stream ends: with 421, without a word, with half of the reply, after it, by RST.
LOSSES = ("421", "drop", "short", "after", "reset")
#: The reply, and one more that nobody asked for: with it, or when it has gone.
EXTRA, LATE = "extra", "late"
#: 354, whether anybody was accepted or not.
READY = "354"

Step = tuple[str, int]

UNASKED = b"250 nobody asked\r\n"


class NamingServer(ModelServer):
    """A ModelServer that names in each reply what it answers.

    whims: by (step, n): what happens at the n-th such step since begin().
    """

    def __init__(self, *args: Any, **details: Any) -> None:
        super().__init__(*args, **details)
        self._play = lambda connection: NamingSession(self, connection).run()
        self.sessions: list[NamingSession] = []
        self.told = threading.Event()  # what is late has been said
        self.begin()

    def begin(self, whims: Mapping[Step, str] | None = None) -> None:
        """Begin a call of the client's, with the whims that it is to meet."""
        self.whims = dict(whims or {})
        self.told.clear()
        self.struck: list[str] = []
        self.seen: Counter[str] = Counter()

    def settle(self, first: int = 0, last: int | None = None) -> None:
        """Wait until connections that the client has closed are over; all, if not told."""
        for thread in self._threads[1:][first:last]:
            thread.join(TIMEOUT)
            assert not thread.is_alive()


class NamingSession(Session):
    """One client's session; `said` is how many replies there were."""

    server: NamingServer

    def __init__(self, server: NamingServer, connection: Connection) -> None:
        super().__init__(server, connection)
        server.sessions.append(self)
        self.said = 0
        self._sender = ""
        self._awaited: list[str] = []  # recipients whose replies are due (LMTP)
        self._over = False

    def reply(self, step: str, usual: Reply) -> int:
        """Play the reply for this step, or the whim; return the code that holds here."""
        if self._over:
            raise Hangup
        assert isinstance(usual, bytes)
        server = self.server
        server.seen[step] += 1
        whim = server.whims.get((step, server.seen[step]))
        if whim is not None:
            server.struck.append(whim)
            if whim in (*REFUSALS, READY, "421"):
                usual = f"{whim} as told\r\n".encode()
        self.said += 1
        self._tell(whim, usual if usual.startswith(b"334") else self._named(step, usual))
        return int(usual[:3])

    def _named(self, step: str, usual: bytes) -> bytes:
        name = f" [{self.said} {self._asked(step)}]\r\n".encode("utf-8", "surrogateescape")
        return usual.replace(b"\r\n", name, 1)

    def _asked(self, step: str) -> str:
        if step in ("greeting", "AUTH", "response"):
            return step  # credentials are for nobody's ears
        if step not in ("body", "BDAT"):
            return self.command
        recipient = f" for {self._awaited.pop(0)}" if self._awaited else ""
        return f"message of {self._sender}{recipient}"

    def _tell(self, whim: str | None, data: bytes) -> None:
        half = len(data) // 2
        if whim == PIECES:
            self.connection.send(data[:half])
            self.connection.send(data[half:])
        elif whim == EXTRA:
            self.connection.send(data + UNASKED)
        elif whim == LATE:
            self.connection.send(data)
            self.connection.send(UNASKED)
            self.server.told.set()
        elif whim == "reset":
            self._over = True
            reset(self.connection)
        elif whim in LOSSES:
            self._over = True
            self.connection.send({"drop": b"", "short": data[:half]}.get(whim, data))
            socket.socket.shutdown(self.connection.sock, socket.SHUT_WR)
        else:
            self.connection.send(data)

    def do_STARTTLS(self, verb: str, argument: str) -> None:
        clear = self.connection.sock
        super().do_STARTTLS(verb, argument)
        if self.connection.sock is not clear:
            self.message = None  # RFC 3207, section 4.2

    def do_MAIL(self, verb: str, argument: str) -> None:
        if not self.message:
            self._sender = argument.partition("<")[2].partition(">")[0]
        super().do_MAIL(verb, argument)

    def _take(self, wire: bytes) -> None:
        assert self.message is not None
        self._awaited = list(self.message.recipients) if self.server.lmtp else []
        super()._take(wire)

    def _accepts(self) -> bool:
        try:
            return super()._accepts()
        except Hangup:
            return False  # those before have been taken


def named(text: bytes) -> tuple[int, str]:
    """Return the number of a reply and what it answers, as its text tells."""
    match = re.search(rb"\[(\d+) (.*)\]$", text.partition(b"\n")[0])
    assert match, text
    return int(match[1]), match[2].decode("utf-8", "surrogateescape")
