"""What a server was given, and what is in its mailboxes.

    letter = post.letter(b"Hello\\r\\n")
    ...  # send it to ann and bob
    post.check(letter, ["ann@example.test", "bob@example.test"])

A letter is known by its Message-ID.  check() takes from the mailboxes what is
there until all the copies are; that there is not
one too many, of this or of any other message, is for `strays()` at the end, so
that no test has to wait for what does not come.
"""

from __future__ import annotations

import email
import email.policy
import functools
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
from clients import SENDER, Letter, Result
from features import extensions_of
from server import Delivered, MailServer

from fastsmtp.envelope import ascii_domain

PATIENCE = 60.0  # seconds; a queue may be long
FORMS: dict[str, Callable[[bytes], Any]] = {
    "bytes": bytes,
    "text": bytes.decode,
    "parsed": functools.partial(email.message_from_bytes, policy=email.policy.SMTP),
}
_ID = re.compile(rb"(?mi)^Message-ID: <(\d+)@client\.example>\r?$")


def as_it_is(content: bytes) -> bytes:
    return content


class Post:
    """The letters to one server."""

    def __init__(self, server: MailServer) -> None:
        self.server = server
        self.offered = extensions_of(server)
        #: Called with what was compared: copies, octets.
        self.compared: Callable[[int, int], None] = lambda copies, octets: None
        self._arrived: dict[str, list[Delivered]] = defaultdict(list)
        self._due: dict[str, int] = {}

    def letter(
        self,
        body: bytes = b"Hello.\r\n",
        *fields: str,
        arrives: bytes | None = None,
        form: str = "bytes",
    ) -> Letter:
        """Write a letter with further header *fields*.

        *arrives* is the body that must arrive, if it is not the same.  *form*
        is what is handed in: "bytes", "text", or "parsed": an EmailMessage.
        """
        number = str(len(self._due) + 1)
        self._due[number] = 0
        # All that a server would put in if it missed it.
        header = "\r\n".join(
            (
                f"Message-ID: <{number}@client.example>",
                "Date: Thu, 01 Jan 2026 00:00:00 +0000",
                f"From: {SENDER}",
                "To: ann@example.test",
                f"Subject: Letter {number}",
                *fields,
                "\r\n",
            )
        ).encode()
        content = header + (body if arrives is None else arrives)
        return Letter(number, FORMS[form](header + body), content)

    def check(
        self,
        letter: Letter,
        recipients: Iterable[str],
        sender: str = SENDER,
        seen: Callable[[bytes], bytes] = as_it_is,
    ) -> None:
        """Compare what arrives of a letter with what was sent to recipients that were accepted.

        *seen* takes from both contents what a server may change.
        """
        wanted = sorted(map(canonical, recipients))
        self._due[letter.id] += len(wanted)
        arrived = self._await(letter.id)
        assert sorted(canonical(each.recipient) for each in arrived) == wanted
        assert {canonical(each.sender) for each in arrived} == {canonical(sender)}
        content = seen(letter.content)
        for each in arrived:
            assert_same(seen(each.content), content)
        self.compared(len(arrived), sum(len(each.content) for each in arrived))

    def check_result(
        self,
        result: Result,
        letter: Letter,
        recipients: Sequence[str],
        seen: Callable[[bytes], bytes] = as_it_is,
    ) -> None:
        """The letter has arrived once if the client was told so, else not at all."""
        if result.status == "accepted":
            self.check(letter, recipients, seen=seen)
        else:
            assert result.status in ("rejected", "deferred"), result

    def _await(self, number: str) -> list[Delivered]:
        arrived, end = self._arrived[number], time.monotonic() + PATIENCE
        while len(arrived) < self._due[number] and time.monotonic() < end:
            self._collect()
            if len(arrived) < self._due[number]:
                time.sleep(0.01)
        return arrived

    def _collect(self) -> None:
        for copy in self.server.collect():
            found = _ID.search(copy.content.partition(b"\r\n\r\n")[0])
            self._arrived[found[1].decode() if found else "?"].append(copy)

    def strays(self) -> list[Delivered]:
        """Return what has arrived though nobody was told that it would, or told once."""
        time.sleep(self.server.pause)
        self._collect()
        return [
            stray
            for number, copies in self._arrived.items()
            for stray in copies[self._due.get(number, 0) :]
        ]


def canonical(address: str) -> str:
    """Return an address as all write it: the domain in lower case and ASCII."""
    return ascii_domain(address).lower() if address else ""


def assert_same(arrived: bytes, sent: bytes) -> None:
    """Fail where they begin to differ: nobody reads a difference of 10 MB."""
    if arrived == sent:
        return
    pairs = enumerate(zip(arrived, sent, strict=False))
    shorter = min(len(arrived), len(sent))
    at = next((i for i, (one, other) in pairs if one != other), shorter)
    where = slice(max(0, at - 40), at + 40)
    pytest.fail(
        f"{len(sent)} octets were sent, {len(arrived)} arrived; from octet {at} on "
        f"{sent[where]} became {arrived[where]}"
    )
