"""Transcribe WAV files from the command line: `python -m edge [--bundle DIR] FILE.wav ...`."""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from pathlib import Path
from typing import Any

from . import (
    FORMATS,
    AudioError,
    BundleError,
    LanguageModelWeights,
    Recognizer,
    Segment,
    format_segments,
    read_hotwords,
    read_wav,
)
from .audio.resample import SAMPLE_RATE
from .decoding.hotwords import DEFAULT_SCORE, MAX_SCORE
from .decoding.language_model import weights_of_options
from .recognizer import LONGEST

MOST = 1024  # threads, or beams
SHORTEST, WINDOW = 2.0, 30.0  # seconds of a stretch
LM_OPTIONS = {  # weights of a language model, and what they do
    "alpha": "how much its probabilities count",
    "beta": "what is added for each word",
    "unk_score_offset": "what is added to the log10 probability of a word that it does not know",
}
PROVIDERS = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
}


def main() -> int:
    """Print one line per file: its name, its text.

    Returns:
        0; 1 where a file could not be used (the others are transcribed); 2 where nothing could be started; 130 after Ctrl-C.
    """
    args = arguments().parse_args()
    try:
        status = _run(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)  # noqa: T201
        return 130
    except BrokenPipeError:  # the reader has gone, as in `| head -1`; nothing more is written, not even at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


def arguments() -> argparse.ArgumentParser:
    """The command line's options."""
    parser = argparse.ArgumentParser(prog="edge", description="Transcribe PCM WAV files with an exported bundle.")
    parser.add_argument("files", nargs="+", metavar="FILE.wav", type=_text)
    parser.add_argument(
        "--bundle", type=_path, default=Path(__file__).resolve().parent.parent, help="folder with bundle.json"
    )
    parser.add_argument("--precision", type=_text, help="for example int8; the bundle's first by default")
    parser.add_argument("--language", type=_text, default="en", help="ISO 639-1 code, or auto")
    parser.add_argument("--threads", type=_count, help="all cores by default")
    parser.add_argument(
        "--provider", choices=PROVIDERS, default="cpu", help="where to compute; a GPU needs onnxruntime-gpu"
    )
    parser.add_argument(
        "--cuda-graphs",
        action="store_true",
        help="with --provider cuda: capture the decoder's step, for clips of one length",
    )
    parser.add_argument("--beams", type=_count, default=1, help="beams of the search; 1 is greedy, and the fastest")
    parser.add_argument(
        "--hotwords", type=_path, metavar="FILE", help="names and terms that are likely to be said, one a line"
    )
    parser.add_argument(
        "--hotwords-score",
        type=_score,
        default=DEFAULT_SCORE,
        help=f"how much likelier they are made, in nats a token; {DEFAULT_SCORE:g} by default",
    )
    parser.add_argument(
        "--lm",
        type=_path,
        metavar="FILE",
        help="of a model with a CTC head: n-gram model of words, ARPA or KenLM's binary; needs the package kenlm",
    )
    for name, about in LM_OPTIONS.items():
        default = getattr(LanguageModelWeights, name)
        option = f"--lm-{name.replace('_', '-')}"
        parser.add_argument(option, type=float, help=f"with --lm: {about}; {default:g} by default")
    parser.add_argument(
        "--min-logprob",
        type=_logprob,
        metavar="LOGPROB",
        help="leave a text out whose tokens have a lower mean log-probability; for example -1.5",
    )
    parser.add_argument("--words", action="store_true", help="also the time of each word, in JSON")
    parser.add_argument("--format", choices=FORMATS, default="text", help="subtitles and JSON have times")
    detector = parser.add_mutually_exclusive_group()
    detector.add_argument(
        "--no-vad",
        action="store_true",
        help="also transcribe files of up to 30 s in which the speech detector finds no speech, which may hallucinate text",
    )
    detector.add_argument(
        "--vad",
        action="store_true",
        help="skip silence and cut at pauses, as is done with recordings of more than 30 s",
    )
    parser.add_argument(
        "--longest",
        type=_seconds,
        metavar="SECONDS",
        help="longest stretch, 28 by default; 7 gives readable subtitles",
    )
    parser.add_argument("--timings", action="store_true", help="also print the time of each stage in ms, to stderr")
    return parser


