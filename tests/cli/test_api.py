"""`import workbench`: the chain as functions."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import workbench
from export.assembly.origin import published_name
from tests.malformed import copied
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
    folder = tmp_path / "2026 😀"  # a text that YAML would read otherwise
    run = workbench.distill(path, {"output": folder, "stages.decoder.epochs": 1, "seed": 7})
    assert run.folder == folder
    assert run.scores["validation"]
    assert yaml.safe_load((run.folder / "recipe.yaml").read_text())["seed"] == 7
    bundle = workbench.export(run.student, folder / "bundle", precision=["fp32", "int8"], verify=False)
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


def test_defaults_come_from_the_run(tmp_path, monkeypatch):
    bundle = tmp_path / "run" / "bundle"
    bundle.mkdir(parents=True)
    assert (corpus_of_run(bundle), teacher_of_run(bundle)) == ("prompts-en", "whisper-base")
    content = yaml.safe_load((FOLDER / "quickstart.yaml").read_text()) | {
        "corpus": "mine.jsonl",
        "teacher": "mine/whisper",
    }
    (tmp_path / "run" / "recipe.yaml").write_text(yaml.safe_dump(content))
    assert (corpus_of_run(bundle), teacher_of_run(bundle)) == ("mine.jsonl", "mine/whisper")
    monkeypatch.chdir(bundle)
    assert (corpus_of_run(Path()), teacher_of_run(Path())) == ("mine.jsonl", "mine/whisper")


def test_a_bundle_names_no_folder_of_this_machine(recipe, cache, speech, tmp_path, exported):
    """Of its teacher, and of the corpora that it was measured and verified on: a bundle is published."""
    bundle = copied(exported, tmp_path / "published" / "bundle")
    manifest = speech()
    options = workbench.MeasureOptions(clips=2, robustness=False)
    workbench.measure([bundle], str(exported), corpora=[str(manifest)], options=options)
    assert str(tmp_path) not in (bundle / "bundle.json").read_text()
    assert str(tmp_path) not in (bundle / "MODEL_CARD.md").read_text()
    assert published_name("openai/whisper-small") == "openai/whisper-small"
    assert published_name(str(tmp_path)) == tmp_path.name
