"""What a client does, as generators: greet, starttls, login, send, quit.

An operation yields what it needs: a Send, NEED_REPLY, Replies, or START_TLS.
The driver does that, on whatever it has for a connection, and resumes it with
the reply after NEED_REPLY, a list after Replies and after a Send that reads
replies, too, with None otherwise.  A driver that fails throws the exception
into the operation, which may know better than to let it pass.
"""

from . import codec
from .envelope import command_line
from .errors import (
    SMTPAuthenticationError,
    SMTPConnectError,
    SMTPException,
    SMTPHeloError,
    SMTPServerDisconnected,
)
from .protocol import parse_extensions
from .reply import without_secrets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence
    from typing import Any, TypeVar

    from .auth import Responder
    from .envelope import Envelope, Flight
    from .reply import Reply

    T = TypeVar("T")
    Buffer = bytes | bytearray | memoryview
    Operation = Generator[Any, Any, T]


class Send:
    """Write *buffers*, which will bring *replies* replies.

    *verb* names what is written: the command's verb, "" for an answer to a
    challenge, "." for message data.  With *most*, read replies then, too, as
    after Replies(most).
    """

    __slots__ = ("buffers", "most", "replies", "verb")

    def __init__(self, buffers: "Sequence[Buffer]", replies: int, verb: str, most: int = 0) -> None:
        self.buffers = buffers
        self.replies = replies
        self.verb = verb
        self.most = most


class Replies:
    """Read the replies that are there: one at least, *most* at most, and none after a 421."""

    __slots__ = ("most",)

    def __init__(self, most: int) -> None:
        self.most = most


