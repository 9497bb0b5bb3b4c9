"""Which format a folder has, and the source that reads it: `open_source(path)` for every kind of data set.

    source = open_source("runs/demo/calvin")
    for part in range(len(source.parts())):
        for episode in source.read(part): ...

A format is recognized by what lies in the folder (`FORMATS`), without opening a file; `format=` overrides that. What
each option means is said in the file of the format; an option that a format has no use for is refused, since it would
otherwise be ignored in silence. To read a format of one's own, write a class with the three members of
`episodes.EpisodeSource`; nothing has to be entered here.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, get_args

from vw2_robot.errors import InputError

from ..episodes import EpisodeSource
from .calvin import CalvinSplit, TrajectoryKind
from .calvin_source import CalvinSource
from .lerobot_dataset import LeRobotSource, describe_lerobot
from .pickled_openx import PICKLE_ENDINGS, PickledOpenXSource
from .rlds import RldsSource
from .video_folder import VIDEO_ENDINGS, VideoFolderSource, has_videos

_LOG = logging.getLogger(__name__)
Format = Literal["rlds", "lerobot", "calvin", "pickle", "video"]

FORMATS: dict[Format, str] = {
    "rlds": "features.json and dataset_info.json, in it or in its only version's folder (Open-X, TFDS)",
    "lerobot": "meta/info.json (LeRobotDataset v3.0)",
    "calvin": "training/ or validation/ with ep_start_end_ids.npy, lang_annotations/ or episode_*.npz",
    "pickle": f"*{' or *'.join(PICKLE_ENDINGS)} (the unpacked copy of Open-X on the Hugging Face Hub)",
    "video": f"*{', *'.join(VIDEO_ENDINGS)}, in it or one folder below",
}
"""What each format is recognized by, in the order in which they are looked for."""
_OPTIONS: dict[Format, set[str]] = {
    "rlds": {"split", "image_key", "hz"},
    "lerobot": {"split", "image_key", "name"},
    "calvin": {"split", "trajectories", "name"},
    "pickle": {"image_key", "hz", "name"},
    "video": {"split", "hz", "name"},
}


def open_source(
    path: str | os.PathLike[str],
    *,
    format: Format | Literal["auto"] = "auto",
    split: str | None = None,
    image_key: str | None = None,
    hz: float | None = None,
    trajectories: TrajectoryKind | None = None,
    name: str | None = None,
) -> EpisodeSource:
    """Open a data set; no episode is read.

    Args:
        path: its folder, or `gs://...` for an RLDS set.
        format: a key of `FORMATS`; "auto" looks.
        split: RLDS: `train` (default), a slice, or several joined by "+". LeRobot: a split of `meta/info.json`, all
            episodes by default. CALVIN: `training` (default) or `validation`. Videos: a folder in the folder.
        image_key: RLDS, LeRobot, pickle: which camera.
        hz: RLDS, pickle, videos: frames per second, where the set does not tell or tells wrongly.
        trajectories: CALVIN: `labeled` windows (default) or whole `recordings`.
        name: of the source; an RLDS set has its own.

    Raises:
        InputError: no known format, an option that the format has no use for, or whatever the format finds wrong.
    """
    kind = _format_of(path) if format == "auto" else format
    if kind not in FORMATS:
        raise InputError(f"unknown format {format!r}; known: auto, {', '.join(FORMATS)}")
    given = {"split": split, "image_key": image_key, "hz": hz, "trajectories": trajectories, "name": name}
    unused = sorted(key for key, value in given.items() if value is not None and key not in _OPTIONS[kind])
    if unused:
        raise InputError(
            f"{path} is a data set in the format {kind!r}, which has no use for {', '.join(unused)}; it knows: "
            f"{', '.join(sorted(_OPTIONS[kind]))}"
        )
    if kind == "rlds":
        return RldsSource(path, splits=(split or "train").split("+"), image_key=image_key, hz=hz)
    if kind == "lerobot":
        return LeRobotSource(path, split=split, image_key=image_key, name=name)
    if kind == "calvin":
        return CalvinSource(path, split=_calvin_split(split), trajectories=trajectories or "labeled", name=name)
    if kind == "pickle":
        return PickledOpenXSource(path, image_key=image_key, hz=hz, name=name)
    return VideoFolderSource(Path(path) / split if split is not None else path, hz=hz, name=name)


def open_training(
    path: str | os.PathLike[str],
    *,
    splits: Sequence[str] | None = None,
    image_key: str | None = None,
    hz: float | None = None,
) -> list[EpisodeSource]:
    """Open what pre-training reads of a data set: these splits, or by default what the format calls training.

    An RLDS set and one of LeRobot with splits give `train`, CALVIN `training`, pickles and videos everything.

    Raises:
        InputError: as `open_source`; a split that the data set has not, or none in the list.
    """
    kind = _format_of(path)
    if splits is not None and not splits:
        raise InputError(f"no split of {path} is named; leave splits out for what is there to train on")
    if kind == "rlds":
        return [open_source(path, split="+".join(splits or ("train",)), image_key=image_key, hz=hz)]
    names: Sequence[str | None] = splits or (None,)
    if kind == "calvin":
        names = [_CALVIN_NAMES.get(name or "train", name) for name in names]
    if kind == "lerobot" and splits is None and "train" in describe_lerobot(path).splits:
        names = ["train"]
    if kind == "video" and splits is None:
        _warn_of_splits(Path(path))
    return [open_source(path, split=name, image_key=image_key, hz=hz) for name in names]


_CALVIN_NAMES = {"train": "training", "val": "validation"}
_HELD_OUT_NAMES = {"test", "val", "valid", "validation", "eval"}


def _warn_of_splits(path: Path) -> None:
    """Say so where the folders of a folder of videos are called like splits, and all of them are read."""
    folders = {folder.name for folder in path.iterdir() if folder.is_dir()}
    if folders & {"train", "training"} and folders & _HELD_OUT_NAMES:
        _LOG.warning(
            "all videos in %s are read, those in %s too; name splits (data.splits=[%s]) to leave some out",
            path,
            ", ".join(sorted(folders & _HELD_OUT_NAMES)),
            min(folders & {"train", "training"}),
        )


def recognize(path: Path) -> Format | None:
    """Return the format of a folder, or None. A folder that holds a single version of an RLDS set is one, too."""
    if any(_rlds_folders(path)):
        return "rlds"
    if (path / "meta" / "info.json").is_file():
        return "lerobot"
    if any(_is_calvin_split(path / split) for split in get_args(CalvinSplit)):
        return "calvin"
    if any(file.suffix in PICKLE_ENDINGS for file in path.glob("*")):
        return "pickle"
    return "video" if has_videos(path) else None


def _format_of(path: str | os.PathLike[str]) -> Format:
    if "://" in os.fspath(path):
        return "rlds"
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; expected the folder of a data set")
    found = recognize(folder)
    if found is None:
        looked_for = "\n".join(f"  {name}: {sign}" for name, sign in FORMATS.items())
        inside = sorted(entry.name for entry in folder.iterdir())
        raise InputError(
            f"{folder} is no data set of a known format; it holds {', '.join(inside[:6]) or 'nothing'}"
            f"{', ...' if len(inside) > 6 else ''}. Looked for:\n{looked_for}"
        )
    return found


def _rlds_folders(path: Path) -> Iterator[Path]:
    yield from (file.parent for pattern in ("", "*/") for file in path.glob(f"{pattern}features.json"))


def _is_calvin_split(folder: Path) -> bool:
    if (folder / "ep_start_end_ids.npy").is_file() or (folder / "lang_annotations").is_dir():
        return True
    return folder.is_dir() and any(folder.glob("episode_*.npz"))


def _calvin_split(split: str | None) -> CalvinSplit:
    for known in get_args(CalvinSplit):
        if (split or "training") == known:
            return known
    raise InputError(f"a CALVIN data set has the splits {', '.join(get_args(CalvinSplit))}, found {split!r}")
