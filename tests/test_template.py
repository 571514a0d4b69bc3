"""Templates: what is rendered reads back as the values, wherever they stand, or is refused."""

from __future__ import annotations

import base64
import copy
import email
import email.policy
import enum
import html
import quopri
import re
import sqlite3
import threading
from decimal import Decimal
from email.header import Header, decode_header, make_header
from email.headerregistry import Address
from email.message import EmailMessage, Message
from email.mime.text import MIMEText
from email.utils import getaddresses

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support import ModelServer

import fastsmtp
from fastsmtp import Mailer, Options, Template

PARSER = email.policy.default
#: What line breaks and other control characters a header must not have.
CONTROLS = ("\r", "\n", "\r\n", "\0", "\t", "\x1b", "\x7f", "\x85", "\x9b", "\u2028", "\u2029")
INJECTIONS = ["x\r\nBcc: evil@example.com", "x\nX-Evil: 1", "x\r\n\r\nbody", "x\r\n Bcc: folded"]
HARD = [
    "", " ", "  ", " x", "x ", "a  b", "a   b   c " * 20, "=?utf-8?q?x?=", "=?utf-8?q?=41?= x",
    "a=?b", '"', "\\", '"a" \\ b', "a\\", ",", "Doe, Jane", "a;b", "<a@example.com>", "(x)",
    "a@example.com", "ü", "Jürgen Groß",
    "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd", "e\u0301" * 60,
    "\U0001f468\u200d\U0001f469\u200d\U0001f467" * 12, "日本語" * 30, "n" * 1000, "ñ" * 1000,
    "word " * 200, "%s %d %", "{x} {{y}} {{x}}", "a.b", "--b", "J. R.", "\u00a0",
    "\u3000x", "_", "?=",
]  # fmt: skip

header_text = st.one_of(
    st.sampled_from(HARD),
    st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=120),
    st.text(st.sampled_from('aé😀 =?_.,<>@"\\()-'), max_size=200),
    st.text(st.sampled_from("ab  "), max_size=300),
)
body_text = st.one_of(
    st.sampled_from([*HARD, "a\nb", "a\r\nb", "\n", " \n ", "x \n", "\n.\n", "a\rb", "\n--b--\n"]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=300),
    st.text(st.sampled_from("a =\n.\t\0é😀-<&'\""), max_size=300),
)


def letter(*, text: str | None = "Hello\n", **fields: str) -> EmailMessage:
    message = EmailMessage()
    for name, value in {"From": "f@example.org", "To": "{{to}}@example.org", **fields}.items():
        message[name.replace("_", "-")] = value
    if text is not None:
        message.set_content(text)
    return message


def render(message, **fields) -> bytes:
    """Return what one recipient gets; *to* is there by itself."""
    template = Template(message)
    defaults = {"to": "t"} if "to" in template.fields else {}
    return check(template.render({**defaults, **fields}).content)


def check(content: bytes) -> bytes:
    """Return it if its lines are what RFC 5322 and RFC 2045 ask for, and ASCII."""
    assert content.isascii()
    assert not re.search(rb"\r(?!\n)|(?<!\r)\n", content)
    assert max(map(len, content.split(b"\r\n"))) <= 998
    return content


def parsed(content: bytes) -> EmailMessage:
    return email.message_from_bytes(content, policy=PARSER)


def raw_field(content: bytes, name: str) -> str:
    """Return a header field's value, unfolded (RFC 5322, section 2.2.3)."""
    header = content.partition(b"\r\n\r\n")[0].decode() + "\r\n"
    (value,) = re.findall(
        rf"^{name}: ((?:.*\r\n)(?:[ \t].*\r\n)*)", header, re.MULTILINE | re.IGNORECASE
    )
    return value.replace("\r\n", "")


WORD = re.compile(r"=\?utf-8\?([bq])\?([^?\s]*)\?=")


def decoded(text: str) -> str:
    """Decode RFC 2047, independently of the parser: utf-8, each word of whole characters."""

    def word(match: re.Match[str]) -> str:
        assert len(match[0]) <= 75
        if match[1] == "b":
            return base64.b64decode(match[2], validate=True).decode()
        return quopri.decodestring(match[2].replace("_", " "), header=False).decode()

    return WORD.sub(word, re.sub(r"(?<=\?=) +(?==\?utf-8\?)", "", text))


def body_lines(content: bytes) -> list[bytes]:
    return content.partition(b"\r\n\r\n")[2].split(b"\r\n")


def normal(text: str) -> str:
    """Return a text with LF for every line break that mail has."""
    return text.replace("\r\n", "\n")


# -- fields and values ----------------------------------------------------------


def test_a_template():
    template = Template(
        letter(
            To="{{name}} <{{email}}>",
            Subject="Hello {{ name }}",
            Message_ID="<{{id}}@example.org>",
            text="Dear {{name}},\nyour code: {{  code\t}}\n",
        )
    )
    assert template.fields == frozenset({"name", "email", "id", "code"})
    assert repr(template) == "<Template of code, email, id, name>"
    options = Options(ret="hdrs")
    row = {"name": "Ann Lee", "email": "ann@example.net", "id": "7.ann", "code": 12}
    message = template.render(row, id=5, options=options)
    assert type(message) is fastsmtp.Message
    assert (message.sender, message.recipients) == ("f@example.org", ["ann@example.net"])
    assert (message.id, message.options) == (5, options)
    assert message.content == (
        b"From: f@example.org\r\nTo: Ann Lee <ann@example.net>\r\nSubject: Hello Ann Lee\r\n"
        b"Message-ID: <7.ann@example.org>\r\n"
        b'Content-Type: text/plain; charset="utf-8"\r\n'
        b"Content-Transfer-Encoding: quoted-printable\r\nMIME-Version: 1.0\r\n\r\n"
        b"Dear Ann Lee,\r\nyour code: 12\r\n"
    )


def test_a_template_without_fields():
    message = letter(To="t@example.org", Subject="Grüße", text="Grüße, {x}\n")
    template = Template(message)
    assert template.fields == frozenset()
    assert repr(template) == "<Template of no fields>"
    rendered = template.render({})
    seven_bit = email.policy.SMTP.clone(cte_type="7bit")
    assert rendered.content == message.as_bytes(policy=seven_bit)
    assert rendered.recipients == ["t@example.org"]


@pytest.mark.parametrize("wrong", [None, "To: {{x}}\n\n", b"", fastsmtp.Message("a", "b", b"")])
def test_no_message(wrong):
    with pytest.raises(TypeError, match=r"a template is an email\.message\.Message, not"):
        Template(wrong)


