"""Rows of an evaluation on disk, and the arithmetic from rows to a summary.

    results.jsonl   one row per finished chain, appended as soon as it exists; sorted by chain once all are there
    timing.jsonl    seconds per chain (kept apart: rows must not depend on the machine)
    summary.json    success rates, average length, intervals, per-task counts, and what produced them

Success rate i is the share of chains with at least i solved subtasks; average length is the mean number solved; a task
counts as attempted when it was solved or ended its chain (Calvin specification 12.5). Shares carry Wilson intervals,
means a t interval (`statistics`). Knows no policy and no simulator.

Every line carries a checksum of itself, summary.json that of its content: a bit that flipped on the disk is told, not
counted. Folders of older releases have none and are read as they are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from vw2_robot.aliases import with_new_keys
from vw2_robot.errors import InputError
from vw2_robot.storage.files import MAX_JSON_BYTES, append_line, read_json, write_text

from .evaluate import Row
from .statistics import mean_interval, wilson_interval

CHAIN_LENGTH = 5  # of the published protocol; a single task is a chain of one
CHECKSUM = "checksum"
CURE = "copy the file again, or delete that line and start vw2-rollout again, which runs the chain again"
RERUN = "copy the folder again, or start vw2-rollout again in it"
MAX_NUMBER = 2**31
Entry = TypeVar("Entry")


def read_results(folder: Path) -> list[Row]:
    """The rows of a rollout's folder; none where it has no results.jsonl.

    Raises:
        InputError: a line is damaged, or rows that the summary has counted are gone.
    """
    rows = read_rows(folder / "results.jsonl")
    if (folder / "results.jsonl").is_file() and len(rows) < (counted := counted_chains(folder)):
        raise InputError(
            f"{folder / 'results.jsonl'} is damaged: it holds {len(rows)} chains, summary.json counted {counted}; "
            f"{RERUN}"
        )
    return rows


def counted_chains(folder: Path) -> int:
    """How many chains summary.json is about; 0 without one."""
    path = folder / "summary.json"
    count = read_json(path, cure=RERUN).get("num_sequences") if path.is_file() else 0
    return count if isinstance(count, int) else 0


def read_rows(path: Path) -> list[Row]:
    """All whole rows of a results file; the torn end that a kill may leave is ignored. A missing file has none.

    A row that is there twice counts once.

    Raises:
        InputError: a whole line is no row, or two rows tell different things of one chain.
    """
    rows: dict[int, Row] = {}
    for row, where in _entries(path, _row, keys=Row.__annotations__):
        if rows.setdefault(row["sequence"], row) != row:
            raise InputError(f"{where} is another result of chain {row['sequence']}, which has one already; {CURE}")
    return list(rows.values())


def _entries(path: Path, make: Callable[[Any], Entry], *, keys: Iterable[str]) -> Iterator[tuple[Entry, str]]:
    """What `make` makes of each whole line, and where it stands."""
    if not path.is_file():
        return
    if (size := path.stat().st_size) > MAX_JSON_BYTES:
        raise InputError(f"{path} has {size} bytes, expected at most {MAX_JSON_BYTES}; {RERUN}")
    whole = path.read_bytes().rpartition(b"\n")[0]
    for number, line in enumerate(whole.split(b"\n") if whole else [], 1):
        where = f"{path}, line {number}"
        try:
            value = json.loads(line)
            if not isinstance(value, dict):
                raise ValueError(f"expected an object, found {type(value).__name__}")
            checksum = value.pop(CHECKSUM, None)
            entry = with_new_keys(value)
            strangers = entry.keys() - set(keys)
            if checksum != _checksum(value) if checksum is not None else strangers:
                raise ValueError("it is not what was written")
            yield make(entry), where
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            what = f"{type(error).__name__}: {error}"[:200]
            raise InputError(f"{where} is damaged or no entry of such a file ({what}); {CURE}") from error


def _checksum(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def sealed_line(value: Mapping[str, Any]) -> str:
    """A line of results.jsonl or timing.jsonl: the object with its checksum."""
    return json.dumps({**value, CHECKSUM: _checksum(value)})


def _row(value: Mapping[str, Any]) -> Row:
    row = Row(
        sequence=_count(value["sequence"]),
        initial_state=dict(value["initial_state"]),
        subtasks=_texts(value["subtasks"]),
        solved=_count(value["solved"]),
        env_steps=[1 + _count(steps - 1) for steps in value["env_steps"]],
        seed=_count(value["seed"], most=2**63),
        instructions=_texts(value.get("instructions", [])),
    )
    attempted = min(row["solved"] + 1, len(row["subtasks"]))
    if not row["subtasks"] or row["solved"] > len(row["subtasks"]) or len(row["env_steps"]) != attempted:
        raise ValueError(
            f"{row['solved']} of {len(row['subtasks'])} subtasks solved, but steps of {len(row['env_steps'])} "
            f"attempts, "
            f"expected {attempted}"
        )
    return row


def _count(value: Any, *, most: int = MAX_NUMBER) -> int:
    if type(value) is not int or not 0 <= value < most:
        raise ValueError(f"expected a whole number from 0 to below {most}, found {str(value)[:40]!r}")
    return value


def _texts(values: Any) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(text, str) for text in values):
        raise ValueError(f"expected a list of texts, found {str(values)[:40]!r}")
    return values


def drop_torn_line(path: Path) -> None:
    """Cut a file of lines back to its last line end, so that appending is safe."""
    if path.is_file():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with path.open("r+b") as file:
                file.truncate(whole)


def append_row(path: Path, row: Row) -> None:
    """Append a row; it is on disk when this returns."""
    append_line(path, sealed_line(row), sync=True)


def append_seconds(path: Path, number: int, seconds: float) -> None:
    """Append the time that a chain took."""
    append_line(path, sealed_line({"sequence": number, "seconds": round(seconds, 4)}))


def write_sorted(path: Path, rows: Iterable[Row]) -> None:
    """The final results file: sorted by chain."""
    lines = [sealed_line(row) + "\n" for row in sorted(rows, key=lambda row: row["sequence"])]
    write_text(path, "".join(lines))


def read_seconds(path: Path) -> dict[int, float]:
    """Seconds per chain from timing.jsonl; the last entry of a chain counts.

    Raises:
        InputError: a whole line is no such entry.
    """
    return {number: seconds for (number, seconds), _ in _entries(path, _timing, keys=("sequence", "seconds"))}


def _timing(value: Mapping[str, Any]) -> tuple[int, float]:
    seconds = float(value["seconds"])
    if not 0 <= seconds < MAX_NUMBER:
        raise ValueError(f"expected seconds, found {seconds}")
    return _count(value["sequence"]), seconds


def paired_difference(rows: Sequence[Row], base: Sequence[Row]) -> tuple[float, float, float, int] | None:
    """Mean difference in solved subtasks over the chains both runs finished: (mean, low, high, chains), or None."""
    pairs = paired_rows(rows, base)
    if not pairs:
        return None
    differences = [a["solved"] - b["solved"] for a, b in pairs]
    largest = longest_chain([a for a, _ in pairs])
    low, high = mean_interval(differences, lowest=-largest, highest=largest)
    return float(np.mean(differences)), low, high, len(differences)


def paired_rows(rows: Iterable[Row], base: Iterable[Row]) -> list[tuple[Row, Row]]:
    """The chains that both runs finished, by number: same number and same subtasks."""
    others = {row["sequence"]: row for row in base}
    shared = [(row, others[row["sequence"]]) for row in rows if row["sequence"] in others]
    pairs = [(a, b) for a, b in shared if a["subtasks"] == b["subtasks"]]
    return sorted(pairs, key=lambda pair: pair[0]["sequence"])


def longest_chain(rows: Iterable[Row]) -> int:
    """Subtasks of the longest chain: 5 in the published protocol, 1 for single tasks."""
    return max(len(row["subtasks"]) for row in rows)


def per_task(rows: Iterable[Row]) -> dict[str, dict[str, int]]:
    """Task -> {solved, attempted}, by name. A task asked for but never reached is absent."""
    counts: dict[str, dict[str, int]] = {}
    for row in rows:
        for position, task in enumerate(row["subtasks"][: len(row["env_steps"])]):
            entry = counts.setdefault(task, {"solved": 0, "attempted": 0})
            entry["attempted"] += 1
            entry["solved"] += position < row["solved"]
    return dict(sorted(counts.items()))


def summarize(rows: Sequence[Row], provenance: Mapping[str, Any], *, seconds: float) -> dict[str, Any]:
    """The content of summary.json. `seconds` is time spent inside chains, summed over workers.

    Raises:
        InputError: no row.
    """
    if not rows:
        raise InputError("no finished chain: nothing to summarize")
    total = len(rows)
    solved = [row["solved"] for row in rows]
    length = longest_chain(rows)
    reached = [sum(n >= i for n in solved) for i in range(1, length + 1)]
    policy = provenance.get("policy", {})
    return {
        "num_sequences": total,
        "success_rates": [count / total for count in reached],
        "success_intervals95": [list(wilson_interval(count, total)) for count in reached],
        "average_length": sum(solved) / total,
        "average_length_ci95": list(mean_interval(solved, lowest=0, highest=length)),
        "solved_histogram": [solved.count(i) for i in range(length + 1)],
        "chain_length": length,
        "per_task": per_task(rows),
        "policy": policy.get("name", "unknown"),
        "policy_hash": policy.get("policy_hash"),
        "label_fraction": policy.get("label_fraction"),
        "env": provenance.get("env", {}),
        "n_action_steps": provenance.get("n_action_steps"),
        "seed": provenance.get("seed"),
        "versions": provenance.get("versions", {}),
        "seconds": round(seconds, 2),
        "env_steps": sum(sum(row["env_steps"]) for row in rows),
    }


def percent(share: float) -> str:
    """0.585 -> "58.5"."""
    return f"{100 * share:.1f}"


def labels_text(fraction: float | None) -> str:
    """The label fraction in words; a dash for what was not trained."""
    return "–" if fraction is None else f"{100 * fraction:g} %"


def five_lines(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The summary a person reads first: (name, text) five times. Every number comes with its interval."""
    env = summary["env"]
    world = ", ".join(f"{key} {env[key]}" for key in ("scene", "assets", "renderer", "reset_mode") if key in env)
    identity = f", hash {summary['policy_hash'][:12]}" if summary.get("policy_hash") else ""
    if summary["label_fraction"] is not None:
        identity += f", {labels_text(summary['label_fraction'])} of the action labels"
    low, high = summary["average_length_ci95"]
    length = len(summary["success_rates"])
    rates = "  ".join(
        f"{i}: {percent(rate)} [{percent(a)}, {percent(b)}]"
        for i, (rate, (a, b)) in enumerate(
            zip(summary["success_rates"], summary["success_intervals95"], strict=True), 1
        )
    )
    speed = summary["env_steps"] / summary["seconds"] if summary["seconds"] else 0.0
    steps = f"{summary['env_steps']:,} steps, {summary['seconds']:,.0f} s in chains ({speed:,.0f} steps/s)"
    return [
        ("policy", f"{summary['policy']}{identity}"),
        ("world", world or "not named by the benchmark"),
        ("evidence", f"{_plural(summary['num_sequences'], 'chain')}, {steps}"),
        ("average length", f"{summary['average_length']:.2f} of {length} [{low:.2f}, {high:.2f}]"),
        ("success %", rates),
    ]


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
