"""The drop-in's promises (DESIGN.md, 3.1): overriding, patching, poking, and TLS."""

from __future__ import annotations

import base64
import contextlib
import inspect
import io
import logging
import smtplib
import socket
import ssl
import subprocess
import sys
import threading
import traceback
import types
from collections.abc import Callable
from email.message import EmailMessage
from typing import Any
from unittest import mock

import pytest
from support import (
    EXTENSIONS,
    Connection,
    ModelServer,
    Reply,
    Server,
    client_tls,
    close,
    reset,
    server_tls,
)

import fastsmtp

NAME = "client.example"
FROM, A, B = "from@example.org", "a@example.org", "b@example.org"
HELLO = "Subject: hello\n\nhello\n.\n"
LOGIN = {"extensions": ("AUTH PLAIN", *EXTENSIONS), "users": {"user": "secret"}}


@pytest.fixture
def start():
    """Return a function that starts a model server and connects a client to it."""
    with contextlib.ExitStack() as stack:

        def start(make: Callable[..., Any] = fastsmtp.SMTP, **details: Any) -> Any:
            server = stack.enter_context(ModelServer(**details))
            client = make(server.host, server.port, NAME, timeout=5)
            stack.callback(client.close)
            return client, server

        yield start


def send(client: Any, to: Any = A, message: Any = HELLO) -> Any:
    return attempt(client.sendmail, FROM, to, message)


def attempt(call: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
    """Return what a call returns, or the exception that it raises."""
    try:
        return call(*args, **keywords)
    except smtplib.SMTPException as error:
        return error


# -- overriding and patching --------------------------------------------------

#: What sendmail() calls in smtplib, and what the server does so that it is called.
HOOKS: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("putcmd", "getreply", "send", "mail", "rcpt", "data", "ehlo")},
    **{name: {"replies": {"body": b"554 no\r\n"}} for name in ("docmd", "rset", "_rset")},
    "has_extn": {},
    "helo": {"extensions": None},
    "close": {"replies": {"body": b"421 bye\r\n"}},
    "_print_debug": {},
}


def in_subclass(cls: Any, name: str, method: Callable[..., Any], stack: Any) -> Any:
    return type("Sub", (cls,), {name: method})


def on_the_class(cls: Any, name: str, method: Callable[..., Any], stack: Any) -> Any:
    stack.enter_context(mock.patch.object(cls, name, method))
    return cls


def on_the_instance(cls: Any, name: str, method: Callable[..., Any], stack: Any) -> Any:
    def make(*args: Any, **keywords: Any) -> Any:
        client = cls(*args, **keywords)
        setattr(client, name, types.MethodType(method, client))
        return client

    return make


@pytest.mark.parametrize("way", [in_subclass, on_the_class, on_the_instance])
@pytest.mark.parametrize("hook", HOOKS)
def test_a_replaced_method_is_called_as_in_smtplib(start, hook, way):
    def calls(cls: type) -> list[object]:
        seen: list[object] = []
        original = getattr(cls, hook)

        def method(self: Any, *args: Any, **keywords: Any) -> Any:
            seen.append((args, keywords))
            return original(self, *args, **keywords)

        with contextlib.ExitStack() as stack, contextlib.redirect_stderr(io.StringIO()):
            client, _ = start(way(cls, hook, method, stack), **HOOKS[hook])
            seen.clear()
            client.debuglevel = int(hook == "_print_debug")
            send(client, [A, B])
        return seen

    theirs, ours = calls(smtplib.SMTP), calls(fastsmtp.SMTP)
    assert theirs
    if hook == "close":  # once more does no harm
        del ours[1:]
    assert ours == theirs


def called_in(call: Callable[[], Any]) -> set[str]:
    """Return the names of the methods of fastsmtp.SMTP that a call comes through."""
    methods = {
        inspect.unwrap(function).__code__: name
        for name, function in vars(fastsmtp.SMTP).items()
        if isinstance(function, types.FunctionType)
    }
    called: set[str] = set()

    def profile(frame: Any, event: str, arg: object) -> None:
        if frame.f_code in methods:
            called.add(methods[frame.f_code])

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return called


OBSERVED = {"send", "putcmd", "getreply", "mail", "rcpt", "data"}


@pytest.mark.parametrize("extensions", [EXTENSIONS, ()], ids=["pipelined", "in steps"])
def test_the_fast_path_is_taken_where_nobody_looks(start, extensions):
    client, server = start(extensions=extensions)
    client.ehlo()
    assert called_in(lambda: send(client)).isdisjoint(OBSERVED)
    client.putcmd = client.putcmd
    assert called_in(lambda: send(client)) >= OBSERVED
    del client.putcmd
    assert called_in(lambda: send(client)).isdisjoint(OBSERVED)
    client.noop()
    assert [message.recipients for message in server.messages] == [[A]] * 3


