"""install() and uninstall(): our classes in the smtplib module."""

from __future__ import annotations

import logging
import logging.handlers
import smtplib

import pytest
from support import ModelServer

import fastsmtp

NAMES = ["SMTP", "SMTP_SSL", "LMTP"]


def installed() -> list[str]:
    """Say whose each class in smtplib is."""
    return [getattr(smtplib, name).__module__.partition(".")[0] for name in NAMES]


THEIRS, OURS = ["smtplib"] * 3, ["fastsmtp"] * 3


@pytest.fixture(autouse=True)
def afterwards():
    """Leave smtplib as it was, whatever fails."""
    originals = {name: getattr(smtplib, name) for name in NAMES}
    yield
    for name, original in originals.items():
        setattr(smtplib, name, original)


def test_install_lasts_until_uninstall():
    originals = [getattr(smtplib, name) for name in NAMES]
    assert installed() == THEIRS
    fastsmtp.install()
    fastsmtp.install()
    assert [getattr(smtplib, name) for name in NAMES] == [getattr(fastsmtp, name) for name in NAMES]
    fastsmtp.uninstall()
    assert [getattr(smtplib, name) for name in NAMES] == originals
    fastsmtp.uninstall()
    assert installed() == THEIRS


def test_as_a_context_manager_it_lasts_to_the_end_of_the_block():
    with fastsmtp.install() as installation:
        assert installed() == OURS
    assert installed() == THEIRS
    assert installation is not None


def test_an_exception_ends_the_block_too():
    with pytest.raises(ZeroDivisionError), fastsmtp.install():
        print(1 / 0)
    assert installed() == THEIRS


def test_blocks_are_nested():
    with fastsmtp.install():
        with fastsmtp.install():
            assert installed() == OURS
        assert installed() == OURS
    assert installed() == THEIRS


def test_a_block_in_an_installation_leaves_it():
    fastsmtp.install()
    with fastsmtp.install():
        pass
    assert installed() == OURS


def test_what_somebody_else_has_put_there_comes_back(monkeypatch):
    somebody = type("Somebody", (smtplib.SMTP,), {})
    monkeypatch.setattr(smtplib, "SMTP", somebody)
    with fastsmtp.install():
        assert installed() == OURS
    assert smtplib.SMTP is somebody


def test_our_classes_are_not_their_own_base_when_installed():
    """Our classes call smtplib's: by name, they would be calling themselves."""
    with fastsmtp.install(), ModelServer() as server:
        with smtplib.SMTP(server.host, server.port, "client.example", timeout=5) as client:
            assert client.sendmail("from@example.org", "to@example.org", "hello\n") == {}
        assert isinstance(client, smtplib.SMTP)
    assert isinstance(client, smtplib.SMTP)
    assert issubclass(fastsmtp.LMTP, smtplib.LMTP)


@pytest.mark.parametrize("whose", ["smtplib", "fastsmtp"])
def test_the_handler_of_logging_gets_ours(whose, monkeypatch):
    kinds: list[str] = []
    for cls in (smtplib.SMTP, fastsmtp.SMTP):

        def sendmail(self, *args, original=cls.sendmail, **keywords):
            kinds.append(type(self).__module__.partition(".")[0])
            return original(self, *args, **keywords)

        monkeypatch.setattr(cls, "sendmail", sendmail)
    with ModelServer() as server:
        handler = logging.handlers.SMTPHandler(
            (server.host, server.port), "from@example.org", ["to@example.org"], "subject", timeout=5
        )
        if whose == "fastsmtp":
            fastsmtp.install()
        handler.handle(logging.makeLogRecord({"msg": "said in the log"}))
        handler.close()
    assert kinds == [whose]
    assert b"said in the log" in server.messages[0].data
