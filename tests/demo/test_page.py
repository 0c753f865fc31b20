"""The page in the hands of strangers: what it serves, what it refuses, and that nobody's request starves another's."""

import concurrent.futures
import contextlib
import csv
import dataclasses
import io
import json
import os
import re
import socket
import struct
import threading
import types
from pathlib import Path

import gradio
import httpx
import numpy as np
import pytest

from demo import live, live_tab
from demo.app import build, launch
from demo.clip.cards import cards, problem_html, status
from demo.clip.downloads import as_csv, as_json, as_srt
from demo.clip.tab import clip_tab
from demo.clip.tally import Tally
from demo.clip.transcribe import Comparison, Outcome, compare
from demo.limits import DemoLimits, private_folder, sweep
from demo.live import Live, Visitors
from demo.systems import Systems
from export.edge import Transcript, Word
from tests.conftest import ROOT, tone, until
from workbench.audio.decode import write_wav
from workbench.core.errors import UserError
from workbench.corpus import Utterance, open_corpus

LIMITS = DemoLimits(upload_mb=2, longest_seconds=5.0, live=1)
META = {"meta": {"_type": "gradio.FileData"}}
EVIL = "<img src=x onerror=alert(1)></script>${1+1}{{1+1}}"


@pytest.fixture(scope="module")
def systems(exported):
    opened = Systems.open([exported], str(exported), "int8", 1)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def page(systems, tmp_path_factory):
    """The page, served from a folder that is neither the repository's nor the corpus's; yields a client and who speaks."""
    corpus, elsewhere = tmp_path_factory.mktemp("corpus"), tmp_path_factory.mktemp("elsewhere")
    write_wav(corpus / "clip.wav", tone(1.0))
    examples = [
        Utterance(id="a", audio=corpus / "clip.wav", text=text, language="en", seconds=1.0)
        for text in ("hello", EVIL, EVIL)
    ]
    write_wav(corpus / "damaged.wav", tone(1.0))
    examples.append(dataclasses.replace(examples[0], id="damaged", audio=corpus / "damaged.wav", seconds=2.0))
    visitors = []

    class Seen(Visitors):
        def __init__(self, *args):
            super().__init__(*args)
            visitors.append(self)

    with pytest.MonkeyPatch.context() as patch, private_folder(LIMITS.keep_minutes) as folder:
        patch.chdir(elsewhere)
        patch.setattr(live_tab, "Visitors", Seen)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        blocks = build(systems, examples, LIMITS)
        launch(blocks, "127.0.0.1", port, LIMITS, prevent_thread_lock=True, quiet=True)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}/gradio_api", timeout=60) as client:
            client.corpus, client.folder, client.visitors = corpus, folder, visitors[0]
            client.blocks, client.examples = blocks.blocks, examples
            client.numbers = {fn.api_name: number for number, fn in blocks.blocks.fns.items()}
            yield client
        blocks.blocks.close()


def upload(page, name, content):
    """Upload a file; returns what stands for it in a request."""
    answer = page.post("/upload", files={"files": (name, content)})
    assert answer.status_code == 200, answer.text
    return {"path": answer.json()[0], "orig_name": name, **META}


def ask(page, name, *data):
    """Call the page as its API is called: "complete" or "error", and what comes back; of a clip, its problem and its cards."""
    data = (*data, "", None) if name == "run_clip" else data  # hotwords, and the session's tally
    event = page.post(f"/call/{name}", json={"data": data}).json()["event_id"]
    text = page.get(f"/call/{name}/{event}").text
    shown = [json.loads(line) for line in re.findall(r"^event: generating\ndata: (.*)$", text, re.M)]
    kind, content = text.strip().rsplit("event: ", 1)[1].split("\ndata: ", 1)
    content = json.loads(content)
    if name == "run_clip" and kind == "complete":
        problems, answers = ([step[i] for step in shown if isinstance(step[i], str)] for i in (0, 3))
        return kind, [problems[-1], answers[-1]]
    return kind, content


