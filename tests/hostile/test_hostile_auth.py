"""Servers that are hostile in the middle of an AUTH exchange (RFC 4954).

Whatever they say, the login ends, by the documented exception; the connection is then in step or
closed; a peer that has not proven itself gets no password; and no secret is shown, be it echoed
or not.  test_auth.py and test_operations.py have the rules without a socket, test_client.py what
is shown of echoes that are well-behaved.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import logging
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from peers import RECIPIENT, SECRET, SENDER, USER, bounded, flood, told, untold
from support import TIMEOUT, Connection, ModelServer, Reply, client_tls, close, server_tls

import fastsmtp
from fastsmtp import Mailer, Message, SMTPException, pool

BODY = b"Subject: m1\r\n\r\nm1\r\n"
BY_PASSWORD = ("CRAM-MD5", "PLAIN", "LOGIN")
BY_TOKEN = ("OAUTHBEARER", "XOAUTH2")
DROP_IN = (*BY_PASSWORD, "XOAUTH2")
SCRAM = "SCRAM-SHA-256"
PLUS = "SCRAM-SHA-256-PLUS"
#: Each way in, and each mechanism that it has without TLS.
WAYS = [
    *(("SMTP", mechanism) for mechanism in DROP_IN),
    *(("Mailer", mechanism) for mechanism in (*BY_PASSWORD, *BY_TOKEN, SCRAM)),
]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    """Connect again soon after a failure."""
    monkeypatch.setattr(pool, "_FIRST_PAUSE", 0.02)


@pytest.fixture(params=WAYS, ids=" ".join)
def way(request):
    return request.param


def in_base64(data: bytes) -> bytes:
    return base64.b64encode(data)


def challenge(data: bytes) -> bytes:
    return b"334 " + in_base64(data) + b"\r\n"


# -- two ways to log in -----------------------------------------------------------


class Attempt:
    """A login at a server, what came of it, and all that was shown meanwhile."""

    def __init__(self, kind: str, peer: ModelServer, level: int = 2, **keywords: Any) -> None:
        self.error: BaseException | None = None
        #: What the next command came to; None if there is no connection for one.
        self.after: Any = None
        shown, logger = io.StringIO(), logging.getLogger("fastsmtp")
        handler, before = logging.StreamHandler(shown), logger.level
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
        try:
            with contextlib.redirect_stderr(shown), contextlib.redirect_stdout(shown):
                (self._mailer if kind == "Mailer" else self._drop_in)(peer, level, **keywords)
        finally:
            logger.removeHandler(handler)
            logger.setLevel(before)
        self.shown += shown.getvalue()

    def _drop_in(self, peer: ModelServer, level: int, timeout: float = TIMEOUT) -> None:
        client = fastsmtp.SMTP(timeout=timeout, local_hostname="client.example")
        client.set_debuglevel(level)
        client.connect(peer.host, peer.port)
        try:
            client.login(USER, SECRET)
        except (SMTPException, OSError) as error:
            self.error = error
        if client.sock is not None:
            try:
                self.after = client.noop()
            except (SMTPException, OSError) as error:
                self.after = error
                assert client.sock is None
        self.shown = repr(client) + told_of(self.error) + told_of(self.after)
        client.close()

    def _mailer(self, peer: ModelServer, level: int, timeout: float = TIMEOUT, **more: Any) -> None:
        offered = peer.extensions[1].split()
        by_token = "PLAIN" not in offered and not {*BY_TOKEN}.isdisjoint(offered)
        keywords = {
            "username": USER,
            "token" if by_token else "password": SECRET,
            "tls": "none",
            "cleartext_auth": True,
            "connect_attempts": 1,
            "local_hostname": "client.example",
            "timeouts": timeout,
            **more,
        }
        with Mailer(peer.host, peer.port, **keywords) as mailer:
            delivery = mailer.send(Message(SENDER, RECIPIENT, BODY))
        self.error = delivery.error
        self.after = delivery
        self.shown = repr([mailer, mailer.totals, delivery, mailer.totals.notes])
        self.shown += str(mailer.totals.replies) + told_of(self.error)

    @property
    def is_in_step(self) -> bool:
        return isinstance(self.after, tuple) and self.after[:2] == (250, b"noop 1")


def told_of(result: Any) -> str:
    return told(result) if isinstance(result, BaseException) else ""


def peer_for(mechanism: str, play: Reply, **keywords: Any) -> ModelServer:
    keywords = {"replies": {"AUTH": play}, "users": {USER: SECRET}, **keywords}
    return ModelServer(["PIPELINING", f"AUTH {mechanism}"], **keywords)


def after_answers(mechanism: str, *replies: Reply) -> Callable[[Connection], None]:
    """Let the client answer all that its mechanism has to say, then play what is hostile."""
    challenges = {"CRAM-MD5": 1, "LOGIN": 1, SCRAM: 0}

    def play(connection: Connection) -> None:
        for _ in range(challenges.get(mechanism, 0)):
            connection.send(challenge(b"<1.2@model.example>"))
            connection.line()
        for each in replies:
            connection.play(each)

    return play


def check_nothing_is_told(attempt: Attempt, peer: ModelServer) -> None:
    """Hold that neither the secret nor an answer that carries it is in what was shown."""
    untold(SECRET, attempt.shown)
    # The words that are AUTH's, or the answer to a challenge; those of SCRAM are no secret.
    answers = re.findall(rb"(?m)^(?:AUTH \S+ )?([\w+/]{16,}=*)\r$", peer.received)
    for each in answers if b"SCRAM" not in peer.received else []:
        assert each.decode().rstrip("=") not in attempt.shown


# -- challenges that are none -------------------------------------------------------

JSON = json.dumps({"status": "401", "schemes": "bearer", "scope": "https://mail.example/"}).encode()


def endless(connection: Connection) -> None:
    while True:
        connection.send(b"334 eA==\r\n")
        connection.line()


def echo(*lines: bytes) -> Callable[[Connection], None]:
    """Send lines with the client's last words in them, and what they decode to."""

    def play(connection: Connection) -> None:
        said = connection.received.split()[-1]
        with contextlib.suppress(ValueError):
            decoded = base64.b64decode(said).translate(None, b"\0\r\n")
            for line in lines:
                connection.send(line.replace(b"SAID", said).replace(b"DECODED", decoded))

    return play


