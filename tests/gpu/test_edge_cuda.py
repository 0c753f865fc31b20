"""The torch-free runtime on a GPU. The same code runs on the CPU in tests/edge/test_edge.py."""

from importlib.util import find_spec

import numpy as np
import onnxruntime as ort
import pytest

from export.assembly.build import export_bundle
from export.edge import Recognizer
from export.edge.__main__ import PROVIDERS
from export.edge.decoding.decoder import DecoderSession
from export.edge.decoding.sessions import device_of
from workbench.corpus import open_corpus

AVAILABLE = "CUDAExecutionProvider" in ort.get_available_providers()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not AVAILABLE, reason="onnxruntime here has no CUDA provider")]


@pytest.fixture(scope="module")
def waves():
    return [u.wave() for u in open_corpus("prompts-en", "validation", 6)]


@pytest.mark.parametrize("beams", [1, 4])
def test_cuda_writes_what_the_cpu_writes(exported, waves, beams):
    cpu, cuda = Recognizer(exported, vad=False), Recognizer(exported, providers=PROVIDERS["cuda"], vad=False)
    assert device_of(cuda.model.step) == "cuda"
    assert (
        cuda.model.cross_kv(waves[:1])[0].device_name() == "cuda"
    )  # nothing goes back to the host on its way to the decoder
    for wave in waves:
        assert cuda.transcribe(wave, beams=beams).tokens == cpu.transcribe(wave, beams=beams).tokens


def test_batches_on_cuda(exported, waves):
    cuda = Recognizer(exported, providers=PROVIDERS["cuda"], vad=False)
    same = [waves[0] * scale for scale in (1.0, 0.5, 0.25)]
    assert [t.tokens for t in cuda.transcribe_batch(same)] == [cuda.transcribe(w).tokens for w in same]


def test_captured_steps_write_what_others_write(exported, waves):
    plain = Recognizer(exported, providers=PROVIDERS["cuda"], vad=False)
    captured = Recognizer(exported, providers=PROVIDERS["cuda"], cuda_graphs=True, vad=False)
    for wave in [*waves, *waves]:  # the second time every step is played again
        assert captured.transcribe(wave).tokens == plain.transcribe(wave).tokens


def test_heads_that_follow_the_speech_look_there_on_cuda(student, tmp_path, waves):
    bundle = export_bundle(student, tmp_path / "heads", ["fp32"])  # with the heads that the checkpoint names
    read = np.array([[*Recognizer(bundle, vad=False).prompts["en"], 5, 6, 7]])
    looked = [
        DecoderSession(r.model.step, r.model.cross_kv(waves[:1]), read.shape[1]).attend(read)[0]
        for r in (Recognizer(bundle, vad=False), Recognizer(bundle, providers=PROVIDERS["cuda"], vad=False))
    ]
    np.testing.assert_allclose(looked[1], looked[0], atol=1e-4)


def test_fp16_on_cuda_is_near_fp32(student, tmp_path, waves):
    bundle = export_bundle(student, tmp_path / "half", ["fp32", "fp16"])
    whole, half = (Recognizer(bundle, name, providers=PROVIDERS["cuda"], vad=False) for name in ("fp32", "fp16"))
    for wave in waves[:2]:
        expected, found = (r.model.first_logits(r.model.cross_kv([wave]), "en") for r in (whole, half))
        assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.skipif("TensorrtExecutionProvider" not in ort.get_available_providers(), reason="no TensorRT provider")
@pytest.mark.skipif(find_spec("tensorrt_libs") is None, reason="TensorRT's libraries are not installed")
def test_tensorrt_writes_what_the_cpu_writes(exported, waves):
    found = Recognizer(exported, providers=PROVIDERS["tensorrt"], vad=False).transcribe(waves[0])
    assert found.tokens == Recognizer(exported, vad=False).transcribe(waves[0]).tokens