@pytest.mark.parametrize(
    "text",
    ["{{ 1+1 }}", "{{#if x}}", "{{}}", "{{ }}", "{{x", "{{x}", "{{{x}}}", "{{a b}}", "{{1a}}",
     "{{é}}", "{{x.y}}", "{{x|upper}}", "ok {{x}} {{"],
)  # fmt: skip
def test_braces_that_are_no_field(text):
    shown = re.escape(repr(text[text.rfind("{{ ") if text.startswith("ok") else 0 :][:30])[1:-1])
    shown = re.escape("{{") if text.startswith("ok") else shown
    for message in (letter(Subject=text), letter(text=text), letter(X_A=text)):
        with pytest.raises(ValueError, match=shown + ".* is no field"):
            Template(message)
    for message in (letter(To=f"{text} <a@example.org>"), letter(To=f"<{text}>")):
        with pytest.raises(ValueError, match=r"is no field|cannot be read"):
            Template(message)


def test_missing_and_unknown_fields():
    template = Template(letter(Subject="{{b}} {{a}}"))
    with pytest.raises(ValueError, match=r"^missing fields 'a', 'b'; unknown field 'c'$"):
        template.render({"to": "x", "c": "y"})
    with pytest.raises(ValueError, match=r"^missing field 'b'$"):
        template.render({"to": "x", "a": "y"})
    with pytest.raises(ValueError, match=r"^unknown fields 'c', None$"):
        template.render({"to": "x", "a": "y", "b": "z", "c": "", None: ["csv"]})


def test_a_row_of_a_database():
    connection = sqlite3.connect(":memory:")
    connection.row_factory = sqlite3.Row
    (row,) = connection.execute("SELECT 'ann' AS 'to', 5 AS number")
    connection.close()
    template = Template(letter(Subject="{{number}}"))
    assert template.render(row).recipients == ["ann@example.org"]
    with pytest.raises(ValueError, match=r"^unknown field 'number'$"):
        Template(letter()).render(row)


class Color(str, enum.Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "text"),
    [(5, "5"), (-1.5, "-1.5"), (Decimal("10.00"), "10.00"), (Color.RED, "red"), ("x", "x")],
)
def test_values(value, text):
    assert parsed(render(letter(Subject="{{x}}"), x=value))["Subject"] == text


@pytest.mark.parametrize("value", [None, b"x", True, [], ("x",), {"x": 1}, 1j, object()])
def test_values_of_another_type(value):
    with pytest.raises(TypeError, match=f"field 'x' must be .* not {type(value).__name__}$"):
        render(letter(Subject="{{x}}"), x=value)


@pytest.mark.parametrize(
    "message",
    [
        letter(Subject="{{x}}"), letter(text="{{x}}"), letter(To="{{x}}"), letter(To="{{x}} <a@b>"),
        letter(References="<{{x}}@y>"),
    ],
)  # fmt: skip
def test_surrogates(message):
    with pytest.raises(ValueError, match=r"field 'x' is 'a\\ud800': .* surrogate"):
        render(message, x="a\ud800")


# -- unstructured headers -------------------------------------------------------


def check_unstructured(content: bytes, name: str, text: str) -> None:
    header = content.partition(b"\r\n\r\n")[0]
    assert decoded(raw_field(content, name)) == text
    assert parsed(content)[name] == text
    assert str(make_header(decode_header(raw_field(content, name)))) == text
    for line in header.split(b"\r\n"):
        assert len(line) <= (76 if b"=?utf-8?" in line else 78)
        assert line.strip()


@given(header_text)
@example("a" * 69)
@example("a" * 70)
@example("x" * 60 + " " * 30 + "y")
def test_subject(value):
    for subject in ("{{x}}", "Hello {{x}}!", "Für {{x}}"):
        text = subject.replace("{{x}}", value)
        content = render(letter(Subject=subject), x=value)
        check_unstructured(content, "Subject", text)
        assert parsed(content).keys() == letter(Subject="x").keys()
        if text.isascii() and text.isprintable() and "=?" not in text and len(text) <= 69:
            assert text != text.strip() or f"Subject: {text}\r\n".encode() in content


@given(header_text.filter(lambda text: all(len(word) < 900 for word in text.split())))
def test_headers_for_machines_keep_long_words(value):
    content = render(letter(X_Key="key {{x}}"), x=value)
    text = f"key {value}"
    assert decoded(raw_field(content, "X-Key")) == text
    if text.isascii() and "=?" not in text and text == text.strip():
        assert raw_field(content, "X-Key") == text


def test_a_long_word():
    url = "<https://example.org/?u=" + "x" * 200 + ">"
    machine = render(letter(List_Unsubscribe="<mailto:u@example.org>, {{x}}"), x=url)
    assert f"List-Unsubscribe: <mailto:u@example.org>,\r\n {url}\r\n".encode() in machine
    assert f"List-Unsubscribe: {url}\r\n".encode() in render(
        letter(List_Unsubscribe="{{x}}"), x=url
    )
    # Longer than a line may be: there is no way but encoded words.
    content = render(letter(List_Unsubscribe="{{x}}"), x=url * 5)
    check_unstructured(content, "List-Unsubscribe", url * 5)


def test_folding_is_before_spaces():
    text = "word  " * 30 + "end"
    content = render(letter(Subject="{{x}}"), x=text)
    assert content.count(b"\r\n  word") == 2
    assert raw_field(content, "Subject") == text


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("ü", "=?utf-8?b?w7w=?="),
        ("Jürgen", "=?utf-8?q?J=C3=BCrgen?="),
        ("üüüü", "=?utf-8?b?w7zDvMO8w7w=?="),
        ("Grüße, Ann_Lee?", "=?utf-8?b?R3LDvMOfZSwgQW5uX0xlZT8=?="),
        (" x", "=?utf-8?q?_x?="),
        ("=?utf-8?q?x?=", "=?utf-8?b?PT91dGYtOD9xP3g/PQ==?="),
    ],
)
def test_the_shorter_encoding(value, written):
    assert f"Subject: {written}\r\n".encode() in render(letter(Subject="{{x}}"), x=value)


def test_a_header_name_that_leaves_no_room():
    name = "X-" + "N" * 60
    content = render(letter(**{name: "{{x}}"}), x="ü" * 50)
    assert decoded(raw_field(content, name)) == "ü" * 50


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("header", ["Subject", "X-Any", "List-Id", "To", "From", "Reply-To"])
def test_control_characters(control, header):
    addresses = header in ("To", "From", "Reply-To")
    message = letter(**{header: "{{x}} {{y}} <a@example.org>" if addresses else "{{x}} {{y}}"})
    fields = {"to": "t"} if header != "To" else {}
    for value in (control, f"a{control}b", f"ü{control}"):
        with pytest.raises(ValueError, match=f"field 'y' of {header} .*header injection refused"):
            Template(message).render({"x": "fine", "y": value, **fields})


