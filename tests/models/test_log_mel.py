"""Features against transformers' feature extractor."""

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor

from export.verification.clients.sherpa_onnx import in_step
from tests.conftest import tone
from workbench.corpus import open_corpus
from workbench.models.whisper.forward.log_mel import LogMel, positions_of


@pytest.mark.parametrize("mels", [80, 128])
@pytest.mark.parametrize("seconds", [0.5, 3.0, 30.0])
def test_features_are_whispers_at_every_length(mels, seconds):
    wave = np.zeros(round(seconds * 16000), np.float32)
    speech = open_corpus("prompts-en", "validation")[0].wave()[: len(wave)]
    wave[: len(speech)] = speech
    extractor = WhisperFeatureExtractor(feature_size=mels)
    expected = extractor(wave, sampling_rate=16000, padding="longest", return_tensors="pt").input_features
    found = LogMel(mels)(torch.from_numpy(wave)[None])
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)


def test_each_clip_of_a_batch_has_its_own_floor():
    loud, quiet = torch.from_numpy(tone(1.0)), torch.from_numpy(tone(1.0, amplitude=0.003))
    together = LogMel()(torch.stack([loud, quiet]))
    torch.testing.assert_close(together[1:], LogMel()(quiet[None]))


def test_positions_cover_the_wave():
    assert positions_of(480_000) == 1500
    assert positions_of(321) == 2


def test_half_a_hop_in_front_gives_sherpas_features_whispers_frames():
    """kaldi-native-fbank is what sherpa-onnx computes features with."""
    knf = pytest.importorskip("kaldi_native_fbank")
    wave = open_corpus("prompts-en", "validation")[3].wave()

    def features(samples):
        fbank = knf.OnlineWhisperFbank(knf.WhisperFeatureOptions())
        fbank.accept_waveform(16000, samples)
        fbank.input_finished()
        power = np.stack([fbank.get_frame(i) for i in range(fbank.num_frames_ready)], axis=1)
        log = np.log10(np.maximum(power, 1e-10))
        return (np.maximum(log, log.max() - 8.0) + 4.0) / 4.0

    whispers = LogMel()(torch.from_numpy(wave)[None])[0].numpy()
    frames = whispers.shape[1]
    assert np.abs(features(in_step(wave))[:, :frames] - whispers).max() < 0.02  # the first frame, at the edge
    assert np.abs(features(in_step(wave))[:, 1:frames] - whispers[:, 1:]).max() < 2e-3
    assert np.abs(features(wave)[:, :frames] - whispers).mean() > 0.01  # or the half hop is not needed any more
