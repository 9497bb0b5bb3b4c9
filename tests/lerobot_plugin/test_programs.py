"""LeRobot's own programs with the plugin, by the commands of docs/integrations/lerobot.md, and both ways to find it."""

import importlib.metadata
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("lerobot_policy_vw2", reason="needs LeRobot on Python 3.12: make test-lerobot")
pytest.importorskip("pybullet", reason="needs the extra calvin: make test-lerobot")

import av
from lerobot.robots import Robot, RobotConfig

from vw2_robot import VW2Agent
from vw2_robot.contracts import ACTION_NAMES
from vw2_robot.envs.sequences import TASKS

pytestmark = pytest.mark.sim
ROOT = Path(__file__).resolve().parents[2]
TASK = "open the drawer"
IMAGE = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)


def decoded(path):
    with av.open(str(path)) as video:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])


def blocks(language):
    """Blocks of the page in a language; "" has its commands."""
    page = (ROOT / "docs" / "integrations" / "lerobot.md").read_text()
    found = re.findall(r"^```(\w*)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    return [block for name, block in found if name == language]


def commands():
    """The page's commands, without the variables before them."""
    lines = [shlex.split(line) for block in blocks("") for line in block.splitlines()]
    return [[part for part in line if not part.startswith("PYTHONPATH=")] for line in lines]


def command_with(*parts):
    """The one command of the page that has all of these arguments."""
    (found,) = (line for line in commands() if set(parts) <= set(line))
    return found


def test_every_command_of_the_page_is_run_here():
    ran = [EVALUATE, NAMED, TRAIN, SCRATCH, SERVE]
    others = [line for line in commands() if line[0] != "pip" and line[0] != "vw2-export"]
    assert sorted(others) == sorted(command_with(*parts) for parts in ran)
    assert ["vw2-export", "policy=runs/first/finetune", "out=runs/first/policy"] in commands()  # tests/unit/hub


EVALUATE = ("lerobot-eval", "--seed=0")
NAMED = ("lerobot-eval", "--env.discover_packages_path=lerobot_policy_vw2")
TRAIN = ("lerobot-train", "--policy.path=runs/first/policy")
SCRATCH = ("lerobot-train", "--policy.type=vw2")
SERVE = ("python", "-m", "lerobot_policy_vw2.policy_server")
FEW = ("--policy.device=cpu", "--batch_size=4", "--num_workers=0", "--log_freq=1")


@pytest.fixture
def place(tmp_path, exported, dataset):
    """A folder with what the commands of the page read."""
    shutil.copytree(exported, tmp_path / "runs" / "first" / "policy")
    shutil.copytree(dataset, tmp_path / "data" / "drawers")
    return tmp_path


def test_the_installed_distribution_has_the_name_that_lerobot_looks_for(installed):
    (found,) = importlib.metadata.distributions(path=[str(installed)])
    assert found.metadata["Name"] == "lerobot_policy_vw2"


def test_an_installed_plugin_is_found_and_evaluates_two_tasks(installed, lerobot, place):
    log = lerobot(*command_with(*EVALUATE), "--policy.device=cpu", site=installed)
    assert "Could not import" not in log
    info = json.loads((place / "runs/first/lerobot/eval_info.json").read_text())
    assert [(one["task_group"], one["task_id"]) for one in info["per_task"]] == [
        ("calvin", list(TASKS).index(task)) for task in ("open_drawer", "turn_off_led")
    ]
    assert info["overall"]["pc_success"] == 100.0
    for one in info["per_task"]:
        (video,) = one["metrics"]["video_paths"]
        frames = decoded(place / video)
        assert frames.shape[1:] == (200, 200, 3)
        assert 10 < len(frames) <= 361


def test_a_plugin_on_the_path_is_named_and_writes_what_the_policy_expects(decoding, lerobot, place):
    # The package alone, without the metadata of a distribution.
    shutil.copytree(ROOT / "integrations" / "lerobot" / "lerobot_policy_vw2", place / "site" / "lerobot_policy_vw2")
    shutil.rmtree(place / "runs/first/policy")
    shutil.copytree(decoding(acting="expected"), place / "runs/first/policy")
    lerobot(*command_with(*NAMED), "--policy.device=cpu", "--env.episode_length=7", site=place / "site")
    (videos,) = (place / "runs/first/expected/videos").iterdir()
    # Two episodes side by side; three policy calls of three actions each.
    assert decoded(videos / "pred_episode_0.mp4").shape == (9, 16, 32, 3)
    assert decoded(videos / "eval_episode_1.mp4").shape == (7, 200, 200, 3)


def test_the_head_is_fine_tuned_and_the_result_is_a_policy_of_ours(installed, exported, lerobot, place, monkeypatch):
    lerobot(*command_with(*TRAIN), *FEW, "--steps=10", site=installed)
    folder = place / "runs/first/head/checkpoints/last/pretrained_model"
    monkeypatch.chdir(place)
    names = {}
    exec("".join(blocks("python")), names)
    after, before = names["agent"], VW2Agent.from_pretrained(exported)
    assert (place / "runs/first/head/policy/README.md").is_file()
    assert after.metadata["control_hz"] == 10.0
    assert after.metadata["policy_hash"] != before.metadata["policy_hash"]
    kept, trained = (one.modules[0].state_dict() for one in (before, after))
    assert all(value.equal(trained[name]) for name, value in kept.items())
    assert after.dldm().config == before.dldm().config
    assert np.abs(after.statistics.q99[:6]).max() < 0.51 < np.abs(before.statistics.q99[:6]).max()
    # LeRobot goes on with what it saved: the same actions through its pipelines.
    from lerobot.policies import get_policy_class, make_pre_post_processors

    policy = get_policy_class("vw2").from_pretrained(folder)
    given, limited = make_pre_post_processors(policy.config, pretrained_path=str(folder))
    image = torch.from_numpy(IMAGE).permute(2, 0, 1)[None] / 255
    chunk = limited(policy.predict_action_chunk(given({"observation.images.static": image, "task": [TASK]})))
    wanted = after.infer({"images": {"static": IMAGE}, "prompt": TASK})["actions"]
    np.testing.assert_allclose(chunk[0].numpy(), wanted, rtol=0, atol=1e-6)


def test_a_policy_from_scratch_trains_and_resumes(installed, lerobot, place):
    lerobot(*command_with(*SCRATCH), *FEW, "--steps=2", site=installed)
    last = place / "runs/first/scratch/checkpoints/last/pretrained_model"
    first = VW2Agent.from_pretrained(last)
    lerobot("lerobot-train", f"--config_path={last}/train_config.json", "--resume=true", "--steps=3", site=installed)
    second = VW2Agent.from_pretrained(last)  # `last` is another folder now
    assert second.metadata["policy_hash"] != first.metadata["policy_hash"]
    np.testing.assert_array_equal(second.statistics.q99, first.statistics.q99)


@RobotConfig.register_subclass("vw2_mock_arm")
@dataclass
class MockArmConfig(RobotConfig):
    """A robot without hardware."""


class MockArm(Robot):
    """Shows one image, and keeps the actions that it gets."""

    config_class = MockArmConfig
    name = "vw2_mock_arm"
    is_connected = is_calibrated = True
    action_features = dict.fromkeys(ACTION_NAMES, float)

    @property
    def observation_features(self):
        return {"height": float, "static": IMAGE.shape}

    @cached_property
    def performed(self):
        return []

    def get_observation(self):
        return {"height": 0.5, "static": IMAGE}

    def send_action(self, action):
        self.performed.append([action[name] for name in ACTION_NAMES])
        return action

    def connect(self, calibrate=True):
        pass

    def disconnect(self):
        pass

    def calibrate(self):
        pass

    def configure(self):
        pass


@pytest.fixture
def policy_server(installed, tmp_path):
    """Address of LeRobot's asynchronous server with the plugin, in a process of its own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, *command_with(*SERVE)[1:], f"--port={port}"]
    environment = os.environ | {"PYTHONPATH": f"{installed}{os.pathsep}{ROOT}", "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(command, env=environment, cwd=tmp_path) as server:
        deadline = time.monotonic() + 300
        while server.poll() is None and time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.2)
        yield f"127.0.0.1:{port}"
        server.terminate()


def test_the_asynchronous_server_moves_a_robot(policy_server, exported, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # LeRobot writes its logs where it is imported
    from lerobot.async_inference import robot_client
    from lerobot.async_inference.configs import RobotClientConfig

    # LeRobot looks for a robot's class in a package of its own name; this one has none.
    monkeypatch.setattr(robot_client, "make_robot_from_config", MockArm)
    client = robot_client.RobotClient(
        RobotClientConfig(
            policy_type="vw2",
            pretrained_name_or_path=str(exported),
            robot=MockArmConfig(calibration_dir=tmp_path / "calibration"),
            actions_per_chunk=4,
            task=TASK,
            server_address=policy_server,
            aggregate_fn_name="latest_only",
        )
    )
    assert client.start()
    threads = [
        threading.Thread(target=client.receive_actions, daemon=True),
        threading.Thread(target=client.control_loop, args=(TASK,), daemon=True),
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 300
    while len(client.robot.performed) < 10 and time.monotonic() < deadline:
        time.sleep(0.05)
    client.stop()
    for thread in threads:
        thread.join(timeout=10)
    performed = np.array(client.robot.performed)
    chunk = VW2Agent.from_pretrained(exported).infer({"images": {"static": IMAGE}, "prompt": TASK})["actions"]
    assert len(performed) >= 10
    np.testing.assert_allclose(performed[:4], chunk, rtol=0, atol=1e-6)
    # Later chunks begin at the step whose observation they were made from; the image is the same.
    distance = np.abs(performed[:, None] - chunk).max(-1).min(-1)
    assert distance.max() < 1e-6