@pytest.mark.parametrize("value", INJECTIONS)
@pytest.mark.parametrize(
    "fields",
    [
        {"Subject": "a {{x}} b"}, {"X-A": "{{x}}"}, {"To": "{{x}} <a@b>"}, {"To": "{{x}}"},
        {"To": '"{{x}}" <{{x}}@example.org>'}, {"Cc": "a@example.org, {{x}}@example.org"},
        {"Bcc": "{{x}}"}, {"From": "{{x}} <a@example.org>"}, {"Message-ID": "<{{x}}@example.org>"},
        {"In-Reply-To": "<{{x}}@example.org>"}, {"Content-Description": "{{x}}"},
    ],
)  # fmt: skip
def test_injection(fields, value):
    with pytest.raises(ValueError, match="field 'x'"):
        render(letter(**fields), x=value)


# -- addresses ------------------------------------------------------------------


@given(header_text)
def test_display_names(value):
    for name in ("{{x}}", "Dr. {{x}}", '"{{x}}, Lee"', "Für {{ x }}"):
        content = render(letter(To=f"{name} <{{{{to}}}}@example.org>"), x=value)
        text = re.sub(r"\{\{ ?x ?\}\}", lambda _: value, name.strip('"'))
        check_addresses(content, "To", [(text, "t@example.org")])


def check_addresses(content: bytes, name: str, pairs: list[tuple[str, str]]) -> None:
    """Check what the field says, by a reading of its own.

    The parser of Python 3.10 to 3.13 is no judge of every name: it makes a space
    of what is between two encoded words, which RFC 2047, section 6.2, has it
    drop, and one of the white space in a word.  All else it has to read as we do.
    """
    value = raw_field(content, name)
    read, words = [], []
    for item in re.findall(r'(?:[^",]|"(?:[^"\\]|\\.)*")+', value):
        shown, address = re.fullmatch(r"\s*(?:(.*\S)\s*<(.*)>|(.*))", item, re.DOTALL).group(1, 2)
        shown = shown or ""
        words.append(shown.count("=?"))
        if shown.startswith('"'):
            assert "=?" not in shown
            shown = re.sub(r"\\(.)", r"\1", shown[1:-1])
        else:
            assert shown.startswith("=?utf-8?") or re.fullmatch(
                r"[A-Za-z0-9!#$%&'*+/?^_`{|}~ -]*", shown
            )
            shown = decoded(shown)
        read.append((shown, address or item.strip()))
    assert read == [("" if not shown.strip(" ") else shown, address) for shown, address in pairs]
    assert [address for _, address in getaddresses([value])] == [address for _, address in pairs]
    theirs = parsed(content)[name].addresses
    assert [a.addr_spec for a in theirs] == [a for _, a in pairs]
    for one, count, (text, _) in zip(theirs, words, pairs, strict=True):
        assert count > 1 or squeezed(one.display_name) == squeezed(text)
        assert count > 0 or one.display_name == ("" if not text.strip(" ") else text)
    for line in content.partition(b"\r\n\r\n")[0].split(b"\r\n"):
        assert len(line) <= (76 if b"=?utf-8?" in line else 78)


def squeezed(text: str) -> str:
    return " ".join(text.split())


@given(st.lists(header_text, min_size=1, max_size=4))
def test_lists(names):
    message = letter(
        To="Lee <lee@example.org>, "
        + ", ".join(f"{{{{n{i}}}}} <{{{{a{i}}}}}>" for i in range(len(names)))
        + ', "Doe, Jane" <jane@example.org>',
    )
    addresses = [f"person{i}@example.net" for i in range(len(names))]
    fields = {f"n{i}": name for i, name in enumerate(names)}
    fields |= {f"a{i}": address for i, address in enumerate(addresses)}
    rendered = Template(message).render(fields)
    pairs = [
        ("Lee", "lee@example.org"),
        *zip(names, addresses, strict=True),
        ("Doe, Jane", "jane@example.org"),
    ]
    check_addresses(check(rendered.content), "To", pairs)
    assert rendered.recipients == [address for _, address in pairs]


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("Ann Lee", "Ann Lee <t@example.org>"),
        ("", "t@example.org"),
        ("   ", "t@example.org"),
        ("Ann J. Lee", '"Ann J. Lee" <t@example.org>'),
        ("Lee, Ann", '"Lee, Ann" <t@example.org>'),
        ('Ann "A" \\ Lee', '"Ann \\"A\\" \\\\ Lee" <t@example.org>'),
        ("a  b", '"a  b" <t@example.org>'),
        (" a", '" a" <t@example.org>'),
        ("Ännchen", "=?utf-8?q?=C3=84nnchen?= <t@example.org>"),
        ("=?utf-8?q?x?=", "=?utf-8?b?PT91dGYtOD9xP3g/PQ==?= <t@example.org>"),
        ("a@example.com", '"a@example.com" <t@example.org>'),
        ("x> <evil@example.com", '"x> <evil@example.com" <t@example.org>'),
        ("x> , evil@example.com", '"x> , evil@example.com" <t@example.org>'),
    ],
)
def test_display_names_as_they_are_written(name, written):
    content = render(letter(To="{{x}} <{{to}}@example.org>"), x=name)
    assert raw_field(content, "To") == written


ATEXT = st.text(st.sampled_from("abzAZ019!#$%&'*+-/=?^_`{|}~"), min_size=1, max_size=12).filter(
    lambda text: "=?" not in text
)
DOMAIN = st.lists(st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True), min_size=1)


@given(st.lists(ATEXT, min_size=1, max_size=3).map(".".join), DOMAIN.map(".".join))
def test_addresses(local, domain):
    address = f"{local}@{domain}"[:254]
    rendered = Template(letter(To="{{x}}", Cc="N <{{x}}>, {{y}}@example.org")).render(
        {"x": address, "y": local}
    )
    check(rendered.content)
    assert rendered.recipients == [address, address, f"{local}@example.org"]
    assert raw_field(rendered.content, "To") == address
    assert raw_field(rendered.content, "Cc") == f"N <{address}>, {local}@example.org"


@pytest.mark.parametrize(
    "address",
    ['"a b"@example.org', '"a,b"@example.org', '"a\\"b"@example.org', "a@[192.0.2.1]",
     "a@[IPv6:::1]", "a@my_host.example.org", '""@example.org', "a@b"],
)  # fmt: skip
def test_rare_addresses(address):
    rendered = Template(letter(To="{{x}}", Cc="{{x}}, b@example.org")).render({"x": address})
    assert rendered.recipients == [address, address, "b@example.org"]
    assert rendered.content.startswith(
        f"From: f@example.org\r\nTo: {address}\r\nCc: {address}, b@example.org\r\n".encode()
    )


