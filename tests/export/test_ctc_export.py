"""Bundles of models with a CTC head: the graph against torch, the runtime, third-party runtimes, and what is refused."""

import json
import shutil
import subprocess
import sys
from difflib import SequenceMatcher

import numpy as np
import onnx
import pytest
import torch

from export.assembly.build import export_bundle
from export.assembly.pack import pack
from export.bundle.ctc import runtimes_of
from export.bundle.manifest import open_manifest, size_mb
from export.edge import BundleError, Recognizer
from export.edge.decoding.ctc_path import CtcPath, greedy_path, words_of
from export.edge.decoding.sessions import as_value
from export.graphs.ctc import ctc_graph
from export.graphs.names import IN_FP32
from export.measurement.flops import ctc_flops, read_ctc_sizes
from export.measurement.measure import measure
from export.quantization.int8 import DEFAULTS
from export.search.budget import Budget, Profile, parse_budget
from export.search.candidates import Candidates
from export.search.search import export_for, search
from export.verification.clients import unavailable_reason
from export.verification.ctc import torch_logits
from export.verification.verify import verify_bundle
from tests.conftest import tone
from tests.models.ctc_checkpoints import KINDS as CHECKPOINTS
from tests.models.ctc_checkpoints import NAMES, PIECES, in_silence, over_whisper, write_checkpoint, write_tokens
from workbench.audio.decode import write_wav
from workbench.core.errors import UserError
from workbench.corpus import open_corpus
from workbench.models import open_family
from workbench.models.ctc.tokens import collapse

KINDS = (*CHECKPOINTS, "whisper")
SPECIAL = [NAMES.index(name) for name in ("<s>", "</s>", "<unk>")]


@pytest.fixture(scope="module")
def made(tiny_checkpoint, tmp_path_factory):
    """Factory of checkpoints of a kind; those that read waves never write a special token, as trained ones do not."""
    known = {}

    def make(kind):
        if kind not in known:
            folder = tmp_path_factory.mktemp("ctc") / kind
            if kind == "whisper":
                known[kind] = in_silence(over_whisper(tiny_checkpoint, folder))
            else:
                write_checkpoint(folder, kind)
                family = open_family(folder)
                model = family.load()
                with torch.no_grad():
                    model.lm_head.bias[[0] if kind == "parakeet" else SPECIAL] = -1000
                family.save(model, folder)
                known[kind] = in_silence(folder)
        return known[kind]

    return make


@pytest.fixture(scope="module")
def bundle_of(made, tmp_path_factory):
    """Factory of their bundles, in fp32 and int8."""
    known = {}

    def make(kind):
        if kind not in known:
            known[kind] = export_bundle(made(kind), tmp_path_factory.mktemp("bundles") / kind, ["fp32", "int8"])
        return known[kind]

    return make


def spoken(seconds, seed=0):
    """A tone that changes, so that the letters do, too."""
    noise = np.random.default_rng(seed).normal(1, 0.5, round(seconds * 16_000))
    return (tone(seconds) * noise).astype(np.float32)


@pytest.mark.parametrize("silence", [0.0, 0.4])
@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_is_the_model(made, tmp_path, kind, silence):
    import onnxruntime

    folder = in_silence(shutil.copytree(made(kind), tmp_path / "student"), silence)
    family = open_family(folder)
    model = family.load()
    session = onnxruntime.InferenceSession(ctc_graph(model, family).SerializeToString())
    for seconds in (
        0.006,
        0.02,
        0.513,
        2.0,
        29.9,
        30.0,
    ):  # shorter than a frame; between frames; no room for all of the silence
        waves = np.stack([spoken(seconds, 1), spoken(seconds, 2)])
        expected = torch_logits(model, family, waves)
        found = session.run(["logits"], {"input_values": waves})[0]
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())


