"""The policy in LeRobot: the same actions as the agent's, its training, what it saves, and the frames it expects."""

import json
import shutil

import numpy as np
import pytest
import torch

pytest.importorskip("lerobot_policy_vw2", reason="needs LeRobot on Python 3.12: make test-lerobot")

from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.policies import get_policy_class, make_policy, make_policy_config, make_pre_post_processors
from lerobot_policy_vw2.modeling_vw2 import Vw2Policy
from lerobot_policy_vw2.processor_vw2 import ActionLimits

from vw2_robot import VW2Agent
from vw2_robot.errors import InputError

TASK = "open the drawer"


def images(count, size=200, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def batch(pixels, task=TASK, key="observation.images.static"):
    """What LeRobot's programs give a policy."""
    return {key: torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255, "task": [task] * len(pixels)}


def load(folder, **options):
    config = PreTrainedConfig.from_pretrained(folder, cli_overrides=[f"--{k}={v}" for k, v in options.items()])
    policy = get_policy_class("vw2").from_pretrained(folder, config=config)
    return policy, *make_pre_post_processors(policy.config, pretrained_path=str(folder))


@pytest.mark.parametrize(
    "settings",
    [
        None,  # the policy of the package, acting=none
        {"acting": "expected"},
        {"acting": "argmax", "temporal_ensemble": 0.1},
        {"acting": "sampled"},
        {"acting": "parallel"},
    ],
)
def test_actions_are_those_of_the_agent(exported, decoding, settings):
    folder = exported if settings is None else decoding(**settings)
    agent = VW2Agent.from_pretrained(folder)
    policy, before, after = load(folder)
    for episode in range(2):
        agent.reset(TASK)
        policy.reset()
        for call in range(3):
            pixels = images(2, seed=10 * episode + call)
            wanted = [out["actions"] for out in agent.infer_batch([{"images": {"static": one}} for one in pixels])]
            for step in range(agent.metadata["n_action_steps"]):
                # Only the first of these images is read.
                seen = pixels if step == 0 else images(2, seed=99)
                with torch.inference_mode():
                    action = after(policy.select_action(before(batch(seen))))
                np.testing.assert_allclose(action.numpy(), np.stack(wanted)[:, step], rtol=0, atol=1e-6)


def test_a_chunk_is_that_of_the_agent_and_does_not_touch_the_queue(exported):
    agent = VW2Agent.from_pretrained(exported)
    policy, before, after = load(exported, n_action_steps=3)
    pixels = images(1)
    wanted = agent.infer({"images": {"static": pixels[0]}, "prompt": TASK})["actions"]
    for key in ("observation.images.static", "observation.image"):
        with torch.inference_mode():
            chunk = policy.predict_action_chunk(before(batch(pixels, key=key)))
        assert chunk.shape == (1, policy.config.chunk_size, 7)
        np.testing.assert_allclose(after(chunk)[0].numpy(), wanted, rtol=0, atol=1e-6)
    assert not policy._action_queue
    policy.select_action(before(batch(pixels)))
    assert len(policy._action_queue) == 2


def test_the_limits_are_a_step_of_the_saved_pipeline():
    action = torch.tensor([[2.0, -2.0, 0.5, 0, 0, 0, 0.2], [0, 0, 0, 0, 0, 0, 0.0]])
    limited = ActionLimits().action(action)
    assert limited.tolist() == [[1.0, -1.0, 0.5, 0, 0, 0, 1.0], [0, 0, 0, 0, 0, 0, -1.0]]
    assert action[0, 0] == 2.0
    assert ActionLimits(**ActionLimits(gripper_index=3).get_config()).gripper_index == 3


def dataset_stats(**change):
    rng = np.random.default_rng(1)
    actions = rng.uniform(-0.5, 0.5, (200, 7))
    actions[:, 5] = 0.25  # never moves
    actions[:, 6] = rng.choice((-1.0, 1.0), 200)
    q01, q99 = np.quantile(actions, (0.01, 0.99), axis=0)
    found = {
        "min": actions.min(0), "max": actions.max(0), "mean": actions.mean(0), "std": actions.std(0),
        "q01": q01, "q99": q99, "count": np.array([200]),
    }  # fmt: skip
    return actions, {"action": found | change}


@pytest.mark.parametrize("mode", ["QUANTILES", "MEAN_STD", "IDENTITY"])
def test_statistics_of_the_data_are_the_same_in_the_pipelines_and_in_the_saved_policy(exported, tmp_path, mode):
    actions, stats = dataset_stats()
    config = PreTrainedConfig.from_pretrained(
        exported, cli_overrides=[f'--normalization_mapping={{"VISUAL": "IDENTITY", "ACTION": "{mode}"}}']
    )
    policy = Vw2Policy.from_pretrained(exported, config=config, dataset_stats=stats)
    # As lerobot-train overrides the steps of the saved pipelines, after the policy was made.
    given = {"stats": stats, "norm_map": config.normalization_mapping}
    before, after = make_pre_post_processors(
        config,
        pretrained_path=str(exported),
        preprocessor_overrides={
            "normalizer_processor": given | {"features": {**config.input_features, **config.output_features}}
        },
        postprocessor_overrides={"unnormalizer_processor": given | {"features": config.output_features}},
    )
    inside = np.clip(actions, stats["action"]["q01"], stats["action"]["q99"])
    normalized = before(batch(images(200, size=8)) | {"action": torch.from_numpy(inside).float()})["action"]
    np.testing.assert_allclose(normalized.numpy(), policy.statistics.normalize(inside), atol=1e-6)
    assert set(normalized[:, 6].tolist()) == {-1.0, 1.0}
    policy.save_pretrained(tmp_path)
    before.save_pretrained(tmp_path)
    after.save_pretrained(tmp_path)
    agent = VW2Agent.from_pretrained(tmp_path)
    policy, before, after = load(tmp_path)
    with torch.inference_mode():
        chunk = after(policy.predict_action_chunk(before(batch(images(1)))))
    wanted = agent.infer({"images": {"static": images(1)[0]}, "prompt": TASK})["actions"]
    np.testing.assert_allclose(chunk[0].numpy(), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max": np.full(7, 3.0)}, "the actions of the data set reach from"),
        ({"min": np.zeros(7)}, r"a gripper of -1 \(close\) or 1"),
        ({"q01": None}, "the data set has no q01 of its actions; run"),
    ],
)
def test_data_that_the_policy_cannot_learn_from_are_refused(exported, change, message):
    _, stats = dataset_stats(**change)
    stats["action"] = {name: value for name, value in stats["action"].items() if value is not None}
    with pytest.raises(InputError, match=message):
        Vw2Policy.from_pretrained(exported, dataset_stats=stats)


