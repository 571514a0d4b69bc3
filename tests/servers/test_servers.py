"""Real servers: what they got of each kind of client is what was sent.

Each test of a feature is a row of docs/servers.md.  Where a server does not have the feature, it
is not called, and the reason is in the page; ABSENT has what each server does not have, so that
nothing goes missing unseen.
"""

from __future__ import annotations

import select
import ssl
import time
from collections.abc import Iterator

import pytest
from choice import LEFT_OUT, SERVERS
from clients import KINDS, TIMEOUT, Bulk, DropIn, connect
from features import COMMON_MECHANISMS, MECHANISMS, absent_from
from post import Post
from relay import relay
from server import IDNA_DOMAIN, IMPATIENCE, PASSWORD, SIZE, USER

import fastsmtp

ANN, BOB = "ann@example.test", "bob@example.test"
SMTP_KINDS = ("SMTP", "SMTP_SSL", "Mailer-DATA", "Mailer-BDAT")
LMTP_KINDS = ("LMTP", "Mailer-LMTP")
PLAIN_KINDS = ("SMTP", "Mailer-DATA", "Mailer-BDAT")
MAILER_KINDS = ("Mailer-DATA", "Mailer-BDAT")
MANY = 500

NO_LMTP = {"lmtp-unix", "lmtp-tcp", "full"}
NO_SMTP = {"plain", "submission", "smtps", "impatient", *MECHANISMS}
#: What servers do not have.
ABSENT = {
    "aiosmtpd": {"PIPELINING", "CHUNKING", *MECHANISMS} - {"PLAIN", "LOGIN"},
    "Dovecot": {*NO_SMTP, "SIZE", "refusal"},
    "Exim": {*NO_LMTP, *MECHANISMS} - {"PLAIN", "LOGIN", "CRAM-MD5"},
    "OpenSMTPD": {*NO_LMTP, "impatient", "PIPELINING", "CHUNKING", "SMTPUTF8", *MECHANISMS}
    - {"PLAIN", "LOGIN"},
    "Postfix": {*NO_LMTP, "SCRAM-SHA-256-PLUS"},
}
#: What old releases do not have either.
ABSENT_FROM_OLD = {
    "Dovecot 2.3.": {"SMTPUTF8"},
    "OpenSMTPD 6.": {"submission", "smtps", "PLAIN", "LOGIN"},
}

every_client = pytest.mark.parametrize("kind", KINDS)
feature = pytest.mark.feature


