"""``fastsmtp bench`` against model servers, small."""

from __future__ import annotations

import asyncio
import io
import json
import re
import socket
import sys
import threading
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from rich.console import Console
from support import ASYNCIO_PORTS, EXTENSIONS, ModelServer, server_tls

from fastsmtp.cli import bench
from fastsmtp.cli.bench import Load, Point
from fastsmtp.cli.demo_server import Receiver

ADDRESSES = ["--from", "ana@example.org", "--to", "bob@example.net"]


def run(server, *arguments: str, status: int = 0, width: int = 120):
    where = ["--server", f"{server.host}:{server.port}"] if server else []
    result = CliRunner().invoke(
        bench.command, [*where, *ADDRESSES, *arguments], env={"COLUMNS": str(width)}
    )
    assert result.exit_code == status, result.output
    return result


def in_json(*arguments, status: int = 0):
    return json.loads(run(*arguments, "--json", status=status).stdout)


def test_points_and_what_arrives():
    with ModelServer() as server:
        found = in_json(
            server,
            "--messages",
            "6",
            "--connections",
            "3,1",
            "--size",
            "1000",
            "--to",
            "eve@x.example",
        )
    assert len(server.messages) == 12
    assert {len(message.data) for message in server.messages} == {1000}
    assert {message.sender for message in server.messages} == {"ana@example.org"}
    recipients = sorted(message.recipients[0] for message in server.messages)
    assert recipients == ["bob@example.net"] * 6 + ["eve@x.example"] * 6
    ids = {re.search(rb"(?m)^Message-ID: (.*)\r$", each.data)[1] for each in server.messages}
    assert len(ids) == 12
    assert found["messages"] == 6
    assert found["chunking"] is False
    assert [point["connections"] for point in found["points"]] == [1, 3]
    for point in found["points"]:
        assert point["depth"] == 1
        assert point["counts"] == {"accepted": 6}
        assert point["rate"] == pytest.approx(6 / point["seconds"])
        assert point["octets_per_second"] == pytest.approx(1000 * point["rate"])
        assert 0 < point["cpu_per_message"] < 1
        assert 0 < point["p50"] <= point["p95"] <= point["p99"] <= point["seconds"] + 0.1
        assert point["problem"] is None
        assert "latencies" not in point


def test_it_says_that_the_mail_is_real():
    with ModelServer() as server:
        result = run(server, "--messages", "2", "--connections", "1")
        where = f"127.0.0.1:{server.port}"
    said = " ".join(result.stderr.split())
    assert (
        "Sending up to 2 real messages of 4,096 octets from ana@example.org to "
        f"bob@example.net through {where}." in said
    )
    assert "1 connection: " in said
    assert "SENDS REAL MAIL" in CliRunner().invoke(bench.command, ["--help"]).stdout


@pytest.mark.parametrize("width", [120, 60])
def test_the_table(width):
    with ModelServer() as server:
        output = run(server, "--messages", "4", "--connections", "1,2", width=width).stdout
    lines = output.splitlines()
    assert max(map(len, lines)) <= width
    head = next(line for line in lines if "conn." in line)
    assert ("MB/s" in head) == (width > 60)
    rows = [line.split() for line in lines if re.match(r" +\d+ ", line)]
    assert [row[0] for row in rows] == ["1", "2"]
    assert [row[1] for row in rows] == ["-", "-"]
    assert [row[-1] for row in rows] == ["4", "4"]
    assert "Without CHUNKING" in output
    assert "\x1b" not in output


def test_depths_where_there_is_chunking():
    points = bench.points([1, 5], [1, 8], 4096, chunking=True)
    assert [(point.depth, point.connections) for point in points] == [
        (1, 1),
        (1, 5),
        (8, 1),
        (8, 5),
    ]
    assert all(point.chunking for point in points)
    points = bench.points([1, 5], [2, 8], 4096, chunking=False)
    assert [(point.depth, point.connections) for point in points] == [(1, 1), (1, 5)]


def test_chunking_is_found_and_used(receiver):
    server, received = receiver
    found = in_json(server, "--messages", "20", "--connections", "2", "--depth", "1,4")
    assert found["chunking"] is True
    assert [point["depth"] for point in found["points"]] == [1, 4]
    assert len(received) == 40
    found = in_json(server, "--messages", "5", "--connections", "1", "--no-chunking")
    assert found["chunking"] is False
    assert len(received) == 45


