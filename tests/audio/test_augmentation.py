"""More speech from what is there: the teacher's targets stay right for what the student hears."""

import json

import numpy as np
import pytest
import torch

from tests.conftest import DECODER
from workbench.audio.augment import add_noise, spec_augment
from workbench.audio.decode import SAMPLE_RATE, change_speed
from workbench.config.sections import AugmentRecipe
from workbench.corpus import open_corpus, training_set
from workbench.corpus.perturb import concatenated, speed_perturbed
from workbench.training.trainer import distill


def tone(seconds, hz=440.0):
    return np.sin(2 * np.pi * hz * np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE).astype(np.float32)


def pitch(wave):
    return float(np.abs(np.fft.rfft(wave)).argmax() * SAMPLE_RATE / len(wave))


@pytest.mark.parametrize("speed", [0.5, 0.9, 1.1, 2.0])
def test_another_speed_changes_length_and_pitch_alike(speed):
    faster = change_speed(tone(2.0), speed)
    assert len(faster) / SAMPLE_RATE == pytest.approx(2.0 / speed, abs=0.01)
    assert pitch(faster) == pytest.approx(440 * speed, rel=0.01)


def test_speeds_are_new_utterances_with_targets_of_their_own():
    clips = open_corpus("prompts-en", "train", 3)
    more = speed_perturbed(clips, [0.9, 1.1])
    assert [u.id for u in more[:3]] == [f"{u.id}@0.9" for u in clips]
    assert len({u.audio_sha256() for u in [*clips, *more]}) == 9
    assert len(more[0].wave()) / SAMPLE_RATE == pytest.approx(more[0].seconds, abs=0.05)
    slow = min(u.seconds for u in clips) / 31
    assert speed_perturbed(clips, [slow]) == []  # all would leave the window


def test_joined_clips_are_their_parts_one_after_another():
    clips = open_corpus("prompts-en", "train", 20)
    joined = concatenated(clips, 10.0, seed=1)
    assert joined == concatenated(clips, 10.0, seed=1)
    assert joined != concatenated(clips, 10.0, seed=2)
    for clip in joined:
        assert clip.seconds <= 10.0 or len(clip.audio) == 2
        assert clip.text == " ".join(part.text for part in clip.audio)
        wave = clip.wave()
        assert len(wave) / SAMPLE_RATE == pytest.approx(clip.seconds, abs=0.1)
        first = clip.audio[0].wave()
        np.testing.assert_array_equal(wave[: len(first)], first)
    parts = [part.id for clip in joined for part in clip.audio]
    assert len(parts) == len(set(parts))


def test_clips_of_different_languages_are_not_joined():
    from dataclasses import replace

    clips = [replace(u, language="en" if i % 2 else "de") for i, u in enumerate(open_corpus("prompts-en", "train", 12))]
    for clip in concatenated(clips, 20.0, seed=1):
        assert {part.language for part in clip.audio} == {clip.language}


def test_more_corpora_are_added_under_their_name(tmp_path, speech):
    manifest = speech(4)
    found = training_set("prompts-en", 5, more=[str(manifest)])
    assert len(found) == 9
    assert found[5].id.startswith(f"{manifest}:")


def test_noise_has_the_ratio_that_is_asked_for():
    settings = AugmentRecipe(noise_probability=1.0, snr_db=(10.0, 10.0))
    waves = torch.from_numpy(np.stack([0.1 * tone(1.0), 0.05 * tone(1.0)]))
    lengths = torch.tensor([16_000, 16_000])
    noisy = add_noise(waves, lengths, settings, np.random.default_rng(1))
    for clean, heard in zip(waves, noisy, strict=True):
        ratio = 10 * torch.log10(clean.square().mean() / (heard - clean).square().mean())
        assert float(ratio) == pytest.approx(10.0, abs=0.5)
    again = add_noise(waves, lengths, settings, np.random.default_rng(1))
    assert torch.equal(noisy, again)
    assert torch.equal(add_noise(waves, lengths, AugmentRecipe(), np.random.default_rng(1)), waves)


def test_masks_blank_bands_and_stretches_and_nothing_else():
    settings = AugmentRecipe(frequency_masks=1, frequency_mask_bins=10, time_masks=1, time_mask_frames=20)
    features = torch.randn(2, 81, 300, generator=torch.Generator().manual_seed(0))
    masked = spec_augment(features, settings, np.random.default_rng(3), 80)
    assert torch.equal(masked[:, 80], features[:, 80])  # no mel band, but where a clip has frames
    features, masked = features[:, :80], masked[:, :80]
    for clean, heard in zip(features, masked, strict=True):
        changed = clean != heard
        band, stretch = changed.all(1), changed.all(0)
        assert band.sum() <= 10
        assert stretch.sum() <= 20
        assert torch.equal(changed, band[:, None] | stretch[None, :])
    assert any((m != f).any() for m, f in zip(masked, features, strict=True))


def test_an_augmented_run_labels_new_utterances_only(recipe, cache):
    plain = recipe("plain", stages={"decoder": {**DECODER, "epochs": 1}})
    distill(plain)

    def labelled():
        return sum(len(p.read_text().splitlines()) for p in (cache / "targets").glob("*/index-*.jsonl"))

    assert labelled() == 6
    augmented = recipe("augmented", stages={"decoder": {**DECODER, "epochs": 1}}, augment={
        "speed_factors": [1.1], "concatenate_seconds": 6.0, "noise_probability": 0.5, "frequency_masks": 1, "time_masks": 1})  # fmt: skip
    distill(augmented)
    train = training_set(augmented.corpus, None, (), [1.1], 6.0, augmented.seed)
    assert labelled() == len(train) > 12  # the six are there already
    scores = json.loads((augmented.output / "scores.json").read_text())
    assert scores["corpus"]["clips"] == len(train)
