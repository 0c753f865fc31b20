"""Manifests as people have them: every format and encoding is read or named; nothing is swallowed, guessed or made up."""

import json
import logging

import numpy as np
import pytest

from tests.conftest import tone
from workbench.audio.decode import write_wav
from workbench.core.errors import UserError
from workbench.corpus import open_corpus
from workbench.corpus.corrupt import write_corrupted
from workbench.corpus.manifests import read_manifest
from workbench.corpus.perturb import speed_perturbed
from workbench.labelling.segmentation import segment_recording, segmented_utterances


@pytest.fixture
def folder(tmp_path):
    write_wav(tmp_path / "a.wav", tone(1.5))
    write_wav(tmp_path / "b.wav", tone(1.0))
    return tmp_path


def manifest(folder, *rows, name="m.jsonl"):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder / name


def refused(path):
    with pytest.raises(UserError) as error:
        read_manifest(path)
    assert "\n" not in str(error.value)
    return str(error.value)


A = {"audio": "a.wav", "text": "Hello."}


@pytest.mark.parametrize("name", ["gone.wav", "x" * 5000, "~nobody-of-that-name/a.wav", 10**400, "a\0b", "\ud800"])
def test_audio_that_cannot_be_there_is_named_with_its_line(folder, name):
    said = refused(manifest(folder, {"audio": name, "text": "Hello."}))
    assert "m.jsonl:1: field 'audio' names" in said
    assert len(said) < 1000


# segments


@pytest.fixture
def recording(tmp_path):
    """Two seconds at a low level, three at a high one."""
    wave = np.concatenate([tone(2.0, amplitude=0.1), tone(3.0, amplitude=0.5)])
    write_wav(tmp_path / "long.wav", wave)
    return tmp_path


def segment(**fields):
    return {"audio_filepath": "long.wav", "text": "Hello.", **fields}


def test_offset_and_duration_cut_segments_with_ids_and_keys_of_their_own(recording):
    first, second = read_manifest(
        manifest(recording, segment(offset=0.0, duration=2.0), segment(offset=2.0, duration=3.0))
    )
    assert (first.id, second.id) == ("long.wav@0.0-2.0", "long.wav@2.0-5.0")
    assert (first.seconds, second.seconds) == (2.0, 3.0)
    assert [len(u.wave()) for u in (first, second)] == [32_000, 48_000]
    assert np.abs(first.wave()).max() == pytest.approx(0.1, abs=0.01)
    assert np.abs(second.wave()[:8000]).max() == pytest.approx(0.5, abs=0.01)
    whole = read_manifest(manifest(recording, segment()))[0]
    assert len({u.audio_sha256() for u in (first, second, whole)}) == 3


def test_a_segment_of_the_whole_recording_is_the_recording(recording):
    (row,) = read_manifest(manifest(recording, segment(offset=0, duration=5.0)))
    assert row.audio == recording / "long.wav"


@pytest.mark.parametrize(
    ("fields", "span"),
    [
        ({"offset": 2}, (2.0, 3.0)),
        ({"offset": "2.0", "duration": "1"}, (2.0, 1.0)),
        ({"start": 1, "end": 4}, (1.0, 3.0)),
        ({"end": 4}, (0.0, 4.0)),
        ({"offset": 2.0, "duration": 3.05}, (2.0, 3.0)),  # rounded up, by less than a tenth of a second
    ],
)
def test_a_segment_is_told_by_offset_duration_and_end(recording, fields, span):
    (row,) = read_manifest(manifest(recording, segment(**fields)))
    assert (row.audio.start, row.audio.seconds) == span


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"offset": 2.0, "duration": 4.0}, "m.jsonl:1: field 'duration' is 4.0, so that"),
        ({"offset": 7.0}, "m.jsonl:1: field 'offset' is 7.0, so that"),
        ({"start": 1, "end": 9}, "m.jsonl:1: field 'end' is 9, so that"),
        ({"offset": -1, "duration": 2}, "m.jsonl:1: field 'offset' is -1"),
        ({"offset": "x", "duration": 2}, "m.jsonl:1: field 'offset' is 'x'"),
        ({"start": 3, "end": 2}, "m.jsonl:1: field 'end' is 2"),
        ({"start": 1, "end": 3, "duration": 4}, "m.jsonl:1: field 'duration' is 4, but the segment"),
    ],
)
def test_a_segment_beyond_its_recording_is_named(recording, fields, said):
    assert said in refused(manifest(recording, segment(**fields)))


def test_a_segment_can_be_played_faster_and_written_again(recording, cache):
    (row,) = read_manifest(manifest(recording, segment(offset=2, duration=3)))
    (fast,) = speed_perturbed([row], [1.5])
    assert len(fast.wave()) == pytest.approx(32_000, abs=100)
    rows = [segment(offset=i, duration=1.0, text=f"{i} {i}", split="train") for i in range(4)]
    clean = read_manifest(manifest(recording, *rows))
    written = write_corrupted(clean, 0.5, "exchange", 1, recording / "noisy")
    again = read_manifest(written)
    assert [u.id for u in again] == [u.id for u in clean]
    assert [u.audio_sha256() for u in again] == [u.audio_sha256() for u in clean]


