"""The action head: an MLP from the hidden states of one latent step to the s actions that the step spans.

Place in the flow: on top of the AR policy, in fine-tuning and control. Latent step k covers frames s(k-1)+1 .. sk, so
its hidden states give actions a[s(k-1)] .. a[sk-1]: the N states that predict its codes and, with `last_code`, the one
after its last code, which no other state of the step has read. The paper says "an MLP layer".
"""

# B batch · H latent steps · R states per step: N codes, and 1 with `last_code` · D hidden width · s actions per step
# A action dims
from __future__ import annotations

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from .config import ActionHeadConfig

POSE_DIM = 10  # position, sine and cosine of the three angles, opening of the fingers


class ActionHead(nn.Module):
    """LayerNorm, Linear, GELU, Linear over the concatenated states of a step; outputs are normalized actions.

    Args:
        config: size of the head.
        width: D, of a hidden state.
        queries: N, codes per latent step.
        stride: s, actions per latent step.
        action_size: A, numbers of an action.
    """

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
            nn.Linear(inner, stride * action_size),
        )
        self.pose = nn.Linear(inner, POSE_DIM) if config.pose else None

    def forward(self, states: Float[Tensor, "B H R D"]) -> Float[Tensor, "B sH A"]:
        """Return normalized actions in time order."""
        out = self.mlp(rearrange(states, "b h n d -> b h (n d)"))
        return rearrange(out, "b h (s a) -> b (h s) a", s=self.stride)

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
