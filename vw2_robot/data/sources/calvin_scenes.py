"""Which scene a frame of a CALVIN data set shows: `scene_info.npy`, and what is known to be wrong with it.

The file maps "calvin_scene_X" to the first and last frame recorded there. Versions of the published data sets from
before September 2022 (ABC, ABCD) and February 2023 (D) give right ranges under wrong names; a table with exactly these
ranges gets the right names, and the log says so. In any other table a frame that no range covers, or more than one,
is of scene "unknown", and one warning says how many frames that are. Published validation folders have no table: they
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
    """The ranges of one split; `scene_of` says where a frame was recorded."""

    def __init__(self, path: Path, *, is_validation: bool) -> None:
        """Read `path`, which need not exist.

        Raises:
            InputError: it is no table of ranges.
        """
        self._path = path
        self._default = UNKNOWN
        self._ranges: Ranges = []
        if path.is_file():
            self._ranges = _with_right_names(_read_ranges(path), path)
        elif is_validation:
            self._default = VALIDATION_SCENE

    def scene_of(self, frame: int) -> str:
        """Return the letter of the scene, or "unknown"."""
        found = {name for name, first, last in self._ranges if first <= frame <= last}
        if not self._ranges:
            return self._default
        return found.pop() if len(found) == 1 else UNKNOWN

    def warn_about(self, frames: Iterable[int]) -> None:
        """Log one warning if the table leaves open where some of these frames were recorded."""
        frames = list(frames)
        open_ones = [frame for frame in frames if self.scene_of(frame) == UNKNOWN]
        if self._ranges and open_ones:
            log.warning(
                "%s does not fit this data set: %d of %d trajectories, the first at frame %d, lie in no range or in"
                ' several, so their scene counts as "unknown"; fetch the corrected file of the data set',
                self._path,
                len(open_ones),
                len(frames),
                open_ones[0],
            )


def _read_ranges(path: Path) -> Ranges:
    table = load_object(path)
    try:
        ranges = [(str(name).removeprefix("calvin_scene_"), int(a), int(b)) for name, (a, b) in table.items()]
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"{path}: expected a dict of scene name -> [first, last] frame, found {reprlib.repr(table)}"
        ) from error
    return ranges


def _with_right_names(ranges: Ranges, path: Path) -> Ranges:
    spans = sorted((first, last) for _, first, last in ranges)
    for name, right in PUBLISHED.items():
        if spans == sorted((first, last) for _, first, last in right) and set(ranges) != set(right):
            log.warning("%s is the old, wrong one of %s; its frames get the corrected scene names", path, name)
            return right
    return ranges
