"""Key-value caches for decoding: one for Llama-shaped models, and that of transformers for all others.

Place in the flow: under `backbone.py`; used by `LatentPolicy.decode` and never in training. A model of a few million
parameters spends most of a token's time in the bookkeeping of transformers (masks, cache objects, output classes), not
in arithmetic. `StaticCache` runs the layers of Llama, Mistral, Qwen2 and Qwen3 itself. What makes it fast: memory is
reserved and rotary factors are computed once; projections of the same input are one product (`llama_weights.py`);
grouped queries need no copies of keys; the last layer computes the last position alone; and an instruction that was
read before is taken from the instruction cache.

Both caches give the last position's state after the final norm, equal to the model's own forward pass up to float
rounding (tested to 2e-6).
"""

# B batch · S new positions · t positions so far · C capacity · E head width · D width
# queries, keys: numbers of heads
from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..precision import at_least_float32
from .llama_weights import LayerWeights, LlamaWeights

# Instructions whose keys and values are kept per model, the latest ones.
MAX_INSTRUCTIONS = 32


class Cache(Protocol):
    """The keys and values of what a model has read so far."""

    def advance(self, inputs: Tensor, *, mask: Tensor, positions: Tensor, **images: Tensor) -> Tensor:
        """Append positions and return the state of the last one, [B, D].

        Args:
            inputs: embeddings [B, S, D], or token ids [B, S].
            mask: [B, t + S] or longer, False on padding; what lies beyond t + S does not count.
            positions: [B, S], real tokens count from 0.
            images: image tensors of a vision-language model.
        """
        ...


class LibraryCache:
    """The cache of transformers, for any model."""

    def __init__(self, model: Any) -> None:
        from transformers import DynamicCache

        self._model = model
        self._length = 0
        self._cache = DynamicCache()
        self._takes_positions = takes_positions(model)
        parameters = inspect.signature(model.forward).parameters
        self._name = "cache" if "cache" in parameters else "past_key_values"  # transformers renamed it in 5.24

    def advance(self, inputs: Tensor, *, mask: Tensor, positions: Tensor, **images: Tensor) -> Tensor:
        """Run the model's forward pass over the new positions; see `Cache.advance`.

        Args:
            inputs: embeddings [B, S, D], or token ids [B, S].
            mask: [B, t + S] or longer, False on padding; cut, since this cache grows with every call.
            positions: position ids [B, S], real tokens count from 0; passed on only if the model takes them.
            images: image tensors of a vision-language model, passed on by name.

        Returns:
            The state of the last position, [B, D].
        """
        name = "inputs_embeds" if inputs.is_floating_point() else "input_ids"
        where = {"position_ids": positions} if self._takes_positions else {}
        self._length += inputs.shape[1]
        out = self._model(
            **{name: inputs, self._name: self._cache},
            attention_mask=mask[:, : self._length].long(),
            use_cache=True,
            **where,
            **images,
        )
        self._cache = getattr(out, self._name)
        last: Tensor = out.last_hidden_state[:, -1]
        return last


def takes_positions(model: Any) -> bool:
    """Return whether a model takes position ids; those with multi-axis positions derive them from the image grid."""
    return "position_ids" in inspect.signature(model.forward).parameters and not hasattr(model, "get_rope_index")


