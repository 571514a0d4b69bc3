"""The clients of the package, as tests against real servers use them.

Each kind of client sends a letter by the same method, and what comes of it is
told in the same words, those of `fastsmtp.Delivery.status`:

    with connect("Mailer-BDAT", server) as client:
        client.send(letter, ["ann@example.test"]).status
"""

from __future__ import annotations

import email
import email.policy
import ssl
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

from server import PASSWORD, USER, Address, Endpoint, MailServer

import fastsmtp
from fastsmtp import Mailer, Message

TIMEOUT = 60.0  # seconds; longer than any server here takes for anything
SENDER = "sender@example.org"
NAME = "client.example"  # for EHLO; a server may look up the name of an address literal

#: Where each kind of client sends: the first of these endpoints that the server has.
KINDS = {
    "SMTP": ("plain",),
    "SMTP_SSL": ("smtps",),
    "LMTP": ("lmtp-unix", "lmtp-tcp"),
    "Mailer-DATA": ("plain",),
    "Mailer-BDAT": ("plain",),
    "Mailer-LMTP": ("lmtp-tcp", "lmtp-unix"),
}
MAILERS = ("Mailer-DATA", "Mailer-BDAT", "Mailer-LMTP")


class Letter(NamedTuple):
    """A message: its Message-ID, what is handed in, and what must arrive."""

    id: str
    given: str | bytes | email.message.EmailMessage
    content: bytes


class Result(NamedTuple):
    """What a client was told of a message."""

    status: str
    #: Codes of the recipients' refusals.
    refused: dict[str, int] = {}  # noqa: RUF012 - never changed
    #: The code that decided, 0 if there was no reply.
    code: int = 0
    error: BaseException | None = None


def purpose_of(kind: str, server: MailServer) -> str | None:
    """Return which endpoint of the server is for a kind of client, None if none is."""
    return next((purpose for purpose in KINDS[kind] if purpose in server.endpoints), None)


def connect(
    kind: str,
    server: MailServer,
    purpose: str = "",
    context: ssl.SSLContext | None = None,
    **settings: Any,
) -> DropIn | Bulk:
    """Return a client of a kind for one endpoint, logged in where there is AUTH."""
    endpoint = server.endpoints[purpose or purpose_of(kind, server)]
    context = context or ssl.create_default_context(cafile=str(server.cafile))
    return (Bulk if kind in MAILERS else DropIn)(kind, endpoint, context, **settings)


class DropIn:
    """SMTP, SMTP_SSL or LMTP."""

    def __init__(
        self,
        kind: str,
        endpoint: Endpoint,
        context: ssl.SSLContext,
        *,
        address: Address | None = None,
        login: Callable[[Any], object] | None = None,
    ) -> None:
        address = address or endpoint.address
        host, port = (address, 0) if isinstance(address, str) else address
        if endpoint.tls == "implicit":
            self.smtp = fastsmtp.SMTP_SSL(host, port, NAME, timeout=TIMEOUT, context=context)
        else:
            self.smtp = getattr(fastsmtp, kind)(host, port, NAME, timeout=TIMEOUT)
        try:
            self._begin(endpoint, context, login)
        except BaseException:
            self.smtp.close()
            raise

    def _begin(
        self, endpoint: Endpoint, context: ssl.SSLContext, login: Callable[[Any], object] | None
    ) -> None:
        if endpoint.tls == "starttls":
            self.smtp.starttls(context=context)
        if login is not None:
            login(self.smtp)
        elif endpoint.mechanisms:
            self.smtp.login(USER, PASSWORD)
        self.smtp.ehlo_or_helo_if_needed()

    def send(self, letter: Letter, recipients: Sequence[str], sender: str = SENDER) -> Result:
        try:
            refused = self._sender(letter)(sender, recipients)
        except fastsmtp.SMTPRecipientsRefused as error:
            return _refused(error.recipients, error)
        except fastsmtp.SMTPResponseException as error:
            return Result(_status(error.smtp_code), {}, error.smtp_code, error)
        except fastsmtp.SMTPNotSupportedError as error:
            return Result("not_sent", {}, 0, error)
        codes = {address: reply[0] for address, reply in refused.items()}
        return Result("partial" if refused else "accepted", codes, 250)

    def _sender(self, letter: Letter) -> Callable[..., dict[str, Any]]:
        if isinstance(letter.given, email.message.EmailMessage):
            return partial(self.smtp.send_message, letter.given)

        def sendmail(sender: str, recipients: Sequence[str]) -> dict[str, Any]:
            options = []
            if any(not each.partition("@")[0].isascii() for each in (sender, *recipients)):
                options.append("SMTPUTF8")
            if not letter.given.isascii():
                options.append("BODY=8BITMIME")
            return self.smtp.sendmail(sender, recipients, letter.given, options)

        return sendmail

    def send_many(self, letters: Iterable[tuple[Letter, Sequence[str]]]) -> list[Result]:
        return [self.send(letter, recipients) for letter, recipients in letters]

    def close(self) -> None:
        if self.smtp.sock is not None:
            self.smtp.quit()

    def __enter__(self):
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.smtp.close() if kind else self.close()


def _status(code: int) -> str:
    return {4: "deferred", 5: "rejected"}.get(code // 100, "unknown")


def _refused(recipients: dict[str, tuple[int, bytes]], error: BaseException) -> Result:
    codes = {address: code for address, (code, _) in recipients.items()}
    status = "rejected" if all(code >= 500 for code in codes.values()) else "deferred"
    return Result(status, codes, max(codes.values()), error)


class Bulk:
    """A Mailer of one connection."""

    def __init__(
        self,
        kind: str,
        endpoint: Endpoint,
        context: ssl.SSLContext,
        *,
        address: Address | None = None,
        **settings: Any,
    ) -> None:
        address = address or endpoint.address
        host, port = (address, 0) if isinstance(address, str) else address
        if endpoint.mechanisms:
            settings = {"username": USER, "password": PASSWORD, **settings}
        self.mailer = Mailer(
            host,
            port,
            tls=endpoint.tls,
            context=context,
            protocol="lmtp" if endpoint.lmtp else "smtp",
            local_hostname=NAME,
            chunking=kind == "Mailer-BDAT",
            connections=1,
            connect_attempts=1,
            timeouts=TIMEOUT,
            **settings,
        )

    def send(self, letter: Letter, recipients: Sequence[str], sender: str = SENDER) -> Result:
        return _told(self.mailer.send(_message(letter, recipients, sender)))

    def send_many(self, letters: Iterable[tuple[Letter, Sequence[str]]]) -> list[Result]:
        messages = [_message(letter, to, SENDER) for letter, to in letters]
        results = {each.message: _told(each) for each in self.mailer.send_many(messages)}
        return [results[message] for message in messages]

    def close(self) -> None:
        self.mailer.close()

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _message(letter: Letter, recipients: Sequence[str], sender: str) -> Any:
    if isinstance(letter.given, email.message.EmailMessage):
        return letter.given  # its header says who
    return Message(sender, recipients, letter.given, id=letter.id)


def _told(delivery: fastsmtp.Delivery) -> Result:
    codes = {address: reply.code for address, reply in delivery.refused.items()}
    code = delivery.reply.code if delivery.reply else 0
    return Result(delivery.status, codes, code, delivery.error)
