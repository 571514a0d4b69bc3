"""An ESMTP server that fails by plan and remembers what it took, in a thread of its own.

    with Faulty(Seeded(7)) as server:
        ...  # send to server.host, server.port
    server.attempts["m1"]  # every transaction that named the message m1, and its end

A message is known by its reverse-path: ``<m1@sender.example>`` is m1, and a first
line ``X-Ledger: m1`` in the content lets the server tell when one message's
content came under another's envelope.  Each transaction that MAIL opens is an
`Attempt`; each connection a `Visit`.  A plan says which `Fault` strikes which
attempt of which message, and which connection; `Seeded` draws it from the seed
and the message's name alone, so that it does not depend on who comes first.

An attempt is stored at the moment the server decides to take the message, before
the 250 goes out, whether or not it ever does.  It is settled when the reply that
decided it has been sent, whole, on a connection that had been sound until then:
a client has no excuse for not knowing what came of it.

Where a fault leaves the connection open, the server goes on as if it had said
what was due.  After a fault that ends it, the server reads on without a word
where the kernel lets it, so that `Attempt.whole` says what the client had handed
over.  It never sends a reply that a client would have to take for another
command's (a 250 before the 550 that is due): nobody can tell those apart.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import random
import re
import socket
import ssl
import struct
import threading
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from support import ASYNCIO_PORTS

PATIENCE = 10.0  # seconds: how long the end waits for the clients to hang up
LINGER = 5.0  # seconds that a socket which is not read stays open
PULSE = 0.02  # seconds between two looks at the clock


class Fault(NamedTuple):
    """What goes wrong, and where.

    *step* is MAIL, RCPT (the one with index *recipient*), DATA (with CHUNKING
    the BDAT command), BODY (inside the content), FINAL (the reply after it),
    AFTER (when that reply has gone) or RSET; for a connection greeting, EHLO,
    STARTTLS or TLS.  *stored*: whether the server takes responsibility before
    a FINAL that is neither a refusal nor a success.
    """

    step: str
    kind: str
    stored: bool = False
    recipient: int = 0


#: The reply is a refusal; "full" is the 452 4.5.3 of too many recipients.
REFUSALS = ("4xx", "5xx", "full")
#: The connection ends.  "drop": the stream ends in order, what still comes is read (in the middle
#: of a message it is not).  "close": the socket is closed, whatever there is to read.  "reset":
#: RST.  "half": half of the reply, then drop.
LOSSES = ("drop", "close", "reset", "half")
#: Silence, reading on or not.
STALLS = ("stall", "deaf")
#: What is no reply, or none that the command can have.  "junk": octets that are no line of a
#: reply.  "web": HTTP.  "wrong": a code that makes no sense there.  "mixed": two codes in one
#: reply.  "extra": such a reply before the right one.  "endless": a line without an end.
NONSENSE = ("junk", "web", "wrong", "mixed", "extra", "endless")
#: A success with another code than 250: whose first digit says it all, or who takes it for a break
#: of the protocol, is right; but nobody may take it for a refusal (RFC 5321, section 4.3.2).
ODD = ("251", "252")
#: The right reply, an octet at a time.
DRIBBLE = "dribble"
#: 421, and the connection ends in order.
BYE = "421"

STEPS = ("MAIL", "RCPT", "DATA", "FINAL")

#: What each of the rates may bring.
CHOICES: dict[str, tuple[Fault, ...]] = {
    "refuse": (
        *(Fault(step, kind) for step in STEPS for kind in REFUSALS[:2]),
        Fault("RCPT", "full"),
        Fault("BODY", "5xx"),
    ),
    "bye": tuple(Fault(step, BYE) for step in (*STEPS, "BODY", "AFTER", "RSET")),
    "lose": (
        *(Fault(step, kind) for step in (*STEPS, "FINAL", "FINAL", "RSET") for kind in LOSSES),
        *(Fault(step, kind) for step in ("BODY", "AFTER") for kind in LOSSES[:3]),
    ),
    "stall": tuple(Fault(step, kind) for step in (*STEPS, "BODY") for kind in STALLS),
    "confuse": tuple(Fault(step, kind) for step in STEPS for kind in NONSENSE),
    "odd": tuple(Fault(step, kind) for step in ("MAIL", "RCPT", "FINAL") for kind in ODD),
    "dribble": tuple(Fault(step, DRIBBLE) for step in STEPS),
}

#: The same for a connection.
OPENINGS: dict[str, tuple[Fault, ...]] = {
    "connect": (
        *(Fault(step, kind) for step in ("greeting", "EHLO") for kind in (BYE, DRIBBLE, *LOSSES)),
        Fault("greeting", "junk"),
        Fault("EHLO", "junk"),
    ),
    "starttls": (
        *(Fault("STARTTLS", kind) for kind in ("4xx", BYE, "junk", "inject", *LOSSES)),
        *(Fault("TLS", kind) for kind in ("junk", *LOSSES)),
    ),
}


class Rates(NamedTuple):
    """Probabilities: of a fault of each group for an attempt, the last two for a connection."""

    refuse: float = 0.08
    bye: float = 0.01
    lose: float = 0.03
    stall: float = 0.0
    confuse: float = 0.01
    odd: float = 0.01
    dribble: float = 0.01
    connect: float = 0.1
    starttls: float = 0.1


class Plan:
    """No faults: the base of all plans."""

    def for_attempt(self, message: str, number: int) -> list[Fault]:
        """Return the faults of a message's transaction; the first has number 1."""
        return []

    def for_connection(self, number: int) -> list[Fault]:
        """Return the faults of a connection; the first has number 1."""
        return []


