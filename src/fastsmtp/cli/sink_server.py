"""The server of ``fastsmtp sink``: aiosmtpd's, with faults to order.

It reads one command at a time and keeps the rest, which is all that RFC 2920
asks of a server, so PIPELINING is offered too.
"""

import asyncio
import hmac
import random
import re
import signal
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, Session, TLSSetupException

from .exits import UNAVAILABLE, Failure
from .sink import DROP, Faults, Log, with_envelope

#: What stands for the null reverse-path, which aiosmtpd does not take (RFC 5321, 4.5.5).
_NULL = "null.reverse.path@invalid"


@dataclass(frozen=True)
class Setting:
    """On what terms the server takes mail: *tls* is "starttls", "implicit" or None."""

    max_size: int
    tls: str | None
    context: ssl.SSLContext | None


class Handler:
    """What aiosmtpd asks at each step."""

    def __init__(
        self,
        log: Log,
        faults: Faults,
        keep: Callable[[bytes], None] | None = None,
        login: tuple[str, str] | None = None,
        seed: int | None = None,
    ) -> None:
        self._log, self._faults, self._keep = log, faults, keep
        self.login = login
        self._chance = random.Random(seed)
        self.live: set[Sink] = set()

    def connected(self, server: "Sink") -> None:
        """Count a connection; it comes again after STARTTLS."""
        if server not in self.live:
            self._log.counts["connections"] += 1
            self.live.add(server)

    async def handle_EHLO(
        self, server: Any, session: Session, envelope: Any, name: str, responses: list[str]
    ) -> list[str]:
        session.host_name = name
        *first, last = [each for each in responses if each.rstrip() != "250-AUTH"]
        return [*first, "250-PIPELINING", last]

    async def handle_MAIL(
        self, server: Any, session: Any, envelope: Envelope, sender: str, options: list[str]
    ) -> str:
        shown = "" if sender == _NULL else sender
        if self.login is not None and not session.authenticated:
            return "530 5.7.0 log in first"
        if getattr(session, "taken", 0) == self._faults.drop_after:
            return await self._drop(server, "mail", f"<{shown}>")
        if reply := await self._refusal(server, "mail", shown):
            return reply
        envelope.mail_from = sender
        envelope.mail_options.extend(options)
        return "250 2.1.0 sender ok"

    async def handle_RCPT(
        self, server: Any, session: Any, envelope: Envelope, recipient: str, options: list[str]
    ) -> str:
        if reply := await self._refusal(server, "rcpt", recipient):
            return reply
        envelope.rcpt_tos.append(recipient)
        return "250 2.1.5 recipient ok"

    async def handle_DATA(self, server: Any, session: Any, envelope: Envelope) -> str:
        content = bytes(envelope.content or b"")  # type: ignore[arg-type]
        sender = "" if envelope.mail_from == _NULL else envelope.mail_from or ""
        if self._faults.delay:
            await asyncio.sleep(self._faults.delay)
        text = content.decode("utf-8", "surrogateescape")
        if reply := await self._refusal(server, "message", text, f"from <{sender}>"):
            return reply
        peer = str(session.peer[0]) if session.peer else ""
        if self._keep is not None:
            self._keep(with_envelope(sender, envelope.rcpt_tos, peer, content))
        session.taken = getattr(session, "taken", 0) + 1
        self._log.message(sender, envelope.rcpt_tos, content)
        return f"250 2.0.0 taken, message {self._log.counts['messages']}"

    async def handle_exception(self, error: Exception) -> str:
        if not isinstance(error, TLSSetupException):  # the loop tells of it, too
            self._log.error(error)
        return "451 4.3.0 the sink has a problem"

    def authenticate(
        self, server: Any, session: Any, envelope: Any, mechanism: str, given: Any
    ) -> AuthResult:
        """Say whether a login is the one that was told to us."""
        user, password = (each.encode("utf-8") for each in self.login or ("", ""))
        right = self.login is not None and hmac.compare_digest(given.password, password)
        if right and given.login == user:
            return AuthResult(success=True)
        name = given.login.decode("utf-8", "replace")
        self._log.refused("auth", name, "535 5.7.8 wrong user or password")
        return AuthResult(success=False, handled=False)

    def problem(self, context: dict[str, Any]) -> None:
        """Put down what went wrong outside of a conversation, but that a client has gone."""
        error = context.get("exception") or RuntimeError(context["message"])
        if not isinstance(error, ConnectionError):
            self._log.error(error)

    async def before(self, server: Any, step: str) -> str | None:
        """Return the refusal to give at a step that has no address."""
        return await self._refusal(server, step, "")

    async def _refusal(
        self, server: Any, step: str, text: str, whose: str | None = None
    ) -> str | None:
        reply = self._faults.reply(step, text, self._chance)
        if reply is None:
            return None
        whose = f"<{text}>" if whose is None else whose
        if reply == DROP:
            return await self._drop(server, step, whose)
        self._log.refused(step, whose, reply)
        if reply.startswith("421"):  # RFC 5321, section 3.8: and close
            asyncio.get_running_loop().call_later(0.05, server.transport.close)
        return reply

    async def _drop(self, server: Any, step: str, whose: str) -> str:
        self._log.refused(step, whose, DROP)
        server.transport.abort()
        await asyncio.Future()  # aiosmtpd cancels this when it sees the end
        raise AssertionError  # pragma: no cover


