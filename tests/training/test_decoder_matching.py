"""Decoder layers matched with the teacher's: transformers' own states and attention, the layer map, and whole runs."""

import json
from types import SimpleNamespace

import pytest
import torch
from transformers import WhisperForConditionalGeneration

from tests.conftest import DECODER, slow_but
from tests.training.test_engine import gradients_of_a_step
from tests.training.test_targets_and_training import killed_at, same, weights
from workbench.config.additions import DecoderMatchingRecipe
from workbench.core.errors import UserError
from workbench.losses.layer_matching import hidden_state_loss
from workbench.models.whisper.family import Whisper
from workbench.training.teaching.decoder_matching import DecoderMatching, layer_map
from workbench.training.teaching.resident_teacher import ResidentTeacher
from workbench.training.trainer import distill

BOTH = {"hidden": 2.0, "attention": 3.0}
FIXED = {"name": "fixed", "alpha": 0.5}


def stage(**changes):
    return {"decoder": {**DECODER, "weighting": FIXED, "decoder_matching": BOTH, **changes}}


def steps(run):
    return [json.loads(line) for line in (run.output / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]


@pytest.mark.parametrize("packed", [True, False])
@torch.no_grad()
def test_layer_outputs_are_transformers_hidden_states_and_cross_attentions(tiny_checkpoint, monkeypatch, packed):
    family = Whisper(tiny_checkpoint)
    model = family.load()
    eager = WhisperForConditionalGeneration.from_pretrained(tiny_checkpoint, attn_implementation="eager").eval()
    torch.manual_seed(0)
    states, lengths = torch.randn(2, 9, 32), [9, 5]
    mask = torch.arange(9)[None] < torch.tensor(lengths)[:, None]
    tokens = family.tokens(["ab ab ab", "c"], ["en", "es"])
    if not packed:
        monkeypatch.setattr("workbench.models.whisper.forward.passes.uses_dropout", lambda _: True)
    logits, found = family.logits_and_layers(model, states, tokens, [2, 0], True, attention_mask=mask)
    torch.testing.assert_close(logits, family.logits(model, states, tokens, attention_mask=mask))
    first = 0
    for clip, length in enumerate(lengths):
        places = (tokens.labels[clip] >= 0).nonzero()[:, 0]
        out = eager.model.decoder(
            tokens.inputs[clip][None], encoder_hidden_states=states[clip, :length][None], use_cache=False,
            output_hidden_states=True, output_attentions=True,
        )  # fmt: skip
        mine = slice(first, first + len(places))
        first += len(places)
        # hidden_states[n + 1] is the state after layer n, but after the last one transformers has applied the norm
        torch.testing.assert_close(found.hidden[1, mine], out.hidden_states[1][0, places], atol=1e-4, rtol=1e-3)
        normed = model.model.decoder.layer_norm(found.hidden[0, mine])
        torch.testing.assert_close(normed, out.hidden_states[3][0, places], atol=1e-4, rtol=1e-3)
        for row, layer in enumerate((2, 0)):
            expected = out.cross_attentions[layer][0][:, places].transpose(0, 1)  # [labels, heads, positions]
            shares = found.attention[row, mine].exp()
            torch.testing.assert_close(shares[..., :length], expected, atol=1e-5, rtol=1e-3)
            assert not shares[..., length:].any()


@pytest.mark.parametrize(
    ("student", "teacher", "copied", "expected"),
    [
        (2, 6, [0, 5], {0: 0, 1: 5}),
        (2, 6, [0, 2], {0: 0, 1: 5}),  # the last one's states go into the projection
        (1, 6, [0], {0: 5}),
        (2, 6, None, {0: 2, 1: 5}),
        (4, 6, None, {0: 0, 1: 2, 2: 3, 3: 5}),
        (6, 2, None, {0: 0, 1: 0, 2: 0, 3: 0, 4: 0, 5: 1}),
    ],
)
def test_default_layer_map(student, teacher, copied, expected):
    assert layer_map(DecoderMatchingRecipe(), student, teacher, copied, "s") == expected


def test_a_given_layer_map_is_checked():
    assert layer_map(DecoderMatchingRecipe(layers={1: 5, 0: 2}), 2, 6, [0, 5], "s") == {0: 2, 1: 5}
    for layers, said in (
        ({2: 0}, "the student has no decoder layer 2"),
        ({0: 6}, "the teacher has no decoder layer 6"),
    ):
        with pytest.raises(UserError, match=rf"stages.s.decoder_matching.layers: {said}; expected 0 to"):
            layer_map(DecoderMatchingRecipe(layers=layers), 2, 6, [0, 5], "s")


def test_the_loss_of_a_step_has_both_terms_with_their_factors_and_they_fall(recipe):
    run = recipe(stages=stage(epochs=6, micro_batches=2))
    distill(run)
    lines = steps(run)
    for line in lines:
        plain = 0.5 * line["task"] + 0.5 * line["distillation"]
        terms = 2 * line["hidden_matching"] + 3 * line["attention_matching"]
        assert line["loss"] == pytest.approx(plain + terms, rel=1e-4)
    for name in ("hidden_matching", "attention_matching"):
        assert 0 < sum(line[name] for line in lines[-2:]) < 0.9 * sum(line[name] for line in lines[:2])


@torch.no_grad()
def test_each_layer_is_compared_with_its_own_teachers(tiny_checkpoint):
    family = Whisper(tiny_checkpoint)
    model, store = family.load(), {"key": torch.randn(20, 32, generator=torch.Generator().manual_seed(0)).half()}
    teacher = ResidentTeacher(
        "t", model, family, SimpleNamespace(read=lambda key, _: [store[key]]), {"a": "key", "b": "key"}, {}
    )
    tokens, states = family.tokens(["ab ab", "c"], ["en", "en"]), torch.stack(2 * [store["key"].float()])
    counts = (tokens.labels >= 0).sum(1)
    batch = SimpleNamespace(ids=["a", "b"], inputs=tokens.inputs, labels=tokens.labels, labelled=tokens.labelled(),
                            utterance_index=torch.repeat_interleave(torch.arange(2), counts))  # fmt: skip
    settings = DecoderMatchingRecipe(**BOTH)

    def terms(layers):
        matching = DecoderMatching(settings, teacher, family, layers, 1)
        return matching(batch, family.logits_and_layers(model, states, tokens, matching.ours, True)[1])

    for name, factor, each in terms({0: 0, 2: 2}):
        assert factor == BOTH[name.removesuffix("_matching")]
        assert each.abs().max() < 1e-5
    _, every = family.logits_and_layers(model, states, tokens, [0, 1, 2], True)
    by_label = hidden_state_loss(every.hidden[[0, 2]], every.hidden[[1, 0]])
    (_, _, hidden), (_, _, attention) = terms({0: 1, 2: 0})
    torch.testing.assert_close(hidden, torch.stack([part.mean() for part in by_label.split(counts.tolist())]))
    assert (attention > 1e-3).all()


def test_a_step_in_parts_has_the_gradient_of_the_whole(recipe, monkeypatch):
    given = {"trainable": "all", "encoder_matching": 1.0, "batch_seconds": 12.0}
    found = [gradients_of_a_step(recipe(f"p-{n}", stages=stage(**given, micro_batches=n)), monkeypatch) for n in (1, 3)]
    largest = max(float(g.abs().max()) for g in found[0])
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(whole, parts, atol=1e-5 * largest, rtol=1e-3)


def test_checkpointed_activations_change_nothing(recipe, monkeypatch):
    found = [
        gradients_of_a_step(
            recipe(f"c-{on}", student={"decoder_layers": "all"}, stages=stage(
                trainable="all", micro_batches=1, activation_checkpointing=on, decoder_matching={**BOTH, "layers": {1: 1}})),
            monkeypatch,
        )
        for on in (False, True)
    ]  # fmt: skip
    for kept, recomputed in zip(*found, strict=True):
        torch.testing.assert_close(kept, recomputed, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    "given",
    slow_but([{}], [{}, {"student": {"decoder_layers": [0, 2], "vocabulary": "corpus"}},
                    {"student": {"decoder_layers": [0, 2], "pool_after": 1}}]),
    ids=["plain", "narrow", "pooled"],
)  # fmt: skip
def test_a_killed_run_resumes_to_the_same_bits(recipe, monkeypatch, given):
    stages = stage(on_policy={"fraction": 0.4})
    whole, killed = (recipe(n, stages=stages, checkpoint_minutes=1e-9, **given) for n in ("whole", "killed"))
    distill(whole)
    with killed_at(monkeypatch, 3):
        distill(killed)
    distill(killed)
    assert same(weights(whole.output), weights(killed.output))
    assert all("hidden_matching" in line for line in steps(whole))


@pytest.mark.parametrize("kind", ["intermediate", "ema"])
def test_a_student_that_teaches_itself_matches_no_layer_of_the_teacher(recipe, kind):
    weighting = {"name": "askd", "phase1": 0.5, "self_teacher": kind}
    run = recipe(stages=stage(epochs=4, weighting=weighting))
    distill(run)
    lines = steps(run)
    assert all(("hidden_matching" in line) == (line.get("self_teaching") != 1.0) for line in lines)
    assert len({"hidden_matching" in line for line in lines}) == 2


def test_what_has_no_effect_or_cannot_work_is_refused(recipe, student, tiny_checkpoint):
    for changes, said in (
        ({"stages": stage(decoder_matching={"hidden": 0})}, "hidden and attention are both 0"),
        ({"stages": stage(decoder_matching={"layers": {}})}, "layers is empty"),
        ({"stages": stage(decoder_matching={"hiden": 1})}, "did you mean 'hidden'"),
        ({"stages": stage(decoder_losses=False, trainable="all", encoder_matching=1.0)}, "needs decoder_losses: true"),
        ({"stages": stage(), "compile": True}, "attention cannot be compiled"),
        ({"corpus": "hf:x", "stream": {}, "stages": stage(max_steps=3)}, "decoder_matching needs the teacher's states"),
    ):
        with pytest.raises(UserError, match=said) as error:
            recipe("bad", **changes)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="the student has no decoder layer 4"):
        distill(recipe("bad", stages=stage(decoder_matching={"layers": {4: 0}})))
    with pytest.raises(UserError, match="was trained to read clips at their own length"):
        distill(recipe("bad", teacher=str(student), stages=stage()))


def test_hidden_states_of_another_width_are_refused_and_attention_is_not(recipe, tiny_checkpoint, tmp_path):
    wide = Whisper(tiny_checkpoint)
    config = wide.config.__class__.from_dict({**wide.config.to_dict(), "d_model": 48, "decoder_attention_heads": 3, "encoder_attention_heads": 3})  # fmt: skip
    torch.manual_seed(1)
    other = WhisperForConditionalGeneration(config)
    other.generation_config = WhisperForConditionalGeneration.from_pretrained(tiny_checkpoint).generation_config
    other.save_pretrained(tmp_path / "wide")
    for path in tiny_checkpoint.iterdir():
        if not (tmp_path / "wide" / path.name).exists():
            (tmp_path / "wide" / path.name).write_bytes(path.read_bytes())
    init = {"decoder_layers": [0, 2], "init_from": str(tmp_path / "wide")}
    with pytest.raises(UserError, match=r"stages.decoder.decoder_matching.hidden: student width 48, teacher 32"):
        distill(recipe("bad", student=init, stages=stage()))
    run = recipe("good", student=init, stages=stage(epochs=1, decoder_matching={"hidden": 0, "attention": 1.0}))
    distill(run)
    assert steps(run)[0]["attention_matching"] > 0
