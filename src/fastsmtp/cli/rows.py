"""The data of a mail merge: a CSV file, or JSON Lines, read as its turn comes."""

import csv
import json
import os
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import IO, Any, NamedTuple

import click

from .exits import NO_INPUT, Failure

#: The longest file that is read through to count its rows.
COUNTED_OCTETS = 64 << 20

_ENDINGS = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_NOT_UTF_8 = 'is not text in UTF-8 (from a spreadsheet it has to be saved as "CSV UTF-8")'


class Row(NamedTuple):
    """A row: the line on which it begins, what it says, and its fields.

    *error* tells why it has none, and is empty where it has.
    """

    line: int
    text: str
    fields: dict[str, Any]
    error: str = ""


@dataclass(frozen=True)
class Table:
    """A data file that has been begun.

    *name* is what the command line calls it, *path* its absolute path, None for
    a stream.  *columns* are the names in the CSV header or in the first object,
    None if there is no object.  *rows* can be iterated once.  *count* returns
    how many there are, None where counting is not cheap.  *close* closes the
    file.
    """

    name: str
    path: str | None
    columns: list[str] | None
    rows: Iterator[Row]
    count: Callable[[], int | None]
    close: Callable[[], None]


def open_table(argument: str, form: str | None) -> Table:
    """Begin to read a data file; ``-`` is stdin, *form* "csv", "jsonl" or None.

    Raises Failure if it cannot be read, click.UsageError if nothing tells its
    format.
    """
    form = form or _ENDINGS.get(os.path.splitext(argument)[1].lower())
    if form is None:
        known = "" if argument == "-" else f" (its name ends in none of {', '.join(_ENDINGS)})"
        raise click.UsageError(f"--data {argument} needs --data-format{known}")
    begin, count_rows = (_begin_csv, _csv_rows) if form == "csv" else (_begin_json, _json_rows)
    if argument == "-":
        columns, rows = begin("stdin", sys.stdin.buffer)
        return Table("stdin", None, columns, rows, lambda: None, lambda: None)
    try:
        file = open(argument, "rb")  # noqa: SIM115  # Table.close is for it
    except OSError as error:
        raise Failure(f"{argument}: {error.strerror}", NO_INPUT) from None
    try:
        columns, rows = begin(argument, file)
        is_regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    except BaseException:
        file.close()
        raise
    path = os.path.realpath(argument) if is_regular else None
    count = partial(_count, path, form == "csv", count_rows)
    return Table(argument, path, columns, rows, count, file.close)


def _count(
    path: str | None, has_header: bool, rows: Callable[[str, IO[bytes]], Iterator[Any]]
) -> int | None:
    try:
        if path is None or os.path.getsize(path) > COUNTED_OCTETS:
            return None
        with open(path, "rb") as file:
            return sum(1 for _ in rows(path, file)) - has_header
    except (OSError, Failure):
        return None


# -- CSV ------------------------------------------------------------------------


def _begin_csv(name: str, file: IO[bytes]) -> tuple[list[str], Iterator[Row]]:
    rows = _csv_rows(name, file)
    _, header = next(rows, (0, None))
    if header is None:
        raise Failure(f"{name} is empty: a CSV file begins with the names of its columns", NO_INPUT)
    if not _is_utf8("".join(header)):
        raise Failure(f"{name} {_NOT_UTF_8}", NO_INPUT)
    columns = [cell.strip() for cell in header]
    return columns, (_csv_row(line, columns, cells) for line, cells in rows)


def _csv_rows(name: str, file: IO[bytes]) -> Iterator[tuple[int, list[str]]]:
    """Yield the line where a row begins, and its cells; empty lines are none."""
    line = 1
    try:
        first, lines = _begun(_decoded(file))
        reader = csv.reader(lines, delimiter=_delimiter(first), strict=True)
        while True:
            line = reader.line_num + 1
            cells = next(reader, None)
            if cells is None:
                return
            if cells:
                yield line, cells
    except csv.Error as error:
        # Where the next row begins is anybody's guess.
        raise Failure(f"{name}: line {line}: {error}", NO_INPUT) from None
    except OSError as error:
        raise Failure(f"{name}: {error.strerror}", NO_INPUT) from None


def _begun(lines: Iterator[str]) -> tuple[str, Iterator[str]]:
    """Return the first line that is not empty, and all of them."""
    passed = [""]
    while not passed[-1].strip("\r\n"):
        line = next(lines, None)
        if line is None:
            break
        passed.append(line)
    return passed[-1], chain(passed[1:], lines)


def _delimiter(header: str) -> str:
    """Return what stands between the cells of a CSV file.

    It is a comma; but where numbers have decimal commas, spreadsheet programs
    write semicolons.  No name that a template can have has any of these in it.
    """
    return next((mark for mark in ",;\t" if mark in header), ",")


def _decoded(file: IO[bytes]) -> Iterator[str]:
    """Yield the lines of a file; what is no text in UTF-8 becomes surrogates."""
    for number, octets in enumerate(file):
        text = octets if number else octets.removeprefix(_BYTE_ORDER_MARK)
        # At a NUL the csv of Python 3.10 gives up on the whole file.
        yield text.decode("utf-8", "surrogateescape").replace("\0", "\udc00")


def _csv_row(line: int, columns: list[str], cells: list[str]) -> Row:
    text = json.dumps(cells)
    if len(cells) != len(columns):
        error = f"the row has {len(cells)} cells, and the header has {len(columns)}"
        return Row(line, text, {}, error)
    if not _is_utf8("".join(cells)):
        return Row(line, text, {}, f"the row {_NOT_UTF_8}")
    fields = dict(zip(columns, cells, strict=True))
    fields.pop("", None)
    return Row(line, text, fields)


def _is_utf8(text: str) -> bool:
    """Say whether a text that was decoded with "surrogateescape" was UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


# -- JSON Lines -----------------------------------------------------------------


def _begin_json(name: str, file: IO[bytes]) -> tuple[list[str] | None, Iterator[Row]]:
    rows = (_json_row(line, text) for line, text in _json_rows(name, file))
    first = next(rows, None)
    if first is None:
        return None, rows
    if first.error:
        raise Failure(f"{name}: line {first.line}: {first.error}", NO_INPUT)
    return list(first.fields), chain([first], rows)


def _json_rows(name: str, file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not empty, each with its number."""
    try:
        for line, octets in enumerate(file, 1):
            text = (octets.removeprefix(_BYTE_ORDER_MARK) if line == 1 else octets).strip()
            if text:
                yield line, text
    except OSError as error:
        raise Failure(f"{name}: {error.strerror}", NO_INPUT) from None


def _json_row(line: int, octets: bytes) -> Row:
    text = octets.decode("utf-8", "replace")
    try:
        # Numbers stay as they are written: 12.50 is not 12.5.
        fields = json.loads(
            octets.decode("utf-8"),
            parse_int=str,
            parse_float=str,
            parse_constant=_no_constant,
            object_pairs_hook=_object,
        )
    except UnicodeDecodeError:
        return Row(line, text, {}, "the line is not text in UTF-8")
    except json.JSONDecodeError as error:
        return Row(line, text, {}, f"the line is not JSON: {error.msg}, column {error.colno}")
    except (ValueError, RecursionError) as error:
        return Row(line, text, {}, f"the line is not JSON: {error}")
    if not isinstance(fields, dict):
        return Row(line, text, {}, "the line is not a JSON object")
    return Row(line, text, fields)


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is no value (RFC 8259, section 6)")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice!r} is there twice (RFC 8259, section 4)")
    return fields
