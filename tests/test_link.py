"""One connection: bytes in both directions, TLS, the time each phase may take, and nonsense."""

from __future__ import annotations

import errno
import gc
import io
import re
import resource
import select
import socket
import ssl
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path
from selectors import EVENT_READ, EVENT_WRITE

import pytest
from support import (
    EXTENSIONS,
    IN_PIECES,
    TIMEOUT,
    Connection,
    ModelServer,
    Server,
    client_tls,
    close,
    collect,
    multiline,
    not_on_pypy,
    reset,
    scripted,
    server_tls,
    stall,
)

import fastsmtp
from fastsmtp import Mailer, Message, Options, Timeouts, link, pool

CHUNKING = (*EXTENSIONS, "CHUNKING")
STARTTLS = (*EXTENSIONS, "STARTTLS")
SHORT = 0.2  # seconds that a phase may take


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    """Connect again soon after a failure."""
    monkeypatch.setattr(pool, "_FIRST_PAUSE", 0.02)


def mailer_for(server: Server, **keywords):
    settings = {"tls": "none", "local_hostname": "client.example", "connect_attempts": 1}
    return Mailer(server.host, server.port, **{**settings, **keywords})


def message(i: int, *recipients: str) -> Message:
    to = recipients or ["to@example.net"]
    return Message("from@example.org", to, f"Subject: {i}\n\nbody {i}\n", id=i)


def outgoing(number: int) -> list[Message]:
    return [message(i) for i in range(number)]


def statuses(deliveries):
    return dict(Counter(delivery.status for delivery in deliveries))


def send_one(server: Server, **keywords):
    with mailer_for(server, **keywords) as mailer:
        return mailer.send(message(1))


# -- bytes --------------------------------------------------------------------

LONG = b"Subject: long\r\n\r\n" + b"".join(b".%06d\r\n" % i for i in range(200_000))


@pytest.mark.parametrize("secure", [False, True], ids=["clear", "TLS"])
@pytest.mark.parametrize("extensions", [(), EXTENSIONS, CHUNKING], ids=["", "DATA", "BDAT"])
def test_long_messages(extensions, secure, certificate):
    """They go in many writes, and the next envelopes behind them."""
    sent = [Message("a@example.org", "b@example.org", content) for content in (LONG, b"x", LONG)]
    offered = [each.replace("33554432", "99999999") for each in extensions]
    context = server_tls(certificate) if secure else None
    server = ModelServer(offered, tls=context, implicit_tls=secure, buffer_size=8192)
    keywords = {"tls": "implicit", "context": client_tls(certificate)} if secure else {}
    with server, mailer_for(server, connections=1, **keywords) as mailer:
        assert statuses(mailer.send_many(sent)) == {"accepted": 3}
    assert [each.data for each in server.messages] == [LONG, b"x\r\n", LONG]


@pytest.mark.parametrize("extensions", [EXTENSIONS, CHUNKING], ids=["DATA", "BDAT"])
def test_many_recipients_over_small_buffers(extensions):
    """Replies pile up while the envelope is written (RFC 2920, section 3.1)."""
    to = [f"recipient-{i:05d}@example.net" for i in range(20_000)]
    with (
        ModelServer(extensions, buffer_size=4096) as server,
        mailer_for(server, connections=1) as mailer,
    ):
        (first, second) = mailer.send_many([message(1, *to), message(2)])
    assert first.status == second.status == "accepted"
    assert len(first.recipients) == 20_000
    assert server.messages[0].recipients == to


@pytest.mark.parametrize("extensions", [(), EXTENSIONS, CHUNKING], ids=["", "DATA", "BDAT"])
def test_replies_in_pieces(extensions):
    steps = ("greeting", "EHLO", "MAIL", "RCPT", "DATA", "body", "RSET", "BDAT")
    with (
        ModelServer(extensions, replies=dict.fromkeys(steps, IN_PIECES)) as server,
        mailer_for(server, connections=1) as mailer,
    ):
        assert statuses(mailer.send_many(outgoing(3))) == {"accepted": 3}
    assert len(server.connections) == 1
    assert len(server.messages) == 3


