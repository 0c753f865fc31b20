"""The oracle teacher: what it may see, what it learns, what a stage gets of it, resumed runs, and what is refused."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import workbench.training.oracle.fit as oracle_training
import workbench.training.oracle.teacher as oracle_teacher
from tests.conftest import slow_but
from tests.training.conftest import ACTIVE, ALL
from tests.training.test_targets_and_training import killed_at, same, weights
from workbench.config.additions import OracleTeacherRecipe
from workbench.config.weightings import known_weightings
from workbench.core.errors import UserError
from workbench.corpus.batching import StepPlan
from workbench.models import open_family
from workbench.models.ctc.oracle import OracleTeacher
from workbench.models.states import encode_waves
from workbench.training.oracle.fit import measured, oracle_losses, train_oracle
from workbench.training.stage import StageTrainer
from workbench.training.trainer import Trainer, distill

BLANK, SIZE = 0, 12
FAMILY = SimpleNamespace(objective="ctc", blank=BLANK)
ORACLE = {"epochs": 2, "width": 16}


def oracle(width=32, vocabulary=SIZE, seed=0, states=8):
    return OracleTeacher(states, vocabulary, width, seed)


def padded(rows, filler=-100):
    width = max(map(len, rows))
    return torch.tensor([[*row, *[filler] * (width - len(row))] for row in rows])


# --- what it may see


@torch.no_grad()
def test_a_clip_gives_what_it_gives_by_itself():
    torch.manual_seed(0)
    texts, lengths = [[1, 2, 3, 4, 5, 6, 7], [3], [], [9, 9]], [9, 4, 6, 12]
    states = torch.randn(4, 12, 8)
    model = oracle()
    together = model(states, padded(texts))
    for row, (text, length) in enumerate(zip(texts, lengths, strict=True)):
        alone = model(states[row : row + 1, :length], torch.tensor([text], dtype=torch.long).reshape(1, -1))
        torch.testing.assert_close(together[row, :length], alone[0], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_position_cannot_tell_where_in_the_text_a_token_stands():
    """Of texts with the same neighbourhoods it reads the same, wherever these are: an alignment made up from the text would differ."""
    torch.manual_seed(0)
    states, model, gap = torch.randn(1, 20, 8), oracle(), [1] * 5
    first, second = [2, 3, 4], [5, 6]
    text = [*gap, *first, *gap, *second, *gap]
    said = model(states, padded([text]))
    for other in ([*gap, *second, *gap, *first, *gap], [*text[7:], *text[:7]], [*text[-1:], *text[:-1]]):
        torch.testing.assert_close(model(states, padded([other])), said, atol=1e-5, rtol=1e-4)
    for other in ([*gap, *first, *second, *gap, *gap], text[::-1]):
        assert (model(states, padded([other])) - said).abs().max() > 1e-3


@torch.no_grad()
def test_hidden_tokens_are_not_seen_and_shown_ones_are():
    torch.manual_seed(0)
    states, model = torch.randn(1, 6, 8), oracle()
    one, other = padded([[1, 2, 3]]), padded([[1, 7, 3]])
    hidden = torch.tensor([[False, True, False]])
    assert torch.equal(model(states, one, hidden), model(states, other, hidden))
    assert (model(states, one) - model(states, other)).abs().max() > 1e-4
    assert (model(states, one) - model(states, one, hidden)).abs().max() > 1e-4


def test_its_initial_weights_depend_on_the_seed_alone_and_draw_nothing():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = oracle().state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert same(first, oracle().state_dict())
    assert not same(first, oracle(seed=3).state_dict())


# --- what it learns


class Spoken:
    """Clips whose tokens can be heard in pairs only: 2 sounds as 3 does, 4 as 5, and so on. Each is one to three positions long."""

    family = FAMILY

    def __init__(self, count=48):
        draw = np.random.default_rng(0)
        self.sounds = torch.from_numpy(draw.normal(size=(SIZE, 8))).float()
        self.sounds[3::2] = self.sounds[2::2]
        self.texts = [[int(t) for t in draw.integers(2, SIZE, size=draw.integers(3, 8))] for _ in range(count)]
        self.frames = []
        for text in self.texts:
            row = [BLANK]
            for token in text:
                row += [token] * int(draw.integers(1, 4)) + [BLANK] * int(draw.integers(1, 3))
            self.frames.append(row)
        noise = [torch.from_numpy(draw.normal(scale=0.1, size=(len(row), 8))).float() for row in self.frames]
        self.states = [self.sounds[torch.tensor(row)] + own for row, own in zip(self.frames, noise, strict=True)]
        utterances = [SimpleNamespace(id=str(i), seconds=float(len(row))) for i, row in enumerate(self.frames)]
        self.dataset = SimpleNamespace(utterances=utterances)

    def batch(self, clips):
        states = torch.nn.utils.rnn.pad_sequence([self.states[i] for i in clips], batch_first=True)
        lengths = torch.tensor([len(self.states[i]) for i in clips])
        return states, torch.arange(states.shape[1]) < lengths[:, None], padded([self.texts[i] for i in clips])


def plans(epochs, clips=48, size=12):
    steps = [StepPlan(n, tuple(range(start, start + size)), 1.0) for n, start in enumerate(range(0, clips, size))]
    return [steps] * epochs


def test_a_step_is_adamws_on_torchs_ctc_loss(tmp_path):
    clips, settings = Spoken(4), OracleTeacherRecipe(hidden_text=0.0, learning_rate=0.01)
    trained, expected = oracle(), oracle()
    train_oracle(trained, clips, [[StepPlan(0, (0, 1, 2, 3), 1.0)]], settings, (0,), tmp_path)
    states, there, labels = clips.batch(range(4))
    rows = expected(states, labels).log_softmax(-1).transpose(0, 1)
    counts = (labels >= 0).sum(1)
    each = F.ctc_loss(rows, labels.clamp(min=0), there.sum(1), counts, BLANK, reduction="none") / counts
    with torch.no_grad():
        found = oracle_losses(oracle(), FAMILY, states, there, labels)
    torch.testing.assert_close(found, each.detach(), rtol=1e-4, atol=1e-4)
    each.mean().backward()
    torch.nn.utils.clip_grad_norm_(expected.parameters(), 1.0)
    torch.optim.AdamW(expected.parameters(), lr=0.01, weight_decay=0.0).step()
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(trained.state_dict()[name], value, rtol=1e-3, atol=2e-4, msg=name)


def test_it_aligns_what_cannot_be_told_apart_by_hearing_and_listens(tmp_path):
    clips = Spoken()
    found = oracle()
    train_oracle(found, clips, plans(60), OracleTeacherRecipe(learning_rate=5e-3, hidden_text=0.3), (0,), tmp_path)
    report = measured(found, clips)
    assert report["loss"] < 0.5
    # one bit a token that is not heard: log 2 nats at least
    assert report["loss_without_text"] > max(0.6, 2 * report["loss"])
    assert report["loss_on_other_speech"] > 4 * report["loss"] + 1.0
    right = total = 0
    with torch.no_grad():
        for i, row in enumerate(clips.frames):
            states, _, labels = clips.batch([i])
            best = found(states, labels)[0].argmax(-1)
            said = best != BLANK
            right += int((best[said] == torch.tensor(row)[said]).sum())
            total += int(said.sum())
    assert right > 0.85 * total
    assert total >= sum(map(len, clips.texts)) * 0.9


class Unheard(Spoken):
    """Clips whose speech says nothing but how late it is."""

    def __init__(self, count):
        draw = np.random.default_rng(0)
        self.texts = [[int(t) for t in draw.integers(2, SIZE, size=draw.integers(3, 8))] for _ in range(count)]
        self.states = [counted(2 * len(text) + 1) for text in self.texts]


def counted(length):
    """Sines and cosines of positions. -> [length, 8]"""
    angles = torch.arange(length)[:, None] * torch.tensor([0.2, 0.5, 1.0, 2.0])
    return torch.cat([angles.sin(), angles.cos()], 1)


class Counts(OracleTeacher):
    """The same with positions in the text, as a usual text encoder has them."""

    def _text(self, labels, hidden):
        text, shown = super()._text(labels, hidden)
        return text + F.pad(counted(text.shape[1]), (0, text.shape[2] - 8)), shown


@pytest.mark.slow
def test_it_cannot_align_a_text_without_hearing_it(tmp_path):
    """New texts of a language without rules, spoken by nobody: with positions in the text, alignments are made up that CTC takes for perfect."""
    steps_, size = 240, 12
    clips, losses = Unheard(steps_ * size + 64), []
    plan = [[StepPlan(k, tuple(range(k * size, k * size + size)), 1.0) for k in range(steps_)]]
    for kind in (OracleTeacher, Counts):
        found = kind(8, SIZE, 32, 0)
        settings = OracleTeacherRecipe(learning_rate=0.01, hidden_text=0.0)
        train_oracle(found, clips, plan, settings, (0,), tmp_path / kind.__name__)
        with torch.no_grad():
            new = clips.batch(range(steps_ * size, len(clips.texts)))
            losses.append(float(oracle_losses(found, FAMILY, *new).mean()))
    assert losses[0] > 1.0
    assert losses[1] < 0.1


# --- in a run


@pytest.fixture
def taught(over_whisper):
    """Factory of recipes whose student is a Whisper encoder that an oracle teaches."""

    def make(name="run", stage=None, **changes):
        given = {**ALL, "weighting": {"name": "fixed", "alpha": 0.5}, "oracle_teacher": ORACLE, **(stage or {})}
        return over_whisper(name, stages={"ctc": given}, **changes)

    return make


def steps(run):
    rows = [json.loads(line) for line in (run.output / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" in row]


@pytest.mark.parametrize("targets", [{"kind": "full"}, {"top_k": 4, "allow_large_tail": True}], ids=str)
def test_targets_are_the_oracles_on_the_encoder_before_the_stage(taught, targets):
    run = taught(targets=targets, trailing_silence={"train_min": 0.1, "train_max": 0.3, "inference": 0.2})
    trainer = Trainer(run)
    context, datasets, _ = trainer.prepare()
    context = oracle_teacher.with_oracle(context, 0, "ctc", datasets.whole, begun=False)
    cache, family = context.teachers["ctc"].oracle, context.family
    folder = run.output / "oracle/ctc"
    assert not (folder / "training.safetensors").exists()
    assert not list(folder.glob("states/*"))
    model = OracleTeacher(family.width, family.vocabulary_size, 16, run.seed)
    model.load_state_dict(load_file(folder / "oracle.safetensors"))
    for utterance, key in zip(datasets.whole.utterances, datasets.whole.keys, strict=True):
        wave, labels = utterance.wave(), family.tokens([utterance.text], ["en"]).labels
        with torch.no_grad():
            states, _ = encode_waves(family, context.model, [wave], len(wave) / 16_000 + 0.3, torch.device("cpu"))
            log_p = model(states, labels)[0].log_softmax(-1)
        found = cache.read(key, states=False)
        ids = found.top_ids.long() if "top_k" in targets else torch.arange(family.vocabulary_size).expand(log_p.shape)
        theirs = found.top_logits.float() - found.log_normalizer.float()[:, None] if "top_k" in targets else found.top_logits.float().log_softmax(-1)  # fmt: skip
        torch.testing.assert_close(theirs, log_p.gather(-1, ids), rtol=5e-3, atol=5e-3)
        assert found.task_loss == pytest.approx(torchs(log_p, labels[0], family.blank), rel=1e-3)
        assert len(found.aligned) == len(log_p)
        assert int(found.aligned.min()) >= 0
    datasets.context = context
    stage = run.stages["ctc"]
    whole = next(datasets.epochs("ctc", stage, SimpleNamespace(epoch=0), trainer_timers()))
    assert whole.caches == [cache]


def trainer_timers():
    from workbench.run.checkpoints import Timers

    return Timers()


def torchs(log_p, labels, blank):
    return float(F.ctc_loss(log_p[:, None], labels[None], [len(log_p)], [len(labels)], blank, reduction="sum")) / len(labels)  # fmt: skip


@pytest.mark.parametrize("name", known_weightings())
def test_every_weighting_works_with_it(taught, name):
    run = taught(stage={"weighting": {"name": name, **ACTIVE.get(name, {})}})
    distill(run)
    lines = steps(run)
    assert all(math.isfinite(line[key]) for line in lines for key in ("loss", "task", "alpha_mean"))
    assert any(line["distillation"] > 0 for line in lines if "distillation" in line)


def test_a_run_says_who_taught_and_keeps_nothing_of_it(taught, over_whisper):
    with_one = taught("with")
    student = distill(with_one)
    plain = distill(over_whisper("without", stages={"ctc": {**ALL, "weighting": {"name": "fixed", "alpha": 0}}}))
    scores = json.loads((with_one.output / "scores.json").read_text())
    assert scores["stage_teachers"] == {"ctc": {"oracle_teacher": 1.0}}
    assert set(scores["oracle_teachers"]["ctc"]) == {"loss", "loss_without_text", "loss_on_other_speech"}
    assert not (with_one.output / "oracle").exists()
    assert {path.name for path in student.iterdir()} == {path.name for path in plain.iterdir()}
    one, other = (open_family(folder).load().state_dict() for folder in (student, plain))
    assert {n: v.shape for n, v in one.items()} == {n: v.shape for n, v in other.items()}
    assert not same(one, other)


def test_it_teaches_a_student_that_reads_waves_and_after_another_stage(ctc, over_whisper):
    from tests.conftest import ENCODER

    run = ctc(kind="wavlm", stage={"oracle_teacher": ORACLE, "weighting": {"name": "adakd"}})
    distill(run)
    alone = ctc("alone", kind="wavlm", stage={"weighting": {"name": "adakd"}})
    distill(alone)
    taught, untaught = ([line["distillation"] for line in steps(one)] for one in (run, alone))
    assert all(loss > 0 for loss in taught)
    assert taught != untaught  # by the oracle, not by the teacher that the student has besides
    given = {**ALL, "weighting": {"name": "adakd"}, "oracle_teacher": ORACLE, "intermediate_ctc": {"layer": 0}}
    later = over_whisper("later", stages={"encoder": ENCODER, "ctc": given})
    distill(later)
    assert all(line["distillation"] > 0 for line in steps(later) if line["stage"] == "ctc")
    scores = json.loads((later.output / "scores.json").read_text())
    assert list(scores["stage_teachers"]["encoder"]) == [later.teacher]


# --- resumed


class Killed(Exception):  # noqa: N818
    pass


def killed_in(monkeypatch, module, name, at):
    """Have the given call of a function of a module end the run."""
    original, calls = getattr(module, name), []

    def once(*args, **kwargs):
        calls.append(1)
        if len(calls) == at:
            raise Killed
        return original(*args, **kwargs)

    monkeypatch.setattr(module, name, once)
    return lambda: monkeypatch.setattr(module, name, original)


@pytest.mark.parametrize("where", slow_but(["second epoch"], ["second epoch", "before its targets", "in the stage"]))
def test_a_killed_run_resumes_to_the_same_bits(taught, monkeypatch, where):
    given = {"stage": {"weighting": {"name": "mc_dropout"}, "oracle_teacher": {**ORACLE, "epochs": 3}}, "checkpoint_minutes": 1e-9}  # fmt: skip
    whole, killed = (taught(name, **given) for name in ("whole", "killed"))
    distill(whole)
    if where == "in the stage":
        with killed_at(monkeypatch, 2):
            distill(killed)
    else:
        steps_an_epoch = epoch_steps(whole)
        place = {"second epoch": (oracle_training, "oracle_losses", steps_an_epoch + 2), "before its targets": (oracle_teacher, "compute_targets", 1)}[where]  # fmt: skip
        revive = killed_in(monkeypatch, *place)
        with pytest.raises(Killed):
            distill(killed)
        revive()
    folder = killed.output / "oracle/ctc"
    assert (folder / "training.safetensors").exists() == (where == "second epoch")
    if where == "second epoch":
        assert int(load_file(folder / "training.safetensors")["epoch"]) == 1
    trained = []
    original = oracle_training.oracle_losses
    monkeypatch.setattr(oracle_training, "oracle_losses", lambda *args: trained.append(torch.is_grad_enabled()) or original(*args))  # fmt: skip
    distill(killed)
    assert sum(trained) == (2 * steps_an_epoch if where == "second epoch" else 0)
    assert same(weights(whole.output), weights(killed.output))


def epoch_steps(run):
    from workbench.corpus import open_corpus
    from workbench.corpus.batching import plan_steps

    silence, stage = run.trailing_silence, run.stages["ctc"]
    lengths = {
        len(plan_steps(open_corpus(run.corpus, "train"), stage.batch_seconds, silence.train_max, (run.seed, 0, epoch, 6)))
        for epoch in range(3)
    }  # fmt: skip
    assert len(lengths) == 1
    return lengths.pop()


def test_a_run_that_was_killed_before_its_first_checkpoint_does_not_take_up_the_oracle_of_other_transcripts(
    taught, monkeypatch
):
    run = taught()
    revive = killed_in(monkeypatch, oracle_teacher, "compute_targets", 1)
    with pytest.raises(Killed):
        distill(run)
    revive()
    manifest = Path(run.corpus)
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    rows[0]["text"], rows[1]["text"] = rows[1]["text"], rows[0]["text"]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match="other training clips"):
        distill(run)


def test_an_oracle_of_another_student_is_refused(tmp_path):
    own, other = OracleTeacher(16, 30, 32, 0), OracleTeacher(16, 31, 32, 0)
    with pytest.raises(UserError, match="holds the oracle teacher of another student; run the command with --restart"):
        oracle_training.load_oracle(own, other.state_dict(), tmp_path)


def test_with_one_clip_nothing_is_said_of_other_speech(taught):
    run = taught(max_clips=1)
    distill(run)
    report = json.loads((run.output / "scores.json").read_text())["oracle_teachers"]["ctc"]
    assert report["loss_on_other_speech"] is None
    assert report["loss"] > 0


def test_lost_targets_of_a_stage_that_has_begun_are_an_error(taught, monkeypatch):
    run = taught(checkpoint_minutes=1e-9)
    with killed_at(monkeypatch, 2):
        distill(run)
    for path in (run.output / "oracle/ctc/targets").glob("shard-*"):
        path.write_bytes(b"damaged")
    with pytest.raises(UserError, match="has of its oracle teacher is missing or damaged") as error:
        distill(run)
    assert "\n" not in str(error.value)
    distill(run, restart=True)


def test_a_teacher_that_copies_is_said(taught, caplog, monkeypatch):
    monkeypatch.setattr(oracle_teacher, "measured", lambda *_: {"loss": 0.5, "loss_without_text": 1.0, "loss_on_other_speech": 0.6})  # fmt: skip
    distill(taught())
    assert "fit another clip's speech nearly as well as their own" in caplog.text


# --- refused


def test_what_cannot_be_is_said_before_training(taught, recipe):
    from tests.conftest import DECODER

    cases = [
        (lambda: distill(recipe(stages={"d": {**DECODER, "oracle_teacher": {}}})), "oracle_teacher needs a student with a CTC head"),
        (lambda: taught(stage={"weighting": {"name": "fixed", "alpha": 0}}), "oracle_teacher would have no effect"),
        (lambda: taught(stage={"teacher": "whisper-base"}), "oracle_teacher and teacher are both set"),
        (lambda: taught(stage={"encoder_matching": 1.0}), "cannot be combined with encoder_matching"),
        (lambda: taught(more_teachers=["whisper-base"]), "stages.ctc.oracle_teacher is its stage's only teacher"),
        (lambda: taught(stage={"max_steps": 2}, stream={}, corpus="hf:some/where"), "oracle_teacher needs the encoder states of the whole corpus"),
        (lambda: taught(stage={"oracle_teacher": {"width": 30}}), "oracle_teacher.width is 30"),
        (lambda: taught(stage={"oracle_teacher": {"hidden_text": 1.0}}), "oracle_teacher.hidden_text is 1.0"),
        (lambda: taught(stage={"oracle_teacher": {"epoch": 3}}), "did you mean 'epochs'"),
    ]  # fmt: skip
    for make, said in cases:
        with pytest.raises(UserError) as error:
            make()
        assert said in str(error.value)
        assert "\n" not in str(error.value)


def test_without_it_such_a_student_is_told_that_it_exists(taught):
    with pytest.raises(UserError, match=r"set oracle_teacher: \{\}"):
        distill(taught(stage={"oracle_teacher": None}))


def test_stage_trainer_is_given_the_oracles_losses(taught):
    """What AdaKD's threshold is taken from."""
    run = taught(stage={"weighting": {"name": "adakd"}})
    trainer = Trainer(run)
    context, datasets, validation = trainer.prepare()
    context = oracle_teacher.with_oracle(context, 0, "ctc", datasets.whole, begun=False)
    datasets.context = validation.context = context
    from workbench.run.checkpoints import TrainingState

    state = TrainingState()
    training = StageTrainer(context, datasets, validation, 0, "ctc", run.stages["ctc"], state)
    dataset = next(datasets.epochs("ctc", run.stages["ctc"], state.progress, state.timers))
    cache = context.teachers["ctc"].oracle
    assert dataset.teacher_losses() == tuple(cache.task_loss(key) for key in dataset.keys)
    training.begin(dataset)
    batch = next(training.epochs.batches(training.plan(dataset)))[0]
    by_id = {u.id: cache.task_loss(key) for u, key in zip(dataset.utterances, dataset.keys, strict=True)}
    assert batch.teacher_loss[0].tolist() == pytest.approx([by_id[name] for name in batch.ids])