class Row(NamedTuple):
    """What a server does after the exchange was begun, and what that comes to."""

    #: The exception and its code; none is a login that went well.
    outcome: str
    replies: tuple[Reply, ...]
    #: Whether the drop-in's connection is in step after it; if not, it is closed.
    stays: bool = False
    #: The outcome for the Mailer, if it is another.
    mailer: str = ""


NO = b"535 5.7.8 no\r\n"
REFUSED, CANCELLED = "SMTPAuthenticationError 535", "SMTPAuthenticationError 501"
TOO_LONG, LOST = "SMTPResponseException 500", "SMTPServerDisconnected"
OUT_OF_STEP = "SMTPProtocolError"
CANCEL = (Connection.line, b"501 5.5.2 cancelled\r\n")
ROWS = {
    "challenges without end": Row("SMTPException", (endless,)),
    "no base64": Row(CANCELLED, (b"334 !not base64!\r\n", *CANCEL), stays=True),
    "base64 cut off": Row(CANCELLED, (b"334 eA=\r\n", *CANCEL), stays=True),
    "JSON, not in base64": Row(CANCELLED, (b"334 " + JSON + b"\r\n", *CANCEL), stays=True),
    "octets that are no text": Row(REFUSED, (b"334 \0\xff\0\r\n", Connection.line, NO), stays=True),
    "a challenge of NULs": Row(REFUSED, (challenge(b"\0" * 64), Connection.line, NO), stays=True),
    "a challenge of 6 KB": Row(REFUSED, (challenge(b"x" * 6000), Connection.line, NO), stays=True),
    "1 MB in a line": Row(TOO_LONG, (b"334 " + b"eHh4" * (1 << 18) + b"\r\n",)),
    "1 MB in lines": Row(TOO_LONG, (b"334-%b\r\n" % (b"eHh4" * 2000) * 132, b"334 \r\n")),
    "a challenge after the end": Row(REFUSED, (NO + challenge(b"and?"),)),
    "success and a challenge": Row("", (b"235 ok\r\n" + challenge(b"and?"),), mailer=OUT_OF_STEP),
    "success twice": Row("", (b"235 ok\r\n235 ok\r\n",), mailer=OUT_OF_STEP),
    "success, then refusal": Row("", (b"235 ok\r\n" + NO,), mailer=OUT_OF_STEP),
    "the end": Row(LOST, (close,)),
    "the end in a challenge": Row(LOST, (b"334 eHh4", close)),
    "421": Row("SMTPAuthenticationError 421", (b"421 4.3.2 later\r\n", close)),
    "no reply": Row("SMTPAuthenticationError -1", (b"ho!\r\n",), stays=True, mailer=OUT_OF_STEP),
    "354": Row("SMTPAuthenticationError 354", (b"354 go ahead\r\n",), stays=True),
    "250": Row("SMTPAuthenticationError 250", (b"250 ok\r\n",), stays=True),
    "echo": Row(REFUSED, (echo(b"535-5.7.8 SAID\r\n", b"535 5.7.8 DECODED\r\n"),), stays=True),
    "echo and the end": Row(LOST, (echo(b"535-5.7.8 SAID DECODED\r\n"), close)),
    "echo in a challenge": Row(REFUSED, (echo(b"334 SAID\r\n"), Connection.line, NO), stays=True),
    "echo in a reply too many": Row(
        "", (echo(b"235 ok\r\n250 SAID DECODED\r\n"),), mailer=OUT_OF_STEP
    ),
}  # fmt: skip
#: SCRAM has a proof to see: without it there is no success, and what is cancelled is a refusal.
WITHOUT_PROOF = {
    name: REFUSED
    for name, row in ROWS.items()
    if row.outcome in ("", CANCELLED) or name == "challenges without end"
}
#: LOGIN has two answers; a third challenge is cancelled, and that reply is one more.
LOGIN_WITHOUT_END = "SMTPAuthenticationError 334"


