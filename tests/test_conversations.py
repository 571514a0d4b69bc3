"""The same conversations held by smtplib and by fastsmtp.

Each `Case` is played twice against the same server.  What went over the wire,
what was returned or raised, the client's attributes, the debug output, the
audit events and the delivered messages have to be equal.  With pipelining the
wire is the same but for the grouping, where the transaction is accepted; what
has been sent ahead of a refusal cannot be the same (RFC 2920, section 3.1).

Where fastsmtp differs on purpose there is a test of its own below, marked with
the row of docs/differences.md, that shows what smtplib does and what we do.
"""

from __future__ import annotations

import contextlib
import email.message
import email.policy
import io
import logging
import re
import smtplib
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support import (
    EXTENSIONS,
    IN_PIECES,
    Message,
    ModelServer,
    Reply,
    Server,
    client_tls,
    close,
    dribble,
    scripted,
    server_tls,
)

import fastsmtp

NAME = "client.example"
A, B, C = "a@example.org", "b@example.org", "c@example.org"
HELLO = "Subject: hello\n\nhello\n"


# -- how a case is played -----------------------------------------------------


@dataclass
class Stage:
    """What a case needs to know of the server that it talks to."""

    host: str
    port: int
    trust: Any  # an SSL context for which the server's certificate is good


def make_client(cls: type, stage: Stage, **keywords: Any) -> Any:
    if issubclass(cls, smtplib.SMTP_SSL):
        keywords["context"] = stage.trust
    return cls(stage.host, stage.port, local_hostname=NAME, timeout=5, **keywords)


@dataclass(frozen=True)
class Case:
    name: str
    talk: Callable[[Any, Stage], object] = lambda client, stage: None
    extensions: tuple[str, ...] | None = EXTENSIONS
    replies: dict[Any, Reply] = field(default_factory=dict)
    script: tuple[Reply, ...] = ()  # instead of the model: a reply for each line
    client: str = "SMTP"
    make: Callable[..., Any] = make_client
    refused: bool = False  # a pipelined transaction has sent more than one in steps
    gone: bool = False  # the server closes; what smtplib writes after that reaches nobody
    server: dict[str, Any] = field(default_factory=dict)  # more for ModelServer


@dataclass
class Outcome:
    result: object
    attributes: dict[str, object]
    debug: str
    audited: list[object]
    wire: bytes = b""
    reads: list[bytes] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)


def play(module: Any, case: Case, pem: Path, **keywords: Any) -> Outcome:
    """Hold the conversation with the client of *module*."""
    with start_server(case, pem) as server:
        stage = Stage(server.host, server.port, client_tls(pem))
        outcome = talk(getattr(module, case.client), case, stage, keywords)
    outcome.wire, outcome.reads = server.received, server.reads
    outcome.messages = getattr(server, "messages", [])
    return outcome


def start_server(case: Case, pem: Path) -> Server:
    if case.script:
        return Server(scripted(*case.script))
    return ModelServer(
        case.extensions,
        replies=case.replies,
        tls=server_tls(pem),
        implicit_tls=case.client == "SMTP_SSL",
        lmtp=case.client == "LMTP",
        **case.server,
    )


def talk(cls: type, case: Case, stage: Stage, keywords: dict[str, Any]) -> Outcome:
    client = None
    with contextlib.redirect_stderr(io.StringIO()) as stderr, audit() as audited:
        try:
            client = case.make(cls, stage, **keywords)
            result = case.talk(client, stage)
        except Exception as error:
            result = raised(error)
        attributes = attributes_of(client) if client else {}
        if client:
            client.close()
    debug = re.sub(r"(?m)^\d\d:\d\d:\d\d\S* ", "<time> ", stderr.getvalue())
    return Outcome(result, attributes, debug.replace(str(stage.port), "<port>"), audited)


ATTRIBUTES = """
    helo_resp ehlo_resp does_esmtp esmtp_features command_encoding timeout _host local_hostname
    source_address debuglevel default_port user password
"""


def attributes_of(client: Any) -> dict[str, object]:
    shown = {name: getattr(client, name, None) for name in ATTRIBUTES.split()}
    return {"closed": client.sock is None, **shown}


