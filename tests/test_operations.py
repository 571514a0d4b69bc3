"""Operations by scripted replies: what is written, what each reply means, what is left owed."""

from __future__ import annotations

import base64
import itertools
from collections import deque
from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastsmtp import auth
from fastsmtp.envelope import Envelope, Verbs
from fastsmtp.errors import (
    SMTPAuthenticationError,
    SMTPConnectError,
    SMTPException,
    SMTPHeloError,
    SMTPServerDisconnected,
)
from fastsmtp.operations import (
    NEED_REPLY,
    START_TLS,
    Replies,
    Send,
    authenticate,
    greet,
    hello,
    login,
    quit_session,
    send,
    starttls,
)
from fastsmtp.reply import Reply, without_secrets

GONE = SMTPServerDisconnected("Connection unexpectedly closed")


def reply(text: str) -> Reply:
    """Return "250 ok" as a reply."""
    code, _, rest = text.partition(" ")
    return Reply(int(code), rest.encode())


def drive(operation, answer, owed=0):
    """Run an operation against answer(Send), which returns the replies that are to come.

    A reply that is an exception is thrown.  Returns what came of it: `result`
    or `error`, `sent` (what was written, each write by itself), `verbs`,
    `owed` (replies promised and not read) and `tls`.
    """
    replies = deque(answer(None) if owed else ())
    played = SimpleNamespace(result=None, error=None, sent=[], verbs=[], owed=owed, tls=0)
    step, argument = operation.send, None

    def take(most):
        # As few at a time as there may be: it must not matter.
        assert played.owed == most
        played.owed -= 1
        reply = replies.popleft()
        return (
            (reply, operation.throw) if isinstance(reply, Exception) else ([reply], operation.send)
        )

    try:
        while True:
            effect = step(argument)
            step, argument = operation.send, None
            if isinstance(effect, Send):
                played.sent.append(b"".join(effect.buffers))
                played.verbs.append(effect.verb)
                played.owed += effect.replies
                replies.extend(answer(effect))
                if effect.most:
                    argument, step = take(effect.most)
            elif effect is START_TLS:
                assert played.owed == 0
                played.tls += 1
            elif isinstance(effect, Replies):
                argument, step = take(effect.most)
            else:
                assert effect is NEED_REPLY
                assert played.owed > 0, "waits for a reply that nobody owes"
                played.owed -= 1
                argument = replies.popleft()
                if isinstance(argument, Exception):
                    step = operation.throw
    except StopIteration as end:
        played.result = end.value
    except SMTPException as error:
        played.error = error
    return played


def play(operation, *script, owed=0):
    """Drive an operation by a list of replies, all of which it is to read."""
    replies = deque(reply(each) if isinstance(each, str) else each for each in script)

    def answer(effect):
        return [replies.popleft() for _ in range(effect.replies if effect else owed) if replies]

    played = drive(operation, answer, owed)
    assert not replies
    return played


# -- the session --------------------------------------------------------------


def test_effects_say_what_they_are():
    assert (repr(NEED_REPLY), repr(START_TLS)) == ("NEED_REPLY", "START_TLS")


def test_greet():
    played = play(greet("me.example"), "220 hi", "250 host\nSIZE 1\nPIPELINING", owed=1)
    assert played.result == {"size": "1", "pipelining": ""}
    assert (played.sent, played.verbs) == ([b"EHLO me.example\r\n"], ["EHLO"])


@pytest.mark.parametrize("greeting", ["554 no", "421 bye", "250 ok", "-1 SSH-2.0"])
def test_another_greeting(greeting):
    played = play(greet("me.example"), greeting, owed=1)
    assert type(played.error) is SMTPConnectError
    assert played.error.args == reply(greeting)
    assert played.sent == []


HELLO = [
    # verb, replies, what is said, result or error
    ("EHLO", ["250 host"], ["EHLO"], {}),
    ("LHLO", ["250 host\n8BITMIME"], ["LHLO"], {"8bitmime": ""}),
    ("EHLO", ["502 what?", "250 host\nSIZE"], ["EHLO", "HELO"], None),
    ("EHLO", ["502 what?", "550 no"], ["EHLO", "HELO"], (550, b"no")),
    ("EHLO", ["421 bye"], ["EHLO"], (421, b"bye")),
    ("EHLO", ["500 what?", "421 bye"], ["EHLO", "HELO"], (421, b"bye")),
    ("LHLO", ["500 what?"], ["LHLO"], (500, b"what?")),
    ("LHLO", ["421 bye"], ["LHLO"], (421, b"bye")),
]


