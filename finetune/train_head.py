"""Stage `finetune`: a pre-trained policy learns to act from a fraction of the labelled trajectories.

    vw2-finetune policy=runs/first data.path=DIR label_fraction=0.1 run_dir=runs/first/finetune

Method specification section 3: an MLP on the hidden states of each latent step, trained with L2 on normalised actions,
the code loss kept at `lambda_ce`. The selected labels are listed in labels.json; all other actions stay unread.
"""

# B batch · H latent steps · N codes per step · s actions per step · A action dims
from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vw2_robot.checkpoint import load_checkpoint, load_optimizer, save_checkpoint, weights_digest
from vw2_robot.cli import program
from vw2_robot.config_tree import config_from, config_tree
from vw2_robot.contracts import GRIPPER_INDEX
from vw2_robot.data.calvin import CalvinDataset
from vw2_robot.data.labels import write_labels
from vw2_robot.errors import InputError
from vw2_robot.models.action_head import ActionHead, ActionHeadConfig
from vw2_robot.models.ar_policy import LatentPolicy, PolicyConfig, Prompt
from vw2_robot.models.dldm import DLDM, DLDMConfig
from vw2_robot.optim import LoopConfig, build_optimizer, optimizer_step
from vw2_robot.pixels import shift_randomly
from vw2_robot.runs import Hardware, Run, generator

from .labelled_windows import LabelledWindows, cache_calvin, split_trajectories

STREAM_INIT, STREAM_BATCH = 50, 51


@dataclass(frozen=True)
class CalvinData:
    """The labelled data set."""

    path: str
    """a CALVIN data set folder, published or written by vw2-record"""
    split: Literal["training", "validation"] = "training"
    validation_fraction: float = 0.1
    """share of whole trajectories that never train"""


