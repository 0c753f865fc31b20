"""What stands in a bundle.json, field by field: types for whoever reads or writes one. `fields.check_fields` checks what the runtime reads.

Nothing here is computed. What the workbench records of a bundle (run, vocabulary, verification, measurement, search) is read by the workbench
alone, which checks it first (export/bundle/recorded.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NotRequired, TypedDict


class Tokens(TypedDict):
    """Token ids that the runtime needs."""

    prompts: dict[str, list[int]]  # by language, what a transcript begins with
    end: int  # ends a transcript
    added: NotRequired[dict[str, str]]  # words that were added to the tokenizer, by id


class Caps(TypedDict):
    """How many tokens a transcript may have: a constant, plus a number per second of the clip, and never more than `most_tokens`."""

    tokens_at_least: int
    tokens_per_second: float
    tokens_per_second_of: NotRequired[dict[str, float]]  # by language, where it differs
    most_tokens: int


class Ctc(TypedDict):
    """What the runtime needs of a model with a CTC head; `tokens.prompts` then only says which languages it writes."""

    blank: int  # token of nothing
    pieces: str  # path of the file that says what bytes each token stands for
    lower: NotRequired[bool]  # whether texts are put in lower case
    # for the workbench
    units: NotRequired[str]  # what tokens are: characters, bytes, bpe or sentencepiece
    normalizes: NotRequired[bool]  # whether the graph brings each wave to mean 0 and variance 1
    plain: NotRequired[bool]  # whether other tokenizers spell every token as ours does


class Alignment(TypedDict, total=False):
    """What word timestamps are computed from."""

    heads: list[list[int]]  # [layer, head] of the cross-attention heads
    error_seconds: float | None  # their mean error on the clips that chose them; None where it was not measured


class Host(TypedDict):
    """The machine that something was measured on, as `workbench.core.machine.host.describe_host` describes it."""

    system: str
    python: str  # version
    cpu: str
    cpus: int
    cpu_flags: list[str]
    memory_gb: float
    gpus: NotRequired[list[str]]
    cuda: NotRequired[str | None]
    versions: dict[str, str]  # of packages


class Named(TypedDict, total=False):
    """Something of which only the name is read."""

    name: str


class ValidationScores(TypedDict):
    """A student's validation scores after its training."""

    wer: float | None  # percent


class Run(TypedDict, total=False):
    """The run that a student was distilled in."""

    recipe_sha256: str
    teacher: Named
    validation: ValidationScores
    corpora: list[dict[str, str]] | None  # those it was trained on; None where that can no longer be determined


class Lost(TypedDict):
    """What texts lose with a smaller vocabulary."""

    texts: int
    texts_changed: int  # those that need a token that is gone
    tokens_kept_percent: float
    most_missed: list[str]


class Vocabulary(TypedDict):
    """Which of its checkpoint's tokens a bundle has."""

    choice: str  # as `--vocabulary` was given
    size: int
    of: int
    lost: NotRequired[Lost]


class Int8(TypedDict):
    """Options of the quantizers."""

    per_channel: bool
    reduce_range: bool
    symmetric: bool


class FirstDifference(TypedDict):
    """A clip that a runtime and torch transcribe differently."""

    id: str
    text: str
    torch: str


class VerifiedClient(TypedDict):
    """What one runtime wrote with one precision, compared with torch."""

    client: str
    precision: str
    version: str
    required: bool  # whether a failure counts
    passed: bool
    error: str | None
    tokens_equal: str  # "23 of 24"
    prefix_share: float  # mean share of torch's tokens before the first difference
    wer: float | None  # percent; None where it did not run
    wer_torch: float | None
    texts_differ: NotRequired[int]  # clips with torch's tokens and another text
    threshold: NotRequired[str]  # in words
    first_difference: NotRequired[FirstDifference | None]


class Verification(TypedDict):
    """What `workbench verify` found."""

    corpus: str
    clips: int
    clients: list[VerifiedClient]
    not_installed: dict[str, str]  # by name of the client, what to do about it


class Corpus(TypedDict):
    """The clips that something was measured on; bundles of earlier versions have the first three alone."""

    name: str
    split: str
    clips: int
    not_scored: NotRequired[int]  # more clips, whose references leave words out
    seconds: NotRequired[float]
    headline: NotRequired[str]  # the rate to quote, `wer` or `cer`
    normalizers: NotRequired[dict[str, str]]  # by language
    trained_on: NotRequired[bool | None]  # None where a bundle does not record it


class Latency(TypedDict):
    """Percentiles over clips, in ms."""

    p50: float
    p95: float


class Difference(TypedDict):
    """The difference between two systems' error rates, in percentage points."""

    points: float
    ci: list[float] | None  # 95 % interval; None with too few clips


class Measured(TypedDict):
    """What a manifest keeps of one precision's measurement."""

    name: str
    precision: str
    wer: float  # percent, as all rates
    wer_ci: NotRequired[list[float] | None]
    wer_folded: NotRequired[float]
    cer: NotRequired[float]
    cer_ci: NotRequired[list[float] | None]
    headline: NotRequired[str]
    latency_ms: Latency
    rtfx: NotRequired[float]
    size_mb: float
    peak_rss_mb: float
    speedup: NotRequired[float]  # over the teacher
    wer_difference: NotRequired[Difference]  # from the teacher
    cer_difference: NotRequired[Difference]


class MeasuredCorpus(TypedDict):
    """A corpus, and a bundle's precisions on it."""

    corpus: Corpus
    systems: list[Measured]


class Measurement(MeasuredCorpus):
    """What `workbench measure` found of a bundle."""

    host: Host
    threads: int
    other_corpora: NotRequired[list[MeasuredCorpus]]


class Searched(TypedDict, total=False):
    """What `--budget` found; docs/bundle.md describes the fields that are not read again."""

    wer_above: float | None  # points of WER that the choice may be above fp32


class Recorded(TypedDict, total=False):
    """What is added to a bundle.json after the graphs."""

    parity: Mapping[str, Mapping[str, float] | None] | None  # by precision and tensor, the difference from torch
    verification: Verification | None
    measurement: Measurement | None
    search: Searched | None


class Content(Recorded):
    """The whole of a bundle.json; the paths in it are relative to the bundle's folder."""

    format: int
    name: str
    family: str
    precisions: dict[str, dict[str, str]]  # by name of the precision and of the part, a graph's path
    tokens: Tokens
    decoding: Caps
    files: dict[str, str]  # by path, the SHA-256
    length: str  # `true`: reads clips at their own length; `padded`: reads 30 s
    margin_seconds: float  # of silence after a clip
    window_seconds: float
    sample_rate: NotRequired[int]
    packed_for: NotRequired[str | None]  # the runtime that this is the part of a bundle for
    speech_detector: NotRequired[str | None]  # its graph's path
    alignment: NotRequired[Alignment | None]
    ctc: NotRequired[Ctc]  # in bundles of the family `ctc`
    # what the runtime does not need; the workbench refuses a bundle without the first three
    workbench: NotRequired[str]  # version that wrote it
    exporter: NotRequired[str]  # hash of the code that wrote it
    parameters: NotRequired[int]
    checkpoint_sha256: NotRequired[str]
    licence: NotRequired[str | None]
    through: NotRequired[str]  # whose exporter wrote the merged decoder
    run: NotRequired[Run | None]
    vocabulary: NotRequired[Vocabulary | None]  # None where all tokens are kept
    int8: NotRequired[Int8 | None]
    host: NotRequired[Host | None]  # the machine that exported it
