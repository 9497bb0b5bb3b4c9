"""The optimizer of all training stages: AdamW with warm-up, linear decay and gradient clipping.

The learning rate is a pure function of the step, so a resumed run needs no scheduler state.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from vw2_robot.distributed.sharding import full, is_sharded_tensor
from vw2_robot.errors import InputError
from vw2_robot.schedule import OptimConfig, learning_rate

FUSED = {"cpu", "cuda"}
"""devices for which torch has AdamW in one kernel"""


class NonFiniteLossError(InputError, FloatingPointError):
    """A loss or its gradient became infinite or NaN; raised before the optimizer moves."""


def build_optimizer(
    parameters: Iterable[nn.Parameter],
    config: OptimConfig,
    *,
    fast: Iterable[nn.Parameter] = (),
    fast_mult: float = 1.0,
) -> torch.optim.AdamW:
    """Return AdamW with weight decay on matrices only (not on biases, norms, embeddings of one dimension).

    Args:
        parameters: those without `requires_grad` are left out. One with a true attribute `no_weight_decay` is not
            decayed: a table of which some rows stay frozen.
        config: learning rate and decay.
        fast: parameters with another learning rate, for instance those of a new head.
        fast_mult: factor of their learning rate.
    """
    groups: list[dict[str, Any]] = []
    for members, multiplier in ((list(parameters), 1.0), (list(fast), fast_mult)):
        # The order of the groups is part of every checkpoint: optimizer states are stored by number.
        matrices = [p for p in members if p.ndim >= 2 and not getattr(p, "no_weight_decay", False)]
        decayed_ids = {id(p) for p in matrices}
        for decayed in (True, False):
            chosen = [p for p in members if p.requires_grad and (id(p) in decayed_ids) == decayed]
            if chosen:
                decay = config.weight_decay if decayed else 0.0
                groups.append({"params": chosen, "weight_decay": decay, "lr_mult": multiplier})
    # Fused: several times as fast, without temporaries as large as all weights. Not for sharded beside whole weights.
    trained = [parameter for group in groups for parameter in group["params"]]
    fused = len({is_sharded_tensor(p) for p in trained}) == 1 and {p.device.type for p in trained} <= FUSED
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=fused)


def optimizer_step(
    loss: Tensor,
    optimizer: torch.optim.Optimizer,
    *,
    step: int,
    config: OptimConfig,
    total_steps: int,
    first_step: int = 0,
) -> Tensor:
    """Clip the gradient of a batch, update the parameters, and forget the gradient.

    Args:
        loss: of the whole batch, a scalar without gradient; `Parallel.backward` has computed it with the gradients.
        optimizer: from `build_optimizer`.
        step: of the schedule, from 0.
        config: schedule and clipping.
        total_steps: of the schedule.
        first_step: step of the run at which the schedule begins, for messages.

    Returns:
        The gradient norm before clipping (on the device).

    Raises:
        NonFiniteLossError: names the step of the run; no parameter was changed.
    """
    rate = learning_rate(step, config, total_steps=total_steps)
    # The rate is set here, not by a scheduler: a resumed run then needs no scheduler state.
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_mult"]
    norm = clip_gradients(parameters, config.clip_norm)
    # Loss and gradient in one test: it waits for the device, once per step. Both are equal on all ranks.
    if not bool(torch.isfinite(norm + loss)):
        raise NonFiniteLossError(
            f"the loss is {loss.item()} and its gradient norm {norm.item()} at step {first_step + step}. Nothing was "
            "saved after the last checkpoint, which is sound, but the same step comes again from there: lower optim.lr "
            "(in a new run_dir), use hardware.precision=float32, or look at the data"
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def clip_gradients(parameters: Iterable[nn.Parameter], most: float) -> Tensor:
    """Scale the gradients of all parameters, sharded or not, to a norm of at most `most`; return the norm before."""
    trained = [p for p in parameters if p.grad is not None]
    # Sharded and whole tensors cannot be mixed in one call of PyTorch's.
    kinds = [[p for p in trained if is_sharded_tensor(p) == sharded] for sharded in (False, True)]
    norms = [
        full(torch.nn.utils.get_total_norm([p.grad for p in kind if p.grad is not None])) for kind in kinds if kind
    ]
    norm = torch.stack(norms).norm() if len(norms) > 1 else norms[0]
    for kind in kinds:
        if kind:
            torch.nn.utils.clip_grads_with_norm_(kind, most, norm)
    return norm
