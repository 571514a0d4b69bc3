"""``fastsmtp bench``: the rate of a server of one's own, by connections and messages in flight.

Each point is a Mailer of its own that sends so many messages.  Its time is
from the first connection to the last answer; its CPU time is this process's.
"""

import json
import math
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from ..delivery import Delivery
from ..errors import SMTPException
from ..outgoing import Message
from .connection import Connection, SectionedCommand, connection_options, option
from .exits import (
    CANNOT_CREATE,
    INTERRUPTED,
    SOME_NOT,
    Failure,
    describe,
    printable,
    status_for,
)
from .extras import require
from .probe import Target, examine

REDRAWN = 0.25  # seconds between two states of the progress bar
LEAST_SIZE = 400  # octets, for the header


# -- what is sent, and what came of it ------------------------------------------


@dataclass
class Point:
    """One measurement.  Times are in seconds; *latencies* are those of accepted messages."""

    connections: int
    depth: int
    chunking: bool
    size: int
    seconds: float = 0.0
    cpu: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    problem: str | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def accepted(self) -> int:
        """Messages that the server took."""
        return self.counts["accepted"]

    @property
    def rate(self) -> float | None:
        """Messages a second; None if the point was not gone through."""
        whole = self.problem is None and self.accepted
        return self.accepted / self.seconds if whole else None

    @property
    def cpu_each(self) -> float | None:
        """Seconds of this process's CPU time for a message."""
        return self.cpu / self.accepted if self.rate is not None else None

    def latency(self, percent: float) -> float | None:
        """Return a percentile of the latencies, by nearest rank."""
        if self.rate is None:
            return None
        ordered = sorted(self.latencies)
        return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]

    def as_json(self) -> dict[str, Any]:
        """Return what --json has of it."""
        rate = self.rate
        return {
            "connections": self.connections,
            "depth": self.depth,
            "chunking": self.chunking,
            "seconds": self.seconds,
            "cpu": self.cpu,
            "counts": dict(self.counts),
            "problem": self.problem,
            "notes": self.notes,
            "rate": rate,
            "octets_per_second": None if rate is None else rate * self.size,
            "cpu_per_message": self.cpu_each,
            **{f"p{percent}": self.latency(percent) for percent in (50, 95, 99)},
        }


@dataclass(frozen=True)
class Load:
    """What is sent at each point."""

    sender: str
    recipients: Sequence[str]
    messages: int
    size: int

    def make(self) -> Iterator[Message]:
        """Give the messages, of the same size, each with a Message-ID of its own.

        What they have in common is made once, as the time to make them counts.
        """
        run, date = uuid.uuid4().hex, formatdate()
        filler = b"Sent by fastsmtp bench. " * 3 + b"\r\n"
        filler *= self.size // len(filler) + 1
        for number in range(self.messages):
            recipient = self.recipients[number % len(self.recipients)]
            head = (
                f"From: <{self.sender}>\r\nTo: <{recipient}>\r\nSubject: fastsmtp bench\r\n"
                f"Date: {date}\r\nMessage-ID: <{run}.{number}@fastsmtp.invalid>\r\n"
                "Auto-Submitted: auto-generated\r\nPrecedence: bulk\r\n\r\n"
            ).encode()
            body = filler[: max(self.size - len(head) - 2, 0)].removesuffix(b"\r") + b"\r\n"
            yield Message(self.sender, recipient, head + body)


# -- measuring ------------------------------------------------------------------


