"""Conversations by scripted replies: what is said on a connection, and when it is not gone on."""

from __future__ import annotations

import base64
from collections import deque
from types import SimpleNamespace

import pytest

from fastsmtp.conversation import Credentials, Established, Mode, Terms, converse, transactions
from fastsmtp.errors import (
    SMTPAuthenticationError,
    SMTPConnectError,
    SMTPException,
    SMTPHeloError,
    SMTPNotSupportedError,
    SMTPResponseException,
)
from fastsmtp.operations import NEED_REPLY, START_TLS, Send
from fastsmtp.reply import Reply

GREETING = "220 hello"
EHLO = b"EHLO me.example\r\n"
PLAIN = base64.b64encode(b"\0user\0secret").decode()


def hold(terms, *script, in_step=True, binding=None):
    """Run a conversation by a list of replies, all of which it is to read.

    Returns what came of it: `effects`, in which writes stand as bytes and an
    Established as its extensions, `error`, and `owed` replies.
    """
    replies = deque(script)
    held = SimpleNamespace(effects=[], result=None, error=None, owed=1)
    asked = []

    def tell_binding():
        asked.append(START_TLS in held.effects)
        return binding

    operation = converse(terms, tell_binding)
    value = None
    try:
        while True:
            effect = operation.send(value)
            value = None
            if isinstance(effect, Send):
                assert held.owed == 0, "it said something before the reply to the last"
                held.owed += effect.replies
                held.effects.append(b"".join(effect.buffers))
            elif isinstance(effect, Established):
                held.effects.append(effect.extensions)
                value = in_step
            elif effect is START_TLS:
                held.effects.append(START_TLS)
            else:
                assert effect is NEED_REPLY
                held.owed -= 1
                code, _, text = replies.popleft().partition(" ")
                value = Reply(int(code), text.encode())
    except StopIteration as end:
        held.result = end.value
    except SMTPException as error:
        held.error = error
    assert not replies
    assert held.result is None
    assert asked in ([], [True])
    return held


def terms(tls="none", **options):
    return Terms(local_hostname="me.example", tls=tls, **options)


def credentials(password="secret", *, token=None, mechanisms=None, cleartext=False):
    return Credentials("user", password, token, mechanisms, cleartext)


# -- the session --------------------------------------------------------------


def test_from_the_greeting_to_quit():
    held = hold(terms(), GREETING, "250 host\nSIZE 5\nPIPELINING", "221 bye")
    assert held.effects == [EHLO, {"size": "5", "pipelining": ""}, b"QUIT\r\n"]
    assert (held.error, held.owed) == (None, 0)


def test_a_connection_out_of_step_is_left_without_quit():
    held = hold(terms(), GREETING, "250 host", in_step=False)
    assert held.effects == [EHLO, {}]
    assert held.error is None


def test_after_helo_there_are_no_extensions():
    held = hold(terms(), GREETING, "502 what?", "250 host\nSIZE", "221 bye")
    assert held.effects == [EHLO, b"HELO me.example\r\n", {}, b"QUIT\r\n"]


def test_lmtp_says_lhlo():
    held = hold(terms(lmtp=True), GREETING, "250 host", "221 bye")
    assert held.effects == [b"LHLO me.example\r\n", {}, b"QUIT\r\n"]
    assert type(hold(terms(lmtp=True), GREETING, "502 what?").error) is SMTPHeloError


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (["554 go away"], SMTPConnectError(554, b"go away")),
        (["421 busy"], SMTPConnectError(421, b"busy")),
        ([GREETING, "421 busy"], SMTPHeloError(421, b"busy")),
        ([GREETING, "550 you?", "550 you?"], SMTPHeloError(550, b"you?")),
    ],
)
def test_no_session(script, error):
    held = hold(terms(), *script)
    assert type(held.error) is type(error)
    assert held.error.args == error.args


# -- TLS ----------------------------------------------------------------------


