"""The page that transcribes in the browser: what its folder holds, what it replaces, and that a real browser transcribes with it alone."""

import contextlib
import functools
import http.server
import json
import os
import re
import threading
import wave
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from export.assembly import browser_site
from export.assembly.browser_site import LIBRARY, pack_site
from export.assembly.build import export_bundle
from export.assembly.teacher import teacher_bundle
from export.edge import Recognizer, read_wav
from export.verification.clients import transformers_js
from tests.browser import CHROMIUM, open_page
from tests.conftest import tone
from tests.models.ctc_checkpoints import in_silence, over_whisper
from workbench.audio.decode import write_wav
from workbench.cli.app import app
from workbench.core.errors import UserError
from workbench.core.hashing import sha256
from workbench.corpus import open_corpus

PAGE = ("index.html", "app.js", "audio.js", "worker.js", "style.css", "NOTICE.txt")
needs_library = pytest.mark.skipif(not transformers_js.installed(), reason="no Node or transformers.js here")


@pytest.fixture
def library(tmp_path, monkeypatch):
    """Stand-ins for the npm packages, so that the fast tests run where they are not installed."""
    folder = tmp_path / "node"
    for name in (*LIBRARY.values(), "@huggingface/transformers/package.json"):
        (folder / "node_modules" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "node_modules" / name).write_text(json.dumps({"version": "4.3.1"}))
    (folder / "package.json").write_text(json.dumps({"dependencies": {"@huggingface/transformers": "4.3.1"}}))
    monkeypatch.setattr(transformers_js, "FOLDER", folder)
    return folder / "node_modules"


def names(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_the_folder_holds_page_library_and_model(exported, library, tmp_path):
    site = pack_site(exported, tmp_path / "site", "int8")
    model = {n.removeprefix("models/model/") for n in names(site) if n.startswith("models/model/")}
    assert {*PAGE, *LIBRARY, "site.json"} == {n for n in names(site) if not n.startswith("models/")}
    assert {"config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json",
            "onnx/encoder_model.onnx", "onnx/decoder_model_merged.onnx", "MODEL_CARD.md"} <= model  # fmt: skip
    assert not [n for n in model if n.endswith(".py") or n == "bundle.json"]
    precisions = json.loads((exported / "bundle.json").read_text())["precisions"]
    for part, name in (("encoder", "encoder_model"), ("decoder", "decoder_model_merged")):
        packed = site / "models/model/onnx" / f"{name}.onnx"
        assert packed.read_bytes() == (exported / precisions["int8"][part]).read_bytes()
    record = json.loads((site / "site.json").read_text())
    assert record["files"] == {n: sha256(site / n) for n in names(site) - {"site.json"}}
    assert (record["name"], record["precision"], record["languages"]) == ("tiny", "int8", ["en", "es"])
    assert record["decoding"]["most_tokens"] > 0
    weights = [site / n for n in names(site) if n.endswith((".onnx", ".wasm", "tokenizer.json"))]
    assert record["bytes"] == sum(p.stat().st_size for p in weights)


def test_the_page_names_no_other_host_and_its_policy_allows_none():
    for name in set(PAGE) - {"NOTICE.txt"}:
        text = (browser_site.PAGE / name).read_text("utf-8")
        assert not re.search(r"https?://|[\"'(]//", text), name
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', (browser_site.PAGE / "index.html").read_text())
    rules = dict(rule.strip().split(" ", 1) for rule in policy[1].split(";"))
    assert rules["default-src"] == "'none'"
    assert {source for rule in rules.values() for source in rule.split()} <= {
        "'none'", "'self'", "'wasm-unsafe-eval'", "blob:", "data:",
    }  # fmt: skip
    assert "data:" not in rules["script-src"] + rules["connect-src"]
    assert "allowRemoteModels = false" in (browser_site.PAGE / "worker.js").read_text()


def test_only_a_site_is_replaced_and_only_when_asked(exported, library, tmp_path):
    site = pack_site(exported, tmp_path / "site", "int8")
    with pytest.raises(UserError, match="exists; choose another -o, or add --overwrite"):
        pack_site(exported, site, "fp32")
    assert pack_site(exported, site, "fp32", overwrite=True) == site
    assert json.loads((site / "site.json").read_text())["precision"] == "fp32"
    (site / "analytics.js").write_text("mine")
    before = {n: (site / n).stat().st_mtime_ns for n in names(site)}
    with pytest.raises(UserError, match=r"holds 'analytics\.js', which is not part of the browser site"):
        pack_site(exported, site, "int8", overwrite=True)
    assert {n: (site / n).stat().st_mtime_ns for n in names(site)} == before
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "site.json").write_text('{"files": {"site.json": ""}}')
    with pytest.raises(UserError, match="is not a browser site"):
        pack_site(exported, mine, "int8", overwrite=True)
    for output in (exported, exported.parent, exported / "site"):
        with pytest.raises(UserError, match="input"):
            pack_site(exported, output, "int8", overwrite=True)
    assert (exported / "bundle.json").is_file()


