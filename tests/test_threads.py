"""Threads: a Mailer that many use at a time, and an SMTP that ought to be one thread's alone.

What a server took is held against what the threads sent and were told: each
message has the sender, the recipients and the content of one call, and a result
is the one of the message that it was returned for.  Threads and the codec:
test_codec.py; the ledger of eight threads and a faulty server: test_ledger.py.
"""

from __future__ import annotations

import contextlib
import copy
import pickle
import re
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from email.message import EmailMessage
from typing import Any

import pytest
from model_server import NamingServer, NamingSession, named
from support import EXTENSIONS, TIMEOUT, Hold, Message, ModelServer

import fastsmtp

NAME = "client.example"
REFUSED = "no.one"


@pytest.fixture(autouse=True)
def restless() -> Iterator[None]:
    """Have threads take turns as often as the interpreter lets them."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def together(*works: Callable[[], None]) -> None:
    """Run each in a thread of its own, all at once; raise what one of them raised."""
    start = threading.Barrier(len(works))
    errors: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
            start.wait(TIMEOUT)
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20 * TIMEOUT)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


class Picky(NamingServer):
    """Refuses recipients by their names."""

    def __init__(self, **details: Any) -> None:
        super().__init__(**details)
        self._play = lambda connection: PickySession(self, connection).run()


class PickySession(NamingSession):
    def do_RCPT(self, verb: str, argument: str) -> None:
        if REFUSED in argument:
            self.reply(verb, b"550 not here\r\n")
        else:
            super().do_RCPT(verb, argument)


def letter(name: str) -> tuple[str, list[str], str]:
    """Return sender, recipients and content of a message; of some one recipient is refused."""
    others = [f"{REFUSED}.{name}@example.org"] if name.endswith("3") else []
    return f"{name}@example.org", [f"a.{name}@example.org", *others], f"X: {name}\n\n.\n{name}\n"


def is_whole(message: Message) -> bool:
    """Say whether a message at the server is one that a thread sent, and all of it."""
    _, recipients, content = letter(message.sender.partition("@")[0])
    return (message.recipients, message.data) == (
        recipients[:1],
        content.replace("\n", "\r\n").encode(),
    )


# -- one SMTP in many threads -----------------------------------------------------


class Overridden(fastsmtp.SMTP):
    """One whose methods are called one by one."""

    def putcmd(self, cmd: str, args: str = "") -> None:
        super().putcmd(cmd, args)


class Shared:
    """A client that threads share, and what they were told of the messages they sent."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.sent: set[str] = set()
        self.failed: set[str] = set()

    def send(self, name: str) -> None:
        sender, recipients, content = letter(name)
        try:
            refused = self.client.sendmail(sender, recipients, content)
        except FAILURES as error:
            self.failed.add(name)
            own(f"{name}@", getattr(error, "smtp_error", b""))
        else:
            self.sent.add(name)
            assert list(refused) == recipients[1:]
            for _, text in refused.values():
                own(f"{name}@", text)

    def disturb(self) -> None:
        """Do what ends no connection and has a reply of its own."""
        for verb in ("noop", "rset", "vrfy ann") * 5:
            try:
                own(f" {verb}", self.client.docmd(*verb.split())[1])
            except FAILURES as error:
                own(f" {verb}", getattr(error, "smtp_error", b""))


#: What a call may raise that may not be made now, or whose connection has gone.
FAILURES = (fastsmtp.SMTPException, RuntimeError)


def own(asked: str, text: bytes) -> None:
    """Hold that a reply is the one to this command."""
    assert not text or asked in f" {named(text)[1]}", f"{asked} was told {text!r}"


CLIENTS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "pipelined": (fastsmtp.SMTP, {}),
    "in steps": (fastsmtp.SMTP, {"extensions": ()}),
    "overridden": (Overridden, {}),
    "LMTP": (fastsmtp.LMTP, {"lmtp": True}),
}
VERBS = ("EHLO", "LHLO", "MAIL", "RCPT", "DATA", "RSET", "NOOP", "VRFY")


