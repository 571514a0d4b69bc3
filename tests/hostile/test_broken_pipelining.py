"""Servers that offer PIPELINING (RFC 2920) and do not mean it, in the ways the field has shown.

Seen there, among others: firewalls and proxies that pass on the first command of a segment and
drop the rest, servers that look for message data in new segments only, servers that hold the
replies to a group back until there is more to read, 503 to DATA after refused recipients where
554 is meant, 354 all the same, and connections closed in the middle of a group.  What is held:
nobody's reply is taken for another's, nothing of a message goes to a server that has refused
all its recipients, and the connection is in step or closed, within the client's own time.
test_flights.py has all ways to cut a flight's replies without a socket.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import pytest
from peers import RECIPIENT, SENDER, SHORT, SUBJECTS, check_commands, content
from support import TIMEOUT, Connection, Reply, close

import fastsmtp
from fastsmtp import Mailer, Message, SMTPServerDisconnected, Timeouts, pool

PIPELINED = [
    SUBJECTS[name] for name in ("sendmail pipelined", "LMTP", "Mailer DATA", "Mailer BDAT")
]
DROP_INS = PIPELINED[:2]
#: Only what may come to nothing has little time; what is lost of it is sent again.
LITTLE = SHORT / 2
TIMEOUTS = Timeouts(data=LITTLE)
CHUNKED_TIMEOUTS = Timeouts(data=LITTLE, final=2 * SHORT)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    """Connect again soon after a failure."""
    monkeypatch.setattr(pool, "_FIRST_PAUSE", 0.02)


def pipelined(*subjects: Any) -> Any:
    chosen = subjects or PIPELINED
    return pytest.mark.parametrize("subject", chosen, ids=lambda subject: subject.name)


# -- input that is lost, output that is kept ------------------------------------


def drop_input(connection: Connection) -> None:
    """Forget what came in the same segment behind this command."""
    connection._unread.clear()


def drop_chunk(connection: Connection) -> None:
    """Forget what came behind BDAT's line: the octets are looked for in segments to come."""
    line, newline, _ = bytes(connection._unread).partition(b"\n")
    connection._unread[:] = line + newline


def keep_replies(connection: Connection) -> None:
    """From now on send no reply to a group of commands before there is more to read."""
    send, receive, kept = connection.send, connection.receive, bytearray()

    def keep(data: bytes) -> None:
        if connection._unread or kept:
            kept.extend(data)
        else:
            send(data)

    def flush() -> bytes:
        if kept:
            data = receive()  # first there must be more
            send(bytes(kept))
            kept.clear()
            return data
        return receive()

    connection.send, connection.receive = keep, flush  # type: ignore[method-assign]


BREAKAGES: dict[str, dict[Any, Reply]] = {
    "the rest of a segment is dropped": {"MAIL": (drop_input, b"250 ok\r\n")},
    "input is dropped after RCPT": {"RCPT": (drop_input, b"250 ok\r\n")},
    "input is dropped after a message": {"body": (drop_input, b"250 ok\r\n")},
    "a chunk is looked for in the next segment": {"RCPT": (drop_chunk, b"250 ok\r\n")},
    "replies are kept until there is more to read": {
        "greeting": (keep_replies, b"220 model.example ESMTP\r\n")
    },
}
#: What they do to a client that takes the server at its word; nothing else goes wrong.
STATUSES = {
    ("the rest of a segment is dropped", "sendmail pipelined"): "raised",
    ("the rest of a segment is dropped", "LMTP"): "raised",
    ("input is dropped after RCPT", "sendmail pipelined"): "raised",
    ("input is dropped after RCPT", "LMTP"): "raised",
    ("replies are kept until there is more to read", "sendmail pipelined"): "raised",
    ("replies are kept until there is more to read", "LMTP"): "raised",
    # All of it was sent, and nothing came back: it could have been taken.
    ("input is dropped after RCPT", "Mailer BDAT"): "unknown",
    ("a chunk is looked for in the next segment", "Mailer BDAT"): "unknown",
    ("replies are kept until there is more to read", "Mailer BDAT"): "unknown",
}


def concerns(how: str, subject: Any) -> bool:
    """Whether a client that sends what it does can notice."""
    if "chunk" in how:
        return subject.chunked
    if how == "the rest of a segment is dropped" and subject.chunked:
        return False  # it comes to the same as what is dropped after RCPT
    return not (how == "input is dropped after a message" and subject.name != "Mailer DATA")


