"""Stage `dldm`: clips -> the latent dynamics model, in two phases.

    vw2-train-dldm data=bridge_sample data.path=DIR model=tiny run_dir=runs/first

Phase 1 (warm-up) reconstructs. In phase 2 (disentangled) the decoder still reconstructs but no longer shapes the codes;
they learn only from what the video diffusion model needs beyond the first frame and the coarse clip. Between the two,
an optional reader (ours) lets the video model learn the codes of the frozen encoder. Losses and stop-gradients are in
`dldm_losses.py`.
"""

# B batch · T frames · M latent steps
from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vw2_robot.checkpoint import load_checkpoint, load_optimizer
from vw2_robot.command_line import entry_points
from vw2_robot.data.clips import ClipSampler
from vw2_robot.data.frame_cache import FrameCache
from vw2_robot.distributed.batch_share import BatchShare, PartOfBatch, StatisticsGroups
from vw2_robot.distributed.ranks import is_main
from vw2_robot.distributed.sharding import LossParts, full_state, state_bytes
from vw2_robot.errors import InputError
from vw2_robot.models.dldm.dldm import DLDM
from vw2_robot.optim import build_optimizer, optimizer_step
from vw2_robot.random_numbers import SampleNoise
from vw2_robot.runs import Run
from vw2_robot.schedule import LoopConfig
from vw2_robot.storage.files import write_json

from .cache_frames import open_frames, training_split
from .clips import TrainingClips, clip_sampler, training_clips
from .config import PretrainConfig, TrainDLDMConfig
from .diagnostics.code_usage import code_usage
from .diagnostics.encoder_movement import encoder_movement
from .diagnostics.explained_change import EXPLAINED, EXPLAINED_NULL
from .diagnostics.reconstructions import write_reconstructions
from .diagnostics.validation import Reads, explain_shortfall, validate
from .dldm_losses import phase_one_loss, phase_two_loss, reader_loss
from .dldm_modules import Modules, build_dldm, build_modules, prepare_for_hardware, restore, save_dldm
from .encoder_augmentation import drift
from .global_batch import batch_on_device, device_of, validation_chunks
from .stages import alone

STREAM_LOSS = 21
PHASE_1 = "phase_1"
"""folder of the dLDM as phase 1 left it"""
PhaseName = Literal["phase 1", "reader", "phase 2"]
READS: dict[PhaseName, Reads] = {"phase 1": "nothing", "reader": "codes", "phase 2": "codes and control"}
"""what the video model learns to read in each phase"""


class Phase(NamedTuple):
    """A part of the stage with its own loss, optimizer and schedule; `first` counts the steps of the run before it."""

    name: PhaseName
    loop: LoopConfig
    first: int

    @property
    def stop(self) -> int:
        """The steps of the run when it ends."""
        return self.first + self.loop.train_steps


def phases_of(config: PretrainConfig) -> list[Phase]:
    """Return the phases of this configuration in their order."""
    phases = config.train_dldm
    first = phases.phase1.train_steps
    found = [Phase("phase 1", phases.phase1, 0)]
    if phases.reader_steps:
        assert phases.reader is not None
        found.append(Phase("reader", phases.reader.loop, first))
    return [*found, Phase("phase 2", phases.phase2, first + phases.reader_steps)]


class Clips(NamedTuple):
    """Where this stage reads clips: to train on, held out, and training clips without augmentation, to compare."""

    training: TrainingClips
    held_out: ClipSampler
    training_plain: ClipSampler


