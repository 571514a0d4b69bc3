"""The messages of ``fastsmtp send``: .eml files, folders of them, Maildirs, mboxes, streams.

A source is counted without being read, as far as that is cheap, and iterated
lazily: it yields entries, an id and a way to get the bytes, so that a message
that is not to be sent need not be read.  The id is the same in every run.
"""

import hashlib
import heapq
import os
import re
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from email.message import Message
from functools import partial
from typing import NamedTuple, Protocol

from ..message import envelope_addresses
from .exits import NO_INPUT, Failure

#: Names of a folder that are held in memory at a time.
NAMES_AT_A_TIME = 50_000
#: The longest mbox that is read through to count its messages.
COUNTED_OCTETS = 512 << 20

_NEWLINE = re.compile(rb"\r\n|\r|\n")
_HEADER_END = re.compile(rb"(?:\A|\n)\r?\n")
_FROM_LINE = re.compile(rb"From [^\r\n]*(?:\r\n|\n|\Z)")
_QUOTED_FROM = re.compile(rb"^>(>*From )", re.MULTILINE)
_FROM_LINES = re.compile(rb"(?:\A|\n\r?\n)From ")
_FIELD = rb"^(%s)[ \t]*:(.*(?:\n[ \t].*)*)\n?"
_ADDRESSES = re.compile(
    _FIELD % rb"(?:resent-)?(?:from|sender|to|cc|bcc)|resent-date", re.IGNORECASE | re.MULTILINE
)
_BLIND_COPIES = re.compile(_FIELD % rb"(?:resent-)?bcc", re.IGNORECASE | re.MULTILINE)


class Item(Protocol):
    """What a source yields: a message that is made when it is asked for."""

    @property
    def id(self) -> str: ...

    def told(self, reason: str) -> str:
        """Return why it cannot be sent, with the place where it is if the id does not tell."""
        ...

    def letter(self, sender: str | None, recipients: list[str] | None) -> "Letter":
        """Return the message; *sender* and *recipients* go before what its header says.

        Raises ValueError for what cannot be sent, OSError for what cannot be read.
        """
        ...


class Entry(NamedTuple):
    """A message that a source has: its id, and what reads it (which may raise OSError)."""

    id: str
    read: Callable[[], bytes]

    def told(self, reason: str) -> str:
        """Return why it cannot be sent."""
        return reason

    def letter(self, sender: str | None, recipients: list[str] | None) -> "Letter":
        """Return the message as open_letter() does."""
        return open_letter(self.read(), sender, recipients)


@dataclass(frozen=True)
class Source:
    """One SOURCE of the command line.

    *count* returns the number of its messages, or None where counting is not
    cheap.  *entries* returns an iterator over them.
    """

    name: str
    count: Callable[[], int | None]
    entries: Callable[[], Iterator[Item]]


def find(arguments: Iterable[str]) -> list[Source]:
    """Return the sources that the arguments name, each once.

    Raises Failure for one that is not there or cannot be read.
    """
    return [_source(argument) for argument in dict.fromkeys(arguments)]


def _source(argument: str) -> Source:
    if argument == "-":
        return Source("stdin", lambda: 1, partial(_stream, "stdin", sys.stdin.buffer.read))
    try:
        mode = os.stat(argument).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # <(a shell's substitution)
            return Source(argument, lambda: 1, partial(_stream, argument, partial(_read, argument)))
        # A symbolic link such as "today" names other messages tomorrow.
        path = os.path.realpath(argument)
        if stat.S_ISDIR(mode):
            return _folder(argument, path)
        with open(path, "rb") as file:
            start = file.read(5)
    except OSError as error:
        raise Failure(f"{argument}: {error.strerror}", NO_INPUT) from None
    if not path.lower().endswith(".eml") and start in (b"From ", b""):
        return Source(argument, partial(_count_mbox, path), partial(_mbox, path))
    return Source(argument, lambda: 1, lambda: iter([Entry(path, partial(_read, path))]))


# -- files and folders ----------------------------------------------------------


def _folder(argument: str, path: str) -> Source:
    if os.path.isdir(os.path.join(path, "cur")) and os.path.isdir(os.path.join(path, "new")):
        names = partial(_maildir_names, path)
    else:
        names = partial(_eml_names, path)
        with os.scandir(path):
            pass  # may it be read?
    return Source(argument, lambda: sum(1 for _ in names()), partial(_files, path, names))


def _eml_names(path: str) -> Iterator[tuple[str, str]]:
    """Yield (name, name) of a folder's .eml files, in no order."""
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name.lower().endswith(".eml") and not entry.is_dir():
                yield entry.name, entry.name


def _maildir_names(path: str) -> Iterator[tuple[str, str]]:
    """Yield (unique name, path in the Maildir) of its messages, in no order.

    The unique name stays when a reader moves the message from new to cur, and
    when it sets flags.
    """
    for folder in ("new", "cur"):
        with os.scandir(os.path.join(path, folder)) as entries:
            for entry in entries:
                if not entry.name.startswith(".") and not entry.is_dir():
                    yield entry.name.partition(":")[0], os.path.join(folder, entry.name)


