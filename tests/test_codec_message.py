"""What the codec does for messages and their headers, compiled and in Python."""

from __future__ import annotations

import io
import re
from email.errors import HeaderParseError
from email.generator import BytesGenerator
from email.header import Header
from email.headerregistry import HeaderRegistry
from email.message import Message
from email.policy import default
from email.utils import getaddresses

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastsmtp import _codec_py
from fastsmtp.errors import SMTPProtocolError, SMTPResponseException
from fastsmtp.fields import _TOKENS as KINDS

MANY = 1 << 62
texts = st.text("\r\n.aF \xe9From", max_size=30) | st.lists(
    st.sampled_from(["From ", "\n", "\r", "\r\n", ">", "x" * 250, "F", "From: ", "\xff"]),
    max_size=9,
).map("".join)


def twins():
    """Return the codecs that there are; what one does the others do."""
    try:
        from fastsmtp import _codec
    except ImportError:
        return [_codec_py]
    return [_codec, _codec_py]


def result_of(call, *arguments):
    """Return what came of a call so that two can be compared: types count."""
    try:
        result = call(*arguments)
    except Exception as error:
        return type(error), str(error)
    return type(result), result


def alike(name, *arguments):
    """Return what a function of the codec does, the same in both."""
    found = [result_of(getattr(module, name), *arguments) for module in twins()]
    assert found[0] == found[-1]
    return found[0][1]


# -- assemble -----------------------------------------------------------------


def assembled(piece: str | bytes, newline: bytes, mangle: bool) -> bytes:
    if isinstance(piece, bytes):
        return piece
    if mangle:
        piece = re.sub("(?m)^From ", ">From ", piece)
    return newline.join(re.split(b"\r\n|\r|\n", piece.encode("latin-1")))


@given(
    pieces=st.lists(texts | st.binary(max_size=9), max_size=5),
    newline=st.sampled_from([b"\r\n", b"\n", b"\r", b"", b"\\1"]),
    mangle=st.booleans(),
)
@example(pieces=["From a\nFrom b"] * 20, newline=b"\r\n", mangle=True)
def test_assemble(pieces, newline, mangle):
    expected = b"".join(assembled(piece, newline, mangle) for piece in pieces)
    assert alike("assemble", pieces, newline, mangle) == expected


@pytest.mark.parametrize("before", [0, 1, 238, 239, 240, 241, 242, 479, 480, 481, 70_000])
@pytest.mark.parametrize("line", ["From x", "From ", "From", "From\n", "Fro", "F"])
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r", "\n\n", "x", "\r\n\r"])
def test_lines_that_begin_with_from_are_found_anywhere(before, line, ends):
    piece = "x" * before + ends + line
    for mangle in (False, True):
        expected = assembled(piece, b"\r\n", mangle)
        assert alike("assemble", [piece], b"\r\n", mangle) == expected
        assert alike("assemble", [piece + "\n", piece], b"\r\n", mangle) == (
            assembled(piece + "\n", b"\r\n", mangle) + expected
        )


@pytest.mark.parametrize("piece", ["\u0100", "a\ud800", None, 5, bytearray(b"a")])
def test_pieces_of_another_kind(piece):
    error = UnicodeEncodeError if isinstance(piece, str) else TypeError
    for module in twins():
        with pytest.raises(error):
            module.assemble([b"a", piece], b"\r\n", False)


def test_no_pieces():
    assert alike("assemble", [], b"\r\n", True) == b""
    assert alike("assemble", [b"", ""], b"\r\n", True) == b""


# -- header fields ------------------------------------------------------------

names = st.sampled_from(["Subject", "X-Y", "To", "", "a b", "\xe9", "N:"]) | st.integers(1, 9).map(
    "X".__mul__
)
values = st.text(" \t\r\nab\x7f\xe9\0!~", max_size=12) | st.lists(
    st.sampled_from(["word", " ", "\t", "\n ", "\r\n\t", "\n", "\r", ",", "\r\n"]), max_size=9
).map("".join)


@given(name=names, value=values, limit=st.integers(-1, 30) | st.just(MANY), folded=st.booleans())
@example(name="X", value="a", limit=4, folded=False)
@example(name="X", value="a", limit=3, folded=False)
@example(name="X", value="ab\r\n  cd\n\te", limit=5, folded=True)
@example(name="X", value="ab\r\n  cd\n\te", limit=5, folded=False)
@example(name="X", value="a\tb", limit=9, folded=False)
def test_field_line(name, value, limit, folded):
    line = alike("field_line", name, value, limit, b"<>", folded)
    if line is None:
        return
    lines = value.replace("\r\n", "\n").split("\n")
    assert folded or len(lines) == 1
    assert all(each == each.rstrip() and each.isascii() for each in lines)
    assert line == "<>".join([f"{name}: {lines[0]}", *lines[1:], ""]).encode("ascii")
    assert max(map(len, line.split(b"<>"))) <= limit
    # It is what the email package does with it.
    if limit > 20:
        message = Message()
        message.set_raw(name, value)
        with io.BytesIO() as written:
            BytesGenerator(written).flatten(message, linesep="<>")
            assert written.getvalue() == line + b"<>"