def test_a_duration_that_is_not_the_recordings_is_named_when_it_is_decoded(recording):
    (row,) = read_manifest(manifest(recording, segment(duration=2.0)))
    with pytest.raises(
        UserError, match=r"m\.jsonl:1: .*field 'duration' is 2, but the recording lasts 5\.00 s.*'offset'"
    ):
        row.wave()
    (about,) = read_manifest(manifest(recording, segment(duration=4.8)))
    assert len(about.wave()) == 80_000


class _Finder:
    def pieces(self, wave, _longest):
        from workbench.labelling.segmentation import SpeechSpan

        return [SpeechSpan(0.0, len(wave) / 16_000)]


def test_pieces_of_a_long_segment_are_of_the_segment_and_keep_its_language(recording):
    (row,) = read_manifest(manifest(recording, segment(offset=2, duration=3, language="es")))
    segment_recording(row, recording / "pieces", 30.0, _Finder())
    (piece,) = segmented_utterances(row, recording / "pieces", 30.0)
    assert piece.language == "es"
    assert len(piece.wave()) == 48_000


# missing values


@pytest.mark.parametrize("text", [None, float("nan"), "nan", "NaN", "None", "<NA>"])
def test_rows_without_a_text_are_counted_and_left_out(folder, caplog, text):
    path = manifest(folder, {"audio": "b.wav", "text": text}, A, {"audio": text, "text": "x"})
    with caplog.at_level(logging.WARNING, "workbench"):
        assert [u.text for u in read_manifest(path)] == ["Hello."]
    (record,) = caplog.records
    assert (
        "left out: 2 rows have no text or no audio (null, NaN), the first: line 1, field 'text'" in record.getMessage()
    )


def test_a_manifest_of_missing_values_alone_is_refused(folder):
    said = refused(manifest(folder, {"audio": "a.wav", "text": float("nan")}))
    assert said.endswith(
        "holds no utterance (1 row has no text or no audio (null, NaN), the first: line 1, field 'text')"
    )


def test_missing_texts_of_csv_and_missing_durations(folder):
    (folder / "m.csv").write_text("audio,text,duration\na.wav,nan,1.5\nb.wav,Bye.,nan\n")
    (row,) = read_manifest(folder / "m.csv")
    assert (row.text, row.seconds) == ("Bye.", pytest.approx(1.0))


def test_words_that_look_like_missing_values_stay(folder):
    assert read_manifest(manifest(folder, {"audio": "a.wav", "text": "null"}))[0].text == "null"  # German for zero
    assert read_manifest(manifest(folder, {"audio": "a.wav", "text": 22}))[0].text == "22"
    assert read_manifest(manifest(folder, {**A, "id": 0}))[0].id == "0"
    assert "m.jsonl:1: field 'text' is ['a']; expected a string" in refused(manifest(folder, {**A, "text": ["a"]}))


# formats


def test_a_quote_that_is_not_closed_is_an_error_on_its_line(folder):
    (folder / "m.csv").write_text('audio,text,split\na.wav,Hello.,train\na.wav,"Hello,train\nb.wav,Bye.,train\n')
    assert "m.csv:3: quotes do not match" in refused(folder / "m.csv")
    (folder / "m.csv").write_text('audio,text\na.wav,"Hello,\nb.wav,"Bye.\n')
    assert "m.csv:2: quotes do not match" in refused(folder / "m.csv")


def test_a_huge_field_is_an_error_on_its_line(folder):
    (folder / "m.csv").write_text("audio,text\na.wav," + "x" * 140_000 + "\n")
    assert "m.csv:2: a field has more than 131,072 characters" in refused(folder / "m.csv")


def test_a_comma_in_a_text_without_quotes_does_not_cut_it(folder):
    (folder / "m.csv").write_text("audio,text\na.wav,Hello, world\n")
    assert "m.csv:2: has 3 fields, the header has 2; put a text" in refused(folder / "m.csv")
    (folder / "m.csv").write_text('audio,text\na.wav,"Hello, ""world"""\n')
    assert read_manifest(folder / "m.csv")[0].text == 'Hello, "world"'


def test_common_voices_layout_is_read(folder):
    (folder / "clips").mkdir()
    (folder / "a.wav").rename(folder / "clips" / "a.wav")
    rows = ["client_id\tpath\tsentence\tup_votes\tlocale", 'x\ta.wav\t"Hola", dijo.\t2\tes']
    (folder / "validated.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (row,) = read_manifest(folder)
    assert (row.id, row.text, row.language) == ("clips/a.wav", '"Hola", dijo.', "es")


def test_quotes_that_pandas_puts_around_a_tsv_field_go(folder):
    (folder / "m.tsv").write_text('path\tsentence\na.wav\t"He said ""hi"""\n')
    assert read_manifest(folder / "m.tsv")[0].text == 'He said "hi"'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("m.CSV", b"audio,text\na.wav,Hello.\n"),
        ("m.TSV", b"audio\ttext\r\na.wav\tHello.\r\n"),
        ("m.json", b'[\n  {"audio": "a.wav", "text": "Hello."}\n]\n'),
        ("m.jsonl", b'[{"audio": "a.wav",\n"text": "Hello."}]'),
        ("m.csv", "audio,text\r\na.wav,Hello.\r\n".encode("utf-16")),
        ("m.jsonl", json.dumps(A).encode("utf-16")),
        ("m.csv", b"\xef\xbb\xbfaudio,text\na.wav,Hello.\n"),
    ],
)
def test_formats_and_encodings_are_read(folder, name, content):
    (folder / name).write_bytes(content)
    assert [(u.id, u.text) for u in read_manifest(folder / name)] == [("a.wav", "Hello.")]


