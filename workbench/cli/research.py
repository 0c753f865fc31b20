"""The commands for comparing methods: corpora, studies, the weights a run gave. Imports are inside functions, as in cli/app.py."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Annotated

import typer

from workbench.cli.command import FILE, FOLDER, JsonFile, write_results
from workbench.core.errors import UserError, did_you_mean

log = logging.getLogger("workbench")
corpus_app = typer.Typer(
    help="List corpora by name, and build those that the package does not ship.", no_args_is_help=True
)


def add_commands(app: typer.Typer) -> None:
    """Register them with the command line."""
    app.add_typer(corpus_app, name="corpus")
    app.command()(study)
    app.command()(weights)


@corpus_app.callback()
def _corpus() -> None:
    """A group, so that more corpora can be added."""


@corpus_app.command()
def names(json_file: JsonFile = None) -> None:
    """List the names that a corpus can be given by: the built-in ones and public ones, which are streamed from the Hugging Face hub."""
    from workbench.core.tables import print_rows
    from workbench.corpus.sources import list_names

    found = list_names()
    if write_results(json_file, found):
        return
    shown = [(row["name"], row["parts"], row["splits"], row["what"]) for row in found]
    print_rows(("name", "parts", "splits", "what"), shown, prose=True)
    typer.echo(
        "A part follows a colon: fleurs:hi_in. Also: a manifest's path, or hf:ID[:CONFIG] for any dataset of the hub."
    )


@corpus_app.command()
def download(
    source: Annotated[
        str, typer.Argument(help="A public corpus's name, as listed by `workbench corpus names`, or hf:ID[:CONFIG].")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write, which then is a corpus.", **FOLDER)],
    split: Annotated[
        list[str] | None, typer.Option(help="train, validation or test; repeatable; all that it has by default.")
    ] = None,
    clips: Annotated[int | None, typer.Option(help="At most this many clips of each split.", min=1)] = None,
) -> None:
    """Write a public corpus's recordings and a manifest into a folder: for labelling, deriving, and training without a network."""
    from workbench.corpus import SPLITS
    from workbench.corpus.download import download as run

    for one in split or []:
        if one not in SPLITS:
            raise UserError(f"--split {one!r}{did_you_mean(one, SPLITS)}")
    typer.echo(run(source, output, tuple(dict.fromkeys(split or ())), clips))


@corpus_app.command()
def prompts(
    language: Annotated[str, typer.Option(help="en, es, fr, it or ru.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder; by default in the cache, known as prompts-LANGUAGE.", **FOLDER),
    ] = None,
    corrupt: Annotated[
        float | None,
        typer.Option(
            help="Also give this share of the training clips a wrong transcript, such as 0.4.", min=0.001, max=1
        ),
    ] = None,
    how: Annotated[
        str,
        typer.Option(
            "--corruption",
            "--how",
            help="exchange: transcripts swapped between clips; words: half of each one's words replaced.",
        ),
    ] = "exchange",
    seed: Annotated[int, typer.Option(help="Seed of the corruption.", min=0)] = 1,
) -> None:
    """Build a language's telephone prompts from Debian's packages, with the split rule of prompts-en."""
    from workbench.corpus.corrupt import write_corrupted
    from workbench.corpus.manifests import read_manifest
    from workbench.corpus.prompts import build_prompts
    from workbench.corpus.sources import BUILT_IN, corpora_dir

    if how not in ("exchange", "words"):
        raise UserError(f"--corruption {how!r}{did_you_mean(how, ('exchange', 'words'))}")
    if corrupt is None:
        typer.echo(build_prompts(language, output or corpora_dir() / f"prompts-{language}"))
        return
    clean = BUILT_IN.get(f"prompts-{language}") or build_prompts(language, corpora_dir() / f"prompts-{language}")
    name = f"prompts-{language}-corrupt{round(100 * corrupt)}{'' if how == 'exchange' else '-words'}"
    typer.echo(write_corrupted(read_manifest(clean), corrupt, how, seed, output or corpora_dir() / name, clean))


