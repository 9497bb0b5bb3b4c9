"""Modules in training on all ranks: gradients that are summed, weights that may be sharded.

    parallel = Parallel({"dldm": dldm}, sharding="fsdp", blocks=dldm.blocks())
    loss, metrics, _ = parallel.backward(loss_function, [arguments of one micro-batch, ...])
    found = parallel.run(validate, ...)         # weights are gathered where they are needed

    none    every rank holds everything; gradients are summed after the last micro-batch
    ddp     the same with DistributedDataParallel: sums travel while the backward pass still runs
    fsdp    weights, gradients and optimizer states are sharded over the ranks (FSDP2, `fully_shard`)

Whatever computes with the modules runs inside the `forward` of one module that holds all of them. DDP and FSDP2 hook
`forward` alone: a loss that is called past it trains every rank by itself, without a word. And a sharded module that is
entered twice in one pass, by two of its methods, can lose gradients, as silently.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vw2_robot.devices import Sharding
from vw2_robot.errors import InputError

from . import ranks

ResultT = TypeVar("ResultT")


class LossParts(NamedTuple):
    """The loss of one forward pass and, without gradient, what is logged of it; all add up over passes and ranks."""

    loss: Tensor
    metrics: dict[str, Tensor]
    counts: Tensor | None = None
    """whole numbers, such as how often each code occurred"""


class Enclosing(nn.Module):
    """A module around others, whose `forward` calls any function."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.enclosed = nn.ModuleDict(modules)

    def forward(self, function: Callable[..., ResultT], *inputs: Any) -> ResultT:
        """Return what the function returns for the inputs."""
        return function(*inputs)


class Parallel:
    """Modules that are trained on all ranks; build it before the optimizer, since it may replace the parameters.

    Args:
        modules: by name; their `requires_grad` says what is trained.
        sharding: see the top of this file.
        blocks: modules inside, which fsdp gathers one after the other; the rest is gathered for a whole pass.
        partial_use: some losses use only a part of what is trained (a head that has no loss, unused vision layers).

    Raises:
        InputError: this torch has no FSDP2.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        *,
        sharding: Sharding,
        blocks: Iterable[nn.Module] = (),
        partial_use: bool = False,
    ) -> None:
        self._partial_use = partial_use
        self._sharding = sharding if ranks.world_size() > 1 else "none"
        self._enclosing = Enclosing(modules)
        self._called: nn.Module = self._enclosing
        if self._sharding == "fsdp":
            try:
                from torch.distributed.fsdp import fully_shard  # seconds, and only needed here
            except ImportError as error:
                raise InputError(
                    f"hardware.sharding=fsdp needs torch 2.8 or later, found {torch.__version__}; use ddp"
                ) from error
            # Nothing here changes the output of a block in place.
            warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
            for block in blocks:
                if any(parameter.numel() for parameter in block.parameters()):
                    fully_shard(block)
            fully_shard(self._enclosing)
        self._shards: list[Any] = [m for m in self._enclosing.modules() if is_sharded(m)]
        # Both average gradients over the ranks; their sum is wanted.
        self._scale = 1.0 if self._sharding == "none" else float(ranks.world_size())
        self.begin_phase()

    def begin_phase(self) -> None:
        """Take notice of what is trained from now on, by `requires_grad` of the parameters."""
        self._parameters = [p for p in self._enclosing.parameters() if p.requires_grad]
        if self._sharding == "ddp":
            # Buffers are equal on all ranks by themselves. The option has another name in newer versions of torch.
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
                self._called = DistributedDataParallel(
                    self._enclosing,
                    broadcast_buffers=False,
                    find_unused_parameters=self._partial_use,
                    gradient_as_bucket_view=True,
                )

    def run(self, function: Callable[..., ResultT], *inputs: Any) -> ResultT:
        """Call a function that computes with the modules without training them: a validation; all ranks call it."""
        if not self._shards:
            return function(*inputs)
        with torch.no_grad():
            found: ResultT = self._enclosing(function, *inputs)
        shards: Any = self._enclosing
        shards.reshard()
        return found

    def backward(self, loss: Callable[..., LossParts], parts: Sequence[tuple[Any, ...]]) -> LossParts:
        """Add the gradients of all micro-batches of all ranks to `grad`, and return loss and metrics of the batch.

        Args:
            loss: computes the loss of a micro-batch with the modules.
            parts: its arguments for each micro-batch of this rank.
        """
        total: Tensor | None = None
        counted: Tensor | None = None
        names: list[str] = []
        for number, part in enumerate(parts):
            with self._synchronized(last=number + 1 == len(parts)):
                found = self._called(loss, *part)
                (found.loss * self._scale).backward()
            names = list(found.metrics)
            values = torch.stack([found.loss.detach().double(), *(value.double() for value in found.metrics.values())])
            total = values if total is None else total + values
            counted = found.counts if counted is None else counted + found.counts
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
        if isinstance(self._called, DistributedDataParallel) and not last:
            with self._called.no_sync():
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


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Hold the full weights of all sharded blocks inside the `with`, for code that reads them without `forward`."""
    shards: list[Any] = [block for block in module.modules() if is_sharded(block)]
    for block in shards:
        block.unshard()
        block.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for block in shards:
            block.set_reshard_after_forward(True, recurse=False)
            block.reshard()


def is_sharded(module: nn.Module) -> bool:
    """Return whether a module is a block, or the whole, of sharded weights."""
    return hasattr(module, "unshard")


def is_sharded_tensor(value: Tensor) -> bool:
    """Return whether a tensor is one of `shard`: a DTensor, whose type takes seconds to import."""
    return hasattr(value, "full_tensor")


def full(value: Tensor) -> Tensor:
    """Return a tensor with all of its shards; all ranks must call it for a sharded one."""
    sharded: Any = value
    return sharded.full_tensor() if is_sharded_tensor(value) else value


def full_state(module: nn.Module) -> dict[str, Tensor]:
    """Return all weights of a module, whole and on the CPU, on rank 0, and nothing on the others; all must call it.

    What is on the CPU already is not copied, as long as no two tensors share memory: use it before the next step.
    """
    state = {}
    for name, value in module.state_dict().items():
        whole = full(value.detach())
        if ranks.is_main():
            state[name] = whole
    return on_cpu(state)


def on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors on the CPU, contiguous, of which no two share memory; only where that needs it they are copied."""
    moved = {}
    known: set[int] = set()
    for name, value in tensors.items():
        there = value.detach().cpu().contiguous()
        # A view of something larger would be fine for itself, and not beside another view of it.
        storage = there.untyped_storage().data_ptr()
        moved[name] = there.clone() if storage in known else there
        known.add(storage)
    return moved


def like(value: Tensor, sharded: Tensor) -> Tensor:
    """Return a whole tensor in the shards of another one; itself where that has none. Nothing is sent."""
    if not is_sharded_tensor(sharded):
        return value
    from torch.distributed.tensor import distribute_tensor

    placed: Any = sharded
    value = value.to(device=placed.device, dtype=placed.dtype)
    return distribute_tensor(value, placed.device_mesh, placed.placements, src_data_rank=None)


def state_bytes(modules: Iterable[nn.Module], optimizer: torch.optim.Optimizer | None = None) -> int:
    """Return the bytes of a checkpoint: weights, and two moments of what an optimizer trains."""
    weights = sum(value.numel() * value.element_size() for m in modules for value in m.state_dict().values())
    trained = [] if optimizer is None else [p for group in optimizer.param_groups for p in group["params"]]
    return weights + sum(2 * p.numel() * p.element_size() for p in trained)
