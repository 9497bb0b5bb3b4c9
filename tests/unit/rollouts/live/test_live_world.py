"""The live page's parts that touch simulator, policies and files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml

pytest.importorskip("pybullet", reason="PyBullet is not installed (extra calvin)")

from vw2_robot.agent import VW2Agent
from vw2_robot.envs.benchmark import CalvinBenchmark
from vw2_robot.envs.sequences import TASKS
from vw2_robot.errors import InputError
from vw2_robot.rollouts.evaluate import evaluate
from vw2_robot.rollouts.live.config import LiveConfig, LiveDataConfig
from vw2_robot.rollouts.live.control import Control
from vw2_robot.rollouts.live.expectation import Expectation
from vw2_robot.rollouts.live.library import open_library
from vw2_robot.rollouts.live.live import LiveOpener
from vw2_robot.rollouts.live.page import TASK_BUTTONS
from vw2_robot.rollouts.results import append_row

pytestmark = pytest.mark.sim
torch.set_num_threads(1)
ENV = {"_target_": "vw2_robot.envs.benchmark.CalvinBenchmark", "scene": "D"}


def run(control: Control) -> None:
    while control.stage.advance():
        pass


@pytest.fixture(scope="module")
def world():
    world = CalvinBenchmark().live_world()
    world.restart(None, 0)
    yield world
    world.close()


def test_parts_are_where_the_simulation_has_them_and_every_shape_belongs_to_one(world):
    parts, state = world.parts(), world.state()
    assert {shape.part for shape in world.shapes} == set(parts)
    assert all(shape.color[3] == 1 for shape in world.shapes)  # not the hidden ones of the layered renderer
    for i, block in enumerate(world.benchmark.env.scene_order):
        np.testing.assert_allclose(parts[world.blocks[block]][0], state["scene_obs"][6 + 6 * i : 9 + 6 * i], atol=1e-6)
    robot_base = parts["/body_0/link_-1"]
    np.testing.assert_allclose(robot_base[0], (-0.34, -0.46, 0.24), atol=1e-6)
    assert set(world.lights()) == set(world.light_parts) == {"lightbulb", "led"}
    assert (world.light_colors["led", True], world.light_colors["led", False]) == ((0, 255, 0), (255, 255, 255))


def test_a_start_is_that_of_an_evaluation_chain_or_one_in_which_the_task_can_be_done(world):
    world.restart(None, 3)
    scene_obs = world.state()["scene_obs"]
    world.benchmark.reset(world.benchmark.sequences(4)[3])
    np.testing.assert_array_equal(world.state()["scene_obs"], scene_obs)
    world.restart("close_drawer", 0)
    assert world.can_begin("close_drawer")
    assert not world.can_begin("open_drawer")
    assert (world.task_of("Pull the handle to open the drawer."), world.task_of("sing")) == ("open_drawer", None)
    assert world.task_of(world.nearest_wording("Please open the drawer!")) == "open_drawer"


def test_a_dragged_block_follows_until_it_is_released(world):
    world.restart(None, 0)
    block = world.benchmark.env.scene_order[1]
    begin = np.array(world.parts()[world.blocks[block]][0])
    target = begin + np.array([0.0, 0.0, 0.15])
    for _ in range(20):
        world.drag(block, tuple(target))
        world.hold()
    assert np.linalg.norm(np.array(world.parts()[world.blocks[block]][0]) - target) < 0.03
    world.release()
    for _ in range(30):
        world.hold()
    assert world.parts()[world.blocks[block]][0][2] < target[2] - 0.05  # it fell
    with pytest.raises(InputError, match="there is no block_green"):
        world.drag("block_green", (0.0, 0.0, 0.0))


def test_there_is_a_button_for_each_task():
    assert sorted(task for group in TASK_BUTTONS.values() for task in group.values()) == sorted(TASKS)


def test_the_demonstrator_solves_a_task_which_is_saved_and_played_again(tmp_path):
    pytest.importorskip("imageio_ffmpeg", reason="imageio-ffmpeg is not installed (extra report)")
    opener = LiveOpener(LiveConfig(env=ENV, out=str(tmp_path)))
    control = Control(opener, policy="demonstrator", scene="D", seed=0)
    control.ask_task("open_drawer")
    run(control)
    assert (control.view().mode, control.opened.note) == ("solved", "it has no latent tokens")
    control.save()
    control.ask_task("close_drawer")
    control.single_step()
    control.save()  # not solved: a video alone
    control.close()
    first, second = map(json.loads, (tmp_path / "episodes.jsonl").read_text().splitlines())
    assert (first["solved"], first["task"], second["solved"]) == (True, "open_drawer", False)
    assert {path.name for path in (tmp_path / "video").iterdir()} == {"episode_0000.mp4", "episode_0001.mp4"}

    # The videos can be played, too, as any data set without states.
    pytest.importorskip("av", reason="PyAV is not installed (extra video)")
    videos = open_library(tmp_path / "video", None, device="cpu")
    control = Control(opener, policy="random", scene="D", seed=0)
    view = videos.open(0, control.world).view()
    control.close()
    assert (len(videos), view.image.shape) == (2, (480, 384, 3))

    # The data set has the one solved task, and playing it shows the recorded states.
    played = LiveOpener(LiveConfig(env=ENV, data=LiveDataConfig(path=str(tmp_path / "calvin"))))
    assert len(played.library) == 1
    control = Control(played, policy="random", scene="D", seed=0)
    control.play(0)
    assert (control.view().mode, control.view().task) == ("running", "open_drawer")
    run(control)
    assert control.view().mode == "ended"
    assert control.world.state()["scene_obs"][1] > 0.1  # the drawer is open
    control.close()


def test_a_chain_of_a_rollout_goes_as_it_went(tmp_path):
    benchmark = CalvinBenchmark()
    chain = next(one for one in benchmark.single_tasks(1, seed=1) if one.subtasks == ("turn_on_led",))
    (row,) = evaluate(benchmark.expert(), benchmark, [chain], seed=7)
    benchmark.close()
    append_row(tmp_path / "results.jsonl", row)
    tree = {"policy": "demonstrator", "env": ENV, "run_dir": str(tmp_path), "protocol": "single", "seed": 7}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    opener = LiveOpener(LiveConfig(env=ENV, data=LiveDataConfig(path=str(tmp_path))))
    control = Control(opener, policy="random", scene="D", seed=0)
    control.play(0)
    run(control)
    assert control.view().env_step == row["env_steps"][0]
    assert (control.view().mode == "solved") == (row["solved"] == 1)
    assert "turn_on_led" in control.notice
    control.close()


def test_a_folder_without_episodes_is_refused(tmp_path):
    with pytest.raises(InputError):
        open_library(tmp_path, None, device="cpu")


def test_expected_frames_are_what_the_dldm_makes_of_the_tokens(tmp_path, save_tiny_policy):
    folder = save_tiny_policy(tmp_path, with_dldm=True)
    decoder = Expectation(str(folder), hz=30.0, device="cpu")
    image = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    agent = VW2Agent.from_pretrained(folder)
    tokens = agent.infer({"images": {"static": image}, "prompt": "open the drawer"})["latent_tokens"]
    frames = decoder.frames(image, tokens)
    assert (frames.shape, frames.dtype, list(decoder.offsets)) == ((5, 16, 16, 3), np.uint8, [0, 1, 2, 3, 4])
    assert (decoder.frames(image, (tokens + 100) % 1000) != frames).any()
    with pytest.raises(InputError, match="no dLDM"):
        Expectation(str(save_tiny_policy(tmp_path / "plain")), hz=30.0, device="cpu")
