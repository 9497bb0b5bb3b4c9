"""What LeRobot reads in the folder of a policy: keys of config.json, and both processor pipelines.

The layout is that of LeRobot 0.6.1; LeRobot itself is not needed. Inside LeRobot the policy returns normalized actions,
and the statistics are in the pipelines alone: the preprocessor normalizes the actions of a batch for training, the
postprocessor brings predictions back to robot units. A dimension that is not scaled has statistics here that leave it
as it is, whatever the normalization. LeRobot replaces four of the steps by name, so all of them are always there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vw2_robot.checkpoint import save_tensors
from vw2_robot.data.statistics import ActionStatistics
from vw2_robot.storage.files import write_json

POLICY_TYPE = "vw2"
"""of `--policy.type`, and the key `type` of config.json"""
ACTION_STEP = "vw2_action_limits"
"""registered by the plugin: clips all numbers but the gripper's to [-1, 1] and makes that one -1 or +1 (0 closes)"""
PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor", "policy_postprocessor"
CAMERA_SIZE = (200, 200)
"""of CALVIN's static camera. LeRobot compares the names of cameras alone, but its asynchronous server resizes images to
the size of the feature before the policy does: with this one it leaves CALVIN's pixels as they are."""
NORMALIZATION = {"q01_q99": "QUANTILES", "mean_std": "MEAN_STD", "none": "IDENTITY"}
# What leaves a number as it is, in any normalization.
_IDENTITY = {"q01": -1.0, "q99": 1.0, "mean": 0.0, "std": 1.0, "min": -1.0, "max": 1.0}


def lerobot_keys(statistics: ActionStatistics, *, cameras: list[str], license_name: str) -> dict[str, Any]:
    """Return the keys of config.json that LeRobot's own fields have; all others have LeRobot's defaults.

    Args:
        statistics: of the actions.
        cameras: names of the cameras that the policy gets.
        license_name: of the weights.
    """
    image = {"type": "VISUAL", "shape": [3, *CAMERA_SIZE]}
    return {
        "type": POLICY_TYPE,
        "input_features": {f"observation.images.{camera}": image for camera in cameras},
        "output_features": {"action": {"type": "ACTION", "shape": [statistics.mean.size]}},
        "normalization_mapping": {"VISUAL": "IDENTITY", "ACTION": NORMALIZATION[statistics.mode]},
        "license": license_name,
        # Else `lerobot-train --policy.path=...` asks for a repository before it begins.
        "push_to_hub": False,
    }


def pipeline_statistics(statistics: ActionStatistics) -> dict[str, NDArray[np.float64]]:
    """Return the statistics that LeRobot's normalization gets: a dimension that is not scaled is left as it is."""
    return {name: np.where(statistics.mask, getattr(statistics, name), neutral) for name, neutral in _IDENTITY.items()}


def write_processors(folder: Path, statistics: ActionStatistics, keys: Mapping[str, Any]) -> None:
    """Write both pipelines and the tensors of their steps, without syncing them.

    Args:
        folder: of the policy.
        statistics: of the actions.
        keys: from `lerobot_keys`.
    """
    tensors = {
        f"action.{name}": torch.from_numpy(values.astype(np.float32))
        for name, values in pipeline_statistics(statistics).items()
    }
    outputs = keys["output_features"]
    normalize = {"eps": 1e-8, "norm_map": keys["normalization_mapping"]}
    on_cpu = ("device_processor", {"device": "cpu", "float_dtype": None})
    pipelines: dict[str, list[tuple[str, dict[str, Any]]]] = {
        PREPROCESSOR: [
            ("rename_observations_processor", {"rename_map": {}}),
            ("to_batch_processor", {}),
            on_cpu,
            ("normalizer_processor", {**normalize, "features": {**keys["input_features"], **outputs}}),
        ],
        POSTPROCESSOR: [
            ("unnormalizer_processor", {**normalize, "features": outputs}),
            (ACTION_STEP, {"gripper_index": statistics.gripper_index}),
            on_cpu,
        ],
    }
    for pipeline, steps in pipelines.items():
        described: list[dict[str, Any]] = []
        for number, (name, config) in enumerate(steps):
            described.append({"registry_name": name, "config": config})
            if "norm_map" in config:
                described[-1]["state_file"] = f"{pipeline}_step_{number}_{name}.safetensors"
                save_tensors(tensors, folder / described[-1]["state_file"])
        write_json(folder / f"{pipeline}.json", {"name": pipeline, "steps": described}, sync=False)
