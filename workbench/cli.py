"""The command line. What a command runs is imported inside it, so `workbench --help` loads no torch."""

from __future__ import annotations

import errno
import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from workbench import __version__
from workbench.cli_research import add_commands as _add_research_commands
from workbench.errors import UserError

app = typer.Typer(
    name="workbench",
    help="Distil a speech recogniser, export it through ONNX, prove latency and WER against the teacher, show both.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
INTERRUPTED = 130  # 128 + SIGINT, as shells count it
VERIFIED_CLIPS = 24  # by `export`; `verify` takes as many as it is told
Threads = Annotated[int | None, typer.Option(help="Threads of each system; all cores by default.", min=1)]
Corpus = Annotated[str, typer.Option(help="Built-in name, manifest, folder with a manifest, or hf:ID[:CONFIG].")]
Split = Annotated[str, typer.Option(help="train, validation or test.")]


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
def distill(
    recipe: Annotated[Path, typer.Argument(help="Recipe, a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, for example stages.decoder.epochs=2")
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Drop what the run folder holds and begin anew.")] = False,
) -> None:
    """Train a student from a recipe, or go on where a killed run stopped."""
    from workbench.recipe import load_recipe

    parsed = load_recipe(recipe, overrides)
    from workbench.train import distill as run

    typer.echo(run(parsed, restart))


@app.command()
def plan(
    recipe: Annotated[Path, typer.Argument(help="Recipe, a YAML file.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, as for distill")] = None,
    device: Annotated[str, typer.Option(help="Such as h100-80gb; a wrong name lists them.")] = "h100-80gb",
    devices: Annotated[int, typer.Option(help="How many of them.", min=1)] = 1,
    hours: Annotated[float | None, typer.Option(help="Hours of speech; the corpus's own where it lies here.")] = None,
    clip_seconds: Annotated[float | None, typer.Option(help="Mean length of a clip, likewise.")] = None,
    efficiency: Annotated[
        float, typer.Option(help="Share of the device's peak that is reached: an assumption.", min=0.01, max=1.0)
    ] = 0.35,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write it as JSON.")] = None,
) -> None:
    """Reckon what a recipe takes on an accelerator: parameters, operations, memory, largest batch, hours. Runs anywhere."""
    from workbench.files import write_json
    from workbench.plan import corpus_size, print_plan
    from workbench.plan import plan as run
    from workbench.recipe import load_recipe

    parsed = load_recipe(recipe, overrides)
    if hours is None or clip_seconds is None:
        found_hours, found_seconds = corpus_size(parsed)
        hours, clip_seconds = hours or found_hours, clip_seconds or found_seconds
    found = run(parsed, device, devices, hours, clip_seconds, efficiency)
    print_plan(found)
    if json_file is not None:
        write_json(json_file, found.as_json())


@app.command()
def label(
    source: Annotated[Path, typer.Argument(help="Folder of audio files, or a manifest; its text is the reference.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Manifest to write (JSONL).")],
    teacher: Annotated[str, typer.Option(help="Who transcribes: a name as for `workbench teachers`.")] = "whisper-base",
    language: Annotated[str, typer.Option(help="ISO 639-1 code, or `auto`: the teacher tells it of each clip.")] = "en",
    beams: Annotated[int, typer.Option(help="1 is greedy.", min=1, max=20)] = 1,
    batch: Annotated[int, typer.Option(help="Clips in one forward pass.", min=1)] = 4,
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    split: Annotated[str | None, typer.Option(help="Split that every line gets; by default its own.")] = None,
    longest: Annotated[
        float, typer.Option(help="Seconds of an utterance cut out of a longer recording.", min=1, max=30)
    ] = 28.0,
    max_wer: Annotated[float, typer.Option(help="Percent, against a reference where there is one.")] = 10.0,
    max_compression: Annotated[float, typer.Option(help="Text bytes over zlib bytes; loops compress well.")] = 2.4,
    min_confidence: Annotated[float, typer.Option(help="Mean log-probability a token.")] = -1.0,
    min_rate: Annotated[float, typer.Option(help="Characters a second.")] = 2.0,
    max_rate: Annotated[float, typer.Option(help="Characters a second.")] = 30.0,
    min_language: Annotated[float, typer.Option(help="Probability of the language that the teacher tells.")] = 0.5,
) -> None:
    """Transcribe audio that has no text, filter the labels, and write a manifest and a rejection report."""
    from workbench.corpus import SPLITS
    from workbench.errors import nearest
    from workbench.filters import Limits
    from workbench.label import LabelSettings
    from workbench.label import label as run

    if precision not in ("fp32", "bf16"):
        raise UserError(f"--precision {precision!r}{nearest(precision, ('fp32', 'bf16'))}")
    if split is not None and split not in SPLITS:
        raise UserError(f"--split {split!r}{nearest(split, SPLITS)}")
    limits = Limits(max_wer, max_compression, min_confidence, min_rate, max_rate, min_language)
    settings = LabelSettings(teacher, None if language == "auto" else language, beams, batch, precision, longest)
    typer.echo(run(source, output, settings, limits, split))


@app.command()
def synthesize(
    text: Annotated[Path, typer.Argument(help="UTF-8 text, one utterance a line.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Manifest to write (JSONL); recordings go beside it.")],
    voice: Annotated[Path | None, typer.Option(help="A Piper voice, NAME.onnx; the built-in one by default.")] = None,
    language: Annotated[str, typer.Option(help="ISO 639-1 code of the text.")] = "en",
    speed: Annotated[
        list[float] | None, typer.Option(help="Speeds that the lines take in turn, 1.0 by default.")
    ] = None,
    avoid: Annotated[
        str | None, typer.Option(help="Corpus of whose validation and test splits no sentence may be said.")
    ] = None,
    join: Annotated[
        float, typer.Option(help="Join lines to recordings of up to so many seconds: a cheaper teacher's pass.")
    ] = 0.0,
) -> None:
    """Say the lines of a text with a text-to-speech engine: training speech for who has text but no audio."""
    from workbench.synthesize import synthesize as run

    typer.echo(run(text, output, voice, language, speed or [1.0], avoid, join))


@app.command()
def export(
    student: Annotated[Path, typer.Argument(help="Student or any transformers Whisper checkpoint folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the bundle.")],
    precision: Annotated[
        str,
        typer.Option(
            help="Comma-separated: fp32, fp16, int8, w8, q4, or encoder/decoder; the first is the clients' default."
        ),
    ] = "fp32,int8",
    name: Annotated[str, typer.Option(help="What the bundle is called; the run's or folder's name by default.")] = "",
    vocabulary: Annotated[
        str,
        typer.Option(help="Tokens to keep: trained, a language (en, or en:16000 at most), corpus:FILE, or a number."),
    ] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle of other content.")] = False,
    verify: Annotated[bool, typer.Option(help="Verify it in the installed runtimes afterwards.")] = True,
    corpus: Annotated[
        str, typer.Option(help="Clips to calibrate, search and verify on; the run's own corpus by default.")
    ] = "",
    per_channel: Annotated[bool, typer.Option(help="int8: a scale for each output channel.")] = True,
    reduce_range: Annotated[
        bool | None, typer.Option(help="int8: 7 bits; by default where this CPU lacks an int8 dot product.")
    ] = None,
    budget: Annotated[
        str,
        typer.Option(help="Find the fastest precision on this machine within it: wer<=+0.5,size<=60,rss<=250,p50<=80."),
    ] = "",
    device_profile: Annotated[
        Path | None, typer.Option(help="JSON that describes another device, with --budget.")
    ] = None,
    threads: Threads = None,
    symmetric: Annotated[bool, typer.Option(help="No zero points: static int8's inputs, weights in blocks.")] = False,
) -> None:
    """Export a student as a bundle: ONNX graphs, tokenizer, manifest, model card, torch-free runtime."""
    from export.bundle import export_bundle, open_manifest
    from export.int8 import Int8Options

    precisions = [p.strip() for p in precision.split(",") if p.strip()]
    corpus = corpus or _corpus_of(student)
    texts: list[str] = []
    if vocabulary:
        from workbench.corpus import open_corpus

        texts = [u.text for u in open_corpus(corpus, "validation")]
    options = Int8Options(per_channel, reduce_range, symmetric)
    if budget or device_profile:
        from export.search import export_for

        how = {"name": name, "overwrite": overwrite, "vocabulary": vocabulary, "texts": texts}
        bundle, _ = export_for(student, output, budget, device_profile, corpus, options, threads, **how)
    else:
        from export.quantize import calibration_clips

        calibration = calibration_clips(corpus) if "int8_static" in precision else []
        bundle = export_bundle(student, output, precisions, name, overwrite, vocabulary, texts, options, calibration)
    if verify and "verification" not in open_manifest(bundle).content:
        _verify(bundle, student, corpus, "validation", VERIFIED_CLIPS, [], None)
    typer.echo(bundle)


def _corpus_of(student: Path) -> str:
    """Corpus of the run that made a student; the built-in one for other checkpoints."""
    from workbench.recipe import load_recipe

    recipe = student.parent / "recipe.yaml"
    return load_recipe(recipe).corpus if recipe.is_file() else "prompts-en"


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    checkpoint: Annotated[Path, typer.Option(help="Checkpoint that it was exported from.")],
    corpus: Corpus = "prompts-en",
    split: Split = "validation",
    clips: Annotated[int | None, typer.Option(help="At most this many clips.", min=1)] = None,
    client: Annotated[list[str] | None, typer.Option(help="Only these runtimes.")] = None,
    threads: Threads = None,
) -> None:
    """Run a bundle in every installed runtime, each in its own process, and compare with torch."""
    _verify(bundle, checkpoint, corpus, split, clips, client or [], threads)


def _verify(
    bundle: Path, checkpoint: Path, corpus: str, split: str, clips: int | None, clients: list[str], threads: int | None
) -> None:
    from export.verify import verify_bundle
    from workbench.corpus import open_corpus

    utterances = open_corpus(corpus, split, clips)
    found = verify_bundle(bundle, checkpoint, utterances, f"{corpus} {split}", clients, threads)
    failing = [c for c in found["clients"] if not c["passed"]]
    for c in failing:
        if not c["required"]:
            typer.echo(
                f"note: {c['client']} {c['precision']} has WER {c['wer']} against {c['wer_torch']} at true length",
                err=True,
            )
    if failed := [f"{c['client']} {c['precision']}" for c in failing if c["required"]]:
        raise UserError(f"{bundle}: fails in {', '.join(failed)}; bundle.json says by how much")


@app.command()
def measure(
    bundles: Annotated[list[Path], typer.Argument(help="Folders of bundles; every precision of each is measured.")],
    against: Annotated[str, typer.Option(help="The teacher: a name as for `workbench teachers`, or its bundle.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder for report.json and report.html; beside the first bundle by default."
        ),
    ] = None,
    corpus: Corpus = "prompts-en",
    split: Split = "test",
    clips: Annotated[int | None, typer.Option(help="At most this many clips.", min=1)] = None,
    threads: Threads = None,
    repeats: Annotated[int, typer.Option(help="Passes over each clip, of which the median counts.", min=1)] = 1,
    again: Annotated[bool, typer.Option("--again", help="Measure anew what report.json holds already.")] = False,
    robustness: Annotated[
        bool, typer.Option(help="Also count what is written of silence, noise, music and tenths of a second.")
    ] = True,
) -> None:
    """Measure WER, latency, memory and size of bundles against their teacher, interleaved on the same clips."""
    from export.measure import measure as run
    from export.report import print_table

    folder = output or bundles[0].parent
    report = run(bundles, against, folder, corpus, split, clips, threads, repeats, again, robustness)
    print_table(report)
    typer.echo(f"{folder / 'report.json'}\n{folder / 'report.html'}")


@app.command()
def demo(
    bundles: Annotated[list[Path], typer.Argument(help="Folders of bundles, each shown in its smallest precision.")],
    against: Annotated[str, typer.Option(help="The teacher, shown beside them.")] = "whisper-base",
    corpus: Corpus = "prompts-en",
    precision: Annotated[
        str | None, typer.Option(help="Precision of the students; the last one of each bundle by default.")
    ] = None,
    port: Annotated[int, typer.Option(help="Port on this machine.")] = 7860,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    threads: Threads = None,
) -> None:
    """Serve the side-by-side page: teacher and students on the same clip."""
    from demo.app import serve

    serve(bundles, against, corpus, precision, host, port, threads)


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


_add_research_commands(app)


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
