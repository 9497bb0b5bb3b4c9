"""The long-horizon protocol: one policy, one benchmark, chains of instructions, one row per chain.

A chain is a start state and five subtasks asked for in turn. The policy is reset with the instruction of each subtask
and gets up to `benchmark.max_steps` steps; a solved subtask is followed by the next one in the world as it then is; the
first failure ends the chain (CALVIN, Mees et al. 2022; specification 12.5).

The policy looks every `n_action_steps` steps and the first `n_action_steps` actions of its chunk are executed;
nothing is rendered in between. A row depends on (policy, sequence, seed) only, so the order of chains, the number of
workers and interruptions do not show in the results. Nothing is printed or written here: `results` and `__main__` do
that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypedDict

import numpy as np
from numpy.typing import NDArray

from vw2_robot.commands import commands, resolve_n_action_steps
from vw2_robot.contracts import ACTION_DIM, Benchmark, EvalSequence, Observation, Policy, PolicyOutput
from vw2_robot.errors import InputError


class Row(TypedDict):
    """One finished chain.

    env_steps, instructions: per attempted subtask, so solved + 1 entries unless all were solved.
    """

    sequence: int
    initial_state: dict[str, Any]
    subtasks: list[str]
    solved: int
    env_steps: list[int]
    seed: int
    instructions: list[str]


class RolloutCallback(Protocol):
    """Sees every look of a chain. `needs_images`: render them even for a policy that does not look at them."""

    needs_images: bool

    def look(self, subtask: int, observation: Observation, output: PolicyOutput) -> None:
        """`subtask`: its number within the chain (0-based); what the policy was shown, and what it answered."""


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
    """Run the chains in the order given and return their rows; `on_row` gets each as soon as it exists.

    Raises:
        InputError: `n_action_steps` does not suit the policy, or the policy returned unusable actions.
    """
    every = resolve_n_action_steps(policy.metadata, n_action_steps)
    rows = []
    for sequence in sequences:
        rows.append(run_chain(policy, benchmark, sequence, n_action_steps=every, seed=seed, callbacks=callbacks))
        if on_row is not None:
            on_row(rows[-1])
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
    """One chain, from its start state to the first failure or the last success."""
    benchmark.reset(sequence)
    # A policy without cameras is shown none, unless somebody else wants to see the images.
    is_shown = bool(policy.metadata.get("cameras", ["static"])) or any(one.needs_images for one in callbacks)
    steps: list[int] = []
    instructions: list[str] = []
    solved = 0
    for position, task in enumerate(sequence.subtasks):
        instructions.append(benchmark.instruction(task))
        benchmark.begin(task)
        policy.reset(instructions[-1], seed=subtask_seed(seed, sequence.number, position))

        def ask(position: int = position) -> NDArray[np.float64]:
            images = benchmark.observe()["images"] if is_shown else {}
            observation: Observation = {"images": images, "prompt": instructions[position]}
            output = policy.infer(observation)
            for callback in callbacks:
                callback.look(position, observation, output)
            return commands(output["actions"], at_least=n_action_steps)

        taken, success = _run_subtask(benchmark, ask, n_action_steps)
        steps.append(taken)
        if not success:
            break
        solved += 1
    return Row(
        sequence=sequence.number,
        initial_state=dict(sequence.initial_state),
        subtasks=list(sequence.subtasks),
        solved=solved,
        env_steps=steps,
        seed=seed,
        instructions=instructions,
    )


def _run_subtask(benchmark: Benchmark, ask: Callable[[], NDArray[np.float64]], n_action_steps: int) -> tuple[int, bool]:
    """Steps taken, and whether the subtask was solved. Look k covers steps k*E .. (k+1)*E - 1, E = `n_action_steps`."""
    chunk: NDArray[np.float64] = np.empty((0, ACTION_DIM))
    for step in range(benchmark.max_steps):
        position = step % n_action_steps
        if position == 0:
            chunk = ask()
        if benchmark.step(chunk[position]):
            return step + 1, True
    return benchmark.max_steps, False


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
