"""Recordings: what a policy returned during a chain, as a file on disk.

    actions/chain_0000.npz     actions float32 [calls, H, A] as predicted; subtask int64 [calls], the position within
                               the chain; tokens int64 [calls, K, N] for policies with latent tokens

Written by `vw2-rollout record=true`. The executed commands follow from it: of each policy call the first
`n_action_steps` rows, as `vw2_robot.commands.commands` converts them. The last call of a subtask is cut off where its
steps end (results.jsonl). `policy=RUN_DIR` with such a folder replays it (action_replay.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vw2_robot.contracts import Observation, PolicyOutput
from vw2_robot.storage.arrays import write_arrays

from .evaluate import Row

FOLDER = "actions"


def recording_path(run_dir: Path, number: int) -> Path:
    """Return the path of a chain's recording."""
    return run_dir / FOLDER / f"chain_{number:04d}.npz"


class Recording:
    """The policy outputs of one chain: an `evaluate.RolloutCallback` that collects them and then writes them."""

    needs_images = False

    def __init__(self) -> None:
        self._subtasks: list[int] = []
        self._outputs: list[PolicyOutput] = []

    def on_policy_call(self, subtask: int, observation: Observation, output: PolicyOutput) -> None:
        """Keep one output.

        Args:
            subtask: Position of the subtask within the chain, from 0.
            observation: What the policy was given; not kept.
            output: What the policy returned, before clipping: actions [H, A], and latent tokens where it has them.
        """
        self._subtasks.append(subtask)
        self._outputs.append(output)

    def write(self, run_dir: Path, row: Row) -> None:
        """Write the chain's file in the run's folder."""
        self.save(recording_path(run_dir, row["sequence"]))

    def save(self, path: Path) -> None:
        """Write the outputs to `path`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, NDArray[Any]] = {
            "actions": np.stack([np.asarray(output["actions"], np.float32) for output in self._outputs]),
            "subtask": np.array(self._subtasks, np.int64),
        }
        if all("latent_tokens" in output for output in self._outputs):
            arrays["tokens"] = np.stack([output["latent_tokens"] for output in self._outputs])
        write_arrays(path, arrays)
