"""Configuration of a rollout, and the functions that open its policy and its benchmark.

The benchmark is what `configs/env/*.yaml` instantiates; it must be a `vw2_robot.contracts.Benchmark`. Everything here
is importable by name, since each worker process opens its own benchmark.
"""

from __future__ import annotations

import functools
import importlib.metadata
import inspect
import platform
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Literal, cast

import numpy as np

from vw2_robot import __version__
from vw2_robot.aliases import new_key
from vw2_robot.contracts import Benchmark, EvalSequence, Policy, action_space
from vw2_robot.errors import InputError, MissingExtraError
from vw2_robot.limits import ExistingPath
from vw2_robot.models.policy.config import Acting

from .policy_process import LocalPolicy, PolicyProcess
from .random_policy import RandomPolicy
from .recording import FOLDER
from .selection import parse_shard, select, shard_folder, shard_sequences

BENCHMARK = ("sequences", "instruction", "reset", "begin", "observe", "step", "max_steps", "control_hz", "metadata")
VERSIONED_PACKAGES = ("torch", "numpy", "transformers", "pybullet", "pybullet-arm64")
LOCAL_POLICIES = ("random", "demonstrator")


@dataclass(frozen=True)
class RolloutConfig:
    """The root of `vw2-rollout`."""

    policy: str
    """a checkpoint or fine-tuning run folder, a Hub id "owner/name", "random", "demonstrator", the run_dir of a rollout
    with recorded actions to replay, or "package.module:Name", called without arguments for a Policy; required unless
    merge=true"""
    env: dict[str, Any]
    """`_target_` of a Benchmark and its arguments"""
    run_dir: str
    """folder of the rollout; started again with the same folder it continues"""
    protocol: Literal["chain", "single", "fork"] = "chain"
    """chain: the benchmark's chains, no reset between subtasks; single: one task at a time, each from a start state;
    fork: only tasks with two routes whose mean is bad, from where both are open"""
    num_sequences: int = 1000
    """chains of the benchmark to consider (protocol=chain); a larger number continues a folder with the missing ones"""
    first_sequence: int = 0
    """chains of the benchmark to skip before those (protocol=chain)"""
    sequences_seed: int = 0
    """which chains (protocol=chain): 0: the benchmark's, another: sampled by its protocol from that seed"""
    rollouts_per_task: int = 10
    """starts of each task (protocol=single or fork); a larger number continues a folder with the missing ones"""
    starts_seed: int = 0
    """which starts (protocol=single or fork); other seeds have other block poses"""
    sequences: list[Any] | str | int | None = None
    """numbers and ranges of chains, such as 0:100 or [0:50,704]; none: all considered"""
    shard: str | None = None
    """i/n: run this shard of n, in its own folder below run_dir; the shard that finishes last merges all of them"""
    merge: bool = False
    """run nothing: merge the finished shards below run_dir"""
    workers: int = 1
    """simulator processes; does not change the results"""
    batch_size: int = 1
    """chains that share a forward pass of the policy. Another value may change the last bits of an action; the number
    of workers does not. 1 on a CPU; on a GPU about the number of workers"""
    retries: int = 3
    """times that a chain is run again when the worker that ran it dies"""
    videos: int = 6
    """chains to keep a video of: half with the most subtasks solved, half failures, each of another task; with
    protocol=single both halves are of different tasks, 68 for both outcomes of all"""
    animations: bool = False
    """write an animated image (webp) of each of these chains, too: video, latent tokens and commands, for a web page"""
    record: bool = False
    """record the policy's outputs, chain by chain (rollouts/recording.py)"""
    against: ExistingPath | None = None
    """run_dir of a finished rollout on the same chains: stop as soon as one of the two is better"""
    alpha: float = 0.05
    """probability of a wrong decision where both are equally good (against)"""
    n_action_steps: int | None = None
    """actions executed per policy call; none: the value that the policy was trained for"""
    acting: Acting | None = None
    """what the policy reads in the slots of its codes; none: as it was trained. One that was trained to read codes can
    act by expected, sampled or argmax (docs/finetuning.md)"""
    temperature: float | None = None
    """acting=sampled: of the sampled codes; none: 1"""
    seed: int = 0
    """seed of the evaluation; each subtask gets a seed derived from it"""
    device: str = "auto"
    """device of the policy: cpu, cuda, cuda:1, mps, ...; auto: the first of cuda, mps, cpu that is there"""
    threads: int = 1
    """CPU threads of torch in each process; another value may change the last bits of an action"""

    def __post_init__(self) -> None:
        """Reject what cannot work."""
        at_least_one = ("num_sequences", "rollouts_per_task", "workers", "batch_size", "threads")
        at_least_zero = ("videos", "seed", "retries", "first_sequence", "sequences_seed", "starts_seed")
        smallest_values = dict.fromkeys(at_least_one, 1) | dict.fromkeys(at_least_zero, 0)
        for name, smallest in smallest_values.items():
            if getattr(self, name) < smallest:
                raise ValueError(f"{name}={getattr(self, name)}, expected at least {smallest}")
        if self.n_action_steps is not None and self.n_action_steps < 1:
            raise ValueError(f"n_action_steps={self.n_action_steps}, expected at least 1 (or null, as in training)")
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha={self.alpha}, expected a probability between 0 and 1, such as 0.05")
        if self.shard is not None:
            parse_shard(self.shard)
            if self.against is not None:
                raise ValueError(
                    "shard and against: one shard has too few chains to decide; merge the shards, then run vw2-compare"
                )
        if self.merge and self.shard is not None:
            raise ValueError("shard and merge: give merge=true and the run_dir of all shards, without shard")
        if not self.policy and not self.merge:
            raise ValueError("policy is missing; give policy=... (--help shows an example)")
        if "_target_" not in self.env:
            raise ValueError(f'env has no "_target_" (the benchmark to build), only {sorted(self.env)}; try env=calvin')

    @property
    def folder(self) -> Path:
        """Folder of this rollout, or of this shard of it."""
        return Path(self.run_dir) if self.shard is None else Path(self.run_dir) / shard_folder(self.shard)


