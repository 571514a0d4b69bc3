"""`fastsmtp send`: its options, its screen, its exit status, and what it leaves on disk."""

from __future__ import annotations

import fcntl
import inspect
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import contextmanager
from typing import ClassVar

import pytest
from click.testing import CliRunner
from support import EXTENSIONS, ModelServer, server_tls

import fastsmtp
from fastsmtp import bulk
from fastsmtp.bulk import Mailer as RealMailer
from fastsmtp.cli import screen
from fastsmtp.cli.connection import parse_server
from fastsmtp.cli.send import LARGE, command
from fastsmtp.delivery import Delivery, RecipientResult, Totals
from fastsmtp.reply import Reply

WAIT = 30.0  # seconds; the longest that anything here waits


@pytest.fixture(autouse=True)
def no_colours_and_no_size(monkeypatch):
    """What the terminal of whoever runs the tests says about itself must not matter."""
    for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.fixture
def outbox(tmp_path):
    """Return a function that writes messages into a folder and gives its path."""

    def write(*recipients: str | Iterable[str]):
        folder = tmp_path / "outbox"
        folder.mkdir(exist_ok=True)
        for number, to in enumerate(recipients):
            field = to if isinstance(to, str) else ", ".join(to)
            text = f"From: me@example.org\nTo: {field}\nSubject: {number}\n\nHello.\n"
            (folder / f"{number:04}.eml").write_text(text, "utf-8")
        return str(folder)

    return write


def invoke(*arguments: object, stdin: str | bytes = ""):
    return CliRunner().invoke(command, [str(a) for a in arguments], input=stdin)


def at(server: ModelServer) -> tuple[str, str]:
    return "--server", f"{server.host}:{server.port}"


def lines_of(path) -> list[dict]:
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def results_of(path) -> list[dict]:
    return [line for line in lines_of(path) if line["status"] != "started"]


def subjects(server: ModelServer) -> Counter[int]:
    """Count the messages that arrived, by the number in their subject."""
    return Counter(int(re.search(rb"Subject: (\d+)", m.wire)[1]) for m in server.messages)


# -- a Mailer that does as the recipient's name says ------------------------------

REPLIES = {
    "accepted": Reply(250, b"2.0.0 Ok: queued as 4F00ABCD12"),
    "deferred": Reply(451, b"4.3.0 later"),
    "rejected": Reply(550, b"5.1.1 no such user"),
}
ERRORS = {
    "unknown": ConnectionResetError(104, "Connection reset by peer"),
    "temporary": TimeoutError("timed out"),
    "refused": fastsmtp.SMTPConnectError(421, b"busy"),
    "permanent": fastsmtp.SMTPNotSupportedError("an address needs SMTPUTF8"),
    "closed": fastsmtp.SMTPConnectError(554, b"go away"),
    "value": ValueError("address is not one path"),
}


class FakeMailer:
    made: ClassVar[list[FakeMailer]] = []
    error: Exception | None = None

    def __init__(self, host: str, port: int, **keywords: object) -> None:
        self.host, self.port, self.keywords = host, port, keywords
        self.totals = Totals()
        self.messages = []
        FakeMailer.made.append(self)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info: object) -> None: ...

    def stop(self) -> None: ...

    def close(self) -> None: ...

    def send_many(self, messages):
        for message in messages:
            self.messages.append(message)
            yield self.deliver(message)
        if self.error:
            raise self.error

    def deliver(self, message) -> Delivery:
        fates = [address.partition("@")[0] for address in message.recipients]
        results = tuple(
            RecipientResult(address, fate if fate in REPLIES else "not_sent", REPLIES.get(fate))
            for address, fate in zip(message.recipients, fates, strict=True)
        )
        statuses = {result.status for result in results}
        error = ERRORS.get(fates[0])
        status = "partial" if len(statuses) > 1 else statuses.pop()
        status = "unknown" if fates[0] == "unknown" else status
        delivery = Delivery(message, status, results, results[0].reply, 1, 1, 0.1, error)
        self.totals.add(delivery, 1000, 1.0)
        return delivery


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(bulk, "Mailer", FakeMailer)
    monkeypatch.setattr(FakeMailer, "made", [])
    monkeypatch.setattr(FakeMailer, "error", None)
    return FakeMailer


