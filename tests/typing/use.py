"""The public API as users write it: type-checked, never run."""

import io
import smtplib
import ssl
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timezone
from email.message import EmailMessage
from email.message import Message as AnyEmailMessage
from pathlib import Path
from typing import Any

import fastsmtp
from fastsmtp import (
    LMTP,
    SMTP,
    SMTP_SSL,
    DeliverBy,
    Delivery,
    Mailer,
    Message,
    Options,
    Recipient,
    RecipientResult,
    SMTPProtocolError,
    SMTPRecipientsRefused,
    Template,
    Timeouts,
    Totals,
    serialize,
    serialize_buffers,
)


def send_one(message: EmailMessage) -> dict[str, tuple[int, bytes]]:
    with SMTP("mail.example.org", 587, timeout=30, pipelining=True) as smtp:
        smtp.starttls(context=ssl.create_default_context())
        code, text = smtp.login("user", "password")
        print(code, text.decode())
        return smtp.send_message(message)


def send_many(messages: list[bytes | bytearray | memoryview | str]) -> None:
    with SMTP_SSL("mail.example.org", context=ssl.create_default_context()) as smtp:
        smtp.login("user", lambda: "an access token")
        recipients = (f"{name}@example.org" for name in ("ann", "bob"))
        for message in messages:
            refused = smtp.sendmail("me@example.org", recipients, message, ["BODY=8BITMIME"])
            for address, (code, text) in refused.items():
                print(address, code, text.decode())


def deliver(path: str) -> None:
    try:
        with LMTP(path) as lmtp:
            lmtp.sendmail("", "ann@example.org", b"Subject: x\r\n\r\n")
    except SMTPRecipientsRefused as error:
        print(error.recipients)
    except SMTPProtocolError as error:
        print(error.args)


def is_a_drop_in(smtp: SMTP) -> smtplib.SMTP:
    client: type[smtplib.SMTP] = fastsmtp.SMTP
    assert issubclass(client, smtplib.SMTP)
    return smtp


def elsewhere() -> str:
    with fastsmtp.install():
        smtplib.SMTP("mail.example.org").quit()
    fastsmtp.uninstall()
    smtp = SMTP()
    smtp.set_debuglevel(1)
    smtp.auth("XOAUTH2", smtp.auth_xoauth2)
    path: str = fastsmtp.quoteaddr("Ann <ann@example.org>")
    text: str = fastsmtp.quotedata(".dot")
    return fastsmtp.implementation() + fastsmtp.__version__ + path + text


def letters(letter: EmailMessage, rows: list[dict[str, str]]) -> Iterator[Message]:
    template = Template(letter)
    names: frozenset[str] = template.fields
    print(names)
    for number, row in enumerate(rows):
        yield template.render(row, id=number, options=Options())


def as_octets(letter: EmailMessage, received: AnyEmailMessage, file: io.BytesIO) -> bytes:
    file.writelines(serialize_buffers(letter, linesep="\n", policy=letter.policy))
    return serialize(received, mangle_from_=False)


def each_message(rows: list[tuple[str, str]]) -> Iterator[Message]:
    options = Options(
        notify=["failure", "delay"],
        ret="hdrs",
        envid="batch-7",
        require_tls=False,
        deliver_by=DeliverBy(3600, "notify", trace=True),
        priority=3,
        hold_until=datetime(2030, 1, 1, tzinfo=timezone.utc),
    )
    for number, (address, text) in enumerate(rows):
        yield Message("me@example.org", address, text, id=number, options=options)
    yield Message("", ["ann@example.org", Recipient("bob@example.org", notify="never")], b"x")
    yield Message("me@example.org", Recipient("bob@example.org", orcpt="b@example.org"), "x")
    yield Message("me@example.org", (name for name in ("ann@example.org",)), bytearray(b"x"))
    yield Message("me@example.org", {"ann@example.org"}, memoryview(b"x"), id="memory")
    yield Message("me@example.org", "ann@example.org", Path("message.eml"))
    yield Message("me@example.org", "ann@example.org", io.BytesIO(b"x"))
    with open("message.eml", encoding="utf-8") as file:
        yield Message("me@example.org", "ann@example.org", file, options=Options(hold_for=60))


def send_in_bulk(rows: list[tuple[str, str]]) -> dict[str, int]:
    with Mailer(
        "relay.example.org",
        587,
        username="user",
        password=lambda: "secret",
        mechanisms=["SCRAM-SHA-256", "PLAIN"],
        tls="starttls",
        context=ssl.create_default_context(),
        connections=8,
        max_messages_per_connection=1000,
        rate=200.0,
        chunking=False,
        timeouts=Timeouts(command=20.0, final=300.0),
        retries=2,
        retry_delay=30.0,
        options=Options(ret="full"),
        source_address=("192.0.2.1", 0),
    ) as mailer:
        deliveries: Iterator[Delivery] = mailer.send_many(each_message(rows))
        for delivery in deliveries:
            report(delivery)
        totals: Totals = mailer.totals
    counts: dict[str, int] = totals.counts
    reasons: Counter[tuple[int, tuple[int, int, int] | None, str]] = totals.replies
    for (code, enhanced, text), count in reasons.most_common():
        print(count, code, enhanced or "", text)
    notes: list[str] = totals.notes
    print(totals.messages, totals.octets, totals.seconds, totals.rate, totals.connections, *notes)
    return counts | totals.recipients


def report(delivery: Delivery) -> None:
    status: str = delivery.status
    queue_id: str | None = delivery.queue_id
    error: Exception | None = delivery.error
    print(delivery.id, status, queue_id, delivery.attempts, delivery.connection, delivery.seconds)
    result: RecipientResult
    for result in delivery.recipients:
        address, status, reply = result
        print(address, status, "" if reply is None else reply.text.decode(), result.reply is reply)
    for address, reply in delivery.refused.items():
        print(address, reply.code, reply.enhanced, reply.lines)
    if error is not None and status == "not_sent":
        raise error


def send_email_messages(
    messages: list[EmailMessage], old: AnyEmailMessage, host: str
) -> list[Delivery]:
    mailer = Mailer(host, protocol="lmtp", tls="none", local_hostname="me.example.org", timeouts=20)
    try:
        first: Delivery = mailer.send(messages[0])
        mixed: list[EmailMessage | Message] = [*messages, Message("", "ann@example.org", "x")]
        return [first, mailer.send(old), *mailer.send_many(messages), *mailer.send_many(mixed)]
    finally:
        mailer.stop()
        mailer.close()
        print(mailer.totals)


def with_a_token(token: str, secret: Any = None) -> Mailer:
    return Mailer("smtp.example.org:465", username="user", token=token or secret, tls="implicit")