def is_served(config: RolloutConfig) -> bool:
    """Return whether the policy can live in the policy process.

    True for checkpoints: their output depends on image and instruction alone, while the other policies need the
    simulator or the chain, or may keep a state.
    """
    return config.policy not in LOCAL_POLICIES and not _is_recording(config.policy) and not _is_object(config.policy)


def _is_recording(policy: str) -> bool:
    return (Path(policy) / FOLDER).is_dir()


def _is_object(policy: str) -> bool:
    """Return whether a policy is given as "package.module:Name"; "builtin:NAME" is a checkpoint."""
    is_name = re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", policy) is not None
    return is_name and not policy.startswith("builtin:")


def _open_object(policy: str) -> Policy:
    """Return what "package.module:Name" makes.

    Raises:
        InputError: There is no such name, or it makes no policy.
    """
    try:
        made = resolve_name(policy)()
    except ModuleNotFoundError as error:
        raise InputError(
            f"policy={policy} cannot be made ({error}); for a file of this folder begin the command with PYTHONPATH=."
        ) from error
    except (ImportError, AttributeError, TypeError) as error:
        raise InputError(f"policy={policy} cannot be made ({error}); it must be callable without arguments") from error
    if missing := [name for name in ("metadata", "reset", "infer") if not hasattr(made, name)]:
        raise InputError(f"policy={policy} makes no Policy: it has no {', '.join(missing)} (vw2_robot/contracts.py)")
    return cast(Policy, made)


def open_alone(config: RolloutConfig, benchmark: Benchmark) -> Policy:
    """Open the policy for a rollout in one process, such that it gives the bits of a rollout with many workers."""
    policy = open_policy(config, benchmark)
    # In the same fixed shapes as the policy process: else one worker could give other last bits than two.
    return LocalPolicy(policy, config.batch_size) if is_served(config) else policy


def open_policy_process(config: RolloutConfig) -> PolicyProcess:
    """Start the process that loads the policy for all workers."""
    # macOS has fork, but its libraries do not survive it.
    may_fork = sys.platform == "linux" and config.threads == 1
    return PolicyProcess(functools.partial(_load_for_workers, config), rows=config.batch_size, may_fork=may_fork)


def _load_for_workers(config: RolloutConfig) -> Policy:
    """Return the policy, after importing what each worker opens its benchmark with."""
    from hydra.utils import get_object

    get_object(config.env["_target_"])
    return open_checkpoint(config)


def choose_sequences(config: RolloutConfig, benchmark: Benchmark) -> list[EvalSequence]:
    """Return the chains of the rollout, those of all shards together.

    Raises:
        InputError: The benchmark has no single tasks, or not the requested chains.
    """
    other_protocol = ("starts_seed",) if config.protocol == "chain" else ("first_sequence", "sequences_seed")
    if unused := [name for name in other_protocol if getattr(config, name)]:
        raise InputError(f"{unused[0]}={getattr(config, unused[0])} means nothing with protocol={config.protocol}")
    make: Callable[..., list[EvalSequence]] | None
    if config.protocol == "chain":
        make, count, seed = benchmark.sequences, config.first_sequence + config.num_sequences, config.sequences_seed
    else:
        make = getattr(benchmark, f"{config.protocol}_tasks", None)
        count, seed = config.rollouts_per_task, config.starts_seed
        if make is None:
            raise InputError(f"protocol={config.protocol}, but {config.env['_target_']} has no start states for it")
    if seed and "seed" not in inspect.signature(make).parameters:
        raise InputError(
            f"{config.env['_target_']} has one list of chains alone; leave sequences_seed and starts_seed 0"
        )
    chains = make(count, seed=seed) if seed else make(count)
    chains = chains[config.first_sequence :]
    specs = config.sequences
    if specs is None:
        return select(chains, [])
    return select(chains, specs if isinstance(specs, list) else [specs])


