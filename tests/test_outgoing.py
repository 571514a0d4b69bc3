"""Messages handed in: what a server gets of them, and what is refused before it gets any."""

from __future__ import annotations

import email
import email.policy
import io
import os
import re
from email.message import EmailMessage
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsmtp.errors import SMTPNotSupportedError
from fastsmtp.options import NO_OPTIONS, Options, Recipient
from fastsmtp.outgoing import Message, Server, addresses, outgoing, prepare

ALL = ("8bitmime", "smtputf8", "size", "dsn", "requiretls", "deliverby", "mt-priority")
ASCII = b"Subject: x\r\n\r\nbody\r\n"
EIGHT_BIT = b"Subject: x\r\n\r\nb\xc3\xb6dy\r\n"
LATIN_1 = b"Subject: x\r\n\r\nb\xf6dy\r\n"
UTF_8_HEADER = b"Subject: gr\xc3\xbc\xc3\x9fe\r\n\r\nbody\r\n"
LATIN_1_HEADER = b"Subject: gr\xfc\xdfe\r\n\r\nbody\r\n"
UTF_8_IN_BOTH = b"Subject: gr\xc3\xbc\xc3\x9fe\r\n\r\nb\xf6dy\r\n"

#: How a message is sent: one command at a time, pipelined, by BDAT.
MODES = {
    "one by one": {},
    "pipelined": {"pipelined": True},
    "chunked": {"pipelined": True, "chunked": True},
}


@pytest.fixture(params=MODES)
def mode(request):
    return MODES[request.param]


def server(*extensions, mode=None, **known):
    offered = dict.fromkeys(extensions, "") | {name.lower(): value for name, value in known.items()}
    return Server(offered, **(mode or {}))


def prepared(message, to=None, options=None):
    """Return the transaction in which a server gets all of a message."""
    return prepare(message, message.recipients, options, server() if to is None else to)


def commands(transaction):
    return transaction.commands.decode().split("\r\n")[:-1]


def wire(transaction):
    return b"".join(transaction.payload)


def framed(message: bytes, mode) -> bytes:
    """Return a message of whole lines as it is written."""
    if "chunked" in mode:
        return message
    return b"\r\n".join(b"." + line if line[:1] == b"." else line
                        for line in message.split(b"\r\n")) + b".\r\n"  # fmt: skip


# -- a message ----------------------------------------------------------------


def test_a_message():
    content, options = b"x", Options(ret="hdrs")
    message = Message("f@x", ["a@x", Recipient("b@x")], content, id=5, options=options)
    assert (message.sender, message.id, message.options) == ("f@x", 5, options)
    assert addresses(message.recipients) == ["a@x", "b@x"]
    assert message.content is content
    assert repr(message) == "<Message from 'f@x' to 2 recipient(s), id=5>"
    assert repr(Message("", "a@x", "x")) == "<Message from '' to 1 recipient(s)>"


@pytest.mark.parametrize(
    "recipients",
    [
        *("a@x", Recipient("a@x"), ["a@x"], ("a@x",), {"a@x"}, {"a@x": 1}),
        *(lambda: iter(["a@x"]), lambda: (name for name in ["a@x"])),
    ],
)
def test_recipients_of_every_kind(recipients, mode):
    message = Message("f@x", recipients() if callable(recipients) else recipients, ASCII)
    for _ in range(2):  # they can be gone through again
        to = server(mode=mode)
        assert commands(prepared(message, to)) == ["MAIL FROM:<f@x>", "RCPT TO:<a@x>"]


def test_the_recipients_are_those_of_when_it_was_made():
    # A program that fills one list again and again must not send to other people.
    recipients = ["a@x"]
    message = Message("f@x", recipients, ASCII)
    recipients[:] = ["b@x"]
    assert commands(prepared(message)) == ["MAIL FROM:<f@x>", "RCPT TO:<a@x>"]


@pytest.mark.parametrize("content", [None, 5, ["x"], {"x": 1}, object()])
def test_content_of_another_kind(content):
    with pytest.raises(TypeError, match=f"not {type(content).__name__}$"):
        Message("f@x", "a@x", content)


def test_an_email_message_is_handed_in_by_itself():
    with pytest.raises(TypeError, match="EmailMessage"):
        Message("f@x", "a@x", EmailMessage())