def test_replies_of_many_lines():
    lines = multiline(250, [f"line {i}" for i in range(500)])
    replies = dict.fromkeys(("MAIL", "RCPT", "body"), lines)
    with ModelServer(replies=replies) as server, mailer_for(server, connections=1) as mailer:
        deliveries = list(mailer.send_many(outgoing(3)))
    assert statuses(deliveries) == {"accepted": 3}
    assert len(deliveries[0].reply.lines) == 500


def test_the_server_answers_before_it_has_read_all():
    """A refusal in the middle of the message is what counts, though writing fails."""

    def refuse(connection: Connection) -> None:
        connection.send(b"354 go\r\n")
        while not connection._unread and not connection.receive():
            pass
        connection.send(b"552 5.3.4 too big\r\n")
        close(connection)

    def play(connection: Connection) -> None:
        connection.send(b"220 x\r\n")
        connection.line()
        connection.send(multiline(250, ["x", "PIPELINING"]))
        for _ in range(3):
            connection.line()
        connection.send(b"250 ok\r\n" * 2)
        refuse(connection)

    with Server(play) as server, mailer_for(server) as mailer:
        delivery = mailer.send(Message("a@example.org", "b@example.org", LONG))
    assert (delivery.status, delivery.reply.code) == ("rejected", 552)
    assert len(server.connections) == 1


class Torn(socket.socket):
    """Cannot be written to any more if it is told so, once the server has spoken."""

    tear = False
    writing = threading.Event()

    def send(self, data, *flags):
        if self.tear:
            self.writing.set()
            assert select.select([self], [], [], TIMEOUT)[0]
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        return super().send(data, *flags)

    sendmsg = None

    @classmethod
    def factory(cls, address, timeout, source_address):
        sock = cls()
        sock.connect(address)
        return sock


@pytest.mark.parametrize(
    ("last_words", "status", "attempts"),
    [
        (b"552 5.3.4 too big\r\n", "rejected", 1),
        (b"421 4.3.2 shutting down\r\n", "accepted", 2),
        (b"", "accepted", 2),
        (b"421 4.3", "accepted", 2),
    ],
)
def test_the_last_words_of_a_server_that_cannot_be_written_to(
    last_words, status, attempts, monkeypatch
):
    """They tell more than that writing failed."""

    def leave(connection: Connection) -> None:
        Torn.tear = True
        connection.send(b"354 go\r\n")
        assert writing.wait(TIMEOUT)
        Torn.tear = False
        connection.send(last_words)
        close(connection)

    writing = threading.Event()
    monkeypatch.setattr(Torn, "tear", False)
    monkeypatch.setattr(Torn, "writing", writing)
    with (
        ModelServer(replies={("DATA", 1, 1): leave}) as server,
        mailer_for(server, connections=1, socket_factory=Torn.factory) as mailer,
    ):
        delivery = mailer.send(message(1))
    assert (delivery.status, delivery.attempts) == (status, attempts)
    assert len(server.messages) == (status == "accepted")


def test_all_recipients_are_refused_and_data_is_taken():
    """A lone dot ends it, and nothing is delivered (RFC 2920, section 3.1)."""
    replies = {("RCPT", 1): b"550 no\r\n", ("DATA", 1): b"354 go\r\n"}
    with ModelServer(replies=replies) as server, mailer_for(server, connections=1) as mailer:
        first, second = sorted(mailer.send_many(outgoing(2)), key=lambda each: each.id)
    assert (first.status, second.status) == ("rejected", "accepted")
    assert b"\r\n.\r\n" not in server.connections[0].reads[2]
    assert server.connections[0].reads[2] == b".\r\n"
    assert len(server.connections) == 1
    assert len(server.messages) == 1


# -- time ---------------------------------------------------------------------


def timed(server: Server, phase: str, **keywords):
    """Send with a short time for one phase; return the delivery and the seconds."""
    began = time.monotonic()
    times = Timeouts(**{phase: SHORT})
    delivery = send_one(server, timeouts=times, **keywords)
    return delivery, time.monotonic() - began


