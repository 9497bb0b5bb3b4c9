"""Wrappers of diffusers' Cosmos-Predict2 parts: transformer, VAE, scheduler, attention masks, adapters.

Place in the flow: below `vdm.py` and `video_codec.py`; the counterpart of `wan.py`, whose functions have the same
names. diffusers and peft are imported when something is built. Masks
enter through attention processors and adapters through peft, and layers that are computed another way change their
class alone, so the names and shapes of all weights stay those of stock diffusers; `cosmos_folder.py` reads and writes
them.

The padding mask: stock diffusers needs torchvision to resize a mask that is zero for whole images. Here both mask
channels are given together, so `in_channels` grows by one and `concat_padding_mask` is off while running. The weights
are the same, and a saved folder has the options of the stock model.

Cosmos-Predict2.5 has a layer that narrows the states of a language model to the context. Codes are as wide as this
context, so they enter behind that layer; its weights are kept for stock diffusers alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from inspect import signature
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vw2_robot.errors import InputError, require

from ..dense import Dense
from .config import Geometry, VDMConfig

# Linear layers of a block that get adapters (method 1.12).
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
# t that marks the clean conditioning frame: sigma = 1e-4 (method 1.12).
CLEAN_TIME = 1e-4 / (1 + 1e-4)
# The layer of Cosmos-Predict2.5 that codes do not pass.
UNUSED = "crossattn_proj"


class Masks:
    """The attention masks of one forward pass, shared by all processors of a model; None means full attention."""

    cross: Tensor | None = None
    self_attention: Tensor | None = None


def stock_options(config: VDMConfig, geometry: Geometry) -> dict[str, Any]:
    """Return the options of the stock transformer's constructor; `configs/model/paper.yaml` has the 2B model's."""
    options = {
        "in_channels": geometry.channels + 1,  # + the mask that marks the conditioning frame
        "out_channels": geometry.channels,
        "num_attention_heads": config.heads,
        "attention_head_dim": config.head_dim,
        "num_layers": config.layers,
        "mlp_ratio": config.mlp_ratio,
        "text_embed_dim": config.context_width,
        "adaln_lora_dim": config.adaln_lora_dim,
        # The longest axis that rotary positions reach; no weight depends on it.
        "max_size": (max(128, geometry.latent_steps + 1), max(240, geometry.height), max(240, geometry.width)),
        "patch_size": (1, 2, 2),
        "rope_scale": config.rope_scale,
        "concat_padding_mask": config.padding_channel,
        "extra_pos_embed_type": None,
    }
    if config.text_projection:
        options["use_crossattn_projection"] = True
        options["crossattn_proj_in_channels"] = config.text_projection
        options["encoder_hidden_states_channels"] = config.context_width
    return options


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

    Raises:
        InputError: the installed diffusers has no Cosmos-Predict2.5, which the options ask for.
    """
    diffusers = require("diffusers", extra="train")
    if unknown := set(options) - set(signature(diffusers.CosmosTransformer3DModel).parameters):
        raise InputError(
            f"diffusers {diffusers.__version__} has no Cosmos-Predict2.5 ({', '.join(sorted(unknown))} of its "
            "transformer): update it, or set vdm.text_projection=null and give the weights of Cosmos-Predict2"
        )
    # While running, the padding mask is one of the input channels (see the module docstring).
    in_channels = options["in_channels"] + int(options["concat_padding_mask"])
    stock = {**options, "in_channels": in_channels, "concat_padding_mask": False}
    device = torch.get_default_device()
    with nullcontext() if filled else torch.device("meta"):
        model: nn.Module = diffusers.CosmosTransformer3DModel(**stock)
    nn.Module.to(model, dtype)  # the `to` of diffusers warns without cause
    _compute_faster(model)
    if hasattr(model, UNUSED):
        model.crossattn_proj.__class__ = PassedBy
    # The model has no buffers, whose values would be lost.
    return model if filled else model.to_empty(device=device)


class PassedBy(nn.Sequential):
    """Layers that codes do not pass."""

    def forward(self, context: Tensor) -> Tensor:
        """Return the context as it is."""
        return context


def predicted(transformer: nn.Module, x: Tensor, marks: Tensor, times: Tensor, context: Tensor) -> Tensor:
    """Return the transformer's output [B, C, K, h, w].

    Args:
        transformer: of `build_transformer`.
        x: [B, C, K, h, w], noisy latents with the clean first frame.
        marks: [B, 1 or 2, K, h, w], channels that mark the first frame and padding.
        times: [B, K], t of each latent frame.
        context: [B, S, D].
    """
    out: Tensor = transformer(
        hidden_states=x,
        timestep=times.flatten(),  # a row for each frame, see `_compute_faster`
        encoder_hidden_states=context,
        condition_mask=marks,
        fps=None,  # rotary positions in latent frames, as the original 2B model (method 1.12, trap 3)
        return_dict=False,
    )[0]
    return out


