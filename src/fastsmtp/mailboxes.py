"""Header fields of addresses with {{fields}}: read once, written for each recipient."""

import re

from .envelope import _PLAIN, ascii_domain, path
from .places import WORD_LINE, Place, Text, encoded_words, refuse_controls, shown, split_fields

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .places import Values

#: The longest a path is (RFC 5321, section 4.5.3.1.3), without its brackets.
_LONGEST_ADDRESS = 254
#: From this length on a display name is written as encoded words, which can be folded anywhere.
_LONG_NAME = 58
#: The longest name of such a field; where in the line an address stands is not yet known.
_PREFIX = len("Resent-Reply-To: ")
#: Words of atext (RFC 5322, section 3.2.3), but without what an encoded word begins with.
_ATOMS = re.compile(r"[\w!#$%&'*+/?^`{|}~-]+(?: [\w!#$%&'*+/?^`{|}~-]+)*", re.ASCII)
_ATEXT = r"[\w!#$%&'*+/=?^`{|}~\u0080-\U0010ffff-]"
_ADDR_SPEC = re.compile(
    rf'(?:{_ATEXT}+(?:\.{_ATEXT}+)*|"(?:[ !#-\[\]-~\u0080-\U0010ffff]|\\[ -~])*")'
    r"@(?:[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*|\[[!-Z^-~]+\])",
    re.ASCII,
)
_TOKEN = re.compile(
    r"""(?P<field>\{\{\s*\w+\s*\}\})
    | (?P<quoted>"(?:[^"\\]|\\.)*")
    | <(?P<angle>(?:[^<>"]|"(?:[^"\\]|\\.)*")*)>
    | (?P<space>\s+)
    | (?P<special>[,:;])
    | (?P<word>\[[^\[\]\\]*\] | (?:(?!\{\{)[^\s,:;<>"()\[\]])+)""",
    re.DOTALL | re.VERBOSE,
)


class Mailbox:
    """One address, with or without a display name (RFC 5322, section 3.4)."""

    __slots__ = ("_address", "_header", "_name", "names")

    def __init__(self, header: str, name: "Sequence[str] | None", address: "Sequence[str]") -> None:
        self._header = header
        self._name = None if name is None else Text(name)
        self._address = Text(address)
        self.names = (() if self._name is None else self._name.names) + self._address.names

    def write(self, values: "Values", addresses: "list[str]") -> str:
        """Return it as the header has it, and add the address to a list."""
        address = self._address(values)
        if not _PLAIN.fullmatch(address) or len(address) > _LONGEST_ADDRESS or "=?" in address:
            address = self._checked(address, values)
        addresses.append(address)
        if self._name is None:
            return address
        name = self._name(values)
        if _ATOMS.fullmatch(name) and len(name) + len(address) < _LONG_NAME:
            return f"{name} <{address}>"
        return self._named(name, address, values)

    def _checked(self, address: str, values: "Values") -> str:
        """Return an address that is not the usual one, its domain in ASCII."""
        try:
            written = ascii_domain(address)
            reason = _against(written)
            if not reason:
                return written
        except ValueError as error:
            reason = str(error)
        names = self._address.names
        given = ", ".join([f"field {name!r} is {shown(values[name])}" for name in names])
        raise ValueError(
            f"{self._header}: {shown(address)} is not one address ({reason})"
            + (f": {given}" if given else "")
        )

    def _named(self, name: str, address: str, values: "Values") -> str:
        if not name.isprintable() and self._name is not None:
            refuse_controls(self._header + ": ", self._name.names, values)
        if not name.strip(" "):
            return address
        phrase = _phrase(name)
        column = len(phrase) - phrase.rfind("\n") - 1 if "\n" in phrase else _PREFIX + len(phrase)
        space = " " if column + len(address) + 4 <= WORD_LINE else "\r\n "
        return f"{phrase}{space}<{address}>"


def _against(address: str) -> str:
    """Return the rule that an address breaks, "" if it breaks none."""
    if len(address.encode()) > _LONGEST_ADDRESS:
        return "up to 254 octets: RFC 5321, section 4.5.3.1.3"
    if "=?" in address:
        # It is of atext, but there are readers who would decode it and see another address.
        return "no encoded word may be in one: RFC 2047, section 5"
    is_one = _ADDR_SPEC.fullmatch(address) and address.isprintable()
    return "" if is_one and path(address) == f"<{address}>" else "RFC 5322, section 3.4.1"


def quoted_string(text: str) -> str:
    """Return a text between quotes (RFC 5322, section 3.2.4)."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _phrase(name: str) -> str:
    """Return a display name as it is written."""
    if name.isascii() and name.isprintable() and "=?" not in name and len(name) < _LONG_NAME:
        if _ATOMS.fullmatch(name):
            return name
        return quoted_string(name)
    # Wherever it comes to stand, there is room for it on the line, beside _PREFIX.
    return "\r\n ".join(encoded_words(name, _LONG_NAME, _LONG_NAME))


class Fixed:
    """Addresses without fields, written once: one, or a group's."""

    __slots__ = ("addresses", "text")
    names = ()

    def __init__(self, text: str, addresses: "Sequence[str]") -> None:
        self.text = text
        self.addresses = addresses

    def write(self, values: "Values", addresses: "list[str]") -> str:
        addresses += self.addresses
        return self.text


