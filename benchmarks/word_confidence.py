"""Whether a word's probability tells which words are wrong: area under the ROC curve, calibration, and what a threshold finds.

    python benchmarks/word_confidence.py --bundle BUNDLE --precision int8 --corpus CORPUS --json FILE

A word is right if the alignment of the transcript with the reference, both in lower case without punctuation, matches it. The area is the
probability that a right word has a higher probability than a wrong one: 0.5 says nothing, 1 everything.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from common import arguments, finish

OPTIONS = {
    "bundle": ("", "folder of a bundle"),
    "precision": ("int8", "one that it has"),
    "corpus": ("prompts-en", "an English corpus"),
    "split": ("test", "of the corpus"),
    "threads": (2, "of the runtime"),
}
BINS, UNSURE = 10, 0.5  # of the calibration; a word below this counts as flagged


def plain(word: str) -> str:
    """A word in lower case, letters, digits and apostrophes alone."""
    return "".join(c for c in word.lower() if c.isalnum() or c == "'")


def right_words(words: list[str], reference: list[str]) -> list[bool]:
    """Which words the cheapest alignment with the reference matches."""
    from workbench.evaluation.alignment import edits

    right = {edit.said for edit in edits(reference, words) if edit.kind is None}
    return [i in right for i in range(len(words))]


def roc_area(sure: npt.NDArray[np.float64], right: npt.NDArray[np.bool_]) -> float:
    """Share of pairs of a right and a wrong word in which the right one is the surer; ties count half."""
    good, bad = sure[right], np.sort(sure[~right])
    below, up_to = np.searchsorted(bad, good, "left"), np.searchsorted(bad, good, "right")
    return float((below + up_to).mean() / 2 / len(bad))


def figures(sure: npt.NDArray[np.float64], right: npt.NDArray[np.bool_]) -> dict[str, float]:
    """What is reported of all words."""
    bins = np.minimum((sure * BINS).astype(int), BINS - 1)
    gaps = [abs(sure[bins == i].mean() - right[bins == i].mean()) * (bins == i).mean() for i in np.unique(bins)]
    flagged = sure < UNSURE
    return {
        "words": len(sure),
        "wrong_percent": 100 * float((~right).mean()),
        "roc_area": roc_area(sure, right),
        "mean_probability": float(sure.mean()),
        "calibration_error": float(sum(gaps)),
        "flagged_percent": 100 * float(flagged.mean()),
        "wrong_of_flagged_percent": 100 * float((~right[flagged]).mean()),
        "flagged_of_wrong_percent": 100 * float(flagged[~right].mean()),
    }


def main() -> None:
    """Measure and print the figures."""
    options = arguments(__doc__, **OPTIONS)
    from export.edge import Recognizer
    from workbench.corpus import scored_clips

    recognizer = Recognizer(options.bundle, options.precision, options.threads)
    rows: list[dict[str, Any]] = []
    for clip in scored_clips(options.corpus, options.split):
        said = recognizer.transcribe(clip.wave(), clip.language, words=True)
        words = [(plain(w.text), w.probability) for w in said.words if plain(w.text)]
        right = right_words([word for word, _ in words], [p for w in clip.text.split() if (p := plain(w))])
        rows.append(
            {"id": clip.id, "logprob": said.logprob, "words": [[*w, r] for w, r in zip(words, right, strict=True)]}
        )
    sure = np.array([p for row in rows for _, p, _ in row["words"]])
    right = np.array([r for row in rows for _, _, r in row["words"]])
    finish(options.json, figures(sure, right), rows, bundle=recognizer.manifest.name, precision=options.precision,
           corpus=Path(options.corpus).name, split=options.split)  # fmt: skip


if __name__ == "__main__":
    main()
