"""Fixtures that several test files share."""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
import socket
import sys
from pathlib import Path

import pytest
from hypothesis import settings
from support import ASYNCIO_PORTS, make_certificate

import fastsmtp

# No test is timed: a machine may be busy.
settings.register_profile("untimed", deadline=None)
settings.register_profile("few", deadline=None, max_examples=20)
settings.load_profile(os.environ.get("FASTSMTP_HYPOTHESIS", "untimed"))

#: Where Python was asked for, a run has no compiled half to test; anywhere else
#: its absence is a failure.
CODECS = ["_codec_py"] if os.environ.get("FASTSMTP_IMPL") == "python" else ["_codec", "_codec_py"]


def pytest_configure(config: pytest.Config) -> None:
    # aiosmtpd 1.4.6 imports what CPython 3.15 warns of.
    config.addinivalue_line("filterwarnings", "ignore:.*ByteString:DeprecationWarning")


def pytest_sessionstart() -> None:
    """Let a socket that a server on asyncio leaves behind fail no test: none of it is ours."""
    report = sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        left = unraisable.object
        if isinstance(left, socket.socket) and left.family == socket.AF_INET:
            with contextlib.suppress(OSError):
                if left.getsockname()[1] in ASYNCIO_PORTS:
                    return
        report(unraisable)

    sys.unraisablehook = hook


def pytest_report_header(config: pytest.Config) -> str:
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"fastsmtp: {fastsmtp.implementation()} codec on {python}"


@pytest.fixture(scope="session", params=CODECS)
def codec(request: pytest.FixtureRequest):
    """Each codec in turn: the compiled one, then the one in Python."""
    try:
        return importlib.import_module(f"fastsmtp.{request.param}")
    except ImportError as error:
        pytest.fail(
            f"the compiled codec cannot be imported ({error}): build the extension, or set "
            "FASTSMTP_IMPL=python to test the fallback alone"
        )


@pytest.fixture(scope="session", params=["smtplib", "fastsmtp"])
def library(request: pytest.FixtureRequest):
    """The standard library's module and ours, for tests that hold for both."""
    return importlib.import_module(request.param)


@pytest.fixture(scope="session", params=["SMTP", "LMTP"])
def smtp_classes(request: pytest.FixtureRequest):
    """The same class of smtplib and of fastsmtp, for tests that compare them."""
    smtplib = importlib.import_module("smtplib")
    return getattr(smtplib, request.param), getattr(fastsmtp, request.param)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and certificate for loopback that this run made, in one PEM file."""
    return make_certificate(tmp_path_factory.mktemp("tls"))
