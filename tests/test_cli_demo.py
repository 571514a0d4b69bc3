"""``fastsmtp demo``, shortened; and that it notices what arrives otherwise than it was sent."""

from __future__ import annotations

import contextlib
import email
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from fastsmtp.cli import demo, demo_server
from fastsmtp.cli.demo import RECIPIENT, SENDER, Cost
from fastsmtp.cli.demo_server import Receiver, receipt
from fastsmtp.cli.exits import Failure

SHORT = ["--messages", "50", "--rounds", "1", "--repeat", "2"]


def run(*arguments: str, status: int = 0, width: int = 100):
    result = CliRunner().invoke(
        demo.command, [*SHORT, *arguments], env={"COLUMNS": str(width), "PYTHONUTF8": "1"}
    )
    assert result.exit_code == status, result.output
    return result


def test_three_clients_side_by_side():
    output = run().stdout
    # Three clients: 7 kinds twice, one once, a mailing, and a first message to each server.
    sent = 3 * (7 * 2 + 1 + 50 + 2)
    assert re.search(
        rf"^All {sent} messages \(\d\d MB\) arrived byte for byte as sent\.$", output, re.MULTILINE
    )
    head, kinds, mailing = re.split(r"Eight kinds of messages|A mailing of 50", output)
    assert "fastsmtp 0." in head
    assert "codec: " in head
    titles = [kind.title for kind in demo.kinds(1)]
    for title in [*titles, "all"]:
        row = next(line for line in kinds.splitlines() if line.startswith(f"{title}  "))
        # messages/s by three, CPU ms of one, and how many times less it is for two
        assert re.search(r"( +[\d,]+){3} +[\d,.]+( +\d+\.\dx){2}$", row), row
    for client in ("smtplib.SMTP", "fastsmtp.SMTP", "fastsmtp.Mailer"):
        assert re.search(
            rf"^{re.escape(client)} +[\d,]+ +[\d.]+ +[\d,]+ +\d+\.\dx$", mailing, re.MULTILINE
        )
    assert "\x1b" not in output
    assert "━" not in output


def test_it_fits_a_narrow_terminal():
    output = run(width=60).stdout
    assert max(map(len, output.splitlines())) <= 60
    assert output.count("5 MB attachment") == 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: text.replace("Hello", "Hallo"), "1 are missing, 1 were never sent"),
        (lambda text: text + ".\n", "1 are missing, 1 were never sent"),
        (None, "of 3 sent, 2 arrived; 1 are missing, 0 were never sent"),
    ],
)
@pytest.mark.parametrize("client", ["SMTP", "Mailer"])
def test_what_arrives_otherwise_is_noticed(monkeypatch, client, change, says):
    """One message of the mailing is changed, or left out, on its way to one of the clients."""

    def spoilt(chunk):
        chunk = list(chunk)
        if change is None:
            return chunk[1:]
        recipient, text = chunk[0]
        return [(recipient, change(text)), *chunk[1:]]

    one_by_one, hand_in = demo._one_by_one, demo.hand_in

    def by_smtp(smtp, chunk):
        ours = type(smtp).__module__.startswith("fastsmtp")
        one_by_one(smtp, spoilt(chunk) if ours and client == "SMTP" else chunk)

    def by_mailer(mailer, messages):
        messages = list(messages)
        if client == "Mailer" and len(messages) == 3:
            pairs = spoilt((message.recipients[0], message.content) for message in messages)
            messages = [demo.Message(SENDER, to, text) for to, text in pairs]
        hand_in(mailer, messages)

    monkeypatch.setattr(demo, "_one_by_one", by_smtp)
    monkeypatch.setattr(demo, "hand_in", by_mailer)
    monkeypatch.setattr(demo, "compare_kinds", lambda *_: ([], {}, 0))
    monkeypatch.setattr(demo, "kinds_tables", lambda *_: [])
    result = run("--messages", "60", status=1)  # in 20 chunks of 3
    assert f"MISMATCH: {client}, mailing: " in result.stderr
    assert says in result.stderr
    assert "byte for byte" not in result.stdout


def test_a_refusal_is_an_error():
    deliveries = [SimpleNamespace(status="accepted"), SimpleNamespace(status="rejected")]
    deliveries[1].error, deliveries[1].reply = None, (550, b"no")
    mailer = SimpleNamespace(send_many=lambda messages: iter(deliveries))
    with pytest.raises(Failure, match="rejected"):
        demo.hand_in(mailer, [])


def test_comparing():
    one = receipt(SENDER, (RECIPIENT,), b"one")
    demo.check("x", "y", [one, one], [one, one])
    for arrived in ([one], [one] * 3, [one, receipt(SENDER, (RECIPIENT,), b"two")]):
        with pytest.raises(Failure) as caught:
            demo.check("x", "y", [one, one], arrived)
        assert caught.value.exit_code == 1
    assert receipt("", (RECIPIENT,), b"one") != one != receipt(SENDER, (SENDER,), b"one")


