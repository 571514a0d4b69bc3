"""Leaks: what a call leaves behind does not grow with the number of calls.

    python tests/leaks.py [part of a name ...]

makes each call N times and 10 N times, and compares what is left: blocks that the interpreter has
allocated, references to what was given (and all references, where the interpreter counts them),
bytes that tracemalloc knows of, bytes that malloc() gave away, and what is resident.  Per call, the
difference has to be nothing: exit status 1 if it is not.  On CPython only, for the codec in use.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import platform
import smtplib
import subprocess
import sys
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from email.headerregistry import HeaderRegistry
from email.message import EmailMessage
from typing import Any, NamedTuple

import fastsmtp
from fastsmtp import codec
from fastsmtp.fields import _TOKENS

TEXT = "From Ann\n.\r\nline\r" * 30
TOKENS = HeaderRegistry()("To", ", ".join(["Ann Example <ann@example.org>"] * 9))._parse_tree
GAPS = memoryview(b"abcd")[::2]
MANY = 1 << 20

#: Arguments for each function of the codec: those that it takes, and of each kind that it refuses.
CALLS: dict[str, list[tuple[Any, ...]]] = {
    "normalize_newlines": [
        *((TEXT,), (TEXT.encode(),), (bytearray(b"clean\r\n"),), (memoryview(b"a\nb\rc"),), (b"",)),
        *(("é" * 30,), (5,), (GAPS,)),
    ],
    "stuff_dots": [(TEXT,), (TEXT.encode(),), (bytearray(b"clean\r\n"),), ("é",), (None,), (GAPS,)],
    "data_payload": [
        *((TEXT, True), (TEXT.encode(), False), (bytearray(b"clean\r\n"), True)),
        *(("é" * 30, True), (5, True), (GAPS, False)),
    ],
    "assemble": [
        *(([TEXT, b"octets"], b"\r\n", True), ([TEXT], b"\n", False), ([], b"\r\n", True)),
        *((["\u0100"], b"\r\n", True), ([TEXT, 5], b"\r\n", True), (None, b"", True)),
    ],
    "field_line": [
        *(("Subject", "word " * 9 + "end", 78, b"\r\n", True), ("X", "a\r\n b", 78, b"\n", True)),
        *(("Subject", "é", 78, b"\n", True), (5, "a", 78, b"\n", True), ("X", "a", "b", b"", True)),
    ],
    "first_values": [([("To", "a"), ("TO", "b"), ("Cc", None)],), ([(5, "a")],), (["To"],), (5,)],
    "tokens_line": [
        *(("To", TOKENS, _TOKENS, 78, b"\r\n"), ("To", TOKENS, {}, 998, b"\n")),
        *(("To", TOKENS, _TOKENS, 20, b"\n"), ("é", TOKENS, _TOKENS, 78, b"\n")),
        *(("To", [5], _TOKENS, 78, b"\n"), ("To", 5, _TOKENS, 78, b"\n")),
    ],
    "plain_addresses": [
        *(('Ann <ann@example.org>, "b, c" <b@x>, c@x',), ("a@x, é <b@x>",), ("\U0001f600 <a@x>",)),
        *(("a@x, nobody",), (5,)),
    ],
    "envelope_commands": [
        *(("a@x", ["b@x"] * 9, " SIZE=9"), ("", ("b@x",)), ("a@x", ["b@x", "no address"])),
        *(("a@x", ["b@x"], "\r\n"), ("a@x", ["b@x"], "é"), (5, ["b@x"]), ("a@x", 5)),
    ],
    "sasl_base64": [("text",), ("é",), (b"octets",), ("\ud800",), (5,)],
    "sasl_plain": [("user", "pässword"), (b"u", b"p", "z"), ("u\0", "p"), ("u", "\ud800"), (5, 6)],
    "sasl_xoauth2": [("user", "token"), ("u\1", "t"), ("u", 5)],
    "sasl_cram_md5": [("user", "password", b"<1@x>"), ("\ud800", "p", b""), ("u", "p", 5)],
    "decode_challenge": [(b"YWJj",), (b"a",), (5,), ("é",)],
}

Case = Callable[[], object]


def ignoring_errors(call: Callable[..., object], *arguments: Any) -> Case:
    def case() -> None:
        with contextlib.suppress(Exception):
            call(*arguments)

    return case


# -- replies ------------------------------------------------------------------


def parser(
    *pieces: bytes | int, ask: str = "next_reply", arguments: tuple[Any, ...] = (), **options: Any
) -> Case:
    def case() -> None:
        made = codec.ReplyParser(**options)
        for piece in pieces:
            made.feed(piece)
            for _ in range(3):
                getattr(made, ask)(*arguments)

    return ignoring_errors(case)


PARSERS = {
    "next_reply": parser(b"250-a\r\n25", b"0 b\r\n250 c\r\n", b""),
    "next_reply, code -1": parser(b"hello\r\n" * 3),
    "next_reply, strict, no code": parser(b"hello\r\n", strict=True),
    "next_reply, strict, no mark": parser(b"250x\r\n", strict=True),
    "next_reply, strict, other code": parser(b"250-a\r\n251 b\r\n", strict=True),
    "next_reply, line too long": parser(b"250 " + b"x" * 900, max_line=512),
    "next_reply, reply too long": parser(b"250-" + b"x" * 900, max_reply=512),
    "next_replies": parser(b"250 a\r\n250 b\r\n", ask="next_replies", arguments=(9,)),
    "next_replies, bad one": parser(
        b"250 a\r\nb\r\n", ask="next_replies", arguments=(9,), strict=True
    ),
    "take_replies": parser(b"250 a\r\n354 b\r\n", ask="take_replies", arguments=((250, 354),)),
    "take_replies, other": parser(b"250 a\r\n", ask="take_replies", arguments=((354,),)),
    "take_replies, no codes": parser(b"250 a\r\n", ask="take_replies", arguments=(("a",),)),
    "take_line": parser(b"250 a\r\n250 b", ask="take_line", arguments=(9,)),
    "take_line, no limit": parser(b"250 a\r\n", ask="take_line", arguments=("a",)),
    "feed, large": parser(b"250 " + b"x" * 70_000, b"\r\n" * 9),
    "feed, no octets": parser(b"250 a", 5),
}

# -- a server that keeps nothing, in a process of its own ----------------------

#: It refuses refused@, hangs up at lost@, says 421 at bye@ and no reply at confused@.
SERVER = r"""
import socket, sys, threading

