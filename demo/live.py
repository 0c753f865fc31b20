"""Somebody speaks and the systems write along: what the live tab shows, without the page."""

from __future__ import annotations

import html
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from demo.session import Systems
from export.edge import AudioError, BundleError, Stream
from export.edge.audio import Resampler
from workbench.errors import UserError


@dataclass
class Writing:
    """What one system has written of a visitor's speech."""

    stream: Stream
    said: list[str] = field(default_factory=list)  # utterances that are over
    saying: str = ""  # the one that goes on; may still change
    busy_ms: float = 0.0  # in all
    slowest_ms: float = 0.0  # for one block


class Live:
    """One visitor's microphone, heard by some systems in turn.

    Args:
        systems: those of the page.
        names: of the systems that listen.
        language: ISO 639-1 code.
        rate: of the microphone, in Hz.

    Raises:
        UserError: nobody listens, or a system's bundle has no speech detector.
    """

    def __init__(self, systems: Systems, names: Sequence[str], language: str, rate: int) -> None:
        if not names:
            raise UserError("nobody listens; tick at least one system")
        self.rate, self.resampler, self.seconds, self.over = rate, Resampler(rate), 0.0, False
        self.turn = threading.Lock()  # the page's events come from threads, and the end may overtake a block
        try:
            self.writings = {name: Writing(Stream(systems.recognizers[name], language)) for name in names}
        except BundleError as error:
            raise UserError(str(error)) from None

    def hear(self, samples: npt.NDArray[Any]) -> None:
        """Take a block as a browser gives it: [samples] or [samples, channels], integers or floats."""
        with self.turn:
            if not self.over:
                self.seconds += len(samples) / self.rate
                self._each(lambda stream, wave: stream.feed(wave), self.resampler(mono(samples)))

    def finish(self) -> None:
        """The microphone is off; a block that comes late is not heard."""
        with self.turn:
            if self.over:
                return
            self.over = True
            self._each(lambda stream, wave: [*stream.feed(wave), *stream.finish()], self.resampler.finish())

    def _each(self, feed: Any, wave: npt.NDArray[np.float32]) -> None:
        for writing in self.writings.values():
            begun = time.perf_counter()
            try:
                for heard in feed(writing.stream, wave):
                    writing.saying = "" if heard.final else heard.text
                    if heard.final and heard.text:
                        writing.said.append(heard.text)
            except (AudioError, BundleError) as error:
                raise UserError(str(error)) from None
            took = 1000 * (time.perf_counter() - begun)
            writing.busy_ms += took
            writing.slowest_ms = max(writing.slowest_ms, took)

    def as_html(self) -> str:
        """A card a system: utterances that are over, the one that goes on in grey, and how busy the machine was."""
        out = []
        for name, writing in self.writings.items():
            said = "".join(f"<div>{html.escape(text)}</div>" for text in writing.said)
            saying = f'<div class="saying">{html.escape(writing.saying)}</div>' if writing.saying else ""
            busy = writing.busy_ms / max(1.0, 1000 * self.seconds)
            late = " · <b>slower than speech: it falls behind</b>" if busy > 1 else ""
            out.append(
                f'<div class="card"><h3>{html.escape(name)}</h3><div class="said">{said}{saying or ("" if said else "<i>nothing yet</i>")}</div>'
                f"<small>busy {100 * busy:.0f} % of the time, at most {writing.slowest_ms:.0f} ms at once{late}</small></div>"
            )
        state = "over" if self.over else "listening"
        return f'<div class="cards" data-state="{state}">{"".join(out)}</div><small>{self.seconds:.1f} s heard.</small>'


def mono(samples: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Channels averaged, integers scaled to [-1, 1]. -> [samples]"""
    scale = float(np.iinfo(samples.dtype).max) + 1 if np.issubdtype(samples.dtype, np.integer) else 1.0
    wave = samples.astype(np.float32) / scale
    return wave.mean(1) if wave.ndim == 2 else wave
