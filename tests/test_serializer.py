"""serialize() against the running interpreter's BytesGenerator: the same bytes, the same errors.

Each check() takes a message that nothing else uses: BytesGenerator changes what
it writes, and serialize() must not, so it goes first and the message is looked
at before BytesGenerator gets it.  FASTSMTP_EXAMPLES=50 gives Hypothesis fifty
times the examples.
"""

from __future__ import annotations

import copy
import email
import email.charset
import email.errors
import email.policy
import functools
import io
import itertools
import json
import os
import platform
import random
import re
import subprocess
import sys
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from email import headerregistry
from email.generator import BytesGenerator
from email.header import Header, decode_header, make_header
from email.headerregistry import Address, Group, HeaderRegistry
from email.message import EmailMessage, Message, MIMEPart
from email.mime.application import MIMEApplication
from email.mime.base import MIMEBase
from email.mime.image import MIMEImage
from email.mime.message import MIMEMessage
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from email.policy import Compat32, EmailPolicy, compat32, default
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import fastsmtp
from fastsmtp import serialize, serialize_buffers

try:
    from test import test_email as cpython_tests
except ImportError:  # not every interpreter comes with its tests
    cpython_tests = None

TIMES = int(os.environ.get("FASTSMTP_EXAMPLES", "1"))


