"""Memory for decoded recordings: only so much is given out at a time, first come, first served."""

from __future__ import annotations

import asyncio
from collections import deque

from export.serving.errors import shutting_down


class Memory:
    """Bytes that recordings may take together. Used in the event loop's thread alone, so nothing needs a lock.

    Args:
        most: all of it; no single recording may ask for more.
    """

    def __init__(self, most: int) -> None:
        self.most = self.free = most
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, size: int) -> None:
        """Wait until this many bytes are free, and take them."""
        if not self._waiting and size <= self.free:
            self.free -= size
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, waiter))
        try:
            await waiter
        except asyncio.CancelledError:
            granted = waiter.done() and not waiter.cancelled() and waiter.exception() is None
            self.give(size if granted else 0)  # it came too late, or the next in line may fit now
            raise

    def give(self, size: int) -> None:
        """Return bytes that were taken."""
        self.free += size
        while self._waiting:
            wanted, waiter = self._waiting[0]
            if not waiter.done():
                if wanted > self.free:
                    return
                self.free -= wanted
                waiter.set_result(None)
            self._waiting.popleft()

    def close(self) -> None:
        """Refuse what waits."""
        for _, waiter in self._waiting:
            if not waiter.done():
                waiter.set_exception(shutting_down())


class Place:
    """A request's place in the queue, and the memory of its recording, which is returned when nothing uses it any more.

    That is later than the request's end if its client has gone while a thread works on the recording: threads cannot be stopped.
    """

    def __init__(self, memory: Memory) -> None:
        self.bytes = 0
        self._memory, self._users = memory, 1  # the request itself

    async def take(self, size: int) -> None:
        """Wait for memory for the recording."""
        await self._memory.take(size)
        self.bytes = size

    def keep(self, size: int) -> None:
        """Return what is taken beyond `size`."""
        if size < self.bytes:
            spare, self.bytes = self.bytes - size, size
            self._memory.give(spare)

    def enter(self) -> None:
        """A thread begins to work on the recording."""
        self._users += 1

    def leave(self) -> None:
        """The request or a thread has ended."""
        self._users -= 1
        if not self._users:
            self.keep(0)
