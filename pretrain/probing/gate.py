"""Program `vw2-gate-latents`: whether a dLDM is good enough to train a policy on, by thresholds set before the runs.

    vw2-gate-latents reports=[runs/s0/latent_report,runs/s1/latent_report,runs/s2/latent_report] unseen=[B]

Reads the latent reports of several training seeds, and prints each measure with its threshold, each data set and each
seed. All must pass on every seed; the exit status is 1 where one does not. How well the data set can be read from the
codes, and which columns plain pixel differences predict better, is printed and not judged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vw2_robot.command_line import entry_points
from vw2_robot.contracts import ACTION_NAMES
from vw2_robot.data.labeled_steps import target_names
from vw2_robot.errors import InputError
from vw2_robot.storage.files import read_json

from ..diagnostics.explained_change import EXPLAINED
from .config import GateLatentsConfig, GateThresholds
from .latent_tables import FEATURES, table, value
from .video_model import SHUFFLE_RATIO

CURE = "run vw2-probe-latents of this release again, on a dLDM with a video model"
ROTATIONS_AND_GRIPPER = ("roll", "pitch", "yaw", "gripper")


class Check(NamedTuple):
    """One measure on one data set.

    measure: what it is. data_set: its name. needed: the least value that passes. values: of each seed; None where the
    report has no value, which does not pass.
    """

    measure: str
    data_set: str
    needed: float
    values: list[float | None]

    @property
    def passed(self) -> list[bool]:
        """Whether each seed passes."""
        return [found is not None and found >= self.needed for found in self.values]


def gate(
    reports: Sequence[Mapping[str, Any]], thresholds: GateThresholds, *, unseen: Sequence[str] = ()
) -> list[Check]:
    """Return all checks of the reports, which are on the same data sets.

    Args:
        reports: contents of latent_report.json, one for each seed.
        thresholds: what must be reached.
        unseen: names of the data sets that the dLDM was not trained on.
    """
    checks = []
    for name in data_sets(reports[0]):
        measures = [measures_of(report, name) for report in reports]
        needed = {
            "explained change": thresholds.explained_unseen if name in unseen else thresholds.explained_seen,
            "explained change over the decoder's": thresholds.decoder_share,
            "shuffle ratio": thresholds.shuffle_ratio,
            "R2 translation": thresholds.translation,
            **{f"R2 {column}": getattr(thresholds, column) for column in ROTATIONS_AND_GRIPPER},
            "R2 above quantized pixel differences": thresholds.above_pixels,
        }
        checks += [Check(key, name, least, [one[key] for one in measures]) for key, least in needed.items()]
    return checks


def measures_of(report: Mapping[str, Any], name: str) -> dict[str, float | None]:
    """Return what is judged on one data set, by name; R2 is that of a linear probe on one-hot codes."""
    video = report["video_model"][name]
    explained = video[EXPLAINED]
    decoder = video["explained_change_decoder"]
    codes, pixels = (scores_of(report, name, feature) for feature in ("codes_one_hot", "pixels_quantized"))
    mean, pixels_mean = codes["mean"], pixels["mean"]
    return {
        "explained change": explained,
        # Of a decoder that explains nothing there is no share, nor where a loss was not finite.
        "explained change over the decoder's": explained / decoder
        if explained is not None and (decoder or 0) > 0
        else None,
        "shuffle ratio": video[SHUFFLE_RATIO],
        **{f"R2 {column}": codes[column] for column in ("translation", *ROTATIONS_AND_GRIPPER)},
        "R2 above quantized pixel differences": None if mean is None or pixels_mean is None else mean - pixels_mean,
    }


def scores_of(report: Mapping[str, Any], name: str, feature: str) -> dict[str, float | None]:
    """Return R2 of the motion that images show: translation, each rotation, gripper, and the mean of the seven columns.

    In the mean a column counts at least 0: one that hardly varies can be at -10, and would decide alone.

    Args:
        report: content of latent_report.json.
        name: of the data set.
        feature: what a linear probe predicts it from, such as "codes_one_hot".
    """
    kinds = report["probe"]["in_scene"][name]
    kind = "moved" if "moved" in kinds else "commanded"
    scores = kinds[kind][feature]["linear"]
    columns = target_names(kind, ACTION_NAMES)
    if missing := [column for column in columns if column not in scores]:
        raise InputError(
            f"{name}: the report has no {', '.join(missing)}; thresholds are for data sets with the actions "
            f"{', '.join(ACTION_NAMES)}, or with poses of the end effector"
        )
    known = [max(0.0, scores[column]["r2"]) for column in columns if scores[column]["r2"] is not None]
    return {
        # Left out of a report where no translation varies.
        "translation": scores["translation"]["r2"] if "translation" in scores else None,
        **{name: scores[column]["r2"] for name, column in zip(ROTATIONS_AND_GRIPPER, columns[3:], strict=True)},
        "mean": sum(known) / len(known) if known else None,
    }


def data_sets(report: Mapping[str, Any]) -> list[str]:
    """Return the names of the data sets of a report."""
    return [entry["name"] for entry in report["data"]]


def gate_table(checks: Sequence[Check]) -> str:
    """Return a markdown table with a column for each seed."""
    body = [
        [check.measure, check.data_set, f">= {check.needed:g}"]
        + [f"{value(v)} {'pass' if ok else 'FAIL'}" for v, ok in zip(check.values, check.passed, strict=True)]
        for check in checks
    ]
    return table(["measure", "data set", "needed", *(f"seed {i + 1}" for i in range(len(checks[0].values)))], body)


def not_judged(reports: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return lines on what is reported only: pixel differences that win a column, and domains read from a step."""
    lines = []
    for name in data_sets(reports[0]):
        for column in ("translation", *ROTATIONS_AND_GRIPPER):
            pairs = [
                [scores_of(report, name, feature)[column] for feature in ("codes_one_hot", "pixels_quantized")]
                for report in reports
            ]
            won = sum(codes is not None and pixels is not None and pixels > codes for codes, pixels in pairs)
            if won:
                lines.append(
                    f"{name}: quantized pixel differences predict {column} better on {won} of {len(pairs)} seeds"
                )
    if reports[0]["domains"] is not None:
        for feature in reports[0]["domains"]["accuracy"]:
            found = ", ".join(value(report["domains"]["accuracy"][feature]["ratio"]) for report in reports)
            chance = reports[0]["domains"]["chance"]
            lines.append(f"data set read from a step, {FEATURES[feature]}: {found} (chance {chance:.2f})")
    return lines


