"""Mailer: many messages over many connections to one server, in one thread."""

import math
import signal
import socket
import threading
from collections import deque
from collections.abc import Sized
from email.message import Message as EmailMessage

from .auth import STRONGEST_FIRST, candidates
from .compat import host_name
from .conversation import Credentials, Terms
from .jobs import Job
from .options import Options
from .outgoing import Message
from .pace import Rate
from .pool import Policy, Pool, Timeouts

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from types import FrameType
    from typing import Any, Literal

    from typing_extensions import Self

    from .delivery import Delivery, Totals
    from .dial import SocketFactory
    from .message import AnyMessage

    AnyOutgoing = Message | AnyMessage
    Secret = str | Callable[[], str]
    TLS = Literal["starttls", "implicit", "opportunistic", "none"]

#: The longest that RFC 5321, section 4.5.3.2, has a client wait, in seconds.
_CEILINGS = Timeouts(300.0, 300.0, 300.0, 120.0, 180.0, 600.0, 300.0)
_DEFAULT_TIMEOUTS = Timeouts()
_TLS = ("starttls", "implicit", "opportunistic", "none")
# Seconds for which messages are pulled before those that were are seen to.
_PULLING = 0.005
# Messages that are held for a later attempt, before no further ones are pulled.
_MOST_OUTSTANDING = 10_000