class Stopwatch:
    """Measures, but for what is done while it is held."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        self._held = 0.0

    @contextmanager
    def held(self) -> Iterator[None]:
        """Leave out the CPU time that is spent within."""
        began = time.process_time()
        yield
        self._held += time.process_time() - began

    def read(self) -> tuple[float, float]:
        """Return wall-clock and CPU time, in seconds."""
        cpu = time.process_time() - self._cpu - self._held
        return time.perf_counter() - self._wall, cpu


def measure(
    connection: Connection, point: Point, messages: Iterator[Message], step: Callable[[], None]
) -> None:
    """Send messages, and put down in *point* how it went; end at the first that is refused.

    Raises what the Mailer raises where there is no connection.
    """
    mailer = connection.mailer(
        connections=point.connections, depth=point.depth, chunking=point.chunking, retries=0
    )
    with mailer:
        watch = Stopwatch()
        redrawn = time.monotonic()
        try:
            for delivery in mailer.send_many(messages):
                point.counts[delivery.status] += 1
                if delivery.status == "accepted":
                    point.latencies.append(delivery.seconds)
                elif point.problem is None:
                    point.problem = _problem(delivery)
                    mailer.stop()
                if time.monotonic() - redrawn > REDRAWN:
                    with watch.held():
                        step()
                    redrawn = time.monotonic()
        finally:
            point.seconds, point.cpu = watch.read()
            point.notes = list(mailer.totals.notes)


def _problem(delivery: Delivery) -> str:
    """Return why a message was not accepted: the recipient's reply tells more than the last one."""
    reply = next(iter(delivery.refused.values()), delivery.reply)
    if reply is not None:
        said = f"{reply.code} {reply.text.decode('utf-8', 'replace')}"
    else:
        said = describe(delivery.error) if delivery.error is not None else "no reason is known"
    return f"{_words(delivery.status)}: {printable(said)}"


def points(
    connections: Sequence[int], depths: Sequence[int], size: int, *, chunking: bool
) -> list[Point]:
    """Return the points to measure; without CHUNKING, depth means nothing and is 1."""
    each = depths if chunking else (1,)
    return [Point(count, depth, chunking, size) for depth in each for count in connections]


def offers_chunking(connection: Connection) -> bool:
    """Ask the server.  Raises Failure if it cannot be reached."""
    settings = connection.settings
    if not settings.get("chunking", True):
        return False
    tls = settings["tls"] or ("implicit" if connection.port == 465 else "opportunistic")
    report = examine(
        Target(
            connection.host,
            connection.port,
            tls,
            settings["context"],
            settings["server_hostname"],
            settings["local_hostname"],
            settings["protocol"] == "lmtp",
            noops=0,
        )
    )
    if report.error is not None:
        raise Failure(f"{connection}: {report.error}", report.status)
    return report.offer is not None and report.offer.parameters("CHUNKING") is not None


def run(
    connection: Connection, load: Load, plan: Sequence[Point], display: Progress
) -> Iterator[tuple[Point, int]]:
    """Measure the points and yield each with an exit status; end where none is accepted.

    Ctrl-C ends it, too; what was measured before counts.
    """
    for point in plan:
        task = display.add_task(_name(point), total=load.messages)

        def step(task: Any = task, point: Point = point) -> None:
            display.update(task, completed=point.counts.total())
            display.refresh()

        step()
        status = 0
        try:
            measure(connection, point, load.make(), step)
        except (OSError, SMTPException) as error:
            point.problem = point.problem or describe(error)
            status = status_for(error)
        except KeyboardInterrupt:
            point.problem, status = "interrupted", INTERRUPTED
        if point.problem is not None:
            status = status or SOME_NOT
        display.remove_task(task)
        yield point, status
        if status == INTERRUPTED or (point.problem is not None and not point.accepted):
            return


def _name(point: Point) -> str:
    depth = f", {point.depth} in flight on each" if point.chunking else ""
    return f"{point.connections} connection{'s' if point.connections > 1 else ''}{depth}"


# -- showing --------------------------------------------------------------------


def table(measured: Sequence[Point], width: int) -> Table:
    """Return the results; with less room, less of them."""
    wide = width >= 80
    found = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1))
    heads = [
        "conn.",
        "depth",
        "messages/s",
        "MB/s",
        "CPU µs\neach",
        "p50\nms",
        "p95\nms",
        "p99\nms",
    ]
    if not wide:
        heads = ["conn.", "depth", "msg/s", "CPU µs", "p50 ms", "p99 ms"]
    for head in heads:
        found.add_column(head, justify="right", no_wrap=True)
    found.add_column("accepted", overflow="fold")
    best = max((point.rate or 0.0 for point in measured), default=0.0)
    depth = None
    for point in measured:
        if depth not in (None, point.depth):
            found.add_section()
        depth = point.depth
        rate = Text(_shown(point.rate), "bold green" if point.rate == best else "")
        latencies = [_shown(point.latency(p), 1e3) for p in ((50, 95, 99) if wide else (50, 99))]
        cells: list[str | Text] = [
            str(point.connections),
            str(point.depth) if point.chunking else "-",
            rate,
        ]
        if wide:
            cells.append(_shown(None if point.rate is None else point.rate * point.size, 1e-6))
        cells += [_shown(point.cpu_each, 1e6), *latencies, _accepted(point)]
        found.add_row(*cells)
    return found


