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

_ORIGINATOR_AND_DESTINATION = ("From", "Sender", "Reply-To", "To", "Cc")


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
        if sender is None:
            raise ValueError(f"message has no {prefix}Sender and no {prefix}From field")
        from_addr = getaddresses([sender])[0][1]
    if to_addrs is None:
        fields = (message[prefix + name] for name in ("To", "Bcc", "Cc"))
        to_addrs = [pair[1] for pair in getaddresses([f for f in fields if f is not None])]
    return from_addr, to_addrs


def serialize(message: "AnyMessage", *, utf8: bool = False) -> bytes:
    """Return a message as it is sent: CRLF newlines, no Bcc and no Resent-Bcc field.

    With *utf8* the header is written in UTF-8 (RFC 6532).  The message itself
    is not changed.  Raises what email.generator.BytesGenerator does.
    """
    outgoing = copy.copy(message)
    del outgoing["Bcc"]  # this also gives the copy a field list of its own
    del outgoing["Resent-Bcc"]
    policy: Any = None
    if utf8:
        policy = message.policy.clone(utf8=True)  # type: ignore[call-arg]
    else:
        _write_domains_in_ascii(outgoing)
    with io.BytesIO() as buffer:
        BytesGenerator(buffer, policy=policy).flatten(outgoing, linesep="\r\n")
        return buffer.getvalue()


def _write_domains_in_ascii(outgoing: "AnyMessage") -> None:
    """Give address fields their domains' ASCII form, so that no UTF-8 header is needed."""
    for name in _ORIGINATOR_AND_DESTINATION:
        for field in (name, "Resent-" + name):
            value = outgoing[field]
            if value is None or str(value).isascii():
                continue
            pairs = getaddresses([str(value)])
            if any(not address.isascii() for _, address in pairs) and not needs_smtputf8(
                address for _, address in pairs
            ):
                written = [formataddr((shown, ascii_domain(address))) for shown, address in pairs]
                outgoing.replace_header(field, ", ".join(written))