# -- exit status ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipients", "status"),
    [
        ([], 0),
        (["accepted@x", "accepted@y"], 0),
        (["accepted@x", "deferred@x"], 75),
        (["temporary@x"], 75),
        (["refused@x"], 75),
        ([["accepted@x", "deferred@x"]], 75),
        ([["accepted@x", "rejected@x"]], 1),
        (["deferred@x", "rejected@x"], 1),
        (["unknown@x"], 1),
        (["permanent@x"], 1),
        (["closed@x"], 1),
        (["value@x"], 1),
        (["accepted@x", "undisclosed:;"], 1),
    ],
)
def test_exit_status(fake, outbox, recipients, status):
    assert invoke(outbox(*recipients)).exit_code == status


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (ConnectionRefusedError(111, "Connection refused"), 69, "Connection refused"),
        (TimeoutError("timed out"), 69, "timed out"),
        (socket.gaierror(socket.EAI_NONAME, "Name not known"), 68, "Name not known"),
        (socket.gaierror(socket.EAI_AGAIN, "Try again"), 75, "Try again"),
        (
            fastsmtp.SMTPAuthenticationError(535, b"5.7.8 no\r\n\x1b[31m"),
            77,
            "authentication failed: 535 5.7.8 no ?[31m",
        ),
        (fastsmtp.SMTPAuthenticationError(454, b"x"), 75, "authentication failed: 454 x"),
        (fastsmtp.SMTPConnectError(421, b"busy"), 75, "421 busy"),
        (fastsmtp.SMTPConnectError(554, b"no"), 69, "554 no"),
        (fastsmtp.SMTPNotSupportedError("no STARTTLS"), 69, "no STARTTLS"),
    ],
)
def test_exit_status_when_no_connection_can_be_had(fake, outbox, error, status, text):
    fake.error = error
    done = invoke("--server", "relay:25", outbox("temporary@x"))
    assert done.exit_code == status
    assert f"Error: relay:25: {text}\n" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--server", "host:port", "x"],
        ["--server", "host:0", "x"],
        ["--server", "[::1", "x"],
        ["--connections", "0", "x"],
        ["--tls", "maybe", "x"],
        ["--timeout", "lunch=3", "x"],
        ["--timeout", "connect=-3", "x"],
        ["--timeout", "connect=301", "x"],
        ["--timeout", "soon", "x"],
        ["--password-env", "X", "x"],
        ["--token-file", __file__, "x"],
        ["--mechanism", "PLAIN", "x"],
        ["--user", "u", "x"],
        ["--user", "u", "--password-env", "X", "--password-file", __file__, "x"],
        ["--user", "u", "--password-env", "X", "--token-env", "X", "x"],
        ["--ca-file", __file__, "x"],
        ["--client-cert", __file__, "x"],
        ["--notify", "always", "x"],
        ["--notify", "never,failure", "x"],
        ["--hold-until", "tomorrow", "x"],
        ["--hold-for", "3", "--hold-until", "2030-01-01", "x"],
        ["--envid", "ü", "x"],
        ["--overwrite", "x"],
        ["--overwrite", "--results", "r", "--resume", "r", "x"],
    ],
)
def test_usage(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SECRET", "hunter2")
    (tmp_path / "x").write_text("From: a@x\nTo: b@x\n\n", "utf-8")
    done = invoke(*arguments)
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith("Usage: ")
    assert "Error: " in done.stderr
    assert "hunter2" not in done.output
    assert not (tmp_path / "r").exists()


def test_a_source_that_is_not_there():
    done = invoke("/nowhere.eml")
    assert (done.exit_code, done.stderr) == (66, "Error: /nowhere.eml: No such file or directory\n")


def test_nothing_to_send(fake, outbox):
    done = invoke(outbox())
    assert (done.exit_code, done.stdout, done.stderr) == (0, "Nothing to send.\n", "")


# -- what the Mailer gets -----------------------------------------------------------


def keywords(fake, *arguments: object, source: str):
    done = invoke(*arguments, source)
    assert done.exit_code == 0, done.output
    return fake.made[-1].keywords


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--lmtp", {"protocol": "lmtp"}),
        ("", {"protocol": "smtp", "tls": None, "context": None, "pipelining": True}),
        ("--tls implicit", {"tls": "implicit"}),
        ("--server-hostname mx.example", {"server_hostname": "mx.example"}),
        ("--helo me.example", {"local_hostname": "me.example"}),
        ("--source-address 192.0.2.1", {"source_address": ("192.0.2.1", 0)}),
        ("--source-address [::1]:99", {"source_address": ("::1", 99)}),
        ("--connections 3 --depth 2", {"connections": 3, "depth": 2}),
        ("--rate 2.5", {"rate": 2.5}),
        ("--no-pipelining --no-chunking", {"pipelining": False, "chunking": False}),
        ("--retries 2 --retry-delay 9", {"retries": 2, "retry_delay": 9.0}),
        ("--resend-unknown", {"resend_unknown": True}),
        ("--max-messages-per-connection 7", {"max_messages_per_connection": 7}),
        (
            "--max-connection-age 8 --idle-timeout 9",
            {"max_connection_age": 8.0, "idle_timeout": 9.0},
        ),
        ("--timeout final=9", {"timeouts": fastsmtp.Timeouts(final=9.0)}),
        (
            "--timeout final=9 --timeout 200",
            {"timeouts": fastsmtp.Timeouts(200, 200, 200, 120, 180, 9, 200)},
        ),
        ("--cleartext-auth", {"cleartext_auth": True}),
        (
            "--notify success,FAILURE --ret hdrs --envid x",
            {"options": fastsmtp.Options(notify=["success", "failure"], ret="hdrs", envid="x")},
        ),
        (
            "--require-tls --priority -3 --deliver-by 60 --hold-for 5",
            {"options": fastsmtp.Options(require_tls=True, priority=-3, deliver_by=60, hold_for=5)},
        ),
        ("--ret full", {"options": fastsmtp.Options(ret="full")}),
    ],
)
def test_options_become_keywords(fake, outbox, arguments, expected):
    given = keywords(fake, *arguments.split(), source=outbox("accepted@x"))
    assert {name: given[name] for name in expected} == expected


