"""Ten thousand connections that come to nothing, and not one file descriptor is left open.

Nor is one left to the garbage collector, which is off here: what fails has closed
what it opened, or the program that is told closes it.  A socket that is dropped
open is a ResourceWarning, and so fails the test, too.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import smtplib
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from support import TIMEOUT, client_tls, server_tls

import fastsmtp
from fastsmtp import pool

NAME = "client.example"
DESCRIPTORS = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
pytestmark = pytest.mark.skipif(not os.path.isdir(DESCRIPTORS), reason="no way to count them")


def count() -> int:
    return len(os.listdir(DESCRIPTORS))


# -- the other end ----------------------------------------------------------------

END, TLS = b"", "tls"
HELLO = b"220 peer.example\r\n"
#: A reply to EHLO that offers what the tests want refused.
OFFER = b"250-peer.example\r\n250-STARTTLS\r\n250 AUTH PLAIN\r\n"
READY = b"220 go ahead\r\n"
NO = b"554 no\r\n"
#: Knows no certificate to be good.
NO_TRUST = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
NO_TLS = b"HTTP/1.1 400 Bad Request\r\n\r\n"


class Peer:
    """Has one connection after another: says one thing, then one for each line it gets.

    END ends the stream, TLS begins TLS.  Without anything to say, it does not
    even listen.  path: the Unix socket.
    """

    def __init__(self, says: tuple[Any, ...], path: str, tls: ssl.SSLContext) -> None:
        self.says = says
        self.tls = tls
        self.listener = socket.socket(socket.AF_UNIX if path else socket.AF_INET)
        self.listener.bind(path or ("127.0.0.1", 0))
        self.host, self.port = (path, 0) if path else self.listener.getsockname()
        self.ending, self.end = socket.socketpair()
        self.thread = threading.Thread(target=self.serve, daemon=True)

    def __enter__(self):
        if self.says:
            self.listener.listen(64)
            self.thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self.end.close()
        if self.says:
            self.thread.join(TIMEOUT)
            assert not self.thread.is_alive()
        self.ending.close()
        self.listener.close()

    def serve(self) -> None:
        while self.ending not in select.select([self.listener, self.ending], [], [])[0]:
            self.sock: Any = self.listener.accept()[0]
            self.sock.settimeout(TIMEOUT)
            if self.port:
                self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with contextlib.suppress(OSError):
                self.converse()
            self.sock.close()

    def converse(self) -> None:
        for number, each in enumerate(self.says):
            if each == TLS:
                self.sock = self.tls.wrap_socket(self.sock, server_side=True)
                continue
            if number and self.says[number - 1] != TLS and not self.sock.recv(1 << 12):
                return
            if each == END:
                self.sock.shutdown(socket.SHUT_WR)
            else:
                self.sock.sendall(each)
        while self.sock.recv(1 << 12):
            pass


# -- ways to fail -----------------------------------------------------------------


class Way(NamedTuple):
    """What the peer says, what the client does, and what that raises, so many times."""

    times: int
    error: type[BaseException]
    says: tuple[Any, ...]
    fail: Callable[..., object]
    unix: bool = False


def connect(make: Callable[..., Any], **details: Any) -> Callable[..., object]:
    return lambda peer, trust: make(peer.host, peer.port, NAME, timeout=TIMEOUT, **details)


def connect_by_tls(peer: Peer, trust: ssl.SSLContext) -> object:
    return fastsmtp.SMTP_SSL(peer.host, peer.port, NAME, timeout=TIMEOUT, context=trust)


def then(call: Callable[[Any, Any], object]) -> Callable[..., object]:
    """Connect, and make a call that closes."""
    return lambda peer, trust: call(connect(fastsmtp.SMTP)(peer, trust), trust)


def then_close(call: Callable[[Any, Any], object]) -> Callable[..., object]:
    """Connect, and make a call that is refused; the connection is the program's to close."""

    def work(peer: Peer, trust: ssl.SSLContext) -> None:
        client = connect(fastsmtp.SMTP)(peer, trust)
        try:
            call(client, trust)
        finally:
            client.close()

    return work


