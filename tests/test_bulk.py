"""The Mailer as its users have it: what goes in, what comes out of it, and when."""

from __future__ import annotations

import base64
import io
import os
import re
import select
import socket
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections import Counter, deque
from email.message import EmailMessage
from pathlib import Path

import pytest
from support import (
    EXTENSIONS,
    MECHANISMS,
    TIMEOUT,
    Hold,
    ModelServer,
    Server,
    client_tls,
    collect,
    multiline,
    not_on_pypy,
    server_tls,
    stall,
)

import fastsmtp
from fastsmtp import Mailer, Message, Options, Recipient, Timeouts, compat, pool

CHUNKING = (*EXTENSIONS, "CHUNKING")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    """Connect again soon after a failure."""
    monkeypatch.setattr(pool, "_FIRST_PAUSE", 0.02)


def mailer_for(server: Server, **keywords):
    settings = {"tls": "none", "local_hostname": "client.example", **keywords}
    return Mailer(server.host, server.port, **settings)


def outgoing(number: int) -> list[Message]:
    return [message(i) for i in range(number)]


def message(i: int, *recipients: str) -> Message:
    to = recipients or ["to@example.net"]
    return Message("from@example.org", to, f"Subject: {i}\n\nbody {i}\n", id=i)


def statuses(deliveries):
    return dict(Counter(delivery.status for delivery in deliveries))


def in_thread(work):
    """Run in a thread; the function returned waits for its result."""
    box: list = []

    def run() -> None:
        try:
            box.append((work(), None))
        except BaseException as error:
            box.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def result():
        thread.join(TIMEOUT)
        assert box, "the thread does not end"
        value, error = box[0]
        if error is not None:
            raise error
        return value

    return result


def numbers(server: ModelServer) -> list[int]:
    """Return which messages have arrived, by their Subject."""
    return [int(re.search(rb"Subject: (\d+)", each.data)[1]) for each in server.messages]


# -- what goes in -------------------------------------------------------------

TEXT = "Subject: x\n\n.dot\rand\r\nend"
WIRE = b"Subject: x\r\n\r\n.dot\r\nand\r\nend\r\n"


def _in_a_file(path: Path) -> Path:
    path.write_bytes(TEXT.encode())
    return path


CONTENTS = {
    "str": lambda path: TEXT,
    "bytes": lambda path: TEXT.encode(),
    "bytearray": lambda path: bytearray(TEXT.encode()),
    "memoryview": lambda path: memoryview(TEXT.encode()),
    "path": _in_a_file,
    "file": lambda path: io.BytesIO(TEXT.encode()),
    "text file": lambda path: io.StringIO(TEXT),
}


@pytest.mark.parametrize("extensions", [(), EXTENSIONS, CHUNKING], ids=["", "DATA", "BDAT"])
@pytest.mark.parametrize("kind", CONTENTS)
def test_content_of_each_kind(kind, extensions, tmp_path):
    content = CONTENTS[kind](tmp_path / "content")
    with ModelServer(extensions) as server, mailer_for(server) as mailer:
        delivery = mailer.send(Message("a@example.org", "b@example.org", content))
    assert delivery.status == "accepted"
    assert [each.data for each in server.messages] == [WIRE]


def email(**fields: str) -> EmailMessage:
    made = EmailMessage()
    for name, value in {"From": "Ann <ann@example.org>", "To": "bob@example.org", **fields}.items():
        made[name.replace("_", "-")] = value
    made.set_content("Hello\n")
    return made


def test_email_message():
    sent = email(Cc="cy@example.org", Bcc="dee@example.org", Message_ID="<1@example.org>")
    with ModelServer() as server, mailer_for(server) as mailer:
        (delivery,) = mailer.send_many([sent])
    assert delivery.message is sent
    assert delivery.id == "<1@example.org>"
    assert {result.address for result in delivery.recipients} == {
        "bob@example.org", "cy@example.org", "dee@example.org"
    }  # fmt: skip
    (arrived,) = server.messages
    assert arrived.sender == "ann@example.org"
    assert sorted(arrived.recipients) == ["bob@example.org", "cy@example.org", "dee@example.org"]
    assert b"dee@" not in arrived.data
    assert sent["Bcc"] == "dee@example.org"


def test_email_message_with_smtputf8():
    sent = email(Subject="Grüße")
    del sent["To"]
    sent["To"] = "jörg@example.org"
    with ModelServer() as server, mailer_for(server) as mailer:
        assert mailer.send(sent).status == "accepted"
    (arrived,) = server.messages
    assert "SMTPUTF8" in arrived.parameters[0].split()
    assert arrived.recipients == ["jörg@example.org"]
    assert "Subject: Grüße".encode() in arrived.data


def test_smtputf8_is_refused_before_anything_is_written():
    with ModelServer(["8BITMIME"]) as server, mailer_for(server) as mailer:
        delivery = mailer.send(message(0, "jörg@example.org"))
        assert delivery.status == "not_sent"
        assert "SMTPUTF8" in str(delivery.error)
        assert mailer.send(message(1)).status == "accepted"
    assert sum(line.startswith("MAIL") for line in server.commands) == 1


@pytest.mark.parametrize("make", [list, tuple, deque, iter, lambda each: (m for m in each)])
def test_many_of_any_kind(make):
    sent = outgoing(20)
    with ModelServer() as server, mailer_for(server) as mailer:
        deliveries = list(mailer.send_many(make(sent)))
    assert statuses(deliveries) == {"accepted": 20}
    assert sorted(each.id for each in deliveries) == list(range(20))
    assert sorted(numbers(server)) == list(range(20))
    assert mailer.totals.counts["accepted"] == mailer.totals.messages == 20
    assert mailer.totals.octets == sum(len(each.data) for each in server.messages)
    assert 0 < mailer.totals.seconds < TIMEOUT
    assert 1 <= mailer.totals.connections <= len(server.connections)


def test_no_messages_no_connection():
    with ModelServer() as server, mailer_for(server) as mailer:
        assert list(mailer.send_many([])) == []
        assert list(mailer.send_many(iter(()))) == []
    assert server.connections == []


@pytest.mark.parametrize("one", [message(0), email(), "text", b"bytes", None, 5])
def test_one_by_mistake(one):
    with ModelServer() as server, mailer_for(server) as mailer, pytest.raises(TypeError):
        mailer.send_many(one)
    assert server.connections == []


def _unserializable() -> EmailMessage:
    made = email()
    made.set_payload(object())
    return made


class _Unreadable(io.RawIOBase):
    def read(self, size=-1):
        raise OSError("the disk is gone")


def _options(**asked) -> Message:
    return Message("a@example.org", "b@example.org", "x", options=Options(**asked))