@pytest.mark.parametrize("recipients", [None, 5, b"a@x", [None], ["a@x", 5], [b"a@x"], [["a@x"]]])
def test_recipients_of_another_kind(recipients, mode):
    with pytest.raises(TypeError):
        prepared(Message("f@x", recipients, ASCII), server("dsn", mode=mode))
    with pytest.raises(TypeError):
        prepared(Message("f@x", recipients, ASCII), server(mode=mode))


@pytest.mark.parametrize("sender", [None, 5, b"f@x"])
def test_a_sender_of_another_kind(sender, mode):
    with pytest.raises((TypeError, AttributeError)):
        prepared(Message(sender, "a@x", ASCII), server(mode=mode))


@pytest.mark.parametrize("recipients", [[], (), set()])
def test_nobody_to_send_to(recipients, mode):
    with pytest.raises(ValueError, match="at least one recipient"):
        prepared(Message("f@x", recipients, ASCII), server(mode=mode))


def test_what_may_be_handed_in():
    message = Message("f@x", "a@x", ASCII)
    assert outgoing(message) is message
    for wrong in (None, "f@x", ASCII, {"From": "f@x"}):
        with pytest.raises(TypeError, match=r"fastsmtp\.Message or an email\.message\.Message"):
            outgoing(wrong)
    with pytest.raises(ValueError, match="no Sender and no From"):
        outgoing(EmailMessage())


# -- what is written ----------------------------------------------------------


class Named(os.PathLike):
    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return str(self.path)


def in_file(data, directory):
    path = directory / "message"
    path.write_bytes(data)
    return path


KINDS = {
    "bytes": lambda data, directory: data,
    "bytearray": lambda data, directory: bytearray(data),
    "memoryview": lambda data, directory: memoryview(data),
    "str": lambda data, directory: data.decode(),
    "path": in_file,
    "PathLike": lambda data, directory: Named(in_file(data, directory)),
    "binary file": lambda data, directory: io.BytesIO(data),
    "text file": lambda data, directory: io.StringIO(data.decode(), newline=""),
}
CONTENTS = [
    # handed in, as it goes by BDAT
    (ASCII, ASCII),
    (EIGHT_BIT, EIGHT_BIT),
    (UTF_8_HEADER, UTF_8_HEADER),
    (b"a: b\n\n.c\n", b"a: b\r\n\r\n.c\r\n"),
    (b"a: b\r\rc\r", b"a: b\r\n\r\nc\r\n"),
    (b"a: b\n\r\n\rc\r\r\n", b"a: b\r\n\r\n\r\nc\r\n\r\n"),
    (b"a: b\n\n\xc3\xb6\n", b"a: b\r\n\r\n\xc3\xb6\r\n"),
    (b"no newline", b"no newline\r\n"),
    (b".\n.", b".\r\n.\r\n"),
    (b"", b"\r\n"),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("data", "sent"), CONTENTS)
def test_content_of_every_kind(kind, data, sent, mode, tmp_path):
    message = Message("f@x", "a@x", KINDS[kind](data, tmp_path))
    for _ in range(2):  # there may be a second attempt
        transaction = prepared(message, server("8bitmime", mode=mode))
        assert wire(transaction) == framed(sent, mode)
    if "chunked" in mode:
        assert transaction.octets == sum(map(len, transaction.payload)) == len(sent)
    else:
        ended = len(sent) if data[-1:] in (b"\r", b"\n") else len(sent) - 2
        assert transaction.octets == ended
        assert len(transaction.payload) == 2


def test_a_path_is_read_when_its_turn_comes(tmp_path):
    path = tmp_path / "message"
    message = Message("f@x", "a@x", path)
    with pytest.raises(FileNotFoundError):
        prepared(message)
    path.write_bytes(b"first\n")
    assert wire(prepared(message)) == b"first\r\n.\r\n"
    path.write_bytes(b"second\n")
    assert wire(prepared(message)) == b"second\r\n.\r\n"
    assert message.content is path  # what was in it is not kept in memory


def test_text_is_not_a_path(tmp_path):
    path = in_file(ASCII, tmp_path)
    assert wire(prepared(Message("f@x", "a@x", str(path)))) == str(path).encode() + b"\r\n.\r\n"


def test_an_open_file_is_read_when_its_turn_comes(tmp_path):
    path = in_file(b"a\n\n.b\n", tmp_path)
    for options in ({"mode": "rb"}, {"mode": "r", "encoding": "ascii"}):
        with open(path, **options) as file:
            message = Message("f@x", "a@x", file)
            assert file.tell() == 0
            assert wire(prepared(message)) == b"a\r\n\r\n..b\r\n.\r\n"


