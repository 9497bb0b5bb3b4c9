"""The videos of the page: which are shown, each with its instructions, its outcome and an action strip.

Rollouts take turns, best and worst chains alternating, until a number of videos or a size is reached. The other videos
are named.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vw2_robot.contracts import action_names
from vw2_robot.errors import InputError

from ..evaluate import Row
from ..recording import recording_path
from ..results import RERUN
from ..video import VideoPaths
from .bars import color
from .inline_files import data_uri, lies_in
from .run_folders import Rollout
from .schemas import EXPECTED, read_checked
from .strips import Strip, plot_strip, read_recording

MAX_VIDEOS = 72  # both outcomes of the 34 tasks


def video_cards(rollouts: Sequence[Rollout], *, budget: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Choose the videos to show.

    Args:
        rollouts: The rollouts of the page.
        budget: Bytes of the page that videos and strips may take.

    Returns:
        One dictionary per video for the template, and the names of the files left out.

    Raises:
        InputError: A recording beside a video is damaged.
    """
    # Best, worst, second best, ... of each rollout: wherever the budget ends, both kinds are shown.
    queues = []
    for index, rollout in enumerate(rollouts):
        videos = rollout.videos()
        queue = []
        while videos:
            queue.append((index, rollout, *videos.pop(0)))
            videos.reverse()
        queues.append(queue)
    # One of each rollout in turn, so that the first rollout does not use up the budget.
    candidates = [queue[i] for i in range(max(map(len, queues), default=0)) for queue in queues if i < len(queue)]
    cards: list[dict[str, Any]] = []
    left_out = []
    for index, rollout, row, paths in candidates:
        size = (paths.video.stat().st_size + paths.poster.stat().st_size) * 4 // 3  # base64: four bytes for three
        if len(cards) < MAX_VIDEOS and size <= budget:
            strip = _action_strip(rollout, row, paths)
            size += len(strip.svg) + len(strip.codes or "") if strip is not None else 0
            if size <= budget:
                budget -= size
                card = {
                    "id": f"video-{index}-{row['sequence']}",
                    "index": index,
                    "run": rollout.name,
                    "color": color(index),
                    "number": row["sequence"],
                    "solved": row["solved"],
                    "subtasks": _subtasks(row, rollout.provenance.get("instructions", {})),
                    "video": data_uri(paths.video, "video/mp4"),
                    "poster": data_uri(paths.poster, "image/jpeg"),
                    "strip": strip,
                }
                cards.append(card)
                continue
        left_out.append(f"{rollout.name}/videos/{paths.video.name}")
    # Chosen in turns, shown rollout by rollout.
    return sorted(cards, key=lambda card: (card["index"], -card["solved"], card["number"])), left_out


def expected_sheets(rollouts: Sequence[Rollout]) -> list[dict[str, Any]]:
    """Return what the policies expected beside what happened, of the rollouts that have it (`rollouts.expected`)."""
    sheets = []
    for rollout in rollouts:
        image = rollout.path / "expected.jpg"
        content = read_checked(rollout.path / "expected.json", EXPECTED, cure=RERUN)
        if content is not None and lies_in(rollout.path, image):
            better = sum(one["psnr"] > one["psnr_still"] for one in content["chains"])
            sheets.append({"run": rollout.name, "image": data_uri(image, "image/jpeg"), "better": better, **content})
    return sheets


def _action_strip(rollout: Rollout, row: Row, paths: VideoPaths) -> Strip | None:
    """Return the strip of a chain; None without a recording."""
    # Beside the video or, in older folders, among the recordings of all chains.
    candidates = (paths.recording, recording_path(rollout.path, row["sequence"]))
    path = next((path for path in candidates if lies_in(rollout.path, path)), None)
    n_action_steps = rollout.summary.get("n_action_steps")
    if path is None or not n_action_steps:
        return None
    try:
        names = action_names(rollout.provenance.get("policy", {}))
        return plot_strip(read_recording(path, names=names), row["env_steps"], n_action_steps=n_action_steps)
    # The error of a strip does not name the file, that of reading does.
    except InputError as error:
        raise InputError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from error


def _subtasks(row: Row, instructions: dict[str, str]) -> list[dict[str, Any]]:
    """Return instruction, outcome and steps of each subtask; `instructions`: those of tasks that were not attempted."""
    subtasks = []
    for i, task in enumerate(row["subtasks"]):
        # A benchmark may choose among several instructions for a task; the row has the one that was used.
        default = instructions.get(task, task.replace("_", " "))
        subtasks.append(
            {
                "task": task,
                "instruction": row["instructions"][i] if i < len(row["instructions"]) else default,
                "state": "solved" if i < row["solved"] else "failed" if i == row["solved"] else "open",
                "env_steps": row["env_steps"][i] if i < len(row["env_steps"]) else None,
            }
        )
    return subtasks