@pytest.mark.parametrize("missing", ["all", "wasm", "version", "precision"])
def test_what_is_missing_is_told_in_one_line_and_nothing_is_written(exported, library, tmp_path, missing):
    if missing == "all":
        library.rename(library.parent / "elsewhere")
    if missing == "wasm":
        (library / LIBRARY["library/ort-wasm-simd-threaded.asyncify.wasm"]).unlink()
    if missing == "version":
        (library / "@huggingface/transformers/package.json").write_text('{"version": "3.0.0"}')
    precision = "q9" if missing == "precision" else "int8"
    output = str(tmp_path / "site")
    found = CliRunner().invoke(app, ["pack", str(exported), "-o", output, "--for", "browser", "--precision", precision])
    message = {
        "all": r"transformers\.min\.js: missing; .*npm ci --ignore-scripts --prefix",
        "wasm": r"asyncify\.wasm: missing; .*npm ci",
        "version": r"transformers\.js 3\.0\.0 is installed, expected 4\.3\.1; .*npm ci",
        "precision": "no precision 'q9'; it has fp32, int8",
    }[missing]
    assert isinstance(found.exception, UserError | SystemExit)
    told = str(found.exception) if isinstance(found.exception, UserError) else found.output
    assert re.search(message, told)
    assert len(told.strip().splitlines()) == 1
    assert not [p for p in tmp_path.iterdir() if p.name != "node"]


