"""Each row of docs/differences.md: what smtplib does, and what fastsmtp does.

smtplib's side is asserted, too, so that these tests tell when smtplib changes.
"""

from __future__ import annotations

import contextlib
import email
import io
import re
import select
import signal
import smtplib
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable
from email.mime.multipart import MIMEMultipart
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support import (
    EXTENSIONS,
    Connection,
    Message,
    ModelServer,
    Reply,
    client_tls,
    close,
    reset,
    server_tls,
    stall,
)

import fastsmtp

DOCUMENT = Path(__file__).parents[1] / "docs" / "differences.md"
NAME = "client.example"
FROM, A, B = "from@example.org", "a@example.org", "b@example.org"
HELLO = "Subject: hello\n\nhello\n"
EIGHT_BIT = b"Content-Type: text/plain; charset=utf-8\n\nFrom caf\xc3\xa9\n"
REFUSED = smtplib.SMTPRecipientsRefused
DISCONNECTED = smtplib.SMTPServerDisconnected
IN_STEP = (250, b"noop 1")

TESTS: dict[str, list[str]] = {}


def row(number: str) -> Callable[[Any], Any]:
    """Name the row that a test shows."""

    def mark(test: Any) -> Any:
        TESTS.setdefault(number, []).append(test.__name__)
        return test

    return mark


def test_every_row_has_a_test():
    rows = re.findall(r"(?m)^\| (\d+[a-z]?) \| \*\*", DOCUMENT.read_text("utf-8"))
    assert sorted(rows) == sorted(TESTS)


# -- how both are tried -------------------------------------------------------


class Trial(NamedTuple):
    """What came of a call: its result or exception, and what the server has."""

    result: Any
    closed: bool
    wire: bytes
    messages: list[Message]

    @property
    def verbs(self) -> list[bytes]:
        return re.findall(rb"(?m)^[A-Z]+", self.wire.upper())