REPLIES = {
    b"EHLO": b"250-sink.example\r\n250-PIPELINING\r\n250 AUTH PLAIN\r\n",
    b"DATA": b"354 go ahead\r\n", b"QUIT": b"221 bye\r\n", b"AUTH": b"535 no\r\n",
}
NAMED = {b"REFUSED@": b"550 no\r\n", b"BYE@": b"421 bye\r\n", b"CONFUSED@": b"hello\r\n"}

def converse(connection, lines):
    connection.sendall(b"220 sink.example ESMTP\r\n")
    recipients = 0
    for line in map(bytes.upper, lines):
        if b"LOST@" in line:
            return
        reply = next((NAMED[name] for name in NAMED if name in line), None)
        reply = reply or REPLIES.get(line[:4], b"250 ok\r\n")
        recipients += line[:4] == b"RCPT" and reply[:1] == b"2"
        if reply[:3] == b"354" and not recipients:
            reply = b"503 no recipients\r\n"
        connection.sendall(reply)
        if reply[:3] in (b"221", b"421"):
            return
        if reply[:3] == b"354":
            while lines.readline() not in (b".\r\n", b""):
                pass
            recipients = 0
            connection.sendall(b"250 taken\r\n")

def serve(connection):
    with connection, connection.makefile("rb") as lines:
        try:
            converse(connection, lines)
        except OSError:
            pass

