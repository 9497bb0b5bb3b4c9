"""Program `vw2-rollout`: the only place where a policy and a simulator meet.

    vw2-rollout policy=random num_sequences=20 workers=2 run_dir=runs/random
    vw2-rollout policy=runs/first/finetune env=calvin num_sequences=1000 workers=8 run_dir=runs/first/rollout

Leaves in `run_dir`: config.yaml, provenance.json, results.jsonl, timing.jsonl, summary.json, videos/, report.html,
table.md, table.tex, log.txt. Killed and started again it continues; the results are those of an uninterrupted run.
docs/evaluation.md tells the rest: protocols, shards, comparisons, the official evaluator.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from pathlib import Path
from typing import Any

import yaml

from vw2_robot.cli import program
from vw2_robot.commands import replan_interval
from vw2_robot.config_tree import config_tree, differing_keys
from vw2_robot.contracts import Benchmark, EvalSequence, Policy
from vw2_robot.errors import InputError, require
from vw2_robot.runs import mark, read_mark
from vw2_robot.storage import write_text

from . import results
from .compare import RunningRace, compare, lines
from .config import (
    RolloutConfig,
    choose_sequences,
    is_served,
    open_alone,
    open_benchmark,
    open_checkpoint,
    open_worker,
    provenance,
)
from .evaluate import Row, unfinished
from .policy_process import PolicyProcess
from .progress import Log
from .report import write_report
from .selection import piece
from .workers import Crew, Protocol, run_alone

FREE = ("run_dir", "workers", "retries")  # keys that may change between two starts in one folder
LEGACY_NOTE = (
    "note: legacy resets carry solver state from one chain to the next, so results depend on how chains are split over "
    "workers and on interruptions; env.reset_mode=exact has no such memory"
)


class Decided(Exception):
    """The race against another rollout is over; no further chain is needed."""


def check_config(folder: Path, config: RolloutConfig) -> None:
    """See that the folder is free or holds a rollout with this configuration.

    Raises:
        InputError: it holds another one; names the keys.
    """
    file = folder / "config.yaml"
    if file.is_file():
        old = yaml.safe_load(file.read_text(encoding="utf-8"))
        before, now = ({k: v for k, v in tree.items() if k not in FREE} for tree in (old, config_tree(config)))
        _refuse(folder, "another configuration", differing_keys(before, now))


def claim(folder: Path, config: RolloutConfig, origin: dict[str, Any]) -> None:
    """Make the folder this rollout's, once all its parts are known to work.

    What the configuration's names stand for counts too: a retrained policy in the same place is another policy.

    Raises:
        InputError: the folder's rows came from something else; names what differs.
    """
    file = folder / "provenance.json"
    if (old := read_mark(file)) is not None:
        _refuse(folder, "another policy, world or library version", differing_keys(old, origin))
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.yaml", yaml.safe_dump(config_tree(config), sort_keys=False))
    mark(file, origin)


def _refuse(folder: Path, what: str, names: list[str]) -> None:
    if names:
        raise InputError(
            f"{folder} holds a rollout with {what}; these keys differ: {', '.join(names)}. "
            "Use another run_dir, or delete this folder to start over"
        )


def rollout(config: RolloutConfig) -> dict[str, Any]:
    """Run or continue the evaluation; returns its summary."""
    if config.videos:
        require("imageio_ffmpeg", extra="report")
    check_config(config.folder, config)
    benchmark = open_benchmark(config.env)
    served: PolicyProcess | None = None
    try:
        chains = choose_sequences(config, benchmark)
        mine = piece(chains, config.shard)
        race = RunningRace(Path(config.against), mine, error=config.error) if config.against is not None else None
        if config.workers > 1 and is_served(config):
            served = PolicyProcess(functools.partial(open_checkpoint, config), rows=config.batch)
        policy = served if served is not None else open_alone(config, benchmark)
        every = replan_interval(policy.metadata, config.replan_every)
        origin = provenance(config, policy.metadata, benchmark, chains, every=every)
        claim(config.folder, config, origin)
        log = Log(config.folder, total=len(mine), videos=config.videos)
        waiting = unfinished(mine, log.rows)
        greet(log, benchmark, config, done=len(mine) - len(waiting))
        run_chains(config, log, benchmark, policy, waiting, race, every=every)
    finally:
        if served is not None:
            served.close()
        benchmark.close()
    return finish(config, log, origin, race)


def greet(log: Log, benchmark: Benchmark, config: RolloutConfig, *, done: int) -> None:
    """Say what a person should know before the first chain."""
    if done:
        log.say(f"{done} of {log.total} chains are done, going on with the rest")
    if benchmark.metadata.get("reset_mode") == "legacy" and (config.workers > 1 or done):
        log.say(LEGACY_NOTE)


def run_chains(
    config: RolloutConfig,
    log: Log,
    benchmark: Benchmark,
    policy: Policy | PolicyProcess,
    waiting: list[EvalSequence],
    race: RunningRace | None,
    *,
    every: int,
) -> None:
    """Run what is not done yet, here or in workers, until all is done or the race is decided."""
    protocol = Protocol(
        replan_every=every, seed=config.seed, videos=config.videos, run_dir=config.folder, record=config.record
    )

    def stop_if_decided() -> None:
        if race is not None and race.decided(log.rows) is not None:
            raise Decided

    def on_row(row: Row, seconds: float) -> None:
        log.add(row, seconds)
        stop_if_decided()

    with contextlib.suppress(Decided):
        stop_if_decided()
        served = policy if isinstance(policy, PolicyProcess) else None
        workers = min(config.workers, len(waiting))
        if not isinstance(policy, PolicyProcess) and workers <= 1:
            run_alone(policy, benchmark, waiting, protocol, kept=log.kept, on_row=on_row)
        else:
            build = functools.partial(open_worker, config, served.address if served else None, policy.metadata)
            crew = Crew(build, protocol, policy=served, retries=config.retries, say=log.say)
            crew.run(waiting, workers=workers, kept=log.kept, on_row=on_row)


def finish(config: RolloutConfig, log: Log, origin: dict[str, Any], race: RunningRace | None) -> dict[str, Any]:
    """Write summary and report; returns the summary."""
    decided = race.decided(log.rows) if race is not None else None
    # Up to the decision only: which chains other workers finished meanwhile is chance.
    summary = log.finish(origin, rows=decided)
    if race is not None:
        comparison = compare(log.rows, race.base, error=config.error)
        mark(config.folder / "comparison.json", comparison)
        log.say("\n".join(lines(comparison)))
    write_report([config.folder], config.folder)
    log.say("\n".join(f"{name:<15} {text}" for name, text in results.five_lines(summary)))
    return summary


@program(RolloutConfig, config_name="rollout", extra="calvin")
def main(config: RolloutConfig) -> None:
    """Console script `vw2-rollout`."""
    # As under `python -m`: else each worker imports the console script again, and torch with it (150 MB).
    sys.modules["__main__"].__spec__ = __spec__
    rollout(config)
    print(f"report: {config.folder / 'report.html'}")


if __name__ == "__main__":
    main()
