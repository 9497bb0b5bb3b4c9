"""The arms of the comparison differ in what they say they differ in, and in nothing else."""

from dataclasses import fields

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from vw2_robot.command_line.config_tree import config_from
from vw2_robot.finetune.config import FinetuneConfig

ARMS = ("oracle", "indomain", "crossdomain", "videoworld", "lapa")


def arm(name, *more):
    words = [f"method={name}", "data.path=calvin", "run_dir=run", *more]
    words += ["policy=pretrained"] if name != "oracle" else []
    with initialize_config_module("vw2_robot.configs", version_base="1.3"):
        return config_from(FinetuneConfig, OmegaConf.to_container(compose("finetune", words), resolve=True))


@pytest.mark.parametrize("name", ARMS)
@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 1.0])
def test_every_arm_is_a_configuration_at_every_fraction(name, fraction):
    config = arm(name, f"label_fraction={fraction}")
    assert (config.arm, config.label_fraction) == (name, fraction)


@pytest.mark.parametrize("name", ARMS)
def test_arms_share_head_data_schedule_and_losses(name):
    reference, config = arm("indomain"), arm(name)
    may_differ = {"arm", "policy", "code_source", "lambda_ce"}
    differing = {f.name for f in fields(FinetuneConfig) if getattr(config, f.name) != getattr(reference, f.name)}
    assert differing <= may_differ


def test_only_the_oracle_begins_untrained_and_lapa_leaves_its_codes_unused():
    assert [name for name in ARMS if arm(name).from_scratch] == ["oracle"]
    assert [name for name in ARMS if arm(name).code_source == "none"] == ["oracle", "lapa"]
