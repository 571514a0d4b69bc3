"""The places of a template that take values: each writes itself as it goes over the wire.

A place is made once and then only read, so any number of threads may use it.
*values* is a dict of str, with every name that a place asks for, their line
breaks LF, and no surrogate code points.
"""

import re
from binascii import b2a_base64, b2a_qp
from operator import itemgetter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    Values = dict[str, str]

_FIELD = re.compile(r"\{\{\s*([A-Za-z_][A-Za-z0-9_]*)\s*\}\}")
#: What was meant as a field, perhaps, where two braces are.
_MEANT = re.compile(r"\{\{[^\n}]{0,30}\}*")
#: A line of a header field should not be longer (RFC 5322, section 2.1.1), nor may it be.
_LINE, _LONGEST = 78, 998
#: The same for a line with an encoded word in it (RFC 2047, section 2).
WORD_LINE, _WORD = 76, 75
_AROUND = len("=?utf-8?q??=")
#: How much of a line without a break is encoded anew with a field, in characters.
_NEAR = 60
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_DOT_ATEXT = re.compile(r"[\w!#$%&'*+/=?^`{|}~.-]+", re.ASCII)
#: What of those a parameter may not have unquoted (RFC 2045, section 5.1), and an extended
#: parameter, which is decoded, at all (RFC 2231, section 7).
_NOT_IN_PARAMETERS, _NOT_IN_EXTENDED = "/=?", "%'*"
_SPACED_WORD = re.compile("[ \t]*[^ \t]+")
#: How each octet stands in an encoded word, also within a phrase (RFC 2047, section 5, rule 3).
_Q = [
    chr(octet) if chr(octet).isalnum() or chr(octet) in "!*+-/" else f"={octet:02X}"
    for octet in range(128)
] + [f"={octet:02X}" for octet in range(128, 256)]
_Q[0x20] = "_"


def shown(value: str) -> str:
    """Return a value as an error shows it."""
    return repr(value if len(value) <= 100 else value[:100] + "...")


def split_fields(text: str, where: str) -> "list[str]":
    """Return a text's pieces: what is fixed and names of fields, in turn.

    Raises ValueError for ``{{`` that begins no field.  *where* is for it to tell.
    """
    position = text.find("{{")
    while position >= 0:
        match = _FIELD.match(text, position)
        if not match:
            raise ValueError(
                f"{_MEANT.findall(text, position)[0]!r} in {where} is no field: in the braces "
                "stands one name of ASCII letters, digits and underscores"
            )
        position = text.find("{{", match.end())
    return _FIELD.split(text)


def mismatch(given: "Iterable[str]", expected: "frozenset[str]") -> ValueError:
    """Return the error for fields that are missing and fields that there are not."""
    kinds = {"missing": expected.difference(given), "unknown": set(given).difference(expected)}
    told = [
        f"{kind} field{'s' if len(names) > 1 else ''} {', '.join(sorted(map(repr, names)))}"
        for kind, names in kinds.items()
        if names
    ]
    return ValueError("; ".join(told))


def text_of(name: str, value: object) -> str:
    """Return a value as text.  Raises TypeError for what is neither text nor a number."""
    if isinstance(value, str):
        return str.__str__(value)  # not str(): members of enumerations show names
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    from decimal import Decimal

    if isinstance(value, Decimal):
        return str(value)
    raise TypeError(
        f"field {name!r} must be str, int, float or Decimal, not {type(value).__name__}"
    )