BAD = {
    "control character": (lambda: message(9, "a\x01b@example.org"), ValueError),
    "sender": (lambda: Message("a\x7f@example.org", "b@example.org", "x"), ValueError),
    "sender None": (lambda: Message(None, "b@example.org", "x"), Exception),
    "recipient None": (lambda: Message("a@example.org", ["b@example.org", None], "x"), TypeError),
    "surrogate": (lambda: message(9, "a\ud800@example.org"), ValueError),
    "no recipients": (lambda: Message("a@example.org", [], "x"), ValueError),
    "path": (lambda: Message("a@example.org", "b@example.org", Path("/no/such")), OSError),
    "file": (lambda: Message("a@example.org", "b@example.org", _Unreadable()), OSError),
    "serializer": (_unserializable, Exception),
    "no sender": (EmailMessage, ValueError),
    "str": (lambda: "Subject: x\n\nx", TypeError),
    "None": (lambda: None, TypeError),
    "object": (object, TypeError),
    "size": (
        lambda: Message("a@example.org", "b@example.org", b"x" * 2000),
        fastsmtp.SMTPNotSupportedError,
    ),
    "DSN": (lambda: _options(notify="never"), fastsmtp.SMTPNotSupportedError),
    "RET": (lambda: _options(ret="hdrs"), fastsmtp.SMTPNotSupportedError),
    "REQUIRETLS": (lambda: _options(require_tls=True), fastsmtp.SMTPNotSupportedError),
    "DELIVERBY": (lambda: _options(deliver_by=60), fastsmtp.SMTPNotSupportedError),
    "MT-PRIORITY": (lambda: _options(priority=3), fastsmtp.SMTPNotSupportedError),
    "FUTURERELEASE": (lambda: _options(hold_for=60), fastsmtp.SMTPNotSupportedError),
    "ORCPT": (
        lambda: Message("a@example.org", [Recipient("b@example.org", orcpt="c@d")], "x"),
        fastsmtp.SMTPNotSupportedError,
    ),
}


@pytest.mark.parametrize("chunking", [False, True], ids=["DATA", "BDAT"])
@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_sent(kind, chunking):
    make, expected = BAD[kind]
    bad = make()
    messages = [message(0), message(1), bad, message(2), bad, message(3)]
    extensions = ["PIPELINING", "SIZE 1000", "SMTPUTF8", "8BITMIME", "CHUNKING"]
    server = ModelServer(extensions)
    with server, mailer_for(server, connections=1, chunking=chunking) as mailer:
        deliveries = list(mailer.send_many(messages))
    assert statuses(deliveries) == {"accepted": 4, "not_sent": 2}
    for delivery in deliveries:
        if delivery.status == "not_sent":
            assert delivery.message is bad
            assert isinstance(delivery.error, expected)
            assert delivery.attempts == delivery.connection == 0
    assert sorted(numbers(server)) == [0, 1, 2, 3]
    assert len(server.connections) == 1
    assert sum(line.startswith("MAIL") for line in server.commands) == 4


def test_8bit_without_8bitmime():
    with ModelServer(["PIPELINING"]) as server, mailer_for(server) as mailer:
        delivery = mailer.send(Message("a@example.org", "b@example.org", "Subject: ä\n\n"))
        assert delivery.status == "not_sent"
        assert "8BITMIME" in str(delivery.error)
        sent = email()
        sent.set_content("ä\n", cte="8bit")
        assert mailer.send(sent).status == "accepted"  # another encoding can be had
    (arrived,) = server.messages
    assert arrived.data.isascii()


def test_options_are_written():
    dsn = [*EXTENSIONS, "DSN", "MT-PRIORITY"]
    own = Message(
        "a@example.org",
        [Recipient("b@example.org", notify="never"), "c@example.org"],
        "x",
        options=Options(ret="hdrs", notify="failure"),
    )
    with ModelServer(dsn) as server, mailer_for(server, options=Options(priority=2)) as mailer:
        assert statuses(mailer.send_many([own, message(1)])) == {"accepted": 2}
    by_sender = {each.sender: each.parameters for each in server.messages}
    assert by_sender["from@example.org"][0].split()[-1] == "MT-PRIORITY=2"
    assert "RET=HDRS" in by_sender["a@example.org"][0].split()
    assert by_sender["a@example.org"][1:] == ["NOTIFY=NEVER", "NOTIFY=FAILURE"]


# -- what is pulled -----------------------------------------------------------


class Tracked(Message):
    """Can be seen to live."""

    __slots__ = ("__weakref__",)


@not_on_pypy("what is left is collected later")
@pytest.mark.parametrize("extensions", [EXTENSIONS, CHUNKING], ids=["DATA", "BDAT"])
def test_few_messages_are_held(extensions):
    alive: weakref.WeakSet[Tracked] = weakref.WeakSet()
    most = 0

    def generate():
        nonlocal most
        for i in range(600):
            made = Tracked("from@example.org", "to@example.net", f"Subject: {i}\n\n", id=i)
            alive.add(made)
            most = max(most, len(alive))
            yield made
            del made

    with ModelServer(extensions) as server, mailer_for(server, connections=2, depth=4) as mailer:
        done = 0
        for _ in mailer.send_many(generate()):
            done += 1
    assert done == len(server.messages) == 600
    # Two connections: eight waiting, eight in flight, and eight whose results wait.
    # The generator and the loop hold one each.
    assert most <= 3 * 8 + 2


def test_nothing_is_pulled_before_the_first_result_is_asked_for():
    pulled = []
    with ModelServer() as server, mailer_for(server) as mailer:
        results = mailer.send_many(pulled.append(i) or message(i) for i in range(3))
        assert (pulled, server.connections) == ([], [])
        next(results)
        assert pulled == [0, 1, 2]
        assert len(list(results)) == 2


def test_pulled_no_further_while_nothing_is_taken():
    pulled = 0

    def endless():
        nonlocal pulled
        while True:
            pulled += 1
            yield message(pulled)

    hold = Hold()
    replies = {("body", 1): (hold, b"250 taken\r\n")}
    with ModelServer(replies=replies) as server:
        mailer = mailer_for(server, connections=1, depth=2)
        results = mailer.send_many(endless())
        first = in_thread(lambda: next(results))
        assert hold.reached.wait(TIMEOUT)
        assert pulled <= 2 + 2
        hold.go.set()
        assert first().status == "accepted"
        results.close()
        mailer.close()
    assert 1 + len(mailer.unclaimed) == pulled


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt, OSError])
def test_a_generator_that_raises(kind):
    def broken():
        yield from outgoing(40)
        raise kind("no more")

    with ModelServer() as server, mailer_for(server) as mailer:
        deliveries, error = collect(mailer.send_many(broken()))
        assert (type(error), str(error)) == (kind, "no more")
        assert mailer.send(message(40)).status == "accepted"
    assert statuses(deliveries) == {"accepted": 40}
    assert sorted(numbers(server)) == list(range(41))


