"""Mail transactions one after another on one connection, overlapped where the server allows.

These are operations as in operations.py, with two effects more: NEXT and
NEXT_IF_ANY ask the driver for a Transaction.  A transaction that is over is
itself yielded as an effect.
"""

from collections import deque

from .errors import SMTPProtocolError
from .operations import ACCEPTED, NEED_REPLY, Outcome, Send, Signal, finish_without_data, send

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from .envelope import Envelope
    from .operations import Buffer, Operation
    from .reply import Reply

#: Give the next transaction, whenever there is one; None ends the connection.
NEXT = Signal("NEXT")
#: Give the next transaction if there is one now, else None.
NEXT_IF_ANY = Signal("NEXT_IF_ANY")


class StrictOutcome(Outcome):
    """An outcome that takes no reply for what it is not.

    A reply that cannot answer what was sent says that the server is out of
    step: what it says next may be about another message.  Raises
    SMTPProtocolError for one.
    """

    __slots__ = ()

    @property
    def refusal(self) -> "Reply | None":
        """The reply that refused the envelope as a whole, if one did."""
        mail: Reply | None = getattr(self, "mail", None)
        return None if mail is None or mail[0] == 250 else mail

    def take_mail(self, reply: "Reply") -> None:
        """Take the reply to MAIL."""
        self.mail = self.last = reply
        if reply[0] != 250 and reply[0] < 400:
            raise _out_of_step(reply, "MAIL")

    def take_rcpt(self, reply: "Reply") -> None:
        """Take the reply to the next RCPT."""
        self.last = reply
        self.rcpts.append(reply)
        code = reply[0]
        if code in ACCEPTED:
            if self.mail[0] == 250:
                self.accepted += 1
        elif code < 400 and code != 252:
            raise _out_of_step(reply, "RCPT")

    def take_data(self, reply: "Reply") -> None:
        """Take the reply to DATA."""
        self.data = self.last = reply
        if reply[0] != 354 and reply[0] < 400:
            raise _out_of_step(reply, "DATA")

    def take_final(self, reply: "Reply") -> None:
        """Take a reply to the message."""
        self.last = reply
        if reply[0] == 250:
            self.delivered = True
        elif reply[0] < 400:
            raise _out_of_step(reply, "the message")
        self.finals.append(reply)

    def take_chunk(self, reply: "Reply") -> None:
        """Take the reply to BDAT LAST."""
        self.take_final(reply)
        if self.delivered and not self.accepted:
            raise _out_of_step(reply, "a message without recipients")

    def take_reset(self, reply: "Reply") -> None:
        """Take the reply to an RSET that was sent before."""
        self.last = reply
        if reply[0] not in (250, 421):
            raise _out_of_step(reply, "RSET")


def _out_of_step(reply: "Reply", what: str) -> SMTPProtocolError:
    return SMTPProtocolError(f"the server answered {what} with {reply[0]} {reply[1]!r}")


class Transaction:
    """One mail transaction: what is to be sent, and how it went.

    *payload* is what codec.data_payload() made or, if the message is to go by
    BDAT, the message as it is.  *octets* is the message's size as SIZE has it.
    *job* is the driver's own.  With *lmtp* each recipient that was accepted has
    a reply of its own (RFC 2033, section 4.2).
    """

    __slots__ = ("committed", "envelope", "job", "lmtp", "octets", "outcome", "payload")

    def __init__(
        self,
        envelope: "Envelope",
        payload: "Sequence[Buffer]",
        octets: int,
        job: "Any" = None,
        *,
        lmtp: bool = False,
    ) -> None:
        self.envelope = envelope
        self.payload = payload
        self.octets = octets
        self.job = job
        self.lmtp = lmtp
        self.outcome = StrictOutcome()
        #: Set by the driver: the message's last octet was handed to the network.
        self.committed = False

    @property
    def may_be_taken(self) -> bool:
        """Whether the server can have taken the message, though it has not said so.

        It can if it may have had all of it (RFC 1047), for some recipient.
        """
        outcome = self.outcome
        refused = not outcome.accepted and len(outcome.rcpts) == len(self.envelope.rcpts)
        return self.committed and not refused


