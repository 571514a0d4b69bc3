"""fastsmtp: an SMTP client, and a drop-in for smtplib, on a compiled codec.

``import fastsmtp as smtplib`` gives a program this package's classes under the
names it knows; ``fastsmtp.install()`` gives them to code that imports smtplib
itself.
"""

import smtplib as _smtplib
import socket
from email.base64mime import body_encode as encode_base64

from . import codec as _codec_in_use
from .client import LMTP, SMTP, _have_cram_md5_support
from .compat import MAXCHALLENGE as _MAXCHALLENGE
from .compat import fix_eols as _fix_eols
from .compat import quote_periods as _quote_periods
from .compat import quotedata
from .envelope import address_only as _addr_only
from .envelope import quoteaddr
from .errors import (
    SMTPAuthenticationError,
    SMTPConnectError,
    SMTPDataError,
    SMTPException,
    SMTPHeloError,
    SMTPNotSupportedError,
    SMTPProtocolError,
    SMTPRecipientsRefused,
    SMTPResponseException,
    SMTPSenderRefused,
    SMTPServerDisconnected,
)
from .installation import install, uninstall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .bulk import Mailer
    from .delivery import Delivery, RecipientResult, Totals
    from .options import DeliverBy, Options, Recipient
    from .outgoing import Message
    from .pool import Timeouts
    from .serializer import serialize, serialize_buffers
    from .template import Template

__version__ = "0.1.0"

__all__ = [
    "LMTP",
    "SMTP",
    "DeliverBy",
    "Delivery",
    "Mailer",
    "Message",
    "Options",
    "Recipient",
    "RecipientResult",
    "SMTPAuthenticationError",
    "SMTPConnectError",
    "SMTPDataError",
    "SMTPException",
    "SMTPHeloError",
    "SMTPNotSupportedError",
    "SMTPProtocolError",
    "SMTPRecipientsRefused",
    "SMTPResponseException",
    "SMTPSenderRefused",
    "SMTPServerDisconnected",
    "Template",
    "Timeouts",
    "Totals",
    "implementation",
    "install",
    "quoteaddr",
    "quotedata",
    "serialize",
    "serialize_buffers",
    "uninstall",
]

CRLF = "\r\n"
bCRLF = b"\r\n"
SMTP_PORT = _smtplib.SMTP_PORT
SMTP_SSL_PORT = _smtplib.SMTP_SSL_PORT
LMTP_PORT = _smtplib.LMTP_PORT
OLDSTYLE_AUTH = _smtplib.OLDSTYLE_AUTH
_MAXLINE = _codec_in_use.MAX_LINE

try:
    import ssl
except ImportError:  # pragma: no cover - a Python built without OpenSSL
    _have_ssl = False
else:
    from .client import SMTP_SSL

    _have_ssl = True
    __all__ += ["SMTP_SSL"]


# What is for bulk sending takes longer to import than all the rest, and is not always needed.
_LAZY = {
    "Delivery": "delivery",
    "DeliverBy": "options",
    "Mailer": "bulk",
    "Message": "outgoing",
    "Options": "options",
    "Recipient": "options",
    "RecipientResult": "delivery",
    "Template": "template",
    "Timeouts": "pool",
    "Totals": "delivery",
    "serialize": "serializer",
    "serialize_buffers": "serializer",
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found = globals()[name] = getattr(import_module(f".{_LAZY[name]}", __name__), name)
    return found


def implementation() -> str:
    """Return which codec is in use: "c" or "python"."""
    return _codec_in_use.IMPLEMENTATION
