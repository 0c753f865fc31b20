"""A student with a CTC head in the one training loop: every weighting, resumed runs, cached targets, labels and what is refused."""

import json
import logging
import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

import workbench.cache.teacher_targets
import workbench.training.stage
from tests.conftest import slow_but
from tests.models.ctc_checkpoints import write_checkpoint
from tests.training.conftest import ACTIVE, ALL, FROM_LABELS, SILENCE
from workbench.config.weightings import known_weightings
from workbench.core.errors import UserError
from workbench.corpus import open_corpus
from workbench.evaluation.transcribe import validate
from workbench.labelling.filters import LabelFilters
from workbench.labelling.pseudo_labels import LabelSettings, label
from workbench.models import open_family
from workbench.study.arm import run_arm, score_teacher, teacher_scores
from workbench.study.plan import load_study, trials
from workbench.training.trainer import distill


def steps(run):
    rows = [json.loads(line) for line in (run.output / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" in row]


def dying(monkeypatch, at):
    """Interrupt training before a step."""
    step = workbench.training.stage.StageTrainer.step

    def once(self, *args):
        if self.state.progress.step == at:
            raise KeyboardInterrupt
        step(self, *args)

    monkeypatch.setattr(workbench.training.stage.StageTrainer, "step", once)
    return lambda: monkeypatch.setattr(workbench.training.stage.StageTrainer, "step", step)


@pytest.mark.parametrize("name", slow_but(["adakd", "almkd", "askd"], known_weightings()))
def test_every_weighting_trains(ctc, name):
    run = ctc(stage={"weighting": {"name": name, **ACTIVE.get(name, {})}})
    student = distill(run)
    lines = steps(run)
    assert len(lines) >= 4
    for line in lines:
        assert all(math.isfinite(line[key]) for key in ("loss", "task", "alpha_mean", "gradient_norm"))
        assert line["task"] > 0
    assert any(line["distillation"] > 0 for line in lines if "distillation" in line)
    before, after = (load_file(folder / "model.safetensors") for folder in (open_family(student).folder, student))
    assert before.keys() == after.keys()
    rows = pq.read_table(run.output / "weights.parquet").to_pylist()
    assert all(row["task"] > 0 and row["alpha"] is not None for row in rows)
    if name in ("adakd", "almkd", "amal", "rw_kd", "focal", "superloss", "mc_dropout", "conditional"):
        assert len({round(row["alpha"], 5) for row in rows}) > 2  # of the utterance, or of its frames


@pytest.mark.parametrize("kind", ["wav2vec2-layer", "hubert", "wavlm", "parakeet"])
def test_the_other_kinds_train_and_are_scored_as_they_were_saved(ctc, kind):
    masks = {"augment": {"frequency_masks": 1, "time_masks": 1}} if kind == "parakeet" else {}
    run = ctc(kind=kind, stage={"weighting": {"name": "adakd"}}, **masks)
    student = distill(run)
    teacher, found = open_family(tmp := student.parents[1] / kind).load().state_dict(), open_family(student)
    model = found.load()
    parts = {name: found.part_of(name) for name in model.state_dict()}
    same = {n for n, v in model.state_dict().items() if n in teacher and torch.equal(v, teacher[n])}
    assert {n for n in same if "encoder.layers" not in n} >= {n for n, part in parts.items() if part == "constant"}
    assert "lm_head.weight" not in same
    vocabulary = "tokenizer.json" if kind == "parakeet" else "vocab.json"
    assert (tmp / vocabulary).read_text() == (student / vocabulary).read_text()
    scored = validate(model, found, open_corpus(run.corpus, "validation"), 0.0).scores()
    assert scored["wer"] == pytest.approx(json.loads((run.output / "scores.json").read_text())["validation"]["wer"])


@pytest.mark.parametrize("weighting", [{"name": "askd", "phase1": 0.5}, {"name": "almkd", **ACTIVE["almkd"]}], ids=str)
def test_a_killed_run_resumes_to_the_same_bits(ctc, monkeypatch, weighting):
    stage = {"weighting": weighting, "epochs": 3}
    whole, killed = (ctc(name, stage=stage, checkpoint_minutes=1e-9) for name in ("whole", "killed"))
    students = [distill(whole)]
    revive = dying(monkeypatch, 4)
    with pytest.raises(KeyboardInterrupt):
        distill(killed)
    revive()
    students.append(distill(killed))
    first, second = (load_file(folder / "model.safetensors") for folder in students)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("kind", "average_over", "most"),
    [
        ("wav2vec2", "utterances", 0.2), ("wav2vec2", "tokens", 0.2), ("parakeet", "utterances", 0.0), ("parakeet", "tokens", 0.2),
        ("parakeet", "utterances", 0.9),
    ],
)  # fmt: skip
def test_padding_and_the_parts_of_a_step_change_no_loss(ctc, kind, average_over, most):
    found = []
    silence = {"train_min": 0.0, "train_max": most, "inference": 0.0}
    for parts in (1, 4):
        stage = {"micro_batches": parts, "average_over": average_over, "epochs": 1}
        run = ctc(str(parts), kind, stage, trailing_silence=silence)
        distill(run)
        found.append(steps(run))
    for one, other in zip(*found, strict=True):
        for key in ("loss", "task", "distillation", "gradient_norm"):
            assert other[key] == pytest.approx(one[key], rel=2e-3)


@pytest.mark.parametrize("targets", [{"kind": "full"}, {"kind": "sampled", "top_k": 8}, {"top_k": 32}], ids=str)
def test_targets_are_computed_once_and_are_the_whole_distribution(ctc, monkeypatch, targets):
    run = ctc("first", targets=targets, stage={"weighting": {"name": "fixed", "alpha": 1.0}, "epochs": 1})
    distill(run)

    def never(*args):
        raise AssertionError("the teacher ran again")

    monkeypatch.setattr(workbench.cache.teacher_targets, "_teacher_pass", never)
    again = ctc("second", targets=targets, stage={"weighting": {"name": "fixed", "alpha": 1.0}, "epochs": 1})
    distill(again)
    assert [line["loss"] for line in steps(again)] == [line["loss"] for line in steps(run)]
    whole = ctc("full", targets={"kind": "full"}, stage={"weighting": {"name": "fixed", "alpha": 1.0}, "epochs": 1})
    monkeypatch.undo()
    monkeypatch.setenv("WORKBENCH_CACHE", str(run.output.parent / "other cache"))
    distill(whole)
    tolerance = 0.5 if targets.get("kind") == "sampled" else 1e-2
    assert steps(run)[0]["distillation"] == pytest.approx(steps(whole)[0]["distillation"], rel=tolerance)


@pytest.mark.parametrize("kind", ["wav2vec2", "parakeet"])
def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it(ctc, kind):
    run = ctc(kind=kind, student={}, trailing_silence={"train_min": 0, "train_max": 0, "inference": 0},
              stage={"weighting": {"name": "fixed", "alpha": 1.0}, "learning_rate": 1e-9})  # fmt: skip
    distill(run)
    for line in steps(run):
        # the student's waves are kept in 16 bits, which the logarithm of quiet frames shows
        assert line["distillation"] == pytest.approx(0, abs=1e-3 if kind == "parakeet" else 1e-4)
        assert line["disagreement"] < 0.02  # some frames of a random teacher are a draw
    assert steps(run)[0]["task"] == pytest.approx(
        sum(r["teacher_loss"] for r in first_rows(run)) / len(first_rows(run)), rel=1e-3
    )


def first_rows(run):
    return [row for row in pq.read_table(run.output / "weights.parquet").to_pylist() if row["step"] == 1]


def test_the_head_alone_is_trained_on_states_that_are_computed_once(ctc, monkeypatch):
    run = ctc(stage={"trainable": "decoder", "weighting": {"name": "adakd"}})
    calls = []
    family = open_family(run.output.parent / "wav2vec2")
    encode = type(family).encode
    monkeypatch.setattr(
        type(family), "encode", lambda self, model, *args: calls.append(1) or encode(self, model, *args)
    )
    student = distill(run)
    calls_of_two_epochs = len(calls)
    calls.clear()
    monkeypatch.setattr(type(family), "encode", encode)
    teacher, model = family.load().state_dict(), open_family(student).load().state_dict()
    changed = {
        name
        for name in ("lm_head.weight", "wav2vec2.encoder.layer_norm.weight")
        if not torch.equal(model[name], teacher[name])
    }
    assert changed == {"lm_head.weight"}
    assert calls_of_two_epochs < 2 * len(steps(run)) + 30


def test_clips_that_cannot_be_aligned_are_left_out_and_named(ctc, caplog):
    run = ctc()
    manifest = Path(run.corpus)
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    first = next(row for row in rows if row["split"] == "train")
    first["text"] = "abcdefghij " * 40
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with caplog.at_level(logging.WARNING, logger="workbench"):
        distill(run)
    assert (
        f"1 of 6 clips have more tokens than frames, so CTC cannot align them; they are left out: {first['id']}"
        in caplog.text
    )
    trained = {
        row["utterance"] if "utterance" in row else row["id"]
        for row in pq.read_table(run.output / "weights.parquet").to_pylist()
    }
    assert first["id"] not in trained
    assert len(trained) == 5
    assert distill(run) == run.output / "student"  # the corpus is the same as before


@pytest.mark.parametrize("kind", ["wav2vec2", "parakeet"])
def test_texts_of_digits_alone_are_left_out_where_the_vocabulary_has_none(ctc, caplog, kind):
    run = ctc(kind=kind)
    manifest = Path(run.corpus)
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    first, second = [row for row in rows if row["split"] == "train"][:2]
    first["text"], second["text"] = "42 17", "H.323"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with caplog.at_level(logging.WARNING, logger="workbench"):
        distill(run)
    assert f"1 of 6 clips have no letter that the vocabulary has and are left out: {first['id']}" in caplog.text
    assert "the vocabulary lacks 7 letters and digits of the transcripts" in caplog.text
    trained = {row.get("utterance", row.get("id")) for row in pq.read_table(run.output / "weights.parquet").to_pylist()}
    assert first["id"] not in trained
    assert second["id"] in trained


def test_a_corpus_of_nothing_but_digits_is_refused(ctc):
    run = ctc()
    manifest = Path(run.corpus)
    rows = [json.loads(line) | {"text": "42"} for line in manifest.read_text().splitlines()]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match="no clip is left to train on"):
        distill(run)


