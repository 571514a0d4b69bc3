"""The envelope: each address is exactly one path, and each command one line."""

from __future__ import annotations

import enum
import re
import smtplib
import string
from email.utils import formataddr, parseaddr

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastsmtp.envelope import (
    VERBS,
    Envelope,
    Verbs,
    address_only,
    ascii_domain,
    command_line,
    control_character_error,
    needs_smtputf8,
    path,
    quoteaddr,
)


def is_one_path(text: str) -> bool:
    """Say whether "<" opens, ">" closes, and nothing unquoted in between does either."""
    quoted = False
    rest = iter(enumerate(text))
    for at, character in rest:
        if at in (0, len(text) - 1):
            if quoted or character != "<>"[at > 0]:
                return False
        elif character == "\\":
            if next(rest)[0] == len(text) - 1:  # it was the last one that was escaped
                return False
        elif character == '"':
            quoted = not quoted
        elif not quoted and character in "<>":
            return False
    return len(text) >= 2


@pytest.mark.parametrize("text", ["<>", "<a@x>", '<"a>b"@x>', r"<a\>b@x>", r'<"\""@x>', r"<\\>"])
def test_one_path(text):
    assert is_one_path(text)


@pytest.mark.parametrize(
    "text", ["", "<", "<a", "a>", "<a> b>", "<<a>>", r"<a\>", '<"a>', '<"a\\">']
)
def test_not_one_path(text):
    assert not is_one_path(text)


# -- quoteaddr ----------------------------------------------------------------

# RFC 5322's atext, and what a domain may hold.
words = st.text(string.ascii_letters + string.digits + "!#$%&'*+/=?^_`{|}~-", min_size=1)
labels = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?", fullmatch=True)
plain_mailboxes = st.builds(
    lambda local, domain: ".".join(local) + "@" + ".".join(domain),
    st.lists(words, min_size=1, max_size=3),
    st.lists(labels, min_size=1, max_size=3),
)
#: What addresses are made of, and what breaks them.
FRAGMENTS = [
    *("a", "b.c", "@", "x.example", "<", ">", '"', "\\", " ", ",", ";", ":", "(", ")", "[", "]"),
    *("NOTIFY=NEVER", "\t", "\r\n", "\0", "é", "例", "=", "Ann", "@a,@b:", "\u3002", "ß", "\uff1e"),
]
addresses = st.one_of(
    st.lists(st.sampled_from(FRAGMENTS), max_size=10).map("".join),
    st.text(max_size=20),
    plain_mailboxes,
)


def test_a_list_of_one_address_is_that_address():
    assert quoteaddr(["a@example.org"]) == smtplib.quoteaddr(["a@example.org"]) == "<a@example.org>"


@pytest.mark.parametrize("addresses", [[], ["a@example.org", "b@example.org"]])
def test_another_list_is_no_address(addresses):
    with pytest.raises(ValueError, match="not of one address"):
        quoteaddr(addresses)


@given(address=plain_mailboxes)
def test_plain_mailboxes_are_quoted_as_smtplib_does(address):
    assert quoteaddr(address) == path(address) == smtplib.quoteaddr(address) == f"<{address}>"


def has_parameters(quoted: str) -> bool:
    return bool(re.search(r"\s[A-Za-z0-9-]+=", re.sub(r'"(\\.|[^"\\])*"|\\.', "", quoted)))


@given(address=addresses)
@example(address='"a b"@x')
@example(address="Ann <a@x>")
@example(address="a@x (comment)")
@example(address="@a,@b:c@x")
@example(address="a@[127.0.0.1]")
@example(address=" @ ")
@example(address=" <@> ")
@example(address="<v@x> NOTIFY=NEVER ORCPT=rfc822;e@evil")
@example(address="<@[ NOTIFY=NEVER>")
def test_an_address_is_quoted_as_smtplib_does_or_refused_with_reason(address):
    address = address.replace("\r\n", "\n").replace("\r", "\n")  # row 25 of docs/differences.md
    expected = smtplib.quoteaddr(address)
    if parseaddr(address) == ("", "") and address.strip().startswith("<"):
        expected = address.strip()  # smtplib leaves the space around it
    try:
        quoted = quoteaddr(address)
    except ValueError as error:
        assert "not one path" in str(error)  # noqa: PT017
        assert not is_one_path(expected) or has_parameters(expected)
    else:
        assert quoted == expected


