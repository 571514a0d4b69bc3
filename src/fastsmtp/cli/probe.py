"""``fastsmtp probe``: what a server offers, in words, and how long it takes to answer.

examine() asks the server and fills in a Report, as far as it gets; show() and
as_json() say what is in one.  Nothing is sent but EHLO, STARTTLS, NOOP and QUIT.
"""

import hashlib
import json
import socket
import ssl
import statistics
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .. import SMTP, SMTPException, SMTPProtocolError, SMTPResponseException
from .connection import SectionedCommand, option, parse_server
from .exits import PROTOCOL, UNAVAILABLE, Failure
from .extensions import LIMITS, Extension, explained, number, octets, pairs, plain

#: The whole probe may take this many times --timeout.
WAITS = 6
SOON = 21  # days before its end that a certificate is worth a remark
OLD_TLS = ("SSLv3", "TLSv1", "TLSv1.1")  # RFC 8996
IN_CLEAR = frozenset(("PLAIN", "LOGIN", "XOAUTH2", "OAUTHBEARER"))


# -- what was found -------------------------------------------------------------


@dataclass
class Offer:
    """The answer to EHLO, LHLO or HELO."""

    command: str
    text: str
    extensions: list[Extension]

    def parameters(self, name: str) -> str | None:
        """Return what stands behind an extension's name; None if it is not offered."""
        for extension in self.extensions:
            if extension.name == name:
                return extension.parameters
        return None

    @property
    def mechanisms(self) -> list[str]:
        """The AUTH mechanisms."""
        return list(dict.fromkeys((self.parameters("AUTH") or "").upper().split()))


@dataclass
class Certificate:
    """What a certificate says of itself; times are in UTC, ISO 8601."""

    sha256: str
    subject: str | None = None
    issuer: str | None = None
    names: list[str] = field(default_factory=list)
    not_before: str | None = None
    not_after: str | None = None
    days_left: int | None = None


@dataclass
class Tls:
    """How TLS came about; *problem* says why the certificate was not verified."""

    how: str
    version: str
    cipher: str
    bits: int
    verified: bool
    problem: str | None
    certificate: Certificate | None


@dataclass
class Times:
    """Seconds."""

    lookup: float | None = None
    connect: float | None = None
    greeting: float | None = None
    tls: float | None = None
    noops: list[float] = field(default_factory=list)


@dataclass
class Report:
    """All that was found, until *error* ended it (None: nothing did)."""

    host: str
    port: int
    address: str | None = None
    greeting: str | None = None
    clear: Offer | None = None
    tls: Tls | None = None
    protected: Offer | None = None
    times: Times = field(default_factory=Times)
    error: str | None = None
    status: int = 0

    @property
    def where(self) -> str:
        """The server's name and port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}" if self.port else host

    @property
    def offer(self) -> Offer | None:
        """What the server offers in the end: under TLS, if there is any."""
        return self.protected or self.clear

    @property
    def limits(self) -> dict[str, int]:
        """The server's limits: ``size`` in octets, and RFC 9422's by their names."""
        if self.offer is None:
            return {}
        found = dict(pairs(self.offer.parameters("LIMITS") or ""))
        if size := number(self.offer.parameters("SIZE") or ""):
            found = {"size": size, **found}
        return found


@dataclass(frozen=True)
class Target:
    """What to probe, and how.  *timeout* is in seconds, for each wait."""

    host: str
    port: int = 0
    tls: str = "opportunistic"
    context: ssl.SSLContext | None = None
    server_hostname: str | None = None
    local_hostname: str | None = None
    lmtp: bool = False
    timeout: float = 10.0
    noops: int = 5

    @property
    def name(self) -> str:
        """The name that the certificate must have."""
        return self.server_hostname or ("localhost" if self.is_path else self.host)

    @property
    def is_path(self) -> bool:
        """Whether the host is a Unix socket's path."""
        return "/" in self.host


# -- asking ---------------------------------------------------------------------


