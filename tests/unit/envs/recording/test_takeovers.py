"""vw2-record policy=: the policy begins a task, the expert takes over, and only the expert's part is labeled."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("pybullet")

from vw2_robot.data.sources.calvin import CalvinDataset
from vw2_robot.envs.calvin import CalvinEnv
from vw2_robot.envs.instructions import load_instructions
from vw2_robot.envs.recording import record as program
from vw2_robot.envs.recording.config import CALVIN_TARGET, RecordConfig
from vw2_robot.envs.recording.demonstrations import Recorder
from vw2_robot.envs.recording.record import record
from vw2_robot.envs.recording.takeovers import Takeovers, open_policy
from vw2_robot.errors import InputError

pytestmark = pytest.mark.sim

POLICY = "builtin:calvin-tiny"
STEPS = 4


def config(out, **changes):
    given = {"policy": POLICY, "policy_share": 1.0, "policy_steps": (STEPS, STEPS), "tasks": ["open_drawer"], **changes}
    return RecordConfig(str(out), {"_target_": CALVIN_TARGET, "scene": "D"}, episodes=2, **given)


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def policy():
    return open_policy(POLICY)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    out = tmp_path_factory.mktemp("takeovers") / "calvin"
    record(config(out))
    return out


@pytest.fixture
def env():
    made = CalvinEnv(cameras=(), reset_mode="exact")
    yield made
    made.close()


def test_the_label_begins_where_the_expert_takes_over_and_the_policy_acted_on_its_instruction(recorded, policy):
    dataset = CalvinDataset(recorded, trajectories="recordings")
    recording, other = dataset.trajectories
    window, _ = CalvinDataset(recorded).trajectories
    assert (window.start, window.end, window.way) == (recording.start + STEPS, recording.end, "takeover")
    assert other.start > recording.end
    actions = dataset.read_actions(recording)
    policy.reset()
    for image, action in zip(dataset.read_images(recording)[:STEPS], actions[:STEPS], strict=True):
        wanted = policy.action({"images": {"static": image}, "prompt": window.instruction})
        np.testing.assert_array_equal(action, wanted)
    assert not np.array_equal(actions[STEPS], policy.action({"images": {"static": image}, "prompt": "open the drawer"}))
    assert torch.get_num_threads() == 1


def test_it_continues_with_the_same_bytes_and_only_with_the_same_policy(recorded, policy, tmp_path, monkeypatch):
    out = tmp_path / "calvin"
    kept = program.RecordingWorker.record

    def stop_after_one(self, split, number):
        if number == 1:
            raise KeyboardInterrupt
        kept(self, split, number)

    monkeypatch.setattr(program.RecordingWorker, "record", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        record(config(out))
    monkeypatch.undo()
    note = out.with_name("calvin.record.json")
    stored = json.loads(note.read_text())
    with pytest.raises(InputError, match="policy_hash"):
        record(config(out, policy=None, policy_share=0.5, policy_steps=(8, 96)))
    record(config(out))
    assert tree(out) == tree(recorded)
    assert policy.policy.metadata["policy_hash"] in json.dumps(stored)
    assert POLICY not in json.dumps(stored)  # a folder that was moved is still the same policy


def test_what_the_policy_solves_is_no_demonstration(env, policy):
    recorder = Recorder(play=2, takeovers=Takeovers(policy, 1.0, (96, 96)))
    made = recorder.record(env, "turn_on_led", seed=(0, 0, 0), pool=("turn_on_led", "turn_off_led"))
    assert [label.task for label in made.labels] in ([], ["turn_off_led"])
    lit = made.arrays["scene_obs"][:, 5]  # the light of the button
    assert (lit[0], lit.max()) == (0.0, 1.0)
    assert all(label.instruction in load_instructions("train")[label.task] for label in made.labels)


def test_a_share_of_the_tasks_is_begun_by_the_policy_and_the_way_names_both(env, policy):
    recorder = Recorder(play=3, ways="several", takeovers=Takeovers(policy, 0.5, (STEPS, STEPS)))
    pool = ("turn_on_led", "turn_off_led", "open_drawer", "close_drawer")
    made = [recorder.record(env, "open_drawer", seed=(1, 0, number), pool=pool) for number in range(2)]
    ends = {label.way.rsplit(", ")[-1] for one in made for label in one.labels}
    assert ends == {"takeover", "expert"}
    assert all(len(label.way.split(", ")) == 3 for one in made for label in one.labels)


def test_what_cannot_work_is_refused():
    with pytest.raises(ValueError, match="give policy="):
        config("x", policy=None)
    for wrong in ({"policy_share": 0.0}, {"policy_share": 1.1}, {"policy_steps": (0, 8)}, {"policy_steps": (9, 8)}):
        with pytest.raises(ValueError, match="policy_share="):
            config("x", **wrong)
    # The policy's steps have room between the frame numbers of two recordings.
    assert config("x", play=4, policy_steps=(8, 96)).spacing == 1024 > config("x", play=2).spacing
