"""What the look-ahead is given by a student in training: gradients of the loss that training takes, mixed validation clips."""

from dataclasses import replace
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F

from tests.conftest import DECODER
from tests.training.test_targets_and_training import killed_at
from workbench.losses.objectives import per_utterance
from workbench.models.whisper.family import Whisper
from workbench.run.checkpoints import TrainingProgress, TrainingState
from workbench.training.stage import StageTrainer
from workbench.training.step.losses import StageProgress, StepSize, step_losses
from workbench.training.step.meta_batches import StudentMetaBatches, _groups
from workbench.training.trainer import Trainer, distill
from workbench.weighting import Weighting, Weights
from workbench.weighting.meta_gradients import outer_gradients


class Given(Weighting):
    """Weights that autograd can differentiate by."""

    def __init__(self, weights):
        self.weights = weights

    def __call__(self, _):
        return Weights(self.weights[0], self.weights[1])


@pytest.fixture
def probing(recipe):
    """Factory of a probe of the tiny student, with its stage and the training micro-batches."""

    def make(**changes):
        stage = {**DECODER, "divergence": {"name": "jsd"}, "weighting": {"name": "almkd", "start_epoch": 0}, **changes}
        parsed = recipe(stages={"decoder": stage})
        context, datasets, validation = Trainer(parsed).prepare()
        state = TrainingState(TrainingProgress(micro_batches=1))
        trainer = StageTrainer(context, datasets, validation, 0, "decoder", parsed.stages["decoder"], state)
        dataset = next(datasets.epochs("decoder", trainer.stage, state.progress, state.timers))
        objective = trainer.begin(dataset)
        batches = [batch for step in trainer.epochs.batches(trainer.plan(dataset)) for batch in step]
        probe = StudentMetaBatches(
            context.model,
            context.family,
            batches,
            trainer.forward_backward.audio,
            trainer.clips,
            objective,
            StageProgress(0.3),
            1e-3,
            dict,
        )
        return probe, objective, batches

    return make


@pytest.mark.parametrize("average_over", ["utterances", "tokens"])
@pytest.mark.parametrize("whole", [False, True])
def test_the_look_ahead_is_a_step_on_the_loss_that_training_takes(probing, monkeypatch, average_over, whole):
    monkeypatch.setattr(
        "workbench.training.step.meta_batches.VALIDATION_LABELS", 60
    )  # so that there are several groups
    probe, objective, batches = probing(average_over=average_over)
    groups = list(_groups(probe.validation, probe.family))
    assert len(groups) > 1
    found, outer = next(iter(probe.pairs(whole)))
    batch = batches[0]
    utterances = len(batch.ids)
    weights = torch.rand(2, utterances, requires_grad=True)
    theta = probe.model.proj_out.weight.detach().clone().requires_grad_()
    size = StepSize(float(utterances), float(batch.label_counts.sum()))
    states, logits = torch.zeros(utterances, 1, 1), found.hidden @ theta.t()
    loss = step_losses(
        states, logits, batch, replace(objective, weighting=Given(weights)), StageProgress(0.3), size
    ).loss
    (step,) = torch.autograd.grad(loss, theta, create_graph=True)
    held = [part.hidden @ (theta - 0.5 * step).t() for part in outer]
    losses = F.cross_entropy(torch.cat(held), torch.cat([part.labels for part in outer]), reduction="none")
    if average_over == "tokens":
        validation = losses.mean()
    else:
        clips = [probe.validation.utterances[i] for group in (groups if whole else groups[:1]) for i in group]
        counts = torch.tensor([int((probe.family.tokens([u.text], [u.language]).labels >= 0).sum()) for u in clips])
        utterance_index = torch.repeat_interleave(torch.arange(len(clips)), counts)
        validation = per_utterance(losses, utterance_index, len(clips)).mean()
    (expected,) = torch.autograd.grad(validation, weights)
    assert expected.abs().max() > 1e-5
    torch.testing.assert_close(
        outer_gradients(found, outer, weights.detach(), 0.5),
        expected,
        rtol=1e-3,
        atol=1e-3 * float(expected.abs().max()),
    )


def test_validation_batches_mix_clips_of_all_lengths(tiny_checkpoint):
    """Ids in the order of the clips' lengths, as corpora that group their one-word clips have them."""
    texts = ["no"] * 60 + ["turn the lights in the kitchen on please"] * 60
    clips = [SimpleNamespace(id=f"{i:03d}", text=text, language="en") for i, text in enumerate(texts)]
    groups = list(_groups(SimpleNamespace(utterances=clips), Whisper(tiny_checkpoint)))
    assert len(groups) > 10
    assert sorted(i for group in groups for i in group) == list(range(120))
    short = [sum(i < 60 for i in group) / len(group) for group in groups if len(group) > 3]
    assert sum(0 < share < 1 for share in short) >= 0.8 * len(short)
    backwards = SimpleNamespace(utterances=clips[::-1])
    again = [[119 - i for i in group] for group in _groups(backwards, Whisper(tiny_checkpoint))]
    assert again == groups  # whatever order the corpus has


def test_first_weights_of_almkd_follow_the_runs_seed_and_survive_a_kill(recipe, monkeypatch):
    almkd = {"name": "almkd", "start_epoch": 1, "update_every": 1, "steps_per_update": 1, "weight_learning_rate": 0.01}
    found = {}
    for name, seed in (("one", 1), ("killed", 1), ("two", 2)):
        run = recipe(name, seed=seed, checkpoint_minutes=1e-9, stages={"decoder": {**DECODER, "weighting": almkd}})
        if name == "killed":
            with killed_at(monkeypatch, 2):
                distill(run)
        distill(run)
        rows = pq.read_table(run.output / "weights.parquet").to_pylist()
        found[name] = {row["id"]: row["alpha"] for row in reversed(rows)}  # of the first time that each was trained on
    assert found["one"] == found["killed"]
    assert all(abs(found["one"][name] - found["two"][name]) > 1e-3 for name in found["one"])
