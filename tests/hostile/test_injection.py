"""Text that would become more on the wire than it is: nothing of it is written.

Each argument that ends in a command is tried with each control character, with code points
whose low octet is one, with newlines that go on as a command, and with far too much of it.
Either ValueError is raised and the peer has not one octet, or, where white space may be (RFC
5322, section 3.2.2), what is written is the mailbox that was meant.  test_envelope.py,
test_options.py and test_outgoing.py have the same for the functions that check.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable
from email.errors import MessageError
from email.message import Message as AnyMessage
from typing import Any

import pytest
from peers import MAILERS, RECIPIENT, SENDER, USER, told, untold
from support import ModelServer

import fastsmtp
from fastsmtp import Mailer, Message, Options, Recipient
from fastsmtp.envelope import Envelope
from fastsmtp.message import envelope_addresses, header_of

CONTROLS = [*map(chr, range(0x20)), "\x7f"]
# Cut to their low octet they are CR, LF, NUL, DEL or a blank.
NARROWED = [*"\u010a\u010d\u760a\u760d\u0a0d\u0d0a\u0100\u027f\u0120\U0001f60d\U0001f60a"]
LINES = ["\r\n", "\r\n ", "\r\nRSET\r\n", "\n.\n", "\r\nRCPT TO:<evil@x>\r\n"]
EXTENSIONS = ("PIPELINING", "SIZE", "8BITMIME", "SMTPUTF8", "DSN", "AUTH PLAIN LOGIN XOAUTH2")
BODY = b"Subject: good\r\n\r\n.good\r\n"


class ByMethods(fastsmtp.SMTP):
    """A client that goes one command at a time, by its public methods."""

    def rcpt(self, *args: Any, **keywords: Any) -> tuple[int, bytes]:
        return super().rcpt(*args, **keywords)


CLASSES = {"SMTP": fastsmtp.SMTP, "by methods": ByMethods, "LMTP": fastsmtp.LMTP}


@pytest.fixture(params=CLASSES)
def kind(request):
    return request.param


class Conversation:
    """A client, and the server that takes down what it writes."""

    def __init__(self, kind: str, **keywords: Any) -> None:
        self.server = ModelServer(EXTENSIONS, lmtp=kind == "LMTP", **keywords)
        self._make = CLASSES[kind]
        self._seen = 0

    def __enter__(self):
        self.server.__enter__()
        host, port = self.server.host, self.server.port
        self.client = self._make(host, port, local_hostname="client.example")
        self.client.ehlo()
        self._seen = 1
        return self

    def __exit__(self, *exc_info) -> None:
        self.client.close()
        self.server.__exit__(*exc_info)

    def written(self) -> list[str]:
        """Return the commands that were written since the last time."""
        self.client.noop()
        *commands, _ = self.server.commands[self._seen :]
        self.client.rset()
        self._seen += len(commands) + 2
        return commands

    def attempt(self, call: Callable[[Any, Any], object], bad: Any) -> Exception | None:
        """Return the error by which a call writes nothing, or None if it writes lines."""
        try:
            call(self.client, bad)
        except (ValueError, MessageError, TypeError) as error:
            return error  # TypeError: the policy compat32 has no utf8
        check_lines(self.written())
        return None

    def check(self) -> None:
        """Hold that errors wrote nothing, that all lines were lines, and that a message goes."""
        assert self.written() == []
        assert self.client.sendmail(SENDER, [RECIPIENT], BODY) == {}
        self.client.noop()
        assert self.server.messages[-1].data == BODY
        written = self.server.received
        for message in self.server.messages:
            written = written.replace(message.wire, b"")
        assert re.fullmatch(rb"(?:[^\0-\x1f\x7f]*\r\n)*", written)


def check_lines(commands: list[str]) -> None:
    """Hold that each command has one path, and nothing behind it but parameters."""
    for line in commands:
        assert re.fullmatch(LINE, line), line


LINE = (
    r'(?i)(?:mail from|rcpt to):<(?:[^"\\<>]|\\.|"(?:[^"\\]|\\.)*")*>(?: [!-~ ]*)?'
    r"|(?:vrfy|expn) .+|data|rset"
)


# -- control characters -------------------------------------------------------

#: What is written as it is given.
VERBATIM: dict[str, Callable[[Any, str], object]] = {
    "helo": lambda client, bad: client.helo(f"a{bad}b"),
    "ehlo": lambda client, bad: client.ehlo(f"a{bad}b"),
    "help": lambda client, bad: client.help(f"a{bad}b"),
    "docmd": lambda client, bad: client.docmd("XYZ", f"a{bad}b"),
    "docmd, the command": lambda client, bad: client.docmd(f"X{bad}YZ"),
    "docmd, at the end": lambda client, bad: client.docmd("XYZ", f"a{bad}"),
    "putcmd": lambda client, bad: client.putcmd(f"X{bad}YZ", "a"),
    "mail, option": lambda client, bad: client.mail(SENDER, [f"X={bad}"]),
    "rcpt, option": lambda client, bad: client.rcpt(RECIPIENT, [f"X{bad}"]),
    "mail_options": lambda client, bad: client.sendmail(SENDER, RECIPIENT, BODY, [f"X={bad}"]),
    "rcpt_options": lambda client, bad: client.sendmail(
        SENDER, [RECIPIENT, RECIPIENT], BODY, [], ["X=1", f"{bad}X=1"]
    ),
    "auth, mechanism": lambda client, bad: client.auth(f"PL{bad}AIN", lambda challenge=None: "x"),
}


@pytest.mark.parametrize("place", VERBATIM)
def test_no_control_character_is_written(kind, place):
    with Conversation(kind) as conversation:
        for bad in CONTROLS + LINES:
            error = conversation.attempt(VERBATIM[place], bad)
            assert isinstance(error, ValueError), ascii(bad)
        conversation.check()


@pytest.mark.parametrize("place", VERBATIM)
def test_no_code_point_is_cut_to_an_octet(kind, place):
    with Conversation(kind) as conversation:
        for bad in NARROWED:
            error = conversation.attempt(VERBATIM[place], bad)
            assert isinstance(error, UnicodeEncodeError), ascii(bad)
        conversation.check()


@pytest.mark.parametrize("bad", [*CONTROLS, *LINES], ids=ascii)
def test_the_name_of_the_client(bad):
    """It is not looked at before it is said."""
    with ModelServer(EXTENSIONS) as server:
        client = fastsmtp.SMTP(server.host, server.port, local_hostname=f"client{bad}example")
        for call in (client.ehlo, client.helo, lambda: client.sendmail(SENDER, RECIPIENT, BODY)):
            with pytest.raises(ValueError, match="prohibited"):
                call()
        client.close()
        keywords = {"tls": "none", "local_hostname": f"client{bad}example"}
        with Mailer(server.host, server.port, **keywords) as mailer:
            assert isinstance(mailer.send(Message(SENDER, RECIPIENT, BODY)).error, ValueError)
    assert server.received == b""


# -- addresses ----------------------------------------------------------------

#: White space that is no part of a mailbox goes, as in smtplib; the rest of one is as given.
IN_A_MAILBOX = [
    "a{}b@x", "a@x{}y", "{}a@x", "a@x{}", "<a{}b@x>", "<a@{}>", '"a{}b"@x', '"a\\{}b"@x', '"{}"@x',
    '<"a{}b"@x>', "a@[127.0.0.1{}]",
]  # fmt: skip
AROUND_A_MAILBOX = ["<a@x>{}", "Ann{} <a@x>", '"Ann{}" <a@x>', "(Ann{}) a@x", "a@x (Ann{})"]
WHITE_SPACE = "\t\r\n"

PLACES: dict[str, Callable[[Any, str], object]] = {
    "mail": lambda client, address: client.mail(address),
    "rcpt": lambda client, address: client.rcpt(address),
    "sender": lambda client, address: client.sendmail(address, [RECIPIENT], BODY),
    "recipient": lambda client, address: client.sendmail(SENDER, [RECIPIENT, address], BODY),
    "vrfy": lambda client, address: client.vrfy(address),
    "expn": lambda client, address: client.expn(address),
}


@pytest.mark.parametrize("form", IN_A_MAILBOX + AROUND_A_MAILBOX)
def test_an_address_is_one_path(kind, form):
    with Conversation(kind) as conversation:
        for bad in CONTROLS + LINES:
            for place, call in PLACES.items():
                error = conversation.attempt(call, form.format(bad))
                if form in IN_A_MAILBOX and bad not in (*WHITE_SPACE, *LINES):
                    assert isinstance(error, ValueError), (place, ascii(bad))
        conversation.check()


@pytest.mark.parametrize("newline", ["\r", "\n", "\r\n", "\r\n "], ids=ascii)
@pytest.mark.parametrize(
    "form", ['"root{}b"@x', '"root\\{}b"@x', '"root{}"@x', '<"root{}b"@x>', "a@[127.0.0.1{}]"]
)
def test_a_newline_in_quotes_does_not_make_another_mailbox(form, newline):
    """email.utils.parseaddr() takes a CR for the closing quote: what is before it is all."""
    try:
        mail = Envelope(form.format(newline), []).mail.decode()
    except ValueError:
        return
    # Unfolded (RFC 5322, section 2.2.3) it is the mailbox that it was.
    meant = form.format(newline.partition("\n")[2]).strip("<>")
    assert newline[-1:] == " "
    assert mail == f"MAIL FROM:<{meant}>\r\n"


BEYOND_ASCII: dict[str, Callable[[Any, str], object]] = {
    "mail": lambda client, address: client.mail(address, ["SMTPUTF8"]),
    "sender": lambda client, address: client.sendmail(address, RECIPIENT, BODY, ["SMTPUTF8"]),
    "recipient": lambda client, address: client.sendmail(SENDER, address, BODY, ["SMTPUTF8"]),
}


@pytest.mark.parametrize("place", PLACES)
def test_an_address_beyond_ascii_is_one_line(kind, place):
    with Conversation(kind) as conversation:
        for bad in NARROWED:
            error = conversation.attempt(PLACES[place], f"a{bad}b@x")
            assert isinstance(error, UnicodeEncodeError), ascii(bad)
            if place in BEYOND_ASCII:
                assert conversation.attempt(BEYOND_ASCII[place], f"a{bad}b@x") is None
                assert f"<a{bad}b@x>" in " ".join(conversation.server.commands)
        conversation.check()


def compat32(**fields: str) -> AnyMessage:
    """Return a message whose class checks nothing, as one that was received is."""
    message = AnyMessage()
    for name, value in {"From": SENDER, "To": RECIPIENT, "Subject": "good", **fields}.items():
        message[name.replace("_", "-")] = value
    message.set_payload(".good\n")
    return message


@pytest.mark.parametrize("field", ["From", "Sender", "To", "Cc", "Bcc"])
def test_an_address_in_a_field(field):
    def send(client: Any, address: str) -> object:
        return client.send_message(compat32(**{field: address}))

    with Conversation("SMTP") as conversation:
        for form in ("a{}b@x", '"a{}b"@x', '"Ann{}" <a@x>', "(Ann{}) a@x"):
            for bad in CONTROLS + NARROWED + LINES:
                conversation.attempt(send, form.format(bad))
        conversation.check()


@pytest.mark.parametrize("newline", ["\r\n", "\n"], ids=ascii)
@pytest.mark.parametrize(
    "value",
    ['"Ann B.{} Example" <a@x>, b@x', "(Ann B.{} Example) a@x, b@x", 'a@x,{} "B{} C" <b@x>'],
)
def test_a_folded_field_is_as_one_that_is_not(value, newline):
    """RFC 5322, section 2.2.3: unfolding takes the newline and nothing else."""
    message = compat32(To=value.replace("{}", newline))
    _, recipients = envelope_addresses(message, None, None, header_of(message))
    assert recipients == ["a@x", "b@x"]


# -- the Mailer ---------------------------------------------------------------


def mailer_for(server: ModelServer, **keywords: Any) -> Mailer:
    keywords = {"tls": "none", "local_hostname": "client.example", "connections": 1, **keywords}
    return Mailer(server.host, server.port, **keywords)


@pytest.mark.parametrize("subject", MAILERS, ids=lambda subject: subject.name)
@pytest.mark.parametrize("form", ["a{}b@x", '"a{}b"@x', '"Ann{}" <a@x>'])
def test_a_mailer_s_addresses(subject, form):
    """Each is refused for itself: the messages before and after it go on one connection."""
    good = Message(SENDER, RECIPIENT, BODY, id="good")
    messages = [good]
    for bad in CONTROLS + NARROWED + LINES:
        address = form.format(bad)
        messages += [
            Message(address, RECIPIENT, BODY, id=("sender", bad)),
            Message(SENDER, [RECIPIENT, address], BODY, id=("recipient", bad)),
            Message(SENDER, [RECIPIENT, Recipient(address)], BODY, id=("Recipient", bad)),
        ]
    messages.append(good)
    with subject.peer(extensions=("SIZE", "DSN")) as server, mailer_for(server) as mailer:
        deliveries = list(mailer.send_many(messages))
    assert [each.status for each in deliveries if each.id == "good"] == ["accepted"] * 2
    assert all(each.status in ("accepted", "not_sent") for each in deliveries)
    assert len(server.connections) == 1
    refused = [each for each in deliveries if each.status == "not_sent"]
    assert len(refused) >= (3 * 30 if form in IN_A_MAILBOX else 0)
    assert all(isinstance(each.error, (ValueError, fastsmtp.SMTPException)) for each in refused)
    check_lines([line for line in server.commands if line.startswith(("MAIL", "RCPT"))])


@pytest.mark.parametrize(
    "make",
    [
        lambda bad: Options(envid=f"a{bad}b"),
        lambda bad: Options(notify=[f"success{bad}"]),
        lambda bad: Options(ret=f"full{bad}"),
        lambda bad: Recipient(RECIPIENT, notify=f"never{bad}"),
        lambda bad: Recipient(RECIPIENT, orcpt=f"a{bad}b@x"),
        lambda bad: Recipient(RECIPIENT, orcpt=f"rfc822;a{bad}b@x"),
    ],
    ids=["envid", "notify", "ret", "a recipient's notify", "orcpt", "orcpt with a type"],
)
def test_typed_options(make):
    for bad in CONTROLS + LINES:
        with pytest.raises(ValueError, match="RFC 3461"):
            make(bad)


# -- credentials --------------------------------------------------------------


@pytest.mark.parametrize(
    ("mechanism", "separator"), [("PLAIN", "\0"), ("XOAUTH2", "\1")], ids=["PLAIN", "XOAUTH2"]
)
@pytest.mark.parametrize("where", ["user", "secret"])
def test_no_value_of_a_login_holds_another(mechanism, separator, where):
    """NUL ends a value of PLAIN (RFC 4616, section 2), ^A one of XOAUTH2: the rest would be next.

    The Mailer refuses both when it is made: see test_auth.py.
    """
    user, secret = USER, "Kestrel-7"
    if where == "user":
        user += separator + "auth=Bearer other"
    else:
        secret += separator + "other"
    with ModelServer([f"AUTH {mechanism}"]) as server:
        client = fastsmtp.SMTP(server.host, server.port, local_hostname="client.example")
        with contextlib.closing(client):
            with pytest.raises(ValueError, match="separator") as caught:
                client.login(user, secret)
            assert client.noop()[0] == 250
    untold(secret, told(caught.value))
    assert [line.upper() for line in server.commands[1:]] == ["NOOP"]


# -- too much of it -----------------------------------------------------------

MEGABYTE = 1 << 20
TOO_LONG = b"500 5.5.6 Line too long\r\n"


def test_a_path_of_a_megabyte_is_one_command(kind):
    """What is too long (RFC 5321, section 4.5.3.1.3) is the server's to say; all is in step."""
    address = "a" * MEGABYTE + "@example.org"
    with Conversation(kind, replies={("RCPT", 2): TOO_LONG}) as conversation:
        client = conversation.client
        assert set(client.sendmail(SENDER, [RECIPIENT, address], BODY)) == {address}
        assert client.mail(SENDER, ["X=" + "y" * MEGABYTE])[0] == 250
        conversation.written()
        conversation.check()