@pytest.mark.parametrize("kind", KINDS)
def test_the_runtime_writes_what_torch_writes(made, bundle_of, kind):
    family, recognizer = open_family(made(kind)), Recognizer(bundle_of(kind), vad=False)
    model, waves = family.load(), [spoken(1.3, 3), spoken(0.7, 4)]
    texts = []
    for wave in waves:
        ids = collapse(torch.from_numpy(torch_logits(model, family, wave[None])[0]).argmax(-1), family.blank)
        said = recognizer.transcribe(wave)
        assert said.tokens == tuple(ids)
        assert said.text == family.ctc_tokens.decode(ids) != ""
        assert (said.finished, said.looped) == (True, False)
        texts.append(said.text)
    assert [said.text for said in recognizer.transcribe_batch(waves)] == texts  # each as if it were alone


def test_repetitions_are_one_token_unless_a_blank_is_between_them():
    best = [0, 3, 3, 0, 3, 5, 5, 0, 0, 2]
    path = greedy_path(np.eye(6, dtype=np.float32)[best], 0)
    assert path.tokens == [3, 3, 5, 2]
    assert path.first == [1, 4, 5, 9]
    assert path.last == [2, 4, 6, 9]
    for seed in range(50):
        drawn = np.random.default_rng(seed).integers(0, 3, 12)
        assert greedy_path(np.eye(3, dtype=np.float32)[drawn], 1).tokens == collapse(torch.from_numpy(drawn), 1)


@pytest.mark.parametrize("units", ["characters", "bytes", "bpe"])
def test_every_kind_of_token_is_read(tiny_checkpoint, tmp_path, units):
    folder = in_silence(over_whisper(tiny_checkpoint, tmp_path / "student", units))
    recognizer = Recognizer(export_bundle(folder, tmp_path / "bundle", ["fp32"]), vad=False)
    family = open_family(folder)
    for i, piece in enumerate(family.ctc_tokens.pieces):
        assert recognizer.detokenize.bytes_of(i) == piece
    said = recognizer.transcribe(spoken(1.0))
    assert said.text == family.ctc_tokens.decode(said.tokens)
    runtimes = {"edge"} if units != "characters" else {"edge", "optimum", "transformers_js"}
    written = (recognizer.manifest.folder / "MODEL_CARD.md").read_text()
    assert ("ORTModelForCTC" in written) == ("optimum" in runtimes)
    assert "from_omnilingual_asr_ctc" not in written  # it normalises the wave, which these models do not expect


def test_word_times_are_where_their_letters_are(bundle_of, monkeypatch):
    recognizer = Recognizer(bundle_of("wav2vec2"), vad=False)
    wave = spoken(1.0)
    positions = len(recognizer.ctc.logits(wave))
    letters = {name: i for i, name in enumerate(NAMES)}
    best = np.full(positions, letters["<pad>"])
    for at, letter in ((5, "H"), (6, "H"), (8, "I"), (10, "|"), (20, "Y"), (21, "O"), (24, "U")):
        best[at] = letters[letter]
    monkeypatch.setattr(recognizer.ctc, "logits", lambda _: np.eye(len(NAMES), dtype=np.float32)[best])
    said = recognizer.transcribe(wave, words=True)
    each = 1.4 / positions  # with 0.4 s of silence
    assert said.text == "HI YOU"
    assert [(w.text, w.start, w.end) for w in said.words] == [
        (
            "HI",
            pytest.approx(5 * each, abs=1e-3),
            pytest.approx(9 * each, abs=1e-3),
        ),
        ("YOU", pytest.approx(20 * each, abs=1e-3), pytest.approx(25 * each, abs=1e-3)),
    ]


def test_a_words_probability_is_the_mean_of_its_letters_where_they_are_likeliest(bundle_of, monkeypatch):
    recognizer = Recognizer(bundle_of("wav2vec2"), vad=False)
    wave = spoken(1.0)
    letters = {name: i for i, name in enumerate(NAMES)}
    likely = np.full((len(recognizer.ctc.logits(wave)), len(NAMES)), 1e-9)
    likely[:, letters["<pad>"]] = 1.0
    for at, letter, probability in ((5, "H", 0.6), (6, "H", 0.8), (8, "I", 0.7), (10, "|", 0.9), (20, "O", 0.55)):
        likely[at] = (1 - probability) / (len(NAMES) - 1)
        likely[at, letters[letter]] = probability
    monkeypatch.setattr(recognizer.ctc, "logits", lambda _: np.log(likely).astype(np.float32) + 3)
    said = recognizer.transcribe(wave, words=True)
    assert [(w.text, w.probability) for w in said.words] == [("HI", pytest.approx(0.75)), ("O", pytest.approx(0.55))]
    assert said.logprob == pytest.approx(np.log([0.8, 0.7, 0.9, 0.55]).mean(), abs=1e-5)
    assert recognizer.transcribe(wave).logprob is None


