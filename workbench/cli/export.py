"""The commands that bring a student to its device: bundles, verification, the hub. Imports are inside functions, as in cli/app.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workbench.cli.command import FOLDER, Corpus, JsonFile, Split, Threads, write_results
from workbench.core.errors import UserError


def add_commands(app: typer.Typer) -> None:
    """Register them with the command line."""
    for command in (export, pack, verify, push, prune):
        app.command()(command)


def export(
    student: Annotated[
        Path, typer.Argument(help="Student, or any checkpoint folder of a Whisper or a CTC model.", file_okay=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the bundle.", **FOLDER)],
    precision: Annotated[
        str,
        typer.Option(
            help="Comma-separated: fp32, fp16, int8, int8_static, w8, q4, or encoder/decoder; the first is the clients' default."
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
