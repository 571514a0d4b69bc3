"""From an email.message.Message to bytes, as email.generator.BytesGenerator writes it.

A message becomes a list of pieces first: octets that are final, and texts that
are only to get their newlines; the codec makes bytes of them in one go.  Where
it is not certain what the email package writes, it is asked: for a field, or
for a part with what is in it.
"""

import copy
import io
import random
import re
import sys
from email.generator import BytesGenerator
from email.headerregistry import BaseHeader, HeaderRegistry, UnstructuredHeader
from email.message import Message
from email.policy import Compat32, EmailPolicy, Policy

from . import codec
from .fields import Header, Line, Style

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from .message import AnyMessage

    Fields = list[tuple[str, Any]]
    Edit = Callable[[Fields], Fields]
    Pieces = list[str | bytes]

# The longest text that is made one buffer, in characters.
_MOST = 1 << 18
# What decides how a message is written: a class that has its own is left to the email package.
_METHODS = frozenset(
    (
        "get", "get_all", "get_boundary", "get_content_maintype", "get_content_subtype",
        "get_content_type",
        "get_default_type", "get_param", "get_params", "get_payload", "is_multipart", "raw_items",
        "set_boundary", "__contains__", "__copy__", "__delitem__", "__getitem__",
        "_get_params_preserve", "_write_headers",
    )
)  # fmt: skip
# Values of Content-Type and Content-Transfer-Encoding that all read alike; others are for the
# email package.
_TYPE = re.compile(r"([A-Za-z0-9.+-]+)/([A-Za-z0-9.+-]+)[ \t]*(?:\r?\n[ \t]+)?(?:;|\Z)")
_BCHARS = "[0-9A-Za-z_,./:=+-]"
_PARAMETERS = re.compile(
    r"[A-Za-z0-9.+-]+/[A-Za-z0-9.+-]+"
    rf'(?:;(?:\r?\n)?[ \t]*[a-z-]+=(?:"{_BCHARS}+"|[0-9A-Za-z_.+-]+))*'
)
_BOUNDARY = re.compile(rf';\s*boundary="?({_BCHARS}+)')
_ENCODING = re.compile("[A-Za-z0-9-]+")
_ABSENT = object()
_HANDLED = {name[8:] for name in dir(BytesGenerator) if name.startswith("_handle_")}
_USUAL = HeaderRegistry()
_DIGITS = len(repr(sys.maxsize - 1))
_LENGTH = 15 + _DIGITS + 2  # of a boundary as the stdlib draws it
# What was found of a class or a policy is kept for so many.
_MOST_KEPT = 64
_classes: dict[type, bool] = {}
# By the policy itself: one may be equal to another, and write as it likes.
_styles: "dict[tuple[int, str | None, bool, bool], tuple[Policy[Any], Style]]" = {}


def serialize(
    message: "AnyMessage",
    *,
    linesep: "str | None" = "\r\n",
    policy: "Policy[Any] | None" = None,
    mangle_from_: "bool | None" = None,
) -> bytes:
    """Return a message in bytes: those that email.generator.BytesGenerator writes.

    *linesep* is the newline, the policy's if None.  *policy* is the message's
    own if None.  With *mangle_from_* a body's lines that begin with ``From ``
    get a ``>`` before them; if None the policy says so, and without *policy*
    it is done.

    The message is not changed, also not where BytesGenerator does: a multipart
    that has no boundary is written with one, and has none afterwards.

    Raises what BytesGenerator does.
    """
    style, mangle = _settings(message, linesep, policy, mangle_from_)
    return codec.assemble(_pieces(message, style, mangle), style.newline, mangle)


def serialize_buffers(
    message: "AnyMessage",
    *,
    linesep: "str | None" = "\r\n",
    policy: "Policy[Any] | None" = None,
    mangle_from_: "bool | None" = None,
) -> "Iterator[bytes]":
    """Yield what serialize() returns in several buffers, made when their turn comes.

    A message's text is copied 256 Ki characters at a time, so a large message
    is not in memory twice.  For parameters and errors see serialize(); what is
    wrong is raised before the first buffer.
    """
    style, mangle = _settings(message, linesep, policy, mangle_from_)
    return _buffers(_pieces(message, style, mangle), style.newline, mangle)


def serialize_edited(
    message: "AnyMessage",
    header: "Header | None",
    edit: "Edit | None",
    *,
    utf8: bool = False,
    seven_bit: bool = False,
) -> bytes:
    """Return a message in bytes, its header as *edit* returns its list of names and values.

    *header* is what header_of() gave.  *utf8* and *seven_bit* are the policy's
    ``utf8`` and ``cte_type="7bit"``.
    """
    style = _style_of(message.policy, "\r\n", utf8=utf8, seven_bit=seven_bit)
    mangle = style.policy.mangle_from_ if utf8 or seven_bit else True  # what smtplib asks for
    pieces: Pieces = []
    _Walk(style, mangle).add(pieces, message, header, edit)
    return codec.assemble(pieces, style.newline, mangle)