def test_a_generator_that_raises_at_once():
    def broken():
        raise RuntimeError("no more")
        yield

    with (
        ModelServer() as server,
        mailer_for(server) as mailer,
        pytest.raises(RuntimeError, match="no more"),
    ):
        list(mailer.send_many(broken()))
    assert server.connections == []


def test_a_generator_that_sends_by_the_same_mailer():
    sent = []

    def recursive():
        yield message(0)
        sent.append(mailer.send(message(1)))

    with ModelServer() as server, mailer_for(server) as mailer:
        deliveries = list(mailer.send_many(recursive()))
    assert [each.status for each in (*deliveries, *sent)] == ["accepted"] * 2


def test_a_slow_generator_keeps_nothing_back():
    pulled = []

    def slow():
        for number in range(32):  # as many as are held at a time
            time.sleep(0.01)
            pulled.append(number)
            yield message(number)

    with ModelServer() as server, mailer_for(server) as mailer:
        deliveries = mailer.send_many(slow())
        assert next(deliveries).status == "accepted"
        assert len(pulled) < 32
        assert [each.status for each in deliveries] == ["accepted"] * 31


# -- several at a time --------------------------------------------------------


@pytest.mark.parametrize("extensions", [EXTENSIONS, CHUNKING], ids=["DATA", "BDAT"])
def test_send_from_many_threads(extensions):
    with ModelServer(extensions) as server, mailer_for(server) as mailer:
        start = threading.Barrier(16)

        def send(first: int):
            start.wait(TIMEOUT)
            return [mailer.send(message(first + i)) for i in range(5)]

        threads = [in_thread(lambda i=i: send(5 * i)) for i in range(16)]
        deliveries = [delivery for result in threads for delivery in result()]
    assert [delivery.id for delivery in deliveries] == list(range(80))
    assert statuses(deliveries) == {"accepted": 80}
    assert sorted(numbers(server)) == list(range(80))
    assert len(server.connections) <= 4


def test_send_uses_one_connection():
    with ModelServer() as server, mailer_for(server) as mailer:
        for i in range(5):
            assert mailer.send(message(i)).connection == 1
    assert len(server.connections) == 1


def test_send_while_another_thread_rests_between_two_deliveries():
    with ModelServer() as server, mailer_for(server, connections=1) as mailer:
        results = mailer.send_many(outgoing(50))
        deliveries = [next(results)]
        assert in_thread(lambda: mailer.send(message(99)))().status == "accepted"
        deliveries += results
    assert statuses(deliveries) == {"accepted": 50}
    assert sorted(numbers(server)) == [*range(50), 99]


def test_send_while_another_thread_drives():
    hold = Hold()
    with (
        ModelServer(replies={("body", 1, 1): (hold, b"250 taken\r\n")}) as server,
        mailer_for(server, connections=2) as mailer,
    ):
        many = in_thread(lambda: list(mailer.send_many(outgoing(1))))
        assert hold.reached.wait(TIMEOUT)
        # By another connection, in spite of the one that waits; then by the same.
        assert mailer.send(message(7)).status == "accepted"
        hold.go.set()
        assert statuses(many()) == {"accepted": 1}
    assert sorted(numbers(server)) == [0, 7]


def test_two_runs_in_two_threads():
    with ModelServer() as server, mailer_for(server) as mailer:
        runs = [
            in_thread(
                lambda i=i: [d.id for d in mailer.send_many(message(j) for j in range(i, i + 60))]
            )
            for i in (0, 100, 200)
        ]
        done = [sorted(run()) for run in runs]
    assert done == [list(range(i, i + 60)) for i in (0, 100, 200)]
    assert len(server.messages) == 180


def test_two_runs_by_turns_in_one_thread():
    with ModelServer() as server, mailer_for(server, connections=2) as mailer:
        low = mailer.send_many(message(i) for i in range(40))
        high = mailer.send_many([message(i) for i in range(100, 140)])
        pairs = list(zip(low, high, strict=True))
    assert sorted(one.id for one, _ in pairs) == list(range(40))
    assert sorted(other.id for _, other in pairs) == list(range(100, 140))
    assert len(server.messages) == 80


# -- stop() and Ctrl-C --------------------------------------------------------


def test_stop_from_another_thread():
    hold = Hold()
    with (
        ModelServer(replies={("body", 2): (hold, b"250 taken\r\n")}) as server,
        mailer_for(server, connections=1) as mailer,
    ):
        many = in_thread(lambda: list(mailer.send_many(outgoing(100))))
        assert hold.reached.wait(TIMEOUT)
        mailer.stop()
        hold.go.set()
        deliveries = many()
        assert statuses(mailer.send_many(outgoing(2))) == {"not_sent": 2}
        assert mailer.send(message(0)).status == "not_sent"
    done = {delivery.id for delivery in deliveries if delivery.status == "accepted"}
    # Whose envelope left with the second message is in flight with it.
    assert done in ({0, 1}, {0, 1, 2})
    assert statuses(deliveries) == {"accepted": len(done), "not_sent": 100 - len(done)}
    assert sorted(numbers(server)) == sorted(done)
    rest = next(delivery for delivery in deliveries if delivery.id == 99)
    assert [tuple(each) for each in rest.recipients] == [("to@example.net", "not_sent", None)]
    assert (rest.error, rest.attempts, rest.connection) == (None, 0, 0)


def test_stop_in_the_loop_ends_a_list_and_an_iterator():
    for make in (list, iter):
        pulled = []
        with ModelServer() as server, mailer_for(server, connections=1) as mailer:
            messages = make([message(i) for i in range(100)])
            if make is iter:
                messages = (pulled.append(each) or each for each in messages)
            deliveries = []
            for delivery in mailer.send_many(messages):
                deliveries.append(delivery)
                mailer.stop()
        assert statuses(deliveries)["accepted"] == len(server.messages) <= 3
        assert len(deliveries) == (100 if make is list else len(pulled))
        assert len({delivery.id for delivery in deliveries}) == len(deliveries)


def test_stop_before_the_first_message():
    with ModelServer() as server, mailer_for(server) as mailer:
        mailer.stop()
        assert list(mailer.send_many(iter(outgoing(3)))) == []
        assert statuses(mailer.send_many(outgoing(50))) == {"not_sent": 50}
    assert server.connections == []
    assert mailer.totals.counts["not_sent"] == 50


def test_stop_while_a_retry_is_waited_for():
    replies = {"RCPT": b"451 4.7.1 later\r\n"}
    with (
        ModelServer(replies=replies) as server,
        mailer_for(server, connections=1, retries=3, retry_delay=60.0) as mailer,
    ):
        many = in_thread(lambda: list(mailer.send_many(outgoing(1))))
        while not mailer._pool._later:
            server.connections and select.select([], [], [], 0.005)
        mailer.stop()
        (delivery,) = many()
    assert delivery.status == "deferred"
    assert delivery.reply.code == 451


