"""Sending many messages: the Mailer, and what it is measured against.

Each sender is a function that sends so many copies of one message over so many connections, holds
that all were accepted, and returns what one message cost: connecting and saying QUIT included,
starting an interpreter and importing not.
"""

import asyncio
import json
import os
import shutil
import smtplib
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import aiosmtplib
import server
from measure import Cost
from proxy import Network
from sink import HOST, RECIPIENT, SENDER

import fastsmtp

#: Sends so many messages, and returns the cost of one.
Sender = Callable[[int], Cost]

SMTP_SOURCE = shutil.which("smtp-source") or shutil.which("smtp-source", path="/usr/sbin")
FLOOR = Path(__file__).with_name("floor.c")
#: What may be missing, and why.
WHY_NOT = {
    "smtp-source": "no smtp-source here (Debian: apt-get install postfix)",
    "floor": "no floor: it takes Linux and a C compiler, cc or what CC names",
}


class Files:
    """One message as each of those needs it that read it from a file; and the compiled floor."""

    def __init__(self, directory: Path, message: str) -> None:
        self.message = message
        #: With LF, as people write it.
        self.text = directory / "text"
        self.text.write_text(message, "ascii", newline="\n")
        #: As it goes over the wire, without a final dot.
        self.octets = directory / "octets"
        self.octets.write_bytes(message.replace("\n", "\r\n").encode("ascii"))
        #: By DATA: dots doubled, and with the final dot.
        self.payload = directory / "payload"
        self.payload.write_bytes(b"".join(fastsmtp.codec.data_payload(message, True)[1]))


@contextmanager
def files(message: str) -> Iterator[Files]:
    """Give *message* in files, for as long as they are needed."""
    with tempfile.TemporaryDirectory() as directory:
        yield Files(Path(directory), message)


@contextmanager
def compiled_floor() -> Iterator[Path | None]:
    """Give the floor as a program; None where it cannot be had."""
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory) / "floor"
        compiler = os.environ.get("CC", "cc").split()
        try:
            subprocess.run(
                [*compiler, "-O2", "-std=gnu11", "-o", str(program), str(FLOOR)],
                check=True,
                capture_output=True,
            )
        except (OSError, subprocess.CalledProcessError):
            yield None
        else:
            yield program


@contextmanager
def senders(
    port: int, given: Files, connections: int, floor: Path | None = None
) -> Iterator[dict[str, Sender]]:
    """Give all that can send to smtp-sink over so many connections."""
    found = {
        fastsmtp.implementation(): partial(mailer, port, given.message, connections),
        "smtplib": partial(by_smtplib, port, given.message, connections),
        "aiosmtplib": partial(by_aiosmtplib, port, given.message, connections),
    }
    if SMTP_SOURCE:
        found["smtp-source"] = partial(smtp_source, port, given.text, connections)
    if floor:
        found["floor"] = partial(raw_loop, floor, port, given.payload, connections)
    yield found


@contextmanager
def senders_by_tls(message: str, connections: int) -> Iterator[dict[str, Sender]]:
    """Give those that can send by TLS 1.3, which verify the server's certificate."""
    with files(message) as given, tempfile.TemporaryDirectory() as directory:
        certificate = server.make_certificate(Path(directory))
        context = ssl.create_default_context(cafile=certificate)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        with server.running(given.octets, connections, certificate=certificate) as port:
            yield {
                fastsmtp.implementation(): partial(
                    mailer, port, message, connections, context=context
                ),
                "smtplib": partial(by_smtplib, port, message, connections, context=context),
            }


@contextmanager
def to_distant_server(message: str, delay: float) -> Iterator[Callable[..., Cost]]:
    """Give what sends by CHUNKING over one connection to a server that replies so much later.

    It is called with a number of messages, and with more arguments for the Mailer.
    """
    with files(message) as given, server.running(given.octets, 1, chunking=True, delay=delay) as to:
        yield partial(mailer, to, message, 1)


# -- the senders --------------------------------------------------------------


def mailer(
    port: int,
    message: str | bytes,
    connections: int,
    count: int,
    context: ssl.SSLContext | None = None,
    **policy: object,
) -> Cost:
    """Send by a Mailer, from a generator."""
    messages = (fastsmtp.Message(SENDER, RECIPIENT, message) for _ in range(count))
    tls = "implicit" if context else "none"
    options = {"connections": connections, "tls": tls, "context": context, **policy}
    with (
        measured(count) as costs,
        fastsmtp.Mailer(HOST, port, local_hostname="localhost", **options) as sending,
    ):
        accepted = sum(delivery.status == "accepted" for delivery in sending.send_many(messages))
    assert accepted == count, sending.totals
    assert sending.totals.connections <= connections
    return costs.pop()