def header_of(message: "AnyMessage") -> "Header | None":
    """Return a message's header, or None if it may not be what the message gives to others."""
    if _is_usual(message) and _has_usual_fields(message.policy):
        return Header(message)
    return None


def _buffers(pieces: "Pieces", newline: bytes, mangle: bool) -> "Iterator[bytes]":
    small: Pieces = []
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > _MOST and small:
            yield codec.assemble(small, newline, mangle)
            small = []
            size = len(piece)
        if size <= _MOST:
            small.append(piece)
            continue
        for part in _cut(piece):
            yield codec.assemble([part], newline, mangle)
        size = 0
    if small:
        yield codec.assemble(small, newline, mangle)


def _cut(piece: "str | bytes") -> "Iterator[str | bytes]":
    """Cut a piece, a text where that does not show: after a newline, or in a very long line."""
    start = 0
    while start < len(piece):
        end = start + _MOST
        if isinstance(piece, str) and end < len(piece):
            end = piece.rfind("\n", start, end) + 1 or end
            if piece[end - 1 : end + 1] == "\r\n" or piece.startswith("From ", end):
                end -= piece[end - 1] != "\n"
        yield piece[start:end]
        start = end


def _settings(
    message: "AnyMessage",
    linesep: "str | None",
    policy: "Policy[Any] | None",
    mangle_from_: "bool | None",
) -> "tuple[Style, bool]":
    if mangle_from_ is None:
        mangle_from_ = True if policy is None else policy.mangle_from_
    return _style_of(message.policy if policy is None else policy, linesep), bool(mangle_from_)


def _style_of(
    policy: "Policy[Any]", linesep: "str | None", *, utf8: bool = False, seven_bit: bool = False
) -> Style:
    key = id(policy), linesep, utf8, seven_bit
    found = _styles.get(key)
    if found is None:
        changes: dict[str, Any] = {} if linesep is None else {"linesep": linesep}
        if utf8:
            changes["utf8"] = True
        if seven_bit:
            changes["cte_type"] = "7bit"
        if len(_styles) >= _MOST_KEPT:
            _styles.clear()
        # The policy is kept, so that no other one gets its id.
        found = _styles[key] = policy, Style(policy.clone(**changes) if changes else policy)
    return found[1]


def _pieces(message: "AnyMessage", style: Style, mangle: bool) -> "Pieces":
    pieces: Pieces = []
    _Walk(style, mangle).add(pieces, message)
    return pieces


def _is_usual(message: "Any") -> bool:
    """Say whether a message is written as one of the class Message is."""
    kind = type(message)
    usual = _classes.get(kind)
    if usual is None:
        if len(_classes) >= _MOST_KEPT:
            _classes.clear()
        usual = _classes[kind] = all(
            getattr(kind, name, None) is getattr(Message, name, None) for name in _METHODS
        )
    return usual and _METHODS.isdisjoint(message.__dict__)


