"""A training run that is measured and then left: the training programs run their own loops on it.

    with TimedRun(folder, device, total_steps=3000) as run:
        train_prior(config, run, vdm, codec, clips, held_out, frames_digest="")
    run.step_seconds          the median step: reading the batch, loss, gradients, AdamW

The first step is counted: torch's flop counter sees every operation of it, also recomputed activations. It is one of
the steps that warm up. Nothing is validated, logged or saved in between.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.capacity_plan.flops import PartsCounter
from vw2_robot.runs import Run

from .machine import forget_memory, now, peak_bytes

WARM_UP = 3
FEWEST = 3
MOST = 20


class TimedRun(Run):
    """A run of a few steps.

    Args:
        path: a folder for what the loop writes at its beginning.
        device: whose work is waited for before the clock is read.
        total_steps: of the schedule; the loop is left long before.
        seconds: after which no further step begins, if there are enough.
        counts: count the operations of the first step; off for compiled code, in which the counter sees nothing.
    """

    def __init__(
        self, path: Path, device: torch.device, *, total_steps: int, seconds: float = 10.0, counts: bool = True
    ) -> None:
        self._counting = ExitStack()
        self._counter = PartsCounter({}) if counts else None
        self._device = device
        self._limit = seconds
        self._peak: int | None = None
        self.flops = 0
        """of the first step; 0 where it is not counted"""
        self.seconds: list[float] = []
        """of each step, those that warm up first"""
        self.messages: list[str] = []
        super().__init__(path, {}, stage="gpu", total_steps=total_steps, save_every=total_steps, log_every=total_steps)

    @property
    def timed(self) -> list[float]:
        """Return the seconds of each step after those that warm up."""
        return self.seconds[WARM_UP:]

    @property
    def step_seconds(self) -> float:
        """Return the median time of a step."""
        return median(self.timed)

    @property
    def first_seconds(self) -> float:
        """Return the time of the first step, in which code is compiled."""
        return self.seconds[0]

    @property
    def peak_bytes(self) -> int | None:
        """Return the largest allocation of all steps after the first; None on a CPU."""
        return self._peak

    def steps(self, stop: int | None = None, *, what: str = "") -> Iterator[int]:
        """Yield step numbers until enough steps are measured.

        Args:
            stop: not reached.
            what: not used.
        """
        begun = time.monotonic()
        while not self._has_enough(time.monotonic() - begun):
            if not self.seconds and self._counter is not None:
                self._counting.enter_context(self._counter)
            begin = now(self._device)
            yield self.start
            self.seconds.append(now(self._device) - begin)
            if len(self.seconds) == 1:
                self._counting.close()
                self.flops = 0 if self._counter is None else self._counter.total
                self._counter = None  # it may refer to activations
                forget_memory(self._device)
            self.start += 1
        self._peak = peak_bytes(self._device)

    def _has_enough(self, elapsed: float) -> bool:
        measured = len(self.seconds) - WARM_UP
        return measured >= MOST or (measured >= FEWEST and elapsed > self._limit)

    def due(self, step: int, every: int) -> bool:
        """Return False: nothing is validated or logged."""
        return False

    def checkpoint_due(self, step: int, every: int) -> bool:
        """Return False: nothing is saved."""
        return False

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Do nothing: the table is the log."""

    def log_message(self, message: str) -> None:
        """Keep a message instead of printing it into the table."""
        self.messages.append(message)

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """Do nothing: the weights are random."""

    def __enter__(self) -> TimedRun:
        return self

    def close(self) -> None:
        """Stop counting, also after an error in the first step, and release the folder."""
        self._counting.close()
        super().close()
