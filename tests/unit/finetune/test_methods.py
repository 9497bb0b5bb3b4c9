"""The methods of the comparison differ in the settings that define them, and in nothing else."""

import functools
from dataclasses import fields, replace

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from vw2_robot.command_line.config_tree import config_from
from vw2_robot.errors import InputError
from vw2_robot.finetune.config import FinetuneConfig

METHODS = ("oracle", "indomain", "crossdomain", "videoworld", "lapa")


@functools.cache
def method(name, *more):
    overrides = [f"method={name}", "data.path=calvin", "run_dir=run", *more]
    overrides += ["policy=pretrained"] if name != "oracle" else []
    with initialize_config_module("vw2_robot.configs", version_base="1.3"):
        return config_from(FinetuneConfig, OmegaConf.to_container(compose("finetune", overrides), resolve=True))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 1.0])
def test_every_method_is_a_configuration_at_every_fraction(name, fraction):
    config = replace(method(name), label_fraction=fraction)  # checked as one of a command line is
    assert (config.method, config.label_fraction) == (name, fraction)


@pytest.mark.parametrize("name", METHODS)
def test_methods_share_head_data_schedule_and_losses(name):
    reference = method("indomain")
    config = method(name)
    may_differ = {"method", "policy", "acting", "lambda_ce"}
    differing = {f.name for f in fields(FinetuneConfig) if getattr(config, f.name) != getattr(reference, f.name)}
    assert differing <= may_differ


def test_only_the_oracle_begins_untrained_and_lapa_leaves_its_codes_unused():
    assert [name for name in METHODS if method(name).from_scratch] == ["oracle"]
    assert [name for name in METHODS if method(name).acting == "none"] == ["oracle", "lapa"]


def test_the_old_way_to_act_without_codes_is_named_by_its_present_key():
    with pytest.raises(InputError, match=r"code_source must be .*found 'none'; this is now acting=none"):
        method("indomain", "code_source=none")


def test_no_method_reads_the_robots_state_and_all_others_act_through_decoded_codes():
    assert all(method(name).aids.pose_weight == 0 for name in METHODS)
    assert {found.acting for found in map(method, METHODS) if found.acting != "none"} == {"parallel"}
