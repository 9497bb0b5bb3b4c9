"""A robot that is not CALVIN's, from its data to a rollout: three numbers of action, a rate and a camera of its own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vw2_robot.agent import VW2Agent
from vw2_robot.contracts import ActionSpace, EvalSequence
from vw2_robot.data.calvin_writer import CalvinWriter
from vw2_robot.data.sources.calvin import CalvinDataset
from vw2_robot.data.sources.formats import open_source
from vw2_robot.data.sources.recorded_robot import CALVIN_ROBOT, ROBOT_FILE, RecordedRobot
from vw2_robot.errors import InputError
from vw2_robot.finetune.train_head import finetune
from vw2_robot.rollouts.evaluate import evaluate
from vw2_robot.rollouts.random_policy import RandomPolicy

LENGTH = 9
ROBOT = RecordedRobot("crane", 12.5, "top", ActionSpace(("slide", "lift", "magnet"), "1 is 1 m/s or the full current"))
HOOK = replace(ROBOT, action=ActionSpace(("gripper", "lift"), "1 is 1 m/s; gripper -1 closes, 1 opens"))


class Crane:
    """A benchmark of this robot: solved once the three numbers of an action came five times."""

    metadata: dict[str, Any] = {}  # noqa: RUF012
    max_steps = 8
    control_hz = ROBOT.hz
    action_space = ROBOT.action
    camera = ROBOT.camera

    def instruction(self, task: str) -> str:
        return "do 1"

    def reset(self, sequence: EvalSequence) -> None:
        self.taken = 0

    def begin(self, task: str) -> None:
        pass

    def observe(self) -> Any:
        return {"images": {self.camera: np.zeros((16, 16, 3), np.uint8)}, "prompt": "do 1"}

    def step(self, action: Any) -> bool:
        assert action.shape == (self.action_space.size,)
        assert np.abs(action).max() <= 1
        self.taken += 1
        return self.taken == 5


@pytest.fixture
def write_robot(tmp_path):
    def write(robot, *, scale=1.0):
        rng = np.random.default_rng(0)
        writer = CalvinWriter(
            tmp_path / robot.name, compress_level=0, required=("rgb_static", "commanded_actions"), robot=robot
        )
        for number in range(8):
            actions = scale * rng.uniform(-1, 1, (LENGTH, robot.action.size))
            if robot.action.gripper_index is not None:
                actions[:, robot.action.gripper_index] = np.where(np.arange(LENGTH) % 2, 1, -1)
            arrays = {"rgb_static": rng.integers(0, 255, (LENGTH, 8, 8, 3), np.uint8), "commanded_actions": actions}
            writer.write_episode(
                arrays, first_frame=100 * number, task=f"task_{number % 2}", instruction=f"do {number}", scene="unknown"
            )
        writer.finish()
        return tmp_path / robot.name

    return write


def gently(config):
    """Learn so slowly that no action is clipped to the ends of its range."""
    return replace(config, loop=replace(config.loop, optim=replace(config.loop.optim, lr=1e-5)))


def test_robot_from_its_data_to_a_rollout(write_robot, configure):
    data = write_robot(ROBOT)
    assert CalvinDataset(data).robot == ROBOT
    source = open_source(data)
    assert (source.name, next(source.read(0)).hz) == ("crane", 12.5)
    config = gently(configure(data, n_action_steps=4))
    finetune(config)
    agent = VW2Agent.from_pretrained(config.run_dir)
    told = {key: agent.metadata[key] for key in ("action_space", "cameras", "control_hz")}
    assert told == {"action_space": ["slide", "lift", "magnet"], "cameras": ["top"], "control_hz": 12.5}
    # No number of it is called gripper: none becomes a sign.
    actions = agent.infer(Crane().observe())["actions"]
    assert actions.shape == (4, 3)
    assert not np.isin(actions, (-1, 1)).any()
    with pytest.raises(InputError, match=r"\[\"top\"\] is missing; found \['static'\]"):
        agent.infer({"images": {"static": np.zeros((8, 8, 3), np.uint8)}, "prompt": "x"})
    validation = json.loads((Path(config.run_dir) / "validation.json").read_text())
    assert validation["gripper_accuracy"] is None
    (row,) = evaluate(agent, Crane(), [EvalSequence(0, {}, ("reach",))])
    assert (row["solved"], row["env_steps"]) == (1, [5])


def test_gripper_is_where_its_name_is(write_robot, configure):
    config = gently(configure(write_robot(HOOK), gripper_loss="bce", run="hook"))
    finetune(config)
    agent = VW2Agent.from_pretrained(config.run_dir)
    actions = agent.infer({"images": {"top": np.zeros((8, 8, 3), np.uint8)}, "prompt": "do 1"})["actions"]
    assert np.isin(actions[:, 0], (-1, 1)).all()
    assert not np.isin(actions[:, 1], (-1, 1)).any()


def test_policy_of_another_robot_is_refused_before_it_moves():
    random = RandomPolicy(names=ROBOT.action.names)
    assert random.infer({})["actions"].shape == (4, 3)
    with pytest.raises(InputError, match=r"actions of 7 numbers \(dx, .*\), the environment takes 3 \(slide, lift"):
        evaluate(RandomPolicy(), Crane(), [EvalSequence(0, {}, ("reach",))])


def test_what_a_robot_does_not_have_is_refused(write_robot, configure):
    data = write_robot(ROBOT)
    with pytest.raises(InputError, match=r"gripper_loss=bce.* no gripper with two commands"):
        finetune(configure(data, gripper_loss="bce"))
    posed = configure(data, run="posed")
    with pytest.raises(InputError, match=r"holds no robot_obs, which aids\.pose_weight needs"):
        finetune(replace(posed, aids=replace(posed.aids, pose_weight=0.1)))
    with pytest.raises(InputError, match=r"slide is .* state the unit in robot\.json \(now: 1 is 1 m/s"):
        finetune(configure(write_robot(replace(ROBOT, name="fast"), scale=3.0), run="fast"))


def test_description_of_a_robot_is_read_strictly_and_calvins_is_not_written(write_robot):
    data = write_robot(ROBOT)
    for damage, message in (('{"hz": 0}', "a positive number"), ('{"speed": 1}', "no key speed"), ("x", "damaged")):
        (data / ROBOT_FILE).write_text(damage)
        with pytest.raises(InputError, match=message):
            CalvinDataset(data)
    assert not (write_robot(replace(CALVIN_ROBOT, name="calvin")) / ROBOT_FILE).exists()