def test_text_that_utf_8_cannot_express():
    with pytest.raises(UnicodeEncodeError):
        prepared(Message("f@x", "a@x", "Subject: \ud800\n\n"), server("8bitmime"))


@given(text=st.text(max_size=40), data=st.binary(max_size=40))
def test_any_content_is_sent_in_whole_lines(text, data):
    for mode in MODES.values():
        to = server("8bitmime", "smtputf8", "size", mode=mode)
        for content in (text, data):
            try:
                octets = content.encode() if isinstance(content, str) else content
            except UnicodeEncodeError:
                continue
            transaction = prepared(Message("f@x", "a@x", content), to)
            lines = octets.replace(b"\r\n", b"\n").replace(b"\r", b"\n").removesuffix(b"\n")
            assert wire(transaction) == framed(lines.replace(b"\n", b"\r\n") + b"\r\n", mode)
            first = commands(transaction)[0]
            assert f" SIZE={transaction.octets}" in first
            assert ("BODY=8BITMIME" in first) == (not octets.isascii())
            assert "SMTPUTF8" not in first or "BODY=8BITMIME" in first


# -- what MAIL says -----------------------------------------------------------

PARAMETERS = [
    # content, extensions, parameters of MAIL
    (ASCII, [], ""),
    (ASCII, ["8bitmime", "smtputf8"], ""),
    (ASCII, ["size"], f" SIZE={len(ASCII)}"),
    (EIGHT_BIT, ["8bitmime"], " BODY=8BITMIME"),
    (EIGHT_BIT, ["8bitmime", "smtputf8"], " BODY=8BITMIME"),
    (EIGHT_BIT, ["8bitmime", "size"], f" SIZE={len(EIGHT_BIT)} BODY=8BITMIME"),
    (LATIN_1, ["8bitmime", "smtputf8"], " BODY=8BITMIME"),
    (UTF_8_HEADER, ["8bitmime", "smtputf8"], " BODY=8BITMIME SMTPUTF8"),
    (UTF_8_HEADER, ["8bitmime"], " BODY=8BITMIME"),  # as such mail has always been sent
    (LATIN_1_HEADER, ["8bitmime", "smtputf8"], " BODY=8BITMIME"),
    (UTF_8_IN_BOTH, ["8bitmime", "smtputf8"], " BODY=8BITMIME SMTPUTF8"),
    (b"gr\xc3\xbc\xc3\x9fe: header alone", ["8bitmime", "smtputf8"], " BODY=8BITMIME SMTPUTF8"),
]


@pytest.mark.parametrize("kind", ["bytes", "bytearray", "memoryview", "path"])
@pytest.mark.parametrize(("content", "extensions", "parameters"), PARAMETERS)
def test_what_the_content_needs_is_said(kind, content, extensions, parameters, mode, tmp_path):
    message = Message("f@x", "a@x", KINDS[kind](content, tmp_path))
    transaction = prepared(message, server(*extensions, mode=mode))
    if "SIZE" in parameters:
        parameters = parameters.replace(str(len(content)), str(transaction.octets))
    assert commands(transaction) == [f"MAIL FROM:<f@x>{parameters}", "RCPT TO:<a@x>"]


@pytest.mark.parametrize("content", [b"\r\nb\xc3\xb6dy\r\n", "\nbödy\n"])
def test_a_message_without_a_header_has_no_utf_8_in_it(content, mode):
    to = server("8bitmime", "smtputf8", mode=mode)
    transaction = prepared(Message("f@x", "a@x", content), to)
    assert commands(transaction)[0] == "MAIL FROM:<f@x> BODY=8BITMIME"


@pytest.mark.parametrize("content", [EIGHT_BIT, LATIN_1, UTF_8_HEADER, "b\xf6dy"])
def test_eight_bits_need_8bitmime(content, mode):
    message = Message("f@x", "a@x", content)
    with pytest.raises(SMTPNotSupportedError, match="8BITMIME"):
        prepared(message, server("smtputf8", mode=mode))


