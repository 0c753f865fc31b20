"""WER of bundles on the same clips, and the difference of each to the first, paired by clip.

python benchmarks/bundle_wer.py --bundles A,B,C --precision q4 --corpora prompts-en,CORPUS --split validation --json FILE
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common import arguments, finish

OPTIONS = {
    "bundles": ("", "folders of bundles, with commas between"),
    "precision": ("int8", "one that all of them have"),
    "corpora": ("prompts-en", "corpora, with commas between"),
    "split": ("validation", "of the corpora"),
    "threads": (2, "of the runtime"),
}


def main() -> None:
    """Transcribe, score and print."""
    options = arguments(__doc__, **OPTIONS)
    from export.edge import Recognizer
    from workbench.corpus import scored_clips
    from workbench.evaluation.scoring import paired_difference, score_utterances

    figures: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    differences: dict[str, Any] = {}
    for corpus in options.corpora.split(","):
        clips: list[Any] = list(scored_clips(corpus, options.split))
        texts, languages = [clip.text for clip in clips], [clip.language for clip in clips]
        first: list[str] | None = None
        for folder in options.bundles.split(","):
            recognizer = Recognizer(folder, options.precision, options.threads)
            said = [recognizer.transcribe(clip.wave(), clip.language).text for clip in clips]
            scored, name = score_utterances(clips, said), f"{Path(corpus).name}, {Path(folder).name}"
            figures |= {f"{name}: WER %": scored.wer, f"{name}: CER %": scored.cer}
            if first is not None:
                differences[name] = paired_difference(texts, said, first, languages)
            first = first or said
            rows += [
                {
                    "bundle": Path(folder).name,
                    "corpus": Path(corpus).name,
                    "id": c.id,
                    "reference": c.text,
                    "said": text,
                }
                for c, text in zip(clips, said, strict=True)
            ]
    for name, difference in differences.items():
        print(f"{name}, WER minus the first's: {difference}")
    finish(options.json, figures, rows, differences=differences, precision=options.precision, split=options.split)


if __name__ == "__main__":
    main()