def test_leaving_early_does_not_wait_for_a_retry():
    hold = Hold()
    replies = {("RCPT", 2): (hold, b"451 4.7.1 later\r\n")}
    with ModelServer(replies=replies) as server:
        mailer = mailer_for(server, connections=1, retries=3, retry_delay=60.0, pipelining=False)
        results = mailer.send_many(outgoing(2))
        next(results)
        left = in_thread(results.close)
        assert hold.reached.wait(TIMEOUT)
        hold.go.set()
        left()
        mailer.close()
    assert statuses(mailer.unclaimed) == {"deferred": 1}


@not_on_pypy("what is left is collected later")
def test_leaving_early():
    with ModelServer() as server, mailer_for(server, connections=2) as mailer:
        pulled = []
        taken = []
        messages = (pulled.append(i) or message(i) for i in range(1000))
        for delivery in mailer.send_many(messages):
            taken.append(delivery)
            if len(taken) == 5:
                break
        del messages
        assert mailer.send(message(5000)).status == "accepted"
    everything = taken + mailer.unclaimed
    assert sorted(delivery.id for delivery in everything) == pulled
    accepted = sorted(each.id for each in everything if each.status == "accepted")
    assert accepted == sorted(set(numbers(server)) - {5000})
    assert statuses(everything)["not_sent"] > 0


def test_leaving_one_run_early_leaves_another_alone():
    hold = Hold()
    replies = {("body", 2): (hold, b"250 taken\r\n")}
    with ModelServer(replies=replies) as server:
        mailer = mailer_for(server, connections=1, depth=1)
        stays = mailer.send_many(message(i) for i in range(20))
        leaves = mailer.send_many(message(i) for i in range(100, 120))
        deliveries = [next(stays)]
        left = in_thread(lambda: (next(leaves), leaves.close()))
        assert hold.reached.wait(TIMEOUT)
        hold.go.set()
        left()
        deliveries += stays
        mailer.close()
    assert sorted(each.id for each in deliveries) == list(range(20))
    assert statuses(deliveries) == {"accepted": 20}
    assert all(each.id >= 100 for each in mailer.unclaimed)


@not_on_pypy("what is left is collected later")
def test_an_exception_in_the_loop():
    def loop() -> None:
        for _ in mailer.send_many(outgoing(500)):
            raise ZeroDivisionError

    with ModelServer() as server:
        with pytest.raises(ZeroDivisionError), mailer_for(server, connections=1) as mailer:
            loop()
        assert server.commands.count("QUIT") == len(server.connections)
    assert len(mailer.unclaimed) == mailer.totals.messages - 1
    assert mailer.totals.counts["accepted"] == len(server.messages)


PREAMBLE = """
    import os, signal, sys, threading
    from support import *
    from fastsmtp import *
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs this may ignore it
    def message(i):
        return Message("a@example.org", ["b@example.org"], "Subject: %d\\n\\n" % i, id=i)
    def interrupt(connection=None):
        os.kill(os.getpid(), signal.SIGINT)
    def mailer_for(server, **keywords):
        return Mailer(server.host, server.port, tls="none", local_hostname="x", **keywords)
    def show(deliveries):
        print(*sorted("%d:%s" % (each.id, each.status) for each in deliveries), flush=True)
"""