def train_dldm(config: PretrainConfig) -> None:
    """Train both phases, then leave codes.json and reconstructions.png; return at once when complete.

    Raises:
        InputError: the video prior is missing, or with `train_dldm.advance=ratio` phase 1 ends short of its goal.
    """
    with Run(
        config.stage_dir("dldm"),
        # With the section of the stage before: from another prior it is another run.
        config.stage_tree("data", "dldm", "vdm", "codec", "train_vdm", "train_dldm", "seed"),
        stage="dldm",
        total_steps=config.train_dldm.total,
        save_every=config.train_dldm.phase1.save_every,
        log_every=config.train_dldm.phase1.log_every,
        hardware=config.hardware,
        track=config.track,
    ) as run:
        # The image is written last: a run that was killed between the last checkpoint and the image makes it now.
        if run.complete and (run.path / "reconstructions.png").is_file():
            return
        device = config.hardware.torch_device()
        frame_cache = open_frames(config)
        train_ids, validation_ids = training_split(config, frame_cache)
        with closing(training_clips(config, frame_cache, train_ids, validation_ids, run.path)) as training:
            held_out = clip_sampler(config, frame_cache, validation_ids, augment=False)
            clips = Clips(training, held_out, clip_sampler(config, frame_cache, train_ids, augment=False))
            modules = build_modules(config, frame_cache, train_ids, device=device, resumed=run.checkpoint is not None)
            if run.checkpoint is not None:
                restore(run.checkpoint, modules, training)
            # Last, when all modules are built and have their weights.
            prepare_for_hardware(config, modules)
            run.begin(state_bytes=state_bytes(modules.to_save().values()))
            # A finished phase is skipped inside, so a resumed run enters the right one.
            for phase in phases_of(config):
                held_out_last = train_phase(config, run, modules, clips, phase=phase, frames_digest=frame_cache.digest)
            summarize(config, run, modules, clips, frame_cache, held_out_last)


def train_phase(
    config: PretrainConfig, run: Run, modules: Modules, clips: Clips, *, phase: Phase, frames_digest: str
) -> dict[str, float] | None:
    """Train the steps of one phase that are left. Each phase has its own optimizer and schedule.

    Args:
        config: of the run.
        run: counts the steps of all phases.
        modules: are trained in place.
        clips: training and held-out clips.
        phase: which one.
        frames_digest: of the frame cache, for checkpoints.

    Returns:
        The validation after the last step; None where no step was left.

    Raises:
        InputError: see `check_advance`.
    """
    phases = config.train_dldm
    loop, first = phase.loop, phase.first
    validation: dict[str, float] | None = None
    if run.start >= phase.stop:
        return validation
    # Once, where the VDM begins to learn: a run that is resumed later has passed the check.
    if run.start == first == phases.phase1.train_steps and modules.vdm is not None:
        check_advance(config, run, modules, clips)
    share = BatchShare.of(loop.batch_size, micro_batches=config.hardware.micro_batches)
    groups = StatisticsGroups(phases.statistics_group)
    modules.dldm.share_statistics(
        groups, loop.batch_size // (phases.statistics_group or loop.batch_size), micro_batches=share.micro_batches
    )
    optimizer = phase_optimizer(config, modules, phase)
    # Loaded within a phase only: the moments of another phase belong to another loss.
    if run.start > first:
        assert run.checkpoint is not None
        load_optimizer(run.checkpoint, optimizer)
    parallel = modules.parallel
    assert parallel is not None
    parallel.begin_phase()
    loss_of = dldm_loss(config, modules, groups, phase=phase.name)
    for step in run.steps(phase.stop, what=phase.name):
        batch = batch_on_device(clips.training, step, share, config.hardware, device=device_of(modules.dldm))
        noises = [batch.noise(config.seed, step, part, stream=STREAM_LOSS) for part in batch.parts]
        loss, metrics, counts = parallel.backward(
            loss_of,
            [
                (batch.x[part], batch.valid[part], noise, batch.part_of_batch)
                for part, noise in zip(batch.parts, noises, strict=True)
            ],
        )
        # Codes of the weights before this step.
        assert counts is not None
        modules.code_usage.count(counts)
        # Each phase has its own warm-up and decay, counted from its first step.
        norm = optimizer_step(
            loss, optimizer, step=step - first, config=loop.optim, total_steps=loop.train_steps, first_step=first
        )
        if modules.average is not None:
            modules.average.update(step)
        ended = ""
        # Also after the last step of a phase, so that each ends with a validation.
        if run.due(step, loop.log_every) or step + 1 == phase.stop:
            validation = validate_on(clips.held_out, config, modules, phase=phase.name)
            counted = modules.code_usage.metrics()
            number = {"dldm/phase": {"phase 1": 1.0, "reader": 1.5, "phase 2": 2.0}[phase.name]}
            run.log(step, {**number, **metrics, "dldm/grad_norm": norm, **validation, **counted})
            # In the reader the VDM only begins to read.
            judged = {} if phase.name == "reader" else validation
            for alarm in modules.code_usage.alarms(judged, phases):
                run.log_message(f"step {step + 1}: {alarm}")
            ended = phase_ended(phases, modules, validation, phase=phase.name)
        if phase.name == "phase 1" and (ended or step + 1 == phase.stop):
            # What phase 2 makes of the codes is compared with it. First, so that a finished phase has it.
            save_dldm(config, run.path / PHASE_1, modules, frames_digest=frames_digest)
        if ended and step + 1 < phase.stop:
            run.log_message(f"{phase.name} ends after {step + 1 - first} steps: {ended}")
            # Saved as the last step of the phase, so that a resumed run begins with the next one as this one does.
            save(config, run, modules, clips, phase.stop - 1, optimizer, frames_digest=frames_digest)
            run.skip_to(phase.stop)
        elif run.checkpoint_due(step, loop.save_every) or step + 1 == phase.stop:
            save(config, run, modules, clips, step, optimizer, frames_digest=frames_digest)
    return validation