class Line(SMTP):
    """A connection whose steps are timed, with TLS from the first byte if so told."""

    def __init__(self, target: Target, context: ssl.SSLContext, times: Times) -> None:
        super().__init__(timeout=target.timeout, local_hostname=target.local_hostname)
        self.target, self.context, self.times = target, context, times
        self.address = ""
        if target.lmtp:
            self.ehlo_msg = "lhlo"

    def open(self) -> tuple[int, bytes]:
        """Connect and return the greeting."""
        reply = self.connect(self.target.host, self.target.port)
        self.times.greeting = time.perf_counter() - self._opened
        return reply

    def _get_socket(self, host: str, port: int, timeout: float | None) -> Any:
        sock = self._reach(host, port, timeout)
        self._watched = sock.dup()
        self._host = self.target.name
        if self.target.tls == "implicit":
            sock = self.protect(sock)
        self._opened = time.perf_counter()
        return sock

    def _reach(self, host: str, port: int, timeout: float | None) -> socket.socket:
        """Connect to the first of the host's addresses that answers."""
        if self.target.is_path:
            addresses: list[Any] = [(socket.AF_UNIX, socket.SOCK_STREAM, 0, "", host)]
        else:
            with self._timed("lookup"):
                addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        problem: OSError | None = None
        for family, kind, protocol, _, address in addresses:
            sock = socket.socket(family, kind, protocol)
            sock.settimeout(timeout)
            try:
                with self._timed("connect"):
                    sock.connect(address)
            except OSError as error:
                sock.close()
                problem = error
                continue
            self.address = address if isinstance(address, str) else address[0]
            return sock
        raise problem or OSError(f"{host} has no address")

    def protect(self, sock: socket.socket) -> ssl.SSLSocket:
        """Put a socket under TLS."""
        try:
            with self._timed("tls"):
                return self.context.wrap_socket(sock, server_hostname=self.target.name)
        except BaseException:
            sock.close()
            raise

    def _start_tls(self, context: Any) -> None:
        with self._timed("tls"):
            super()._start_tls(context)

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        setattr(self.times, step, time.perf_counter() - began)

    def cut(self) -> None:
        """End the connection, whatever waits for it in another thread."""
        self.overdue = True
        if self._watched is not None:
            try:
                self._watched.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it is gone already

    overdue = False
    _watched: socket.socket | None = None
    _opened = 0.0

    def close(self) -> None:
        """Close the connection."""
        super().close()
        watched, self._watched = self._watched, None
        if watched is not None:
            watched.close()


def examine(target: Target) -> Report:
    """Ask the server what it offers; return what was found, and the error that ended it.

    The certificate is verified.  If it cannot be, that is put down, and the
    rest is asked over a second connection without verification.
    """
    port = target.port or {"implicit": 465}.get(target.tls, 24 if target.lmtp else 25)
    report = Report(target.host, 0 if target.is_path else port)
    context = target.context or ssl.create_default_context()
    try:
        try:
            _ask(target, context, report, None)
        except ssl.SSLCertVerificationError as error:
            _ask(target, _unverified(), report, error.verify_message)
    except (OSError, SMTPException, ValueError) as error:
        report.error, report.status = _ended(error)
    return report


def _ask(target: Target, context: ssl.SSLContext, report: Report, problem: str | None) -> None:
    """Fill in a report over one connection; *problem* says why *context* verifies nothing."""
    line = Line(target, context, report.times)
    watch = threading.Timer(WAITS * target.timeout, line.cut)
    watch.daemon = True
    watch.start()
    try:
        _greet(line, report)
        if target.tls == "implicit":
            report.tls = _describe_tls("implicit", line.sock, problem)
            report.protected = _hello(line)
        else:
            report.clear = _hello(line)
            if _wants_starttls(target, report.clear):
                _start_tls(line)
                report.tls = _describe_tls("starttls", line.sock, problem)
                report.protected = _hello(line)
        for _ in range(target.noops):
            began = time.perf_counter()
            line.noop()
            report.times.noops.append(time.perf_counter() - began)
        line.quit()
    except (OSError, SMTPException) as error:
        if line.overdue or isinstance(error.__context__, TimeoutError):
            raise TimeoutError from error
        raise
    finally:
        watch.cancel()
        line.close()


def _greet(line: Line, report: Report) -> None:
    code, text = line.open()
    report.address = line.address
    report.greeting = plain(text) if code == -1 else f"{code} {plain(text)}"
    if code == -1:
        raise SMTPProtocolError(f"this is no SMTP server: its first line is {report.greeting!r}")
    if code != 220:
        raise SMTPResponseException(code, text)


