"""The frames that a policy expects: its latent tokens, decoded from the image it acted on as `vw2-imagine` does it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from vw2_robot.agent import policy_folder
from vw2_robot.checkpoint import load_checkpoint
from vw2_robot.data.clips import frame_offsets, time_base_of
from vw2_robot.data.images import resize_frame
from vw2_robot.devices import open_device
from vw2_robot.models.dldm.dldm import DLDM
from vw2_robot.pixels import to_model_range, to_pixels

from .session import Image


class Expectation:
    """A `session.FrameDecoder`: the dLDM of a policy.

    Args:
        policy: folder, builtin:NAME or Hub id of the policy.
        hz: control steps per second.
        device: of the dLDM.

    Raises:
        InputError: the policy has no dLDM.
    """

    def __init__(self, policy: str, *, hz: float, device: str) -> None:
        checkpoint = load_checkpoint(policy_folder(policy), kind="policy")
        self._dldm = DLDM.of_policy(checkpoint).to(open_device(device)).eval().requires_grad_(False)
        config = self._dldm.config
        self._latent_steps = min(int(checkpoint.config["latent_steps"]), config.latent_steps)
        count = 1 + self._latent_steps * config.temporal_stride
        offsets = frame_offsets(count, hz=hz, temporal_stride=config.temporal_stride, **time_base_of(checkpoint.facts))
        self.offsets: Sequence[int] = [int(offset) for offset in offsets[:: config.gap]]

    def frames(self, image: Image, tokens: NDArray[np.int64]) -> Image:
        """Return uint8 [K, h, w, 3]: `image` reduced, and what the codes [M, N] make of it."""
        device = next(self._dldm.parameters()).device
        codes = torch.from_numpy(tokens[None, : self._latent_steps]).to(device)
        first = to_model_range(torch.from_numpy(self.reduced(image)[None]).to(device))
        # The first frame alone is encoded, the rest is what the codes make of it.
        anchor = self._dldm.features(first[:, None])[:, 0]
        coarse = self._dldm.decode(self._dldm.fsq.codes_of(codes), anchor, first).clamp(-1, 1)
        pixels: Image = to_pixels(coarse[0]).cpu().numpy()
        return pixels

    def reduced(self, image: Image) -> Image:
        """Return an image in the size of the frames."""
        return np.array(resize_frame(image, height=self._dldm.config.height, width=self._dldm.config.width))
