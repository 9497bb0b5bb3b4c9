import json
import shutil
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

from vw2_robot.agent import VW2Agent
from vw2_robot.checkpoint import save_checkpoint, weights_digest
from vw2_robot.command_line.config_tree import config_tree
from vw2_robot.contracts import ACTION_NAMES, Policy
from vw2_robot.data.statistics import ActionStatistics
from vw2_robot.errors import InputError
from vw2_robot.models.dldm.config import DLDMConfig, LevelConfig, StemConfig
from vw2_robot.models.policy.acting import act
from vw2_robot.models.policy.action_head import ActionHead
from vw2_robot.models.policy.ar_policy import LatentPolicy
from vw2_robot.models.policy.config import Acting, ActionHeadConfig, BackboneConfig, PolicyConfig
from vw2_robot.pixels import to_model_range
from vw2_robot.storage.files import write_manifest

torch.set_num_threads(1)
POLICY = PolicyConfig(
    backbone=BackboneConfig(hidden=32, ffn=48, layers=2, heads=4, kv_heads=2), image_px=16, image_widths=(8, 16, 16)
)
DLDM = DLDMConfig(  # a temporal stride of 2 (stem) x 2 (level) = 4
    num_frames=5,
    height=16,
    width=16,
    stem=StemConfig("pixel", 2, 4, 1),
    levels=(LevelConfig(8, 1, downsample_time=True),),
)


def labels():
    rng = np.random.default_rng(0)
    actions = np.clip(rng.normal(0, 0.3, (400, 7)), -1, 1)
    actions[:, 6] = rng.choice((-1.0, 1.0), 400)
    return ActionStatistics.from_actions(actions)


def save_policy(folder, *, steps=2, head=True, **settings):
    torch.manual_seed(0)
    policy = LatentPolicy(POLICY, generator=torch.Generator().manual_seed(0))
    modules = {"policy": policy}
    config = {"policy": config_tree(POLICY), "dldm": config_tree(DLDM), "head": None}
    files = {"tokens": policy.backbone.vocabulary.to_json()}
    if head:
        modules["head"] = ActionHead(ActionHeadConfig(16), width=32, queries=4, stride=4, action_size=7)
        config |= {
            "head": config_tree(ActionHeadConfig(16)),
            "acting": "argmax",
            "latent_steps": steps,
            "n_action_steps": 3,
            **settings,
        }
        files["stats"] = {"calvin": labels().to_json()}
    save_checkpoint(
        folder,
        kind="policy",
        config=config,
        modules=modules,
        facts={"control_hz": 30.0, "label_fraction": 0.1},
        files=files,
    )
    return modules


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("policy") / "step_1"
    save_policy(path)
    return path


@pytest.fixture
def agent(folder):
    return VW2Agent.from_pretrained(folder)


def observation(seed=0, size=(40, 60), **change):
    image = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return {"images": {"static": image}, "prompt": "open the drawer", **change}


def test_an_agent_is_a_policy_and_says_what_it_is(agent, folder):
    modules = save_policy(folder.parent / "again")
    assert isinstance(agent, Policy)
    expected = {
        "action_space": list(ACTION_NAMES),
        "chunk_size": 8,
        "n_action_steps": 3,
        "cameras": ["static"],
        "control_hz": 30.0,
        "label_fraction": 0.1,
        "policy_hash": weights_digest(modules["policy"], modules["head"]),
    }
    assert {key: agent.metadata[key] for key in expected} == expected


def test_actions_are_float32_in_robot_units(agent):
    out = agent.infer(observation())
    assert out["actions"].shape == (8, 7)
    assert out["actions"].dtype == np.float32
    assert np.abs(out["actions"]).max() <= 1
    assert set(np.unique(out["actions"][:, 6])) <= {-1.0, 1.0}
    assert out["latent_tokens"].shape == (2, 4)
    assert out["latent_tokens"].dtype == np.int64
    assert out["timing"]["infer_s"] > out["timing"]["prepare_s"] > 0