class Scripted(Plan):
    """Faults by message and attempt: {("m1", 1): [Fault(...)]}; by number for connections."""

    def __init__(self, script: Mapping[Any, list[Fault]]) -> None:
        self.script = script

    def for_attempt(self, message: str, number: int) -> list[Fault]:
        return self.script.get((message, number), [])

    def for_connection(self, number: int) -> list[Fault]:
        return self.script.get(number, [])


class Seeded(Plan):
    """Faults drawn from a seed: the same for the same message and attempt, in any order."""

    def __init__(self, seed: int, rates: Rates | None = None) -> None:
        self.seed = seed
        self.rates = rates or Rates()
        self._any = sum(self.rates[:-2])

    def for_attempt(self, message: str, number: int) -> list[Fault]:
        key = b"%d %s %d" % (self.seed, message.encode(), number)
        digest = hashlib.blake2b(key, digest_size=8).digest()
        if int.from_bytes(digest, "big") >= self._any * 2**64:
            return []
        draw = random.Random(digest)
        faults = [self._draw(draw, CHOICES)]
        if draw.random() < 0.2:
            faults.append(self._draw(draw, CHOICES))
        return faults

    def for_connection(self, number: int) -> list[Fault]:
        draw = random.Random(f"{self.seed} connection {number}")
        return [
            draw.choice(choices)
            for rate, choices in OPENINGS.items()
            if draw.random() < getattr(self.rates, rate)
        ]

    def _draw(self, draw: random.Random, groups: Mapping[str, tuple[Fault, ...]]) -> Fault:
        weights = [getattr(self.rates, name) for name in groups]
        (group,) = draw.choices(list(groups), weights)
        index = draw.choice((0, 0, 1, 2))
        return draw.choice(groups[group])._replace(stored=draw.random() < 0.5, recipient=index)


# -- what is remembered ---------------------------------------------------------


@dataclass(eq=False)
class Visit:
    """One connection."""

    number: int
    faults: list[Fault] = field(default_factory=list)
    #: False from the first fault on after which the client may trust nothing more.
    sound: bool = True
    attempts: list[Attempt] = field(default_factory=list)
    #: The client hung up on a sound connection, with a transaction open.
    abandoned: bool = False
    tls: bool = False
    resumed: bool = False
    #: Commands out of order, and what was not even a command.
    offences: list[str] = field(default_factory=list)
    closed: bool = False


@dataclass(eq=False)
class Attempt:
    """One transaction."""

    message: str
    number: int
    visit: Visit
    #: DATA or BDAT, as soon as the client has said it.
    form: str | None = None
    faults: list[Fault] = field(default_factory=list)
    #: Recipients taken; and refused, as a client can know that relies on the connection.
    recipients: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    #: 354 has been sent.
    ready: bool = False
    #: All of the content has arrived, also if nobody cared any more.
    whole: bool = False
    #: The fault came inside the content, and no more of it was read.
    cut: bool = False
    stored: bool = False
    settled: bool = False
    #: The content, stored: its CRC-32, and the name in its first line.
    crc: int = 0
    named: str | None = None

    @property
    def key(self) -> str:
        """What every reply of this transaction says, so that a mix-up shows."""
        return f"{self.message}.{self.number}"

    def __str__(self) -> str:
        faults = ", ".join(f"{fault.step} {fault.kind}" for fault in self.faults) or "no fault"
        names = ("ready", "whole", "cut", "stored", "settled")
        flags = [name for name in names if getattr(self, name)]
        return (
            f"{self.key} on connection {self.visit.number} by {self.form}: {faults}; "
            f"took {self.recipients}, refused {self.refused}; {' '.join(flags) or 'nothing'}"
        )


