"""Program `vw2-record`: scripted demonstrations, confirmed by the task oracle, written as a data set.

    vw2-record env.scene=D episodes=150 tasks=basic workers=2 out=runs/demo/calvin

Recording number i shows task i modulo the number of tasks, and everything else about it follows from (seed, split, i).
So the tasks are balanced, any number of processes share the work, and a recording that was stopped, even killed, ends
in the same bytes when it is started again. How often the expert failed is printed per task; failures are not recorded.

`format`: "calvin" (a folder like the published data sets), "rlds" (TFDS, opened by `tfds.builder_from_directory`),
"video" (mp4 and captions). With `env=kuka` the demonstrations come from another robot's world, for cross-embodiment
pre-training.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vw2_robot.cli import program
from vw2_robot.config_tree import config_tree, differing_keys
from vw2_robot.data.calvin import CalvinSplit
from vw2_robot.errors import InputError, require

from .calvin import CalvinEnv
from .demonstrations import Recorder, Recording, expand_tasks
from .kuka import solved_episode
from .physics import Physics
from .record_formats import FRAMES_PER_RECORDING, Format, Output, open_output

SPLITS: tuple[CalvinSplit, ...] = ("training", "validation")
CALVIN_TARGET, KUKA_TARGET = "vw2_robot.envs.benchmark.CalvinBenchmark", "vw2_robot.envs.kuka.kuka_episodes"
WORLDS = {CALVIN_TARGET: "calvin", KUKA_TARGET: "kuka"}
KUKA_VALIDATION_START = 1_000_000
"""Index of the first validation episode in the Kuka world, far behind any training episode."""
FREE = ("workers", "out")  # keys that do not change what is recorded


@dataclass(frozen=True)
class RecordConfig:
    """The root of `vw2-record`."""

    out: str
    env: dict[str, Any]
    """the world: of a CALVIN one, `scene`, `assets` and `renderer` count; of the Kuka one, `hz` and `image_size`"""
    episodes: int = 150
    """recordings in the training split"""
    validation_episodes: int = 0
    format: Format = "calvin"
    tasks: str | list[str] = "all"
    """tasks or groups of tasks: all, basic, furniture, push, lift; the Kuka world draws its own"""
    seed: int = 0
    workers: int = 1
    """processes; does not change the result"""
    max_steps: int = 128
    """longer attempts count as failures"""
    tail_steps: int = 4
    """steps kept after success"""
    wrist_camera: bool = False
    compress_level: int = 1
    """zlib level of CALVIN frames: 0 stores, 9 is small and slow"""

    def __post_init__(self) -> None:
        """Reject what cannot work."""
        least = {"episodes": 1, "validation_episodes": 0, "seed": 0, "workers": 1, "max_steps": 1, "tail_steps": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name}={getattr(self, name)}, expected at least {low}")
        if self.max_steps + self.tail_steps > FRAMES_PER_RECORDING:
            found = self.max_steps + self.tail_steps
            raise ValueError(f"max_steps + tail_steps = {found}, expected at most {FRAMES_PER_RECORDING}")
        if not 0 <= self.compress_level <= 9:
            raise ValueError(f"compress_level={self.compress_level}, expected 0 to 9")
        if self.env.get("_target_") not in WORLDS:
            raise ValueError(
                f"env has the target {self.env.get('_target_')!r}, which demonstrates nothing; try env=calvin"
            )
        if self.world != "calvin" and self.format == "calvin":
            raise ValueError(
                f"the {self.world} world does not fit the CALVIN format; choose format=rlds or format=video"
            )

    @property
    def world(self) -> str:
        """Which world is recorded, "calvin" or "kuka"."""
        return WORLDS[self.env["_target_"]]

    def open_output(self) -> Output:
        """Where recordings go."""
        return open_output(self.format, Path(self.out), world=self.world, compress_level=self.compress_level)

    def task_names(self) -> tuple[str, ...]:
        """The tasks to demonstrate, groups expanded."""
        return expand_tasks((self.tasks,) if isinstance(self.tasks, str) else self.tasks)

    def jobs(self) -> list[tuple[CalvinSplit, int]]:
        """Every recording as (split, number)."""
        counts = {"training": self.episodes, "validation": self.validation_episodes}
        return [(split, number) for split in SPLITS for number in range(counts[split])]


def record(config: RecordConfig) -> None:
    """Record, or go on recording, what the configuration asks for; prints a table of tasks at the end.

    Raises:
        InputError: the world, the tasks or the place cannot work; nothing has been written then.
    """
    out = Path(config.out)
    _check(config)
    _claim(out, {key: value for key, value in config_tree(config).items() if key not in FREE})
    if config.format != "calvin" and out.exists():
        print(f"{out} is complete")
        return
    output = config.open_output()
    missing = [job for job in config.jobs() if not output.has(*job)]
    bar = tqdm(
        total=len(config.jobs()), initial=len(config.jobs()) - len(missing), desc="record", unit="demo", disable=None
    )
    with bar:
        for _ in _record_missing(config, missing):
            bar.update()
    splits: list[CalvinSplit] = [split for split in SPLITS if any(split == name for name, _ in config.jobs())]
    table = _attempt_table(output, splits)
    output.finish(splits)
    print(table)
    print(f"data set: {out}")


@program(RecordConfig, config_name="record")
def main(config: RecordConfig) -> None:
    """Console script `vw2-record`."""
    record(config)


def _claim(out: Path, wanted: dict[str, Any]) -> None:
    """Make the output this configuration's, or find that it is. The note beside it outlives the recording."""
    note = out.with_name(out.name + ".record.json")
    begun = out.exists() or out.with_name(out.name + ".parts").exists()
    found = json.loads(note.read_text(encoding="utf-8")) if begun and note.is_file() else None
    if found is not None and (names := differing_keys(found, wanted)):
        raise InputError(
            f"{out} holds a recording with another configuration; these keys differ: {', '.join(names)}. "
            "Use another out=, or delete this one to start over"
        )
    if found is None and begun:
        raise InputError(f"{out} exists and was not begun by vw2-record; use another out=")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = note.with_name(note.name + ".tmp")
    temporary.write_text(json.dumps(wanted, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    temporary.replace(note)


def _check(config: RecordConfig) -> None:
    """Find a misspelt task, a missing package or a broken world before the first file is written."""
    config.task_names()
    open_source(config).close()
    if config.format == "rlds":
        require("tensorflow_datasets", extra="openx")
    if config.format == "video":
        require("imageio_ffmpeg", extra="report")


def _record_missing(config: RecordConfig, jobs: list[tuple[CalvinSplit, int]]) -> Iterator[None]:
    """Record the jobs, here or in `config.workers` processes; yields after each."""
    if min(config.workers, len(jobs)) <= 1:
        station = Station(config)
        for job in jobs:
            station.record(*job)
            yield
        station.close()
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(config.workers, mp_context=context, initializer=_open_station, initargs=(config,))
    try:
        for future in as_completed([pool.submit(_record_one, *job) for job in jobs]):
            yield future.result()
    except BrokenProcessPool:
        raise InputError(
            "a recording process died; finished recordings are kept. Often this is memory: start again with fewer"
            " workers"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class Station:
    """One process's world and output."""

    def __init__(self, config: RecordConfig) -> None:
        self._source = open_source(config)
        self._output = config.open_output()

    def record(self, split: CalvinSplit, number: int) -> None:
        """Make recording `number` of a split and write it."""
        self._output.add(split, number, self._source.make(SPLITS.index(split), number))

    def close(self) -> None:
        """Free the world."""
        self._source.close()


class CalvinSource:
    """Demonstrations on a CALVIN table."""

    def __init__(self, config: RecordConfig) -> None:
        self._tasks, self._seed = config.task_names(), config.seed
        world = {key: config.env[key] for key in ("scene", "assets", "renderer") if key in config.env}
        self._env = CalvinEnv(cameras=(), reset_mode="exact", **world)
        self._recorder = Recorder(
            max_steps=config.max_steps, tail_steps=config.tail_steps, wrist_camera=config.wrist_camera
        )

    def make(self, split: int, number: int) -> Recording:
        """Recording `number` of a split; the tasks take turns."""
        task = self._tasks[number % len(self._tasks)]
        return self._recorder.record(self._env, task, seed=(self._seed, split, number))

    def close(self) -> None:
        """Free the world."""
        self._env.close()


class KukaSource:
    """Demonstrations by another robot, in another room."""

    def __init__(self, config: RecordConfig) -> None:
        self._seed = config.seed
        self._hz, self._image_size = float(config.env["hz"]), int(config.env["image_size"])
        self._physics = Physics()

    def make(self, split: int, number: int) -> Recording:
        """Recording `number` of a split; the world draws the task."""
        index = number + split * KUKA_VALIDATION_START
        episode = solved_episode(self._physics, seed=self._seed, index=index, hz=self._hz, image_size=self._image_size)
        arrays: dict[str, Any] = {"rgb_static": episode.images, "rel_actions": episode.actions}
        attempts = episode.failed_attempts + 1
        return Recording(episode.task, episode.instruction, "kuka", arrays, attempts=attempts, hz=episode.hz)

    def close(self) -> None:
        """Free the world."""
        self._physics.close()


def open_source(config: RecordConfig) -> CalvinSource | KukaSource:
    """Return the world that `config.env` names."""
    return CalvinSource(config) if config.world == "calvin" else KukaSource(config)


_station: Station | None = None


def _open_station(config: RecordConfig) -> None:
    global _station
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    _station = Station(config)


def _leave_with_parent() -> None:
    """A killed parent cannot tell its workers; they watch it and leave."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _record_one(split: CalvinSplit, number: int) -> None:
    assert _station is not None
    _station.record(split, number)


def _attempt_table(output: Output, splits: list[CalvinSplit]) -> str:
    """Recordings and failed runs per task, one line each."""
    recorded: Counter[str] = Counter()
    runs: Counter[str] = Counter()
    for split in splits:
        for task, attempts in output.attempts(split):
            recorded[task] += 1
            runs[task] += attempts
    lines = [f"{'task':<28}{'recorded':>9}{'failed runs':>13}"]
    lines += [f"{task:<28}{recorded[task]:>9}{runs[task] - recorded[task]:>13}" for task in recorded]
    total = sum(recorded.values())
    lines.append(f"{'all':<28}{total:>9}{sum(runs.values()) - total:>13}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
