"""How a policy fills its latent slots when actions are wanted: one function for control and for validation.

Place in the flow: AR policy -> these states -> action head. With codes "predicted" the policy decodes its latent action
tokens greedily, or by sampling, and the head reads the states that chose them (method specification 2.7). With codes
"none" every slot is fed the zero code in one forward pass: same network, same head, no latent action in between. That
is how a policy acts that never learned codes (the `oracle` arm), or leaves them unused after pre-training (`lapa`).
"""

# B batch · H latent steps · N codes per step · D width
from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from .ar_policy import Decoded, LatentPolicy, Prompt

ActingCodes = Literal["predicted", "none"]


def null_codes(policy: LatentPolicy, batch: int, *, latent_steps: int, device: torch.device) -> Int[Tensor, "B H N"]:
    """The zero code in every slot."""
    zero = policy.fsq.indices(torch.zeros(len(policy.fsq.levels), device=device))
    return zero.expand(batch, latent_steps, policy.config.queries)


def act(
    policy: LatentPolicy,
    prompt: Prompt,
    *,
    latent_steps: int,
    codes: ActingCodes = "predicted",
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> Decoded:
    """Codes and the states that the head reads, for `steps` latent steps. `temperature` is for own codes alone."""
    if codes == "predicted":
        return policy.decode(prompt, latent_steps=latent_steps, temperature=temperature, generator=generator)
    blank = null_codes(policy, len(prompt.mask_BP), latent_steps=latent_steps, device=prompt.mask_BP.device)
    return Decoded(blank, policy.states(prompt, blank))
