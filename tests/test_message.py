"""Messages: whom they are for as smtplib reads it, and what is written of them."""

from __future__ import annotations

import copy
import email
import email.policy
import re
import smtplib
import warnings
from concurrent.futures import ThreadPoolExecutor
from email.header import Header
from email.message import EmailMessage, Message
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from email.utils import getaddresses

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support import ModelServer

import fastsmtp
from fastsmtp import message as messages
from fastsmtp.message import header_of, wire_form


class Sender(smtplib.SMTP):
    """smtplib's send_message(), as far as sendmail()."""

    def ehlo_or_helo_if_needed(self):
        self.esmtp_features = {"smtputf8": ""}
        self.does_esmtp = True

    def sendmail(self, from_addr, to_addrs, msg, mail_options=(), rcpt_options=()):
        return from_addr, to_addrs, msg


def smtplib_sends(message, *addresses):
    return Sender(local_hostname="localhost").send_message(message, *addresses)


KINDS = {"compat32": Message, "default": EmailMessage}


def build(kind, fields):
    message = KINDS[kind]()
    for name, value in fields:
        message[name] = value
    message.set_payload("Hello,\n.dot\n")
    return message


def envelope_addresses(message, *given_addresses):
    """Return what there is of addresses: the same, whether the header was looked through or not."""
    with_header = result_of(
        messages.envelope_addresses, message, *given_addresses, header_of(message)
    )
    assert with_header == result_of(messages.envelope_addresses, message, *given_addresses)
    return messages.envelope_addresses(message, *given_addresses)


def result_of(call, *arguments):
    try:
        return call(*arguments)
    except Exception as error:
        return type(error)


# -- whom it is for -----------------------------------------------------------

