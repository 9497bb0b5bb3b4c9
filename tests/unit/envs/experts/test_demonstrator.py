"""The scripted expert solves its tasks by the oracle's criterion, from seeded starts, and always in the same way."""

import dataclasses
import math

import numpy as np
import pytest

pytest.importorskip("pybullet")

from vw2_robot.contracts import Policy
from vw2_robot.envs.benchmark import CalvinBenchmark
from vw2_robot.envs.calvin import CalvinEnv
from vw2_robot.envs.experts.demonstrator import SKILLS, Demonstrator, feasible, observe_world
from vw2_robot.envs.experts.motion import LEAD_M, EndEffector, Style, vector, wrist_yaw
from vw2_robot.envs.experts.start_states import TASK_GROUPS, go_to_start, scatter_blocks
from vw2_robot.envs.oracle import TaskOracle
from vw2_robot.envs.sequences import TASKS, all_initial_states, start_state
from vw2_robot.errors import InputError

pytestmark = pytest.mark.sim

STARTS = 2
STEPS = 200


@pytest.fixture(scope="module")
def env():
    made = CalvinEnv(scene="D", cameras=())
    yield made
    made.close()


def demonstrate(env, task, seed):
    """Steps until the oracle confirms the task (0: never), and the actions."""
    oracle = TaskOracle()
    rng = np.random.default_rng([seed, sorted(SKILLS).index(task)])
    go_to_start(env, task, oracle, rng)
    expert = Demonstrator()
    expert.start(task, env, rng)
    start = env.task_info()
    actions = []
    for step in range(1, STEPS + 1):
        actions.append(expert.act(env))
        env.step_physics(actions[-1])
        if oracle.get_task_info_for_set(start, env.task_info(), (task,)):
            return step, np.array(actions)
    return 0, np.array(actions)


def test_there_is_a_skill_for_each_task_of_the_benchmark():
    assert set(SKILLS) == set(TASKS)


@pytest.mark.parametrize("task", SKILLS)
def test_expert_solves_the_task_from_seeded_starts(env, task):
    runs = [demonstrate(env, task, seed) for seed in range(STARTS)]
    assert all(steps > 0 for steps, _ in runs), [steps for steps, _ in runs]
    actions = np.concatenate([actions for _, actions in runs])
    assert np.abs(actions[:, :6]).max() <= 1.0
    assert set(np.unique(actions[:, 6])) <= {-1.0, 1.0}


def test_equal_seeds_give_equal_actions_and_others_do_not(env):
    _, first = demonstrate(env, "open_drawer", 0)
    _, again = demonstrate(env, "open_drawer", 0)
    _, other = demonstrate(env, "open_drawer", 1)
    np.testing.assert_array_equal(first, again)
    assert first.shape != other.shape or not np.array_equal(first, other)


def test_the_target_never_runs_far_ahead_of_a_blocked_arm(env):
    robot_obs, scene_obs = start_state(all_initial_states()[0])
    env.reset_physics(robot_obs=robot_obs, scene_obs=scene_obs)
    expert = Demonstrator()
    expert.start("open_drawer", env, np.random.default_rng(0))
    env.step_physics(expert.act(env))
    expert._end_effector.style = type(expert._end_effector.style)(speed=1.0, tremor=0.0, detour_m=0.0)
    expert._motion = expert._end_effector.move_to((0.1, -0.1, 0.2))  # into the table top
    leads = []
    for _ in range(60):
        env.step_physics(expert.act(env))
        world = observe_world(env)
        leads.append(np.linalg.norm(world.target - world.tcp))
    assert world.tcp[2] > 0.3
    assert LEAD_M / 2 < max(leads) < LEAD_M + 0.02


def test_a_command_follows_what_an_image_shows_and_not_the_stored_target(env):
    env.reset_physics()
    world = observe_world(env)
    goal, angles = world.tcp + vector(0.05, -0.03, 0.02), np.array([math.pi, 0.0, world.target_euler[2] + 0.1])
    style = Style(speed=1.0, tremor=0.0, detour_m=0.0)
    ahead = dataclasses.replace(
        world, target=world.tcp + vector(0.03, 0.0, -0.02), target_euler=world.target_euler + 0.02
    )

    def command(seen):
        return EndEffector(seen, np.random.default_rng(0), style)._toward(goal, angles, 1.0)

    np.testing.assert_allclose(command(ahead), command(world), atol=1e-9)
    runaway = dataclasses.replace(world, target=world.tcp + vector(LEAD_M, 0.0, 0.0))
    assert command(runaway)[0] <= 0.0 < command(world)[0]


def test_feasibility_follows_doors_and_lights(env):
    states = all_initial_states()
    state = next(
        s for s in states if s["drawer"] == "closed" and s["slider"] == "left" and s["lightbulb"] and not s["led"]
    )
    robot_obs, scene_obs = start_state(state)
    env.reset_physics(robot_obs=robot_obs, scene_obs=scene_obs)
    env.step_physics(np.zeros(7))
    world = observe_world(env)
    wanted = {"open_drawer", "move_slider_right", "turn_off_lightbulb", "turn_on_led"}
    assert {task for task in TASK_GROUPS["furniture"] if feasible(task, world)} == wanted
    assert not any(feasible(task, world) for task in ("place_in_slider", "stack_block", "unstack_block"))


