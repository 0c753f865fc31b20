"""The commands that bring a student to its device: bundles, verification, the side-by-side page. Imports are inside functions, as in cli/app.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workbench.cli.command import FILE, FOLDER, JsonFile, check_address, write_results
from workbench.core.errors import UserError, did_you_mean

Threads = Annotated[int | None, typer.Option(help="Threads of each system; all cores by default.", min=1, max=1024)]
Corpus = Annotated[
    str | None,
    typer.Option(
        help="Built-in name, manifest, folder with a manifest, or hf:ID[:CONFIG]; by default that of the bundle's run, else prompts-en."
    ),
]
Split = Annotated[str, typer.Option(help="train, validation or test.")]


def add_commands(app: typer.Typer) -> None:
    """Register them with the command line."""
    for command in (transcribe, export, pack, verify, measure, report, demo, push, prune):
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
    beams: Annotated[int, typer.Option(help="1 is greedy, and the fastest.", min=1, max=20)] = 1,
    threads: Annotated[int | None, typer.Option(help="With --bundle; all cores by default.", min=1, max=1024)] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace transcripts in --output.")] = False,
) -> None:
    """Transcribe recordings, with the built-in teacher or an exported student."""
    from export.transcription import TranscribeOptions, transcribe_files

    if bundle is None and (precision or words or threads):
        raise UserError("--precision, --words and --threads are a bundle's; name one with --bundle")
    if bundle and model:
        raise UserError("--bundle and --model: give one of the two")
    if overwrite and output is None:
        raise UserError("--overwrite replaces transcripts in a folder; name it with -o")
    options = TranscribeOptions(language, output_format, beams, words, output, overwrite)
    for text in transcribe_files(files, bundle or model or "whisper-base", options, precision, threads):
        typer.echo(text)


def export(
    student: Annotated[
        Path, typer.Argument(help="Student or any transformers Whisper checkpoint folder.", file_okay=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the bundle.", **FOLDER)],
    precision: Annotated[
        str,
        typer.Option(
            help="Comma-separated: fp32, fp16, int8, w8, q4, or encoder/decoder; the first is the clients' default."
        ),
    ] = "fp32,int8",
    name: Annotated[str, typer.Option(help="What the bundle is called; the run's or folder's name by default.")] = "",
    vocabulary: Annotated[
        str,
        typer.Option(
            help="Tokens to keep: trained, a language (en, or en:16000 for at most 16,000 tokens), corpus:FILE or a number; combine them with +."
        ),
    ] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle with other content.")] = False,
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
        Path | None, typer.Option(help="JSON that describes another device, with --budget.", dir_okay=False)
    ] = None,
    threads: Threads = None,
    symmetric: Annotated[
        bool, typer.Option(help="No zero points, in static int8's inputs and in block-wise weights.")
    ] = False,
    through: Annotated[
        str,
        typer.Option(
            "--decoder-exporter",
            "--through",
            help="Exporter of the decoder for Hugging Face's runtimes: workbench or optimum.",
        ),
    ] = "workbench",
) -> None:
    """Export a student as a bundle: ONNX graphs, tokenizer, manifest, model card, torch-free runtime."""
    from workbench import api

    options = api.ExportOptions(
        name, vocabulary, overwrite, per_channel, reduce_range, symmetric, through, budget, device_profile, threads
    )
    precisions = [p.strip() for p in precision.split(",") if p.strip()]
    made = api.export(student, output, precision=precisions, corpus=corpus or None, verify=verify, options=options)
    typer.echo(made.folder)


def pack(
    bundle: Annotated[Path, typer.Argument(help="Folder of the whole bundle.", file_okay=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.", **FOLDER)],
    client: Annotated[
        str,
        typer.Option(
            "--for",
            help="The runtime: edge, sherpa_onnx, onnx_asr, optimum or transformers_js; browser: a static page that transcribes.",
        ),
    ] = "edge",
    precision: Annotated[str, typer.Option(help="One of the bundle's; its last by default.")] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder.")] = False,
) -> None:
    """Copy the part of a bundle that one runtime needs, in one precision: the folder that goes to the device."""
    from export.assembly.browser_site import pack_site
    from export.assembly.pack import pack as write

    if client == "browser":
        folder = pack_site(bundle, output, precision, overwrite)
    else:
        folder = write(bundle, output, client, precision, overwrite)
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 1e6
    typer.echo(f"{folder} ({size:.1f} MB)")


def verify(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.", file_okay=False)],
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="Checkpoint that it was exported from; the student beside the bundle by default.", file_okay=False
        ),
    ] = None,
    corpus: Corpus = None,
    split: Split = "validation",
    clips: Annotated[int | None, typer.Option(help="At most this many clips.", min=1)] = None,
    client: Annotated[list[str] | None, typer.Option(help="Only these runtimes.")] = None,
    threads: Threads = None,
    json_file: JsonFile = None,
) -> None:
    """Run a bundle in every installed runtime, each in its own process, and compare with torch."""
    beside = bundle.resolve().parent / "student"
    if checkpoint is None and not beside.is_dir():
        raise UserError(f"{beside}: no such folder; name the checkpoint that {bundle} comes from with --checkpoint")
    from workbench import api
    from workbench.core.machine.host import describe_host

    corpus = corpus or api.corpus_of_run(bundle)
    found = api.verify_clients(bundle, checkpoint or beside, corpus, split, clips, client or [], threads)
    write_results(json_file, {"host": describe_host(), **found})
    api.check_verified(bundle, found)


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
            help="By default that of the bundle's run, else prompts-en; repeatable: each further corpus gets its own section."
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
    json_file: JsonFile = None,
) -> None:
    """Measure WER, latency, memory and size of bundles against their teacher, interleaved on the same clips."""
    from export.measurement.tables import print_table
    from workbench import api

    options = api.MeasureOptions(split, clips, threads, repeats, again, robustness)
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
    serve(bundles or [], against, corpus, precision, host, port, threads, None if vad else False, limits)


def push(
    folder: Annotated[Path, typer.Argument(help="Folder of a bundle or of a student.", file_okay=False)],
    repository: Annotated[str, typer.Argument(help="OWNER/NAME on the Hugging Face hub; made if it does not exist.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch of the repository; main by default.")] = None,
    message: Annotated[str, typer.Option(help="Message of the commit.")] = "",
) -> None:
    """Upload a bundle or a student to the Hugging Face hub, with a model card that holds what was measured."""
    from export.assembly.hub import push as upload

    typer.echo(upload(folder, repository, private, revision, message))


def prune(
    checkpoint: Annotated[str, typer.Argument(help="Teacher's name, or folder of a checkpoint.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the new checkpoint.", **FOLDER)],
    vocabulary: Annotated[
        str,
        typer.Option(
            help="As for export: a language (en, en:16000), corpus:FILE, a number, or several combined with +."
        ),
    ],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder.")] = False,
) -> None:
    """Write a checkpoint with a smaller vocabulary: a teacher whose students are small from the start."""
    from export.bundle.vocabulary import choose_tokens
    from export.bundle.vocabulary import prune as write
    from workbench.core.locks import output_lock
    from workbench.core.ownership import CHECKPOINT, check_replaceable, replacing, write_record
    from workbench.models.resolve import resolve_teacher
    from workbench.models.whisper.family import Whisper

    source = resolve_teacher(checkpoint)
    if output.exists() and not overwrite:
        raise UserError(f"{output}: exists; choose another -o, or add --overwrite")
    check_replaceable(output, CHECKPOINT, [source])
    kept = choose_tokens(vocabulary, Whisper(source))
    with output_lock(output), replacing(output, CHECKPOINT) as folder:
        write(source, kept, folder)
        write_record(folder)
    typer.echo(f"{output}: {len(kept):,} tokens")
