"""Check that the tests of the methods fail where a formula is wrong: each mutation is applied to a copy of the code, and its tests run.

    python scripts/mutations.py [NAME ...]

Exit status 1 if the tests pass in spite of a mutation, or fail without one.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
COPIED = ("workbench", "export", "demo", "tests", "docs", "pyproject.toml")


@dataclass(frozen=True)
class Mutation:
    """A wrong formula."""

    file: str
    right: str  # stands in the file once
    wrong: str
    tests: tuple[str, ...]  # of which at least one must fail


MUTATIONS = {
    "look-ahead: sign of the task residual": Mutation(
        "workbench/training/step/meta_batches.py", "labels] -= 1", "labels] += 1", ("tests/weighting/test_probe.py",)
    ),
    "look-ahead: weight of the validation labels": Mutation(
        "workbench/weighting/meta_gradients.py",
        "return 1.0 / (counts[utterance_index] * utterances)",
        "return 1.0 / (counts[utterance_index] * utterances) ** 0.5",
        ("tests/weighting/test_look_ahead.py", "tests/weighting/test_probe.py"),
    ),
    "look-ahead: ascent instead of descent": Mutation(
        "workbench/weighting/systems/almkd.py", "alpha = alpha - step / teachers", "alpha = alpha + step / teachers",
        ("tests/weighting/test_look_ahead.py",),
    ),
    "ASKD: phase 2 goes on with the cached teacher": Mutation(
        "workbench/training/forward_backward.py",
        "            if self_teaching and self.self_teacher is not None and logits is not None:",
        "            if False and self_teaching and self.self_teacher is not None and logits is not None:",
        ("tests/weighting/test_systems.py", "tests/weighting/test_weighting_in_training.py"),
    ),
    "AdaKD: the student's loss instead of the teacher's": Mutation(
        "workbench/training/step/losses.py", "teacher_loss=batch.teacher_loss[0],\n        progress", "teacher_loss=task.detach(),\n        progress",
        ("tests/weighting/test_weighting_in_training.py", "tests/weighting/test_systems.py"),
    ),
    "AdaKD: easy and hard exchanged": Mutation(
        "workbench/weighting/systems/adakd.py", "self.settings.k1 - self.settings.k0", "self.settings.k0 - self.settings.k1",
        ("tests/weighting/test_weighting.py",),
    ),
    "conditional: the teacher where it is wrong": Mutation(
        "workbench/weighting/systems/conditional.py", "Weights(1 - right, right, by_token=True)", "Weights(right, 1 - right, by_token=True)",
        ("tests/weighting/test_weighting.py",),
    ),
    "on-policy: the teacher's logits shifted by a token": Mutation(
        "workbench/training/teaching/on_policy.py",
        "return own, SoftTargets.full(logits, 1.0)",
        "return own, SoftTargets.full(logits.roll(1, 0), 1.0)",
        ("tests/weighting/test_systems.py", "tests/training/test_engine.py"),
    ),
    "self-teacher: its decay": Mutation(
        "workbench/training/teaching/self_teacher.py", "mine.lerp_(theirs, 1 - decay)", "mine.lerp_(theirs, decay)",
        ("tests/weighting/test_systems.py", "tests/training/test_ema.py"),
    ),
    "permuted weights: an utterance keeps its own": Mutation(
        "workbench/weighting/controls.py", "order[cycle] = np.roll(cycle, 1)", "order[cycle] = cycle", ("tests/weighting/test_controls.py",)
    ),
    "matched gradients: the inverse ratio": Mutation(
        "workbench/losses/divergences.py", "norms[0] / norms[1].clamp(min=SMALLEST)", "norms[1] / norms[0].clamp(min=SMALLEST)",
        ("tests/losses/test_divergences.py",),
    ),
    "meta split: a weighting that looks ahead trains on it": Mutation(
        "workbench/corpus/sources.py", "meta=not recipe.looks_ahead,", "meta=True,",
        ("tests/weighting/test_weighting_in_training.py",),
    ),
    "bootstrap: clips are drawn instead of speakers": Mutation(
        "workbench/evaluation/comparison.py", "return np.bincount(speaker, values)", "return values",
        ("tests/study/test_comparisons.py",),
    ),
    "decoder matching: states are not normalised": Mutation(
        "workbench/losses/layer_matching.py", "F.layer_norm(states.float(), width)", "states.float()",
        ("tests/losses/test_layer_matching.py",),
    ),
    "mixup: the weights of the two clips exchanged": Mutation(
        "workbench/training/step/mixup.py", "share * own + (1 - share) * hosted", "(1 - share) * own + share * hosted",
        ("tests/training/test_mixup.py",),
    ),
    "rounded training: the plain weights' gradient": Mutation(
        "workbench/training/optimizer_step.py", "with self.quantization.applied():", "if True:", ("tests/training/test_quantization.py",)
    ),
    "rounded training: the rounded weights are moved": Mutation(
        "workbench/training/quantization.py", "            self._fill(kept)", "            pass", ("tests/training/test_quantization.py",)
    ),
    "rounded training: no gradient through rounded inputs": Mutation(
        "workbench/training/quantization.py", "return found + (values - values.detach()) if values.requires_grad else found", "return found",
        ("tests/training/test_quantization.py",),
    ),
    "rounded training: plain weights are validated": Mutation(
        "workbench/training/validation.py", "with quantization.applied():", "if True:", ("tests/training/test_quantization.py",)
    ),
    "rounding: scales of joined matrices stay in fp32": Mutation(
        "workbench/models/whisper/exported.py", "joined = 1 if name == \"out_proj\" else 3", "joined = 1", ("tests/models/test_quantization.py",)
    ),
    "rounding: halves to even": Mutation(
        "workbench/models/quantization.py", "return whole + (values - whole >= 0.5)", "return values.round()", ("tests/models/test_quantization.py",)
    ),
    "rounding: inputs of a decoder have the clip's range": Mutation(
        "workbench/models/quantization.py", "axes = (-1,) if by_row else (-2, -1)", "axes = (-2, -1)", ("tests/models/test_quantization.py",)
    ),
    "rounding: a norm's bias does not count": Mutation(
        "workbench/training/quantization.py", "importance = gain**2 + bias**2", "importance = gain**2",
        ("tests/models/test_quantization.py",),
    ),
}  # fmt: skip


def run(folder: Path, tests: Collection[str]) -> subprocess.CompletedProcess[str]:
    """Run test files of a copy of the code, until one fails."""
    command = [sys.executable, "-B", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *sorted(tests)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def main() -> int:
    """Apply each mutation in turn; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"part of a mutation's name; all by default: {'; '.join(MUTATIONS)}"
    )
    wanted = parser.parse_args().names
    chosen = {name: m for name, m in MUTATIONS.items() if not wanted or any(part in name for part in wanted)}
    status = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__", "node_modules"))
            else:
                shutil.copy(source, copy / name)
        if run(copy, {test for mutation in chosen.values() for test in mutation.tests}).returncode:
            print("the tests fail without a mutation: mend that first")
            return 1
        for name, mutation in chosen.items():
            path = copy / mutation.file
            text = path.read_text(encoding="utf-8")
            if text.count(mutation.right) != 1:
                print(
                    f"{name}: {mutation.file} holds {mutation.right!r} {text.count(mutation.right)} times; expected once"
                )
                status = 1
                continue
            path.write_text(text.replace(mutation.right, mutation.wrong), encoding="utf-8")
            done = run(copy, mutation.tests)
            path.write_text(text, encoding="utf-8")
            failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
            found = done.returncode == 1 and any(line.startswith("FAILED") for line in failed)
            print(f"{name}: {'found by ' + failed[0].split(' ')[1] if found else 'NOT FOUND'}", flush=True)
            status = status if found else 1
    return status


if __name__ == "__main__":
    sys.exit(main())
