"""The faulty server itself: does it do what it says, and remember what it did?"""

from __future__ import annotations

import contextlib
import smtplib
import socket
import time
import zlib

import pytest
from faulty import (
    BYE,
    CHOICES,
    DRIBBLE,
    LOSSES,
    NONSENSE,
    ODD,
    OPENINGS,
    REFUSALS,
    STALLS,
    STEPS,
    Fault,
    Faulty,
    Plan,
    Rates,
    Scripted,
    Seeded,
)
from support import client_tls, server_tls

CONTENT = b"X-Ledger: m1\r\nSubject: x\r\n\r\n.dot\r\n..\r\nend\r\n"
TIMEOUT = 5.0  # seconds; SILENCE is how long a server must say nothing to be called silent
SILENCE = 0.05


def envelope(name: str = "m1", *recipients: str) -> bytes:
    rcpts = "".join(f"RCPT TO:<{each}>\r\n" for each in recipients or ("a@example.org",))
    return f"MAIL FROM:<{name}@sender.example>\r\n{rcpts}".encode()


def chunk(content: bytes = CONTENT, last: bool = True) -> bytes:
    return b"BDAT %d%s\r\n%s" % (len(content), b" LAST" if last else b"", content)


def stuffed(content: bytes = CONTENT) -> bytes:
    return content.replace(b"\r\n.", b"\r\n..") + b".\r\n"


class Client:
    """A raw socket with a little reading."""

    def __init__(self, server: Faulty) -> None:
        self.sock = socket.create_connection((server.host, server.port), TIMEOUT)
        self.file = self.sock.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *args: object) -> None:
        self.file.close()
        self.sock.close()

    def reply(self) -> bytes:
        """Read one reply and return its last line; b"" at the end."""
        while (line := self.file.readline())[3:4] == b"-":
            pass
        return line

    def say(self, data: bytes, replies: int = 1) -> list[bytes]:
        """Send, and read the first four octets of so many replies."""
        self.sock.sendall(data)
        return [self.reply()[:3] for _ in range(replies)]

    def hello(self) -> Client:
        assert self.reply().startswith(b"220 ")
        assert self.say(b"EHLO client.example\r\n") == [b"250"]
        return self

    def end(self, kind: str = "") -> str:
        """Say how the connection ends: closed, reset, or silent, and what is left is read."""
        self.sock.settimeout(SILENCE if kind in STALLS else TIMEOUT)
        try:
            while self.sock.recv(65536):
                pass
        except TimeoutError:
            return "silent"
        except ConnectionError:
            return "reset"
        return "closed"


def run(server: Faulty, data: bytes, replies: int) -> list[bytes]:
    with server, Client(server) as client:
        return client.hello().say(data, replies)


# -- without faults ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("session", "codes"),
    [
        (envelope() + envelope("m2"), "250 250 503 250"),
        (b"RCPT TO:<a@example.org>\r\n", "503"),
        (b"DATA\r\n", "503"),
        (b"MAIL FROM:<m1@x>\r\nDATA\r\nRSET\r\nDATA\r\n", "250 503 250 503"),
        (b"MAIL FROM:<m1@x>\r\n" + chunk() + b"NOOP\r\n", "250 503 250"),
        (chunk(b"QUIT\r\n") + b"NOOP\r\n", "503 250"),
        (envelope() + chunk(last=False) + b"DATA\r\n", "250 250 250 503"),
        (b"WHAT\r\nSTARTTLS\r\n", "500 502"),
        (b"HELO me\r\n", "250"),
        (envelope() + b"EHLO me\r\n" + envelope(), "250 250 250 250 250"),
    ],
)
def test_it_is_strict(session, codes):
    server = Faulty()
    assert run(server, session, len(codes.split())) == codes.encode().split()
    assert server.stored == []


def test_it_takes_data():
    server = Faulty()
    with server, Client(server) as client:
        client.hello()
        assert client.say(envelope("m1", "a@x", "b@x") + b"DATA\r\n", 4)[-1] == b"354"
        flight = stuffed() + envelope("m2") + b"DATA\r\n"
        assert client.say(flight, 4) == [b"250", b"250", b"250", b"354"]
        assert client.say(b".\r\n") == [b"250"]
        assert client.say(b"QUIT\r\n") == [b"221"]
        assert client.reply() == b""
    first, second = server.stored
    assert (first.message, first.recipients, first.named) == ("m1", ["a@x", "b@x"], "m1")
    assert first.crc == zlib.crc32(CONTENT)
    assert (first.form, first.ready, first.whole, first.settled) == ("DATA", True, True, True)
    assert (second.named, second.crc) == (None, zlib.crc32(b""))
    assert server.attempts == {"m1": [first], "m2": [second]}
    assert (server.visits[0].attempts, server.leaked) == ([first, second], [])


