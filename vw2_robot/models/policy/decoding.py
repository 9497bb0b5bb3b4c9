"""Decoding of latent action tokens from a prompt, one latent step at a time, with a key-value cache.

Place in the flow: under `ar_policy.py`. `Decoding` reads the prompt once; then every `step` gives the N codes of the
next latent step and the states that predicted them. Control decodes one step or a few, imagination many. Greedy at
temperature 0. The model reads the chosen code, or with `expected` the mean embedding under the code's distribution.
"""

# B batch · P prompt length · S positions so far · H latent steps · N codes per step · D width · V codes
from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vw2_robot.random_numbers import SampleNoise

from ..precision import at_least_float32
from .backbone import Backbone
from .config import Sampling
from .vlm_images import flat_rows


class Prompt(NamedTuple):
    """Prompts, padded on the left. `mask_BP` is False on padding; `positions_BP` count real tokens from 0.

    `inputs` are embeddings [B, P, D]; for a vision-language model they are token ids [B, P], and `images` holds its
    image tensors, each [B, R, ...]. `instruction_tokens` are the tokens of each sample before the image. Decoding may
    take their keys and values from a cache; these follow the model's present weights, not those that made `inputs`.
    """

    inputs: Tensor
    mask_BP: Tensor
    positions_BP: Tensor
    images: dict[str, Tensor] | None = None
    instruction_tokens: tuple[tuple[int, ...], ...] = ()

    def rows(self, chosen: Int[Tensor, " b"]) -> Prompt:
        """Return some samples of the batch, with no more padding than they need."""
        images = None if self.images is None else {name: value[chosen] for name, value in self.images.items()}
        tokens = tuple(self.instruction_tokens[i] for i in chosen.tolist()) if self.instruction_tokens else ()
        # The longest instruction may be among the samples left out: the others need less padding then.
        left = max(map(len, self.instruction_tokens), default=0) - max(map(len, tokens), default=0)
        inputs, mask, positions = (part[chosen, left:] for part in (self.inputs, self.mask_BP, self.positions_BP))
        return Prompt(inputs, mask, positions, images, tokens)

    def followed_by(self, more: Tensor, backbone: Backbone) -> Prompt:
        """Return the prompt with token ids [B, S], or embeddings [B, S, D], after it."""
        if self.inputs.is_floating_point() and not more.is_floating_point():
            more = backbone.embed(more)
        mask = torch.cat([self.mask_BP, self.mask_BP.new_ones(more.shape[:2])], dim=1)
        later = self.positions_BP[:, -1:] + torch.arange(1, more.shape[1] + 1, device=more.device)
        positions = torch.cat([self.positions_BP, later], dim=1)
        return Prompt(torch.cat([self.inputs, more], dim=1), mask, positions, self.images, self.instruction_tokens)

    def for_model(self, backbone: Backbone) -> dict[str, Tensor]:
        """Return further arguments of the model's forward pass: image tensors and marks."""
        if self.images is None:
            return {}
        return flat_rows(self.images) | backbone.image_marks(self.inputs)


def sample_codes(probabilities: Float[Tensor, "*batch V"], uniform: Float[Tensor, "*batch"]) -> Int[Tensor, "*batch"]:
    """Return codes with these probabilities, which need not sum to 1, by numbers that are uniform in [0, 1)."""
    upto = probabilities.cumsum(-1)
    # The first code whose cumulative probability exceeds the number: never one of probability 0.
    return torch.searchsorted(upto, uniform[..., None].to(upto) * upto[..., -1:], right=True)[..., 0]


