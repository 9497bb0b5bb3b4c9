"""Arithmetic of a training step by part of the model and by direction, counted on tensors without data.

torch's flop counter counts every matrix product, convolution and attention that runs. Here each count goes to the part
whose forward pass is running or, in the backward pass, to the part that made the node of the graph that is running.
So the parts sum up to torch's total, and a recomputed activation counts as backward work of its part. Elementwise
operations count nothing. Attention counts in full, also where a mask hides half of it, and its backward pass is that of
a fused kernel, which computes the scores again: 2.5 times the forward pass and not 2.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))


# torch's counter knows the fused attention of GPUs alone; that of a CPU does the same products.
ATTENTION_ON_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


@dataclass
class Work:
    """Floating-point operations of one part: two for each multiplication that is added up."""

    forward: int = 0
    backward: int = 0

    @property
    def total(self) -> int:
        """Return the work of both directions."""
        return self.forward + self.backward


class PartsCounter(TorchDispatchMode):
    """Count the work of each part inside the context; call `backward` there for the backward pass.

    Args:
        parts: name -> modules whose `forward` belongs to it. None of them may run inside another one.
        rest: name of what runs outside of them.
    """

    def __init__(self, parts: Mapping[str, Iterable[nn.Module]], *, rest: str = "losses") -> None:
        super().__init__()
        self.work: dict[str, Work] = defaultdict(Work)
        self._counter = FlopCounterMode(display=False, custom_mapping=ATTENTION_ON_CPU)
        self._parts = {name: tuple(modules) for name, modules in parts.items()}
        self._rest = rest
        self._part = rest
        self._is_backward = False
        self._seen: set[Node] = set()  # holds the nodes, so that none is met twice under another identity
        self._handles: list[Any] = []

    def __enter__(self) -> PartsCounter:
        for name, modules in self._parts.items():
            for module in modules:
                begin = partial(self._begin, name)
                self._handles.append(module.register_forward_pre_hook(begin, with_kwargs=True))
                self._handles.append(module.register_forward_hook(partial(self._end, name)))
        # Below this mode, so that it has counted an operation when control comes back here.
        self._counter.__enter__()
        return super().__enter__()  # type: ignore[no-any-return]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._counter.__exit__(*error)
        for handle in self._handles:
            handle.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self._counter.get_total_flops()
        out = func(*args, **(kwargs or {}))
        if added := self._counter.get_total_flops() - before:
            work = self.work[self._part]
            if self._is_backward:
                work.backward += added
            else:
                work.forward += added
        return out

    def backward(self, loss: Tensor) -> None:
        """Run the backward pass of a loss whose forward pass ran in this context."""
        self._announce([loss], self._rest)
        self._is_backward = True
        loss.backward()  # type: ignore[no-untyped-call]
        self._is_backward = False
        self._part = self._rest

    @property
    def total(self) -> int:
        """Return torch's own count, to which the parts sum up."""
        return int(self._counter.get_total_flops())

    def _begin(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert self._part == self._rest, f"{name} runs inside {self._part}"
        self._announce([given for given in (*args, *kwargs.values()) if isinstance(given, Tensor)], self._rest)
        self._part = name

    def _end(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._part = self._rest
        self._announce(output if isinstance(output, list | tuple) else [output], name)

    def _announce(self, outputs: Iterable[Tensor], name: str) -> None:
        """Have the nodes of the graph between earlier parts and these tensors name their part when they run."""
        waiting = [tensor.grad_fn for tensor in outputs if tensor.grad_fn is not None]
        while waiting:
            node = waiting.pop()
            if node in self._seen:
                continue
            self._seen.add(node)
            node.register_prehook(lambda *_: self._run_node(name))
            waiting += [before for before, _ in node.next_functions if before is not None]

    def _run_node(self, name: str) -> None:
        self._part = name