ADDRESSES = [
    [("From", "f@x"), ("To", "t@x")],
    [("From", "F <f@x>"), ("Sender", "S <s@x>"), ("To", "t@x, U <u@x>"), ("Cc", "c@x")],
    [("From", "f@x"), ("Bcc", "b@x"), ("Cc", "c@x"), ("To", "t@x")],
    [("From", "f@x, g@x"), ("To", "a group: t@x, u@x;")],
    [("From", "f@x"), ("To", "undisclosed-recipients:;"), ("Bcc", "b@x")],
    [("From", "f@x"), ("To", '"Doe, Jane" <t@x>, (comment) u@x')],
    [("From", "f@x")],
    [("To", "t@x"), ("Sender", "s@x")],
    [  # RFC 5322, section 3.6.6: the fields of the resender count, and no other
        ("From", "f@x"), ("To", "t@x"), ("Bcc", "b@x"), ("Resent-Date", "Thu, 1 Jan 1970 00:00:00"),
        ("Resent-From", "rf@x"), ("Resent-To", "rt@x"), ("Resent-Bcc", "rb@x"),
        ("Resent-Cc", "rc@x"),
    ],
    [
        ("From", "f@x"), ("To", "t@x"), ("Resent-Date", "Thu, 1 Jan 1970 00:00:00"),
        ("Resent-From", "rf@x"), ("Resent-Sender", "rs@x"), ("Resent-To", "rt@x"),
    ],
    [  # without its date there is no block
        ("From", "f@x"), ("To", "t@x"), ("Resent-From", "rf@x"), ("Resent-To", "rt@x"),
    ],
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fields", ADDRESSES)
def test_addresses_are_those_that_smtplib_finds(kind, fields):
    message = build(kind, fields)
    for given_addresses in ((None, None), ("x@x", None), (None, ["y@x"]), ("x@x", "y@x")):
        expected = smtplib_sends(message, *given_addresses)[:2]
        assert envelope_addresses(message, *given_addresses) == expected


def test_addresses_outside_ascii_are_those_that_smtplib_finds():
    message = build("default", [("From", "f@bücher.example"), ("To", "é@x, Zoë <t@x>")])
    assert envelope_addresses(message, None, None) == smtplib_sends(message)[:2]


fields = st.lists(
    st.tuples(
        st.sampled_from(["From", "Sender", "To", "Cc", "Bcc", "Subject", "Resent-Date"])
        | st.sampled_from([f"Resent-{name}" for name in ("From", "Sender", "To", "Cc", "Bcc")]),
        st.sampled_from(["a@x", "B <b@x>", "c@x, d@x", "g: e@x, f@x;", '"a, b" <h@x>', "(c) i@x"]),
    ),
    max_size=7,
)


@given(fields=fields)
@example(fields=[("From", "a@x"), ("From", "B <b@x>"), ("To", "a@x"), ("To", "b@x")])
def test_any_header_is_read_as_smtplib_does(fields):
    message = build("compat32", [("From", "first@x"), ("Resent-Sender", "resent@x"), *fields])
    expected = result_of(smtplib_sends, message)
    found = result_of(envelope_addresses, message, None, None)
    assert found == (expected if expected is ValueError else expected[:2])


def test_header_objects_are_read_as_smtplib_does():
    message = MIMEText("x")
    message["From"] = Header("Zoë", "utf-8")
    message["To"] = Header("Ann <a@x>", "us-ascii")
    del message["From"]
    message["From"] = Header("f@x")
    assert envelope_addresses(message, None, None) == smtplib_sends(message)[:2]


def test_several_resent_blocks_are_refused():
    message = build("compat32", [("From", "f@x"), ("Resent-Date", "1"), ("Resent-Date", "2")])
    assert result_of(smtplib_sends, message) is ValueError
    with pytest.raises(ValueError, match="more than one 'Resent-' header block"):
        envelope_addresses(message, "f@x", ["t@x"])


@pytest.mark.parametrize("prefix", ["", "Resent-"])
def test_a_message_without_a_sender(prefix):
    fields = [("From", "f@x"), ("Resent-Date", "Thu, 1 Jan 1970 00:00:00")] if prefix else []
    message = build("compat32", [*fields, ("To", "t@x")])
    error = f"no {prefix}Sender and no {prefix}From"
    with pytest.raises(ValueError, match=error):
        envelope_addresses(message, None, None)
    # The null reverse-path, if that is how this Python's getaddresses() reads an empty field.
    message[prefix + "From"] = ""
    if getaddresses([""]):
        assert envelope_addresses(message, None, None)[0] == smtplib_sends(message)[0] == ""
    else:
        with pytest.raises(ValueError, match=error):
            envelope_addresses(message, None, None)


@pytest.mark.parametrize("policy", [email.policy.default, email.policy.compat32])
@pytest.mark.parametrize(
    "name", ["=?utf-8?q?Zo=C3=AB?=", "=?utf-8?q?a=2C_b?=", "=?utf-8?q?a=0Ab?="]
)
def test_encoded_words_in_what_was_received(policy, name):
    source = f"From: f@x\nTo: {name} <t@x>, u@x\n\ntext\n"
    message = email.message_from_string(source, policy=policy)
    expected = result_of(smtplib_sends, message)
    found = result_of(envelope_addresses, message, None, None)
    # A line break in a name is refused where the name is decoded.
    assert found == (expected if expected is ValueError else expected[:2])


# -- what is written ----------------------------------------------------------

MESSAGES = [
    [("From", "f@x"), ("To", "t@x"), ("Subject", "plain")],
    [("From", "f@x"), ("To", "t@x"), ("Bcc", "b@x"), ("Resent-Bcc", "rb@x"), ("bcc", "b2@x")],
    [("From", "Zoë <f@x>"), ("To", "t@x"), ("Subject", "Grüße")],
    [("From", "f@x"), ("To", ", ".join(f"recipient{number}@host.example" for number in range(20)))],
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fields", MESSAGES)
def test_a_message_is_written_as_smtplib_does(kind, fields):
    fields = [field for field in fields if kind == "compat32" or field[0] != "bcc"]
    message = build(kind, fields)
    before = (list(message.items()), message.as_bytes())
    written = wire_form(message)
    assert written == smtplib_sends(message, "f@x", ["t@x"])[2]
    assert written.count(b"\n") == written.count(b"\r\n") > 0
    assert b"bcc" not in written.lower()
    assert (list(message.items()), message.as_bytes()) == before


def test_a_message_in_utf8_is_written_as_smtplib_does():
    message = build("default", [("From", "é@x"), ("To", "Zoë <t@x>"), ("Subject", "Grüße")])
    written = wire_form(message, utf8=True)
    assert written == smtplib_sends(message)[2]
    assert "From: é@x\r\nTo: Zoë <t@x>\r\nSubject: Grüße\r\n".encode() in written


def test_compat32_has_no_utf8():
    message = build("compat32", [("From", "é@x"), ("To", "t@x")])
    assert result_of(smtplib_sends, message) is TypeError
    with pytest.raises(TypeError, match="utf8"):
        wire_form(message, utf8=True)


A_LABEL, U_LABEL = "xn--bcher-kva.example", "bücher.example"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name",
    [
        *("From", "Sender", "Reply-To", "To", "Cc"),
        *("Resent-From", "Resent-Sender", "Resent-To", "Resent-Cc"),
    ],
)
def test_domains_are_written_in_ascii(kind, name):
    value = f"a@{U_LABEL}"
    shown = not name.endswith("Sender")
    if shown:
        value = f"{value}, Zoë <b@{U_LABEL}>, c@x, Ann B. <d@x>"
    message = build(kind, [(name, value), ("Subject", "x")])
    before = copy.deepcopy(list(message.items()))
    written = wire_form(message)
    assert list(message.items()) == before
    assert written.isascii()
    field = email.message_from_bytes(written, policy=email.policy.default)[name]
    expected = [("", f"a@{A_LABEL}")]
    if shown:
        expected += [("Zoë", f"b@{A_LABEL}"), ("", "c@x"), ("Ann B.", "d@x")]
    assert [(each.display_name, each.addr_spec) for each in field.addresses] == expected


def test_every_field_of_the_name_is_written_in_ascii():
    message = build("compat32", [("To", f"a@{U_LABEL}"), ("Subject", "x"), ("To", f"b@{U_LABEL}")])
    written = f"To: a@{A_LABEL}\r\nSubject: x\r\nTo: b@{A_LABEL}\r\n\r\n"
    assert wire_form(message).startswith(written.encode())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "value", [f"é@{U_LABEL}", "é@x", "Zoë <a@x>", f"a@{U_LABEL}, é@x", "Zoë", "a@x"]
)
def test_what_no_domain_in_ascii_helps_is_left_alone(kind, value):
    message = build(kind, [("To", value)])
    assert result_of(wire_form, message) == (
        result_of(lambda: smtplib_sends(message, "f@x", ["t@x"])[2])
    )