class Signal:
    """An effect that says all by being itself."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


#: Read one reply.
NEED_REPLY = Signal("NEED_REPLY")
#: Negotiate TLS on the connection.
START_TLS = Signal("START_TLS")


def command(line: bytes, verb: str) -> "Operation[Reply]":
    """Send one command and return its reply."""
    yield Send((line,), 1, verb)
    reply: Reply = yield NEED_REPLY
    return reply


# -- the session --------------------------------------------------------------


def greet(name: str, *, verb: str = "EHLO") -> "Operation[dict[str, str] | None]":
    """Read the greeting and say EHLO, or HELO if that is refused.

    *name* is the client's domain or address literal, *verb* EHLO or LHLO.
    Returns the server's extensions, or None after HELO.

    Raises SMTPConnectError for a greeting other than 220, SMTPHeloError if the
    server takes neither.  RFC 5321, sections 3.1 and 3.2.
    """
    greeting: Reply = yield NEED_REPLY
    if greeting.code != 220:
        raise SMTPConnectError(*greeting)
    return (yield from hello(name, verb=verb))


def hello(name: str, *, verb: str = "EHLO") -> "Operation[dict[str, str] | None]":
    """Say EHLO, or HELO if that is refused: see greet()."""
    reply = yield from command(command_line(f"{verb} {name}"), verb)
    if reply.code == 250:
        return parse_extensions(reply.text)
    if reply.code != 421 and verb == "EHLO":
        reply = yield from command(command_line(f"HELO {name}"), "HELO")
        if reply.code == 250:
            return None
    raise SMTPHeloError(*reply)


def starttls() -> "Operation[Reply]":
    """Ask for TLS and, if the server agrees, start it (RFC 3207); return the reply."""
    reply = yield from command(b"STARTTLS\r\n", "STARTTLS")
    if reply.code == 220:
        yield START_TLS
    return reply


def quit_session() -> "Operation[Reply]":
    """Say QUIT and return the reply (RFC 5321, section 4.1.1.10)."""
    return (yield from command(b"QUIT\r\n", "QUIT"))


# -- authentication -----------------------------------------------------------


def login(mechanisms: "Iterable[tuple[str, Responder]]") -> "Operation[Reply]":
    """Try mechanisms in turn until one succeeds; return its reply.

    A 535 ends it: the credentials were looked at, and asking again with the
    same counts as an attack in many places.

    Raises SMTPAuthenticationError, the last one, or SMTPException if there was
    no mechanism to try.
    """
    refused: SMTPException = SMTPException("No suitable authentication method found.")
    for name, respond in mechanisms:
        try:
            return (yield from authenticate(name, respond))
        except SMTPAuthenticationError as error:
            refused = error
            if error.smtp_code in (421, 535):
                break
    raise refused


def authenticate(
    mechanism: str,
    respond: "Responder",
    *,
    initial_response: bool = True,
    max_challenges: int = 5,
) -> "Operation[Reply]":
    """Go through one AUTH exchange and return the reply that ended it well.

    Raises SMTPAuthenticationError if it did not, with what the server told in
    a challenge before (JSON about a token, SCRAM's server-error), and
    SMTPException if the server goes on with challenges.  RFC 4954, section 4.

    A server that did not prove itself to a responder with *distrust* has not
    succeeded either, whatever it says.  The error has the code 535 then, for
    no other mechanism should give it the password.  What was answered is shown
    in no error, though the server repeat it.
    """
    said: list[bytes] = []
    try:
        return (yield from _exchange(mechanism, respond, said, initial_response, max_challenges))
    except SMTPAuthenticationError as error:
        code, text = error.smtp_code, without_secrets(error.smtp_error, said)
    # Not in the handler: the error as it came would be this one's __context__.
    raise SMTPAuthenticationError(code, text)


def _exchange(
    mechanism: str,
    respond: "Responder",
    said: "list[bytes]",
    initial_response: bool,
    max_challenges: int,
) -> "Operation[Reply]":
    encoded = respond(None) if initial_response else None
    line = mechanism.encode("ascii")
    if encoded is not None:
        said.append(encoded)
        line += b" " + (encoded or b"=")  # RFC 4954: "=" is a response without octets
    reply = yield from command(b"AUTH " + line + b"\r\n", "AUTH")
    challenges = 0 if encoded is None else 1
    told = b""
    while reply.code == 334:
        challenges += 1
        told, answer = _answer(reply.text, respond)
        if answer is None:
            reply = yield from command(b"*\r\n", "")
            _check_proof(respond, reply)
            raise SMTPAuthenticationError(reply.code, reply.text + b"\nAUTH was cancelled")
        said.append(answer)
        reply = yield from command(answer + b"\r\n", "")
        if challenges > max_challenges:
            last = reply.code, without_secrets(reply.text, said)
            raise SMTPException(f"Server AUTH mechanism infinite loop. Last response: {last!r}")
    if reply.code in (235, 503):
        _check_proof(respond, reply)
        return reply
    if told.startswith((b"{", b"e=")):
        raise SMTPAuthenticationError(reply.code, reply.text + b"\n" + told)
    raise SMTPAuthenticationError(*reply)


def _answer(text: bytes, respond: "Responder") -> "tuple[bytes, bytes | None]":
    """Return a challenge, decoded, and the answer to it; None if it is not base64."""
    try:
        challenge = codec.decode_challenge(text)
    except ValueError:
        return text, None
    return challenge, respond(challenge)


def _check_proof(respond: "Responder", reply: "Reply") -> None:
    """Raise SMTPAuthenticationError if the server had to prove itself, and has not."""
    distrust = getattr(respond, "distrust", "")
    if distrust:
        raise SMTPAuthenticationError(535, f"{distrust}\n{reply.code} ".encode() + reply.text)


# -- mail ---------------------------------------------------------------------


#: The replies to RCPT that take the recipient (RFC 5321, sections 3.3 and 3.4).
ACCEPTED = (250, 251)


class Outcome:
    """How a transaction went.

    *mail* is the reply to MAIL, *rcpts* those to RCPT as far as they came,
    *data* the one to DATA if it came to that, and *finals* those after the
    final dot: one, or with LMTP one per accepted recipient.
    """

    __slots__ = ("accepted", "data", "delivered", "finals", "last", "mail", "must_close", "rcpts")

    def __init__(self) -> None:
        self.mail: Reply
        self.rcpts: list[Reply] = []
        self.data: Reply | None = None
        self.finals: list[Reply] = []
        #: How many recipients the server took at RCPT.
        self.accepted = 0
        #: Whether the server took the message, for one recipient at least.
        self.delivered = False
        #: The last reply that mattered.
        self.last: Reply
        #: The connection cannot be brought back into step without sending mail.
        self.must_close = False

    def take_mail(self, reply: "Reply") -> None:
        """Take the reply to MAIL."""
        self.mail = self.last = reply

    def take_rcpt(self, reply: "Reply") -> None:
        """Take the reply to the next RCPT."""
        self.last = reply
        self.rcpts.append(reply)
        if reply.code in ACCEPTED and self.mail.code == 250:
            self.accepted += 1

    def take_flight(self, replies: "list[Reply]", count: int) -> None:
        """Take the next replies to a flight: to MAIL, RCPT for *count* recipients, and DATA."""
        rest = replies
        if not hasattr(self, "mail"):
            self.take_mail(rest[0])
            rest = rest[1:]
        rcpts = rest[: count - len(self.rcpts)]
        self.rcpts += rcpts
        if self.mail.code == 250:
            self.accepted += sum([reply[0] in ACCEPTED for reply in rcpts])
        if len(rest) > len(rcpts):
            self.data = rest[-1]
        self.last = replies[-1]

    def take_data(self, reply: "Reply") -> None:
        """Take the reply to DATA."""
        self.data = self.last = reply

    def take_final(self, reply: "Reply") -> None:
        """Take a reply to the message."""
        self.last = reply
        self.finals.append(reply)
        if reply.code == 250:
            self.delivered = True

    @property
    def closing(self) -> bool:
        """Whether the connection is at its end: by the server's word, or by ours."""
        return self.must_close or self.last.code == 421


def send(
    envelope: "Envelope | Flight",
    payload: "Sequence[Buffer]",
    *,
    pipelining: bool = False,
    lmtp: bool = False,
    outcome: "Outcome | None" = None,
) -> "Operation[Outcome]":
    """Go through one mail transaction; return how it went, refusals included.

    *payload* is what codec.data_payload() made.  With *pipelining* MAIL, all
    RCPTs and DATA leave in one flight (RFC 2920), and the outcome is the one
    that the same commands would have one at a time.  With *lmtp* each accepted
    recipient has a reply of its own after the data (RFC 2033, section 4.2).

    A refused recipient does not stop the others.  What is refused as a whole
    is followed by RSET, so that no transaction stays open, but after a 421.
    What comes is written to *outcome*, if given, as it comes.
    """
    if outcome is None:
        outcome = Outcome()
    return (_in_a_flight if pipelining else _in_steps)(envelope, payload, lmtp, outcome)


def _in_steps(
    envelope: "Any", payload: "Sequence[Buffer]", lmtp: bool, outcome: Outcome
) -> "Operation[Outcome]":
    outcome.take_mail((yield from command(envelope.mail, "MAIL")))
    if outcome.mail.code == 250:
        for line in envelope.rcpts:
            outcome.take_rcpt((yield from command(line, "RCPT")))
            if outcome.closing:
                return outcome
    if outcome.accepted:
        outcome.take_data((yield from command(envelope.verbs.data, "DATA")))
    yield from _finish(outcome, envelope, payload, lmtp)
    return outcome


def _in_a_flight(
    envelope: "Envelope | Flight", payload: "Sequence[Buffer]", lmtp: bool, outcome: Outcome
) -> "Operation[Outcome]":
    left = envelope.count + 2
    replies: list[Reply] = yield Send((envelope.flight,), left, "MAIL", left)
    while True:
        outcome.take_flight(replies, envelope.count)
        left -= len(replies)
        if outcome.closing:
            return outcome
        if not left:
            break
        replies = yield Replies(left)
    yield from _finish(outcome, envelope, payload, lmtp)
    return outcome


def _finish(
    outcome: Outcome, envelope: "Envelope | Flight", payload: "Sequence[Buffer]", lmtp: bool
) -> "Operation[None]":
    """Send the message if DATA was taken, and RSET if the message was not."""
    if outcome.data is not None and outcome.data.code == 354:
        if outcome.accepted:
            replies = outcome.accepted if lmtp else 1
            yield Send(payload, replies, ".")
            for _ in range(replies):
                # A 421 is what the rest have, too.
                outcome.take_final(outcome.last if outcome.closing else (yield NEED_REPLY))
        else:
            yield from finish_without_data(outcome, lmtp)
    elif outcome.data is not None and 200 <= outcome.data.code < 300:
        outcome.must_close = True  # nothing answers DATA so: it answers something else
    if not outcome.delivered and not outcome.closing:
        yield from _reset(envelope, outcome)


def finish_without_data(outcome: Outcome, lmtp: bool) -> "Operation[None]":
    """After a flight in which DATA alone succeeded: send a single dot (RFC 2920, section 3.1).

    Nothing is delivered by it, for there is no recipient.  Where the server
    thinks otherwise (it said 252 to one, or took one into a transaction that
    was open before our MAIL), or may not answer (LMTP: RFC 2033, section 4.2,
    would have had it refuse DATA), the connection goes.
    """
    if lmtp or any(200 <= reply.code < 300 for reply in outcome.rcpts):
        outcome.must_close = True
        return
    yield Send((b".\r\n",), 1, ".")
    reply: Reply = yield NEED_REPLY
    if reply.code == 421:
        outcome.last = reply


def _reset(envelope: "Envelope | Flight", outcome: Outcome) -> "Operation[None]":
    try:
        reply = yield from command(envelope.verbs.rset, "RSET")
    except SMTPServerDisconnected:
        return  # the next command will say so; what was refused matters more
    if reply.code == 421:
        outcome.last = reply
    elif reply.code in (354, 503, 554):
        outcome.must_close = True  # the answer to an earlier DATA (RFC 5321, section 3.3)
