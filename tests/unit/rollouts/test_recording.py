"""Recordings, and the policy that replays them."""

import numpy as np
import pytest

from vw2_robot.contracts import Policy
from vw2_robot.errors import InputError
from vw2_robot.rollouts.__main__ import rollout
from vw2_robot.rollouts.action_replay import ActionReplay
from vw2_robot.rollouts.recording import recording_path
from vw2_robot.rollouts.results import read_rows


@pytest.fixture
def recorded(config, tmp_path):
    rollout(config("first", policy="random", record=True, env={"max_steps": 9}))
    return tmp_path / "first"


def test_a_recording_holds_every_output_with_its_subtask(recorded):
    for row in read_rows(recorded / "results.jsonl"):
        with np.load(recording_path(recorded, row["sequence"])) as file:
            calls = [-(-steps // 4) for steps in row["env_steps"]]
            assert file["subtask"].tolist() == [i for i, count in enumerate(calls) for _ in range(count)]
            assert file["actions"].shape == (sum(calls), 4, 7)
            assert file["actions"].dtype == np.float32


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_replay_gives_the_rows_of_what_it_replays(config, recorded, tmp_path, workers):
    rollout(config("again", policy=str(recorded), record=True, workers=workers, env={"max_steps": 9}))
    assert (tmp_path / "again/results.jsonl").read_bytes() == (recorded / "results.jsonl").read_bytes()
    for file in (recorded / "actions").iterdir():
        assert (tmp_path / "again/actions" / file.name).read_bytes() == file.read_bytes()


def test_after_the_last_output_the_arm_is_still_and_the_gripper_stays(config, recorded):
    policy = ActionReplay(recorded)
    assert isinstance(policy, Policy)
    row = read_rows(recorded / "results.jsonl")[0]
    from vw2_robot.rollouts.evaluate import subtask_seed

    policy.reset(seed=subtask_seed(row["seed"], 0, 0))
    with np.load(recording_path(recorded, 0)) as file:
        mine = file["actions"][file["subtask"] == 0]
    for expected in mine:
        np.testing.assert_array_equal(policy.infer({})["actions"], expected)
    after = policy.infer({})["actions"]
    assert not after[:, :6].any()
    assert (after[:, 6] == mine[-1, -1, 6]).all()
    policy.reset(seed=subtask_seed(row["seed"], 0, 4))  # in the chain, but perhaps never reached
    assert policy.infer({})["actions"].shape == (4, 7)


def test_what_was_not_recorded_cannot_be_replayed(config, recorded, tmp_path):
    with pytest.raises(InputError, match="holds no actions for this chain and seed"):
        rollout(config("again", policy=str(recorded), seed=1, env={"max_steps": 9}))
    (tmp_path / "empty/actions").mkdir(parents=True)
    with pytest.raises(InputError, match="is no rollout with recorded actions"):
        rollout(config("none", policy=str(tmp_path / "empty")))
    recording_path(recorded, 2).unlink()
    with pytest.raises(InputError, match=r"chain_0002\.npz is missing"):
        rollout(config("more", policy=str(recorded), env={"max_steps": 9}))
