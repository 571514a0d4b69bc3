"""Which codec is in use: what FASTSMTP_IMPL asks for, or an ImportError."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

import fastsmtp
from fastsmtp import _codec_py, codec

#: Python is to say so if the extension is not there, as where no compiler was.
WITHOUT_EXTENSION = "import sys; sys.modules['fastsmtp._codec'] = None; "
SAY = "import fastsmtp; print(fastsmtp.implementation(), fastsmtp.codec.ReplyParser.__module__)"


def run(wanted: str | None, code: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "FASTSMTP_IMPL"}
    if wanted is not None:
        environment["FASTSMTP_IMPL"] = wanted
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def has_extension():
    """Whether there is a compiled codec; a run that did not ask for Python alone has one."""
    found = importlib.util.find_spec("fastsmtp._codec") is not None
    assert found or os.environ.get("FASTSMTP_IMPL") == "python"
    return found


@pytest.fixture
def without_extension(monkeypatch):
    monkeypatch.setitem(sys.modules, "fastsmtp._codec", None)
    monkeypatch.delattr(fastsmtp, "_codec", raising=False)


PYTHON, COMPILED = "python fastsmtp._codec_py\n", "c fastsmtp._codec\n"


@pytest.mark.parametrize("wanted", [None, "", "c", "python"])
def test_what_was_asked_for_is_in_use(wanted, has_extension):
    process = run(wanted, SAY)
    if wanted == "python" or (not has_extension and wanted != "c"):
        assert (process.stdout, process.stderr) == (PYTHON, "")
    elif has_extension:
        assert (process.stdout, process.stderr) == (COMPILED, "")
    else:
        assert "ImportError: FASTSMTP_IMPL is 'c', but there is no C codec" in process.stderr


@pytest.mark.parametrize("wanted", [None, "python"])
def test_python_is_the_fallback(wanted):
    process = run(wanted, WITHOUT_EXTENSION + SAY)
    assert (process.stdout, process.stderr) == (PYTHON, "")


@pytest.mark.parametrize(
    ("wanted", "error"),
    [
        ("c", "ImportError: FASTSMTP_IMPL is 'c', but there is no C codec: "),
        ("rust", "ImportError: FASTSMTP_IMPL is 'rust'; it may be 'c', 'python' or unset"),
        ("C", "ImportError: FASTSMTP_IMPL is 'C'; it may be 'c', 'python' or unset"),
    ],
)
def test_what_cannot_be_had_fails_loudly(wanted, error):
    process = run(wanted, WITHOUT_EXTENSION + SAY)
    assert error in process.stderr
    assert (process.stdout, process.returncode) == ("", 1)


def test_choose():
    assert codec.choose("python") is _codec_py
    assert codec.choose("").IMPLEMENTATION in ("c", "python")
    with pytest.raises(ImportError, match="'nonsense'"):
        codec.choose("nonsense")


def test_choose_the_extension(has_extension):
    if has_extension:
        assert codec.choose("c").IMPLEMENTATION == codec.choose("").IMPLEMENTATION == "c"
    else:
        with pytest.raises(ImportError, match="no C codec"):
            codec.choose("c")


def test_choose_without_the_extension(without_extension):
    assert codec.choose("") is _codec_py
    with pytest.raises(ImportError, match="FASTSMTP_IMPL is 'c', but there is no C codec") as error:
        codec.choose("c")
    assert isinstance(error.value.__cause__, ImportError)