def test_a_field_that_nests_too_deep_to_be_read_is_left_alone(monkeypatch):
    def nests_too_deep(fields):
        raise RecursionError  # for "((((", by the interpreter's version

    message = build("compat32", [("Reply-To", f"a@{U_LABEL}")])
    as_it_is = smtplib_sends(message, "f@x", ["t@x"])[2]
    monkeypatch.setattr(messages, "getaddresses", nests_too_deep)
    assert wire_form(message) == as_it_is


@pytest.mark.parametrize("policy", [email.policy.compat32, email.policy.default, email.policy.SMTP])
@pytest.mark.parametrize(
    "header",
    [
        b"To: a@b\xc3\xbccher.example",
        b"To: a@b\xfccher.example",
        b"Reply-To: Zo\xeb <a@x>",
        b"Cc: \xff\xfe",
    ],
)
def test_a_received_message_with_bytes_in_its_header_is_passed_on(policy, header):
    # RFC 5322, section 2.2, has ASCII there; but such mail is about, and is forwarded.
    message = email.message_from_bytes(
        b"From: f@x\n" + header + b"\nSubject: x\n\nbody\n", policy=policy
    )
    as_it_is = smtplib_sends(message, "f@x", ["t@x"])[2]
    in_ascii = f"From: f@x\r\nTo: a@{A_LABEL}\r\nSubject: x\r\n\r\nbody\r\n".encode()
    assert wire_form(message) in (as_it_is, in_ascii)


# -- for a server without 8BITMIME --------------------------------------------

BODY_8BIT = "Gr\u00fc\u00dfe\n.dot\n" + "\u00f6" * 200 + "\n"
LINES_7BIT = "only ASCII\n"


def part(text, cte, subtype="plain"):
    made = EmailMessage()
    made.set_content(text, subtype=subtype, cte=cte)
    return made


def with_parts():
    message = build("default", [("From", "f@x"), ("To", "t@x"), ("Bcc", "b@x")])
    message.set_content(BODY_8BIT, cte="8bit")
    message.add_alternative("<p>" + BODY_8BIT, subtype="html", cte="8bit")
    message.add_attachment(b"\0\x80\xff" * 50, maintype="image", subtype="png")
    message.attach(part(LINES_7BIT, "7bit"))
    return message


def read(written):
    return email.message_from_bytes(written, policy=email.policy.default)


def leaves(message):
    return [each for each in message.walk() if not each.is_multipart()]


