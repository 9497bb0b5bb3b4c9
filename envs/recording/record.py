"""Program `vw2-record`: scripted demonstrations, confirmed by the task oracle, written as a data set.

    vw2-record env.scene=D episodes=150 tasks=basic workers=2 out=runs/demo/calvin

Recording number i begins with task i modulo the number of tasks, and everything else about it is a function of (seed,
split, i). The tasks are therefore balanced, any number of processes can share the work, and a recording that was
stopped, even killed, ends with the same bytes when it is started again. The number of failed attempts is printed per
task; they are not recorded.

`play=5` records play data instead: five tasks in a row without a reset, each of them labeled. The first tasks of the
recordings take turns; the others are what is feasible then.

`policy=DIR` lets a trained policy begin half of the tasks; where it has not solved one after 8 to 96 steps, the expert
takes over.

`env.scene=ABC` records a third of each split in each of three scenes, as in the benchmark's ABC→D.

README.md of the data set is its card: content, configuration, use, limits.

`format`: "calvin" (a folder like the published data sets), "rlds" (TFDS, opened by `tfds.builder_from_directory`),
"video" (mp4 and captions). With `env=other_robots` the demonstrations come from three other robots, for
cross-embodiment pre-training. With `env=rerendered` they are the windows of recordings that exist, `env.data`, each
rendered again in `env.variants` sampled appearances: other materials, light, camera, objects and robots.

With `env=craft format=video` a hand or an arm builds with blocks for a minute and more: video without actions, with the
frames at which its seven key steps are done.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from vw2_robot.command_line import entry_points
from vw2_robot.command_line.config_tree import config_tree
from vw2_robot.data.sources.calvin import CalvinSplit
from vw2_robot.errors import InputError, require
from vw2_robot.storage.binding import bind_folder
from vw2_robot.storage.locks import lock_folder
from vw2_robot.worker_pool import WorkerPool

from .config import SPLITS, RecordConfig, RecordingJob
from .dataset_card import write_card
from .formats import parts_folder
from .progress import show_progress
from .sources import CalvinDemonstrations, open_source

FREE = ("workers", "out", "policy")  # keys that do not change what is recorded; of a policy its weights count
LATER = {
    "ways": "single",
    "near_starts": 0.0,
    "random_starts": 0.0,
    "appearance": "scene",
    "camera_sway": 0,
    "policy_share": 0.5,
    "policy_steps": [8, 96],
}
"""With these values a recording of an earlier release is continued."""


def record(config: RecordConfig) -> None:
    """Make, or continue, the recordings of a configuration; prints a table of tasks at the end.

    Raises:
        InputError: environment, tasks or output cannot work; nothing has been written then.
    """
    out = Path(config.out).resolve()
    if not out.name:
        raise InputError(f"out={config.out} is the root of all folders; give a folder below it")
    # Find a misspelled task, a missing package or a broken environment before the first file is written.
    config.task_names()
    with closing(open_source(config)) as source:
        policy_hash = source.policy_hash if isinstance(source, CalvinDemonstrations) else None
    if config.format == "rlds":
        require("tensorflow_datasets", extra="openx")
    if config.format == "video":
        require("imageio_ffmpeg", extra="report")
    # One recording at a time: two programs with the same output would overwrite each other.
    with lock_folder(out, what="a recording", beside=True):
        tree = config_tree(config)
        wanted = {key: tree[key] for key in tree if key not in FREE and tree[key] != LATER.get(key, ...)}
        made_with = wanted if policy_hash is None else {**wanted, "policy_hash": policy_hash}
        bind_output(out, made_with)
        _record(config, made_with)


def _record(config: RecordConfig, made_with: Mapping[str, Any]) -> None:
    """Make the missing recordings, then complete the data set.

    Args:
        config: of the recording.
        made_with: what of it decides the result, for the card.
    """
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
    # The table is made before `finish`, which may remove the parts that it counts.
    recorded: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    for split in splits:
        for outcome in output.outcomes(split):
            recorded.update(outcome.tasks)
            failed.update(outcome.failed)
    output.finish(splits)
    write_card(Path(config.out), config, made_with=made_with, recorded=recorded, failed=failed)
    print(f"{'task':<28}{'recorded':>9}{'failed runs':>13}")
    for task in {**recorded, **failed}:
        print(f"{task:<28}{recorded[task]:>9}{failed[task]:>13}")
    print(f"{'all':<28}{recorded.total():>9}{failed.total():>13}")
    print(f"data set: {config.out}")


def bind_output(out: Path, wanted: dict[str, Any]) -> None:
    """Store the configuration beside the output, or check that the same one is stored there already.

    Args:
        out: the output.
        wanted: the configuration, without keys that do not change what is recorded.

    Raises:
        InputError: the output belongs to another configuration, or to another program.
    """
    note = out.with_name(out.name + ".record.json")
    # A container does not exist before its end; its parts do.
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


def _record_missing(config: RecordConfig, jobs: list[RecordingJob]) -> Generator[None]:
    """Make recordings, here or in `config.workers` processes; yields after each."""
    workers = min(config.workers, len(jobs))
    # In this process: no start-up of workers, and errors have a plain traceback.
    if workers <= 1:
        with open_worker(config) as make:
            for job in jobs:
                yield make(job)
        return
    pool: WorkerPool[RecordingJob, None] = WorkerPool(functools.partial(open_worker, config), name="recording process")
    yield from pool.run(jobs, workers=workers)


class RecordingWorker:
    """The environment and the output of one process."""

    def __init__(self, config: RecordConfig) -> None:
        self._source = open_source(config)
        self._output = config.open_output()

    def record(self, split: CalvinSplit, number: int) -> None:
        """Make recording `number` of a split and write it."""
        self._output.add(split, number, self._source.make(SPLITS.index(split), number))

    def close(self) -> None:
        """Free the simulator."""
        self._source.close()


@contextmanager
def open_worker(config: RecordConfig) -> Iterator[Callable[[RecordingJob], None]]:
    """Open a `RecordingWorker` and yield the function that makes a recording."""
    worker = RecordingWorker(config)
    try:
        yield lambda job: worker.record(*job)
    finally:
        worker.close()


if __name__ == "__main__":
    entry_points.record.main()