class Mailer:
    """Sends messages over a pool of connections to one server.

    Nothing is connected before the first message.  Connections are opened as
    they are needed, are used again, and are closed by close(), or at the end
    of a ``with`` block.

    *host* and *port*: the server; ``"host:port"`` and the path of a Unix socket
    are taken, too.  Without a port it is 465 or 587 as *tls* says, else 25.

    *tls*: ``"implicit"``, ``"starttls"`` (required), ``"opportunistic"`` (used
    if offered), ``"none"``.  If None: ``implicit`` on port 465, ``starttls`` on
    587, ``none`` on a loopback address or a Unix socket, else
    ``opportunistic``.  Certificates are verified by *context*,
    ssl.create_default_context() if None, against *server_hostname*, or *host*.

    *username* with *password*, or with a *token* for OAUTHBEARER and XOAUTH2:
    the secret is a str, or a function that returns one and is called for each
    connection.  *mechanisms* are SASL mechanisms in the order to try them; if
    None, the strongest first.  Credentials are not sent without TLS, unless
    *cleartext_auth* is true.

    *protocol* is ``"smtp"`` or ``"lmtp"`` (RFC 2033).  *local_hostname* is the
    name for EHLO; looked up if None.

    *connections* is the most there are at a time; fewer are used for a while
    after a server has refused some, or said 421.  *max_messages_per_connection*
    (None: no limit but the server's), *max_connection_age* and *idle_timeout*,
    both in seconds, say when one is closed.  *rate* is the most messages a
    second, at an even pace.

    *pipelining*: send each message with the next one's envelope (RFC 2920).
    *chunking*: send by BDAT (RFC 3030), up to *depth* messages in flight on one
    connection.  Each is used if the server offers it, and given up for the rest
    of the run if the first attempt at it breaks; Totals.notes then says so.

    *timeouts* are seconds for each step, see Timeouts; a number is for all,
    within the RFC's limits.  *retries* is how often what was deferred is tried
    again, after *retry_delay* seconds.  *resend_unknown* has messages of which
    it is unknown whether they were taken sent again: some may arrive twice.
    *connect_attempts* failures in a row to open a first connection end it.

    *options* are for messages that have none of their own.  *source_address*
    is as in socket.create_connection(), and *socket_factory* is called instead
    of it, in a thread: ``socket_factory((host, port), timeout, source_address)``.

    Raises ValueError or TypeError for arguments that cannot be right.

    Audit events: ``smtplib.connect`` with the Mailer, host and port for each
    connection, ``smtplib.send`` with the Mailer and the data for each write.
    """

    def __init__(
        self,
        host: str = "localhost",
        port: int = 0,
        *,
        username: "str | None" = None,
        password: "Secret | None" = None,
        token: "Secret | None" = None,
        mechanisms: "Sequence[str] | None" = None,
        tls: "TLS | None" = None,
        context: "ssl.SSLContext | None" = None,
        server_hostname: "str | None" = None,
        cleartext_auth: bool = False,
        protocol: "Literal['smtp', 'lmtp']" = "smtp",
        local_hostname: "str | None" = None,
        connections: int = 4,
        max_messages_per_connection: "int | None" = None,
        max_connection_age: float = 300.0,
        idle_timeout: float = 60.0,
        rate: "float | None" = None,
        pipelining: bool = True,
        chunking: bool = True,
        depth: int = 8,
        timeouts: "Timeouts | float" = _DEFAULT_TIMEOUTS,
        retries: int = 0,
        retry_delay: float = 60.0,
        resend_unknown: bool = False,
        connect_attempts: int = 5,
        options: "Options | None" = None,
        source_address: "tuple[str, int] | None" = None,
        socket_factory: "SocketFactory | None" = None,
    ) -> None:
        if protocol not in ("smtp", "lmtp"):
            raise ValueError(f"protocol={protocol!r} is not 'smtp' or 'lmtp'")
        host, port = _host_and_port(host, port)
        protection = _chosen_tls(tls, host, port)
        if context is None and protection != "none":
            import ssl

            context = ssl.create_default_context()
        policy = Policy(
            connections=_whole("connections", connections, 1),
            max_messages=None
            if max_messages_per_connection is None
            else _whole("max_messages_per_connection", max_messages_per_connection, 1),
            max_age=_seconds("max_connection_age", max_connection_age),
            idle_timeout=_seconds("idle_timeout", idle_timeout),
            rate=None if rate is None else Rate(rate),
            pipelining=pipelining,
            chunking=chunking,
            depth=_whole("depth", depth, 1),
            timeouts=_checked_timeouts(timeouts),
            retries=_whole("retries", retries, 0),
            retry_delay=_seconds("retry_delay", retry_delay),
            resend_unknown=resend_unknown,
            options=_checked_options(options),
            connect_attempts=_whole("connect_attempts", connect_attempts, 1),
        )
        terms = Terms(
            local_hostname=local_hostname or host_name(socket),
            tls=protection,
            lmtp=protocol == "lmtp",
            credentials=_credentials(username, password, token, mechanisms, cleartext_auth),
            host=host,
            port=port or _default_port(protection, protocol),
        )
        self._pool = Pool(
            self,
            terms,
            policy,
            context=context,
            server_hostname=server_hostname or host,
            source_address=source_address,
            socket_factory=socket_factory,
        )
        self._turn = threading.Condition()
        self._leader: int | None = None  # the thread that drives
        self._followers = 0  # threads that wait for another one to drive
        self._closed = False
        self._interrupted = False
        #: The main thread is in the middle of work that Ctrl-C must not tear apart.
        self.holds_interrupts = False
        #: Deliveries that nobody took: of a send_many() that was left early.
        self.unclaimed: list[Delivery] = []

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        terms = self._pool.terms
        return f"<Mailer for {terms.host}:{terms.port}, {len(self._pool.links)} connections>"

    @property
    def totals(self) -> "Totals":
        """What this Mailer has done so far."""
        return self._pool.totals

    # -- sending --

    def send_many(self, messages: "Iterable[AnyOutgoing]") -> "Iterator[Delivery]":
        """Send messages and yield one Delivery for each, as they come to their ends.

        *messages* are pulled as they are needed, in the thread that iterates
        over the result; a few for each connection are held at a time.

        After stop(), or Ctrl-C in the main thread, what is in flight is
        finished, and the rest is ``not_sent``: all of a list, or what was pulled
        of an iterator, which is pulled no further.  After Ctrl-C
        KeyboardInterrupt is raised at the end.

        Raises, also at the end, why no connection could be had: OSError,
        ssl.SSLError, SMTPAuthenticationError or another SMTPException; and
        what *messages* raised.  ValueError if the Mailer is closed, TypeError
        for one message instead of many.
        """
        if isinstance(messages, (Message, EmailMessage, str, bytes)):
            raise TypeError("send_many() takes an iterable of messages; send() takes one")
        self._check_open()
        self._pool.recover()
        return self._run(_Run(self._pool, messages))

    def send(self, message: "AnyOutgoing") -> "Delivery":
        """Send one message and return its Delivery.

        May be called from several threads at a time; they share the
        connections.  Raises ValueError if the Mailer is closed.
        """
        self._check_open()
        self._pool.recover()
        box: list[Delivery] = []
        pool = self._pool
        pool.submit(Job(message, box.append, pool.policy.retries, pool.read_clock()))
        with _Interrupts(self):
            self._drive(lambda: bool(box))
        if self._is_interrupted():
            self.unclaimed += box
            raise KeyboardInterrupt
        return box[0]

    def stop(self) -> None:
        """Begin no further transaction, ever; what is in flight is finished.

        May be called from any thread, and from a signal handler.
        """
        self._pool.stop()

    def close(self) -> None:
        """Say QUIT on each connection, and close; once closed, a Mailer sends no more."""
        if self._closed:
            return
        self._check_open()
        self._closed = True
        pool = self._pool
        pool.stop()
        with _Interrupts(self):
            self._drive(lambda: not pool.links, finish=pool.close)
        if self._is_interrupted():
            raise KeyboardInterrupt

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the Mailer is closed")
        if self._leader == threading.get_ident():
            raise RuntimeError(
                "a function that the Mailer calls cannot send by it: it would wait for itself"
            )

    def _is_interrupted(self) -> bool:
        """Say whether Ctrl-C was pressed, for the main thread to pass on; it is, once."""
        interrupted = self._interrupted and _in_main_thread()
        self._interrupted = self._interrupted and not interrupted
        return interrupted

    def _run(self, run: "_Run") -> "Iterator[Delivery]":
        with _Interrupts(self):
            try:
                while run.goes_on:
                    self._drive(run.has_news, before=run.pull)
                    while run.results:
                        yield run.results.popleft()
            finally:
                if run.goes_on or run.results:
                    self._abandon(run)
        if self._is_interrupted():
            raise KeyboardInterrupt
        error = run.error or self._pool.failure
        if error is not None:
            raise error

    def _abandon(self, run: "_Run") -> None:
        """End a run whose deliveries nobody takes any more."""
        run.abandon()
        self._drive(lambda: not run.goes_on)
        self.unclaimed += run.results

    # -- driving --

    def _drive(
        self,
        done: "Callable[[], bool]",
        *,
        before: "Callable[[], bool] | None" = None,
        finish: "Callable[[], None] | None" = None,
    ) -> None:
        """Have the pool driven until *done*: by this thread, or by one that does so already.

        *before* is called first, while another thread may drive; if it returns
        true, there is one step without waiting.  With *finish* it is this
        thread in the end, and *finish* is called.
        """
        in_main_thread, held = _in_main_thread(), self.holds_interrupts
        if in_main_thread:  # nobody else ever sets it
            self.holds_interrupts = True
        try:
            hurried = before is not None and before()
            self._drive_or_follow(done, finish, hurried)
        finally:
            if in_main_thread:
                self.holds_interrupts = held

    def _drive_or_follow(
        self, done: "Callable[[], bool]", finish: "Callable[[], None] | None", hurried: bool
    ) -> None:
        with self._turn:
            while self._leader is not None:
                if finish is None and done():
                    return
                self._followers += 1
                self._turn.wait()
                self._followers -= 1
            self._leader = threading.get_ident()
        try:
            if hurried:
                self._pool.step(patient=False)
            while not done():
                self._pool.step()
                if self._followers:
                    with self._turn:
                        self._turn.notify_all()
            if finish is not None:
                finish()
        finally:
            with self._turn:
                self._leader = None
                if self._followers:
                    self._turn.notify_all()

    def interrupt(self) -> None:
        """Do what Ctrl-C does: stop(), and at the second time raise KeyboardInterrupt."""
        if self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = True
        self._pool.stop()


