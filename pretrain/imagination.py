"""Videos of any length from codes, decoded segment by segment.

Place in the flow: policy (or an encoder) -> codes -> dLDM decoder -> coarse clip -> VDM, if there is one -> rendered
clip. A segment is one clip of the dLDM: 1 + s·M frames, or every gap-th of them. It begins with the last frame of the
segment before it, and that double is left out where segments are joined.

    plan     full: the policy predicts all codes from the first image, later ones conditioned on earlier ones; where it
             was trained so, from the newest frame after every `condition_every` latent steps as well
             requery: it predicts the codes of every segment from the frame that the segment begins with
    anchor   coarse: the coarse video continues from its own last frame, the rendered one from its own (as released)
             rendered: both continue from the rendered last frame
"""

# B = 1 throughout · T frames · M latent steps of a segment · N codes per step · K = M + 1
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vw2_robot.models.dldm.dldm import DLDM
from vw2_robot.models.policy.acting import act
from vw2_robot.models.policy.ar_policy import LatentPolicy
from vw2_robot.models.policy.config import Acting, Sampling
from vw2_robot.models.video.vdm import VDM
from vw2_robot.models.video.video_codec import VideoCodec

from .config import Anchor, Plan
from .targets import make_control_video

PlanSegment = Callable[[int, Tensor], Tensor]
"""(number of the segment, the frame [1, 3, H, W] it begins with) -> codes [1, M, N]"""


@dataclass(frozen=True)
class Renderer:
    """The VDM of phase 2 with its codec, and how it renders."""

    vdm: VDM
    codec: VideoCodec
    grayscale_control: bool
    sample_steps: int
    guidance: float = 1.0
    negative: Tensor | None = None

    @torch.no_grad()
    def render(
        self,
        codes: Float[Tensor, "1 M N L"],
        coarse: Float[Tensor, "1 T 3 H W"],
        first: Float[Tensor, "1 3 H W"],
        generator: torch.Generator,
    ) -> Float[Tensor, "1 T 3 H W"]:
        """Return a clip in [-1, 1] that begins with `first` and shows the motion of the codes.

        Args:
            codes: of the segment, FSQ values.
            coarse: the decoded clip, which becomes the control video.
            first: the conditioning frame.
            generator: of the noise.
        """
        control = self.codec.encode(make_control_video(coarse, size=first.shape[-2:], grayscale=self.grayscale_control))
        anchor = self.codec.encode(first[:, None])[:, :, 0]
        latents = self.vdm.sample(
            anchor,
            codes,
            control_video=control,
            generator=generator,
            num_steps=self.sample_steps,
            guidance=self.guidance,
            negative=self.negative,
        )
        return self.codec.decode(latents).clamp(-1, 1)


class Imagined(NamedTuple):
    """Videos [T, 3, H, W] in [-1, 1] with the first frame as given, and the codes [M · segments, N] behind them.

    The coarse one has the dLDM's size, the rendered one that of the first frame.
    """

    coarse: Tensor
    rendered: Tensor | None
    codes: Tensor


@torch.no_grad()
def imagine_segments(
    dldm: DLDM,
    first: Float[Tensor, "1 3 H W"],
    plan: PlanSegment,
    *,
    segments: int,
    anchor: Anchor = "coarse",
    renderer: Renderer | None = None,
    generator: torch.Generator,
) -> Imagined:
    """Decode (and render) `segments` clips, each from the last frame of the one before.

    Args:
        dldm: decodes.
        first: pixels in [-1, 1] that the video begins with, of the renderer's size.
        plan: gives the codes of a segment.
        segments: how many.
        anchor: see the file's docstring; without a renderer it is always coarse.
        renderer: None gives no rendered video.
        generator: of the renderer's noise.
    """
    rendered_start = first
    coarse_start = dldm.resized(first[None])[0]
    coarse_parts = [coarse_start]
    rendered_parts = [first]
    codes = []
    for number in range(segments):
        # What the next segment is decoded from: the last frame of the chosen video.
        seen = rendered_start if renderer is not None and anchor == "rendered" else coarse_start
        seen = dldm.resized(seen[None])[0]
        indices = plan(number, seen)
        # Token -> code values, as the decoder takes them.
        levels = dldm.fsq.codes_of(indices)
        # The trunk is causal, so f_0 needs the first frame alone. Clamped, since the last frame is encoded next.
        coarse = dldm.decode(levels, dldm.features(seen[:, None])[:, 0], seen).clamp(-1, 1)
        codes.append(indices[0])
        coarse_parts.append(coarse[0, 1:])  # without the frame that the segment before ends with
        coarse_start = coarse[:, -1]
        if renderer is not None:
            rendered = renderer.render(levels, coarse, rendered_start, generator)
            rendered_parts.append(rendered[0, 1:])
            rendered_start = rendered[:, -1]
    whole = torch.cat(rendered_parts) if renderer is not None else None
    return Imagined(torch.cat(coarse_parts), whole, torch.cat(codes))


