"""The whole pre-training chain: RLDS -> video prior -> dLDM -> latent cache -> policy.

    pretrain-on-openx data=bridge_sample data.path=DIR model=tiny run_dir=runs/first

Runs the stages named in `stages`, in order. A stage that is complete is skipped, one that was cut off goes on where its
last checkpoint stood; killed at any moment and started again, the final weights are the same bit for bit.
"""

from __future__ import annotations

import time

from vw2_robot.command_line.program import program

from .cache_frames import open_frames
from .config import PretrainConfig, alone
from .extract_latents import extract_latents
from .train_dldm import train_dldm
from .train_policy import train_policy
from .train_vdm import train_vdm

STAGES = {"vdm": train_vdm, "dldm": train_dldm, "latents": extract_latents, "policy": train_policy}


def pretrain_on_openx(config: PretrainConfig) -> None:
    """Run the stages that are asked for and not yet complete."""
    config.hardware.torch_device()  # whether it is there is known before hours of decoding
    frames = open_frames(config)
    silent = sum(not episode.instruction for episode in frames.episodes)
    print(
        f"frames: {len(frames.episodes)} episodes, {sum(e.length for e in frames.episodes)} images "
        f"of {frames.height} x {frames.width}" + (f"; {silent} episodes have no instruction" if silent else ""),
        flush=True,
    )
    for name, stage in STAGES.items():
        if name in config.stages:
            begin = time.monotonic()
            stage(config)
            print(f"{name}: {time.monotonic() - begin:.0f} s, {config.run_dir}/{name}", flush=True)


main = program(PretrainConfig, config_name="pretrain", one_process=True)(alone(pretrain_on_openx))

if __name__ == "__main__":
    main()