@pytest.mark.parametrize(
    ("limit", "fits"), [("", True), ("0", True), ("20", True), ("19", False), ("no number", True)]
)
def test_a_message_that_is_too_large_is_not_offered(limit, fits, mode):
    assert len(ASCII) == 20
    to = server(size=limit, mode=mode)
    for content in (ASCII, ASCII.replace(b"\r\n", b"\n"), ASCII.replace(b"\r\n", b"\n").decode()):
        message = Message("f@x", "a@x", content)
        if fits:
            assert " SIZE=20" in commands(prepared(message, to))[0]
        else:
            with pytest.raises(SMTPNotSupportedError, match=r"20 octets.* 19 at most"):
                prepared(message, to)


def test_dots_do_not_count(mode):
    # RFC 1870, section 5: the size is that of the message, before dots are doubled.
    to = server(size="9", mode=mode)
    assert prepared(Message("f@x", "a@x", b".\r\n.\r\n.\r\n"), to).octets == 9


# -- addresses ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "written"),
    [
        ("Ann B. <a@x>", "<a@x>"),
        ("<a@x>", "<a@x>"),
        ('"a b"@x', '<"a b"@x>'),
        ("a@b\xfccher.example", "<a@xn--bcher-kva.example>"),
        ("postmaster", "<postmaster>"),
    ],
)
def test_addresses_that_are_not_plain(address, written, mode):
    transaction = prepared(Message(address, ["a@x", address], ASCII), server(mode=mode))
    assert commands(transaction) == [f"MAIL FROM:{written}", "RCPT TO:<a@x>", f"RCPT TO:{written}"]
    assert transaction.count == 2
    # One by one they are the same.
    assert b"".join((transaction.envelope.mail, *transaction.envelope.rcpts)) == (
        transaction.commands
    )


def test_the_envelope_is_there_where_it_is_needed(mode):
    transaction = prepared(Message("f@x", "a@x", ASCII), server(mode=mode))
    assert (transaction.envelope is None) == ("pipelined" in mode)


def test_nobody_is_a_sender(mode):
    transaction = prepared(Message("", "a@x", ASCII), server(mode=mode))
    assert commands(transaction)[0] == "MAIL FROM:<>"


HOSTILE = [
    *("a@x\r\nDATA", "a@x\n", "a@x\r", "a\0@x", "a@x\x7f", "a\tb@x", "\x1ba@x"),
    *("a@x> SIZE=1", "a@x>\r\nRCPT TO:<b@x", "<a@x> ORCPT=x", "<a@x> <b@x>", "a@\xfc\r\n.example"),
]


@pytest.mark.parametrize("address", HOSTILE)
def test_text_that_is_no_address_is_not_built_into_anything(address, mode):
    to = server(*ALL, mode=mode)
    for message in (
        Message(address, "a@x", ASCII),
        Message("f@x", ["a@x", address, "b@x"], ASCII),
        Message("f@x", ["a@x", Recipient(address, notify="never")], ASCII),
    ):
        try:
            transaction = prepared(message, to)
        except (ValueError, UnicodeEncodeError):
            continue
        # What is left is what parseaddr() makes of it: one path, and no more.
        lines = [re.sub(" (SIZE=20|NOTIFY=NEVER)$", "", line) for line in commands(transaction)]
        assert [re.sub("<[^<>\0-\x1f\x7f]*>", "<>", line) for line in lines] == [
            "MAIL FROM:<>", *["RCPT TO:<>"] * len(message.recipients),
        ]  # fmt: skip


@pytest.mark.parametrize("address", ["a\0@x", "a@x\x7f", "\x1ba@x", "a@\x0bx"])
def test_control_characters(address, mode):
    # Newlines are white space to parseaddr(), as with smtplib, and are not written.
    for message in (Message(address, "a@x", ASCII), Message("f@x", ["a@x", address], ASCII)):
        with pytest.raises(ValueError, match=r"prohibited|one path"):
            prepared(message, server(mode=mode))


@pytest.mark.parametrize("where", ["sender", "recipient", "Recipient"])
def test_an_address_that_needs_smtputf8(where, mode):
    name = "\xe9@x"
    message = Message(
        name if where == "sender" else "f@x",
        {"sender": "a@x", "recipient": name, "Recipient": Recipient(name)}[where],
        ASCII,
    )
    assert message.needs_smtputf8
    with pytest.raises(SMTPNotSupportedError, match="SMTPUTF8"):
        prepared(message, server("8bitmime", mode=mode))
    transaction = prepared(message, server("8bitmime", "smtputf8", mode=mode))
    first, second = commands(transaction)
    assert first.endswith(" SMTPUTF8")
    assert "\xe9@x" in (first if where == "sender" else second)