def content(part):
    """Return what is in a part, its newlines as Python has them."""
    found = part.get_content()
    return found.replace("\r\n", "\n") if isinstance(found, str) else found


def test_parts_in_8bit_are_written_in_7bit_if_asked():
    message = with_parts()
    before = message.as_bytes()
    assert not wire_form(message).isascii()
    written = wire_form(message, seven_bit=True)
    assert written.isascii()
    assert message.as_bytes() == before
    assert written.count(b"\n") == written.count(b"\r\n")
    assert max(map(len, written.split(b"\r\n"))) <= 998
    assert b"Bcc" not in written
    encodings = [str(each["Content-Transfer-Encoding"]) for each in leaves(read(written))]
    assert set(encodings[:2]) <= {"base64", "quoted-printable"}
    assert encodings[2:] == ["base64", "7bit"]
    assert list(map(content, leaves(read(written)))) == list(map(content, leaves(message)))


@pytest.mark.parametrize("policy", [email.policy.compat32, email.policy.default, email.policy.SMTP])
def test_a_received_message_in_8bit_is_written_in_7bit(policy):
    source = (
        b"From: f@x\nTo: t@x\nMIME-Version: 1.0\nContent-Type: text/plain; charset=iso-8859-1\n"
        b"Content-Transfer-Encoding: 8bit\n\nGr\xfc\xdfe\n"
    )
    message = email.message_from_bytes(source, policy=policy)
    before = message.as_bytes()
    assert wire_form(message) == source.replace(b"\n", b"\r\n")
    written = wire_form(message, seven_bit=True)
    assert written.isascii()
    assert content(read(written)) == "Gr\u00fc\u00dfe\n"
    assert message.as_bytes() == before


