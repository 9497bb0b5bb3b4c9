"""Opening of a data set as records, and what its `conversion.json` says if this program made it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from vw2_robot.data.episodes import Part
from vw2_robot.data.sources.formats import FORMATS, recognize
from vw2_robot.data.sources.recorded_robot import CALVIN_ROBOT, read_robot
from vw2_robot.errors import InputError
from vw2_robot.storage.files import read_json

from .action_meaning import CALVIN, UNKNOWN, ActionMeaning
from .calvin_records import CalvinRecords
from .config import ConvertConfig
from .lerobot_records import LeRobotRecords
from .records import Record
from .rlds_records import RldsRecords
from .video_records import VideoRecords

CONVERSION_FILE = "conversion.json"
"""describes a converted data set: origin, meaning of its action, rate, latent tokens"""
_RECORDED = ("vw2_calvin", "vw2_other_robots", "vw2_arms", "vw2_rerendered")
"""RLDS sets of this package's recorder, whose action is CALVIN's"""


class RecordSource(Protocol):
    """A data set as a list of parts with records, in a fixed order."""

    name: str
    path: Path

    def parts(self) -> Sequence[tuple[str, Part]]:
        """Return the split and the description of each part; those of one split follow each other."""

    def read(self, part: int, *, start: int = 0) -> Iterator[Record]:
        """Yield the records of one part from number `start` on."""


def open_records(config: ConvertConfig) -> tuple[RecordSource, ActionMeaning]:
    """Open the data set to convert, and return it with the meaning of its action; no episode is read.

    Raises:
        InputError: it is none of the known formats, does not use an option, or is damaged.
    """
    path = Path(config.in_)
    if not path.is_dir():
        raise InputError(f"in={path} is not a folder; expected the folder of a data set")
    found = recognize(path)
    # What each format has no use for is refused: its effect would be missed later.
    unused = {"hz": config.hz is not None and found in ("calvin", "lerobot")}
    unused["trajectories"] = config.trajectories != "labeled" and found != "calvin"
    for key in (key for key, is_unused in unused.items() if is_unused):
        raise InputError(f"in={path} is a data set in the format {found!r}, which does not use {key}; leave it out")
    options: dict[str, Any] = {"splits": config.splits, "camera": config.image_key}
    source: RecordSource
    if found == "calvin":
        hz = _conversion(path).get("hz")
        source = CalvinRecords(path, trajectories=config.trajectories, hz=hz, **options)
    elif found == "lerobot":
        source = LeRobotRecords(path, **options)
    elif found == "rlds":
        source = RldsRecords(path, hz=config.hz, **options)
    elif found == "video":
        source = VideoRecords(path, hz=config.hz, **options)
    else:
        signs = "\n".join(f"  {name}: {sign}" for name, sign in FORMATS.items() if name != "pickle")
        raise InputError(f"in={path} is no data set that can be converted. Looked for:\n{signs}")
    return source, _meaning(config, source)


def _conversion(path: Path) -> dict[str, Any]:
    """Return the description that this program wrote beside a data set, empty for other data sets."""
    file = path / CONVERSION_FILE
    return read_json(file, cure="convert the data set again", sealed=True) if file.is_file() else {}


def _meaning(config: ConvertConfig, source: RecordSource) -> ActionMeaning:
    """Return the meaning of the source's action."""
    if config.actions == "metric":
        closed, opened = config.gripper or (-1.0, 1.0)
        return ActionMeaning("metric", closed=closed, open=opened)
    # The folder of an RLDS set may lie below the one that was named.
    if config.actions == "auto" and "action" in (stated := _conversion(source.path)):
        return ActionMeaning.of(stated["action"])
    is_calvin = isinstance(source, RldsRecords) and source.name in _RECORDED
    if isinstance(source, CalvinRecords):
        is_calvin = read_robot(source.path).action == CALVIN_ROBOT.action
    return CALVIN if config.actions == "calvin" or (config.actions == "auto" and is_calvin) else UNKNOWN