@pytest.fixture
def receiver():
    """The demo's receiver, which offers CHUNKING, in a thread: its port and what it received."""
    received: list = []
    ports: list[int] = []
    ready = threading.Event()
    loop = asyncio.new_event_loop()

    opened: set = set()

    class Visited(Receiver):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            opened.add(transport)
            super().connection_made(transport)

        def connection_lost(self, exc: Exception | None) -> None:
            opened.discard(self._transport)

    async def main() -> None:
        server = await loop.create_server(lambda: Visited(received), "127.0.0.1", 0)
        ports.append(server.sockets[0].getsockname()[1])
        ASYNCIO_PORTS.add(ports[0])
        loop.stopped = asyncio.Event()
        ready.set()
        await loop.stopped.wait()
        server.close()
        while opened or len(asyncio.all_tasks()) > 1:  # one may just have been accepted
            for transport in list(opened):
                transport.abort()
            await asyncio.sleep(0)

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),))
    thread.start()
    assert ready.wait(10)
    yield SimpleNamespace(host="127.0.0.1", port=ports[0]), received
    loop.call_soon_threadsafe(loop.stopped.set)
    thread.join(10)
    loop.close()


def test_a_refusal_ends_the_point_and_the_others_go_on():
    with ModelServer(replies={("body", 3): b"550 5.7.1 enough \x1b[31m\r\n"}) as server:
        result = run(server, "--messages", "8", "--connections", "1,2", status=1)
        assert len(server.messages) < 16
        assert "rejected: 550 5.7.1 enough ?[31m" in " ".join(result.stdout.split())
        found = in_json(server, "--messages", "8", "--connections", "1,2", status=1)
    assert len(found["points"]) == 2
    for point in found["points"]:
        assert point["problem"].startswith("rejected: 550 5.7.1 enough")
        assert point["rate"] is point["p50"] is point["cpu_per_message"] is None
        assert point["counts"]["rejected"] in (1, 2)  # one on each connection, at most


def test_where_nothing_is_accepted_it_ends():
    with ModelServer(replies={"RCPT": b"550 5.1.1 no such user\r\n"}) as server:
        found = in_json(server, "--messages", "5", "--connections", "1,2,5", status=1)
    assert len(found["points"]) == 1
    assert found["points"][0]["problem"] == "rejected: 550 5.1.1 no such user"
    assert server.messages == []


def test_nobody_listens():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        result = CliRunner().invoke(bench.command, ["--server", f"127.0.0.1:{port}", *ADDRESSES])
    assert result.exit_code == 69
    assert f"127.0.0.1:{port}: " in result.stderr
    assert "Sending" not in result.stderr


def test_auth_that_fails(monkeypatch, certificate):
    monkeypatch.setenv("BENCH_PASSWORD", "wrong")
    extensions = [*EXTENSIONS, "AUTH PLAIN"]
    tls = server_tls(certificate)
    with ModelServer(extensions, users={"ana": "right"}, tls=tls, implicit_tls=True) as server:
        login = ["--tls", "implicit", "--ca-file", str(certificate), "--user", "ana"]
        login += ["--password-env", "BENCH_PASSWORD", "--messages", "3", "--connections", "1,2"]
        found = in_json(server, *login, status=77)
        monkeypatch.setenv("BENCH_PASSWORD", "right")
        assert in_json(server, *login)["points"][1]["counts"] == {"accepted": 3}
    assert len(found["points"]) == 1
    assert found["points"][0]["problem"]
    assert "wrong" not in json.dumps(found)


def test_ctrl_c_keeps_what_was_measured(monkeypatch):
    measured = bench.measure

    def measure(connection, point, messages, step):
        if point.connections == 2:
            raise KeyboardInterrupt
        measured(connection, point, messages, step)

    monkeypatch.setattr(bench, "measure", measure)
    with ModelServer() as server:
        found = in_json(server, "--messages", "3", "--connections", "1,2,3", status=130)
    assert [point["problem"] for point in found["points"]] == [None, "interrupted"]
    assert [point["connections"] for point in found["points"]] == [1, 2]


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_plot(tmp_path, suffix):
    pytest.importorskip("matplotlib", reason="the extra bench is not installed")
    path = tmp_path / f"rate.{suffix}"
    with ModelServer() as server:
        result = run(server, "--messages", "3", "--connections", "1,2", "--plot", str(path))
    assert "The plot is in" in result.stderr
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG" if suffix == "png" else b"<?xml")
    assert len(content) > 5000