class Beginning(str):
    """Equals what begins with it."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and other.startswith(str(self))


def raised(error: Exception) -> tuple[object, ...]:
    """Reduce an exception to what has to be equal."""
    if type(error) is smtplib.SMTPServerDisconnected:
        # Ours goes on to name the last reply of the server.
        return ("raised", type(error), Beginning(error.args[0]))
    if isinstance(error, UnicodeError):
        return ("raised", type(error), error.args[2:4])
    return ("raised", type(error), error.args)


def attempt(function: Callable[..., object], *args: Any, **keywords: Any) -> object:
    """Call; return what it returns, or what it raises, reduced."""
    try:
        return function(*args, **keywords)
    except Exception as error:
        return raised(error)


_audit_trails: list[list[object]] = []


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if event.startswith("smtplib."):
        for trail in _audit_trails:
            trail.append((event, args[1:]))


sys.addaudithook(_hook)  # cannot be taken away again, so it is added only once


@contextlib.contextmanager
def audit():
    """Collect the events: connections as they are, sent data in one piece."""
    trail: list[Any] = []
    collected: list[object] = []
    _audit_trails.append(trail)
    try:
        yield collected
    finally:
        _audit_trails.remove(trail)
        collected += [args[0] for event, args in trail if event == "smtplib.connect"]
        collected.append(
            b"".join(bytes(args[0]) for event, args in trail if event == "smtplib.send")
        )


# -- the cases ----------------------------------------------------------------


def do(method: str, *args: Any, **keywords: Any) -> Callable[[Any, Stage], object]:
    """Make a talk of one call, and a NOOP to see that the two are in step."""

    def talk(client: Any, stage: Stage) -> object:
        return [
            attempt(getattr(client, method), *args, **keywords),
            client.sock and attempt(client.noop),
        ]

    return talk


def send(to: Any = A, message: Any = HELLO, sender: str = "from@example.org", **keywords: Any):
    return do("sendmail", sender, to, message, **keywords)


def message(text: str = "hello\n", **headers: str) -> email.message.EmailMessage:
    made = email.message.EmailMessage()
    for name, value in headers.items():
        made[name.replace("_", "-")] = value
    made.set_content(text)
    return made


def in_turn(*talks: Callable[[Any, Stage], object]) -> Callable[[Any, Stage], object]:
    return lambda client, stage: [talk(client, stage) for talk in talks]


EHLO_LINES = {
    "nothing": (),
    "old style AUTH": ("AUTH=LOGIN PLAIN",),
    "both styles of AUTH": ("AUTH CRAM-MD5", "AUTH=LOGIN PLAIN"),
    "AUTH twice": ("AUTH LOGIN", "AUTH PLAIN LOGIN"),
    "AUTH in lower case": ("auth login", "auth=plain"),
    "parameters": ("SIZE 100", "DSN", "XFOO a  b=c "),
    "no parameters": ("SIZE", "SIZE "),
    "a feature twice": ("SIZE 1", "SIZE 2"),
    "odd lines": ("-X", "", " SIZE 3", "X-Y=Z w", "8BITMIME;x", "é", "a_b c", "\tSIZE 4"),
    "white space": ("SIZE \t 5 \t", "DSN  "),
}

GREETING_CASES = [
    Case("ehlo", do("ehlo")),
    Case("ehlo with a name", do("ehlo", "other.example")),
    Case("ehlo twice", in_turn(do("ehlo"), do("ehlo"))),
    Case("helo", do("helo")),
    Case("helo with a name", do("helo", "other.example")),
    Case("helo after ehlo", in_turn(do("ehlo"), do("helo"))),
    Case("EHLO refused, HELO taken", do("ehlo_or_helo_if_needed"), extensions=None),
    Case("EHLO refused", do("ehlo"), extensions=None),
    Case(
        "EHLO and HELO refused",
        do("ehlo_or_helo_if_needed"),
        extensions=None,
        replies={"HELO": b"550 go away\r\n"},
    ),
    Case("EHLO with another 2xx", do("ehlo_or_helo_if_needed"), replies={"EHLO": b"251 hm\r\n"}),
    Case("EHLO in latin-1", do("ehlo"), replies={"EHLO": b"250-m\r\n250-X-\xe9\r\n250 Y \xe9\r\n"}),
    Case("EHLO answered with nothing", do("ehlo"), replies={"EHLO": b"\r\n"}),
    Case("EHLO answered with nonsense", do("ehlo"), replies={"EHLO": b"nonsense\r\n"}),
    Case("EHLO without an answer", do("ehlo"), replies={"EHLO": close}),
    *(
        Case(f"EHLO: {name}", do("ehlo"), extensions=lines or ("HELP",))
        for name, lines in EHLO_LINES.items()
    ),
    Case("has_extn", lambda c, s: [c.ehlo(), c.has_extn("SiZe"), c.has_extn("dsn")]),
    Case("greeting of many lines", do("noop"), replies={"greeting": b"220-a\r\n220 b\r\n"}),
    Case("greeting without text", do("noop"), replies={"greeting": b"220\r\n"}),
    Case("greeting refuses", replies={"greeting": b"554 no\r\n"}),
    Case("greeting is nonsense", replies={"greeting": b"SSH-2.0\r\n"}),
    Case("greeting is not there", replies={"greeting": close}),
    Case("greeting is cut", replies={"greeting": (b"220 hel", close)}),
    Case("greeting with 421", replies={"greeting": (b"421 busy\r\n", close)}),
]

#: What NOOP is answered.  Each is one reply, and is taken as smtplib takes it.
ODD_REPLIES: dict[str, Reply] = {
    "in pieces": dribble(b"250-one\r\n250-two\r\n250 three\r\n"),
    "code only": b"250\r\n",
    "code and space": b"250 \r\n",
    "code and tab": b"250\tok\r\n",
    "LF only": b"250 ok\n",
    "CR CR LF": b"250 ok\r\r\n",
    "white space around": b"250 \t ok \t \r\n",
    "8-bit text": b"250 caf\xe9 \xff\x00\r\n",
    "no space after the code": b"250ok\r\n",
    "two digits": b"25 ok\r\n",
    "a sign": b"+25 ok\r\n",
    "minus": b"-25 ok\r\n",
    "underscore": b"2_5 ok\r\n",
    "space before": b" 25 ok\r\n",
    "four digits": b"2500 x\r\n",
    "no digits": b"hello there\r\n",
    "8-bit code": b"\xb2\xb5\xb0 ok\r\n",
    "empty line": b"\r\n",
    "bare LF": b"\n",
    "one letter": b"x\r\n",
    "many lines": b"250-a\r\n250-b\r\n250 c\r\n",
    "many lines without text": b"250-\r\n250-\r\n250\r\n",
    "many lines, last without space": b"250-a\r\n250\r\n",
    "many lines, mixed codes": b"250-a\r\n550-b\r\n451 c\r\n",
    "many lines, then no code": b"250-a\r\nhello\r\n",
    "many lines, then an empty one": b"250-a\r\n\r\n",
    "EOF": close,
    "EOF in the code": (b"25", close),
    "EOF in a line": (b"250 half", close),
    "EOF after a line": (b"250-a\r\n", close),
    "EOF in the second line": (b"250-a\r\n25", close),
    "EOF after CR": (b"250 a\r", close),
    "longest line": b"250 " + b"x" * (8192 - 6) + b"\r\n",
    "line too long": b"250 " + b"x" * (8192 - 5) + b"\r\n",
    "second line too long": b"250-a\r\n250 " + b"x" * 9000 + b"\r\n",
}

REPLY_CASES = [
    Case(
        f"NOOP: {name}",
        in_turn(do("noop"), do("rset")),
        replies={("NOOP", 1): reply},
        gone="EOF" in name,
    )
    for name, reply in ODD_REPLIES.items()
]

LINES = "one\r\ntwo\r\n"
PAYLOADS = {
    "CRLF": LINES,
    "LF": "one\ntwo\n",
    "CR": "one\rtwo\r",
    "mixed": "a\r\nb\nc\rd\r\r\ne\n\rf\n\n\rg",
    "no end": "one\r\ntwo",
    "ends in CR": "one\r",
    "ends in LF": "one\n",
    "empty": "",
    "newline": "\n",
    "dot": ".",
    "dot CRLF": ".\r\n",
    "dots": "..\r\n.a\r\n...\r\n a.\r\n.\r\nend",
    "dots after LF": "a\n.b\n.\n..\n",
    "dots after CR": "a\r.b\r.\r..\r",
    "end of data inside": "a\r\n.\r\nMAIL FROM:<x@example.org>\r\n",
    "NUL and controls": "\0\x01\x0b\x0c\x1c\x1f\x7f\n.\x0b.\n",
    "long line": "x" * 70_000 + "\n." + "y" * 70_000,
    "large": ("." + "z" * 75 + "\n") * 4000,
}


def send_as_every_type(text: str) -> Callable[[Any, Stage], object]:
    data = text.encode("ascii")
    types = [text, data, bytearray(data), memoryview(data), memoryview(bytearray(data))]
    return in_turn(*(send(message=each) for each in types))


PAYLOAD_CASES = [
    *(Case(f"payload: {name}", send_as_every_type(text)) for name, text in PAYLOADS.items()),
    Case("payload: 8-bit bytes", send(message=b"caf\xc3\xa9 \xff\n.\n")),
    Case("payload: non-ASCII text", in_turn(do("ehlo"), send(message="café\n"))),
    Case("payload: data()", in_turn(do("mail", A), do("rcpt", B), do("data", "a\n.\rb"))),
    Case("payload: data() of bytes", in_turn(do("mail", A), do("rcpt", B), do("data", b"a\n.\rb"))),
]

TWO, THREE = [A, B], [A, B, C]
NO_SPACE = {"SIZE 100"}

SENDMAIL_CASES = [
    Case("one recipient", send()),
    Case("recipients in a tuple", send(tuple(THREE))),
    Case("the same recipient twice", send([A, A])),
    Case("three messages", in_turn(send(A), send(TWO), send(THREE))),
    Case(
        "display names", send(["A <a@example.org>", "<b@example.org>"], sender="F <f@example.org>")
    ),
    Case("empty sender", send(sender="")),
    Case("empty sender in brackets", send(sender="<>")),
    Case("addresses without a domain", send("postmaster", sender="root")),
    Case("quoted local part", send('"a b"@example.org')),
    Case(
        "no recipient taken, then one",
        in_turn(send(A), send(B)),
        refused=True,
        replies={("RCPT", 1): b"550 no\r\n"},
    ),
    Case(
        "options", send(TWO, mail_options=["BODY=8BITMIME"], rcpt_options=["NOTIFY=NEVER", "X=Y"])
    ),
    Case("options in tuples", send(mail_options=("RET=HDRS",), rcpt_options=("NOTIFY=FAILURE",))),
    Case("options without ESMTP", send(mail_options=["X"], rcpt_options=["Y"]), extensions=None),
    Case("no SIZE", send(), extensions=("PIPELINING",)),
    Case("no extension at all", send(TWO), extensions=("HELP",)),
    Case("SMTPUTF8", send("ä@example.org", sender="ö@example.org", mail_options=["smtputf8"])),
    Case("SMTPUTF8 not offered", send(mail_options=["SMTPUTF8"]), extensions=("PIPELINING",)),
    Case("RSET ends SMTPUTF8", in_turn(send(mail_options=["SMTPUTF8"]), do("rset"))),
    *(
        Case(
            f"second of three answered {code}",
            send(THREE),
            replies={("RCPT", 2): b"%d hm\r\n" % code},
        )
        for code in (250, 251, 252, 450, 452, 550, 553)
    ),
    Case("refusal in many lines", send(TWO), replies={("RCPT", 1): b"550-no\r\n550 never\r\n"}),
    Case(
        "all but one refused",
        send(THREE),
        replies={("RCPT", 1): b"550 no\r\n", ("RCPT", 2): b"451 later\r\n"},
    ),
    Case("all refused", send(THREE), replies={"RCPT": b"550 no\r\n"}, refused=True),
    Case(
        "all refused, DATA taken",
        send(THREE),
        refused=True,
        replies={"RCPT": b"550 no\r\n", "DATA": b"354 go ahead\r\n"},
    ),
    Case(
        "all refused, each its way",
        send(THREE),
        refused=True,
        replies={("RCPT", 1): b"550 a\r\n", ("RCPT", 2): b"450 b\r\n", ("RCPT", 3): b"x c\r\n"},
    ),
    *(
        Case(
            f"sender answered {code}",
            send(TWO),
            replies={"MAIL": b"%d no\r\n" % code},
            refused=True,
        )
        for code in (450, 452, 501, 550)
    ),
    Case(
        "refused and sent again",
        in_turn(send(), send()),
        replies={("MAIL", 1): b"450 no\r\n"},
        refused=True,
    ),
    *(
        Case(f"message answered {code}", send(TWO), replies={"body": b"%d no\r\n" % code})
        for code in (251, 451, 552, 554)
    ),
    Case(
        "message refused, then sent again",
        in_turn(send(), send()),
        replies={("body", 1): b"451 later\r\n"},
    ),
    Case(
        "message refused and RSET too",
        send(),
        replies={"body": b"554 no\r\n", "RSET": b"500 no\r\n"},
    ),
    Case("421 for MAIL", send(TWO), replies={"MAIL": (b"421 bye\r\n", close)}, refused=True),
    Case(
        "421 for the first RCPT",
        send(TWO),
        replies={("RCPT", 1): (b"421 bye\r\n", close)},
        refused=True,
    ),
    Case(
        "421 for the second RCPT",
        send(THREE),
        replies={("RCPT", 2): (b"421 bye\r\n", close)},
        refused=True,
    ),
    Case("421 for the message", send(TWO), replies={"body": (b"421 bye\r\n", close)}),
    Case("EOF at MAIL", send(TWO), replies={"MAIL": close}, refused=True),
    Case("EOF at RCPT", send(TWO), replies={("RCPT", 2): close}, refused=True),
    Case("EOF at DATA", send(TWO), replies={"DATA": close}, refused=True),
    Case("EOF after the message", send(TWO), replies={"body": close}),
    Case(
        "all in pieces",
        send(TWO),
        replies=dict.fromkeys(["EHLO", "MAIL", "RCPT", "DATA", "body", "NOOP"], IN_PIECES),
    ),
    Case("sendmail before anything", send(), make=lambda cls, stage, **k: cls(**k)),
    Case("sendmail after close", lambda c, s: [c.close(), attempt(c.sendmail, A, B, HELLO)]),
]

COMMAND_CASES = [
    Case("verify", do("verify", "A <a@example.org>")),
    Case("vrfy", do("vrfy", "someone")),
    Case("expn", do("expn", "<list@example.org>")),
    Case("help", do("help")),
    Case("help with a topic", do("help", "MAIL")),
    Case("rset", do("rset")),
    Case("docmd", do("docmd", "XYZ")),
    Case("docmd with arguments", do("docmd", "XYZ", "a  b")),
    Case(
        "mail, rcpt, data",
        in_turn(do("ehlo"), do("mail", A, ["SIZE=9"]), do("rcpt", B, ["X=1"]), do("data", HELLO)),
    ),
    Case("mail without ehlo drops options", do("mail", A, ["SIZE=9"])),
    Case("putcmd and getreply", lambda c, s: [c.putcmd("noop"), c.getreply()]),
    Case("putcmd with arguments", lambda c, s: [c.putcmd("vrfy", "x"), c.getreply()]),
    Case("send text", lambda c, s: [c.send("noop\r\n"), c.getreply()]),
    Case("send bytes", lambda c, s: [c.send(b"noop\r\n"), c.getreply()]),
    Case("send in two pieces", lambda c, s: [c.send("no"), c.send(b"op\r\n"), c.getreply()]),
    Case("send non-ASCII text", do("send", "é\r\n")),
    Case("data refused", do("data", HELLO), refused=True),
    *(
        Case(f"newline in {name}", call)
        for name, call in {
            "docmd": do("docmd", "noop\r\nquit"),
            "putcmd": do("putcmd", "noop", "a\nb"),
            "ehlo": do("ehlo", "a\r\nb"),
            "helo": do("helo", "a\rb"),
            "help": do("help", "a\nb"),
        }.items()
    ),
]


def bare(cls: type, stage: Stage, **keywords: Any) -> Any:
    return cls(local_hostname=NAME, **keywords)


ENDING_CASES = [
    Case("quit", lambda c, s: [c.ehlo(), c.quit()]),
    Case("quit answered 500", lambda c, s: c.quit(), replies={"QUIT": b"500 no\r\n"}),
    Case("quit without an answer", lambda c, s: [c.ehlo(), c.quit()], replies={"QUIT": close}),
    Case("quit twice", lambda c, s: [c.quit(), attempt(c.quit)]),
    Case("close twice", lambda c, s: [c.close(), c.close(), attempt(c.noop)]),
    Case(
        "quit, connect, send",
        lambda c, s: [c.ehlo(), c.quit(), c.connect(s.host, s.port), send()(c, s)],
    ),
    Case(
        "never connected",
        lambda c, s: [attempt(c.noop), attempt(c.ehlo), attempt(c.quit)],
        make=bare,
    ),
]


def in_with(talk: Callable[[Any, Stage], object]) -> Callable[[Any, Stage], object]:
    def wrapped(client: Any, stage: Stage) -> object:
        with client as entered:
            result = talk(client, stage)
        return [entered is client, result]

    return wrapped


def fail(client: Any, stage: Stage) -> None:
    raise KeyError("from the block")


WITH_CASES = [
    Case("with", in_with(send())),
    Case("with, and an exception", in_with(fail)),
    Case("with, QUIT refused", in_with(do("noop")), replies={"QUIT": b"500 no\r\n"}),
    Case("with, QUIT refused, and an exception", in_with(fail), replies={"QUIT": b"500 no\r\n"}),
    Case("with, QUIT without an answer", in_with(do("noop")), replies={"QUIT": close}),
    Case("with, and quit inside", in_with(lambda c, s: c.quit())),
    Case(
        "with, never connected",
        in_with(lambda c, s: None),
        make=bare,
    ),
]


def post(headers: dict[str, str] | None = None, text: str = "hello\n", **keywords: Any):
    headers = headers or {"From": "f@example.org", "To": A}
    return do("send_message", message(text, **headers), **keywords)


FROM_TO = {"From": "F <f@example.org>", "To": "A <a@example.org>, b@example.org"}
RESENT = {
    "Resent_Date": "Thu, 1 Jan 1970 00:00:00 +0000",
    "Resent_From": "r@example.org",
    "Resent_To": C,
    "Resent_Bcc": "hidden@example.org",
}


def resent_twice(client: Any, stage: Stage) -> object:
    made = message(**FROM_TO)
    made["Resent-Date"] = "Thu, 1 Jan 1970 00:00:00 +0000"
    # Only the policy stops a second one; two blocks are what RFC 5322, 3.6.6, foresees.
    made._headers.append(("Resent-Date", "Fri, 2 Jan 1970 00:00:00 +0000"))
    return attempt(client.send_message, made)


def legacy(client: Any, stage: Stage) -> object:
    made = email.message.Message()
    made["From"], made["To"], made["Bcc"] = "f@example.org", A, B
    made.set_payload("one\n.two\rthree\n")
    return [attempt(client.send_message, made), made["Bcc"]]


MESSAGE_CASES = [
    Case("send_message", post(FROM_TO)),
    Case("send_message: Sender", post({**FROM_TO, "Sender": "s@example.org"})),
    Case("send_message: Cc and Bcc", post({**FROM_TO, "Cc": C, "Bcc": "hidden@example.org"})),
    Case("send_message: Resent", post({**FROM_TO, **RESENT, "Bcc": B})),
    Case("send_message: Resent with Sender", post({**FROM_TO, **RESENT, "Resent_Sender": A})),
    Case("send_message: two Resent blocks", resent_twice),
    Case("send_message: addresses given", post(FROM_TO, from_addr="x@example.org", to_addrs=[C])),
    Case("send_message: recipient is text", post(FROM_TO, to_addrs=C)),
    Case(
        "send_message: options",
        post(FROM_TO, mail_options=["RET=HDRS"], rcpt_options=["NOTIFY=NEVER"]),
    ),
    Case("send_message: group", post({"From": A, "To": "g: a@example.org, b@example.org;"})),
    Case("send_message: dots and 8-bit", post(FROM_TO, text=".\n..é\n")),
    Case("send_message: legacy class", legacy),
    Case("send_message: UTF-8", post({"From": "ö@example.org", "To": "ä@example.org"})),
    Case(
        "send_message: UTF-8 not offered",
        post({"From": "ö@example.org", "To": A}),
        extensions=("PIPELINING", "SIZE"),
    ),
    Case("send_message: partly refused", post(FROM_TO), replies={("RCPT", 2): b"550 no\r\n"}),
    Case(
        "send_message: policy",
        do(
            "send_message",
            email.message_from_string(
                "From: f@example.org\nTo: a@example.org\n\nlong " + "x " * 500 + "\n.\n",
                policy=email.policy.SMTP,
            ),
        ),
    ),
]


def connect(*args: Any, **keywords: Any) -> Callable[[Any, Stage], object]:
    return lambda client, stage: attempt(client.connect, *args, **keywords)


def unconnected(cls: type, stage: Stage, **keywords: Any) -> Any:
    client = cls(local_hostname=NAME, timeout=5, **keywords)
    client._host = stage.host  # which smtplib's connect() sets from 3.14 on only
    return client


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


CONNECT_CASES = [
    Case("port is not a number", make=lambda cls, stage, **k: cls("127.0.0.1:smtp", **k)),
    Case("port is not a number, in connect", connect("127.0.0.1:x"), make=unconnected),
    Case("timeout of zero", make=lambda cls, s, **k: cls(s.host, s.port, NAME, timeout=0, **k)),
    Case(
        "timeout of None",
        do("noop"),
        make=lambda cls, s, **k: cls(s.host, s.port, NAME, timeout=None, **k),
    ),
    Case("timeout by default", do("noop"), make=lambda cls, s, **k: cls(s.host, s.port, NAME, **k)),
    Case("host by name", do("noop"), make=lambda cls, s, **k: cls("localhost", s.port, NAME, **k)),
    Case("name of this host", do("ehlo"), make=lambda cls, s, **k: cls(s.host, s.port, **k)),
    Case(
        "source address",
        do("noop"),
        make=lambda cls, s, **k: cls(s.host, s.port, NAME, 5, ("127.0.0.1", 0), **k),
    ),
    Case(
        "source address in connect",
        make=unconnected,
        talk=lambda c, s: c.connect("127.0.0.1", s.port, ("127.0.0.1", 0)),
    ),
    Case("nobody listens", make=lambda cls, s, **k: cls(s.host, closed_port(), NAME, **k)),
]

TLS = ("STARTTLS", *EXTENSIONS)


def starttls(client: Any, stage: Stage) -> object:
    return attempt(client.starttls, context=stage.trust)


def auth(*mechanisms: str) -> tuple[str, ...]:
    return (*EXTENSIONS, "AUTH " + " ".join(mechanisms))


USER = {"users": {"user": "secret"}}
login = do("login", "user", "secret")


def give_user_and_password(challenge: bytes | None = None) -> str | None:
    return None if challenge is None else {b"Username:": "user"}.get(challenge, "secret")


SECURITY_CASES = [
    Case("starttls", in_turn(do("ehlo"), starttls, send()), extensions=TLS),
    Case("starttls says EHLO", in_turn(starttls, do("ehlo")), extensions=TLS),
    Case("starttls not offered", starttls),
    *(
        Case(
            f"starttls answered {code}",
            in_turn(starttls, do("noop")),
            extensions=TLS,
            replies={"STARTTLS": b"%d no\r\n" % code},
        )
        for code in (250, 454, 501)
    ),
    Case("TLS from the start", in_turn(send(), lambda c, s: c.quit()), client="SMTP_SSL"),
    Case("TLS, a large message", send(TWO, PAYLOADS["large"]), client="SMTP_SSL"),
    Case(
        "TLS, all in pieces",
        send(TWO),
        client="SMTP_SSL",
        replies=dict.fromkeys(["EHLO", "MAIL", "RCPT", "DATA", "body", "NOOP"], IN_PIECES),
    ),
    Case("TLS, EOF", in_turn(do("noop"), do("noop")), client="SMTP_SSL", replies={"NOOP": close}),
    *(
        Case(f"login: {mechanism}", login, extensions=auth(mechanism), server=USER)
        for mechanism in ("PLAIN", "LOGIN", "CRAM-MD5")
    ),
    *(
        Case(
            f"login: {mechanism} without initial response",
            do("login", "user", "secret", initial_response_ok=False),
            extensions=auth(mechanism),
            server=USER,
        )
        for mechanism in ("PLAIN", "LOGIN", "CRAM-MD5")
    ),
    *(
        Case(
            f"login: {mechanism}, wrong password",
            do("login", "user", "wrong"),
            extensions=auth(mechanism),
            server=USER,
        )
        for mechanism in ("PLAIN", "LOGIN", "CRAM-MD5")
    ),
    Case(
        "login: the best of three",
        login,
        extensions=auth("LOGIN", "PLAIN", "CRAM-MD5"),
        server=USER,
    ),
    Case("login: old style", login, extensions=("AUTH=LOGIN",), server=USER),
    Case("login: no AUTH", login),
    Case("login: nothing suitable", login, extensions=auth("GSSAPI")),
    Case("login: already done", login, extensions=auth("PLAIN"), replies={"AUTH": b"503 done\r\n"}),
    Case(
        "login: first not known, then LOGIN",
        login,
        extensions=auth("PLAIN", "LOGIN"),
        server=USER,
        replies={("AUTH", 1): b"504 what?\r\n"},
    ),
    Case(
        "auth with an object of one's own",
        extensions=auth("LOGIN"),
        server=USER,
        talk=in_turn(do("ehlo"), do("auth", "login", give_user_and_password)),
    ),
    Case("login twice", in_turn(login, login), extensions=auth("PLAIN"), server=USER),
]

LMTP_CASES = [
    Case("lmtp: lhlo", do("ehlo"), client="LMTP"),
    Case("lmtp: one recipient", send(), client="LMTP"),
    Case(
        "lmtp: one recipient refused",
        send(),
        client="LMTP",
        refused=True,
        replies={"RCPT": b"550 no\r\n"},
    ),
    Case("lmtp: quit", in_turn(send(), lambda c, s: c.quit()), client="LMTP"),
]


def debugged(level: int, talk: Callable[[Any, Stage], object]) -> Callable[[Any, Stage], object]:
    def at_level(client: Any, stage: Stage) -> object:
        client.set_debuglevel(level)
        return [attempt(client.connect, "127.0.0.1", stage.port), talk(client, stage)]

    return at_level


DEBUG_CASES = [
    Case(f"debug level {level}: {name}", debugged(level, call), make=unconnected, **more)
    for level in (1, 2)
    for name, call, more in [
        ("a message", send(TWO), {}),
        (
            "a message with dots, and quit",
            in_turn(send(message=b"a\n.\n"), lambda c, s: c.quit()),
            {},
        ),
        ("refusals", send(TWO), {"replies": {("RCPT", 1): b"550 no\r\n", "body": b"554 no\r\n"}}),
        (
            "odd replies",
            in_turn(do("noop"), do("noop")),
            {"replies": {"NOOP": b"250-\xe9\r\nx\r\n"}},
        ),
        ("EOF", do("noop"), {"replies": {"NOOP": close}}),
        ("refused HELO", do("helo"), {"extensions": None}),
        ("TLS", in_turn(starttls, do("ehlo")), {"extensions": TLS}),
    ]
]

CASES = [
    *GREETING_CASES,
    *REPLY_CASES,
    *PAYLOAD_CASES,
    *SENDMAIL_CASES,
    *COMMAND_CASES,
    *ENDING_CASES,
    *WITH_CASES,
    *MESSAGE_CASES,
    *CONNECT_CASES,
    *SECURITY_CASES,
    *LMTP_CASES,
    *DEBUG_CASES,
]


def test_the_table_has_no_name_twice():
    assert len({case.name for case in CASES}) == len(CASES) >= 60


def compare(theirs: Outcome, ours: Outcome) -> None:
    assert theirs.result == ours.result
    # From 3.14 on, smtplib has no `_host` before connect(), and none with a Unix socket.
    host = {} if theirs.attributes.get("_host", "") else {"_host": ours.attributes.get("_host")}
    assert theirs.attributes | host == ours.attributes | host
    assert theirs.debug == ours.debug
    assert theirs.messages == ours.messages
    assert ours.audited[-1] == ours.wire


def compare_wire(theirs: Outcome, ours: Outcome, case: Case) -> None:
    if case.gone:
        assert theirs.wire.startswith(ours.wire)
    else:
        assert theirs.wire == ours.wire
        assert theirs.audited == ours.audited


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_in_steps_all_is_equal(case, certificate):
    theirs = play(smtplib, case, certificate)
    ours = play(fastsmtp, case, certificate, pipelining=False)
    compare(theirs, ours)
    compare_wire(theirs, ours, case)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_with_pipelining_all_is_equal_but_the_grouping(case, certificate):
    theirs = play(smtplib, case, certificate)
    ours = play(fastsmtp, case, certificate, pipelining=True)
    compare(theirs, ours)
    if not case.refused:
        compare_wire(theirs, ours, case)


def without_pipelining(case: Case) -> Case:
    offered = tuple(line for line in case.extensions or () if line != "PIPELINING")
    return Case(**{**vars(case), "extensions": offered or ("HELP",)})


@pytest.mark.parametrize("case", SENDMAIL_CASES, ids=lambda case: case.name)
def test_where_pipelining_is_not_offered_all_is_equal(case, certificate):
    case = without_pipelining(case) if case.extensions else case
    theirs = play(smtplib, case, certificate)
    ours = play(fastsmtp, case, certificate)
    compare(theirs, ours)
    compare_wire(theirs, ours, case)


@pytest.mark.parametrize("level", [0, 1])
def test_lmtp_on_a_unix_socket_is_equal(level, certificate, tmp_path):
    def make(cls: type, stage: Stage, **keywords: Any) -> Any:
        return cls(stage.host, local_hostname=NAME, timeout=5, **keywords)

    def call(client: Any, stage: Stage) -> object:
        client.set_debuglevel(level)
        return [
            send()(client, stage),
            client.quit(),
            client.connect(stage.host),
            send()(client, stage),
        ]

    path = {"path": str(tmp_path / "lmtp")}
    case = Case("LMTP on a Unix socket", call, client="LMTP", make=make, server=path)
    theirs = play(smtplib, case, certificate)
    (tmp_path / "lmtp").unlink()
    ours = play(fastsmtp, case, certificate)
    compare(theirs, ours)
    compare_wire(theirs, ours, case)


WATCHED = """
    putcmd getreply send docmd mail rcpt data rset _rset ehlo helo