def examples(number):
    return settings(
        deadline=None,
        max_examples=number * TIMES,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


CORE = ("compat32", "default", "refold all")


def spread(cases, one_in, turn, core=()):
    """Return one of so many cases, others at another turn; all if more examples are asked for."""
    cases = list(cases)
    if TIMES > 1 or turn in core:
        return cases
    # An address in it is another at each run.
    start = zlib.crc32(re.sub("0x[0-9a-f]+", "", repr(turn)).encode())
    return cases[start % one_in :: one_in]


# -- how the two are compared -------------------------------------------------


def generated(message, *, linesep="\r\n", policy=None, mangle_from_=None):
    with io.BytesIO() as buffer:
        BytesGenerator(buffer, mangle_from_, policy=policy).flatten(message, linesep=linesep)
        return buffer.getvalue()


def joined(message, **options):
    buffers = list(serialize_buffers(message, **options))
    assert {type(buffer) for buffer in buffers} <= {bytes}
    return b"".join(buffers)


def outcome(call, *arguments, **options):
    """Return what was written and the random number after it, or the error's type."""
    before = random.getstate()
    random.seed(4)
    try:
        return call(*arguments, **options), random.random()
    except AssertionError:
        raise
    except Exception as error:
        return type(error)
    finally:
        random.setstate(before)


def state(message, seen=None):
    """Return all that a message and its parts hold, as objects to compare by identity."""
    seen = [] if seen is None else seen
    if not hasattr(message, "__dict__") or any(message is each for each in seen):
        return [message]
    seen.append(message)
    held = [message]
    for name, value in sorted(vars(message).items()):
        held += [name, value] if name != "_headers" else [name]
        if isinstance(value, list):
            held += value
            if name == "_payload":
                for part in value:
                    held += state(part, seen)
        elif isinstance(value, Message):
            held += state(value, seen)
    return held


def shown(message):
    if not isinstance(message, Message):
        return repr(message)
    fields, payload = vars(message).get("_headers"), vars(message).get("_payload")
    if isinstance(payload, list):
        payload = "[" + ", ".join(shown(part) for part in payload if part is not message) + "]"
    elif isinstance(payload, Message):
        payload = shown(payload)
    else:
        payload = repr(payload)[:2000]
    types = {type(value).__name__ for _, value in fields or []}
    return f"<{type(message).__name__} {message.policy!r} {fields} {types} {payload}>"


def check(message, **options):
    """Hold serialize() and serialize_buffers() against BytesGenerator; return its outcome."""
    before = state(message)
    ours = outcome(serialize, message, **options)
    after = state(message)
    ours_in_buffers = outcome(joined, message, **options)
    after_buffers = state(message)
    what = f"{shown(message)} {options}"
    expected = outcome(generated, message, **options)
    assert ours == expected, what
    assert ours_in_buffers == expected, what
    for held in (after, after_buffers):
        assert len(held) == len(before), what
        assert all(map(lambda one, other: one is other or (type(one) is str and one == other),
                       held, before)), what  # fmt: skip
    return expected


def written(message, **options):
    """Return what both write of a message that can be written."""
    found = check(message, **options)
    assert isinstance(found, tuple), found
    return found[0]


def with_field(name, value, policy=compat32, payload="body\n"):
    message = Message(policy)
    message.set_raw(name, value)
    message.set_payload(payload)
    return message


# -- policies -----------------------------------------------------------------

STANDARD = {
    "compat32": compat32,
    "default": default,
    "SMTP": email.policy.SMTP,
    "SMTPUTF8": email.policy.SMTPUTF8,
    "HTTP": email.policy.HTTP,
    "strict": email.policy.strict,
}
#: EmailPolicy of some interpreters never ends where a line has no room for an encoded word.
CLONES = {
    "compat32 7bit": compat32.clone(cte_type="7bit"),
    "compat32 0": compat32.clone(max_line_length=0),
    "compat32 None": compat32.clone(max_line_length=None, linesep="\r\n"),
    "compat32 20": compat32.clone(max_line_length=20, mangle_from_=False),
    "default 7bit": default.clone(cte_type="7bit"),
    "default 0": default.clone(max_line_length=0, linesep="\r"),
    "default 30": default.clone(max_line_length=30),
    "default 40": default.clone(max_line_length=40, mangle_from_=True),
    "default 998": default.clone(max_line_length=998),
    "refold none": default.clone(refold_source="none"),
    "refold none 7bit": default.clone(refold_source="none", cte_type="7bit"),
    "refold all": default.clone(refold_source="all"),
    "refold none utf8": email.policy.SMTPUTF8.clone(refold_source="none"),
    "refold all utf8": email.policy.SMTPUTF8.clone(refold_source="all", cte_type="7bit"),
}


class Shouting(Compat32):
    def fold_binary(self, name, value):
        return b"X-Was-" + super().fold_binary(name, value).upper()


class ShoutingEmail(EmailPolicy):
    def fold_binary(self, name, value):
        return b"X-Was-" + super().fold_binary(name, value).upper()


class FoldsByText(Compat32):
    def fold(self, name, value):
        return "X-Text: not asked\n"

    def _fold(self, name, value, sanitize):
        return f"{name}:{str(value).upper()}{sanitize}{self.linesep}"


class FoldsByTextEmail(EmailPolicy):
    def _fold(self, name, value, refold_binary=False):
        return f"{name}:{str(value).upper()}{refold_binary}{self.linesep}"


class Fetches(Compat32):
    def header_fetch_parse(self, name, value):
        return "application/x; charset=utf-8" if name == "Content-Type" else value


class FetchesEmail(EmailPolicy):
    def header_fetch_parse(self, name, value):
        return super().header_fetch_parse(name, str(value).replace("=b", "=other"))


class ClonesItself(EmailPolicy):
    def clone(self, **changes):
        return super().clone(**{**changes, "linesep": "\n", "max_line_length": 30})


class NoChange(EmailPolicy):
    """A subclass that overrides nothing."""


class Bare(str):
    """A header object that is not the registry's."""

    __slots__ = ("name",)
    max_count = None

    def fold(self, *, policy):
        return f"{self.name.upper()}: <{self}>{policy.linesep}"


def bare_factory(name, value):
    made = Bare(value)
    made.name = name
    return made


def registry(**types):
    made = HeaderRegistry()
    for name, kind in types.items():
        made.map_to_type(name.replace("_", "-"), kind)
    return made


class Reversed(headerregistry.UnstructuredHeader):
    @classmethod
    def parse(cls, value, kwds):
        super().parse(value[::-1], kwds)


class OwnFold(headerregistry.UnstructuredHeader):
    def fold(self, *, policy):
        return f"{self.name}:\t{self}{policy.linesep}"


CUSTOM = {
    "shouting": Shouting(),
    "shouting email": ShoutingEmail(),
    "folds by text": FoldsByText(),
    "folds by text, email": FoldsByTextEmail(),
    "fetches": Fetches(),
    "fetches, email": FetchesEmail(),
    "clones itself": ClonesItself(),
    "no change": NoChange(),
    "a class mapped": EmailPolicy(header_factory=registry(subject=Reversed, x_y=OwnFold)),
    "content-type mapped": EmailPolicy(
        header_factory=registry(content_type=headerregistry.UniqueUnstructuredHeader)
    ),
    "mapped and refolded": EmailPolicy(
        refold_source="all", header_factory=registry(subject=OwnFold, x_y=Reversed)
    ),
    "no map": EmailPolicy(header_factory=HeaderRegistry(use_default_map=False)),
    "a factory": EmailPolicy(header_factory=bare_factory, refold_source="all"),
}
if hasattr(compat32, "verify_generated_headers"):
    CLONES["not verified"] = default.clone(verify_generated_headers=False)
    CLONES["compat32 not verified"] = compat32.clone(verify_generated_headers=False)
POLICIES = {**STANDARD, **CLONES}
ALL_POLICIES = {**POLICIES, **CUSTOM}

#: Newlines, manglings, and policies, no two alike; None is the message's own.
OPTIONS = [
    {},
    {"linesep": None},
    {"linesep": "\n", "mangle_from_": False},
    {"policy": default},
    {"policy": email.policy.SMTP, "mangle_from_": True, "linesep": "\r"},
    {"policy": compat32},
    {"policy": compat32.clone(cte_type="7bit"), "linesep": "\n"},
    {"policy": default.clone(cte_type="7bit", mangle_from_=True)},
    {"policy": compat32.clone(mangle_from_=False), "linesep": None},
]


# -- fields -------------------------------------------------------------------

WORDS = "the quick brown fox jumps over the lazy dog, "
LINE_ENDS = ["\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x1f", "\x85", "\u2028", "\u2029"]
PLAIN = ["", " ", "  ", "\t", "a", "a ", "a  ", "a\t", " a", "\ta", "a b", "a  b", "a\tb", "a;b,c"]
CONTROLS = ["a\0b", "\x7f", "a\x01", *LINE_ENDS, *(f"a{end}b" for end in LINE_ENDS)]
NEWLINES = [
    "a\nb", "a\n b", "a\rb", "a\r b", "a\r\nb", "a\r\n b", "a\n\tb", "a\n \n b", "a\n\n b", "a\n ",
    "a\n", "a\r", "a\r\n", "a \n", "\n", "\r\n", "\na", "\n a", "\r\n a", "a\nb: c", "a\n b: c",
    "a\rb: c", "a\r\nb: c", "a\n b\n", "a\r\n b\r\n c", "a\n\r b", "a\r\r b", "a\n b\nc", "a\n:",
    "a\n\n",
    "a\x0b b", "a\x85b: c", "a\u2028b: c", "a\x0cb: c", "a\x1cb: c\n d", "a\n" + 90 * "b ",
    90 * "b " + "\n c", "a\n " + 90 * "b", 79 * "b" + "\r\n\t" + 79 * "c",
]  # fmt: skip
ENCODED = [
    "é", "caf\xe9 " + WORDS, 60 * "é", 30 * "日本語 ", "🎉" * 30, "=?utf-8?q?caf=C3=A9?=",
    "=?utf-8?q?a?= =?utf-8?q?b?=", "=?utf-8?q?a?=b", "a =?utf-8?b?////?= b", "=?bogus?x?y?=",
    "=?utf-8?q?a=0Ab?=", "=?utf-8?q?a=0D=0ABcc=3A_x?=", "=?utf-8?q?" + 60 * "=C3=A9" + "?=", "=?",
    "=?utf-8?q?=3D=3Futf-8=3Fq=3Fa=3F=3D?=", "a =?utf-8?q?" + 60 * "b" + "?= c",
    "=?us-ascii?q?a_b?= c", "\ufeff", "a\u3000b", "\xa0", "a\xadb",
]  # fmt: skip
ESCAPED = [
    "\udce9", "a\udcffb", "caf\udcc3\udca9", "caf\udcc3\udca9 " + WORDS * 2, "\udce9\n \udce9",
    "\udce9\nb: c", "\ud800", "a\ud800b", "é\udce9", "\udc80" * 100, "=?utf-8?q?a?= \udce9",
]  # fmt: skip
LONG = [
    80 * "x", 75 * "x" + " y", WORDS * 5, 60 * "a ", 200 * "x", 100 * ",", 50 * "ab,", 40 * "a; b",
    "x " + 100 * "y", 100 * "y" + " x", 90 * " ", "a" + 90 * " " + "b", 90 * "\t", 30 * "a\t b",
    76 * "x" + " ", 70 * "x" + 20 * " ", '"' + WORDS * 3 + '"', "(" + WORDS * 3 + ")", 1100 * "z",
]  # fmt: skip
SYNTAX = [
    'a "b" c',
    "(c) a",
    "a\\b",
    '"',
    "(",
    "<",
    "a@x",
    "a@x, b@x",
    "g: a@x;",
    "multipart/mixed",
]
VALUES = [*PLAIN, *CONTROLS, *NEWLINES, *ENCODED, *ESCAPED, *LONG, *SYNTAX]


@pytest.mark.parametrize("policy", ALL_POLICIES)
@pytest.mark.parametrize("name", ["Subject", "To", "X-Y"])
def test_a_value_as_it_stands_in_the_source(policy, name):
    for value in spread(VALUES, 6, (policy, name), [(core, name) for core in CORE]):
        check(with_field(name, value, ALL_POLICIES[policy]))


@pytest.mark.parametrize("linesep", [None, "\n", "\r", "", "\n\n", "\n ", "x"])
def test_a_value_with_another_linesep(linesep):
    for value in [*PLAIN, *NEWLINES, *ENCODED[:4], *LONG[:6]]:
        for policy in (compat32, default, email.policy.SMTPUTF8):
            check(with_field("Subject", value, policy), linesep=linesep)


@pytest.mark.parametrize("policy", ALL_POLICIES)
@pytest.mark.parametrize(
    "name",
    ["Content-Type", "Content-Transfer-Encoding", "Date", "From", "Message-ID", "MIME-Version"],
)
def test_a_value_of_a_field_that_is_read(policy, name):
    values = [*PLAIN, *NEWLINES[::3], *ENCODED[::4], *ESCAPED[::3], *LONG[::4], *SYNTAX]
    for value in spread(values, 4, policy):
        check(with_field(name, value, ALL_POLICIES[policy]))


def near(limit, name):
    """Yield values that with their name come to about the limit, of several shapes."""
    for total in range(limit - 6, limit + 5):
        size = total - len(name) - 2
        for text in ("x", "x y", "xx, ", "x;", "word ", "a\t", "(c) ", '"q" ', "é", "a é", "a@x, "):
            yield (text * size)[:size]
        yield "x" * (size - 1) + " "
        yield "x" * (size - 1) + ","
        yield "x" * (size - 1) + "é"
        yield "x" * (size - 4) + " yyy"
        yield "x" * (size - 1) + "\udce9"
        yield "x" * 9 + "\n " + "y" * (total - 1)
        yield "x" * 9 + "\n" + " y" * (total // 2)
        yield "x" * size + "\n " + "y" * 20


@pytest.mark.parametrize(
    ("limit", "name"),
    # Of addresses as long as 998 the email package's parser takes its time.
    [*itertools.product([30, 40, 78], ["X", "Subject", "To"]), (998, "X"), (998, "Subject")],
)
def test_values_of_about_the_longest_line(limit, name):
    values = [value for value in near(limit, name) if limit < 100 or len(value.split()) < 9]
    if limit > 100:
        values = [value for value in values if not re.search("[^\\w ]", value)]
    for kind in ("compat32", "default", "SMTPUTF8", "refold none", "refold all", "default 7bit"):
        for value in spread(values, 8 if limit == 78 else 16, (kind, name, limit)):
            check(with_field(name, value, POLICIES[kind].clone(max_line_length=limit)))


def test_a_line_of_exactly_the_limit_is_not_folded():
    for policy in (compat32, email.policy.SMTP, email.policy.SMTP.clone(refold_source="all")):
        fits, long = "x" * 34 + " " + "y" * 34, "x" * 34 + " " + "y" * 35
        assert written(with_field("Subject", fits, policy)).startswith(b"Subject: x")
        assert written(with_field("Subject", fits, policy)).count(b"\r\n") == 3
        assert written(with_field("Subject", long, policy)).count(b"\r\n") == 4


REFUSED = ["a\nb", "a\rb", "a\r\nBcc: b@example.com", "a\n\n b", "a\n \nb"]


@pytest.mark.parametrize("value", REFUSED)
@pytest.mark.parametrize("policy", ["compat32", "default", "refold none", "no change", "a factory"])
def test_a_newline_that_would_start_a_field(value, policy):
    # CVE-2026-1299: which of these are refused depends on the interpreter.
    made = ALL_POLICIES[policy]
    for message in (
        with_field("Subject", value, made),
        with_field("Subject\nX: y", "a", made),
        with_field("X-Y", Header(value), compat32),
        with_field("X-Y", Header("é " + value), compat32),
        with_field("X-Y", bare_factory("X-Y", value), made),
        with_field("X-Y", HeaderRegistry()("X-Y", value), made),
        with_field("X-Y", OwnFoldOf(value), made),
    ):
        check(message)
        check(message, policy=made, linesep="\n")


class OwnFoldOf(str):
    """Anything that has a name is a header object to EmailPolicy."""

    __slots__ = ()
    name = "X-Y"

    def fold(self, *, policy):
        return f"X-Y: {self}{policy.linesep}"


class NoNewline(OwnFoldOf):
    def fold(self, *, policy):
        return "X-Y: no newline at the end"


class FoldsToBytes(OwnFoldOf):
    def fold(self, *, policy):
        return b"X-Y: bytes\r\n"


class Raises(OwnFoldOf):
    def fold(self, *, policy):
        raise email.errors.HeaderWriteError


class OtherText(str):
    __slots__ = ()

    def __str__(self):
        return "another text"

    def __format__(self, how):
        return "a third"


class NoMethods(str):
    __slots__ = ()

    def encode(self, *arguments):
        raise LookupError

    def splitlines(self, *arguments):
        return ["other", "lines"]

    def isascii(self):
        return False

    def __len__(self):
        return 3


class Named(str):
    """It has a name but cannot fold."""

    __slots__ = ()
    name = "X-Y"


class HeaderOfItsOwn(Header):
    def encode(self, splitchars=";, \t", maxlinelen=None, linesep="\n"):
        return f"{maxlinelen} {linesep!r}"


def headers():
    """Yield email.header.Header objects."""
    for text in (
        "a",
        "",
        " a ",
        "é",
        WORDS * 3,
        60 * "é",
        "a\n b",
        "a\nb: c",
        "a\0",
        "=?utf-8?q?a?=",
    ):
        yield Header(text)
        yield Header(text, "utf-8", header_name="X-Y")
        yield Header(text, header_name="Subject", maxlinelen=30, continuation_ws="\t")
        if text.isascii():
            yield Header(text, "us-ascii", maxlinelen=998)
        else:
            yield Header(text, "iso-8859-1")
    several = Header("Grüße", "iso-8859-1")
    several.append(WORDS, "us-ascii")
    several.append("日本語", "utf-8")
    yield several
    yield Header(b"\xe9\xff", "unknown-8bit")
    yield Header(b"a\xe9" * 40, "unknown-8bit", header_name="X-Y")
    yield make_header(decode_header("=?utf-8?q?caf=C3=A9?= a =?iso-8859-1?q?=E9?="))
    yield Header()
    yield HeaderOfItsOwn("a")


ODD_VALUES = [
    OwnFoldOf("a"), OwnFoldOf("a\nb"), OwnFoldOf("é"), OwnFoldOf("\udce9"), NoNewline("a"),
    FoldsToBytes("a"), Raises("a"), OtherText("a"), OtherText(WORDS * 3), OtherText("\udce9"),
    NoMethods("abc"), NoMethods("é"), NoMethods(WORDS * 3), Named("a"), Named("a\nb"),
    bare_factory("Other", "a"), bare_factory("Other", WORDS * 3), default.header_factory("A", "b"),
    default.header_factory("To", "b@x"), default.header_factory("", "b"), 5, None, b"a", 1.5, ["a"],
    datetime(2026, 1, 2, tzinfo=timezone.utc), Address("A", "a", "x"),
]  # fmt: skip


@pytest.mark.parametrize("policy", ALL_POLICIES)
@pytest.mark.parametrize("name", ["X-Y", "Subject", "Content-Type"])
def test_values_of_other_types(policy, name):
    for value in spread([*ODD_VALUES, *headers()], 3, policy, CORE):
        check(with_field(name, value), policy=ALL_POLICIES[policy])


ODD_NAMES = [
    "", " ", "a b", "é", "\udce9", "a:", ":", "a\n", "a\nb", "a\r\n b", "bcc", "BCC", "Bcc ",
    "sUBJECT", "content-TYPE", "Content-Type ", "x" * 77, "x" * 100, "\0", OtherText("X"),
    OtherText("To"), NoMethods("To"), Named("To"), Named("Other"), 5, None, b"To", "X\t", "İ", "ﬁ",
]  # fmt: skip


@pytest.mark.parametrize("policy", ALL_POLICIES)
def test_odd_names(policy):
    values = ("a", WORDS * 3, "é", "\udce9", "multipart/mixed; boundary=b", "")
    for name, value in spread(itertools.product(ODD_NAMES, values), 3, policy, CORE):
        check(with_field(name, value), policy=ALL_POLICIES[policy])


LATE = datetime(2026, 2, 3, 4, 5, 6, tzinfo=timezone.utc)
ADDRESSES = [
    "", " ", "a@example.com", "<a@example.com>", "A <a@example.com>", "A  B  <a@example.com>",
    '"A" <a@example.com>', '"Doe, Jane" <j@example.com>', '"a b"@example.com', "a@[127.0.0.1]",
    "a@example.com (comment)", "(c) a@example.com", "A (c) <a@example.com> (d)",
    "a @ example . com",
    "g: a@example.com, b@example.com;", "g:;", "undisclosed-recipients:;", "a@example.com,,",
    ",a@x",
    "a@x b@x", "a", "@", "<>", "<@r:a@x>", "a@x;", "Zoë <z@example.com>", "z@bücher.example",
    "=?utf-8?q?Zo=C3=AB?= <z@example.com>", '"=?utf-8?q?Zo=C3=AB?=" <z@example.com>', '"Zoë" <z@x>',
    "é@example.com", "A. B. <a@example.com>", "A\\B <a@x>", '"a\\"b" <a@x>', "a..b@x", ".a@x",
    "a@x.",
    "\udce9 <a@x>", "a\udce9@x", "Ann " + "x" * 90 + " <a@example.com>", "a" * 90 + "@example.com",
    ", ".join(f"Recipient Number {number} <r{number}@example.com>" for number in range(12)),
    ", ".join(f'"Recipient, {number}" <r{number}@example.com>' for number in range(8)),
    ", ".join(f"Zoë {number} <r{number}@example.com>" for number in range(8)),
    "g: " + ", ".join(f"r{number}@example.com" for number in range(12)) + ";, h:;",
    (Address("Zoë", "zoe", "example.com"), Address("Doe, Jane", addr_spec="j@example.com")),
    Address("A", "a b", "example.com"), Address("", "a", "example.com"), Address("nobody"),
    Group("friends", [Address("A", "a", "x"), Address("é", "b", "x")]), Group(None, [Address()]),
    [],
    [Group("é", []), Address(addr_spec="c@example.com")], Group("a, b", [Address("", "a", "x")]),
]  # fmt: skip
PARAMETERS = [
    '; filename="a.txt"', "; filename=a.txt", '; filename="a b.txt"', '; filename="é.txt"',
    f'; filename="{"x" * 90}.txt"', f'; filename="{"é" * 60}.txt"', '; filename="a\\"b"',
    f"; filename={'x' * 60}.txt; size=5", "; filename*=utf-8''%C3%A9.txt", "; a=b; c=d;", ";",
    "; =",
    "; filename*0=a; filename*1=b", "; filename*0*=utf-8''%C3%A9; filename*1=b", "; a=b; a=c",
    "; filename*1=b; filename*0=a", "; filename=", "; filename", '; filename=" a "', "; a=(c)b",
    '; filename="\udce9"', "; (c) a=b", "; filename=a b", '; filename="=?utf-8?q?=C3=A9?="',
    " ; a=b",
    ";a=b", ";  a=b", "; " + "; ".join(f"name{number}=value" for number in range(9)), "; a=b\tc",
]  # fmt: skip
OBJECTS = [
    *itertools.product(["To", "Cc", "Bcc", "From", "Reply-To", "Resent-To", "Sender"],
    ADDRESSES[:9]),
    *(("To", value) for value in ADDRESSES),
    *(("Sender", value) for value in ADDRESSES[9:40:3]),
    *(("From", value) for value in ADDRESSES[10::5]),
    *itertools.product(["Content-Disposition"], ["attachment" + each for each in PARAMETERS]),
    *itertools.product(["Content-Type"], ["text/plain" + each for each in PARAMETERS]),
    *itertools.product(
        ["Content-Disposition", "Content-Type", "Content-Transfer-Encoding", "MIME-Version"],
        ["", "a", "a/b", "text/plain (c)", "(c) 1.0", "1.0 (c)", "1 . 0", "8bit", "8bit (c)", "é",
        "a b"],
    ),
    *itertools.product(
        ["Date", "Resent-Date", "Orig-Date"],
        [LATE, LATE.replace(tzinfo=None), "", "Tue, 03 Feb 2026 04:05:06 +0000", "x", "é",
         "Tue, 3 Feb 2026 04:05:06 GMT (c)", "3 Feb 26 4:05 EST", "Tue, 03 Feb 2026 04:05:06 -0000",
         "0 Feb 2026", "Tue, 32 Feb 2026 04:05:06 +0000", "\t"],
    ),
    *itertools.product(
        ["Message-ID"],
        ["", "<a@x>", " <a@x> ", "a@x", "<a>", "<a@x> (c)", "<a@[1]>", "<é@x>", f"<{'a' * 90}@x>",
        "<a@x"],
    ),
    *itertools.product(
        ["Subject", "X-Y", "Comments", "In-Reply-To", "References", "List-Id"],
        [*PLAIN, *ENCODED, *LONG[:12], *CONTROLS[:3], *ESCAPED[:4], '"a" (b) <c>', 30 * "<a@x> "],
    ),
]  # fmt: skip


def with_objects(fields, policy=default):
    """Return an EmailMessage of the fields that this interpreter makes objects of."""
    message = EmailMessage(policy)
    for name, value in fields:
        try:
            made = policy.header_factory(name, value)
        except Exception:  # its parser has bugs of its own
            continue
        message.set_raw(name, made)
    message.set_payload("body\n")
    return message


@pytest.mark.parametrize("policy", POLICIES)
def test_header_objects(policy):
    for field in spread(OBJECTS, 6, policy, CORE[1:2]):
        check(with_objects([field]), policy=POLICIES[policy])


@pytest.mark.parametrize("policy", CUSTOM)
def test_header_objects_of_other_factories(policy):
    for field in spread(OBJECTS, 9, policy):
        check(with_objects([field]), policy=CUSTOM[policy])


def test_a_hundred_recipients():
    short = [Address("", f"r{number}", "example.com") for number in range(100)]
    long = [Address(f"The Recipient, No. {n}", f"r{n}", "example.com") for n in range(100)]
    accented = [Address(f"Zoë {number}", f"r{number}", "example.com") for number in range(20)]
    for value in (short, long, accented):
        message = with_objects([("To", value)])
        for policy in (email.policy.SMTP, compat32):
            check(message, policy=policy)
        check(with_field("To", ", ".join(map(str, value))))


@pytest.mark.parametrize("policy", ["SMTP", "default 40", "default 30", "SMTPUTF8", "compat32"])
def test_header_objects_of_about_the_longest_line(policy):
    policy = POLICIES[policy]
    limit = policy.max_line_length
    for name in ("Subject", "To", "Content-Disposition", "Message-ID", "X-Y"):
        for total in range(limit - 4, limit + 4):
            size = total - len(name) - 2
            values = (
                "x" * size,
                ("x y " * size)[:size],
                "x" * (size - 1) + " ",
                ("x" * (size - 5) + " <a@x>")[-size:],
                "a@" + "x" * max(size - 2, 1),
                "<a@" + "x" * max(size - 4, 1) + ">",
                "a@x, b@" + "x" * max(size - 7, 1),
                "attachment; filename=" + "x" * max(size - 21, 1),
                'attachment; filename="' + "x" * max(size - 24, 1) + ' "',
                "=?utf-8?q?" + "x" * max(size - 12, 1) + "?=",
            )
            for value in spread(values, 3, (name, total)):
                check(with_objects([(name, value)]), policy=policy)


def test_an_object_and_the_same_text_side_by_side():
    # Equal as keys of a dict, but the one is folded and the other left as it is.
    text = WORDS * 3
    for policy in (default, POLICIES["refold none"], compat32, POLICIES["default 30"]):
        for order in ((0, 1), (1, 0)):
            message = EmailMessage(policy)
            pair = (text, default.header_factory("Subject", text))
            for which in order:
                message.set_raw("Subject", pair[which])
                message.set_raw("X-Y", pair[which])
            check(message)


def test_policies_that_come_and_go():
    # Where one was, the next may be: an address is no name for it.
    for number in range(300):
        changes = {"max_line_length": 30 + number % 50, "cte_type": ("8bit", "7bit")[number % 2]}
        check(
            with_field("Subject", WORDS * 3),
            policy=(default, compat32)[number % 3 // 2].clone(**changes),
        )


class AllEqual(EmailPolicy):
    def __eq__(self, other):
        return True

    def __hash__(self):
        return hash(default)


class Unhashable(EmailPolicy):
    __hash__ = None

    def __eq__(self, other):
        return self is other


def test_policies_that_are_equal_or_have_no_hash():
    for limit in (30, 40, 50):
        for kind in (AllEqual, Unhashable):
            for linesep in ("\n", "\r\n", None):
                policy = kind(max_line_length=limit, linesep="\r")
                check(with_objects([("Subject", WORDS * 3)]), policy=policy, linesep=linesep)
                check(with_objects([("Subject", WORDS * 3)], policy), linesep=linesep)
        check(with_objects([("Subject", WORDS * 3)]), policy=default.clone(max_line_length=limit))


def test_a_class_is_mapped_to_the_registry_that_all_share():
    for policy in (default, email.policy.SMTP):
        before = dict(default.header_factory.registry)
        plain = written(with_field("Subject", WORDS * 3), policy=policy)
        policy.header_factory.map_to_type("subject", OwnFold)
        try:
            assert written(with_field("Subject", WORDS * 3), policy=policy) != plain
            assert b":\t" in written(with_objects([("Subject", "a")], policy))
        finally:
            policy.header_factory.registry.clear()
            policy.header_factory.registry.update(before)
        assert written(with_field("Subject", WORDS * 3), policy=policy) == plain


def test_a_policy_object_with_methods_of_its_own():
    for policy in (compat32.clone(), default.clone()):
        object.__setattr__(policy, "fold_binary", lambda name, value: b"X: own\r\n")
        assert b"X: own\r\n" in written(with_field("Subject", "a"), policy=policy)


def test_a_charset_that_is_registered_anew():
    before = dict(email.charset.CHARSETS)
    try:
        for body in (None, email.charset.BASE64, email.charset.QP):
            email.charset.add_charset("utf-8", email.charset.SHORTEST, body, "utf-8")
            for policy in ("compat32", "compat32 7bit", "default", "default 7bit"):
                message = MIMEText("caf\xe9\nFrom a\n", _charset="utf-8")
                message["Subject"] = "caf\xe9"
                check(message, policy=POLICIES[policy])
                check(email.message_from_bytes(EIGHT_BIT), policy=POLICIES[policy])
    finally:
        email.charset.CHARSETS.clear()
        email.charset.CHARSETS.update(before)


# -- bodies -------------------------------------------------------------------

EIGHT_BIT = (
    b"Subject: x\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\n"
    b"From caf\xc3\xa9\r\nFrom a\rFrom b\n"
)
PAYLOADS = [
    "", "\n", "a", "a\n", "a\r", "a\r\n", "a\rb\nc\r\nd", "\r\r\n\n\r", "\n\n", "a\n\n\r\n", "\r",
    "From a", "From a\nFrom b\n", "a\rFrom b", "a\r\nFrom b", "\nFrom ", "From", " From a",
    "from a",
    ">From a", "a From b", "a\n\rFrom b", "From From \n>From",
    *(f"a{end}From b" for end in LINE_ENDS),
    "x" * 998, "x" * 999 + "\n" + "y" * 2000, ".\n..\n.a", "a\0b", "\ufeff", "é", "é\nFrom a\n",
    "日本",
    "caf\udcc3\udca9", "From \udce9\nFrom \udce9\r\n", "\udce9\rFrom a\r\nFrom b", "\udce9" * 1000,
    "\udce9é", "\ud800", "\ud800\udce9", None, b"bytes", b"caf\xe9", 5, 0, (), ("a",), {}, [],
    [None],
    ["text"], [5], [b"bytes"], ["a", "b"], OtherText("text\n"), OtherText("\udce9"),
    NoMethods("a\nb"),
]  # fmt: skip
KINDS = [
    (),
    ("Content-Type: text/plain; charset=utf-8",),
    ("Content-Type: text/plain; charset=iso-8859-1", "Content-Transfer-Encoding: 8bit"),
    ("Content-Type: text/html; charset=us-ascii", "Content-Transfer-Encoding: 7bit"),
    ("Content-Type: text/plain; charset=bogus", "Content-Transfer-Encoding: base64"),
    ("Content-Transfer-Encoding: quoted-printable", "Content-Type: text/plain; charset=utf-8"),
    ("content-type: text/plain; charset=unknown-8bit; format=flowed", "Subject: \udce9"),
    ("Content-Type: text/plain; charset*=utf-8''utf%2D8", "Content-Type: text/plain"),
    ("Content-Type: application/octet-stream", "Content-Transfer-Encoding: 8bit"),
    ("Content-Type: multipart/mixed; boundary=b",),
    ("Content-Type: multipart/mixed",),
    ("Content-Type: multipart/signed; boundary=b", "Subject: " + WORDS * 3),
    ("Content-Type: message/rfc822",),
    ("Content-Type: message/delivery-status",),
    ("Content-Type: message/external-body; access-type=x",),
    ("Content-Type: message/partial", "Content-Transfer-Encoding: base64"),
]


def with_payload(fields, payload, policy=compat32):
    message = Message(policy)
    for field in fields:
        name, _, value = field.partition(": ")
        message.set_raw(name, value)
    message._payload = payload
    return message


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("policy", ["compat32", "default"])
def test_payloads(options, policy):
    for fields, payload in spread(itertools.product(KINDS, PAYLOADS), 8, (policy, options)):
        held = payload.copy() if isinstance(payload, list) else payload
        check(with_payload(fields, held, POLICIES[policy]), **options)


@pytest.mark.parametrize("options", OPTIONS)
def test_payloads_of_parts(options):
    outer = (KINDS[9], KINDS[11], KINDS[12], KINDS[13])
    cases = itertools.product(outer, KINDS[:9], PAYLOADS)
    for kind, fields, payload in spread(cases, 11, options):
        check(with_payload(kind, [with_payload(fields, payload, default)]), **options)


def test_from_is_mangled_by_default_unless_a_policy_says_otherwise():
    for policy, mangles in ((default, False), (compat32, True)):
        message = with_payload((), "From a\n", policy)
        assert written(message).endswith(b"\r\n>From a\r\n")
        assert written(message, policy=policy).endswith(b"\r\n>From a\r\n") is mangles


@pytest.mark.parametrize("mangle", [None, True, False, 0, 1, "", "x", []])
def test_mangle_from(mangle):
    for policy in (None, compat32, default, POLICIES["default 40"]):
        for payload in ("From a\nFrom b", "From \udce9\n", "a\r\nFrom b\rFrom c"):
            inner = with_payload(KINDS[1], payload)
            message = with_payload(KINDS[9], [inner, inner])
            message.preamble, message.epilogue = payload, payload
            check(message, policy=policy, mangle_from_=mangle)


AROUND = [None, "", "\n", "a", "From a\n", "a\rFrom b\r\nFrom c", "é", "\udce9", "a\n\n", 5, b"a"]


@pytest.mark.parametrize("options", OPTIONS)
def test_preamble_and_epilogue(options):
    for preamble, epilogue in spread(itertools.product(AROUND, AROUND), 2, options):
        message = with_payload(KINDS[9], [with_payload((), "a\n")])
        message.preamble, message.epilogue = preamble, epilogue
        check(message, **options)


@pytest.mark.parametrize(
    "linesep",
    ["", "\n", "\r", "\r\n", "\n\n", " ", "a", "é", "\udce9", 5, b"\n", OtherText("\n")],
)
def test_odd_lineseps(linesep):
    for policy in (None, compat32, default, email.policy.SMTPUTF8):
        for fields, payload in itertools.product(KINDS[:2], ("a\r\nb\rc\n", "", None, "\udce9\n")):
            check(with_payload(fields, payload), linesep=linesep, policy=policy)
            part = with_payload(fields, payload)
            for outer in KINDS[9:14]:
                check(with_payload(outer, [part, part]), linesep=linesep, policy=policy)


def test_the_linesep_of_the_policy_holds_where_none_is_given():
    message = with_payload(KINDS[1], "a\rb\nc\r\n", compat32.clone(linesep="\r"))
    assert written(message, linesep=None).endswith(b"\r\ra\rb\rc\r")
    assert written(message, linesep=None, policy=default).endswith(b"\n\na\nb\nc\n")
    assert written(message).endswith(b"\r\n\r\na\r\nb\r\nc\r\n")


# -- parts --------------------------------------------------------------------

BOUNDARIES = [
    ("boundary=b", "b"), ('boundary="b"', "b"), ('boundary="a b"', "a b"), ('boundary="b "', "b"),
    ('boundary=" b"', " b"), ("boundary*=us-ascii''b%20c", "b c"), ('boundary*0=b; boundary*1="c"',
    "bc"),
    ("boundary=", ""), ('boundary=""', ""), ("boundary", ""), ("boundary=\udce9", "\udce9"), ("",
    ""),
    ('boundary="=?utf-8?q?b?="', "=?utf-8?q?b?="), ("boundary=b; boundary=c", "b"), ("BOUNDARY=B",
    "B"),
    ("boundary=b (c)", "b"), ('boundary=\n "b"', "b"), ("\n\tboundary=b", "b"), ('boundary="b;c"',
    "b;c"),
    ("boundary='b'", "'b'"), ("boundary*=utf-8''%C3%A9", "é"), ("boundary=b;", "b"), ('boundary="b',
    '"b'),
    ('boundary="a\\"b"', 'a"b'), ("boundary=" + "b" * 100, "b" * 100), ("boundary=b\r\n", "b"),
    ('boundary="b\n"', "b"), ("boundary=b; charset=utf-8", "b"), ("boundary=<b>", "b"),
    ("; boundary=b", "b"),
    ("boundary = b", "b"), ("boundary =b", "b"), ("boundary==b", "=b"), ("boundary=é", "é"), ("=b",
    ""),
]  # fmt: skip


@pytest.mark.parametrize(
    "options", [*OPTIONS, {"policy": POLICIES["default 30"]}, {"policy": CUSTOM["fetches, email"]}]
)
def test_boundaries(options):
    cases = itertools.product(BOUNDARIES, ("mixed", "signed", "x y", ""), (compat32, default))
    for (parameter, _), kind, policy in spread(cases, 9, options):
        fields = (f"Content-Type: multipart/{kind}; {parameter}", "Subject: x")
        part = with_payload(KINDS[1], "a\n--b\nc\n")
        check(with_payload(fields, [part], policy), **options)
        check(with_payload((*fields, "Content-Type: text/plain"), [part], policy), **options)
        check(with_payload(("content-type: multipart/a", *fields), [part], policy), **options)


def without_boundary(text="a\n", parts=2):
    message = MIMEMultipart()
    message["Subject"] = "x"
    for _ in range(parts):
        message.attach(MIMEText(text))
    return message


@pytest.mark.parametrize("linesep", ["\n", "\r\n", "\r", None])
def test_a_boundary_is_not_in_the_text(linesep):
    drawn = written(without_boundary(), linesep=linesep)
    boundary = re.search(rb'boundary="(.*?)"', drawn)[1].decode()
    for line in (
        "--{}",
        "--{}--",
        "a--{}",
        "--{} ",
        "--{}-",
        "--{}.0",
        " --{}",
        "--{}\n\n--{}.0--\nx",
    ):
        for text in ("a\n{}\nb\n", "{}", "a\n{}", "{}\n", "\r{}\r"):
            made = text.format(line.format(boundary, boundary))
            message = without_boundary(made)
            message.preamble = made
            inner = without_boundary(made)
            inner.attach(without_boundary("c", parts=0))
            outer = without_boundary(made)
            outer.attach(MIMEMessage(inner))
            check(message, linesep=linesep)
            check(outer, linesep=linesep)


@pytest.mark.parametrize("policy", ALL_POLICIES)
def test_boundaries_are_drawn_in_the_order_of_the_parts(policy):
    def made():
        message = without_boundary()
        message.attach(without_boundary())
        message.attach(MIMEMessage(without_boundary("From a\n")))
        message.attach(HasHeaders("own"))
        message.attach(without_boundary("é"))
        message.attach(email.message_from_bytes(EIGHT_BIT))
        message.attach(MIMEMultipart("signed"))
        message["To"] = WORDS * 3
        return message

    check(made())
    check(made(), policy=ALL_POLICIES[policy])


def test_a_boundary_cannot_be_put_where_there_is_no_content_type():
    message = Message()
    message.set_default_type("multipart/mixed")
    message.attach(MIMEText("a"))
    assert check(message) is email.errors.HeaderParseError
    message = EmailMessage()
    message.set_default_type("multipart/mixed")
    message.attach(MIMEText("a"))
    check(message)


def test_a_message_that_is_refused_is_left_as_it_was():
    message = without_boundary()
    message.attach(without_boundary())
    message.attach(email.message_from_bytes(EIGHT_BIT))
    message.attach(with_payload((), "é"))
    assert check(message) is UnicodeEncodeError


@pytest.mark.parametrize(
    "kind",
    [
        "text/plain", "TEXT/PLAIN", "text", "text/", "/", "/plain", "a/b/c", "multipart/SIGNED",
        "é/é",
        "multipart/signed-x", "message/delivery_status", "message-delivery/status", "message/x",
        "multipart-signed/x", "multipart_signed/x", "message-delivery-status/x", "multi-part/x",
        "message_delivery/status", "multipart /mixed", "multipart/ mixed", " multipart/mixed ",
        "multipart", "message", "multipart/report", "message/global", "message/http", "text-x/y",
        "write/headers", "make/boundary", "message/RFC822", "multipart/mixed(c)",
        "(c) multipart/mixed",
        "\"multipart\"/mixed", "multipart/mi\nxed", "multipart/mixed\n",
        "=?utf-8?q?multipart?=/mixed",
        "multipart/\udce9", "\udce9/mixed", "text\0/plain", "multipart/mixed, text/plain",
        "message /x",
    ],
)  # fmt: skip
def test_which_handler_a_content_type_gets(kind):
    def payloads():
        inner = with_payload(KINDS[1], "a\nFrom b\n")
        return "a\nFrom b\n", [inner], [inner, inner], inner, None, "\udce9", [inner, None]

    for policy, options in spread(itertools.product((compat32, default), OPTIONS), 5, kind):
        for fields in ((f"Content-Type: {kind}",), (f"Content-Type: {kind}; boundary=b",)):
            for payload in payloads():
                check(with_payload(fields, payload, policy), **options)


@pytest.mark.parametrize(
    "default_type", ["text/plain", "message/rfc822", "multipart/mixed", "a", "a/b", ""]
)
def test_default_types(default_type):
    for payload, options in itertools.product(("a", [MIMEText("a")], None), OPTIONS):
        part = with_payload((), payload)
        part.set_default_type(default_type)
        check(with_payload(("Content-Type: multipart/digest; boundary=b",), [part]), **options)
        check(with_payload(("Content-Type: multipart/digest; boundary=b",), [part]), linesep="\n")


@pytest.mark.parametrize("options", OPTIONS)
def test_delivery_status(options):
    for texts in (
        [],
        [""],
        ["a"],
        ["", ""],
        ["a\n", "b\n\n"],
        ["\n", "\r\n"],
        ["\udce9\n"],
        ["a", "b", ""],
    ):
        for fields in ((), ("Action: failed",), ("Action: " + WORDS * 3, "Status: 5.0.0")):
            blocks = [with_payload(fields, text) for text in texts]
            status = with_payload(KINDS[13], blocks)
            check(status, **options)
            check(
                with_payload(("Content-Type: multipart/report; boundary=b",), [status, status]),
                **options,
            )


def test_headers_in_a_signed_part_are_not_folded():
    for policy in POLICIES.values():
        inner = with_payload(("Subject: " + WORDS * 3,), "a\n")
        deeper = with_payload(
            KINDS[9], [inner, MIMEMessage(with_objects([("Subject", WORDS * 3)]))]
        )
        for kind in (KINDS[11], ("Content-Type: multipart/signed", "Subject: " + WORDS * 3)):
            check(with_payload(kind, [inner, deeper]), policy=policy)
    inner = with_payload(("Subject: " + WORDS * 3,), "a\n")
    assert WORDS.encode() * 3 in written(with_payload(KINDS[11], [inner]))


def test_one_part_in_two_places():
    for options in OPTIONS:
        part, eight_bit = without_boundary("From a\n"), email.message_from_bytes(EIGHT_BIT)
        check(with_payload(KINDS[9], [part, eight_bit, part, eight_bit]), **options)


def test_a_message_in_itself():
    message = MIMEMultipart(boundary="b")
    message.attach(message)
    assert check(message) is RecursionError
    for kind in ("message/rfc822", "message/delivery-status", "multipart/signed; boundary=b"):
        message = with_payload((f"Content-Type: {kind}",), [])
        message._payload.append(message)
        assert check(message) is RecursionError


def test_deeply_nested():
    for wrap in (lambda inner: with_payload(KINDS[9], [inner]), MIMEMessage):
        message = MIMEText("From a\n")
        for _ in range(60):
            message = wrap(message)
        check(message)
        check(message, policy=default)


@pytest.mark.parametrize("message", [None, "text", b"bytes", 5, [], object(), Message, {}])
def test_what_is_no_message(message):
    # Of what has no header nothing else is known.
    for options in ({}, {"policy": default}, {"linesep": None}):
        assert isinstance(check(message, **options), type)


@pytest.mark.parametrize("policy", ["x", 5, Compat32, object(), {}])
def test_what_is_no_policy(policy):
    assert isinstance(check(MIMEText("a"), policy=policy), type)


class Duck:
    """A message, as far as BytesGenerator asks."""

    def __init__(self, message):
        self.__dict__.update(message=message, policy=message.policy)

    def __getattr__(self, name):
        return getattr(self.message, name)


def test_what_is_like_a_message():
    for options in OPTIONS:
        check(Duck(MIMEText("From a\n")), **options)
        check(with_payload(KINDS[9], [Duck(MIMEText("From a\n")), MIMEText("b")]), **options)
        check(Duck(with_payload(KINDS[9], [MIMEText("a")])), **options)


# -- messages of other classes ------------------------------------------------


class Own(Message):
    def __init__(self, payload="own\nFrom own\n", policy=compat32, kind="text/plain"):
        super().__init__(policy)
        self.set_raw("Content-Type", kind)
        self.set_raw("Subject", WORDS * 3)
        self.set_payload(payload)


class Unchanged(Own):
    pass


class HasPayload(Own):
    def get_payload(self, i=None, decode=False):
        return "of get_payload\nFrom it\n"


class HasType(Own):
    def get_content_type(self):
        return "message/rfc822" if isinstance(self._payload, list) else "text/plain"


class HasMainType(Own):
    def get_content_maintype(self):
        return "message"


class HasSubtype(Own):
    def get_content_subtype(self):
        return "signed"


class HasItems(Own):
    def raw_items(self):
        return iter([("X-Own", "item"), *super().raw_items(), ("Subject", "other")])


class HasOddItems(Own):
    def raw_items(self):
        return iter([("X-Own", "item", "third")])


class HasBoundary(Own):
    def get_boundary(self, failobj=None):
        return "own boundary"


class SetsBoundary(Own):
    def set_boundary(self, boundary):
        super().set_boundary("another")


class HasHeaders(Own):
    def _write_headers(self, generator):
        generator.write(f"X-Own: {generator.policy.max_line_length} {self.policy.linesep!r}\n\n")


class HasHeadersTwice(Own):
    def _write_headers(self, generator):
        generator._write_headers(self)
        generator._fp.write(b"twice\r\n")
        generator.clone(generator._fp).flatten(MIMEText("within"))


class HasParam(Own):
    def get_param(self, param, failobj=None, header="content-type", unquote=True):
        return "own"


class HasGet(Own):
    def get(self, name, failobj=None):
        return "multipart/mixed; boundary=own" if name == "content-type" else None


class HasParameters(Own):
    def _get_params_preserve(self, failobj, header):
        return [("multipart/mixed", ""), ("boundary", "own"), ("charset", "latin-1")]


class HasCharset(Own):
    def get_content_charset(self, failobj=None):
        return "latin-1"


class HasDefects(Own):
    def __getitem__(self, name):
        raise KeyError(name)

    __contains__ = __getitem__


class NotEqual(Own):
    __hash__ = None

    def __eq__(self, other):
        raise TypeError

    def __len__(self):
        return 0


class HasPolicy(Own):
    """Refuses that its policy is set."""

    @property
    def policy(self):
        return compat32

    @policy.setter
    def policy(self, value):
        self.__dict__.setdefault("first", value)


class HasPreamble(Own):
    preamble = property(lambda self: "own preamble\nFrom it", lambda self, value: None)
    epilogue = property(lambda self: "own epilogue", lambda self, value: None)


class HasDefaultType(Own):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        del self["Content-Type"]

    def get_default_type(self):
        return "multipart/mixed"


class Refuses(Own):
    def raw_items(self):
        raise KeyError


class Catches(Own):
    def __getattribute__(self, name):
        if name == "_headers":
            return [("X-Caught", "y"), ("Content-Type", "text/plain")]
        return super().__getattribute__(name)


class OwnEmail(EmailMessage):
    def get_payload(self, i=None, decode=False):
        return "of get_payload\n"


OWN = [
    Unchanged, HasPayload, HasType, HasMainType, HasSubtype, HasItems, HasOddItems, HasBoundary,
    SetsBoundary, HasHeaders, HasHeadersTwice, HasParam, HasGet, HasPolicy, HasPreamble,
    HasDefaultType,
    HasParameters, HasCharset, HasDefects, NotEqual, Refuses, Catches,
]  # fmt: skip


@pytest.mark.parametrize("kind", OWN)
def test_classes_that_override(kind):
    def payloads():
        yield "a\nFrom b\n"
        yield "\udce9\nFrom b\n"
        yield [MIMEText("From a\n"), kind()]

    contents = ["text/plain", "multipart/mixed; boundary=b", "multipart/mixed", "message/rfc822"]
    for options, content in spread(itertools.product(OPTIONS, contents), 6, kind.__name__):
        for payload in payloads():
            check(kind(payload, kind=content), **options)
            check(kind(payload, policy=default, kind=content), **options)
            part = kind(payload, kind=content)
            check(with_payload(KINDS[9], [MIMEText("a"), part, MIMEText("b")]), **options)
            check(with_payload(KINDS[11], [part, part]), **options)
            check(with_payload(KINDS[12], [part]), **options)


def test_a_class_that_overrides_of_the_new_kind():
    for options in OPTIONS:
        message = OwnEmail()
        message["Subject"] = WORDS * 3
        message.set_content("a\n")
        check(message, **options)
        check(with_payload(KINDS[9], [message]), **options)


class Fields(list):
    def copy(self):
        return [("X-Copy", "y")]


@pytest.mark.parametrize("policy", [compat32, default])
def test_objects_with_methods_of_their_own(policy):
    for name, method in (
        ("get_payload", lambda i=None, decode=False: "of get_payload\n"),
        ("get_content_type", lambda: "text/x"),
        ("get_content_maintype", lambda: "multipart"),
        ("raw_items", lambda: iter([("X-Own", "item")])),
        ("get_boundary", lambda failobj=None: "own"),
        ("set_boundary", lambda boundary: None),
        ("_write_headers", lambda generator: generator.write("X-Own: field\n\n")),
        ("_headers", Fields([("A", "b")])),
    ):
        for fields, payload in (((), "a\n"), (KINDS[10], [MIMEText("a")])):
            message = with_payload(fields, payload, policy)
            setattr(message, name, method)
            check(message)
            check(with_payload(KINDS[9], [message, MIMEText("b")]))


@pytest.mark.parametrize("name", ["_payload", "_headers", "preamble", "epilogue", "_default_type"])
def test_a_message_that_lacks_what_others_have(name):
    for fields, payload in (((), "a\n"), (KINDS[9], [MIMEText("a")]), (KINDS[12], [MIMEText("a")])):
        for outer in (False, True):
            message = with_payload(fields, payload)
            delattr(message, name)
            if outer:
                message = with_payload(KINDS[9], [message])
            before = state(message)
            ours = outcome(serialize, message)
            assert list(map(id, state(message))) == list(map(id, before))
            assert ours == outcome(generated, message)


def test_the_name_of_the_mail_box_line_is_not_written():
    message = MIMEText("a")
    message.set_unixfrom("From nobody Thu Jan  1 00:00:00 1970")
    assert written(message).startswith(b"Content-Type")


# -- what programs build ------------------------------------------------------


def built():
    """Yield messages as their constructors and content managers make them."""
    for policy in (default, email.policy.SMTP, email.policy.SMTPUTF8):
        for text in (
            "Hello\n",
            "caf\xe9\n",
            "x" * 1200 + "\n",
            "é" * 700 + "\n",
            "From a\nFrom b\n",
            "",
        ):
            for cte in (None, "8bit", "base64", "quoted-printable"):
                message = EmailMessage(policy)
                message["From"] = Address("Zoë", "zoe", "example.com")
                message["To"] = "A <a@example.com>, b@example.com"
                message["Subject"] = " ".join(text[:100].split())
                message["Date"] = LATE
                try:
                    message.set_content(text, cte=cte)
                except ValueError:
                    continue
                yield message
        message = EmailMessage(policy)
        message.set_content("caf\xe9\n")
        message.add_alternative("<p>caf\xe9", subtype="html")
        message.get_payload()[1].add_related(b"\0\xff" * 99, "image", "png", cid="<c@example.com>")
        message.add_attachment("From a\n", filename="a long file name " * 9 + ".txt")
        message.add_attachment(
            b"\xff" * 300, maintype="application", subtype="pdf", filename="é.pdf"
        )
        inner = EmailMessage(policy)
        inner["Subject"] = WORDS * 3
        inner.set_content("inner\n", params={"format": "flowed"})
        message.add_attachment(inner)
        yield message
    for policy in (compat32, default):
        message = MIMEMultipart("related", boundary="=_b", policy=policy, type="text/html")
        message["Subject"] = "caf\xe9"
        message.attach(MIMEText("caf\xe9", "html", "iso-8859-1", policy=policy))
        message.attach(MIMEImage(b"\x89PNG" * 30, "png", policy=policy, name="a.png"))
        message.attach(MIMEApplication(b"\0" * 100, policy=policy))
        attachment = MIMEBase("application", "x", policy=policy)
        attachment.set_payload("raw\r\nFrom it")
        attachment.add_header("Content-Disposition", "attachment", filename=("utf-8", "", "é.txt"))
        message.attach(attachment)
        yield message
        yield MIMEMessage(message, policy=policy)
    part = MIMEPart()
    part.set_content("part\n")
    yield part


@functools.cache
def all_built():
    return list(built())


@pytest.mark.parametrize("policy", [None, *ALL_POLICIES])
def test_built_messages(policy):
    for linesep in ("\r\n", None):
        for message in spread(all_built(), 11, (policy, linesep)):
            check(copy.deepcopy(message), policy=ALL_POLICIES.get(policy), linesep=linesep)


def text_of(*fragments, **options):
    return st.lists(st.sampled_from(fragments), **options).map("".join)


TEXTS = text_of(
    "a", "word ", "From ", "\nFrom ", "\n", "\r", "\r\n", "\t", ".", "\n.", "é", "日本", "x" * 80,
    "--b",
    "\n--b\n", "\n--b--\n", "\x85", "\x0c", "=", "\0", "x" * 998, " ", "\n\n", max_size=8,
)  # fmt: skip
ASCII_TEXTS = TEXTS.map(lambda text: text.encode("ascii", "ignore").decode())
ESCAPED_TEXTS = st.tuples(TEXTS, st.sampled_from(["utf-8", "latin-1"])).map(
    lambda pair: pair[0].encode(pair[1], "replace").decode("ascii", "surrogateescape")
)
FIELD_NAMES = st.sampled_from(
    ["Subject", "subject", "To", "From", "Cc", "Bcc", "Date", "Message-ID", "X-Y", "MIME-Version",
    "Sender",
     "Content-Disposition", "Content-Description", "Reply-To", "References",
     "Content-Transfer-Encoding"]
)  # fmt: skip
FIELD_VALUES = st.one_of(
    st.sampled_from(VALUES),
    st.sampled_from([value for value in ADDRESSES if isinstance(value, str)]),
    st.sampled_from(["attachment" + each for each in PARAMETERS]),
    text_of(
        "a", "word ", " ", "  ", "\t", ",", ", ", ";", ".", '"', "(", ")", "<", ">", "@", "a@x",
        ":", "\\",
        "=?utf-8?q?=C3=A9?=", "=?", "?=", "é", "日本", "🎉", "x" * 20, "x" * 60, "\n ", "\r\n\t",
        "\r\n ",
        "\0", "\x7f", "\xa0", "\u2028", "; a=b", '; a="b c"', "; a*0=b", "*=", "%C3", "\udce9",
        "\x0b",
        max_size=12,
    ),
)  # fmt: skip
CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "cte_type": st.sampled_from(["7bit", "8bit"]),
        "max_line_length": st.sampled_from([0, None, 30, 40, 76, 77, 78, 79, 998]),
        "mangle_from_": st.booleans(),
        "linesep": st.sampled_from(["\n", "\r\n", "\r"]),
        "raise_on_defect": st.booleans(),
    },
)
EMAIL_CHANGES = st.fixed_dictionaries(
    {}, optional={"refold_source": st.sampled_from(["none", "long", "all"]), "utf8": st.booleans()}
)
ANY_POLICY = st.one_of(
    st.sampled_from(list(ALL_POLICIES.values())),
    CHANGES.map(lambda changes: compat32.clone(**changes)),
    st.tuples(CHANGES, EMAIL_CHANGES).map(lambda both: default.clone(**both[0], **both[1])),
)
ANY_OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "policy": st.none() | ANY_POLICY,
        "linesep": st.sampled_from([None, "\r\n", "\n", "\r"]),
        "mangle_from_": st.sampled_from([None, True, False]),
    },
)


