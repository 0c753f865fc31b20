"""What a result was computed from: other clips, checkpoints or recipes under the same name are noticed, and never kept silently."""

import json
import shutil

import pytest
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file

import workbench.study.arm as arm_module
from tests.conftest import DECODER
from tests.study.test_study import study  # noqa: F401  a fixture
from tests.training.test_targets_and_training import killed_at
from workbench.cache.encoder_cache import encoder_cache_folder
from workbench.core.errors import UserError
from workbench.study.arm import prepare, run_arm, score_teacher, teacher_scores
from workbench.study.current import _clips_of, _inputs, read_results
from workbench.study.plan import load_study, trials
from workbench.study.results import collect
from workbench.study.runner import run_study
from workbench.training.trainer import distill

STAGES = {"decoder": {**DECODER, "epochs": 1}}


def edited_text(manifest, number=0):
    """Another transcript for a clip of the manifest's training split."""
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    rows[number]["text"] += " indeed"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))


def louder(checkpoint):
    path = checkpoint / "model.safetensors"
    save_file({k: 1.01 * v for k, v in load_file(path).items()}, path, metadata={"format": "pt"})


@pytest.fixture
def own_teacher(tiny_checkpoint, tmp_path):
    return shutil.copytree(tiny_checkpoint, tmp_path / "teacher")


@pytest.mark.parametrize(("finished", "what"), [(True, "training clips"), (False, "teacher")])
def test_a_run_on_other_clips_or_another_teacher_is_refused(recipe, own_teacher, tmp_path, monkeypatch, finished, what):
    run = recipe(teacher=str(own_teacher), stages=STAGES, checkpoint_minutes=1e-9)
    if finished:
        distill(run)
    else:
        with killed_at(monkeypatch, 2):
            distill(run)
    edited_text(tmp_path / "speech.jsonl") if what == "training clips" else louder(own_teacher)
    with pytest.raises(UserError, match=f"holds a run on other {what} than now; add --restart") as error:
        distill(run)
    assert "\n" not in str(error.value)
    distill(run, restart=True)
    distill(run)


def test_a_run_of_another_recipe_names_the_first_key_that_differs(recipe):
    distill(recipe(stages=STAGES))
    with pytest.raises(UserError, match=r"stages\.decoder\.learning_rate was 0\.001 and is 0\.002"):
        distill(recipe(stages={"decoder": {**STAGES["decoder"], "learning_rate": 2e-3}}))


def test_states_of_an_encoder_taken_apart_by_other_clips_are_other_states(recipe, speech, cache):
    def calibrated(name, **changes):
        return recipe(
            name, stages=STAGES, student={"decoder_layers": [0, 2], "encoder_low_rank_variance": 0.9}, **changes
        )

    distill(calibrated("first"))
    stores = set((cache / "encoded").glob("*"))
    distill(calibrated("again"))
    assert set((cache / "encoded").glob("*")) == stores
    distill(calibrated("fewer", max_clips=3))  # its clips are among the first run's
    assert len(set((cache / "encoded").glob("*/"))) > len({p for p in stores if p.is_dir()})


def test_the_calibration_clips_decide_the_folder_only_where_there_are_any(recipe, speech):
    from workbench.corpus import open_corpus

    clips = open_corpus(str(speech()), "train")
    plain = recipe()
    assert encoder_cache_folder(plain, "trained", []) == encoder_cache_folder(plain, "trained", ())
    low = recipe(student={"encoder_low_rank_variance": 0.9})
    folders = {encoder_cache_folder(low, "trained", chosen) for chosen in (clips, clips[:2], clips[1:])}
    folders.add(
        encoder_cache_folder(
            recipe(student={"encoder_low_rank_variance": 0.9}, trailing_silence={"inference": 0.5}), "trained", clips
        )
    )
    assert len(folders) == 4


@pytest.fixture
def small(study, cache, tiny_checkpoint):  # noqa: F811
    """A study of one trial by default, parsed anew with changes as if its file had been edited."""

    def parsed(**changes):
        AcceleratorState._reset_state(reset_partial_state=True)
        _inputs.cache_clear()
        _clips_of.cache_clear()
        changes["recipe"] = {"teacher": str(tiny_checkpoint), **changes.get("recipe", BASE)}
        return load_study(study(**{"seeds": [1], "arms": {"fixed_kd": FIXED}, **changes}))

    return parsed


BASE = {"student": {"decoder_layers": [0, 2]}, "targets": {"top_k": 8, "allow_large_tail": True},
        "stages": {"decoder": {"trainable": "decoder", "epochs": 1, "learning_rate": 1e-3, "batch_seconds": 6.0}}}  # fmt: skip
FIXED = {"stages.decoder.weighting": {"name": "fixed"}}


