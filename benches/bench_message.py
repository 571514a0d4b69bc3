"""Messages: serialize(), Template and send_message() against what the standard library has.

fastsmtp is in its chosen codec here; FASTSMTP_IMPL=python measures the other. The contenders take
their turns only in report.py: its ratios are the ones to quote.
"""

import copy
import email
import email.policy
import io
import itertools
import random
import smtplib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import datetime, timezone
from email.generator import BytesGenerator
from email.message import EmailMessage, Message
from functools import partial
from html import escape
from typing import Any, NamedTuple

import message_memory
import pytest
import sink
from bench_sendmail import PLACES
from measure import Contenders, on_one_cpu, text
from message_memory import composed

import fastsmtp
from fastsmtp.envelope import Envelope

CODEC = fastsmtp.implementation()
#: So many in turn are in a CPU's cache still, as a message is that is sent once composed; or not.
FRESH, OLD = 20, 400
ATTACHMENTS = {"200 KB": 200_000, "5 MB": 5_000_000}


class Case(NamedTuple):
    """Contenders for one result, the standard library's first; they are made when it is run."""

    what: str
    size: str
    against: str
    target: str
    contenders: Callable[[], Contenders]
    normal: Callable[[Any], object]

    @property
    def name(self) -> str:
        return f"{self.what}, {self.size}" if self.size else self.what

    def outcomes(self, contenders: Contenders) -> list[object]:
        """Return what each contender makes when it draws the same random numbers as the others."""
        made = []
        for contender in contenders.values():
            random.seed(2046)
            made.append(self.normal(contender()))
        return made


# -- serialize() --------------------------------------------------------------


def generated(message: Message) -> bytes:
    with io.BytesIO() as buffer:
        BytesGenerator(buffer).flatten(message, linesep="\r\n")
        return buffer.getvalue()


def generated_anew(message: Message) -> bytes:
    """Leave the message without a boundary: BytesGenerator gives it the one that it draws."""
    return generated(copy.copy(message))


def of_each(function: Callable[..., object], values: Sequence[object]) -> list[object]:
    return [function(value) for value in values]


def serializers(generate: Callable[..., bytes], messages: Callable[[], Sequence]) -> Contenders:
    given = messages()
    return {
        "BytesGenerator": partial(of_each, generate, given),
        CODEC: partial(of_each, fastsmtp.serialize, given),
    }


def different(count: int = FRESH, **fields: str) -> list[Message]:
    """Return messages to take in turn: what is kept of one does not serve the next."""
    return [composed(number, **fields) for number in range(count)]


def parsed(policy: str, messages: Callable[[], Sequence[Message]]) -> list[Message]:
    read = partial(email.message_from_bytes, policy=getattr(email.policy, policy))
    return [read(message.as_bytes()) for message in messages()]


def serialize_cases() -> Iterator[Case]:
    def case(what, target, messages, size="", generate=generated):
        contenders = partial(serializers, generate, messages)
        return Case(f"`serialize`, {what}", size, "BytesGenerator", target, contenders, list)

    fields = {"subject": "Grüße aus Århus", "name": "Zoë Müller"}
    yield case("4 KB text, 8 fields", "6 x, -", different)
    yield case("long composed, not in the CPU's cache", "", partial(different, OLD))
    yield case("fields outside ASCII", "", partial(different, **fields))
    yield case("parsed by policy default", "", partial(parsed, "default", different))
    yield case("parsed by compat32", "", partial(parsed, "compat32", different))
    for size, octets in ATTACHMENTS.items():
        messages = partial(attached, octets)
        drawn = partial(attached, octets, boundary=None)
        yield case("base64 attachment", "30 x, -", messages, size)
        yield case("base64 attachment, no boundary", "30 x, -", drawn, size, generated_anew)
        for policy in ("default", "compat32"):
            what = f"base64 attachment, parsed by {policy}"
            yield case(what, "", partial(parsed, policy, messages), size)