class _Walk:
    """Goes through a message's parts, and makes pieces of them."""

    __slots__ = ("_copies", "_drawn", "_mangle", "_reads_fields", "_style")

    def __init__(self, style: Style, mangle: bool, drawn: "dict[int, str] | None" = None) -> None:
        self._style = style
        #: The boundaries of those that had none, which may be in more than one place.
        self._drawn = {} if drawn is None else drawn
        #: The copies that the email package got, by the part's id().
        self._copies: dict[int, Any] = {}
        self._mangle = mangle
        #: Whether a field can be read as it stands.
        self._reads_fields = style.known and _has_usual_fields(style.policy)

    def add(
        self,
        pieces: "Pieces",
        part: "Any",
        header: "Header | None" = None,
        edit: "Edit | None" = None,
    ) -> None:
        """Append what is written of a part."""
        if not (_is_usual(part) and type(self._style.policy).clone is Policy.clone):
            pieces.append(self._by_the_email_package(part, edit))
            return
        if header is None:
            header = Header(part)
        body: Pieces = []
        fields = self._add_body(body, part, header)
        if fields is None:
            pieces.append(self._by_the_email_package(part, edit))
            return
        if edit is not None:
            fields = edit(fields)
        field = self._style.field
        lines = [field(name, value) for name, value in fields]
        lines.append(self._style.newline)
        pieces.append(b"".join(lines))
        pieces += body

    def _add_body(self, body: "Pieces", part: "Any", header: "Header") -> "Fields | None":
        """Append what is written of a part's body; return the fields that it is written with.

        None says that all this is uncertain.
        """
        kind = _handled_as(*self._type_of(part, header))
        payload = part._payload
        if kind == "text":
            return header.fields if self._add_text(body, header, payload) else None
        if kind in ("multipart", "multipart_signed"):
            return self._add_multipart(body, part, header, signed=kind == "multipart_signed")
        if kind != "message" or type(payload) is not list:
            return None
        if not (payload and isinstance(payload[0], Message)):
            return None
        self.add(body, payload[0])
        return header.fields

    def _add_text(self, body: "Pieces", header: Header, payload: "Any") -> bool:
        if payload is None:
            return True
        if type(payload) is not str or not self._has_plain_encoding(header):
            return False
        text = self._octets(payload)
        if text is None:
            return False
        body.append(text)
        return True

    def _octets(self, text: str) -> "str | None":
        """Return a text as octets in Latin-1, or None if they are to be encoded otherwise."""
        if text.isascii():
            return text
        if self._style.policy.cte_type == "7bit":
            return None
        try:
            return text.encode("ascii", "surrogateescape").decode("latin-1")
        except UnicodeEncodeError:
            return None

    def _add_multipart(
        self, body: "Pieces", part: "Any", header: Header, *, signed: bool
    ) -> "Fields | None":
        parts = part._payload
        if parts is None and self._has_plain_encoding(header):
            parts = []
        if type(parts) is not list or not all(isinstance(inner, Message) for inner in parts):
            return None
        preamble, epilogue = part.preamble, part.epilogue
        if not (_is_ascii_or_none(preamble) and _is_ascii_or_none(epilogue)):
            return None
        # A signature is over a part's octets: its fields are not folded (RFC 1847, section 2.1).
        walk = self._without_limit() if signed else self
        written: list[Pieces] = [[] for _ in parts]
        for inner, pieces in zip(parts, written, strict=True):
            walk.add(pieces, inner)
        fields = header.fields
        boundary = self._boundary_of(part, header)
        if not boundary:
            boundary = self._drawn.get(id(part)) or self._new_boundary(written)
            self._drawn[id(part)] = boundary
            fields = self._with_boundary(part, header, boundary)
        delimiter = b"--" + boundary.encode("ascii", "surrogateescape")
        newline = self._style.newline
        if preamble is not None:
            body += (preamble, newline)
        body.append(delimiter + newline)
        for number, pieces in enumerate(written):
            if number:
                body.append(newline + delimiter + newline)
            body += pieces
        body.append(newline + delimiter + b"--" + newline)
        if epilogue is not None:
            body.append(epilogue)
        return fields

    def _without_limit(self) -> "_Walk":
        policy = self._style.policy.clone(max_line_length=0)
        return _Walk(Style(policy), self._mangle, self._drawn)

    # -- what the header says of the body --

    def _type_of(self, part: "Any", header: Header) -> "tuple[str, str]":
        """Return a part's main type and subtype."""
        value = header.values.get("content-type", _ABSENT)
        if value is _ABSENT:
            words = part.get_default_type().split("/")
            return words[0], words[1]
        if self._is_readable(value) and (match := _TYPE.match(value)):
            return match[1].lower(), match[2].lower()
        probe = self._probe(part)
        return probe.get_content_maintype(), probe.get_content_subtype()

    def _boundary_of(self, part: "Any", header: Header) -> "str | None":
        value = header.values.get("content-type", _ABSENT)
        if self._is_simple(value):
            found = _BOUNDARY.findall(value)
            if len(found) < 2:
                return found[0] if found else None
        return self._probe(part).get_boundary()  # type: ignore[no-any-return]

    def _with_boundary(self, part: "Any", header: Header, boundary: str) -> "Fields":
        """Return a part's fields with a boundary in its Content-Type."""
        fields = header.fields
        places = [at for at, (name, _) in enumerate(fields) if name.lower() == "content-type"]
        if (
            len(places) != 1
            or len(boundary) != _LENGTH
            or not self._is_simple(fields[places[0]][1])
        ):
            return self._with_any_boundary(part, boundary)
        at = places[0]
        name, value = fields[at]
        # Another boundary makes the same line, but for its digits.
        key = name, str.__str__(value), type(value) is str
        around = self._style.lines.get(key)
        if around is None:
            line = self._style.field(*self._with_any_boundary(part, boundary)[at])
            before, found, after = line.partition(boundary.encode("ascii"))
            if not found:  # but in several pieces (RFC 2231)
                return self._with_any_boundary(part, boundary)
            around = self._style.keep(key, before, after)
        written = list(fields)
        written[at] = name, Line(boundary.encode("ascii").join(around))
        return written

    def _with_any_boundary(self, part: "Any", boundary: str) -> "Fields":
        probe = self._probe(part)
        probe.set_boundary(boundary)
        return list(probe.raw_items())

    def _new_boundary(self, written: "list[Pieces]") -> str:
        """Return a boundary that is in no part (RFC 2046, 5.1.1), drawn as the stdlib does."""
        boundary = unique = f"{'=' * 15}{random.randrange(sys.maxsize):0{_DIGITS}}=="
        octets = boundary.encode("ascii")
        if any(_holds(piece, boundary, octets) for pieces in written for piece in pieces):
            newline = self._style.newline
            text = newline.join([codec.assemble(each, newline, self._mangle) for each in written])
            counter = 0
            while _delimiter_of(unique).search(text):
                unique = f"{boundary}.{counter}"
                counter += 1
        return unique

    def _is_simple(self, value: "Any") -> bool:
        """Say whether a Content-Type can be read, parameters and all."""
        return self._is_readable(value) and _PARAMETERS.fullmatch(value) is not None

    def _has_plain_encoding(self, header: Header) -> bool:
        """Say whether the transfer encoding can be read, which the email package does."""
        value = header.values.get("content-transfer-encoding", _ABSENT)
        if value is _ABSENT:
            return True
        return self._is_readable(value) and _ENCODING.fullmatch(value) is not None

    def _is_readable(self, value: "Any") -> bool:
        return self._reads_fields and (type(value) is str or isinstance(value, BaseHeader))

    def _probe(self, part: "Any") -> "Any":
        """Return a part to ask, and to change: what it holds is the same."""
        probe = copy.copy(part)
        probe.policy = self._style.policy
        return probe

    def _by_the_email_package(self, part: "Any", edit: "Edit | None") -> bytes:
        private = _private(part, self._copies)
        if edit is not None:
            # Its class is usual, or there would be nothing to edit; this is what set_raw() adds to.
            private._headers = edit(list(private.raw_items()))
        with io.BytesIO() as buffer:
            BytesGenerator(buffer, self._mangle, policy=self._style.policy).flatten(private)
            return buffer.getvalue()