def tried(call, *arguments, **options):
    """Call it; what it refuses is not what is tested here."""
    try:
        return call(*arguments, **options)
    except Exception:
        return None


def raw(policy, kind, payload):
    message = Message(policy)
    if kind:
        message.set_raw("Content-Type", kind)
    message._payload = payload
    return message


def mime_text(text, subtype, charset, policy):
    return tried(MIMEText, text, subtype, charset, policy=policy) or MIMEText("", policy=policy)


def with_content(text, policy, **options):
    message = EmailMessage(policy)
    tried(message.set_content, text, **options)
    return message


LEAVES = st.one_of(
    st.builds(
        mime_text,
        TEXTS | ESCAPED_TEXTS,
        st.sampled_from(["plain", "html"]),
        st.sampled_from([None, "utf-8", "us-ascii", "iso-8859-1"]),
        st.sampled_from([compat32, default]),
    ),
    st.builds(
        raw,
        ANY_POLICY,
        st.sampled_from(
            [None, "text/plain", "text/plain; charset=utf-8", "text/plain; charset=latin-1",
            "image/png",
             "application/x", "message/rfc822", "message/delivery-status", "message/external-body",
             "multipart/mixed; boundary=b", "multipart/signed", "text/plain; charset=bogus", "x"]
        ),
        st.one_of(ASCII_TEXTS, ASCII_TEXTS, ESCAPED_TEXTS, TEXTS, st.none()),
    ),
    st.builds(
        with_content,
        TEXTS,
        st.sampled_from([default, email.policy.SMTP, email.policy.SMTPUTF8]),
        cte=st.sampled_from([None, "7bit", "8bit", "base64", "quoted-printable"]),
        charset=st.sampled_from(["utf-8", "latin-1", "us-ascii"]),
    ),
    st.builds(
        with_content,
        st.binary(max_size=100),
        st.just(default),
        maintype=st.just("image"),
        subtype=st.just("png"),
        cte=st.sampled_from(["base64", "8bit", "7bit", "quoted-printable"]),
        filename=st.sampled_from(["a.png", "é.png", "x" * 90]),
    ),
    st.builds(MIMEImage, st.binary(max_size=60), st.just("gif")),
    st.builds(MIMEApplication, st.binary(max_size=60), policy=st.sampled_from([compat32, default])),
    st.builds(lambda kind, text: kind(text), st.sampled_from(OWN), ASCII_TEXTS),
)  # fmt: skip


