"""A message for a Mailer: what is handed in, and what a server gets of it."""

import os
from email.message import Message as EmailMessage

from . import codec
from .envelope import VERBS, Envelope, command_line, needs_smtputf8, path
from .errors import SMTPNotSupportedError
from .message import envelope_addresses, serialize
from .options import NO_OPTIONS, Recipient, check_supported, parameters_of, size_limit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from .message import AnyMessage
    from .operations import Buffer
    from .options import Options

    Content = Any  # str, bytes-like, os.PathLike, or an open file


class Message:
    """A message and its envelope.

    *sender* is the reverse-path's address, ``""`` for none.  *recipients* is
    one address or several, each a str or a Recipient.  *content* is the
    message, header and body: text, bytes, an ``os.PathLike`` that names a file,
    or an open file, either of which is read when the message's turn comes.
    Newlines of any kind are sent as CRLF; text outside ASCII in UTF-8.

    *id* is the caller's own name for the message; Delivery.id gives it back.
    *options* says what the server is asked for besides: see Options.

    Raises TypeError for a content of another kind.
    """

    __slots__ = ("content", "id", "options", "recipients", "sender")

    def __init__(
        self,
        sender: str,
        recipients: "str | Recipient | Iterable[str | Recipient]",
        content: "Content",
        *,
        id: object = None,
        options: "Options | None" = None,
    ) -> None:
        if isinstance(recipients, (str, Recipient)):
            recipients = (recipients,)
        elif not isinstance(recipients, (list, tuple)):
            recipients = tuple(recipients)
        if not isinstance(content, (bytes, str)):
            _check_kind(content)
        self.sender = sender
        self.recipients: Sequence[str | Recipient] = recipients
        self.content = content
        self.id = id
        self.options = options

    def __repr__(self) -> str:
        name = "" if self.id is None else f", id={self.id!r}"
        return f"<Message from {self.sender!r} to {len(self.recipients)} recipient(s){name}>"

    def octets(self, utf8: bool, seven_bit: bool) -> "Buffer | str":
        """Return the content; a file is read once, and then kept for another attempt."""
        content = self.content
        if isinstance(content, os.PathLike):
            with open(content, "rb") as file:
                return file.read()
        if hasattr(content, "read"):
            content = self.content = content.read()
        if isinstance(content, str) and not content.isascii():
            content = self.content = content.encode("utf-8")
        return content  # type: ignore[no-any-return]


class _Serialized(Message):
    """An email.message.Message with its envelope."""

    __slots__ = ()

    def __init__(self, message: "AnyMessage") -> None:
        sender, recipients = envelope_addresses(message, None, None)
        super().__init__(sender, recipients, message)

    def octets(self, utf8: bool, seven_bit: bool) -> "Buffer | str":
        return serialize(self.content, utf8=utf8, seven_bit=seven_bit)


def outgoing(message: "Message | AnyMessage") -> Message:
    """Return what was handed in as a Message.

    Raises TypeError for anything but a Message and an email.message.Message,
    ValueError for one that does not tell its sender.
    """
    if isinstance(message, Message):
        return message
    if isinstance(message, EmailMessage):
        return _Serialized(message)
    raise TypeError(
        f"a message must be a fastsmtp.Message or an email.message.Message, not {message!r}"
    )


def _check_kind(content: "Content") -> None:
    if not (hasattr(content, "read") or isinstance(content, (os.PathLike, EmailMessage))):
        try:
            memoryview(content)
        except TypeError:
            raise TypeError(
                "content must be text, bytes, a path or an open file, "
                f"not {type(content).__name__}"
            ) from None


