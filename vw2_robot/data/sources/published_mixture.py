"""The mixture that the authors of VideoWorld 2 trained on, from their two tables: Open-X pickles and craft clips.

    members = open_published_mixture(Path("datasets/openx_videocraft_meta.json"), Path("datasets"))

`openx_videocraft_meta.json` has for each folder the frames that decide its share; `openx_videocraft_cache.json` beside
it lists the files, and is left out where it is missing: then a folder's files are those that lie in it. Paths in it are
those of the machine that wrote it, so their ends are looked for below the folder of the data sets:

    openx_untar/NAME/*.pickle                       episodes of Open-X (`pickled_openx.py`)
    Video-CraftBench/Paper_and_Block_clips/*.mp4    clips (`video_folder.py`)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from vw2_robot.errors import InputError
from vw2_robot.storage.files import read_json

from ..episodes import EpisodeSource
from .pickled_openx import PICKLE_ENDINGS, PickledOpenXSource
from .video_folder import VIDEO_ENDINGS, VideoFolderSource

ENDING = ".json"
"""of a mixture that is such a table"""
_PLACES = ("openx_untar", "Video-CraftBench", ".")
_MEASURED_FILES = 10
"""files of a folder whose frames are counted where the table does not give frames per file"""
_CURE = "download it again (docs/import.md)"


def open_published_mixture(table: Path, root: Path) -> list[tuple[EpisodeSource, float]]:
    """Open every folder of the table that has a share, with its weight; few files are read, to count their frames.

    A weight multiplies the size of a source, so it is the table's number of frames over that of the files.

    Args:
        table: `openx_videocraft_meta.json`.
        root: the folder that holds `openx_untar` and `Video-CraftBench`.

    Raises:
        InputError: a table is damaged, or folders are missing (the message names all of them).
    """
    folders = read_json(table, cure=_CURE).get("subfolders")
    if not isinstance(folders, dict) or not all(isinstance(row, dict) for row in folders.values()):
        raise InputError(f'{table} has no "subfolders" with a table each; {_CURE}')
    index = _index(table.with_name(table.name.replace("_meta", "_cache")))
    members: list[tuple[EpisodeSource, float]] = []
    missing = []
    for name, row in folders.items():
        frames = _number(table, name, row, "estimated_total_frames")
        if not frames or (index is not None and not index.get(name)):
            continue
        found = _place(name, root, None if index is None else index[name])
        if found is None:
            missing.append(name)
            continue
        source = _open(name, *found)
        per_file = _number(table, name, row, "frames_per_file") or _measured(source)
        members.append((source, frames / (per_file * len(source.parts()))))
    if missing:
        raise InputError(
            f"{root} lacks {len(missing)} of the {len(missing) + len(members)} folders of {table}: "
            f"{', '.join(missing)}; unpack them into {root / _PLACES[0]}, or leave them out of a copy of the table"
        )
    if not members:
        raise InputError(f"{table} gives no folder a share: estimated_total_frames is 0 everywhere; {_CURE}")
    return members


def _index(file: Path) -> dict[str, list[str]] | None:
    """Return the files of each folder as the second table has them; None where there is none."""
    if not file.is_file():
        return None
    content = read_json(file, cure=_CURE).get("pickle_paths_by_folder")
    if not isinstance(content, dict) or not all(
        isinstance(paths, list) and all(isinstance(path, str) for path in paths) for paths in content.values()
    ):
        raise InputError(f'{file} has no "pickle_paths_by_folder" with lists of files; {_CURE}')
    return content


def _number(table: Path, name: str, row: Mapping[str, Any], key: str) -> float:
    """Return a number of a row, 0 where it is missing."""
    value = row.get(key, 0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise InputError(f"{table}: {key} of {name} must be a number, found {value!r}; {_CURE}")
    return float(value)


def _place(name: str, root: Path, files: list[str] | None) -> tuple[Path, list[str] | None] | None:
    """Return the folder of a name below `root` and its listed files; None where it is not there."""
    if files is None:
        return next(((root / place / name, None) for place in _PLACES if (root / place / name).is_dir()), None)
    # The end of the first path that exists below `root` tells where all of them lie.
    parts = [part for part in PurePosixPath(files[0]).parts if part not in ("/", "..")]
    for begin in range(len(parts) - 1):
        folder = root.joinpath(*parts[begin:-1])
        if (folder / parts[-1]).is_file():
            return folder, [PurePosixPath(file).name for file in files]
    return None


def _open(name: str, folder: Path, files: list[str] | None) -> EpisodeSource:
    first = files[0] if files else next((file.name for file in sorted(folder.iterdir())), "")
    if first.lower().endswith(VIDEO_ENDINGS):
        return VideoFolderSource(folder, name=name, files=files)
    if first.endswith(PICKLE_ENDINGS):
        return PickledOpenXSource(folder, name=name, files=files)
    raise InputError(f"{folder} begins with {first!r}; expected {', '.join((*PICKLE_ENDINGS, *VIDEO_ENDINGS))}")


def _measured(source: EpisodeSource) -> float:
    """Return the mean number of frames of the first files."""
    count = min(_MEASURED_FILES, len(source.parts()))
    return sum(len(episode.images) for part in range(count) for episode in source.read(part)) / count