def multipart(subtype, boundary, parts, preamble, epilogue, policy):
    message = MIMEMultipart(subtype, boundary, policy=policy)
    for part in parts:
        if subtype == "digest":
            part.set_default_type("message/rfc822")
        message.attach(part)
    message.preamble, message.epilogue = preamble, epilogue
    return message


def with_parts(text, parts, methods, policy):
    message = with_content(text, policy)
    for part, method in zip(parts, methods, strict=False):
        tried(getattr(message, method), part)
    return message


def containers(inner):
    parts = st.lists(inner, max_size=3)
    around = st.none() | ASCII_TEXTS | ESCAPED_TEXTS
    return st.one_of(
        st.builds(
            multipart,
            st.sampled_from(["mixed", "alternative", "signed", "digest", "report", "related"]),
            st.sampled_from([None, None, "b", "a b", "=_b", "c"]),
            parts,
            around,
            around,
            st.sampled_from([compat32, default]),
        ),
        st.builds(
            with_parts,
            TEXTS,
            parts,
            st.lists(
                st.sampled_from(["add_attachment", "add_related", "add_alternative", "attach"]),
                min_size=3,
                max_size=3,
            ),
            st.sampled_from([default, email.policy.SMTP]),
        ),
        st.builds(
            raw,
            ANY_POLICY,
            st.sampled_from(
                ["message/rfc822", "message/delivery-status", "message/external-body",
                "multipart/mixed",
                 "multipart/mixed; boundary=b", "multipart/signed; boundary=c", "message/partial"]
            ),
            parts | inner,
        ),
        inner.map(MIMEMessage),
    )  # fmt: skip


