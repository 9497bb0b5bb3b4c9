"""Program `vw2-judge`: imagined videos -> how many reach each key step, and how near they are to the true ones.

    vw2-judge judge=runs/judge videos=runs/craft/validation imagined=[runs/imagined] out=runs/craft_table

Key step k counts if steps 1 to k are seen one after the other, as in the paper's table. Each folder of `imagined` is a
training seed: with several, an interval is over seeds; with one, over its videos, and is marked so. The true videos are
judged too: nothing can be expected above what the judge sees in them. SSIM and PSNR are the mean over frames, of true
and imagined frames of the same time; VMAF where ffmpeg has it. craft_table.json is shown by `vw2-report`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from vw2_robot.command_line import entry_points
from vw2_robot.data.sources.craft_bench import CraftVideo, read_craft_videos, read_frames
from vw2_robot.data.sources.video_files import timed_frames
from vw2_robot.errors import InputError
from vw2_robot.image_metrics import VMAF_PX, WINDOW, psnr, ssim, vmaf, why_no_vmaf
from vw2_robot.models.judge import KEY_STEPS, Judge, key_steps_reached, load_judge
from vw2_robot.pixels import resize_video, to_model_range
from vw2_robot.storage.files import read_json, write_json

from ..statistics import t95, wilson_interval
from .config import JudgeVideosConfig

FORMAT_VERSION = 1
TABLE = "craft_table.json"
LINES = "imagined.jsonl"
TRUE = "true"
TITLES = {
    "vw2": "vw2: predicted codes, rendered by the VDM",
    "videoworld": "VideoWorld: predicted codes, pixels of the decoder",
    "vdm": "VDM alone: first frame, no codes",
    TRUE: "the true videos: what the judge sees at best",
}
NOT_MEASURED = {"lpips": "LPIPS needs the weights of AlexNet or VGG, which this package has not"}


class Judged(NamedTuple):
    """One video: the frames at which key steps were reached, and its metrics against the true video."""

    task: str
    reached: list[int | None]
    metrics: dict[str, float]

    def done(self, step: int) -> bool:
        """Return whether key step 1 .. 7 is reached."""
        return self.reached[step - 1] is not None


def judge_videos(config: JudgeVideosConfig) -> dict[str, Any]:
    """Write the table to `out`, and return its content.

    Raises:
        InputError: a folder holds no imagined videos, or those of other test videos.
    """
    device = config.hardware.torch_device()
    judge = load_judge(config.judge, device)
    videos = {video.name: video for video in read_craft_videos(config.videos)}
    without = {**NOT_MEASURED, **({"vmaf": why} if (why := why_no_vmaf()) else {})}
    seeds: dict[str, list[list[Judged]]] = {}
    used: set[str] = set()
    for folder in map(Path, config.imagined):
        lists = sorted(folder.glob(f"*/{LINES}"))
        if not lists:
            raise InputError(f"{folder} holds no METHOD/{LINES}; give folders of vw2-imagine-craft")
        for file in lists:
            rows = [json.loads(line) for line in file.read_text().splitlines()]
            if missing := {row["video"] for row in rows} - set(videos):
                raise InputError(f"{file} has videos of {min(missing)}, which is not in {config.videos}")
            used |= {row["video"] for row in rows}
            judged = [
                judge_one(
                    config, judge, videos[row["video"]], row, file.parent, device, with_vmaf="vmaf" not in without
                )
                for row in rows
            ]
            seeds.setdefault(file.parent.name, []).append(judged)
    seeds[TRUE] = [[judge_true(config, judge, videos[name], device) for name in sorted(used)]]
    report = {
        "format_version": FORMAT_VERSION,
        "judge": read_json(Path(config.judge) / "judge.json", cure="run vw2-train-judge again"),
        "tower": config.tower,
        "persistence": config.persistence,
        "rows": [table_row(method, runs, config.tower) for method, runs in seeds.items()],
        "not_measured": without,
    }
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / TABLE, report)
    return report


def judge_one(
    config: JudgeVideosConfig,
    judge: Judge,
    video: CraftVideo,
    row: Mapping[str, Any],
    folder: Path,
    device: torch.device,
    *,
    with_vmaf: bool,
) -> Judged:
    """Return what one imagined video reaches, and its metrics.

    Args:
        config: of the program.
        judge: on the device.
        video: the true one.
        row: of the imagined one.
        folder: of the imagined one.
        device: of the judge.
        with_vmaf: whether VMAF can be measured.
    """
    frames = np.stack([frame.image() for frame in timed_frames(folder / row["file"])])[: len(row["frames"])]
    height, width = frames.shape[1:3]
    true = read_frames(video, row["frames"][: len(frames)], height=height, width=width)
    # Without the first frame, which was given.
    a, b = frames[1:], true[1:]
    metrics = {"psnr_db": float(psnr(a, b).mean())}
    if min(height, width) >= WINDOW:
        metrics["ssim"] = float(ssim(a, b).mean())
    if with_vmaf and min(height, width) >= VMAF_PX:
        metrics["vmaf"] = vmaf(a, b)
    return Judged(video.task, reached_in(config, judge, frames, video.task, device), metrics)


def judge_true(config: JudgeVideosConfig, judge: Judge, video: CraftVideo, device: torch.device) -> Judged:
    """Return what the judge sees in a true video.

    Args:
        config: of the program.
        judge: on the device.
        video: to judge.
        device: of the judge.
    """
    px = judge.config.px
    frames = read_frames(video, range(video.key_frames[-1] + 2 * config.persistence), height=px, width=px)
    return Judged(video.task, reached_in(config, judge, frames, video.task, device), {})


def reached_in(
    config: JudgeVideosConfig, judge: Judge, frames: NDArray[np.uint8], task: str, device: torch.device
) -> list[int | None]:
    """Return the frame at which each key step is reached, None where it is not.

    Args:
        config: of the program.
        judge: on the device.
        frames: uint8 [T, H, W, 3].
        task: that the video should show.
        device: of the judge.
    """
    px = judge.config.px
    images = resize_video(to_model_range(torch.from_numpy(frames))[None], px, px)[0].to(device)
    return key_steps_reached(judge.states(images, task).cpu(), persistence=config.persistence)


def table_row(method: str, runs: Sequence[Sequence[Judged]], tower: str) -> dict[str, Any]:
    """Return the row of a method.

    Args:
        method: its name.
        runs: the judged videos of each training seed.
        tower: the task of the column "tower".
    """
    names = sorted({name for run in runs for judged in run for name in judged.metrics})
    return {
        "method": method,
        "title": TITLES.get(method, method),
        "seeds": len(runs),
        "videos": [len(run) for run in runs],
        "key_steps": [
            share([[judged.done(step) for judged in run] for run in runs]) for step in range(1, KEY_STEPS + 1)
        ],
        "tower": share([[judged.done(KEY_STEPS) for judged in run if judged.task == tower] for run in runs]),
        "metrics": {
            name: mean([float(np.mean([judged.metrics[name] for judged in run])) for run in runs]) for name in names
        },
    }


def share(runs: Sequence[Sequence[bool]]) -> dict[str, Any] | None:
    """Return a share of successes with its interval, over seeds or, with one, over videos; None without videos."""
    if not all(runs):
        return None
    rates = [sum(run) / len(run) for run in runs]
    if len(runs) > 1:
        low, high = seed_interval(rates)
        return {"mean": float(np.mean(rates)), "interval95": (max(0.0, low), min(1.0, high)), "over": "seeds"}
    return {"mean": rates[0], "interval95": wilson_interval(sum(runs[0]), len(runs[0])), "over": "videos"}


def mean(values: Sequence[float]) -> dict[str, Any]:
    """Return the mean of a metric over seeds; with its interval where there are several."""
    found: dict[str, Any] = {"mean": float(np.mean(values))}
    if len(values) > 1:
        found["interval95"] = seed_interval(values)
    return found


def seed_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of a mean over training seeds, by Student's t."""
    center = float(np.mean(values))
    half = t95(len(values) - 1) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return center - half, center + half


def text_table(report: Mapping[str, Any]) -> str:
    """Return the table as text, in percent."""
    lines = [
        f"{'method':<12}{''.join(f'{step:>7}' for step in range(1, KEY_STEPS + 1))}{'tower':>8}{'SSIM':>8}{'PSNR':>8}"
    ]
    for row in report["rows"]:
        cells = "".join(f"{100 * cell['mean']:>7.1f}" for cell in row["key_steps"])
        tower = "–" if row["tower"] is None else f"{100 * row['tower']['mean']:.1f}"
        metrics = [row["metrics"].get(name) for name in ("ssim", "psnr_db")]
        numbers = "".join(f"{'–' if entry is None else format(entry['mean'], '.3g'):>8}" for entry in metrics)
        lines.append(f"{row['method']:<12}{cells}{tower:>8}{numbers}")
    return "\n".join(lines)


def main(config: JudgeVideosConfig) -> None:
    """Judge, and print the table."""
    print(text_table(judge_videos(config)))
    print(f"table: {Path(config.out) / TABLE}")


if __name__ == "__main__":
    entry_points.judge.main()
