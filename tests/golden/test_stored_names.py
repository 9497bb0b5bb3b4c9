"""What releases before the glossary wrote is still read: a checkpoint, configurations of runs, results of a rollout.

The files in before_renaming/ were written by commit cf99a75 with the private names of that time.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from vw2_robot.agent import VW2Agent
from vw2_robot.aliases import KEYS, TYPED_KEYS, with_new_keys
from vw2_robot.command_line.config_tree import config_from
from vw2_robot.errors import InputError

OLD = Path(__file__).with_name("before_renaming")


def test_an_old_checkpoint_acts_as_it_did() -> None:
    agent = VW2Agent.from_pretrained(OLD / "checkpoint", device="cpu")
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    agent.reset("open the drawer", seed=0)
    actions = agent.infer({"images": {"static": image}, "prompt": "open the drawer"})["actions"]
    np.testing.assert_allclose(actions, json.loads((OLD / "actions.json").read_text()), atol=2e-6)
    assert agent.metadata["n_action_steps"] == 3


@pytest.mark.parametrize("stage", ["finetune", "vdm", "dldm", "policy"])
def test_every_key_of_an_old_configuration_is_one_of_today(stage: str) -> None:
    pytest.importorskip("hydra")
    from vw2_robot.command_line.keys import defaults_of
    from vw2_robot.finetune.config import FinetuneConfig
    from vw2_robot.pretrain.config import PretrainConfig

    old = with_new_keys(yaml.safe_load((OLD / "runs" / f"{stage}.yaml").read_text()))
    if stage == "finetune":  # this source of codes and its schedule are gone; such a run is named, not continued
        with pytest.raises(InputError, match="there is no key own_codes"):
            config_from(FinetuneConfig, {**defaults_of("finetune"), **old, "run_dir": "run"})
        assert old.pop("code_source") == "mixed"
        assert old.pop("own_codes") == {"start": 0.5, "end": 0.5}
    assert not set(keys_in(old)) & {*KEYS, *TYPED_KEYS}
    # `config_from` refuses unknown keys at any depth; the file of a stage holds the sections of that stage alone.
    config_cls = FinetuneConfig if stage == "finetune" else PretrainConfig
    defaults = {"finetune": "finetune"}.get(stage, "pretrain")
    # Sections of that release do not know the aids that came later; the others are those of `tiny`.
    none = ("still_control=false", "warp_output=false", "reader=false", "policy_code_dropout=0.0", "high_noise=0.0")
    later = [] if stage == "finetune" else [f"aids.{aid}" for aid in none]
    given = {**defaults_of(defaults, *later), **old, "run_dir": "run"}
    if later:
        given["aids"]["control_dropout"] = given["train_dldm"]["control_dropout"] = 0.0
    assert config_from(config_cls, given).seed == 0


def keys_in(tree: object) -> list[str]:
    if isinstance(tree, list):
        return [key for entry in tree for key in keys_in(entry)]
    if not isinstance(tree, dict):
        return []
    return [*tree, *(key for value in tree.values() for key in keys_in(value))]


def test_an_old_rollout_is_read_reported_and_continued(tmp_path: Path) -> None:
    pytest.importorskip("hydra")
    from vw2_robot.rollouts.__main__ import check_config
    from vw2_robot.rollouts.config import RolloutConfig
    from vw2_robot.rollouts.report.run_folders import discover
    from vw2_robot.rollouts.results import read_results

    run = tmp_path / "rollout"
    shutil.copytree(OLD / "rollout", run)
    rows = read_results(run)
    assert len(rows) == 20
    assert all(sum(row["env_steps"]) > 0 for row in rows)
    tree = with_new_keys(yaml.safe_load((run / "config.yaml").read_text()))
    check_config(run, config_from(RolloutConfig, {**tree, "run_dir": str(run)}))
    _, (found,) = discover([run])
    assert found.summary["n_action_steps"] == 2
