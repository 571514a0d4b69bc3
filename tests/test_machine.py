"""Any order of calls, any server: after each call the client is in step, or closed.

Hypothesis plays a program that calls what it likes (and hands in what it should
not) on one client, and a server that refuses, breaks off, or says too much.  Each
reply of the server (see model_server.py) names the command that it answers, so
that one which is given to another command is seen; and has a number, so that one
which nobody read is.  What the server has stored is what the calls said was sent.

A failure prints the calls that led to it, as a program.  FASTSMTP_EXAMPLES=50
gives each machine fifty times the examples.
"""

from __future__ import annotations

import contextlib
import io
import os
import smtplib
import socket
from collections.abc import Callable, Mapping
from email.message import EmailMessage
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from model_server import EXTRA, LATE, LOSSES, PIECES, READY, REFUSALS, NamingServer, Step, named
from support import EXTENSIONS, TIMEOUT, client_tls, server_tls

import fastsmtp

TIMES = int(os.environ.get("FASTSMTP_EXAMPLES", "1"))
NAME = "client.example"
USER, SECRET = "user", "correct horse"
FROM = "from@example.org"
PEOPLE = [f"{name}@example.org" for name in ("ann", "bob", "cy")]
BODIES = ["hello\n", ".\n..\nend", "", "x" * 3000 + "\n"]

Whims = Mapping[Step, str]

# -- what is drawn ----------------------------------------------------------------

#: Often refusals, for after them there is more to see.
KINDS = (*REFUSALS, *REFUSALS, *REFUSALS, PIECES, *LOSSES)


def kinds(step: str) -> tuple[str, ...]:
    """Return what may happen at a step, so that it can be told whose reply is whose."""
    if step in ("MAIL", "RCPT"):
        return KINDS  # in a flight of commands a reply too many hides one that is due
    if step == "DATA":
        return (*KINDS, READY)
    alone = step in ("ANY", "body", "greeting")  # there is no other command in that call
    return (*KINDS, EXTRA, *(LATE, LATE, LATE) * alone)


def whims(*steps: str) -> st.SearchStrategy[Whims]:
    """Draw what goes wrong at a call's steps ("RCPT", or "RCPT RCPT" for two): often nothing."""
    things = [
        ((step.split()[0], 1 + step.count(" ")), kind)
        for step in steps
        for kind in kinds(step.split()[0])
    ]
    return st.just({}) | st.lists(st.sampled_from(things), min_size=1, max_size=2).map(dict)


SENDING = whims("MAIL", "RCPT", "RCPT RCPT", "DATA", "body", "body body", "RSET")
senders = st.sampled_from([FROM, "other@example.org"])
people = st.sampled_from(PEOPLE)
recipients = st.lists(people, min_size=1, unique=True)
bodies = st.sampled_from(BODIES)

#: Calls that are one command, by what is written.
PLAIN: dict[str, tuple[str, tuple[str, ...]]] = {
    f"EHLO {NAME}": ("ehlo", ()),
    f"HELO {NAME}": ("helo", ()),
    "RSET": ("rset", ()),
    "NOOP": ("noop", ()),
    "VRFY ann": ("vrfy", ("ann",)),
    "EXPN people": ("expn", ("people",)),
    "HELP": ("help", ()),
    "HELP MAIL": ("help", ("MAIL",)),
    "XTRA a b": ("docmd", ("XTRA", "a b")),
}