def wav(samples, rate=16000, channels=1, code=1):
    """A WAV file with any header."""
    data = samples.tobytes()
    width = samples.itemsize
    head = struct.pack("<HHIIHH", code, channels, rate, rate * channels * width, channels * width, 8 * width)
    return b"RIFF" + struct.pack("<I", 36 + len(data)) + b"WAVEfmt " + struct.pack("<I", 16) + head + b"data" + struct.pack("<I", len(data)) + data  # fmt: skip


def speech(seconds, rate=16000):
    return (tone(seconds, rate) * 32767).astype(np.int16)


def test_an_example_works_from_any_folder_and_examples_of_one_text_are_told_apart(page):
    kind, (clip, reference, language, *_) = ask(page, "choose", 0)
    assert (kind, reference, language) == ("complete", "hello", "en")
    assert Path(clip["path"]).is_relative_to(page.folder)
    kind, (problem, shown) = ask(page, "run_clip", clip, reference, language)
    assert (kind, problem) == ("complete", "")
    assert "tiny (int8)" in shown
    assert ask(page, "choose", 2)[1][1] == EVIL


def test_no_file_of_the_server_is_served(page):
    repository = ROOT
    for path in ("/etc/passwd", repository / "README.md", page.corpus / "clip.wav", Path.cwd(), "..%2f..%2fetc/passwd"):
        assert page.get(f"/file={path}").status_code == 403, path
    assert page.get("/file=http://127.0.0.1/").status_code == 404  # would redirect
    assert page.get("/proxy=http://127.0.0.1/").status_code == 404


def test_a_browser_is_told_to_load_nothing_from_anywhere_else(page):
    root = str(page.base_url).removesuffix("gradio_api/")
    answer = page.get(root)
    policy = answer.headers["content-security-policy"]
    sources = {part.split()[0]: part.split()[1:] for part in policy.split("; ")}
    assert sources["default-src"] == ["'none'"]
    assert "'unsafe-inline'" not in sources["script-src"]
    assert not any(
        re.search(r"[./*]|https?:", value) for values in sources.values() for value in values if "nonce" not in value
    )
    nonce = re.search(r"'nonce-([^']+)'", policy)[1]
    scripts = re.findall(r"<script[^>]*>", answer.text)
    assert len(scripts) > 1
    assert all(f'nonce="{nonce}"' in script for script in scripts)
    assert nonce not in page.get(root).text  # another one each time
    assert "content-security-policy" in page.get("/config").headers
    assert page.get(f"{root}page.js").headers["content-type"].startswith("text/javascript")


def test_clips_are_served_by_number_whole_or_in_part(page):
    root = str(page.base_url).removesuffix("gradio_api/")
    whole = page.get(f"{root}clip/0.wav")
    assert whole.content[:4] == b"RIFF"
    part = page.get(f"{root}clip/0.wav", headers={"Range": "bytes=4-7"})
    assert (part.status_code, part.content) == (206, whole.content[4:8])
    assert page.get(f"{root}clip/0.wav", headers={"Range": "bytes=99999999-"}).status_code == 416
    for other in ("clip/4.wav", "clip/-1.wav", "clip/..%2fclip.wav", "report/0", "clip/99999999999.wav"):
        assert page.get(root + other).status_code == 404, other


def test_another_corpus_on_the_same_port_is_not_played_from_the_browsers_cache(page):
    address = str(page.base_url).removesuffix("gradio_api/") + "clip/0.wav"
    whole = page.get(address)
    assert "no-cache" in whole.headers["cache-control"]
    version = whole.headers["etag"]
    same = page.get(address, headers={"If-None-Match": version})
    assert (same.status_code, same.content) == (304, b"")
    assert page.get(address, headers={"If-None-Match": '"of another corpus"'}).content == whole.content
    part = {"Range": "bytes=4-7"}
    assert page.get(address, headers={**part, "If-Range": version}).status_code == 206
    assert page.get(address, headers={**part, "If-Range": '"of another corpus"'}).content == whole.content