def test_pieces_of_words_have_times_and_beams(bundle_of, monkeypatch, tmp_path):
    recognizer = Recognizer(bundle_of("parakeet"), vad=False)
    wave = spoken(1.0)
    ids = {name: i for i, name in enumerate(PIECES)}
    likely = np.full((len(recognizer.ctc.logits(wave)), len(PIECES)), -20.0, np.float32)
    assert len(likely) == 18  # of 80 ms, with 0.4 s of silence
    likely[:, ids["<pad>"]] = 0.0
    for at, piece in ((2, "▁t"), (3, "he"), (6, "▁"), (7, "c"), (8, "a"), (10, "t")):
        likely[at, ids[piece]] = 4.0
    likely[8, ids["u"]] = 3.0
    monkeypatch.setattr(recognizer.ctc, "logits", lambda _: likely)
    said = recognizer.transcribe(wave, words=True)
    each = 1.4 / 18
    assert said.text == "the cat"
    assert [(w.text, w.start, w.end) for w in said.words] == [
        ("the", pytest.approx(2 * each, abs=1e-3), pytest.approx(4 * each, abs=1e-3)),
        ("cat", pytest.approx(7 * each, abs=1e-3), pytest.approx(11 * each, abs=1e-3)),
    ]
    assert recognizer.transcribe(wave, beams=4).text == "the cat"
    assert recognizer.transcribe(wave, hotwords=recognizer.new_hotwords(["CUT"], 3.0)).text == "the cut"


def test_characters_of_several_bytes_are_words_where_there_are_no_spaces():
    spelled = {1: b" ", 2: "你".encode()[:1], 3: "你".encode()[1:], 4: "好".encode(), 5: b"a"}
    path = CtcPath([5, 2, 3, 4, 1, 5], [0, 1, 3, 5, 7, 8], [0, 2, 4, 6, 7, 9])
    assert words_of(path, spelled.__getitem__, True) == [
        (b"a", 0, 0),
        ("你".encode(), 1, 4),
        ("好".encode(), 5, 6),
        (b"a", 8, 9),
    ]
    assert words_of(path, spelled.__getitem__, False) == [("a你好".encode(), 0, 6), (b"a", 8, 9)]
    latin = CtcPath([5, 5, 4, 5], [0, 1, 2, 3], [0, 1, 2, 3])
    assert words_of(latin, spelled.__getitem__, True) == [(b"aa", 0, 1), ("好".encode(), 2, 2), (b"a", 3, 3)]


def test_what_needs_a_decoder_is_refused(bundle_of):
    recognizer = Recognizer(bundle_of("whisper"), vad=False)
    with pytest.raises(BundleError, match="no decoder; CUDA graphs are for a decoder's steps"):
        Recognizer(bundle_of("whisper"), cuda_graphs=True)
    with pytest.raises(BundleError, match="does not support language 'xx'"):
        recognizer.transcribe(spoken(1.0), language="xx")
    assert recognizer.transcribe(spoken(1.0), language="auto").text == recognizer.transcribe(spoken(1.0)).text


def test_recordings_are_cut_and_silence_gives_no_text(bundle_of, monkeypatch):
    recognizer = Recognizer(bundle_of("whisper"))
    silence = recognizer.transcribe(np.zeros(16_000, np.float32))
    assert (silence.text, silence.tokens) == ("", ())
    clip = open_corpus("prompts-en", "test")[0].wave()
    segments = list(
        recognizer.segments(np.concatenate([clip, np.zeros(32_000, np.float32), clip]), longest=5.0, words=True)
    )
    assert len(segments) >= 2
    assert all(segment.transcript.words for segment in segments)
    assert all(s.start <= w.start <= w.end <= s.end + 1e-3 for s in segments for w in s.transcript.words)


