"""Connections and timers: how many, how long, what is learned, and what is tried again."""

from __future__ import annotations

import itertools
import select
import socket
import ssl
import threading
import time
from collections import Counter

import pytest
from support import (
    EXTENSIONS,
    TIMEOUT,
    Connection,
    Hold,
    ModelServer,
    Server,
    client_tls,
    close,
    collect,
    multiline,
    reset,
    server_tls,
    stall,
)

import fastsmtp
from fastsmtp import Mailer, Message, Timeouts, jobs, pool

CHUNKING = (*EXTENSIONS, "CHUNKING")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    """Connect again soon after a failure."""
    monkeypatch.setattr(pool, "_FIRST_PAUSE", 0.02)


def mailer_for(server: Server, **keywords):
    settings = {"tls": "none", "local_hostname": "client.example", **keywords}
    return Mailer(server.host, server.port, **settings)


def message(i: int, *recipients: str, **more) -> Message:
    to = recipients or ["to@example.net"]
    return Message("from@example.org", to, f"Subject: {i}\n\nbody {i}\n", id=i, **more)


def outgoing(number: int) -> list[Message]:
    return [message(i) for i in range(number)]


def statuses(deliveries):
    return dict(Counter(delivery.status for delivery in deliveries))


def send_all(server: Server, number: int, **keywords):
    """Send so many messages by a Mailer of their own; return it and the deliveries, by id."""
    with mailer_for(server, **keywords) as mailer:
        deliveries = {delivery.id: delivery for delivery in mailer.send_many(outgoing(number))}
    assert len(deliveries) == number == mailer.totals.messages
    return mailer, [deliveries[i] for i in range(number)]


def per_connection(server: ModelServer) -> list[int]:
    """How many messages were begun on each connection."""
    return [connection.received.count(b"MAIL FROM") for connection in server.connections]


def spin(condition) -> None:
    """Wait for what another thread does."""
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.002)


class Sender:
    """Sends in a thread."""

    def __init__(self, mailer: Mailer, messages) -> None:
        self.deliveries: list = []
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=[mailer, messages], daemon=True)
        self._thread.start()

    def _run(self, mailer, messages) -> None:
        try:
            for delivery in mailer.send_many(messages):
                self.deliveries.append(delivery)
        except BaseException as error:
            self.error = error

    def result(self) -> list:
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error
        return self.deliveries


# -- how many, and for how long -----------------------------------------------


def test_never_more_connections_than_allowed():
    held = Hold()
    with (
        ModelServer(replies={("body", 1): (held, b"250 taken\r\n")}) as server,
        mailer_for(server, connections=3) as mailer,
    ):
        sender = Sender(mailer, iter(outgoing(100)))
        spin(lambda: len(server.connections) == 3)
        spin(lambda: all(per_connection(server)))
        assert held.reached.wait(TIMEOUT)
        held.go.set()
        assert statuses(sender.result()) == {"accepted": 100}
    assert len(server.connections) == 3
    assert mailer.totals.connections == 3


def test_no_more_connections_than_messages():
    with ModelServer() as server:
        send_all(server, 1)
        assert len(server.connections) == 1


def test_the_first_connection_goes_ahead_alone():
    held = Hold()
    with (
        ModelServer(replies={("EHLO", 1, 1): (held, multiline(250, ["x", *EXTENSIONS]))}) as server,
        mailer_for(server, connections=4) as mailer,
    ):
        sender = Sender(mailer, outgoing(40))
        assert held.reached.wait(TIMEOUT)
        for _ in range(3):  # some steps more
            select.select([], [], [], pool._TICK)
        assert len(server.connections) == 1
        held.go.set()
        assert statuses(sender.result()) == {"accepted": 40}


@pytest.mark.parametrize("extensions", [(), EXTENSIONS, CHUNKING], ids=["", "DATA", "BDAT"])
def test_max_messages_per_connection(extensions):
    with ModelServer(extensions) as server:
        send_all(server, 10, connections=1, max_messages_per_connection=3)
        assert per_connection(server) == [3, 3, 3, 1]
        assert server.commands.count("QUIT") == 4