# -- the server -------------------------------------------------------------------

EXTENSIONS = ("PIPELINING", "CHUNKING", "SIZE 33554432", "8BITMIME", "ENHANCEDSTATUSCODES")


class Kept(dict):
    """What an event loop has of its transports, by their file descriptors; none is forgotten."""

    def __init__(self) -> None:
        super().__init__()
        self.all: list[Any] = []

    def __setitem__(self, descriptor: int, transport: Any) -> None:
        self.all.append(transport)
        super().__setitem__(descriptor, transport)


class Faulty:
    """Listens on loopback; speaks ESMTP as strictly as a server may, but for its plan's faults.

    extensions: the lines of the EHLO reply after the first.
    tls: a context; STARTTLS is offered in clear.
    buffer_size: the kernel's receive buffers, in bytes.
    """

    host = "127.0.0.1"

    def __init__(
        self,
        plan: Plan | None = None,
        *,
        extensions: tuple[str, ...] = EXTENSIONS,
        tls: ssl.SSLContext | None = None,
        buffer_size: int | None = None,
    ) -> None:
        self.plan = plan or Plan()
        self.extensions = extensions
        self.tls = tls
        self.port = 0
        self.visits: list[Visit] = []
        self.attempts: defaultdict[str, list[Attempt]] = defaultdict(list)
        #: Seconds by which this thread's clock was late at the most.
        self.late = 0.0
        #: Connections that the clients left open, to the end.
        self.leaked: list[Visit] = []
        self.open: set[Conversation] = set()
        self._buffer_size = buffer_size
        self._errors: list[BaseException] = []

    def __enter__(self):
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(self._note_error)
        self._loop._transports = self._transports = Kept()
        listener = self._listen()
        self.port = listener.getsockname()[1]
        ASYNCIO_PORTS.add(self.port)
        self._done = asyncio.Event()
        self._thread = threading.Thread(
            target=self._loop.run_until_complete, args=(self._serve(listener),), daemon=True
        )
        self._thread.start()
        return self

    def __exit__(self, exc_type: object, exc: object, traceback: object) -> None:
        self._loop.call_soon_threadsafe(self._done.set)
        self._thread.join(2 * PATIENCE)
        assert not self._thread.is_alive()
        self._loop.close()
        for transport in self._transports.all:
            if transport._sock is not None:
                transport._sock.close()
                transport._sock = None
        if self._errors and exc is None:
            raise self._errors[0]

    @property
    def faults(self) -> Counter[tuple[str, str]]:
        """How often each fault has struck."""
        struck: Counter[tuple[str, str]] = Counter()
        for visit in self.visits:
            struck.update((fault.step, fault.kind) for fault in visit.faults)
        return struck

    @property
    def stored(self) -> list[Attempt]:
        """All for which the server took responsibility."""
        return [each for attempts in self.attempts.values() for each in attempts if each.stored]

    def _listen(self) -> socket.socket:
        # asyncio turns Nagle's algorithm off where it sees the protocol.  With it on, what was
        # written may not have been sent when RST is.
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        if self._buffer_size is not None:  # inherited by what is accepted
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._buffer_size)
        listener.bind((self.host, 0))
        listener.listen(128)
        return listener

    async def _serve(self, listener: socket.socket) -> None:
        server = await self._loop.create_server(lambda: Conversation(self), sock=listener)
        pulse = asyncio.ensure_future(self._watch_the_clock())
        await self._done.wait()
        server.close()
        give_up = self._loop.time() + PATIENCE
        while any(not each.lingers for each in self.open) and self._loop.time() < give_up:
            await asyncio.sleep(PULSE / 4)
        self.leaked = [each.visit for each in self.open if not each.lingers]
        pulse.cancel()
        # One that was just accepted is still in the making, as a task.
        while self.open or len(asyncio.all_tasks()) > 1:
            for each in list(self.open):
                each.transport.abort()
            await asyncio.sleep(0)
        with contextlib.suppress(asyncio.CancelledError):
            await pulse
        # Nothing is left for the garbage collector to complain about in some other test.
        for transport in self._transports.all:
            transport.abort()
        await asyncio.sleep(0)

    async def _watch_the_clock(self) -> None:
        while True:
            due = self._loop.time() + PULSE
            await asyncio.sleep(PULSE)
            self.late = max(self.late, self._loop.time() - due)

    def _note_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception") or RuntimeError(context["message"])
        if getattr(error, "errno", None) != errno.ENOTCONN:  # the client has reset it
            self._errors.append(error)


