"""Wrappers of diffusers' Cosmos-Predict2 parts: transformer, VAE, scheduler, attention masks, adapters.

Place in the flow: below `vdm.py` and `video_codec.py`. diffusers and peft are imported when something is built. Masks
enter through attention processors and adapters through peft, so the names and shapes of all weights stay those of stock
diffusers; `cosmos_folder.py` reads and writes them.

The padding mask: stock diffusers needs torchvision to resize a mask that is zero for whole images. Here both mask
channels are given together, so `in_channels` grows by one and `concat_padding_mask` is off while running. The weights
are the same, and a saved folder has the options of the stock model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vw2_robot.errors import require

# Linear layers of a block that get adapters (method 1.12).
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")


class Masks:
    """The attention masks of one forward pass, shared by all processors of a model; None means full attention."""

    cross: Tensor | None = None
    self_attention: Tensor | None = None


def build_transformer(
    options: Mapping[str, Any], *, dtype: torch.dtype = torch.float32, filled: bool = True
) -> nn.Module:
    """Build a `CosmosTransformer3DModel`.

    Args:
        options: of the stock constructor.
        dtype: of the weights.
        filled: with random weights. Else memory is only reserved: the weights will be read, and billions of random
            numbers and a float32 copy of a bfloat16 model are saved.

    Returns:
        The model.
    """
    diffusers = require("diffusers", extra="train")
    # While running, the padding mask is one of the input channels (see the module docstring).
    in_channels = options["in_channels"] + int(options["concat_padding_mask"])
    stock = {**options, "in_channels": in_channels, "concat_padding_mask": False}
    device = torch.get_default_device()
    with nullcontext() if filled else torch.device("meta"):
        model: nn.Module = diffusers.CosmosTransformer3DModel(**stock)
    nn.Module.to(model, dtype)  # the `to` of diffusers warns without cause
    # The model has no buffers, whose values would be lost.
    return model if filled else model.to_empty(device=device)


def build_vae(base_dim: int, *, dim_mult: Sequence[int], res_blocks: int) -> Any:
    """Build an `AutoencoderKLWan` of 16 latent channels with random weights; the arguments are `WanConfig`'s fields.

    Args:
        base_dim: channels of the first level.
        dim_mult: channels of each of the four levels over `base_dim`.
        res_blocks: residual blocks per level.

    Returns:
        The VAE, a module of diffusers.
    """
    diffusers = require("diffusers", extra="train")
    return diffusers.AutoencoderKLWan(base_dim=base_dim, dim_mult=list(dim_mult), num_res_blocks=res_blocks)


def build_scheduler() -> Any:
    """Build the flow-match Euler scheduler; the caller sets its noise levels."""
    return require("diffusers", extra="train").FlowMatchEulerDiscreteScheduler()


def blocks_of(transformer: nn.Module) -> list[nn.Module]:
    """Return the transformer's blocks in their order."""
    blocks = transformer.transformer_blocks
    assert isinstance(blocks, nn.ModuleList)
    return list(blocks)


def install_masks(blocks: Iterable[nn.Module], masks: Masks) -> None:
    """Give every attention layer a processor that reads its mask from `masks` instead of from its arguments."""
    from diffusers.models.transformers.transformer_cosmos import CosmosAttnProcessor2_0

    class MaskedProcessor(CosmosAttnProcessor2_0):
        def __init__(self, kind: Literal["cross", "self_attention"]) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.kind = kind
            self.masks = masks  # an attribute, so that a deep copy of the model gets a copy of the masks

        def __call__(
            self,
            attn: Any,
            hidden_states: Tensor,
            encoder_hidden_states: Tensor | None = None,
            attention_mask: Tensor | None = None,  # that of diffusers can be [B, S] only; `masks` has one per query
            image_rotary_emb: Any = None,
        ) -> Tensor:
            mask = getattr(self.masks, self.kind)
            out: Tensor = super().__call__(attn, hidden_states, encoder_hidden_states, mask, image_rotary_emb)
            return out

    for block in blocks:
        block.attn1.set_processor(MaskedProcessor("self_attention"))  # type: ignore[union-attr,operator]
        block.attn2.set_processor(MaskedProcessor("cross"))  # type: ignore[union-attr,operator]


def add_lora(transformer: nn.Module, rank: int) -> None:
    """Put LoRA adapters of that rank on attention and feed-forward layers; at the start they change no bit.

    Adapters are float32, whatever the precision of the transformer.
    """
    peft = require("peft", extra="cosmos")
    config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=list(LORA_TARGETS))
    transformer.add_adapter(config)  # type: ignore[operator]
    for name, parameter in transformer.named_parameters():
        if is_adapter(name):
            parameter.data = parameter.data.float()


def is_adapter(name: str) -> bool:
    """Return whether a parameter of that name belongs to an adapter."""
    return ".lora_" in name


def plain_state(module: nn.Module, *, merged: bool = False) -> dict[str, Tensor]:
    """Return the weights under stock diffusers' names, without adapters; with `merged`, adapters are added to them."""
    state = {
        name.replace(".base_layer.", "."): value
        for name, value in module.state_dict().items()
        if not is_adapter(f".{name}")
    }
    if merged:
        for name, layer in module.named_modules():
            if hasattr(layer, "get_delta_weight"):
                # Summed in float32: an adapter's update is smaller than what bfloat16 resolves.
                weight = state[f"{name}.weight"]
                state[f"{name}.weight"] = (weight.float() + layer.get_delta_weight("default").float()).to(weight.dtype)
    return state