def test_mailmax():
    """LIMITS (RFC 9422, section 4.1)."""
    with ModelServer([*EXTENSIONS, "LIMITS MAILMAX=2"]) as server:
        send_all(server, 5, connections=1, max_messages_per_connection=3)
        assert per_connection(server) == [2, 2, 1]


def test_max_connection_age():
    with ModelServer() as server:
        with mailer_for(server, max_connection_age=0.1) as mailer:
            assert mailer.send(message(1)).connection == 1
            select.select([], [], [], 0.12)
            assert mailer.send(message(2)).status == "accepted"
        assert per_connection(server) == [1, 1]
        assert server.commands.count("QUIT") == 2


def test_idle_timeout():
    """It shows whenever the Mailer is at work; here on a connection that had nothing to do."""
    held = Hold()
    with (
        ModelServer(replies={("body", 1, 1): (held, b"250 taken\r\n")}) as server,
        mailer_for(server, connections=2, idle_timeout=0.1) as mailer,
    ):
        first = Sender(mailer, [message(0), message(1), message(2)])
        assert held.reached.wait(TIMEOUT)
        spin(lambda: server.commands.count("QUIT") == 1)
        held.go.set()
        assert statuses(first.result()) == {"accepted": 3}
        assert server.connections[1].received.endswith(b"QUIT\r\n")


def test_a_connection_is_used_again_within_its_time():
    with ModelServer() as server, mailer_for(server) as mailer:
        for i in range(4):
            mailer.send(message(i))
            select.select([], [], [], pool._TICK)
        assert per_connection(server) == [4]
        assert not any(line.startswith("NOOP") for line in server.commands)


# -- connections that went stale ----------------------------------------------


@pytest.mark.parametrize(
    "farewell",
    [close, reset, (b"421 4.4.2 idle for too long\r\n", close), b"250 what nobody asked for\r\n"],
    ids=["closed", "reset", "421", "out of step"],
)
@pytest.mark.parametrize("secure", [False, True], ids=["clear", "TLS"])
def test_a_stale_connection(farewell, secure, certificate):
    gone = threading.Event()

    def leave(connection: Connection) -> None:
        connection.send(b"250 taken\r\n")
        assert go.wait(TIMEOUT)
        try:
            connection.play(farewell)
        finally:
            gone.set()

    go = threading.Event()
    context = server_tls(certificate) if secure else None
    server = ModelServer(replies={("body", 1, 1): (leave, b"")}, tls=context, implicit_tls=secure)
    keywords = {"tls": "implicit", "context": client_tls(certificate)} if secure else {}
    with server, mailer_for(server, **keywords) as mailer:
        assert mailer.send(message(1)).status == "accepted"
        go.set()
        if farewell is close or isinstance(farewell, tuple):
            spin(lambda: readable(mailer))
        else:
            assert gone.wait(TIMEOUT)
            spin(lambda: readable(mailer))
        delivery = mailer.send(message(2))
    assert (delivery.status, delivery.attempts, delivery.connection) == ("accepted", 1, 2)
    assert per_connection(server) == [1, 1]
    assert not any(line.startswith("NOOP") for line in server.commands)


def readable(mailer: Mailer) -> bool:
    (link,) = mailer._pool.links
    return bool(select.select([link.sock], [], [], 0)[0])


def test_a_connection_that_goes_stale_as_it_is_used():
    """What the client finds only after it has written is tried again."""
    with ModelServer(replies={("MAIL", 2, 1): reset}) as server, mailer_for(server) as mailer:
        assert mailer.send(message(1)).status == "accepted"
        delivery = mailer.send(message(2))
    assert (delivery.status, delivery.attempts, delivery.connection) == ("accepted", 2, 2)


# -- trouble ------------------------------------------------------------------


