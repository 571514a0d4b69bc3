"""STARTTLS in hostile hands: injected replies, a capability taken out, handshakes that fail.

test_link.py has more of a Mailer's, and test_differences.py the rows 6b and 20c.
"""

from __future__ import annotations

import ssl

import pytest
from peers import (
    MESSAGES,
    SECRET,
    SHORT,
    SUBJECTS,
    USER,
    Subject,
    nothing_in_clear,
    slowly,
    together,
    trickle,
    untold,
)
from support import (
    TIMEOUT,
    Connection,
    ModelServer,
    Reply,
    client_tls,
    close,
    reset,
    server_tls,
    stall,
)

import fastsmtp
from fastsmtp import SMTPException, SMTPNotSupportedError, SMTPProtocolError

OFFERED = ("STARTTLS", "AUTH PLAIN")
GO = b"220 go ahead\r\n"
#: How a Mailer is to use TLS; a drop-in calls starttls().
WAYS = [
    *[(SUBJECTS[name], {}) for name in ("sendmail one by one", "sendmail pipelined", "LMTP")],
    (SUBJECTS["Mailer DATA"], {"tls": "starttls"}),
    (SUBJECTS["Mailer BDAT"], {"tls": "opportunistic"}),
]
IDS = [" ".join((subject.name, *how.values())) for subject, how in WAYS]
ways = pytest.mark.parametrize(("subject", "how"), WAYS, ids=IDS)


def refused(subject: Subject, how: dict, reply: Reply, certificate, **keywords) -> list:
    """Meet this reply to STARTTLS on each connection; return why no message was sent."""
    with subject.peer({"STARTTLS": reply}, extensions=OFFERED, **keywords) as peer:
        return unsent(subject, how, peer, certificate)


def unsent(subject: Subject, how: dict, peer: ModelServer, certificate, **keywords) -> list:
    starttls = not subject.is_mailer
    context = client_tls(certificate)
    run = subject.run(peer, starttls=starttls, context=context, **{**how, **keywords})
    run.check(peer)
    nothing_in_clear(peer)
    assert set(run.statuses) <= {"raised", "not_sent"}
    assert not any("AUTH" in line or "MAIL" in line for line in peer.commands)
    assert len(peer.connections) == (1 if subject.is_mailer else len(MESSAGES))
    return [run[name].error for name in MESSAGES]


# -- injection ------------------------------------------------------------------

INJECTED = {
    "a line": b"250 ok\r\n",
    "an EHLO reply": b"250-model.example\r\n250 AUTH PLAIN\r\n",
    "part of a line": b"250-mod",
    "an octet": b"2",
    "a line's end": b"\r\n",
    "a second 220": GO,
    "421": b"421 closing\r\n",
    "a record's head": b"\x16\x03\x03",
    "a NUL": b"\0",
}


@ways
@pytest.mark.parametrize("kind", INJECTED)
def test_octets_behind_the_reply(kind, subject, how, certificate):
    """In the same segment: they would be read as said under TLS (CVE-2011-0411)."""
    with subject.peer(
        {"STARTTLS": GO + INJECTED[kind]}, extensions=OFFERED, tls=server_tls(certificate)
    ) as peer:
        for error in unsent(subject, how, peer, certificate):
            assert type(error) is SMTPProtocolError
    for connection in peer.connections:
        assert connection.received.endswith(b"STARTTLS\r\n")  # no handshake was begun


@ways
def test_octets_behind_the_reply_in_a_segment_of_their_own(subject, how, certificate):
    """They are seen at once, or they spoil the handshake; no reply is made of them."""
    reply = (GO, b"250-model.example\r\n250 AUTH PLAIN\r\n", stall)
    for error in refused(subject, how, reply, certificate):
        assert isinstance(error, (SMTPProtocolError, ssl.SSLError))


def speak_first(context: ssl.SSLContext, reply: bytes):
    def play(connection: Connection) -> None:
        connection.send(GO)
        connection.start_tls(context)
        connection.send(reply)
        connection.line()
        connection.send(b"250 second\r\n")
        stall(connection)

    return play


@ways
def test_a_reply_before_ehlo_under_tls(subject, how, certificate):
    """Taken for EHLO's or not, it has no one log in or send."""
    reply = speak_first(server_tls(certificate), b"250 first\r\n")
    with subject.peer({"STARTTLS": reply}, extensions=OFFERED) as peer:
        starttls = not subject.is_mailer
        run = subject.run(peer, starttls=starttls, context=client_tls(certificate), **how)
    run.check(peer)
    for name in MESSAGES:
        assert isinstance(run[name].error, (SMTPNotSupportedError, SMTPProtocolError))
    assert b"AUTH" not in peer.received
    assert b"MAIL" not in peer.received.upper()


# -- the capability ---------------------------------------------------------------

STRIPPED = {
    "taken out": ("AUTH PLAIN",),
    "overwritten": ("XXXXXXXX", "AUTH PLAIN"),
    "with a letter more": ("STARTTLSX", "AUTH PLAIN"),
    "in the text of another": ("X-INFO STARTTLS", "AUTH PLAIN"),
}


@ways
@pytest.mark.parametrize("kind", STRIPPED)
def test_a_capability_that_was_taken_out(kind, subject, how, certificate):
    """Neither is STARTTLS said, nor a password in clear; cleartext_auth is not asked for."""
    with subject.peer(extensions=STRIPPED[kind]) as peer:
        if subject.is_mailer:
            # Without a password to keep back, it is for the messages' sake.
            how = {**how, "cleartext_auth": False, "login": how["tls"] != "starttls"}
        for error in unsent(subject, how, peer, certificate):
            assert isinstance(error, SMTPNotSupportedError)
    assert "STARTTLS" not in peer.commands


