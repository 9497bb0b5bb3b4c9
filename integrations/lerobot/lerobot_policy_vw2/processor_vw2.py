"""The policy's pipelines in LeRobot, and the one step that LeRobot does not have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from lerobot.configs import PipelineFeatureType, PolicyFeature
from lerobot.lerobot_types import PolicyAction
from lerobot.processor import PolicyActionProcessorStep, PolicyProcessorPipeline, ProcessorStepRegistry
from lerobot.processor.factory import make_default_policy_processor_steps, make_policy_processor_pipelines

from vw2_robot.contracts import GRIPPER_INDEX
from vw2_robot.hub.lerobot_files import ACTION_STEP

from .configuration_vw2 import Vw2Config


@ProcessorStepRegistry.register(ACTION_STEP)
@dataclass
class ActionLimits(PolicyActionProcessorStep):
    """Clip an action in robot units to [-1, 1], and make its gripper -1 (close) or +1 (open) by its sign; 0 closes."""

    gripper_index: int = GRIPPER_INDEX

    def action(self, action: PolicyAction) -> PolicyAction:
        """Return the limited action."""
        limited = action.clamp(-1.0, 1.0)
        limited[..., self.gripper_index] = torch.where(action[..., self.gripper_index] > 0, 1.0, -1.0)
        return limited

    def get_config(self) -> dict[str, Any]:
        """Return what a saved pipeline stores."""
        return {"gripper_index": self.gripper_index}

    def transform_features(
        self, features: dict[PipelineFeatureType, dict[str, PolicyFeature]]
    ) -> dict[PipelineFeatureType, dict[str, PolicyFeature]]:
        """Return the features as they are."""
        return features


def make_vw2_pre_post_processors(
    config: Vw2Config, dataset_stats: dict[str, dict[str, torch.Tensor]] | None = None
) -> tuple[
    PolicyProcessorPipeline[dict[str, Any], dict[str, Any]], PolicyProcessorPipeline[PolicyAction, PolicyAction]
]:
    """Return the pipelines of a policy that begins from scratch, with the steps of an exported folder."""
    made = make_default_policy_processor_steps(config, dataset_stats)
    return make_policy_processor_pipelines(
        [made.rename_observations, made.add_batch_dim, made.to_device, made.normalize],
        [made.unnormalize, ActionLimits(), made.to_cpu],
    )
