"""Fixtures that several test files share."""

from __future__ import annotations

import importlib
import os
import platform
from pathlib import Path

import pytest
from hypothesis import settings
from support import make_certificate

import fastsmtp

# No test is timed: a machine may be busy.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

#: Where Python was asked for, a run has no compiled half to test; anywhere else
#: its absence is a failure.
CODECS = ["_codec_py"] if os.environ.get("FASTSMTP_IMPL") == "python" else ["_codec", "_codec_py"]


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
