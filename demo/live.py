"""Transcripts while visitors speak: what the live tab shows, without the page."""

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

from demo.session import Systems
from export.edge import AudioError, BundleError, PartialTranscript, Stream
from export.edge.audio.resample import Resampler
from export.edge.audio.wav import read_pcm
from export.edge.stream import EVERY
from workbench.audio.decode import SAMPLE_RATE, Wave
from workbench.core.errors import UserError

QUEUE_SECONDS = 60.0  # of speech that a system may be behind
LATE_SECONDS = 1.0  # behind which a system writes no partial texts, and says how far behind it is
BLOCK_BYTES = 4_000_000  # of a block that a browser sends; a quarter of a second takes 24 kB
LAST_BLOCKS_SECONDS = 0.5  # that the end waits for blocks that are still on their way
IDLE_SECONDS = 30.0  # without a block after which a visitor has left
REFRESH_SECONDS = 0.25  # while the last words are transcribed


@dataclass
class Queue:
    """One system's view of a visitor's speech: blocks that wait for it, and what it has written."""

    stream: Stream
    blocks: deque[Wave | None] = field(default_factory=deque)  # None is the end
    given: int = 0  # samples
    done: int = 0
    working: bool = False
    problem: str = ""  # why it takes nothing more
    said: list[str] = field(default_factory=list)  # utterances that are over
    saying: str = ""  # the one that goes on; may still change
    busy_ms: float = 0.0  # in all
    slowest_ms: float = 0.0  # for one block

    @property
    def behind(self) -> float:
        """Seconds of speech that are not transcribed yet."""
        return (self.given - self.done) / SAMPLE_RATE


class Live:
    """One visitor's microphone. Each system has a queue, so that a slow one falls behind and none loses speech.

    Args:
        systems: those of the page.
        names: of the systems that listen.
        language: ISO 639-1 code.
        rate: of the microphone, in Hz.

    Raises:
        UserError: nobody listens, the rate is impossible, or a system's bundle has no speech detector.
    """

    def __init__(self, systems: Systems, names: Sequence[str], language: str, rate: int) -> None:
        if not names:
            raise UserError("nobody listens; tick at least one system")
        self.systems, self.rate, self.seconds, self.over, self.closed = systems, rate, 0.0, False, False
        self.last = time.monotonic()  # when a block came
        self.lock = threading.Lock()  # blocks and the end come from the page's threads, texts from the systems'
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
        """The microphone is off; a block that comes later is not heard. What is queued is still transcribed."""
        with self.lock:
            if not self.over:
                self.over = True
                self._queue(self.resampler.finish())
                self._queue(None)

    def close(self) -> None:
        """The visitor has left: what is queued is dropped."""
        with self.lock:
            self.over = self.closed = True
            for queue in self.queues.values():
                queue.blocks.clear()

    @property
    def done(self) -> bool:
        """Whether everything is transcribed that ever will be."""
        return self.over and not any(queue.working for queue in self.queues.values())

    def _queue(self, block: Wave | None) -> None:
        for name, queue in self.queues.items():
            if queue.problem:
                continue
            if block is not None and queue.behind > QUEUE_SECONDS:
                queue.problem = (
                    f"it is {QUEUE_SECONDS:.0f} s behind and hears nothing more; what it has heard it still transcribes"
                )
                block = None
            queue.blocks.append(block)
            queue.given += 0 if block is None else len(block)
            if not queue.working:
                queue.working = True
                self.systems.threads[name].submit(self._work, name, queue)

    def _work(self, name: str, queue: Queue) -> None:
        """Take one block in the system's thread, and then the others' turn comes."""
        with self.lock:
            block = queue.blocks.popleft() if queue.blocks else None
            stream = queue.stream
            stream.every = EVERY if queue.behind < LATE_SECONDS else math.inf
        begun = time.perf_counter()
        try:
            if not self.closed:
                for heard in stream.finish() if block is None else stream.feed(block):
                    self._write(queue, heard)
        except Exception as error:  # nobody waits for this thread's result: what is not shown is lost
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
        """A card a system: utterances that are over, the one that goes on in grey, how busy and how far behind it is."""
        with self.lock:
            cards = "".join(self._card(name, queue) for name, queue in self.queues.items())
            state = "over" if self.done else "listening"
        return f'<div class="cards" data-state="{state}">{cards}</div><small>{self.seconds:.1f} s heard.</small>'

    def _card(self, name: str, queue: Queue) -> str:
        said = "".join(f"<div>{html.escape(text)}</div>" for text in queue.said)
        saying = f'<div class="saying">{html.escape(queue.saying)}</div>' if queue.saying else ""
        busy = queue.busy_ms / max(1.0, queue.done / SAMPLE_RATE * 1000)
        late = f" · <b>{queue.behind:.0f} s behind</b>" if queue.behind >= LATE_SECONDS else ""
        problem = f"<br><b>{html.escape(queue.problem)}</b>" if queue.problem else ""
        return (
            f'<div class="card"><h3>{html.escape(name)}</h3><div class="said">{said}{saying or ("" if said else "<i>nothing yet</i>")}</div>'
            f"<small>busy {100 * busy:.0f} % of the time, at most {queue.slowest_ms:.0f} ms at once{late}{problem}</small></div>"
        )


class Visitors:
    """Who speaks, by the page's session; what they said goes when they leave or say nothing for a while.

    Args:
        systems: those of the page.
        most: visitors who may speak at the same time.
    """

    def __init__(self, systems: Systems, most: int) -> None:
        self.systems, self.most = systems, most
        self.lives: dict[str, Live] = {}
        self.lock = threading.Lock()

    def hear(self, session: str, block: Path, names: Sequence[str], language: str) -> Live:
        """Queue a block of a visitor's microphone, a WAV file; the first one opens it. Raises UserError where that is not possible."""
        try:
            if block.stat().st_size > BLOCK_BYTES:
                raise UserError(f"{block.name}: a block of {BLOCK_BYTES / 1e6:g} MB or more; expected part of a second")
            samples, rate = read_pcm(block)
        except (AudioError, OSError) as error:
            raise UserError(str(error)) from None
        with self.lock:
            if session not in self.lives:
                self._forget_idle()
                if sum(not live.done for live in self.lives.values()) >= self.most:
                    raise UserError(f"{self.most} visitors speak already; record again when one of them has finished")
                self.lives[session] = Live(self.systems, names, language, rate)
            live = self.lives[session]
        live.hear(samples)
        return live

    def finish(self, session: str) -> Iterator[str]:
        """End a visitor's speech; yields the page until everything is transcribed."""
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
        """Forget a visitor's speech."""
        with self.lock:
            live = self.lives.pop(session, None)
        if live is not None:
            live.close()

    def _forget_idle(self) -> None:
        now = time.monotonic()
        for session, live in list(self.lives.items()):
            if now - live.last > IDLE_SECONDS and live.done == live.over:  # not while the last words are transcribed
                self.lives.pop(session).close()
