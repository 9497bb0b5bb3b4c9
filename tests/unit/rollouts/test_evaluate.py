import numpy as np
import pytest

from vw2_robot.errors import InputError
from vw2_robot.rollouts.evaluate import evaluate, run_chain, subtask_seed, unfinished
from vw2_robot.rollouts.random_policy import RandomPolicy

# Chains of the counting world start at open, close, push, lift, turn in turn and go round.
FIRST_OF_CHAIN = ("open", "close", "push", "lift", "turn", "open")


def test_a_policy_that_can_everything_solves_five_of_five(benchmark, make_policy):
    rows = evaluate(make_policy(), benchmark, benchmark.sequences(6))
    assert [row["solved"] for row in rows] == [5] * 6
    assert rows[0]["env_steps"] == [3] * 5


def test_a_chain_counts_the_subtasks_before_the_first_failure(benchmark, make_policy):
    rows = evaluate(make_policy(knows=("open", "close", "lift", "turn")), benchmark, benchmark.sequences(6))
    assert [row["solved"] for row in rows] == [2, 1, 0, 4, 3, 2]  # how far "push" is from each chain's start
    assert [len(row["env_steps"]) for row in rows] == [3, 2, 1, 5, 4, 3]


def test_no_subtask_begins_after_a_failure(benchmark, make_policy):
    evaluate(make_policy(knows=("open",)), benchmark, benchmark.sequences(1))
    assert [value for name, value in benchmark.calls if name == "begin"] == ["open", "close"]


def test_a_failed_subtask_takes_exactly_the_step_limit(benchmark, make_policy):
    (row,) = evaluate(make_policy(knows=()), benchmark, benchmark.sequences(1))
    assert row["env_steps"] == [12]
    assert len(benchmark.actions) == 12


@pytest.mark.parametrize(("needed", "solved"), [(12, 1), (13, 0)])
def test_the_last_allowed_step_still_counts(make_benchmark, make_policy, needed, solved):
    world = make_benchmark(needed=dict.fromkeys(("open", "close", "push", "lift", "turn"), 99) | {"open": needed})
    (row,) = evaluate(make_policy(), world, world.sequences(1))
    assert row["solved"] == solved
    assert row["env_steps"][0] == 12


def test_the_world_is_reset_once_per_chain_and_the_policy_once_per_subtask(benchmark, make_policy):
    policy = make_policy()
    evaluate(policy, benchmark, benchmark.sequences(2))
    assert [value for name, value in benchmark.calls if name == "reset"] == [0, 1]
    prompts = [value[0] for name, value in policy.calls if name == "reset"]
    assert prompts[:5] == ["please open", "please close", "please push", "please lift", "please turn"]
    assert len(prompts) == 10


def test_the_oracle_starts_counting_before_the_first_observation_of_a_subtask(benchmark, make_policy):
    evaluate(make_policy(), benchmark, benchmark.sequences(1))
    names = [name for name, _ in benchmark.calls]
    assert names[:6] == ["reset", "begin", "observe", "step", "step", "step"]


@pytest.mark.parametrize("every", [1, 2, 3, 5, 8])
def test_the_policy_is_called_exactly_every_so_many_steps(make_benchmark, make_policy, every):
    world = make_benchmark(max_steps=11)
    policy = make_policy(knows=())
    evaluate(policy, world, world.sequences(1), n_action_steps=every)
    names = [name for name, _ in world.calls if name in ("observe", "step")]
    steps_before_call = [names[:i].count("step") for i, name in enumerate(names) if name == "observe"]
    assert steps_before_call == list(range(0, 11, every))
    assert sum(name == "infer" for name, _ in policy.calls) == len(steps_before_call)


def test_a_new_subtask_begins_with_a_new_policy_call(make_benchmark, make_policy):
    world = make_benchmark()
    policy = make_policy()
    evaluate(policy, world, world.sequences(1), n_action_steps=8)
    assert [value for name, value in policy.calls if name == "infer"] == [
        f"please {task}" for task in ("open", "close", "push", "lift", "turn")
    ]


