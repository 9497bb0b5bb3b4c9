"""Conversion of a policy's actions to robot commands, and the number of them per policy call.

A policy predicts H actions per call; the first `n_action_steps` of them are executed, the rest dropped. Every evaluator
uses these functions (`rollouts.evaluate` and `Vw2CalvinModel`), so that the same policy acts the same everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vw2_robot.contracts import ACTION_NAMES, GRIPPER, Benchmark, action_names, action_space
from vw2_robot.errors import InputError


def commands(actions: Any, *, at_least: int, names: Sequence[str] = ACTION_NAMES) -> NDArray[np.float64]:
    """Return a policy's chunk as commands that the robot accepts: clipped to [-1, 1], gripper by sign, 0 closes.

    Args:
        actions: a chunk [H, A].
        at_least: how many of them are executed.
        names: of the A numbers; see `contracts.ActionSpace`.

    Raises:
        InputError: not [H, A] with H >= `at_least`, or not finite.
    """
    chunk = np.array(actions, dtype=np.float64)
    if chunk.ndim != 2 or chunk.shape[1] != len(names) or len(chunk) < at_least:
        raise InputError(
            f"the policy returned actions of shape {list(chunk.shape)}; expected [H, {len(names)}], H >= {at_least}: "
            "that many are executed per policy call; lower n_action_steps or raise the policy's chunk size"
        )
    if not np.isfinite(chunk).all():
        row = int(np.argmin(np.isfinite(chunk).all(axis=1)))
        raise InputError(f"the policy returned actions that are not finite, first in row {row}: {chunk[row].tolist()}")
    # The gripper has two commands, so its number becomes a sign, as in `VW2Agent`.
    for index in (index for index, name in enumerate(names) if name == GRIPPER):
        chunk[:, index] = np.where(chunk[:, index] > 0, 1.0, -1.0)
    return chunk.clip(-1.0, 1.0)


def check_action_space(metadata: Mapping[str, Any], benchmark: Benchmark) -> None:
    """Refuse a policy whose actions are other numbers than those that a benchmark takes.

    Raises:
        InputError: their names differ.
    """
    given = action_names(metadata)
    wanted = action_space(benchmark).names
    if given != wanted:
        raise InputError(
            f"the policy gives actions of {len(given)} numbers ({', '.join(given)}), the environment takes "
            f"{len(wanted)} ({', '.join(wanted)}): fine-tune the policy on data of this robot"
        )


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
