"""What a policy answered during a chain, on disk.

    actions/chain_0000.npz     actions float32 [looks, H, A] as predicted; subtask int64 [looks], the number within the
                               chain; tokens int64 [looks, K, N] where the policy thinks in latent tokens

Written by `vw2-rollout record=true`. The executed commands follow: of each look the first `n_action_steps` rows, as
`vw2_robot.commands.commands` makes them, the last look of a subtask cut off where its steps end (results.jsonl).
`policy=RUN_DIR` with such a folder replays it (action_replay.py).
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
    """Where the answers of a chain lie."""
    return run_dir / FOLDER / f"chain_{number:04d}.npz"


class Recording:
    """Collects the answers of one chain, then writes them. An `evaluate.RolloutCallback` that needs no images."""

    needs_images = False

    def __init__(self) -> None:
        self._subtasks: list[int] = []
        self._outputs: list[PolicyOutput] = []

    def look(self, subtask: int, observation: Observation, output: PolicyOutput) -> None:
        """Take note of one answer."""
        self._subtasks.append(subtask)
        self._outputs.append(output)

    def write(self, run_dir: Path, row: Row) -> None:
        """Write the chain's file in the run's folder."""
        self.save(recording_path(run_dir, row["sequence"]))

    def save(self, path: Path) -> None:
        """Write the answers to `path`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, NDArray[Any]] = {
            "actions": np.stack([np.asarray(output["actions"], np.float32) for output in self._outputs]),
            "subtask": np.array(self._subtasks, np.int64),
        }
        if all("latent_tokens" in output for output in self._outputs):
            arrays["tokens"] = np.stack([output["latent_tokens"] for output in self._outputs])
        write_arrays(path, arrays)