REFUSALS: dict[str, dict[Any, Reply]] = {
    "none": {},
    "MAIL": {"MAIL": b"550 no\r\n"},
    "one RCPT": {("RCPT", 1): b"550 no\r\n"},
    "every RCPT": {"RCPT": b"550 no\r\n"},
    "DATA": {"DATA": b"451 later\r\n"},
    "body": {"body": b"554 no\r\n"},
    "second body": {("body", 2): b"554 no\r\n"},
    "body, and RSET is not answered": {"body": b"554 no\r\n", "RSET": close},
    "421 for RCPT": {("RCPT", 2): (b"421 bye\r\n", close)},
    "421 for DATA": {"DATA": (b"421 bye\r\n", close)},
    "421 for the body": {("body", 1): (b"421 bye\r\n", close)},
    "end": {"body": close},
}


@pytest.mark.parametrize("kind", ["SMTP", "LMTP"])
@pytest.mark.parametrize("refusal", REFUSALS)
def test_both_paths_come_to_the_same(start, kind, refusal):
    """Whether our methods are called, or nobody could tell."""

    def outcome(by_method: bool) -> object:
        cls = getattr(fastsmtp, kind)
        client, _ = start(cls, lmtp=kind == "LMTP", replies=REFUSALS[refusal])
        if by_method:
            client.putcmd = client.putcmd
        results = []
        while client.sock and len(results) < 2:
            result = send(client, [A, B])
            results.append(repr(result))
        return results, client.sock is None

    assert outcome(by_method=True) == outcome(by_method=False)


def test_methods_call_each_other_as_in_smtplib(start, certificate):
    """Whatever method is overridden, it is called where smtplib calls it."""

    def calls(cls: type) -> list[str]:
        seen: list[str] = []
        client, server = start(
            type("Traced", (cls,), tracing(cls, seen)),
            extensions=("STARTTLS", "AUTH LOGIN PLAIN CRAM-MD5"),
            users={"user": "secret"},
            tls=server_tls(certificate),
            replies={("AUTH", 1): b"504 no\r\n"},
        )
        client._host = "localhost"  # which smtplib's connect() sets from 3.14 on
        client.starttls(context=client_tls(certificate))
        client.login("user", "secret")
        client.send_message(letter(), FROM, [A])
        for verb in ("help", "noop", "rset", "helo"):
            getattr(client, verb)()
        for verb in ("verify", "vrfy", "expn"):
            getattr(client, verb)("somebody")
        with client:
            pass
        client.connect(server.host, server.port)
        client.quit()
        return seen

    ours = calls(fastsmtp.SMTP)
    while "auth: ehlo_or_helo_if_needed" in ours:  # row 7b of docs/differences.md
        ours.remove("auth: ehlo_or_helo_if_needed")
    assert ours == calls(smtplib.SMTP)


def tracing(cls: type, seen: list[str]) -> dict[str, Callable[..., Any]]:
    """Return methods that write down who called them, and call those of *cls*."""
    callers = ["nobody"]

    def method(name: str) -> Callable[..., Any]:
        def call(self: Any, *args: Any, **keywords: Any) -> Any:
            seen.append(f"{callers[-1]}: {name}")
            callers.append(name)
            try:
                return getattr(cls, name)(self, *args, **keywords)
            finally:
                callers.pop()

        return call

    names = [name for name, it in vars(smtplib.SMTP).items() if isinstance(it, types.FunctionType)]
    return {name: method(name) for name in names}


def letter() -> EmailMessage:
    made = EmailMessage()
    made["From"], made["To"] = FROM, A
    made.set_content("hello\n")
    return made


def test_an_instance_whose_init_did_nothing_works(start):
    class Idle(fastsmtp.SMTP):
        def __init__(self, *args: object, **keywords: object) -> None:
            pass

    client, server = start(Idle)
    assert client.connect(server.host, server.port)[0] == 220
    assert not client.has_extn("size")
    assert send(client) == {}
    assert client.quit()[0] == 221
    assert type(attempt(client.noop)) is smtplib.SMTPServerDisconnected


def unbound_sendmail(client: Any) -> Any:
    return smtplib.SMTP.sendmail(client, FROM, A, HELLO)