@pytest.mark.parametrize(("verb", "script", "said", "outcome"), HELLO)
def test_hello(verb, script, said, outcome):
    played = play(hello("[127.0.0.1]", verb=verb), *script)
    assert played.sent == [f"{each} [127.0.0.1]\r\n".encode() for each in said]
    assert played.verbs == said
    if isinstance(outcome, tuple):
        assert type(played.error) is SMTPHeloError
        assert played.error.args == outcome
    else:
        assert (played.error, played.result) == (None, outcome)


def test_a_name_that_cannot_be_said_is_not():
    with pytest.raises(ValueError, match="newline"):
        play(hello("me\r\nMAIL FROM:<>"))


@pytest.mark.parametrize(("text", "tls"), [("220 go", 1), ("454 later", 0), ("250 ok", 0)])
def test_starttls(text, tls):
    played = play(starttls(), text)
    assert (played.result, played.tls) == (reply(text), tls)
    assert (played.sent, played.verbs) == ([b"STARTTLS\r\n"], ["STARTTLS"])


def test_quit():
    played = play(quit_session(), "221 bye")
    assert (played.result, played.sent, played.verbs) == ((221, b"bye"), [b"QUIT\r\n"], ["QUIT"])


# -- authentication -----------------------------------------------------------


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def line(*words: str) -> bytes:
    return " ".join(words).encode() + b"\r\n"


PLAIN = line("AUTH", "PLAIN", b64("\0user\0secret"))
XOAUTH2 = b64("user=user\1auth=Bearer secret\1\1")
JSON = '{"status":"400"}'

AUTHENTICATE = [
    # mechanism, initial response?, replies, what is written, result or error
    ("PLAIN", True, ["235 ok"], [PLAIN], (235, b"ok")),
    ("PLAIN", True, ["503 already"], [PLAIN], (503, b"already")),
    ("PLAIN", True, ["535 no"], [PLAIN], SMTPAuthenticationError(535, b"no")),
    ("PLAIN", True, ["421 bye"], [PLAIN], SMTPAuthenticationError(421, b"bye")),
    ("PLAIN", True, ["250 what"], [PLAIN], SMTPAuthenticationError(250, b"what")),
    (
        "PLAIN",
        False,
        ["334 ", "235 ok"],
        [b"AUTH PLAIN\r\n", line(b64("\0user\0secret"))],
        (235, b"ok"),
    ),
    (
        "LOGIN",
        True,
        [f"334 {b64('Password:')}", "235 ok"],
        [line("AUTH", "LOGIN", b64("user")), line(b64("secret"))],
        (235, b"ok"),
    ),
    (
        "LOGIN",
        False,
        [f"334 {b64('Username:')}", f"334 {b64('Password:')}", "235 ok"],
        [b"AUTH LOGIN\r\n", line(b64("user")), line(b64("secret"))],
        (235, b"ok"),
    ),
    (  # a third challenge, and LOGIN has nothing left to say
        "LOGIN",
        True,
        ["334 ", "334 ", "501 cancelled"],
        [line("AUTH", "LOGIN", b64("user")), line(b64("secret")), b"*\r\n"],
        SMTPAuthenticationError(501, b"cancelled\nAUTH was cancelled"),
    ),
    (  # a challenge that is not base64: RFC 4954, section 4
        "PLAIN",
        False,
        ["334 a", "501 cancelled"],
        [b"AUTH PLAIN\r\n", b"*\r\n"],
        SMTPAuthenticationError(501, b"cancelled\nAUTH was cancelled"),
    ),
    (
        "XOAUTH2",
        True,
        [f"334 {b64(JSON)}", "535 no"],
        [line("AUTH", "XOAUTH2", XOAUTH2), b"\r\n"],
        SMTPAuthenticationError(535, b"no\n" + JSON.encode()),
    ),
    (
        "XOAUTH2",
        False,
        ["334 ", "235 ok"],
        [b"AUTH XOAUTH2\r\n", line(XOAUTH2)],
        (235, b"ok"),
    ),
    (  # only JSON is told
        "LOGIN",
        True,
        [f"334 {b64('Password:')}", "535 no"],
        [line("AUTH", "LOGIN", b64("user")), line(b64("secret"))],
        SMTPAuthenticationError(535, b"no"),
    ),
]


