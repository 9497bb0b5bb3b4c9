"""Results of an evaluation: rows on disk, and the summary computed from them.

    results.jsonl   one row per finished chain, appended as soon as it exists; sorted by chain once all are there
    timing.jsonl    seconds per chain (kept apart: rows must not depend on the machine)
    summary.json    success rates, average length, intervals, per-task counts, and what produced them

Success rate i is the share of chains with at least i solved subtasks; average length is the mean number solved; a task
counts as attempted when it was solved or ended its chain. Shares carry Wilson intervals, means a t interval
(`statistics`). This file needs no policy and no simulator.

Every line carries a checksum of itself, summary.json one of its content, so a bit that flipped on the disk is reported
and not counted. Folders of older releases have no checksums and are read without.
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
    """Return the rows in a rollout's folder; none where it has no results.jsonl.

    Raises:
        InputError: A line is damaged, or rows that summary.json counted are gone.
    """
    rows = read_rows(folder / "results.jsonl")
    if (folder / "results.jsonl").is_file() and len(rows) < (counted := counted_chains(folder)):
        raise InputError(
            f"{folder / 'results.jsonl'} is damaged: it holds {len(rows)} chains, summary.json counted {counted}; "
            f"{RERUN}"
        )
    return rows


def counted_chains(folder: Path) -> int:
    """Return the number of chains in summary.json; 0 without that file."""
    path = folder / "summary.json"
    count = read_json(path, cure=RERUN).get("num_sequences") if path.is_file() else 0
    return count if isinstance(count, int) else 0


def read_rows(path: Path) -> list[Row]:
    """Return all complete rows of a results file; none where there is no file.

    The incomplete last line that a kill may leave is ignored. A row that occurs twice counts once.

    Args:
        path: results.jsonl.

    Raises:
        InputError: A complete line is no row, or two rows give different results for one chain.
    """
    rows: dict[int, Row] = {}
    # Two starts of an older release, which had no lock, could write a row twice.
    for row, where in _entries(path, _parse_row, keys=Row.__annotations__):
        if rows.setdefault(row["sequence"], row) != row:
            raise InputError(f"{where} is another result of chain {row['sequence']}, which has one already; {CURE}")
    return list(rows.values())


def _entries(path: Path, parse: Callable[[Any], Entry], *, keys: Iterable[str]) -> Iterator[tuple[Entry, str]]:
    """Yield each complete line, parsed, and its place for messages. `keys`: those that a line may have."""
    if not path.is_file():
        return
    if (size := path.stat().st_size) > MAX_JSON_BYTES:
        raise InputError(f"{path} has {size} bytes, expected at most {MAX_JSON_BYTES}; {RERUN}")
    complete = path.read_bytes().rpartition(b"\n")[0]
    for number, line in enumerate(complete.split(b"\n") if complete else [], 1):
        where = f"{path}, line {number}"
        try:
            value = json.loads(line)
            if not isinstance(value, dict):
                raise ValueError(f"expected an object, found {type(value).__name__}")
            checksum = value.pop(CHECKSUM, None)
            entry = with_new_keys(value)
            # The checksum is over the keys that are in the file, so it is compared with the value and not with the
            # entry. A line of an older release has none; there an unknown key is the only sign of damage in a key.
            is_damaged = checksum != _checksum(value) if checksum is not None else bool(entry.keys() - set(keys))
            if is_damaged:
                raise ValueError("it is not what was written")
            yield parse(entry), where
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            what = f"{type(error).__name__}: {error}"[:200]
            raise InputError(f"{where} is damaged or no entry of such a file ({what}); {CURE}") from error


def _checksum(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def sealed_line(value: Mapping[str, Any]) -> str:
    """Return a line of results.jsonl or timing.jsonl: the object with its checksum."""
    return json.dumps({**value, CHECKSUM: _checksum(value)})


def _parse_row(value: Mapping[str, Any]) -> Row:
    """Return a row; start state, seed and instructions may be missing, as in rows of another program's loop."""
    row = Row(
        sequence=_count(value["sequence"]),
        initial_state=dict(value.get("initial_state", {})),
        subtasks=_texts(value["subtasks"]),
        solved=_count(value["solved"]),
        env_steps=[1 + _count(steps - 1) for steps in value["env_steps"]],
        seed=_count(value.get("seed", 0), most=2**63),
        instructions=_texts(value.get("instructions", [])),
    )
    # A chain that did not solve all has one more attempt than successes: the failed one.
    attempted = min(row["solved"] + 1, len(row["subtasks"]))
    if not row["subtasks"] or row["solved"] > len(row["subtasks"]) or len(row["env_steps"]) != attempted:
        raise ValueError(
            f"{row['solved']} of {len(row['subtasks'])} subtasks solved, but steps of {len(row['env_steps'])} "
            f"attempts, expected {attempted}"
        )
    return row


