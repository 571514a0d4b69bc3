"""Peak memory of send_message(): python benches/message_memory.py [OCTETS]

sends a message with an attachment of so many OCTETS (25,000,000) to smtp-sink, by smtplib and by
fastsmtp, each in a process of its own, and prints how much more memory was resident at most than
before the call, when the message was there already.
"""

import ctypes
import gc
import importlib
import random
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from email.message import EmailMessage
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import sink
from measure import SIZES, text
from memory import peak

import fastsmtp

OCTETS = 25_000_000
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
#: Elsewhere a process's peak is the one since it began.
MEASURABLE = RESET.exists()
MISSING = "no /proc/self/clear_refs here, to begin a peak of memory anew"

TEXT = text(SIZES["4 KB"])
SUBJECT, NAME = "Minutes of the meeting", "Bob Stone"


def composed(
    number: int = 0,
    *,
    to: Sequence[str] = (),
    subject: str = SUBJECT,
    name: str = NAME,
    attachment: int = 0,
    boundary: str | None = "=_minutes",
) -> EmailMessage:
    """Return a message of 8 fields and 4 KB of text, as a program composes it.

    No two with different numbers have the same To, Subject, Date or Message-ID. An *attachment* is
    of so many random octets; without a *boundary* one is drawn when the message is serialised.
    """
    date = datetime(2024, 3, 27, 11, tzinfo=timezone(timedelta(hours=1)))
    message = EmailMessage()
    message["From"] = f"Ana Lima <{sink.SENDER}>"
    message["To"] = ", ".join(to) or f"{name} <bob{number}@example.net>"
    message["Subject"] = f"{subject}, {number}"
    message["Date"] = date + timedelta(minutes=number)
    message["Message-ID"] = f"<minutes.{number}@example.org>"
    message.set_content(TEXT)
    if attachment:
        octets = random.Random(attachment).randbytes(attachment)
        message.add_attachment(octets, "application", "pdf", filename="minutes.pdf")
        if boundary:
            message.set_boundary(boundary)
    return message


class Peak(NamedTuple):
    """In octets: the message as sent, and the most memory above what was resident before."""

    message: int
    above: int


def resident() -> int:
    """Return how much is resident, in KiB, when all that is free has been given back."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:  # The C library keeps some of what composing took: the call would need less anew.
        trim(0)
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1])


def send(library: str, port: int, octets: int) -> int:
    """Send such a message; return the most memory above that before the call, in octets."""
    with importlib.import_module(library).SMTP(sink.HOST, port, "localhost") as smtp:
        # What is loaded, or made once, is by a small one.
        assert smtp.send_message(composed(attachment=1000)) == {}
        message = composed(attachment=octets)
        before = resident()
        RESET.write_text("5")
        assert smtp.send_message(message) == {}
        return (peak() - before) * 1024


def measured(library: str, octets: int = OCTETS) -> Peak:
    """Return the peak of a process that sends by *library*, and check what arrived."""
    with TemporaryDirectory() as directory:
        dump = Path(directory, "dump")
        with sink.running(dump) as (port, _):
            command = [sys.executable, __file__, "child", library, str(port), str(octets)]
            above = int(subprocess.check_output(command))
        arrived = sink.dumped(dump)[-1]
    assert arrived == composed(attachment=octets).as_string()
    return Peak(len(arrived) + arrived.count("\n"), above)


def main(octets: int = OCTETS) -> None:
    if not (sink.SMTP_SINK and MEASURABLE):
        print(f"Not measured: {MISSING if sink.SMTP_SINK else sink.MISSING}.")
        return
    print(f"{fastsmtp.implementation()} codec; memory at most, above that before send_message():")
    for library in ("smtplib", "fastsmtp"):
        message, above = measured(library, octets)
        ratio = above / message
        print(f"{library}: {above:,} octets for a message of {message:,}: {ratio:.2f} x")


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        print(send(sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
    else:
        main(*map(int, sys.argv[1:]))
