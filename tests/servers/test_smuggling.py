"""What some server may take for the end of a message, inside messages: one message arrives.

A client and a server that see the end of a message at different places let whoever wrote the
message put a second one behind it, with an envelope of his own (CVE-2023-51764 and its kin).
Text, messages of the email package and all that goes by a Mailer have CRLF for any newline when
they leave, so what arrives is known to the octet.  Bytes go through `SMTP.sendmail` as they are,
but for dots after a newline (docs/differences.md): then a server may refuse the message, and may
write its newlines and dots otherwise; but what arrives is one message with all of the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import cycle, islice, product

import pytest
from clients import KINDS, connect
from post import FORMS, Post, as_it_is
from relay import cut, relay

feature = pytest.mark.feature

ANN = "ann@example.test"
SEQUENCES = (
    b"\n.\n",
    b"\n.\r\n",
    b"\r.\r\n",
    b"\r.\r",
    b"\r\n.\r",
    b"\r\r\n.\r\n",
)
#: What the writer of the message would have the server do.
SMUGGLED = (
    b"MAIL FROM:<evil@example.test>\r\nRCPT TO:<victim@example.test>\r\nDATA\r\n"
    b"From: evil@example.test\r\nDate: Thu, 01 Jan 2026 00:00:00 +0000\r\n"
    b"Message-ID: <evil@example.test>\r\n\r\nSmuggled.\r\n"
)
DROP_INS = ("SMTP", "SMTP_SSL", "LMTP")


def normalized(body: bytes) -> bytes:
    return re.sub(rb"\r\n?|\n", b"\r\n", body)


def without_newlines(content: bytes) -> bytes:
    """Return a content without what a server may write otherwise if it was sent as it was.

    (Exim makes a space of a lone LF.)
    """
    return content.translate(None, b"\r\n. ")


def send(
    post: Post,
    kind: str,
    letters: Iterable[tuple[str, bytes]],
    **settings: object,
) -> None:
    """Send letters, forms and bodies, on one connection; none, or it alone, arrives of each."""
    sent = []
    with connect(kind, post.server, **settings) as client:
        for form, body in letters:
            letter = post.letter(body, arrives=normalized(body), form=form)
            sent.append((form == "bytes" and kind in DROP_INS, letter, client.send(letter, [ANN])))
    for raw, letter, result in sent:
        assert raw or result.status == "accepted", result
        post.check_result(result, letter, [ANN], seen=without_newlines if raw else as_it_is)


@feature("smuggling: six sequences that are no end of a message, inside messages")
@pytest.mark.parametrize("kind", KINDS)
def test_smuggling(post: Post, kind: str):
    bodies = [
        body
        for octets in SEQUENCES
        for body in (b"Before" + octets + SMUGGLED, octets + SMUGGLED, b"." + octets)
    ]
    send(post, kind, product(FORMS, bodies))


@feature("the same, cut at each octet on the way")
@pytest.mark.parametrize("kind", ["SMTP", "Mailer-DATA", "Mailer-BDAT"])
def test_cut(post: Post, kind: str):
    """So that the server meets each part of a sequence at the end, and the rest at the beginning.

    What is cut is what goes over the wire, with the dots that the client has put in.
    """
    bodies = [
        b"".join(b"HERE%d" % cut_at + octets + SMUGGLED for cut_at in range(8))
        for octets in SEQUENCES
    ]
    with relay(post.server.endpoints["plain"].address, cut) as between:
        address = between.host, between.port
        send(post, kind, product(("text", "bytes"), bodies), address=address)


def rows(*sequences: bytes) -> bytes:
    """Return more than 64 KiB of sequences, so that boundaries at 2^n fall anywhere in them.

    The rows have an odd length.
    """
    row = b"".join(b"a" + octets for octets in islice(cycle(sequences), 24)) + b"\r\n"
    return (b"a" * (1 - len(row) % 2) + row) * (80_000 // len(row))


@feature("the same, 80 KB of them, over all boundaries of the client's chunks")
@pytest.mark.parametrize("kind", KINDS)
def test_boundaries(post: Post, kind: str):
    """The client writes 64 KiB at a time; TLS has records of 16 KiB."""
    mixed = rows(*SEQUENCES)
    single = map(rows, SEQUENCES) if kind in DROP_INS else [mixed]
    send(post, kind, [("text", mixed), ("parsed", mixed), *(("bytes", each) for each in single)])