@pytest.mark.parametrize(("mechanism", "initial", "script", "written", "outcome"), AUTHENTICATE)
def test_authenticate(mechanism, initial, script, written, outcome):
    respond = auth.MECHANISMS[mechanism]("user", "secret")
    played = play(authenticate(mechanism, respond, initial_response=initial), *script)
    assert played.sent == written
    assert played.verbs == ["AUTH", *[""] * (len(written) - 1)]
    assert played.owed == 0
    if isinstance(outcome, tuple):
        assert (played.error, played.result) == (None, outcome)
    else:
        assert type(played.error) is type(outcome)
        assert played.error.args == outcome.args


def test_an_empty_initial_response_is_an_equals_sign():
    # RFC 4954, section 4; an empty answer to a challenge is an empty line.
    played = play(authenticate("EXTERNAL", lambda challenge: b""), "334 ", "235 ok")
    assert played.sent == [b"AUTH EXTERNAL =\r\n", b"\r\n"]


def test_a_mechanism_without_initial_response():
    played = play(authenticate("X", lambda challenge: challenge), f"334 {b64('?')}", "235 ok")
    assert played.sent == [b"AUTH X\r\n", b"?\r\n"]


@pytest.mark.parametrize(("initial", "answers"), [(True, 3), (False, 4)])
def test_challenges_without_end(initial, answers):
    operation = authenticate(
        "X", lambda challenge: b"more", initial_response=initial, max_challenges=3
    )
    played = play(operation, *["334 "] * (answers + 1))
    assert type(played.error) is SMTPException
    assert "infinite loop" in str(played.error)
    assert played.verbs == ["AUTH", *[""] * answers]


@pytest.mark.parametrize("options", [{"max_challenges": 3}, {}])
def test_as_many_challenges_as_are_allowed(options):
    allowed = options.get("max_challenges", 5)

    def exchange(challenges):
        operation = authenticate("X", lambda _: b"x", initial_response=False, **options)
        return play(operation, *["334 "] * challenges, "235 ok")

    assert exchange(allowed).result == (235, b"ok")
    assert type(exchange(allowed + 1).error) is SMTPException


def test_an_error_about_a_token_is_acknowledged_and_told():
    respond = auth.oauthbearer("user", "secret")
    played = play(authenticate("OAUTHBEARER", respond), f"334 {b64(JSON)}", "535 no")
    initial = b64("n,a=user,\1auth=Bearer secret\1\1")
    assert played.sent == [line("AUTH", "OAUTHBEARER", initial), b"AQ==\r\n"]
    assert played.error.args == (535, b"no\n" + JSON.encode())


# RFC 7677, section 3
NONCE = "rOprNGfwEbeRWgbNEkqO"
SERVER_NONCE = f"{NONCE}%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
SERVER_FIRST = f"334 {b64(f'r={SERVER_NONCE},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096')}"
SERVER_FINAL = f"334 {b64('v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=')}"
PROOF = "dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
SCRAM = [
    line("AUTH", "SCRAM-SHA-256", b64(f"n,,n=user,r={NONCE}")),
    line(b64(f"c=biws,r={SERVER_NONCE},p={PROOF}")),
]
UNPROVEN = b"the server has not proven that it knows the password (RFC 5802, section 5)\n"
WRONG = b"the server's signature is wrong (RFC 5802, section 5)\n"
MALFORMED = b"the server's message is malformed, or needs an extension (RFC 5802, section 7)\n"