def test_smtputf8_is_said_once(mode):
    message = Message("\xe9@x", "a@x", UTF_8_HEADER)
    transaction = prepared(message, server("8bitmime", "smtputf8", mode=mode))
    assert commands(transaction)[0] == "MAIL FROM:<\xe9@x> BODY=8BITMIME SMTPUTF8"


def test_a_utf_8_header_alone_does_not_make_addresses_utf_8(mode):
    message = Message("Ann <f@x>", "a@x", UTF_8_HEADER)
    transaction = prepared(message, server("8bitmime", "smtputf8", mode=mode))
    assert commands(transaction)[0] == "MAIL FROM:<f@x> BODY=8BITMIME SMTPUTF8"


# -- options ------------------------------------------------------------------


def test_options_are_written(mode):
    options = Options(
        notify=["failure", "delay"], ret="hdrs", envid="a b", deliver_by=60, priority=3
    )
    message = Message("f@x", ["a@x", "b@x"], ASCII, options=options)
    assert commands(prepared(message, server(*ALL, mode=mode))) == [
        f"MAIL FROM:<f@x> SIZE={len(ASCII)} RET=HDRS ENVID=a+20b BY=60;R MT-PRIORITY=3",
        "RCPT TO:<a@x> NOTIFY=FAILURE,DELAY",
        "RCPT TO:<b@x> NOTIFY=FAILURE,DELAY",
    ]


def test_recipients_have_their_own(mode):
    recipients = [
        "a@x",
        Recipient("b@x", notify="never"),
        Recipient("Cy <c@x>", orcpt="c+d@x"),
        Recipient("d@x"),
    ]
    message = Message("f@x", recipients, ASCII, options=Options(notify="delay"))
    assert commands(prepared(message, server("dsn", mode=mode))) == [
        "MAIL FROM:<f@x>",
        "RCPT TO:<a@x> NOTIFY=DELAY",
        "RCPT TO:<b@x> NOTIFY=NEVER",
        "RCPT TO:<c@x> NOTIFY=DELAY ORCPT=rfc822;c+2Bd@x",
        "RCPT TO:<d@x> NOTIFY=DELAY",
    ]


def test_a_recipient_s_own_are_as_long_as_it_is_one_of_those_of_the_transaction(mode):
    message = Message("f@x", ["a@x", Recipient("b@x", notify="never")], ASCII)
    transaction = prepare(message, message.recipients[1:], None, server("dsn", mode=mode))
    assert commands(transaction) == ["MAIL FROM:<f@x>", "RCPT TO:<b@x> NOTIFY=NEVER"]
    assert transaction.count == 1
    transaction = prepare(message, message.recipients[:1], None, server(mode=mode))
    assert commands(transaction) == ["MAIL FROM:<f@x>", "RCPT TO:<a@x>"]


@pytest.mark.parametrize(
    ("own", "general", "parameters"),
    [
        (None, None, ""),
        (None, NO_OPTIONS, ""),
        (None, Options(ret="full"), " RET=FULL"),
        (Options(ret="hdrs"), Options(ret="full"), " RET=HDRS"),
        (Options(), Options(ret="full"), ""),
        (Options(ret="hdrs"), None, " RET=HDRS"),
    ],
)
def test_a_message_s_options_stand_in_for_the_general_ones(own, general, parameters, mode):
    message = Message("f@x", "a@x", ASCII, options=own)
    transaction = prepared(message, server("dsn", mode=mode), general)
    assert commands(transaction)[0] == f"MAIL FROM:<f@x>{parameters}"


@pytest.mark.parametrize(
    ("recipient", "options", "lacking"),
    [
        ("a@x", Options(ret="full"), "DSN"),
        ("a@x", Options(notify="never"), "DSN"),
        (Recipient("a@x", notify="never"), None, "DSN"),
        (Recipient("a@x", orcpt="b@x"), None, "DSN"),
        ("a@x", Options(priority=1), "MT-PRIORITY"),
        ("a@x", Options(deliver_by=5), "DELIVERBY"),
        ("a@x", Options(hold_for=5), "FUTURERELEASE"),
        ("a@x", Options(require_tls=True), "REQUIRETLS"),
    ],
)
def test_what_the_server_does_not_offer_is_refused(recipient, options, lacking, mode):
    message = Message("f@x", recipient, ASCII, options=options)
    with pytest.raises(SMTPNotSupportedError, match=lacking):
        prepared(message, server("8bitmime", mode=mode))


