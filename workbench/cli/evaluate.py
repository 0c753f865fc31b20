"""The commands that use models and bundles: transcripts, measurements, reports, the side-by-side page. Imports are inside functions, as in cli/app.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workbench.cli.command import (
    FILE,
    FOLDER,
    Corpus,
    Hotwords,
    HotwordsScore,
    JsonFile,
    LanguageModelFile,
    LmAlpha,
    LmBeta,
    LmUnknown,
    MinLogprob,
    Split,
    Threads,
    check_address,
    language_model_weights,
    write_results,
)
from workbench.core.errors import UserError, did_you_mean


def add_commands(app: typer.Typer) -> None:
    """Register them with the command line."""
    for command in (transcribe, measure, report, demo):
        app.command()(command)


def transcribe(
    files: Annotated[list[Path], typer.Argument(help="Audio or video files of any format and length.")],
    bundle: Annotated[
        Path | None,
        typer.Option(help="Transcribe with this exported bundle; with --model by default.", file_okay=False),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="A checkpoint in torch: a name as listed by `workbench teachers`, or a folder; whisper-base by default."
        ),
    ] = None,
    language: Annotated[str, typer.Option(help="ISO 639-1 code, or auto to detect it.")] = "auto",
    output_format: Annotated[str, typer.Option("--format", help="text, srt, vtt or json.")] = "text",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for one file per recording; standard output by default.", **FOLDER),
    ] = None,
    precision: Annotated[str | None, typer.Option(help="With --bundle: one of its own; its first by default.")] = None,
    words: Annotated[bool, typer.Option("--words", help="With --bundle: the time of each word, in JSON.")] = False,
    beams: Annotated[int, typer.Option(help="1 is greedy, and the fastest.", min=1, max=1024)] = 1,
    hotwords: Hotwords = None,
    hotwords_score: HotwordsScore = None,
    lm: LanguageModelFile = None,
    lm_alpha: LmAlpha = None,
    lm_beta: LmBeta = None,
    lm_unk_score_offset: LmUnknown = None,
    min_logprob: MinLogprob = None,
    threads: Annotated[int | None, typer.Option(help="With --bundle; all cores by default.", min=1, max=1024)] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace transcripts in --output.")] = False,
) -> None:
    """Transcribe recordings, with the built-in teacher or an exported student."""
    from export.edge.decoding.hotwords import DEFAULT_SCORE
    from export.transcription import TranscribeOptions, transcribe_files

    if bundle is None and (precision or words or threads):
        raise UserError("--precision, --words and --threads are a bundle's; name one with --bundle")
    if bundle is None and hotwords:
        raise UserError("--hotwords: needs a bundle; export the model and name the bundle with --bundle")
    if hotwords_score is not None and hotwords is None:
        raise UserError("--hotwords-score: there are no hotwords; name their file with --hotwords")
    if bundle is None and lm:
        raise UserError("--lm: needs a bundle with a CTC head; name it with --bundle")
    if bundle is None and min_logprob is not None:
        raise UserError("--min-logprob: needs a bundle; export the model and name the bundle with --bundle")
    weights = language_model_weights(lm, lm_alpha, lm_beta, lm_unk_score_offset)
    if bundle and model:
        raise UserError("--bundle and --model: give one of the two")
    if overwrite and output is None:
        raise UserError("--overwrite replaces transcripts in a folder; name it with -o")
    options = TranscribeOptions(
        language,
        output_format,
        beams,
        words,
        hotwords,
        hotwords_score or DEFAULT_SCORE,
        lm,
        weights,
        min_logprob,
        output,
        overwrite,
    )
    for text in transcribe_files(files, bundle or model or "whisper-base", options, precision, threads):
        typer.echo(text)


def measure(
    bundles: Annotated[
        list[Path], typer.Argument(help="Folders of bundles; every precision of each is measured.", file_okay=False)
    ],
    against: Annotated[
        str | None,
        typer.Option(
            help="The teacher: a name as listed by `workbench teachers`, or its bundle; by default that of the bundle's run, else whisper-base."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder for report.json and report.html; beside the first bundle by default.",
            **FOLDER,
        ),
    ] = None,
    corpus: Annotated[
        list[str] | None,
        typer.Option(
            help="As listed by `workbench corpus names`, or a manifest; by default that of the bundle's run, else prompts-en. Repeatable: each further corpus gets its own section."
        ),
    ] = None,
    split: Split = "test",
    clips: Annotated[int | None, typer.Option(help="At most this many clips of each corpus.", min=1)] = None,
    threads: Threads = None,
    repeats: Annotated[int, typer.Option(help="Passes over each clip, of which the median counts.", min=1)] = 1,
    again: Annotated[
        bool, typer.Option("--remeasure", "--again", help="Measure again even if report.json is up to date.")
    ] = False,
    robustness: Annotated[
        bool, typer.Option(help="Also count what is written for silence, noise, music and tenths of a second.")
    ] = True,
    preset: Annotated[
        str,
        typer.Option(
            help="open-asr-leaderboard: the test sets and the scoring of that leaderboard as of 2025, in place of --corpus."
        ),
    ] = "",
    beams: Annotated[
        int, typer.Option(help="Of every bundle; 1 is greedy, the default, as the teacher always is.", min=1, max=1024)
    ] = 1,
    lm: LanguageModelFile = None,
    lm_alpha: LmAlpha = None,
    lm_beta: LmBeta = None,
    lm_unk_score_offset: LmUnknown = None,
    json_file: JsonFile = None,
) -> None:
    """Measure WER, latency, memory and size of bundles against their teacher, interleaved on the same clips."""
    from export.measurement.tables import print_table
    from workbench import api

    weights = language_model_weights(lm, lm_alpha, lm_beta, lm_unk_score_offset)
    options = api.MeasureOptions(split, clips, threads, repeats, again, robustness, preset, beams, lm, weights)
    measured = api.measure(bundles, against, output, corpora=corpus or [], options=options)
    if write_results(json_file, measured.report):
        return
    print_table(measured.report)
    typer.echo(f"{measured.folder / 'report.json'}\n{measured.folder / 'report.html'}")


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Run folders, or folders with a report.json of `workbench measure`.", file_okay=False),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="HTML file to write.", **FILE)] = Path("report.html"),
    audio: Annotated[
        int, typer.Option(help="Clips of speech to put into the page, where their corpus is here; 0 for none.", min=0)
    ] = 20,
) -> None:
    """Write measurements as one self-contained page: which student to ship and why, plots, errors with audio, training."""
    from export.measurement.page import read_sources, write_page

    sources = read_sources(runs)
    write_page(sources, output, audio)
    typer.echo(output)


def demo(
    bundles: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Folders of bundles, each shown in its smallest precision; without any, the teacher's own in int8.",
            file_okay=False,
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(help="The teacher, shown beside them; by default that of the bundle's run, else whisper-base."),
    ] = None,
    corpus: Corpus = None,
    precision: Annotated[
        str | None, typer.Option(help="Precision of the students; the last one of each bundle by default.")
    ] = None,
    port: Annotated[int, typer.Option(help="Port on this machine.", min=1, max=65535)] = 7860,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    threads: Threads = None,
    vad: Annotated[
        bool,
        typer.Option("--vad/--no-vad", help="Give no text for clips in which the speech detector finds no speech."),
    ] = True,
    longest: Annotated[
        float,
        typer.Option(
            "--max-recording-seconds", "--longest", min=1, help="Longest recording and live session, in seconds."
        ),
    ] = 600,
    upload_mb: Annotated[int, typer.Option(min=1, help="Size of the largest upload.")] = 100,
    at_once: Annotated[
        int,
        typer.Option(
            "--max-concurrent", "--at-once", min=1, help="Requests that take turns; each holds its recording in memory."
        ),
    ] = 16,
    waiting: Annotated[
        int, typer.Option("--max-queued", "--waiting", min=1, help="Requests that wait; more are refused.")
    ] = 64,
    live: Annotated[
        int, typer.Option("--max-live", "--live", min=1, help="Visitors who may speak at the same time.")
    ] = 4,
    keep_minutes: Annotated[float, typer.Option(min=0.1, help="Minutes until a recording is removed.")] = 10,
    preferences: Annotated[
        Path | None,
        typer.Option(help="File that visitors' blind preferences are appended to, a JSON object a line.", **FILE),
    ] = None,
) -> None:
    """Serve the side-by-side page: teacher and students on the same clip."""
    from demo.app import serve
    from demo.limits import DemoLimits
    from export.bundle.manifest import open_manifest
    from workbench.api import corpus_of_run, teacher_of_run
    from workbench.corpus import scored_clips

    check_address(host, port)
    first = bundles[0] if bundles else None
    corpus = corpus or corpus_of_run(first)
    against = against or teacher_of_run(first)
    for bundle in bundles or []:
        manifest = open_manifest(bundle)  # before the teacher is exported, which takes a while
        if precision is not None and precision not in manifest.precisions:
            raise UserError(f"{bundle}: --precision {precision!r}{did_you_mean(precision, manifest.precisions)}")
    scored_clips(corpus, "test")
    limits = DemoLimits(longest, upload_mb, at_once, waiting, live, keep_minutes)
    serve(bundles or [], against, corpus, precision, host, port, threads, None if vad else False, limits, preferences)
