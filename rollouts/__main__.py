"""Program `vw2-rollout`: evaluate a policy in a simulator. The only place where the two meet.

    vw2-rollout policy=random num_sequences=20 workers=2 run_dir=runs/random
    vw2-rollout policy=runs/first/finetune env=calvin num_sequences=1000 workers=8 run_dir=runs/first/rollout

Leaves in `run_dir`: config.yaml, provenance.json, results.jsonl, timing.jsonl, summary.json, videos/, report.html,
table.md, table.tex, log.txt. Started again after a kill it continues; the results are those of an uninterrupted run.
Started again with more chains it runs those that are missing.
docs/evaluation.md describes protocols, shards, comparisons and the official evaluator.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from vw2_robot.aliases import with_new_keys
from vw2_robot.command_line import entry_points
from vw2_robot.command_line.config_tree import config_tree
from vw2_robot.commands import check_action_space, resolve_n_action_steps
from vw2_robot.contracts import Benchmark, EvalSequence, Policy
from vw2_robot.errors import InputError, require
from vw2_robot.storage.arrays import read_arrays
from vw2_robot.storage.binding import check_same_config
from vw2_robot.storage.files import read_json, read_yaml, write_json, write_yaml
from vw2_robot.storage.locks import lock_folder
from vw2_robot.worker_pool import WorkerPool

from . import results
from .compare import EarlyStopping, check_pairs, compare, lines
from .config import (
    RolloutConfig,
    choose_sequences,
    is_served,
    make_provenance,
    open_alone,
    open_benchmark,
    open_policy_process,
)
from .evaluate import Row, unfinished
from .merge import merge, merge_if_last
from .policy_process import PolicyLostError, PolicyProcess
from .progress import RolloutLog
from .report.report import write_report
from .selection import shard_sequences
from .video import VideoLayout, video_paths
from .workers import ChainJob, Protocol, open_worker, run_job

CHANGEABLE_KEYS = ("run_dir", "workers", "retries", "merge")
"""configuration keys that may change between two starts in one folder: they do not change the results"""
GROWING_KEYS = ("num_sequences", "rollouts_per_task")
"""configuration keys that may grow between two starts: the chains that are there stay the first of the list"""
ADVICE = "Use another run_dir, or delete this folder to start over"
TRAINING_FILES = ("metrics.jsonl", "latest", "checkpoints")
LEGACY_NOTE = (
    "note: legacy resets carry solver state from one chain to the next, so results depend on how chains are split over "
    "workers and on interruptions; env.reset_mode=exact has no such memory"
)


FIRST_VALUES = {
    "first_sequence": 0,
    "sequences_seed": 0,
    "starts_seed": 0,
    "acting": None,
    "temperature": None,
    "animations": False,
}
"""options that folders of earlier releases do not have, with what they did"""


def check_config(folder: Path, config: RolloutConfig) -> None:
    """Check that the folder is free or holds a rollout with this configuration.

    Args:
        folder: Folder of the rollout.
        config: Configuration of this start.

    Raises:
        InputError: It holds a rollout with another configuration (the message names the keys), or another kind of run.
    """
    file = folder / "config.yaml"
    if file.is_file():
        cure = "delete it to continue; provenance.json beside it still says what produced the results"
        # Written by an older release, perhaps: its keys are translated before they are compared.
        old = {**FIRST_VALUES, **with_new_keys(read_yaml(file, cure=cure))}
        if not {"policy", "env"} <= old.keys():
            raise InputError(f"{folder} holds another kind of run (see its config.yaml); use another run_dir")
        new = with_new_keys(config_tree(config))  # both: a benchmark's own keys may be among them
        # A shard of more chains would begin elsewhere.
        grown = [key for key in GROWING_KEYS if config.shard is None and old.get(key, 0) < new[key]]
        before, now = (
            {key: value for key, value in tree.items() if key not in (*CHANGEABLE_KEYS, *grown)} for tree in (old, new)
        )
        check_same_config(folder, before, now, holds="a rollout with another configuration", advice=ADVICE)
    # No config.yaml yet, but files of a training that is older than this file or was started by hand.
    elif found := [name for name in TRAINING_FILES if (folder / name).exists()]:
        raise InputError(f"{folder} holds a training run ({found[0]}); use another run_dir")


def bind_rollout(folder: Path, config: RolloutConfig, provenance: dict[str, Any]) -> None:
    """Write configuration and provenance into the folder, or check that those in it are the same.

    Called once policy and benchmark are open, so that a start that failed leaves no trace. The provenance counts beside
    the configuration: a retrained policy under the same path is another policy. More chains than before may be added.

    Args:
        folder: Folder of the rollout.
        config: Configuration of this start.
        provenance: What produces the rows of this start.

    Raises:
        InputError: Something else produced the rows in the folder; the message names what differs.
    """
    file = folder / "provenance.json"
    # Rows without provenance could be of any policy: nothing may be added to them.
    if not file.is_file() and results.read_rows(folder / "results.jsonl"):
        raise InputError(
            f"{folder} holds results, but no provenance.json that says what they are of; use another run_dir"
        )
    if file.is_file():
        stored = with_new_keys(read_json(file, cure=f"restore it, or delete it with {folder.name} to start over"))
        now = with_new_keys(dict(provenance))
        if config.shard is None and (count := stored.get("num_sequences", 0)) < now["num_sequences"]:
            # More chains than before, perhaps of more tasks.
            known = stored.get("instructions", {})
            now["instructions"] = {task: text for task, text in now["instructions"].items() if task in known}
            now["num_sequences"] = count
        holds = "a rollout with another policy, world or library version"
        check_same_config(folder, stored, now, holds=holds, advice=ADVICE)
    write_json(file, provenance, sealed=True)
    write_yaml(folder / "config.yaml", config_tree(config))


def rollout(config: RolloutConfig) -> dict[str, Any]:
    """Run or continue an evaluation, or merge its shards. The shard that finishes last merges all of them.

    Args:
        config: Configuration of the rollout.

    Returns:
        The content of summary.json.

    Raises:
        InputError: The folder is in use or holds something else, or policy and benchmark cannot be used.
    """
    if config.merge:
        with lock_folder(config.folder, what="a merge of shards"):
            summary = merge(config.run_dir)
        print("\n".join(f"{name:<15} {text}" for name, text in results.five_lines(summary, policy="")))
        return summary
    # Before any chain runs, and not when the first video is written.
    if config.videos:
        require("imageio_ffmpeg", extra="report")
    with lock_folder(config.folder, what="a rollout"):
        summary = _rollout(config)
    if config.shard is not None:
        print(merge_if_last(config.run_dir, config.shard))
    return summary


def _rollout(config: RolloutConfig) -> dict[str, Any]:
    """Run or continue an evaluation whose folder is locked."""
    check_config(config.folder, config)
    with contextlib.ExitStack() as stack:
        # 1. The policy: in a process of its own where several workers share it, which loads it during what follows.
        policy_process: PolicyProcess | None = None
        if config.workers > 1 and is_served(config):
            policy_process = open_policy_process(config)
            stack.callback(policy_process.close)
        benchmark = open_benchmark(config.env)
        stack.callback(benchmark.close)
        # 2. The chains: those of all shards, and those of this one.
        all_chains = choose_sequences(config, benchmark)
        chains = shard_sequences(all_chains, config.shard)
        early_stopping = None
        if config.against is not None:
            early_stopping = EarlyStopping(Path(config.against), chains, alpha=config.alpha)
        policy = policy_process if policy_process is not None else open_alone(config, benchmark)
        n_action_steps = resolve_n_action_steps(policy.metadata, config.n_action_steps)
        check_action_space(policy.metadata, benchmark)
        # 3. The folder: from here on it belongs to this rollout.
        provenance = make_provenance(config, policy.metadata, benchmark, all_chains, n_action_steps=n_action_steps)
        if config.against is not None:
            check_pairs(provenance, Path(config.against))
        bind_rollout(config.folder, config, provenance)
        log = RolloutLog(config.folder, total=len(chains), videos=config.videos)
        waiting = unfinished(chains, log.rows)
        log_start(log, benchmark, config, done=len(chains) - len(waiting))
        # 4. The chains that have no row yet.
        run_chains(config, log, benchmark, policy, waiting, early_stopping, n_action_steps=n_action_steps)
    return finish(config, log, provenance, early_stopping)


def log_start(log: RolloutLog, benchmark: Benchmark, config: RolloutConfig, *, done: int) -> None:
    """Log how many chains are done already, and a warning where the schedule can change results.

    Args:
        log: Takes the messages.
        benchmark: Its metadata tell whether resets are legacy ones.
        config: Configuration of the rollout; `workers` counts.
        done: Number of chains that have a row already.
    """
    if done:
        log.message(f"{done} of {log.total} chains are done, continuing with the rest")
    if benchmark.metadata.get("reset_mode") == "legacy" and (config.workers > 1 or done):
        log.message(LEGACY_NOTE)


def run_chains(
    config: RolloutConfig,
    log: RolloutLog,
    benchmark: Benchmark,
    policy: Policy | PolicyProcess,
    waiting: list[EvalSequence],
    early_stopping: EarlyStopping | None,
    *,
    n_action_steps: int,
) -> None:
    """Run chains, here or in workers, until all are done or the comparison is decided.

    Args:
        config: Configuration of the rollout.
        log: Takes the rows.
        benchmark: Used where chains run in this process.
        policy: The policy, or the process that holds it.
        waiting: The chains without a row.
        early_stopping: The comparison with a finished rollout; None: run all chains.
        n_action_steps: Actions executed per policy call.
    """
    # Decided by the rows of an earlier start already: then no worker is needed.
    if early_stopping is not None and early_stopping.rows_until_decision(log.rows) is not None:
        return
    protocol = Protocol(
        n_action_steps=n_action_steps,
        seed=config.seed,
        videos=config.videos,
        run_dir=config.folder,
        record=config.record,
        animations=config.animations,
    )
    # A generator: each job is made when a worker is free, with the videos that are kept at that moment.
    jobs = (ChainJob(sequence, tuple(log.video_chains().values())) for sequence in waiting)
    # Closing ends the workers, also where the loop is left by a decision or an error.
    with contextlib.closing(_run_jobs(config, log, benchmark, policy, jobs, protocol)) as finished:
        for row, seconds in finished:
            log.add(row, seconds)
            if early_stopping is not None and early_stopping.rows_until_decision(log.rows) is not None:
                return


def _run_jobs(
    config: RolloutConfig,
    log: RolloutLog,
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
    policy_process = policy if isinstance(policy, PolicyProcess) else None
    way: dict[str, Any] = {}  # workers build their own policy where it needs the simulator
    if policy_process is not None and policy_process.forks_workers:
        way["start_worker"] = policy_process.fork_worker
    elif policy_process is not None:
        way["arguments"] = lambda: (policy_process.connect(),)
    pool: WorkerPool[ChainJob, tuple[Row, float]] = WorkerPool(
        functools.partial(open_worker, config, protocol, policy.metadata),
        name="rollout worker",
        retries=config.retries,
        on_loss=log.message,
        **way,
    )
    try:
        yield from pool.run(jobs, workers=config.workers)
    except PolicyLostError:
        # A worker sees a broken pipe only; the parent knows how the policy process ended.
        assert policy_process is not None
        raise policy_process.death() from None


def finish(
    config: RolloutConfig, log: RolloutLog, provenance: dict[str, Any], early_stopping: EarlyStopping | None
) -> dict[str, Any]:
    """Write summary.json, comparison.json and the report; returns the summary.

    Args:
        config: Configuration of the rollout; its folder takes the files.
        log: The rows of the chains.
        provenance: Content of provenance.json.
        early_stopping: The comparison with a finished rollout; None: no comparison.json, and all rows count.

    Returns:
        The content of summary.json.
    """
    # Rows up to the decision only: which further chains other workers finished meanwhile is a matter of timing.
    rows = early_stopping.rows_until_decision(log.rows) if early_stopping is not None else None
    summary = log.finish(provenance, rows=rows)
    if early_stopping is not None:
        comparison = compare(log.rows, early_stopping.base, alpha=config.alpha)
        write_json(config.folder / "comparison.json", comparison, sealed=True)
        log.message("\n".join(lines(comparison)))
    imagine(config, log, provenance)
    write_report([config.folder], config.folder)
    log.message("\n".join(f"{name:<15} {text}" for name, text in results.five_lines(summary, policy=config.policy)))
    return summary


def imagine(config: RolloutConfig, log: RolloutLog, provenance: dict[str, Any]) -> None:
    """Write what the policy expected in the kept videos, where it decoded latent tokens.

    Args:
        config: Configuration of the rollout.
        log: The rows of the chains.
        provenance: Content of provenance.json.
    """
    kept = [(row, video_paths(config.folder / "videos", row["sequence"])) for row in log.video_chains().values()]
    with_tokens = [
        (row, paths)
        for row, paths in kept
        if paths.recording.is_file() and "tokens" in read_arrays(paths.recording, cure=results.RERUN)
    ]
    if not is_served(config) or not with_tokens:
        return
    # Both import torch, which a rollout of other policies does not need.
    from .expected import write_expected
    from .live.expectation import Expectation

    try:
        decoder = Expectation(config.policy, hz=provenance["control_hz"], device="cpu")
    except InputError as error:  # a policy may come without its dLDM; its rollout is whole all the same
        log.message(f"no expected frames in the report: {error}")
        return
    layout = VideoLayout(control_hz=provenance["control_hz"], n_action_steps=provenance["n_action_steps"])
    write_expected(config.folder, with_tokens, decoder, layout)


def solved_video(folder: Path) -> str | None:
    """Return which video shows a solved task, with instruction and steps; None where none does."""
    for row in results.read_results(folder):
        video = video_paths(folder / "videos", row["sequence"]).video
        if row["solved"] and video.is_file():
            return f'{video}: "{row["instructions"][0]}", solved in {row["env_steps"][0]} steps'
    return None


def main(config: RolloutConfig) -> None:
    """Console script `vw2-rollout`."""
    # As under `python -m`. Otherwise each worker imports the console script again, and torch with it (150 MB).
    sys.modules["__main__"].__spec__ = __spec__
    rollout(config)
    if (shown := solved_video(config.folder)) is not None:
        print(f"video:  {shown}")
    print(f"report: {config.folder / 'report.html'}")


if __name__ == "__main__":
    entry_points.rollout.main()
