"""Wrappers of diffusers' Wan parts, version 2.1 and 2.2: transformer, attention masks, VAE.

Place in the flow: below `vdm.py` and `video_codec.py`; the counterpart of `cosmos.py`, whose functions have the same
names. The VAE of version 2.1 is that of Cosmos-Predict2 too.

Time: a Wan transformer predicts the same velocity eps - x0 of the same (1-t) x0 + t eps as Cosmos does, and reads
1000 t. The noise level belongs to a frame here, since frame 0 is clean, as in the 5B model of version 2.2. Stock
diffusers takes a time for every token then, and keeps six modulations of every token in float32 for each block. Here
the frames of a clip count as samples until attention joins them: the modulation has one row for each frame, all layers
but the patch embedding and the attention processors are those of stock diffusers, and so are names and shapes of all
weights.
"""

# B batch · K latent frames · P tokens of a frame · Q = K P tokens of a clip · S context tokens, of width D · W width
from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from vw2_robot.errors import require

from ..dense import Dense
from .config import Geometry, VDMConfig, WanConfig
from .cosmos import Masks

# Linear layers of a block that get adapters.
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")
# What the transformer reads as t = 1, and t of the clean first frame.
TIME_SCALE = 1000.0
CLEAN_TIME = 0.0


class FramesFirst(nn.Conv3d):
    """The patch embedding, with the frames of a clip as samples of their own."""

    def forward(self, x: Tensor) -> Tensor:
        """Return [B K, W, h/2, w/2] for x [B, C, K, h, w]."""
        return rearrange(super().forward(x), "b w k y x -> (b k) w y x")


def stock_options(config: VDMConfig, geometry: Geometry) -> dict[str, Any]:
    """Return the options of the stock transformer's constructor; `configs/model/wan21.yaml` has those of a release."""
    return {
        "in_channels": geometry.channels,
        "out_channels": geometry.channels,
        "num_attention_heads": config.heads,
        "attention_head_dim": config.head_dim,
        "num_layers": config.layers,
        "ffn_dim": round(config.mlp_ratio * config.width),
        "text_dim": config.context_width,
        "patch_size": (1, 2, 2),
    }


def build_transformer(
    options: Mapping[str, Any], *, dtype: torch.dtype = torch.float32, filled: bool = True
) -> nn.Module:
    """Build a `WanTransformer3DModel`.

    Args:
        options: of the stock constructor.
        dtype: of the weights, but for those that stock diffusers keeps in float32 (times, modulations, norms).
        filled: with random weights. Else memory is only reserved.

    Returns:
        The model.
    """
    kind = require("diffusers", extra="train").WanTransformer3DModel
    device = torch.get_default_device()
    with nullcontext() if filled else torch.device("meta"):
        model: Any = kind(**options)
    for name, parameter in model.named_parameters():
        if not any(part in name for part in kind._keep_in_fp32_modules):
            parameter.data = parameter.data.to(dtype)
    if not filled:
        # Rotary positions are no weights, so no file would fill them again.
        positions = type(model.rope)(model.rope.attention_head_dim, model.rope.patch_size, model.rope.max_seq_len)
        model = model.to_empty(device=device)
        model.rope = positions
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Dense
    model.patch_embedding.__class__ = FramesFirst
    built: nn.Module = model
    return built


def predicted(transformer: nn.Module, x: Tensor, marks: Tensor, times: Tensor, context: Tensor) -> Tensor:
    """Return the transformer's output [B, C, K, h, w].

    Args:
        transformer: of `build_transformer`.
        x: [B, C, K, h, w], noisy latents with the clean first frame.
        marks: as for Cosmos, which reads them; here only times say that a frame is clean.
        times: [B, K], t of each latent frame.
        context: [B, S, D].
    """
    out: Tensor = transformer(
        hidden_states=x,
        timestep=TIME_SCALE * times.flatten(),
        encoder_hidden_states=context,
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
    tokens = transformer.patch_embedding(x).flatten(2).transpose(1, 2)
    _, modulation, projected, _ = transformer.condition_embedder(TIME_SCALE * times.flatten(), context, None)
    return tokens, (projected, modulation.unflatten(1, (6, -1)), transformer.rope(x))


def install_masks(blocks: Iterable[nn.Module], masks: Masks) -> None:
    """Give every attention layer a processor that joins the frames of a clip and reads its mask from `masks`."""
    from diffusers.models.transformers.transformer_wan import WanAttnProcessor

    class MaskedProcessor(WanAttnProcessor):
        """The stock attention of all tokens of a clip, with masks."""

        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.masks = masks  # an attribute, so that a deep copy of the model gets a copy of the masks

        def __call__(
            self,
            attn: Any,
            hidden_states: Tensor,
            encoder_hidden_states: Tensor | None = None,
            attention_mask: Tensor | None = None,  # never given by the blocks
            rotary_emb: Any = None,
        ) -> Tensor:
            if encoder_hidden_states is None:
                clips = hidden_states.reshape(-1, rotary_emb[0].shape[1], hidden_states.shape[-1])
                mask = self.masks.self_attention
            else:
                clips = hidden_states.reshape(len(encoder_hidden_states), -1, hidden_states.shape[-1])
                mask = self.masks.cross
            mixed: Tensor = super().__call__(attn, clips, encoder_hidden_states, mask, rotary_emb)
            return mixed.view_as(hidden_states)

    for block in blocks:
        block.attn1.set_processor(MaskedProcessor())  # type: ignore[union-attr,operator]
        block.attn2.set_processor(MaskedProcessor())  # type: ignore[union-attr,operator]


def build_vae(config: WanConfig) -> Any:
    """Build an `AutoencoderKLWan` with random weights; mean and deviation of the latents are those of version 2.1."""
    kind = require("diffusers", extra="train").AutoencoderKLWan
    sizes = {
        "base_dim": config.base_dim,
        "decoder_base_dim": config.decoder_base_dim,
        "dim_mult": list(config.dim_mult),
        "num_res_blocks": config.res_blocks,
    }
    if config.version != "2.2":
        return kind(**sizes)
    return kind(
        **sizes,
        z_dim=config.channels,
        is_residual=True,
        # Squares of 2 x 2 pixels enter as channels, in three colors.
        patch_size=2,
        in_channels=12,
        out_channels=12,
        scale_factor_spatial=config.block,
        # The folder has measured ones.
        latents_mean=[0.0] * config.channels,
        latents_std=[1.0] * config.channels,
    )