PROVE = [
    # replies, what is written, result or the error's code and text
    ([SERVER_FIRST, SERVER_FINAL, "235 ok"], [*SCRAM, b"\r\n"], Reply(235, b"ok")),
    ([SERVER_FIRST, SERVER_FINAL, "454 no"], [*SCRAM, b"\r\n"], (454, b"no")),
    ([SERVER_FIRST, "535 no"], SCRAM, (535, b"no")),
    (["504 what?"], SCRAM[:1], (504, b"what?")),
    # a success that proves nothing
    ([SERVER_FIRST, "235 ok"], SCRAM, (535, UNPROVEN + b"235 ok")),
    (["235 ok"], SCRAM[:1], (535, UNPROVEN + b"235 ok")),
    (["503 already"], SCRAM[:1], (535, UNPROVEN + b"503 already")),
    # a server that does not know the password, or the protocol
    ([SERVER_FIRST, f"334 {b64('v=AAAA')}", "501 -"], [*SCRAM, b"*\r\n"], (535, WRONG + b"501 -")),
    (
        [SERVER_FIRST, f"334 {b64('v=AAAA')}", "235 ok"],
        [*SCRAM, b"*\r\n"],
        (535, WRONG + b"235 ok"),
    ),
    (["334 ", "501 -"], [SCRAM[0], b"*\r\n"], (535, MALFORMED + b"501 -")),
    (["334 a", "501 -"], [SCRAM[0], b"*\r\n"], (535, UNPROVEN + b"501 -")),
    (
        [SERVER_FIRST, SERVER_FINAL, "334 ", "501 -"],
        [*SCRAM, b"\r\n", b"*\r\n"],
        (501, b"-\nAUTH was cancelled"),
    ),
    # RFC 5802, section 7: server-error
    (
        [SERVER_FIRST, f"334 {b64('e=invalid-proof')}", "535 no"],
        [*SCRAM, b"\r\n"],
        (535, b"no\ne=invalid-proof"),
    ),
    (
        [SERVER_FIRST, f"334 {b64('e=invalid-proof')}", "235 ok"],
        [*SCRAM, b"\r\n"],
        (535, UNPROVEN + b"235 ok"),
    ),
]


@pytest.mark.parametrize(("script", "written", "outcome"), PROVE)
def test_a_server_that_has_to_prove_itself(script, written, outcome):
    respond = auth.scram_sha_256("user", "pencil", nonce=NONCE)
    played = play(authenticate("SCRAM-SHA-256", respond), *script)
    assert (played.sent, played.owed) == (written, 0)
    if isinstance(outcome, Reply):
        assert (played.error, played.result) == (None, outcome)
    else:
        assert type(played.error) is SMTPAuthenticationError
        assert played.error.args == outcome


def test_proof_without_an_initial_response():
    respond = auth.scram_sha_256("user", "pencil", nonce=NONCE)
    operation = authenticate("SCRAM-SHA-256", respond, initial_response=False)
    played = play(operation, "334 ", SERVER_FIRST, SERVER_FINAL, "235 ok")
    assert played.result == (235, b"ok")
    first = SCRAM[0].rpartition(b" ")[2]
    assert played.sent == [b"AUTH SCRAM-SHA-256\r\n", first, SCRAM[1], b"\r\n"]


@pytest.mark.parametrize("script", [["235 ok"], ["334 ", "501 -"]])
def test_a_server_that_has_not_proven_itself_gets_no_password(script):
    mechanisms = auth.candidates("PLAIN SCRAM-SHA-256", user="user", password="pencil")
    assert [name for name, _ in mechanisms] == ["SCRAM-SHA-256", "PLAIN"]
    played = play(login(mechanisms), *script)
    assert played.verbs.count("AUTH") == 1
    assert played.error.smtp_code == 535


LOGIN = [
    # replies to AUTH PLAIN, XOAUTH2 and EXTERNAL, how many are tried, result or error
    (["235 ok"], 1, (235, b"ok")),
    (["504 unknown", "235 ok"], 2, (235, b"ok")),
    (["504 unknown", "534 weak", "235 ok"], 3, (235, b"ok")),
    (["504 unknown", "534 weak", "500 what?"], 3, SMTPAuthenticationError(500, b"what?")),
    (["535 no"], 1, SMTPAuthenticationError(535, b"no")),
    (["504 unknown", "535 no"], 2, SMTPAuthenticationError(535, b"no")),
    (["421 bye"], 1, SMTPAuthenticationError(421, b"bye")),
]


