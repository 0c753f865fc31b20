"""The runtime without torch beyond one utterance: batches, beams, loops, recordings, streams."""

import itertools
import json
import subprocess
import sys

import numpy as np
import onnxruntime as ort
import pytest

from export.edge import AudioError, BundleError, Recognizer, Segment, Stream, Transcript, format_segments
from export.edge.audio.resample import Resampler, resample
from export.edge.decoding.decoder import beam_search, greedy, log_softmax
from export.edge.decoding.sessions import with_cuda_options
from export.edge.vad import SpeechSpan, VoiceActivityDetector, find_speech, join_spans, pad_spans, speech_spans
from tests.conftest import tone
from workbench.audio.decode import write_wav
from workbench.corpus import open_corpus
from workbench.labelling.segmentation import VoiceActivityDetector as Silero

RATE = 16000


@pytest.fixture(scope="module")
def recognizer(exported):
    return Recognizer(exported, "fp32", 2, vad=False)


@pytest.fixture(scope="module")
def recording():
    """Nine prompts with pauses of 0.2 to 2 s between them."""
    clips = [u.wave() for u in open_corpus("prompts-en", "validation") if u.seconds > 1][:9]
    pauses = [np.zeros(int(RATE * s), np.float32) for s in (0.2, 0.5, 2.0) * 3]
    return np.concatenate([part for pair in zip(pauses, clips, strict=True) for part in pair])


def test_a_batch_writes_what_each_clip_alone_writes(recognizer):
    wave = open_corpus("prompts-en", "validation")[0].wave()
    same = [wave * scale for scale in (1.0, 0.5, 0.2)]
    alone = [recognizer.transcribe(w) for w in same]
    together = recognizer.transcribe_batch(same)
    assert [t.tokens for t in together] == [t.tokens for t in alone]
    assert together[0].stages_ms is together[1].stages_ms  # theirs together


def test_clips_go_together_if_their_lengths_are_near(recognizer):
    found = list(recognizer._batches([3.0, 1.0, 1.2, 9.0, 1.3, 1.39, 3.5], 3))
    assert found == [[1, 2, 4], [5], [0], [6], [3]]
    assert recognizer.transcribe_batch([]) == []
    # clips of unlike length come back in the order given
    mixed = [tone(1.0), tone(3.0), tone(0.9)]
    assert [t.tokens for t in recognizer.transcribe_batch(mixed, most=1)] == [
        recognizer.transcribe(w).tokens for w in mixed
    ]
    with pytest.raises(AudioError, match="at most 30 s"):
        recognizer.transcribe_batch([tone(1.0), np.zeros(31 * RATE, np.float32)])


class Table:
    """A decoder whose next token depends on the last one alone."""

    def __init__(self, rows, likely):
        self.rows, self.likely, self.at = rows, np.log(np.array(likely)), np.zeros(rows, int)

    def __call__(self, tokens):
        self.at = tokens[:, -1]
        return self.likely[self.at].astype(np.float32)

    def reorder(self, rows):
        pass  # it remembers nothing


def test_beams_find_the_likeliest_transcript():
    """Against all transcripts of up to five tokens of a decoder that greedy search is led astray in."""
    end = 0
    likely = [[1, 0, 0, 0], [0.02, 0.10, 0.48, 0.40], [0.34, 0.33, 0.0, 0.33], [0.97, 0.01, 0.01, 0.01]]
    likely = np.maximum(likely, 1e-9)

    def mean(tokens):
        path = [1, *tokens, end]
        return np.mean([np.log(likely[a][b]) for a, b in itertools.pairwise(path)])

    every = [t for n in range(1, 6) for t in itertools.product((1, 2, 3), repeat=n)]
    best = max(every, key=mean)
    found = beam_search(Table(4, likely), [1], 6, end, 4)
    assert found.tokens == list(best)
    assert found.finished
    assert mean(greedy(Table(1, likely), [[1]], [6], end)[0].tokens) < mean(best)


