"""The commands that make a student: distillation, its cost, labels and speech to train on. Imports are inside functions, as in cli/app.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workbench.cli.command import FILE, JsonFile, write_results
from workbench.core.errors import UserError


def add_commands(app: typer.Typer) -> None:
    """Register them with the command line."""
    for command in (distill, plan, label, synthesize):
        app.command()(command)


def distill(
    recipe: Annotated[Path, typer.Argument(help="Recipe: a YAML file, or a name as listed by `workbench recipes`.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, for example stages.decoder.epochs=2")
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Delete what the run folder holds and start over.")
    ] = False,
) -> None:
    """Train a student from a recipe, or resume a killed run."""
    from workbench import api

    typer.echo(api.distill(recipe, overrides, restart=restart).student)


def plan(
    recipe: Annotated[Path, typer.Argument(help="Recipe: a YAML file, or a name as listed by `workbench recipes`.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, as for distill")] = None,
    device: Annotated[str, typer.Option(help="Such as h100-80gb; an unknown name lists them.")] = "h100-80gb",
    devices: Annotated[int, typer.Option(help="How many of them.", min=1)] = 1,
    hours: Annotated[
        float | None,
        typer.Option(help="Hours of speech; by default the corpus's, if it is on this machine.", min=0.001),
    ] = None,
    clip_seconds: Annotated[float | None, typer.Option(help="Mean clip length in seconds, likewise.", min=0.01)] = None,
    efficiency: Annotated[
        float, typer.Option(help="Share of the device's peak that is assumed to be reached.", min=0.01, max=1.0)
    ] = 0.35,
    json_file: JsonFile = None,
) -> None:
    """Estimate what a recipe needs on an accelerator: parameters, operations, memory, largest batch, hours. Runs anywhere."""
    from workbench.config.recipe import load_recipe
    from workbench.planning.plan import corpus_size, print_plan
    from workbench.planning.plan import plan as run

    parsed = load_recipe(recipe, overrides)
    if hours is None or clip_seconds is None:
        found_hours, found_seconds = corpus_size(parsed)
        hours, clip_seconds = hours or found_hours, clip_seconds or found_seconds
    found = run(parsed, device, devices, hours, clip_seconds, efficiency)
    if not write_results(json_file, found.as_json()):
        print_plan(found)


def label(
    source: Annotated[
        Path,
        typer.Argument(
            help="Folder of audio files, or a manifest, whose text is the reference; of a public corpus: what `workbench corpus download` wrote."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Manifest to write (JSONL).", **FILE)],
    teacher: Annotated[
        str, typer.Option(help="The model that transcribes: a name as listed by `workbench teachers`.")
    ] = "whisper-base",
    language: Annotated[
        str | None,
        typer.Option(
            help="Language code of all clips, or `auto`: the teacher detects each clip's. By default the manifest's, or English where it has none."
        ),
    ] = None,
    beams: Annotated[int, typer.Option(help="1 is greedy.", min=1, max=20)] = 1,
    batch: Annotated[int, typer.Option("--batch-size", "--batch", help="Clips in one forward pass.", min=1)] = 4,
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    split: Annotated[str | None, typer.Option(help="Split that every line gets; by default its own.")] = None,
    longest: Annotated[
        float,
        typer.Option(
            "--max-segment-seconds",
            "--longest",
            help="Longest utterance cut out of a longer recording, in seconds.",
            min=1,
            max=30,
        ),
    ] = 28.0,
    max_wer: Annotated[
        float, typer.Option(help="Highest WER in percent, against a reference where there is one.", min=0)
    ] = 10.0,
    max_compression: Annotated[
        float,
        typer.Option(
            "--max-compression-ratio",
            "--max-compression",
            help="Highest ratio of text bytes to zlib bytes; loops compress well.",
            min=0,
        ),
    ] = 2.4,
    min_confidence: Annotated[
        float, typer.Option("--min-logprob", "--min-confidence", help="Lowest mean log-probability per token.")
    ] = -1.0,
    min_rate: Annotated[
        float, typer.Option("--min-chars-per-second", "--min-rate", help="Lowest characters per second.", min=0)
    ] = 2.0,
    max_rate: Annotated[
        float, typer.Option("--max-chars-per-second", "--max-rate", help="Highest characters per second.", min=0)
    ] = 30.0,
    min_language: Annotated[
        float,
        typer.Option(
            "--min-language-probability",
            "--min-language",
            help="Lowest probability of the language that the teacher detects.",
            min=0,
            max=1,
        ),
    ] = 0.5,
) -> None:
    """Transcribe audio that has no text, filter the labels, and write a manifest and a rejection report."""
    from workbench.core.errors import did_you_mean
    from workbench.corpus import SPLITS
    from workbench.labelling.filters import LabelFilters
    from workbench.labelling.pseudo_labels import LabelSettings
    from workbench.labelling.pseudo_labels import label as run

    if precision not in ("fp32", "bf16"):
        raise UserError(f"--precision {precision!r}{did_you_mean(precision, ('fp32', 'bf16'))}")
    if split is not None and split not in SPLITS:
        raise UserError(f"--split {split!r}{did_you_mean(split, SPLITS)}")
    limits = LabelFilters(max_wer, max_compression, min_confidence, min_rate, max_rate, min_language)
    settings = LabelSettings(teacher, language, beams, batch, precision, longest)
    typer.echo(run(source, output, settings, limits, split))


def synthesize(
    text: Annotated[Path, typer.Argument(help="UTF-8 text, one utterance per line.", dir_okay=False)],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Manifest to write (JSONL); recordings go beside it.", **FILE),
    ],
    voice: Annotated[
        Path | None, typer.Option(help="A Piper voice, NAME.onnx; the built-in one by default.", dir_okay=False)
    ] = None,
    language: Annotated[str, typer.Option(help="ISO 639-1 code of the text.")] = "en",
    speed: Annotated[
        list[float] | None, typer.Option(help="Speeds that the lines take in turn, 1.0 by default.")
    ] = None,
    avoid: Annotated[
        str | None,
        typer.Option(
            "--exclude-corpus", "--avoid", help="Corpus whose validation and test sentences must not be synthesized."
        ),
    ] = None,
    join: Annotated[
        float,
        typer.Option(
            "--join-seconds",
            "--join",
            help="Join lines into recordings of up to this many seconds, for a cheaper teacher's pass.",
            min=0,
            max=30,
        ),
    ] = 0.0,
) -> None:
    """Synthesize the lines of a text: training speech for users who have text but no audio."""
    from workbench.labelling.speech_from_text import synthesize as run
    from workbench.text.languages import language_code

    try:
        language = language_code(language)
    except UserError as error:
        raise UserError(f"--language {error}") from None
    typer.echo(run(text, output, voice, language, speed or [1.0], avoid, join))