def test_fewer_connections_after_421():
    """The server takes two connections, and no third."""
    busy = b"421 4.7.0 too many connections\r\n"
    replies = {("greeting", 1, i): (busy, close) for i in (3, 4)}
    held = Hold()
    replies["body", 1] = (held, b"250 taken\r\n")
    with ModelServer(replies=replies) as server, mailer_for(server, connections=4) as mailer:
        backoff = mailer._pool.backoff
        sender = Sender(mailer, outgoing(200))
        spin(lambda: backoff.limit < 4)
        assert backoff.limit == 2
        held.go.set()
        assert statuses(sender.result()) == {"accepted": 200}
    assert len(server.connections) == 4


def test_connections_that_there_are_leave_after_421():
    """The fourth connection's first message is answered by 421."""
    held = Hold()
    replies = {("MAIL", 1, 4): (b"421 4.7.0 you have too many\r\n", close)}
    replies |= {("body", 1, i): (held, b"250 taken\r\n") for i in (1, 2, 3)}
    with ModelServer(replies=replies) as server, mailer_for(server, connections=4) as mailer:
        sender = Sender(mailer, outgoing(100))
        spin(lambda: mailer._pool.backoff.limit == 2)
        held.go.set()
        assert statuses(sender.result()) == {"accepted": 100}
        assert len(mailer._pool.links) <= 2
    assert len(server.connections) == 4


@pytest.mark.parametrize(
    "greeting", [b"421 4.3.2 busy\r\n", b"454 4.3.0 later\r\n", b"", b"garbage\r\n"]
)
def test_refused_at_first(greeting):
    replies = {("greeting", 1, i): (greeting, close) for i in (1, 2)}
    with ModelServer(replies=replies) as server:
        mailer, deliveries = send_all(server, 3)
    assert statuses(deliveries) == {"accepted": 3}
    assert [delivery.attempts for delivery in deliveries] == [1, 1, 1]
    assert any("trying again" in note for note in mailer.totals.notes)


def test_pauses_grow():
    moments: list[float] = []
    note = lambda connection: moments.append(time.monotonic())  # noqa: E731
    with (
        ModelServer(replies={"greeting": (note, b"421 busy\r\n", close)}) as server,
        mailer_for(server, connect_attempts=4) as mailer,
    ):
        mailer._pool.backoff._random = lambda: 1.0
        _, error = collect(mailer.send_many(outgoing(1)))
    assert isinstance(error, fastsmtp.SMTPConnectError)
    pauses = [later - earlier for earlier, later in itertools.pairwise(moments)]
    assert len(moments) == 4
    assert all(pause >= 0.02 * 2**i for i, pause in enumerate(pauses))


def test_nobody_listens():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
    with Mailer(host, port, tls="none", connect_attempts=3) as mailer:
        deliveries, error = collect(mailer.send_many(outgoing(100)))
        assert isinstance(error, ConnectionRefusedError)
        assert statuses(deliveries) == {"not_sent": 100}
        assert all(isinstance(each.error, ConnectionRefusedError) for each in deliveries)
        assert all(each.recipients[0].status == "not_sent" for each in deliveries)
        delivery = mailer.send(message(1))
        assert isinstance(delivery.error, ConnectionRefusedError)
        pulled: list[int] = []
        endless = (pulled.append(i) or message(i) for i in range(10**6))
        deliveries, error = collect(mailer.send_many(endless))
        assert isinstance(error, ConnectionRefusedError)
        assert statuses(deliveries) == {"not_sent": len(pulled)}
        assert len(pulled) < 1000
    assert mailer.totals.counts["not_sent"] == 101 + len(pulled)


def test_the_server_comes_back():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
    mailer = Mailer(host, port, tls="none", connect_attempts=2)
    assert mailer.send(message(0)).status == "not_sent"
    server = ModelServer()
    server._listen = lambda: socket.create_server((host, port))
    with server, mailer:
        assert mailer.send(message(1)).status == "accepted"
        assert statuses(mailer.send_many(outgoing(3))) == {"accepted": 3}