def phase_optimizer(config: PretrainConfig, modules: Modules, phase: Phase) -> torch.optim.Optimizer:
    """Return the optimizer of what learns in this phase, and switch the gradients of the rest off.

    Args:
        config: of the run.
        modules: `requires_grad` of their parameters is set.
        phase: 1: the dLDM; reader: the VDM; 2: both.
    """
    dldm, vdm = modules.dldm, modules.vdm
    # Nobody sums the gradients that are not made. Sharded weights fix what is trained when they are sharded.
    if not config.hardware.shards_weights:
        dldm.requires_grad_(phase.name != "reader")
        if vdm is not None:
            vdm.requires_grad_(False)
    learning_vdm = vdm.trainable_parameters() if vdm is not None and phase.name != "phase 1" else []
    if phase.name == "reader":
        return build_optimizer(learning_vdm, phase.loop.optim)
    # The VDM may be faster than the encoder, whose codes it has yet to use.
    return build_optimizer(
        dldm.parameters(), phase.loop.optim, fast=learning_vdm, fast_mult=config.train_dldm.vdm_lr_mult
    )


def phase_ended(phases: TrainDLDMConfig, modules: Modules, validation: dict[str, float], *, phase: PhaseName) -> str:
    """Return why a phase ends before its last step; an empty text where it goes on.

    Args:
        phases: when phases end.
        modules: whose `rise` takes notice of a validation of the reader.
        validation: of the present step.
        phase: which one.
    """
    by_ratio = phase == "phase 1" and modules.vdm is not None and phases.advance == "ratio"
    if by_ratio and validation["dldm/ratio_to_copy"] <= phases.advance_ratio:
        return f"{phases.advance_ratio} of copy-first-frame is reached"
    if phase == "reader" and phases.reader is not None:
        reader = phases.reader
        value = validation[f"dldm/{EXPLAINED}"]
        if modules.rise.stopped(value, patience=reader.patience, min_rise=reader.min_rise):
            return f"the explained change is at {value:.3f} and has not risen at {reader.patience} validations"
    return ""


