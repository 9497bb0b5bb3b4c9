"""Stage `finetune`: a pre-trained policy learns to act from a fraction of the labeled trajectories.

    vw2-finetune policy=runs/first data.path=DIR label_fraction=0.1 run_dir=runs/first/finetune
    vw2-finetune method=oracle data.path=DIR label_fraction=0.1 run_dir=runs/oracle

An MLP on the hidden states of each latent step, trained with L2 on normalized actions, while the code loss keeps a
weight of `lambda_ce`. The policy acts through the codes that it predicts (`acting`), in validation as in control. The
selected labels are listed in labels.json; all other actions stay unread. With
`unlabeled.weight` the trajectories without labels train the policy on their codes. The error on all held-out windows is
written to validation.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vw2_robot.checkpoint import load_checkpoint, load_optimizer, save_checkpoint, weights_digest
from vw2_robot.command_line import entry_points
from vw2_robot.command_line.config_tree import config_tree
from vw2_robot.data.labels import write_labels
from vw2_robot.distributed.batch_share import BatchShare
from vw2_robot.distributed.ranks import is_main
from vw2_robot.distributed.sharding import LossParts, Parallel, state_bytes
from vw2_robot.errors import InputError
from vw2_robot.models.lora import LoRA
from vw2_robot.models.policy.action_head import ActionHead
from vw2_robot.models.policy.ar_policy import LatentPolicy
from vw2_robot.models.policy.config import ActionHeadConfig
from vw2_robot.optim import build_optimizer, optimizer_step
from vw2_robot.random_numbers import SampleNoise, generator
from vw2_robot.runs import Run
from vw2_robot.storage.files import write_json

from .config import FinetuneConfig
from .datasets import FinetuneDatasets, open_datasets
from .losses import Totals, WindowBatch, totals_of, unlabeled_loss, window_batch, window_losses
from .pretrained_init import PolicyInit, freeze, init_policy, saved_policy, trainable_parameters
from .validation import Validation, validate

STREAM_INIT, STREAM_BATCH, STREAM_UNLABELED = 50, 51, 52
STREAM_NOISE, STREAM_VIDEO_NOISE = 55, 56


def finetune(config: FinetuneConfig) -> None:
    """Train the head (and the policy), or return at once when complete."""
    with open_run(config) as run:
        if run.complete:
            run.log_message(f"complete at step {run.start}: {run.checkpoint}")
        else:
            train_actions(config, run)


def train_actions(config: FinetuneConfig, run: Run) -> None:
    """Train all steps that are left, from the last checkpoint on."""
    loop = config.loop
    hardware = config.hardware
    device = hardware.torch_device()
    init = init_policy(config)
    datasets = open_datasets(config, init, run, device)
    # The policy is moved after the data are encoded, so that the dLDM alone is on the device until then.
    policy = init.policy.to(device, hardware.dtype)
    head = build_head(config, init)
    if head.centers is not None:
        train = datasets.train
        head.fit_bins(torch.from_numpy(train.actions[train.action_mask]))
    head = head.to(device, hardware.dtype)
    adapters = freeze(policy, config)
    trained = {"policy": policy, "head": head} | ({} if adapters is None else {"lora": adapters})
    parallel = prepare_for_hardware(config, policy, trained)
    # The head begins untrained, so it learns faster than the policy.
    optimizer = build_optimizer(
        trainable_parameters(policy, adapters), loop.optim, fast=head.parameters(), fast_mult=config.head_lr_mult
    )
    if run.checkpoint is not None:
        # With adapters, the policy itself is still the pre-trained one: the checkpoint's has them merged.
        learned: dict[str, nn.Module] = {"policy": policy} if adapters is None else {"lora": adapters}
        load_checkpoint(run.checkpoint, kind="policy").load_into(head=head, **learned)
        load_optimizer(run.checkpoint, optimizer)
    run.begin(state_bytes=state_bytes(trained.values(), optimizer))
    # Before the first step, so that every checkpoint has its labels beside it.
    if is_main():
        write_labels(run.path / "labels.json", datasets.split.labels)
    for step in run.steps():
        parts = parallel.run(batch_parts, config, datasets, policy, step)
        loss, losses, _ = parallel.backward(partial(finetune_loss, config, datasets, policy, head), parts)
        norm = optimizer_step(loss, optimizer, step=step, config=loop.optim, total_steps=loop.train_steps)
        if run.due(step, loop.log_every):
            held_out = parallel.run(validate, config, policy, head, datasets.held_out, config.validation_windows)
            optional = {"unlabeled_loss": datasets.unlabeled is not None, "pose_loss": config.aids.pose_weight > 0}
            metrics = {
                f"finetune/action_{'l2' if config.head.bins is None else 'bins'}": losses["action"],
                **held_out.metrics("finetune/validation"),
                "finetune/code_loss": losses["code"],
                "finetune/accuracy": losses["accuracy"],
                **{f"finetune/{name}": losses[name.removesuffix("_loss")] for name, on in optional.items() if on},
                "finetune/grad_norm": norm,
            }
            run.log(step, metrics)
        if step + 1 == loop.train_steps:
            # Before the last checkpoint: a run that is complete has its validation.json.
            write_validation(run, parallel.run(validate, config, policy, head, datasets.held_out))
        write = partial(save, config=config, init=init, datasets=datasets, head=head, adapters=adapters)
        # The last one stays without being kept.
        if loop.keep_every and (step + 1) % loop.keep_every == 0 and step + 1 < loop.train_steps:
            run.keep(step, partial(write, optimizer=None))
        if run.checkpoint_due(step, loop.save_every):
            run.save(step, partial(write, optimizer=optimizer))


class FinetunePart(NamedTuple):
    """What the objective gets of one micro-batch."""

    batch: WindowBatch
    totals: Totals
    video_rows: NDArray[np.int64]
    """unlabeled windows; empty without any"""
    video_noise: SampleNoise
    video_codes: Tensor
    """valid codes of the unlabeled windows of the whole batch"""


def batch_parts(
    config: FinetuneConfig, datasets: FinetuneDatasets, policy: LatentPolicy, step: int
) -> list[FinetunePart]:
    """Sample the batch of a step and return this rank's micro-batches.

    Args:
        config: of the run.
        datasets: windows.
        policy: on the device; predicts codes where the step asks for them.
        step: training step.
    """
    device = next(policy.parameters()).device
    micro_batches = config.hardware.micro_batches
    share = BatchShare.of(config.loop.batch_size, micro_batches=micro_batches)
    # With replacement, from seed and step: a resumed run needs no position in the data.
    rows = _sample_rows(len(datasets.train), config.loop.batch_size, config.seed, step, stream=STREAM_BATCH)
    batches = []
    with config.hardware.autocast(device):
        for part in share.slices():
            here = share.rows[part]
            noise = SampleNoise(config.seed, step, stream=STREAM_NOISE, samples=here.tolist(), device=device)
            batches.append(
                window_batch(
                    config,
                    policy,
                    datasets.train,
                    rows[here],
                    device=device,
                    hindsight_share=config.hindsight_share(step),
                    noise=noise,
                )
            )
    totals = totals_of(datasets.train, rows, device)
    video_rows = np.zeros(0, np.int64)
    video_codes = torch.zeros((), dtype=torch.long, device=device)
    places = [np.zeros(0, np.int64)] * micro_batches
    if datasets.unlabeled is not None:
        # A stream of its own, so that labeled batches are the same with and without unlabeled video.
        size = config.unlabeled.batch_size
        video_share = BatchShare.of(size, micro_batches=micro_batches)
        video_rows = _sample_rows(len(datasets.unlabeled), size, config.seed, step, stream=STREAM_UNLABELED)
        video_codes = video_codes + int(datasets.unlabeled.valid[video_rows].sum()) * policy.config.queries
        places = [video_share.rows[part] for part in video_share.slices()]
    return [
        FinetunePart(
            batch,
            totals,
            video_rows[here],
            SampleNoise(config.seed, step, stream=STREAM_VIDEO_NOISE, samples=here.tolist(), device=device),
            video_codes,
        )
        for batch, here in zip(batches, places, strict=True)
    ]


def _sample_rows(windows: int, count: int, seed: int, step: int, *, stream: int) -> NDArray[np.int64]:
    rows: NDArray[np.int64] = torch.randint(windows, (count,), generator=generator(seed, step, stream=stream)).numpy()
    return rows


def finetune_loss(
    config: FinetuneConfig,
    datasets: FinetuneDatasets,
    policy: LatentPolicy,
    head: ActionHead,
    batch: WindowBatch,
    totals: Totals,
    video_rows: NDArray[np.int64],
    video_noise: SampleNoise,
    video_codes: Tensor,
) -> LossParts:
    """Return the losses of a part of a batch.

    Args:
        config: of the run.
        datasets: windows.
        policy: on the device.
        head: on the device.
        batch: this and the further arguments are the fields of a `FinetunePart`.
        totals: see there.
        video_rows: see there.
        video_noise: see there.
        video_codes: see there.
    """
    device = batch.image.device
    with config.hardware.autocast(device):
        total, metrics, _ = window_losses(config, policy, head, datasets.train, batch, totals)
        if datasets.unlabeled is not None:
            video = unlabeled_loss(
                config,
                policy,
                datasets.unlabeled,
                video_rows,
                device=device,
                noise=video_noise,
                codes_in_batch=video_codes,
            )
            total = total + config.unlabeled.weight * video
            metrics["unlabeled"] = video.detach()
    return LossParts(total, metrics)


def prepare_for_hardware(config: FinetuneConfig, policy: LatentPolicy, trained: Mapping[str, nn.Module]) -> Parallel:
    """Switch on what the hardware options ask for; what is trained must be chosen before.

    Args:
        config: of the run.
        policy: on the device.
        trained: all modules with trained weights, by name.

    Raises:
        InputError: adapters cannot be sharded.
    """
    hardware = config.hardware
    if hardware.compile:
        policy.backbone.compile_blocks()
    if hardware.shards_weights:
        if config.preset == "lora":
            raise InputError(
                "preset=lora with hardware.sharding=fsdp: merged weights, which every checkpoint holds, cannot be made "
                "of sharded ones; use hardware.sharding=ddp"
            )
        policy.backbone.check_sharding()
    return Parallel(trained, sharding=hardware.sharding, blocks=policy.backbone.blocks(), partial_use=True)


def write_validation(run: Run, found: Validation) -> None:
    """Write validation.json and log what is in it."""
    if is_main():
        write_json(run.path / "validation.json", asdict(found), sealed=True)
    gripper = "" if found.gripper_accuracy is None else f", gripper right in {100 * found.gripper_accuracy:.1f} %"
    run.log_message(
        f"held out: loss {found.action_loss:.4f} [{found.low:.4f}, {found.high:.4f}], arm error {found.arm_error:.4f} "
        f"in normalized units{gripper} ({found.windows} windows of "
        f"{found.trajectories} trajectories)"
    )


def run_tree(config: FinetuneConfig) -> dict[str, Any]:
    """Return the part of the configuration that decides the result, as plain values."""
    # Place and machine may change between two starts of one run.
    return {key: value for key, value in config_tree(config).items() if key not in ("run_dir", "hardware", "track")}


def open_run(config: FinetuneConfig) -> Run:
    """Open the run folder, which is bound to `run_tree`."""
    loop = config.loop
    return Run(
        config.run_dir,
        run_tree(config),
        stage="finetune",
        total_steps=loop.train_steps,
        save_every=loop.save_every,
        log_every=loop.log_every,
        hardware=config.hardware,
        track=config.track,
    )


def head_config(config: FinetuneConfig) -> ActionHeadConfig:
    """Return the head's sizes; with a weight on the pose it predicts one."""
    return replace(config.head, pose=config.head.pose or config.aids.pose_weight > 0)


