"""What became of a message: one Delivery for each, and their totals."""

import re
from collections import Counter
from typing import NamedTuple

from .reply import Reply

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: What a message can have come to, the best first.
STATUSES = ("accepted", "partial", "deferred", "rejected", "unknown", "not_sent")

# Where servers put the name they file a message under, in the reply to it.
# In this order: the first that fits.
_QUEUE_IDS = (
    r"queued as ([\w.-]+)",  # Postfix
    r"\b(?:Internal)?id=([\w-]+)",  # Exim, Exchange
    r"(?:^|\s)(?=\S*\d)([\w-]+) Message accepted",  # Sendmail, OpenSMTPD
    r"^(?:\d\.\d\.\d )?Ok:? (?=\S*\d)([\w.-]{8,})$",  # Amazon SES
    r"\bOK +\d+ (\S+) - gsmtp$",  # Gmail
    r"> (\S+) Saved$",  # Dovecot
)
_MOST_REASONS = 1000


class RecipientResult(NamedTuple):
    """What became of a message for one recipient.

    *status* is one of ``accepted``, ``deferred``, ``rejected``, ``unknown``
    and ``not_sent``, as in Delivery.  *reply* is the one that decided, None if
    none came.
    """

    address: str
    status: str
    reply: "Reply | None"


class Delivery(NamedTuple):
    """What became of a message.

    *status* is

    - ``accepted``: the server took it, for every recipient: it said 250 to it;
    - ``partial``: it took it for some of them;
    - ``deferred``: it refused it for now (a reply of 4xx);
    - ``rejected``: it refused it for good (5xx);
    - ``unknown``: all of it was sent, and the connection was lost before the
      reply (RFC 1047): sending it again may make it a double;
    - ``not_sent``: it was not offered, or not to the end: *error* tells why.

    What is ``deferred``, ``rejected`` or ``not_sent`` can be sent again without
    the danger of a double.
    """

    #: What was handed in.
    message: "Any"
    status: str
    #: One for each recipient, in the order of the message's.
    recipients: tuple[RecipientResult, ...]
    #: The last reply that decided, or None.
    reply: "Reply | None"
    #: How many transactions were begun for it.
    attempts: int
    #: The number of the connection that the last of them was on, from 1; 0 if none was.
    connection: int
    #: Seconds from being taken from the caller to this result.
    seconds: float
    #: Why it is ``not_sent`` or ``unknown``, else None.
    error: "Exception | None"

    @property
    def id(self) -> "Any":
        """The message's id: what Message was given, or a Message-ID field; else None."""
        if hasattr(self.message, "id"):
            return self.message.id
        return self.message["Message-ID"] if hasattr(self.message, "get_all") else None

    @property
    def queue_id(self) -> "str | None":
        """What the server files the message under, as far as its reply says so."""
        if self.reply is None or self.reply.code != 250:
            return None
        text = self.reply.text.decode("latin-1")
        for pattern in _QUEUE_IDS:
            if match := re.search(pattern, text, re.IGNORECASE):
                return match[1]
        return None

    @property
    def refused(self) -> "dict[str, Reply]":
        """The recipients that were refused, with the replies, as sendmail() returns them."""
        return {
            address: reply
            for address, status, reply in self.recipients
            if reply is not None and status in ("deferred", "rejected")
        }


def overall(results: "tuple[RecipientResult, ...]") -> str:
    """Return the status of a message from those of its recipients."""
    statuses = {result.status for result in results}
    if len(statuses) == 1:
        return statuses.pop()
    if "unknown" in statuses:
        return "unknown"
    if "accepted" in statuses:
        return "partial"
    return "not_sent" if "not_sent" in statuses or not statuses else "deferred"


class Totals:
    """What a Mailer has done so far.

    Its attributes grow while messages are sent and may be read at any time.
    """

    def __init__(self) -> None:
        #: Messages by status.
        self.counts: dict[str, int] = dict.fromkeys(STATUSES, 0)
        #: Recipients by status.
        self.recipients: dict[str, int] = dict.fromkeys(STATUSES, 0)
        del self.recipients["partial"]
        #: Octets of the messages that were accepted, wholly or in part.
        self.octets = 0
        #: Connections that were opened, to the end of their greeting and EHLO.
        self.connections = 0
        #: Why recipients were not accepted: (code, enhanced status code or
        #: None, text) of replies, and how many there were of each.
        self.replies: Counter[tuple[int, tuple[int, int, int] | None, str]] = Counter()
        #: What was learned about the server on the way, in words.
        self.notes: list[str] = []
        self._began = self._ended = 0.0

    def __repr__(self) -> str:
        counts = ", ".join(f"{status}={count}" for status, count in self.counts.items() if count)
        return f"<Totals: {counts or 'nothing yet'}>"

    @property
    def messages(self) -> int:
        """Messages that have their Delivery."""
        return sum(self.counts.values())

    @property
    def seconds(self) -> float:
        """Seconds from the first message to the last result."""
        return self._ended - self._began

    @property
    def rate(self) -> float:
        """Accepted messages a second."""
        taken = self.counts["accepted"] + self.counts["partial"]
        return taken / self.seconds if self.seconds else 0.0

    def add(self, delivery: Delivery, octets: int, now: float) -> None:
        """Count a delivery of a message of so many octets."""
        if not self._ended:
            self._began = now - delivery.seconds
        self._ended = now
        self.counts[delivery.status] += 1
        if delivery.status == "accepted":
            self.octets += octets
            self.recipients["accepted"] += len(delivery.recipients)
            return
        if delivery.status == "partial":
            self.octets += octets
        for _, status, reply in delivery.recipients:
            self.recipients[status] += 1
            if reply is not None and status != "accepted":
                self._note_reply(reply)

    def _note_reply(self, reply: Reply) -> None:
        """Count a reply under its text without what differs from message to message."""
        text = re.sub(r"<[^<>\s]*@[^<>\s]*>", "<...>", reply.text.decode("utf-8", "replace"))
        text = re.sub(r"\b(?=\w*\d)[\w-]{8,}\b", "...", text.replace("\n", " "))
        if enhanced := reply.enhanced:
            text = text.partition(" ")[2]
        key = (reply.code, enhanced, text)
        if key not in self.replies and len(self.replies) >= _MOST_REASONS:
            key = (reply.code, enhanced, "...")
        self.replies[key] += 1
