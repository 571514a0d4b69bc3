"""Mail merge: a message with {{fields}}, compiled once, written for each recipient by joining."""

import copy
import random
import re
import sys
from email.errors import HeaderParseError
from email.header import decode_header
from email.message import Message as EmailMessage
from email.utils import getaddresses
from html import escape

from .mailboxes import Addresses, quoted_string, read_addresses
from .outgoing import Message
from .places import (
    Base64,
    Place,
    Structured,
    Unstructured,
    check_characters,
    mismatch,
    quoted_printable_places,
    split_fields,
    text_of,
)
from .serializer import serialize

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from decimal import Decimal
    from email.policy import Policy
    from typing import Any, NoReturn

    from .message import AnyMessage
    from .options import Options
    from .places import Values

    Value = str | int | float | Decimal
    Pieces = list[bytes | Place]

_ADDRESSES = {
    "from", "sender", "reply-to", "to", "cc", "bcc",
    "disposition-notification-to", "return-receipt-to", "mail-followup-to", "mail-reply-to",
}  # fmt: skip
_HIDDEN = {"bcc", "resent-bcc"}
_STRUCTURED = {
    "date", "resent-date", "message-id", "resent-message-id", "in-reply-to", "references",
    "supersedes", "return-path", "received", "mime-version",
}  # fmt: skip
#: Fields that people read: a word too long for a line need not stay as it is.
_READ = {"subject", "comments", "content-description"}
#: How the types of texts end in which "<" and "&" mean something.
_MARKUP = ("html", "xml")
#: What no line of quoted-printable has: "=" and not two digits after it.
_SAFE_BOUNDARY = re.compile("=[^0-9A-F]|=.[^0-9A-F]")
# Quoted strings go by as they are: no encoded word is in one (RFC 2047, section 5, rule 3).
_WORDS = r"=\?[^?\s]+\?[BbQq]\?[^?\s]*\?="
_ENCODED = re.compile(rf'("(?:[^"\\]|\\.)*")|{_WORDS}(?:\s+{_WORDS})*', re.DOTALL)
_ENCODED_ANYWHERE = re.compile(rf"{_WORDS}(?:\s+{_WORDS})*")


