"""Writer of records as a CALVIN data set: each episode becomes a recording with one labeled window.

A record that comes from CALVIN is written back as it was, array by array. Of any other, the action becomes
`rel_actions`, by `ActionMeaning.to_calvin`; what a data set does not have (absolute actions, states of robot and scene)
is left out rather than made up, so programs that ask for it stop.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vw2_robot.contracts import GRIPPER_INDEX
from vw2_robot.data.calvin_writer import LATENT_TOKENS, SOURCE_ACTIONS, CalvinWriter, Label
from vw2_robot.data.sources.calvin import CalvinSplit
from vw2_robot.data.sources.calvin_scenes import UNKNOWN
from vw2_robot.data.sources.recorded_robot import CALVIN_ROBOT, RecordedRobot
from vw2_robot.errors import InputError

from .action_meaning import ActionMeaning
from .calvin_records import ARRAYS, PREFIX
from .records import ACTION_COLUMN, LATENT_COLUMN, Form, Record

_LOG = logging.getLogger(__name__)
MAX_FRAMES = 10_000_000
"""frame numbers have seven digits in the names of files"""


class CalvinShards:
    """A CALVIN data set; a shard is a run of recordings.

    Args:
        folder: of the data set.
        form: of all records.
        meaning: of their action.
        robot: name of the source.
    """

    def __init__(self, folder: Path, form: Form, meaning: ActionMeaning, *, robot: str) -> None:
        self._folder = folder
        self._meaning = meaning
        self._cameras = _cameras(form)
        # What came from CALVIN is CALVIN's again. Other data have its units now, but a rate of their own.
        is_calvin = meaning.units == "calvin" and form.hz == CALVIN_ROBOT.hz
        self._robot = CALVIN_ROBOT if is_calvin else RecordedRobot(robot, form.hz)
        self._warned = False
        self._frames: dict[CalvinSplit, int] = {}

    def write(self, number: int, records: Sequence[Record]) -> dict[str, Any]:
        """Write some recordings of one split, and return the facts that `add` takes."""
        split = calvin_split(records[0].split)
        writer = CalvinWriter(self._folder, split, required=("rgb_static",))
        begin = self._frames.get(split, 0)
        for record in records:
            first = begin
            begin += len(record)
            if begin > MAX_FRAMES:
                raise InputError(f"CALVIN numbers at most {MAX_FRAMES} frames of a split; convert splits one by one")
            text = record.episode.instruction
            task = record.texts.get("task", "")
            label = Label(task or text, text, 0, len(record) - 1, record.texts.get("way", ""))
            writer.write_recording(
                self._arrays(record),
                first_frame=first,
                scene=record.texts.get("scene") or UNKNOWN,
                labels=(label,) if text else (),
            )
        return {"split": split, "frames": begin}

    def add(self, facts: dict[str, Any]) -> None:
        """Count a shard that is complete."""
        self._frames[facts["split"]] = facts["frames"]

    def finish(self, description: str) -> None:
        """Write the files that describe the splits; `description` is not part of this format."""
        for split in self._frames:
            CalvinWriter(self._folder, split, robot=self._robot).finish()

    def _arrays(self, record: Record) -> dict[str, NDArray[Any]]:
        """Return the arrays of a time step, as `CalvinWriter` takes them."""
        arrays: dict[str, NDArray[Any]] = {
            f"rgb_{name}": np.stack([record.cameras[camera].decode(i) for i in range(len(record))])
            for name, camera in self._cameras.items()
        }
        numbers = record.numbers
        arrays |= {name: numbers[PREFIX + name] for name in ARRAYS if PREFIX + name in numbers}
        if LATENT_COLUMN in numbers:
            arrays[LATENT_TOKENS] = numbers[LATENT_COLUMN]
        if ACTION_COLUMN in numbers and "rel_actions" not in arrays:
            arrays["rel_actions"] = self._meaning.to_calvin(numbers[ACTION_COLUMN], record.where)
            if self._meaning.units != "calvin":
                arrays[SOURCE_ACTIONS] = numbers[ACTION_COLUMN]
            largest = float(abs(arrays["rel_actions"][:, :GRIPPER_INDEX]).max())
            if largest > 1 and not self._warned:
                _LOG.warning(
                    "%s: its largest action is %.1f units, CALVIN's range is -1 to 1; numbers are kept, not clipped "
                    "(reported once)",
                    record.where,
                    largest,
                )
                self._warned = True
        return arrays


def calvin_split(split: str) -> CalvinSplit:
    """Return the folder for a split of another format: everything that is not held out is training."""
    return "validation" if split.startswith(("val", "test", "eval")) else "training"


def _cameras(form: Form) -> dict[str, str]:
    """Return CALVIN's name of a camera -> its name in the data set."""
    names = list(form.cameras)
    static = "static" if "static" in names else names[0] if len(names) == 1 else None
    if static is None:
        raise InputError(f"which of the cameras {', '.join(names)} is CALVIN's static one? Add image_key=...")
    return {"static": static} | ({"gripper": "gripper"} if "gripper" in names else {})
