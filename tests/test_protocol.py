"""The session's state: bytes in, replies out, and nothing that nobody asked for."""

from __future__ import annotations

import smtplib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastsmtp.errors import SMTPProtocolError, SMTPServerDisconnected
from fastsmtp.protocol import Session, parse_extensions
from fastsmtp.reply import Reply


def in_step(*, strict: bool = True) -> Session:
    """Return a session that has its greeting."""
    session = Session(strict=strict)
    session.receive(b"220 hello\r\n")
    assert session.next_reply() == (220, b"hello")
    return session


def test_replies_are_counted():
    session = Session()
    assert (session.owed, session.pending, session.last_reply) == (1, 0, None)
    session.receive(b"220 hel")
    assert session.next_reply() is None
    session.receive(b"lo\r\n250-a\r\n")
    reply = session.next_reply()
    assert (type(reply), reply) == (Reply, (220, b"hello"))
    assert session.last_reply is reply
    assert (session.owed, session.pending) == (0, 7)

    session.sent(3)
    assert session.next_reply() is None
    session.receive(b"250 b\r\n250 c\r\n")
    assert [session.next_reply(), session.next_reply()] == [(250, b"a\nb"), (250, b"c")]
    assert (session.owed, session.pending, session.last_reply) == (1, 0, (250, b"c"))


def test_a_reply_that_nobody_is_owed_makes_no_debt():
    session = in_step()
    session.took((250, b"more"))
    assert session.owed == 0
    session.sent(1)
    assert session.owed == 1


@pytest.mark.parametrize("strict", [None, True, False])
def test_strictness_is_the_parser_s(strict):
    session = Session() if strict is None else Session(strict=strict)
    session.receive(b"2500 x\r\n")
    if strict is not False:
        with pytest.raises(SMTPProtocolError):
            session.next_reply()
    else:
        assert session.next_reply() == (250, b"x")


def test_what_is_owed_may_be_waiting():
    session = in_step()
    session.sent(1)
    session.receive(b"250 ok\r\n")
    session.check_in_step()
    assert session.next_reply() == (250, b"ok")
    session.check_in_step()


@pytest.mark.parametrize(
    ("unasked", "error"),
    [
        (b"250 late\r\n", SMTPProtocolError),
        (b"250-la", SMTPProtocolError),
        (b"\x16", SMTPProtocolError),
        (b"garbage\r\n", SMTPProtocolError),
        (b"x" * 9000, SMTPProtocolError),
        (b"421 bye\r\n", SMTPServerDisconnected),
        (b"421 bye", SMTPProtocolError),
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_what_nobody_asked_for(unasked, error, strict):
    session = in_step(strict=strict)
    session.receive(unasked)
    with pytest.raises(SMTPServerDisconnected) as raised:
        session.check_in_step()
    assert raised.type is error


def test_tls_starts_with_nothing_from_before():
    session = in_step()
    session.parser.max_line = 100
    before = session.parser
    session.start_tls()
    assert session.parser is not before
    kept = session.parser
    assert (kept.strict, kept.max_line, kept.max_reply) == (True, 100, before.max_reply)


@pytest.mark.parametrize("injected", [b"250 injected\r\n", b"2"])
def test_bytes_from_before_tls_are_refused(injected):
    session = in_step()
    session.receive(injected)
    with pytest.raises(SMTPProtocolError, match="STARTTLS"):
        session.start_tls()
    assert session.pending == len(injected)


# -- extensions ---------------------------------------------------------------


def smtplib_extensions(text: bytes) -> dict[str, str]:
    class Client(smtplib.SMTP):
        def putcmd(self, cmd, args=""):
            pass

        def getreply(self):
            return 250, text

    client = Client(local_hostname="localhost")
    client.ehlo()
    return client.esmtp_features


words = st.sampled_from(
    ["AUTH", "auth", "AUTH=", "SIZE", "8BITMIME", "X-1", " ", "  ", "=", "PLAIN", "\t", "é", "-"]
)
lines = st.lists(words, max_size=5).map("".join) | st.text("Aa =-\r\t", max_size=8)


@given(text=st.lists(lines, max_size=6).map(lambda text: "\n".join(text).encode("latin-1")))
@example(text=b"host\nAUTH PLAIN\nAUTH=LOGIN\nAUTH CRAM-MD5\nauth=XOAUTH2")
@example(text=b"host\nSIZE 35882577 \nSIZE\n\n8BITMIME\n=\nsize-2  a  b ")
def test_extensions_are_those_that_smtplib_finds(text):
    assert parse_extensions(text) == smtplib_extensions(text)


def test_extensions():
    text = b"host.example\nPIPELINING\nSIZE 1000\nAUTH PLAIN LOGIN\nAUTH=LOGIN"
    assert parse_extensions(text) == {
        "pipelining": "",
        "size": "1000",
        "auth": " PLAIN LOGIN LOGIN",
    }
    assert parse_extensions(b"host.example PIPELINING") == parse_extensions(b"") == {}
