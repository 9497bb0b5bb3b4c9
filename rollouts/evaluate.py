"""The long-horizon protocol: one policy, one benchmark, chains of instructions, one row per chain.

A chain is a start state and five subtasks asked for in turn. The policy is reset with the instruction of each subtask
and gets up to `benchmark.max_steps` steps; a solved subtask is followed by the next one in the world as it then is; the
first failure ends the chain (CALVIN, Mees et al. 2022; specification 12.5).

The policy looks every `replan_every` steps and the first `replan_every` actions of its chunk are executed; nothing is
rendered in between. A row depends on (policy, sequence, seed) only, so the order of chains, the number of workers and
interruptions do not show in the results. Nothing is printed or written here: `results` and `__main__` do that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from vw2_robot.contracts import ACTION_DIM, GRIPPER_INDEX, Benchmark, EvalSequence, Observation, Policy
from vw2_robot.errors import InputError


class Row(TypedDict):
    """One finished chain. steps: per attempted subtask, so solved + 1 entries unless all were solved."""

    sequence: int
    initial_state: dict[str, Any]
    subtasks: list[str]
    solved: int
    steps: list[int]
    seed: int


Look = Callable[[int, Observation], None]
"""Called with the number of the subtask within its chain (0-based) and what the policy was shown."""


def evaluate(
    policy: Policy,
    benchmark: Benchmark,
    sequences: Iterable[EvalSequence],
    *,
    replan_every: int | None = None,
    seed: int = 0,
    on_row: Callable[[Row], None] | None = None,
    look: Look | None = None,
) -> list[Row]:
    """Run the chains in the order given and return their rows; `on_row` gets each as soon as it exists.

    Raises:
        InputError: `replan_every` does not suit the policy, or the policy returned unusable actions.
    """
    every = replan_interval(policy, replan_every)
    rows = []
    for sequence in sequences:
        rows.append(run_chain(policy, benchmark, sequence, replan_every=every, seed=seed, look=look))
        if on_row is not None:
            on_row(rows[-1])
    return rows


def run_chain(
    policy: Policy,
    benchmark: Benchmark,
    sequence: EvalSequence,
    *,
    replan_every: int,
    seed: int,
    look: Look | None = None,
) -> Row:
    """One chain, from its start state to the first failure or the last success."""
    benchmark.reset(sequence)
    is_blind = look is None and not policy.metadata.get("cameras", ["static"])  # then nobody would see the pictures
    steps: list[int] = []
    solved = 0
    for position, task in enumerate(sequence.subtasks):
        instruction = benchmark.instruction(task)
        benchmark.begin(task)
        policy.reset(instruction, seed=subtask_seed(seed, sequence.number, position))

        def shown(observation: Observation, position: int = position) -> None:
            if look is not None:
                look(position, observation)

        taken, success = _run_subtask(policy, benchmark, instruction, replan_every, None if is_blind else shown)
        steps.append(taken)
        if not success:
            break
        solved += 1
    return Row(
        sequence=sequence.number,
        initial_state=dict(sequence.initial_state),
        subtasks=list(sequence.subtasks),
        solved=solved,
        steps=steps,
        seed=seed,
    )


def _run_subtask(
    policy: Policy,
    benchmark: Benchmark,
    instruction: str,
    replan_every: int,
    shown: Callable[[Observation], None] | None,
) -> tuple[int, bool]:
    """Steps taken, and whether the subtask was solved. Look k covers steps k*E .. (k+1)*E - 1, E = `replan_every`.

    Without `shown` no picture is asked for.
    """
    chunk: NDArray[np.float64] = np.empty((0, ACTION_DIM))
    for step in range(benchmark.max_steps):
        position = step % replan_every
        if position == 0:
            observation: Observation = {"images": {}, "prompt": instruction}
            if shown is not None:
                observation["images"] = benchmark.observe()["images"]
                shown(observation)
            chunk = commands(policy.infer(observation)["actions"], at_least=replan_every)
        if benchmark.step(chunk[position]):
            return step + 1, True
    return benchmark.max_steps, False


def commands(actions: Any, *, at_least: int) -> NDArray[np.float64]:
    """A policy's chunk as commands the robot accepts: clipped to [-1, 1], gripper by sign, 0 closes.

    Raises:
        InputError: not [H, 7] with H >= `at_least`, or not finite.
    """
    chunk = np.array(actions, dtype=np.float64)
    if chunk.ndim != 2 or chunk.shape[1] != ACTION_DIM or len(chunk) < at_least:
        raise InputError(
            f"the policy returned actions of shape {list(chunk.shape)}; expected [H, {ACTION_DIM}], H >= {at_least}: "
            "that many are executed before it looks again; lower replan_every or raise the policy's horizon"
        )
    if not np.isfinite(chunk).all():
        raise InputError(f"the policy returned actions that are not finite, first bad row: {_first_bad(chunk)}")
    gripper = np.where(chunk[:, GRIPPER_INDEX] > 0, 1.0, -1.0)
    chunk = chunk.clip(-1.0, 1.0)
    chunk[:, GRIPPER_INDEX] = gripper
    return chunk


def _first_bad(chunk: NDArray[np.float64]) -> str:
    row = int(np.argmin(np.isfinite(chunk).all(axis=1)))
    return f"{row}: {chunk[row].tolist()}"


def replan_interval(policy: Policy, override: int | None) -> int:
    """Steps between two looks: the override, or what the policy was trained for.

    Raises:
        InputError: neither is given, or it exceeds the policy's horizon.
    """
    every = policy.metadata.get("replan_every") if override is None else override
    if every is None:
        raise InputError('the policy\'s metadata has no "replan_every"; give replan_every=N (steps between two looks)')
    horizon = policy.metadata.get("horizon")
    if every < 1 or (horizon is not None and every > horizon):
        raise InputError(f"replan_every={every}, but the policy predicts {horizon} actions per look; give 1..{horizon}")
    return int(every)


def subtask_seed(seed: int, sequence: int, position: int) -> int:
    """The seed `Policy.reset` gets: a pure function of the evaluation's seed, the chain and the subtask's position."""
    return int(np.random.SeedSequence([seed, sequence, position]).generate_state(1)[0])


def unfinished(sequences: Sequence[EvalSequence], rows: Iterable[Row]) -> list[EvalSequence]:
    """The chains without a row.

    Raises:
        InputError: a row is about another chain than the sequence of its number.
    """
    by_number = {sequence.number: sequence for sequence in sequences}
    done = set()
    for row in rows:
        sequence = by_number.get(row["sequence"])
        if sequence is None or list(sequence.subtasks) != row["subtasks"]:
            wanted = "no such chain" if sequence is None else list(sequence.subtasks)
            raise InputError(
                f"results.jsonl holds chain {row['sequence']} with subtasks {row['subtasks']}, the benchmark now has "
                f"{wanted}; use another run_dir"
            )
        done.add(row["sequence"])
    return [sequence for sequence in sequences if sequence.number not in done]
