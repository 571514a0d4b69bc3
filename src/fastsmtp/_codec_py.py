"""The codec in Python: the reference for ``_codec.pyx``, and its fallback.

Every public name here has a twin in ``_codec.pyx`` with the same signature,
docstring, result and error.  A fix in one is a fix in both, in one commit.
"""

import binascii
import hmac
import re
from smtplib import SMTPException, SMTPResponseException

from .errors import SMTPProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

IMPLEMENTATION = "python"

#: Longest line of a reply, in bytes with its CRLF (RFC 5321 4.5.3.1.5 asks for 512).
MAX_LINE = 8192
#: Largest reply, in bytes over all its lines.
MAX_REPLY = 1 << 20

_WHITE_SPACE = b" \t\r\n"
_CODES = {b"%d " % code: code for code in range(200, 600)}
_ADDRESS = (
    r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*"
    r"@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*"
)
_PLAIN_ADDRESS = re.compile(_ADDRESS)
_WIDE = "\xa0-\ud7ff\ue000-\U0010ffff"
_QUOTED = r'"[^"\\\x00-\x08\x0a-\x1f\x7f-\x9f\ud800-\udfff]*"[ \t\r\n]*'
_WORDS = rf"A-Za-z0-9!#$%&'*+/=?^_`{{|}}~.{_WIDE}-"
# It begins with no blank: what may be in two places is tried in both, again and again.
_PHRASE = rf"(?:[{_WORDS}][{_WORDS} \t]*)?"
_MAILBOX = re.compile(
    rf"[ \t\r\n]*(?:(?:{_QUOTED}|{_PHRASE})<({_ADDRESS})>|({_ADDRESS}))[ \t\r\n]*(,|\Z)"
)
_NAME = re.compile("[!-~]+")
_FOLDED_WORDS = re.compile(r"[!-~]+(?:(?:\r?\n)?[ \t]+[!-~]+)*")
_FROM_LINE = re.compile("^From ", re.MULTILINE)
_NEWLINE = re.compile(b"\r\n?|\n")
_DOT_LINE = re.compile(rb"\n\.")  # bytes.find() and `in` take three times as long


# -- message data -------------------------------------------------------------


def normalize_newlines(data: "str | Any") -> "bytes | memoryview":
    """Return the data with each lone CR and each lone LF made CRLF.

    *data* is ASCII text or a C-contiguous bytes-like object of any format.
    Data that needs no change is not copied: bytes come back as the same
    object, other buffers as a memoryview of the caller's memory.

    Raises UnicodeEncodeError for text outside ASCII, TypeError for what is
    neither text nor bytes-like, BufferError for a non-contiguous buffer.
    RFC 5321, section 2.3.8.
    """
    octets = _octets(data)
    changed = _crlf(octets)
    return _shared(data, octets) if changed is octets else changed


def stuff_dots(data: "Any") -> "bytes | memoryview":
    """Return the data with a dot put before each line that begins with one.

    A line begins at the start of *data* and after each LF.  *data* is a
    C-contiguous bytes-like object of any format (text is taken as ASCII, its
    newlines left alone).  Data that needs no change is not copied: see
    normalize_newlines(), also for what is raised.  RFC 5321, section 4.5.2.
    """
    octets = _octets(data)
    changed = _stuffed(octets)
    return _shared(data, octets) if changed is octets else changed


