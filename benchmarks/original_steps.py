"""The original simulator in a process of its own, stepped on request by `environment_steps.py`.

It may need another interpreter than ours, since `calvin_env` has requirements of its own. Requests and answers are
lines of JSON on standard input and output; seconds are CPU seconds of this process inside the original's `step` only.

    {"do": "open", "scene": "D", "cameras": ["static"]}         -> {"commit": ..., "data": ..., "versions": ...}
    {"do": "reset", "robot_obs": [...], "scene_obs": [...]}     -> {}
    {"do": "step", "actions": [[...], ...]}                     -> {"seconds": ..., "states": [...], "images": [...]}

`states` and `images` have one hash per step. An error that a user can fix is answered as {"error": message}.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import sys
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vw2_robot.envs.calvin_reference import ReferenceWorld, find_checkout
from vw2_robot.errors import InputError, MissingExtraError


def digest(*arrays: NDArray[Any]) -> str:
    """Return a short hash of the bytes of arrays."""
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()[:16]


def run_steps(world: ReferenceWorld, actions: list[list[float]]) -> dict[str, Any]:
    """Step the unchanged original, as an evaluation does."""
    seconds = 0.0
    states = []
    images = []
    for values in actions:
        action = np.array(values)
        # Hashes and conversion of actions are outside the measured time.
        begin = time.process_time()
        observation, _, _, _ = world.original.step(action)
        seconds += time.process_time() - begin
        states.append(digest(observation["robot_obs"], observation["scene_obs"]))
        images.append(digest(observation["rgb_obs"]["rgb_static"]))
    return {"seconds": seconds, "states": states, "images": images}


class Server:
    """The one world and its request handler."""

    def __init__(self) -> None:
        self._world: ReferenceWorld | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Execute a request and return its answer."""
        if request["do"] == "open":
            if self._world is not None:
                self._world.close()
            self._world = ReferenceWorld(scene=request["scene"], cameras=request["cameras"])
            packages = ("pybullet", "gym", "numpy")
            return {
                "commit": self._world.commit,
                "data": str(find_checkout() / "data"),
                "versions": {name: importlib.metadata.version(name) for name in packages},
            }
        assert self._world is not None, "open first"
        if request["do"] == "reset":
            self._world.reset_physics(robot_obs=request["robot_obs"], scene_obs=request["scene_obs"])
            return {}
        return run_steps(self._world, request["actions"])


def main() -> None:
    # PyBullet prints to standard output, so answers get a copy of that descriptor and prints go to standard error.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    server = Server()
    for line in sys.stdin:
        try:
            reply = server.answer(json.loads(line))
        except (InputError, MissingExtraError) as error:
            reply = {"error": str(error)}
        print(json.dumps(reply), file=answers, flush=True)


if __name__ == "__main__":
    main()
