"""The command that serves a bundle. Imports are inside the function, as in cli/app.py; what runs here must need no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workbench.cli.command import (
    Hotwords,
    HotwordsScore,
    LanguageModelFile,
    LmAlpha,
    LmBeta,
    LmUnknown,
    MinLogprob,
    check_address,
    language_model_weights,
)
from workbench.core.errors import UserError

KEY_VARIABLE = "WORKBENCH_API_KEY"


def add_commands(app: typer.Typer) -> None:
    """Register it with the command line."""
    app.command()(serve)


def serve(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle, whole or packed for edge.", file_okay=False)],
    precision: Annotated[str | None, typer.Option(help="One of the bundle's; its last by default.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8000,
    workers: Annotated[
        int, typer.Option(help="Recordings transcribed at a time; each worker holds the weights.", min=1, max=256)
    ] = 1,
    threads: Annotated[
        int | None, typer.Option(help="Threads of each worker; the cores are divided among them by default.", min=1, max=1024)
    ] = None,
    max_queue: Annotated[int, typer.Option(help="Requests that wait; the next one gets status 429.", min=0)] = 16,
    max_seconds: Annotated[float, typer.Option(help="Longest recording, in seconds.", min=1, max=86_400)] = 1800,
    max_megabytes: Annotated[float, typer.Option(help="Size of the largest upload.", min=0.001, max=4000)] = 100,
    language: Annotated[
        str, typer.Option(help="ISO 639-1 code for requests that name none; auto detects it.")
    ] = "auto",
    beams: Annotated[int, typer.Option(help="Beams of the search; 1 is greedy, and the fastest.", min=1, max=1024)] = 1,
    hotwords: Hotwords = None,
    hotwords_score: HotwordsScore = None,
    lm: LanguageModelFile = None,
    lm_alpha: LmAlpha = None,
    lm_beta: LmBeta = None,
    lm_unk_score_offset: LmUnknown = None,
    min_logprob: MinLogprob = None,
    vad: Annotated[
        bool,
        typer.Option("--vad/--no-vad", help="Give no text for clips in which the speech detector finds no speech."),
    ] = True,
    alias: Annotated[
        list[str] | None,
        typer.Option(help="Another name of the model, such as whisper-1, for programs that ask for it; repeatable."),
    ] = None,
    ignore_prompt: Annotated[
        bool, typer.Option("--ignore-prompt", help="Accept requests with a prompt, which has no effect, instead of refusing them.")
    ] = False,
    api_key_variable: Annotated[
        str | None,
        typer.Option(
            "--api-key", metavar="VARIABLE",
            help=f"Environment variable that holds the key which requests must send; {KEY_VARIABLE} by default, if it is set.",
        ),
    ] = None,
) -> None:  # fmt: skip
    """Serve a bundle through OpenAI's transcription API, without torch."""
    import os

    given = os.environ.get(api_key_variable or KEY_VARIABLE)
    # the value of --api-key is not repeated in an error: it may be the key itself
    if given is None and api_key_variable is not None:
        raise UserError("--api-key: no such environment variable; expected the name of the one that holds the key")
    key = (given or "").strip()
    if given is not None and not key:  # a secret that failed to arrive must not open the server to everybody
        where = KEY_VARIABLE if api_key_variable is None else "--api-key: the environment variable"
        raise UserError(f"{where} is empty; set it to the key" + "; unset it to ask for none" * (not api_key_variable))
    check_address(host, port)
    try:
        from export.edge.decoding.hotwords import DEFAULT_SCORE
        from export.serving.options import ServerOptions
        from export.serving.server import serve as run
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed; pip install 'distill-workbench[cpu,serve]'") from None
    weights = language_model_weights(lm, lm_alpha, lm_beta, lm_unk_score_offset)
    options = ServerOptions(
        precision, workers, threads, max_queue, max_seconds, max_megabytes, language, beams, hotwords,
        hotwords_score or DEFAULT_SCORE, lm, weights, min_logprob, None if vad else False, tuple(alias or ()), ignore_prompt, key,
    )  # fmt: skip
    run(bundle, options, host, port)
