"""Blocks on the shelf, from wherever the previous task left the gripper: around the door's knob, not through it."""

import pytest

pytest.importorskip("pybullet")

from vw2_robot.envs.benchmark import CalvinBenchmark
from vw2_robot.envs.sequences import EvalSequence

STATE = {
    "led": 0, "lightbulb": 1, "slider": "right", "drawer": "open", "red_block": "slider_left",
    "blue_block": "slider_right", "pink_block": "table", "grasped": 0,
}  # fmt: skip
STEPS = 150


@pytest.fixture(scope="module")
def benchmark():
    made = CalvinBenchmark(scene="D", max_steps=STEPS)
    yield made
    made.close()


@pytest.mark.parametrize("before", ["turn_off_lightbulb", "turn_on_led", "push_pink_block_right"])
def test_a_gripper_from_the_right_goes_around_the_knob_to_a_block_on_the_left(benchmark, before):
    expert, tasks = benchmark.expert(), (before, "lift_red_block_slider")
    benchmark.reset(EvalSequence(0, STATE, tasks))
    for task in tasks:
        benchmark.begin(task)
        expert.reset(benchmark.instruction(task), seed=0)
        door, moved, steps, done = float(benchmark._world.scene_obs()[0]), 0.0, 0, False
        while not done and steps < STEPS:
            done = benchmark.step(expert.infer({"prompt": benchmark.instruction(task)})["actions"][0])
            moved = max(moved, abs(float(benchmark._world.scene_obs()[0]) - door))
            steps += 1
        assert done, task
    assert moved < 0.005
    assert steps < 100
