"""The engine of a Mailer: jobs, connections and timers, on one selector."""

import heapq
import itertools
import random
import socket
import sys
import time
from collections import deque
from selectors import EVENT_READ, DefaultSelector
from typing import NamedTuple

from .conversation import Mode
from .delivery import Totals
from .dial import Dialer
from .errors import (
    SMTPException,
    SMTPNotSupportedError,
    SMTPResponseException,
    SMTPServerDisconnected,
)
from .jobs import AGAIN, DONE, Job
from .link import Link
from .options import Limits, parse_limits
from .outgoing import Server
from .pace import Backoff

try:
    import ssl
except ImportError:  # pragma: no cover - a Python built without OpenSSL
    _NOT_TRUSTED: "tuple[type[Exception], ...]" = ()
else:
    _NOT_TRUSTED = (ssl.SSLCertVerificationError,)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .conversation import Terms
    from .delivery import Delivery
    from .dial import SocketFactory
    from .options import Options
    from .pace import Rate
    from .transactions import StrictOutcome, Transaction

# Seconds between looks at the timers: how exact timeouts are.
_TICK = 0.05
# Seconds before a second attempt to connect; the pauses that follow are longer.
_FIRST_PAUSE = 0.5
_MOST_NOTES = 100
_NO_LIMIT = 1 << 62
_NO_LIMITS = Limits()
#: The replies that say "I do not know what you want".
_NOT_UNDERSTOOD = (500, 501, 502, 503, 504)


class Timeouts(NamedTuple):
    """How long to wait for each step, in seconds.

    No more than RFC 5321, section 4.5.3.2, says: 300 for the greeting and for a
    command, 120 for the reply to DATA, 180 for a block of data to be taken, 600
    for the reply to the message.
    """

    connect: float = 30.0
    greeting: float = 60.0
    command: float = 60.0
    data: float = 60.0
    block: float = 60.0
    final: float = 600.0
    quit: float = 5.0


class Policy(NamedTuple):
    """How a pool goes about it: see Mailer."""

    connections: int
    max_messages: "int | None"
    max_age: float
    idle_timeout: float
    rate: "Rate | None"
    pipelining: bool
    chunking: bool
    depth: int
    timeouts: Timeouts
    retries: int
    retry_delay: float
    resend_unknown: bool
    options: "Options | None"
    connect_attempts: int


