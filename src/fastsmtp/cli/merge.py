"""Mail merge for ``fastsmtp send``: one letter, a row of data for each message."""

import email
import email.policy
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from email.message import EmailMessage, MIMEPart
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ..outgoing import addresses
from .exits import NO_INPUT, Failure, describe
from .rows import Row, Table
from .sources import Letter, Source

if TYPE_CHECKING:
    from ..template import Template

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_FOLD = re.compile("\r\n|\r|\n")


# -- the letter -----------------------------------------------------------------


def read_template(path: str) -> "Template":
    """Return the template that an .eml file is, with what it lacks of MIME added.

    Raises Failure if it cannot be read, click.UsageError if it is no template.
    """
    from ..template import Template

    try:
        with open(path, "rb") as file:
            octets = file.read()
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}", NO_INPUT) from None
    try:
        return Template(parse_letter(octets))
    except Exception as error:
        # For some fields the library's parser has errors of its own that are no ValueErrors.
        raise click.UsageError(f"{path}: {describe(error)}") from None


def parse_letter(octets: bytes) -> EmailMessage:
    """Return the message that was written by hand, in whatever editor.

    A header in UTF-8 is taken as what it says (RFC 6532).  Text whose charset
    is not named is UTF-8, and not ASCII (RFC 2045, section 5.2): so are the
    values that come into it.

    Raises ValueError if it is no message, or names no charset where it must,
    and what the library's parser of header fields does.
    """
    message = email.message_from_bytes(
        octets.removeprefix(_BYTE_ORDER_MARK), EmailMessage, policy=email.policy.default
    )
    if not message.keys():
        raise ValueError("it has no header; the header ends at the first empty line")
    for part in _parts(message):
        _check_structure(part)
        _decode_header(part)
        _name_charset(part)
    if "MIME-Version" not in message:
        message["MIME-Version"] = "1.0"
    return message


def _parts(part: MIMEPart) -> Iterator[MIMEPart]:
    """Yield a part and those in it, but none of a message that is passed on, or was signed."""
    yield part
    if part.get_content_maintype() == "multipart" and part.get_content_subtype() != "signed":
        for child in part.iter_parts():
            yield from _parts(child)


def _check_structure(part: MIMEPart) -> None:
    for defect in part.defects:
        words = (type(defect).__doc__ or type(defect).__name__).split()
        raise ValueError(f"it is no message as RFC 5322 and RFC 2046 have it: {' '.join(words)}")


def _decode_header(part: MIMEPart) -> None:
    fields = list(part.raw_items())
    if all(value.isascii() for _, value in fields):
        return
    for name, _ in fields:
        del part[name]
    for name, value in fields:
        if value.isascii():
            part.set_raw(name, value)
        else:
            _add_decoded(part, name, value)


def _add_decoded(part: MIMEPart, name: str, value: str) -> None:
    """Add a field that the parser left as the octets that the file has."""
    try:
        text = value.encode("ascii", "surrogateescape").decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"the field {name} is neither ASCII nor UTF-8") from None
    try:
        part[name] = _FOLD.sub("", text)
    except Exception as error:
        raise ValueError(f"the field {name} cannot be read: {describe(error)}") from None


def _name_charset(part: MIMEPart) -> None:
    """Have a text say its charset, and its transfer encoding if it is outside ASCII."""
    if part.is_multipart() or part.get_content_maintype() != "text" or part.is_attachment():
        return
    octets: Any = part.get_payload(decode=True)
    if part.get_content_charset() is None:
        try:
            octets.decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError(
                "a text is neither ASCII nor UTF-8, and no Content-Type names its charset"
            ) from None
        part.set_param("charset", "utf-8", replace="Content-Type" in part)
    if not octets.isascii() and "Content-Transfer-Encoding" not in part:
        part["Content-Transfer-Encoding"] = "8bit"


# -- the letter and the data ----------------------------------------------------


