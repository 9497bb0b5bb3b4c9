"""CALVIN as a Gymnasium environment: robot, scene and cameras in one physics client, 30 Hz (specification, 1 to 10).

The task (oracle, instructions, chains) lies elsewhere; here the reward is always 0 and an episode never ends by itself.
Pictures cost twenty-five times what physics costs, so only the cameras asked for are drawn: none with `cameras=()`. Who
steps much and looks seldom calls `env.unwrapped.step_physics(action)` and `env.unwrapped.render_camera("static")`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from numpy.typing import ArrayLike, NDArray

from vw2_robot.contracts import ACTION_DIM
from vw2_robot.errors import InputError

from .actions import parse_action
from .asset_files import find_assets
from .cameras import CAMERA_NAMES, LENSES, RENDERERS, load_egl, make_camera
from .physics import Physics
from .robot import ROBOT_OBS_SIZE, Panda
from .scene import SCENE_NAMES, SCENE_OBS_SIZE, SCENES, Scene, sample_pose, scene_files

ResetMode = Literal["exact", "legacy"]
RESET_MODES: tuple[str, ...] = get_args(ResetMode)

GRAVITY = -9.8  # m/s^2
PHYSICS_HZ = 240
CONTROL_HZ = 30
PHYSICS_STEPS = PHYSICS_HZ // CONTROL_HZ
LOAD_SEED = 0
STATES = {"robot_obs": ROBOT_OBS_SIZE, "scene_obs": SCENE_OBS_SIZE}

Observation = dict[str, NDArray[Any]]


class CalvinEnv(gymnasium.Env[Observation, Any]):
    """One CALVIN table.

    Observation: a dict with "rgb_<camera>", uint8 [H, W, 3], for each camera in `cameras`; without cameras, since
    Gymnasium allows no empty observation, the two states "robot_obs" and "scene_obs".

    Action: seven numbers, six in [-1, 1] and the gripper by its sign; `step` also takes the other forms of actions.py.

    `info`, at every reset and step: "robot_obs" float64 [15], "scene_obs" float64 [24] (layout: robot.py, scene.py),
    and "robot_info", "scene_info", which the task oracle compares (also returned by `task_info`).

    `reset(options={"robot_obs": ..., "scene_obs": ...})` goes to a state; either may be given alone; what is not given
    goes to its default, blocks to random places drawn from the generator that `reset(seed=)` seeds (0 at first).

    `reset_mode`: "exact" rebuilds the world at each reset (0.07 s), so a reset to a state gives the same bytes whatever
    happened before, as in a new process. "legacy" resets in place (0.3 ms) as the reference does; contacts of the past
    then leak into the next episode.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": CONTROL_HZ}  # noqa: RUF012 - Gymnasium's own convention

    def __init__(
        self,
        *,
        scene: str = "D",
        assets: str | Path = "builtin",
        renderer: str = "tiny",
        cameras: Sequence[str] = ("static",),
        reset_mode: str = "exact",
        render_mode: str | None = None,
    ) -> None:
        cameras = (cameras,) if isinstance(cameras, str) else tuple(cameras)
        _check_choice("scene", scene, SCENE_NAMES)
        _check_choice("renderer", renderer, RENDERERS)
        _check_choice("reset_mode", reset_mode, RESET_MODES)
        for camera in cameras:
            _check_choice("camera", camera, CAMERA_NAMES)
        if render_mode is not None:
            _check_choice("render_mode", render_mode, tuple(self.metadata["render_modes"]))
        self.scene_name = scene
        self.assets_dir = find_assets(assets, scene)
        self.renderer = renderer
        self.reset_mode = reset_mode
        self.render_mode = render_mode
        self.camera_names = cameras
        self.observation_space = _observation_space(cameras)
        self.action_space = spaces.Box(-1.0, 1.0, (ACTION_DIM,), np.float64)
        self._physics = Physics()
        if renderer == "egl":
            load_egl(self._physics)
        self._touched = False
        self._seed_placements(LOAD_SEED)
        self._build_world()

    @property
    def scene_order(self) -> tuple[str, ...]:
        """Names of the blocks in the order in which `scene_obs` lists them."""
        return self.scene.table.block_order

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Go to a state, or to the default one; see the class."""
        options = options or {}
        unknown = sorted(set(options) - set(STATES))
        if unknown:
            raise InputError(f"reset: unknown option(s) {', '.join(unknown)}; known: {', '.join(STATES)}")
        if seed is not None:
            self._seed_placements(seed)
        self.reset_physics(**options)
        return self._observation(), self._info()

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """One control step of 1/30 s, then a look through the cameras."""
        self.step_physics(action)
        return self._observation(), 0.0, False, False, self._info()

    def render(self) -> NDArray[np.uint8] | None:
        """The static camera's picture."""
        if self.render_mode is None:
            gymnasium.logger.warn('render() without a render mode; make the environment with render_mode="rgb_array"')
            return None
        return self.render_camera("static")

    def close(self) -> None:
        """Free the physics client. A second call does nothing."""
        self._physics.close()

    def reset_physics(self, *, robot_obs: ArrayLike | None = None, scene_obs: ArrayLike | None = None) -> None:
        """`reset` without pictures and information: scene, robot, one physics step."""
        robot_state = _read_state("robot_obs", robot_obs)
        scene_state = _read_state("scene_obs", scene_obs)
        if self.reset_mode == "exact" and self._touched:
            self._build_world()
        self._touched = True
        if scene_state is None:
            self.scene.reset_to_default(self.np_random)
        else:
            self.scene.reset_to(scene_state)
        self.robot.reset(robot_state)
        self._physics.stepSimulation()

    def step_physics(self, action: Any) -> None:
        """`step` without pictures and information, about 1 ms. Takes every form of action in `actions.py`."""
        self.robot.apply(parse_action(action))
        for _ in range(PHYSICS_STEPS):
            self._physics.stepSimulation()
        self.scene.update_button_and_switch()

    def robot_obs(self) -> NDArray[np.float64]:
        """The robot's state now, [15]: tool position and Euler angles, opening width, arm joints, gripper command."""
        return self.robot.observe()

    def scene_obs(self) -> NDArray[np.float64]:
        """The scene's state now, [24]: doors, button, switch, lights, blocks in `scene_order`."""
        return self.scene.observe()

    def task_info(self) -> dict[str, Any]:
        """What the task oracle compares: {"robot_info": ..., "scene_info": ...}, now."""
        return {"robot_info": self.robot.info(), "scene_info": self.scene.info()}

    def render_camera(self, name: str) -> NDArray[np.uint8]:
        """One picture, uint8 [H, W, 3], whether or not `name` is among `cameras`."""
        return self.render_depth(name)[0]

    def render_depth(self, name: str) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Picture and depth in metres, float32 [H, W], of the same moment."""
        _check_choice("camera", name, CAMERA_NAMES)
        return self.cameras[name].render()

    def _build_world(self) -> None:
        """Load everything into an empty simulation, in the one order that reproduces recordings."""
        physics = self._physics
        physics.resetSimulation()
        physics.setPhysicsEngineParameter(deterministicOverlappingPairs=0)
        physics.setGravity(0, 0, GRAVITY)
        self.robot = Panda(physics, self.assets_dir / scene_files(self.scene_name).robot)
        # The poses at load time reach later physics through the broad phase: they are the same in every world.
        self.scene = Scene(physics, self.scene_name, self.assets_dir, _generator(LOAD_SEED))
        self.cameras = {name: make_camera(name, physics, self.robot) for name in CAMERA_NAMES}
        self._touched = False

    def _seed_placements(self, seed: int) -> None:
        """Start the stream of random placements after the three that the reference uses up while loading its blocks."""
        super().reset(seed=seed)
        table = SCENES[self.scene_name]
        for _ in table.blocks:
            sample_pose(table, self.np_random)

    def _observation(self) -> Observation:
        if not self.camera_names:
            return {"robot_obs": self.robot_obs(), "scene_obs": self.scene_obs()}
        return {f"rgb_{name}": self.render_camera(name) for name in self.camera_names}

    def _info(self) -> dict[str, Any]:
        return {"robot_obs": self.robot_obs(), "scene_obs": self.scene_obs(), **self.task_info()}


def _generator(seed: int) -> np.random.Generator:
    return seeding.np_random(seed)[0]


def _observation_space(cameras: tuple[str, ...]) -> spaces.Space[Any]:
    if not cameras:
        return spaces.Dict({name: spaces.Box(-np.inf, np.inf, (size,), np.float64) for name, size in STATES.items()})
    pixels = {name: LENSES[name].pixels for name in cameras}
    return spaces.Dict({f"rgb_{name}": spaces.Box(0, 255, (size, size, 3), np.uint8) for name, size in pixels.items()})


def _check_choice(what: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(f"unknown {what} {value!r}; known: {', '.join(known)}")


def _read_state(name: str, value: ArrayLike | None) -> NDArray[np.float64] | None:
    size = STATES[name]
    if value is None:
        return None
    try:
        state = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"reset: {name} must be {size} numbers, received {value!r}") from error
    if state.shape != (size,) or not np.isfinite(state).all():
        raise InputError(f"reset: {name} must be {size} finite numbers, received shape {state.shape}: {state.tolist()}")
    return state
