"""Stage `policy`: instruction and first image -> latent action tokens, by next-code prediction.

    vw2-train-policy data=bridge_sample data.path=DIR model=tiny run_dir=runs/first

Method specification 2.4: cross-entropy on latent positions of valid steps only; text, image, specials and padding carry
no label. No action is ever read. The checkpoint holds the policy and the dLDM that speaks its codes, so it stands
alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vw2_robot.checkpoint import load_checkpoint, load_optimizer, save_checkpoint
from vw2_robot.command_line.config_tree import config_tree
from vw2_robot.command_line.program import program
from vw2_robot.data.clips import clip_offsets
from vw2_robot.data.frame_cache import FrameCache, resize_frame
from vw2_robot.data.latents import LatentCache, LatentWindows, joined
from vw2_robot.errors import InputError
from vw2_robot.models.dldm.dldm import DLDM
from vw2_robot.models.policy.acting import null_codes
from vw2_robot.models.policy.ar_policy import LatentPolicy
from vw2_robot.optim import build_optimizer, optimizer_step
from vw2_robot.pixels import shift_randomly, to_model_range
from vw2_robot.runs import Run, generator

from .cache_frames import open_frames, training_split
from .config import PretrainConfig, alone, finished_stage
from .train_dldm import encoder_hash

STREAM_INIT, STREAM_BATCH = 40, 41


class PolicyBatches:
    """LatentWindows with their first image and instruction; batch i is a pure function of (seed, i)."""

    def __init__(self, windows: LatentWindows, frame_cache: FrameCache, *, image_px: int) -> None:
        self.windows, self.frame_cache, self.image_px = windows, frame_cache, image_px

    def images(self, rows: NDArray[np.int64]) -> torch.Tensor:
        """uint8 [B, px, px, 3]: the first frame of each window."""
        pixels = self.frame_cache.read_batch(self.windows.episode[rows], self.windows.start[rows][:, None])[:, 0]
        px = self.image_px
        return torch.from_numpy(np.stack([resize_frame(frame, height=px, width=px) for frame in pixels]))

    def read(
        self, rows: NDArray[np.int64], device: torch.device
    ) -> tuple[list[str], torch.Tensor, torch.Tensor, torch.Tensor]:
        """(instructions, images in [-1, 1], codes [B, H, N], valid [B, H]) on the device."""
        words = [self.frame_cache.episodes[episode].instruction for episode in self.windows.episode[rows]]
        codes = torch.from_numpy(self.windows.codes[rows].astype(np.int64)).to(device)
        valid = torch.from_numpy(self.windows.valid[rows]).to(device)
        return words, to_model_range(self.images(rows).to(device)), codes, valid


@dataclass(frozen=True)
class PolicyDatasets:
    """Windows to learn from, windows held out, the dLDM that speaks their codes, latent steps per second."""

    train: PolicyBatches
    held_out: PolicyBatches
    dldm: DLDM
    latent_hz: float | None


def build_policy(config: PretrainConfig, dldm: DLDM) -> LatentPolicy:
    """A policy before latent pre-training; what is random in it depends on the seed alone."""
    return LatentPolicy(config.policy, generator=generator(config.seed, 0, stream=STREAM_INIT), dldm=dldm)


def train_policy(config: PretrainConfig) -> None:
    """Pre-train the policy on the latent cache, or return at once when it is complete."""
    with _open_run(config) as run:
        if not run.complete:
            _train(config, run)


def _train(config: PretrainConfig, run: Run) -> None:
    """All steps that are left, from the last checkpoint on."""
    loop, shift = config.train_policy.loop, config.train_policy.image_shift_px
    device = config.hardware.torch_device()
    material = _open_material(config)
    policy = build_policy(config, material.dldm).to(device)
    optimizer = build_optimizer(policy.parameters(), loop.optim)
    if run.checkpoint is not None:
        load_checkpoint(run.checkpoint, kind="policy").load_into(policy=policy)
        load_optimizer(run.checkpoint, optimizer)
    run.begin()
    held_out = material.held_out
    check = np.linspace(0, len(held_out.windows) - 1, min(256, len(held_out.windows))).astype(np.int64)
    for step in run.steps():
        draw = generator(config.seed, step, stream=STREAM_BATCH)
        rows = torch.randint(len(material.train.windows), (loop.batch_size,), generator=draw).numpy()
        words, image, codes, valid = material.train.read(rows, device)
        image = shift_randomly(image, most=shift, noise=draw)
        fed = _fed_codes(policy, codes, share=config.train_policy.code_dropout, draw=draw)
        with config.hardware.autocast(device):
            loss, parts = policy.code_loss(policy.states(policy.prompt(words, image), fed), codes, valid)
        norm = optimizer_step(loss, optimizer, step=step, config=loop.optim, total_steps=loop.train_steps)
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
            run.save(step, lambda path: _save(path, config, material, policy, optimizer))


def _fed_codes(policy: LatentPolicy, codes: torch.Tensor, *, share: float, draw: torch.Generator) -> torch.Tensor:
    """The codes [B, H, N], but the zero code in every slot of a random share of the samples."""
    if share == 0:
        return codes
    blind = torch.rand(len(codes), generator=draw).to(codes.device) < share
    nothing = null_codes(policy, len(codes), latent_steps=codes.shape[1], device=codes.device)
    return torch.where(blind[:, None, None], nothing, codes)


def _open_run(config: PretrainConfig) -> Run:
    stages_before = ("data", "dldm", "vdm", "codec", "train_vdm", "train_dldm", "extract_latents")
    loop = config.train_policy.loop
    return Run(
        config.stage_dir("policy"),
        config.stage_tree(*stages_before, "policy", "train_policy", "seed"),
        stage="policy",
        total_steps=loop.train_steps,
        save_every=loop.save_every,
        log_every=loop.log_every,
    )


def _open_material(config: PretrainConfig) -> PolicyDatasets:
    """The windows of the latent cache, after it was checked against images and dLDM."""
    frames = open_frames(config)
    train_ids, validation_ids = training_split(config, frames)
    dldm = DLDM(config.dldm)
    load_checkpoint(finished_stage(config, "dldm"), kind="dldm").load_into(dldm=dldm)
    cache = LatentCache(config.stage_dir("latents"), encoder_hash=encoder_hash(dldm), frames_digest=frames.digest)
    px = config.policy.image_px
    train, held_out = (
        PolicyBatches(_as_long_as_asked(config, cache.of_episodes(ids), frames), frames, image_px=px)
        for ids in (train_ids, validation_ids)
    )
    return PolicyDatasets(train, held_out, dldm, latent_hz=cache.facts["hz"])


def _as_long_as_asked(config: PretrainConfig, windows: LatentWindows, frame_cache: FrameCache) -> LatentWindows:
    """The windows with `train_policy.latent_steps` latent steps.

    Raises:
        InputError: longer ones are asked for and no window of the cache begins where another one ends.
    """
    steps, own = config.train_policy.latent_steps, config.dldm.latent_steps
    if steps is None or steps == own:
        return windows
    dldm = config.dldm
    reach = {
        hz: int(clip_offsets(dldm.num_frames, temporal_stride=dldm.temporal_stride, hz=hz, **config.data.time_base)[-1])
        for hz in {episode.hz for episode in frame_cache.episodes}
    }
    ends = windows.start + np.array([reach[frame_cache.episodes[episode].hz] for episode in windows.episode])
    longer = joined(windows, ends=ends, latent_steps=steps)
    if steps > own and len(windows) and not longer.valid[:, own].any():
        raise InputError(
            f"train_policy.latent_steps={steps}, but no window of {own} latent steps in {config.stage_dir('latents')} "
            f"begins where another one ends, {min(reach.values())} frames later; set extract_latents.cache_stride="
            f"{config.extract_latents.cache_stride} to a divisor of that, or train_policy.latent_steps={own}"
        )
    return longer


def _save(
    path: Path, config: PretrainConfig, material: PolicyDatasets, policy: LatentPolicy, optimizer: torch.optim.Optimizer
) -> None:
    """Write policy and dLDM, all that later stages and a resumed run need."""
    train, dldm = material.train, material.dldm
    save_checkpoint(
        path,
        kind="policy",
        config={"policy": config_tree(config.policy), "dldm": config_tree(config.dldm), "head": None},
        modules={"policy": policy, "dldm": dldm},
        facts={
            "encoder_hash": encoder_hash(dldm),
            "latent_hz": material.latent_hz,
            "time_base": config.data.time_base,
            "pretraining": {"frames_digest": train.frame_cache.digest, "windows": len(train.windows)},
        },
        files=policy.files(),
        optimizer=optimizer,
    )


main = program(PretrainConfig, config_name="pretrain", one_process=True)(alone(train_policy))

if __name__ == "__main__":
    main()
