"""Flights: MAIL, the RCPTs and DATA leave at once, and replies are taken as they come.

However a server's bytes are cut, the outcome is the one that the same replies
have one at a time, and afterwards the connection is in step or closed.
"""

from __future__ import annotations

import enum
import itertools
import mailbox
import random
import smtplib
import socket
from collections import deque
from collections.abc import Callable, Iterable
from email.message import EmailMessage, Message
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import Connection, ModelServer, Server, close, multiline

import fastsmtp
from fastsmtp.envelope import Envelope
from fastsmtp.operations import NEED_REPLY, Replies, send
from fastsmtp.protocol import Session

NAME = "client.example"
FROM, A, B = "from@example.org", "a@example.org", "b@example.org"
HELLO = b"Subject: hello\r\n\r\nhello\r\n"
DISCONNECTED = smtplib.SMTPServerDisconnected
OK, GO, NO, BYE = b"250 ok\r\n", b"354 go\r\n", b"550 no\r\n", b"421 bye\r\n"
JUNK = b"\xffun k\r\n"
LONGEST = b"250 %b\r\n" % (8186 * b"x")
TOO_LONG = b"250 %b\r\n" % (8187 * b"x")
IN_STEP = (250, b"in step")


# -- without a socket ---------------------------------------------------------


def outcome_of(pieces: Iterable[bytes], *, lmtp: bool) -> tuple[Any, ...]:
    """Return all that came of a transaction for two that was answered with these bytes."""
    left = deque(pieces)
    session = Session(strict=False)
    session.owed = 0
    written: list[bytes] = []

    def taken(take: Callable[..., Any], *arguments: int) -> Any:
        while not (replies := take(*arguments)):
            if not left:
                raise DISCONNECTED("the end")
            session.receive(left.popleft())
        return replies

    operation = send(Envelope(FROM, [A, B]), (HELLO, b".\r\n"), pipelining=True, lmtp=lmtp)
    value = None
    try:
        while True:
            effect: Any = operation.send(value)
            if effect is NEED_REPLY:
                value = taken(session.next_reply)
            elif isinstance(effect, Replies):
                value = taken(session.next_replies, effect.most)
                assert 1 <= len(value) <= effect.most
            else:
                assert session.owed == 0
                session.sent(effect.replies)
                written += map(bytes, effect.buffers)
                value = taken(session.next_replies, effect.most) if effect.most else None
    except StopIteration as end:
        ended = end.value
        result = tuple(getattr(ended, each) for each in (*ended.__slots__, "closing"))
    except smtplib.SMTPException as error:
        result = type(error), error.args
    return result, written, session.last_reply, session.owed


REPLIES = st.sampled_from(
    [
        OK, OK, OK, GO, NO, BYE, JUNK, LONGEST, TOO_LONG, b"\r\n", b"250\n", b"251 other\r\n",
        b"252 maybe\r\n", b"250-a\r\n250 b\r\n", b"550-a\r\n421 b\n", b"421-a\r\n250 b\r\n",
        b"354-a\r\n354 b\r\n", b"999 what\r\n",
    ]
)  # fmt: skip


@given(
    st.lists(REPLIES, min_size=1, max_size=8),
    st.lists(st.integers(0, 100), max_size=3),
    st.booleans(),
)
def test_how_replies_are_cut_does_not_show(replies, cuts, lmtp):
    stream = b"".join(replies)
    places = sorted({0, len(stream), *(cut % len(stream) for cut in cuts)})
    pieces = [stream[start:end] for start, end in itertools.pairwise(places)]
    one_at_a_time = outcome_of(replies, lmtp=lmtp)
    assert outcome_of(pieces, lmtp=lmtp) == one_at_a_time
    assert outcome_of([stream], lmtp=lmtp) == one_at_a_time


# -- on a connection ----------------------------------------------------------


