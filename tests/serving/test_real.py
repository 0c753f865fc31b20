"""The server with the real Whisper base: what is said is what comes back."""

import numpy as np
import pytest

from tests.serving.conftest import Clip, serving, wav_bytes
from workbench.corpus import open_corpus
from workbench.evaluation.scoring import score

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    from export.assembly.alignment import alignment_clips
    from export.assembly.build import export_bundle
    from workbench.models.resolve import resolve_teacher

    with (
        pytest.MonkeyPatch.context() as patch
    ):  # comparing tensors with torch takes most of an export; other tests do it
        patch.setattr("export.verification.parity.check_tensors", lambda *_: {})
        folder = tmp_path_factory.mktemp("bundles") / "whisper-base"
        heads = alignment_clips("prompts-en")  # which word times come from
        export_bundle(resolve_teacher("whisper-base"), folder, ["fp32"], "whisper-base", aligned=heads)
    with serving(folder, language="en", workers=1) as client:
        client.name = client.models.list().data[0].id
        yield client


@pytest.fixture(scope="module")
def spoken():
    found = [u for u in open_corpus("prompts-en", "validation") if 2 < u.seconds < 5][:12]
    return [Clip(wav_bytes(u.wave()), u.text) for u in found]


def test_texts_and_words_are_right(server, spoken):
    texts = []
    for clip in spoken:
        found = server.audio.transcriptions.create(
            model=server.name, file=("clip.wav", clip.content), response_format="verbose_json", timestamp_granularities=["word"]
        )  # fmt: skip
        texts.append(found.text)
        assert " ".join(word.word for word in found.words) == found.text
        times = [t for word in found.words for t in (word.start, word.end)]
        assert times == sorted(times)
        assert 0 <= times[0] < times[-1] <= found.duration + 0.01
    assert score([clip.text for clip in spoken], texts).wer < 15


def test_a_recording_streams_its_sentences_with_subtitles_in_order(server, spoken):
    pause = np.zeros(24_000, np.float32)
    content = wav_bytes(np.concatenate([part for clip in spoken for part in (clip.wave, pause)]))
    events = list(server.audio.transcriptions.create(model=server.name, file=("a.wav", content), stream=True))
    assert len(events) > 3
    assert score([" ".join(clip.text for clip in spoken)], [events[-1].text]).wer < 15
    subtitles = server.audio.transcriptions.create(model=server.name, file=("a.wav", content), response_format="srt")
    cues = subtitles.strip().split("\n\n")
    assert len(cues) >= len(events) - 1
    assert [cue.split("\n")[0] for cue in cues] == [str(i) for i in range(1, len(cues) + 1)]
