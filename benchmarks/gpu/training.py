"""Training steps of all stages, by the training programs' own loops on a `TimedRun`; also with compiled blocks."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Literal, get_args

import torch

from vw2_robot.checkpoint import save_checkpoint
from vw2_robot.command_line.config_tree import config_tree
from vw2_robot.finetune.train_head import train_actions
from vw2_robot.pretrain.cache_frames import open_frames, training_split
from vw2_robot.pretrain.clips import clip_sampler, training_clips
from vw2_robot.pretrain.config import PretrainConfig
from vw2_robot.pretrain.dldm_modules import Modules, build_dldm, build_modules, encoder_hash, prepare_for_hardware
from vw2_robot.pretrain.extract_latents import extract_latents
from vw2_robot.pretrain.train_dldm import Clips, PhaseName, phases_of, train_phase
from vw2_robot.pretrain.train_policy import build_policy, train_codes
from vw2_robot.pretrain.train_vdm import build_vdm, prepare_codec, prepare_vdm, train_prior
from vw2_robot.runs import Run

from .datasets import write_calvin, write_frames
from .machine import Machine, forget_memory
from .measured import Measured, NotMeasuredError, Settings
from .memory import ClipStage, PlannedMemory, micro_batches_that_fit, plan_clips, plan_policy
from .presets import Tree, changed, finetune_config, h200_tree, preset_of, pretrain_config
from .timed_run import TimedRun

StageName = Literal["video prior", "phase 1", "phase 2", "policy", "fine-tuning"]
EPISODES = 8
TRAJECTORY_STEPS = 40


@dataclass
class Training:
    """The data and configuration of `model=h200` on one device, and what has been measured of it."""

    settings: Settings
    machine: Machine
    found: dict[StageName, tuple[TimedRun, int]] = field(default_factory=dict)
    """stage -> its run without compilation, and the micro-batches"""

    @cached_property
    def device(self) -> torch.device:
        """Return the device that all rows run on."""
        return torch.device(self.settings.device)

    @cached_property
    def tree(self) -> Tree:
        """Return the sections of the preset."""
        return h200_tree(self.settings)

    @cached_property
    def frame_cache(self) -> Path:
        """Return the frame cache, which is written first."""
        size = self.tree["dldm"]
        return write_frames(
            self.settings.folder / "frames",
            episodes=EPISODES,
            length=size["num_frames"] + 15,
            height=size["height"],
            width=size["width"],
        )

    @cached_property
    def calvin(self) -> Path:
        """Return the labeled data set, which is written first."""
        out = self.settings.folder / "calvin"
        return write_calvin(out, length=TRAJECTORY_STEPS, px=self.tree["dldm"]["height"])

    def config(self, *, compiled: bool = False, micro_batches: int = 1) -> PretrainConfig:
        """Return the configuration of pre-training.

        Args:
            compiled: with `hardware.compile`.
            micro_batches: of a step; clips of one share their statistics.
        """
        changes: Tree = {"hardware": {"compile": compiled, "micro_batches": micro_batches}}
        if micro_batches > 1:
            batch = self.tree["train_dldm"]["phase1"]["batch_size"]
            changes = changed(changes, {"train_dldm": {"statistics_group": batch // micro_batches}})
        return pretrain_config(self.tree, self.settings, frame_cache=self.frame_cache, changes=changes)

    def plan(self, stage: StageName) -> PlannedMemory:
        """Return the memory that a stage is planned to take."""
        config = self.config()
        if stage in get_args(ClipStage):
            return plan_clips(config, stage)  # type: ignore[arg-type]
        return plan_policy(config, preset_of(self.tree, config), fine_tuning=stage == "fine-tuning")

    def batch(self, stage: StageName) -> int:
        """Return the samples of a step."""
        config = self.config()
        return {
            "video prior": config.train_vdm.batch_size,
            "phase 1": config.train_dldm.phase1.batch_size,
            "phase 2": config.train_dldm.phase2.batch_size,
            "policy": config.train_policy.loop.batch_size,
            "fine-tuning": self.finetune_batch,
        }[stage]

    @property
    def finetune_batch(self) -> int:
        """Return the windows of a step of fine-tuning."""
        return finetune_config(self.settings, policy=Path("none"), data=Path("none")).loop.batch_size

    def run_stage(self, stage: StageName, *, compiled: bool, micro_batches: int) -> TimedRun:
        """Run a few steps of a stage.

        Args:
            stage: which one.
            compiled: with `hardware.compile`.
            micro_batches: of a step.
        """
        forget_memory(self.device)
        config = self.config(compiled=compiled, micro_batches=micro_batches)
        config.hardware.torch_device()  # as the programs do: threads, TF32
        loops: dict[StageName, Callable[[PretrainConfig, TimedRun], None]] = {
            "video prior": run_prior,
            "phase 1": partial(run_phase, name="phase 1"),
            "phase 2": partial(run_phase, name="phase 2"),
            "policy": run_policy,
            "fine-tuning": partial(run_fine_tuning, settings=self.settings, calvin=self.calvin),
        }
        folder = Path(tempfile.mkdtemp(dir=self.settings.folder))
        total = config.train_dldm.total if stage.startswith("phase") else 1000
        with TimedRun(folder, self.device, total_steps=total, counts=not compiled) as run:
            loops[stage](config, run)
        return run

    def measured(self, stage: StageName) -> tuple[TimedRun, int]:
        """Return a stage's run without compilation and its micro-batches: the fewest whose memory the device has."""
        if stage not in self.found:
            fitting = micro_batches_that_fit(self.plan(stage), self.batch(stage), self.machine.memory_bytes)
            for micro_batches in fitting:
                try:
                    self.found[stage] = (
                        self.run_stage(stage, compiled=False, micro_batches=micro_batches),
                        micro_batches,
                    )
                    break
                except torch.cuda.OutOfMemoryError:
                    # The plan is a lower bound. The last one's error is the row's.
                    if micro_batches == fitting[-1]:
                        raise
        return self.found[stage]


