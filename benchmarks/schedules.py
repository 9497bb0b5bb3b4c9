"""Check that results do not depend on scheduling: 1, 2 and 4 workers, random kills, three shards.

    python -m benchmarks.schedules --policies demonstrator replay CHECKPOINT --chains 200 --kills 50 --out DIR

Each policy is evaluated with each schedule, in a folder of its own below DIR, with its outputs recorded. `replay`
replays the recorded outputs of the policy before it. There is a line per evaluation: killed workers, seconds, and the
beginning of two SHA-256, of results.jsonl and of all files in actions/. They must be the same in all lines of a policy;
otherwise the program fails. DIR/schedules.json has the whole digests. tests/unit/rollouts/test_schedules.py runs this
at small size and compares the files itself.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHARDS = 3
KILL_EVERY_SECONDS = 1.0
"""mean time between two kills"""


@dataclass(frozen=True)
class Plan:
    """The options that all schedules of a policy share."""

    policy: str
    folder: Path
    chains: int
    max_steps: int
    kills: int

    def run(self, name: str, **changes: Any) -> Path:
        """Evaluate in the folder `name`."""
        from vw2_robot.rollouts.__main__ import rollout  # not at the top: workers import this file without torch
        from vw2_robot.rollouts.config import RolloutConfig

        world = {"_target_": "vw2_robot.envs.benchmark.CalvinBenchmark", "max_steps": self.max_steps}
        # As many retries as kills, since all of them may hit one chain.
        fixed = {"num_sequences": self.chains, "videos": 0, "record": True, "retries": self.kills}
        config = RolloutConfig(policy=self.policy, env=world, run_dir=str(self.folder / name), **fixed, **changes)
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log.txt").open("a", encoding="utf-8") as log, redirect_stdout(log):
            rollout(config)
        return self.folder / name


class Reaper:
    """A thread that kills a random simulator worker of this process at random times."""

    def __init__(self, limit: int) -> None:
        self.killed: list[int] = []
        self._limit = limit
        self._stop = threading.Event()
        self._rng = random.Random(0)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Kill workers until the block ends or the limit is reached."""
        self._stop.clear()
        thread = threading.Thread(target=self._kill_workers)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _kill_workers(self) -> None:
        while len(self.killed) < self._limit and not self._stop.wait(self._rng.expovariate(1 / KILL_EVERY_SECONDS)):
            # Not the policy process, whose death ends a run on purpose, but the workers that it has forked.
            children = {child.pid: child.name for child in multiprocessing.active_children()}
            workers = [pid for pid, name in children.items() if name.startswith("rollout worker")]
            for pid in [pid for pid, name in children.items() if name == "policy process"]:
                with suppress(OSError):  # it has ended
                    workers += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
            if workers:
                victim = self._rng.choice(workers)
                os.kill(victim, signal.SIGKILL)
                self.killed.append(victim)


def schedules(plan: Plan) -> Iterator[tuple[str, Path, int]]:
    """Run the schedules one after the other; yield name, folder and number of kills of each."""
    from vw2_robot.rollouts.merge import merge

    for workers in (1, 2, 4):
        yield f"{workers} worker{'s' if workers > 1 else ''}", plan.run(f"workers_{workers}", workers=workers), 0
    reaper = Reaper(plan.kills)
    rounds = 0
    before = 0
    while len(reaper.killed) < plan.kills:  # a round may end before all kills: then another one begins
        with reaper.at_work():
            folder = plan.run(f"killed_{rounds}", workers=4)
        yield "4 workers, kills", folder, len(reaper.killed) - before
        rounds += 1
        before = len(reaper.killed)
    # Shards with different numbers of workers.
    for number in range(SHARDS):
        plan.run("shards", shard=f"{number}/{SHARDS}", workers=1 + number % 2)
    merge(plan.folder / "shards")
    yield f"{SHARDS} shards, merged", plan.folder / "shards", 0


def digests(folder: Path) -> tuple[str, str]:
    """Return the SHA-256 of the rows, and of the recorded outputs of all chains in order."""
    # File names too, so that exchanged chains are noticed.
    answers = hashlib.sha256()
    for file in sorted((folder / "actions").iterdir()):
        answers.update(file.name.encode() + file.read_bytes())
    return hashlib.sha256((folder / "results.jsonl").read_bytes()).hexdigest(), answers.hexdigest()


def evaluate(plan: Plan, name: str) -> list[dict[str, Any]]:
    """Run all schedules of one policy and print a line for each."""
    entries: list[dict[str, Any]] = []
    begin = time.perf_counter()
    for schedule, folder, kills in schedules(plan):
        seconds = time.perf_counter() - begin
        found = digests(folder)
        entry = {"policy": name, "schedule": schedule, "folder": str(folder), "kills": kills, "seconds": seconds}
        entry |= {"rows": found[0], "answers": found[1], "chains": plan.chains}
        entries.append(entry)
        entry["same"] = all(entry[key] == entries[0][key] for key in ("rows", "answers"))
        decision = "same" if entry["same"] else "DIFFERENT"
        print(
            f"{name:<14}{schedule:<20}{plan.chains:>7}{kills:>7}{seconds:>9.1f}  {found[0][:12]}  {found[1][:12]}  "
            f"{decision}",
            flush=True,
        )
        begin = time.perf_counter()
    return entries


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--policies", nargs="+", required=True, help="demonstrator, random, replay, checkpoint folders")
    parser.add_argument("--chains", type=int, default=40)
    parser.add_argument("--max-steps", type=int, nargs="+", default=[360], help="one, or one for each policy")
    parser.add_argument("--kills", type=int, default=50, help="for each policy")
    parser.add_argument("--out", type=Path, required=True, help="empty or new folder")
    options = parser.parse_args()
    limits = options.max_steps * (len(options.policies) if len(options.max_steps) == 1 else 1)
    entries: list[dict[str, Any]] = []
    print(f"{'policy':<14}{'schedule':<20}{'chains':>7}{'kills':>7}{'s':>9}  {'rows':<12}  {'answers':<12}")
    for number, (policy, max_steps) in enumerate(zip(options.policies, limits, strict=True)):
        folder = options.out / f"policy_{number}"
        source = entries[-1]["folder"] if policy == "replay" else policy
        plan = Plan(source, folder, options.chains, max_steps, options.kills)
        entries += evaluate(plan, policy if "/" not in policy else "checkpoint")
    (options.out / "schedules.json").write_text(json.dumps(entries, indent=1) + "\n")
    if not all(entry["same"] for entry in entries):
        sys.exit("results differ between schedules")


if __name__ == "__main__":
    main()
