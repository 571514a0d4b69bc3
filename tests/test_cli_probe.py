"""``fastsmtp probe`` against model servers: in clear, STARTTLS, TLS at once, none at all."""

from __future__ import annotations

import io
import json
import socket
import ssl

import pytest
from click.testing import CliRunner
from rich.console import Console
from support import ModelServer, Server, close, dribble, scripted, server_tls, stall

from fastsmtp.cli import extensions, probe
from fastsmtp.cli.probe import Certificate, Offer, Report, Tls

EXTENSIONS = [
    "PIPELINING",
    "SIZE 33554432",
    "8BITMIME",
    "AUTH PLAIN LOGIN",
    "LIMITS RCPTMAX=100 MAILMAX=20",
    "X-STRANGE a=1 [bold]",
]


def run(server: Server | None, *arguments: str, status: int = 0):
    """Run the command, for *server* if there is one, and return the result."""
    where = [f"{server.host}:{server.port}"] if server else []
    result = CliRunner().invoke(
        probe.command, [*where, "--timeout", "5", *arguments], env={"COLUMNS": "120"}
    )
    assert result.exit_code == status, result.output
    return result


def in_json(server: Server, *arguments: str, status: int = 0):
    return json.loads(run(server, "--json", *arguments, status=status).stdout)


def test_in_clear():
    with ModelServer(EXTENSIONS) as server:
        found = in_json(server, "--noops", "3", "--helo", "me.example")
    assert server.commands == ["ehlo me.example", "noop", "noop", "noop", "quit"]
    assert (found["host"], found["port"], found["address"]) == (
        "127.0.0.1",
        server.port,
        "127.0.0.1",
    )
    assert found["greeting"] == "220 model.example ESMTP"
    assert found["clear"]["command"] == "EHLO"
    assert [each["name"] for each in found["clear"]["extensions"]] == [
        each.split()[0] for each in EXTENSIONS
    ]
    assert (found["tls"], found["protected"], found["error"]) == (None, None, None)
    assert found["mechanisms"] == ["PLAIN", "LOGIN"]
    assert found["limits"] == {"size": 33554432, "RCPTMAX": 100, "MAILMAX": 20}
    times = found["times"]
    assert len(times["noops"]) == 3
    assert found["round_trip"] == sorted(times["noops"])[1]
    assert 0 < times["connect"] < 5
    assert 0 < times["greeting"] < 5
    assert "AUTH by LOGIN, PLAIN is offered without TLS" in found["remarks"][0]
    assert "No TLS is offered" in found["remarks"][1]


def test_the_table():
    with ModelServer(EXTENSIONS) as server:
        output = run(server).stdout
    assert "greeting    220 model.example ESMTP" in output
    assert "log in by   PLAIN, LOGIN" in output
    assert "32 MiB for a message, 100 recipients of a message, 20 messages on a con" in output
    assert "round trip  " in output
    assert "(median of 5 NOOPs)" in output
    for name, meaning in [
        ("PIPELINING", "commands need not wait for each reply"),
        ("SIZE 33554432", "says how big a message may be: 32 MiB (RFC 1870)"),
        ("X-STRANGE a=1 [bold]", "unknown to fastsmtp"),
    ]:
        assert any(line.startswith(name) and meaning in line for line in output.splitlines()), (
            output
        )
    assert "\x1b" not in output
    assert "offered" not in output.split("what it is")[0]


