"""The demo's page under load: twenty visitors at once, one of them hostile, and its memory over hundreds of requests.

    python benchmarks/page_load.py --bundle runs/quickstart/bundle --json FILE

The page runs in a process of its own, with a copy of the bundle as its teacher. Each of twenty visitors uploads a clip and has it
transcribed while another sends a playlist, a FLAC of 4 Hz, NaN, a file over the limit and clips of eight channels; an answer is right if
both systems write what they write when nobody else asks. Then visitors, the hostile one among them, ask one after the other, and the
server's resident memory is read after each: the medians of the first and the last fifty requests after a warm-up are compared.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from common import ROOT, arguments, finish, workbench

VISITORS = 20
WARM_UP, ENDS = 50, 50  # requests
RATE = 16_000
META = {"_type": "gradio.FileData"}


def main() -> None:
    """Serve, load, compare."""
    args = arguments(
        __doc__, bundle=("runs/quickstart/bundle", "bundle to show"), requests=(300, "requests after the warm-up")
    )
    with tempfile.TemporaryDirectory() as name, served(Path(args.bundle), Path(name)) as page:
        clips = spoken(VISITORS)
        alone = {clip: page.texts(clip, wave) for clip, wave in clips.items()}
        over, stop = [], threading.Event()
        with ThreadPoolExecutor(VISITORS + 1) as visitors:
            hostile = visitors.submit(attack, page, stop)
            begun = time.perf_counter()
            answers = {clip: visitors.submit(timed_texts, page, clip, wave) for clip, wave in clips.items()}
            over = [{"clip": clip, **answer.result(), "alone": alone[clip]} for clip, answer in answers.items()]
            took = time.perf_counter() - begun
            stop.set()
            attacks = hostile.result()
        right = sum(run["texts"] == run["alone"] for run in over)
        memory = [page.rss_mb()]
        for number in range(WARM_UP + args.requests):
            clip = list(clips)[number % VISITORS]
            if number % VISITORS == 0:
                attacks += attack(page)
            page.texts(clip, clips[clip])
            memory.append(page.rss_mb())
        left = page.left()
    first, last = statistics.median(memory[WARM_UP:][:ENDS]), statistics.median(memory[-ENDS:])
    figures = {
        "visitors": VISITORS, "right_answers": right, "seconds_for_all": took,
        "slowest_answer_s": max(run["seconds"] for run in over), "median_answer_s": statistics.median(run["seconds"] for run in over),
        "hostile_requests": len(attacks), "hostile_refused_in_one_line": sum(a["one_line"] for a in attacks if a["kind"] != "eight.wav"),
        "eight_channels_transcribed": sum(a["transcribed"] for a in attacks if a["kind"] == "eight.wav"),
        "requests": args.requests, "rss_first_mb": first, "rss_last_mb": last, "rss_growth_mb": last - first, "rss_peak_mb": max(memory),
        "temporary_files_left": len(left),
    }  # fmt: skip
    finish(args.json, figures, over, attacks=attacks, rss_mb=memory, files_left=left)


class Page:
    """A server and what visitors do with it."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, temporary: Path) -> None:
        self.process, self.temporary = process, temporary
        self.http = httpx.Client(
            base_url=f"http://127.0.0.1:{port}/gradio_api", timeout=600, limits=httpx.Limits(max_connections=None)
        )

    def transcribe(self, name: str, content: bytes) -> tuple[str, str]:
        """The line beside the input and the cards' HTML, of an upload."""
        answer = self.http.post("/upload", files={"files": (name, content)})
        if answer.status_code != 200:
            return answer.text, ""
        clip = {"path": answer.json()[0], "orig_name": name, "meta": META}
        event = self.http.post("/call/run_clip", json={"data": [clip, "", "en", None]}).json()["event_id"]
        said = self.http.get(f"/call/run_clip/{event}").text
        kind, data = said.strip().rsplit("event: ", 1)[1].split("\ndata: ", 1)
        if kind != "complete":
            return data, ""
        # the page is updated after each run; an output that an update leaves as it is comes as an object
        updates = [json.loads(line) for line in re.findall(r"^event: generating\ndata: (.*)$", said, re.MULTILINE)]
        problem, shown = (
            [update[place] for update in updates if isinstance(update[place], str)][-1] for place in (0, 3)
        )
        return problem, shown

    def texts(self, name: str, content: bytes) -> list[str]:
        """What each system writes."""
        problem, shown = self.transcribe(name, content)
        return re.findall(r'<div class="said"[^>]*>(.*?)</div>', shown) or [problem]

    def rss_mb(self) -> float:
        """Resident memory of the server."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1000

    def left(self) -> list[str]:
        """End the server; returns the temporary files that it leaves."""
        self.process.terminate()
        self.process.wait(60)
        return [str(path.relative_to(self.temporary)) for path in self.temporary.rglob("*") if path.is_file()]

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()
        self.process.kill()
        self.process.wait()


def served(bundle: Path, folder: Path) -> Page:
    """The page of a bundle and its copy, as soon as it answers."""
    teacher, temporary = folder / "teacher", folder / "temporary"
    shutil.copytree(bundle, teacher)
    temporary.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = workbench(
        folder / "cache",
        "demo",
        str(bundle.resolve()),
        "--against",
        str(teacher),
        "--port",
        str(port),
        TMPDIR=str(temporary),
    )
    process = subprocess.Popen(command, cwd=ROOT, stdout=sys.stderr)
    for _ in range(600):
        time.sleep(0.5)
        if process.poll() is not None:
            raise SystemExit("the page did not start")
        try:
            httpx.get(f"http://127.0.0.1:{port}/", timeout=5)
            break
        except httpx.HTTPError:
            continue
    return Page(process, port, temporary)


def timed_texts(page: Page, name: str, content: bytes) -> dict[str, Any]:
    """What each system writes, and how long a visitor waits for it."""
    begun = time.perf_counter()
    return {"texts": page.texts(name, content), "seconds": time.perf_counter() - begun}


def attack(page: Page, stop: threading.Event | None = None) -> list[dict[str, Any]]:
    """Send each hostile file once, or again and again until told to stop."""
    out = []
    while True:
        for name, content in hostile().items():
            problem, shown = page.transcribe(name, content)
            one_line = bool(problem) and "\n" not in problem.strip() and "Traceback" not in problem
            out.append(
                {
                    "kind": name,
                    "one_line": one_line,
                    "transcribed": bool(shown),
                    "said": re.sub(r"<[^>]*>", "", problem),
                }
            )
        if stop is None or stop.is_set():
            return out


def hostile() -> dict[str, bytes]:
    """Files that have stopped such a server before."""
    tone = (0.3 * np.sin(np.arange(3 * RATE) / 6) * 32767).astype("<i2")
    return {
        "list.m3u8": b"#EXTM3U\n#EXTINF:1,\n/etc/hostname\n", "list.ffconcat": b"ffconcat version 1.0\nfile '/etc/hostname'\n",
        "eight.wav": wav(np.repeat(tone, 8), channels=8), "nan.wav": wav(np.full(RATE, np.nan, np.float32), code=3),
        "four.flac": flac_of_four_hz(), "huge.wav": bytes(101_000_000), "long.wav": wav(np.zeros(RATE * 601, "<i2")),
    }  # fmt: skip


def wav(samples: np.ndarray[Any, Any], channels: int = 1, code: int = 1) -> bytes:
    """A WAV file."""
    data, width = samples.tobytes(), samples.itemsize
    head = struct.pack("<HHIIHH", code, channels, RATE, RATE * channels * width, channels * width, 8 * width)
    return b"".join((b"RIFF", struct.pack("<I", 36 + len(data)), b"WAVEfmt ", struct.pack("<I", 16), head, b"data", struct.pack("<I", len(data)), data))  # fmt: skip


def flac_of_four_hz() -> bytes:
    """A FLAC whose resampling to 16 kHz once took 6 GB."""
    import av

    out = io.BytesIO()
    with av.open(out, "w", format="flac") as container:
        stream = container.add_stream("flac", rate=4, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.int16), format="s16", layout="mono")
        frame.sample_rate = 4
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return out.getvalue()


def spoken(count: int) -> dict[str, bytes]:
    """Clips of the built-in test split as WAV files."""
    from workbench.corpus import scored_clips

    clips = [u for u in scored_clips("prompts-en", "test") if u.seconds > 1]
    chosen = clips[:: len(clips) // count][:count]
    return {f"{u.id}.wav": wav((np.clip(u.wave(), -1, 1) * 32767).astype("<i2")) for u in chosen}


if __name__ == "__main__":
    main()