def test_a_server_that_ends_ends_the_demo(monkeypatch):
    server = demo.Server()
    server._process.terminate()
    server._process.join()
    with pytest.raises(Failure, match="has ended"):
        server.check("x", "y", [])
    server.close()


def test_what_cannot_be_sent_ends_the_demo(monkeypatch):
    def lost(*_):
        raise ConnectionResetError("lost")

    monkeypatch.setattr(demo, "compare_kinds", lost)
    assert "could not be sent: ConnectionResetError('lost')" in run(status=1).stderr


def test_without_aiosmtpd(monkeypatch):
    monkeypatch.setitem(sys.modules, "aiosmtpd", None)
    result = run(status=78)
    assert "pip install 'fastsmtplib[demo]'" in result.stderr


# -- the messages ---------------------------------------------------------------


def test_the_kinds_are_what_they_say():
    kinds = demo.kinds(3)
    by_title = {kind.title: kind.wire for kind in kinds}
    assert len(by_title) == len(kinds) == 8
    assert [kind.repeat for kind in kinds] == [3] * 7 + [1]
    for title, wire in by_title.items():
        lines = wire.split(b"\r\n")
        assert not any(b"\n" in line or b"\r" in line for line in lines), title
        assert max(map(len, lines)) <= 998, title
        assert lines[-1] == b"", title
        parsed = email.message_from_bytes(wire)
        assert parsed["Message-ID"], title
        assert not parsed.defects, title
    assert b"\r\n.\r\n" in by_title["dots, as bytes"]
    assert not by_title["8bit UTF-8"].isascii()
    assert b"=C3=BC" in by_title["quoted-printable"]
    assert max(map(len, by_title["998 columns"].split(b"\r\n"))) == 998
    assert len(by_title["5 MB attachment"]) > 6_000_000
    assert email.message_from_bytes(by_title["HTML, attachment"]).is_multipart()
    assert by_title == {kind.title: kind.wire for kind in demo.kinds(1)}


def test_no_two_messages_of_a_mailing_are_the_same():
    found = [demo.mailing(number) for number in range(100)]
    assert len({to for to, _ in found}) == len({text for _, text in found}) == 100


def test_costs_add_up():
    cost = Cost(1, 10, 0.5, 0.25)
    cost.add(Cost(3, 30, 1.5, 0.75))
    assert (cost.messages, cost.octets, cost.rate, cost.each) == (4, 40, 2.0, 0.25)


# -- the receiver ---------------------------------------------------------------

CONVERSATION = (
    b"ehlo localhost\r\nMAIL FROM:<a@b.example> SIZE=9\r\nRCPT TO:<c@d.example>\r\n"
    b"RCPT TO:<e@f.example>\r\nDATA\r\n"
    b"one\r\n..\r\n...dots\r\n.\r\n"
    b"mail FROM:<a@b.example>\r\nrcpt TO:<c@d.example>\r\ndata\r\n"
    b".\r\n"
    b"MAIL FROM:<>\r\nRCPT TO:<c@d.example>\r\nBDAT 12 LAST\r\n.\r\nx\r\nQUIT\r\n"
    b"RSET\r\nNOOP\r\nwhat\r\nQUIT\r\n"
)
RECEIVED = [
    receipt("a@b.example", ("c@d.example", "e@f.example"), b"one\r\n.\r\n..dots\r\n"),
    receipt("a@b.example", ("c@d.example",), b""),
    receipt("", ("c@d.example",), b".\r\nx\r\nQUIT\r\n"),
]
CODES = [220, 250, 250, 250, 250, 354, 250, 250, 250, 354, 250, 250, 250, 250, 250, 250, 500, 221]


class Transport:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.written = b""
        self.closed = False

    def write(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 64, 10_000])
def test_the_receiver_in_pieces_of_any_size(monkeypatch, piece):
    monkeypatch.setattr(demo_server.asyncio, "Transport", Transport)
    received: list = []
    receiver, transport = Receiver(received), Transport()
    receiver.connection_made(transport)
    for start in range(0, len(CONVERSATION), piece):
        receiver.data_received(CONVERSATION[start : start + piece])
    assert received == RECEIVED
    lines = [line for line in transport.written.split(b"\r\n") if line[3:4] == b" "]
    assert [int(line[:3]) for line in lines] == CODES
    assert transport.closed


# -- as a process ---------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_on_a_terminal_there_is_a_bar():
    import pty

    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "PYTHONUTF8": "1"}
    environment.pop("NO_COLOR", None)
    with subprocess.Popen(
        [sys.executable, "-m", "fastsmtp", "demo", *SHORT],
        stdin=subprocess.DEVNULL,
        stdout=follower,
        stderr=follower,
        env=environment,
    ) as process:
        os.close(follower)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: the other end is closed
            while data := os.read(leader, 1 << 16):
                shown += data
    os.close(leader)
    assert process.returncode == 0
    text = shown.decode("utf-8")
    assert "\x1b[32m" in text
    plain = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", text)
    for name in demo.NAMES:
        assert re.search(rf"{name} +━+.* 50/50", plain), name
    assert "arrived byte for byte as sent" in plain
