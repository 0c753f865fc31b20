"""The loss of an earlier encoder layer of a CTC student: what it is computed from, its gradient, what a step makes of it, and what is refused."""

import json

import pytest
import torch
import torch.nn.functional as F

from tests.models.ctc_checkpoints import KINDS
from tests.training.conftest import ALL, FROM_LABELS
from tests.training.test_targets_and_training import resumes_to_the_same_bits
from workbench.config.sections import StudentRecipe
from workbench.core.errors import UserError
from workbench.models import open_family
from workbench.run.checkpoints import TrainingState
from workbench.training.stage import StageTrainer
from workbench.training.step.losses import StageProgress, StepSize
from workbench.training.trainer import Trainer, distill

WHISPER = "whisper"
LABELS = {"name": "fixed", "alpha": 0}


@pytest.fixture
def student_of(ctc, over_whisper):
    """Factory of recipes whose student has three layers of a model of some kind, and one stage."""

    def make(kind, name="run", **stage):
        stages = {"all": {**ALL, **stage}}
        if kind == WHISPER:
            return over_whisper(name, stages=stages, student={"encoder_layers": "all"})
        return ctc(name, kind, stage, student={"encoder_layers": "all"})

    return make


def first_batch(run):
    """A stage that is about to begin, its first micro-batch and its losses."""
    context, datasets, validation = Trainer(run).prepare()
    (name, stage), state = next(iter(run.stages.items())), TrainingState()
    training = StageTrainer(context, datasets, validation, 0, name, stage, state)
    dataset = next(datasets.epochs(name, stage, state.progress, state.timers))
    objective = training.begin(dataset)
    return training, next(training.epochs.batches(training.plan(dataset)))[0], objective


def logits_of(family, model, batch):
    states = family.encode(model, family.spectrum(batch.waves, batch.samples, batch.heard), batch.attention_mask)
    return family.logits(model, states, batch.tokens, batch.labelled, batch.attention_mask)


def torchs_ctc(logits, batch, blank):
    """Loss per token of each utterance, by torch."""
    lengths = batch.attention_mask.sum(1)
    rows = torch.nn.utils.rnn.pad_sequence(list(torch.split(logits.log_softmax(-1), lengths.tolist())))
    counts = (batch.labels >= 0).sum(1)
    return F.ctc_loss(rows, batch.labels.clamp(min=0), lengths, counts, blank, reduction="none") / counts


def kl_to(last, early, batch, blank, blank_weight):
    """KL(last || early) of each utterance, each frame weighed by how sure both are of the blank."""
    log_p, log_q = last.detach().log_softmax(-1), early.log_softmax(-1)
    each = (log_p.exp() * (log_p - log_q)).sum(-1)
    weights = 1 - (1 - blank_weight) * (log_p.exp() * log_q.exp().detach())[:, blank]
    pairs = zip(*(torch.split(x, batch.attention_mask.sum(1).tolist()) for x in (each, weights)), strict=True)
    return torch.stack([(w * x).sum() / w.sum() for x, w in pairs])


