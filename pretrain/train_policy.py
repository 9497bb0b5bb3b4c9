"""Stage `policy`: instruction and first image -> latent action tokens, by next-code prediction.

    vw2-train-policy data=bridge_sample data.path=DIR model=tiny run_dir=runs/first

Method specification 2.4: cross-entropy on latent positions of valid steps only; text, image, specials and padding carry
no label. No action is ever read. The checkpoint holds the policy and the dLDM that speaks its codes, so it stands
alone.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from vw2_robot.checkpoint import load_checkpoint, load_optimizer, save_checkpoint
from vw2_robot.cli import program
from vw2_robot.config_tree import config_tree
from vw2_robot.data.frames import FrameCache, resize_frame
from vw2_robot.data.latents import LatentCache, LatentWindows
from vw2_robot.models.ar_policy import LatentPolicy
from vw2_robot.models.dldm import DLDM
from vw2_robot.optim import build_optimizer, optimizer_step
from vw2_robot.pixels import shift_randomly, to_model_range
from vw2_robot.runs import Run, generator

from .config import Pretrain, finished_stage, open_frames, training_split
from .train_dldm import encoder_hash

STREAM_INIT, STREAM_BATCH = 40, 41


class PolicyBatches:
    """LatentWindows with their first image and instruction; batch i is a pure function of (seed, i)."""

    def __init__(self, windows: LatentWindows, frames: FrameCache, *, image_px: int) -> None:
        self.windows, self.frames, self.image_px = windows, frames, image_px

    def images(self, rows: NDArray[np.int64]) -> torch.Tensor:
        """uint8 [B, px, px, 3]: the first frame of each window."""
        pixels = self.frames.read_batch(self.windows.episode[rows], self.windows.start[rows][:, None])[:, 0]
        px = self.image_px
        return torch.from_numpy(np.stack([resize_frame(frame, height=px, width=px) for frame in pixels]))

    def read(
        self, rows: NDArray[np.int64], device: torch.device
    ) -> tuple[list[str], torch.Tensor, torch.Tensor, torch.Tensor]:
        """(instructions, images in [-1, 1], codes [B, H, N], valid [B, H]) on the device."""
        words = [self.frames.episodes[episode].instruction for episode in self.windows.episode[rows]]
        codes = torch.from_numpy(self.windows.codes[rows].astype(np.int64)).to(device)
        valid = torch.from_numpy(self.windows.valid[rows]).to(device)
        return words, to_model_range(self.images(rows).to(device)), codes, valid


def build_policy(config: Pretrain, dldm: DLDM) -> LatentPolicy:
    """A policy before latent pre-training; what is random in it depends on the seed alone."""
    return LatentPolicy(config.policy, generator=generator(config.seed, 0, stream=STREAM_INIT), dldm=dldm)


def train_policy(config: Pretrain) -> None:
    """Pre-train the policy on the latent cache, or return at once when it is complete."""
    settings = config.train_policy
    loop = settings.loop
    run = Run(
        config.stage_dir("policy"),
        config.stage_tree(
            "data",
            "dldm",
            "vdm",
            "codec",
            "train_vdm",
            "train_dldm",
            "extract_latents",
            "policy",
            "train_policy",
            "seed",
        ),
        stage="policy",
        total_steps=loop.steps,
        save_every=loop.save_every,
        log_every=loop.log_every,
    )
    if run.complete:
        return
    device = config.hardware.torch_device()
    frames = open_frames(config)
    train_ids, validation_ids = training_split(config, frames)
    teacher = load_checkpoint(finished_stage(config, "dldm"), kind="dldm")
    dldm = DLDM(config.dldm)
    teacher.load_into(dldm=dldm)
    cache = LatentCache(config.stage_dir("latents"), encoder_hash=encoder_hash(dldm), frames_digest=frames.digest)
    train = PolicyBatches(cache.of_episodes(train_ids), frames, image_px=config.policy.image_px)
    held_out = PolicyBatches(cache.of_episodes(validation_ids), frames, image_px=config.policy.image_px)
    policy = build_policy(config, dldm).to(device)
    optimizer = build_optimizer(policy.parameters(), loop.optim)
    if run.checkpoint is not None:
        load_checkpoint(run.checkpoint, kind="policy").load_into(policy=policy)
        load_optimizer(run.checkpoint, optimizer)

    def save(step: int) -> None:
        run.save(
            step,
            lambda path: save_checkpoint(
                path,
                kind="policy",
                config={"policy": config_tree(config.policy), "dldm": config_tree(config.dldm), "head": None},
                modules={"policy": policy, "dldm": dldm},
                facts={
                    "encoder_hash": encoder_hash(dldm),
                    "latent_hz": cache.facts["hz"],
                    "pretraining": {"frames_digest": frames.digest, "windows": len(train.windows)},
                },
                files=policy.files(),
                optimizer=optimizer,
            ),
        )

    check = np.linspace(0, len(held_out.windows) - 1, min(256, len(held_out.windows))).astype(np.int64)
    for step in run.steps():
        draw = generator(config.seed, step, stream=STREAM_BATCH)
        rows = torch.randint(len(train.windows), (loop.batch,), generator=draw).numpy()
        words, image, codes, valid = train.read(rows, device)
        image = shift_randomly(image, most=settings.image_shift_px, noise=draw)
        with config.hardware.autocast(device):
            loss, parts = policy.code_loss(policy.states(policy.prompt(words, image), codes), codes, valid)
        norm = optimizer_step(loss, optimizer, step=step, config=loop.optim, total_steps=loop.steps)
        if run.due(step, loop.log_every):
            with torch.no_grad(), config.hardware.autocast(device):
                words, image, codes, valid = held_out.read(check, device)
                validation, held = policy.code_loss(policy.states(policy.prompt(words, image), codes), codes, valid)
            run.log(
                step,
                {
                    "policy/code_loss": loss.detach(),
                    "policy/validation_loss": validation,
                    "policy/accuracy": parts["accuracy"],
                    "policy/validation_accuracy": held["accuracy"],
                    "policy/grad_norm": norm,
                },
            )
        if run.due(step, loop.save_every):
            save(step)
    run.close()


main = program(Pretrain, config_name="pretrain")(train_policy)

if __name__ == "__main__":
    main()