def test_the_features_stay_in_fp32_in_every_precision(made, tmp_path):
    bundle = export_bundle(made("whisper"), tmp_path / "bundle", ["fp32", "fp16", "int8", "q4"])
    for name in ("model.onnx", "model_quantized.onnx", "model_q4.onnx"):
        graph = onnx.load(bundle / "onnx" / name).graph
        weights = {w.name: w.data_type for w in graph.initializer}
        kept = [node for node in graph.node if node.name.startswith(IN_FP32)]
        assert [node.op_type for node in kept if node.op_type in ("Conv", "MatMul")] == ["Conv", "MatMul"]
        assert {weights[i] for node in kept for i in node.input if i in ("basis", "filters")} == {
            onnx.TensorProto.FLOAT
        }
    half = onnx.load(bundle / "onnx" / "model_fp16.onnx").graph
    narrowed = {
        node.output[0]
        for node in half.node
        if node.op_type == "Cast" and node.attribute[0].i == onnx.TensorProto.FLOAT16
    }
    features = [node for node in half.node if node.name.startswith(IN_FP32)]
    assert len(features) > 20
    assert not narrowed & {name for node in features for name in node.input}  # what one gives another is not rounded
    parity = json.loads((bundle / "bundle.json").read_text())["parity"]
    assert parity["fp32"]["logits"] < 1e-4 < parity["int8"]["logits"]
    assert parity["fp16"]["logits"] < 0.02  # its features' squares would not fit into fp16
    for wave in (spoken(1.0), np.zeros(16_000, np.float32)):
        texts = {p: Recognizer(bundle, p, vad=False).transcribe(wave).tokens for p in ("fp32", "fp16")}
        same = SequenceMatcher(None, texts["fp16"], texts["fp32"], autojunk=False).ratio()
        assert same > 0.9  # of a random model, whose letters are hardly likelier than others


@pytest.mark.parametrize(
    ("names", "settings", "runtimes"),
    [
        (NAMES, {}, {"edge", "optimum", "transformers_js", "sherpa_onnx"}),
        ([*NAMES[:-1], "q u"], {}, {"edge"}),  # sherpa-onnx ends the process at such a name
        (NAMES, {"do_lower_case": True}, {"edge"}),
        (
            [*NAMES[:-1], "<blk>"],
            {},
            {"edge", "optimum", "transformers_js", "sherpa_onnx"},
        ),  # a special token, without text
        (["", *NAMES[1:]], {}, {"edge"}),  # a blank without a name
        ([name for name in NAMES if name != "|"], {}, {"edge"}),
    ],
)
def test_runtimes_that_would_spell_otherwise_are_left_out(tmp_path, names, settings, runtimes):
    folder = write_checkpoint(tmp_path / "a", "wav2vec2", vocab_size=len(names))
    write_tokens(folder, names, **settings)
    table = {name: i for i, name in enumerate(names) if name}
    (folder / "vocab.json").write_text(json.dumps(table))
    bundle = export_bundle(folder, tmp_path / "bundle", ["fp32"])
    content = open_manifest(bundle, check=True).content
    assert runtimes_of(content) == runtimes
    assert (bundle / "tokens.txt").is_file() == ("sherpa_onnx" in runtimes)
    assert (bundle / "tokenizer.json").is_file() == ("optimum" in runtimes)
    recognizer, family = Recognizer(bundle, vad=False), open_family(folder)
    assert [recognizer.detokenize.bytes_of(i) for i in range(len(names))] == list(family.ctc_tokens.pieces)
    said = recognizer.transcribe(spoken(1.0))
    assert said.text == family.ctc_tokens.decode(said.tokens)


def test_two_tokens_for_one_text_are_refused(tmp_path):
    folder = write_checkpoint(tmp_path / "a", "wav2vec2")
    write_tokens(folder, [*NAMES[:-1], " "])
    with pytest.raises(UserError, match=r"'\|' and ' ' stand for the same text"):
        export_bundle(folder, tmp_path / "bundle", ["fp32"])