def described(error: Any) -> str:
    if error is None:
        return ""
    return f"{type(error).__name__} {getattr(error, 'smtp_code', '')}".rstrip()


@pytest.mark.parametrize("how", ROWS)
def test_a_login_ends(way, how):
    kind, mechanism = way
    row = ROWS[how]
    with peer_for(mechanism, after_answers(mechanism, *row.replies)) as peer:
        attempt = Attempt(kind, peer)
    expected = (row.mailer if kind == "Mailer" else "") or row.outcome
    if mechanism == SCRAM:
        expected = WITHOUT_PROOF.get(how, expected)
    if way == ("Mailer", "LOGIN") and how == "challenges without end":
        expected = LOGIN_WITHOUT_END
    assert described(attempt.error) == expected
    assert peer.received.count(b"\r\n") < 20  # it ends
    if kind == "Mailer":
        assert attempt.after.status == "not_sent"
        assert b"MAIL" not in peer.received or expected == OUT_OF_STEP
    else:
        assert attempt.is_in_step == row.stays
    if row.outcome == CANCELLED:
        assert b"\r\n*\r\n" in peer.received
    check_nothing_is_told(attempt, peer)


@pytest.mark.parametrize("how", [how for how in ROWS if "echo" in how])
@pytest.mark.parametrize("mechanism", DROP_IN)
def test_debug_output_without_the_time_of_day(mechanism, how):
    with peer_for(mechanism, after_answers(mechanism, *ROWS[how].replies)) as peer:
        attempt = Attempt("SMTP", peer, level=1)
    assert "AUTH" in attempt.shown
    check_nothing_is_told(attempt, peer)