@pytest.mark.parametrize("average_over", ["utterances", "tokens"])
@pytest.mark.parametrize("target", ["labels", "self"])
@pytest.mark.parametrize("kind", [*KINDS, WHISPER])
def test_loss_and_gradient_are_those_of_a_student_cut_after_the_layer(student_of, kind, target, average_over):
    """The earlier layer's predictions are those of the student without its later layers, which has the same norm and head."""
    settings = {"layer": 1, "weight": 0.3, "target": target}
    run = student_of(kind, weighting=LABELS, intermediate_ctc=settings, divergence={"blank_weight": 0.4}, average_over=average_over, micro_batches=1)  # fmt: skip
    training, batch, objective = first_batch(run)
    family, model = training.context.family, training.context.model
    cut = family.build_student(model, StudentRecipe(encoder_layers=[0, 1]))
    for name, parameter in cut.named_parameters():
        parameter.requires_grad_(family.part_of(name) != "constant")
    last, early = logits_of(family, model, batch), logits_of(family, cut, batch)
    each = torchs_ctc(early, batch, family.blank) if target == "labels" else kl_to(last, early, batch, family.blank, 0.4)  # fmt: skip
    shares = torch.full((len(batch.ids),), 1 / len(batch.ids)) if average_over == "utterances" else batch.label_counts / batch.label_counts.sum()  # fmt: skip
    task = (shares * torchs_ctc(last, batch, family.blank)).sum()
    expected = 0.7 * task + 0.3 * (shares * each).sum()
    expected.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    gradients |= {name: gradients[name] + p.grad for name, p in cut.named_parameters() if p.grad is not None}
    model.zero_grad()
    size = StepSize(float(len(batch.ids)), float(batch.label_counts.sum()))
    found = training.forward_backward(batch, objective, StageProgress(0.0), size)
    torch.testing.assert_close(found.terms["intermediate_ctc"], each.detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.loss.detach(), expected.detach(), rtol=1e-4, atol=1e-4)
    own = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert own.keys() == gradients.keys()
    largest = max(float(g.abs().max()) for g in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(own[name], gradient, rtol=1e-3, atol=1e-4 * largest, msg=name)


@pytest.mark.parametrize("kind", ["wav2vec2-layer", "wavlm", WHISPER])
def test_activation_checkpointing_changes_no_gradient(student_of, kind):
    found = []
    for checkpointing in (False, True):
        run = student_of(kind, f"{checkpointing}", weighting=LABELS, intermediate_ctc={"layer": 0, "weight": 0.6}, activation_checkpointing=checkpointing, micro_batches=1)  # fmt: skip
        training, batch, objective = first_batch(run)
        training.forward_backward(batch, objective, StageProgress(0.0), StepSize(1.0, 1.0))
        found.append({n: p.grad for n, p in training.context.model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-3, atol=1e-3, msg=name)


@pytest.mark.parametrize("target", ["labels", "self"])
def test_a_step_has_the_loss_with_its_weight_and_resumes_to_the_same_bits(ctc, monkeypatch, target):
    stage = {"weighting": {"name": "fixed", "alpha": 0.4}, "micro_batches": 2, "intermediate_ctc": {"layer": 0, "weight": 0.25, "target": target}}  # fmt: skip

    def make(name, **changes):
        return ctc(name, stage=stage, **changes)

    whole = resumes_to_the_same_bits(make, monkeypatch, checkpoint_minutes=1e-9)
    rows = [json.loads(line) for line in (whole.output / "metrics.jsonl").read_text().splitlines()]
    lines = [row for row in rows if "loss" in row]
    assert len(lines) >= 4
    for line in lines:
        last = 0.6 * line["task"] + 0.4 * line["distillation"]
        assert line["loss"] == pytest.approx(0.75 * last + 0.25 * line["intermediate_ctc"], rel=1e-4)
        assert line["intermediate_ctc"] > 0


@pytest.mark.parametrize("kind", ["hubert", WHISPER])
def test_the_saved_student_has_no_other_weights(student_of, kind):
    students = [
        distill(student_of(kind, name, weighting=LABELS, epochs=1, **given))
        for name, given in (("with", {"intermediate_ctc": {"layer": 0}}), ("without", {}))
    ]
    found, plain = (open_family(folder).load().state_dict() for folder in students)
    assert {n: v.shape for n, v in found.items()} == {n: v.shape for n, v in plain.items()}
    assert any(not torch.equal(found[name], plain[name]) for name in plain)
    configs = [json.loads((folder / "config.json").read_text()) for folder in students]
    assert configs[0] == configs[1]


def test_it_joins_what_else_a_ctc_student_may_learn(ctc, over_whisper):
    """A student that teaches itself, one that looks ahead, noise, an encoder alone."""
    inter = {"intermediate_ctc": {"layer": 0, "target": "self"}, "epochs": 2}
    askd = {"weighting": {"name": "askd", "phase1": 0.5}}
    noise = {"augment": {"noise_probability": 1.0}}
    runs = [
        ctc("askd", stage={**inter, **askd, "consistency": 0.5}, **noise),
        ctc("almkd", stage={**inter, "weighting": {"name": "almkd", "start_epoch": 0, "update_every": 1}}),
        over_whisper("encoder", stages={"encoder": {**FROM_LABELS, **inter, "trainable": "encoder"}}),
    ]
    for run in runs:
        distill(run)
        rows = [json.loads(line) for line in (run.output / "metrics.jsonl").read_text().splitlines()]
        assert all(row["intermediate_ctc"] > 0 for row in rows if "loss" in row)


def test_what_cannot_be_is_said_before_training(ctc, over_whisper, recipe):
    from tests.conftest import DECODER

    inter = {"intermediate_ctc": {"layer": 0}}
    cases = [
        (lambda: distill(ctc(stage={"intermediate_ctc": {"layer": 1}})), "layer is 1; expected 0 to 0: the student has 2 encoder layers"),
        (lambda: distill(ctc(stage=inter, student={"encoder_layers": 1})), "it has a single encoder layer"),
        (lambda: distill(over_whisper(stages={"c": {**FROM_LABELS, "intermediate_ctc": {"layer": 7}}})), "layer is 7; expected 0 to 0"),
        (lambda: distill(recipe(stages={"d": {**DECODER, **inter, "trainable": "all"}})), "intermediate_ctc needs a student with a CTC head"),
        (lambda: distill(ctc(stage=inter, compile=True)), "cannot be compiled for this student"),
        (lambda: ctc(stage={**inter, "trainable": "decoder"}), "intermediate_ctc needs trainable: encoder or all"),
        (lambda: ctc(stage={**inter, "decoder_losses": False, "encoder_matching": 1.0}), "intermediate_ctc needs decoder_losses: true"),
        (lambda: ctc(stage={"intermediate_ctc": {"layer": -1}}), "intermediate_ctc.layer is -1"),
        (lambda: ctc(stage={"intermediate_ctc": {"layer": 0, "weight": 1.0}}), "intermediate_ctc.weight is 1.0"),
        (lambda: ctc(stage={"intermediate_ctc": {}}), "intermediate_ctc.layer' is missing"),
        (lambda: ctc(stage={"intermediate_ctc": {"layer": 0, "wieght": 0.5}}), "did you mean 'weight'"),
    ]  # fmt: skip
    for make, said in cases:
        with pytest.raises(UserError) as error:
            make()
        assert said in str(error.value)
        assert "\n" not in str(error.value)
