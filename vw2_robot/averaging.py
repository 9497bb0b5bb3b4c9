"""Weights averaged over training: a slow copy of some modules beside the ones that learn.

Place in the flow: an option of the dLDM stage, off by default as in paper and release. What is validated, saved under
the modules' own names and read by the next stage is then the average; the learning weights lie beside it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn


class Average:
    """Exponential moving averages of modules, by name in `modules`: parameters, and running statistics with them.

    Raises:
        ValueError: if the decay is not in (0, 1).
    """

    def __init__(self, learning: Mapping[str, nn.Module], decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"the decay of an average must lie in (0, 1), found {decay}")
        self.decay, self.learning = decay, dict(learning)
        self.modules = {name: copy.deepcopy(module).requires_grad_(False) for name, module in learning.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move toward the learning weights after step `step` (from 0); the first steps of all count for more."""
        keep = min(self.decay, (1 + step) / (10 + step))
        for name, module in self.learning.items():
            new = module.state_dict()
            for key, slow in self.modules[name].state_dict().items():
                if slow.is_floating_point():
                    slow.lerp_(new[key], 1 - keep)  # exact where nothing has moved
                else:
                    slow.copy_(new[key])
