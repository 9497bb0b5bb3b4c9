"""Admission of a codec and a video model: can the model read codes that hold the true motion?

    python -m benchmarks.video_model.oracle_codes --data runs/record/D runs/record/A [--variants] [--override KEY=VALUE]

The codes are the true displacement of the end effector in each latent step (method 8.1). The model is trained on them
from random weights, without control video, and judged on episodes that it was not trained on: what of the change do
the right codes explain, what those of another clip, what null codes? With `--variants` each aid is left out in turn.
A model that fails here cannot read learned codes either.
"""

# B batch · T frames · M latent steps
from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_module
from numpy.typing import NDArray
from omegaconf import OmegaConf
from torch import Tensor

from vw2_robot.command_line.config_tree import config_from
from vw2_robot.data.labeled_steps import LabeledSteps, LabeledVideo, cut_steps, open_labeled_steps
from vw2_robot.models.video.config import Geometry
from vw2_robot.models.video.vdm import VDM
from vw2_robot.models.video.video_codec import DCTCodec
from vw2_robot.optim import build_optimizer, optimizer_step
from vw2_robot.pixels import to_model_range
from vw2_robot.pretrain.config import PretrainConfig
from vw2_robot.pretrain.diagnostics.explained_change import TIMES, explained_change
from vw2_robot.random_numbers import SampleNoise
from vw2_robot.schedule import OptimConfig

HELD_OUT = 0.2
HELD_OUT_CLIPS = 64
MOTION_STD = 0.02
"""meters; displacements of a latent step over this are of unit size"""
NO_STILL = ("aids.still_control=false", "aids.control_dropout=0")
NONE = ("aids.warp_output=false", "aids.high_noise=0", *NO_STILL)
PER_CHANNEL = "and a scale for each channel"
"""as until 2026-11-29: every channel of the codec is divided by its size"""
VARIANTS = {
    "all aids": (),
    "no warp output": ("aids.warp_output=false",),
    "no high noise": ("aids.high_noise=0",),
    "no still control video": NO_STILL,
    "none of the three": NONE,
    PER_CHANNEL: NONE,
}


