"""Runs that are killed, meet another on their folder, or wait for one of their processes."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest

from tests.conftest import ROOT
from workbench.core.errors import UserError
from workbench.core.locks import lock_of, output_lock
from workbench.labelling.pseudo_labels import LabelSettings, label
from workbench.labelling.speech_from_text import synthesize
from workbench.training.trainer import distill

HOLDER = """
import sys, time
from pathlib import Path
from workbench.core.locks import output_lock
with output_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def held(tmp_path):
    """Start another process that holds an output; it is killed at the end."""
    started = []

    def hold(output):
        process = subprocess.Popen([sys.executable, "-c", HOLDER, str(output)], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield hold
    for process in started:
        process.kill()
        process.wait()


def test_an_output_is_one_process_s_at_a_time(tmp_path, held):
    output = tmp_path / "run"
    other = held(output)
    with pytest.raises(UserError, match=r"run: another process is at work on it; wait"), output_lock(output):
        pass
    other.kill()
    other.wait()
    assert lock_of(output).is_file()  # left by the kill, and in nobody's way
    with output_lock(output), output_lock(output):
        pass
    assert not lock_of(output).exists()
    assert not output.exists()


def test_a_claim_can_wait(tmp_path, held):
    other = held(tmp_path / "run")
    other.kill()
    with output_lock(tmp_path / "run", wait=True):
        assert other.wait() == -signal.SIGKILL


def test_a_run_folder_is_locked_while_it_is_trained(recipe, held):
    parsed = recipe()
    held(parsed.output)
    for restart in (False, True):
        with pytest.raises(UserError, match="another process is at work on it"):
            distill(parsed, restart)
    assert not parsed.output.exists()


def test_a_manifest_is_locked_while_it_is_written(tmp_path, held, cache, tiny_checkpoint):
    from workbench.labelling.filters import LabelFilters

    manifest = tmp_path / "out.jsonl"
    held(manifest)
    with pytest.raises(UserError, match="another process is at work on it"):
        label(tmp_path, manifest, LabelSettings(str(tiny_checkpoint)), LabelFilters())
    with pytest.raises(UserError, match="another process is at work on it"):
        synthesize(tmp_path / "text.txt", manifest)


def test_a_study_is_locked_while_it_runs(tmp_path, held, recipe):
    from workbench.study.plan import Study
    from workbench.study.runner import run_study

    content = recipe().model_dump(mode="json", exclude={"output", "corpus", "seed"})
    study = Study(
        output=tmp_path / "study", recipe=content, arms={"one": {}}, baseline="one", corpora=["prompts-en"], seeds=[1]
    )
    held(study.output)
    with pytest.raises(UserError, match="another process is at work on it"):
        run_study(study, tmp_path / "study.yaml", 1, [])


PARENTS = {
    "program": "subprocess.run(killed_with_parent(['sleep', '60']))",
    "program of a thread": "threading.Thread(target=subprocess.run, args=(killed_with_parent(['sleep', '60']),)).start()",
    "python": "subprocess.run(killed_with_parent([sys.executable, '-c', 'import time; time.sleep(60)']))",
    "loader": "list(DataLoader(Slow(), batch_size=None, num_workers=2, worker_init_fn=end_with_parent))",
    "measure": "p = multiprocessing.get_context('spawn').Process(target=wait); p.start(); p.join()",
}
PARENT = """
import multiprocessing, subprocess, sys, threading, time
from workbench.core.machine.children import end_with_parent, killed_with_parent
def wait():
    end_with_parent()
    time.sleep(60)
if __name__ == "__main__":
    if {loader}:
        from torch.utils.data import DataLoader, Dataset
        class Slow(Dataset):
            def __len__(self):
                return 2
            def __getitem__(self, i):
                time.sleep(60)
    {work}
"""


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
@pytest.mark.parametrize("kind", PARENTS)
def test_children_end_with_their_parent(tmp_path, kind):
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format(work=PARENTS[kind], loader=kind == "loader"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, str(script)], env=environment)
    deadline = time.monotonic() + 60
    children = []
    while time.monotonic() < deadline and not any(_asleep(child) for child in children):
        time.sleep(0.2)
        children = psutil.Process(parent.pid).children(recursive=True)
    assert children
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(children, 10)
    for child in alive:
        child.kill()
    assert not alive


def _asleep(child):
    """Whether a child has come to what it does, which is sleeping."""
    with suppress(psutil.NoSuchProcess):
        return child.status() == psutil.STATUS_SLEEPING and time.time() - child.create_time() > 3
    return False


def test_a_program_that_cannot_be_started_is_named():
    from workbench.core.machine.children import NOT_STARTED, killed_with_parent

    done = subprocess.run(killed_with_parent(["no-such-program"]), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (NOT_STARTED, "no-such-program: No such file or directory\n")


def test_every_child_is_started_so_that_it_ends_with_its_parent():
    """A new subprocess, loader or process has to be told; a grep is what keeps it so."""
    root = ROOT
    for path in [*root.glob("workbench/**/*.py"), *root.glob("export/**/*.py"), *root.glob("demo/**/*.py")]:
        content = path.read_text(encoding="utf-8")
        if path.name == "children.py":
            continue
        started = sum(content.count(f"subprocess.{name}(") for name in ("run", "Popen", "call", "check_output"))
        assert content.count("killed_with_parent(") >= started, path
        assert content.count("end_with_parent") >= content.count("DataLoader(") + content.count(".Process("), path


# Two processes, of which the main one takes longer to validate than a collective may last.
SLOW = """
import sys, time
from datetime import timedelta
from pathlib import Path
import torch
start_group = torch.distributed.init_process_group
torch.distributed.init_process_group = lambda *a, **k: start_group(*a, **{**k, "timeout": timedelta(seconds=15)})
from workbench.config.recipe import load_recipe
from workbench.training import validation
from workbench.training.trainer import distill
quick = validation.validate_encoded
def slow(*args):
    time.sleep(25)
    Path(sys.argv[1]).with_suffix(".slow").touch()
    return quick(*args)
validation.validate_encoded = slow
distill(load_recipe(Path(sys.argv[1])))
"""


@pytest.mark.slow
def test_a_long_validation_is_waited_for(recipe, tmp_path):
    from tests.conftest import DECODER

    parsed = recipe("slow", stages={"decoder": {**DECODER, "epochs": 1}})
    parsed.save(tmp_path / "slow.yaml")
    (tmp_path / "slow.py").write_text(SLOW)
    root = str(ROOT)
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone",
               str(tmp_path / "slow.py"), str(tmp_path / "slow.yaml")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((parsed.output / "scores.json").read_text())["processes"] == 2
    assert (tmp_path / "slow.slow").exists()