def mailer(**details: Any) -> Callable[..., object]:
    """Send one message by a Mailer, which raises why it cannot."""

    def work(peer: Peer, trust: ssl.SSLContext) -> None:
        details.setdefault("connect_attempts", 1)
        options = {"local_hostname": NAME, "context": trust, "timeouts": TIMEOUT, **details}
        with fastsmtp.Mailer(peer.host, peer.port, **options) as mailer:
            letter = fastsmtp.Message("a@example.org", ["b@example.org"], b"x")
            list(mailer.send_many([letter]))

    return work


def starttls(client: Any, trust: ssl.SSLContext) -> object:
    return client.starttls(context=trust)


def starttls_with_no_trust(client: Any, trust: ssl.SSLContext) -> object:
    return client.starttls(context=NO_TRUST)


def login(client: Any, trust: ssl.SSLContext) -> object:
    return client.login("user", "secret")


def bad_context(peer: Peer, trust: ssl.SSLContext) -> object:
    return fastsmtp.SMTP_SSL(peer.host, peer.port, context=trust, keyfile="k")


def bad_port(peer: Peer, trust: ssl.SSLContext) -> object:
    return fastsmtp.SMTP(f"{peer.host}:smtp", 0, NAME)


def bad_timeout(make: Callable[..., Any]) -> Callable[..., object]:
    return lambda peer, trust: make(peer.host, peer.port, NAME, timeout=0)


SMTP, SMTP_SSL, LMTP = fastsmtp.SMTP, fastsmtp.SMTP_SSL, fastsmtp.LMTP
GONE, REFUSED = smtplib.SMTPServerDisconnected, ConnectionRefusedError
NOWHERE = ("192.0.2.1", 0)  # an address that is not ours (RFC 5737)
SECRETS = {"username": "user", "password": "secret"}
TO_TLS = (HELLO, OFFER, READY)