def test_a_teacher_with_a_ctc_head_labels(ctc, tmp_path):
    run = ctc()
    made = label(
        tmp_path / "speech.jsonl",
        tmp_path / "labels.jsonl",
        LabelSettings(run.teacher),
        LabelFilters(None, None, None, None, None, None),
    )
    # what a random model writes may be rejected, for repetition
    written = made.read_text() + made.with_name("labels.rejected.jsonl").read_text()
    rows = [json.loads(line) for line in written.splitlines()]
    family = open_family(tmp_path / "wav2vec2")
    clips = [u for split in ("train", "validation", "test") for u in open_corpus(run.corpus, split)]
    alone = {u.id: validate(family.load(), family, [u], 0.0).hypotheses[0] for u in clips[:3]}
    assert {row["id"]: row["text"] for row in rows if row["id"] in alone} == {k: v for k, v in alone.items() if v}
    assert all(row["confidence"] < 0 for row in rows)
    with pytest.raises(UserError, match="does not detect languages"):
        label(
            tmp_path / "speech.jsonl",
            tmp_path / "l2.jsonl",
            LabelSettings(run.teacher, language="auto"),
            LabelFilters(),
        )
    with pytest.raises(UserError, match="is decoded greedily"):
        label(tmp_path / "speech.jsonl", tmp_path / "l3.jsonl", LabelSettings(run.teacher, beams=5), LabelFilters())


