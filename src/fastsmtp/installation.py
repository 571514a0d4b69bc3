"""Putting our classes into the smtplib module, for code that cannot be edited."""

import smtplib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any

    from typing_extensions import Self

_NAMES = tuple(name for name in ("SMTP", "SMTP_SSL", "LMTP") if hasattr(smtplib, name))
_ORIGINALS = {name: getattr(smtplib, name) for name in _NAMES}


class Installation:
    """What install() did; as a context manager it is undone at the end."""

    def __init__(self, before: "dict[str, Any]") -> None:
        self._before = before

    def __enter__(self) -> "Self":
        return self

    def __exit__(
        self,
        exc_type: "type[BaseException] | None",
        exc_value: "BaseException | None",
        tb: "TracebackType | None",
    ) -> None:
        _put(self._before)


def install() -> Installation:
    """Put SMTP, SMTP_SSL and LMTP into the smtplib module.

    Code that says ``smtplib.SMTP(...)``, as Django and logging do, then gets
    fastsmtp's.  Code that has said ``from smtplib import SMTP`` before keeps
    what it has.  Do it first: a class that was derived from ``smtplib.SMTP``
    before and calls ``smtplib.SMTP.__init__(self)`` would now call ours.
    Lasts until uninstall(), or as a context manager to its end.
    """
    from . import client

    before = {name: getattr(smtplib, name) for name in _NAMES}
    _put({name: getattr(client, name) for name in _NAMES})
    return Installation(before)


def uninstall() -> None:
    """Put smtplib's own classes back."""
    _put(_ORIGINALS)


def _put(classes: "dict[str, Any]") -> None:
    for name, value in classes.items():
        setattr(smtplib, name, value)