WAYS = {
    "SMTP: port refused": Way(1500, REFUSED, (), connect(SMTP)),
    "SMTP: no source address": Way(
        500, OSError, (HELLO,), connect(SMTP, source_address=NOWHERE)
    ),
    "SMTP: not a port": Way(500, OSError, (HELLO,), bad_port),
    "SMTP: no timeout": Way(500, ValueError, (HELLO,), bad_timeout(SMTP)),
    "SMTP: hung up": Way(1000, GONE, (END,), connect(SMTP)),
    "SMTP: refused": Way(1000, smtplib.SMTPConnectError, (NO,), connect(SMTP)),
    "SMTP: EHLO, HELO refused": Way(
        500, smtplib.SMTPHeloError, (HELLO, NO, NO),
        then_close(lambda client, trust: client.ehlo_or_helo_if_needed()),
    ),
    "SMTP: hung up at EHLO": Way(
        500, GONE, (HELLO, END), then(lambda client, trust: client.ehlo_or_helo_if_needed())
    ),
    "SMTP: 421 to EHLO": Way(
        300, smtplib.SMTPHeloError, (HELLO, b"421 bye\r\n"),
        then(lambda client, trust: client.ehlo_or_helo_if_needed()),
    ),
    "SMTP: STARTTLS refused": Way(
        300, smtplib.SMTPResponseException, (HELLO, OFFER, NO), then_close(starttls)
    ),
    "SMTP: more than STARTTLS": Way(
        300, fastsmtp.SMTPProtocolError, (HELLO, OFFER, READY + NO), then(starttls)
    ),
    "SMTP: STARTTLS, no TLS": Way(300, OSError, (*TO_TLS, NO_TLS), then(starttls)),
    "SMTP: STARTTLS, hung up": Way(300, OSError, (*TO_TLS, END), then(starttls)),
    "SMTP: STARTTLS, no trust": Way(
        50, ssl.SSLCertVerificationError, (*TO_TLS, TLS), then(starttls_with_no_trust)
    ),
    "SMTP: AUTH refused": Way(
        300, smtplib.SMTPAuthenticationError, (HELLO, OFFER, b"535 no\r\n"), then_close(login)
    ),
    "SMTP: hung up at AUTH": Way(300, GONE, (HELLO, OFFER, END), then(login)),
    "SMTP_SSL: port refused": Way(500, REFUSED, (), connect_by_tls),
    "SMTP_SSL: no TLS": Way(300, OSError, (NO_TLS,), connect_by_tls),
    "SMTP_SSL: hung up": Way(300, OSError, (END,), connect_by_tls),
    "SMTP_SSL: no trust": Way(
        50, ssl.SSLCertVerificationError, (TLS,),
        connect(SMTP_SSL, context=NO_TRUST),
    ),
    "SMTP_SSL: refused": Way(50, smtplib.SMTPConnectError, (TLS, NO), connect_by_tls),
    "SMTP_SSL: bad arguments": Way(200, ValueError, (HELLO,), bad_context),
    "LMTP: nothing there": Way(
        500, FileNotFoundError, (), lambda peer, trust: LMTP(f"{peer.host}-not", 0, NAME), unix=True
    ),
    "LMTP: too long": Way(
        200, OSError, (), lambda peer, trust: LMTP(peer.host + "x" * 200, 0, NAME), unix=True
    ),
    "LMTP: no listener": Way(500, REFUSED, (), connect(LMTP), unix=True),
    "LMTP: hung up": Way(500, GONE, (END,), connect(LMTP), unix=True),
    "LMTP: refused": Way(500, smtplib.SMTPConnectError, (NO,), connect(LMTP), unix=True),
    "LMTP: no timeout": Way(200, ValueError, (), bad_timeout(LMTP), unix=True),
    "Mailer: port refused": Way(300, REFUSED, (), mailer()),
    "Mailer: three attempts": Way(10, REFUSED, (), mailer(connect_attempts=3)),
    "Mailer: hung up": Way(200, GONE, (END,), mailer()),
    "Mailer: refused": Way(200, smtplib.SMTPConnectError, (NO,), mailer()),
    "Mailer: EHLO, HELO refused": Way(200, smtplib.SMTPHeloError, (HELLO, NO, NO), mailer()),
    "Mailer: STARTTLS refused": Way(
        200, smtplib.SMTPException, (HELLO, OFFER, NO), mailer(tls="starttls")
    ),
    "Mailer: STARTTLS, no TLS": Way(100, OSError, (*TO_TLS, NO_TLS), mailer(tls="starttls")),
    "Mailer: STARTTLS, hung up": Way(100, OSError, (*TO_TLS, END), mailer(tls="starttls")),
    "Mailer: no trust": Way(
        50, ssl.SSLCertVerificationError, (TLS,),
        mailer(tls="implicit", context=NO_TRUST),
    ),
    "Mailer: AUTH refused": Way(
        200, smtplib.SMTPAuthenticationError, (HELLO, OFFER, b"535 no\r\n"),
        mailer(cleartext_auth=True, **SECRETS),
    ),
    "Mailer: AUTH in clear": Way(
        200, smtplib.SMTPException, (HELLO, b"250-peer.example\r\n250 AUTH PLAIN\r\n"),
        mailer(tls="none", **SECRETS),
    ),
    "Mailer: no listener": Way(200, REFUSED, (), mailer(protocol="lmtp"), unix=True),
    "Mailer: LHLO refused": Way(
        200, smtplib.SMTPHeloError, (HELLO, NO), mailer(protocol="lmtp"), unix=True
    ),
    "Mailer: bad arguments": Way(200, ValueError, (), mailer(connections=0)),
}  # fmt: skip


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    monkeypatch.setattr(pool, "_TICK", 0.002)
    monkeypatch.setattr(pool, "_FIRST_PAUSE", 0.002)


def test_there_are_ten_thousand():
    assert sum(way.times for way in WAYS.values()) >= 10_000


@pytest.mark.parametrize("way", WAYS.values(), ids=list(WAYS))
def test_no_descriptor_is_left_open(way, certificate, tmp_path):
    trust = client_tls(certificate)
    before = count()
    path = str(tmp_path / "s") if way.unix else ""
    gc.disable()
    try:
        with Peer(way.says, path, server_tls(certificate)) as peer:
            for _ in range(way.times):
                with pytest.raises(way.error):
                    way.fail(peer, trust)
        assert count() == before
    finally:
        gc.enable()
