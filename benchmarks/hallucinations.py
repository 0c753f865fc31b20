"""What keeps a decoder from writing text where nobody speaks, beyond the speech detector: its own log-probability, or a CTC head that is silent?

    python benchmarks/hallucinations.py --bundle BUNDLE --guard CTC_BUNDLE --corpora CORPUS,CORPUS --noise MANIFEST --json FILE

Each clip is transcribed without the detector, and by the CTC bundle. Of what the detector would let through, a limit on the mean log-probability of the decoder's tokens
(`--min-logprob`) and the CTC head (no text, or less than a share of the decoder's letters) each drop some: right on sounds without speech, wrong on speech. Sounds are
those of `measure` (export/measurement/robustness.py) and the clips of a manifest's lines of kind `noise`; half of them, and the validation splits of the corpora, are
for choosing a limit, the other half and the test splits for confirming it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import arguments, finish

LOGPROBS = (-2.0, -1.5, -1.25, -1.0, -0.8, -0.3, -0.2)
SHARES = (0.3, 0.5)
OPTIONS = {
    "bundle": ("", "folder of a bundle with a decoder"),
    "guard": ("", "folder of a bundle with a CTC head; none by default"),
    "precision": ("int8", "of both"),
    "corpora": ("", "corpora of speech, comma-separated"),
    "noise": ("", "manifest of noise"),
    "clips": (100_000, "at most this many of each corpus and split"),
    "threads": (2, "of the runtime"),
}


def main() -> None:
    """Measure and print the figures."""
    options = arguments(__doc__, **OPTIONS)
    from export.edge import Recognizer

    decoder = Recognizer(options.bundle, options.precision, options.threads, vad=True)
    guard = Recognizer(options.guard, options.precision, options.threads, vad=False) if options.guard else None
    rows = [
        {"group": group, "speech": speech, "confirms": confirms, **_clip(decoder, guard, *clip)}
        for group, speech, confirms, clips in _groups(options)
        for clip in clips
    ]
    figures: dict[str, float] = {}
    for half, confirms in (("choosing", False), ("confirming", True)):
        for kind, speech in (("sounds", False), ("speech", True)):
            of_kind = [r for r in rows if r["speech"] is speech and r["confirms"] is confirms]
            figures |= {
                f"{half}, {kind}, {name}": value for name, value in _dropped(of_kind, guard is not None).items()
            }
    finish(
        options.json, figures, rows, bundle=decoder.manifest.name, guard=guard.manifest.name if guard else None, precision=options.precision,
    )  # fmt: skip


def _dropped(rows: list[dict[str, Any]], with_guard: bool) -> dict[str, float]:
    """Counts of clips, and how many each rule drops of those that the detector lets through; of speech, with the errors of what is dropped."""
    past = [r for r in rows if r["text"] and r["detector"]]
    out: dict[str, Any] = {
        "clips": len(rows),
        "with text": sum(bool(r["text"]) for r in rows),
        "past_detector": len(past),
    }
    rules = {f"logprob < {limit:g}": [r for r in past if r["logprob"] < limit] for limit in LOGPROBS}
    if with_guard:
        rules["ctc silent"] = [r for r in past if not r["ctc"]]
        rules |= {
            f"ctc under {share:g}": [r for r in past if len(r["ctc"]) < share * len(r["text"])] for share in SHARES
        }
    for name, dropped in rules.items():
        out[f"{name}, dropped"] = len(dropped)
        words = sum(r["words"] for r in dropped)
        if words:
            out[f"{name}, their WER"] = round(100 * sum(r["errors"] for r in dropped) / words, 1)
    return out


def _groups(options: Any) -> Iterator[tuple[str, bool, bool, list[tuple[Any, str, str]]]]:
    """Name, whether it is speech, whether it confirms; waves, languages and references."""
    from export.measurement.robustness import unspoken
    from workbench.audio.decode import decode
    from workbench.corpus import open_corpus

    sounds = [(kind, wave) for kind, waves in unspoken().items() for wave in waves]
    if options.noise:
        manifest = Path(options.noise)
        lines = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
        sounds += [("ambient", decode(manifest.parent / line["audio"])) for line in lines if line["kind"] == "noise"]
    for i, (kind, wave) in enumerate(sounds):
        yield kind, False, bool(i % 2), [(wave, "en", "")]
    for corpus in filter(None, options.corpora.split(",")):
        for split in ("validation", "test"):
            clips = open_corpus(corpus, split)[: options.clips]
            yield Path(corpus).name, True, split == "test", [(clip.wave(), clip.language, clip.text) for clip in clips]


def _clip(decoder: Any, guard: Any, wave: Any, language: str, reference: str) -> dict[str, Any]:
    from export.edge.vad import anybody_speaks
    from workbench.evaluation.alignment import edits
    from workbench.evaluation.scoring import normalize

    wave = wave[: 30 * 16_000]
    written = decoder.transcribe(wave, language, words=True, vad=False)
    said, expected = (normalize(text, language).split() for text in (written.text, reference))
    return {
        "language": language,
        "detector": bool(anybody_speaks(wave, decoder.detector)),
        "text": written.text,
        "looped": written.looped,
        "logprob": round(written.logprob, 4) if written.text else None,
        "words": len(expected),
        "errors": sum(edit.kind is not None for edit in edits(expected, said)) if expected else 0,
        "ctc": guard.transcribe(wave, vad=False).text if guard else "",
    }


if __name__ == "__main__":
    main()