class Pool:
    """Connections to one server, and the jobs for them.

    One thread at a time calls step(); submit(), call_soon() and stop() may be
    called from any, and from signal handlers.
    """

    def __init__(
        self,
        owner: object,
        terms: "Terms",
        policy: Policy,
        *,
        context: "ssl.SSLContext | None",
        server_hostname: "str | None",
        source_address: "tuple[str, int] | None" = None,
        socket_factory: "SocketFactory | None" = None,
    ) -> None:
        #: Whose events audit hooks see.
        self.owner = owner
        self.terms = terms
        self.policy = policy
        self.timeouts = policy.timeouts
        self.totals = Totals()
        self.selector = DefaultSelector()
        #: The time, in seconds, as of the last step.
        self.now = time.monotonic()
        self.queue: deque[Job] = deque()
        self.stopping = False
        #: Why no connection can be had, once it is certain.
        self.failure: Exception | None = None
        #: Why no further connection can be had, while there are some.
        self._refusal: Exception | None = None
        self.backoff = Backoff(policy.connections, base=_FIRST_PAUSE)
        self._closed = False
        # Attempts to connect that failed, in a row.
        self._failures = 0
        self.links: set[Link] = set()
        self.idle: list[Link] = []
        self._later: list[tuple[float, int, Job]] = []
        self._numbers = itertools.count(1)
        self._reached = False  # a session was once established
        self._next_tick = self.now
        self._context = context
        self._server_hostname = server_hostname
        self._tls_session: Any = None
        #: What the server has shown that it can do, and what it cannot.
        self._proven: set[str] = set()
        self._broken: set[str] = set()
        self._posted: deque[Callable[[], None]] = deque()
        self._waker, self._woken = socket.socketpair()
        self._waker.setblocking(False)
        self._woken.setblocking(False)
        self.selector.register(self._woken, EVENT_READ, self._on_wake)
        self._dialer = Dialer(
            terms.host,
            terms.port,
            selector=self.selector,
            clock=lambda: self.now,
            call_soon=self.call_soon,
            timeout=policy.timeouts.connect,
            source_address=source_address,
            socket_factory=socket_factory,
        )

    # -- from any thread --

    def submit(self, job: Job) -> None:
        """Hand in a job, before those that are waiting already."""
        self.queue.appendleft(job)
        self.wake()

    def call_soon(self, call: "Callable[[], None]") -> None:
        """Have something called by the thread that drives."""
        self._posted.append(call)
        self.wake()
        if self._closed:
            self._call_posted()  # nobody drives any more

    def stop(self) -> None:
        """Begin nothing more; what is in flight is finished."""
        self.stopping = True
        self.wake()

    def wake(self) -> None:
        """Have the thread that drives look around."""
        try:
            self._waker.send(b".")
        except OSError:
            pass  # full of wake-up calls already, or closed

    def _on_wake(self, mask: int) -> None:
        try:
            while self._woken.recv(4096):
                pass
        except BlockingIOError:
            pass
        self._call_posted()

    def _call_posted(self) -> None:
        while self._posted:
            self._posted.popleft()()

    # -- driving --

    def read_clock(self) -> float:
        """Return the time, in seconds."""
        return time.monotonic()

    def recover(self) -> None:
        """Before a new call: let an earlier failure be no reason not to try."""
        if self.failure is not None:
            self.failure = self._refusal = None
            self._failures = 0
            self.backoff = Backoff(self.policy.connections, base=_FIRST_PAUSE)

    def step(self, *, patient: bool = True) -> None:
        """Wait for something to happen, for a moment at most, and see to it.

        What has happened already is seen to, without waiting, if not *patient*.
        """
        if self._closed:
            self.clear(None)
            return
        events = self.selector.select(self._patience() if patient else 0.0)
        self.now = now = time.monotonic()
        for key, mask in events:
            key.data(mask)
        if now >= self._next_tick:
            self._next_tick = now + _TICK
            self._look_at_timers()
        if self.stopping or self.failure is not None:
            self.clear(self.failure)
        elif self.queue:
            self._give_to_idle()
            self._open()

    def _patience(self) -> float:
        # Connections that stood idle are looked at, without waiting, before they are used.
        if not self.queue or (self.links and not self.idle):
            return _TICK
        now, rate = time.monotonic(), self.policy.rate
        wait = 0.0 if self.links else self.backoff.not_before - now
        if self.links and rate is not None:
            wait = rate.wait(now)
        return max(0.0, min(wait, _TICK))

    def _look_at_timers(self) -> None:
        now = self.now
        for link in list(self.links):
            if link.dial is not None:
                link.dial.tick()
            if now >= link.deadline:
                self.ended(link, TimeoutError(f"timed out: {link.phase}"))
            elif link.waiting and now - link.idle_since >= self.policy.idle_timeout:
                self._dismiss(link)
        while self._later and self._later[0][0] <= now:
            self.queue.appendleft(heapq.heappop(self._later)[2])

    def _give_to_idle(self) -> None:
        while self.queue and self.idle:
            link = self.idle.pop()
            transaction = self.next_for(link)
            if transaction is None and not self.is_over(link):
                self.idle.append(link)  # the rate does not allow it yet
                return
            link.give(transaction)

    def _dismiss(self, link: Link) -> None:
        self.idle.remove(link)
        link.give(None)

    def clear(self, error: "Exception | None") -> None:
        """Give up all jobs that are not in flight, and connections that are not used."""
        # Other threads may add to the queue meanwhile.
        jobs = [self.queue.popleft() for _ in range(len(self.queue))]
        jobs += [job for _, _, job in self._later]
        self._later.clear()
        for job in jobs:
            job.give_up(error)
            self._report(job)
        for link in list(self.links):
            if link.waiting:
                self._dismiss(link)
            elif not link.established:
                self.forget(link)

    def cancel(self, report: "Callable[[Delivery], object]") -> None:
        """Give up the jobs of one reporter that are not in flight."""
        queued = [self.queue.popleft() for _ in range(len(self.queue))]
        self.queue.extendleft(job for job in reversed(queued) if job.report != report)
        later = [item for item in self._later if item[2].report == report]
        self._later = [item for item in self._later if item[2].report != report]
        heapq.heapify(self._later)
        for job in [*queued, *(job for _, _, job in later)]:
            if job.report == report:
                job.give_up()
                self._report(job)
        for link in self.links:
            for transaction in link.in_flight:
                if transaction.job.report == report:
                    transaction.job.retries = 0  # nobody waits for a later attempt

    def forget(self, link: Link) -> None:
        """Close a connection without a word."""
        self.links.discard(link)
        if link.waiting:
            self.idle.remove(link)
        link.close()

    def close(self) -> None:
        """Close everything at once."""
        self._closed = True
        for link in list(self.links):
            self.forget(link)
        self.selector.close()
        self._waker.close()
        self._woken.close()
        self._call_posted()  # a socket that somebody made meanwhile is closed

    # -- connections --

    def _open(self) -> None:
        """Open connections, as many as are needed and allowed.

        The first one goes ahead alone: the others need not fail as it does,
        and can resume its TLS session.
        """
        if self.idle or self.now < self.backoff.not_before or (self._refusal and self.links):
            return
        allowed = self.backoff.limit if self._reached else 1
        if len(self.links) >= allowed:
            return
        opening = sum(not link.established for link in self.links)
        wanted = min(allowed - len(self.links), len(self.queue) - opening)
        for _ in range(wanted):
            link = Link(self, next(self._numbers), self.now)
            self.links.add(link)
            link.deadline = self.now + self.timeouts.connect
            sys.audit("smtplib.connect", self.owner, self.terms.host, self.terms.port)
            link.dial = self._dialer.dial(self._connected_to(link))

    def _connected_to(
        self, link: Link
    ) -> "Callable[[socket.socket | None, Exception | None], None]":
        def done(sock: "socket.socket | None", error: "Exception | None") -> None:
            if sock is None:
                self.ended(link, error)
            else:
                link.connected(sock)

        return done

    def wrap(self, sock: socket.socket) -> "Any":
        """Return a socket with TLS on it, that resumes the last session there was."""
        assert self._context is not None
        sock.getpeername()  # raises if it was reset: ssl would, too, and never close it
        return self._context.wrap_socket(
            sock,
            server_hostname=self._server_hostname,
            do_handshake_on_connect=False,
            session=self._tls_session,
        )

    def established(self, link: Link, extensions: "dict[str, str]") -> None:
        """Take what a server offers, and decide how transactions are to go."""
        policy, terms = self.policy, self.terms
        pipelining = policy.pipelining and "pipelining" in extensions
        chunking = policy.chunking and "chunking" in extensions and not terms.lmtp
        link.mode = mode = Mode(
            pipelining and "PIPELINING" not in self._broken,
            chunking and "CHUNKING" not in self._broken,
            policy.depth,
        )
        link.server = Server(
            extensions,
            pipelined=mode.pipelining,
            chunked=mode.pipelining and mode.chunking,
            lmtp=terms.lmtp,
            tls=self._is_verified(link),
        )
        if "limits" in extensions:
            link.limits = parse_limits(extensions["limits"])
        link.established = self._reached = True
        self._failures = 0
        self.totals.connections += 1
        link.most = min(
            policy.max_messages or _NO_LIMIT, (link.limits or _NO_LIMITS).mail_max or _NO_LIMIT
        )
        self._tls_session = link.tls_session or self._tls_session
        self.backoff.succeeded(self.now)

    def _is_verified(self, link: Link) -> bool:
        return (
            link.is_tls
            and self._context is not None
            and self._context.verify_mode.name == ("CERT_REQUIRED")
        )

    def is_over(self, link: Link) -> bool:
        """Say whether a connection is to get no more transactions."""
        return (
            self.stopping
            or link.taken >= link.most
            or self.now - link.since >= self.policy.max_age
            or (len(self.links) > self.backoff.limit and self._too_many())
        )

    def _too_many(self) -> bool:
        # Those that are being opened may come to nothing.
        count = sum(link.established and not link.is_leaving for link in self.links)
        return count > self.backoff.limit

    def ended(self, link: Link, error: "Exception | None") -> None:
        """Take that a connection has come to its end, in order or by *error*."""
        lost = list(link.in_flight)
        self._tls_session = link.tls_session or self._tls_session
        self.forget(link)
        if not lost and (error is None or link.is_leaving):
            return
        if not link.established:
            self._not_established(error or SMTPServerDisconnected("Connection closed"))
            return
        if error is None or link.was_dismissed:
            # What it has not answered after that it has not taken (RFC 5321, section 3.8).
            error = SMTPServerDisconnected("Connection closed by the server")
            for transaction in lost:
                transaction.committed = False
        elif not link.delivered and link.mode.pipelining:
            self._suspect(link, error)
        if not link.delivered:
            self.backoff.failed(self.now)
        for transaction in lost:
            job = transaction.job
            self._go_on(job, job.lose(transaction, error, self.policy.resend_unknown))

    def _not_established(self, error: Exception) -> None:
        """Take that a connection failed before its first transaction."""
        if self.now >= self.backoff.not_before:  # several that fail at a time are one failure
            self._failures += 1
        self.backoff.failed(self.now)
        if _is_final(error):
            self._refusal = error
        if any(link.established for link in self.links):
            return  # those that there are may do
        if self._refusal or self._failures >= self.policy.connect_attempts:
            self.failure = error
        else:
            self._note(f"no connection ({error}): trying again")

    def _note(self, text: str) -> None:
        """Note what the run should say, once."""
        if text not in self.totals.notes and len(self.totals.notes) < _MOST_NOTES:
            self.totals.notes.append(text)

    def _suspect(self, link: Link, error: Exception) -> None:
        """Go on without what was in use when a connection broke, unless it has worked before."""
        feature = "CHUNKING" if link.server.chunked else "PIPELINING"
        if feature not in self._proven and feature not in self._broken:
            self._broken.add(feature)
            self._note(
                f"the connection broke while {feature} was used ({error}): going on without it"
            )

    # -- transactions --

    def next_for(self, link: Link) -> "Transaction | None":
        """Return the next transaction for a connection, or None if there is none for it now."""
        policy, queue = self.policy, self.queue
        if not queue or self.is_over(link):
            return None
        if link.in_flight and link.server.chunked and "CHUNKING" not in self._proven:
            return None  # one at a time, until it is known to work
        while queue:
            if policy.rate is not None and not policy.rate.take(self.now):
                return None
            job = queue.popleft()
            try:
                transaction = job.transaction(
                    link.server, policy.options, link.limits, link.domains
                )
            except Exception as error:  # what the caller's objects raise is theirs to know
                job.give_up(error)
                self._report(job)
                continue
            if transaction is None:
                queue.appendleft(job)
                link.most = 0  # for this session: RCPTDOMAINMAX
                return None
            job.connection = link.number
            link.taken += 1
            return transaction
        return None

    def finished(self, link: Link, transaction: "Transaction") -> None:
        """Take a transaction that is over."""
        job = transaction.job
        final = transaction.final
        if final is not None or transaction.outcome.delivered:
            if not link.delivered:
                self._proven.add("CHUNKING" if link.server.chunked else "PIPELINING")
            link.delivered += 1
            if final is not None and job.positions is None:
                delivery = job.accepted(final, self.now)
                self.totals.add(delivery, job.octets, self.now)
                job.report(delivery)
                return
        elif link.server.chunked and self._is_misunderstood(transaction.outcome):
            job.attempts -= 1
            link.most = 0  # this session goes by BDAT to its end
            self._go_on(job, AGAIN)
            return
        elif transaction.outcome.last.code == 421:
            link.was_dismissed = True
            if not link.delivered:
                self.backoff.failed(self.now)  # else it may just be enough for one connection
        self._go_on(job, job.settle(transaction))

    def _is_misunderstood(self, outcome: "StrictOutcome") -> bool:
        """Say whether the server offered CHUNKING and does not know BDAT; then do without."""
        if not outcome.accepted or outcome.last.code not in _NOT_UNDERSTOOD:
            return False
        if "CHUNKING" in self._proven:
            return False
        if "CHUNKING" not in self._broken:
            self._broken.add("CHUNKING")
            self._note(
                f"the server offers CHUNKING, but answers BDAT with {outcome.last.code} "
                f"{outcome.last.text.decode('utf-8', 'replace')}: going on without it"
            )
        return True

    def _go_on(self, job: Job, verdict: str) -> None:
        if verdict is DONE:
            self._report(job)
        elif verdict is AGAIN:
            self.queue.appendleft(job)
        else:
            delay = self.policy.retry_delay * (1 + random.random() / 4)
            heapq.heappush(self._later, (self.now + delay, next(self._numbers), job))

    def _report(self, job: Job) -> None:
        delivery = job.delivery(self.now)
        self.totals.add(delivery, job.octets, self.now)
        job.report(delivery)


def _is_final(error: Exception) -> bool:
    """Say whether to connect again would be in vain."""
    if isinstance(error, SMTPResponseException):
        return error.smtp_code >= 500
    if isinstance(error, socket.gaierror):
        return error.errno == socket.EAI_NONAME
    if isinstance(error, (SMTPNotSupportedError, *_NOT_TRUSTED)):
        return True
    if type(error) is SMTPException:  # no mechanism in common, or challenges without end
        return True
    return not isinstance(error, (SMTPException, OSError))
