"""The public API as users write it: type-checked, never run."""

import smtplib
import ssl
from email.message import EmailMessage

import fastsmtp
from fastsmtp import LMTP, SMTP, SMTP_SSL, SMTPProtocolError, SMTPRecipientsRefused


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
