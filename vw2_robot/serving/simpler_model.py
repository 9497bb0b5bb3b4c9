"""A policy as a model of SimplerEnv's evaluator: `reset`, `step`, `visualize_epoch`.

    from simpler_env.evaluation.maniskill2_evaluator import maniskill2_evaluator
    from vw2_robot.serving.simpler_model import Vw2SimplerModel

    maniskill2_evaluator(Vw2SimplerModel("runs/first/finetune"), args)

The evaluator gives one image and the instruction with every step, executes meters and axis times angle, and stops when
a model asks for it, which ours never does. Imports nothing of SimplerEnv. docs/integrations/simpler.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vw2_robot.chunks import ChunkQueue
from vw2_robot.commands import commands
from vw2_robot.contracts import ACTION_DIM, GRIPPER_INDEX, POSITION_UNIT_M, ROTATION_UNIT_RAD, Observation, Policy
from vw2_robot.errors import InputError

from .camera_images import check_image
from .metric_actions import MetricUnits, rotation_vector

OPEN = 1.0
GOOGLE_REPEATS = 15
"""steps for which the Google robot's gripper is given a command, as SimplerEnv's models do: it moves slowly"""
SHOWN_FRAMES = 8
FRAME_PX = 128
CURVE_PX = 64


class Vw2SimplerModel:
    """A model of the evaluator. Its attributes are the state of one episode."""

    def __init__(
        self,
        policy: Policy | str | Path,
        *,
        policy_setup: Literal["widowx_bridge", "google_robot"] = "widowx_bridge",
        camera: str = "static",
        position_m: float = POSITION_UNIT_M,
        rotation_rad: float = ROTATION_UNIT_RAD,
        n_action_steps: int | None = None,
        device: str = "auto",
    ) -> None:
        """Wrap a policy.

        Args:
            policy: any policy, or what `VW2Agent.from_pretrained` takes.
            policy_setup: whose gripper: WidowX's takes -1 (close) or +1 (open) in each step; the Google robot's +1
                (close) or -1 (open) while it moves, and else 0.
            camera: name of the image for the policy.
            position_m: meters of one unit of dx, dy, dz; 1: as the policy gives them.
            rotation_rad: radians of one unit of droll, dpitch, dyaw; 1: as the policy gives them.
            n_action_steps: actions executed per policy call; None: as trained.
            device: of a policy that is loaded here.

        Raises:
            InputError: no such checkpoint, more action steps than a chunk has, or another robot.
        """
        if isinstance(policy, str | Path):
            # Imported here, so that a policy of another kind needs no torch.
            from vw2_robot.agent import VW2Agent

            policy = VW2Agent.from_pretrained(policy, device=device, n_action_steps=n_action_steps)
        if policy_setup not in ("widowx_bridge", "google_robot"):
            raise InputError(f"policy_setup must be widowx_bridge or google_robot, found {policy_setup}")
        self._queue = ChunkQueue(policy, n_action_steps=n_action_steps)
        self._units = MetricUnits(position_m=position_m, rotation_rad=rotation_rad)
        self._is_google = policy_setup == "google_robot"
        self._camera = camera
        self.reset("")

    def reset(self, task_description: str) -> None:
        """Begin an episode, or a subtask of it."""
        self._instruction = task_description
        self._queue.reset()
        self._gripper = OPEN  # as the robots begin
        self._gripper_change, self._repeats_left = 0.0, 0

    def step(
        self, image: NDArray[np.uint8], task_description: str | None = None, *_: Any, **__: Any
    ) -> tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.float64]]]:
        """Return the policy's action in meters, Euler angles and "open_gripper" (0 or 1), and the one to execute.

        Args:
            image: of the evaluator's camera, uint8 [H, W, 3].
            task_description: the instruction; another one than before is a new subtask. None: that of `reset`.

        Raises:
            InputError: no image or no instruction.
        """
        if task_description is not None and task_description != self._instruction:
            self.reset(task_description)
        if not self._instruction:
            raise InputError("there is no instruction: give task_description to reset or step")
        observation: Observation = {
            "images": {self._camera: check_image(image, self._camera)},
            "prompt": self._instruction,
        }
        action = self._units.convert(commands(self._queue.action(observation)[None], at_least=1)[0])
        gripper = float(action[GRIPPER_INDEX])
        raw = {
            "world_vector": action[:3],
            "rotation_delta": action[3:6],
            "open_gripper": np.array([float(gripper == OPEN)]),
        }
        executed = {
            "world_vector": action[:3],
            "rot_axangle": rotation_vector(action[3:6]),
            "gripper": np.array([self._google_gripper(gripper) if self._is_google else gripper]),
            "terminate_episode": np.array([0.0]),
        }
        return raw, executed

    def visualize_epoch(
        self,
        predicted_raw_actions: Sequence[Mapping[str, NDArray[np.floating[Any]]]],
        images: Sequence[NDArray[np.uint8]],
        save_path: str | Path,
    ) -> None:
        """Save frames of an episode in a row, and below them a curve for each number of its actions.

        Args:
            predicted_raw_actions: the first element of what each `step` returned.
            images: of the episode.
            save_path: an image file; its folder is made.
        """
        width = SHOWN_FRAMES * FRAME_PX
        canvas = Image.new("RGB", (width, FRAME_PX + ACTION_DIM * CURVE_PX), "white")
        for place, number in enumerate(np.linspace(0, len(images) - 1, min(SHOWN_FRAMES, len(images))).astype(int)):
            canvas.paste(Image.fromarray(images[number]).resize((FRAME_PX, FRAME_PX)), (place * FRAME_PX, 0))
        names = ("world_vector", "rotation_delta", "open_gripper")
        actions = np.array([np.concatenate([action[name] for name in names]) for action in predicted_raw_actions])
        pen = ImageDraw.Draw(canvas)
        for index, curve in enumerate(actions.reshape(-1, ACTION_DIM).T):
            top, largest = FRAME_PX + index * CURVE_PX, max(float(np.abs(curve).max(initial=0.0)), 1e-9)
            heights = top + CURVE_PX / 2 * (1 - 0.9 * curve / largest)
            pen.line([*zip(np.linspace(0, width - 1, len(curve)).tolist(), heights.tolist(), strict=True)], "black")
            pen.text((2, top), f"{(*'xyz', 'roll', 'pitch', 'yaw', 'gripper')[index]}, up to {largest:.3g}", "gray")
        Path(save_path).parent.mkdir(parents=True, exist_ok=True)
        canvas.save(save_path)

    def _google_gripper(self, gripper: float) -> float:
        """Return +1 (close) or -1 (open) for some steps after a change of the policy's command, else 0."""
        if not self._repeats_left and gripper != self._gripper:
            self._gripper_change, self._repeats_left = -gripper, GOOGLE_REPEATS
            self._gripper = gripper
        if not self._repeats_left:
            return 0.0
        self._repeats_left -= 1
        return self._gripper_change