@pytest.mark.parametrize(
    ("how", "subject"),
    [
        pytest.param(how, subject, id=f"{subject.name}, {how}")
        for how in BREAKAGES
        for subject in PIPELINED
        if concerns(how, subject)
    ],
)
def test_what_is_awaited_does_not_come(how, subject):
    """The drop-in gives up in its time; the Mailer goes on without what broke."""
    first = STATUSES.get((how, subject.name), "accepted")
    if subject.is_mailer:
        timeouts = CHUNKED_TIMEOUTS if subject.chunked else TIMEOUTS
        keywords: dict[str, Any] = {"timeouts": timeouts, "connect_attempts": 5}
    else:
        keywords = {"timeout": LITTLE}
    with subject.peer(BREAKAGES[how]) as peer:
        names = ("m1", "m2", "m3") if subject.is_mailer else ("m1",)
        run = subject.run(peer, names, login=False, **keywords)
    run.check(peer)
    assert run.statuses == (first, "accepted", "accepted")[: len(names)]
    assert run.raised is None
    if first == "raised":
        assert isinstance(run["m1"].error, SMTPServerDisconnected)
        assert b"Subject" not in peer.received
        assert run.quit is None  # for there is no connection


@pytest.mark.parametrize("how", BREAKAGES)
@pipelined()
def test_without_pipelining_all_is_well(how, subject):
    """The cure that the documentation has for such servers."""
    keywords = {"chunking": False} if subject.is_mailer else {}
    with subject.peer(BREAKAGES[how]) as peer:
        run = subject.run(peer, pipelining=False, login=False, **keywords)
    run.check(peer)
    assert run.statuses == ("accepted",) * 3
    assert len(peer.connections) == 1


def test_extensions_that_a_firewall_has_masked():
    """PIXes and ASAs write over what they do not know; so nothing is pipelined."""
    greeting = b"220 ****************************************2********0**00\r\n"
    hello = b"250-model.example\r\n250-XXXXXXXXXA\r\n250-XXXXXXXB\r\n250 SIZE 1000000\r\n"
    for subject in PIPELINED:
        verb = "LHLO" if subject.lmtp else "EHLO"
        with subject.peer({"greeting": greeting, verb: hello}) as peer:
            run = subject.run(peer, login=False)
        run.check(peer)
        assert run.statuses == ("accepted",) * 3
        assert all(read.count(b"\r\n") == 1 for read in peer.reads if not read.startswith(b"Sub"))


# -- what is refused as a whole ---------------------------------------------------


def lone_dot_taken(connection: Connection) -> None:
    """Say 354 to nobody's message, and 250 to the nothing that comes."""
    connection.send(b"354 go ahead\r\n")
    assert connection.body() == b".\r\n"
    connection.send(b"250 queued\r\n")


class Answer(NamedTuple):
    """What DATA, or BDAT, is answered with after all recipients were refused."""

    reply: Reply
    stays: bool = True  # the connection
    #: What the message comes to for the Mailer; on another connection it is accepted.
    mailer: str = "rejected"
    chunked: str = "rejected"


ANSWERS = {
    "503": Answer(b"503 5.5.1 Error: need RCPT command\r\n"),
    "503 in lines": Answer(b"503-valid RCPT command\r\n503 must precede DATA\r\n"),
    "554": Answer(b"554 5.5.1 Error: no valid recipients\r\n"),
    "451": Answer(b"451 4.0.0 later\r\n"),
    "no code": Answer(b"no valid recipients\r\n", False, "accepted", "accepted"),
    "250": Answer(b"250 2.0.0 Ok: queued\r\n", False, "accepted", "unknown"),
    "421": Answer((b"421 4.7.0 Too many errors\r\n", close), False, "accepted", "accepted"),
    "the end": Answer(close, False, "accepted", "accepted"),
}
TAKING = {
    "354, and 554 to the dot": Answer(b"354 go ahead\r\n"),
    "354, and 250 to the dot": Answer(lone_dot_taken),
}


@pytest.mark.parametrize(
    ("refused", "how", "subject"),
    [
        pytest.param(refused, how, subject, id=f"{subject.name}, {refused} and {how}")
        for refused in ("RCPT", "MAIL")
        for subject in PIPELINED
        for how in (ANSWERS if subject.chunked else ANSWERS | TAKING)
    ],
)
def test_all_is_refused(refused, how, subject):
    """Nobody gets the message, and the refusal that is told is that of the recipients, or MAIL."""
    answer = (ANSWERS | TAKING)[how]
    stays = answer.stays and not (subject.lmtp and how in TAKING)
    if how == "no code" and not subject.is_mailer:
        stays = True  # to smtplib that is a reply
    replies = {
        subject.key(refused): b"550 5.7.1 no\r\n",
        ("BDAT" if subject.chunked else "DATA", 2, 1): answer.reply,
    }
    with subject.peer(replies) as peer:
        run = subject.run(peer, login=False)
    run.check(peer)
    # By BDAT m3 has left, too; only after 421 is it known that it was not taken.
    last = "accepted" if stays or how == "421" or not subject.chunked else "unknown"
    assert (run["m1"].status, run["m3"].status) == ("accepted", last)
    if not subject.chunked:  # by BDAT it leaves before the first reply comes
        assert b"of m2" not in peer.connections[0].received
    again = not stays and (last, run["m2"].status) != ("unknown", "unknown")
    assert len(peer.connections) == 1 + again
    if subject.is_mailer:
        assert run["m2"].status == (answer.chunked if subject.chunked else answer.mailer)
        if run["m2"].status == "rejected":
            assert run["m2"].result.reply == (550, b"5.7.1 no")
    else:
        check_refusal(run["m2"].error, refused, how)


