"""``fastsmtp sink``: a mail server for tests, which takes, shows, keeps, refuses or drops.

The server itself is in sink_server.py, as it needs aiosmtpd.
"""

import asyncio
import email.header
import email.parser
import email.policy
import itertools
import logging
import os
import random
import re
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import click

from .connection import SectionedCommand, option
from .exits import CANNOT_CREATE, NO_INPUT, NO_PERMISSION, Failure, printable
from .extras import require

STEPS = ("connect", "mail", "rcpt", "data", "message")
_RULE = re.compile(rf"(?s)({'|'.join(STEPS)}):(?:(.*?):)?(drop|[45]\d\d(?: .*)?)")
_SHARE = re.compile(r"(\d+(?:\.\d+)?)%")
DROP = "drop"


# -- what is to go wrong --------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """What to answer at a step, if *pattern* matches or in a *share* of the cases."""

    step: str
    reply: str
    pattern: re.Pattern[str] | None = None
    share: float = 1.0

    def applies(self, text: str, chance: random.Random) -> bool:
        """Say whether this rule is for an address, or for a message's content."""
        if self.pattern is None:
            return self.share >= 1 or chance.random() < self.share
        match = self.pattern.search if self.step == "message" else self.pattern.fullmatch
        return match(text) is not None


def parse_rule(text: str) -> Rule:
    """Read STEP:REPLY, STEP:PATTERN:REPLY or STEP:N%:REPLY.  Raises ValueError."""
    found = _RULE.fullmatch(text)
    if found is None:
        raise ValueError(
            f"{text!r} is not STEP:[PATTERN:]REPLY, with a step of {', '.join(STEPS)} and a reply "
            "such as '550 5.1.1 no such user', or 'drop'"
        )
    step, condition, reply = found.groups()
    if len(reply) == len("550"):
        reply += " refused by the sink"
    if not (reply.isascii() and reply.isprintable()):
        raise ValueError(f"the reply {reply!r} is not printable ASCII")
    if condition is None:
        return Rule(step, reply)
    if share := _SHARE.fullmatch(condition):
        return Rule(step, reply, share=float(share[1]) / 100)
    try:
        return Rule(step, reply, re.compile(condition, re.IGNORECASE))
    except re.error as error:
        raise ValueError(f"{condition!r} is no regular expression: {error}") from None


@dataclass(frozen=True)
class Faults:
    """What goes wrong: rules, seconds before the reply to each message, and cut connections."""

    rules: tuple[Rule, ...] = ()
    delay: float = 0.0
    drop_after: int | None = None
    drop_rate: float = 0.0

    def reply(self, step: str, text: str, chance: random.Random) -> str | None:
        """Return the reply of the first rule that applies, or None."""
        for rule in self.rules:
            if rule.step == step and rule.applies(text, chance):
                return rule.reply
        if step == "message" and self.drop_rate and chance.random() < self.drop_rate:
            return DROP
        return None


# -- what becomes of messages ---------------------------------------------------


def with_envelope(sender: str, recipients: list[str], peer: str, content: bytes) -> bytes:
    """Return a message with its envelope in front, as X- header fields; the rest as it came."""
    fields = [f"X-Envelope-From: <{sender}>"]
    fields += [f"X-Envelope-To: <{recipient}>" for recipient in recipients]
    fields.append(f"X-Peer: {peer}")
    head = "".join(f"{field}\r\n" for field in fields)
    return head.encode("utf-8", "surrogateescape") + content


class Folder:
    """A folder of .eml files, one for each message, byte for byte."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._names = (f"{time.strftime('%Y%m%d-%H%M%S')}-{number:06}" for number in _from_1())
        path.mkdir(parents=True, exist_ok=True)

    def keep(self, message: bytes) -> None:
        """Write one message, so that it is there as a whole or not at all."""
        path = self.path / f"{next(self._names)}.{os.getpid()}.eml"
        partial = path.with_suffix(".part")
        partial.write_bytes(message)
        partial.replace(path)


class Maildir:
    """A Maildir, in which lines end as mail programs want them there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._numbers = _from_1()
        self._host = socket.gethostname().replace("/", r"\057").replace(":", r"\072")
        for name in ("tmp", "new", "cur"):
            (path / name).mkdir(parents=True, exist_ok=True)

    def keep(self, message: bytes) -> None:
        """Deliver one message."""
        name = f"{int(time.time())}.P{os.getpid()}Q{next(self._numbers)}.{self._host}"
        partial = self.path / "tmp" / name
        partial.write_bytes(message.replace(b"\r\n", b"\n"))
        partial.replace(self.path / "new" / name)


def _from_1() -> "itertools.count[int]":
    return itertools.count(1)


def subject(content: bytes) -> str:
    """Return a message's subject, decoded."""
    head = content.partition(b"\r\n\r\n")[0]
    message = email.parser.BytesHeaderParser(policy=email.policy.compat32).parsebytes(head)
    try:
        return str(email.header.make_header(email.header.decode_header(message["Subject"] or "")))
    except (LookupError, ValueError):  # of no charset, or not in it
        return str(message["Subject"])


