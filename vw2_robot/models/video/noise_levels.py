"""Noise levels of the video diffusion model: how they are sampled in training, weighted, and stepped through.

Place in the flow: arithmetic below `vdm.py`, no weights. Rectified flow with t = sigma / (1 + sigma) in (0, 1): the
network gets (1-t) x0 + t eps and predicts the velocity v = eps - x0.
"""

# B batch · K latent frames · C latent channels · h, w latent grid
from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from vw2_robot.random_numbers import SampleNoise

# Size of what moves, in units of the codec's latents (EDM preconditioning, Karras et al. 2022); measured: 1.06.
CHANGE_STD = 1.0
# With this probability the noise level comes from a log-uniform tail over (200, 1e5) instead of the log-normal.
TAIL_PROBABILITY = 0.05
TAIL_LOW = 200.0
TAIL_HIGH = 1e5
# sigma of the share of training samples that `VDMConfig.high_noise` gives, log-uniform: so much noise that only codes
# tell where the clip goes.
HIGH_NOISE = (4.0, 1000.0)
# Sampling goes from the first to the last sigma, evenly spaced in the seventh root (Karras et al. 2022).
SIGMA_FIRST = 80.0
SIGMA_LAST = 0.002
ORDER = 7


def sample_times(
    noise: SampleNoise, *, num_frames: int, shift: float = 1.0, high_noise: float = 0.0
) -> Float[Tensor, " B"]:
    """Sample noise levels t of training: ln sigma ~ N(0, 1), sigma times `shift` sqrt(K), with a log-uniform tail.

    Args:
        noise: of the B samples.
        num_frames: K, latent frames; more frames hide less under the same noise.
        shift: see `VDMConfig.noise_shift`.
        high_noise: see `VDMConfig.high_noise`.
    """
    sigma = noise.randn().exp() * math.sqrt(num_frames) * shift
    sigma = torch.where(noise.rand() < TAIL_PROBABILITY, _log_uniform(noise, TAIL_LOW, TAIL_HIGH), sigma)
    if high_noise > 0:
        sigma = torch.where(noise.rand() < high_noise, _log_uniform(noise, *HIGH_NOISE), sigma)
    return sigma / (1 + sigma)


def _log_uniform(noise: SampleNoise, low: float, high: float) -> Float[Tensor, " B"]:
    return low * (high / low) ** noise.rand()


def loss_weight(time: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Return the weight of the squared velocity error, in [0.5, 1).

    w(sigma) ||x0 - x0_hat||^2 with w = (1 + sigma^2)/sigma^2 equals (1 + sigma^2)/(1 + sigma)^2 ||v - v_hat||^2; with
    sigma = t/(1-t) the latter factor is t^2 + (1-t)^2: bounded, and no cancellation at small sigma.
    """
    return time.square() + (1 - time).square()


def sampling_times(num_steps: int, *, shift: float | None = None) -> Float[Tensor, " S"]:
    """Return the decreasing t of a sampling run: Karras spacing, or with `shift` that of Wan.

    Args:
        num_steps: S.
        shift: factor of sigma = t / (1 - t), by which evenly spaced t are moved to strong noise.
    """
    if shift is not None:
        # From pure noise on, in S equal steps to the least noise of Wan's training, which is left out.
        t = torch.linspace(1, 1e-3, num_steps + 1)[:-1]
        return shift * t / (1 + (shift - 1) * t)
    ramp = torch.linspace(0, 1, num_steps)
    first = SIGMA_FIRST ** (1 / ORDER)
    last = SIGMA_LAST ** (1 / ORDER)
    sigma = (first + ramp * (last - first)) ** ORDER
    return sigma / (1 + sigma)


def velocity_of_change(
    out: Float[Tensor, "B C K h w"],
    noisy: Float[Tensor, "B C K h w"],
    time: Float[Tensor, " B"],
    still: Float[Tensor, "B C #K h w"],
) -> Float[Tensor, "B C K h w"]:
    """Return the velocity for a network that predicts the difference of x0 from a known clip, preconditioned.

    Args:
        out: the network's output.
        noisy: its input, (1-t) x0 + t eps.
        time: t of each sample.
        still: what x0 is expected to be without the output: clean latents of frame 0, or those moved by a warp.
    """
    # Clamped, since both ends divide by zero.
    t = time.clamp(1e-3, 1 - 1e-6)[:, None, None, None, None]
    sigma = t / (1 - t)
    # EDM preconditioning: c_skip is the share of the noisy clip in the estimate, sigma sqrt(c_skip) the output's scale.
    known = CHANGE_STD**2 / (sigma**2 + CHANGE_STD**2)
    change = known * (noisy / (1 - t) - still) + sigma * known.sqrt() * out
    return (noisy - (still + change)) / t
