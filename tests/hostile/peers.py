"""What the tests against hostile servers share: subjects, things to say, and checks.

The *peer* is a support.ModelServer, whose `replies` let a test say anything at any
step (or a bare support.Server with support.scripted()); all that it got is in
`peer.received`, `peer.reads`, `peer.commands` and `peer.messages`.  A reply is
bytes, which leave in one segment, or one of these, or a tuple of them:

    slowly(b"250 ok\\r\\n", pace=0.05)   one octet at a time, so many seconds apart
    pausing(0.05)                      say nothing for so long: (b"25", pausing(0.05), b"0\\r\\n")
    trickle(b"250-")                   these octets, and then one now and then, without end
    flood(b"250-x\\r\\n", 60_000_000)    so many octets, of which the test keeps no copy
    ending(b"250-half")                the end of the stream behind these octets

A *subject* is a way to use the package: see SUBJECTS.

    subject = SUBJECTS["sendmail pipelined"]
    with subject.peer({subject.key("MAIL"): b"junk\\r\\n"}) as peer:
        run = subject.run(peer)  # logs in and sends the messages m1, m2, m3
    run.check(peer)
    assert run["m2"].status == ...

subject.key(step) is the key for the second message's step on the first connection;
"final" is the reply to the message, "hello" that to EHLO or LHLO.  subject.steps
lists the steps that there are.  run["m2"] is a Sent: its status is a Delivery's
word, and for the drop-in classes "accepted" or "raised", with the error.  A drop-in
client that is still connected after an error must get its own reply to NOOP, by
which run() tells that it is in step; one that is not connects again for the next.

Run.check() holds what is true of every row:

- each message has one result, and it is true: see Run.check_the_ledger();
- the peer got whole commands in the order in which they may come, nothing else, and
  nothing of the messages but what was sent;
- no secret is in any error, `repr()`, log, output on stdout or stderr.

Apart from those: `bounded(octets)` holds that a block takes no more memory,
untold(secret, *texts) that no spelling of a secret is in a text, and
nothing_in_clear(peer) that all behind STARTTLS was for TLS.  bad_certificates() and
old_tls() are for servers that nobody should trust.  together(work, cases) does what is
mostly waiting for all cases at a time.
"""

from __future__ import annotations

import base64
import contextlib
import io
import logging
import re
import ssl
import subprocess
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from email.message import EmailMessage
from pathlib import Path
from typing import Any, NamedTuple

from support import TIMEOUT, Connection, ModelServer, Reply, Server, close, collect, stall

import fastsmtp

try:
    import tracemalloc
except ImportError:  # PyPy has none
    tracemalloc = None

USER, SECRET = "user", "tr0mbone/Kestrel?"
SENDER, RECIPIENT = "a@example.org", "b@example.org"
#: Seconds that a client waits where it is to give up, and between octets that come slowly.
SHORT, PACE = 0.5, 0.05
MESSAGES = ("m1", "m2", "m3")

# -- what a hostile server says -----------------------------------------------


def pausing(seconds: float) -> Callable[[Connection], None]:
    """Say nothing for so long."""
    return lambda connection: time.sleep(seconds)


def slowly(data: bytes, pace: float = PACE, then: Reply = ()) -> Callable[[Connection], None]:
    """Send an octet each *pace* seconds."""

    def play(connection: Connection) -> None:
        for octet in data:
            time.sleep(pace)
            connection.send(bytes([octet]))
        connection.play(then)

    return play


def trickle(data: bytes, pace: float = PACE) -> Callable[[Connection], None]:
    """Send the data, then an x each *pace* seconds until the client has gone."""

    def play(connection: Connection) -> None:
        connection.send(data)
        while True:
            time.sleep(pace)
            connection.send(b"x")

    return play


