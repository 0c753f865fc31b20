"""Sounds without speech, and what is counted of them."""

import numpy as np
import pytest

from export.measurement.latency import BenchmarkResult, System
from export.measurement.robustness import SPEECHLESS, check_robustness, hallucination_rate, unspoken
from export.measurement.tables import robustness_rows
from workbench.corpus import open_corpus


def test_sounds_are_the_same_every_time_and_as_loud_as_they_say():
    first, second = unspoken(), unspoken()
    assert set(first) == set(SPEECHLESS)
    for kind in SPEECHLESS:
        assert all(np.array_equal(a, b) for a, b in zip(first[kind], second[kind], strict=True))
        assert all(np.isfinite(w).all() and np.abs(w).max() <= 1 for w in first[kind])
    assert not any(w.any() for w in first["silence"])
    levels = sorted({round(float(np.sqrt(np.mean(w**2))), 3) for w in first["noise"]})
    assert levels == pytest.approx([0.003, 0.1], abs=2e-3)


def test_what_is_written_is_counted(exported, monkeypatch):
    utterances = [u for u in open_corpus("prompts-en", "test") if u.seconds > 0.5][:12]
    sounds = unspoken()
    count = {kind: len(of_kind) for kind, of_kind in sounds.items()} | {"tenth of a second": 10}
    said = {"silence": "", "noise": "you", "music": "la la la la la", "tenth of a second": "a b"}
    texts = [said[kind] for kind in count for _ in range(count[kind])]
    done = [True] * len(texts)
    fake = BenchmarkResult(texts, [], [True] * (len(texts) - 1) + [False], [False] * len(texts), [])
    corpus = BenchmarkResult([u.text for u in utterances], [], done, [False] * 12, [])
    system = System("student", "student", exported, "fp32")
    asked = []
    monkeypatch.setattr(
        "export.measurement.robustness.time_systems", lambda *_, **given: asked.append(given.get("vad")) or [fake]
    )
    found = check_robustness([system], [corpus], utterances, 1)
    assert asked == [None, False]  # as it is by default, and without the detector
    own, off = (found["systems"][name] for name in ("student", "student, detector off"))
    assert {kind: off[kind] for kind in SPEECHLESS} == {kind: own[kind] for kind in SPEECHLESS}
    assert own["silence"] == {"wrote": 0, "words": 0, "loops": 0, "stopped_by_cap": 0}
    assert own["noise"] == {"wrote": count["noise"], "words": count["noise"], "loops": 0, "stopped_by_cap": 0}
    assert own["music"]["loops"] == count["music"]
    assert own["tenth of a second"]["stopped_by_cap"] == 1
    assert own["one word"]["wer"] == 0
    assert hallucination_rate(own, found["sounds"]) == pytest.approx(
        100 * (count["noise"] + count["music"]) / sum(count[k] for k in SPEECHLESS)
    )
    # silence is no speech to the detector
    assert found["sounds"]["silence"]["taken_for_speech"] == 0
    header, row, _, passed = robustness_rows({"robustness": found})
    assert len(header) == len(row) == len(passed)
