"""What cutting a long recording into utterances costs in word errors.

    python benchmarks/long_recordings.py --corpora es=prompts-es,fr=prompts-fr --json FILE

Clips of a corpus's validation split are joined to one recording, with pauses of 0.4 to 1.8 s and faint noise, and labelled
by Whisper base after `workbench label` has cut it. Beside it the clips as they were recorded, labelled one by one.
"""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import arguments, finish, write_manifest

CLIPS = 22
NOISE = 2e-3


def main() -> None:
    """Join, cut, label, compare."""
    args = arguments(__doc__, corpora=("en=prompts-en", "language=corpus, comma-separated"))
    runs = [measured(*pair.split("=", 1)) for pair in args.corpora.split(",")]
    figures = {f"wer_{how}_{r['language']}": r[f"wer_{how}"] for r in runs for how in ("cut", "clips")}
    finish(args.json, figures, runs)


def measured(language: str, corpus: str) -> dict[str, Any]:
    """WER of both ways."""
    from workbench.audio.decode import SAMPLE_RATE, write_wav
    from workbench.corpus import scored_clips
    from workbench.evaluation.scoring import score
    from workbench.labelling.filters import LabelFilters
    from workbench.labelling.pseudo_labels import LabelSettings, label

    clips = [u for u in scored_clips(corpus, "validation") if u.seconds > 1.5][:CLIPS]
    draw, noise = random.Random(3), np.random.default_rng(0)
    waves = [(u.wave(), np.zeros(round(SAMPLE_RATE * draw.uniform(0.4, 1.8)), np.float32)) for u in clips]
    wave = np.concatenate([piece for pair in waves for piece in pair])
    settings, keep_all = LabelSettings(language=language), LabelFilters(None, None, None, None, None, None)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "recordings").mkdir()
        write_wav(folder / "recordings" / "long.wav", wave + noise.normal(0, NOISE, len(wave)).astype(np.float32))
        cut = labels(label(folder / "recordings", folder / "cut.jsonl", settings, keep_all))
        apart = labels(label(write_manifest(folder, clips, validation=0), folder / "apart.jsonl", settings, keep_all))
    said = " ".join(row["text"] for row in sorted(cut, key=lambda row: float(row["id"].split("@")[1])))
    by_id = {row["id"]: row["text"] for row in apart}
    references = [u.text for u in clips]
    return {
        "language": language, "seconds": len(wave) / SAMPLE_RATE, "clips": len(clips),
        "utterances": [row["duration"] for row in cut],
        "wer_cut": score([" ".join(references)], [said], language).wer,
        "wer_clips": score(references, [by_id.get(u.id, "") for u in clips], language).wer,
        "reference": " ".join(references), "cut": said, "apart": by_id,
    }  # fmt: skip


def labels(manifest: Path) -> list[dict[str, Any]]:
    """What was written down, rejected labels too."""
    paths = (manifest, manifest.with_name(f"{manifest.stem}.rejected.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


if __name__ == "__main__":
    main()