def test_implicit_tls_comes_before_the_greeting():
    held = hold(terms("implicit"), GREETING, "250 host\nSTARTTLS", "221 bye")
    assert held.effects == [START_TLS, EHLO, {"starttls": ""}, b"QUIT\r\n"]


@pytest.mark.parametrize("tls", ["starttls", "opportunistic"])
def test_after_starttls_all_is_asked_anew(tls):
    # RFC 3207, section 4.2: what was learned in clear does not count.
    held = hold(
        terms(tls), GREETING, "250 host\nSTARTTLS\nCHUNKING", "220 go", "250 host\nSIZE", "221 bye"
    )
    assert held.effects == [EHLO, b"STARTTLS\r\n", START_TLS, EHLO, {"size": ""}, b"QUIT\r\n"]


def test_after_starttls_helo_may_be_all_there_is():
    held = hold(
        terms("starttls"), GREETING, "250 host\nSTARTTLS", "220 go", "502 what?", "250 host",
        "221 bye",
    )  # fmt: skip
    assert held.effects[3:] == [EHLO, b"HELO me.example\r\n", {}, b"QUIT\r\n"]


@pytest.mark.parametrize("ehlo", [["250 host\nSIZE"], ["502 what?", "250 host"]])
def test_where_starttls_is_not_offered(ehlo):
    held = hold(terms("starttls"), GREETING, *ehlo)
    assert type(held.error) is SMTPNotSupportedError
    assert START_TLS not in held.effects
    held = hold(terms("opportunistic"), GREETING, *ehlo, "221 bye")
    assert held.error is None
    assert START_TLS not in held.effects


@pytest.mark.parametrize("tls", ["starttls", "opportunistic"])
@pytest.mark.parametrize("reply", ["454 not now", "501 what?", "250 ok"])
def test_where_starttls_is_refused_it_is_not_gone_on_in_clear(tls, reply):
    held = hold(terms(tls), GREETING, "250 host\nSTARTTLS", reply)
    code, _, text = reply.partition(" ")
    assert type(held.error) is SMTPResponseException
    assert held.error.args == (int(code), text.encode())
    assert held.effects == [EHLO, b"STARTTLS\r\n"]


def test_without_tls_nobody_asks_for_it():
    held = hold(terms("none"), GREETING, "250 host\nSTARTTLS", "221 bye")
    assert held.effects == [EHLO, {"starttls": ""}, b"QUIT\r\n"]


# -- who logs in --------------------------------------------------------------

LOGGED_IN = [GREETING, "250 host\nAUTH PLAIN", "235 ok", "221 bye"]


def test_login_under_tls():
    held = hold(terms("implicit", credentials=credentials()), *LOGGED_IN)
    auth = f"AUTH PLAIN {PLAIN}\r\n".encode()
    assert held.effects == [START_TLS, EHLO, auth, {"auth": " PLAIN"}, b"QUIT\r\n"]


def test_login_after_starttls():
    held = hold(
        terms("opportunistic", credentials=credentials()),
        *(GREETING, "250 host\nSTARTTLS\nAUTH LOGIN", "220 go"), *LOGGED_IN[1:],
    )  # fmt: skip
    assert held.effects[4] == f"AUTH PLAIN {PLAIN}\r\n".encode()


@pytest.mark.parametrize("tls", ["none", "opportunistic"])
def test_credentials_do_not_go_in_clear(tls):
    held = hold(terms(tls, credentials=credentials()), GREETING, "250 host\nAUTH PLAIN")
    assert type(held.error) is SMTPNotSupportedError
    assert "cleartext_auth" in str(held.error)
    assert held.effects == [EHLO]


@pytest.mark.parametrize("tls", ["none", "opportunistic"])
def test_unless_asked(tls):
    held = hold(terms(tls, credentials=credentials(cleartext=True)), *LOGGED_IN)
    assert held.effects[1] == f"AUTH PLAIN {PLAIN}\r\n".encode()


