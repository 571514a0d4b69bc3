"""Replies that no server should give, at each step and for each way to use the package.

What is held of every row is in peers.Run.check().  test_codec.py has the parser,
test_link.py what a Mailer does about servers that stall, flood, or make no sense.
"""

from __future__ import annotations

import functools
import itertools
import select
import socket
import time
from collections.abc import Callable
from typing import NamedTuple

import pytest
from peers import (
    DROP_INS,
    MAILERS,
    MESSAGES,
    PACE,
    SHORT,
    SUBJECTS,
    Run,
    Subject,
    bounded,
    content,
    ending,
    flood,
    together,
    trickle,
)
from support import (
    TIMEOUT,
    Connection,
    Hold,
    ModelServer,
    Reply,
    Server,
    client_tls,
    close,
    multiline,
    server_tls,
    stall,
)

import fastsmtp
from fastsmtp import Message, SMTPException, SMTPProtocolError, SMTPServerDisconnected
from fastsmtp.errors import SMTPResponseException

OPENING = ("greeting", "hello", "AUTH")
CODES = {"greeting": b"220", "AUTH": b"235", "DATA": b"354", "QUIT": b"221"}

# What a reply comes to.
FINE = "fine"  # it is read as it is meant
REFUSED = "refused"  # it is taken for a refusal, and the connection is in step
GONE = "gone"  # it is taken for a refusal, and then the connection closes
BROKEN = "broken"  # the connection closes at once


class Row(NamedTuple):
    """A reply, as a function of the code that is due, and what the two families make of it."""

    reply: Callable[[bytes], Reply]
    drop_in: str
    mailer: str = BROKEN
    error: type[Exception] = SMTPException  # of the drop-in, if BROKEN


def line_of(octets: int) -> Callable[[bytes], bytes]:
    return lambda code: code + b" " + b"x" * (octets - 6) + b"\r\n"


ROWS = {
    "8,192-octet line": Row(line_of(8192), FINE, FINE),
    "8,193-octet line": Row(line_of(8193), BROKEN, BROKEN, SMTPResponseException),
    "NUL in the text": Row(lambda code: code + b" o\0k\r\n", FINE, FINE),
    "NULs": Row(lambda code: b"\0\0\0\0\r\n", REFUSED),
    "NUL behind the code": Row(lambda code: code + b"\0ok\r\n", FINE),
    "bare LF": Row(lambda code: code + b" ok\n", FINE, FINE),
    "bare LF between lines": Row(lambda code: code + b"-one\n" + code + b" two\n", FINE, FINE),
    "bare CR": Row(lambda code: code + b" ok\r550 no\r\n", FINE, FINE),  # ends no line
    "codes that differ": Row(lambda code: (code + b"-one\r\n", b"550 two\r\n"), REFUSED),
    "no digits": Row(lambda code: b"OK fine\r\n", REFUSED),
    "four digits": Row(lambda code: code + b"0 ok\r\n", FINE),  # as smtplib reads it
    "two digits": Row(lambda code: code[:2] + b"\r\n", REFUSED),
    "digits that int() takes": Row(lambda code: b"+" + code + b" ok\r\n", REFUSED),
    "empty line": Row(lambda code: b"\r\n", REFUSED),
    "empty line and a reply": Row(lambda code: b"\r\n" + code + b" ok\r\n", GONE),
    "EOF between lines": Row(
        lambda code: ending(code + b"-one\r\n"), BROKEN, BROKEN, SMTPServerDisconnected
    ),
    "EOF in a code": Row(lambda code: ending(code[:2]), GONE),
}

#: The class of a refusal by step; for the rest of them it is the reply's.
REFUSALS = {
    "greeting": fastsmtp.SMTPConnectError,
    "hello": fastsmtp.SMTPNotSupportedError,  # HELO follows, and has no AUTH
    "AUTH": fastsmtp.SMTPAuthenticationError,
    "MAIL": fastsmtp.SMTPSenderRefused,
    "RCPT": fastsmtp.SMTPRecipientsRefused,
    "DATA": fastsmtp.SMTPDataError,
    "final": fastsmtp.SMTPDataError,
}