class Addresses(Place):
    """A field of addresses, such as To; if *hidden*, such as Bcc, it is not written."""

    __slots__ = ("_hidden", "_items", "_prefix")

    def __init__(
        self, header: str, items: "Sequence[Mailbox | Fixed]", *, hidden: bool = False
    ) -> None:
        self._hidden = hidden
        self._prefix = header + ": "
        self._items = items
        self.names = tuple([name for item in items for name in item.names])

    def write(self, values: "Values") -> bytes:
        return self.write_and_tell(values)[0]

    def write_and_tell(self, values: "Values") -> "tuple[bytes, list[str]]":
        """Return what write() does, and the addresses for the envelope."""
        addresses: list[str] = []
        units = [item.write(values, addresses) for item in self._items]
        if self._hidden:
            return b"", addresses
        return (self._prefix + _join(units, len(self._prefix)) + "\r\n").encode(), addresses


def _join(units: "Sequence[str]", column: int) -> str:
    """Return a list of addresses, folded after commas; it begins at *column*."""
    if len(units) == 1:
        return units[0]
    text = ""
    for unit in units:
        first_line = unit.partition("\r\n")[0]
        if text:
            folds = column + len(first_line) + 3 > WORD_LINE  # ", " before it and "," after it
            text += ",\r\n " if folds else ", "
            column = 1 if folds else column + 2
        text += unit
        column = len(unit) - unit.rfind("\n") - 1 + (0 if "\n" in unit else column)
    return text


# -- reading ----------------------------------------------------------------------


def read_addresses(header: str, text: str, *, hidden: bool = False) -> Addresses:
    """Return a field of addresses, read from its text.

    A parser of our own, for "{{ name }} <{{ email }}>" is none of RFC 5322's.
    """
    return Addresses(header, _Reader(header, text).items(), hidden=hidden)


class _Reader:
    """Reads a list of addresses with fields (RFC 5322, section 3.4)."""

    __slots__ = ("_header", "_text")

    def __init__(self, header: str, text: str) -> None:
        self._header = header
        self._text = text

    def items(self) -> "list[Mailbox | Fixed]":
        """Return the addresses; a group is one item, and has no fields."""
        items: list[Mailbox | Fixed] = []
        group: list[Mailbox | Fixed] = []
        phrase: str | None = None  # of the group that is being read
        words: list[re.Match[str]] = []
        for token in self._tokens():
            special = token["special"]
            if special is None:
                words.append(token)
            elif special == ":":
                if phrase is not None:
                    raise self._wrong("a group in a group")
                phrase, words = self._phrase(words), []
            elif special == ";" and phrase is None:
                raise self._wrong("';' without a group")
            else:
                items_here = items if phrase is None else group
                items_here += self._mailbox(words)
                words = []
                if special == ";":
                    items.append(self._group(phrase or "", group))
                    phrase, group = None, []
        if phrase is not None:
            raise self._wrong("a group without ';'")
        return items + self._mailbox(words)

    def _wrong(self, reason: str) -> ValueError:
        return ValueError(
            f"{self._header}: {self._text!r} cannot be read as addresses: {reason} "
            "(RFC 5322, section 3.4)"
        )

    def _tokens(self) -> "Iterable[re.Match[str]]":
        position = 0
        while position < len(self._text):
            match = _TOKEN.match(self._text, position)
            if not match:
                raise self._wrong(f"{self._text[position : position + 20]!r}")
            yield match
            position = match.end()

    def _group(self, phrase: str, items: "list[Mailbox | Fixed]") -> Fixed:
        if "{{" in phrase or any(item.names for item in items):
            raise self._wrong("a field in a group")
        addresses: list[str] = []
        units = [item.write({}, addresses) for item in items]
        name = _phrase(phrase)
        return Fixed(f"{name}: {_join(units, len(name) + 2)};", addresses)

    def _mailbox(self, tokens: "list[re.Match[str]]") -> "list[Mailbox | Fixed]":
        """Return one address, or none: there may be nothing between two commas."""
        tokens = _trimmed(tokens)
        if not tokens:
            return []
        name = None
        if any(token["angle"] is not None for token in tokens):
            *words, last = tokens
            if last["angle"] is None or any(word["angle"] is not None for word in words):
                raise self._wrong("text after '>'")
            address = last["angle"].strip()
            name = self._phrase(words)
        else:
            address = "".join([token[0] for token in tokens])
        where = f"the {self._header} field"
        pieces = split_fields(address, where)
        if '"' not in address and any(re.search(r"[\s<>,;]", fixed) for fixed in pieces[::2]):
            raise self._wrong(f"{address!r} is not one address")
        mailbox = Mailbox(self._header, split_fields(name, where) if name else None, pieces)
        if mailbox.names:
            return [mailbox]
        addresses: list[str] = []
        return [Fixed(mailbox.write({}, addresses), addresses)]

    def _phrase(self, tokens: "list[re.Match[str]]") -> str:
        """Return a display name, without its quotes."""
        text = ""
        for token in _trimmed(tokens):
            if token["quoted"]:
                text += re.sub(r"\\(.)", r"\1", token["quoted"][1:-1], flags=re.DOTALL)
            elif token["angle"] is not None:
                raise self._wrong("'<' in a name")
            else:
                text += " " if token["space"] else token[0]
        return text


def _trimmed(tokens: "list[re.Match[str]]") -> "list[re.Match[str]]":
    """Return tokens without white space at either end."""
    marks = [position for position, token in enumerate(tokens) if not token["space"]]
    return tokens[marks[0] : marks[-1] + 1] if marks else []
