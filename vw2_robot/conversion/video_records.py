"""A folder of videos as records: images and instructions, no numbers.

Folders called `training`, `train`, `validation` or `val` directly inside are splits, as in recordings of this package;
without them, everything is `train`. A video comes in segments, see `data.sources.video_folder`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from vw2_robot.data.episodes import Part
from vw2_robot.data.sources.video_folder import VideoFolderSource, has_videos
from vw2_robot.errors import InputError

from .records import Record

SPLIT_FOLDERS = {"training": "train", "train": "train", "validation": "validation", "val": "validation"}
CAMERA = "static"


class VideoRecords:
    """The videos of a folder; a part is one video."""

    def __init__(self, path: Path, *, splits: Sequence[str] | None, camera: str | None, hz: float | None) -> None:
        """List the videos; none is opened.

        Args:
            path: the folder.
            splits: `train`, `validation`; all that are there if None.
            camera: the name that the images get; None: `static`.
            hz: frames per second, see `VideoFolderSource`.

        Raises:
            InputError: there is no such split, or no video.
        """
        self.path = path
        self.name = path.resolve().name
        self._camera = camera or CAMERA
        folders = [(split, path / name) for name, split in SPLIT_FOLDERS.items() if has_videos(path / name)]
        there = folders or [("train", path)]
        unknown = [name for name in splits or () if name not in {split for split, _ in there}]
        if unknown:
            raise InputError(f"{path} has no split {unknown[0]!r}; it has {', '.join(split for split, _ in there)}")
        self._sources = [
            (split, VideoFolderSource(folder, hz=hz, name=self.name))
            for split, folder in there
            if splits is None or split in splits
        ]
        self._places = [
            (split, source, number, part)
            for split, source in self._sources
            for number, part in enumerate(source.parts())
        ]

    def parts(self) -> list[tuple[str, Part]]:
        """Return the split and the description of each video."""
        return [(split, part) for split, _, _, part in self._places]

    def read(self, part: int, *, start: int = 0) -> Iterator[Record]:
        """Yield the segments of one video from number `start` on."""
        split, source, number, _ = self._places[part]
        for episode in source.read(number, start=start):
            yield Record(split=split, cameras={self._camera: episode}, numbers={})
