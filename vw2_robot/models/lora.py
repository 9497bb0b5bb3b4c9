"""Low-rank adapters (LoRA) on every linear layer of a module, added by forward hooks (Hu et al., 2021).

    y = W x + b + (alpha / rank) · up (down x)

`up` starts at zero, so an adapted module begins as the original. The layers are not replaced, so the module's state
dict stays that of the base, bit for bit. `merged` gives a copy with the sum in W, which loads without any adapter.
"""

# r rank · in, out widths of a linear layer
from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import nn

from .policy.config import LoRAConfig


class LoRA(nn.Module):
    """The adapters of one module: hooks its linear layers and holds the only new parameters.

    Args:
        module: its linear layers are adapted, except those in `skip`. It is not frozen here.
        config: rank and scale.
        generator: gives the initial values of `down`.
        skip: layers without an adapter, for instance the output embedding.

    Raises:
        ValueError: the module has no linear layer.
    """

    def __init__(
        self, module: nn.Module, config: LoRAConfig, *, generator: torch.Generator, skip: tuple[nn.Module, ...] = ()
    ) -> None:
        super().__init__()
        self.scale = config.alpha / config.rank
        layers = {n: m for n, m in module.named_modules() if isinstance(m, nn.Linear) and m not in skip}
        if not layers:
            raise ValueError("there is no linear layer to adapt")
        self.names = tuple(layers)
        self.down = nn.ParameterList()
        self.up = nn.ParameterList()
        for layer in layers.values():
            start = torch.randn(config.rank, layer.in_features, generator=generator) * layer.in_features**-0.5
            self.down.append(nn.Parameter(start.to(layer.weight)))
            self.up.append(nn.Parameter(layer.weight.new_zeros(layer.out_features, config.rank)))
        for number, layer in enumerate(layers.values()):
            # A plain function, not a bound method: a deep copy of the adapted module then copies no adapter.
            layer.register_forward_hook(
                lambda _, inputs, output, i=number: (
                    output + self.scale * F.linear(F.linear(inputs[0], self.down[i]), self.up[i])
                )
            )

    @torch.no_grad()
    def merged(self, module: nn.Module) -> nn.Module:
        """Return a copy of the adapted module, without hooks, whose weights hold base and adapters."""
        plain = copy.deepcopy(module)
        for number, name in enumerate(self.names):
            layer = plain.get_submodule(name)
            layer._forward_hooks.clear()
            layer.weight += self.scale * self.up[number].to(layer.weight) @ self.down[number].to(layer.weight)
        return plain
