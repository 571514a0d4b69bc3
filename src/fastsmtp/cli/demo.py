"""``fastsmtp demo``: smtplib, fastsmtp.SMTP and Mailer send the same messages, side by side.

The server is a process of its own, so that the CPU time measured here is the
client's alone.  A message that does not arrive byte for byte ends the demo
with an error.
"""

import email.policy
import multiprocessing
import platform
import random
import smtplib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from email.message import EmailMessage
from importlib.metadata import version
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from .. import SMTP, SMTPException, __version__, implementation
from ..bulk import Mailer
from ..outgoing import Message
from .demo_server import Receipt, receipt, serve
from .exits import PROTOCOL, SOME_NOT, Failure
from .extras import require

SENDER, RECIPIENT = "ana@example.org", "bob@example.net"
NAMES = ("smtplib", "SMTP", "Mailer")
ROUNDS, REPEAT = 3, 60
SECONDS = 8.0  # no new round after this many, however slow the machine is
CHUNKS = 20  # in so many turns the mailing goes out
CONNECTIONS = 4
WAIT = 60.0  # seconds; the longest that the server may take to answer

Send = Callable[[smtplib.SMTP], object]


# -- what is sent ---------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """A kind of message: what arrives, how smtplib sends it, what the Mailer is given."""

    title: str
    wire: bytes
    send: Send
    mail: Any
    repeat: int


def kinds(repeat: int = REPEAT) -> list[Kind]:
    """Return messages of every kind that people send."""
    invoice, report, photos = _invoice(), _quoted(), _photos()
    dots = _plain("Lines that begin with a dot", _DOTS)
    return [
        _as_text("plain text", _plain("Minutes", _MINUTES), repeat),
        _as_message("HTML, attachment", invoice, repeat),
        _as_text("quoted-printable", report.as_bytes(), repeat),
        _as_octets("8bit UTF-8", _plain("Gruesse", _UTF_8, "8bit"), repeat),
        _as_octets("dots, as bytes", dots, repeat),
        _as_text("dots, as text", dots, repeat),
        _as_text("998 columns", _plain("No line breaks", _LONG), repeat),
        _as_text("5 MB attachment", photos.as_bytes(), 1),
    ]


def _as_text(title: str, wire: bytes, repeat: int) -> Kind:
    text = wire.decode("ascii").replace("\r\n", "\n")
    message = Message(SENDER, RECIPIENT, text)
    return Kind(title, wire, lambda smtp: smtp.sendmail(SENDER, RECIPIENT, text), message, repeat)


def _as_octets(title: str, wire: bytes, repeat: int) -> Kind:
    options = [] if wire.isascii() else ["BODY=8BITMIME"]
    message = Message(SENDER, RECIPIENT, wire)
    return Kind(
        title, wire, lambda smtp: smtp.sendmail(SENDER, RECIPIENT, wire, options), message, repeat
    )


def _as_message(title: str, message: EmailMessage, repeat: int) -> Kind:
    return Kind(title, message.as_bytes(), lambda smtp: smtp.send_message(message), message, repeat)


def _headed(subject: str) -> EmailMessage:
    message = EmailMessage(policy=email.policy.SMTP)
    message["From"] = f"Ana Lima <{SENDER}>"
    message["To"] = f"Bob Stone <{RECIPIENT}>"
    message["Subject"] = subject
    message["Date"] = "Tue, 12 Mar 2024 17:04:11 +0100"
    message["Message-ID"] = f"<{subject.partition(' ')[0].lower()}@example.org>"
    return message


def _plain(subject: str, body: str, encoding: str = "7bit") -> bytes:
    """Return a message whose body is sent as it stands."""
    head = _headed(subject).as_bytes().removesuffix(b"\r\n")
    head += b'MIME-Version: 1.0\r\nContent-Type: text/plain; charset="utf-8"\r\n'
    head += f"Content-Transfer-Encoding: {encoding}\r\n\r\n".encode("ascii")
    return head + body.replace("\n", "\r\n").encode("utf-8")


_MINUTES = """\
Hello Bob,

three things from this afternoon, before I forget them:

  1. The old relay goes on 1 April. Everything that still sends through it
     must use the new one by then; the list of hosts is in the ticket.
  2. Bounces are read by a person again. Please send them to the shared
     mailbox, not to mine.
  3. Next call on Thursday, same time.
"""
_DOTS = """\
.
..
...
.bashrc
..data -> ..2024_03_27
.TH MAIL 1
.\\" the first line, a dot alone, must not end this message
QUIT
.
"""
_UTF_8 = "Grüße aus Köln, привет, 你好, çok selâm.\n.çà et là\n" * 12
_LONG = f"{('relay spool queue bounce route reply domain ' * 23)[:998]}\n" * 12