def attached(octets: int, boundary: str | None = "=_minutes") -> list[Message]:
    return [composed(attachment=octets, boundary=boundary)]


# -- Template -----------------------------------------------------------------

FIELDS = ("name", "address", "order", "total", "day", "link")
VALUES = [
    {
        "name": f"Bob Stone {number}",
        "address": f"bob{number}@example.net",
        "order": f"2024-{number}",
        "total": f"{number}.50",
        "day": "3 April",
        "link": f"https://example.org/?a=1&order={number}",
    }
    for number in range(FRESH)
]


def page(newline: str) -> str:
    """Return 20 KB of HTML with the fields in it, each paragraph with *newline* in its tags."""
    paragraphs = [f"<p>{newline}{line}{newline}</p>\n" for line in text(18_500).splitlines()]
    for number, name in enumerate(FIELDS):
        paragraphs[40 * number] = f"<p>Your {name}: {{{name}}}.</p>\n"
    return f"<html><body>\n{''.join(paragraphs)}</body></html>\n"


def filled(html: str, fields: Mapping[str, str]) -> EmailMessage:
    """Return the message for one recipient, as a program without Template composes it."""
    message = EmailMessage()
    message["From"] = f"Ana Lima <{sink.SENDER}>"
    message["To"] = f"{fields['name']} <{fields['address']}>"
    message["Subject"] = f"Your order {fields['order']}"
    message["Date"] = datetime(2024, 3, 27, 11, tzinfo=timezone.utc)
    message["Message-ID"] = f"<order.{fields['order']}@example.org>"
    escaped = {name: escape(value) for name, value in fields.items()}
    message.set_content(html.format(**escaped), subtype="html")
    return message


def renderers(html: str) -> Contenders:
    template = fastsmtp.Template(filled(html, {name: f"{{{{{name}}}}}" for name in FIELDS}))
    return {
        "EmailMessage": partial(of_each, lambda fields: generated(filled(html, fields)), VALUES),
        CODEC: partial(of_each, lambda fields: template.render(fields).content, VALUES),
    }


def contents(messages: Sequence[bytes]) -> list[object]:
    """Return what is read in messages, in whatever transfer encoding (RFC 2045, section 6)."""
    read = [email.message_from_bytes(octets, policy=email.policy.default) for octets in messages]
    encoding = "Content-Transfer-Encoding"
    fields = [[field for field in message.items() if field[0] != encoding] for message in read]
    return list(zip(fields, [message.get_content() for message in read], strict=True))


def render_cases() -> Iterator[Case]:
    against = "EmailMessage, BytesGenerator"
    for newline in ("\n", ""):
        html = page(newline)
        encoding = filled(html, VALUES[0])["Content-Transfer-Encoding"]
        what = f"`Template.render`, 6 fields, 20 KB HTML, against one in {encoding}"
        yield Case(what, "", against, "50 x, -", partial(renderers, html), contents)


CASES = [*serialize_cases(), *render_cases()]


@pytest.mark.parametrize("contender", ["standard library", CODEC])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_message(benchmark, case, contender):
    benchmark.group = case.name
    contenders = case.contenders()
    theirs, ours = case.outcomes(contenders)
    assert theirs == ours
    benchmark(list(contenders.values())[contender == CODEC])


# -- the envelope -------------------------------------------------------------

RECIPIENTS = [f"bob{number}@example.net" for number in range(1000)]
COMMANDS = "".join([f"RCPT TO:<{address}>\r\n" for address in RECIPIENTS]).encode()

#: What makes all recipients' paths, and how RCPT is made of what it returns.
PATHS = {
    "smtplib": (partial(of_each, smtplib.quoteaddr, RECIPIENTS), "quoted"),
    "`quoteaddr`": (partial(of_each, fastsmtp.quoteaddr, RECIPIENTS), "quoted"),
    "commands, if not all are plain": (lambda: Envelope("", RECIPIENTS).rcpts, "commands"),
    "commands": (partial(fastsmtp.codec.envelope_commands, "", RECIPIENTS), "flight"),
}
TO_COMMANDS = {
    "quoted": lambda paths: "".join([f"RCPT TO:{path}\r\n" for path in paths]).encode(),
    "commands": b"".join,
    "flight": lambda commands: commands.removeprefix(b"MAIL FROM:<>\r\n"),
}


