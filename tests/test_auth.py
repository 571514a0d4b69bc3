"""Mechanisms as functions: what they say first, and to each challenge."""

from __future__ import annotations

import base64
import hmac

import pytest

from fastsmtp import auth

PLAIN = "\0zoë\0pässword"
XOAUTH2 = "user=zoë\1auth=Bearer pässword\1\1"
JSON = b'{"status":"400"}'
DIGEST = hmac.new("pässword".encode(), b"<1@x>", "md5").hexdigest()

#: The answers to None (the initial response) and to challenges; None where there is none.
EXCHANGES = [
    ("PLAIN", [(None, PLAIN)]),
    ("PLAIN", [(b"", PLAIN)]),
    ("LOGIN", [(None, "zoë"), (b"Password:", "pässword"), (b"more?", None)]),
    ("LOGIN", [(b"Username:", "zoë"), (b"", "pässword"), (b"", None), (b"", None)]),
    ("CRAM-MD5", [(None, None), (b"<1@x>", f"zoë {DIGEST}")]),
    ("XOAUTH2", [(None, XOAUTH2), (JSON, "")]),
    ("XOAUTH2", [(b"", XOAUTH2), (JSON, "")]),
]


@pytest.mark.parametrize(("name", "exchange"), EXCHANGES)
def test_mechanisms(name, exchange):
    respond = auth.MECHANISMS[name]("zoë", "pässword")
    for challenge, answer in exchange:
        encoded = None if answer is None else base64.b64encode(answer.encode())
        assert respond(challenge) == encoded


def test_the_order_is_smtplib_s_and_each_is_tested():
    assert list(auth.MECHANISMS) == ["CRAM-MD5", "PLAIN", "LOGIN", "XOAUTH2"]
    assert set(auth.MECHANISMS) == {name for name, _ in EXCHANGES}


@pytest.mark.parametrize(("name", "separator"), [("PLAIN", "\0"), ("XOAUTH2", "\1")])
def test_no_value_holds_another(name, separator):
    for credentials in (("user" + separator, "secret"), ("user", "sec" + separator + "ret")):
        with pytest.raises(ValueError, match="separator") as raised:
            auth.MECHANISMS[name](*credentials)(None)
        assert "ret" not in str(raised.value)
