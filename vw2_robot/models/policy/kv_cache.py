"""Key-value caches for decoding: one written for Llama-shaped models, and that of transformers for all others.

Place in the flow: under `backbone.py`; used by `LatentPolicy.decode` and never in training. A model of a few million
parameters spends most of a token's time in the bookkeeping of transformers (masks, cache objects, output classes), not
in arithmetic. `StaticCache` runs the layers of Llama, Mistral, Qwen2 and Qwen3 itself: memory reserved once, rotations
prepared once, projections that read the same input done together (`llama_weights.py`), grouped queries without copies
of keys, of a prompt only what its last position needs, and of an instruction that was read before nothing at all.

Both caches give the last position's state after the final norm, equal to the model's own forward pass up to float
rounding (tested to 2e-6).
"""

# B batch · S new positions · t positions so far · C most positions · E head width · D width
from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .llama_weights import LayerWeights, LlamaWeights

# Instructions remembered per model, the latest ones.
MOST_WORDS = 32


class Cache(Protocol):
    """What has been read so far. `advance` appends positions and returns the state of the last one."""

    def advance(self, inputs: Tensor, *, mask: Tensor, positions: Tensor, **images: Tensor) -> Tensor:
        """Inputs [B, S, D] or token ids [B, S]; mask [B, t + S]; positions [B, S]. Returns [B, D]."""
        ...


class LibraryCache:
    """The cache of transformers, for any model."""

    def __init__(self, model: Any) -> None:
        from transformers import DynamicCache

        self._model, self._cache = model, DynamicCache()
        self._takes_positions = takes_positions(model)
        parameters = inspect.signature(model.forward).parameters
        self._name = "cache" if "cache" in parameters else "past_key_values"  # transformers renamed it in 5.24

    def advance(self, inputs: Tensor, *, mask: Tensor, positions: Tensor, **images: Tensor) -> Tensor:
        """One forward pass of the model over the new positions."""
        name = "inputs_embeds" if inputs.is_floating_point() else "input_ids"
        where = {"position_ids": positions} if self._takes_positions else {}
        out = self._model(
            **{name: inputs, self._name: self._cache},
            attention_mask=mask.long(),
            use_cache=True,
            **where,
            **images,
        )
        self._cache = getattr(out, self._name)
        last: Tensor = out.last_hidden_state[:, -1]
        return last


def takes_positions(model: Any) -> bool:
    """Whether position ids are ours to give; models with multi-axis positions work them out from the image grid."""
    return "position_ids" in inspect.signature(model.forward).parameters and not hasattr(model, "get_rope_index")


