"""How fast to send, and how soon to connect again: clocks are handed in, as seconds."""

from random import random as _uniform

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_NEVER = float("-inf")


class Rate:
    """Permits at an even pace: no burst, neither at the beginning nor after a pause.

    *messages_per_second* is the rate, a finite number above 0.  A taker that
    comes late may make up for it, but for no more than TOLERANCE, so that what
    timers are late by does not lower the rate.  Within any time there are no
    more than ``rate * (seconds + TOLERANCE) + 1`` permits.

    Raises ValueError or TypeError for what is no rate.
    """

    #: Seconds of lateness that may be made up for.
    TOLERANCE = 0.01
    #: Seconds of lateness from which on it was a pause, which is not made up for at all.
    PAUSE = 1.0

    __slots__ = ("_due", "_interval", "messages_per_second")

    def __init__(self, messages_per_second: float) -> None:
        number: object = messages_per_second
        if not isinstance(number, (int, float)) or isinstance(number, bool):
            raise TypeError(f"messages_per_second={number!r} is not a number")
        if not 0 < number < float("inf"):
            raise ValueError(f"messages_per_second={number!r} is not above 0 and finite")
        self.messages_per_second = messages_per_second
        self._interval = 1 / messages_per_second
        self._due = _NEVER  # when the next permit is

    def take(self, now: float) -> bool:
        """Take a permit, if there is one at the time *now*; say whether there was."""
        late = now - self._due
        if late < 0:
            return False
        # The generic cell rate algorithm (ITU-T I.371), its tolerance spent on lateness only.
        if late <= self.TOLERANCE:
            self._due += self._interval
        elif late <= self.PAUSE:
            self._due = now - self.TOLERANCE + self._interval
        else:
            self._due = now + self._interval
        return True

    def wait(self, now: float) -> float:
        """Return how many seconds after *now* the next permit is; 0.0 if it is there."""
        return max(0.0, self._due - now)


class Backoff:
    """How many connections to have, and when to open the next one.

    *connections* is the most there may ever be.  Trouble halves what is allowed
    and puts a pause before the next attempt, from *base* seconds, doubled from
    one trouble to the next, to *longest*; a random part of up to half of it is
    left out, lest all clients come back at once.  Success ends the doubling,
    and gives a connection back for each RECOVERY seconds without trouble.
    *random* gives numbers from 0.0 to 1.0.

    Raises ValueError for no connections, or times out of order.
    """

    #: Seconds without trouble after which one connection more is allowed.
    RECOVERY = 10.0

    __slots__ = (
        "_ceiling",
        "_changed",
        "_random",
        "base",
        "connections",
        "failures",
        "limit",
        "longest",
        "not_before",
    )

    def __init__(
        self,
        connections: int,
        *,
        random: "Callable[[], float]" = _uniform,
        base: float = 1.0,
        longest: float = 60.0,
    ) -> None:
        if connections < 1:
            raise ValueError(f"connections={connections!r} is not at least 1")
        if not 0 < base <= longest < float("inf"):
            raise ValueError(f"base={base!r} and longest={longest!r} are not 0 < base <= longest")
        self.connections = connections
        self.base = base
        self.longest = longest
        #: How many live connections are allowed now.
        self.limit = connections
        #: The time before which none may be opened.
        self.not_before = _NEVER
        #: Troubles in a row.
        self.failures = 0
        self._random = random
        self._ceiling = base  # of the next pause
        self._changed = _NEVER  # when the limit last changed, or trouble was over

    def failed(self, now: float) -> None:
        """Take note of a connection refused, or ended by 421 or 454, at the time *now*.

        Before not_before it tells nothing new: no connection has been opened
        since the trouble before, which is its own.  A server that stops ends
        all connections at once, and that is one trouble.
        """
        if now < self.not_before:
            return
        self.failures += 1
        self.limit = max(1, self.limit // 2)
        self.not_before = now + self._ceiling * (0.5 + self._random() / 2)
        self._ceiling = min(self._ceiling * 2, self.longest)
        self._changed = self.not_before

    def succeeded(self, now: float) -> None:
        """Take note of a connection established, or a message accepted, at the time *now*."""
        self.failures = 0
        self._ceiling = self.base
        if self.limit < self.connections and now - self._changed >= self.RECOVERY:
            self.limit += 1
            self._changed = now
