"""Single tasks: where they begin, and that they can be done there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vw2_robot.envs.instructions import choose_instruction, load_instructions, read_instructions
from vw2_robot.envs.sequences import JITTER_M, TASKS, all_initial_states, start_state
from vw2_robot.envs.single_tasks import block_poses, needs_prelude, single_tasks
from vw2_robot.errors import InputError

SCENES = ("A", "B", "C", "D")


def test_every_task_gets_as_many_rollouts_as_requested_and_keeps_its_numbers() -> None:
    chosen = single_tasks(3)
    assert [chain.subtasks for chain in chosen[:34]] == [(task,) for task in TASKS]
    assert len(chosen) == len({chain.number for chain in chosen}) == 102
    more = {chain.number: chain for chain in single_tasks(5)}
    assert all(more[chain.number] == chain for chain in chosen)  # asking for more does not move anything
    with pytest.raises(InputError, match="rollouts_per_task=1001"):
        single_tasks(1001)


def test_the_first_rollouts_of_a_task_begin_in_different_states_in_which_it_can_be_done() -> None:
    for task in TASKS:
        states = [chain.initial_state for chain in single_tasks(10) if chain.subtasks == (task,)]
        assert len({str(state) for state in states}) == 10
        if "prelude" not in states[0]:
            assert all(TASKS[task].apply(state) is not None for state in states)
    assert sum(needs_prelude(chain) for chain in single_tasks(1)) == 7


def test_starts_of_another_seed_are_new_states_close_to_the_benchmarks() -> None:
    def states(seed: int) -> list[bytes]:
        chains = [chain for chain in single_tasks(5, seed=seed) if not needs_prelude(chain)]
        return [start_state(chain.initial_state, poses=block_poses(chain))[1].tobytes() for chain in chains]

    first, second = states(0), states(1)
    assert states(1) == second
    assert len(set(second)) == len(second) == 135
    assert not set(second) & (set(first) | set(states(2)))
    preludes = [{str(c.initial_state) for c in single_tasks(2, seed=seed) if needs_prelude(c)} for seed in (0, 1)]
    assert not preludes[0] & preludes[1]
    for chain in single_tasks(2, seed=1)[:34]:
        if not needs_prelude(chain):
            _, moved = start_state(chain.initial_state, poses=block_poses(chain))
            places = [start_state(state)[1] for state in all_initial_states()]
            spots = np.concatenate([scene_obs[6:].reshape(3, 6)[:, :2] for scene_obs in places])
            for block in moved[6:].reshape(3, 6):
                assert 0 < np.abs(spots - block[:2]).max(axis=1).min() <= JITTER_M


@pytest.mark.sim
@pytest.mark.parametrize("scene", SCENES)
def test_a_start_that_needs_the_expert_is_the_same_every_time_and_can_be_solved_from(scene: str) -> None:
    from vw2_robot.envs.benchmark import CalvinBenchmark

    world = CalvinBenchmark(scene=scene)
    (chain,) = (one for one in single_tasks(1) if one.subtasks == ("stack_block",))
    states = []
    for _ in range(2):
        world.reset(chain)
        states.append(world.env.scene_obs())
    np.testing.assert_array_equal(*states)
    world.begin("stack_block")
    expert = world.expert()
    expert.reset(world.instruction("stack_block"), seed=0)
    assert any(world.step(expert.infer({})["actions"][0].astype(np.float64)) for _ in range(360))
    world.close()


@pytest.mark.sim
def test_at_a_fork_both_routes_are_open_and_the_start_is_the_same_every_time() -> None:
    from vw2_robot.envs.benchmark import CalvinBenchmark
    from vw2_robot.envs.experts.demonstrator import observe_world
    from vw2_robot.envs.experts.ways import FORKS, routes

    world = CalvinBenchmark()
    chains = world.fork_tasks(2)
    assert {chain.subtasks for chain in chains} == {(task,) for task in FORKS}
    assert len({chain.number for chain in chains}) == 2 * len(FORKS)
    chain = next(chain for chain in chains if chain.subtasks == ("push_into_drawer",))
    states = []
    for _ in range(2):
        world.reset(chain)
        states.append(np.concatenate([world.env.robot_obs(), world.env.scene_obs()]))
    np.testing.assert_array_equal(*states)
    assert routes("push_into_drawer", observe_world(world.env)) == FORKS["push_into_drawer"]
    world.close()


def test_enriched_instructions_are_three_a_task_and_in_no_other_set() -> None:
    enriched = read_instructions("enriched")
    known = {
        line.lower() for split in ("train", "validation") for task in load_instructions(split).values() for line in task
    }
    lines = [line for task in enriched.values() for line in task]
    assert set(enriched) == set(TASKS)
    assert len(set(lines)) == len(lines) == 102
    assert not known & set(lines)
    assert max(len(line) for line in lines) <= 64  # the embedded policy reads so many bytes


def test_a_chain_always_has_the_same_instruction_and_chains_differ() -> None:
    lines = read_instructions("train")["open_drawer"]
    chosen = [choose_instruction(lines, "open_drawer", chain) for chain in range(60)]
    assert chosen == [choose_instruction(lines, "open_drawer", chain) for chain in range(60)]
    assert set(chosen) == set(lines)
    assert choose_instruction(lines, "open_drawer", None) == lines[0]


def test_instructions_of_ones_own_must_cover_every_task(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("".join(f"{task}: [please {task}]\n" for task in TASKS))
    assert read_instructions(str(file))["open_drawer"] == ["please open_drawer"]
    file.write_text("open_drawer: [please]\n")
    with pytest.raises(InputError, match="no instruction for rotate_red_block_right"):
        read_instructions(str(file))
    file.write_text("just words\n")
    with pytest.raises(InputError, match="no list of instructions"):
        read_instructions(str(file))
    with pytest.raises(InputError, match="unknown instructions 'wide'; known: train, validation, enriched"):
        read_instructions("wide")