def test_the_server_goes_while_messages_are_left():
    """What was taken is accepted, the rest has a Delivery each, and the reason is raised."""
    with ModelServer() as server:
        gone = (b"421 4.3.2 shutting down\r\n", close)
        with mailer_for(server, connections=1, connect_attempts=2) as mailer:
            results = mailer.send_many(outgoing(30))
            first = next(results)
            server.replies.update({"MAIL": gone, "greeting": gone})
            deliveries, error = collect(results)
    assert isinstance(error, fastsmtp.SMTPConnectError)
    deliveries.append(first)
    assert sorted(each.id for each in deliveries) == list(range(30))
    taken = [each for each in deliveries if each.status == "accepted"]
    assert len(taken) == len(server.messages)
    assert {each.status for each in deliveries} <= {"accepted", "not_sent", "deferred"}


def test_421_to_one_message_is_about_the_connection():
    with ModelServer(replies={("MAIL", 3, 1): (b"421 4.4.5 enough\r\n", close)}) as server:
        mailer, deliveries = send_all(server, 6, connections=1)
    assert statuses(deliveries) == {"accepted": 6}
    assert [each.attempts for each in deliveries] == [1, 1, 2, 1, 1, 1]
    assert per_connection(server) == [3, 4]
    assert mailer._pool.backoff.limit == 1


def test_421_to_every_attempt():
    with ModelServer(replies={"body": (b"421 4.3.0 no\r\n", close)}) as server:
        _, (delivery,) = send_all(server, 1)
    assert delivery.status == "deferred"
    assert delivery.attempts == jobs.MOST_LOSSES
    assert delivery.recipients[0].reply.code == 421
    assert server.messages == []


@pytest.mark.parametrize("step", ["MAIL", "RCPT", "BDAT"])
def test_421_to_one_of_several_in_flight(step):
    """The server has not taken what it has not answered after it said that it closes."""
    replies = {(step, 3, 1): (b"421 4.4.5 enough\r\n", close)}
    with ModelServer(CHUNKING, replies=replies) as server:
        _, deliveries = send_all(server, 12, connections=1)
    assert statuses(deliveries) == {"accepted": 12}
    assert len(server.messages) == 12


def test_421_and_nevertheless():
    """A server that goes on after 421 is listened to: nothing is sent twice."""
    taken: Counter[bytes] = Counter()

    def read_chunk(connection: Connection) -> bytes:
        while not (line := connection.line()).startswith(b"BDAT"):
            if line == b"QUIT\r\n":
                close(connection)
        return connection.exactly(int(line.split()[1])).partition(b"\r\n")[0]

    def play(connection: Connection) -> None:
        connection.send(b"220 x\r\n")
        connection.line()
        connection.send(multiline(250, ["x", *CHUNKING]))
        if connection is not server.connections[0]:
            while True:
                taken[read_chunk(connection)] += 1
                connection.send(b"250 ok\r\n" * 4)
        taken[read_chunk(connection)] += 1
        connection.send(b"250 ok\r\n" * 4)
        flight = [read_chunk(connection) for _ in range(3)]
        taken.update(flight[1:])
        refused = b"250 ok\r\n421 4.7.0 not you\r\n503 what\r\n503 what\r\n"
        connection.send(refused + b"250 ok\r\n" * 4 * 2)
        close(connection)

    with Server(play) as server:
        _, deliveries = send_all(server, 6, connections=1, depth=3)
    assert statuses(deliveries) == {"accepted": 6}
    assert taken == {b"Subject: %d" % i: 1 for i in range(6)}


def test_lost_before_the_message_was_sent():
    for step, attempts in (("MAIL", 2), ("RCPT", 2), ("DATA", 2)):
        for how in (close, reset, (b"250", close)):
            with ModelServer(replies={(step, 2, 1): how}) as server:
                _, deliveries = send_all(server, 4, connections=1)
            assert statuses(deliveries) == {"accepted": 4}
            assert deliveries[1].attempts == attempts
            assert len(server.messages) == 4


def test_lost_again_and_again():
    with ModelServer(replies={"DATA": close}) as server:
        _, (delivery,) = send_all(server, 1)
    assert delivery.status == "not_sent"
    assert isinstance(delivery.error, fastsmtp.SMTPServerDisconnected)
    assert delivery.attempts == len(server.connections) == jobs.MOST_LOSSES


