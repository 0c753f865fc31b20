"""What a server is started with."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from export.edge.decoding.hotwords import DEFAULT_SCORE
from export.edge.decoding.language_model import LanguageModelWeights
from export.edge.recognizer import AUTO


@dataclass(frozen=True)
class ServerOptions:
    """The defaults are those of `workbench serve`."""

    precision: str | None = None  # the bundle's last by default, as in the demo
    workers: int = 1  # recognizers, each with its own copy of the weights
    threads: int | None = None  # of each worker; the cores are divided among them by default
    max_queue: int = 16  # requests that wait; the next one gets status 429
    max_seconds: float = 1800.0  # of a recording; docs/serving.md says how much memory follows from it
    max_megabytes: float = 100.0  # of a request (10^6 bytes)
    language: str = AUTO  # of requests that name none
    beams: int = 1
    hotwords: Path | None = None  # file of those of requests that name none
    hotwords_score: float = DEFAULT_SCORE  # of all requests, in nats a token
    lm: Path | None = None  # n-gram language model, for a bundle with a CTC head
    lm_weights: LanguageModelWeights = field(default_factory=LanguageModelWeights)
    min_logprob: float | None = None  # mean log-probability below which a text is left out
    vad: bool | None = None  # False turns the speech detector off for clips of up to 30 s
    aliases: tuple[str, ...] = ()  # further names of the model
    ignore_prompt: bool = False  # otherwise a request with a prompt is refused
    api_key: str = ""  # none is needed if this is empty