@contextlib.contextmanager
def serve(folder, headers=()):
    """Address of a folder, served as any static server would; and what was asked for."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *told):
            asked.append(told[1])

        def end_headers(self):
            for name, value in headers:
                self.send_header(name, value)
            super().end_headers()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
    server.handle_error = lambda *_: None  # the browser ended a download
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", asked
    finally:
        server.shutdown()
        server.server_close()


def transcribe(page, path, timeout=400):
    """What a visitor does."""
    page.set_input_files("#file", path)
    page.wait_for_selector("#start:enabled")
    page.click("#start")
    page.locator("#status", has_text="Done").or_(page.locator("#start-problem:visible")).first.wait_for(
        timeout=timeout * 1000
    )
    assert not page.is_visible("#start-problem"), page.text_content("#start-problem")
    return page.text_content("#text")


@needs_library
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; apt-get install chromium")
@pytest.mark.slow
def test_a_browser_writes_what_node_writes_and_asks_no_other_host(tmp_path):
    bundle = teacher_bundle("whisper-base", ["fp32", "int8"])
    site = pack_site(bundle, tmp_path / "site", "int8")
    clips = [u for u in open_corpus("prompts-en", "test") if 2 < u.seconds < 5][:2]
    node = transformers_js.open_client(bundle, "int8", 1)
    # two threads in the second run: the headers that the documentation names isolate the page
    isolation = [("Cross-Origin-Opener-Policy", "same-origin"), ("Cross-Origin-Embedder-Policy", "require-corp")]
    for clip, headers in zip(clips, ([], isolation), strict=True):
        samples = clip.wave()
        write_wav(tmp_path / "clip.wav", samples)
        with wave.open(str(tmp_path / "clip.wav")) as file:
            samples = (np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768).astype(np.float32)
        expected = node.transcribe(samples, "en").text
        with serve(site, headers) as (url, asked), open_page(url) as (page, outside):
            page.wait_for_selector("#form:visible")
            assert page.evaluate("crossOriginIsolated") == bool(headers)
            assert page.locator("#language option:checked").text_content() == "English"
            assert transcribe(page, tmp_path / "clip.wav") == expected
            assert len(expected.split()) > 3
            assert re.fullmatch(r"\d\.\d s of sound transcribed in \d+\.\d s", page.text_content("#time"))
            assert outside == []
            onnx = [line.split()[1] for line in asked if ".onnx" in line or ".wasm" in line]
            assert len(onnx) == len(set(onnx)) == 3  # each once
            # the policy holds in the worker, too: not even an opaque answer of another host
            other = f"fetch('{url.replace('127.0.0.1', 'localhost')}', {{mode: 'no-cors'}}).then(() => 'got it', () => 'refused')"
            assert page.workers[0].evaluate(other) == page.evaluate(other) == "refused"
            if pictures := os.environ.get("PICTURES"):
                take_pictures(page, Path(pictures))


@needs_library
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; apt-get install chromium")
@pytest.mark.slow
def test_a_browser_writes_what_a_ctc_bundle_writes(tiny_checkpoint, tmp_path):
    bundle = export_bundle(
        in_silence(over_whisper(tiny_checkpoint, tmp_path / "student")), tmp_path / "bundle", ["fp32", "int8"]
    )
    site = pack_site(bundle, tmp_path / "site", "int8")
    record = json.loads((site / "site.json").read_text())
    assert (record["ctc"], record["languages"]) == (True, [])
    (clip,) = [u for u in open_corpus("prompts-en", "test") if 2 < u.seconds < 5][:1]
    write_wav(tmp_path / "clip.wav", clip.wave())
    expected = Recognizer(bundle, "int8", vad=False).transcribe(read_wav(tmp_path / "clip.wav")).text
    with serve(site) as (url, asked), open_page(url) as (page, outside):
        page.wait_for_selector("#form:visible")
        assert not page.is_visible("#language-field")
        found = transcribe(page, tmp_path / "clip.wav")
        # of a random model, whose letters are hardly likelier than others
        assert SequenceMatcher(None, found, expected, autojunk=False).ratio() > 0.9
        assert len(expected) > 20
        assert outside == []
        onnx = [line.split()[1] for line in asked if ".onnx" in line or ".wasm" in line]
        assert len(onnx) == len(set(onnx)) == 2  # each once


def take_pictures(page, folder):
    page.screenshot(path=folder / "desktop.png")
    page.set_viewport_size({"width": 390, "height": 844})
    page.screenshot(path=folder / "phone.png", full_page=True)
    page.emulate_media(color_scheme="dark")
    page.screenshot(path=folder / "dark.png", full_page=True)


@needs_library
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; apt-get install chromium")
@pytest.mark.slow
def test_what_goes_wrong_is_told_where_it_went_wrong(exported, tmp_path):
    site = pack_site(exported, tmp_path / "site", "int8")
    (tmp_path / "notes.wav").write_text("not sound")
    write_wav(tmp_path / "short.wav", tone(0.05))
    write_wav(tmp_path / "silence.wav", np.zeros(16_000, np.float32))
    write_wav(tmp_path / "long.wav", tone(61.0))
    with serve(site) as (url, _), open_page(url, width=390, says=tmp_path / "long.wav") as (page, outside):
        page.wait_for_selector("#form:visible")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        for name, message in (("notes", "cannot read this as sound"), ("short", "shorter than a tenth of a second")):
            page.set_input_files("#file", tmp_path / f"{name}.wav")
            page.locator("#file-problem", has_text=message).wait_for()
            assert page.is_disabled("#start")
        assert transcribe(page, tmp_path / "silence.wav") == "(no speech found)"
        graph = site / "models/model/onnx/encoder_model.onnx"
        graph.rename(tmp_path / "aside.onnx")
        page.set_input_files("#file", tmp_path / "long.wav")
        page.click("#start:enabled")
        page.locator("#start-problem", has_text="could not be loaded").wait_for(timeout=60_000)
        (tmp_path / "aside.onnx").rename(graph)
        parts = []
        page.expose_function("told", lambda text: parts.append(text))
        page.evaluate("""() => { new MutationObserver(() => told(document.getElementById("status").textContent))
            .observe(document.getElementById("status"), {childList: true}) }""")
        transcribe(page, tmp_path / "long.wav")  # the second try loads it
        assert "Transcribing part 3 of 3" in parts
        page.click("#record")
        page.get_by_role("button", name="Stop recording").wait_for()
        page.wait_for_timeout(1500)
        page.click("#record")
        page.locator("#status", has_text="seconds of sound are ready").wait_for()
        assert page.is_enabled("#start")
        assert outside == []