@pytest.mark.parametrize(("raw", "arm", "gripper"), [(50.0, 1.0, 1.0), (-50.0, -1.0, -1.0), (0.0, None, -1.0)])
def test_arms_are_clipped_to_the_action_space_and_the_gripper_is_a_sign(agent, raw, arm, gripper):
    with torch.no_grad():
        for parameter in agent._head.mlp[-1].parameters():
            parameter.zero_()
        agent._head.mlp[-1].bias.fill_(raw)
    actions = agent.infer(observation())["actions"]
    assert (actions[:, 6] == gripper).all()
    if arm is None:  # the middle of what was seen in the labels
        statistics = labels()
        middle = (statistics.q01 + statistics.q99) / 2
        np.testing.assert_allclose(actions[:, :6], np.broadcast_to(middle[:6], (8, 6)), atol=1e-6)
    else:
        assert (actions[:, :6] == arm).all()


def test_predictions_are_returned_in_the_units_of_the_labels(agent):
    """The clip above hides the scale: with a small prediction the actions are the statistics' inverse of it."""
    predictions = []
    agent._head.register_forward_hook(lambda module, args, out: predictions.append(0.1 * out) or 0.1 * out)
    actions = agent.infer(observation())["actions"]
    np.testing.assert_allclose(actions, labels().unnormalize(predictions[0][0].detach().numpy()), atol=1e-6)
    assert np.abs(actions[:, :6]).max() < 1


def test_a_batch_of_one_equals_a_single_observation_bit_for_bit(agent):
    alone = agent.infer(observation())["actions"]
    np.testing.assert_array_equal(alone, agent.infer_batch([observation()])[0]["actions"])


@pytest.mark.parametrize("acting", ["expected", "argmax"])
def test_a_batch_equals_its_members_one_by_one(folder, acting):
    agent = VW2Agent.from_pretrained(folder, acting=acting)
    many = [
        observation(0),
        observation(1, prompt="push"),
        observation(2, size=(16, 16), prompt="lift the red block and put it down"),
    ]
    together = agent.infer_batch(many)
    assert len(together) == 3
    for one, out in zip(many, together, strict=True):
        alone = agent.infer(one)
        np.testing.assert_array_equal(alone["latent_tokens"], out["latent_tokens"])
        np.testing.assert_allclose(alone["actions"], out["actions"], atol=1e-5)
    assert agent.infer_batch([]) == []


def test_wrist_camera_and_state_make_no_difference(agent):
    more = observation(images={**observation()["images"], "wrist": np.zeros((8, 8, 3), np.uint8)}, state=np.ones(15))
    np.testing.assert_array_equal(agent.infer(more)["actions"], agent.infer(observation())["actions"])


def test_image_and_words_do_make_a_difference(agent):
    first = agent.infer(observation())["actions"]
    assert (agent.infer(observation(1))["actions"] != first).any()
    assert (agent.infer(observation(prompt="close the drawer"))["actions"] != first).any()


def test_nothing_is_remembered_between_calls_and_seeds_do_not_matter(agent):
    first = agent.infer(observation())["actions"]
    agent.infer(observation(1, prompt="push"))
    agent.reset("push", seed=5)
    np.testing.assert_array_equal(agent.infer(observation())["actions"], first)


def test_the_prompt_of_reset_is_used_until_the_next_reset(agent):
    silent = {"images": observation()["images"]}
    agent.reset("open the drawer")
    np.testing.assert_array_equal(agent.infer(silent)["actions"], agent.infer(observation())["actions"])
    agent.reset()
    with pytest.raises(InputError, match='no "prompt" and reset was not given one'):
        agent.infer(silent)