@pytest.mark.parametrize(("script", "tried", "outcome"), LOGIN)
def test_login(script, tried, outcome):
    responders = [auth.plain("user", "secret"), auth.xoauth2("user", "secret"), lambda _: b""]
    names = ["PLAIN", "XOAUTH2", "EXTERNAL"]
    played = play(login(zip(names, responders, strict=True)), *script)
    assert [written.split()[1].decode() for written in played.sent] == names[:tried]
    if isinstance(outcome, tuple):
        assert (played.error, played.result) == (None, outcome)
    else:
        assert (type(played.error), played.error.args) == (type(outcome), outcome.args)


def test_login_without_a_mechanism():
    played = play(login([]))
    assert type(played.error) is SMTPException
    assert "No suitable authentication method" in str(played.error)


def test_login_ends_at_what_is_no_refusal():
    played = play(login([("PLAIN", auth.plain("u", "p")), ("LOGIN", auth.login("u", "p"))]), GONE)
    assert played.error is GONE
    assert len(played.sent) == 1


# -- mail ---------------------------------------------------------------------

PAYLOAD = (b"Subject: x\r\n\r\n..dot\r\n", b".\r\n")
BODY = b"".join(PAYLOAD)
MAIL, RCPTS = b"MAIL FROM:<f@x>\r\n", [b"RCPT TO:<%c@x>\r\n" % each for each in b"abc"]
DATA, DOT, RSET = b"DATA\r\n", b".\r\n", b"RSET\r\n"


def envelope(recipients: int) -> Envelope:
    return Envelope("f@x", ["a@x", "b@x", "c@x"][:recipients])


