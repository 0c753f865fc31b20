"""References of the built-in prompts: corrected spelling, marked clips, fixed splits, and builds that are out of date."""

import gzip
import hashlib
import json
import re
import shutil
import unicodedata
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.conftest import ROOT
from workbench.cli.app import app
from workbench.core.errors import UserError
from workbench.corpus import open_corpus, prompts, references, scored_clips, training_set
from workbench.corpus.manifests import FIELDS, read_manifest
from workbench.corpus.prompts import build, build_prompts
from workbench.corpus.sources import BUILT_IN, corpora_dir
from workbench.corpus.split import split_key, split_of

RESULTS = ROOT / "docs" / "results"
# SHA-256 of "id<tab>split" lines, sorted, of each language as first built, before any correction
SPLITS = {
    "es": "98adad1b1bdc1cf2ef224cf619b68a4340e257cbc742f1d7352f485dfed6ba8b",
    "fr": "7aee25cdda40b0e3b4b1b7cc7fa620a06d33a27199f7b70d256d1c7253d0f66c",
    "it": "5ce47cec51044ce033c315f2c6ceb8700dbdf81e26136476cf3a37323ff5e164",
    "ru": "930c5d9d238facd79b590678d5c0ef60816de25be54853b9b1053332a7670af1",
}


def letters(text):
    """Letters and digits without diacritics, case and spaces."""
    plain = unicodedata.normalize("NFD", text.lower())
    return "".join(c for c in plain if c.isalnum())


@pytest.mark.parametrize("language", references.CORRECTED)
def test_a_correction_restores_spelling_and_never_adds_or_removes_a_word(language):
    found = references.corrections(language)
    assert len(found) > 10
    for name, row in found.items():
        assert row.was != row.now, name
        assert row.why, name
        assert not re.search(r"[^\W\d]\?\.? [a-z]|\s\?\s", row.now), f"{name}: mojibake is left"
        assert re.findall(r"\d+", row.was) == re.findall(r"\d+", row.now), f"{name}: numbers changed"
        changed = set(row.was.lower().split()) - set(row.now.lower().split())
        assert difference(letters(row.was), letters(row.now)) <= 3 * max(1, len(changed)), name


def difference(one, other):
    import jiwer

    found = jiwer.process_characters([one], [other])
    return found.substitutions + found.deletions + found.insertions


def test_a_text_that_is_not_the_corrections_is_an_error_that_names_file_and_id():
    assert references.corrected("vm-password", "contrasena", "es") == "contraseña"
    assert references.corrected("vm-and", "y", "es") == "y"
    with pytest.raises(UserError, match=r"es\.tsv: id 'vm-password' was corrected from 'contrasena'.*'clave'"):
        references.corrected("vm-password", "clave", "es")


@pytest.mark.parametrize(
    ("language", "text", "scored"),
    [
        ("es", "Marque 1 para llamar.", False),
        ("es", "Presione uno para escuchar", False),
        ("es", "Por favor marque el asterisco.", True),
        ("es", "Presione la tecla de número.", True),
        ("es", "Carpeta 5", True),
        ("it", "premere 1 per accettare", True),  # nothing is known to be left out in Italian
        ("it", "è stato eliminato vm-then-pound: poi premere", False),
        ("it", "un suono beep", False),
        ("it", "Voce disattivata. (You are now muted.)", False),
        ("it", "Spiacente, [quello] non è un interno valido.", False),
        ("it", "trattino [-]", True),
        ("ru", "Пробел [ ]", True),
        ("it", "attivare/disattivare la riproduzione", False),
        ("ru", "выключить / включить микрофон", False),
        ("it", "slash [/]", True),
        ("fr", "1/2", True),
        ("fr", "appuyez sur * pour revenir", False),
        ("ru", "conf-adminmenu: Нажмите 1", False),
        ("ru", "Нажмите 1 для", True),
        ("en", "Press 1 (one).", True),  # the shipped corpus is as it was measured
    ],
)
def test_the_text_alone_decides_whether_a_clip_is_scored(language, text, scored):
    assert bool(references.why_not_scored(text, language)) is not scored


