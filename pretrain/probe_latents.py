"""Program `vw2-probe-latents`: are the codes of a dLDM actions?

    vw2-probe-latents dldm=runs/first/dldm labelled=[runs/record/A,runs/record/B] out=runs/first/latent_report

Method specification 4 and 7 (items 15 to 17). The dLDM saw video only; here its codes meet true actions. Everything is
measured on episodes that no probe was fitted on, with intervals over episodes, and beside features that ought to be
worse: pixel differences, codes of an untrained encoder, random codes, and the right codes in the wrong order.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from vw2_robot.checkpoint import load_checkpoint, resolve, write_text
from vw2_robot.cli import program
from vw2_robot.config_tree import config_from
from vw2_robot.data.labelled_steps import LabelledSteps, LabelledVideo, cut_steps, open_labelled_calvin
from vw2_robot.errors import InputError
from vw2_robot.models.dldm import DLDM, DLDMConfig
from vw2_robot.models.fsq import FSQ
from vw2_robot.runs import Hardware

from .action_probe import probe_actions
from .probe_features import StepRows, encode_steps, pixel_differences, step_rows, untrained_twin
from .train_dldm import encoder_hash

FORMAT_VERSION = 1
UNTRAINED_CLIPS = 256


@dataclass(frozen=True)
class ProbeLatents:
    """The root of `vw2-probe-latents`."""

    dldm: str
    """a checkpoint, or the run folder of the stage"""
    labelled: list[str]
    """labelled data sets in CALVIN's layout, for example one a scene"""
    out: str
    names: list[str] | None = None
    """what to call the data sets; default: the names of their folders"""
    split: Literal["training", "validation"] = "training"
    episodes: int = 200
    """demonstrations to use of each data set, drawn by the seed"""
    frames: str | None = None
    """where decoded frames are kept; default: out/frames"""
    target_hz: float | None = None
    """rate of the clips' frames, as the dLDM was trained; null: consecutive frames"""
    validation_share: float = 0.2
    test_share: float = 0.3
    seed: int = 0
    hardware: Hardware = field(default_factory=Hardware)

    def __post_init__(self) -> None:
        """Reject what cannot work."""
        if not self.labelled:
            raise ValueError("labelled is empty; give the folders of labelled data sets: labelled=[DIR,...]")
        if self.names is not None and (len(self.names) != len(self.labelled) or len(set(self.names)) < len(self.names)):
            raise ValueError(
                f"names={self.names}: expected {len(self.labelled)} different names, one for each data set"
            )
        if self.episodes < 3:
            raise ValueError(f"episodes={self.episodes}; a probe needs at least 3 (training, validation, test)")
        shares = (self.validation_share, self.test_share)
        if min(shares) <= 0 or sum(shares) >= 1:
            raise ValueError(f"validation_share and test_share must be positive and sum to less than 1, found {shares}")


@dataclass(frozen=True, eq=False)
class Labelled:
    """One data set, cut and encoded."""

    video: LabelledVideo
    steps: LabelledSteps
    rows: StepRows
    untrained: StepRows


def probe_latents(config: ProbeLatents) -> dict[str, Any]:
    """Write latent_report.json to `out`; returns its content.

    Raises:
        InputError: no dLDM, no labelled data, or too few demonstrations.
    """
    device = config.hardware.torch_device()
    checkpoint = load_checkpoint(config.dldm, kind="dldm")
    dldm = DLDM(config_from(DLDMConfig, checkpoint.config))
    checkpoint.load_into(dldm=dldm)
    dldm = dldm.to(device).eval()
    sets = open_sets(config, dldm, device)
    report: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "dldm": str(config.dldm),
        "checkpoint": resolve(config.dldm).name,
        "encoder_hash": encoder_hash(dldm),
        "codes_per_step": dldm.config.queries,
        "levels": list(dldm.config.fsq_levels),
        "stride": dldm.config.stride,
        "seed": config.seed,
        "data": [_facts(labelled) for labelled in sets],
    }
    report["probe"] = probe_actions(
        [labelled.rows for labelled in sets],
        [labelled.untrained for labelled in sets],
        FSQ(dldm.config.fsq_levels),
        shares=(config.validation_share, config.test_share),
        seed=config.seed,
    )
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "latent_report.json", json.dumps(report, indent=1) + "\n")
    return report


def open_sets(config: ProbeLatents, dldm: DLDM, device: torch.device) -> list[Labelled]:
    """Decode, cut and encode every data set; the untrained twin sees the same clips."""
    names = config.names or short_names([Path(path) for path in config.labelled])
    folder = Path(config.frames) if config.frames is not None else Path(config.out) / "frames"
    shape = dldm.config
    opened = []
    for path, name in zip(config.labelled, names, strict=True):
        video = open_labelled_calvin(
            Path(path),
            name=name,
            cache=folder / f"{name}-{config.split}-{shape.height}x{shape.width}-{config.episodes}-{config.seed}",
            height=shape.height,
            width=shape.width,
            episodes=config.episodes,
            seed=config.seed,
            split=config.split,
        )
        steps = cut_steps(video, frames=shape.frames, stride=shape.stride, target_hz=config.target_hz)
        if len(set(video.group.tolist())) < 3:
            raise InputError(f"{path}: fewer than 3 separate demonstrations; record or name a larger data set")
        opened.append((video, steps))
    first_video, first_steps = opened[0]
    clips = first_video.frames.read_batch(first_steps.episode[:UNTRAINED_CLIPS], first_steps.frames[:UNTRAINED_CLIPS])
    twin = untrained_twin(shape, clips, seed=config.seed, device=device)
    sets = []
    for video, steps in opened:
        difference = pixel_differences(video, steps, stride=shape.stride)
        codes, blind = (encode_steps(model, video, steps, device=device) for model in (dldm, twin))
        sets.append(
            Labelled(
                video, steps, step_rows(video, steps, codes, difference), step_rows(video, steps, blind, difference)
            )
        )
    return sets


def short_names(paths: list[Path]) -> list[str]:
    """The last parts of the paths, as many as it takes to tell them apart."""
    resolved = [path.resolve() for path in paths]
    for depth in range(1, max(len(path.parts) for path in resolved) + 1):
        names = ["_".join(path.parts[-depth:]).strip("/") for path in resolved]
        if len(set(names)) == len(names):
            return names
    raise InputError(f"labelled names a folder twice: {', '.join(map(str, paths))}")


def _facts(labelled: Labelled) -> dict[str, Any]:
    return {
        "name": labelled.video.name,
        "episodes": len(labelled.video.frames.episodes),
        "clips": len(labelled.steps.episode),
        "steps": len(labelled.rows),
    }


@program(ProbeLatents, config_name="probe_latents")
def main(config: ProbeLatents) -> None:
    """Console script `vw2-probe-latents`."""
    report = probe_latents(config)
    for name, entry in report["probe"]["in_scene"].items():
        for feature, scores in entry["commanded"].items():
            shown = ", ".join(f"{key} {value['r2']}" for key, value in scores["linear"].items())
            print(f"{name} {feature}: {shown}")
    print(f"latent report: {Path(config.out) / 'latent_report.json'}")


if __name__ == "__main__":
    main()