#: Methods of smtplib's class, called on an instance of ours, as other people's code does.
UNBOUND: dict[str, Callable[[Any], Any]] = {
    "sendmail": unbound_sendmail,
    "send_message": lambda client: smtplib.SMTP.send_message(client, letter(), FROM, [A]),
    "data": lambda client: (
        client.mail(FROM),
        client.rcpt(A),
        smtplib.SMTP.data(client, HELLO) and {},
    )[2],
    "docmd": lambda client: (
        smtplib.SMTP.docmd(client, "noop"),
        client.noop(),
        client.sendmail(FROM, A, HELLO),
    )[2],
    "getreply": lambda client: (
        client.putcmd("noop"),
        smtplib.SMTP.getreply(client),
        client.sendmail(FROM, A, HELLO),
    )[2],
    "close and connect": lambda client: (
        smtplib.SMTP.close(client),
        smtplib.SMTP.connect(client, "127.0.0.1", client.default_port),
        client.sendmail(FROM, A, HELLO),
    )[2],
    "ehlo": lambda client: (smtplib.SMTP.ehlo(client), client.sendmail(FROM, A, HELLO))[1],
    "quit": lambda client: (unbound_sendmail(client), smtplib.SMTP.quit(client))[0],
    "login": lambda client: (
        smtplib.SMTP.login(client, "user", "secret"),
        client.sendmail(FROM, A, HELLO),
    )[1],
}


@pytest.mark.parametrize("name", UNBOUND)
def test_methods_of_smtplib_work_on_our_instances(start, name):
    client, server = start(**LOGIN)
    client.default_port = server.port
    assert UNBOUND[name](client) == {}
    assert client.sock is None or client.noop()[1].startswith(b"noop ")
    assert [message.recipients for message in server.messages] == [[A]]


def test_a_subclass_may_call_the_init_of_smtplib(start):
    class Odd(fastsmtp.SMTP):
        def __init__(self, *args: Any, **keywords: Any) -> None:
            smtplib.SMTP.__init__(self, *args, **keywords)

    client, server = start(Odd)
    assert client.local_hostname == NAME
    assert send(client) == {}
    assert server.commands[0] == f"ehlo {NAME}"


# -- sock and file ------------------------------------------------------------


def test_an_assigned_file_is_read(start, library):
    client, _ = start(library.SMTP)
    client.file = io.BytesIO(b"250-one\r\n250 two\r\n251 three\r\n")
    assert client.noop() == (250, b"one\ntwo")
    assert client.getreply() == (251, b"three")
    assert type(attempt(client.getreply)) is smtplib.SMTPServerDisconnected


def test_a_file_taken_away_is_made_again(start, library):
    client, _ = start(library.SMTP)
    client.file = None
    assert client.noop() == (250, b"noop 1")
    assert client.file.readline is not None
    client.file = io.BytesIO(b"250 from the file\r\n")
    assert client.noop() == (250, b"from the file")
    client.file = None
    assert client.getreply() == (250, b"noop 2")


def test_an_assigned_socket_is_used_and_the_buffer_dropped(start):
    client, first = start(replies={"NOOP": b"250 one\r\n250 left over\r\n"})
    assert client.noop() == (250, b"one")
    other, second = start()
    client.sock.close()
    client.sock = other.sock
    assert client.noop() == (250, b"noop 1")
    assert (first.received, second.received) == (b"noop\r\n", b"noop\r\n")


def test_other_people_s_code_reads_the_file(start, library):
    client, _ = start(library.SMTP, replies={"XYZ": b"250-one\r\n250 two\r\n"})
    client.noop()
    client.putcmd("XYZ")
    assert client.file.readline() == b"250-one\r\n"
    assert client.file.readline(5) == b"250 t"
    assert client.file.readline(100) == b"wo\r\n"
    assert client.noop() == (250, b"noop 2")


@pytest.mark.parametrize("forget", [True, False])
def test_a_socket_wrapped_by_hand(start, certificate, forget):
    client, server = start(extensions=("STARTTLS", *EXTENSIONS), tls=server_tls(certificate))
    client.ehlo()
    assert client.docmd("STARTTLS")[0] == 220
    client.sock = client_tls(certificate).wrap_socket(client.sock, server_hostname="localhost")
    if forget:  # as smtplib's starttls() does
        client.file = None
    client.ehlo()
    assert "putcmd" not in called_in(lambda: send(client))
    client.noop()
    assert server.messages[0].recipients == [A]


