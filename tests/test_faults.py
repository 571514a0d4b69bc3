"""What comes of it when a server fails: at each step, in each way.

The table holds what smtplib does and, after a bar, what fastsmtp does where
that is something else.  Whatever happens, fastsmtp's connection is then closed
or in step, and nothing was delivered but where the table says so.
"""

from __future__ import annotations

import functools
import re
import smtplib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support import (
    EXTENSIONS,
    IN_PIECES,
    ModelServer,
    Reply,
    client_tls,
    close,
    reset,
    server_tls,
    stall,
)

import fastsmtp

A, B = "a@example.org", "b@example.org"


def send(client: Any, trust: Any) -> object:
    return client.sendmail("from@example.org", [A, B], "Subject: x\n\n.dot\n")


#: For each step: which of the server's replies goes wrong, and the call that meets it.
STEPS: dict[str, tuple[Any, Callable[[Any, Any], object]]] = {
    "greeting": ("greeting", lambda client, trust: client.connect("localhost")),
    "EHLO": ("EHLO", lambda client, trust: client.ehlo()),
    "STARTTLS": ("STARTTLS", lambda client, trust: client.starttls(context=trust)),
    "AUTH": ("AUTH", lambda client, trust: client.login("user", "secret")),
    "MAIL": ("MAIL", send),
    "RCPT-1": (("RCPT", 1), send),
    "RCPT-2": (("RCPT", 2), send),
    "DATA": ("DATA", send),
    "body": ("body", send),
    "RSET": ("RSET", lambda client, trust: client.rset()),
    "QUIT": ("QUIT", lambda client, trust: client.quit()),
}

FAULTS: dict[str, Reply] = {
    "close": close,
    "reset": reset,
    "stall": stall,
    "dribble": IN_PIECES,
    "421": (b"421 shutting down\r\n", close),
    "450": b"450 later\r\n",
    "550": b"550 no\r\n",
    "garbage": b"\x00\xff garbage\r\n",
}

# "#" is the code of the reply, -1 for garbage.  A connection is in step, closed,
# or lost: smtplib keeps a socket whose server has gone.  A reset before the
# greeting may come so early that connect() itself fails.
TABLE = """
greeting  close stall        SMTPServerDisconnected closed
greeting  reset              SMTPServerDisconnected closed or ConnectionResetError closed
greeting  dribble            returned[220] in-step
greeting  421                returned[#] lost                    | returned[#] closed
greeting  450 550 garbage    returned[#] in-step

EHLO      close reset stall  SMTPServerDisconnected closed
EHLO      dribble            returned[250] in-step
EHLO      421                returned[#] lost                    | returned[#] closed
EHLO      450 550 garbage    returned[#] in-step

STARTTLS  close reset stall  SMTPServerDisconnected closed
STARTTLS  dribble            returned[220] in-step
STARTTLS  421                SMTPResponseException[#] lost       | SMTPResponseException[#] closed
STARTTLS  450 550 garbage    SMTPResponseException[#] in-step

AUTH      close reset stall  SMTPServerDisconnected closed
AUTH      dribble            returned[235] in-step
AUTH      421                SMTPAuthenticationError[#] lost     | SMTPAuthenticationError[#] closed
AUTH      450 550 garbage    SMTPAuthenticationError[#] in-step

MAIL      close reset stall  SMTPServerDisconnected closed
MAIL      dribble            sent[] in-step delivered
MAIL      421                SMTPSenderRefused[#] closed
MAIL      450 550 garbage    SMTPSenderRefused[#] in-step

RCPT-1    close reset stall  SMTPServerDisconnected closed
RCPT-1    dribble            sent[] in-step delivered
RCPT-1    421                SMTPRecipientsRefused[#] closed
RCPT-1    450 550 garbage    sent[#] in-step delivered

RCPT-2    close reset stall  SMTPServerDisconnected closed
RCPT-2    dribble            sent[] in-step delivered
RCPT-2    421                SMTPRecipientsRefused[#] closed
RCPT-2    450 550 garbage    sent[#] in-step delivered

DATA      close reset stall  SMTPServerDisconnected closed
DATA      dribble            sent[] in-step delivered
DATA      421                SMTPDataError[#] lost               | SMTPDataError[#] closed
DATA      450 550 garbage    SMTPDataError[#] in-step

body      close reset stall  SMTPServerDisconnected closed
body      dribble            sent[] in-step delivered
body      421                SMTPDataError[#] closed
body      450 550 garbage    SMTPDataError[#] in-step

RSET      close reset stall  SMTPServerDisconnected closed
RSET      dribble            returned[250] in-step
RSET      421                returned[#] lost                    | returned[#] closed
RSET      450 550 garbage    returned[#] in-step

QUIT      close reset stall  SMTPServerDisconnected closed
QUIT      dribble            returned[221] closed
QUIT      421                returned[#] closed
QUIT      450 550 garbage    returned[#] closed
"""