def test_an_arm_of_a_study_is_scored_beside_its_teacher(ctc, tmp_path):
    run = ctc()
    content = {
        "output": str(tmp_path / "study"), "corpora": [run.corpus], "seeds": [1], "baseline": "constant",
        "recipe": {"teacher": run.teacher, "student": {"encoder_layers": 2}, "trailing_silence": SILENCE,
                   "stages": {"all": {**ALL, "epochs": 1}}},
        "arms": {"constant": {"stages.all.weighting": {"name": "fixed", "alpha": 0.2}},
                 "adakd": {"stages.all.weighting": {"name": "adakd"}}},
    }  # fmt: skip
    (tmp_path / "study.yaml").write_text(json.dumps(content))
    study = load_study(tmp_path / "study.yaml")
    score_teacher(study, run.corpus)
    teacher = teacher_scores(study, run.corpus)
    found = [run_arm(study, trial) for trial in trials(study)]
    assert [one["arm"] for one in found] == ["constant", "adakd"]
    assert len(teacher["hypotheses"]) == len(found[0][study.split]["hypotheses"]) == 6
    assert (
        found[0][study.split]["hypotheses"] != found[1][study.split]["hypotheses"]
        or found[0]["validation"] != found[1]["validation"]
    )


# --- a Whisper encoder with a CTC head


@pytest.mark.parametrize("units", ["characters", "bytes", "bpe"])
def test_a_whisper_encoder_learns_to_write(over_whisper, units):
    run = over_whisper(units=units, stages={"ctc": {**FROM_LABELS, "epochs": 12, "learning_rate": 5e-3}})
    student = distill(run)
    family = open_family(student)
    assert (family.name, family.ctc_tokens.units, family.silence) == ("ctc", units, 0.4)
    lines = steps(run)
    assert lines[-1]["task"] < 0.7 * lines[0]["task"]
    assert all("distillation" not in line or line["distillation"] == 0 for line in lines)
    kept = {path.name for path in student.iterdir()}
    assert ("tokenizer.json" in kept) == (units == "bpe")
    assert "generation_config.json" not in kept
    scored = validate(family.load(), family, open_corpus(run.corpus, "validation"), 0.4).scores()
    assert scored["wer"] == pytest.approx(json.loads((run.output / "scores.json").read_text())["validation"]["wer"])


