"""The whole pre-training chain: RLDS -> video prior -> dLDM -> latent cache -> policy.

    pretrain-on-openx data=bridge_sample data.path=DIR model=tiny run_dir=runs/first

Runs the stages named in `stages`, in order. A stage that is complete is skipped, an interrupted one continues from its
last checkpoint. Killed at any moment and started again, the final weights are the same bit for bit.
"""

from __future__ import annotations

import time

from vw2_robot.command_line import entry_points
from vw2_robot.models.efficientnet import read_imagenet_weights

from .cache_frames import open_frames
from .config import PretrainConfig
from .extract_latents import extract_latents
from .stages import alone
from .train_dldm import train_dldm
from .train_policy import train_policy
from .train_vdm import train_vdm

STAGES = {"vdm": train_vdm, "dldm": train_dldm, "latents": extract_latents, "policy": train_policy}


def pretrain_on_openx(config: PretrainConfig) -> None:
    """Run the stages of `config.stages` that are not complete."""
    config.hardware.torch_device()  # raises before hours of decoding where the device is missing
    if config.policy.image == "pretrained" and "policy" in config.stages:
        read_imagenet_weights()  # likewise where their package is missing
    frame_cache = open_frames(config)
    episodes = frame_cache.episodes
    without = episodes.texts("instruction").count("")
    print(
        f"frames: {len(episodes)} episodes, {episodes.length.sum()} images of "
        f"{frame_cache.height} x {frame_cache.width}"
        + (f"; {without} episodes have no instruction" if without else ""),
        flush=True,
    )
    # In this order, whatever the one in `stages`: each stage reads what the one before has written.
    for name, stage in STAGES.items():
        if name in config.stages:
            begin = time.monotonic()
            stage(config)
            print(f"{name}: {time.monotonic() - begin:.0f} s, {config.run_dir}/{name}", flush=True)


main = alone(pretrain_on_openx)

if __name__ == "__main__":
    entry_points.pretrain_on_openx.main()