class Template:
    """A message with ``{{name}}`` in its header and its texts, for render() to fill in.

    *message* is an email.message.Message of any policy.  It is not changed, and
    what becomes of it later does not matter.  Fields may stand in header fields,
    display names, addresses and text parts that are no attachments; a name is
    an ASCII letter or underscore, and letters, digits and underscores.  Bcc is
    read for its addresses and not written.

    A template does not change: any number of threads may use one.

    Raises TypeError for what is no message; ValueError for ``{{`` that begins
    no field, a field where none can stand (in a group, a comment, a boundary,
    a signed part), no sender or no recipient, a header field that cannot be
    read.  See docs/mail-merge.md.
    """

    __slots__ = (
        "_addressed", "_markup", "_markup_names", "_places", "_recipients", "_sender", "_wire",
        "fields",
    )  # fmt: skip
    #: The names of the fields.
    fields: "frozenset[str]"
    # What is fixed, with b"" where places write, and the places by their positions in it.
    _wire: "list[bytes]"
    _addressed: "list[tuple[int, Addresses]]"  # those that the envelope is made of
    _places: "list[tuple[int, Callable[[Values], bytes]]]"
    _markup: "list[tuple[int, Callable[[Values], bytes]]]"
    _markup_names: "list[str]"
    # Addresses that are always the same, or the place that tells them.
    _sender: "Addresses | list[str]"
    _recipients: "list[Addresses | list[str]]"

    def __init__(self, message: "AnyMessage") -> None:
        if not isinstance(message, EmailMessage):
            raise TypeError(f"a template is an email.message.Message, not {message!r}")
        addressed: dict[str, Addresses | list[str]] = {}
        pieces = _joined(_part(message, _sending_policy(message.policy), addressed))
        sender, recipients = _envelope(message, addressed)
        of_envelope = [source for source in (sender, *recipients) if isinstance(source, Addresses)]
        places = [(at, piece) for at, piece in enumerate(pieces) if isinstance(piece, Place)]
        in_envelope = [
            (at, place)
            for at, place in places
            if isinstance(place, Addresses) and place in of_envelope
        ]
        others = [(at, place) for at, place in places if place not in of_envelope]
        marked = {name for _, place in others if place.markup for name in place.names}
        self._set(
            fields=frozenset([name for _, place in places for name in place.names]),
            _wire=[b"" if isinstance(piece, Place) else piece for piece in pieces],
            _addressed=in_envelope,
            _places=[(at, place.write) for at, place in others if not place.markup],
            _markup=[(at, place.write) for at, place in others if place.markup],
            _markup_names=sorted(marked),
            _sender=sender,
            _recipients=recipients,
        )

    def _set(self, **values: object) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> "NoReturn":
        raise AttributeError("a Template cannot be changed: make another")

    def __delattr__(self, name: str) -> "NoReturn":
        raise AttributeError("a Template cannot be changed: make another")

    def __repr__(self) -> str:
        return f"<Template of {', '.join(sorted(self.fields)) or 'no fields'}>"

    def render(
        self,
        fields: "Mapping[str, Value]",
        *,
        id: object = None,
        options: "Options | None" = None,
    ) -> Message:
        """Return the message for one recipient, ready for a Mailer.

        *fields* has a value for each of the template's fields and no other:
        str, or int, float or Decimal, which are written as str() has them.
        *id* and *options* are the Message's.

        Raises ValueError for missing and unknown fields and for a value that
        may not stand where its field does, such as a line break in a header;
        TypeError for a value of another type.
        """
        values = self._values(fields)
        wire = self._wire.copy()
        told = {}
        for at, addresses in self._addressed:
            wire[at], told[addresses] = addresses.write_and_tell(values)
        for at, write in self._places:
            wire[at] = write(values)
        if self._markup:
            escaped = {name: escape(values[name]) for name in self._markup_names}
            for at, write in self._markup:
                wire[at] = write(escaped)
        sender = self._sender
        recipients: list[str] = []
        for source in self._recipients:
            recipients += source if isinstance(source, list) else told[source]
        return Message(
            sender[0] if isinstance(sender, list) else told[sender][0],
            recipients,
            b"".join(wire),
            id=id,
            options=options,
        )

    def _values(self, fields: "Mapping[str, Value]") -> "Values":
        given = fields.keys()
        if given != self.fields and set(given) != self.fields:  # sqlite3.Row has a list of them
            raise mismatch(given, self.fields)
        values = {}
        for name in self.fields:
            value = fields[name]
            if type(value) is not str:
                value = text_of(name, value)
            if not value.isascii():
                check_characters(name, value)
            if "\r" in value:
                value = value.replace("\r\n", "\n")
            values[name] = value
        return values


# -- the envelope -----------------------------------------------------------------


def _envelope(
    message: "AnyMessage", addressed: "dict[str, Addresses | list[str]]"
) -> "tuple[Addresses | list[str], list[Addresses | list[str]]]":
    """Return where sender and recipients are, as message.envelope_addresses() has it."""
    blocks = len(message.get_all("Resent-Date", []))
    if blocks > 1:
        raise ValueError("the template has more than one 'Resent-' header block")
    prefix = "Resent-" if blocks else ""
    of = {name: addressed.get((prefix + name).lower()) for name in ("From", "To", "Bcc", "Cc")}
    sender = addressed.get((prefix + "Sender").lower(), of["From"])
    if not sender:
        raise ValueError(
            f"the template has no sender: no address in {prefix}From or {prefix}Sender"
        )
    recipients = [field for field in (of["To"], of["Bcc"], of["Cc"]) if field]
    if not recipients:
        raise ValueError(
            f"the template has no recipient: no address in {prefix}To, {prefix}Cc or {prefix}Bcc"
        )
    return sender, recipients


