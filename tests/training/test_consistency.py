"""The student's prediction for a noisy clip against its own for the clean one: the loss in closed form, and what it is computed from."""

import json

import pytest
import torch
import torch.nn.functional as F

from tests.conftest import DECODER
from tests.training.test_targets_and_training import resumes_to_the_same_bits
from workbench.core.errors import UserError
from workbench.run.checkpoints import TrainingState
from workbench.training.stage import StageTrainer
from workbench.training.step.consistency import consistency_losses
from workbench.training.step.losses import StageProgress, StepSize
from workbench.training.trainer import Trainer, distill

NOISE = {"noise_probability": 1.0, "snr_db": [0, 5], "time_masks": 1, "frequency_masks": 1}


def stage(**changes):
    return {"s": {**DECODER, "weighting": {"name": "fixed", "alpha": 0.5}, "consistency": 2.0, **changes}}


def steps(run):
    return [json.loads(line) for line in (run.output / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]


class Labels:
    ids, utterance_index = ("a", "b"), torch.tensor([0, 0, 1])


def test_the_loss_is_torchs_kl_divergence_from_the_clean_prediction_and_its_gradient_q_minus_p():
    torch.manual_seed(0)
    noisy, clean = torch.randn(3, 20, requires_grad=True), torch.randn(3, 20, requires_grad=True)
    found = consistency_losses(noisy, clean, Labels)
    logs = [x.log_softmax(-1) for x in (noisy, clean)]
    by_label = F.kl_div(*logs, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(found, torch.stack([by_label[:2].mean(), by_label[2]]))
    found.sum().backward()
    shares = torch.tensor([0.5, 0.5, 1.0])[:, None]
    torch.testing.assert_close(
        noisy.grad, shares * (noisy.softmax(-1) - clean.softmax(-1)).detach(), atol=1e-6, rtol=1e-4
    )
    assert clean.grad is None


@pytest.mark.parametrize("trainable", ["decoder", "all"])
def test_the_clean_prediction_is_that_of_the_clip_without_noise_and_masks(recipe, trainable):
    run = recipe(stages=stage(trainable=trainable, micro_batches=1), augment=NOISE)
    context, datasets, validation = Trainer(run).prepare()
    state = TrainingState()
    training = StageTrainer(context, datasets, validation, 0, "s", run.stages["s"], state)
    dataset = next(datasets.epochs("s", run.stages["s"], state.progress, state.timers))
    objective = training.begin(dataset)
    batch = next(training.epochs.batches(training.plan(dataset)))[0]
    found = training.forward_backward(batch, objective, StageProgress(0.0), StepSize(len(batch.ids), 1.0))
    family, model, parts = context.family, context.model, []
    noise_free = torch.zeros_like(batch.waves)
    for row, name in zip(noise_free, batch.ids, strict=True):
        wave = torch.from_numpy(next(u for u in dataset.utterances if u.id == name).wave())
        row[: len(wave)] = wave[: len(row)]
    torch.testing.assert_close(batch.clean_waves, noise_free, atol=1e-3, rtol=0)  # int16 on disk
    with torch.no_grad():
        for audio in (training.forward_backward.audio(batch)[0], family.spectrum(batch.clean_waves)):
            states = family.encode(model, audio, batch.attention_mask)
            parts.append(family.logits(model, states, batch.tokens, batch.labelled, batch.attention_mask))
        each = consistency_losses(*parts, batch)
    assert (each > 1e-3).all()
    torch.testing.assert_close(found.terms["consistency"], each, atol=1e-4, rtol=1e-3)


def test_the_loss_of_a_step_has_the_term_with_its_factor_and_resumes_to_the_same_bits(recipe, monkeypatch):
    given = {"stages": stage(micro_batches=2), "augment": NOISE, "checkpoint_minutes": 1e-9}
    whole = resumes_to_the_same_bits(recipe, monkeypatch, **given)
    for line in steps(whole):
        plain = 0.5 * line["task"] + 0.5 * line["distillation"]
        assert line["loss"] == pytest.approx(plain + 2 * line["consistency"], rel=1e-4)
        assert line["consistency"] > 1e-3


def test_clips_without_noise_are_consistent_already(recipe):
    run = recipe(stages=stage(epochs=1), augment={"noise_probability": 1e-12})
    distill(run)
    assert all(abs(line["consistency"]) < 1e-5 for line in steps(run))


def test_it_joins_what_else_a_stage_may_learn(recipe):
    """On-policy and mixed micro-batches, layers of the teacher, a student that teaches its own early layer."""
    given = {"augment": NOISE}
    run = recipe("mixed", stages=stage(mixup={"fraction": 0.5}, epochs=4, micro_batches=1), **given)
    distill(run)
    assert all(("consistency" in line) == (line["mixed"] == 0.0) for line in steps(run))
    assert len({line["mixed"] for line in steps(run)}) == 2
    distill(recipe("layers", stages=stage(on_policy={"fraction": 0.5}, decoder_matching={}, micro_batches=1), **given))
    askd = {"name": "askd", "phase1": 0.5, "self_teacher": "intermediate"}
    early = recipe("early", stages=stage(weighting=askd), **given)
    distill(early)
    assert all(line["consistency"] > 0 for line in steps(early))


def test_consistency_without_effect_is_refused(recipe):
    for changes, given, said in (
        ({}, {}, "stages.s.consistency would have no effect: nothing in `augment`"),
        ({"mixup": {"fraction": 1.0}}, {"augment": NOISE}, "consistency would have no effect: mixup.fraction is 1"),
        ({"decoder_losses": False, "trainable": "all", "encoder_matching": 1.0}, {"augment": NOISE}, "consistency needs decoder_losses"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said) as error:
            recipe("bad", stages=stage(**changes), **given)
        assert "\n" not in str(error.value)
