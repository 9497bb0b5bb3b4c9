"""Program `vw2-probe-latents`: measures how much the codes of a dLDM say about actions.

    vw2-probe-latents dldm=runs/first/dldm labeled=[runs/record/A,runs/record/B] out=runs/first/latent_report

The dLDM was trained on video alone; here its codes are compared with true motion. Everything is measured on
demonstrations that no probe was fitted on, with intervals over demonstrations, and beside baseline features. These
files are written to `out`, and `vw2-report` makes a section of them:

    latent_report.json   all numbers: action probe, domain probe, explained change, swap test, nuisances, map, code use
    latent_report.md     the main ones as tables
    swap.png             A first, A last, B first, B last, A with the codes of B, A with its own codes
    neighbors.png       a step (first, middle, last frame) and the three steps with the nearest codes
    nuisances.png        a still frame as each nuisance changes it over one step
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vw2_robot.aliases import with_new_keys
from vw2_robot.checkpoint import Checkpoint, load_checkpoint, resolve
from vw2_robot.command_line import entry_points
from vw2_robot.command_line.config_tree import config_from
from vw2_robot.data.clips import TimeBase, time_base_of
from vw2_robot.errors import InputError
from vw2_robot.models.dldm.config import DLDMConfig
from vw2_robot.models.dldm.dldm import DLDM
from vw2_robot.storage.files import read_yaml, write_text

from ..dldm_modules import encoder_hash
from ..train_vdm import vdm_of_dldm
from .action_probe import fit_code_probe, probe_actions, split_sets
from .before import check_clips, encoded_by, nuisance_means, r2_differences
from .code_swap import MotionReader, decode_with_codes_of, swap_examples, swap_test
from .config import ProbeLatentsConfig
from .datasets import Labeled, dense_changes, in_common_units, open_sets, swap_steps, whole_clips
from .domains import probe_domains
from .latent_figures import write_columns, write_grid, write_strips
from .latent_map import code_use, latent_map, moving_rows, nearest_steps
from .latent_tables import latent_tables
from .nuisance import nuisance_examples, nuisance_test
from .probes import Split
from .video_model import judge_video_model

FORMAT_VERSION = 1
IMAGE_ROWS = 6


def probe_latents(config: ProbeLatentsConfig) -> dict[str, Any]:
    """Write the report to `out`, and return the content of latent_report.json.

    Raises:
        InputError: no dLDM, no labeled data, or too few demonstrations.
    """
    device = config.hardware.torch_device()
    checkpoint, dldm = open_dldm(config.dldm, device)
    video_model = vdm_of_dldm(checkpoint, dldm.config)
    before = None
    if config.before is not None:
        _, before = open_dldm(config.before, device)
        check_clips(dldm.config, before.config, path=config.before)
    sets = open_sets(
        config.labeled,
        names=config.names,
        cache=Path(config.frame_cache) if config.frame_cache is not None else Path(config.out) / "frames",
        split=config.split,
        episodes=config.episodes,
        time_base=TimeBase(target_hz=config.target_hz, gap_seconds=config.gap_seconds)
        if config.target_hz is not None or config.gap_seconds is not None
        else trained_time_base(checkpoint),
        seed=config.seed,
        dldm=dldm,
        device=device,
    )
    report: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "dldm": str(config.dldm),
        "checkpoint": resolve(config.dldm).name,
        "encoder_hash": encoder_hash(dldm),
        "codes_per_step": dldm.config.queries,
        "levels": list(dldm.config.fsq_levels),
        "stride": dldm.config.temporal_stride,
        "seed": config.seed,
        "data": [labeled.facts() for labeled in sets],
    }
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    shares = (config.validation_share, config.test_share)
    splits = split_sets([labeled.rows for labeled in sets], shares=shares, seed=config.seed)
    report |= measure(config, dldm, sets, splits, device=device)
    if video_model is not None:
        vdm, codec = video_model[0].to(device), video_model[1].to(device)
        report["video_model"] = {
            labeled.video.name: judge_video_model(
                dldm,
                vdm,
                codec,
                labeled,
                split,
                clips=config.explained_clips,
                seed=config.seed,
                hardware=config.hardware,
            )
            for labeled, split in zip(sets, splits, strict=True)
        }
    if before is not None:
        report["before"] = compare_with(config, dldm, before, sets, splits, report)
    write_text(out / "latent_report.json", json.dumps(report, indent=1) + "\n")
    write_text(out / "latent_report.md", latent_tables(report))
    return report


def open_dldm(path: str, device: torch.device) -> tuple[Checkpoint, DLDM]:
    """Return a checkpoint and its dLDM, in evaluation mode on the device."""
    checkpoint = load_checkpoint(path, kind="dldm")
    with checkpoint.building():
        dldm = DLDM(config_from(DLDMConfig, checkpoint.config))
        checkpoint.load_into(dldm=dldm)
    return checkpoint, dldm.to(device).eval()


def trained_time_base(checkpoint: Checkpoint) -> TimeBase:
    """Return how the clips were timed that the dLDM was trained on.

    The oldest checkpoints have it in their run's configuration alone. Where neither is there, frames were consecutive.
    """
    file = checkpoint.path.parent.parent / "config.yaml"
    if "time_base" in checkpoint.facts or not file.is_file():
        return time_base_of(checkpoint.facts)
    tree = with_new_keys(read_yaml(file, cure="restore it, or give target_hz"))
    return time_base_of({"time_base": tree.get("data")})


def measure(
    config: ProbeLatentsConfig, dldm: DLDM, sets: Sequence[Labeled], splits: Sequence[Split], *, device: torch.device
) -> dict[str, Any]:
    """Return all numbers on the codes and the decoder, and write the report's images to `out`.

    Args:
        config: of the program.
        dldm: in evaluation mode, on the device.
        sets: the labeled data sets.
        splits: train, validation and test rows of each data set.
        device: where clips are encoded and decoded.
    """
    seed = config.seed
    # A copy, since `cpu()` moves a module in place.
    quantizer = copy.deepcopy(dldm.fsq).cpu()
    rows = [labeled.rows for labeled in sets]
    # Written first, since it needs no probe.
    strips = nearest_steps(rows, splits, quantizer, queries=IMAGE_ROWS, neighbors=3, seed=seed)
    out = Path(config.out)
    write_strips(
        out / "neighbors.png", strips, [(s.video, s.steps, s.rows) for s in sets], stride=dldm.config.temporal_stride
    )
    return {
        "probe": probe_actions(rows, [s.untrained for s in sets], splits, quantizer, seed=seed),
        "domains": probe_domains(rows, splits, quantizer, seed=seed),
        "swap": run_swap_tests(config, dldm, sets, splits, device=device),
        "nuisance": run_nuisance_tests(config, dldm, sets, splits, device=device),
        "map": latent_map(rows, splits, quantizer, seed=seed),
        "codes": code_use(rows, quantizer),
    }


def compare_with(
    config: ProbeLatentsConfig,
    dldm: DLDM,
    before: DLDM,
    sets: Sequence[Labeled],
    splits: Sequence[Split],
    report: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what has changed since the checkpoint `before`: R2, nuisance and perplexity.

    Args:
        config: of the program.
        dldm: the one that the report is about, on its device.
        before: the other one, on the same device.
        sets: the labeled data sets, with the codes of `dldm`.
        splits: train, validation and test rows of each data set.
        report: its entries "nuisance" and "codes" are what `before` is compared with.
    """
    device = config.hardware.torch_device()
    quantizers = (copy.deepcopy(dldm.fsq).cpu(), copy.deepcopy(before.fsq).cpu())
    others = [encoded_by(before, labeled, device=device) for labeled in sets]
    return {
        "dldm": config.before,
        "encoder_hash": encoder_hash(before),
        "r2": {
            labeled.video.name: r2_differences(labeled.rows, other.rows, split, quantizers, seed=config.seed)
            for labeled, other, split in zip(sets, others, splits, strict=True)
        },
        "nuisance": {
            "before": nuisance_means(run_nuisance_tests(config, before, others, splits, device=device)),
            "now": nuisance_means(report["nuisance"]),
        },
        "perplexity": {
            "before": code_use([other.rows for other in others], quantizers[1])["perplexity"],
            "now": report["codes"]["perplexity"],
        },
    }


