"""Decoding of latent steps: our decoder, transformers' `generate` on the same model, and the bound of bandwidth.

The bound: every token reads all weights of the language model once, at the bandwidth of a large copy in the same run.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from benchmarks.decode_latency import alternate, by_generate, prompts, read_bytes
from vw2_robot.models.policy.ar_policy import LatentPolicy
from vw2_robot.pretrain.train_policy import STREAM_INIT
from vw2_robot.random_numbers import generator

from .machine import forget_memory, peak_bytes
from .measured import Measured
from .training import Training


@torch.no_grad()
def decoding_row(training: Training, *, batch: int) -> Measured:
    """Measure the decoding of the latent steps of a clip.

    Args:
        training: preset and device.
        batch: prompts at once.
    """
    device = training.device
    config = training.config()
    forget_memory(device)
    policy = LatentPolicy(config.policy, generator=generator(0, 0, stream=STREAM_INIT)).eval().to(device)
    steps = config.dldm.latent_steps
    tokens = steps * config.policy.queries
    prompt = prompts(policy, batch, device)
    # Random weights can give two codes nearly equal logits, so that rounding decides; then codes differ from there on.
    ours = policy.decode(prompt, latent_steps=steps).codes_BHN.flatten(1)
    same = float((ours == by_generate(policy, prompt, steps)).float().mean())
    seconds = alternate(
        device, partial(policy.decode, prompt, latent_steps=steps), partial(by_generate, policy, prompt, steps)
    )
    mine, theirs = np.median(seconds, axis=0)
    bound = read_bytes(policy) / training.machine.copy_bytes_per_second
    return Measured(
        milliseconds=1000 * mine,
        per_second=batch * tokens / mine,
        unit="tokens/s",
        bound_share=tokens * bound / mine,
        peak_bytes=peak_bytes(device),
        note=(
            f"{tokens} tokens; bound {1e6 * bound:.0f} us a token, ours {1e6 * mine / tokens:.0f}; generate "
            f"{1000 * theirs:.1f} ms, ours {theirs / mine:.2f} times as fast, {100 * same:.0f} % of the codes equal"
        ),
        values={
            "batch": batch,
            "tokens": tokens,
            "bound_microseconds_per_token": 1e6 * bound,
            "microseconds_per_token": 1e6 * mine / tokens,
            "generate_milliseconds": 1000 * theirs,
            "times_as_fast_as_generate": theirs / mine,
            "codes_equal": same,
        },
    )