def visual(*shape):
    return PolicyFeature(type=FeatureType.VISUAL, shape=shape)


def test_one_camera_is_chosen_or_the_choice_is_asked_for():
    config = make_policy_config("vw2", device="cpu")
    assert config.camera == "observation.images.static"
    config.input_features = {"observation.images.top": visual(3, 64, 64)}
    assert config.camera == "observation.images.top"
    config.input_features["observation.images.wrist"] = visual(3, 64, 64)
    with pytest.raises(InputError, match=r"reads one camera.*--rename_map='{\"observation.images.top\": \"observ"):
        config.validate_features()
    config.input_features["observation.images.static"] = visual(3, 200, 200)
    config.validate_features()
    config.output_features = {"action": PolicyFeature(type=FeatureType.ACTION, shape=(14,))}
    with pytest.raises(InputError, match=r"7 numbers, those of the data \[14\]"):
        config.validate_features()


def test_a_batch_without_image_or_instruction_is_refused(exported):
    policy, *_ = load(exported)
    for lacking, message in (("observation.images.static", "the batch has no observations"), ("task", 'no "task"')):
        with pytest.raises(InputError, match=message):
            policy.select_action({name: value for name, value in batch(images(1)).items() if name != lacking})


@pytest.mark.parametrize("settings", [None, {"acting": "expected"}])
def test_training_changes_the_head_alone_and_lowers_its_loss(exported, decoding, settings):
    folder = exported if settings is None else decoding(**settings)
    policy, *_ = load(folder)
    policy.train()
    assert not policy.policy.training
    assert policy.head.training
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    inputs = batch(images(4, size=32)) | {
        "action": torch.rand(4, policy.config.chunk_size, 7) * 4 - 2,  # some beyond the quantiles
        "action_is_pad": torch.zeros(4, policy.config.chunk_size, dtype=torch.bool),
    }
    optimizer = policy.config.get_optimizer_preset().build(policy.get_optim_params())
    losses = []
    for _ in range(12):
        loss, parts = policy.forward(inputs)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        assert loss.item() == pytest.approx(parts["arm_loss"] + parts["gripper_loss"], rel=1e-5)
    assert losses[-1] < 0.8 * losses[0]
    changed = {name.split(".")[0] for name, value in policy.state_dict().items() if not value.equal(before[name])}
    assert changed == {"head"}


def test_what_is_padding_or_beyond_the_quantiles_does_not_count(exported):
    policy, *_ = load(exported)
    actions = torch.rand(1, 4, 7) - 0.5
    pad = torch.tensor([[False, False, True, True]])
    inputs = batch(images(1, size=32)) | {"action": actions, "action_is_pad": pad}
    loss = policy.forward(inputs)[0]
    elsewhere = actions.clone()
    elsewhere[:, 2:] = 0.9
    torch.testing.assert_close(policy.forward(inputs | {"action": elsewhere})[0], loss)
    elsewhere[0, 0, 0] = 1.0
    at_limit = policy.forward(inputs | {"action": elsewhere})[0]
    elsewhere[0, 0, 0] = 5.0
    torch.testing.assert_close(policy.forward(inputs | {"action": elsewhere})[0], at_limit)
    assert at_limit != loss