BAD_ADDRESSES = [
    "", " ", "a", "a@", "@example.org", "a@example.org,b@example.org",
    "a@example.org b@example.org", "a@example.org>, <b@example.org", "<a@example.org>",
    "Ann <a@example.org>", " a@example.org", "a@example.org ", "a b@example.org",
    "a..b@example.org", ".a@example.org", "a.@example.org", "a@example..org", "a@.org",
    "a@example.org.", "a@@example.org", "a@b@example.org", "a(x)@example.org", "a@example.org(x)",
    "a;b@example.org", "g:a@example.org;", 'a"b@example.org', '"a@example.org',
    '"a"b"@example.org', "a\\b@example.org", "a@[1.2", "a@exa mple.org",
    "a@example.org\r\nBcc: b@c", "a@example.org\0", "a@example.org\u2028", "a\u00a0b@example.org",
    "a\u202e@example.org", "a@ex,ample", "a@example.org SIZE=1", "@a:b@example.org",
    "a@\u2488example.org", "a@exämple..org", "a" * 250 + "@example.org",
    "ü" * 125 + "@example.org", "a@" + "ü" * 64 + ".org", '"a\nb"@example.org',
    "=?utf-8?q?a?=@example.org", "=?utf-8?q?a=0D=0ABcc:_b?=@example.org",
    '"=?utf-8?b?YUBi?="@example.org', "=?utf-8?b?w7w=?=ü@example.org",
]  # fmt: skip


@pytest.mark.parametrize("address", BAD_ADDRESSES)
def test_what_is_not_one_address(address):
    for to in ("{{x}}", "Ann <{{ x }}>", "b@example.org, {{x}}"):
        with pytest.raises(
            ValueError, match=r"^To: .* is not one address .*: field 'x' is "
        ) as told:
            render(letter(To=to), x=address)
        assert repr(normal(address)[:100])[1:-1] in str(told.value)


@given(st.text(st.sampled_from('ab@.,<>"\\ ();:[]é'), max_size=12))
def test_no_value_makes_two_addresses(value):
    for to in (
        "{{x}}",
        "N <{{x}}>",
        "{{x}}@example.org",
        'N <"{{x}}"@example.org>',
        "a{{x}}@b.org",
    ):
        try:
            rendered = Template(letter(To=to)).render({"x": value})
        except ValueError:
            continue
        (recipient,) = rendered.recipients
        # This reader of addresses knows no UTF-8 (RFC 6532).
        assert Address(addr_spec=recipient.replace("é", "e")).domain == recipient.rpartition("@")[2]
        assert to.endswith(("{{x}}", "{{x}}>")) or recipient.endswith(("@example.org", "@b.org"))
        (read,) = PARSER.header_factory("To", raw_field(rendered.content, "To")).addresses
        assert read.domain == recipient.rpartition("@")[2]


def test_internationalised_addresses():
    template = Template(letter(To="{{n}} <{{x}}>", Subject="{{n}}"))
    domain = template.render({"n": "Jürgen", "x": "j@exämple.org"})
    assert domain.recipients == ["j@xn--exmple-cua.org"]
    assert b"<j@xn--exmple-cua.org>" in check(domain.content)
    assert not domain.needs_smtputf8
    local = template.render({"n": "Jürgen", "x": "jürgen@exämple.org"})
    assert local.recipients == ["jürgen@xn--exmple-cua.org"]
    assert local.needs_smtputf8
    assert "To: =?utf-8?q?J=C3=BCrgen?= <jürgen@xn--exmple-cua.org>\r\n".encode() in local.content


def test_fixed_internationalised_addresses():
    message = letter(From="Jürgen <j@exämple.org>", To="ü@example.org", Subject="{{x}}")
    rendered = Template(message).render({"x": "x"})
    assert (rendered.sender, rendered.recipients) == ("j@xn--exmple-cua.org", ["ü@example.org"])
    assert rendered.content.startswith(
        "From: =?utf-8?q?J=C3=BCrgen?= <j@xn--exmple-cua.org>\r\nTo: ü@example.org\r\n".encode()
    )


@pytest.mark.parametrize(
    ("to", "reason"),
    [
        ("friends: {{x}}, a@example.org;", "a field in a group"),
        ("{{x}}: a@example.org;", "a field in a group"),
        ("g: h: a@example.org;;, {{x}}", "a group in a group"),
        ("g: a@example.org, {{x}}", "a group without ';'"),
        ("a@example.org; {{x}}", "';' without a group"),
        ("a <b@example.org>: c@example.org;, {{x}}", "'<' in a name"),
        ("{{x}} (comment)", "'(comment)'"),
        ("{{x}} <a@example.org> b", "text after '>'"),
        ("<a@example.org> <{{x}}>", "text after '>'"),
        ("Ann {{x}}", "'Ann {{x}}' is not one address"),
        ("<{{x}} @example.org>", "is not one address"),
        ("<{{x}>", "cannot be read|is no field"),
        ('"{{x}} <a@example.org>', "cannot be read"),
    ],
)
def test_fields_of_addresses_that_cannot_be_read(to, reason):
    message = Message()  # as it is read from a file: the other kind refuses some by itself
    message["From"], message["To"] = "f@example.org", to
    with pytest.raises(ValueError, match=re.escape(reason) if "|" not in reason else reason):
        Template(message)


@pytest.mark.parametrize(
    "field",
    ["Cc: <a@[b", 'Cc: "', "To: <", "Bcc: <a@[b", "Reply-To: <", "Sender: <a@[b", "Resent-To: <",
     f"Message-ID: <{'a' * 80}@["],
)  # fmt: skip
def test_fixed_fields_that_the_parser_fails_at(field):
    text = f"From: f@example.org\n{field}\nTo: {{{{x}}}}\n\nHello {{{{x}}}}\n"
    name = field.partition(":")[0]
    message = email.message_from_string(text, policy=email.policy.default)
    try:
        found = message[name]
    except Exception:
        with pytest.raises(ValueError, match=rf"^the {name} field cannot be read \(RFC 5322"):
            Template(message)
    else:  # a later version of the parser can
        assert found


def test_what_need_not_be_understood_is_written_as_it_is():
    text = "From: f@example.org\nMessage-ID: <a@[\nTo: {{x}}\n\nHello\n"
    for policy in (email.policy.default, email.policy.compat32):
        rendered = render(email.message_from_string(text, policy=policy), x="a@example.org")
        assert raw_field(rendered, "Message-ID") == "<a@["


@pytest.mark.parametrize("cc", ["<", '"', "a@", "<>", "(nobody)"])
def test_a_fixed_field_without_an_address(cc):
    message = Message()
    message["From"], message["To"], message["Cc"] = "f@example.org", "{{x}}", cc
    with pytest.raises(ValueError, match=r"^the Cc field cannot be read"):
        Template(message)


