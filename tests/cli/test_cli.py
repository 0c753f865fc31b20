"""The command line: quick help, one clear line for a mistake, the right exit status."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from export.bundle.manifest import record
from export.verification.verify import verify_bundle
from workbench import __version__
from workbench.corpus import open_corpus
from workbench.planning.doctor import examine


def run(*args, env=None, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "workbench", *map(str, args)], capture_output=True, text=True, check=False, cwd=cwd,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **(env or {})},
    )  # fmt: skip


def test_help_names_every_command_and_loads_no_torch():
    script = "import sys, workbench.cli.app, typer; typer.main.get_command(workbench.cli.app.app); print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    shown = run("--help").stdout
    for command in ("distill", "export", "verify", "measure", "demo", "teachers", "doctor"):
        assert command in shown
    assert run("--version").stdout.strip() == f"workbench {__version__}"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["distill", "none.yaml"], "none.yaml: neither a file nor the name"),
        (["distill", "RECIPE", "techer=x"], "unknown key 'techer'; did you mean 'teacher'?"),
        (["distill", "RECIPE", "corpus=none"], "corpus 'none'"),
        (["distill", "RECIPE", "teacher=./none"], "none: no such folder"),
        (["export", "none", "-o", "bundle"], "none: lacks config.json"),
        (["measure", "none", "--against", "BUNDLE"], "none/bundle.json: no such file"),
        (["verify", "none", "--checkpoint", "x"], "none/bundle.json: no such file"),
        (["verify", "none"], "student: no such folder; name the checkpoint that none comes from with --checkpoint"),
        (["demo", "none", "--against", "BUNDLE"], "none/bundle.json: no such file"),
    ],
)
def test_a_mistake_is_one_line_with_status_2_and_leaves_nothing(tmp_path, args, said, exported):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"output: {tmp_path}/run\nstages: {{d: {{trainable: decoder, epochs: 1, learning_rate: 1.0e-4}}}}\n"
    )
    done = run(*[{"RECIPE": recipe, "BUNDLE": exported}.get(a, a) for a in args], cwd=tmp_path,
               env={"WORKBENCH_CACHE": str(tmp_path / "cache")})  # fmt: skip
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert said in errors[0]
    assert "Traceback" not in done.stderr
    assert not [p for p in tmp_path.rglob("*") if p.suffix == ".part"]
    assert {p.name for p in tmp_path.iterdir()} <= {"r.yaml", "cache"}


def test_ctrl_c_is_said_in_a_line_with_status_130(tmp_path, monkeypatch):
    script = (
        "import workbench.planning.doctor, workbench.cli.app, sys\n"
        "def interrupted(): raise KeyboardInterrupt\n"
        "workbench.planning.doctor.examine = interrupted\n"
        "sys.argv = ['workbench', 'doctor']\n"
        "workbench.cli.app.main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert "interrupted" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_disk_is_said_in_a_line(tmp_path):
    script = (
        "import errno, workbench.planning.doctor, workbench.cli.app, sys\n"
        "def full(): raise OSError(errno.ENOSPC, 'No space left on device', 'runs/x')\n"
        "workbench.planning.doctor.examine = full\n"
        "sys.argv = ['workbench', 'doctor']\n"
        "workbench.cli.app.main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: runs/x: No space left on device")


def test_doctor_looks_at_everything_and_finds_this_machine_fit():
    findings = {f.topic: f for f in examine()}
    assert {"Python", "packages", "onnxruntime", "devices", "CPU", "teacher", "model hub", "disk"} <= set(findings)
    assert not [f for f in findings.values() if f.level == "error"]
    assert all(f.remedy for f in findings.values() if f.level != "ok")


def test_doctor_says_what_to_do_about_a_full_disk(monkeypatch):
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 0))
    disk = [f for f in examine() if f.topic == "disk"]
    assert all(f.level == "error" and "WORKBENCH_CACHE" in f.remedy for f in disk)


def test_teachers_are_listed_with_their_cost(tmp_path):
    shown = run("teachers", env={"WORKBENCH_CACHE": str(tmp_path), "COLUMNS": "160"}).stdout
    assert "whisper-base" in shown
    assert "133 MB" in shown


@pytest.mark.slow
def test_a_bundle_that_failed_its_verification_fails_again(student, exported, tmp_path):
    bundle = tmp_path / "bundle"
    shutil.copytree(exported, bundle)
    how = ["export", student, "-o", bundle, "--precision", "fp32,int8", "--name", "tiny"]
    clips = open_corpus("prompts-en", "validation")[:2]
    found = verify_bundle(bundle, student, clips, "two", ["edge"])
    for one in found["clients"]:
        one["passed"] = one["precision"] != "int8"
    record(bundle, verification=found)
    done = run(*how)
    assert done.returncode == 2
    assert "fails in edge int8; the reasons are above" in done.stderr
    assert "clips equal torch's, WER" in done.stderr
    assert run(*how, "--no-verify").returncode == 0
    for one in found["clients"]:
        one["passed"] = True
    record(bundle, verification=found)
    assert run(*how).returncode == 0


@pytest.mark.parametrize("words", [("recipes",), ("teachers",)])
def test_json_to_standard_output_is_all_of_it(words, tmp_path):
    done = run(*words, "--json", "-")
    assert done.returncode == 0
    rows = json.loads(done.stdout)
    assert all(row["name"] for row in rows)
    run(*words, "--json", tmp_path / "rows.json")
    assert json.loads((tmp_path / "rows.json").read_text()) == rows
