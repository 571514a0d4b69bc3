"""The options that send, probe and bench share: where the server is, and how to speak with it.

@click.command(cls=SectionedCommand)
@connection_options()
def command(connection: Connection, ...) -> None:
    with connection.mailer() as mailer:
        ...
"""

import os
import shlex
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .exits import NO_INPUT, NO_PERMISSION, Failure, SecretError

if TYPE_CHECKING:
    from ..bulk import Mailer

F = TypeVar("F", bound=Callable[..., Any])

#: The phases that have a timeout, with the longest each may be (RFC 5321, section 4.5.3.2).
PHASES = {
    "connect": 300.0,
    "greeting": 300.0,
    "command": 300.0,
    "data": 120.0,
    "block": 180.0,
    "final": 600.0,
    "quit": 300.0,
}
#: Seconds for which a token is not asked for again: connections are opened in groups.
TOKEN_KEPT = 10.0


# -- --help in sections ---------------------------------------------------------


class SectionedOption(click.Option):
    """An option that --help shows under a heading of its own."""

    def __init__(self, *args: Any, section: str, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.section = section


class SectionedCommand(click.Command):
    """A command whose --help shows its options under headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, those without a section last."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                heading = getattr(parameter, "section", "Other options")
                sections.setdefault(heading, []).append(record)
        others = sections.pop("Other options", [])
        for heading, records in [*sections.items(), ("Other options", others)]:
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records, col_max=26)


def option(section: str, *names: str, **attributes: Any) -> Callable[[F], F]:
    """Return the decorator for an option that --help shows under *section*."""
    return click.option(*names, cls=SectionedOption, section=section, **attributes)


# -- the parsed options ---------------------------------------------------------


@dataclass(frozen=True)
class Connection:
    """What the options said: a server, and the keyword arguments for Mailer.

    *settings* are those that hold no secret.  keywords() adds the others: it
    reads files, runs commands and prompts, once.
    """

    host: str
    port: int
    settings: dict[str, Any]
    secrets: "Secrets" = field(repr=False)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}" if self.port else host

    def keywords(self) -> dict[str, Any]:
        """Return the keyword arguments for Mailer, credentials included.

        Raises Failure if a password or a token cannot be had.
        """
        return {**self.settings, **self.secrets.keywords(str(self))}

    def mailer(self, **more: Any) -> "Mailer":
        """Return a Mailer; *more* goes before what the options said.

        Raises Failure if a password or a token cannot be had, click.UsageError
        for a combination that the Mailer refuses.
        """
        from ..bulk import Mailer

        keywords = {**self.keywords(), **more}
        try:
            return Mailer(self.host, self.port, **keywords)
        except ValueError as error:
            raise click.UsageError(str(error)) from None


def parse_server(text: str) -> tuple[str, int]:
    """Return host and port of HOST, HOST:PORT, [IPV6]:PORT, or a Unix socket's path.

    The port is 0 where none is given.  Raises ValueError.
    """
    if text.startswith(("/", "./", "../")):
        return text, 0
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        colon, port = rest[:1], rest[1:]
        if not bracket or colon not in ("", ":"):
            raise ValueError(f"{text!r} is not [ADDRESS]:PORT")
    elif text.count(":") > 1:  # an IPv6 address on its own
        host, colon, port = text, "", ""
    else:
        host, colon, port = text.partition(":")
    if not host:
        raise ValueError(f"{text!r} has no host")
    if not colon:
        return host, 0
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(f"{port!r} is not a port number (1 to 65535)")
    return host, int(port)


def _server(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """Parse an option's or argument's HOST[:PORT]."""
    if not isinstance(value, str):
        return value
    try:
        return parse_server(value)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from None


def _timeouts(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> dict[str, float]:
    """Return seconds by phase; what is said of one phase goes before what is said of all."""
    general: dict[str, float] = {}
    special: dict[str, float] = {}
    for value in values:
        phase, equals, number = value.rpartition("=")
        if equals and phase not in PHASES:
            raise click.BadParameter(f"{phase!r} is none of {', '.join(PHASES)}", ctx, param)
        try:
            seconds = float(number)
        except ValueError:
            seconds = -1.0
        if not 0 < seconds < float("inf"):
            raise click.BadParameter(f"{number!r} is no number of seconds above 0", ctx, param)
        if not equals:
            general = {name: min(seconds, most) for name, most in PHASES.items()}
        elif seconds > PHASES[phase]:
            text = f"{phase} is {PHASES[phase]:g} at most (RFC 5321, section 4.5.3.2)"
            raise click.BadParameter(text, ctx, param)
        else:
            special[phase] = seconds
    return {**general, **special}


_FILE = click.Path(exists=True, dir_okay=False)
_SECONDS = click.FloatRange(min=0, min_open=True)
_COUNT = click.IntRange(min=1)

_SERVER_SECTION = "Server"
_TLS_SECTION = "TLS"
_AUTH_SECTION = "Authentication (a password or token is never taken from the command line)"
_POOL_SECTION = "Speed and persistence"
_FEATURE_SECTION = "Protocol features"

_SERVER_OPTION = option(
    _SERVER_SECTION,
    "--server",
    "server",
    callback=_server,
    metavar="HOST[:PORT]",
    default="localhost",
    show_default=True,
    help="The server: HOST, HOST:PORT, [IPV6]:PORT, or the path of a Unix socket.",
)
_SERVER_ARGUMENT = click.argument("server", callback=_server, metavar="HOST[:PORT]")

_CONNECT: list[Callable[[Any], Any]] = [
    option(_SERVER_SECTION, "--lmtp", is_flag=True, help="Speak LMTP (RFC 2033)."),
    option(
        _SERVER_SECTION,
        "--helo",
        "local_hostname",
        metavar="NAME",
        help="The name to say in EHLO, instead of this host's.",
    ),
    option(
        _SERVER_SECTION,
        "--source-address",
        metavar="IP[:PORT]",
        callback=_server,
        help="The local address to connect from.",
    ),
    option(
        _SERVER_SECTION,
        "--timeout",
        "timeouts",
        multiple=True,
        callback=_timeouts,
        metavar="[PHASE=]SECONDS",
        help=f"How long to wait in one phase ({', '.join(PHASES)}), or in each. Repeatable.",
    ),
    option(
        _TLS_SECTION,
        "--tls",
        type=click.Choice(["starttls", "implicit", "opportunistic", "none"]),
        help="starttls and implicit insist on TLS; opportunistic takes it where it is offered. "
        "Default: implicit on port 465, starttls on 587, none on loopback and on Unix sockets, "
        "else opportunistic.",
    ),
    option(
        _TLS_SECTION,
        "--ca-file",
        type=_FILE,
        metavar="FILE",
        help="Trust these certificates (PEM), and not the system's.",
    ),
    option(
        _TLS_SECTION,
        "--client-cert",
        type=_FILE,
        metavar="FILE",
        help="Show this certificate; its private key is in the same file (PEM).",
    ),
    option(
        _TLS_SECTION,
        "--server-hostname",
        metavar="NAME",
        help="The name that the server's certificate must have, instead of HOST.",
    ),
    option(_AUTH_SECTION, "--user", metavar="NAME", help="Authenticate as NAME."),
    option(
        _AUTH_SECTION,
        "--mechanism",
        "mechanisms",
        multiple=True,
        metavar="NAME",
        help="A SASL mechanism to try, such as SCRAM-SHA-256 or PLAIN. Repeatable, in order. "
        "Default: the strongest that the server has.",
    ),
    option(
        _AUTH_SECTION,
        "--password-env",
        metavar="VAR",
        help="Take the password from this environment variable.",
    ),
    option(
        _AUTH_SECTION,
        "--password-file",
        metavar="PATH",
        type=_FILE,
        help="Take the password from this file's first line.",
    ),
    option(
        _AUTH_SECTION,
        "--password-command",
        metavar="CMD",
        help="Take the password from what this prints, for example "
        '"keyring get relay me" or "pass show relay". Without any of the three: prompt.',
    ),
    option(
        _AUTH_SECTION,
        "--token-command",
        metavar="CMD",
        help="Take an OAuth 2.0 access token from what this prints; run again for new connections.",
    ),
    option(
        _AUTH_SECTION,
        "--token-env",
        metavar="VAR",
        help="Take an OAuth 2.0 access token from this environment variable.",
    ),
    option(
        _AUTH_SECTION,
        "--token-file",
        metavar="PATH",
        type=_FILE,
        help="Take an OAuth 2.0 access token from this file; read again for new connections.",
    ),
    option(
        _AUTH_SECTION,
        "--cleartext-auth",
        is_flag=True,
        help="Authenticate without TLS too, so that anybody on the way can read the password.",
    ),
]

_FEATURES: list[Callable[[Any], Any]] = [
    option(_FEATURE_SECTION, "--no-pipelining", is_flag=True, help="One command at a time."),
    option(_FEATURE_SECTION, "--no-chunking", is_flag=True, help="Use DATA, never BDAT."),
]

_POOL: list[Callable[[Any], Any]] = [
    option(
        _POOL_SECTION,
        "--connections",
        type=_COUNT,
        default=4,
        show_default=True,
        metavar="N",
        help="The most connections at a time.",
    ),
    option(
        _POOL_SECTION,
        "--depth",
        type=_COUNT,
        default=8,
        show_default=True,
        metavar="N",
        help="The most messages in flight on one connection, where the server has CHUNKING.",
    ),
    option(
        _POOL_SECTION,
        "--rate",
        type=_SECONDS,
        metavar="N",
        help="The most messages per second.",
    ),
    option(
        _POOL_SECTION,
        "--max-messages-per-connection",
        type=_COUNT,
        metavar="N",
        help="Open a new connection after N messages.",
    ),
    option(
        _POOL_SECTION,
        "--max-connection-age",
        type=_SECONDS,
        default=300.0,
        show_default=True,
        metavar="SECONDS",
        help="Open a new connection instead of one older than this.",
    ),
    option(
        _POOL_SECTION,
        "--idle-timeout",
        type=_SECONDS,
        default=60.0,
        show_default=True,
        metavar="SECONDS",
        help="Close a connection that had nothing to do for so long.",
    ),
    option(
        _POOL_SECTION,
        "--retries",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        metavar="N",
        help="How often to try a message again that the server deferred (4xx).",
    ),
    option(
        _POOL_SECTION,
        "--retry-delay",
        type=_SECONDS,
        default=60.0,
        show_default=True,
        metavar="SECONDS",
        help="How long to wait before the first of these.",
    ),
    option(
        _POOL_SECTION,
        "--resend-unknown",
        is_flag=True,
        help="Send again where the connection died before the reply to the message came. "
        "It may arrive twice.",
    ),
]


_POOL_NAMES = (
    "connections",
    "depth",
    "rate",
    "max_messages_per_connection",
    "max_connection_age",
    "idle_timeout",
    "retries",
    "retry_delay",
    "resend_unknown",
)


def connection_options(
    *, argument: bool = False, features: bool = True, pool: bool = True
) -> Callable[[F], F]:
    """Return a decorator that gives a command the shared options, as one keyword *connection*.

    *argument*: the server is an argument, not the option ``--server``.
    *features*: also ``--no-pipelining`` and ``--no-chunking``.  *pool*: also
    ``--connections``, ``--depth``, ``--rate``, ``--retries`` and what else is
    for many messages.  A command that leaves *pool* out gives what it wants of
    it to ``connection.mailer(connections=…)``.
    """
    options = [_SERVER_ARGUMENT if argument else _SERVER_OPTION, *_CONNECT]
    options += _POOL if pool else []
    options += _FEATURES if features else []

    def decorate(function: F) -> F:
        @wraps(function)
        def command(**given: Any) -> Any:
            connection = _connection(given)
            return function(connection=connection, **given)

        for each in reversed(options):
            command = each(command)
        return command  # type: ignore[return-value]

    return decorate


def _connection(given: dict[str, Any]) -> Connection:
    """Take what is ours out of the parsed options."""
    host, port = given.pop("server")
    secrets = Secrets(
        user=given.pop("user"),
        password=_one_source(given, "password"),
        token=_one_source(given, "token"),
    )
    settings: dict[str, Any] = {}
    for name in ("tls", "server_hostname", "cleartext_auth", "local_hostname"):
        settings[name] = given.pop(name)
    settings["mechanisms"] = given.pop("mechanisms") or None
    settings["protocol"] = "lmtp" if given.pop("lmtp") else "smtp"
    settings["source_address"] = given.pop("source_address")
    settings["context"] = _context(given.pop("ca_file"), given.pop("client_cert"))
    timeouts = given.pop("timeouts")
    if timeouts:
        from ..pool import Timeouts

        settings["timeouts"] = Timeouts(**timeouts)
    for feature in ("pipelining", "chunking"):
        if f"no_{feature}" in given:
            settings[feature] = not given.pop(f"no_{feature}")
    for name in _POOL_NAMES:
        if name in given:
            settings[name] = given.pop(name)
    if settings["mechanisms"] and secrets.user is None:
        raise click.UsageError("--mechanism needs --user")
    return Connection(host, port, settings, secrets)


def _context(ca_file: str | None, client_cert: str | None) -> ssl.SSLContext | None:
    if ca_file is None and client_cert is None:
        return None
    shown = "--ca-file"
    try:
        context = ssl.create_default_context(cafile=ca_file)
        if client_cert is not None:
            shown = "--client-cert"
            # An empty password, so that OpenSSL does not prompt for one.
            context.load_cert_chain(client_cert, password="")
    except OSError as error:  # ssl.SSLError is one
        raise click.UsageError(f"{shown}: {error.strerror or error}") from None
    return context


# -- credentials ----------------------------------------------------------------

_SOURCES = ("env", "file", "command")


def _one_source(given: dict[str, Any], kind: str) -> tuple[str, str] | None:
    """Return how the secret is to be had, and from where, or None."""
    found = [(how, given.pop(f"{kind}_{how}")) for how in _SOURCES]
    used = [(how, where) for how, where in found if where is not None]
    if len(used) > 1:
        names = " and ".join(f"--{kind}-{how}" for how, _ in used)
        raise click.UsageError(f"{names} exclude each other")
    return used[0] if used else None


class Secrets:
    """The user, and how the password or the token is to be had; shows neither."""

    def __init__(
        self,
        user: str | None = None,
        password: tuple[str, str] | None = None,
        token: tuple[str, str] | None = None,
    ) -> None:
        if user is None and (password or token):
            kind, (how, _) = ("token", token) if token else ("password", password or ("", ""))
            raise click.UsageError(f"--{kind}-{how} needs --user")
        if password and token:
            raise click.UsageError(
                f"--password-{password[0]} and --token-{token[0]} exclude each other"
            )
        self.user = user
        self._password = password
        self._token = token
        self._known: dict[str, Any] | None = None

    def keywords(self, server: str) -> dict[str, Any]:
        """Return username, password and token for Mailer; ask for them the first time only."""
        if self._known is None:
            self._known = self._ask(server)
        return self._known

    def _ask(self, server: str) -> dict[str, Any]:
        if self.user is None:
            return {}
        if self._token:
            token = _Token(*self._token)
            token.ask()  # so that what fails, fails before the first connection
            return {"username": self.user, "token": token}
        if self._password:
            password = _secret("password", *self._password)
        else:
            password = _prompt(self.user, server)
        return {"username": self.user, "password": password}


class _Token:
    """Gives a token, asked for again when it is some seconds old."""

    def __init__(self, how: str, where: str) -> None:
        self._how, self._where = how, where
        self._token, self._asked = "", float("-inf")

    def ask(self) -> str:
        """Return the token.  Raises Failure."""
        if time.monotonic() - self._asked > TOKEN_KEPT:
            self._token = _secret("token", self._how, self._where)
            self._asked = time.monotonic()
        return self._token

    def __call__(self) -> str:
        """Return the token to the Mailer.  Raises SecretError, which it accounts for."""
        try:
            return self.ask()
        except Failure as failure:
            raise SecretError(failure.message) from None


def _prompt(user: str, server: str) -> str:
    if not _on_a_terminal():
        raise click.UsageError(
            "--user needs a password: --password-env, --password-file, --password-command "
            "or a --token-… option (there is no terminal to ask on)"
        )
    password: str = click.prompt(f"Password of {user} at {server}", hide_input=True, err=True)
    return password


def _on_a_terminal() -> bool:
    return sys.stdin.isatty() or sys.stderr.isatty()


def _secret(kind: str, how: str, where: str) -> str:
    """Return a password or a token.  Raises Failure that names the option and not the secret."""
    name = f"--{kind}-{how}"
    if how == "env":
        secret = os.environ.get(where)
        if secret is None:
            raise Failure(f"{name}: there is no environment variable {where}", NO_PERMISSION)
    elif how == "file":
        secret = _first_line(name, where)
    else:
        secret = _printed(name, where)
    if not secret:
        raise Failure(f"{name}: the {kind} is empty", NO_PERMISSION)
    return secret


def _first_line(name: str, path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.readline().rstrip("\r\n")
    except OSError as error:
        raise Failure(f"{name}: {path}: {error.strerror}", NO_INPUT) from None
    except UnicodeDecodeError:
        raise Failure(f"{name}: {path} is not in UTF-8", NO_INPUT) from None


def _printed(name: str, command: str) -> str:
    """Run a command, without a shell, and return the first line that it prints."""
    try:
        arguments = [command] if os.name == "nt" else shlex.split(command)
    except ValueError as error:
        raise click.UsageError(f"{name}: {error}") from None
    if not arguments:
        raise click.UsageError(f"{name}: the command is empty")
    program = arguments[0].split()[0]  # its arguments may hold what nobody should see
    try:
        done = subprocess.run(
            command if os.name == "nt" else arguments, stdout=subprocess.PIPE, check=False
        )
    except OSError as error:
        raise Failure(f"{name}: cannot run {program}: {error.strerror}", NO_PERMISSION) from None
    if done.returncode:
        text = f"{name}: {program} ended with status {done.returncode}"
        raise Failure(text, NO_PERMISSION)
    try:
        return (done.stdout.decode("utf-8").splitlines() or [""])[0]
    except UnicodeDecodeError:
        raise Failure(f"{name}: {program} did not print UTF-8", NO_PERMISSION) from None
