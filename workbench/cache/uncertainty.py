"""How unsure the teacher is of each utterance: its decoder run several times with dropout (Gal and Ghahramani 2016).

The uncertainty of a label is the mutual information between the prediction and the dropout mask, H(mean p) - mean H(p), in
nats (BALD, Houlsby et al. 2011); an utterance's is the mean over its labels. The encoder runs once, without dropout, because
Whisper's base checkpoints were trained without any: noise in it would mostly measure that. Both are our interpretation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from workbench.cache.checksums import line_with_checksum, read_checked_rows
from workbench.cache.labelled_dataset import LabelledDataset
from workbench.cache.teacher_targets import TargetSettings
from workbench.core.hashing import cache_folder
from workbench.models.protocol import Family, Tokens

MC_PASSES, DROPOUT_RATE = 8, 0.1  # passes of the decoder, and their dropout


@torch.no_grad()
def measure_uncertainty(
    model: nn.Module,
    family: Family,
    dataset: LabelledDataset,
    settings: TargetSettings,
    rank: int = 0,
    world_size: int = 1,
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, float]:
    """Uncertainty of this rank's utterances by id; what was measured before is read from the cache.

    Args:
        model: the teacher, on its device.
        family: its features and tokens.
        dataset: the utterances.
        settings: the targets' settings, of which only the teacher and the precision matter.
        rank: number of this process.
        world_size: how many processes there are.
        progress: called with the number of utterances done.
    """
    # for teachers that read 30 s, older values stay valid
    own = [] if settings.trained_silence is None else [settings.trained_silence]
    folder = cache_folder("uncertainty", [settings.teacher, settings.precision, MC_PASSES, DROPOUT_RATE, *own])
    known: dict[str, float] = {}
    for path in folder.glob("*.jsonl"):
        known.update((row["key"], row["value"]) for row in read_checked_rows(path))
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, float] = {}
    device = next(model.parameters()).device
    with (folder / f"{rank:03d}.jsonl").open("a", encoding="utf-8") as file:
        for utterance, key in list(zip(dataset.utterances, dataset.keys, strict=True))[rank::world_size]:
            if key not in known:
                tokens = family.tokens([utterance.text], [utterance.language]).to(device)
                wave = [utterance.wave()]
                states = family.encode(model, family.features(wave, family.input_seconds(wave), device))
                known[key] = float(
                    mutual_information(mc_dropout_log_probs(model, family, states, tokens, int(key[:12], 16))).mean()
                )
                file.write(
                    "\n" + line_with_checksum({"key": key, "value": known[key]})
                )  # a kill may have cut the last line short
                file.flush()
            found[utterance.id] = known[key]
            progress(1)
    return found


def mc_dropout_log_probs(model: nn.Module, family: Family, states: Tensor, tokens: Tokens, seed: int) -> Tensor:
    """Log-probabilities under different dropout masks. -> [samples, labels, vocabulary]"""
    torch.manual_seed(seed % 2**31)
    with family.decoder_dropout(model, DROPOUT_RATE):
        rows = [family.logits(model, states, tokens).float().log_softmax(-1) for _ in range(MC_PASSES)]
    return torch.stack(rows)


def mutual_information(log_p: Tensor) -> Tensor:
    """H(mean p) - mean H(p) of each label, at least 0. [samples, labels, vocabulary] -> [labels]"""
    p = log_p.exp()
    mean = p.mean(0)
    return (_entropy(mean, mean.clamp(min=1e-30).log()) - _entropy(p, log_p.clamp(min=-69)).mean(0)).clamp(min=0)


def _entropy(p: Tensor, log_p: Tensor) -> Tensor:
    return -(p * log_p).sum(-1)
