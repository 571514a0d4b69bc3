"""A message for a Mailer: what is handed in, and what a server gets of it."""

import os
from email.message import Message as EmailMessage

from . import codec
from .envelope import VERBS, Envelope, command_line, needs_smtputf8, path
from .errors import SMTPNotSupportedError
from .message import envelope_addresses, header_of, wire_form
from .options import NO_OPTIONS, Recipient, check_supported, parameters_of, size_limit
from .transactions import Transaction

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from .message import AnyMessage
    from .operations import Buffer
    from .options import Options

    AnyRecipients = Sequence[str | Recipient]


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
        content: "Any",
        *,
        id: object = None,
        options: "Options | None" = None,
    ) -> None:
        if isinstance(recipients, (str, Recipient)):
            recipients = (recipients,)
        if type(content) is not bytes:
            _check_kind(content)
        self.sender = sender
        # A list of our own: the caller may fill his anew before this is sent.
        self.recipients: AnyRecipients = list(recipients)
        self.content: Any = content
        self.id = id
        self.options = options

    def __repr__(self) -> str:
        name = "" if self.id is None else f", id={self.id!r}"
        return f"<Message from {self.sender!r} to {len(self.recipients)} recipient(s){name}>"

    def octets(self, seven_bit: bool) -> "Buffer | str":
        """Return the content, *seven_bit* if that can be chosen.

        What an open file gave is kept, for another attempt.
        """
        content = self.content
        if isinstance(content, str):
            if not content.isascii():
                content = self.content = content.encode("utf-8")
            return content  # type: ignore[no-any-return]
        if type(content) is not bytes:
            if isinstance(content, os.PathLike):
                with open(content, "rb") as file:
                    return file.read()
            if hasattr(content, "read"):
                self.content = content.read()
                return self.octets(seven_bit)
        return content  # type: ignore[no-any-return]

    @property
    def needs_smtputf8(self) -> bool:
        """Whether an address, and so the header, is internationalised (RFC 6531)."""
        return needs_smtputf8((self.sender, *addresses(self.recipients)))


class _Serialized(Message):
    """An email.message.Message with its envelope."""

    __slots__ = ()

    def __init__(self, message: "AnyMessage") -> None:
        sender, recipients = envelope_addresses(message, None, None, header_of(message))
        super().__init__(sender, recipients, b"")
        self.content = message

    def octets(self, seven_bit: bool) -> "Buffer | str":
        message = self.content
        return wire_form(message, header_of(message), utf8=self.needs_smtputf8, seven_bit=seven_bit)


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


def addresses(recipients: "AnyRecipients") -> "list[str]":
    """Return the recipients' addresses."""
    return [to if isinstance(to, str) else getattr(to, "address", repr(to)) for to in recipients]


def _check_kind(content: "Any") -> None:
    if not (isinstance(content, (str, os.PathLike)) or hasattr(content, "read")):
        try:
            memoryview(content)
        except TypeError:
            raise TypeError(
                f"content must be text, bytes, a path or an open file, not {type(content).__name__}"
            ) from None


class Server:
    """What one server offers, as far as it bears on a message.

    *extensions* is what parse_extensions() made of its reply to EHLO.
    """

    __slots__ = (
        "chunked", "eight_bit", "extensions", "lmtp", "pipelined", "size", "size_limit",
        "smtputf8", "tls",
    )  # fmt: skip

    def __init__(
        self,
        extensions: "dict[str, str]",
        *,
        pipelined: bool = False,
        chunked: bool = False,
        lmtp: bool = False,
        tls: bool = False,
    ) -> None:
        self.extensions = extensions
        self.eight_bit = "8bitmime" in extensions
        self.smtputf8 = "smtputf8" in extensions
        self.size = "size" in extensions
        self.size_limit = size_limit(extensions)
        #: Whether commands are sent together.
        self.pipelined = pipelined
        #: Whether messages go by BDAT, as they are, and not by DATA.
        self.chunked = chunked
        #: Whether each recipient has a reply of its own (RFC 2033).
        self.lmtp = lmtp
        #: Whether the session is under TLS, the server's certificate verified.
        self.tls = tls


