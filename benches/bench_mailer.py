"""Many messages to smtp-sink: the Mailer, smtp-source, the floor, smtplib, aiosmtplib.

One call of the benchmark sends a whole batch. The senders take their turns only in report.py: its
ratios are the ones to quote.
"""

import resource
import shutil
import time
from functools import partial

import mailing
import pytest
import server
import sink
from measure import SIZES, text
from proxy import delayed

import fastsmtp

MAILER = fastsmtp.implementation()
BATCH = {"4 KB": 500, "200 KB": 100}  # messages
DELAY = 0.025  # seconds, each way
#: The most round trips for one message, and messages to count them over, by CHUNKING or not.
ROUND_TRIPS = {False: (1.1, 20), True: (0.2, 80)}


def cpu_time() -> float:
    """Return the seconds of CPU time of this process and of those that it has waited for."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


CLOCKS = [
    pytest.param("CPU", marks=pytest.mark.benchmark(timer=cpu_time)),
    pytest.param("wall", marks=pytest.mark.benchmark(timer=time.perf_counter)),
]
needs_sink = pytest.mark.skipif(not sink.SMTP_SINK, reason=sink.MISSING)
needs_openssl = pytest.mark.skipif(not shutil.which("openssl"), reason=server.NO_OPENSSL)


@pytest.fixture(scope="module")
def smtp_sink():
    with sink.running() as (port, _):
        yield port


@pytest.fixture(scope="module")
def floor():
    with mailing.compiled_floor() as program:
        yield program


@needs_sink
@pytest.mark.parametrize("sender", [MAILER, "floor", "smtp-source", "smtplib", "aiosmtplib"])
@pytest.mark.parametrize("clock", CLOCKS)
@pytest.mark.parametrize("connections", [1, 5, 20])
@pytest.mark.parametrize("size", ["4 KB", "200 KB"])
def test_mailing(benchmark, smtp_sink, floor, size, connections, clock, sender):
    benchmark.group = f"{BATCH[size]} messages, {size}, {connections} connections, {clock}"
    with (
        mailing.files(text(SIZES[size])) as files,
        mailing.senders(smtp_sink, files, connections, floor) as senders,
    ):
        if sender not in senders:
            pytest.skip(mailing.WHY_NOT[sender])
        benchmark.pedantic(senders[sender], args=(BATCH[size],), rounds=5)


@needs_sink
@pytest.mark.parametrize("size", ["4 KB", "200 KB"])
@pytest.mark.parametrize("connections", [1, 5])
def test_what_arrives(tmp_path, floor, size, connections):
    message = text(SIZES[size], dotted=True)
    dump = tmp_path / "dump"
    with (
        sink.running(dump) as (port, _),
        mailing.files(message) as files,
        mailing.senders(port, files, connections, floor) as senders,
    ):
        for send in senders.values():
            send(10)
    # smtp-source puts an empty line behind what it reads from a file.
    arrived = [message + "\n" * (name == "smtp-source") for name in senders for _ in range(10)]
    assert sink.dumped(dump) == arrived


@pytest.mark.parametrize("chunking", ROUND_TRIPS, ids=["DATA", "CHUNKING"])
def test_round_trips(benchmark, chunking):
    most, count = ROUND_TRIPS[chunking]
    benchmark.group = "one connection, 50 ms round trip"
    with delayed(DELAY, chunking=chunking) as network:
        run = partial(mailing.round_trips, network, text(SIZES["4 KB"]), count)
        assert benchmark.pedantic(run) <= most


@needs_openssl
@pytest.mark.parametrize("sender", [MAILER, "smtplib"])
def test_tls(benchmark, tmp_path, sender):
    benchmark.group = "500 messages, 4 KB, 5 connections, TLS 1.3, wall"
    with mailing.senders_by_tls(text(SIZES["4 KB"]), 5) as senders:
        benchmark.pedantic(senders[sender], args=(500,), rounds=3)


@pytest.mark.parametrize("depth", [1, 8, 32])
def test_depth(benchmark, depth):
    benchmark.group = "100 messages, one connection, CHUNKING, 5 ms round trip"
    with mailing.to_distant_server(text(SIZES["4 KB"]), 0.005) as send:
        benchmark.pedantic(send, args=(100,), kwargs={"depth": depth}, rounds=3)
