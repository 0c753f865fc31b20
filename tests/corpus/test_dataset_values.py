"""Hub datasets with missing values and languages as class numbers: counted, mapped or refused."""

import io
import logging
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Audio, ClassLabel, Features, Value

from tests.conftest import tone
from workbench.audio.decode import write_wav
from workbench.core.errors import UserError
from workbench.corpus import open_corpus
from workbench.corpus.hub import Stream


def clip():
    file = io.BytesIO()
    write_wav(file, tone(1.0))
    return {"bytes": file.getvalue(), "path": None}


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """Writes a local dataset of Parquet files, as a hub would stream it."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    def write(rows, **features):
        folder = tmp_path / "dataset" / "data"
        folder.mkdir(parents=True)
        columns = {"audio": Audio(), "text": Value("string"), **features}
        table = {name: [row.get(name) for row in rows] for name in columns}
        # written by pyarrow: datasets 4 asks for torchcodec to write audio, even where it is encoded already
        written = pa.table(table, schema=Features(columns).arrow_schema)
        pq.write_table(written, folder / "train-00000-of-00001.parquet")
        return f"hf:{tmp_path / 'dataset'}"

    return write


def test_rows_without_text_or_audio_are_counted_and_left_out(dataset, caplog):
    texts = [None, "Hello.", "nan", " ", "Bye."]
    source = dataset([*({"audio": clip(), "text": text} for text in texts), {"audio": None, "text": "x"}])
    with caplog.at_level(logging.WARNING, "workbench"):
        assert [u.text for u in open_corpus(source, "train")] == ["Hello.", "Bye."]
    assert "left out: 4 rows have no text or no audio (null, NaN), the first: row 0, field 'text'" in caplog.text
    (window,) = Stream(source, 1, 0, 1, 60.0).windows()
    assert sorted(u.text for u in window) == ["Bye.", "Hello."]


def test_a_dataset_of_missing_values_alone_is_refused(dataset):
    with pytest.raises(UserError, match="its split 'train' holds no row with audio and text"):
        open_corpus(dataset([{"audio": None, "text": "x"}]), "train")


def test_a_recording_that_cannot_be_read_is_named_by_its_row(dataset):
    rows = [{"audio": clip(), "text": "x"}, {"audio": {"bytes": b"no audio", "path": None}, "text": "y"}]
    with pytest.raises(UserError, match="split 'train', row 1: column 'audio'"):
        open_corpus(dataset(rows), "train")


def test_class_numbers_of_languages_are_mapped_by_their_names(dataset):
    rows = [{"audio": clip(), "text": "x", "language": i} for i in (0, 3)]
    found = open_corpus(dataset(rows, language=ClassLabel(names=["en", "de", "fr", "es_419"])), "train")
    assert [u.language for u in found] == ["en", "es"]


@pytest.mark.parametrize("value", ["3", "klingonish", None, ""])
def test_a_language_that_is_none_is_refused_with_its_row(dataset, value):
    rows = [{"audio": clip(), "text": "x", "language": "eng"}, {"audio": clip(), "text": "y", "language": value}]
    with pytest.raises(UserError, match="split 'train', row 1: column 'language' is"):
        open_corpus(dataset(rows, language=Value("string")), "train")


def test_class_numbers_without_names_are_refused(dataset):
    rows = [{"audio": clip(), "text": "x", "language": 3}]
    with pytest.raises(UserError, match="row 0: column 'language' is '3', which is not a language"):
        open_corpus(dataset(rows, language=Value("int64")), "train")


def test_a_column_with_a_code_helps_where_another_has_a_name_of_its_own(dataset):
    rows = [{"audio": clip(), "text": "x", "language": "Mandarin Chinese", "lang_id": 1}]
    labels = ClassLabel(names=["af_za", "cmn_hans_cn"])
    assert open_corpus(dataset(rows, language=Value("string"), lang_id=labels), "train")[0].language == "zh"


def test_english_is_assumed_with_a_warning(dataset, caplog):
    with caplog.at_level(logging.WARNING, "workbench"):
        assert open_corpus(dataset([{"audio": clip(), "text": "x"}]), "train")[0].language == "en"
    assert "names no language" in caplog.text


@pytest.mark.parametrize(
    ("config", "code"),
    [
        ("es", "es"),
        ("es_419", "es"),
        ("yue_hant_hk", "yue"),
        ("ckb_iq", "ckb"),
        ("clean", None),
        ("raw", None),
        ("all", None),
        ("", None),
    ],
)
def test_a_configuration_is_a_language_only_where_it_looks_like_one(config, code):
    from workbench.corpus.hub import _config_language

    assert _config_language(config) == code


@pytest.mark.parametrize("how", ["", "file://", "simplecache::file://", "local://", "hf://x::"])
def test_a_row_names_no_file_outside_its_dataset(dataset, tmp_path, how):
    write_wav(tmp_path / "secret.wav", tone(1.0))
    source = dataset([{"audio": {"bytes": None, "path": f"{how}{tmp_path / 'secret.wav'}"}, "text": "x"}])
    with pytest.raises(UserError, match=r"names the file .*secret\.wav', which is not one of the dataset's"):
        open_corpus(source, "train")


@pytest.mark.parametrize("configuration", ["", ":default"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_row_names_a_file_of_its_dataset(dataset, tmp_path, packed, configuration):
    folder = tmp_path / "dataset"
    source = dataset([{"audio": {"bytes": None, "path": f"zip://a.wav::{folder / 'a.zip'}" if packed else str(folder / "a.wav")}, "text": "x"}])  # fmt: skip
    write_wav(folder / "a.wav", tone(1.0))
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.write(folder / "a.wav", "a.wav")
    assert [u.text for u in open_corpus(source + configuration, "train")] == ["x"]


def test_a_file_of_this_machine_is_not_read_under_a_datasets_address(dataset, tmp_path):
    """fsspec opens the first address of a chain, and `file://` does not care what it is said to lie in."""
    write_wav(tmp_path / "secret.wav", tone(1.0))
    chain = f"file://{tmp_path / 'secret.wav'}::hf://datasets/someone/speech/a.zip"
    source = dataset([{"audio": {"bytes": None, "path": chain}, "text": "x"}])
    with pytest.raises(UserError, match="which is not one of the dataset's"):
        open_corpus(source, "train")


def test_a_text_that_is_a_list_is_refused_with_its_row(dataset):
    source = dataset([{"audio": clip(), "text": ["a", "b"]}], text=[Value("string")])
    with pytest.raises(UserError, match=r"row 0: column 'text' is .*expected a string"):
        open_corpus(source, "train")


def test_a_clip_of_many_bytes_is_refused_with_the_bound(dataset, monkeypatch):
    monkeypatch.setattr("workbench.corpus.opening.MAX_CLIP_BYTES", 1000)
    with pytest.raises(UserError, match="a clip has more than 1,000 bytes"):
        open_corpus(dataset([{"audio": clip(), "text": "x"}]), "train")


def test_half_a_parquet_file_is_one_line(dataset, tmp_path):
    source = dataset([{"audio": clip(), "text": "x"}])
    path = tmp_path / "dataset" / "data" / "train-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match="cannot be read") as error:
        open_corpus(source, "train")
    assert "\n" not in str(error.value)
