"""CALVIN as a Gymnasium environment: robot, scene and cameras in one physics client, 30 Hz.

Without a task the reward is always 0 and an episode never ends by itself. With a task (`task=`), the environment checks
every step: success gives reward 1 and ends the episode. Chains of tasks belong to the benchmark (benchmark.py).
Rendering costs many times what physics costs (docs/simulator.md), so only the requested cameras are rendered, none with
`cameras=()`. A caller that needs few images steps with `env.unwrapped.step_physics(action)` and renders with
`env.unwrapped.render_camera("static")`.
"""

from __future__ import annotations

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
from .backdrop import Backdrop, layered_cameras
from .cameras import CAMERA_NAMES, INTRINSICS, RENDERERS, Camera, GripperCamera, StaticCamera, load_egl
from .option_validation import check_choice
from .physics import Physics, SimulationClosedError
from .robot import ROBOT_OBS_SIZE, Panda
from .scene import LIGHTS_IN_SCENE_OBS, SCENE_NAMES, SCENE_OBS_SIZE, SCENES, Scene, sample_pose, scene_files
from .task_wrapper import TaskWrapper

ResetMode = Literal["exact", "legacy"]
RESET_MODES: tuple[str, ...] = get_args(ResetMode)
WorldState = Literal["incomplete", "loaded", "touched", "ready"]
"""Being loaded or failed to load; loaded and never stepped; being reset; reset, so it can be stepped."""

GRAVITY = -9.8  # m/s^2
PHYSICS_HZ = 240
CONTROL_HZ = 30
PHYSICS_STEPS = PHYSICS_HZ // CONTROL_HZ
LOAD_SEED = 0
STATES = {"robot_obs": ROBOT_OBS_SIZE, "scene_obs": SCENE_OBS_SIZE}
MAX_STATE = 1000.0  # meters or radians, far beyond the table; numbers beyond all bounds hang Bullet's solvers
# What `reset(options=)` takes.
OPTIONS = (*STATES, "task")  # of reset

Observation = dict[str, NDArray[Any]]