SEND = [
    # lmtp?, recipients, in steps: replies and what is written after MAIL,
    # in a flight: replies and what is written after the flight,
    # (accepted, delivered, closing, must_close in a flight)
    pytest.param(
        False, 2,
        "250 250 250 354 250", [*RCPTS[:2], DATA, BODY],
        "250 250 250 354 250", [BODY],
        (2, True, False, False), id="accepted",
    ),
    pytest.param(
        False, 3,
        "250 250 550 251 354 250", [*RCPTS, DATA, BODY],
        "250 250 550 251 354 250", [BODY],
        (2, True, False, False), id="one refused",
    ),
    pytest.param(
        False, 2,
        "250 550 450 250", [*RCPTS[:2], RSET],
        "250 550 450 503 250", [RSET],
        (0, False, False, False), id="all refused",
    ),
    pytest.param(
        False, 2,
        "250 550 450 250", [*RCPTS[:2], RSET],
        "250 550 450 354 554 250", [DOT, RSET],
        (0, False, False, False), id="all refused, but DATA is not",
    ),
    pytest.param(
        False, 1,
        "250 550 250", [RCPTS[0], RSET],
        "250 550 354 421", [DOT],
        (0, False, None, False), id="all refused, but DATA is not, and 421",
    ),
    pytest.param(
        False, 1,
        "250 252 250", [RCPTS[0], RSET],
        "250 252 354", [],
        (0, False, None, True), id="252, which the server may think a recipient",
    ),
    pytest.param(
        False, 1,
        "250 252 250", [RCPTS[0], RSET],
        "250 252 554 250", [RSET],
        (0, False, False, False), id="252, and DATA is refused",
    ),
    pytest.param(
        False, 2,
        "550 250", [RSET],
        "550 503 503 503 250", [RSET],
        (0, False, False, False), id="sender refused",
    ),
    pytest.param(
        False, 1,
        "550 250", [RSET],
        "550 250 354", [],
        # A transaction was open before our MAIL: a dot would be its message.
        (0, False, None, True), id="sender refused, and the rest is not",
    ),
    pytest.param(
        False, 1,
        "251 250", [RSET],
        "251 250 354", [],
        (0, False, None, True), id="sender neither accepted nor refused",
    ),
    pytest.param(
        False, 2,
        "250 250 250 451 250", [*RCPTS[:2], DATA, RSET],
        "250 250 250 451 250", [RSET],
        (2, False, False, False), id="DATA refused",
    ),
    pytest.param(
        False, 1,
        "250 250 250", [RCPTS[0], DATA],
        "250 250 250", [],
        # No reply to DATA is 250 (RFC 5321, section 4.3.2): it is some other command's.
        (1, False, True, True), id="DATA answered by what is not 354",
    ),
    pytest.param(
        False, 1,
        "250 250 554 354", [RCPTS[0], DATA, RSET],
        "250 250 554 354", [RSET],
        (1, False, True, True), id="RSET answered as DATA is",
    ),
    pytest.param(
        False, 1,
        "250 250 354 550 250", [RCPTS[0], DATA, BODY, RSET],
        "250 250 354 550 250", [BODY, RSET],
        (1, False, False, False), id="message refused",
    ),
    pytest.param(
        False, 1,
        "250 250 354 550 421", [RCPTS[0], DATA, BODY, RSET],
        "250 250 354 550 421", [BODY, RSET],
        (1, False, True, False), id="421 to RSET",
    ),
    pytest.param(
        False, 2,
        "421", [],
        "421", [],
        (0, False, True, False), id="421 to MAIL",
    ),
    pytest.param(
        False, 3,
        "250 250 421", RCPTS[:2],
        "250 250 421", [],
        (1, False, True, False), id="421 to RCPT",
    ),
    pytest.param(
        False, 2,
        "250 250 421", RCPTS[:2],
        "250 250 421", [],
        (1, False, True, False), id="421 to the last RCPT",
    ),
    pytest.param(
        False, 1,
        "250 250 421", [RCPTS[0], DATA],
        "250 250 421", [],
        (1, False, True, False), id="421 to DATA",
    ),
    pytest.param(
        False, 1,
        "250 250 354 421", [RCPTS[0], DATA, BODY],
        "250 250 354 421", [BODY],
        (1, False, True, False), id="421 to the message",
    ),
    pytest.param(
        True, 3,
        "250 250 550 250 354 250 452", [*RCPTS, DATA, BODY],
        "250 250 550 250 354 250 452", [BODY],
        (2, True, False, False), id="LMTP, taken for one",
    ),
    pytest.param(
        True, 2,
        "250 250 250 354 550 452 250", [*RCPTS[:2], DATA, BODY, RSET],
        "250 250 250 354 550 452 250", [BODY, RSET],
        (2, False, False, False), id="LMTP, taken for nobody",
    ),
    pytest.param(
        True, 3,
        "250 250 250 250 354 250 421", [*RCPTS, DATA, BODY],
        "250 250 250 250 354 250 421", [BODY],
        (3, True, True, False), id="LMTP, 421 in the middle",
    ),
    pytest.param(
        True, 1,
        "250 550 250", [RCPTS[0], RSET],
        "250 550 354", [],
        (0, False, None, True), id="LMTP, all refused, but DATA is not",
    ),
]  # fmt: skip


@pytest.mark.parametrize("pipelining", [False, True], ids=["in steps", "in a flight"])
@pytest.mark.parametrize(
    ("lmtp", "recipients", "steps", "steps_written", "flight", "flight_written", "expected"), SEND
)
def test_send(pipelining, lmtp, recipients, steps, steps_written, flight, flight_written, expected):
    script = [f"{code} {at}" for at, code in enumerate((flight if pipelining else steps).split())]
    operation = send(envelope(recipients), PAYLOAD, pipelining=pipelining, lmtp=lmtp)
    played = drive(operation, scripted_server(script))
    outcome = played.result
    accepted, delivered, closing, must_close = expected
    first = b"".join((MAIL, *RCPTS[:recipients], DATA)) if pipelining else MAIL
    written = flight_written if pipelining else steps_written
    assert played.sent == [first, *written]
    if closing is None:  # what only a flight can lead to
        closing, must_close = pipelining, pipelining and must_close
    assert (outcome.accepted, outcome.delivered) == (accepted, delivered)
    assert (outcome.closing, outcome.must_close) == (closing, must_close)
    assert played.owed == 0 or closing
    if not must_close:
        assert outcome.closing == (outcome.last.code == 421)


def scripted_server(script):
    """Answer as a server with these replies left, until they are at an end."""
    left = deque(reply(each) if isinstance(each, str) else each for each in script)
    return lambda effect: [left.popleft() for _ in range(effect.replies) if left]