def _count(value: Any, *, most: int = MAX_NUMBER) -> int:
    # `isinstance` would accept true and false.
    if type(value) is not int or not 0 <= value < most:
        raise ValueError(f"expected a whole number from 0 to below {most}, found {str(value)[:40]!r}")
    return value


def _texts(values: Any) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(text, str) for text in values):
        raise ValueError(f"expected a list of texts, found {str(values)[:40]!r}")
    return values


def drop_torn_line(path: Path) -> None:
    """Cut a file back to its last line end, so that lines can be appended."""
    if path.is_file():
        content = path.read_bytes()
        complete = content.rfind(b"\n") + 1
        # In place and not by rewriting: the file may be large, and its other lines are not touched.
        if complete < len(content):
            with path.open("r+b") as file:
                file.truncate(complete)


def append_row(path: Path, row: Row) -> None:
    """Append a row; it is on disk when this returns."""
    append_line(path, sealed_line(row), sync=True)


def append_seconds(path: Path, number: int, seconds: float) -> None:
    """Append the time that a chain took.

    Args:
        path: timing.jsonl.
        number: of the chain.
        seconds: time that the chain took; rounded to 0.0001 seconds.
    """
    append_line(path, sealed_line({"sequence": number, "seconds": round(seconds, 4)}))


def write_sorted(path: Path, rows: Iterable[Row]) -> None:
    """Write the final results file, sorted by chain."""
    # Workers finish in any order; sorted, the file is a function of the results alone.
    lines = [sealed_line(row) + "\n" for row in sorted(rows, key=lambda row: row["sequence"])]
    write_text(path, "".join(lines))


def read_seconds(path: Path) -> dict[int, float]:
    """Return the seconds per chain from timing.jsonl; the last entry of a chain counts.

    Raises:
        InputError: A complete line is no such entry.
    """

    def parse(value: Mapping[str, Any]) -> tuple[int, float]:
        seconds = float(value["seconds"])
        if not 0 <= seconds < MAX_NUMBER:
            raise ValueError(f"expected seconds, found {seconds}")
        return _count(value["sequence"]), seconds

    return {number: seconds for (number, seconds), _ in _entries(path, parse, keys=("sequence", "seconds"))}


def paired_difference(rows: Sequence[Row], base: Sequence[Row]) -> tuple[float, float, float, int] | None:
    """Return the mean difference in solved subtasks over the chains that both rollouts finished.

    Args:
        rows: Rows of the first rollout.
        base: Rows of the rollout to compare with.

    Returns:
        Mean, ends of its 95 % interval, and number of chains; None without a common chain.
    """
    pairs = paired_rows(rows, base)
    if not pairs:
        return None
    differences = [a["solved"] - b["solved"] for a, b in pairs]
    # A difference lies between -length and +length: one solved all and the other none.
    largest = longest_chain([a for a, _ in pairs])
    low, high = mean_interval(differences, lowest=-largest, highest=largest)
    return float(np.mean(differences)), low, high, len(differences)


def paired_rows(rows: Iterable[Row], base: Iterable[Row]) -> list[tuple[Row, Row]]:
    """Return the pairs of rows with the same number and the same subtasks, sorted by number."""
    others = {row["sequence"]: row for row in base}
    shared = [(row, others[row["sequence"]]) for row in rows if row["sequence"] in others]
    # Numbers alone are not enough: another benchmark, or another num_sequences, may number other chains.
    pairs = [(a, b) for a, b in shared if a["subtasks"] == b["subtasks"]]
    return sorted(pairs, key=lambda pair: pair[0]["sequence"])


PROBLEM = {"protocol": "chain", "sequences_seed": 0, "starts_seed": 0, "max_steps": None, "control_hz": None}
"""settings that make a chain another problem, with what folders without them did (None: not known)"""