class StaticCache:
    """Keys and values of a Llama-shaped decoder in memory reserved once.

    Args:
        weights: the decoder.
        positions: [B, P], those of the prompt, left-padded.
        further: most positions that will follow it.
    """

    def __init__(self, weights: LlamaWeights, *, positions: Tensor, further: int) -> None:
        self._weights = weights
        self._length, self._begun = 0, False
        self._padding: Tensor | None = None
        batch, prompt = positions.shape
        self._capacity = prompt + further
        shape = (len(weights.layers), batch, 2 * weights.keys, self._capacity, weights.head_width)
        # Keys, then values. Zeros, since a place that is never filled is multiplied by a weight of 0.
        self._memory = weights.norm.new_zeros(shape)
        later = positions[:, -1:] + torch.arange(1, further + 1, device=positions.device)
        cos, sin = weights.rotary(weights.norm, torch.cat([positions, later], dim=1))  # [B, C, E]
        half = weights.head_width // 2
        # rotate_half(x) * sin == x with its halves swapped * sin with its first half negated
        self._cos, self._sin = cos[:, :, None], torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)[:, :, None]

    def recall(self, parts: Sequence[Tensor]) -> int:
        """Begin with what was read before: `memory` of one sequence per sample; returns how many positions that is.

        Shorter ones stand to the right, as prompts do.
        """
        longest = max(part.shape[2] for part in parts)
        for sample, part in enumerate(parts):
            self._memory[:, sample, :, longest - part.shape[2] : longest] = part
        self._length = longest
        return longest

    @property
    def memory(self) -> Tensor:
        """Keys and values of the first sample so far: [layers, 2 keys, t, E]."""
        return self._memory[:, 0, :, : self._length]

    @torch.no_grad()
    def advance(self, inputs: Tensor, *, mask: Tensor, positions: Tensor, **images: Tensor) -> Tensor:
        """Append S positions; `positions` were given to the constructor, and there are no `images`.

        Raises:
            ValueError: more positions than the memory was reserved for.
        """
        batch, count, _ = inputs.shape
        begin, end = self._length, self._length + count
        if end > self._capacity:
            raise ValueError(f"the cache was reserved for {self._capacity} positions, {end} were asked for")
        if not self._begun and not bool(mask.all()):  # the one look at its values: what follows a prompt is no padding
            self._padding = self._bias(F.pad(mask, (0, self._capacity - end), value=True))
        self._length, self._begun = end, True
        allowed = self._allowed(mask, begin, end)
        with torch.autocast(inputs.device.type, enabled=False):
            turn = self._turn(begin, end)
            x = inputs.float().flatten(0, 1)
            for number, (weights, memory) in enumerate(zip(self._weights.layers, self._memory.unbind(0), strict=True)):
                heads = self._project(weights, x, (batch, count), turn)
                memory[:, :, begin:end] = heads[:, :, self._weights.queries :].transpose(1, 2)
                q = heads[:, :, : self._weights.queries]
                if count > 1 and number == len(self._weights.layers) - 1:  # nothing reads the other positions any more
                    x, q = x.view(batch, count, -1)[:, -1], q[:, -1:]
                    allowed = (
                        None if allowed is None else allowed[:, :, -(self._weights.queries // self._weights.keys) :]
                    )
                mixed = self._attend(memory[:, :, :end], q, allowed)
                x = torch.addmm(x if weights.out_bias is None else x + weights.out_bias, mixed, weights.out)
                x = self._mlp(weights, x)
            return self._norm(x, self._weights.norm)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """RMSNorm in few steps: on a CPU, torch's own falls apart into more and slower ones."""
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x * torch.addcmul(self._weights.eps, length, length, value=1 / x.shape[-1]).rsqrt_() * weight

    def _turn(self, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """Factors of these positions for queries, keys and (1 and 0) values: [B, S, queries + 2 keys, E]."""
        cos, sin = self._cos[:, begin:end], self._sin[:, begin:end]
        turned, kept = (-1, -1, self._weights.queries + self._weights.keys, -1), (-1, -1, self._weights.keys, -1)
        return (
            torch.cat([cos.expand(turned), torch.ones_like(cos).expand(kept)], dim=2),
            torch.cat([sin.expand(turned), torch.zeros_like(sin).expand(kept)], dim=2),
        )

    def _project(self, weights: LayerWeights, x: Tensor, shape: tuple[int, int], turn: tuple[Tensor, Tensor]) -> Tensor:
        """Queries and keys, rotated, and values: [B, S, queries + 2 keys, E]."""
        h = self._norm(x, weights.norm_attention)
        out = h @ weights.qkv if weights.qkv_bias is None else torch.addmm(weights.qkv_bias, h, weights.qkv)
        heads = out.view(*shape, -1, self._weights.head_width)
        if weights.norm_q is not None and weights.norm_k is not None:
            q, k, v = heads.split([self._weights.queries, self._weights.keys, self._weights.keys], dim=2)
            heads = torch.cat([self._norm(q, weights.norm_q), self._norm(k, weights.norm_k), v], dim=2)
        first, second = heads.chunk(2, dim=-1)
        return torch.addcmul(heads * turn[0], torch.cat([second, first], dim=-1), turn[1])

    def _attend(self, memory: Tensor, q: Tensor, allowed: Tensor | None) -> Tensor:
        """[B * S, queries * E]. Queries that share a key head stand behind one another: no key is copied."""
        batch, count, _, width = q.shape
        keys, values = memory.split(self._weights.keys, dim=1)
        if count == 1:
            grouped = q.view(batch, self._weights.keys, -1, width)
            mixed = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=allowed, scale=self._weights.scale)
            return mixed.reshape(batch, -1)
        grouped = q.unflatten(2, (self._weights.keys, -1)).transpose(1, 2).flatten(2, 3)
        mixed = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=allowed, scale=self._weights.scale)
        return mixed.unflatten(2, (count, -1)).transpose(1, 2).reshape(batch * count, -1)

    def _mlp(self, weights: LayerWeights, x: Tensor) -> Tensor:
        h = self._norm(x, weights.norm_mlp)
        both = h @ weights.gate_up
        if weights.gate_up_bias is not None:
            both = both + weights.gate_up_bias
        gate, up = both.chunk(2, dim=-1)
        residual = x if weights.down_bias is None else x + weights.down_bias
        return torch.addmm(residual, self._weights.activation(gate) * up, weights.down)

    def _allowed(self, mask: Tensor, begin: int, end: int) -> Tensor | None:
        """[B, 1, S * groups, t + S], 0 where a query may look and -inf elsewhere; None where all may look everywhere.

        Padding may look at itself, or its row of the softmax would be empty; nothing else looks at padding.
        """
        groups = self._weights.queries // self._weights.keys
        if end - begin == 1:
            return None if self._padding is None else self._padding[:, None, None, :end].expand(-1, -1, groups, -1)
        place = torch.arange(end, device=mask.device)
        rows = place[begin:, None]
        seen = mask[:, None] & (place <= rows)
        return self._bias(seen | (place == rows))[:, None].repeat_interleave(groups, dim=2)

    def _bias(self, seen: Tensor) -> Tensor:
        """What attention adds to its scores: numbers, since a mask of truths would be made into them in each layer."""
        return self._weights.norm.new_zeros(seen.shape).masked_fill_(~seen, -torch.inf)


class InstructionCache:
    """What a decoder remembers of instructions that it has read: their keys and values, until its weights change.

    A policy looks at a new image every few steps and at the same words for a whole episode. Each instruction is read
    by itself, so that what is remembered does not depend on the batch it first came in.
    """

    def __init__(self, weights: LlamaWeights, embed: nn.Module) -> None:
        self.weights, self._embed = weights, embed
        self._version = -1
        self._known: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()

    @torch.no_grad()
    def of(self, words: tuple[int, ...]) -> Tensor:
        """[layers, 2 keys, len(words), E]."""
        version = self.weights.version + self._embed.weight._version
        if version != self._version:
            self._known.clear()
            self._version = int(version)
        if words not in self._known:
            tokens = torch.tensor([words], device=self.weights.norm.device)
            positions = torch.arange(len(words), device=tokens.device)[None]
            cache = StaticCache(self.weights, positions=positions, further=0)
            cache.advance(self._embed(tokens), mask=torch.ones_like(tokens).bool(), positions=positions)
            self._known[words] = cache.memory
            if len(self._known) > MOST_WORDS:
                self._known.popitem(last=False)
        self._known.move_to_end(words)
        return self._known[words]
