"""Reaching a server: addresses in turn, one winner, nothing left behind."""

from __future__ import annotations

import errno
import queue
import select
import socket
import sys
import threading
from selectors import DefaultSelector

import pytest
from support import TIMEOUT, ModelServer

from fastsmtp import Mailer, Message, Timeouts, dial, pool
from fastsmtp.dial import ADDRESSES_HOLD, HEAD_START, Dialer, interleaved

FOUR, SIX = socket.AF_INET, socket.AF_INET6


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    """Connect again soon after a failure."""
    monkeypatch.setattr(pool, "_FIRST_PAUSE", 0.02)


# -- the order ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [
        ([], []),
        ([(FOUR, 1)], [(FOUR, 1)]),
        ([(FOUR, 1), (FOUR, 2)], [(FOUR, 1), (FOUR, 2)]),
        (
            [(SIX, 1), (SIX, 2), (SIX, 3), (FOUR, 4), (FOUR, 5)],
            [(SIX, 1), (FOUR, 4), (SIX, 2), (FOUR, 5), (SIX, 3)],
        ),
        ([(FOUR, 1), (SIX, 2), (SIX, 3)], [(FOUR, 1), (SIX, 2), (SIX, 3)]),
        ([(SIX, 1), (SIX, 1), (FOUR, 2), (SIX, 1)], [(SIX, 1), (FOUR, 2)]),
    ],
)
def test_families_take_turns(addresses, expected):
    assert interleaved(iter(addresses)) == expected


# -- the race -----------------------------------------------------------------


class Loop:
    """Drives a Dialer by hand, with a clock that stands still."""

    def __init__(self, monkeypatch, *addresses, **keywords) -> None:
        self.now = 1000.0
        self.selector = DefaultSelector()
        self.posted: queue.Queue = queue.Queue()
        self.results: list = []
        self.asked: list[str] = []
        self.dialer = Dialer(
            "server.example",
            25,
            selector=self.selector,
            clock=lambda: self.now,
            call_soon=self.posted.put,
            timeout=3.0,
            **keywords,
        )

        def look_up(host, port, **how):
            if how["flags"]:
                raise socket.gaierror(socket.EAI_NONAME, "not an address")
            self.asked.append(host)
            return [(family, 0, 0, "", address) for family, address in addresses]

        monkeypatch.setattr(socket, "getaddrinfo", look_up)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info: object) -> None:
        assert not self.selector.get_map(), "something is still watched"
        self.selector.close()

    def dial(self):
        known = self.now < self.dialer._known_until
        dialled = self.dialer.dial(lambda sock, error: self.results.append((sock, error)))
        if not known:
            self.posted.get(timeout=TIMEOUT)()
        return dialled

    def events(self) -> None:
        """Wait for something to happen, and see to all of it."""
        for key, mask in self.selector.select(TIMEOUT):
            key.data(mask)

    def run(self) -> None:
        while not self.results:
            self.events()

    def winner(self):
        ((sock, error),) = self.results
        assert error is None
        with sock:
            return sock.getpeername()

    def error(self) -> Exception:
        ((sock, error),) = self.results
        assert sock is None
        return error


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


@pytest.fixture
def here(listener):
    return FOUR, listener.getsockname()


@pytest.fixture
def refused():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        address = sock.getsockname()
    return FOUR, address


