"""Every command, found by walking the command line, with missing, unknown and wrong values: one line and status 2, never a traceback."""

import inspect
import re
import socket
import subprocess
import sys
import types
import typing
from pathlib import Path

import pytest
import typer
import yaml

import export.edge.__main__ as edge
from tests.conftest import ROOT
from workbench.cli import app as cli
from workbench.cli.command import INTERRUPT_MESSAGES
from workbench.cli.groups import GROUPS

OUTPUTS = {"preferences", "output", "json_file"}
FREE_TEXT = {"name", "alias"}  # any text will do
ALSO = {"against", "bundle"}  # given although they have a default, which would be fetched or takes long to open
NONE = "nonesuch"


def walk(command, path=()):
    """Commands below one, with the words that call them."""
    for name, below in getattr(command, "commands", {}).items():
        yield from walk(below, (*path, name))
    if not hasattr(command, "commands"):
        yield path, command


COMMANDS = dict(walk(typer.main.get_command(cli.app)))


def base_type(hint):
    """int of `list[int] | None`."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) in (typing.Union, list):
        return base_type(next(a for a in typing.get_args(hint) if a is not type(None)))
    return hint


@pytest.fixture
def values(tmp_path, cache, student, exported, recipe, speech, monkeypatch):
    """A good value of every required parameter, by its name."""
    import demo.app
    import export.serving.server

    monkeypatch.setattr(demo.app, "launch", lambda *_: pytest.fail("a page is served"))
    monkeypatch.setattr(export.serving.server, "run", lambda _: pytest.fail("a bundle is served"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    recipes = tmp_path / "recipe.yaml"
    recipes.write_text(yaml.safe_dump(recipe().model_dump(mode="json", exclude_unset=True)))
    arms = {"fixed": {"stages.decoder.weighting": {"name": "fixed"}}}
    study = {"output": str(tmp_path / "study"), "recipe": {}, "corpora": [str(speech())], "seeds": [1], "arms": arms}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    (tmp_path / "text.txt").write_text("Turn the lights on.\n")
    return {
        "recipe": recipes, "student": student, "bundle": exported, "bundles": exported, "checkpoint": student, "source": speech(), "sources": speech(),
        "runs": ROOT / "docs" / "results" / "quickstart", "text": tmp_path / "text.txt", "file": tmp_path / "study.yaml", "run": tmp_path, "folder": student, "repository": "somebody/tiny", "files": next(tmp_path.glob("*.jsonl")), "output": tmp_path / "made", "against": exported,
        "vocabulary": "trained", "language": "en",
    }  # fmt: skip


def words(param, value):
    """How a parameter is given."""
    return [str(value)] if param.param_type_name == "argument" else [max(param.opts, key=len), str(value)]


def refused_at_once(param, hint, folder):
    """Values that the parser refuses, whatever the others are."""
    kind = base_type(hint)
    if kind is bool:
        return []
    file, empty = folder / "an-empty-file", folder / "an-empty-folder"
    file.touch()
    empty.mkdir(exist_ok=True)
    wrong = {int: ["x", "1.5", "-1", ""], float: ["x", "nan", ""], Path: ["", " "], str: ["", " "]}[kind]
    if param.name in OUTPUTS:
        wrong += [file / "below", file if param.help.startswith("Folder") else empty]
    return wrong


def refused_later(param, hint, folder):
    """Values that the command itself refuses, when it looks at what they name."""
    kind = base_type(hint)
    file, empty = folder / "an-empty-file", folder / "an-empty-folder"
    file.touch()
    empty.mkdir(exist_ok=True)
    if kind is Path and param.name not in OUTPUTS:
        return [folder / "none" / "at-all", file, empty, folder / ("x" * 300)]
    return [",", NONE] if kind is str and param.name not in FREE_TEXT else []


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_wrong_usage_is_a_line_with_status_2(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    anything = dict.fromkeys([p.name for p in COMMANDS[path].params], "anything")
    check(path, anything, refused_at_once, tmp_path, monkeypatch, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_wrong_value_is_a_line_with_status_2_and_nothing_is_written(path, values, tmp_path, monkeypatch, capsys):
    check(path, values, refused_later, tmp_path, monkeypatch, capsys)


def check(path, values, wrong_values, tmp_path, monkeypatch, capsys):
    """Give every parameter its wrong values, the required others being right."""
    command = COMMANDS[path]
    params = [p for p in command.params if p.name != "help"]
    hints = typing.get_type_hints(inspect.unwrap(command.callback))
    required = {p.name: words(p, values[p.name]) for p in params if p.required}
    for param in params:
        if param.name in ALSO and not param.required:
            required[param.name] = words(param, values[param.name])
    valid = [w for given in required.values() for w in given]
    cases = [[*valid, "--no-such-option"]]
    for param in params:
        others = [w for name, given in required.items() if name != param.name for w in given]
        if param.required:
            cases.append(others)
        if param.param_type_name == "option" and not getattr(param, "is_flag", False):
            cases.append([*others, max(param.opts, key=len)])
        # an argument after others must find its place
        before, after = ([], others) if param.param_type_name == "option" or param.required else (valid, [])
        cases += [[*before, *words(param, wrong), *after] for wrong in wrong_values(param, hints[param.name], tmp_path)]  # fmt: skip
    if not valid:
        cases.append([NONE])
    found = []
    there = set(tmp_path.rglob("*"))
    for case in cases:
        monkeypatch.setattr(sys, "argv", ["workbench", *path, *case])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr().err
        errors = [line for line in said.splitlines() if line.lower().startswith("error: ")]
        made = sorted(str(p) for p in set(tmp_path.rglob("*")) - there if "cache" not in p.parts)
        if ended.value.code != 2 or len(errors) != 1 or "Traceback" in said or made:
            found.append((case, ended.value.code, said[-1500:], made))
    assert not found, "\n".join(f"{path} {case}: status {code}, made {made}, said {said}" for case, code, said, made in found)  # fmt: skip


def run(*words, **how):
    return subprocess.run(
        [sys.executable, "-m", "workbench", *words], capture_output=True, text=True, check=False, **how
    )


@pytest.mark.parametrize("words", [(), ("corpus",)])
def test_a_group_without_a_command_shows_its_help(words):
    done = run(*words)
    assert done.returncode == 2  # as newer versions of click and typer do; 0 with older ones
    assert "Commands" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_command_is_a_line():
    done = run("doctr")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("Error: No such command 'doctr'.")


def test_a_closed_pipe_ends_quietly():
    command = f"{sys.executable} -m workbench teachers | head -1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


FAILING = """
import sys, workbench.planning.doctor, workbench.cli.app
def fail(): raise {error}
workbench.planning.doctor.examine = fail
sys.argv = ["workbench", "doctor"]
workbench.cli.app.main()
"""


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        ("IsADirectoryError(21, 'x', 'runs')", 2, "error: runs: Is a directory; expected a file"),
        ("OSError(36, 'x', 'xxx')", 2, "error: xxx: File name too long; choose a shorter name"),
        ("IsADirectoryError(21, 'x', 'a\\nb')", 2, "error: a\\nb: Is a directory"),
        ("ConnectionRefusedError(111, 'x')", 2, "error: Connection refused; check the network"),
        ("RuntimeError('I/O error: No space left on device (os error 28)')", 2, "error: No space left on device; free"),
        ("ValueError('a bug')", 1, "error: unexpected ValueError: a bug in the workbench"),
    ],
)
def test_the_systems_errors_are_a_line_and_bugs_have_a_traceback(error, status, said):
    done = subprocess.run([sys.executable, "-c", FAILING.format(error=error)], capture_output=True, text=True)
    assert done.returncode == status
    assert done.stderr.splitlines()[-1].startswith(said)
    assert ("Traceback" in done.stderr) == (status == 1)


def test_ctrl_c_says_that_work_can_be_resumed_only_where_it_can(monkeypatch, capsys, tmp_path):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("workbench.config.recipe.load_recipe", interrupted)
    recipe = tmp_path / "r.yaml"
    recipe.touch()
    said = {}
    for name in ("distill", "plan"):
        monkeypatch.setattr(sys, "argv", ["workbench", name, str(recipe)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 130
        said[name] = capsys.readouterr().err
    assert said["distill"] == "error: interrupted; what was saved is kept: run the same command again to resume\n"
    assert said["plan"] == "error: interrupted\n"


def test_a_taken_port_is_said_before_models_are_opened(monkeypatch, capsys, exported):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(sys, "argv", ["workbench", "demo", str(exported), "--port", str(port)])
        with pytest.raises(SystemExit, match="2"):
            cli.main()
    assert f"--port {port}: Address already in use" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [[], ["--nope", "x"], ["--threads", "0", "x"], ["--threads", "q", "x"], ["--beams", "-1", "x"],
    ["--longest", "nan", "x"], ["--longest", "q", "x"], ["--precision", "", "x"], ["--language", " ", "x"], ["--bundle", "", "x"], [""],
    ["--bundle", "FILE", "x"], ["--bundle", "x" * 300, "x"], ["--bundle", "none", "x"], ["--format", "q", "x"]])  # fmt: skip
def test_the_runtimes_wrong_usage_is_a_line(wrong, tmp_path, monkeypatch, capsys):
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setattr(sys, "argv", ["edge", *(str(file) if w == "FILE" else w for w in wrong)])
    try:
        status = edge.main()
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    assert len(re.findall("^(?:edge: )?error: ", capsys.readouterr().err, re.MULTILINE)) == 1


SCRIPTS = sorted(
    p
    for folder in ("benchmarks", "scripts")
    for p in (ROOT / folder).glob("*.py")
    if '__name__ == "__main__"' in p.read_text()
)


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_wrong_usage_of_scripts_is_a_line(script, tmp_path):
    option = "--json" if script.parent.name == "benchmarks" else "--output"
    for wrong in (["--no-such-option"], [option], [option, ""], [option, str(tmp_path)], [option, f"{__file__}/x"]):
        done = subprocess.run([sys.executable, script, *wrong], capture_output=True, text=True, cwd=ROOT, timeout=60)
        assert done.returncode == 2, (wrong, done.stderr)
        assert "Traceback" not in done.stderr
        assert "error: " in done.stderr.splitlines()[-1]


EARLIER_OPTIONS = {
    ("export",): ["--through"],
    ("measure",): ["--again"],
    ("demo",): ["--longest", "--at-once", "--waiting", "--live"],
    ("label",): ["--batch", "--longest", "--max-compression", "--min-confidence", "--min-rate", "--max-rate", "--min-language"],
    ("synthesize",): ["--avoid", "--join"],
    ("weights",): ["--worst", "--by"],
    ("corpus", "prompts"): ["--how"],
}  # fmt: skip


@pytest.mark.parametrize("path", EARLIER_OPTIONS, ids=" ".join)
def test_options_keep_their_earlier_names(path):
    known = {option for parameter in COMMANDS[path].params for option in parameter.opts}
    assert set(EARLIER_OPTIONS[path]) <= known


def test_a_command_with_many_options_shows_them_in_groups_with_their_defaults():
    for path, command in COMMANDS.items():
        options = [p for p in command.params if p.param_type_name == "option" and p.name != "help"]
        grouped = {p.name: p.rich_help_panel for p in options if p.rich_help_panel}
        assert len(options) - len(grouped) <= 7, path  # what stands under "Options"
        named = {name for names in GROUPS.get(path[-1], {}).values() for name in names}
        assert named == set(grouped), path
        for option in options:
            known = (
                option.default is None or option.default in ("", [], False) or option.required or option.show_default
            )
            assert known, (path, option.name)
    assert {path[-1] for path in COMMANDS} >= set(GROUPS)


def test_every_command_that_writes_says_on_ctrl_c_what_was_kept():
    writing = {path[-1] for path, command in COMMANDS.items() if "output" in {p.name for p in command.params}}
    assert writing <= set(INTERRUPT_MESSAGES)
    assert set(INTERRUPT_MESSAGES) <= {path[-1] for path in COMMANDS}