def _shown(value: float | None, factor: float = 1.0) -> str:
    if value is None:
        return "-"
    value *= factor
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _accepted(point: Point) -> Text:
    if point.problem is None:
        return Text(f"{point.accepted:,}", "green")
    others = point.counts - Counter(accepted=point.accepted)
    came_to = ", ".join(f"{count:,} {_words(status)}" for status, count in others.most_common())
    return Text(f"{point.accepted:,}; {point.problem}{came_to and f' ({came_to})'}", "red")


def _words(status: str) -> str:
    return status.replace("_", " ")


def draw(measured: Sequence[Point], title: str, path: Path) -> None:
    """Write the plot: messages a second, and the median and 99th percentile of latency."""
    from matplotlib.figure import Figure  # without pyplot: Agg or SVG, never a window

    figure = Figure(figsize=(9, 4), layout="constrained")
    rates, latencies = figure.subplots(1, 2)
    figure.suptitle(title, fontsize=11)
    for depth in dict.fromkeys(point.depth for point in measured):
        line = [point for point in measured if point.depth == depth and point.rate is not None]
        if not line:
            continue
        across = [point.connections for point in line]
        label = f"CHUNKING, depth {depth}" if line[0].chunking else "DATA"
        drawn = rates.plot(across, [point.rate for point in line], "o-", label=label)
        colour = drawn[0].get_color()
        for percent, style in ((50, "o-"), (99, "^:")):
            values = [(point.latency(percent) or 0.0) * 1e3 for point in line]
            name = f"{label}, p{percent}"
            latencies.plot(across, values, style, color=colour, label=name)
    for axes, name in ((rates, "messages a second"), (latencies, "latency, ms")):
        axes.set_xlabel("connections")
        axes.set_title(name, fontsize=10)
        axes.set_xticks(sorted({point.connections for point in measured}))
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        if axes.get_lines():
            axes.legend(fontsize=8)
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise Failure(f"--plot: {path}: {error.strerror}", CANNOT_CREATE) from None


# -- the command ----------------------------------------------------------------


def _numbers(ctx: click.Context, param: click.Parameter, text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is not numbers with commas between", ctx, param
        ) from None
    if not all(0 < number <= 1000 for number in numbers):
        raise click.BadParameter("the numbers are from 1 to 1000", ctx, param)
    return sorted(set(numbers))


def _plot_file(ctx: click.Context, param: click.Parameter, path: Path | None) -> Path | None:
    if path is None:
        return None
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise click.BadParameter("the file's name ends in .png, .svg or .pdf", ctx, param)
    if not path.parent.is_dir():
        raise click.BadParameter(f"there is no folder {path.parent}", ctx, param)
    return path