@pytest.mark.parametrize("size", [1, 3, 1 << 20])
def test_it_takes_chunks_in_flight_however_they_are_cut(size):
    session = envelope() + chunk() + envelope("m2") + chunk(CONTENT[:20], last=False)
    session += chunk(CONTENT[20:]) + b"NOOP\r\n"
    with Faulty() as server, Client(server) as client:
        client.hello()
        client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(session), size):
            client.sock.sendall(session[start : start + size])
        assert [client.reply()[:3] for _ in range(8)] == [b"250"] * 8
    first, second = server.stored
    assert first.crc == second.crc == zlib.crc32(CONTENT)
    assert (first.form, first.named, second.named) == ("BDAT", "m1", "m1")


def test_smtplib_can_speak_to_it(certificate):
    server = Faulty(tls=server_tls(certificate))
    with server, smtplib.SMTP(server.host, server.port, timeout=TIMEOUT) as client:
        client.starttls(context=client_tls(certificate))
        client.ehlo()
        assert client.has_extn("chunking")
        assert not client.has_extn("starttls")
        assert client.sendmail("m1@sender.example", ["a@example.org"], CONTENT) == {}
    assert [each.crc for each in server.stored] == [zlib.crc32(CONTENT)]
    assert server.visits[0].tls


# -- faults -----------------------------------------------------------------------


def test_the_choices_are_whole():
    kinds = {fault.kind for faults in (*CHOICES.values(), *OPENINGS.values()) for fault in faults}
    assert kinds == {*REFUSALS, *LOSSES, *STALLS, *NONSENSE, *ODD, DRIBBLE, BYE, "inject"}
    assert set(Rates._fields) == {*CHOICES, *OPENINGS}


HOW_IT_ENDS = {"drop": "closed", "half": "closed", "reset": "reset", BYE: "closed"}
HOW_IT_ENDS |= dict.fromkeys(STALLS, "silent")

#: Whether the reply is whole, by kind; None where there is no telling.
FLIGHTS = {
    "DATA": [b"MAIL FROM:<m1@x>\r\n", b"RCPT TO:<a@x>\r\n", b"DATA\r\n", stuffed()],
    "BDAT": [b"MAIL FROM:<m1@x>\r\n", b"RCPT TO:<a@x>\r\n", chunk()],
}


def command_of(step: str, form: str) -> int:
    """Return which command of the session the fault strikes; BDAT is both DATA and FINAL."""
    return min(STEPS.index(step), len(FLIGHTS[form]) - 1)


@pytest.mark.parametrize("form", FLIGHTS)
@pytest.mark.parametrize("kind", [*LOSSES, *STALLS, BYE])
@pytest.mark.parametrize("step", STEPS)
def test_the_connection_is_lost_at_a_step(step, kind, form):
    server = Faulty(Scripted({("m1", 1): [Fault(step, kind, stored=kind != BYE)]}))
    at = command_of(step, form)
    with server, Client(server) as client:
        client.hello()
        for command in FLIGHTS[form][:at]:
            assert client.say(command)[0] in (b"250", b"354")
        client.sock.sendall(FLIGHTS[form][at])
        if kind == "half":
            assert 0 < len(client.sock.recv(100)) < 20
        elif kind == BYE:
            assert client.reply().startswith(b"421 4.3.2 Closing at " + step.encode())
        assert client.end(kind) == HOW_IT_ENDS.get(kind, "closed")
    (attempt,) = server.attempts["m1"]
    assert attempt.stored == (step == "FINAL" and kind != BYE)
    assert attempt.settled == (kind == BYE)
    assert attempt.faults == server.visits[0].faults == [Fault(step, kind, stored=kind != BYE)]
    assert not server.visits[0].sound
    assert not server.visits[0].abandoned


@pytest.mark.parametrize("form", FLIGHTS)
@pytest.mark.parametrize("kind", [*LOSSES[:3], *STALLS, BYE, "5xx"])
def test_the_connection_is_lost_inside_the_content(kind, form):
    server = Faulty(Scripted({("m1", 1): [Fault("BODY", kind)]}))
    *commands, content = FLIGHTS[form]
    with server, Client(server) as client:
        client.hello()
        for command in commands:
            client.say(command)
        client.sock.sendall(content[:30])
        if kind in (BYE, "5xx"):
            assert client.reply()[:3] == {BYE: b"421", "5xx": b"552"}.get(kind) or b"550"
        assert client.end(kind) == HOW_IT_ENDS.get(kind, "closed")
    (attempt,) = server.attempts["m1"]
    assert not attempt.stored
    assert not attempt.whole
    assert attempt.cut == (kind not in ("5xx", "stall"))