class Log:
    """Prints what happens, and counts."""

    def __init__(self, *, quiet: bool, whole: bool, gone: Callable[[], None]) -> None:
        self._quiet, self._whole, self._gone = quiet, whole, gone
        self._began = time.monotonic()
        self.counts: Counter[str] = Counter()

    def message(self, sender: str, recipients: list[str], content: bytes) -> None:
        """Put down one message that was taken."""
        self.counts["messages"] += 1
        self.counts["recipients"] += len(recipients)
        self.counts["octets"] += len(content)
        others = f" +{len(recipients) - 1}" if len(recipients) > 1 else ""
        self._line(
            f"#{self.counts['messages']} <{sender}> -> <{recipients[0]}>{others}, "
            f'{len(content):,} octets, "{subject(content)}"'
        )
        if self._whole:
            lines = content.decode("utf-8", "replace").splitlines()
            self._write("\n".join([*map(_tame, lines), ""]))

    def refused(self, step: str, whose: str, reply: str) -> None:
        """Put down a refusal, or a connection that was cut."""
        self.counts["dropped" if reply == DROP else "refused"] += 1
        self._line(f"{step} {whose}: {'cut the connection' if reply == DROP else reply}")

    def error(self, error: Exception) -> None:
        """Put down something that should not be."""
        self._line(f"error: {type(error).__name__}: {error}")

    def _line(self, text: str) -> None:
        if not self._quiet:
            self._write(f"{time.strftime('%H:%M:%S')} {printable(text)}")

    def _write(self, text: str) -> None:
        try:
            click.echo(text)
        except OSError:  # nobody reads any more
            self._quiet = True
            self._gone()

    def end(self) -> None:
        """Say what happened in all."""
        counts = self.counts
        self._write(
            f"{counts['messages']:,} messages ({counts['octets']:,} octets) for "
            f"{counts['recipients']:,} recipients over {counts['connections']:,} connections in "
            f"{time.monotonic() - self._began:.1f} s; refused {counts['refused']:,}, "
            f"cut {counts['dropped']:,}"
        )


def _tame(line: str) -> str:
    return "    " + "".join(c if c.isprintable() else "?" for c in line.replace("\t", "    "))


# -- certificates ---------------------------------------------------------------


def server_context(
    cert: str | None, key: str | None, host: str, directory: str
) -> tuple[ssl.SSLContext, str | None]:
    """Return a context, and the path of the certificate if it was made for this run."""
    made = None
    if cert is None:
        made = cert = _make_certificate(host, Path(directory))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(cert, key, password="")  # empty: OpenSSL is not to prompt
    except OSError as error:
        raise Failure(f"--cert, --key: {error.strerror or error}", NO_INPUT) from None
    return context, made


def _make_certificate(host: str, directory: Path) -> str:
    """Make a key and a self-signed certificate for a host and for loopback, in one PEM file."""
    openssl = shutil.which("openssl")
    if openssl is None:
        raise Failure("--tls needs --cert, as there is no openssl command to make one", NO_INPUT)
    address = re.fullmatch(r"[\d.]+|[\da-fA-F:]+:[\da-fA-F:.]*", host)
    names = dict.fromkeys(["DNS:localhost", "IP:127.0.0.1", "IP:::1"])
    names[f"{'IP' if address else 'DNS'}:{host}"] = None
    parts = [directory / "key.pem", directory / "certificate.pem"]
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt"]
    command += ["ec_paramgen_curve:prime256v1", "-nodes", "-days", "7", "-subj", "/CN=localhost"]
    command += ["-addext", f"subjectAltName={','.join(names)}"]
    command += ["-keyout", str(parts[0]), "-out", str(parts[1])]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise Failure(f"openssl made no certificate: {said}", NO_INPUT)
    pem = directory / "sink.pem"
    pem.touch(mode=0o600)
    pem.write_bytes(b"".join(part.read_bytes() for part in parts))
    return str(pem)


# -- the command ----------------------------------------------------------------