def one_by_one() -> "Operation[bool]":
    """Send one command at a time, for servers without PIPELINING.

    Returns whether the connection is in step, for QUIT.
    """
    while transaction := (yield NEXT):
        outcome, lmtp = transaction.outcome, transaction.lmtp
        yield from send(transaction.envelope, transaction.payload, lmtp=lmtp, outcome=outcome)
        yield transaction
        if outcome.closing:
            return False
    return True


def overlapped() -> "Operation[bool]":
    """Send each message together with the next one's MAIL, RCPTs and DATA (RFC 2920).

    So a message costs one round trip.  What a refused envelope leaves open is
    closed by an RSET that leaves with the next one.  Returns as one_by_one().
    """
    following: Transaction | None = None
    reset = False
    while transaction := (following or (yield NEXT)):
        outcome, envelope = transaction.outcome, transaction.envelope
        if following is None:
            flight = envelope.verbs.rset + envelope.flight if reset else envelope.flight
            yield Send((flight,), len(envelope.rcpts) + 2 + reset, "MAIL")
            if reset:
                outcome.take_reset((yield NEED_REPLY))
        following = None
        if not (reset and outcome.closing):
            yield from _take_envelope(transaction)
        if not outcome.closing:
            outcome.take_data((yield NEED_REPLY))
            if outcome.accepted and outcome.data.code == 354:
                replies = outcome.accepted if transaction.lmtp else 1
                yield Send(transaction.payload, replies, ".")
                following = yield NEXT_IF_ANY
                if following is not None:
                    envelope = following.envelope
                    yield Send((envelope.flight,), len(envelope.rcpts) + 2, "MAIL")
                for _ in range(replies):
                    outcome.take_final(outcome.last if outcome.closing else (yield NEED_REPLY))
            elif outcome.data.code == 354:
                yield from finish_without_data(outcome, transaction.lmtp)
        reset = not outcome.finals
        yield transaction
        if outcome.closing:
            return False
    return True


def chunked(*, depth: int) -> "Operation[bool]":
    """Send whole messages by BDAT (RFC 3030), up to *depth* before the first one's reply.

    Each begins with RSET: what a refusal leaves open at the server would else
    have the next message's recipients added to it, under the wrong sender.
    Returns as one_by_one().
    """
    in_flight: deque[Transaction] = deque()
    while True:
        transaction = (yield NEXT_IF_ANY) if in_flight else (yield NEXT)
        if transaction is not None:
            in_flight.append(transaction)
            yield _chunk(transaction)
            if len(in_flight) < depth:
                continue
        elif not in_flight:
            return True
        first = in_flight.popleft()
        outcome = first.outcome
        outcome.take_reset((yield NEED_REPLY))
        if not outcome.closing:
            yield from _take_envelope(first)
        if not outcome.closing:
            outcome.take_chunk((yield NEED_REPLY))
        yield first
        if outcome.closing:
            return False


def _take_envelope(transaction: Transaction) -> "Operation[None]":
    """Take the replies to MAIL and RCPT."""
    outcome = transaction.outcome
    outcome.take_mail((yield NEED_REPLY))
    for _ in transaction.envelope.rcpts:
        if outcome.last[0] == 421:
            return
        outcome.take_rcpt((yield NEED_REPLY))


def _chunk(transaction: Transaction) -> Send:
    envelope = transaction.envelope
    commands = b"".join((envelope.verbs.rset, envelope.mail, *envelope.rcpts))
    buffers = (b"%bBDAT %d LAST\r\n" % (commands, transaction.octets), *transaction.payload)
    return Send(buffers, len(envelope.rcpts) + 3, "BDAT")