@pytest.mark.parametrize(
    ("obs", "message"),
    [
        ({"prompt": "x"}, r'\["images"\]\["static"\] is missing; found \[\'prompt\'\]'),
        ({"images": {"wrist": np.zeros((4, 4, 3), np.uint8)}, "prompt": "x"}, r"is missing; found \['wrist'\]"),
        (observation(images={"static": np.zeros((4, 4, 3), np.float32)}), r"must be uint8.*found float32 \[4, 4, 3\]"),
        (
            observation(images={"static": np.zeros((1, 4, 4, 3), np.uint8)}),
            r"without a batch axis, found uint8 \[1, 4, 4, 3\]",
        ),
        (observation(images={"static": np.zeros((3, 4, 4), np.uint8)}), r"found uint8 \[3, 4, 4\]"),
        (observation(images={"static": np.zeros((0, 4, 3), np.uint8)}), r"found uint8 \[0, 4, 3\]"),
        (observation(images={"static": None}), r"found object"),
        (observation(prompt=7), r'"prompt"\] must be a string, found int'),
        (observation(prompt=None), 'no "prompt" and reset was not given one'),
        ([1, 2], r"an observation is a dictionary.*found list"),
    ],
)
def test_wrong_observations_name_key_expected_and_found(agent, obs, message):
    with pytest.raises(InputError, match=message):
        agent.infer(obs)


def test_a_run_folder_is_as_good_as_its_checkpoint(folder, tmp_path, agent):
    shutil.copytree(folder, tmp_path / "checkpoints" / "step_1")
    (tmp_path / "latest").write_text("step_1\n")
    again = VW2Agent.from_pretrained(str(tmp_path))
    assert again.metadata == agent.metadata


def test_loading_depends_on_the_folder_alone(folder, agent):
    torch.manual_seed(123)
    np.testing.assert_array_equal(
        VW2Agent.from_pretrained(folder).infer(observation())["actions"], agent.infer(observation())["actions"]
    )


@pytest.mark.parametrize("acting", get_args(Acting))
def test_the_agent_acts_and_reports_codes_by_the_mode_of_its_checkpoint(tmp_path, acting):
    modules = save_policy(tmp_path / "c", acting=acting)
    agent = VW2Agent.from_pretrained(tmp_path / "c")
    assert (agent.metadata["acting"], agent.metadata["temperature"]) == (acting, float(acting == "sampled"))
    agent.reset("open the drawer", seed=3)
    out = agent.infer(observation())
    image = torch.from_numpy(np.asarray(Image.fromarray(observation()["images"]["static"]).resize((16, 16), 2)).copy())
    policy = modules["policy"].eval()
    prompt = policy.prompt([observation()["prompt"]], to_model_range(image[None]))
    noise = torch.Generator().manual_seed(3)
    with torch.no_grad():
        acted = act(policy, prompt, latent_steps=2, acting=acting, last_code=True, generator=noise)
        expected = labels().unnormalize(modules["head"](acted.states_BHRD)[0].numpy())
    np.testing.assert_allclose(out["actions"][:, :6], expected[:, :6].clip(-1, 1), atol=1e-5)
    # Null tokens are no codes: where none is decoded, none is reported.
    assert ("latent_tokens" in out) == (acting != "none")
    if acting != "none":
        np.testing.assert_array_equal(out["latent_tokens"], acted.codes_BHN[0].numpy())


def test_another_mode_is_refused_where_the_policy_was_not_trained_to_read_so(tmp_path, folder):
    modes = {"argmax": "expected", "parallel": "none", "none": None}
    for stored, possible in modes.items():
        save_policy(tmp_path / stored, acting=stored)
        if possible is not None:
            assert VW2Agent.from_pretrained(tmp_path / stored, acting=possible).metadata["acting"] == possible
    with pytest.raises(
        InputError, match=r"acting=parallel, .*trained with acting=argmax: use expected, sampled, argmax"
    ):
        VW2Agent.from_pretrained(tmp_path / "argmax", acting="parallel")
    with pytest.raises(InputError, match=r"acting=argmax, .*trained with acting=none: use none"):
        VW2Agent.from_pretrained(tmp_path / "none", acting="argmax")
    for wrong in ({"temperature": 0.5}, {"acting": "sampled", "temperature": 0.0}):
        with pytest.raises(InputError, match=r"only acting=sampled has one, and it is above 0"):
            VW2Agent.from_pretrained(folder, **wrong)


@pytest.mark.parametrize(("codes", "acting"), [("predicted", "argmax"), ("none", "none"), (None, "argmax")])
def test_checkpoints_from_before_there_were_modes_act_as_they_did(folder, tmp_path, codes, acting):
    def older(content):
        del content["config"]["acting"]
        content["config"] |= {} if codes is None else {"codes": codes}
        return content

    assert VW2Agent.from_pretrained(edited(folder, tmp_path, "config.json", older)).metadata["acting"] == acting


