"""From an email.message.Message to an envelope's addresses and to bytes."""

import copy
import io
from email.generator import BytesGenerator
from email.utils import formataddr, getaddresses

from .envelope import ascii_domain, needs_smtputf8

TYPE_CHECKING = False
if TYPE_CHECKING:
    from email.message import Message
    from typing import Any

    AnyMessage = Message[Any, Any]

_ADDRESS_FIELDS = ("from", "sender", "reply-to", "to", "cc")


def envelope_addresses(
    message: "AnyMessage", from_addr: "str | None", to_addrs: "str | list[str] | None"
) -> "tuple[str, str | list[str]]":
    """Return the sender and the recipients, from the header where they are None.

    The fields are those of RFC 5322, section 3.6.2 and 3.6.3, or of its one
    block of ``Resent-`` fields (3.6.6) if there is one: Sender before From; To,
    Bcc and Cc.

    Raises ValueError if there are several ``Resent-`` blocks, for nothing says
    which of them is the last, or no sender.
    """
    resent = message.get_all("Resent-Date", [])
    if len(resent) > 1:
        raise ValueError("message has more than one 'Resent-' header block")
    prefix = "Resent-" if resent else ""
    if from_addr is None:
        sender = message[prefix + "Sender"]
        if sender is None:
            sender = message[prefix + "From"]
        senders = [] if sender is None else getaddresses([sender])
        if not senders:
            raise ValueError(f"message has no {prefix}Sender and no {prefix}From field")
        from_addr = senders[0][1]
    if to_addrs is None:
        fields = (message[prefix + name] for name in ("To", "Bcc", "Cc"))
        to_addrs = [pair[1] for pair in getaddresses([f for f in fields if f is not None])]
    return from_addr, to_addrs


def serialize(message: "AnyMessage", *, utf8: bool = False, seven_bit: bool = False) -> bytes:
    """Return a message as it is sent: CRLF newlines, no Bcc and no Resent-Bcc field.

    With *utf8* the header is written in UTF-8 (RFC 6532).  With *seven_bit*
    parts in 8bit get another transfer encoding, for a server without 8BITMIME
    (RFC 6152).  The message itself is not changed.  Raises what
    email.generator.BytesGenerator does.
    """
    outgoing = copy.copy(message)
    del outgoing["Bcc"]  # this also gives the copy a field list of its own
    del outgoing["Resent-Bcc"]
    changes: dict[str, Any] = {"cte_type": "7bit"} if seven_bit else {}
    if utf8:
        changes["utf8"] = True
    else:
        _write_domains_in_ascii(outgoing)
    policy = message.policy.clone(**changes) if changes else None
    with io.BytesIO() as buffer:
        BytesGenerator(buffer, policy=policy).flatten(outgoing, linesep="\r\n")
        return buffer.getvalue()


def _write_domains_in_ascii(outgoing: "AnyMessage") -> None:
    """Give address fields their domains' ASCII form, so that no UTF-8 header is needed."""
    fields = [(name, value, _in_ascii(name, value)) for name, value in outgoing.raw_items()]
    if any(written is not None for _, _, written in fields):
        for name, _, _ in fields:
            del outgoing[name]
        for name, value, written in fields:
            if written is None:
                outgoing.set_raw(name, value)
            else:
                outgoing[name] = written


def _in_ascii(name: str, value: "Any") -> "str | None":
    """Return an address field with its domains in ASCII, or None if it is to stay as it is."""
    text = str(value)
    if text.isascii() or name.lower().removeprefix("resent-") not in _ADDRESS_FIELDS:
        return None
    pairs = getaddresses([text])
    addresses = [address for _, address in pairs]
    if needs_smtputf8(addresses) or all(address.isascii() for address in addresses):
        return None
    try:
        return ", ".join([formataddr((shown, ascii_domain(address))) for shown, address in pairs])
    except ValueError:
        return None  # no address, but a text that looks like one, such as bytes of another charset
