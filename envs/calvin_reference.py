"""The original CALVIN simulator, `calvin_env`, as a `vw2_robot.contracts.Benchmark`: to compare its results with ours.

    vw2-rollout policy=runs/first/finetune env=calvin_reference num_sequences=20 run_dir=runs/first/reference

Nothing of `calvin_env` is part of this package. For a comparison it must be installed as a git checkout (it refuses to
work otherwise, and its assets are not packaged). On Python 3.11 this worked:

    git clone https://github.com/mees/calvin_env && git -C calvin_env checkout 797142c
    pip install pybullet==3.2.7 gym==0.26.2 gitpython==3.2.1 numpy-quaternion==2024.0.13 \
        opencv-python-headless==4.11.0.86 scipy==1.17.1 numpy==1.26.4
    pip install --no-deps -e calvin_env

`--no-deps`, because its own requirements include packages that an evaluation does not use. None of its Hydra programs
is run: its yaml files are read directly, so hydra-colorlog and the packages of the tactile camera are not needed
either.

From the original: physics, actions, info dictionaries, the task oracle, images. Ours: the 1000 chains, the
instructions, the check of each action (a gripper command other than exactly -1 or +1 crashes the original).

- Its resets are "legacy" by design: solver state survives them, so the outcome of a chain depends on the chains before
  it, and thereby on the number of workers. `metadata["reset_mode"]` records this. Only the first reset of a process is
  independent.
- It renders all its cameras in every step. Only the static one is configured, and `observe` returns the image that is
  already there, so few policy calls save nothing (benchmarks/environment_steps.py measures the cost).
- It mixes calls with and without a client number, so it must be the only simulation of its process, from the start.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from omegaconf import DictConfig, OmegaConf

import vw2_robot
from vw2_robot.errors import InputError, MissingExtraError

from .actions import parse_action
from .benchmark import MAX_STEPS, CalvinProtocol, check_max_steps
from .cameras import CAMERA_NAMES, RENDERER_VERSIONS, load_egl
from .instructions import read_instructions
from .oracle import load_tasks
from .physics import Physics, pybullet_version
from .robot import ROBOT_OBS_SIZE
from .scene import SCENE_NAMES, SCENE_OBS_SIZE

log = logging.getLogger(__name__)

PACKAGE = "calvin_env"
HOW_TO_INSTALL = (
    "git clone https://github.com/mees/calvin_env && git -C calvin_env checkout 797142c && pip install --no-deps -e "
    "calvin_env && pip install pybullet gym==0.26.2 gitpython numpy-quaternion opencv-python-headless scipy"
)
RENDERERS = ("tiny", "egl")
SEED = 0  # of the placements, as in the configuration of the original


class ReferenceWorld:
    """The original environment, with the methods of `CalvinEnv` that a benchmark and the scripted expert need.

    `original` is the environment itself. One object per process at a time.

    Args:
        scene: "A", "B", "C" or "D".
        renderer: "tiny" or "egl".
        cameras: names of the cameras to render in every step.

    Raises:
        MissingExtraError: `calvin_env` or a package it needs is not installed.
        InputError: an unknown name, no checkout, or another simulation in this process.
    """

    def __init__(self, *, scene: str = "D", renderer: str = "tiny", cameras: Sequence[str] = ("static",)) -> None:
        for what, value, known in (
            ("scene", scene, SCENE_NAMES),
            ("renderer", renderer, RENDERERS),
            *(("camera", camera, CAMERA_NAMES) for camera in cameras),
        ):
            if value not in known:
                raise InputError(f"unknown {what} {value!r}; known: {', '.join(known)}")
        checkout = find_checkout()
        simulator = _import_original("envs.play_table_env")
        self.commit = _commit(_import_original("utils.utils"), checkout)
        # Client number 0 is the default of calls without a client number.
        if simulator.p.isConnected(0):
            raise InputError(
                "calvin_env must be the first simulation of its process, since part of its calls go to whatever "
                "simulation is number 0; close the other environments first, or use another process"
            )
        if renderer == "egl":
            # Test EGL in a simulation of our own first: where it fails, the original ends the process.
            probe = Physics()
            try:
                load_egl(probe)
            finally:
                probe.close()
        self.scene_name = scene
        config = _configuration(checkout / "conf", scene, cameras)
        self.original = _build(simulator.PlayTableSimEnv, config, use_egl=renderer == "egl")
        self._is_open = True
        self._observation: dict[str, Any] = {}
        self._information: dict[str, Any] = {}

    @property
    def robot(self) -> ReferenceWorld:
        """The part with the method `target_pose`; here the object itself."""
        return self

    def reset_physics(self, *, robot_obs: ArrayLike | None = None, scene_obs: ArrayLike | None = None) -> None:
        """Reset in place to `robot_obs` [15] and `scene_obs` [24]; what is not given goes to its default."""
        self._observation = self.original.reset(
            robot_obs=_state("robot_obs", robot_obs, ROBOT_OBS_SIZE),
            scene_obs=_state("scene_obs", scene_obs, SCENE_OBS_SIZE),
        )
        self._information = self.original.get_info()

    def step_physics(self, action: Any) -> None:
        """Execute one control step of 1/30 s, with rendering. Takes every form of action of `actions.py`."""
        # Checked by our rules first: the original crashes on a gripper command other than -1 or +1.
        command = parse_action(action)
        typed = {"type": command.kind, "action": np.append(command.values, command.gripper)}
        self._observation, _, _, self._information = self.original.step(typed)

    def robot_obs(self) -> NDArray[np.float64]:
        """Return the robot's state [15] after the last reset or step."""
        return np.array(self._observation["robot_obs"], dtype=np.float64)

    def scene_obs(self) -> NDArray[np.float64]:
        """Return the scene's state [24] after the last reset or step."""
        return np.array(self._observation["scene_obs"], dtype=np.float64)

    def task_info(self) -> dict[str, Any]:
        """Return what the task oracle compares, after the last reset or step."""
        return self._information

    def target_pose(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return copies of the stored target on which relative actions accumulate: position [3], Euler angles [3]."""
        robot = self.original.robot
        return np.array(robot.target_pos), np.array(robot.target_orn)

    def render_camera(self, name: str) -> NDArray[np.uint8]:
        """Return a copy of the image of the last reset or step, uint8 [H, W, 3]; renders nothing."""
        images = self._observation["rgb_obs"]
        if f"rgb_{name}" not in images:
            known = ", ".join(key.removeprefix("rgb_") for key in images)
            raise InputError(f"unknown camera {name!r}; this world was made with: {known}")
        return np.array(images[f"rgb_{name}"], dtype=np.uint8, order="C")

    def close(self) -> None:
        """Free the physics client. A second call does nothing."""
        # A second close would disconnect another simulation that has got the same number.
        if self._is_open:
            self._is_open = False
            with contextlib.redirect_stdout(io.StringIO()):  # it prints its client number
                type(self.original).close(self.original)


class CalvinReference(CalvinProtocol):
    """CALVIN's 1000 chains in the original simulator; the counterpart of `benchmark.CalvinBenchmark`.

    Args:
        scene: "A", "B", "C" or "D".
        renderer: "tiny" or "egl".
        max_steps: control steps per subtask.
        instructions: name or file, see `read_instructions`.
    """

    def __init__(
        self,
        *,
        scene: str = "D",
        renderer: str = "tiny",
        max_steps: int = MAX_STEPS,
        instructions: str = "validation",
    ) -> None:
        check_max_steps(max_steps)
        read_instructions(instructions)
        self.env = ReferenceWorld(scene=scene, renderer=renderer)
        metadata = {
            "simulator": f"{PACKAGE} {self.env.commit}",
            "scene": scene,
            "assets": PACKAGE,
            "renderer": renderer,
            "renderer_version": RENDERER_VERSIONS[renderer],
            "reset_mode": "legacy",
            "versions": {
                "vw2_robot": vw2_robot.__version__,
                **pybullet_version(),
                **{name: importlib.metadata.version(name) for name in ("gym", "numpy", "scipy")},
            },
        }
        # Their predicates with our tasks.yaml, which has the content of theirs.
        oracle = _import_original("envs.tasks").Tasks(load_tasks())
        super().__init__(self.env, oracle, max_steps=max_steps, instructions=instructions, metadata=metadata)


def find_checkout() -> Path:
    """Return the directory with the `calvin_env` package, its conf/ and its data/.

    Raises:
        MissingExtraError: there is no such package.
        InputError: there is one, but not in a checkout.
    """
    # Found, not imported: importing it needs all its dependencies.
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None:
        raise MissingExtraError(
            f"env=calvin_reference runs the original simulator, and {PACKAGE} is not installed; {HOW_TO_INSTALL}"
        )
    if spec.origin is None:
        places = ", ".join(spec.submodule_search_locations or ())
        raise InputError(
            f"{PACKAGE} is a folder on the import path ({places}), not the package; often this is the checkout itself, "
            f"seen from the directory above it. Start elsewhere, or install it: {HOW_TO_INSTALL}"
        )
    checkout = Path(spec.origin).parents[1]
    if missing := [name for name in ("conf", "data") if not (checkout / name).is_dir()]:
        raise InputError(
            f"{PACKAGE} was found in {checkout}, without its {' and '.join(missing)}: it works only from a checkout, "
            f"installed in place: {HOW_TO_INSTALL}"
        )
    return checkout


def _import_original(module: str) -> Any:
    """Import a module of the original, without its deprecation warnings."""
    try:
        with _silenced():
            return importlib.import_module(f"{PACKAGE}.{module}")
    except ImportError as error:
        raise MissingExtraError(
            f"{PACKAGE} is installed, but its module {module} cannot be imported: {error}. It needs more packages: "
            f"{HOW_TO_INSTALL.rpartition('&& ')[2]}"
        ) from error


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Suppress warnings and output of gym and of what the original uses; they are outside our control."""
    output = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
        warnings.simplefilter("ignore")
        yield


def _commit(functions: Any, checkout: Path) -> str:
    """Return the commit of the checkout; the original reads it at every start, too, and fails without one."""
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output):
            commit = str(functions.get_git_commit_hash(checkout / PACKAGE / "__init__.py"))
    except functions.git.exc.GitError as error:
        raise InputError(
            f"{PACKAGE} starts only from a git checkout, and {checkout} is none that git can read "
            f"({type(error).__name__}: {error}); {HOW_TO_INSTALL}"
        ) from error
    if output.getvalue():  # it prints a line when the checkout has local changes
        log.warning("%s: %s", PACKAGE, output.getvalue().strip())
        commit += " with local changes"
    return commit


