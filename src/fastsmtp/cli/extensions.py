"""SMTP's service extensions, each explained in a line for those who have not read its RFC."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .exits import printable


@dataclass
class Extension:
    """One line of the EHLO reply."""

    name: str
    parameters: str
    known: bool
    meaning: str


def plain(text: str | bytes) -> str:
    """Return what a server said in one line that does nothing to a terminal."""
    return printable(text.decode("utf-8", "replace") if isinstance(text, bytes) else text)


def octets(count: int) -> str:
    """Return a number of octets with a unit that a person can grasp."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} octets"


def number(text: str) -> int:
    """Return the number that a text is; 0 for anything else, and for what no server can mean."""
    return int(text) if text.isdecimal() and len(text) <= 20 else 0


def pairs(text: str) -> Iterator[tuple[str, int]]:
    """Give the parameters of LIMITS that are numbers (RFC 9422)."""
    for part in text.split():
        name, _, value = part.partition("=")
        if number(value):
            yield name.upper(), number(value)


def _size(parameters: str) -> str:
    if limit := number(parameters):
        return f"says how big a message may be: {octets(limit)}"
    return "a message's size is told before it is sent; there is no fixed limit"


#: What the limits of RFC 9422 are for.
LIMITS = {
    "MAILMAX": "messages on a connection",
    "RCPTMAX": "recipients of a message",
    "RCPTDOMAINMAX": "recipients' domains on a connection",
}


def _limits(parameters: str) -> str:
    found = [f"{value:,} {LIMITS.get(name, name)}" for name, value in pairs(parameters)]
    return "says how much it takes: at most " + ", ".join(found) if found else "names no limit"


def _deliver_by(parameters: str) -> str:
    seconds = number(parameters)
    least = f", {seconds:,} s at least" if seconds else ""
    return f"a message may have a time by which it must be delivered{least}"


def _future_release(parameters: str) -> str:
    seconds = number(parameters.partition(" ")[0])
    most = f", {seconds:,} s at most" if seconds else ""
    return f"a message may be held back until later{most}"


def _priority(parameters: str) -> str:
    return "a message may have a priority" + (f", by profile {parameters}" if parameters else "")


#: What an extension is for: a text, or a function of its parameters.
MEANINGS: dict[str, Any] = {
    "8BITMIME": "text with bytes above 127 may be sent as it is (RFC 6152)",
    "ATRN": "hands queued mail to a client that logged in (RFC 2645)",
    "AUTH": "a client can log in, by these mechanisms (RFC 4954)",
    "BINARYMIME": "any bytes at all may be sent, with CHUNKING (RFC 3030)",
    "BURL": "a message may be fetched from an IMAP server (RFC 4468)",
    "CHECKPOINT": "a broken transaction can be taken up again (RFC 1845)",
    "CHUNKING": "messages are sent by their length, several in flight (RFC 3030)",
    "CONNEG": "tells what forms of content a recipient can take (RFC 4141)",
    "CONPERM": "content may be converted on the way (RFC 4141)",
    "DELIVERBY": lambda parameters: f"{_deliver_by(parameters)} (RFC 2852)",
    "DSN": "reports of delivery or failure can be asked for (RFC 3461)",
    "ENHANCEDSTATUSCODES": "replies say by numbers what is wrong, such as 5.1.1 (RFC 2034)",
    "ETRN": "starts the delivery of mail queued for a domain (RFC 1985)",
    "EXPN": "tells who is on a mailing list (RFC 5321)",
    "FUTURERELEASE": lambda parameters: f"{_future_release(parameters)} (RFC 4865)",
    "HELP": "answers HELP (RFC 5321)",
    "LIMITS": lambda parameters: f"{_limits(parameters)} (RFC 9422)",
    "MT-PRIORITY": lambda parameters: f"{_priority(parameters)} (RFC 6710)",
    "MTRK": "where a message is can be tracked (RFC 3885)",
    "NO-SOLICITING": "wants no unsolicited bulk mail (RFC 3865)",
    "PIPELINING": "commands need not wait for each reply: fewer round trips (RFC 2920)",
    "PIPECONNECT": "a known client need not even wait for the greeting (Exim)",
    "PIPE_CONNECT": "a known client need not even wait for the greeting (Exim)",
    "REQUIRETLS": "a message may be for TLS only, all the way (RFC 8689)",
    "RRVS": "delivers only if the mailbox has had its owner since a date (RFC 7293)",
    "SIZE": lambda parameters: f"{_size(parameters)} (RFC 1870)",
    "SMTPUTF8": "addresses and headers may be in any script (RFC 6531)",
    "STARTTLS": "the connection can be put under TLS (RFC 3207)",
    "SUBMITTER": "the responsible submitter can be named (RFC 4405, historic)",
    "TURN": "turns the connection round (RFC 821, obsolete: unsafe)",
    "UTF8SMTP": "an experiment before SMTPUTF8 (RFC 5336, obsolete)",
    "VERB": "shows the delivery as it goes on (Sendmail)",
    "ONEX": "one message a connection (Sendmail)",
    "VRFY": "answers whether an address exists (RFC 5321)",
    "X-ANONYMOUSTLS": "TLS among its own kind (Exchange)",
    "X-EXPS": "logs in by means of its own (Exchange)",
    "XCLIENT": "a trusted proxy can say who the real client is (Postfix)",
    "XFORWARD": "a filter can say where mail came from, for the log (Postfix)",
    "XVERP": "each recipient can have a return address of his own (Postfix)",
}


def explained(name: str, parameters: str) -> Extension:
    """Say what an extension is for."""
    meaning: Any = MEANINGS.get(name, "unknown to fastsmtp")
    if callable(meaning):
        meaning = meaning(parameters)
    return Extension(plain(name), plain(parameters), name in MEANINGS, plain(meaning))