PHASES = [
    ("greeting", "greeting", "the greeting"),
    ("EHLO", "command", "the reply to a command"),
    ("MAIL", "data", "the replies to an envelope"),
    ("RCPT", "data", "the replies to an envelope"),
    ("DATA", "data", "the replies to an envelope"),
]


@pytest.mark.parametrize("extensions", [(), EXTENSIONS], ids=["", "PIPELINING"])
@pytest.mark.parametrize(("step", "phase", "words"), PHASES)
def test_a_server_that_stalls(step, phase, words, extensions, monkeypatch):
    monkeypatch.setattr("fastsmtp.jobs.MOST_LOSSES", 1)
    with ModelServer(extensions, replies={step: stall}) as server:
        delivery, took = timed(server, phase)
    assert delivery.status == "not_sent"
    assert isinstance(delivery.error, TimeoutError)
    assert words in str(delivery.error)
    assert SHORT <= took < SHORT + 1


@pytest.mark.parametrize("extensions", [(), EXTENSIONS, CHUNKING], ids=["", "DATA", "BDAT"])
def test_a_server_that_stalls_after_the_message(extensions):
    step = "BDAT" if "CHUNKING" in extensions else "body"
    with ModelServer(extensions, replies={step: stall}) as server:
        delivery, took = timed(server, "final")
    assert delivery.status == "unknown"
    assert isinstance(delivery.error, TimeoutError)
    assert "the reply to a message" in str(delivery.error)
    assert delivery.recipients[0].status == "unknown"
    assert SHORT <= took < SHORT + 1