def add_fields(message, raws, texts, policy):
    for name, value in raws:
        message.set_raw(name, value)
    for name, value in texts:
        made = tried(policy.header_factory, name, value)
        if made is not None:
            message.set_raw(name, made)
    return message


PAIRS = st.lists(st.tuples(FIELD_NAMES, FIELD_VALUES), max_size=2)


def with_fields(messages):
    return st.builds(add_fields, messages, PAIRS, PAIRS, st.just(default))


TREES = with_fields(
    st.recursive(with_fields(LEAVES), lambda inner: with_fields(containers(inner)), max_leaves=5)
)


@pytest.mark.filterwarnings("ignore:Generating overly large repr")
@examples(180)
@given(message=TREES, options=ANY_OPTIONS)
def test_any_tree(message, options):
    check(message, **options)


@pytest.mark.filterwarnings("ignore:Generating overly large repr")
@examples(180)
@given(
    name=FIELD_NAMES | st.sampled_from([name for name in ODD_NAMES if isinstance(name, str)]),
    value=FIELD_VALUES,
    options=ANY_OPTIONS,
    as_object=st.booleans(),
)
def test_any_field(name, value, options, as_object):
    check(with_objects([(name, value)]) if as_object else with_field(name, value), **options)


LONG_VALUES = st.lists(
    st.tuples(
        st.sampled_from(["", '"', "(", "<", "é", "a@", "=?utf-8?q?"]) | st.just(""),
        st.integers(0, 40) | st.integers(60, 90),
        st.sampled_from(
            [" ", " ", " ", ", ", "; ", "  ", "\t", ",", '" ', ") ", "> ", "@x, ", "?= ", ";a="]
        ),
    ),
    max_size=9,
).map(lambda words: "".join(start + "x" * size + end for start, size, end in words))


