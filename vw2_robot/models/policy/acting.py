"""The acting modes: what the policy reads in the slots of its codes, and which states its action head gets.

Place in the flow: AR policy -> these states -> action head, the same in control, validation and fine-tuning.

    expected   decodes; in each slot reads the mean embedding under the distribution of the code
    sampled    decodes; reads a code that is sampled from that distribution
    argmax     decodes; reads the likeliest code
    parallel   reads the null token in every slot, in one forward pass that predicts all codes at once
    none       as parallel, but no code is reported: for policies that never learned codes (method `oracle`), do not
               use them after pre-training (method `lapa`), or are an ablation
"""

# B batch · H latent steps · N codes per step · R states per step · D width
from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from vw2_robot.errors import InputError
from vw2_robot.random_numbers import SampleNoise

from .ar_policy import NULL_CODE, LatentPolicy, Prompt
from .config import DECODING, Acting


class Acted(NamedTuple):
    """Codes and states of a policy call.

    Attributes:
        codes_BHN: the decoded codes: chosen ones, or the likeliest of each slot for expected and parallel; None where
            acting is none.
        states_BHRD: what the action head reads.
        read: what the policy read in the slots: codes [B, H, N], or for expected embeddings [B, H, N, D].
    """

    codes_BHN: Tensor | None
    states_BHRD: Tensor
    read: Tensor


def null_codes(policy: LatentPolicy, batch: int, *, latent_steps: int, device: torch.device) -> Int[Tensor, "B H N"]:
    """Return `NULL_CODE` in every slot.

    Args:
        policy: its number of slots is used.
        batch: B.
        latent_steps: H.
        device: of the result.
    """
    return torch.full((batch, latent_steps, policy.config.queries), NULL_CODE, device=device)


def act(
    policy: LatentPolicy,
    prompt: Prompt,
    *,
    latent_steps: int,
    acting: Acting,
    last_code: bool,
    temperature: float = 1.0,
    generator: torch.Generator | SampleNoise | None = None,
) -> Acted:
    """Return codes and the states that the action head reads.

    Args:
        policy: the AR policy.
        prompt: from `LatentPolicy.prompt`.
        latent_steps: H, latent steps to act for.
        acting: the mode.
        last_code: whether the head reads the state after the last code of a step, see `ActionHeadConfig`.
        temperature: of the codes that are sampled; not read by other modes.
        generator: on the CPU, or noise of the samples; for sampled alone.
    """
    if acting in DECODING:
        return Acted(
            *policy.decode(
                prompt,
                latent_steps=latent_steps,
                temperature=temperature if acting == "sampled" else 0.0,
                generator=generator,
                expected=acting == "expected",
                last_code=last_code,
            )
        )
    null = null_codes(policy, len(prompt.mask_BP), latent_steps=latent_steps, device=prompt.mask_BP.device)
    states = policy.states(prompt, null, last_code=last_code)
    predicting = states[:, :, : policy.config.queries]
    codes = policy.backbone.latent_logits(predicting).argmax(-1) if acting == "parallel" else None
    return Acted(codes, states, null)


def check_acting(policy: LatentPolicy, acting: Acting) -> None:
    """Refuse a mode that the policy's language model cannot act by.

    Raises:
        InputError: expected, with a vision-language model.
    """
    if acting == "expected" and policy.image is None:
        raise InputError(
            "acting=expected feeds embeddings, and a vision-language model (policy.image=vlm) takes token ids; use "
            "acting=argmax"
        )


def acting_of(config: Mapping[str, Any]) -> Acting:
    """Return the mode that a fine-tuned checkpoint was trained for.

    Raises:
        ValueError: it names none that there is.
    """
    # Checkpoints from before there were modes have `codes`: predicted (the likeliest ones were read) or none.
    before = config.get("codes", "predicted")
    found: Acting = config.get("acting", "argmax" if before == "predicted" else before)
    if found not in get_args(Acting):
        raise ValueError(f"acting={found!r}")
    return found


def choose_acting(stored: Acting, wanted: Acting | None) -> Acting:
    """Return the mode to act by: the wanted one, where a policy that was trained for the stored one can.

    Raises:
        InputError: it cannot.
    """
    if wanted is None:
        return stored
    # A policy that decodes has read codes in its slots, the others the null token; none may not have learned codes.
    possible = DECODING if stored in DECODING else ("parallel", "none") if stored == "parallel" else ("none",)
    if wanted not in possible:
        raise InputError(f"acting={wanted}, but the policy was trained with acting={stored}: use {', '.join(possible)}")
    return wanted