def narrow(address, timeout, source_address) -> socket.socket:
    """Connect with a small buffer, which would else grow to hold a whole message."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    sock.connect(address)
    return sock


def test_a_server_that_does_not_read(monkeypatch):
    monkeypatch.setattr("fastsmtp.jobs.MOST_LOSSES", 1)
    hold = threading.Event()

    def deaf(connection: Connection) -> None:
        connection.send(b"354 go\r\n")
        assert hold.wait(TIMEOUT)
        stall(connection)

    with ModelServer(["PIPELINING"], replies={"DATA": deaf}, buffer_size=4096) as server:
        times = Timeouts(block=SHORT)
        with mailer_for(server, timeouts=times, socket_factory=narrow) as mailer:
            delivery = mailer.send(Message("a@example.org", "b@example.org", LONG))
        hold.set()
    assert delivery.status == "not_sent"
    assert "take data" in str(delivery.error)


def test_the_time_of_a_block_is_not_that_of_the_reply():
    """A long message has the time for the reply to a message once it is written."""
    pause = threading.Event()
    replies = {"body": (lambda connection: pause.wait(4 * SHORT) and None, b"250 taken\r\n")}
    with ModelServer(["PIPELINING"], replies=replies, buffer_size=4096) as server:
        times = Timeouts(block=2 * SHORT)
        with mailer_for(server, timeouts=times, socket_factory=narrow) as mailer:
            delivery = mailer.send(Message("a@example.org", "b@example.org", LONG))
    assert delivery.status == "accepted"


def test_a_server_that_reads_slowly_is_waited_for():
    """Each block that is taken begins a new time."""

    def slow(connection: Connection) -> None:
        connection.send(b"354 go\r\n")
        for _ in range(6):
            select.select([], [], [], SHORT / 4)
            connection._unread += connection.sock.recv(65536)
        connection.body()
        connection.send(b"250 taken\r\n")

    content = LONG[: 2**20]
    with ModelServer(["PIPELINING"], replies={"DATA": slow}, buffer_size=16384) as server:
        times = Timeouts(block=SHORT)
        with mailer_for(server, timeouts=times, socket_factory=narrow) as mailer:
            delivery = mailer.send(Message("a@example.org", "b@example.org", content))
    assert delivery.status == "accepted"


def trickle(connection: Connection) -> None:
    """Send a reply without an end, in octets that come long before any time is over."""
    connection.send(b"250-")
    while True:
        select.select([], [], [], SHORT / 4)
        connection.send(b"x")


TRICKLES = [("greeting", "greeting"), ("EHLO", "command"), ("MAIL", "data"), ("body", "final")]


@pytest.mark.parametrize("extensions", [(), EXTENSIONS], ids=["", "PIPELINING"])
@pytest.mark.parametrize(("step", "phase"), TRICKLES)
def test_octets_now_and_then_are_no_progress(step, phase, extensions, monkeypatch):
    monkeypatch.setattr("fastsmtp.jobs.MOST_LOSSES", 1)
    with ModelServer(extensions, replies={step: trickle}) as server:
        delivery, took = timed(server, phase)
    assert delivery.status == ("unknown" if phase == "final" else "not_sent")
    assert isinstance(delivery.error, TimeoutError)
    assert took < SHORT + 1


def test_octets_now_and_then_while_chunks_are_in_flight():
    with (
        ModelServer(CHUNKING, replies={("RSET", 2): trickle}) as server,
        mailer_for(server, connections=1, timeouts=Timeouts(final=SHORT)) as mailer,
    ):
        began = time.monotonic()
        messages = (message(i) for i in range(2))
        deliveries = list(mailer.send_many(messages))
        assert time.monotonic() - began < SHORT + 1
    assert statuses(deliveries) == {"accepted": 1, "unknown": 1}


# -- TLS ----------------------------------------------------------------------


@pytest.fixture
def trusted(certificate):
    return client_tls(certificate)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_implicit_tls(version, certificate, trusted):
    context = server_tls(certificate)
    context.maximum_version = context.minimum_version = version
    with (
        ModelServer(tls=context, implicit_tls=True) as server,
        mailer_for(server, tls="implicit", context=trusted) as mailer,
    ):
        assert statuses(mailer.send_many(outgoing(50))) == {"accepted": 50}
    assert len(server.messages) == 50


def test_records_longer_than_what_is_read_at_a_time(certificate, trusted, monkeypatch):
    """What TLS has read and not handed over is not seen by a selector."""
    monkeypatch.setattr(link, "_RECEIVE", 100)
    lines = multiline(250, [f"line {i}" for i in range(500)])
    replies = dict.fromkeys(("EHLO", "MAIL", "RCPT", "body"), lines)
    with ModelServer(replies=replies, tls=server_tls(certificate), implicit_tls=True) as server:
        assert send_one(server, tls="implicit", context=trusted).status == "accepted"
    assert len(server.connections) == 1


def test_an_event_that_comes_too_late():
    with ModelServer() as server, mailer_for(server) as mailer:
        assert mailer.send(message(1)).status == "accepted"
        (used,) = mailer._pool.links
        mailer.close()
        used.on_event(EVENT_READ | EVENT_WRITE)


@pytest.mark.parametrize("policy", ["starttls", "opportunistic"])
@pytest.mark.parametrize("lmtp", [False, True])
def test_starttls(policy, lmtp, certificate, trusted):
    with (
        ModelServer(STARTTLS, tls=server_tls(certificate), lmtp=lmtp) as server,
        mailer_for(
            server, tls=policy, context=trusted, protocol="lmtp" if lmtp else "smtp", connections=1
        ) as mailer,
    ):
        assert statuses(mailer.send_many(outgoing(5))) == {"accepted": 5}
    hello = "LHLO client.example" if lmtp else "EHLO client.example"
    assert server.commands[:3] == [hello, "STARTTLS", hello]
    assert isinstance(server.connections[0].sock, ssl.SSLSocket)


def test_opportunistic_without_tls():
    with ModelServer() as server:
        assert send_one(server, tls="opportunistic").status == "accepted"


def test_tls_none_takes_no_tls(certificate):
    with ModelServer(STARTTLS, tls=server_tls(certificate)) as server:
        assert send_one(server).status == "accepted"
    assert "STARTTLS" not in server.commands


def failure(server: Server, **keywords) -> Exception:
    """Send two messages, none of which goes; return what was raised."""
    with mailer_for(server, **{"tls": "starttls", **keywords}) as mailer:
        deliveries, error = collect(mailer.send_many(outgoing(2)))
    assert statuses(deliveries) == {"not_sent": 2}
    assert isinstance(error, (OSError, fastsmtp.SMTPException))
    assert {delivery.error for delivery in deliveries} == {error}
    assert b"MAIL" not in server.received
    return error


def test_starttls_that_is_not_offered():
    """Not by a server, or not any more: somebody on the way has taken it out."""
    with ModelServer() as server:
        error = failure(server, connect_attempts=5)
        assert isinstance(error, fastsmtp.SMTPNotSupportedError)
        assert len(server.connections) == 1
        assert server.commands == ["EHLO client.example"]


def test_starttls_and_helo():
    with ModelServer(None) as server:
        assert isinstance(failure(server), fastsmtp.SMTPNotSupportedError)


@pytest.mark.parametrize("policy", ["starttls", "opportunistic"])
@pytest.mark.parametrize("reply", [b"454 4.7.0 no TLS for now\r\n", b"501 5.5.1 no\r\n"])
def test_starttls_that_is_refused(reply, policy, trusted):
    with ModelServer(STARTTLS, replies={"STARTTLS": reply}) as server:
        error = failure(server, tls=policy, context=trusted)
    assert error.smtp_code == int(reply[:3])


def test_starttls_that_is_refused_for_now(certificate, trusted):
    replies = {("STARTTLS", 1, 1): b"454 4.7.0 no TLS for now\r\n"}
    with ModelServer(STARTTLS, replies=replies, tls=server_tls(certificate)) as server:
        keywords = {"tls": "starttls", "context": trusted, "connect_attempts": 3}
        assert send_one(server, **keywords).status == "accepted"
    assert len(server.connections) == 2


def test_octets_in_clear_behind_the_reply_to_starttls(certificate, trusted):
    """They would be read as the server's under TLS (CVE-2011-0411)."""
    injected = b"220 go ahead\r\n250-x\r\n250 AUTH PLAIN\r\n"
    play = scripted(b"220 x\r\n", multiline(250, ["x", "STARTTLS"]), injected)
    with Server(play) as server:
        error = failure(server, context=trusted, username="u", password="secret")
    assert isinstance(error, fastsmtp.SMTPProtocolError)
    assert "in clear" in str(error)
    assert b"secret" not in server.received


