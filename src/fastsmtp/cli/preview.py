"""What ``fastsmtp send --preview`` shows: messages as their readers get them."""

import email
import email.policy
import sys
from collections.abc import Iterator
from email.message import EmailMessage, MIMEPart
from itertools import islice
from typing import Any

import click

from .exits import OK, SOME_NOT, describe, printable
from .sources import Letter, Source


def show(source: Source, count: int, sender: str | None) -> int:
    """Print the first messages of a source, and return the exit status.

    What cannot be made is told on stderr.  Raises Failure if the source cannot
    be read.
    """
    status, shown = OK, 0
    for item in islice(source.entries(), count):
        shown += 1
        try:
            letter = item.letter(sender, None)
        except Exception as error:
            # Whatever is in a message, the others are shown.
            click.echo(
                f"Cannot be sent: {printable(item.id)}: {item.told(describe(error))}", err=True
            )
            status = SOME_NOT
        else:
            for line in lines(item.id, letter):
                click.echo(_encodable(line))
    if not shown:
        click.echo("Nothing to send.")
    return status


def lines(identity: str, letter: Letter) -> Iterator[str]:
    """Yield a message in lines that can be read: the envelope, the header, and the texts."""
    yield f"===== {printable(identity)}"
    yield printable(f"MAIL FROM:<{letter.sender}>")
    for address in letter.recipients:
        yield printable(f"RCPT TO:<{address}>")
    yield "-----"
    message = email.message_from_bytes(letter.content, EmailMessage, policy=email.policy.default)
    for name, value in message.raw_items():
        yield printable(f"{name}: {_decoded(name, value)}")
    for part in _leaves(message):
        yield f"----- {_kind(part)}" if part is not message else "-----"
        yield from _body(part)
    yield ""


def _leaves(part: MIMEPart) -> Iterator[MIMEPart]:
    if part.get_content_maintype() != "multipart":
        yield part
        return
    for child in part.iter_parts():
        yield from _leaves(child)


def _decoded(name: str, value: str) -> str:
    """Return a field's value without encoded-words (RFC 2047)."""
    text = value.encode("ascii", "surrogateescape").decode("utf-8", "replace")
    try:
        return str(email.policy.default.header_factory(name, "".join(text.splitlines())))
    except Exception:
        # The parser of fields gives up on some in ways of its own.
        return text


def _kind(part: MIMEPart) -> str:
    name = part.get_filename()
    return printable(part.get_content_type() + (f", {name}" if name else ""))


def _body(part: MIMEPart) -> Iterator[str]:
    octets: Any = part.get_payload(decode=True)
    if octets is None:  # of a message that is passed on
        messages: Any = part.get_payload()
        octets = b"".join(map(bytes, messages))
    if part.get_content_maintype() != "text" or part.is_attachment():
        yield f"({len(octets):,} octets)"
        return
    try:
        text = octets.decode(part.get_content_charset("us-ascii"), "replace")
    except LookupError:  # a charset of no such name
        text = octets.decode("ascii", "replace")
    for line in text.replace("\r\n", "\n").removesuffix("\n").split("\n"):
        yield "".join([c if c.isprintable() or c == "\t" else "?" for c in line])


def _encodable(line: str) -> str:
    encoding = sys.stdout.encoding or "utf-8"
    return line.encode(encoding, "replace").decode(encoding)