class Sink(SMTP):
    """aiosmtpd's server with what it lacks: refusals at the start and at DATA, and <>."""

    line_length_limit = 1 << 16  # a test should see what it sent, right or wrong
    event_handler: Handler
    _greeted = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.event_handler.connected(self)
        super().connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        self.event_handler.live.discard(self)
        super().connection_lost(error)

    async def push(self, status: Any) -> None:
        refusal = None
        if not self._greeted:
            self._greeted = True
            refusal = await self.event_handler.before(self, "connect")
        await super().push(refusal or status)
        if refusal:
            self.end()

    async def smtp_MAIL(self, arg: str | None) -> None:
        if arg and re.match(r"(?i)FROM:\s*<>", arg):
            arg = arg.replace("<>", f"<{_NULL}>", 1)
        await super().smtp_MAIL(arg)

    async def smtp_DATA(self, arg: str) -> None:
        ready = self.envelope is not None and self.envelope.rcpt_tos
        if ready and (reply := await self.event_handler.before(self, "data")):
            await self.push(reply)
        else:
            await super().smtp_DATA(arg)

    def end(self, last_words: bytes = b"") -> None:
        """Close, after what was said so far."""
        if isinstance(self.transport, asyncio.Transport):
            self.transport.write(last_words)
            self.transport.close()


async def serve(
    handler: Handler,
    setting: Setting,
    address: tuple[str, int],
    ended: asyncio.Event,
) -> None:
    """Listen until *ended* is set, and say where as soon as it is so."""
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: handler.problem(context))

    def make() -> Sink:
        return Sink(
            handler,
            hostname="localhost",
            ident="fastsmtp sink",
            data_size_limit=setting.max_size,
            enable_SMTPUTF8=True,
            tls_context=setting.context if setting.tls == "starttls" else None,
            auth_require_tls=setting.tls == "starttls",
            auth_exclude_mechanism=None if handler.login else ["LOGIN", "PLAIN"],
            authenticator=handler.authenticate,
            loop=loop,
        )

    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(number, ended.set)
        except NotImplementedError:  # pragma: no cover - Windows
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(ended.set))
    implicit = setting.context if setting.tls == "implicit" else None
    try:
        server = await loop.create_server(make, *address, ssl=implicit)
    except OSError as error:
        shown = f"{address[0]}:{address[1]}"
        raise Failure(f"cannot listen on {shown}: {error.strerror}", UNAVAILABLE) from None
    name, port = server.sockets[0].getsockname()[:2]
    click.echo(f"listening on {f'[{name}]' if ':' in name else name}:{port}")
    await ended.wait()
    server.close()
    for each in list(handler.live):
        each.end(b"421 4.3.2 the sink is closing\r\n")
    await asyncio.sleep(0.05)  # for these words to leave