def test_octets_without_a_charset_cannot_be_written_in_7bit():
    # What they mean is not known.
    message = email.message_from_bytes(b"From: f@x\n\nGr\xfc\xdfe\n")
    assert wire_form(message).endswith(b"Gr\xfc\xdfe\r\n")
    with pytest.raises(UnicodeEncodeError):
        wire_form(message, seven_bit=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fields", MESSAGES)
def test_a_message_in_7bit_is_written_as_it_is(kind, fields):
    fields = [field for field in fields if kind == "compat32" or field[0] != "bcc"]
    message = build(kind, fields)
    assert wire_form(message, seven_bit=True) == wire_form(message)


def test_in_7bit_the_header_may_be_in_utf8_still():
    message = build("default", [("From", "\u00e9@x"), ("To", "t@x")])
    message.set_content(BODY_8BIT, cte="8bit")
    written = wire_form(message, utf8=True, seven_bit=True)
    assert "From: \u00e9@x\r\n".encode() in written
    assert written.partition(b"\r\n\r\n")[2].isascii()


# -- messages that are none of the usual ones ---------------------------------


class Elsewhere(EmailMessage):
    """Keeps its fields in a place of its own."""

    def __init__(self):
        super().__init__()
        self.own = [("From", "f@x"), ("To", "t@x"), ("BCC", "secret@x"), ("Resent-Bcc", "s@x")]
        self.set_payload("text\n")

    def __copy__(self):
        copied = Elsewhere()
        copied.own = list(self.own)
        return copied

    def raw_items(self):
        return iter(self.own)

    def get_all(self, name, failobj=None):
        return [value for key, value in self.own if key.lower() == name.lower()] or failobj

    def get(self, name, failobj=None):
        return next(iter(self.get_all(name, [])), failobj)

    def __getitem__(self, name):
        return self.get(name)

    def __delitem__(self, name):
        self.own = [field for field in self.own if field[0].lower() != name.lower()]


class Adds(EmailMessage):
    def raw_items(self):
        yield from super().raw_items()
        yield "X-Mailer", "me"


class Proxy:
    """Like a message; what is done to a copy of it is done to a copy of the message."""

    def __init__(self, message):
        self.message = message

    def __copy__(self):
        return Proxy(copy.copy(self.message))

    def __getattr__(self, name):
        return getattr(self.message, name)

    def __getitem__(self, name):
        return self.message[name]

    def __setitem__(self, name, value):
        self.message[name] = value

    def __delitem__(self, name):
        del self.message[name]


def test_no_bcc_of_a_message_that_keeps_its_fields_elsewhere():
    message = Elsewhere()
    before = list(message.own)
    expected = smtplib_sends(message)
    assert expected[2] == b"From: f@x\r\nTo: t@x\r\n\r\ntext\r\n"
    assert wire_form(message, header_of(message)) == expected[2]
    assert envelope_addresses(message, None, None) == expected[:2]
    assert message.own == before


@pytest.mark.parametrize(
    ("kind", "domain"),
    [(Adds, "x"), (lambda: Proxy(EmailMessage()), "x"), (lambda: Proxy(Message()), "bücher.x")],
)
def test_other_kinds_of_messages(kind, domain):
    message = kind()
    for name, value in (("From", "f@x"), ("To", f"t@{domain}"), ("Bcc", "secret@x")):
        message[name] = value
    message.set_payload("text\n")
    before = list(message.raw_items())
    written = wire_form(message, header_of(message))
    assert written.count(b"X-Mailer: me\r\n") == (kind is Adds)
    assert b"secret" not in written
    assert b"To: t@" + domain.encode("idna") + b"\r\n" in written
    assert list(message.raw_items()) == before


def test_a_drawn_boundary_beside_a_bcc():
    message = MIMEMultipart()
    message["From"], message["To"], message["Bcc"] = "f@x", "Zoë <t@x>", "b@x"
    message.attach(MIMEText("x"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # BytesWarning, with -b
        written = wire_form(message, header_of(message))
    assert b"Bcc" not in written
    assert written.count(b"boundary=") == 1


@pytest.mark.parametrize("message", ["text", None, b"octets", {}, 5])
def test_what_is_no_message(message):
    with pytest.raises(AttributeError):
        smtplib_sends(message)
    with pytest.raises(AttributeError):
        messages.envelope_addresses(message, "f@x", ["t@x"], header_of(message))


@pytest.mark.parametrize("dates", [[None], [None, None], ["Thu, 1 Jan 1970 00:00:00", None]])
def test_resent_fields_without_a_date(dates):
    message = Message()
    for name in ("From", "To", "Resent-From", "Resent-To"):
        message[name] = name.lower() + "@x"
    for date in dates:
        message["Resent-Date"] = date
    expected = result_of(smtplib_sends, message)
    found = result_of(envelope_addresses, message, None, None)
    assert found == (expected if expected is ValueError else expected[:2])


def test_a_message_that_wants_each_field_to_be_there():
    class Wants(EmailMessage):
        def __getitem__(self, name):
            found = super().__getitem__(name)
            if found is None:
                raise KeyError(name)
            return found

    message = Wants()
    message["Subject"] = "x"
    assert envelope_addresses(message, "f@x", ["t@x"]) == ("f@x", ["t@x"])


# -- one message, sent from many threads --------------------------------------


def shared_message():
    """A message with all that BytesGenerator changes while it writes: see test_serializer.py."""
    inner = MIMEMultipart()
    inner.attach(email.message_from_bytes(b"Content-Type: text/plain\n\nFrom caf\xc3\xa9\n"))
    message = MIMEMultipart(policy=email.policy.default)
    for name, value in (("From", "f@x"), ("To", "Ann <t@x>"), ("Bcc", "secret@x")):
        message[name] = value
    message.attach(inner)
    return message, inner


def in_threads(count, call):
    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(lambda _: call(), range(count * 4)))


@pytest.mark.parametrize("by", ["SMTP", "Mailer"])
def test_one_message_sent_from_eight_threads(by):
    message, inner = shared_message()
    before = list(message.raw_items()), list(inner.raw_items()), inner.get_payload(0).get_payload()
    policies = message.policy, inner.policy

    def by_smtp():
        with fastsmtp.SMTP(server.host, server.port, "localhost", timeout=5) as client:
            return client.send_message(message)

    with ModelServer() as server:
        if by == "SMTP":
            assert in_threads(8, by_smtp) == [{}] * 32
        else:
            with fastsmtp.Mailer(server.host, server.port, connections=4) as mailer:
                deliveries = in_threads(8, lambda: mailer.send(message))
            assert {delivery.status for delivery in deliveries} == {"accepted"}
    written = {re.sub(rb"=+\d+==", b"boundary", each.data) for each in server.messages}
    assert len(server.messages) == 32
    assert len(written) == 1
    assert b"\r\n>From caf\xc3\xa9\r\n" in written.pop()
    assert all(each.recipients == ["t@x", "secret@x"] for each in server.messages)
    after = list(message.raw_items()), list(inner.raw_items()), inner.get_payload(0).get_payload()
    assert after == before
    assert (message.policy, inner.policy) == policies