def test_beams_go_on_from_their_own_past(recognizer):
    """With the real graph: the score of what is found, computed anew without beams, is at least greedy's."""
    from export.edge.decoding.decoder import DecoderSession

    wave = open_corpus("prompts-en", "validation")[1].wave()
    prompt, end = recognizer.prompts["en"], recognizer.model.end_token

    def mean(tokens):
        decoder = DecoderSession(
            recognizer.model.step, recognizer.model.cross_kv([wave]), len(prompt) + len(tokens) + 1
        )
        given, total = prompt, 0.0
        for token in [*tokens, end]:
            total += log_softmax(decoder(np.array([given])))[0, token]
            given = [token]
        return total / (len(tokens) + 1)

    limit = 12
    decoder = DecoderSession(recognizer.model.step, recognizer.model.cross_kv([wave]), len(prompt) + limit, 5)
    found = beam_search(decoder, prompt, limit, end, 5)
    # the same search with nothing cached: every beam's past is read anew
    again = beam_search(Anew(recognizer, wave, 5), prompt, limit, end, 5)
    assert found == again
    assert np.isfinite(mean(found.tokens))
    assert recognizer.transcribe(wave, beams=5).tokens


class Anew:
    """A decoder without a memory: every step reads each beam from its prompt on."""

    def __init__(self, recognizer, wave, rows):
        self.recognizer, self.wave, self.rows, self.past = recognizer, wave, rows, None

    def __call__(self, tokens):
        from export.edge.decoding.decoder import DecoderSession

        self.past = tokens if self.past is None else np.concatenate([self.past, tokens], 1)
        cross_kv = self.recognizer.model.cross_kv([self.wave])
        return np.concatenate(
            [DecoderSession(self.recognizer.model.step, cross_kv, self.past.shape[1])(row[None]) for row in self.past]
        )

    def reorder(self, rows):
        self.past = self.past[rows]


@pytest.mark.parametrize("seed", range(40))
def test_speech_is_cut_as_silero_vad_cuts(seed):
    """On probabilities that wander, so that every rule is met."""
    from silero_vad import get_speech_timestamps_from_probs

    random = np.random.default_rng(seed)
    likely = np.clip(0.5 + np.cumsum(random.normal(0, 0.15, 900)) % 1.2 - 0.6 + random.normal(0, 0.1, 900), 0, 1)
    samples, longest = 900 * 512 - int(random.integers(512)), float(random.choice([2.0, 5.0, 28.0]))
    expected = get_speech_timestamps_from_probs(
        list(likely), max_speech_duration_s=longest - 0.2, speech_pad_ms=100, audio_length_samples=samples
    )
    found = pad_spans(speech_spans(likely, samples, longest), samples)
    assert [(p.start, p.end) for p in found] == [(e["start"], e["end"]) for e in expected]


def test_a_recording_is_cut_as_for_training(recording, exported):
    expected = Silero().pieces(recording, 10.0)
    found = find_speech(recording, VoiceActivityDetector(exported / "onnx" / "speech_detector.onnx"), 10.0)
    assert [(p.start / RATE, p.end / RATE) for p in found] == [(p.start, p.end) for p in expected]
    assert len(found) > 2


def test_neighbours_are_joined_where_they_fit():
    second = RATE
    given = [SpeechSpan(0, second), SpeechSpan(2 * second, 3 * second), SpeechSpan(5 * second, 6 * second)]
    assert join_spans(given, 28.0) == [SpeechSpan(0, 3 * second), SpeechSpan(5 * second, 6 * second)]
    assert join_spans(given, 2.0) == given


def test_a_recording_of_any_length(recognizer, recording):
    long = np.concatenate([recording, np.zeros(3 * RATE, np.float32), recording])
    assert len(long) > 31 * RATE
    found = list(recognizer.segments(long, "en", longest=8.0))
    assert all(0.1 <= s.end - s.start <= 8.0 for s in found)
    assert all(a.end <= b.start for a, b in itertools.pairwise(found))
    first = found[0]
    expected = recognizer.transcribe(long[round(first.start * RATE) : round(first.end * RATE)])
    assert first.transcript.tokens == expected.tokens
    assert list(recognizer.segments(np.zeros(40 * RATE, np.float32))) == []  # silence says nothing
    with pytest.raises(AudioError, match="finite"):
        list(recognizer.segments(np.full(100, np.nan, np.float32)))
    for longest in (1.0, 31.0):
        with pytest.raises(AudioError, match="expected 2 to 30 s"):
            list(recognizer.segments(long, longest=longest))


def test_a_bundle_without_a_detector_says_so(recognizer, recording, monkeypatch):
    monkeypatch.delitem(recognizer.manifest.content, "speech_detector")
    monkeypatch.setattr(recognizer, "_cutter", None)
    with pytest.raises(BundleError, match="install silero-vad and export again"):
        list(recognizer.segments(recording))


