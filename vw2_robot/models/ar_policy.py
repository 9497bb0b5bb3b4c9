"""The autoregressive policy: instruction and first image -> latent action tokens, one after the other.

Place in the flow: latent cache -> AR policy -> action head. Sequence (method specification 2.4):

    <bos> <instr> text </instr> <img> I_1 .. I_n </img> <lat> z_1^1 .. z_1^N  z_2^1 .. z_H^N

step-major, slot-minor. Batches are padded on the left, so that the latent positions of all samples line up at the end.
The state at the token *before* z_k^n predicts it; the N states that predict step k are what the action head reads.
"""

# B batch · S sequence · P prompt length · H latent steps · N codes per step · D width · V codes
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .backbone import Backbone, BackboneConfig
from .fsq import FSQ

# Groups of the norms between the image convolutions.
NORM_GROUPS = 8


@dataclass(frozen=True)
class PolicyConfig:
    """Layout and image input. Defaults: the embedded tiny policy."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    image: Literal["pixels"] = "pixels"
    """a small trainable convolution stack; needs no other model"""
    image_px: int = 64
    """the square image side that the policy sees"""
    image_widths: tuple[int, ...] = (32, 64, 128, 128)
    """channels of the convolutions, multiples of 8; each halves the side, the last grid is the image tokens"""
    text_limit: int = 64
    """bytes of the instruction that are read"""
    queries: int = 4
    """N, codes per latent step"""
    fsq_levels: tuple[int, ...] = (8, 5, 5, 5)

    def __post_init__(self) -> None:
        if self.image_px % 2 ** len(self.image_widths):
            raise ValueError(
                f"policy.image_px must be a multiple of {2 ** len(self.image_widths)} "
                f"({len(self.image_widths)} halvings), found {self.image_px}"
            )
        if not self.image_widths or any(width < 1 or width % NORM_GROUPS for width in self.image_widths):
            raise ValueError(f"policy.image_widths must be multiples of {NORM_GROUPS}, found {self.image_widths}")

    @property
    def image_tokens(self) -> int:
        """n, soft tokens of the image."""
        side = self.image_px // 2 ** len(self.image_widths)
        return side * side


class Prompt(NamedTuple):
    """Embedded prompts, padded on the left. `mask` is False on padding; `positions` count real tokens from 0."""

    embeddings_BPD: Tensor
    mask_BP: Tensor
    positions_BP: Tensor


class Decoded(NamedTuple):
    """codes_BHN: chosen indices. states_BHND: the states that chose them, what the action head reads."""

    codes_BHN: Tensor
    states_BHND: Tensor


class PixelTokens(nn.Module):
    """Image -> a grid of soft tokens by strided convolutions."""

    def __init__(self, config: PolicyConfig, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for out in config.image_widths:
            layers += [nn.Conv2d(channels, out, 3, stride=2, padding=1), nn.GroupNorm(NORM_GROUPS, out), nn.SiLU()]
            channels = out
        self.convolutions = nn.Sequential(*layers)
        self.project = nn.Linear(channels, width)
        self.position = nn.Parameter(torch.randn(config.image_tokens, width) * 0.02)

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B n D"]:
        """Pixels in [-1, 1]."""
        grid = rearrange(self.convolutions(image), "b c h w -> b (h w) c")
        out: Tensor = self.project(grid) + self.position
        return out


class LatentPolicy(nn.Module):
    """Backbone plus image tokens: loss for pre-training, states for the head, cached decoding for control."""

    def __init__(self, config: PolicyConfig, *, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.fsq = FSQ(config.fsq_levels)
        self.backbone = Backbone(config.backbone, self.fsq, generator=generator)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
            self.image = PixelTokens(config, self.backbone.width)

    def prompt(self, instructions: Sequence[str], image: Float[Tensor, "B 3 H W"]) -> Prompt:
        """Embed `<bos> <instr> text </instr> <img> I </img> <lat>` for every sample.

        Raises:
            ValueError: if the image side is not the configured one, or the batch sizes differ.
        """
        px = self.config.image_px
        if image.shape[1:] != (3, px, px) or image.shape[0] != len(instructions):
            raise ValueError(
                f"the policy expects {len(instructions)} images of shape (3, {px}, {px}), got {tuple(image.shape)}"
            )
        special, tokenizer = self.backbone.vocabulary.special, self.backbone.tokenizer
        texts = [tokenizer.encode(text, limit=self.config.text_limit) for text in instructions]
        longest = max(len(text) for text in texts)
        rows = [
            [tokenizer.pad] * (longest - len(text))
            + [tokenizer.bos, special["<instr>"], *text, special["</instr>"], special["<img>"]]
            for text in texts
        ]
        device = image.device
        before = torch.tensor(rows, device=device)
        after = torch.tensor([[special["</img>"], special["<lat>"]]] * len(rows), device=device)
        embeddings = torch.cat([self.backbone.embed(before), self.image(image), self.backbone.embed(after)], dim=1)
        lengths = torch.tensor([longest - len(text) for text in texts], device=device)
        mask = torch.arange(embeddings.shape[1], device=device)[None] >= lengths[:, None]
        return Prompt(embeddings, mask, (mask.long().cumsum(1) - 1).clamp(min=0))

    def states(self, prompt: Prompt, codes: Int[Tensor, "B H N"]) -> Float[Tensor, "B H N D"]:
        """Teacher-forced states that predict each code; the last code itself is never fed."""
        batch, steps, queries = codes.shape
        tokens = codes.flatten(1)[:, :-1] + self.backbone.vocabulary.latent[0]
        embeddings = torch.cat([prompt.embeddings_BPD, self.backbone.embed(tokens)], dim=1)
        extra = tokens.shape[1]
        mask = torch.cat([prompt.mask_BP, prompt.mask_BP.new_ones(batch, extra)], dim=1)
        later = prompt.positions_BP[:, -1:] + torch.arange(1, extra + 1, device=tokens.device)
        positions = torch.cat([prompt.positions_BP, later], dim=1)
        hidden, _ = self.backbone.hidden(embeddings, mask=mask, positions=positions)
        return rearrange(hidden[:, -steps * queries :], "b (h n) d -> b h n d", n=queries)

    def code_loss(
        self, states: Float[Tensor, "B H N D"], codes: Int[Tensor, "B H N"], valid: Bool[Tensor, "B H *N"]
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Cross-entropy of the latent tokens (softmax over latent tokens only), and token accuracy.

        Both are means over what `valid` marks: whole steps [B, H], or single codes [B, H, N].
        """
        logits = self.backbone.latent_logits(states)
        with torch.autocast(logits.device.type, enabled=False):
            loss_BHN = F.cross_entropy(logits.float().flatten(0, 2), codes.flatten(), reduction="none").view_as(codes)
            weight = (valid if valid.ndim == 3 else valid[..., None]).expand_as(codes).float()
            total = weight.sum().clamp(min=1)
            correct = (logits.argmax(-1) == codes).float()
            return (loss_BHN * weight).sum() / total, {"accuracy": ((correct * weight).sum() / total).detach()}

    @torch.no_grad()
    def decode(
        self,
        prompt: Prompt,
        *,
        steps: int,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Decoded:
        """Generate latent steps with a key-value cache; greedy at temperature 0. Only latent tokens come out."""
        queries, first = self.config.queries, self.backbone.vocabulary.latent[0]
        embeddings, mask, positions = prompt.embeddings_BPD, prompt.mask_BP, prompt.positions_BP
        cache = self.backbone.new_cache()
        codes, states = [], []
        for _ in range(steps * queries):
            hidden, cache = self.backbone.hidden(embeddings, mask=mask, positions=positions, cache=cache)
            state = hidden[:, -1]
            logits = self.backbone.latent_logits(state).float()
            if temperature > 0:
                chances = (logits / temperature).softmax(-1).cpu()
                code = torch.multinomial(chances, 1, generator=generator)[:, 0].to(state.device)
            else:
                code = logits.argmax(-1)
            codes.append(code)
            states.append(state)
            embeddings = self.backbone.embed(code[:, None] + first)
            mask = torch.cat([mask, mask.new_ones(mask.shape[0], 1)], dim=1)
            positions = positions[:, -1:] + 1
        return Decoded(
            rearrange(torch.stack(codes, 1), "b (h n) -> b h n", n=queries),
            rearrange(torch.stack(states, 1), "b (h n) d -> b h n d", n=queries),
        )