def test_extensions_in_clear_are_forgotten(certificate, trusted):
    """What was offered before TLS is not what holds under it (RFC 3207, section 4.2)."""
    inner = multiline(250, ["x", "8BITMIME"])
    replies = {("EHLO", 2): inner}
    extensions = (*STARTTLS, "CHUNKING")
    with ModelServer(extensions, replies=replies, tls=server_tls(certificate)) as server:
        assert send_one(server, tls="starttls", context=trusted).status == "accepted"
    assert "DATA" in server.commands
    assert not any("SIZE=" in line for line in server.commands)


def make_expired_certificate(directory: Path) -> Path:
    names = {name: str(directory / name) for name in ("key", "request", "signed", "more")}
    (directory / "more").write_text("subjectAltName=IP:127.0.0.1\n")
    curve = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
    for command in (
        f"req -new {curve} -subj /CN=localhost -keyout %(key)s -out %(request)s",
        "x509 -req -days 0 -in %(request)s -signkey %(key)s -extfile %(more)s -out %(signed)s",
    ):
        words = ["openssl", *[word % names for word in command.split()]]
        subprocess.run(words, check=True, capture_output=True)
    pem = directory / "expired.pem"
    pem.write_bytes((directory / "key").read_bytes() + (directory / "signed").read_bytes())
    return pem


