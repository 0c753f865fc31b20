"""The split of a text is fixed for good: another normalizer for scoring must not move a sentence to another part."""

import json

import pytest

from tests.conftest import tone
from workbench.audio.decode import write_wav
from workbench.corpus.manifests import read_manifest
from workbench.corpus.split import split_key, split_of


@pytest.mark.parametrize(
    ("language", "text", "key", "split"),
    [
        # computed by the normalizer that made the first splits: transformers' copies of Whisper's own
        ("en", "Colour number twenty-one...", "color number 21", "train"),
        ("en", "Please press… the pound key (now).", "please press the pound key", "train"),
        ("en", "Thirty-one dollars", "$31", "train"),
        ("es", "Marque veintidós, señor.", "marque veintidós señor", "train"),
        ("es", "contraseña incorrecta", "contraseña incorrecta", "test"),
        ("es", "La línea 1.234 está ocupada", "la línea 1 234 está ocupada", "train"),
        ("hi", "किताब", "क त ब", "train"),
        ("hi", "मैं घर जा रहा हूँ।", "म घर ज रह ह", "train"),
        ("hi", "आपका नंबर क्या है?", "आपक न बर क य ह", "train"),
        ("ru", "Ёлка и ёж", "ёлка и ёж", "train"),
        ("ru", "Нажмите 1...", "нажмите 1", "train"),
    ],
)
def test_the_split_of_a_text_never_changes(tmp_path, language, text, key, split):
    assert split_key(text, language) == key
    assert split_of(key) == split
    write_wav(tmp_path / "a.wav", tone(1.0))
    row = {"audio": "a.wav", "text": text, "language": language}
    (tmp_path / "m.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    assert read_manifest(tmp_path / "m.jsonl")[0].split == split