def test_all_that_transcribes_shares_one_limit(page):
    limits = {}
    for function in page.blocks.fns.values():
        limits.setdefault(function.concurrency_id, set()).add(function.name)
    assert limits["clips"] == {"run", "one", "both", "draw"}


def test_an_example_that_cannot_be_read_is_said(page):
    page.examples[3].audio.write_bytes(b"no sound")
    kind, (clip, reference, _, example, problem) = ask(page, "choose", 3)
    assert kind == "complete"
    assert "damaged.wav" in problem
    assert example is None
    assert (clip, reference) != (None, "")  # what was there stays


def test_no_run_is_kept_in_the_visitors_browser(page):
    config = page.get("/config").json()
    assert not config.get("run_history", False)
    assert "runs" not in config.get("footer_links", [])


@pytest.mark.parametrize("meta", [META, {}])
@pytest.mark.parametrize("field", ["path", "url", "both"])
def test_a_request_that_names_a_file_or_an_address_is_refused(page, field, meta):
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.01)
        inside = f"http://127.0.0.1:{listener.getsockname()[1]}/clip.wav"
        for name in (
            str(page.corpus / "clip.wav"),
            "/etc/hostname",
            "file:///etc/passwd",
            inside,
            "http://example.org/a.wav",
        ):
            given = {f: name for f in ("path", "url") if field in (f, "both")}
            kind, answer = ask(page, "run_clip", {**given, **meta}, "", "en")
            assert kind == "error", (name, answer)
            assert "root:" not in json.dumps(answer)
        with contextlib.suppress(TimeoutError):
            asked.append(listener.accept())
    assert not asked


def test_the_queue_cannot_be_passed_by(page):
    assert page.post("/run/run_clip", json={"data": [None, "", "en"]}).status_code == 404