def cell_of(parsed):
    return trials(parsed)[0]


def done(parsed):
    return parsed.output / cell_of(parsed).name / "result.json"


def test_an_arm_that_was_edited_runs_anew_and_an_unchanged_one_does_not(small, caplog):
    first = small()
    run_arm(first, cell_of(first))
    before = done(first).stat().st_mtime_ns
    same = small()
    run_arm(same, cell_of(same))
    assert done(same).stat().st_mtime_ns == before
    edited = small(arms={"fixed_kd": {**FIXED, "stages.decoder.learning_rate": 2e-3}})
    with pytest.raises(UserError, match="no run of the study is done yet"):  # `--table` does not count it
        collect(edited, trials(edited), "test")
    assert "stages.decoder.learning_rate was 0.001 and is 0.002" in caplog.text
    found = run_arm(edited, cell_of(edited))
    assert found["recipe"]["stages"]["decoder"]["learning_rate"] == 2e-3
    assert done(edited).stat().st_mtime_ns != before
    assert read_results(edited, trials(edited))
    # a stale result is no finished run for the whole study either
    run_study_calls = []
    again = small()
    monkey = pytest.MonkeyPatch()
    monkey.setattr("workbench.study.runner._run", lambda *args: run_study_calls.append(args[2]) or 0)
    run_study(again, again.output, 1, trials(again))
    monkey.undo()
    assert run_study_calls == trials(again)


def test_a_result_on_other_clips_of_another_teacher_or_split_does_not_count(small, own_teacher, tmp_path, caplog):
    base = {**BASE, "teacher": str(own_teacher)}
    first = small(recipe=base)
    run_arm(first, cell_of(first))
    manifest, weights = tmp_path / "speech.jsonl", own_teacher / "model.safetensors"

    def counted(**changes):
        parsed = small(recipe=base, **changes)
        return bool(read_results(parsed, trials(parsed)))

    assert counted()
    assert not counted(split="validation")
    assert "it was scored on the split 'test', not 'validation'" in caplog.text
    kept = weights.read_bytes()
    louder(own_teacher)
    assert not counted()
    assert "other teacher" in caplog.text
    weights.write_bytes(kept)
    for number, what in ((0, "training clips"), (6, "validation clips"), (12, "test clips")):
        caplog.clear()
        parsed = small(recipe=base)  # which writes the manifest anew
        edited_text(manifest, number)
        assert not read_results(parsed, trials(parsed))
        assert f"other {what}" in caplog.text
    content = json.loads(done(first).read_text())
    del content["inputs"]
    done(first).write_text(json.dumps(content))
    assert not counted()
    assert "did not record" in caplog.text


def test_a_base_that_was_edited_is_an_error_with_the_command(small, recipe, tmp_path):
    base = recipe("base", stages=STAGES)
    base.save(tmp_path / "base.yaml")
    own = {**BASE, "student": {}}
    parsed = small(prepare="base.yaml", recipe=own)
    prepare(parsed)
    run_arm(parsed, cell_of(parsed))
    other = recipe("base", stages={"decoder": {**STAGES["decoder"], "learning_rate": 5e-4}})
    other.save(tmp_path / "base.yaml")
    with pytest.raises(UserError, match=r"workbench distill .*base\.yaml --restart"):
        prepare(small(prepare="base.yaml", recipe=own))
    AcceleratorState._reset_state(reset_partial_state=True)
    distill(other, restart=True)
    assert not read_results(small(prepare="base.yaml", recipe=own), trials(parsed))  # its student is another one now


def test_the_teachers_scores_are_of_a_split_of_clips_and_of_a_teacher(small, own_teacher, monkeypatch):
    base = {
        "teacher": str(own_teacher),
        "stages": {"decoder": {"trainable": "decoder", "epochs": 1, "learning_rate": 1e-3}},
    }
    asked = []
    validate = arm_module.validate
    monkeypatch.setattr(arm_module, "validate", lambda *args: asked.append(len(args[2])) or validate(*args))
    test, validation = small(recipe=base), small(recipe=base, split="validation")
    corpus = test.corpora[0]
    for parsed in (test, validation, test, validation):
        score_teacher(parsed, corpus)
    assert len(asked) == 2
    scores = [teacher_scores(parsed, corpus) for parsed in (test, validation)]
    assert [s["split"] for s in scores] == ["test", "validation"]
    assert scores[0]["ids"] != scores[1]["ids"]
    louder(own_teacher)
    assert teacher_scores(test, corpus) is None
    limited = small(recipe={**base, "max_clips": 2})
    score_teacher(limited, corpus)
    assert asked[-1] == 2
    assert len(teacher_scores(limited, corpus)["ids"]) == 2