# -- parts ------------------------------------------------------------------------


def _sending_policy(policy: "Policy[Any]") -> "Policy[Any]":
    """Return the policy to serialise by: ASCII, which every server takes."""
    changes: dict[str, Any] = {"cte_type": "7bit"}
    if hasattr(policy, "utf8"):
        changes["utf8"] = False
    return policy.clone(**changes)


def _joined(pieces: "Pieces") -> "Pieces":
    joined: Pieces = []
    fixed: list[bytes] = []
    for piece in pieces:
        if isinstance(piece, bytes):
            fixed.append(piece)
        else:
            joined += (b"".join(fixed), piece)
            fixed = []
    joined.append(b"".join(fixed))
    return joined


def _part(
    part: "AnyMessage",
    policy: "Policy[Any]",
    addressed: "dict[str, Addresses | list[str]] | None" = None,
) -> "Pieces":
    """Return a part as it is written.

    *addressed* is given for the message itself: what its address fields hold,
    to be filled in.  Raises ValueError for what cannot be read.
    """
    try:
        return _written(part, policy, addressed)
    except ValueError:
        raise
    except Exception:
        _check_fields(part)
        raise


def _written(
    part: "AnyMessage",
    policy: "Policy[Any]",
    addressed: "dict[str, Addresses | list[str]] | None",
) -> "Pieces":
    shell = copy.copy(part)
    del shell[""]  # this also gives the copy a field list of its own
    text = _text(part)
    boundary = None
    inner: Pieces = []
    if text:
        inner = _write_text(shell, text, addressed is not None)
    elif part.get_content_type() == "multipart/signed":
        _check_unsigned(part, policy)
    elif part.is_multipart() and part.get_content_maintype() == "multipart":
        inner, boundary = _write_multipart(shell, policy)
    header, rest = _header(shell, policy, addressed)
    if boundary is None:
        return [*header, *inner, rest]
    opening, closing = f"--{boundary}\r\n".encode(), f"\r\n--{boundary}--\r\n".encode()
    preamble, _, epilogue = rest.partition(opening + closing)
    return [*header, preamble + opening, *inner, closing + epilogue]


def _check_fields(part: "AnyMessage") -> None:
    """Raise ValueError for a header field that the parser of the part's policy fails at.

    It has errors of many kinds for them: for ``Cc: <a@[b`` an AttributeError.
    """
    for name, raw in part.raw_items():
        if _is_address_field(name) and "{{" in str(raw):
            continue  # read by a parser of our own
        try:
            part.policy.header_fetch_parse(name, raw)
        except Exception:
            raise _unreadable(name, raw) from None


def _unreadable(name: str, value: object) -> ValueError:
    return ValueError(f"the {name} field cannot be read (RFC 5322, section 3.6): {str(value)!r}")


def _check_unsigned(part: "AnyMessage", policy: "Policy[Any]") -> None:
    children: Any = part.get_payload() if part.is_multipart() else ()
    for child in children:
        if any(isinstance(piece, Place) for piece in _part(child, policy)):
            raise ValueError("a field in a multipart/signed part would break the signature")


def _write_multipart(shell: "AnyMessage", policy: "Policy[Any]") -> "tuple[Pieces, str]":
    """Return what stands between the first boundary and the last one, and the boundary."""
    payload: Any = shell.get_payload()
    children = [_part(child, policy) for child in payload]
    boundary = shell.get_boundary()
    varies = any(isinstance(piece, Place) for child in children for piece in child)
    # A value must not be able to end the part.  Quoted-printable keeps "=" from it.
    if not boundary or (varies and not _SAFE_BOUNDARY.search(boundary)):
        boundary = f"{'=' * 15}{random.randrange(sys.maxsize):019d}=="
        shell.set_boundary(boundary)
    shell.set_payload([])
    inner: Pieces = []
    for child in children:
        inner += [f"\r\n--{boundary}\r\n".encode(), *child] if inner else child
    return inner, boundary