def test_large_requests_are_refused_before_they_are_stored(page):
    before = sum(p.stat().st_size for p in page.folder.rglob("*") if p.is_file())
    answer = page.post("/upload", files={"files": ("a.wav", bytes(3_000_000))})
    assert answer.status_code == 413
    assert "exceeds the limit of 2" in answer.text
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.wav"\r\n\r\n' + bytes(3_000_000)
    pieces = (body[i : i + 65536] for i in range(0, len(body), 65536))  # its length is not announced
    answer = page.post("/upload", content=pieces, headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert answer.status_code in (400, 413)
    assert page.post("/queue/join", json={"data": ["x" * 2_000_000]}).status_code == 413
    assert page.post("/process_recording", files={"video": b"x"}).status_code == 404
    after = sum(p.stat().st_size for p in page.folder.rglob("*") if p.is_file())
    assert after - before < 2_100_000  # at most what had come when the limit was reached, until it is swept


HOSTILE = {
    "list.m3u8": (b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", "cannot be decoded"),
    "list.ffconcat": (b"ffconcat version 1.0\nfile '/etc/passwd'\n", "cannot be decoded"),
    "nan.wav": (wav(np.full(16000, np.nan, np.float32), code=3), "NaN"),
    "long.wav": (wav(speech(6.0)), "at most 5 s"),
    "slow.wav": (wav(speech(1.0), rate=4), "sample rate"),
    "empty.wav": (b"", "empty"),
    "noise.mp3": (os.urandom(5000), "cannot be decoded"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_upload_is_one_line_beside_the_input(page, name):
    content, said = HOSTILE[name]
    kind, (problem, shown) = ask(page, "run_clip", upload(page, name, content), "", "en")
    assert (kind, shown) == ("complete", "")
    assert said in problem
    assert name in problem
    assert str(page.folder) not in problem
    assert "\n" not in problem


def test_eight_channels_are_transcribed(page):
    clip = upload(page, "eight.wav", wav(np.repeat(speech(1.0), 8), channels=8))
    assert "tiny (int8)" in ask(page, "run_clip", clip, "", "en")[1][1]


def test_a_reference_of_any_length_cannot_keep_the_page_busy(page):
    clip = upload(page, "clip.wav", wav(speech(1.0)))
    assert "expected at most 20000" in ask(page, "run_clip", clip, "word " * 10_000, "en")[1][0]


def test_an_upload_that_has_been_removed_is_said(page):
    clip = upload(page, "mine.wav", wav(speech(1.1)))
    os.utime(clip["path"])
    sweep(page.folder, 3600)
    assert Path(clip["path"]).exists()
    sweep(page.folder, -1)
    assert not any(p.is_file() for p in page.folder.rglob("*"))
    assert not Path(clip["path"]).parent.exists()
    assert "removed after 10 minutes" in ask(page, "run_clip", clip, "", "en")[1][0]


def test_the_private_folder_goes_with_the_page(tmp_path, monkeypatch):
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    with private_folder(1) as folder:
        assert folder.stat().st_mode & 0o077 == 0
        assert os.environ["GRADIO_TEMP_DIR"] == str(folder)
        (folder / "upload").write_text("x")
    assert not folder.exists()
    assert "GRADIO_TEMP_DIR" not in os.environ


def test_what_comes_from_outside_is_text_in_the_page(systems):
    class Says:
        window, prompts = 30.0, {"en": []}
        times_words = True

        def transcribe(self, *_, **__):
            return Transcript(EVIL, "en", (), {"encoder": 1.0}, True, words=(Word(EVIL, 0, 1),))

    evil = Systems({EVIL: Says(), "b": Says()})
    for reference in ("", EVIL, "other words"):
        for step in compare(evil, tone(1.0), reference, "en"):
            shown = cards(step) + status(step)
            assert "<img" not in shown
            assert "</script" not in shown
        tally = Tally()
        tally.add(tone(1.0), step)
        assert "<img" not in tally.as_html(evil.teacher)
    assert "<img" not in problem_html(UserError(EVIL))
    assert "<img" not in cards(dataclasses.replace(step, outcomes={EVIL: Outcome(EVIL, problem=EVIL)}))


def test_a_systems_name_is_escaped_before_it_answers(tmp_path):
    says = types.SimpleNamespace(
        window=30.0, prompts={"en": []}, times_words=False,
        transcribe=lambda *_, **__: Transcript("x", "en", (), {"encoder": 1.0}, True),
    )  # fmt: skip
    evil = Systems({"teacher": says, EVIL: says})
    with gradio.Blocks() as blocks:
        clip_tab(evil, [], [], LIMITS)
    run = next(one.fn for one in blocks.fns.values() if one.name == "run")
    write_wav(tmp_path / "clip.wav", tone(1.0))
    with private_folder(1):
        steps = list(run(str(tmp_path / "clip.wav"), "", "en", "", None))
    shown = [value for step in steps for value in step if isinstance(value, str)]
    assert any("is transcribing" in value for value in shown)
    assert not any("<img" in value for value in shown)
    evil.close()


def test_a_table_holds_no_formula_and_says_what_failed():
    runs = ({"encoder": 1.0},)
    outcomes = {
        "-teacher": Outcome("-teacher", "=HYPERLINK(1)", runs=runs, complete=False),
        "b": Outcome("b", problem="@failed"),
        "c": Outcome("c", "no formula", runs=runs),
    }
    comparison = Comparison("-teacher", 1.0, "en", "+one two", 1, outcomes)
    first, failed, last = csv.DictReader(io.StringIO(as_csv(comparison)))
    assert (first["name"], first["text"], first["reference"]) == ("'-teacher", "'=HYPERLINK(1)", "'+one two")
    assert (first["complete"], first["problem"], first["latency_ms"]) == ("False", "", "1.0")
    assert float(first["wer"]) > 0
    assert (failed["text"], failed["latency_ms"], failed["complete"], failed["problem"]) == (
        "",
        "",
        "False",
        "'@failed",
    )
    assert (last["text"], last["complete"]) == ("no formula", "True")
    assert as_json(comparison)["systems"][1]["latency_ms"] is None


def test_subtitles_are_cut_between_words():
    words = tuple(Word(f"word{i}", float(i), i + 0.9) for i in range(10))
    srt = as_srt(Outcome("x", " ".join(w.text for w in words), words), "en")
    assert srt.startswith(
        "1\n00:00:00,000 --> 00:00:05,900\nword0 word1 word2 word3 word4 word5\n\n2\n00:00:06,000 -->"
    )
    assert "word9" in srt


def test_a_long_recording_lets_a_short_one_in_between():
    order, started, going = [], threading.Event(), threading.Event()

    class Slow:
        window, prompts = 1.0, {"en": []}
        times_words = False

        def transcribe(self, *_, **__):
            order.append("short")
            return Transcript("", "en", (), {}, True)

        def segments(self):
            for number in range(3):
                order.append(number)
                started.set()
                assert going.wait(10)
                yield type("Segment", (), {"transcript": number})

    systems = Systems({"slow": Slow()})
    segments = Slow().segments()
    with concurrent.futures.ThreadPoolExecutor(2) as visitors:
        long = visitors.submit(lambda: list(iter(lambda: systems.turn("slow", next, segments, None), None)))
        assert started.wait(10)
        short = visitors.submit(lambda: list(compare(systems, tone(0.5), "", "en", runs=1)))
        until(lambda: systems.turns._work_queue.qsize() == 1)
        going.set()
        long.result()
        short.result()
    assert order.index("short") == 1
    systems.close()


@pytest.fixture
def gated(systems, monkeypatch):
    """Systems of which the first waits before each transcript for `gate`."""
    gate = threading.Event()
    slow, fast = systems.recognizers
    transcribe = systems.recognizers[slow].transcribe

    def waiting(*args, **kwargs):
        assert gate.wait(60)
        return transcribe(*args, **kwargs)

    monkeypatch.setattr(systems.recognizers[slow], "transcribe", waiting)
    return systems, slow, fast, gate


def hears(systems, names, wave, after_each=lambda _: None):
    """A visitor whose microphone has sent a wave in blocks of a quarter of a second."""
    visitor = Live(systems, names, "en", 16000)
    for i in range(0, len(wave), 4000):
        visitor.hear(wave[i : i + 4000])
        after_each(visitor)
    return visitor


def said_aloud():
    """Three utterances with pauses, [samples] at 16 kHz."""
    clips = [u.wave() for u in open_corpus("prompts-en", "test") if 1.5 < u.seconds < 3][:3]
    return np.concatenate([part for clip in clips for part in (clip, np.zeros(16000, np.float32))])


def test_a_slow_system_falls_behind_and_no_system_loses_speech(gated):
    systems, slow, fast, gate = gated
    wave = said_aloud()
    visitor = hears(systems, [slow, fast], wave)
    until(lambda: visitor.queues[fast].behind == 0)
    assert len(visitor.queues[fast].said) >= 3
    assert visitor.queues[slow].said == []
    assert " s behind" in visitor.as_html()
    visitor.finish()
    gate.set()
    until(lambda: visitor.done)
    assert len(visitor.queues[slow].said) == len(visitor.queues[fast].said)
    assert visitor.queues[slow].done == visitor.queues[fast].done == len(wave)
    assert "behind" not in visitor.as_html()


def test_a_system_too_far_behind_says_so_and_transcribes_what_it_heard(gated, monkeypatch):
    monkeypatch.setattr(live, "QUEUE_SECONDS", 2.0)
    systems, slow, fast, gate = gated
    wave = said_aloud()
    visitor = hears(systems, [slow, fast], wave, lambda one: until(lambda: one.queues[fast].behind == 0))
    assert "2 s behind and accepts no more speech" in visitor.as_html()
    visitor.finish()
    gate.set()
    until(lambda: visitor.done)
    assert 1 <= len(visitor.queues[slow].said) < len(visitor.queues[fast].said)


def test_an_error_in_a_system_is_shown_and_stops_no_other(systems, monkeypatch):
    slow, fast = systems.recognizers
    monkeypatch.setattr(systems.recognizers[slow], "transcribe", lambda *_, **__: 1 / 0)
    visitor = Live(systems, [slow, fast], "en", 16000)
    visitor.hear(said_aloud())
    visitor.finish()
    until(lambda: visitor.done)
    assert "division by zero" in visitor.as_html()
    assert len(visitor.queues[fast].said) >= 3


def block(tmp_path, seconds=0.25):
    write_wav(tmp_path / "block.wav", tone(seconds))
    return tmp_path / "block.wav"


def test_visitors_are_counted_and_forgotten(systems, tmp_path, monkeypatch):
    visitors = Visitors(systems, 1)
    names = list(systems.recognizers)
    first = visitors.hear("a", block(tmp_path), names, "en")
    assert visitors.hear("a", block(tmp_path), names, "en") is first
    with pytest.raises(UserError, match="1 visitors are already speaking"):
        visitors.hear("b", block(tmp_path), names, "en")
    visitors.leave("a")
    assert first.closed
    second = visitors.hear("b", block(tmp_path), names, "en")
    assert 'data-state="over"' in list(visitors.finish("b"))[-1]
    visitors.hear("b", block(tmp_path), names, "en")  # late
    assert second.seconds == 0.25
    monkeypatch.setattr(live, "IDLE_SECONDS", -1.0)
    visitors.hear("c", block(tmp_path), names, "en")
    assert list(visitors.lives) == ["c"]


@pytest.mark.parametrize("content", [b"#EXTM3U\n/etc/passwd\n", b"", bytes(5_000_000), wav(speech(0.1), rate=4)])
def test_a_block_that_is_no_part_of_a_second_of_wav_is_refused(systems, tmp_path, content):
    (tmp_path / "block.wav").write_bytes(content)
    with pytest.raises(UserError, match=r"block\.wav"):
        Visitors(systems, 1).hear("a", tmp_path / "block.wav", list(systems.recognizers), "en")


def test_no_block_is_overtaken_and_whoever_leaves_is_forgotten(page, systems):
    blocks = [upload(page, f"{i}.wav", wav(speech(0.25) // (i + 1))) for i in range(12)]
    names = list(systems.recognizers)
    with contextlib.ExitStack() as stack:
        alive = stack.enter_context(page.stream("GET", "/heartbeat/me"))
        body = {"fn_index": page.numbers["listen"], "session_hash": "me"}
        joined = page.post("/queue/join", json={**body, "data": [blocks[0], names, "en"]}).json()
        stack.enter_context(page.stream("GET", "/queue/data", params={"session_hash": "me"}))
        until(lambda: "me" in page.visitors.lives)
        address = f"{page.base_url}stream/{joined['event_id']}"
        with concurrent.futures.ThreadPoolExecutor(12) as browser:
            sent = browser.map(
                lambda b: httpx.post(address, json={**body, "data": [b, names, "en"]}, timeout=60), blocks[1:]
            )
            assert [answer.status_code for answer in sent] == [200] * 11
        until(lambda: page.visitors.lives["me"].seconds == 3.0)
        _, answer = ask(page, "listen", blocks[0], names, "en")
        assert "1 visitors are already speaking" in answer[0]
        alive.close()
        until(lambda: "me" not in page.visitors.lives)