def choose_codes(
    logits: Float[Tensor, "B V"], sampling: Sampling, generator: torch.Generator | SampleNoise | None
) -> Int[Tensor, " B"]:
    """Return one code per row.

    Args:
        logits: of all codes.
        sampling: how a code is chosen.
        generator: on the CPU; or noise of the samples, one for each row.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    # A generator is on the CPU, so that a seed gives the same codes on every device.
    uniform = generator.rand() if isinstance(generator, SampleNoise) else torch.rand(len(logits), generator=generator)
    scaled = at_least_float32(logits).to(uniform.device) / sampling.temperature
    probabilities, codes = scaled.softmax(-1).sort(-1, descending=True)
    # top_p: a code stays as long as the likelier ones together are below p, so the likeliest always stays.
    before = probabilities.cumsum(-1) - probabilities
    probabilities = probabilities.masked_fill(before >= sampling.top_p, 0.0)
    if sampling.top_k is not None:
        probabilities[:, sampling.top_k :] = 0.0
    place = sample_codes(probabilities, uniform)
    return codes.gather(-1, place[:, None])[:, 0].to(logits.device)


class Decoded(NamedTuple):
    """Decoded latent steps.

    Attributes:
        codes_BHN: indices of the codes.
        states_BHND: the states that predicted them; from `LatentPolicy.decode` with `last_code` N + 1 of each step.
        read: what the model reads in their place: `codes_BHN`, or with `expected` embeddings [B, H, N, D].
    """

    codes_BHN: Tensor
    states_BHND: Tensor
    read: Tensor


class Decoding:
    """The decoding of one prompt, latent step after latent step.

    Args:
        backbone: the model.
        prompt: what it reads first.
        queries: N, codes per latent step.
        latent_steps: most latent steps that will be decoded.
        sampling: how codes are chosen; None: greedily.
        generator: on the CPU, for sampling; or noise of the samples.
        given: codes of earlier latent steps that follow the prompt as if they had been decoded, [B, h, N].
        expected: feed the expected embedding of each slot, not the code that is chosen there.
        last_code: the last code will be read too, by `state_after`.

    Raises:
        ValueError: the sequence would be longer than the model has positions.
    """

    def __init__(
        self,
        backbone: Backbone,
        prompt: Prompt,
        *,
        queries: int,
        latent_steps: int,
        sampling: Sampling | None = None,
        generator: torch.Generator | SampleNoise | None = None,
        given: Int[Tensor, "B h N"] | None = None,
        expected: bool = False,
        last_code: bool = False,
    ) -> None:
        self._first = backbone.vocabulary.latent[0]
        self._embed = backbone.model.get_input_embeddings()
        if given is not None and given.shape[1]:
            prompt = prompt.followed_by(given.flatten(1) + self._first, backbone)
        further = latent_steps * queries - 1 + last_code
        limit = backbone.max_positions
        if limit is not None and (wanted := int(prompt.positions_BP[:, -1].max()) + 1 + further) > limit:
            raise ValueError(
                f"{latent_steps} latent steps behind a prompt of {wanted - further} tokens need {wanted} positions, "
                f"the model has {limit}; decode fewer steps at once (LatentPolicy.long_plan), or shorten the "
                "instruction"
            )
        self._backbone = backbone
        self._queries = queries
        self._generator = generator
        self._sampling = sampling or Sampling()
        self._embeddings: Tensor | None = None
        if expected:  # of all codes, once for all slots
            with torch.no_grad():
                self._embeddings = backbone.embed(
                    torch.arange(*backbone.vocabulary.latent, device=prompt.inputs.device)
                )
        self._cache, self._known = backbone.new_cache(
            prompt.positions_BP, further=further, instruction_tokens=prompt.instruction_tokens
        )
        self._mask = torch.cat([prompt.mask_BP, prompt.mask_BP.new_ones(len(prompt.mask_BP), further)], dim=1)
        self._next_position = prompt.positions_BP[:, -1:] + 1
        self._embeds = prompt.inputs.is_floating_point()
        self._prompt: Prompt | None = prompt
        self._read: Tensor | None = None

    def step(self) -> Decoded:
        """Decode the next latent step: codes [B, 1, N] and states [B, 1, N, D]."""
        codes = []
        states = []
        read = []
        # Without any bookkeeping of autograd, which takes a tenth of a token's time.
        with torch.inference_mode():
            for _ in range(self._queries):
                state = self._advance()
                # float32 on purpose: a thousand logits differ by less than bfloat16 resolves.
                with torch.autocast(state.device.type, enabled=False):
                    logits = self._backbone.latent_logits(at_least_float32(state))
                    code = choose_codes(logits, self._sampling, self._generator)
                    self._read = code
                    if self._embeddings is not None:
                        mean = logits.softmax(-1) @ at_least_float32(self._embeddings)
                        self._read = mean.to(self._embeddings.dtype)
                codes.append(code)
                states.append(state)
                read.append(self._read)
        # Stacked outside, so that all are ordinary tensors.
        chosen = torch.stack(codes, 1)[:, None]
        in_slots = chosen if self._embeddings is None else torch.stack(read, 1)[:, None]
        return Decoded(chosen, torch.stack(states, 1)[:, None], in_slots)

    def state_after(self) -> Float[Tensor, "B D"]:
        """Return the state after the last code of the steps decoded so far, which ends the decoding."""
        with torch.inference_mode():
            state = self._advance()
        return state.clone()  # outside, so that it is an ordinary tensor

    def _advance(self) -> Tensor:
        """Feed what the model has not read yet, at first the prompt, later the last code; return the state there."""
        if self._prompt is not None:
            prompt = self._prompt
            self._prompt = None
            return self._cache.advance(
                prompt.inputs[:, self._known :],
                mask=prompt.mask_BP,
                positions=prompt.positions_BP[:, self._known :],
                **prompt.for_model(self._backbone),
            )
        assert self._read is not None
        inputs = self._read[:, None]
        if self._embeddings is None:
            inputs = inputs + self._first
            inputs = self._embed(inputs) if self._embeds else inputs
        state = self._cache.advance(inputs, mask=self._mask, positions=self._next_position)
        self._next_position = self._next_position + 1
        return state
