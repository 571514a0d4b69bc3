"""The Mailer's memory: it does not grow with the number of messages.

benches/memory.py measures the same over a million messages, by what the system has resident.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

import fastsmtp

tracemalloc = pytest.importorskip("tracemalloc")  # PyPy has none

FEW, MANY = 2_000, 20_000
CONNECTIONS = 3
#: A server in a process of its own, that takes everything and keeps nothing.  No line of the
#: messages here begins like a command.
SINK = r"""
import socket, sys, threading

OK = b"250 2.0.0 Ok: queued as 4VzR8b2xQz\r\n"
REPLIES = {verb: OK for verb in (b"MAIL", b"RCPT", b"RSET", b"BDAT", b".\r\n")}
REPLIES[b"EHLO"] = b"250-sink.example\r\n250-%b\r\n250 PIPELINING\r\n" % sys.argv[1].encode()
REPLIES[b"DATA"] = b"354 End data with <CR><LF>.<CR><LF>\r\n"
REPLIES[b"QUIT"] = b"221 2.0.0 Bye\r\n"

def take_and_forget(connection):
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(b"220 sink.example ESMTP\r\n")
    for line in connection.makefile("rb"):
        if reply := REPLIES.get(line[:4]):
            connection.sendall(reply)

with socket.create_server(("127.0.0.1", 0)) as listening:
    print(listening.getsockname()[1], flush=True)
    while True:
        connection = listening.accept()[0]
        threading.Thread(target=take_and_forget, args=(connection,), daemon=True).start()
"""


@pytest.fixture(params=["DATA", "CHUNKING"])
def port(request: pytest.FixtureRequest) -> Iterator[int]:
    command = [sys.executable, "-c", SINK, request.param]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


def peak(send: Callable[[], None]) -> int:
    """Return the most bytes that Python objects took meanwhile, above what they took before."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        send()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_number_of_messages(port: int) -> None:
    most_held = 0

    def send(count: int) -> None:
        nonlocal most_held
        pulled = delivered = 0

        def messages() -> Iterator[fastsmtp.Message]:
            nonlocal pulled
            for pulled in range(1, count + 1):
                content = f"message {pulled}\r\n" + "x" * 500
                yield fastsmtp.Message("ana@example.org", f"bob{pulled}@example.net", content)

        with fastsmtp.Mailer("127.0.0.1", port, connections=CONNECTIONS) as mailer:
            for delivered, delivery in enumerate(mailer.send_many(messages()), 1):
                assert delivery.status == "accepted"
                most_held = max(most_held, pulled - delivered)
        assert pulled == delivered == count

    send(FEW)  # what is allocated once, is now
    few = peak(lambda: send(FEW))
    assert peak(lambda: send(MANY)) < 1.25 * few + 50_000
    # For each connection as many as its depth: waiting, in flight, with a result to be taken.
    assert most_held <= 3 * 8 * CONNECTIONS