@pytest.mark.filterwarnings("ignore:Generating overly large repr")
@examples(180)
@given(
    name=FIELD_NAMES,
    value=LONG_VALUES,
    policy=st.sampled_from([compat32, default, email.policy.SMTPUTF8, POLICIES["refold all"]]),
    limit=st.sampled_from([30, 40, 76, 77, 78, 79]),
    as_object=st.booleans(),
)
def test_any_long_field(name, value, policy, limit, as_object):
    message = with_objects([(name, value)]) if as_object else with_field(name, value)
    check(message, policy=policy.clone(max_line_length=limit))


@pytest.mark.filterwarnings("ignore:Generating overly large repr")
@examples(150)
@given(
    fields=st.sampled_from(KINDS),
    payload=ASCII_TEXTS | ESCAPED_TEXTS | st.text(max_size=20),
    options=ANY_OPTIONS,
    policy=st.sampled_from([compat32, default]),
)
def test_any_payload(fields, payload, options, policy):
    check(with_payload(fields, payload, policy), **options)


# -- what was received --------------------------------------------------------

SOURCE_FIELDS = [
    b"From: a@example.com", b"To: A <a@example.com>,\n B <b@example.com>", b"Subject: plain",
    b"Subject:", b"Subject: ", b"Subject:no space", b"Subject:\ttab", b"Subject: a \n b ",
    b"X-Y: a\n",
    b"Subject:\n folded at once", b"Subject: a\n\tb\n  c", b"Subject: a\n \n b",
    b"Subject: " + b"x" * 90,
    b"Subject: " + WORDS.encode() * 3, b"Subject: =?utf-8?q?caf=C3=A9?=\n =?utf-8?q?a?=",
    b" leading",
    b"Subject: caf\xc3\xa9", b"To: \xff <a@example.com>", b"Subject: caf\xe9 " + WORDS.encode() * 2,
    b"no colon", b": no name", b"a b: c", b"caf\xe9: c", b"Date: Tue, 3 Feb 2026 04:05:06 GMT",
    b"Date: then", b"Message-ID: <a@example.com>", b"MIME-Version: 1.0", b"MIME-Version: 1.0 (c)",
    b"From someone Tue Feb  3 04:05:06 2026", b">From someone", b"X-Y: a\x0bb\x0cc\x1cd\x85e",
    b"X-Y: a\0b",
    b"Content-Transfer-Encoding: 8bit", b"Content-Transfer-Encoding: base64",
    b"Subject: trailing  ",
    b"Content-Transfer-Encoding: quoted-printable",
    b"Content-Disposition: attachment;\n filename=a.txt",
    b"Content-Disposition: attachment; filename*0*=utf-8''%C3%A9;\n filename*1=b", b"X-Y: a\rb",
    b"To: " + b",\n\t".join(b"r%d@example.com" % number for number in range(9)),
    b"Bcc: b@example.com",
]  # fmt: skip
SOURCE_TYPES = [
    b"", b"Content-Type: text/plain", b"Content-Type: text/plain; charset=utf-8", b"Content-Type:",
    b"Content-Type: text/plain; charset=iso-8859-1",
    b"Content-Type: text/html;\n charset=\"us-ascii\"",
    b"Content-Type: message/rfc822", b"Content-Type: message/delivery-status",
    b"Content-Type: text",
    b"Content-Type: message/external-body", b"Content-Type: application/octet-stream; name=\"a b\"",
    b"Content-Type: text/plain\nContent-Type: multipart/mixed; boundary=b",
    b"Content-Type: multipart/mixed",
    b"Content-Type: text/plain; charset=\xe9", b"Content-Type: \xe9/\xe9; charset=utf-8",
    b"content-type: TEXT/PLAIN; CHARSET=UTF-8", b"Content-Type: text/plain; charset=unknown-8bit",
]  # fmt: skip
SOURCE_LINES = [
    b"text", b"", b"From here", b">From there", b"caf\xe9", b"caf\xc3\xa9", b"From \xff",
    b"x" * 1000, b" ",
    b".", b"..a", b"--b", b"--b--", b"--c", b"--", b"Y2Fm6Q==", b"=E9=", b"a\rb", b"\rFrom x",
    b"trailing ",
    b"Subject: in the body", b"\x0c", b"--b ", b"--b--x", b"\0",
]  # fmt: skip


