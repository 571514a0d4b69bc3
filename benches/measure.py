"""How the benches and the report measure: contenders in turn, figures as ratios."""

import base64
import os
import platform
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

#: What a contender is: a call without arguments that does the work once.
Contenders = Mapping[str, Callable[[], object]]

SIZES = {"4 KB": 4096, "200 KB": 200_000, "10 MB": 10_000_000}


class Cost(NamedTuple):
    """Seconds per call: of this process's CPU time, and as the clock on the wall has it."""

    cpu: float
    wall: float


def text(size: int, newline: str = "\n", dotted: bool = False) -> str:
    """Return whole lines of 76 columns, as base64 has them, *size* bytes at most.

    With *dotted* every hundredth line begins with a dot.
    """
    count = size // (76 + len(newline))
    octets = random.Random(5321).randbytes(count * 57)
    lines = base64.encodebytes(octets).decode("ascii").splitlines()
    if dotted:
        lines[::100] = ["." + line[1:] for line in lines[::100]]
    return newline.join([*lines, ""])


def interleaved(
    contenders: Contenders, *, rounds: int = 15, seconds: float = 0.02
) -> dict[str, list[Cost]]:
    """Run each contender for about *seconds* in each round; return its cost, round by round.

    What disturbs a round disturbs them all, so the ratios within one can be trusted where its
    times cannot. Each contender begins a round as often as any other.
    """
    calls = {name: _calls(call, seconds) for name, call in contenders.items()}
    costs: dict[str, list[Cost]] = {name: [] for name in contenders}
    names = list(contenders)
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            costs[name].append(cost(contenders[name], calls[name]))
    return costs


def cost(call: Callable[[], object], calls: int) -> Cost:
    """Return what one of so many *calls* cost."""
    repeat = range(calls)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in repeat:
        call()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return Cost(cpu / calls, wall / calls)


def _calls(call: Callable[[], object], seconds: float) -> int:
    call()  # The first one may have to open a connection, or to fill a cache.
    calls = 1
    while (wall := cost(call, calls).wall * calls) < seconds / 4:
        calls *= 2
    return max(1, round(calls * seconds / wall))


def ratio(over: list[Cost], under: list[Cost], clock: str = "cpu") -> float:
    """Return the median over all rounds of one cost divided by another."""
    return median(
        getattr(one, clock) / getattr(other, clock) for one, other in zip(over, under, strict=True)
    )


@contextmanager
def on_one_cpu(*others: int) -> Iterator[None]:
    """Keep this process and *others*, by their ids, on one CPU.

    A round trip between two CPUs of a virtual machine has them woken by interrupts that cost more
    than all that a client does.
    """
    before = os.sched_getaffinity(0)
    processes = (0, *others)
    try:
        for process in processes:
            os.sched_setaffinity(process, {max(before)})
        yield
    finally:
        for process in processes:
            os.sched_setaffinity(process, before)


def environment() -> str:
    """Return in one line what the figures depend on."""
    kernel = platform.release().partition("-")[0]
    load = f", load average {os.getloadavg()[0]:.1f} before" if hasattr(os, "getloadavg") else ""
    return (
        f"{platform.python_implementation()} {platform.python_version()}, {_cpu()}, "
        f"{os.cpu_count()} cores, {platform.system()} {kernel}{load}"
    )


def _cpu() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
