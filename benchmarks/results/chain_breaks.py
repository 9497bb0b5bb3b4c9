"""Where chains end: how often each kind of task fails at each position of a chain, and after which task.

python -m benchmarks.results.chain_breaks package/chains
python -m benchmarks.results.chain_breaks package/chains --after turn_on_led
"""

from __future__ import annotations

import argparse
import csv
from collections import Counter
from pathlib import Path

from vw2_robot.envs.sequences import make_sequences


def main() -> None:
    """Print failures of tries, for one job of the archive."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", help="of the column `job`: chains of the official thousand")
    parser.add_argument("--after", help="lifts and stacks right after this task alone")
    parser.add_argument("--archive", type=Path, default=Path(__file__).with_name("archive"))
    args = parser.parse_args()
    sequences = make_sequences()
    tried: Counter[tuple[str, int]] = Counter()
    failed: Counter[tuple[str, int]] = Counter()
    with (args.archive / "chains.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["job"] == args.job]
    for row in rows:
        tasks, solved = sequences[int(row["sequence"])].subtasks, int(row["solved"])
        for position, task in enumerate(tasks[: solved + 1]):
            kind = "lift" if task.startswith("lift") else task
            if args.after is not None:
                if position == 0 or tasks[position - 1] != args.after or kind not in ("lift", "stack_block"):
                    continue
                kind = f"lift or stack after {args.after}"
            tried[kind, position + 1] += 1
            failed[kind, position + 1] += position == solved
    print(f"{len(rows)} chains of {args.job}; failed of tried at positions 1 to 5, and in all")
    kinds = sorted({kind for kind, _ in tried}, key=lambda kind: -sum(failed[kind, i] for i in range(1, 6)))
    for kind in kinds:
        cells = [f"{failed[kind, i]}/{tried[kind, i]}" for i in range(1, 6)]
        total = f"{sum(failed[kind, i] for i in range(1, 6))}/{sum(tried[kind, i] for i in range(1, 6))}"
        print(f"{kind:<36}" + "".join(f"{cell:>9}" for cell in [*cells, total]))


if __name__ == "__main__":
    main()
