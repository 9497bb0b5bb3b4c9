"""Program `vw2-select`: choose among the checkpoints that a fine-tuning run kept, by rollouts on tuning starts.

    vw2-finetune ... loop.keep_every=100 run_dir=runs/first/finetune
    vw2-select policy=runs/first/finetune workers=8

Held-out action errors may rank policies wrongly, so each checkpoint is rolled out, all on the same starts, and never on
those of seed 0, on which policies are measured. Leaves a rollout per checkpoint and selection.json in `run_dir`, and
the file `selected` in the run folder, which from then on stands for the chosen checkpoint. Training on removes it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from vw2_robot.command_line import entry_points
from vw2_robot.errors import InputError
from vw2_robot.storage.files import write_json, write_text
from vw2_robot.storage.locks import lock_folder

from .__main__ import rollout
from .config import RolloutConfig

SUMMARY_KEYS = (
    "policy_hash",
    "num_sequences",
    "success_rates",
    "success_intervals95",
    "average_length",
    "average_length_ci95",
)


@dataclass(frozen=True)
class SelectConfig(RolloutConfig):
    """The root of `vw2-select`: a fine-tuning run, and how each of its checkpoints is rolled out."""

    policy: str
    """run folder of a fine-tuning with `loop.keep_every`"""
    run_dir: str
    """folder of the rollouts, one below it for each checkpoint, and of selection.json; "": selection/ in the run"""
    protocol: Literal["chain", "single"] = "single"
    """see `vw2-rollout`"""
    num_sequences: int = 100
    """chains per checkpoint (protocol=chain)"""
    sequences_seed: int = 1
    """which chains (protocol=chain); not 0, whose chains measure the policy afterwards"""
    rollouts_per_task: int = 5
    """starts of each task per checkpoint (protocol=single)"""
    starts_seed: int = 1
    """which starts (protocol=single); not 0, whose starts measure the policy afterwards"""
    videos: int = 0
    """see `vw2-rollout`"""

    def __post_init__(self) -> None:
        """Reject what cannot work."""
        super().__post_init__()
        if not self.run_dir:
            object.__setattr__(self, "run_dir", str(Path(self.policy) / "selection"))
        for name in ("sequences_seed", "starts_seed"):
            if getattr(self, name) == 0:
                raise ValueError(f"{name}=0 has the starts that policies are measured on; select on others")
        for name in ("shard", "merge", "against"):
            if getattr(self, name):
                raise ValueError(f"{name} is an option of vw2-rollout; every checkpoint runs all chains here")

    def rollout_of(self, checkpoint: Path) -> RolloutConfig:
        """Return the configuration of a checkpoint's rollout."""
        options = {field.name: getattr(self, field.name) for field in fields(RolloutConfig)}
        other_protocol = "sequences_seed" if self.protocol == "single" else "starts_seed"
        place = {"policy": str(checkpoint), "run_dir": str(Path(self.run_dir) / checkpoint.name)}
        return RolloutConfig(**{**options, other_protocol: 0, **place})


def select(config: SelectConfig) -> dict[str, Any]:
    """Roll out each checkpoint that the run has, or finish doing so, and name the best one in the run's `selected`.

    Returns:
        The content of selection.json.

    Raises:
        InputError: The run is in use or has one checkpoint alone, or a rollout cannot be run.
    """
    # Imported here: a worker that begins with this module needs no torch.
    from vw2_robot.checkpoint import SELECTED, kept_checkpoints, step_of

    run = Path(config.policy)
    with lock_folder(run, what="a selection of its checkpoints"):
        checkpoints = kept_checkpoints(run)
        if len(checkpoints) < 2:
            raise InputError(
                f"{run} has {len(checkpoints)} checkpoints, expected several; train with loop.keep_every=N"
            )
        measured: list[dict[str, Any]] = []
        for checkpoint in checkpoints:
            summary = rollout(config.rollout_of(checkpoint))
            place = checkpoint.relative_to(run).as_posix()
            numbers = {name: summary[name] for name in SUMMARY_KEYS}
            measured.append({"checkpoint": place, "step": step_of(checkpoint), **numbers})
        # Of equals the one that trained longest.
        best = max(measured, key=lambda one: (one["average_length"], one["step"]))
        seed = config.starts_seed if config.protocol == "single" else config.sequences_seed
        found = {"selected": best["checkpoint"], "protocol": config.protocol, "seed": seed, "checkpoints": measured}
        write_json(Path(config.run_dir) / "selection.json", found, sealed=True)
        write_text(run / SELECTED, best["checkpoint"] + "\n")
    return found


def lines(found: dict[str, Any]) -> list[str]:
    """Return a selection as lines of text; `found` is what `select` returned."""
    measured = found["checkpoints"]
    table = [f"{'checkpoint':<24} {'solved':>6}  95 % interval"]
    for one in measured:
        low, high = one["success_intervals95"][0] if found["protocol"] == "single" else one["average_length_ci95"]
        selected = "  selected" if one["checkpoint"] == found["selected"] else ""
        table.append(f"{one['checkpoint']:<24} {one['average_length']:>6.3f}  [{low:.3f}, {high:.3f}]{selected}")
    return [
        *table,
        f"{measured[0]['num_sequences']} rollouts each, seed {found['seed']}",
        f"the best of {len(measured)} is biased upward on the starts that chose it: measure it on others (seed 0)",
    ]


def main(config: SelectConfig) -> None:
    """Console script `vw2-select`."""
    # As under `python -m`, see `vw2-rollout`.
    sys.modules["__main__"].__spec__ = __spec__
    print("\n".join(lines(select(config))))


if __name__ == "__main__":
    entry_points.select.main()
