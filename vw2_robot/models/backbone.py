"""A language model whose vocabulary is extended by the latent action tokens.

Place in the flow: under `ar_policy.py`. The embedded default is a small Llama built from a config through transformers
with a byte tokenizer, so nothing has to be downloaded. Method specification 2.2 and 2.3. New rows come after the old
ones and the old rows stay bit-equal: `<lat> </lat> <img> </img> <instr> </instr>`, then the V latent tokens, last and
contiguous. transformers is imported when a backbone is built, not with this module.
"""

# B batch · S sequence · D hidden width · V latent codes · L digits per code
from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .fsq import FSQ

SPECIAL_TOKENS = ("<lat>", "</lat>", "<img>", "</img>", "<instr>", "</instr>")
# Size of the random spread of new rows around the mean of the old ones (method 2.3).
NEW_ROW_STD = 0.02


@dataclass(frozen=True)
class BackboneConfig:
    """A Llama from numbers. Defaults: the embedded tiny model, about 1 M parameters."""

    hidden: int = 128
    ffn: int = 384
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    max_positions: int = 1024

    def __post_init__(self) -> None:
        if self.hidden % self.heads or self.heads % self.kv_heads:
            raise ValueError(
                f"backbone: hidden ({self.hidden}) must be a multiple of heads ({self.heads}), "
                f"and heads a multiple of kv_heads ({self.kv_heads})"
            )


class ByteTokenizer:
    """UTF-8 bytes as tokens 0..255, then pad, bos, eos, unk. Needs no file and knows every language."""

    pad, bos, eos, unk = 256, 257, 258, 259
    size = 260

    def encode(self, text: str, *, limit: int) -> list[int]:
        """The first `limit` bytes of the lower-cased, stripped text."""
        return list(text.strip().lower().encode("utf-8")[:limit])


@dataclass(frozen=True)
class Vocabulary:
    """Where each kind of token lies in the extended vocabulary (saved as tokens.json)."""

    base: int
    special: dict[str, int]
    latent: tuple[int, int]
    """first latent token, one past the last"""
    levels: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values for tokens.json."""
        return asdict(self) | {"latent": list(self.latent), "levels": list(self.levels)}


def extend_vocabulary(model: nn.Module, fsq: FSQ, *, generator: torch.Generator) -> Vocabulary:
    """Append the special and the latent tokens to a transformers model; old rows and old logits stay bit-equal.

    Latent rows start FSQ-aware: mean of the old rows plus a random linear map of the code plus a little noise, so that
    neighbours among the codes start as neighbours. Input and (untied) output embeddings get the same treatment.
    """
    old = model.get_input_embeddings()  # type: ignore[operator]
    base = int(old.weight.shape[0])
    count = len(SPECIAL_TOKENS) + fsq.vocabulary
    # mean_resizing=True would give a thousand near-identical rows (std 0.001) at the price of a covariance.
    with torch.random.fork_rng(devices=[]):  # it fills the new rows from the global generator; they are set below
        model.resize_token_embeddings(base + count, mean_resizing=False)  # type: ignore[operator]
    inputs = model.get_input_embeddings().weight  # type: ignore[operator]
    outputs = model.get_output_embeddings().weight  # type: ignore[operator]
    tables = [inputs] if outputs is inputs else [inputs, outputs]
    first = base + len(SPECIAL_TOKENS)
    codes = fsq.codes_of(torch.arange(fsq.vocabulary))
    with torch.no_grad():
        for table in tables:
            width = table.shape[1]
            mean = table[:base].mean(dim=0)
            mixing = torch.randn(codes.shape[1], width, generator=generator)
            noise = torch.randn(count, width, generator=generator)
            table[base:first] = mean + NEW_ROW_STD * noise[: len(SPECIAL_TOKENS)]
            table[first:] = mean + NEW_ROW_STD * (codes @ mixing + 0.25 * noise[len(SPECIAL_TOKENS) :])
    special = {token: base + i for i, token in enumerate(SPECIAL_TOKENS)}
    return Vocabulary(base, special, (first, first + fsq.vocabulary), fsq.levels)


class Backbone(nn.Module):
    """The extended language model behind two calls: `embed` and `hidden`. Logits are taken by the policy."""

    def __init__(self, config: BackboneConfig, fsq: FSQ, *, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = ByteTokenizer()
        self.model = _build_llama(config, self.tokenizer, generator)
        self.vocabulary = extend_vocabulary(self.model, fsq, generator=generator)

    @property
    def width(self) -> int:
        """D."""
        return self.config.hidden

    def embed(self, tokens: Tensor) -> Float[Tensor, "B S D"]:
        """Token ids -> embeddings."""
        out: Tensor = self.model.get_input_embeddings()(tokens)  # type: ignore[operator]
        return out

    def hidden(
        self, embeddings: Float[Tensor, "B S D"], *, mask: Tensor, positions: Tensor, cache: Any = None
    ) -> tuple[Float[Tensor, "B S D"], Any]:
        """Last-layer states after the final norm, and the key-value cache extended by these positions.

        `mask` is [B, past + S], False on padding. Pass `cache=None` for a plain forward pass, `new_cache()` to start
        one.
        """
        out = self.model.model(  # type: ignore[operator]
            inputs_embeds=embeddings,
            attention_mask=mask.long(),
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return out.last_hidden_state, out.past_key_values

    def new_cache(self) -> Any:
        """An empty key-value cache."""
        from transformers import DynamicCache

        return DynamicCache()

    def latent_logits(self, hidden: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch V"]:
        """Logits of the latent tokens alone: the restricted softmax of method 2.4, for training and inference alike."""
        first, end = self.vocabulary.latent
        weight = self.model.get_output_embeddings().weight[first:end]  # type: ignore[operator]
        return hidden @ weight.T


def _build_llama(config: BackboneConfig, tokenizer: ByteTokenizer, generator: torch.Generator) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):  # transformers initialises from the global generator
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        model: nn.Module = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=tokenizer.size,
                hidden_size=config.hidden,
                intermediate_size=config.ffn,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                num_key_value_heads=config.kv_heads,
                max_position_embeddings=config.max_positions,
                tie_word_embeddings=False,
                pad_token_id=tokenizer.pad,
                bos_token_id=tokenizer.bos,
                eos_token_id=tokenizer.eos,
            )
        )
    return model