def check_characters(name: str, value: str) -> None:
    """Raise ValueError for a value that cannot be written in UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"field {name!r} is {shown(value)}: {value[error.start]!r} is a surrogate code point, "
            "which UTF-8 does not express (RFC 3629, section 3)"
        ) from None


class Text:
    """A text with fields; called with values it returns the text with them in their places."""

    __slots__ = ("_format", "_get", "names")

    def __init__(self, pieces: "Sequence[str]") -> None:
        self.names = tuple(pieces[1::2])
        self._format = "%s".join([fixed.replace("%", "%%") for fixed in pieces[::2]])
        self._get: Callable[[Values], Any] = itemgetter(*self.names) if self.names else _nothing

    def __call__(self, values: "Values") -> str:
        # "%" takes the one value of one field as well as the tuple of several.
        return self._format % self._get(values)  # type: ignore[no-any-return]


def _nothing(values: "Values") -> "tuple[()]":
    return ()


class Place:
    """Something that is written anew for each recipient, by its method write().

    That returns what goes over the wire, and raises ValueError for a value that
    may not stand there.
    """

    __slots__ = ("names",)
    names: "tuple[str, ...]"
    #: Whether values are escaped as markup has it.
    markup = False

    if TYPE_CHECKING:

        def write(self, values: "Values") -> bytes: ...


# -- header fields --------------------------------------------------------------


class Unstructured(Place):
    """An unstructured field (RFC 5322, section 2.2.1): any text but control characters.

    With *words* a word that is too long for a line is written as encoded
    words; without, it has a line of its own, for machines to read.
    """

    __slots__ = ("_longest", "_prefix", "_room", "_text")

    def __init__(self, header: str, pieces: "Sequence[str]", *, words: bool) -> None:
        if any(_CONTROL.search(fixed.replace("\t", "")) for fixed in pieces[::2]):
            raise ValueError(f"{header}: a control character (RFC 5322, section 2.2)")
        self._text = Text(pieces)
        self.names = self._text.names
        self._prefix = header + ": "
        self._room = _LINE - len(self._prefix)
        self._longest = _LINE if words else _LONGEST

    def write(self, values: "Values") -> bytes:
        text = self._text(values)
        if text.isascii() and text.isprintable() and "=?" not in text:
            if len(text) <= self._room and text[:1] != " " != text[-1:]:
                return f"{self._prefix}{text}\r\n".encode("ascii")
        else:
            refuse_controls(self._prefix, self.names, values)
        return self._folded(text).encode("ascii")

    def _folded(self, text: str) -> str:
        plain = text.isascii() and "=?" not in text and text == text.strip(" \t")
        folded = _fold(self._prefix, text, self._longest) if plain else None
        if folded is not None:
            return folded
        first = WORD_LINE - len(self._prefix)
        # A long name leaves no room for a character: then the line is longer.
        words = encoded_words(text, first if first >= 24 else _WORD, _WORD)
        return self._prefix + "\r\n ".join(words) + "\r\n"


class Structured(Place):
    """A structured field other than addresses: values are of dots and atext, and ASCII."""

    __slots__ = ("_forbidden", "_prefix", "_text")

    def __init__(self, header: str, pieces: "Sequence[str]") -> None:
        if not all(fixed.isascii() and not _CONTROL.search(fixed) for fixed in pieces[::2]):
            raise ValueError(f"{header}: beside fields there can be only printable ASCII")
        self._text = Text(pieces)
        self.names = self._text.names
        self._prefix = header + ": "
        self._forbidden = ""
        if header.lower().startswith("content-"):
            extended = any("*=" in fixed for fixed in pieces[::2])
            self._forbidden = _NOT_IN_PARAMETERS + (_NOT_IN_EXTENDED if extended else "")

    def write(self, values: "Values") -> bytes:
        for name in self.names:
            self._check(name, values[name])
        folded = _fold(self._prefix, self._text(values), _LONGEST)
        if folded is None:
            raise ValueError(f"{self._prefix[:-2]} is too long: a line has up to 998 characters")
        return folded.encode("ascii")

    def _check(self, name: str, value: str) -> None:
        if not _DOT_ATEXT.fullmatch(value):
            rule = (
                "only ASCII letters, digits, dots and !#$%&'*+-/=?^_`{|}~ may stand there, "
                "one at least (atext: RFC 5322, section 3.2.3)"
            )
        elif "=?" in value:
            rule = "'=?' would begin an encoded word (RFC 2047, section 5)"
        elif not set(value).isdisjoint(self._forbidden):
            rule = (
                f"none of {self._forbidden} may stand there "
                "(RFC 2045, section 5.1; RFC 2231, section 7)"
            )
        else:
            return
        raise ValueError(f"field {name!r} of {self._prefix[:-2]} is {shown(value)}: {rule}")


def refuse_controls(prefix: str, names: "tuple[str, ...]", values: "Values") -> None:
    """Raise ValueError if one of the values has a control character.

    *prefix* is the header field's name, a colon and a space.
    """
    for name in names:
        found = _CONTROL.search(values[name])
        if found:
            raise ValueError(
                f"field {name!r} of {prefix[:-2]} is {shown(values[name])}: control characters, "
                f"such as {found[0]!r}, may not stand in a header (header injection refused; "
                "RFC 5322, section 2.2)"
            )


def _fold(prefix: str, text: str, longest: int) -> "str | None":
    """Return a field folded before spaces, or None if a line would be longer than *longest*.

    Without its line breaks it is the text again, to the space (RFC 5322,
    section 2.2.3).  The first word stays beside the name, where all readers
    expect it.
    """
    lines, line = [], prefix
    for position, word in enumerate(_SPACED_WORD.findall(text)):
        if position and len(line) + len(word) > _LINE:
            lines.append(line)
            line = word
        else:
            line += word
    lines.append(line)
    if max(map(len, lines)) > longest:
        return None
    return "\r\n".join(lines) + "\r\n"


def encoded_words(text: str, first: int, rest: int) -> "list[str]":
    """Return a text as encoded words of UTF-8, in whichever encoding is shorter (RFC 2047).

    *first* and *rest* are the longest the first one and the others may be, at
    least 24 characters.
    """
    octets = text.encode()
    quoted = "".join([_Q[octet] for octet in octets])
    length = (len(octets) + 2) // 3 * 4
    base64 = length < len(quoted)
    room = first - _AROUND
    if min(length, len(quoted)) <= room:
        return [_word(text, base64)]
    words = []
    start, used = 0, 0
    # Section 5, rule 3: a character is never divided between two words.
    for position, character in enumerate(text):
        size = len(character.encode())
        if not base64:
            size = sum([len(_Q[octet]) for octet in character.encode()])
        if used + size > (room // 4 * 3 if base64 else room):
            words.append(_word(text[start:position], base64))
            start, used, room = position, 0, rest - _AROUND
        used += size
    words.append(_word(text[start:], base64))
    return words


def _word(text: str, base64: bool) -> str:
    octets = text.encode()
    if base64:
        return f"=?utf-8?b?{b2a_base64(octets, newline=False).decode('ascii')}?="
    return f"=?utf-8?q?{''.join([_Q[octet] for octet in octets])}?="


# -- bodies -----------------------------------------------------------------------


class _OfText(Place):
    """A piece of a text; with *markup* its values are escaped."""

    __slots__ = ("_text", "markup")

    def __init__(self, pieces: "Sequence[str]", *, markup: bool) -> None:
        self._text = Text(pieces)
        self.names = self._text.names
        self.markup = markup


class Line(_OfText):
    """Text between two line breaks, or less, in quoted-printable (RFC 2045, section 6.7)."""

    __slots__ = ()

    def write(self, values: "Values") -> bytes:
        text = self._text(values)
        if "\n" in text:
            return quoted_printable(text)
        octets: bytes = b2a_qp(text.encode(), False, False)
        return octets if len(octets) <= 76 else octets.replace(b"\n", b"\r\n")


class ContinuedLine(_OfText):
    """The same, but the line goes on after it."""

    __slots__ = ()

    def write(self, values: "Values") -> bytes:
        return quoted_printable(self._text(values), continued=True)


class Base64(_OfText):
    """A whole text in base64 (RFC 2045, section 6.8)."""

    __slots__ = ()

    def write(self, values: "Values") -> bytes:
        # Line breaks become CRLF before they are encoded (RFC 2045, section 6.8).
        text = self._text(values).replace("\n", "\r\n")
        octets = b2a_base64(text.encode(), newline=False)
        return b"".join([octets[at : at + 76] + b"\r\n" for at in range(0, len(octets), 76)])


def quoted_printable(text: str, *, continued: bool = False) -> bytes:
    """Return a text in quoted-printable: its LF are line breaks, its CR are not.

    With *continued* it ends with a soft line break.
    """
    lines = text.split("\n")
    encoded = [b2a_qp(line.encode(), False, False) for line in lines]
    if continued:
        # The "x" keeps room for "=", and white space before it, which there needs no encoding.
        last = b2a_qp(lines[-1].encode() + b"x", False, False)[:-1]
        encoded[-1] = last if last.endswith(b"=\n") else last + b"=\n"
    return b"\r\n".join([line.replace(b"\n", b"\r\n") for line in encoded])


def quoted_printable_places(pieces: "Sequence[str]", *, markup: bool) -> "list[bytes | Place]":
    """Return a text with fields, its line breaks LF: what is fixed, encoded, and places between.

    A place is a whole line, or as much of it as is near to a field, so that
    what is fixed is encoded once and stands at the same column for all.
    """
    written: list[bytes | Place] = []
    line = [""]
    last = len(pieces) - 1
    for position, piece in enumerate(pieces):
        if position % 2:
            line += (piece, "")
            continue
        before, after = _near(piece, position == 0, position == last)
        if before >= after:
            line[-1] += piece
            continue
        line[-1] += piece[:before]
        if position:
            kind = Line if piece[before] == "\n" else ContinuedLine
            written.append(kind(line, markup=markup))
        fixed = piece[before:after]
        continued = position != last and not fixed.endswith("\n")
        written.append(quoted_printable(fixed, continued=continued))
        line = [piece[after:]]
    if line != [""]:
        written.append(Line(line, markup=markup))
    return written


def _near(piece: str, first: bool, last: bool) -> "tuple[int, int]":
    """Return where the line before a fixed piece of text ends, and where the one after begins."""
    end, start = piece.find("\n"), piece.rfind("\n") + 1
    if first:
        end = 0
    elif not 0 <= end <= _NEAR:
        end = _NEAR
    if last:
        start = len(piece)
    elif len(piece) - start > _NEAR:
        start = len(piece) - _NEAR
    return end, start
