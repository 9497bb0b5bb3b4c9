"""CALVIN's long-horizon protocol (LH-MTLC): run a policy in a benchmark, chain by chain, and return one row per chain.

A chain is a start state and five subtasks. Before each subtask the policy is reset with that subtask's instruction. It
then has up to `benchmark.max_steps` control steps. After a success the next subtask starts in the world as it is; the
first failure ends the chain (CALVIN, Mees et al. 2022).

The policy is called every `n_action_steps` control steps, and the first `n_action_steps` actions of its chunk are
executed; nothing is rendered in between. A row depends on (policy, sequence, seed) only. The order of chains, the
number of workers and interruptions therefore do not change the results. This file prints and writes nothing; `results`
and `__main__` do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypedDict

import numpy as np
from numpy.typing import NDArray

from vw2_robot.commands import check_action_space, commands, resolve_n_action_steps
from vw2_robot.contracts import Benchmark, EvalSequence, Observation, Policy, PolicyOutput, action_space
from vw2_robot.errors import InputError


class Row(TypedDict):
    """The result of one finished chain.

    Attributes:
        sequence: Number of the chain in the benchmark.
        initial_state: Start state of the chain.
        subtasks: Task names, in order.
        solved: Number of subtasks solved before the first failure.
        env_steps: Control steps of each attempted subtask: solved + 1 entries, or as many as subtasks if all were
            solved.
        seed: Seed of the evaluation.
        instructions: Instruction of each attempted subtask.
    """

    sequence: int
    initial_state: dict[str, Any]
    subtasks: list[str]
    solved: int
    env_steps: list[int]
    seed: int
    instructions: list[str]


class RolloutCallback(Protocol):
    """An object that is called after every policy call of a chain.

    `needs_images`: render images even for a policy without cameras.
    """

    needs_images: bool

    def on_policy_call(self, subtask: int, observation: Observation, output: PolicyOutput) -> None:
        """Receive one policy call.

        Args:
            subtask: Position of the subtask within the chain, from 0.
            observation: What the policy was given.
            output: What the policy returned, before clipping.
        """


def evaluate(
    policy: Policy,
    benchmark: Benchmark,
    sequences: Iterable[EvalSequence],
    *,
    n_action_steps: int | None = None,
    seed: int = 0,
    on_row: Callable[[Row], None] | None = None,
    callbacks: Sequence[RolloutCallback] = (),
) -> list[Row]:
    """Run chains in the given order and return their rows.

    Args:
        policy: The policy to evaluate.
        benchmark: The world to evaluate it in.
        sequences: The chains to run.
        n_action_steps: Actions executed per policy call; None: the value that the policy was trained for.
        seed: Seed of the evaluation; each subtask gets a seed derived from it.
        on_row: Called with each row as soon as it exists.
        callbacks: Called after every policy call.

    Returns:
        One row per chain.

    Raises:
        InputError: `n_action_steps` or the benchmark does not suit the policy, or the policy returned unusable actions.
    """
    n_action_steps = resolve_n_action_steps(policy.metadata, n_action_steps)
    check_action_space(policy.metadata, benchmark)
    rows = []
    for sequence in sequences:
        row = run_chain(policy, benchmark, sequence, n_action_steps=n_action_steps, seed=seed, callbacks=callbacks)
        rows.append(row)
        if on_row is not None:
            on_row(row)
    return rows


def run_chain(
    policy: Policy,
    benchmark: Benchmark,
    sequence: EvalSequence,
    *,
    n_action_steps: int,
    seed: int,
    callbacks: Sequence[RolloutCallback] = (),
) -> Row:
    """Run one chain from its start state to the first failure or the last success.

    Args:
        policy: The policy to evaluate.
        benchmark: The world; it is reset to the start state of the chain.
        sequence: The chain.
        n_action_steps: Actions executed per policy call.
        seed: Seed of the evaluation.
        callbacks: Called after every policy call.

    Returns:
        The row of the chain.

    Raises:
        InputError: The policy returned unusable actions.
    """
    benchmark.reset(sequence)
    # Rendering takes most of the time of a step, so a policy without cameras gets no images unless a callback needs
    # them.
    needs_images = bool(policy.metadata.get("cameras", ["static"])) or any(one.needs_images for one in callbacks)
    names = action_space(benchmark).names
    env_steps: list[int] = []
    instructions: list[str] = []
    solved = 0
    for position, task in enumerate(sequence.subtasks):
        instruction = benchmark.instruction(task)
        instructions.append(instruction)
        # The oracle starts before the first observation, so that what happens from here on counts for this subtask.
        benchmark.begin(task)
        policy.reset(instruction, seed=subtask_seed(seed, sequence.number, position))

        def predict_chunk(position: int = position, instruction: str = instruction) -> NDArray[np.float64]:
            images = benchmark.observe()["images"] if needs_images else {}
            observation: Observation = {"images": images, "prompt": instruction}
            output = policy.infer(observation)
            for callback in callbacks:
                callback.on_policy_call(position, observation, output)
            return commands(output["actions"], at_least=n_action_steps, names=names)

        steps_taken, is_solved = _run_subtask(benchmark, predict_chunk, n_action_steps)
        env_steps.append(steps_taken)
        if not is_solved:
            break
        solved += 1
    return Row(
        sequence=sequence.number,
        initial_state=dict(sequence.initial_state),
        subtasks=list(sequence.subtasks),
        solved=solved,
        env_steps=env_steps,
        seed=seed,
        instructions=instructions,
    )


def _run_subtask(
    benchmark: Benchmark, predict_chunk: Callable[[], NDArray[np.float64]], n_action_steps: int
) -> tuple[int, bool]:
    """Return the control steps taken and whether the subtask was solved.

    Policy call k covers control steps k*E .. (k+1)*E - 1, where E = `n_action_steps`.
    """
    chunk: NDArray[np.float64] = np.empty((0, 0))
    for step in range(benchmark.max_steps):
        position = step % n_action_steps
        if position == 0:
            # The rest of the previous chunk is dropped: actions predicted long ago are the least accurate ones.
            chunk = predict_chunk()
        if benchmark.step(chunk[position]):
            return step + 1, True
    return benchmark.max_steps, False


def subtask_seed(seed: int, sequence: int, position: int) -> int:
    """Return the seed for `Policy.reset`, a pure function of its arguments.

    Args:
        seed: Seed of the evaluation.
        sequence: Number of the chain.
        position: Position of the subtask within the chain, from 0.
    """
    # SeedSequence mixes the three numbers well; a sum would give neighboring chains the same seeds.
    return int(np.random.SeedSequence([seed, sequence, position]).generate_state(1)[0])


def unfinished(sequences: Sequence[EvalSequence], rows: Iterable[Row]) -> list[EvalSequence]:
    """Return the chains without a row.

    Args:
        sequences: All chains of the evaluation.
        rows: The rows found on disk.

    Raises:
        InputError: A row belongs to another chain than the one with its number.
    """
    by_number = {sequence.number: sequence for sequence in sequences}
    done = set()
    for row in rows:
        sequence = by_number.get(row["sequence"])
        # The benchmark may have changed since: its chain with this number must be the one of the row.
        if sequence is None or list(sequence.subtasks) != row["subtasks"]:
            expected = "no such chain" if sequence is None else list(sequence.subtasks)
            raise InputError(
                f"results.jsonl holds chain {row['sequence']} with subtasks {row['subtasks']}, the benchmark now has "
                f"{expected}; use another run_dir"
            )
        done.add(row["sequence"])
    return [sequence for sequence in sequences if sequence.number not in done]