@corpus_app.command()
def derive(
    sources: Annotated[
        list[str],
        typer.Argument(help="Corpora: built-in names, manifests, or folders that hold one; several are put together."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.", **FOLDER)],
    language: Annotated[list[str] | None, typer.Option(help="Keep this language; may be given several times.")] = None,
    folds: Annotated[
        int | None, typer.Option(help="Split anew, by speaker, into this many parts for cross-validation.", min=2)
    ] = None,
    fold: Annotated[int | None, typer.Option(help="The part to test on, from 1.", min=1)] = None,
    meta: Annotated[
        float,
        typer.Option(
            help="Share of the training clips, whole speakers, for the split on which ALM-KD, AMAL and RW-KD learn their weights.",
            min=0,
            max=1,
        ),
    ] = 0.0,
    corrupt: Annotated[
        float, typer.Option(help="Share of the training clips that get a wrong transcript, such as 0.4.", min=0, max=1)
    ] = 0.0,
    how: Annotated[
        str | None,
        typer.Option(
            "--corruption",
            help="exchange (by default): transcripts swapped between clips of a language; words: half of each one's words replaced.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of all that is drawn.", min=0)] = 1,
) -> None:
    """Make a corpus from others: some languages, folds over speakers, a meta split, wrong transcripts. The audio stays where it is."""
    from workbench.corpus.derive import Derivation
    from workbench.corpus.derive import derive as write_derived

    if how not in (None, "exchange", "words"):
        raise UserError(f"--corruption {how!r}{did_you_mean(how, ('exchange', 'words'))}")
    if how is not None and not corrupt:
        raise UserError(f"--corruption {how} needs --corrupt, the share of the clips")
    wanted = Derivation(tuple(language or ()), folds, fold, meta, corrupt, how or "exchange", seed)
    typer.echo(write_derived(sources, wanted, output))


def study(
    file: Annotated[Path, typer.Argument(help="Study: a YAML file, or a name as listed by `workbench recipes`.")],
    arm: Annotated[list[str] | None, typer.Option(help="Only these arms.")] = None,
    corpus: Annotated[list[str] | None, typer.Option(help="Only these corpora.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Only these seeds.")] = None,
    student: Annotated[list[str] | None, typer.Option(help="Only these students.")] = None,
    parallel: Annotated[int, typer.Option(help="Runs at a time, which share the cores.", min=1)] = 1,
    commands: Annotated[bool, typer.Option("--commands", help="Print a command for each run, for a queue.")] = False,
    table: Annotated[bool, typer.Option("--table", help="Run nothing; collect what has finished.")] = False,
) -> None:
    """Run or resume a study: arms x seeds x corpora, and one table. With one of each chosen, only that run."""
    from workbench.study.arm import prepare, run_arm, score_teacher
    from workbench.study.plan import load_study, trials

    parsed = load_study(file)
    wanted = {"arm": arm, "corpus": corpus, "seed": seed, "student": student}
    everything = chosen = trials(parsed)
    for field, values in wanted.items():
        for value in values or []:
            known = {str(getattr(c, field)) for c in everything}
            if str(value) not in known:
                raise UserError(f"--{field} {value}{did_you_mean(str(value), known)}")
        chosen = [c for c in chosen if not values or getattr(c, field) in values]
    if commands:
        typer.echo("\n".join(trial.command(file) for trial in chosen))
        return
    if all(values is not None and len(values) == 1 for values in wanted.values()):
        prepare(parsed)
        run_arm(parsed, chosen[0])
        typer.echo(parsed.output / chosen[0].name)
        return
    from workbench.study.report import print_table, write
    from workbench.study.results import collect
    from workbench.study.runner import failed_before, reason, run_study

    if not table:
        prepare(parsed)
        run_study(parsed, file, parallel, chosen)
        for name in dict.fromkeys([*(trial.corpus for trial in chosen), *parsed.test_also]):
            score_teacher(parsed, name)
    # results are published, and should not name this machine's folders
    shown = Path(*file.parts[-3:]) if file.is_absolute() else file
    options = [f"--{field} {value}" for field, values in wanted.items() for value in values or []]
    if not table:  # whatever of the study is done, so that running a part of it again loses nothing of the table
        chosen, options = everything, []
    for trial in failed_before(parsed, chosen):
        log.warning("%s has begun and is not finished: %s", trial.name, reason(parsed, trial))
    results = collect(parsed, chosen, " ".join(["workbench study", str(shown), *options]))
    print_table(parsed, results)
    for path in write(parsed, chosen, results):
        typer.echo(os.fspath(path))


def weights(
    run: Annotated[Path, typer.Argument(help="Run folder, which holds weights.parquet.", file_okay=False)],
    worst: Annotated[
        int, typer.Option("--top", "--worst", help="How many of the most distrusted utterances to list.", min=0)
    ] = 20,
    by: Annotated[
        str,
        typer.Option(
            "--rank-by",
            "--by",
            help="Rank by system (the weights that the weighting gave), student_loss, or teacher_loss, which needs no training.",
        ),
    ] = "system",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Page to write; weights.html in the run's folder by default.", **FILE),
    ] = None,
) -> None:
    """Show how a run weighted its utterances, and rank those it learnt to distrust, with audio and both texts."""
    from workbench.study.label_errors import RANKINGS, read_run, write_page

    if by not in RANKINGS:
        raise UserError(f"--rank-by {by!r}{did_you_mean(by, RANKINGS)}")
    found = read_run(run)
    found.print(worst, by)
    typer.echo(write_page(found, output or run / "weights.html", worst, by))