@given(address=addresses)
@example(address="a> NOTIFY=NEVER <b@x")
@example(address='"')
@example(address="\\")
@example(address="<\\>")
@example(address='<">')
def test_the_result_is_exactly_one_path(address):
    for quote in (quoteaddr, path):
        try:
            quoted = quote(address)
        except ValueError:
            continue
        assert is_one_path(quoted)


@given(display=st.text(max_size=10), address=plain_mailboxes)
def test_a_name_is_left_out(display, address):
    if re.search("[\r\n\ud800-\udfff]", display):
        display = "x"
    assert quoteaddr(formataddr((display, address))) == f"<{address}>"


SPELLINGS = [
    ("a@x", "<a@x>"),
    ("<a@x>", "<a@x>"),
    ("Ann <a@x>", "<a@x>"),
    ('"Ann, B." <a@x>', "<a@x>"),
    ("a@x (Ann)", "<a@x>"),
    ('"a b"@x', '<"a b"@x>'),
    ('"a>b"@x', '<"a>b"@x>'),
    ("<>", "<>"),
    (" <> ", "<>"),
    ("", "<>"),
    ("postmaster", "<postmaster>"),
    ("a@[IPv6:::1]", "<a@[IPv6:::1]>"),
    ("=a@x", "<=a@x>"),
]


@pytest.mark.parametrize(("address", "quoted"), SPELLINGS)
def test_spellings(address, quoted):
    assert quoteaddr(address) == path(address) == quoted


SMUGGLED = [
    "<v@x> NOTIFY=NEVER ORCPT=rfc822;e@evil",
    "v@x> NOTIFY=NEVER",
    "v@x NOTIFY=NEVER",
    "<v@x NOTIFY=NEVER>",
    "<<v@x> NOTIFY=NEVER>",
    "<v@x>, <w@x> NOTIFY=NEVER",
    '<"v> NOTIFY=NEVER>',
    '<v"@x> NOTIFY=NEVER>',
    "<v\\> NOTIFY=NEVER x@x>",
    "<@[> NOTIFY=NEVER>",
    "<v@x>\tNOTIFY=NEVER",
    "<v@x>\u00a0X=y",
    "><",
    "<",
    "<v",
    "\\",
    '"',
]


@pytest.mark.parametrize("address", SMUGGLED)
def test_parameters_in_an_address_are_no_parameters(address):
    # What parseaddr() makes of it differs from version to version: either
    # it is refused or what is written is one path and nothing behind it.
    try:
        quoted = [quoteaddr(address), path(address)]
    except ValueError:
        with pytest.raises(ValueError, match="not one path"):
            path(address)
    else:
        assert all(is_one_path(each) and not has_parameters(each) for each in quoted)


@pytest.mark.parametrize(
    "address",
    ["<> X=y", "@> X=y", "<@,> X=y", ", <a@x> X=y", "<<a@x> X=y>", "<@ X=y>", "><", ">a@x<"],
)
def test_what_every_parseaddr_gives_up_on_is_refused(address):
    assert parseaddr(address) == ("", "")
    with pytest.raises(ValueError, match="not one path"):
        quoteaddr(address)


@pytest.mark.parametrize(
    ("address", "plain"),
    [("Ann <a@x>", "a@x"), ("a@x", "a@x"), ("<a@x>", "a@x"), ("", ""), ("<>", "<>"), (",", ",")],
)
def test_address_only(address, plain):
    assert address_only(address) == smtplib._addr_only(address) == plain


# -- domains ------------------------------------------------------------------

