"""Transcribe audio files of any format, with an exported bundle or a checkpoint in torch."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from export.edge import FORMATS, AudioError, BundleError, Recognizer, Segment, Transcript, format_segments
from export.edge.decoding.hotwords import DEFAULT_SCORE, read_hotwords
from export.edge.decoding.language_model import LanguageModelWeights
from export.edge.recognizer import DECODER_BEAMS, LONGEST
from workbench.audio.decode import LONGEST_SECONDS, SAMPLE_RATE, Wave, check_length, decode
from workbench.core.errors import UserError, did_you_mean
from workbench.core.files import write_text
from workbench.core.progress import Progress
from workbench.text.languages import did_you_mean_language

log = logging.getLogger("workbench")
SUFFIXES = {"text": ".txt", "srt": ".srt", "vtt": ".vtt", "json": ".json"}
Transcribe = Callable[[Wave, str], list[Segment]]  # of a wave and the name of its file


@dataclass(frozen=True)
class TranscribeOptions:
    """How files are transcribed and written."""

    language: str = "auto"  # ISO 639-1 code, or `auto`
    output_format: str = "text"  # one of FORMATS
    beams: int = 1  # 1 is greedy
    words: bool = False  # the time of each word, in JSON; bundles only
    hotwords: Path | None = None  # file of names and terms that are likely to be said; bundles only
    hotwords_score: float = DEFAULT_SCORE  # in nats a token
    lm: Path | None = None  # n-gram language model; bundles with a CTC head only
    lm_weights: LanguageModelWeights = field(default_factory=LanguageModelWeights)
    min_logprob: float | None = None  # mean log-probability below which a text is left out; bundles only
    folder: Path | None = None  # where a file is written for each recording
    overwrite: bool = False  # whether it may replace one


def transcribe_files(
    files: Sequence[Path], model: Path | str, options: TranscribeOptions, precision: str | None = None, threads: int | None = None
) -> Iterator[str]:  # fmt: skip
    """Transcribe files one after another: yields each one's text, or writes it to `options.folder` and yields the path.

    Args:
        files: audio or video files.
        model: a bundle's folder as a path; else the name of a checkpoint.
        options: language, format and place.
        precision: of a bundle.
        threads: of a bundle.

    Raises:
        UserError: the options are wrong, the model cannot be used, or, after all others are transcribed, a file could not be.
    """
    check_options(files, options)
    transcribe = (
        open_bundle(model, options, precision, threads) if isinstance(model, Path) else open_model(model, options)
    )
    failed = 0
    with Progress("recordings", len(files), shown=len(files) > 1) as progress:
        for path in files:
            try:
                segments = transcribe(decode(path), str(path))
            except (UserError, AudioError) as error:
                log.error("error: %s", error)  # noqa: TRY400  a traceback says nothing here
                failed += 1
            else:
                text = format_segments(segments, str(path), options.output_format)
                yield text if options.folder is None else _written(path, text, options)
            progress.advance()
    if failed:
        raise UserError(f"{failed} of {len(files)} recordings could not be transcribed; the reasons are above")


def check_options(files: Sequence[Path], options: TranscribeOptions) -> None:
    """Raise UserError for options that cannot be carried out, before a model is loaded."""
    if options.output_format not in FORMATS:
        raise UserError(f"--format {options.output_format!r}{did_you_mean(options.output_format, FORMATS)}")
    if options.words and options.output_format != "json":
        raise UserError("--words: the times of words are written in JSON alone; add --format json")
    if options.folder is None:
        if options.output_format in ("srt", "vtt") and len(files) > 1:
            raise UserError(
                f"--format {options.output_format}: subtitles of several recordings need a folder: add -o FOLDER"
            )
        return
    targets = [_target(path, options) for path in files]
    for target, times in Counter(targets).items():
        if times > 1:
            raise UserError(
                f"{target}: would be written for several recordings of one name; transcribe them into different folders"
            )
        if target.exists() and not options.overwrite:
            raise UserError(f"{target}: exists; choose another -o, or add --overwrite")


def open_bundle(bundle: Path, options: TranscribeOptions, precision: str | None, threads: int | None) -> Transcribe:
    """A bundle that transcribes waves; raises UserError if it cannot be used, or does not know the language."""
    try:
        recognizer = Recognizer(bundle, precision, threads, frugal=True)
        if options.language != "auto" and options.language not in recognizer.prompts:
            raise UserError(
                f"--language {options.language!r}{did_you_mean_language(options.language, recognizer.prompts)}"
            )
        recognizer.check_beams(options.beams)
        hotwords = lm = None
        if options.hotwords:
            hotwords = recognizer.new_hotwords(read_hotwords(options.hotwords), options.hotwords_score)
        if options.lm:
            lm = recognizer.new_language_model(options.lm, options.lm_weights)
        if options.min_logprob is not None:
            recognizer.check_min_logprob(options.min_logprob)
    except BundleError as error:
        raise UserError(str(error)) from None

    beams, words, least = options.beams, options.words, options.min_logprob

    def transcribe(wave: Wave, name: str) -> list[Segment]:
        try:
            if len(wave) > recognizer.window * SAMPLE_RATE:
                return list(recognizer.segments(wave, options.language, LONGEST, beams, words, hotwords, lm, least))
            check_length(wave, name)
            said = recognizer.transcribe(
                wave, options.language, beams, words, hotwords=hotwords, lm=lm, min_logprob=least
            )
        except BundleError as error:
            raise UserError(str(error)) from None
        return [Segment(0.0, len(wave) / SAMPLE_RATE, said)]

    return transcribe


def open_model(model: str, options: TranscribeOptions) -> Transcribe:
    """A checkpoint in torch that transcribes waves; raises UserError if it cannot be used, or does not know the language."""
    from workbench.labelling.transcription import TorchRecognizer

    if options.beams > DECODER_BEAMS:
        raise UserError(f"--beams {options.beams}: expected at most {DECODER_BEAMS} for a model with a decoder")
    recognizer = TorchRecognizer(model)
    if options.language != "auto":
        try:
            recognizer.family.tokens([""], [options.language])
        except UserError:
            raise UserError(f"--language {options.language!r}: {model} does not know it; expected an ISO 639-1 code that it does, or auto") from None  # fmt: skip

    def transcribe(wave: Wave, name: str) -> list[Segment]:
        spans = list(recognizer.segments(wave, LONGEST, options.language, options.beams, name))
        if not spans and len(wave) <= LONGEST_SECONDS * SAMPLE_RATE:  # as with a bundle: a clip is one segment
            return [Segment(0.0, len(wave) / SAMPLE_RATE, Transcript("", options.language, (), {}, True))]
        return [Segment(s.start, s.end, Transcript(s.text, s.language, (), {}, True)) for s in spans]

    return transcribe


def _target(path: Path, options: TranscribeOptions) -> Path:
    assert options.folder is not None  # noqa: S101  the callers have looked
    return options.folder / (path.stem + SUFFIXES[options.output_format])


def _written(path: Path, text: str, options: TranscribeOptions) -> str:
    target = _target(path, options)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, text.removeprefix(f"{path}\t") + "\n" if options.output_format == "text" else text + "\n")
    return str(target)