def test_a_plot_of_nothing(tmp_path):
    pytest.importorskip("matplotlib", reason="the extra bench is not installed")
    path = tmp_path / "rate.png"
    with ModelServer(replies={"RCPT": b"550 no\r\n"}) as server:
        run(server, "--messages", "3", "--connections", "1", "--plot", str(path), status=1)
    assert path.exists()


def test_a_plot_that_cannot_be_written(tmp_path):
    pytest.importorskip("matplotlib", reason="the extra bench is not installed")
    path = tmp_path / f"{'x' * 300}.png"
    with ModelServer() as server:
        result = run(
            server, "--messages", "2", "--connections", "1", "--plot", str(path), status=73
        )
    assert "--plot: " in result.stderr
    assert "messages/s" in result.stdout


def test_the_bar_moves_while_it_goes(monkeypatch):
    monkeypatch.setattr(bench, "REDRAWN", -1.0)
    steps = []
    measured = bench.measure

    def measure(connection, point, messages, step):
        measured(connection, point, messages, lambda: steps.append(point.counts.total()))

    monkeypatch.setattr(bench, "measure", measure)
    with ModelServer() as server:
        run(server, "--messages", "3", "--connections", "1")
    assert steps == [1, 2, 3]


def test_without_matplotlib(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with ModelServer() as server:
        result = run(server, "--plot", str(tmp_path / "rate.png"), status=78)
    assert "pip install 'fastsmtplib[bench]'" in result.stderr
    assert server.messages == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["--from", "a@b.example"],
        ["--to", "a@b.example"],
        [*ADDRESSES, "--connections", "1,x"],
        [*ADDRESSES, "--connections", "0"],
        [*ADDRESSES, "--depth", ""],
        [*ADDRESSES, "--messages", "0"],
        [*ADDRESSES, "--size", "10"],
        [*ADDRESSES, "--plot", "rate.gif"],
        [*ADDRESSES, "--plot", "/no/such/folder/rate.png"],
    ],
)
def test_usage(arguments):
    result = CliRunner().invoke(bench.command, ["--server", "127.0.0.1:1", *arguments])
    assert result.exit_code == 2, result.output


@pytest.mark.parametrize("size", [bench.LEAST_SIZE, 401, 4096, 4097, 100_000])
@pytest.mark.parametrize("recipient", ["bob@example.net", "bøb@example.net"])
def test_messages_are_of_the_size_that_was_asked_for(size, recipient):
    for message in Load("ana@example.org", [recipient], 3, size).make():
        assert abs(len(message.content) - size) <= 1
        assert message.content.endswith(b"\r\n")
        assert max(map(len, message.content.split(b"\r\n"))) <= 998


def test_percentiles_are_by_nearest_rank():
    point = Point(1, 1, False, 1000, seconds=2.0, latencies=[n / 1000 for n in range(100, 0, -1)])
    point.counts["accepted"] = 100
    assert point.rate == 50
    assert (point.latency(50), point.latency(95), point.latency(99)) == (0.05, 0.095, 0.099)
    assert Point(1, 1, False, 1000).latency(50) is None


def test_the_stopwatch_leaves_out_what_it_is_held_for():
    watch = bench.Stopwatch()
    with watch.held():
        sum(range(2_000_000))
    wall, cpu = watch.read()
    assert cpu < wall / 2


def test_a_table_of_everything():
    whole = Point(1, 1, True, 4096, seconds=1.0, cpu=0.01, latencies=[0.01] * 5)
    whole.counts["accepted"] = 5
    ended = Point(20, 8, True, 4096, problem="deferred: 451 slow down")
    ended.counts.update({"accepted": 1, "deferred": 1, "not_sent": 3})
    for width in (60, 100):
        file = io.StringIO()
        Console(file=file, width=width).print(bench.table([whole, ended], width))
        shown = " ".join(file.getvalue().split())
        assert "5.0" in shown
        assert "2,000" in shown
        output = shown.replace(" ", "")
        assert "1;deferred:451slowdown(3notsent,1deferred)" in output
