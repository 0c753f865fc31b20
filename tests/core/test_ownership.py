"""A command deletes what the workbench made and nothing else, and says so before it works."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from export.assembly import build as exporting
from export.assembly.build import export_bundle
from export.assembly.pack import pack
from export.bundle.manifest import BUNDLE, open_manifest, record
from export.measurement.measure import measure
from export.measurement.page import write_page
from export.quantization.int8 import DEFAULTS
from export.search.search import export_for
from workbench.cli.app import app
from workbench.core.errors import UserError
from workbench.core.ownership import check_manifest, check_output, check_replaceable
from workbench.corpus.corrupt import write_corrupted
from workbench.corpus.prompts import build_prompts
from workbench.labelling.filters import LabelFilters
from workbench.labelling.pseudo_labels import LabelSettings, label
from workbench.labelling.speech_from_text import synthesize
from workbench.run import checkpoints
from workbench.run.folder import delete_run_files
from workbench.training.stage import StageTrainer
from workbench.training.trainer import distill


@pytest.fixture
def bundle(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "bundle")
    return tmp_path / "bundle"


def everything(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def leave_behind(target):
    """What a process leaves that is killed while it writes a target."""
    place = target.with_name(f".{target.name}.abcd_123.part")
    (place / "new").mkdir(parents=True)
    (place / "lock").touch()
    (place / "new" / "half").touch()
    return place


def test_an_output_that_cannot_be_meant_is_refused(tmp_path, monkeypatch):
    home, work, data = tmp_path / "homes" / "me", tmp_path / "work" / "here", tmp_path / "data" / "clips"
    for folder in (home, work, data):
        folder.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(data)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for output, said in [
        (Path("/"), "is the root of the file system"),
        (home, "is the home folder"),
        (home.parent, "holds the home folder"),
        (Path(), "is the current folder"),
        (Path(".."), "holds the current folder"),
        (tmp_path / "file", "is a file, expected a folder"),
        (tmp_path / "link", "is a symbolic link"),
        (tmp_path / "dangling", "is a symbolic link"),
        (data, "is the input"),
        (data.parent, "holds the input"),
        (data / "new", "lies in the input"),
    ]:
        with pytest.raises(UserError, match=said):
            check_output(output, [data])
    check_output(data / "new", [data], within=True)
    check_output(tmp_path / "new", [data])
    check_output(home / "new", [data])


@pytest.mark.parametrize(
    "name", ["notes.txt", "onnx/notes.txt", "edge/__pycache__/notes.txt", "edge/__pycache__/other.cpython-311.pyc"]
)
def test_a_file_that_the_manifest_does_not_list_is_in_the_way(bundle, name):
    (bundle / "edge" / "__pycache__").mkdir(exist_ok=True)
    (bundle / "edge" / "__pycache__" / "stream.cpython-311.pyc").touch()  # of running it
    check_replaceable(bundle, BUNDLE)
    (bundle / name).write_text("mine")
    with pytest.raises(UserError, match=f"holds '{name}', which is not part of the bundle"):
        check_replaceable(bundle, BUNDLE)


def test_a_link_in_a_folder_is_not_followed(bundle, tmp_path):
    (tmp_path / "mine").mkdir()
    (bundle / "shortcut").symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match="holds 'shortcut'"):
        check_replaceable(bundle, BUNDLE)


@pytest.mark.parametrize(
    "manifest", [None, "not json", "[]", '{"files": {"mine.txt": ""}}', '{"format": 2, "files": []}']
)
def test_another_folder_is_no_bundle(tmp_path, manifest):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    if manifest is not None:
        (tmp_path / "out" / "bundle.json").write_text(manifest)
    with pytest.raises(UserError, match="out"):
        check_replaceable(tmp_path / "out", BUNDLE)


def test_every_command_says_before_it_works_that_something_is_in_the_way(
    exported, student, tmp_path, monkeypatch, cache
):
    def never(*_, **__):
        raise AssertionError("it worked before it checked")

    monkeypatch.setattr(exporting, "_pruned", never)
    monkeypatch.setattr("export.bundle.vocabulary.choose_tokens", never)
    monkeypatch.setattr("export.search.search.scored_clips", never)
    monkeypatch.setattr("export.assembly.pack.shutil.copyfile", never)
    monkeypatch.setattr("workbench.corpus.corrupt.corrupt", never)
    monkeypatch.setattr("workbench.corpus.prompts.unpack", never)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("mine")
    texts = tmp_path / "lines.txt"
    texts.write_text("hello\n")
    clips = []
    commands = [
        lambda out: export_bundle(student, out, ["fp32"]),
        lambda out: export_bundle(student, out, ["fp32"], overwrite=True),
        lambda out: export_for(student, out, "", None, "prompts-en", DEFAULTS, 1, overwrite=True),
        lambda out: export_for(student, out, "", None, "prompts-en", DEFAULTS, 1),
        lambda out: pack(exported, out, "edge", overwrite=True),
        lambda out: write_corrupted(clips, 0.4, "exchange", 1, out),
        lambda out: build_prompts("es", out),
        lambda out: prune(student, out),
    ]

    def prune(source, out):
        found = CliRunner().invoke(app, ["prune", str(source), "-o", str(out), "--vocabulary", "en", "--overwrite"])
        raise found.exception

    for command in commands:
        with pytest.raises(UserError, match=r"mine: is not a .*: it holds 'thesis\.txt'"):
            command(mine)
        assert everything(mine) == {"thesis.txt": b"mine"}
    for command in [commands[1], commands[2], commands[7]]:
        with pytest.raises(UserError, match="is the input"):
            command(student)
        with pytest.raises(UserError, match="holds the input"):
            command(student.parent)
        with pytest.raises(UserError, match="lies in the input"):
            command(student / "bundle")
    with pytest.raises(UserError, match="holds the input"):
        commands[4](exported.parent)
    with pytest.raises(UserError, match="lies in the input"):
        commands[4](exported / "device")


def test_what_others_write_meanwhile_is_not_deleted(exported, tmp_path, monkeypatch):
    device = pack(exported, tmp_path / "device", "edge")

    def card(folder, content):
        (device / "notes.txt").write_text("written while it was packed")

    monkeypatch.setattr("export.assembly.pack.write_card", card)
    with pytest.raises(UserError, match=r"holds 'notes\.txt'"):
        pack(exported, device, "edge", overwrite=True)
    assert (device / "notes.txt").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["device"]


def test_what_a_killed_export_left_is_gone_although_there_is_nothing_to_do(bundle, student):
    left = leave_behind(bundle)
    export_bundle(student, bundle, ["fp32", "int8"], "tiny")
    assert not left.exists()


def test_a_pruned_checkpoint_is_replaced_and_no_other(student, tmp_path):
    def prune(out, *more):
        return CliRunner().invoke(app, ["prune", str(student), "-o", str(out), "--vocabulary", "200", *more])

    out = tmp_path / "pruned"
    assert prune(out).exit_code == 0
    left = leave_behind(out)
    assert prune(out, "--overwrite").exit_code == 0
    assert not left.exists()
    (out / "README.md").write_text("mine")
    assert "README.md" in str(prune(out, "--overwrite").exception)
    shutil.copytree(student, tmp_path / "checkpoint")
    before = everything(tmp_path / "checkpoint")
    assert "is not a checkpoint" in str(prune(tmp_path / "checkpoint", "--overwrite").exception)
    assert everything(tmp_path / "checkpoint") == before


def test_recording_keeps_the_checksums_of_what_it_did_not_write(bundle):
    before = open_manifest(bundle).content["files"]
    record(
        bundle,
        measurement={
            "corpus": {"name": "c", "split": "test", "clips": 1},
            "host": {"cpu": "?"},
            "threads": 1,
            "systems": [],
        },
    )
    after = open_manifest(bundle, check=True).content["files"]
    assert after.keys() == before.keys()
    assert {name for name in before if before[name] != after[name]} == {"MODEL_CARD.md"}
    text = json.loads((bundle / "bundle.json").read_text())
    with (bundle / "vocab.json").open("a") as file:
        file.write("\n")
    with pytest.raises(UserError, match=r"vocab\.json: its SHA-256 is not the one"):
        record(bundle, verification={"clients": []})
    assert json.loads((bundle / "bundle.json").read_text()) == text


def test_a_card_that_a_kill_left_behind_its_manifest_is_written_anew(bundle, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("export.bundle.manifest.write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        record(bundle, verification={"clients": [], "corpus": "c"})
    monkeypatch.undo()
    assert "Verified in" not in (bundle / "MODEL_CARD.md").read_text()
    open_manifest(bundle, check=True)
    assert "Verified in" in (bundle / "MODEL_CARD.md").read_text()
    (bundle / "MODEL_CARD.md").write_text("damaged")
    content = json.loads((bundle / "bundle.json").read_text())
    content["name"] = "other"
    (bundle / "bundle.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="MODEL_CARD"):
        open_manifest(bundle, check=True)


def test_a_run_is_begun_anew_only_where_all_is_a_runs(recipe, exported, tmp_path):
    run = distill(recipe()).parent
    shutil.copytree(exported, run / "bundle")
    (run / "report.json").write_text("{}")
    (run / ".bundle.lock").touch()
    finished = everything(run)
    for name in ("notes.txt", "student/notes.txt", "checkpoints/step-00000001-backup/model.safetensors"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("mine")
        with pytest.raises(UserError, match=f"holds '{name}', which is not part of the run"):
            distill(recipe(seed=2), restart=True)
        (run / name).unlink()
        assert everything(run) == finished
    # nothing is lost where the recipe cannot be carried out
    with pytest.raises(UserError):
        distill(recipe(corpus=str(tmp_path / "nowhere.jsonl")), restart=True)
    with pytest.raises(UserError, match="holds the input"):
        distill(recipe(student={"init_from": str(run / "student"), "decoder_layers": "all"}), restart=True)
    assert everything(run) == finished
    distill(recipe(seed=2), restart=True)
    assert everything(run).keys() == finished.keys()
    assert (run / "student" / "model.safetensors").read_bytes() != finished["student/model.safetensors"]
    assert everything(run / "bundle") == everything(exported)


def test_a_run_is_not_begun_in_a_folder_of_others(recipe, tmp_path):
    (tmp_path / "run" / "student").mkdir(parents=True)
    (tmp_path / "run" / "student" / "essay.txt").write_text("mine")
    for restart in (False, True):
        with pytest.raises(UserError, match=r"is not a run: it holds 'student/essay\.txt'"):
            distill(recipe(), restart)
    assert [p.name for p in (tmp_path / "run").rglob("*")] == ["student", "essay.txt"]


def test_an_interrupted_run_is_resumed_and_leaves_no_bar_and_no_foreign_file_is_lost(recipe, monkeypatch, tmp_path):
    bars = []
    monkeypatch.setattr("workbench.training.stage.Progress.__exit__", lambda self, *_: bars.append(self.name))
    step = StageTrainer.step

    def interrupted(self, *rest):
        if self.state.progress.step == 2:
            raise KeyboardInterrupt
        step(self, *rest)

    monkeypatch.setattr(StageTrainer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        distill(recipe(checkpoint_minutes=1e-9))
    assert "encoder" in bars
    monkeypatch.undo()
    run = tmp_path / "run"
    (run / "notes.txt").write_text("mine")
    (run / "checkpoints" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds 'checkpoints/notes\.txt', .* in a folder that the run deletes"):
        distill(recipe(checkpoint_minutes=1e-9))
    (run / "checkpoints" / "notes.txt").unlink()
    left = [leave_behind(run / "student"), leave_behind(run / "checkpoints" / "step-00000009")]
    distill(recipe(checkpoint_minutes=1e-9))
    assert (run / "notes.txt").read_text() == "mine"
    assert not any(place.exists() for place in left)
    left = leave_behind(run / "scores.json")
    (run / "best").mkdir()
    (run / "best" / "config.json").touch()
    distill(recipe(checkpoint_minutes=1e-9))  # was killed after its end and before it had tidied up
    assert not left.exists()
    assert not (run / "best").exists()


def test_deleting_a_run_goes_from_its_end_to_its_recipe(tmp_path, monkeypatch):
    for name in ("recipe.yaml", "scores.json", "student/source.json", "student/odd.txt", "mine.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"schema": 1, "files": ["odd.txt"]}')
    order = []
    monkeypatch.setattr(Path, "unlink", lambda self, **_: order.append(self.name))
    delete_run_files(tmp_path)
    assert order == ["scores.json", "odd.txt", "source.json", "recipe.yaml"]


@pytest.mark.parametrize("command", ["label", "synthesize"])
def test_a_manifest_of_others_is_not_replaced(tmp_path, command):
    source, out = tmp_path / "talks", tmp_path / "out.jsonl"
    source.mkdir()
    (source / "lines.txt").write_text("hello\n")
    out.write_text("mine")

    def run(out, source=source):
        if command == "label":
            return label(source, out, LabelSettings(), LabelFilters())
        return synthesize(source / "lines.txt" if source.is_dir() else source, out)

    with pytest.raises(UserError, match=r"out\.jsonl: exists, but out\.rejected\.jsonl"):
        run(out)
    assert out.read_text() == "mine"
    with pytest.raises(UserError, match="is the input"):
        run(out, out)
    with pytest.raises(UserError, match="is a folder"):
        run(source)
    (tmp_path / "link.jsonl").symlink_to(out)
    with pytest.raises(UserError, match="is a symbolic link"):
        run(tmp_path / "link.jsonl")
    (tmp_path / "new.audio").touch()
    with pytest.raises(UserError, match="is a file"):
        run(tmp_path / "new.jsonl")
    shutil.move(source, tmp_path / "talks.audio")
    with pytest.raises(UserError, match="holds the input"):
        run(tmp_path / "talks.jsonl", tmp_path / "talks.audio")


def test_what_a_killed_writer_of_a_manifest_left_is_removed(tmp_path):
    (tmp_path / "out.audio").mkdir()
    left = [leave_behind(tmp_path / "out.jsonl"), leave_behind(tmp_path / "out.audio" / "speech")]
    check_manifest(tmp_path / "out.jsonl", [])
    assert not any(place.exists() for place in left)


def test_a_report_of_others_is_not_replaced(exported, tmp_path):
    for name in ("report.json", "report.html"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text('{"quarter": 3}')
        with pytest.raises(UserError, match="holds a report that `workbench measure` did not write"):
            measure([exported], str(exported), folder)
        assert (folder / name).read_text() == '{"quarter": 3}'


def test_a_page_that_report_wrote_does_not_stand_in_the_way_of_measure(exported, tmp_path):
    write_page([], tmp_path / "report.html")
    with pytest.raises(UserError, match="absent"):  # the next thing that is looked at
        measure([exported], str(exported), tmp_path, [str(tmp_path / "absent.jsonl")])


def test_a_copy_beside_the_checkpoints_is_no_checkpoint(tmp_path):
    for name in ("step-00000001", "step-00000002", "step-00000009-backup"):
        (tmp_path / name).mkdir()
    assert checkpoints.latest(tmp_path) == tmp_path / "step-00000002"
    checkpoints.save(tmp_path, checkpoints.TrainingState(checkpoints.TrainingProgress(step=3)), {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000003", "step-00000009-backup"]