#: These have every row; the others, which differ in what is not about replies, a few.
FULL = ("sendmail one by one", "sendmail pipelined", "LMTP", "Mailer DATA", "Mailer BDAT")
FEW = ("8,193-octet line", "no digits", "EOF between lines")
CASES = [
    (name, subject)
    for name, subject in itertools.product(ROWS, SUBJECTS.values())
    if subject.name in FULL or name in FEW
]


def outcome(name: str, subject: Subject) -> str:
    return ROWS[name].mailer if subject.is_mailer else ROWS[name].drop_in


def reply_to(subject: Subject, step: str, reply: Callable[[bytes], Reply]) -> Reply:
    """Return the reply with the code that is due; extensions come before it."""
    said = reply(CODES.get(step, b"250"))
    if step != "hello":
        return said
    lines = multiline(250, ["model.example", *subject.extensions, "AUTH PLAIN", ""])
    before = lines[: lines.rindex(b"250 ")]
    return before + said if isinstance(said, bytes) else (before, *said)


@pytest.fixture
def tls(request, certificate):
    """Give the contexts that a subject needs: for the peer, and for the run."""
    return {"tls": server_tls(certificate)}, {"context": client_tls(certificate)}


def converse(subject: Subject, replies: dict, tls, **keywords) -> tuple[Run, ModelServer]:
    """Send the messages to a peer with these replies; check what holds for every row."""
    ours, theirs = tls if subject.kind == "SMTP_SSL" else ({}, {})
    with subject.peer(replies, **ours) as peer:
        run = subject.run(peer, **theirs, **keywords)
    run.check(peer)
    return run, peer


@pytest.mark.parametrize(
    ("name", "subject"),
    [
        pytest.param(name, subject, id=f"{name}, {subject.name}")
        for name, subject in CASES
        if outcome(name, subject) == FINE
    ],
)
def test_a_reply_that_is_odd(name, subject, tls):
    """It is read as it is meant, at every step."""
    odd = {subject.key(step): reply_to(subject, step, ROWS[name].reply) for step in subject.steps}
    run, peer = converse(subject, odd, tls)
    all_is_well(run, peer)


@pytest.mark.parametrize(
    ("name", "subject", "step"),
    [
        pytest.param(name, subject, step, id=f"{name} to {step}, {subject.name}")
        for name, subject in CASES
        if outcome(name, subject) != FINE
        for step in subject.steps
        if not subject.lmtp or step in ("hello", "final")
    ],
)
def test_a_reply_that_is_none(name, subject, step, tls):
    row, kind = ROWS[name], outcome(name, subject)
    run, peer = converse(subject, {subject.key(step): reply_to(subject, step, row.reply)}, tls)
    if step == "QUIT" and subject.is_mailer:
        all_is_well(run, peer)
    elif subject.is_mailer:
        a_mailer_goes_by_another_connection(run, peer, step)
    elif step == "QUIT":
        assert run.statuses == ("accepted",) * 3
        assert run.quit.status == ("raised" if kind == BROKEN else "accepted")
    else:
        a_drop_in_raises(run, peer, step, kind, row.error)


def all_is_well(run: Run, peer: Server) -> None:
    assert run.statuses == ("accepted",) * 3
    assert run.errors == []
    assert len(peer.connections) == 1


def a_drop_in_raises(run: Run, peer: ModelServer, step: str, kind: str, error: type) -> None:
    """One message is not sent; the ones around it are, by another connection if it must be."""
    struck = "m1" if step in OPENING else "m2"
    assert [name for name in MESSAGES if run[name].status != "accepted"] == [struck]
    raised = run[struck].error
    if kind == BROKEN:
        assert isinstance(raised, error)
        assert not run.left_open
    elif kind == GONE and isinstance(raised, SMTPServerDisconnected):
        # What had to be said or read before the refusal could be reported found it out.
        assert step == "hello" or run.subject.pipelined
    elif step == "final" and run.subject.lmtp:
        assert type(raised) is fastsmtp.SMTPRecipientsRefused
    else:
        assert type(raised) is REFUSALS[step]
    in_step = kind == REFUSED and step not in OPENING
    assert (len(peer.connections), run.noops) == ((1, 1) if in_step else (2, 0))


