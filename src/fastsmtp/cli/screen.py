"""What ``fastsmtp send`` shows: the progress, and the table at the end."""

import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .exits import printable
from .results import STATUSES

if TYPE_CHECKING:
    from ..delivery import Totals

REFRESHES = 8  # a second
LINE_SECONDS = 5.0
#: What the rate is taken over, in seconds.
RATE_SECONDS = 10.0
MOST_ROWS = 20
MOST_REASONS = 1000
STYLES = {
    "accepted": "green",
    "partial": "yellow",
    "deferred": "yellow",
    "rejected": "red",
    "unknown": "bold red",
    "not_sent": "red",
    "skipped": "dim",
    "under way": "dim",
}


class Tally:
    """The numbers of a run as it goes.

    *available* is how many messages the sources have, None if nobody has
    counted; *limit* how many are to be sent at most.
    """

    def __init__(self, available: int | None, limit: int | None) -> None:
        self.available = available
        self.limit = limit
        self.counts: dict[str, int] = dict.fromkeys(STATUSES, 0)
        self.skipped = 0
        self.taken = 0
        #: Why messages were not sent, and how many for each reason.
        self.errors: Counter[str] = Counter()
        self.stopping = False
        self.ended = False
        self.began = time.monotonic()
        self._samples: deque[tuple[float, int]] = deque([(self.began, 0)])

    def count(self, status: str, error: str | None = None) -> None:
        """Count a message that has its result."""
        self.counts[status] += 1
        if error is not None:
            if error not in self.errors and len(self.errors) >= MOST_REASONS:
                error = "other errors"
            self.errors[error] += 1

    @property
    def finished(self) -> int:
        """Messages that have their result."""
        return sum(self.counts.values())

    @property
    def total(self) -> int | None:
        """Messages that this run has to send, as far as it is known."""
        if self.available is None:
            return None
        # A folder may have got more since it was counted.
        left = max(self.available - self.skipped, self.taken)
        return left if self.limit is None else min(left, self.limit)

    @property
    def seconds(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self.began

    def rate(self) -> float | None:
        """Return messages a second of late, None before there is anything to say."""
        now = time.monotonic()
        if now - self._samples[-1][0] > 0.1:
            self._samples.append((now, self.finished))
        while len(self._samples) > 2 and now - self._samples[0][0] > RATE_SECONDS:
            self._samples.popleft()
        (first, before), (last, after) = self._samples[0], self._samples[-1]
        return (after - before) / (last - first) if last - first > 0.5 else None

    def left(self, rate: float | None) -> float | None:
        """Return the seconds that remain at this rate, None if nobody knows."""
        if self.total is None or not rate or self.stopping:
            return None
        return (self.total - self.finished) / rate

    def parts(self) -> list[tuple[str, int]]:
        """Return the counts that there is something to say about."""
        parts = [(status, count) for status, count in self.counts.items() if count]
        if self.skipped:
            parts.append(("skipped", self.skipped))
        under_way = self.taken - self.finished
        if under_way > 0 and not self.ended:
            parts.append(("under way", under_way))
        return parts


# -- while it goes --------------------------------------------------------------


@contextmanager
def progress(tally: Tally, *, quiet: bool) -> Iterator[None]:
    """Show the progress on stderr for the time of the context: a bar, or a line now and then."""
    console = Console(stderr=True)
    if quiet:
        yield
    elif sys.stderr.isatty() and not console.is_dumb_terminal:
        bar = _Bar(tally)
        with Live(bar, console=console, refresh_per_second=REFRESHES):
            try:
                yield
            finally:
                tally.ended = True
    else:
        with _lines(tally):
            yield
    tally.ended = True


@contextmanager
def _lines(tally: Tally) -> Iterator[None]:
    ending = threading.Event()

    def write() -> None:
        while not ending.wait(LINE_SECONDS):
            print(progress_line(tally), file=sys.stderr, flush=True)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()


def progress_line(tally: Tally) -> str:
    """Return how far it is, in words."""
    rate = tally.rate()
    said = [_how_many(tally)]
    if rate is not None:
        said.append(f"{_number(rate)}/s")
    left = tally.left(rate)
    if left is not None:
        said.append(f"{_duration(left)} left")
    counts = ", ".join(f"{_word(name)} {count:,}" for name, count in tally.parts())
    now = time.strftime("%H:%M:%S")
    return f"{now} {', '.join(said)}{f' ({counts})' if counts else ''}"


class _Bar:
    """The progress as one line with a bar, and the counts below it."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        tally = self._tally
        total, finished = tally.total, tally.finished
        rate = tally.rate()
        line = Table.grid(padding=(0, 1), expand=True)
        line.add_column(justify="right", no_wrap=True)
        line.add_column(ratio=1)
        for _ in range(3):
            line.add_column(justify="right", no_wrap=True)
        share = "" if total is None else f"{_percent(finished, total):3.0f}%"
        line.add_row(
            Text(share, style="bold"),
            ProgressBar(total=total, completed=finished, pulse=total is None and not tally.ended),
            _how_many(tally, "/"),
            Text(f"{_number(rate)}/s" if rate is not None else "", style="cyan"),
            Text(self._time(rate), style="dim"),
        )
        yield line
        yield from _filled(tally.parts(), options.max_width)
        if tally.stopping and not tally.ended:
            yield Text("Stopping: finishing what is under way. Ctrl-C: end now.", "yellow")

    def _time(self, rate: float | None) -> str:
        if self._tally.ended or self._tally.stopping or self._tally.total is None:
            return f"in {_duration(self._tally.seconds)}"
        left = self._tally.left(rate)
        return f"{_duration(left)} left" if left is not None else "-:--:-- left"


def _filled(parts: list[tuple[str, int]], width: int) -> Iterator[Text]:
    """Yield lines of counts, none of which is broken."""
    line = Text(" ")
    for name, count in parts:
        part = Text.assemble((f"{_word(name)} ", STYLES[name]), f"{count:,}")
        if line.cell_len + 2 + part.cell_len > width and line.cell_len > 1:
            yield line
            line = Text(" ")
        if line.cell_len > 1:
            line.append("  ")
        line.append_text(part)
    yield line


# -- at the end -----------------------------------------------------------------


def closing(tally: Tally, totals: "Totals", server: str, remarks: list[str]) -> None:
    """Print on stdout what the run came to."""
    console = Console()
    if not (sys.stdout.isatty() and not console.is_dumb_terminal):
        for line in _closing_lines(tally, totals, server, remarks):
            print(line.encode(sys.stdout.encoding, "replace").decode(sys.stdout.encoding))
        return
    console.print()
    console.print(Text(_summary(tally, totals, server), style="bold"))
    console.print()
    console.print(_counts_table(tally.parts(), tally.finished))
    console.print()
    if reasons := _reasons(tally, totals):
        console.print(_reasons_table(reasons))
        console.print()
    for note in totals.notes:
        console.print(Text.assemble(("Note: ", "bold"), printable(note)))
    for remark in remarks:
        console.print(Text(printable(remark)))


def _counts_table(parts: list[tuple[str, int]], finished: int) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False)
    table.add_column("Messages")
    table.add_column("Count", justify="right")
    table.add_column("Share", justify="right")
    for name, count in parts:
        share = "" if name == "skipped" else _share(count, finished)
        table.add_row(Text(_word(name), style=STYLES[name]), f"{count:,}", share)
    return table


def _reasons_table(reasons: list[tuple[str, str, str, int]]) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False)
    table.add_column("Code", justify="right", no_wrap=True)
    table.add_column("Status", no_wrap=True)
    table.add_column("Why not accepted", overflow="fold")
    table.add_column("How many", justify="right", no_wrap=True)
    for code, enhanced, text, count in reasons:
        style = "yellow" if code.startswith("4") else "red"
        table.add_row(Text(code, style=style), enhanced, Text(text), f"{count:,}")
    return table


def _closing_lines(
    tally: Tally, totals: "Totals", server: str, remarks: list[str]
) -> Iterator[str]:
    yield _summary(tally, totals, server)
    for name, count in tally.parts():
        yield f"  {_word(name):<9} {count:>10,}"
    for code, enhanced, text, count in _reasons(tally, totals):
        yield "  " + " ".join(filter(None, (f"{count:,} x", code, enhanced, text)))
    for note in totals.notes:
        yield f"Note: {printable(note)}"
    yield from map(printable, remarks)


def _summary(tally: Tally, totals: "Totals", server: str) -> str:
    seconds = max(totals.seconds, 0.0)
    said = [f"{tally.finished:,} message{'' if tally.finished == 1 else 's'} to {server}"]
    if totals.messages:
        said[0] += f" in {_seconds(seconds)}"
        if totals.rate:
            said.append(f"{_number(totals.rate)} accepted/s")
        said.append(_octets(totals.octets))
        plural = "" if totals.connections == 1 else "s"
        said.append(f"{totals.connections:,} connection{plural}")
    return ", ".join(said)


def _reasons(tally: Tally, totals: "Totals") -> list[tuple[str, str, str, int]]:
    """Return replies and errors with how many there were, the most frequent first."""
    found = [
        (str(code), ".".join(map(str, enhanced or ())), printable(text), count)
        for (code, enhanced, text), count in totals.replies.items()
    ]
    found += [("", "", text, count) for text, count in tally.errors.items()]
    found.sort(key=lambda reason: (-reason[3], reason))
    rest = found[MOST_ROWS:]
    if rest:
        found[MOST_ROWS:] = [("", "", f"{len(rest):,} other reasons", sum(r[3] for r in rest))]
    return found


# -- numbers --------------------------------------------------------------------


def _how_many(tally: Tally, of: str = " of ") -> str:
    total = tally.total
    return f"{tally.finished:,}" if total is None else f"{tally.finished:,}{of}{total:,}"


def _percent(count: int, total: int) -> float:
    return 100.0 * count / total if total else 100.0


def _share(count: int, total: int) -> str:
    percent = _percent(count, total)
    if count and percent < 0.1:
        return "< 0.1 %"
    # Not all is not 100 %.
    return "> 99.9 %" if 99.95 <= percent < 100.0 else f"{percent:.1f} %"


def _word(name: str) -> str:
    return name.replace("_", " ")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _seconds(value: float) -> str:
    if value >= 120:
        return _duration(value)
    return f"{value:.1f} s" if value >= 1 else f"{value:.2f} s"


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _octets(count: int) -> str:
    if count < 1000:
        return f"{count} B"
    value = float(count)
    for unit in ("kB", "MB", "GB"):
        value /= 1000
        if value < 999.5:
            return f"{value:.3g} {unit}"
    return f"{value / 1000:,.2f} TB"
