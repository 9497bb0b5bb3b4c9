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
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from vw2_robot.aliases import with_new_keys
from vw2_robot.binding import bind_folder, check_same_config
from vw2_robot.command_line.config_tree import config_tree
from vw2_robot.command_line.program import program
from vw2_robot.commands import resolve_n_action_steps
from vw2_robot.contracts import Benchmark, EvalSequence, Policy
from vw2_robot.errors import InputError, require
from vw2_robot.storage.files import read_yaml, write_json, write_yaml
from vw2_robot.storage.locks import lock_folder
from vw2_robot.worker_pool import WorkerPool

from . import results
from .compare import SequentialTest, compare, lines
from .config import RolloutConfig, choose_sequences, is_served, open_alone, open_benchmark, open_checkpoint, provenance
from .evaluate import Row, unfinished
from .policy_process import PolicyLostError, PolicyProcess
from .progress import Log
from .report.report import write_report
from .selection import piece
from .workers import ChainJob, Protocol, open_worker, run_job

FREE = ("run_dir", "workers", "retries")  # keys that may change between two starts in one folder
ADVICE = "Use another run_dir, or delete this folder to start over"
OF_TRAINING = ("metrics.jsonl", "latest", "checkpoints")
LEGACY_NOTE = (
    "note: legacy resets carry solver state from one chain to the next, so results depend on how chains are split over "
    "workers and on interruptions; env.reset_mode=exact has no such memory"
)


def check_config(folder: Path, config: RolloutConfig) -> None:
    """See that the folder is free or holds a rollout with this configuration.

    Raises:
        InputError: it holds another one, with the names of the keys, or another kind of run.
    """
    file = folder / "config.yaml"
    if file.is_file():
        what_then = "delete it to go on; provenance.json beside it still says what the results are of"
        old = with_new_keys(read_yaml(file, cure=what_then))
        if not {"policy", "env"} <= old.keys():
            raise InputError(f"{folder} holds another kind of run (see its config.yaml); use another run_dir")
        before, now = (_comparable(tree) for tree in (old, config_tree(config)))
        check_same_config(folder, before, now, holds="a rollout with another configuration", advice=ADVICE)
    elif found := [name for name in OF_TRAINING if (folder / name).exists()]:
        raise InputError(f"{folder} holds a training run ({found[0]}); use another run_dir")


def _comparable(tree: dict[str, Any]) -> dict[str, Any]:
    """What decides the results; a path counts the same whatever way it is spelled."""
    return {key: value for key, value in tree.items() if key not in FREE}


def claim(folder: Path, config: RolloutConfig, origin: dict[str, Any]) -> None:
    """Make the folder this rollout's, once all its parts are known to work.

    What the configuration's names stand for counts too: a retrained policy in the same place is another policy.

    Raises:
        InputError: the folder's rows came from something else; names what differs.
    """
    file = folder / "provenance.json"
    if not file.is_file() and results.read_rows(folder / "results.jsonl"):
        raise InputError(
            f"{folder} holds results, but no provenance.json that says what they are of; use another run_dir"
        )
    bind_folder(
        folder, origin, file=file, holds="a rollout with another policy, world or library version", advice=ADVICE
    )
    write_yaml(folder / "config.yaml", config_tree(config))


def rollout(config: RolloutConfig) -> dict[str, Any]:
    """Run or continue the evaluation; returns its summary."""
    if config.videos:
        require("imageio_ffmpeg", extra="report")
    with lock_folder(config.folder, what="a rollout"):
        return _rollout(config)


def _rollout(config: RolloutConfig) -> dict[str, Any]:
    check_config(config.folder, config)
    benchmark = open_benchmark(config.env)
    served: PolicyProcess | None = None
    try:
        chains = choose_sequences(config, benchmark)
        mine = piece(chains, config.shard)
        race = SequentialTest(Path(config.against), mine, error=config.error) if config.against is not None else None
        if config.workers > 1 and is_served(config):
            served = PolicyProcess(functools.partial(open_checkpoint, config), rows=config.batch_size)
        policy = served if served is not None else open_alone(config, benchmark)
        every = resolve_n_action_steps(policy.metadata, config.n_action_steps)
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
    race: SequentialTest | None,
    *,
    every: int,
) -> None:
    """Run what is not done yet, here or in workers, until all is done or the race is decided."""
    if race is not None and race.decided(log.rows) is not None:
        return
    protocol = Protocol(
        n_action_steps=every, seed=config.seed, videos=config.videos, run_dir=config.folder, record=config.record
    )
    jobs = (ChainJob(sequence, log.kept()) for sequence in waiting)
    with contextlib.closing(_finished(config, log, benchmark, policy, jobs, protocol)) as finished:
        for row, seconds in finished:
            log.add(row, seconds)
            if race is not None and race.decided(log.rows) is not None:
                return


def _finished(
    config: RolloutConfig,
    log: Log,
    benchmark: Benchmark,
    policy: Policy | PolicyProcess,
    jobs: Iterator[ChainJob],
    protocol: Protocol,
) -> Generator[tuple[Row, float]]:
    """Yield each chain's row and seconds as it ends."""
    if not isinstance(policy, PolicyProcess) and config.workers == 1:
        for job in jobs:
            yield run_job(policy, benchmark, job, protocol)
        return
    served = policy if isinstance(policy, PolicyProcess) else None
    pool: WorkerPool[ChainJob, tuple[Row, float]] = WorkerPool(
        functools.partial(open_worker, config, protocol, policy.metadata),
        name="rollout worker",
        arguments=tuple if served is None else lambda: (served.connect(),),
        retries=config.retries,
        on_loss=log.say,
    )
    try:
        yield from pool.run(jobs, workers=config.workers)
    except PolicyLostError:
        assert served is not None
        raise served.death() from None


def finish(config: RolloutConfig, log: Log, origin: dict[str, Any], race: SequentialTest | None) -> dict[str, Any]:
    """Write summary and report; returns the summary."""
    decided = race.decided(log.rows) if race is not None else None
    # Up to the decision only: which chains other workers finished meanwhile is chance.
    summary = log.finish(origin, rows=decided)
    if race is not None:
        comparison = compare(log.rows, race.base, error=config.error)
        write_json(config.folder / "comparison.json", comparison, sealed=True)
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