def _hello(line: Line) -> Offer:
    """Say EHLO or LHLO, or HELO where that is all that the server knows."""
    verb = line.ehlo_msg.upper()
    code, text = line.ehlo()
    if code != 250 and verb == "EHLO" and code // 100 == 5:
        verb = "HELO"
        code, text = line.helo()
    if code != 250:
        raise SMTPProtocolError(f"{verb} was refused: {code} {plain(text)}")
    offered = line.esmtp_features if verb != "HELO" else {}
    extensions = [explained(name.upper(), each.strip()) for name, each in offered.items()]
    return Offer(verb, plain(text.split(b"\n")[0]), extensions)


def _wants_starttls(target: Target, offer: Offer) -> bool:
    offered = offer.parameters("STARTTLS") is not None
    if target.tls == "starttls" and not offered:
        raise SMTPProtocolError("the server does not offer STARTTLS")
    return offered and target.tls != "none"


def _start_tls(line: Line) -> None:
    try:
        line.starttls(context=line.context)
    except SMTPResponseException as error:
        said = f"{error.smtp_code} {plain(error.smtp_error)}"
        raise SMTPProtocolError(f"STARTTLS is offered, but was refused: {said}") from None


def _unverified() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _ended(error: Exception) -> tuple[str, int]:
    """Return in words what ended the probe, and the exit status."""
    if isinstance(error, SMTPResponseException):
        said = f"{error.smtp_code} {plain(error.smtp_error)}"
        return f"the server refuses: {said}", PROTOCOL if error.smtp_code < 400 else UNAVAILABLE
    if isinstance(error, ssl.SSLError):
        return f"no TLS: {error.reason or error}{_advice(error)}", PROTOCOL
    if isinstance(error, TimeoutError):
        return "no answer in time", UNAVAILABLE
    if isinstance(error, SMTPProtocolError) or not isinstance(error, OSError):
        return plain(str(error)), PROTOCOL
    return plain(error.strerror or str(error)), UNAVAILABLE


