"""Postfix's smtp-sink on loopback, and the clients that send to it."""

import os
import shutil
import smtplib
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import fastsmtp

HOST = "127.0.0.1"
SENDER, RECIPIENT = "ana@example.org", "bob@example.net"
#: Debian has it where an ordinary user's PATH does not go.
SMTP_SINK = shutil.which("smtp-sink") or shutil.which("smtp-sink", path="/usr/sbin")
MISSING = "no smtp-sink here (Debian: apt-get install postfix)"


@contextmanager
def running(dump: Path | None = None) -> Iterator[tuple[int, int]]:
    """Run smtp-sink and give its port and process id; it adds what arrives to *dump*, if given."""
    assert SMTP_SINK, MISSING
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    user = ["-u", "root"] if os.geteuid() == 0 else []
    dumping = ["-D", str(dump)] if dump else []
    with subprocess.Popen([SMTP_SINK, *user, *dumping, f"{HOST}:{port}", "100"]) as process:
        try:
            _wait_for(port)
            yield port, process.pid
        finally:
            process.terminate()


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection((HOST, port)).close()
            return
        except ConnectionRefusedError:
            assert time.monotonic() < deadline, "smtp-sink does not listen"
            time.sleep(0.01)


def dumped(dump: Path) -> list[str]:
    """Return the messages in a dump, without the headers that smtp-sink adds."""
    messages = dump.read_text("ascii").split("X-Client-Addr: ")[1:]
    return [message.partition("(UTC)\n")[2].removesuffix("\n") for message in messages]


@contextmanager
def clients(port: int, message: str) -> Iterator[dict[str, Callable[[], None]]]:
    """Give what sends *message* once: smtplib, fastsmtp by its codec's name, and the raw loop."""
    with ExitStack() as stack:
        old = stack.enter_context(smtplib.SMTP(HOST, port, "localhost"))
        new = stack.enter_context(fastsmtp.SMTP(HOST, port, "localhost"))
        sock = stack.enter_context(socket.create_connection((HOST, port)))
        yield {
            "smtplib": sends(old, message),
            fastsmtp.implementation(): sends(new, message),
            "raw loop": raw_loop(sock, message),
        }


def sends(smtp: smtplib.SMTP, message: str) -> Callable[[], None]:
    def send() -> None:
        assert smtp.sendmail(SENDER, [RECIPIENT], message) == {}

    return send


def raw_loop(sock: socket.socket, message: str) -> Callable[[], None]:
    """Write and read what fastsmtp does, made ready before: what no client can do without."""
    sock.recv(1000)
    sock.sendall(b"ehlo localhost\r\n")
    sock.recv(1000)
    flight = b"mail FROM:<%b>\r\nrcpt TO:<%b>\r\ndata\r\n" % (SENDER.encode(), RECIPIENT.encode())
    payload = b"".join(fastsmtp.codec.data_payload(message, True)[1])

    def send() -> None:
        sock.sendall(flight)
        replies = sock.recv(16384)
        while replies.count(b"\n") < 3:
            replies += sock.recv(16384)
        sock.sendall(payload)
        assert sock.recv(16384).startswith(b"250 ")

    return send
