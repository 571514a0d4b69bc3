"""The command ``python -m fastsmtp``: which codec is in use, and run a script on it."""

import argparse
import os
import platform
import runpy
import sys

from . import __version__, implementation, install


def main(arguments: "list[str] | None" = None) -> int:
    """Do what the command line says and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m fastsmtp", description=__doc__)
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run a script with smtplib's classes replaced by ours")
    run.add_argument("-m", dest="is_module", action="store_true", help="SCRIPT is a module's name")
    run.add_argument("script", metavar="SCRIPT")
    run.add_argument("arguments", metavar="ARGUMENT", nargs=argparse.REMAINDER)
    options = parser.parse_args(arguments)
    _run(options.script, options.arguments, options.is_module)
    return 0


def _version() -> str:
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"fastsmtp {__version__} (codec: {implementation()}, {python})"


def _run(script: str, arguments: "list[str]", is_module: bool) -> None:
    """Run a script, or a module, as ``python`` would, with our classes in smtplib."""
    sys.argv = [script, *arguments]
    install()
    if is_module:
        sys.path.insert(0, os.getcwd())
        runpy.run_module(script, run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, os.path.dirname(os.path.abspath(script)))
        runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    sys.exit(main())