def test_an_echo_after_the_login():
    """Who has the password can repeat it at any time."""
    replies = {"AUTH": b"235 ok\r\n", "NOOP": b"250 noop 1 " + SECRET.encode() + b"\r\n"}
    with ModelServer(["AUTH PLAIN"], replies=replies) as peer:
        attempt = Attempt("SMTP", peer)
    check_nothing_is_told(attempt, peer)


@pytest.mark.parametrize("kind", ["SMTP", "Mailer"])
def test_a_challenge_of_60_megabytes(kind):
    play = flood(b"334-" + b"eHh4" * 250 + b"\r\n", 60_000_000)
    with peer_for("PLAIN", play) as peer, bounded(16 << 20):
        attempt = Attempt(kind, peer)
    assert described(attempt.error) == TOO_LONG


# -- an error about a token ---------------------------------------------------------

TOKEN_ROWS = {
    "Google's": JSON,
    "the token in it": b'{"status":"400","token":"%b"}' % SECRET.encode(),
    "newlines in it": b'{"status":\r\n"400"}\r\nRSET\r\n',
    "6 KB": b'{"status":"400","scope":"%b"}' % (b"x" * 6000),
}


@pytest.mark.parametrize("told_by", TOKEN_ROWS)
@pytest.mark.parametrize(
    ("kind", "mechanism", "acknowledgement"),
    [("SMTP", "XOAUTH2", b""), ("Mailer", "XOAUTH2", b""), ("Mailer", "OAUTHBEARER", b"AQ==")],
)
def test_an_error_about_a_token(kind, mechanism, acknowledgement, told_by):
    """It comes as a challenge; the refusal that counts comes after it is acknowledged."""
    answers = []

    def play(connection: Connection) -> None:
        connection.send(challenge(TOKEN_ROWS[told_by]))
        answers.append(connection.line())
        connection.send(b"535 5.7.8 Username and password not accepted\r\n")

    with peer_for(mechanism, play) as peer:
        attempt = Attempt(kind, peer)
    assert described(attempt.error) == REFUSED
    assert answers == [acknowledgement + b"\r\n"]
    assert attempt.error.smtp_error.startswith(b"5.7.8 Username and password not accepted\n{")
    assert b'"status":' in attempt.error.smtp_error
    assert attempt.is_in_step == (kind == "SMTP")
    check_nothing_is_told(attempt, peer)


# -- mechanisms that are offered and then refused -----------------------------------

EVERY = f"{SCRAM} CRAM-MD5 PLAIN LOGIN XOAUTH2"
TRIED = {"SMTP": DROP_IN, "Mailer": (SCRAM, "CRAM-MD5", "PLAIN", "LOGIN")}


def tried(peer: ModelServer) -> tuple[str, ...]:
    return tuple(line.split()[1] for line in peer.commands if line.startswith("AUTH"))


@pytest.mark.parametrize(
    ("reply", "ends"),
    [
        (b"504 5.5.4 Unrecognized authentication type\r\n", False),
        (b"534 5.7.9 Mechanism is too weak\r\n", False),
        (b"454 4.7.0 Temporary failure\r\n", False),
        (NO, True),
    ],
    ids=["504", "534", "454", "535"],
)
@pytest.mark.parametrize("kind", TRIED)
def test_an_offer_that_is_not_meant(kind, reply, ends):
    """The next mechanism is tried, but after 535: that is about the credentials."""
    with peer_for(EVERY, reply) as peer:
        attempt = Attempt(kind, peer)
    code = int(reply[:3])
    assert described(attempt.error) == f"SMTPAuthenticationError {code}"
    assert tried(peer) == (TRIED[kind][:1] if ends else TRIED[kind])
    assert attempt.is_in_step == (kind == "SMTP")
    check_nothing_is_told(attempt, peer)


@pytest.mark.parametrize("kind", TRIED)
def test_the_last_of_the_offers_is_meant(kind):
    replies = {("AUTH", number): b"504 5.5.4 no\r\n" for number in (1, 2)}
    with peer_for("CRAM-MD5 PLAIN LOGIN", (), replies=replies) as peer:
        attempt = Attempt(kind, peer)
    assert attempt.error is None
    assert tried(peer) == BY_PASSWORD
    assert peer.logins == [USER]


