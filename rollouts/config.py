"""What a rollout is made from: its configuration, and the policy and the benchmark that the configuration names.

The benchmark is whatever `configs/env/*.yaml` instantiates and `vw2_robot.contracts.Benchmark` describes. Everything
here is importable by name, since each worker process builds its own pair.
"""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from vw2_robot import __version__
from vw2_robot.contracts import Benchmark, EvalSequence, Policy
from vw2_robot.errors import InputError, MissingExtraError

from .policy_process import LocalPolicy
from .random_policy import RandomPolicy
from .recording import FOLDER
from .selection import parse_shard, piece, select, shard_folder

BENCHMARK = ("sequences", "instruction", "reset", "begin", "observe", "step", "max_steps", "control_hz", "metadata")
VERSIONED = ("torch", "numpy", "transformers", "pybullet", "pybullet-arm64")


LOCAL_POLICIES = ("random", "demonstrator")


@dataclass(frozen=True)
class RolloutConfig:
    """The root of `vw2-rollout`."""

    policy: str
    """a checkpoint or fine-tuning run folder, a Hub id "owner/name", "random", "demonstrator", or the run_dir of a
    rollout with recorded actions to replay"""
    env: dict[str, Any]
    """`_target_` of a Benchmark and its arguments"""
    run_dir: str
    protocol: Literal["chain", "single"] = "chain"
    """chain: the benchmark's chains, no reset between subtasks; single: one task at a time, each from a start state"""
    num_sequences: int = 1000
    """chains of the benchmark to consider (protocol=chain)"""
    rollouts_per_task: int = 10
    """starts of each task (protocol=single)"""
    sequences: list[Any] | str | int | None = None
    """numbers and ranges of chains, such as 0:100 or [0:50,704]; none: all considered"""
    shard: str | None = None
    """i/n: this piece of n, in a folder of its own below run_dir; vw2-merge puts the pieces together"""
    workers: int = 1
    """simulator processes; does not change the results"""
    batch_size: int = 1
    """chains that share a forward pass of the policy. Another number may change the last bits of an action; the number
    of workers does not. 1 on a CPU; on a GPU about the number of workers"""
    retries: int = 3
    """times that a chain is begun again when the worker that ran it dies"""
    videos: int = 6
    """chains to video: half with the most subtasks solved, half with the fewest"""
    record: bool = False
    """keep what the policy answered, chain by chain (rollouts/recording.py)"""
    against: str | None = None
    """run_dir of a finished rollout on the same chains: stop as soon as one of the two is better"""
    error: float = 0.05
    """chance of a wrong decision where both are equally good (against)"""
    n_action_steps: int | None = None
    """steps between two looks; none: what the policy was trained for"""
    seed: int = 0
    device: str = "auto"
    threads: int = 1
    """CPU threads of torch in each process; another number may change the last bits of an action"""

    def __post_init__(self) -> None:
        """Reject what cannot work."""
        least = {"num_sequences": 1, "rollouts_per_task": 1, "workers": 1, "batch_size": 1, "threads": 1}
        for name, smallest in (*least.items(), ("videos", 0), ("seed", 0), ("retries", 0)):
            if getattr(self, name) < smallest:
                raise ValueError(f"{name}={getattr(self, name)}, expected at least {smallest}")
        if self.n_action_steps is not None and self.n_action_steps < 1:
            raise ValueError(f"n_action_steps={self.n_action_steps}, expected at least 1 (or null: the policy's own)")
        if not 0 < self.error < 1:
            raise ValueError(f"error={self.error}, expected a chance between 0 and 1, such as 0.05")
        if self.shard is not None:
            parse_shard(self.shard)
            if self.against is not None:
                raise ValueError(
                    "shard and against: no shard sees enough to decide; merge the shards, then vw2-compare"
                )
        if "_target_" not in self.env:
            raise ValueError(f'env has no "_target_" (the benchmark to build), only {sorted(self.env)}; try env=calvin')

    @property
    def folder(self) -> Path:
        """Where this rollout, or this shard of it, leaves its files."""
        return Path(self.run_dir) if self.shard is None else Path(self.run_dir) / shard_folder(self.shard)


def is_served(config: RolloutConfig) -> bool:
    """Whether the policy can live in a process of its own: a checkpoint, whose answers depend on the image alone."""
    return config.policy not in LOCAL_POLICIES and not _is_recording(config.policy)


def _is_recording(policy: str) -> bool:
    return (Path(policy) / FOLDER).is_dir()