def test_colours_are_for_terminals_and_no_color_says_none(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)

    def shown() -> str:
        file = io.StringIO()
        console = Console(file=file, force_terminal=True, width=80, color_system="standard")
        probe.show(Report("h", 25, greeting="220 hi", clear=Offer("EHLO", "h", [])), console)
        return file.getvalue()

    assert "\x1b[33m" in shown()
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[33m" not in shown()


def test_starttls_verified(certificate):
    extensions = [*EXTENSIONS, "STARTTLS"]
    with ModelServer(extensions, tls=server_tls(certificate)) as server:
        found = in_json(server, "--ca-file", str(certificate))
        assert server.commands[0].startswith("ehlo ")
        assert server.commands[1] == "STARTTLS"
        output = run(server, "--ca-file", str(certificate)).stdout
    tls = found["tls"]
    assert (tls["how"], tls["verified"], tls["problem"]) == ("starttls", True, None)
    assert tls["version"].startswith("TLSv1.")
    assert tls["bits"] >= 128
    certificate = tls["certificate"]
    assert certificate["subject"] == certificate["issuer"] == "CN=localhost"
    assert certificate["names"] == ["localhost", "127.0.0.1"]
    assert certificate["days_left"] == 1
    assert len(certificate["sha256"]) == 64
    assert found["protected"]["extensions"] == found["clear"]["extensions"]
    assert "certificate  verified" in output
    assert "STARTTLS, TLSv1." in output
    assert "The certificate ends in 1 day." in output
    assert any(line.startswith("PIPELINING ") and " always " in line for line in output.split("\n"))


def test_a_certificate_that_does_not_verify_is_reported(certificate):
    with ModelServer([*EXTENSIONS, "STARTTLS"], tls=server_tls(certificate)) as server:
        found = in_json(server)
        output = run(server).stdout
    tls = found["tls"]
    assert not tls["verified"]
    assert "self" in tls["problem"]
    # What ssl does not tell of a certificate that it did not verify is there all the same.
    assert tls["certificate"]["names"] == ["localhost", "127.0.0.1"]
    assert tls["certificate"]["not_after"].endswith("Z")
    assert found["protected"]["command"] == "EHLO"
    assert found["round_trip"] > 0
    assert "certificate  NOT VERIFIED: self" in output
    assert "the rest went unverified" in output
    assert not any(command.upper().startswith("AUTH") for command in server.commands)


def test_the_name_in_the_certificate_counts(certificate):
    with ModelServer(["STARTTLS"], tls=server_tls(certificate)) as server:
        ours = ["--ca-file", str(certificate), "--server-hostname"]
        wrong = in_json(server, *ours, "mx.example.org")["tls"]
        assert in_json(server, *ours, "localhost")["tls"]["verified"]
    assert not wrong["verified"]
    assert "mx.example.org" in wrong["problem"]


def test_tls_from_the_first_byte(certificate):
    tls = server_tls(certificate)
    with ModelServer(EXTENSIONS, tls=tls, implicit_tls=True) as server:
        found = in_json(server, "--tls", "implicit", "--ca-file", str(certificate))
        output = run(server, "--tls", "implicit").stdout
    assert (found["tls"]["how"], found["tls"]["verified"]) == ("implicit", True)
    assert found["clear"] is None
    assert found["mechanisms"] == ["PLAIN", "LOGIN"]
    assert found["times"]["tls"] > 0
    assert found["remarks"] == ["The certificate ends in 1 day."]
    assert "from the first byte, TLSv1." in output
    assert "NOT VERIFIED" in output


def test_what_changes_with_tls(certificate):
    with ModelServer(["PIPELINING", "STARTTLS"], tls=server_tls(certificate)) as server:
        server.replies = {("EHLO", 2): b"250-model.example\r\n250-PIPELINING\r\n250 AUTH PLAIN\r\n"}
        output = run(server, "--ca-file", str(certificate)).stdout
    lines = [line.split() for line in output.splitlines() if line]
    assert ["PIPELINING", "always"] in [line[:2] for line in lines]
    assert ["STARTTLS", "in", "clear"] in [line[:3] for line in lines]
    assert ["AUTH", "PLAIN", "under", "TLS"] in [line[:4] for line in lines]


def test_tls_can_be_left_alone_or_insisted_on(certificate):
    with ModelServer(["STARTTLS"], tls=server_tls(certificate)) as server:
        found = in_json(server, "--tls", "none")
        assert found["tls"] is None
        assert not any("No TLS is offered" in remark for remark in found["remarks"])
        assert "STARTTLS" not in server.commands
    with ModelServer(["PIPELINING"]) as server:
        result = run(server, "--tls", "starttls", status=76)
    assert "PIPELINING" in result.stdout
    assert "the server does not offer STARTTLS" in result.stderr


def test_helo_is_enough():
    with ModelServer(None) as server:
        found = in_json(server)
    assert found["clear"] == {"command": "HELO", "text": "model.example", "extensions": []}
    assert "Without PIPELINING" in "".join(found["remarks"])


def test_lmtp(tmp_path):
    with ModelServer(["PIPELINING"], lmtp=True, path=str(tmp_path / "lmtp")) as server:
        result = CliRunner().invoke(probe.command, [server.host, "--lmtp", "--json"])
    found = json.loads(result.stdout)
    assert (found["host"], found["port"]) == (server.host, 0)
    assert found["clear"]["command"] == "LHLO"


@pytest.mark.parametrize(
    ("play", "status", "error"),
    [
        (scripted(b"554 go away\r\n"), 69, "the server refuses: 554 go away"),
        (scripted(b"421 later\r\n"), 69, "the server refuses: 421 later"),
        (scripted(b"SSH-2.0-\x1b[31mred\r\n"), 76, "this is no SMTP server"),
        (scripted(b"220 hi\r\n", b"502 no\r\n", b"502 no\r\n"), 76, "HELO was refused: 502 no"),
        (scripted(b"220 hi\r\n", close), 69, "Connection unexpectedly closed"),
        (
            scripted(b"220 hi\r\n", b"250-a\r\n250 STARTTLS\r\n", b"454 no key\r\n"),
            76,
            "STARTTLS is offered, but was refused: 454 no key",
        ),
    ],
)
def test_what_ends_a_probe(play, status, error):
    with Server(play) as server:
        result = run(server, status=status)
        found = in_json(server, status=status) if status == 76 else None
    assert error in result.stderr
    assert result.stderr.startswith(f"Error: 127.0.0.1:{server.port}: ")
    assert "\x1b" not in result.output
    if found:
        assert error in found["error"]
        assert found["status"] == status


def test_tls_that_does_not_come_about():
    with Server(scripted(b"220 hi\r\n")) as server:
        result = run(server, "--tls", "implicit", status=76)
    assert "no TLS: " in result.stderr
    assert result.stdout == ""


def test_nobody_listens():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        result = CliRunner().invoke(probe.command, [f"127.0.0.1:{port}"])
        assert result.exit_code == 69
        assert "refused" in result.stderr
        result = CliRunner().invoke(probe.command, [f"127.0.0.1:{port}", "--json"])
    assert result.exit_code == 69
    assert json.loads(result.stdout)["greeting"] is None


@pytest.mark.parametrize("play", [stall, dribble(b"220-" + b"x" * 4000)])
def test_the_wait_is_bounded(play, monkeypatch):
    monkeypatch.setattr(probe, "WAITS", 2)
    with Server(play) as server:
        result = run(server, "--timeout", "0.2", status=69)
    assert "no answer in time" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [(), ("host:nonsense",), ("h", "--tls", "maybe"), ("h", "--timeout", "0"), ("[::1",)],
)
def test_usage(arguments):
    assert CliRunner().invoke(probe.command, list(arguments)).exit_code == 2


