"""Program `vw2-record`: scripted demonstrations, confirmed by the task oracle, written as a data set.

    vw2-record env.scene=D episodes=150 tasks=basic workers=2 out=runs/demo/calvin

Recording number i shows task i modulo the number of tasks, and everything else about it follows from (seed, split, i).
So the tasks are balanced, any number of processes share the work, and a recording that was stopped, even killed, ends
in the same bytes when it is started again. How often the expert failed is printed per task; failures are not recorded.

`play=5` records stretches of play instead: five tasks one after another without a reset, each of them labelled. The
first task of each recording takes its turn, the others are what is feasible then.

`format`: "calvin" (a folder like the published data sets), "rlds" (TFDS, opened by `tfds.builder_from_directory`),
"video" (mp4 and captions). With `env=arms` the demonstrations come from other robots' world, for cross-embodiment
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

from vw2_robot.cli import program
from vw2_robot.config_tree import config_tree, differing_keys
from vw2_robot.data.calvin import CalvinSplit
from vw2_robot.data.calvin_writer import Label
from vw2_robot.errors import InputError, require

from .arms import check_arms, solved_episode
from .calvin import CalvinEnv
from .demonstrations import Recorder, Recording, expand_tasks
from .physics import Physics
from .record_environment import environment_yaml
from .record_formats import MAX_FRAME, CalvinOutput, Format, Output, frames_per_recording, parts_output
from .record_progress import show_progress
from .start_states import PAUSE_STEPS

SPLITS: tuple[CalvinSplit, ...] = ("training", "validation")
CALVIN_TARGET, ARMS_TARGET = "vw2_robot.envs.benchmark.CalvinBenchmark", "vw2_robot.envs.arms.arms_episodes"
WORLD_DEFAULTS = {"scene": "D", "assets": "builtin", "renderer": "layered"}
WORLDS = {CALVIN_TARGET: "calvin", ARMS_TARGET: "arms"}
ARMS_VALIDATION_START = 1_000_000
"""Index of the first validation episode in the other world, far behind any training episode."""
FREE = ("workers", "out")  # keys that do not change what is recorded


@dataclass(frozen=True)
class RecordConfig:
    """The root of `vw2-record`."""

    out: str
    env: dict[str, Any]
    """the world: of CALVIN, `scene`, `assets` and `renderer` count; of the other one, `hz`, `image_size` and `arms`"""
    episodes: int = 150
    """recordings in the training split"""
    validation_episodes: int = 0
    format: Format = "calvin"
    tasks: str | list[str] = "all"
    """tasks or groups of tasks: all, basic, furniture, push, lift; the other world draws its own"""
    seed: int = 0
    workers: int = 1
    """processes; does not change the result"""
    max_steps: int = 128
    """longer attempts count as failures"""
    tail_steps: int = 4
    """steps kept after success"""
    play: int = 1
    """tasks in a row, without a reset, in one recording"""
    max_window: int | None = None
    """longest labelled window in time steps, 64 in the published data sets; null: the whole demonstration"""
    bumps: float = 0.0
    """chance of each step to be the first of a push against the arm; `commanded_actions` stay those of the expert"""
    mistakes: float = 0.0
    """share of recordings that begin where the expert has just tried in vain, misjudging where things are"""
    wrist_camera: bool = False
    depth: bool = False
    """depth in metres of every camera; only in the CALVIN format"""
    compress_level: int = 1
    """zlib level of CALVIN frames: 0 stores, 9 is small and slow"""

    def __post_init__(self) -> None:
        """Reject what cannot work."""
        least = {"episodes": 1, "seed": 0, "workers": 1, "max_steps": 1, "play": 1, "max_window": 1}
        for name in (*least, "validation_episodes", "tail_steps"):
            value, low = getattr(self, name), least.get(name, 0)
            if value is not None and value < low:
                raise ValueError(f"{name}={value}, expected at least {low}")
        most = MAX_FRAME // self.spacing
        if self.format == "calvin" and max(self.episodes, self.validation_episodes) > most:
            raise ValueError(
                f"episodes={self.episodes}, validation_episodes={self.validation_episodes}: the seven-digit frame"
                f" numbers of the CALVIN format have room for {most} recordings of {self.spacing}; use several folders"
            )
        for name in ("bumps", "mistakes"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}, expected a chance from 0 to below 1")
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
        if self.depth and self.format != "calvin":
            raise ValueError(f"format={self.format} holds no depth; leave out depth=true or choose format=calvin")
        if self.world != "calvin" and (
            self.play > 1 or self.max_window is not None or self.bumps > 0 or self.mistakes > 0
        ):
            raise ValueError(f"the {self.world} world knows no play, max_window, bumps or mistakes; leave them out")

    @property
    def world(self) -> str:
        """Which world is recorded, "calvin" or "arms"."""
        return WORLDS[self.env["_target_"]]

    @property
    def spacing(self) -> int:
        """Frame numbers set aside for each recording in the CALVIN format."""
        pause = PAUSE_STEPS[1] - 1
        return frames_per_recording(self.play * (self.max_steps + self.tail_steps + pause) - pause)

    def open_output(self) -> Output:
        """Where recordings go."""
        if self.format != "calvin":
            return parts_output(self.format, Path(self.out), world=self.world)
        world = {key: str(self.env.get(key, value)) for key, value in WORLD_DEFAULTS.items()}
        cameras = ("static", "gripper") if self.wrist_camera else ("static",)
        return CalvinOutput(
            Path(self.out),
            compress_level=self.compress_level,
            spacing=self.spacing,
            environment=environment_yaml(cameras=cameras, **world),
        )

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
    total = len(config.jobs())
    already = total - len(missing)
    if already:
        print(f"{already} of {total} recordings are already there")
    show_progress(_record_missing(config, missing), total=total, already=already, unit="recording")
    splits: list[CalvinSplit] = [split for split in SPLITS if any(split == name for name, _ in config.jobs())]
    table = _task_table(output, splits)
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
        world = {key: config.env.get(key, value) for key, value in WORLD_DEFAULTS.items()}
        self._env = CalvinEnv(cameras=(), reset_mode="exact", **world)
        self._recorder = Recorder(
            max_steps=config.max_steps,
            tail_steps=config.tail_steps,
            play=config.play,
            max_window=config.max_window,
            wrist_camera=config.wrist_camera,
            depth=config.depth,
            bumps=config.bumps,
            mistakes=config.mistakes,
        )

    def make(self, split: int, number: int) -> Recording:
        """Recording `number` of a split; the tasks take turns to be the first."""
        task = self._tasks[number % len(self._tasks)]
        return self._recorder.record(self._env, task, seed=(self._seed, split, number), pool=self._tasks)

    def close(self) -> None:
        """Free the world."""
        self._env.close()


class ArmsSource:
    """Demonstrations by other robots, in another room."""

    def __init__(self, config: RecordConfig) -> None:
        self._seed = config.seed
        self._hz, self._image_size = float(config.env["hz"]), int(config.env["image_size"])
        self._arms = tuple(config.env["arms"])
        check_arms(self._arms)
        self._physics = Physics()

    def make(self, split: int, number: int) -> Recording:
        """Recording `number` of a split; the world draws the task."""
        index = number + split * ARMS_VALIDATION_START
        episode = solved_episode(
            self._physics, seed=self._seed, index=index, hz=self._hz, image_size=self._image_size, arms=self._arms
        )
        arrays: dict[str, Any] = {"rgb_static": episode.images, "commanded_actions": episode.actions}
        label = Label(episode.task, episode.instruction, 0, len(episode.images) - 1)
        return Recording("arms", (label,), arrays, failed=(episode.task,) * episode.failed_attempts, hz=episode.hz)

    def close(self) -> None:
        """Free the world."""
        self._physics.close()


def open_source(config: RecordConfig) -> CalvinSource | ArmsSource:
    """Return the world that `config.env` names."""
    return CalvinSource(config) if config.world == "calvin" else ArmsSource(config)


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


def _task_table(output: Output, splits: list[CalvinSplit]) -> str:
    """Recorded and failed runs per task, one line each."""
    recorded: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    for split in splits:
        for outcome in output.outcomes(split):
            recorded.update(outcome.tasks)
            failed.update(outcome.failed)
    lines = [f"{'task':<28}{'recorded':>9}{'failed runs':>13}"]
    lines += [f"{task:<28}{recorded[task]:>9}{failed[task]:>13}" for task in {**recorded, **failed}]
    lines.append(f"{'all':<28}{recorded.total():>9}{failed.total():>13}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
