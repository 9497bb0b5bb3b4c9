"""A bound on the memory that building a model may take: the sizes in a stranger's configuration are only numbers.

    with AllocationLimit(numbers, tensors=100, what="..."):
        model = LatentPolicy(...)

Every constructor of PyTorch ends in one of a few functions that make tensors; those are asked for their size before
they run. Not a limit for training, where sizes are the user's own.
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
    """Refuse tensors of more than `numbers` elements, or more than `tensors` of them, whatever device they are for.

    Both are counted in total, also what is given back: old and new embedding tables, first values that are replaced.

    Raises:
        InputError: inside, before the tensor that is too much is made.
    """

    def __init__(self, numbers: int, *, tensors: int, what: str) -> None:
        super().__init__()
        self._most = self._left = numbers
        self._tensors_left = tensors
        self._what = what

    @classmethod
    def like(cls, weights: Mapping[str, Tensor], *, what: str) -> AllocationLimit:
        """As much as building takes whose weights these are, with plenty of room."""
        numbers = sum(value.numel() for value in weights.values())
        return cls(8 * numbers + 2**26, tensors=8 * len(weights) + 1000, what=what)

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Count, then call."""
        kwargs = kwargs or {}
        if func in _SIZES:
            self._tensors_left -= 1
        self._left -= _numbers(func, args, kwargs)
        if min(self._left, self._tensors_left) < 0:
            raise InputError(f"{self._what} describes a model that is far larger than its weights")
        return func(*args, **kwargs)


def _numbers(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Elements of what that call would make; 0 for all that makes nothing large of its own."""
    if func in _SIZES:
        own = args[0].numel() if func is Tensor.repeat else 1
        return own * math.prod(int(abs(side)) for side in _flat(kwargs.get("size", args[_SIZES[func]])))
    if func in _RAMPS:
        ends = [abs(end) for end in _flat((*args, *kwargs.values())) if math.isfinite(end)]
        return int(max(ends, default=0))
    if func in _JOINTS:
        return sum(part.numel() for part in (args[0] if args else kwargs["tensors"]))
    return 0


def _flat(values: Any) -> list[float]:
    if isinstance(values, list | tuple):  # torch.Size is a tuple
        return [number for value in values for number in _flat(value)]
    return [values] if isinstance(values, int | float) else []
