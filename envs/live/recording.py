"""What was done on the live page as a recording of a CALVIN data set, written as `vw2-record` writes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vw2_robot.contracts import GRIPPER_INDEX
from vw2_robot.data.calvin_writer import Label

from ..actions import to_relative_action
from ..recording.demonstrations import RecordedDemonstration
from ..recording.environment_description import environment_yaml
from ..recording.formats import CalvinOutput

FRAMES_RESERVED = 1024
"""frame numbers of each recording; a subtask of the benchmark has at most 360 control steps"""


def write_recording(
    out: Path,
    number: int,
    *,
    label: tuple[str, str],
    images: Sequence[NDArray[np.uint8]],
    states: Sequence[Mapping[str, NDArray[np.float64]]],
    actions: Sequence[NDArray[np.float64]],
    world: Mapping[str, str],
) -> None:
    """Add a recording of L control steps to the training split of a data set.

    Args:
        out: the data set; made if missing.
        number: of the recording.
        label: task and instruction of the whole recording.
        images: L images of the static camera.
        states: `robot_obs` and `scene_obs` of each step and after the last, L + 1.
        actions: L commanded actions [7].
        world: scene, renderer and assets.
    """
    rows: dict[str, list[NDArray[Any]]] = {}
    for image, state, following, action in zip(images, states, states[1:], actions, strict=False):
        # The pose reached, with the commanded gripper: CALVIN's absolute action.
        reached = np.array([*following["robot_obs"][:6], action[GRIPPER_INDEX]])
        relative = to_relative_action(reached, state["robot_obs"])
        row: dict[str, NDArray[Any]] = {
            "rgb_static": image,
            **state,
            "commanded_actions": action,
            "actions": reached,
            "rel_actions": relative,
        }
        for key, value in row.items():
            rows.setdefault(key, []).append(value)
    environment = environment_yaml(
        cameras=("static",), scene=world["scene"], renderer=world["renderer"], assets=world["assets"]
    )
    output = CalvinOutput(out, compress_level=1, spacing=FRAMES_RESERVED, environment=environment)
    labels = (Label(*label, 0, len(actions) - 1),)
    arrays = {key: np.stack(value) for key, value in rows.items()}
    output.add("training", number, RecordedDemonstration(world["scene"], labels, arrays))
    output.finish(["training"])
