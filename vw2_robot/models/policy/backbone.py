"""A language model whose vocabulary is extended by the latent action tokens.

Place in the flow: under `ar_policy.py`. The embedded default is a small Llama built from a config through transformers
with a tokenizer of our own, so nothing has to be downloaded. With `weights` it is any `AutoModelForCausalLM`, or, for a
policy with `image: vlm`, any `AutoModelForImageTextToText`, from a folder or a hub id. Method specification 2.2 and
2.3; the vocabulary itself is in `vocabulary.py`. transformers is imported when a backbone is built, not before.
"""

# B batch · S sequence · D hidden width · V latent codes · L digits per code
from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vw2_robot.errors import InputError
from vw2_robot.limits import Count

from ..dldm.fsq import FSQ
from ..lora import LoRA, LoRAConfig
from .kv_cache import Cache, InstructionCache, LibraryCache, StaticCache, takes_positions
from .llama_weights import LlamaWeights, is_llama_shaped
from .pretrained import Kind, read_pretrained, rebuild_pretrained
from .vlm_images import VLMImages
from .vocabulary import TOKENIZERS, EmbeddedTokenizer, LatentInit, Tokenizer, embedding_tables, extend_vocabulary


@dataclass(frozen=True)
class BackboneConfig:
    """A Llama from numbers, or any model by name. Defaults: the embedded tiny model, about 1 M parameters."""

    hidden: Count = 128
    ffn: Count = 384
    layers: Count = 4
    heads: Count = 4
    kv_heads: Count = 2
    max_positions: Count = 1024
    tokenizer: Literal["words", "bytes"] = "words"
    """words: about 500 words of instructions for robots, the rest in bytes; bytes: any text, four times as long"""
    weights: str | None = None
    """folder or hub id of a transformers model with safetensors weights; the numbers above are then not used"""
    latent_init: LatentInit = "fsq"
    """new rows of codes: fsq, neighbors in the codebook start as neighbors; normal, independent"""
    pad_to_multiple_of: int = 1
    """round the embedding tables up to a multiple of this; the extra rows are never used"""
    train: Literal["full", "freeze_base", "lora"] = "full"
    """latent pre-training moves everything; the new rows alone; adapters and the new rows"""
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    """train=lora: size of the adapters"""

    def __post_init__(self) -> None:
        if self.hidden % self.heads or self.heads % self.kv_heads:
            raise ValueError(
                f"backbone: hidden ({self.hidden}) must be a multiple of heads ({self.heads}), "
                f"and heads a multiple of kv_heads ({self.kv_heads})"
            )
        if self.pad_to_multiple_of < 1:
            raise ValueError(f"backbone.pad_to_multiple_of must be at least 1, found {self.pad_to_multiple_of}")
        if self.train != "full" and self.weights is None:
            raise ValueError(
                f"backbone.train={self.train} keeps the base model as it is, but the embedded one begins untrained; "
                "set backbone.weights, or train=full"
            )


