"""Whether the speech detector, which the runtime asks by default, drops a word that is written without it; and what it drops where nobody speaks.

    python benchmarks/detector_loss.py --bundle BUNDLE --corpora CORPUS,CORPUS --noise MANIFEST --wavs FILE.wav,FILE.wav --json FILE

Speech: the built-in prompts, those of one word at full level and 20, 30 and 40 dB below it (rounded to 16 bits again), and every clip of some corpora.
What is dropped is transcribed with the detector off, to see whether a word is lost. Noise: the sounds of `measure` (export/measurement/robustness.py), the
clips of a manifest's lines of kind `noise`, and single files; all of the former and every fourth of the latter are transcribed without the detector.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from common import arguments, finish

THRESHOLDS = (0.1, 0.2, 0.35, 0.5)
LEVELS = (0, -20, -30, -40)  # dB
EVERY = 4
OPTIONS = {
    "bundle": ("", "folder of a bundle"),
    "corpora": ("", "corpora of speech, comma-separated"),
    "noise": ("", "manifest of noise"),
    "wavs": ("", "WAV files without speech, comma-separated"),
    "threads": (2, "of the runtime"),
}


def main() -> None:
    """Measure and print the figures."""
    options = arguments(__doc__, **OPTIONS)
    from export.edge import Recognizer

    recognizer = Recognizer(options.bundle, threads=options.threads, vad=True)
    speech = [_speech(name, recognizer, clips) for name, clips in _groups(options.corpora)]
    noise = [_noise(name, recognizer, clips, every) for name, clips, every in _sounds(options.noise, options.wavs)]
    figures = {
        "speech_clips": sum(row["clips"] for row in speech),
        "dropped": sum(len(row["dropped"]) for row in speech),
        "dropped_that_write_words": sum(bool(d["without_detector"]) for row in speech for d in row["dropped"]),
        "lowest_probability_of_speech": min(row["lowest"] for row in speech),
        "noise_clips": sum(row["clips"] for row in noise),
        "noise_let_through": sum(row["let_through"] for row in noise),
        "noise_transcribed": sum(row["transcribed"] for row in noise),
        "noise_with_text_without_detector": sum(row["text_without_detector"] for row in noise),
        "noise_with_text": sum(row["text"] for row in noise),
    }
    finish(options.json, figures, speech + noise, bundle=recognizer.manifest.name, precision=recognizer.precision)


def _groups(corpora: str) -> Iterator[tuple[str, list[tuple[str, str, Any]]]]:
    """Groups of clips: id, text, wave."""
    from workbench.corpus import SPLITS, open_corpus

    own = [(u.id, u.text, u.wave()) for split in ("validation", "test") for u in open_corpus("prompts-en", split)]
    for level in LEVELS:
        for name, wanted in (("one word", True), ("several words", False)):
            of_kind = [(i, text, _at(wave, level)) for i, text, wave in own if (len(text.split()) == 1) is wanted]
            yield f"prompts-en, {name}, {level} dB", of_kind
    for corpus in filter(None, corpora.split(",")):
        found = [u for split in SPLITS for u in open_corpus(corpus, split)]
        yield Path(corpus).name, [(u.id, u.text, u.wave()) for u in found]


def _sounds(manifest: str, wavs: str) -> Iterator[tuple[str, list[Any], int]]:
    """Groups of waves without speech, and every which of them is transcribed."""
    from export.edge import read_wav
    from export.measurement.robustness import unspoken
    from workbench.audio.decode import decode

    for kind, waves in unspoken().items():
        yield kind, waves, 1
    if manifest:
        lines = [json.loads(line) for line in Path(manifest).read_text(encoding="utf-8").splitlines()]
        paths = [Path(manifest).parent / line["audio"] for line in lines if line["kind"] == "noise"]
        yield Path(manifest).parent.name, [decode(path) for path in paths], EVERY
    if wavs:
        yield "files", [read_wav(path) for path in wavs.split(",")], 1


def _at(wave: Any, level: float) -> Any:
    """A wave at another level, as 16-bit samples hold it."""
    return (np.round(wave * 10 ** (level / 20) * 32767) / 32767).astype(np.float32)


def _speech(name: str, recognizer: Any, clips: list[tuple[str, str, Any]]) -> dict[str, Any]:
    from export.edge.vad import SPOKEN, speech_probability

    likely = [speech_probability(wave, recognizer.detector) for _, _, wave in clips]
    dropped = [
        {"id": i, "reference": text, "probability": round(p, 3), "without_detector": recognizer.transcribe(wave, vad=False).text}
        for (i, text, wave), p in zip(clips, likely, strict=True)
        if p < SPOKEN
    ]  # fmt: skip
    below = {str(t): sum(p < t for p in likely) for t in THRESHOLDS}
    print(f"{name}: {len(clips)} clips, lowest {min(likely):.3f}, below {below}, dropped {dropped}", flush=True)
    return {
        "kind": "speech",
        "name": name,
        "clips": len(clips),
        "lowest": min(likely),
        "below": below,
        "dropped": dropped,
    }


def _noise(name: str, recognizer: Any, waves: list[Any], every: int) -> dict[str, Any]:
    from export.edge.vad import SPOKEN, speech_probability

    likely = [speech_probability(wave, recognizer.detector) for wave in waves]
    said = [(p, recognizer.transcribe(wave, vad=False)) for p, wave in list(zip(likely, waves, strict=True))[::every]]
    below = {str(t): sum(p < t for p in likely) for t in THRESHOLDS}
    row = {
        "kind": "noise", "name": name, "clips": len(waves), "let_through": sum(p >= SPOKEN for p in likely), "below": below,
        "transcribed": len(said), "text_without_detector": sum(bool(one.text) for _, one in said),
        "text": sum(bool(one.text) and p >= SPOKEN for p, one in said), "loops": sum(one.looped for _, one in said),
    }  # fmt: skip
    print(row, flush=True)
    return row


if __name__ == "__main__":
    main()
