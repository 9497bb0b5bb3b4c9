"""Training clips that are read in a thread while the step before trains.

The position is that after the batch that was handed out, whatever was read behind it: an interrupted run continues with
the same clips. A step or share other than the expected one, such as in a new phase, costs one reading without overlap.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import torch

from vw2_robot.data.clips import ClipBatch
from vw2_robot.data.stream import StreamBatch
from vw2_robot.distributed.batch_share import BatchShare

Batch = ClipBatch | StreamBatch
Snapshot = dict[str, Any] | None


class ClipsWithSnapshots(Protocol):
    """Training clips that can go back."""

    def batch(self, step: int, share: BatchShare) -> Batch:
        """Return this rank's clips of one training step, in the order of `share.rows`."""

    def snapshot(self) -> Snapshot:
        """Return this rank's position after the last batch."""

    def rewind(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot that was taken since the share changed last."""

    def state(self, snapshot: Snapshot = None) -> dict[str, Any] | None:
        """Return the position of all ranks at their snapshots."""

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Continue from the position that a checkpoint holds."""

    def close(self) -> None:
        """Stop threads and close files."""


class _Read(NamedTuple):
    batch: Batch
    after: Snapshot


class _Ahead(NamedTuple):
    step: int
    share: BatchShare
    task: Future[_Read]


class PrefetchedClips:
    """Clips of the next steps, read in a thread.

    Args:
        clips: must not be used elsewhere.
        ahead: batches that are read ahead, at least 1.
        pinned: whether pixels are put into pinned memory, from which a GPU fetches them while it computes.
    """

    def __init__(self, clips: ClipsWithSnapshots, *, ahead: int, pinned: bool) -> None:
        self._clips = clips
        self._ahead = ahead
        self._pinned = pinned
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._waiting: deque[_Ahead] = deque()
        self._snapshot = clips.snapshot()

    def batch(self, step: int, share: BatchShare) -> Batch:
        """Return this rank's clips of one training step, and begin to read those of the next; raises as the clips do.

        Args:
            step: number of the training step, usually one more than in the call before.
            share: of this rank.
        """
        if self._waiting and (self._waiting[0].step, self._waiting[0].share) != (step, share):
            self._discard()
        # A new share is not read in the thread, since ranks may exchange positions for it.
        read = self._waiting.popleft().task.result() if self._waiting else self._read(step, share)
        self._snapshot = read.after
        while len(self._waiting) < self._ahead:
            following = (self._waiting[-1].step if self._waiting else step) + 1
            self._waiting.append(_Ahead(following, share, self._thread.submit(self._read, following, share)))
        return read.batch

    def state(self) -> dict[str, Any] | None:
        """Return the position of all ranks after the last batch that was handed out; all must call it together."""
        return self._clips.state(self._snapshot)

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Continue from the position that a checkpoint holds."""
        self._discard()
        self._clips.restore(state)
        self._snapshot = self._clips.snapshot()

    def close(self) -> None:
        """Stop the thread, and close the clips."""
        self._thread.shutdown(cancel_futures=True)
        self._waiting.clear()
        self._clips.close()

    def _read(self, step: int, share: BatchShare) -> _Read:
        batch = self._clips.batch(step, share)
        if self._pinned:
            batch = dataclasses.replace(batch, pixels=torch.from_numpy(batch.pixels).pin_memory().numpy())
        return _Read(batch, self._clips.snapshot())

    def _discard(self) -> None:
        """Forget what was read ahead."""
        if not self._waiting:
            return
        for ahead in reversed(self._waiting):
            if not ahead.task.cancel():  # it is being read, or was
                ahead.task.exception()  # waits; an error that belongs to a batch nobody wants is not raised
        self._waiting.clear()
        self._clips.rewind(self._snapshot)