@click.command(cls=SectionedCommand)
@option("What is sent", "--from", "sender", required=True, metavar="ADDRESS", help="The sender.")
@option(
    "What is sent",
    "--to",
    "recipients",
    required=True,
    multiple=True,
    metavar="ADDRESS",
    help="The recipient. If there are several, messages go to one after the other.",
)
@option(
    "What is sent",
    "--messages",
    type=click.IntRange(1),
    default=500,
    show_default=True,
    metavar="N",
    help="How many for each row of the table.",
)
@option(
    "What is sent",
    "--size",
    type=click.IntRange(LEAST_SIZE),
    default=4096,
    show_default=True,
    metavar="OCTETS",
    help="How large each of them is.",
)
@option(
    "What is compared",
    "--connections",
    "pools",
    default="1,2,5,10,20",
    show_default=True,
    callback=_numbers,
    metavar="N,N,…",
    help="Numbers of connections.",
)
@option(
    "What is compared",
    "--depth",
    "depths",
    default="1,8",
    show_default=True,
    callback=_numbers,
    metavar="N,N,…",
    help="Numbers of messages in flight on a connection, where the server has CHUNKING.",
)
@option(
    "What is shown",
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=_plot_file,
    metavar="FILE",
    help="Draw it, too: .png, .svg or .pdf.",
)
@option("What is shown", "--json", "in_json", is_flag=True, help="Print JSON. Times in seconds.")
@connection_options(pool=False)
@click.pass_context
def command(
    ctx: click.Context,
    connection: Connection,
    sender: str,
    recipients: tuple[str, ...],
    messages: int,
    size: int,
    pools: list[int],
    depths: list[int],
    plot: Path | None,
    in_json: bool,
) -> None:
    """Find the rate that a mail server of your own can take.

    THIS SENDS REAL MAIL: for each row of the table, --messages messages from
    --from to --to, which the server delivers like any other. Use a server and a
    mailbox that are yours.

    A row's rate is from its first connection to its last answer, so with few
    messages it is mostly connecting. CPU is that of this process. Latencies
    (p50: half of the messages had theirs sooner) are from handing a message
    over to the server's answer, with the wait for a free connection. A row
    ends at the first message that is not accepted.

    \b
    Examples:
      fastsmtp bench --server relay.example.org:587 --user me \\
          --from me@example.org --to test@example.org --plot rate.png
      fastsmtp bench --server localhost:8025 --connections 1,4 --messages 2000 \\
          --from a@example.org --to b@example.org

    Exit status: 0, 1 if a message was not accepted, 2 for wrong usage, 69 or
    another of sysexits.h if there is no connection.
    """
    if plot is not None:
        require("bench --plot", "matplotlib", "bench")
    load = Load(sender, recipients, messages, size)
    talk = Console(stderr=True, highlight=False)
    connection.keywords()  # prompts for the password, if it must
    chunking = offers_chunking(connection)
    plan = points(pools, depths, size, chunking=chunking)
    talk.print(
        f"Sending up to {len(plan) * messages:,} real messages of {size:,} octets from {sender} to "
        f"{', '.join(recipients)} through {connection}.",
        markup=False,
    )
    measured, status = _measured(connection, load, plan, talk)
    if in_json:
        content = {
            "server": str(connection),
            "messages": messages,
            "size": size,
            "chunking": chunking,
            "points": [point.as_json() for point in measured],
        }
        click.echo(json.dumps(content, indent=2))
    else:
        _show(measured, Console(highlight=False), chunking)
    if plot is not None:
        title = f"{connection}: {messages:,} messages of {size:,} octets for each point"
        draw(measured, title, plot)
        talk.print(f"The plot is in {plot}.", markup=False)
    ctx.exit(status)


def _measured(
    connection: Connection, load: Load, plan: list[Point], talk: Console
) -> tuple[list[Point], int]:
    """Measure, with a bar on stderr or a line for each point; return the worst status, too."""
    measured: list[Point] = []
    worst = 0
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), MofNCompleteColumn())
    with Progress(
        *columns,
        console=talk,
        auto_refresh=False,
        transient=True,
        expand=True,
        disable=not talk.is_terminal,
    ) as display:
        for point, status in run(connection, load, plan, display):
            measured.append(point)
            worst = max(worst, status)
            if not talk.is_terminal:
                rate = point.problem or f"{_shown(point.rate)} messages/s"
                talk.print(f"{_name(point)}: {rate}", markup=False, soft_wrap=True)
    return measured, worst


def _show(measured: list[Point], console: Console, chunking: bool) -> None:
    console.print()
    console.print(table(measured, console.width))
    if not chunking:
        console.print("\nWithout CHUNKING there is one message in flight on a connection.")
    for note in dict.fromkeys(note for point in measured for note in point.notes):
        console.print(Text.assemble(("Note: ", "bold"), printable(note)))
