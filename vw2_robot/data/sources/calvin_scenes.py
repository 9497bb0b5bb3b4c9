"""Scenes of the frames of a CALVIN data set: the table `scene_info.npy`, with corrections of known errors.

The file maps "calvin_scene_X" to the first and last frame recorded there. Versions of the published data sets from
before September 2022 (ABC, ABCD) and February 2023 (D) have correct ranges under wrong names; a table with exactly
these ranges gets the correct names, with a message in the log. In any other table the scene of a frame that lies in no
range or in several is "unknown", and one warning counts these frames. Published validation folders have no table: they
show scene D.
"""

from __future__ import annotations

import logging
import reprlib
from collections.abc import Iterable
from pathlib import Path

from vw2_robot.errors import InputError

from .object_arrays import load_object

log = logging.getLogger(__name__)

UNKNOWN = "unknown"
VALIDATION_SCENE = "D"

Ranges = list[tuple[str, int, int]]

# first frame of each scene and the last frame of all, in the published training folders
PUBLISHED: dict[str, Ranges] = {
    "task_D_D": [("D", 0, 611098)],
    "task_ABC_D": [("B", 0, 598909), ("C", 598910, 1191338), ("A", 1191339, 1795044)],
    "task_ABCD_D": [
        ("D", 0, 611098),
        ("B", 611099, 1210008),
        ("C", 1210009, 1802437),
        ("A", 1802438, 2406143),
    ],
}


class SceneRanges:
    """Frame ranges of the scenes of one split."""

    def __init__(self, path: Path, *, is_validation: bool) -> None:
        """Read a table of scenes.

        Args:
            path: the table; need not exist.
            is_validation: whether the scene is D if there is no table.

        Raises:
            InputError: the file is no table of ranges.
        """
        self._path = path
        self._default = UNKNOWN
        self._ranges: Ranges = []
        if path.is_file():
            table = load_object(path)
            try:
                ranges = [(str(name).removeprefix("calvin_scene_"), int(a), int(b)) for name, (a, b) in table.items()]
            except (AttributeError, TypeError, ValueError, OverflowError) as error:
                raise InputError(
                    f"{path}: expected a dict of scene name -> [first, last] frame, found {reprlib.repr(table)}"
                ) from error
            # Old published tables are recognized by their ranges: the names are what was wrong.
            spans = sorted((first, last) for _, first, last in ranges)
            for name, right in PUBLISHED.items():
                if spans == sorted((first, last) for _, first, last in right) and set(ranges) != set(right):
                    log.warning("%s is the old, wrong one of %s; its frames get the corrected scene names", path, name)
                    ranges = right
            self._ranges = ranges
        elif is_validation:
            self._default = VALIDATION_SCENE

    def scene_of(self, frame: int) -> str:
        """Return the letter of the scene, or "unknown"."""
        # A set of names: ranges of the same scene may overlap.
        found = {name for name, first, last in self._ranges if first <= frame <= last}
        if not self._ranges:
            return self._default
        return found.pop() if len(found) == 1 else UNKNOWN

    def warn_about(self, frames: Iterable[int]) -> None:
        """Log one warning if the scene of some of these frames is unknown."""
        frames = list(frames)
        unknown = [frame for frame in frames if self.scene_of(frame) == UNKNOWN]
        if self._ranges and unknown:
            log.warning(
                "%s does not fit this data set: %d of %d trajectories, the first at frame %d, lie in no range or in"
                ' several, so their scene counts as "unknown"; fetch the corrected file of the data set',
                self._path,
                len(unknown),
                len(frames),
                unknown[0],
            )
