"""The codes that a policy acts with, and the states for its action head: one function for control and validation.

Place in the flow: AR policy -> these states -> action head. With codes "predicted" the policy decodes its latent action
tokens greedily or by sampling, and the head reads the states that predicted them. With codes "none" every slot is fed
the null code in one forward pass: same network, same head, no latent action in between. That is for policies that never
learned codes (method `oracle`) or do not use them after pre-training (method `lapa`).
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
    """Return the null code (index of the zero vector) in every slot.

    Args:
        policy: its FSQ and its number of slots are used.
        batch: B.
        latent_steps: H.
        device: of the result.
    """
    # Of the zero vector, since the codebook has no index that means "none".
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
    """Return codes and the states that the action head reads.

    Args:
        policy: the AR policy.
        prompt: from `LatentPolicy.prompt`.
        latent_steps: H, latent steps to act for.
        codes: predicted by the policy, or the null code in every slot.
        temperature: 0 is greedy; for predicted codes alone.
        generator: on the CPU, for a temperature above 0.
    """
    if codes == "predicted":
        return policy.decode(prompt, latent_steps=latent_steps, temperature=temperature, generator=generator)
    codes_BHN = null_codes(policy, len(prompt.mask_BP), latent_steps=latent_steps, device=prompt.mask_BP.device)
    return Decoded(codes_BHN, policy.states(prompt, codes_BHN))
