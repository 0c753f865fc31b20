"""Live transcription: the logic of the live tab, without the page."""

from __future__ import annotations

import html
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from demo.systems import Systems
from export.edge import AudioError, BundleError, PartialTranscript, Stream
from export.edge.audio.resample import Resampler
from export.edge.audio.wav import read_pcm
from export.edge.stream import EVERY
from workbench.audio.decode import SAMPLE_RATE, Wave
from workbench.core.errors import UserError

QUEUE_SECONDS = 60.0  # of speech that a system may lag behind
LATE_SECONDS = 1.0  # beyond this lag a system writes no partial texts, and its lag is shown
BLOCK_BYTES = 4_000_000  # maximum size of a browser's block; a quarter of a second takes 24 kB
LAST_BLOCKS_SECONDS = 0.5  # to wait at the end for blocks still in transit
IDLE_SECONDS = 30.0  # without a block, after which a visitor counts as gone
REFRESH_SECONDS = 0.25  # between updates while the last words are transcribed


@dataclass
class Queue:
    """One system's queue for a visitor's speech: waiting blocks, and its transcripts so far."""

    stream: Stream
    blocks: deque[Wave | None] = field(default_factory=deque)  # None marks the end
    given: int = 0  # samples
    done: int = 0
    working: bool = False
    problem: str = ""  # why it accepts no more blocks
    said: list[str] = field(default_factory=list)  # finished utterances
    saying: str = ""  # partial transcript of the current utterance
    busy_ms: float = 0.0  # total
    slowest_ms: float = 0.0  # for one block

    @property
    def behind(self) -> float:
        """Seconds of speech not transcribed yet."""
        return (self.given - self.done) / SAMPLE_RATE


class Live:
    """One visitor's microphone. Each system has its own queue, so a slow one may lag behind but loses no speech.

    Args:
        systems: those of the page.
        names: names of the systems to run.
        language: ISO 639-1 code.
        rate: the microphone's sample rate in Hz.

    Raises:
        UserError: no system is selected, the sample rate is unsupported, or a bundle has no speech detector.
    """

    def __init__(self, systems: Systems, names: Sequence[str], language: str, rate: int) -> None:
        if not names:
            raise UserError("no system is selected; tick at least one")
        self.systems, self.rate, self.seconds, self.over, self.closed = systems, rate, 0.0, False, False
        self.last = time.monotonic()  # when the last block arrived
        # blocks and the end come from the page's threads, transcripts from the systems' threads
        self.lock = threading.Lock()
        try:
            self.resampler = Resampler(rate)
            self.queues = {name: Queue(Stream(systems.recognizers[name], language)) for name in names}
        except (AudioError, BundleError) as error:
            raise UserError(str(error)) from None

    def hear(self, samples: Wave) -> None:
        """Queue a block of the microphone, [samples] at its rate. Returns at once."""
        with self.lock:
            if not self.over:
                self.last = time.monotonic()
                self.seconds += len(samples) / self.rate
                self._queue(self.resampler(samples))

    def finish(self) -> None:
        """End the input: later blocks are ignored, queued ones are still transcribed."""
        with self.lock:
            if not self.over:
                self.over = True
                self._queue(self.resampler.finish())
                self._queue(None)

    def close(self) -> None:
        """Drop queued blocks, because the visitor has left."""
        with self.lock:
            self.over = self.closed = True
            for queue in self.queues.values():
                queue.blocks.clear()

    @property
    def done(self) -> bool:
        """Whether the input has ended and every queued block is processed."""
        return self.over and not any(queue.working for queue in self.queues.values())

    def _queue(self, block: Wave | None) -> None:
        for name, queue in self.queues.items():
            if queue.problem:
                continue
            if block is not None and queue.behind > QUEUE_SECONDS:
                queue.problem = (
                    f"it is {QUEUE_SECONDS:.0f} s behind and accepts no more speech; queued speech is still transcribed"
                )
                block = None
            queue.blocks.append(block)
            queue.given += 0 if block is None else len(block)
            if not queue.working:
                queue.working = True
                self.systems.threads[name].submit(self._work, name, queue)

    def _work(self, name: str, queue: Queue) -> None:
        """Process one block in the system's thread, then requeue behind other visitors."""
        with self.lock:
            block = queue.blocks.popleft() if queue.blocks else None
            stream = queue.stream
            stream.every = EVERY if queue.behind < LATE_SECONDS else math.inf
        begun = time.perf_counter()
        try:
            if not self.closed:
                for heard in stream.finish() if block is None else stream.feed(block):
                    self._write(queue, heard)
        except Exception as error:  # nothing reads this thread's result: an error not shown here would be lost
            if not isinstance(error, AudioError | BundleError):
                logging.exception("live: %s stopped", name)
            with self.lock:
                queue.problem = f"stopped by an error: {error}"
                queue.blocks.clear()
        took = 1000 * (time.perf_counter() - begun)
        with self.lock:
            queue.busy_ms += took
            queue.slowest_ms = max(queue.slowest_ms, took)
            queue.done += 0 if block is None else len(block)
            queue.working = bool(queue.blocks)
            if queue.working:
                self.systems.threads[name].submit(self._work, name, queue)

    def _write(self, queue: Queue, heard: PartialTranscript) -> None:
        with self.lock:
            queue.saying = "" if heard.final else heard.text
            if heard.final and heard.text:
                queue.said.append(heard.text)

    def as_html(self) -> str:
        """A card per system: finished utterances, the current one in grey, its load and its lag."""
        with self.lock:
            cards = "".join(self._card(name, queue) for name, queue in self.queues.items())
            state = "over" if self.done else "listening"
        return f'<div class="cards" data-state="{state}">{cards}</div><small>{self.seconds:.1f} s received.</small>'

    def _card(self, name: str, queue: Queue) -> str:
        said = "".join(f"<div>{html.escape(text)}</div>" for text in queue.said)
        saying = f'<div class="saying">{html.escape(queue.saying)}</div>' if queue.saying else ""
        busy = queue.busy_ms / max(1.0, queue.done / SAMPLE_RATE * 1000)
        late = f" · <b>{queue.behind:.0f} s behind</b>" if queue.behind >= LATE_SECONDS else ""
        problem = f"<br><b>{html.escape(queue.problem)}</b>" if queue.problem else ""
        return (
            f'<div class="card"><h3>{html.escape(name)}</h3><div class="said">{said}{saying or ("" if said else "<i>nothing yet</i>")}</div>'
            f"<small>busy {100 * busy:.0f} % of the time, at most {queue.slowest_ms:.0f} ms per block{late}{problem}</small></div>"
        )