with socket.create_server(("127.0.0.1", 0)) as listening:
    print(listening.getsockname()[1], flush=True)
    while True:
        connection = listening.accept()[0]
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=serve, args=(connection,), daemon=True).start()
"""


@contextlib.contextmanager
def server() -> Iterator[int]:
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


def letter() -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "ana@x", "Bob <bob@x>", "Grüße"
    message.set_content("Hello\n.\n")
    return message


def drop_in(port: int, *addresses: str, error: type[Exception] | None = None) -> Case:
    """Return a connection's life: a transaction that ends like that."""
    sender, *recipients = addresses

    def case() -> None:
        with fastsmtp.SMTP("127.0.0.1", port, "localhost", timeout=30) as client:
            try:
                client.sendmail(sender, recipients, TEXT)
                client.send_message(letter(), sender, recipients)
            except smtplib.SMTPException as raised:
                assert error is not None
                assert isinstance(raised, error), raised  # noqa: PT017
            else:
                assert error is None

    return case


def refused_login(port: int) -> None:
    with fastsmtp.SMTP("127.0.0.1", port, "localhost", timeout=30) as client:
        try:
            client.login("user", "password")
        except smtplib.SMTPAuthenticationError:
            return
    raise AssertionError("the server took a wrong password")


def no_connection() -> None:
    try:
        fastsmtp.SMTP("127.0.0.1", 1, "localhost", timeout=30)
    except OSError:
        return
    raise AssertionError("something listens on port 1")


def mailer(port: int, recipients: list[str], status: str) -> Case:
    """Return a Mailer's life: so many messages, of which the last one comes to that end."""

    def case() -> None:
        messages = [
            fastsmtp.Message("ana@x", recipient, f"{number}\r\n" + TEXT, id=number)
            for number, recipient in enumerate(recipients)
        ]
        options = {"connections": 2, "tls": "none", "local_hostname": "localhost", "retries": 0}
        with fastsmtp.Mailer("127.0.0.1", port, **options) as sender:
            ends = {each.id: each.status for each in sender.send_many(messages)}
        assert len(ends) == len(messages), ends
        assert status in ends.values(), ends

    return case


# -- measuring ----------------------------------------------------------------


class Left(NamedTuple):
    """What is there after so many calls, or per call."""

    blocks: float
    references: float
    traced: float
    malloc: float
    resident: float


#: The most that may be left per call: below one, for what is cached now and then.
MOST = Left(blocks=0.2, references=0.2, traced=8, malloc=8, resident=256)
#: And in all: the interpreter's tables are made anew, now smaller, now larger.
ROOM = Left(blocks=5, references=5, traced=100_000, malloc=100_000, resident=4_000_000)
#: What leaks does so each time; a table of the interpreter that is full grows once.
ATTEMPTS = 3


class _Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "abcdefg"] + [
        ("uordblks", ctypes.c_size_t), ("fordblks", ctypes.c_size_t), ("keepcost", ctypes.c_size_t)
    ]  # fmt: skip


def _mallinfo() -> Callable[[], Any] | None:
    """Return glibc's mallinfo2(), if it is to be had."""
    try:
        found = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError, TypeError):
        return None
    found.restype = _Mallinfo
    return found  # type: ignore[no-any-return]


MALLINFO = _mallinfo()


def resident() -> int:
    """Return the bytes of this process that are in memory, 0 where that is not told."""
    try:
        with open("/proc/self/statm") as numbers:
            return int(numbers.read().split()[1]) * 4096
    except OSError:
        return 0


def clean() -> None:
    """Let go of what only waits to be let go of."""
    # Types keep names that were looked up on them, thousands, and getattr() makes new ones.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        sys._clear_type_cache()
    gc.collect()


def grown(case: Case, times: int, held: list[Any]) -> Left:
    """Return what is left after so many calls that was not there before."""
    before, after = [0, 0, 0, 0], [0, 0, 0, 0]
    for numbers, count in ((before, 0), (after, times)):
        for _ in range(count):
            case()
        clean()
        numbers[:] = (
            sys.getallocatedblocks(),
            sum(map(sys.getrefcount, held)) + getattr(sys, "gettotalrefcount", int)(),
            MALLINFO().uordblks if MALLINFO else 0,
            resident(),
        )
    blocks, references, malloc, pages = (b - a for a, b in zip(before, after, strict=True))
    return Left(blocks, references, traced(case, times), malloc, pages)


