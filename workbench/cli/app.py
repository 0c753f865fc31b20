"""The command line. What a command runs is imported inside it, so `workbench --help` loads no torch."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from workbench import __version__
from workbench.cli import evaluate, export, quickstart, research, serve, train
from workbench.cli.command import INTERRUPTED, Command, JsonFile, print_error, write_results
from workbench.core.errors import UserError, system_error_message

app = typer.Typer(
    name="workbench",
    help="Distil a speech recogniser, export it to ONNX, measure latency and WER against the teacher, and show both.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
BUG = 1  # exit status for an error that is not the user's mistake
# From click, or from the copy of it inside newer versions of typer; typer itself exports only its subclasses.
ClickException: Any = typer.BadParameter.__mro__[2]


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
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show results and errors alone.")] = False,
) -> None:
    level = logging.INFO if verbose else logging.ERROR if quiet else logging.WARNING
    logging.basicConfig(format="%(message)s", level=level, stream=sys.stderr)
    logging.getLogger("workbench").setLevel(logging.ERROR if quiet else logging.INFO)
    if quiet:
        logging.captureWarnings(True)
        from workbench.core import progress

        progress.hide()
    if not verbose:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@app.command()
def teachers(json_file: JsonFile = None) -> None:
    """List the teachers available here, and what each takes to fetch."""
    from workbench.core.tables import print_rows
    from workbench.models.resolve import list_teachers

    found = list_teachers()
    if write_results(json_file, found):
        return
    rows = [tuple(row.values()) for row in found]
    print_rows(("name", "what", "languages", "licence", "cost"), rows, prose=True)
    typer.echo("Also: the hub id of any Whisper, a transformers folder, or a CTranslate2 (faster-whisper) folder.")


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="One to print, as a beginning for your own.")] = None,
    json_file: JsonFile = None,
) -> None:
    """List the recipes and studies that come with the package, or print one."""
    from workbench.config.shipped import find_recipe, shipped_files
    from workbench.core.tables import print_rows

    if name is not None and json_file is not None:
        raise UserError("--json: a recipe is printed as YAML; leave out its name for the list, or --json")
    if name is not None:
        typer.echo(find_recipe(Path(name)).read_text(encoding="utf-8"), nl=False)
        return
    rows = [(one.name, "study" if one.is_study else "recipe", one.about) for one in shipped_files()]
    rows.sort(key=lambda row: (row[1], row[0]))
    if write_results(json_file, [dict(zip(("name", "kind", "what"), row, strict=True)) for row in rows]):
        return
    print_rows(("name", "kind", "what"), rows, prose=True)
    typer.echo("Run one with `workbench distill NAME` or `workbench study NAME`; `workbench recipes NAME` prints it.")


@app.command()
def doctor(json_file: JsonFile = None) -> None:
    """Check this machine: packages, devices, CPU flags, model sources, disk; say what to do about each problem."""
    from workbench.planning.doctor import examine, print_findings

    findings = examine()
    if not write_results(json_file, [asdict(finding) for finding in findings]):
        print_findings(findings)
    if any(f.level == "error" for f in findings):
        raise typer.Exit(1)


for commands in (quickstart, train, export, evaluate, serve, research):
    commands.add_commands(app)
for group in (app, *(info.typer_instance for info in app.registered_groups if info.typer_instance)):
    for registered in group.registered_commands:
        registered.cls = Command


def main() -> None:
    """Entry point. Exit status: 2 and one line for what a user can correct, 130 for Ctrl-C, 1 and a traceback for a bug."""
    try:
        try:
            status = typer.main.get_command(app).main(prog_name="workbench", standalone_mode=False) or 0
            sys.stdout.flush()
        except BrokenPipeError:
            _close_pipe()
            status = BUG
    except ClickException as error:
        error.show()
        status = error.exit_code
    except UserError as error:
        print_error(str(error))
        status = 2
    except (typer.Abort, KeyboardInterrupt):
        print_error("interrupted")
        status = INTERRUPTED
    except Exception as error:  # noqa: BLE001  shown, and with a traceback unless the system is to blame
        known = system_error_message(error)
        if known is None or logging.getLogger().isEnabledFor(logging.INFO):  # the latter: --verbose
            traceback.print_exc()
        if known:
            print_error(known)
            status = 2
        else:
            print_error(
                f"unexpected {type(error).__name__}: a bug in the workbench; please report it with the lines above"
            )
            status = BUG
    sys.exit(status)


def _close_pipe() -> None:
    """The reader of our output has gone (`workbench teachers | head -1`): nothing more is written, not even at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
