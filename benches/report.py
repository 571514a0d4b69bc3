"""Print the README's tables of ratios, in Markdown: python benches/report.py [TABLE...]

The tables are codec, message, sendmail, mailer and depth; all of them, if none is named.

The package chooses its codec when it is imported. So what depends on that is measured by this
script in child processes, one for each codec, which compare with the others in their own process.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from shutil import which
from statistics import median, quantiles
from typing import NamedTuple

import bench_codec
import bench_latency
import bench_message
import mailing
import message_memory
import server
import sink
from measure import SIZES, Cost, environment, interleaved, on_one_cpu, ratio, text
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
CODEC = fastsmtp.implementation()
AGAINST = {
    "aiosmtplib": "aiosmtplib",
    "floor": "a C loop that writes and reads the same",
    "smtp-source": "Postfix's `smtp-source`",
    "smtplib": "smtplib",
}
DEPTHS = (1, 2, 4, 8, 16, 32)


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
    costs = interleaved(clients, seconds=0.05)
    for clock in ("CPU", "wall"):
        for name, what in ((CODEC, "`sendmail`"), ("raw loop", "raw loop for `sendmail`")):
            value = place + times(ratio(costs["smtplib"], costs[name], clock.lower()))
            goal = target if (name, clock) == (CODEC, "CPU") else ""
            yield Figure(f"{what}, {size}, {clock} per message", "smtplib", goal, CODEC, value)


def latency_figures() -> Iterator[Figure]:
    with (
        delayed(bench_latency.DELAY) as network,
        bench_latency.connected("smtplib", network) as old,
        bench_latency.connected("fastsmtp", network) as new,
    ):
        for recipients in (1, 10):
            clients = {
                "smtplib": bench_latency.sends(old, network, recipients),
                CODEC: bench_latency.sends(new, network, recipients),
            }
            theirs, ours = (send() for send in clients.values())
            costs = interleaved(clients, rounds=5)
            sooner = times(ratio(costs["smtplib"], costs[CODEC], "wall"))
            what = f"`sendmail` at 50 ms, recipients: {recipients}"
            against = f"smtplib's {theirs} round trips"
            yield Figure(what, against, "2", CODEC, f"{ours}, {sooner} sooner")


# -- messages, also in child processes ----------------------------------------


def message_figures() -> Iterator[Figure]:
    for case in bench_message.CASES:
        contenders = case.contenders()
        theirs, ours = case.outcomes(contenders)
        assert theirs == ours, case.name
        theirs, ours = interleaved(contenders).values()
        faster = times(ratio(theirs, ours))
        value = f"{case.size}: {faster}" if case.size else faster
        yield Figure(case.what, case.against, case.target, CODEC, value)
    yield from recipient_figures()
    if sink.SMTP_SINK:
        yield from send_message_figures()
        if message_memory.MEASURABLE:
            yield from memory_figures()


def recipient_figures() -> Iterator[Figure]:
    paths = bench_message.PATHS
    for make, kind in paths.values():
        assert bench_message.TO_COMMANDS[kind](make()) == bench_message.COMMANDS
    costs = interleaved({name: make for name, (make, _) in paths.items()})
    for name in list(paths)[1:]:
        each = median(cost.cpu for cost in costs[name]) / len(bench_message.RECIPIENTS)
        value = f"{each * 1e6:.2f} µs, {times(ratio(costs['smtplib'], costs[name]))}"
        target = "<= 1 µs, -" if name == "`quoteaddr`" else ""
        yield Figure(f"{name}, per recipient", "smtplib's `quoteaddr`", target, CODEC, value)


def send_message_figures() -> Iterator[Figure]:
    with sink.running() as (port, process):
        for sending in bench_message.SENDINGS:
            places = {"": nullcontext()}
            if hasattr(os, "sched_setaffinity"):
                places["on one CPU: "] = on_one_cpu(process)
            with bench_message.senders(port, sending) as clients:
                for place, placed in places.items():
                    with placed:
                        costs = interleaved(clients, seconds=0.05)
                    value = place + times(ratio(costs["smtplib"], costs[CODEC]))
                    what = f"{sending.what}, CPU per message"
                    yield Figure(what, "smtplib", sending.target, CODEC, value)


def memory_figures() -> Iterator[Figure]:
    theirs, ours = (message_memory.measured(library) for library in ("smtplib", "fastsmtp"))
    what = "`send_message`, attachment of 25 MB, memory above the message's"
    yield Figure(what, "smtplib", "<= 0.33 x, -", CODEC, f"{ours.above / theirs.above:.2f} x")
    value = f"{ours.above / ours.message:.2f} x"
    yield Figure(what, "the message as sent", "<= 1.1 x, -", CODEC, value)


# -- the Mailer, also in child processes --------------------------------------


def mailer_figures() -> Iterator[Figure]:
    if sink.SMTP_SINK:
        with sink.running() as (port, _), mailing.compiled_floor() as floor:
            for size in ("4 KB", "200 KB"):
                for connections in (1, 5, 20):
                    yield from mailed(port, floor, size, connections)
    yield from round_trip_figures()
    if which("openssl"):
        with mailing.senders_by_tls(text(SIZES["4 KB"]), 5) as senders:
            costs = mailing.in_turn(senders)
        value = spread(costs["smtplib"], costs[CODEC], "wall")
        what = "messages/s by TLS 1.3, 4 KB, 5 connections"
        yield Figure(what, "smtplib in 5 threads", ">= 4 x", CODEC, value)


def mailed(port: int, floor: Path | None, size: str, connections: int) -> Iterator[Figure]:
    """Compare what sends to smtp-sink over so many connections."""
    of_size = f"{size}, {connections} connection{'s' * (connections > 1)}"
    with (
        mailing.files(text(SIZES[size])) as files,
        mailing.senders(port, files, connections, floor) as senders,
    ):
        wanted = senders if connections < 20 else senders.keys() & {CODEC, "smtp-source"}
        costs = mailing.in_turn({name: senders[name] for name in senders if name in wanted})
    rates = {"smtplib": ">= 5 x"} if connections == 1 else {"smtp-source": ">= 1.2 x"}
    for name, target in rates.items():
        if name in costs:
            value = spread(costs[name], costs[CODEC], "wall")
            yield Figure(f"messages/s, {of_size}", AGAINST[name], target, CODEC, value)
    if connections == 5:
        targets = {"smtp-source": 0.6, "floor": 3, "smtplib": 0.1, "aiosmtplib": 0.05}
        for name, target in targets.items():
            if name in costs:
                value = spread(costs[CODEC], costs[name], "cpu")
                what = f"CPU per message, {of_size}"
                yield Figure(what, AGAINST[name], f"<= {target} x", CODEC, value)


def spread(over: list[Cost], under: list[Cost], clock: str) -> str:
    """Return the median of the ratios within each round, and between which half of them are."""
    ratios = [
        getattr(one, clock) / getattr(other, clock) for one, other in zip(over, under, strict=True)
    ]
    low, middle, high = quantiles(ratios, n=4, method="inclusive")
    digits = 1 if middle >= 1 else 2 if middle >= 0.1 else 3
    return f"{middle:.{digits}f} x ({low:.{digits}f} to {high:.{digits}f})"


def round_trip_figures() -> Iterator[Figure]:
    message = text(SIZES["4 KB"])
    for chunking, count, target in ((False, 40, "<= 1.1"), (True, 160, "<= 0.2")):
        with delayed(bench_latency.DELAY, chunking=chunking) as network:
            made = mailing.round_trips(network, message, count)
        way = "CHUNKING" if chunking else "DATA"
        what = f"round trips per message at 50 ms, 1 connection, {way}"
        yield Figure(what, "smtplib's 4", target, CODEC, f"{made:.2f}")


def depth_figures() -> Iterator[Figure]:
    """Messages a second by CHUNKING over one connection, by depth, where replies take longer."""
    message = text(SIZES["4 KB"])
    for delay in (0.0, 0.005, 0.05):
        with mailing.to_distant_server(message, delay) as send:
            senders = {depth: partial(send, depth=depth) for depth in DEPTHS}
            costs = mailing.in_turn(senders, rounds=3, seconds=0.5, least=64)
        for depth in DEPTHS:
            rate = 1 / median(cost.wall for cost in costs[depth])
            gain = ratio(costs[1], costs[depth], "wall")
            what = f"CHUNKING, messages/s at {delay * 1000:.0f} ms, depth {depth}"
            yield Figure(what, "depth 1", "", CODEC, f"{rate:.0f}: {gain:.1f} x")


# -- the child processes ------------------------------------------------------


def child_figures(what: str, codec: str) -> list[Figure]:
    return [
        Figure(*values) for values in json.loads(run_python(__file__, "child", what, codec=codec))
    ]


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


def sendmail() -> Iterator[Figure]:
    if sink.SMTP_SINK:
        yield from sendmail_figures()
    yield from latency_figures()


#: What a child process measures.
CHILDREN = {
    "message": message_figures,
    "sendmail": sendmail,
    "mailer": mailer_figures,
    "depth": depth_figures,
}


def main(*wanted: str) -> None:
    """Print a table of codec, message, sendmail, mailer and depth each, or of those *wanted*."""
    print(environment())
    codecs = list(bench_codec.codecs())
    for name in wanted or ("codec", *CHILDREN):
        if name == "codec":
            figures = [*codec_figures(), *import_figures()]
        else:
            figures = [figure for codec in codecs for figure in child_figures(name, codec)]
        print("", *table(figures), sep="\n", flush=True)
    for lacking in missing():
        print(f"\nNot all was measured: {lacking}.")


def missing() -> Iterator[str]:
    """Yield in words what cannot be measured here, and why."""
    if not sink.SMTP_SINK:
        yield sink.MISSING
    if not message_memory.MEASURABLE:
        yield message_memory.MISSING
    if not mailing.SMTP_SOURCE:
        yield mailing.WHY_NOT["smtp-source"]
    with mailing.compiled_floor() as floor:
        if not floor:
            yield mailing.WHY_NOT["floor"]
    if not which("openssl"):
        yield server.NO_OPENSSL


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        print(json.dumps([*CHILDREN[sys.argv[2]]()]))
    else:
        main(*sys.argv[1:])