def test_an_unknown_mode_in_a_checkpoint_is_named(folder, tmp_path):
    def unknown(content):
        content["config"]["acting"] = "guess"
        return content

    with pytest.raises(InputError, match=r"config\.json: acting='guess' is not what training writes"):
        VW2Agent.from_pretrained(edited(folder, tmp_path, "config.json", unknown))


def test_a_policy_that_never_had_a_dldm_names_its_stride(folder, tmp_path, agent):
    def without(content):
        content["config"] |= {"dldm": None, "stride": 4}
        return content

    again = VW2Agent.from_pretrained(edited(folder, tmp_path, "config.json", without))
    np.testing.assert_array_equal(again.infer(observation())["actions"], agent.infer(observation())["actions"])


def test_ensembling_averages_predictions_before_the_gripper_becomes_a_sign(tmp_path, folder):
    stored = VW2Agent.from_pretrained(save_and_name(tmp_path / "c", temporal_ensemble=0.5), n_action_steps=2)
    assert (stored.metadata["temporal_ensemble"], stored.metadata["n_action_steps"]) == (0.5, 2)
    predictions = []
    stored._head.register_forward_hook(lambda module, args, out: predictions.append(out[0].numpy().copy()))
    observations = [observation(seed) for seed in range(3)]
    found = [stored.infer(obs)["actions"] for obs in observations]
    np.testing.assert_array_equal(found[0], VW2Agent.from_pretrained(folder).infer(observations[0])["actions"])
    # Step 0 of the third call: chunks of eight, so all three cover it, at their steps 4, 2 and 0.
    weights = np.exp(-0.5 * np.arange(3))[:, None]
    mean = (weights * [predictions[0][4], predictions[1][2], predictions[2][0]]).sum(0) / weights.sum()
    expected = labels().unnormalize(mean.astype(np.float32))
    np.testing.assert_allclose(found[2][0, :6], expected[:6].clip(-1, 1), atol=1e-6)
    assert found[2][0, 6] == expected[6]
    stored.reset("open the drawer")
    np.testing.assert_array_equal(stored.infer(observations[0])["actions"], found[0])
    off = VW2Agent.from_pretrained(tmp_path / "c", temporal_ensemble="off")
    assert off.metadata["temporal_ensemble"] is None


def save_and_name(path, **settings):
    save_policy(path, **settings)
    return path


def test_drawn_tokens_depend_on_the_seed_of_reset_alone(folder):
    agent = VW2Agent.from_pretrained(folder, acting="sampled", temperature=5.0)

    def tokens(seed, count=2):
        agent.reset("open the drawer", seed=seed)
        return [agent.infer(observation())["latent_tokens"].tolist() for _ in range(count)]

    assert tokens(1) == tokens(1)
    assert tokens(1) != tokens(2)
    first, second = tokens(1)
    assert first != second


@pytest.mark.parametrize("every", [0, 9])
def test_looking_more_rarely_than_the_chunk_is_long_is_refused(folder, every):
    with pytest.raises(InputError, match=rf"n_action_steps={every}, but the policy predicts 8 actions; give 1\.\.8"):
        VW2Agent.from_pretrained(folder, n_action_steps=every)


def test_labels_in_other_units_are_refused_at_load(folder, tmp_path):
    def rescale(content):
        content["calvin"]["max"][2] = 50.0
        return content

    with pytest.raises(InputError, match=r"stats\.json: the labels' dz reached from .* to 50, .* in \[-1, 1\]"):
        VW2Agent.from_pretrained(edited(folder, tmp_path, "stats.json", rescale))


def test_labels_of_another_robot_are_refused_at_load(folder, tmp_path):
    def shorten(content):
        for name in ("q01", "q99", "mean", "std", "min", "max"):
            content["calvin"][name] = content["calvin"][name][:5]
        return {"calvin": content["calvin"] | {"gripper_index": None}}

    with pytest.raises(InputError, match=r"actions of 5 numbers with the gripper at None; expected 7 and 6"):
        VW2Agent.from_pretrained(edited(folder, tmp_path, "stats.json", shorten))