@dataclass(frozen=True)
class Finetune:
    """Everything `vw2-finetune` can be told."""

    run_dir: str
    policy: str
    """checkpoint or run folder of the pre-trained policy; a pretrain-on-openx run_dir is accepted too"""
    data: CalvinData
    loop: LoopConfig
    label_fraction: float = 1.0
    label_seed: int = 0
    preset: Literal["full", "head"] = "full"
    """full: the whole policy and the head; head: the policy is frozen (a probe)"""
    head: ActionHeadConfig = field(default_factory=ActionHeadConfig)
    head_lr_mult: float = 10.0
    latent_steps: int = 1
    """H, latent steps per window: the policy answers with H * s actions"""
    replan_every: int = 4
    """environment steps between two looks at the camera, stored for rollouts"""
    code_source: Literal["teacher", "self", "mixed"] = "mixed"
    """codes fed in training: the dLDM's, the policy's own greedy ones, or each with probability one half"""
    lambda_ce: float = 0.1
    """weight of the code loss; 0 in the paper"""
    gripper_weight: float = 1.0
    image_shift_px: int = 3
    seed: int = 0
    hardware: Hardware = field(default_factory=Hardware)

    def __post_init__(self) -> None:
        if not 0 < self.label_fraction <= 1:
            raise ValueError(f"label_fraction must lie in (0, 1], found {self.label_fraction}")
        if self.latent_steps < 1 or self.replan_every < 1:
            raise ValueError(
                f"latent_steps and replan_every must be positive, found {self.latent_steps} and {self.replan_every}"
            )
        for name in ("lambda_ce", "gripper_weight", "image_shift_px"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, found {getattr(self, name)}")
        if not self.head_lr_mult > 0:
            raise ValueError(f"head_lr_mult must be positive, found {self.head_lr_mult}")


class Losses(NamedTuple):
    """total, and its parts for the log."""

    total: Tensor
    action_l2: Tensor
    code: Tensor
    accuracy: Tensor


def action_loss(predicted: Tensor, actions: Tensor, real: Tensor, *, gripper_weight: float) -> Tensor:
    """Mean over real actions of ||a_arm - a_hat_arm||^2 + w_g (a_g - a_hat_g)^2, in normalised units."""
    squared = (predicted.float() - actions).square()
    weight = torch.ones(squared.shape[-1], device=squared.device)
    weight[GRIPPER_INDEX] = gripper_weight
    return ((squared * weight).sum(-1) * real).sum() / real.sum().clamp(min=1)


def window_losses(
    config: Finetune,
    policy: LatentPolicy,
    head: ActionHead,
    windows: LabelledWindows,
    rows: np.ndarray[tuple[int], np.dtype[np.int64]],
    *,
    device: torch.device,
    draw: torch.Generator | None,
) -> Losses:
    """Losses on these windows. `draw` is the training randomness; None means validation: own codes, no shift."""
    image = windows.images(rows, image_px=policy.config.image_px, device=device)
    teacher = torch.from_numpy(windows.codes[rows]).to(device)
    valid = torch.from_numpy(windows.valid[rows]).to(device)
    if draw is not None:
        image = shift_randomly(image, most=config.image_shift_px, noise=draw)
    prompt = policy.prompt(windows.words(rows), image)
    own_rows = torch.arange(len(rows), device=device)
    if draw is not None:
        share = {"teacher": 0.0, "mixed": 0.5, "self": 1.0}[config.code_source]
        own_rows = own_rows[(torch.rand(len(rows), generator=draw) < share).to(device)]
    fed = teacher.clone()
    if len(own_rows):
        chosen = Prompt(*(part[own_rows] for part in prompt))
        fed[own_rows] = policy.decode(chosen, steps=config.latent_steps).codes_BHN
    states = policy.states(prompt, fed)
    predicted = head(states)
    actions = torch.from_numpy(windows.actions[rows]).to(device)
    real = torch.from_numpy(windows.real[rows]).to(device)
    l2 = action_loss(predicted, actions, real, gripper_weight=config.gripper_weight)
    # A code is comparable with the teacher's where the codes fed before it are the teacher's: everywhere on teacher
    # rows, up to and including the first difference on the policy's own. There the code loss is that of pre-training.
    same = (fed == teacher).flatten(1)[:, :-1].cumprod(1).bool()
    comparable = torch.cat([torch.ones_like(same[:, :1]), same], dim=1).view_as(teacher)
    code, parts = policy.code_loss(states, teacher, valid[..., None] & comparable)
    return Losses(l2 + config.lambda_ce * code, l2.detach(), code.detach(), parts["accuracy"])


def load_pretrained(path: str) -> tuple[LatentPolicy, DLDM, dict[str, object]]:
    """The policy, the dLDM that speaks its codes, and the checkpoint's facts."""
    folder = Path(path)
    checkpoint = load_checkpoint(
        folder / "policy" if (folder / "policy" / "latest").is_file() else folder, kind="policy"
    )
    policy_config = config_from(PolicyConfig, checkpoint.config["policy"])
    policy = LatentPolicy(policy_config, generator=generator(0, 0))
    dldm = DLDM(config_from(DLDMConfig, checkpoint.config["dldm"]))
    checkpoint.load_into(policy=policy, dldm=dldm)
    return policy, dldm, checkpoint.facts


def finetune(config: Finetune) -> None:
    """Train the head (and the policy), or return at once when complete."""
    loop = config.loop
    tree = {k: v for k, v in config_tree(config).items() if k not in ("run_dir", "hardware")}
    run = Run(
        config.run_dir,
        tree,
        stage="finetune",
        total_steps=loop.steps,
        save_every=loop.save_every,
        log_every=loop.log_every,
    )
    if run.complete:
        run.say(f"complete at step {run.start}: {run.checkpoint}")
        return
    device = config.hardware.torch_device()
    policy, dldm, facts = load_pretrained(config.policy)
    stride = dldm.config.stride
    if config.replan_every > config.latent_steps * stride:
        raise InputError(
            f"replan_every={config.replan_every}, but {config.latent_steps} latent steps give only "
            f"{config.latent_steps * stride} actions; raise latent_steps or replan more often"
        )
    dataset = CalvinDataset(config.data.path, config.data.split)
    frames = cache_calvin(dataset, run.path / "frames", height=dldm.config.height, width=dldm.config.width)
    split = split_trajectories(
        dataset,
        frames,
        label_fraction=config.label_fraction,
        label_seed=config.label_seed,
        validation_fraction=config.data.validation_fraction,
    )
    write_labels(run.path / "labels.json", split.labels)
    train = LabelledWindows(dataset, frames, split.train, steps=config.latent_steps, stride=stride)
    held_out = LabelledWindows(
        dataset, frames, split.validation, steps=config.latent_steps, stride=stride, statistics=train.statistics
    )
    run.say(
        f"{len(split.train)} labelled trajectories of {split.labels.total} ({len(train)} windows), "
        f"{len(split.validation)} held out; actions of the others stay unread"
    )
    dldm.to(device).eval()
    for windows in (train, held_out):
        windows.teach(dldm, device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator(config.seed, 0, stream=STREAM_INIT))))
        head = ActionHead(config.head, width=policy.backbone.width, queries=policy.config.queries, stride=stride)
    policy, head = policy.to(device), head.to(device)
    policy.requires_grad_(config.preset == "full")
    optimizer = build_optimizer(policy.parameters(), loop.optim, fast=head.parameters(), fast_mult=config.head_lr_mult)
    if run.checkpoint is not None:
        load_checkpoint(run.checkpoint, kind="policy").load_into(policy=policy, head=head)
        load_optimizer(run.checkpoint, optimizer)

    def save(step: int) -> None:
        run.save(
            step,
            lambda path: save_checkpoint(
                path,
                kind="policy",
                config={
                    "policy": config_tree(policy.config),
                    "dldm": config_tree(dldm.config),
                    "head": config_tree(config.head),
                    "latent_steps": config.latent_steps,
                    "replan_every": config.replan_every,
                },
                modules={"policy": policy, "dldm": dldm, "head": head},
                facts={
                    **facts,
                    "label_fraction": config.label_fraction,
                    "labels_digest": split.labels.digest,
                    "pretrained_from": weights_digest(dldm),
                    "control_hz": frames.episodes[0].hz,
                    "cameras": ["static"],
                },
                files={"stats": {"calvin": train.statistics.to_json()}, "tokens": policy.backbone.vocabulary.to_json()},
                optimizer=optimizer,
            ),
        )

    check = np.linspace(0, len(held_out) - 1, min(256, len(held_out))).astype(np.int64)
    for step in run.steps():
        draw = generator(config.seed, step, stream=STREAM_BATCH)
        rows = torch.randint(len(train), (loop.batch,), generator=draw).numpy()
        with config.hardware.autocast(device):
            losses = window_losses(config, policy, head, train, rows, device=device, draw=draw)
        norm = optimizer_step(losses.total, optimizer, step=step, config=loop.optim, total_steps=loop.steps)
        if run.due(step, loop.log_every):
            with torch.no_grad(), config.hardware.autocast(device):
                held = window_losses(config, policy, head, held_out, check, device=device, draw=None)
            run.log(
                step,
                {
                    "finetune/action_l2": losses.action_l2,
                    "finetune/validation_action_l2": held.action_l2,
                    "finetune/code_loss": losses.code,
                    "finetune/accuracy": losses.accuracy,
                    "finetune/grad_norm": norm,
                },
            )
        if run.due(step, loop.save_every):
            save(step)
    run.close()


main = program(Finetune, config_name="finetune")(finetune)

if __name__ == "__main__":
    main()