def run_prior(config: PretrainConfig, run: TimedRun) -> None:
    """Train the video prior, from random weights."""
    device = config.hardware.torch_device()
    frame_cache = open_frames(config)
    train_ids, validation_ids = training_split(config, frame_cache)
    with closing(training_clips(config, frame_cache, train_ids, validation_ids, run.path)) as training:
        vdm, codec = build_vdm(config)
        prepare_codec(config, codec, clip_sampler(config, frame_cache, train_ids))
        vdm = config.hardware.placed(vdm, device)
        codec = config.hardware.placed(codec, device)
        prepare_vdm(config, vdm)
        held_out = clip_sampler(config, frame_cache, validation_ids, augment=False)
        train_prior(config, run, vdm, codec, training, held_out, frames_digest=frame_cache.digest)


def run_phase(config: PretrainConfig, run: TimedRun, *, name: PhaseName, modules: Modules | None = None) -> None:
    """Train a phase of the dLDM, from random weights.

    Args:
        config: of the stage.
        run: counts the steps.
        name: of the phase.
        modules: what is trained; None builds it as the program does, with a VDM that has no prior.
    """
    config = replace(config, vdm=replace(config.vdm, init="random")) if modules is None else config
    device = config.hardware.torch_device()
    frame_cache = open_frames(config)
    train_ids, validation_ids = training_split(config, frame_cache)
    with closing(training_clips(config, frame_cache, train_ids, validation_ids, run.path)) as training:
        held_out = clip_sampler(config, frame_cache, validation_ids, augment=False)
        clips = Clips(training, held_out, clip_sampler(config, frame_cache, train_ids, augment=False))
        if modules is None:
            modules = build_modules(config, frame_cache, train_ids, device=device, resumed=False)
        prepare_for_hardware(config, modules)
        phase = next(phase for phase in phases_of(config) if phase.name == name)
        run.start = phase.first
        run.begin()
        train_phase(config, run, modules, clips, phase=phase, frames_digest=frame_cache.digest)


def run_policy(config: PretrainConfig, run: TimedRun) -> None:
    """Train the policy on the codes of an untrained dLDM, which are encoded first."""
    write_dldm(config)
    extract_latents(config)
    train_codes(config, run)