def _quoted() -> EmailMessage:
    message = _headed("Protokoll der Sitzung")
    message.set_content(_UTF_8 + _MINUTES, cte="quoted-printable")
    return message


def _invoice() -> EmailMessage:
    rows = [(f"cartridge {1000 + 7 * n}", 1 + n % 5, 12.5) for n in range(120)]
    message = _headed("Invoice 2024-0317")
    message.set_content("Dear Mr Stone,\n\nthe invoice is attached.\n")
    cells = "".join(f"<tr><td>{name}</td><td>{count}</td></tr>\n" for name, count, _ in rows)
    message.add_alternative(f"<p>The <b>invoice</b>:</p>\n<table>\n{cells}</table>\n", "html")
    table = "".join(f"{name};{count};{price}\r\n" for name, count, price in rows)
    message.add_attachment(table.encode("ascii"), "text", "csv", filename="invoice.csv")
    _fix_boundaries(message)
    return message


def _photos() -> EmailMessage:
    message = _headed("Photos")
    message.set_content("Here they are.\n")
    photos = random.Random(5321).randbytes(5_000_000)
    message.add_attachment(photos, "application", "zip", filename="photos.zip")
    _fix_boundaries(message)
    return message


def _fix_boundaries(message: EmailMessage) -> None:
    """Give each multipart the same boundary each time it is written."""
    for number, part in enumerate(message.walk()):
        if part.is_multipart():
            part.set_boundary(f"=_part-{number}")


def mailing(number: int) -> tuple[str, str]:
    """Return the recipient and the text of one message of a mailing of many."""
    recipient = f"customer{number}@example.net"
    head = (
        f"From: Ana Lima <{SENDER}>\nTo: {recipient}\nSubject: Your order {number}\n"
        f"Message-ID: <order-{number}@example.org>\n\nDear customer {number},\n\n"
    )
    return recipient, head + (_MINUTES + "\n") * 8


# -- who sends, and what it costs -----------------------------------------------


@dataclass
class Cost:
    """What one client spent."""

    messages: int = 0
    octets: int = 0
    wall: float = 0.0
    cpu: float = 0.0

    def add(self, other: "Cost") -> None:
        """Add what it spent elsewhere."""
        self.messages += other.messages
        self.octets += other.octets
        self.wall += other.wall
        self.cpu += other.cpu

    @property
    def rate(self) -> float:
        """Messages a second."""
        return self.messages / self.wall

    @property
    def each(self) -> float:
        """Seconds of CPU time for a message."""
        return self.cpu / self.messages


Costs = dict[tuple[str, str], Cost]