def flood(line: bytes, octets: int, end: bytes = b"") -> Callable[[Connection], None]:
    """Send the line again and again, so many octets in all, and then *end*."""

    def play(connection: Connection) -> None:
        block = line * max(1, 65536 // len(line))
        try:
            for _ in range(octets // len(block)):
                connection.sock.sendall(block)  # send() would keep it
            connection.sock.sendall(end)
        except TimeoutError:
            raise
        except OSError:
            stall(connection)  # the client has gone

    return play


def ending(data: bytes) -> Reply:
    """Send the data and end the stream."""
    return (data, close)


# -- subjects -------------------------------------------------------------------


class Sent(NamedTuple):
    """What became of one message, or of QUIT."""

    status: str
    error: BaseException | None = None
    #: What the client returned: a Delivery, or the refused recipients.
    result: Any = None


def content(name: str) -> bytes:
    """Return a message that tells its name, and has a dot to stuff."""
    return f"Subject: {name}\r\n\r\n.of {name}\r\n".encode()


def _email(name: str) -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = SENDER, RECIPIENT, name
    message.set_content(f".of {name}\n")
    return message


@dataclass(frozen=True)
class Subject:
    """A way to use the package, and the server it needs."""

    name: str
    kind: str = "SMTP"  # the class
    extensions: tuple[str, ...] = ("PIPELINING",)
    by_message: bool = False  # send_message() rather than sendmail()

    @property
    def is_mailer(self) -> bool:
        return self.kind == "Mailer"

    @property
    def chunked(self) -> bool:
        return "CHUNKING" in self.extensions

    @property
    def lmtp(self) -> bool:
        return self.kind == "LMTP"

    @property
    def pipelined(self) -> bool:
        return "PIPELINING" in self.extensions

    @property
    def steps(self) -> tuple[str, ...]:
        """The steps of a conversation in which all goes well."""
        envelope = ("MAIL", "RCPT") if self.chunked else ("MAIL", "RCPT", "DATA")
        return ("greeting", "hello", "AUTH", *envelope, "final", "QUIT")

    def key(self, step: str, number: int = 2, connection: int = 1) -> tuple[str, int, int]:
        """Return the key of ModelServer's replies for a step of the n-th message."""
        if step in ("greeting", "hello", "AUTH", "QUIT", "STARTTLS"):
            number = 1
        names = {
            "hello": "LHLO" if self.lmtp else "EHLO",
            "final": "BDAT" if self.chunked else "body",
        }
        return names.get(step, step), number, connection

    def peer(
        self,
        replies: Mapping[Any, Reply] | None = None,
        *,
        extensions: Iterable[str] = ("AUTH PLAIN",),
        tls: ssl.SSLContext | None = None,
        **keywords: Any,
    ) -> ModelServer:
        """Return a server for this subject; *extensions* are added to the subject's.

        *tls*, a context, is for STARTTLS, or for SMTP_SSL and needed there.
        """
        keywords = {"users": {USER: SECRET}, "implicit_tls": self.kind == "SMTP_SSL", **keywords}
        every = (*self.extensions, *extensions)
        return ModelServer(every, replies=replies, lmtp=self.lmtp, tls=tls, **keywords)

    def run(
        self,
        peer: Server,
        names: Iterable[str] = MESSAGES,
        *,
        timeout: float = TIMEOUT,
        login: bool = True,
        debug: bool = False,
        overhear: bool = True,
        context: ssl.SSLContext | None = None,
        starttls: bool = False,
        **keywords: Any,
    ) -> Run:
        """Send a message under each name, in turn; return what became of them.

        *keywords* are for the class.  *starttls* has the drop-in call starttls(),
        and the Mailer require it.  *debug* turns the log on, and debug output.
        In a thread, *overhear* must be false: there is one standard output.
        """
        run = Run(self, tuple(names))
        with run.overhearing(debug) if overhear else contextlib.nullcontext():
            if self.is_mailer:
                if login:
                    secret = {"username": USER, "password": SECRET, "cleartext_auth": True}
                    keywords = {**secret, **keywords}
                if starttls:
                    keywords["tls"] = "starttls"
                _by_mailer(run, peer, timeout=timeout, context=context, **keywords)
            else:
                if self.kind == "SMTP_SSL":
                    keywords["context"] = context
                start = _Start(peer, timeout, login, starttls, context, debug, keywords)
                _by_drop_in(run, start)
        return run


SUBJECTS: dict[str, Subject] = {
    each.name: each
    for each in (
        Subject("sendmail one by one", extensions=()),
        Subject("sendmail pipelined"),
        Subject("send_message", by_message=True),
        Subject("SMTP_SSL", "SMTP_SSL"),
        Subject("LMTP", "LMTP"),
        Subject("Mailer one by one", "Mailer", ()),
        Subject("Mailer DATA", "Mailer"),
        Subject("Mailer BDAT", "Mailer", ("PIPELINING", "CHUNKING")),
    )
}
DROP_INS = [each for each in SUBJECTS.values() if not each.is_mailer]
MAILERS = [each for each in SUBJECTS.values() if each.is_mailer]


class _Start(NamedTuple):
    peer: Server
    timeout: float
    login: bool
    starttls: bool
    context: ssl.SSLContext | None
    debug: bool
    keywords: dict[str, Any]


def _by_drop_in(run: Run, start: _Start) -> None:
    client: Any = None
    try:
        for name in run.names:
            try:
                if client is None or client.sock is None:
                    client = _connected(run, start)
                refused = _send(run.subject, client, name)
            except (fastsmtp.SMTPException, OSError) as error:
                run.note(name, Sent("raised", error))
                _check_in_step(run, client)
            else:
                run.note(name, Sent("accepted", None, refused))
        if client is not None and client.sock is not None:
            _quit(run, client)
    finally:
        run.shown.append(repr(client))
        if client is not None:
            client.close()


def _quit(run: Run, client: Any) -> None:
    try:
        run.quit = Sent("accepted", None, client.quit())
    except (fastsmtp.SMTPException, OSError) as error:
        run.quit = Sent("raised", error)
        _check_in_step(run, client)


def _check_in_step(run: Run, client: Any) -> None:
    """Hold that a client that is connected gets its own reply."""
    if client is None or client.sock is None:
        return
    try:
        code, text = client.noop()
    except fastsmtp.SMTPServerDisconnected:
        assert client.sock is None
    else:
        # No other reply of the model says this.
        assert (code, text[:4]) == (250, b"noop"), "out of step, and not closed"
        run.noops += 1


def _connected(run: Run, start: _Start) -> Any:
    make = getattr(fastsmtp, run.subject.kind)
    peer, timeout, login, starttls, context, debug, keywords = start
    client = make(timeout=timeout, local_hostname="client.example", **keywords)
    try:
        client.set_debuglevel(int(debug))
        code, text = client.connect(peer.host, peer.port)
        if code != 220:
            raise fastsmtp.SMTPConnectError(code, text)
        if starttls:
            client.starttls(context=context)
        if login:
            client.login(USER, SECRET)
    except BaseException:
        run.left_open += client.sock is not None
        client.close()
        raise
    return client


def _send(subject: Subject, client: Any, name: str) -> Any:
    if subject.by_message:
        return client.send_message(_email(name), SENDER, [RECIPIENT])
    return client.sendmail(SENDER, [RECIPIENT], content(name))


def _by_mailer(run: Run, peer: Server, timeout: float, **keywords: Any) -> None:
    keywords = {"connections": 1, "connect_attempts": 1, "local_hostname": "client.example"} | {
        "timeouts": timeout,
        **keywords,
    }
    with fastsmtp.Mailer(peer.host, peer.port, **keywords) as mailer:
        messages = [fastsmtp.Message(SENDER, [RECIPIENT], content(n), id=n) for n in run.names]
        deliveries, run.raised = collect(mailer.send_many(messages))
        for delivery in deliveries:
            run.note(delivery.id, Sent(delivery.status, delivery.error, delivery))
        run.shown += [repr(mailer), repr(mailer.totals), str(mailer.totals.notes), repr(deliveries)]
        run.shown.append(str(mailer.totals.replies))


# -- what came of it --------------------------------------------------------------


@dataclass
class Run:
    """What became of the messages of one run, and what was said meanwhile."""

    subject: Subject
    names: tuple[str, ...]
    results: list[tuple[str, Sent]] = field(default_factory=list)
    #: What a Mailer's send_many() raised at its end.
    raised: BaseException | None = None
    #: What the drop-in's quit() came to, if there was somebody to say it to.
    quit: Sent | None = None
    #: The NOOPs that a client in step had its own replies to.
    noops: int = 0
    #: How many clients were still connected when greeting, STARTTLS or login had failed.
    left_open: int = 0
    #: What `repr()` gave, and what `overheard` is.
    shown: list[str] = field(default_factory=list)
    #: What was printed and logged.
    overheard: str = ""

    def __getitem__(self, name: str) -> Sent:
        return dict(self.results)[name]

    @property
    def statuses(self) -> tuple[str, ...]:
        """The messages' statuses in the order of their names."""
        return tuple(self[name].status for name in self.names)

    @property
    def errors(self) -> list[BaseException]:
        every = [sent.error for _, sent in self.results] + [self.raised]
        return [error for error in (*every, self.quit and self.quit.error) if error is not None]

    def note(self, name: str, sent: Sent) -> None:
        self.results.append((name, sent))

    @contextlib.contextmanager
    def overhearing(self, debug: bool) -> Iterator[None]:
        """Take down what is printed and logged; at level DEBUG, if asked for."""
        written, logger = io.StringIO(), logging.getLogger("fastsmtp")
        handler, level = logging.StreamHandler(written), logger.level
        logger.addHandler(handler)
        if debug:
            logger.setLevel(logging.DEBUG)
        try:
            with contextlib.redirect_stdout(written), contextlib.redirect_stderr(written):
                yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
            self.overheard = written.getvalue()
            self.shown.append(self.overheard)

    # -- checks --

    def check(self, peer: Server, secret: str = SECRET) -> None:
        """Hold what is true of every row."""
        self.check_the_ledger(peer)
        check_commands(peer)
        untold(secret, *self.shown, *map(told, self.errors))

    def check_the_ledger(self, peer: Server) -> None:
        """Hold that each message has one result, and that the peer's record agrees.

        A message that was accepted is stored once.  One that is ``unknown``, or
        whose sendmail() raised, may be, once; of any other result it never is.
        """
        assert Counter(name for name, _ in self.results) == Counter(self.names)
        stored = stored_names(peer)
        assert set(stored) <= set(self.names), "what nobody sent"
        for name, sent in self.results:
            copies = stored[name]
            if sent.status in ("accepted", "partial"):
                assert copies == 1, f"{name} is accepted, and stored {copies} times"
            elif sent.status in ("unknown", "raised"):
                assert copies <= 1, f"{name} is stored {copies} times"
                assert sent.error is not None
            else:
                assert not copies, f"{name} is {sent.status}, and stored"


def stored_names(peer: Server) -> Counter[str]:
    """Return how often the peer stored each message; each must be what was sent."""
    names: Counter[str] = Counter()
    for message in getattr(peer, "messages", []):
        match = re.search(rb"(?m)^Subject: (\w+)\r$", message.data)
        assert match, f"no message of ours: {message.data!r}"
        name = match[1].decode()
        assert message.data.endswith(b"\r\n\r\n.of %b\r\n" % match[1])
        assert (message.sender, message.recipients) == (SENDER, [RECIPIENT])
        names[name] += 1
    return names


_COMMAND = re.compile(
    r"(?i)(EHLO|HELO|LHLO) client\.example|MAIL FROM:<[^<> ]*>( [ -~]*)?|RCPT TO:<[^<> ]*>"
    r"|DATA|BDAT \d+ LAST|RSET|NOOP|QUIT|STARTTLS|AUTH [A-Z0-9-]+( [A-Za-z0-9+/=]+)?"
    r"|[A-Za-z0-9+/=]*|\*"
)


def check_commands(peer: Server) -> None:
    """Hold that the peer got nothing but commands, each whole and one that we send.

    A line of message data that was taken for a command would show here.
    """
    for line in getattr(peer, "commands", []):
        assert _COMMAND.fullmatch(line), f"no command: {line!r}"


def told(error: BaseException) -> str:
    """Return all that an exception tells, and those that it came from."""
    texts = traceback.format_exception(type(error), error, error.__traceback__)
    seen: list[Any] = []
    following: list[Any] = [error]
    while following:
        each = following.pop()
        if each is None or each in seen:
            continue
        seen.append(each)
        texts += [str(each), repr(each), repr(each.args), repr(vars(each))]
        following += [each.__cause__, each.__context__]
    return "\n".join(texts)


def spellings(secret: str, user: str = USER) -> list[str]:
    """Return a secret as it may be met with: as it is, and in base64 as mechanisms have it."""
    raw = secret.encode("utf-8")
    forms = [raw, b"\0%b\0%b" % (user.encode(), raw), b"user=%b\1auth=Bearer %b\1\1" % (
        user.encode(), raw,
    )]  # fmt: skip
    return [secret, *(base64.b64encode(form).decode().rstrip("=") for form in forms)]


def untold(secret: str, *texts: str) -> None:
    """Hold that no spelling of a secret is in what was said."""
    for text in texts:
        for spelling in spellings(secret):
            assert spelling not in text, f"a secret is told: {text[:500]!r}"


def nothing_in_clear(peer: Server) -> None:
    """Hold that each connection got EHLO, at most STARTTLS, and then nothing but records of TLS."""
    for connection in peer.connections:
        hello, _, rest = connection.received.partition(b"\r\n")
        assert re.fullmatch(rb"(?i)([el]hlo client\.example)?", hello)
        asked, _, rest = rest.partition(b"\r\n")
        assert asked in (b"", b"STARTTLS")
        # RFC 8446, section 5.1: handshake or alert, of version 3.x.
        assert rest[:2] in (b"", b"\x16\x03", b"\x15\x03")
        untold(SECRET, connection.received.decode("latin-1"))


def together(work: Callable[[Any], None], cases: Iterable[Any]) -> None:
    """Do work for all cases at a time, each in a thread; for work that is mostly waiting."""
    cases = list(cases)
    with ThreadPoolExecutor(len(cases)) as threads:
        for result in [threads.submit(work, case) for case in cases]:
            result.result()


@contextlib.contextmanager
def bounded(octets: int) -> Iterator[None]:
    """Hold that a block takes no more memory than so many octets, the peer's included.

    PyPy cannot tell.
    """
    if tracemalloc is None:
        yield
        return
    tracing = tracemalloc.is_tracing()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        if not tracing:
            tracemalloc.stop()
    assert peak - before < octets, f"{peak - before} octets at the peak"


# -- certificates ---------------------------------------------------------------------


_KEY = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
_HERE = "subjectAltName=DNS:localhost,IP:127.0.0.1"
_ELSEWHERE = "subjectAltName=DNS:other.example,DNS:localhost,IP:127.0.0.2"


def bad_certificates(directory: Path) -> dict[str, Path]:
    """Make a key and a certificate, signed by itself, of each kind; return the PEM files."""
    made = "req -x509 -days 2 -keyout {key} -out {certificate}"
    asked = "req -new -keyout {key} -out {request}"
    # Not -1, which OpenSSL 3.6 refuses: it has expired in the second that it names.
    signed = "x509 -req -days 0 -in {request} -signkey {key} -extfile {more} -out {certificate}"
    kinds = {
        "expired": (f"{asked} {_KEY} -subj /CN=localhost", signed),
        "wrong host": (f"{made} {_KEY} -subj /CN=x -addext {_ELSEWHERE}",),
        "host in the subject only": (f"{made} {_KEY} -subj /CN=127.0.0.1",),
        "for clients": (
            f"{made} {_KEY} -subj /CN=x -addext {_HERE} -addext extendedKeyUsage=clientAuth",
        ),
    }
    return {kind: _certificate(directory / kind, commands) for kind, commands in kinds.items()}


def _certificate(directory: Path, commands: Iterable[str]) -> Path:
    directory.mkdir()
    names = ("key", "request", "more", "certificate", "pem")
    files = {name: directory / name for name in names}
    files["more"].write_text(f"{_HERE}\n")
    for command in commands:
        words = ["openssl", *[word.format(**files) for word in command.split()]]
        subprocess.run(words, check=True, capture_output=True)
    files["pem"].write_bytes(files["key"].read_bytes() + files["certificate"].read_bytes())
    return files["pem"]


def old_tls(context: ssl.SSLContext, version: ssl.TLSVersion) -> ssl.SSLContext:
    """Have a context speak one old version of TLS, and no other."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that is what it is for
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = context.maximum_version = version
    return context
