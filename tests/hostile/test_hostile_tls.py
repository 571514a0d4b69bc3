"""Servers whose TLS is not to be trusted, for each way to use the package.

A drop-in verifies what its context does; without one it verifies nothing, as smtplib
does (docs/differences.md).  A Mailer verifies always.
"""

from __future__ import annotations

import re
import ssl
from pathlib import Path
from typing import Any

import pytest
from peers import (
    MESSAGES,
    SECRET,
    SUBJECTS,
    Run,
    Subject,
    bad_certificates,
    nothing_in_clear,
    old_tls,
    untold,
)
from support import ModelServer, client_tls, server_tls

#: A subject, how a Mailer is to use TLS, and whether TLS comes first.
WAYS: dict[str, tuple[Subject, dict[str, Any], bool]] = {
    "SMTP_SSL": (SUBJECTS["SMTP_SSL"], {}, True),
    "SMTP.starttls()": (SUBJECTS["sendmail pipelined"], {"starttls": True}, False),
    "LMTP.starttls()": (SUBJECTS["LMTP"], {"starttls": True}, False),
    "Mailer, implicit": (SUBJECTS["Mailer DATA"], {"tls": "implicit"}, True),
    "Mailer, starttls": (SUBJECTS["Mailer BDAT"], {"tls": "starttls"}, False),
    "Mailer, opportunistic": (SUBJECTS["Mailer one by one"], {"tls": "opportunistic"}, False),
}
#: What is wrong with a certificate, in OpenSSL's words.
KINDS = {
    "expired": "expired",
    "wrong host": "match|mismatch",
    "host in the subject only": "match|mismatch",
    "for clients": "purpose",
    "self-signed": "self.signed",
}
OLD = {"TLS 1.0": ssl.TLSVersion.TLSv1, "TLS 1.1": ssl.TLSVersion.TLSv1_1}
by_way = pytest.mark.parametrize("way", WAYS)


@pytest.fixture(scope="module")
def certificates(certificate, tmp_path_factory) -> dict[str, Path]:
    made = bad_certificates(tmp_path_factory.mktemp("bad"))
    return {**made, "self-signed": certificate}


def trusting(kind: str, certificates: dict[str, Path]) -> ssl.SSLContext:
    """Return a client's context that has nothing but the one thing to find fault with."""
    if kind == "self-signed":
        return ssl.create_default_context()
    return client_tls(certificates[kind])


def meet(
    way: str, server: ssl.SSLContext, context: ssl.SSLContext | None, **keywords: Any
) -> tuple[Run, Any]:
    """Try to send to a server with this TLS; check what holds of every row."""
    subject, how, first = WAYS[way]
    extensions = ("AUTH PLAIN",) if first else ("AUTH PLAIN", "STARTTLS")
    peer = subject.peer(extensions=extensions, tls=server, implicit_tls=first)
    with peer:
        run = subject.run(peer, context=context, **how, **keywords)
    run.check(peer)
    return run, peer


def nothing_was_said(way: str, run: Run, peer: ModelServer) -> None:
    """No message, and no password: not even to one who can read what TLS protects."""
    subject, _, first = WAYS[way]
    assert set(run.statuses) == {"not_sent" if subject.is_mailer else "raised"}
    said = [] if first else [f"{'l' if subject.lmtp else 'e'}hlo client.example", "starttls"]
    connections = 1 if subject.is_mailer else len(MESSAGES)
    assert [line.lower() for line in peer.commands] == connections * said
    assert len(peer.connections) == connections
    untold(SECRET, peer.received.decode("latin-1"))
    if not first:
        nothing_in_clear(peer)


@by_way
@pytest.mark.parametrize("kind", KINDS)
def test_a_certificate_that_is_not_to_be_trusted(kind, way, certificates):
    patience = {"connect_attempts": 3} if way.startswith("Mailer") else {}
    run, peer = meet(way, server_tls(certificates[kind]), trusting(kind, certificates), **patience)
    nothing_was_said(way, run, peer)  # nor does a Mailer try again what will not be better then
    for name in MESSAGES:
        assert isinstance(run[name].error, ssl.SSLCertVerificationError)
        assert re.search(KINDS[kind], str(run[name].error))


@pytest.mark.parametrize("way", [way for way in WAYS if way.startswith("Mailer")])
def test_a_mailer_s_own_context_verifies(way, certificate):
    run, peer = meet(way, server_tls(certificate), None)
    nothing_was_said(way, run, peer)
    assert isinstance(run.raised, ssl.SSLCertVerificationError)


@pytest.mark.parametrize("way", [way for way in WAYS if not way.startswith("Mailer")])
@pytest.mark.parametrize("kind", KINDS)
def test_a_drop_in_without_a_context_trusts_everybody(kind, way, certificates):
    """It is what smtplib does, and what the documents say in bold."""
    run, _ = meet(way, server_tls(certificates[kind]), None)
    assert run.statuses == ("accepted",) * 3


def old_server(version: str, certificate: Path) -> ssl.SSLContext:
    return old_tls(server_tls(certificate), OLD[version])


@by_way
@pytest.mark.parametrize("version", OLD)
def test_an_old_version_only(version, way, certificate):
    """RFC 8996: neither is to be used any more."""
    run, peer = meet(way, old_server(version, certificate), client_tls(certificate))
    nothing_was_said(way, run, peer)
    for name in MESSAGES:
        assert isinstance(run[name].error, ssl.SSLError)
        assert not isinstance(run[name].error, ssl.SSLCertVerificationError)


@pytest.mark.parametrize("way", ["SMTP_SSL", "SMTP.starttls()"])
@pytest.mark.parametrize("version", OLD)
def test_an_old_version_without_a_context(version, way, certificate):
    """It verifies nothing, yet it is no older than the interpreter's own."""
    run, peer = meet(way, old_server(version, certificate), None)
    nothing_was_said(way, run, peer)


@pytest.mark.skipif(not (ssl.HAS_TLSv1 and ssl.HAS_TLSv1_1), reason="OpenSSL has neither")
@pytest.mark.parametrize("version", OLD)
def test_the_old_servers_do_speak_it(version, certificate):
    """Else the rows above would show nothing: who insists on an old version gets it."""
    context = old_tls(client_tls(certificate), OLD[version])
    run, _ = meet("SMTP_SSL", old_server(version, certificate), context)
    assert run.statuses == ("accepted",) * 3
