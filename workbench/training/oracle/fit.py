"""How an oracle teacher (models/ctc/oracle.py) is trained on stored encoder states and their transcripts, and measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from workbench.cache.labelled_dataset import LabelledDataset
from workbench.cache.tensor_shards import ShardStore
from workbench.config.additions import OracleTeacherRecipe
from workbench.core.atomic import atomic_path
from workbench.core.disk import disk_errors
from workbench.core.errors import UserError
from workbench.core.progress import Progress
from workbench.corpus.batching import StepPlan
from workbench.losses.criterion import Predictions, criterion_of
from workbench.losses.objectives import per_utterance
from workbench.models import Family
from workbench.models.ctc.oracle import OracleTeacher
from workbench.run import checkpoints
from workbench.training.epochs import schedule

TRAINING = "training"  # name of the file of its last whole epoch, without the ending
WARMUP_RATIO, MAX_GRAD_NORM = 0.05, 1.0
CHECKED_CLIPS = 64  # on which it is measured whether the teacher listens


@dataclass(frozen=True)
class Clips:
    """What an oracle teacher is trained on."""

    family: Family
    dataset: LabelledDataset
    store: ShardStore  # the encoder's states of each clip, by its key
    device: torch.device

    def batch(self, clips: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Some clips' states [clips, positions, width], which positions they have, bool [clips, positions], and labels, int64 [clips, tokens]."""
        found = [self.store.read(self.dataset.keys[i], ["states"])[0].float() for i in clips]
        states = torch.nn.utils.rnn.pad_sequence(found, batch_first=True)
        lengths = torch.tensor([len(own) for own in found])
        there = torch.arange(states.shape[1]) < lengths[:, None]
        utterances = [self.dataset.utterances[i] for i in clips]
        labels = self.family.tokens([u.text for u in utterances], [u.language for u in utterances]).labels
        return states.to(self.device), there.to(self.device), labels.to(self.device)


def oracle_losses(
    oracle: OracleTeacher,
    family: Family,
    states: Tensor,
    there: Tensor,
    labels: Tensor,
    hidden: Tensor | None = None,
) -> Tensor:
    """CTC loss per token of each clip.

    Args:
        oracle: the teacher.
        family: the student's.
        states: the encoder's [clips, positions, width].
        there: positions that a clip has, bool [clips, positions].
        labels: transcripts, int64 [clips, tokens], negative where there is none.
        hidden: tokens that the teacher is not shown, bool [clips, tokens].

    Returns:
        fp32 [clips].
    """
    logits = oracle(states, labels, hidden)[there]  # [positions of all clips, vocabulary]
    index = there.nonzero()[:, 0]
    by_frame = criterion_of(family).task(logits, Predictions(labels, torch.full_like(index, -1), index))
    return per_utterance(by_frame, index, len(labels))


def train_oracle(
    oracle: OracleTeacher,
    clips: Clips,
    plan: Sequence[Sequence[StepPlan]],
    settings: OracleTeacherRecipe,
    seed: Sequence[int],
    folder: Path,
) -> None:
    """Train it with AdamW on the mean of its clips' losses; what was interrupted is resumed from its last whole epoch.

    Args:
        oracle: the teacher, on the device, as it begins.
        clips: what it learns.
        plan: the steps of each of its epochs.
        settings: learning rate, and how much of the text is hidden.
        seed: of what is hidden.
        folder: where the file of its last epoch is.
    """
    optimizer = torch.optim.AdamW(oracle.parameters(), lr=settings.learning_rate, weight_decay=0.0)
    names: dict[Tensor, str] = {parameter: name for name, parameter in oracle.named_parameters()}
    begun = _resumed(oracle, optimizer, names, folder)
    total, step = sum(map(len, plan)), sum(map(len, plan[:begun]))
    with Progress("oracle teacher", total, done=step) as progress:
        for epoch in range(begun, len(plan)):
            for planned in plan[epoch]:
                states, there, labels = clips.batch(planned.clips)
                draw = np.random.default_rng([*seed, epoch, planned.number, 6]).random(labels.shape)
                hidden = torch.from_numpy(draw < settings.hidden_text).to(labels.device)
                oracle_losses(oracle, clips.family, states, there, labels, hidden).mean().backward()
                torch.nn.utils.clip_grad_norm_(oracle.parameters(), MAX_GRAD_NORM)
                for group in optimizer.param_groups:
                    group["lr"] = settings.learning_rate * schedule(step, total, WARMUP_RATIO)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                step += 1
                progress.advance(1)
            moments = checkpoints.optimizer_tensors(optimizer, names)
            write_tensors(folder, TRAINING, {**oracle.state_dict(), **moments, "epoch": torch.tensor(epoch + 1)})


def _resumed(oracle: OracleTeacher, optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str], folder: Path) -> int:
    """Restore the last whole epoch of an interrupted training; returns how many epochs are done."""
    if not (folder / f"{TRAINING}.safetensors").is_file():
        return 0
    saved = checkpoints.load_tensors(folder, TRAINING)
    done = int(saved.pop("epoch"))
    moments = {name: saved.pop(name) for name in list(saved) if "::" in name}
    checkpoints.restore_moments(moments, optimizer, names, fused=False)
    load_oracle(oracle, saved, folder)
    return done


def load_oracle(oracle: OracleTeacher, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Take over weights that were written before; raises UserError for those of another student."""
    try:
        oracle.load_state_dict(dict(tensors))
    except RuntimeError:
        raise UserError(
            f"{folder}: holds the oracle teacher of another student; run the command with --restart"
        ) from None


def write_tensors(folder: Path, name: str, tensors: Mapping[str, Tensor]) -> None:
    """Write a file of tensors, whole or not at all; raises UserError where the disk is full."""
    from safetensors.torch import save_file

    path = folder / f"{name}.safetensors"
    with disk_errors(path), atomic_path(path) as temporary:
        save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, temporary)


@torch.no_grad()
def measured(oracle: OracleTeacher, clips: Clips) -> dict[str, float | None]:
    """Loss per token of some clips: with their transcripts, without them, and with the transcripts on another clip's speech.

    A teacher that listens has a high loss on another clip's speech; one that copies the text has the same. That loss is None where no
    transcript fits into another clip.
    """
    utterances = clips.dataset.utterances
    order = sorted(range(len(utterances)), key=lambda i: (utterances[i].seconds, utterances[i].id))
    chosen = order[:: -(-len(order) // CHECKED_CLIPS)]
    found: list[list[float]] = []
    for own, other in zip(chosen, [*chosen[1:], chosen[0]], strict=True):
        states, there, labels = clips.batch([own])
        everything = torch.ones_like(labels, dtype=torch.bool)
        elsewhere, its, _ = clips.batch([other])
        losses = (
            oracle_losses(oracle, clips.family, states, there, labels),
            oracle_losses(oracle, clips.family, states, there, labels, everything),
            oracle_losses(oracle, clips.family, elsewhere, its, labels),
        )
        found.append([float(loss) for loss in losses])
    # a text that needs more frames than the other speech has cannot be aligned there, and has the loss 0
    loss, without, swapped = np.array(found).T
    fits = swapped > 0 if len(chosen) > 1 else np.zeros(1, bool)
    return {
        "loss": round(float(loss.mean()), 4),
        "loss_without_text": round(float(without.mean()), 4),
        "loss_on_other_speech": round(float(swapped[fits].mean()), 4) if fits.any() else None,
    }
