"""One header field: what is kept of it, and when the email package is asked."""

from __future__ import annotations

import email.headerregistry
from email.headerregistry import BaseHeader, UniqueUnstructuredHeader
from email.message import EmailMessage, Message
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from email.policy import EmailPolicy, compat32, default

import pytest

from fastsmtp import fields, serializer
from fastsmtp.fields import Header, Style
from fastsmtp.serializer import header_of, serialize, serialize_buffers


def test_what_is_usual_needs_no_policy():
    style = Style(default.clone(linesep="\r\n"))
    style.policy = None
    assert style.field("Subject", "a\n b") == b"Subject: a\r\n b\r\n"
    header = EmailMessage()
    header["To"] = "Ann <a@example.org>, b@example.org"
    assert style.field("To", header["To"]) == b"To: Ann <a@example.org>, b@example.org\r\n"


def test_lines_are_not_kept_without_end():
    style = Style(default)
    for number in range(1000):
        style.keep((str(number), "", True), b"", b"")
    assert 0 < len(style.lines) <= 64


def test_styles_and_classes_are_not_kept_without_end():
    for _ in range(200):
        message = type("Own", (EmailMessage,), {})(policy=EmailPolicy())
        message["Subject"] = "a"
        assert serialize(message) == b"Subject: a\r\n\r\n"
    assert len(serializer._styles) <= 64
    assert len(serializer._classes) <= 64


def test_a_header_with_its_own_way_to_fold():
    class Loud(UniqueUnstructuredHeader):
        pass

    kind = type("_Unique", (UniqueUnstructuredHeader, BaseHeader), {"fold": lambda *_, **__: "X\n"})
    assert Style(default).field("Subject", kind("Subject", "a")) == b"X\n"
    kind = type("_Loud", (Loud, BaseHeader), {})
    assert Style(default).field("Subject", kind("Subject", "a")) == b"Subject: a\n"


def test_a_header_without_what_it_was_parsed_to():
    message = EmailMessage()
    message["To"] = "a@example.org"
    del message["To"]._parse_tree
    with pytest.raises(AttributeError):
        serialize(message)


def test_without_the_tokens_of_the_email_package(monkeypatch):
    monkeypatch.delattr(email.headerregistry, "parser", raising=False)
    assert all(kind.__str__ is str.__str__ for kind in fields._kinds_of_tokens())


def test_the_header_of_a_message():
    message = Message()
    message["To"], message["TO"], message["Subject"] = "a", "b", "ü"
    header = header_of(message)
    assert isinstance(header, Header)
    assert header.fields == [("To", "a"), ("TO", "b"), ("Subject", "ü")]
    assert (header.values, header.is_ascii) == ({"to": "a", "subject": "ü"}, False)


@pytest.mark.parametrize("unusual", ["class", "policy", "object"])
def test_a_header_that_others_may_see_otherwise(unusual):
    kind = type("Own", (Message,), {"get": lambda *_: None}) if unusual == "class" else Message
    policy = type("Own", (EmailPolicy,), {})() if unusual == "policy" else default
    message = kind(policy)
    if unusual == "object":
        message.raw_items = list
    assert header_of(message) is None


@pytest.mark.parametrize("limit", [float("inf"), 78.5, 10**30, 2**63, -1, -(2**63), True])
@pytest.mark.parametrize("policy", [default, compat32], ids=["default", "compat32"])
def test_limits_that_are_odd(policy, limit):
    message = Message(policy=policy.clone(max_line_length=limit))
    message["Subject"] = "word " * 20 + "word"
    message["To"] = "a@example.org"
    results = []
    for write in (serialize, lambda each: each.as_bytes(policy=each.policy.clone(linesep="\r\n"))):
        try:
            results.append(write(message))
        except Exception as error:
            results.append(type(error))
    assert results[0] == results[1]


def test_buffers_are_neither_many_nor_large_nor_empty():
    message = MIMEMultipart(boundary="b")
    for _ in range(40):
        message.attach(MIMEText("x" * 99 + "\n" * 2000))
    message.attach(MIMEText("y" * 2_000_000))
    buffers = list(serialize_buffers(message))
    assert b"".join(buffers) == serialize(message)
    assert max(map(len, buffers)) <= 2 << 18
    assert min(map(len, buffers)) > 0
    assert len(buffers) < 20
    assert all(serialize_buffers(Message()))
