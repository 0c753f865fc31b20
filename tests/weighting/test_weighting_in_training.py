"""What reaches a weighting's state and the logs in training: each clip once, whatever way a step is cut into parts."""

import json
from collections import defaultdict

import pyarrow.parquet as pq
import pytest
import torch

import workbench.training.stage
from export.measurement.curves import curves_of_run
from tests.conftest import DECODER, ENCODER
from workbench.config.weightings import known_weightings, looks_ahead
from workbench.core.errors import UserError
from workbench.run.inputs import read_inputs
from workbench.study.label_errors import read_run
from workbench.training.step.losses import StepLosses
from workbench.training.step.metrics import StepMetrics
from workbench.training.trainer import distill
from workbench.weighting import TeacherStatistics, build_weighting

MORE_THAN_CLIPS = 5  # micro-batches of a step that has two or three clips: the others are stand-ins


def stage(**changes):
    return {"decoder": {**DECODER, **changes}}


def steps(run):
    rows = [json.loads(line) for line in (run.output / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" in row]


def weights_by_step(run):
    found = defaultdict(list)
    for row in pq.read_table(run.output / "weights.parquet").to_pylist():
        found[row["step"]].append(row)
    return found


@pytest.mark.parametrize(("name", "figure"), [("superloss", "t"), ("homoscedastic", "task_weight_mean")])
def test_stand_ins_do_not_reach_the_state_of_a_weighting(recipe, name, figure):
    found = []
    for parts in (1, MORE_THAN_CLIPS):
        run = recipe(str(parts), stages=stage(epochs=1, micro_batches=parts, weighting={"name": name}))
        distill(run)
        found.append(steps(run)[1][figure])  # the state after one step, whose losses are those of the same student
        assert len(weights_by_step(run)[1]) < MORE_THAN_CLIPS
    assert found[1] == pytest.approx(found[0], rel=1e-4)


@pytest.mark.parametrize(("name", "figure"), [("superloss", "t"), ("homoscedastic", "task_weight_mean")])
def test_steps_that_are_on_policy_as_a_whole_leave_a_weighting_alone(recipe, name, figure):
    on_policy = {"method": "gkd", "fraction": 0.6}
    run = recipe(stages=stage(epochs=3, micro_batches=1, weighting={"name": name}, on_policy=on_policy))
    distill(run)
    lines = steps(run)
    assert {line["on_policy"] for line in lines} == {0.0, 1.0}
    for line in lines:
        assert (figure in line) == (line["on_policy"] == 0.0)


def test_on_policy_utterances_are_left_out_of_what_the_weighting_logs(recipe):
    on_policy = {"method": "gkd", "fraction": 0.5}
    run = recipe(stages=stage(epochs=3, micro_batches=2, weighting={"name": "adakd"}, on_policy=on_policy))
    distill(run)
    rows, lines = weights_by_step(run), steps(run)
    assert any(0 < line["on_policy"] < 1 for line in lines)
    for line in lines:
        mine = rows[line["step"]]
        assert all(row["task"] > 0 and row["task_weight"] + row["alpha"] == pytest.approx(1) for row in mine)
        assert bool(mine) == (line["on_policy"] < 1)
        if mine:  # not diluted by zeros of utterances that have no task loss
            assert line["task"] == pytest.approx(sum(row["task"] for row in mine) / len(mine), rel=1e-4)
            assert line["alpha_mean"] == pytest.approx(sum(row["alpha"] for row in mine) / len(mine), rel=1e-4)
        else:
            assert not {"task", "alpha_mean", "task_weight_mean", "k"} & set(line)
    assert min(read_run(run.output).late("task_weight").values()) > 0


def test_a_run_without_weighed_utterances_has_no_ranking(recipe):
    decoder = {**DECODER, "epochs": 1, "weighting": {"name": "fixed"}, "on_policy": {"fraction": 1.0}}
    run = recipe(stages={"encoder": ENCODER, "decoder": decoder})
    distill(run)
    with pytest.raises(UserError, match="stage decoder weighted no utterance"):
        read_run(run.output)


def test_a_students_own_transcripts_and_its_early_layer_do_not_meet(recipe):
    """ASKD's phase 2 is without the teacher, so without on-policy micro-batches; `intermediate` doubles the logits there."""
    weighting = {"name": "askd", "phase1": 0.5, "self_teacher": "intermediate"}
    run = recipe(
        stages=stage(epochs=4, micro_batches=1, weighting=weighting, on_policy={"method": "gkd", "fraction": 0.6})
    )
    distill(run)
    lines = steps(run)
    late = [line for line in lines if line.get("self_teaching") == 1.0]
    assert len(late) >= len(lines) // 2 - 1
    assert all(line["on_policy"] == 0.0 for line in late)
    assert any(line["on_policy"] == 1.0 for line in lines)


@pytest.mark.parametrize("weighting", [
    {"name": "adakd"}, {"name": "almkd", "start_epoch": 0, "weight_learning_rate": 0.01}, {"name": "superloss"},
    {"name": "focal"},
], ids=lambda weighting: weighting["name"])  # fmt: skip
def test_logged_means_are_over_the_whole_step(recipe, weighting):
    run = recipe(stages=stage(epochs=1, micro_batches=3, weighting=weighting))
    distill(run)
    rows = weights_by_step(run)
    assert any(len({row["alpha"] for row in mine}) > 1 for mine in rows.values())
    for line in steps(run):
        mine = rows[line["step"]]
        for column, figure in (("alpha", "alpha_mean"), ("task_weight", "task_weight_mean")):
            assert line[figure] == pytest.approx(sum(row[column] for row in mine) / len(mine), rel=1e-4)
        if "factor_mean" in line:
            factors = [row["alpha"] + row["task_weight"] for row in mine]
            assert line["factor_mean"] == pytest.approx(sum(factors) / len(factors), rel=1e-4)


def test_what_a_stage_does_not_compute_is_not_logged_as_zero(recipe):
    run = recipe(stages={"encoder": ENCODER, "decoder": DECODER})
    distill(run)
    encoder = [line for line in steps(run) if line["stage"] == "encoder"]
    assert encoder
    for line in encoder:
        assert not {"task", "distillation", "alpha_mean", "disagreement", "on_policy"} & set(line)
    for row in pq.read_table(run.output / "weights.parquet").to_pylist():
        computed = row["stage"] == "decoder"
        assert [row[name] is not None for name in ("alpha", "task_weight", "task", "distillation")] == [computed] * 4
        assert (row["matching"] is not None) != computed


def test_curves_do_not_take_a_missing_task_loss_for_zero(tmp_path):
    rows = [{"step": n, "stage": "decoder", "loss": 2.0, **({"task": 3.0} if n % 2 else {})} for n in range(1, 601)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    curves = curves_of_run(tmp_path)
    assert set(curves["task"]) == {3.0}
    assert set(curves["loss"]) == {2.0}


def a_micro_batch(alpha, log=None, **changes):
    alpha = torch.tensor(alpha)
    same = {"task": alpha, "distillation": alpha, "matching": alpha, "task_weight": 1 - alpha, "alpha": alpha}
    return StepLosses(**({"loss": torch.tensor(0.5), **same, "disagreements": torch.tensor(1), "compared": 4,
                          "log": log or {}} | changes))  # fmt: skip


def test_figures_are_means_over_micro_batches_and_processes():
    mine, other = (StepMetrics(["k"], torch.device("cpu")) for _ in range(2))
    mine.add(a_micro_batch([1.0], {"k": 2.0}))
    mine.add(a_micro_batch([0.0, 0.5, 0.0], {"k": torch.tensor([1.0, 1.0, 0.0])}))
    other.add(a_micro_batch([0.25], {"k": 1.0}))
    means = mine.means(lambda totals: totals + other.totals)
    assert means["alpha_mean"].item() == pytest.approx(1.75 / 5)
    assert means["task_weight_mean"].item() == pytest.approx(1 - 1.75 / 5)
    assert means["k"].item() == pytest.approx(1.0)
    assert means["disagreement"].item() == pytest.approx(3 / 12)
    assert means["loss"].item() == pytest.approx(1.5)  # a sum of shares
    with pytest.raises(ValueError, match=r"\['t'\]"):
        mine.add(a_micro_batch([0.5], {"t": 1.0}))


def test_a_process_with_nothing_to_log_takes_part_in_the_sums():
    alone = StepMetrics(["k"], torch.device("cpu"))
    means = alone.means(lambda totals: totals)
    assert means["loss"].item() == 0.0
    assert all(means[name].isnan() for name in ("alpha_mean", "k", "task", "disagreement"))


@pytest.mark.parametrize("control", [{}, {"permute": True}])
def test_a_weighting_that_looks_ahead_learns_on_the_meta_split_and_the_others_train_on_it(
    recipe, speech, tmp_path, monkeypatch, control
):
    seen = []

    class Spied(workbench.training.stage.StudentMetaBatches):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            seen.extend(u.id for u in self.validation.utterances)

    monkeypatch.setattr(workbench.training.stage, "StudentMetaBatches", Spied)
    rows = [json.loads(line) for line in speech().read_text().splitlines()]
    of = {split: [row["id"] for row in rows if row["split"] == split] for split in ("train", "validation")}
    meta = of["train"][::2]
    manifest = tmp_path / "with_meta.jsonl"
    changed = [{**row, "split": "meta"} if row["id"] in meta else row for row in rows]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in changed))
    almkd = stage(epochs=1, weighting={"name": "almkd", "start_epoch": 0, "update_every": 1, **control})
    distill(recipe("without", stages=almkd))
    assert set(seen) == set(of["validation"])  # where there is no meta split, as its authors do it
    seen.clear()
    looking = recipe("looking", corpus=str(manifest), stages=almkd)
    distill(looking)
    assert set(seen) == set(meta)
    assert trained_on(looking) == set(of["train"]) - set(meta)
    adakd = recipe("adakd", corpus=str(manifest), stages=stage(epochs=1, weighting={"name": "adakd"}))
    distill(adakd)
    assert trained_on(adakd) == set(of["train"])
    assert "meta clips" in read_inputs(looking)
    assert "meta clips" not in read_inputs(adakd)


def trained_on(run):
    return {row["id"] for rows in weights_by_step(run).values() for row in rows}


def test_a_system_that_looks_ahead_says_so_in_its_file():
    statistics = TeacherStatistics((1.0, 2.0), {})
    for name in known_weightings():
        assert build_weighting({"name": name}, statistics, 1).meta_learned == looks_ahead({"name": name}), name


def test_a_student_that_teaches_itself_learns_from_itself_and_not_from_the_teacher(recipe):
    """Its moving average begins as the student, so the first distillation loss is zero; the teacher's is not."""
    found = {}
    for phase1 in (0.0, 1.0):
        askd = {"name": "askd", "phase1": phase1, "self_teacher": "ema"}
        run = recipe(f"phase1-{phase1}", stages=stage(epochs=1, weighting=askd))
        distill(run)
        found[phase1] = steps(run)[0]["distillation"]
    assert found[0.0] == pytest.approx(0, abs=1e-5)
    assert found[1.0] > 0.1


def test_adakd_weighs_by_the_teachers_loss_which_training_does_not_change(recipe):
    """With a constant k an utterance's weight stays what it was, while the student's own loss on it changes; the weights are ordered by the teacher's loss."""
    run = recipe(stages=stage(epochs=2, weighting={"name": "adakd", "k0": 1, "k1": 1}))
    distill(run)
    by_id = defaultdict(list)
    for rows in weights_by_step(run).values():
        for row in rows:
            by_id[row["id"]].append(row)
    for rows in by_id.values():
        assert rows[0]["alpha"] == pytest.approx(rows[1]["alpha"], rel=1e-5)
        assert rows[0]["task"] != pytest.approx(rows[1]["task"], rel=1e-3)
    ordered = sorted((rows[0]["teacher_loss"], rows[0]["alpha"]) for rows in by_id.values())
    alphas = [alpha for _, alpha in ordered]
    assert len(set(alphas)) > 2
    assert alphas in (sorted(alphas), sorted(alphas, reverse=True))
