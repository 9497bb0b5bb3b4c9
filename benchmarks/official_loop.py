"""The official CALVIN evaluation loop in a process of its own, for comparison by `evaluation.py`.

Needs an interpreter with `calvin_env` (vw2_robot/envs/calvin_reference.py says how) and a checkout of `mees/calvin`.
Unchanged and theirs: `evaluate_sequence` and `rollout` of evaluate_policy.py, the start states, the task oracle, the
instructions, the original simulator with legacy resets. Ours: the list of chains (the same, without the minute that
sampling it takes), the policy behind `Vw2CalvinModel`, and counts of steps. Their modules that an evaluation never
calls (training, plotting) are replaced by empty ones, so that their requirements of 2022 are not needed.

    PYTHON -m benchmarks.official_loop --calvin DIR --policy demonstrator --chains 0:10 --out official.jsonl

A line for each chain: {"sequence", "solved", "env_steps", "seconds", "digest"}. `digest` is of all executed actions.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import sys
import time
from collections import defaultdict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from vw2_robot.contracts import Policy
from vw2_robot.envs.calvin_reference import CalvinReference, ReferenceWorld
from vw2_robot.envs.sequences import fnv_of, make_sequences
from vw2_robot.rollouts.evaluate import subtask_seed
from vw2_robot.serving.calvin_model import Vw2CalvinModel

SEED = 0


class Empty(ModuleType):
    """A module in which every name is a function that does nothing."""

    __path__: list[str] = []  # noqa: RUF012 - makes it a package

    def __getattr__(self, name: str) -> Any:
        # The import system asks for names such as __spec__, and must not get a function.
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: None


def import_official(calvin: Path) -> ModuleType:
    """Return their evaluate_policy.py, without the imports that are not used here."""
    # These imports need packages of 2022 and are used only in training.
    for name in ("calvin_agent.models.mcil", "calvin_agent.utils.utils", "pytorch_lightning", "termcolor"):
        sys.modules[name] = Empty(name)
    hashes = Empty("pyhash")
    hashes.fnv1_32 = lambda: fnv_of  # type: ignore[attr-defined]  # pyhash builds on no current Python
    sys.modules["pyhash"] = hashes
    sys.path.insert(0, str(calvin / "calvin_models"))
    return importlib.import_module("calvin_agent.evaluation.evaluate_policy")


class Wrapper:
    """An environment wrapper as their README describes: counts steps, keeps what our scripted expert reads."""

    def __init__(self, world: ReferenceWorld) -> None:
        self._world = world
        self.steps = 0

    def reset(self, robot_obs: Any, scene_obs: Any) -> Any:
        """Reset the original."""
        self._world._observation = self._world.original.reset(robot_obs=robot_obs, scene_obs=scene_obs)
        self._world._information = self._world.original.get_info()
        return self._world._observation

    def get_obs(self) -> Any:
        """Return the original's observation; renders."""
        return self._world.original.get_obs()

    def get_info(self) -> Any:
        """Return the original's information."""
        return self._world.original.get_info()

    def step(self, action: Any) -> Any:
        """Step the original and count."""
        result = self._world.original.step(action)
        self._world._observation = result[0]
        self._world._information = result[3]
        self.steps += 1
        return result


class Model(Vw2CalvinModel):
    """A model that seeds each subtask as `vw2-rollout` does, and hashes the actions."""

    def __init__(self, policy: Policy | str, env: Wrapper, n_action_steps: int | None) -> None:
        super().__init__(policy, n_action_steps=n_action_steps)
        self._env = env

    def begin(self, chain: int) -> None:
        """Start a chain."""
        self._chain = chain
        self._position = 0
        self.first_steps: list[int] = []
        self.digest = hashlib.sha256()

    def reset(self) -> None:
        """Start a subtask."""
        self.first_steps.append(self._env.steps)
        self._queue.reset(seed=subtask_seed(SEED, self._chain, self._position))
        self._position += 1

    def step(self, obs: Any, goal: str) -> Any:
        """Return the action, and add it to the hash."""
        action = super().step(obs, goal)
        self.digest.update(action.tobytes())
        return action


def run(options: argparse.Namespace) -> None:
    official = import_official(options.calvin)
    # A module constant there, 360 by default.
    official.EP_LEN = options.max_steps  # type: ignore[attr-defined]
    reference = CalvinReference()
    env = Wrapper(reference.env)
    policy = reference.expert() if options.policy == "demonstrator" else options.policy
    model = Model(policy, env, options.n_action_steps)
    conf = options.calvin / "calvin_models/conf"
    oracle = official.hydra.utils.instantiate(
        official.OmegaConf.load(conf / "callbacks/rollout/tasks/new_playtable_tasks.yaml")
    )
    instructions = official.OmegaConf.load(conf / "annotations/new_playtable_validation.yaml")
    plans: dict[str, list[Any]] = defaultdict(list)
    first, last = (int(n) for n in options.chains.split(":"))
    with options.out.open("w", encoding="utf-8") as out:
        for chain in make_sequences(last)[first:]:
            begin = time.perf_counter()
            model.begin(chain.number)
            solved = official.evaluate_sequence(
                env, model, oracle, chain.initial_state, list(chain.subtasks), instructions, plans, False
            )
            # The wrapper counts all steps; the difference of two counts is that of a subtask.
            steps = np.diff([*model.first_steps, env.steps]).tolist()
            row = {"sequence": chain.number, "solved": solved, "env_steps": steps, "digest": model.digest.hexdigest()}
            print(json.dumps(row | {"seconds": time.perf_counter() - begin}), file=out, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--calvin", type=Path, required=True, help="checkout of mees/calvin")
    parser.add_argument("--policy", default="demonstrator", help="demonstrator, or a checkpoint")
    parser.add_argument("--chains", default="0:10", help="first:last")
    parser.add_argument("--max-steps", type=int, default=360)
    parser.add_argument("--n-action-steps", type=int)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--more-packages", help="a further folder to import from, last: torch, if it lies elsewhere")
    options = parser.parse_args()
    if options.more_packages:
        sys.path.append(options.more_packages)
    if options.policy != "demonstrator":
        import torch

        torch.set_num_threads(1)
    run(options)


if __name__ == "__main__":
    main()
