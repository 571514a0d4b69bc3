"""The command ``python -m fastsmtp``, in processes of its own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

import fastsmtp

WHOSE = """
import smtplib, sys
print(__name__, smtplib.SMTP.__module__, sys.argv)
"""


def run(*arguments: str, cwd: object = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fastsmtp", *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
        cwd=cwd,
    )


@pytest.fixture
def script(tmp_path):
    """Return a function that writes a script, next to a module, and gives its path."""

    def write(text: str):
        (tmp_path / "neighbour.py").write_text("", "utf-8")
        path = tmp_path / "script.py"
        path.write_text(text, "utf-8")
        return path

    return write


def test_version():
    done = run("--version")
    assert done.returncode == 0
    assert fastsmtp.__version__ in done.stdout
    assert f"codec: {fastsmtp.implementation()}" in done.stdout
    assert platform.python_version() in done.stdout


def test_run_a_script(script):
    path = script("import neighbour\n" + WHOSE)
    done = run("run", str(path), "--version", "-m", "x")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"__main__ fastsmtp.client {[str(path), '--version', '-m', 'x']}\n"


def test_run_a_module(script):
    path = script("import neighbour\n" + WHOSE)
    done = run("run", "-m", "script", "a", "--b", cwd=path.parent)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("__main__ fastsmtp.client [")
    assert done.stdout.endswith("script.py', 'a', '--b']\n")


@pytest.mark.parametrize(
    ("text", "status", "error"),
    [
        ("raise SystemExit(3)", 3, ""),
        ("raise SystemExit", 0, ""),
        ("raise SystemExit('no')", 1, "no\n"),
        ("def f():\n    raise KeyError('x')\nf()", 1, "KeyError: 'x'\n"),
        ("import smtplib\nsmtplib.SMTP('host:x')", 1, "OSError: nonnumeric port\n"),
        ("x = (", 1, "SyntaxError: '(' was never closed\n"),
    ],
)
def test_the_script_s_end_is_ours(script, text, status, error):
    path = script(text)
    done = run("run", str(path))
    assert done.returncode == status
    assert done.stderr.endswith(error)
    if "Error" in error:
        assert f'File "{path}", line ' in done.stderr
    else:
        assert done.stderr == error


@pytest.mark.parametrize(
    "arguments", [(), ("run",), ("run", "-m"), ("sprint", "x.py"), ("--nonsense",)]
)
def test_usage_errors(arguments):
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: python -m fastsmtp")
    assert done.stdout == ""


def test_a_script_that_is_not_there(tmp_path):
    done = run("run", str(tmp_path / "nowhere.py"))
    assert done.returncode != 0
    assert "nowhere.py" in done.stderr