def test_a_ca_file_that_is_none(tmp_path):
    path = tmp_path / "ca.pem"
    path.write_text("nothing\n", "ascii")
    result = CliRunner().invoke(probe.command, ["h", "--ca-file", str(path)])
    assert result.exit_code == 2
    assert "--ca-file" in result.stderr


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("SIZE", "no fixed limit"),
        ("SIZE 0", "no fixed limit"),
        ("SIZE 1000", "1000 octets"),
        ("SIZE 1073741824", "1 GiB"),
        ("LIMITS", "no limit"),
        ("LIMITS RCPTDOMAINMAX=1 OTHER=7 X", "1 recipients' domains on a connection, 7 OTHER"),
        ("DELIVERBY 240", "240 s at least"),
        ("FUTURERELEASE 86400 2030-01-01T00:00:00Z", "86,400 s at most"),
        ("MT-PRIORITY STANAG4406", "by profile STANAG4406"),
        ("XNOBODYKNOWS 1", "unknown"),
    ],
)
def test_meanings(line, words):
    name, _, parameters = line.partition(" ")
    extension = extensions.explained(name, parameters)
    assert words in extension.meaning
    assert extension.known == (name in extensions.MEANINGS)


@pytest.mark.parametrize("name", sorted(extensions.MEANINGS))
def test_no_parameters_break_a_meaning(name):
    for parameters in ("", "0", "-1", "\x1b[31m", "a=b c=d", "²", "9" * 5000):
        assert extensions.explained(name, parameters).meaning.isprintable()


def test_remarks_on_a_certificate_that_ended():
    ended = Certificate("00", "CN=a", "CN=b", ["a"], "2020-01-01", "2020-02-01", -3)
    tls = Tls("starttls", "TLSv1.1", "X", 128, False, "certificate has expired", ended)
    report = Report("h", 25, greeting="220 hi", tls=tls, protected=Offer("EHLO", "h", []))
    found = "".join(probe.remarks(report))
    assert "TLSv1.1 is obsolete" in found
    assert "certificate has expired" in found
    file = io.StringIO()
    probe.show(report, Console(file=file, width=100))
    assert "ended 3 days ago" in file.getvalue()


def test_limits_that_no_server_can_mean():
    said = [("SIZE", "9" * 5000), ("LIMITS", f"RCPTMAX={'9' * 5000} MAILMAX=0 RCPTMAX= X")]
    extensions_offered = [extensions.explained(*each) for each in said]
    assert Report("h", 25, clear=Offer("EHLO", "h", extensions_offered)).limits == {}


def test_names_with_ports():
    assert Report("mx.example.org", 25).where == "mx.example.org:25"
    assert Report("::1", 25).where == "[::1]:25"
    assert Report("/run/lmtp", 0).where == "/run/lmtp"


def test_what_is_no_certificate_is_not_decoded():
    certificate = probe._certificate(b"no DER at all", None)
    assert certificate.subject is None
    assert len(certificate.sha256) == 64


def test_the_unverified_context_verifies_nothing():
    context = probe._unverified()
    assert context.verify_mode == ssl.CERT_NONE
    assert not context.check_hostname