@pytest.mark.parametrize("implicit", [True, False], ids=["implicit", "STARTTLS"])
@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("self-signed", "self.signed certificate"),
        ("wrong host", "Hostname mismatch"),
        ("expired", "expired"),
    ],
)
def test_certificates_are_verified(kind, why, implicit, certificate, tmp_path):
    pem, context = certificate, client_tls(certificate)
    keywords = {}
    if kind == "self-signed":
        context = None
    elif kind == "wrong host":
        keywords["server_hostname"] = "other.example"
    else:
        pem = make_expired_certificate(tmp_path)
        context = client_tls(pem)
    extensions = EXTENSIONS if implicit else STARTTLS
    with ModelServer(extensions, tls=server_tls(pem), implicit_tls=implicit) as server:
        error = failure(
            server,
            tls="implicit" if implicit else "starttls",
            context=context,
            connect_attempts=5,
            **keywords,
        )
        assert isinstance(error, ssl.SSLCertVerificationError)
        assert re.search(why, str(error))
        assert len(server.connections) == 1  # it will not be better the next time


def test_a_certificate_is_verified_if_tls_is_opportunistic_too(certificate):
    with ModelServer(STARTTLS, tls=server_tls(certificate)) as server:
        assert isinstance(failure(server, tls="opportunistic"), ssl.SSLCertVerificationError)


def test_server_hostname(certificate, trusted):
    with ModelServer(tls=server_tls(certificate), implicit_tls=True) as server:
        keywords = {"tls": "implicit", "context": trusted, "server_hostname": "localhost"}
        assert send_one(server, **keywords).status == "accepted"


def test_a_server_without_tls():
    """Speaks first, and in clear."""
    with ModelServer() as server:
        error = failure(server, tls="implicit")
    assert isinstance(error, ssl.SSLError)


def reset_a_hello(connection: Connection) -> None:
    connection.receive()
    reset(connection)


@pytest.mark.parametrize("how", [close, reset_a_hello])
def test_lost_during_the_handshake(how, trusted):
    with ModelServer(STARTTLS, replies={"STARTTLS": (b"220 go\r\n", how)}) as server:
        assert isinstance(failure(server, context=trusted), OSError)


def test_lost_before_the_handshake(trusted, monkeypatch):
    """Nothing is left open (and a warning about it would fail this test)."""
    wrap = pool.Pool.wrap

    def wait_and_wrap(self, sock):
        poll = select.poll()
        poll.register(sock, 0)  # errors are told always
        assert poll.poll(TIMEOUT * 1000)
        return wrap(self, sock)

    monkeypatch.setattr(pool.Pool, "wrap", wait_and_wrap)
    with ModelServer(STARTTLS, replies={"STARTTLS": (b"220 go\r\n", reset)}) as server:
        assert isinstance(failure(server, context=trusted), OSError)
    gc.collect()


@pytest.mark.parametrize("implicit", [True, False], ids=["implicit", "STARTTLS"])
def test_a_handshake_that_stalls(implicit, trusted):
    play = stall if implicit else scripted(
        b"220 x\r\n", multiline(250, ["x", "STARTTLS"]), (b"220 go\r\n", stall)
    )  # fmt: skip
    with Server(play) as server:
        tls = "implicit" if implicit else "starttls"
        delivery, took = timed(server, "command", tls=tls, context=trusted)
    assert delivery.status == "not_sent"
    assert "TLS handshake" in str(delivery.error)
    assert took < SHORT + 1


def test_a_greeting_under_tls_has_its_own_time(certificate, trusted):
    """It is not the handshake's."""
    pause = (lambda connection: select.select([], [], [], 3 * SHORT), b"220 x\r\n")
    context = server_tls(certificate)
    with ModelServer(replies={"greeting": pause}, tls=context, implicit_tls=True) as server:
        times = Timeouts(command=2 * SHORT)
        delivery = send_one(server, tls="implicit", context=trusted, timeouts=times)
        assert delivery.status == "accepted"
    with ModelServer(replies={"greeting": stall}, tls=context, implicit_tls=True) as server:
        delivery, took = timed(server, "greeting", tls="implicit", context=trusted)
        assert "the greeting" in str(delivery.error)
        assert took < SHORT + 1


