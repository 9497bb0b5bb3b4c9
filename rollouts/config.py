"""What a rollout is made from: its configuration, and the policy and the benchmark that the configuration names.

The benchmark is whatever `configs/env/*.yaml` instantiates and `vw2_robot.contracts.Benchmark` describes. Everything
here is importable by name, since each worker process builds its own pair.
"""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from vw2_robot import __version__
from vw2_robot.contracts import Benchmark, EvalSequence, Policy
from vw2_robot.errors import InputError, MissingExtraError

from .random_policy import RandomPolicy

BENCHMARK = ("sequences", "instruction", "reset", "begin", "observe", "step", "max_steps", "control_hz", "metadata")
VERSIONED = ("torch", "numpy", "transformers", "pybullet")


@dataclass(frozen=True)
class RolloutConfig:
    """The root of `vw2-rollout`."""

    policy: str
    """a checkpoint or fine-tuning run folder, a Hub id "owner/name", "random", or "demonstrator" """
    env: dict[str, Any]
    """`_target_` of a Benchmark and its arguments"""
    run_dir: str
    num_sequences: int = 1000
    workers: int = 1
    """processes; does not change the results"""
    videos: int = 6
    """chains to film: half with the most subtasks solved, half with the fewest"""
    replan_every: int | None = None
    """steps between two looks; none: what the policy was trained for"""
    seed: int = 0
    device: str = "auto"
    threads: int = 1
    """CPU threads of torch in each process; another number may change the last bits of an action"""

    def __post_init__(self) -> None:
        """Reject what cannot work."""
        for name, least in (("num_sequences", 1), ("workers", 1), ("videos", 0), ("seed", 0), ("threads", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}, expected at least {least}")
        if self.replan_every is not None and self.replan_every < 1:
            raise ValueError(f"replan_every={self.replan_every}, expected at least 1 (or null: the policy's own)")
        if "_target_" not in self.env:
            raise ValueError(f'env has no "_target_" (the benchmark to build), only {sorted(self.env)}; try env=calvin')


def open_crew(config: RolloutConfig) -> tuple[Policy, Benchmark]:
    """The policy and the benchmark of a configuration: what each worker starts from."""
    benchmark = open_benchmark(config.env)
    return open_policy(config, benchmark), benchmark


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
        return RandomPolicy(horizon=config.replan_every or 4)
    if config.policy == "demonstrator":
        expert = getattr(benchmark, "expert", None)
        if expert is None:
            raise InputError(
                f"policy=demonstrator, but {config.env['_target_']} has no scripted experts (no method expert)"
            )
        return cast(Policy, expert())
    from vw2_robot.agent import VW2Agent
    from vw2_robot.runs import Hardware

    device = Hardware(device=config.device, threads=config.threads).torch_device()
    return VW2Agent.from_pretrained(config.policy, device=str(device))


def provenance(
    config: RolloutConfig, policy: Policy, benchmark: Benchmark, sequences: list[EvalSequence], *, replan_every: int
) -> dict[str, Any]:
    """What produces the rows; a run folder is continued only by the same."""
    tasks = sorted({task for sequence in sequences for task in sequence.subtasks})
    return {
        "policy": _plain(policy.metadata),
        "env": _plain(benchmark.metadata),
        "control_hz": benchmark.control_hz,
        "max_steps": benchmark.max_steps,
        "replan_every": replan_every,
        "seed": config.seed,
        "num_sequences": len(sequences),
        "instructions": {task: benchmark.instruction(task) for task in tasks},
        "versions": versions(),
    }


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