def test_unless_asked_it_is_smtp_in_steps():
    script = ["250 m", "250 a", "250 b", "354 d", "250 ok"]
    assert len(play(send(envelope(2), PAYLOAD), *script).sent) == 5


def test_the_outcome_holds_the_replies():
    script = ["250 m", "250 a", "550 b", "251 c", "354 d", "250 for a", "452 for c"]
    for pipelining in (False, True):
        operation = send(envelope(3), PAYLOAD, pipelining=pipelining, lmtp=True)
        outcome = drive(operation, scripted_server(script)).result
        expected = [reply(text) for text in script]
        assert outcome.mail == expected[0]
        assert outcome.rcpts == expected[1:4]
        assert outcome.data == expected[4]
        assert outcome.finals == expected[5:]
        assert outcome.last == expected[6]


def test_after_a_421_lmtp_recipients_have_it_as_their_reply():
    script = ["250 m", "250 a", "250 b", "250 c", "354 d", "250 for a", "421 bye"]
    outcome = drive(send(envelope(3), PAYLOAD, lmtp=True), scripted_server(script)).result
    assert outcome.finals == [reply("250 for a"), reply("421 bye"), reply("421 bye")]


@pytest.mark.parametrize("pipelining", [False, True])
def test_the_verbs_are_the_envelope_s(pipelining):
    verbs = Verbs("mail from:", "rcpt to:", b"data\r\n", b"rset\r\n")
    lower = Envelope("f@x", ["a@x"], verbs=verbs)
    script = ["250 m", "250 a", "354 d", "550 no", "250 reset"]
    played = drive(send(lower, PAYLOAD, pipelining=pipelining), scripted_server(script))
    commands = b"mail from:<f@x>\r\nrcpt to:<a@x>\r\ndata\r\n"
    assert b"".join(played.sent) == commands + BODY + b"rset\r\n"
    names = ["MAIL"] if pipelining else ["MAIL", "RCPT", "DATA"]
    assert played.verbs == [*names, ".", "RSET"]


def test_the_payload_is_written_as_it_was_made():
    buffers = (memoryview(b"x"), b".\r\n")
    effects = [
        effect
        for effect in collected(send(envelope(1), buffers), ["250 m", "250 a", "354 d", "250 ok"])
        if isinstance(effect, Send)
    ]
    assert effects[-1].buffers is buffers


def collected(operation, script):
    """Yield an operation's effects."""
    replies = iter(script)
    argument = None
    while True:
        try:
            effect = operation.send(argument)
        except StopIteration:
            return
        yield effect
        argument = reply(next(replies)) if effect is NEED_REPLY else None


@pytest.mark.parametrize("pipelining", [False, True])
def test_a_connection_lost_at_rset_does_not_hide_the_refusal(pipelining):
    script = ["250 m", "250 a", "451 later", GONE]
    played = drive(send(envelope(1), PAYLOAD, pipelining=pipelining), scripted_server(script))
    assert (played.error, played.result.data) == (None, (451, b"later"))
    assert not played.result.closing


@pytest.mark.parametrize("pipelining", [False, True])
@pytest.mark.parametrize("at", range(5))
def test_a_connection_lost_before_is_an_error(pipelining, at):
    script = ["250 m", "250 a", "250 b", "354 d", "250 ok"][:at]
    played = drive(
        send(envelope(2), PAYLOAD, pipelining=pipelining), scripted_server([*script, GONE])
    )
    assert played.error is GONE


# -- a flight and steps give the same -----------------------------------------


class Server:
    """Answers each command by one code, whether it comes in a flight or not."""

    def __init__(self, mail, rcpts, data, finals, rset):
        self.mail, self.rcpts, self.data, self.finals, self.rset = mail, rcpts, data, finals, rset

    def __call__(self, effect):
        self.accepted = [code for code in self.rcpts if code in (250, 251)]
        written = b"".join(effect.buffers)
        if effect.replies > 1 and effect.verb == "MAIL":
            codes = [self.mail, *self.rcpts, self.data]
        elif effect.verb == "RCPT":
            codes = [self.rcpts[RCPTS.index(written)]]
        elif effect.verb == ".":
            codes = self.finals[: effect.replies]
        else:
            codes = [getattr(self, effect.verb.lower())]
        assert len(codes) == effect.replies
        return [Reply(code, effect.verb.encode()) for code in codes]


