"""Search for data sets below a folder: format, version, splits, rate and size, from their descriptions only.

No episode is read and TensorFlow is not imported, so it is fast for data sets of any size. Checked are: missing files
that a description counts, versions that cannot be read, and labels of missing time steps.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from vw2_robot.data.sources.calvin import CalvinDataset, CalvinSplit, frame_name, read_spans
from vw2_robot.data.sources.folder_files import files_below
from vw2_robot.data.sources.formats import Format, recognize
from vw2_robot.data.sources.lerobot_dataset import describe_lerobot
from vw2_robot.data.sources.openx import known_source
from vw2_robot.data.sources.pickled_openx import PICKLE_ENDINGS
from vw2_robot.data.sources.recorded_robot import read_robot
from vw2_robot.data.sources.rlds_builder import COPY_AGAIN, DESCRIPTION
from vw2_robot.data.sources.video_files import describe_video
from vw2_robot.data.sources.video_folder import VideoFolderSource, has_videos
from vw2_robot.errors import InputError, MissingExtraError
from vw2_robot.storage.files import read_json, verify

OUR_RUNS = ("results.jsonl", "metrics.jsonl")
LIVE_EPISODES = "episodes.jsonl"
"""Files of rollouts and training runs: videos in their folders are not data sets."""


@dataclass(frozen=True)
class DataSet:
    """A data set that was found. `hz` and `num_bytes` are None if not known.

    `splits` is name -> number of episodes (None: not known), `problems` are reasons why it cannot be read, `note` is
    advice for the user.
    """

    path: Path
    format: Format
    name: str
    version: str = "-"
    splits: Mapping[str, int | None] = field(default_factory=dict)
    hz: float | None = None
    num_bytes: int | None = None
    note: str = ""
    problems: tuple[str, ...] = ()


def find_data_sets(roots: Sequence[Path], *, depth: int) -> list[DataSet]:
    """Return the data sets in and below some folders, without those inside other data sets.

    Args:
        roots: the folders.
        depth: levels of folders below them.

    Raises:
        InputError: a root is not a folder.
    """
    found: dict[Path, DataSet] = {}
    for root in roots:
        if not root.is_dir():
            raise InputError(f"{root} is not a folder; give data.path=... the folder that holds your data sets")
        for folder, kind in _candidates(root, depth):
            # Roots may overlap: a data set counts once, under its resolved path.
            found.setdefault(folder.resolve(), describe(folder, kind))
    return list(found.values())


def describe(path: Path, kind: Format) -> DataSet:
    """Return the description of one data set; an error while reading it becomes its problem."""
    try:
        return _DESCRIBE[kind](path)
    except (InputError, MissingExtraError, OSError) as error:
        # The first line says what is wrong; some messages go on with the expected layout.
        return DataSet(path, kind, path.resolve().name, problems=(str(error).splitlines()[0],))


def _candidates(folder: Path, depth: int) -> Iterator[tuple[Path, Format]]:
    """Yield the folders of data sets with their format."""
    if any((folder / name).is_file() for name in OUR_RUNS):
        return
    # vw2-live saves recordings, and beside them captioned videos, which are no data.
    if (folder / LIVE_EPISODES).is_file():
        folder = folder / "calvin"
        if not folder.is_dir():
            return
    kind = recognize(folder)
    # Above RLDS sets: versions of one, or sets of other formats beside it, as in a folder of runs.
    is_above = kind == "rlds" and not (folder / "features.json").is_file()
    # Videos form a data set if they lie in the folder itself, or in every folder inside it, as splits.
    is_set = kind != "video" or (
        has_videos(folder, below=False)
        or all(has_videos(entry, below=False) for entry in folder.iterdir() if _is_open(entry))
    )
    if kind is not None and is_set and not is_above:
        yield folder, kind
    elif depth > 0 or is_above:
        for inside in sorted(entry for entry in folder.iterdir() if _is_open(entry)):
            yield from _candidates(inside, depth - 1)


def _is_open(entry: Path) -> bool:
    """Return whether an entry is a folder that may be searched."""
    return entry.is_dir() and not entry.name.startswith((".", "_")) and os.access(entry, os.R_OK | os.X_OK)


# ----------------------------------------------------------------------------------------------------- the formats


def _describe_rlds(path: Path) -> DataSet:
    verify(path, cure=COPY_AGAIN, names=DESCRIPTION)
    info = read_json(path / "dataset_info.json", cure=COPY_AGAIN)
    try:
        name = str(info["name"])
        version = str(info["version"])
        file_format = str(info.get("fileFormat", "tfrecord"))
        shards = {str(split["name"]): [int(count) for count in split["shardLengths"]] for split in info["splits"]}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path / 'dataset_info.json'} is damaged ({error!r}); {COPY_AGAIN}") from error
    names = [entry.name for entry in path.iterdir()]
    problems = []
    for split, lengths in shards.items():
        # Files are counted, not opened: that takes no time for large data sets.
        here = sum(entry.startswith(f"{name}-{split}.{file_format}-") for entry in names)
        if here != len(lengths):
            problems.append(f"split {split}: {here} of {len(lengths)} files are here: copy the data set again")
    row = known_source(name)
    unknown = (
        "not in the table of Open-X sources: image_key has to be given where there are several images, and the rate "
        "where episodes do not carry it (data.hz in training, clips.hz here)"
    )
    return DataSet(
        path,
        "rlds",
        name,
        version,
        {split: sum(lengths) for split, lengths in shards.items()},
        row.hz if row is not None else None,
        _bytes_in(path),
        note=unknown if row is None else "",
        problems=tuple(problems),
    )


def _describe_lerobot(path: Path) -> DataSet:
    facts = describe_lerobot(path)
    splits = {name: len(episodes) for name, episodes in facts.splits.items()} or {"all": facts.episodes}
    cameras = ", ".join(key.removeprefix("observation.images.") for key in facts.cameras)
    return DataSet(
        path,
        "lerobot",
        path.resolve().name,
        facts.version,
        splits,
        facts.hz,
        _bytes_in(path),
        note=f"cameras: {cameras}; image_key chooses" if len(facts.cameras) > 1 else "",
    )


def _describe_calvin(path: Path) -> DataSet:
    splits: dict[str, int | None] = {}
    problems: list[str] = []
    notes: list[str] = []
    size = 0
    for split in get_args(CalvinSplit):
        if not (path / split).is_dir():
            continue
        # Without labels the recordings can still be read, for pre-training on video.
        try:
            labeled = (path / split / "lang_annotations" / "auto_lang_ann.npy").is_file()
            dataset = CalvinDataset(path, split, trajectories="labeled" if labeled else "recordings")
        except InputError as error:
            splits[split] = None
            problems.append(str(error).splitlines()[0])
            continue
        splits[split] = len(dataset)
        # The size is estimated as that of one time step times their number: there may be millions of files.
        if (dataset.folder / "ep_start_end_ids.npy").is_file():
            num_steps = sum(last - first + 1 for first, last in read_spans(dataset.folder).tolist())
        else:
            num_steps = sum(trajectory.length for trajectory in dataset.trajectories)
        size += num_steps * (dataset.folder / frame_name(dataset.trajectories[0].start)).stat().st_size
        if not labeled:
            notes.append(f"{split} has no labels: trajectories=recordings")
    hz = read_robot(path).hz
    return DataSet(path, "calvin", path.resolve().name, "-", splits, hz, size, "; ".join(notes), tuple(problems))


def _describe_pickles(path: Path) -> DataSet:
    name = path.resolve().name
    count = sum(file.suffix in PICKLE_ENDINGS for file in files_below(path))
    row = known_source(name)
    note = "" if row is not None else "not in the table of Open-X sources: the rate has to be given (data.hz)"
    return DataSet(path, "pickle", name, "-", {"all": count}, row.hz if row else None, _bytes_in(path), note)


def _describe_videos(path: Path) -> DataSet:
    source = VideoFolderSource(path)
    splits: dict[str, int | None] = {}
    for video in source.videos:
        split = video.name.partition("/")[0] if "/" in video.name else "all"
        splits[split] = (splits.get(split) or 0) + 1
    # The rate of the first video stands for all.
    first = source.videos[0]
    hz = first.hz or describe_video(path / first.name).hz
    uncaptioned = sum(not video.instruction for video in source.videos)
    note = f"{uncaptioned} of {len(source.videos)} without instruction" if uncaptioned else ""
    return DataSet(path, "video", source.name, "-", splits, hz, _bytes_in(path), note)


_DESCRIBE = {
    "rlds": _describe_rlds,
    "lerobot": _describe_lerobot,
    "calvin": _describe_calvin,
    "pickle": _describe_pickles,
    "video": _describe_videos,
}


def _bytes_in(folder: Path) -> int:
    return sum(file.stat().st_size for file in files_below(folder))