def test_parts_of_a_tls_record_do_not_end_an_idle_connection(certificate, trusted):
    """Nor does what TLS says to itself: nothing was said by the server."""
    with (
        ModelServer(tls=server_tls(certificate), implicit_tls=True) as server,
        mailer_for(server, tls="implicit", context=trusted) as mailer,
    ):
        assert mailer.send(message(1)).status == "accepted"
        # The head of a record, and not the rest yet.
        raw = socket.socket(fileno=server.connections[0].sock.fileno())
        raw.send(b"\x17\x03\x03\x00\x20half")
        raw.detach()
        (idle,) = mailer._pool.links
        assert select.select([idle.sock], [], [], TIMEOUT)[0]
        mailer._pool.step()
        assert mailer._pool.links == {idle}


@pytest.mark.parametrize("verify", [True, False])
def test_requiretls(verify, certificate, trusted):
    """It needs a certificate that was verified (RFC 8689, section 2)."""
    if not verify:
        trusted.check_hostname = False
        trusted.verify_mode = ssl.CERT_NONE
    sent = Message("a@example.org", "b@example.org", "x", options=Options(require_tls=True))
    extensions = (*EXTENSIONS, "REQUIRETLS")
    with (
        ModelServer(extensions, tls=server_tls(certificate), implicit_tls=True) as server,
        mailer_for(server, tls="implicit", context=trusted) as mailer,
    ):
        delivery = mailer.send(sent)
    assert delivery.status == ("accepted" if verify else "not_sent")
    assert ("MAIL" in str(server.commands)) == verify


# -- a server out of step -----------------------------------------------------

NONSENSE = {
    "second greeting": b"220 hello again\r\n",
    "other code": b"123 what\r\n",
    "junk": b"\x00\xff junk\r\n",
    "HTTP": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "two codes": b"250-ok\r\n550 no\r\n",
    "354": b"354 go\r\n",
}


@pytest.mark.parametrize("extensions", [(), EXTENSIONS, CHUNKING], ids=["", "DATA", "BDAT"])
@pytest.mark.parametrize(
    ("step", "kind"),
    [
        (step, kind)
        for step in ("MAIL", "RCPT", "body")
        for kind in NONSENSE
        if (step, kind) != ("RCPT", "second greeting")  # the first digit says that it is taken
    ],
)
def test_a_reply_that_makes_no_sense(step, kind, extensions):
    """The connection ends; the message goes by another one, or nobody knows."""
    chunked = "CHUNKING" in extensions
    number = 2
    step = "BDAT" if step == "body" and chunked else step
    replies = {(step, number, 1): (NONSENSE[kind], b"250 ok\r\n")}
    with (
        ModelServer(extensions, replies=replies) as server,
        mailer_for(server, connections=1, depth=1) as mailer,
    ):
        deliveries = {each.id: each.status for each in mailer.send_many(outgoing(4))}
    expected = dict.fromkeys(range(4), "accepted")
    if chunked or step == "body":
        expected[1] = "unknown"
    assert deliveries == expected
    assert len(server.connections) == 2
    stored = Counter(int(re.search(rb"Subject: (\d+)", m.data)[1]) for m in server.messages)
    stored.setdefault(1, 1)
    assert stored == dict.fromkeys(range(4), 1)


@pytest.mark.parametrize("extensions", [(), EXTENSIONS], ids=["", "PIPELINING"])
@pytest.mark.parametrize("step", ["MAIL", "RCPT", "DATA", "body"])
def test_a_reply_too_many(step, extensions):
    """A 250 that answers nothing must not be taken for the next command's."""
    usual = {"DATA": b"354 go\r\n"}.get(step, b"250 ok\r\n")
    replies = {
        (step, 1, 1): b"250 one too many\r\n" + usual,
        ("body", 2): b"554 never\r\n",
        ("body", 1, 2): b"554 never\r\n",
    }
    with (
        ModelServer(extensions, replies=replies) as server,
        mailer_for(server, connections=1) as mailer,
    ):
        deliveries = {each.id: each.status for each in mailer.send_many(outgoing(2))}
    taken = {int(re.search(rb"Subject: (\d+)", each.data)[1]) for each in server.messages}
    assert {i for i, status in deliveries.items() if status == "accepted"} <= taken
    assert set(deliveries) == {0, 1}