def block_arguments(
    transformer: Any, x: Tensor, marks: Tensor, times: Tensor, context: Tensor
) -> tuple[Tensor, tuple[Any, ...]]:
    """Return the tokens that the first block gets, and what every block gets after its tokens.

    Args:
        transformer: gives the embeddings.
        x: as for `predicted`.
        marks: as for `predicted`.
        times: as for `predicted`.
        context: as for `predicted`.
    """
    marked = torch.cat([x, marks], dim=1)
    tokens = transformer.patch_embed(marked).flatten(1, 3)
    temb, embedded = transformer.time_embed(tokens, times.flatten())
    return tokens, (context, embedded, temb, transformer.rope(marked, fps=None))


def _compute_faster(transformer: nn.Module) -> None:
    """Let the linear layers run on oneDNN, and the norms modulate by frame; weights and their names stay.

    The noise level is the same for all tokens of a frame. Stock diffusers gives the time embedding of every token to
    every norm; here it has a row for each frame: [B K, C], which `timestep` of one axis gives.
    """
    from diffusers.models.transformers.transformer_cosmos import CosmosAdaLayerNorm, CosmosAdaLayerNormZero

    def modulated(
        self: Any, hidden_states: Tensor, embedded_timestep: Tensor, temb: Tensor
    ) -> Tensor | tuple[Tensor, Tensor]:
        modulation = self.linear_2(self.linear_1(self.activation(embedded_timestep)))
        modulation = modulation + temb[:, : modulation.shape[-1]]
        shift, scale, *gate = modulation[:, None].split(hidden_states.shape[-1], dim=-1)
        frames = self.norm(hidden_states).view(len(modulation), -1, hidden_states.shape[-1])
        out = (frames * (1 + scale) + shift).view_as(hidden_states)
        return (out, gate[0].expand_as(frames).reshape(hidden_states.shape)) if gate else out

    ours: dict[type, type] = {nn.Linear: Dense}
    for stock in (CosmosAdaLayerNorm, CosmosAdaLayerNormZero):
        ours[stock] = type(f"Framewise{stock.__name__}", (stock,), {"forward": modulated})
    for module in transformer.modules():
        module.__class__ = ours.get(type(module), type(module))


def build_scheduler() -> Any:
    """Build the flow-match Euler scheduler; the caller sets its noise levels."""
    return require("diffusers", extra="train").FlowMatchEulerDiscreteScheduler()


def blocks_of(transformer: nn.Module) -> list[nn.Module]:
    """Return the transformer's blocks in their order."""
    blocks = getattr(transformer, "transformer_blocks", None) or transformer.blocks
    assert isinstance(blocks, nn.ModuleList)
    return list(blocks)


@contextmanager
def last_tokens(transformer: nn.Module) -> Iterator[list[Tensor]]:
    """Collect, inside the `with`, what the transformer's last layer reads: one [B, Q, W] for each forward pass."""
    found: list[Tensor] = []
    handle = transformer.proj_out.register_forward_pre_hook(lambda _, args: found.append(args[0]))  # type: ignore[union-attr]
    try:
        yield found
    finally:
        handle.remove()


def install_masks(blocks: Iterable[nn.Module], masks: Masks) -> None:
    """Give every attention layer a processor that reads its mask from `masks` instead of from its arguments."""
    from diffusers.models.transformers.transformer_cosmos import CosmosAttnProcessor2_0

    class MaskedProcessor(CosmosAttnProcessor2_0):
        """The stock attention with masks, without its copies of keys and values, and with fewer in the rotation."""

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
            context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
            q, k, v = (
                layer(tokens).unflatten(2, (attn.heads, -1))
                for layer, tokens in ((attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context))
            )
            q, k = attn.norm_q(q), attn.norm_k(k)
            if image_rotary_emb is not None:
                q, k = rotated(q, image_rotary_emb), rotated(k, image_rotary_emb)
            q, k, v = (part.transpose(1, 2) for part in (q, k, v))
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=getattr(self.masks, self.kind))
            return attn.to_out[1](attn.to_out[0](mixed.transpose(1, 2).flatten(2).to(q.dtype)))

    for block in blocks:
        block.attn1.set_processor(MaskedProcessor("self_attention"))  # type: ignore[union-attr,operator]
        block.attn2.set_processor(MaskedProcessor("cross"))  # type: ignore[union-attr,operator]


def rotated(x: Float[Tensor, "B S A D"], angles: tuple[Tensor, Tensor]) -> Float[Tensor, "B S A D"]:
    """Return queries or keys with rotary positions: entries d and d + D/2 are a pair.

    Args:
        x: A heads.
        angles: cosines and sines [S, D], as diffusers gives them.
    """
    cos, sin = (part[:, None] for part in angles)
    half = x.shape[-1] // 2
    signed = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
    # float32, as in diffusers: positions reach thousands of radians.
    return torch.addcmul(x.float() * cos, x.float().roll(half, dims=-1), signed).to(x.dtype)


def add_lora(transformer: nn.Module, rank: int, *, targets: Sequence[str] = LORA_TARGETS) -> None:
    """Put LoRA adapters on attention and feed-forward layers; at the start they change no bit.

    Adapters are float32, whatever the precision of the transformer.

    Args:
        transformer: is changed in place.
        rank: of the adapters.
        targets: ends of the names of the layers that get one.
    """
    peft = require("peft", extra="cosmos")
    config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=list(targets))
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
