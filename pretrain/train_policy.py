"""Stage `policy`: instruction and first image -> latent action tokens, by next-code prediction.

    vw2-train-policy data=bridge_sample data.path=DIR model=tiny run_dir=runs/first

Cross-entropy on latent positions of valid steps only; text, image, specials and padding carry no label. No action is
ever read. The checkpoint holds the policy and the dLDM of its codes, so it needs no other file.
"""

# B batch · H latent steps · N codes per step · px side of the policy's image

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vw2_robot.checkpoint import load_checkpoint, load_optimizer, save_checkpoint
from vw2_robot.command_line import entry_points
from vw2_robot.command_line.config_tree import config_tree
from vw2_robot.data.clips import clip_offsets
from vw2_robot.data.frame_cache import FrameCache
from vw2_robot.data.images import resize_frame
from vw2_robot.data.latents import LatentCache, LatentWindows, anchored, joined, shuffled
from vw2_robot.devices import Hardware
from vw2_robot.distributed.batch_share import BatchShare, shared_chunks
from vw2_robot.distributed.ranks import global_sum
from vw2_robot.distributed.sharding import LossParts, Parallel, state_bytes
from vw2_robot.errors import InputError
from vw2_robot.models.dldm.dldm import DLDM
from vw2_robot.models.policy.ar_policy import NULL_CODE, LatentPolicy
from vw2_robot.optim import build_optimizer, optimizer_step
from vw2_robot.pixels import jitter_color, shift_randomly, to_model_range
from vw2_robot.random_numbers import SampleNoise, generator
from vw2_robot.runs import Run

from .cache_frames import open_frames, training_split
from .config import PretrainConfig
from .dldm_modules import encoder_hash
from .stages import alone, finished_stage

STREAM_INIT, STREAM_BATCH, STREAM_NOISE = 40, 41, 42
VALIDATION_WINDOWS = 256


