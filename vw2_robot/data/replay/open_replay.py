"""The choice of a replay engine by configuration: `replay=memory` or `replay=reverb`.

    with open_replay(config.replay, rank=rank, ranks=ranks, seed=config.seed, fill=fill) as replay:
        windows = replay.sample(32, timeout_seconds=config.replay.timeout_seconds)
        batch = decode(windows, temporal_stride=4, height=64, width=64)

`fill(writer)` puts this rank's share of the data into a memory replay, in a thread; a Reverb server is filled by ingest
processes (`vw2-replay fill`) and needs none.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vw2_robot.storage.locks import lock_folder

from .memory_replay import MemoryReplay, fed_by
from .windows import Mode, Replay, ReplayWriter


@dataclass(frozen=True)
class ReplayConfig:
    """Engine of the replay and its settings."""

    engine: Literal["memory", "reverb"] = "memory"
    """memory: in the trainer's process; reverb: on a server"""
    mode: Mode = "queue"
    """memory: see `vw2_robot.data.replay.windows`; a Reverb server has its own"""
    max_bytes: int = 2**30
    """memory: compressed frames held at most"""
    path: str | None = None
    """memory: folder for checkpoints of one run, one for each rank below it"""
    address: str | None = None
    """reverb: host:port of the server"""
    timeout_seconds: float = 120.0
    """how long a rank waits for windows; longer than ingest processes need to start"""
    checkpoint_timeout_seconds: float = 600.0
    """how long a rank waits until the replay has stored its windows"""

    def __post_init__(self) -> None:
        if self.max_bytes < 1 or not min(self.timeout_seconds, self.checkpoint_timeout_seconds) > 0:
            raise ValueError(
                f"replay.max_bytes ({self.max_bytes}), replay.timeout_seconds ({self.timeout_seconds}) and "
                f"replay.checkpoint_timeout_seconds ({self.checkpoint_timeout_seconds}) must be positive"
            )
        if (self.engine == "reverb") != (self.address is not None):
            raise ValueError(
                f"replay.address={self.address} with replay.engine={self.engine}: reverb needs the host:port of a "
                "server, memory has none"
            )


@contextmanager
def open_replay(
    config: ReplayConfig,
    *,
    rank: int,
    ranks: int,
    seed: int,
    fill: Callable[[ReplayWriter], object],
    state: Mapping[str, Any] | None = None,
) -> Iterator[Replay]:
    """Open the replay of one trainer rank, and close it afterwards.

    Args:
        config: engine and settings.
        rank: of this process.
        ranks: how many ranks train together.
        seed: of the order of samples.
        fill: fills a memory replay; called in a thread, again after each `restore`.
        state: `Replay.state` of an earlier run, to continue from.

    Raises:
        InputError: the server does not fit, a checkpoint is damaged, or its folder is in use.
        ReplayTimeout: no server was found in time.
    """
    if config.engine == "reverb":
        from .reverb_reader import ReverbReader

        assert config.address is not None
        reader = ReverbReader(config.address, rank=rank, ranks=ranks, timeout_seconds=config.timeout_seconds)
        try:
            if state is not None:
                reader.restore(state)
            yield reader
        finally:
            reader.close()
        return
    path = Path(config.path) / f"rank-{rank}" if config.path is not None else None
    owner = nullcontext() if path is None else lock_folder(path, what="training from a replay")
    # The thread that fills it waits without limit, since training may pause; it ends when the replay is closed.
    forever = threading.TIMEOUT_MAX
    with owner:
        # Ranks hold different windows anyway; a seed for each keeps their orders independent too.
        memory = MemoryReplay(
            mode=config.mode, max_bytes=config.max_bytes, seed=seed + rank, path=path, timeout_seconds=forever
        )
        if state is not None:
            # Before the thread starts: the first that it asks for is the progress.
            memory.restore(state)
        with fed_by(memory, lambda: fill(memory)):
            yield memory
