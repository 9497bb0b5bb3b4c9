"""Seconds from the folder of a frame cache to the first batch of clips, by the number of its episodes.

Compared with what reading an index costs by itself: its rows as JSON lines, and its columns as a Parquet file, as
LeRobot data sets keep theirs. The index is simulated: the hashes are random numbers (so no pixels are compared), and
all shards are one tiny file. Files are in memory, as on a machine that trains for a second time.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vw2_robot.data.clips import ClipSampler
from vw2_robot.data.episode_table import write_table
from vw2_robot.data.frame_cache import FORMAT_VERSIONS, FrameCache, split_episodes
from vw2_robot.errors import install_command
from vw2_robot.storage.files import write_json

from .row import SpeedRow, interleaved, not_measured, timed

EPISODES = 10**6
PER_SHARD = 50  # divides all powers of ten from 100 on
FRAMES = 12
SIDE = 4
BATCH = 16
DIGEST = "0" * 64


@contextmanager
def simulated(episodes: int) -> Iterator[tuple[Path, dict[str, NDArray[Any]]]]:
    """Yield the folder of a cache of so many episodes, and its columns of numbers; the folder is temporary."""
    number = np.arange(episodes)
    rng = np.random.default_rng(0)
    columns: dict[str, NDArray[Any]] = {
        "length": np.full(episodes, FRAMES),
        "shard": number // PER_SHARD,
        "offset": number % PER_SHARD * FRAMES,
        "hz": rng.choice([3.0, 5.0, 10.0, 15.0], episodes),
        "sha256": rng.integers(0, 256, (episodes, 32), dtype=np.uint8),
    }
    texts: dict[str, NDArray[Any]] = {"stored_sha256": np.zeros((0, 32), np.uint8)}
    for name, text in (("source", b"simulated"), ("episode_id", b"train/%07d"), ("instruction", b"do task %07d")):
        joined = b"".join(text % i for i in number.tolist()) if b"%" in text else text * episodes
        texts[name] = np.frombuffer(joined, np.uint8)
        texts[f"{name}_ends"] = (number + 1) * (len(joined) // episodes)
    shards = -(-episodes // PER_SHARD)
    plan = {
        "format_version": FORMAT_VERSIONS["decoded"],
        "height": SIDE,
        "width": SIDE,
        "aspect": "stretch",
        "description": {},
    }
    totals = {"episodes": episodes, "frames": FRAMES * episodes, "shards": shards, "skipped": [], "digest": DIGEST}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_table(folder, columns | texts, digest=DIGEST)
        write_json(folder / "plan.json", plan)
        write_json(folder / "index.json", plan | totals, sealed=True)
        np.save(folder / "shard-00000.npy", rng.integers(0, 256, (PER_SHARD * FRAMES, SIDE, SIDE, 3), dtype=np.uint8))
        for shard in range(1, shards):
            os.link(folder / "shard-00000.npy", folder / f"shard-{shard:05d}.npy")
        yield folder, columns


def first_batch(folder: Path) -> None:
    """Open a cache, hold out a tenth, and read a batch of training clips."""
    cache = FrameCache(folder, verify=False)
    train, _ = split_episodes(cache, validation_fraction=0.1, seed=0)
    ClipSampler(cache, train, num_frames=9, seed=0).batch(0, BATCH)


def growth(exponents: tuple[int, ...] = (3, 4, 5, 6)) -> dict[int, float]:
    """Return the seconds to the first batch by number of episodes: the median of five."""
    found = {}
    for exponent in exponents:
        with simulated(10**exponent) as (folder, _):
            found[10**exponent] = float(np.median([timed(lambda: first_batch(folder))() for _ in range(5)]))
    return found


def write_json_lines(path: Path, columns: dict[str, NDArray[Any]]) -> None:
    """Write one JSON object an episode."""
    rows = zip(*(columns[name].tolist() for name in ("length", "shard", "offset", "hz")), strict=True)
    digests = columns["sha256"].tobytes().hex()
    with path.open("w") as file:
        for number, (length, shard, offset, hz) in enumerate(rows):
            file.write(
                f'{{"episode_id": "train/{number:07d}", "hz": {hz}, "instruction": "do task {number:07d}", '
                f'"length": {length}, "offset": {offset}, "sha256": "{digests[64 * number : 64 * number + 64]}", '
                f'"shard": {shard}, "source": "simulated"}}\n'
            )


def speed_rows(seconds: float, *, episodes: int = EPISODES) -> list[SpeedRow]:
    """Return the rows of the speed table.

    Args:
        seconds: how long all of it may take.
        episodes: of the cache.
    """
    begin = time.perf_counter()
    name, unit = f"cache of {episodes} episodes to a batch", "s"
    json_lines = {"against": "parsing its rows as JSON", "wanted": 10.0}
    parquet = {"against": "reading its columns as Parquet", "wanted": 0.5}
    with simulated(episodes) as (folder, columns):
        rows_path = folder / "rows.jsonl"
        write_json_lines(rows_path, columns)

        def parse() -> None:
            with rows_path.open() as file:
                for line in file:
                    json.loads(line)

        ways = {"ours": timed(lambda: first_batch(folder)), "json": timed(parse)}
        if find_spec("pyarrow") is not None:
            import pyarrow
            import pyarrow.parquet

            arrays = {name: pyarrow.array(values) for name, values in columns.items() if values.ndim == 1}
            arrays["sha256"] = pyarrow.array(columns["sha256"].view("S32")[:, 0].tolist(), pyarrow.binary())
            pyarrow.parquet.write_table(pyarrow.table(arrays), folder / "rows.parquet")
            ways["parquet"] = timed(lambda: pyarrow.parquet.read_table(folder / "rows.parquet"))
        rounds = interleaved(ways, seconds=seconds - 1.5 * (time.perf_counter() - begin), min_rounds=3)
    found = [rounds.row(name, ours="ours", other="json", unit=unit, **json_lines)]
    if "parquet" in ways:
        return [*found, rounds.row(f"{name}, Parquet", ours="ours", other="parquet", unit=unit, **parquet)]
    return [*found, not_measured(f"{name}, Parquet", unit=unit, why=install_command("lerobot"), **parquet)]


if __name__ == "__main__":
    print({episodes: round(cost, 4) for episodes, cost in growth().items()})