def build_head(config: FinetuneConfig, init: PolicyInit) -> ActionHead:
    """Return an untrained head for the policy; its weights depend on the seed alone."""
    # PyTorch initializes layers from the global generator: it is seeded here and put back afterwards.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator(config.seed, 0, stream=STREAM_INIT))))
        policy = init.policy
        return ActionHead(
            head_config(config),
            width=policy.backbone.width,
            queries=policy.config.queries,
            stride=init.stride,
            action_size=init.robot.action.size,
        )


def save(
    path: Path,
    *,
    config: FinetuneConfig,
    init: PolicyInit,
    datasets: FinetuneDatasets,
    head: ActionHead,
    adapters: LoRA | None,
    optimizer: torch.optim.Optimizer | None,
) -> None:
    """Write a checkpoint that acts by itself; adapters are merged into its policy, and saved beside it for a resume.

    Args:
        path: folder of the checkpoint.
        config: of the run.
        init: the policy as it is now, its dLDM, and the facts that are handed on.
        datasets: for the statistics, the digest of the labels and the control rate.
        head: as it is now.
        adapters: as they are now; None without LoRA.
        optimizer: its state; None for a checkpoint that no run continues from.
    """
    policy = init.policy
    dldm = init.dldm
    # Of pre-training; None where an earlier release did it and did not store them.
    known = init.facts.get("aids", [] if dldm is None else None)
    modules: dict[str, nn.Module] = {"policy": saved_policy(policy, adapters), "head": head}
    if dldm is not None:
        modules["dldm"] = dldm
    if adapters is not None and optimizer is not None:
        modules["lora"] = adapters
    save_checkpoint(
        path,
        kind="policy",
        config={
            "policy": config_tree(policy.config),
            "dldm": None if dldm is None else config_tree(dldm.config),
            "head": config_tree(head_config(config)),
            "stride": init.stride,
            "latent_steps": config.latent_steps,
            "n_action_steps": config.n_action_steps or config.latent_steps * init.stride,
            "temporal_ensemble": config.temporal_ensemble,
            "acting": config.acting,
            "action_space": config_tree(init.robot.action),
        },
        modules=modules,
        facts={
            # Facts of pre-training first, so that those of this run replace them.
            **init.facts,
            "method": config.method,
            "aids": None if known is None else [*known, *config.aids.names],
            "preset": config.preset,
            "label_fraction": config.label_fraction,
            "label_seed": config.label_seed,
            "labels_digest": datasets.split.labels.digest,
            "pretrained_from": None if dldm is None else weights_digest(dldm),
            "control_hz": datasets.hz,
            "cameras": [init.robot.camera],
        },
        files={
            "stats": {init.robot.name: datasets.train.statistics.to_json()},
            **policy.files(),
        },
        optimizer=optimizer,
    )


if __name__ == "__main__":
    entry_points.finetune.main()
