"""What the tests know of a server, whichever it is.

A server is set up for the domain example.test and the same rules everywhere:

- any local part is a mailbox, but those that begin with "unknown" (550 at RCPT),
  with "busy" (a 4xx at RCPT) and with "full" (over quota, where the server has
  quotas: for LMTP at the final dot);
- a message that has the line ``X-Refuse: yes`` in its header is refused at the
  final dot;
- a message over `SIZE` octets is too large;
- `USER` may log in with `PASSWORD` where there is AUTH;
- pöstmaster@example.test and info@bücher.example.test (as U-label and A-label) are
  mailboxes where the server has SMTPUTF8.
"""

from __future__ import annotations

import abc
import socket
from pathlib import Path
from typing import ClassVar, NamedTuple

from housing import House

Address = tuple[str, int] | str
SIZE = 12_000_000
DOMAIN = "example.test"
IDNA_DOMAIN = "bücher.example.test"
USER, PASSWORD = "user", "correct horse battery staple"
IMPATIENCE = 1  # seconds of silence that the impatient endpoint bears


class Endpoint(NamedTuple):
    """Where a server listens, and how it wants to be spoken to."""

    address: Address
    #: "none", "starttls" or "implicit"
    tls: str = "none"
    #: SASL mechanisms it offers, after TLS where it has TLS.
    mechanisms: tuple[str, ...] = ()
    lmtp: bool = False


class Delivered(NamedTuple):
    """One copy of a message in one mailbox."""

    recipient: str
    #: The reverse-path that the server noted, without angle brackets.
    sender: str
    #: From the first octet after the trace fields to the end; CRLF line ends, as on the wire.
    #: (A mailbox has LF for CRLF; servers that refuse bare LF make that reversible.)
    content: bytes


class MailServer(abc.ABC):
    """A mail server that runs from start() to close()."""

    #: As in docs/servers.md: "Postfix".
    name: ClassVar[str]
    #: Debian's packages; none where it is installed with the tests.
    packages: ClassVar[tuple[str, ...]] = ()
    #: One certificate authority for all endpoints with TLS: what a client loads to trust it.
    cafile: Path
    #: Its own version, as it tells: "3.7.11".
    version: str
    #: By what they are for: "plain" (no TLS, no AUTH), "submission" (STARTTLS, AUTH), "smtps"
    #: (implicit TLS, AUTH), "impatient" (as plain; hangs up after IMPATIENCE seconds of silence),
    #: "lmtp-unix", "lmtp-tcp".  What a server cannot be is not there.
    endpoints: dict[str, Endpoint]
    #: The access token that `USER` may log in with, where there is OAUTHBEARER or XOAUTH2.
    token: str = ""
    #: Why something is not there, for docs/servers.md: {"impatient": "300 s, fixed when it was
    #: compiled"}.  An endpoint; "busy", "full" or "refusal" (X-Refuse), as the rules above; an
    #: extension or a SASL mechanism, if there is more to say than that it does not offer it.
    without: ClassVar[dict[str, str]] = {}

    def __init__(self, base: str = "/") -> None:
        #: The system that it runs in: this one, or a folder that debootstrap made.
        self.base = base

    @abc.abstractmethod
    def start(self) -> None:
        """Begin, and return when every endpoint accepts connections."""

    @abc.abstractmethod
    def close(self) -> None:
        """End it, with all its processes and files."""

    @abc.abstractmethod
    def collect(self) -> list[Delivered]:
        """Take what is in the mailboxes out of them."""

    #: Seconds from a reply until what was accepted would be in a mailbox; what should not arrive
    #: is awaited so long.
    pause: ClassVar[float] = 0.3


class Housed(MailServer):
    """One that start() puts into a House."""

    #: None until then; fetching its packages may fail.
    house: House | None = None

    def close(self) -> None:
        if self.house is not None:
            self.house.close()

    def _greeting(self) -> str:
        with socket.create_connection(self.endpoints["plain"].address) as sock:
            return sock.makefile("r").readline()
