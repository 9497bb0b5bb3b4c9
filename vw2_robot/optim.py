"""AdamW, warm-up and decay, gradient clipping: the part of training that all stages share.

The learning rate is a pure function of the step, so a resumed run needs no scheduler state.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vw2_robot.errors import InputError
from vw2_robot.limits import Rate, Unbounded


@dataclass(frozen=True)
class OptimConfig:
    """Defaults: Table A.1 of the paper, dLDM column."""

    lr: Rate = 1e-4
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.1
    warmup_steps: int = 2000
    clip_norm: Unbounded = 1.0

    def __post_init__(self) -> None:
        for name, positive in (("lr", self.lr), ("clip_norm", self.clip_norm)):
            if not positive > 0:
                raise ValueError(f"optim.{name} must be positive, found {positive}")
        for name, share in (("beta1", self.beta1), ("beta2", self.beta2)):
            if not 0 <= share < 1:
                raise ValueError(f"optim.{name} must lie in [0, 1), found {share}")
        for name, size in (("weight_decay", self.weight_decay), ("warmup_steps", self.warmup_steps)):
            if not size >= 0:
                raise ValueError(f"optim.{name} must not be negative, found {size}")


@dataclass(frozen=True)
class LoopConfig:
    """One training loop."""

    train_steps: int
    batch_size: int
    optim: OptimConfig
    log_every: int = 50
    save_every: int = 500

    def __post_init__(self) -> None:
        for name in ("train_steps", "batch_size", "log_every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} of a loop must be at least 1, found {getattr(self, name)}")


class NonFiniteLossError(InputError, FloatingPointError):
    """A loss or its gradient became infinite or NaN; raised before the optimizer moves."""


def build_optimizer(
    parameters: Iterable[nn.Parameter],
    config: OptimConfig,
    *,
    fast: Iterable[nn.Parameter] = (),
    fast_mult: float = 1.0,
) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only (not on biases, norms, embeddings of one dimension).

    A parameter with a true attribute `no_weight_decay` is not decayed either: a table of which some rows stay frozen.
    `fast` parameters (a new head, say) get `fast_mult` times the learning rate.
    """
    groups = []
    for members, multiplier in ((list(parameters), 1.0), (list(fast), fast_mult)):
        for decayed in (True, False):
            chosen = [p for p in members if p.requires_grad and _decays(p) == decayed]
            if chosen:
                decay = config.weight_decay if decayed else 0.0
                groups.append({"params": chosen, "weight_decay": decay, "lr_mult": multiplier})
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2))


def _decays(parameter: nn.Parameter) -> bool:
    return parameter.ndim >= 2 and not getattr(parameter, "no_weight_decay", False)


def learning_rate(step: int, config: OptimConfig, *, total_steps: int) -> float:
    """Linear warm-up over `warmup_steps`, then linear decay to 0 at `total_steps` (the paper's WarmupDecayLR)."""
    warmup = min(config.warmup_steps, max(1, total_steps // 5))
    if step < warmup:
        return config.lr * (step + 1) / warmup
    return config.lr * max(0.0, (total_steps - step) / max(1, total_steps - warmup))


def optimizer_step(
    loss: Tensor,
    optimizer: torch.optim.Optimizer,
    *,
    step: int,
    config: OptimConfig,
    total_steps: int,
    first_step: int = 0,
) -> Tensor:
    """Back-propagate, clip, move; returns the gradient norm before clipping (on the device).

    `step` counts from the beginning of the schedule, which is step `first_step` of the run.

    Raises:
        NonFiniteLossError: names the step of the run; no parameter was changed.
    """
    rate = learning_rate(step, config, total_steps=total_steps)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_mult"]
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm)
    if not bool(torch.isfinite(norm + loss.detach())):  # one wait for the device a step
        raise NonFiniteLossError(
            f"the loss is {loss.item()} and its gradient norm {norm.item()} at step {first_step + step}. Nothing was "
            "saved after the last checkpoint, which is sound, but the same step comes again from there: lower optim.lr "
            "(in a new run_dir), use hardware.precision=float32, or look at the data"
        )
    optimizer.step()
    return norm
