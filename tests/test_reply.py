"""Replies: a tuple with names, and RFC 3463's status codes."""

from __future__ import annotations

import pickle

import pytest

from fastsmtp.reply import Reply


def test_a_reply_is_the_tuple_that_smtplib_returns():
    reply = Reply(250, b"one\ntwo")
    code, text = reply
    assert reply == (250, b"one\ntwo") == (code, text) == (reply.code, reply.text)
    assert reply.lines == [b"one", b"two"]
    assert repr(reply) == r"Reply(250, b'one\ntwo')"
    assert eval(repr(reply), {"Reply": Reply}) == reply
    assert hash(reply) == hash((250, b"one\ntwo"))
    with pytest.raises(AttributeError):
        reply.code = 550


def test_a_reply_is_kept_by_pickle():
    restored = pickle.loads(pickle.dumps(Reply(250, b"ok")))
    assert (type(restored), restored) == (Reply, (250, b"ok"))


def test_a_reply_without_text_has_one_line():
    assert Reply(250, b"").lines == [b""]


@pytest.mark.parametrize(
    ("code", "text", "enhanced"),
    [
        (250, b"2.1.5 ok", (2, 1, 5)),
        (250, b"2.0.0", (2, 0, 0)),
        (500, b"5.5.2 what?", (5, 5, 2)),
        (550, b"5.1.1 no such user\n5.1.1 really", (5, 1, 1)),
        (550, b"5.1.1\nno such user", (5, 1, 1)),
        (451, b"4.123.456 later", (4, 123, 456)),
        (250, b"ok", None),
        (250, b"", None),
        (250, b"ok\n2.1.5 on the second line", None),
        (250, b"5.1.1 of another class", None),
        (354, b"3.0.0 no such class", None),
        (550, b"5.1 too short", None),
        (550, b"5.1.1.1 too long", None),
        (550, b"5.1.1234 no subject has so many", None),
        (550, b"5.1234.1 nor has a class", None),
        (550, b"5.1.1-not", None),
        (550, b" 5.1.1 indented", None),
        (-1, b"2.1.5 no code", None),
    ],
)
def test_enhanced_status_codes(code, text, enhanced):
    # RFC 3463, section 2; RFC 2034, section 4: at the start, of the code's own class.
    assert Reply(code, text).enhanced == enhanced