@pytest.mark.parametrize("name", ["study_a", "studies/rate", "studies/tune"])
def test_every_clip_keeps_the_split_that_the_studies_were_made_with(name):
    split = "test" if name == "study_a" else "validation"
    for line in gzip.decompress((RESULTS / f"{name}.hypotheses.jsonl.gz").read_bytes()).decode().splitlines():
        row = json.loads(line)
        language = row["corpus"].removeprefix("prompts-")
        assert {split_of(split_key(text, language)) for text in row["references"]} == {split}


def test_the_shipped_corpus_has_the_splits_of_the_rule():
    for utterance in read_manifest(BUILT_IN["prompts-en"]):
        assert split_of(split_key(utterance.text, "en")) == utterance.split, utterance.id


def test_clips_that_are_not_scored_are_neither_trained_nor_scored_on(monkeypatch):
    clips = read_manifest(BUILT_IN["prompts-en"])
    firsts = {u.split: u.id for u in reversed(clips)}
    marked = [replace(u, scored=u.id not in firsts.values()) for u in clips]
    monkeypatch.setattr("workbench.corpus.sources.read_manifest", lambda _: marked)
    for split, first in firsts.items():
        found = scored_clips("prompts-en", split)
        assert first not in {u.id for u in found}
        assert len(found) == len(open_corpus("prompts-en", split)) - 1
        assert len(scored_clips("prompts-en", split, 3)) == 3
    assert firsts["train"] not in {u.id for u in training_set("prompts-en", None)}
    monkeypatch.setattr("workbench.corpus.sources.read_manifest", lambda _: [replace(u, scored=False) for u in clips])
    with pytest.raises(UserError, match="all clips of split 'test' are marked"):
        scored_clips("prompts-en", "test")


# What calls open_corpus and computes no error rate: texts that are held out or counted, audio to calibrate on, a lookup. measure filters
# by itself, because it reports how many clips it left out.
WITHOUT_RATES = {
    "workbench/corpus/__init__.py",
    "workbench/corpus/sources.py",
    "workbench/api.py",
    "workbench/labelling/speech_from_text.py",
    "export/quantization/quantize.py",
    "export/assembly/ctc.py",  # which languages its clips have
    "export/bundle/vocabulary.py",
    "export/measurement/measure.py",
    "export/measurement/page/source.py",
}


def test_whatever_computes_an_error_rate_takes_only_clips_that_are_scored():
    root = ROOT
    found = {
        path.relative_to(root).as_posix()
        for package in ("workbench", "export", "demo")
        for path in (root / package).rglob("*.py")
        if "open_corpus" in path.read_text("utf-8")
    }
    assert found == WITHOUT_RATES


# Clips marked for square brackets that their references have lost; scripts/rescore.py, which has only the references, cannot see them.
BRACKETS = {
    "es": {"vm-tempgreetactive"},
    "fr": set(),
    "it": {"invalid", "pbx-invalid", "pbx-parkingfailed", "vm-msgsaved"},
    "ru": set(),
}


