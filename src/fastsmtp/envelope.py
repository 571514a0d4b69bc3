"""The envelope: sender, recipients and ESMTP parameters, checked and encoded.

Everything here happens before MAIL is sent, so that what cannot be written
never leaves half a transaction behind.
"""

import re
from email.utils import parseaddr

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
# A mailbox that every reader of addresses reads alike: dot-string "@" domain.
_PLAIN = re.compile(
    r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*"
    r"@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*"
)
# Rarely needed, so compiled when they are: import time counts.
# The inside of <...>: quoted strings, quoted pairs, and no other bracket or quote.
_INSIDE = r'(?s:[^"\\<>]|\\.|"(?:[^"\\]|\\.)*")*'
_QUOTED = r'(?s:"(?:[^"\\]|\\.)*"|\\.)'
_PARAMETER = r"\s[A-Za-z0-9][A-Za-z0-9-]*="
# IDNA 2008 keeps these where IDNA 2003, which Python has, maps them away: a
# domain with one would become somebody else's (UTS 46, section 7).
_DEVIATIONS = frozenset("ßς\u200c\u200d")


class Verbs:
    """How commands are spelled: RFC 5321 takes any letter case."""

    __slots__ = ("data", "mail", "rcpt", "rset")

    def __init__(self, mail: str, rcpt: str, data: bytes, rset: bytes) -> None:
        self.mail = mail
        self.rcpt = rcpt
        self.data = data
        self.rset = rset


VERBS = Verbs("MAIL FROM:", "RCPT TO:", b"DATA\r\n", b"RSET\r\n")


class Envelope:
    """A transaction's commands, ready to write.

    *sender* and *recipients* are addresses as quoteaddr() takes them.
    *mail_options* and *rcpt_options* are ESMTP parameters such as
    ``"BODY=8BITMIME"``.  *utf8* says that the server is told SMTPUTF8 (RFC
    6531); without it a local part must be ASCII.  Domains go in ASCII always.

    Raises UnicodeEncodeError for a local part or an option that cannot be
    expressed, ValueError for what must not be: control characters, text around
    a path, a domain that is none.  *quote* stands in for quoteaddr().
    """

    __slots__ = ("mail", "rcpts", "verbs")

    def __init__(
        self,
        sender: str,
        recipients: "Iterable[str]",
        mail_options: "Sequence[str]" = (),
        rcpt_options: "Sequence[str]" = (),
        *,
        utf8: bool = False,
        verbs: Verbs = VERBS,
        quote: "Callable[[str], str] | None" = None,
    ) -> None:
        encoding = "utf-8" if utf8 else "ascii"
        mail, rcpt = _parameters(mail_options), _parameters(rcpt_options)
        self.verbs = verbs
        self.mail = command_line(f"{verbs.mail}{path(sender, quote)}{mail}", encoding)
        self.rcpts = [
            command_line(f"{verbs.rcpt}{path(recipient, quote)}{rcpt}", encoding)
            for recipient in recipients
        ]

    @property
    def flight(self) -> bytes:
        """MAIL, all RCPTs and DATA in one."""
        return b"".join((self.mail, *self.rcpts, self.verbs.data))

    @property
    def count(self) -> int:
        """How many recipients there are."""
        return len(self.rcpts)


class Flight:
    """An envelope whose commands are there in one only: *commands* are MAIL and the RCPTs."""

    __slots__ = ("count", "flight", "verbs")

    def __init__(self, commands: bytes, count: int, verbs: Verbs) -> None:
        self.flight = commands + verbs.data
        self.count = count
        self.verbs = verbs


def _parameters(options: "Sequence[str]") -> str:
    return " " + " ".join(options) if options else ""


def command_line(command: str, encoding: str = "ascii") -> bytes:
    """Return a command and its CRLF in bytes (RFC 5321, section 4.1.1).

    Raises ValueError if it holds a control character as it would be written,
    UnicodeEncodeError if the encoding cannot express it.
    """
    line = command.encode(encoding)
    if not command.isprintable() and _CONTROL.search(line):
        raise control_character_error(command, command)
    return line + b"\r\n"


def control_character_error(command: str, shown: str) -> ValueError:
    """Return the error for a command with a control character, as it may be shown."""
    kind = "newline" if "\r" in command or "\n" in command else "control"
    escaped = re.sub("[\x00-\x1f\x7f]", lambda match: ascii(match[0])[1:-1], shown)
    return ValueError(f"command and arguments contain prohibited {kind} characters: {escaped}")


