"""The command ``fastsmtp``, also ``python -m fastsmtp``, in processes of its own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

import fastsmtp
from fastsmtp.__main__ import COMMANDS

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
    "arguments",
    [(), ("run",), ("run", "-m"), ("sprint", "x.py"), ("--nonsense",), ("send",), ("probe",)],
)
def test_usage_errors(arguments):
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stderr.lower().startswith("usage: python -m fastsmtp")
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_script_that_is_not_there(tmp_path):
    done = run("run", str(tmp_path / "nowhere.py"))
    assert done.returncode != 0
    assert "nowhere.py" in done.stderr


@pytest.mark.parametrize("error", ["EOFError", "KeyboardInterrupt"])
def test_the_script_s_exceptions_are_its_own(script, error):
    done = run("run", str(script(f"raise {error}")))
    assert done.returncode not in (0, 2)
    assert error in done.stderr.splitlines()[-1]
    assert "Interrupted." not in done.stderr


# -- the commands of the extra ----------------------------------------------------


def python(text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", text, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )


WITHOUT = """
import sys
for name in {modules}:
    sys.modules[name] = None
sys.argv[0] = "/usr/bin/fastsmtp"
from fastsmtp.__main__ import main
sys.exit(main())
"""


def test_help_lists_every_command():
    done = run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for name in (*COMMANDS, "run", "--version"):
        assert f"  {name} " in done.stdout


def test_help_imports_no_command():
    text = (
        "import sys; from fastsmtp import cli\n"
        "assert cli.main(['--help'], 'fastsmtp') == 0\n"
        "print([m for m in sys.modules if m.startswith(('fastsmtp.cli.', 'rich', 'asyncio'))])"
    )
    assert python(text).stdout.splitlines()[-1] == "['fastsmtp.cli.exits']"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_each_command(name):
    done = run(name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Usage: python -m fastsmtp {name} ")


def test_run_is_in_the_group_too():
    from click.testing import CliRunner

    from fastsmtp.cli import group

    assert CliRunner().invoke(group, ["--version"]).stdout.startswith("fastsmtp ")
    done = CliRunner().invoke(group, ["run"], prog_name="fastsmtp")
    assert done.exit_code == 2


def test_the_name_it_is_called_by():
    text = "import sys; sys.argv[0] = '/usr/bin/fastsmtp.exe'; from fastsmtp.__main__ import main\n"
    done = python(text + "sys.exit(main())", "nonsense")
    assert done.returncode == 2
    assert done.stderr.startswith("Usage: fastsmtp [OPTIONS] COMMAND")


@pytest.mark.parametrize(
    ("name", "module"), [*((name, "click") for name in COMMANDS), ("send", "rich")]
)
def test_commands_without_the_extra(name, module):
    done = python(WITHOUT.format(modules=[module]), name, "--help")
    assert done.returncode == 78
    expected = f"fastsmtp: {name} needs {module}: pip install 'fastsmtplib[cli]'\n"
    assert (done.stdout, done.stderr) == ("", expected)


def test_what_works_without_the_extra(script):
    without = WITHOUT.format(modules=["click", "rich"])
    assert python(without, "--version").stdout == run("--version").stdout
    path = script("import neighbour\n" + WHOSE)
    done = python(without, "run", str(path), "x")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"__main__ fastsmtp.client {[str(path), 'x']}\n"
    shown = python(without, "--help")
    assert shown.returncode == 0
    assert "fastsmtplib[cli]" in shown.stdout
    for arguments in ((), ("sprint",), ("run",)):
        done = python(without, *arguments)
        assert done.returncode == 2
        assert done.stderr.startswith("usage: fastsmtp ")


def test_ctrl_c_before_it_has_begun():
    text = (
        "import fastsmtp.cli.send as send\n"
        "def find(sources): raise KeyboardInterrupt\n"
        "send.find = find\n"
        "from fastsmtp.__main__ import main; import sys; sys.exit(main(['send', 'x']))"
    )
    done = python(text)
    assert (done.returncode, done.stderr.strip()) == (130, "Interrupted.")