def dldm_loss(
    config: PretrainConfig, modules: Modules, groups: StatisticsGroups, *, phase: PhaseName
) -> Callable[[Tensor, Tensor, SampleNoise, PartOfBatch], LossParts]:
    """Return the loss function of one phase.

    Args:
        config: the loss weights and switches of both phases, and the precision of autocast.
        modules: the dLDM, and for phase 2 the VDM with its codec; without them phase 2 has the loss of phase 1.
        groups: of clips over which correlations are taken.
        phase: which one.

    Returns:
        A function: pixels [B, T, 3, H, W] in [-1, 1], valid steps bool [B, M], noise, part of the batch -> loss, its
        parts for the log, and how often each code occurred in valid steps.
    """
    phases = config.train_dldm
    dldm, vdm, codec = modules.dldm, modules.vdm, modules.codec

    def loss_of(x: Tensor, valid: Tensor, noise: SampleNoise, share: PartOfBatch) -> LossParts:
        with config.hardware.autocast(x.device):
            if phase == "reader":
                assert vdm is not None
                assert codec is not None
                found = reader_loss(dldm.eval(), vdm, codec, x, valid, phases=phases, noise=noise, part=share)
            elif phase == "phase 2" and vdm is not None and codec is not None:
                found = phase_two_loss(
                    dldm.train(),
                    vdm,
                    codec,
                    x,
                    valid,
                    phases=phases,
                    noise=noise,
                    perceptual=modules.perceptual,
                    part=share,
                    groups=groups,
                )
            else:
                found = phase_one_loss(
                    dldm,
                    x,
                    valid,
                    norm=phases.reconstruction_loss,
                    anchor_grad=phases.anchor_grad_phase1,
                    encoder_input=drift(x, strength=phases.encoder_augmentation, noise=noise),
                    decorrelation=phases.decorrelation,
                    perceptual=modules.perceptual,
                    perceptual_weight=phases.perceptual_weight,
                    part=share,
                    groups=groups,
                )
        counts = torch.bincount(found.indices_BMN[valid].flatten(), minlength=dldm.fsq.vocabulary)
        return LossParts(found.loss, found.metrics, counts)

    return loss_of


def validate_on(
    sampler: ClipSampler, config: PretrainConfig, modules: Modules, *, phase: PhaseName
) -> dict[str, float]:
    """Return what `validate` finds on the first clips of that sampler, the same ones every time.

    Args:
        sampler: where the clips are read, held-out or training ones.
        config: the number of clips, the seed, and whether the control video is gray.
        modules: the averages are validated if there are any, else the trained modules.
        phase: what a VDM has been trained to read by then, it is validated for.

    Returns:
        {name in the log: value}, with `dldm/ratio_to_copy`, `dldm/codes_used` and `dldm/perplexity`.
    """
    dldm, vdm = modules.evaluated()
    clips = partial(
        validation_chunks, sampler, config.train_dldm.validation_clips, config.hardware, device=device_of(dldm)
    )
    grayscale = config.train_dldm.control_grayscale

    def found() -> dict[str, float]:
        with config.hardware.autocast(device_of(dldm)):
            return validate(dldm, vdm, modules.codec, clips, reads=READS[phase], seed=config.seed, grayscale=grayscale)

    assert modules.parallel is not None
    return modules.parallel.run(found)


def check_advance(config: PretrainConfig, run: Run, modules: Modules, clips: Clips) -> None:
    """Log it, or with `advance=ratio` stop, when phase 2 is about to begin on a reconstruction that shows no motion.

    Args:
        config: `train_dldm.advance` and `train_dldm.advance_ratio`, the most that the error may be of that of
            copy-first-frame.
        run: gets the log message.
        modules: as they are after phase 1.
        clips: held-out clips decide; training clips without augmentation are measured for the message.

    Raises:
        InputError: `advance=ratio`, and the ratio was not reached in all of phase 1.
    """
    phases = config.train_dldm
    ratio = validate_on(clips.held_out, config, modules, phase="phase 1")["dldm/ratio_to_copy"]
    if ratio <= phases.advance_ratio:
        return
    training_ratio = validate_on(clips.training_plain, config, modules, phase="phase 1")["dldm/ratio_to_copy"]
    shortfall = explain_shortfall(ratio, training_ratio, limit=phases.advance_ratio)
    if phases.advance == "ratio":
        raise InputError(
            f"{shortfall}. Phase 2 does not begin: give train_dldm.phase1.train_steps more than "
            f"{phases.phase1.train_steps} in a new run_dir, or train_dldm.advance=steps to continue regardless"
        )
    run.log_message(f"{shortfall}; phase 2 begins all the same (train_dldm.advance=steps)")


