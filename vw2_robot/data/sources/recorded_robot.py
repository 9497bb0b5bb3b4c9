"""`robot.json`: what a data set in CALVIN's layout says about its robot, if that is not CALVIN's.

    {"name": "metaworld", "hz": 80.0, "camera": "corner2",
     "action": {"names": ["dx", "dy", "dz", "gripper_effort"], "units": "1 moves the target of the hand by 1 cm"}}

It lies beside `training/` and `validation/`. Fine-tuning reads everything that depends on the robot from here, and
writes it into the checkpoint. A data set without the file is CALVIN's: 30 steps per second, seven numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vw2_robot.command_line.config_tree import config_from, config_tree
from vw2_robot.contracts import CALVIN_ACTIONS, CAMERA, ActionSpace
from vw2_robot.errors import InputError
from vw2_robot.limits import Rate
from vw2_robot.storage.files import read_json, write_json

ROBOT_FILE = "robot.json"
CALVIN = "calvin"


@dataclass(frozen=True)
class RecordedRobot:
    """The robot of a data set."""

    name: str = CALVIN
    """of the source; actions of equal names and units of one robot mean the same"""
    hz: Rate = 30.0
    """time steps per second"""
    camera: str = CAMERA
    """what a policy calls the camera whose images are stored as `rgb_static`"""
    action: ActionSpace = CALVIN_ACTIONS
    """of the stored actions, all in [-1, 1]"""


CALVIN_ROBOT = RecordedRobot()


def read_robot(path: Path) -> RecordedRobot:
    """Return the robot of the data set in a folder.

    Raises:
        InputError: the file is damaged.
    """
    file = path / ROBOT_FILE
    if not file.is_file():
        return CALVIN_ROBOT
    cure = "restore it, or write it again (docs/data.md)"
    try:
        return config_from(RecordedRobot, read_json(file, cure=cure))
    except (InputError, ValueError) as error:
        raise InputError(f"{file}: {error}; {cure}") from error


def write_robot(path: Path, robot: RecordedRobot) -> None:
    """Write the file, unless the robot is CALVIN's: its data sets have none."""
    if robot != CALVIN_ROBOT:
        write_json(path / ROBOT_FILE, config_tree(robot))