def test_success_before_the_answer(way):
    """What was asked for is done, and nothing more is told; but SCRAM has not seen the proof."""
    kind, mechanism = way
    offered = f"{mechanism} LOGIN" if mechanism == SCRAM else mechanism
    with peer_for(offered, b"235 2.7.0 welcome\r\n") as peer:
        attempt = Attempt(kind, peer)
    assert described(attempt.error) == (REFUSED if mechanism == SCRAM else "")
    assert tried(peer) == (mechanism,)
    if mechanism in ("CRAM-MD5", "LOGIN", SCRAM):
        untold(SECRET, peer.received.decode())
    check_nothing_is_told(attempt, peer)


# -- SCRAM: the server has to prove itself --------------------------------------------

SALT = base64.b64encode(b"sixteen octets..").decode()


def first(nonce: str = "{}server", salt: str = SALT, i: object = 4096, more: str = "") -> str:
    """Return a server-first-message (RFC 5802, section 7); {} is the client's nonce."""
    return f"r={nonce},s={salt},i={i}{more}"


WRONG = "v=" + base64.b64encode(b"x" * 32).decode()
#: The messages of a server that has not the password, or wants it cheap; 235 follows.
SCRAM_ROWS: dict[str, tuple[str, ...]] = {
    "nothing": (),
    "another's nonce": (first("server"),),
    "the client's nonce alone": (first("{}"),),
    "the client's nonce within": (first("x{}server"),),
    "1 iteration": (first(i=1),),
    "4095 iterations": (first(i=4095),),
    "2**31 iterations": (first(i=2**31),),
    "10**18 iterations": (first(i=10**18),),
    "10**4000 iterations": (first(i="1" + "0" * 4000),),
    "-1 iterations": (first(i=-1),),
    "no salt": (first(salt=""),),
    "an extension that must be known": ("m=x," + first(),),
    "no signature": (first(),),
    "a wrong signature": (first(), WRONG),
    "a short signature": (first(), "v=" + WRONG[2:6]),
    "an empty signature": (first(), "v="),
    "an error, and success": (first(), "e=invalid-proof"),
    "the first message again": (first(), first()),
}
#: Before these the client has hashed nothing.
UNHASHED = [name for name, messages in SCRAM_ROWS.items() if len(messages) < 2]
UNHASHED.remove("no signature")


@pytest.mark.parametrize("how", SCRAM_ROWS)
@pytest.mark.parametrize("mechanism", [SCRAM, PLUS])
def test_a_server_that_proves_nothing(mechanism, how, certificate, monkeypatch):
    """It is refused, whatever it says, and gets the password by no other mechanism."""

    def play(connection: Connection) -> None:
        initial = base64.b64decode(connection.received.split()[-1]).decode()
        nonce = initial.partition(",r=")[2]
        for message in SCRAM_ROWS[how]:
            connection.send(challenge(message.format(nonce).encode()))
            if connection.line() == b"*\r\n":
                break
        connection.send(b"235 2.7.0 welcome\r\n")

    if how in UNHASHED:
        monkeypatch.setattr(hashlib, "pbkdf2_hmac", None)
    secure = mechanism == PLUS
    keywords = {"tls": server_tls(certificate), "implicit_tls": True} if secure else {}
    client: dict[str, Any] = {}
    if secure:  # by the type of binding that every Python has, and that is to be asked for
        client = {"tls": "implicit", "context": client_tls(certificate)}
        client["mechanisms"] = (PLUS, SCRAM, "PLAIN", "LOGIN", "CRAM-MD5")
    with peer_for(f"{mechanism} PLAIN LOGIN CRAM-MD5", play, **keywords) as peer:
        attempt = Attempt("Mailer", peer, **client)
    assert described(attempt.error) == REFUSED
    assert b"RFC" in attempt.error.smtp_error
    assert tried(peer) == (mechanism,)
    assert b"MAIL" not in peer.received
    untold(SECRET, attempt.shown, peer.received.decode())