@dataclass(frozen=True)
class Clips:
    """Clips of labeled video with their oracle codes; `held_out` marks those of episodes that do not train."""

    videos: Sequence[LabeledVideo]
    steps: Sequence[LabeledSteps]
    source: NDArray[np.int64]
    """which data set each clip is from"""
    row: NDArray[np.int64]
    """which clip of it"""
    held_out: NDArray[np.bool_]

    def read(self, clips: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
        """Return pixels [B, T, 3, H, W] in [-1, 1], oracle codes [B, M, 1, 3], and valid steps [B, M]."""
        pixels, codes, valid = [], [], []
        for source, row in zip(self.source[clips], self.row[clips], strict=True):
            steps = self.steps[source]
            pixels.append(self.videos[source].frame_cache.read_batch(steps.episode[[row]], steps.frame_ids[[row]])[0])
            codes.append(steps.motion[row][:, None, :3] / MOTION_STD)
            valid.append(steps.valid[row])
        return (
            to_model_range(torch.from_numpy(np.stack(pixels))),
            torch.from_numpy(np.stack(codes)).float(),
            torch.from_numpy(np.stack(valid)),
        )


def open_clips(paths: Sequence[str], config: PretrainConfig, cache: Path) -> Clips:
    """Open recordings in CALVIN's layout, and hold a fifth of the episodes out.

    Args:
        paths: of the recordings.
        config: size and number of frames of a clip.
        cache: folder of the decoded frames.
    """
    shape = config.dldm
    videos, every = [], []
    for path in paths:
        video = open_labeled_steps(
            Path(path),
            name=Path(path).name,
            cache=cache / f"{Path(path).name}-{shape.height}x{shape.width}",
            height=shape.height,
            width=shape.width,
            episodes=10**6,
            seed=0,
        )
        videos.append(video)
        every.append(cut_steps(video, num_frames=shape.num_frames, stride=shape.temporal_stride))
    whole = [np.flatnonzero(steps.valid.all(1)) for steps in every]
    source = np.concatenate([np.full(len(rows), i) for i, rows in enumerate(whole)])
    row = np.concatenate(whole)
    held_out = np.concatenate(
        [
            np.isin(steps.episode[rows], np.arange(0, len(video.frame_cache.episodes), round(1 / HELD_OUT)))
            for video, steps, rows in zip(videos, every, whole, strict=True)
        ]
    )
    return Clips(videos, every, source, row, held_out)


def train_on_oracle_codes(
    config: PretrainConfig,
    clips: Clips,
    *,
    train_steps: int,
    seed: int,
    batch_size: int = 8,
    lr: float = 2e-3,
    per_channel: bool = False,
) -> tuple[VDM, DCTCodec]:
    """Return a video model that was trained on oracle codes from random weights, and its codec.

    Args:
        config: codec and model.
        clips: from `open_clips`.
        train_steps: of the training.
        seed: of weights, clips and noise.
        batch_size: clips of a step.
        lr: peak learning rate.
        per_channel: divide each channel of the codec by its own size.
    """
    torch.manual_seed(seed)
    codec = DCTCodec(config.codec)
    size = config.geometry
    geometry = Geometry(size.channels, size.latent_steps, size.height, size.width, queries=1, fsq_dims=3)
    vdm = VDM(config.vdm, geometry, config.codec)
    rng = np.random.default_rng(seed)
    training = np.flatnonzero(~clips.held_out)
    pixels = clips.read(rng.choice(training, min(64, len(training)), replace=False))[0]
    codec.measure(pixels)
    if per_channel:
        size_of_channels = codec.encode(pixels).square().mean(dim=(0, 2, 3, 4)).sqrt()
        codec.scale *= size_of_channels.clamp(min=float(size_of_channels.max()) * 0.01)
    optim = OptimConfig(lr=lr, weight_decay=0.01, warmup_steps=20)
    optimizer = build_optimizer(vdm.trainable_parameters(), optim)
    for step in range(train_steps):
        x, codes, valid = clips.read(rng.choice(training, batch_size))
        latents = codec.encode(x)
        loss = vdm.denoising_loss(
            latents,
            codes,
            control_video=vdm.still_video(latents[:, :, 0], latents.shape[2]),
            valid=valid,
            noise=SampleNoise(seed, step, stream=0, samples=range(batch_size)),
        )
        loss.backward()
        optimizer_step(loss.detach(), optimizer, step=step, config=optim, total_steps=train_steps)
    return vdm.eval(), codec


def judge(vdm: VDM, codec: DCTCodec, clips: Clips) -> dict[str, float]:
    """Return the explained change on held-out clips, and `ratio`: the error with shuffled over right codes.

    Args:
        vdm: from `train_on_oracle_codes`.
        codec: of its latents.
        clips: from `open_clips`.
    """
    held_out = np.random.default_rng(0).permutation(np.flatnonzero(clips.held_out))[:HELD_OUT_CLIPS]
    x, codes, valid = clips.read(held_out)

    def chunks() -> Iterator[tuple[NDArray[np.int64], Tensor, Tensor]]:
        yield np.arange(len(x)), x, valid

    found = explained_change(vdm, codec, chunks, dict(enumerate(codes)), seed=0)
    right, shuffled = found[f"explained_change_t{TIMES[-1]}"], found[f"explained_change_shuffled_t{TIMES[-1]}"]
    return found | {"ratio": (1 - shuffled) / (1 - right)}


def compose_config(overrides: Sequence[str]) -> PretrainConfig:
    """Return the configuration of pretrain-on-openx with these overrides."""
    with initialize_config_module("vw2_robot.configs", version_base="1.3"):
        tree = compose("pretrain", overrides=["run_dir=unused", *overrides])
    return config_from(PretrainConfig, OmegaConf.to_container(tree, resolve=True))  # type: ignore[arg-type]


def main() -> None:
    """Print one row for each variant and seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, help="recordings in CALVIN's layout")
    parser.add_argument("--cache", type=Path, default=Path("runs/video_model/frames"))
    parser.add_argument("--train-steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--variants", action="store_true", help="each aid left out in turn")
    parser.add_argument("--override", nargs="*", default=[], help="of the configuration, for all rows")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'variant':28}{'seed':>5}  " + "".join(f"t={t:<22}" for t in TIMES) + "ratio   CPU s", flush=True)
    print(" " * 35 + "codes/shuffled/null     " * len(TIMES))
    for name, overrides in (VARIANTS if args.variants else {"as configured": ()}).items():
        config = compose_config([*args.override, *overrides])
        clips = open_clips(args.data, config, args.cache)
        for seed in args.seeds:
            begin = time.process_time()
            vdm, codec = train_on_oracle_codes(
                config, clips, train_steps=args.train_steps, seed=seed, per_channel=name == PER_CHANNEL
            )
            seconds = time.process_time() - begin
            found = judge(vdm, codec, clips)
            cells = "".join(
                "/".join(f"{found[f'explained_change{kind}_t{t}']:6.2f}" for kind in ("", "_shuffled", "_null"))
                + "    "
                for t in TIMES
            )
            print(f"{name:28}{seed:>5}  {cells}{found['ratio']:5.2f}{seconds:8.0f}", flush=True)


if __name__ == "__main__":
    main()
