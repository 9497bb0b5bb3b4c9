"""A LeRobotDataset v3.0 as records: every camera, and every column with a number, or a row of them, for each frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from vw2_robot.data.episodes import Episode, Part
from vw2_robot.data.sources.lerobot_dataset import (
    LeRobotSource,
    describe_lerobot,
    read_lerobot_numbers,
    read_lerobot_texts,
)
from vw2_robot.errors import InputError

from .records import TEXTS, Numbers, Record

CAMERA_PREFIX = "observation.images."
TEXT_PREFIX = "vw2."
"""of columns in the table of episodes that LeRobot does not know"""
TERMINAL = f"{TEXT_PREFIX}terminal"


class LeRobotRecords:
    """The splits of a LeRobotDataset; a part is a file with images of the first camera."""

    def __init__(self, path: Path, *, splits: Sequence[str] | None, camera: str | None) -> None:
        """Read the description and the table of episodes.

        Args:
            path: folder of the data set.
            splits: names; all of `meta/info.json` if None, and `train` for all episodes if it has none.
            camera: the only one, in full or in short; all if None.

        Raises:
            InputError: the version is not v3.0, a split or the camera is unknown, or a file is missing.
        """
        facts = describe_lerobot(path)
        self.path = path
        self.name = path.resolve().name
        self._columns = facts.numbers
        keys = [camera] if camera is not None else sorted(facts.cameras)
        if not keys:
            raise InputError(f"{path} has no camera, so there is nothing to convert")
        self._sources: list[tuple[str, dict[str, LeRobotSource]]] = []
        for split in splits or list(facts.splits) or ["train"]:
            # A data set without splits is read as a whole.
            chosen = split if facts.splits or splits else None
            opened = {key: LeRobotSource(path, split=chosen, image_key=key) for key in keys}
            self._sources.append((split, {short(key): source for key, source in opened.items()}))
        self._texts = read_lerobot_texts(path, [*(f"{TEXT_PREFIX}{name}" for name in TEXTS), TERMINAL])
        self._places = [
            (split, sources, number, part)
            for split, sources in self._sources
            for number, part in enumerate(next(iter(sources.values())).parts())
        ]

    def parts(self) -> list[tuple[str, Part]]:
        """Return the split and the description of each file of images."""
        return [(split, part) for split, _, _, part in self._places]

    def read(self, part: int, *, start: int = 0) -> Iterator[Record]:
        """Yield the episodes of one file from number `start` on; segments of long ones, see `LeRobotSource`."""
        split, sources, number, _ = self._places[part]
        first = next(iter(sources.values()))
        before = sum(one.episodes or 0 for one in first.parts()[:number]) + start
        # Files of the other cameras may end at other episodes.
        others = {name: _stream(source, before) for name, source in list(sources.items())[1:]}
        numbers: Iterator[tuple[int, dict[str, Numbers]]] | None = None
        held, columns = -1, dict[str, Numbers]()
        for episode in first.read(number, start=start):
            index, _, offset = episode.episode_id.partition("#")
            cameras = {next(iter(sources)): episode}
            for name, stream in others.items():
                cameras[name] = next(stream, episode)
                if cameras[name].episode_id != episode.episode_id:
                    raise InputError(f"{self.path}: cameras list episodes in different orders; choose one (image_key)")
            if self._columns and held != int(index):
                numbers = numbers or read_lerobot_numbers(self.path, self._columns, first=int(index))
                held, columns = next((one for one in numbers if one[0] == int(index)), (-1, {}))
                if held == -1:
                    raise InputError(f"{self.path}/data holds no episode {index}, or not in order; fetch the set again")
            rows = slice(int(offset or 0), int(offset or 0) + len(episode))
            *texts, terminal = self._texts.get(int(index), ("",) * (len(TEXTS) + 1))
            yield Record(
                split=split,
                cameras=cameras,
                numbers={name: values[rows] for name, values in columns.items()},
                texts=dict(zip(TEXTS, texts, strict=True)),
                terminal=terminal != "no",
            )


def short(camera: str) -> str:
    """Return the name of a camera without LeRobot's prefix."""
    return camera.removeprefix(CAMERA_PREFIX).removeprefix("observation.")


def _stream(source: LeRobotSource, first: int) -> Iterator[Episode]:
    """Yield the episodes of all files from number `first` on."""
    for number, part in enumerate(source.parts()):
        count = part.episodes or 0
        if first < count:
            yield from source.read(number, start=first)
        first = max(0, first - count)
