"""The weights of a Llama-shaped decoder, laid out for decoding.

Place in the flow: under `kv_cache.py`. The weights of projections that read the same input are moved next to one
another in memory, so that one product serves all. The model's parameters become views of that memory: training, saving
and loading work as before, and decoding follows every update. Moving a model to another device separates the views;
`is_current` is then False.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

# Models of exactly this shape: pre-norm layers with RMSNorm, rotary positions, gated MLP, causal attention over all.
LLAMA_SHAPED = ("llama", "mistral", "qwen2", "qwen3")


class LayerWeights(NamedTuple):
    """The weights of one layer, matrices [out, in]."""

    norm_attention: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    norm_q: Tensor | None
    norm_k: Tensor | None
    out: Tensor
    out_bias: Tensor | None
    norm_mlp: Tensor
    gate_up: Tensor
    gate_up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None

    @classmethod
    def from_layer(cls, layer: Any) -> LayerWeights:
        """Lay out the weights of a decoder layer of transformers; its parameters become views of them."""
        attention = layer.self_attn
        mlp = layer.mlp
        qkv, qkv_bias = _side_by_side([attention.q_proj, attention.k_proj, attention.v_proj])
        gate_up, gate_up_bias = _side_by_side([mlp.gate_proj, mlp.up_proj])
        out, out_bias = _side_by_side([attention.o_proj])
        down, down_bias = _side_by_side([mlp.down_proj])
        norm_q, norm_k = (getattr(attention, name, None) for name in ("q_norm", "k_norm"))
        return cls(
            norm_attention=layer.input_layernorm.weight.detach(),
            qkv=qkv,
            qkv_bias=qkv_bias,
            norm_q=None if norm_q is None else norm_q.weight.detach(),
            norm_k=None if norm_k is None else norm_k.weight.detach(),
            out=out,
            out_bias=out_bias,
            norm_mlp=layer.post_attention_layernorm.weight.detach(),
            gate_up=gate_up,
            gate_up_bias=gate_up_bias,
            down=down,
            down_bias=down_bias,
        )


class LlamaWeights:
    """The weights of all layers of a decoder without its head (such as LlamaModel), if `is_llama_shaped` holds."""

    def __init__(self, decoder: Any) -> None:
        config = decoder.config
        self.layers = [LayerWeights.from_layer(layer) for layer in decoder.layers]
        self.norm = decoder.norm.weight.detach()
        self.activation = decoder.layers[0].mlp.act_fn
        self.rotary = decoder.rotary_emb
        self.queries = int(config.num_attention_heads)
        self.keys = int(config.num_key_value_heads)
        self.head_width = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
        self.scale = float(decoder.layers[0].self_attn.scaling)
        self.eps = self.norm.new_tensor(float(config.rms_norm_eps))
        # The addresses of all parameters: moving the model to another device changes them.
        self._parameters = list(decoder.parameters())
        self._places = [parameter.data_ptr() for parameter in self._parameters]
        self._hooks = [module._forward_hooks for module in decoder.modules()]

    @property
    def is_current(self) -> bool:
        """Return False once the model was moved to another device, or adapters were hooked onto it."""
        return not any(self._hooks) and self._places == [parameter.data_ptr() for parameter in self._parameters]

    @property
    def version(self) -> int:
        """Return a number that grows with every change of a weight in place."""
        return sum(parameter._version for parameter in self._parameters)


def is_llama_shaped(decoder: nn.Module) -> bool:
    """Return whether `StaticCache` can run this decoder: Llama's layers, in float32, without adapters hooked on."""
    config: Any = getattr(decoder, "config", None)
    if getattr(config, "model_type", None) not in LLAMA_SHAPED:
        return False
    # A wrong result is worse than a slow one: full attention alone, no window, no scaling that depends on the length.
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    # Mistral has a window whenever it is set; Qwen only with the switch.
    window = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    dynamic = rope.get("rope_type", rope.get("type", "default")) in ("dynamic", "longrope")
    plain = all(
        not m._forward_hooks and p.dtype == torch.float32 for m in decoder.modules() for p in m.parameters(False)
    )
    return kinds == {"full_attention"} and not window and not dynamic and plain


def _side_by_side(linears: list[Any]) -> tuple[Tensor, Tensor | None]:
    """Return the weights of linear layers as one matrix [out, in], and their biases."""
    bias = None if linears[0].bias is None else _adjacent([linear.bias for linear in linears])
    return _adjacent([linear.weight for linear in linears]), bias


def _adjacent(parameters: list[nn.Parameter]) -> Tensor:
    """Return the parameters stacked along their first axis, as one tensor that shares their memory."""
    if len(parameters) == 1:
        return parameters[0].detach()
    first = parameters[0].data
    # Already next to one another (a second cache of the same model)? Then nothing is moved.
    step = first.data_ptr()
    lies_together = True
    for parameter in parameters:
        lies_together &= parameter.data_ptr() == step and parameter.is_contiguous()
        lies_together &= parameter.data.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        step += parameter.numel() * parameter.element_size()
    # One new block for all, of which the parameters become views; their old memory is freed.
    rows = sum(parameter.shape[0] for parameter in parameters)
    if not lies_together:
        whole = torch.cat([parameter.data for parameter in parameters])
        for parameter, part in zip(parameters, whole.split([p.shape[0] for p in parameters]), strict=True):
            parameter.data = part
        return whole
    return first.as_strided((rows, *first.shape[1:]), first.stride())