@pytest.mark.parametrize("count", [2, 8])
@pytest.mark.parametrize("kind", CLIENTS)
def test_threads_that_share_a_connection_mix_nothing(kind, count):
    make, details = CLIENTS[kind]
    with Picky(**details) as server:
        shared = Shared(make(server.host, server.port, NAME, timeout=1))

        def work(number: int) -> None:
            for each in range(48 // count):
                shared.send(f"m{number}.{each}")

        try:
            together(shared.disturb, *(lambda n=n: work(n) for n in range(count)))
        finally:
            shared.client.close()
    stored = Counter(each.sender.partition("@")[0] for each in server.messages)
    assert [each for each in server.messages if not is_whole(each)] == []
    assert max(stored.values(), default=0) <= 1
    assert shared.sent <= set(stored) <= shared.sent | shared.failed
    assert {line[:4].upper() for line in server.commands} <= set(VERBS)


def test_threads_that_share_a_new_connection_say_ehlo_once():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ModelServer() as server, fastsmtp.SMTP(server.host, server.port) as client:
            start = threading.Barrier(8)

            def send(number: int) -> object:
                message = EmailMessage()
                message["From"], message["To"] = "a@example.org", "ü@example.org"
                start.wait()
                return client.send_message(message)

            with ThreadPoolExecutor(8) as threads:
                assert list(threads.map(send, range(8))) == [{}] * 8
    finally:
        sys.setswitchinterval(before)
    assert len(re.findall(rb"(?im)^EHLO ", server.received)) == 1


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_a_client_without_a_connection_can_be_copied(copied):
    client = fastsmtp.SMTP()
    with pytest.raises(fastsmtp.SMTPServerDisconnected):
        client.noop()
    assert copied(client).local_hostname == client.local_hostname


def test_a_thread_may_close_what_another_one_waits_for():
    hold = Hold()
    with ModelServer(replies={("body", 1): (hold, b"250 taken\r\n")}) as server:
        client = fastsmtp.SMTP(server.host, server.port, NAME, timeout=TIMEOUT)

        def send() -> None:
            with pytest.raises(fastsmtp.SMTPServerDisconnected):
                client.sendmail(*letter("m1"))

        def close() -> None:
            assert hold.reached.wait(TIMEOUT)
            socket.socket.shutdown(client.sock, socket.SHUT_RDWR)
            client.close()
            hold.go.set()

        together(send, close)
        assert client.sock is None
        assert client.connect(server.host, server.port)[0] == 220
        assert client.sendmail(*letter("m2")) == {}
        client.close()
    # The server may take the first one as well, and at any time.
    assert "m2@example.org" in [message.sender for message in server.messages]


# -- one Mailer in many threads ---------------------------------------------------


def outgoing(name: str) -> fastsmtp.Message:
    return fastsmtp.Message(*letter(name), id=name)


CHUNKING = (*EXTENSIONS, "CHUNKING")


@pytest.mark.parametrize("extensions", [EXTENSIONS, CHUNKING], ids=["DATA", "BDAT"])
def test_a_mailer_does_all_its_work_for_all_its_threads(extensions):
    """Runs, single messages, and what may be asked meanwhile, from sixteen threads."""
    deliveries: list[fastsmtp.Delivery] = []
    with (
        Picky(extensions=extensions) as server,
        fastsmtp.Mailer(server.host, server.port, local_hostname=NAME) as mailer,
    ):

        def many(thread: int) -> None:
            names = [f"m{thread}.{n}" for n in range(40)]
            here = list(mailer.send_many(outgoing(name) for name in names))
            assert sorted(each.id for each in here) == sorted(names)
            deliveries.extend(here)

        def one_by_one(thread: int) -> None:
            for n in range(10):
                delivery = mailer.send(outgoing(f"m{thread}.{n}"))
                assert delivery.id == f"m{thread}.{n}"
                deliveries.append(delivery)

        def ask(thread: int) -> None:
            before = 0
            for _ in range(100):
                before, earlier = mailer.totals.messages, before
                assert earlier <= before
                assert repr(mailer).startswith("<Mailer for ")

        kinds = (many, one_by_one, one_by_one, ask)
        together(*(lambda n=n: kinds[n % 4](n) for n in range(16)))
        totals = mailer.totals
    examine(server, deliveries)
    assert len(deliveries) == totals.messages == 4 * 40 + 8 * 10
    assert {each.status for each in deliveries} == {"accepted", "partial"}


def examine(server: Picky, deliveries: list[fastsmtp.Delivery]) -> None:
    """Hold what was told against what the server has."""
    assert max(Counter(each.id for each in deliveries).values()) == 1
    stored = Counter(each.sender.partition("@")[0] for each in server.messages)
    assert [each for each in server.messages if not is_whole(each)] == []
    taken = {each.id for each in deliveries if each.status in ("accepted", "partial")}
    assert stored == Counter(taken)
    for delivery in deliveries:
        for result in delivery.recipients:
            expected = "rejected" if REFUSED in result.address else "accepted"
            if delivery.id in taken:
                assert result.status == expected
                own(f"{delivery.id}@", result.reply.text)


@pytest.mark.parametrize("end", ["stop", "close"])
def test_a_mailer_that_ends_under_its_threads_accounts_for_all(end):
    deliveries: list[fastsmtp.Delivery] = []
    refused: list[str] = []
    under_way = threading.Semaphore(0)
    with (
        Picky() as server,
        fastsmtp.Mailer(server.host, server.port, local_hostname=NAME) as mailer,
    ):

        def work(thread: int) -> None:
            names = [f"m{thread}.{n}" for n in range(30)]
            # A Mailer that is closed takes no more.
            with contextlib.suppress(ValueError):
                if thread % 2:
                    for delivery in mailer.send_many([outgoing(name) for name in names]):
                        deliveries.append(delivery)
                        names.remove(delivery.id)
                        under_way.release()
                else:
                    for name in names.copy():
                        deliveries.append(mailer.send(outgoing(name)))
                        names.remove(name)
                        under_way.release()
            refused.extend(names)

        def finish() -> None:
            for _ in range(30):
                assert under_way.acquire(timeout=TIMEOUT)
            getattr(mailer, end)()

        together(finish, finish, *(lambda n=n: work(n) for n in range(14)))
    examine(server, deliveries)
    assert {each.status for each in deliveries} <= {"accepted", "partial", "not_sent"}
    told = Counter([*(each.id for each in deliveries), *refused])
    assert told == Counter(f"m{thread}.{n}" for thread in range(14) for n in range(30))
    stored = {each.sender.partition("@")[0] for each in server.messages}
    assert stored.isdisjoint(refused)


# -- one parser in many threads ---------------------------------------------------


def test_threads_at_all_of_a_parser_do_no_harm(codec):
    """More than test_codec.py has of this: flights of replies, and limits that change."""
    parser = codec.ReplyParser(False)

    def feed() -> None:
        for n in range(300):
            parser.feed(b"250-one\r\n250 two\r\n" * (n % 7) + b"250 %d" % n + b"x" * n + b"\r\n")

    def take() -> None:
        for n in range(300):
            try:
                replies = parser.next_replies(n % 5 + 1)
            except fastsmtp.SMTPException:
                continue
            assert all(isinstance(code, int) and isinstance(text, bytes) for code, text in replies)

    def change() -> None:
        for n in range(300):
            parser.max_line = 20 + 10 * n
            assert parser.pending >= 0
            assert isinstance(parser.take_line(n), (bytes, type(None)))

    together(feed, feed, take, take, change, change)
    assert isinstance(parser.pending, int)