@ways
@pytest.mark.parametrize("reply", [b"454 not now\r\n", b"250 ok\r\n", b"354 go\r\n", b"junk\r\n"])
def test_a_reply_that_is_no_220(reply, subject, how, certificate):
    """It is not gone on with in clear."""
    for error in refused(subject, how, reply, certificate):
        assert isinstance(error, SMTPException)


@pytest.mark.parametrize("kind", STRIPPED)
def test_a_drop_in_is_in_step_if_starttls_is_not_offered(kind):
    with (
        SUBJECTS["sendmail pipelined"].peer(extensions=STRIPPED[kind]) as peer,
        fastsmtp.SMTP(peer.host, peer.port, timeout=TIMEOUT) as client,
    ):
        with pytest.raises(SMTPNotSupportedError):
            client.starttls()
        assert client.noop() == (250, b"noop 1")


@ways
def test_what_was_offered_in_clear_does_not_hold_under_tls(subject, how, certificate):
    """AUTH, that is: the password goes to nobody who does not ask for it under TLS."""
    hello = subject.key("hello")[0]
    replies = {(hello, 2): b"250-model.example\r\n250 8BITMIME\r\n"}
    with subject.peer(replies, extensions=OFFERED, tls=server_tls(certificate)) as peer:
        starttls = not subject.is_mailer
        run = subject.run(peer, starttls=starttls, context=client_tls(certificate), **how)
    run.check(peer)
    assert all(isinstance(run[name].error, SMTPNotSupportedError) for name in MESSAGES)
    untold(SECRET, str(peer.commands))


# -- handshakes that fail -----------------------------------------------------------


def after_hello(reply: Reply):
    """Read what begins the handshake, and then play something."""

    def play(connection: Connection) -> None:
        connection.receive()
        connection.play(reply)
        stall(connection)

    return play


HANDSHAKES = {
    "junk": after_hello(b"\x00\xff junk that is no record\r\n"),
    "a reply": after_hello(b"250 ok\r\n"),
    "an alert": after_hello(b"\x15\x03\x01\x00\x02\x02\x28"),  # fatal: handshake_failure
    "half a record": after_hello((b"\x16\x03\x03\x00\x7a\x02\x00", close)),
    "EOF": close,
    "reset": after_hello(reset),
}


@ways
@pytest.mark.parametrize("kind", HANDSHAKES)
def test_a_handshake_that_fails(kind, subject, how, certificate):
    for error in refused(subject, how, (GO, HANDSHAKES[kind]), certificate):
        assert isinstance(error, OSError)
        assert not isinstance(error, SMTPException)


SLOW = {
    "silence": stall,
    "octets of a record": after_hello(trickle(b"\x16\x03\x03\x40\x00\x02\x00\x3f")),
    "records": after_hello(slowly(b"\x16\x03\x03\x00\x01\x02" * 100)),
}


@pytest.mark.parametrize(("subject", "how"), WAYS[1:4:2], ids=IDS[1:4:2])
def test_a_handshake_that_does_not_end(subject, how, certificate):
    """Octets that keep coming extend the time of neither the drop-in nor the Mailer."""
    how = {"starttls": not subject.is_mailer, "timeout": SHORT, "overhear": False, **how}

    def run(kind: str) -> None:
        with subject.peer({"STARTTLS": (GO, SLOW[kind])}, extensions=OFFERED) as peer:
            run = subject.run(peer, MESSAGES[:1], context=client_tls(certificate), **how)
        run.check(peer)
        nothing_in_clear(peer)
        assert isinstance(run["m1"].error, TimeoutError), kind

    together(run, SLOW)


CONTINUED = {
    "noop": lambda client: client.noop(),
    "ehlo": lambda client: client.ehlo(),
    "login": lambda client: client.login(USER, SECRET),
    "sendmail": lambda client: client.sendmail("a@example.org", ["b@example.org"], "x"),
    "starttls": lambda client: client.starttls(),
}


@pytest.mark.parametrize("failure", [GO + b"250 ok\r\n", (GO, HANDSHAKES["junk"])])
@pytest.mark.parametrize("call", CONTINUED)
def test_continued_use_after_a_failure(call, failure, certificate):
    """A program that goes on after starttls() has failed says nothing more to anybody in clear.

    A new connection begins anew: what was learned on the old one does not hold.
    """
    replies = {("STARTTLS", 1, 1): failure}
    tls = server_tls(certificate)
    with SUBJECTS["sendmail pipelined"].peer(replies, extensions=OFFERED, tls=tls) as peer:
        client = fastsmtp.SMTP(peer.host, peer.port, "client.example", timeout=TIMEOUT)
        with pytest.raises((ssl.SSLError, SMTPProtocolError)):
            client.starttls(context=client_tls(certificate))
        assert client.sock is None
        with pytest.raises(fastsmtp.SMTPServerDisconnected):
            CONTINUED[call](client)
        nothing_in_clear(peer)
        client.connect(peer.host, peer.port)
        client.starttls(context=client_tls(certificate))
        client.login(USER, SECRET)
        client.quit()
    assert peer.logins == [USER]
    assert isinstance(peer.connections[1].sock, ssl.SSLSocket)
