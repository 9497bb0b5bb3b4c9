"""A miniature of the whole training chain: 16 x 16 images of moving squares, models of a few thousand weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

SIDE = 16
COLORS = np.array([[230, 60, 40], [40, 200, 60], [60, 90, 240]], np.uint8)


def moving_square(number: int, length: int = 9) -> np.ndarray:
    """uint8 [length, 16, 16, 3]: a square on a random ground, wandering left or right by its number."""
    ground = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    video = np.broadcast_to(ground, (length, SIDE, SIDE, 3)).copy()
    for t in range(length):
        left = (2 * number + (2 * t if number % 2 else -2 * t)) % (SIDE - 6)
        video[t, 5:11, left : left + 6] = COLORS[number % 3]
    return video


@pytest.fixture(scope="session")
def frames_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A frame cache of ten short episodes, as `cache_sources` would leave it."""
    from vw2_robot.data.episodes import Episode
    from vw2_robot.data.frame_cache import cache_frames

    out = tmp_path_factory.mktemp("squares") / "frames"
    instructions = ("push left", "push the square to the right")
    episodes = [
        Episode("squares", str(n), instructions[n % 2], 5.0, tuple(moving_square(n, 7 + n % 4))) for n in range(10)
    ]
    cache_frames(episodes, out, height=SIDE, width=SIDE, description={"made": "by a test"})
    return out


@pytest.fixture(scope="session")
def calvin_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CALVIN data set of eight trajectories of two tasks; the actions say which way the square moves."""
    from vw2_robot.data.calvin_writer import CalvinWriter

    root = tmp_path_factory.mktemp("calvin")
    writer = CalvinWriter(root, "training", compress_level=0)
    rng = np.random.default_rng(0)
    for number in range(8):
        video = moving_square(number)
        actions = rng.uniform(-0.2, 0.2, (len(video), 7))
        actions[:, 0] += 0.5 if number % 2 else -0.5
        actions[:, 6] = np.where(np.arange(len(video)) < 5, 1, -1)
        writer.write_episode(
            {
                "rgb_static": video,
                "actions": actions,
                "rel_actions": actions,
                "robot_obs": np.zeros((len(video), 15)),
                "scene_obs": np.zeros((len(video), 24)),
            },
            first_frame=100 * number,
            task="push_left" if number % 2 else "push_right",
            instruction="push the square",
            scene="D",
        )
    writer.finish()
    return root


@pytest.fixture(scope="session")
def miniature(frames_folder: Path, small_models: list[str]) -> Callable[..., list[str]]:
    """Command-line overrides that make `pretrain-on-openx` a matter of seconds."""

    def overrides(run_dir: Path) -> list[str]:
        loop = "{train_steps: %d, batch_size: 2, log_every: 1, save_every: %d, optim: {lr: 0.003, warmup_steps: 2}}"
        return [
            f"run_dir={run_dir}",
            f"data.frame_cache={frames_folder}",
            "data.validation_fraction=0.2",
            "++data.augmentation={flip: 0.5, brightness: 0.2}",
            "++hardware={device: cpu, threads: 1}",
            *small_models,
            "++train_vdm=" + loop % (5, 2),
            "++train_dldm.phase1=" + loop % (4, 3),
            "++train_dldm.phase2=" + loop % (4, 3),
            "train_dldm.validation_clips=4",
            "++train_policy.loop=" + loop % (5, 2),
            "train_policy.image_color_jitter=0.2",
            "++extract_latents={cache_stride: 1, batch_size: 8}",
        ]

    return overrides


@pytest.fixture(scope="session")
def pretrained(miniature: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished miniature chain without interruptions; tests copy what they change."""
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf

    from vw2_robot.command_line.config_tree import config_from
    from vw2_robot.pretrain import extract_latents
    from vw2_robot.pretrain.config import PretrainConfig
    from vw2_robot.pretrain.pretrain_on_openx import pretrain_on_openx

    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    with initialize_config_module("vw2_robot.configs", version_base="1.3"):
        tree = compose("pretrain", miniature(folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extract_latents, "EPISODES_PER_SHARD", 3)
        pretrain_on_openx(config_from(PretrainConfig, OmegaConf.to_container(tree, resolve=True)))
    return folder
