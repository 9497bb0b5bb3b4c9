"""From what a policy answered to what a robot is told: commands, and how many of them before the next look.

A policy predicts H actions per look; the first `n_action_steps` of them are executed, the rest dropped. Every evaluator
uses these functions (`rollouts.evaluate` and `Vw2CalvinModel`), so that the same policy acts the same everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vw2_robot.contracts import ACTION_DIM, GRIPPER_INDEX
from vw2_robot.errors import InputError


def commands(actions: Any, *, at_least: int) -> NDArray[np.float64]:
    """A policy's chunk as commands the robot accepts: clipped to [-1, 1], gripper by sign, 0 closes.

    Raises:
        InputError: not [H, 7] with H >= `at_least`, or not finite.
    """
    chunk = np.array(actions, dtype=np.float64)
    if chunk.ndim != 2 or chunk.shape[1] != ACTION_DIM or len(chunk) < at_least:
        raise InputError(
            f"the policy returned actions of shape {list(chunk.shape)}; expected [H, {ACTION_DIM}], H >= {at_least}: "
            "that many are executed before it looks again; lower n_action_steps or raise the policy's chunk size"
        )
    if not np.isfinite(chunk).all():
        row = int(np.argmin(np.isfinite(chunk).all(axis=1)))
        raise InputError(
            f"the policy returned actions that are not finite, first bad row: {row}: {chunk[row].tolist()}"
        )
    gripper = np.where(chunk[:, GRIPPER_INDEX] > 0, 1.0, -1.0)
    chunk = chunk.clip(-1.0, 1.0)
    chunk[:, GRIPPER_INDEX] = gripper
    return chunk


def resolve_n_action_steps(metadata: Mapping[str, Any], override: int | None) -> int:
    """Steps between two looks: the override, or what the policy with this metadata was trained for.

    Raises:
        InputError: neither is given, or it exceeds the policy's chunk size.
    """
    every = metadata.get("n_action_steps") if override is None else override
    if every is None:
        raise InputError(
            'the policy\'s metadata has no "n_action_steps"; give n_action_steps=N (steps between two looks)'
        )
    chunk_size = metadata.get("chunk_size")
    if every < 1 or (chunk_size is not None and every > chunk_size):
        raise InputError(
            f"n_action_steps={every}, but the policy predicts {chunk_size} actions per look; give 1..{chunk_size}"
        )
    return int(every)