def child(program: str) -> list[str]:
    """Run a program in another process; return the lines it prints."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PREAMBLE) + textwrap.dedent(program)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_ctrl_c():
    lines = child("""
        replies = {("body", 3): (interrupt, b"250 taken\\r\\n")}
        with ModelServer(replies=replies) as server, mailer_for(server, connections=1) as mailer:
            deliveries = []
            try:
                for delivery in mailer.send_many([message(i) for i in range(50)]):
                    deliveries.append(delivery)
            except KeyboardInterrupt:
                print("interrupted")
            print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
            show([each for each in deliveries if each.status == "accepted"])
            print(len(deliveries), len({each.id for each in deliveries}))
            status = mailer.send(message(99)).status
        print(len(server.messages), mailer.unclaimed)
        print(status)
    """)
    accepted = lines[2].split()
    assert lines[:2] == ["interrupted", "True"]
    assert accepted[:3] == ["0:accepted", "1:accepted", "2:accepted"]
    assert len(accepted) in (3, 4)
    assert lines[3:] == ["50 50", f"{len(accepted)} []", "not_sent"]


@not_on_pypy("what is left is collected later")
def test_ctrl_c_in_the_loop_is_the_usual_one():
    lines = child("""
        with ModelServer() as server:
            taken = []
            try:
                with mailer_for(server, connections=1) as mailer:
                    for delivery in mailer.send_many([message(i) for i in range(50)]):
                        taken.append(delivery)
                        interrupt()
            except KeyboardInterrupt:
                print("interrupted")
            print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
            print(len(taken), len(taken) + len(mailer.unclaimed) == mailer.totals.messages)
            print(mailer.totals.counts["accepted"] == len(server.messages))
    """)
    assert lines == ["interrupted", "True", "1 True", "True"]


def test_ctrl_c_while_one_message_is_sent():
    lines = child("""
        replies = {"body": (interrupt, b"250 taken\\r\\n")}
        with ModelServer(replies=replies) as server, mailer_for(server) as mailer:
            try:
                mailer.send(message(1))
            except KeyboardInterrupt:
                print("interrupted")
            show(mailer.unclaimed)
            print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
    """)
    assert lines == ["interrupted", "1:accepted", "True"]


def test_ctrl_c_is_for_the_main_thread():
    lines = child("""
        sent = threading.Event()
        def send_aside():
            result.append(mailer.send(message(2)).status)
            sent.set()
        result = []
        def interrupt_and_wait(connection):
            aside = threading.Thread(target=send_aside)
            aside.start()
            while not mailer._pool.queue and not sent.is_set():
                pass
            interrupt()
            assert sent.wait(5)
        replies = {("body", 1, 1): (interrupt_and_wait, b"250 taken\\r\\n")}
        with ModelServer(replies=replies) as server, mailer_for(server, connections=1) as mailer:
            try:
                mailer.send(message(1))
            except KeyboardInterrupt:
                print("interrupted")
            print(result)
            show(mailer.unclaimed)
    """)
    assert lines == ["interrupted", "['not_sent']", "1:accepted"]


def test_ctrl_c_twice_ends_the_wait():
    lines = child("""
        import time
        def twice(connection):
            interrupt()
            while not mailer._interrupted:
                time.sleep(0.001)
            interrupt()
            stall(connection)
        began = time.monotonic()
        with ModelServer(replies={"body": twice}) as server:
            mailer = mailer_for(server)
            try:
                mailer.send(message(1))
            except KeyboardInterrupt:
                print("interrupted", time.monotonic() - began < 4)
            print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
    """)
    assert lines == ["interrupted True", "True"]


def test_ctrl_c_while_closing():
    lines = child("""
        with ModelServer(replies={"QUIT": (interrupt, b"221 bye\\r\\n")}) as server:
            mailer = mailer_for(server)
            print(mailer.send(message(1)).status)
            try:
                mailer.close()
            except KeyboardInterrupt:
                print("interrupted")
            print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
    """)
    assert lines == ["accepted", "interrupted", "True"]


def test_a_program_has_its_own_way_with_ctrl_c():
    lines = child("""
        def handle(number, frame):
            print("handled")
            mailer.stop()
        signal.signal(signal.SIGINT, handle)
        replies = {("body", 2): (interrupt, b"250 taken\\r\\n")}
        with ModelServer(replies=replies) as server, mailer_for(server, connections=1) as mailer:
            deliveries = list(mailer.send_many([message(i) for i in range(20)]))
            accepted = sum(each.status == "accepted" for each in deliveries)
        # Only now: the server notes a message when it has answered.
        print(len(deliveries), accepted in (2, 3), accepted == len(server.messages))
        print(signal.getsignal(signal.SIGINT) is handle)
    """)
    assert lines == ["handled", "20 True True", "True"]


# -- the end ------------------------------------------------------------------


def test_close():
    with ModelServer() as server:
        mailer = mailer_for(server, connections=3)
        assert statuses(mailer.send_many(outgoing(60))) == {"accepted": 60}
        mailer.close()
        used = [each for each in server.connections if b"MAIL" in each.received]
        assert all(each.received.endswith(b"\r\nQUIT\r\n") for each in used)
        mailer.close()
        mailer.stop()
        with pytest.raises(ValueError, match="closed"):
            mailer.send(message(1))
        with pytest.raises(ValueError, match="closed"):
            mailer.send_many(outgoing(1))
        assert mailer.totals.messages == 60
        assert repr(mailer).startswith("<Mailer for 127.0.0.1:")


def test_closed_without_use():
    with ModelServer() as server:
        with mailer_for(server) as mailer:
            assert mailer.totals.messages == 0
            assert mailer.totals.rate == 0.0
        assert server.connections == []


def test_closed_in_the_loop():
    """What was handed in has its Delivery all the same."""
    with ModelServer() as server:
        mailer = mailer_for(server, connections=1)
        deliveries = []
        for delivery in mailer.send_many(outgoing(100)):
            deliveries.append(delivery)
            mailer.close()
    assert sorted(delivery.id for delivery in deliveries) == list(range(100))
    assert statuses(deliveries)["accepted"] == len(server.messages)


def test_closed_while_another_thread_waits_to_connect():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
    mailer = Mailer(host, port, tls="none", connect_attempts=10)
    mailer._pool.backoff.base = 60.0
    result = in_thread(lambda: mailer.send(message(0)))
    while not mailer._pool.backoff.failures:
        select.select([], [], [], 0.005)
    mailer.close()
    assert result().status == "not_sent"


def test_close_says_quit_and_waits_no_longer_than_for_it():
    with ModelServer(replies={"QUIT": stall}) as server:
        mailer = mailer_for(server, timeouts=Timeouts(quit=0.1))
        assert mailer.send(message(1)).status == "accepted"
        mailer.close()
    assert server.commands[-1] == "QUIT"


# -- pipelining ---------------------------------------------------------------


def flights(server: ModelServer, connection: int = 0) -> list[bytes]:
    """What each read brought, after EHLO; each is answered before the next one comes."""
    first, *rest = server.connections[connection].reads
    assert first.startswith((b"EHLO", b"HELO"))
    return rest


def test_a_message_leaves_with_the_next_envelope():
    with ModelServer() as server, mailer_for(server, connections=1) as mailer:
        assert statuses(mailer.send_many(outgoing(10))) == {"accepted": 10}
    first, *pairs, last, quit_ = flights(server)
    assert re.fullmatch(rb"MAIL FROM:<.*>.*\r\nRCPT TO:<.*>\r\nDATA\r\n", first)
    assert len(pairs) == 9  # one round trip per message
    for i, pair in enumerate(pairs):
        body, dot, envelope = pair.partition(b"\r\n.\r\n")
        assert body == b"Subject: %d\r\n\r\nbody %d" % (i, i)
        assert dot
        assert re.fullmatch(rb"MAIL FROM:<.*>.*\r\nRCPT TO:<.*>\r\nDATA\r\n", envelope)
    assert last.endswith(b"body 9\r\n.\r\n")
    assert quit_ == b"QUIT\r\n"


def test_lmtp_overlaps_too():
    with (
        ModelServer(lmtp=True) as server,
        mailer_for(server, connections=1, protocol="lmtp") as mailer,
    ):
        many = [message(i, "a@example.org", "b@example.org") for i in range(5)]
        assert statuses(mailer.send_many(many)) == {"accepted": 5}
    assert len(server.connections[0].reads) == 1 + 1 + 5 + 1
    assert server.commands[0] == "LHLO client.example"


@pytest.mark.parametrize(
    ("extensions", "keywords"),
    [
        (CHUNKING, {"pipelining": False}),
        (["8BITMIME", "CHUNKING"], {}),
        ([], {}),
        (None, {}),
    ],
    ids=["told not to", "not offered", "nothing offered", "HELO"],
)
def test_without_pipelining(extensions, keywords):
    with (
        ModelServer(extensions) as server,
        mailer_for(server, connections=1, **keywords) as mailer,
    ):
        many = [message(i, "a@example.org", "b@example.org") for i in range(3)]
        assert statuses(mailer.send_many(many)) == {"accepted": 3}
    bodies = 0
    for flight in server.connections[0].reads:
        if flight.startswith(b"Subject"):
            bodies += 1
            assert flight.endswith(b"\r\n.\r\n")
        else:
            assert flight.count(b"\r\n") == 1
            assert not flight.startswith(b"BDAT")
    assert bodies == 3
    if extensions is None:
        assert server.commands[:2] == ["EHLO client.example", "HELO client.example"]


def test_one_refused_recipient_costs_no_connection():
    replies = {("RCPT", 2): b"550 5.1.1 <b@example.org> unknown\r\n"}
    for keywords in ({}, {"pipelining": False}, {"chunking": True}):
        extensions = CHUNKING if keywords.get("chunking") else EXTENSIONS
        with (
            ModelServer(extensions, replies=replies) as server,
            mailer_for(server, connections=1, **keywords) as mailer,
        ):
            many = [message(i, "a@example.org", "b@example.org") for i in range(4)]
            deliveries = list(mailer.send_many(many))
        assert statuses(deliveries) == {"partial": 1, "accepted": 3}
        partial = next(each for each in deliveries if each.status == "partial")
        assert list(partial.refused) == ["b@example.org"]
        assert partial.refused["b@example.org"].enhanced == (5, 1, 1)
        assert len(server.connections) == 1
        assert [len(each.recipients) for each in server.messages] == [1, 2, 2, 2]
        assert mailer.totals.recipients["rejected"] == 1
        assert mailer.totals.replies == {(550, (5, 1, 1), "<...> unknown"): 1}


@pytest.mark.parametrize("extensions", [(), EXTENSIONS, CHUNKING], ids=["", "DATA", "BDAT"])
@pytest.mark.parametrize(
    ("step", "code", "status"),
    [
        ("MAIL", 550, "rejected"),
        ("MAIL", 451, "deferred"),
        ("RCPT", 550, "rejected"),
        ("RCPT", 451, "deferred"),
        ("DATA", 554, "rejected"),
        ("DATA", 451, "deferred"),
        ("body", 554, "rejected"),
        ("body", 452, "deferred"),
    ],
)
def test_one_refused_message_costs_no_connection(step, code, status, extensions):
    if "CHUNKING" in extensions:
        step = {"DATA": "BDAT", "body": "BDAT"}.get(step, step)
    replies = {(step, 2): b"%d 4.0.0 no, <2>\r\n" % code}
    with (
        ModelServer(extensions, replies=replies) as server,
        mailer_for(server, connections=1) as mailer,
    ):
        deliveries = list(mailer.send_many(outgoing(4)))
    by_id = {delivery.id: delivery for delivery in deliveries}
    assert statuses(deliveries) == {"accepted": 3, status: 1}
    assert by_id[1].status == status
    assert by_id[1].reply.code == code
    assert by_id[1].attempts == 1
    assert by_id[1].error is None
    assert len(server.connections) == 1
    assert numbers(server) == [0, 2, 3]


# -- CHUNKING -----------------------------------------------------------------


def quiet(connection) -> bool:
    """Say whether nothing more comes, though the client has had time."""
    return not connection._unread and not select.select([connection.sock], [], [], 0.04)[0]


def take_chunk(connection) -> list[bytes]:
    """Read one transaction by BDAT; return its commands and the content."""
    lines = [connection.line()]
    while not lines[-1].startswith(b"BDAT"):
        lines.append(connection.line())
    return [*lines, connection.exactly(int(lines[-1].split()[1]))]


def test_depth_messages_are_in_flight():
    steps = []

    def play(connection) -> None:
        connection.send(b"220 x\r\n")
        connection.line()
        connection.send(multiline(250, ["x", *CHUNKING]))
        first = take_chunk(connection)
        assert first[0] == b"RSET\r\n"
        assert first[-1] == b".stuff\r\n..\r\n.\r\n"  # as it is, dots and all
        assert first[-2] == b"BDAT %d LAST\r\n" % len(first[-1])
        assert connection.reads[1] == b"".join(first)  # in one flight
        steps.append(quiet(connection))  # until CHUNKING has proven itself
        connection.send(b"250 ok\r\n" * 4)
        for _ in range(3):
            take_chunk(connection)
        steps.append(quiet(connection))
        for _ in range(3):
            connection.send(b"250 ok\r\n" * 4)
            take_chunk(connection)
            steps.append(quiet(connection))
        for _ in range(2):
            connection.send(b"250 ok\r\n" * 4)
        connection.send(b"250 ok\r\n" * 3)
        steps.append(quiet(connection))
        connection.send(b"250 queued as LAST1\r\n")
        steps.append(connection.line())
        connection.send(b"221 bye\r\n")

    many = [Message("a@example.org", "b@example.org", ".stuff\n..\n.\n") for _ in range(7)]
    with Server(play) as server, mailer_for(server, connections=1, depth=3) as mailer:
        deliveries = list(mailer.send_many(many))
    assert steps == [True] * 6 + [b"QUIT\r\n"]
    assert statuses(deliveries) == {"accepted": 7}
    assert deliveries[-1].queue_id == "LAST1"


def test_replies_together_are_followed_by_messages_together():
    """The window moves by as many messages as were answered, not by one for each read."""
    flights = []

    def play(connection) -> None:
        connection.send(b"220 x\r\n")
        connection.line()
        connection.send(multiline(250, ["x", *CHUNKING]))
        take_chunk(connection)
        connection.send(b"250 ok\r\n" * 4)
        for _ in range(5):
            for _ in range(4):
                take_chunk(connection)
            flights.append(quiet(connection))
            connection.send(b"250 ok\r\n" * 4 * 4)
        connection.line()
        connection.send(b"221 bye\r\n")

    with Server(play) as server, mailer_for(server, connections=1, depth=4) as mailer:
        assert statuses(mailer.send_many(outgoing(21))) == {"accepted": 21}
    assert flights == [True] * 5


def test_chunking_false():
    with (
        ModelServer(CHUNKING) as server,
        mailer_for(server, connections=1, chunking=False) as mailer,
    ):
        assert statuses(mailer.send_many(outgoing(3))) == {"accepted": 3}
    assert "DATA" in server.commands
    assert not any(line.startswith("BDAT") for line in server.commands)


def test_lmtp_does_without_chunking():
    with (
        ModelServer(CHUNKING, lmtp=True) as server,
        mailer_for(server, protocol="lmtp") as mailer,
    ):
        assert mailer.send(message(0)).status == "accepted"
    assert "DATA" in server.commands


# -- credentials --------------------------------------------------------------

SECRET = "s3cret-pa55word"
TOKEN = "ya29.t0ken"


def secure(server: Server, certificate: Path, **keywords):
    """Return a Mailer that speaks TLS from the first byte."""
    settings = {"tls": "implicit", "context": client_tls(certificate), "connect_attempts": 1}
    return mailer_for(server, **{**settings, **keywords})


def auth_server(certificate: Path, *mechanisms: str, **keywords) -> ModelServer:
    names = " ".join(mechanisms or MECHANISMS)
    users = {"user": SECRET, "tokens": TOKEN}
    settings = {"tls": server_tls(certificate), "implicit_tls": True, "users": users, **keywords}
    return ModelServer([*EXTENSIONS, f"AUTH {names}"], **settings)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_each_mechanism(mechanism, certificate):
    if mechanism in ("XOAUTH2", "OAUTHBEARER"):
        credentials = {"username": "tokens", "token": TOKEN}
    else:
        credentials = {"username": "user", "password": SECRET}
    with (
        auth_server(certificate, mechanism) as server,
        secure(server, certificate, **credentials) as mailer,
    ):
        assert mailer.send(message(1)).status == "accepted"
    assert server.logins == [credentials["username"]]
    assert f"AUTH {mechanism}" in " ".join(server.commands)


def test_the_strongest_mechanism_first(certificate):
    with (
        auth_server(certificate) as server,
        secure(server, certificate, username="user", password=SECRET) as mailer,
    ):
        assert mailer.send(message(1)).status == "accepted"
    assert next(line for line in server.commands if line.startswith("AUTH")).split()[1] == (
        "SCRAM-SHA-256"
    )


def test_mechanisms_in_the_callers_order(certificate):
    refused = {("AUTH", 1): b"504 5.5.4 not this one\r\n"}
    with auth_server(certificate, replies=refused) as server:
        keywords = {"username": "user", "password": SECRET, "mechanisms": ["LOGIN", "PLAIN"]}
        with secure(server, certificate, **keywords) as mailer:
            assert mailer.send(message(1)).status == "accepted"
    tried = [line.split()[1] for line in server.commands if line.startswith("AUTH")]
    assert tried == ["LOGIN", "PLAIN"]


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5", "SCRAM-SHA-256"])
def test_a_wrong_password(mechanism, certificate):
    """It is tried once: not for each connection, and not again."""
    with auth_server(certificate, mechanism) as server:
        mailer = secure(server, certificate, username="user", password="wr0ng", connect_attempts=5)
        with mailer:
            deliveries, error = collect(mailer.send_many(outgoing(30)))
        assert sum(line.startswith("AUTH") for line in server.commands) == 1
        assert len(server.connections) == 1
    assert statuses(deliveries) == {"not_sent": 30}
    assert {delivery.error for delivery in deliveries} == {error}
    assert isinstance(error, fastsmtp.SMTPAuthenticationError)
    assert error.smtp_code == 535
    assert "wr0ng" not in f"{error!r} {deliveries!r} {mailer!r} {mailer.totals.notes}"


def test_a_login_that_fails_for_now(certificate):
    replies = {("AUTH", 1, 1): b"454 4.7.0 later\r\n"}
    with auth_server(certificate, "PLAIN", replies=replies) as server:
        keywords = {"username": "user", "password": SECRET, "connect_attempts": 2}
        with secure(server, certificate, **keywords) as mailer:
            assert mailer.send(message(1)).status == "accepted"
    assert len(server.connections) == 2


@pytest.mark.parametrize("kind", ["password", "token"])
def test_a_secret_is_asked_for_by_each_connection(kind, certificate):
    asked = []

    def ask() -> str:
        asked.append(threading.current_thread())
        return SECRET if kind == "password" else TOKEN

    user = "user" if kind == "password" else "tokens"
    with auth_server(certificate) as server:
        keywords = {"username": user, kind: ask, "max_messages_per_connection": 2}
        with secure(server, certificate, connections=1, **keywords) as mailer:
            assert asked == []
            assert statuses(mailer.send_many(outgoing(5))) == {"accepted": 5}
    assert len(asked) == len(server.connections) == 3
    assert server.logins == [user] * 3


def test_a_secret_that_cannot_be_had(certificate):
    def ask() -> str:
        raise LookupError("the keyring is locked")

    with auth_server(certificate) as server:
        with secure(server, certificate, username="user", password=ask) as mailer:
            deliveries, error = collect(mailer.send_many(outgoing(3)))
        assert str(error) == "the keyring is locked"
        assert statuses(deliveries) == {"not_sent": 3}
        assert b"AUTH" not in server.received


def test_no_credentials_in_clear():
    with ModelServer([*EXTENSIONS, "AUTH PLAIN"], users={"user": SECRET}) as server:
        with mailer_for(server, username="user", password=SECRET) as mailer:
            delivery = mailer.send(message(1))
            assert delivery.status == "not_sent"
            assert isinstance(delivery.error, fastsmtp.SMTPNotSupportedError)
            assert "cleartext_auth" in str(delivery.error)
        assert not any(line.startswith("AUTH") for line in server.commands)
    with ModelServer([*EXTENSIONS, "AUTH PLAIN"], users={"user": SECRET}) as server:
        keywords = {"username": "user", "password": SECRET, "cleartext_auth": True}
        with mailer_for(server, **keywords) as mailer:
            assert mailer.send(message(1)).status == "accepted"
        assert server.logins == ["user"]


def test_no_auth_offered(certificate):
    with (
        ModelServer(tls=server_tls(certificate), implicit_tls=True) as server,
        secure(server, certificate, username="user", password=SECRET) as mailer,
        pytest.raises(fastsmtp.SMTPNotSupportedError),
    ):
        list(mailer.send_many(outgoing(2)))


def test_no_mechanism_in_common(certificate):
    with auth_server(certificate, "GSSAPI", "NTLM") as server:
        with (
            secure(server, certificate, username="user", password=SECRET) as mailer,
            pytest.raises(fastsmtp.SMTPException, match="No suitable"),
        ):
            list(mailer.send_many(outgoing(2)))
        assert len(server.connections) == 1


# -- secrets, arguments, audit events -----------------------------------------


def test_secrets_are_not_shown(certificate):
    """Not by what is printed, nor by what a traceback shows of locals by repr()."""
    with (
        auth_server(certificate, replies={"AUTH": b"535 5.7.8 no\r\n"}) as server,
        secure(server, certificate, username="user", password=SECRET) as mailer,
    ):
        delivery = mailer.send(message(1))
        things = [mailer, mailer.totals, delivery, delivery.error, mailer._pool]
        things += [mailer._pool.terms, mailer._pool.terms.credentials, mailer._pool.policy]
        assert SECRET not in repr(things)
        assert SECRET not in str(delivery.error)
    hidden = base64.b64encode(f"\0user\0{SECRET}".encode()).decode()
    assert hidden not in repr(things)


@pytest.mark.parametrize(
    "bad",
    [
        {"protocol": "http"},
        {"tls": "ssl"},
        {"connections": 0},
        {"connections": -1},
        {"max_messages_per_connection": 0},
        {"max_connection_age": 0},
        {"max_connection_age": float("nan")},
        {"idle_timeout": -1.0},
        {"rate": 0},
        {"rate": -5.0},
        {"depth": 0},
        {"retries": -1},
        {"retry_delay": 0},
        {"connect_attempts": 0},
        {"timeouts": 0},
        {"timeouts": Timeouts(final=601)},
        {"timeouts": Timeouts(greeting=0)},
        {"timeouts": Timeouts(command=301)},
        {"password": "x"},
        {"token": "x"},
        {"username": "u"},
        {"username": "u", "password": "p", "token": "t"},
        {"username": "u\0", "password": "p"},
        {"username": "u", "password": "p", "mechanisms": ["NO-SUCH"]},
        {"host": ""},
        {"host": "host:"},
        {"host": "host:x"},
        {"host": ":25"},
        {"host": "host:99999"},
        {"port": -1},
        {"port": 65536},
    ],
    ids=str,
)
def test_arguments_that_cannot_be_right(bad):
    with pytest.raises(ValueError, match=" "):
        Mailer(**{"host": "host.example", **bad})


@pytest.mark.parametrize(
    "bad",
    [
        {"connections": "4"},
        {"connections": 2.0},
        {"connections": True},
        {"depth": None},
        {"retry_delay": "60"},
        {"idle_timeout": True},
        {"rate": "fast"},
        {"timeouts": "1"},
        {"options": {"ret": "hdrs"}},
    ],
    ids=str,
)
def test_arguments_of_the_wrong_kind(bad):
    with pytest.raises(TypeError):
        Mailer("host.example", **bad)


@pytest.mark.parametrize(
    ("given", "host", "port", "tls"),
    [
        ({"host": "h.example"}, "h.example", 25, "opportunistic"),
        ({"host": "h.example", "port": 465}, "h.example", 465, "implicit"),
        ({"host": "h.example", "port": 587}, "h.example", 587, "starttls"),
        ({"host": "h.example:587"}, "h.example", 587, "starttls"),
        ({"host": "h.example", "port": 2525}, "h.example", 2525, "opportunistic"),
        ({"host": "h.example", "tls": "implicit"}, "h.example", 465, "implicit"),
        ({"host": "h.example", "tls": "starttls"}, "h.example", 587, "starttls"),
        ({"host": "h.example", "port": 587, "tls": "none"}, "h.example", 587, "none"),
        ({}, "localhost", 25, "none"),
        ({"host": "127.0.0.1"}, "127.0.0.1", 25, "none"),
        ({"host": "::1"}, "::1", 25, "none"),
        ({"host": "[::1]:2525"}, "::1", 2525, "none"),
        ({"host": "[2001:db8::1]:587"}, "2001:db8::1", 587, "starttls"),
        ({"host": "[2001:db8::1]"}, "2001:db8::1", 25, "opportunistic"),
        ({"host": "/run/lmtp", "protocol": "lmtp"}, "/run/lmtp", 24, "none"),
        ({"host": "/run/a:1"}, "/run/a:1", 25, "none"),
        ({"host": "localhost", "port": 465}, "localhost", 465, "implicit"),
    ],
    ids=str,
)
def test_what_is_chosen_by_itself(given, host, port, tls):
    with Mailer(**given) as mailer:
        terms = mailer._pool.terms
        assert (terms.host, terms.port, terms.tls) == (host, port, tls)


def test_timeouts_as_one_number():
    with Mailer(timeouts=150) as mailer:
        assert mailer._pool.timeouts == (150, 150, 150, 120, 150, 150, 150)
    with Mailer(timeouts=100_000) as mailer:
        assert mailer._pool.timeouts == (300, 300, 300, 120, 180, 600, 300)


def test_local_hostname(monkeypatch):
    with ModelServer() as server:
        with Mailer(server.host, server.port) as mailer:
            monkeypatch.setattr(socket, "getfqdn", lambda: "me.example.org")
            assert mailer.send(message(1)).status == "accepted"
        with Mailer(server.host, server.port) as mailer:
            assert mailer.send(message(1)).status == "accepted"
    assert server.commands[-5:][0] != "EHLO"
    assert "EHLO me.example.org" in server.commands


def test_local_hostname_without_a_domain(monkeypatch):
    """An address literal stands for it (RFC 5321, section 4.1.3)."""
    monkeypatch.setattr(socket, "getfqdn", lambda: "me")
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "192.0.2.7")
    assert compat.host_name(socket) == "[192.0.2.7]"

    def fail(name):
        raise OSError("no such name")

    monkeypatch.setattr(socket, "gethostbyname", fail)
    assert compat.host_name(socket) == "[127.0.0.1]"


def test_audit_events():
    lines = child("""
        events = []
        def hook(event, arguments):
            if event.startswith("smtplib."):
                events.append((event, arguments))
        sys.addaudithook(hook)
        with ModelServer() as server, mailer_for(server, connections=1) as mailer:
            print([each.status for each in mailer.send_many([message(i) for i in range(2)])])
        connects = [arguments for event, arguments in events if event == "smtplib.connect"]
        print(connects == [(mailer, server.host, server.port)])
        sent = [arguments for event, arguments in events if event == "smtplib.send"]
        print(all(who is mailer for who, _ in sent))
        print(b"".join(data for _, data in sent) == server.received)
    """)
    assert lines == ["['accepted', 'accepted']", "True", "True", "True"]


def test_an_audit_hook_that_forbids():
    lines = child("""
        forbidden = "smtplib.connect"
        def hook(event, arguments):
            if event == forbidden:
                raise PermissionError("not allowed")
        sys.addaudithook(hook)
        for forbidden in ("smtplib.connect", "smtplib.send"):
            with ModelServer() as server, mailer_for(server, connect_attempts=2) as mailer:
                deliveries = []
                try:
                    for each in mailer.send_many([message(i) for i in range(2)]):
                        deliveries.append(each)
                except PermissionError as error:
                    print(error)
                print([each.status for each in deliveries + mailer.unclaimed], server.messages)
    """)
    assert lines == ["not allowed", "['not_sent', 'not_sent'] []"] * 2


def test_an_audit_hook_that_raises_in_a_session():
    """What is no error of the network's is raised, and leaves nothing hanging."""
    lines = child("""
        import time
        def hook(event, arguments):
            if event == "smtplib.send" and arguments[1].startswith(b"MAIL"):
                raise RuntimeError("not allowed")
        sys.addaudithook(hook)
        began = time.monotonic()
        with ModelServer() as server:
            mailer = mailer_for(server)
            try:
                list(mailer.send_many([message(i) for i in range(3)]))
            except RuntimeError as error:
                print(error)
            mailer.close()
            print(time.monotonic() - began < 4)
            print(sorted(each.id for each in mailer.unclaimed), server.messages)
    """)
    assert lines == ["not allowed", "True", "[0, 1, 2] []"]


def test_a_slow_generator_holds_nobody_else_up():
    """Another thread's message goes while one waits for what is to be sent next."""
    pulled, wait = threading.Event(), threading.Event()

    def slow():
        yield message(0)
        pulled.set()
        assert wait.wait(TIMEOUT)
        yield message(1)

    with ModelServer() as server, mailer_for(server, connections=2) as mailer:
        run = in_thread(lambda: list(mailer.send_many(slow())))
        assert pulled.wait(TIMEOUT)
        other = in_thread(lambda: mailer.send(message(2)))
        try:
            assert other().status == "accepted"
        finally:
            wait.set()
        assert statuses(run()) == {"accepted": 2}
