"""The encoder on overlapping windows: what does not depend on a window's start is computed once for all of them.

Place in the flow: windows of episodes -> features -> codes, for the latent cache. The encoder sees a window's first
frame in place of all frames before it, so the first steps depend on where the window starts: one step of the patches,
and two more after each temporal convolution of length 3. All later steps are equal in every window that shows these
frames on the same grid of steps. So each layer runs once over all frames, and once over the first steps of each window.
The first temporal attention ends this: after it every step depends on the start.
"""

# B windows of a batch · T frames of a window · F frames, L steps of all windows one after the other
# R first steps of a window, which depend on its start · K steps of a window
from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from .causal_video import CausalConv3d, CausalEncoder, FrameAttention, ResidualBlock


class Layout(NamedTuple):
    """All windows of a batch as one video: its frames, and the latent step at which each window starts."""

    frame_ids: NDArray[np.int64]
    starts: NDArray[np.int64]


def lay_out(frame_ids: NDArray[np.int64], *, stride: int, cache_stride: int) -> Layout:
    """Return one video that contains each window; windows a whole number of latent steps apart overlap in it.

    Args:
        frame_ids: int [B, T], the frames of each window, in order of episode and start; T - 1 is a multiple of the
            stride.
        stride: frames of a latent step.
        cache_stride: frames between two windows of an episode.
    """
    shift = math.lcm(stride, cache_stride)  # frames between two windows on the same grid of steps
    apart = shift // cache_stride  # the same in windows
    runs: list[list[NDArray[np.int64]]] = []
    places: list[tuple[int, int]] = []  # of each window: its run, and its first step in there
    for index, ids in enumerate(frame_ids):
        before = index - apart
        # Compared, since rounding of frame rates may shift the frames of two windows against each other.
        if shift < len(ids) and before >= 0 and np.array_equal(frame_ids[before, shift:], ids[:-shift]):
            run, place = places[before]
            runs[run].append(ids[-shift:])
            places.append((run, place + shift // stride))
        else:
            # A run's first frame fills a latent step, so that the steps of all runs are on one grid.
            runs.append([ids[:1].repeat(stride - 1), ids])
            places.append((len(runs) - 1, 0))
    frames = [np.concatenate(parts) for parts in runs]
    offsets = np.cumsum([0] + [len(ids) // stride for ids in frames])
    # The encoder itself repeats the first frame of the video.
    return Layout(np.concatenate(frames)[stride - 1 :], np.array([offsets[run] + place for run, place in places]))


def window_features(
    encoder: CausalEncoder, video: Float[Tensor, "F 3 H W"], starts: Int[Tensor, " B"], *, num_frames: int
) -> Float[Tensor, "B K C h w"]:
    """Return the features of each window: those of `encoder` on its frames alone, but for rounding.

    Args:
        encoder: of the dLDM.
        video: frames in [-1, 1] that contain all windows (`lay_out`).
        starts: the latent step at which each window starts.
        num_frames: of a window; 1 + a multiple of the stride.
    """
    layers: list[nn.Module] = [encoder.stem, *encoder.body]
    starts = starts * _temporal_stride(encoder)  # in steps of patches
    patch = encoder.patcher.t
    features = SharedFeatures(
        starts,
        first=encoder.patcher(video[starts * patch, None]).movedim(-1, 2),
        shared=encoder.patcher(video[None]).movedim(-1, 2),
        length=1 + (num_frames - 1) // patch,
    )
    while features.pays(layers[0]):
        features = features.after(layers.pop(0))
    x = features.windows(features.length)
    for layer in layers:
        x = layer(x)
    return x


@dataclass(frozen=True)
class SharedFeatures:
    """Features of a layer for all windows.

    Attributes:
        starts: [B], the step of `shared` at which each window starts.
        first: the first R steps of each window.
        shared: all steps of the video; valid for a window from its step R on.
        length: K, the steps of a window.
    """

    starts: Int[Tensor, " B"]
    first: Float[Tensor, "B R C h w"]
    shared: Float[Tensor, "1 L C h w"]
    length: int

    def windows(self, length: int) -> Float[Tensor, "B length C h w"]:
        """Return the first `length` steps of each window, at least R."""
        count, dependent = self.first.shape[:2]
        if length == dependent:
            return self.first
        # Joined as a batch of images: that keeps their memory layout.
        images = torch.cat([self.first.flatten(0, 1), self.shared[0]])
        step = torch.arange(length, device=images.device)
        window = torch.arange(count, device=images.device)[:, None]
        later = count * dependent + self.starts[:, None]
        return images[torch.where(step < dependent, window * dependent, later) + step]

    def pays(self, layer: nn.Module) -> bool:
        """Return whether a layer computes fewer steps this way than window by window."""
        if isinstance(layer, FrameAttention) and layer.axis == "time":
            return False
        stride = _temporal_stride(layer)
        count = len(self.starts)
        length = 1 + (self.length - 1) // stride
        once = 1 + (self.shared.shape[1] - 1) // stride
        return once + count * _dependent(layer, self.first.shape[1]) < count * length

    def after(self, layer: nn.Module) -> SharedFeatures:
        """Return the layer's output for all windows."""
        if isinstance(layer, ResidualBlock):
            # Layer by layer, since the dependent steps grow inside: convolutions in space need not compute the last.
            inner = self
            for part in (layer.norm1, *layer.conv1, layer.norm2, *layer.conv2):
                inner = inner.after(part)
            first = layer.skip(self.windows(inner.first.shape[1])) + inner.first
            return SharedFeatures(self.starts, first, layer.skip(self.shared) + inner.shared, self.length)
        stride = _temporal_stride(layer)
        dependent = _dependent(layer, self.first.shape[1])
        return SharedFeatures(
            self.starts // stride,
            first=layer(self.windows(1 + stride * (dependent - 1))),
            shared=layer(self.shared),
            length=1 + (self.length - 1) // stride,
        )


def _convolutions(module: nn.Module) -> Iterator[CausalConv3d]:
    return (part for part in module.modules() if isinstance(part, CausalConv3d))


def _temporal_stride(module: nn.Module) -> int:
    return math.prod(conv.temporal_stride for conv in _convolutions(module))


def _dependent(layer: nn.Module, first: int) -> int:
    """Return how many steps depend on a window's start after a layer, of `first` before it."""
    for conv in _convolutions(layer):
        # Step k sees those from stride * k - (kernel - 1) on.
        first = math.ceil((first + conv.kernel[0] - 1) / conv.temporal_stride)
    return first
