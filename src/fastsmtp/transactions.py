"""Mail transactions one after another on one connection, overlapped where the server allows.

These are operations as in operations.py, with two effects more: NEXT and
NEXT_IF_ANY ask the driver for a Transaction.  A transaction that is over is
itself yielded as an effect.
"""

from collections import deque

from .errors import SMTPProtocolError
from .operations import NEED_REPLY, Outcome, Send, Signal, finish_without_data, send
from .reply import Reply

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from .envelope import Envelope
    from .operations import Buffer, Operation

_new_reply = tuple.__new__  # Reply(code, text), without a call in Python

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
        if reply[0] != 250 and reply[0] < 400:
            raise _out_of_step(reply, "MAIL")
        self.mail = self.last = reply

    def take_rcpt(self, reply: "Reply") -> None:
        """Take the reply to the next RCPT."""
        if 300 <= reply[0] < 400:
            raise _out_of_step(reply, "RCPT")
        self.last = reply
        self.rcpts.append(reply)
        # By the first digit (RFC 5321, section 4.3.2): 252 may mean that it is delivered there.
        if reply[0] < 300 and self.mail[0] == 250:
            self.accepted += 1

    def take_data(self, reply: "Reply") -> None:
        """Take the reply to DATA."""
        if reply[0] != 354 and reply[0] < 400:
            raise _out_of_step(reply, "DATA")
        self.data = self.last = reply

    def take_final(self, reply: "Reply") -> None:
        """Take a reply to the message."""
        if reply[0] != 250 and reply[0] < 400:
            raise _out_of_step(reply, "the message")
        self.last = reply
        self.finals.append(reply)
        if reply[0] == 250:
            self.delivered = True

    def take_usual(self, texts: "list[bytes]") -> None:
        """Take that MAIL, RCPTs and DATA went well, with these texts."""
        mail, *rcpts, data = texts
        self.take_mail(Reply(250, mail))
        for rcpt in rcpts:
            self.take_rcpt(Reply(250, rcpt))
        self.take_data(Reply(354, data))

    def take_all(self, final: "Reply", count: int) -> None:
        """Take that a message was accepted for all recipients."""
        self.take_usual([b""] * (count + 2))
        self.take_final(final)

    @property
    def has_354(self) -> bool:
        """Whether the server waits for a message."""
        return self.data is not None and self.data[0] == 354

    @property
    def is_ready(self) -> bool:
        """Whether the server waits for a message, and has a recipient for it."""
        return self.accepted > 0 and self.has_354

    @property
    def replies(self) -> int:
        """How many replies were taken, RSET's among them."""
        return 1 + hasattr(self, "mail") + len(self.rcpts) + len(self.finals)

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

    *commands* is MAIL and the RCPTs, *count* of them; *envelope* is the same
    one by one, for servers without PIPELINING.  *payload* is what
    codec.data_payload() made or, if the message is to go by BDAT, the message
    as it is.  *octets* is the message's size as SIZE has it.  With *lmtp* each
    recipient that was accepted has a reply of its own (RFC 2033, section 4.2).
    """

    __slots__ = (
        "_outcome", "commands", "committed", "count", "envelope", "final", "job", "lmtp",
        "octets", "payload",
    )  # fmt: skip

    def __init__(
        self,
        commands: bytes,
        count: int,
        payload: "Sequence[Buffer]",
        octets: int,
        *,
        envelope: "Envelope | None" = None,
        lmtp: bool = False,
    ) -> None:
        self.commands = commands
        self.count = count
        self.payload = payload
        self.octets = octets
        self.envelope = envelope
        self.lmtp = lmtp
        #: The driver's own: whose transaction it is.
        self.job: Any = None
        #: Set by the driver: the message's last octet was handed to the network.
        self.committed = False
        #: The reply to the message, if all went as it usually does: see `outcome`.
        self.final: Reply | None = None
        self._outcome: StrictOutcome | None = None

    @property
    def outcome(self) -> StrictOutcome:
        """How it went, as far as it did not go as usual: all of it accepted."""
        if self._outcome is None:
            self._outcome = StrictOutcome()
        return self._outcome

    @property
    def may_be_taken(self) -> bool:
        """Whether the server can have taken the message, though it has not said so.

        It can if it may have had all of it (RFC 1047), for some recipient.
        """
        outcome = self.outcome
        refused = not outcome.accepted and len(outcome.rcpts) == self.count
        return self.committed and (outcome.delivered or not refused)


class Expect:
    """Read as many replies as there are *codes*, all at once, if they are just these.

    The driver waits until something is there; then it gives their texts, or
    None, and has taken none, if they are different or not all there yet.
    """

    __slots__ = ("codes",)

    def __init__(self, codes: "tuple[int, ...]") -> None:
        self.codes = codes


def _usual(before: int, count: int, after: "tuple[int, ...]") -> Expect:
    """Return what is expected for *count* recipients, and other commands around them."""
    key = (before, count, after)
    expected = _USUAL.get(key)
    if expected is None:
        expected = Expect((250,) * (before + count) + after)
        if count <= 100:  # more are rare, and would fill the memory
            _USUAL[key] = expected
    return expected


_USUAL: "dict[tuple[int, int, tuple[int, ...]], Expect]" = {}
_DATA_TAKEN, _MESSAGE_TAKEN = (354,), (250,)
_FINAL = Expect(_MESSAGE_TAKEN)
_RSET = b"RSET\r\n"
_DATA = b"DATA\r\n"


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
        if following is None:
            flight = (_RSET, transaction.commands, _DATA)[0 if reset else 1 :]
            yield Send(flight, transaction.count + 2 + reset, "MAIL")
        following = None
        texts = None if reset else (yield _usual(1, transaction.count, _DATA_TAKEN))
        if texts is None or transaction.lmtp:
            yield from _take_envelope(transaction, texts, reset)
        reset = texts is None and not transaction.outcome.is_ready
        if not reset:
            replies = transaction.outcome.accepted if transaction.lmtp else 1
            payload = transaction.payload
            following = yield NEXT_IF_ANY
            if following is None:
                yield Send(payload, replies, ".")
            else:
                flight = (*payload, following.commands, _DATA)
                yield Send(flight, replies + following.count + 2, ".")
            final = None if texts is None or transaction.lmtp else (yield _FINAL)
            if final is None:
                yield from _take_finals(transaction, texts, replies)
            else:
                transaction.final = _new_reply(Reply, (250, final[0]))
        elif transaction.outcome.has_354:
            yield from finish_without_data(transaction.outcome, transaction.lmtp)
        yield transaction
        if transaction.final is None and transaction.outcome.closing:
            return False
    return True


def _take_envelope(
    transaction: Transaction, texts: "list[bytes] | None", reset: bool
) -> "Operation[None]":
    """Take the replies to MAIL, RCPTs and DATA, one by one, if they are not the usual *texts*."""
    outcome = transaction.outcome
    if texts is not None:
        outcome.take_usual(texts)
        return
    if reset:
        outcome.take_reset((yield NEED_REPLY))
        if outcome.closing:
            return
    yield from _take_recipients(transaction)
    if not outcome.closing:
        outcome.take_data((yield NEED_REPLY))


def _take_recipients(transaction: Transaction) -> "Operation[None]":
    outcome = transaction.outcome
    outcome.take_mail((yield NEED_REPLY))
    for _ in range(transaction.count):
        if not outcome.closing:
            outcome.take_rcpt((yield NEED_REPLY))


def _take_finals(
    transaction: Transaction, texts: "list[bytes] | None", replies: int
) -> "Operation[None]":
    """Take the replies to the message, one by one; *texts* are those to a usual envelope."""
    outcome = transaction.outcome
    if outcome.data is None and texts is not None:
        outcome.take_usual(texts)
    for _ in range(replies):
        # A 421 is what the rest have, too.
        outcome.take_final(outcome.last if outcome.closing else (yield NEED_REPLY))


def chunked(*, depth: int) -> "Operation[bool]":
    """Send whole messages by BDAT (RFC 3030), up to *depth* before the first one's reply.

    Each begins with RSET: what a refusal leaves open at the server would else
    have the next message's recipients added to it, under the wrong sender.
    Returns as one_by_one().
    """
    in_flight: deque[Transaction] = deque()
    closing = False
    while True:
        transaction = None
        if not closing:
            transaction = (yield NEXT_IF_ANY) if in_flight else (yield NEXT)
        if transaction is not None:
            in_flight.append(transaction)
            commands = b"%b%bBDAT %d LAST\r\n" % (
                _RSET, transaction.commands, transaction.octets,
            )  # fmt: skip
            yield Send((commands, *transaction.payload), transaction.count + 3, "BDAT")
            if len(in_flight) < depth:
                continue
        elif not in_flight:
            return not closing
        first = in_flight.popleft()
        texts = yield _usual(2, first.count, _MESSAGE_TAKEN)
        if texts is None:
            yield from _take_chunk(first)
        else:
            first.final = _new_reply(Reply, (250, texts[-1]))
        yield first
        if first.final is None and first.outcome.closing:
            # It has done with the mail; if it goes on all the same, what it says holds.
            closing = True
            for _ in range(first.count + 3 - first.outcome.replies):
                yield NEED_REPLY


def _take_chunk(transaction: Transaction) -> "Operation[None]":
    """Take the replies to RSET, MAIL, RCPTs and BDAT, one by one."""
    outcome = transaction.outcome
    outcome.take_reset((yield NEED_REPLY))
    if not outcome.closing:
        yield from _take_recipients(transaction)
    if not outcome.closing:
        outcome.take_chunk((yield NEED_REPLY))
