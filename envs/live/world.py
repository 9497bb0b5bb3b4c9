"""The simulator of the live page: a `CalvinBenchmark` whose tasks begin anywhere and whose blocks can be pulled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vw2_robot.contracts import Benchmark
from vw2_robot.errors import InputError

from ..calvin import CalvinEnv
from ..experts.demonstrator import feasible, observe_world
from ..experts.start_states import go_to_start
from ..instructions import nearest_wording, read_instructions
from ..oracle import TaskOracle
from ..scene import LIGHTS, OFF_COLOR
from .recording import write_recording
from .shapes import Shape, part_name, read_shapes

CHAINS = 1000
Vector = tuple[float, float, float]
DRAG_FORCE = 30.0
"""Newtons; a block weighs 10"""


class CalvinWorld:
    """A table of the simulator.

    Attributes:
        shapes: what is shown of each part, in its frame.
        blocks: name of each block -> name of its part.
        benchmark: which policies and recorded chains are bound to.
        light_parts: name of each light -> name of its part.
        light_colors: (light, whether it is on) -> RGB, 0 to 255.
    """

    def __init__(self, benchmark: Benchmark, env: CalvinEnv) -> None:
        """Wrap a benchmark and its simulator."""
        self.max_steps = benchmark.max_steps
        self.control_hz = benchmark.control_hz
        self.benchmark = benchmark
        self._env = env
        self.scene = self._env.scene_name
        self.shapes: tuple[Shape, ...] = read_shapes(self._env.assets_dir, self.scene)
        scene = self._env.scene
        self.blocks = {block: part_name(uid, -1) for block, uid in scene.blocks.items()}
        self.light_parts = {light: part_name(scene.table_uid, scene.links[link]) for light, (link, _) in LIGHTS.items()}
        self.light_colors = {
            (light, is_on): tuple(255 * value for value in (color if is_on else OFF_COLOR)[:3])
            for light, (_, color) in LIGHTS.items()
            for is_on in (True, False)
        }
        self._parts = sorted({(shape.body, shape.link) for shape in self.shapes})
        self._oracle = TaskOracle()
        self._start_info: dict[str, Any] = {}
        self._constraint: int | None = None
        self._dragged = ""
        self._tasks = {
            text.lower(): task
            for name in ("train", "enriched", "validation")
            for task, texts in read_instructions(name).items()
            for text in texts
        }

    def restart(self, task: str | None, seed: int) -> None:
        """Go to a start state: of a task, or of the evaluation chain with this number."""
        self.release()
        if task is not None:
            go_to_start(self._env, task, self._oracle, np.random.default_rng(seed))
        else:
            self.benchmark.reset(self.benchmark.sequences(CHAINS)[seed % CHAINS])

    def can_begin(self, task: str) -> bool:
        """Return whether the task can be done from the present state."""
        return feasible(task, observe_world(self._env))

    def task_of(self, instruction: str) -> str | None:
        """Return the task whose instruction this is, of those for training and for evaluation; None for a free one."""
        return self._tasks.get(instruction.lower().rstrip(".!"))

    def nearest_wording(self, instruction: str) -> str | None:
        """Return the known wording that a free instruction is nearest to; None where none is near."""
        return nearest_wording(instruction, self._tasks)

    def instruction(self, task: str) -> str:
        """Return the evaluation's instruction of a task."""
        return self.benchmark.instruction(task)

    def begin(self) -> None:
        """Set the moment from which the oracle counts."""
        self._start_info = self._env.task_info()

    def step(self, action: NDArray[np.floating[Any]]) -> frozenset[str]:
        """Execute one control step; return the tasks that happened since `begin`."""
        self._env.step_physics(action)
        return frozenset(self._oracle.get_task_info(self._start_info, self._env.task_info()))

    def hold(self) -> None:
        """Execute one control step in which the arm stays where it is."""
        self._env.step_physics(np.array([0, 0, 0, 0, 0, 0, self._env.robot.gripper_action], np.float64))

    def image(self) -> NDArray[np.uint8]:
        """Return the static camera's image, rendered now."""
        return self._env.render_camera("static")

    def state(self) -> dict[str, NDArray[np.float64]]:
        """Return `robot_obs` [15] and `scene_obs` [24]."""
        return {"robot_obs": self._env.robot_obs(), "scene_obs": self._env.scene_obs()}

    def show(self, robot_obs: NDArray[np.float64], scene_obs: NDArray[np.float64]) -> None:
        """Go to a recorded state."""
        self.release()
        self._env.reset_physics(robot_obs=robot_obs, scene_obs=scene_obs)

    def parts(self) -> dict[str, tuple[Vector, tuple[float, float, float, float]]]:
        """Return the pose of each part that is shown, by its name: position, and quaternion with w first."""
        physics = self._env.physics
        poses = {}
        for body, link in self._parts:
            if link < 0:
                # PyBullet has the pose of the center of mass, shapes refer to the frame of the base.
                offset = physics.invertTransform(*physics.getDynamicsInfo(body, -1)[3:5])
                position, rotation = physics.multiplyTransforms(*physics.getBasePositionAndOrientation(body), *offset)
            else:
                # As the solver left it: computing the kinematics anew would change what the robot reads of its tool.
                position, rotation = physics.getLinkState(body, link)[4:6]
            x, y, z, w = rotation
            poses[part_name(body, link)] = (position, (w, x, y, z))
        return poses

    def lights(self) -> dict[str, bool]:
        """Return which lights are on."""
        bulb, led = self._env.scene_obs()[4:6]
        return {"lightbulb": bool(bulb), "led": bool(led)}

    def drag(self, block: str, target: Vector) -> None:
        """Pull a block towards a point, with the force of a finger, until `release`."""
        physics = self._env.physics
        blocks = self._env.scene.blocks
        if block not in blocks:
            raise InputError(f"there is no {block}; blocks: {', '.join(blocks)}")
        if self._constraint is None or self._dragged != block:
            self.release()
            self._dragged = block
            self._constraint = physics.createConstraint(
                blocks[block], -1, -1, -1, physics.JOINT_POINT2POINT, [0, 0, 0], [0, 0, 0], list(target)
            )
        physics.changeConstraint(self._constraint, list(target), maxForce=DRAG_FORCE)

    def release(self) -> None:
        """Let go of the block that is dragged."""
        if self._constraint is not None:
            self._env.physics.removeConstraint(self._constraint)
            self._constraint = None

    def write_recording(
        self,
        out: Path,
        number: int,
        *,
        label: tuple[str, str],
        images: Sequence[NDArray[np.uint8]],
        states: Sequence[Mapping[str, NDArray[np.float64]]],
        actions: Sequence[NDArray[np.float64]],
    ) -> None:
        """Add a recording of this world to a CALVIN data set; see `recording.write_recording`.

        Args:
            out: the data set.
            number: of the recording.
            label: task and instruction.
            images: L images of the static camera.
            states: L + 1 states, as `state` returns them.
            actions: L commanded actions.
        """
        metadata = self.benchmark.metadata
        world = {"scene": self.scene, "renderer": metadata["renderer"], "assets": metadata["assets"]}
        write_recording(out, number, label=label, images=images, states=states, actions=actions, world=world)

    def close(self) -> None:
        """Free the simulator."""
        self.benchmark.close()
