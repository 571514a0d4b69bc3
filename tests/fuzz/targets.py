"""What is fuzzed: each target takes octets, and raises if something in the package is wrong.

Most of the judges are the suite's own property tests: here it is coverage, not chance, that looks
for what breaks them.  An input is text as far as it can be: digits at its beginning choose options,
and a ``|`` ends a piece.
"""

from __future__ import annotations

import contextlib
import email
import re
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from email.message import Message
from pathlib import Path
from typing import Any

import test_codec
import test_codec_message
import test_envelope
import test_serializer

import fastsmtp
from fastsmtp import codec as in_use
from fastsmtp.envelope import Envelope

Target = Callable[[bytes], None]
TARGETS: dict[str, Target] = {}


def target(function: Target) -> Target:
    TARGETS[function.__name__] = function
    return function


def codecs() -> list[Any]:
    """Return the compiled codec, if there is one, and the one in Python."""
    return test_codec_message.twins()


def judge(test: Any) -> Callable[..., None]:
    """Return a property test's body, to be called with values of our own."""
    return test.hypothesis.inner_test  # type: ignore[no-any-return]


def options(data: bytes, *tables: Any) -> tuple[bytes, list[Any]]:
    """Return what follows the options, and what each of them chose: "0" is a table's first."""
    digits = data.ljust(len(tables), b"0")
    chosen = [
        table[(digit - 48) % len(table)] for table, digit in zip(tables, digits, strict=False)
    ]
    return data[len(tables) :], chosen


def text_of(data: bytes) -> str:
    """Return octets as a str that may hold anything a str can, surrogates too."""
    return data.decode("utf-8", "surrogateescape")


NO_YES = (False, True)

# -- replies ------------------------------------------------------------------

CAPS = ((8192, 1 << 20), (8, 20), (20, 30), (40, 20))
#: The steps of a parser, by the letter that a piece begins with; what else is there is fed.
STEPS = {b"l": "take_line", b"n": "next_replies", b"c": "max_line", b"m": "max_reply"}
CODES = (250, 354, 220, 421, 0, 999)

read_as_smtplib_does = judge(test_codec.test_replies_are_read_as_smtplib_does)
long_lines_are_refused = judge(test_codec.test_long_lines_are_refused_as_smtplib_does)
cuts_do_not_matter = judge(test_codec.test_where_the_stream_is_cut_does_not_matter)
twins_read_the_same = judge(test_codec.test_the_twins_read_the_same_replies)
lines_are_those_of_a_file = judge(test_codec.test_raw_lines_are_those_of_a_file)
twins_do_the_same = judge(test_codec.test_the_twins_do_the_same_step_by_step)


@target
def replies(data: bytes) -> None:
    """A server's stream, cut at each ``|``."""
    data, [caps] = options(data, CAPS)
    pieces = [piece for piece in data.split(b"|") if piece]
    cut = b"".join(pieces), pieces
    codec, twin = codecs()[0], codecs()[-1]
    twins_read_the_same(codec, cut, caps)
    cuts_do_not_matter(codec, cut, caps)
    lines_are_those_of_a_file(codec, cut, caps[0])
    read_as_smtplib_does(twin, cut)
    long_lines_are_refused(twin, cut, caps[0])


def step(piece: bytes) -> tuple[Any, ...]:
    name, rest = piece[:1], piece[1:]
    if name == b"t":
        return "take_replies", tuple([CODES[(digit - 48) % len(CODES)] for digit in rest])
    if name in STEPS:
        number = re.match(rb"-?\d{1,6}", rest)
        return STEPS[name], int(number[0]) if number else len(rest)
    return ("next_reply",) if piece == b"r" else ("feed", piece)


@target
def steps(data: bytes) -> None:
    """What a parser can do, in any order: ``0250-a|r|50|t0|l5`` feeds, asks, feeds, takes twice."""
    data, [strict] = options(data, NO_YES)
    twins_do_the_same(codecs()[0], [step(piece) for piece in data.split(b"|")], strict)


# -- message data -------------------------------------------------------------

#: "~" is so many characters: for what is counted or copied in blocks, or without the GIL.
FILLERS = (1, 200, 237, 240, 508, 1100, 3000, 70_000)
KINDS = tuple(test_codec.KINDS)
NEWLINES = (b"\r\n", b"\n", b"\r", b"", b"\\1")

twins_encode_the_same = judge(test_codec.test_the_twins_give_the_same_for_message_data)
framed_as_smtplib_does = judge(test_codec.test_a_message_is_framed_as_smtplib_does)
text_is_framed_as_smtplib_does = judge(test_codec.test_text_is_framed_as_smtplib_does)
text_is_smtplib_s_error = judge(test_codec.test_text_outside_ascii_is_smtplib_s_error)
assembled_as_expected = judge(test_codec_message.test_assemble)