def check_refusal(error: Any, refused: str, how: str) -> None:
    """Hold that an exception of the drop-in tells who was refused, and by what."""
    if how == "the end":
        assert isinstance(error, SMTPServerDisconnected)
        assert error.last_reply[0] in (503, 550)
    elif refused == "MAIL":
        assert isinstance(error, fastsmtp.SMTPSenderRefused)
        assert (error.smtp_code, error.smtp_error) == (550, b"5.7.1 no")
    else:
        assert isinstance(error, fastsmtp.SMTPRecipientsRefused)
        assert error.recipients == {RECIPIENT: (550, b"5.7.1 no")}


# -- replies in odd segments --------------------------------------------------------

CUTS: dict[str, Callable[[bytes], Iterable[bytes]]] = {
    "an octet each": lambda data: [data[i : i + 1] for i in range(len(data))],
    "all in one": lambda data: [data],
    "inside CRLF": lambda data: re.split(rb"(?<=\r)", data),
    "inside the code": lambda data: re.split(rb"(?m)(?<=^\d)", data),
    "behind the code": lambda data: re.split(rb"(?m)(?<=^\d\d\d)", data),
    "some and a half": lambda data: [data[i : i + 50] for i in range(0, len(data), 50)],
}
TO = [f"b{number}@example.org" for number in range(5)]
#: How TO are answered, in their order.
ANSWERED = [
    b"250 2.1.5 Ok\r\n",
    b"550 5.1.1 no b1\r\n",
    b"251 2.1.5 forwarded\r\n",
    b"450-4.2.1 not now\r\n450 4.2.1 b3\r\n",
    b"250 2.1.5 Ok\r\n",
]
REFUSED = {TO[1]: (550, b"5.1.1 no b1"), TO[3]: (450, b"4.2.1 not now\n4.2.1 b3")}


def in_segments(cut: Callable[[bytes], Iterable[bytes]]) -> Callable[[Connection], None]:
    """From now on send the replies to a group together, but cut."""

    def play(connection: Connection) -> None:
        send, kept = connection.send, bytearray()

        def send_cut(data: bytes) -> None:
            kept.extend(data)
            if connection._unread:
                return  # there are commands yet
            for segment in cut(bytes(kept)):
                send(segment)
                # The pace makes segments likely; nothing depends on it.
                time.sleep(0.0003)
            kept.clear()

        connection.send = send_cut  # type: ignore[method-assign]

    return play


@pytest.mark.parametrize("how", CUTS)
@pipelined()
def test_replies_in_odd_segments(subject, how):
    """Each recipient has its own, and the next message too."""
    replies = {("RCPT", number): reply for number, reply in enumerate(ANSWERED, 1)}
    replies["greeting"] = (in_segments(CUTS[how]), b"220 model.example ESMTP\r\n")
    with subject.peer(replies) as peer:
        refused = list(send_both(subject, peer))
    assert refused == [REFUSED, {}]
    assert len(peer.connections) == 1
    assert [each.recipients for each in peer.messages] == [[TO[0], TO[2], TO[4]], [RECIPIENT]]
    assert [each.data for each in peer.messages] == [content("m1"), content("m2")]
    check_commands(peer)


def send_both(subject: Any, peer: Any) -> Iterable[dict[str, tuple[int, bytes]]]:
    """Send m1 to TO and m2 to RECIPIENT; yield whom each refused."""
    if subject.is_mailer:
        messages = [Message(SENDER, TO, content("m1")), Message(SENDER, RECIPIENT, content("m2"))]
        keywords = {"tls": "none", "local_hostname": "client.example", "connections": 1}
        with Mailer(peer.host, peer.port, **keywords) as mailer:
            yield from (delivery.refused for delivery in mailer.send_many(messages))
    else:
        make = getattr(fastsmtp, subject.kind)
        with make(peer.host, peer.port, "client.example", timeout=TIMEOUT) as client:
            yield client.sendmail(SENDER, TO, content("m1"))
            yield client.sendmail(SENDER, RECIPIENT, content("m2"))
