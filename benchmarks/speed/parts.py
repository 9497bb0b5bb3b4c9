"""The parts of `make bench`, in the order in which they run: a module each, with the seconds that it may take.

A module has a function `speed_rows(seconds) -> list[SpeedRow]`. It runs in a process of its own.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """One module, and its share of the time."""

    module: str
    seconds: float


PARTS = (
    Part("benchmarks.clip_loading", 90),
    Part("benchmarks.speed.cache_opening", 30),
    Part("benchmarks.speed.encoding", 90),
    Part("benchmarks.environment_steps", 60),
    Part("benchmarks.speed.chains", 120),
    Part("benchmarks.decode_latency", 90),
    Part("benchmarks.speed.serving", 30),
    Part("benchmarks.speed.training_steps", 120),
    Part("benchmarks.speed.start_up", 30),
    Part("benchmarks.speed.stage_memory", 120),
)
