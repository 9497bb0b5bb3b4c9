"""Stage `vdm`: a video prior, learned from clips without codes.

    vw2-train-vdm data=bridge_sample data.path=DIR model=tiny run_dir=runs/first

Table A.3 of the paper shows that a randomly initialised VDM collapses in phase 2; the embedded tiny model therefore
gets a prior of its own. Every sample sees the null context and no control, so what is learned is how frames follow the
first one.
"""

from __future__ import annotations

from pathlib import Path

import torch

from vw2_robot.checkpoint import load_checkpoint, load_optimizer, save_checkpoint
from vw2_robot.cli import program
from vw2_robot.config_tree import config_tree
from vw2_robot.models.vdm import VDM
from vw2_robot.models.video_codec import VideoCodec, build_codec
from vw2_robot.optim import build_optimizer, optimizer_step
from vw2_robot.pixels import to_model_range
from vw2_robot.runs import Run, generator

from .clips import clip_sampler, to_device, training_clips
from .config import Pretrain, open_frames, training_split

# Streams of `runs.generator`: what is drawn in one stage never depends on another.
STREAM_INIT, STREAM_NOISE, STREAM_VALIDATION = 10, 11, 12


def build_vdm(config: Pretrain) -> tuple[VDM, VideoCodec]:
    """An untrained VDM and codec; the weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator(config.seed, 0, stream=STREAM_INIT))))
        return VDM(config.vdm, config.geometry), build_codec(config.codec)


def load_vdm(path: str | Path, config: Pretrain) -> tuple[VDM, VideoCodec]:
    """The VDM and codec of a finished stage, ready for phase 2."""
    vdm, codec = build_vdm(config)
    load_checkpoint(path, kind="vdm").load_into(vdm=vdm, codec=codec)
    vdm.finish_prior()
    return vdm, codec


def train_vdm(config: Pretrain) -> None:
    """Train the prior, or return at once when it is complete."""
    loop = config.train_vdm
    run = Run(
        config.stage_dir("vdm"),
        config.stage_tree("data", "dldm", "vdm", "codec", "train_vdm", "seed"),
        stage="vdm",
        total_steps=loop.steps,
        save_every=loop.save_every,
        log_every=loop.log_every,
    )
    if run.complete:
        return
    device = config.hardware.torch_device()
    frames = open_frames(config)
    train_ids, validation_ids = training_split(config, frames)
    training = training_clips(config, frames, train_ids, validation_ids, run.path)
    held_out = clip_sampler(config, frames, validation_ids, augment=False)
    vdm, codec = build_vdm(config)
    codec.measure(to_model_range(torch.from_numpy(clip_sampler(config, frames, train_ids).batch(0, 64).pixels)))
    vdm, codec = vdm.to(device), codec.to(device)
    optimizer = build_optimizer(vdm.trainable_parameters(prior=True), loop.optim)
    if run.checkpoint is not None:
        checkpoint = load_checkpoint(run.checkpoint, kind="vdm")
        checkpoint.load_into(vdm=vdm, codec=codec)
        load_optimizer(run.checkpoint, optimizer)
        training.restore(checkpoint.facts["clips"])

    def prior_loss(clips: tuple[torch.Tensor, torch.Tensor], noise: torch.Generator) -> torch.Tensor:
        x, valid = clips
        with config.hardware.autocast(device):
            codes = x.new_zeros(len(x), config.dldm.steps, config.dldm.queries, len(config.dldm.fsq_levels))
            return vdm.denoising_loss(codec.encode(x), codes, hint=None, valid=valid, generator=noise, drop_codes=True)

    for step in run.steps():
        noise = generator(config.seed, step, stream=STREAM_NOISE)
        loss = prior_loss(to_device(training.batch(step, loop.batch), device), noise)
        norm = optimizer_step(loss, optimizer, step=step, config=loop.optim, total_steps=loop.steps)
        if run.due(step, loop.log_every):
            with torch.no_grad():
                clips = to_device(held_out.batch(0, 32), device)
                validation = prior_loss(clips, generator(config.seed, 0, stream=STREAM_VALIDATION))
            run.log(
                step,
                {"vdm/denoising_loss": loss.detach(), "vdm/validation_loss": validation, "vdm/grad_norm": norm},
            )
        if run.due(step, loop.save_every):
            run.save(
                step,
                lambda path: save_checkpoint(
                    path,
                    kind="vdm",
                    config=config_tree(config.vdm) | {"codec": config_tree(config.codec)},
                    modules={"vdm": vdm, "codec": codec},
                    facts={
                        "geometry": config.geometry._asdict(),
                        "frames_digest": frames.digest,
                        "clips": training.state(),
                    },
                    optimizer=optimizer,
                ),
            )
    training.close()
    run.close()


main = program(Pretrain, config_name="pretrain")(train_vdm)

if __name__ == "__main__":
    main()
