"""Send real messages through smtplib and fastsmtp in turn; check what arrived, compare the cost.

The server is aiosmtpd on loopback, in a process of its own, so that the CPU time measured here is
the client's alone. A message that does not arrive byte for byte ends the demo with an error.
"""

import asyncio
import contextlib
import email
import email.policy
import multiprocessing
import platform
import random
import smtplib
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from email.message import EmailMessage
from hashlib import sha256
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from aiosmtpd.smtp import SMTP as Server

import fastsmtp

SENDER, RECIPIENT = "ana@example.org", "bob@example.net"
ROUNDS = 7
SECONDS = 20  # No new round after this many, however slow the machine is.


class Recorder:
    """The server's handler: keeps the envelope, length and digest of every message."""

    def __init__(self) -> None:
        self.received: list[tuple[Any, ...]] = []

    async def handle_EHLO(self, server, session, envelope, hostname, responses):
        # aiosmtpd reads one command at a time and keeps the rest buffered: all that RFC 2920 asks
        # of a server. It just does not say so.
        session.host_name = hostname
        return [*responses[:-1], "250-PIPELINING", responses[-1]]

    async def handle_DATA(self, server, session, envelope):
        self.received.append(receipt(envelope.mail_from, envelope.rcpt_tos, envelope.content))
        return "250 OK"


def receipt(sender: str, recipients: list[str], content: bytes) -> tuple[Any, ...]:
    return sender, tuple(recipients), len(content), sha256(content).hexdigest()


def serve(pipe: Connection) -> None:
    """Serve in a child process: tell the port, then what was received, each time it is asked."""

    async def main() -> None:
        recorder = Recorder()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Server(recorder, loop=loop), "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        while await loop.run_in_executor(None, pipe.recv):
            pipe.send(recorder.received)
            recorder.received = []
        server.close()

    with contextlib.suppress(EOFError):  # The demo ended early, and has said why.
        asyncio.run(main())


class Message(NamedTuple):
    title: str
    wire: bytes
    send: Callable[[smtplib.SMTP], object]
    repeat: int = 60


def crlf(name: str) -> bytes:
    lines = Path(__file__).with_name(name).read_bytes().splitlines()
    return b"".join(line + b"\r\n" for line in lines)


def five_megabytes() -> bytes:
    message = EmailMessage(policy=email.policy.SMTP)
    message["From"] = f"Ana Lima <{SENDER}>"
    message["To"] = f"Bob Stone <{RECIPIENT}>"
    message["Subject"] = "The photos"
    message["Date"] = "Fri, 29 Mar 2024 20:00:00 +0100"
    message["Message-ID"] = "<photos@example.org>"
    message.set_content("Here they are.\n")
    photos = random.Random(5321).randbytes(5_000_000)
    message.add_attachment(photos, maintype="application", subtype="zip", filename="photos.zip")
    message.set_boundary("=_photos")
    return message.as_bytes()


def as_text(title: str, wire: bytes, repeat: int = 60) -> Message:
    text = wire.decode("ascii").replace("\r\n", "\n")
    return Message(title, wire, lambda smtp: smtp.sendmail(SENDER, RECIPIENT, text), repeat)


def as_octets(title: str, wire: bytes) -> Message:
    options = [] if wire.isascii() else ["BODY=8BITMIME"]
    return Message(title, wire, lambda smtp: smtp.sendmail(SENDER, RECIPIENT, wire, options))


def as_message(title: str, wire: bytes) -> Message:
    message = email.message_from_bytes(wire, policy=email.policy.SMTP)
    return Message(title, wire, lambda smtp: smtp.send_message(message))


def messages() -> list[Message]:
    return [
        as_text("plain text, str", crlf("plain.eml")),
        as_message("HTML + attachment, EmailMessage", crlf("html-attachment.eml")),
        as_text("quoted-printable, str", crlf("quoted-printable.eml")),
        as_octets("8bit UTF-8, bytes", crlf("utf-8.eml")),
        as_octets("lines with dots, bytes", crlf("dots.eml")),
        as_text("lines with dots, str", crlf("dots.eml")),
        as_text("998-column lines, str", crlf("long-lines.eml")),
        as_text("5 MB attachment, str", five_megabytes(), repeat=1),
    ]


