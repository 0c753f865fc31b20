"""Exporting a student twice gives the same bytes, whatever order Python's sets have in a process."""

import os
import subprocess
import sys

import pytest

from export.assembly.pack import pack
from export.edge.bundle.manifest import read_manifest
from workbench.core.hashing import sha256

EXPORT = """
import sys
from pathlib import Path
from export.assembly.build import export_bundle
export_bundle(Path(sys.argv[1]), Path(sys.argv[2]), ["fp32", "int8", "fp16", "q4", "w8/int8-0"], "tiny")
"""


def hashes(folder):
    return {p.relative_to(folder).as_posix(): sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.slow
def test_two_exports_have_the_same_bytes(student, tmp_path):
    bundles = [tmp_path / "one" / "tiny", tmp_path / "two" / "tiny"]
    for seed, bundle in enumerate(bundles, 1):
        environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
        subprocess.run([sys.executable, "-c", EXPORT, student, bundle], check=True, env=environment)
    one, two = map(hashes, bundles)
    assert one == two
    assert len(read_manifest(bundles[0]).precisions) == 5
    packed = [pack(bundle, bundle.parent / "device", "edge", "int8") for bundle in bundles]
    assert hashes(packed[0]) == hashes(packed[1])
