"""Whatever a stranger's file holds, it is used or refused in one line: within bounded time and memory, with a UserError and no other."""

import json

import av
import numpy as np
import pytest
import yaml
from hypothesis import strategies as st

from tests.conftest import DECODER, ENCODER, tone
from tests.fuzzing import fuzz, json_mutations, mutated
from workbench.audio.decode import decode, probe_seconds, write_wav
from workbench.config.recipe import load_recipe, parse_recipe
from workbench.core.errors import UserError
from workbench.corpus.hub import read_dataset
from workbench.corpus.manifests import read_manifest

ROWS = [
    {"audio": "a.wav", "text": "Hello.", "language": "en", "split": "train", "id": "1", "scored": True},
    {"audio_filepath": "a.wav", "text": "Two “words”", "offset": 0.25, "duration": 0.5, "lang": "es"},
    {"path": "b.wav", "sentence": "Third.", "start": 0, "end": 0.5, "locale": "en-US"},
]
RECIPE = {
    "output": "runs/x", "teacher": "whisper-base", "more_teachers": ["whisper-tiny.en"], "teacher_weights": "softmax", "corpus": "prompts-en",
    "student": {"encoder_layers": "all", "decoder_layers": [0, 2], "pool_after": 2}, "trailing_silence": {"train_min": 0.2, "train_max": 0.9, "inference": 0.4},
    "targets": {"kind": "top_k", "top_k": 8}, "augment": {"speed_factors": [0.9, 1.1], "snr_db": [5, 30]}, "precision": "fp32",
    "stages": {"encoder": ENCODER, "decoder": {**DECODER, "divergence": {"name": "forward_kl"}, "on_policy": {"fraction": 0.5}}},
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    write_wav(tmp_path / "a.wav", tone(1.0))
    write_wav(tmp_path / "b.wav", tone(0.6))
    return tmp_path


def read(path):
    for utterance in read_manifest(path):
        utterance.wave()


@pytest.mark.parametrize("name", ["m.jsonl", "m.json"])
def test_rows_of_a_json_manifest(folder, name):
    def check(rows):
        text = json.dumps(rows) if name == "m.json" or not isinstance(rows, list) else "\n".join(map(json.dumps, rows))
        (folder / name).write_text(text, encoding="utf-8", errors="surrogatepass")
        read(folder / name)

    fuzz(json_mutations(ROWS), check, refusals=(UserError,))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.jsonl", "\n".join(map(json.dumps, ROWS))),
        ("m.json", json.dumps(ROWS)),
        ("m.csv", 'audio,text,offset,duration,language\na.wav,"He said ""hi""",0.1,0.5,en\nb.wav,Two,,0.6,es\n'),
        ("m.tsv", "path\tsentence\tlocale\na.wav\tOne.\ten\nb.wav\tTwo.\tes\n"),
    ],
)
def test_bytes_of_a_manifest(folder, name, text):
    def check(data):
        (folder / name).write_bytes(data)
        read(folder / name)

    samples = [text.encode(), text.encode("utf-16")]
    fuzz(mutated(samples, head=len(text)), check, refusals=(UserError,))


def test_rows_of_a_parquet_file(folder, monkeypatch):
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    wave = (folder / "a.wav").read_bytes()
    features = {"features": {"audio": {"_type": "Audio"}, "text": {"dtype": "string", "_type": "Value"}, "language": {"dtype": "string", "_type": "Value"}}}  # fmt: skip
    columns = st.fixed_dictionaries({
        "audio": st.lists(st.none() | mutated([wave], head=60), min_size=2, max_size=2),
        "path": st.lists(st.sampled_from([None, "", "/dev/zero", "/etc/passwd", "x.wav", "http://127.0.0.1:1/x.wav", "a::b"]), min_size=2, max_size=2),
        "text": st.lists(st.none() | st.text(max_size=10), min_size=2, max_size=2),
        "language": st.lists(st.sampled_from([None, "en", "", "xx", "english", "\u2028"]), min_size=2, max_size=2),
        "info": st.just(features) | json_mutations(features),
    })  # fmt: skip

    def check(drawn):
        audio = [{"bytes": data, "path": path} for data, path in zip(drawn["audio"], drawn["path"], strict=True)]
        table = pa.table({
            "audio": pa.array(audio, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            "text": pa.array([None if t is None else t.encode("utf-8", "replace").decode() for t in drawn["text"]], pa.string()),
            "language": pa.array(drawn["language"], pa.string()),
        })  # fmt: skip
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": drawn["info"]})})
        data = folder / "set" / "data"
        data.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, data / "train-00000-of-00001.parquet")
        for utterance in read_dataset(str(folder / "set"), "train"):
            utterance.wave()

    fuzz(columns, check, refusals=(UserError,))


@pytest.mark.parametrize(
    "kind",
    [("wav", "pcm_s16le"), ("wav", "pcm_f32le"), ("w64", "pcm_s16le"), ("aiff", "pcm_s16be"), ("flac", "flac"), ("ogg", "libopus"),
     ("mp3", "libmp3lame"), ("mp4", "aac"), ("matroska", "pcm_s16le"), ("au", "pcm_s16be"), ("caf", "alac")],
)  # fmt: skip
def test_headers_of_recordings(tmp_path, kind):
    forms = {"pcm_f32le": "flt", "libopus": "s16", "libmp3lame": "s16p", "aac": "fltp", "alac": "s16p"}
    rate = 48_000 if kind[1] == "libopus" else 16_000
    sample = recording(tmp_path / "sample", kind, rate, forms.get(kind[1], "s16"))

    def check(data):
        (tmp_path / "x").write_bytes(data)
        for source in (data, tmp_path / "x"):
            try:
                probe_seconds(source)
            finally:
                decode(source, longest=60.0)

    fuzz(mutated([sample], head=200), check, megabytes=1000, refusals=(UserError,))


def recording(path, kind, rate, form):
    """Bytes of half a second of a tone in a container and codec."""
    with av.open(str(path), "w", format=kind[0]) as file:
        stream = file.add_stream(kind[1], rate=rate, layout="mono")
        wave = tone(0.5, rate)
        samples = wave if form.startswith("flt") else (wave * 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(samples[None], format=form, layout="mono")
        frame.sample_rate = rate
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            file.mux(packet)
    return path.read_bytes()


def test_values_of_a_recipe():
    fuzz(json_mutations(RECIPE), lambda content: parse_recipe(content, "recipe.yaml"), refusals=(UserError,))


def test_bytes_of_a_recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    text = yaml.safe_dump(RECIPE)

    def check(data):
        path.write_bytes(data)
        load_recipe(path)

    fuzz(mutated([text.encode()], head=len(text)), check, refusals=(UserError,))


def test_overrides_of_a_recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    keys = st.sampled_from(
        ["stages.decoder.epochs", "stages.x.y", "student.decoder_layers", "weighting", "stages", "output", ".", "a..b"]
    )
    values = st.sampled_from(["3", "1e400", "[", "{a: 1}", "&a [*a]", "null", "-1", "!!python/none", "2026-13-45", "0x", ".nan"]) | st.text(max_size=8)  # fmt: skip
    overrides = st.lists(st.tuples(keys | st.text(max_size=8), values).map("=".join) | st.text(max_size=8), max_size=3)
    fuzz(overrides, lambda given: load_recipe(path, given), refusals=(UserError,))