"""


def watched(make: Callable[..., Any]) -> Callable[..., Any]:
    """Make a client of a subclass that overrides methods and writes down their calls."""

    def make_watched(cls: type, stage: Stage, **keywords: Any) -> Any:
        calls: list[object] = []
        methods = {name: watching(getattr(cls, name), calls) for name in WATCHED.split()}
        return make(type("Watched", (cls,), {**methods, "calls": calls}), stage, **keywords)

    return make_watched


def watching(method: Callable[..., Any], calls: list[object]) -> Callable[..., Any]:
    def call(self: Any, *args: Any, **keywords: Any) -> Any:
        plain = [tuple(arg) if isinstance(arg, list) else arg for arg in args]
        calls.append((method.__name__, plain, keywords))
        return method(self, *args, **keywords)

    return call


OVERRIDDEN_CASES = [
    case
    for case in [*SENDMAIL_CASES, *MESSAGE_CASES, *PAYLOAD_CASES]
    if case.name != "SMTPUTF8 not offered"  # in mail(); by us it is found before
]


@pytest.mark.parametrize("case", OVERRIDDEN_CASES, ids=lambda case: case.name)
def test_with_methods_overridden_all_is_equal(case, certificate):
    """Nobody who overrides a method is passed by, whatever the server offers."""

    def with_calls(client: Any, stage: Stage) -> object:
        return case.talk(client, stage), client.calls

    overridden = Case(**{**vars(case), "talk": with_calls, "make": watched(case.make)})
    theirs = play(smtplib, overridden, certificate)
    ours = play(fastsmtp, overridden, certificate, pipelining=True)
    assert ours.result[1]
    compare(theirs, ours)
    compare_wire(theirs, ours, case)


def test_the_envelope_leaves_in_one_write(certificate):
    case = Case("", in_turn(do("ehlo"), send(THREE)))
    one_by_one = play(fastsmtp, case, certificate, pipelining=False)
    together = play(fastsmtp, case, certificate, pipelining=True)
    assert len(one_by_one.reads) == len(together.reads) + 4
    envelope = next(read for read in together.reads if read.lower().startswith(b"mail"))
    assert re.findall(rb"(?m)^\w+", envelope.lower()) == [
        b"mail",
        b"rcpt",
        b"rcpt",
        b"rcpt",
        b"data",
    ]


# -- where we differ on purpose -----------------------------------------------

ROWS: set[str] = set()


def differs(row: str) -> Callable[[Any], Any]:
    """Name the row of docs/differences.md that a test shows."""
    ROWS.add(row)
    return lambda test: test


@pytest.fixture(params=[False, True], ids=["in steps", "pipelined"])
def both(request, certificate):
    """Return a function that plays a case with smtplib and with fastsmtp."""

    def play_both(call, **details) -> tuple[Outcome, Outcome]:
        case = Case("difference", call, **details)
        theirs = play(smtplib, case, certificate)
        return theirs, play(fastsmtp, case, certificate, pipelining=play_both.pipelining)

    play_both.pipelining = request.param
    return play_both


def error_of(result: Any) -> type[Exception]:
    """The type of what was raised, in do() by its first call."""
    first = result[0] if isinstance(result, list) else result
    assert isinstance(first, tuple), first
    assert first[0] == "raised", first
    return first[1]


def verbs(outcome: Outcome) -> list[bytes]:
    return [line.upper() for line in re.findall(rb"(?m)^\w+", outcome.wire)]


def test_every_difference_is_documented():
    documented = (Path(__file__).parents[1] / "docs" / "differences.md").read_text("utf-8")
    assert {row for row in ROWS if f"| **{row}** |" not in documented} == set()


@differs("LMTP: one reply for each recipient")
def test_lmtp_partial_refusal_after_the_data(both):
    theirs, ours = both(send(THREE), client="LMTP", replies={("body", 2): b"550 full\r\n"})
    assert theirs.result == [{}, (550, b"full")]  # NOOP is given the second recipient's reply
    assert ours.result == [{B: (550, b"full")}, (250, b"noop 1")]
    assert ours.messages[0].recipients == [A, C]


@differs("LMTP: one reply for each recipient")
def test_lmtp_refusals_in_both_places(both):
    replies = {("RCPT", 1): b"551 not here\r\n", ("body", 2): b"452 full\r\n"}
    theirs, ours = both(send(THREE), client="LMTP", replies=replies)
    assert theirs.result == [{A: (551, b"not here")}, (452, b"full")]
    assert ours.result == [{A: (551, b"not here"), C: (452, b"full")}, (250, b"noop 1")]


@differs("LMTP: one reply for each recipient")
def test_lmtp_all_refused_after_the_data(both):
    refusals = {("body", 1): b"550 no\r\n", ("body", 2): b"452 full\r\n"}
    theirs, ours = both(send(TWO), client="LMTP", replies=refusals)
    assert error_of(theirs.result) is smtplib.SMTPDataError
    refused = {A: (550, b"no"), B: (452, b"full")}
    assert ours.result == [("raised", smtplib.SMTPRecipientsRefused, (refused,)), (250, b"noop 1")]
    assert ours.messages == []


#: Where parseaddr() gives up on an address that begins with "<", smtplib sends
#: it as it stands.  How soon it gives up depends on the version of Python.
GIVEN_UP = ["<> X=Y", "<@> X=Y", "<[> X=Y", "<,> X=Y", "<a@@x> NOTIFY=NEVER"]
GIVEN_UP_BY_SOME = [
    "<v@x> NOTIFY=NEVER ORCPT=rfc822;e@evil",
    "<a@x> <b@x>",
    "<a@x>,<b@x> NOTIFY=NEVER",
    '<"a b"@x> X=Y',
    "<v@x>\\ X=Y",
    "<(> X=Y",
    "<x@[1> X=Y",
]


def carries_parameters(outcome: Outcome) -> bool:
    sent = re.findall(rb"(?im)^rcpt to:(.*)\r$", outcome.wire)
    return not all(re.fullmatch(rb'<(?:[^<>"]|"[^"]*")*>', path) for path in sent)


@differs("Parameters in an address")
@pytest.mark.parametrize("address", [*GIVEN_UP, *GIVEN_UP_BY_SOME])
def test_an_address_cannot_carry_parameters(both, address):
    theirs, ours = both(in_turn(do("ehlo"), send(["ok@example.org", address])))
    assert carries_parameters(theirs) or address in GIVEN_UP_BY_SOME
    assert not carries_parameters(ours)
    if carries_parameters(theirs):
        assert error_of(ours.result[1]) is ValueError
        assert verbs(ours) == [b"EHLO", b"NOOP", b"NOOP"]
    else:
        assert theirs.wire == ours.wire


CONTROLS = {
    "sender": lambda bad: send(sender=f"a{bad}b@x"),
    "recipient": lambda bad: send(f"a{bad}b@x"),
    "mail_options": lambda bad: send(mail_options=[f"X={bad}"]),
    "rcpt_options": lambda bad: send(rcpt_options=[f"X={bad}"]),
    "mail": lambda bad: do("mail", f"a{bad}b@x"),
    "rcpt": lambda bad: do("rcpt", f"a{bad}b@x"),
    "docmd": lambda bad: do("docmd", "XYZ", f"a{bad}b"),
    "docmd's command": lambda bad: do("docmd", f"XYZ{bad}"),
    "ehlo": lambda bad: do("ehlo", f"a{bad}b"),
    "helo": lambda bad: do("helo", f"a{bad}b"),
    "help": lambda bad: do("help", f"a{bad}b"),
    "vrfy": lambda bad: do("vrfy", f"a{bad}b@x"),
    "expn": lambda bad: do("expn", f"a{bad}b@x"),
    "auth": lambda bad: do("auth", f"PLAIN{bad}", lambda challenge=None: "x"),
}


@differs("Control characters in a command")
@pytest.mark.parametrize("bad", ["\0", "\t", "\x1f", "\x7f"], ids=ascii)
@pytest.mark.parametrize("where", CONTROLS)
def test_control_characters_are_refused(both, where, bad):
    theirs, ours = both(in_turn(do("ehlo"), CONTROLS[where](bad)))
    assert bad.encode() in theirs.wire
    assert error_of(ours.result[1]) is ValueError
    # Not a byte: the server saw the EHLO before, and the NOOPs that do() adds.
    assert verbs(ours) == [b"EHLO", b"NOOP", b"NOOP"]


@differs("Everything is checked before MAIL")
@pytest.mark.parametrize("bad", ['"c\n"@x', "@\n", "é@x"], ids=ascii)
def test_a_bad_third_recipient_leaves_no_open_transaction(both, bad):
    theirs, ours = both(in_turn(do("ehlo"), send([A, B, bad])))
    assert issubclass(error_of(theirs.result[1]), ValueError)
    assert verbs(theirs) == [b"EHLO", b"NOOP", b"MAIL", b"RCPT", b"RCPT", b"NOOP"]
    assert error_of(ours.result[1])
    assert verbs(ours) == [b"EHLO", b"NOOP", b"NOOP"]


@differs("Everything is checked before MAIL")
def test_text_outside_ascii_is_refused_before_ehlo(both):
    theirs, ours = both(send(message="café"))
    assert theirs.result == ours.result
    assert error_of(ours.result) is UnicodeEncodeError
    assert (verbs(theirs), verbs(ours)) == ([b"EHLO", b"NOOP"], [b"NOOP"])


@differs("No empty message by pipelining")
@pytest.mark.parametrize("verb", ["MAIL", "RCPT"])
def test_a_dot_is_not_sent_where_it_could_deliver(both, verb):
    """A pipelined DATA has been taken, and the server may think that it has recipients."""
    theirs, ours = both(send(TWO), replies={verb: b"252 hm\r\n"})
    assert theirs.result[0] == ours.result[0]
    assert ours.messages == []
    if both.pipelining:
        assert (ours.attributes["closed"], verbs(ours)[-1]) == (True, b"DATA")
    else:
        assert theirs.wire == ours.wire


@differs("No empty message by pipelining")
def test_a_dot_is_not_sent_into_a_transaction_that_was_open_before(both):
    """A server that refuses our MAIL as nested goes on with the one before it."""
    nested = {"MAIL": b"503 nested\r\n", "RCPT": b"250 ok\r\n", "DATA": b"354 go ahead\r\n"}
    theirs, ours = both(send(TWO), replies=nested)
    assert theirs.result[0] == ours.result[0]
    assert ours.messages == theirs.messages == []
    if both.pipelining:
        assert (ours.attributes["closed"], verbs(ours)[-1]) == (True, b"DATA")
    else:
        assert theirs.wire == ours.wire


@differs("SMTPUTF8 is for one message")
def test_the_next_message_is_not_in_smtputf8(both):
    theirs, ours = both(in_turn(send("ä@x", mail_options=["SMTPUTF8"]), send("ä@x")))
    assert theirs.result[1] == [{}, (250, b"noop 2")]  # without a word to the server
    assert error_of(ours.result[1])
    assert len(ours.messages) == 1


@differs("A new connection begins with EHLO")
def test_ehlo_is_said_again_after_close_and_connect(both):
    def call(client: Any, stage: Stage) -> object:
        client.ehlo()
        client.close()
        client.connect(stage.host, stage.port)
        return send()(client, stage)

    theirs, ours = both(call)
    assert theirs.result == ours.result == [{}, (250, b"noop 1")]
    assert verbs(theirs)[:2] == [b"EHLO", b"MAIL"]
    assert verbs(ours)[:3] == [b"EHLO", b"EHLO", b"MAIL"]


@differs("Challenges without end")
def test_challenges_without_end_close(both):
    endless = (b"220 hi\r\n", b"250-m\r\n250 AUTH PLAIN\r\n", *[b"334 Zm9v\r\n"] * 7)
    theirs, ours = both(login, script=endless)
    assert error_of(theirs.result) is error_of(ours.result) is smtplib.SMTPException
    assert theirs.result[1] == (334, b"Zm9v")  # to the server NOOP is one more answer
    assert ours.attributes["closed"]


FOR_421 = {
    "DATA": send(),
    "NOOP": lambda client, stage: client.noop(),
    "RSET": lambda client, stage: client.rset(),
    "VRFY": lambda client, stage: client.verify("a"),
    "EXPN": lambda client, stage: client.expn("a"),
    "HELP": lambda client, stage: client.help(),
    "EHLO": lambda client, stage: client.ehlo(),
    "HELO": lambda client, stage: client.helo(),
    "XYZ": lambda client, stage: client.docmd("XYZ"),
    "STARTTLS": starttls,
    "AUTH": lambda client, stage: attempt(client.login, "user", "secret"),
}


@differs("421 closes the connection")
@pytest.mark.parametrize("verb", FOR_421)
def test_421_closes(both, verb):
    extensions = ("AUTH PLAIN", "STARTTLS", *EXTENSIONS)
    theirs, ours = both(FOR_421[verb], extensions=extensions, replies={verb: b"421 bye\r\n"})
    assert (theirs.attributes["closed"], ours.attributes["closed"]) == (False, True)
    if verb == "DATA":  # and here NOOP follows
        expected = ("raised", smtplib.SMTPDataError, (421, b"bye"))
        assert (theirs.result, ours.result) == ([expected, (250, b"noop 1")], [expected, None])
    else:
        assert theirs.result == ours.result


def noop_twice(client: Any, stage: Stage) -> object:
    client.noop()
    try:
        return client.noop()
    except smtplib.SMTPServerDisconnected as error:
        return getattr(error, "last_reply", "nothing"), str(error)


@differs("A lost connection names the last reply")
def test_the_last_reply_is_told(both):
    theirs, ours = both(noop_twice, replies={("NOOP", 1): b"250 hurry up\r\n", ("NOOP", 2): close})
    assert theirs.result == ("nothing", "Connection unexpectedly closed")
    last_reply, text = ours.result
    assert last_reply == (250, b"hurry up")
    assert "250" in text
    assert "hurry up" in text


@differs("A lost connection names the last reply")
def test_a_421_out_of_turn_is_told(both):
    """A server may say 421 at any time before it closes (RFC 5321, section 3.8)."""

    def call(client: Any, stage: Stage) -> object:
        client.docmd("XYZ")
        try:
            client.sendmail(A, B, HELLO)
        except smtplib.SMTPServerDisconnected as error:
            return getattr(error, "last_reply", "nothing"), str(error)

    theirs, ours = both(call, replies={"XYZ": (b"250 ok\r\n421 idle\r\n", close)})
    assert theirs.result == ("nothing", "Connection unexpectedly closed")
    assert ours.result[0] == (421, b"idle")
    assert "421 idle" in ours.result[1]
    assert (ours.attributes["closed"], verbs(ours)) == (True, [b"XYZ"])


def test_without_a_connection_the_error_is_in_the_same_words(both):
    def call(client: Any, stage: Stage) -> object:
        client.noop()
        client.close()
        with pytest.raises(smtplib.SMTPServerDisconnected) as error:
            client.noop()
        return str(error.value)

    theirs, ours = both(call)
    assert theirs.result == ours.result == "please run connect() first"


@differs("Unsolicited replies")
def test_a_second_greeting(both):
    theirs, ours = both(do("ehlo"), replies={"greeting": b"220 hi\r\n220 hi again\r\n"})
    assert theirs.result[0] == (220, b"hi again")
    assert issubclass(error_of(ours.result), smtplib.SMTPServerDisconnected)
    assert (ours.attributes["closed"], ours.wire) == (True, b"")


@differs("Unsolicited replies")
@pytest.mark.parametrize("stale", [b"250 stale\r\n", b"250 sta", b"250-a\r\n250 b\r\n"])
def test_more_than_the_reply(both, stale):
    theirs, ours = both(
        in_turn(do("docmd", "XYZ"), do("ehlo")), replies={"XYZ": b"250 ok\r\n" + stale}
    )
    assert theirs.result[0][1] != (250, b"noop 1")  # NOOP is given what was left
    assert ours.result[0][0] == (250, b"ok")
    assert issubclass(ours.result[0][1][1], smtplib.SMTPServerDisconnected)
    assert (ours.attributes["closed"], ours.wire) == (True, b"XYZ\r\n")


@differs("Bytes left over at STARTTLS")
@pytest.mark.parametrize("injected", [b"250 injected\r\n", b"250 inj", b"\x16"])
def test_clear_text_is_not_carried_into_tls(both, injected):
    theirs, ours = both(
        starttls, extensions=TLS, replies={"STARTTLS": b"220 go ahead\r\n" + injected}
    )
    assert theirs.result == (220, b"go ahead")  # smtplib drops it without a word
    assert issubclass(error_of(ours.result), smtplib.SMTPServerDisconnected)
    assert ours.attributes["closed"]


@differs("A reply has a largest size")
def test_an_endless_reply(both):
    endless = b"250-" + b"x" * 1000 + b"\r\n"
    theirs, ours = both(do("noop"), replies={("NOOP", 1): endless * 2000 + b"250 end\r\n"})
    assert theirs.result[0][0] == 250
    assert issubclass(error_of(ours.result), smtplib.SMTPException)
    assert ours.attributes["closed"]


GERMAN = {"server": {"users": {"jürgen": "gehäuse"}}}


@differs("Credentials in UTF-8")
@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5"])
def test_credentials_outside_ascii(both, mechanism):
    theirs, ours = both(do("login", "jürgen", "gehäuse"), extensions=auth(mechanism), **GERMAN)
    assert error_of(theirs.result) is UnicodeEncodeError
    assert ours.result[0] == (235, b"welcome")


@differs("auth() says EHLO")
def test_auth_says_ehlo_when_it_must(both):
    call = do("auth", "PLAIN", lambda challenge=None: "\0user\0secret")
    theirs, ours = both(call, extensions=auth("PLAIN"), server=USER)
    assert theirs.result == ours.result
    assert verbs(theirs) == [b"AUTH", b"NOOP"]
    assert verbs(ours) == [b"EHLO", b"AUTH", b"NOOP"]


@differs("XOAUTH2")
@pytest.mark.parametrize("token", ["ya29.token", lambda: "ya29.token"], ids=["text", "callable"])
def test_xoauth2(both, token):
    details = {"extensions": auth("XOAUTH2"), "server": {"users": {"user": "ya29.token"}}}
    theirs, ours = both(do("login", "user", token), **details)
    assert error_of(theirs.result) is smtplib.SMTPException
    assert ours.result == [(235, b"welcome"), (250, b"noop 1")]


@differs("XOAUTH2")
def test_xoauth2_failure_is_acknowledged_and_told(both):
    details = {"extensions": auth("XOAUTH2", "PLAIN"), "server": USER}
    call = do("auth", "XOAUTH2", lambda challenge=None: "user=user\x01auth=Bearer old\x01\x01")
    _, ours = both(do("login", "user", "old"), extensions=auth("XOAUTH2"), server=USER)
    assert error_of(ours.result) is smtplib.SMTPAuthenticationError
    assert '"status":"401"' in str(ours.result[0]).replace("\\", "")
    assert ours.result[1] == (250, b"noop 1")
    assert b"\r\n\r\n" in ours.wire
    theirs, _ = both(call, **details)
    assert b"\r\n\r\n" not in theirs.wire  # smtplib says the same again


@differs("No further mechanism after 535")
def test_a_wrong_password_is_offered_once(both):
    extensions = auth("CRAM-MD5", "PLAIN", "LOGIN")
    theirs, ours = both(do("login", "user", "wrong"), extensions=extensions, server=USER)
    assert theirs.result == ours.result
    assert error_of(ours.result) is smtplib.SMTPAuthenticationError
    assert theirs.wire.count(b"AUTH ") == 3
    assert ours.wire.count(b"AUTH ") == 1


@differs("An empty initial response")
def test_an_empty_initial_response_is_an_equals_sign(both):
    call = in_turn(do("ehlo"), do("auth", "EXTERNAL", lambda challenge=None: ""))
    theirs, ours = both(call, replies={"AUTH": b"235 ok\r\n"})
    assert b"AUTH EXTERNAL \r\n" in theirs.wire
    assert b"AUTH EXTERNAL =\r\n" in ours.wire  # RFC 4954, section 4


@differs("Internationalised domains")
def test_domains_are_idna_encoded(both):
    theirs, ours = both(send("user@bücher.example", sender="f@bücher.example"))
    assert error_of(theirs.result) is UnicodeEncodeError
    assert ours.result == [{}, (250, b"noop 1")]
    assert ours.messages[0].sender == "f@xn--bcher-kva.example"
    assert ours.messages[0].recipients == ["user@xn--bcher-kva.example"]


@differs("Internationalised domains")
def test_smtputf8_is_for_local_parts_only(both):
    call = post({"From": "f@example.org", "To": "user@bücher.example"})
    theirs, ours = both(call, extensions=("PIPELINING", "SIZE"))
    assert error_of(theirs.result) is smtplib.SMTPNotSupportedError
    assert ours.result == [{}, (250, b"noop 1")]
    assert ours.messages[0].recipients == ["user@xn--bcher-kva.example"]
    assert b"SMTPUTF8" not in ours.wire.upper()


@differs("The name of the local host")
def test_the_local_host_name_is_looked_up_when_needed_and_once(both, monkeypatch):
    real, calls = socket.getfqdn(), []
    monkeypatch.setattr(socket, "getfqdn", lambda *args: calls.append(args) or real)

    def lookups(module: Any) -> list[int]:
        counts = []
        for use in (lambda c: None, lambda c: c.local_hostname, lambda c: c.local_hostname):
            calls.clear()
            use(module.SMTP())
            counts.append(len(calls))
        return counts

    assert lookups(smtplib) == [1, 1, 1]
    assert lookups(fastsmtp) in ([0, 1, 0], [0, 0, 0])  # an earlier test may have asked
    calls.clear()
    assert fastsmtp.SMTP(local_hostname=NAME).local_hostname == NAME
    assert calls == []


SECRETS = {
    "PLAIN": [b"AHVzZXIAc2VjcmV0"],
    "LOGIN": [b"dXNlcg==", b"c2VjcmV0"],
    "CRAM-MD5": [b"dXNlciBlOGQ3"],
}


@differs("Credentials are not shown")
@pytest.mark.parametrize("mechanism", SECRETS)
@pytest.mark.parametrize("password", ["secret", "wrong!"])
def test_debug_output_and_log_keep_credentials_back(both, mechanism, password, caplog):
    caplog.set_level(logging.DEBUG, "fastsmtp")
    theirs, ours = both(
        debugged(1, do("login", "user", password)),
        make=unconnected,
        extensions=auth(mechanism),
        server=USER,
    )
    assert theirs.result == ours.result
    # What follows AUTH's mechanism or answers a challenge, as the server saw it.
    sent = re.findall(rb"(?m)^(?:AUTH \S+ )?([\w+/]{8,}=*)\r$", theirs.wire)
    assert sent
    log = " ".join(record.getMessage() for record in caplog.records)
    assert "AUTH" in ours.debug
    for secret in (each.decode() for each in sent):
        assert secret in theirs.debug
        assert secret not in ours.debug
        assert secret not in log
    assert password not in ours.debug + log
    assert "ehlo" in log.lower()


@differs("Any iterable of recipients")
@pytest.mark.parametrize("kind", [iter, set, dict.fromkeys, lambda to: (each for each in to)])
def test_recipients_in_any_iterable(both, kind):
    def call(client: Any, stage: Stage) -> object:
        return send(kind([A]))(client, stage)

    theirs, ours = both(call)
    if kind in (set, dict.fromkeys):
        assert theirs.result == ours.result
    else:
        assert error_of(theirs.result) is TypeError
    assert ours.result == [{}, (250, b"noop 1")]


@differs("No recipient")
def test_no_recipient_at_all(both):
    theirs, ours = both(in_turn(do("ehlo"), send([])))
    assert theirs.result == ours.result
    assert ours.result[1][0] == ("raised", smtplib.SMTPRecipientsRefused, ({},))
    assert verbs(theirs) == [b"EHLO", b"NOOP", b"MAIL", b"RSET", b"NOOP"]
    assert verbs(ours) == [b"EHLO", b"NOOP", b"NOOP"]


@differs("The same recipient twice, refused")
def test_all_refused_with_one_of_them_twice(both):
    theirs, ours = both(send([A, A]), replies={"RCPT": b"550 no\r\n"})
    assert error_of(theirs.result) is smtplib.SMTPDataError
    refused = {A: (550, b"no")}
    assert ours.result == [("raised", smtplib.SMTPRecipientsRefused, (refused,)), (250, b"noop 1")]


@differs("RSET after a refused DATA")
def test_a_refused_data_command_is_reset(both):
    theirs, ours = both(in_turn(send(), send()), replies={("DATA", 1): b"451 later\r\n"})
    assert (
        theirs.result[0][0]
        == ours.result[0][0]
        == ("raised", smtplib.SMTPDataError, (451, b"later"))
    )
    # The transaction is open still, so the next MAIL is refused as a nested one.
    assert error_of(theirs.result[1]) is smtplib.SMTPSenderRefused
    assert ours.result[1] == [{}, (250, b"noop 2")]


BEFORE_3_14 = sys.version_info < (3, 14)


@differs("connect() sets the host's name")
def test_the_name_of_the_host_is_known_after_connect(both):
    def call(client: Any, stage: Stage) -> object:
        return [client.connect(f"localhost:{stage.port}"), starttls(client, stage)]

    theirs, ours = both(call, make=bare, extensions=TLS)
    assert ours.result[1] == (220, b"go ahead")
    assert ours.attributes["_host"] == "localhost"
    assert theirs.attributes["_host"] == ("" if BEFORE_3_14 else "localhost")
    if BEFORE_3_14:
        assert error_of(theirs.result[1]) is ValueError  # no name to check the certificate for


@differs("connect() sets the host's name")
def test_the_name_of_the_host_is_without_the_port(both):
    def make(cls: type, stage: Stage, **keywords: Any) -> Any:
        return cls(f"localhost:{stage.port}", local_hostname=NAME, **keywords)

    theirs, ours = both(in_turn(starttls), extensions=TLS, make=make)
    assert ours.result == [(220, b"go ahead")]
    assert ours.attributes["_host"] == "localhost"
    assert theirs.attributes["_host"].startswith("localhost:" if BEFORE_3_14 else "localhost")
    if BEFORE_3_14:
        assert issubclass(error_of(theirs.result), OSError)  # no such name in the certificate
