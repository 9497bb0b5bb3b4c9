"""The Gymnasium environment of Meta-World: the tasks of one robot, whose start states are functions of the seed.

    env = gymnasium.make("vw2_robot.envs.meta_world:vw2_robot/MetaWorld-v0")
    env.reset(seed=0, options={"task": "drawer-open-v3"})
    image = env.render()

Meta-World's own ids sample one of 50 start states from a generator that `reset(seed=)` does not set. Here each start is
new and depends on the seed alone. A world is made when its task is first asked for, and kept: making one takes seconds.
"""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from vw2_robot.errors import require
from vw2_robot.limits import Count, number

from ..option_validation import check_choice
from . import CONTROL_HZ, META_WORLD_ACTIONS
from .rendering import OffscreenCamera, load_mujoco

STATE_SIZE = 39
DEFAULT_TASK = "drawer-open-v3"
CAMERAS = ("corner", "corner2", "corner3", "corner4", "topview", "behindGripper")
"""that do not move with the hand"""


class MetaWorldEnv(gymnasium.Env[NDArray[np.float64], NDArray[np.float32]]):
    """Meta-World's observation is its state [39], which policies do not get; the image is what `render` returns.

    `info["is_success"]` is what Meta-World says of the present state. An episode does not end by itself; Meta-World
    refuses more than 500 steps.

    Args:
        camera: one of `CAMERAS`.
        image_size: height and width of the image in pixels.
        render_mode: "rgb_array".

    Raises:
        InputError: unknown camera or size, or no OpenGL.
        MissingExtraError: Meta-World is not installed.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": CONTROL_HZ}  # noqa: RUF012 - Gymnasium's own convention

    def __init__(self, *, camera: str = "corner2", image_size: int = 128, render_mode: str = "rgb_array") -> None:
        load_mujoco()  # before Meta-World, which imports it
        self._worlds_by_name: dict[str, Any] = require(
            "metaworld.env_dict", extra="metaworld"
        ).ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE
        self._camera = check_choice("camera", camera, CAMERAS)
        self._image_size = number(Count, image_size, "image_size")
        self.render_mode = render_mode
        self.action_space = spaces.Box(-1.0, 1.0, (META_WORLD_ACTIONS.size,), np.float32)
        self.observation_space = spaces.Box(-np.inf, np.inf, (STATE_SIZE,), np.float64)
        self.task = DEFAULT_TASK
        self._open: dict[str, tuple[Any, OffscreenCamera]] = {}

    def check_task(self, task: str) -> str:
        """Return a task's name if Meta-World has it, else raise an InputError."""
        return check_choice("task", task, [name.removesuffix("-goal-observable") for name in self._worlds_by_name])

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float64], dict[str, Any]]:
        """Begin an episode; `options["task"]` names the task, by default that of the episode before."""
        super().reset(seed=seed)
        self.task = self.check_task((options or {}).get("task", self.task))
        world, _ = self._present()
        # Meta-World has no public way to sample a start from a seed: these two switches are its documented ones.
        world.seeded_rand_vec = True
        world._freeze_rand_vec = False
        world.seed(int(self.np_random.integers(2**31)))
        state, _ = world.reset()
        return np.asarray(state, np.float64), {"is_success": False}

    def step(self, action: NDArray[np.floating[Any]]) -> tuple[NDArray[np.float64], float, bool, bool, dict[str, Any]]:
        """Execute one control step of 1/80 s."""
        world, _ = self._present()
        state, reward, _, truncated, info = world.step(np.asarray(action, np.float32))
        outcome = {"is_success": bool(info["success"])}
        return np.asarray(state, np.float64), float(reward), False, bool(truncated), outcome

    def render(self) -> NDArray[np.uint8]:
        """Return the camera's image, uint8 [image_size, image_size, 3]."""
        world, camera = self._present()
        return camera.render(world.data)

    def close(self) -> None:
        """Free the OpenGL contexts."""
        for _, camera in self._open.values():
            camera.close()
        self._open.clear()

    def _present(self) -> tuple[Any, OffscreenCamera]:
        if self.task not in self._open:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of Meta-World's own spaces
                world = self._worlds_by_name[f"{self.task}-goal-observable"](seed=0)
            self._open[self.task] = world, OffscreenCamera(world.model, self._camera, self._image_size)
        return self._open[self.task]
