"""A message on its way: the transactions it takes, and what they come to.

Pure: no socket, no clock.  One message may take several transactions: where a
server limits recipients, where some are refused for now, and where a
connection is lost before the message can have been taken.
"""

from .delivery import Delivery, RecipientResult, overall
from .options import domain_of
from .outgoing import Message, addresses, outgoing, prepare

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from .options import Limits, Options
    from .outgoing import Server
    from .reply import Reply
    from .transactions import Transaction

#: Connections that may be lost under a message before it is given up.
MOST_LOSSES = 5

#: What a job wants next: nothing more, another transaction, or one after a while.
DONE, AGAIN, LATER = "done", "again", "later"

_TOO_MANY = (4, 5, 3)  # recipients, with 452: RFC 3463, section 3.6
_NO_LIMIT = 1 << 30
_new = tuple.__new__


class Job:
    """One message that was handed in, until it has its Delivery.

    *retries* is how often recipients that are refused for now are tried again;
    *report* is for the driver, who calls it with the Delivery.
    """

    # What differs from these for few is not written for each.
    attempts = 0
    losses = 0
    connection = 0
    octets = 0
    error: "Exception | None" = None
    reply: "Reply | None" = None
    message: "Message | None" = None
    #: The most recipients in one transaction, as the server has shown.
    group: "int | None" = None
    #: Recipients, by position, that need a transaction yet; None: all of them.
    waiting: "list[int] | None" = None
    #: Those that were refused for now, to be tried again after a while.
    postponed: "tuple[int, ...]" = ()
    #: Those of the transaction that is under way; None: all of them.
    positions: "list[int] | None" = None
    #: What is known so far; for those that are waiting, what came last.
    results: "dict[int, RecipientResult] | None" = None

    def __init__(
        self, handed_in: "Any", report: "Callable[[Delivery], object]", retries: int, began: float
    ) -> None:
        self.handed_in = handed_in
        self.report = report
        self.retries = retries
        self.began = began

    # -- before a transaction --

    def transaction(
        self,
        server: "Server",
        options: "Options | None" = None,
        limits: "Limits | None" = None,
        domains: "set[str] | None" = None,
    ) -> "Transaction | None":
        """Return the next transaction, for one server; None if it is not for this session.

        *options* are those of messages without their own.  *domains* are those
        that recipients had in the session so far: what *limits* counts.

        Raises what outgoing() and prepare() raise.
        """
        message = self.message
        if message is None:
            handed_in = self.handed_in
            self.message = message = (
                handed_in if type(handed_in) is Message else outgoing(handed_in)
            )
        recipients = message.recipients
        self.positions = None
        if limits is not None or self.waiting is not None or self.group is not None:
            self.positions = self._first_group(limits, domains)
            recipients = [recipients[position] for position in self.positions]
            if self.positions == [] and message.recipients:
                return None
        transaction = prepare(message, recipients, options, server)
        self.octets = transaction.octets
        transaction.job = self
        self.attempts += 1
        return transaction

    def _first_group(self, limits: "Limits | None", domains: "set[str] | None") -> "list[int]":
        """Return the recipients that the next transaction may have (RFC 9422), by position."""
        most = min(self.group or _NO_LIMIT, (limits and limits.rcpt_max) or _NO_LIMIT)
        most_domains = (limits and limits.rcpt_domain_max) or _NO_LIMIT
        domains = set() if domains is None else domains
        named = self._addresses()
        group: list[int] = []
        for position in self._all_waiting():
            domain = domain_of(named[position])
            if domain in domains or len(domains) < most_domains:
                domains.add(domain)
                group.append(position)
                if len(group) == most:
                    break
        return group

    def _addresses(self) -> "list[str]":
        return [] if self.message is None else addresses(self.message.recipients)

    # -- after it --

    def settle(self, transaction: "Transaction") -> str:
        """Take a transaction that is over; say what is to be done next."""
        if transaction.final is not None:
            transaction.outcome.take_all(transaction.final, transaction.count)
        last = transaction.outcome.last
        if last[0] == 421 and not transaction.outcome.delivered:
            return self._after_closing(transaction)
        return self._note(transaction)

    def accepted(self, final: "Reply", now: float) -> Delivery:
        """Return the result that nearly all have: all recipients accepted in one transaction."""
        results = tuple(
            [_new(RecipientResult, (to, "accepted", final)) for to in self._addresses()]
        )
        return _new(
            Delivery,
            (
                self.handed_in, "accepted", results, final, self.attempts, self.connection,
                now - self.began, None,
            ),
        )  # fmt: skip

    def lose(self, transaction: "Transaction", error: Exception, resend_unknown: bool) -> str:
        """Take that the connection went before a transaction was over."""
        self.error = error
        self.losses += 1
        if transaction.may_be_taken:
            return self._note(transaction, resend_unknown and self.losses < MOST_LOSSES)
        if self.losses < MOST_LOSSES:
            return AGAIN
        return self.give_up(error)

    def give_up(self, error: "Exception | None" = None) -> str:
        """Let what is waiting be: what the server has not refused is not sent."""
        self.error = error or self.error
        if self.message is None:
            try:
                self.message = outgoing(self.handed_in)
            except Exception as problem:  # it has no recipients to name, then
                self.error = self.error or problem
        results = self._results()
        for position, address in enumerate(self._addresses()):
            if position not in results:
                results[position] = RecipientResult(address, "not_sent", None)
        return DONE

    def delivery(self, now: float) -> Delivery:
        """Return the result, *now* being the time in seconds."""
        known = self._results()
        results = tuple([known[position] for position in sorted(known)])
        status = overall(results)
        error = self.error if status in ("not_sent", "unknown") else None
        return Delivery(
            self.handed_in, status, results, self.reply, self.attempts, self.connection,
            now - self.began, error,
        )  # fmt: skip

    def _after_closing(self, transaction: "Transaction") -> str:
        """Take a 421: it is about the connection rather than about the message."""
        self.losses += 1
        if self.losses < MOST_LOSSES:
            return AGAIN
        named, results = self._addresses(), self._results()
        for position in self._under_way():
            self.reply = transaction.outcome.last
            results[position] = RecipientResult(named[position], "deferred", self.reply)
        return self.give_up()

    def _note(self, transaction: "Transaction", resend_unknown: bool = False) -> str:
        """Note each recipient's result; say whether some need a further transaction."""
        named, results = self._addresses(), self._results()
        again: list[int] = []
        later: list[int] = []
        if transaction.outcome.delivered:
            self.reply = transaction.outcome.last
        rcpts = transaction.outcome.rcpts
        judgements = zip(self._under_way(), _judgements(transaction), strict=True)
        for number, (position, (status, reply)) in enumerate(judgements):
            results[position] = RecipientResult(named[position], status, reply)
            if not transaction.outcome.delivered:
                self.reply = reply
            if status == "deferred":
                is_to_rcpt = number < len(rcpts) and reply is rcpts[number]
                if transaction.outcome.accepted and is_to_rcpt and _is_for_the_number(reply):
                    again.append(position)
                elif self.retries:
                    later.append(position)
            elif status == "unknown" and resend_unknown:
                again.append(position)
        if again and transaction.outcome.delivered:
            self.group = transaction.outcome.accepted
        return self._go_on(again, later)

    def _go_on(self, again: "list[int]", later: "list[int]") -> str:
        under_way = set(self._under_way())
        left = [position for position in self._all_waiting() if position not in under_way]
        self.postponed = (*self.postponed, *later)
        self.waiting = sorted(left + again)
        if self.waiting:
            return AGAIN
        if self.postponed:
            self.waiting, self.postponed = sorted(self.postponed), ()
            self.retries -= 1
            return LATER
        return DONE

    def _results(self) -> "dict[int, RecipientResult]":
        if self.results is None:
            self.results = {}
        return self.results

    def _all_waiting(self) -> "Iterable[int]":
        return range(len(self._addresses())) if self.waiting is None else self.waiting

    def _under_way(self) -> "Iterable[int]":
        return self._all_waiting() if self.positions is None else self.positions


def _judgements(transaction: "Transaction") -> "Iterator[tuple[str, Reply | None]]":
    """Yield for each recipient its status and the reply that decided."""
    outcome = transaction.outcome
    finals = iter(outcome.finals)
    final = None if transaction.lmtp else next(finals, None)
    for position in range(transaction.count):
        reply = outcome.refusal
        if reply is None and position < len(outcome.rcpts):
            reply = outcome.rcpts[position]
            if reply[0] < 400:
                reply = next(finals, None) if transaction.lmtp else final
                if outcome.data is not None and outcome.data[0] >= 400:
                    reply = outcome.data
        if outcome.delivered and not outcome.accepted:
            reply = None  # it took what nobody may have sent: anything can be
        yield _status(reply), reply


def _status(reply: "Reply | None") -> str:
    if reply is None:
        return "unknown"
    if reply[0] < 400:
        return "accepted"
    return "deferred" if reply[0] < 500 else "rejected"


def _is_for_the_number(reply: "Reply | None") -> bool:
    """Say whether a recipient was refused for coming after too many others."""
    return reply is not None and reply[0] == 452 and reply.enhanced in (None, _TOO_MANY)
