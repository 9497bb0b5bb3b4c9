"""The policy that comes with the package: small, loadable by name, and able to do something."""

import json

import numpy as np
import pytest

from vw2_robot.agent import CHECKPOINTS, VW2Agent, policy_folder
from vw2_robot.errors import InputError
from vw2_robot.finetune.pretrained_init import load_pretrained, policy_checkpoint
from vw2_robot.storage.files import sha256_of

NAME = "builtin:calvin-tiny"


@pytest.fixture(scope="module")
def agent():
    return VW2Agent.from_pretrained(NAME)


def test_all_built_in_policies_together_stay_small():
    files = [file for file in CHECKPOINTS.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 8e6
    assert not [file for file in files if file.suffix not in (".json", ".safetensors", ".md")]


def test_the_manifest_of_every_built_in_policy_is_fresh():
    for folder in CHECKPOINTS.iterdir():
        manifest = json.loads((folder / "manifest.json").read_text())["sha256"]
        assert manifest == {p.name: sha256_of(p) for p in folder.iterdir() if p.name != "manifest.json"}


def test_it_acts_on_a_image_of_any_size_and_is_deterministic(agent):
    image = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    for shown in (image, image[:120, :160]):
        observation = {"images": {"static": shown}, "prompt": "pull the handle to open the drawer"}
        agent.reset(observation["prompt"], seed=0)
        first = agent.infer(observation)["actions"]
        assert first.shape == (agent.metadata["chunk_size"], 7)
        assert np.abs(first).max() <= 1
        agent.reset(observation["prompt"], seed=0)
        np.testing.assert_array_equal(agent.infer(observation)["actions"], first)
    assert agent.metadata["label_fraction"] == 1.0


def test_the_instruction_decides_what_it_does(agent):
    image = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    answers = []
    for prompt in ("pull the handle to open the drawer", "go push the red block right"):
        agent.reset(prompt, seed=0)
        answers.append(agent.infer({"images": {"static": image}, "prompt": prompt})["actions"])
    assert np.abs(answers[0] - answers[1]).max() > 0.05


def test_every_program_that_begins_with_a_policy_takes_it_by_name():
    checkpoint = policy_checkpoint(NAME)
    assert checkpoint.path == CHECKPOINTS / "calvin-tiny"
    policy, dldm, facts = load_pretrained(NAME)
    assert (policy.config.queries, dldm.config.temporal_stride, facts["latent_hz"]) == (4, 4, [30.0])
    with pytest.raises(InputError, match="there is no built-in policy 'calvin-huge'; available: calvin-tiny"):
        policy_folder("builtin:calvin-huge")


@pytest.mark.slow
@pytest.mark.sim
def test_it_solves_most_of_some_single_tasks(agent):
    pytest.importorskip("pybullet")
    from vw2_robot.envs.benchmark import CalvinBenchmark
    from vw2_robot.rollouts.evaluate import evaluate

    benchmark = CalvinBenchmark(scene="D", max_steps=240)
    wanted = ("open_drawer", "close_drawer", "turn_on_led", "push_red_block_left", "lift_blue_block_table")
    chains = [chain for chain in benchmark.single_tasks(2) if chain.subtasks[0] in wanted]
    rows = evaluate(agent, benchmark, chains)
    benchmark.close()
    assert len(rows) == 10
    assert sum(row["solved"] for row in rows) >= 7, [(row["subtasks"], row["solved"]) for row in rows]