def received(wire: bytes) -> bytes:
    """Return the message that a server makes of what comes after 354 (RFC 5321, section 4.5.2)."""
    *lines, end, rest = wire.split(b"\r\n")
    assert (end, rest) == (b".", b""), "the end of the data is not where it should be"
    assert b"." not in lines, "the data ends before its end"
    return b"".join([line[line.startswith(b".") :] + b"\r\n" for line in lines])


def canonical(data: bytes) -> bytes:
    """Return a message in lines that end with CRLF, the last one too."""
    ended = re.sub(b"\r\n?|\n", b"\r\n", data)
    return ended if ended.endswith(b"\r\n") else ended + b"\r\n"


@target
def payload(data: bytes) -> None:
    """Message data: text, octets, or another thing that holds octets."""
    data, [kind, filler] = options(data, KINDS, FILLERS)
    data = data.replace(b"~", b"x" * filler, 3)
    text = text_of(data)
    for each in (text, test_codec.Text(text), data, memoryview(b"." + data)[1:]):
        for normalize in NO_YES:
            twins_encode_the_same(codecs()[0], each, normalize)
    if not text.isascii():
        text_is_smtplib_s_error(codecs()[-1], text)
        return
    text_is_framed_as_smtplib_does(codecs()[-1], text)
    framed_as_smtplib_does(codecs()[-1], data)
    data = data.ljust(20, b".")  # what there is of some kinds has a size
    data = data[: 20 if " x " in kind else len(data) // 4 * 4]
    for codec in codecs():
        size, buffers = codec.data_payload(test_codec.KINDS[kind](data), True)
        assert received(b"".join(buffers)) == canonical(data)
        assert size + 2 * (not data.endswith((b"\r", b"\n"))) == len(canonical(data))


@target
def assemble(data: bytes) -> None:
    """Pieces of a message; one that begins with ``=`` is octets, others are text in Latin-1."""
    data, [newline, mangle, filler] = options(data, NEWLINES, NO_YES, FILLERS)
    pieces = data.replace(b"~", b"x" * filler, 3).split(b"|")
    texts = [piece[1:] if piece[:1] == b"=" else piece.decode("latin-1") for piece in pieces]
    assembled_as_expected(texts, newline, mangle)


# -- header fields ------------------------------------------------------------

LIMITS = (78, 0, 21, 30, 40, 998, test_codec_message.MANY)
#: A field is held against the default policy, which has lines of that length.
LONGEST = 78
NAMES = ("Subject", "To", "From", "X-Y", "Message-ID", "Date", "Content-Type", "MIME-Version")

field_line_is_as_expected = judge(test_codec_message.test_field_line)
tokens_line_is_as_expected = judge(test_codec_message.test_tokens_line)
first_values_are_the_first = judge(test_codec_message.test_first_values)
found_as_the_email_package_does = judge(
    test_codec_message.test_plain_addresses_are_those_that_the_email_package_finds
)


def is_header(name: str, value: str) -> bool:
    """Say whether the email package can read it; there are some that it breaks down on."""
    try:
        test_codec_message.REGISTRY(name, value)
    except Exception:
        return False
    return True


@target
def fields(data: bytes) -> None:
    """A field's value; before it, up to a ``|``, there may be a name of its own."""
    data, [name, limit, folded] = options(data, NAMES, LIMITS, NO_YES)
    other, _, value = text_of(data).rpartition("|")
    for each in (name, other):
        # What says how the body is written is no field to hold against a whole message.
        if not each.lower().startswith(("content-", "mime-")):
            field_line_is_as_expected(each, value, min(limit, LONGEST), folded)
    first_values_are_the_first([(name, value), (other, None), (name.upper(), other), (other, name)])
    # Parameters have rules of their own, which the caller of tokens_line() keeps away from it.
    if not name.lower().startswith("content-") and is_header(name, value):
        tokens_line_is_as_expected(name, value, max(limit, 10))


@target
def mailboxes(data: bytes) -> None:
    """The text of a field of addresses."""
    found_as_the_email_package_does([(text_of(data), "")], "")


# -- envelopes ----------------------------------------------------------------

twins_write_the_same = judge(test_codec.test_the_twins_write_the_same_envelope)
plain_is_what_envelope_says = judge(test_codec.test_plain_is_what_envelope_py_says)
quoted_as_smtplib_does = judge(
    test_envelope.test_an_address_is_quoted_as_smtplib_does_or_refused_with_reason
)
exactly_one_path = judge(test_envelope.test_the_result_is_exactly_one_path)


@target
def envelope(data: bytes) -> None:
    """MAIL's parameter, RCPT's, the sender, the recipients: ``0SIZE=9||a@x|b@x|c@x``."""
    data, [kind] = options(data, (list, tuple, iter))
    data += b"|" * max(2 - data.count(b"|"), 0)
    mail, rcpt, sender, *recipients = text_of(data).split("|")
    twins_write_the_same(codecs()[0], sender, recipients, mail, rcpt, kind)
    for address in (sender, *recipients):
        quoted_as_smtplib_does(address)
        exactly_one_path(address)
        for codec in codecs():
            plain_is_what_envelope_says(codec, address)
    parameters = [" " + text if text else "" for text in (mail, rcpt)]
    with contextlib.suppress(ValueError):  # parameters that cannot be written
        written = codecs()[0].envelope_commands(sender, recipients, *parameters)
        if written is not None:
            whole = Envelope(sender, recipients, [mail] if mail else [], [rcpt] if rcpt else [])
            assert b"".join([whole.mail, *whole.rcpts]) == written


# -- base64 for AUTH ----------------------------------------------------------

twins_encode_credentials_alike = judge(test_codec.test_the_twins_give_the_same_for_credentials)
base64_is_right = judge(test_codec.test_base64)
challenge_is_decoded = judge(test_codec.test_a_challenge_is_decoded)
plain_is_right = judge(test_codec.test_plain)
xoauth2_is_right = judge(test_codec.test_xoauth2)
cram_md5_is_right = judge(test_codec.test_cram_md5)


@target
def credentials(data: bytes) -> None:
    """Three values, such as user, password and challenge: text, or octets after a ``=``."""
    pieces = (data + b"||").split(b"|")[:3]
    values = [piece[1:] if piece[:1] == b"=" else text_of(piece) for piece in pieces]
    twins_encode_credentials_alike(codecs()[0], values)
    user, password, challenge = octets = [piece.removeprefix(b"=") for piece in pieces]
    for codec in codecs():
        challenge_is_decoded(codec, challenge)
        cram_md5_is_right(codec, user, password, challenge)
        for value in octets:
            base64_is_right(codec, value)
        if b"\0" not in data:
            plain_is_right(codec, user, password, challenge)
        if b"\1" not in data:
            xoauth2_is_right(codec, user, password)


# -- messages -----------------------------------------------------------------

POLICIES = tuple(
    test_serializer.POLICIES[name]
    for name in ("compat32", "default", "SMTP", "SMTPUTF8", "refold all", "refold none",
                 "compat32 7bit", "default 7bit", "default 998", "refold all utf8")
)  # fmt: skip
OPTIONS = tuple(test_serializer.OPTIONS)
PATIENCE = 2.0  # seconds of this process
EMAIL_PACKAGE = Path(email.__file__).parent


@contextlib.contextmanager
def using(codec: Any) -> Iterator[None]:
    """Let the package use a codec."""
    names = [name for name in dir(in_use) if hasattr(codec, name) and not name.startswith("_")]
    before = {name: getattr(in_use, name) for name in names}
    try:
        for name in names:
            setattr(in_use, name, getattr(codec, name))
        yield
    finally:
        for name in names:
            setattr(in_use, name, before[name])


def with_header_objects(message: Message) -> Message:
    """Return it with header objects for values: all that the email package can make."""
    fields = message.raw_items()
    message._headers = []  # type: ignore[attr-defined]
    for name, value in fields:
        with contextlib.suppress(Exception):
            message.set_raw(name, test_serializer.default.header_fetch_parse(name, value))
    return message


class Endless(BaseException):
    """It takes too long."""


def give_up(*_: object) -> None:
    raise Endless


@contextlib.contextmanager
def as_far_as_the_email_package_ends() -> Iterator[None]:
    """Stop what takes seconds, and let it be if it is the email package that does.

    It has policies that never come to an end, where a line has no room for what is to be in it.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not (in_main_thread and hasattr(signal, "ITIMER_VIRTUAL")):
        yield
        return
    signal.signal(signal.SIGVTALRM, give_up)
    signal.setitimer(signal.ITIMER_VIRTUAL, PATIENCE)
    try:
        yield
    except Endless as stopped:
        frames = traceback.extract_tb(stopped.__traceback__)
        if not any(Path(frame.filename).parent == EMAIL_PACKAGE for frame in frames):
            raise
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


@target
def messages(data: bytes) -> None:
    """A message as it was received, written with several policies, by each codec."""
    data, [policy, keywords, parsed] = options(data, POLICIES, OPTIONS, NO_YES)
    with as_far_as_the_email_package_ends():
        try:
            message = email.message_from_bytes(data, policy=policy)
        except Exception:
            return  # there are headers that the parser of the email package breaks down on
        if parsed:
            message = with_header_objects(message)
        with using(codecs()[-1]):
            expected = test_serializer.outcome(fastsmtp.serialize, message, **keywords)
        with using(codecs()[0]):
            assert test_serializer.check(message, **keywords) == expected