def _text(part: "AnyMessage") -> "list[str] | None":
    """Return the pieces of a text that has fields, its line breaks LF."""
    if part.get_content_maintype() != "text" or part.is_multipart():
        return None
    if part.get_content_disposition() == "attachment":
        return None
    octets: Any = part.get_payload(decode=True) or b""
    charset = part.get_content_charset() or "us-ascii"
    try:
        # Where nothing else is said it should be ASCII, and often is UTF-8.
        text = octets.decode("utf-8" if charset == "us-ascii" else charset)
    except (LookupError, UnicodeError) as error:
        if b"{{" not in octets:
            return None
        raise ValueError(
            f"a {part.get_content_type()} part cannot be decoded from {charset}: {error}"
        ) from None
    pieces = split_fields(text.replace("\r\n", "\n"), f"a {part.get_content_type()} part")
    return pieces if len(pieces) > 1 else None


def _write_text(shell: "AnyMessage", pieces: "list[str]", alone: bool) -> "Pieces":
    """Return a text's body, and put into the header how it is written."""
    markup = shell.get_content_subtype().endswith(_MARKUP)
    base64 = str(shell.get("Content-Transfer-Encoding", "")).strip().lower() == "base64"
    if "Content-Type" in shell:
        shell.set_param("charset", "utf-8", replace=True)
    else:
        shell["Content-Type"] = 'text/plain; charset="utf-8"'
    encoding = "base64" if base64 else "quoted-printable"
    if "Content-Transfer-Encoding" in shell:
        shell.replace_header("Content-Transfer-Encoding", encoding)
    else:
        shell["Content-Transfer-Encoding"] = encoding
    if alone and "MIME-Version" not in shell:
        shell["MIME-Version"] = "1.0"
    shell.set_payload("")
    if base64:
        return [Base64(pieces, markup=markup)]
    return quoted_printable_places(pieces, markup=markup)


# -- headers ----------------------------------------------------------------------


def _header(
    shell: "AnyMessage",
    policy: "Policy[Any]",
    addressed: "dict[str, Addresses | list[str]] | None",
) -> "tuple[Pieces, bytes]":
    """Return a part's header, with its last empty line, and what the serializer wrote after it."""
    rows = list(shell.raw_items())
    places = [_place(shell, name, raw, addressed is not None) for name, raw in rows]
    if addressed is not None:
        _note_addresses(shell.policy, rows, places, addressed)
    for name, _ in rows:
        del shell[name]
    pieces: Pieces = []
    shown = []
    for (name, raw), place in zip(rows, places, strict=True):
        lower = name.lower()
        if addressed is None or lower not in _HIDDEN:
            # The serializer reads Content-Type; of the others only the line is of interest.
            shell.set_raw(name, raw if place is None or lower == "content-type" else "x")
            shown.append(place)
        elif place:
            pieces.append(place)  # for its addresses
    lines, rest = _serialized(shell, policy)
    # There may be one line more: the serializer adds a Content-Transfer-Encoding.
    shown += [None] * (len(lines) - len(shown))
    pieces += [place or line for place, line in zip(shown, lines, strict=True)]
    return [*pieces, b"\r\n"], rest


def _serialized(part: "AnyMessage", policy: "Policy[Any]") -> "tuple[list[bytes], bytes]":
    """Return the fields of a part's header as they are written, and its body."""
    try:
        written = serialize(part, policy=policy, mangle_from_=False)
    except (LookupError, UnicodeError):
        # A text that is not in its charset has no form but its own octets.
        written = serialize(part, policy=policy.clone(cte_type="8bit"), mangle_from_=False)
    head, _, body = (b"\r\n" + written).partition(b"\r\n\r\n")
    return [line + b"\r\n" for line in re.split(rb"\r\n(?![ \t])", head)[1:]], body