class Recording:
    """A socket in all that smtplib needs, and no more."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.written = b""

    def sendall(self, data: bytes) -> None:
        self.written += data
        self.sock.sendall(data)

    def makefile(self, mode: str) -> Any:
        return self.sock.makefile(mode)

    def close(self) -> None:
        self.sock.close()


def test_a_socket_that_is_not_the_standard_library_s(start, library):
    client, server = start(library.SMTP)
    client.file = None
    client.sock = recording = Recording(client.sock)
    assert send(client) == {}
    assert recording.written == server.received


@pytest.mark.parametrize("call", ["noop", "quit", "sendmail"])
def test_a_socket_that_somebody_has_closed(start, call):
    client, _ = start()
    client.ehlo()
    client.sock.close()
    with pytest.raises(smtplib.SMTPServerDisconnected):
        getattr(client, call)(*([FROM, A, HELLO] if call == "sendmail" else []))
    assert client.sock is None


def test_a_mock_in_the_place_of_the_socket_class(start):
    client, server = start()
    with mock.patch("socket.socket"):
        assert send(client) == {}
        assert client.noop()[0] == 250
    assert len(server.messages) == 1


class Interrupted(Recording):
    def sendall(self, data: bytes) -> None:
        super().sendall(data[:2])
        raise KeyboardInterrupt


def test_an_interrupt_while_a_command_is_written_closes(start):
    """Half a command would be the beginning of the next one."""
    client, _ = start()
    client.file = None
    client.sock = Interrupted(client.sock)
    with pytest.raises(KeyboardInterrupt):
        client.noop()
    assert client.sock is None


def test_text_that_has_no_bytes_is_not_written(start, library):
    client, server = start(library.SMTP)
    with pytest.raises(UnicodeEncodeError):
        client.docmd("XYZ", "\ud800")
    client.quit()
    assert server.received == b"quit\r\n"


def test_nothing_is_done_without_a_connection():
    client = fastsmtp.SMTP()
    for call in (client.getreply, client.noop, lambda: client.send("noop\r\n"), client.quit):
        assert str(attempt(call)) == "please run connect() first"
    assert "please run connect() first" in str(send(client))


# -- names set on the package -------------------------------------------------

TWO_CHALLENGES = b"220 hi\r\n", b"250-m\r\n250 AUTH LOGIN\r\n", b"334 eA==\r\n", b"334 eA==\r\n"

#: For each name: what it is set to, a call, and the server's details.
REPLACED: dict[str, tuple[Any, Callable[[Any], Any], dict[str, Any]]] = {
    "quoteaddr": (lambda address: "<replaced@example.org>", send, {}),
    "_quote_periods": (lambda data: data.replace(b"hello", b"replaced"), send, {}),
    "_fix_eols": (lambda text: text.replace("hello", "replaced"), send, {}),
    "_addr_only": (lambda address: "replaced", lambda client: client.verify(A), {}),
    "encode_base64": (
        lambda data, eol: "replaced",
        lambda client: attempt(client.login, "user", "secret"),
        LOGIN,
    ),
}


@pytest.mark.parametrize("name", REPLACED)
def test_a_function_set_on_the_package_is_used(start, library, name, monkeypatch):
    value, call, details = REPLACED[name]
    client, server = start(library.SMTP, **details)
    call(client)
    assert "replaced" not in server.received.decode()
    monkeypatch.setattr(library, name, value)
    call(client)
    assert "replaced" in server.received.decode()


def test_a_line_s_length_set_on_the_package(start, library, monkeypatch):
    client, _ = start(library.SMTP, replies={"MAIL": b"250 " + b"x" * 94 + b"\r\n"})
    client.ehlo()
    assert send(client) == {}
    monkeypatch.setattr(library, "_MAXLINE", 99)
    assert send(client).args == (500, "Line too long.")
    assert client.sock is None


def test_the_number_of_challenges_set_on_the_package(start, library, monkeypatch):
    def challenge_forever(connection: Connection) -> None:
        while True:
            connection.send(b"334 Zm9v\r\n")
            connection.line()

    monkeypatch.setattr(library, "_MAXCHALLENGE", 2)
    client, server = start(library.SMTP, **{**LOGIN, "replies": {"AUTH": challenge_forever}})
    assert "infinite loop" in str(attempt(client.login, "user", "secret"))
    assert server.received.count(b"AHVzZXIAc2VjcmV0") == 3  # with AUTH, and two more


def test_sockets_set_on_the_package(start, library, monkeypatch):
    _, server = start()
    asked: list[object] = []

    class Sockets(types.ModuleType):
        _GLOBAL_DEFAULT_TIMEOUT = socket._GLOBAL_DEFAULT_TIMEOUT
        gaierror = socket.gaierror

        def create_connection(self, *args: Any) -> socket.socket:
            asked.append(args)
            return socket.create_connection((server.host, server.port), 5)

        def getfqdn(self) -> str:
            return "mock"

        gethostname = getfqdn

        def gethostbyname(self, name: str) -> str:
            return "192.0.2.1"

    monkeypatch.setattr(library, "socket", Sockets("socket"))
    with library.SMTP("mail.example", 2525, timeout=7) as client:
        assert asked == [(("mail.example", 2525), 7, None)]
        assert client.local_hostname == "[192.0.2.1]"  # RFC 5321, section 4.1.3


def test_the_name_of_a_host_without_an_address(library, monkeypatch):
    def fail(*args: object) -> None:
        raise socket.gaierror("no such host")

    monkeypatch.setattr(socket, "getfqdn", lambda: "nowhere")
    monkeypatch.setattr(socket, "gethostbyname", fail)
    assert library.SMTP().local_hostname == "[127.0.0.1]"


def test_tls_set_on_the_package(start, library, certificate, monkeypatch):
    trusting = types.SimpleNamespace(_create_stdlib_context=lambda **_: client_tls(certificate))
    monkeypatch.setattr(library, "ssl", trusting)
    client, _ = start(library.SMTP, extensions=("STARTTLS",), tls=server_tls(certificate))
    client._host = "localhost"
    client.starttls()
    assert client.sock.context.verify_mode is ssl.CERT_REQUIRED
    monkeypatch.setattr(library, "_have_ssl", False)
    again, _ = start(library.SMTP, extensions=("STARTTLS",), tls=server_tls(certificate))
    with pytest.raises(RuntimeError, match="No SSL support"):
        again.starttls()


def test_no_cram_md5_set_on_the_package(start, monkeypatch):
    """As in smtplib from 3.14 on."""
    monkeypatch.setattr(fastsmtp, "_have_cram_md5_support", False)
    client, server = start(extensions=("AUTH CRAM-MD5 PLAIN",), users={"user": "secret"})
    assert client.login("user", "secret")[0] == 235
    assert b"CRAM-MD5" not in server.received
    with pytest.raises(smtplib.SMTPException, match="CRAM-MD5 is not supported"):
        client.auth("CRAM-MD5", client.auth_cram_md5)


# -- audit events -------------------------------------------------------------

AUDITED = """
import sys
import fastsmtp