def run_swap_tests(
    config: ProbeLatentsConfig, dldm: DLDM, sets: Sequence[Labeled], splits: Sequence[Split], *, device: torch.device
) -> list[dict[str, Any]]:
    """Run the swap test within each data set, and with codes from the next one in the same units.

    Writes example images to swap.png in `out`.

    Args:
        config: of the program.
        dldm: in evaluation mode, on the device.
        sets: the labeled data sets.
        splits: train, validation and test rows of each data set.
        device: where the dLDM is.

    Returns:
        Results of `swap_test`, one for each pair of a data set and the donor of its codes.
    """
    decode = decode_with_codes_of(dldm)
    found = []
    every = []
    for members, sides in in_common_units(sets, splits):
        seen = dense_changes(members, sides, count=swap_steps(members[0]), stride=dldm.config.temporal_stride)
        reader = MotionReader(seen, seed=config.seed)
        # One reader for all data sets in the same units, so that swaps between them can be read.
        clips = [whole_clips(labeled, split, seed=config.seed) for labeled, split in zip(members, sides, strict=True)]
        for i, first in enumerate(clips):
            # With the next one only: all pairs would take the square of the time.
            for donor in [first] if len(clips) == 1 else [first, clips[(i + 1) % len(clips)]]:
                found.append(
                    swap_test(decode, first, donor, reader=reader, pairs=config.pairs, seed=config.seed, device=device)
                )
        every += clips
    columns = swap_examples(decode, every[0], every[-1], rows=IMAGE_ROWS, seed=config.seed, device=device)
    write_columns(Path(config.out) / "swap.png", columns)
    return found


