"""What the tests of the LeRobot plugin share; `make test-lerobot` runs them, elsewhere they are skipped."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from vw2_robot import VW2Agent
from vw2_robot.checkpoint import save_checkpoint
from vw2_robot.command_line.config_tree import config_tree
from vw2_robot.data.statistics import ActionStatistics
from vw2_robot.models.dldm.config import DLDMConfig, LevelConfig, StemConfig
from vw2_robot.models.dldm.dldm import DLDM
from vw2_robot.models.policy.action_head import ActionHead
from vw2_robot.models.policy.ar_policy import LatentPolicy
from vw2_robot.models.policy.config import ActionHeadConfig, BackboneConfig, PolicyConfig

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ROOT / "integrations" / "lerobot"
POLICY = PolicyConfig(
    backbone=BackboneConfig(hidden=32, ffn=48, layers=2, heads=4, kv_heads=2), image_px=16, image_widths=(8, 16, 16)
)
DECODER = DLDMConfig(  # 4 frames a latent step, one step at a time
    num_frames=5,
    height=16,
    width=16,
    stem=StemConfig("pixel", 2, 4, 1),
    levels=(LevelConfig(8, 1, downsample_time=True),),
)


def labels():
    rng = np.random.default_rng(0)
    actions = np.clip(rng.normal(0, 0.3, (400, 7)), -1, 1)
    actions[:, 6] = rng.choice((-1.0, 1.0), 400)
    return actions


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """The policy of the package, in the folder that LeRobot reads."""
    folder = tmp_path_factory.mktemp("exported") / "policy"
    VW2Agent.from_pretrained("builtin:calvin-tiny").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def decoding(tmp_path_factory):
    """`decoding(**settings)` -> a folder with a small random policy that predicts codes, and its dLDM."""
    made = {}

    def folder(**settings):
        key = str(settings)
        if key not in made:
            path = tmp_path_factory.mktemp("decoding")
            torch.manual_seed(0)
            save_checkpoint(
                path / "checkpoint",
                kind="policy",
                config={
                    "policy": config_tree(POLICY),
                    "dldm": config_tree(DECODER),
                    "head": config_tree(ActionHeadConfig(16)),
                    "stride": 4,
                    "latent_steps": 2,
                    "n_action_steps": 3,
                    **settings,
                },
                modules={
                    "policy": LatentPolicy(POLICY, generator=torch.Generator().manual_seed(0)),
                    "head": ActionHead(ActionHeadConfig(16), width=32, queries=4, stride=4, action_size=7),
                    "dldm": DLDM(DECODER),
                },
                facts={"control_hz": 30.0, "label_fraction": 0.1, "label_seed": 3, "labels_digest": "d"},
                files={
                    "tokens": LatentPolicy(POLICY, generator=torch.Generator()).backbone.vocabulary.to_json(),
                    "stats": {"calvin": ActionStatistics.from_actions(labels()).to_json()},
                },
            )
            made[key] = path / "exported"
            VW2Agent.from_pretrained(path / "checkpoint").save_pretrained(made[key])
        return made[key]

    return folder


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """Root of a data set of LeRobot, two episodes of 20 frames; its gripper only opens in the second."""
    lerobot_dataset = pytest.importorskip("lerobot.datasets.lerobot_dataset")
    root = tmp_path_factory.mktemp("dataset") / "drawers"
    features = {
        "observation.images.static": {"dtype": "image", "shape": (64, 64, 3), "names": ["height", "width", "channel"]},
        "observation.state": {"dtype": "float32", "shape": (3,), "names": None},
        "action": {"dtype": "float32", "shape": (7,), "names": None},
    }
    made = lerobot_dataset.LeRobotDataset.create("local/drawers", 10, features, root=root, use_videos=False)
    rng = np.random.default_rng(0)
    for gripper, task in ((-1.0, "open the drawer"), (1.0, "close the drawer")):
        for _ in range(20):
            action = np.append(rng.uniform(-0.5, 0.5, 6), gripper).astype(np.float32)
            frame = {
                "observation.images.static": rng.integers(0, 256, (64, 64, 3), dtype=np.uint8),
                "observation.state": np.zeros(3, np.float32),
                "action": action,
            }
            made.add_frame({**frame, "task": task})
        made.save_episode()
    made.finalize()
    return root


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    """The plugin as a user installs it, from a copy so that no build product is left in the checkout."""
    source, site = tmp_path_factory.mktemp("source") / "lerobot", tmp_path_factory.mktemp("site")
    shutil.copytree(PLUGIN, source, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--disable-pip-version-check", "--target", site, source], check=True)
    return site


@pytest.fixture
def lerobot(tmp_path):
    """`lerobot("lerobot-eval", *arguments, site=...)` runs a program of LeRobot, with the plugin found in `site`."""

    def run(program, *arguments, site):
        environment = os.environ | {
            "PYTHONPATH": f"{site}{os.pathsep}{ROOT}",
            "HF_HUB_OFFLINE": "1",
            "HF_LEROBOT_HOME": str(tmp_path / "home"),
            "TOKENIZERS_PARALLELISM": "false",
        }
        command = [sys.executable, "-m", f"lerobot.scripts.{program.replace('-', '_')}", *arguments]
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=900, check=False
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
        return done.stdout + done.stderr

    return run