def round_trips(network: Network, message: str, count: int, **policy: object) -> float:
    """Send by a Mailer over one connection that is there; return the round trips of one message."""
    options = {"connections": 1, "tls": "none", "local_hostname": "localhost", **policy}
    with fastsmtp.Mailer(HOST, network.port, **options) as sending:
        assert sending.send(fastsmtp.Message(SENDER, RECIPIENT, message)).status == "accepted"
        network.messages.clear()
        before = network.round_trips
        messages = (fastsmtp.Message(SENDER, RECIPIENT, message) for _ in range(count))
        for delivery in sending.send_many(messages):
            assert delivery.status == "accepted"
        made = network.round_trips - before
    wire = message.replace("\n", "\r\n").encode("ascii")
    for recipients, data in network.messages:
        assert recipients == [RECIPIENT]
        assert data.removesuffix(b".\r\n") == wire
    assert len(network.messages) == count
    return made / count


def by_smtplib(
    port: int,
    message: str,
    connections: int,
    count: int,
    context: ssl.SSLContext | None = None,
) -> Cost:
    """Send by smtplib's sendmail(), in as many threads as connections."""
    refused: list[object] = []

    def send(number: int) -> None:
        connect = partial(smtplib.SMTP_SSL, context=context) if context else smtplib.SMTP
        with connect(HOST, port, "localhost") as smtp:
            for _ in range(number):
                refused.extend(smtp.sendmail(SENDER, [RECIPIENT], message))

    with measured(count) as costs:
        if connections == 1:
            send(count)
        else:
            threads = [threading.Thread(target=send, args=(n,)) for n in shares(count, connections)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    assert not refused
    return costs.pop()


def by_aiosmtplib(port: int, message: str, connections: int, count: int) -> Cost:
    """Send by aiosmtplib, in as many tasks as connections, each one message after the other."""
    refused: list[object] = []

    async def send(number: int) -> None:
        client = aiosmtplib.SMTP(
            hostname=HOST, port=port, local_hostname="localhost", use_tls=False, start_tls=False
        )
        async with client:
            for _ in range(number):
                refused.extend((await client.sendmail(SENDER, [RECIPIENT], message))[0])

    async def send_all() -> None:
        await asyncio.gather(*map(send, shares(count, connections)))

    with measured(count) as costs:
        asyncio.run(send_all())
    assert not refused
    return costs.pop()


def smtp_source(port: int, text: Path, connections: int, count: int) -> Cost:
    """Send by Postfix's smtp-source, which ends with an error if anything is refused."""
    assert SMTP_SOURCE, WHY_NOT["smtp-source"]
    options = f"-d -s {min(connections, count)} -m {count} -f {SENDER} -t {RECIPIENT}"
    command = [SMTP_SOURCE, *options.split(), "-M", "localhost", "-F", str(text), f"{HOST}:{port}"]
    begun = time.perf_counter()
    with subprocess.Popen(command) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    wall = time.perf_counter() - begun
    return Cost((usage.ru_utime + usage.ru_stime) / count, wall / count)


def raw_loop(program: Path, port: int, payload: Path, connections: int, count: int) -> Cost:
    """Send by the floor, which ends with an error if anything is refused."""
    command = [str(program), *map(str, (port, min(connections, count), count, payload))]
    result = json.loads(subprocess.check_output(command))
    assert result["messages"] == count
    return Cost(result["cpu"] / count, result["seconds"] / count)


# -- how they are measured ----------------------------------------------------


@contextmanager
def measured(count: int) -> Iterator[list[Cost]]:
    """Measure the block, in this process and all its threads; give the cost of one message."""
    costs: list[Cost] = []
    wall, cpu = time.perf_counter(), time.process_time()
    yield costs
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    costs.append(Cost(cpu / count, wall / count))


def shares(count: int, parts: int) -> list[int]:
    """Divide a number of messages among so many connections."""
    return [count // parts + (part < count % parts) for part in range(parts)]


def in_turn(
    contenders: Mapping[str, Sender], *, rounds: int = 7, seconds: float = 0.3, least: int = 50
) -> dict[str, list[Cost]]:
    """Have each sender send for about *seconds* in each round; return its cost, round by round.

    As measure.interleaved() does, for what sends many messages in one call.
    """
    counts = {name: _count(send, seconds, least) for name, send in contenders.items()}
    costs: dict[str, list[Cost]] = {name: [] for name in contenders}
    names = list(contenders)
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            costs[name].append(contenders[name](counts[name]))
    return costs


def _count(send: Sender, seconds: float, least: int) -> int:
    send(least)  # The first ones may have to import something.
    count = least
    while (wall := send(count).wall * count) < seconds / 2:
        count *= 3
    return max(least, round(count * seconds / wall))