def data_payload(
    data: "str | Any", normalize: bool
) -> "tuple[int, tuple[bytes | memoryview, ...]]":
    """Return the size of a message and the buffers to send after DATA's 354.

    *data* is ASCII text or a C-contiguous bytes-like object of any format;
    with *normalize* true its newlines are made CRLF first.  The first item of
    the result is the message's size in bytes as MAIL's SIZE declares it (RFC
    1870: newlines normalised, before dot-stuffing and without what ends the
    data).  The second is two buffers for a vectored write: the dot-stuffed
    data, and what ends it: a CRLF where the last line has none, ``.`` CRLF.
    Data that needs no change is not copied; its buffer is the caller's.

    Raises what normalize_newlines() raises.  RFC 5321, sections 4.1.1.4, 4.5.2.
    """
    octets = _octets(data)
    normal = _crlf(octets) if normalize else octets
    stuffed = _stuffed(normal)
    end = b".\r\n" if stuffed.endswith(b"\r\n") else b"\r\n.\r\n"
    return len(normal), (_shared(data, octets) if stuffed is octets else stuffed, end)


def assemble(pieces: "list[str | bytes]", newline: bytes, mangle_from: bool) -> bytes:
    """Return the pieces of a message in one, with the newlines of its texts as asked.

    A piece in bytes is taken as it is.  One in str is text, its characters
    octets in Latin-1: each CR LF, lone CR and lone LF in it becomes *newline*
    and, with *mangle_from*, each line that begins with ``From `` gets a ``>``
    before it.  RFC 5322, section 2.1; RFC 4155.

    Raises UnicodeEncodeError for text outside Latin-1, TypeError for a piece of
    another kind.
    """
    return b"".join(
        [
            piece if isinstance(piece, bytes) else _lines(piece, newline, mangle_from)
            for piece in pieces
        ]
    )


def _lines(text: "Any", newline: bytes, mangle_from: bool) -> bytes:
    if not isinstance(text, str):
        raise TypeError(f"a piece must be str or bytes, not {type(text).__name__}")
    if mangle_from:
        text = _FROM_LINE.sub(">From ", text)
    octets = str.encode(text, "latin-1")
    if newline == b"\r\n":
        return _crlf(octets)
    return _NEWLINE.sub(lambda _: newline, octets)


def _octets(data: "str | Any") -> bytes:
    if type(data) is bytes:
        return data
    if isinstance(data, str):
        return _ascii(data)
    try:
        view = memoryview(data)
    except TypeError:
        raise TypeError(
            f"message data must be str or a bytes-like object, not {type(data).__name__}"
        ) from None
    with view:
        return _contiguous(view, "message data")


def _contiguous(view: memoryview, what: str) -> bytes:
    if not view.c_contiguous:
        raise BufferError(f"{what} must be a C-contiguous buffer")
    return bytes(view)


def _shared(data: "str | Any", octets: bytes) -> "bytes | memoryview":
    """Return data that needs no change in the caller's memory, where that is a buffer."""
    if type(data) is bytes or isinstance(data, str) or not octets:
        return octets
    return memoryview(data).cast("B")


def _ascii(text: str) -> bytes:
    if not str.isascii(text):
        # smtplib normalises before it encodes, so the error's position counts that.
        text = str.replace(text, "\r\n", "\n").replace("\r", "\n").replace("\n", "\r\n")
    return str.encode(text, "ascii")


def _crlf(octets: bytes) -> bytes:
    if b"\r" not in octets:
        return octets.replace(b"\n", b"\r\n")
    if octets.replace(b"\r", b"").replace(b"\n", b"\r\n") == octets:
        return octets  # faster than looking for a lone one
    lines = octets.splitlines()
    if octets.endswith((b"\r", b"\n")):
        lines.append(b"")
    return b"\r\n".join(lines)


def _stuffed(octets: bytes) -> bytes:
    if _DOT_LINE.search(octets):
        octets = _DOT_LINE.sub(b"\n..", octets)
    return b"." + octets if octets.startswith(b".") else octets


# -- header fields ------------------------------------------------------------