class _Interrupts:
    """Has Ctrl-C stop a Mailer that is at work in the main thread, instead of tearing it apart.

    At any other time it does what it always does.  Setting a handler takes the
    system longer than sending a message, so it stays set for a whole run.
    """

    __slots__ = ("_mailer", "_ours")

    def __init__(self, mailer: Mailer) -> None:
        self._mailer = mailer
        self._ours: Any = None

    def __enter__(self) -> None:
        if _in_main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._ours = self._on_interrupt
            signal.signal(signal.SIGINT, self._ours)

    def __exit__(self, *exc_info: object) -> None:
        # A generator may be closed in another thread than it began in.
        if self._ours and _in_main_thread() and signal.getsignal(signal.SIGINT) is self._ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _on_interrupt(self, number: int, frame: "FrameType | None") -> None:
        if self._mailer.holds_interrupts:
            self._mailer.interrupt()
        else:
            signal.default_int_handler(number, frame)


def _in_main_thread() -> bool:
    return threading.get_ident() == threading.main_thread().ident


class _Run:
    """One send_many(): what it pulls from, and what comes of it."""

    __slots__ = (
        "_finite", "_messages", "_pool", "_pulled", "_reported", "_window", "error", "pulling",
        "results",
    )  # fmt: skip

    def __init__(self, pool: Pool, messages: "Iterable[AnyOutgoing]") -> None:
        self._pool = pool
        self._messages = iter(messages)
        self._finite = isinstance(messages, Sized)
        self._window = pool.policy.connections * max(2, pool.policy.depth)
        self.results: deque[Delivery] = deque()
        self.pulling = True
        # Each is written by one thread at a time: this run's, and the one that drives.
        self._pulled = self._reported = 0
        self.error: BaseException | None = None

    @property
    def goes_on(self) -> bool:
        """Whether there are messages that have no result, or may be."""
        return self.pulling or self._pulled != self._reported

    def has_news(self) -> bool:
        """Say whether there are results, or nothing more to come, or more to be pulled."""
        return bool(self.results) or not self.goes_on or (self.pulling and self._has_room())

    def _has_room(self) -> bool:
        held = self._pulled - self._reported
        return len(self._pool.queue) < self._window and held < _MOST_OUTSTANDING

    def pull(self) -> bool:
        """Pull what can be used soon; return whether that takes so long that there may be more."""
        if not self.pulling:
            return False
        pool = self._pool
        if pool.stopping or pool.failure is not None:
            self.error = self.error or pool.failure
            if not self._finite:
                self.pulling = False
                return False
        queue, report, retries = pool.queue, self._report, pool.policy.retries
        until = pool.read_clock() + _PULLING
        try:
            while self._has_room():
                message = next(self._messages)
                queue.append(Job(message, report, retries, pool.now))
                self._pulled += 1
                if pool.read_clock() > until:
                    return True
        except StopIteration:
            self.pulling = False
        except BaseException as error:
            self.pulling = False
            self.error = error
        return False

    def _report(self, delivery: "Delivery") -> None:
        self.results.append(delivery)
        self._reported += 1

    def abandon(self) -> None:
        """Pull no further, and give up what is not in flight."""
        self.pulling = False
        self._pool.call_soon(lambda: self._pool.cancel(self._report))


