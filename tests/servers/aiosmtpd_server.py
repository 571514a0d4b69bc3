"""aiosmtpd, in a thread of this process: the one server that needs nothing installed.

It is as it comes: it takes one command after the other and does not offer
PIPELINING.  What RFC 2033 wants of an LMTP server after the data, a reply for
each recipient, it leaves to its handler.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import tempfile
import threading
from collections import deque
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

from aiosmtpd.lmtp import LMTP
from aiosmtpd.smtp import SMTP, AuthResult
from server import IMPATIENCE, PASSWORD, SIZE, USER, Delivered, Endpoint, MailServer
from support import ASYNCIO_PORTS, make_certificate, server_tls

MECHANISMS = ("LOGIN", "PLAIN")
ENDPOINTS = {
    "plain": Endpoint(""),
    "submission": Endpoint("", "starttls", MECHANISMS),
    "smtps": Endpoint("", "implicit", MECHANISMS),
    "impatient": Endpoint(""),
    "lmtp-unix": Endpoint("", lmtp=True),
    "lmtp-tcp": Endpoint("", lmtp=True),
}


class Aiosmtpd(MailServer):
    """Listens on loopback for each endpoint, and keeps what it takes in memory."""

    name = "aiosmtpd"
    pause = 0.05
    without: ClassVar[dict[str, str]] = {}

    def start(self) -> None:
        self.version = version("aiosmtpd")
        self._folder = Path(tempfile.mkdtemp(prefix="fastsmtp-"))
        make_certificate(self._folder)
        self.cafile = self._folder / "certificate.pem"
        self._tls = server_tls(self._folder / "server.pem")
        self._taken: deque[Delivered] = deque()
        self._live: set[Any] = set()
        self._listeners: list[asyncio.Server] = []
        self._loop = asyncio.new_event_loop()
        self._loop.run_until_complete(self._listen())
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    async def _listen(self) -> None:
        self.endpoints = {
            purpose: endpoint._replace(address=await self._address_of(purpose, endpoint))
            for purpose, endpoint in ENDPOINTS.items()
        }

    async def _address_of(self, purpose: str, endpoint: Endpoint) -> tuple[str, int] | str:
        def make() -> SMTP:
            kind = TrackedLMTP if endpoint.lmtp else Tracked
            return kind(
                self._live,
                Handler(self._taken, endpoint.lmtp),
                data_size_limit=SIZE,
                enable_SMTPUTF8=True,
                hostname="mail.example.test",
                tls_context=self._tls if endpoint.tls == "starttls" else None,
                # It does not know of TLS that was there from the first octet.
                auth_require_tls=endpoint.tls != "implicit",
                authenticator=authenticate,
                timeout=IMPATIENCE if purpose == "impatient" else 300,
                loop=self._loop,
            )

        if purpose == "lmtp-unix":
            path = str(self._folder / "lmtp")
            self._listeners.append(await self._loop.create_unix_server(make, path))
            return path
        tls = self._tls if endpoint.tls == "implicit" else None
        listener = await self._loop.create_server(make, "127.0.0.1", 0, ssl=tls)
        self._listeners.append(listener)
        address = listener.sockets[0].getsockname()
        ASYNCIO_PORTS.add(address[1])
        return address

    def collect(self) -> list[Delivered]:
        return [self._taken.popleft() for _ in range(len(self._taken))]

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._hang_up(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        shutil.rmtree(self._folder)

    async def _hang_up(self) -> None:
        for listener in self._listeners:
            listener.close()
        while self._live or len(asyncio.all_tasks()) > 1:
            for each in list(self._live):
                each.transport.abort()
            await asyncio.sleep(0)


def authenticate(
    server: Any, session: Any, envelope: Any, mechanism: str, given: Any
) -> AuthResult:
    right = (given.login, given.password) == (USER.encode(), PASSWORD.encode())
    return AuthResult(success=right, handled=False)


class Handler:
    """What aiosmtpd asks at each step: the rules of server.py."""

    def __init__(self, taken: deque[Delivered], lmtp: bool) -> None:
        self._taken, self._lmtp = taken, lmtp

    async def handle_RCPT(
        self, server: Any, session: Any, envelope: Any, address: str, options: list[str]
    ) -> str:
        if address.startswith("unknown"):
            return "550 5.1.1 No such mailbox"
        if address.startswith("busy"):
            return "450 4.2.1 Not now"
        if address.startswith("full") and not self._lmtp:
            return "452 4.2.2 Mailbox full"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 Ok"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        replies = [self._taken_for(to, envelope) for to in envelope.rcpt_tos]
        return "\r\n".join(replies if self._lmtp else replies[:1])

    def _taken_for(self, recipient: str, envelope: Any) -> str:
        header = envelope.content.partition(b"\r\n\r\n")[0]
        if re.search(rb"(?m)^X-Refuse: yes\r?$", header):
            return "550 5.7.1 Refused"
        if recipient.startswith("full"):
            return "452 4.2.2 Mailbox full"
        self._taken.append(Delivered(recipient, envelope.mail_from, bytes(envelope.content)))
        return "250 2.0.0 Ok"


class Tracked(SMTP):
    """Is in *live* as long as it is connected."""

    def __init__(self, live: set[Any], *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self._everybody = live

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._everybody.add(self)
        super().connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._everybody.discard(self)
        super().connection_lost(error)


class TrackedLMTP(Tracked, LMTP):
    """The same for LMTP."""