sent, connected = [], []

def hook(event, args):
    if event == "smtplib.send":
        assert args[0] is client
        sent.append(bytes(args[1]))
    elif event == "smtplib.connect":
        connected.append(args)

sys.addaudithook(hook)
host, port, by_method = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "True"
client = fastsmtp.SMTP(local_hostname="client.example", timeout=5)
client.connect(host, port)
assert connected == [(client, host, port)]
if by_method:
    client.mail = client.mail
client.sendmail("from@example.org", ["a@example.org"] * 3, b"one\\n.two\\n")
client.quit()
sys.stdout.buffer.write(b"".join(sent))
"""


@pytest.mark.parametrize("by_method", [False, True])
def test_audit_events_have_what_is_written(by_method):
    with ModelServer() as server:
        arguments = [server.host, str(server.port), str(by_method)]
        done = subprocess.run(
            [sys.executable, "-c", AUDITED, *arguments],
            stdout=subprocess.PIPE,
            check=True,
            timeout=30,
        )
    assert len(server.messages[0].recipients) == 3
    assert done.stdout == server.received


# -- debug output, and what is not shown --------------------------------------


def shown(client: Any, call: Callable[[Any], Any]) -> tuple[str, list[str]]:
    """Return what debug output shows during a call, and what the logger has."""
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        client.set_debuglevel(1)
        call(client)
    return stderr.getvalue()


@pytest.mark.parametrize("level", [0, 1])
def test_the_logger_has_what_debug_output_shows(start, caplog, level):
    caplog.set_level(logging.DEBUG, "fastsmtp")
    client, server = start(replies={("RCPT", 1): b"550-no\r\n550 never\r\n"})
    caplog.clear()
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        client.set_debuglevel(level)
        send(client, [A, B])
        client.close()
        client.connect(server.host, server.port)
    logged = [record.getMessage() for record in caplog.records]
    assert any(line.startswith("send:") for line in logged)
    assert any("550 never" in line for line in logged)
    assert any(line.startswith("connect: to") for line in logged)
    assert stderr.getvalue().splitlines() == (logged if level else [])


PASSWORD = "correct horse"


#: How many challenges come before the password is sent.
CHALLENGES = {"PLAIN": 0, "LOGIN": 1, "CRAM-MD5": 1, "XOAUTH2": 0}

JSON = base64.b64encode(b'{"token":"%b"}' % PASSWORD.encode())

#: What the server then says; ``SAID`` stands for what the client said last.
ECHOES: dict[str, tuple[Reply, ...]] = {
    "no echo": (b"535 no\r\n",),
    "success": (b"235-ok\r\n235 SAID PASSWORD\r\n",),
    "refusal": (b"535-no\r\n535 SAID PASSWORD\r\n",),
    "refusal and close": (b"535-no\r\n535 SAID PASSWORD\r\n", close),
    "421": (b"421 SAID PASSWORD\r\n", close),
    "challenge": (b"334 SAID\r\n", Connection.line, b"535 no\r\n"),
    "JSON": (b"334 " + JSON + b"\r\n", Connection.line, b"535 no\r\n"),
}


def test_the_root_logger_s_level_is_not_the_logger_s(start, caplog):
    caplog.set_level(logging.DEBUG)
    client, _ = start()
    assert send(client) == {}
    assert not [record for record in caplog.records if record.name == "fastsmtp"]


def test_what_a_handler_sends_is_not_logged_in_turn(start, caplog):
    class ByMail(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            mailed.append(send(other))

    mailed: list[Any] = []
    other, server = start()
    client, _ = start()
    caplog.set_level(logging.DEBUG, "fastsmtp")
    handler = ByMail()
    logging.getLogger("fastsmtp").addHandler(handler)
    try:
        client.noop()
    finally:
        logging.getLogger("fastsmtp").removeHandler(handler)
    assert mailed == [{}] * 3  # what was sent, the line of the reply, and the reply
    assert other.noop()[0] == 250
    assert len(server.messages) == 3


def exchange(challenges: int, replies: tuple[Reply, ...]) -> Callable[[Connection], None]:
    def play(connection: Connection) -> None:
        for _ in range(challenges):
            connection.send(b"334 eA==\r\n")
            connection.line()
        said = connection.received.split()[-1]
        for each in replies:
            if isinstance(each, bytes):
                connection.send(each.replace(b"SAID", said).replace(b"PASSWORD", PASSWORD.encode()))
            else:
                connection.play(each)

    return play


@pytest.mark.parametrize("way", ECHOES)
@pytest.mark.parametrize("mechanism", CHALLENGES)
def test_no_credentials_are_shown(start, mechanism, way, caplog):
    caplog.set_level(logging.DEBUG, "fastsmtp")
    seen: list[object] = []
    play = exchange(CHALLENGES[mechanism], ECHOES[way])
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        client, server = start(extensions=(f"AUTH {mechanism}",), replies={"AUTH": play})
        client.set_debuglevel(2)
        for call in (lambda: client.login("user", PASSWORD), client.noop):
            try:
                seen.append(call())
            except smtplib.SMTPException as error:
                seen += [repr(error), vars(error), traceback.format_exc()]
    assert "AUTH" in stderr.getvalue()
    assert "AUTH" in caplog.text
    text = " ".join(map(str, [*seen, repr(client), stderr.getvalue(), caplog.text]))
    sent = [word.decode() for word in server.received.split() if len(word) >= 16]
    assert sent
    assert [each for each in (PASSWORD, *sent) if each in text] == []


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.docmd("AUTH", "PLAIN c2VjcmV0"),
        lambda client: client.docmd("auth  plain c2VjcmV0"),
        lambda client: client.send("AUTH PLAIN c2VjcmV0\r\n"),
        lambda client: client.send(b"AUTH PLAIN c2VjcmV0\r\n"),
        lambda client: (client.docmd("AUTH", "PLAIN"), client.docmd("c2VjcmV0")),
        lambda client: client.docmd("AUTH", "PLAIN c2VjcmV0\0"),
        lambda client: client.docmd("AUTH", "PLAIN\0c2VjcmV0"),
        lambda client: client.docmd("AUTH\tPLAIN c2VjcmV0"),
    ],
)
def test_no_credentials_of_a_handmade_command_are_shown(start, call, caplog):
    caplog.set_level(logging.DEBUG, "fastsmtp")
    client, _ = start(replies={"AUTH": b"334 \r\n"})
    try:
        call(client)
    except ValueError as error:
        caplog.records.append(logging.makeLogRecord({"msg": repr(error)}))
    text = " ".join(record.getMessage() for record in caplog.records)
    assert "auth" in text.lower()
    assert "c2VjcmV0" not in text


# -- TLS ----------------------------------------------------------------------

LINE = b"x" * 74 + b"\r\n"


def over_starttls(start: Any, pem: Any) -> Any:
    client, server = start(extensions=("STARTTLS", *EXTENSIONS), tls=server_tls(pem))
    client._host = "localhost"
    client.starttls(context=client_tls(pem))
    return client, server


def over_tls(start: Any, pem: Any) -> Any:
    def make(host: str, *args: Any, **keywords: Any) -> Any:
        return fastsmtp.SMTP_SSL(host, *args, context=client_tls(pem), **keywords)

    return start(make, tls=server_tls(pem), implicit_tls=True)


def in_clear(start: Any, pem: Any) -> Any:
    return start()


@pytest.mark.parametrize("way", [over_starttls, over_tls, in_clear])
def test_a_large_message_to_many_on_the_fast_path(start, way, certificate):
    client, server = way(start, certificate)
    people = [f"user{number}@example.org" for number in range(2000)]
    body = (LINE * 9 + b"." + LINE) * (5_000_000 // 760)
    client.ehlo()
    called = called_in(lambda: client.sendmail(FROM, people, body))
    assert called.isdisjoint(OBSERVED)
    assert client.noop() == (250, b"noop 1")
    assert server.messages[0].recipients == people
    assert server.messages[0].data == body


def test_the_certificate_is_checked_if_the_context_does(start, certificate):
    with ModelServer(tls=server_tls(certificate), implicit_tls=True) as server:
        address = "localhost", server.port, NAME
        with pytest.raises(ssl.SSLCertVerificationError):
            fastsmtp.SMTP_SSL(*address, context=ssl.create_default_context(), timeout=5)
        with fastsmtp.SMTP_SSL(*address, context=client_tls(certificate), timeout=5) as client:
            assert send(client) == {}
        with fastsmtp.SMTP_SSL(*address, timeout=5) as client:  # as smtplib: not at all
            assert send(client) == {}


# -- replies while we write ---------------------------------------------------


def small_buffers(cls: Any, size: int = 4096, **more: Any) -> Any:
    """Return the class with such socket buffers; nobody would see another method called."""

    class Small(cls):
        def _get_socket(self, host: str, port: int, timeout: float | None) -> Any:
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
            sock.settimeout(timeout)
            sock.connect((host, port))
            return sock

    return Small


def verbose(connection: Connection) -> None:
    """Take messages; answer each RCPT with 400 bytes, and do not read meanwhile."""
    connection.send(b"220 hi\r\n")
    connection.line()
    connection.send(b"250-m\r\n250 PIPELINING\r\n")
    unread, number = b"", 0
    while True:
        *lines, unread = (unread + connection.receive()).split(b"\r\n")
        for line in lines:
            if line.lower().startswith(b"rcpt"):
                number += 1
                code = 250 + 300 * (number % 2)  # every other one is refused
                connection.send(b"%d %d %s\r\n" % (code, number, b"x" * 386))
            elif line.lower() == b"data":
                connection.send(b"354 go ahead\r\n")
                connection.body()
                connection.send(b"250 taken\r\n")
            else:
                connection.send(b"250 ok\r\n")


def check_everybody_was_answered(client: Any, people: list[str]) -> None:
    refused = client.sendmail(FROM, people, HELLO)
    assert list(refused) == people[::2]
    last = len(people) - 1
    assert refused[people[last - 1]][1].startswith(b"%d xxx" % last)
    assert client.noop() == (250, b"ok")


def many(number: int) -> list[str]:
    return [f"user{each}@example.org" for each in range(number)]


def test_no_deadlock_with_50_000_recipients():
    with Server(verbose, buffer_size=4096) as server:
        client = small_buffers(fastsmtp.SMTP)(server.host, server.port, NAME, timeout=5)
        with contextlib.closing(client):
            check_everybody_was_answered(client, many(50_000))


def test_no_deadlock_over_tls(certificate):
    with Server(verbose, buffer_size=4096, tls=server_tls(certificate)) as server:
        small = small_buffers(fastsmtp.SMTP)

        class SmallTLS(small):
            def _get_socket(self, host: str, port: int, timeout: float | None) -> Any:
                plain = super()._get_socket(host, port, timeout)
                return client_tls(certificate).wrap_socket(plain, server_hostname="localhost")

        client = SmallTLS(server.host, server.port, NAME, timeout=5)
        with contextlib.closing(client):
            check_everybody_was_answered(client, many(5_000))


def test_credentials_that_cannot_be_written_are_not_in_the_error(start):
    # os.environ gives such text for bytes that are not UTF-8.
    client, server = start(extensions=("AUTH CRAM-MD5", *EXTENSIONS), users={"user": "secret"})
    with pytest.raises(ValueError, match="UTF-8") as caught:
        client.login("user", "secret\udcff")
    assert caught.value.__context__ is None
    client, server = start(**LOGIN)
    client.ehlo()
    with pytest.raises(ValueError, match="ascii") as caught:
        client.docmd("AUTH PLAIN", "secreté")
    assert "secret" not in repr(caught.value)
    assert caught.value.__context__ is None
    assert client.noop()[0] == 250
    assert server.commands[1:] == ["noop"]


@pytest.mark.parametrize("by_method", [False, True])
def test_a_reply_too_many_before_the_message_is_not_the_message_s(by_method):
    extra = b"354 go ahead\r\n250 not asked for\r\n"

    def play(connection: Connection) -> None:
        for reply in (b"220 x\r\n", b"250 x\r\n", b"250 ok\r\n", b"250 ok\r\n"):
            connection.send(reply)
            connection.line()
        connection.send(extra)

    with Server(play) as server, fastsmtp.SMTP(server.host, server.port, NAME, timeout=5) as client:
        client.set_debuglevel(0)
        if by_method:
            client.noop = client.noop
            client.mail = client.mail
        with pytest.raises(fastsmtp.SMTPProtocolError, match=r"354 go ahead|250 not asked for"):
            client.sendmail(FROM, A, HELLO)
        assert client.sock is None


def test_last_words_that_cannot_be_read():
    def play(connection: Connection) -> None:
        for reply in (b"220 x\r\n", b"250 x\r\n", b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n"):
            connection.send(reply)
            connection.line()
        connection.send(b"552-" + b"x" * 9000)
        connection.play(reset)

    with Server(play) as server, fastsmtp.SMTP(server.host, server.port, NAME, timeout=5) as client:
        client.mail = client.mail
        error = send(client, A, b"x" * 5_000_000)
        assert isinstance(error, smtplib.SMTPException)
        assert client.sock is None


def refuse_early(end: Reply) -> Callable[[Connection], None]:
    def play(connection: Connection) -> None:
        connection.send(b"354 go ahead\r\n")
        connection.receive()
        connection.send(b"552 too big\r\n")
        connection.play(end)

    return play


@pytest.mark.parametrize("end", [close, reset], ids=["orderly", "reset"])
@pytest.mark.parametrize("way", [over_starttls, over_tls, in_clear])
@pytest.mark.parametrize("pipelining", [True, False])
def test_a_refusal_in_the_middle_of_the_message_is_reported(
    start, way, certificate, end, pipelining
):
    client, server = way(start, certificate)
    server.replies["DATA"] = refuse_early(end)
    client.pipelining = pipelining
    error = send(client, A, LINE * 70_000)
    assert type(error) is smtplib.SMTPDataError
    assert error.args == (552, b"too big")
    assert client.sock is None or type(attempt(client.noop)) is smtplib.SMTPServerDisconnected
    assert server.messages == []


@pytest.mark.parametrize("end", [close, reset], ids=["orderly", "reset"])
@pytest.mark.parametrize("number", [2, 20_000])
def test_a_421_in_the_middle_of_a_flight_is_reported(start, number, end):
    """Also if the rest of the flight could not be written any more."""
    client, _ = start(replies={"MAIL": (b"250 ok\r\n550 no\r\n421 enough\r\n", end)})
    people = many(number)
    error = send(client, people)
    assert type(error) is smtplib.SMTPRecipientsRefused
    assert error.recipients == {people[0]: (550, b"no"), people[1]: (421, b"enough")}
    assert client.sock is None


@pytest.mark.parametrize("way", [over_tls, in_clear])
def test_such_a_refusal_is_the_last_reply_if_methods_are_called(start, way, certificate):
    client, server = way(start, certificate)
    server.replies["DATA"] = refuse_early(reset)
    client.putcmd = client.putcmd
    error = send(client, A, LINE * 70_000)
    assert type(error) is smtplib.SMTPServerDisconnected
    assert error.last_reply == (552, b"too big")
    assert client.sock is None


# -- LMTP, threads ------------------------------------------------------------


@pytest.mark.parametrize("unix", [False, True], ids=["TCP", "Unix socket"])
def test_lmtp(unix, tmp_path):
    path = str(tmp_path / "lmtp") if unix else None
    with (
        ModelServer(lmtp=True, path=path, replies={("body", 2): b"550 full\r\n"}) as server,
        fastsmtp.LMTP(server.host, server.port, NAME, timeout=5) as client,
    ):
        assert send(client, [A, B]) == {B: (550, b"full")}
        assert send(client, [A, B]) == {}
    assert server.commands[0] == f"lhlo {NAME}"
    assert [message.recipients for message in server.messages] == [[A], [A, B]]


@pytest.mark.parametrize("lines", [1, 100, 10_000])
def test_lmtp_with_a_reply_for_each_of_many(lines):
    message = b"x" * 70 + b"\r\n"
    with (
        ModelServer(lmtp=True) as server,
        fastsmtp.LMTP(server.host, server.port, NAME, timeout=5) as client,
    ):
        assert send(client, many(50), message * lines) == {}
        assert client.noop()[0] == 250
    assert [message.data for message in server.messages] == [message * lines]


def test_lmtp_on_a_unix_socket_that_is_not_there(tmp_path, library, capsys):
    client = library.LMTP(local_hostname=NAME)
    client.set_debuglevel(1)
    with pytest.raises(FileNotFoundError):
        client.connect(str(tmp_path / "nowhere"))
    assert client.sock is None
    assert capsys.readouterr().err == f"connect fail: {tmp_path / 'nowhere'}\n"
    with pytest.raises(ValueError, match="Non-blocking"):
        library.LMTP(str(tmp_path / "nowhere"), local_hostname=NAME, timeout=0)


def test_one_connection_for_each_of_many_threads():
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            with fastsmtp.SMTP(server.host, server.port, NAME, timeout=5) as client:
                for each in range(20):
                    client.sendmail(f"{number}@x", [f"{each}@x", A], f"{number} {each}\n.\n")
        except BaseException as error:
            failures.append(error)

    with ModelServer() as server:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []
    took = {(each.sender, each.recipients[0], each.data) for each in server.messages}
    assert took == {
        (f"{number}@x", f"{each}@x", f"{number} {each}\r\n.\r\n".encode())
        for number in range(8)
        for each in range(20)
    }