class Backbone(nn.Module):
    """The extended language model behind three calls: `embed`, `hidden` and `latent_logits`.

    Args:
        config: what to build or load.
        fsq: the latent codes.
        generator: draws all random weights.
        image_fsq: the image tokens, if images are discrete tokens.
        kind: "image_text" for a model that sees images itself.
        description: content of a checkpoint's backbone.json; the network is then built from it and `config.weights`
            is not opened.

    Raises:
        InputError: `config.weights` cannot be loaded, or its logits are not made of its output embeddings in a way that
            we know.
    """

    def __init__(
        self,
        config: BackboneConfig,
        fsq: FSQ,
        *,
        generator: torch.Generator,
        image_fsq: FSQ | None = None,
        kind: Kind = "causal",
        description: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.description = description
        self.adapters: LoRA | None = None
        self._words: InstructionCache | None = None
        self.images: VLMImages | None = None
        self.tokenizer: Tokenizer
        self.model: Any
        if config.weights is None:
            self.tokenizer = own = TOKENIZERS[config.tokenizer]()
            self.model = _build_llama(config, own, generator)
        else:
            with torch.random.fork_rng(devices=[]):  # rebuilding fills the weights from the global generator
                found = rebuild_pretrained(description) if description else read_pretrained(config.weights, kind=kind)
            self.model, self.tokenizer, self.description = found.model, found.tokenizer, found.description
            if kind == "image_text":
                self.images = VLMImages(self.model, found.image_processor)
        if self.model.get_output_embeddings() is None:
            raise InputError(
                f"policy.backbone.weights={config.weights} has no output embeddings; give a language model"
            )
        self.vocabulary = extend_vocabulary(
            self.model,
            fsq,
            generator=generator,
            image_fsq=image_fsq,
            latent_init=config.latent_init,
            pad_to_multiple_of=config.pad_to_multiple_of,
        )
        if config.weights is not None:
            self.model.eval()
            self._check_head()
        if config.train != "full":
            self._keep_base(generator)

    @property
    def width(self) -> int:
        """D."""
        return int(self.model.get_input_embeddings().weight.shape[1])

    @property
    def max_positions(self) -> int | None:
        """Longest sequence that the model's positions allow; None where it names no limit."""
        found = getattr(self._text_config, "max_position_embeddings", None)
        return None if found is None else int(found)

    def embed(self, tokens: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch D"]:
        """Token ids -> embeddings."""
        out: Tensor = self.model.get_input_embeddings()(tokens)
        return out

    def hidden(
        self,
        inputs: Tensor,
        *,
        mask: Bool[Tensor, "B S"],
        positions: Int[Tensor, "B S"],
        images: Mapping[str, Tensor] | None = None,
    ) -> Float[Tensor, "B S D"]:
        """Last-layer states after the final norm. `mask` is False on padding, `positions` count real tokens from 0.

        `inputs` are embeddings [B, S, D], or token ids [B, S] for a model that sees `images` itself.
        """
        if self.config.weights is None:
            _choose_attention(self.model, inputs.device)
        name = "inputs_embeds" if inputs.is_floating_point() else "input_ids"
        where = {"position_ids": positions} if takes_positions(self.model.base_model) else {}
        out = self.model.base_model(
            **{name: inputs}, attention_mask=mask.long(), use_cache=False, **where, **(images or {})
        )
        states: Tensor = out.last_hidden_state
        return states

    def new_cache(
        self, positions: Int[Tensor, "B P"], *, further: int, words: Sequence[tuple[int, ...]] = ()
    ) -> tuple[Cache, int]:
        """A cache for a prompt at these positions and `further` tokens after it, and how much of it was read before.

        `words` are the tokens that each sample begins with, known before the image is seen. They are remembered,
        except in training: the weights are new at every step there, and read one by one they take the longest.
        """
        decoder = self.model.base_model
        if self._words is None or not self._words.weights.is_current:
            if not is_llama_shaped(decoder):
                return LibraryCache(decoder), 0
            self._words = InstructionCache(LlamaWeights(decoder), self.model.get_input_embeddings())
        cache = StaticCache(self._words.weights, positions=positions, further=further)
        remembers = words and not self.training
        return cache, cache.recall([self._words.of(one) for one in words]) if remembers else 0

    def image_marks(self, tokens: Int[Tensor, "B S"]) -> dict[str, Tensor]:
        """Arguments that tell a vision-language model which of these tokens are image."""
        return {} if self.images is None else self.images.marks(tokens)

    def latent_logits(self, hidden: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch V"]:
        """Logits of the latent tokens alone: the restricted softmax of method 2.4, for training and inference alike."""
        return self.logits(hidden, *self.vocabulary.latent)

    def logits(self, hidden: Float[Tensor, "*batch D"], first: int = 0, end: int | None = None) -> Tensor:
        """Logits of the tokens first .. end - 1; [*batch, end - first]."""
        head = self.model.get_output_embeddings()
        logits = hidden @ head.weight[first:end].T
        if getattr(head, "bias", None) is not None:
            logits = logits + head.bias[first:end]
        config = self._text_config
        if scale := getattr(config, "logit_scale", None):  # Cohere
            logits = logits * scale
        if divisor := getattr(config, "logits_scaling", None):  # Granite
            logits = logits / divisor
        if cap := getattr(config, "final_logit_softcapping", None):  # Gemma 2
            logits = torch.tanh(logits / cap) * cap
        return logits

    def merge_adapters(self) -> None:
        """Put the adapters into the weights of the layers they adapt, for good."""
        if self.adapters is not None:
            self.model, self.adapters = self.adapters.merged(self.model), None

    @property
    def _text_config(self) -> Any:
        config = self.model.config
        return config.get_text_config() if hasattr(config, "get_text_config") else config

    @torch.no_grad()
    def _check_head(self) -> None:
        """The states and logits that we compute must be those of the model itself."""
        tokens = torch.arange(3)[None]
        arguments = inspect.signature(self.model.base_model.forward).parameters
        if "inputs_embeds" not in arguments or "attention_mask" not in arguments:
            raise InputError(
                f"policy.backbone.weights={self.config.weights} is a {type(self.model).__name__}, which takes no "
                "embeddings or no attention mask; give a transformer"
            )
        ours = self.logits(self.hidden(self.embed(tokens), mask=torch.ones_like(tokens).bool(), positions=tokens))
        theirs = self.model(input_ids=tokens).logits
        if ours.shape != theirs.shape or not torch.allclose(ours, theirs, atol=1e-3, rtol=1e-3):
            raise InputError(
                f"policy.backbone.weights={self.config.weights} is a {type(self.model).__name__}, whose logits are not "
                "those of its output embeddings on its last states; such models are not supported"
            )

    def _keep_base(self, generator: torch.Generator) -> None:
        """Freeze what was loaded but for the new rows; with train=lora, adapt its linear layers."""
        self.model.requires_grad_(False)
        if self.config.train == "lora":
            output = self.model.get_output_embeddings()
            try:
                self.adapters = LoRA(self.model, self.config.lora, generator=generator, skip=(output,))
            except ValueError as error:
                raise InputError(f"policy.backbone.train=lora on a {type(self.model).__name__}: {error}") from error
        base = self.vocabulary.base
        for table in embedding_tables(self.model):
            table.requires_grad_(True)
            table.register_hook(lambda gradient: torch.cat([torch.zeros_like(gradient[:base]), gradient[base:]]))
            table.no_weight_decay = True  # type: ignore[attr-defined]  # AdamW's decay would move the old rows


def _choose_attention(model: Any, device: torch.device) -> None:
    """Written out on a CPU: torch's fused attention takes a third of a training step there in bf16, of 30 tokens."""
    wanted = "eager" if device.type == "cpu" else "sdpa"
    if model.config._attn_implementation != wanted:
        model.set_attn_implementation(wanted)


def _build_llama(config: BackboneConfig, tokenizer: EmbeddedTokenizer, generator: torch.Generator) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):  # transformers initializes from the global generator
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