def test_requiretls_needs_tls(mode):
    message = Message("f@x", "a@x", ASCII, options=Options(require_tls=True))
    with pytest.raises(SMTPNotSupportedError, match="TLS"):
        prepared(message, server("requiretls", mode=mode))
    to = Server({"requiretls": ""}, tls=True, **mode)
    assert commands(prepared(message, to))[0] == "MAIL FROM:<f@x> REQUIRETLS"


def test_lmtp_is_the_transaction_s(mode):
    assert not prepared(Message("f@x", "a@x", ASCII), server(mode=mode)).lmtp
    for address in ("a@x", "Ann <a@x>"):
        to = Server({}, lmtp=True, **mode)
        assert prepared(Message("f@x", address, ASCII), to).lmtp


# -- an email.message.Message -------------------------------------------------


def build(text="body", cte=None, **fields):
    message = EmailMessage()
    for name, value in {"From": "f@x", "To": "a@x, B <b@x>", "Bcc": "c@x", **fields}.items():
        message[name] = value
    message.set_content(text, cte=cte)
    return message


def read(transaction, mode):
    octets = wire(transaction) if "chunked" in mode else wire(transaction).removesuffix(b".\r\n")
    return email.message_from_bytes(octets, policy=email.policy.default)


def test_an_email_message_brings_its_envelope(mode):
    original = build()
    message = outgoing(original)
    transaction = prepared(message, server(mode=mode))
    assert sorted(commands(transaction)) == [
        "MAIL FROM:<f@x>", "RCPT TO:<a@x>", "RCPT TO:<b@x>", "RCPT TO:<c@x>",
    ]  # fmt: skip
    assert read(transaction, mode)["Bcc"] is None
    assert original["Bcc"] == "c@x"
    assert message.id is None


@pytest.mark.parametrize("text", ["b\xf6dy\n", "b\xf6dy " * 200 + "\n.dot\n"])
def test_parts_in_8bit_are_written_anew_for_a_server_without_8bitmime(text, mode):
    original = build(text, cte="8bit")
    transaction = prepared(outgoing(original), server("8bitmime", mode=mode))
    assert " BODY=8BITMIME" in commands(transaction)[0]
    assert "\xf6".encode() in wire(transaction)
    transaction = prepared(outgoing(original), server(mode=mode))
    assert commands(transaction)[0] == "MAIL FROM:<f@x>"
    assert wire(transaction).isascii()
    sent = read(transaction, mode)
    assert sent["Content-Transfer-Encoding"] in ("base64", "quoted-printable")
    assert sent.get_content().replace("\r\n", "\n") == text
    assert original["Content-Transfer-Encoding"] == "8bit"


def test_octets_without_a_charset_need_8bitmime(mode):
    message = email.message_from_bytes(b"From: f@x\nTo: a@x\n\nb\xf6dy\n")
    transaction = prepared(outgoing(message), server("8bitmime", mode=mode))
    assert b"b\xf6dy" in wire(transaction)
    with pytest.raises((SMTPNotSupportedError, UnicodeEncodeError)):
        prepared(outgoing(message), server(mode=mode))


def test_an_internationalised_email_message(mode):
    original = build(From="\xe9@x", Subject="gr\xfc\xdfe")
    with pytest.raises(SMTPNotSupportedError):
        prepared(outgoing(original), server("8bitmime", mode=mode))
    transaction = prepared(outgoing(original), server("8bitmime", "smtputf8", mode=mode))
    assert commands(transaction)[0] == "MAIL FROM:<\xe9@x> BODY=8BITMIME SMTPUTF8"
    assert "Subject: gr\xfc\xdfe\r\n".encode() in wire(transaction)


def test_without_need_the_header_is_ascii(mode):
    original = build(From="Zo\xeb <f@b\xfccher.example>", Subject="gr\xfc\xdfe")
    transaction = prepared(outgoing(original), server("8bitmime", "smtputf8", mode=mode))
    assert commands(transaction)[0] == "MAIL FROM:<f@xn--bcher-kva.example>"
    assert wire(transaction).isascii()


def test_a_path_object_is_what_it_says():
    assert isinstance(Message("f@x", "a@x", Path("x")).content, Path)
