"""The length of a training loop, its batches, and the learning rate of each step.

The learning rate is a pure function of the step, so a resumed run needs no scheduler state.
"""

from __future__ import annotations

from dataclasses import dataclass

from vw2_robot.limits import Rate, Unbounded


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule. Defaults: Table A.1 of the paper, dLDM column."""

    lr: Rate = 1e-4
    """peak learning rate of AdamW"""
    beta1: float = 0.9
    """decay of the mean of gradients"""
    beta2: float = 0.99
    """decay of the mean of squared gradients"""
    weight_decay: float = 0.1
    """of matrices; vectors and embeddings have none"""
    warmup_steps: int = 2000
    """steps of linear warm-up"""
    clip_norm: Unbounded = 1.0
    """gradients are scaled down to this norm"""

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
    """The length of one training loop, its batch size and its optimizer."""

    train_steps: int
    """optimizer steps"""
    batch_size: int
    """samples per optimizer step"""
    optim: OptimConfig
    log_every: int = 50
    """steps between two lines of metrics"""
    save_every: int = 500
    """steps between two checkpoints"""

    def __post_init__(self) -> None:
        for name in ("train_steps", "batch_size", "log_every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} of a loop must be at least 1, found {getattr(self, name)}")


def learning_rate(step: int, config: OptimConfig, *, total_steps: int) -> float:
    """Return the learning rate of a step: linear warm-up, then linear decay to 0 (the paper's WarmupDecayLR).

    Args:
        step: of the schedule, from 0.
        config: peak learning rate and steps of warm-up.
        total_steps: where the rate reaches 0.
    """
    # A short run would end before its warm-up, so at most a fifth of it warms up.
    warmup = min(config.warmup_steps, max(1, total_steps // 5))
    if step < warmup:
        # step + 1: the very first step already has a positive rate.
        return config.lr * (step + 1) / warmup
    return config.lr * max(0.0, (total_steps - step) / max(1, total_steps - warmup))
