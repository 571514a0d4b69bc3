"""What smtplib has besides its classes, and what it does in its own way."""

import re
import smtplib
import sys
from _thread import _local  # threading's, without importing it

from . import codec
from .envelope import Verbs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

MAXCHALLENGE = 5  # answered in one AUTH exchange
_AUTH_ARGUMENT = r"(?is)(auth\W+[\w-]+\W+)\S.*?((?:\r\n)?)\Z"
_logger: "Any" = None
_logging = _local()  # per thread: `now` while a handler is at work


def fix_eols(data: str) -> str:
    """Return text with CRLF newlines."""
    return data.replace("\r\n", "\n").replace("\r", "\n").replace("\n", "\r\n")


def quote_periods(bindata: bytes) -> bytes:
    """Return bytes with each dot that begins a line doubled."""
    return bytes(codec.stuff_dots(bindata))


def quotedata(data: str) -> str:
    """Return text with CRLF newlines and each dot that begins a line doubled.

    Of no use with this package, whose methods do it; smtplib has it.
    """
    text = fix_eols(data).replace("\n.", "\n..")
    return "." + text if text.startswith(".") else text


def running_verbs() -> Verbs:
    """Return the commands as the running interpreter's smtplib spells them.

    Tests of programs assert them, and the letter case has changed over time.
    """
    spelled: dict[str, str] = {}

    class Probe:
        does_esmtp = False

        def putcmd(self, verb: str, argument: str) -> None:
            spelled[verb] = f"{verb} {argument.removesuffix('<>')}"

        def getreply(self) -> None:
            pass

    probe: Any = Probe()
    smtplib.SMTP.mail(probe, "<>")
    smtplib.SMTP.rcpt(probe, "<>")
    return Verbs(spelled["mail"], spelled["rcpt"], b"data\r\n", b"rset\r\n")


def debug_logger() -> "Any":
    """Return the logger `fastsmtp` if it listens to debug messages, else None.

    It does if DEBUG is set as its own level.  The root logger's is not enough:
    a program that logs everything by mail would log that mail, and so on.
    Nobody listens in a program that never imported logging; nor do we, then.
    """
    global _logger  # noqa: PLW0603 - looked up once
    if _logger is None:
        if "logging" not in sys.modules:
            return None
        import logging

        _logger = logging.getLogger("fastsmtp")
    if _logger.level and _logger.isEnabledFor(10) and not getattr(_logging, "now", False):
        return _logger
    return None


def log(logger: "Any", *args: object) -> None:
    """Log a debug message; what a handler does by mail is not logged in turn."""
    _logging.now = True
    try:
        logger.debug(" ".join(["%s"] * len(args)), *args)
    finally:
        _logging.now = False


def without_credentials(command: str) -> str:
    """Return a command as it may be shown: AUTH without its initial response."""
    return re.sub(_AUTH_ARGUMENT, r"\1***\2", command)


class LocalHostname:
    """The client's name for EHLO, looked up when it is first needed.

    An instance's own attribute hides it: a name that is given is never looked
    up.  What is found serves the whole process, as long as it would be looked
    up by the same function.  *api* is the module whose `socket` is asked.
    """

    def __init__(self, api: "ModuleType") -> None:
        self._api = api
        self._found: dict[Any, str] = {}

    def __get__(self, instance: "Any", owner: type) -> str:
        if instance is None:
            raise AttributeError("local_hostname")
        look_up = self._api.socket.getfqdn
        if look_up not in self._found:
            self._found[look_up] = host_name(self._api.socket)
        name = instance.local_hostname = self._found[look_up]
        return name


def host_name(sockets: "Any") -> str:
    """Return this host's name, or its address as a literal (RFC 5321, section 4.1.3).

    *sockets* is the module `socket`, or what stands in for it.
    """
    name: str = sockets.getfqdn()
    if "." in name:
        return name
    try:
        address = sockets.gethostbyname(sockets.gethostname())
    except OSError:
        address = "127.0.0.1"
    return f"[{address}]"