def _advice(error: ssl.SSLError) -> str:
    if error.reason in ("WRONG_VERSION_NUMBER", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"):
        return " (is it a port that begins in clear? --tls starttls)"
    return ""


# -- TLS and certificates -------------------------------------------------------


def _describe_tls(how: str, sock: ssl.SSLSocket, problem: str | None) -> Tls:
    name, _, bits = sock.cipher() or ("", "", 0)
    der = sock.getpeercert(binary_form=True)
    certificate = _certificate(der, sock.getpeercert() or None) if der else None
    return Tls(how, sock.version() or "", name, bits, problem is None, problem, certificate)


def _certificate(der: bytes, decoded: dict[str, Any] | None) -> Certificate:
    certificate = Certificate(hashlib.sha256(der).hexdigest())
    decoded = decoded or _decoded(der)
    if not decoded:
        return certificate
    certificate.subject = _distinguished(decoded.get("subject", ()))
    certificate.issuer = _distinguished(decoded.get("issuer", ()))
    certificate.names = [plain(name) for _, name in decoded.get("subjectAltName", ())]
    certificate.not_before = _iso(ssl.cert_time_to_seconds(decoded["notBefore"]))
    end = ssl.cert_time_to_seconds(decoded["notAfter"])
    certificate.not_after = _iso(end)
    certificate.days_left = int((end - time.time()) // 86400)
    return certificate


def _decoded(der: bytes) -> dict[str, Any]:
    """Decode a certificate that was not verified, of which ssl tells nothing; {} if it cannot be.

    The function is CPython's own, for its tests; PyPy has it, too.
    """
    import _ssl

    decode = getattr(_ssl, "_test_decode_cert", None)
    if decode is None:  # pragma: no cover - another implementation
        return {}
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/certificate.pem"
        with open(path, "w", encoding="ascii") as file:
            file.write(ssl.DER_cert_to_PEM_cert(der))
        try:
            return dict(decode(path))
        except ssl.SSLError:
            return {}


def _distinguished(name: Iterable[Iterable[tuple[str, str]]]) -> str:
    short = {"commonName": "CN", "organizationName": "O", "countryName": "C"}
    parts = [f"{short[key]}={value}" for part in name for key, value in part if key in short]
    return plain(", ".join(reversed(parts)))


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


# -- showing --------------------------------------------------------------------


def remarks(report: Report) -> Iterator[str]:
    """Say what is worth a remark."""
    clear = {name for name in report.clear.mechanisms if name in IN_CLEAR} if report.clear else ()
    if clear:
        names = ", ".join(sorted(clear))
        yield f"AUTH by {names} is offered without TLS: anybody on the way can read the password."
    if report.tls and not report.tls.verified:
        yield f"The certificate does not verify ({report.tls.problem}); the rest went unverified."
    if report.tls and report.tls.version in OLD_TLS:
        yield f"{report.tls.version} is obsolete (RFC 8996)."
    if report.clear and report.clear.parameters("STARTTLS") is None:
        yield "No TLS is offered: mail goes in clear."
    left = report.tls.certificate.days_left if report.tls and report.tls.certificate else None
    if left is not None and 0 <= left < SOON:
        yield f"The certificate ends in {_days(left)}."
    if report.offer and report.offer.parameters("PIPELINING") is None:
        yield "Without PIPELINING a message to one recipient costs four round trips, not one."


def as_json(report: Report) -> str:
    """Return a report as JSON, with seconds for times."""
    noops = report.times.noops
    content = {
        **asdict(report),
        "mechanisms": report.offer.mechanisms if report.offer else [],
        "limits": report.limits,
        "round_trip": statistics.median(noops) if noops else None,
        "remarks": list(remarks(report)),
    }
    return json.dumps(content, indent=2)


def show(report: Report, console: Console) -> None:
    """Print a report for a person."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    for label, value in _facts(report):
        facts.add_row(label, value)
    console.print(facts)
    if report.offer is not None:
        console.print()
        console.print(_extensions(report))
    if found := list(remarks(report)):
        console.print()
        notes = Table.grid(padding=(0, 1))
        for remark in found:
            notes.add_row(Text("!", "bold yellow"), Text(remark, "yellow"))
        console.print(notes)


def _facts(report: Report) -> Iterator[tuple[str, Text]]:
    server = Text(report.where, "bold")
    if report.address not in (None, report.host):
        server.append(f"  {report.address}", "not bold dim")
    yield "server", server
    if report.greeting is not None:
        yield "greeting", Text(report.greeting)
    if report.offer is not None:
        yield report.offer.command, Text(report.offer.text)
    if report.tls is not None:
        yield from _tls_facts(report.tls)
    elif report.offer is not None:
        yield "TLS", Text("none", "yellow")
    if report.offer is not None:
        yield "log in by", Text(", ".join(report.offer.mechanisms) or "no AUTH is offered")
        if limits := _limit_facts(report.limits):
            yield "limits", Text(limits)
    if times := _time_facts(report.times):
        yield "times", Text(times)
    if noops := report.times.noops:
        median = statistics.median(noops) * 1e3
        yield "round trip", Text(f"{median:.1f} ms (median of {len(noops)} NOOPs)")


def _tls_facts(tls: Tls) -> Iterator[tuple[str, Text]]:
    how = {"starttls": "STARTTLS", "implicit": "from the first byte"}[tls.how]
    yield "TLS", Text(f"{how}, {tls.version}, {tls.cipher} ({tls.bits} bits)")
    verdict = Text("verified", "green")
    if not tls.verified:
        verdict = Text(f"NOT VERIFIED: {tls.problem}", "bold red")
    yield "certificate", verdict
    certificate = tls.certificate
    if certificate is None:
        return
    if certificate.subject is None:  # pragma: no cover - see _decoded()
        yield "SHA-256", Text(certificate.sha256)
        return
    yield "  subject", Text(certificate.subject or "(empty)")
    yield "  issuer", Text(certificate.issuer or "(empty)")
    yield "  names", Text(", ".join(certificate.names) or "(none)")
    days = certificate.days_left or 0
    left = f"{_days(days)} left" if days >= 0 else f"ended {_days(-days)} ago"
    style = "" if days >= SOON else "yellow" if days >= 0 else "bold red"
    since, until = str(certificate.not_before)[:10], str(certificate.not_after)[:10]
    yield "  valid", Text.assemble(f"{since} to {until}, ", (left, style))


def _days(number: int) -> str:
    return f"{number} day" if number == 1 else f"{number} days"


def _limit_facts(limits: dict[str, int]) -> str:
    words = []
    for name, value in limits.items():
        if name == "size":
            words.append(f"{octets(value)} for a message")
        else:
            words.append(f"{value:,} {LIMITS.get(name, name)}")
    return ", ".join(words)


def _time_facts(times: Times) -> str:
    return ", ".join(
        f"{name} {seconds * 1e3:.1f} ms"
        for name, seconds in (
            ("look-up", times.lookup),
            ("connect", times.connect),
            ("TLS", times.tls),
            ("greeting", times.greeting),
        )
        if seconds is not None
    )


def _extensions(report: Report) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("extension", overflow="fold", max_width=34)
    both = bool(report.clear and report.protected)
    if both:
        table.add_column("offered", no_wrap=True)
    table.add_column("what it is", overflow="fold")
    for extension, where in _in_order(report):
        name = Text(extension.name, "bold")
        if extension.parameters:
            name.append(f" {extension.parameters}", "not bold dim")
        meaning = Text(extension.meaning, "" if extension.known else "yellow")
        table.add_row(name, *([where] if both else []), meaning)
    return table


def _in_order(report: Report) -> Iterator[tuple[Extension, str]]:
    """Give each extension, as it stands under TLS if it does, and when it is offered."""
    clear = {each.name: each for each in report.clear.extensions} if report.clear else {}
    later = {each.name: each for each in report.protected.extensions} if report.protected else {}
    for name, extension in {**clear, **later}.items():
        if name not in later:
            yield extension, "in clear"
        elif name not in clear:
            yield extension, "under TLS"
        else:
            yield extension, "always"


# -- the command ----------------------------------------------------------------


def _parsed(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, int]:
    try:
        return parse_server(value)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from None


def _trusting(ca_file: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise click.UsageError(f"--ca-file: {error.strerror or error}") from None


@click.command(cls=SectionedCommand)
@click.argument("server", callback=_parsed, metavar="HOST[:PORT]")
@option("Server", "--lmtp", is_flag=True, help="Speak LMTP (RFC 2033).")
@option("Server", "--helo", metavar="NAME", help="The name to say in EHLO.")
@option(
    "Server",
    "--timeout",
    type=click.FloatRange(0, 3600, min_open=True),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help=f"How long to wait for each answer; for all of them, {WAITS} times that.",
)
@option(
    "TLS",
    "--tls",
    type=click.Choice(["starttls", "implicit", "opportunistic", "none"]),
    help="Default: implicit on port 465, elsewhere STARTTLS if it is offered.",
)
@option(
    "TLS",
    "--ca-file",
    type=click.Path(exists=True, dir_okay=False),
    metavar="FILE",
    help="Trust these certificates (PEM), and not the system's.",
)
@option(
    "TLS",
    "--server-hostname",
    metavar="NAME",
    help="The name that the server's certificate must have, instead of HOST.",
)
@click.option(
    "--noops",
    type=click.IntRange(0, 1000),
    default=5,
    show_default=True,
    metavar="N",
    help="How many round trips to time.",
)
@click.option("--json", "in_json", is_flag=True, help="Print JSON.")
def command(
    server: tuple[str, int],
    lmtp: bool,
    helo: str | None,
    timeout: float,
    tls: str | None,
    ca_file: str | None,
    server_hostname: str | None,
    noops: int,
    in_json: bool,
) -> None:
    """Ask a mail server what it offers, and explain the answer.

    Shows the greeting, every extension with what it is for, before and after
    STARTTLS, the TLS version and the certificate, the ways to log in, the
    limits, and how long an answer takes.  Sends no mail and no password.

    A certificate that does not verify is reported, and the probe goes on
    without verification.

    \b
    Examples:
      fastsmtp probe mail.example.org
      fastsmtp probe smtp.example.org:587 --json
      fastsmtp probe localhost:2525 --tls none

    Exit status: 0, 2 for wrong usage, 69 if the server cannot be reached or
    refuses, 76 if it breaks the protocol or TLS does not come about.
    """
    host, port = server
    target = Target(
        host,
        port,
        tls or ("implicit" if port == 465 else "opportunistic"),
        _trusting(ca_file),
        server_hostname,
        helo,
        lmtp,
        timeout,
        noops,
    )
    report = examine(target)
    if in_json:
        click.echo(as_json(report))
    elif report.greeting is not None or report.tls is not None:
        show(report, Console(highlight=False))
    if report.error is not None:
        raise Failure(f"{report.where}: {report.error}", report.status)