@pytest.mark.parametrize("value", ["a", "a b", "a\r\n b", "a\n b\n\tc", "x" * 500])
def test_what_is_plain_is_written(value):
    assert alike("field_line", "X", value, MANY, b"\n", True) == (
        f"X: {value}\n".replace("\r", "").encode()
    )


@pytest.mark.parametrize(
    "value",
    ["", " ", "a ", " a", "a\n", "a\nb", "a \n b", "a\n \n b", "a\r b", "a\r\r\n b", "\n a",
     "a\0", "a\x7f", "a\xe9", "a\x0b", "a\x1cb", None, 5, b"a"],
)  # fmt: skip
def test_what_is_not_plain_is_left_to_others(value):
    assert alike("field_line", "X", value, MANY, b"\n", True) is None
    assert alike("field_line", value, "a", MANY, b"\n", True) is None  # nor as a name


REGISTRY = HeaderRegistry()
header_texts = st.lists(
    st.sampled_from(
        ["a@example.org", "Ann Example <ann@example.org>", '"b, c" <d@example.org>', ", ", ",", " ",
         "(note)", "word", "=?utf-8?q?x?=", "x" * 30, "group: ", ";", "\t", "é"]
    ),
    max_size=9,
).map("".join)  # fmt: skip


@given(
    name=st.sampled_from(["Subject", "To", "From", "X-Y", "Message-ID"]),
    value=header_texts,
    limit=st.integers(10, 90) | st.just(MANY),
)
@example(name="To", value=", ".join(["Ann Example <ann@example.org>"] * 9), limit=78)
@example(name="To", value=",".join(["ann@example.org"] * 9), limit=78)
@example(name="Subject", value="word " * 40 + "word", limit=78)
@example(name="Subject", value="x" * 70, limit=78)
def test_tokens_line(name, value, limit):
    try:
        header = REGISTRY(name, value)
    except (HeaderParseError, IndexError, AttributeError):
        return  # some that the email package cannot read
    line = alike("tokens_line", header.name, header._parse_tree, KINDS, limit, b"\n")
    if line is not None:
        expected = header.fold(policy=default.clone(max_line_length=limit))
        assert line == expected.encode("ascii")
    else:
        text = str(header._parse_tree)
        fits = text.isascii() and len(name) + 2 + len(text) <= limit
        assert not (fits and text and text == text.strip(" ") and text.isprintable())


def test_many_addresses_are_in_several_lines():
    value = ", ".join(f"Person {number} <p{number}@example.org>" for number in range(100))
    header = REGISTRY("To", value)
    line = alike("tokens_line", "To", header._parse_tree, KINDS, 78, b"\r\n")
    assert line == header.fold(policy=default.clone(linesep="\r\n")).encode()
    assert line.count(b"\r\n") > 30


def test_tokens_of_kinds_that_are_not_known():
    tokens = REGISTRY("To", "a@example.org")._parse_tree
    assert alike("tokens_line", "To", tokens, {}, 78, b"\n") == b"To: a@example.org\n"
    wrong = dict.fromkeys(KINDS, True)
    assert alike("tokens_line", "To", tokens, wrong, 78, b"\n") == b"To: a@example.org\n"


@given(
    fields=st.lists(
        st.tuples(st.sampled_from(["To", "TO", "b", "É"]), st.sampled_from(["a", "é", None, "c"]))
    )
)
def test_first_values(fields):
    values, is_ascii = alike("first_values", fields)
    assert list(values) == list(dict.fromkeys(name.lower() for name, _ in fields))
    for name, value in values.items():
        assert value == next(value for key, value in fields if key.lower() == name)
    assert is_ascii == all(isinstance(v, str) and v.isascii() for _, v in fields)


def test_names_that_are_no_text():
    for module in twins():
        with pytest.raises(AttributeError):
            module.first_values([(5, "a")])


# -- addresses ----------------------------------------------------------------