def test_hold_until_in_local_time_and_in_utc(fake, outbox):
    source = outbox("accepted@x")
    at_utc = keywords(fake, "--hold-until", "2030-01-31T08:00:00Z", source=source)["options"]
    assert at_utc.hold_until.isoformat() == "2030-01-31T08:00:00+00:00"
    local = keywords(fake, "--hold-until", "2030-01-31T08:00", source=source)["options"]
    assert local.hold_until.timestamp() == time.mktime((2030, 1, 31, 8, 0, 0, 0, 0, -1))


def test_every_argument_of_the_mailer_has_its_option(fake, outbox):
    given = keywords(
        fake, "--timeout", "9", "--user", "u", "--password-env", "HOME", source=outbox("accepted@x")
    )
    parameters = set(inspect.signature(RealMailer).parameters)
    not_for_a_shell = {"socket_factory", "connect_attempts"}
    assert parameters - set(given) == {"host", "port", "token"} | not_for_a_shell
    # And what the command gives, the Mailer takes.
    assert set(given) <= parameters


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("relay", ("relay", 0)),
        ("relay.example:587", ("relay.example", 587)),
        ("192.0.2.1:25", ("192.0.2.1", 25)),
        ("::1", ("::1", 0)),
        ("[::1]", ("::1", 0)),
        ("[::1]:24", ("::1", 24)),
        ("/run/lmtp", ("/run/lmtp", 0)),
        ("./lmtp:1", ("./lmtp:1", 0)),
    ],
)
def test_servers(text, expected):
    assert parse_server(text) == expected


@pytest.mark.parametrize("text", ["", ":25", "x:", "x:y", "x:65536", "[::1]x", "[::1]:", "x:²"])
def test_no_servers(text):
    with pytest.raises(ValueError, match=r"host|port|ADDRESS"):
        parse_server(text)


def test_ca_file(fake, outbox, certificate):
    context = keywords(fake, "--ca-file", certificate, source=outbox("accepted@x"))["context"]
    assert len(context.get_ca_certs()) == 1
    context = keywords(
        fake, "--ca-file", certificate, "--client-cert", certificate, source=outbox("accepted@x")
    )["context"]
    assert context.check_hostname


# -- secrets --------------------------------------------------------------------------


def secret_of(fake, kind: str, *arguments: object, source: str):
    given = keywords(fake, "--user", "me", *arguments, source=source)
    assert given["username"] == "me"
    return given[kind]


def test_a_password_from_the_environment(fake, outbox, monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    source = outbox("accepted@x")
    assert secret_of(fake, "password", "--password-env", "SECRET", source=source) == "hunter2"


def test_a_password_from_a_file(fake, outbox, tmp_path):
    path = tmp_path / "password"
    path.write_text("hünter 2 \r\nnothing\n", "utf-8")
    source = outbox("accepted@x")
    assert secret_of(fake, "password", "--password-file", path, source=source) == "hünter 2 "


def test_a_password_from_a_command(fake, outbox):
    given = f"{sys.executable} -c \"print('hunter 2')\""
    source = outbox("accepted@x")
    assert secret_of(fake, "password", "--password-command", given, source=source) == "hunter 2"


def test_a_token_is_asked_for_again(fake, outbox, tmp_path, monkeypatch):
    from fastsmtp.cli import connection

    path = tmp_path / "token"
    path.write_text("one", "utf-8")
    token = secret_of(fake, "token", "--token-file", path, source=outbox("accepted@x"))
    assert token() == "one"
    path.write_text("two", "utf-8")
    assert token() == "one"
    monkeypatch.setattr(connection, "TOKEN_KEPT", 0.0)
    assert token() == "two"


def test_a_token_that_cannot_be_had_once_more(outbox, tmp_path):
    """The run comes to its end, and its account is complete."""
    count, path = tmp_path / "count", tmp_path / "results"
    script = (
        "import sys; from fastsmtp.cli import connection; connection.TOKEN_KEPT = 0.0\n"
        "from fastsmtp.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    token = f"sh -c 'echo >>{count}; test $(wc -l <{count}) = 1 && echo token'"
    with ModelServer([*EXTENSIONS, "AUTH XOAUTH2"], users={"me": "token"}) as server:
        arguments = ["--user", "me", "--token-command", token, "--cleartext-auth", "--results"]
        command_line = [sys.executable, "-c", script, "send", *at(server), *arguments, str(path)]
        done = subprocess.run(
            [*command_line, outbox(*["b@x"] * 5)],
            capture_output=True,
            text=True,
            timeout=WAIT,
            check=False,
        )
    assert done.returncode == 77
    assert re.search("Error: .*: --token-command: sh ended with status 1\n", done.stderr)
    assert "  not sent           5\n" in done.stdout
    assert [record["status"] for record in results_of(path)] == ["not_sent"] * 5


def test_a_password_from_the_terminal(fake, outbox, monkeypatch):
    monkeypatch.setattr("fastsmtp.cli.connection._on_a_terminal", lambda: True)
    done = invoke("--user", "me", "--server", "relay", outbox("accepted@x"), stdin="hunter2\n")
    assert done.exit_code == 0
    assert "Password of me at relay: " in done.stderr
    assert "hunter2" not in done.output
    assert fake.made[-1].keywords["password"] == "hunter2"


def test_a_rehearsal_asks_for_no_password(outbox):
    assert invoke("--user", "me", "--dry-run", outbox("b@x")).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["--password-env", "NOT_SET"], 77, "there is no environment variable NOT_SET"),
        (["--password-env", "EMPTY"], 77, "the password is empty"),
        (["--password-command", "false hunter2"], 77, "false ended with status 1"),
        (["--token-command", "/nowhere hunter2"], 77, "cannot run /nowhere"),
        (["--token-command", "'hunter2"], 2, "No closing quotation"),
        (["--token-command", ""], 2, "the command is empty"),
    ],
)
def test_a_secret_that_cannot_be_had(outbox, monkeypatch, arguments, status, text):
    monkeypatch.setenv("EMPTY", "")
    done = invoke("--user", "me", *arguments, outbox("b@x"))
    assert done.exit_code == status
    assert text in done.stderr
    assert "hunter2" not in done.output.replace("'hunter2", "")


