"""Which films the page shows, and what stands beside each: instructions, outcome, and the policy's answers as a strip.

Films take turns among the rollouts, best and worst alternating, until a number or a size is reached; the rest is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .bars import colour
from .evaluate import Row
from .inline_files import data_uri
from .recording import recording_path
from .run_folders import Rollout
from .strips import Answers, Strip, draw, read_answers
from .video import FilmPaths

MAX_FILMS = 24
Turn = tuple[int, Rollout, Row, FilmPaths]


def film_cards(rollouts: Sequence[Rollout], *, budget: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Films to show, within `budget` bytes of the page; and the files left out."""
    queues = [[(i, r, *film) for film in _spread(r.films())] for i, r in enumerate(rollouts)]
    turns = [queue[i] for i in range(max(map(len, queues), default=0)) for queue in queues if i < len(queue)]
    answers = {id(paths): _answers(r, row, paths) for _, r, row, paths in turns[:MAX_FILMS]}
    largest = _largest_code(list(answers.values()))
    cards: list[dict[str, Any]] = []
    left_out = []
    for turn in turns:
        _, rollout, row, paths = turn
        if len(cards) < MAX_FILMS and id(paths) in answers:
            strip = _strip(rollout, row, answers[id(paths)], largest)
            size = _size(paths, strip)
            if size <= budget:
                budget -= size
                cards.append(_card(turn, strip))
                continue
        left_out.append(f"{rollout.name}/videos/{paths.video.name}")
    order = {r.name: i for i, r in enumerate(rollouts)}
    return sorted(cards, key=lambda card: (order[card["run"]], -card["solved"], card["number"])), left_out


def _spread(films: list[tuple[Row, FilmPaths]]) -> list[tuple[Row, FilmPaths]]:
    """Best, worst, second best, ...: whatever the budget cuts off, both kinds are shown."""
    spread = []
    while films:
        spread.append(films.pop(0))
        films.reverse()
    return spread


def _answers(rollout: Rollout, row: Row, paths: FilmPaths) -> Answers | None:
    """What the policy answered: beside the film or, in older folders, among all recorded chains."""
    places = (paths.answers, recording_path(rollout.path, row["sequence"]))
    there: Path | None = next((path for path in places if path.is_file()), None)
    return read_answers(there) if there is not None else None


def _largest_code(answers: Sequence[Answers | None]) -> int:
    """So that a code has one colour on the whole page."""
    return max((int(a.tokens.max()) for a in answers if a is not None and a.tokens is not None), default=0)


def _strip(rollout: Rollout, row: Row, answers: Answers | None, largest: int) -> Strip | None:
    every = rollout.summary.get("replan_every")
    if answers is None or not every:
        return None
    return draw(answers, row["steps"], every=int(every), num_codes=largest + 1)


def _size(paths: FilmPaths, strip: Strip | None) -> int:
    """Bytes in the page; base64 makes four of three."""
    drawn = len(strip.svg) + len(strip.codes or "") if strip is not None else 0
    return (paths.video.stat().st_size + paths.poster.stat().st_size) * 4 // 3 + drawn


def _card(turn: Turn, strip: Strip | None) -> dict[str, Any]:
    index, rollout, row, paths = turn
    return {
        "run": rollout.name,
        "colour": colour(index),
        "number": row["sequence"],
        "solved": row["solved"],
        "subtasks": _subtasks(row, rollout.origin.get("instructions", {})),
        "film": data_uri(paths.video, "video/mp4"),
        "poster": data_uri(paths.poster, "image/jpeg"),
        "strip": strip,
    }


def _subtasks(row: Row, words: dict[str, str]) -> list[dict[str, Any]]:
    """Each subtask as it was asked for; those never reached in the benchmark's words."""
    subtasks = []
    for i, task in enumerate(row["subtasks"]):
        said = row["instructions"][i] if i < len(row["instructions"]) else words.get(task, task.replace("_", " "))
        state = "solved" if i < row["solved"] else "failed" if i == row["solved"] else "open"
        steps = row["steps"][i] if i < len(row["steps"]) else None
        subtasks.append({"task": task, "words": said, "state": state, "steps": steps})
    return subtasks
