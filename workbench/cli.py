"""The command line. What a command runs is imported inside it, so `workbench --help` loads no torch."""

from __future__ import annotations

import errno
import logging
import os
import sys
from typing import Annotated

import typer

from workbench import __version__, cli_export, cli_research, cli_train
from workbench.errors import UserError

app = typer.Typer(
    name="workbench",
    help="Distil a speech recogniser, export it through ONNX, prove latency and WER against the teacher, show both.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
INTERRUPTED = 130  # 128 + SIGINT, as shells count it


def _version(value: bool) -> None:
    if value:
        typer.echo(f"workbench {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[  # noqa: ARG001  its callback does the work
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Also show what the libraries log.")] = False,
) -> None:
    logging.basicConfig(format="%(message)s", level=logging.INFO if verbose else logging.WARNING, stream=sys.stderr)
    logging.getLogger("workbench").setLevel(logging.INFO)
    if not verbose:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@app.command()
def teachers() -> None:
    """List the teachers that can be opened here, and what each costs."""
    from rich.console import Console
    from rich.table import Table

    from workbench.teachers import list_teachers

    table = Table("name", "what", "languages", "licence", "cost")
    for row in list_teachers():
        table.add_row(*row.values())
    Console().print(table)
    typer.echo("Also: any Whisper id of a model hub, a transformers folder, or a CTranslate2 (faster-whisper) folder.")


@app.command()
def doctor() -> None:
    """Check this machine: packages, devices, CPU flags, model sources, disk; say what to do about each problem."""
    from workbench.doctor import examine, print_findings

    findings = examine()
    print_findings(findings)
    if any(f.level == "error" for f in findings):
        raise typer.Exit(1)


for commands in (cli_train, cli_export, cli_research):
    commands.add_commands(app)


def main() -> None:
    """Entry point: a user's mistake is one line and exit status 2, Ctrl-C is 130, a full disk is 2."""
    import click

    try:
        status = typer.main.get_command(app).main(standalone_mode=False) or 0
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except UserError as error:
        _say(str(error))
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        status = INTERRUPTED
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        _say(
            f"{error.filename or 'disk'}: {error.strerror}; free some space or choose another place, and run the same command again"
        )
        sys.exit(2)
    if status == INTERRUPTED:  # typer may have caught the signal itself, and returned this
        _say("interrupted; nothing is lost, run the same command again to go on")
    sys.exit(status)


def _say(message: str) -> None:
    typer.echo(f"error: {' '.join(message.split())}", err=True)
