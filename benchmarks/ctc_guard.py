"""Would a CTC head keep a decoder from writing text where nobody speaks, beyond what the speech detector does?

    python benchmarks/ctc_guard.py --bundle BUNDLE --guard CTC_BUNDLE --corpora CORPUS,CORPUS --noise MANIFEST --json FILE

Each clip is transcribed by the bundle without its detector, and by the CTC bundle. A guard that drops the text of clips for which the CTC head writes nothing (or less
than a share of the decoder's letters) is right on sounds without speech and wrong on speech. Sounds: those of `measure`
(export/measurement/robustness.py) and the clips of a manifest's lines of kind `noise`; speech: corpora, test splits.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import arguments, finish

SHARES = (0.1, 0.2, 0.3, 0.5)  # of the decoder's letters, below which the decoder's text would be dropped
OPTIONS = {
    "bundle": ("", "folder of a bundle with a decoder"),
    "guard": ("", "folder of a bundle with a CTC head"),
    "precision": ("int8", "of both"),
    "corpora": ("", "corpora of speech, comma-separated"),
    "noise": ("", "manifest of noise"),
    "clips": (100_000, "at most this many of each group"),
    "threads": (2, "of the runtime"),
}


def main() -> None:
    """Measure and print the figures."""
    options = arguments(__doc__, **OPTIONS)
    from export.edge import Recognizer

    decoder = Recognizer(options.bundle, options.precision, options.threads, vad=True)
    guard = Recognizer(options.guard, options.precision, options.threads, vad=False)
    rows = [
        {"group": group, "speech": speech, **_clip(decoder, guard, wave, language)}
        for group, speech, clips in _groups(options)
        for wave, language in clips
    ]
    figures: dict[str, float] = {}
    for kind, of_kind in (
        ("sounds", [r for r in rows if not r["speech"]]),
        ("speech", [r for r in rows if r["speech"]]),
    ):
        texts = [r for r in of_kind if r["text"]]
        passed = [r for r in texts if r["detector"]]  # the detector lets them through
        figures |= {
            f"{kind}_clips": len(of_kind),
            f"{kind}_with_text": len(texts),
            f"{kind}_with_text_past_detector": len(passed),
        }
        figures[f"{kind}_loops_past_detector"] = sum(r["looped"] for r in passed)
        figures[f"{kind}_past_detector_where_ctc_is_silent"] = sum(not r["ctc"] for r in passed)
        for share in SHARES:
            figures[f"{kind}_past_detector_where_ctc_writes_under_{share:g}"] = sum(
                len(r["ctc"]) < share * len(r["text"]) for r in passed
            )
    finish(
        options.json,
        figures,
        rows,
        bundle=decoder.manifest.name,
        guard=guard.manifest.name,
        precision=options.precision,
    )


def _groups(options: Any) -> Iterator[tuple[str, bool, list[tuple[Any, str]]]]:
    """Name, whether it is speech, waves and languages."""
    from export.measurement.robustness import unspoken
    from workbench.audio.decode import decode
    from workbench.corpus import open_corpus

    for kind, waves in unspoken().items():
        yield kind, False, [(wave, "en") for wave in waves]
    if options.noise:
        manifest = Path(options.noise)
        lines = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
        paths = [manifest.parent / line["audio"] for line in lines if line["kind"] == "noise"]
        yield "ambient", False, [(decode(path), "en") for path in paths[: options.clips]]
    for corpus in filter(None, options.corpora.split(",")):
        clips = open_corpus(corpus, "test")[: options.clips]
        yield Path(corpus).name, True, [(clip.wave(), clip.language) for clip in clips]


def _clip(decoder: Any, guard: Any, wave: Any, language: str) -> dict[str, Any]:
    from export.edge.vad import anybody_speaks

    wave = wave[: 30 * 16_000]
    written = decoder.transcribe(wave, language, vad=False)
    return {
        "detector": anybody_speaks(wave, decoder.detector),
        "text": written.text,
        "looped": written.looped,
        "ctc": guard.transcribe(wave, vad=False).text,
        "seconds": round(len(wave) / 16_000, 2),
    }


if __name__ == "__main__":
    main()
