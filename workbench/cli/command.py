"""What all commands have in common: empty values are refused, and the message on Ctrl-C states whether the work can be resumed."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from workbench.cli.groups import group_options
from workbench.core.errors import UserError

if TYPE_CHECKING:
    from export.edge.decoding.language_model import LanguageModelWeights

INTERRUPTED = 130  # 128 + SIGINT, as shells count it
CAN_RESUME = "interrupted; what was saved is kept: run the same command again to resume"
STARTS_OVER = "interrupted; unfinished work is discarded: run the same command again to start over"
KEEPS_FINISHED = (
    "interrupted; finished transcripts are kept: run it again for the other files, or with --overwrite for all"
)
NOT_PUBLISHED = "interrupted; the upload is one commit at its end, so nothing was published: run the same command again"
# what is true of each command that takes long or writes something; others only look something up, or run until they are stopped
INTERRUPT_MESSAGES = {
    "quickstart": CAN_RESUME,
    "distill": CAN_RESUME,
    "label": CAN_RESUME,
    "synthesize": CAN_RESUME,
    "study": CAN_RESUME,
    "export": STARTS_OVER,
    "pack": STARTS_OVER,
    "prune": STARTS_OVER,
    "prompts": STARTS_OVER,
    "download": STARTS_OVER,
    "verify": STARTS_OVER,
    "measure": STARTS_OVER,
    "derive": STARTS_OVER,
    "report": STARTS_OVER,
    "weights": STARTS_OVER,
    "transcribe": KEEPS_FINISHED,
    "push": NOT_PUBLISHED,
}


def print_error(message: str) -> None:
    """Print an error message in one line."""
    typer.echo(f"error: {' '.join(message.split())}", err=True)


def check_writable(path: Path | None) -> Path | None:
    """Callback of an output option: a place that cannot be written to is a usage error now, before the work starts."""
    if path is not None:
        there = next(folder for folder in Path(path).absolute().parents if folder.exists())
        if not there.is_dir():
            raise typer.BadParameter(f"{there} is a file; expected a folder")
        if not os.access(there, os.W_OK | os.X_OK):
            raise typer.BadParameter(f"{there} is not writable; choose another place")
    return path


def check_address(host: str, port: int) -> None:
    """Raise UserError if nothing can be served there, before the models are opened."""
    import socket

    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: {error.strerror}; choose another") from None


FOLDER: dict[str, Any] = {"file_okay": False, "callback": check_writable}  # for an option that names an output
FILE: dict[str, Any] = {"dir_okay": False, "callback": check_writable}

Threads = Annotated[int | None, typer.Option(help="Threads of each system; all cores by default.", min=1, max=1024)]
Corpus = Annotated[
    str | None,
    typer.Option(
        help="A name as listed by `workbench corpus names`, manifest, folder with a manifest, or hf:ID[:CONFIG]; by default that of the bundle's run, else prompts-en."
    ),
]
Hotwords = Annotated[
    Path | None,
    typer.Option(help="Text file of names and terms that are likely to be said, one a line.", dir_okay=False),
]
HotwordsScore = Annotated[
    float | None,
    typer.Option(help="How much likelier hotwords are made, in nats a token; 2 by default.", min=0.1, max=20),
]
LanguageModelFile = Annotated[
    Path | None,
    typer.Option(
        help="Of a bundle with a CTC head: n-gram model of words, in ARPA format or KenLM's; needs distill-workbench[lm].",
        dir_okay=False,
    ),
]
LmAlpha = Annotated[
    float | None, typer.Option(help="How much the probabilities of --lm count; 0.5 by default.", min=0, max=10)
]
LmBeta = Annotated[
    float | None, typer.Option(help="Added for each word, with --lm; 1.5 by default.", min=-100, max=100)
]
LmUnknown = Annotated[
    float | None,
    typer.Option(
        help="Added to the log10 probability of a word that --lm does not know; -10 by default.", min=-100, max=0
    ),
]
MinLogprob = Annotated[
    float | None,
    typer.Option(
        help="Leave a text out whose tokens have a lower mean log-probability, as hallucinations often have; for example -1.5.",
        min=-100,
        max=0,
    ),
]
Split = Annotated[str, typer.Option(help="train, validation or test.")]
JsonFile = Annotated[
    Path | None,
    typer.Option("--json", help="Also write the results as JSON; `-`: to standard output, instead of tables.", **FILE),
]


def language_model_weights(
    lm: Path | None, alpha: float | None, beta: float | None, unk_score_offset: float | None
) -> LanguageModelWeights:
    """What the options say; raises UserError if they are given without a language model."""
    from export.edge.bundle.manifest import BundleError
    from export.edge.decoding.language_model import weights_of_options

    try:
        return weights_of_options({"alpha": alpha, "beta": beta, "unk_score_offset": unk_score_offset}, lm)
    except BundleError as error:
        raise UserError(str(error)) from None


def write_results(json_file: Path | None, content: object) -> bool:
    """Write what `--json` asks for; returns whether it went to standard output, which then holds nothing else."""
    from workbench.core.files import json_text, write_json

    if json_file is None:
        return False
    if str(json_file) == "-":
        typer.echo(json_text(content, indent=2))
        return True
    write_json(json_file, content)
    return False


class Command(TyperCommand):
    """A command whose options are grouped in its help, and whose values are checked beyond their types."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        group_options(self.name, self.params)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As in typer, but an empty or NaN value is a usage error: it would silently mean something else."""
        given, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        rest: list[str] = super().parse_args(ctx, args)
        param: Any  # its class belongs to whichever version of click typer uses
        for param in self.get_params(ctx):
            raw, parsed = (v if isinstance(v, (list, tuple)) else [v] for v in (given.get(param.name), ctx.params.get(param.name)))  # fmt: skip
            if any(isinstance(value, str) and not value.strip() for value in raw):
                raise typer.BadParameter("it is empty; give a value, or leave it out", ctx=ctx, param=param)
            if any(isinstance(value, float) and math.isnan(value) for value in parsed):
                raise typer.BadParameter("nan is not a number", ctx=ctx, param=param)
        return rest

    def invoke(self, ctx: Any) -> Any:
        """As in typer, but Ctrl-C gives a one-line message."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print_error(INTERRUPT_MESSAGES.get(self.name or "", "interrupted"))
            raise typer.Exit(INTERRUPTED) from None
