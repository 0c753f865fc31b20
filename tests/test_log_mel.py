"""Features against transformers' feature extractor."""

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor

from tests.conftest import tone
from workbench.corpus import open_corpus
from workbench.families.log_mel import LogMel, positions_of


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
