"""One non-blocking connection of a Mailer: moves the bytes of a conversation."""

import sys
from collections import deque
from selectors import EVENT_READ, EVENT_WRITE

from . import auth
from .conversation import Established, converse, transactions
from .errors import SMTPException, SMTPProtocolError, SMTPServerDisconnected
from .operations import NEED_REPLY, Send, Signal
from .protocol import Session
from .transactions import NEXT, NEXT_IF_ANY, Expect, Transaction

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
    from collections.abc import Callable
    from typing import Any

    from .operations import Buffer, Operation
    from .pool import Pool

_RECEIVE = 16384
# Up to here, in bytes, buffers are joined rather than written by their vector,
# and this is how much goes into one call under TLS.
_JOINED = 65536
_MOST_BUFFERS = 512  # IOV_MAX is 1024 where it is known
# Reads of what a server has still said when writing fails.
_LAST_WORDS = 64
_NEVER = float("inf")
# What doing an effect returns if the operation is to be resumed by an event.
_WAIT = object()


class Link:
    """A connection, the operation that goes on over it, and what it has in flight.

    A pool gives it transactions, and is told of each that is over and of the
    connection's end: see Pool.next_for(), finished(), established(), ended().
    """

    __slots__ = (
        "_broken", "_ending", "_events", "_expected", "_handshaking", "_operation", "_out",
        "_queued", "_resume", "_sent", "deadline", "delivered", "dial", "domains", "established",
        "idle_since", "in_flight", "is_leaving", "is_tls", "limits", "mode", "most", "number",
        "phase", "pool", "server", "session", "since", "sock", "taken", "waiting", "was_dismissed",
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
        self.established = self.is_leaving = self.was_dismissed = False
        self.taken = self.delivered = 0
        #: Domains that recipients had in the session, where a server counts them (RFC 9422).
        self.domains: set[str] = set()
        #: How many transactions there may be in the session.
        self.most = 0
        self.limits: Any = None
        self.server: Any = None
        self.mode: Any = None
        self._operation: Operation[None] = converse(pool.terms, self._channel_binding)
        self._resume = self._operation.send
        self.is_tls = self._handshaking = False
        self._events = 0
        self._expected: Expect | None = None
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
        if self.dial is not None:
            self.dial.close()
        if self.sock is not None:
            if self._events:
                self.pool.selector.unregister(self.sock)
                self._events = 0
            self.sock.close()

    # -- the operation --

    def go_on(self, value: "Any" = None) -> None:
        """Resume the operation, and do what it wants until it has to wait."""
        try:
            while value is not _WAIT:
                effect = self._resume(value)
                value = _DO[type(effect)](self, effect)
        except StopIteration as end:
            self._leave(end.value)
        except Exception as error:
            self.pool.ended(self, self._broken or error)
            if self.established and not isinstance(error, (SMTPException, OSError)):
                raise  # else a caller's function for the password may have raised it

    def _obey(self, signal: Signal) -> "Any":
        if signal is NEXT_IF_ANY or signal is NEXT:
            transaction = self.pool.next_for(self)
            if transaction is not None:
                self.in_flight.append(transaction)
            elif signal is NEXT and not self.pool.is_over(self):
                return self._be_idle()
            return transaction
        if signal is NEED_REPLY:
            reply = self.session.next_reply()
            return self._wait() if reply is None else reply
        return self._start_tls()

    def _expect(self, expected: Expect) -> "Any":
        """Take what is expected; wait, if nothing is there."""
        session = self.session
        if not session.parser.pending:
            self._expected = expected
            return self._wait()
        texts = session.parser.take_replies(expected.codes)
        if texts is not None:
            session.owed -= len(texts)
        return texts

    def _finish(self, transaction: Transaction) -> None:
        taken = transaction.final is not None or transaction.outcome.delivered
        if taken and not transaction.committed:
            raise SMTPProtocolError("the server accepted a message before it had all of it")
        self.in_flight.popleft()
        self.pool.finished(self, transaction)

    def _begin_transactions(self, established: Established) -> None:
        self.session.secrets = established.secrets
        self.pool.established(self, established.extensions)
        self._resume = transactions(self.mode).send

    def _leave(self, in_step: "bool | None") -> None:
        """The operation is at its end: after the transactions QUIT is left."""
        if in_step is None:
            self.pool.ended(self, None)
        else:
            self.is_leaving = True
            self._resume = self._operation.send
            self.go_on(in_step)

    def _wait(self) -> object:
        """The operation needs a reply that is not there: write, and wait for it."""
        if self._out and self._broken is None:
            self._flush()
        if self._broken is not None:
            value = self._awaited()  # it may have come before the connection broke
            if value is _WAIT:
                raise self._broken
            return value
        self._set_deadline()
        return _WAIT

    def _set_deadline(self) -> None:
        """Begin the phase that comes now; its time runs from here."""
        pool = self.pool
        if self._out:
            self._await("the server to take data", pool.timeouts.block)
        elif self.in_flight:
            if self.in_flight[0].committed:
                self._await("the reply to a message", pool.timeouts.final)
            else:
                self._await("the replies to an envelope", pool.timeouts.data)
        elif self.established:
            self._await("the reply to QUIT", pool.timeouts.quit)
        elif self.session.last_reply is not None:
            self._await("the reply to a command", pool.timeouts.command)

    def _await(self, what: str, timeout: float) -> None:
        self.phase = what
        self.deadline = self.pool.now + timeout

    def _be_idle(self) -> object:
        self.waiting = True
        self.deadline = _NEVER
        self.idle_since = self.pool.now
        self.pool.idle.append(self)
        return _WAIT

    # -- reading --

    def on_event(self, mask: int) -> None:
        """Do what the selector says can be done now."""
        if not self._events:
            return  # closed since it was selected
        if self._handshaking:
            self._shake_hands()
            return
        if mask & EVENT_WRITE and self._out:
            self._flush()
            self._set_deadline()
        if mask & EVENT_READ:
            self._receive()
        if not self.waiting:
            self._take_what_came()
        elif self.session.parser.pending or self._broken is not None:
            # Nobody asked: it is the server's farewell, or it is out of step.
            self.pool.ended(self, None)

    def _take_what_came(self) -> None:
        try:
            reply = self._awaited()
        except SMTPException as error:
            self.pool.ended(self, error)
            return
        if reply is not _WAIT:
            owed, deadline = self.session.owed, self.deadline
            self.go_on(reply)
            if self.session.owed == owed and reply is None:
                self.deadline = deadline  # a part of a reply is no progress
        elif self._broken is not None:
            self.pool.ended(self, self._broken)

    def _awaited(self) -> "Any":
        """Return what the operation waits for, if it has come."""
        expected, session = self._expected, self.session
        if expected is None:
            reply = session.next_reply()
            return _WAIT if reply is None else reply
        if not session.parser.pending:
            return _WAIT
        self._expected = None
        return self._expect(expected)

    def _receive(self) -> None:
        try:
            data = self.sock.recv(_RECEIVE)
            while data:
                self.session.parser.feed(data)
                if not (self.is_tls and self.sock.pending()):
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
        session, buffers = self.session, effect.buffers
        if not session.owed and session.parser.pending:
            session.check_in_step()
        session.owed += effect.replies
        if effect.verb == ".":
            message = len(buffers[0])  # it comes first, in two buffers; or it is a lone dot
            if len(buffers) > 1:
                message += len(buffers[1])
            self._ending.append((self._queued + message, self.in_flight[0]))
        size = sum(map(len, buffers))
        self._queued += size
        if effect.verb == "BDAT":
            self._ending.append((self._queued, self.in_flight[-1]))
        if size <= _JOINED:
            flight = b"".join(buffers)
            sys.audit("smtplib.send", self.pool.owner, flight)
            self._out.append(flight)
            return
        for buffer in buffers:
            sys.audit("smtplib.send", self.pool.owner, buffer)
        self._out += buffers

    def _flush(self) -> None:
        """Write as much as can be written now."""
        out = self._out
        try:
            while out:
                sent = self._write(out)
                self._sent += sent
                if self._sent == self._queued:
                    out.clear()
                else:
                    self._drop(sent)
        except _NOT_NOW:
            pass
        except OSError as error:
            self._broken = error
            out.clear()
            self._receive_last_words()
        ending = self._ending
        while ending and ending[0][0] <= self._sent:
            ending.pop(0)[1].committed = True
        events = EVENT_READ | EVENT_WRITE if out else EVENT_READ
        if events != self._events:
            self._watch(events)

    def _write(self, out: "list[Buffer]") -> int:
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
        failure, self._broken = self._broken, None
        for _ in range(_LAST_WORDS):
            if self._broken is None:
                self._receive()
        self._broken = failure

    def _watch(self, events: int) -> None:
        if self._events:
            self.pool.selector.modify(self.sock, events, self.on_event)
        else:
            self.pool.selector.register(self.sock, events, self.on_event)
        self._events = events

    # -- TLS --

    def _start_tls(self) -> object:
        self.session.start_tls()
        self.pool.selector.unregister(self.sock)
        self._events = 0
        self.sock = self.pool.wrap(self.sock)
        self.is_tls = self._handshaking = True
        self._await("the TLS handshake", self.pool.timeouts.command)
        self._shake_hands()
        return _WAIT

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
        if self.session.last_reply is None:
            self._await("the greeting", self.pool.timeouts.greeting)
        self.go_on()

    @property
    def tls_session(self) -> "Any":
        """What another connection may resume the TLS session by, or None."""
        return self.sock.session if self.is_tls and not self._handshaking else None

    def _channel_binding(self) -> "tuple[str, bytes] | None":
        return auth.channel_binding(self.sock)


#: How each kind of effect is done: what it returns resumes the operation.
_DO: "dict[type, Callable[[Link, Any], Any]]" = {
    Expect: Link._expect,
    Send: Link._queue,
    Transaction: Link._finish,
    Signal: Link._obey,
    Established: Link._begin_transactions,
}
