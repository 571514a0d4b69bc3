"""SMTP and LMTP servers on loopback for the tests, with faults to order.

A `Server` plays one function for each connection and records what arrives.
`scripted()` makes that function from a list of replies; `ModelServer` speaks
ESMTP well enough to take messages, and lets a test replace any reply:

    with ModelServer(replies={("RCPT", 2): b"550 no\r\n"}) as server:
        client = smtplib.SMTP(server.host, server.port)
        ...
    assert server.messages[0].recipients == ["a@example.org"]

A reply is bytes, or something that acts on the connection (`close`, `reset`,
`stall`, `dribble(...)`), or a tuple of these; `IN_PIECES` stands for the usual
reply, one byte at a time.  Leaving the `with` block closes
every socket, joins every thread, and raises what went wrong in one of them.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import itertools
import operator
import re
import select
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Union

import pytest

#: The ports of this run's servers on asyncio: see pytest_sessionstart() in conftest.py.
ASYNCIO_PORTS: set[int] = set()
TIMEOUT = 5.0  # seconds; the longest that anything here waits

Reply = Union[bytes, Callable[["Connection"], None], "tuple[Reply, ...]"]

IN_PIECES: Reply = ()


def not_on_pypy(why: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(sys.implementation.name == "pypy", reason=f"PyPy: {why}")


class Hangup(Exception):
    """The conversation is over: the client has gone, or the script closed."""


# -- one connection -----------------------------------------------------------


class Connection:
    """The server's end of one connection; records all that it reads."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.reads: list[bytes] = []
        self.sent = bytearray()
        self._unread = bytearray()
        sock.settimeout(TIMEOUT)
        if sock.family != getattr(socket, "AF_UNIX", None):
            # Each reply is its own segment, as a client may see it in the field.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @property
    def received(self) -> bytes:
        return b"".join(self.reads)

    def send(self, data: bytes) -> None:
        try:
            self.sent += data
            self.sock.sendall(data)
        except TimeoutError:
            raise
        except OSError as error:
            raise Hangup from error

    def line(self) -> bytes:
        """Read one line, with its end."""
        return self._read_until(re.compile(rb"\n"))

    def body(self) -> bytes:
        """Read message data to the line with the single dot (RFC 5321, 4.1.1.4)."""
        return self._read_until(re.compile(rb"(?:\A|\r\n)\.\r\n"))

    def exactly(self, size: int) -> bytes:
        """Read so many octets (BDAT: RFC 3030, section 2)."""
        while len(self._unread) < size:
            self._unread += self.receive()
        data = bytes(self._unread[:size])
        del self._unread[:size]
        return data

    def _read_until(self, end: re.Pattern[bytes]) -> bytes:
        start = 0
        while not (match := end.search(self._unread, start)):
            # The end is five bytes at most, and may be cut by the read.
            start = max(0, len(self._unread) - 4)
            self._unread += self.receive()
        data = bytes(self._unread[: match.end()])
        del self._unread[: match.end()]
        return data

    def receive(self) -> bytes:
        try:
            data = self.sock.recv(1 << 16)
        except TimeoutError:
            raise
        except OSError as error:
            raise Hangup from error
        if not data:
            raise Hangup
        self.reads.append(data)
        return data

    def start_tls(self, context: ssl.SSLContext) -> None:
        self._unread.clear()
        try:
            self.sock = context.wrap_socket(self.sock, server_side=True)
        except TimeoutError:
            raise
        except OSError as error:
            raise Hangup from error

    def play(self, reply: Reply) -> None:
        if isinstance(reply, tuple):
            for each in reply:
                self.play(each)
        elif isinstance(reply, bytes):
            self.send(reply)
        else:
            reply(self)


# -- faults -------------------------------------------------------------------


def close(connection: Connection) -> None:
    """End the stream in order: the client reads what was sent, then EOF.

    Closing at once would do less: where the client has sent more than was
    read, the kernel resets the connection, and the last reply may be lost.
    """
    _shutdown(connection.sock, socket.SHUT_WR)
    stall(connection)


