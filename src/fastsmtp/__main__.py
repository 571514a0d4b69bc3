"""The command ``fastsmtp``, which is also ``python -m fastsmtp``.

``--version`` and ``run`` work everywhere.  The other commands need the extra
``cli``, and are in the package of that name.
"""

import argparse
import os
import platform
import runpy
import sys

from . import __version__, implementation, install

#: The commands of the extra, and what each does, for lists of them.
COMMANDS = {
    "send": "Send .eml files, folders of them, Maildirs, mboxes, or what is on stdin.",
    "probe": "Show what a server offers.",
    "sink": "Run a local server that takes mail, for tests.",
    "bench": "Find the rate that a server of your own can take.",
    "demo": "See smtplib, fastsmtp.SMTP and Mailer side by side.",
}
RUN = "Run a script with smtplib's classes replaced by ours."
INSTALL = "pip install 'fastsmtplib[cli]'"
EX_CONFIG = 78


def main(arguments: "list[str] | None" = None) -> int:
    """Do what the command line says and return the exit status."""
    if arguments is None:
        arguments = sys.argv[1:]
    # A script is run without click: it would turn its EOFError and
    # KeyboardInterrupt into something else.
    if arguments[:1] not in (["run"], ["--version"]):
        try:
            from . import cli
        except ModuleNotFoundError as error:
            if error.name != "click":
                raise
            if arguments and arguments[0] in COMMANDS:
                return missing(arguments[0], "click")
        else:
            return cli.main(arguments, program())
    parser = _parser()
    options = parser.parse_args(arguments)
    _run(options.script, options.arguments, options.is_module)
    return 0


def missing(command: str, module: str) -> int:
    """Say that a command needs the extra, and return the exit status."""
    print(f"{program()}: {command} needs {module}: {INSTALL}", file=sys.stderr)
    return EX_CONFIG


def program() -> str:
    """Return the name that we were called by."""
    name = os.path.splitext(os.path.basename(sys.argv[0]))[0]
    return "fastsmtp" if name == "fastsmtp" else "python -m fastsmtp"


def version() -> str:
    """Return the line that ``--version`` prints."""
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"fastsmtp {__version__} (codec: {implementation()}, {python})"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program(),
        description="An SMTP client that stands in for smtplib.",
        epilog=f"{', '.join(COMMANDS)} are there too, with: {INSTALL}",
    )
    parser.add_argument("--version", action="version", version=version())
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help=RUN, description=RUN)
    run.add_argument("-m", dest="is_module", action="store_true", help="SCRIPT is a module's name")
    run.add_argument("script", metavar="SCRIPT")
    run.add_argument("arguments", metavar="ARGUMENT", nargs=argparse.REMAINDER)
    return parser


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
