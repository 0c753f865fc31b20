"""The adapter of the teacher's output: its loss and gradient in closed form, its training, its state, and what it changes of the targets."""

import json
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from tests.conftest import DECODER, slow_but
from tests.training.test_targets_and_training import killed_at, same, weights
from workbench.config.additions import TeacherAdapterRecipe
from workbench.core.errors import UserError
from workbench.models.whisper.family import Whisper
from workbench.training.step.losses import StepSize
from workbench.training.teaching.resident_teacher import ResidentTeacher
from workbench.training.teaching.teacher_adapter import TeacherAdapter
from workbench.training.trainer import distill

FULL = {"kind": "full", "temperature": 2.0}


def stage(**changes):
    return {"s": {**DECODER, "weighting": {"name": "fixed", "alpha": 1.0}, "teacher_adapter": {"rank": 4, "learning_rate": 0.01}, **changes}}  # fmt: skip


def steps(run):
    return [json.loads(line) for line in (run.output / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]


@pytest.fixture
def adapted(tiny_checkpoint):
    """An adapter that is not the identity, and a batch of two clips."""
    family = Whisper(tiny_checkpoint)
    store = {
        name: torch.randn(20, 32, generator=torch.Generator().manual_seed(i)).half() for i, name in enumerate("ab")
    }
    teacher = ResidentTeacher(
        "t", family.load(), family, SimpleNamespace(read=lambda key, _: [store[key]]), {"a": "a", "b": "b"}, {}
    )
    tokens = family.tokens(["ab ab", "c"], ["en", "en"])
    counts = (tokens.labels >= 0).sum(1)
    labels = tokens.labels[tokens.labels >= 0]
    batch = SimpleNamespace(ids=["a", "b"], inputs=tokens.inputs, labels=tokens.labels, labelled=tokens.labelled(), flat_labels=lambda: labels,
                            utterance_index=torch.repeat_interleave(torch.arange(2), counts))  # fmt: skip
    adapter = TeacherAdapter(TeacherAdapterRecipe(rank=3, closeness=0.5), teacher, family, 1)
    states = torch.stack([store[name].float() for name in "ab"])
    plain = family.logits(teacher.model, states, tokens).detach()
    hidden = family.hidden(teacher.model, states, tokens).detach()
    return SimpleNamespace(adapter=adapter, batch=batch, plain=plain, hidden=hidden, model=teacher.model, labels=labels, counts=counts)  # fmt: skip


def test_it_begins_as_the_identity_and_then_is_a_low_rank_change_before_the_projection(adapted):
    adapter = adapted.adapter
    torch.testing.assert_close(adapter.logits(adapted.batch), adapted.plain, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        adapter.parameters["up"].normal_(std=0.3)
    change = adapter.parameters["up"] @ adapter.parameters["down"]  # [width, width]
    assert torch.linalg.matrix_rank(change) == 3
    expected = (adapted.hidden + adapted.hidden @ change.t()) @ adapted.model.proj_out.weight.t()
    torch.testing.assert_close(adapter.logits(adapted.batch), expected, atol=1e-4, rtol=1e-4)


def test_its_loss_and_gradient_are_autograds_on_labels_and_the_student(adapted):
    adapter, batch = adapted.adapter, adapted.batch
    with torch.no_grad():
        adapter.parameters["up"].normal_(std=0.3, generator=torch.Generator().manual_seed(2))
    student = torch.randn(adapted.plain.shape, generator=torch.Generator().manual_seed(3)).requires_grad_()
    down, up = (p.detach().clone().requires_grad_() for p in adapter.parameters.values())
    logits = (adapted.hidden + adapted.hidden @ down.t() @ up.t()) @ adapted.model.proj_out.weight.detach().t()
    log_p, log_q = logits.log_softmax(-1), student.detach().log_softmax(-1)
    by_label = F.cross_entropy(logits, adapted.labels, reduction="none") + 0.5 * (log_p.exp() * (log_p - log_q)).sum(-1)
    expected = torch.stack([part.mean() for part in by_label.split(adapted.counts.tolist())])
    gradients = torch.autograd.grad(expected.sum() / 7, (down, up))
    for _ in range(2):  # micro-batches add up
        found = adapter.backward(adapter.logits(batch), student, batch, StepSize(7.0, 1.0))
    torch.testing.assert_close(found, expected.detach(), atol=1e-4, rtol=1e-4)
    for parameter, gradient in zip(adapter.parameters.values(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * gradient, atol=1e-5, rtol=1e-3)
    assert student.grad is None
    assert all(p.grad is None for p in adapted.model.parameters())


def test_steps_lower_its_loss_and_its_state_goes_on_from_where_it_was(adapted):
    adapter, batch = adapted.adapter, adapted.batch
    other = TeacherAdapter(adapter.settings, adapter.teacher, adapter.family, 9)

    def step(one):
        loss = one.backward(one.logits(batch), adapted.plain, batch, StepSize(2.0, 1.0))
        one.on_optimizer_step(10.0, lambda tensor: tensor)
        return float(loss.mean())

    first = [step(adapter)]
    # AdamW's first step is the learning rate, here 1e-4 times the schedule's 10, without decay
    torch.testing.assert_close(adapter.parameters["up"].abs().max().item(), 1e-3, atol=1e-5, rtol=0)
    first += [step(adapter) for _ in range(9)]
    assert first[-1] < first[0] - 0.01
    other.load_state_dict({name: tensor.clone() for name, tensor in adapter.state_dict().items()})
    assert [step(adapter) for _ in range(3)] == [step(other) for _ in range(3)]
    before = {name: tensor.clone() for name, tensor in adapter.state_dict().items()}
    adapter.on_optimizer_step(10.0, lambda tensor: tensor)  # a step in which nothing has trained it
    assert same(before, adapter.state_dict())


def test_the_first_step_has_the_full_targets_and_later_ones_others(recipe):
    """The adapter begins as the identity: its targets are then the cached ones with all logits, at the recipe's temperature."""
    run, plain = (recipe(n, targets=FULL, stages=stage(teacher_adapter=a)) for n, a in (("run", {"rank": 4, "learning_rate": 0.05}), ("plain", None)))  # fmt: skip
    distill(run)
    distill(plain)
    found, expected = steps(run), steps(plain)
    assert found[0]["distillation"] == pytest.approx(expected[0]["distillation"], rel=5e-3)
    assert abs(found[-1]["distillation"] / expected[-1]["distillation"] - 1) > 0.02
    assert "adapted_teacher" in found[0]
    assert "adapted_teacher" not in expected[0]


@pytest.mark.parametrize("vocabulary", slow_but(["all"], ["all", "corpus"]))
def test_a_killed_run_resumes_to_the_same_bits(recipe, monkeypatch, vocabulary):
    given = {"stages": stage(on_policy={"fraction": 0.3}, mixup={"fraction": 0.5}, epochs=3, micro_batches=2),
             "student": {"decoder_layers": [0, 2], "vocabulary": vocabulary}, "checkpoint_minutes": 1e-9}  # fmt: skip
    whole, killed = recipe("whole", **given), recipe("killed", **given)
    distill(whole)
    with killed_at(monkeypatch, 3):
        distill(killed)
    (file,) = (killed.output / "checkpoints").glob("*/adapter.safetensors")
    assert load_file(file)["up"].any()
    distill(killed)
    assert same(weights(whole.output), weights(killed.output))
    assert (whole.output / "metrics.jsonl").read_text() == (killed.output / "metrics.jsonl").read_text()


def test_an_adapter_without_effect_or_that_cannot_work_is_refused(recipe, student):
    for changes, said in (
        ({"weighting": {"name": "fixed", "alpha": 0.0}}, "teacher_adapter would have no effect: the stage has no distillation loss"),
        ({"on_policy": {"fraction": 1.0}}, "teacher_adapter would have no effect: on_policy.fraction is 1"),
        ({"weighting": {"name": "rw_kd"}}, "teacher_adapter cannot be combined with weighting rw_kd"),
        ({"mixup": {"fraction": 1.0}}, "teacher_adapter would have no effect: mixup.fraction is 1"),
        ({"teacher_adapter": {"rnk": 4}}, "did you mean 'rank'"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said) as error:
            recipe("bad", stages=stage(**changes))
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="teacher_adapter needs the teacher's states of the whole corpus"):
        recipe("bad", corpus="hf:x", stream={}, stages=stage(max_steps=3))
    with pytest.raises(UserError, match=r"stages.s.teacher_adapter: teacher .* was trained to read clips at their own"):
        distill(recipe("bad", teacher=str(student), stages=stage()))
