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
    decay_steps: int | None = None
    """steps until the decay ends, warm-up included; null: those of the loop"""
    decay_to: float = 0.0
    """learning rate at the end of the decay over `lr`"""
    clip_norm: Unbounded = 1.0
    """gradients are scaled down to this norm"""

    def __post_init__(self) -> None:
        for name, positive in (("lr", self.lr), ("clip_norm", self.clip_norm)):
            if not positive > 0:
                raise ValueError(f"optim.{name} must be positive, found {positive}")
        for name, share in (("beta1", self.beta1), ("beta2", self.beta2)):
            if not 0 <= share < 1:
                raise ValueError(f"optim.{name} must lie in [0, 1), found {share}")
        if self.decay_steps is not None and self.decay_steps < 1:
            raise ValueError(f"optim.decay_steps must be at least 1, found {self.decay_steps}")
        if not 0 <= self.decay_to <= 1:
            raise ValueError(f"optim.decay_to must lie in [0, 1], found {self.decay_to}")
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
    """Return the learning rate of a step: linear warm-up, then linear decay (the paper's WarmupDecayLR).

    Args:
        step: of the schedule, from 0.
        config: peak learning rate, steps of warm-up, and how far and until when it decays.
        total_steps: of the loop; the decay ends there if `config.decay_steps` does not say otherwise.
    """
    # A short run would end before its warm-up, so at most a fifth of it warms up.
    warmup = min(config.warmup_steps, max(1, total_steps // 5))
    if step < warmup:
        # step + 1: the very first step already has a positive rate.
        return config.lr * (step + 1) / warmup
    end = config.decay_steps or total_steps
    left = min(1.0, max(0.0, (end - step) / max(1, end - warmup)))
    return config.lr * (config.decay_to + (1 - config.decay_to) * left)