class Merge:
    """A template and the rows that go into it.

    *name* is what errors call the template.  *id_column* names the column that
    has the messages' ids, None for the place of the row.  *ignore* says that
    columns may be there which nothing uses.

    Raises click.UsageError if the columns are not those of the template.
    """

    def __init__(
        self,
        template: "Template",
        table: Table,
        *,
        name: str = "the template",
        id_column: str | None = None,
        ignore: bool = False,
    ) -> None:
        self._template, self._table = template, table
        self._id_column = id_column
        self._ignore = ignore
        if table.columns is not None:
            self._check_columns(os.path.basename(name), table.columns)

    def _check_columns(self, template: str, columns: list[str]) -> None:
        data, used = os.path.basename(self._table.name), self._template.fields
        for name in columns:
            if name and columns.count(name) > 1:
                raise click.UsageError(f"{data} has two columns {name!r}")
        if missing := used.difference(columns):
            raise click.UsageError(
                f"{data} has no column {_listed(sorted(missing))}, which {template} asks for; "
                f"its columns are {_listed(columns)}"
            )
        if self._id_column is not None and self._id_column not in columns:
            raise click.UsageError(
                f"--id-column: {data} has no column {self._id_column!r}; "
                f"its columns are {_listed(columns)}"
            )
        unused = [name for name in columns if name not in used and name != self._id_column]
        if unused and not self._ignore:
            raise click.UsageError(
                f"{template} has no field {_listed(unused)}, which {data} has a column for; "
                "--ignore-columns lets it have such"
            )

    def source(self) -> Source:
        """Return what the messages come from; it can be iterated once."""
        return Source(self._table.name, self._table.count, self.entries)

    def entries(self) -> Iterator["Merged"]:
        """Yield what makes the messages, one for each row."""
        for row in self._table.rows:
            yield self._entry(row)

    def _entry(self, row: Row) -> "Merged":
        fields, error, identity = row.fields, row.error, None
        place = f"line {row.line}"
        if self._id_column is not None and not error:
            identity = fields.get(self._id_column)
            if not isinstance(identity, str) or not identity.strip():
                error = f"the column {self._id_column!r} has no id: {identity!r}"
                identity = None
        if identity is None:
            identity = _identity(self._table, row)
            place = "" if self._table.path else place
        return Merged(identity, place, self._template, self._used(fields), error)

    def _used(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Return the fields of a row that render() is given: it refuses what it has no use for."""
        used = self._template.fields
        if self._ignore:
            return {name: value for name, value in fields.items() if name in used}
        if self._id_column is None or self._id_column in used:
            return fields
        return {name: value for name, value in fields.items() if name != self._id_column}


def _identity(table: Table, row: Row) -> str:
    """Return the place of a row, or, in a stream, which may be another one tomorrow, its digest."""
    if table.path is not None:
        return f"{table.path}:{row.line}"
    return f"sha256:{hashlib.sha256(row.text.encode('utf-8')).hexdigest()}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join([repr(name) if name else "(without a name)" for name in names])


class Merged(NamedTuple):
    """The message of one row: its id, and what it is made of.

    *place* is the line, and empty where the id tells it.
    """

    id: str
    place: str
    template: "Template"
    fields: dict[str, Any]
    error: str

    def told(self, reason: str) -> str:
        """Return why it cannot be sent, with the line if the id does not tell it."""
        return f"{self.place}: {reason}" if self.place else reason

    def letter(self, sender: str | None, recipients: list[str] | None) -> Letter:
        """Return the message, its sender and its recipients those given, unless they are None.

        Raises ValueError or TypeError for a row of which no message can be made.
        """
        if self.error:
            raise ValueError(self.error)
        message = self.template.render(self.fields)
        if sender is None:
            sender = message.sender
        if recipients is None:
            recipients = list(dict.fromkeys(addresses(message.recipients)))
        return Letter(sender, recipients, message.content)