codes = st.sampled_from([250, 250, 250, 251, 252, 354, 200, 421, 450, 503, 550, -1])
data_codes = st.sampled_from([354, 354, 354, 250, 421, 451, 503, 554])


@given(
    mail=codes,
    rcpts=st.lists(codes, min_size=1, max_size=3),
    data=data_codes,
    finals=st.lists(codes, min_size=3, max_size=3),
    rset=codes,
    lmtp=st.booleans(),
)
@example(mail=250, rcpts=[252], data=354, finals=[250] * 3, rset=250, lmtp=False)
@example(mail=250, rcpts=[250], data=354, finals=[251] * 3, rset=503, lmtp=False)
def test_a_flight_has_the_outcome_of_its_steps(mail, rcpts, data, finals, rset, lmtp):
    steps, flight = (
        drive(
            send(envelope(len(rcpts)), PAYLOAD, pipelining=pipelining, lmtp=lmtp),
            Server(mail, rcpts, data, finals, rset),
        )
        for pipelining in (False, True)
    )
    for played in (steps, flight):
        outcome = played.result
        assert played.error is None
        assert outcome.closing or played.owed == 0
        # The message goes to those the server took, or not at all.
        ready = outcome.data is not None and outcome.data.code == 354
        assert (BODY in played.sent) == (ready and outcome.accepted > 0)
        assert outcome.delivered == (250 in [final.code for final in outcome.finals])
        # Each transaction is ended: by the message, by RSET, or by closing.
        assert outcome.delivered or outcome.closing or played.sent[-1] == RSET
        assert RSET not in played.sent[:-1]

    def told(outcome):
        return (
            outcome.mail.code,
            [each.code for each in outcome.rcpts],
            outcome.data and outcome.data.code,
            [each.code for each in outcome.finals],
            outcome.last.code,
            outcome.closing,
        )

    ours, theirs = steps.result, flight.result
    assert (ours.accepted, ours.delivered) == (theirs.accepted, theirs.delivered)
    if ours.accepted:
        assert told(ours) == told(theirs)
        # Out of step: DATA has no 2xx, RSET neither 354 nor 503 (RFC 5321, section 4.3.2).
        odd = 200 <= ours.data.code < 300 if ours.data else False
        odd = odd or (steps.sent[-1] == RSET and rset in (354, 503))
        assert ours.must_close == theirs.must_close == odd
    else:  # nobody would have said DATA, and after MAIL was refused nobody RCPT
        assert DATA not in steps.sent
        refused = [each.code for each in theirs.rcpts]
        assert [each.code for each in ours.rcpts] == refused[: len(ours.rcpts)]


def test_nobody_accepted_and_354():
    # RFC 2920, section 3.1: a lone dot, but where no recipient can have been taken.
    some = (200, 252, 299, 300, 450)
    for mail, first, second, lmtp in itertools.product((250, *some), some, some, (False, True)):
        server = Server(mail, [first, second], 354, [550], 250)
        played = drive(send(envelope(2), PAYLOAD, pipelining=True, lmtp=lmtp), server)
        # Whatever was said to MAIL: another transaction may have been open before it.
        taken = min(first, second) < 300
        assert played.result.must_close == (lmtp or taken)
        assert played.sent[1:] == ([] if lmtp or taken else [DOT, RSET])
        assert played.owed == 0


def test_secrets_are_taken_out_of_a_text():
    assert without_secrets(b"no s3cret, no abc", [b"s3cret", b"abc"]) == b"no ***, no abc"
    assert without_secrets("no s3cret", [b"s3cret"]) == b"no ***"


def test_an_answer_that_is_repeated_in_challenges_without_end_is_not_shown():
    answers = itertools.repeat(b"c2VjcmV0")
    played = drive(
        authenticate("LOGIN", lambda challenge: next(answers), max_challenges=2),
        lambda sent: [reply("334 c2VjcmV0")],
    )
    assert type(played.error) is SMTPException
    assert "c2VjcmV0" not in str(played.error)
    assert "***" in str(played.error)
