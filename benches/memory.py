"""Flat memory: what a Mailer needs at its peak does not grow with the number of messages.

    python benches/memory.py [MANY [FEW]]

sends MANY messages (1,000,000) from a generator to smtp-sink, and FEW (10,000), each in a process
of its own, and compares the most memory that was resident. Exit status 1 if it grew by more than
5 %.
"""

import resource
import subprocess
import sys
from pathlib import Path

import sink

import fastsmtp

MANY, FEW = 1_000_000, 10_000
MOST = 1.05
CONNECTIONS = 5


def peak() -> int:
    """Return the most memory that this process has had resident, in KiB."""
    status = Path("/proc/self/status")
    if status.exists():
        # What getrusage() says on Linux begins with the peak of the process that started this one.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1])
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage // 1024 if sys.platform == "darwin" else usage


def send(port: int, count: int) -> None:
    """Send so many messages, each another one, and hold that all were accepted."""
    messages = (
        fastsmtp.Message(sink.SENDER, f"bob{number}@example.net", f"message {number}\n", id=number)
        for number in range(count)
    )
    options = {"connections": CONNECTIONS, "tls": "none", "local_hostname": "localhost"}
    with fastsmtp.Mailer(sink.HOST, port, **options) as mailer:
        accepted = sum(delivery.status == "accepted" for delivery in mailer.send_many(messages))
        assert accepted == mailer.totals.messages == count, mailer.totals


def measured(count: int) -> int:
    """Return the peak of a process that sends so many messages, in KiB."""
    with sink.running() as (port, _):
        command = [sys.executable, __file__, "child", str(port), str(count)]
        return int(subprocess.check_output(command))


def main(many: int = MANY, few: int = FEW) -> int:
    if not sink.SMTP_SINK:
        print(f"Not measured: {sink.MISSING}.")
        return 0
    small, large = measured(few), measured(many)
    print(
        f"Most memory resident, {fastsmtp.implementation()} codec: {few:,} messages {small} KiB, "
        f"{many:,} messages {large} KiB: {large / small:.3f} x, at most {MOST} x"
    )
    return 0 if large <= MOST * small else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        send(*map(int, sys.argv[2:]))
        print(peak())
    else:
        sys.exit(main(*map(int, sys.argv[1:])))