def _shutdown(sock: socket.socket, how: int) -> None:
    # An SSLSocket's own shutdown() forgets the session: what arrives later
    # could not be decrypted.
    with contextlib.suppress(OSError):  # gone already
        socket.socket.shutdown(sock, how)


def reset(connection: Connection) -> None:
    """Answer the client's next read or write with ECONNRESET."""
    linger = struct.pack("ii", 1, 0)  # l_onoff, l_linger: close() sends RST
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    connection.sock.close()
    raise Hangup


def stall(connection: Connection) -> None:
    """Say nothing more, and read on until the client gives up."""
    while True:
        connection.receive()


def dribble(data: bytes) -> Callable[[Connection], None]:
    """Send one byte at a time, so that reads end at every place in a reply."""

    def play(connection: Connection) -> None:
        for octet in data:
            connection.send(bytes([octet]))
            # The pace makes single-byte reads likely; nothing depends on it.
            time.sleep(0.0003)

    return play


class Hold:
    """Say nothing until the test lets go: what comes next has to wait.

    A test waits for `reached`, does what it has to do meanwhile, and sets `go`.
    """

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.go = threading.Event()

    def __call__(self, connection: Connection) -> None:
        self.reached.set()
        assert self.go.wait(TIMEOUT), "nobody let go"


# -- the server ---------------------------------------------------------------


