"""Shuffle blocks read in the background while an earlier one is in use, within a limit of bytes.

`blocks` defines what a block holds, this file decides when it is read, and `stream` takes the blocks one by one.
Reading pauses and continues at single episodes: each released episode makes room, so that reading is spread evenly and
what is held stays below the limit. No task ever waits for room, so a program that does not close its stream still ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor

from vw2_robot.errors import InputError

from .blocks import BlockReader, Position, ShuffleBlock


class ReadAhead:
    """The blocks of a reader in order, read in the background within a limit of bytes.

    Args:
        reader: must not be used elsewhere meanwhile.
        position: of the first block.
        limit: bytes that all blocks together may hold, the one in use included.
        pool: one thread for reading; if None, a block is read when `take` is called.
    """

    def __init__(self, reader: BlockReader, position: Position, *, limit: int, pool: ThreadPoolExecutor | None) -> None:
        self._reader = reader
        self._limit = limit
        self._pool = pool
        self._next = position
        self._filling: Generator[int, None, ShuffleBlock] | None = None
        self._filled = 0  # bytes of the block that is being read
        self._ready: deque[ShuffleBlock | InputError] = deque()
        # Bytes so far. Each counter is changed by one thread only, so no lock is needed.
        self._read = 0
        self._released = 0
        self._task: Future[None] | None = None
        self._closed = False
        self.read_on()

    def take(self) -> ShuffleBlock:
        """Return the next block.

        Raises:
            InputError: as `BlockReader.filling`; every later call raises it again.
        """
        while not self._ready:
            if self._closed:
                raise RuntimeError("a block was requested from a closed stream")
            if self._pool is None:
                self._work()
            else:
                self.read_on()
                assert self._task is not None
                self._task.result()
        first = self._ready[0]
        if isinstance(first, InputError):
            raise first
        self._ready.popleft()
        self.read_on()
        return first

    def release(self, size: int) -> None:
        """Count `size` bytes of an episode as no longer held."""
        self._released += size
        if size:
            self.read_on()

    def read_on(self) -> None:
        """Continue reading in the background, unless a task is running or there is no room."""
        if self._pool is None or self._closed or not self._has_room():
            return
        # At most one task at a time, so that the reader is used by one thread.
        if self._task is not None:
            if not self._task.done():
                return
            self._task.result()  # raises an unexpected error of the reading thread
        self._task = self._pool.submit(self._work)

    def close(self) -> None:
        """Stop reading; return when the reader may be used elsewhere."""
        self._closed = True
        if self._task is not None:
            self._task.result()

    def _has_room(self) -> bool:
        if not self._ready:
            return True  # the stream waits for this block, however much is held
        # At most two finished blocks wait, and nothing is read behind an error.
        held = self._read + self._filled - self._released
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
                self._read += sum(block.sizes)
                self._filled = 0
                self._next = block.end
                self._ready.append(block)
            except InputError as error:
                self._ready.append(error)
            self._filling = None
            if self._pool is None:
                return
