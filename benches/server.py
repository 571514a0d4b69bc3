"""A server for what smtp-sink lacks: TLS 1.3, CHUNKING, replies that take their time.

One process takes one connection at a time; running() starts as many as there are to be
connections, on one listening socket, so that the server is the last thing that a client waits for.
A message is accepted only if it is, octet for octet, the one that was announced: a client that had
all of them accepted has sent what was to arrive.
"""

import argparse
import select
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

HOST = "127.0.0.1"
NO_OPENSSL = "no certificate for TLS: it takes the program openssl"
OK = b"250 2.0.0 Ok\r\n"
WRONG = b"554 5.6.0 this is not the message that was to be sent\r\n"
REPLIES = {
    b"MAIL": OK,
    b"RCPT": OK,
    b"RSET": OK,
    b"DATA": b"354 End data with <CR><LF>.<CR><LF>\r\n",
    b"QUIT": b"221 2.0.0 Bye\r\n",
}
RECEIVE = 1 << 18


class Conversation:
    """What one client says, answered."""

    def __init__(self, expected: bytes, chunking: bool) -> None:
        self._expected = expected
        self._ehlo = b"250-model.example\r\n250-PIPELINING\r\n250 8BITMIME\r\n"
        if chunking:
            self._ehlo = self._ehlo.replace(b"250 8", b"250-CHUNKING\r\n250 8")
        self._unread = b""
        self._in_data = False

    def answer(self, received: bytes) -> bytes:
        """Return the replies to what was received now."""
        unread = self._unread + received
        position = 0
        replies = []
        while (step := self._step(unread, position)) is not None:
            position, reply = step
            replies.append(reply)
        self._unread = unread[position:]
        return b"".join(replies)

    def _step(self, unread: bytes, position: int) -> tuple[int, bytes] | None:
        """Take the command or the message at *position*, if all of it is there."""
        if self._in_data:
            end = unread.find(b"\r\n.\r\n", position)
            if end < 0:
                return None
            self._in_data = False
            return end + 5, self._judge(unread, position, end + 2)
        end = unread.find(b"\n", position) + 1
        if not end:
            return None
        verb = unread[position : position + 4].upper()
        if verb == b"BDAT":
            size = int(unread[position:end].split()[1])
            if len(unread) < end + size:
                return None
            return end + size, self._judge(unread, end, end + size)
        self._in_data = verb == b"DATA"
        return end, self._ehlo if verb == b"EHLO" else REPLIES[verb]

    def _judge(self, unread: bytes, start: int, end: int) -> bytes:
        length = end - start
        right = length == len(self._expected) and unread.startswith(self._expected, start)
        return OK if right else WRONG


def serve(connection: socket.socket, conversation: Conversation, delay: float) -> None:
    """Answer until the client goes, each time *delay* seconds after it spoke."""
    waiting: deque[tuple[float, bytes]] = deque([(0.0, b"220 model.example ESMTP\r\n")])
    while True:
        now = time.monotonic()
        while waiting and waiting[0][0] <= now:
            connection.sendall(waiting.popleft()[1])
        if delay:
            patience = waiting[0][0] - now if waiting else None
            if not select.select([connection], [], [], patience)[0]:
                continue
        received = connection.recv(RECEIVE)
        if not received:
            return
        due = time.monotonic() + delay if delay else 0.0
        waiting.append((due, conversation.answer(received)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("descriptor", type=int, help="of a socket that listens")
    parser.add_argument("message", type=Path, help="a file with the message that is expected")
    parser.add_argument("--certificate", help="a PEM file: speak TLS 1.3 from the start")
    parser.add_argument("--chunking", action="store_true")
    parser.add_argument("--delay", type=float, default=0.0, help="of each reply, in seconds")
    options = parser.parse_args()
    listening = socket.socket(fileno=options.descriptor)
    expected = options.message.read_bytes()
    context = None
    if options.certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(options.certificate)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the client's to act on
    while True:
        accepted = listening.accept()[0]
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            connection = context.wrap_socket(accepted, server_side=True) if context else accepted
            with connection:
                serve(connection, Conversation(expected, options.chunking), options.delay)
        except OSError:
            pass  # the client has gone


# -- for the benches ----------------------------------------------------------


@contextmanager
def running(
    message: Path,
    connections: int,
    *,
    certificate: Path | None = None,
    chunking: bool = False,
    delay: float = 0.0,
) -> Iterator[int]:
    """Run the server for so many connections and give its port.

    *message* names a file with the message that is expected, without a final dot.
    """
    options = ["--delay", str(delay)]
    options += ["--chunking"] if chunking else []
    options += ["--certificate", str(certificate)] if certificate else []
    with ExitStack() as stack, socket.create_server((HOST, 0), backlog=100) as listening:
        descriptor = listening.fileno()
        command = [sys.executable, __file__, str(descriptor), str(message), *options]
        for _ in range(connections):
            process = subprocess.Popen(command, pass_fds=[descriptor])
            stack.callback(process.wait)
            stack.callback(process.terminate)
        yield listening.getsockname()[1]


def make_certificate(directory: Path) -> Path:
    """Make a key and a certificate for HOST in one PEM file; needs the program openssl."""
    key, certificate, pem = (directory / name for name in ("key", "certificate", "both"))
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    names = ["-subj", "/CN=localhost", "-addext", f"subjectAltName=IP:{HOST}"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *names, *files], check=True, capture_output=True)
    pem.write_bytes(key.read_bytes() + certificate.read_bytes())
    return pem


if __name__ == "__main__":
    main()
