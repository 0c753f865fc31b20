"""The documentation says what is there: commands and options that exist, links that lead somewhere, every weighting with its options."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.cli.test_usage import COMMANDS
from tests.conftest import ROOT
from workbench.config.weightings import CONTROLS, known_weightings, weighting_module

DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [*sorted(ROOT.glob("*.md")), *DOCS]
GLOBAL_OPTIONS = {"-v", "--verbose", "--version", "--help"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def code_lines(page: str) -> Iterator[str]:
    """Lines of a page's fenced and indented blocks; a line that ends with a backslash is joined with the next one."""
    fence, joined = "", ""
    for line in page.splitlines():
        mark = re.match(r"\s*(```+|~~~+)", line)
        if mark and (not fence or mark[1] == fence):
            fence = "" if fence else mark[1]
        elif fence or line.startswith("    "):
            joined += line.strip()
            if joined.endswith("\\"):
                joined = joined[:-1]
                continue
            yield joined
            joined = ""


def words_of(line: str) -> list[str]:
    """Words of a command line, without the brackets around what may be left out, and without a comment."""
    # an override such as layers=[0,5] keeps its brackets
    return [
        word.removeprefix("[").removesuffix("...").removesuffix("]") if "=[" not in word else word
        for word in shlex.split(line, comments=True)
        if word not in ("...", "...]")
    ]


def problem(line: str) -> str | None:
    """What is wrong with a command line that starts with `workbench`, or None."""
    words = words_of(line)[1:]
    while words and words[0] in GLOBAL_OPTIONS:
        words.pop(0)
    path = next((path for n in (2, 1) if (path := tuple(words[:n])) in COMMANDS), None)
    if path is None:
        return None if not words else f"no command {' '.join(words[:2])!r}"
    params = COMMANDS[path].params
    options = {name: p for p in params if p.param_type_name == "option" for name in (*p.opts, *p.secondary_opts)}
    arguments = [p for p in params if p.param_type_name == "argument"]
    left, given, positional = words[len(path) :], set(), 0
    while left:
        word = left.pop(0)
        if not word.startswith("-"):
            positional += 1
            continue
        name, _, value = word.partition("=")
        option = options.get(name)
        if option is None:
            return None if name == "--help" else f"no option {name}"
        given.add(option.name)
        if not value and not getattr(option, "is_flag", False) and not left:
            return f"{name} needs a value"
        if not value and not getattr(option, "is_flag", False):
            left.pop(0)
    if missing := [p.opts[-1] for p in options.values() if p.required and p.name not in given]:
        return f"lacks {missing[0]}"
    if positional < sum(p.required for p in arguments):
        return "lacks an argument"
    if positional > len(arguments) and not any(p.nargs == -1 for p in arguments):
        return "has too many arguments"
    return None


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_command_that_is_shown_exists_with_its_options(path):
    lines = [line for line in code_lines(path.read_text(encoding="utf-8")) if line.startswith("workbench ")]
    found = [f"{line}: {said}" for line in lines if (said := problem(line))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("workbench distil recipe.yaml", "no command"),
        ("workbench corpus derived M -o x", "no command"),
        ("workbench export S -o B --precison int8", "no option --precison"),
        ("workbench export S", "lacks -o"),
        ("workbench pack -o B  # what", "lacks an argument"),
        ("workbench doctor now", "too many"),
        ("workbench plan R --device", "needs a value"),
        ("workbench -v measure BUNDLE... --against T [--corpus C]... [--split test]", None),
        ("workbench corpus derive M -o x --meta 0.1", None),
        ("workbench distill R student.layers=[0,5] 'more=[a, b]'", None),
    ],
)
def test_what_is_wrong_with_a_command_is_said(line, said):
    found = problem(line)
    assert (found is None) if said is None else (found is not None and said in found), found


def test_commands_are_found_in_both_kinds_of_blocks():
    page = "text\n\n    workbench a \\\n        --b\n\n```sh\nworkbench c\n```\n\nworkbench d\n"
    assert list(code_lines(page)) == ["workbench a --b", "workbench c"]
    assert sum(line.startswith("workbench ") for p in PAGES for line in code_lines(p.read_text(encoding="utf-8"))) > 50


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_between_files_lead_somewhere(path):
    """Pages of docs/ link only within docs/, so that a link works on the site as well; other files are named by their path."""
    text = re.sub(r"```.*?```|^    .*$|`[^`\n]*`", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    links = [t for t in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"[a-z]+:|#", t)]
    targets = {link: (path.parent / link.split("#")[0]).resolve() for link in links}
    assert not [link for link, target in targets.items() if not target.exists()]
    if path in DOCS:
        assert not [link for link, target in targets.items() if not target.is_relative_to(ROOT / "docs")]


@pytest.mark.parametrize("name", known_weightings())
def test_every_weighting_has_a_page_with_its_options_and_defaults(name):
    """A row for each option, in its order or another, with today's default; settings in its example are valid."""
    from workbench.config.weightings import parse_settings

    page = (ROOT / "docs/weightings" / f"{name}.md").read_text(encoding="utf-8")
    assert f"weightings/{name}.md" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    example = yaml.safe_load(next(line for line in code_lines(page) if line.startswith("weighting: ")))
    parse_settings(example["weighting"])
    shown: dict[str, str] = {}
    for names, defaults in re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| ([^|]+) \|", page, re.MULTILINE):
        given = defaults.split(", ")
        shown |= dict(zip(re.findall(r"\w+", names), given, strict=True))
    fields = weighting_module(name).Settings.model_fields
    assert set(shown) == set(fields) - set(CONTROLS)
    for option, default in shown.items():
        assert yaml.safe_load(default) == ("none" if fields[option].default is None else fields[option].default), option
