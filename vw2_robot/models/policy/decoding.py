"""From a prompt to latent action tokens, one latent step at a time, with a cache.

Place in the flow: under `ar_policy.py`; method specification 2.4 (sampling) and 2.7. `Decoding` is a conversation with
the model: it reads the prompt once, then every `step` gives the N codes of the next latent step and the states that
chose them. Control asks for one step or a few, imagination for many. Greedy at temperature 0.
"""

# B batch · P prompt length · S positions so far · H latent steps · N codes per step · D width · V codes
from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .backbone import Backbone
from .vlm_images import flat_rows


class Prompt(NamedTuple):
    """Prompts, padded on the left. `mask_BP` is False on padding; `positions_BP` count real tokens from 0.

    `inputs` are embeddings [B, P, D]; for a model that sees images itself they are token ids [B, P], and `images`
    holds its image tensors, each [B, R, ...]. `words` are the tokens of each sample before the image; decoding may
    know them from an earlier look, so it is the weights of the day that count for them, not those that made `inputs`.
    """

    inputs: Tensor
    mask_BP: Tensor
    positions_BP: Tensor
    images: dict[str, Tensor] | None = None
    words: tuple[tuple[int, ...], ...] = ()

    def rows(self, chosen: Int[Tensor, " b"]) -> Prompt:
        """Some samples of the batch."""
        images = None if self.images is None else {name: value[chosen] for name, value in self.images.items()}
        words = tuple(self.words[i] for i in chosen.tolist()) if self.words else ()
        left = max(map(len, self.words), default=0) - max(map(len, words), default=0)  # padding that nobody needs now
        inputs, mask, positions = (part[chosen, left:] for part in (self.inputs, self.mask_BP, self.positions_BP))
        return Prompt(inputs, mask, positions, images, words)

    def followed_by(self, tokens: Int[Tensor, "B S"], backbone: Backbone) -> Prompt:
        """The prompt with `tokens` behind it."""
        more = backbone.embed(tokens) if self.inputs.is_floating_point() else tokens
        mask = torch.cat([self.mask_BP, self.mask_BP.new_ones(tokens.shape)], dim=1)
        later = self.positions_BP[:, -1:] + torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
        positions = torch.cat([self.positions_BP, later], dim=1)
        return Prompt(torch.cat([self.inputs, more], dim=1), mask, positions, self.images, self.words)

    def for_model(self, backbone: Backbone) -> dict[str, Tensor]:
        """Further arguments of the model's forward pass."""
        if self.images is None:
            return {}
        return flat_rows(self.images) | backbone.image_marks(self.inputs)


class Decoded(NamedTuple):
    """codes_BHN: chosen indices. states_BHND: the states that chose them, what the action head reads."""

    codes_BHN: Tensor
    states_BHND: Tensor


@dataclass(frozen=True)
class Sampling:
    """How the next code is chosen: the likeliest at temperature 0, else drawn from what top_k and top_p leave."""

    temperature: float = 0.0
    top_k: int | None = None
    """draw from the k likeliest codes"""
    top_p: float = 1.0
    """draw from the likeliest codes that together have at least this chance"""

    def __post_init__(self) -> None:
        if not self.temperature >= 0 or not 0 < self.top_p <= 1 or (self.top_k is not None and self.top_k < 1):
            raise ValueError(
                "temperature must not be negative, top_k at least 1 and top_p in (0, 1], found "
                f"{self.temperature}, {self.top_k} and {self.top_p}"
            )

    def choose(self, logits: Float[Tensor, "B V"], generator: torch.Generator | None) -> Int[Tensor, " B"]:
        """One code per row; the generator is on the CPU."""
        if self.temperature == 0:
            return logits.argmax(-1)
        chances, codes = (logits.float() / self.temperature).softmax(-1).cpu().sort(-1, descending=True)
        before = chances.cumsum(-1) - chances
        chances = chances.masked_fill(before >= self.top_p, 0.0)
        if self.top_k is not None:
            chances[:, self.top_k :] = 0.0
        drawn = torch.multinomial(chances, 1, generator=generator)
        return codes.gather(-1, drawn)[:, 0].to(logits.device)


class Decoding:
    """Latent step after latent step behind one prompt.

    Args:
        backbone: the model.
        prompt: what it reads first.
        queries: N.
        steps: most latent steps that will be asked for.
        given: codes of earlier latent steps that stand behind the prompt as if they had been chosen, [B, h, N].

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
        generator: torch.Generator | None = None,
        given: Int[Tensor, "B h N"] | None = None,
    ) -> None:
        self._first = backbone.vocabulary.latent[0]
        self._embed = backbone.model.get_input_embeddings()
        if given is not None and given.shape[1]:
            prompt = prompt.followed_by(given.flatten(1) + self._first, backbone)
        length, further = prompt.mask_BP.shape[1], latent_steps * queries - 1  # the last code is never read
        most = backbone.max_positions
        if most is not None and (wanted := int(prompt.positions_BP[:, -1].max()) + 1 + further) > most:
            raise ValueError(
                f"{latent_steps} latent steps behind a prompt of {wanted - further} tokens need {wanted} positions, "
                f"the model "
                f"has {most}; decode fewer steps at once (LatentPolicy.long_plan), or shorten the instruction"
            )
        self._backbone, self._queries, self._generator = backbone, queries, generator
        self._sampling = sampling or Sampling()
        self._cache, self._known = backbone.new_cache(prompt.positions_BP, further=further, words=prompt.words)
        self._mask = torch.cat([prompt.mask_BP, prompt.mask_BP.new_ones(len(prompt.mask_BP), further)], dim=1)
        self._length = length
        self._next_position = prompt.positions_BP[:, -1:] + 1
        self._embeds = prompt.inputs.is_floating_point()
        self._prompt: Prompt | None = prompt
        self._code: Tensor | None = None

    @torch.no_grad()
    def step(self) -> Decoded:
        """The next latent step: codes [B, 1, N] and states [B, 1, N, D]."""
        codes, states = [], []
        for _ in range(self._queries):
            state = self._advance()
            with torch.autocast(
                state.device.type, enabled=False
            ):  # a thousand logits differ by less than bf16 resolves
                logits = self._backbone.latent_logits(state.float())
            self._code = self._sampling.choose(logits, self._generator)
            codes.append(self._code)
            states.append(state)
        return Decoded(torch.stack(codes, 1)[:, None], torch.stack(states, 1)[:, None])

    def _advance(self) -> Tensor:
        """Read what has not been read yet: the prompt, later the last code. Returns the last state [B, D]."""
        if self._prompt is not None:
            prompt, self._prompt = self._prompt, None
            return self._cache.advance(
                prompt.inputs[:, self._known :],
                mask=prompt.mask_BP,
                positions=prompt.positions_BP[:, self._known :],
                **prompt.for_model(self._backbone),
            )
        assert self._code is not None
        token = self._code[:, None] + self._first
        self._length += 1
        state = self._cache.advance(
            self._embed(token) if self._embeds else token,
            mask=self._mask[:, : self._length],
            positions=self._next_position,
        )
        self._next_position = self._next_position + 1
        return state
