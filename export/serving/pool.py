"""Recognizers in threads: requests take turns, first come, first served, and only so many may wait."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Concatenate, ParamSpec, TypeVar

from export.edge import Recognizer
from export.edge.audio import Wave
from export.serving.errors import ApiError, shutting_down
from export.serving.memory import Memory, Place

P = ParamSpec("P")
T = TypeVar("T")
GRACE = 1.0  # seconds that turns under way have left once the server is closing
DECODERS = 2  # recordings decoded at a time
BYTES_PER_SECOND = 64_000  # of a decoded recording: 32-bit floats at 16 kHz
MORE_RECORDINGS = (
    2  # of the greatest length that are held decoded besides those of the workers; shorter ones, accordingly more
)


class Pool:
    """Recognizers, one to a thread, shared by all requests.

    A turn is one utterance or one stretch of a recording, so that a long recording lets others in between its stretches. Everything but the
    work itself happens in the event loop's thread, so nothing needs a lock.

    Args:
        recognizers: the workers.
        max_queue: requests that may wait besides those that are worked on.
        max_seconds: longest recording.
    """

    def __init__(self, recognizers: Sequence[Recognizer], max_queue: int, max_seconds: float) -> None:
        self.workers, self.max_queue = len(recognizers), max_queue
        self.largest = round(max_seconds * BYTES_PER_SECOND)  # bytes of the longest recording, decoded
        self.memory = Memory((self.workers + MORE_RECORDINGS) * self.largest)
        self.admitted = 0  # requests from their first byte to the last of the answer
        self.window = recognizers[0].window  # seconds that a worker transcribes at once
        self.closing = False
        self.mean_seconds = 1.0  # of a request, averaged over the last few
        self._idle = list(recognizers)
        self._waiting: deque[asyncio.Future[Recognizer]] = deque()
        self._running: set[asyncio.Future[Any]] = set()
        self._computing: set[int] = set()  # ids of threads
        self._threads = ThreadPoolExecutor(self.workers, "recognizer")
        self._decoders = ThreadPoolExecutor(DECODERS, "decoder")

    @property
    def running(self) -> int:
        """Turns under way."""
        return self.workers - len(self._idle)

    @property
    def queued(self) -> int:
        """Requests that are admitted beyond the number of workers."""
        return max(0, self.admitted - self.workers)

    @contextlib.contextmanager
    def place(self) -> Iterator[Place]:
        """A place for one request; raises ApiError if the queue is full (429) or the server is closing (503)."""
        if self.closing:
            raise shutting_down()
        if self.admitted >= self.workers + self.max_queue:
            wait = max(1, round(self.mean_seconds * (self.queued + 1) / self.workers))
            raise ApiError(
                429, f"{self.max_queue} requests are waiting already; try again in {wait} s.", "queue_full", retry_after=wait
            )  # fmt: skip
        self.admitted += 1
        began = time.monotonic()
        place = Place(self.memory)
        try:
            yield place
        finally:
            place.leave()
            self.admitted -= 1
            self.mean_seconds += 0.1 * (time.monotonic() - began - self.mean_seconds)

    async def decode(self, place: Place, work: Callable[P, Wave], *args: P.args, **kwargs: P.kwargs) -> Wave:
        """Run `work`, which decodes a recording, in a thread once there is memory for the longest one; keeps what it takes.

        Raises ApiError (503) if the server is closing.
        """
        if self.closing:
            raise shutting_down()
        await place.take(self.largest)
        wave = await self._result(place, self._decoders, lambda: work(*args, **kwargs), lambda: None)
        place.keep(wave.nbytes)
        return wave

    async def turn(
        self, place: Place, work: Callable[Concatenate[Recognizer, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run `work` with the next recognizer that is free; raises ApiError (503) if the server is closing."""
        if self.closing:
            raise shutting_down()
        recognizer = self._idle.pop() if self._idle else await self._wait()
        return await self._result(
            place, self._threads, lambda: work(recognizer, *args, **kwargs), lambda: self._free(recognizer)
        )

    def close(self) -> None:
        """Refuse what waits now, and after a moment what is still under way."""
        self.closing = True
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_exception(shutting_down())
        self.memory.close()
        asyncio.get_running_loop().call_later(GRACE, self._abandon)

    def shut(self) -> bool:
        """End the threads; returns whether one is still computing, which cannot be stopped."""
        for threads in (self._threads, self._decoders):
            threads.shutdown(wait=False, cancel_futures=True)
        return bool(self._computing)

    async def _wait(self) -> Recognizer:
        waiter: asyncio.Future[Recognizer] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._free(waiter.result())  # it came too late
            raise

    def _free(self, recognizer: Recognizer) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(recognizer)
                return
        self._idle.append(recognizer)

    async def _result(
        self, place: Place, threads: ThreadPoolExecutor, work: Callable[[], T], after: Callable[[], None]
    ) -> T:
        """Run `work` in a thread and `after` when it has ended, even if nobody waits for the result any more."""
        loop = asyncio.get_running_loop()
        result: asyncio.Future[T] = loop.create_future()

        def ended(found: T | None, error: BaseException | None) -> None:
            after()
            place.leave()
            if result.done():  # cancelled, or abandoned
                return
            if error is not None:
                result.set_exception(error)
            else:
                result.set_result(found)  # type: ignore[arg-type]  # a T where there is no error

        def run() -> None:
            found, error = None, None
            self._computing.add(threading.get_ident())
            try:
                if not result.done():  # else nobody waits for it any more
                    found = work()
            except BaseException as caught:  # noqa: BLE001  raised where the result is awaited
                error = caught
            self._computing.discard(threading.get_ident())
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(ended, found, error)

        place.enter()
        self._running.add(result)
        threads.submit(run)
        try:
            return await result
        finally:
            self._running.discard(result)

    def _abandon(self) -> None:
        for result in self._running:
            if not result.done():
                result.set_exception(shutting_down())
