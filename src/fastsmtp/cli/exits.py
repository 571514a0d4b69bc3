"""Exit statuses, those of sysexits.h where one fits, and the error that ends a command."""

import smtplib
import socket
import ssl

import click

OK = 0
SOME_NOT = 1  # some message was not accepted for good, or its fate is unknown
USAGE = 2
NO_INPUT = 66
NO_HOST = 68
UNAVAILABLE = 69
CANNOT_CREATE = 73
IO_ERROR = 74
TEMPORARY = 75
PROTOCOL = 76
NO_PERMISSION = 77
INTERRUPTED = 130  # 128 + SIGINT, as a shell has it


class Failure(click.ClickException):
    """Ends the command with one line on stderr and an exit status."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]


class SecretError(ValueError):
    """A token that could be had at first cannot be had once more."""


def status_for(error: BaseException) -> int:
    """Return the exit status for an error that no message is to blame for."""
    if isinstance(error, smtplib.SMTPResponseException) and error.smtp_code // 100 == 4:
        return TEMPORARY
    if isinstance(error, (smtplib.SMTPAuthenticationError, SecretError)):
        return NO_PERMISSION
    if isinstance(error, ssl.SSLError):
        return PROTOCOL
    if isinstance(error, socket.gaierror):
        return TEMPORARY if error.errno == socket.EAI_AGAIN else NO_HOST
    return UNAVAILABLE


def describe(error: BaseException) -> str:
    """Return an error in one printable line."""
    if isinstance(error, smtplib.SMTPResponseException):
        text = error.smtp_error
        shown = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
        return printable(f"{error.smtp_code} {shown}")
    if isinstance(error, OSError) and error.strerror and not error.filename:
        return printable(error.strerror)
    return printable(str(error)) or type(error).__name__


def printable(text: str) -> str:
    """Return a text from elsewhere in one line that no terminal takes for commands."""
    line = " ".join(text.split())
    return line if line.isprintable() else "".join([c if c.isprintable() else "?" for c in line])