@pytest.mark.parametrize("extensions", [(), EXTENSIONS, CHUNKING], ids=["", "DATA", "BDAT"])
@pytest.mark.parametrize("taken", [True, False])
@pytest.mark.parametrize("resend", [True, False])
def test_lost_after_the_message_was_sent(resend, taken, extensions):
    """Nobody can know (RFC 1047)."""
    step = "BDAT" if "CHUNKING" in extensions else "body"

    def leave(connection: Connection) -> None:
        if taken:
            server.messages.append(None)
        close(connection)

    with ModelServer(extensions, replies={(step, 2, 1): leave}) as server:
        mailer, deliveries = send_all(server, 4, connections=1, depth=1, resend_unknown=resend)
    expected = "accepted" if resend else "unknown"
    assert [each.status for each in deliveries] == ["accepted", expected, "accepted", "accepted"]
    assert deliveries[1].attempts == (2 if resend else 1)
    assert isinstance(deliveries[1].error, fastsmtp.SMTPServerDisconnected) != resend
    assert len(server.messages) == 3 + taken + resend
    assert mailer.totals.counts["unknown"] == (0 if resend else 1)


# -- what is learned ----------------------------------------------------------


@pytest.mark.parametrize("code", [500, 502, 503])
def test_a_server_that_does_not_know_bdat(code):
    replies = {"BDAT": b"%d what is BDAT?\r\n" % code}
    with ModelServer(CHUNKING, replies=replies) as server:
        mailer, deliveries = send_all(server, 30, connections=3)
    assert statuses(deliveries) == {"accepted": 30}
    assert {delivery.attempts for delivery in deliveries} == {1}
    assert len(server.messages) == 30
    (note,) = mailer.totals.notes
    assert "CHUNKING" in note
    assert str(code) in note
    assert sum(line.startswith("BDAT") for line in server.commands) <= 3


def test_a_server_that_reads_a_chunk_as_commands():
    def stumble(connection: Connection) -> None:
        connection.send(b"502 5.5.2 not implemented\r\n" * 4)

    with ModelServer(CHUNKING, replies={"BDAT": (stumble, b"500 5.5.2 bad command\r\n")}) as server:
        mailer, deliveries = send_all(server, 5, connections=1)
    assert statuses(deliveries) == {"accepted": 5}
    assert len(server.messages) == 5
    assert any("CHUNKING" in note for note in mailer.totals.notes)


def test_a_refusal_of_one_chunk_is_just_that():
    with ModelServer(CHUNKING, replies={("BDAT", 2): b"503 5.5.1 what now\r\n"}) as server:
        mailer, deliveries = send_all(server, 4, connections=1)
    assert [each.status for each in deliveries] == ["accepted", "rejected", "accepted", "accepted"]
    assert mailer.totals.notes == []


def test_a_server_that_goes_at_the_first_pipelined_flight():
    def drop(connection: Connection) -> None:
        if len(connection.reads[-1].splitlines()) > 1:
            close(connection)

    with ModelServer(replies={("MAIL", 1): (drop, b"250 ok\r\n")}) as server:
        mailer, deliveries = send_all(server, 6, connections=2)
    assert statuses(deliveries) == {"accepted": 6}
    assert sum("PIPELINING" in note for note in mailer.totals.notes) == 1
    assert len(server.messages) == 6
    assert b"MAIL" in server.connections[0].reads[1]
    for connection in server.connections[2:]:
        assert all(read.count(b"\r\n") == 1 for read in connection.reads if b"MAIL" in read)


def test_a_server_that_goes_at_the_first_chunk():
    with ModelServer(CHUNKING, replies={("RSET", 1): (close,)}) as server:
        server.replies["RSET", 1, 2] = b"250 ok\r\n"
        mailer, deliveries = send_all(server, 6, connections=1)
    # The first one was sent whole: nobody knows what became of it.
    assert [each.status for each in deliveries] == ["unknown"] + ["accepted"] * 5
    assert sum("CHUNKING" in note for note in mailer.totals.notes) == 1
    assert "DATA" in server.commands
    assert len(server.messages) == 5


