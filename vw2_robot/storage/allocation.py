"""A limit on the memory that building a model may take, against absurd sizes in a downloaded configuration.

    with AllocationLimit(numbers, tensors=100, what="..."):
        model = LatentPolicy(...)

Every constructor of PyTorch ends in one of a few functions that make tensors; their sizes are checked before they run.
This is not a limit for training, where the user sets the sizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vw2_robot.errors import InputError

# Functions that make a tensor, and which of their arguments are its sizes.
_SIZES: dict[Any, slice] = {
    **dict.fromkeys((torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn), slice(None)),
    **dict.fromkeys((Tensor.new_empty, Tensor.new_zeros, Tensor.new_ones, Tensor.repeat), slice(1, None)),
    torch.full: slice(1),
    Tensor.new_full: slice(1, 2),
}
_RAMPS = (torch.arange, torch.linspace, torch.randperm)
_JOINTS = (torch.cat, torch.stack)


class AllocationLimit(TorchFunctionMode):
    """A context that refuses tensors of more than `numbers` elements in total, or more than `tensors` of them.

    Both are counted on every device, and what is freed again counts too: old embedding tables, initial values that are
    replaced.

    Args:
        numbers: most elements.
        tensors: most tensors.
        what: the file with the sizes, for the message.

    Raises:
        InputError: inside, before the tensor that exceeds the limit is made.
    """

    def __init__(self, numbers: int, *, tensors: int, what: str) -> None:
        super().__init__()
        self._left = numbers
        self._tensors_left = tensors
        self._what = what

    @classmethod
    def like(cls, weights: Mapping[str, Tensor], *, what: str) -> AllocationLimit:
        """Return a limit of several times what building a model with these weights takes.

        Args:
            weights: of the model, by name.
            what: the file with the sizes, for the message.
        """
        numbers = sum(value.numel() for value in weights.values())
        return cls(8 * numbers + 2**26, tensors=8 * len(weights) + 1000, what=what)

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Count the elements, then call the function."""
        kwargs = kwargs or {}
        if func in _SIZES:
            self._tensors_left -= 1
        self._left -= _numbers(func, args, kwargs)
        if min(self._left, self._tensors_left) < 0:
            raise InputError(f"{self._what} describes a model that is far larger than its weights")
        return func(*args, **kwargs)


def _numbers(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Return the elements of what a call would make; 0 for functions that make no large tensor."""
    if func in _SIZES:
        base = args[0].numel() if func is Tensor.repeat else 1
        return base * math.prod(int(abs(side)) for side in _flat(kwargs.get("size", args[_SIZES[func]])))
    if func in _RAMPS:
        ends = [abs(end) for end in _flat((*args, *kwargs.values())) if math.isfinite(end)]
        return int(max(ends, default=0))
    if func in _JOINTS:
        return sum(part.numel() for part in (args[0] if args else kwargs["tensors"]))
    return 0


def _flat(values: Any) -> list[float]:
    """Return the numbers in nested lists and tuples."""
    if isinstance(values, list | tuple):  # torch.Size is a tuple
        return [number for value in values for number in _flat(value)]
    return [values] if isinstance(values, int | float) else []
