"""The backbone of the AR policy: a language model whose vocabulary is extended by the latent action tokens.

Place in the flow: under `ar_policy.py`. The embedded default is a small Llama that transformers builds from a config,
with a tokenizer of this package, so nothing has to be downloaded. With `weights` it is any `AutoModelForCausalLM`, or,
for a policy with `image: vlm`, any `AutoModelForImageTextToText`, from a folder or a hub id. The vocabulary is in
`vocabulary.py`. transformers is imported when a backbone is built, not before.
"""

# B batch · S sequence · R positions that are read · D hidden width · V latent codes
from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vw2_robot.errors import InputError

from ..dense import Dense
from ..dldm.fsq import FSQ
from ..lora import LoRA
from .config import BackboneConfig
from .kv_cache import Cache, InstructionCache, LibraryCache, StaticCache, takes_positions
from .llama_weights import LlamaWeights, is_llama_shaped
from .pretrained import Kind, read_pretrained, rebuild_pretrained
from .vlm_images import VLMImages
from .vocabulary import TOKENIZERS, EmbeddedTokenizer, Tokenizer, embedding_tables, extend_vocabulary


class Backbone(nn.Module):
    """The extended language model, used by three methods: `embed`, `hidden` and `latent_logits`.

    Args:
        config: what to build or load.
        fsq: the latent codes.
        generator: on the CPU; gives all random weights.
        image_fsq: the image tokens, if images are discrete tokens.
        kind: "image_text" for a vision-language model.
        description: content of a checkpoint's backbone.json; the network is then built from it and `config.weights`
            is not opened.
        null_token: false for a checkpoint from before there was one.

    Raises:
        InputError: `config.weights` cannot be loaded, or its logits do not follow from its output embeddings in a way
            that is supported.
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
        null_token: bool = True,
    ) -> None:
        super().__init__()
        self.config = config
        self.description = description
        self.adapters: LoRA | None = None
        self._instruction_cache: InstructionCache | None = None
        self.images: VLMImages | None = None
        self.tokenizer: Tokenizer
        self.model: Any
        if config.weights is None:
            tokenizer = TOKENIZERS[config.tokenizer]()
            self.tokenizer = tokenizer
            self.model = _build_llama(config, tokenizer, generator)
        else:
            with torch.random.fork_rng(devices=[]):  # rebuilding fills the weights from the global generator
                found = rebuild_pretrained(description) if description else read_pretrained(config.weights, kind=kind)
            self.model = found.model
            self.tokenizer = found.tokenizer
            self.description = found.description
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
            null_token=null_token,
        )
        text = self._text_config  # looked up here: transformers takes longer for it than a token for its logits
        self._logit_scale = float(getattr(text, "logit_scale", None) or 1.0)  # Cohere
        self._logit_scale /= getattr(text, "logits_scaling", None) or 1.0  # Granite
        self._logit_cap = getattr(text, "final_logit_softcapping", None)  # Gemma 2
        if config.weights is not None:
            self.model.eval()
            self._check_head()
        if config.train != "full":
            self._keep_base(generator)

    @property
    def width(self) -> int:
        """Return D, the hidden width."""
        return int(self.model.get_input_embeddings().weight.shape[1])

    @property
    def max_positions(self) -> int | None:
        """Return the longest sequence that the model's positions allow; None where it names no limit."""
        found = getattr(self._text_config, "max_position_embeddings", None)
        return None if found is None else int(found)

    def embed(self, tokens: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch D"]:
        """Return the input embeddings of token ids."""
        out: Tensor = self.model.get_input_embeddings()(tokens)
        return out

    def hidden(
        self,
        inputs: Tensor,
        *,
        mask: Bool[Tensor, "B S"],
        positions: Int[Tensor, "B S"],
        images: Mapping[str, Tensor] | None = None,
        last: int | None = None,
    ) -> Float[Tensor, "B R D"]:
        """Return last-layer states after the final norm.

        Args:
            inputs: embeddings [B, S, D], or token ids [B, S] for a vision-language model.
            mask: False on padding.
            positions: count real tokens from 0.
            images: image tensors of a vision-language model.
            last: R, positions at the end whose states are wanted; None: all.
        """
        more: dict[str, Any] = dict(images or {})
        if takes_positions(self.model.base_model):
            more["position_ids"] = positions
        if self.config.weights is None:
            more["last"] = last  # see `LastLayer`
            # Written out on a CPU: torch's fused attention takes a third of a training step of 30 tokens in bf16 there.
            # Not in float64: there transformers computes the softmax in float32 all the same.
            written_out = inputs.device.type == "cpu" and inputs.dtype != torch.float64
            attention = "eager" if written_out else "sdpa"
            if self.model.config._attn_implementation != attention:
                self.model.set_attn_implementation(attention)
        name = "inputs_embeds" if inputs.is_floating_point() else "input_ids"
        out = self.model.base_model(**{name: inputs}, attention_mask=mask.long(), use_cache=False, **more)
        states: Tensor = out.last_hidden_state
        return states if last is None else states[:, -last:]

    def new_cache(
        self, positions: Int[Tensor, "B P"], *, further: int, instruction_tokens: Sequence[tuple[int, ...]] = ()
    ) -> tuple[Cache, int]:
        """Return a key-value cache for a prompt, and how many positions of it are filled already.

        Args:
            positions: of the prompt, padded on the left.
            further: tokens that will follow the prompt.
            instruction_tokens: of each sample, those before the image. Their keys and values are taken from the
                instruction cache, except in training, where the weights change at every step.
        """
        decoder = self.model.base_model
        if self._instruction_cache is None or not self._instruction_cache.weights.is_current:
            if not is_llama_shaped(decoder):
                return LibraryCache(decoder), 0
            self._instruction_cache = InstructionCache(LlamaWeights(decoder), self.model.get_input_embeddings())
        known = self._instruction_cache
        cache = StaticCache(known.weights, positions=positions, further=further)
        if not instruction_tokens or self.training:
            return cache, 0
        return cache, cache.prefill([known.keys_and_values(tokens) for tokens in instruction_tokens])

    def image_marks(self, tokens: Int[Tensor, "B S"]) -> dict[str, Tensor]:
        """Return the arguments that mark the image tokens for a vision-language model."""
        return {} if self.images is None else self.images.marks(tokens)

    def latent_logits(self, hidden: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch V"]:
        """Return the logits of the latent tokens alone, for the restricted softmax of method 2.4."""
        return self.logits(hidden, *self.vocabulary.latent)

    def logits(self, hidden: Float[Tensor, "*batch D"], first: int = 0, end: int | None = None) -> Tensor:
        """Return the logits of a range of tokens; [*batch, end - first].

        Args:
            hidden: states from `hidden`.
            first: first token of the range.
            end: one past its last token; None: the end of the vocabulary.
        """
        # Computed from a slice of the output table: the full vocabulary would cost most of a decoding step.
        head = self.model.get_output_embeddings()
        logits = hidden @ head.weight[first:end].T
        if getattr(head, "bias", None) is not None:
            logits = logits + head.bias[first:end]
        # What some families do to their logits; `_check_head` refuses a model that does anything else.
        if self._logit_scale != 1.0:
            logits = logits * self._logit_scale
        if self._logit_cap is not None:
            logits = torch.tanh(logits / self._logit_cap) * self._logit_cap
        return logits

    def blocks(self) -> list[nn.Module]:
        """Return the layers of the language model: the longest list of modules in it, whatever its architecture."""
        lists = [list(module) for module in self.modules() if isinstance(module, nn.ModuleList)]
        return max(lists, key=len)

    def compile_blocks(self) -> None:
        """Compile each layer in place: names of parameters stay as they are."""
        for block in self.blocks():
            block.compile(fullgraph=True)

    def check_sharding(self) -> None:
        """Refuse to be sharded where some rows of a table are frozen, which sharded weights do not know.

        Raises:
            InputError: `train` is not full.
        """
        if self.config.train != "full":
            raise InputError(
                f"policy.backbone.train={self.config.train} with hardware.sharding=fsdp: the frozen rows of the "
                "embedding tables cannot be sharded; use hardware.sharding=ddp"
            )

    def merge_adapters(self) -> None:
        """Add the adapters to the weights of the layers they adapt, and drop them."""
        if self.adapters is not None:
            self.model = self.adapters.merged(self.model)
            self.adapters = None

    @property
    def _text_config(self) -> Any:
        config = self.model.config
        return config.get_text_config() if hasattr(config, "get_text_config") else config

    @torch.no_grad()
    def _check_head(self) -> None:
        """Refuse a model whose own logits differ from those that `hidden` and `logits` give for three tokens."""
        tokens = torch.arange(3)[None]
        arguments = inspect.signature(self.model.base_model.forward).parameters
        if "inputs_embeds" not in arguments or "attention_mask" not in arguments:
            raise InputError(
                f"policy.backbone.weights={self.config.weights} is a {type(self.model).__name__}, which takes no "
                "embeddings or no attention mask; give a transformer"
            )
        mask = torch.ones_like(tokens).bool()
        found = self.logits(self.hidden(self.embed(tokens), mask=mask, positions=tokens))
        expected = self.model(input_ids=tokens).logits
        if found.shape != expected.shape or not torch.allclose(found, expected, atol=1e-3, rtol=1e-3):
            raise InputError(
                f"policy.backbone.weights={self.config.weights} is a {type(self.model).__name__}, whose logits are not "
                "those of its output embeddings on its last states; such models are not supported"
            )

    def _keep_base(self, generator: torch.Generator) -> None:
        """Freeze the loaded weights except for the new rows; with train=lora, adapt its linear layers."""
        self.model.requires_grad_(False)
        if self.config.train == "lora":
            output = self.model.get_output_embeddings()
            try:
                self.adapters = LoRA(self.model, self.config.lora, generator=generator, skip=(output,))
            except ValueError as error:
                raise InputError(f"policy.backbone.train=lora on a {type(self.model).__name__}: {error}") from error
        base = self.vocabulary.base
        # A table is one parameter, so its old rows are kept by zeroing their gradient.
        for table in embedding_tables(self.model):
            table.requires_grad_(True)
            table.register_hook(lambda gradient: torch.cat([torch.zeros_like(gradient[:base]), gradient[base:]]))
            table.no_weight_decay = True  # type: ignore[attr-defined]  # AdamW's decay would move the old rows


def _build_llama(config: BackboneConfig, tokenizer: EmbeddedTokenizer, generator: torch.Generator) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    from .last_layer import LastLayer

    with torch.random.fork_rng(devices=[]):  # transformers initializes from the global generator
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        model: Any = LlamaForCausalLM(
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
    # The same weights, computed faster.
    model.model.layers[-1].__class__ = LastLayer
    for layer in model.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = Dense
    return model