class CalvinEnv(gymnasium.Env[Observation, Any]):
    """One CALVIN table.

    Observation: a dict with "rgb_<camera>", uint8 [H, W, 3], for each camera in `cameras`; without cameras, since
    Gymnasium allows no empty observation, the two states "robot_obs" and "scene_obs".

    Action: seven numbers, six in [-1, 1] and the gripper by its sign; `step` also takes the other forms of actions.py.

    `info`, at every reset and step: "robot_obs" float64 [15], "scene_obs" float64 [24] (layout: robot.py, scene.py),
    and "robot_info", "scene_info", which the task oracle compares (also returned by `task_info`).

    `reset(options={"robot_obs": ..., "scene_obs": ...})` goes to a state; either may be given alone. What is not given
    goes to its default; blocks go to random positions from the generator that `reset(seed=)` seeds (0 at first).

    `task` (a name, see oracle.py), here for every episode or as an option of `reset` for one: `info` also has "task",
    "instruction" and "is_success", whether the task has happened since the reset; the step with success gives reward
    1.0 and terminates. With a task and no "scene_obs", the episode begins in a random one of the benchmark's start
    states in which the task can be done. `gymnasium.make(max_episode_steps=360)` sets the benchmark's limit.

    `reset_mode`: "exact" rebuilds the world at each reset (10 ms with the built-in assets, 60 with the original), so
    a reset to a state gives the same bytes whatever happened before, as in a new process. "legacy" resets in place
    (0.2 ms) as the reference does; the solver's contacts then carry over into the next episode. A reset with a seed
    rebuilds in either mode.

    Args:
        scene: "A", "B", "C" or "D".
        assets: "builtin", or a directory with the layout of `calvin_env/data`.
        renderer: "tiny", "layered" or "egl", see cameras.py.
        cameras: names of the cameras in the observation, "static" and "gripper"; may be empty.
        reset_mode: "exact" or "legacy".
        render_mode: "rgb_array" or None.
        task: name of a task for every episode, or None.

    Raises:
        InputError: an unknown name, or assets that are missing or damaged.
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
        names = (cameras,) if isinstance(cameras, str) else cameras
        if not isinstance(names, Sequence):
            raise InputError(f"cameras: expected some of {', '.join(CAMERA_NAMES)}, or () for none, found {names!r}")
        self.camera_names = tuple(check_choice("camera", name, CAMERA_NAMES) for name in names)
        if render_mode is not None:
            check_choice("render_mode", render_mode, self.metadata["render_modes"])
        self.render_mode = render_mode
        self.assets_dir = find_assets(assets, scene)
        # Images, or the two states where there is no camera.
        parts: dict[str, spaces.Space[Any]] = {}
        for name in self.camera_names:
            size = INTRINSICS[name].pixels
            parts[f"rgb_{name}"] = spaces.Box(0, 255, (size, size, 3), np.uint8)
        if not parts:
            parts = {name: spaces.Box(-MAX_STATE, MAX_STATE, (size,), np.float64) for name, size in STATES.items()}
        observation_space: spaces.Space[Any] = spaces.Dict(parts)
        self.observation_space = observation_space
        self.action_space = spaces.Box(-1.0, 1.0, (ACTION_DIM,), np.float64)
        self._default_task = None if task is None else TaskWrapper(task)
        self._task: TaskWrapper | None = None
        self._world: WorldState = "incomplete"
        # From here on an error must free the client, which Python's garbage collection may do late.
        self._physics = Physics()
        # What rests is hidden in this world and rendered in another.
        self._backdrop = Backdrop(scene, self.assets_dir) if renderer == "layered" else None
        try:
            if renderer == "egl":
                load_egl(self._physics)
            self._seed_placements(LOAD_SEED)
            self._build_world()
        except BaseException:
            self._physics.close()
            raise

    @property
    def physics(self) -> Physics:
        """The simulation of robot and scene."""
        return self._physics

    @property
    def scene_order(self) -> tuple[str, ...]:
        """Names of the blocks in the order in which `scene_obs` lists them."""
        return self.scene.table.block_order

    @property
    def task(self) -> str | None:
        """Name of the present task, or None."""
        task = self._task or self._default_task
        return task.name if task else None

    @property
    def task_description(self) -> str:
        """The task's instruction; empty without a task."""
        task = self._task or self._default_task
        return task.instruction if task else ""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Go to a state, or to the default one.

        Args:
            seed: seeds the generator of random placements and rebuilds the simulation.
            options: any of "robot_obs" [15], "scene_obs" [24] and "task", see the class.

        Returns:
            Observation and info.

        Raises:
            InputError: unknown options, or a state that is not valid.
        """
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
        return self._observe()

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Execute one control step of 1/30 s and render the cameras.

        Args:
            action: seven numbers, or another form of `actions.py`.

        Returns:
            Observation, reward, terminated, truncated (always False) and info.
        """
        self.step_physics(action)
        observation, info = self._observe()
        # Without a task there is no "is_success", and the reward stays 0.
        success: bool = info.get("is_success", False)
        return observation, float(success), success, False, info

    def render(self) -> NDArray[np.uint8] | None:
        """Return the static camera's image, uint8 [200, 200, 3]; None without a render mode."""
        if self.render_mode is None:
            gymnasium.logger.warn('render() without a render mode; make the environment with render_mode="rgb_array"')
            return None
        self._refuse_if_not_ready("render")
        return self.render_camera("static")

    def close(self) -> None:
        """Free the simulations. A second call does nothing; the finalizers of the objects free forgotten ones."""
        self._physics.close()
        if self._backdrop is not None:
            self._backdrop.close()

    def begin_task(self, task: str) -> dict[str, Any]:
        """Set the task from this moment until the next reset, without a reset, and return `info`."""
        self._refuse_if_not_ready("begin_task")
        self._task = TaskWrapper(task)
        self._task.begin(self.task_info())
        return self._info()

    def reset_physics(
        self, *, robot_obs: ArrayLike | None = None, scene_obs: ArrayLike | None = None, task: str | None = None
    ) -> None:
        """Reset scene and robot, then advance one physics step; without images and info.

        Args:
            robot_obs: state of the robot [15]; None: its home pose.
            scene_obs: state of the scene [24]; None: everything closed and off, blocks at random.
            task: name of a task for this episode; None: that of the constructor.
        """
        self._refuse_if_closed("reset")
        # Check everything before anything moves, so that a refused reset changes nothing.
        robot_state = _read_state("robot_obs", robot_obs)
        scene_state = _read_state("scene_obs", scene_obs)
        wrapper = self._default_task if task is None else TaskWrapper(task)
        if wrapper is not None and scene_state is None:
            start_robot, scene_state = wrapper.sample_start(self.scene_name, self.np_random)
            robot_state = start_robot if robot_state is None else robot_state
        # A world that was never stepped is already as good as new, see _build_fresh_world.
        if self.reset_mode == "exact" or self._world == "incomplete":
            self._build_fresh_world()
        self._world = "touched"
        if scene_state is None:
            self.scene.reset_to_default(self.np_random)
        else:
            self.scene.reset_to(scene_state)
        # The scene first, then the robot, then one physics step: the order of the reference.
        self.robot.reset(robot_state)
        self._physics.stepSimulation()
        self._task = wrapper
        if wrapper is not None:
            wrapper.begin(self.task_info())
        self._world = "ready"

    def step_physics(self, action: Any) -> None:
        """Execute one control step without images and info, about 1 ms. Takes every form of action of `actions.py`."""
        self._refuse_if_not_ready("step")
        self.robot.apply(parse_action(action))
        # Looked up once: this loop runs 240 times per simulated second.
        advance = self._physics.stepSimulation
        for _ in range(PHYSICS_STEPS):
            advance()
        # Once per control step, as in the reference; a press shorter than that is not seen.
        self.scene.update_button_and_switch()

    def robot_obs(self) -> NDArray[np.float64]:
        """Return the robot's state [15]: tool position and Euler angles, opening width, arm joints, gripper command."""
        return self.robot.observe()

    def scene_obs(self) -> NDArray[np.float64]:
        """Return the scene's state [24]: doors, button, switch, lights, blocks in `scene_order`."""
        return self.scene.observe()

    def task_info(self) -> dict[str, Any]:
        """Return what the task oracle compares: {"robot_info": ..., "scene_info": ...}."""
        return {"robot_info": self.robot.info(), "scene_info": self.scene.info()}

    def render_camera(self, name: str) -> NDArray[np.uint8]:
        """Return one image, uint8 [H, W, 3], whether or not `name` is among `cameras`."""
        return self._camera(name).render()

    def render_depth(self, name: str) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Return image, uint8 [H, W, 3], and depth in meters, float32 [H, W], of the same moment."""
        return self._camera(name).render_depth()

    def _camera(self, name: str) -> Camera:
        check_choice("camera", name, CAMERA_NAMES)
        self._refuse_if_closed("render")
        return self.cameras[name]

    def _build_world(self) -> None:
        """Load everything into an empty simulation, in the one order that reproduces recordings."""
        self._world = "incomplete"
        physics = self._physics
        physics.resetSimulation()
        physics.setPhysicsEngineParameter(deterministicOverlappingPairs=0)
        physics.setGravity(0, 0, GRAVITY)
        self.robot = Panda(physics, self.assets_dir / scene_files(self.scene_name).robot)
        # The poses at load time influence later physics through the broad phase, so they are the same in every build.
        self.scene = Scene(physics, self.scene_name, self.assets_dir, seeding.np_random(LOAD_SEED)[0])
        self.cameras = self._make_cameras()
        self._world = "loaded"

    def _make_cameras(self) -> dict[str, Camera]:
        if self._backdrop is None:
            return {"static": StaticCamera(self._physics), "gripper": GripperCamera(self._physics, self.robot)}
        return layered_cameras(self._physics, self.robot, self.scene, self._backdrop)

    def _build_fresh_world(self) -> None:
        if self._world != "loaded":
            self._build_world()

    def _seed_placements(self, seed: int) -> None:
        """Seed the generator of placements and skip the three that the reference consumes while loading its blocks."""
        super().reset(seed=seed)
        table = SCENES[self.scene_name]
        for _ in table.blocks:
            sample_pose(table, self.np_random)

    def _observe(self) -> tuple[Observation, dict[str, Any]]:
        info = self._info()
        if self.camera_names:
            return {f"rgb_{name}": self.render_camera(name) for name in self.camera_names}, info
        return {name: info[name].copy() for name in STATES}, info

    def _info(self) -> dict[str, Any]:
        """Return `info` of the present state, as described in the class."""
        robot_obs = self.robot.observe()
        scene_obs, scene_info = self.scene.observe_with_info()
        info = {
            "robot_obs": robot_obs,
            "scene_obs": scene_obs,
            "robot_info": self.robot.info(robot_obs),
            "scene_info": scene_info,
        }
        if self._task is not None:
            info["task"] = self._task.name
            info["instruction"] = self._task.instruction
            info["is_success"] = self._task.is_solved(info)
        return info

    def _refuse_if_closed(self, call: str) -> None:
        if self._physics.is_closed:
            raise SimulationClosedError(f"{call}: this environment has been closed; make a new one")

    def _refuse_if_not_ready(self, call: str) -> None:
        self._refuse_if_closed(call)
        if self._world != "ready":
            raise ResetNeeded(f"{call}: call reset() first; a simulation that was only loaded is in no defined state")


def _read_state(name: str, value: ArrayLike | None) -> NDArray[np.float64] | None:
    """Return a state that a caller passed as an array of the right size and range; None stays None."""
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