class Server:
    """Listens on loopback and calls play(connection) for each connection.

    path: listen on this Unix socket instead.  tls: speak TLS from the first
    byte.  buffer_size: the kernel's socket buffers, in bytes.
    """

    def __init__(
        self,
        play: Callable[[Connection], None],
        *,
        path: str | None = None,
        tls: ssl.SSLContext | None = None,
        buffer_size: int | None = None,
    ) -> None:
        self.host, self.port = path or "127.0.0.1", 0
        self.connections: list[Connection] = []
        self._play = play
        self._path = path
        self._tls = tls
        self._buffer_size = buffer_size
        self._threads: list[threading.Thread] = []
        self._errors: list[BaseException] = []

    def __enter__(self):
        self._listener = self._listen()
        self._wakeup, self._woken = socket.socketpair()
        self._start(self._accept)
        return self

    def __exit__(self, exc_type, exc, traceback) -> None:
        self._wakeup.close()
        self._threads[0].join(2 * TIMEOUT)
        for connection in self.connections:
            # What has arrived can still be read; then comes EOF, also for a
            # read that is waiting.
            _shutdown(connection.sock, socket.SHUT_RD)
        for thread in self._threads:
            thread.join(2 * TIMEOUT)
        self._listener.close()
        self._woken.close()
        assert not any(thread.is_alive() for thread in self._threads)
        if self._errors and exc is None:
            raise self._errors[0]

    @property
    def received(self) -> bytes:
        """All bytes from all connections, in clear where TLS was spoken."""
        return b"".join(connection.received for connection in self.connections)

    @property
    def reads(self) -> list[bytes]:
        """The same, as the reads were grouped."""
        return [read for connection in self.connections for read in connection.reads]

    def _listen(self) -> socket.socket:
        unix = self._path is not None
        listener = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
        if self._buffer_size is not None:  # inherited by what is accepted
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._buffer_size)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._buffer_size)
        listener.bind(self._path if unix else (self.host, 0))
        if not unix:
            self.port = listener.getsockname()[1]
        listener.listen()
        return listener

    def _start(self, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=self._guard, args=(target, *args), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _guard(self, target: Callable[..., None], *args: Any) -> None:
        try:
            target(*args)
        except BaseException as error:
            self._errors.append(error)

    def _accept(self) -> None:
        while self._woken not in select.select([self._listener, self._woken], [], [])[0]:
            connection = Connection(self._listener.accept()[0])
            self.connections.append(connection)
            self._start(self._serve, connection)

    def _serve(self, connection: Connection) -> None:
        try:
            if self._tls:
                connection.start_tls(self._tls)
            self._play(connection)
        except Hangup:
            pass
        finally:
            connection.sock.close()


def scripted(*replies: Reply) -> Callable[[Connection], None]:
    """Play a greeting, then one reply for each line, then close.

    After a reply that begins with 354 the next one answers message data.
    """

    def play(connection: Connection) -> None:
        connection.play(replies[0])
        for before, reply in itertools.pairwise(replies):
            in_data = isinstance(before, bytes) and before.startswith(b"354")
            connection.body() if in_data else connection.line()
            connection.play(reply)
        close(connection)

    return play


# -- the model ----------------------------------------------------------------


@dataclass
class Message:
    """One message for which the server took responsibility."""

    sender: str
    recipients: list[str] = field(default_factory=list)
    wire: bytes = b""  # with the stuffed dots and the final one
    parameters: list[str] = field(default_factory=list)  # of MAIL, then of each RCPT
    chunks: int = 0  # how many BDATs brought it; 0 for DATA

    @property
    def data(self) -> bytes:
        if self.chunks:
            return self.wire
        # A line begins after LF here, as it does for smtplib where it stuffs.
        return re.sub(rb"(?m)^\.", b"", self.wire[: -len(b".\r\n")])


EXTENSIONS = ("PIPELINING", "SIZE 33554432", "8BITMIME", "SMTPUTF8")


class ModelServer(Server):
    """An ESMTP server that accepts everything it is not told to refuse.

    extensions: the lines of the EHLO reply after the first; None refuses EHLO.
    replies: what to play instead of the usual reply; the key is (verb, n) for
        the n-th such command on a connection, (verb, n, c) on the c-th
        connection only, or the verb for all of them.
        Next to verbs there are the steps "greeting", "body" (the reply to
        message data; with LMTP one for each accepted recipient) and
        "response" (a line of an AUTH exchange).  What the override's code
        means holds: 5xx for RCPT and the recipient is refused.
    users: passwords, or tokens for XOAUTH2 and OAUTHBEARER, by user name.
    tls: the context for STARTTLS, or with implicit_tls for the whole session.
    lmtp: LHLO, and one reply for each recipient after the data (RFC 2033).
    BDAT is taken whether CHUNKING is among the extensions or not.
    """

    def __init__(
        self,
        extensions: Iterable[str] | None = EXTENSIONS,
        *,
        replies: Mapping[Any, Reply] | None = None,
        users: Mapping[str, str] | None = None,
        lmtp: bool = False,
        tls: ssl.SSLContext | None = None,
        implicit_tls: bool = False,
        path: str | None = None,
        buffer_size: int | None = None,
    ) -> None:
        super().__init__(
            lambda connection: Session(self, connection).run(),
            path=path,
            tls=tls if implicit_tls else None,
            buffer_size=buffer_size,
        )
        self.extensions = None if extensions is None else list(extensions)
        self.replies = dict(replies or {})
        self.users = dict(users or {})
        self.lmtp = lmtp
        self.starttls_context = tls
        self.messages: list[Message] = []
        self.commands: list[str] = []
        self.logins: list[str] = []


class Session:
    """One client's session with the model server."""

    def __init__(self, server: ModelServer, connection: Connection) -> None:
        self.server = server
        self.connection = connection
        self.message: Message | None = None
        self.command = ""  # the last one of this session
        self._counts: Counter[str] = Counter()

    def run(self) -> None:
        self.reply("greeting", b"220 model.example ESMTP\r\n")
        while True:
            line = self.connection.line().rstrip(b"\r\n").decode("utf-8", "surrogateescape")
            self.server.commands.append(line)
            self.command = line
            verb, _, argument = line.partition(" ")
            handler = getattr(self, f"do_{verb.upper()}", None)
            if handler is None:
                self.reply(verb.upper(), b"500 what?\r\n")
            else:
                handler(verb.upper(), argument)

    def reply(self, step: str, usual: bytes) -> int:
        """Play the reply for this step; return its code."""
        self._counts[step] += 1
        replies = self.server.replies
        count = self._counts[step]
        number = 1 + self.server.connections.index(self.connection)
        chosen = replies.get((step, count), replies.get(step, usual))
        chosen = replies.get((step, count, number), chosen)
        if chosen is IN_PIECES:
            self.connection.play(dribble(usual))
            return _code(usual)
        self.connection.play(chosen)
        return _code(chosen)

    # Greeting and extensions

    def do_EHLO(self, verb: str, argument: str) -> None:
        extensions = self.server.extensions
        self.message = None
        if extensions is None or (verb == "LHLO") != self.server.lmtp:
            self.reply(verb, b"502 not implemented\r\n")
        else:
            self.reply(verb, multiline(250, ["model.example", *extensions]))

    do_LHLO = do_EHLO

    def do_HELO(self, verb: str, argument: str) -> None:
        self.message = None
        self.reply(verb, b"250 model.example\r\n")

    def do_STARTTLS(self, verb: str, argument: str) -> None:
        context = self.server.starttls_context
        usual = b"220 go ahead\r\n" if context else b"502 not implemented\r\n"
        if self.reply(verb, usual) == 220 and context:
            self.connection.start_tls(context)

    # A transaction

    def do_MAIL(self, verb: str, argument: str) -> None:
        if self.message:
            self.reply(verb, b"503 nested MAIL\r\n")
        elif self.reply(verb, b"250 sender ok\r\n") // 100 == 2:
            path, parameters = _path(argument)
            self.message = Message(path, parameters=[parameters])

    def do_RCPT(self, verb: str, argument: str) -> None:
        if not self.message:
            self.reply(verb, b"503 need MAIL\r\n")
        elif self.reply(verb, b"250 recipient ok\r\n") // 100 == 2:
            path, parameters = _path(argument)
            self.message.recipients.append(path)
            self.message.parameters.append(parameters)

    def do_DATA(self, verb: str, argument: str) -> None:
        ready = self.message and self.message.recipients
        usual = b"354 go ahead\r\n" if ready else b"503 need RCPT\r\n"
        if self.reply(verb, usual) == 354:
            wire = self.connection.body()
            if not ready:
                self.reply("body", b"554 no valid recipients\r\n")
            else:
                self._take(wire)

    def _take(self, wire: bytes) -> None:
        message, self.message = self.message, None
        recipients = message.recipients
        if not self.server.lmtp:
            accepted = recipients if self._accepts() else []
        else:
            accepted = [recipient for recipient in recipients if self._accepts()]
        if accepted:
            delivered = Message(message.sender, accepted, wire, message.parameters)
            self.server.messages.append(delivered)

    def _accepts(self) -> bool:
        return self.reply("body", b"250 taken\r\n") // 100 == 2

    def do_BDAT(self, verb: str, argument: str) -> None:
        size, _, last = argument.partition(" ")
        chunk = self.connection.exactly(int(size))  # is read, whatever the reply is
        if not (self.message and self.message.recipients):
            self.reply(verb, b"503 need RCPT\r\n")
            return
        self.message.wire += chunk
        self.message.chunks += 1
        if self.reply(verb, b"250 taken\r\n") // 100 == 2 and last == "LAST":
            self.server.messages.append(self.message)
            self.message = None

    def do_RSET(self, verb: str, argument: str) -> None:
        self.message = None
        self.reply(verb, b"250 reset\r\n")

    # The rest

    def do_NOOP(self, verb: str, argument: str) -> None:
        # No other reply says this, so it tells whether a client is in step.
        self.reply(verb, b"250 noop %d\r\n" % (self._counts[verb] + 1))

    def do_VRFY(self, verb: str, argument: str) -> None:
        self.reply(verb, f"252 cannot tell {argument}\r\n".encode("utf-8", "surrogateescape"))

    def do_EXPN(self, verb: str, argument: str) -> None:
        self.reply(verb, multiline(250, ["one@example.org", "two@example.org"]))

    def do_HELP(self, verb: str, argument: str) -> None:
        self.reply(verb, multiline(214, ["help", argument or "yourself"]))

    def do_QUIT(self, verb: str, argument: str) -> None:
        self.reply(verb, b"221 bye\r\n")
        close(self.connection)

    # AUTH (RFC 4954)

    def do_AUTH(self, verb: str, argument: str) -> None:
        mechanism, _, initial = argument.partition(" ")
        if mechanism.upper() not in MECHANISMS:
            self.reply(verb, b"504 unknown mechanism\r\n")
            return
        exchange = MECHANISMS[mechanism.upper()](self.server.users, initial or None)
        step = verb
        try:
            challenge = next(exchange)
            while self.reply(step, b"334 " + base64.b64encode(challenge) + b"\r\n") == 334:
                response = self.connection.line().rstrip(b"\r\n").decode("ascii")
                self.server.commands.append(response)
                step = "response"
                challenge = exchange.send(response)
        except StopIteration as end:
            user = end.value
            if self.reply(step, b"235 welcome\r\n" if user else b"535 no\r\n") == 235 and user:
                self.server.logins.append(user)
        except ValueError:
            self.reply(step, b"501 cannot decode\r\n")


def _code(reply: Reply) -> int:
    """Return the code of the bytes played last, or -1 if they have none."""
    last = reply[-1] if isinstance(reply, tuple) else reply
    match = re.match(rb"\d{3}", last) if isinstance(last, bytes) else None
    return int(match[0]) if match else -1


def _path(argument: str) -> tuple[str, str]:
    """Split FROM:<path> parameters."""
    match = re.match(r"(?i)(?:FROM|TO):\s*<(.*?)>\s*(.*)", argument)
    assert match, argument
    return match[1], match[2]


def multiline(code: int, lines: Iterable[str]) -> bytes:
    """Write a reply of several lines (RFC 5321, section 4.2.1)."""
    *first, last = lines
    marked = [f"{code}-{line}\r\n" for line in first] + [f"{code} {last}\r\n"]
    return "".join(marked).encode("utf-8")


# -- SASL mechanisms, the server's side ---------------------------------------
# Generators: yield a challenge, are sent the response as it was on the wire,
# return the user's name, or None for a failure.

Exchange = Iterator[bytes]


def _decoded(response: str) -> str:
    # RFC 4954, section 4: "=" stands for an empty initial response.
    return base64.b64decode("" if response == "=" else response, validate=True).decode("utf-8")


def _plain(users: Mapping[str, str], initial: str | None) -> Exchange:
    response = initial if initial is not None else (yield b"")
    _, user, password = _decoded(response).split("\0")
    return user if users.get(user) == password else None


def _login(users: Mapping[str, str], initial: str | None) -> Exchange:
    user = _decoded(initial if initial is not None else (yield b"Username:"))
    password = _decoded((yield b"Password:"))
    return user if users.get(user) == password else None


def _cram_md5(users: Mapping[str, str], initial: str | None) -> Exchange:
    challenge = b"<1896.697170952@model.example>"
    user, _, digest = _decoded((yield challenge)).rpartition(" ")
    expected = hmac.new(users.get(user, "").encode(), challenge, "md5").hexdigest()
    return user if digest == expected else None


def _xoauth2(users: Mapping[str, str], initial: str | None) -> Exchange:
    response = _decoded(initial if initial is not None else (yield b""))
    match = re.fullmatch("user=(.*)\x01auth=Bearer (.*)\x01\x01", response)
    if match and users.get(match[1]) == match[2]:
        return match[1]
    # The failure is told in a challenge, which an empty response acknowledges.
    yield b'{"status":"401","schemes":"bearer"}'
    return None


def _oauthbearer(users: Mapping[str, str], initial: str | None) -> Exchange:
    response = _decoded(initial if initial is not None else (yield b""))
    pairs = "(?:host=[^\x01]+\x01)?(?:port=[1-9][0-9]*\x01)?"
    match = re.fullmatch(f"n,a=([^,]+),\x01{pairs}auth=Bearer (.*)\x01\x01", response)
    user = _name(match[1]) if match else ""
    if match and users.get(user) == match[2]:
        return user
    # RFC 7628, section 3.2.3: the client acknowledges this by a single ^A.
    if (yield b'{"status":"invalid_token"}') != "AQ==":
        raise ValueError("an OAUTHBEARER error was not acknowledged")
    return None


def scram_sha_256(
    users: Mapping[str, str],
    initial: str | None,
    *,
    binding: tuple[str, bytes] | None = None,
    iterations: int = 4096,
) -> Exchange:
    """Play SCRAM-SHA-256, or with channel binding data SCRAM-SHA-256-PLUS (RFC 5802)."""
    first = _decoded(initial if initial is not None else (yield b""))
    flag, _, bare = first.split(",", 2)
    attributes = dict(each.split("=", 1) for each in bare.split(","))
    user, nonce = _name(attributes["n"]), attributes["r"] + "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
    salt = b"sixteen octets.."
    server_first = f"r={nonce},s={base64.b64encode(salt).decode()},i={iterations}"
    final = _decoded((yield server_first.encode()))
    unproven, _, proof = final.rpartition(",p=")
    kind, data = binding or ("", b"")
    bound = base64.b64encode(f"{flag},,".encode() + data).decode()

    salted = hashlib.pbkdf2_hmac("sha256", users.get(user, "").encode(), salt, iterations)
    message = f"{bare},{server_first},{unproven}".encode()
    stored_key = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    signature = hmac.digest(stored_key, message, "sha256")
    client_key = bytes(map(operator.xor, base64.b64decode(proof, validate=True), signature))
    if (
        user not in users
        or flag not in ([f"p={kind}"] if binding else ["n", "y"])
        or unproven != f"c={bound},r={nonce}"
        or hashlib.sha256(client_key).digest() != stored_key
    ):
        yield b"e=invalid-proof"
        return None
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    verifier = base64.b64encode(hmac.digest(server_key, message, "sha256"))
    return user if (yield b"v=" + verifier) == "" else None


def _name(saslname: str) -> str:
    return saslname.replace("=2C", ",").replace("=3D", "=")


MECHANISMS = {
    "PLAIN": _plain,
    "LOGIN": _login,
    "CRAM-MD5": _cram_md5,
    "XOAUTH2": _xoauth2,
    "OAUTHBEARER": _oauthbearer,
    "SCRAM-SHA-256": scram_sha_256,
}


# -- what a client gets -------------------------------------------------------


def collect(results: Iterable[Any]) -> tuple[list[Any], BaseException | None]:
    """Take all there are; return them, and what was raised at the end, or None."""
    taken = []
    try:
        for result in results:
            taken.append(result)  # noqa: PERF402 - extend() would lose what came before the end
    except BaseException as error:
        return taken, error
    return taken, None


# -- certificates -------------------------------------------------------------


def make_certificate(directory: Path) -> Path:
    """Make a key and a self-signed certificate for loopback in one file."""
    pem = directory / "server.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-keyout", str(directory / "key.pem"), "-out", str(directory / "certificate.pem")]
    subprocess.run([*command.split(), *names, *files], check=True, capture_output=True)
    parts = [directory / "key.pem", directory / "certificate.pem"]
    pem.write_bytes(b"".join(part.read_bytes() for part in parts))
    return pem


def server_tls(pem: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context


def client_tls(pem: Path) -> ssl.SSLContext:
    """Trust that certificate and no other, and check the host's name."""
    return ssl.create_default_context(cafile=str(pem))
