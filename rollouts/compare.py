"""Program `vw2-compare`: test whether one policy is better than another, on the chains that both ran.

    vw2-compare run=runs/second/rollout against=runs/first/rollout

Prints the difference in average length with its interval, wins and losses, the p value of a sign-flip test, and the
decision of a sequential test that takes the chains in order: how many of them would have been enough.
`vw2-rollout against=RUN_DIR` applies the same sequential test while a rollout runs and stops at its decision. If both
policies do equally well, a difference is found with a probability of at most `error` (rollouts/statistics.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vw2_robot.command_line import entry_points
from vw2_robot.contracts import EvalSequence
from vw2_robot.errors import InputError
from vw2_robot.storage.files import read_json, write_json

from .evaluate import Row
from .results import RERUN, different_problems, longest_chain, paired_difference, paired_rows, read_results
from .statistics import SequentialTest, sign_flip_p


@dataclass(frozen=True)
class CompareConfig:
    """The root of `vw2-compare`."""

    run: str
    """folder of a rollout"""
    against: str
    """folder of the rollout to compare it with"""
    alpha: float = 0.05
    """probability of finding a difference between equally good policies"""
    out: str | None = None
    """file for the numbers, as JSON"""

    def __post_init__(self) -> None:
        """Reject what cannot work."""
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha={self.alpha}, expected a probability between 0 and 1, such as 0.05")


def compare(rows: Sequence[Row], base: Sequence[Row], *, alpha: float = 0.05) -> dict[str, Any]:
    """Compare two sets of rows, chain by chain.

    Args:
        rows: Rows of the first rollout.
        base: Rows of the rollout to compare with.
        alpha: Probability that the sequential test decides wrongly where both are equally good.

    Returns:
        The content of comparison.json: number of common chains, mean difference with its interval, wins, ties, losses,
        p value, and the decision of the sequential test ("better", "worse" or "undecided").

    Raises:
        InputError: No chain in common.
    """
    # Pairs share chain and start state, so what is hard in a chain cancels in the difference.
    pairs = paired_rows(rows, base)
    difference = paired_difference(rows, base)
    if difference is None:
        raise InputError("the two rollouts have no finished chain in common: nothing to compare")
    mean, low, high, count = difference
    differences = [a["solved"] - b["solved"] for a, b in pairs]
    # In the order of chain numbers, which is fixed, and not in the order of finishing.
    test = SequentialTest(largest=longest_chain([a for a, _ in pairs]), alpha=alpha)
    for value in differences:
        test.add(value)
    return {
        "chains": count,
        "mean_difference": mean,
        "interval95": [low, high],
        "wins": sum(value > 0 for value in differences),
        "ties": differences.count(0),
        "losses": sum(value < 0 for value in differences),
        "sign_flip_p": sign_flip_p(differences),
        "alpha": alpha,
        "decision": {1: "better", -1: "worse", 0: "undecided"}[test.decision],
        "decided_after": test.decided_after,
    }


def check_pairs(provenance: Mapping[str, Any], against: Path) -> None:
    """Check that a chain of a rollout and the one with its number in a finished rollout are the same problem.

    Args:
        provenance: Content of provenance.json of the rollout; empty without one.
        against: Folder of the finished rollout.

    Raises:
        InputError: Scene, protocol, seeds or another of the settings that make the problem differ; names them.
    """
    different = different_problems(provenance, provenance_of(against))
    if different:
        raise InputError(
            f"against={against} ran other problems, so chains of the same number are no pairs: "
            f"{', '.join(different)}; run both with the same settings"
        )


def provenance_of(folder: Path) -> dict[str, Any]:
    """Return the content of provenance.json of a rollout; empty without that file."""
    file = folder / "provenance.json"
    return read_json(file, cure=RERUN) if file.is_file() else {}


class EarlyStopping:
    """Stops a rollout once it is better or worse than a finished one.

    Rows may come in any order. Only chains before the first gap count, so the decision is a function of the results
    and not of the order in which workers finish.
    """

    def __init__(self, folder: Path, sequences: Sequence[EvalSequence], *, alpha: float) -> None:
        """Read the finished rollout.

        Args:
            folder: Folder of the finished rollout.
            sequences: Chains of the rollout that runs, in order.
            alpha: Probability of a wrong decision where both are equally good.

        Raises:
            InputError: The folder does not hold all these chains.
        """
        self._base = {row["sequence"]: row for row in read_results(folder)}
        self.base = list(self._base.values())
        self._order = list(sequences)
        self._alpha = alpha
        for chain in self._order:
            row = self._base.get(chain.number)
            if row is None or row["subtasks"] != list(chain.subtasks):
                raise InputError(
                    f"against={folder} has no result for chain {chain.number} {list(chain.subtasks)}; both rollouts "
                    "must run the same chains: finish that one, or choose its chains with sequences="
                )

    def rows_until_decision(self, rows: Sequence[Row]) -> list[Row] | None:
        """Return the rows up to the decision, in the order of chains; None while undecided."""
        # Computed anew each time: a few hundred additions, and no state to keep in step with the rows.
        done = {row["sequence"]: row for row in rows}
        test = SequentialTest(largest=max(len(chain.subtasks) for chain in self._order), alpha=self._alpha)
        used = []
        for chain in self._order:
            if chain.number not in done:
                return None
            used.append(done[chain.number])
            if test.add(used[-1]["solved"] - self._base[chain.number]["solved"]):
                return used
        return None


def lines(result: dict[str, Any]) -> list[str]:
    """Return a comparison as lines of text; `result` is what `compare` returned."""
    low, high = result["interval95"]
    after = f"after {result['decided_after']} chains" if result["decided_after"] else "after all chains"
    return [
        f"chains in common   {result['chains']}: {result['wins']} won, {result['ties']} equal, {result['losses']} lost",
        f"average length     {result['mean_difference']:+.3f} [{low:+.3f}, {high:+.3f}] (run minus against)",
        f"sign-flip test     p = {result['sign_flip_p']:.4f} (for a number of chains fixed beforehand)",
        f"sequential test    {result['decision']}, {after} (alpha {result['alpha']:g})",
    ]


def main(config: CompareConfig) -> None:
    """Console script `vw2-compare`."""
    sides = []
    for name, folder in (("run", config.run), ("against", config.against)):
        if not (rows := read_results(Path(folder))):
            raise InputError(f"{name}={folder} holds no results.jsonl with finished chains; give a rollout's run_dir")
        sides.append(rows)
    check_pairs(provenance_of(Path(config.run)), Path(config.against))
    result = compare(*sides, alpha=config.alpha)
    print("\n".join(lines(result)))
    if config.out is not None:
        write_json(Path(config.out), result)


if __name__ == "__main__":
    entry_points.compare.main()
