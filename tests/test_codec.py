"""The codec, compiled and in Python: both are what smtplib does, and alike to the letter."""

from __future__ import annotations

import array
import base64
import binascii
import ctypes
import enum
import hmac
import importlib
import inspect
import io
import itertools
import os
import random
import re
import smtplib
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastsmtp import _codec_py, envelope
from fastsmtp import codec as chosen
from fastsmtp.errors import SMTPProtocolError, SMTPResponseException

#: From this many bytes on the compiled codec releases the GIL.
LARGE = 1 << 16


@pytest.fixture(scope="module")
def compiled():
    if os.environ.get("FASTSMTP_IMPL") == "python":
        pytest.skip("Python alone was asked for")
    return importlib.import_module("fastsmtp._codec")


def result_of(call, *args, **kwargs):
    """Return what came of a call so that two can be compared: types count."""
    try:
        result = call(*args, **kwargs)
    except Exception as error:
        return type(error), error.args, str(error)
    return type(result), result


# -- message data against smtplib ---------------------------------------------


class Recorder(smtplib.SMTP):
    """smtplib with its input and output taken off."""

    def putcmd(self, cmd, args=""):
        pass

    def getreply(self):
        return 354, b"go ahead"

    def send(self, s):
        self.sent = s


def framed(message: str | bytes) -> bytes:
    """Return what smtplib writes after 354."""
    recorder = Recorder(local_hostname="localhost")
    recorder.data(message)
    return recorder.sent


def normal(data: bytes) -> bytes:
    return smtplib._fix_eols(data.decode("latin-1")).encode("latin-1")


def assert_like_smtplib(codec, data: bytes) -> None:
    assert bytes(codec.normalize_newlines(data)) == normal(data)
    assert bytes(codec.stuff_dots(data)) == smtplib._quote_periods(data)
    for normalize, message in ((False, data), (True, normal(data))):
        size, buffers = codec.data_payload(data, normalize)
        assert (size, len(buffers)) == (len(message), 2)
        assert b"".join(buffers) == framed(message)
        assert buffers[0] == codec.stuff_dots(message)


#: What the codec looks for, and enough else to have stretches without it.
PIECES = [b"\r", b"\n", b"\r\n", b".", b"..", b"a", b"\0\x80\xff", b"x" * 76, b"y" * 700]
messages = st.one_of(
    st.text("\r\n.a", max_size=40).map(str.encode),
    st.lists(st.sampled_from(PIECES), max_size=30).map(b"".join),
    st.binary(max_size=60),
)


@given(data=messages)
def test_a_message_is_framed_as_smtplib_does(codec, data):
    assert_like_smtplib(codec, data)


@given(text=st.text("\r\n.a \x7f", max_size=40))
def test_text_is_framed_as_smtplib_does(codec, text):
    size, buffers = codec.data_payload(text, True)
    assert (size, b"".join(buffers)) == (len(normal(text.encode())), framed(text))


EVENTS = [
    *(b"\r", b"\n", b".", b"\r\n", b"\n\r", b"\r\r", b"\n\n", b"\n.", b"\r.", b"\r\n."),
    *(b"\r\r\n", b"\r\n\r\n.", b"\n.\n", b"\r.\r", b"\r\n.\r\n", b"\n.\n.\n"),
]


@pytest.mark.parametrize("event", EVENTS)
def test_at_the_edges_of_blocks(codec, event):
    # The compiled codec counts in blocks of 240 bytes and, where there is
    # little to change, copies in blocks of 512.
    size = 8192
    for edge in (0, 240, 480, 512, 513, 752, 1024, size):
        for at in range(max(edge - 4, 0), min(edge + 3, size) + 1):
            filler = b"x" * (size - at)
            assert_like_smtplib(codec, b"x" * at + event + filler)
            assert_like_smtplib(codec, b"x" * at + event + filler + b"\r\n")