@pytest.mark.benchmark(group="1,000 recipients")
@pytest.mark.parametrize("contender", PATHS)
def test_recipients(benchmark, contender):
    make, kind = PATHS[contender]
    assert TO_COMMANDS[kind](benchmark(make)) == COMMANDS


# -- send_message() -----------------------------------------------------------


class Sending(NamedTuple):
    """How many recipients a message has, and whether they are in its To or given to the call."""

    recipients: int
    listed: bool
    target: str

    @property
    def what(self) -> str:
        where = "" if self.recipients == 1 else " in To" if self.listed else " given"
        return f"`send_message`, 4 KB, recipients: {self.recipients}{where}"

    def messages(self) -> list[Message]:
        if self.recipients == 1 or not self.listed:
            return different()
        to = RECIPIENTS[: self.recipients]
        return [composed(number, to=to) for number in range(FRESH)]


SENDINGS = [
    Sending(1, True, "6 x, -"),
    Sending(100, True, "15 x, -"),
    Sending(100, False, "15 x, -"),
]


@contextmanager
def senders(port: int, sending: Sending) -> Iterator[Contenders]:
    """Give what sends one message after the other: smtplib, and fastsmtp by its codec's name."""
    messages = sending.messages()
    to = None if sending.listed else RECIPIENTS[: sending.recipients]
    with (
        smtplib.SMTP(sink.HOST, port, "localhost") as old,
        fastsmtp.SMTP(sink.HOST, port, "localhost") as new,
    ):
        yield {"smtplib": sends(old, messages, to), CODEC: sends(new, messages, to)}


def sends(
    smtp: smtplib.SMTP, messages: Sequence[Message], to: Sequence[str] | None
) -> Callable[[], None]:
    following = itertools.cycle(messages)

    def send() -> None:
        assert smtp.send_message(next(following), to_addrs=to) == {}

    return send


needs_sink = pytest.mark.skipif(not sink.SMTP_SINK, reason=sink.MISSING)


@pytest.fixture(scope="module")
def smtp_sink():
    with sink.running() as port_and_process:
        yield port_and_process


@needs_sink
@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("client", ["smtplib", CODEC])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("sending", SENDINGS, ids=lambda sending: sending.what)
def test_send_message(benchmark, smtp_sink, sending, place, client):
    port, process = smtp_sink
    benchmark.group = f"{sending.what}, {place}, CPU"
    placed = on_one_cpu(process) if place == "on one CPU" else nullcontext()
    with senders(port, sending) as clients, placed:
        benchmark(clients[client])


@needs_sink
@pytest.mark.parametrize("sending", SENDINGS, ids=lambda sending: sending.what)
def test_what_arrives(tmp_path, sending):
    dump = tmp_path / "dump"
    with sink.running(dump) as (port, _), senders(port, sending) as clients:
        for send in clients.values():
            send()
    message = sending.messages()[0]
    assert sink.dumped(dump) == [message.as_string()] * len(clients)
    arrived = [line for line in dump.read_text().splitlines() if line.startswith("X-Rcpt-Args")]
    to = RECIPIENTS[: sending.recipients]
    assert arrived == [f"X-Rcpt-Args: <{address}>" for address in to] * len(clients)


@needs_sink
@pytest.mark.skipif(not message_memory.MEASURABLE, reason=message_memory.MISSING)
@pytest.mark.parametrize("library", ["smtplib", "fastsmtp"])
def test_memory(library):
    assert message_memory.measured(library, 2_000_000).above > 0  # and what arrived is right