def _files(path: str, names: Callable[[], Iterator[tuple[str, str]]]) -> Iterator[Entry]:
    """Yield the entries of a folder by name, in memory that does not grow with the folder.

    The folder is read through for every so many of its names.
    """
    last = ""
    while True:
        try:
            found = heapq.nsmallest(NAMES_AT_A_TIME, (name for name in names() if name[0] > last))
        except OSError as error:
            raise Failure(f"{error.filename}: {error.strerror}", NO_INPUT) from None
        for name, place in found:
            if name != last:
                last = name
                yield Entry(os.path.join(path, name), partial(_read, os.path.join(path, place)))
        if len(found) < NAMES_AT_A_TIME:
            return


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _stream(name: str, read: Callable[[], bytes]) -> Iterator[Entry]:
    """Yield the one message of a stream, whose id is made of its bytes."""
    try:
        content = read()
    except OSError as error:
        raise Failure(f"{name}: {error.strerror}", NO_INPUT) from None
    yield Entry(f"sha256:{hashlib.sha256(content).hexdigest()}", lambda: content)


# -- mbox -----------------------------------------------------------------------


def _count_mbox(path: str) -> int | None:
    import mmap

    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > COUNTED_OCTETS:
                return None
            if size == 0:
                return 0
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as octets:
                return sum(1 for _ in _FROM_LINES.finditer(octets))
    except OSError:
        return None


def _mbox(path: str) -> Iterator[Entry]:
    """Yield the messages of an mbox, each under the place where it begins.

    A message begins at the start of the file, or after an empty line, with a
    line that begins with "From ".  One ">" is taken off the lines that
    begin with ">From ", ">>From " and so on, as the format "mboxrd" has it.
    """
    try:
        with open(path, "rb") as file:
            position = start = 0
            lines: list[bytes] = []
            after_blank = True
            for line in file:
                if after_blank and line.startswith(b"From ") and lines:
                    yield _mbox_entry(path, start, lines)
                    lines, start = [], position
                lines.append(line)
                position += len(line)
                after_blank = line in (b"\n", b"\r\n")
            if lines:
                yield _mbox_entry(path, start, lines)
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}", NO_INPUT) from None


def _mbox_entry(path: str, start: int, lines: list[bytes]) -> Entry:
    if lines[-1] in (b"\n", b"\r\n"):
        del lines[-1]  # it belongs to the line after it
    content = b"".join(lines)
    return Entry(f"{path}:{start}", lambda: _QUOTED_FROM.sub(rb"\1", content))


# -- the envelope ---------------------------------------------------------------


class Letter(NamedTuple):
    """A message's envelope, and its content as it is sent."""

    sender: str
    recipients: list[str]
    content: bytes


def open_letter(content: bytes, sender: str | None, recipients: list[str] | None) -> Letter:
    """Return a message with the envelope that its header gives, where one is None.

    The content stays as it is, except that a leading mbox line and the fields
    Bcc and Resent-Bcc are left out.  The recipients are those of all To, Cc
    and Bcc fields, or of their Resent- kin, each once.

    Raises ValueError if there is no sender or no recipient.
    """
    if not content.strip():
        raise ValueError("the message is empty")
    if content.startswith(b"From "):
        content = content[_FROM_LINE.match(content).end() :]  # type: ignore[union-attr]
    end = _header_end(content)
    if content.count(b"\r", 0, end) != content.count(b"\r\n", 0, end):
        # A CR on its own goes out as a newline, so it must count as one here:
        # a Bcc field could stand behind it.
        content = _NEWLINE.sub(b"\r\n", content)
        end = _header_end(content)
    header = content[:end]
    found = envelope_addresses(_address_fields(header), sender, recipients)
    addresses = [address for address in dict.fromkeys(found[1]) if address]
    if sender is None and not found[0]:
        raise ValueError("the sender cannot be read from the header")
    if not addresses:
        raise ValueError("no recipient can be read from the header")
    for address in (found[0], *addresses):
        if "\ufffd" in address:
            raise ValueError(f"an address in the header is not UTF-8: {address}")
    kept = _BLIND_COPIES.sub(b"", header)
    if len(kept) != len(header):
        content = kept + content[end:]
    return Letter(found[0], addresses, content)


def _header_end(content: bytes) -> int:
    """Return where the empty line after the header begins."""
    match = _HEADER_END.search(content)
    if match is None:
        return len(content)
    return match.start() and match.start() + 1  # the header's last newline is the header's


def _address_fields(header: bytes) -> "Message[str, str]":
    """Return the fields of a header that envelope_addresses() reads.

    Parsing these alone takes a fraction of the time that the whole would.
    Fields of one name are joined: RFC 5322, section 3.6, allows one of each,
    but a recipient in the second is one.
    """
    fields: dict[str, list[str]] = {}
    for name, value in _ADDRESSES.findall(header):
        text = _NEWLINE.sub(b"", value).decode("utf-8", "replace").strip()
        fields.setdefault(name.decode("ascii").lower(), []).append(text)
    message: Message[str, str] = Message()
    for field, values in fields.items():
        if field == "resent-date":
            for value in values:
                message[field] = value
        elif values := [value for value in values if value]:
            joined = values[0] if field.endswith(("from", "sender")) else ", ".join(values)
            message[field] = joined
    return message