@pytest.mark.parametrize("size", [LARGE // 2, LARGE - 1, LARGE, LARGE + 1, 5 * LARGE])
@pytest.mark.parametrize("line", [b"x", b"line\r\n", b".\n", b"\r", b"\n", b"x" * 4000 + b"\n."])
def test_from_where_the_gil_is_released(codec, size, line):
    data = (line * (size // len(line) + 1))[:size]
    assert_like_smtplib(codec, data)


def test_a_message_of_megabytes(codec):
    choose = random.Random(5321).choices
    assert_like_smtplib(codec, b"".join(choose(PIECES, [1, 1, 1, 1, 1, 9, 1, 50, 50], k=9000)))


@given(
    text=st.text(
        st.characters(codec=None) | st.sampled_from("\r\n.\ud800é"), min_size=1, max_size=20
    ).filter(lambda text: not text.isascii())
)
@example(text="\r\r\n\né")
@example(text="a\udcff")
def test_text_outside_ascii_is_smtplib_s_error(codec, text):
    with pytest.raises(UnicodeEncodeError) as expected:
        framed(text)
    for call in (
        codec.normalize_newlines,
        codec.stuff_dots,
        lambda text: codec.data_payload(text, False),
        lambda text: codec.data_payload(text, True),
    ):
        with pytest.raises(UnicodeEncodeError) as raised:
            call(text)
        assert raised.value.args == expected.value.args


# -- what message data may be, and whose memory the result is -----------------


class Text(str):
    __slots__ = ()


class Octets(bytes):
    __slots__ = ()


def each_result(codec, data):
    """Return what each function that takes message data makes of it."""
    payloads = [codec.data_payload(data, normalize)[1][0] for normalize in (True, False)]
    return codec.normalize_newlines(data), codec.stuff_dots(data), *payloads


CLEAN = b"..clean\r\n, as\r\nit is\r\n"[2:]  # 20 bytes
DIRTY = b".dot\n.\r\rb\n\r\n.c\nabcdef\n"[:20]
KINDS = {
    "str": lambda data: data.decode(),
    "str subclass": lambda data: Text(data.decode()),
    "bytes": bytes,
    "bytes subclass": Octets,
    "bytearray": bytearray,
    "memoryview": memoryview,
    "memoryview of a part": lambda data: memoryview(b"." + data + b".")[1:-1],
    "memoryview, format H": lambda data: memoryview(data).cast("H"),
    "memoryview, format I": lambda data: memoryview(data).cast("I"),
    "memoryview, format c": lambda data: memoryview(data).cast("c"),
    "memoryview, 4 x 5": lambda data: memoryview(data).cast("B", [4, 5]),
    "memoryview, 2 x 5 of H": lambda data: memoryview(data).cast("B").cast("H", [2, 5]),
    "array": lambda data: array.array("b", data),
    # Its format is "<c", which a memoryview does not cast.
    "ctypes array": lambda data: (ctypes.c_char * len(data))(*data),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("data", [CLEAN, DIRTY, b""], ids=["clean", "dirty", "empty"])
def test_message_data_of_every_kind(codec, kind, data):
    given_data = KINDS[kind](data) if data or "x" not in kind else memoryview(data)
    is_text = isinstance(given_data, str)
    assert bytes(codec.normalize_newlines(given_data)) == normal(data)
    assert bytes(codec.stuff_dots(given_data)) == smtplib._quote_periods(data)
    size, buffers = codec.data_payload(given_data, True)
    assert (size, b"".join(buffers)) == (len(normal(data)), framed(normal(data)))
    for result in each_result(codec, given_data):
        if isinstance(result, memoryview):
            assert (result.format, result.ndim) == ("B", 1)
            assert not is_text
        else:
            assert type(result) is bytes


def test_clean_bytes_are_the_same_object(codec):
    for data in (CLEAN, b"", CLEAN * LARGE):
        assert all(result is data for result in each_result(codec, data))


@pytest.mark.parametrize("times", [1, LARGE])
def test_a_clean_buffer_is_not_copied(codec, times):
    data = bytearray(CLEAN * times)
    results = each_result(codec, data)
    data[2:5] = b"new"
    assert all(result == data and result.obj is data for result in results)


def test_a_buffer_that_was_changed_is_let_go(codec):
    data = bytearray(DIRTY)
    each_result(codec, data)
    data.append(0)  # BufferError, if somebody still looked at it


def test_a_changed_buffer_is_a_copy(codec):
    data = bytearray(DIRTY)
    before = each_result(codec, data)
    data[:] = b"x" * len(data)
    assert before == each_result(codec, DIRTY)


@pytest.mark.parametrize("data", [memoryview(b"abcdef")[::2], memoryview(b"abcdef")[::-1]])
def test_a_buffer_with_gaps_is_refused(codec, data):
    for call in (codec.normalize_newlines, codec.stuff_dots):
        with pytest.raises(BufferError, match="C-contiguous"):
            call(data)
    with pytest.raises(BufferError, match="C-contiguous"):
        codec.data_payload(data, True)


@pytest.mark.parametrize("data", [None, 5, ["x"], 1.5])
def test_what_is_not_message_data(codec, data):
    message = f"^message data must be str or a bytes-like object, not {type(data).__name__}$"
    for call in (codec.normalize_newlines, codec.stuff_dots):
        with pytest.raises(TypeError, match=message) as raised:
            call(data)
        assert raised.value.__suppress_context__
    with pytest.raises(TypeError, match=message):
        codec.data_payload(data, False)


# -- the twins ----------------------------------------------------------------

METHODS = ["feed", "next_reply", "take_line", "take_replies"]


def public(module):
    return {
        name
        for name, value in vars(module).items()
        if getattr(value, "__module__", None) == module.__name__ and not name.startswith("_")
    }


FUNCTIONS = sorted(public(_codec_py) - {"ReplyParser"})


def test_no_twin_has_a_name_of_its_own(compiled):
    assert public(compiled) == public(_codec_py)
    assert (compiled.IMPLEMENTATION, _codec_py.IMPLEMENTATION) == ("c", "python")


def test_the_codec_in_use_has_every_name():
    names = {*FUNCTIONS, "ReplyParser", "IMPLEMENTATION", "MAX_LINE", "MAX_REPLY"}
    assert names <= vars(chosen).keys()


def parameters(function):
    kept = inspect.signature(function).parameters.values()
    return [(each.name, each.kind, each.default) for each in kept]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_functions_are_called_and_described_alike(compiled, name):
    ours, twin = getattr(compiled, name), getattr(_codec_py, name)
    assert parameters(ours) == parameters(twin)
    assert inspect.getdoc(ours) == inspect.getdoc(twin)


@pytest.mark.parametrize("name", METHODS)
def test_the_methods_are_called_and_described_alike(compiled, name):
    ours, twin = getattr(compiled.ReplyParser, name), getattr(_codec_py.ReplyParser, name)
    assert parameters(ours) == parameters(twin)
    assert inspect.getdoc(ours) == inspect.getdoc(twin)


def test_the_parsers_are_described_alike(compiled):
    ours, twin = compiled.ReplyParser, _codec_py.ReplyParser
    assert inspect.getdoc(ours) == inspect.getdoc(twin)
    assert inspect.getdoc(ours.pending) == inspect.getdoc(twin.pending)
    assert (compiled.MAX_LINE, compiled.MAX_REPLY) == (_codec_py.MAX_LINE, _codec_py.MAX_REPLY)


def test_the_parser_takes_its_options_by_position_and_by_name(codec):
    options = {"strict": True, "max_line": 80, "max_reply": 800}
    for parser in (codec.ReplyParser(*options.values()), codec.ReplyParser(**options)):
        assert {name: getattr(parser, name) for name in options} == options
    parser = codec.ReplyParser()
    kept = (parser.strict, parser.max_line, parser.max_reply)
    assert kept == (False, codec.MAX_LINE, codec.MAX_REPLY)
    with pytest.raises(AttributeError):
        parser.pending = 1
    with pytest.raises(AttributeError):
        parser.more = 1


anything = st.one_of(
    messages,
    messages.map(bytearray),
    messages.map(memoryview),
    st.text("\r\n.aé\ud800", max_size=20),
    st.sampled_from([None, 1, memoryview(b"abcd")[::2]]),
)


@given(data=anything, normalize=st.booleans())
def test_the_twins_give_the_same_for_message_data(compiled, data, normalize):
    for name in ("normalize_newlines", "stuff_dots"):
        ours, twin = getattr(compiled, name), getattr(_codec_py, name)
        assert result_of(ours, data) == result_of(twin, data)
    ours = result_of(compiled.data_payload, data, normalize)
    twin = result_of(_codec_py.data_payload, data, normalize)
    assert ours == twin
    if ours[0] is tuple:
        assert list(map(type, ours[1][1])) == list(map(type, twin[1][1]))


values = st.one_of(
    st.text(max_size=20),
    st.binary(max_size=20),
    st.text("a\0\1\ud800", max_size=4),
    st.sampled_from([None, 1, bytearray(b"x")]),
)


@given(values=st.tuples(values, values, values))
@example(values=("u", 1, "\0"))
def test_the_twins_give_the_same_for_credentials(compiled, values):
    for name, count in (("base64", 1), ("plain", 2), ("plain", 3), ("xoauth2", 2)):
        ours, twin = (getattr(module, f"sasl_{name}") for module in (compiled, _codec_py))
        assert result_of(ours, *values[:count]) == result_of(twin, *values[:count])
    user, password, challenge = values
    ours, twin = compiled.sasl_cram_md5, _codec_py.sasl_cram_md5
    assert result_of(ours, user, password, challenge) == result_of(twin, user, password, challenge)
    ours, twin = compiled.decode_challenge, _codec_py.decode_challenge
    assert result_of(ours, challenge) == result_of(twin, challenge)


# -- replies ------------------------------------------------------------------


def smtplib_replies(stream: bytes, max_line: int = smtplib._MAXLINE) -> list:
    """Return smtplib's replies, each with how much was read for it, or its error at the end."""
    client = smtplib.SMTP(local_hostname="localhost")
    file = client.file = io.BytesIO(stream)
    replies = []
    with mock.patch.object(smtplib, "_MAXLINE", max_line), mock.patch.object(file, "close"):
        while True:
            try:
                replies.append((client.getreply(), file.tell()))
            except smtplib.SMTPServerDisconnected:
                return replies
            except smtplib.SMTPResponseException as error:
                return [*replies, error.args]


def replies(parser, pieces) -> list:
    """Feed a parser; return its replies in smtplib_replies()'s form."""
    fed = 0
    found: list = []
    for piece in (*pieces, b""):
        fed += len(piece)
        parser.feed(piece)
        try:
            while (reply := parser.next_reply()) is not None:
                found.append((reply, fed - parser.pending))
        except smtplib.SMTPException as error:
            pending = parser.pending
            with pytest.raises(type(error)) as again:  # the bytes stay where they are
                parser.next_reply()
            assert again.value.args == error.args  # noqa: PT017
            assert parser.pending == pending
            return [*found, error.args]
    return found


def cuts(stream: bytes):
    """Cut a stream in two at every place, and into single bytes."""
    for at in range(len(stream) + 1):
        yield [piece for piece in (stream[:at], stream[at:]) if piece]
    yield [stream[at : at + 1] for at in range(len(stream))]


CODES = [
    *(b"250", b"220", b"421", b"000", b"999", b"2_0", b" 25", b"25 ", b"+25", b"-25", b"25"),
    *(b"2", b"", b"abc", b"2x0", b"\xb2\xb3\xb9", b"\0\0\0", b"1e1", b"\t25", b"2\r5", b"0x1"),
]
lines = st.tuples(
    st.sampled_from(CODES[:3]) | st.sampled_from(CODES),
    st.sampled_from([b" ", b"-", b"-", b"", b"x", b"\t"]),
    st.binary(max_size=8) | st.sampled_from([b"ok", b" \t two  words\t", b"\r", b"\x0b \x0c"]),
    st.sampled_from([b"\r\n", b"\r\n", b"\n", b"\r\r\n", b"\r", b""]),
).map(b"".join)
streams = st.lists(lines, max_size=6).map(b"".join)


@st.composite
def streams_in_pieces(draw):
    stream = draw(streams)
    places = sorted(draw(st.sets(st.integers(1, max(len(stream) - 1, 1)), max_size=8)))
    ends = [place for place in places if place < len(stream)]
    pieces = [stream[a:b] for a, b in itertools.pairwise([0, *ends, len(stream)])]
    return stream, [piece for piece in pieces if piece]


@given(cut=streams_in_pieces())
@example(cut=(b"250-a\r\n", [b"250-a\r\n"]))
@example(cut=(b"250-a\r\n250-b", [b"250-a\r\n250", b"-b"]))
@example(cut=(b"250-a\n\n250", [b"250-a\n\n250"]))
def test_replies_are_read_as_smtplib_does(codec, cut):
    stream, pieces = cut
    expected = smtplib_replies(stream)
    assert replies(codec.ReplyParser(), pieces) == expected
    assert replies(codec.ReplyParser(), [stream[at : at + 1] for at in range(len(stream))]) == (
        expected
    )


@given(cut=streams_in_pieces(), max_line=st.integers(1, 30))
def test_long_lines_are_refused_as_smtplib_does(codec, cut, max_line):
    stream, pieces = cut
    assert replies(codec.ReplyParser(max_line=max_line), pieces) == (
        smtplib_replies(stream, max_line)
    )


STREAMS = [
    b"220 a\r\n250-b\r\n250-\r\n250 c\r\n354 d\r\n",
    b"250-a\r\n550 the last code counts\r\nno code\r\n25\r\n250",
    b"\r\n\n250\n250-\n250-",
    b" 25  spaced  \r\n-25-more\r\n2_0 x\r\n",
]


@pytest.mark.parametrize("stream", STREAMS)
def test_replies_cut_at_every_byte(codec, stream):
    expected = smtplib_replies(stream)
    for pieces in cuts(stream):
        assert replies(codec.ReplyParser(), pieces) == expected


CODE, MARK, MIXED = "is not three digits", "not followed by", "goes on with"
STRICT = [
    (b"250 ok\r\n", [(250, b"ok")]),
    (b"250 ok\n", [(250, b"ok")]),
    (b"250\r\n", [(250, b"")]),
    (b"250\n", [(250, b"")]),
    (b"250-\r\n250 \r\n", [(250, b"\n")]),
    (b"250-a\r\n250-b\r\n250 c\r\n550 d\r\n", [(250, b"a\nb\nc"), (550, b"d")]),
    (b"250-a\r\n250\r\n", [(250, b"a\n")]),
    (b"200 a\r\n599 b\r\n", [(200, b"a"), (599, b"b")]),
    (b"250 ok", []),  # not a line yet, and the end does not make it one
    (b"250 a\r\n250-b\r\n", [(250, b"a")]),
    (b"199 x\r\n", [CODE]),
    (b"600 x\r\n", [CODE]),
    (b"25 x\r\n", [CODE]),
    (b"2_0 x\r\n", [CODE]),
    (b" 25 x\r\n", [CODE]),
    (b"+25 x\r\n", [CODE]),
    (b"25\r\n", [CODE]),
    (b"\r\n", [CODE]),
    (b"ok\r\n", [CODE]),
    (b"\xb2\xb3\xb9 x\r\n", [CODE]),
    (b"2500 x\r\n", [MARK]),
    (b"250x\r\n", [MARK]),
    (b"250\tx\r\n", [MARK]),
    (b"250\r\r\n", [MARK]),
    (b"250-a\r\n550 b\r\n", [MIXED]),
    (b"250-a\r\n251-b\r\n251 c\r\n", [MIXED]),
    (b"250-a\r\nb\r\n", [CODE]),
    (b"250 a\r\n250-b\r\n251 c\r\n", [(250, b"a"), MIXED]),
]


@pytest.mark.parametrize(("stream", "expected"), STRICT)
def test_strict(codec, stream, expected):
    for pieces in cuts(stream):
        parser = codec.ReplyParser(strict=True)
        *found, last = [*replies(parser, pieces), None]
        for item, wanted in itertools.zip_longest(found, expected):
            if isinstance(wanted, str):
                assert wanted in item[0]
                with pytest.raises(SMTPProtocolError, match=wanted):
                    parser.next_reply()
            else:
                assert item[0] == wanted
        assert last is None


@given(cut=streams_in_pieces(), caps=st.tuples(st.integers(1, 40), st.integers(1, 60)))
@example(cut=(b"250-a\r\n250 bcd\r\n", [b"250-a\r\n25", b"0 bcd\r\n"]), caps=(9, 12))
def test_where_the_stream_is_cut_does_not_matter(codec, cut, caps):
    # Which of two caps was passed first is all that can differ.
    def found(pieces, strict):
        items = replies(codec.ReplyParser(strict, *caps), pieces)
        return [500 if item[0] == 500 else item for item in items]

    stream, pieces = cut
    for strict in (False, True):
        assert found(pieces, strict) == found([stream], strict)


@given(cut=streams_in_pieces(), caps=st.tuples(st.integers(1, 40), st.integers(1, 60)))
def test_the_twins_read_the_same_replies(compiled, cut, caps):
    for strict in (False, True):
        ours, twin = (
            replies(module.ReplyParser(strict, *caps), cut[1]) for module in (compiled, _codec_py)
        )
        assert ours == twin


@pytest.mark.parametrize(
    ("options", "stream", "error"),
    [
        ({"max_line": 8}, b"250 abcd\n", "Line too long."),
        ({"max_line": 8}, b"250-ab\r\n250 abc\r\n", "Line too long."),
        ({"max_reply": 16}, b"250-ab\r\n250-ab\r\n2", "Reply too long."),
        ({"max_reply": 8}, b"250 abcd\n", "Reply too long."),
        ({}, b"250 " + b"x" * 8187 + b"\r\n", "Line too long."),
        ({}, b"250-x\r\n" * 150_000, "Reply too long."),
    ],
)
def test_caps(codec, options, stream, error):
    parser = codec.ReplyParser(**options)
    parser.feed(stream)
    for _ in range(2):
        with pytest.raises(SMTPResponseException) as raised:
            parser.next_reply()
        assert raised.value.args == (500, error)
    assert parser.pending == len(stream)


@pytest.mark.parametrize("name", ["max_line", "max_reply"])
def test_a_cap_assigned_later_holds(codec, name):
    parser = codec.ReplyParser()
    setattr(parser, name, 8)
    parser.feed(b"250 ab\r\n250 abc\r\n")
    assert parser.next_reply() == (250, b"ab")
    with pytest.raises(SMTPResponseException):
        parser.next_reply()
    setattr(parser, name, 9)
    assert parser.next_reply() == (250, b"abc")


def test_caps_count_bytes_with_line_ends(codec):
    stream = b"250-a\r\n250 bc\r\n"
    for max_line, max_reply in itertools.product((7, 8, 9), (14, 15, 16)):
        parser = codec.ReplyParser(False, max_line, max_reply)
        parser.feed(stream)
        if max_line < 8 or max_reply < 15:
            with pytest.raises(SMTPResponseException):
                parser.next_reply()
        else:
            assert parser.next_reply() == (250, b"a\nbc")


@given(cut=streams_in_pieces(), limit=st.integers(1, 12) | st.just(sys.maxsize))
def test_raw_lines_are_those_of_a_file(codec, cut, limit):
    stream, pieces = cut
    parser, taken = codec.ReplyParser(), []
    for piece in (*pieces, b""):
        parser.feed(piece)
        while (line := parser.take_line(limit)) is not None:
            taken.append(line)
            if not line:
                break
    file = io.BytesIO(stream)
    assert taken == [*iter(lambda: file.readline(limit), b""), b""]
    assert parser.pending == 0


def test_a_raw_line_of_a_reply_in_part(codec):
    parser = codec.ReplyParser()
    parser.feed(b"250-a\r\n250 b")
    assert parser.next_reply() is None
    assert parser.take_line(100) == b"250-a\r\n"
    assert (parser.take_line(100), parser.pending) == (None, 5)
    parser.feed(b"\r\n250 c\r\n")
    assert [parser.next_reply(), parser.next_reply()] == [(250, b"b"), (250, b"c")]
    assert parser.take_line(0) == b""


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_what_may_be_fed(codec, kind):
    parser = codec.ReplyParser()
    data = kind(b"250-a\r\n25")
    parser.feed(data)
    if kind is bytearray:
        data[:] = b"x" * 100  # the parser has its own copy
    parser.feed(kind(b"0 b\r\n"))
    assert parser.next_reply() == (250, b"a\nb")


@pytest.mark.parametrize("data", ["250 ok", "", 3, None, [50]])
@pytest.mark.parametrize("fed", [b"", b"2"])
def test_what_may_not_be_fed(codec, data, fed):
    parser = codec.ReplyParser()
    if fed:
        parser.feed(fed)
    with pytest.raises(TypeError):
        parser.feed(data)
    assert parser.pending == len(fed)


def test_a_buffer_of_any_format_may_be_fed(codec):
    parser = codec.ReplyParser()
    parser.feed(memoryview(b"250 ok\r\n").cast("H"))
    assert parser.next_reply() == (250, b"ok")
    with pytest.raises(BufferError):
        parser.feed(memoryview(b"250 ok\r\n")[::2])
    assert parser.pending == 0


@pytest.mark.parametrize("limit", [0, -1, -5])
def test_a_line_of_no_length(codec, limit):
    parser = codec.ReplyParser()
    parser.feed(b"250 ok\r\n")
    assert parser.take_line(limit) == b""
    assert parser.next_reply() == (250, b"ok")


USUAL = (250, 250, 354)
TAKEN = [
    # stream, codes, texts or None
    (b"250 a\r\n250 b\r\n354 c\r\n", USUAL, [b"a", b"b", b"c"]),
    (b"250 a\n250 \t b \r\r\n354 \r\n", USUAL, [b"a", b"b", b""]),
    (b"250 a\r\n250 b\r\n354 c\r\n250 d\r\n", USUAL, [b"a", b"b", b"c"]),
    (b"250 a\r\n250 b\r\n354 c\r\n25", USUAL, [b"a", b"b", b"c"]),
    (b"250 a\r\n", (250,), [b"a"]),
    (b"250 a\r\n", (), []),
    (b"", (), []),
    # others, in any place
    (b"251 a\r\n250 b\r\n354 c\r\n", USUAL, None),
    (b"250 a\r\n550 b\r\n354 c\r\n", USUAL, None),
    (b"250 a\r\n250 b\r\n554 c\r\n", USUAL, None),
    (b"250 a\r\n354 b\r\n250 c\r\n", USUAL, None),
    # more lines than one, or no space: next_reply() knows what to make of it
    (b"250-a\r\n250 b\r\n250 b\r\n354 c\r\n", USUAL, None),
    (b"250 a\r\n250 b\r\n354-c\r\n354 d\r\n", USUAL, None),
    (b"250\r\n250 b\r\n354 c\r\n", USUAL, None),
    (b"250\n250 b\r\n354 c\r\n", USUAL, None),
    (b"250\ta\r\n250 b\r\n354 c\r\n", USUAL, None),
    (b"2500 a\r\n250 b\r\n354 c\r\n", USUAL, None),
    # no code at all
    (b"\n\n\n250 a\r\n250 b\r\n354 c\r\n", USUAL, None),
    (b"25\n250 a\r\n250 b\r\n354 c\r\n", USUAL, None),
    (b"\0\0\0 a\r\n", (250,), None),
    (b" 250 a\r\n", (250,), None),
]


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(("stream", "codes", "texts"), TAKEN)
def test_replies_that_are_expected_are_taken_together(codec, strict, stream, codes, texts):
    parser = codec.ReplyParser(strict)
    parser.feed(stream)
    for _ in range(1 if texts else 2):
        assert parser.take_replies(codes) == texts
    taken = stream.split(b"\n")[: len(codes)] if texts else []
    assert parser.pending == len(stream) - sum(len(line) + 1 for line in taken)


@pytest.mark.parametrize("strict", [False, True])
def test_what_is_expected_is_not_taken_before_all_of_it_is_here(codec, strict):
    stream = b"250 a\r\n250 b\r\n354 c\r\n"
    for more in (b"", b"421 bye\r\n"):
        for pieces in cuts(stream + more):
            parser, fed, taken = codec.ReplyParser(strict), 0, None
            for piece in pieces:
                assert taken is None or fed >= len(stream)
                parser.feed(piece)
                fed += len(piece)
                if taken is None:
                    taken = parser.take_replies(USUAL)
                    assert (taken is None) == (fed < len(stream))
                    assert parser.pending == fed - (len(stream) if taken else 0)
            assert taken == [b"a", b"b", b"c"]
            assert parser.next_reply() == ((421, b"bye") if more else None)


@pytest.mark.parametrize("strict", [False, True])
def test_what_was_looked_at_in_part_can_be_taken(codec, strict):
    parser = codec.ReplyParser(strict)
    parser.feed(b"250 a\r\n250 ")
    assert parser.take_replies((250, 250)) is None
    assert parser.next_reply() == (250, b"a")
    assert parser.next_reply() is None
    parser.feed(b"b\r\n354 c\r\n250 d")
    assert parser.take_replies((250, 354)) == [b"b", b"c"]
    assert parser.next_reply() is None
    parser.feed(b"\r\n")
    assert parser.take_replies((250,)) == [b"d"]
    assert parser.pending == 0


@pytest.mark.parametrize("strict", [False, True])
def test_the_rest_of_a_longer_reply_is_none_of_those_expected(codec, strict):
    parser = codec.ReplyParser(strict)
    parser.feed(b"250-a\r\n")
    assert parser.next_reply() is None
    parser.feed(b"250 b\r\n250 c\r\n")
    assert parser.take_replies((250, 250)) is None
    assert parser.take_replies((250,)) is None
    assert parser.next_reply() == (250, b"a\nb")
    assert parser.take_replies((250,)) == [b"c"]


def test_a_raw_line_makes_way_for_those_expected(codec):
    parser = codec.ReplyParser()
    parser.feed(b"250-a\r\n250 b\r\n")
    assert parser.take_replies((250,)) is None
    assert parser.take_line(100) == b"250-a\r\n"
    assert parser.take_replies((250,)) == [b"b"]


@pytest.mark.parametrize("strict", [False, True])
def test_the_end_of_the_stream_does_not_make_what_is_expected(codec, strict):
    parser = codec.ReplyParser(strict)
    parser.feed(b"250 a\r\n250 b")
    parser.feed(b"")
    assert parser.take_replies((250, 250)) is None
    assert parser.take_replies((250,)) == [b"a"]
    assert parser.take_replies((250,)) is None


@pytest.mark.parametrize("name", ["max_line", "max_reply"])
def test_what_is_expected_is_no_longer_than_allowed(codec, name):
    parser = codec.ReplyParser(**{name: 8})
    parser.feed(b"250 ab\r\n250 abc\r\n")
    assert parser.take_replies((250, 250)) is None
    assert parser.take_replies((250,)) == [b"ab"]
    assert parser.take_replies((250,)) is None
    with pytest.raises(SMTPResponseException, match="too long"):
        parser.next_reply()
    setattr(parser, name, 9)
    assert parser.take_replies((250,)) == [b"abc"]


@pytest.mark.parametrize("codes", [None, 250])
def test_codes_are_a_tuple(codec, codes):
    parser = codec.ReplyParser()
    parser.feed(b"250 a\r\n")
    with pytest.raises(TypeError):
        parser.take_replies(codes)
    assert parser.pending == 7


def test_many_replies_are_taken_together(codec):
    parser = codec.ReplyParser(strict=True)
    for _ in range(2):
        parser.feed(b"250 2.1.5 Ok\r\n" * 50_000)
        assert parser.take_replies((250,) * 50_000) == [b"2.1.5 Ok"] * 50_000
        assert parser.pending == 0


expected_codes = st.lists(st.sampled_from([250, 220, 421]), max_size=4).map(tuple)
#: Streams in which something can be expected.
likely_lines = st.tuples(
    st.sampled_from([b"250", b"250", b"220", b"421"]),
    st.sampled_from([b" ", b" ", b" ", b"-"]),
    st.sampled_from([b"ok", b"", b" \t two  words\t", b"\r"]),
    st.sampled_from([b"\r\n", b"\n"]),
).map(b"".join)
steps = st.lists(
    st.tuples(st.just("feed"), likely_lines | lines | st.binary(max_size=6))
    | st.tuples(st.just("take_replies"), expected_codes)
    | st.tuples(st.just("take_line"), st.integers(-1, 9))
    | st.tuples(st.sampled_from(["max_line", "max_reply"]), st.integers(1, 30))
    | st.tuples(st.just("next_reply")),
    max_size=20,
)


@given(steps=steps, strict=st.booleans())
def test_the_twins_do_the_same_step_by_step(compiled, steps, strict):
    ours, twin = compiled.ReplyParser(strict), _codec_py.ReplyParser(strict)
    for name, *arguments in steps:
        if name.startswith("max"):
            for parser in (ours, twin):
                setattr(parser, name, *arguments)
        else:
            found = [result_of(getattr(parser, name), *arguments) for parser in (ours, twin)]
            assert found[0] == found[1]
        assert ours.pending == twin.pending


@given(
    stream=st.lists(likely_lines, max_size=6).map(b"".join),
    codes=expected_codes,
    strict=st.booleans(),
)
def test_what_is_taken_together_is_what_would_be_taken_one_by_one(codec, stream, codes, strict):
    together, singly = codec.ReplyParser(strict), codec.ReplyParser(strict)
    for parser in (together, singly):
        parser.feed(stream)
    texts = together.take_replies(codes)
    if texts is None:
        assert together.pending == len(stream)
    else:
        assert [singly.next_reply() for _ in codes] == list(zip(codes, texts, strict=True))
        assert together.pending == singly.pending
    assert result_of(together.next_reply) == (
        result_of(singly.next_reply)
        if texts is not None
        else result_of(fresh(codec, stream, strict))
    )


def fresh(codec, stream, strict):
    parser = codec.ReplyParser(strict)
    parser.feed(stream)
    return parser.next_reply


# -- envelopes ----------------------------------------------------------------

PLAIN_ADDRESSES = [
    *("a@x", "a.b@x.example", "A-Z_0+9@X-1.example", "!#$%&'*+/=?^_`{|}~-@x", "-@-", "a@1"),
    "x" * 300 + "@" + "y." * 200 + "z",
]
OTHER_ADDRESSES = [
    *("", "a", "@x", "a@", ".a@x", "a.@x", "a..b@x", "a@.x", "a@x.", "a@x..y", "a@@x", "a@x@y"),
    *("<a@x>", "A <a@x>", '"a"@x', "a b@x", "a@x y", "a,b@x", "a@x_y", "a@x+y", "a@[127.0.0.1]"),
    *("a@x\n", "a@x\r\nDATA", "\na@x", "a\0@x", "a@x\0", "a@x\x7f", "a\t@x", "a@x>", "a@x> B=1"),
    *("\xe9@x", "a@\xe9", "a@x\udcff", "\uff41@x", "a@x\u3002y", "\u0661@x", "a@\u0661"),
]


def test_an_envelope_of_plain_addresses(codec):
    for sender in ("", *PLAIN_ADDRESSES):
        for count in (0, 1, len(PLAIN_ADDRESSES)):
            recipients = PLAIN_ADDRESSES[:count]
            lines = [f"MAIL FROM:<{sender}> SIZE=5", *(f"RCPT TO:<{to}> A=B" for to in recipients)]
            found = codec.envelope_commands(sender, recipients, " SIZE=5", " A=B")
            assert found == ("\r\n".join(lines) + "\r\n").encode()
            assert type(found) is bytes
    assert codec.envelope_commands("f@x", ["a@x"]) == b"MAIL FROM:<f@x>\r\nRCPT TO:<a@x>\r\n"
    assert codec.envelope_commands(
        mail_parameters=" M", rcpt_parameters=" R", sender="", recipients=("a@x", "b@x")
    ) == (b"MAIL FROM:<> M\r\nRCPT TO:<a@x> R\r\nRCPT TO:<b@x> R\r\n")


@pytest.mark.parametrize("address", OTHER_ADDRESSES)
def test_an_address_that_is_not_plain_is_not_written(codec, address):
    assert codec.envelope_commands("f@x", [address]) is None
    assert codec.envelope_commands("f@x", ["a@x", address, "b@x"]) is None
    if address:
        assert codec.envelope_commands(address, ["a@x"]) is None


@pytest.mark.parametrize("to", [None, 5, b"a@x", ["a@x"], object()])
def test_a_recipient_of_another_kind_is_not_written(codec, to):
    assert codec.envelope_commands("f@x", [to]) is None
    assert codec.envelope_commands("f@x", ["a@x", to]) is None


@pytest.mark.parametrize("recipients", [
    lambda: ["a@x", "b@x"], lambda: ("a@x", "b@x"), lambda: iter(["a@x", "b@x"]),
    lambda: dict.fromkeys(["a@x", "b@x"]), lambda: (to for to in ["a@x", "b@x"]),
])  # fmt: skip
def test_recipients_may_be_any_iterable(codec, recipients):
    expected = b"MAIL FROM:<f@x>\r\nRCPT TO:<a@x>\r\nRCPT TO:<b@x>\r\n"
    assert codec.envelope_commands("f@x", recipients()) == expected


@pytest.mark.parametrize("sender", [None, 5, b"f@x", ["f@x"]])
def test_a_sender_that_is_no_text(codec, sender):
    with pytest.raises(TypeError, match=f"^an address must be str, not {type(sender).__name__}$"):
        codec.envelope_commands(sender, ["a@x"])


@pytest.mark.parametrize("recipients", [None, 5])
@pytest.mark.parametrize("sender", ["f@x", "f f@x", ""])
def test_recipients_that_are_not_iterable(codec, sender, recipients):
    with pytest.raises(TypeError, match="not iterable"):
        codec.envelope_commands(sender, recipients)


@pytest.mark.parametrize("parameters", [
    " A\r\nDATA", "\n", " A\0", " A\x7f", " \x1f", " \t", " \xe9", " \ud800", None, 5, b" A",
])  # fmt: skip
def test_parameters_that_cannot_be_written(codec, parameters):
    control = isinstance(parameters, str) and parameters.isascii()
    error = "hold a control character" if control else "are not ASCII text"
    with pytest.raises(ValueError, match=f"^parameters {error}: ") as raised:
        codec.envelope_commands("f@x", ["a@x"], parameters)
    assert raised.value.args[0].endswith(repr(parameters))
    with pytest.raises(ValueError, match=f"^parameters {error}: "):
        codec.envelope_commands("f@x", ["a@x"], " A", parameters)
    with pytest.raises(ValueError, match=f"^parameters {error}: "):
        codec.envelope_commands(None, None, parameters)


class Address(str, enum.Enum):
    """What many programs keep their addresses in."""

    SENDER = "f@x"
    RECIPIENT = "a@x"


class Disguised(str):
    """Text that shows something else than what it is."""

    __slots__ = ()

    def __str__(self):
        return "evil@x>\r\nDATA\r\n<"

    def __format__(self, spec):
        return str(self)

    __repr__ = __str__

    def __len__(self):
        return 3

    def __bool__(self):
        return False

    def encode(self, *args):
        return b"evil"

    def isascii(self):
        return True

    def isprintable(self):
        return True


@pytest.mark.parametrize("kind", [Text, Disguised])
def test_an_address_is_taken_by_its_characters(codec, kind):
    for length in (3, 30, 300):
        address = "a" * (length - 2) + "@x"
        written = codec.envelope_commands(kind(address), [kind(address)] * 3)
        assert written == codec.envelope_commands(address, [address] * 3)
    for address in OTHER_ADDRESSES[1:]:
        assert codec.envelope_commands(kind(address), ["a@x"]) is None
        assert codec.envelope_commands("f@x", [kind(address)]) is None


def test_an_address_may_be_a_member_of_an_enumeration(codec):
    # format() gives its name from Python 3.12 on.
    expected = b"MAIL FROM:<f@x>\r\nRCPT TO:<a@x>\r\n"
    assert codec.envelope_commands(Address.SENDER, [Address.RECIPIENT]) == expected


class Grows(str):
    """An address whose list grows while it is looked at."""

    __slots__ = ("recipients",)

    def __len__(self):
        self.recipients.append("b" * 5000 + "@x")
        return str.__len__(self)


def test_a_list_that_grows_is_not_written_past_its_end(codec):
    address = Grows("a@x")
    address.recipients = recipients = [address, "c@x"]
    expected = b"MAIL FROM:<f@x>\r\nRCPT TO:<a@x>\r\nRCPT TO:<c@x>\r\n"
    assert codec.envelope_commands("f@x", recipients)[: len(expected)] == expected


address_like = (
    st.text('a.@-+<> "\r\n\xe9\0', max_size=8)
    | st.from_regex(r"[a-z.]{1,4}@[a-z.-]{1,5}", fullmatch=True)
    | st.sampled_from([*PLAIN_ADDRESSES, *OTHER_ADDRESSES])
)


@given(
    sender=address_like | st.sampled_from([None, b"f@x"]),
    recipients=st.lists(address_like | st.sampled_from([None, 5, b"a@x"]), max_size=4),
    mail=st.text(" A=\r\n\x7f\xe9", max_size=6) | st.none(),
    rcpt=st.text(" A=\r\n\x7f\xe9", max_size=6),
    as_kind=st.sampled_from([list, tuple, iter]),
)
@example(sender="f@x", recipients=["a@x"] * 4, mail=" A", rcpt="", as_kind=list)
def test_the_twins_write_the_same_envelope(compiled, sender, recipients, mail, rcpt, as_kind):
    found = [
        result_of(module.envelope_commands, sender, as_kind(recipients), mail, rcpt)
        for module in (compiled, _codec_py)
    ]
    assert found[0] == found[1]
    if found[0][0] is bytes:
        assert found[0][1].count(b"\r\n") == found[0][1].count(b"\n") == 1 + len(recipients)


@given(address=address_like)
def test_plain_is_what_envelope_py_says(codec, address):
    plain = envelope._PLAIN.fullmatch(address) is not None
    assert (codec.envelope_commands("f@x", [address]) is not None) == plain
    assert (codec.envelope_commands(address, ["a@x"]) is not None) == (plain or not address)


# -- base64 for AUTH ----------------------------------------------------------


class Deceptive(str):
    """Text whose methods are not to be trusted with memory."""

    __slots__ = ()

    def encode(self, *args):
        return 5

    def replace(self, *args):
        return "abc"

    def isascii(self):
        return True


def test_a_subclass_of_str_is_taken_by_its_characters(codec):
    assert codec.sasl_base64(Deceptive("é")) == base64.b64encode("é".encode())
    assert bytes(codec.normalize_newlines(Deceptive("a\n"))) == b"a\r\n"
    with pytest.raises(UnicodeEncodeError):
        codec.normalize_newlines(Deceptive("é"))


def octets(value: str | bytes) -> bytes:
    return value.encode("utf-8") if isinstance(value, str) else value


def encodable(forbidden: str = ""):
    characters = st.characters(exclude_categories=["Cs"], exclude_characters=forbidden)
    encoded = [octets(forbidden)] if forbidden else []
    data = st.binary(max_size=20).filter(lambda data: not any(each in data for each in encoded))
    return st.text(characters, max_size=20) | data


@given(value=encodable())
def test_base64(codec, value):
    assert codec.sasl_base64(value) == base64.b64encode(octets(value))


@given(user=encodable("\0"), password=encodable("\0"), authzid=encodable("\0"))
def test_plain(codec, user, password, authzid):
    message = b"\0".join(map(octets, (authzid, user, password)))
    assert codec.sasl_plain(user, password, authzid) == base64.b64encode(message)
    assert codec.sasl_plain(password=password, user=user) == (
        base64.b64encode(b"\0" + octets(user) + b"\0" + octets(password))
    )


@given(user=encodable("\1"), token=encodable("\1"))
def test_xoauth2(codec, user, token):
    message = b"user=" + octets(user) + b"\1auth=Bearer " + octets(token) + b"\1\1"
    assert codec.sasl_xoauth2(user, token) == base64.b64encode(message)


@given(user=encodable(), password=encodable(), challenge=st.binary(max_size=100))
def test_cram_md5(codec, user, password, challenge):
    digest = hmac.new(octets(password), challenge, "md5").hexdigest()
    answer = octets(user) + b" " + digest.encode()
    assert codec.sasl_cram_md5(user, password, challenge) == base64.b64encode(answer)


def test_cram_md5_as_in_rfc_2195(codec):
    challenge = b"<1896.697170952@postoffice.reston.mci.net>"
    answer = b"dGltIGI5MTNhNjAyYzdlZGE3YTQ5NWI0ZTZlNzMzNGQzODkw"
    assert codec.sasl_cram_md5("tim", "tanstaaftanstaaf", challenge) == answer


SECRET = "hunter2"
REFUSED = [
    ("sasl_base64", (f"{SECRET}\ud800",), "UTF-8"),
    ("sasl_plain", ("user", f"{SECRET}\udcff"), "UTF-8"),
    ("sasl_plain", (f"\ud800{SECRET}", "password"), "UTF-8"),
    ("sasl_plain", ("user", "password", f"\ud800{SECRET}"), "UTF-8"),
    ("sasl_xoauth2", ("user", f"{SECRET}\ud800"), "UTF-8"),
    ("sasl_cram_md5", ("user", f"{SECRET}\ud800", b"challenge"), "UTF-8"),
    ("sasl_cram_md5", (f"{SECRET}\ud800", "password", b"challenge"), "UTF-8"),
    ("sasl_plain", ("user", f"{SECRET}\0"), r"separator b'\\x00'"),
    ("sasl_plain", ("user", f"\0{SECRET}".encode()), r"separator b'\\x00'"),
    ("sasl_plain", (f"{SECRET}\0", "password"), r"separator b'\\x00'"),
    ("sasl_plain", ("user", "password", f"{SECRET}\0"), r"separator b'\\x00'"),
    ("sasl_xoauth2", ("user", f"{SECRET}\1"), r"separator b'\\x01'"),
    ("sasl_xoauth2", (f"{SECRET}é\1".encode(), "token"), r"separator b'\\x01'"),
]


@pytest.mark.parametrize(("name", "values", "error"), REFUSED)
def test_a_refused_secret_is_not_shown(codec, name, values, error):
    with pytest.raises(ValueError, match=error) as raised:
        getattr(codec, name)(*values)
    assert raised.value.__context__ is None
    shown = "".join(traceback.format_exception_only(type(raised.value), raised.value))
    assert SECRET not in shown


@pytest.mark.parametrize("value", [None, 7, bytearray(SECRET.encode())])
def test_what_is_no_sasl_value(codec, value):
    message = f"^a SASL value must be str or bytes, not {type(value).__name__}$"
    for call in (
        lambda: codec.sasl_base64(value),
        lambda: codec.sasl_plain("user", value),
        lambda: codec.sasl_xoauth2(value, "token"),
        lambda: codec.sasl_cram_md5("user", value, b""),
    ):
        with pytest.raises(TypeError, match=message):
            call()


@given(value=st.binary(max_size=40))
def test_a_challenge_is_decoded(codec, value):
    encoded = base64.b64encode(value)
    assert codec.decode_challenge(encoded) == value
    spaced = b" ".join(encoded[at : at + 1] for at in range(len(encoded)))
    assert codec.decode_challenge(spaced + b"\r\n") == value


@pytest.mark.parametrize("text", [b"a", b"ab", b"abc", b"abcde", b"Enter password"])
def test_a_challenge_that_is_not_base64(codec, text):
    with pytest.raises(ValueError, match=r"padding|base64") as raised:
        codec.decode_challenge(text)
    assert raised.type is binascii.Error


# -- threads ------------------------------------------------------------------


def together(count, work):
    """Run work(0) ... work(count - 1) in as many threads at once; return what they return."""
    barrier = threading.Barrier(count)

    def start(number):
        barrier.wait()
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(start, range(count)))


def test_threads_share_the_codec(codec):
    texts = [DIRTY, CLEAN, DIRTY * 5000, CLEAN * 5000, (b"x" * 5000 + b"\n") * 20]
    expected = [framed(normal(text)) for text in texts]
    plain = base64.b64encode(b"\0user\0password")

    def work(number):
        for turn in range(40):
            which = (turn + number) % len(texts)
            assert b"".join(codec.data_payload(texts[which], True)[1]) == expected[which]
            assert codec.sasl_plain("user", "password") == plain
            parser = codec.ReplyParser()
            parser.feed(b"250-%d\r\n250 %d\r\n" % (number, turn))
            assert parser.next_reply() == (250, b"%d\n%d" % (number, turn))

    together(8, work)


def assert_framed(wire: bytes, size: int, normalize: bool) -> None:
    message = re.sub(rb"(?m)^\.", b"", wire[: -len(b".\r\n")])
    assert framed(message) == wire
    assert size in (len(message), len(message) - len(b"\r\n"))
    assert not normalize or normal(message) == message


def test_a_buffer_may_change_while_it_is_encoded(codec):
    # What comes out need not be what was there at any one time, but it must be
    # the framing of something: no line that ends the data early, nothing lost.
    data = bytearray(b"x" * (2 * LARGE))
    places = [*range(0, len(data), 9973), *range(511, 530), *range(len(data) - 3, len(data))]
    encoders, rounds = 4, 40
    running = [None] * encoders

    def mutate():
        choose = random.Random(1870).choice
        while running:
            for place in places:
                data[place] = choose(b"\r\n.x")

    def encode():
        try:
            for turn in range(rounds):
                normalize = bool(turn % 2)
                size, buffers = codec.data_payload(data, normalize)
                if isinstance(buffers[0], bytes):
                    assert_framed(b"".join(buffers), size, normalize)
                else:
                    assert buffers[0].obj is data
        finally:
            running.pop()

    together(encoders + 1, lambda number: encode() if number else mutate())


def test_threads_that_share_a_parser_do_no_harm(codec):
    # It is not meant for this: what is found may be wrong, but nothing breaks.
    parser = codec.ReplyParser(max_line=1 << 20)

    def work(number):
        found = []
        for turn in range(400):
            parser.feed(b"250-%d\r\n" % number)
            parser.feed(b"250 " + b"x" * turn + b"\r\n")
            found += [parser.next_reply(), parser.take_line(turn), parser.pending]
        return found

    for found in together(6, work):
        assert len(found) == 1200
        assert all(isinstance(each, (tuple, bytes, int, type(None))) for each in found)
    while parser.take_line(100):
        pass
