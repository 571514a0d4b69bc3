"""One non-blocking connection of a Mailer: moves the bytes of a conversation."""

import sys
from collections import deque
from selectors import EVENT_READ, EVENT_WRITE

from . import auth
from .conversation import Established, converse
from .errors import SMTPException, SMTPServerDisconnected
from .operations import NEED_REPLY, START_TLS, Send
from .protocol import Session
from .transactions import NEXT, NEXT_IF_ANY, Transaction

try:
    import ssl
except ImportError:  # pragma: no cover - a Python built without OpenSSL
    _NOT_NOW: "tuple[type[OSError], ...]" = (BlockingIOError,)
    _TO_WRITE: "tuple[type[OSError], ...]" = ()
else:
    _NOT_NOW = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
    _TO_WRITE = (ssl.SSLWantWriteError,)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .operations import Buffer, Operation
    from .pool import Pool

_RECEIVE = 16384
# Up to here, in bytes, buffers are joined rather than written by their vector,
# and this is how much goes into one call under TLS.
_JOINED = 65536
_MOST_BUFFERS = 512  # IOV_MAX is 1024 where it is known
_NEVER = float("inf")


class Link:
    """A connection, the operation that goes on over it, and what it has in flight.

    A pool gives it transactions, and is told of each that is over and of the
    connection's end: see Pool.next_for(), finished(), established(), ended().
    """

    __slots__ = (
        "_broken", "_ending", "_events", "_handshaking", "_operation", "_out", "_queued",
        "_resume", "_sent", "deadline", "delivered", "dial", "domains", "established",
        "idle_since", "in_flight", "is_exhausted", "is_tls", "limits", "mode", "number", "phase",
        "pool", "server", "session", "since", "sock", "taken", "waiting",
    )  # fmt: skip

    def __init__(self, pool: "Pool", number: int, now: float) -> None:
        self.pool = pool
        self.number = number
        self.session = Session()
        self.sock: Any = None
        #: What looks for an address to connect to, until one is found.
        self.dial: Any = None
        #: Transactions that were handed over and are not finished, in order.
        self.in_flight: deque[Transaction] = deque()
        #: The operation waits for the next transaction: the connection is idle.
        self.waiting = False
        #: When the current phase must have made progress, in the pool's seconds.
        self.deadline = _NEVER
        #: What is awaited until then, in words.
        self.phase = "connecting"
        self.since = self.idle_since = now
        self.established = False
        self.taken = self.delivered = 0
        #: Domains that recipients had in the session, where a server counts them (RFC 9422).
        self.domains: set[str] = set()
        #: By such a limit, nothing more can be sent in the session.
        self.is_exhausted = False
        self.limits: Any = None
        self.server: Any = None
        self.mode: Any = None
        self._operation: Operation[None] = converse(pool.terms, self._channel_binding)
        self._resume = self._operation.send
        self.is_tls = self._handshaking = False
        self._events = 0
        self._out: list[Buffer] = []
        self._queued = self._sent = 0  # octets, ever
        # Transactions whose last octet is among what is queued, and how far.
        self._ending: list[tuple[int, Transaction]] = []
        self._broken: Exception | None = None

    # -- what the pool does --

    def connected(self, sock: "Any") -> None:
        """Begin on a connected, non-blocking socket."""
        self.sock = sock
        self.dial = None
        self._watch(EVENT_READ)
        self._await("the greeting", self.pool.timeouts.greeting)
        self.go_on()

    def give(self, transaction: "Transaction | None") -> None:
        """End the waiting: with a transaction, or with None by saying QUIT."""
        self.waiting = False
        if transaction is not None:
            self.in_flight.append(transaction)
        self.go_on(transaction)

    def close(self) -> None:
        """Let go of the connection, whatever goes on on it."""
        self._operation.close()
        if self.sock is not None:
            if self._events:
                self.pool.selector.unregister(self.sock)
                self._events = 0
            self.sock.close()

    # -- the operation --

    def go_on(self, value: "Any" = None) -> None:
        """Resume the operation, and do what it wants until it has to wait."""
        resume, next_reply, pool = self._resume, self.session.next_reply, self.pool
        try:
            while True:
                effect = resume(value)
                value = None
                if effect is NEED_REPLY:
                    value = next_reply()
                    if value is None:
                        self._wait()
                        return
                elif type(effect) is Send:
                    self._queue(effect)
                elif type(effect) is Transaction:
                    self.in_flight.popleft()
                    pool.finished(self, effect)
                elif effect is NEXT_IF_ANY or effect is NEXT:
                    value = pool.next_for(self)
                    if value is not None:
                        self.in_flight.append(value)
                    elif effect is NEXT and not pool.is_over(self):
                        self._be_idle()
                        return
                elif effect is START_TLS:
                    self._start_tls()
                    return
                elif type(effect) is Established:
                    value = pool.established(self, effect.extensions)
        except StopIteration:
            pool.ended(self, None)
        except (SMTPException, OSError, ValueError) as error:
            pool.ended(self, self._broken or error)

    def _wait(self) -> None:
        """The operation needs a reply that is not there: write, and wait for it."""
        if self._out and self._broken is None:
            self._flush()
        if self._broken is not None:
            raise self._broken
        timeouts = self.pool.timeouts
        if self._out:
            self._await("the server to take data", timeouts.block)
        elif self.in_flight:
            if self.in_flight[0].committed:
                self._await("the reply to a message", timeouts.final)
            else:
                self._await("the replies to an envelope", timeouts.data)
        elif self.established:
            self._await("the reply to QUIT", timeouts.quit)
        elif self.session.last_reply is not None:
            self._await("the reply to a command", timeouts.command)

    def _await(self, what: str, timeout: float) -> None:
        self.phase = what
        self.deadline = self.pool.now + timeout

    def _be_idle(self) -> None:
        self.waiting = True
        self.deadline = _NEVER
        self.idle_since = self.pool.now
        self.pool.idle.append(self)

    # -- reading --

    def on_event(self, mask: int) -> None:
        """Do what the selector says can be done now."""
        if self._handshaking:
            self._shake_hands()
            return
        if mask & EVENT_WRITE and self._out:
            self._flush()
            self._await("the server to take data", self.pool.timeouts.block)
        if mask & EVENT_READ:
            self._receive()
        if self.waiting:
            self.pool.ended(self, None)  # nobody asked: it is the server's farewell, or out of step
            return
        try:
            reply = self.session.next_reply()
        except SMTPException as error:
            self.pool.ended(self, error)
            return
        if reply is not None:
            self.go_on(reply)
        elif self._broken is not None:
            self.pool.ended(self, self._broken)

    def _receive(self) -> None:
        try:
            data = self.sock.recv(_RECEIVE)
            while data:
                self.session.parser.feed(data)
                if not self.is_tls:
                    return
                data = self.sock.recv(_RECEIVE)  # the selector does not see what TLS holds
        except _NOT_NOW:
            return
        except OSError as error:
            self._broken = error
        else:
            self._broken = SMTPServerDisconnected("Connection unexpectedly closed")

    # -- writing --

    def _queue(self, effect: Send) -> None:
        """Put a flight behind what is to be written."""
        session = self.session
        if not session.owed and session.parser.pending:
            session.check_in_step()
        for buffer in effect.buffers:
            sys.audit("smtplib.send", self.pool.owner, buffer)
            self._queued += len(buffer)
        session.owed += effect.replies
        self._out += effect.buffers
        if effect.verb == ".":
            self._ending.append((self._queued, self.in_flight[0]))
        elif effect.verb == "BDAT":
            self._ending.append((self._queued, self.in_flight[-1]))

    def _flush(self) -> None:
        """Write as much as can be written now."""
        try:
            while self._out:
                sent = self._write()
                self._sent += sent
                if self._sent == self._queued:
                    self._out.clear()
                else:
                    self._drop(sent)
        except _NOT_NOW:
            pass
        except OSError as error:
            self._broken = error
            self._out.clear()
            self._receive_last_words()
        ending = self._ending
        while ending and ending[0][0] <= self._sent:
            ending.pop(0)[1].committed = True
        events = EVENT_READ | EVENT_WRITE if self._out else EVENT_READ
        if events != self._events:
            self._watch(events)

    def _write(self) -> int:
        out = self._out
        if len(out) > 1 and self._queued - self._sent <= _JOINED:
            out[:] = [b"".join(out)]
        if self.is_tls:
            # What TLS could not write must be offered again as it was.
            out[0] = memoryview(out[0])
            return self.sock.send(out[0][:_JOINED])  # type: ignore[no-any-return]
        if len(out) == 1 or not hasattr(self.sock, "sendmsg"):
            return self.sock.send(out[0])  # type: ignore[no-any-return]
        return self.sock.sendmsg(out[:_MOST_BUFFERS])  # type: ignore[no-any-return]

    def _drop(self, sent: int) -> None:
        """Forget what was sent of a queue that was not sent whole."""
        out = self._out
        whole = 0
        while sent >= len(out[whole]):
            sent -= len(out[whole])
            whole += 1
        del out[:whole]
        if sent:
            out[0] = memoryview(out[0])[sent:]

    def _receive_last_words(self) -> None:
        """After writing failed: read what the server said before, which may tell why."""
        failure = self._broken
        self._receive()
        self._broken = failure

    def _watch(self, events: int) -> None:
        if self._events:
            self.pool.selector.modify(self.sock, events, self.on_event)
        else:
            self.pool.selector.register(self.sock, events, self.on_event)
        self._events = events

    # -- TLS --

    def _start_tls(self) -> None:
        self.session.start_tls()
        self.pool.selector.unregister(self.sock)
        self._events = 0
        self.sock = self.pool.wrap(self.sock)
        self.is_tls = self._handshaking = True
        self._await("the TLS handshake", self.pool.timeouts.command)
        self._shake_hands()

    def _shake_hands(self) -> None:
        try:
            self.sock.do_handshake()
        except _NOT_NOW as wanted:
            self._watch(EVENT_WRITE if isinstance(wanted, _TO_WRITE) else EVENT_READ)
            return
        except (OSError, ValueError) as error:
            self.pool.ended(self, error)
            return
        self._handshaking = False
        self._watch(EVENT_READ)
        self.go_on()

    @property
    def tls_session(self) -> "Any":
        """What another connection may resume the TLS session by, or None."""
        return self.sock.session if self.is_tls and not self._handshaking else None

    def _channel_binding(self) -> "tuple[str, bytes] | None":
        return auth.channel_binding(self.sock)