# -- arguments ----------------------------------------------------------------


def _host_and_port(host: str, port: int) -> "tuple[str, int]":
    if not host:
        raise ValueError(f"host={host!r} is not a name, an address or a path")
    name, colon, number = host.rpartition(":")
    if colon and not port and not host.startswith("/") and (":" not in name or name[-1:] == "]"):
        if not number.isdecimal():
            raise ValueError(f"host={host!r} has a port that is no number")
        host, port = name, int(number)
        if not host:
            raise ValueError("host has a port, and no name before it")
    if not 0 <= port <= 65535:
        raise ValueError(f"port={port!r} is not from 0 to 65535")
    return host.removeprefix("[").removesuffix("]"), port


def _chosen_tls(tls: "str | None", host: str, port: int) -> str:
    if tls is None:
        if port in (465, 587):
            return "implicit" if port == 465 else "starttls"
        return "none" if _is_here(host) else "opportunistic"
    if tls not in _TLS:
        raise ValueError(f"tls={tls!r} is not one of {', '.join(_TLS)}")
    return tls


def _is_here(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith(("/", "127."))


def _default_port(tls: str, protocol: str) -> int:
    if protocol == "lmtp":
        return 24
    return {"implicit": 465, "starttls": 587}.get(tls, 25)


def _whole(name: str, value: "Any", least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}={value!r} is not an int")
    if value < least:
        raise ValueError(f"{name}={value!r} is less than {least}")
    return value


def _seconds(name: str, value: "Any") -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name}={value!r} is not a number of seconds")
    if math.isnan(value) or value <= 0:
        raise ValueError(f"{name}={value!r} is not a time above 0")
    return value


def _checked_timeouts(timeouts: "Timeouts | float") -> Timeouts:
    if not isinstance(timeouts, tuple):
        _seconds("timeouts", timeouts)
        return Timeouts(*[min(timeouts, ceiling) for ceiling in _CEILINGS])
    for name, value, ceiling in zip(Timeouts._fields, timeouts, _CEILINGS, strict=True):
        if _seconds(name, value) > ceiling:
            raise ValueError(
                f"{name}={value!r} is more than {ceiling} seconds (RFC 5321, section 4.5.3.2)"
            )
    return Timeouts(*timeouts)


def _checked_options(options: "Options | None") -> "Options | None":
    if not isinstance(options, (Options, type(None))):
        raise TypeError(f"options={options!r} are not Options")
    return options


def _credentials(
    username: "str | None",
    password: "Secret | None",
    token: "Secret | None",
    mechanisms: "Sequence[str] | None",
    cleartext: bool,
) -> "Credentials | None":
    if username is None:
        if password is not None or token is not None:
            raise ValueError("a password or a token needs a username")
        return None
    if (password is None) == (token is None):
        raise ValueError("a username needs a password or a token, and not both")
    # What cannot be sent by any server's mechanisms is refused now.
    candidates(
        " ".join(STRONGEST_FIRST),
        user=username,
        password="" if callable(password) else password,
        token="" if callable(token) else token,
        mechanisms=mechanisms,
    )
    return Credentials(username, password, token, mechanisms, cleartext)
