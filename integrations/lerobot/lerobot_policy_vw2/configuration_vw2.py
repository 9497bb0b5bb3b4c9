"""The configuration of the policy in LeRobot: config.json of an exported folder, and the options `--policy.*`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lerobot.configs import FeatureType, NormalizationMode, PreTrainedConfig
from lerobot.optim import AdamWConfig

from vw2_robot.checkpoint import FORMAT_VERSION
from vw2_robot.command_line.config_tree import config_tree
from vw2_robot.contracts import ACTION_DIM
from vw2_robot.errors import InputError
from vw2_robot.hub.lerobot_files import POLICY_TYPE
from vw2_robot.models.policy.config import ActionHeadConfig, PolicyConfig

CAMERA = "observation.images.static"
ONE_CAMERA = "observation.image"
"""what LeRobot calls the camera of an environment whose `pixels` are one array"""


def untrained() -> dict[str, Any]:
    """Return the configuration of a small policy that begins from scratch and predicts no codes."""
    return {
        "policy": config_tree(PolicyConfig()),
        "dldm": None,
        "head": config_tree(ActionHeadConfig()),
        "stride": 4,
        "latent_steps": 1,
        "n_action_steps": 4,
        "temporal_ensemble": None,
        "acting": "none",
    }


@PreTrainedConfig.register_subclass(POLICY_TYPE)
@dataclass
class Vw2Config(PreTrainedConfig):
    """Keys of config.json. The defaults are a small untrained policy."""

    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: {"VISUAL": NormalizationMode.IDENTITY, "ACTION": NormalizationMode.QUANTILES}
    )
    """of the actions: QUANTILES, MEAN_STD or IDENTITY"""
    push_to_hub: bool = False
    """after training; needs `repo_id`"""
    n_action_steps: int | None = None
    """actions executed per policy call; null: as stored"""
    save_predicted_video: bool = False
    """`lerobot-eval` also writes pred_episode_N.mp4: the frames that the policy expected; needs the dLDM, `dldm/`"""
    optimizer_lr: float = 3e-3
    """of the action head"""
    policy_lr: float | None = None
    """of the rest of the policy, 0 keeps it as it is; null: 0 for a trained policy, 3e-4 from scratch"""
    optimizer_weight_decay: float = 0.05
    """of both"""
    gripper_weight: float = 1.0
    """of the gripper in the action loss"""
    format_version: int = FORMAT_VERSION
    """of the checkpoint, like the following three, which `vw2_robot` reads"""
    kind: str = "policy"
    """always policy"""
    config: dict[str, Any] = field(default_factory=untrained)
    """sizes of the networks, and how the policy acts"""
    facts: dict[str, Any] = field(default_factory=lambda: {"control_hz": 30.0, "label_fraction": 1.0})
    """of its training"""

    @property
    def chunk_size(self) -> int:
        """Actions of a chunk."""
        return int(self.config["latent_steps"] * self.config["stride"])

    @property
    def camera(self) -> str:
        """The one image that the policy reads.

        Raises:
            InputError: there are several, none of them the static camera; or none.
        """
        cameras = list(self.image_features) or [CAMERA]
        if CAMERA in cameras:
            return CAMERA
        if len(cameras) > 1:
            raise InputError(
                f"the policy reads one camera, {CAMERA}, and the data have {', '.join(cameras)}; name the one to read: "
                f'--rename_map=\'{{"{cameras[0]}": "{CAMERA}"}}\''
            )
        return cameras[0]

    @property
    def observation_delta_indices(self) -> None:
        """The present observation alone."""
        return

    @property
    def action_delta_indices(self) -> list[int]:
        """The actions of a chunk, from the present one on."""
        return list(range(self.chunk_size))

    @property
    def reward_delta_indices(self) -> None:
        """No rewards."""
        return

    def get_optimizer_preset(self) -> AdamWConfig:
        """Return the optimizer of `lerobot-train`."""
        return AdamWConfig(
            lr=self.optimizer_lr, betas=(0.9, 0.98), weight_decay=self.optimizer_weight_decay, grad_clip_norm=1.0
        )

    def get_scheduler_preset(self) -> None:
        """Return no schedule: the learning rate is constant."""
        return

    def validate_features(self) -> None:
        """Refuse data that the policy cannot have.

        Raises:
            InputError: other actions than seven numbers, or no camera to choose.
        """
        action = self.action_feature
        if action is not None and tuple(action.shape) != (ACTION_DIM,):
            raise InputError(f"the policy's actions are {ACTION_DIM} numbers, those of the data {list(action.shape)}")
        mode = self.normalization_mapping.get(FeatureType.ACTION.value)
        known = (NormalizationMode.QUANTILES, NormalizationMode.MEAN_STD, NormalizationMode.IDENTITY)
        if mode not in known:
            names = ", ".join(one.value for one in known)
            raise InputError(f"normalization_mapping: ACTION must be one of {names}, found {mode}")
        _ = self.camera