def prepare(
    message: Message, recipients: "AnyRecipients", options: "Options | None", server: Server
) -> Transaction:
    """Return the transaction in which *server* gets a message.

    *recipients* are those of this transaction, *options* the default ones.

    Raises SMTPNotSupportedError if the server cannot take the message: it is
    too large, or needs an extension that is not there; ValueError,
    UnicodeEncodeError or OSError for what cannot be sent to anybody.
    """
    if not recipients:
        raise ValueError("a message has at least one recipient (RFC 5321, section 3.3)")
    options = message.options or options or NO_OPTIONS
    content = message.octets(not server.eight_bit)
    size, payload = _payload(content, server)
    # Text that octets() has left as text is ASCII.
    octets = b"" if isinstance(content, str) else payload[0]
    parameters, utf8 = _parameters(octets, size, server)
    rcpt_parameters = ""
    if options is not NO_OPTIONS:
        check_supported(options, (), server.extensions, tls=server.tls)
        parameters += "".join([" " + parameter for parameter in options.mail_parameters])
        rcpt_parameters = "".join([" " + parameter for parameter in options.rcpt_parameters])
    if server.pipelined:
        commands = codec.envelope_commands(message.sender, recipients, parameters, rcpt_parameters)
        if commands is not None:
            return Transaction(commands, len(recipients), payload, size, lmtp=server.lmtp)
    for to in recipients:
        if not isinstance(to, (str, Recipient)):
            raise TypeError(f"a recipient must be str or a Recipient, not {to!r}")
    check_supported(None, recipients, server.extensions, tls=server.tls)
    if not utf8 and message.needs_smtputf8:
        if not server.smtputf8:
            raise SMTPNotSupportedError(
                "an address needs SMTPUTF8 (RFC 6531), which the server does not offer"
            )
        parameters += " SMTPUTF8"
        utf8 = True
    envelope = _envelope(message.sender, recipients, parameters, options, utf8)
    commands = b"".join((envelope.mail, *envelope.rcpts))
    return Transaction(
        commands, len(recipients), payload, size, envelope=envelope, lmtp=server.lmtp
    )


def _envelope(
    sender: str, recipients: "AnyRecipients", parameters: str, options: "Options", utf8: bool
) -> Envelope:
    words = parameters.split()
    envelope = Envelope(sender, addresses(recipients), words, options.rcpt_parameters, utf8=utf8)
    for position, to in enumerate(recipients):
        if not isinstance(to, str):
            own = " ".join([f"{VERBS.rcpt}{path(to.address)}", *parameters_of(to, options)])
            envelope.rcpts[position] = command_line(own, "utf-8" if utf8 else "ascii")
    return envelope


def _payload(content: "Buffer | str", server: Server) -> "tuple[int, tuple[Buffer, ...]]":
    """Return a message's size and the buffers to send."""
    if not server.chunked:
        size, payload = codec.data_payload(content, True)
    else:
        octets = codec.normalize_newlines(content)
        complete = octets[-2:] == b"\r\n"
        payload = (octets,) if complete else (octets, b"\r\n")
        size = len(octets) + (0 if complete else 2)
    if server.size_limit is not None and size > server.size_limit:
        raise SMTPNotSupportedError(
            f"the message has {size} octets; the server takes {server.size_limit} at most "
            "(SIZE, RFC 1870)"
        )
    return size, payload


def _parameters(data: "Buffer", size: int, server: Server) -> "tuple[str, bool]":
    """Return MAIL's parameters, as far as the content decides, and whether SMTPUTF8 is one."""
    parameters = f" SIZE={size}" if server.size else ""
    octets = data if isinstance(data, (bytes, bytearray)) else bytes(data)
    if octets.isascii():
        return parameters, False
    if not server.eight_bit:
        raise SMTPNotSupportedError(
            "the message has octets outside ASCII, and the server does not offer 8BITMIME "
            "(RFC 6152)"
        )
    parameters += " BODY=8BITMIME"
    if server.smtputf8 and _has_utf8_header(octets):
        return parameters + " SMTPUTF8", True
    return parameters, False


def _has_utf8_header(data: "bytes | bytearray") -> bool:
    """Say whether a header is internationalised (RFC 6532)."""
    header = data.partition(b"\r\n\r\n")[0]
    if header.isascii() or header.startswith(b"\r\n"):  # or there is none
        return False
    try:
        header.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
