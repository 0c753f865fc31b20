"""Transcribe WAV files from the command line: `python -m edge [--bundle DIR] FILE.wav ...`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from . import AudioError, BundleError, Recognizer, read_wav


def main() -> int:
    """Print one line a file: its name, its text; returns the number of files that failed."""
    parser = argparse.ArgumentParser(
        prog="edge", description="Transcribe 16-bit PCM WAV files with an exported bundle."
    )
    parser.add_argument("files", nargs="+", metavar="FILE.wav")
    parser.add_argument(
        "--bundle", type=Path, default=Path(__file__).resolve().parent.parent, help="folder with bundle.json"
    )
    parser.add_argument("--precision", help="for example int8; the bundle's first by default")
    parser.add_argument("--language", default="en", help="ISO 639-1 code, or auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--timings", action="store_true", help="also print the time of each stage in ms")
    args = parser.parse_args()
    try:
        recognizer = Recognizer(args.bundle, args.precision, args.threads)
    except BundleError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    failed = 0
    for name in args.files:
        try:
            transcript = recognizer.transcribe(read_wav(name), args.language)
        except (AudioError, BundleError) as error:
            print(f"error: {error}", file=sys.stderr)  # noqa: T201
            failed += 1
            continue
        times = "  ".join(f"{stage} {ms:.1f}" for stage, ms in transcript.stages_ms.items())
        print(f"{name}\t{transcript.text}" + (f"\t{times}" if args.timings else ""))  # noqa: T201
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