def field_line(
    name: "Any", value: "Any", limit: int, newline: bytes, folded: bool
) -> "bytes | None":
    """Return a header field as it is written, or None unless that is beyond doubt.

    It is for printable ASCII: words with white space between them, in lines of
    at most *limit* characters.  With *folded*, the value may be in several
    lines, each after the first beginning with white space (RFC 5322, section
    2.2.3).  *newline* is put between lines, and at the end.
    """
    if not (isinstance(name, str) and isinstance(value, str)):
        return None
    if not (_NAME.fullmatch(name) and _FOLDED_WORDS.fullmatch(value)):
        return None
    # Not formatted: a str of another class may have a format of its own.
    octets = b"%b: %b" % (str.encode(name, "ascii"), str.encode(value, "ascii"))
    if str.isprintable(value):
        return octets + newline if len(octets) <= limit else None
    lines = octets.replace(b"\r", b"").split(b"\n")
    if (len(lines) > 1 and not folded) or max(map(len, lines)) > limit:
        return None
    return newline.join(lines) + newline


def first_values(fields: "list[tuple[Any, Any]]") -> "tuple[dict[Any, Any], bool]":
    """Return fields' first values by their names in lower case, and whether all are ASCII text.

    *fields* is a list of names and values.
    """
    values: dict[Any, Any] = {}
    is_ascii = True
    for name, value in fields:
        values.setdefault(name.lower(), value)
        if is_ascii and not (isinstance(value, str) and str.isascii(value)):
            is_ascii = False
    return values, is_ascii


def tokens_line(
    name: "Any", tokens: "Any", kinds: "dict[type, bool]", limit: int, newline: bytes
) -> "bytes | None":
    """Return a parsed header field as it is written, or None unless that is beyond doubt.

    *tokens* are those of the email package.  *kinds* says of a token's class
    where its text is: True, in the tokens it holds; False, in itself as a str.
    For other classes it is str().

    A token that would not end within *limit* characters goes to the next line,
    together with the space before it, if it allows that.  RFC 5322, section
    2.2.3.
    """
    if not (isinstance(name, str) and _NAME.fullmatch(name)) or str.__len__(name) + 2 > limit:
        return None
    texts = [_token_text(token, kinds, 32) for token in tokens]
    text = "".join(texts)
    if not (text and text.isascii() and text.isprintable()) or " " in (text[0], text[-1]):
        return None
    line = str.__str__(name) + ": "
    if len(line) + len(text) <= limit:
        lines = [line + text]
    elif tokens.syntactic_break and len(text) < limit:
        lines = [line[:-1], " " + text]
    else:
        lines = _folded(line, tokens, texts, limit)
    return b"".join([each.encode("ascii") + newline for each in lines]) if lines else None


def _folded(line: str, tokens: "Any", texts: "list[str]", limit: int) -> "list[str]":
    """Return a field's lines, broken where a token does not fit; none if one does not at all."""
    lines = []
    room = limit - len(line)
    for at, text in enumerate(texts):
        size = len(text)
        if size <= room:
            line += text
            room -= size
            continue
        if not tokens[at].syntactic_break or size >= limit:
            return []
        if line[-1] == " ":
            lines.append(line[:-1])
            line = " " + text
        elif text[0] == " " and tokens[at].startswith_fws():
            lines.append(line)
            line = text
        else:
            return []
        room = limit - len(line)
    return [*lines, line]


def _token_text(token: "Any", kinds: "dict[type, bool]", depth: int) -> str:
    holds_tokens = kinds.get(type(token))
    if holds_tokens is False:
        return token  # type: ignore[no-any-return]
    if holds_tokens is None or not depth or not isinstance(token, list):
        return str(token)
    return "".join([_token_text(inner, kinds, depth - 1) for inner in token])


def plain_addresses(text: "Any") -> "list[str] | None":
    """Return the addresses of a header field, or None unless it is one that all read alike.

    It is for a list of ``a@example.org``, ``Ann Example <a@example.org>`` and
    ``"Example, Ann" <a@example.org>`` with dot-strings, in ASCII, for addresses,
    and no comments, groups or quoted pairs (RFC 5322, section 3.4).
    """
    if not isinstance(text, str):
        return None
    found: list[str] = []
    end = 0
    while mailbox := _MAILBOX.match(text, end):
        address = mailbox[1] or mailbox[2]
        if "=?" in address:
            break
        found.append(address)
        end = mailbox.end()
        if not mailbox[3]:
            return found
    return None


