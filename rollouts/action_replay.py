"""A policy that gives the answers of a recorded rollout again: `policy=RUN_DIR`, RUN_DIR made with `record=true`.

Under another simulator, another reset mode, another number of workers: what differs then is not the policy's doing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vw2_robot import __version__
from vw2_robot.aliases import with_new_keys
from vw2_robot.contracts import ACTION_DIM, GRIPPER_INDEX, Observation, PolicyOutput
from vw2_robot.errors import InputError
from vw2_robot.storage.files import read_json

from .evaluate import subtask_seed
from .recording import recording_path
from .report.strips import Answers, read_answers
from .results import read_results


class ActionReplay:
    """Implements `vw2_robot.contracts.Policy`: the recorded answers of a rollout, look by look; looks at nothing.

    The seed of `reset` says which chain and which subtask is meant, so the rollout must have the seed of the recorded
    one. Where the recording has no more answers (in another world a subtask may take longer, or be reached at all),
    the arm keeps still and the gripper as it was.
    """

    metadata: dict[str, Any]

    def __init__(self, run_dir: str | Path) -> None:
        self._run_dir = Path(run_dir)
        rows = read_results(self._run_dir)
        if not rows:
            raise InputError(f"{run_dir} is no rollout with recorded actions; make one with vw2-rollout record=true")
        origin = with_new_keys(
            read_json(self._run_dir / "provenance.json", cure="copy it again, or run that rollout again")
        )
        recorded, every = origin.get("policy"), origin.get("n_action_steps")
        if not isinstance(recorded, dict) or not isinstance(every, int):
            raise InputError(f'{run_dir}/provenance.json lacks "policy" or "n_action_steps"; run that rollout again')
        self._places = {
            subtask_seed(row["seed"], row["sequence"], position): (row["sequence"], position)
            for row in rows
            for position in range(len(row["subtasks"]))
        }
        chunk_size = self._read(rows[0]["sequence"]).actions.shape[1]
        self.metadata = {
            "name": f"replay of {recorded.get('name')}",
            "version": __version__,
            "chunk_size": chunk_size,
            "n_action_steps": every,
            "cameras": [],
            "policy_hash": recorded.get("policy_hash"),
            "label_fraction": recorded.get("label_fraction"),
        }
        self._still = np.zeros((chunk_size, ACTION_DIM), np.float32)
        self._answers: NDArray[np.float32] = self._still[None][:0]
        self._next = 0

    def reset(self, prompt: str | None = None, seed: int | None = None) -> None:
        """Go to the first answer of the subtask that had this seed.

        Raises:
            InputError: the recording has no chain with it.
        """
        if seed not in self._places:
            raise InputError(
                f"{self._run_dir} holds no actions for this chain and seed; replay the recorded chains with the seed "
                "of the recorded rollout"
            )
        number, position = self._places[seed]
        recorded = self._read(number)
        self._answers = recorded.actions[recorded.subtask == position]
        self._next = 0

    def infer(self, obs: Observation) -> PolicyOutput:
        """The next recorded chunk."""
        if self._next < len(self._answers):
            actions = self._answers[self._next]
        else:
            actions = self._still.copy()
            actions[:, GRIPPER_INDEX] = self._answers[-1, -1, GRIPPER_INDEX] if len(self._answers) else 1.0
        self._next += 1
        return {"actions": actions}

    def infer_batch(self, obs: Sequence[Observation]) -> list[PolicyOutput]:
        """One chunk for each observation, in turn."""
        return [self.infer(one) for one in obs]

    def _read(self, number: int) -> Answers:
        path = recording_path(self._run_dir, number)
        if not path.is_file():
            raise InputError(f"{path} is missing; it holds the actions of chain {number}")
        return read_answers(path)