def _text(value: str) -> str:
    if not value.strip():
        raise argparse.ArgumentTypeError("it is empty; give a value, or leave it out")
    return value


def _path(value: str) -> Path:
    return Path(_text(value))


def _count(value: str) -> int:
    if not re.fullmatch("[0-9]{1,4}", value) or not 1 <= int(value) <= MOST:
        raise argparse.ArgumentTypeError(f"{value!r}: expected a whole number from 1 to {MOST}")
    return int(value)


def _seconds(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not SHORTEST <= seconds <= WINDOW:
        raise argparse.ArgumentTypeError(f"{value!r}: expected {SHORTEST:g} to {WINDOW:g} seconds")
    return seconds


def _score(value: str) -> float:
    try:
        score = float(value)
    except ValueError:
        score = math.nan
    if not 0 < score <= MAX_SCORE:
        raise argparse.ArgumentTypeError(f"{value!r}: expected a number above 0, at most {MAX_SCORE:g}")
    return score


def _logprob(value: str) -> float:
    try:
        logprob = float(value)
    except ValueError:
        logprob = math.nan
    if not -math.inf < logprob <= 0:
        raise argparse.ArgumentTypeError(f"{value!r}: expected a number up to 0, such as -1.5")
    return logprob


def _run(args: argparse.Namespace) -> int:
    """Transcribe the files; returns the exit status."""
    try:
        weights = weights_of_options({name: getattr(args, f"lm_{name}") for name in LM_OPTIONS}, args.lm)
        recognizer = Recognizer(
            args.bundle,
            args.precision,
            args.threads,
            PROVIDERS[args.provider],
            frugal=True,
            spin=len(args.files) > 1,  # then clips follow each other
            cuda_graphs=args.cuda_graphs,
            vad=False if args.no_vad else None,
        )
        recognizer.check_beams(args.beams)
        how: dict[str, Any] = {}  # what the texts are scored by
        if args.hotwords:
            how["hotwords"] = recognizer.new_hotwords(read_hotwords(args.hotwords), args.hotwords_score)
        if args.lm:
            how["lm"] = recognizer.new_language_model(args.lm, weights)
        if args.min_logprob is not None:
            recognizer.check_min_logprob(args.min_logprob)
            how["min_logprob"] = args.min_logprob
    except BundleError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except OSError as error:
        print(f"error: {args.bundle}: cannot be read ({error.strerror})", file=sys.stderr)  # noqa: T201
        return 2
    failed = 0
    for name in args.files:
        try:
            segments = _segments(recognizer, name, args, how)
        except (AudioError, BundleError) as error:
            print(f"error: {error}", file=sys.stderr)  # noqa: T201
            failed += 1
            continue
        print(format_segments(segments, name, args.format))  # noqa: T201
        for segment in segments:
            if segment.transcript.looped:
                print(  # noqa: T201
                    f"warning: {name} at {segment.start:.2f} s: the decoder repeated itself up to its limit; one repetition is kept",
                    file=sys.stderr,
                )
        if args.timings:
            for segment in segments:
                times = "  ".join(f"{stage} {ms:.1f}" for stage, ms in segment.transcript.stages_ms.items())
                print(f"{name} at {segment.start:.2f} s: {times}", file=sys.stderr)  # noqa: T201
    return 1 if failed else 0


def _segments(recognizer: Recognizer, name: str, args: argparse.Namespace, how: dict[str, Any]) -> list[Segment]:
    """The segments of a file; a short one is a single segment unless cutting was asked for."""
    wave = read_wav(name)
    seconds = len(wave) / SAMPLE_RATE
    longest = LONGEST if args.longest is None else args.longest
    if args.vad or seconds > recognizer.window or (args.longest is not None and seconds > longest):
        return list(recognizer.segments(wave, args.language, longest, args.beams, args.words, **how))
    said = recognizer.transcribe(wave, args.language, args.beams, args.words, **how)
    return [Segment(0.0, seconds, said)]


if __name__ == "__main__":
    sys.exit(main())