def plan_of(
    decode: Callable[[Tensor, int, Tensor | None], Tensor],
    *,
    plan: Plan,
    latent_steps: int,
    segments: int,
    condition_every: int | None = None,
) -> PlanSegment:
    """Return the function that gives the codes of a segment.

    Args:
        decode: (frame, number of latent steps, codes of the plan so far or None) -> codes that follow.
        plan: full: all codes come from the first frame, and the frames of later segments are not used.
        latent_steps: M.
        segments: how many segments there will be.
        condition_every: with plan=full: so many latent steps come from the first frame, and the next ones from the
            frame where they begin and all codes before; as the policy was trained. A multiple of M.
    """
    whole: list[Tensor] = []
    run = condition_every or latent_steps * segments

    def segment(number: int, frame: Tensor) -> Tensor:
        if plan == "requery":
            return decode(frame, latent_steps, None)
        # A run is predicted once, at its first segment, and then cut into segments.
        if number * latent_steps == len(whole) * run:
            whole.append(decode(frame, run, torch.cat(whole, dim=1) if whole else None))
        start = number * latent_steps % run
        return whole[-1][:, start : start + latent_steps]

    return segment


def policy_decoder(
    policy: LatentPolicy,
    instruction: str,
    *,
    acting: Acting,
    chunk_size: int,
    sampling: Sampling,
    generator: torch.Generator,
) -> Callable[[Tensor, int, Tensor | None], Tensor]:
    """Return the function (frame, number of latent steps, codes so far) -> codes that the policy predicts.

    Args:
        policy: predicts.
        instruction: what the prompt asks for.
        acting: as the policy acts; of expected and parallel, codes are the likeliest of each slot. Not none.
        chunk_size: latent steps of the policy's training windows; longer plans continue window by window.
        sampling: temperature, top-k and top-p, for a policy that decodes; temperature 0: as the policy acts.
        generator: of the sampling.
    """
    temperature = sampling.temperature or float(acting == "sampled")

    def decode(frame: Tensor, latent_steps: int, so_far: Tensor | None) -> Int[Tensor, "1 H N"]:
        px = policy.config.image_px
        # As the agent resizes what it is given, so that the policy sees images of its own kind.
        image = F.interpolate(frame, size=(px, px), mode="bilinear", antialias=True)
        prompt = policy.prompt([instruction], image)
        if acting == "parallel":  # all of them at once, since no code depends on another
            codes = act(policy, prompt, latent_steps=latent_steps, acting=acting, last_code=False).codes_BHN
            assert codes is not None
            return codes
        options: dict[str, Any] = {
            "latent_steps": latent_steps,
            "temperature": temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "generator": generator,
            "expected": acting == "expected" and not temperature,
        }
        if so_far is None:
            return policy.long_plan(prompt, window=chunk_size, **options)
        # No longer than a plan of the training, and so that its last run is predicted.
        return policy.decode(prompt, given=so_far[:, -(chunk_size - latent_steps) :], **options).codes_BHN

    return decode


def policy_plan(
    policy: LatentPolicy,
    instruction: str,
    *,
    facts: Mapping[str, Any],
    acting: Acting,
    plan: Plan,
    latent_steps: int,
    segments: int,
    sampling: Sampling,
    generator: torch.Generator,
) -> PlanSegment:
    """Return the function that gives the codes of a segment as the policy predicts them.

    Args:
        policy: predicts.
        instruction: what the prompt asks for.
        facts: of the policy's checkpoint: which frames a plan is conditioned on.
        acting: as for `policy_decoder`.
        plan: as for `plan_of`.
        latent_steps: M.
        segments: how many segments there will be.
        sampling: as for `policy_decoder`.
        generator: of the sampling.
    """
    every = facts.get("condition_every") if plan == "full" else None
    decode = policy_decoder(
        policy,
        instruction,
        acting=acting,
        chunk_size=latent_steps if every is None else int(facts["plan_steps"]),
        sampling=sampling,
        generator=generator,
    )
    return plan_of(decode, plan=plan, latent_steps=latent_steps, segments=segments, condition_every=every)
