"""Key-value caches for decoding: one written for Llama-shaped models, and that of transformers for all others.

Place in the flow: under `backbone.py`; used by `LatentPolicy.decode` and never in training. A model of a few million
parameters spends most of a token's time in the bookkeeping of transformers (masks, cache objects, output classes), not
in arithmetic. `StaticCache` runs the layers of Llama, Mistral, Qwen2 and Qwen3 itself: memory reserved once, rotations
prepared once, projections that read the same input done together, grouped queries without copies of keys, and of a
prompt only what its last position needs.

Both caches give the last position's state after the final norm, equal to the model's own forward pass up to float
rounding (tested to 2e-6).
"""

# B batch · S new positions · t positions so far · C most positions · E head width · D width
from __future__ import annotations

import inspect
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Models of exactly this shape: pre-norm layers with RMSNorm, rotary positions, gated MLP, causal attention over all.
LLAMA_SHAPED = ("llama", "mistral", "qwen2", "qwen3")


class Cache(Protocol):
    """What has been read so far. `advance` appends positions and returns the state of the last one."""

    def advance(self, inputs: Tensor, *, mask: Tensor, positions: Tensor, **pictures: Tensor) -> Tensor:
        """Inputs [B, S, D] or token ids [B, S]; mask [B, t + S]; positions [B, S]. Returns [B, D]."""
        ...


def is_llama_shaped(decoder: nn.Module) -> bool:
    """Whether `StaticCache` can run this decoder: the right kind of layers, in float32, without adapters hooked on."""
    config: Any = getattr(decoder, "config", None)
    if getattr(config, "model_type", None) not in LLAMA_SHAPED:
        return False
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    # mistral has a window whenever it is set; qwen only with the switch
    window = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    dynamic = rope.get("rope_type", rope.get("type", "default")) in ("dynamic", "longrope")
    plain = all(
        not m._forward_hooks and p.dtype == torch.float32 for m in decoder.modules() for p in m.parameters(False)
    )
    return kinds == {"full_attention"} and not window and not dynamic and plain


class LibraryCache:
    """The cache of transformers, for any model."""

    def __init__(self, model: Any) -> None:
        from transformers import DynamicCache

        self._model, self._cache = model, DynamicCache()
        self._takes_positions = takes_positions(model)

    def advance(self, inputs: Tensor, *, mask: Tensor, positions: Tensor, **pictures: Tensor) -> Tensor:
        """One forward pass of the model over the new positions."""
        name = "inputs_embeds" if inputs.is_floating_point() else "input_ids"
        where = {"position_ids": positions} if self._takes_positions else {}
        out = self._model(
            **{name: inputs},
            attention_mask=mask.long(),
            past_key_values=self._cache,
            use_cache=True,
            **where,
            **pictures,
        )
        self._cache = out.past_key_values
        last: Tensor = out.last_hidden_state[:, -1]
        return last


def takes_positions(model: Any) -> bool:
    """Whether position ids are ours to give; models with multi-axis positions work them out from the picture grid."""
    return "position_ids" in inspect.signature(model.forward).parameters and not hasattr(model, "get_rope_index")


class _Layer(NamedTuple):
    """The weights of one layer, matrices transposed. Views of the model's own: they follow every update of it."""

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