# -- replies ------------------------------------------------------------------


class ReplyParser:
    """Cuts the bytes a server sends into replies (RFC 5321, section 4.2).

    Bytes may be fed cut at any place.  *strict* false reads replies as
    smtplib does: the code is what ``int()`` makes of a line's first three
    bytes, -1 if nothing, and the last line's code counts.  *strict* true
    raises SMTPProtocolError for a reply that the grammar does not allow: a
    code that is not three digits from 200 to 599, a fourth byte that is not a
    space, a hyphen or the line's end, lines with different codes.  A bare LF
    ends a line in both.

    *max_line* caps a line and *max_reply* a whole reply, both in bytes with
    line ends; either may be assigned later.  Instances are not thread-safe.
    """

    __slots__ = (
        "_buffer", "_eof", "_line", "_searched", "_start", "max_line", "max_reply", "strict",
    )  # fmt: skip

    def __init__(
        self, strict: bool = False, max_line: int = MAX_LINE, max_reply: int = MAX_REPLY
    ) -> None:
        self.strict = strict
        self.max_line = max_line
        self.max_reply = max_reply
        self._buffer = b""
        self._start = 0  # of the current reply
        # From there on:
        self._line = 0  # where the current line begins
        self._searched = 0  # no newline from that line's begin to here
        self._eof = False

    @property
    def pending(self) -> int:
        """Bytes that were fed and not yet returned."""
        return len(self._buffer) - self._start

    def feed(self, data: "bytes | bytearray | memoryview") -> None:
        """Take bytes from the server; no bytes at all mean the end of the stream."""
        if type(data) is not bytes:
            with memoryview(data) as view:
                data = _contiguous(view, "a server's replies")
        if not data:
            self._eof = True
        elif self._start == len(self._buffer):
            self._buffer = data
            self._start = 0
        else:
            self._buffer = self._buffer[self._start :] + data
            self._start = 0

    def next_reply(self) -> "tuple[int, bytes] | None":
        """Return the next reply as (code, text), or None if more bytes are needed.

        The text is that of all lines, each stripped of white space, joined by
        LF.  At the end of the stream a last line without a newline counts as
        a line, unless *strict*.

        Raises SMTPResponseException(500, ...) for a line or a reply over its
        cap and, if *strict*, SMTPProtocolError.  The bytes stay where they
        are: a parser that has raised will raise again.
        """
        if not self._searched:
            # Most replies: one line, a code and a space.
            buffer = self._buffer
            start = self._start
            code = _CODES.get(buffer[start : start + 4])
            if code:
                end = buffer.find(b"\n", start) + 1
                if end and end - start <= self.max_line and end - start <= self.max_reply:
                    self._start = end
                    return code, buffer[start + 4 : end].strip(_WHITE_SPACE)
        return self._next_of_any_kind()

    def next_replies(self, most: int) -> "list[tuple[int, bytes]]":
        """Return a list of the replies that are here: at most *most*, none after a 421.

        Each is as next_reply() gives it.  Raises what that does, if it is the
        first that is bad.
        """
        replies: list[tuple[int, bytes]] = []
        while len(replies) < most:
            try:
                parsed = self.next_reply()
            except SMTPException:
                if replies:
                    break
                raise
            if parsed is None:
                break
            replies.append(parsed)
            if parsed[0] == 421:
                break
        return replies

    def _next_of_any_kind(self) -> "tuple[int, bytes] | None":
        while (end := self._line_end()) >= 0:
            line = self._buffer[self._start + self._line : self._start + end]
            code = self._code(line)
            if code is None or line[3:4] != b"-":
                return (-1 if code is None else code), self._take_text(end)
            self._line = self._searched = end
        return None

    def take_replies(self, codes: "tuple[int, ...]") -> "list[bytes] | None":
        """Take as many replies as there are codes, if they have just these; return their texts.

        Returns None, and takes nothing, unless all of them are here, each on
        one line, and with its code and a space.  Texts are as in next_reply().
        """
        buffer = self._buffer
        begin = self._start
        most = min(self.max_line, self.max_reply)
        if self._line:
            return None
        texts = []
        for code in codes:
            end = buffer.find(b"\n", begin + 4) + 1
            if not end or _CODES.get(buffer[begin : begin + 4]) != code or end - begin > most:
                return None
            texts.append(buffer[begin + 4 : end].strip(_WHITE_SPACE))
            begin = end
        self._take(begin - self._start)
        return texts

    def take_line(self, limit: int) -> "bytes | None":
        """Take one raw line, at most *limit* bytes of it, past all parsing.

        Returns None if more bytes are needed, and b"" at the end of the stream.
        """
        limit = max(limit, 0)
        end = self._buffer.find(b"\n", self._start, self._start + limit) + 1 - self._start
        if end <= 0:
            if self.pending < limit and not self._eof:
                return None
            end = min(limit, self.pending)
        return self._take(end)

    def _line_end(self) -> int:
        """Return the end of the current line, or -1 if it is not all here."""
        end = self._buffer.find(b"\n", self._start + self._searched) + 1 - self._start
        complete = end > 0
        if not complete:
            end = self._searched = self.pending
            complete = self._eof and not self.strict and end > self._line
        if end - self._line > self.max_line:
            raise SMTPResponseException(500, "Line too long.")
        if end > self.max_reply:
            raise SMTPResponseException(500, "Reply too long.")
        return end if complete else -1

    def _code(self, line: bytes) -> "int | None":
        if self.strict:
            self._check(line)
        try:
            return int(line[:3])
        except ValueError:
            return None

    def _check(self, line: bytes) -> None:
        """Hold one line against RFC 5321's grammar, and against the reply's first line."""
        digits = line[:3]
        if not (digits.isdigit() and len(digits) == 3 and b"200" <= digits <= b"599"):
            raise SMTPProtocolError(f"reply code is not three digits from 200 to 599: {line!r}")
        if line[3:4] not in (b" ", b"-") and line[3:] not in (b"\r\n", b"\n"):
            raise SMTPProtocolError(f"reply code is not followed by a space or a hyphen: {line!r}")
        first = self._buffer[self._start : self._start + 3]
        if digits != first:
            raise SMTPProtocolError(f"reply that began with {first!r} goes on with {line!r}")

    def _take_text(self, end: int) -> bytes:
        lines = self._take(end).removesuffix(b"\n").split(b"\n")
        return b"\n".join([line[4:].strip(_WHITE_SPACE) for line in lines])

    def _take(self, size: int) -> bytes:
        end = self._start + size
        taken = self._buffer[self._start : end]
        self._start = end
        self._line = self._searched = 0
        return taken


