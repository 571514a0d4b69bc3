"""Print the README's table of ratios, in Markdown: python benches/report.py

The package chooses its codec when it is imported. So what depends on that is measured by this
script in child processes, one for each codec, which compare with smtplib in their own process.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from statistics import median
from typing import NamedTuple

import bench_codec
import bench_latency
import sink
from measure import SIZES, environment, interleaved, on_one_cpu, ratio, text
from proxy import delayed

import fastsmtp

IMPORTS = 31  # fresh interpreters for each figure
TIMED_IMPORT = """
import sys, time
begun = time.perf_counter()
__import__(sys.argv[1])
print(time.perf_counter() - begun)
"""
CODECS = {"c": "C", "python": "Python"}


class Figure(NamedTuple):
    """A measured value; those that differ in nothing else share a row, or a cell of it."""

    what: str
    against: str
    target: str
    codec: str
    value: str


def times(value: float) -> str:
    return f"{value:.0f} x" if value >= 20 else f"{value:.1f} x"


# -- what is measured here ----------------------------------------------------


def codec_figures() -> Iterator[Figure]:
    for case in bench_codec.CASES:
        for name, run in case.contenders.items():
            assert case.normal(run()) == case.expected, (case.what, case.size, name)
        costs = interleaved(case.contenders)
        baseline, *codecs = costs
        for name in codecs:
            value = f"{case.size}: {times(ratio(costs[baseline], costs[name]))}"
            yield Figure(case.what, case.against, case.target, name, value)


def import_figures() -> Iterator[Figure]:
    codecs = list(bench_codec.codecs())
    ratios: dict[str, list[float]] = {codec: [] for codec in codecs}
    for turn in range(-1, IMPORTS):
        old = import_time("smtplib", "")
        for codec in codecs:
            new = import_time("fastsmtp", codec)
            if turn >= 0:  # The first ones may still have to compile, or to read from the disk.
                ratios[codec].append(new / old)
    for codec in codecs:
        value = f"{median(ratios[codec]):.2f} x as long"
        yield Figure("`import fastsmtp`", "`import smtplib`", "<= 1.15 x", codec, value)


def import_time(module: str, codec: str) -> float:
    return float(run_python("-c", TIMED_IMPORT, module, codec=codec))


# -- what is measured in a child process for each codec -----------------------


def sendmail_figures() -> Iterator[Figure]:
    with sink.running() as (port, process):
        for size, target in (("4 KB", "6 x, 4 x"), ("200 KB", "15 x, -")):
            with sink.clients(port, text(SIZES[size])) as clients:
                yield from compared(clients, size, target, "")
                if hasattr(os, "sched_setaffinity"):
                    with on_one_cpu(process):
                        yield from compared(clients, size, target, "on one CPU: ")


def compared(clients: dict, size: str, target: str, place: str) -> Iterator[Figure]:
    codec = fastsmtp.implementation()
    costs = interleaved(clients, seconds=0.05)
    for clock in ("CPU", "wall"):
        for name, what in ((codec, "`sendmail`"), ("raw loop", "raw loop for `sendmail`")):
            value = place + times(ratio(costs["smtplib"], costs[name], clock.lower()))
            goal = target if (name, clock) == (codec, "CPU") else ""
            yield Figure(f"{what}, {size}, {clock} per message", "smtplib", goal, codec, value)


def latency_figures() -> Iterator[Figure]:
    codec = fastsmtp.implementation()
    with (
        delayed(bench_latency.DELAY) as network,
        bench_latency.connected("smtplib", network) as old,
        bench_latency.connected("fastsmtp", network) as new,
    ):
        for recipients in (1, 10):
            clients = {
                "smtplib": bench_latency.sends(old, network, recipients),
                codec: bench_latency.sends(new, network, recipients),
            }
            theirs, ours = (send() for send in clients.values())
            costs = interleaved(clients, rounds=5)
            sooner = times(ratio(costs["smtplib"], costs[codec], "wall"))
            what = f"`sendmail` at 50 ms, recipients: {recipients}"
            against = f"smtplib's {theirs} round trips"
            yield Figure(what, against, "2", codec, f"{ours}, {sooner} sooner")


def child_figures(codec: str) -> list[Figure]:
    return [Figure(*values) for values in json.loads(run_python(__file__, "child", codec=codec))]


def run_python(*arguments: str, codec: str) -> str:
    # An installed package is compiled; with this set, one on PYTHONPATH would not be.
    environ = {**os.environ, "FASTSMTP_IMPL": codec, "PYTHONDONTWRITEBYTECODE": ""}
    return subprocess.check_output([sys.executable, *arguments], env=environ, text=True)


# -- the table ----------------------------------------------------------------


def table(figures: list[Figure]) -> Iterator[str]:
    yield f"| what | against | {' | '.join(CODECS.values())} | at least: C, Python |"
    yield "|---|---|" + "---|" * len(CODECS) + "---|"
    rows: dict[tuple[str, str, str], dict[str, list[str]]] = {}
    for what, against, target, codec, value in figures:
        cells = rows.setdefault((what, against, target), {codec: [] for codec in CODECS})
        cells[codec].append(value)
    for (what, against, target), cells in rows.items():
        columns = [", ".join(values) or "-" for values in cells.values()]
        yield f"| {what} | {against} | {' | '.join(columns)} | {target} |"


def main() -> None:
    print(f"{environment()}\n")
    figures = [*codec_figures()]
    for codec in bench_codec.codecs():
        figures += child_figures(codec)
    figures += import_figures()
    print(*table(figures), sep="\n")
    if not sink.SMTP_SINK:
        print(f"\nNo `sendmail` per message: {sink.MISSING}.")


if __name__ == "__main__":
    if sys.argv[1:] == ["child"]:
        sent = list(sendmail_figures()) if sink.SMTP_SINK else []
        print(json.dumps([*sent, *latency_figures()]))
    else:
        main()