def _has_usual_fields(policy: "Policy[Any]") -> bool:
    """Say whether a policy gives fields to others in the email package's own ways."""
    if type(policy) is not EmailPolicy:
        return type(policy) is Compat32
    factory: Any = policy.header_factory
    return (
        type(factory) is HeaderRegistry
        and factory.registry == _USUAL.registry
        and factory.base_class is BaseHeader
        and factory.default_class is UnstructuredHeader
    )


def _is_ascii_or_none(text: "Any") -> bool:
    """Say whether what stands around the parts is nothing, or ASCII text."""
    return text is None or (type(text) is str and text.isascii())


def _handled_as(main: str, sub: str) -> str:
    """Return what a type is to BytesGenerator: the kind of part that it is written as."""
    if main == "text":
        return main
    for kind in (f"{main}_{sub}".replace("-", "_"), main.replace("-", "_")):
        if kind in _HANDLED:
            return kind
    return "text"


def _private(part: "Any", copies: "dict[int, Any]") -> "Any":
    """Return a copy that BytesGenerator may change: of all messages, not of what they hold.

    *copies* has those that were made before, for a part that is in more than one place.
    """
    if not isinstance(part, Message):
        return part
    private: Any = copies.get(id(part))
    if private is None:
        private = copies[id(part)] = copy.copy(part)
        if isinstance(private._payload, list):
            private._payload = [_private(inner, copies) for inner in private._payload]
        else:
            private._payload = _private(private._payload, copies)
    return private


def _delimiter_of(boundary: str) -> "re.Pattern[bytes]":
    """Return what BytesGenerator looks for in the parts, to see whether a boundary is in them.

    That differs from one release to another: before a fix of 2026 (gh-148192) it finds none
    in lines that end with CRLF.
    """
    found: list[str] = []

    class Asked(BytesGenerator):
        @classmethod
        def _compile_re(cls, s: str, flags: int) -> "re.Pattern[bytes]":
            found.append(s)
            return re.compile(s.encode("ascii"), flags)

    state = random.getstate()
    drawn = Asked._make_boundary(b"")  # type: ignore[attr-defined]
    random.setstate(state)
    pattern = found[0].replace(re.escape(drawn), re.escape(boundary))
    return re.compile(pattern.encode("ascii"), re.MULTILINE)


def _holds(piece: "str | bytes", boundary: str, octets: bytes) -> bool:
    """Say whether a piece has a boundary in it; base64 has no hyphen, and that is seen sooner."""
    if isinstance(piece, str):
        return "-" in piece and boundary in piece
    return octets in piece