def run_nuisance_tests(
    config: ProbeLatentsConfig, dldm: DLDM, sets: Sequence[Labeled], splits: Sequence[Split], *, device: torch.device
) -> dict[str, Any]:
    """Run the camera-cut test in each data set, on first steps that move and that the probe was not fitted on.

    Writes example images of the first data set to nuisances.png in `out`.

    Args:
        config: of the program.
        dldm: in evaluation mode, on the device.
        sets: the labeled data sets.
        splits: train, validation and test rows of each data set.
        device: where the dLDM is.

    Returns:
        Name of the data set -> result of `nuisance_test`.

    Raises:
        InputError: there are too few of them.
    """
    quantizer = copy.deepcopy(dldm.fsq).cpu()
    found = {}
    for labeled, split in zip(sets, splits, strict=True):
        rows = labeled.rows
        chosen = (rows.step == 0) & split.test & moving_rows(rows.motion[:, :3])
        numbers = chosen.nonzero()[0][: config.nuisance_clips]
        if len(set(rows.group[numbers].tolist())) < 2:
            raise InputError(
                f"{rows.name}: fewer than 2 test demonstrations begin with a step that moves; use more demonstrations "
                "(episodes) or a larger test_share"
            )
        pixels = labeled.first_steps(numbers, stride=dldm.config.temporal_stride)
        found[rows.name] = nuisance_test(
            dldm,
            quantizer,
            pixels,
            rows.group[numbers],
            probe=fit_code_probe(rows, split, quantizer),
            motion=rows.motion[numbers],
            seed=config.seed,
            device=device,
        )
        if labeled is sets[0]:
            write_grid(Path(config.out) / "nuisances.png", nuisance_examples(pixels[:3], dldm.config.temporal_stride))
    return found


def main(config: ProbeLatentsConfig) -> None:
    """Write the report, and print its tables."""
    print(latent_tables(probe_latents(config)))
    print(f"latent report: {Path(config.out) / 'latent_report.json'}")


if __name__ == "__main__":
    entry_points.probe_latents.main()