def test_line_separators_inside_a_string_do_not_end_the_line(folder):
    (folder / "m.jsonl").write_text('{"audio": "a.wav", "text": "Hello\u2028you."}\n', encoding="utf-8")
    assert read_manifest(folder / "m.jsonl")[0].text == "Hello\u2028you."


def test_array_rows_are_named_by_their_line(folder):
    path = folder / "m.json"
    path.write_text('[\n  {"audio": "a.wav", "text": "x"},\n  {"audio": "c.wav", "text": "y"}\n]\n')
    assert "m.json:3: field 'audio' names 'c.wav'" in refused(path)
    path.write_text('[\n  {"audio": "a.wav", "text": "x"}\n')
    assert "m.json:3: the JSON array is cut off" in refused(path)
    path.write_text('[{"audio": "a.wav", "text": "x"},]')
    assert "m.json:1: not a JSON object" in refused(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"PAR1....", "is a Parquet file"),
        (b"PK\x03\x04....", "a ZIP archive or an Excel sheet"),
        (b"\x1f\x8b....", "compressed; unpack it with gunzip"),
        ("audio,text\n".encode("utf-16le"), "UTF-16 without a byte order mark"),
        (b"audio;text\n", "m.jsonl:1: not a JSON object"),
    ],
)
def test_what_is_no_manifest_is_named_as_what_it_is(folder, content, said):
    (folder / "m.jsonl").write_bytes(content)
    assert said in refused(folder / "m.jsonl")


# languages, splits, scoring


@pytest.mark.parametrize(("given", "code"), [("en-US", "en"), ("Hindi", "hi"), ("spa", "es"), ("ckb", "ckb")])
def test_a_language_is_mapped_to_whispers_code(folder, given, code):
    assert read_manifest(manifest(folder, {**A, "language": given}))[0].language == code


@pytest.mark.parametrize("given", ["3", 3, 3.0, "klingonish", "", None, "und"])
def test_what_is_no_language_is_refused_and_never_english(folder, given):
    assert "m.jsonl:1: field 'language' is" in refused(manifest(folder, {**A, "locale": given}))


def test_an_empty_split_says_what_to_do(folder):
    path = manifest(folder, {**A, "split": "train"}, {"audio": "b.wav", "text": "Bye.", "split": "train"})
    with pytest.raises(
        UserError, match=r"'validation' is empty \(clips: train 2, validation 0, test 0\); give every row .*'split'"
    ):
        open_corpus(str(path), "validation")


def test_rows_can_be_marked_as_not_to_be_scored(folder):
    rows = read_manifest(manifest(folder, {**A, "scored": False}, {"audio": "b.wav", "text": "x", "scored": True}))
    assert [u.scored for u in rows] == [False, True]
    (folder / "m.csv").write_text("audio,text,scored\na.wav,Hello.,False\nb.wav,Bye.,\n")
    assert [u.scored for u in read_manifest(folder / "m.csv")] == [False, True]


@pytest.mark.parametrize("given", ["no", 0, 1, "0", []])
def test_scored_is_true_or_false_and_nothing_else(folder, given):
    assert f"m.jsonl:1: field 'scored' is {given!r}; expected true or false" in refused(
        manifest(folder, {**A, "scored": given})
    )


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 100_000, "1e999", "9" * 400])
@pytest.mark.parametrize("name", ["m.jsonl", "m.json"])
def test_numbers_and_nesting_without_end_are_one_line(folder, name, value):
    row = '{"audio": "a.wav", "text": "Hello.", "duration": ' + value + "}"
    (folder / name).write_text(f"[{row}]" if name == "m.json" else row)
    assert f"{name}:1" in refused(folder / name)


def test_a_manifest_beyond_its_bound_is_refused_unread(folder, monkeypatch):
    monkeypatch.setattr("workbench.corpus.rows.MAX_BYTES", 10)
    assert "expected at most 10; split it" in refused(manifest(folder, A))


@pytest.mark.parametrize("name", ["\n", "a\r\nb.wav", "\x1b[2Ja.wav", "\u2028", "\ud800"])
def test_a_name_that_no_line_can_hold_is_shown_as_its_escape(folder, name):
    said = refused(manifest(folder, {**A, "audio": name}))
    assert said.isprintable()
    assert ascii(name)[1:-1] in said