class Cost:
    """What one client spent on one kind of message."""

    messages = octets = 0
    wall = cpu = 0.0

    def add(self, messages: int, octets: int, wall: float, cpu: float) -> None:
        self.messages += messages
        self.octets += octets
        self.wall += wall
        self.cpu += cpu


def measure(smtp: smtplib.SMTP, message: Message, server: Connection, cost: Cost) -> None:
    """Send *message* as often as it says, add what that took to *cost*, and check what arrived."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(message.repeat):
        message.send(smtp)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    cost.add(message.repeat, message.repeat * len(message.wire), wall, cpu)

    server.send(True)
    arrived = server.recv()
    sent = receipt(SENDER, [RECIPIENT], message.wire)
    if arrived != [sent] * message.repeat:
        wrong = [got for got in arrived if got != sent]
        sys.exit(
            f"MISMATCH: {type(smtp).__module__}, {message.title}: sent {message.repeat} x {sent}, "
            f"{len(arrived)} arrived, {len(wrong)} of them different, such as {wrong[:1]}"
        )


def table(kinds: list[Message], costs: dict[tuple[str, str], Cost]) -> None:
    print(f"{'':41}{'messages/s':>17}{'MB/s':>17}{'CPU ms/message':>17}")
    columns = f"{'smtplib':>8}{'fastsmtp':>9}"
    print(f"{'message':<31}{'octets':>10}{columns}{columns}{columns}{'ratio':>7}")
    total = {"smtplib": Cost(), "fastsmtp": Cost()}
    for kind in kinds:
        pair = [costs[name, kind.title] for name in total]
        print(row(kind.title, f"{len(kind.wire):,}", *pair))
        for whole, cost in zip(total.values(), pair, strict=True):
            whole.add(cost.messages, cost.octets, cost.wall, cost.cpu)
    print(row("all", "", *total.values()))


def row(title: str, octets: str, old: Cost, new: Cost) -> str:
    def pair(figure: Callable[[Cost], float], form: str) -> str:
        return f"{format(figure(old), form):>8}{format(figure(new), form):>9}"

    return (
        f"{title:<31}{octets:>10}"
        + pair(lambda cost: cost.messages / cost.wall, ",.0f")
        + pair(lambda cost: cost.octets / cost.wall / 1e6, ",.1f")
        + pair(lambda cost: cost.cpu / cost.messages * 1e3, ",.3f")
        + f"{old.cpu / new.cpu:>6.1f}x"
    )


def main() -> None:
    began = time.monotonic()
    spawn = multiprocessing.get_context("spawn")
    server, child = spawn.Pipe()
    process = spawn.Process(target=serve, args=(child,), daemon=True)
    process.start()
    port = server.recv()

    kinds = messages()
    costs: dict[tuple[str, str], Cost] = defaultdict(Cost)
    rounds = 0
    with (
        smtplib.SMTP("127.0.0.1", port, "localhost", timeout=30) as old,
        fastsmtp.SMTP("127.0.0.1", port, "localhost", timeout=30) as new,
    ):
        while rounds < ROUNDS and (not rounds or time.monotonic() - began < SECONDS):
            for kind in kinds:
                measure(old, kind, server, costs["smtplib", kind.title])
                measure(new, kind, server, costs["fastsmtp", kind.title])
            rounds += 1
    server.send(False)
    process.join()

    codec = {"c": "c (compiled)", "python": "python (the fallback: no extension was built)"}
    print(
        f"fastsmtp {fastsmtp.__version__}, codec: {codec[fastsmtp.implementation()]}\n"
        f"{platform.python_implementation()} {platform.python_version()}, "
        f"aiosmtpd {version('aiosmtpd')} on loopback with PIPELINING, {rounds} rounds in turn\n"
    )
    table(kinds, costs)
    sent = sum(cost.messages for cost in costs.values())
    octets = sum(cost.octets for cost in costs.values())
    print(f"\nAll {sent:,} messages ({octets / 1e6:,.0f} MB) arrived byte for byte as sent.")


if __name__ == "__main__":
    main()