def _configuration(conf: Path, scene: str, cameras: Sequence[str]) -> DictConfig:
    """Return the yaml files of the original, composed as its Hydra programs do, with these cameras alone."""

    def read(name: str) -> DictConfig:
        content = cast(DictConfig, OmegaConf.load(conf / name))
        content.pop("defaults", None)
        return content

    try:
        return OmegaConf.create(
            {
                "data_path": "data",
                "use_vr": False,
                "cameras": {camera: read(f"cameras/cameras/{camera}.yaml") for camera in cameras},
                "robot": OmegaConf.merge(read("robot/panda.yaml"), read("robot/panda_longer_finger.yaml")),
                "scene": read(f"scene/calvin_scene_{scene}.yaml"),
                "env": read("env/play_table_env.yaml"),
            }
        )
    except FileNotFoundError as error:
        raise InputError(f"{conf} has no {Path(error.filename).name}; expected commit 797142c") from error


def _build(environment: Any, config: DictConfig, *, use_egl: bool) -> Any:
    """Return the original environment: no window, full info, one renderer."""
    settings = config.env
    try:
        with _silenced():
            original = environment(
                robot_cfg=settings.robot_cfg,
                scene_cfg=settings.scene_cfg,
                cameras=settings.cameras,
                seed=SEED,
                bullet_time_step=settings.bullet_time_step,
                control_freq=settings.control_freq,
                use_vr=False,
                show_gui=False,
                use_scene_info=True,
                use_egl=use_egl,
            )
    # The original ends the process where its EGL plug-in cannot be loaded.
    except SystemExit as error:
        raise InputError(f'{PACKAGE} gave up while starting with renderer "egl"; use renderer=tiny') from error
    # Its finalizer would disconnect a second time, and by then perhaps another simulation.
    original.close = lambda: None
    return original


def _state(name: str, value: ArrayLike | None, size: int) -> NDArray[np.float64] | None:
    """Return a state as an array of the right size; None stays None."""
    if value is None:
        return None
    state = np.array(value, dtype=np.float64)
    if state.shape != (size,):
        raise InputError(f"reset: {name} must be {size} numbers, received shape {state.shape}")
    return state
