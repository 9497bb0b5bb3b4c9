"""Draw from a replay server as a trainer rank does, decode, and count: is it filled, how fast, does everything arrive?

    vw2-replay-draw address=127.0.0.1:8765 rank=0 ranks=2 out=runs/draw

Leaves `rank-<rank>.jsonl`, one line for each window, and `rank-<rank>.json`, the position. Started again with the same
`out` it goes on from that position and forgets the lines after it, as a trainer forgets the steps after its checkpoint.
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

from vw2_robot.command_line.program import program
from vw2_robot.data.replay.reverb_reader import ReverbReader
from vw2_robot.data.replay.windows import ReplayWindow, decode
from vw2_robot.errors import InputError
from vw2_robot.storage.files import atomic_write, named, read_json, sync_files, write_json
from vw2_robot.storage.locks import lock_folder

_CURE = "use another folder for out, and fill the server anew"


@dataclass(frozen=True)
class ReplayDrawConfig:
    """Everything `vw2-replay-draw` can be told."""

    out: str
    """file of the digest of what was sampled"""
    address: str
    """host:port of the server"""
    timeout_seconds: float = 120.0
    """how long to wait for the server, for the windows of a batch, and for a checkpoint"""
    rank: int = 0
    """this trainer's number"""
    ranks: int = 1
    """trainers that share the replay"""
    batch_size: int = 32
    """windows per sample"""
    batches: int = 0
    """0: to the end of a queue"""
    height: int = 64
    """of a decoded frame, pixels"""
    width: int = 64
    """of a decoded frame, pixels"""
    temporal_stride: int = 4
    """frames per latent step"""
    pause_seconds: float = 0.0
    """between batches, for the time that a training step takes"""
    checkpoint_batches: int = 0
    """store the replay, then the position, after so many batches; 0 stores the position alone, after each"""

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
                f"batch ({self.batch_size}), height ({self.height}), width ({self.width}), temporal_stride "
                f"({self.temporal_stride}) and "
                f"timeout_seconds ({self.timeout_seconds}) must be positive"
            )


def draw(config: ReplayDrawConfig) -> None:
    """Draw batches to the end of the queue, or as many as asked for."""
    out = Path(config.out)
    log, position = out / f"rank-{config.rank}.jsonl", out / f"rank-{config.rank}.json"
    begin, drawn, batches = time.monotonic(), 0, 0
    with (
        lock_folder(out / f"rank-{config.rank}", what="a draw", beside=True),
        contextlib.closing(
            ReverbReader(config.address, rank=config.rank, ranks=config.ranks, timeout_seconds=config.timeout_seconds)
        ) as replay,
    ):
        stored = read_json(position, cure=_CURE, sealed=True) if position.exists() else None
        if stored is not None:
            replay.restore(stored["replay"])
        lines, digest = _forget_after(log, stored)
        while not config.batches or batches < config.batches:
            windows = replay.sample(config.batch_size, timeout_seconds=config.timeout_seconds)
            _use(windows, config)
            new = "".join(map(_line, windows)).encode()
            with named(log), log.open("ab") as file:
                file.write(new)
            digest.update(new)
            drawn, batches, lines = drawn + len(windows), batches + 1, lines + len(windows)
            if not windows or batches % (config.checkpoint_batches or 1) == 0:
                if config.checkpoint_batches:
                    replay.checkpoint(timeout_seconds=config.timeout_seconds)
                sync_files([log])
                facts = {"replay": replay.state(), "lines": lines, "sha256_of_lines": digest.hexdigest()}
                write_json(position, facts, sealed=True)
            if not windows:
                break
            time.sleep(config.pause_seconds)
        ended = "all that there was" if replay.finished else "more to come"
    seconds = time.monotonic() - begin
    print(f"rank {config.rank}: {drawn} windows in {seconds:.1f} s, {drawn / seconds:.1f}/s; {ended}", flush=True)


def _use(windows: list[ReplayWindow], config: ReplayDrawConfig) -> None:
    if windows:
        decode(windows, temporal_stride=config.temporal_stride, height=config.height, width=config.width)


def _forget_after(log: Path, stored: Mapping[str, Any] | None) -> tuple[int, Any]:
    """Cut the log back to the lines that the position counts; return their number and running SHA-256."""
    lines = 0 if stored is None else stored["lines"]
    kept = log.read_bytes().splitlines(keepends=True)[:lines] if log.is_file() else []
    digest = hashlib.sha256(b"".join(kept))
    if stored is not None and (len(kept), digest.hexdigest()) != (lines, stored["sha256_of_lines"]):
        raise InputError(f"{log} is damaged: its first {lines} lines are not those that were written; {_CURE}")
    with atomic_write(log) as temporary:
        temporary.write_bytes(b"".join(kept))
    return lines, digest


def _line(window: ReplayWindow) -> str:
    values = {name: getattr(window, name) for name in ("source", "episode_id", "start", "epoch", "instruction")}
    return json.dumps(values, ensure_ascii=False) + "\n"


main = program(ReplayDrawConfig, config_name="replay_draw")(draw)

if __name__ == "__main__":
    main()
