"""The action head: an MLP from the hidden states of one latent step to the s actions that the step spans.

Place in the flow: on top of the AR policy, in fine-tuning and control. Latent step k covers frames s(k-1)+1 .. sk, so
its hidden states give actions a[s(k-1)] .. a[sk-1]: the N states that predict its codes and, with `last_code`, the one
after its last code, which no other state of the step has read. The paper says "an MLP layer".

With `bins` the head classifies, as LAPA's does: each number of an action has as many bins as `bins`, equally frequent
in the labels, and the action is made of the centers of the likeliest ones. LAPA gives the seven numbers one after the
other, as tokens; here all are given at once, as all codes are with acting=parallel.
"""

# B batch · H latent steps · R states per step: N codes, and 1 with `last_code` · D hidden width · s actions per step
# A action dims · V bins
from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from ..precision import at_least_float32
from .config import ActionHeadConfig

POSE_DIM = 10  # position, sine and cosine of the three angles, opening of the fingers


class ActionHead(nn.Module):
    """LayerNorm, Linear, GELU, Linear over the concatenated states of a step; gives normalized actions.

    Args:
        config: size of the head.
        width: D, of a hidden state.
        queries: N, codes per latent step.
        stride: s, actions per latent step.
        action_size: A, numbers of an action.

    Attributes:
        centers: of the bins [A, V], zeros before `fit_bins`; None without bins.
    """

    centers: Tensor | None

    def __init__(self, config: ActionHeadConfig, *, width: int, queries: int, stride: int, action_size: int) -> None:
        super().__init__()
        self.stride = stride
        self.last_code = config.last_code
        inner = 4 * min(width, config.hidden)
        states = (queries + config.last_code) * width
        self.mlp = nn.Sequential(
            nn.LayerNorm(states),
            nn.Linear(states, inner),
            nn.GELU(),
            nn.Linear(inner, stride * action_size * (config.bins or 1)),
        )
        self.register_buffer("centers", None if config.bins is None else torch.zeros(action_size, config.bins))
        self.pose = nn.Linear(inner, POSE_DIM) if config.pose else None

    def forward(self, states: Float[Tensor, "B H R D"]) -> Float[Tensor, "B sH A"]:
        """Return normalized actions in time order."""
        if self.centers is None:
            return rearrange(self._outputs(states), "b h (s a) -> b (h s) a", s=self.stride)
        chosen = self.bin_logits(states).argmax(-1)
        return self.centers[torch.arange(len(self.centers), device=chosen.device), chosen]

    def _outputs(self, states: Float[Tensor, "B H R D"]) -> Float[Tensor, "B H O"]:
        out: Tensor = self.mlp(rearrange(states, "b h n d -> b h (n d)"))
        return out

    def bin_logits(self, states: Float[Tensor, "B H R D"]) -> Float[Tensor, "B sH A V"]:
        """Return a logit for each bin of each number, actions in time order; for a head with bins."""
        assert self.centers is not None
        return rearrange(self._outputs(states), "b h (s a v) -> b (h s) a v", s=self.stride, a=len(self.centers))

    @torch.no_grad()
    def fit_bins(self, actions: Float[Tensor, "n A"]) -> None:
        """Place the bins: as many actions in each, and its center at their median. Equal actions share one bin."""
        assert self.centers is not None
        count = self.centers.shape[1]
        middle = (torch.arange(count, dtype=torch.float64) + 0.5) / count
        order = actions.double().cpu().sort(dim=0).values
        self.centers.copy_(order[(middle * len(order)).long()].T)

    def bins_of(self, actions: Float[Tensor, "*batch A"]) -> Int[Tensor, "*batch A"]:
        """Return the bin of each number: that of the nearest center, of equal ones the first."""
        assert self.centers is not None
        borders = (self.centers[:, 1:] + self.centers[:, :-1]) / 2
        found = torch.searchsorted(borders, actions.to(borders).flatten(0, -2).T.contiguous())
        return found.T.reshape(actions.shape)

    def bin_loss(
        self,
        states: Float[Tensor, "B H R D"],
        actions: Float[Tensor, "B sH A"],
        mask: Bool[Tensor, "B sH"],
        count: Tensor,
    ) -> Float[Tensor, ""]:
        """Return the cross-entropy of the bins, averaged over the numbers of an action.

        Args:
            states: of the latent steps.
            actions: normalized.
            mask: false for actions that are padding.
            count: what the sum over actions is divided by: their number in the whole batch.
        """
        logits = self.bin_logits(states)
        # float32 on purpose: as for codes, the logarithm of a softmax loses its small parts in bfloat16.
        with torch.autocast(logits.device.type, enabled=False):
            logits = at_least_float32(logits).flatten(0, 2)
            losses = F.cross_entropy(logits, self.bins_of(actions).flatten(), reduction="none")
            return (losses.view_as(actions).mean(-1) * mask).sum() / count.clamp(min=1)

    def end_effector_pose(self, states: Float[Tensor, "B H R D"]) -> Float[Tensor, "B P"]:
        """Return the normalized pose of the end effector in the image, from the layer that the actions come from.

        An auxiliary output for training alone. An action depends on where the end effector is, and in a single camera
        that follows only from the whole arm; this loss makes the states carry it.

        Raises:
            ValueError: the head was built without `pose`.
        """
        if self.pose is None:
            raise ValueError("this head was built without head.pose")
        # States of the first latent step; everything but the last layer is shared with the actions.
        out: Tensor = self.pose(self.mlp[:-1](rearrange(states[:, 0], "b n d -> b (n d)")))
        return out
