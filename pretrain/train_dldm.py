"""Stage `dldm`: clips -> the latent dynamics model, in two phases.

    vw2-train-dldm data=bridge_sample data.path=DIR model=tiny run_dir=runs/first

Phase 1 (warm-up) reconstructs. In phase 2 (disentangled) the decoder goes on reconstructing but no longer shapes the
codes; they learn only from what the video diffusion model still needs once it has the first frame and the coarse clip.
Losses and stop-gradients are in `dldm_losses.py`. Method specification 1.10.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vw2_robot.averaging import Average
from vw2_robot.checkpoint import load_checkpoint, load_optimizer, save_checkpoint, weights_digest
from vw2_robot.command_line.config_tree import config_tree
from vw2_robot.command_line.program import program
from vw2_robot.data.clips import ClipSampler
from vw2_robot.data.frame_cache import FrameCache
from vw2_robot.errors import InputError
from vw2_robot.models.dldm.dldm import DLDM
from vw2_robot.models.video.vdm import VDM
from vw2_robot.models.video.video_codec import VideoCodec
from vw2_robot.optim import build_optimizer, optimizer_step
from vw2_robot.runs import Run, generator

from .cache_frames import open_frames, training_split
from .clips import TrainingClips, clip_sampler, to_device, training_clips
from .config import PretrainConfig, TrainDLDMConfig, alone
from .dldm_diagnostics import CodeWatch, code_usage, draw_reconstructions, explain_shortfall, validate
from .dldm_losses import phase_one_loss, phase_two_loss
from .encoder_augmentation import disturb
from .train_vdm import build_vdm, open_vdm

STREAM_INIT, STREAM_LOSS = 20, 21


def build_dldm(config: PretrainConfig) -> DLDM:
    """An untrained dLDM; the weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator(config.seed, 0, stream=STREAM_INIT))))
        return DLDM(config.dldm)


