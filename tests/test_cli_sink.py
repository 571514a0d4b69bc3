"""``fastsmtp sink`` as users run it: a process of its own, and clients of two kinds."""

from __future__ import annotations

import mailbox
import os
import random
import re
import signal
import smtplib
import socket
import ssl
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner
from support import client_tls

from fastsmtp.cli import sink
from fastsmtp.cli.sink import Faults, parse_rule

SENDER, RECIPIENT = "ana@example.org", "bob@example.net"
MESSAGE = b"Subject: =?utf-8?q?gr=C3=BC=C3=9Fe?=\r\n\r\nhello\r\n.\r\n..dots\r\n"


class Sink:
    """A running sink: its port, and what it printed."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self.certificate: Path | None = None
        self.status: int | None = None
        assert process.stdout
        while not (self.lines and self.lines[-1].startswith("listening on ")):
            line = process.stdout.readline()
            assert line, process.communicate()
            self.lines.append(line.rstrip("\n"))
        if match := re.match("certificate for this run: (.*) \\(", self.lines[0]):
            self.certificate = Path(match[1])
        self.host, _, port = self.lines[-1].removeprefix("listening on ").rpartition(":")
        self.port = int(port)

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.status is None:
            self.process.send_signal(number)
            output, errors = self.process.communicate(timeout=20)
            self.lines += output.splitlines()
            self.status = self.process.returncode
            assert errors == ""

    def client(self, library=smtplib):
        return library.SMTP("127.0.0.1", self.port, "localhost", timeout=20)


@contextmanager
def running(*arguments: str, environment: dict[str, str] | None = None):
    with subprocess.Popen(
        [sys.executable, "-m", "fastsmtp", "sink", "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env=environment,
    ) as process:
        try:
            server = Sink(process)
            yield server
            server.stop()
        finally:
            process.kill()


@pytest.fixture
def environment(monkeypatch):
    """The environment, with text in UTF-8 and a password."""
    monkeypatch.setenv("PYTHONUTF8", "1")
    monkeypatch.setenv("SINK_PASSWORD", "hunter2")
    return dict(os.environ)


def send(client, message: bytes = MESSAGE, recipients=(RECIPIENT,), sender: str = SENDER):
    return client.sendmail(sender, list(recipients), message)


def code(client, *arguments) -> int:
    """Send, and return the code of the reply that refused."""
    with pytest.raises(smtplib.SMTPException) as caught:
        send(client, *arguments)
    error = caught.value
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        return next(iter(error.recipients.values()))[0]
    return getattr(error, "smtp_code", 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_line_for_each_message_and_a_summary(library, environment, number):
    with running(environment=environment) as server:
        assert server.host == "127.0.0.1"
        with server.client(library) as client:
            assert send(client) == {}
            assert (
                send(client, b"Subject: \x1b[31mred\r\n\r\nx\r\n", ["a@b.example", RECIPIENT]) == {}
            )
            assert client.has_extn("pipelining")
            assert not client.has_extn("auth")
            assert not client.has_extn("starttls")
        server.stop(number)
    assert server.status == 0
    first, second, last = server.lines[1:]
    assert re.fullmatch(
        rf'\d\d:\d\d:\d\d #1 <{SENDER}> -> <{RECIPIENT}>, {len(MESSAGE)} octets, "grüße"', first
    )
    assert second.endswith(f'#2 <{SENDER}> -> <a@b.example> +1, 24 octets, "?[31mred"')
    assert re.fullmatch(
        rf"2 messages \({len(MESSAGE) + 24} octets\) for 3 recipients over 1 connections in "
        r"\d+\.\d s; refused 0, cut 0",
        last,
    )


def test_messages_are_kept_byte_for_byte(library, tmp_path):
    store = tmp_path / "mail" / "deeper"
    with running("--quiet", "--store", str(store)) as server, server.client(library) as client:
        for number in range(3):
            send(client, b"Subject: %d\r\n\r\n" % number + MESSAGE, [RECIPIENT, "x@y.example"])
    kept = sorted(store.iterdir())
    assert [path.suffix for path in kept] == [".eml"] * 3
    for number, path in enumerate(kept):
        head = f"X-Envelope-From: <{SENDER}>\r\nX-Envelope-To: <{RECIPIENT}>\r\n"
        head += "X-Envelope-To: <x@y.example>\r\nX-Peer: 127.0.0.1\r\n"
        expected = head.encode() + b"Subject: %d\r\n\r\n" % number + MESSAGE
        assert path.read_bytes() == expected
    assert len(server.lines) == 2
    assert server.lines[1].startswith("3 messages ")


def test_maildir(tmp_path):
    arguments = ["--maildir", "--store", str(tmp_path / "box")]
    with running(*arguments) as server, server.client() as client:
        send(client)
        send(client, sender="")
    box = mailbox.Maildir(tmp_path / "box", create=False)
    found = sorted(str(message["X-Envelope-From"]) for message in box)
    assert found == ["<>", f"<{SENDER}>"]
    files = list((tmp_path / "box" / "new").iterdir())
    assert len(files) == 2
    assert all(b"\r" not in path.read_bytes() for path in files)
    assert not list((tmp_path / "box" / "tmp").iterdir())


def test_whole_messages_do_nothing_to_the_terminal():
    with running("--print") as server, server.client() as client:
        send(client, b"Subject: s\r\n\r\nfirst\r\n\ttab \x1b[2J\x07\r\n")
    assert server.lines[2:6] == ["    Subject: s", "    ", "    first", "        tab ?[2J?"]


def test_the_null_reverse_path(library, tmp_path):
    arguments = ["--store", str(tmp_path), "--refuse", "mail:.+:550"]
    with running(*arguments) as server, server.client(library) as client:
        assert send(client, sender="") == {}
        assert code(client) == 550
    assert next(tmp_path.iterdir()).read_bytes().startswith(b"X-Envelope-From: <>\r\n")


def test_refusals(library):
    rules = [
        r"rcpt:.*@bad\.example:550 5.1.1 no such user: sorry",
        "mail:slow@.*:451",
        "message:(?i)viagra:554 5.7.1 no",
    ]
    options = [part for rule in rules for part in ("--refuse", rule)]
    with running(*options) as server, server.client(library) as client:
        assert send(client, MESSAGE, ["x@bad.example", RECIPIENT]) == {
            "x@bad.example": (550, b"5.1.1 no such user: sorry")
        }
        assert code(client, MESSAGE, ["X@BAD.EXAMPLE"]) == 550
        assert send(client, MESSAGE, ["x@bad.example.org"]) == {}
        assert code(client, MESSAGE, [RECIPIENT], "slow@example.org") == 451
        assert code(client, MESSAGE + b"Viagra\r\n") == 554
        assert send(client) == {}
    assert server.lines[-1].startswith("3 messages ")
    assert server.lines[-1].endswith("refused 4, cut 0")
    assert (
        sum("rcpt <x@bad.example>: 550 5.1.1 no such user: sorry" in x for x in server.lines) == 1
    )
    assert sum(f"message from <{SENDER}>: 554 5.7.1 no" in x for x in server.lines) == 1


@pytest.mark.parametrize("step", ["connect", "mail", "rcpt", "data", "message"])
def test_every_step_can_refuse_and_cut(step):
    with running("--refuse", f"{step}:451") as server:
        if step == "connect":
            with pytest.raises(smtplib.SMTPConnectError, match="451"):
                server.client()
        else:
            with server.client() as client:
                assert code(client) == 451
    assert server.lines[-1].startswith("0 messages ")
    assert server.lines[-1].endswith("refused 1, cut 0")
    with running("--refuse", f"{step}:drop") as server:
        if step == "connect":
            with pytest.raises((smtplib.SMTPServerDisconnected, ConnectionError)):
                server.client()
        else:
            client = server.client()
            with pytest.raises((smtplib.SMTPServerDisconnected, ConnectionError)):
                send(client)
            client.close()
    assert server.lines[-1].startswith("0 messages ")
    assert server.lines[-1].endswith("refused 0, cut 1")


def test_421_closes():
    with running("--refuse", "rcpt:421 4.3.2 going") as server:
        client = server.client()
        client.ehlo()
        client.mail(SENDER)
        client.putcmd("rcpt", f"TO:<{RECIPIENT}>")
        assert client.getreply() == (421, b"4.3.2 going")
        with pytest.raises(smtplib.SMTPServerDisconnected):
            client.getreply()


def test_cut_after_so_many_messages():
    with running("--drop-after", "2") as server:
        for _ in range(2):
            client = server.client()
            send(client)
            send(client)
            with pytest.raises((smtplib.SMTPServerDisconnected, ConnectionError)):
                send(client)
            client.close()
    assert server.lines[-1].startswith("4 messages ")
    assert server.lines[-1].endswith("cut 2")


def test_cut_at_random_and_again_at_the_same_places():
    def run() -> list[bool]:
        outcome = []
        with running("--drop-rate", "0.5", "--seed", "3", "--quiet") as server:
            for _ in range(12):
                client = server.client()
                try:
                    send(client)
                except (smtplib.SMTPServerDisconnected, ConnectionError):
                    outcome.append(False)
                else:
                    outcome.append(True)
                client.close()
        assert server.lines[-1].startswith(f"{sum(outcome)} messages ")
        return outcome

    first = run()
    assert 0 < sum(first) < 12
    assert run() == first


def test_delay():
    with running("--delay", "0.3") as server, server.client() as client:
        began = time.monotonic()
        send(client)
        assert time.monotonic() - began > 0.29


def test_messages_that_are_too_large():
    with running("--max-size", "1000") as server, server.client() as client:
        assert code(client, MESSAGE + b"x" * 1000) == 552
        assert client.esmtp_features["size"] == "1000"
        assert send(client) == {}


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
def test_tls_with_a_certificate_made_for_the_run(library, tls):
    with running("--tls", tls) as server:
        assert server.certificate
        context = client_tls(server.certificate)
        if tls == "implicit":
            client = library.SMTP_SSL("localhost", server.port, "localhost", context=context)
        else:
            client = library.SMTP("localhost", server.port, "localhost")
            client.starttls(context=context)
        with client:
            assert isinstance(client.sock, ssl.SSLSocket)
            assert send(client) == {}
    assert server.lines[-1].startswith("1 messages ")
    assert server.lines[-1].endswith("cut 0")
    assert " over 1 connections " in server.lines[-1]
    assert not server.certificate.exists()


def test_tls_with_a_certificate_of_ones_own(certificate):
    with running("--tls", "starttls", "--cert", str(certificate)) as server:
        assert server.certificate is None
        with smtplib.SMTP("localhost", server.port) as client:
            client.starttls(context=client_tls(certificate))
            assert send(client) == {}


def test_a_client_that_does_not_trust_the_certificate():
    with running("--tls", "starttls") as server:
        with pytest.raises(ssl.SSLError):
            smtplib.SMTP("localhost", server.port).starttls(context=ssl.create_default_context())
        with server.client() as client:
            assert send(client) == {}


@pytest.mark.parametrize("tls", ["none", "starttls", "implicit"])
def test_auth(library, environment, tls):
    options = ["--auth", "ana:SINK_PASSWORD", *(["--tls", tls] if tls != "none" else [])]
    with running(*options, environment=environment) as server:
        cls = library.SMTP_SSL if tls == "implicit" else library.SMTP
        with cls("127.0.0.1", server.port, "localhost") as client:
            assert code(client) == 530
            if tls == "starttls":
                assert not client.has_extn("auth")
                client.starttls()
            with pytest.raises(smtplib.SMTPAuthenticationError):
                client.login("ana", "hunter3")
            assert client.login("ana", "hunter2")[0] == 235
            assert send(client) == {}
    output = "\n".join(server.lines)
    assert "auth ana: 535" in output
    assert "hunter" not in output


def test_open_connections_are_told_of_the_end():
    with running() as server:
        client = server.client()
        client.noop()
        server.stop()
        assert client.getreply()[0] == 421
        client.close()
    assert server.status == 0


def test_a_reader_that_has_gone_ends_it():
    with running() as server:
        server.process.stdout.close()
        client = server.client()
        send(client)
        assert server.process.wait(20) == 0
        client.close()
        assert server.process.stderr.read() == ""
        server.status = 0


def test_a_port_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = CliRunner().invoke(sink.command, ["--port", port])
    assert result.exit_code == 69
    assert f"cannot listen on 127.0.0.1:{port}: " in result.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["--refuse", "nowhere:550"], 2, "is not STEP:[PATTERN:]REPLY"),
        (["--refuse", "rcpt:250 fine"], 2, "is not STEP:[PATTERN:]REPLY"),
        (["--refuse", "rcpt:[:550"], 2, "is no regular expression"),
        (["--refuse", "rcpt:550 a\nb"], 2, "is not printable ASCII"),
        (["--maildir"], 2, "--maildir needs --store"),
        (["--print", "--quiet"], 2, "exclude each other"),
        (["--cert", "/dev/null"], 2, ""),
        (["--auth", "nobody"], 2, "USER:VARIABLE"),
        (["--auth", "ana:NO_SUCH_VARIABLE"], 77, "no password in the environment's NO_SUCH_VAR"),
        (["--drop-rate", "2"], 2, "--drop-rate"),
    ],
)
def test_usage(arguments, status, says):
    result = CliRunner().invoke(sink.command, arguments)
    assert result.exit_code == status
    assert says in result.stderr


def test_what_is_no_certificate(tmp_path):
    path = tmp_path / "cert.pem"
    path.write_text("nothing\n", "ascii")
    result = CliRunner().invoke(sink.command, ["--tls", "starttls", "--cert", str(path)])
    assert result.exit_code == 66
    result = CliRunner().invoke(sink.command, ["--tls", "implicit", "--key", str(path)])
    assert result.exit_code == 2


def test_without_openssl(monkeypatch):
    monkeypatch.setattr(sink.shutil, "which", lambda name: None)
    result = CliRunner().invoke(sink.command, ["--tls", "starttls"])
    assert result.exit_code == 66
    assert "--cert" in result.stderr


def test_a_folder_that_cannot_be(tmp_path):
    path = tmp_path / "file"
    path.write_text("")
    result = CliRunner().invoke(sink.command, ["--store", str(path / "below")])
    assert result.exit_code == 73


def test_without_aiosmtpd(monkeypatch):
    monkeypatch.setitem(sys.modules, "aiosmtpd", None)
    result = CliRunner().invoke(sink.command, [])
    assert result.exit_code == 78
    assert "pip install 'fastsmtplib[demo]'" in result.stderr


@pytest.mark.parametrize(
    ("text", "step", "reply", "applies", "not_to"),
    [
        ("rcpt:550", "rcpt", "550 refused by the sink", ["a@b", ""], []),
        ("rcpt:a@b:550 no", "rcpt", "550 no", ["a@b", "A@B"], ["a@bc", "xa@b"]),
        ("rcpt:a:b:550 no: 451 x", "rcpt", "550 no: 451 x", ["a:b"], ["a"]),
        ("message:x.y:drop", "message", "drop", ["..x\ny..", "axby"], ["xy"]),
        ("mail:0%:421", "mail", "421 refused by the sink", [], ["a@b"] * 50),
        ("mail:100%:421", "mail", "421 refused by the sink", ["a@b"] * 50, []),
    ],
)
def test_rules(text, step, reply, applies, not_to):
    faults, chance = Faults((parse_rule(text),)), random.Random(1)
    if text.startswith("message"):
        applies = [each.replace("\n", ".") for each in applies]
    for each in applies:
        assert faults.reply(step, each, chance) == reply
        assert faults.reply("data", each, chance) is None
    for each in not_to:
        assert faults.reply(step, each, chance) is None


def test_the_first_rule_that_fits_holds():
    rules = tuple(map(parse_rule, ["rcpt:a@.*:450 one", "rcpt:550 two"]))
    chance = random.Random(1)
    assert Faults(rules).reply("rcpt", "a@b", chance) == "450 one"
    assert Faults(rules).reply("rcpt", "b@b", chance) == "550 two"


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"Subject: plain", "plain"),
        (b"From: x", ""),
        (b"Subject: =?utf-8?b?w7w=?=", "ü"),
        (b"Subject: =?no-such-charset?q?x?=", "=?no-such-charset?q?x?="),
        (b"Subject: =?utf-8?q?=FF?=", None),
        (b"Subject: \xff\xfe", None),
    ],
)
def test_subjects(head, expected):
    found = sink.subject(head + b"\r\n\r\nSubject: body\r\n")
    assert isinstance(found, str)
    if expected is not None:
        assert found == expected