class StaticCache:
    """Keys and values of a Llama-shaped decoder in memory reserved once.

    Args:
        weights: of the decoder.
        positions: [B, P], those of the prompt, padded on the left.
        further: most positions that will follow the prompt.
        fixed_shape: let every later token attend to all places that were reserved, those beyond it masked, so that one
            CUDA graph fits all tokens; None: except on a CPU, where that takes 5 % longer.
    """

    def __init__(
        self, weights: LlamaWeights, *, positions: Tensor, further: int, fixed_shape: bool | None = None
    ) -> None:
        self._weights = weights
        self._length = 0
        self._begun = False
        self._fixed_shape = weights.norm.device.type != "cpu" if fixed_shape is None else fixed_shape
        self._later: Tensor | None = None
        batch, prompt = positions.shape
        self._capacity = prompt + further
        shape = (len(weights.layers), batch, 2 * weights.keys, self._capacity, weights.head_width)
        # Keys, then values. Zeros, since a place that is never filled is multiplied by a weight of 0.
        self._memory = weights.norm.new_zeros(shape)
        later = positions[:, -1:] + torch.arange(1, further + 1, device=positions.device)
        cos, sin = weights.rotary(weights.norm, torch.cat([positions, later], dim=1))  # [B, C, E]
        half = weights.head_width // 2
        # rotate_half(x) * sin == x with its halves swapped * sin with its first half negated
        self._cos = cos[:, :, None]
        self._sin = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)[:, :, None]

    def prefill(self, parts: Sequence[Tensor]) -> int:
        """Fill the cache with `memory` of one sequence per sample, and return the number of positions filled.

        Shorter sequences stand to the right, as prompts do.
        """
        longest = max(part.shape[2] for part in parts)
        for sample, part in enumerate(parts):
            self._memory[:, sample, :, longest - part.shape[2] : longest] = part
        self._length = longest
        return longest

    @property
    def memory(self) -> Tensor:
        """Return keys and values of the first sample so far: [layers, 2 keys, t, E]."""
        return self._memory[:, 0, :, : self._length]

    @torch.no_grad()
    def advance(self, inputs: Tensor, *, mask: Tensor, positions: Tensor, **images: Tensor) -> Tensor:
        """Append S positions and return the state of the last one.

        Args:
            inputs: embeddings [B, S, D].
            mask: [B, t + S] or longer, False on padding; read in the first call alone, nothing after it is padding.
            positions: [B, S], those of the constructor or the ones that follow; not read here.
            images: not used by a model without images.

        Returns:
            The state of the last position after the final norm, float32 [B, D].

        Raises:
            ValueError: more positions than the memory was reserved for.
        """
        batch, count, _ = inputs.shape
        begin = self._length
        end = begin + count
        queries = self._weights.queries
        keys = self._weights.keys
        if end > self._capacity:
            raise ValueError(f"the cache was reserved for {self._capacity} positions, {end} were asked for")
        read = end
        if not self._begun:
            self._begin(mask[:, :end])
        if count > 1:
            bias = self._attention_bias(mask[:, :end], begin, end)
        else:
            bias = self._later
            if bias is not None and self._fixed_shape:
                bias[..., begin] = 0.0
                read = self._capacity
            elif bias is not None:
                bias = bias[..., :end]
        self._length = end
        with torch.autocast(inputs.device.type, enabled=False):
            cos = self._cos[:, begin:end]
            sin = self._sin[:, begin:end]
            # Views of every layer's memory, made for all layers at once: what is filled now, and what is read.
            new_keys, new_values = self._keys_and_values(begin, end)
            all_keys, all_values = self._keys_and_values(0, read)
            x = at_least_float32(inputs).flatten(0, 1)
            for number, layer in enumerate(self._weights.layers):
                # 1. Queries, keys and values; keys and values go into the memory.
                heads = F.linear(self._rms_norm(x, layer.norm_attention), layer.qkv, layer.qkv_bias)
                qk, v = heads.view(batch, count, -1, cos.shape[-1]).split([queries + keys, keys], dim=2)
                q, k = self._rotated(layer, qk, cos, sin).split([queries, keys], dim=2)
                new_keys[number].copy_(k.transpose(1, 2))
                new_values[number].copy_(v.transpose(1, 2))
                # 2. In the last layer nothing reads the other positions any more.
                if count > 1 and number == len(self._weights.layers) - 1:
                    x = x.view(batch, count, -1)[:, -1]
                    q = q[:, -1:]
                    bias = None if bias is None else bias[:, :, -(queries // keys) :]
                # 3. Attention and its output projection, added to the residual stream.
                mixed = self._attend(q, all_keys[number], all_values[number], bias)
                x = F.linear(mixed, layer.out, layer.out_bias).add_(x)
                # 4. The gated MLP, both of its input projections as one product.
                gate_up = F.linear(self._rms_norm(x, layer.norm_mlp), layer.gate_up, layer.gate_up_bias)
                gate, up = gate_up.chunk(2, dim=-1)
                x = F.linear(self._weights.activation(gate).mul_(up), layer.down, layer.down_bias).add_(x)
            return self._rms_norm(x, self._weights.norm)

    def _rms_norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return RMSNorm in few operations: on a CPU, torch's own is made of more and slower ones."""
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        factor = torch.addcmul(self._weights.eps, length, length, value=1 / x.shape[-1]).rsqrt_()
        return (x * factor).mul_(weight)

    def _keys_and_values(self, begin: int, end: int) -> tuple[tuple[Tensor, ...], ...]:
        """Return some positions of the keys and of the values of each layer, views [B, keys, end - begin, E]."""
        parts = self._memory[:, :, :, begin:end].split(self._weights.keys, dim=2)
        return tuple(part.unbind(0) for part in parts)

    def _rotated(self, layer: LayerWeights, qk: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Return queries and keys [B, S, queries + keys, E] rotated by their positions."""
        if layer.norm_q is not None and layer.norm_k is not None:  # Qwen3
            q, k = qk.split([self._weights.queries, self._weights.keys], dim=2)
            qk = torch.cat([self._rms_norm(q, layer.norm_q), self._rms_norm(k, layer.norm_k)], dim=2)
        return torch.addcmul(qk * cos, qk.roll(qk.shape[-1] // 2, -1), sin)

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        """Return attended values [B * S, queries * E].

        Queries that share a key head are stacked along the positions, so that no key is copied.

        Args:
            q: [B, S, queries, E].
            keys: [B, keys, t, E].
            values: like the keys.
            bias: [B, 1, S * groups, t]; None where nothing is masked.
        """
        batch, count, _, width = q.shape
        if count == 1:
            grouped = q.view(batch, self._weights.keys, -1, width)
        else:
            grouped = q.unflatten(2, (self._weights.keys, -1)).transpose(1, 2).flatten(2, 3)
        mixed = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=bias, scale=self._weights.scale)
        if count == 1:
            return mixed.reshape(batch, -1)
        return mixed.unflatten(2, (count, -1)).transpose(1, 2).reshape(batch * count, -1)

    def _begin(self, mask: Tensor) -> None:
        """Take over where the prompt is padded, from its mask [B, t]: later tokens attend to everything else."""
        self._begun = True
        # The mask's values are read once, and only where that saves a mask: on a GPU it would wait for the device.
        if not self._fixed_shape and bool(mask.all()):
            return
        groups = self._weights.queries // self._weights.keys
        # With a fixed shape, later places are opened one by one; else what is read ends at the present one.
        seen = F.pad(mask, (0, self._capacity - mask.shape[1]), value=not self._fixed_shape)
        bias = self._weights.norm.new_zeros(seen.shape).masked_fill_(~seen, -torch.inf)
        self._later = bias[:, None, None].repeat(1, 1, groups, 1)

    def _attention_bias(self, mask: Tensor, begin: int, end: int) -> Tensor | None:
        """Return the causal mask as a bias [B, 1, S * groups, t + S]; None where nothing is masked.

        Padding attends to itself, or its row of the softmax would be empty; nothing else attends to padding.
        """
        groups = self._weights.queries // self._weights.keys
        place = torch.arange(end, device=mask.device)
        rows = place[begin:, None]
        seen = mask[:, None] & (place <= rows)
        seen = seen | (place == rows)
        # Numbers, since a boolean mask would be converted to them in every layer.
        bias = self._weights.norm.new_zeros(seen.shape).masked_fill_(~seen, -torch.inf)
        return bias[:, None].repeat_interleave(groups, dim=2)


class InstructionCache:
    """The keys and values of instructions that a decoder has read, kept until its weights change.

    A policy gets a new image every few steps and the same instruction for a whole episode. Each instruction is read
    by itself, so that the cached values do not depend on the batch in which it first appeared.
    """

    def __init__(self, weights: LlamaWeights, embed: nn.Module) -> None:
        self.weights = weights
        self._embed = embed
        self._version = -1
        self._known: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()

    @torch.no_grad()
    def keys_and_values(self, instruction: tuple[int, ...]) -> Tensor:
        """Return keys and values of an instruction's tokens: [layers, 2 keys, number of tokens, E]."""
        version = self.weights.version + self._embed.weight._version
        if version != self._version:
            self._known.clear()
            self._version = int(version)
        if instruction not in self._known:
            tokens = torch.tensor([instruction], device=self.weights.norm.device)
            positions = torch.arange(len(instruction), device=tokens.device)[None]
            cache = StaticCache(self.weights, positions=positions, further=0)
            cache.advance(self._embed(tokens), mask=torch.ones_like(tokens).bool(), positions=positions)
            self._known[instruction] = cache.memory
            if len(self._known) > MAX_INSTRUCTIONS:
                self._known.popitem(last=False)
        self._known.move_to_end(instruction)
        return self._known[instruction]