def test_what_is_not_read_cannot_be_handed_over():
    server = Faulty(Scripted({("m1", 1): [Fault("BODY", "drop")]}), buffer_size=4096)
    with server, Client(server) as client:
        client.hello().say(envelope() + b"DATA\r\n", 3)
        client.sock.settimeout(SILENCE)
        with pytest.raises(OSError):  # noqa: PT011 - a timeout here, an error elsewhere
            client.sock.sendall(b"x" * (16 << 20))
    assert server.attempts["m1"][0].cut


@pytest.mark.parametrize("kind", [*LOSSES[:3], BYE])
def test_the_connection_is_lost_afterwards(kind):
    server = Faulty(Scripted({("m1", 1): [Fault("AFTER", kind)]}))
    with server, Client(server) as client:
        replies = client.hello().say(envelope() + chunk(), 3)
        assert replies == [b"250"] * 3
        assert client.end(kind) == HOW_IT_ENDS.get(kind, "closed")
    (attempt,) = server.stored
    assert attempt.settled


def test_what_came_after_the_end_is_noted_and_not_taken():
    server = Faulty(Scripted({("m1", 1): [Fault("FINAL", "drop", stored=True)]}))
    with server, Client(server) as client:
        client.hello()
        client.sock.sendall(envelope() + chunk() + envelope("m2") + chunk() + envelope("m3"))
        assert client.end() == "closed"
    assert [each.message for each in server.stored] == ["m1"]
    (second,), (third,) = server.attempts["m2"], server.attempts["m3"]
    assert (second.form, second.whole, second.settled) == ("BDAT", True, False)
    assert (third.form, third.whole) == (None, False)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("kind", REFUSALS[:2])
def test_refusals(kind, step):
    server = Faulty(Scripted({("m1", 1): [Fault(step, kind)]}))
    with server, Client(server) as client:
        client.hello()
        codes = [client.say(command)[0] for command in FLIGHTS["DATA"][: STEPS.index(step) + 1]]
        assert codes[-1] == {"4xx": b"450", "5xx": b"550"}[kind]
        assert client.say(b"RSET\r\n") == [b"250"]
    (attempt,) = server.attempts["m1"]
    assert (attempt.stored, attempt.settled) == (False, True)
    assert attempt.refused == (["a@x"] if step == "RCPT" else [])


def test_a_refused_chunk_is_swallowed():
    server = Faulty(
        Scripted({("m1", 1): [Fault("DATA", "4xx")], ("m2", 1): [Fault("MAIL", "5xx")]})
    )
    session = envelope() + chunk() + envelope("m2") + chunk() + b"NOOP\r\n"
    codes = b"250 250 450 550 503 503 250"
    assert run(server, session, 7) == codes.split()
    assert server.stored == []


def test_one_recipient_is_refused():
    fault = Fault("RCPT", "full", recipient=1)
    server = Faulty(Scripted({("m1", 1): [fault]}))
    session = envelope("m1", "a@x", "b@x", "c@x") + chunk()
    assert run(server, session, 5) == [b"250", b"250", b"452", b"250", b"250"]
    (attempt,) = server.stored
    assert (attempt.recipients, attempt.refused) == (["a@x", "c@x"], ["b@x"])


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("kind", NONSENSE)
def test_nonsense(kind, step):
    server = Faulty(Scripted({("m1", 1): [Fault(step, kind)]}))
    with server, Client(server) as client:
        client.hello()
        for command in FLIGHTS["DATA"][: STEPS.index(step)]:
            client.say(command)
        client.sock.sendall(FLIGHTS["DATA"][STEPS.index(step)])
        line = client.file.readline(1000)
    code = b"354" if step == "DATA" else b"250"
    other = b"220" if step == "DATA" else b"354"
    begins = {"junk": b"\0\xff", "web": b"HTTP/1.1 400", "wrong": other, "extra": other}
    assert line.startswith(begins.get(kind, code + b"-"))
    assert server.attempts["m1"][0].settled is False
    assert not server.visits[0].sound


@pytest.mark.parametrize("code", ODD)
def test_an_odd_success_is_one(code):
    server = Faulty(Scripted({("m1", 1): [Fault("FINAL", code), Fault("RCPT", code)]}))
    assert run(server, envelope() + chunk(), 3) == [b"250", code.encode(), code.encode()]
    assert [each.message for each in server.stored] == ["m1"]