def clients(*kinds: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("kind", kinds)


if LEFT_OUT:  # with FASTSMTP_SERVERS=all no test is skipped

    @pytest.mark.parametrize("name", LEFT_OUT)
    def test_is_not_run(name: str):
        """Each server that is left out says so in a line of its own."""
        name = SERVERS[name][1]
        pytest.skip(f"{name}: not run; `make test-servers` fetches and runs it")


def test_what_is_absent(post: Post, record_property):
    server = post.server
    absent = absent_from(server, post.offered)
    record_property("absent", [[server.name, server.version], absent])
    release = f"{server.name} {server.version}"
    old = [more for start, more in ABSENT_FROM_OLD.items() if release.startswith(start)]
    assert set(absent) == ABSENT[server.name].union(*old)


def test_the_mechanisms_are_those_that_it_offers(post: Post):
    """So each one that it offers, and that we have, is tried."""
    for purpose, endpoint in post.server.endpoints.items():
        offered = set(post.offered[purpose].get("auth", "").upper().split())
        assert offered == set(endpoint.mechanisms)


# -- messages -------------------------------------------------------------------


def deliver(post: Post, client: DropIn | Bulk, *recipients: str, body: bytes = b"Hi.\r\n"):
    """Send a letter that nobody could refuse, and see it arrive."""
    recipients = recipients or (ANN,)
    letter = post.letter(body)
    result = client.send(letter, recipients)
    assert result.status == "accepted", result
    post.check(letter, recipients)


@feature("one message; by LMTP over a Unix socket and over TCP")
@every_client
def test_one_message(post: Post, kind: str):
    for purpose in KINDS[kind]:
        if purpose in post.server.endpoints:
            with connect(kind, post.server, purpose) as client:
                deliver(post, client)


@feature("by BDAT where there is CHUNKING, else by DATA")
@clients(*MAILER_KINDS)
def test_form(post: Post, kind: str):
    chunking = kind == "Mailer-BDAT" and "chunking" in post.offered["plain"]
    with relay(post.server.endpoints["plain"].address) as between:
        address = between.host, between.port
        with connect(kind, post.server, address=address) as client:
            for _ in range(3):
                deliver(post, client)
        forms = [form for form in (b"\r\nBDAT ", b"\r\nDATA\r\n") if form in between.received]
    assert forms == [b"\r\nBDAT " if chunking else b"\r\nDATA\r\n"]
    assert client.mailer.totals.notes == []


@feature("recipients, some refused: {number:,}")
@every_client
@pytest.mark.parametrize("number", [1, 100, 1000])
def test_recipients(post: Post, kind: str, number: int):
    unknown = [f"unknown{i}@example.test" for i in range(3)]
    busy = [f"busy{i}@example.test" for i in range(3) if "busy" not in post.server.without]
    taken = [f"to{i}@example.test" for i in range(number - len(unknown + busy))] or [ANN]
    middle = len(taken) // 2
    letter, lost = post.letter(), post.letter()
    with connect(kind, post.server) as client:
        refused = client.send(lost, unknown + busy)
        result = client.send(letter, unknown + taken[:middle] + busy + taken[middle:])
    codes = dict.fromkeys(unknown, 5) | dict.fromkeys(busy, 4)
    assert (result.status, {to: code // 100 for to, code in result.refused.items()}) == (
        "partial",
        codes,
    )
    assert refused.status == "deferred" if busy else "rejected"
    assert refused.refused == result.refused
    post.check(letter, taken)


LINE = bytes(range(33, 127)).replace(b".", b"") * 11
LONG = b"".join(b"%06d%s\r\n" % (i, LINE[: 992 - i % 7]) for i in range(10_100))


@feature("a message of 10 MB")
@every_client
def test_long_message(post: Post, kind: str):
    with connect(kind, post.server) as client:
        deliver(post, client, body=LONG)
    assert len(LONG) > 10_000_000


DOTS = (
    b".\r\n",
    b".\r\n.\r\n..\r\n...\r\n",
    b".x\r\n..x\r\nx.\r\n.\r\n\r\n.\r\n",
    b"\r\n.\r\n",
    b"QUIT\r\n.\r\nMAIL FROM:<a@example.org>\r\n.\r\n",
    b"." * 998 + b"\r\n" + b"x" * 998 + b"\r\n",
)


@feature("lines that begin with dots")
@every_client
def test_dots(post: Post, kind: str):
    with connect(kind, post.server) as client:
        for body in DOTS:
            deliver(post, client, body=body)


@feature("a last line without a newline")
@every_client
def test_no_newline(post: Post, kind: str):
    """It gets one (RFC 5321, section 4.1.1.4)."""
    with connect(kind, post.server) as client:
        for body in (b"x", b".", b"\r\n.", b"x\r\n\r\n.."):
            letter = post.letter(body, arrives=body + b"\r\n")
            assert client.send(letter, [ANN]).status == "accepted"
            post.check(letter, [ANN])


EIGHT_BIT = "Grüße, мир, 世界\r\n".encode() * 100 + bytes(range(128, 256)) + b"\r\n"


@feature("8-bit content, UTF-8 and not", "8BITMIME")
@every_client
def test_8bit(post: Post, kind: str):
    with connect(kind, post.server) as client:
        deliver(post, client, body=EIGHT_BIT)


@feature("addresses and header in UTF-8", "SMTPUTF8")
@every_client
def test_smtputf8(post: Post, kind: str):
    letter = post.letter(b"Hello.\r\n", "X-Greeting: Grüße")
    recipients = ["pöstmaster@example.test", f"info@{IDNA_DOMAIN}", ANN]
    with connect(kind, post.server) as client:
        result = client.send(letter, recipients, "jürgen@example.org")
    assert result.status == "accepted", result
    post.check(letter, recipients, "jürgen@example.org")


@feature("an internationalised domain")
@every_client
def test_idna(post: Post, kind: str):
    """Needs no SMTPUTF8: it is written in ASCII."""
    with connect(kind, post.server) as client:
        deliver(post, client, f"info@{IDNA_DOMAIN}")


# -- refusals -------------------------------------------------------------------

# For a server that counts the newlines as one, too.
TOO_LONG = LONG + LONG[: SIZE - len(LONG) + 50_000]


@feature("a message over the server's SIZE", "SIZE")
@every_client
def test_too_large(post: Post, kind: str):
    """The Mailer sends nothing of it; what the drop-in sends, the server refuses."""
    with connect(kind, post.server) as client:
        result = client.send(post.letter(TOO_LONG), [ANN])
        deliver(post, client)
    if isinstance(client, Bulk):
        assert (result.status, type(result.error)) == ("not_sent", fastsmtp.SMTPNotSupportedError)
    else:
        assert result.status == "rejected"


@feature("the same, its size not declared", "SIZE")
@clients("SMTP", "SMTP_SSL", "LMTP")
def test_too_large_undeclared(post: Post, kind: str):
    with connect(kind, post.server) as client:
        del client.smtp.esmtp_features["size"]
        result = client.send(post.letter(TOO_LONG), [ANN])
        assert result.status == "rejected"
    with connect(kind, post.server) as client:
        deliver(post, client)


@feature("refused at the final dot; the connection goes on", "refusal")
@every_client
def test_refused_at_the_end(post: Post, kind: str):
    with connect(kind, post.server) as client:
        for recipients in ([ANN], [ANN, BOB]):
            result = client.send(post.letter(b"Hi.\r\n", "X-Refuse: yes"), recipients)
            assert (result.status, result.code or max(result.refused.values())) == ("rejected", 550)
            deliver(post, client)


@feature("refused at the final dot for one recipient of three", "full")
@clients(*LMTP_KINDS)
def test_over_quota(post: Post, kind: str):
    letter = post.letter()
    with connect(kind, post.server) as client:
        result = client.send(letter, [ANN, "full@example.test", BOB])
        deliver(post, client)
    assert (result.status, list(result.refused)) == ("partial", ["full@example.test"])
    post.check(letter, [ANN, BOB])


# -- TLS and AUTH -----------------------------------------------------------------

SECURE = (
    ("SMTP", "submission"),
    ("SMTP_SSL", "smtps"),
    *((kind, purpose) for kind in MAILER_KINDS for purpose in ("submission", "smtps")),
)
TOKEN_MECHANISMS = ("OAUTHBEARER", "XOAUTH2")
LOGINS = [
    (kind, purpose, mechanism)
    for kind, purpose in zip(SMTP_KINDS, ("submission", "smtps") * 2, strict=True)
    for mechanism in (MECHANISMS if kind in MAILER_KINDS else COMMON_MECHANISMS)
]


@feature("TLS ({purpose}), the certificate verified", "{purpose}")
@pytest.mark.parametrize(("kind", "purpose"), SECURE)
def test_tls(post: Post, kind: str, purpose: str):
    with connect(kind, post.server, purpose) as client:
        deliver(post, client)
    strict = ssl.create_default_context()
    try:
        with connect(kind, post.server, purpose, context=strict) as client:
            error = client.send(post.letter(), [ANN]).error
    except ssl.SSLError as raised:
        error = raised
    assert isinstance(error, ssl.SSLCertVerificationError)


@feature("AUTH {mechanism}", "{purpose}", "{mechanism}")
@pytest.mark.parametrize(("kind", "purpose", "mechanism"), LOGINS)
def test_auth(post: Post, kind: str, purpose: str, mechanism: str):
    secret = post.server.token if mechanism in TOKEN_MECHANISMS else PASSWORD
    with connect(kind, post.server, purpose, **_login(kind, mechanism, secret)) as client:
        deliver(post, client)


@feature("a wrong password", "{purpose}")
@pytest.mark.parametrize(("kind", "purpose"), SECURE)
def test_wrong_password(post: Post, kind: str, purpose: str):
    mechanism = post.server.endpoints[purpose].mechanisms[0]
    try:
        with connect(kind, post.server, purpose, **_login(kind, mechanism, "wrong")) as client:
            error = client.send(post.letter(), [ANN]).error
    except fastsmtp.SMTPAuthenticationError as raised:
        error = raised
    assert isinstance(error, fastsmtp.SMTPAuthenticationError)
    assert error.smtp_code == 535


def _login(kind: str, mechanism: str, secret: str) -> dict[str, object]:
    """Return what makes a client of a kind use one mechanism."""
    if kind in MAILER_KINDS:
        word = "token" if mechanism in TOKEN_MECHANISMS else "password"
        return {"mechanisms": [mechanism], "password": None, word: secret}

    def login(smtp: fastsmtp.SMTP) -> None:
        smtp.user, smtp.password = USER, secret
        smtp.auth(mechanism, getattr(smtp, f"auth_{mechanism.lower().replace('-', '_')}"))

    return {"login": login}


# -- connections -------------------------------------------------------------------


@feature(f"{MANY} messages over one connection")
@every_client
def test_many_messages(post: Post, kind: str):
    letters = [(post.letter(b"%d\r\n" % i), [ANN]) for i in range(MANY)]
    with connect(kind, post.server) as client:
        results = client.send_many(letters)
        if isinstance(client, Bulk):
            assert client.mailer.totals.connections == 1
    assert [result for result in results if result.status != "accepted"] == []
    for letter, recipients in letters:
        post.check(letter, recipients)


@pytest.fixture(scope="module")
def idle(the_post: Post) -> Iterator[dict[str, DropIn | Bulk]]:
    """Clients of each kind whose connection the server has closed, for it was idle."""
    idlers: dict[str, DropIn | Bulk] = {}
    if "impatient" in the_post.server.endpoints:
        for kind in reversed(PLAIN_KINDS):
            idlers[kind] = connect(kind, the_post.server, "impatient")
            deliver(the_post, idlers[kind])
        # It was the last to say something, so the others have been closed before.
        assert select.select([idlers["SMTP"].smtp.sock], [], [], TIMEOUT)[0]
        time.sleep(IMPATIENCE / 2)
    yield idlers
    for client in idlers.values():
        client.close() if isinstance(client, Bulk) else client.smtp.close()


@feature("closed by the server, for it was idle; sent again", "impatient")
@clients(*PLAIN_KINDS)
def test_idle(post: Post, kind: str, idle: dict[str, DropIn | Bulk]):
    """The drop-in says so before it writes anything; the Mailer connects anew by itself."""
    client = idle[kind]
    if isinstance(client, Bulk):
        deliver(post, client)
        assert client.mailer.totals.connections == 2
        return
    letter = post.letter()
    with pytest.raises(fastsmtp.SMTPServerDisconnected):
        client.send(letter, [ANN])
    client.smtp.connect(*post.server.endpoints["impatient"].address)
    assert client.send(letter, [ANN]).status == "accepted"
    post.check(letter, [ANN])