@pytest.mark.parametrize("cc", ["", " ", ",", "nobody:;"])
def test_a_fixed_field_that_is_empty(cc):
    message = Message()
    message["From"], message["To"], message["Cc"] = "f@example.org", "{{x}}", cc
    assert Template(message).render({"x": "a@example.org"}).recipients == ["a@example.org"]


@pytest.mark.parametrize("header", ["Disposition-Notification-To", "Mail-Followup-To"])
def test_addresses_in_other_fields(header):
    rendered = Template(letter(**{header: "{{n}} <{{x}}>"})).render(
        {"to": "t", "n": "Zoë", "x": "z@example.org"}
    )
    assert rendered.recipients == ["t@example.org"]
    assert raw_field(rendered.content, header) == "=?utf-8?q?Zo=C3=AB?= <z@example.org>"


def test_a_fixed_address_among_fields_that_is_none():
    with pytest.raises(ValueError, match=r"^To: 'lee' is not one address"):
        Template(letter(To="{{x}}, lee"))


def test_a_fixed_group_beside_fields():
    message = letter(To='"The, team": a@example.org, Bö <b@example.org>;, {{x}}, none:;')
    rendered = Template(message).render({"x": "c@example.org"})
    assert rendered.recipients == ["a@example.org", "b@example.org", "c@example.org"]
    to = parsed(rendered.content)["To"]
    assert [group.display_name for group in to.groups] == ["The, team", None, "none"]
    assert [address.addr_spec for address in to.addresses] == rendered.recipients


# -- the envelope ---------------------------------------------------------------


def test_the_envelope():
    message = letter(
        From="{{f}}@example.org", Sender="S <{{s}}@example.org>", To="{{t}}@example.org",
        Cc="c@example.org, {{c}}@example.org", Bcc="N <{{b}}@example.org>, bb@example.org",
        Reply_To="{{r}}@example.org",
    )  # fmt: skip
    rendered = Template(message).render({name: name + "1" for name in "fstcbr"})
    assert rendered.sender == "s1@example.org"
    names = ["t1", "b1", "bb", "c", "c1"]
    assert rendered.recipients == [f"{name}@example.org" for name in names]
    assert b"bcc" not in rendered.content.lower()
    assert b"bb" not in rendered.content
    assert b"b1" not in rendered.content
    assert parsed(rendered.content).keys() == [key for key in message if key != "Bcc"]
    rendered = Template(letter(Bcc="bb@example.org")).render({"to": "t"})
    assert rendered.recipients == ["t@example.org", "bb@example.org"]
    assert b"bb" not in rendered.content


def test_the_envelope_of_a_message_that_is_sent_again():
    message = letter(
        Resent_Date="Thu, 1 Jan 1970 00:00:00 +0000", Resent_From="{{f}}@example.org",
        Resent_To="{{t}}@example.org", Resent_Bcc="{{b}}@example.org",
    )  # fmt: skip
    rendered = Template(message).render({"to": "x", "f": "f1", "t": "t1", "b": "b1"})
    assert rendered.sender == "f1@example.org"
    assert rendered.recipients == ["t1@example.org", "b1@example.org"]
    assert b"b1" not in rendered.content
    assert raw_field(rendered.content, "To") == "x@example.org"
    message["Resent-Date"] = "Thu, 1 Jan 1970 00:00:01 +0000"
    with pytest.raises(ValueError, match="more than one 'Resent-' header block"):
        Template(message)


def test_the_first_field_of_each_name_counts():
    message = Message()
    for name, value in [("From", "f@x"), ("To", "{{a}}@x"), ("To", "{{b}}@x"), ("Cc", "")]:
        message[name] = value
    rendered = Template(message).render({"a": "1", "b": "2"})
    assert rendered.recipients == ["1@x"]
    assert rendered.content.startswith(b"From: f@x\r\nTo: 1@x\r\nTo: 2@x\r\n")


@pytest.mark.parametrize(
    ("fields", "lacks"),
    [
        ([("To", "t@x")], "no sender"), ([("From", ""), ("To", "t@x")], "no sender"),
        ([("From", "f@x")], "no recipient"), ([("From", "f@x"), ("To", "g:;")], "no recipient"),
        ([("From", "f@x"), ("Reply-To", "{{x}}@x")], "no recipient"),
        ([("From", "f@x"), ("To", "t@x"), ("Resent-Date", "x")], "no address in Resent-From"),
        ([("Resent-From", "f@x"), ("To", "t@x"), ("Resent-Date", "x")], "in Resent-To"),
    ],
)  # fmt: skip
def test_nobody(fields, lacks):
    message = Message()
    for name, value in fields:
        message[name] = value
    with pytest.raises(ValueError, match=f"the template has .*{lacks}"):
        Template(message)


# -- structured headers ---------------------------------------------------------


@given(ATEXT)
def test_structured(value):
    message = letter(
        Message_ID="<{{x}}@example.org>", References="<a.{{x}}@example.org> <b@example.org>"
    )
    content = render(message, x=value)
    assert raw_field(content, "Message-ID") == f"<{value}@example.org>"
    assert raw_field(content, "References") == f"<a.{value}@example.org> <b@example.org>"


@pytest.mark.parametrize(
    "value",
    ["", " ", "a b", "a>", "<a", "a@b", '"', "ü", "(x)", "a,b", "=?utf-8?q?x?=", "a;b", "\\"],
)
def test_values_for_structured_headers(value):
    rule = "RFC 2047, section 5" if "=?" in value else "RFC 5322, section 3.2.3"
    for name in ("Message-ID", "In-Reply-To", "References", "Content-ID"):
        message = letter(text=None, **{name: "<{{x}}@example.org>"})
        with pytest.raises(ValueError, match=f"field 'x' of {name} is .*{rule}"):
            render(message, x=value)


def test_a_structured_header_of_many_values():
    message = letter(References=" ".join(f"<{{{{a{i}}}}}@example.org>" for i in range(9)))
    content = render(message, **{f"a{i}": "x" * 30 for i in range(9)})
    assert raw_field(content, "References") == " ".join([f"<{'x' * 30}@example.org>"] * 9)
    assert max(map(len, content.split(b"\r\n"))) <= 78
    with pytest.raises(ValueError, match="Message-ID is too long"):
        render(letter(Message_ID="<{{x}}@example.org>"), x="x" * 990)


def test_an_attachment_with_a_name():
    message = letter()
    message.add_attachment(b"%PDF {{no}}", "application", "pdf", filename="bill-{{n}}.pdf")
    message.add_attachment("text {{no}}\n", filename="{{n}}.txt")
    content = render(message, n="A-17")
    names = [part.get_filename() for part in parsed(content).iter_attachments()]
    assert names == ["bill-A-17.pdf", "A-17.txt"]
    bodies = [part.get_payload(decode=True) for part in parsed(content).iter_attachments()]
    assert bodies == [b"%PDF {{no}}", b"text {{no}}\r\n"]
    for value in ('x"; y="', "a/b", "a=b", "a?", "..\\x", "ü", "", "a b"):
        with pytest.raises(ValueError, match="field 'n' of Content-Disposition"):
            render(message, n=value)