def test_ten_thousand_options_are_one_command(kind):
    options = [f"X{number}=y" for number in range(10_000)]
    with Conversation(kind, replies={("MAIL", 1): TOO_LONG}) as conversation:
        with pytest.raises(fastsmtp.SMTPSenderRefused):
            conversation.client.sendmail(SENDER, [RECIPIENT], BODY, options)
        assert conversation.client.sendmail(SENDER, [RECIPIENT], BODY, [], options) == {}
        conversation.written()
        conversation.check()
    long = [line.split() for line in conversation.server.commands if line.endswith(options[-1])]
    assert [words[-10_000:] for words in long] == [options, options]  # MAIL and RCPT


@pytest.mark.parametrize("subject", MAILERS, ids=lambda subject: subject.name)
def test_a_mailer_s_path_of_a_megabyte(subject):
    long = Message(SENDER, "a" * MEGABYTE + "@example.org", BODY)
    with (
        subject.peer({("RCPT", 1): TOO_LONG}) as server,
        mailer_for(server, max_messages_per_connection=2) as mailer,
    ):
        deliveries = list(mailer.send_many([long, Message(SENDER, RECIPIENT, BODY)]))
    assert [each.status for each in deliveries] == ["rejected", "accepted"]
    assert len(server.connections) == len(server.messages) == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: Options(envid="a" * 100_000),
        lambda: Recipient(RECIPIENT, orcpt="a" * 100_000 + "@x"),
        lambda: Recipient(RECIPIENT, orcpt="a" * 100_000 + ";x"),
        lambda: Options(notify=["success"] * 10_000 + ["never"]),
    ],
    ids=["envid", "orcpt", "orcpt's type", "notify"],
)
def test_typed_options_have_their_limits(make):
    with pytest.raises(ValueError, match="RFC 3461"):
        make()