def _rules(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> tuple[Rule, ...]:
    try:
        return tuple(map(parse_rule, texts))
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from None


def _login(ctx: click.Context, param: click.Parameter, text: str | None) -> tuple[str, str] | None:
    if text is None:
        return None
    user, colon, variable = text.rpartition(":")
    if not (user and colon and variable):
        raise click.BadParameter("it is USER:VARIABLE", ctx, param)
    password = os.environ.get(variable)
    if not password:
        raise Failure(
            f"--auth: there is no password in the environment's {variable}", NO_PERMISSION
        )
    return user, password


_FILE = click.Path(exists=True, dir_okay=False)


@click.command(cls=SectionedCommand)
@option(
    "Where",
    "--host",
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    help="The address to listen on. The default is for this machine only; 0.0.0.0 is for all that "
    "can reach it.",
)
@option(
    "Where",
    "--port",
    type=click.IntRange(0, 65535),
    default=8025,
    show_default=True,
    metavar="PORT",
    help="The port to listen on; 0 takes any that is free.",
)
@option("What becomes of messages", "--print", "whole", is_flag=True, help="Print them whole.")
@option("What becomes of messages", "--quiet", is_flag=True, help="Print the summary only.")
@option(
    "What becomes of messages",
    "--store",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Keep them as .eml files, byte for byte, below X-Envelope-From and X-Envelope-To fields.",
)
@option("What becomes of messages", "--maildir", is_flag=True, help="DIR is a Maildir instead.")
@option(
    "What goes wrong",
    "--refuse",
    "rules",
    multiple=True,
    callback=_rules,
    metavar="STEP:[WHICH:]REPLY",
    help="Refuse at a step: connect, mail, rcpt, data, or message (after its final dot). "
    "WHICH is a regular expression for the whole address (for message: for something in it), "
    "or a share such as 5%. REPLY is a code, with a text or without, or 'drop', which cuts "
    "the connection. Repeatable; the first that fits holds.",
)
@option(
    "What goes wrong",
    "--delay",
    type=click.FloatRange(0),
    default=0.0,
    metavar="SECONDS",
    help="Wait before the answer to each message.",
)
@option(
    "What goes wrong",
    "--drop-after",
    type=click.IntRange(0),
    metavar="N",
    help="Cut each connection when it wants to send more than N messages.",
)
@option(
    "What goes wrong",
    "--drop-rate",
    type=click.FloatRange(0, 1),
    default=0.0,
    metavar="P",
    help="Cut the connection, with this probability, where the answer to a message should come.",
)
@option("What goes wrong", "--seed", type=int, metavar="N", help="Repeat an earlier run's chances.")
@option(
    "What the server demands",
    "--max-size",
    type=click.IntRange(1),
    default=1 << 25,
    show_default=True,
    metavar="OCTETS",
    help="The largest message.",
)
@option(
    "What the server demands",
    "--auth",
    "login",
    callback=_login,
    metavar="USER:VARIABLE",
    help="Demand a login, with the password that is in this environment variable.",
)
@option(
    "What the server demands",
    "--tls",
    type=click.Choice(["starttls", "implicit"]),
    help="Offer STARTTLS, or speak TLS from the first byte. Without --cert, the openssl command "
    "makes a certificate for this run.",
)
@option(
    "What the server demands",
    "--cert",
    type=_FILE,
    metavar="FILE",
    help="The certificate (PEM), with its key in the same file or in --key.",
)
@option("What the server demands", "--key", type=_FILE, metavar="FILE", help="The key (PEM).")
def command(
    host: str,
    port: int,
    whole: bool,
    quiet: bool,
    store: Path | None,
    maildir: bool,
    rules: tuple[Rule, ...],
    delay: float,
    drop_after: int | None,
    drop_rate: float,
    seed: int | None,
    max_size: int,
    login: tuple[str, str] | None,
    tls: str | None,
    cert: str | None,
    key: str | None,
) -> None:
    """Run a mail server for tests: it takes everything and delivers nothing.

    Prints a line for each message, until Ctrl-C or SIGTERM, then how many there
    were. It can be told to refuse, to wait and to cut connections, so that you
    see what your program does then. It listens on this machine only, unless
    --host says otherwise.

    \b
    Examples:
      fastsmtp sink --store ./mail
      fastsmtp sink --refuse 'rcpt:.*@bad\\.example:550 5.1.1 no such user'
      fastsmtp sink --refuse 'message:5%:451 try again' --refuse rcpt:1%:drop
    """
    if whole and quiet:
        raise click.UsageError("--print and --quiet exclude each other")
    if maildir and store is None:
        raise click.UsageError("--maildir needs --store DIR")
    if cert is not None and tls is None:
        raise click.UsageError("--cert needs --tls starttls or --tls implicit")
    if key is not None and cert is None:
        raise click.UsageError("--key needs --cert")
    require("sink", "aiosmtpd", "demo")
    from .sink_server import Handler, Setting, serve

    logging.getLogger("mail.log").disabled = True  # aiosmtpd's; what matters is in our lines
    with ExitStack() as stack:
        context = None
        if tls is not None:
            temporary = tempfile.TemporaryDirectory(prefix="fastsmtp-sink-")
            directory = stack.enter_context(temporary)
            context, made = server_context(cert, key, host, directory)
            if made:
                click.echo(f"certificate for this run: {made} (clients: --ca-file)")
        keep = None if store is None else _opened(store, maildir).keep
        ended = asyncio.Event()
        log = Log(quiet=quiet, whole=whole, gone=ended.set)
        faults = Faults(rules, delay, drop_after, drop_rate)
        handler = Handler(log, faults, keep, login, seed)
        try:
            asyncio.run(serve(handler, Setting(max_size, tls, context), (host, port), ended))
        except KeyboardInterrupt:  # pragma: no cover - before the signal's handler was there
            pass
        log.end()


def _opened(path: Path, maildir: bool) -> Folder | Maildir:
    try:
        return Maildir(path) if maildir else Folder(path)
    except OSError as error:
        raise Failure(f"--store: {error.filename}: {error.strerror}", CANNOT_CREATE) from None
