"""Conversion of a policy's actions to robot commands, and the number of them per policy call.

A policy predicts H actions per call; the first `n_action_steps` of them are executed, the rest dropped. Every evaluator
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
    """Return a policy's chunk as commands that the robot accepts: clipped to [-1, 1], gripper by sign, 0 closes.

    Args:
        actions: a chunk [H, 7].
        at_least: how many of them are executed.

    Raises:
        InputError: not [H, 7] with H >= `at_least`, or not finite.
    """
    chunk = np.array(actions, dtype=np.float64)
    if chunk.ndim != 2 or chunk.shape[1] != ACTION_DIM or len(chunk) < at_least:
        raise InputError(
            f"the policy returned actions of shape {list(chunk.shape)}; expected [H, {ACTION_DIM}], H >= {at_least}: "
            "that many are executed per policy call; lower n_action_steps or raise the policy's chunk size"
        )
    if not np.isfinite(chunk).all():
        row = int(np.argmin(np.isfinite(chunk).all(axis=1)))
        raise InputError(f"the policy returned actions that are not finite, first in row {row}: {chunk[row].tolist()}")
    # The gripper has two commands, so its number becomes a sign, as in `VW2Agent`.
    gripper = np.where(chunk[:, GRIPPER_INDEX] > 0, 1.0, -1.0)
    chunk = chunk.clip(-1.0, 1.0)
    chunk[:, GRIPPER_INDEX] = gripper
    return chunk


def resolve_n_action_steps(metadata: Mapping[str, Any], override: int | None) -> int:
    """Return the actions executed per policy call: the override, or what the policy was trained for.

    Args:
        metadata: of the policy.
        override: from the command line; None: none.

    Raises:
        InputError: neither is given, or it exceeds the policy's chunk size.
    """
    n_action_steps = metadata.get("n_action_steps") if override is None else override
    if n_action_steps is None:
        raise InputError(
            'the policy\'s metadata has no "n_action_steps"; give n_action_steps=N (actions executed per policy call)'
        )
    chunk_size = metadata.get("chunk_size")
    if n_action_steps < 1 or (chunk_size is not None and n_action_steps > chunk_size):
        raise InputError(
            f"n_action_steps={n_action_steps}, but the policy predicts {chunk_size} actions per call; "
            f"give 1..{chunk_size}"
        )
    return int(n_action_steps)
