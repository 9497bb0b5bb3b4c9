"""Formats of data sets: recognize the format of a folder and open it as an `EpisodeSource`.

    source = open_source("runs/demo/calvin")
    for part in range(len(source.parts())):
        for episode in source.read(part): ...

A format is recognized by the files in the folder (`FORMATS`), without opening one; `format=` overrides that. The file
of each format documents its options; an option that a format does not use is an error. To read another format, write a
class with the members of `episodes.EpisodeSource`; it need not be registered here.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
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
"""format -> files that it is recognized by, in the order in which the formats are tried"""
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
        format: a key of `FORMATS`; "auto" recognizes it.
        split: RLDS: `train` (default), a slice, or several joined by "+". LeRobot: a split of `meta/info.json`, all
            episodes by default. CALVIN: `training` (default) or `validation`. Videos: a folder in the folder.
        image_key: RLDS, LeRobot, pickle: which camera.
        hz: RLDS, pickle, videos: frames per second, if the data set has no rate or a wrong one.
        trajectories: CALVIN: `labeled` windows (default) or whole `recordings`.
        name: of the source; an RLDS set has its own.

    Raises:
        InputError: the format is not known, does not use an option, or the data set is damaged.
    """
    kind = _format_of(path) if format == "auto" else format
    if kind not in FORMATS:
        raise InputError(f"unknown format {format!r}; known: auto, {', '.join(FORMATS)}")
    # An option that would be ignored is refused: its effect would be missed later.
    given = {"split": split, "image_key": image_key, "hz": hz, "trajectories": trajectories, "name": name}
    unused = sorted(key for key, value in given.items() if value is not None and key not in _OPTIONS[kind])
    if unused:
        raise InputError(
            f"{path} is a data set in the format {kind!r}, which does not use {', '.join(unused)}; its options: "
            f"{', '.join(sorted(_OPTIONS[kind]))}"
        )
    if kind == "rlds":
        return RldsSource(path, splits=(split or "train").split("+"), image_key=image_key, hz=hz)
    if kind == "lerobot":
        return LeRobotSource(path, split=split, image_key=image_key, name=name)
    if kind == "calvin":
        known = next((known for known in get_args(CalvinSplit) if known == (split or "training")), None)
        if known is None:
            raise InputError(f"a CALVIN data set has the splits {', '.join(get_args(CalvinSplit))}, found {split!r}")
        return CalvinSource(path, split=known, trajectories=trajectories or "labeled", name=name)
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
    """Open the splits of a data set for pre-training, by default its training split.

    The default is `train` for RLDS and for LeRobot with splits, `training` for CALVIN, and everything for pickles and
    videos.

    Args:
        path: folder of the data set, or `gs://...` for an RLDS set.
        splits: names of splits, or None for the default.
        image_key: see `open_source`.
        hz: see `open_source`.

    Raises:
        InputError: as `open_source`; or the data set does not have a split, or the list is empty.
    """
    kind = _format_of(path)
    if splits is not None and not splits:
        raise InputError(f"no split of {path} is named; leave splits out for its training split")
    if kind == "rlds":
        return [open_source(path, split="+".join(splits or ("train",)), image_key=image_key, hz=hz)]
    names: Sequence[str | None] = splits or (None,)
    if kind == "calvin":
        # CALVIN has other names for its splits; pre-training takes those of the other formats too.
        names = [_CALVIN_NAMES.get(name or "train", name) for name in names]
    if kind == "lerobot" and splits is None and "train" in describe_lerobot(path).splits:
        names = ["train"]
    if kind == "video" and splits is None:
        # Folders may be named like splits. All of them are read, so say which were probably meant to be held out.
        folders = {folder.name for folder in Path(path).iterdir() if folder.is_dir()}
        if folders & {"train", "training"} and folders & _HELD_OUT_NAMES:
            _LOG.warning(
                "all videos in %s are read, those in %s too; name splits (data.splits=[%s]) to leave some out",
                path,
                ", ".join(sorted(folders & _HELD_OUT_NAMES)),
                min(folders & {"train", "training"}),
            )
    return [open_source(path, split=name, image_key=image_key, hz=hz) for name in names]


_CALVIN_NAMES = {"train": "training", "val": "validation"}
_HELD_OUT_NAMES = {"test", "val", "valid", "validation", "eval"}


def recognize(path: Path) -> Format | None:
    """Return the format of a folder, or None; the folder may also be the one above the versions of an RLDS set."""
    # From the most specific signs to the least.
    if any(True for pattern in ("", "*/") for _ in path.glob(f"{pattern}features.json")):
        return "rlds"
    if (path / "meta" / "info.json").is_file():
        return "lerobot"
    for folder in (path / split for split in get_args(CalvinSplit)):
        if (folder / "ep_start_end_ids.npy").is_file() or (folder / "lang_annotations").is_dir():
            return "calvin"
        if folder.is_dir() and any(folder.glob("episode_*.npz")):
            return "calvin"
    if any(file.suffix in PICKLE_ENDINGS for file in path.glob("*")):
        return "pickle"
    return "video" if has_videos(path) else None


def _format_of(path: str | os.PathLike[str]) -> Format:
    """Return the format of a folder or a bucket.

    Raises:
        InputError: it is not known.
    """
    # A bucket is not listed to find out: only RLDS sets are read from one.
    if "://" in os.fspath(path):
        return "rlds"
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; expected the folder of a data set")
    found = recognize(folder)
    if found is None:
        expected = "\n".join(f"  {name}: {sign}" for name, sign in FORMATS.items())
        inside = sorted(entry.name for entry in folder.iterdir())
        raise InputError(
            f"{folder} is no data set of a known format; it holds {', '.join(inside[:6]) or 'nothing'}"
            f"{', ...' if len(inside) > 6 else ''}. Looked for:\n{expected}"
        )
    return found
