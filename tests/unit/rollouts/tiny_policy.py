"""A policy of a few thousand weights that was never trained: what it does is senseless, and always the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from vw2_robot.checkpoint import save_checkpoint
from vw2_robot.command_line.config_tree import config_tree
from vw2_robot.data.statistics import ActionStatistics
from vw2_robot.models.dldm.config import DLDMConfig, LevelConfig, StemConfig
from vw2_robot.models.dldm.dldm import DLDM
from vw2_robot.models.policy.action_head import ActionHead
from vw2_robot.models.policy.ar_policy import LatentPolicy
from vw2_robot.models.policy.config import ActionHeadConfig, BackboneConfig, PolicyConfig

STRIDE = 4


DLDM_CONFIG = DLDMConfig(  # a temporal stride of 2 (stem) x 2 (level) = 4
    num_frames=5,
    height=16,
    width=16,
    stem=StemConfig("pixel", 2, 4, 1),
    levels=(LevelConfig(8, 1, downsample_time=True),),
)


def save_tiny_policy(folder: Path, *, shift: float = 0.0, step: int = 1, with_dldm: bool = False) -> Path:
    """Write the checkpoint; actions are large, so that a changed bit soon shows in the world; `shift` is their mean."""
    generator = torch.Generator().manual_seed(0)
    config = PolicyConfig(
        backbone=BackboneConfig(hidden=32, ffn=48, layers=2, heads=4, kv_heads=2), image_px=32, image_widths=(8, 16, 16)
    )
    policy = LatentPolicy(config, generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = ActionHead(ActionHeadConfig(16), width=32, queries=config.queries, stride=STRIDE, action_size=7)
        dldm = {"dldm": DLDM(DLDM_CONFIG)} if with_dldm else {}
    rng = np.random.default_rng(0)
    labels = np.clip(rng.normal(shift, 0.9, (400, 7)), -1, 1)
    labels[:, 6] = rng.choice((-1.0, 1.0), 400)
    save_checkpoint(
        folder / f"step_{step}",
        kind="policy",
        config={
            "policy": config_tree(config),
            "stride": STRIDE,
            "head": config_tree(ActionHeadConfig(16)),
            "acting": "expected",
            "latent_steps": 1,
            "n_action_steps": STRIDE,
            **({"dldm": config_tree(DLDM_CONFIG)} if with_dldm else {}),
        },
        modules={"policy": policy, "head": head, **dldm},
        facts={"control_hz": 30.0, "label_fraction": 0.0},
        files={
            "tokens": policy.backbone.vocabulary.to_json(),
            "stats": {"calvin": ActionStatistics.from_actions(labels).to_json()},
        },
    )
    return folder / f"step_{step}"