def attempt(call: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
    """Return what a call returns, or the exception that it raises."""
    try:
        return call(*args, **keywords)
    except (Exception, KeyboardInterrupt) as error:
        return error


def send(client: Any, to: Any = A, message: Any = HELLO, **keywords: Any) -> Any:
    return attempt(client.sendmail, FROM, to, message, **keywords)


def connected(module: Any, server: ModelServer, kind: str = "SMTP") -> Any:
    return getattr(module, kind)(server.host, server.port, NAME, timeout=5)


def both(
    call: Callable[[Any], Any],
    extensions: tuple[str, ...] = EXTENSIONS,
    kind: str = "SMTP",
    **server: Any,
) -> tuple[Trial, Trial]:
    """Try a call with a client of smtplib's and with one of ours."""
    theirs, ours = (
        one(module, call, ModelServer(extensions, lmtp=kind == "LMTP", **server), kind)
        for module in (smtplib, fastsmtp)
    )
    return theirs, ours


def one(module: Any, call: Callable[[Any], Any], server: ModelServer, kind: str) -> Trial:
    with server:
        client = connected(module, server, kind)
        try:
            result = attempt(call, client)
            closed = client.sock is None
        finally:
            client.close()
    return Trial(result, closed, server.received, server.messages)


def both_send(*args: Any, **server: Any) -> tuple[Trial, Trial]:
    """Send a message with each; the results are that, and NOOP's if it is open still."""
    return both(
        lambda client: (send(client, *args), client.sock and attempt(client.noop)), **server
    )


# -- the rows -----------------------------------------------------------------


@row("1")
def test_lmtp_has_a_reply_for_each_recipient():
    theirs, ours = both_send([A, B], kind="LMTP", replies={("body", 2): b"550 full\r\n"})
    assert theirs.result == ({}, (550, b"full"))
    assert ours.result == ({B: (550, b"full")}, IN_STEP)


@row("1")
def test_lmtp_all_refuse_after_the_data():
    theirs, ours = both_send([A, B], kind="LMTP", replies={"body": b"550 full\r\n"})
    assert type(theirs.result[0]) is smtplib.SMTPDataError
    assert type(ours.result[0]) is REFUSED
    assert ours.result[0].recipients == {A: (550, b"full"), B: (550, b"full")}
    assert ours.result[1] == IN_STEP


@row("2")
def test_an_address_carries_no_parameters():
    theirs, ours = both_send("<> NOTIFY=NEVER")
    assert re.search(rb"(?im)^rcpt to:<> NOTIFY=NEVER\r$", theirs.wire)
    assert type(ours.result[0]) is ValueError
    assert b"NOTIFY" not in ours.wire


@row("3")
@pytest.mark.parametrize("control", ["\0", "\t", "\x1f", "\x7f"], ids=ascii)
def test_control_characters_are_not_sent(control):
    theirs, ours = both(lambda client: client.docmd("XYZ", f"a{control}b"))
    assert theirs.wire == f"XYZ a{control}b\r\n".encode()
    assert (type(ours.result), ours.wire) == (ValueError, b"")


@row("4")
def test_a_bad_third_recipient_leaves_no_open_transaction():
    theirs, ours = both(lambda client: (client.ehlo(), send(client, [A, B, "é@example.org"])))
    assert isinstance(theirs.result[1], UnicodeEncodeError)
    assert isinstance(ours.result[1], UnicodeEncodeError)
    assert theirs.verbs == [b"EHLO", b"MAIL", b"RCPT", b"RCPT"]
    assert ours.verbs == [b"EHLO"]


@row("5a")
def test_421_closes():
    theirs, ours = both(lambda client: client.noop(), replies={"NOOP": b"421 bye\r\n"})
    assert theirs.result == ours.result == (421, b"bye")
    assert (theirs.closed, ours.closed) == (False, True)


@row("5b")
def test_a_lost_connection_names_the_last_reply():
    replies = {("NOOP", 1): b"250 hurry up\r\n", ("NOOP", 2): close}
    theirs, ours = both(lambda client: (client.noop(), attempt(client.noop))[1], replies=replies)
    assert type(theirs.result) is type(ours.result) is DISCONNECTED
    assert "hurry up" not in str(theirs.result)
    assert "250 hurry up" in str(ours.result)
    assert ours.result.last_reply == (250, b"hurry up")


@row("6a")
def test_a_second_greeting_is_no_reply():
    replies = {"greeting": b"220 hello\r\n220 hello again\r\n"}
    theirs, ours = both(lambda client: client.noop(), replies=replies)
    assert theirs.result == (220, b"hello again")
    assert type(ours.result) is fastsmtp.SMTPProtocolError
    assert (ours.closed, ours.wire) == (True, b"")


@row("6b")
@pytest.mark.parametrize("injected", [b"250 injected\r\n", b"250 inj"])
def test_bytes_left_over_at_starttls(injected, certificate):
    theirs, ours = both(
        lambda client: (name(client), client.starttls(context=client_tls(certificate)))[1],
        extensions=("STARTTLS",),
        tls=server_tls(certificate),
        replies={"STARTTLS": b"220 go ahead\r\n" + injected},
    )
    assert theirs.result == (220, b"go ahead")
    assert (type(ours.result), ours.closed) == (fastsmtp.SMTPProtocolError, True)


def name(client: Any) -> None:
    client._host = "localhost"  # up to 3.13 smtplib has what it was given, see row 15b


@row("6c")
def test_a_reply_has_a_largest_size():
    lines = b"250-" + b"x" * 1000 + b"\r\n"
    theirs, ours = both(
        lambda client: client.noop(), replies={"NOOP": (lines * 2000 + b"250 end\r\n", stall)}
    )
    assert theirs.result[0] == 250
    assert type(ours.result) is smtplib.SMTPResponseException
    assert (ours.result.smtp_code, ours.closed) == (500, True)


def login(user: str, password: Any, *mechanisms: str, **server: Any) -> tuple[Trial, Trial]:
    extensions = ("AUTH " + " ".join(mechanisms),)
    return both(lambda client: attempt(client.login, user, password), extensions, **server)


@row("7a")
@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5"])
def test_credentials_are_in_utf8(mechanism):
    theirs, ours = login("jürgen", "gehäuse", mechanism, users={"jürgen": "gehäuse"})
    assert type(theirs.result) is UnicodeEncodeError
    assert ours.result == (235, b"welcome")


@row("7b")
def test_auth_says_ehlo():
    theirs, ours = both(
        lambda client: client.auth("PLAIN", lambda challenge=None: "\0user\0secret"),
        users={"user": "secret"},
    )
    assert theirs.result == ours.result == (235, b"welcome")
    assert (theirs.verbs, ours.verbs) == ([b"AUTH"], [b"EHLO", b"AUTH"])


@row("7c")
@pytest.mark.parametrize("token", ["ya29.token", lambda: "ya29.token"], ids=["text", "function"])
def test_xoauth2(token):
    theirs, ours = login("user", token, "XOAUTH2", users={"user": "ya29.token"})
    assert type(theirs.result) is smtplib.SMTPException
    assert ours.result == (235, b"welcome")


@row("7c")
def test_xoauth2_failure_is_acknowledged_and_told():
    theirs, ours = login("user", "old", "XOAUTH2", users={"user": "ya29.token"})
    assert type(theirs.result) is smtplib.SMTPException
    assert ours.result.smtp_code == 535
    assert b'{"status":"401"' in ours.result.smtp_error
    assert ours.wire.endswith(b"\r\n\r\n")


@row("7d")
def test_a_wrong_password_is_offered_once():
    theirs, ours = login("user", "wrong", "CRAM-MD5", "PLAIN", "LOGIN", users={"user": "secret"})
    assert type(theirs.result) is type(ours.result) is smtplib.SMTPAuthenticationError
    assert (theirs.verbs.count(b"AUTH"), ours.verbs.count(b"AUTH")) == (3, 1)


@row("8")
def test_domains_are_written_in_ascii():
    theirs, ours = both_send("user@bücher.example")
    assert type(theirs.result[0]) is UnicodeEncodeError
    assert ours.result == ({}, IN_STEP)
    assert ours.messages[0].recipients == ["user@xn--bcher-kva.example"]


@row("9")
@pytest.mark.parametrize(("module", "lookups"), [(smtplib, 2), (fastsmtp, 1)])
def test_the_local_host_is_looked_up_once(module, lookups, monkeypatch):
    asked: list[None] = []
    monkeypatch.setattr(socket, "getfqdn", lambda: asked.append(None) or "here.example")
    assert {module.SMTP().local_hostname for _ in range(2)} == {"here.example"}
    assert module.SMTP(local_hostname=NAME).local_hostname == NAME
    assert len(asked) == lookups


@row("10")
def test_credentials_are_not_shown():
    def call(client: Any) -> str:
        with contextlib.redirect_stderr(io.StringIO()) as shown:
            client.set_debuglevel(1)
            error = attempt(client.login, "user", "secret")
        return f"{shown.getvalue()} {error!r}"

    echo = {"AUTH": b"535 no AHVzZXIAc2VjcmV0\r\n"}  # what PLAIN sends: RFC 4616, section 2
    theirs, ours = both(call, extensions=("AUTH PLAIN",), replies=echo)
    assert theirs.result.count("AHVzZXIAc2VjcmV0") == 4  # sent, received, parsed, raised
    assert "AHVzZXIAc2VjcmV0" not in ours.result
    assert "535" in ours.result


@row("11a")
def test_any_iterable_of_recipients():
    theirs, ours = both(lambda client: send(client, iter([A, B])))
    assert type(theirs.result) is TypeError
    assert theirs.verbs == [b"EHLO", b"MAIL", b"RCPT", b"RCPT"]
    assert ours.result == {}
    assert ours.messages[0].recipients == [A, B]


@row("11b")
def test_no_recipient():
    theirs, ours = both(lambda client: send(client, []))
    assert type(theirs.result) is type(ours.result) is REFUSED
    assert theirs.result.recipients == ours.result.recipients == {}
    assert (theirs.verbs, ours.wire) == ([b"EHLO", b"MAIL", b"RSET"], b"")


@row("12")
@pytest.mark.parametrize("step", ["MAIL", "body"])
def test_a_timeout_closes(step):
    def call(client: Any) -> Any:
        client.ehlo()
        client.sock.settimeout(0.2)
        return send(client)

    theirs, ours = both(call, replies={step: stall})
    assert type(theirs.result) is type(ours.result) is DISCONNECTED
    assert theirs.closed
    assert ours.closed
    assert (ours.result.last_reply[0] == 354) == (step == "body")


@row("13")
def test_a_refused_data_command_is_reset():
    theirs, ours = both(
        lambda client: (send(client), send(client)), replies={("DATA", 1): b"451 later\r\n"}
    )
    assert type(theirs.result[0]) is type(ours.result[0]) is smtplib.SMTPDataError
    assert type(theirs.result[1]) is smtplib.SMTPSenderRefused
    assert ours.result[1] == {}


@row("14")
def test_the_same_recipient_twice_refused():
    theirs, ours = both_send([A, A], replies={"RCPT": b"550 no\r\n"})
    assert type(theirs.result[0]) is smtplib.SMTPDataError
    assert type(ours.result[0]) is REFUSED
    assert ours.result[1] == IN_STEP


@row("15a")
def test_a_new_connection_begins_with_ehlo():
    with ModelServer() as server:
        for module in (smtplib, fastsmtp):
            client = connected(module, server)
            client.ehlo()
            client.close()
            client.connect(server.host, server.port)
            assert send(client) == {}
            client.close()
    _, theirs, _, ours = (Trial(None, True, each.received, []) for each in server.connections)
    assert (theirs.verbs[0], ours.verbs[0]) == (b"MAIL", b"EHLO")


@row("15b")
@pytest.mark.parametrize("module", [smtplib, fastsmtp])
def test_connect_sets_the_name_of_the_host(module):
    with ModelServer() as server, contextlib.closing(module.SMTP()) as client:
        client.connect(f"localhost:{server.port}")
        follows = module is fastsmtp or sys.version_info >= (3, 14)
        assert client._host == ("localhost" if follows else "")


@row("16a")
def test_an_empty_initial_response_is_an_equals_sign():
    theirs, ours = both(
        lambda client: client.auth("EXTERNAL", lambda challenge=None: ""),
        replies={"AUTH": b"235 ok\r\n"},
    )
    assert theirs.result == ours.result == (235, b"ok")
    assert theirs.wire.endswith(b"AUTH EXTERNAL \r\n")
    assert ours.wire.endswith(b"AUTH EXTERNAL =\r\n")


@row("16b")
def test_a_challenge_that_is_not_base64_is_answered_with_an_asterisk():
    theirs, ours = login("user", "secret", "LOGIN", replies={"AUTH": b"334 x\r\n"})
    assert type(theirs.result).__qualname__ == "Error"  # binascii's
    assert type(ours.result) is smtplib.SMTPAuthenticationError
    assert ours.wire.endswith(b"\r\n*\r\n")
    assert not theirs.wire.endswith(b"\r\n*\r\n")


@row("16c")
def test_challenges_without_end_close():
    theirs, ours = login("user", "secret", "PLAIN", replies={"AUTH": challenge_forever})
    assert type(theirs.result) is type(ours.result) is smtplib.SMTPException
    assert (theirs.closed, ours.closed) == (False, True)


def challenge_forever(connection: Connection) -> None:
    while True:
        connection.send(b"334 Zm9v\r\n")
        connection.line()


@row("17")
def test_smtputf8_is_for_one_message():
    def call(client: Any) -> Any:
        return send(client, "ä@x", mail_options=["SMTPUTF8"]), send(client, "ä@x")

    theirs, ours = both(call)
    assert theirs.result == ({}, {})
    assert ours.result[0] == {}
    assert type(ours.result[1]) is UnicodeEncodeError


@row("18")
def test_the_end_of_the_stream_is_noticed():
    def call(client: Any) -> Any:
        client.noop()
        select.select([client.sock], [], [], 5)  # the end of the stream has arrived
        return client.docmd("XYZ")

    theirs, ours = both(call, replies={"NOOP": (b"250 ok\r\n", close)})
    assert type(theirs.result) is type(ours.result) is DISCONNECTED
    assert (theirs.verbs, ours.verbs) == ([b"NOOP", b"XYZ"], [b"NOOP"])


@row("19")
def test_no_empty_message_by_pipelining():
    replies: dict[str, Reply] = {"RCPT": b"252 hm\r\n", "DATA": b"354 go ahead\r\n"}
    theirs, ours = both_send(replies=replies)
    assert type(theirs.result[0]) is type(ours.result[0]) is REFUSED
    assert theirs.verbs == [b"EHLO", b"MAIL", b"RCPT", b"RSET", b"NOOP"]
    assert ours.verbs == [b"EHLO", b"MAIL", b"RCPT", b"DATA"]
    assert (theirs.closed, ours.closed) == (False, True)
    assert ours.messages == []


@row("20a")
@pytest.mark.parametrize("module", [smtplib, fastsmtp])
def test_keyfile_and_certfile_are_accepted(module, certificate):
    if module is smtplib and sys.version_info >= (3, 12):
        with pytest.raises(TypeError):
            module.SMTP_SSL(keyfile=str(certificate), certfile=str(certificate))
    else:
        with pytest.warns(DeprecationWarning, match="keyfile and certfile are deprecated"):
            module.SMTP_SSL(keyfile=str(certificate), certfile=str(certificate))


@row("20a")
def test_the_warning_points_at_the_caller(certificate):
    with (
        ModelServer((*EXTENSIONS, "STARTTLS"), tls=server_tls(certificate)) as server,
        fastsmtp.SMTP(server.host, server.port) as client,
        pytest.warns(DeprecationWarning, match="keyfile and certfile") as caught,
    ):
        client.starttls(certfile=str(certificate), keyfile=str(certificate))
    assert [Path(warning.filename) for warning in caught] == [Path(__file__)]


@row("20b")
def test_starttls_is_not_sent_in_vain(monkeypatch):
    monkeypatch.setattr(smtplib, "_have_ssl", False)
    monkeypatch.setattr(fastsmtp, "_have_ssl", False)
    replies: dict[str, Reply] = {"STARTTLS": b"220 go ahead\r\n"}
    theirs, ours = both(lambda client: client.starttls(), ("STARTTLS",), replies=replies)
    assert type(theirs.result) is type(ours.result) is RuntimeError
    assert (theirs.verbs, ours.verbs) == ([b"EHLO", b"STARTTLS"], [b"EHLO"])


@row("20b")
def test_a_context_and_a_keyfile_exclude_each_other():
    context = ssl.create_default_context()
    theirs, ours = both(
        lambda client: client.starttls(keyfile="k", context=context),
        extensions=("STARTTLS",),
        replies={"STARTTLS": b"220 go ahead\r\n"},
    )
    gone = sys.version_info >= (3, 12)
    assert type(theirs.result) is (TypeError if gone else ValueError)
    assert theirs.verbs == ([] if gone else [b"EHLO", b"STARTTLS"])
    assert (type(ours.result), ours.verbs) == (ValueError, [b"EHLO"])


@row("20c")
def test_a_failed_handshake_closes(certificate):
    theirs, ours = both(
        lambda client: client.starttls(context=ssl.create_default_context()),
        extensions=("STARTTLS",),
        tls=server_tls(certificate),
    )
    assert type(theirs.result) is type(ours.result) is ssl.SSLCertVerificationError
    assert (theirs.closed, ours.closed) == (False, True)


@row("21")
@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no way to interrupt a thread")
def test_an_interrupt_while_a_reply_is_awaited_closes(request):
    # What runs this may ignore the signal, as shells do for what is in the background.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    caught = threading.Event()

    def interrupt(connection: Connection) -> None:
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        caught.wait(5)
        connection.send(b"250 late\r\n")

    def call(client: Any) -> Any:
        caught.clear()
        interrupted = send(client)
        caught.set()
        return interrupted, attempt(client.noop)

    theirs, ours = both(call, replies={"MAIL": interrupt})
    assert type(theirs.result[0]) is type(ours.result[0]) is KeyboardInterrupt
    assert theirs.result[1] == (250, b"late")
    assert type(ours.result[1]) is DISCONNECTED


@row("22")
def test_a_refusal_before_the_end_of_the_message():
    def refuse(connection: Connection) -> None:
        connection.send(b"354 go ahead\r\n")
        connection.receive()
        connection.send(b"552 too big\r\n")
        reset(connection)

    theirs, ours = both_send(A, b"x" * 5_000_000, replies={"DATA": refuse})
    assert type(theirs.result[0]) is DISCONNECTED
    assert type(ours.result[0]) is smtplib.SMTPDataError
    assert ours.result[0].args == (552, b"too big")
    assert ours.closed


@row("23")
def test_the_message_is_left_alone():
    found = {}
    for library in (smtplib, fastsmtp):
        inner = MIMEMultipart()
        inner.attach(email.message_from_bytes(EIGHT_BIT))
        message = MIMEMultipart(boundary="b")
        message["From"], message["To"] = FROM, A
        message.attach(inner)
        with ModelServer() as server, library.SMTP(server.host, server.port, NAME) as client:
            client.send_message(message)
        assert b">From caf\xc3\xa9" in server.messages[0].data
        found[library] = inner.get_boundary(), inner.get_payload(0).as_bytes()
    boundary, text = found[smtplib]
    assert boundary
    assert text.endswith(b"\n\n>From caf\xc3\xa9\n")
    assert found[fastsmtp] == (None, EIGHT_BIT)


@row("24")
@pytest.mark.parametrize("level", [0, 1])
def test_a_reply_that_trickles_in_has_an_end(level):
    def trickle(connection: Connection) -> None:
        for octet in b"250-" + b"x" * 60 + b"\r\n250 ok\r\n":
            connection.send(bytes([octet]))
            time.sleep(0.04)

    def call(client: Any) -> Any:
        client.set_debuglevel(level)
        client.sock.settimeout(1)
        return attempt(client.noop)

    theirs, ours = both(call, replies={"NOOP": trickle})
    assert theirs.result == (250, b"x" * 60 + b"\nok")
    assert type(ours.result) is DISCONNECTED
    assert ours.closed


@row("25")
def test_a_newline_ends_no_quoted_string():
    folded = (
        b'From: from@example.org\r\nTo: "Ann B.\r\n Example" <a@example.org>, b@example.org\r\n\r\n'
    )

    def call(client: Any) -> Any:
        return attempt(client.send_message, email.message_from_bytes(folded + b"hello\r\n"))

    theirs, ours = both(call)
    assert b"<a@example.org>" not in theirs.wire.partition(b"DATA")[0].partition(b"data")[0]
    assert [message.recipients for message in ours.messages] == [[A, B]]


@row("26")
def test_threads_take_turns():
    """A second thread says NOOP while the first one waits for the reply to its MAIL."""
    asked = threading.Event()
    interrupted = []

    def hold(connection: Connection) -> None:
        asked.set()
        interrupted.append(bool(select.select([connection.sock], [], [], 1)[0]))
        connection.send(b"250 sender ok\r\n")

    def call(client: Any) -> Any:
        asked.clear()
        client.sock.settimeout(3)  # one may wait for what the other has read
        other = threading.Thread(target=lambda: asked.wait(5) and attempt(client.noop))
        other.start()
        result = attempt(client.mail, FROM)
        other.join()
        return result

    _, ours = both(call, replies={"MAIL": hold})
    assert interrupted == [True, False]
    assert ours.result == (250, b"sender ok")
    assert ours.wire.lower().endswith(b"noop\r\n")