# -- envelopes ----------------------------------------------------------------


def envelope_commands(
    sender: str,
    recipients: "Iterable[Any]",
    mail_parameters: str = "",
    rcpt_parameters: str = "",
    mail_verb: str = "MAIL FROM:",
    rcpt_verb: str = "RCPT TO:",
) -> "bytes | None":
    """Return MAIL, and RCPT for each recipient, if all addresses are plain, else None.

    Plain is what nobody reads in two ways: a dot-string, ``@`` and a domain, in
    ASCII (RFC 5321, section 4.1.2); the *sender* may be empty, too.  Parameters
    are ASCII text that begins with a space, or is empty.

    Raises TypeError for a sender that is no str, ValueError for parameters with
    a control character or outside ASCII.
    """
    parameters: tuple[Any, ...] = mail_parameters, rcpt_parameters, mail_verb, rcpt_verb
    for text in parameters:
        if not (isinstance(text, str) and str.isascii(text)):
            raise ValueError(f"parameters are not ASCII text: {text!r}")
        if not str.isprintable(text):
            raise ValueError(f"parameters hold a control character: {text!r}")
    if not isinstance(sender, str):
        raise TypeError(f"an address must be str, not {type(sender).__name__}")
    recipients = list(recipients)
    plain = _PLAIN_ADDRESS.fullmatch
    # Joined, not formatted: members of an enumeration are formatted as their names.
    commands = [mail_verb, "<", sender, ">", mail_parameters, "\r\n"]
    if str.__len__(sender) and not plain(sender):
        return None
    for recipient in recipients:
        if not isinstance(recipient, str) or not plain(recipient):
            return None
        commands += (rcpt_verb, "<", recipient, ">", rcpt_parameters, "\r\n")
    return "".join(commands).encode("ascii")


