"""A policy as a model server of vla-eval: its benchmarks (CALVIN, LIBERO, SimplerEnv, ...) without our simulator.

    from vla_eval.model_servers.serve import run_server
    from vw2_robot.serving.vla_eval_server import Vw2ModelServer

    run_server(Vw2ModelServer)

Actions leave in meters and radians, as its CALVIN expects them; `n_action_steps` of each chunk are executed. Its CALVIN
adds them to the pose commanded before, as the original's relative actions are. docs/integrations/vla_eval.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from vw2_robot.commands import commands, resolve_n_action_steps
from vw2_robot.contracts import GRIPPER_INDEX, POSITION_UNIT_M, ROTATION_UNIT_RAD, Observation
from vw2_robot.errors import InputError, require

from .batching import ServedPolicy
from .camera_images import check_cameras, policy_images
from .metric_actions import MetricUnits, rotation_vector

require("vla_eval", extra="vla-eval")

from vla_eval.model_servers.predict import PredictModelServer  # noqa: E402
from vla_eval.specs import (  # noqa: E402
    GRIPPER_CLOSE_NEG,
    GRIPPER_CLOSE_POS,
    IMAGE_RGB,
    LANGUAGE,
    POSITION_DELTA,
    ROTATION_AA,
    ROTATION_EULER,
    DimSpec,
)

if TYPE_CHECKING:
    from vla_eval.model_servers.base import SessionContext

ROTATION_SPECS = {"euler_xyz": ROTATION_EULER, "axis_angle": ROTATION_AA}
CALVIN_CAMERAS = {"static": "rgb_static"}


class Vw2ModelServer(PredictModelServer):  # type: ignore[misc]  # a package without types
    """A policy for vla-eval's clients, each a session with an episode of its own."""

    def __init__(
        self,
        policy: str | Path | ServedPolicy,
        *,
        cameras: dict[str, str] | None = None,
        position_m: float = POSITION_UNIT_M,
        rotation_rad: float = ROTATION_UNIT_RAD,
        rotation: Literal["euler_xyz", "axis_angle"] = "euler_xyz",
        gripper_closes: Literal[-1, 1] = -1,
        n_action_steps: int | None = None,
        device: str = "auto",
        max_batch_size: int = 1,
        max_wait_time: float = 0.01,
    ) -> None:
        """Load a policy; the defaults are those of vla-eval's CALVIN.

        Args:
            policy: what `VW2Agent.from_pretrained` takes, or a policy with `clone`.
            cameras: camera of the policy -> its name in the benchmark; None: static -> rgb_static.
            position_m: meters of one unit of dx, dy, dz; 1: as the policy gives them.
            rotation_rad: radians of one unit of droll, dpitch, dyaw; 1: as the policy gives them.
            rotation: fixed-axis x-y-z Euler angles, or axis times angle.
            gripper_closes: what closes the benchmark's gripper; its negative opens it.
            n_action_steps: actions executed per policy call; None: as trained.
            device: of a policy that is loaded here.
            max_batch_size: observations of several clients in one call of the policy.
            max_wait_time: seconds that a batch waits to become full.

        Raises:
            InputError: no such checkpoint, more action steps than a chunk has, or cameras that it does not have.
        """
        if isinstance(policy, str | Path):
            from vw2_robot.agent import VW2Agent

            policy = VW2Agent.from_pretrained(policy, device=device, n_action_steps=n_action_steps)
        if rotation not in ROTATION_SPECS or gripper_closes not in (-1, 1):
            raise InputError(
                f"rotation must be one of {', '.join(ROTATION_SPECS)} and gripper_closes -1 or 1; found "
                f"{rotation} and {gripper_closes}"
            )
        self._policy = policy
        self._cameras = CALVIN_CAMERAS if cameras is None else cameras
        check_cameras(self._cameras, policy.metadata)
        self._units = MetricUnits(position_m=position_m, rotation_rad=rotation_rad)
        self._rotation = rotation
        self._gripper_closes = gripper_closes
        self._episodes: dict[str, ServedPolicy] = {}
        super().__init__(
            # What it calls so is how many actions of a chunk are executed.
            chunk_size=resolve_n_action_steps(policy.metadata, n_action_steps),
            max_batch_size=max_batch_size,
            max_wait_time=max_wait_time,
        )

    async def on_episode_start(self, config: dict[str, Any], ctx: SessionContext) -> None:
        """Give the session a policy state of its own."""
        await super().on_episode_start(config, ctx)
        episode = self._policy.clone()
        episode.reset()
        self._episodes[ctx.session_id] = episode

    async def on_episode_end(self, result: dict[str, Any], ctx: SessionContext) -> None:
        """Forget the session's state."""
        await super().on_episode_end(result, ctx)
        self._episodes.pop(ctx.session_id, None)

    async def on_observation(self, obs: dict[str, Any], ctx: SessionContext) -> None:
        """Answer an observation; CALVIN's first one of a subtask drops what is left of the last chunk.

        Raises:
            InputError: no episode, image or instruction; it goes to the client alone and the session stays.
        """
        # Checked here, before it can fail a batch with observations of others.
        observation = self._observation(obs)
        if ctx.session_id not in self._episodes:
            raise InputError("an observation before the start of an episode")
        if obs.get("episode_restart"):
            self._chunk_buffers.pop(ctx.session_id, None)
            self._episodes[ctx.session_id].reset()
        await super().on_observation(observation, ctx)

    def predict_batch(self, obs_batch: list[Observation], ctx_batch: list[SessionContext]) -> list[dict[str, Any]]:
        """Return a chunk for each observation, in the benchmark's units."""
        if self._policy.is_stateless:
            outputs = self._policy.infer_batch(obs_batch)
        else:
            pairs = zip(obs_batch, ctx_batch, strict=True)
            outputs = [self._episodes[ctx.session_id].infer(observation) for observation, ctx in pairs]
        return [{"actions": self._actions(output["actions"])} for output in outputs]

    def get_action_spec(self) -> dict[str, DimSpec]:
        """Return what vla-eval compares with its benchmark."""
        return {
            "position": POSITION_DELTA,
            "rotation": ROTATION_SPECS[self._rotation],
            "gripper": GRIPPER_CLOSE_NEG if self._gripper_closes < 0 else GRIPPER_CLOSE_POS,
        }

    def get_observation_spec(self) -> dict[str, DimSpec]:
        """Return what vla-eval compares with its benchmark."""
        return {**dict.fromkeys(self._cameras.values(), IMAGE_RGB), "language": LANGUAGE}

    def _observation(self, obs: dict[str, Any]) -> Observation:
        instruction = obs.get("task_description")
        if not isinstance(instruction, str) or not instruction:
            raise InputError(f'"task_description" must be the instruction, found {type(instruction).__name__}')
        return {"images": policy_images(obs.get("images"), self._cameras), "prompt": instruction}

    def _actions(self, chunk: Any) -> NDArray[np.float64]:
        actions = self._units.convert(commands(chunk, at_least=self.chunk_size))
        if self._rotation == "axis_angle":
            actions[:, 3:6] = rotation_vector(actions[:, 3:6])
        actions[:, GRIPPER_INDEX] *= -self._gripper_closes
        return actions