@pytest.mark.parametrize("value", ["a%41", "a%0D%0A", "it's", "a*b"])
def test_values_in_a_parameter_that_is_decoded(value):
    head = "From: f@example.org\nTo: t@example.org\nContent-Disposition: inline; "
    text = f"{head}filename*=utf-8''%C3%BC{{{{x}}}}.txt\n\nHello\n"
    message = email.message_from_string(text, policy=PARSER)
    assert parsed(render(message, x="a")).get_filename() == "üa.txt"
    with pytest.raises(ValueError, match=r"field 'x' of Content-Disposition is .* none of .*2231"):
        render(message, x=value)
    plain = email.message_from_string(f'{head}filename="{{{{x}}}}.txt"\n\nHello\n')
    assert parsed(render(plain, x=value)).get_filename() == f"{value}.txt"


def test_headers_of_parts():
    message = letter()
    message.add_related("<img>", subtype="html")
    inner = EmailMessage()
    inner["Content-Type"] = 'application/octet-stream; name="{{n}}.bin"'
    inner["Content-ID"] = "<{{n}}@example.org>"
    inner["Content-Description"] = "About {{d}}"
    inner["Content-Transfer-Encoding"] = "base64"
    inner.set_payload("AAAA")
    message.attach(inner)
    part = list(parsed(render(message, n="n1", d="Größe")).walk())[-1]
    assert part["Content-Type"].params["name"] == "n1.bin"
    assert part["Content-ID"] == "<n1@example.org>"
    assert part["Content-Description"] == "About Größe"
    assert part.get_payload() == "AAAA"


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("Content-Transfer-Encoding", "{{x}}", "how to read"),
        ("Content-Type", 'multipart/mixed; boundary="{{x}}"', "how to read"),
        ("Content-Type", "message/{{x}}", "how to read"),
        ("Content-Disposition", 'inline; filename="ü{{x}}"', "only printable ASCII"),
    ],
)
def test_where_no_field_can_stand(name, value, reason):
    message = letter(text=None)
    message[name] = value
    with pytest.raises(ValueError, match=f"{name}: .*{reason}"):
        Template(message)


# -- bodies ---------------------------------------------------------------------

TEXTS = [
    "{{x}}", "{{x}}\n", "Dear {{x}},\nbye\n", " {{x}} \n {{x}}\n", "{{x}}{{x}}{{x}}",
    "a={{x}}=b\n\n{{x}}",
    "l" * 200 + "{{x}}" + "m" * 200 + "{{x}}" + "n" * 200, "ü " * 90 + "{{x}}" + " €" * 90 + "\n",
    "\n\n{{x}}\n\n", "{{x}}" + "l" * 99 + "\n" + "m" * 99 + "{{x}}",
    ".\n{{x}}.\n.", "%s {{x}} 100%\n", "é" * 61 + "{{x}}" + "é" * 61, "\t{{x}}\t",
    "a\n" * 50 + " " * 70 + "{{x}}" + " " * 70 + "\nb",
    "q" * 76 + "{{x}}" + "q" * 75 + "\n{{x}}" + "=" * 61,
]  # fmt: skip


def part_of(text: str, subtype: str = "plain", cte: str | None = None) -> EmailMessage:
    message = letter(text=None)
    message.set_content(text, subtype=subtype, cte=cte)
    return message


@given(body_text)
@pytest.mark.parametrize("text", TEXTS)
def test_plain_text(text, value):
    part = Message()  # set_content() would end the text with a line break
    part["From"], part["To"], part["Content-Type"] = "f@x", "t@x", "text/plain; charset=utf-8"
    part.set_payload(text.encode().decode("ascii", "surrogateescape"))
    content = render(part, x=value)
    message = parsed(content)
    assert message["Content-Transfer-Encoding"] == "quoted-printable"
    assert message.get_content_charset() == "utf-8"
    check_quoted_printable(body_lines(content))
    assert normal(message.get_payload(decode=True).decode()) == text.replace("{{x}}", normal(value))


def check_quoted_printable(lines: list[bytes]) -> None:
    for line in lines:
        assert len(line) <= 76
        assert re.fullmatch(rb"(?:[ -<>-~\t]|=[0-9A-F]{2})*=?", line)
        assert not line.endswith((b" ", b"\t"))


@given(body_text)
def test_html(value):
    text = '<p title="{{x}}">Dear {{ x }},</p>\n<style>a{b:c}</style>&nbsp;{{x}}\n'
    content = render(part_of(text, "html"), x=value)
    expected = re.sub(r"\{\{ ?x ?\}\}", lambda _: html.escape(normal(value)), text)
    assert normal(parsed(content).get_payload(decode=True).decode()) == expected
    check_quoted_printable(body_lines(content))


@pytest.mark.parametrize("subtype", ["html", "xml", "x-amp-html", "watch-html", "x+xml"])
def test_markup(subtype):
    content = render(part_of("<p>{{x}}\n", subtype), x="<script>&'\"")
    body = parsed(content).get_payload(decode=True)
    assert body == b"<p>&lt;script&gt;&amp;&#x27;&quot;\r\n"


def test_other_texts_are_not_escaped():
    content = render(part_of("SUMMARY:{{x}}\n", "calendar"), x="<&>")
    assert body_lines(content) == [b"SUMMARY:<&>", b""]


@given(body_text)
def test_base64(value):
    text = "Größe {{x}}\nzwei {{x}}\n"
    content = render(part_of(text, cte="base64"), x=value)
    message = parsed(content)
    assert message["Content-Transfer-Encoding"] == "base64"
    assert max(map(len, body_lines(content))) <= 76
    expected = text.replace("{{x}}", normal(value)).replace("\n", "\r\n")
    assert message.get_payload(decode=True) == expected.encode()


@pytest.mark.parametrize("cte", ["7bit", "8bit", "quoted-printable", "base64"])
@pytest.mark.parametrize("charset", ["utf-8", "iso-8859-1", "utf-16"])
def test_charsets(cte, charset):
    text = "Hello {{x}}\n" if cte == "7bit" else "Größe {{x}}\n"
    if cte in ("7bit", "8bit") and charset == "utf-16":
        cte = "base64"
    part = EmailMessage()
    part["From"], part["To"] = "f@x", "t@x"
    part["Content-Type"] = f'text/plain; charset="{charset}"; format="flowed"'
    part["Content-Transfer-Encoding"] = cte
    octets = text.encode(charset)
    encoded = {"base64": base64.encodebytes, "quoted-printable": quopri.encodestring}.get(
        cte, bytes
    )
    part.set_payload(encoded(octets).decode("ascii", "surrogateescape"))
    message = parsed(render(part, x="€"))
    assert message["Content-Type"].params == {"charset": "utf-8", "format": "flowed"}
    assert normal(message.get_content()) == text.replace("{{x}}", "€")


