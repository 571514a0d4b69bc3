"""Send for minutes or hours by a Mailer to a server that fails at random, and keep the ledger.

    python tests/soak.py MINUTES [--seed N] [--messages N] [--mode NAME]

Each round is a run of test_ledger.py, in the next of its modes and with the next
seed: whatever the server does, every message has one Delivery, and it is true.
Besides, nothing may be left over from one round to the next: no descriptor, no
thread, and once all modes had their turn twice, no memory to speak of.

A line for each round, totals at the end, also after Ctrl-C.  The exit status is 1
if something was wrong; then the story is told, and how to have that run again.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import itertools
import os
import resource
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from support import TIMEOUT, make_certificate
from test_ledger import MODES, STALLS_IN_A_RUN, Quick, Rates, Run, audit, play, report

from fastsmtp import implementation, pool
from fastsmtp.delivery import STATUSES

MEBIBYTE = 1 << 20
#: Memory above that of the warm-up, in bytes, that a heap in use may come to.
GROWTH = 96 * MEBIBYTE
WARM_UP = 2 * len(MODES)


class Violation(Exception):
    """The Mailer is wrong; the text tells the story."""


def resident() -> int:
    """Return the bytes of this process that are in memory; where unknown, the most there were."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return pages * os.sysconf("SC_PAGE_SIZE")


def give_back() -> None:
    """Have glibc give back what it only keeps: what is in memory then is in use."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"))


class Soak:
    """All rounds, what they came to, and what must not grow."""

    def __init__(self, messages: int, pem: Path) -> None:
        self.messages = messages
        self.pem = pem
        self.rounds = 0
        self.sent = 0
        self.statuses: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.most = 0  # bytes, in the warm-up
        self.open = 0  # descriptors, after the first round

    def round(self, mode: str, seed: int) -> None:
        """Send so many messages, and hold the ledger against the server's record."""
        rates = Rates(stall=STALLS_IN_A_RUN / self.messages)
        try:
            with tempfile.TemporaryDirectory() as folder:
                run = play(mode, seed, self.messages, self.pem, Path(folder), rates)
        except Exception as error:
            raise Violation(f"seed {seed}, mode {mode}: {error!r}") from error
        problems = audit(run)
        if problems:
            raise Violation(report(run, problems, seed, mode))
        self.add(run, mode, seed)
        del run
        self.hold_nothing_left()

    def add(self, run: Run, mode: str, seed: int) -> None:
        self.rounds += 1
        statuses = Counter(delivery.status for delivery in run.deliveries)
        faults = run.server.faults
        self.sent += len(run.sent)
        self.statuses += statuses
        self.faults.update(kind for _, kind in faults.elements())
        told = ", ".join(f"{statuses[status]} {status}" for status in STATUSES)
        gave_up = f", gave up: {run.gave_up!r}" if run.gave_up else ""
        print(
            f"{self.rounds:5} seed {seed} {mode:18} {len(run.sent):6} messages: {told}; "
            f"{sum(faults.values())} faults; {resident() // MEBIBYTE} MiB, "
            f"{descriptors()} descriptors{gave_up}",
            flush=True,
        )

    def hold_nothing_left(self) -> None:
        gc.collect()
        give_back()
        for thread in threading.enumerate():
            if thread is not threading.current_thread():
                thread.join(TIMEOUT)  # one that only has to be told of its end
                if thread.is_alive():
                    raise Violation(f"a thread is left over: {thread!r}")
        self.open = self.open or descriptors()
        if descriptors() > self.open:
            raise Violation(f"{descriptors()} descriptors are open, {self.open} were before")
        if self.rounds <= WARM_UP:
            self.most = max(self.most, resident())
        elif resident() > self.most + GROWTH:
            raise Violation(f"{resident()} bytes are resident, {self.most} were in the warm-up")

    def totals(self, seconds: float) -> str:
        statuses = ", ".join(f"{self.statuses[status]} {status}" for status in STATUSES)
        faults = ", ".join(f"{n} {fault}" for fault, n in self.faults.most_common())
        return (
            f"\n{self.rounds} rounds, {seconds / 60:.1f} minutes, {self.sent} messages: {statuses}"
            f"\n{sum(self.faults.values())} faults: {faults}"
            f"\n{resident() // MEBIBYTE} MiB, in the warm-up at most {self.most // MEBIBYTE}; "
            f"{descriptors()} descriptors"
        )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("minutes", type=float)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="the first one")
    parser.add_argument("--messages", type=int, default=1000, help="in each round")
    parser.add_argument("--mode", choices=MODES, action="append", help="this one only; repeatable")
    return parser.parse_args()


def main() -> int:
    asked = arguments()
    # As in test_ledger.py: comes back at once after trouble.
    pool._TICK, pool.Backoff = 0.005, Quick
    begun = time.monotonic()
    print(f"codec: {implementation()}; first seed: {asked.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(asked.messages, make_certificate(Path(folder)))
        try:
            for mode, seed in zip(
                itertools.cycle(asked.mode or MODES), itertools.count(asked.seed)
            ):
                soak.round(mode, seed)
                if time.monotonic() - begun > 60 * asked.minutes:
                    break
        except KeyboardInterrupt:
            print("\ninterrupted")
        except Violation as violation:
            print(f"\nVIOLATION\n{violation}", soak.totals(time.monotonic() - begun), sep="\n")
            return 1
    print(soak.totals(time.monotonic() - begun))
    return 0


if __name__ == "__main__":
    sys.exit(main())
