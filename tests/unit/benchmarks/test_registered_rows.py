"""Rows of families a and b of the registered experiment, from video to an action: two steps of everything."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # benchmarks are not part of the package

from benchmarks.experiment.gate import FINETUNE
from benchmarks.experiment.jobs import PRETRAIN
from benchmarks.experiment.plan import FAMILIES, finetune_experiment
from benchmarks.results.settings import nested, settings_of
from vw2_robot.agent import VW2Agent
from vw2_robot.checkpoint import load_checkpoint
from vw2_robot.command_line.config_tree import config_from
from vw2_robot.data.calvin_writer import CalvinWriter
from vw2_robot.finetune.config import FinetuneConfig
from vw2_robot.finetune.train_head import finetune
from vw2_robot.pretrain.config import PretrainConfig
from vw2_robot.pretrain.pretrain_on_openx import pretrain_on_openx

pytestmark = pytest.mark.slow
LOOP = ("train_steps=2", "batch_size=4", "log_every=2", "save_every=2", "optim.warmup_steps=1")
SHORT = (
    *(
        f"{loop}.{item}"
        for loop in (
            "train_vdm",
            "train_dldm.phase1",
            "train_dldm.reader.loop",
            "train_dldm.phase2",
            "train_policy.loop",
        )
        for item in LOOP
    ),
    "train_dldm.validation_clips=2",
    "train_dldm.usage_clips=2",
    "data.validation_fraction=0.3",
    "track=none",
)


def write_demonstrations(folder: Path) -> None:
    """Write a few moving squares in CALVIN's layout, for training and for validation."""
    rng = np.random.default_rng(0)
    for split, count in (("training", 8), ("validation", 2)):
        writer = CalvinWriter(folder, split, compress_level=0)
        for number in range(count):
            actions = np.append(rng.uniform(-1, 1, (14, 6)), rng.choice((-1.0, 1.0), (14, 1)), 1)
            video = np.full((14, 64, 64, 3), 20 * number, np.uint8)
            for image, x in zip(video, range(4, 60, 4), strict=True):
                image[8 : 16 + number, x : x + 8] = 255
            arrays = {"rgb_static": video, "actions": actions, "rel_actions": actions}
            arrays |= {"robot_obs": rng.normal(size=(14, 15)), "scene_obs": np.zeros((14, 24))}
            label = {"task": f"task_{number % 2}", "instruction": f"do {number}", "scene": "D"}
            writer.write_episode(arrays, first_frame=100 * number, **label)
        writer.finish()


def test_every_row_of_families_a_and_b_becomes_a_policy_that_acts(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_demonstrations(data)
    places = [f"data.path={data}", "hardware.threads=1"]
    pretrained: dict[str, dict[str, object]] = {}
    for family in FAMILIES[:2]:
        for row in family.rows:
            name = row.pretraining or family.like
            folder = tmp_path / "pretrain" / name
            if name not in pretrained:
                settings = settings_of(PRETRAIN, [f"+experiment=pretrain/{name}", *SHORT, *places, f"run_dir={folder}"])
                assert settings is not None
                pretrain_on_openx(config_from(PretrainConfig, nested(settings)))
                pretrained[name] = load_checkpoint(folder / "policy", kind="policy").facts
            begin = f"{'network.like' if row.pretraining is None else 'policy'}={folder}"
            run = tmp_path / "finetune" / row.name
            short = [f"loop.{item}" for item in LOOP]
            settings = settings_of(
                FINETUNE,
                [
                    f"+experiment={finetune_experiment(family, row)}", begin, *short, *places, "label_fraction=0.5",
                    "validation_windows=4", "track=none", f"data.frame_cache={tmp_path / 'labeled'}", f"run_dir={run}",
                ],
            )  # fmt: skip
            assert settings is not None
            finetune(config_from(FinetuneConfig, nested(settings)))
            agent = VW2Agent.from_pretrained(run)
            image = np.zeros((200, 200, 3), np.uint8)
            actions = agent.infer({"images": {"static": image}, "prompt": "do 1"})["actions"]
            assert actions.shape == (8, 7)
            assert np.isfinite(actions).all()
            assert load_checkpoint(run, kind="policy").facts["method"] == settings["method"]
    assert pretrained["codes_shuffled"]["codes"] == "shuffled"
    assert pretrained["in_domain_vw2"]["codes"] is None
    # The control has the dLDM of the row that it controls; other codes have another identity.
    same = ("in_domain_vw2", "codes_shuffled")
    hashes = {name: facts["encoder_hash"] for name, facts in pretrained.items()}
    assert hashes[same[0]] == hashes[same[1]]
    assert len(set(hashes.values())) == len(hashes) - 1