def read_reports(config: GateLatentsConfig) -> list[dict[str, Any]]:
    """Return the contents of all reports.

    Raises:
        InputError: one cannot be read, two are of the same dLDM, or they are not on the same data sets.
    """
    files = [path / "latent_report.json" if path.is_dir() else path for path in map(Path, config.reports)]
    reports = [read_json(file, cure=CURE) for file in files]
    for number, (file, report) in enumerate(zip(files, reports, strict=True)):
        if missing := {"data", "probe", "domains", "video_model", "encoder_hash"} - report.keys():
            raise InputError(f"{file} lacks {', '.join(sorted(missing))}; {CURE}")
        if report["encoder_hash"] in [other["encoder_hash"] for other in reports[:number]]:
            raise InputError(f"{file} is of the same dLDM as another report; give reports of different training seeds")
        if data_sets(report) != data_sets(reports[0]):
            raise InputError(
                f"{file} is on {data_sets(report)}, {files[0]} on {data_sets(reports[0])}; probe the same ones"
            )
    if unknown := set(config.unseen) - set(data_sets(reports[0])):
        raise InputError(f"unseen={sorted(unknown)}: the reports are on {data_sets(reports[0])}")
    return reports


def main(config: GateLatentsConfig) -> None:
    """Print all checks; the exit status is 1 where one fails."""
    reports = read_reports(config)
    checks = gate(reports, config.thresholds, unseen=config.unseen)
    print(gate_table(checks))
    for number, path in enumerate(config.reports, 1):
        print(f"seed {number}: {path}")
    for line in not_judged(reports):
        print(line)
    failed = sum(not all(check.passed) for check in checks)
    print(f"{failed} of {len(checks)} checks FAIL" if failed else f"all {len(checks)} checks pass on every seed")
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    entry_points.gate_latents.main()
