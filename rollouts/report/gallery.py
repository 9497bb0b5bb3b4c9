"""Which videos the page shows, and what stands beside each: instructions, outcome, and the policy's answers as a strip.

Videos take turns among the rollouts, best and worst alternating, until a number or a size is reached; the rest is
named.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vw2_robot.errors import InputError

from ..evaluate import Row
from ..recording import recording_path
from ..video import VideoPaths
from .bars import color
from .inline_files import data_uri, lies_in
from .run_folders import Rollout
from .strips import Strip, draw, read_answers

MAX_VIDEOS = 24
Turn = tuple[int, Rollout, Row, VideoPaths]


def video_cards(rollouts: Sequence[Rollout], *, budget: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Videos to show, within `budget` bytes of the page; and the files left out."""
    queues = [[(i, r, *video) for video in _spread(r.videos())] for i, r in enumerate(rollouts)]
    turns = [queue[i] for i in range(max(map(len, queues), default=0)) for queue in queues if i < len(queue)]
    cards: list[dict[str, Any]] = []
    left_out = []
    for turn in turns:
        _, rollout, row, paths = turn
        size = (paths.video.stat().st_size + paths.poster.stat().st_size) * 4 // 3  # base64 makes four of three
        if len(cards) < MAX_VIDEOS and size <= budget:
            strip = _strip(rollout, row, paths)
            size += len(strip.svg) + len(strip.codes or "") if strip is not None else 0
            if size <= budget:
                budget -= size
                cards.append(_card(turn, strip))
                continue
        left_out.append(f"{rollout.name}/videos/{paths.video.name}")
    return sorted(cards, key=lambda card: (card["index"], -card["solved"], card["number"])), left_out


def _spread(videos: list[tuple[Row, VideoPaths]]) -> list[tuple[Row, VideoPaths]]:
    """Best, worst, second best, ...: whatever the budget cuts off, both kinds are shown."""
    spread = []
    while videos:
        spread.append(videos.pop(0))
        videos.reverse()
    return spread


def _strip(rollout: Rollout, row: Row, paths: VideoPaths) -> Strip | None:
    """What the policy answered: kept beside the video or, in older folders, among all recorded chains."""
    places = (paths.answers, recording_path(rollout.path, row["sequence"]))
    there = next((path for path in places if lies_in(rollout.path, path)), None)
    every = rollout.summary.get("n_action_steps")
    if there is None or not every:
        return None
    try:
        return draw(read_answers(there), row["env_steps"], every=every)
    except InputError as error:
        raise InputError(f"{there}: {error}" if str(there) not in str(error) else str(error)) from error


def _card(turn: Turn, strip: Strip | None) -> dict[str, Any]:
    index, rollout, row, paths = turn
    return {
        "index": index,
        "run": rollout.name,
        "color": color(index),
        "number": row["sequence"],
        "solved": row["solved"],
        "subtasks": _subtasks(row, rollout.origin.get("instructions", {})),
        "video": data_uri(paths.video, "video/mp4"),
        "poster": data_uri(paths.poster, "image/jpeg"),
        "strip": strip,
    }


def _subtasks(row: Row, words: dict[str, str]) -> list[dict[str, Any]]:
    """Each subtask as it was asked for; those never reached in the benchmark's words."""
    subtasks = []
    for i, task in enumerate(row["subtasks"]):
        said = row["instructions"][i] if i < len(row["instructions"]) else words.get(task, task.replace("_", " "))
        state = "solved" if i < row["solved"] else "failed" if i == row["solved"] else "open"
        steps = row["env_steps"][i] if i < len(row["env_steps"]) else None
        subtasks.append({"task": task, "words": said, "state": state, "steps": steps})
    return subtasks
