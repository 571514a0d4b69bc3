"""sendmail() over one connection to smtp-sink: smtplib, fastsmtp, and the raw loop as the floor.

fastsmtp is in its chosen codec here; FASTSMTP_IMPL=python measures the other. The clients take
their turns message by message only in report.py: its ratios are the ones to quote.
"""

import os
import time
from contextlib import nullcontext

import pytest
import sink
from measure import SIZES, on_one_cpu, text

import fastsmtp

CLIENTS = ["smtplib", fastsmtp.implementation(), "raw loop"]
CLOCKS = [
    pytest.param("CPU", marks=pytest.mark.benchmark(timer=time.process_time)),
    pytest.param("wall", marks=pytest.mark.benchmark(timer=time.perf_counter)),
]
needs_affinity = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="no sched_setaffinity on this system"
)
PLACES = ["as scheduled", pytest.param("on one CPU", marks=needs_affinity)]

pytestmark = pytest.mark.skipif(not sink.SMTP_SINK, reason=sink.MISSING)


@pytest.fixture(scope="module")
def smtp_sink():
    with sink.running() as port_and_process:
        yield port_and_process


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("clock", CLOCKS)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("size", ["4 KB", "200 KB"])
def test_sendmail(benchmark, smtp_sink, size, place, clock, client):
    port, process = smtp_sink
    benchmark.group = f"sendmail, {size}, {place}, {clock}"
    placed = on_one_cpu(process) if place == "on one CPU" else nullcontext()
    with sink.clients(port, text(SIZES[size])) as clients, placed:
        benchmark(clients[client])


@pytest.mark.parametrize("size", ["4 KB", "200 KB"])
def test_what_arrives(tmp_path, size):
    message = text(SIZES[size], dotted=True)
    dump = tmp_path / "dump"
    with sink.running(dump) as (port, _), sink.clients(port, message) as clients:
        for send in clients.values():
            send()
    assert sink.dumped(dump) == [message] * len(clients)