DOMAINS = [
    ("a@bücher.example", "a@xn--bcher-kva.example"),
    ("a@BÜCHER.example", "a@xn--bcher-kva.example"),
    ("a@bu\u0308cher.example", "a@xn--bcher-kva.example"),
    ("a@例え.テスト", "a@xn--r8jz45g.xn--zckzah"),
    # IDNA 2003 would write to somebody else (UTS 46, section 7).
    ("a@straße.example", "a@xn--strae-oqa.example"),
    ("a@STRAßE.example", "a@xn--strae-oqa.example"),
    ("a@STRAẞE.example", "a@xn--strae-oqa.example"),
    ("a@βόλος.example", "a@xn--nxasmm1c.example"),
    ("a@βόλοσ.example", "a@xn--nxasmq6b.example"),
    # RFC 5891, section 4.4: the zero-width joiners count.
    ("a@نامه\u200c\u0627ی.example", "a@xn--mgba3gch31f060k.example"),
    # Ideographic and fullwidth full stops end labels, too (RFC 3490, section 3.1).
    ("a@bücher\u3002example", "a@xn--bcher-kva.example"),
    ("a@b\uff0ec\uff61example", "a@b.c.example"),
    ("é@x.example", "é@x.example"),
    ("é@bücher.example", "é@xn--bcher-kva.example"),
    ('"@é"@x', '"@é"@x'),
    ("é", "é"),
    ("", ""),
    ("a@x.example", "a@x.example"),
]


@pytest.mark.parametrize(("address", "written"), DOMAINS)
def test_domains_in_ascii(address, written):
    assert ascii_domain(address) == written
    if address:
        assert path(address) == f"<{written}>"


@pytest.mark.parametrize(
    "domain",
    [
        "\ufffd.example",
        "é\u200f.example",  # changes the direction of text
        "é" * 70,
        "ß" * 70,
        "\ud800é",
        "aא",  # Hebrew from the right, Latin from the left
        "xn--é",  # no label begins so before it is encoded
    ],
    ids=lambda domain: ascii(domain)[:20],
)
def test_what_is_no_domain(domain):
    with pytest.raises(ValueError, match="domain has no ASCII form"):
        path(f"a@{domain}")


MAPPED = {
    ">": "\uff1e",
    "<": "\uff1c",
    "@": "\uff20",
    " ": "\u3000",
    "=": "\uff1d",
    '"': "\uff02",
    "\\": "\uff3c",
    "/": "\u2100",
    ".": "\u2024",
    "(": "\u2474",
}


@pytest.mark.parametrize("character", MAPPED)
def test_what_idna_maps_to_ascii_is_not_let_through(character):
    # ToASCII (RFC 3490, section 4.1) normalises by NFKC, and without its
    # UseSTD3ASCIIRules anything may come of it: the end of the path, say.
    for domain in ("x{}y.example", "é{}.example", "{}"):
        with pytest.raises(ValueError, match="domain has no ASCII form"):
            path("a@" + domain.format(MAPPED[character]))


def test_parameters_are_not_smuggled_in_fullwidth():
    with pytest.raises(ValueError, match="domain has no ASCII form"):
        Envelope("f@x", ["v@x\uff1e\u3000NOTIFY\uff1dNEVER"])


@pytest.mark.parametrize(
    ("addresses", "needed"),
    [
        ([], False),
        (["a@x"], False),
        (["a@bücher.example"], False),
        (["a@x", "é@x"], True),
        (["é@bücher.example"], True),
        (["é"], True),
        (['"@é"@x'], True),
        (["@é"], True),
    ],
)
def test_smtputf8_is_for_local_parts(addresses, needed):
    assert needs_smtputf8(addresses) is needed
    assert needs_smtputf8(iter(addresses)) is needed


# -- commands -----------------------------------------------------------------


def test_a_transaction_s_commands():
    envelope = Envelope(
        "Ann <a@x>", ["b@bücher.example", "c@x"], ["SIZE=10", "BODY=8BITMIME"], ["NOTIFY=NEVER"]
    )
    assert envelope.mail == b"MAIL FROM:<a@x> SIZE=10 BODY=8BITMIME\r\n"
    assert envelope.rcpts == [
        b"RCPT TO:<b@xn--bcher-kva.example> NOTIFY=NEVER\r\n",
        b"RCPT TO:<c@x> NOTIFY=NEVER\r\n",
    ]
    assert envelope.flight == envelope.mail + b"".join(envelope.rcpts) + b"DATA\r\n"
    assert envelope.verbs is VERBS