def write_dldm(config: PretrainConfig) -> None:
    """Save an untrained dLDM as that of a finished stage, if there is none."""
    folder = config.stage_dir("dldm")
    if (folder / "latest").exists():
        return
    dldm = build_dldm(config)
    total = config.train_dldm.total
    with Run(folder, {}, stage="dldm", total_steps=total, save_every=total, log_every=total) as run:
        run.begin()
        run.save(
            total - 1,
            partial(
                save_checkpoint,
                kind="dldm",
                config=config_tree(config.dldm),
                modules={"dldm": dldm},
                facts={"encoder_hash": encoder_hash(dldm)},
            ),
        )


def run_fine_tuning(config: PretrainConfig, run: TimedRun, *, settings: Settings, calvin: Path) -> None:
    """Train policy and head on labeled windows.

    Args:
        config: sizes and seed of the untrained policy that it begins with, and the hardware.
        run: counts the steps.
        settings: device and folder.
        calvin: the labeled data.
    """
    folder = settings.folder / "untrained_policy"
    if not folder.exists():
        dldm = build_dldm(config)
        policy = build_policy(config, dldm)
        save_checkpoint(
            folder,
            kind="policy",
            config={"policy": config_tree(config.policy), "dldm": config_tree(config.dldm), "head": None},
            modules={"policy": policy, "dldm": dldm},
            facts={"encoder_hash": encoder_hash(dldm)},
            files=policy.files(),
        )
    changes: Tree = {"hardware": config_tree(config.hardware)}
    train_actions(finetune_config(settings, policy=folder, data=calvin, changes=changes), run)


# ------------------------------------------------------------------------------------------------------- rows


def step_row(training: Training, stage: StageName) -> Measured:
    """Measure the step of a stage."""
    run, micro_batches = training.measured(stage)
    planned = training.plan(stage).of(training.batch(stage) // micro_batches)
    batch = training.batch(stage)
    note = f"{batch} {unit_of(stage)}" + (f" in {micro_batches} micro-batches" if micro_batches > 1 else "")
    found = measured_step(run, training.machine, samples=batch, unit=unit_of(stage), planned=planned, note=note)
    found.values["micro_batches"] = micro_batches
    return found


def unit_of(stage: StageName) -> str:
    return "clips" if stage in get_args(ClipStage) else "windows"


def measured_step(
    run: TimedRun, machine: Machine, *, samples: int, unit: str, planned: int | None, note: str
) -> Measured:
    """Return the numbers of a measured run.

    Args:
        run: has counted its first step.
        machine: gives the peak that MFU is a share of.
        samples: of a step.
        unit: what a sample is.
        planned: bytes.
        note: for the table.
    """
    return Measured(
        milliseconds=1000 * run.step_seconds,
        per_second=samples / run.step_seconds,
        unit=f"{unit}/s",
        # Recomputed activations count as arithmetic of the step, as in the capacity plan.
        bound_share=run.flops / run.step_seconds / machine.peak_flops,
        peak_bytes=run.peak_bytes,
        planned_bytes=planned,
        note=note,
        values={"flops_per_step": run.flops, "samples_per_step": samples, "steps_timed": len(run.timed)},
    )


def compiled_row(training: Training, stage: StageName) -> Measured:
    """Measure the step of a stage with compiled blocks, beside the one without.

    Raises:
        NotMeasuredError: on a CPU, where the compiler is missing or takes minutes.
    """
    if training.device.type == "cpu":
        if stage != "policy":
            raise NotMeasuredError("torch's compiler takes minutes for these blocks on a CPU")
        if shutil.which("g++") is None:
            raise NotMeasuredError("torch.compile on a CPU needs g++, which is missing here")
    eager, micro_batches = training.measured(stage)
    try:
        run = training.run_stage(stage, compiled=True, micro_batches=micro_batches)
    finally:
        torch.compiler.reset()  # else the compiled code keeps the modules
    run.flops = eager.flops
    compile_seconds = run.first_seconds - run.step_seconds
    ratio = eager.step_seconds / run.step_seconds
    found = measured_step(
        run,
        training.machine,
        samples=training.batch(stage),
        unit=unit_of(stage),
        planned=None,
        note=f"off {1000 * eager.step_seconds:.1f} ms, {ratio:.2f} times as fast; compiled in {compile_seconds:.0f} s",
    )
    found.values |= {
        "milliseconds_off": 1000 * eager.step_seconds,
        "times_as_fast": ratio,
        "compile_seconds": compile_seconds,
    }
    return found