# -- syntax that nests, or that could be read in many ways --------------------

PIECES = [
    "(", ")", "()", "(a", "\\(", '"', '"\\', '""', '"a" ', "<", "<>", "<@", ":", "a:", "a:;", ";",
    ",", "a,", "@", "a@", "a@b,", ".", "a.", "[", "\\", " ", "\t", "\r\n ", "a ", "a", "\xe9",
    "\u3002", "=?", "=?utf-8?q?a?= ", "a@b <a@b>,", 'a"', "X=y ",
]  # fmt: skip
#: Where a text of such pieces stands.
AROUND = ["{}", "{} <a@example.org>", "<{}@example.org>", "a@{}"]
#: Some hundred times what is needed, of the process's own time; a quadratic reading needs more.
SECONDS = 20.0


@pytest.mark.parametrize("piece", PIECES, ids=ascii)
def test_an_address_of_many_pieces(piece):
    """It is read in linear time, and is a path, or the ValueError that it is none."""
    text = piece * (8000 // len(piece))
    began = time.process_time()
    for around in AROUND:
        address = around.format(text)
        try:
            Envelope(address, [])
        except ValueError:
            pass
        message = compat32(To=f"{address}\r\n , {RECIPIENT}")
        try:
            envelope_addresses(message, None, None, header_of(message))
        except ValueError:
            pass
    assert time.process_time() - began < SECONDS


@pytest.mark.parametrize("piece", PIECES, ids=ascii)
def test_a_field_that_is_long(piece, codec):
    """What need not be understood is left to the email package, without looking at it twice."""
    text = piece * (100_000 // len(piece))
    began = time.process_time()
    for around in AROUND:
        codec.plain_addresses(around.format(text))
        codec.plain_addresses(f"{RECIPIENT}, {around.format(text)}")
    assert time.process_time() - began < SECONDS


@pytest.mark.parametrize("piece", ["(", "a:"])
@pytest.mark.parametrize("place", ["sender", "recipient", "To", "From"])
def test_a_megabyte_that_nests(piece, place):
    """RFC 5322, section 3.2.2, lets comments nest as deep as they like; readers need not."""
    text = piece * (MEGABYTE // len(piece))
    with Conversation("SMTP") as conversation:
        if place in PLACES:
            error = conversation.attempt(PLACES[place], text)
        else:
            message = compat32(**{place: text})
            error = conversation.attempt(lambda client, it: client.send_message(it), message)
        # Newer versions of email.utils see that it is none, and do not go in.
        assert error is None or isinstance(error, ValueError)
        conversation.check()


def test_a_field_that_nests_and_names_nobody_is_sent():
    """Reply-To is looked at for domains to be written in ASCII, and is no part of the envelope."""
    message = compat32(Reply_To="(\xe9" * 5000)
    with Conversation("SMTP") as conversation:
        assert conversation.attempt(lambda client, it: client.send_message(it), message) is None
        conversation.check()
