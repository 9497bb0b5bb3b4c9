"""How long the policy takes from an image and a sentence to latent tokens: one table.

Run: python -m benchmarks.decode_latency

The embedded policy at its default size with random weights; time does not depend on what was learned. One thread, best
of several runs. A chunk is one look, all steps decoded with the key-value cache.
"""

from __future__ import annotations

import time

import torch

from vw2_robot.models.ar_policy import LatentPolicy, PolicyConfig

STRIDE = 4  # actions per latent step
RUNS = 10


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    policy = LatentPolicy(PolicyConfig(), generator=torch.Generator().manual_seed(0)).eval()
    parameters = sum(weight.numel() for weight in policy.parameters())
    print(f"policy of {parameters / 1e6:.1f} M parameters")
    print(f"{'batch':<8}{'latent steps':<14}{'actions':<10}{'ms per chunk':>14}{'looks/s':>10}")
    px = policy.config.image_px
    for batch in (1, 8):
        image = torch.zeros(batch, 3, px, px)
        for steps in (1, 2, 4):
            best = float("inf")
            for _ in range(RUNS):
                begin = time.perf_counter()
                policy.decode(policy.prompt(["open the drawer"] * batch, image), steps=steps)
                best = min(best, time.perf_counter() - begin)
            print(f"{batch:<8}{steps:<14}{steps * STRIDE:<10}{1000 * best:>14.1f}{batch / best:>10.0f}")


if __name__ == "__main__":
    main()