def test_actions_are_executed_in_the_order_of_the_chunk(make_benchmark, make_policy):
    world = make_benchmark(max_steps=5)
    chunk = np.zeros((8, 7))
    chunk[:, 1] = np.arange(8) / 10
    evaluate(make_policy(chunk=chunk), world, world.sequences(1), n_action_steps=3)
    assert [action[1] for action in world.actions] == [0.0, 0.1, 0.2, 0.0, 0.1]


def test_rows_do_not_depend_on_the_order_or_company_of_chains(make_benchmark):
    def rows(order):
        world = make_benchmark(needed=dict.fromkeys(("open", "close", "push", "lift", "turn"), 7))
        chains = world.sequences(6)
        return {r["sequence"]: r for r in evaluate(RandomPolicy(), world, [chains[i] for i in order], seed=3)}

    forward = rows(range(6))
    assert rows(reversed(range(6))) == forward
    assert rows([4])[4] == forward[4]
    assert len({row["env_steps"][0] for row in forward.values()}) > 1  # chance really plays a part


def test_seeds_of_subtasks_differ_by_evaluation_chain_and_position():
    seeds = {subtask_seed(s, c, p) for s in range(4) for c in range(10) for p in range(5)}
    assert len(seeds) == 200


def test_the_policy_gets_the_seed_of_its_subtask(benchmark, make_policy):
    policy = make_policy()
    evaluate(policy, benchmark, benchmark.sequences(1), seed=7)
    assert [value[1] for name, value in policy.calls if name == "reset"] == [subtask_seed(7, 0, p) for p in range(5)]


def test_rows_arrive_as_soon_as_they_exist(benchmark, make_policy):
    seen = []

    def on_row(row):
        seen.append((row["sequence"], sum(name == "reset" for name, _ in benchmark.calls)))

    evaluate(make_policy(), benchmark, benchmark.sequences(3), on_row=on_row)
    assert seen == [(0, 1), (1, 2), (2, 3)]


def test_finished_chains_are_left_out_and_foreign_rows_refused(benchmark, make_policy):
    chains = benchmark.sequences(3)
    rows = evaluate(make_policy(), benchmark, chains[1:2])
    assert [chain.number for chain in unfinished(chains, rows)] == [0, 2]
    with pytest.raises(InputError, match="chain 1"):
        unfinished(chains, [{**rows[0], "subtasks": ["other"] * 5}])
    with pytest.raises(InputError, match="no such chain"):
        unfinished(chains[:1], rows)


def test_for_a_policy_without_cameras_no_image_is_rendered_unless_it_is_recorded(benchmark, make_policy):
    policy = make_policy()
    policy.metadata = {**policy.metadata, "cameras": []}
    (row,) = evaluate(policy, benchmark, benchmark.sequences(1))
    assert row["solved"] == 5
    assert "observe" not in [name for name, _ in benchmark.calls]
    callback = RolloutCallback()
    chain = benchmark.sequences(1)[0]
    run_chain(policy, benchmark, chain, n_action_steps=1, seed=0, callbacks=[callback])
    assert "observe" not in [name for name, _ in benchmark.calls]
    callback.needs_images = True
    run_chain(policy, benchmark, chain, n_action_steps=1, seed=0, callbacks=[callback])
    assert [name for name, _ in benchmark.calls].count("observe") == sum(row["env_steps"])
    assert [subtask for subtask, *_ in callback.seen] == 2 * [i for i in range(5) for _ in range(3)]
    assert callback.seen[-1][1]["images"]["static"].shape == (20, 20, 3)
    assert callback.seen[-1][2]["actions"].shape == (8, 7)


def test_a_row_has_the_instructions(benchmark, make_policy):
    (row,) = evaluate(make_policy(knows=("open",)), benchmark, benchmark.sequences(1))
    assert row["instructions"] == ["please open", "please close"]


class RolloutCallback:
    needs_images = False

    def __init__(self):
        self.seen = []

    def on_policy_call(self, *seen):
        self.seen.append(seen)
