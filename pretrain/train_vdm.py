"""Stage `vdm`: a video prior, learned from clips without codes.

    vw2-train-vdm data=bridge_sample data.path=DIR model=tiny run_dir=runs/first

Table A.3 of the paper shows that a randomly initialized VDM collapses in phase 2, so the built-in small VDM is trained
as a prior first. Every sample has the null context and no control, so what is learned is how frames follow the first
one.
"""

# B batch · T frames · M latent steps

from __future__ import annotations

from contextlib import closing
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from vw2_robot.checkpoint import Checkpoint, load_checkpoint, load_optimizer, save_checkpoint
from vw2_robot.command_line import entry_points
from vw2_robot.command_line.config_tree import config_from, config_tree
from vw2_robot.data.clips import ClipSampler
from vw2_robot.distributed.batch_share import BatchShare
from vw2_robot.distributed.ranks import global_sum, is_main, main_first
from vw2_robot.distributed.sharding import LossParts, Parallel, full_state, state_bytes
from vw2_robot.models.dldm.config import DLDMConfig
from vw2_robot.models.video.config import CodecConfig, VDMConfig
from vw2_robot.models.video.cosmos_native import variant_of
from vw2_robot.models.video.vdm import VDM
from vw2_robot.models.video.video_codec import VideoCodec, WanCodec, build_codec
from vw2_robot.optim import build_optimizer, optimizer_step
from vw2_robot.pixels import to_model_range
from vw2_robot.random_numbers import SampleNoise, generator
from vw2_robot.runs import Run

from .cache_frames import open_frames, training_split
from .clips import TrainingClips, clip_sampler, training_clips
from .config import PretrainConfig, make_geometry
from .global_batch import batch_on_device, device_of, validation_chunks
from .stages import alone, finished_stage

# Streams of `random_numbers`: random numbers of one stage never depend on those of another.
STREAM_INIT, STREAM_NOISE, STREAM_VALIDATION = 10, 11, 12
VALIDATION_CLIPS = 32


def build_vdm(config: PretrainConfig) -> tuple[VDM, VideoCodec]:
    """Return an untrained VDM and codec; the weights depend on the seed alone."""
    # PyTorch initializes layers from the global generator: it is seeded here and put back afterwards.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator(config.seed, 0, stream=STREAM_INIT))))
        return VDM(config.vdm, config.geometry, config.codec), build_codec(config.codec)


def load_vdm(path: str | Path, config: PretrainConfig) -> tuple[VDM, VideoCodec]:
    """Return the VDM and codec of a finished stage, ready for phase 2."""
    vdm, codec = build_vdm(config)
    load_checkpoint(path, kind="vdm").load_into(vdm=vdm, codec=codec)
    vdm.finish_prior()
    return vdm, codec


def vdm_of_dldm(checkpoint: Checkpoint, dldm: DLDMConfig) -> tuple[VDM, VideoCodec] | None:
    """Return the VDM and codec of a checkpoint of stage `dldm`, in evaluation mode; None where it has none.

    Raises:
        InputError: the checkpoint describes a VDM that its weights do not fit.
    """
    if checkpoint.facts.get("vdm") is None:
        return None
    with checkpoint.building():
        codec_config = config_from(CodecConfig, checkpoint.fact("codec"))
        codec = build_codec(codec_config)
        vdm_config = config_from(VDMConfig, checkpoint.facts["vdm"])
        vdm = VDM(vdm_config, make_geometry(dldm, vdm_config, codec_config), codec_config)
        checkpoint.load_into(vdm=vdm, codec=codec)
    return vdm.eval(), codec.eval()


def open_vdm(config: PretrainConfig, clips: ClipSampler) -> tuple[VDM, VideoCodec]:
    """Return what phase 2 begins with: the prior of stage `vdm`, that of a diffusers folder, or random weights.

    Args:
        config: `vdm.init` and `vdm.weights` decide which.
        clips: training clips, on which the codec is measured if no stage has done it.

    Raises:
        InputError: stage `vdm` is unfinished, or the folder is missing or holds a model of another size.
    """
    if config.needs_prior:
        return load_vdm(finished_stage(config, "vdm"), config)
    vdm, codec = build_vdm(config)
    prepare_codec(config, codec, clips)
    # Once and not twice: `load_folder` calls it itself.
    if config.vdm.weights is None:
        vdm.finish_prior()
    else:
        vdm.load_folder(config.vdm.weights)
        if config.vdm.family != "wan" and is_main():
            print(f"vdm: {variant_of(Path(config.vdm.weights))}", flush=True)
    return vdm, codec