ADDRESS = "a\0nn@example.org"
#: Calls that cannot be right, each with what it raises.
BAD: dict[str, tuple[type[Exception], Callable[[Any], object]]] = {
    "sender": (ValueError, lambda client: client.sendmail(ADDRESS, PEOPLE, "")),
    "recipient": (ValueError, lambda client: client.sendmail(FROM, [*PEOPLE, ADDRESS], "")),
    "no recipient": (smtplib.SMTPRecipientsRefused, lambda client: client.sendmail(FROM, [], "")),
    "no list": (TypeError, lambda client: client.sendmail(FROM, None, "")),
    "text": (UnicodeEncodeError, lambda client: client.sendmail(FROM, PEOPLE, "\u00e4")),
    "message": (TypeError, lambda client: client.sendmail(FROM, PEOPLE, None)),
    "mail": (ValueError, lambda client: client.mail(ADDRESS)),
    "rcpt": (ValueError, lambda client: client.rcpt(ADDRESS)),
    "data": (UnicodeEncodeError, lambda client: client.data("\u00e4")),
    "vrfy": (ValueError, lambda client: client.vrfy(ADDRESS)),
    "helo": (ValueError, lambda client: client.helo("x\r\nRSET")),
    "docmd": (ValueError, lambda client: client.docmd("NOOP", "\0")),
    "putcmd": (ValueError, lambda client: client.putcmd("NOOP\r\nRSET")),
}


class Mail(NamedTuple):
    """A message as the server is to have it."""

    sender: str
    recipients: list[str]
    data: bytes


def octets(text: str) -> bytes:
    """Return what a server has of a text."""
    lines = text.replace("\n", "\r\n")
    return (lines if lines.endswith("\r\n") else lines + "\r\n").encode()


# -- the machine ------------------------------------------------------------------