class Server:
    """What one server offers, as far as it bears on a message.

    *extensions* is what parse_extensions() made of its reply to EHLO.
    """

    __slots__ = (
        "chunked", "eight_bit", "extensions", "lmtp", "size", "size_limit", "smtputf8", "tls",
    )  # fmt: skip

    def __init__(
        self,
        extensions: "dict[str, str]",
        *,
        chunked: bool = False,
        lmtp: bool = False,
        tls: bool = False,
    ) -> None:
        self.extensions = extensions
        #: Whether each recipient has a reply of its own (RFC 2033).
        self.lmtp = lmtp
        self.eight_bit = "8bitmime" in extensions
        self.smtputf8 = "smtputf8" in extensions
        self.size = "size" in extensions
        self.size_limit = size_limit(extensions)
        #: Whether messages go by BDAT, as they are, and not by DATA.
        self.chunked = chunked
        #: Whether the session is under TLS, the server's certificate verified.
        self.tls = tls


def prepare(
    message: Message,
    recipients: "Sequence[str | Recipient]",
    options: "Options | None",
    server: Server,
) -> "tuple[Envelope, tuple[Buffer, ...], int]":
    """Return the envelope, the payload and the size in octets of what *server* is sent.

    *recipients* are those of this transaction, *options* the default ones.

    Raises SMTPNotSupportedError if the server cannot take the message: it is
    too large, or needs an extension that is not there; ValueError,
    UnicodeEncodeError or OSError for what cannot be sent to anybody.
    """
    options = message.options or options or NO_OPTIONS
    addresses = [to if isinstance(to, str) else to.address for to in recipients]
    if not addresses:
        raise ValueError("a message has at least one recipient (RFC 5321, section 3.3)")
    if options is not NO_OPTIONS or addresses != recipients:
        check_supported(options, recipients, server.extensions, tls=server.tls)
    utf8 = needs_smtputf8((message.sender, *addresses))
    if utf8 and not server.smtputf8:
        raise SMTPNotSupportedError("an address needs SMTPUTF8 (RFC 6531), which is not offered")
    content = message.octets(utf8, not server.eight_bit)
    size, payload, ascii_only = _payload(content, server.chunked)
    if server.size_limit is not None and size > server.size_limit:
        raise SMTPNotSupportedError(
            f"message of {size} octets; the server takes {server.size_limit} at most "
            "(SIZE, RFC 1870)"
        )
    parameters = [f"SIZE={size}"] if server.size else []
    if not ascii_only:
        if not server.eight_bit:
            raise SMTPNotSupportedError(
                "message has octets outside ASCII, and 8BITMIME (RFC 6152) is not offered"
            )
        parameters.append("BODY=8BITMIME")
        utf8 = utf8 or (server.smtputf8 and _has_utf8_header(payload[0]))
    if utf8:
        parameters.append("SMTPUTF8")
    parameters += options.mail_parameters
    envelope = Envelope(message.sender, addresses, parameters, options.rcpt_parameters, utf8=utf8)
    for position, to in enumerate(recipients):
        if not isinstance(to, str):
            own = " ".join([f"{VERBS.rcpt}{path(to.address)}", *parameters_of(to, options)])
            envelope.rcpts[position] = command_line(own, "utf-8" if utf8 else "ascii")
    return envelope, payload, size


def _payload(
    content: "Buffer | str", chunked: bool
) -> "tuple[int, tuple[Buffer, ...], bool]":
    """Return a message's size, the buffers to send, and whether it is ASCII only."""
    if not chunked:
        size, payload = codec.data_payload(content, True)
    else:
        octets = codec.normalize_newlines(content)
        complete = octets[-2:] == b"\r\n"
        payload = (octets,) if complete else (octets, b"\r\n")
        size = len(octets) + (0 if complete else 2)
    data = payload[0]
    return size, payload, (data if isinstance(data, bytes) else bytes(data)).isascii()


def _has_utf8_header(data: "Buffer") -> bool:
    """Say whether a header is internationalised (RFC 6532)."""
    header = bytes(data).partition(b"\r\n\r\n")[0]
    if header.isascii():
        return False
    try:
        header.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