@pytest.fixture
def crowded(env):
    """Red and pink side by side on the table, as a push leaves them; there the gripper cannot straddle either."""
    state = next(s for s in all_initial_states() if s["red_block"] == s["pink_block"] == "table")
    robot_obs, scene_obs = start_state(state)
    blocks = scene_obs[6:].reshape(3, 6)
    blocks[0, [0, 1, 5]] = 0.15, -0.12, math.pi / 2
    blocks[2, [0, 1, 5]] = 0.21, -0.12, math.pi / 2
    env.reset_physics(robot_obs=robot_obs, scene_obs=scene_obs)
    for _ in range(10):
        env.step_physics(np.array([0, 0, 0, 0, 0, 0, 1.0]))
    return env


@pytest.mark.parametrize("task", ["lift_red_block_table", "lift_pink_block_table", "rotate_pink_block_left"])
def test_a_block_beside_another_is_taken_after_making_room(crowded, task):
    world = observe_world(crowded)
    assert feasible(task, world)
    assert not feasible("push_red_block_left", world)
    start, oracle, expert = crowded.task_info(), TaskOracle(), Demonstrator()
    expert.start(task, crowded, np.random.default_rng(0))
    for _ in range(STEPS):
        crowded.step_physics(expert.act(crowded))
        if oracle.get_task_info_for_set(start, crowded.task_info(), (task,)):
            return
    pytest.fail(f"{task} was not solved in {STEPS} steps")


def test_a_block_under_another_is_not_lifted(crowded):
    world = observe_world(crowded)
    red, pink = world.blocks["red"], world.blocks["pink"]
    upper = dataclasses.replace(pink, position=red.position + vector(0.01, 0.0, 0.04))
    stack = dataclasses.replace(world, blocks=world.blocks | {"pink": upper})
    assert not feasible("lift_red_block_table", stack)
    assert not feasible("rotate_red_block_right", stack)
    held = dataclasses.replace(pink, position=red.position + vector(0.01, 0.0, 0.1), touches=frozenset({("robot", "")}))
    in_gripper = dataclasses.replace(world, blocks=world.blocks | {"pink": held}, tcp=held.position)
    assert feasible("stack_block", in_gripper)  # over the block it is to go on


def test_a_held_block_cannot_be_pushed_into_the_drawer(env):
    state = next(s for s in all_initial_states() if TASKS["push_into_drawer"].apply(s) is not None)
    robot_obs, scene_obs = start_state(state)
    env.reset_physics(robot_obs=robot_obs, scene_obs=scene_obs)
    world = observe_world(env)
    assert feasible("push_into_drawer", world)
    touched = {
        color: dataclasses.replace(block, touches=block.touches | {("robot", "")})
        for color, block in world.blocks.items()
    }
    assert not feasible("push_into_drawer", dataclasses.replace(world, blocks=touched))


def test_a_block_that_does_not_stand_before_the_drawer_is_carried_there(env):
    state = next(
        s for s in all_initial_states()
        if s["drawer"] == "open" and s["red_block"] == "table" and "table" not in (s["blue_block"], s["pink_block"])
    )  # fmt: skip
    robot_obs, scene_obs = start_state(state)
    scene_obs[6:8] = 0.38, -0.12  # where a push to the right ends
    env.reset_physics(robot_obs=robot_obs, scene_obs=scene_obs)
    env.step_physics(np.array([0, 0, 0, 0, 0, 0, 1.0]))
    world = observe_world(env)
    assert feasible("push_into_drawer", world)
    assert not feasible("push_into_drawer", dataclasses.replace(world, drawer=0.0))
    assert not feasible("push_red_block_right", world)
    start, oracle, expert = env.task_info(), TaskOracle(), Demonstrator()
    expert.start("push_into_drawer", env, np.random.default_rng(1))
    for _ in range(STEPS):
        env.step_physics(expert.act(env))
        if oracle.get_task_info_for_set(start, env.task_info(), ("push_into_drawer",)):
            return
    pytest.fail(f"push_into_drawer was not solved in {STEPS} steps")


def test_scattered_blocks_stay_apart_and_only_those_on_the_table_move():
    state = next(s for s in all_initial_states() if s["red_block"] == "slider_left" and s["pink_block"] == "table")
    _, before = start_state(state)
    for seed in range(20):
        after = before.copy()
        scatter_blocks(after, "D", np.random.default_rng(seed))
        moved = after[6:].reshape(3, 6), before[6:].reshape(3, 6)
        np.testing.assert_array_equal(moved[0][0], moved[1][0])  # red stands on the shelf
        assert np.linalg.norm(moved[0][1, :2] - moved[0][2, :2]) > 0.12
        assert not np.array_equal(moved[0][2], moved[1][2])
        np.testing.assert_array_equal(after[:6], before[:6])


@pytest.mark.parametrize("yaw", [-20.0, -4.78, 0.0, 1.5, 4.9, 7.0])
def test_wrist_yaw_is_the_same_heading_within_reach(yaw):
    same = wrist_yaw(yaw)
    assert -1.1 <= same <= 5.2
    assert np.isclose(np.cos(same - yaw), 1.0)


def test_expert_policy_follows_the_contract_and_solves_a_subtask():
    benchmark = CalvinBenchmark()
    policy = benchmark.expert()
    assert isinstance(policy, Policy)
    assert policy.metadata["chunk_size"] == policy.metadata["n_action_steps"] == 1
    benchmark.reset(benchmark.sequences(2)[1])
    benchmark.begin("turn_off_led")
    policy.reset(benchmark.instruction("turn_off_led"), seed=0)
    solved = [benchmark.step(policy.infer({"images": {}})["actions"][0]) for _ in range(30)]
    assert any(solved)
    with pytest.raises(InputError, match="batch of 2"):
        policy.infer_batch([{}, {}])
    policy.reset("make coffee")
    with pytest.raises(InputError, match="make coffee"):
        policy.infer({})
    benchmark.close()
