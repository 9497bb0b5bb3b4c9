"""LeRobot itself reads the folder: its configuration, and its pipelines to the actions of the agent."""

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from vw2_robot import VW2Agent
from vw2_robot.data.statistics import ActionStatistics
from vw2_robot.hub.lerobot_files import ACTION_STEP, lerobot_keys, write_processors


def statistics(mode):
    rng = np.random.default_rng(0)
    actions = np.clip(rng.normal(0.1, 0.3, (500, 7)), -1, 1)
    actions[:, 3] = 0.25  # nearly constant: not scaled
    actions[:, 6] = np.where(rng.random(500) < 0.999, -1.0, 1.0)  # both quantiles are -1
    return ActionStatistics.from_actions(actions, mode=mode)


@pytest.mark.parametrize("mode", ["q01_q99", "mean_std", "none"])
def test_lerobots_pipelines_normalize_and_unnormalize_as_we_do(tmp_path, mode):
    processor = pytest.importorskip("lerobot.processor", reason="needs LeRobot 0.6.1, in a Python 3.12 of its own")
    register_plugin()
    ours = statistics(mode)
    write_processors(tmp_path, ours, lerobot_keys(ours, cameras=["static"], license_name="mit"))
    before, after = pipelines(tmp_path)
    predicted = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    wanted = ours.unnormalize(predicted.numpy())
    wanted[:, :6] = wanted[:, :6].clip(-1, 1)
    np.testing.assert_allclose(after(predicted.clone()).numpy(), wanted, atol=1e-6)
    labels = torch.rand(5, 7) * 0.2
    batch = before({"action": labels, "observation.images.static": torch.zeros(5, 3, 8, 8), "task": ["a"] * 5})
    inside = ours.normalize(labels.numpy())
    assert np.abs(inside[:, :6]).max() < 3  # neither side clips these
    clipped = batch["action"].clip(-1, 1) if mode == "q01_q99" else batch["action"]
    np.testing.assert_allclose(clipped.numpy()[:, [0, 1, 2, 4, 5]], inside[:, [0, 1, 2, 4, 5]], atol=1e-5)
    np.testing.assert_allclose(batch["action"].numpy()[:, 3], labels[:, 3], atol=1e-6)
    # What LeRobot would have written itself, but for our step.
    for pipeline in (before, after):
        pipeline.save_pretrained(tmp_path / "again", config_filename=f"{pipeline.name}.json")
        file = f"{pipeline.name}.json"
        assert json.loads((tmp_path / "again" / file).read_text()) == json.loads((tmp_path / file).read_text())
    assert {path.name for path in (tmp_path / "again").iterdir()} == {
        path.name for path in tmp_path.iterdir() if path.is_file()
    }
    assert processor.ProcessorStepRegistry.get(ACTION_STEP)


def test_lerobot_replaces_the_steps_that_fine_tuning_overrides(tmp_path):
    pytest.importorskip("lerobot.processor", reason="needs LeRobot 0.6.1, in a Python 3.12 of its own")
    register_plugin()
    ours = statistics("q01_q99")
    write_processors(tmp_path, ours, lerobot_keys(ours, cameras=["static"], license_name="mit"))
    other = {"action": {"q01": np.full(7, -2.0), "q99": np.full(7, 2.0)}}
    scaled = {"stats": other}
    before, after = pipelines(
        tmp_path,
        {"device_processor": {"device": "cpu"}, "rename_observations_processor": {"rename_map": {"a": "b"}}}
        | {"normalizer_processor": scaled},
        {"unnormalizer_processor": scaled},
    )
    assert after(torch.full((1, 7), 0.25)).tolist() == [[0.5] * 6 + [1.0]]
    batch = before({"action": torch.ones(1, 7), "observation.images.static": torch.zeros(1, 3, 8, 8)})
    assert batch["action"].tolist() == [[0.5] * 7]


def test_lerobot_reads_config_json_with_our_four_keys_declared(tmp_path):
    policies = pytest.importorskip(
        "lerobot.configs.policies", reason="needs LeRobot 0.6.1, in a Python 3.12 of its own"
    )
    register_plugin()
    VW2Agent.from_pretrained("builtin:calvin-tiny").save_pretrained(tmp_path / "policy", license="apache-2.0")
    config = policies.PreTrainedConfig.from_pretrained(tmp_path / "policy")
    assert (config.type, config.kind, config.config["n_action_steps"], config.license) == (
        "vw2",
        "policy",
        2,
        "apache-2.0",
    )
    assert list(config.image_features) == ["observation.images.static"]
    assert config.action_feature.shape == (7,)
    assert config.normalization_mapping["ACTION"] == "QUANTILES"
    config.save_pretrained(tmp_path / "again")
    saved = json.loads((tmp_path / "again" / "config.json").read_text())
    ours = json.loads((tmp_path / "policy" / "config.json").read_text())
    assert {key: saved[key] for key in ours} == ours


def pipelines(folder, before=None, after=None):
    from lerobot.processor import PolicyProcessorPipeline
    from lerobot.processor.converters import policy_action_to_transition, transition_to_policy_action

    return (
        PolicyProcessorPipeline.from_pretrained(
            folder, config_filename="policy_preprocessor.json", overrides=before or {}
        ),
        PolicyProcessorPipeline.from_pretrained(
            folder,
            config_filename="policy_postprocessor.json",
            overrides=after or {},
            to_transition=policy_action_to_transition,
            to_output=transition_to_policy_action,
        ),
    )


def register_plugin():
    """Register the least that a plugin must: a configuration with our keys, and the step after the statistics."""
    from lerobot.configs import NormalizationMode
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.processor import PolicyActionProcessorStep, ProcessorStepRegistry

    if "vw2" in PreTrainedConfig.get_known_choices():
        return

    @PreTrainedConfig.register_subclass("vw2")
    @dataclass
    class Vw2Config(PreTrainedConfig):
        normalization_mapping: dict[str, NormalizationMode] = field(default_factory=dict)
        format_version: int = 1
        kind: str = "policy"
        config: dict[str, Any] = field(default_factory=dict)
        facts: dict[str, Any] = field(default_factory=dict)
        observation_delta_indices = action_delta_indices = reward_delta_indices = None

        def get_optimizer_preset(self):
            raise NotImplementedError

        get_scheduler_preset = validate_features = get_optimizer_preset

    @ProcessorStepRegistry.register(name=ACTION_STEP)
    @dataclass
    class ActionLimits(PolicyActionProcessorStep):
        gripper_index: int

        def action(self, action):
            limited = action.clip(-1, 1)
            limited[..., self.gripper_index] = torch.where(action[..., self.gripper_index] > 0, 1.0, -1.0)
            return limited

        def get_config(self):
            return {"gripper_index": self.gripper_index}

        def transform_features(self, features):
            return features