def test_secrets_are_not_shown(outbox, monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    with ModelServer([*EXTENSIONS, "AUTH PLAIN"], users={"me": "other"}) as server:
        arguments = ["--user", "me", "--password-env", "SECRET", "--cleartext-auth"]
        done = invoke(*at(server), *arguments, outbox("b@x"))
    assert done.exit_code == 77
    assert "authentication failed" in done.stderr
    assert "hunter2" not in done.output
    assert "aHVudGVyMg" not in done.output


# -- against a server ---------------------------------------------------------------


def test_what_arrives(outbox, tmp_path):
    path = tmp_path / "results"
    one = tmp_path / "one.eml"
    one.write_bytes(b"From: A <a@x>\nTo: b@x\nBcc: c@x\nX: \xc3\xa4\n\n.dot\r\n\xff")
    with ModelServer() as server:
        done = invoke(*at(server), "--results", path, one, "-", stdin="From: s@x\nTo: t@x\n\nHi")
    assert (done.exit_code, done.stderr) == (0, "")
    first, second = sorted(server.messages, key=lambda message: message.sender)
    assert (first.sender, first.recipients) == ("a@x", ["b@x", "c@x"])
    assert first.data == b"From: A <a@x>\r\nTo: b@x\r\nX: \xc3\xa4\r\n\r\n.dot\r\n\xff\r\n"
    assert (second.sender, second.recipients) == ("s@x", ["t@x"])
    assert second.data == b"From: s@x\r\nTo: t@x\r\n\r\nHi\r\n"
    found = {line["id"]: line for line in results_of(path)}
    assert set(found) == {str(one), next(i for i in found if i.startswith("sha256:"))}
    assert [r["address"] for r in found[str(one)]["recipients"]] == ["b@x", "c@x"]
    summary = rf"2 messages to {server.host}:{server.port} in \d+\.\d+ s, [\d,.]+ accepted/s, \d+ B"
    assert re.match(summary + ", [12] connections?\n", done.stdout), done.stdout
    assert "  accepted           2\n" in done.stdout


def test_large_messages_are_not_held_while_they_wait(fake, tmp_path):
    path = tmp_path / "large.eml"
    path.write_bytes(b"From: a@x\nTo: accepted@x\nBcc: accepted@y\n\n" + b"x" * LARGE)
    assert invoke(path).exit_code == 0
    (message,) = fake.made[-1].messages
    assert message.recipients == ["accepted@x", "accepted@y"]
    assert not isinstance(message.content, bytes)
    assert message.content.read() == b"From: a@x\nTo: accepted@x\n\n" + b"x" * LARGE


def test_a_large_message_that_goes_away_while_it_waits(tmp_path):
    path, small, results = tmp_path / "large.eml", tmp_path / "small.eml", tmp_path / "results"
    path.write_bytes(b"From: a@x\nTo: b@x\n\n" + b"x" * LARGE)
    small.write_bytes(b"From: a@x\nTo: b@x\n\n")
    replies = {"EHLO": (lambda connection: path.unlink(), b"250 model.example\r\n")}
    with ModelServer(replies=replies) as server:
        arguments = [*at(server), "--connections", 1, "--results", results, path, small]
        assert invoke(*arguments).exit_code == 75
    assert len(server.messages) == 1
    found = {record["id"]: record for record in results_of(results)}
    assert found[str(path)]["status"] == "not_sent"
    assert "No such file" in found[str(path)]["error"]


def test_every_message_is_started_before_it_is_sent(outbox, tmp_path):
    path = tmp_path / "results"
    seen = []

    def look(connection) -> None:
        seen.append({line["id"] for line in lines_of(path)})

    with ModelServer(replies={"DATA": (look, b"354 go\r\n")}) as server:
        done = invoke(*at(server), "--connections", 1, "--results", path, outbox(*["b@x"] * 5))
    assert done.exit_code == 0
    names = [line["id"] for line in lines_of(path) if line["status"] == "started"]
    for number, ids in enumerate(seen):
        assert set(names[: number + 1]) <= ids
    assert len(seen) == len(results_of(path)) == 5


def test_the_command_line_s_envelope(outbox):
    with ModelServer() as server:
        arguments = ["--from", "<>", "--to", "x@x", "--to", "y@x", "--to", "x@x"]
        assert invoke(*at(server), *arguments, outbox("b@x")).exit_code == 0
    (message,) = server.messages
    assert (message.sender, message.recipients) == ("", ["x@x", "y@x"])


def test_refusals_are_grouped(outbox):
    refusal = b"550 5.1.1 no such user \x1b[31m<b@x>\r\n"
    with ModelServer(replies={"RCPT": refusal}) as server:
        done = invoke(*at(server), outbox("b@x", "c@x", "d@x"))
    assert done.exit_code == 1
    assert "  rejected           3\n" in done.stdout
    assert "  3 x 550 5.1.1 no such user ?[31m<...>\n" in done.stdout


def test_a_message_that_cannot_be_sent_costs_no_other(outbox, tmp_path):
    path = tmp_path / "results"
    folder = outbox("b@x", "undisclosed:;", "c@x", '"a\x01"@x', "d@x")
    os.symlink("nowhere", os.path.join(folder, "0009.eml"))
    with ModelServer() as server:
        done = invoke(*at(server), "--results", path, "--quiet", folder)
    assert done.exit_code == 1
    assert sorted(m.recipients[0] for m in server.messages) == ["b@x", "c@x", "d@x"]
    assert re.search(r"^Cannot be sent: \S+0001\.eml: no recipient", done.stderr, re.MULTILINE)
    assert re.search(r"^Cannot be sent: \S+0009\.eml: .*No such file", done.stderr, re.MULTILINE)
    statuses = {os.path.basename(r["id"]): r["status"] for r in results_of(path)}
    assert statuses["0001.eml"] == statuses["0009.eml"] == "not_sent"
    assert len(statuses) == 6


def test_lmtp_on_a_unix_socket(outbox, tmp_path):
    path = str(tmp_path / "socket")
    with ModelServer(lmtp=True, path=path, replies={("body", 2): b"451 full\r\n"}) as server:
        results = tmp_path / "results"
        done = invoke("--server", path, "--lmtp", "--results", results, outbox(["a@x", "b@x"]))
    assert done.exit_code == 75
    (record,) = results_of(results)
    assert record["status"] == "partial"
    assert [r["status"] for r in record["recipients"]] == ["accepted", "deferred"]
    assert server.messages[0].recipients == ["a@x"]


def test_tls_that_is_trusted_and_tls_that_is_not(outbox, certificate):
    with ModelServer([*EXTENSIONS, "STARTTLS"], tls=server_tls(certificate)) as server:
        arguments = [*at(server), "--tls", "starttls", outbox("b@x")]
        assert invoke("--ca-file", certificate, *arguments).exit_code == 0
        assert len(server.messages) == 1
        done = invoke(*arguments)
    assert done.exit_code == 76
    assert "the certificate is not good: self" in done.stderr


def test_a_server_that_is_not_there(outbox, tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        done = invoke("--server", address, "--results", tmp_path / "r", outbox("a@x", "b@x"))
    assert done.exit_code == 69
    assert f"Error: {address}: Connection refused\n" in done.stderr
    assert [record["status"] for record in results_of(tmp_path / "r")] == ["not_sent"] * 2


def test_limit(outbox, tmp_path):
    folder = outbox(*["b@x"] * 10)
    path = tmp_path / "results"
    with ModelServer() as server:
        for _ in range(3):
            assert invoke(*at(server), "--limit", 4, "--resume", path, folder).exit_code == 0
    assert subjects(server) == dict.fromkeys(range(10), 1)


def test_quiet(outbox):
    with ModelServer() as server:
        done = invoke(*at(server), "--quiet", outbox("b@x"))
    assert (done.exit_code, done.output) == (0, "")


# -- rehearsals -----------------------------------------------------------------------


def test_dry_run(outbox, tmp_path):
    folder = outbox("b@x, c@x", "undisclosed:;", "d@x")
    results = tmp_path / "results"
    results.write_text(
        json.dumps({"id": f"{folder}/0002.eml", "status": "accepted"}) + "\n", "utf-8"
    )
    done = invoke("--server", "127.0.0.1:1", "--dry-run", "--resume", results, folder)
    assert done.exit_code == 1
    one, summary = done.stdout.splitlines()
    assert one == f"{folder}/0000.eml: <me@example.org> to b@x, c@x"
    assert summary == (
        "Would be sent to 127.0.0.1:1: 1 message, 2 recipients, 53 octets; 1 skipped, "
        "1 cannot be sent, 0 may have arrived before"
    )
    assert done.stderr.startswith(f"Cannot be sent: {folder}/0001.eml: no recipient")


def test_dry_run_finds_what_the_server_would_not_get(tmp_path):
    path = tmp_path / "m.eml"
    path.write_bytes(b"From: a@x\nTo: b@x\n\n")
    done = invoke("--dry-run", "--to", "b\x01@x", path)
    assert done.exit_code == 1
    assert "prohibited control characters" in done.stderr
    assert "0 messages" in done.stdout


def test_dry_run_writes_no_results(outbox, tmp_path):
    path = tmp_path / "results"
    assert invoke("--dry-run", "--results", path, outbox("b@x")).exit_code == 0
    assert invoke("--dry-run", "--resume", path, outbox("b@x")).exit_code == 0
    assert not path.exists()
    done = invoke("--dry-run", "--resume", path, "--results", tmp_path / "r2", outbox("b@x"))
    assert done.exit_code == 66


# -- result files ---------------------------------------------------------------------


def test_results_are_not_overwritten_by_accident(outbox, tmp_path):
    path = tmp_path / "results"
    with ModelServer() as server:
        assert invoke(*at(server), "--results", path, outbox("b@x")).exit_code == 0
        done = invoke(*at(server), "--results", path, outbox("b@x"))
        assert done.exit_code == 73
        assert "is there already" in done.stderr
        assert len(server.messages) == 1
        assert invoke(*at(server), "--results", path, "--overwrite", outbox("b@x")).exit_code == 0
        assert len(server.messages) == 2
    assert len(results_of(path)) == 1


def test_results_that_cannot_be_made(outbox, tmp_path):
    done = invoke("--results", tmp_path / "nowhere" / "r", outbox("b@x"))
    assert done.exit_code == 73
    assert done.stderr.endswith("r: No such file or directory\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_disk_that_is_full_stops_it_before_anything_is_sent(outbox):
    with ModelServer() as server:
        done = invoke(*at(server), "--results", "/dev/full", outbox("b@x", "c@x"))
    assert done.exit_code == 74
    assert "Error: /dev/full: No space left on device\n" in done.stderr
    assert server.messages == []


def test_a_disk_that_becomes_full(outbox, tmp_path, monkeypatch):
    """What is in flight then is finished, and nothing else begun."""
    path = tmp_path / "results"
    write = os.write

    def limited(descriptor: int, octets: bytes) -> int:
        if b'"accepted"' in octets:
            raise OSError(28, "No space left on device")
        return write(descriptor, octets)

    monkeypatch.setattr(os, "write", limited)
    with ModelServer() as server:
        folder = outbox(*["b@x"] * 200)
        done = invoke(*at(server), "--results", path, "--connections", 1, folder)
    assert done.exit_code == 74
    assert "No space left" in done.stderr
    assert 0 < len(server.messages) < 100
    started = [line["id"] for line in lines_of(path)]
    assert len(started) >= len(server.messages)


def test_resume(outbox, tmp_path):
    path = tmp_path / "results"
    folder = outbox(["a@x", "b@x"], "c@x", "d@x")
    refused = {("RCPT", 2): b"450 later\r\n", ("RCPT", 4): b"550 no\r\n"}
    with ModelServer(replies=refused) as server:
        arguments = [*at(server), "--connections", 1, "--resume", path, folder]
        first = invoke(*arguments)
        assert first.exit_code == 1
        assert f"sent again with --resume {path}" in first.stdout
        server.replies.clear()
        second = invoke(*arguments)
        assert second.exit_code == 0
        assert "  skipped            1\n" in second.stdout
        third = invoke(*arguments)
        assert third.exit_code == 0
        assert third.stdout.startswith("0 messages to ")
    assert [m.recipients for m in server.messages] == [["a@x"], ["c@x"], ["b@x"], ["d@x"]]
    assert [(r["status"]) for r in results_of(path)] == [
        "partial", "accepted", "rejected", "accepted", "accepted",
    ]  # fmt: skip


def test_resume_from_one_file_into_another(outbox, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    folder = outbox("a@x", "b@x")
    with ModelServer() as server:
        assert invoke(*at(server), "--limit", 1, "--results", one, folder).exit_code == 0
        before = one.read_bytes()
        done = invoke(*at(server), "--resume", one, "--results", two, folder)
        assert done.exit_code == 0
        assert one.read_bytes() == before
    assert subjects(server) == {0: 1, 1: 1}
    assert len(results_of(two)) == 1
    assert invoke("--resume", tmp_path / "three", "--results", two, folder).exit_code == 66


def test_unknown_is_not_sent_again_unless_asked(outbox, tmp_path):
    path = tmp_path / "results"
    folder = outbox("a@x", "b@x")
    lines = [
        {"id": f"{folder}/0000.eml", "status": "started"},
        {
            "id": f"{folder}/0000.eml",
            "status": "unknown",
            "recipients": [{"address": "a@x", "status": "unknown"}],
        },
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    with ModelServer() as server:
        done = invoke(*at(server), "--resume", path, folder)
        assert done.exit_code == 1
        assert subjects(server) == {1: 1}
        assert "1 message may or may not have arrived" in done.stdout
        assert "--resend-unknown" in done.stdout
        done = invoke(*at(server), "--resume", path, "--resend-unknown", folder)
        assert done.exit_code == 0
        assert subjects(server) == {0: 1, 1: 1}
        assert "may or may not" not in done.stdout
        assert invoke(*at(server), "--resume", path, folder).exit_code == 0


def test_what_was_under_way_is_listed_and_sent_again(outbox, tmp_path):
    path = tmp_path / "results"
    folder = outbox("a@x", "b@x")
    path.write_text(
        json.dumps({"id": f"{folder}/0001.eml", "status": "started"}) + '\n{"id": "torn', "utf-8"
    )
    with ModelServer() as server:
        done = invoke(*at(server), "--quiet", "--resume", path, folder)
    assert done.exit_code == 0
    warning, listed = done.stderr.splitlines()
    assert warning == (
        f"Warning: {path} has 1 message that was under way when it ended. "
        "Sent again now, it may arrive twice:"
    )
    assert listed == f"  {folder}/0001.eml"
    assert subjects(server) == {0: 1, 1: 1}
    assert len(lines_of(path)) == 5


# -- processes ------------------------------------------------------------------------


def slowly(seconds: float):
    """Return a reply to messages that comes after a while."""
    return {"body": (lambda connection: time.sleep(seconds), b"250 2.0.0 Ok: queued as 4ABC\r\n")}


def start(*arguments: object, **options):
    command_line = [sys.executable, "-m", "fastsmtp", "send", *map(str, arguments)]
    # As os.environ has it: readline, which pytest imports, puts COLUMNS into the real one.
    return subprocess.Popen(command_line, env=dict(os.environ), **options)


def wait_for(condition) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("extensions", [EXTENSIONS, ()], ids=["pipelining", "plain"])
def test_kill_9_and_resume(outbox, tmp_path, extensions):
    """Everything is delivered; what came twice is among what the second run listed."""
    path = tmp_path / "results"
    folder = outbox(*["b@x"] * 300)
    with ModelServer(extensions, replies=slowly(0.005)) as server:
        arguments = [*at(server), "--resume", path, "--quiet", folder]
        for least in (50, 150):
            process = start(*arguments, stderr=subprocess.PIPE)
            wait_for(lambda least=least: len(server.messages) >= least)
            process.kill()
            process.communicate(timeout=WAIT)
            assert process.returncode == -signal.SIGKILL
        with path.open("ab") as file:
            file.write(b'{"id": "torn')
        process = start(*arguments, stderr=subprocess.PIPE, text=True)
        _, stderr = process.communicate(timeout=WAIT)
        assert process.returncode == 0
    arrived = subjects(server)
    assert set(arrived) == set(range(300))
    listed = {int(name) for name in re.findall(r"/(\d+)\.eml$", stderr, re.MULTILINE)}
    assert listed
    started = Counter(line["id"] for line in lines_of(path) if line["status"] == "started")
    twice = {number for number, count in arrived.items() if count > 1}
    # The first resumption listed its own.
    assert twice <= {int(name[-8:-4]) for name, count in started.items() if count > 1}
    assert max(arrived.values()) <= 3
    assert len(twice) <= 2 * 80
    assert len(results_of(path)) == 300


def test_killed_once_doubles_are_among_the_listed(outbox, tmp_path):
    path = tmp_path / "results"
    folder = outbox(*["b@x"] * 200)
    with ModelServer(replies=slowly(0.005)) as server:
        arguments = [*at(server), "--resume", path, "--quiet", folder]
        process = start(*arguments)
        wait_for(lambda: len(server.messages) >= 60)
        process.kill()
        process.wait(WAIT)
        process = start(*arguments, stderr=subprocess.PIPE, text=True)
        _, stderr = process.communicate(timeout=WAIT)
    assert process.returncode == 0
    arrived = subjects(server)
    assert set(arrived) == set(range(200))
    listed = {int(name) for name in re.findall(r"/(\d+)\.eml$", stderr, re.MULTILINE)}
    assert {number for number, count in arrived.items() if count > 1} <= listed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_finishes_what_is_under_way(outbox, tmp_path, number):
    path = tmp_path / "results"
    folder = outbox(*["b@x"] * 300)
    with ModelServer(replies=slowly(0.02)) as server:
        arguments = [*at(server), "--results", path, folder]
        process = start(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        wait_for(lambda: len(server.messages) >= 20)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=WAIT)
        assert process.returncode == 128 + number
        assert "Stopping: finishing what is under way.\n" in stderr
        assert "Traceback" not in stderr
        assert "sent again with --resume" in stdout
        statuses = Counter(record["status"] for record in results_of(path))
        assert statuses["accepted"] == len(server.messages) < 300
        assert set(statuses) <= {"accepted", "not_sent"}
        # Nothing is left open: nothing can be a double.
        started = Counter(line["id"] for line in lines_of(path))
        assert set(started.values()) == {2}
        server.replies.clear()
        assert invoke(*at(server), "--resume", path, folder).exit_code == 0
    assert subjects(server) == dict.fromkeys(range(300), 1)


def test_the_second_interrupt_ends_at_once(outbox, tmp_path):
    with ModelServer(replies=slowly(3)) as server:
        process = start(*at(server), outbox(*["b@x"] * 30), stderr=subprocess.PIPE, text=True)
        wait_for(lambda: "DATA" in server.commands)
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline().startswith("Stopping")
        time.sleep(0.5)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=WAIT)
        assert time.monotonic() - began < 2
    assert process.returncode == 130


def test_plain_lines_when_it_is_not_a_terminal(outbox, tmp_path):
    script = (
        "import sys; from fastsmtp.cli import screen; screen.LINE_SECONDS = 0.3\n"
        "from fastsmtp.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    with ModelServer(replies=slowly(0.05)) as server:
        arguments = ["send", *at(server), outbox(*["b@x"] * 100)]
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments],
            capture_output=True,
            text=True,
            timeout=WAIT,
            check=False,
        )
    assert done.returncode == 0
    lines = done.stderr.splitlines()
    assert len(lines) >= 2
    shape = r"\d\d:\d\d:\d\d [\d,]+ of 100(, [\d.,]+/s)?(, 0:00:\d\d left)?( \(.*\))?"
    assert all(re.fullmatch(shape, line) for line in lines), lines
    assert any("accepted" in line and "left" in line for line in lines)
    assert "\x1b" not in done.stderr + done.stdout
    assert done.stdout.splitlines()[1:] == ["  accepted         100"]


# -- the screen -----------------------------------------------------------------------


@contextmanager
def terminal(columns: int):
    """Yield (ours, theirs): the two ends of a terminal of so many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    try:
        yield ours, theirs
    finally:
        os.close(ours)


def read_all(descriptor: int, process) -> str:
    """Return all that is written to a terminal until the process has ended."""
    octets = b""
    deadline = time.monotonic() + WAIT
    while time.monotonic() < deadline:
        if descriptor in select.select([descriptor], [], [], 0.1)[0]:
            try:
                octets += os.read(descriptor, 1 << 16)
            except OSError:  # EIO: the other end is closed
                break
        elif process.poll() is not None:
            break
    process.wait(WAIT)
    return octets.decode()


def on_a_terminal(columns: int, *arguments: object, interrupt_at=None) -> tuple[int, str]:
    with terminal(columns) as (ours, theirs):
        process = start(*arguments, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        if interrupt_at is not None:
            wait_for(interrupt_at)
            process.send_signal(signal.SIGINT)
        shown = read_all(ours, process)
    return process.returncode, shown


def without_escapes(text: str) -> str:
    """Return what was written, with a newline where the cursor was moved."""
    text = re.sub(r"\x1b\[[0-9;?]*m", "", text)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "\n", text)


@pytest.mark.parametrize("columns", [60, 100])
def test_a_bar_and_a_table_on_a_terminal(outbox, columns):
    replies = {**slowly(0.01), ("RCPT", 3): b"550 5.1.1 <b@x>: no such user\r\n"}
    with ModelServer(replies=replies) as server:
        folder = outbox(*["b@x"] * 100)
        status, shown = on_a_terminal(columns, *at(server), "--connections", 2, folder)
    assert status == 1
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1  # the cursor comes back
    frames = without_escapes(shown)
    assert "━" in frames
    assert re.search(r" *\d+% ━+.* \d+/100 +[\d.,]+/s +(0:00:\d\d|-:--:--) left", frames)
    assert "under way" in frames
    assert re.search(r"100% ━+ 100/100", frames)
    assert re.search(r"accepted +98 +98\.0 %", frames)
    assert re.search(r"rejected +2 +2\.0 %", frames)
    assert re.search(r"550 +5\.1\.1 +<\.\.\.>: no such user +2", frames)
    widest = max(len(line) for line in frames.splitlines())
    assert widest <= columns


def test_ctrl_c_on_a_terminal(outbox):
    with ModelServer(replies=slowly(0.1)) as server:
        status, shown = on_a_terminal(
            80, *at(server), outbox(*["b@x"] * 200), interrupt_at=lambda: len(server.messages) > 5
        )
    assert status == 130
    assert "Stopping: finishing what is under way." in without_escapes(shown)
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1
    assert len(server.messages) < 200


def test_what_cannot_be_sent_does_not_break_the_bar(outbox):
    with ModelServer(replies=slowly(0.01)) as server:
        folder = outbox("b@x", "undisclosed:;", "c@x")
        status, shown = on_a_terminal(200, *at(server), folder)
    assert status == 1
    line = f"Cannot be sent: {folder}/0001.eml: no recipient can be read from the header"
    assert line in [shown.strip() for shown in without_escapes(shown).splitlines()]


def test_a_dumb_terminal_gets_lines(outbox, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    with ModelServer() as server:
        status, shown = on_a_terminal(80, *at(server), outbox("b@x"))
    assert status == 0
    assert "\x1b" not in shown
    assert "  accepted           1\r\n" in shown


# -- the numbers ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("available", "limit", "skipped", "total"),
    [
        (None, None, 0, None),
        (None, 5, 0, None),
        (10, None, 0, 10),
        (10, None, 4, 6),
        (10, 3, 4, 3),
        (10, 30, 4, 6),
        (1, None, 0, 2),
    ],
)
def test_how_many_there_are_to_send(available, limit, skipped, total):
    tally = screen.Tally(available, limit)
    tally.taken = 2
    tally.skipped = skipped
    assert tally.total == total


def test_rate_and_time_left(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(screen.time, "monotonic", lambda: now[0])
    tally = screen.Tally(1000, None)
    assert tally.rate() is None
    assert tally.left(tally.rate()) is None
    for _ in range(20):
        now[0] += 1.0
        tally.counts["accepted"] += 10
        rate = tally.rate()
    assert rate == 10.0
    assert tally.left(rate) == 80.0
    for _ in range(20):  # nothing happens: what was long ago does not count
        now[0] += 1.0
        rate = tally.rate()
    assert rate == 0.0
    assert tally.left(rate) is None
    assert screen.progress_line(tally).endswith(" 200 of 1,000, 0.0/s (accepted 200)")


def test_errors_of_many_kinds_are_not_all_kept():
    tally = screen.Tally(None, None)
    for number in range(screen.MOST_REASONS + 500):
        tally.count("not_sent", f"error {number}")
    assert sum(tally.errors.values()) == screen.MOST_REASONS + 500
    assert tally.errors["other errors"] == 500
    rows = screen._reasons(tally, Totals())
    assert len(rows) == screen.MOST_ROWS + 1
    assert sum(row[3] for row in rows) == screen.MOST_REASONS + 500


@pytest.mark.parametrize(
    ("count", "of", "expected"),
    [(0, 3, "0.0 %"), (1, 5000, "< 0.1 %"), (4999, 5000, "> 99.9 %"), (3, 3, "100.0 %")],
)
def test_shares(count, of, expected):
    assert screen._share(count, of) == expected


@pytest.mark.parametrize(
    ("octets", "expected"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (41_234_567, "41.2 MB"), (5 * 10**12, "5.00 TB")],
)
def test_octets(octets, expected):
    assert screen._octets(octets) == expected
