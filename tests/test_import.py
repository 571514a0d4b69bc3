"""What ``import fastsmtp`` does not import."""

from __future__ import annotations

import subprocess
import sys

import pytest

#: Modules that take long to import, and that only few need.
HEAVY = ["logging", "asyncio", "dataclasses", "typing", "encodings.idna", "unittest", "argparse"]


def imported_by(module: str) -> set[str]:
    """Return the modules that an interpreter has after one import."""
    code = f"import sys, {module}; print(*sys.modules)"
    # -S: no site-packages, whose start-up files import things of their own; hence the path.
    paths = f"import sys; sys.path[:] = {sys.path!r}; "
    done = subprocess.run(
        [sys.executable, "-S", "-c", paths + code],
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    )
    return set(done.stdout.split())


@pytest.fixture(scope="module")
def additional() -> set[str]:
    """Modules that we import and smtplib does not."""
    return imported_by("fastsmtp") - imported_by("smtplib")


@pytest.mark.parametrize("name", HEAVY)
def test_no_heavy_module_is_imported(additional, name):
    assert name not in additional


def test_nothing_is_imported_but_what_smtplib_imports_and_our_own(additional):
    assert "fastsmtp.client" in additional
    # Cython's run-time support is in the extension itself; up to 3.13, socket imports select.
    others = [name for name in additional if "fastsmtp" not in name and "cython" not in name]
    assert set(others) <= {"select"}


def test_the_comparison_can_tell():
    assert "logging" in imported_by("logging.handlers") - imported_by("smtplib")