def test_a_dribbled_reply_comes_whole_before_the_next():
    faults = [Fault(step, DRIBBLE) for step in STEPS]
    server = Faulty(Scripted({("m1", 1): faults, 1: [Fault("greeting", DRIBBLE)]}))
    with server, Client(server) as client:
        client.hello().say(envelope() + b"DATA\r\n", 3)
        client.sock.sendall(stuffed() + b"NOOP\r\n")
        assert client.reply() == b"250 2.0.0 Ok: queued as m1.1\r\n"
        assert client.reply() == b"250 2.0.0 Nothing done\r\n"
    assert server.stored[0].settled


@pytest.mark.parametrize("fault", OPENINGS["connect"], ids=lambda fault: "-".join(fault[:2]))
def test_openings(fault):
    server = Faulty(Scripted({1: [fault]}))
    greeting = fault.step == "greeting"
    line = b""
    # A reset may come so early that connect() fails.
    with server, contextlib.suppress(ConnectionError), Client(server) as client:
        if not greeting:
            client.reply()
            client.sock.sendall(b"EHLO me\r\n")
        line = client.file.readline()
        if fault.kind not in ("junk", DRIBBLE):
            assert client.end() in ("closed", "reset")
    usual = b"220 faulty.example ESMTP\r\n" if greeting else b"250-faulty.example\r\n"
    assert (line == usual) == (fault.kind == DRIBBLE or fault == Fault("EHLO", "half"))
    assert server.visits[0].faults == [fault]


@pytest.mark.parametrize("fault", OPENINGS["starttls"], ids=lambda fault: "-".join(fault[:2]))
def test_starttls_fails(fault, certificate):
    server = Faulty(Scripted({1: [fault]}), tls=server_tls(certificate))
    replies = {"4xx": b"450", BYE: b"421", "junk": b"\0\xff\x80", "inject": b"220", "half": b"220"}
    with server, Client(server) as client:
        client.hello()
        client.sock.sendall(b"STARTTLS\r\n")
        if fault.step == "TLS":
            assert client.reply()[:3] == b"220"
            with pytest.raises(OSError):  # noqa: PT011 - ssl's errors are among them
                client_tls(certificate).wrap_socket(client.sock, server_hostname="localhost")
        elif fault.kind != "reset":
            assert client.reply()[:3] == replies.get(fault.kind, b"")
    assert server.visits[0].faults == [fault]
    assert not server.visits[0].tls


def test_a_client_that_hangs_up_is_noted():
    server = Faulty()
    with server, Client(server) as client:
        client.hello().say(envelope(), 2)
    assert server.visits[0].abandoned


def test_a_client_that_stays_is_noted(monkeypatch):
    monkeypatch.setattr("faulty.PATIENCE", 0.1)
    server = Faulty()
    with server:
        client = Client(server).hello()
    client.__exit__()
    assert [each.number for each in server.leaked] == [1]


def test_its_clock_is_watched():
    with Faulty() as server, Client(server) as client:
        client.hello()
        server._loop.call_soon_threadsafe(time.sleep, 0.1)
        time.sleep(0.15)
    assert server.late > 0.05


def test_what_goes_wrong_in_the_server_is_raised():
    class Broken(Plan):
        def for_attempt(self, message: str, number: int) -> list[Fault]:
            raise ZeroDivisionError

    def talk() -> None:
        with Faulty(Broken()) as server, Client(server) as client:
            client.hello().sock.sendall(envelope())
            assert client.end() != "silent"

    with pytest.raises(ZeroDivisionError):
        talk()


# -- the plan ---------------------------------------------------------------------


def test_a_seed_says_all():
    def drawn(seed: int) -> list[list[Fault]]:
        plan = Seeded(seed)
        attempts = [plan.for_attempt(f"m{n}", attempt) for n in range(500) for attempt in (1, 2)]
        return attempts + [plan.for_connection(n) for n in range(50)]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_the_rates_are_met_and_all_choices_come():
    plan = Seeded(3, Rates(stall=0.01))
    drawn = [plan.for_attempt(f"m{n}", 1) for n in range(20_000)]
    assert 0.9 < sum(map(bool, drawn)) / 20_000 / sum(plan.rates[:-2]) < 1.1
    faults = {fault[:2] for faults in drawn for fault in faults}
    assert faults == {fault[:2] for faults in CHOICES.values() for fault in faults}
    assert {fault.stored for faults in drawn for fault in faults} == {True, False}
    openings = {fault for n in range(5000) for fault in plan.for_connection(n)}
    assert openings == {fault for faults in OPENINGS.values() for fault in faults}
