"""Blocks read in the background while an earlier one is used, as far as the byte budget allows.

The place in the flow: `blocks` knows what a block holds, this file when it is read, `stream` takes the blocks one by
one. Reading stops and goes on at single episodes: room is made by each episode that is let go, so that reading is
spread evenly and what is held stays below the limit. No task ever waits, so a program that forgets to close a stream
still ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor

from vw2_robot.errors import InputError

from .blocks import Position, Reader, ShuffleBlock


class ReadAhead:
    """The blocks of a reader one after the other, read in the background as far as memory allows.

    Args:
        reader: which nobody else may use meanwhile.
        position: of the first block.
        limit: bytes that all blocks together may hold, the one in use included.
        pool: with one thread, for the reading; without, a block is read when it is asked for.
    """

    def __init__(self, reader: Reader, position: Position, *, limit: int, pool: ThreadPoolExecutor | None) -> None:
        self._reader, self._limit, self._pool = reader, limit, pool
        self._next = position
        self._filling: Generator[int, None, ShuffleBlock] | None = None
        self._filled = 0  # bytes of the block that is being read
        self._ready: deque[ShuffleBlock | InputError] = deque()
        self._read = self._let_go = 0  # bytes so far; each is counted by one thread only
        self._task: Future[None] | None = None
        self._closed = False
        self.go_on()

    def take(self) -> ShuffleBlock:
        """Return the next block.

        Raises:
            InputError: as `Reader.filling`, each time from then on.
        """
        while not self._ready:
            if self._closed:
                raise RuntimeError("blocks of a closed stream were asked for")
            if self._pool is None:
                self._work()
            else:
                self.go_on()
                assert self._task is not None
                self._task.result()
        first = self._ready[0]
        if isinstance(first, InputError):
            raise first
        self._ready.popleft()
        self.go_on()
        return first

    def let_go(self, size: int) -> None:
        """Say that an episode of so many bytes is no longer held."""
        self._let_go += size
        if size:
            self.go_on()

    def go_on(self) -> None:
        """Read on in the background, unless that is being done or there is no room."""
        if self._pool is None or self._closed or not self._has_room():
            return
        if self._task is not None:
            if not self._task.done():
                return
            self._task.result()  # an error that is no InputError surfaces here
        self._task = self._pool.submit(self._work)

    def close(self) -> None:
        """Stop reading; returns when the reader is free for others."""
        self._closed = True
        if self._task is not None:
            self._task.result()

    def _has_room(self) -> bool:
        if not self._ready:
            return True
        held = self._read + self._filled - self._let_go
        return held < self._limit and len(self._ready) < 2 and not isinstance(self._ready[-1], InputError)

    def _work(self) -> None:
        """Read episode after episode while there is room; without a pool, to the end of the block."""
        while not self._closed and self._has_room():
            if self._filling is None:
                self._filling = self._reader.filling(self._next)
            try:
                self._filled = next(self._filling)
                continue
            except StopIteration as end:
                block: ShuffleBlock = end.value
                self._read, self._filled, self._next = self._read + sum(block.sizes), 0, block.end
                self._ready.append(block)
            except InputError as error:
                self._ready.append(error)
            self._filling = None
            if self._pool is None:
                return