def save(
    config: PretrainConfig,
    run: Run,
    modules: Modules,
    clips: Clips,
    step: int,
    optimizer: torch.optim.Optimizer,
    *,
    frames_digest: str,
) -> None:
    """Write all that the next stages or a resumed run need, after `step + 1` steps.

    Args:
        config: sizes of the modules and the time base, which the checkpoint holds.
        run: writes the checkpoint into its folder.
        modules: the averages if there are any, and the trained weights.
        clips: of which the position in the training clips is stored.
        step: number of the last finished step, from 0 over both phases.
        optimizer: of the current phase.
        frames_digest: digest of the frame cache, stored in the checkpoint.
    """
    write = partial(
        save_dldm,
        config,
        modules=modules,
        frames_digest=frames_digest,
        clips=clips.training.state(),
        optimizer=optimizer,
    )
    run.save(step, write)


def summarize(
    config: PretrainConfig,
    run: Run,
    modules: Modules,
    clips: Clips,
    frame_cache: FrameCache,
    held_out: dict[str, float] | None,
) -> None:
    """Write codes.json, phases.json and reconstructions.png, and log a line on reconstruction, codes and encoder.

    Args:
        config: of the run.
        run: its folder gets the files, its log the line.
        modules: after training; the averages are measured if there are any.
        clips: held-out clips, and training clips without augmentation.
        frame_cache: its frames are encoded to count the codes.
        held_out: the validation after the last step, if this process has made it.
    """
    dldm, vdm = modules.evaluated()
    device = next(dldm.parameters()).device
    assert modules.parallel is not None
    usage = modules.parallel.run(partial(code_usage, dldm, frame_cache, config, device=device))
    if held_out is None:
        held_out = validate_on(clips.held_out, config, modules, phase="phase 2")
    training_ratio = validate_on(clips.training_plain, config, modules, phase="phase 1")["dldm/ratio_to_copy"]
    movement = movement_of_phases(config, run, dldm)
    read = ""
    if vdm is not None:
        # Without control video: with one, its motion is in the control video already.
        read = (
            f"; the VDM explains {held_out[f'dldm/{EXPLAINED}']:.2f} of the change with the right codes, "
            f"{held_out[f'dldm/{EXPLAINED_NULL}']:.2f} with none, {held_out['dldm/explained_change_decoder']:.2f} the "
            f"decoder; shuffle ratio {held_out['dldm/shuffle_ratio_no_control']:.2f} without control video, "
            f"{held_out['dldm/shuffle_ratio']:.2f} with it"
        )
    run.log_message(
        f"reconstruction {held_out['dldm/ratio_to_copy']:.3f} of copy-first-frame on held-out clips, "
        f"{training_ratio:.3f} on training clips, {usage['used']} different codes, perplexity "
        f"{usage['perplexity']:.0f}{read}; phase 2 made {100 * movement['phase_2_share']:.0f} % of the movement of the "
        "encoder"
    )
    modules.parallel.run(
        partial(
            write_reconstructions,
            run.path,
            dldm,
            vdm,
            modules.codec,
            clips.held_out,
            seed=config.seed,
            phases=config.train_dldm,
            device=device,
        )
    )


def movement_of_phases(config: PretrainConfig, run: Run, dldm: DLDM) -> dict[str, float]:
    """Return `encoder_movement` of the run, and write it to phases.json; all ranks call it, rank 0 has numbers.

    Args:
        config: of the run; gives the untrained weights.
        run: its folder holds the dLDM of phase 1.
        dldm: at the end.
    """
    at_end = full_state(dldm)
    before = load_checkpoint(run.path / PHASE_1, kind="dldm").weights
    after_phase_1 = {name.removeprefix("dldm."): value for name, value in before.items()}
    found = encoder_movement(build_dldm(config).state_dict(), after_phase_1, at_end or after_phase_1)
    if is_main():
        write_json(run.path / "phases.json", {"encoder_movement": found}, sealed=True)
    return found


main = alone(train_dldm, "dldm")

if __name__ == "__main__":
    entry_points.train_dldm.main()