def test_a_reply_too_many_before_the_connection_rests():
    with (
        ModelServer(replies={("body", 1, 1): b"250 ok\r\n250 again\r\n"}) as server,
        mailer_for(server) as mailer,
    ):
        for i in range(2):
            assert mailer.send(message(i)).status == "accepted"
    assert len(server.connections) == 2


@pytest.mark.parametrize("extensions", [(), EXTENSIONS], ids=["", "PIPELINING"])
@pytest.mark.parametrize(
    ("step", "reply"),
    [
        ("MAIL", b"251 fine\r\n"),
        ("RCPT", b"354 fine\r\n"),
        ("DATA", b"250 fine\r\n"),
        ("body", b"354 go on\r\n"),
    ],
)
def test_a_success_of_another_kind(step, reply, extensions):
    with ModelServer(extensions, replies={step: reply}) as server:
        delivery = send_one(server)
    assert delivery.status in ("not_sent", "unknown")
    assert isinstance(delivery.error, fastsmtp.SMTPException)


def memory() -> int:
    """The most memory that this process has ever had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def pour(line: bytes):
    """Send without an end, as fast as it goes."""

    def play(connection: Connection) -> None:
        block = line * (65536 // len(line))
        while True:
            connection.send(block)

    return play


FLOODS = {"line": b"250-x", "lines": b"250-" + b"x" * 100 + b"\r\n", "replies": b"250 ok\r\n"}


@pytest.mark.parametrize("secure", [False, True], ids=["clear", "TLS"])
@pytest.mark.parametrize("kind", FLOODS)
@pytest.mark.parametrize("step", ["greeting", "EHLO", "MAIL", "body"])
def test_a_server_that_sends_without_end(step, kind, secure, certificate, trusted, monkeypatch):
    monkeypatch.setattr("fastsmtp.jobs.MOST_LOSSES", 1)
    before = memory()
    context = server_tls(certificate) if secure else None
    server = ModelServer(replies={step: pour(FLOODS[kind])}, tls=context, implicit_tls=secure)
    keywords = {"tls": "implicit", "context": trusted} if secure else {}
    with server, mailer_for(server, **keywords) as mailer:
        delivery = mailer.send(message(1))
    assert delivery.status in ("not_sent", "unknown", "accepted")
    assert delivery.status != "accepted" or (step, kind) == ("body", "replies")
    assert memory() - before < 64
    assert server.messages == []


@not_on_pypy("what is left is collected later")
def test_a_reply_of_60_megabytes():
    line = b"250-" + b"x" * 500 + b"\r\n"
    reply = line * (60_000_000 // len(line)) + b"250 end\r\n"
    before = memory()
    with ModelServer(replies={"EHLO": reply}) as server:
        delivery = send_one(server)
    assert delivery.status == "not_sent"
    assert isinstance(delivery.error, fastsmtp.SMTPException)
    with ModelServer(replies={("MAIL", 1, 1): reply}) as server:
        delivery = send_one(server)
    assert (delivery.status, delivery.attempts) == ("accepted", 2)
    # The server, in this process, has a copy of its own; keeping both would take 120 more.
    assert memory() - before < 64 + 60 + 30


def test_a_flood_while_a_long_message_is_written():
    def flood(connection: Connection) -> None:
        connection.send(b"354 go\r\n" + b"250 ok\r\n" * 100_000)
        stall(connection)

    with (
        ModelServer(replies={("DATA", 1, 1): flood}, buffer_size=8192) as server,
        mailer_for(server) as mailer,
    ):
        delivery = mailer.send(Message("a@example.org", "b@example.org", io.BytesIO(LONG)))
    # A reply before the message is there is about something else.
    assert delivery.status != "unknown" or isinstance(delivery.error, fastsmtp.SMTPException)
    assert len([each for each in server.messages if each.data == LONG]) == (
        delivery.status == "accepted"
    )
