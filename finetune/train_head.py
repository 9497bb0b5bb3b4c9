"""Stage `finetune`: a pre-trained policy learns to act from a fraction of the labeled trajectories.

    vw2-finetune policy=runs/first data.path=DIR label_fraction=0.1 run_dir=runs/first/finetune
    vw2-finetune method=oracle data.path=DIR label_fraction=0.1 run_dir=runs/oracle

An MLP on the hidden states of each latent step, trained with L2 on normalized actions, while the code loss keeps a
weight of `lambda_ce`. The selected labels are listed in labels.json; all other actions stay unread. With
`unlabeled.weight` the trajectories without labels train the policy on their codes. The error on all held-out windows is
written to validation.json.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vw2_robot.checkpoint import load_checkpoint, load_optimizer, save_checkpoint, weights_digest
from vw2_robot.command_line.config_tree import config_tree
from vw2_robot.command_line.program import program
from vw2_robot.data.labels import write_labels
from vw2_robot.models.lora import LoRA
from vw2_robot.models.policy.action_head import ActionHead, ActionHeadConfig
from vw2_robot.optim import build_optimizer, optimizer_step
from vw2_robot.random_numbers import generator
from vw2_robot.runs import Run
from vw2_robot.storage.files import write_json

from .config import FinetuneConfig
from .datasets import FinetuneDatasets, open_datasets
from .losses import unlabeled_loss, window_losses
from .pretrained_init import PolicyInit, freeze, init_policy, saved_policy, trainable_parameters
from .validation import Validation, validate

STREAM_INIT, STREAM_BATCH, STREAM_UNLABELED = 50, 51, 52


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
    device = config.hardware.torch_device()
    init = init_policy(config)
    datasets = open_datasets(config, init, run, device)
    # The policy is moved after the data are encoded, so that the dLDM alone is on the device until then.
    policy = init.policy.to(device)
    head = build_head(config, init).to(device)
    adapters = freeze(policy, config)
    # The head begins untrained, so it learns faster than the policy.
    optimizer = build_optimizer(
        trainable_parameters(policy, adapters), loop.optim, fast=head.parameters(), fast_mult=config.head_lr_mult
    )
    if run.checkpoint is not None:
        # With adapters, the policy itself is still the pre-trained one: the checkpoint's has them merged.
        learned: dict[str, nn.Module] = {"policy": policy} if adapters is None else {"lora": adapters}
        load_checkpoint(run.checkpoint, kind="policy").load_into(head=head, **learned)
        load_optimizer(run.checkpoint, optimizer)
    run.begin()
    # Before the first step, so that every checkpoint has its labels beside it.
    write_labels(run.path / "labels.json", datasets.split.labels)
    for step in run.steps():
        noise = generator(config.seed, step, stream=STREAM_BATCH)
        # With replacement, from seed and step: a resumed run needs no position in the data.
        rows = torch.randint(len(datasets.train), (loop.batch_size,), generator=noise).numpy()
        with config.hardware.autocast(device):
            losses = window_losses(
                config,
                policy,
                head,
                datasets.train,
                rows,
                device=device,
                predicted_share=config.predicted_share(step),
                noise=noise,
            )
            total = losses.total
            extra = {}
            if datasets.unlabeled is not None:
                # A stream of its own, so that labeled batches are the same with and without unlabeled video.
                noise = generator(config.seed, step, stream=STREAM_UNLABELED)
                rows = torch.randint(len(datasets.unlabeled), (config.unlabeled.batch_size,), generator=noise).numpy()
                video = unlabeled_loss(config, policy, datasets.unlabeled, rows, device=device, noise=noise)
                total = total + config.unlabeled.weight * video
                extra["finetune/unlabeled_loss"] = video.detach()
        norm = optimizer_step(total, optimizer, step=step, config=loop.optim, total_steps=loop.train_steps)
        if run.due(step, loop.log_every):
            with config.hardware.autocast(device):
                held_out = validate(
                    config, policy, head, datasets.held_out, device=device, max_windows=config.validation_windows
                )
            if config.pose_weight > 0:
                extra["finetune/pose_loss"] = losses.pose
            metrics = {
                "finetune/action_l2": losses.action,
                **held_out.metrics("finetune/validation"),
                "finetune/code_loss": losses.code,
                "finetune/accuracy": losses.accuracy,
                **extra,
                "finetune/grad_norm": norm,
            }
            run.log(step, metrics)
        if step + 1 == loop.train_steps:
            # Before the last checkpoint: a run that is complete has its validation.json.
            with config.hardware.autocast(device):
                write_validation(run, validate(config, policy, head, datasets.held_out, device=device))
        if run.due(step, loop.save_every):
            write = partial(
                save,
                config=config,
                init=init,
                datasets=datasets,
                head=head,
                adapters=adapters,
                optimizer=optimizer,
            )
            run.save(step, write)


def write_validation(run: Run, found: Validation) -> None:
    """Write validation.json and log what is in it."""
    write_json(run.path / "validation.json", asdict(found), sealed=True)
    run.log_message(
        f"held out: loss {found.action_loss:.4f} [{found.low:.4f}, {found.high:.4f}], arm error {found.arm_error:.4f} "
        f"in normalized units, gripper right in {100 * found.gripper_accuracy:.1f} % ({found.windows} windows of "
        f"{found.trajectories} trajectories)"
    )


def run_tree(config: FinetuneConfig) -> dict[str, Any]:
    """Return the part of the configuration that decides the result, as plain values."""
    # Place and machine may change between two starts of one run.
    return {key: value for key, value in config_tree(config).items() if key not in ("run_dir", "hardware")}


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
    )


def head_config(config: FinetuneConfig) -> ActionHeadConfig:
    """Return the head's sizes; with a weight on the pose it predicts one."""
    return replace(config.head, pose=config.head.pose or config.pose_weight > 0)


