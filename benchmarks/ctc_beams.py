"""What beams and a language model bring a bundle with a CTC head: chosen on validation, then measured on test.

    python scripts/ngram.py --student RUN/student --corpus CORPUS --output words.arpa
    python benchmarks/ctc_beams.py --bundle BUNDLE --corpus CORPUS --lm words.arpa --json FILE

The number of beams and the weights of the language model are those with the fewest errors on the validation split; of equals, the first one
tried. On the test split there are four systems: greedy decoding, beams alone, and beams with the default weights and with the chosen ones.
"""

from __future__ import annotations

import statistics
from itertools import product
from pathlib import Path
from typing import Any

from common import arguments, finish

OPTIONS = {
    "bundle": ("", "folder of a bundle with a CTC head"),
    "precision": ("int8", "one that it has"),
    "corpus": ("prompts-en", "an English corpus"),
    "lm": ("", "an n-gram model"),
    "beams": ("20,50,100", "comma-separated"),
    "alphas": ("0.25,0.5,0.75,1,1.5", "comma-separated"),
    "betas": ("0,1.5,3", "comma-separated"),
    "threads": (1, "of the runtime"),
}


def main() -> None:
    """Measure and print the figures."""
    options = arguments(__doc__, **OPTIONS)
    from export.edge import LanguageModelWeights, Recognizer
    from workbench.core.hashing import sha256
    from workbench.corpus import scored_clips

    recognizer = Recognizer(options.bundle, options.precision, options.threads, vad=False)
    beams, alphas, betas = (
        list(map(float, getattr(options, name).split(","))) for name in ("beams", "alphas", "betas")
    )
    validation = scored_clips(options.corpus, "validation")
    tried = tried_on(recognizer, validation, options.lm, list(map(int, beams)), list(product(alphas, betas)))
    alone = min((one for one in tried if one["beams"] > 1 and "alpha" not in one), key=lambda one: one["wer"])
    best = min((one for one in tried if "alpha" in one), key=lambda one: one["wer"])
    print(f"chosen on {len(validation)} clips: {alone}, {best}", flush=True)

    default = LanguageModelWeights()
    chosen = LanguageModelWeights(best["alpha"], best["beta"])
    clips = scored_clips(options.corpus, "test")
    waves = [u.wave() for u in clips]
    rows: list[dict[str, Any]] = []
    for name, number, weights in (
        ("greedy", 1, None), ("beams", alone["beams"], None), ("lm_default", best["beams"], default), ("lm", best["beams"], chosen),
    ):  # fmt: skip
        lm = weights and recognizer.new_language_model(options.lm, weights)
        found = [recognizer.transcribe(wave, beams=number, words=False, lm=lm) for wave in waves]
        row = {"name": name, "beams": number, **(vars(weights) if weights else {})}
        row |= scored(clips, [one.text for one in found], rows[0]["texts"] if rows else None)
        for stage in ("encoder", "beams"):
            row[f"{stage}_ms"] = statistics.median(one.stages_ms.get(stage, 0.0) for one in found)
        rows.append(row)
    figures = {f"{row['name']}_{key}": row[key] for row in rows for key in ("wer", "cer", "encoder_ms", "beams_ms")}
    finish(options.json, figures, rows, bundle=recognizer.manifest.name, precision=options.precision, corpus=Path(options.corpus).name,
           lm=sha256(Path(options.lm)), validation=tried, references=[u.text for u in clips])  # fmt: skip


def tried_on(
    recognizer: Any, clips: Any, lm: str, numbers: list[int], weights: list[tuple[float, float]]
) -> list[dict[str, Any]]:
    """WER of all numbers of beams, without a language model and with all weights, and of greedy decoding."""
    from export.edge import LanguageModelWeights
    from export.edge.decoding.ctc_path import greedy_path
    from export.edge.decoding.decoder import log_softmax
    from export.edge.decoding.prefix_search import prefix_beam_search

    ctc = recognizer.ctc
    logits = [ctc.logits(u.wave()) for u in clips]
    texts = [ctc.text(greedy_path(one, ctc.blank).tokens) for one in logits]
    found = [{"beams": 1, "wer": scored(clips, texts)["wer"]}]
    for number, pair in product(numbers, [None, *weights]):
        scores = [recognizer.new_language_model(lm, LanguageModelWeights(*pair))] if pair else []
        texts = [ctc.text(prefix_beam_search(log_softmax(one), ctc.blank, number, scores)[0]) for one in logits]
        with_weights = dict(zip(("alpha", "beta"), pair, strict=True)) if pair else {}
        found.append({"beams": number, **with_weights, "wer": scored(clips, texts)["wer"]})
        print(found[-1], flush=True)
    return found


def scored(clips: Any, texts: list[str], before: list[str] | None = None) -> dict[str, Any]:
    """Error rates, and the difference from other texts of the same clips."""
    from workbench.evaluation.scoring import clip_errors, paired_difference

    references = [u.text for u in clips]
    found: dict[str, Any] = {}
    for key in ("wer", "cer"):
        errors = [clip_errors(*pair, "en", key) for pair in zip(references, texts, strict=True)]
        found[key] = 100 * sum(e.total for e in errors) / max(1, sum(e.length for e in errors))
    if before is not None:
        found["wer_difference"] = paired_difference(references, texts, before)
    return found | {"texts": texts}


if __name__ == "__main__":
    main()
