"""From an email.message.Message to an envelope's addresses and to bytes."""

import copy
from email.policy import Compat32
from email.utils import formataddr, getaddresses

from . import codec
from .envelope import ascii_domain, needs_smtputf8, without_cr
from .serializer import header_of, serialize_edited

TYPE_CHECKING = False
if TYPE_CHECKING:
    from email.message import Message
    from typing import Any

    from .fields import Header
    from .serializer import Fields

    AnyMessage = Message[Any, Any]

__all__ = ["envelope_addresses", "header_of", "wire_form"]

_NOT_SENT = ("bcc", "resent-bcc")
_ADDRESS_FIELDS = ("from", "sender", "reply-to", "to", "cc")


def envelope_addresses(
    message: "AnyMessage",
    from_addr: "str | None",
    to_addrs: "str | list[str] | None",
    header: "Header | None" = None,
) -> "tuple[str, str | list[str]]":
    """Return the sender and the recipients, from the header where they are None.

    The fields are those of RFC 5322, section 3.6.2 and 3.6.3, or of its one
    block of ``Resent-`` fields (3.6.6) if there is one: Sender before From; To,
    Bcc and Cc.

    *header* is what header_of() gave for the message.

    Raises ValueError if there are several ``Resent-`` blocks, for nothing says
    which of them is the last, or no sender.
    """
    resent: list[Any] = []
    if header is None or "resent-date" in header.values:
        resent = message.get_all("Resent-Date", [])
    if len(resent) > 1:
        raise ValueError("message has more than one 'Resent-' header block")
    prefix = "Resent-" if resent else ""
    addresses = _Addresses(message, header)
    if from_addr is None:
        senders = addresses.of(prefix + ("Sender" if addresses.has(prefix + "Sender") else "From"))
        if not senders:
            raise ValueError(f"message has no {prefix}Sender and no {prefix}From field")
        from_addr = senders[0]
    if to_addrs is None:
        to_addrs = addresses.of(prefix + "To", prefix + "Bcc", prefix + "Cc")
    return from_addr, to_addrs


class _Addresses:
    """The addresses in a message's fields."""

    __slots__ = ("_decodes", "_message", "_values")

    def __init__(self, message: "AnyMessage", header: "Header | None") -> None:
        self._message = message
        self._values = None if header is None else header.values
        #: Whether encoded words are decoded when a field is asked for, which may fail.
        self._decodes = header is not None and type(message.policy) is not Compat32

    def has(self, name: str) -> bool:
        """Say whether there is such a field."""
        if self._values is None:
            return self._message[name] is not None
        return self._values.get(name.lower()) is not None

    def of(self, *names: str) -> "list[str]":
        """Return the addresses of fields, in order; those that are not there have none."""
        found = self._plain(names)
        if found is None:
            fields = [self._message[name] for name in names]
            pairs = _pairs([str(field) for field in fields if field is not None])
            found = [address for _, address in pairs]
        return found

    def _plain(self, names: "tuple[str, ...]") -> "list[str] | None":
        """Return them if they can be read off the fields as they stand."""
        if self._values is None:
            return None
        found = []
        for name in names:
            value = self._values.get(name.lower())
            if value is not None:
                if self._decodes and type(value) is str and "=?" in value:
                    return None
                addresses = codec.plain_addresses(value)
                if addresses is None:
                    return None
                found += addresses
        return found


def _pairs(fields: "list[str]") -> "list[tuple[str, str]]":
    """Return names and addresses, as email.utils.getaddresses() does; see envelope.without_cr()."""
    try:
        return getaddresses([without_cr(field) for field in fields])
    except RecursionError:
        raise ValueError("an address field nests too deep (RFC 5322, section 3.2.2)") from None


def wire_form(
    message: "AnyMessage",
    header: "Header | None" = None,
    *,
    utf8: bool = False,
    seven_bit: bool = False,
) -> bytes:
    """Return a message as it is sent: CRLF newlines, no Bcc and no Resent-Bcc field.

    *header* is what header_of() gave for the message.  With *utf8* the header
    is written in UTF-8 (RFC 6532).  With *seven_bit* parts in 8bit get another
    transfer encoding, for a server without 8BITMIME (RFC 6152).  The message
    itself is not changed.  Raises what email.generator.BytesGenerator does.
    """

    if header is None:
        message = _without_bcc(message)
        if not utf8:
            _write_domains_in_ascii(message)
        return serialize_edited(message, None, None, utf8=utf8, seven_bit=seven_bit)

    def edit(fields: "Fields") -> "Fields":
        kept = [field for field in fields if field[0].lower() not in _NOT_SENT]
        return kept if utf8 else [_changed(message, *field) for field in kept]

    stays = header.is_ascii and header.values.keys().isdisjoint(_NOT_SENT)
    return serialize_edited(
        message, header, None if stays else edit, utf8=utf8, seven_bit=seven_bit
    )


def _without_bcc(message: "AnyMessage") -> "AnyMessage":
    """Return a copy of a message of whatever class, made and changed by its own methods."""
    outgoing = copy.copy(message)
    for name in _NOT_SENT:
        del outgoing[name]
    return outgoing


def _write_domains_in_ascii(outgoing: "AnyMessage") -> None:
    """Do what _changed() does, by a message's own methods."""
    fields = list(outgoing.raw_items())
    written = [_in_ascii(name, value) for name, value in fields]
    if any(text is not None for text in written):
        for name, _ in fields:
            del outgoing[name]
        for (name, value), text in zip(fields, written, strict=True):
            if text is None:
                outgoing.set_raw(name, value)
            else:
                outgoing[name] = text


def _changed(message: "AnyMessage", name: str, value: "Any") -> "tuple[str, Any]":
    """Return a field with its domains in ASCII, so that no UTF-8 header is needed."""
    written = _in_ascii(name, value)
    return (name, value) if written is None else message.policy.header_store_parse(name, written)


def _in_ascii(name: str, value: "Any") -> "str | None":
    """Return an address field with its domains in ASCII, or None if it is to stay as it is."""
    if name.lower().removeprefix("resent-") not in _ADDRESS_FIELDS:
        return None
    text = str(value)
    if text.isascii():
        return None
    try:
        pairs = _pairs([text])
    except ValueError:
        return None  # what nobody can read is left alone
    addresses = [address for _, address in pairs]
    if needs_smtputf8(addresses) or all(address.isascii() for address in addresses):
        return None
    try:
        return ", ".join([formataddr((shown, ascii_domain(address))) for shown, address in pairs])
    except ValueError:
        return None  # no address, but a text that looks like one, such as bytes of another charset
