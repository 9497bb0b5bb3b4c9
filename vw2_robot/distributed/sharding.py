"""One module in training on all ranks: gradients that are summed, weights that may be sharded.

    objective = Objective({"dldm": dldm}, loss)
    parallel = Parallel(objective, sharding="fsdp", blocks=...)
    loss, metrics, _ = parallel.backward([arguments of one micro-batch, ...])

    none    every rank holds everything; gradients are summed after the last micro-batch
    ddp     the same with DistributedDataParallel: sums travel while the backward pass still runs
    fsdp    weights, gradients and optimizer states are sharded over the ranks (FSDP2, `fully_shard`)

The loss is the `forward` of a module on purpose: DDP and FSDP2 hook `forward` alone, and a loss that is called as a
method of the wrapped module would train every rank by itself, without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from . import ranks

Sharding = Literal["none", "ddp", "fsdp"]


class LossParts(NamedTuple):
    """The loss of one forward pass and, without gradient, what is logged of it; all add up over passes and ranks."""

    loss: Tensor
    metrics: dict[str, Tensor]
    counts: Tensor | None = None
    """whole numbers, such as how often each code occurred"""


class Objective(nn.Module):
    """The loss of a training stage as a module.

    Args:
        trained: modules that the loss trains, by name.
        loss: computes it, with these very modules.
    """

    def __init__(self, trained: Mapping[str, nn.Module], loss: Callable[..., LossParts]) -> None:
        super().__init__()
        self.trained = nn.ModuleDict(trained)
        self._loss = loss

    def forward(self, *inputs: Any, **options: Any) -> LossParts:
        """Return the loss of one micro-batch."""
        return self._loss(*inputs, **options)


def shard(module: nn.Module, *, blocks: Iterable[nn.Module], methods: Sequence[str]) -> None:
    """Shard the weights of a module over all ranks, in place; its parameters are DTensors afterwards.

    Args:
        module: the root: what is in no block is gathered once per pass.
        blocks: modules inside, each gathered when it runs and freed afterwards.
        methods: of the root that compute with its weights, beside `forward`: they gather them first.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method  # seconds, and only needed here

    for block in blocks:
        if any(parameter.numel() for parameter in block.parameters()):
            fully_shard(block)
    fully_shard(module)
    for name in methods:
        register_fsdp_forward_method(module, name)


def is_sharded_tensor(value: Tensor) -> bool:
    """Return whether a tensor is one of `shard`: a DTensor, whose type takes seconds to import."""
    return hasattr(value, "full_tensor")


def full(value: Tensor) -> Tensor:
    """Return a tensor with all of its shards; all ranks must call it for a sharded one."""
    sharded: Any = value
    return sharded.full_tensor() if is_sharded_tensor(value) else value


def full_state(module: nn.Module) -> dict[str, Tensor]:
    """Return all weights of a module, whole and on the CPU, on rank 0, and nothing on the others; all must call it."""
    state = {}
    for name, value in module.state_dict().items():
        whole = full(value.detach())
        if ranks.is_main():
            state[name] = whole.cpu().contiguous().clone()
    return state


def like(value: Tensor, sharded: Tensor) -> Tensor:
    """Return a whole tensor in the shards of another one; itself where that has none. Nothing is sent."""
    if not is_sharded_tensor(sharded):
        return value
    from torch.distributed.tensor import distribute_tensor

    placed: Any = sharded
    value = value.to(device=placed.device, dtype=placed.dtype)
    return distribute_tensor(value, placed.device_mesh, placed.placements, src_data_rank=None)


def is_sharded(module: nn.Module) -> bool:
    """Return whether `shard` was called on a module."""
    return hasattr(module, "unshard")


@contextmanager
def gathered(*modules: nn.Module) -> Iterator[None]:
    """Hold the full weights of sharded modules inside the `with`, for code that reads them without `forward`."""
    with ExitStack() as closing:
        shards: list[Any] = [module for root in modules for module in root.modules() if is_sharded(module)]
        for module in shards:
            module.unshard()
            module.set_reshard_after_forward(False, recurse=False)
            closing.callback(module.reshard)
            closing.callback(module.set_reshard_after_forward, True, recurse=False)
        yield


class Parallel:
    """An objective on all ranks.

    Args:
        objective: its modules are sharded already where `sharding` is fsdp (`shard`).
        sharding: see the top of this file.
    """

    def __init__(self, objective: Objective, sharding: Sharding) -> None:
        self._sharding = sharding if ranks.world_size() > 1 else "none"
        self._objective: nn.Module = objective
        self._parameters = [p for p in objective.parameters() if p.requires_grad]
        self._shards: list[Any] = [m for m in objective.modules() if is_sharded(m)]
        # Both average gradients over the ranks; their sum is wanted.
        self._scale = 1.0 if self._sharding == "none" else float(ranks.world_size())
        if self._sharding == "ddp":
            # Buffers are equal on all ranks by themselves. Some losses leave parameters out (heads, null codes).
            self._objective = DistributedDataParallel(
                objective, broadcast_buffers=False, find_unused_parameters=True, gradient_as_bucket_view=True
            )

    def backward(self, parts: Sequence[tuple[Any, ...]]) -> LossParts:
        """Add the gradients of all micro-batches of all ranks to `grad`, and return loss and metrics of the batch.

        Args:
            parts: the arguments of the objective for each micro-batch of this rank.
        """
        total: Tensor | None = None
        counted: Tensor | None = None
        names: list[str] = []
        for number, part in enumerate(parts):
            with self._synchronized(last=number + 1 == len(parts)):
                loss, metrics, counts = self._objective(*part)
                (loss * self._scale).backward()
            names = list(metrics)
            values = torch.stack([loss.detach().double(), *(value.double() for value in metrics.values())])
            total = values if total is None else total + values
            counted = counts if counted is None else counted + counts
        assert total is not None
        if self._sharding != "ddp" and ranks.world_size() > 1:
            self._sum_gradients()
        loss_sum, *others = ranks.global_sum(total).unbind()
        return LossParts(
            loss_sum, dict(zip(names, others, strict=True)), None if counted is None else ranks.global_sum(counted)
        )

    @contextmanager
    def _synchronized(self, *, last: bool) -> Iterator[None]:
        """Exchange gradients in the last micro-batch only."""
        for module in self._shards:
            module.set_requires_gradient_sync(last, recurse=False)
        if isinstance(self._objective, DistributedDataParallel) and not last:
            with self._objective.no_sync():
                yield
        else:
            yield

    def _sum_gradients(self) -> None:
        """Sum the gradients that no wrapper sums: of all parameters, or with fsdp of those that are not sharded."""
        gradients = [p.grad for p in self._parameters if p.grad is not None and not is_sharded_tensor(p)]
        if not gradients:
            return
        # In one message: a small model has hundreds of small tensors.
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self._scale
        for gradient, summed in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))


def state_bytes(modules: Iterable[nn.Module], optimizer: torch.optim.Optimizer | None = None) -> int:
    """Return the bytes of a checkpoint: weights, and two moments of what an optimizer trains."""
    weights = sum(value.numel() * value.element_size() for m in modules for value in m.state_dict().values())
    trained = [] if optimizer is None else [p for group in optimizer.param_groups for p in group["params"]]
    return weights + sum(2 * p.numel() * p.element_size() for p in trained)
