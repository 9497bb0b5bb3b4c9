"""One image and instruction, two ways to act: which ways of training let a policy choose one instead of their mean."""

import numpy as np
import pytest
import torch

from vw2_robot.data.statistics import ActionStatistics
from vw2_robot.finetune.losses import totals_of, window_batch, window_losses
from vw2_robot.models.policy.acting import act
from vw2_robot.models.policy.action_head import ActionHead
from vw2_robot.models.policy.ar_policy import LatentPolicy
from vw2_robot.models.policy.config import ActionHeadConfig, BackboneConfig, PolicyConfig
from vw2_robot.random_numbers import SampleNoise

POLICY = PolicyConfig(
    backbone=BackboneConfig(hidden=32, ffn=64, layers=2, heads=4, kv_heads=2), image_px=8, image_widths=(8,)
)


class TwoWays:
    """Equal observations; half of the windows move to one side after codes of their own, half to the other."""

    has_codes = True
    codes = np.array([[[1, 2, 3, 4]], [[501, 502, 503, 504]]])
    valid = np.ones((2, 1), bool)
    action_mask = np.ones((2, 4), bool)
    actions = np.zeros((2, 4, 7), np.float32)
    actions[0, :, 0] = 1.0
    actions[1, :, 0] = -1.0
    statistics = ActionStatistics.from_actions(actions.reshape(-1, 7), gripper_index=None)

    def images(self, rows, *, image_px, device):
        return torch.zeros(len(rows), 3, 8, 8)

    def instructions(self, rows):
        return ["go"] * len(rows)


@pytest.mark.parametrize(
    ("acting", "source", "commits"),
    [
        ("argmax", "hindsight", True),
        ("argmax", "predicted", False),
        ("parallel", "hindsight", False),
    ],
)
def test_only_codes_that_are_seen_in_hindsight_carry_the_choice(configure, acting, source, commits):
    config = configure("unused", acting=acting, code_source=source, image_shift_px=0, lambda_ce=1.0)
    policy = LatentPolicy(POLICY, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    head = ActionHead(ActionHeadConfig(16), width=32, queries=4, stride=4, action_size=7)
    optimizer = torch.optim.AdamW([*policy.parameters(), *head.parameters()], lr=3e-3)
    windows = TwoWays()
    rows = np.arange(4) % 2
    cpu = torch.device("cpu")
    for step in range(100):
        noise = SampleNoise(0, step, stream=0, samples=range(4))
        batch = window_batch(config, policy, windows, rows, device=cpu, hindsight_share=0.25, noise=noise)
        loss = window_losses(config, policy, head, windows, batch, totals_of(windows, rows, cpu)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        prompt = policy.eval().prompt(["go"], torch.zeros(1, 3, 8, 8))
        dx = head(act(policy, prompt, latent_steps=1, acting=acting, last_code=True).states_BHRD)[0, 0, 0]
    assert (abs(float(dx)) > 0.6) if commits else (abs(float(dx)) < 0.2), float(dx)