def test_a_precision_that_gives_no_numbers_is_refused(made, tmp_path, monkeypatch):
    def broken(source, scheme, *_):
        model = onnx.load(source)
        weight = next(w for w in model.graph.initializer if w.name == "head.bias")
        weight.CopyFrom(onnx.numpy_helper.from_array(np.full(weight.dims, np.nan, np.float32), weight.name))
        onnx.save(model, source.parent / scheme.file(source.name))

    monkeypatch.setattr("export.assembly.ctc.quantize", broken)
    with pytest.raises(UserError, match="logits of the fp16 graph have values that are not finite"):
        export_bundle(made("whisper"), tmp_path / "bundle", ["fp32", "fp16"])
    assert list(tmp_path.iterdir()) == []


def test_a_graph_without_positions_is_refused(bundle_of, monkeypatch):
    recognizer = Recognizer(bundle_of("wav2vec2"), vad=False)
    empty = as_value(np.zeros((1, 0, len(NAMES)), np.float32))
    monkeypatch.setattr("export.edge.decoding.ctc.run_on_device", lambda *_: [empty])
    with pytest.raises(BundleError, match="its graph gives logits of shape"):
        recognizer.transcribe(spoken(1.0))


def test_a_client_that_does_not_read_it_is_an_error_and_records_nothing(made, bundle_of):
    before = (bundle_of("whisper") / "bundle.json").read_bytes()
    with pytest.raises(UserError, match="onnx_asr does not read it: it has no reader of models with a CTC head"):
        verify_bundle(
            bundle_of("whisper"), made("whisper"), open_corpus("prompts-en", "validation")[:1], "x", ["onnx_asr"]
        )
    assert (bundle_of("whisper") / "bundle.json").read_bytes() == before


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"precisions": ["fp32/int8"]}, "a model with a CTC head is one graph; expected one scheme, such as fp32"),
        ({"precisions": ["int8_static/int8"]}, "a model with a CTC head is one graph"),
        ({"precisions": ["fp32"], "vocabulary": "en"}, "has a CTC head and no decoder; leave out --vocabulary"),
        ({"precisions": ["fp32"], "through": "optimum"}, "leave out --vocabulary and --decoder-exporter"),
    ],
)
def test_options_for_a_decoder_are_refused(made, tmp_path, monkeypatch, how, message):
    monkeypatch.setattr("export.assembly.build.check_exporter", lambda _: None)
    with pytest.raises(UserError, match=message):
        export_bundle(made("whisper"), tmp_path / "bundle", **how)
    assert list(tmp_path.iterdir()) == []


def test_encoders_that_are_not_written_are_refused(tmp_path):
    with pytest.raises(UserError, match="hidden_act is 'relu'; only 'gelu' is exported yet"):
        export_bundle(write_checkpoint(tmp_path / "b", "wav2vec2", hidden_act="relu"), tmp_path / "bundle", ["fp32"])
    assert not (tmp_path / "bundle").exists()


def test_static_int8_has_ranges_from_clips(made, tmp_path):
    clips = [spoken(1.0, seed) for seed in range(3)]
    bundle = export_bundle(made("wavlm"), tmp_path / "bundle", ["int8_static", "int8"], calibration=clips)
    graph = onnx.load(bundle / "onnx" / "model_int8.onnx").graph
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in graph.node}
    assert not {"DynamicQuantizeLinear"} & {node.op_type for node in graph.node}
    kept = [node.op_type for node in graph.node if node.name.startswith(IN_FP32)]
    assert kept.count("MatMul") == 3  # the gates, one in each layer
    parity = json.loads((bundle / "bundle.json").read_text())["parity"]
    assert parity["int8"]["logits"] < parity["int8_static"]["logits"] < 0.02  # ranges from other clips
    with pytest.raises(UserError, match="int8_static needs calibration clips"):
        export_bundle(made("wavlm"), tmp_path / "other", ["int8_static"])


