"""Hallucinations and loops on sounds without speech and on very short clips, before and after quantization."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from export.bundle.manifest import open_manifest
from export.edge import BundleError
from export.edge.vad import VoiceActivityDetector, anybody_speaks
from export.measurement.content import Heard, Robustness, Sounds
from export.measurement.latency import BenchmarkResult, System, time_systems
from workbench.audio.decode import SAMPLE_RATE, Wave, write_wav
from workbench.core.errors import UserError
from workbench.corpus import Utterance
from workbench.evaluation.scoring import normalize, score_utterances

SECONDS = (0.5, 3.0, 10.0)  # of silence, noise and music
TENTH = SAMPLE_RATE // 10
CUT_CLIPS = 10
SPEECHLESS = ("silence", "noise", "music")  # any word here is a hallucination


def unspoken() -> dict[str, list[Wave]]:
    """Deterministic sounds without speech: digital silence; white, brown and mains noise; plucked chords. Each [samples]"""
    random = np.random.default_rng(0)
    found: dict[str, list[Wave]] = {kind: [] for kind in SPEECHLESS}
    for samples in (int(s * SAMPLE_RATE) for s in SECONDS):
        found["silence"].append(np.zeros(samples, np.float32))
        white = random.normal(0, 1, samples)
        time = np.arange(samples) / SAMPLE_RATE
        mains = sum((np.sin(2 * np.pi * 50 * k * time) / k for k in (1, 2, 3, 5)), np.zeros(samples))
        for noise in (white, np.cumsum(white - white.mean()), mains):
            found["noise"] += [_at(noise, level) for level in (0.003, 0.1)]
        found["music"] += [_at(_chords(random, samples), level) for level in (0.03, 0.2)]
    return found


def _at(sound: npt.NDArray[np.float64], level: float) -> Wave:
    """A sound at a root mean square of `level`, clipped at full scale."""
    scaled: Wave = np.clip(sound * level / max(float(np.sqrt(np.mean(sound**2))), 1e-9), -1, 1).astype(np.float32)
    return scaled


def _chords(random: np.random.Generator, samples: int) -> npt.NDArray[np.float64]:
    """Plucked strings (Karplus and Strong's), four chords of three notes in turn. [samples]"""
    out = np.zeros(samples + 2 * SAMPLE_RATE)
    chords = ((220.0, 277.2, 329.6), (146.8, 185.0, 220.0), (164.8, 207.7, 246.9), (220.0, 261.6, 329.6))
    for number, start in enumerate(range(0, samples, SAMPLE_RATE // 2)):
        for pitch in chords[number % len(chords)]:
            string = random.uniform(-1, 1, round(SAMPLE_RATE / pitch))
            rounds = []
            for _ in range(SAMPLE_RATE // len(string)):
                rounds.append(string)
                string = 0.498 * (string + np.roll(string, 1))
            tone = np.concatenate(rounds)
            out[start : start + len(tone)] += tone
    return out[:samples]


def check_robustness(
    systems: Sequence[System], timed: Sequence[BenchmarkResult], utterances: Sequence[Utterance], threads: int
) -> Robustness:
    """Transcribe sounds without speech and 0.1 s excerpts; score the corpus's one-word clips from the main measurement.

    Args:
        systems: what to compare.
        timed: their results on the corpus.
        utterances: the corpus.
        threads: number of threads of each system.

    Returns:
        `sounds`: the number of each kind, and for kinds without speech how many the bundle's speech detector accepts. `systems`: by name
        and kind, the clips with text, its words, and loops; `one word` has a WER instead. Each system appears twice: with its defaults, and
        as `NAME, detector off` without the one-word clips.
    """
    sounds = unspoken()
    waves = [u.wave() for u in utterances[:CUT_CLIPS]]
    sounds["tenth of a second"] = [w[len(w) // 2 :][:TENTH] for w in waves]
    kinds = [kind for kind, of_kind in sounds.items() for _ in of_kind]
    language = utterances[0].language  # sounds have none; the first clip's is passed
    with tempfile.TemporaryDirectory() as temporary:
        wavs = list(_written(sounds, Path(temporary), language))
        found = time_systems(systems, wavs, threads, warmup=0)
        off = time_systems(systems, wavs, threads, warmup=0, vad=False)
    short = [i for i, u in enumerate(utterances) if len(normalize(u.text, u.language).split()) == 1]
    taken = _taken_for_speech(systems[-1].bundle, sounds)
    rows: dict[str, dict[str, Heard]] = {}
    for system, default, without, said in zip(systems, found, off, timed, strict=True):
        for name, out in ((system.name, default), (f"{system.name}, detector off", without)):
            rows[name] = {
                kind: _of_kind(out, [i for i, k in enumerate(kinds) if k == kind], language) for kind in sounds
            }
            rows[name]["one word"] = {"clips": 0}
        rows[system.name]["one word"] = _one_word(said, [utterances[i] for i in short], short)
    return {
        "sounds": {
            kind: {"clips": len(of_kind), "taken_for_speech": taken[kind]} if kind in taken else {"clips": len(of_kind)}
            for kind, of_kind in sounds.items()
        },
        "systems": rows,
    }


def hallucination_rate(found: Mapping[str, Heard], sounds: Mapping[str, Sounds]) -> float:
    """Hallucination rate: share of the clips without speech that got at least one word, in percent."""
    clips = sum(sounds[kind]["clips"] for kind in SPEECHLESS)
    return 100.0 * sum(found[kind]["wrote"] for kind in SPEECHLESS) / clips


def _written(sounds: dict[str, list[Wave]], folder: Path, language: str) -> Iterator[tuple[Path, str]]:
    for kind, of_kind in sounds.items():
        for i, wave in enumerate(of_kind):
            path = folder / f"{kind}-{i}.wav"
            write_wav(path, wave)
            yield path, language


def _taken_for_speech(bundle: Path, sounds: dict[str, list[Wave]]) -> dict[str, int]:
    """How many sounds of each speechless kind a bundle's detector accepts as speech; empty without a detector."""
    manifest = open_manifest(bundle)
    if not manifest.content.get("speech_detector"):
        return {}
    try:
        detector = VoiceActivityDetector(manifest.speech_detector())
        return {kind: sum(anybody_speaks(wave, detector) for wave in sounds[kind]) for kind in SPEECHLESS}
    except BundleError as error:
        raise UserError(str(error)) from None


def _of_kind(out: BenchmarkResult, mine: Sequence[int], language: str) -> Heard:
    words = [len(normalize(out.hypotheses[i], language).split()) for i in mine]
    return {
        "wrote": sum(count > 0 for count in words),
        "words": sum(words),
        "loops": out.loops(dict.fromkeys(mine, ("", language))),
        "stopped_by_cap": out.stopped_by_cap(mine),
    }


def _one_word(said: BenchmarkResult, utterances: Sequence[Utterance], places: Sequence[int]) -> Heard:
    if not utterances:
        return {"clips": 0}
    scores = score_utterances(utterances, [said.hypotheses[i] for i in places])
    loops = said.loops({i: (u.text, u.language) for i, u in zip(places, utterances, strict=True)})
    return {"clips": len(utterances), "wer": round(scores.wer, 3), "loops": loops}
