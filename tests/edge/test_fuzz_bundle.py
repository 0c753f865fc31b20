"""What strangers may send a device: manifests, vocabularies, configurations, graphs and recordings with faults of all kinds."""

import json
import os

import hypothesis.strategies as st
import pytest

from export.bundle.card import write_card
from export.bundle.manifest import open_manifest
from export.edge import AudioError, BundleError, read_manifest, read_wav
from export.edge.bundle.manifest import check_graph
from export.edge.bundle.tokens import Detokenizer
from export.measurement.flops import read_sizes
from tests.edge.test_wav import chunk, form, riff
from tests.fuzzing import fuzz, json_mutations, mutated
from tests.malformed import copied, put
from workbench.core.errors import UserError

REFUSALS = (BundleError, AudioError, UserError)


def refusing(check):
    """`check`, in which our own errors are no failure as long as they are one line."""

    def one(given):
        try:
            check(given)
        except REFUSALS as error:
            said = str(error)
            if len(said.splitlines()) != 1:
                raise AssertionError(said) from error

    return one


@pytest.fixture
def bundle(exported, tmp_path):
    return copied(exported, tmp_path / "bundle")


def test_manifests(bundle, tmp_path):
    content = json.loads((bundle / "bundle.json").read_text())
    content["files"] = dict(list(content["files"].items())[:5])  # most faults are to hit the other fields

    def check(changed):
        put(bundle / "bundle.json", json.dumps(changed).encode())
        manifest = read_manifest(bundle)
        assert 0 < manifest.token_limit(30.0, "en") <= 4096
        assert all(isinstance(word, str) for word in manifest.added.values())
        for precision in manifest.precisions:
            path = manifest.graph("encoder", precision)
            assert path.is_relative_to(bundle.resolve())
        write_card(tmp_path, open_manifest(bundle).content)

    fuzz(json_mutations(content), refusing(check))


def test_bytes_of_json_files(bundle):
    def check(data):
        for name in ("bundle.json", "vocab.json", "config.json"):
            put(bundle / name, data)
        for use in (read_manifest, read_sizes, lambda folder: Detokenizer(folder / "vocab.json")):
            refusing(use)(bundle)

    fuzz(mutated([(bundle / "vocab.json").read_bytes()[:500] + b'": 1}', (bundle / "config.json").read_bytes()]), check)


def test_vocabularies_and_configurations(bundle):
    vocabulary = dict(list(json.loads((bundle / "vocab.json").read_text()).items())[:30])
    config = json.loads((bundle / "config.json").read_text())

    def tokens(changed):
        put(bundle / "vocab.json", json.dumps(changed).encode())
        said = Detokenizer(bundle / "vocab.json", {3: "word"})
        assert isinstance(said([0, 3, -1, 10**9]), str)

    def sizes(changed):
        put(bundle / "config.json", json.dumps(changed).encode())
        read_sizes(bundle)

    fuzz(json_mutations(vocabulary), refusing(tokens))
    fuzz(json_mutations(config), refusing(sizes))


def test_graphs(bundle):
    data = (bundle / "onnx/frontend.onnx").read_bytes()
    path = bundle / "onnx/frontend.onnx"

    def check(changed):
        put(path, changed)
        check_graph(path)

    fuzz(mutated([data, data[:2000]], head=2000), refusing(check))


def test_recordings(tmp_path):
    plain = riff(form(1, 2), chunk(b"data", os.urandom(4000)))
    extensible = riff(form(3, 1, 48000, 32, True), chunk(b"LIST", b"abc"), chunk(b"data", bytes(4000)))
    path = tmp_path / "a.wav"

    def check(data):
        path.write_bytes(data)
        assert read_wav(path).ndim == 1

    fuzz(mutated([plain, extensible], head=80) | st.binary(max_size=100), refusing(check))
