"""Action replay: a policy that returns the outputs of a recorded rollout again (`policy=RUN_DIR`).

RUN_DIR is a rollout made with `record=true`. Replayed in another simulator, with another reset mode or another number
of workers, any difference in the results comes from the simulator and not from the policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vw2_robot import __version__
from vw2_robot.aliases import with_new_keys
from vw2_robot.contracts import GRIPPER, Observation, PolicyOutput, action_names
from vw2_robot.errors import InputError
from vw2_robot.storage.files import read_json

from .evaluate import subtask_seed
from .recording import recording_path
from .report.strips import RecordedOutputs, read_recording
from .results import read_results


class ActionReplay:
    """A `vw2_robot.contracts.Policy` that returns recorded outputs, call by call, whatever it observes.

    The seed of `reset` identifies chain and subtask, so the rollout must have the seed of the recorded one. In another
    simulator a subtask may take longer, or be reached at all. Where the recording has no more outputs, the robot arm
    stays where it is and the gripper keeps its state.
    """

    metadata: dict[str, Any]

    def __init__(self, run_dir: str | Path) -> None:
        """Read the rows and the metadata of the recorded rollout.

        Args:
            run_dir: Folder of a rollout made with `record=true`.

        Raises:
            InputError: The folder is no such rollout, or a file in it is damaged.
        """
        self._run_dir = Path(run_dir)
        rows = read_results(self._run_dir)
        if not rows:
            raise InputError(f"{run_dir} is no rollout with recorded actions; make one with vw2-rollout record=true")
        provenance = with_new_keys(
            read_json(self._run_dir / "provenance.json", cure="copy it again, or run that rollout again")
        )
        recorded = provenance.get("policy")
        n_action_steps = provenance.get("n_action_steps")
        if not isinstance(recorded, dict) or not isinstance(n_action_steps, int):
            raise InputError(f'{run_dir}/provenance.json lacks "policy" or "n_action_steps"; run that rollout again')
        # `reset` receives nothing but prompt and seed; the seed of a subtask is unique within an evaluation.
        self._by_seed = {
            subtask_seed(row["seed"], row["sequence"], position): (row["sequence"], position)
            for row in rows
            for position in range(len(row["subtasks"]))
        }
        # All chains have the same chunk size; so that of the first one is enough.
        self._names = names = action_names(recorded)
        chunk_size = self._read(rows[0]["sequence"]).actions.shape[1]
        self.metadata = {
            "name": f"replay of {recorded.get('name')}",
            "version": __version__,
            "action_space": list(names),
            "chunk_size": chunk_size,
            "n_action_steps": n_action_steps,
            "cameras": [],
            "policy_hash": recorded.get("policy_hash"),
            "label_fraction": recorded.get("label_fraction"),
        }
        self._still = np.zeros((chunk_size, len(names)), np.float32)
        self._gripper = names.index(GRIPPER) if GRIPPER in names else None
        self._chunks: NDArray[np.float32] = self._still[None][:0]
        self._next = 0

    def reset(self, prompt: str | None = None, seed: int | None = None) -> None:
        """Go to the first output of the subtask that had this seed.

        Raises:
            InputError: The recording has no such subtask.
        """
        if seed not in self._by_seed:
            raise InputError(
                f"{self._run_dir} holds no actions for this chain and seed; replay the recorded chains with the seed "
                "of the recorded rollout"
            )
        number, position = self._by_seed[seed]
        recorded = self._read(number)
        self._chunks = recorded.actions[recorded.subtask == position]
        self._next = 0

    def infer(self, obs: Observation) -> PolicyOutput:
        """Return the next recorded chunk."""
        if self._next < len(self._chunks):
            actions = self._chunks[self._next]
        else:
            actions = self._still.copy()
            # Zero would close the gripper, since 0 closes; without any recorded output it stays open.
            if self._gripper is not None:
                actions[:, self._gripper] = self._chunks[-1, -1, self._gripper] if len(self._chunks) else 1.0
        self._next += 1
        return {"actions": actions}

    def infer_batch(self, obs: Sequence[Observation]) -> list[PolicyOutput]:
        """Return one chunk per observation, in order."""
        return [self.infer(one) for one in obs]

    def _read(self, number: int) -> RecordedOutputs:
        path = recording_path(self._run_dir, number)
        if not path.is_file():
            raise InputError(f"{path} is missing; it holds the actions of chain {number}")
        return read_recording(path, names=self._names)
