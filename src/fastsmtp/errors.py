"""The exceptions: the standard library's own classes, and one of ours.

The classes are the very objects of :mod:`smtplib`, so ``except
smtplib.SMTPException`` in anybody's code catches what fastsmtp raises.
"""

from smtplib import (
    SMTPAuthenticationError,
    SMTPConnectError,
    SMTPDataError,
    SMTPException,
    SMTPHeloError,
    SMTPNotSupportedError,
    SMTPRecipientsRefused,
    SMTPResponseException,
    SMTPSenderRefused,
    SMTPServerDisconnected,
)

__all__ = [
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
]


class SMTPProtocolError(SMTPServerDisconnected):
    """The server broke the protocol, and the connection was closed for it.

    Raised for a reply that no command asked for, for bytes sent in clear that
    would have been read as part of a TLS session (RFC 3207, section 6), and,
    by the strict reply parser, for a reply that RFC 5321 section 4.2 does not
    allow.  It is an :exc:`SMTPServerDisconnected`, because what a caller can
    do is the same: connect again.
    """