def traced(case: Case, times: int) -> int:
    clean()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(times):
            case()
        clean()
        return tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


def per_call(case: Case, times: int, held: list[Any]) -> Left:
    """Return what each call leaves behind: the slope from N to 10 N calls, after a warm-up."""
    for _ in range(times):
        case()
    few, many = grown(case, times, held), grown(case, 10 * times, held)
    return Left(*((b - a) / (9 * times) for a, b in zip(few, many, strict=True)))


def is_nothing(found: Left, times: int) -> bool:
    return all(
        left <= most or left * times <= room
        for left, most, room in zip(found, MOST, ROOM, strict=True)
    )


def report(name: str, case: Case, times: int, held: list[Any]) -> bool:
    """Measure a case, print a line, and return whether nothing is left."""
    for _ in range(ATTEMPTS):
        found = per_call(case, times, held)
        if well := is_nothing(found, 9 * times):
            break
    numbers = " ".join(f"{number:10.2f}" for number in found)
    print(f"{name:44} {10 * times:6} {numbers}  {'ok' if well else 'GROWS'}", flush=True)
    return well


def objects_in(*values: Any) -> list[Any]:
    """Return arguments, and what is in those that are lists or tuples."""
    held: list[Any] = []
    for value in values:
        held.append(value)
        if isinstance(value, (list, tuple)):
            held += value
    return held


def cases(port: int) -> Iterator[tuple[str, Case, int, list[Any]]]:
    """Yield names, cases, how often they are called at first, and the objects they are given."""
    for name, calls in CALLS.items():
        for number, values in enumerate(calls):
            call = ignoring_errors(getattr(codec, name), *values)
            yield f"{name} {number}", call, 600, objects_in(*values)
    for name, case in PARSERS.items():
        yield f"ReplyParser.{name}", case, 600, []
    message = letter()
    yield "serialize", lambda: fastsmtp.serialize(message), 50, [message]
    address, other = "ana@x", "bob@x"
    for end, error in (
        ("", None),
        ("refused@", smtplib.SMTPRecipientsRefused),
        ("bye@", smtplib.SMTPRecipientsRefused),
        ("lost@", smtplib.SMTPServerDisconnected),
        ("confused@", smtplib.SMTPRecipientsRefused),
    ):
        wanted = (f"{end}x", end + "x") if end else (other,)
        yield f"SMTP: {end or 'accepted'}", drop_in(port, address, *wanted, error=error), 10, []
    yield (
        "SMTP: sender refused",
        drop_in(port, "refused@x", other, error=smtplib.SMTPSenderRefused),
        10,
        [],
    )
    yield "SMTP: login refused", lambda: refused_login(port), 10, []
    yield "SMTP: no connection", no_connection, 10, []
    for end, status in (
        ("bob@", "accepted"),
        ("refused@", "rejected"),
        ("bye@", "deferred"),
    ):
        yield f"Mailer: {status}", mailer(port, [*["bob@x"] * 9, f"{end}x"], status), 5, []


def main(parts: list[str]) -> int:
    if platform.python_implementation() != "CPython":
        print("Not measured: only CPython counts its blocks and references.")
        return 0
    functions = {name for name, value in vars(codec).items() if callable(value)}
    if missing := functions - CALLS.keys() - {"choose", "ReplyParser"}:
        print(f"No case for {', '.join(sorted(missing))} of the codec.")
        return 1
    print(f"Left per call, {fastsmtp.implementation()} codec, CPython {platform.python_version()}")
    print(f"{'':44} {'calls':>6} " + " ".join(f"{name:>10}" for name in Left._fields))
    with server() as port:
        found = [
            report(name, case, times, held)
            for name, case, times, held in cases(port)
            if not parts or any(part in name for part in parts)
        ]
    print(f"{len(found)} cases, {found.count(False)} grow")
    return 0 if all(found) and found else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