class PolicyBatches:
    """Windows of the latent cache with their first image and instruction.

    Args:
        windows: codes, and where each window begins.
        frame_cache: the images and instructions of its episodes.
        image_px: side of the policy's image.
    """

    def __init__(self, windows: LatentWindows, frame_cache: FrameCache, *, image_px: int) -> None:
        self.windows = windows
        self.frame_cache = frame_cache
        self.image_px = image_px

    def images(self, rows: NDArray[np.int64]) -> torch.Tensor:
        """Return uint8 [B, px, px, 3]: the first frame of each window."""
        # The cached images have the dLDM's size; the policy's may be another.
        pixels = self.frame_cache.read_batch(self.windows.episode[rows], self.windows.start[rows][:, None])[:, 0]
        px = self.image_px
        return torch.from_numpy(np.stack([resize_frame(frame, height=px, width=px) for frame in pixels]))

    def read(
        self, rows: NDArray[np.int64], device: torch.device
    ) -> tuple[list[str], torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return (instructions, images in [-1, 1], codes [B, H, N], valid [B, H]), tensors on the device."""
        instructions = [self.frame_cache.episodes[episode].instruction for episode in self.windows.episode[rows]]
        codes = torch.from_numpy(self.windows.codes[rows].astype(np.int64)).to(device)
        valid = torch.from_numpy(self.windows.valid[rows]).to(device)
        return instructions, to_model_range(self.images(rows).to(device)), codes, valid


@dataclass(frozen=True)
class PolicyDatasets:
    """Windows to train on, windows held out, the dLDM of their codes, and the rate of their clips in Hz."""

    train: PolicyBatches
    held_out: PolicyBatches
    dldm: DLDM
    latent_hz: float | None


def build_policy(config: PretrainConfig, dldm: DLDM) -> LatentPolicy:
    """Return a policy before latent pre-training; what is random in it depends on the seed alone."""
    return LatentPolicy(config.policy, generator=generator(config.seed, 0, stream=STREAM_INIT), dldm=dldm)


def train_policy(config: PretrainConfig) -> None:
    """Pre-train the policy on the latent cache, or return at once when it is complete."""
    stages_before = ("data", "dldm", "vdm", "codec", "train_vdm", "train_dldm", "extract_latents")
    loop = config.train_policy.loop
    with Run(
        config.stage_dir("policy"),
        config.stage_tree(*stages_before, "policy", "train_policy", "seed"),
        stage="policy",
        total_steps=loop.train_steps,
        save_every=loop.save_every,
        log_every=loop.log_every,
        hardware=config.hardware,
        track=config.track,
    ) as run:
        if not run.complete:
            train_codes(config, run)


def train_codes(config: PretrainConfig, run: Run) -> None:
    """Train all steps that are left, from the last checkpoint on."""
    loop = config.train_policy.loop
    hardware = config.hardware
    device = hardware.torch_device()
    share = BatchShare.of(loop.batch_size, micro_batches=hardware.micro_batches)
    datasets = open_datasets(config)
    policy = build_policy(config, datasets.dldm).to(device, hardware.dtype)
    parallel = parallel_policy(hardware, {"policy": policy}, policy)
    optimizer = build_optimizer(policy.parameters(), loop.optim)
    if run.checkpoint is not None:
        load_checkpoint(run.checkpoint, kind="policy").load_into(policy=policy)
        load_optimizer(run.checkpoint, optimizer)
    run.begin(state_bytes=state_bytes([policy, datasets.dldm], optimizer))
    for step in run.steps():
        # With replacement, from seed and step: a resumed run needs no position in the data.
        rows = torch.randint(
            len(datasets.train.windows),
            (loop.batch_size,),
            generator=generator(config.seed, step, stream=STREAM_BATCH),
        ).numpy()
        # The codes that count in the whole batch: every rank knows all rows.
        count = torch.tensor(int(datasets.train.windows.valid[rows].sum()) * config.policy.queries, device=device)
        places = [share.rows[part] for part in share.slices()]
        noises = [
            SampleNoise(config.seed, step, stream=STREAM_NOISE, samples=p.tolist(), device=device) for p in places
        ]
        loss, parts, _ = parallel.backward(
            partial(policy_loss, config, policy),
            [
                (*datasets.train.read(rows[here], device), noise, count)
                for here, noise in zip(places, noises, strict=True)
            ],
        )
        # The language model's text positions carry no label, so the gradient comes from codes alone.
        norm = optimizer_step(loss, optimizer, step=step, config=loop.optim, total_steps=loop.train_steps)
        if run.due(step, loop.log_every):
            validation = parallel.run(validate, config, policy, datasets.held_out)
            metrics = {"policy/code_loss": loss, "policy/accuracy": parts["accuracy"], "policy/grad_norm": norm}
            run.log(step, metrics | validation)
        if run.checkpoint_due(step, loop.save_every):
            run.save(step, partial(save, config=config, datasets=datasets, policy=policy, optimizer=optimizer))


def policy_loss(
    config: PretrainConfig,
    policy: LatentPolicy,
    instructions: list[str],
    image: Tensor,
    codes: Tensor,
    valid: Tensor,
    noise: SampleNoise,
    count: Tensor,
) -> LossParts:
    """Return the code loss of a part of a batch.

    Args:
        config: of the run.
        policy: on the device.
        instructions: of the B samples.
        image: [B, 3, px, px] in [-1, 1].
        codes: int [B, H, N].
        valid: bool [B, H], the latent steps that count.
        noise: of the samples.
        count: valid codes of the whole batch.
    """
    options = config.train_policy
    image = shift_randomly(image.to(config.hardware.dtype), most=options.image_shift_px, noise=noise)
    image = jitter_color(image, strength=options.image_color_jitter, noise=noise)
    input_codes = drop_codes(codes, share=options.code_dropout, noise=noise)
    with config.hardware.autocast(image.device):
        states = policy.states(policy.prompt(instructions, image), input_codes)
        return LossParts(*policy.code_loss(states, codes, valid, count=count))


@torch.no_grad()
def validate(config: PretrainConfig, policy: LatentPolicy, held_out: PolicyBatches) -> dict[str, Tensor]:
    """Return loss and accuracy on held-out windows, the same ones every time; ranks share them.

    Args:
        config: of the run.
        policy: on the device.
        held_out: windows.
    """
    device = next(policy.parameters()).device
    # Evenly spread over all of them.
    count = min(VALIDATION_WINDOWS, len(held_out.windows))
    check = np.linspace(0, len(held_out.windows) - 1, count).astype(np.int64)
    total = torch.zeros(3, dtype=torch.float64)
    one = torch.ones((), device=device)
    for rows, counts in shared_chunks(count, config.hardware.validation_batch):
        instructions, image, codes, valid = held_out.read(check[rows], device)
        valid = valid & counts
        with config.hardware.autocast(device):
            # All codes are given, also with `code_dropout`, so that runs with and without it can be compared.
            states = policy.states(policy.prompt(instructions, image.to(config.hardware.dtype)), codes)
            loss, parts = policy.code_loss(states, codes, valid, count=one)
        codes_here = valid.sum() * config.policy.queries
        total += torch.stack([loss.double(), parts["accuracy"].double(), codes_here.double()]).cpu()
    loss_sum, correct, codes_in_all = global_sum(total)
    return {
        "policy/validation_loss": loss_sum / codes_in_all.clamp(min=1),
        "policy/validation_accuracy": correct / codes_in_all.clamp(min=1),
    }


def parallel_policy(hardware: Hardware, modules: Mapping[str, nn.Module], policy: LatentPolicy) -> Parallel:
    """Prepare a policy, and what is trained with it, for the hardware; what is trained must be chosen before.

    Args:
        hardware: compilation and sharding.
        modules: the policy and whatever is trained with it, by name.
        policy: its language model has the blocks.

    Raises:
        InputError: the policy cannot be sharded.
    """
    if hardware.compile:
        policy.backbone.compile_blocks()
    if hardware.shards_weights:
        policy.backbone.check_sharding()
    return Parallel(modules, sharding=hardware.sharding, blocks=policy.backbone.blocks(), partial_use=True)


def drop_codes(codes: torch.Tensor, *, share: float, noise: SampleNoise) -> torch.Tensor:
    """Return the codes [B, H, N] with null codes in every slot of a random share of the samples.

    Args:
        codes: code indices int [B, H, N].
        share: probability in [0, 1] that the codes of a sample are dropped.
        noise: of these B samples; not used if `share` is 0.
    """
    if share == 0:
        return codes
    dropped = noise.rand().to(codes.device) < share
    return codes.masked_fill(dropped[:, None, None], NULL_CODE)


def open_datasets(config: PretrainConfig) -> PolicyDatasets:
    """Return the windows of the latent cache, after it was checked against frame cache and dLDM.

    Raises:
        InputError: a stage before is unfinished, or the latent cache is of other frames or another dLDM.
    """
    frame_cache = open_frames(config)
    dldm = DLDM(config.dldm)
    train_ids, validation_ids = training_split(config, frame_cache)
    load_checkpoint(finished_stage(config, "dldm"), kind="dldm").load_into(dldm=dldm)
    folder = config.stage_dir("latents")
    # Refused unless it was made by this dLDM from these frames.
    cache = LatentCache(folder, encoder_hash=encoder_hash(dldm), frames_digest=frame_cache.digest)
    train, held_out = (
        PolicyBatches(
            with_chosen_codes(config, resize_windows(config, cache.of_episodes(ids), frame_cache)),
            frame_cache,
            image_px=config.policy.image_px,
        )
        for ids in (train_ids, validation_ids)
    )
    return PolicyDatasets(train, held_out, dldm, latent_hz=cache.facts["hz"])


def with_chosen_codes(config: PretrainConfig, windows: LatentWindows) -> LatentWindows:
    """Return the windows with the codes that `train_policy.codes` names; where a window ends goes with its codes."""
    if config.train_policy.codes is None:
        return windows
    given = shuffled(len(windows), seed=config.seed)
    return replace(windows, codes=windows.codes[given], valid=windows.valid[given])


def resize_windows(config: PretrainConfig, windows: LatentWindows, frame_cache: FrameCache) -> LatentWindows:
    """Return the windows with `train_policy.latent_steps` latent steps each: cut, or joined end to end.

    With `train_policy.condition_every` each of them is there once for every frame that it is conditioned on.

    Args:
        config: its `train_policy.latent_steps` is the number wanted; None keeps the windows as they are.
        windows: windows of the latent cache, with `dldm.latent_steps` latent steps each.
        frame_cache: gives the frame rate of each episode, Hz.

    Raises:
        InputError: longer ones are wanted and no window of the cache begins where another one ends.
    """
    wanted = config.train_policy.latent_steps
    cached = config.dldm.latent_steps
    if wanted is None or wanted == cached:
        return windows
    dldm = config.dldm
    # Frames from the start of a clip to its end, which depend on the rate of the episode.
    reach = {
        hz: int(clip_offsets(dldm.num_frames, temporal_stride=dldm.temporal_stride, hz=hz, **config.data.time_base)[-1])
        for hz in set(frame_cache.episodes.hz.tolist())
    }
    # Windows of the cache overlap: one that begins where another ends continues it.
    ends = windows.start + np.array([reach[hz] for hz in frame_cache.episodes.hz[windows.episode].tolist()])
    resized = joined(windows, ends=ends, latent_steps=wanted)
    every = config.train_policy.condition_every
    if wanted > cached and len(windows) and not resized.valid[:, cached].any():
        raise InputError(
            f"train_policy.latent_steps={wanted}, but no window of {cached} latent steps in "
            f"{config.stage_dir('latents')} begins where another one ends, {min(reach.values())} frames later; set "
            f"extract_latents.cache_stride={config.extract_latents.cache_stride} to a divisor of that, or "
            f"train_policy.latent_steps={cached}"
        )
    if every is None:
        return resized
    clips = np.arange(0, wanted, every) // cached
    frames = windows.start[:, None] + clips * (ends - windows.start)[:, None]
    return anchored(resized, frames=frames, condition_every=every)


def save(
    path: Path,
    *,
    config: PretrainConfig,
    datasets: PolicyDatasets,
    policy: LatentPolicy,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write policy and dLDM: all that later stages and a resumed run need.

    Args:
        path: the checkpoint to write.
        config: configuration of policy, dLDM and data, which is stored.
        datasets: gives the dLDM, the rate of its clips in Hz, and what the policy was trained on.
        policy: the policy to store.
        optimizer: its state is stored, so that a run can be resumed.
    """
    dldm = datasets.dldm
    save_checkpoint(
        path,
        kind="policy",
        config={"policy": config_tree(config.policy), "dldm": config_tree(config.dldm), "head": None},
        modules={"policy": policy, "dldm": dldm},
        facts={
            "encoder_hash": encoder_hash(dldm),
            "latent_hz": datasets.latent_hz,
            "time_base": config.data.time_base,
            "aids": config.aids.names,
            "codes": config.train_policy.codes,
            "plan_steps": config.train_policy.latent_steps or config.dldm.latent_steps,
            "condition_every": config.train_policy.condition_every,
            "pretraining": {
                "frames_digest": datasets.train.frame_cache.digest,
                "windows": len(datasets.train.windows),
            },
        },
        files=policy.files(),
        optimizer=optimizer,
    )


main = alone(train_policy, "policy")

if __name__ == "__main__":
    entry_points.train_policy.main()