def test_a_file_without_mime():
    source = (
        b"From: f@x\nTo: {{to}}\nSubject: =?utf-8?q?Gr=C3=BC=C3=9Fe=2C_=7B=7Bx=7D=7D?=\n\n"
        b"Hi {{x}}, \xc3\xbc\n"
    )
    for policy in (email.policy.default, email.policy.compat32, email.policy.SMTP):
        content = render(email.message_from_bytes(source, policy=policy), to="t@x", x="Ü")
        message = parsed(content)
        assert message["Subject"] == "Grüße, Ü"
        assert message["MIME-Version"] == "1.0"
        assert normal(message.get_content()) == "Hi Ü, ü\n"


def test_a_file_with_folded_and_encoded_headers():
    source = (
        b"From: =?utf-8?q?Doe=2C_J=C3=B6rg?=\n =?utf-8?b?IMOc?= {{y}} <f@example.org>\n"
        b'To: "{{y}}, x" =?iso-8859-1*de?q?=FC?=\n <{{\n to\n }}>\nSubject: a {{\n x}}  b\n'
        b"X-Bad: =?nonsense?q?=7B?= {{x}}\n"
        b"Reply-To: =?utf-8?q?=7B=7By=7D=7D=2C_2?= <r@example.org>\n\n"
    )
    for policy in (email.policy.default, email.policy.compat32):
        template = Template(email.message_from_bytes(source, policy=policy))
        content = template.render({"to": "t@x", "x": "X", "y": "Y"}).content
        check_addresses(content, "From", [("Doe, Jörg Ü Y", "f@example.org")])
        check_addresses(content, "To", [("Y, x ü", "t@x")])
        check_addresses(content, "Reply-To", [("Y, 2", "r@example.org")])
        assert raw_field(content, "Subject") == "a X  b"
        assert decoded(raw_field(content, "X-Bad")) == "=?nonsense?q?=7B?= X"


def test_headers_that_are_not_str():
    message = Message()
    message["From"] = Header("f@x")
    message["To"] = Header("Jürg {{n}} <{{to}}>", "utf-8")
    message["Subject"] = Header("Grüße {{n}}", "utf-8")
    content = render(message, to="t@x", n="Ann")
    assert parsed(content)["Subject"] == "Grüße Ann"
    check_addresses(content, "To", [("Jürg Ann", "t@x")])


def test_an_encoded_word_in_an_address_field_of_a_program():
    message = letter(To="=?utf-8?q?Doe=2C_J=C3=BC?= <{{to}}>")
    check_addresses(render(message, to="t@x"), "To", [("Doe, Jü", "t@x")])


def test_what_cannot_be_decoded():
    for octets, charset in (
        (b"\xff {{x}}", "utf-8"),
        (b"{{x}}", "unknown-x"),
        (b"\xfc {{x}}", "us-ascii"),
    ):
        part = MIMEText("", "plain", "utf-8")
        del part["Content-Type"], part["Content-Transfer-Encoding"]
        part["From"], part["To"], part["Content-Type"] = (
            "f@x",
            "t@x",
            f"text/plain; charset={charset}",
        )
        part.set_payload(octets.decode("ascii", "surrogateescape"))
        with pytest.raises(ValueError, match=f"text/plain part cannot be decoded from {charset}"):
            Template(part)
        part.set_payload(octets.replace(b"{{", b"{").decode("ascii", "surrogateescape"))
        assert Template(part).fields == frozenset()
    header = email.message_from_bytes(b"From: f@x\nTo: t@x\nSubject: \xff {{x}}\n\n")
    with pytest.raises(ValueError, match="Subject is neither ASCII nor UTF-8"):
        Template(header)
    header = email.message_from_bytes(
        b"From: f@x\nTo: t@x\nSubject: {{x}} \xc3\xbc\nX-Any: \xff\n\n"
    )
    assert decoded(raw_field(render(header, x="x"), "Subject")) == "x ü"


def test_control_characters_of_the_template_itself():
    message = Message()
    message["From"], message["To"], message["Subject"] = "f@x", "t@x", "a\0 {{x}}"
    with pytest.raises(ValueError, match="Subject: a control character"):
        Template(message)


# -- whole messages -------------------------------------------------------------


def newsletter(fill=lambda text, _=None: text) -> EmailMessage:
    """mixed(alternative(plain, related(html, image)), attachment, message)"""
    message = EmailMessage()
    message["From"] = "News <news@example.org>"
    message["To"] = fill("{{name}} <{{email}}>")
    message["Subject"] = fill("Grüße, {{name}}: {{order}}")
    message["Message-ID"] = fill("<{{id}}@example.org>")
    message["X-Customer"] = fill("{{id}}")
    message.set_content(fill("Dear {{name}},\n\nyour order {{order}}\n"), cte="quoted-printable")
    rows = "<tr><td style='a: b'>A product, most useful</td><td>10 €</td></tr>\n" * 20
    markup = (
        f"<p>Dear {{{{name}}}}</p>\n{rows}<a href='https://example.org/?o={{{{order}}}}'>x</a>\n"
    )
    message.add_alternative(fill(markup, html.escape), subtype="html")
    message.get_payload()[1].add_related(b"GIF {{no}}", "image", "gif", cid="<pic@example.org>")
    message.add_attachment(
        b"\0{{no}}" * 30, "application", "octet-stream", filename=fill("{{id}}.bin")
    )
    inner = EmailMessage()
    inner["Subject"], inner["To"] = "{{no}}", "{{no}}"
    inner.set_content("{{no}}\n")
    message.add_attachment(inner)
    return message


def filled(row):
    def fill(text, encode=str):
        return re.sub(r"\{\{(\w+)\}\}", lambda match: encode(row[match[1]]), text)

    return fill


name_text = st.text(st.characters(categories=["L", "N", "So"]), min_size=1, max_size=40)


@settings(deadline=None)
@given(
    st.fixed_dictionaries(
        {
            "name": name_text, "order": header_text, "email": st.just("ann@example.net"),
            "id": st.text(st.sampled_from("abc019.-"), min_size=1, max_size=30),
        }
    )
)  # fmt: skip
def test_the_same_as_a_message_with_the_values(row):
    template = Template(newsletter())
    rendered = template.render(row)
    assert rendered.recipients == ["ann@example.net"]
    ours = list(parsed(check(rendered.content)).walk())
    theirs = list(newsletter(filled(row)).walk())
    assert len(ours) == len(theirs) == 9
    for one, other in zip(ours, theirs, strict=True):
        assert same_header(one) == same_header(other)
        if not one.is_multipart():
            content = one.get_content()
            assert (normal(content) if isinstance(content, str) else content) == other.get_content()
    assert (
        decoded(raw_field(rendered.content, "Subject")) == f"Grüße, {row['name']}: {row['order']}"
    )
    check_addresses(rendered.content, "To", [(row["name"], "ann@example.net")])


