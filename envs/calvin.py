"""CALVIN as a Gymnasium environment: robot, scene and cameras in one physics client, 30 Hz (specification, 1 to 10).

Without a task the reward is always 0 and an episode never ends by itself. Asked for one (`task=`), the environment
judges every step: success brings reward 1 and ends the episode. Chains of tasks are the benchmark's (benchmark.py).
An image costs many times what physics costs (docs/simulator.md), so only the cameras asked for are drawn: none with
`cameras=()`. Who steps much and looks seldom calls `env.unwrapped.step_physics(action)` and
`env.unwrapped.render_camera("static")`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from numpy.typing import ArrayLike, NDArray

from vw2_robot.contracts import ACTION_DIM
from vw2_robot.errors import InputError

from .actions import parse_action
from .asset_files import find_assets
from .backdrop import Backdrop, Layer, hide_all_but, paintable
from .cameras import CAMERA_NAMES, INTRINSICS, RENDERERS, load_egl, make_cameras, static_camera
from .option_validation import check_choice
from .physics import Physics, SimulationClosedError
from .robot import ROBOT_OBS_SIZE, Panda
from .scene import LIGHTS_IN_SCENE_OBS, SCENE_NAMES, SCENE_OBS_SIZE, SCENES, Scene, sample_pose, scene_files
from .task_wrapper import TaskWrapper

ResetMode = Literal["exact", "legacy"]
RESET_MODES: tuple[str, ...] = get_args(ResetMode)
WorldState = Literal["incomplete", "loaded", "touched", "ready"]  # ready: reset, so it can be stepped

GRAVITY = -9.8  # m/s^2
PHYSICS_HZ = 240
CONTROL_HZ = 30
PHYSICS_STEPS = PHYSICS_HZ // CONTROL_HZ
LOAD_SEED = 0
STATES = {"robot_obs": ROBOT_OBS_SIZE, "scene_obs": SCENE_OBS_SIZE}
MAX_STATE = 1000.0  # meters or radians, far beyond the table; numbers beyond all bounds hang Bullet's solvers
OPTIONS = (*STATES, "task")  # of reset

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

    `task` (a name, see oracle.py), here for every episode or as an option of `reset` for one: `info` also has "task",
    "instruction" (its sentence) and "is_success", whether it has happened since the reset; the step with success brings
    reward 1.0 and terminates. With a task and no "scene_obs", the episode begins in one of the benchmark's start states
    in which the task can be done, drawn at random. `gymnasium.make(max_episode_steps=360)` sets the benchmark's limit.

    `reset_mode`: "exact" rebuilds the world at each reset (10 ms with the built-in assets, 60 with the original), so
    a reset to a state gives the same bytes whatever happened before, as in a new process. "legacy" resets in place
    (0.2 ms) as the reference does; contacts of the past then leak into the next episode. A reset with a seed rebuilds
    in either mode.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": CONTROL_HZ}  # noqa: RUF012 - Gymnasium's own convention

    def __init__(
        self,
        *,
        scene: str = "D",
        assets: str | Path = "builtin",
        renderer: str = "layered",
        cameras: Sequence[str] = ("static",),
        reset_mode: str = "exact",
        render_mode: str | None = None,
        task: str | None = None,
    ) -> None:
        self.scene_name = check_choice("scene", scene, SCENE_NAMES)
        self.renderer = check_choice("renderer", renderer, RENDERERS)
        self.reset_mode = check_choice("reset_mode", reset_mode, RESET_MODES)
        self.camera_names = _read_cameras(cameras)
        if render_mode is not None:
            check_choice("render_mode", render_mode, self.metadata["render_modes"])
        self.render_mode = render_mode
        self.assets_dir = find_assets(assets, scene)
        self.observation_space = _observation_space(self.camera_names)
        self.action_space = spaces.Box(-1.0, 1.0, (ACTION_DIM,), np.float64)
        self._always_asked = None if task is None else TaskWrapper(task)
        self._asked: TaskWrapper | None = None
        self._world: WorldState = "incomplete"
        self._physics = Physics()
        try:
            if renderer == "egl":
                load_egl(self._physics)
            self._seed_placements(LOAD_SEED)
            self._build_world()
        except BaseException:
            self._physics.close()
            raise

    @property
    def scene_order(self) -> tuple[str, ...]:
        """Names of the blocks in the order in which `scene_obs` lists them."""
        return self.scene.table.block_order

    @property
    def task(self) -> str | None:
        """Name of the task asked for, or None."""
        asked = self._asked or self._always_asked
        return asked.name if asked else None

    @property
    def task_description(self) -> str:
        """The sentence that asks for the task; empty without one."""
        asked = self._asked or self._always_asked
        return asked.instruction if asked else ""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Go to a state, or to the default one; see the class."""
        options = {} if options is None else options
        if not isinstance(options, Mapping):
            raise InputError(f"reset: options must be a dict with any of {', '.join(OPTIONS)}, found {options!r}")
        unknown = sorted(str(name) for name in options if name not in OPTIONS)
        if unknown:
            raise InputError(f"reset: unknown option(s) {', '.join(unknown)}; known: {', '.join(OPTIONS)}")
        self._refuse_if_closed("reset")
        if seed is not None:
            self._seed_placements(seed)
            self._build_fresh_world()  # in legacy mode, too: what follows a seed depends on nothing before it
        self.reset_physics(**options)
        return self._look()

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """One control step of 1/30 s, then a look through the cameras."""
        self.step_physics(action)
        observation, info = self._look()
        success: bool = info.get("is_success", False)
        return observation, float(success), success, False, info

    def render(self) -> NDArray[np.uint8] | None:
        """The static camera's image."""
        if self.render_mode is None:
            gymnasium.logger.warn('render() without a render mode; make the environment with render_mode="rgb_array"')
            return None
        self._refuse_if_not_ready("render")
        return self.render_camera("static")

    def close(self) -> None:
        """Free the physics client. A second call does nothing; a forgotten one is made up for when the object goes."""
        self._physics.close()

    def begin_task(self, task: str) -> dict[str, Any]:
        """Ask for another task from this moment on, without a reset; returns `info`. Lasts until the next reset."""
        self._refuse_if_not_ready("begin_task")
        self._asked = TaskWrapper(task)
        self._asked.begin(self.task_info())
        return self._info()

    def reset_physics(
        self, *, robot_obs: ArrayLike | None = None, scene_obs: ArrayLike | None = None, task: str | None = None
    ) -> None:
        """`reset` without images and information: scene, robot, one physics step."""
        self._refuse_if_closed("reset")
        robot_state = _read_state("robot_obs", robot_obs)
        scene_state = _read_state("scene_obs", scene_obs)
        asked = self._always_asked if task is None else TaskWrapper(task)
        if asked is not None and scene_state is None:
            start_robot, scene_state = asked.sample_start(self.scene_name, self.np_random)
            robot_state = start_robot if robot_state is None else robot_state
        if self.reset_mode == "exact" or self._world == "incomplete":
            self._build_fresh_world()
        self._world = "touched"
        if scene_state is None:
            self.scene.reset_to_default(self.np_random)
        else:
            self.scene.reset_to(scene_state)
        self.robot.reset(robot_state)
        self._physics.stepSimulation()
        self._asked = asked
        if asked is not None:
            asked.begin(self.task_info())
        self._world = "ready"

    def step_physics(self, action: Any) -> None:
        """`step` without images and information, about 1 ms. Takes every form of action in `actions.py`."""
        self._refuse_if_not_ready("step")
        self.robot.apply(parse_action(action))
        advance = self._physics.stepSimulation
        for _ in range(PHYSICS_STEPS):
            advance()
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
        """One image, uint8 [H, W, 3], whether or not `name` is among `cameras`."""
        return self.render_depth(name)[0]

    def render_depth(self, name: str) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Image and depth in meters, float32 [H, W], of the same moment."""
        check_choice("camera", name, CAMERA_NAMES)
        self._refuse_if_closed("render")
        return self.cameras[name].render()

    def _build_world(self) -> None:
        """Load everything into an empty simulation, in the one order that reproduces recordings."""
        self._world = "incomplete"
        physics = self._physics
        physics.resetSimulation()
        physics.setPhysicsEngineParameter(deterministicOverlappingPairs=0)
        physics.setGravity(0, 0, GRAVITY)
        self.robot = Panda(physics, self.assets_dir / scene_files(self.scene_name).robot)
        # The poses at load time reach later physics through the broad phase: they are the same in every world.
        self.scene = Scene(physics, self.scene_name, self.assets_dir, _generator(LOAD_SEED))
        backdrop = None
        if self.renderer == "layered":
            still = paintable(physics, self.scene.still_parts)
            layer = functools.partial(_still_layer, self.scene_name, self.assets_dir)
            backdrop = Backdrop(physics, still, layer)
        self.cameras = make_cameras(physics, self.robot, backdrop)
        self._world = "loaded"

    def _build_fresh_world(self) -> None:
        if self._world != "loaded":
            self._build_world()

    def _seed_placements(self, seed: int) -> None:
        """Start the stream of random placements after the three that the reference uses up while loading its blocks."""
        super().reset(seed=seed)
        table = SCENES[self.scene_name]
        for _ in table.blocks:
            sample_pose(table, self.np_random)

    def _look(self) -> tuple[Observation, dict[str, Any]]:
        info = self._info()
        if self.camera_names:
            return {f"rgb_{name}": self.render_camera(name) for name in self.camera_names}, info
        return {name: info[name].copy() for name in STATES}, info

    def _info(self) -> dict[str, Any]:
        robot_obs = self.robot.observe()
        scene_obs, scene_info = self.scene.observe_with_info()
        info = {
            "robot_obs": robot_obs,
            "scene_obs": scene_obs,
            "robot_info": self.robot.info(robot_obs),
            "scene_info": scene_info,
        }
        if self._asked is not None:
            info["task"], info["instruction"] = self._asked.name, self._asked.instruction
            info["is_success"] = self._asked.is_solved(info)
        return info

    def _refuse_if_closed(self, call: str) -> None:
        if self._physics.is_closed:
            raise SimulationClosedError(f"{call}: this environment has been closed; make a new one")

    def _refuse_if_not_ready(self, call: str) -> None:
        self._refuse_if_closed(call)
        if self._world != "ready":
            raise ResetNeeded(f"{call}: call reset() first; what was only loaded has not been put into a state")


def _generator(seed: int) -> np.random.Generator:
    return seeding.np_random(seed)[0]


def _observation_space(cameras: tuple[str, ...]) -> spaces.Space[Any]:
    if not cameras:
        return spaces.Dict(
            {name: spaces.Box(-MAX_STATE, MAX_STATE, (size,), np.float64) for name, size in STATES.items()}
        )
    pixels = {name: INTRINSICS[name].pixels for name in cameras}
    return spaces.Dict({f"rgb_{name}": spaces.Box(0, 255, (size, size, 3), np.uint8) for name, size in pixels.items()})


def _read_cameras(cameras: Sequence[str]) -> tuple[str, ...]:
    if isinstance(cameras, str):
        cameras = (cameras,)
    if not isinstance(cameras, Sequence):
        raise InputError(f"cameras: expected some of {', '.join(CAMERA_NAMES)}, or () for none, found {cameras!r}")
    return tuple(check_choice("camera", camera, CAMERA_NAMES) for camera in cameras)


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
    if np.abs(state).max() > MAX_STATE:
        raise InputError(f"reset: {name} is in meters and radians, none above {MAX_STATE:g}; received {state.tolist()}")
    if name == "scene_obs" and not set(state[LIGHTS_IN_SCENE_OBS].round()) <= {0, 1}:
        raise InputError(
            "reset: entries 4 and 5 of scene_obs, bulb and LED, must be 0 (off) or 1 (on), received "
            f"{state[LIGHTS_IN_SCENE_OBS].tolist()}"
        )
    return state


@functools.lru_cache(maxsize=16)
def _still_layer(scene_name: str, assets_dir: Path) -> Layer:
    """What the static camera sees of a scene's still parts, drawn in a world of its own, once in a process."""
    physics = Physics()
    try:
        scene = Scene(physics, scene_name, assets_dir, _generator(LOAD_SEED))
        hide_all_but(physics, paintable(physics, scene.still_parts))
        return static_camera(physics).draw()
    finally:
        physics.close()
