"""Rollouts side by side: each against the first on the chains that both ran, and the table of provenance.

`compare` does the computation; this file brings its results into the form that the page needs.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

from vw2_robot.command_line.config_tree import differing_keys

from ..compare import compare
from ..results import CHAIN_LENGTH, different_problems, labels_text, paired_rows
from .bars import color
from .failures import average_length_without, covered_chains, endings, step_histogram
from .run_folders import Rollout
from .tables import length_cell, rate_cells

POLICY_FACTS = ("method", "cameras", "chunk_size", "acting", "temperature", "temporal_ensemble")


def comparisons(rollouts: Sequence[Rollout]) -> dict[str, Any] | None:
    """Return each rollout's comparison with the first one; None for a single rollout.

    The keys "at", "low" and "high" of an entry are positions on the axis of the plot, from 0 to 1.
    """
    if len(rollouts) < 2:
        return None
    first, *others = rollouts
    entries: list[dict[str, Any]] = []
    for index, rollout in enumerate(others, 1):
        entry: dict[str, Any] = {
            "name": rollout.name,
            "color": color(index),
            "differs": differing_keys(first.summary["env"], rollout.summary["env"]),
            "chains": 0,
            "problems": different_problems(rollout.provenance, first.provenance),
        }
        if not entry["problems"] and paired_rows(rollout.rows, first.rows):
            result = compare(rollout.rows, first.rows)
            entry |= {
                "chains": result["chains"],
                "mean": result["mean_difference"],
                "interval": result["interval95"],
                "wins": result["wins"],
                "ties": result["ties"],
                "losses": result["losses"],
                "p": result["sign_flip_p"],
                "decision": result["decision"],
                "decided_after": result["decided_after"],
            }
        entries.append(entry)
    # One symmetric axis for all entries: the largest end of an interval, rounded up to the next half, at least 1.
    ends = [abs(end) for entry in entries if entry["chains"] for end in entry["interval"]]
    reach = max(1.0, math.ceil(2 * max(ends, default=0)) / 2)
    for entry in entries:
        if entry["chains"]:
            values = (entry["mean"], *entry["interval"])
            entry["at"], entry["low"], entry["high"] = ((value + reach) / (2 * reach) for value in values)
    return {"base": first.name, "color": color(0), "reach": reach, "entries": entries}


def rollout_facts(index: int, rollout: Rollout) -> dict[str, Any]:
    """Return what the tables and the section on failures need of one rollout.

    Args:
        index: Index of the rollout on the page.
        rollout: The rollout.
    """
    summary = rollout.summary
    rows = rollout.rows
    covered = covered_chains(rows)
    ended = endings(rows)
    return {
        "name": rollout.name,
        "color": color(index),
        "chains": summary["num_sequences"],
        "unfinished": rollout.num_requested - summary["num_sequences"],
        "labels": labels_text(summary["label_fraction"]),
        "method": rollout.provenance.get("policy", {}).get("method") or "–",
        "rates": rate_cells(rollout, columns=CHAIN_LENGTH),
        "length": length_cell(rollout),
        "histogram": summary.get("solved_histogram"),
        "has_rows": bool(rows),
        "endings": ended,
        # The heat map of endings is scaled to its largest cell.
        "most": max((max(one.by_position) for one in ended), default=0),
        "steps": step_histogram(rows, limit=rollout.provenance.get("max_steps")),
        "covered": covered,
        "without_covered": average_length_without(rows, [one["number"] for one in covered]) if covered else None,
        "config": rollout.config,
    }


def provenance_table(rollouts: Sequence[Rollout]) -> list[tuple[str, list[str], bool]]:
    """Return the rows of the table of provenance, without facts that no rollout has.

    Returns:
        (fact, its value in each rollout, whether the values differ), in reading order.
    """
    columns = [_provenance_facts(r) for r in rollouts]
    # A dictionary and not a set: it keeps the order.
    names = list(dict.fromkeys(name for column in columns for name in column))
    table = []
    for name in names:
        values = [value_text(column.get(name)) for column in columns]
        if any(value != "–" for value in values):
            table.append((name, values, len(set(values)) > 1))
    return table


def _provenance_facts(rollout: Rollout) -> dict[str, Any]:
    summary = rollout.summary
    provenance = rollout.provenance
    policy = provenance.get("policy", {})
    results = rollout.path / "results.jsonl"
    return {
        "policy": rollout.policy,
        "policy hash": summary["policy_hash"] or "none (no weights)",
        "action labels": labels_text(summary["label_fraction"]),
        **{name.replace("_", " "): policy.get(name) for name in POLICY_FACTS},
        "aids": "none" if policy.get("aids") == [] else policy.get("aids"),
        "protocol": provenance.get("protocol"),
        "chains": f"{summary['num_sequences']} of {rollout.num_requested} requested",
        "first chain": provenance.get("first_sequence"),
        "seed of the chains": provenance.get("sequences_seed"),
        "seed of the starts": provenance.get("starts_seed"),
        "shard": provenance.get("shard"),
        "actions per policy call": summary.get("n_action_steps"),
        "step limit per subtask": provenance.get("max_steps"),
        "control rate (Hz)": provenance.get("control_hz"),
        "batch size": provenance.get("batch_size"),
        "seed": summary.get("seed"),
        **{f"world: {key.replace('_', ' ')}": value for key, value in summary["env"].items()},
        "versions": summary.get("versions") or None,
        # The checksum of the rows: equal ones prove that two rollouts have the same results.
        "results.jsonl, SHA-256": hashlib.sha256(results.read_bytes()).hexdigest() if results.is_file() else None,
    }


def value_text(value: Any) -> str:
    """Return a value of provenance.json as text; a dash for None and empty lists."""
    if value is None:
        return "–"
    if isinstance(value, dict):
        return ", ".join(f"{key} {value_text(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(value_text(item) for item in value) or "–"
    return str(value)