def build_head(config: FinetuneConfig, init: PolicyInit) -> ActionHead:
    """Return an untrained head for the policy; its weights depend on the seed alone."""
    # PyTorch initializes layers from the global generator: it is seeded here and put back afterwards.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator(config.seed, 0, stream=STREAM_INIT))))
        policy = init.policy
        return ActionHead(
            head_config(config), width=policy.backbone.width, queries=policy.config.queries, stride=init.stride
        )


def save(
    path: Path,
    *,
    config: FinetuneConfig,
    init: PolicyInit,
    datasets: FinetuneDatasets,
    head: ActionHead,
    adapters: LoRA | None,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write a checkpoint that acts by itself; adapters are merged into its policy, and saved beside it for a resume.

    Args:
        path: folder of the checkpoint.
        config: of the run.
        init: the policy as it is now, its dLDM, and the facts that are handed on.
        datasets: for the statistics, the digest of the labels and the control rate.
        head: as it is now.
        adapters: as they are now; None without LoRA.
        optimizer: its state.
    """
    policy = init.policy
    dldm = init.dldm
    modules: dict[str, nn.Module] = {"policy": saved_policy(policy, adapters), "head": head}
    if dldm is not None:
        modules["dldm"] = dldm
    if adapters is not None:
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
            "n_action_steps": config.n_action_steps,
            "temporal_ensemble": config.temporal_ensemble,
            "codes": "none" if config.code_source == "none" else "predicted",
        },
        modules=modules,
        facts={
            # Facts of pre-training first, so that those of this run replace them.
            **init.facts,
            "method": config.method,
            "preset": config.preset,
            "label_fraction": config.label_fraction,
            "label_seed": config.label_seed,
            "labels_digest": datasets.split.labels.digest,
            "pretrained_from": None if dldm is None else weights_digest(dldm),
            "control_hz": datasets.hz,
            "cameras": ["static"],
        },
        files={
            "stats": {"calvin": datasets.train.statistics.to_json()},
            **policy.files(),
        },
        optimizer=optimizer,
    )


main = program(FinetuneConfig, config_name="finetune", one_process=True)(finetune)

if __name__ == "__main__":
    main()