class Conversation(asyncio.Protocol):
    """One connection: cuts what comes into commands and contents, and answers."""

    transport: asyncio.Transport

    def __init__(self, server: Faulty) -> None:
        self.server = server
        self.visit = Visit(len(server.visits) + 1)
        server.visits.append(self.visit)
        self._plan = {each.step: each for each in server.plan.for_connection(self.visit.number)}
        self._step: Callable[[], bool] = self._command
        self._buffer = bytearray()
        self._at = 0  # what of the buffer has been taken
        self._searched = 0  # up to where there is no end of the content
        self._out: list[bytes] = []
        self._tls: Tls | None = None
        self._held = False  # while a reply dribbles
        self._over = False  # no more replies, nothing is stored
        self._ended = False  # our half of the stream
        self.lingers = False  # what comes is not read, so the client's end is not seen
        self._open = False  # a transaction
        self._attempt: Attempt | None = None  # the last one that MAIL asked for
        self._faults: dict[str, Fault] = {}  # its plan
        self._rcpts = 0
        self._chunks: list[bytes] = []
        self._size = 0  # of the chunk
        self._last = False

    # -- the stream

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.server.open.add(self)
        self._replies("greeting", b"220 faulty.example ESMTP\r\n")
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.open.discard(self)
        visit = self.visit
        visit.closed = True
        last = visit.attempts[-1] if visit.attempts else None
        visit.abandoned = visit.sound and not self._over and last is not None and not last.settled

    def eof_received(self) -> None:
        return None  # and so the transport closes

    def data_received(self, data: bytes) -> None:
        if self._tls is not None:
            data = self._decrypted(data)
        self._buffer += data
        self._run()

    def _run(self) -> None:
        while not self._held and self._step():
            pass
        del self._buffer[: self._at]
        self._searched = max(self._searched - self._at, 0)
        self._at = 0
        self._flush()

    def _flush(self) -> None:
        if self._out:
            data = b"".join(self._out)
            self._out.clear()
            self._write(data)

    def _write(self, data: bytes) -> None:
        if not (self._ended or self.transport.is_closing()):
            self.transport.write(self._tls.encrypt(data) if self._tls else data)

    # -- commands

    def _command(self) -> bool:
        end = self._buffer.find(b"\n", self._at)
        if end < 0:
            return False
        line = bytes(self._buffer[self._at : end + 1])
        self._at = end + 1
        verb = line[:4].upper()
        if self._over:
            self._note(verb, line)
        elif handler := self.COMMANDS.get(verb):
            handler(self, line)
        else:
            self._offence(line, b"500 5.5.1 What?\r\n")
        return True

    def _offence(self, line: bytes, reply: bytes) -> None:
        self.visit.offences.append(repr(line[:80]))
        self._out.append(reply)

    def _note(self, verb: bytes, line: bytes) -> None:
        """When it is over: see what the client had handed over."""
        if verb == b"MAIL":
            self._begin(line)
        elif verb == b"BDAT":
            self._do_bdat(line)

    def _do_ehlo(self, line: bytes) -> None:
        self._open = False
        lines = ["faulty.example", *self.server.extensions]
        if self.server.tls and not self._tls:
            lines.append("STARTTLS")
        marked = [f"250-{each}\r\n" for each in lines[:-1]] + [f"250 {lines[-1]}\r\n"]
        self._replies("EHLO", "".join(marked).encode())

    def _do_helo(self, line: bytes) -> None:
        self._open = False
        self._out.append(b"250 faulty.example\r\n")

    def _do_starttls(self, line: bytes) -> None:
        if self.server.tls is None or self._tls:
            self._offence(line, b"502 5.5.1 Not here\r\n")
        elif self._replies("STARTTLS", b"220 2.0.0 Go ahead\r\n"):
            self._flush()
            self._tls = Tls(self.server.tls)
            early = bytes(self._buffer[self._at :])
            del self._buffer[self._at :]
            if early:
                self.visit.offences.append(f"in clear after STARTTLS: {early[:40]!r}")

    def _do_mail(self, line: bytes) -> None:
        if self._open:
            self._offence(line, b"503 5.5.1 Nested MAIL\r\n")
            return
        attempt = self._begin(line)
        plan = self.server.plan.for_attempt(attempt.message, attempt.number)
        self._faults = {each.step: each for each in plan}
        self._open = self._replies("MAIL", f"250 2.1.0 Ok {attempt.key}\r\n".encode())

    def _begin(self, line: bytes) -> Attempt:
        match = re.match(rb"(?i)MAIL FROM:<([^@>]*)@?[^>]*>", line)
        message = match[1].decode() if match else "?"
        before = self.server.attempts[message]
        self._attempt = attempt = Attempt(message, len(before) + 1, self.visit)
        before.append(attempt)
        self.visit.attempts.append(attempt)
        self._faults = {}
        self._rcpts = 0
        self._chunks = []
        return attempt

    def _do_rcpt(self, line: bytes) -> None:
        if not self._open:
            self._out.append(b"503 5.5.1 Need MAIL\r\n")
            return
        attempt, fault = self._attempt, self._faults.get("RCPT")
        address = line[line.index(b"<") + 1 : line.index(b">")].decode()
        usual = f"250 2.1.5 Ok {attempt.key}\r\n".encode()
        index, self._rcpts = self._rcpts, self._rcpts + 1
        if fault is None or fault.recipient != index:
            self._out.append(usual)
        elif not self._strike(fault, usual):
            if self.visit.sound:
                attempt.refused.append(address)
            return
        attempt.recipients.append(address)

    def _do_data(self, line: bytes) -> None:
        attempt = self._attempt
        if not self._open or not attempt.recipients or self._chunks:
            self._need_rcpt()
            return
        attempt.form = "DATA"
        if self._replies("DATA", f"354 Go ahead {attempt.key}\r\n".encode()):
            attempt.ready = not self._over
            self._searched = self._at
            self._step = self._content
        elif not self._over:
            self._open = False

    def _need_rcpt(self) -> None:
        self._out.append(b"503 5.5.1 Need RCPT\r\n")
        if self._attempt is not None:
            self._attempt.settled |= self.visit.sound

    def _content(self) -> bool:
        """Read to the line with the single dot (RFC 5321, section 4.1.1.4)."""
        buffer, start = self._buffer, self._at
        if len(buffer) == start or self._struck_inside():
            return False
        if buffer.startswith(b".\r\n", start):
            end = start
        else:
            end = buffer.find(b"\r\n.\r\n", max(self._searched - 4, start)) + 2
            if end == 1:
                self._searched = len(buffer)
                return False
        content = bytes(buffer[start:end])
        self._at = end + 3
        self._step = self._command
        # A dot at the head of a line is one too many (section 4.5.2).
        content = content.replace(b"\r\n.", b"\r\n")
        self._take(content[1:] if content.startswith(b".") else content)
        return True

    def _struck_inside(self) -> bool:
        fault = self._faults.pop("BODY", None)
        if fault is None or self._over:
            return self._attempt.cut
        self._attempt.cut = fault.kind not in ("5xx", "stall")
        if self._attempt.cut:
            self._read_no_more()
        self._strike(fault, f"552 5.3.4 Too long {self._attempt.key}\r\n".encode())
        return self._attempt.cut

    def _do_bdat(self, line: bytes) -> None:
        """Read a chunk (RFC 3030, section 2)."""
        words = line.split()
        self._size, self._last = int(words[1]), words[2:] == [b"LAST"]
        self._step = self._chunk
        attempt, fault = self._attempt, self._faults.get("DATA")
        if attempt is not None and (self._over or self._takes_data):
            attempt.form = "BDAT"
            if not self._over and fault and fault.kind in (BYE, *LOSSES, *STALLS):
                self._strike(fault, f"250 2.0.0 Ok {attempt.key}\r\n".encode())

    @property
    def _takes_data(self) -> bool:
        return self._open and bool(self._attempt.recipients)

    def _chunk(self) -> bool:
        taken = self._attempt is not None and (self._over or self._takes_data)
        if taken and len(self._buffer) > self._at and self._struck_inside():
            return False
        end = self._at + self._size
        if len(self._buffer) < end:
            return False
        octets = bytes(self._buffer[self._at : end])
        self._at = end
        self._step = self._command
        if not taken:
            if not self._over:
                self._need_rcpt()  # and the octets are swallowed
            return True
        self._chunks.append(octets)
        if self._last:
            content, self._chunks = b"".join(self._chunks), []
            self._take(content)
        elif not self._over:
            self._out.append(f"250 2.0.0 {self._size} octets {self._attempt.key}\r\n".encode())
        return True

    def _take(self, content: bytes) -> None:
        """Decide about a message that has come whole, and answer."""
        attempt = self._attempt
        attempt.whole = True
        if self._over:
            return
        self._open = False
        usual = f"250 2.0.0 Ok: queued as {attempt.key}\r\n".encode()
        fault = self._faults.get("FINAL")
        if attempt.form == "BDAT" and fault is None:
            fault = self._faults.get("DATA")
        if fault is None or fault.kind in (*ODD, DRIBBLE) or fault.stored:
            attempt.stored = fault is None or fault.kind not in (BYE, *REFUSALS)
            attempt.crc = zlib.crc32(content)
            named = re.match(rb"X-Ledger: (\S+)\r\n", content)
            attempt.named = named[1].decode() if named else None
        if fault is None:
            self._out.append(usual)
        else:
            self._strike(fault, usual)
        attempt.settled |= self.visit.sound
        if (after := self._faults.get("AFTER")) and not (self._over or self._held):
            self._strike(after, b"")

    def _do_rset(self, line: bytes) -> None:
        usual = b"250 2.0.0 Reset\r\n"
        if self._attempt is not None:
            self._attempt.settled |= self.visit.sound  # the client has given it up
        fault = self._faults.pop("RSET", None)
        if fault is None or self._strike(fault, usual):
            self._open = False
            if fault is None:
                self._out.append(usual)

    def _do_noop(self, line: bytes) -> None:
        self._out.append(b"250 2.0.0 Nothing done\r\n")

    def _do_quit(self, line: bytes) -> None:
        self._out.append(b"221 2.0.0 Bye\r\n")
        self._flush()
        if self._tls and not self.transport.is_closing():
            self.transport.write(self._tls.end())
        self._finish()

    COMMANDS: dict[bytes, Callable[[Conversation, bytes], None]] = {  # noqa: RUF012
        b"EHLO": _do_ehlo,
        b"HELO": _do_helo,
        b"STAR": _do_starttls,
        b"MAIL": _do_mail,
        b"RCPT": _do_rcpt,
        b"DATA": _do_data,
        b"BDAT": _do_bdat,
        b"RSET": _do_rset,
        b"NOOP": _do_noop,
        b"QUIT": _do_quit,
    }

    # -- faults

    def _replies(self, step: str, usual: bytes) -> bool:
        """Answer as usual, or as the fault has it; return whether it was a success."""
        fault = self._faults.get(step) or self._plan.get(step)
        if fault is None:
            self._out.append(usual)
            return True
        return self._strike(fault, usual)

    def _strike(self, fault: Fault, usual: bytes) -> bool:
        """Let a fault happen; return whether the server goes on as after the usual reply."""
        self.visit.faults.append(fault)
        if self._attempt is not None:
            self._attempt.faults.append(fault)
        kind, key = fault.kind, self._attempt.key if self._attempt else "connection"
        if kind == DRIBBLE:
            self._flush()
            self._held = True
            self._drip(usual, 0)
            return True
        if kind in ODD:
            self.visit.sound = self.visit.sound and fault[:2] == ("RCPT", "251")
            self._out.append(usual.replace(b"250", kind.encode(), 1))
            return True
        if kind in REFUSALS or kind == BYE:
            self._refuse(fault, key)
            return False
        self.visit.sound = False
        if kind in NONSENSE or kind == "inject":
            self._talk_nonsense(kind, usual, key)
            return True
        self._over = True
        self._flush()
        if kind == "half":
            self._write(usual[: len(usual) // 2])
        self._lose(kind)
        return False

    def _refuse(self, fault: Fault, key: str) -> None:
        text = f"{fault.step} of {key}\r\n"
        code = {
            "4xx": "450 4.2.1 Not now,",
            "5xx": "550 5.7.1 No,",
            "full": "452 4.5.3 Too many:",
            BYE: "421 4.3.2 Closing at",
        }[fault.kind]
        self._out.append(f"{code} {text}".encode())
        if self._attempt is not None and fault.step not in ("RCPT", "AFTER", "RSET"):
            self._attempt.settled |= self.visit.sound
        if fault.kind == BYE or fault.step == "BODY":
            if fault.step == "RCPT":
                self._attempt.settled |= self.visit.sound
            self.visit.sound = False
            self._over = True
            self._flush()
            self._finish()

    def _talk_nonsense(self, kind: str, usual: bytes, key: str) -> None:
        senseless = b"220" if usual.startswith(b"354") else b"354"
        text = f" Nonsense {key}\r\n".encode()
        self._out.append(
            {
                "junk": b"\x00\xff\x80 junk\r\n",
                "web": b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n",
                "wrong": senseless + text,
                "mixed": usual[:3] + b"-One\r\n" + senseless + text,
                "extra": senseless + text + usual,
                "endless": usual[:3] + b"-" + b"x" * (1 << 20),
                "inject": usual + b"250 2.0.0 Injected\r\n",
            }[kind]
        )
        if kind == "endless":
            self._over = True

    def _lose(self, kind: str) -> None:
        if kind in ("drop", "half"):
            self._finish()
        elif kind == "close":
            self.transport.close()
        elif kind == "reset":
            self._reset()
        elif kind == "deaf":
            self._read_no_more()

    def _read_no_more(self) -> None:
        self.lingers = True
        self.transport.pause_reading()
        asyncio.get_running_loop().call_later(LINGER, self.transport.abort)

    def _finish(self) -> None:
        """End the stream in order; what still comes is read."""
        self._over = True
        self._ended = True
        if not self.transport.is_closing():
            with contextlib.suppress(OSError):  # the client has reset it
                self.transport.write_eof()

    def _reset(self) -> None:
        """Send RST as soon as the kernel has what was said before."""
        if self.transport.is_closing():
            return
        if self.transport.get_write_buffer_size():
            asyncio.get_running_loop().call_later(PULSE / 4, self._reset)
            return
        linger = struct.pack("ii", 1, 0)  # l_onoff, l_linger: close() sends RST
        sock = self.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.transport.abort()

    def _drip(self, data: bytes, start: int) -> None:
        if start < len(data) and not self.transport.is_closing():
            self._write(data[start : start + 1])
            asyncio.get_running_loop().call_later(0.0003, self._drip, data, start + 1)
        else:
            self._held = False
            self._run()

    # -- TLS

    def _decrypted(self, data: bytes) -> bytes:
        """Return what a client sent under TLS; the handshake may fail by the plan."""
        if fault := self._plan.pop("TLS", None):
            self._tls = None  # the server says no more, or what is no TLS
            self._strike(fault, b"\x16\x03\x03 and no more")
            self._over = True
            return b""
        if self._over and self._tls is None:
            return b""
        data, answer = self._tls.decrypt(data)
        if answer and not self.transport.is_closing():
            self.transport.write(answer)
        if self._tls.error is not None:
            if not self._over:
                self.visit.offences.append(f"TLS broke: {self._tls.error}")
            self._over = True
            self.transport.close()
        self.visit.tls = self._tls.ready
        self.visit.resumed = self._tls.resumed
        return data


class Tls:
    """TLS between two buffers, the server's end."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self.ready = False
        self.resumed = False
        self.error: ssl.SSLError | None = None

    def decrypt(self, data: bytes) -> tuple[bytes, bytes]:
        """Return what came in clear, and what TLS itself has to send."""
        self._incoming.write(data)
        clear = []
        try:
            if not self.ready:
                self._object.do_handshake()
                self.ready = True
                self.resumed = bool(self._object.session_reused)
            while part := self._object.read(1 << 16):
                clear.append(part)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            pass  # the stream's end will follow
        except ssl.SSLError as error:
            self.error = error
        return b"".join(clear), self._outgoing.read()

    def encrypt(self, data: bytes) -> bytes:
        self._object.write(data)
        return self._outgoing.read()

    def end(self) -> bytes:
        """Return what says that no more will come."""
        with contextlib.suppress(ssl.SSLError):  # the other end has not said so
            self._object.unwrap()
        return self._outgoing.read()