class Visitors:
    """Live visitors by page session; their transcripts are dropped when they leave or stop sending audio for a while.

    Args:
        systems: those of the page.
        most: maximum number of simultaneous speakers.
    """

    def __init__(self, systems: Systems, most: int) -> None:
        self.systems, self.most = systems, most
        self.lives: dict[str, Live] = {}
        self.lock = threading.Lock()

    def hear(self, session: str, block: Path, names: Sequence[str], language: str) -> Live:
        """Queue a microphone block (a WAV file); a visitor's first block opens a `Live`. Raises UserError if that is not possible."""
        try:
            if block.stat().st_size > BLOCK_BYTES:
                raise UserError(
                    f"{block.name}: a microphone block of more than {BLOCK_BYTES / 1e6:g} MB; expected part of a second"
                )
            samples, rate = read_pcm(block)
        except (AudioError, OSError) as error:
            raise UserError(str(error)) from None
        with self.lock:
            if session not in self.lives:
                self._forget_idle()
                if sum(not live.done for live in self.lives.values()) >= self.most:
                    raise UserError(
                        f"{self.most} visitors are already speaking; try again when one of them has finished"
                    )
                self.lives[session] = Live(self.systems, names, language, rate)
            live = self.lives[session]
        live.hear(samples)
        return live

    def finish(self, session: str) -> Iterator[str]:
        """End a visitor's speech; yields the updated HTML until everything is transcribed."""
        live = self.lives.get(session)
        if live is None:
            return
        while time.monotonic() < live.last + LAST_BLOCKS_SECONDS:
            time.sleep(0.05)
        live.finish()
        while not live.done:
            yield live.as_html()
            time.sleep(REFRESH_SECONDS)
        yield live.as_html()

    def leave(self, session: str) -> None:
        """Drop a visitor's session."""
        with self.lock:
            live = self.lives.pop(session, None)
        if live is not None:
            live.close()

    def _forget_idle(self) -> None:
        now = time.monotonic()
        for session, live in list(self.lives.items()):
            if now - live.last > IDLE_SECONDS and live.done == live.over:  # not while the last words are transcribed
                self.lives.pop(session).close()
