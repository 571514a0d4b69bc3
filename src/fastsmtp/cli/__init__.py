"""The command ``fastsmtp``, with click.

A sub-command is the attribute ``command`` of the module of its name here,
which is imported when the command is asked for: ``--help`` is quick, and a
library that one command needs is missed by that command only.
"""

from importlib import import_module
from typing import Any

import click

from ..__main__ import COMMANDS, RUN, missing, version
from ..__main__ import main as outer_main
from .exits import INTERRUPTED, USAGE


class _Commands(click.Group):
    """A group that imports what it runs, and nothing else."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, "run"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name == "run":
            return _run
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"{__name__}.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([*COMMANDS.items(), ("run", RUN)])


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        click.echo(version())
        ctx.exit()


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="COMMAND --help shows a command's options. docs/command.md has all of it.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version, the codec in use and Python's, and exit.",
)
def group() -> None:
    """Send mail, and see what a server does with it."""


@click.command(
    "run",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def _run(ctx: click.Context, arguments: tuple[str, ...]) -> None:
    ctx.exit(outer_main(["run", *arguments]))


def main(arguments: list[str], program: str) -> int:
    """Run a command and return its exit status; errors go to stderr."""
    if not arguments:
        with click.Context(group, info_name=program) as ctx:
            click.echo(group.get_help(ctx), err=True)
        return USAGE
    try:
        status: Any = group.main(arguments, prog_name=program, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:  # Ctrl-C
        click.echo("Interrupted.", err=True)
        return INTERRUPTED
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "rich":
            raise
        return missing(arguments[0], "rich")
    return status if isinstance(status, int) else 0