def test_the_search_measures_one_part(made, tmp_path):
    clips = open_corpus("prompts-en", "validation", 2)
    bundle = export_bundle(made("wav2vec2-layer"), tmp_path / "fp32", ["fp32"])
    candidates = Candidates(bundle, DEFAULTS, [spoken(1.0)[None]])
    profile = Profile(encoder=["fp32", "int8", "int8_static", "q4"])
    found = search(candidates, parse_budget("wer<=+1000"), profile, clips, clips[:1], 1)
    names = {row["name"] for row in found.rows}
    assert names == {"fp32", "int8", "int8_static", "q4"}
    assert found.name in names
    assert found.test["systems"][-1]["name"] == found.name
    assert found.notes[0].startswith("on this machine the model takes")
    found = search(candidates, Budget(wer=0.0), Profile(encoder=["fp32", "q4"]), clips, [], 1)
    assert len(found.layers["ctc q4"]) == 3
    assert any(row["name"].startswith("q4-") for row in found.rows)  # forms with a layer left were tried


def test_what_a_search_cannot_do_is_said_first(made, tmp_path, caplog):
    how = (made("hubert"), tmp_path / "b", "wer<=+1000")
    for wrong in ({"through": "optimum"}, {"vocabulary": "en"}):
        with pytest.raises(UserError, match="has a CTC head and no decoder; leave out --vocabulary"):
            export_for(*how, None, "prompts-en", DEFAULTS, None, **wrong)
    assert not caplog.text


def test_a_profile_without_fp32_is_compared_with_it(made, tmp_path):
    clips = open_corpus("prompts-en", "validation", 2)
    candidates = Candidates(export_bundle(made("hubert"), tmp_path / "fp32", ["fp32"]), DEFAULTS, [])
    found = search(candidates, parse_budget("wer<=+1000"), Profile(encoder=["q4"]), clips, [], 1)
    assert {row["name"] for row in found.rows} == {"fp32", "q4"}


@pytest.mark.slow
def test_export_within_a_budget(made, tmp_path):
    device = tmp_path / "device.json"
    device.write_text('{"name": "a phone", "threads": 1, "encoder": ["fp32", "int8"]}')
    bundle, found = export_for(made("hubert"), tmp_path / "b", "wer<=+1000", device, "prompts-en", DEFAULTS, None)
    assert open_manifest(bundle, check=True).precisions[-1] == found.name