def test_what_has_worked_is_not_given_up():
    replies = {("DATA", 2): close}
    with ModelServer(replies=replies) as server:
        mailer, deliveries = send_all(server, 4, connections=1)
    assert statuses(deliveries) == {"accepted": 4}
    assert mailer.totals.notes == []


# -- what is tried again ------------------------------------------------------


@pytest.mark.parametrize("step", ["MAIL", "RCPT", "DATA", "body"])
def test_deferred_messages_are_tried_again(step):
    replies = {(step, 1): b"451 4.3.0 later\r\n"}
    with ModelServer(replies=replies) as server:
        began = time.monotonic()
        _, deliveries = send_all(server, 2, connections=1, retries=1, retry_delay=0.1)
        assert time.monotonic() - began >= 0.1
    assert statuses(deliveries) == {"accepted": 2}
    assert sorted(each.attempts for each in deliveries) == [1, 2]
    assert len(server.messages) == 2


def test_only_deferred_recipients_are_tried_again():
    replies = {("RCPT", 1): b"451 4.7.1 grey\r\n", ("RCPT", 3): b"550 5.1.1 no\r\n"}
    with (
        ModelServer(replies=replies) as server,
        mailer_for(server, retries=2, retry_delay=0.05) as mailer,
    ):
        delivery = mailer.send(message(1, "a@example.org", "b@example.org", "c@example.org"))
    assert delivery.status == "partial"
    assert [each.status for each in delivery.recipients] == ["accepted", "accepted", "rejected"]
    assert [each.recipients for each in server.messages] == [["b@example.org"], ["a@example.org"]]
    assert delivery.attempts == 2


def test_retries_come_to_an_end():
    with ModelServer(replies={"RCPT": b"450 4.2.1 not now\r\n"}) as server:
        _, (delivery,) = send_all(server, 1, retries=2, retry_delay=0.02)
    assert (delivery.status, delivery.attempts) == ("deferred", 3)
    assert delivery.reply.code == 450
    assert server.messages == []


def test_no_retries_unless_asked():
    with ModelServer(replies={"RCPT": b"450 4.2.1 not now\r\n"}) as server:
        _, (delivery,) = send_all(server, 1)
    assert (delivery.status, delivery.attempts) == ("deferred", 1)
    assert per_connection(server) == [1]


def test_what_is_rejected_is_not_tried_again():
    with ModelServer(replies={"RCPT": b"550 5.1.1 no\r\n"}) as server:
        _, (delivery,) = send_all(server, 1, retries=2, retry_delay=0.02)
    assert (delivery.status, delivery.attempts) == ("rejected", 1)


# -- too many recipients ------------------------------------------------------

MANY = [f"r{i}@d{i % 3}.example" for i in range(12)]


@pytest.mark.parametrize("extensions", [(), EXTENSIONS, CHUNKING], ids=["", "DATA", "BDAT"])
def test_rcptmax(extensions):
    with (
        ModelServer([*extensions, "LIMITS RCPTMAX=5"]) as server,
        mailer_for(server, connections=1) as mailer,
    ):
        delivery = mailer.send(message(1, *MANY))
    assert (delivery.status, delivery.attempts) == ("accepted", 3)
    assert [each.address for each in delivery.recipients] == MANY
    assert [each.recipients for each in server.messages] == [MANY[:5], MANY[5:10], MANY[10:]]


def test_rcptdomainmax():
    """Domains are counted for a whole session (RFC 9422, section 4.3)."""
    with (
        ModelServer([*EXTENSIONS, "LIMITS RCPTDOMAINMAX=1"]) as server,
        mailer_for(server, connections=1) as mailer,
    ):
        delivery = mailer.send(message(1, *MANY))
    assert delivery.status == "accepted"
    domains = [{to.partition("@")[2] for to in each.recipients} for each in server.messages]
    assert sorted(map(len, domains)) == [1, 1, 1]
    assert len(server.connections) == 3
    assert sorted(to for each in server.messages for to in each.recipients) == sorted(MANY)


