"""CPython's own tests of smtplib, unmodified, with fastsmtp in its place."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

RUNNER = Path(__file__).with_name("run_cpython_suite.py")
SUITES = ["test.test_smtplib", "test.test_logging.SMTPHandlerTest"]
#: A run that asks for the Python codec has no other; else both must work.
CODECS = ["python"] if os.environ.get("FASTSMTP_IMPL") == "python" else ["c", "python"]


# On CPython a missing test package is a failure, by test_the_suite_is_there.
pytestmark = pytest.mark.skipif(
    platform.python_implementation() != "CPython"
    and importlib.util.find_spec("test.test_smtplib") is None,
    reason="this interpreter comes without CPython's test package",
)


def outcomes(module: str, codec: str | None = None) -> dict[str, list[str]]:
    """Run the suites in a new process with *module* as smtplib."""
    environment = dict(os.environ)
    if codec:
        environment["FASTSMTP_IMPL"] = codec
    done = subprocess.run(
        [sys.executable, str(RUNNER), module, *SUITES],
        check=False,  # what it printed says more
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@functools.cache
def stdlib_outcomes() -> dict[str, list[str]]:
    return outcomes("smtplib")


def test_the_suite_is_there():
    passed = [name for name, (outcome, _) in stdlib_outcomes().items() if outcome == "passed"]
    assert any(name.startswith("test.test_logging.SMTPHandlerTest.") for name in passed)
    assert len(passed) > 60


@pytest.mark.parametrize("codec", CODECS)
def test_same_outcomes_as_on_the_standard_library(codec):
    expected, ours = stdlib_outcomes(), outcomes("fastsmtp", codec)
    not_run = ["not run", ""]
    different = {
        name: ours.get(name, not_run)
        for name in sorted({*expected, *ours})
        if ours.get(name, not_run)[0] != expected.get(name, not_run)[0]
    }
    if different:
        first = next(iter(different.values()))[1]
        lines = [f"{name}: {what}" for name, (what, _) in different.items()]
        pytest.fail("\n".join([*lines, "", "The first:", first]), pytrace=False)
    assert not [name for name, (outcome, _) in ours.items() if outcome in ("failed", "error")]