def answering(*replies: bytes, then: Callable[[Connection], None] | None = None) -> Server:
    """Start a server that has these replies to a flight, sent at once, and then does its work."""

    def play(connection: Connection) -> None:
        connection.send(b"220 flight.example\r\n")
        connection.line()
        connection.send(multiline(250, ["flight.example", "PIPELINING"]))
        while connection.line().upper() != b"DATA\r\n":
            pass
        connection.send(b"".join(replies))
        if then is not None:
            then(connection)
        following = {b".": b"250 taken\r\n", b"RSET": OK, b"NOOP": b"250 in step\r\n"}
        while True:
            connection.send(following.get(connection.line().strip().upper(), b""))

    return Server(play)


def attempt(call: Callable[..., Any], *args: Any) -> Any:
    """Return what a call returns, or the class and the arguments of what it raises."""
    try:
        return call(*args)
    except smtplib.SMTPException as error:
        return type(error), *error.args


def connected(server: Server, kind: str = "SMTP") -> Any:
    return getattr(fastsmtp, kind)(server.host, server.port, NAME, timeout=5)


def send_to_both(server: Server) -> tuple[Any, Any]:
    """Return what sendmail() came to, and NOOP if the connection is still open."""
    with server:
        client = connected(server)
        try:
            result = attempt(client.sendmail, FROM, [A, B], HELLO)
            return result, client.sock and attempt(client.noop)
        finally:
            client.close()


SENDER, RECIPIENTS, DATA = (
    smtplib.SMTPSenderRefused, smtplib.SMTPRecipientsRefused, smtplib.SMTPDataError,
)  # fmt: skip


@pytest.mark.parametrize(
    ("replies", "expected"),
    [
        ((OK, OK, OK, GO), {}),
        ((LONGEST, LONGEST, LONGEST, GO), {}),
        ((OK, NO, OK, GO), {A: (550, b"no")}),
        ((OK, OK, JUNK, GO), {B: (-1, b"k")}),
        ((OK, GO, OK, GO), {A: (354, b"go")}),
        ((OK, OK, b"550-a\r\n550 b\r\n", GO), {B: (550, b"a\nb")}),
        ((NO, OK, OK, NO), (SENDER, 550, b"no", FROM)),
        ((NO, NO, NO, GO), (SENDER, 550, b"no", FROM)),
        ((GO, NO, NO, NO), (SENDER, 354, b"go", FROM)),
        ((OK, NO, JUNK, GO), (RECIPIENTS, {A: (550, b"no"), B: (-1, b"k")})),
        ((OK, NO, NO, NO), (RECIPIENTS, {A: (550, b"no"), B: (550, b"no")})),
        ((OK, OK, OK, NO), (DATA, 550, b"no")),
        ((OK, OK, OK, JUNK), (DATA, -1, b"k")),
    ],
)
def test_in_step_after(replies, expected):
    assert send_to_both(answering(*replies)) == (expected, IN_STEP)


@pytest.mark.parametrize("more", [(), (OK,), (OK, GO), (OK, OK, OK, OK), (TOO_LONG,), (BYE,)])
@pytest.mark.parametrize(
    ("replies", "expected"),
    [
        ((BYE,), (SENDER, 421, b"bye", FROM)),
        ((OK, BYE), (RECIPIENTS, {A: (421, b"bye")})),
        ((OK, NO, BYE), (RECIPIENTS, {A: (550, b"no"), B: (421, b"bye")})),
        ((OK, OK, OK, BYE), (DATA, 421, b"bye")),
    ],
)
def test_nothing_counts_behind_a_421(replies, more, expected):
    assert send_to_both(answering(*replies, *more, then=close)) == (expected, None)


@pytest.mark.parametrize(
    ("replies", "expected"),
    [
        ((NO, OK, OK, GO), (SENDER, 550, b"no", FROM)),  # it would take an empty message
        ((OK, b"252 maybe\r\n", NO, GO), (RECIPIENTS, {A: (252, b"maybe"), B: (550, b"no")})),
        ((OK, OK, OK, OK), (DATA, 250, b"ok")),  # no reply to DATA
    ],
)
def test_closed_after(replies, expected):
    assert send_to_both(answering(*replies)) == (expected, None)