def same_header(part):
    """Return what a part's header says, but for what is checked by itself or may differ."""
    skipped = ("subject", "to", "content-transfer-encoding", "content-type")
    fields = [(name, str(value)) for name, value in part.items() if name.lower() not in skipped]
    parameters = {
        key: value for key, value in part["Content-Type"].params.items() if key != "boundary"
    }
    return fields, part.get_content_type(), parameters


def test_what_is_fixed_is_as_the_serializer_writes_it():
    message = newsletter(lambda text, _=None: text.replace("{{", "{").replace("}}", "}"))
    message.replace_header("To", "Ann <ann@example.net>")
    message.replace_header("Message-ID", "<1@example.org>")
    message.set_boundary("===a")
    for at, part in enumerate(
        part for part in message.walk() if part.get_content_maintype() == "multipart"
    ):
        part.set_boundary(f"==={at}")
    message.preamble, message.epilogue = "Before\n--x\n", "After\n"
    policy = email.policy.SMTP.clone(cte_type="7bit")
    written = message.as_bytes(policy=policy)
    assert Template(message).render({}).content == written
    message.replace_header("Subject", "{{x}}")
    (rendered,) = [Template(message).render({"x": "X"}).content]
    message.replace_header("Subject", "X")
    assert rendered == message.as_bytes(policy=policy)


@pytest.mark.parametrize(
    "policy", [email.policy.default, email.policy.compat32, email.policy.SMTPUTF8]
)
def test_the_message_stays_as_it_is(policy):
    source = newsletter().as_bytes(policy=email.policy.SMTP)
    message = email.message_from_bytes(source, policy=policy)
    del message.get_payload()[0]["MIME-Version"]
    before = copy.deepcopy(message)
    template = Template(message)
    row = {"name": "A", "order": "1", "email": "a@example.org", "id": "i"}
    first = template.render(row)
    assert message.as_bytes() == before.as_bytes()
    assert [part.items() for part in message.walk()] == [part.items() for part in before.walk()]
    message.replace_header("Subject", "other {{z}}")
    message.get_payload()[1].set_payload("other")
    message.get_payload().pop(0)
    assert template.render(row).content == first.content


def test_from_at_the_beginning_of_a_line():
    message = Message()
    message["From"], message["To"], message["Subject"] = "f@x", "t@x", "{{x}}"
    message.set_payload("From here on\n")
    assert body_lines(render(message, x="x")) == [b"From here on", b""]


def multipart(boundary: str | None) -> EmailMessage:
    message = letter(text=None)
    message["MIME-Version"] = "1.0"
    message["Content-Type"] = "multipart/mixed"
    for _ in range(2):
        part = EmailMessage()
        part.set_content("Dear {{x}}\n{{x}}\n")
        message.attach(part)
    if boundary:
        message.set_boundary(boundary)
    return message


@pytest.mark.parametrize("boundary", [None, "b", "=_b", "===x==", "=AB", "=3D=", "--b"])
def test_a_value_cannot_end_a_part(boundary):
    message = multipart(boundary)
    template = Template(message)
    used = parsed(template.render({"to": "t", "x": ""}).content).get_boundary()
    assert (used == boundary) == (boundary in ("=_b", "===x=="))
    assert message.get_boundary() == boundary
    values = [
        f"{before}--{each}{after}"
        for before in ("", "x\n", "\r\n")
        for after in ("", "--", "\n")
        for each in {used, boundary or used}
    ]
    for value in values:
        content = check(template.render({"to": "t", "x": value}).content)
        parts = parsed(content).get_payload()
        assert len(parts) == 2
        for part in parts:
            assert normal(part.get_content()) == normal(f"Dear {value}\n{value}\n")


def test_a_signed_part():
    message = letter(text=None)
    message["Content-Type"] = 'multipart/signed; boundary="b"'
    part = EmailMessage()
    part.set_content("signed\n")
    message.attach(part)
    content = render(message, to="t")
    assert b"\r\n\r\nsigned\r\n" in content
    part.set_content("Dear {{x}}\n")
    with pytest.raises(ValueError, match="would break the signature"):
        Template(message)


def test_eight_bit_parts_are_encoded():
    message = letter(text="Größe {{x}}\n")
    part = EmailMessage()
    part.set_content("Weiß\n", cte="8bit")
    part["Content-Description"] = "{{x}}"
    message.make_mixed()
    message.attach(part)
    message.attach(copy.copy(part))
    rendered = parsed(render(message, x="ß"))
    assert [normal(part.get_content()) for part in rendered.iter_parts()] == [
        "Größe ß\n",
        "Weiß\n",
        "Weiß\n",
    ]
    assert rendered.get_payload()[1]["Content-Description"] == "ß"


def test_many_threads():
    template = Template(newsletter())
    rows = [
        {"name": f"Jürg {i}", "order": "x" * i, "email": f"a{i}@example.org", "id": f"i{i}"}
        for i in range(60)
    ]
    expected = [template.render(row).content for row in rows]
    found: dict[int, list[bytes]] = {}

    def work(thread: int) -> None:
        found[thread] = [template.render(row).content for row in rows]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(4)] == [expected] * 4


def test_a_template_does_not_change():
    template = Template(letter())
    with pytest.raises(AttributeError, match="make another"):
        template.fields = frozenset()
    with pytest.raises(AttributeError, match="make another"):
        del template.fields


def test_a_mail_merge():
    template = Template(newsletter())
    rows = [
        {"name": "Ännchen", "order": ".", "email": "a@example.org", "id": "1"},
        {"name": "Bo", "order": "x\u00a0y", "email": "bö@example.org", "id": "2"},
    ]
    messages = [template.render(row, id=row["id"]) for row in rows]
    with (
        ModelServer() as server,
        Mailer(server.host, server.port, tls="none", local_hostname="client.example") as mailer,
    ):
        deliveries = list(mailer.send_many(messages))
    assert sorted((each.id, each.status) for each in deliveries) == [
        ("1", "accepted"), ("2", "accepted"),
    ]  # fmt: skip
    arrived = {message.recipients[0]: message for message in server.messages}
    assert arrived.keys() == {"a@example.org", "bö@example.org"}
    assert arrived["a@example.org"].data == messages[0].content
    assert arrived["bö@example.org"].data == messages[1].content
    assert "SMTPUTF8" in arrived["bö@example.org"].parameters[0]
    assert "SMTPUTF8" not in arrived["a@example.org"].parameters[0]