def a_mailer_goes_by_another_connection(run: Run, peer: ModelServer, step: str) -> None:
    """Nothing is lost: it is sent again where that cannot make a double, and else unknown."""
    if step in OPENING:
        assert run.statuses == ("not_sent",) * 3
        assert isinstance(run.raised, SMTPException)
        assert {run[name].error for name in MESSAGES} == {run.raised}
        assert not any(line.startswith("MAIL") for line in peer.commands)
        assert len(peer.connections) == 1
    elif run.subject.chunked:  # all that is in flight has been sent whole
        assert run.statuses[:2] == ("accepted", "unknown")
        assert run["m3"].status in ("accepted", "unknown")
    elif step == "final":
        assert run.statuses == ("accepted", "unknown", "accepted")
    else:
        assert run.statuses == ("accepted",) * 3
        assert len(peer.connections) == 2


@pytest.mark.parametrize("step", ["AUTH", "MAIL", "DATA"])
@pytest.mark.parametrize("name", ROWS)
def test_the_same_with_debug_output(name, step, tls):
    """Replies are read line by line then, and all that is sent and read is shown but secrets."""
    row, subject = ROWS[name], SUBJECTS["sendmail pipelined"]
    replies = {subject.key(step): row.reply(CODES.get(step, b"250"))}
    run, peer = converse(subject, replies, tls, debug=True)
    assert "reply: retcode (250)" in run.overheard
    if row.drop_in == FINE:
        all_is_well(run, peer)
    else:
        a_drop_in_raises(run, peer, step, row.drop_in, row.error)


@pytest.mark.parametrize(
    ("name", "subject"),
    [
        pytest.param(name, SUBJECTS[subject], id=f"{name}, {subject}")
        for name, subject in itertools.product(ROWS, FULL)
        if name != "EOF between lines" and (ROWS[name].drop_in != FINE or name.startswith("NUL"))
    ],
)
def test_the_same_to_rset(name, subject, tls):
    """It comes where MAIL was refused before, or with BDAT before each message."""
    row = ROWS[name]
    replies = {subject.key("RSET", 2 if subject.chunked else 1): row.reply(b"250")}
    if not subject.chunked:
        replies[subject.key("MAIL")] = b"550 not you\r\n"
    run, peer = converse(subject, replies, tls)
    refused = "rejected" if subject.is_mailer else "raised"
    if not subject.chunked:
        # The refusal counts, whatever becomes of RSET.
        assert run.statuses == ("accepted", refused, "accepted")
    elif row.mailer == FINE:
        all_is_well(run, peer)
    else:
        assert run.statuses[:2] == ("accepted", "unknown")


# -- replies that nobody asked for ------------------------------------------------

UNASKED = {
    "one too many": lambda code: code + b" ok\r\n250 early\r\n",
    "second greeting": lambda code: code + b" ok\r\n220 again\r\n",
    "greeting before": lambda code: b"220 again\r\n" + code + b" ok\r\n",
}


@pytest.mark.parametrize("kind", UNASKED)
@pytest.mark.parametrize(
    ("subject", "step"),
    [
        pytest.param(subject, step, id=f"{subject.name}, {step}")
        for subject in DROP_INS
        if subject.name in FULL
        for step in subject.steps
        if not subject.lmtp or step == "final"
    ],
)
def test_a_reply_before_the_command(kind, subject, step, tls):
    """A drop-in does not write the next command: the connection closes."""
    replies = {subject.key(step): reply_to(subject, step, UNASKED[kind])}
    run, peer = converse(subject, replies, tls)
    if step == "QUIT":
        assert run.statuses == ("accepted",) * 3
        return
    struck = "m1" if step in OPENING else "m2"
    if step == "final" and kind != "greeting before":
        struck = "m3"  # m2 has its reply
    assert [name for name in MESSAGES if run[name].status != "accepted"] == [struck]
    assert isinstance(run[struck].error, SMTPException)
    assert run.noops == 0
    assert len(peer.connections) == (1 if struck == "m3" else 2)
    if kind != "greeting before" and not subject.pipelined:
        assert isinstance(run[struck].error, SMTPProtocolError)


