"""What stands in a report.json, field by field (docs/measuring.md says more): types for whoever reads or writes one. Rates are in percent."""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict, get_args

from export.edge.bundle.content import Corpus, Host, Measured
from export.measurement.decoding import DecodingDescription

SCHEMA = 3  # of report.json
Loss = Literal["loss", "task", "distillation", "matching"]
LOSSES: tuple[Loss, ...] = get_args(Loss)


class Scores(TypedDict):
    """A system's errors on a corpus, as `Score.as_dict` gives them."""

    wer: float
    wer_ci: list[float] | None  # 95 % interval; None with too few clips, as for every interval
    wer_folded: float  # without diacritics
    cer: float
    cer_ci: list[float] | None
    substitutions: int
    deletions: int
    insertions: int
    loops: int
    words: int
    headline: str  # the rate to quote, `wer` or `cer`


class LanguageScores(TypedDict):
    """A system's errors on the clips of one language."""

    clips: int
    wer: float
    wer_ci: list[float] | None
    wer_folded: float
    cer: float
    cer_ci: list[float] | None
    headline: str


class SystemRow(Measured):
    """One system on one corpus: what a manifest keeps of it, and more."""

    kind: str  # `teacher` or `student`
    runtime: str
    length: str  # as in a manifest
    parameters: int
    graphs_sha256: dict[str, str]  # by path
    substitutions: int
    deletions: int
    insertions: int
    words: int
    by_language: dict[str, LanguageScores]  # empty where the clips have one language
    loops: int
    wer_raw: float  # of texts as they stand
    cer_raw: float
    stopped_by_cap: int  # clips
    looping_rate: float
    stages_ms: dict[str, float]  # by stage, the median
    tokens: int
    gflop: float  # mean over clips
    load_ms: float
    speedup_per_clip_p50: NotRequired[float]  # over the teacher, which has none


class Clip(TypedDict):
    """What all systems wrote of a clip, by their names, and how long each stage took."""

    id: str
    seconds: float
    language: str
    reference: str
    hypotheses: dict[str, str]
    stages_ms: dict[str, dict[str, float]]


class Section(TypedDict):
    """One corpus; the teacher is the first of the systems."""

    corpus: Corpus
    systems: list[SystemRow]
    clips: list[Clip]


class Sounds(TypedDict):
    """Sounds of one kind."""

    clips: int
    taken_for_speech: NotRequired[int]  # by the speech detector, of those without speech


class Heard(TypedDict, total=False):
    """What a system wrote of the sounds of one kind."""

    wrote: int  # clips with text
    words: int
    loops: int
    stopped_by_cap: int  # clips
    clips: int  # this field and the next are only for the corpus's one-word clips
    wer: float


class Robustness(TypedDict):
    """What systems write where nobody speaks."""

    sounds: dict[str, Sounds]  # by kind
    systems: dict[str, dict[str, Heard]]  # by name and kind


class ValidationPoint(TypedDict):
    """A validation of a run."""

    step: int
    wer: float
    cer: float


class Curves(TypedDict):
    """A run's training, averaged over the steps between points."""

    steps: list[int]  # the last of each point
    stage: list[str]  # of each point
    loss: list[float]
    task: list[float]
    distillation: list[float]
    matching: list[float]
    validation: list[ValidationPoint]


class LeaderboardRow(TypedDict):
    """A system by a leaderboard's protocol."""

    wer: dict[str, float]  # by set
    average_wer: float  # their plain mean
    rtfx: float  # seconds of audio over seconds of inference, all sets together


class Leaderboard(TypedDict):
    """A measurement by the protocol of a leaderboard."""

    preset: str
    version: str
    source: str  # code of the protocol
    normalizer: str
    clips: dict[str, int]  # by set
    not_scored: dict[str, int]  # clips whose reference is empty after normalization, by set
    systems: dict[str, LeaderboardRow]  # by name
    differs: list[str]  # sentences: what differs from how the leaderboard measures


class Report(Section):
    """A whole report: the first corpus, and all others."""

    schema: int
    key: str  # hash of everything that decides the report
    host: Host
    command: NotRequired[str]  # that measured it; earlier versions did not record it
    threads: int
    repeats: int
    decoding: NotRequired[DecodingDescription]  # unless it was greedy
    other_corpora: list[Section]
    robustness: NotRequired[Robustness]
    training: NotRequired[dict[str, Curves]]  # by name of the student
    leaderboard: NotRequired[Leaderboard]  # if it was measured with --preset
