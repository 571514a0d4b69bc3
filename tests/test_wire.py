"""The wire by itself: what it takes for a socket, and reading and writing at once."""

from __future__ import annotations

import io
import socket
import ssl
import threading
from typing import Any

import pytest
from support import client_tls, server_tls

from fastsmtp.codec import ReplyParser
from fastsmtp.errors import SMTPProtocolError, SMTPServerDisconnected
from fastsmtp.wire import Wire, is_standard

TIMEOUT = 5


@pytest.fixture
def pair():
    """A wire, and the socket at its other end."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(TIMEOUT)
        theirs.settimeout(TIMEOUT)
        yield Wire(ours), theirs


@pytest.fixture
def tls_pair(certificate):
    """The same under TLS."""
    ours, theirs = socket.socketpair()
    ours.settimeout(TIMEOUT)
    theirs.settimeout(TIMEOUT)
    secured: list[Any] = []

    def accept() -> None:
        secured.append(server_tls(certificate).wrap_socket(theirs, server_side=True))

    thread = threading.Thread(target=accept)
    thread.start()
    ours = client_tls(certificate).wrap_socket(ours, server_hostname="localhost")
    thread.join()
    with ours, secured[0]:
        yield Wire(ours), secured[0]


def owing(wire: Wire, replies: int = 1) -> Wire:
    wire.session.sent(replies)
    return wire


# -- what is read straight from the socket ------------------------------------


class Named(socket.socket):
    """A subclass that leaves reading and writing alone."""


class Watched(socket.socket):
    def recv(self, *args: Any) -> bytes:
        return super().recv(*args)


@pytest.mark.parametrize(
    ("kind", "standard"),
    [(socket.socket, True), (Named, True), (Watched, False), (io.BytesIO, False)],
)
def test_what_is_a_standard_socket(kind, standard):
    with kind() as sock:
        assert is_standard(sock) is standard


def test_tls_is_standard_and_what_is_patched_is_not(tls_pair):
    sock = tls_pair[0].sock
    assert is_standard(sock)
    sock.recv = sock.recv
    assert not is_standard(sock)


# -- reading ------------------------------------------------------------------


def test_lines_and_replies_come_from_one_buffer(pair):
    wire, server = pair
    server.sendall(b"one\ntwo three\n250 reply\r\n250 next")
    assert wire.readline() == b"one\n"
    assert wire.readline(3) == b"two"
    assert wire.readline(100) == b" three\n"
    assert owing(wire).read_reply() == (250, b"reply")
    server.shutdown(socket.SHUT_WR)
    assert wire.readline() == b"250 next"
    assert wire.readline() == b""


def test_lines_come_from_the_file_if_there_is_one(pair):
    wire = Wire(pair[0].sock, io.BytesIO(b"250-one\r\n250 two\r\nend"))
    seen: list[bytes] = []
    assert wire.read_reply_by_lines(ReplyParser(False), seen.append) == (250, b"one\ntwo")
    assert seen == [b"250-one\r\n", b"250 two\r\n"]
    assert wire.read_reply_by_lines(ReplyParser(False), seen.append) == (-1, b"")
    with pytest.raises(SMTPServerDisconnected, match="unexpectedly closed"):
        wire.read_reply_by_lines(ReplyParser(False), seen.append)
    assert wire.readline() == b""
    wire.check_in_step()  # what a file still holds cannot be known
    wire.read_last_words()
    wire.close()
    assert wire.file.closed


def test_closing_a_wire_leaves_the_socket_open(pair):
    wire, server = pair
    wire.close()
    server.sendall(b"250 ok\r\n")
    assert owing(wire).read_reply() == (250, b"ok")


@pytest.mark.parametrize("last", [b"", b"250-one\r\n"])
def test_the_end_of_the_stream(pair, last):
    wire, server = pair
    server.sendall(last)
    server.close()
    with pytest.raises(SMTPServerDisconnected, match="unexpectedly closed"):
        owing(wire).read_reply()


# -- in step ------------------------------------------------------------------

#: What arrives unasked, and the error.
UNASKED = {
    "reply": (b"250 hm\r\n", SMTPProtocolError, "no command had asked for"),
    "part of one": (b"25", SMTPProtocolError, "no command had asked for"),
    "421": (b"421 bye\r\n", SMTPServerDisconnected, "closed by the server"),
    "end": (None, SMTPServerDisconnected, "unexpectedly closed"),
}


@pytest.mark.parametrize("kind", ["pair", "tls_pair"])
@pytest.mark.parametrize("what", UNASKED)
def test_what_arrives_unasked_is_noticed(request, kind, what):
    wire, server = request.getfixturevalue(kind)
    wire.check_in_step()
    data, error, text = UNASKED[what]
    if data is None:
        server.shutdown(socket.SHUT_RDWR)
    else:
        server.sendall(data)
    wait_for_data(wire)
    with pytest.raises(SMTPServerDisconnected, match=text) as caught:
        wire.check_in_step()
    assert type(caught.value) is error


def wait_for_data(wire: Wire) -> None:
    """Wait until something can be read; look, and take nothing away."""
    fileno = socket.dup(wire.sock.fileno())
    with socket.socket(fileno=fileno) as same:
        same.settimeout(TIMEOUT)
        same.recv(1, socket.MSG_PEEK)
    wire.sock.settimeout(TIMEOUT)  # which the two have in common


def test_nothing_is_unasked_while_a_reply_is_owed(pair):
    wire, server = pair
    server.sendall(b"250 ok\r\n")
    wait_for_data(wire)
    owing(wire).check_in_step()
    assert wire.read_reply() == (250, b"ok")


def test_tls_records_that_are_decrypted_already_are_noticed(tls_pair):
    wire, server = tls_pair
    server.sendall(b"250 ok\r\n250 hm\r\n")
    wait_for_data(wire)
    assert wire.sock.recv(8) == b"250 ok\r\n"  # the rest is in the TLS session, not in the socket
    with pytest.raises(SMTPProtocolError):
        wire.check_in_step()


def test_last_words(pair):
    wire, server = pair
    server.sendall(b"250 one\r\n421-so\r\n421 long\r\n")
    server.close()
    wire.read_last_words()
    assert wire.session.last_reply == (421, b"so\nlong")


def test_last_words_of_a_socket_that_is_closed(pair):
    wire, _ = pair
    wire.sock.close()
    wire.read_last_words()
    assert wire.session.last_reply is None


# -- writing ------------------------------------------------------------------

CHUNK = bytes(range(256)) * 4000  # more than a socket's buffer holds


@pytest.mark.parametrize("kind", ["pair", "tls_pair"])
@pytest.mark.parametrize(
    "buffers",
    [
        (b"small",),
        (CHUNK,),
        (b"small", b".\r\n"),
        (CHUNK, b"\r\n.\r\n"),
        (memoryview(CHUNK), b".\r\n"),
        (CHUNK[:70_000], b"\r\n.\r\n"),
    ],
    ids=["one", "one large", "two", "large and small", "a view", "just too large to join"],
)
def test_all_buffers_are_written(request, kind, buffers):
    wire, server = request.getfixturevalue(kind)
    expected = b"".join(buffers)
    arrived = bytearray()

    def read() -> None:
        while len(arrived) < len(expected):
            arrived.extend(server.recv(65536))

    reader = threading.Thread(target=read)
    reader.start()
    wire.write(buffers, 1)
    reader.join(TIMEOUT)
    assert bytes(arrived) == expected
    assert (wire.broken, wire.session.owed) == (False, 1)


COMMANDS = b"RCPT TO:<somebody@example.org>\r\n" * 40_000
REPLY = b"550 " + b"x" * 60 + b"\r\n"


def answer_first(server: Any, replies: int, end: bool) -> threading.Thread:
    """Write the replies, without reading; then read all commands, or close."""

    def play() -> None:
        server.sendall(REPLY * replies)
        if end:
            server.close()
            return
        left = len(COMMANDS)
        while left:
            left -= len(server.recv(65536))

    thread = threading.Thread(target=play)
    thread.start()
    return thread


@pytest.mark.parametrize("kind", ["pair", "tls_pair"])
def test_replies_are_taken_while_commands_are_written(request, kind):
    wire, server = request.getfixturevalue(kind)
    thread = answer_first(server, 40_000, end=False)
    wire.write((COMMANDS,), 40_000)
    thread.join(TIMEOUT)
    assert not wire.broken
    assert {wire.read_reply() for _ in range(40_000)} == {(550, b"x" * 60)}
    assert (wire.session.owed, wire.session.pending) == (0, 0)
    assert wire.sock.gettimeout() == TIMEOUT


@pytest.mark.parametrize("kind", ["pair", "tls_pair"])
def test_what_the_server_said_before_it_closed_is_read(request, kind):
    wire, server = request.getfixturevalue(kind)
    thread = answer_first(server, 3, end=True)
    wire.write((COMMANDS,), 40_000)
    thread.join(TIMEOUT)
    assert [wire.read_reply() for _ in range(3)] == [(550, b"x" * 60)] * 3
    with pytest.raises(SMTPServerDisconnected):
        wire.read_reply()


def test_more_replies_than_commands(pair):
    wire, server = pair
    server.sendall(REPLY * 3)
    with pytest.raises(SMTPProtocolError):
        wire.write((COMMANDS,), 2)


def test_a_server_that_does_not_read_runs_into_the_timeout(pair):
    wire, _ = pair
    wire.sock.settimeout(0.1)
    wire.write((COMMANDS,), 2)
    assert wire.broken
    with pytest.raises(SMTPServerDisconnected, match="Server not connected"):
        wire.read_reply()


def test_a_refusal_is_read_from_a_broken_wire_and_an_acceptance_is_not(pair):
    """A message that was not written whole is not accepted, whatever the server says."""
    wire, server = pair
    server.sendall(b"552 too big\r\n250 taken\r\n")
    server.close()
    wire.write((CHUNK, CHUNK), 2)
    assert wire.broken
    assert wire.read_reply() == (552, b"too big")
    with pytest.raises(SMTPServerDisconnected, match="Server not connected"):
        wire.read_reply()


def test_tls_that_wants_to_read_before_it_writes(tls_pair):
    wire, server = tls_pair
    server.sendall(b"250 ok\r\n")
    wire._wait(ssl.SSLWantReadError(), TIMEOUT)
    wire.sock.settimeout(None)
    wire._wait(BlockingIOError(), None)
    assert owing(wire).read_reply() == (250, b"ok")