class Server:
    """The process that the messages go to."""

    def __init__(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, child = spawn.Pipe()
        self._process = spawn.Process(target=serve, args=(child,), daemon=True)
        self._process.start()
        child.close()
        self.aiosmtpd, self.receiver = self._answer()
        self.messages = self.octets = 0  # that arrived, and were compared

    def check(self, who: str, what: str, sent: Iterable[Receipt]) -> None:
        """Compare what arrived since the last time with what was sent.  Raises Failure."""
        arrived: list[Receipt] = self._answer(True)
        check(who, what, sent, arrived)
        self.messages += len(arrived)
        self.octets += sum(octets for _, _, octets, _ in arrived)

    def _answer(self, question: Any = None) -> Any:
        try:
            if question is not None:
                self._pipe.send(question)
            if self._pipe.poll(WAIT):
                return self._pipe.recv()
        except (EOFError, OSError):
            pass
        raise Failure("the demo's server has ended, or does not answer", PROTOCOL)

    def close(self) -> None:
        """End the process."""
        try:
            self._pipe.send(False)
        except OSError:
            pass  # it has ended already
        self._process.join(1.0)
        self._process.terminate()
        self._process.join()
        self._pipe.close()


def timed(action: Callable[[], None], messages: int, octets: int, cost: Cost) -> None:
    """Do something, and add what it took to *cost*."""
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    cost.add(Cost(messages, octets, wall, cpu))


def check(who: str, what: str, sent: Iterable[Receipt], arrived: Sequence[Receipt]) -> None:
    """Compare what arrived with what was sent.  Raises Failure."""
    expected, found = Counter(sent), Counter(arrived)
    if expected == found:
        return
    missing, strange = expected - found, found - expected
    lines = [f"MISMATCH: {who}, {what}: of {expected.total()} sent, {found.total()} arrived; "]
    lines.append(f"{missing.total()} are missing, {strange.total()} were never sent.")
    for title, group in (("missing", missing), ("never sent", strange)):
        lines += [f"\n  {title}: {each}" for each in list(group)[:3]]
    raise Failure("".join(lines), SOME_NOT)


def hand_in(mailer: Mailer, messages: Iterable[Any]) -> None:
    """Send by the Mailer; every message must be accepted.  Raises Failure."""
    for delivery in mailer.send_many(messages):
        if delivery.status != "accepted":
            why = delivery.error or delivery.reply
            raise Failure(f"Mailer: a message was {delivery.status}: {why}", SOME_NOT)


@contextmanager
def clients(
    server: Server, port: int, connections: int
) -> Iterator[tuple[smtplib.SMTP, SMTP, Mailer]]:
    """Give the three clients, after a message by each that is not measured."""
    where = ("127.0.0.1", port)
    recipient, text = mailing(0)
    with ExitStack() as stack:
        old = stack.enter_context(smtplib.SMTP(*where, "localhost", timeout=WAIT))
        new = stack.enter_context(SMTP(*where, "localhost", timeout=WAIT))
        mailer = Mailer(*where, local_hostname="localhost", tls="none", connections=connections)
        stack.enter_context(mailer)
        old.sendmail(SENDER, recipient, text)
        new.sendmail(SENDER, recipient, text)
        hand_in(mailer, [Message(SENDER, recipient, text)])
        wire = text.replace("\n", "\r\n").encode("ascii")
        server.check("one of them", "first message", [receipt(SENDER, (recipient,), wire)] * 3)
        yield old, new, mailer


# -- the two comparisons --------------------------------------------------------


def compare_kinds(
    server: Server, rounds: int, repeat: int, step: Callable[[], None]
) -> tuple[list[Kind], Costs, int]:
    """Send each kind by each client in turn, over one connection each."""
    began = time.monotonic()
    found = kinds(repeat)
    costs: Costs = {(name, kind.title): Cost() for name in NAMES for kind in found}
    done = 0
    with clients(server, server.aiosmtpd, 1) as (old, new, mailer):
        while done < rounds and (not done or time.monotonic() - began < SECONDS):
            for kind in found:
                for name, action in _actions(kind, old, new, mailer).items():
                    octets = kind.repeat * len(kind.wire)
                    timed(action, kind.repeat, octets, costs[name, kind.title])
                    sent = [receipt(SENDER, (RECIPIENT,), kind.wire)] * kind.repeat
                    server.check(name, kind.title, sent)
                step()
            done += 1
    return found, costs, done


def _actions(
    kind: Kind, old: smtplib.SMTP, new: SMTP, mailer: Mailer
) -> dict[str, Callable[[], None]]:
    def by(smtp: smtplib.SMTP) -> Callable[[], None]:
        def action() -> None:
            for _ in range(kind.repeat):
                kind.send(smtp)

        return action

    def pooled() -> None:
        hand_in(mailer, (kind.mail for _ in range(kind.repeat)))

    return dict(zip(NAMES, (by(old), by(new), pooled), strict=True))


def compare_mailing(
    server: Server, messages: int, step: Callable[[str, int], None]
) -> dict[str, Cost]:
    """Send a mailing by each client, in turn by chunks."""
    costs = {name: Cost() for name in NAMES}
    size = -(-messages // CHUNKS)
    with clients(server, server.receiver, CONNECTIONS) as (old, new, mailer):
        for start in range(0, messages, size):
            chunk = [mailing(number) for number in range(start, min(start + size, messages))]
            wires = [(to, text.replace("\n", "\r\n").encode("ascii")) for to, text in chunk]
            octets = sum(len(wire) for _, wire in wires)
            actions = {
                "smtplib": lambda chunk=chunk: _one_by_one(old, chunk),
                "SMTP": lambda chunk=chunk: _one_by_one(new, chunk),
                "Mailer": lambda chunk=chunk: hand_in(
                    mailer, (Message(SENDER, to, text) for to, text in chunk)
                ),
            }
            for name, action in actions.items():
                timed(action, len(chunk), octets, costs[name])
                sent = (receipt(SENDER, (to,), wire) for to, wire in wires)
                server.check(name, "mailing", sent)
                step(name, len(chunk))
    return costs


def _one_by_one(smtp: smtplib.SMTP, chunk: list[tuple[str, str]]) -> None:
    for recipient, text in chunk:
        smtp.sendmail(SENDER, recipient, text)


# -- showing --------------------------------------------------------------------


@contextmanager
def progress(console: Console) -> Iterator[Progress]:
    """Give a display of bars: it is drawn between measurements only, and not without a terminal."""
    columns = (
        TextColumn("{task.description:<8}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
    )
    with Progress(
        *columns,
        console=console,
        auto_refresh=False,
        transient=True,
        expand=True,
        disable=not console.is_terminal,
    ) as display:
        yield display


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1))
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    return table


def kinds_tables(found: list[Kind], costs: Costs, wide: bool) -> list[Table]:
    """Return the comparison of kinds as one table, or as two where there is no room for it."""
    whole = {name: Cost() for name in NAMES}
    for (name, _), cost in costs.items():
        whole[name].add(cost)
    rates = _table("message", "octets", "messages/s\nsmtplib", "\nSMTP", "\nMailer")
    spent = rates if wide else _table("message")
    for column in ("CPU ms each\nsmtplib", "less by\nSMTP", "\nMailer"):
        spent.add_column(column, justify="right", no_wrap=True)
    rows = [(k.title, f"{len(k.wire):,}", [costs[n, k.title] for n in NAMES]) for k in found]
    rows.append(("all", "", [whole[name] for name in NAMES]))
    for title, octets, (old, new, mailer) in rows:
        style = "bold" if title == "all" else ""
        speed = [f"{cost.rate:,.0f}" for cost in (old, new, mailer)]
        less = [f"{old.each * 1e3:,.3f}", _times(old, new), _times(old, mailer)]
        if wide:
            rates.add_row(title, octets, *speed, *less, style=style)
        else:
            rates.add_row(title, octets, *speed, style=style)
            spent.add_row(title, *less, style=style)
    return [rates] if wide else [rates, spent]


def mailing_table(costs: dict[str, Cost]) -> Table:
    """Return the comparison of a mailing."""
    table = _table("client", "messages/s", "MB/s", "CPU µs\neach", "less\nCPU")
    for name, cost in costs.items():
        table.add_row(
            {"smtplib": "smtplib.SMTP"}.get(name, f"fastsmtp.{name}"),
            f"{cost.rate:,.0f}",
            f"{cost.octets / cost.wall / 1e6:,.1f}",
            f"{cost.each * 1e6:,.0f}",
            _times(costs["smtplib"], cost),
            style="bold" if name == "Mailer" else "",
        )
    return table


def _times(old: Cost, new: Cost) -> str:
    return f"{old.each / new.each:.1f}x" if new.cpu else "?"


# -- the command ----------------------------------------------------------------


@click.command()
@click.option(
    "--messages",
    type=click.IntRange(1),
    default=10_000,
    show_default=True,
    metavar="N",
    help="The length of the mailing.",
)
@click.option("--rounds", type=click.IntRange(1), default=ROUNDS, hidden=True)
@click.option("--repeat", type=click.IntRange(1), default=REPEAT, hidden=True)
def command(messages: int, rounds: int, repeat: int) -> None:
    """See smtplib, fastsmtp.SMTP and Mailer do the same work, side by side.

    Sends messages of eight kinds, then a mailing of 10,000, to servers on this
    machine that the demo starts and ends: nothing leaves it. The three clients
    take turns in one run. Every message that arrives is compared with what was
    sent, byte for byte; the exit status is 1 if one differs or is missing.
    """
    require("demo", "aiosmtpd", "demo")
    console = Console(highlight=False)
    server = Server()
    try:
        _run(console, server, messages, rounds, repeat)
    except (OSError, SMTPException) as error:
        raise Failure(f"a message could not be sent: {error!r}", SOME_NOT) from error
    finally:
        server.close()


def _run(console: Console, server: Server, messages: int, rounds: int, repeat: int) -> None:
    codec = {"c": "c (compiled)", "python": "python (the fallback: no extension was built)"}
    console.print(
        f"fastsmtp {__version__}, codec: {codec[implementation()]}, "
        f"{platform.python_implementation()} {platform.python_version()}\n",
    )
    with progress(console) as display:
        task = display.add_task("kinds", total=rounds * 8)

        def step() -> None:
            display.advance(task)
            display.refresh()

        found, costs, done = compare_kinds(server, rounds, repeat, step)
    console.print(
        f"[bold]Eight kinds of messages[/bold], to aiosmtpd {version('aiosmtpd')} with PIPELINING, "
        f"one connection each, {done} rounds in turn\n"
    )
    for table in kinds_tables(found, costs, console.width >= 90):
        console.print(table)
        console.print()

    with progress(console) as display:
        tasks = {name: display.add_task(name, total=messages) for name in NAMES}

        def advance(name: str, count: int) -> None:
            display.advance(tasks[name], count)
            display.refresh()

        mailings = compare_mailing(server, messages, advance)
    console.print(
        f"[bold]A mailing of {messages:,}[/bold], in turn by chunks, to a receiver that does "
        "little else and offers PIPELINING and CHUNKING; the Mailer over "
        f"{CONNECTIONS} connections, the others over the one that they have\n"
    )
    console.print(mailing_table(mailings))
    console.print(
        Text(
            f"\nAll {server.messages:,} messages ({server.octets / 1e6:,.0f} MB) "
            "arrived byte for byte as sent.",
            "green",
        )
    )