@pytest.mark.parametrize("number", range(4))
def test_a_line_that_is_too_long_ends_it(number):
    replies = [OK, OK, OK, GO]
    replies[number] = TOO_LONG
    result, step = send_to_both(answering(*replies))
    assert result[:2] == (smtplib.SMTPResponseException, 500)
    assert step is None


def test_a_reply_too_many_ends_it():
    server = answering(OK, OK, OK, GO, OK)
    assert send_to_both(server)[0][0] is fastsmtp.SMTPProtocolError
    assert b"hello" not in server.received


def test_the_end_of_the_stream_at_each_byte():
    stream = OK + OK + NO + GO
    for end in range(len(stream) - 2):
        server = answering(stream[:end], then=close)
        result, step = send_to_both(server)
        # What is cut counts as a reply, as with smtplib: "35" is a refusal of DATA.
        whole = len(stream) - len(GO)
        if whole < end < whole + 3:
            assert result == (DATA, int(stream[whole:end]), b"")
        else:
            assert result[0] is DISCONNECTED
        assert step is None or step[0] is DISCONNECTED


@pytest.mark.parametrize("last", [b"250 taken\r\n", b"421 bye\r\n"])
def test_a_long_flight_with_replies_coming_early(last):
    recipients = [f"{number}@example.org" for number in range(300)]
    numbers = range(2, 250, 3)
    replies: Any = {("RCPT", number): b"550 %b\r\n" % (200 * b"x") for number in numbers}
    replies["RCPT", 290] = last
    results = []
    for pipelining in (True, False):
        with ModelServer(replies=replies, buffer_size=2048) as server:
            client = connected(server)
            client.pipelining = pipelining
            for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                client.sock.setsockopt(socket.SOL_SOCKET, buffer, 2048)
            result = attempt(client.sendmail, FROM, recipients, HELLO)
            results.append((result, client.sock is None))
            client.close()
    assert results[0] == results[1]


# -- what is written ----------------------------------------------------------


class Address(str):
    """Text that says other things of itself than it holds."""

    __slots__ = ()

    def __str__(self) -> str:
        return "other@example.org"

    def __len__(self) -> int:
        return 1

    def __format__(self, spec: str) -> str:
        return "other@example.org"

    def encode(self, *args: Any) -> bytes:
        return b"other@example.org"


class Member(str, enum.Enum):
    A = A
    B = B


@pytest.mark.parametrize(
    "recipients",
    [
        ["<a@example.org>", "Bee <b@example.org>"], [Address(A), Address(B)], list(Member),
        (each for each in (A, B)), {A: 1, B: 2}, ["<a@example.org>", B],
    ],
)  # fmt: skip
def test_one_flight_however_the_addresses_are_given(recipients):
    flights = []
    for each in ([A, B], recipients):
        with ModelServer() as server:
            client = connected(server)
            assert client.sendmail(FROM, each, HELLO) == {}
            client.close()
        assert server.messages[0].recipients == [A, B]
        flights.append(server.commands)
    assert flights[0] == flights[1]


@pytest.mark.parametrize("sender", ["", "<>", Address(FROM), "From <from@example.org>"])
def test_senders(sender):
    with ModelServer() as server:
        client = connected(server)
        client.sendmail(sender, A, HELLO)
        client.close()
    assert server.messages[0].sender == ("" if sender in ("", "<>") else FROM)


@pytest.mark.parametrize("bad", [None, 5, b"b@example.org", ("b", B), "\xe9@example.org"])
def test_a_bad_address_leaves_nothing_behind(bad):
    with ModelServer() as server:
        client = connected(server)
        client.ehlo()
        for sender, recipients in ((bad, [A]), (FROM, [A, bad])):
            with pytest.raises((TypeError, ValueError)):
                client.sendmail(sender, recipients, HELLO)
        assert client.noop() == (250, b"noop 1")
        client.close()
    assert [command.split()[0].upper() for command in server.commands] == ["EHLO", "NOOP"]


