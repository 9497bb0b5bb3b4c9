"""The last layer of the embedded Llama, computed in training only where its output is read: at the latent positions.

Place in the flow: under `backbone.py`, which imports it when it builds the model. With two layers and a prompt of
thirty tokens this saves two fifths of the matrix products of a training step.
"""

# B batch · S sequence · R positions that are read · D hidden width · E head width
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaDecoderLayer


class LastLayer(LlamaDecoderLayer):  # type: ignore[no-untyped-call]
    """A layer with the weights of `LlamaDecoderLayer` that can leave out all but the last positions."""

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        *,
        position_embeddings: tuple[Tensor, Tensor],
        last: int | None = None,
        **others: Any,
    ) -> Any:
        """Return the output of the last positions [B, R, D], which attend to all; the arguments are those of Llama.

        Args:
            hidden_states: [B, S, D].
            attention_mask: [B, 1, S, S], True or 0 where a position may be read; None: all before it, and itself.
            position_embeddings: rotary factors [B, S, E].
            last: R; None: all positions, by Llama's own code.
            others: for Llama's own code.
        """
        if last is None:
            return super().forward(
                hidden_states, attention_mask=attention_mask, position_embeddings=position_embeddings, **others
            )
        attention = self.self_attn
        length = hidden_states.shape[1]
        h = self.input_layernorm(hidden_states)
        heads = (-1, attention.head_dim)
        q = attention.q_proj(h[:, -last:]).unflatten(2, heads)
        k, v = (project(h).unflatten(2, heads) for project in (attention.k_proj, attention.v_proj))
        cos, sin = (factor[:, :, None] for factor in position_embeddings)
        q = q * cos[:, -last:] + _half_turned(q) * sin[:, -last:]
        k = k * cos + _half_turned(k) * sin
        if attention_mask is None:
            attention_mask = torch.ones(length, length, dtype=torch.bool, device=h.device).tril()[None, None]
        mixed = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=attention_mask[:, :, -last:],
            scale=attention.scaling,
            enable_gqa=True,
        )
        x = hidden_states[:, -last:] + attention.o_proj(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.post_attention_layernorm(x))


def _half_turned(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)