def different_problems(provenance: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the settings that keep two rollouts from being pairs, each with both values; what is not known passes.

    Renderer, instructions, resets and simulator are not among them: two rollouts may be made to show their effect.

    Args:
        provenance: Content of provenance.json of one; may be empty.
        other: Content of provenance.json of the other.
    """
    settings = [{**PROBLEM, **found, **_world(found.get("env", {}))} for found in (provenance, other)]
    pairs = {name: (settings[0].get(name), settings[1].get(name)) for name in (*PROBLEM, "scene", "assets")}
    return [f"{name} {one} and {two}" for name, (one, two) in pairs.items() if None not in (one, two) and one != two]


def _world(env: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a benchmark's description decides where objects are: the scene, and whose geometry it has."""
    assets = env.get("assets")
    # The original assets have many names (a folder, a package), the built-in ones have one.
    return {"scene": env.get("scene"), "assets": assets if assets in (None, "builtin") else "original"}


def longest_chain(rows: Iterable[Row]) -> int:
    """Return the number of subtasks of the longest chain: 5 in the published protocol, 1 for single tasks."""
    return max(len(row["subtasks"]) for row in rows)


def per_task(rows: Iterable[Row]) -> dict[str, dict[str, int]]:
    """Return task -> {solved, attempted}, sorted by name. A task that no chain reached is absent."""
    counts: dict[str, dict[str, int]] = {}
    for row in rows:
        # env_steps has one entry per attempted subtask; later subtasks were never reached.
        for position, task in enumerate(row["subtasks"][: len(row["env_steps"])]):
            entry = counts.setdefault(task, {"solved": 0, "attempted": 0})
            entry["attempted"] += 1
            entry["solved"] += position < row["solved"]
    return dict(sorted(counts.items()))


def summarize(rows: Sequence[Row], provenance: Mapping[str, Any], *, seconds: float) -> dict[str, Any]:
    """Return the content of summary.json.

    Args:
        rows: The finished chains.
        provenance: Content of provenance.json.
        seconds: Time spent inside chains, summed over workers.

    Raises:
        InputError: No row.
    """
    if not rows:
        raise InputError("no finished chain: nothing to summarize")
    total = len(rows)
    solved = [row["solved"] for row in rows]
    length = longest_chain(rows)
    # Success at i: the first i subtasks were solved, so all chains with n >= i count.
    reached = [sum(n >= i for n in solved) for i in range(1, length + 1)]
    # Provenance may be empty: folders of older releases, or results alone.
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
    """Return a share in percent: 0.585 -> "58.5"."""
    return f"{100 * share:.1f}"


def labels_text(fraction: float | None) -> str:
    """Return the label fraction as text; a dash for a policy that was not trained."""
    return "–" if fraction is None else f"{100 * fraction:g} %"


def policy_name(given: str) -> str:
    """Return a policy as a user gave it, of a path the last two parts: all checkpoints call themselves vw2_robot."""
    return "/".join(Path(given).parts[-2:])


def five_lines(summary: Mapping[str, Any], *, policy: str) -> list[tuple[str, str]]:
    """Return the summary as five pairs (name, text). Every number comes with its interval.

    Args:
        summary: Content of summary.json.
        policy: What the rollout was given as policy; empty: the name in the summary.
    """
    env = summary["env"]
    # A benchmark need not have these keys; those of CALVIN are the ones that change results.
    world = ", ".join(f"{key} {env[key]}" for key in ("scene", "assets", "renderer", "reset_mode") if key in env)
    # Policies without weights (random, scripted) have no hash.
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
    chains = f"{summary['num_sequences']:,} chain" + ("" if summary["num_sequences"] == 1 else "s")
    speed = summary["env_steps"] / summary["seconds"] if summary["seconds"] else 0.0
    steps = f"{summary['env_steps']:,} steps, {summary['seconds']:,.0f} s in chains ({speed:,.0f} steps/s)"
    return [
        ("policy", f"{policy_name(policy) or summary['policy']}{identity}"),
        ("world", world or "not named by the benchmark"),
        ("chains", f"{chains}, {steps}"),
        ("average length", f"{summary['average_length']:.2f} of {length} [{low:.2f}, {high:.2f}]"),
        ("success %", rates),
    ]