def test_a_graph_that_differs_from_torch_is_not_written(made, tmp_path, monkeypatch):
    def wrong(model, family):
        with torch.no_grad():
            model.lm_head.bias += 0.05
            made_of_it = ctc_graph(model, family)
            model.lm_head.bias -= 0.05
        return made_of_it

    monkeypatch.setattr("export.assembly.ctc.ctc_graph", wrong)
    with pytest.raises(UserError, match="logits of the fp32 graph differ from torch by"):
        export_bundle(made("whisper"), tmp_path / "bundle", ["fp32"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ctc": None}, "field 'ctc' is missing"),
        ({"family": "whisper"}, "field 'ctc' is for the family ctc alone"),
        ({"ctc": {"pieces": "pieces.json"}}, "field ctc.'blank' is missing"),
        ({"ctc": {"blank": 0, "pieces": "../pieces.json"}}, "points outside the bundle"),
        ({"ctc": {"blank": 999, "pieces": "pieces.json"}}, "says that token 999 is the blank, but there are 32"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(bundle_of, tmp_path, change, message):
    bundle = shutil.copytree(bundle_of("wav2vec2"), tmp_path / "bundle")
    content = json.loads((bundle / "bundle.json").read_text()) | change
    (bundle / "bundle.json").write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    with pytest.raises(BundleError, match=message):
        Recognizer(bundle)


def test_a_part_for_a_device_transcribes_without_the_workbench(bundle_of, tmp_path):
    folder = pack(bundle_of("whisper"), tmp_path / "device", "edge")
    assert {p.name for p in (folder / "onnx").iterdir()} == {"model.onnx", "speech_detector.onnx"}
    open_manifest(folder, check=True)
    wave = spoken(1.5)
    write_wav(tmp_path / "a.wav", wave)
    expected = Recognizer(bundle_of("whisper"), "int8", vad=False)
    from export.edge import read_wav

    text = expected.transcribe(read_wav(tmp_path / "a.wav")).text
    done = subprocess.run(
        [sys.executable, "-B", "-m", "edge", "--no-vad", "../a.wav"], cwd=folder, capture_output=True, check=True, encoding="utf-8",
    )  # fmt: skip
    assert done.stdout == f"../a.wav\t{text}\n"
    with pytest.raises(UserError, match="onnx_asr does not read it: it has no reader of models with a CTC head"):
        pack(bundle_of("whisper"), tmp_path / "other", "onnx_asr")


def test_an_export_that_is_there_is_left(made, bundle_of):
    before = (bundle_of("hubert") / "bundle.json").stat().st_mtime_ns
    export_bundle(made("hubert"), bundle_of("hubert"), ["fp32", "int8"])
    assert (bundle_of("hubert") / "bundle.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("kind", ["wav2vec2", "wavlm", "mms", "whisper", "parakeet"])
def test_operations_are_those_of_the_graph(bundle_of, kind):
    """Against a count over the products that the graph computes, the features' apart."""
    import onnxruntime

    bundle, samples = bundle_of(kind), 32_000
    manifest = open_manifest(bundle)
    model = onnx.load(manifest.graph("ctc", "fp32"))
    weights = {w.name: tuple(w.dims) for w in model.graph.initializer}
    features = {"basis", "filters"}
    products = [n for n in model.graph.node if n.op_type in ("MatMul", "Conv") and not features & set(n.input)]
    wanted = sorted({name for n in products for name in (n.input[0], n.output[0])})
    for name in wanted:
        model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    found = session.run(wanted, {"input_values": np.zeros((1, samples), np.float32)})
    shapes = {name: value.shape for name, value in zip(wanted, found, strict=True)}
    total = 0
    for node in products:
        # channels and kernel of a convolution; the width of what a matrix multiplies
        each = weights[node.input[1]][1:] if node.op_type == "Conv" else shapes[node.input[0]][-1:]
        total += 2 * int(np.prod(shapes[node.output[0]]) * np.prod(each))
    heard = samples + round(manifest.content["margin_seconds"] * 16_000)
    assert ctc_flops(read_ctc_sizes(bundle), heard) == pytest.approx(total, rel=0.01)
    assert size_mb(manifest, "fp32") > size_mb(manifest, "int8") > 0


def test_it_is_measured_like_others(bundle_of, exported, speech, tmp_path):
    bundle = shutil.copytree(bundle_of("whisper"), tmp_path / "bundle")
    found = measure([bundle], str(exported), tmp_path / "report", [str(speech(3))], threads=1, robustness=False)
    rows = {row["precision"]: row for row in found["systems"] if row["kind"] == "student"}
    assert set(rows) == {"fp32", "int8"}
    assert all(
        row["gflop"] > 0 and row["stages_ms"]["encoder"] > 0 == row["stages_ms"]["rest"] for row in rows.values()
    )
    assert rows["int8"]["size_mb"] < rows["fp32"]["size_mb"]
    assert "an encoder with a CTC head" in (bundle / "MODEL_CARD.md").read_text()
    config = json.loads((bundle / "config.json").read_text())
    del config["hidden_size"]
    (bundle / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        UserError, match=r"config\.json: field configuration\.'hidden_size' is missing; export the bundle again"
    ):
        read_ctc_sizes(bundle)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wav2vec2", "wavlm", "whisper"])
@pytest.mark.parametrize("client", ["edge", "optimum", "sherpa_onnx", "transformers_js"])
def test_third_party_runtimes_write_what_torch_writes(made, bundle_of, tmp_path, client, kind):
    if remedy := unavailable_reason(client):
        pytest.skip(remedy)
    bundle = shutil.copytree(bundle_of(kind), tmp_path / "bundle")
    if (client, kind) == ("sherpa_onnx", "whisper"):
        with pytest.raises(UserError, match="sherpa_onnx does not read it: it normalises the wave"):
            verify_bundle(bundle, made(kind), open_corpus("prompts-en", "validation")[:1], "x", [client])
        return
    found = verify_bundle(bundle, made(kind), open_corpus("prompts-en", "validation")[:6], "prompts-en", [client])
    of_it = {one["precision"]: one for one in found["clients"]}
    assert of_it["fp32"]["passed"], of_it["fp32"]
    assert of_it["fp32"]["tokens_equal"] == "6 of 6"
    assert of_it["int8"]["error"] is None
