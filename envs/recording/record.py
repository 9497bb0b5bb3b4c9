"""Program `vw2-record`: scripted demonstrations, confirmed by the task oracle, written as a data set.

    vw2-record env.scene=D episodes=150 tasks=basic workers=2 out=runs/demo/calvin

Recording number i shows task i modulo the number of tasks, and everything else about it follows from (seed, split, i).
So the tasks are balanced, any number of processes share the work, and a recording that was stopped, even killed, ends
in the same bytes when it is started again. How often the expert failed is printed per task; failures are not recorded.

`play=5` records stretches of play instead: five tasks one after another without a reset, each of them labeled. The
first task of each recording takes its turn, the others are what is feasible then.

`env.scene=ABC` records a third of each split in each of three scenes, as in the benchmark's ABC→D.

`format`: "calvin" (a folder like the published data sets), "rlds" (TFDS, opened by `tfds.builder_from_directory`),
"video" (mp4 and captions). With `env=arms` the demonstrations come from other robots' world, for cross-embodiment
pre-training.
"""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from vw2_robot.binding import bind_folder
from vw2_robot.command_line.config_tree import config_tree
from vw2_robot.command_line.program import program
from vw2_robot.data.sources.calvin import CalvinSplit
from vw2_robot.errors import InputError, require
from vw2_robot.storage.locks import lock_folder
from vw2_robot.worker_pool import WorkerPool

from .config import SPLITS, RecordConfig, RecordingJob
from .formats import Output, parts_folder
from .progress import show_progress
from .sources import open_source

FREE = ("workers", "out")  # keys that do not change what is recorded


def record(config: RecordConfig) -> None:
    """Record, or go on recording, what the configuration asks for; prints a table of tasks at the end.

    Raises:
        InputError: the world, the tasks or the place cannot work; nothing has been written then.
    """
    out = Path(config.out).resolve()
    if not out.name:
        raise InputError(f"out={config.out} is the root of all folders; give a folder below it")
    _check(config)
    with lock_folder(out, what="a recording", beside=True):
        _claim(out, {key: value for key, value in config_tree(config).items() if key not in FREE})
        _record(config)


def _record(config: RecordConfig) -> None:
    output = config.open_output()
    if output.is_complete():
        print(f"{config.out} is complete")
        return
    missing = [job for job in config.jobs() if not output.has(*job)]
    total = len(config.jobs())
    already = total - len(missing)
    for split, scenes in config.scenes_left_out().items():
        print(f"{split}: no recording of scene {', '.join(scenes)}, since there are fewer recordings than scenes")
    if already:
        print(f"{already} of {total} recordings are already there")
    with closing(_record_missing(config, missing)) as finished:
        show_progress(finished, total=total, already=already, unit="recording")
    splits: list[CalvinSplit] = [split for split in SPLITS if any(split == name for name, _ in config.jobs())]
    table = _task_table(output, splits)
    output.finish(splits)
    print(table)
    print(f"data set: {config.out}")


@program(RecordConfig, config_name="record", extra="calvin")
def main(config: RecordConfig) -> None:
    """Console script `vw2-record`."""
    record(config)


def _claim(out: Path, wanted: dict[str, Any]) -> None:
    """Make the output this configuration's, or find that it is. The note beside it outlives the recording."""
    note = out.with_name(out.name + ".record.json")
    begun = out.exists() or parts_folder(out).exists()
    if begun and not note.is_file():
        raise InputError(f"{out} exists and was not begun by vw2-record; use another out=")
    bind_folder(
        out,
        wanted,
        file=note,
        holds="a recording with another configuration",
        advice="Use another out=, or delete this one to start over",
        begun=begun,
    )


def _check(config: RecordConfig) -> None:
    """Find a misspelt task, a missing package or a broken world before the first file is written."""
    config.task_names()
    open_source(config).close()
    if config.format == "rlds":
        require("tensorflow_datasets", extra="openx")
    if config.format == "video":
        require("imageio_ffmpeg", extra="report")


def _record_missing(config: RecordConfig, jobs: list[RecordingJob]) -> Generator[None]:
    """Record the jobs, here or in `config.workers` processes; yields after each."""
    workers = min(config.workers, len(jobs))
    if workers <= 1:
        with open_station(config) as make:
            for job in jobs:
                yield make(job)
        return
    pool: WorkerPool[RecordingJob, None] = WorkerPool(functools.partial(open_station, config), name="recording process")
    yield from pool.run(jobs, workers=workers)


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


@contextmanager
def open_station(config: RecordConfig) -> Iterator[Callable[[RecordingJob], None]]:
    """A station as the function that makes a recording."""
    station = Station(config)
    try:
        yield lambda job: station.record(*job)
    finally:
        station.close()


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