@pytest.mark.parametrize("path", sorted(RESULTS.rglob("*.hypotheses.jsonl.gz")), ids=lambda path: path.name)
def test_no_published_clip_is_marked_for_brackets_that_its_reference_has_lost(path):
    for line in gzip.decompress(path.read_bytes()).decode().splitlines():
        row = json.loads(line)
        ids = row["ids"] if "ids" in row else row.get("clips", {}).get("ids", [])  # which newer files hold once
        assert not BRACKETS.get(row["corpus"].removeprefix("prompts-")[:2], set()) & set(ids)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of three Spanish prompts, one corrected and one marked, as it looks when unpacked."""
    folder = tmp_path / "corrections"
    folder.mkdir()
    (folder / "es.tsv").write_text("id\twas\tnow\twhy\na\ttelefono\tteléfono\taccents\n", encoding="utf-8")
    monkeypatch.setattr(references, "_FOLDER", folder)
    references.corrections.cache_clear()
    documents = tmp_path / "unpacked/usr/share/doc/asterisk-core-sounds-es"
    sounds = tmp_path / "unpacked/usr/share/asterisk/sounds/es"
    for path in (documents, sounds, documents.parent / "asterisk-core-sounds-es-g722"):
        path.mkdir(parents=True)
    (documents.parent / "asterisk-core-sounds-es-g722/copyright").write_text("CC-BY-SA")
    for name in "abc":
        (sounds / f"{name}.g722").touch()

    def write(text="telefono"):
        lines = f"a: {text}\nb: Marque 1 para salir.\nc: Gracias.\n"
        (documents / "core-sounds-es.txt.gz").write_bytes(gzip.compress(lines.encode()))
        return tmp_path / "unpacked"

    monkeypatch.setattr(prompts, "decode", lambda _: np.zeros(16_000, np.float32))
    monkeypatch.setattr(prompts, "encode", lambda _, target: target.write_bytes(b"OggS"))
    monkeypatch.setattr(prompts, "unpack", lambda *_: write())
    yield write
    references.corrections.cache_clear()


def test_a_build_corrects_marks_and_keeps_the_splits(package, tmp_path):
    folder = build_prompts("es", tmp_path / "prompts-es")
    rows = {row["id"]: row for row in map(json.loads, (folder / "manifest.jsonl").read_text("utf-8").splitlines())}
    assert rows["a"]["text"] == "teléfono"
    assert rows["a"]["split"] == split_of("telefono") != split_of("teléfono")  # of the text before its correction
    assert rows["b"]["scored"] is False
    assert "leaves out a word" in rows["b"]["why"]
    assert "scored" not in rows["c"]
    assert json.loads((folder / "corpus.json").read_text())["version"] == references.VERSION


def test_a_clip_is_marked_by_its_text_as_written_and_symbols_in_brackets_are_no_text(package, tmp_path):
    unpacked = package()
    lines = "a: telefono\nb: Sus [saludos] están en uso.\nc: el asterisco [*]\n"
    path = unpacked / "usr/share/doc/asterisk-core-sounds-es/core-sounds-es.txt.gz"
    path.write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "out").mkdir()
    build(unpacked, "es", tmp_path / "out")
    rows = {r["id"]: r for r in map(json.loads, (tmp_path / "out/manifest.jsonl").read_text("utf-8").splitlines())}
    assert rows["b"]["text"] == "Sus están en uso."
    assert rows["b"]["scored"] is False
    assert "brackets" in rows["b"]["why"]
    assert rows["c"]["text"] == "el asterisco"
    assert "scored" not in rows["c"]


@pytest.mark.skipif("scored" not in FIELDS, reason="read_manifest does not read the field yet")
def test_marked_clips_of_a_build_are_left_out_where_they_would_be_scored(package, tmp_path):
    folder = build_prompts("es", tmp_path / "prompts-es")
    assert {u.id: u.scored for u in read_manifest(folder)} == {"a": True, "b": False, "c": True}


def test_a_changed_package_stops_the_build(package, tmp_path):
    (tmp_path / "new").mkdir()
    with pytest.raises(UserError, match=r"es\.tsv: id 'a'.*package says 'pasado telefono'"):
        build(package("pasado telefono"), "es", tmp_path / "new")
    (tmp_path / "newer").mkdir()
    (tmp_path / "unpacked/usr/share/asterisk/sounds/es/a.g722").unlink()
    with pytest.raises(UserError, match=r"es\.tsv: id 'a' is not among the package's clips"):
        build(package(), "es", tmp_path / "newer")


def test_a_corpus_built_before_the_corrections_is_refused_and_rebuilt(package, cache):
    folder = corpora_dir() / "prompts-es"
    build_prompts("es", folder)
    assert open_corpus("prompts-es", split_of("telefono"))
    (folder / "corpus.json").unlink()  # as an earlier version left it
    for source in ("prompts-es", str(folder), str(folder / "manifest.jsonl")):
        with pytest.raises(UserError, match=r"rebuild it: workbench corpus prompts --language es$") as raised:
            open_corpus(source, "train")
        assert "\n" not in str(raised.value)
    (folder / "audio" / "stray.opus").touch()
    with pytest.raises(UserError, match=r"holds 'audio/stray\.opus'"):  # nobody's file is deleted with what was built
        build_prompts("es", folder)
    (folder / "audio" / "stray.opus").unlink()
    build_prompts("es", folder)
    assert open_corpus("prompts-es", split_of("telefono"))
    (folder / "audio" / "stray.opus").touch()
    build_prompts("es", folder)  # up to date: left alone
    assert (folder / "audio" / "stray.opus").exists()


def test_other_corrections_make_a_build_out_of_date(package, cache, tmp_path):
    build_prompts("es", corpora_dir() / "prompts-es")
    with (tmp_path / "corrections/es.tsv").open("a") as file:
        file.write("c\tGracias.\tGracias!\tonly for this test\n")
    with pytest.raises(UserError, match="rebuild it"):
        open_corpus("prompts-es", "train")


@pytest.mark.parametrize(
    "kept", [{"manifest.jsonl": '{"audio": "a.wav"}\n'}, {"notes.txt": "mine"}, {"corpus.json": "{}"}]
)
def test_a_folder_that_was_not_built_here_is_left_alone(package, tmp_path, kept):
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, text in kept.items():
        (folder / name).write_text(text)
    with pytest.raises(UserError, match="is not a corpus built by `workbench corpus prompts --language es`"):
        build_prompts("es", folder)
    assert {path.name: path.read_text() for path in folder.iterdir()} == kept


def test_a_corrupted_corpus_goes_out_of_date_with_the_one_it_was_made_from(package, cache, monkeypatch):
    monkeypatch.setattr("workbench.corpus.corrupt.corrupt", lambda utterances, *_: list(utterances))
    command = ["corpus", "prompts", "--language", "es", "--corrupt", "0.4"]
    assert CliRunner().invoke(app, command, catch_exceptions=False).exit_code == 0
    assert open_corpus("prompts-es-corrupt40", split_of("telefono"))
    (corpora_dir() / "prompts-es-corrupt40" / "corpus.json").unlink()
    with pytest.raises(UserError, match=r"prompts --language es --corrupt 0\.4$"):
        open_corpus("prompts-es-corrupt40", "train")


@pytest.mark.slow
@pytest.mark.parametrize("language", references.CORRECTED)
def test_the_real_packages_are_the_corrected_ones_and_no_clip_changes_its_split(tmp_path, language, monkeypatch):
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        pytest.skip("no apt-get and dpkg-deb here")
    try:
        folder = tmp_path / "packages"
        folder.mkdir()
        unpacked = prompts.unpack(language, folder)
    except UserError as error:
        pytest.skip(str(error))
    monkeypatch.setattr(prompts, "encode", lambda _, target: target.write_bytes(b"OggS"))
    (tmp_path / "out").mkdir()
    build(unpacked, language, tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out" / "manifest.jsonl").read_text("utf-8").splitlines()]
    splits = "".join(f"{row['id']}\t{row['split']}\n" for row in sorted(rows, key=lambda row: row["id"]))
    assert hashlib.sha256(splits.encode()).hexdigest() == SPLITS[language]
    by_brackets = {
        row["id"] for row in rows if row.get("scored") is False and not references.why_not_scored(row["text"], language)
    }
    assert by_brackets == BRACKETS[language]