@pytest.mark.parametrize("ehlo", [["250 host"], ["502 what?", "250 host"]])
def test_where_auth_is_not_offered(ehlo):
    held = hold(terms("implicit", credentials=credentials()), GREETING, *ehlo)
    assert type(held.error) is SMTPNotSupportedError
    assert {} not in held.effects


def test_a_refused_login_ends_it():
    held = hold(terms("implicit", credentials=credentials()), *LOGGED_IN[:2], "535 no")
    assert type(held.error) is SMTPAuthenticationError
    assert held.error.args == (535, b"no")
    assert {"auth": " PLAIN"} not in held.effects


def test_secrets_are_asked_for_on_each_connection():
    passwords = iter(["secret", "second"])
    own = credentials(lambda: next(passwords))
    first, second = (hold(terms("implicit", credentials=own), *LOGGED_IN) for _ in range(2))
    assert first.effects[2] == f"AUTH PLAIN {PLAIN}\r\n".encode()
    assert base64.b64decode(second.effects[2].split()[2]) == b"\0user\0second"


def test_a_secret_that_cannot_be_had_is_the_caller_s_error():
    def keyring():
        raise LookupError("locked")

    with pytest.raises(LookupError, match="locked"):
        hold(terms("implicit", credentials=credentials(keyring)), *LOGGED_IN[:2])


def test_the_token_s_mechanism_names_the_server():
    own = credentials(None, token=lambda: "t0ken", mechanisms=["OAUTHBEARER"])
    held = hold(
        terms("implicit", credentials=own, host="mx.example", port=465),
        *(GREETING, "250 host\nAUTH PLAIN OAUTHBEARER XOAUTH2", "235 ok", "221 bye"),
    )
    response = base64.b64decode(held.effects[2].removeprefix(b"AUTH OAUTHBEARER "))
    assert response == b"n,a=user,\1host=mx.example\1port=465\1auth=Bearer t0ken\1\1"


@pytest.mark.parametrize(("tls", "name"), [("implicit", b"SCRAM-SHA-256-PLUS"), ("none", b"PLAIN")])
def test_the_channel_is_bound_where_there_is_one(tls, name):
    own = credentials(cleartext=True)
    if tls == "none":
        held = hold(terms(tls, credentials=own), *LOGGED_IN, binding=("tls-unique", b"x"))
    else:
        ehlo = "250 host\nAUTH PLAIN SCRAM-SHA-256-PLUS"
        held = hold(
            terms(tls, credentials=own), GREETING, ehlo, "535 no", binding=("tls-unique", b"x")
        )
    said = [each for each in held.effects if isinstance(each, bytes)]
    assert said[1].split()[:2] == [b"AUTH", name]


# -- how transactions go ------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        (Mode(pipelining=False, chunking=False, depth=8), "one_by_one"),
        (Mode(pipelining=False, chunking=True, depth=8), "one_by_one"),
        (Mode(pipelining=True, chunking=False, depth=8), "overlapped"),
        (Mode(pipelining=True, chunking=True, depth=5), "chunked"),
    ],
)
def test_the_mode_says_how_transactions_go(mode, name):
    operation = transactions(mode)
    assert operation.__name__ == name
    assert repr(next(operation)) == "NEXT"
    if name == "chunked":
        assert operation.gi_frame.f_locals["depth"] == 5
    with pytest.raises(StopIteration) as end:
        operation.send(None)
    assert end.value.value is True


def test_credentials_that_the_server_repeats_are_not_shown():
    own = credentials(password="s3cret word")
    encoded = base64.b64encode(b"\0user\0s3cret word").decode()
    said = f"535 {encoded}: no such password as s3cret word"
    held = hold(terms("implicit", credentials=own), *LOGGED_IN[:2], said)
    assert isinstance(held.error, SMTPAuthenticationError)
    assert held.error.args == (535, b"***: no such password as ***")
    assert held.error.__cause__ is None