def leaf_source(fields, kind, lines, ended):
    header = b"\n".join([*fields, kind] if kind else fields)
    return header + b"\n\n" * bool(header) + b"\n".join(lines) + b"\n" * ended


def multipart_source(fields, subtype, boundary, parts, around, closed):
    parameter, delimiter = (each.encode("utf-8", "surrogateescape") for each in boundary)
    lines = [*fields, b"Content-Type: multipart/" + subtype + b"; " + parameter, b""]
    preamble, epilogue = around
    if preamble is not None:
        lines.append(preamble)
    for part in parts:
        lines += [b"--" + delimiter, part]
    if closed:
        lines.append(b"--" + delimiter + b"--")
    if epilogue is not None:
        lines.append(epilogue)
    return b"\n".join(lines)


def in_message(fields, inner):
    return b"\n".join([*fields, b"Content-Type: message/rfc822", b"", inner])


SOURCE_HEADER = st.lists(st.sampled_from(SOURCE_FIELDS), max_size=3)
SOURCE_BODY = st.lists(st.sampled_from(SOURCE_LINES), max_size=4)
SOURCES = st.recursive(
    st.builds(
        leaf_source, SOURCE_HEADER, st.sampled_from(SOURCE_TYPES), SOURCE_BODY, st.booleans()
    ),
    lambda inner: st.one_of(
        st.builds(
            multipart_source,
            SOURCE_HEADER,
            st.sampled_from([b"mixed", b"alternative", b"signed", b"digest", b"report", b"MIXED"]),
            st.sampled_from(BOUNDARIES[:3]) | st.sampled_from(BOUNDARIES),
            st.lists(inner, max_size=3),
            st.tuples(*[st.none() | SOURCE_BODY.map(b"\n".join)] * 2),
            st.booleans(),
        ),
        st.builds(in_message, SOURCE_HEADER, inner),
    ),
    max_leaves=5,
)
SOURCE_NEWLINES = st.sampled_from([b"\n", b"\n", b"\r\n", b"\r\n", b"\r", b"\r\r\n"])


def parsed(source, policy):
    try:
        return email.message_from_bytes(source, policy=policy)
    except Exception:  # strict ones refuse it, and its parser has bugs of its own
        return email.message_from_bytes(source)


@pytest.mark.filterwarnings("ignore:Generating overly large repr")
@examples(180)
@given(source=SOURCES, newline=SOURCE_NEWLINES, policy=ANY_POLICY, options=ANY_OPTIONS)
@example(source=EIGHT_BIT, newline=b"\n", policy=compat32, options={"policy": default})
def test_any_received_message(source, newline, policy, options):
    check(parsed(source.replace(b"\n", newline), policy), **options)