def open_benchmark(env: dict[str, Any]) -> Benchmark:
    """Return the benchmark that `env` describes.

    Args:
        env: `_target_` and its arguments, as in configs/env/*.yaml.

    Raises:
        InputError: The target cannot be found, or refuses its arguments.
        MissingExtraError: It needs a package that is not installed.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        # `all`: plain lists and dictionaries; a benchmark need not know OmegaConf.
        benchmark = instantiate(env, _convert_="all")
    except InstantiationException as error:
        # Hydra wraps every error. Errors for the user come out unwrapped, and our own bugs with their own traceback.
        cause = error.__cause__
        if isinstance(cause, ImportError) and isinstance(cause.__cause__, MissingExtraError):
            cause = cause.__cause__  # the target's file needs an extra: Hydra wraps that twice
        if isinstance(cause, InputError | MissingExtraError):
            raise cause from None
        if cause is None or isinstance(cause, TypeError | ImportError | ValueError):
            message = " ".join(str(cause or error).split())
            raise InputError(
                f"env={env['_target_']} cannot be built: {message}{_known_arguments(env, cause)}"
            ) from error
        raise cause from None
    # `isinstance` with the protocol would not name what is missing.
    if missing := [name for name in BENCHMARK if not hasattr(benchmark, name)]:
        raise InputError(f"env={env['_target_']} is no benchmark: it has no {', '.join(missing)}; try env=calvin")
    return cast(Benchmark, benchmark)


def _known_arguments(env: dict[str, Any], cause: BaseException | None) -> str:
    """Return which arguments a benchmark has, the nearest or all, if `cause` is that one is unknown; else nothing."""
    from hydra.utils import get_object

    found = re.search(r"unexpected keyword argument '(\w+)'", str(cause)) if isinstance(cause, TypeError) else None
    if found is None:
        return ""
    known = list(inspect.signature(get_object(env["_target_"])).parameters)
    new = new_key(found[1], env.get(found[1]))
    near = [new] if new in known else get_close_matches(found[1], known, n=3)
    return f"; {'nearest' if near else 'known'}: {', '.join(f'env.{name}' for name in near or known)}"


def open_policy(config: RolloutConfig, benchmark: Benchmark) -> Policy:
    """Return the policy that `config.policy` names.

    Raises:
        InputError: No such checkpoint, a benchmark without scripted experts, or an acting mode for a policy without.
    """
    if not is_served(config) and (config.acting, config.temperature) != (None, None):
        raise InputError(
            f"policy={config.policy} decodes no codes: leave out acting and temperature, found acting={config.acting} "
            f"and temperature={config.temperature}"
        )
    if config.policy == "random":
        return RandomPolicy(chunk_size=config.n_action_steps or 4, names=action_space(benchmark).names)
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
    if _is_object(config.policy):
        return _open_object(config.policy)
    return open_checkpoint(config)


def open_checkpoint(config: RolloutConfig) -> Policy:
    """Return the policy of a checkpoint, on its device.

    Raises:
        InputError: No such checkpoint, or no such device.
    """
    # Imported here: a worker that runs a RemotePolicy needs no torch (150 MB).
    from vw2_robot.agent import VW2Agent
    from vw2_robot.devices import Hardware

    device = Hardware(device=config.device, threads=config.threads).torch_device(option="device")
    return VW2Agent.from_pretrained(
        config.policy,
        device=str(device),
        n_action_steps=config.n_action_steps,
        acting=config.acting,
        temperature=config.temperature,
    )


def make_provenance(
    config: RolloutConfig,
    metadata: dict[str, Any],
    benchmark: Benchmark,
    chains: list[EvalSequence],
    *,
    n_action_steps: int,
) -> dict[str, Any]:
    """Return the content of provenance.json: all that produces the rows. A folder is continued only by the same.

    Args:
        config: Configuration of the rollout.
        metadata: The policy's metadata.
        benchmark: The benchmark.
        chains: The chains of all shards.
        n_action_steps: Actions executed per policy call.
    """
    # Only tasks that occur: a subset of chains keeps its provenance when instructions of other tasks change.
    tasks = sorted({task for sequence in chains for task in sequence.subtasks})
    provenance = {
        "policy": _to_json(metadata),
        "env": _to_json(benchmark.metadata),
        "control_hz": benchmark.control_hz,
        "max_steps": benchmark.max_steps,
        "n_action_steps": n_action_steps,
        "seed": config.seed,
        "protocol": config.protocol,
        "first_sequence": config.first_sequence,
        "sequences_seed": config.sequences_seed,
        "starts_seed": config.starts_seed,
        "batch_size": config.batch_size,
        "num_sequences": len(shard_sequences(chains, config.shard)),
        "instructions": {task: benchmark.instruction(task) for task in tasks},
        "versions": versions(),
    }
    if config.shard is not None:
        provenance |= {"shard": config.shard, "num_sequences_of_all_shards": len(chains)}
    return provenance


def versions() -> dict[str, str]:
    """Return the versions of this package, of Python and of the libraries that can change a result."""
    found = {"vw2_robot": __version__, "python": platform.python_version()}
    for name in VERSIONED_PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # optional: not installed, so it cannot have changed the result
    return found


def _to_json(value: Any) -> Any:
    """Return a value as JSON types; metadata may hold tuples, paths and numpy scalars."""
    if isinstance(value, dict):
        return {str(key): _to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return value if isinstance(value, str | int | float | bool | None) else str(value)