def test_the_rest_of_the_policy_trains_at_its_learning_rate(exported):
    policy, *_ = load(exported, policy_lr=0.001)
    groups = policy.config.get_optimizer_preset().build(policy.get_optim_params()).param_groups
    assert [group["lr"] for group in groups] == [0.003, 0.001]
    policy.train()
    assert policy.policy.training
    loss, _ = policy.forward(batch(images(1)) | {"action": torch.zeros(1, 4, 7)})
    loss.backward()
    assert any(parameter.grad is not None for parameter in policy.policy.parameters())


def test_a_saved_policy_has_all_that_the_agent_reads(decoding, tmp_path):
    folder = decoding(acting="expected")
    policy, *_ = load(folder, n_action_steps=2)
    policy.save_pretrained(tmp_path / "again")
    names = {path.relative_to(tmp_path / "again").as_posix() for path in (tmp_path / "again").rglob("*.*")}
    assert {"config.json", "stats.json", "tokens.json", "manifest.json", "dldm/model.safetensors"} <= names
    first, second = (VW2Agent.from_pretrained(one) for one in (folder, tmp_path / "again"))
    assert second.metadata == first.metadata | {"n_action_steps": 2}
    assert second.dldm().config == first.dldm().config
    second.save_pretrained(tmp_path / "exported")
    assert load(tmp_path / "exported")[0].config.config["n_action_steps"] == 2


def test_the_frames_that_the_policy_expects(decoding):
    policy, before, _ = load(decoding(acting="argmax"), save_predicted_video="true")
    pixels = images(2, size=16)
    codes = policy._agent.predict(pixels, [TASK] * 2)[1]
    policy.reset()
    for _ in range(3):
        policy.select_action(before(batch(pixels)))
    latents = policy.last_predicted_latents
    assert latents.shape == (2, 3, 3, 16, 16)  # three of the eight actions are executed
    frames = policy.decode_predicted_latents(torch.cat([latents, latents], dim=2))
    assert frames.shape == (6, 16, 32, 3)
    assert frames.dtype == np.uint8
    dldm = policy._dldm()
    first = torch.from_numpy(pixels[1:]).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        drawn = dldm.decode(
            dldm.fsq.codes_of(torch.from_numpy(codes[1:, :1])), dldm.features(first[:, None])[:, 0], first
        )
    wanted = ((drawn[0, 1:4].clamp(-1, 1) + 1) * 127.5).round().permute(0, 2, 3, 1)
    np.testing.assert_allclose(frames[:3, :, 16:], wanted, atol=1)


def test_what_cannot_be_drawn_is_refused_before_the_rollouts(exported, decoding, tmp_path):
    with pytest.raises(InputError, match="this policy predicts no codes"):
        load(exported, save_predicted_video="true")
    shutil.copytree(decoding(acting="argmax"), tmp_path / "alone", ignore=shutil.ignore_patterns("dldm"))
    with pytest.raises(InputError, match="came without its dLDM"):
        load(tmp_path / "alone", save_predicted_video="true")


def test_a_policy_from_scratch_learns_from_data_alone(dataset, tmp_path):
    from lerobot.datasets import LeRobotDatasetMetadata

    meta = LeRobotDatasetMetadata("local/drawers", root=dataset)
    config = make_policy_config("vw2", device="cpu")
    policy = make_policy(config, ds_meta=meta)
    assert list(config.input_features) == ["observation.images.static"]
    assert [group.get("lr") for group in policy.get_optim_params()] == [None, 3e-4]
    before, after = make_pre_post_processors(config, dataset_stats=meta.stats)
    policy.save_pretrained(tmp_path)
    after.save_pretrained(tmp_path)
    steps = [
        step["registry_name"] for step in json.loads((tmp_path / "policy_postprocessor.json").read_text())["steps"]
    ]
    assert steps == ["unnormalizer_processor", "vw2_action_limits", "device_processor"]
    agent = VW2Agent.from_pretrained(tmp_path)
    assert agent.metadata["control_hz"] == 10.0
    with torch.inference_mode():
        chunk = after(policy.predict_action_chunk(before(batch(images(1)))))
    wanted = agent.infer({"images": {"static": images(1)[0]}, "prompt": TASK})["actions"]
    np.testing.assert_allclose(chunk[0].numpy(), wanted, rtol=0, atol=1e-6)
    with pytest.raises(InputError, match="without statistics of actions cannot be saved"):
        Vw2Policy(make_policy_config("vw2", device="cpu")).save_pretrained(tmp_path / "no")
