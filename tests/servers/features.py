"""What a server must have for a test, and why it has it not."""

from __future__ import annotations

import smtplib
import ssl

from clients import KINDS, NAME, purpose_of
from server import MailServer

#: Those that both the drop-in and the Mailer have, and those of the Mailer.
COMMON_MECHANISMS = ("PLAIN", "LOGIN", "CRAM-MD5", "XOAUTH2")
MECHANISMS = (*COMMON_MECHANISMS, "OAUTHBEARER", "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS")
EXTENSIONS = ("PIPELINING", "CHUNKING", "SIZE", "8BITMIME", "SMTPUTF8")
ENDPOINTS = ("plain", "submission", "smtps", "impatient", "lmtp-unix", "lmtp-tcp")
#: Rules of server.py that not every server can be given.
RULES = ("busy", "full", "refusal")

Extensions = dict[str, dict[str, str]]


def extensions_of(server: MailServer) -> Extensions:
    """Return what each endpoint offers, as smtplib reads it: after STARTTLS where there is that."""
    return {purpose: _ehlo(server, purpose) for purpose in server.endpoints}


def _ehlo(server: MailServer, purpose: str) -> dict[str, str]:
    endpoint = server.endpoints[purpose]
    host, port = (
        (endpoint.address, 0) if isinstance(endpoint.address, str) else endpoint.address[:2]
    )
    context = ssl.create_default_context(cafile=str(server.cafile))
    if endpoint.lmtp:
        client = smtplib.LMTP(host, port, NAME)
    elif endpoint.tls == "implicit":
        client = smtplib.SMTP_SSL(host, port, NAME, context=context)
    else:
        client = smtplib.SMTP(host, port, NAME)
    with client:
        client.ehlo()
        if endpoint.tls == "starttls":
            client.starttls(context=context)
            client.ehlo()
        return dict(client.esmtp_features)


def absence(server: MailServer, offered: Extensions, kind: str, *needs: str) -> str | None:
    """Return why a client of a kind does not find there what it needs, or None."""
    purpose = purpose_of(kind, server)
    if purpose is None:
        return server.without[KINDS[kind][0]]
    reasons = (_absence_of(need, server, offered[purpose]) for need in needs)
    return next(filter(None, reasons), None)


def _absence_of(need: str, server: MailServer, extensions: dict[str, str]) -> str | None:
    if need in ENDPOINTS:
        there = need in server.endpoints
    elif need == "SIZE":  # with a limit
        there = extensions.get("size", "0").strip() not in ("", "0")
    elif need in EXTENSIONS:
        there = need.lower() in extensions
    elif need in MECHANISMS:
        there = any(need in endpoint.mechanisms for endpoint in server.endpoints.values())
    else:
        assert need in RULES
        there = need not in server.without
    return None if there else server.without.get(need, "not offered")


def absent_from(server: MailServer, offered: Extensions) -> dict[str, str]:
    """Return all that a server does not have for any client, with the reasons."""
    kinds = [kind for kind in KINDS if purpose_of(kind, server)]
    absent = {}
    for need in (*ENDPOINTS, *EXTENSIONS, *MECHANISMS, *RULES):
        reasons = [absence(server, offered, kind, need) for kind in kinds]
        if None not in reasons:
            absent[need] = reasons[0]
    return absent