@dataclass
class Training:
    """What the steps of both phases work with. `vdm` and `codec` are None where phase 2 has no VDM."""

    config: PretrainConfig
    run: Run
    device: torch.device
    frame_cache: FrameCache
    clips: TrainingClips
    held_out: ClipSampler
    own: ClipSampler
    """training clips without augmentation"""
    dldm: DLDM
    vdm: VDM | None
    codec: VideoCodec | None
    watch: CodeWatch
    average: Average | None

    @property
    def phases(self) -> TrainDLDMConfig:
        """The section of the configuration that this stage is about."""
        return self.config.train_dldm

    def loss(self, phase: int, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one training batch under autocast, and what to log of it."""
        phases = self.phases
        loop = phases.phase1 if phase == 1 else phases.phase2
        x, valid = to_device(self.clips.batch(step, loop.batch_size), self.device)
        noise = generator(self.config.seed, step, stream=STREAM_LOSS)
        with self.config.hardware.autocast(self.device):
            if phase == 2 and self.vdm is not None and self.codec is not None:
                return phase_two_loss(
                    self.dldm, self.vdm, self.codec, x, valid, phases=phases, noise=noise, watch=self.watch
                )
            return phase_one_loss(
                self.dldm,
                x,
                valid,
                norm=phases.reconstruction_loss,
                anchor_grad=phases.anchor_grad_phase1,
                watched=disturb(x, strength=phases.encoder_augmentation, noise=noise),
                decorrelation=phases.decorrelation,
                watch=self.watch,
            )

    def result(self) -> tuple[DLDM, VDM | None]:
        """What is validated and handed on: the averages where there are any, else the learning modules themselves."""
        if self.average is None:
            return self.dldm, self.vdm
        dldm, vdm = self.average.modules["dldm"], self.average.modules.get("vdm")
        assert isinstance(dldm, DLDM)
        assert vdm is None or isinstance(vdm, VDM)
        return dldm, vdm

    def health(self, sampler: ClipSampler, *, phase: int) -> dict[str, float]:
        """`validate` on clips of that sampler, the same ones every time."""
        clips = to_device(sampler.batch(0, self.phases.validation_clips), self.device)
        grayscale = self.phases.control_grayscale
        return validate(*self.result(), self.codec, clips, phase=phase, seed=self.config.seed, grayscale=grayscale)

    def save(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Everything that the next stages or a resumed run need, after `step + 1` steps."""
        dldm, vdm = self.result()
        modules: dict[str, nn.Module | None] = {"dldm": dldm, "vdm": vdm, "codec": self.codec, "watch": self.watch}
        if self.average is not None:
            modules |= {f"learning_{name}": module for name, module in self.average.learning.items()}
        facts = {
            "encoder_hash": encoder_hash(dldm),
            "vdm": None if vdm is None else config_tree(self.config.vdm),
            "codec": None if vdm is None else config_tree(self.config.codec),
            "frames_digest": self.frame_cache.digest,
            "time_base": self.config.data.time_base,
            "clips": self.clips.state(),
        }
        write = partial(
            save_checkpoint,
            kind="dldm",
            config=config_tree(self.config.dldm),
            modules={name: module for name, module in modules.items() if module is not None},
            facts=facts,
            optimizer=optimizer,
        )
        self.run.save(step, write)

    def restore(self, path: Path) -> None:
        """Go on where that checkpoint was written."""
        checkpoint = load_checkpoint(path, kind="dldm")
        learning = {"dldm": self.dldm} | ({} if self.vdm is None else {"vdm": self.vdm})
        checkpoint.load_into(watch=self.watch, **({} if self.codec is None else {"codec": self.codec}))
        if self.average is None:
            checkpoint.load_into(**learning)
        else:
            checkpoint.load_into(**self.average.modules)
            checkpoint.load_into(**{f"learning_{name}": module for name, module in learning.items()})
        self.clips.restore(checkpoint.fact("clips"))


def train_dldm(config: PretrainConfig) -> None:
    """Train both phases, then leave codes.json and reconstructions.png; return at once when complete.

    Raises:
        InputError: the video prior is missing, or with `train_dldm.advance=ratio` phase 1 ends short of its goal.
    """
    with Run(
        config.stage_dir("dldm"),
        config.stage_tree("data", "dldm", "vdm", "codec", "train_vdm", "train_dldm", "seed"),
        stage="dldm",
        total_steps=config.train_dldm.total,
        save_every=config.train_dldm.phase1.save_every,
        log_every=config.train_dldm.phase1.log_every,
    ) as run:
        if run.complete and (run.path / "reconstructions.png").is_file():
            return
        device = config.hardware.torch_device()
        frames = open_frames(config)
        split = training_split(config, frames)
        with closing(training_clips(config, frames, *split, run.path)) as clips:
            training = _begin(config, run, device, frames, clips, split)
            for phase in (1, 2):
                _train_phase(training, phase)
            _sum_up(training)


def _begin(
    config: PretrainConfig,
    run: Run,
    device: torch.device,
    frame_cache: FrameCache,
    clips: TrainingClips,
    split: tuple[list[int], list[int]],
) -> Training:
    """Build the models, go back to the last checkpoint, and begin."""
    train_ids, validation_ids = split
    held_out = clip_sampler(config, frame_cache, validation_ids, augment=False)
    own = clip_sampler(config, frame_cache, train_ids, augment=False)
    dldm, vdm, codec = build_dldm(config).to(device), None, None
    if config.train_dldm.with_vdm:
        begun = run.checkpoint is not None  # then the weights come from the checkpoint
        vdm, codec = build_vdm(config) if begun else open_vdm(config, clip_sampler(config, frame_cache, train_ids))
        vdm, codec = vdm.to(device), codec.to(device)
    learning = {"dldm": dldm} | ({} if vdm is None else {"vdm": vdm})
    average = Average(learning, config.train_dldm.ema) if config.train_dldm.ema else None
    watch = CodeWatch(config.dldm.vocabulary).to(device)
    training = Training(config, run, device, frame_cache, clips, held_out, own, dldm, vdm, codec, watch, average)
    if run.checkpoint is not None:
        training.restore(run.checkpoint)
    if config.hardware.gradient_checkpointing:
        for module in (dldm, vdm):
            if module is not None:
                module.checkpoint_gradients()
    if config.hardware.compile:
        dldm.encoder.compile()
        dldm.decoder.compile()
    run.begin()
    return training


def _train_phase(training: Training, phase: int) -> None:
    """The steps of one phase that are left. Each phase has its own optimizer and schedule."""
    run, phases, vdm = training.run, training.phases, training.vdm
    loop, first = (phases.phase1, 0) if phase == 1 else (phases.phase2, phases.phase1.train_steps)
    stop = first + loop.train_steps
    if run.start >= stop:
        return
    if phase == 2 and run.start == first and vdm is not None:
        _check_advance(training)
    fast = vdm.trainable_parameters() if phase == 2 and vdm is not None else ()
    optimizer = build_optimizer(training.dldm.parameters(), loop.optim, fast=fast, fast_mult=phases.vdm_lr_mult)
    if run.start > first:
        assert run.checkpoint is not None
        load_optimizer(run.checkpoint, optimizer)
    for step in run.steps(stop, what=f"phase {phase}"):
        loss, values = training.loss(phase, step)
        norm = optimizer_step(
            loss, optimizer, step=step - first, config=loop.optim, total_steps=loop.train_steps, first_step=first
        )
        if training.average is not None:
            training.average.update(step)
        ready = False
        if run.due(step, loop.log_every) or step + 1 == stop:
            health = _log(training, phase, step, {**values, "dldm/grad_norm": norm})
            ready = phases.advance == "ratio" and health["dldm/ratio_to_copy"] <= phases.advance_ratio
        if phase == 1 and ready and vdm is not None:
            run.say(
                f"phase 1 reaches {phases.advance_ratio} of copy-first-frame after {step + 1} steps; phase 2 begins"
            )
            training.save(stop - 1, optimizer)
            run.skip_to(stop)
            break
        if run.due(step, loop.save_every) or step + 1 == stop:
            training.save(step, optimizer)


def _log(training: Training, phase: int, step: int, values: Mapping[str, Any]) -> dict[str, float]:
    """One line of metrics with a validation in it, and any alarm; returns the validation."""
    health = training.health(training.held_out, phase=phase)
    training.run.log(step, {"dldm/phase": phase, **values, **health, **training.watch.read()})
    for alarm in training.watch.look(health, training.phases):
        training.run.say(f"step {step + 1}: {alarm}")
    return health


def _check_advance(training: Training) -> None:
    """Say so, or with `advance=ratio` refuse, when phase 2 is about to begin on a reconstruction that shows no motion.

    Raises:
        InputError: `advance=ratio`, and the ratio was not reached in all of phase 1.
    """
    phases = training.phases
    ratio = training.health(training.held_out, phase=1)["dldm/ratio_to_copy"]
    if ratio <= phases.advance_ratio:
        return
    own = training.health(training.own, phase=1)["dldm/ratio_to_copy"]
    said = explain_shortfall(ratio, own, limit=phases.advance_ratio)
    if phases.advance == "ratio":
        raise InputError(
            f"{said}. Phase 2 does not begin: give train_dldm.phase1.train_steps more than "
            f"{phases.phase1.train_steps} in a new "
            "run_dir, or train_dldm.advance=steps to go on regardless"
        )
    training.run.say(f"{said}; phase 2 begins all the same (train_dldm.advance=steps)")


def _sum_up(training: Training) -> None:
    """codes.json, reconstructions.png, and a sentence on how healthy the model is."""
    config, (dldm, vdm) = training.config, training.result()
    usage = code_usage(dldm, training.frame_cache, config, device=training.device)
    summary = training.health(training.held_out, phase=2)
    own = training.health(training.own, phase=1)["dldm/ratio_to_copy"]
    shuffled = f", shuffle ratio {summary['dldm/shuffle_ratio']:.3f}" if vdm is not None else ""
    training.run.say(
        f"reconstruction {summary['dldm/ratio_to_copy']:.3f} of copy-first-frame on held-out clips, {own:.3f} on "
        f"training clips, {usage['used']} different codes, perplexity {usage['perplexity']:.0f}{shuffled}"
    )
    draw_reconstructions(
        training.run.path,
        dldm,
        vdm,
        training.codec,
        training.held_out,
        seed=config.seed,
        phases=training.phases,
        device=training.device,
    )


def encoder_hash(dldm: DLDM) -> str:
    """Identity of everything that decides a code: trunk, queries, head, codebook where there is one."""
    return weights_digest(dldm.encoder, dldm.qformer, dldm.z_head, dldm.fsq)


main = program(PretrainConfig, config_name="pretrain", one_process=True)(alone(train_dldm))

if __name__ == "__main__":
    main()
