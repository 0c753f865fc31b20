"""Files and folders are whole or absent, whenever their process is interrupted or killed."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT
from workbench.core import atomic
from workbench.core.atomic import atomic_folder, atomic_path, recover, staging_folder

# Each line of atomic.py in turn is the last one that a writer reaches; then the same is written again.
STOPPED_AT_EACH_LINE = """
import os, signal, sys
from pathlib import Path
from workbench.core import atomic
import filelock  # once, not in each child

how, exchange, kind, root = sys.argv[1], sys.argv[2] == "exchange", sys.argv[3], Path(sys.argv[4])
if not exchange:
    atomic._exchange = lambda one, other: False
    atomic._exchange.__code__ = atomic._exchange.__code__.replace(co_filename="elsewhere")

def write(path, text):
    if kind == "file":
        with atomic.atomic_path(path) as new:
            new.write_text(text)
        return
    with atomic.atomic_folder(path) as new:
        (new / "a").write_text(text)
        (new / "b").write_text(text)

def content(path):
    if kind == "file":
        return path.read_text() if path.exists() else None
    return [(path / name).read_text() for name in "ab"] if path.exists() else None

def whole(text):
    return text if kind == "file" else [text, text]

def stop_at(line):
    left = [line]
    def trace(frame, event, _):
        if frame.f_code.co_filename != atomic.__file__:
            return None
        if event == "line":
            left[0] -= 1
            if left[0] == 0:
                if how == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise KeyboardInterrupt
        return trace
    sys.settrace(trace)

def in_child(work):
    child = os.fork()
    if child == 0:
        atomic._recover_once.cache_clear()  # a new process
        try:
            work()
        except KeyboardInterrupt:
            os._exit(130)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

seen = set()
for was_there in (True, False):
    for line in range(1, 500):
        folder = root / f"{was_there}-{line}"
        folder.mkdir()
        path = folder / "target"
        if was_there:
            write(path, "old")
        status = in_child(lambda: (stop_at(line), write(path, "new")))
        assert status in (0, 130, -9), status
        found = content(path)
        if was_there and exchange:
            assert found in (whole("old"), whole("new")), (line, found)
        seen.add(str(found))
        if line % 2:  # what a start finds before it writes
            assert in_child(lambda: atomic.recover(folder)) == 0
            assert content(path) in ([whole("old")] if was_there else [None]) + [whole("new")], (line, content(path))
            assert [p.name for p in folder.iterdir()] in (["target"], []), line
        assert in_child(lambda: write(path, "newer")) == 0
        assert content(path) == whole("newer")
        assert [p.name for p in folder.iterdir()] == ["target"], (line, list(folder.iterdir()))
        if status == 0:
            break
    else:
        raise SystemExit("the writer never ended")
    assert line > 10, line
print(*sorted(seen))
"""


@pytest.mark.parametrize("how", ["interrupt", "kill"])
@pytest.mark.parametrize(("exchange", "kind"), [("exchange", "folder"), ("rename", "folder"), ("exchange", "file")])
def test_whatever_line_is_the_last_one_the_target_is_whole(tmp_path, how, exchange, kind):
    done = subprocess.run(
        [sys.executable, "-c", STOPPED_AT_EACH_LINE, how, exchange, kind, str(tmp_path)],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="needs the kernel's exchange")
def test_old_and_new_change_places_in_one_step_here(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert atomic._exchange(tmp_path / "a", tmp_path / "b")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b"]
    assert not atomic._exchange(tmp_path / "a", tmp_path / "absent")


def test_what_another_process_works_on_is_left_alone(tmp_path):
    with staging_folder(tmp_path / "target") as place:
        (place / "something").touch()
        recover(tmp_path)
        subprocess.run(
            [sys.executable, "-c", "import sys; from pathlib import Path; from workbench.core.atomic import recover; recover(Path(sys.argv[1]))", str(tmp_path)],
            check=True, cwd=ROOT,
        )  # fmt: skip
        assert (place / "something").exists()
    assert not list(tmp_path.iterdir())


def test_the_lock_goes_last(tmp_path, monkeypatch):
    """What is killed half removed is still known as a dead process's."""
    rmtree, kept = atomic.shutil.rmtree, []

    def removing(path, **options):
        kept.append(place if place.exists() and sorted(p.name for p in place.iterdir()) == ["lock"] else path)
        rmtree(path, **options)

    with staging_folder(tmp_path / "target") as place:
        for name in ("a", "m", "z"):
            (place / name).touch()
        (place / "new").mkdir()
        monkeypatch.setattr(atomic.shutil, "rmtree", removing)
    assert kept == [place / "new", place]
    assert not list(tmp_path.iterdir())


def test_what_only_looks_like_a_workplace_is_left_alone(tmp_path):
    (tmp_path / ".notes.abcdefgh.part").mkdir()
    (tmp_path / ".notes.abcdefgh.part" / "mine.txt").touch()
    (tmp_path / ".film.part").touch()
    with atomic_folder(tmp_path / "target") as new:
        (new / "a").touch()
    assert {p.name for p in tmp_path.iterdir()} == {".notes.abcdefgh.part", ".film.part", "target"}
    assert (tmp_path / ".notes.abcdefgh.part" / "mine.txt").exists()


@pytest.mark.parametrize("write", [atomic_path, atomic_folder])
def test_an_error_leaves_the_old_and_nothing_else(tmp_path, write):
    target = tmp_path / "target"
    target.mkdir()
    (target / "old").touch()

    def fail():
        with write(target) as new:
            (new / "half" if new.is_dir() else new).touch()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [p.name for p in target.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_has_the_permissions_of_any_new_one(tmp_path):
    with atomic_folder(tmp_path / "target"):
        pass
    (tmp_path / "other").mkdir()
    assert (tmp_path / "target").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("moment", [FileNotFoundError, FileExistsError])
def test_a_folder_that_another_process_removes_before_it_is_locked_is_made_again(tmp_path, monkeypatch, moment):
    """filelock makes the folder of a lock; what it meets there depends on the moment in which the other process removes it."""
    import filelock

    acquire, failed = filelock.FileLock.acquire, []

    def once(self, *arguments, **options):
        if not failed:
            failed.append(self.lock_file)
            raise moment(self.lock_file)
        return acquire(self, *arguments, **options)

    monkeypatch.setattr(filelock.FileLock, "acquire", once)
    with atomic_path(tmp_path / "file") as temporary:
        temporary.write_text("content")
    assert failed
    assert (tmp_path / "file").read_text() == "content"
