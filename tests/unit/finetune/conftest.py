from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from vw2_robot.checkpoint import save_checkpoint
from vw2_robot.command_line.config_tree import config_tree
from vw2_robot.devices import Hardware
from vw2_robot.finetune.config import FinetuneConfig, FinetuneLoopConfig, LabeledDataConfig
from vw2_robot.models.dldm.config import DLDMConfig, LevelConfig, QFormerConfig, StemConfig
from vw2_robot.models.dldm.dldm import DLDM
from vw2_robot.models.policy.ar_policy import LatentPolicy
from vw2_robot.models.policy.config import ActionHeadConfig, BackboneConfig, PolicyConfig
from vw2_robot.schedule import OptimConfig

torch.set_num_threads(1)  # the models are tiny; two test processes share two cores
LENGTH = 7
POLICY = PolicyConfig(
    backbone=BackboneConfig(hidden=16, ffn=16, layers=1, heads=2, kv_heads=1),
    image_px=8,
    image_widths=(8,),
    restrict_softmax=True,
)
DLDM_TINY = DLDMConfig(
    num_frames=5,
    height=8,
    width=8,
    stem=StemConfig("pixel", 4, 4, 1),
    levels=(LevelConfig(8, 1),),
    qformer=QFormerConfig(heads=2, role_embedding=True, value_pos=True, difference_values=True),
    z_norm="batch",
    z_channels=8,
)
LOOP = FinetuneLoopConfig(
    train_steps=2, batch_size=4, log_every=1, save_every=2, optim=OptimConfig(lr=1e-2, warmup_steps=1)
)


@pytest.fixture
def dldm():
    """Untrained, of the sizes that `pretrained` has."""
    torch.manual_seed(0)
    return DLDM(DLDM_TINY).eval()


@pytest.fixture
def write_calvin(tmp_path):
    """Write a CALVIN data set whose pixels and actions show where they come from.

    Trajectory n, time t: green pixel 10 * t, red pixel 20 * n; action dx = t / 10, dy = n / 20, gripper by parity of t.
    """
    from vw2_robot.data.calvin_writer import CalvinWriter

    def write(count=8, *, length=LENGTH, tasks=2, name="calvin"):
        writer = CalvinWriter(tmp_path / name, "training", compress_level=0)
        for number in range(count):
            video = np.zeros((length, 8, 8, 3), np.uint8)
            actions = np.zeros((length, 7))
            for t in range(length):
                video[t] = (20 * number, 10 * t, 0)
                actions[t] = (t / 10, number / 20, 0, 0, 0, 0, 1 if t % 2 else -1)
            writer.write_episode(
                {
                    "rgb_static": video,
                    "actions": actions,
                    "rel_actions": actions,
                    "robot_obs": np.zeros((length, 15)),
                    "scene_obs": np.zeros((length, 24)),
                },
                first_frame=100 * number,
                task=f"task_{number % tasks}",
                instruction=f"do {number}",
                scene="D",
            )
        writer.finish()
        return tmp_path / name

    return write


def save_pretrained(folder, **facts):
    torch.manual_seed(0)
    policy = LatentPolicy(POLICY, generator=torch.Generator().manual_seed(0))
    save_checkpoint(
        folder,
        kind="policy",
        config={"policy": config_tree(POLICY), "dldm": config_tree(DLDM_TINY), "head": None},
        modules={"policy": policy, "dldm": DLDM(DLDM_TINY)},
        facts={"encoder_hash": "e" * 64, **facts},
    )
    return folder


@pytest.fixture
def pretrained(tmp_path):
    return save_pretrained(tmp_path / "pretrained", aids=["restrict_softmax"])


@pytest.fixture
def pretrained_at(tmp_path):
    """A policy whose codes were learned at a rate of their own: (target_hz, gap_seconds, the clips' true rates)."""

    def save(target_hz, gap_seconds, latent_hz):
        time_base = {"target_hz": target_hz, "gap_seconds": gap_seconds}
        return str(save_pretrained(tmp_path / "timed", time_base=time_base, latent_hz=latent_hz))

    return save


@pytest.fixture
def configure(tmp_path, pretrained):
    def make(data, *, run="run", **change):
        config = FinetuneConfig(
            run_dir=str(tmp_path / run),
            policy=str(pretrained),
            data=LabeledDataConfig(str(data), validation_fraction=0.25),
            loop=LOOP,
            label_fraction=0.5,
            head=ActionHeadConfig(8),
            hardware=Hardware("cpu", threads=1),
        )
        return replace(config, **change)

    return make