@pytest.mark.parametrize("extensions", [(), EXTENSIONS, CHUNKING], ids=["", "DATA", "BDAT"])
@pytest.mark.parametrize("reply", [b"452 4.5.3 too many\r\n", b"452 too many recipients\r\n"])
def test_452_splits(reply, extensions):
    """The server takes four recipients at first."""
    replies = {("RCPT", i): reply for i in range(5, 13)}
    with (
        ModelServer(extensions, replies=replies) as server,
        mailer_for(server, connections=1) as mailer,
    ):
        delivery = mailer.send(message(1, *MANY))
    assert delivery.status == "accepted"
    arrived = [each.recipients for each in server.messages]
    assert arrived[0] == MANY[:4]
    assert sorted(to for each in arrived for to in each) == sorted(MANY)
    assert all(len(each) <= 4 for each in arrived)
    assert len(server.connections) == 1


def test_452_to_all_recipients_is_not_about_their_number():
    with (
        ModelServer(replies={"RCPT": b"452 4.5.3 too many\r\n"}) as server,
        mailer_for(server) as mailer,
    ):
        delivery = mailer.send(message(1, *MANY[:3]))
    assert (delivery.status, delivery.attempts) == ("deferred", 1)


# -- LMTP ---------------------------------------------------------------------


@pytest.mark.parametrize("unix", [False, True], ids=["TCP", "Unix socket"])
@pytest.mark.parametrize("extensions", [(), EXTENSIONS], ids=["", "PIPELINING"])
def test_lmtp_replies_for_each_recipient(unix, extensions, tmp_path):
    replies = {
        ("RCPT", 2): b"550 5.1.1 no such user\r\n",
        ("body", 2): b"452 4.2.2 mailbox full\r\n",
        ("body", 3): b"554 5.6.0 spam\r\n",
    }
    path = str(tmp_path / "lmtp") if unix else None
    with (
        ModelServer(extensions, replies=replies, lmtp=True, path=path) as server,
        mailer_for(server, protocol="lmtp", connections=1) as mailer,
    ):
        first, second = mailer.send_many([message(1, *MANY[:5]), message(2, *MANY[:2])])
    got = [each.status for each in first.recipients]
    assert got == ["accepted", "rejected", "deferred", "rejected", "accepted"]
    assert [each.reply.code for each in first.recipients] == [250, 550, 452, 554, 250]
    assert first.status == "partial"
    assert second.status == "accepted"
    assert [each.recipients for each in server.messages] == [[MANY[0], MANY[4]], MANY[:2]]
    assert len(server.connections) == 1


def test_lmtp_lost_in_the_middle_of_the_replies():
    with (
        ModelServer(replies={("body", 2, 1): close}, lmtp=True) as server,
        mailer_for(server, protocol="lmtp") as mailer,
    ):
        delivery = mailer.send(message(1, *MANY[:3]))
    assert [each.status for each in delivery.recipients] == ["accepted", "unknown", "unknown"]
    assert delivery.status == "unknown"
    assert delivery.attempts == 1


# -- rate ---------------------------------------------------------------------


@pytest.mark.parametrize("extensions", [(), EXTENSIONS, CHUNKING], ids=["", "DATA", "BDAT"])
def test_rate(extensions):
    moments: list[float] = []
    note = (lambda connection: moments.append(time.monotonic()), b"250 ok\r\n")
    with ModelServer(extensions, replies={"MAIL": note}) as server:
        began = time.monotonic()
        _, deliveries = send_all(server, 40, connections=4, rate=80.0)
        took = time.monotonic() - began
    assert statuses(deliveries) == {"accepted": 40}
    # No burst, from the first moment on: within any time no more than the rate.
    for i in range(0, 40, 5):
        for j in range(i + 5, 40, 5):
            assert j - i <= 80.0 * (moments[j] - moments[i] + 0.1) + 2
    assert took >= 39 / 80.0 - 0.02
    assert took <= 39 / 80.0 / 0.95 + 0.5  # a machine may be busy