class Row(NamedTuple):
    step: str
    fault: str
    theirs: str
    ours: str


def rows() -> list[Row]:
    table = []
    for line in filter(None, TABLE.splitlines()):
        step, faults, outcomes = re.fullmatch(r"(\S+) +((?:\S+ )+) +(.+)", line).groups()
        for fault in faults.split():
            code = "-1" if fault == "garbage" else fault
            theirs, *ours = (each.strip().replace("#", code) for each in outcomes.split("|"))
            table.append(Row(step, fault, theirs, ours[0] if ours else theirs))
    return table


ROWS = rows()
LOST = [row for row in ROWS if row.ours == "SMTPServerDisconnected closed"]

CLIENTS: dict[str, tuple[Any, dict[str, bool]]] = {
    "smtplib": (smtplib.SMTP, {}),
    "fastsmtp": (fastsmtp.SMTP, {"pipelining": True}),
    "fastsmtp-in-steps": (fastsmtp.SMTP, {"pipelining": False}),
}


def test_the_table_is_whole():
    expected = [(step, fault) for step in STEPS for fault in FAULTS]
    assert sorted((row.step, row.fault) for row in ROWS) == sorted(expected)


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.step}-{row.fault}")
def test_outcome(row, client, certificate):
    outcome, _, _ = fail(row, client, certificate)
    expected = row.theirs if client == "smtplib" else row.ours
    assert outcome in expected.split(" or ")


@pytest.mark.parametrize("client", ["fastsmtp", "fastsmtp-in-steps"])
@pytest.mark.parametrize("row", LOST, ids=lambda row: f"{row.step}-{row.fault}")
def test_a_lost_connection_names_the_last_reply(row, client, certificate):
    _, error, sent = fail(row, client, certificate)
    assert error.last_reply == last_reply(sent)
    if error.last_reply:
        code, text = error.last_reply
        assert str(code) in str(error)
        assert text.decode().splitlines()[0] in str(error)


# -- playing a row ------------------------------------------------------------


@functools.cache
def fail(row: Row, client: str, pem: Path) -> tuple[str, Exception | None, bytes]:
    """Play a row; return the outcome, the exception, and all that the server sent."""
    call = STEPS[row.step][1]
    with start(row, pem) as server, connected(row, client, server) as smtp:
        result, error = describe(lambda: call(smtp, client_tls(pem)))
        outcome = [result, state(smtp)]
    if server.messages:
        outcome.append("delivered")
    return " ".join(outcome), error, bytes(server.connections[0].sent)


def start(row: Row, pem: Path) -> ModelServer:
    return ModelServer(
        ["STARTTLS", "AUTH PLAIN", *EXTENSIONS],
        replies={STEPS[row.step][0]: FAULTS[row.fault]},
        users={"user": "secret"},
        tls=server_tls(pem),
    )


class connected:
    """A client that has come as far as the step, and is closed in the end."""

    def __init__(self, row: Row, client: str, server: ModelServer) -> None:
        cls, keywords = CLIENTS[client]
        timeout = 0.3 if row.fault == "stall" else 5
        self.client = cls(local_hostname="client.example", timeout=timeout, **keywords)
        self.client.default_port = server.port
        self.client._host = "localhost"  # which smtplib's connect() sets from 3.14 on
        self.step = row.step

    def __enter__(self) -> Any:
        if self.step != "greeting":
            self.client.connect("localhost")
        if self.step not in ("greeting", "EHLO"):
            self.client.ehlo()
        return self.client

    def __exit__(self, *args: object) -> None:
        self.client.close()


def describe(call: Callable[[], Any]) -> tuple[str, Exception | None]:
    """Say in a word what a call returned or raised."""
    try:
        result = call()
    except smtplib.SMTPRecipientsRefused as error:
        return f"SMTPRecipientsRefused{codes(error.recipients)}", error
    except smtplib.SMTPResponseException as error:
        return f"{type(error).__name__}[{error.smtp_code}]", error
    except Exception as error:
        return type(error).__name__, error
    return f"sent{codes(result)}" if isinstance(result, dict) else f"returned[{result[0]}]", None


def codes(refused: dict[str, tuple[int, bytes]]) -> str:
    return "[" + ",".join(str(code) for code, _ in refused.values()) + "]"


def state(client: Any) -> str:
    """Say what has become of the connection; no other reply is like NOOP's."""
    if client.sock is None:
        return "closed"
    try:
        return "in-step" if client.noop() == (250, b"noop 1") else "out-of-step"
    except smtplib.SMTPServerDisconnected:
        return "lost"


def last_reply(sent: bytes) -> tuple[int, bytes] | None:
    """Cut the last reply from what a server sent."""
    replies = re.findall(rb"(?:\d{3}-.*\r\n)*\d{3} .*\r\n", sent)
    if not replies:
        return None
    lines = replies[-1].splitlines()
    return int(lines[-1][:3]), b"\n".join(line[4:] for line in lines)