def open_alone(config: RolloutConfig, benchmark: Benchmark) -> Policy:
    """The policy for a rollout in one process: the bits of many."""
    policy = open_policy(config, benchmark)
    return LocalPolicy(policy, config.batch_size) if is_served(config) else policy


def choose_sequences(config: RolloutConfig, benchmark: Benchmark) -> list[EvalSequence]:
    """The chains of all shards together.

    Raises:
        InputError: the benchmark has no single tasks, or not the chains asked for.
    """
    if config.protocol == "single":
        single_tasks = getattr(benchmark, "single_tasks", None)
        if single_tasks is None:
            raise InputError(f"protocol=single, but {config.env['_target_']} has no start states for single tasks")
        chains = single_tasks(config.rollouts_per_task)
    else:
        chains = benchmark.sequences(config.num_sequences)
    wanted = config.sequences
    specs = [] if wanted is None else wanted if isinstance(wanted, list) else [wanted]
    return select(chains, specs)


def open_benchmark(env: dict[str, Any]) -> Benchmark:
    """Instantiate the benchmark named by `env`.

    Raises:
        InputError: the target cannot be found, or refuses its arguments.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        made = instantiate(env, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, ImportError) and isinstance(cause.__cause__, MissingExtraError):
            cause = cause.__cause__  # the file of the target needs an extra: Hydra wraps that once more
        if isinstance(cause, InputError | MissingExtraError):
            raise cause from None
        if cause is None or isinstance(cause, TypeError | ImportError | ValueError):
            raise InputError(f"env={env['_target_']} cannot be built: {error}") from error
        raise cause from None
    if missing := [name for name in BENCHMARK if not hasattr(made, name)]:
        raise InputError(f"env={env['_target_']} is no benchmark: it has no {', '.join(missing)}; try env=calvin")
    return cast(Benchmark, made)


def open_policy(config: RolloutConfig, benchmark: Benchmark) -> Policy:
    """The policy named by `config.policy`.

    Raises:
        InputError: no such checkpoint, or a benchmark without scripted experts.
    """
    if config.policy == "random":
        return RandomPolicy(chunk_size=config.n_action_steps or 4)
    if config.policy == "demonstrator":
        expert = getattr(benchmark, "expert", None)
        if expert is None:
            raise InputError(
                f"policy=demonstrator, but {config.env['_target_']} has no scripted experts (no method expert)"
            )
        return cast(Policy, expert())
    if _is_recording(config.policy):
        from .action_replay import ActionReplay

        return ActionReplay(config.policy)
    return open_checkpoint(config)


def open_checkpoint(config: RolloutConfig) -> Policy:
    """The policy of a checkpoint, on its device.

    Raises:
        InputError: no such checkpoint, or no such device.
    """
    from vw2_robot.agent import VW2Agent
    from vw2_robot.runs import Hardware

    device = Hardware(device=config.device, threads=config.threads).torch_device(option="device")
    return VW2Agent.from_pretrained(config.policy, device=str(device), n_action_steps=config.n_action_steps)


def provenance(
    config: RolloutConfig, metadata: dict[str, Any], benchmark: Benchmark, chains: list[EvalSequence], *, every: int
) -> dict[str, Any]:
    """What produces the rows; a run folder is continued only by the same. `chains`: those of all shards."""
    tasks = sorted({task for sequence in chains for task in sequence.subtasks})
    origin = {
        "policy": _plain(metadata),
        "env": _plain(benchmark.metadata),
        "control_hz": benchmark.control_hz,
        "max_steps": benchmark.max_steps,
        "n_action_steps": every,
        "seed": config.seed,
        "protocol": config.protocol,
        "batch_size": config.batch_size,
        "num_sequences": len(piece(chains, config.shard)),
        "instructions": {task: benchmark.instruction(task) for task in tasks},
        "versions": versions(),
    }
    if config.shard is not None:
        origin |= {"shard": config.shard, "num_sequences_of_all_shards": len(chains)}
    return origin


def versions() -> dict[str, str]:
    """Versions of this package, of Python and of the libraries that can move a result."""
    found = {"vw2_robot": __version__, "python": platform.python_version()}
    for name in VERSIONED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # optional: not installed, so it had no part in the result
    return found


def _plain(value: Any) -> Any:
    """JSON values only: metadata may hold tuples, paths and numpy scalars."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return value if isinstance(value, str | int | float | bool | None) else str(value)