@pytest.mark.parametrize("kind", UNASKED)
@pytest.mark.parametrize(
    ("subject", "step"),
    [
        pytest.param(subject, step, id=f"{subject.name}, {step}")
        for subject in MAILERS
        for step in subject.steps
        if step != "AUTH"
    ],
)
def test_a_reply_before_the_command_of_a_mailer(kind, subject, step, tls):
    """Nothing is lost, and nothing is reported that is not so: see Run.check_the_ledger()."""
    replies = {subject.key(step): reply_to(subject, step, UNASKED[kind])}
    run, _ = converse(subject, replies, tls)
    if step in OPENING:
        assert run.statuses == ("not_sent",) * 3
        assert isinstance(run.raised, SMTPProtocolError)
    else:
        assert set(run.statuses) <= {"accepted", "unknown"}
        assert run["m1"].status == "accepted"
        if step not in ("final", "QUIT") and not subject.chunked:
            assert run.statuses == ("accepted",) * 3


RESTING = {
    "a reply": (b"250 early\r\n", SMTPProtocolError),
    "a greeting": (b"220 again\r\n", SMTPProtocolError),
    "part of a reply": (b"25", SMTPProtocolError),
    "a line's end": (b"\r\n", SMTPProtocolError),
    "a long line": (b"x" * 9000, SMTPProtocolError),
    "421": (b"421 too long\r\n", SMTPServerDisconnected),
    "EOF": (close, SMTPServerDisconnected),
}


def resting(subject: Subject, said: Reply, tls) -> tuple[ModelServer, Hold]:
    """Return a peer that takes a message, and says something else once it may."""
    ours = tls[0] if subject.kind == "SMTP_SSL" else {}
    hold = Hold()
    return subject.peer({subject.key("final", 1): (b"250 ok\r\n", hold, said)}, **ours), hold


def wait_for_octets(sock: socket.socket) -> None:
    assert select.select([sock], [], [], TIMEOUT)[0]


@pytest.mark.parametrize("kind", RESTING)
@pytest.mark.parametrize("subject", DROP_INS, ids=lambda subject: subject.name)
def test_octets_while_a_drop_in_rests(kind, subject, tls):
    """They are seen before the next command, which is not sent."""
    said, error = RESTING[kind]
    peer, hold = resting(subject, said, tls)
    context = {"context": tls[1]["context"]} if subject.kind == "SMTP_SSL" else {}
    with peer:
        make = getattr(fastsmtp, subject.kind)
        client = make(peer.host, peer.port, "client.example", timeout=TIMEOUT, **context)
        client.sendmail("a@example.org", ["b@example.org"], "x")
        hold.go.set()
        wait_for_octets(client.sock)
        with pytest.raises(fastsmtp.SMTPServerDisconnected) as caught:
            client.sendmail("a@example.org", ["b@example.org"], "y")
        assert client.sock is None
    assert type(caught.value) is error
    assert sum("mail" in line for line in peer.commands) == 1


@pytest.mark.parametrize("kind", RESTING)
@pytest.mark.parametrize("subject", MAILERS, ids=lambda subject: subject.name)
def test_octets_while_a_mailer_rests(kind, subject, tls):
    """The next message goes by another connection."""
    peer, hold = resting(subject, RESTING[kind][0], tls)
    with peer, fastsmtp.Mailer(peer.host, peer.port, local_hostname="client.example") as mailer:
        messages = [Message("a@example.org", ["b@example.org"], content(n)) for n in MESSAGES]
        assert mailer.send(messages[0]).status == "accepted"
        hold.go.set()
        (link,) = mailer._pool.links
        wait_for_octets(link.sock)
        for message in messages[1:]:
            assert mailer.send(message).status == "accepted"
    assert len(peer.connections) == 2
    assert b"m2" not in peer.connections[0].received


