"""Subcommand `vw2-replay check`: samples from a replay server as a trainer rank does, decodes, and reports the rate.

    vw2-replay check address=127.0.0.1:8765 rank=0 ranks=2 out=runs/check

Writes `rank-<rank>.jsonl`, one line for each window, and `rank-<rank>.json`, the position. Started again with the same
`out` it continues from that position and drops the lines after it, as a trainer drops the steps after its checkpoint.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vw2_robot.command_line import entry_points
from vw2_robot.data.replay.reverb_reader import ReverbReader
from vw2_robot.data.replay.windows import ReplayWindow, decode
from vw2_robot.errors import InputError
from vw2_robot.storage.files import atomic_write, named, read_json, sync_files, write_json
from vw2_robot.storage.locks import lock_folder

_CURE = "use another folder for out, and fill the server anew"


@dataclass(frozen=True)
class ReplayCheckConfig:
    """The root configuration of `vw2-replay check`."""

    out: str
    """folder of the two files"""
    address: str
    """host:port of the server"""
    timeout_seconds: float = 120.0
    """how long to wait for the server, for the windows of a batch, and for a checkpoint"""
    rank: int = 0
    """number of the trainer rank that this process stands for, from 0"""
    ranks: int = 1
    """ranks that sample from the server"""
    batch_size: int = 32
    """windows of a batch"""
    batches: int = 0
    """0: to the end of a queue"""
    height: int = 64
    """pixels that frames are decoded to"""
    width: int = 64
    """pixels that frames are decoded to"""
    temporal_stride: int = 4
    """frames of a latent step"""
    pause_seconds: float = 0.0
    """between batches, in place of a training step"""
    checkpoint_batches: int = 0
    """batches between two checkpoints of the server, each followed by the position; 0: the position after each batch"""

    def __post_init__(self) -> None:
        if (
            not 0 <= self.rank < self.ranks
            or min(self.batches, self.checkpoint_batches) < 0
            or not self.pause_seconds >= 0
        ):
            raise ValueError(
                f"rank ({self.rank}) must lie below ranks ({self.ranks}); batches ({self.batches}), pause_seconds "
                f"({self.pause_seconds}) and checkpoint_batches ({self.checkpoint_batches}) must not be negative"
            )
        if min(self.batch_size, self.height, self.width, self.temporal_stride) < 1 or not self.timeout_seconds > 0:
            raise ValueError(
                f"batch_size ({self.batch_size}), height ({self.height}), width ({self.width}), temporal_stride "
                f"({self.temporal_stride}) and timeout_seconds ({self.timeout_seconds}) must be positive"
            )


def check(config: ReplayCheckConfig) -> None:
    """Sample `batches` batches, or all to the end of the queue, and print how many windows came and how fast.

    Raises:
        InputError: the files in `out` are damaged, or the server has other windows than those it had.
    """
    out = Path(config.out)
    log = out / f"rank-{config.rank}.jsonl"
    position = out / f"rank-{config.rank}.json"
    begin = time.monotonic()
    sampled = 0
    batches = 0
    with (
        lock_folder(out / f"rank-{config.rank}", what="a check of a replay", beside=True),
        contextlib.closing(
            ReverbReader(config.address, rank=config.rank, ranks=config.ranks, timeout_seconds=config.timeout_seconds)
        ) as replay,
    ):
        stored = read_json(position, cure=_CURE, sealed=True) if position.exists() else None
        # Before the log is cut: a position that does not fit this server leaves the log as it was.
        if stored is not None:
            replay.restore(stored["replay"])
        lines, digest = cut_log(log, stored)
        # Until a batch is empty, which is the end of the queue.
        while not config.batches or batches < config.batches:
            windows = replay.sample(config.batch_size, timeout_seconds=config.timeout_seconds)
            # The pixels are dropped: decoding is part of the measured rate, as it is of a trainer's.
            if windows:
                decode(windows, temporal_stride=config.temporal_stride, height=config.height, width=config.width)
            new = "".join(map(log_line, windows)).encode()
            # Lines before the position: after a kill the log may be longer than counted, never shorter.
            with named(log), log.open("ab") as file:
                file.write(new)
            digest.update(new)
            sampled += len(windows)
            lines += len(windows)
            batches += 1
            # At the end of the queue too, so that a check that is started again finds nothing left to sample.
            if not windows or batches % (config.checkpoint_batches or 1) == 0:
                # As in a trainer's checkpoint: first the server stores its windows, then the position is written.
                if config.checkpoint_batches:
                    replay.checkpoint(timeout_seconds=config.timeout_seconds)
                sync_files([log])  # before the position, which counts its lines
                facts = {"replay": replay.state(), "lines": lines, "sha256_of_lines": digest.hexdigest()}
                write_json(position, facts, sealed=True)
            if not windows:
                break
            time.sleep(config.pause_seconds)
        ended = "all that there was" if replay.finished else "more to come"
    seconds = time.monotonic() - begin
    print(f"rank {config.rank}: {sampled} windows in {seconds:.1f} s, {sampled / seconds:.1f}/s; {ended}", flush=True)


def cut_log(log: Path, stored: Mapping[str, Any] | None) -> tuple[int, Any]:
    """Cut the log back to the lines that the position counts, and return their number and running SHA-256.

    Args:
        log: one line for each window.
        stored: the position, with its number of lines and their SHA-256; None cuts it to nothing.

    Raises:
        InputError: the lines are not those that were written.
    """
    # The position is the truth: lines after it are of windows that will be sampled again.
    lines = 0 if stored is None else stored["lines"]
    kept = log.read_bytes().splitlines(keepends=True)[:lines] if log.is_file() else []
    digest = hashlib.sha256(b"".join(kept))
    if stored is not None and (len(kept), digest.hexdigest()) != (lines, stored["sha256_of_lines"]):
        raise InputError(f"{log} is damaged: its first {lines} lines are not those that were written; {_CURE}")
    with atomic_write(log) as temporary:
        temporary.write_bytes(b"".join(kept))
    return lines, digest


def log_line(window: ReplayWindow) -> str:
    """Return the line of the log that identifies a window."""
    values = {name: getattr(window, name) for name in ("source", "episode_id", "start", "epoch", "instruction")}
    return json.dumps(values, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    entry_points.replay_check.main()
