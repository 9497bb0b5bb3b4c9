"""What the stages of pre-training share: the lock of their run_dir, the check of batches, the search of results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from vw2_robot.checkpoint import resolve
from vw2_robot.distributed.batch_share import BatchShare
from vw2_robot.distributed.ranks import locked_on_main
from vw2_robot.errors import InputError

from .config import PretrainConfig, Stage


def alone(stage: Callable[[PretrainConfig], None], *names: Stage) -> Callable[[PretrainConfig], None]:
    """Return the stage as a program: while it runs, no other one can work in this run_dir, whatever its stage.

    Args:
        stage: what runs.
        names: of the stages that it runs; without any: those of `config.stages`.
    """

    def locked(config: PretrainConfig) -> None:
        check_batches(config, names or config.stages)
        with locked_on_main(Path(config.run_dir), what="pre-training"):
            stage(config)

    return locked


def check_batches(config: PretrainConfig, stages: tuple[Stage, ...]) -> None:
    """Check that ranks and micro-batches divide every batch of these stages, before any long work.

    Raises:
        InputError: they do not, or the statistics of a whole batch are wanted of micro-batches.
    """
    micro_batches = config.hardware.micro_batches
    phases = config.train_dldm
    loops = {"vdm": [config.train_vdm], "dldm": [phases.phase1, phases.phase2], "policy": [config.train_policy.loop]}
    for stage in stages:
        for loop in loops.get(stage, []):  # extracting latents has no batch of its own
            BatchShare.of(loop.batch_size, micro_batches=micro_batches)
    coupled = "dldm" in stages and (config.dldm.z_norm == "batch" or phases.decorrelation > 0)
    if coupled and micro_batches > 1 and phases.statistics_group is None:
        raise InputError(
            f"hardware.micro_batches={micro_batches}: aids.standardize=batch and aids.decorrelation take statistics "
            "over the whole batch, which is in no micro-batch; set train_dldm.statistics_group to the number of clips "
            "that share their statistics (16 or more; it is part of the result)"
        )
    if coupled and phases.statistics_group is not None:
        for loop in (phases.phase1, phases.phase2):
            if (loop.batch_size // micro_batches) % phases.statistics_group:
                raise InputError(
                    f"train_dldm.statistics_group={phases.statistics_group} does not divide a micro-batch of "
                    f"{loop.batch_size // micro_batches} clips over all ranks (batch_size {loop.batch_size}, "
                    f"hardware.micro_batches={micro_batches}); use fewer micro-batches"
                )


def finished_stage(config: PretrainConfig, stage: Literal["vdm", "dldm"]) -> Path:
    """Return the last checkpoint of a stage that the next one builds on.

    Raises:
        InputError: the stage was never run, or its last step is not the one that this configuration ends at.
    """
    total = config.train_vdm.train_steps if stage == "vdm" else config.train_dldm.total
    if not config.stage_dir(stage).exists():
        raise InputError(f"{config.stage_dir(stage)} does not exist; run vw2-train-{stage} with the same run_dir first")
    checkpoint = resolve(config.stage_dir(stage))
    if checkpoint.name != f"step_{total}":
        raise InputError(
            f"{config.stage_dir(stage)} has got to {checkpoint.name}, the stage ends at step_{total}; "
            f"finish it first: stages=[{stage}]"
        )
    return checkpoint