def test_a_reply_too_many_that_shows_at_rset():
    """RSET can have no reply but 250 (RFC 5321, section 4.1.1.5): this one answers DATA."""

    def late(reply: bytes) -> Reply:
        return (lambda connection: time.sleep(2 * PACE), reply)

    replies = {
        "MAIL": b"\r\n250 ok\r\n",
        "RCPT": b"550 not him\r\n",
        "DATA": late(b"503 no recipient\r\n"),
        "RSET": late(b"250 reset\r\n"),
    }
    with (
        ModelServer(replies=replies) as server,
        fastsmtp.SMTP(server.host, server.port, timeout=TIMEOUT) as client,
    ):
        with pytest.raises(fastsmtp.SMTPSenderRefused):
            client.sendmail("a@example.org", ["b@example.org"], "x")
        assert client.sock is None or client.noop() == (250, b"noop 1")


LONG = content("m1") + (b"x" * 98 + b"\r\n") * 5_000


def narrow(address: tuple[str, int], timeout: float, source_address: None = None) -> socket.socket:
    """Connect with a small buffer, which would else grow to hold a whole message."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    sock.settimeout(timeout)
    sock.connect(address)
    return sock


class Narrow(fastsmtp.SMTP):
    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        return narrow((host, port), timeout)


def hasty(connection: Connection, reply: bytes = b"250 early\r\n") -> None:
    """Say 250 in the middle of the message, and 550 when it is whole."""
    time.sleep(2 * PACE)  # the buffers between the two fill up
    connection.send(reply)
    time.sleep(2 * PACE)
    connection.body()
    connection.send(b"550 no\r\n")
    stall(connection)


@pytest.mark.parametrize("subject", MAILERS, ids=lambda subject: subject.name)
def test_a_reply_before_the_end_of_the_message(subject, monkeypatch):
    """A 250 for what the server cannot have is no acceptance, and the message was not sent."""
    monkeypatch.setattr("fastsmtp.jobs.MOST_LOSSES", 1)
    step, reply = ("RCPT", b"250 ok\r\n") if subject.chunked else ("DATA", b"354 go\r\n")
    server = subject.peer({step: (reply, hasty)}, buffer_size=8192)
    with server, fastsmtp.Mailer(server.host, server.port, socket_factory=narrow) as mailer:
        delivery = mailer.send(Message("a@example.org", ["b@example.org"], LONG))
    assert delivery.status == "not_sent"
    assert isinstance(delivery.error, SMTPProtocolError)


@pytest.mark.parametrize("reply", [b"250 early\r\n", b"250-early\r\n250 bird\r\n"])
@pytest.mark.parametrize("pipelining", [True, False], ids=["pipelined", "one by one"])
def test_a_reply_before_the_end_of_a_drop_in_s_message(pipelining, reply):
    early = functools.partial(hasty, reply=reply)
    with (
        ModelServer(replies={"DATA": (b"354 go\r\n", early)}, buffer_size=8192) as server,
        Narrow(server.host, server.port, timeout=TIMEOUT, pipelining=pipelining) as client,
        pytest.raises(SMTPException),
    ):
        client.sendmail("a@example.org", ["b@example.org"], LONG)


# -- replies without end ------------------------------------------------------------

FLOODS = {
    "lines": b"250-" + b"x" * 100 + b"\r\n",
    "no line": b"x",
    "NULs": b"\0",
    "empty lines": b"\r\n",
}


@pytest.mark.parametrize(
    ("kind", "subject", "step"),
    [
        pytest.param(kind, SUBJECTS[name], step, id=f"{kind} to {step}, {name}")
        for kind, name, step in (
            *itertools.product(["lines"], FULL[1:], ["greeting", "final"]),
            *itertools.product(FLOODS, ["sendmail pipelined", "Mailer BDAT"], ["MAIL"]),
        )
    ],
)
def test_60_megabytes(kind, subject, step, tls):
    """They are neither kept nor read to the end (test_link.py has them for a Mailer, in RSS)."""
    replies = {subject.key(step): flood(FLOODS[kind], 60_000_000, b"250 end\r\n")}
    with bounded(6 << 20):
        run, peer = converse(subject, replies, tls)
    struck = "m1" if step in OPENING else "m2"
    if subject.is_mailer:
        if step in OPENING:
            assert run.statuses == ("not_sent",) * 3
        elif step == "final" or subject.chunked:
            assert run["m2"].status == "unknown"
        else:
            assert run.statuses == ("accepted",) * 3
    else:
        assert [name for name in MESSAGES if run[name].status != "accepted"] == [struck]
        assert isinstance(run[struck].error, SMTPException)
        assert len(peer.connections) == 2


@pytest.mark.parametrize("kind", ["no line", "NULs"])
def test_60_megabytes_with_debug_output(kind, tls):
    """Lines are read one by one then, but none of any length."""
    subject = SUBJECTS["sendmail pipelined"]
    replies = {subject.key("MAIL"): flood(FLOODS[kind], 60_000_000)}
    with bounded(6 << 20):
        run, _ = converse(subject, replies, tls, debug=True)
    assert run.statuses == ("accepted", "raised", "accepted")


# -- replies that take their time ---------------------------------------------------

#: What a Mailer waits for in a phase, in words, by step.
PHASES = {
    "greeting": "the greeting",
    "AUTH": "the reply to a command",
    "RCPT": "the replies to an envelope",
    "DATA": "the replies to an envelope",
    "final": "the reply to a message",
}
ENDLESS = {
    "stops": lambda code: (code + b"-one\r\n" + code[:2], stall),
    "trickles": lambda code: trickle(code[:2]),
    "trickles in lines": lambda code: (code + b"-one\r\n", trickle(code + b"-")),
}


def waiting(subject: Subject, step: str, endless: Callable[[bytes], Reply], tls) -> Run:
    """Run into a reply without an end, on any connection; check what holds for every row."""
    ours, theirs = tls if subject.kind == "SMTP_SSL" else ({}, {})
    reply = reply_to(subject, step, lambda code: (endless(code),))
    with subject.peer({subject.key(step, 1)[:2]: reply}, **ours) as peer:
        run = subject.run(peer, ["m1"], timeout=SHORT, overhear=False, **theirs)
    run.check(peer)
    return run


@pytest.mark.parametrize("step", PHASES)
def test_a_reply_that_does_not_end(step, tls, monkeypatch):
    """Once it has begun it must end within a drop-in's timeout, and a Mailer's phase has its own.

    Octets that keep coming extend neither; test_link.py has some of a Mailer's, with the time.
    """
    monkeypatch.setattr("fastsmtp.jobs.MOST_LOSSES", 1)

    def run(subject: Subject, endless: Callable[[bytes], Reply]) -> None:
        sent = waiting(subject, step, endless, tls)["m1"]
        if subject.is_mailer:
            late = step == "final" or (subject.chunked and step not in OPENING)
            assert sent.status == ("unknown" if late else "not_sent")
            assert isinstance(sent.error, TimeoutError)
            assert PHASES["final" if late else step] in str(sent.error)
        else:
            assert isinstance(sent.error, SMTPServerDisconnected)
            assert "timed out" in str(sent.error)

    subjects = [SUBJECTS[name] for name in FULL if step in SUBJECTS[name].steps]
    cases = [*itertools.product(subjects, ENDLESS.values())]
    together(lambda case: run(*case), [*cases, (SUBJECTS["SMTP_SSL"], ENDLESS["trickles"])])


def test_a_reply_to_quit_that_does_not_end(tls):
    """It costs no message its result."""

    def run(subject: Subject) -> None:
        run = waiting(subject, "QUIT", lambda code: trickle(b"22"), tls)
        assert run.statuses == ("accepted",)
        assert run.raised is None
        assert subject.is_mailer or isinstance(run.quit.error, SMTPServerDisconnected)

    together(run, SUBJECTS.values())
