"""Several rollouts side by side: each against the first on the chains both ran, and what produced each of them.

The arithmetic is `compare`'s; here it meets the run folders and is put in order for the page.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

from vw2_robot.command_line.config_tree import differing_keys

from ..compare import compare
from ..results import CHAIN_LENGTH, labels_text, paired_rows
from .bars import color
from .failures import average_length_without, covered_chains, endings, step_histogram
from .run_folders import Rollout
from .tables import length_cell, rate_cells

POLICY_FACTS = ("method", "cameras", "chunk_size", "temperature", "temporal_ensemble")


def comparisons(rollouts: Sequence[Rollout]) -> dict[str, Any] | None:
    """Every rollout but the first against the first; None for a single one. Positions are shares of the axis."""
    if len(rollouts) < 2:
        return None
    first, *others = rollouts
    found = [_comparison(i, r, first) for i, r in enumerate(others, 1)]
    ends = [abs(end) for entry in found if entry["chains"] for end in entry["interval"]]
    reach = max(1.0, math.ceil(2 * max(ends, default=0)) / 2)
    for entry in found:
        if entry["chains"]:
            values = (entry["mean"], *entry["interval"])
            entry["at"], entry["low"], entry["high"] = ((value + reach) / (2 * reach) for value in values)
    return {"base": first.name, "color": color(0), "reach": reach, "entries": found}


def _comparison(index: int, rollout: Rollout, first: Rollout) -> dict[str, Any]:
    facts = {
        "name": rollout.name,
        "color": color(index),
        "differs": differing_keys(first.summary["env"], rollout.summary["env"]),
    }
    if not paired_rows(rollout.rows, first.rows):
        return {**facts, "chains": 0}
    result = compare(rollout.rows, first.rows)
    return {
        **facts,
        "chains": result["chains"],
        "mean": result["mean_difference"],
        "interval": result["interval95"],
        "wins": result["wins"],
        "ties": result["ties"],
        "losses": result["losses"],
        "p": result["sign_flip_p"],
        "verdict": result["verdict"],
        "decided_after": result["decided_after"],
    }


def rollout_facts(index: int, rollout: Rollout) -> dict[str, Any]:
    """What the tables and the section on failures say about one rollout."""
    summary, rows = rollout.summary, rollout.rows
    covered = covered_chains(rows)
    ended = endings(rows)
    return {
        "name": rollout.name,
        "color": color(index),
        "chains": summary["num_sequences"],
        "unfinished": rollout.asked - summary["num_sequences"],
        "labels": labels_text(summary["label_fraction"]),
        "arm": rollout.origin.get("policy", {}).get("arm") or "–",
        "rates": rate_cells(rollout, columns=CHAIN_LENGTH),
        "length": length_cell(rollout),
        "histogram": summary.get("solved_histogram"),
        "has_rows": bool(rows),
        "endings": ended,
        "most": max((max(one.by_place) for one in ended), default=0),
        "steps": step_histogram(rows, limit=rollout.origin.get("max_steps")),
        "covered": covered,
        "without_covered": average_length_without(rows, [one["number"] for one in covered]) if covered else None,
        "config": rollout.config,
    }


def provenance_table(rollouts: Sequence[Rollout]) -> list[tuple[str, list[str], bool]]:
    """(fact, its value in each rollout, whether they differ), in reading order; facts that nobody has are left out."""
    columns = [_facts(r) for r in rollouts]
    names = list(dict.fromkeys(name for column in columns for name in column))
    table = []
    for name in names:
        values = [words(column.get(name)) for column in columns]
        if any(value != "–" for value in values):
            table.append((name, values, len(set(values)) > 1))
    return table


def _facts(rollout: Rollout) -> dict[str, Any]:
    summary, origin = rollout.summary, rollout.origin
    policy = origin.get("policy", {})
    results = rollout.path / "results.jsonl"
    return {
        "policy": summary["policy"],
        "policy hash": summary["policy_hash"] or "none (no weights)",
        "action labels": labels_text(summary["label_fraction"]),
        **{name.replace("_", " "): policy.get(name) for name in POLICY_FACTS},
        "protocol": origin.get("protocol"),
        "chains": f"{summary['num_sequences']} of {rollout.asked} asked for",
        "shard": origin.get("shard"),
        "steps per look": summary.get("n_action_steps"),
        "step limit per subtask": origin.get("max_steps"),
        "control rate (Hz)": origin.get("control_hz"),
        "batch": origin.get("batch"),
        "seed": summary.get("seed"),
        **{f"world: {key.replace('_', ' ')}": value for key, value in summary["env"].items()},
        "versions": summary.get("versions") or None,
        "results.jsonl, SHA-256": hashlib.sha256(results.read_bytes()).hexdigest() if results.is_file() else None,
    }


def words(value: Any) -> str:
    """A value of provenance.json for people."""
    if value is None:
        return "–"
    if isinstance(value, dict):
        return ", ".join(f"{key} {words(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(words(item) for item in value) or "–"
    return str(value)
