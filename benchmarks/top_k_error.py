"""How much of the divergence the teacher's k largest logits keep, against its full logits.

    python benchmarks/top_k_error.py --json FILE --student FOLDER

The KL from k logits with the rest as one bucket is a lower bound of the full one. Measured per utterance on the validation
split, teacher against a student (by default the teacher with two of its decoder layers, untrained: far from it).
"""

from __future__ import annotations

from typing import Any

import torch
from common import arguments, finish

from workbench.config.sections import StudentRecipe
from workbench.corpus import open_corpus
from workbench.losses.objectives import forward_kl, forward_kl_top_k, per_utterance
from workbench.models import open_family
from workbench.models.protocol import IGNORE_INDEX
from workbench.models.resolve import resolve_teacher
from workbench.models.whisper.students import build_student

SIZES = (4, 8, 16, 32, 64, 128)


@torch.no_grad()
def main() -> None:
    """Compare on the validation split."""
    args = arguments(__doc__, clips=(40, "clips"), student=("", "folder of a student"), temperature=(1.0, "tau"))
    family = open_family(resolve_teacher("whisper-base"))
    teacher = family.load()
    if args.student:
        from pathlib import Path

        student = open_family(Path(args.student)).load()
    else:
        student = build_student(teacher, StudentRecipe(decoder_layers=2))
    runs: list[dict[str, Any]] = []
    for clip in open_corpus("prompts-en", "validation", args.clips):
        states = family.encode(teacher, family.features([clip.wave()], 30.0))
        tokens = family.tokens([clip.text], [clip.language])
        theirs = family.logits(teacher, states, tokens)
        logits = family.logits(student, states, tokens)
        utterance_index = torch.zeros(int((tokens.labels != IGNORE_INDEX).sum()), dtype=torch.int64)
        tau = args.temperature
        full = float(per_utterance(forward_kl(logits, theirs, tau), utterance_index, 1))
        row: dict[str, Any] = {"clip": clip.id, "full": full}
        for k in SIZES:
            top = theirs.topk(k, -1)
            kept = forward_kl_top_k(logits, top.indices, top.values, (theirs / tau).logsumexp(-1), tau)
            row[f"k{k}"] = float(per_utterance(kept, utterance_index, 1))
        runs.append(row)
    total = sum(row["full"] for row in runs)
    figures = {f"kl_missing_percent_k{k}": 100 * (1 - sum(r[f"k{k}"] for r in runs) / total) for k in SIZES}
    finish(args.json, figures, runs)


if __name__ == "__main__":
    main()
