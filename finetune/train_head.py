"""Stage `finetune`: a pre-trained policy learns to act from a fraction of the labeled trajectories.

    vw2-finetune policy=runs/first data.path=DIR label_fraction=0.1 run_dir=runs/first/finetune
    vw2-finetune method=oracle data.path=DIR label_fraction=0.1 run_dir=runs/oracle

Method specification section 3: an MLP on the hidden states of each latent step, trained with L2 on normalized actions,
the code loss kept at `lambda_ce`. The selected labels are listed in labels.json; all other actions stay unread. With
`unlabeled.weight` the trajectories without labels still teach the policy what happens next. Leaves validation.json:
the error on all held-out windows.
"""

from __future__ import annotations

from dataclasses import asdict, replace
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
from vw2_robot.runs import Run, generator
from vw2_robot.storage.files import write_json

from .config import FinetuneConfig
from .datasets import FinetuneDatasets, open_material
from .losses import unlabeled_loss, window_losses
from .pretrained_init import StartingPoint, freeze, saved_policy, starting_point, trainable_parameters
from .validation import Validation, validate

STREAM_INIT, STREAM_BATCH, STREAM_UNLABELED = 50, 51, 52


def finetune(config: FinetuneConfig) -> None:
    """Train the head (and the policy), or return at once when complete."""
    with _open_run(config) as run:
        if run.complete:
            run.log_message(f"complete at step {run.start}: {run.checkpoint}")
        else:
            _train(config, run)


def _train(config: FinetuneConfig, run: Run) -> None:
    """All steps that are left, from the last checkpoint on."""
    loop = config.loop
    device = config.hardware.torch_device()
    start = starting_point(config)
    material = open_material(config, start, run, device)
    train, unlabeled = material.train, material.unlabeled
    policy, head = start.policy.to(device), _new_head(config, start).to(device)
    adapters = freeze(policy, config)
    optimizer = build_optimizer(
        trainable_parameters(policy, adapters), loop.optim, fast=head.parameters(), fast_mult=config.head_lr_mult
    )
    if run.checkpoint is not None:
        _restore(run.checkpoint, start, head, adapters)
        load_optimizer(run.checkpoint, optimizer)
    run.begin()
    write_labels(run.path / "labels.json", material.split.labels)
    for step in run.steps():
        draw = generator(config.seed, step, stream=STREAM_BATCH)
        rows = torch.randint(len(train), (loop.batch_size,), generator=draw).numpy()
        with config.hardware.autocast(device):
            losses = window_losses(
                config, policy, head, train, rows, device=device, own_share=config.own_share(step), draw=draw
            )
            total, more = losses.total, {}
            if unlabeled is not None:
                draw = generator(config.seed, step, stream=STREAM_UNLABELED)
                rows = torch.randint(len(unlabeled), (config.unlabeled.batch_size,), generator=draw).numpy()
                video = unlabeled_loss(config, policy, unlabeled, rows, device=device, draw=draw)
                total, more = total + config.unlabeled.weight * video, {"finetune/unlabeled_loss": video.detach()}
        norm = optimizer_step(total, optimizer, step=step, config=loop.optim, total_steps=loop.train_steps)
        if run.due(step, loop.log_every):
            with config.hardware.autocast(device):
                held = validate(config, policy, head, material.held_out, device=device, most=config.validation_windows)
            if config.pose_weight > 0:
                more["finetune/pose_loss"] = losses.pose
            parts = {"finetune/code_loss": losses.code, "finetune/accuracy": losses.accuracy, **more}
            seen = {"finetune/action_l2": losses.action, **held.metrics("finetune/validation"), **parts}
            run.log(step, seen | {"finetune/grad_norm": norm})
        if step + 1 == loop.train_steps:  # before the last checkpoint: a run that is complete has been judged
            with config.hardware.autocast(device):
                _judge(run, validate(config, policy, head, material.held_out, device=device))
        if run.due(step, loop.save_every):
            run.save(step, lambda path: _save(path, config, start, material, head, adapters, optimizer))


def _judge(run: Run, found: Validation) -> None:
    """Leave validation.json."""
    write_json(run.path / "validation.json", asdict(found), sealed=True)
    run.log_message(
        f"held out: loss {found.action_loss:.4f} [{found.low:.4f}, {found.high:.4f}], arm error {found.arm_error:.4f} "
        f"in normalized units, gripper right in {100 * found.gripper_accuracy:.1f} % ({found.windows} windows of "
        f"{found.trajectories} trajectories)"
    )


def run_tree(config: FinetuneConfig) -> dict[str, Any]:
    """What decides the result of this stage."""
    return {key: value for key, value in config_tree(config).items() if key not in ("run_dir", "hardware")}


def _open_run(config: FinetuneConfig) -> Run:
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
    """The head's sizes; whoever weighs the hand's pose needs a head that tells it."""
    return replace(config.head, pose=config.head.pose or config.pose_weight > 0)


def _new_head(config: FinetuneConfig, start: StartingPoint) -> ActionHead:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator(config.seed, 0, stream=STREAM_INIT))))
        policy = start.policy
        return ActionHead(
            head_config(config), width=policy.backbone.width, queries=policy.config.queries, stride=start.stride
        )


def _save(
    path: Path,
    config: FinetuneConfig,
    start: StartingPoint,
    material: FinetuneDatasets,
    head: ActionHead,
    adapters: LoRA | None,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write a checkpoint that acts by itself; adapters are in its policy's weights, and beside them for a resume."""
    policy, dldm = start.policy, start.dldm
    modules: dict[str, nn.Module] = {"policy": saved_policy(policy, adapters), "head": head}
    modules |= {"dldm": dldm} if dldm is not None else {}
    modules |= {"lora": adapters} if adapters is not None else {}
    save_checkpoint(
        path,
        kind="policy",
        config={
            "policy": config_tree(policy.config),
            "dldm": None if dldm is None else config_tree(dldm.config),
            "head": config_tree(head_config(config)),
            "stride": start.stride,
            "latent_steps": config.latent_steps,
            "n_action_steps": config.n_action_steps,
            "temporal_ensemble": config.temporal_ensemble,
            "codes": "none" if config.code_source == "none" else "predicted",
        },
        modules=modules,
        facts={
            **start.facts,
            "method": config.method,
            "preset": config.preset,
            "label_fraction": config.label_fraction,
            "label_seed": config.label_seed,
            "labels_digest": material.split.labels.digest,
            "pretrained_from": None if dldm is None else weights_digest(dldm),
            "control_hz": material.hz,
            "cameras": ["static"],
        },
        files={
            "stats": {"calvin": material.train.statistics.to_json()},
            **policy.files(),
        },
        optimizer=optimizer,
    )


def _restore(path: Path, start: StartingPoint, head: ActionHead, adapters: LoRA | None) -> None:
    """Continue from a checkpoint of this run. With adapters, the policy itself is still the pre-trained one."""
    modules: dict[str, nn.Module] = {"policy": start.policy} if adapters is None else {"lora": adapters}
    load_checkpoint(path, kind="policy").load_into(head=head, **modules)


main = program(FinetuneConfig, config_name="finetune", one_process=True)(finetune)

if __name__ == "__main__":
    main()
