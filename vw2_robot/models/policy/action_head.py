"""Hidden states of one latent step -> the s actions that the step spans.

Place in the flow: on top of the AR policy, in fine-tuning and control. Latent step k covers frames s(k-1)+1 .. sk, so
its N hidden states answer for actions a[s(k-1)] .. a[sk-1]. Method specification 2.6; the paper says "an MLP layer".
"""

# B batch · H latent steps · N codes per step · D hidden width · s actions per step · A action dims
from __future__ import annotations

from dataclasses import dataclass

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vw2_robot.contracts import ACTION_DIM
from vw2_robot.limits import Count

POSE_DIM = 10  # position, sine and cosine of the three angles, opening of the fingers


@dataclass(frozen=True)
class ActionHeadConfig:
    """Sizes of the head."""

    hidden: Count = 1024
    """width of the one hidden layer is 4 * min(D, hidden)"""
    pose: bool = False
    """a second output in training: where the hand is now, see `ActionHead.end_effector_pose`"""


class ActionHead(nn.Module):
    """LayerNorm, Linear, GELU, Linear over the N concatenated states of a step. Outputs are normalized actions."""

    def __init__(self, config: ActionHeadConfig, *, width: int, queries: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        inner = 4 * min(width, config.hidden)
        self.mlp = nn.Sequential(
            nn.LayerNorm(queries * width),
            nn.Linear(queries * width, inner),
            nn.GELU(),
            nn.Linear(inner, stride * ACTION_DIM),
        )
        self.pose = nn.Linear(inner, POSE_DIM) if config.pose else None

    def forward(self, states: Float[Tensor, "B H N D"]) -> Float[Tensor, "B sH A"]:
        """Normalized actions in time order."""
        out = self.mlp(rearrange(states, "b h n d -> b h (n d)"))
        return rearrange(out, "b h (s a) -> b (h s) a", s=self.stride)

    def end_effector_pose(self, states: Float[Tensor, "B H N D"]) -> Float[Tensor, "B P"]:
        """Normalized pose of the hand at the moment of the image, from the layer that the actions come from.

        Nobody needs the answer in control. It is asked for in training because an action depends on where the hand is,
        and one camera shows that only to who looks at the whole arm.
        """
        if self.pose is None:
            raise ValueError("this head was built without head.pose")
        out: Tensor = self.pose(self.mlp[:-1](rearrange(states[:, 0], "b n d -> b (n d)")))
        return out