class StaticCache:
    """Keys and values of a Llama-shaped decoder in memory reserved once.

    The weights of projections that read the same input are moved next to one another in memory the first time, so that
    one product serves all; the parameters stay the model's own, as views.

    Args:
        decoder: the transformers model without its head (LlamaModel and the like).
        positions: [B, P], those of the prompt, left-padded.
        further: most positions that will follow it.
    """

    def __init__(self, decoder: Any, *, positions: Tensor, further: int) -> None:
        config = decoder.config
        self._layers = [_layer(layer) for layer in decoder.layers]
        self._activation = decoder.layers[0].mlp.act_fn
        self._final_norm = decoder.norm.weight.detach()
        self._length, self._padded = 0, True
        self._queries, self._keys = int(config.num_attention_heads), int(config.num_key_value_heads)
        self._width = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
        self._scale = float(decoder.layers[0].self_attn.scaling)
        self._eps = self._final_norm.new_tensor(float(config.rms_norm_eps))
        batch, prompt = positions.shape
        self._capacity = prompt + further
        shape = (len(self._layers), batch, 2 * self._keys, self._capacity, self._width)
        self._memory = self._final_norm.new_empty(shape).unbind(0)  # keys, then values
        later = positions[:, -1:] + torch.arange(1, further + 1, device=positions.device)
        cos, sin = decoder.rotary_emb(self._final_norm, torch.cat([positions, later], dim=1))  # [B, C, E]
        half = self._width // 2
        # rotate_half(x) * sin == x with its halves swapped * sin with its first half negated
        self._cos, self._sin = cos[:, :, None], torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)[:, :, None]

    @torch.no_grad()
    def advance(self, inputs: Tensor, *, mask: Tensor, positions: Tensor, **pictures: Tensor) -> Tensor:
        """Append S positions; `positions` were given to the constructor, and there are no `pictures`.

        Raises:
            ValueError: more positions than the memory was reserved for.
        """
        batch, count, _ = inputs.shape
        begin, end = self._length, self._length + count
        if end > self._capacity:
            raise ValueError(f"the cache was reserved for {self._capacity} positions, {end} were asked for")
        if begin == 0:  # the one look at the mask's values; what follows the prompt is no padding
            self._padded = not bool(mask.all())
        self._length = end
        allowed = self._allowed(mask, begin, end)
        with torch.autocast(inputs.device.type, enabled=False):
            turn = self._turn(begin, end)
            x = inputs.float().flatten(0, 1)
            for number, (weights, memory) in enumerate(zip(self._layers, self._memory, strict=True)):
                heads = self._project(weights, x, (batch, count), turn)
                memory[:, :, begin:end] = heads[:, :, self._queries :].transpose(1, 2)
                q = heads[:, :, : self._queries]
                if count > 1 and number == len(self._layers) - 1:  # nothing reads the other positions any more
                    x, q = x.view(batch, count, -1)[:, -1], q[:, -1:]
                    allowed = None if allowed is None else allowed[:, :, -(self._queries // self._keys) :]
                mixed = self._attend(memory[:, :, :end], q, allowed)
                x = torch.addmm(x if weights.out_bias is None else x + weights.out_bias, mixed, weights.out)
                x = self._mlp(weights, x)
            return self._norm(x, self._final_norm)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """RMSNorm in few steps: on a CPU, torch's own falls apart into more and slower ones."""
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x * torch.addcmul(self._eps, length, length, value=1 / x.shape[-1]).rsqrt_() * weight

    def _turn(self, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """Factors of these positions for queries, keys and (1 and 0) values: [B, S, queries + 2 keys, E]."""
        cos, sin = self._cos[:, begin:end], self._sin[:, begin:end]
        turned, kept = (-1, -1, self._queries + self._keys, -1), (-1, -1, self._keys, -1)
        return (
            torch.cat([cos.expand(turned), torch.ones_like(cos).expand(kept)], dim=2),
            torch.cat([sin.expand(turned), torch.zeros_like(sin).expand(kept)], dim=2),
        )

    def _project(self, weights: _Layer, x: Tensor, shape: tuple[int, int], turn: tuple[Tensor, Tensor]) -> Tensor:
        """Queries and keys, rotated, and values: [B, S, queries + 2 keys, E]."""
        h = self._norm(x, weights.norm_attention)
        out = h @ weights.qkv if weights.qkv_bias is None else torch.addmm(weights.qkv_bias, h, weights.qkv)
        heads = out.view(*shape, -1, self._width)
        if weights.norm_q is not None and weights.norm_k is not None:
            q, k, v = heads.split([self._queries, self._keys, self._keys], dim=2)
            heads = torch.cat([self._norm(q, weights.norm_q), self._norm(k, weights.norm_k), v], dim=2)
        first, second = heads.chunk(2, dim=-1)
        return torch.addcmul(heads * turn[0], torch.cat([second, first], dim=-1), turn[1])

    def _attend(self, memory: Tensor, q: Tensor, allowed: Tensor | None) -> Tensor:
        """[B * S, queries * E]. Queries that share a key head stand behind one another: no key is copied."""
        batch, count, _, width = q.shape
        keys, values = memory.split(self._keys, dim=1)
        if count == 1:
            grouped = q.view(batch, self._keys, -1, width)
            mixed = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=allowed, scale=self._scale)
            return mixed.reshape(batch, -1)
        grouped = q.unflatten(2, (self._keys, -1)).transpose(1, 2).flatten(2, 3)
        mixed = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=allowed, scale=self._scale)
        return mixed.unflatten(2, (count, -1)).transpose(1, 2).reshape(batch * count, -1)

    def _mlp(self, weights: _Layer, x: Tensor) -> Tensor:
        h = self._norm(x, weights.norm_mlp)
        both = h @ weights.gate_up
        if weights.gate_up_bias is not None:
            both = both + weights.gate_up_bias
        gate, up = both.chunk(2, dim=-1)
        residual = x if weights.down_bias is None else x + weights.down_bias
        return torch.addmm(residual, self._activation(gate) * up, weights.down)

    def _allowed(self, mask: Tensor, begin: int, end: int) -> Tensor | None:
        """[B, 1, S * groups, t + S], True where a query may look; None where one new position may look everywhere.

        Padding may look at itself, or its row of the softmax would be empty; nothing else looks at padding.
        """
        groups = self._queries // self._keys
        if end - begin == 1:
            return mask[:, None, None].expand(-1, -1, groups, -1) if self._padded else None
        place = torch.arange(end, device=mask.device)
        rows = place[begin:, None]
        seen = mask[:, None] & (place <= rows)
        return (seen | (place == rows))[:, None].repeat_interleave(groups, dim=2)


def _layer(layer: Any) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    qkv, qkv_bias = _side_by_side([attention.q_proj, attention.k_proj, attention.v_proj])
    gate_up, gate_up_bias = _side_by_side([mlp.gate_proj, mlp.up_proj])
    out, out_bias = _side_by_side([attention.o_proj])
    down, down_bias = _side_by_side([mlp.down_proj])
    norm_q, norm_k = (getattr(attention, name, None) for name in ("q_norm", "k_norm"))
    return _Layer(
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


def _side_by_side(linears: list[Any]) -> tuple[Tensor, Tensor | None]:
    """The weights of linear layers as one matrix [in, out], and their biases; moved together where they are not."""
    bias = None if linears[0].bias is None else _adjacent([linear.bias for linear in linears])
    return _adjacent([linear.weight for linear in linears]).T, bias


def _adjacent(parameters: list[nn.Parameter]) -> Tensor:
    """The parameters stacked along their first axis, as one tensor that shares their memory."""
    if len(parameters) == 1:
        return parameters[0].detach()
    first = parameters[0].data
    step, lies_together = first.data_ptr(), True
    for parameter in parameters:
        lies_together &= parameter.data_ptr() == step and parameter.is_contiguous()
        lies_together &= parameter.data.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        step += parameter.numel() * parameter.element_size()
    rows = sum(parameter.shape[0] for parameter in parameters)
    if not lies_together:
        whole = torch.cat([parameter.data for parameter in parameters])
        for parameter, part in zip(parameters, whole.split([p.shape[0] for p in parameters]), strict=True):
            parameter.data = part
        return whole
    return first.as_strided((rows, *first.shape[1:]), first.stride())