def test_builtin_policies_are_files_of_this_package(folder, tmp_path, monkeypatch, agent):
    monkeypatch.setattr("vw2_robot.agent.CHECKPOINTS", tmp_path)
    with pytest.raises(InputError, match="no built-in policy 'calvin'; this release contains none"):
        VW2Agent.from_pretrained("builtin:calvin")
    shutil.copytree(folder, tmp_path / "calvin_d")
    with pytest.raises(InputError, match="no built-in policy 'calvin'; available: calvin_d"):
        VW2Agent.from_pretrained("builtin:calvin")
    found = VW2Agent.from_pretrained("builtin:calvin_d")
    np.testing.assert_array_equal(found.infer(observation())["actions"], agent.infer(observation())["actions"])


def test_a_policy_packaged_in_half_precision_acts_the_same(folder, tmp_path, agent):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # benchmarks are not part of the package
    from benchmarks.results.package_policy import package

    size = package(folder, tmp_path / "half")
    whole = sum(file.stat().st_size for file in folder.glob("model.safetensors")) / 1e6
    assert size < 0.6 * whole
    assert not (tmp_path / "half" / "optimizer.safetensors").exists()
    half = VW2Agent.from_pretrained(tmp_path / "half")
    np.testing.assert_allclose(half.infer(observation())["actions"], agent.infer(observation())["actions"], atol=0.02)


def edited(folder, tmp_path, name, change):
    shutil.copytree(folder, tmp_path / "edited")
    file = tmp_path / "edited" / name
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    write_manifest(tmp_path / "edited")  # it was written like that, not damaged
    return tmp_path / "edited"


def test_another_format_version_is_refused(folder, tmp_path):
    path = edited(folder, tmp_path, "config.json", lambda content: content | {"format_version": 99})
    with pytest.raises(InputError, match="format_version 99, this release reads 1"):
        VW2Agent.from_pretrained(path)


def test_a_policy_that_was_only_pretrained_says_what_is_missing(tmp_path):
    save_policy(tmp_path / "c", head=False)
    with pytest.raises(InputError, match="has no action head; run vw2-finetune policy="):
        VW2Agent.from_pretrained(tmp_path / "c")


def test_missing_or_foreign_statistics_are_named(folder, tmp_path):
    path = edited(folder, tmp_path, "stats.json", lambda content: content | {"bridge": content["calvin"]})
    with pytest.raises(InputError, match=r"statistics of \['bridge', 'calvin'\]; expected exactly one"):
        VW2Agent.from_pretrained(path)
    (path / "stats.json").unlink()
    with pytest.raises(InputError, match=r"stats\.json is missing"):
        VW2Agent.from_pretrained(path)


def test_a_checkpoint_without_a_key_that_the_agent_needs_is_named(folder, tmp_path):
    def drop(content):
        del content["config"]["latent_steps"], content["facts"]["control_hz"]
        return content

    with pytest.raises(InputError, match=r"config\.json lacks .*latent_steps.*control_hz"):
        VW2Agent.from_pretrained(edited(folder, tmp_path, "config.json", drop))


def test_a_head_for_another_width_is_named(folder, tmp_path):
    def widen(content):
        content["config"]["head"]["hidden"] = 64
        return content

    with pytest.raises(InputError, match="does not fit the module 'head'"):
        VW2Agent.from_pretrained(edited(folder, tmp_path, "config.json", widen))


def test_a_misspelt_folder_is_not_looked_for_in_vain(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="it does not exist"):
        VW2Agent.from_pretrained(tmp_path / "gone")
    with pytest.raises(InputError, match="it does not exist"):
        VW2Agent.from_pretrained("./runs/gone")
    (tmp_path / "here").mkdir()
    with pytest.raises(InputError, match="it does not exist"):
        VW2Agent.from_pretrained("here/gone")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="runs/gone is neither a folder here nor a model on the Hugging Face Hub"):
        VW2Agent.from_pretrained("runs/gone")
