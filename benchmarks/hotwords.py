"""What hotwords bring on clips that hold them, and what they spoil on clips that do not.

    python benchmarks/hotwords.py --bundle BUNDLE --corpus CORPUS --splits test --scores 2 --json FILE

The hotwords are the names in the references of every other clip: words with a capital that do not begin a sentence. `--more N` adds that many
names from the references of `--others`, which no clip here holds. Clips are grouped by whether their reference holds a hotword. Each clip is
transcribed without hotwords and with each score, by every number of beams given.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from common import arguments, finish

OPTIONS = {
    "bundle": ("", "folder of a bundle"),
    "precision": ("int8", "one that it has"),
    "corpus": ("", "an English corpus"),
    "splits": ("test", "comma-separated"),
    "scores": ("2", "comma-separated"),
    "beams": ("1", "comma-separated; 1 is greedy"),
    "more": (0, "names that no clip holds"),
    "others": ("", "corpora that those are taken from, comma-separated"),
    "threads": (2, "of the runtime"),
}
NOT_NAMES = {"I", "I'm", "I'll", "I've", "I'd"}


def main() -> None:
    """Measure and print the figures."""
    options = arguments(__doc__, **OPTIONS)
    from export.edge import Recognizer
    from workbench.corpus import SPLITS, open_corpus, scored_clips

    recognizer = Recognizer(options.bundle, options.precision, options.threads)
    clips = [u for split in options.splits.split(",") for u in scored_clips(options.corpus, split)]
    clips = [u for u in clips if u.language == "en"]
    wanted = names(u.text for u in clips[::2])
    everywhere = {word.lower() for u in clips for word in words_of(u.text)}
    others = [
        u.text
        for corpus in filter(None, options.others.split(","))
        for split in SPLITS
        for u in open_corpus(corpus, split)
    ]
    more = [name for name in names(others) if name.lower() not in everywhere][: options.more]
    if len(more) < options.more:
        raise SystemExit(f"--others: hold {len(more)} further names; expected {options.more}")
    scores = [float(score) for score in options.scores.split(",")]
    systems: list[tuple[str, int, Any]] = []
    for beams in map(int, options.beams.split(",")):
        systems += [(f"beams {beams}", beams, None)]
        systems += [
            (f"beams {beams}, score {score:g}", beams, recognizer.new_hotwords([*wanted, *more], score))
            for score in scores
        ]
    waves = [u.wave() for u in clips]
    texts = {
        name: [recognizer.transcribe(wave, "en", beams, hotwords=hotwords).text for wave in waves]
        for name, beams, hotwords in systems
    }
    rows = [row(name, texts[name], texts[f"beams {beams}"], clips, [*wanted, *more]) for name, beams, _ in systems]
    for one in rows:
        print({k: v for k, v in one.items() if k != "changed"}, flush=True)
    figures = {key: value for one in rows for key, value in figures_of(one).items()}
    finish(options.json, figures, rows, bundle=recognizer.manifest.name, precision=recognizer.precision, corpus=options.corpus,
           splits=options.splits, hotwords=len(wanted), more=len(more), words=wanted)  # fmt: skip


def words_of(text: str) -> list[str]:
    """Words of a reference, with their capitals and without punctuation."""
    return re.findall(r"[^\W\d_]+(?:['’-][^\W\d_]+)*", text)


def names(texts: Any) -> list[str]:
    """Words with a capital inside sentences, the first ones first, each once."""
    found: dict[str, None] = {}
    for text in texts:
        for sentence in re.split(r"[.!?:;\"]\s*", text):
            for word in words_of(sentence)[1:]:
                if word[0].isupper() and len(word) > 2 and word not in NOT_NAMES:
                    found[word] = None
    return list(found)


def row(
    name: str, texts: Sequence[str], plain: Sequence[str], clips: Sequence[Any], hotwords: Sequence[str]
) -> dict[str, Any]:
    """What a system made of the clips, those with hotwords and the others."""
    from workbench.evaluation.scoring import clip_errors, paired_difference

    known = {word.lower() for word in hotwords}
    held = [Counter(w.lower() for w in words_of(u.text) if w.lower() in known) for u in clips]
    said = [Counter(w.lower() for w in words_of(text) if w.lower() in known) for text in texts]
    found: dict[str, Any] = {"name": name}
    for group, inside in (("with", True), ("without", False)):
        chosen = [i for i, one in enumerate(held) if bool(one) is inside]
        references, ours, before = ([one[i] for i in chosen] for one in ([u.text for u in clips], texts, plain))
        errors = [clip_errors(*pair, "en") for pair in zip(references, ours, strict=True)]
        found[group] = {
            "clips": len(chosen),
            "wer": 100 * sum(e.total for e in errors) / max(1, sum(e.length for e in errors)),
            "wer_difference": paired_difference(references, ours, before),
            "hotwords": sum(held[i].total() for i in chosen),
            "recalled": sum((held[i] & said[i]).total() for i in chosen),
            "invented": sum((said[i] - held[i]).total() for i in chosen),
        }
    found["changed"] = [
        {"reference": u.text, "without": before, "with": text}
        for u, before, text in zip(clips, plain, texts, strict=True)
        if text != before
    ]
    return found


def figures_of(one: dict[str, Any]) -> dict[str, float]:
    """The figures of a system by name."""
    name = re.sub(r"\W+", "_", one["name"])
    return {
        f"{name}_wer_with": one["with"]["wer"],
        f"{name}_wer_without": one["without"]["wer"],
        f"{name}_recall_percent": 100 * one["with"]["recalled"] / max(1, one["with"]["hotwords"]),
        f"{name}_invented": one["with"]["invented"] + one["without"]["invented"],
    }


if __name__ == "__main__":
    main()
