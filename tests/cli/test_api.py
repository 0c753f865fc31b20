"""`import workbench`: the chain as functions."""

import subprocess
import sys

import pytest
import yaml

import workbench
from workbench.api import corpus_of_run, teacher_of_run
from workbench.config.shipped import FOLDER
from workbench.corpus import open_corpus


def test_importing_it_loads_no_torch_and_names_what_there_is():
    script = "import sys, workbench; dir(workbench); print([m for m in ('torch', 'transformers', 'export') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert set(workbench.__all__) <= set(dir(workbench))
    for name in workbench.__all__:
        assert getattr(workbench, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        _ = workbench.distil


def test_the_whole_chain(recipe, cache, speech, tmp_path):
    """A run in few steps, its bundle, its report, a transcript: each from what the one before returned."""
    made = recipe()
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(made.model_dump(mode="json", exclude_unset=True)))
    run = workbench.distill(path, {"output": str(tmp_path / "run"), "stages.decoder.epochs": 1, "seed": 7})
    assert run.folder == tmp_path / "run"
    assert run.scores["validation"]
    assert yaml.safe_load((run.folder / "recipe.yaml").read_text())["seed"] == 7
    bundle = workbench.export(run.student, tmp_path / "run" / "bundle", precision=["fp32", "int8"], verify=False)
    assert bundle.precisions == ["fp32", "int8"]
    assert bundle.size_mb("int8") < bundle.size_mb("fp32")
    options = workbench.MeasureOptions(clips=2, robustness=False)
    measured = workbench.measure([bundle.folder], options=options)  # the run's own teacher and corpus
    assert measured.report["corpus"]["name"] == made.corpus
    assert len(measured.report["systems"]) == 3
    assert (measured.folder / "report.html").is_file()
    clip = open_corpus(made.corpus, "test")[0]
    said = workbench.load(bundle.folder, "int8").transcribe(workbench.read_audio(clip.audio), "en")
    assert isinstance(said.text, str)


def test_mistakes_are_one_sentence(tmp_path, exported):
    with pytest.raises(workbench.UserError, match="neither a file nor the name"):
        workbench.distill("quickstrat")
    with pytest.raises(workbench.UserError, match=r"unknown key .*epoch"):
        workbench.distill("quickstart", {"stages.decoder.epoch": 1})
    with pytest.raises(workbench.UserError, match=r"bundle\.json"):
        workbench.load(tmp_path)
    with pytest.raises(workbench.UserError, match="int9"):
        workbench.load(exported, "int9")
    with pytest.raises(workbench.UserError, match="no bundle to measure"):
        workbench.measure([])


def test_defaults_come_from_the_run(tmp_path):
    assert (corpus_of_run(tmp_path), teacher_of_run(tmp_path)) == ("prompts-en", "whisper-base")
    content = yaml.safe_load((FOLDER / "quickstart.yaml").read_text()) | {
        "corpus": "mine.jsonl",
        "teacher": "mine/whisper",
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    assert (corpus_of_run(tmp_path), teacher_of_run(tmp_path)) == ("mine.jsonl", "mine/whisper")
