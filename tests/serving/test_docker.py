"""What the image installs is what the extra `serve` asks for, in versions that are tested."""

import re
import tomllib

from tests.conftest import ROOT


def names(lines):
    found = (re.match(r"[\w.-]+", line) for line in lines if not line.startswith("#"))
    return {match[0].lower().replace("_", "-") for match in found if match}


def test_the_images_packages_are_those_of_the_extra_with_tested_versions():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    installed = names((ROOT / "docker" / "requirements.txt").read_text().splitlines())
    extras = project["optional-dependencies"]
    assert names(extras["serve"] + extras["cpu"]) < installed
    assert installed <= names(extras["serve"] + extras["cpu"] + project["dependencies"])
    assert installed <= names((ROOT / "constraints.txt").read_text().splitlines())
    assert not installed & {"torch", "transformers"}


def test_the_build_gets_the_files_that_the_image_is_made_of():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    kept = {line[1:] for line in ignored if line.startswith("!")}
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "docker" / "Dockerfile").read_text(), re.MULTILINE)
    sources = {name.split("/")[0] for line in copied for name in line.split() if name != "."}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {pattern.rstrip("*") for pattern in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert sources | packages | {"pyproject.toml", project["project"]["readme"], "LICENSE"} <= kept