mailboxes = st.sampled_from(
    ["a@example.org", "Ann Example <ann@example.org>", '"Example, Ann" <a@x>', "Jürgen <j@x>",
     "J. Doe <j@x>", "<a@x>", '"" <a@x>', "=?utf-8?q?J=C3=BC?= <j@x>", '"a"<b@x>', "a.b+c@x.org"]
)  # fmt: skip
odd = st.sampled_from(
    ["", " ", "a", "a@", "@x", "a@x b@x", "a@x (c)", "g: a@x;", '"a\\"b" <a@x>', "<a@x", "a@x>",
     "Ann <a@x> b", "a b@x", '"a" b <c@x>', "a@x\0", "=?utf-8?q?a=40b?=@x", "<@r:a@x>",
     "a@[1.2.3.4]",
     '"a b"@x', "a..b@x", "a@x.", "A\ud800 <a@x>", "A\x85 <a@x>", "A\n <a@x>", "<<a@x>>", "a,@x"]
)  # fmt: skip
separators = st.sampled_from([",", ", ", " , ", ",\r\n ", ",\n\t", "", " ", ",,", ";"])


@given(items=st.lists(st.tuples(mailboxes | odd, separators), max_size=5), before=separators)
def test_plain_addresses_are_those_that_the_email_package_finds(items, before):
    text = before + "".join(item + separator for item, separator in items)
    found = alike("plain_addresses", text)
    if found is not None:
        assert found == [address for _, address in getaddresses([text])]
        assert found == [address for _, address in getaddresses([Header(text, "utf-8")])]


@given(items=st.lists(mailboxes, min_size=1, max_size=6), separator=st.sampled_from([",", ", "]))
def test_usual_lists_are_plain(items, separator):
    found = alike("plain_addresses", separator.join(items))
    assert found == [address for _, address in getaddresses([separator.join(items)])]


@given(item=odd)
def test_what_is_not_plain_is_none_of_it(item):
    for text in (item, f"a@x, {item}", f"{item}, a@x"):
        assert alike("plain_addresses", text) is None


@pytest.mark.parametrize("text", [None, 5, b"a@x"])
def test_addresses_in_what_is_no_text(text):
    assert alike("plain_addresses", text) is None


def test_a_million_brackets_take_no_time():
    for text in (
        " " * 1_000_000,
        "\n" * 1_000_000 + "(",
        '"a"' + " " * 1_000_000,
        "a" + " " * 1_000_000,
        "(" * 1_000_000,
        "<" * 1_000_000,
        '"' * 1_000_001,
        "a " * 500_000,
        "a." * 500_000,
    ):
        assert alike("plain_addresses", text) is None
        assert alike("plain_addresses", "a@x," * 1000 + text) is None


# -- several replies ----------------------------------------------------------

STREAM = b"250 a\r\n250-b\r\n250 c\r\n550 d\r\n354 e\r\n"


def of_twins(call):
    """Return what *call* makes of a parser, the same for both."""
    found = [call(module.ReplyParser) for module in twins()]
    assert found[0] == found[-1]
    return found[0]


@pytest.mark.parametrize("most", range(-1, 6))
def test_next_replies(most):
    def run(kind):
        parser = kind()
        parser.feed(STREAM)
        return parser.next_replies(most), parser.next_reply()

    expected = [(250, b"a"), (250, b"b\nc"), (550, b"d"), (354, b"e"), None]
    most = max(0, most)
    assert of_twins(run) == (expected[:4][:most], expected[min(most, 4)])


@pytest.mark.parametrize("cut", range(len(STREAM) + 1))
def test_next_replies_of_half_a_stream(cut):
    def run(kind):
        parser = kind()
        parser.feed(STREAM[:cut] or b"2")
        first = parser.next_replies(9)
        parser.feed(STREAM[cut:] or b"2")
        return first + parser.next_replies(9)

    assert len(of_twins(run)) >= (4 if 0 < cut < len(STREAM) else 3)


def test_no_reply_after_a_421():
    def run(kind):
        parser = kind()
        parser.feed(b"250 a\r\n421 b\r\n250 c\r\n")
        return parser.next_replies(9), parser.next_replies(9)

    assert of_twins(run) == ([(250, b"a"), (421, b"b")], [(250, b"c")])


@pytest.mark.parametrize("strict", [False, True])
def test_replies_before_a_bad_one_are_not_lost(strict):
    bad = b"abc\r\n" if strict else b"250 " + b"x" * 9000

    def run(kind):
        parser = kind(strict)
        parser.feed(b"250 a\r\n" + bad)
        first = parser.next_replies(9)
        for _ in range(2):
            with pytest.raises(SMTPProtocolError if strict else SMTPResponseException):
                parser.next_replies(9)
        return first

    assert of_twins(run) == [(250, b"a")]