def prepare_codec(config: PretrainConfig, codec: VideoCodec, clips: ClipSampler) -> None:
    """Load the codec's weights, or measure the scale of its latents on training clips.

    Args:
        config: `codec.weights` is the folder to load from, if any.
        codec: is changed in place.
        clips: sampler of training clips; one batch of 64 clips is measured.
    """
    if isinstance(codec, WanCodec):  # its scale comes with its weights, so no clips are read
        if config.codec.weights is not None:
            codec.load_folder(config.codec.weights)
    else:
        # Always the same batch, so that the scale depends on data and seed alone.
        codec.measure(to_model_range(torch.from_numpy(clips.batch(0, 64).pixels)))


def prior_loss(
    config: PretrainConfig,
    vdm: VDM,
    codec: VideoCodec,
    clips: tuple[Tensor, Tensor],
    noise: SampleNoise,
    *,
    valid_steps: Tensor | None = None,
) -> Tensor:
    """Return the denoising loss of a batch without codes, and without control video but a still one.

    Args:
        config: precision, and the shape of the codes that are hidden.
        vdm: the model to train.
        codec: encodes the clips into latents.
        clips: (pixels [B, T, 3, H, W] in [-1, 1], valid steps bool [B, M]), on the device.
        noise: of these clips.
        valid_steps: see `VDM.denoising_loss`.

    Returns:
        The loss, a scalar tensor.
    """
    x, valid = clips
    with config.hardware.autocast(x.device):
        # The shape of codes matters, their values do not: `drop_codes` puts the null context in their place.
        codes = x.new_zeros(len(x), config.dldm.latent_steps, config.dldm.queries, config.dldm.code_dims)
        latents = codec.encode(x)
        return vdm.denoising_loss(
            latents,
            codes,
            control_video=vdm.still_video(latents[:, :, 0], latents.shape[2]),
            valid=valid,
            noise=noise,
            drop_codes=True,
            valid_steps=valid_steps,
        )


def train_vdm(config: PretrainConfig) -> None:
    """Train the prior, or return at once when it is complete or not wanted."""
    if not config.needs_prior:
        print("vdm: this configuration has no prior (train_dldm.with_vdm, vdm.init, vdm.weights)", flush=True)
        return
    with Run(
        config.stage_dir("vdm"),
        config.stage_tree("data", "dldm", "vdm", "codec", "train_vdm", "seed"),
        stage="vdm",
        total_steps=config.train_vdm.train_steps,
        save_every=config.train_vdm.save_every,
        log_every=config.train_vdm.log_every,
        hardware=config.hardware,
        track=config.track,
    ) as run:
        if run.complete:
            return
        device = config.hardware.torch_device()
        frame_cache = open_frames(config)
        train_ids, validation_ids = training_split(config, frame_cache)
        # Closed on errors too: a stream or a replay has threads.
        with closing(training_clips(config, frame_cache, train_ids, validation_ids, run.path)) as training:
            vdm, codec = build_vdm(config)
            prepare_codec(config, codec, clip_sampler(config, frame_cache, train_ids))
            vdm = config.hardware.placed(vdm, device)
            codec = config.hardware.placed(codec, device)
            prepare_vdm(config, vdm)
            held_out = clip_sampler(config, frame_cache, validation_ids, augment=False)
            train_prior(config, run, vdm, codec, training, held_out, frames_digest=frame_cache.digest)


def prepare_vdm(config: PretrainConfig, vdm: VDM) -> None:
    """Switch on what the hardware options ask for."""
    if config.hardware.gradient_checkpointing:
        # Recomputes activations in the backward pass: less memory, one more forward pass.
        vdm.checkpoint_gradients()
    if config.hardware.compile:
        vdm.compile_blocks()


