"""What training between two checkpoints has changed in the codes, such as phase 2 after phase 1.

Both are probed on the same clips and splits. Differences of R2 are paired: the two have the same demonstrations in
every bootstrap sample.
"""

# R rows (valid steps) · N codes per step
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from vw2_robot.data.labeled_steps import target_names
from vw2_robot.errors import InputError
from vw2_robot.models.dldm.config import DLDMConfig
from vw2_robot.models.dldm.dldm import DLDM

from .action_probe import STREAM_BOOTSTRAP, kinds_of, means_of, targets_of
from .datasets import Labeled
from .features import Quantizer, StepRows, encode_steps, one_hot_fsq
from .nuisance import KINDS
from .probes import Split, finite, fit_linear, score_r2_difference

NUISANCES = ("on_action", "sensitivity")


def check_clips(now: DLDMConfig, before: DLDMConfig, *, path: str) -> None:
    """Check that both encode the same clips.

    Args:
        now: configuration of the dLDM that the report is about.
        before: that of the other one.
        path: of the other one, for the message.

    Raises:
        InputError: they differ in size, length or stride.
    """
    for name in ("num_frames", "temporal_stride", "height", "width"):
        if getattr(now, name) != getattr(before, name):
            raise InputError(
                f"before={path} has dldm.{name}={getattr(before, name)}, dldm has {getattr(now, name)}; both must "
                "encode the same clips"
            )


def encoded_by(dldm: DLDM, labeled: Labeled, *, device: torch.device) -> Labeled:
    """Return the data set with the codes of another dLDM.

    Args:
        dldm: in evaluation mode.
        labeled: the data set.
        device: of the dLDM.
    """
    rows = labeled.rows
    indices = encode_steps(dldm, labeled.video, labeled.steps, device=device)[rows.clip, rows.step]
    return replace(labeled, rows=replace(rows, indices=indices))


def r2_differences(
    now: StepRows, before: StepRows, split: Split, quantizers: tuple[Quantizer, Quantizer], *, seed: int
) -> dict[str, dict[str, Any]]:
    """Return how much more R2 a linear probe on the codes has now, by kind of motion and column.

    Args:
        now: the steps of a data set.
        before: the same steps with the codes of the other dLDM.
        split: of the rows.
        quantizers: of both, in this order, on the CPU.
        seed: of the intervals.
    """
    found: dict[str, dict[str, Any]] = {}
    for kind in kinds_of(now):
        names = target_names(kind, now.action_names)
        targets = targets_of(now, kind)
        predicted, predicted_before = (
            fit_linear(x, targets, split).predict(x[split.test])
            for x in (one_hot_fsq(rows.indices, q) for rows, q in zip((now, before), quantizers, strict=True))
        )
        found[kind] = score_r2_difference(
            targets[split.test],
            predicted,
            predicted_before,
            now.group[split.test],
            names,
            seed=[seed, STREAM_BOOTSTRAP],
            means=means_of(names),
        )
    return found


def nuisance_means(found: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Return, for each data set, the measures of the camera-cut test that codes alone decide, mean over its kinds."""
    return {
        name: {
            # A ratio that is None becomes NaN, and so does the mean.
            measure: finite(np.mean(np.asarray([entry["kinds"][kind][measure]["ratio"] for kind in KINDS], float)))
            for measure in NUISANCES
        }
        for name, entry in found.items()
    }
