"""`workbench quickstart`: the whole chain on the built-in speech, each step announced."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from workbench.cli.command import FOLDER
from workbench.core.errors import UserError

if TYPE_CHECKING:
    from export.measurement.content import Report

log = logging.getLogger("workbench")
STEPS = 3


def add_commands(app: typer.Typer) -> None:
    """Register it with the command line."""
    app.command()(quickstart)


def quickstart(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run.", **FOLDER)] = Path(
        "runs/quickstart"
    ),
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, as for distill: for example corpus=my/manifest.jsonl")
    ] = None,
    verify: Annotated[bool, typer.Option(help="Verify the bundle in every installed runtime.")] = True,
) -> None:
    """Distil Whisper base on the built-in speech, export and verify the student, measure it against its teacher."""
    from workbench import api
    from workbench.config.recipe import load_recipe
    from workbench.config.shipped import FOLDER

    if given := [one for one in overrides or [] if one.startswith("output=")]:
        raise UserError(f"{given[0]}: name the run folder with -o")
    recipe = load_recipe(FOLDER / "quickstart.yaml", overrides).model_copy(update={"output": output})
    with _step(
        1,
        f"distil. {recipe.teacher} transcribes the training clips; a student learns to do it at each clip's own length",
        "8 to 25",
    ):
        from workbench.training.trainer import distill

        run = api.Run(distill(recipe).parent)
    with _step(
        2,
        "export. The student becomes ONNX graphs in fp32 and int8, which must write what torch writes in every installed runtime",
        "2 to 5",
    ):
        bundle = api.export(run.student, run.folder / "bundle", verify=verify)
    with _step(3, "measure. Teacher and students transcribe the test clips in turn", "3 to 5"):
        measured = api.measure([bundle.folder])
    _summary(measured.report, bundle.folder, run.folder)


@contextmanager
def _step(number: int, what: str, minutes: str) -> Iterator[None]:
    log.info("Step %d of %d: %s. About %s minutes on two cores.", number, STEPS, what, minutes)
    begun = time.monotonic()
    yield
    log.info("Step %d of %d took %.1f minutes.\n", number, STEPS, (time.monotonic() - begun) / 60)


def _summary(report: Report, bundle: Path, run: Path) -> None:
    """A narrow table, the verdict in words, and what to do next."""
    from export.measurement.conclusion import conclude
    from export.measurement.tables import interval
    from workbench.core.tables import print_rows

    rate = report["corpus"]["headline"]
    rows = [
        (
            system["precision"] if "speedup" in system else "teacher",
            f"{system['cer'] if rate == 'cer' else system['wer']:.1f}",
            interval(system["cer_ci"] if rate == "cer" else system["wer_ci"]),
            f"{system['latency_ms']['p50']:.0f}",
            f"{system['speedup']:.1f} x" if "speedup" in system else "",
            f"{system['size_mb']:.0f}",
        )
        for system in report["systems"]
    ]
    print_rows(("system", f"{rate.upper()} %", "95 %", "ms", "speed-up", "MB"), rows)
    verdict = conclude(run.name, report)
    typer.echo(f"\n{verdict.first}")
    for line in verdict.because:
        typer.echo(line)
    place = shlex.quote(str(bundle))
    following = [f"workbench demo {place}", f"workbench transcribe FILE --bundle {place}"]
    if verdict.student is not None:
        precision = verdict.student.row["precision"]
        following.append(f"workbench pack {place} -o DEVICE --for edge --precision {precision}")
    typer.echo("\nNext:\n  " + "\n  ".join(following) + f"\nThe whole report: {run / 'report.html'}")