def test_it_begins_as_the_whispers_encoder_and_teaches_a_smaller_one(over_whisper, recipe, tiny_checkpoint):
    first = over_whisper("first")
    student = distill(first)
    family, whisper = open_family(student), open_family(tiny_checkpoint)
    built = family.build_student(whisper.load(), first.student)
    features = family.features([open_corpus(first.corpus, "train")[0].wave()], 3.0)
    same = whisper.build_student(whisper.load(), first.student)
    with torch.no_grad():
        torch.testing.assert_close(family.encode(built, features), whisper.encode(same, features))
    second = recipe("second", teacher=str(student), student={"encoder_layers": 1},
                    stages={"all": {**ALL, "encoder_matching": 0.5, "weighting": {"name": "adakd"}}})  # fmt: skip
    smaller = open_family(distill(second))
    assert smaller.load().config.encoder_layers == 1
    assert smaller.same_tokens(family)
    assert all(line["distillation"] > 0 and line["matching"] > 0 for line in steps(second))


def test_padding_changes_nothing_of_a_whisper_encoder(over_whisper):
    from workbench.models.states import encode_waves

    run = over_whisper(stages={"ctc": {**FROM_LABELS, "epochs": 1}})
    family = open_family(distill(run))
    model, waves = family.load(), [u.wave() for u in open_corpus(run.corpus, "train")][:4]
    for silence in (0.0, 0.4):
        states, mask = encode_waves(family, model, waves, max(map(len, waves)) / 16_000 + silence, torch.device("cpu"))
        for wave, found, there in zip(waves, states, mask, strict=True):
            alone, _ = encode_waves(family, model, [wave], len(wave) / 16_000 + silence, torch.device("cpu"))
            torch.testing.assert_close(found[there].detach(), alone[0].detach(), atol=1e-4, rtol=1e-4)


# --- what is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student": {"decoder_layers": 1}}, r"student\.decoder_layers is 1; a student with a CTC head has no decoder"),
        ({"student": {"vocabulary": "corpus"}}, r"student\.vocabulary is corpus"),
        ({"student": {"pool_after": 1}}, r"student\.pool_after is not supported"),
        ({"student": {"encoder_low_rank_variance": 0.9}}, r"student\.encoder_low_rank_variance is not supported"),
        ({"student": {"ctc": "bytes"}}, r"student\.ctc is bytes, but teacher .* is no Whisper"),
        ({"augment": {"time_masks": 1}}, "the student reads waves, not mels"),
        ({"stage": {"mixup": {}}}, r"stages\.all\.mixup needs a decoder"),
        ({"stage": {"on_policy": {}}}, r"stages\.all\.on_policy needs a decoder"),
        ({"stage": {"decoder_matching": {}}}, r"stages\.all\.decoder_matching needs a decoder"),
        ({"stage": {"teacher_adapter": {}}}, r"stages\.all\.teacher_adapter needs a decoder"),
        ({"stage": {"weighting": {"name": "askd", "self_teacher": "intermediate"}}}, "self_teacher intermediate"),
    ],
    ids=str,
)
def test_what_a_ctc_student_cannot_do_is_said_before_it_trains(ctc, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        distill(ctc(**changes))
    assert "\n" not in str(caught.value)


def test_what_does_not_go_with_a_whisper_teacher_is_said(over_whisper, recipe, tmp_path):
    for weighting in ({"name": "adakd"}, {"name": "fixed"}, {"name": "askd"}):
        with pytest.raises(
            UserError, match="does not predict the student's tokens, so there is no distribution to learn from"
        ):
            distill(over_whisper(stages={"ctc": {**ALL, "weighting": weighting}}))
    write_checkpoint(tmp_path / "wav2vec2", "wav2vec2")
    with pytest.raises(
        UserError, match="is neither a Whisper nor a Whisper encoder with a CTC head over the same tokens"
    ):
        distill(over_whisper(student={"init_from": str(tmp_path / "wav2vec2")}))
    with pytest.raises(UserError, match=r"divergence\.blank_weight would have no effect"):
        distill(recipe(stages={"all": {**ALL, "divergence": {"blank_weight": 0.5}}}))


def test_teachers_with_other_vocabularies_are_refused(ctc, tmp_path):
    from tests.models.ctc_checkpoints import NAMES, write_tokens

    write_checkpoint(tmp_path / "other", "wav2vec2", seed=1)
    write_tokens(tmp_path / "other", [*NAMES[:5], *reversed(NAMES[5:])])
    with pytest.raises(UserError, match="teachers of one student must share a tokenizer"):
        distill(ctc(more_teachers=[str(tmp_path / "other")]))
    with pytest.raises(UserError, match="has another vocabulary than the teacher"):
        distill(ctc(student={"init_from": str(tmp_path / "other")}))