def quoteaddr(addrstring: "str | list[str]") -> str:
    """Return an address as one path in angle brackets.

    *addrstring* is what email.utils.parseaddr() takes: ``a@example.org``,
    ``Ann <a@example.org>``, or a path such as ``<>``.  What parseaddr() can
    make nothing of is put in brackets as it is.  A list of one address is that
    address.

    Raises ValueError for text that would end the path and go on, as ESMTP
    parameters, after it.  RFC 5321, section 4.1.2.
    """
    if isinstance(addrstring, list):  # parseaddr() takes a list of one, and so do programs
        if len(addrstring) != 1:
            raise ValueError(f"address is a list, and not of one address: {addrstring!r}")
        addrstring = addrstring[0]
    if _PLAIN.fullmatch(addrstring):
        return "<" + addrstring + ">"  # not formatted: members of enumerations show names
    displayname, address = _parsed(addrstring)
    if (displayname, address) == ("", ""):
        address = addrstring.strip()
        if not address.startswith("<"):
            address = addrstring
        elif address.endswith(">"):
            address = address[1:-1]
    if not re.fullmatch(_INSIDE, address) or re.search(_PARAMETER, re.sub(_QUOTED, "", address)):
        raise ValueError(f"address is not one path (RFC 5321, section 4.1.2): {addrstring!r}")
    return f"<{address}>"


def _parsed(addrstring: str) -> "tuple[str, str]":
    """Return the name and the address in a text, as email.utils.parseaddr() does.

    Raises ValueError for comments or groups that nest deeper than it can go.
    """
    try:
        return parseaddr(without_cr(addrstring))
    except RecursionError:
        shown = addrstring if len(addrstring) < 80 else addrstring[:80] + "..."
        raise ValueError(f"address nests too deep (RFC 5322, section 3.2.2): {shown!r}") from None


def without_cr(text: str) -> str:
    """Return a text with each newline as LF: to email.utils a CR ends quotes and comments."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def address_only(addrstring: str) -> str:
    """Return an address without name and brackets, as VRFY and EXPN take it."""
    displayname, address = _parsed(addrstring)
    return addrstring if (displayname, address) == ("", "") else address


def path(address: str, quote: "Callable[[str], str] | None" = None) -> str:
    """Return an address as a path, its domain in ASCII (RFC 5321, section 4.1.2)."""
    if quote is None and _PLAIN.fullmatch(address):
        return "<" + address + ">"
    quoted = (quote or quoteaddr)(address)
    return quoted if quoted.isascii() else f"<{ascii_domain(quoted[1:-1])}>"


def ascii_domain(address: str) -> str:
    """Return an address with its domain in ASCII (IDNA, RFC 5890).

    Raises ValueError for a domain that has no such form.
    """
    local_part, at, domain = address.rpartition("@")
    if not at or domain.isascii():
        return address
    try:
        labels = [_a_label(label) for label in re.split("[.\u3002\uff0e\uff61]", domain)]
    except UnicodeError as error:
        raise ValueError(f"domain has no ASCII form (RFC 5890): {domain!r}: {error}") from None
    return local_part + at + ".".join(labels)


def needs_smtputf8(addresses: "Iterable[str]") -> bool:
    """Say whether a local part is not ASCII: then SMTPUTF8 is needed (RFC 6531)."""
    return any(
        not (address.rpartition("@")[0] or address).isascii()
        for address in addresses
        if not address.isascii()
    )


def _a_label(label: str) -> str:
    if label.isascii():
        return label
    if len(label) > 63:
        raise UnicodeError("a label is longer than 63 characters")
    import unicodedata

    lowered = unicodedata.normalize("NFKC", label.lower())
    if _DEVIATIONS.isdisjoint(lowered):
        a_label = label.encode("idna").decode("ascii")
    else:
        a_label = "xn--" + lowered.encode("punycode").decode("ascii")
    # Normalisation makes ASCII of look-alikes: brackets, spaces, dots.
    if not re.fullmatch("[A-Za-z0-9-]{1,63}", a_label):
        raise UnicodeError(f"{a_label!r} is not up to 63 letters, digits and hyphens")
    return a_label