def _note_addresses(
    policy: "Policy[Any]",
    rows: "list[tuple[str, Any]]",
    places: "list[Place | None]",
    addressed: "dict[str, Addresses | list[str]]",
) -> None:
    """Note the addresses of the first field of each name, as the envelope has it."""
    for (name, raw), place in zip(rows, places, strict=True):
        if _is_address_field(name):
            fixed = _fixed_addresses(policy, name, raw)
            addressed.setdefault(name.lower(), place if isinstance(place, Addresses) else fixed)


def _is_address_field(name: str) -> bool:
    return name.lower().removeprefix("resent-") in _ADDRESSES


def _fixed_addresses(policy: "Policy[Any]", name: str, raw: "Any") -> "list[str]":
    text = str(policy.header_fetch_parse(name, raw))
    found = [address for _, address in getaddresses([text]) if address]
    if not found and re.search(r"[^\s,]", text) and ":" not in text:
        raise _unreadable(name, raw)  # it is no empty group either
    return found


def _place(shell: "AnyMessage", name: str, raw: "Any", top: bool) -> "Place | None":
    """Return the place that a header field is, or None if it is the serializer's to write."""
    text = _source(name, raw)
    lower = name.lower()
    hidden = top and lower in _HIDDEN
    if "{{" not in text:
        # The serializer has no form for an address outside ASCII.
        outside = (top and not text.isascii() and _is_address_field(name)) and not "".join(
            _fixed_addresses(shell.policy, name, raw)
        ).isascii()
        return read_addresses(name, text, hidden=hidden) if outside else None
    pieces = split_fields(text, f"the {name} field")
    if lower == "content-transfer-encoding" or (
        lower == "content-type" and shell.get_content_maintype() in ("multipart", "message")
    ):
        raise ValueError(f"{name}: a field cannot stand here, for it says how to read the message")
    if _is_address_field(name):
        return read_addresses(name, text, hidden=hidden)
    if lower in _STRUCTURED or (lower.startswith("content-") and lower != "content-description"):
        return Structured(name, pieces)
    return Unstructured(name, pieces, words=lower in _READ)


def _source(name: str, raw: "Any") -> str:
    """Return a field's text on one line, its encoded words decoded.

    In a field of addresses they become quoted strings, for there a comma in
    them is none.
    """
    addresses = _is_address_field(name)
    tree = getattr(raw, "_parse_tree", None)
    if tree is not None:
        # str() of such a field normalises its addresses, and fields in them are none.
        return str(tree) if addresses and not _has_encoded_word(tree) else str(raw)
    if not isinstance(raw, str):
        return str(raw)
    try:
        text = raw.encode("utf-8", "surrogateescape").decode()
    except UnicodeDecodeError as error:
        if "{{" in raw:
            raise ValueError(f"{name} is neither ASCII nor UTF-8: {error}") from None
        return ""
    text = re.sub("[\r\n]", "", text)
    if addresses:
        return _ENCODED.sub(lambda match: match[1] or quoted_string(_decoded(match[0])), text)
    if name.lower() in _STRUCTURED or name.lower().startswith("content-"):
        return text
    return _ENCODED_ANYWHERE.sub(lambda match: _decoded(match[0]), text)


def _has_encoded_word(token: "Any") -> bool:
    if token.token_type == "encoded-word":
        return True
    return isinstance(token, list) and any(_has_encoded_word(inner) for inner in token)


def _decoded(words: str) -> str:
    """Return encoded words' text, or the words themselves if they are none."""
    try:
        return "".join([
            part if isinstance(part, str) else part.decode((charset or "ascii").partition("*")[0])
            for part, charset in decode_header(words)
        ])  # fmt: skip
    except (LookupError, UnicodeError, HeaderParseError):
        return words