# -- base64 for AUTH ----------------------------------------------------------


def sasl_base64(value: "str | bytes") -> bytes:
    """Return a SASL value in base64, text taken as UTF-8 (RFC 4954, section 4).

    Raises ValueError for text that UTF-8 cannot express; it does not show it.
    """
    return _encode_and_wipe(bytearray(_utf8(value)))


def sasl_plain(user: "str | bytes", password: "str | bytes", authzid: "str | bytes" = b"") -> bytes:
    """Return the base64 of PLAIN's message: authzid NUL user NUL password (RFC 4616).

    Raises ValueError if one holds a NUL or cannot be expressed in UTF-8.
    """
    parts = [_part(value, b"\0") for value in (authzid, user, password)]
    return _encode_and_wipe(bytearray(b"\0").join(parts))


def sasl_xoauth2(user: "str | bytes", token: "str | bytes") -> bytes:
    """Return the base64 of XOAUTH2's message: user= and auth=Bearer, with ^A between.

    Raises ValueError if one holds a ^A or cannot be expressed in UTF-8.  The
    mechanism is Google's and Microsoft's, described in their documentation.
    """
    user, token = _part(user, b"\1"), _part(token, b"\1")
    parts = b"user=", user, b"\1auth=Bearer ", token, b"\1\1"
    return _encode_and_wipe(bytearray().join(parts))


def sasl_cram_md5(user: "str | bytes", password: "str | bytes", challenge: bytes) -> bytes:
    """Return the base64 answer to a CRAM-MD5 challenge, itself not in base64 (RFC 2195).

    Raises ValueError where MD5 is not to be had, and for text that UTF-8
    cannot express.
    """
    name = _utf8(user)
    digest = hmac.HMAC(_utf8(password), challenge, "md5").hexdigest()
    return _encode_and_wipe(bytearray(b" ").join((name, digest.encode("ascii"))))


def decode_challenge(text: bytes) -> bytes:
    """Return what the base64 text of a 334 reply stands for (RFC 4954, section 4).

    Characters outside the alphabet are passed over.  Raises ValueError if the
    rest is not base64.
    """
    return binascii.a2b_base64(text)


def _utf8(value: "str | bytes") -> bytes:
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise TypeError(f"a SASL value must be str or bytes, not {type(value).__name__}")
    try:
        return str.encode(value, "utf-8")
    except UnicodeEncodeError:
        pass  # the error carries the value, which may be a password
    raise ValueError("a SASL value cannot be expressed in UTF-8")


def _part(value: "str | bytes", separator: bytes) -> bytes:
    part = _utf8(value)
    if separator in part:
        raise ValueError(f"a SASL value holds the separator {separator!r}")
    return part


def _encode_and_wipe(secret: bytearray) -> bytes:
    try:
        return binascii.b2a_base64(secret, newline=False)
    finally:
        secret[:] = bytes(len(secret))