class SMTPMachine(RuleBasedStateMachine):
    """One client, and what is known of its connection."""

    make: Callable[..., Any] = fastsmtp.SMTP
    lmtp = False
    pem: Any

    def __init__(self) -> None:
        super().__init__()
        self.server = NamingServer(
            [*EXTENSIONS, "AUTH PLAIN LOGIN CRAM-MD5", "STARTTLS"],
            users={USER: SECRET},
            lmtp=self.lmtp,
            tls=server_tls(self.pem),
        )
        self.server.__enter__()
        self.shown = io.StringIO()
        self.showing = contextlib.redirect_stderr(self.shown)
        self.showing.__enter__()
        self.trust = client_tls(self.pem)
        self.tls = False
        #: Why the next call may find the connection lost: EXTRA, or what ended the stream.
        self.stale = ""
        #: What mail() and rcpt() have begun.
        self.begun: Mail | None = None
        self.stored: list[Mail] = []
        #: What may have been stored, or not.
        self.unknown: Mail | None = None

    def teardown(self) -> None:
        self.showing.__exit__(None, None, None)
        self.client.close()
        self.server.__exit__(None, None, None)
        assert SECRET not in self.shown.getvalue()

    @initialize(
        offered=st.sampled_from([True, True, False]), used=st.sampled_from([True, True, False])
    )
    def begin(self, offered: bool, used: bool) -> None:
        if not offered:
            self.server.extensions.remove("PIPELINING")
        self.client = self.make(local_hostname=NAME, timeout=5, pipelining=used)
        self.connect({})

    # -- what holds after each call

    @invariant()
    def in_step_or_closed(self) -> None:
        if self.client.sock is None:
            self.server.settle()
        elif self.stale:
            return  # the next call will have to say so
        else:
            self.server.begin()
            self.answers("NOOP", self.client.noop())
        self.audit()

    def audit(self) -> None:
        """Hold that the server has what was sent, and nothing else."""
        took = [Mail(each.sender, each.recipients, each.data) for each in self.server.messages]
        if self.unknown is not None and len(took) > len(self.stored):
            last, perhaps = took[-1], self.unknown
            in_turn = iter(perhaps.recipients)
            assert all(each in in_turn for each in last.recipients)
            self.stored.append(perhaps._replace(recipients=last.recipients))
        self.unknown = None
        assert took == self.stored, (took, self.stored)

    def answers(self, asked: str, reply: Any) -> None:
        """Hold that a reply is the one to this command, and that no other has come."""
        number, name = named(reply[1])
        assert name.casefold().startswith(asked.casefold()), reply
        assert number == self.server.sessions[-1].said

    def names(self, asked: str, reply: Any) -> None:
        """Hold that a reply, of several, is the one to this command."""
        if "short" not in self.server.struck:
            assert named(reply[1])[1].casefold().startswith(asked.casefold()), reply

    # -- calls

    def call(self, whims: Whims, method: Callable[..., Any], *args: Any, **details: Any) -> Any:
        """Call; return what is returned, or the exception; hold that there was cause for it."""
        server, stale, written = self.server, self.stale, len(self.server.commands)
        was_open = self.client.sock is not None
        server.begin({at: each for at, each in whims.items() if not self.hides(method, at, each)})
        try:
            result = method(*args, **details)
        except OSError as error:  # SMTPException is one
            result = error
        if LATE in server.struck:
            assert server.told.wait(TIMEOUT)
        cause = stale or {*LOSSES, EXTRA, LATE, READY} & set(server.struck)
        if isinstance(result, smtplib.SMTPServerDisconnected):
            assert self.client.sock is None
            assert cause or not was_open
        if stale == EXTRA:
            assert len(server.commands) == written
        if self.client.sock is None:
            self.forget()
            assert cause or not was_open or self.may_close(method)
        else:
            assert not {"421", "drop", "reset"} & set(server.struck)
            if {EXTRA, LATE} & set(server.struck):
                self.stale = EXTRA
            elif {"short", "after"} & set(server.struck):
                self.stale = self.stale or "ended"
            if {"EHLO", "LHLO", "HELO"} & set(server.seen):
                self.begun = None
        return result

    def hides(self, method: Any, at: Step, whim: str) -> bool:
        """Say whether nobody could tell how many replies are due, or whose they are."""
        if whim == READY:
            nobody = self.begun is None or not self.begun.recipients
            return self.lmtp and nobody and method == self.client.data
        return self.lmtp and whim in (EXTRA, LATE) and at[0] == "body"

    def may_close(self, method: Any) -> bool:
        return method in (self.client.quit, self.client.__exit__, self.client.close) or (
            # Into a transaction that was open, all went but our MAIL (differences.md, 19).
            method in (self.client.sendmail, self.client.send_message) and self.nested
        )

    nested = False

    def forget(self) -> None:
        self.stale = ""
        self.tls = False
        self.begun = None

    def command(self, asked: str, whims: Whims, method: Callable[..., Any], *args: Any) -> int:
        """Make a call that is one command; return the code, or 0 if there was none."""
        result = self.call(whims, method, *args)
        if isinstance(result, smtplib.SMTPServerDisconnected):
            return 0
        reply = (0, result) if isinstance(result, bytes) else result
        if "short" not in self.server.struck:
            self.answers(asked, reply)
        return int(reply[0])

    is_open = precondition(lambda self: self.client.sock is not None)

    @precondition(lambda self: self.client.sock is None)
    @rule(whims=whims("greeting"))
    def connect(self, whims: Whims) -> None:
        result = self.call(whims, self.client.connect, self.server.host, self.server.port)
        self.begun = None
        if not isinstance(result, OSError) and "short" not in self.server.struck:
            self.answers("greeting", result)

    @is_open
    @rule(whims=whims("ANY"), which=st.sampled_from(sorted(PLAIN)))
    def plain(self, whims: Whims, which: str) -> None:
        method, arguments = PLAIN[which]
        said = which.replace("EHLO", self.client.ehlo_msg)
        at_its_step = {(said.split()[0].upper(), n): whim for (_, n), whim in whims.items()}
        self.command(said, at_its_step, getattr(self.client, method), *arguments)
        if method in ("ehlo", "helo", "rset"):
            self.begun = None

    @is_open
    @rule(
        whims=whims("NOOP", "NOOP NOOP", "VRFY").filter(lambda all: EXTRA not in all.values()),
        commands=st.lists(st.sampled_from([("NOOP", ""), ("VRFY", "ann")]), min_size=1, max_size=4),
    )
    def commands_then_replies(self, whims: Whims, commands: list[tuple[str, str]]) -> None:
        """Pipeline by hand."""

        def converse() -> None:
            for command in commands:
                self.client.putcmd(*command)
            for command in commands:
                self.names(" ".join(command).strip(), self.client.getreply())

        self.call(whims, converse)

    # -- sessions

    @precondition(lambda self: self.client.sock is not None and not self.tls)
    @rule(whims=whims("EHLO", "LHLO", "STARTTLS"))
    def starttls(self, whims: Whims) -> None:
        result = self.call(whims, self.client.starttls, context=self.trust)
        if isinstance(result, tuple):
            self.tls = True
            self.begun = None  # RFC 3207, section 4.2
        elif isinstance(result, smtplib.SMTPNotSupportedError):
            assert not self.client.has_extn("starttls")

    @is_open
    @rule(
        whims=whims("EHLO", "LHLO", "AUTH", "AUTH AUTH", "response", "response response"),
        password=st.booleans(),
    )
    def login(self, whims: Whims, password: bool) -> None:
        secret = SECRET if password else "wrong"
        result = self.call(whims, self.client.login, USER, secret)
        if isinstance(result, tuple):
            assert (result[0], password) == (235, True)

    @is_open
    @rule(whims=whims("QUIT"), leave=st.booleans())
    def quit(self, whims: Whims, leave: bool) -> None:
        if leave:
            self.call(whims, self.client.__exit__, None, None, None)
        else:
            self.command("QUIT", whims, self.client.quit)
        assert self.client.sock is None

    @is_open
    @rule()
    def close(self) -> None:
        self.call({}, self.client.close)

    @is_open
    @rule(
        level=st.sampled_from([0, 0, 1, 2]),
        timeout=st.sampled_from([None, 5, 60.0]),
        left=st.sets(st.sampled_from(["pipelining", "size", "auth", "starttls"])),
    )
    def assign(self, level: int, timeout: float | None, left: set[str]) -> None:
        self.client.set_debuglevel(level)
        self.client.timeout = timeout
        known = self.client.esmtp_features
        self.client.esmtp_features = {each: known[each] for each in left & set(known)}

    @rule()
    def set_sock(self) -> None:
        """Take another connection, as programs do that bring their own."""
        address = self.server.host, self.server.port
        old, self.client.sock = self.client.sock, socket.create_connection(address, 5)
        if old is not None:
            old.close()
        self.client._host = self.server.host  # whose certificate it is
        self.forget()
        self.server.begin()
        reply = self.client.getreply()
        self.server.settle(last=-1)
        self.answers("greeting", reply)

    @is_open
    @rule(what=st.sampled_from(sorted(BAD)))
    def bad_argument(self, what: str) -> None:
        kind, call = BAD[what]
        written, stale = len(self.server.commands), self.stale
        with pytest.raises(kind):
            call(self.client)
        assert len(self.server.commands) == written
        assert self.client.sock is not None
        assert self.stale == stale

    # -- mail

    @is_open
    @rule(
        whims=whims("MAIL", "RCPT", "DATA", "body", "body body"),
        sender=senders,
        to=st.lists(people, max_size=3),
        text=st.none() | bodies,
    )
    def mail(self, whims: Whims, sender: str, to: list[str], text: str | None) -> None:
        """Go through a transaction step by step, perhaps not to its end."""
        code = self.command(f"MAIL FROM:<{sender}>", whims, self.client.mail, sender)
        if code == 250 and self.client.sock is not None:
            self.begun = Mail(sender, [], b"")
        for recipient in to:
            if self.client.sock is not None:
                self.rcpt(whims, recipient)
        if text is not None and self.client.sock is not None:
            self.data(whims, text)

    def rcpt(self, whims: Whims, recipient: str) -> None:
        code = self.command(f"RCPT TO:<{recipient}>", whims, self.client.rcpt, recipient)
        if code == 250 and self.begun is not None:
            self.begun.recipients.append(recipient)

    def data(self, whims: Whims, text: str) -> None:
        begun = self.begun
        result = self.call(whims, self.client.data, text)
        if isinstance(result, smtplib.SMTPDataError):
            self.names("DATA", result.args)
        elif begun is not None and begun.recipients:
            self.begun = None
            mail = begun._replace(data=octets(text))
            if isinstance(result, smtplib.SMTPServerDisconnected):
                self.unknown = mail
            else:
                self.take_data(mail, result)

    def take_data(self, mail: Mail, reply: Any) -> None:
        self.names(f"message of {mail.sender}", reply)
        if reply[0] == 250:
            self.stored.append(mail)
        elif self.lmtp:
            self.unknown = mail  # for some it may have been taken

    @is_open
    @rule(whims=SENDING, sender=senders, to=recipients, text=bodies)
    def sendmail(self, whims: Whims, sender: str, to: list[str], text: str) -> None:
        self.send(whims, Mail(sender, to, octets(text)), self.client.sendmail, sender, to, text)

    @is_open
    @rule(whims=SENDING, to=recipients, text=bodies)
    def send_message(self, whims: Whims, to: list[str], text: str) -> None:
        message = EmailMessage()
        message["From"], message["To"] = FROM, ", ".join(to[:2])
        message.set_content(text)
        data = octets(message.as_string())
        if to[2:]:
            message["Bcc"] = ", ".join(to[2:])
        self.send(whims, Mail(FROM, to, data), self.client.send_message, message)

    def send(self, whims: Whims, mail: Mail, method: Callable[..., Any], *args: Any) -> None:
        self.nested = self.begun is not None
        result = self.call(whims, method, *args)
        self.begun = None
        if isinstance(result, dict):
            accepted = [each for each in mail.recipients if each not in result]
            self.stored.append(mail._replace(recipients=accepted))
            self.examine_refusals(mail, result)
        elif isinstance(result, smtplib.SMTPRecipientsRefused):
            assert len(result.recipients) == len(mail.recipients) or "421" in self.server.struck
            self.examine_refusals(mail, result.recipients)
        elif isinstance(result, smtplib.SMTPServerDisconnected):
            self.unknown = mail
        else:
            self.examine_error(mail, result)

    def examine_refusals(self, mail: Mail, refused: dict[str, Any]) -> None:
        for recipient, reply in refused.items():
            if "421" not in self.server.struck:  # that is said once, for all who are left
                late = named(reply[1])[1].startswith("message")
                late_name = f"message of {mail.sender} for {recipient}"
                self.names(late_name if late else f"RCPT TO:<{recipient}>", reply)

    def examine_error(self, mail: Mail, error: Exception) -> None:
        if isinstance(error, smtplib.SMTPSenderRefused):
            self.names(f"MAIL FROM:<{mail.sender}>", error.args)
        elif isinstance(error, smtplib.SMTPDataError):
            code, text = error.args
            asked = "DATA" if named(text)[1].casefold() == "data" else f"message of {mail.sender}"
            self.names(asked, (code, text))
        else:
            assert isinstance(error, smtplib.SMTPHeloError), error


class LMTPMachine(SMTPMachine):
    """The same with a reply for each recipient."""

    make = fastsmtp.LMTP
    lmtp = True


@pytest.mark.timeout(900)  # a failure takes its time to be made small
@pytest.mark.parametrize("machine", [SMTPMachine, LMTPMachine], ids=["SMTP", "LMTP"])
def test_in_step_or_closed(machine, certificate):
    machine.pem = certificate
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=130 * TIMES,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.reuse, Phase.generate, Phase.shrink],
        ),
    )


def test_a_refused_mail_leaves_the_recipients_of_the_transaction_that_is_open(certificate):
    LMTPMachine.pem = certificate
    machine = LMTPMachine()
    machine.begin(offered=True, used=True)
    try:
        machine.mail({}, FROM, PEOPLE[:2], None)
        machine.mail({}, FROM, [], "hello\n")  # 503: nested
        machine.in_step_or_closed()
    finally:
        machine.teardown()