@pytest.fixture
def black_hole():
    """An address that never answers: its backlog is full."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = []
        for _ in range(8):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
            waiting.append(sock)
            if not select.select([], [sock], [], 0.05)[1]:
                break
        else:
            pytest.skip("this system's backlog is never full")
        yield FOUR, full.getsockname()
        for sock in waiting:
            sock.close()


def test_the_first_address_answers(monkeypatch, here, black_hole):
    with Loop(monkeypatch, here, black_hole) as loop:
        loop.dial()
        loop.run()
        assert loop.winner() == here[1]


def test_the_next_address_is_tried_at_once_after_a_refusal(monkeypatch, refused, here):
    with Loop(monkeypatch, refused, here) as loop:
        loop.dial()
        loop.run()  # the clock stands still
        assert loop.winner() == here[1]


def test_the_next_address_is_tried_after_a_head_start(monkeypatch, black_hole, here):
    with Loop(monkeypatch, black_hole, here) as loop:
        dialled = loop.dial()
        loop.now += HEAD_START * 0.9
        dialled.tick()
        assert len(loop.selector.get_map()) == 1
        loop.now += HEAD_START * 0.2
        dialled.tick()
        assert len(loop.selector.get_map()) == 2
        loop.run()
        assert loop.winner() == here[1]
        dialled.tick()


def test_two_that_answer_at_once(monkeypatch, listener, here):
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        Loop(monkeypatch, here, (FOUR, other.getsockname())) as loop,
    ):
        dialled = loop.dial()
        loop.now += HEAD_START
        dialled.tick()
        for sock in (listener, other):
            sock.accept()[0].close()
        assert len(loop.selector.get_map()) == 2
        loop.events()
        assert loop.winner() in (here[1], other.getsockname())


def test_all_refuse(monkeypatch, refused):
    with Loop(monkeypatch, refused, (FOUR, ("127.0.0.1", refused[1][1]))) as loop:
        loop.dial()
        loop.run()
        assert isinstance(loop.error(), ConnectionRefusedError)


def test_the_last_one_fails_while_another_is_tried(monkeypatch, black_hole, refused):
    with Loop(monkeypatch, black_hole, refused) as loop:
        dialled = loop.dial()
        loop.now += HEAD_START
        dialled.tick()
        loop.events()
        dialled.tick()
        assert loop.results == []
        assert len(loop.selector.get_map()) == 1
        dialled.close()


def test_no_address(monkeypatch):
    with Loop(monkeypatch) as loop:
        loop.dial()
        assert "no address" in str(loop.error())


def test_an_address_of_a_family_that_is_not_there(monkeypatch, here):
    """IPv6 may be switched off, though names have such addresses."""
    plain = socket.socket

    def make(family=FOUR, *args, **keywords):
        if family == SIX:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return plain(family, *args, **keywords)

    with Loop(monkeypatch, (SIX, ("::1", 25, 0, 0)), here) as loop:
        monkeypatch.setattr(dial.socket, "socket", make)
        loop.dial()
        loop.run()
        assert loop.winner() == here[1]


def test_no_more_files(monkeypatch, here):
    def make(*args):
        raise OSError(errno.EMFILE, "Too many open files")

    with Loop(monkeypatch, here) as loop:
        monkeypatch.setattr(socket, "socket", make)
        loop.dial()
        assert loop.error().errno == errno.EMFILE


def test_a_source_address_that_cannot_be_had(monkeypatch, here):
    with Loop(monkeypatch, here, source_address=("192.0.2.1", 0)) as loop:
        loop.dial()
        assert loop.error().errno == errno.EADDRNOTAVAIL


def test_given_up_while_it_connects(monkeypatch, black_hole):
    with Loop(monkeypatch, black_hole) as loop:
        dialled = loop.dial()
        dialled.close()
        dialled.close()
        loop.now += 10
        dialled.tick()
        assert loop.results == []


def test_given_up_while_the_name_is_looked_up(monkeypatch, here):
    with Loop(monkeypatch, here) as loop:
        dialled = loop.dialer.dial(lambda sock, error: loop.results.append(1))
        dialled.close()
        loop.posted.get(timeout=TIMEOUT)()
        assert loop.results == []


def test_addresses_hold_for_a_while(monkeypatch, here):
    with Loop(monkeypatch, here) as loop:
        for wait in (0.0, ADDRESSES_HOLD * 0.9):
            loop.now += wait
            loop.dial()
            loop.run()
            assert loop.winner() == here[1]
            loop.results.clear()
        assert loop.asked == ["server.example"]
        loop.now += ADDRESSES_HOLD * 0.2
        loop.asked.clear()
        loop.dial()
        loop.run()
        assert loop.winner() == here[1]
        assert loop.asked == ["server.example"]


@pytest.mark.parametrize(
    "error",
    [
        socket.gaierror(socket.EAI_AGAIN, "later"),
        UnicodeError("label empty or too long"),
        ValueError("embedded null byte"),
    ],
)
def test_a_name_that_cannot_be_looked_up(monkeypatch, error):
    def look_up(*args, **how):
        raise error

    with Loop(monkeypatch) as loop:
        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        loop.dial()
        assert loop.error() is error


# -- a socket factory ---------------------------------------------------------


def connect(address) -> socket.socket:
    sock = socket.socket()
    sock.connect(address)
    return sock


def test_a_factory(monkeypatch, here):
    calls = []

    def factory(*args):
        calls.append((*args, threading.current_thread() is threading.main_thread()))
        return connect(here[1])

    source = ("127.0.0.1", 0)
    with Loop(monkeypatch, socket_factory=factory, source_address=source) as loop:
        loop.dial()
        ((sock, _error),) = loop.results
        assert sock.gettimeout() == 0.0
        assert loop.winner() == here[1]
    assert calls == [(("server.example", 25), 3.0, source, False)]


def test_a_factory_that_raises(monkeypatch):
    error = RuntimeError("no proxy")

    def factory(*args):
        raise error

    with Loop(monkeypatch, socket_factory=factory) as loop:
        loop.dial()
        assert loop.error() is error


def test_a_socket_that_comes_too_late_is_closed(monkeypatch, here):
    made = []

    def factory(*args):
        made.append(connect(here[1]))
        return made[0]

    with Loop(monkeypatch, socket_factory=factory) as loop:
        dialled = loop.dialer.dial(lambda sock, error: loop.results.append(1))
        dialled.close()
        loop.posted.get(timeout=TIMEOUT)()
    assert made[0].fileno() == -1
    assert loop.results == []


def test_an_error_that_comes_too_late(monkeypatch):
    def factory(*args):
        raise OSError

    with Loop(monkeypatch, socket_factory=factory) as loop:
        dialled = loop.dialer.dial(lambda sock, error: loop.results.append(1))
        dialled.close()
        loop.posted.get(timeout=TIMEOUT)()
    assert loop.results == []


# -- by a Mailer --------------------------------------------------------------

SENT = Message("a@example.org", "b@example.org", "x\n")


def lookups(monkeypatch, *addresses):
    real = socket.getaddrinfo

    def look_up(host, port, *args, **how):
        if host != "server.example":
            return real(host, port, *args, **how)
        if how["flags"]:
            raise socket.gaierror(socket.EAI_NONAME, "not an address")
        return [(family, 0, 0, "", address) for family, address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


def test_a_mailer_goes_round_a_black_hole(monkeypatch, black_hole, refused):
    with ModelServer() as server:
        lookups(monkeypatch, black_hole, refused, (FOUR, (server.host, server.port)))
        with Mailer("server.example", tls="none") as mailer:
            assert mailer.send(SENT).status == "accepted"
    assert len(server.connections) == 1


def test_a_mailer_gives_up_a_black_hole(monkeypatch, black_hole):
    lookups(monkeypatch, black_hole)
    times = Timeouts(connect=0.1)
    with Mailer("server.example", tls="none", timeouts=times, connect_attempts=2) as mailer:
        delivery = mailer.send(SENT)
    assert delivery.status == "not_sent"
    assert isinstance(delivery.error, TimeoutError)
    assert "connecting" in str(delivery.error)


def test_a_mailer_stops_while_it_connects(monkeypatch, black_hole):
    lookups(monkeypatch, black_hole)
    with Mailer("server.example", tls="none") as mailer:
        threading.Timer(0.1, mailer.stop).start()
        assert mailer.send(SENT).status == "not_sent"
        assert mailer._pool.links == set()


@pytest.mark.parametrize("host", ["no.such.host.invalid", "x" * 70 + ".example", "a..b", "a\0b"])
def test_a_host_that_cannot_be(monkeypatch, host):
    real = socket.getaddrinfo

    def look_up(host, *args, **how):  # as it is, but without asking the network
        if host.endswith(".invalid"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real(host, *args, **how)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with Mailer(host, tls="none") as mailer:
        delivery = mailer.send(SENT)
        assert delivery.status == "not_sent"
        assert isinstance(delivery.error, (OSError, ValueError))
        with pytest.raises((OSError, ValueError)):
            list(mailer.send_many([SENT]))


@pytest.mark.parametrize("form", ["{0}:{1}", "[{0}]:{1}"])
def test_host_and_port_in_one(form):
    with (
        ModelServer() as server,
        Mailer(form.format(server.host, server.port), tls="none") as mailer,
    ):
        assert mailer.send(SENT).status == "accepted"


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_ipv6():
    try:
        listener = socket.create_server(("::1", 0), family=SIX)
    except OSError:
        pytest.skip("no IPv6 loopback here")
    with listener:
        port = listener.getsockname()[1]
        for mailer in (Mailer(f"[::1]:{port}"), Mailer("::1", port), Mailer("[::1]", port)):
            assert (mailer._pool.terms.host, mailer._pool.terms.port) == ("::1", port)
            result = threading.Thread(target=mailer.send, args=[SENT], daemon=True)
            result.start()
            listener.settimeout(TIMEOUT)
            accepted = listener.accept()[0]
            with accepted:
                assert accepted.getpeername()[0] == "::1"
            mailer.stop()
            result.join(TIMEOUT)
            mailer.close()


def test_unix_socket(tmp_path):
    path = str(tmp_path / "socket")
    with ModelServer(path=path, lmtp=True) as server, Mailer(path, protocol="lmtp") as mailer:
        assert mailer.send(SENT).status == "accepted"
    assert len(server.connections) == 1


def test_unix_socket_that_is_not_there(tmp_path):
    with Mailer(str(tmp_path / "none"), protocol="lmtp", connect_attempts=1) as mailer:
        assert isinstance(mailer.send(SENT).error, FileNotFoundError)


@pytest.mark.skipif(sys.platform != "linux", reason="all of 127.0.0.0/8 is here on Linux only")
def test_source_address():
    with ModelServer() as server:
        peers = []
        server.replies["greeting"] = (
            lambda connection: peers.append(connection.sock.getpeername()[0]),
            b"220 x\r\n",
        )
        source = ("127.0.0.9", 0)
        with Mailer(server.host, server.port, tls="none", source_address=source) as mailer:
            assert mailer.send(SENT).status == "accepted"
    assert peers == ["127.0.0.9"]


def test_a_slow_factory_holds_nobody_up():
    ready, go = threading.Event(), threading.Event()
    with ModelServer() as server:

        def factory(address, timeout, source_address):
            if ready.is_set():
                assert go.wait(TIMEOUT)
            ready.set()
            return socket.create_connection(address, timeout, source_address)

        with Mailer(
            server.host, server.port, tls="none", connections=2, socket_factory=factory
        ) as mailer:
            many = [Message("a@example.org", "b@example.org", "x\n", id=i) for i in range(50)]
            deliveries = [delivery.status for delivery in mailer.send_many(many)]
            assert deliveries == ["accepted"] * 50
            assert len(server.connections) == 1
            go.set()


def test_a_factory_that_fails_for_a_mailer():
    def factory(*args):
        raise ConnectionRefusedError("the proxy is down")

    with (
        Mailer("host.example", tls="none", socket_factory=factory, connect_attempts=2) as mailer,
        pytest.raises(ConnectionRefusedError, match="proxy"),
    ):
        list(mailer.send_many([SENT]))


def test_what_is_no_socket():
    with Mailer("host.example", tls="none", socket_factory=lambda *args: None) as mailer:
        delivery = mailer.send(SENT)
    assert (delivery.status, type(delivery.error)) == ("not_sent", AttributeError)


def test_a_socket_that_comes_after_the_mailer_is_closed():
    go, made = threading.Event(), []
    with ModelServer() as server:

        def factory(address, timeout, source_address):
            assert go.wait(TIMEOUT)
            made.append(socket.create_connection(address))
            return made[0]

        mailer = Mailer(server.host, server.port, tls="none", socket_factory=factory)
        before = set(threading.enumerate())
        result = threading.Thread(target=mailer.send, args=[SENT], daemon=True)
        result.start()
        while not (threads := [t for t in threading.enumerate() if t.name == "fastsmtp-dial"]):
            select.select([], [], [], 0.005)
        mailer.close()
        result.join(TIMEOUT)
        go.set()
        threads[0].join(TIMEOUT)
        assert made[0].fileno() == -1
        assert not set(threading.enumerate()) - before - set(server._threads)


def test_head_start_is_what_the_rfc_recommends():
    assert dial.HEAD_START == 0.25