def test_a_rate_with_one_at_a_time():
    with ModelServer() as server, mailer_for(server, rate=50.0) as mailer:
        began = time.monotonic()
        for i in range(11):
            assert mailer.send(message(i)).status == "accepted"
        assert time.monotonic() - began >= 10 / 50.0 - 0.02
    assert len(server.connections) == 1


def test_stop_while_the_rate_is_waited_for():
    with ModelServer() as server, mailer_for(server, rate=0.1) as mailer:
        sender = Sender(mailer, outgoing(5))
        spin(lambda: server.messages)
        mailer.stop()
        assert statuses(sender.result()) == {"accepted": 1, "not_sent": 4}


# -- TLS sessions -------------------------------------------------------------


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("implicit", [True, False], ids=["implicit", "STARTTLS"])
def test_tls_sessions_are_resumed(implicit, version, certificate, monkeypatch):
    """By all connections after the first, also those that are opened while it is in use."""
    reused: list[bool] = []
    held = Hold()
    replies = {
        ("MAIL", 1): (
            lambda connection: reused.append(connection.sock.session_reused),
            b"250 ok\r\n",
        ),
        ("body", 1): (held, b"250 taken\r\n"),
    }
    context = server_tls(certificate)
    context.maximum_version = context.minimum_version = version
    extensions = EXTENSIONS if implicit else (*EXTENSIONS, "STARTTLS")
    server = ModelServer(extensions, replies=replies, tls=context, implicit_tls=implicit)
    tls = "implicit" if implicit else "starttls"
    with (
        server,
        mailer_for(
            server, connections=3, tls=tls, context=client_tls(certificate), max_connection_age=0.5
        ) as mailer,
    ):
        sender = Sender(mailer, outgoing(30))
        spin(lambda: len(reused) == 3)
        held.go.set()
        assert statuses(sender.result()) == {"accepted": 30}
        select.select([], [], [], 0.5)
        assert mailer.send(message(99)).connection > 3
    assert sorted(reused) == [False, True, True, True]


# -- failures that are final --------------------------------------------------


@pytest.mark.parametrize("code", [521, 554])
def test_a_server_that_takes_no_mail(code):
    """It will not take any the next time either (RFC 7504)."""
    with ModelServer(replies={"greeting": (b"%d go away\r\n" % code, close)}) as server:
        with mailer_for(server) as mailer, pytest.raises(fastsmtp.SMTPConnectError, match="away"):
            list(mailer.send_many(outgoing(10)))
        assert len(server.connections) == 1
    assert mailer.totals.counts["not_sent"] == 10


def test_refused_for_good_while_there_are_connections():
    """Those that there are go on, and no further ones are opened."""
    held = Hold()
    replies = {("greeting", 1, i): (b"554 no more\r\n", close) for i in range(2, 20)}
    replies["body", 1, 1] = (held, b"250 taken\r\n")
    with ModelServer(replies=replies) as server, mailer_for(server, connections=4) as mailer:
        sender = Sender(mailer, outgoing(50))
        spin(lambda: mailer._pool._refusal)
        held.go.set()
        assert statuses(sender.result()) == {"accepted": 50}
    assert len(server.connections) <= 4


def test_timeouts_do_not_count_against_each_other():
    """Several phases, each within its time, take longer than one."""

    def pause(connection: Connection) -> None:
        select.select([], [], [], 0.12)

    replies = {
        "MAIL": (pause, b"250 ok\r\n"),
        "RCPT": (pause, b"250 ok\r\n"),
        "DATA": (pause, b"354 go\r\n"),
        "body": (pause, b"250 taken\r\n"),
    }
    with (
        ModelServer((), replies=replies) as server,
        mailer_for(server, timeouts=Timeouts(data=0.25, command=0.25, final=0.25)) as mailer,
    ):
        assert mailer.send(message(1)).status == "accepted"


def test_a_server_that_stalls_is_left():
    with ModelServer(replies={("DATA", 1, 1): stall}) as server:
        _, deliveries = send_all(server, 3, connections=1, timeouts=Timeouts(data=0.15))
    assert statuses(deliveries) == {"accepted": 3}
    assert deliveries[0].attempts == 2
