"""Mixup: how clips are paired, what the student hears and which loss it gets, against the paper's sum over mixed clips."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.conftest import DECODER
from tests.training.test_engine import gradients_of_a_step
from tests.training.test_targets_and_training import resumes_to_the_same_bits
from workbench.config.additions import MixupRecipe
from workbench.config.sections import DivergenceRecipe
from workbench.core.errors import UserError
from workbench.losses.divergences import distillation
from workbench.losses.objectives import cross_entropy
from workbench.models.protocol import Tokens
from workbench.run.checkpoints import TrainingState
from workbench.training.stage import StageTrainer
from workbench.training.step.losses import StageProgress, StepSize
from workbench.training.step.mixup import Mix, draw_mix
from workbench.training.trainer import Trainer

ALWAYS = {"fraction": 1.0, "alpha": 2.0}


def stage(**changes):
    return {"s": {**DECODER, "weighting": {"name": "fixed", "alpha": 0.3}, "mixup": ALWAYS, **changes}}


def steps(run):
    return [json.loads(line) for line in (run.output / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]


def drawn(settings, clips, number):
    return draw_mix(settings, SimpleNamespace(ids=list("abcdefgh")[:clips], seed=(1, 0, number), inputs=torch.zeros(1)))


def test_every_clip_has_another_as_partner_and_is_one():
    for number in range(30):
        mix = drawn(MixupRecipe(**ALWAYS), 5, number)
        assert sorted(mix.partner.tolist()) == list(range(5))
        assert (mix.partner != torch.arange(5)).all()
        assert torch.equal(mix.partner[mix.host], torch.arange(5))
    assert drawn(MixupRecipe(**ALWAYS), 1, 0) is None
    assert drawn(MixupRecipe(**ALWAYS), 5, 3).share == drawn(MixupRecipe(**ALWAYS), 5, 3).share


def test_share_and_fraction_have_their_distributions():
    found = [drawn(MixupRecipe(fraction=0.25, alpha=0.5), 3, number) for number in range(2000)]
    shares = np.array([mix.share for mix in found if mix is not None])
    assert len(shares) == pytest.approx(500, abs=80)
    assert shares.mean() == pytest.approx(0.5, abs=0.06)
    assert shares.var() == pytest.approx(1 / 8, abs=0.025)  # of Beta(1/2, 1/2)


def test_what_is_heard_of_two_clips():
    mix = Mix(0.7, torch.tensor([1, 2, 0]), torch.tensor([2, 0, 1]))
    audio, mask = torch.randn(3, 4, 3), torch.arange(4)[None] < torch.tensor([[4], [2], [1]])
    expected = torch.stack([0.7 * audio[i] + 0.3 * audio[j] for i, j in ((0, 1), (1, 2), (2, 0))])
    features, either = mix.audio(audio, mask, encoded=False)
    torch.testing.assert_close(features, expected)
    assert either.sum(1).tolist() == [4, 2, 4]
    states, positions = mix.audio(audio, mask, encoded=True)
    assert torch.equal(positions, either)
    torch.testing.assert_close(states[0, :2], expected[0, :2])
    torch.testing.assert_close(states[0, 2:], audio[0, 2:])  # the other clip has ended
    torch.testing.assert_close(states[1, 1], audio[1, 1])
    torch.testing.assert_close(states[2, 1:], audio[0, 1:])  # its own has


@pytest.mark.parametrize("trainable", ["decoder", "all"])  # states of the frozen encoder are mixed, or features
def test_the_loss_is_the_papers_sum_over_mixed_clips(recipe, trainable):
    run = recipe(stages=stage(trainable=trainable, micro_batches=1, batch_seconds=30.0))
    trainer = Trainer(run)
    context, datasets, validation = trainer.prepare()
    state = TrainingState()
    training = StageTrainer(context, datasets, validation, 0, "s", run.stages["s"], state)
    dataset = next(datasets.epochs("s", run.stages["s"], state.progress, state.timers))
    objective = training.begin(dataset)
    batch = next(training.epochs.batches(training.plan(dataset)))[0]
    clips = len(batch.ids)
    assert clips > 2
    found = training.forward_backward(batch, objective, StageProgress(0.0), StepSize(clips, 1.0))
    mix, family, model = draw_mix(run.stages["s"].mixup, batch), context.family, context.model
    audio, encoded = training.forward_backward.audio(batch)
    assert encoded == (trainable == "decoder")
    heard, mask = mix.audio(audio, batch.attention_mask, encoded)
    spans = torch.cumsum(torch.tensor([0, *batch.label_counts.tolist()]), 0)
    total = 0.0
    with torch.no_grad():
        for clip in range(clips):
            own = heard[clip][None] if encoded else family.encode(model, heard[clip][None], mask[clip][None])
            for text, share in ((clip, mix.share), (int(mix.partner[clip]), 1 - mix.share)):
                tokens = Tokens(batch.inputs[text][None], batch.labels[text][None])
                logits = family.logits(model, own, tokens, attention_mask=mask[clip][None])
                mine = slice(spans[text], spans[text + 1])
                task = cross_entropy(logits, batch.flat_labels()[mine]).mean()
                targets = batch.targets(0)
                theirs = type(targets)(targets.ids[mine], targets.logits[mine], targets.log_normalizer[mine])
                total += share * (0.7 * task + 0.3 * distillation(logits, theirs, DivergenceRecipe(), 1.0).mean())
    torch.testing.assert_close(found.loss.detach(), total / clips, atol=1e-4, rtol=1e-4)


def test_a_mixed_step_in_parts_is_logged_and_resumes_to_the_same_bits(recipe, monkeypatch):
    given = {"stages": stage(mixup={"fraction": 0.5}, micro_batches=2, batch_seconds=12.0, epochs=3,
                             on_policy={"fraction": 0.3}), "checkpoint_minutes": 1e-9}  # fmt: skip
    whole = resumes_to_the_same_bits(recipe, monkeypatch, **given)
    lines = steps(whole)
    assert all(0 <= line["mixed"] <= 1 and line["mixed"] + line["on_policy"] <= 1 for line in lines)
    assert len({line["mixed"] for line in lines}) > 1


def test_checkpointed_activations_change_nothing(recipe, monkeypatch):
    found = [
        gradients_of_a_step(
            recipe(f"c-{on}", stages=stage(trainable="all", micro_batches=1, activation_checkpointing=on)), monkeypatch
        )
        for on in (False, True)
    ]
    for kept, recomputed in zip(*found, strict=True):
        torch.testing.assert_close(kept, recomputed, atol=1e-6, rtol=1e-4)


def test_mixup_that_has_no_effect_or_cannot_work_is_refused(recipe):
    for changes, said in (
        ({"mixup": {"fractoin": 1}}, "did you mean 'fraction'"),
        ({"encoder_matching": 1.0}, "mixup cannot be combined with encoder_matching"),
        ({"decoder_matching": {}}, "mixup cannot be combined with encoder_matching or decoder_matching"),
        ({"on_policy": {"fraction": 1.0}}, "mixup would have no effect: on_policy.fraction is 1"),
        ({"decoder_losses": False, "trainable": "all", "encoder_matching": 1.0}, "mixup needs decoder_losses"),
    ):
        with pytest.raises(UserError, match=said) as error:
            recipe("bad", stages=stage(**changes))
        assert "\n" not in str(error.value)