@pytest.mark.filterwarnings("ignore:Generating overly large repr")
@examples(150)
@given(
    lines=st.lists(
        st.tuples(
            st.sampled_from([*SOURCE_FIELDS, *SOURCE_TYPES, *SOURCE_LINES])
            | st.sampled_from(BOUNDARIES).map(
                lambda each: f"Content-Type: multipart/x; {each[0]}".encode(
                    "utf-8", "surrogateescape"
                )
            ),
            st.sampled_from([b"\n", b"\r\n", b"\r", b"\n\n", b""]),
        ),
        max_size=12,
    ),
    policy=ANY_POLICY,
    options=ANY_OPTIONS,
)
def test_any_lines(lines, policy, options):
    try:
        message = parsed(b"".join(itertools.chain.from_iterable(lines)), policy)
    except Exception:
        return  # there are headers that the parser of the email package breaks down on
    check(message, **options)


# -- CPython's own messages and tests -----------------------------------------

needs_cpython_tests = pytest.mark.skipif(
    cpython_tests is None and platform.python_implementation() != "CPython",
    reason="this interpreter comes without CPython's test package",
)


@needs_cpython_tests
@pytest.mark.parametrize("policy", ["compat32", "default", "SMTP", "SMTPUTF8", "strict"])
def test_the_messages_of_cpython(policy):
    files = sorted(Path(cpython_tests.__file__).with_name("data").glob("*.txt"))
    assert len(files) > 40
    others = [
        None,
        compat32,
        default,
        email.policy.SMTPUTF8,
        POLICIES["refold all"],
        POLICIES["compat32 7bit"],
    ]
    for number, file in enumerate(files):
        source = file.read_bytes()
        for which in range(2):
            other = others[(number + which * 2) % len(others)]
            check(parsed(source, POLICIES[policy]), policy=other, linesep=(None, "\r\n")[which])


CPYTHON_SUITES = [
    *(f"test.test_email.{name}" for name in ("test_generator", "test_inversion", "test_message")),
    *(
        f"test.test_email.test_email.{name}"
        for name in (
            "Test8BitBytesHandling", "TestBytesGeneratorIdempotentNL",
            "TestBytesGeneratorIdempotentCRLF",
            "TestMessageAPI", "TestMultipart", "TestMIMEMessage", "TestNonConformant",
            "TestFromMangling",
            "TestMIMEText", "TestMIMEImage", "TestMIMEApplication", "TestSigned", "TestParsers",
        )
    ),
]  # fmt: skip
#: These (3.14) look for the boundary in the message afterwards, where serialize() leaves none.
LEFT_ALONE = ("test_crlf_boundary_detection", "test_lf_boundary_detection")
RUN_WITH_SERIALIZE = """
import json, os, sys, unittest, warnings
from email.generator import BytesGenerator
sys.path.insert(0, sys.argv[1])
from run_cpython_suite import Outcomes
from fastsmtp import serialize
flatten, calls = BytesGenerator.flatten, []
def flatten_by_serialize(self, msg, unixfrom=False, linesep=None):
    if unixfrom or self.maxheaderlen is not None or type(self) is not BytesGenerator:
        return flatten(self, msg, unixfrom, linesep)
    BytesGenerator.flatten = flatten  # for what serialize() leaves to it
    try:
        calls.append(linesep)
        options = {"policy": self.policy, "mangle_from_": self._mangle_from_}
        self._fp.write(serialize(msg, linesep=linesep, **options))
    finally:
        BytesGenerator.flatten = flatten_by_serialize
if sys.argv[2] == "serialize":
    BytesGenerator.flatten = flatten_by_serialize
warnings.simplefilter("ignore")
outcomes = Outcomes()
unittest.defaultTestLoader.loadTestsFromNames(sys.argv[3:]).run(outcomes)
print()
print(json.dumps([len(calls), outcomes.outcomes]))
"""


def cpython_outcomes(how):
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            RUN_WITH_SERIALIZE,
            str(Path(__file__).parent),
            how,
            *CPYTHON_SUITES,
        ],
        check=False,  # what it printed says more
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    calls, outcomes = json.loads(done.stdout.splitlines()[-1])
    return calls, {name: reason[0] for name, reason in outcomes.items()}, outcomes


@needs_cpython_tests
def test_the_tests_of_cpython():
    _, expected, _ = cpython_outcomes("generator")
    calls, found, reasons = cpython_outcomes("serialize")
    assert calls > 100
    assert len(expected) > 400
    changed = [
        name
        for name in expected
        if found.get(name) != expected[name] and not name.endswith(LEFT_ALONE)
    ]
    assert not changed, [reasons.get(name) for name in changed]
    assert found.keys() == expected.keys()


# -- threads ------------------------------------------------------------------


@pytest.fixture
def switching():
    """Threads that take turns as often as the interpreter lets them."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def shared():
    """Yield messages whose writing BytesGenerator does by changing them."""
    source = EIGHT_BIT.replace(b"Subject: x", b"Subject: " + WORDS.encode() * 2)
    yield email.message_from_bytes(source)
    message = MIMEMultipart("signed", "b")
    message["Subject"] = WORDS * 3
    for part in (
        email.message_from_bytes(source),
        HasHeaders("own\n"),
        HasItems("own\n"),
        MIMEText("é"),
    ):
        message.attach(part)
    yield message
    message = EmailMessage()
    message["To"] = "A <a@example.com>, " * 5 + "Zoë <z@example.com>"
    message.set_content("From caf\xe9\n", cte="8bit")
    message.add_attachment(email.message_from_bytes(source, policy=default))
    message.set_boundary("b")
    yield message
    yield MIMEMessage(message)


@pytest.mark.usefixtures("switching")
def test_one_message_in_many_threads():
    policies = [None, compat32, email.policy.SMTP, POLICIES["default 7bit"]]
    # BytesGenerator leaves its marks on what it wrote.
    written_of = [[generated(each, policy=policy) for each in shared()] for policy in policies]
    for message, *expected in zip(shared(), *written_of, strict=True):
        before, policy = state(message), message.policy
        started = threading.Barrier(8)

        def writes(number, message=message, policy=policy, started=started):
            started.wait()
            found = set()
            for _ in range(12):
                found.add(serialize(message, policy=policies[number % 4]))
                found.add(joined(message, policy=policies[number % 4]))
                assert message.policy is policy
            return found

        with ThreadPoolExecutor(8) as pool:
            for number, found in enumerate(pool.map(writes, range(8))):
                assert found == {expected[number % 4]}
        assert list(map(id, state(message))) == list(map(id, before))


# -- buffers ------------------------------------------------------------------

MIB = 1 << 20
BIG = "x" * 70 + "\n"
BIG *= 3 * MIB // len(BIG)


def big_messages():
    yield with_payload((), BIG)
    yield with_payload(KINDS[1], BIG.replace("x\n", "\udce9\n"))
    yield with_payload((), BIG.replace("\n", "\r\n"), default)
    yield with_payload((), "x" * (3 * MIB))
    yield with_payload(KINDS[9], [MIMEText("a"), with_payload(KINDS[8], BIG)])
    yield MIMEMessage(with_payload((), BIG))
    message = EmailMessage()
    message.set_content("a\n")
    message.add_attachment(b"\xff" * (9 * MIB // 4), maintype="application", subtype="pdf")
    yield message


@pytest.mark.parametrize("options", [{}, {"linesep": "\n"}, {"linesep": None, "policy": default}])
def test_buffers_are_small(options):
    for message in big_messages():
        before = state(message)
        random.seed(4)
        buffers = list(serialize_buffers(message, **options))
        assert max(map(len, buffers)) <= MIB
        assert len(buffers) < 3000
        assert list(map(id, state(message))) == list(map(id, before))
        random.seed(4)
        assert b"".join(buffers) == generated(message, **options)


def rewritten(payload, linesep, mangle):
    """Return a body as BytesGenerator writes it, by its own two regular expressions' rules."""
    if mangle:
        payload = re.sub("(?m)^From ", ">From ", payload)
    return re.sub("\r\n|\r|\n", lambda _: linesep, payload).encode("ascii", "surrogateescape")


@pytest.mark.parametrize("linesep", ["\r\n", "\n"])
@pytest.mark.parametrize("pattern", ["\r\n", "\nFrom ", "\r\nFrom \r", "a\r\n\r", "\udce9\r\n"])
def test_newlines_at_every_place_of_a_cut(pattern, linesep):
    head = linesep.encode()
    for offset in range(len(pattern)):
        payload = "y" * offset + pattern * (MIB * 3 // 8 // len(pattern))
        for mangle in (offset % 2 == 0,):
            body = rewritten(payload, linesep, mangle)
            options = {"linesep": linesep, "mangle_from_": mangle}
            message = with_payload((), payload)
            assert joined(message, **options) == head + body
            assert message._payload is payload
            assert serialize(message, **options) == head + body
            cut = payload[: 9 + offset]
            message = with_payload((), cut)
            assert written(message, **options) == head + rewritten(cut, linesep, mangle)


def test_newlines_of_lines_at_every_place_of_a_cut():
    for size in (61, 64, 1000, 8191, 65535, 65536):
        for newline, offset in itertools.product(("\n", "\r\n", "\r", "\r\r\n"), range(4)):
            payload = "y" * offset + ("x" * (size - len(newline)) + newline + "From ") * (
                400_000 // size
            )
            assert joined(with_payload((), payload)) == b"\r\n" + rewritten(payload, "\r\n", True)


def test_an_iterator_that_is_left_changes_nothing():
    for message in [*shared(), without_boundary(), *big_messages()]:
        before = list(map(id, state(message)))
        buffers = serialize_buffers(message, policy=POLICIES["compat32 7bit"])
        assert next(buffers)
        assert list(map(id, state(message))) == before
        del buffers
        assert list(map(id, state(message))) == before


def test_two_iterators_take_turns():
    for message in shared():
        expected = [serialize(message), serialize(message, policy=default, linesep="\n")]
        pairs = itertools.zip_longest(
            serialize_buffers(message),
            serialize_buffers(message, policy=default, linesep="\n"),
            fillvalue=b"",
        )
        assert [b"".join(buffers) for buffers in zip(*pairs, strict=True)] == expected


def test_they_are_the_package_s_own():
    assert fastsmtp.serialize is serialize
    assert {"serialize", "serialize_buffers"} <= set(fastsmtp.__all__)
    assert type(serialize(MIMEText("a"))) is bytes
    assert iter(found := serialize_buffers(MIMEText("a"))) is found