def test_verbs_and_quoting_may_be_others():
    verbs = Verbs("mail from:", "rcpt to:", b"data\r\n", b"rset\r\n")
    envelope = Envelope("<>", iter(["c@x"]), verbs=verbs, quote=lambda address: f"<{address}!>")
    assert envelope.flight == b"mail from:<<>!>\r\nrcpt to:<c@x!>\r\ndata\r\n"
    assert envelope.verbs.rset == b"rset\r\n"


def test_local_parts_in_utf8():
    envelope = Envelope("é@bücher.example", ["a@x"], ["SMTPUTF8"], utf8=True)
    assert envelope.mail == "MAIL FROM:<é@xn--bcher-kva.example> SMTPUTF8\r\n".encode()
    with pytest.raises(UnicodeEncodeError):
        Envelope("é@x", ["a@x"])
    with pytest.raises(UnicodeEncodeError):
        Envelope("a@x", ["b@x", "é@x"])
    with pytest.raises(UnicodeEncodeError):
        Envelope("\udcff@x", [], utf8=True)


CONTROLS = [chr(code) for code in (*range(0x20), 0x7F)]


@pytest.mark.parametrize("control", CONTROLS, ids=ascii)
def test_control_characters_are_refused(control):
    kind = "newline" if control in "\r\n" else "control"
    bad = f"a{control}b"
    for refused in (
        lambda: command_line(f"NOOP {bad}"),
        lambda: Envelope("f@x", ["a@x"], [f"X={bad}"]),
        lambda: Envelope("f@x", ["a@x"], (), [f"X={bad}"]),
        lambda: Envelope("f@x", [bad], quote=lambda address: f"<{address}>"),
        lambda: Envelope(f"<{bad}@bücher.example>", [], utf8=True, quote=str),
    ):
        with pytest.raises(ValueError, match=f"prohibited {kind} characters") as raised:
            refused()
        assert ascii(control)[1:-1] in str(raised.value)
        assert control not in str(raised.value)


@given(command=st.text(st.characters(codec="utf-8"), max_size=30))
def test_a_command_is_one_line(command):
    if any(control in command for control in CONTROLS):
        with pytest.raises(ValueError, match="prohibited"):
            command_line(command, "utf-8")
    else:
        assert command_line(command, "utf-8") == command.encode() + b"\r\n"


def test_what_the_encoding_has_not():
    with pytest.raises(UnicodeEncodeError):
        command_line("NOOP é")
    assert command_line("NOOP é", "utf-8") == "NOOP é\r\n".encode()


@given(addresses=st.lists(addresses, min_size=1, max_size=3), utf8=st.booleans())
def test_whatever_is_written_is_as_many_lines(addresses, utf8):
    try:
        envelope = Envelope(addresses[0], addresses, utf8=utf8)
    except ValueError:
        return
    lines = envelope.flight.split(b"\r\n")
    assert len(lines) == len(addresses) + 3
    assert not re.search(rb"[\x00-\x1f\x7f]", b"".join(lines))
    for line in lines[:-2]:
        verb, _, argument = line.partition(b":")
        assert verb in (b"MAIL FROM", b"RCPT TO")
        assert is_one_path(argument.decode())


def test_the_error_escapes_what_it_shows():
    error = control_character_error("AUTH secret\r", "AUTH ***\r\té\0")
    assert str(error) == (
        r"command and arguments contain prohibited newline characters: AUTH ***\r\té\x00"
    )


def test_a_long_label_is_refused_before_it_is_encoded():
    # Punycode takes time in the square of the length.
    with pytest.raises(ValueError, match="longer than 63"):
        path("a@" + "".join(chr(0x4E00 + each) for each in range(20_000)) + ".example")


class Address(str, enum.Enum):
    BOB = "bob@example.net"


def test_a_member_of_an_enumeration_is_its_address():
    assert quoteaddr(Address.BOB) == smtplib.quoteaddr(Address.BOB) == "<bob@example.net>"
    assert path(Address.BOB) == "<bob@example.net>"