def test_a_stream_tells_what_it_hears_and_then_the_whole(recognizer, recording):
    stream, told = Stream(recognizer), []
    for block in np.array_split(np.concatenate([recording, np.zeros(RATE, np.float32)]), 97):
        told += stream.feed(block)
    told += stream.finish()
    finals = [heard for heard in told if heard.final]
    assert len(finals) >= 3
    assert len(told) > len(finals)
    assert all(a.end <= b.start + 0.5 for a, b in itertools.pairwise(finals))
    last = finals[-1]
    assert last.text == recognizer.transcribe(_of(recording, last)).text
    # however the blocks are cut, the same
    again = Stream(recognizer)
    other = [*again.feed(np.concatenate([recording, np.zeros(RATE, np.float32)])), *again.finish()]
    assert other == told
    with pytest.raises(AudioError, match="finite"):
        list(stream.feed(np.full(10, np.inf, np.float32)))


def _of(wave, heard):
    filled = np.concatenate([wave, np.zeros(RATE, np.float32)])
    return filled[round(heard.start * RATE) : round(heard.end * RATE)]


def test_a_stream_says_when_the_decoder_looped(recognizer, monkeypatch):
    monkeypatch.setattr(recognizer, "transcribe", lambda *_, **__: Transcript("so so", "en", (1,), {}, False, True))
    stream = Stream(recognizer, every=100.0)
    stream.detector = lambda wave: np.ones(len(wave) // 512)
    assert [heard.looped for heard in [*stream.feed(np.zeros(RATE, np.float32)), *stream.finish()]] == [True]


def test_an_utterance_that_never_ends_is_cut(recognizer):
    stream = Stream(recognizer, every=100.0)
    stream.detector = lambda wave: np.ones(len(wave) // 512)
    told = [*stream.feed(np.zeros(65 * RATE, np.float32)), *stream.finish()]
    assert [heard.final for heard in told] == [True] * 3
    assert all(heard.end - heard.start <= 30 for heard in told)


def test_subtitles_and_json():
    said = Transcript("Hello.", "en", (1,), {}, True)
    rows = [Segment(0.5, 1.25, said), Segment(3725.0, 3726.5, said)]
    assert format_segments(rows, "a.wav", "text") == "a.wav\tHello. Hello."
    assert format_segments(rows, "a.wav", "srt").splitlines()[1] == "00:00:00,500 --> 00:00:01,250"
    assert format_segments(rows, "a.wav", "vtt").startswith(
        "WEBVTT\n\n1\n00:00:00.500 --> 00:00:01.250\nHello.\n\n2\n01:02:05.000"
    )
    assert json.loads(format_segments(rows, "a.wav", "json"))["segments"][1]["end"] == 3726.5


def test_the_command_line_writes_subtitles(exported, recording, tmp_path):
    write_wav(tmp_path / "long.wav", np.tile(recording, 3))
    run = [sys.executable, "-B", "-m", "edge", "--format", "srt", "--timings", str(tmp_path / "long.wav")]
    done = subprocess.run(run, cwd=exported, capture_output=True, text=True, check=True)
    assert "encoder" in done.stderr
    shorter = subprocess.run([*run, "--longest", "5"], cwd=exported, capture_output=True, text=True, check=True)
    wrong = subprocess.run([*run, "--longest", "40"], cwd=exported, capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "expected 2 to 30 s" in wrong.stderr
    assert shorter.stdout.count(" --> ") > done.stdout.count(" --> ") > 0


def test_a_provider_that_is_not_there_is_told_not_replaced(exported):
    with pytest.raises(BundleError, match="has no CUDAExecutionProvider"):
        Recognizer(exported, providers=["CUDAExecutionProvider", "CPUExecutionProvider"], vad=False)


def test_cuda_computes_fp32_in_fp32_and_searches_no_algorithms_unless_told():
    cuda = "CUDAExecutionProvider"
    assert with_cuda_options(cuda) == (cuda, {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"})
    told = {"use_tf32": "1", "device_id": "1"}
    assert with_cuda_options((cuda, told)) == (cuda, {"cudnn_conv_algo_search": "HEURISTIC", **told})
    assert with_cuda_options("CPUExecutionProvider") == ("CPUExecutionProvider", {})


def test_what_onnxruntime_prints_of_a_provider_that_does_not_start_is_no_transcript(exported, monkeypatch, capsys):
    real = ort.InferenceSession

    def falls_back(path, options, providers):
        sys.stdout.write("*** EP Error ***\n")
        return real(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(ort, "InferenceSession", falls_back)
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    with pytest.raises(BundleError, match="does not start"):
        Recognizer(exported, providers=["CUDAExecutionProvider", "CPUExecutionProvider"], vad=False)
    said = capsys.readouterr()
    assert not said.out
    assert "EP Error" in said.err


def test_a_decoder_whose_memory_is_kept_writes_the_same(exported, recognizer):
    """What CUDA graphs play in, on the CPU, where nothing is captured; tests/gpu has the captured ones."""
    kept = Recognizer(exported, "fp32", 2, vad=False)
    kept.model._captured = kept.model._new_captured(kept.manifest)
    noise = np.random.default_rng(0)
    waves = [tone(s) + noise.normal(0, 0.1, int(RATE * s)).astype(np.float32) for s in (1.0, 2.0) for _ in range(3)]
    for wave in [*waves, *waves[::-1]]:  # two shapes, each of several clips, in turns
        assert kept.transcribe(wave).tokens == recognizer.transcribe(wave).tokens
    assert len(kept.model._captured.sessions) == len(kept.model._captured.cross_kv) == 2
    memory = [place.data_ptr() for places in kept.model._captured.cross_kv.values() for place in places]
    assert kept.transcribe(waves[0], "auto").language == recognizer.transcribe(waves[0], "auto").language
    assert kept.transcribe(waves[0], beams=3).tokens == recognizer.transcribe(waves[0], beams=3).tokens
    batch = waves[:3]
    expected = [t.tokens for t in recognizer.transcribe_batch(batch)]
    assert [t.tokens for t in kept.transcribe_batch(batch)] == expected
    assert [place.data_ptr() for places in kept.model._captured.cross_kv.values() for place in places][:4] == memory


def test_shapes_beyond_those_that_are_kept_are_decoded_as_usual(exported, recognizer, monkeypatch):
    monkeypatch.setattr("export.edge.decoding.cuda_graphs.MAX_SHAPES", 1)
    kept = Recognizer(exported, "fp32", 2, vad=False)
    kept.model._captured = kept.model._new_captured(kept.manifest)
    for wave in (tone(1.0), tone(2.0), tone(1.0)):
        assert kept.transcribe(wave).tokens == recognizer.transcribe(wave).tokens
    assert len(kept.model._captured.sessions) == 1


def test_cuda_graphs_are_the_cuda_providers(exported):
    with pytest.raises(BundleError, match="CUDA graphs need the CUDA provider"):
        Recognizer(exported, cuda_graphs=True, vad=False)


def test_half_precision_and_beams_take_the_states_as_they_need_them(student, tmp_path):
    from export.assembly.build import export_bundle

    bundle = export_bundle(student, tmp_path / "half", ["fp16"])
    wave = open_corpus("prompts-en", "validation")[2].wave()
    recognizer = Recognizer(bundle, vad=False)
    assert recognizer.transcribe(wave).tokens == recognizer.transcribe_batch([wave, wave])[1].tokens
    assert recognizer.transcribe(wave, beams=3).tokens


def test_frugal_loading_and_spinning_change_no_text(exported):
    wave = tone(1.0)
    assert (
        Recognizer(exported, spin=True, vad=False).transcribe(wave).tokens
        == Recognizer(exported, vad=False).transcribe(wave).tokens
    )
    assert (
        Recognizer(exported, frugal=True, vad=False).transcribe(wave).tokens
        == Recognizer(exported, vad=False).transcribe(wave).tokens
    )


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
def test_a_resampled_stream_does_not_depend_on_its_blocks(rate):
    rng = np.random.default_rng(0)
    wave = rng.normal(size=rate + 17).astype(np.float32)
    whole = resample(wave, rate)
    resampler, parts, at = Resampler(rate), [], 0
    while at < len(wave):
        size = int(rng.integers(1, 3000))
        parts.append(resampler(wave[at : at + size]))
        at += size
        # little is held back, and little is kept
        assert sum(map(len, parts)) > (min(at, len(wave)) - 2 * resampler.reach - 3) * RATE / rate
        assert len(resampler.kept) < 3000 + 4 * resampler.reach
    joined_up = np.concatenate([*parts, resampler.finish()])[: len(whole)]
    np.testing.assert_allclose(joined_up, whole, atol=1e-6)
