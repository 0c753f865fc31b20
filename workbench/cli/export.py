"""The commands that bring a student to its device: bundles, verification, the side-by-side page. Imports are inside functions, as in cli/app.py."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.cli.command import FILE, FOLDER
from workbench.core.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from export.edge.bundle.content import Verification

VERIFIED_CLIPS = 24  # by `export`; `verify` has an option
Threads = Annotated[int | None, typer.Option(help="Threads of each system; all cores by default.", min=1, max=1024)]
Corpus = Annotated[str, typer.Option(help="Built-in name, manifest, folder with a manifest, or hf:ID[:CONFIG].")]
Split = Annotated[str, typer.Option(help="train, validation or test.")]


def add_commands(app: typer.Typer) -> None:
    """Register them with the command line."""
    for command in (export, pack, verify, measure, demo, prune):
        app.command()(command)


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
    from export.assembly.alignment import alignment_clips
    from export.assembly.build import export_bundle
    from export.bundle.manifest import open_manifest
    from export.quantization.int8 import Int8Options

    precisions = [p.strip() for p in precision.split(",") if p.strip()]
    corpus = corpus or _corpus_of(student)
    texts: list[str] = []
    if vocabulary:
        from workbench.corpus import open_corpus

        texts = [u.text for u in open_corpus(corpus, "validation")]
    aligned = alignment_clips(corpus)
    options = Int8Options(per_channel, reduce_range, symmetric)
    how: dict[str, Any] = {
        "name": name, "overwrite": overwrite, "vocabulary": vocabulary, "texts": texts, "aligned": aligned, "through": through,
    }  # fmt: skip
    if budget or device_profile:
        from export.search.search import export_for

        bundle, _ = export_for(student, output, budget, device_profile, corpus, options, threads, **how)
    else:
        from export.quantization.quantize import calibration_clips

        calibration = calibration_clips(corpus) if "int8_static" in precision else []
        bundle = export_bundle(student, output, precisions, options=options, calibration=calibration, **how)
    if verify:
        if found := open_manifest(bundle).content.get("verification"):
            _tell_failures(bundle, found)
        else:
            _verify(bundle, student, corpus, "validation", VERIFIED_CLIPS, [], None)
    typer.echo(bundle)


def pack(
    bundle: Annotated[Path, typer.Argument(help="Folder of the whole bundle.", file_okay=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.", **FOLDER)],
    client: Annotated[
        str, typer.Option("--for", help="The runtime: edge, sherpa_onnx, onnx_asr, optimum or transformers_js.")
    ] = "edge",
    precision: Annotated[str, typer.Option(help="One of the bundle's; its last by default.")] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder.")] = False,
) -> None:
    """Copy the part of a bundle that one runtime needs, in one precision: the folder that goes to the device."""
    from export.assembly.pack import pack as write

    folder = write(bundle, output, client, precision, overwrite)
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 1e6
    typer.echo(f"{folder} ({size:.1f} MB)")


def _corpus_of(student: Path) -> str:
    """Corpus of the run that made a student; the built-in one for other checkpoints."""
    from workbench.config.recipe import load_recipe

    recipe = student.parent / "recipe.yaml"
    return load_recipe(recipe).corpus if recipe.is_file() else "prompts-en"


def verify(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.", file_okay=False)],
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="Checkpoint that it was exported from; the student beside the bundle by default.", file_okay=False
        ),
    ] = None,
    corpus: Corpus = "prompts-en",
    split: Split = "validation",
    clips: Annotated[int | None, typer.Option(help="At most this many clips.", min=1)] = None,
    client: Annotated[list[str] | None, typer.Option(help="Only these runtimes.")] = None,
    threads: Threads = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the results as JSON.", **FILE)] = None,
) -> None:
    """Run a bundle in every installed runtime, each in its own process, and compare with torch."""
    beside = bundle.parent / "student"
    if checkpoint is None and not beside.is_dir():
        raise UserError(f"{beside}: no such folder; name the checkpoint that {bundle} comes from with --checkpoint")
    _verify(bundle, checkpoint or beside, corpus, split, clips, client or [], threads, json_file)


def _verify(
    bundle: Path, checkpoint: Path, corpus: str, split: str, clips: int | None, clients: list[str], threads: int | None,
    json_file: Path | None = None,
) -> None:  # fmt: skip
    from export.verification.verify import verify_bundle
    from workbench.core.files import write_json
    from workbench.core.machine.host import describe_host
    from workbench.corpus import scored_clips

    utterances = scored_clips(corpus, split, clips)
    found = verify_bundle(bundle, checkpoint, utterances, f"{corpus} {split}", clients, threads)
    if json_file is not None:
        write_json(json_file, {"host": describe_host(), **found})
    _tell_failures(bundle, found)


def _tell_failures(bundle: Path, found: Verification) -> None:
    """Raise UserError if a runtime that must agree with torch does not, also for a bundle that was already up to date."""
    from export.verification.agreement import explain

    failing = [c for c in found["clients"] if not c["passed"]]
    for one in sorted(failing, key=lambda c: c["required"]):
        typer.echo(("" if one["required"] else "note: ") + "\n".join(explain(one)), err=True)
    if failed := [f"{c['client']} {c['precision']}" for c in failing if c["required"]]:
        raise UserError(f"{bundle}: fails in {', '.join(failed)}; the reasons are above and in bundle.json")


def measure(
    bundles: Annotated[
        list[Path], typer.Argument(help="Folders of bundles; every precision of each is measured.", file_okay=False)
    ],
    against: Annotated[str, typer.Option(help="The teacher: a name as listed by `workbench teachers`, or its bundle.")],
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
        typer.Option(help="prompts-en by default; repeatable: each further corpus gets its own section."),
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
) -> None:
    """Measure WER, latency, memory and size of bundles against their teacher, interleaved on the same clips."""
    from export.bundle.manifest import open_manifest
    from export.measurement.measure import measure as run
    from export.measurement.report import print_table
    from workbench.core.locks import output_lock

    for bundle in bundles:
        open_manifest(bundle)  # before a folder is made for the report
    folder = output or bundles[0].parent
    with output_lock(folder / "report.json"):
        report = run(
            bundles, against, folder, corpus or ["prompts-en"], split, clips, threads, repeats, again, robustness
        )
    print_table(report)
    typer.echo(f"{folder / 'report.json'}\n{folder / 'report.html'}")


def demo(
    bundles: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Folders of bundles, each shown in its smallest precision; without any, the teacher's own in int8.",
            file_okay=False,
        ),
    ] = None,
    against: Annotated[str, typer.Option(help="The teacher, shown beside them.")] = "whisper-base",
    corpus: Corpus = "prompts-en",
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
    from workbench.corpus import scored_clips

    _check_address(host, port)
    for bundle in bundles or []:
        manifest = open_manifest(bundle)  # before the teacher is exported, which takes a while
        if precision is not None and precision not in manifest.precisions:
            raise UserError(f"{bundle}: --precision {precision!r}{did_you_mean(precision, manifest.precisions)}")
    scored_clips(corpus, "test")
    limits = DemoLimits(longest, upload_mb, at_once, waiting, live, keep_minutes)
    serve(bundles or [], against, corpus, precision, host, port, threads, None if vad else False, limits)


def _check_address(host: str, port: int) -> None:
    """Raise UserError if the page cannot be served there, before the models are opened."""
    import socket

    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: {error.strerror}; choose another") from None


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