def test_extensions_edited_by_hand():
    with ModelServer() as server:
        client = connected(server)
        client.ehlo()
        del client.esmtp_features["size"]
        client.sendmail(FROM, A, HELLO)
        assert "size" not in server.commands[1].lower()
        del client.esmtp_features["pipelining"]
        client.sendmail(FROM, A, HELLO)
        client.esmtp_features["pipelining"] = ""
        client.sendmail(FROM, A, HELLO)
        client.close()
    flights = [read for read in server.reads if read.upper().startswith(b"MAIL")]
    assert [read.count(b"\n") for read in flights] == [3, 1, 3]


def test_a_quoteaddr_of_somebody_elses(monkeypatch):
    monkeypatch.setattr(fastsmtp, "quoteaddr", lambda address: f"<other-{address}>")
    with ModelServer() as server:
        client = connected(server)
        client.sendmail(FROM, [A], HELLO)
        client.close()
    assert server.messages[0].recipients == ["other-" + A]


# -- messages -----------------------------------------------------------------


def what_is_sent(module: Any, message: Any, *addresses: Any) -> Any:
    """Return what a send_message() hands to sendmail()."""

    class Sender(module.SMTP):
        def ehlo_or_helo_if_needed(self) -> None:
            self.esmtp_features = {}

        def sendmail(self, from_addr: Any, to_addrs: Any, msg: Any, *options: Any) -> Any:
            return from_addr, to_addrs, bytes(msg)

    random.seed(4)
    return Sender(local_hostname=NAME).send_message(message, *addresses)


def filled(message: Any) -> Any:
    """Fill a message in: for somebody who is not to show, among others."""
    message["From"] = "from@example.org"
    message["To"] = "Ann <a@example.org>, b@example.org"
    message["Subject"] = "hello"
    message["bcc"] = "hidden@example.org"
    if message.get_content_maintype() == "multipart":
        message.attach(MIMEText("From here\n"))
    else:
        message.set_payload("From here\n.\n")
    return message


OVERRIDDEN = (
    "__contains__", "__getitem__", "__iter__", "__len__", "get", "get_all",
    "get_boundary", "get_content_maintype", "get_content_type", "get_param", "get_payload",
    "is_multipart", "items", "raw_items", "set_boundary", "set_payload", "walk",
)  # fmt: skip


@pytest.mark.parametrize("kind", [Message, EmailMessage, MIMEMultipart])
@pytest.mark.parametrize("name", OVERRIDDEN)
def test_a_class_with_a_method_of_its_own(kind, name):
    def method(self: Any, *args: Any, **keywords: Any) -> Any:
        return getattr(super(own, self), name)(*args, **keywords)

    own: Any = type("Own", (kind,), {name: method})
    sent = what_is_sent(fastsmtp, filled(own()))
    assert sent == what_is_sent(smtplib, filled(own()))
    assert b"hidden" not in sent[2]


class Falsy(EmailMessage):
    def __bool__(self) -> bool:
        return False


class Rewriting(Message):
    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        return value and value.replace("a@", "z@")


@pytest.mark.parametrize("kind", [Falsy, Rewriting, mailbox.mboxMessage, mailbox.MaildirMessage])
def test_other_classes_of_messages(kind):
    assert what_is_sent(fastsmtp, filled(kind())) == what_is_sent(smtplib, filled(kind()))


@pytest.mark.parametrize("name", ["To", "Cc", "Bcc", "Resent-Date", "Resent-To", "Subject"])
def test_a_field_that_holds_nothing(name):
    message = filled(Message())
    message["Resent-From"], message["Resent-To"] = "again@example.org", "c@example.org"
    del message[name]
    message[name] = None  # type: ignore[assignment] - as the legacy policy takes it
    assert what_is_sent(fastsmtp, message) == what_is_sent(smtplib, message)