def train_prior(
    config: PretrainConfig,
    run: Run,
    vdm: VDM,
    codec: VideoCodec,
    training: TrainingClips,
    held_out: ClipSampler,
    *,
    frames_digest: str,
) -> None:
    """Train all steps that are left, from the last checkpoint on.

    Args:
        config: of the run.
        run: counts the steps and keeps the checkpoints.
        vdm: is trained in place.
        codec: is not trained.
        training: clips to train on.
        held_out: clips to validate on.
        frames_digest: of the frame cache, for checkpoints.
    """
    loop = config.train_vdm
    hardware = config.hardware
    share = BatchShare.of(loop.batch_size, micro_batches=hardware.micro_batches)
    vdm.trainable_parameters(prior=True)
    parallel = Parallel({"vdm": vdm}, sharding=hardware.sharding, blocks=vdm.blocks())
    optimizer = build_optimizer(vdm.trainable_parameters(prior=True), loop.optim)
    if run.checkpoint is not None:
        checkpoint = load_checkpoint(run.checkpoint, kind="vdm")
        checkpoint.load_into(vdm=vdm, codec=codec)
        load_optimizer(run.checkpoint, optimizer)
        training.restore(checkpoint.fact("clips"))

    def loss_of(clips: tuple[Tensor, Tensor], noise: SampleNoise, valid_steps: Tensor) -> LossParts:
        return LossParts(prior_loss(config, vdm, codec, clips, noise, valid_steps=valid_steps), {})

    run.begin(state_bytes=state_bytes([vdm, codec], optimizer))
    for step in run.steps():
        batch = batch_on_device(training, step, share, hardware, device=device_of(vdm))
        # The noise is a function of seed, step and the clip's place in the batch: no rank or resume changes it.
        parts = [(part, batch.noise(config.seed, step, part, stream=STREAM_NOISE)) for part in batch.parts]
        loss = parallel.backward(
            loss_of, [((batch.x[part], batch.valid[part]), noise, batch.valid_steps) for part, noise in parts]
        ).loss
        norm = optimizer_step(loss, optimizer, step=step, config=loop.optim, total_steps=loop.train_steps)
        if run.due(step, loop.log_every):
            validation = parallel.run(validation_loss, config, vdm, codec, held_out)
            run.log(step, {"vdm/denoising_loss": loss, "vdm/validation_loss": validation, "vdm/grad_norm": norm})
        if step + 1 == loop.train_steps:
            # For diffusers, and for `vdm.weights` of other runs. Before the last checkpoint: a complete run has it.
            save_diffusers(config, vdm, run.path / "diffusers")
        if run.checkpoint_due(step, loop.save_every):
            facts = {
                "geometry": config.geometry._asdict(),
                "frames_digest": frames_digest,
                "clips": training.state(),
            }
            write = partial(
                save_checkpoint,
                kind="vdm",
                config=config_tree(config.vdm) | {"codec": config_tree(config.codec)},
                modules={"vdm": vdm, "codec": codec},
                facts=facts,
                optimizer=optimizer,
            )
            run.save(step, write)


def save_diffusers(config: PretrainConfig, vdm: VDM, folder: Path) -> None:
    """Write the transformer in diffusers' layout, on rank 0; all ranks must call it.

    Args:
        config: of the run.
        vdm: with the trained prior, sharded or not.
        folder: to write into.
    """
    whole = vdm
    if config.hardware.shards_weights:
        weights = full_state(vdm)
        if is_main():
            whole, _ = build_vdm(config)
            whole.load_state_dict(weights)
    with main_first():
        if is_main():
            whole.save_folder(folder)


@torch.no_grad()
def validation_loss(config: PretrainConfig, vdm: VDM, codec: VideoCodec, held_out: ClipSampler) -> Tensor:
    """Return the loss on the first held-out clips, the same clips and noise every time; ranks share the clips.

    Args:
        config: of the run.
        vdm: the model.
        codec: of the VDM.
        held_out: where the clips are read.
    """
    total = torch.zeros(2, dtype=torch.float64)
    for rows, x, valid in validation_chunks(held_out, VALIDATION_CLIPS, config.hardware, device=device_of(vdm)):
        # The same noise at every validation, so that two of them differ by the weights alone.
        noise = SampleNoise(config.seed, 0, stream=STREAM_VALIDATION, samples=rows, device=x.device)
        one = torch.ones((), device=x.device)
        loss = prior_loss(config, vdm, codec, (x, valid), noise, valid_steps=one)
        total += torch.stack([loss.double(), valid.sum().double()]).cpu()
    total = global_sum(total)
    return total[0] / total[1].clamp(min=1)


main = alone(train_vdm, "vdm")

if __name__ == "__main__":
    entry_points.train_vdm.main()
