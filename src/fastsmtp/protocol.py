"""The protocol's state, without a socket: bytes in, replies out."""

import re

from .codec import ReplyParser
from .errors import SMTPProtocolError, SMTPResponseException, SMTPServerDisconnected
from .reply import Reply, without_secrets

_OLD_STYLE_AUTH = r"(?i)auth=(.*)"
_EXTENSION = r"([A-Za-z0-9][A-Za-z0-9-]*) ?"


_new_reply = tuple.__new__  # Reply(*parsed), without a call in Python


class Session:
    """What was asked and what was answered on one connection.

    A driver says how many replies its writing will bring (sent()), hands over
    what it reads (receive()) and takes replies (next_reply()).  Either every
    reply that is owed will be taken, or the connection is to be closed.

    *strict* is the reply parser's.
    """

    __slots__ = ("last_reply", "owed", "parser", "secrets")

    def __init__(self, *, strict: bool = True) -> None:
        self.parser = ReplyParser(strict)
        #: Replies to come for what has been sent.
        self.owed = 1  # the greeting
        #: The last reply taken, or None.
        self.last_reply: Reply | None = None
        #: What the server knows by now, and refusals that repeat it are not to show.
        self.secrets: tuple[bytes, ...] = ()

    @property
    def pending(self) -> int:
        """Bytes that were received and are no reply yet taken."""
        return self.parser.pending

    def sent(self, replies: int) -> None:
        """Count replies that are now owed."""
        self.owed += replies

    def receive(self, data: bytes) -> None:
        """Take bytes from the connection; none at all say that it was closed."""
        self.parser.feed(data)

    def next_reply(self) -> "Reply | None":
        """Return the next reply, or None until there are more bytes.

        Raises what ReplyParser.next_reply() raises.
        """
        parsed = self.parser.next_reply()
        if parsed is None:
            return None
        return self.took(parsed)

    def next_replies(self, most: int) -> "list[Reply]":
        """Return the replies that are here: at most *most*, none after a 421.

        Raises what ReplyParser.next_reply() raises.
        """
        taken = self.parser.next_replies(most)
        if self.secrets:
            taken = [self._redacted(parsed) for parsed in taken]
        replies = [_new_reply(Reply, parsed) for parsed in taken]
        if replies:
            self.owed = max(0, self.owed - len(replies))
            self.last_reply = replies[-1]
        return replies

    def took(self, parsed: "tuple[int, bytes]") -> Reply:
        """Count a reply as taken, and return it."""
        if self.owed:
            self.owed -= 1
        if self.secrets:
            parsed = self._redacted(parsed)
        self.last_reply = reply = _new_reply(Reply, parsed)
        return reply

    def _redacted(self, parsed: "tuple[int, bytes]") -> "tuple[int, bytes]":
        code, text = parsed
        return parsed if code in (250, 354) else (code, without_secrets(text, self.secrets))

    def check_in_step(self) -> None:
        """Before a command: hold that nothing was received that nobody asked for.

        Raises SMTPServerDisconnected for a 421, which a server may send at any
        time before it closes (RFC 5321, section 3.8), else SMTPProtocolError.
        """
        if self.owed or not self.pending:
            return
        try:
            reply = self.next_reply()
        except SMTPResponseException:
            reply = None  # it is too long, besides
        if reply is not None and reply.code == 421:
            raise SMTPServerDisconnected("Connection closed by the server")
        raise SMTPProtocolError("the server sent what no command had asked for")

    def start_tls(self) -> None:
        """After STARTTLS was accepted: forget what was learned in clear.

        Raises SMTPProtocolError if bytes came behind the reply.  They were not
        protected, and would be read as the server's under TLS (RFC 3207,
        section 6; CVE-2011-0411).
        """
        if self.pending:
            raise SMTPProtocolError("the server sent more in clear after its reply to STARTTLS")
        self.parser = ReplyParser(self.parser.strict, self.parser.max_line, self.parser.max_reply)


def parse_extensions(text: bytes) -> "dict[str, str]":
    """Return the service extensions an EHLO reply's text lists (RFC 5321, 4.1.1.1).

    Keywords are lower case, with their parameters as text.  What AUTH and the
    old ``AUTH=`` offer is joined, each part with a space before it.
    """
    extensions: dict[str, str] = {}
    for line in text.decode("latin-1").split("\n")[1:]:
        if old_style := re.match(_OLD_STYLE_AUTH, line):
            extensions["auth"] = extensions.get("auth", "") + " " + old_style[1]
        elif keyword := re.match(_EXTENSION, line):
            name = keyword[1].lower()
            parameters = line[keyword.end(1) :].strip()
            if name == "auth":
                parameters = extensions.get("auth", "") + " " + parameters
            extensions[name] = parameters
    return extensions
