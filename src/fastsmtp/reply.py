"""Replies: RFC 5321, section 4.2, and enhanced status codes, RFC 3463."""

import re
from operator import itemgetter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from typing_extensions import Self

TELLING = 4  # octets; a shorter secret stands in other text by chance
_ENHANCED = rb"([245])\.(\d{1,3})\.(\d{1,3})(?!\S)"


class Reply(tuple[int, bytes]):
    """A server's reply: the tuple (code, text), as smtplib has it, with names.

    *code* is the reply code, -1 for a line that begins with none.  *text* is
    the bytes of its lines without their codes, stripped, joined by LF.
    """

    __slots__ = ()

    def __new__(cls, code: int, text: bytes) -> "Self":
        """Make a reply of its code and its text."""
        return tuple.__new__(cls, (code, text))

    def __getnewargs__(self) -> "tuple[int, bytes]":
        return self[:]

    #: The reply code, an int from 200 to 599 in all that RFC 5321 allows.
    code: int = property(itemgetter(0))  # type: ignore[assignment]
    #: The text of all lines, in bytes, joined by LF.
    text: bytes = property(itemgetter(1))  # type: ignore[assignment]

    @property
    def lines(self) -> "list[bytes]":
        """The text of each line."""
        return self.text.split(b"\n")

    @property
    def enhanced(self) -> "tuple[int, int, int] | None":
        """The enhanced status code (class, subject, detail), or None (RFC 3463, RFC 2034)."""
        match = re.match(_ENHANCED, self.text)
        if match is None or int(match[1]) != self.code // 100:
            return None
        return int(match[1]), int(match[2]), int(match[3])

    def __repr__(self) -> str:
        return f"Reply({self.code}, {self.text!r})"


def without_secrets(text: "bytes | str", secrets: "Iterable[bytes]") -> bytes:
    """Return a text of the server's, in bytes, without the secrets that it repeats."""
    text = text.encode("utf-8") if isinstance(text, str) else text
    for secret in secrets:
        if len(secret) >= TELLING:
            text = text.replace(secret, b"***")
    return text
