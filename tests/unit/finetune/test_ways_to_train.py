"""Presets, code sources, gripper losses, unlabeled video, an untrained start: what moves, is read, resumes."""

import json
import multiprocessing
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vw2_robot.agent import VW2Agent
from vw2_robot.checkpoint import load_checkpoint
from vw2_robot.data.labels import read_labels
from vw2_robot.errors import InputError
from vw2_robot.finetune import datasets, train_head
from vw2_robot.finetune.config import FinetuneAids, HindsightConfig, LabeledDataConfig, NetworkConfig, UnlabeledConfig
from vw2_robot.finetune.losses import action_errors, totals_of, window_batch, window_losses
from vw2_robot.finetune.pretrained_init import init_policy, load_pretrained
from vw2_robot.finetune.train_head import finetune
from vw2_robot.models.policy.config import ActionHeadConfig, LoRAConfig
from vw2_robot.random_numbers import SampleNoise

SCRATCH = {"policy": "scratch", "acting": "none", "lambda_ce": 0.0}
WAYS = {
    "full": {},
    "head": {"preset": "head"},
    "lora": {"preset": "lora", "lora": LoRAConfig(rank=2)},
    "last_n": {"preset": "last_n", "last_n": 1},
    "ground_truth": {"code_source": "ground_truth"},
    "expected": {"code_source": "predicted", "acting": "expected"},
    "sampled": {"code_source": "predicted", "acting": "sampled"},
    "schedule": {"hindsight": HindsightConfig(0.0, 1.0), "acting": "argmax"},
    "parallel": {"acting": "parallel"},
    "none": {"acting": "none"},
    "no code loss": {"acting": "none", "lambda_ce": 0.0},
    "unlabeled": {"unlabeled": UnlabeledConfig(weight=0.5, batch_size=3)},
    "bce": {"gripper_loss": "bce", "gripper_weight": 0.3},
    "bins": {"head": ActionHeadConfig(8, bins=4)},
    "standardize": {"aids": FinetuneAids(standardize="labeled")},
    "scratch": SCRATCH,
}


@pytest.fixture
def configured(configure, pretrained):
    def make(data, way, **change):
        settings = {key: value for name in way.split(" + ") for key, value in WAYS[name].items()}
        if way == "scratch":
            settings["network"] = NetworkConfig(like=str(pretrained))
        return configure(data, **{**settings, **change})

    return make


def weights(run_dir):
    return load_checkpoint(run_dir, kind="policy").weights


def moved(before, after, prefix):
    return {name for name, value in before.items() if name.startswith(prefix) and not torch.equal(after[name], value)}


def observation():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return {"images": {"static": image}, "prompt": "do 1"}


# Every source of codes once, with a preset, a gripper loss or video beside it that keeps what it needs by itself.
TOGETHER = (
    "full",
    "ground_truth + head",
    "expected + bce",
    "sampled + last_n",
    "schedule + lora",
    "parallel + unlabeled + standardize",
    "none + bins",
    "scratch",
)


def test_every_way_is_resumed():
    assert {name for way in TOGETHER for name in way.split(" + ")} == set(WAYS) - {"no code loss"}


@pytest.mark.parametrize("way", TOGETHER)
def test_every_way_resumes_to_the_same_bytes_and_acts(configured, write_calvin, tmp_path, monkeypatch, way):
    data = write_calvin()
    loop = replace(configured(data, way).loop, train_steps=4, save_every=2, keep_every=1)
    finetune(configured(data, way, loop=loop, run="calm"))
    real, calls = train_head.optimizer_step, []

    def dying(*args, **options):
        calls.append(0)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(train_head, "optimizer_step", dying)
    config = configured(data, way, loop=loop, run="killed")
    with pytest.raises(KeyboardInterrupt):
        finetune(config)
    finetune(config)
    calm, killed = tmp_path / "calm" / "checkpoints" / "step_4", tmp_path / "killed" / "checkpoints" / "step_4"
    for name in ("model.safetensors", "optimizer.safetensors", "config.json", "stats.json"):
        assert (calm / name).read_bytes() == (killed / name).read_bytes(), name
    kept = [
        sorted(file for file in (tmp_path / run / "kept").rglob("*") if file.is_file()) for run in ("calm", "killed")
    ]
    assert {file.parent.name for file in kept[0]} == {"step_1", "step_2", "step_3"}
    assert not any("optimizer" in file.name for file in kept[0])
    assert [file.read_bytes() for file in kept[0]] == [file.read_bytes() for file in kept[1]]
    assert VW2Agent.from_pretrained(tmp_path / "calm/kept/step_1").infer(observation())["actions"].shape == (4, 7)
    assert (tmp_path / "calm" / "metrics.jsonl").read_text() == (tmp_path / "killed" / "metrics.jsonl").read_text()
    assert (tmp_path / "calm" / "validation.json").is_file()
    assert VW2Agent.from_pretrained(tmp_path / "killed").infer(observation())["actions"].shape == (4, 7)


@pytest.mark.parametrize(("target_hz", "gap_seconds", "every"), [(15.0, None, 2), (None, 0.4, 3)])
def test_a_policy_acts_for_as_long_as_its_codes_last(
    configured, write_calvin, tmp_path, pretrained_at, target_hz, gap_seconds, every
):
    """Four clip frames of every second or third of CALVIN's frames are one latent step of 8 or 12 actions."""
    policy, data = pretrained_at(target_hz, gap_seconds, [30 / every]), write_calvin(length=11)
    finetune(configured(data, "full", policy=policy, n_action_steps=8))
    agent = VW2Agent.from_pretrained(tmp_path / "run")
    assert (agent.metadata["chunk_size"], agent.metadata["control_hz"]) == (4 * every, 30.0)
    assert agent.infer(observation())["actions"].shape == (4 * every, 7)
    finetune(configured(data, "full", policy=str(tmp_path / "run"), run="again"))  # the time base is handed on
    assert VW2Agent.from_pretrained(tmp_path / "again").metadata["chunk_size"] == 4 * every
    network = NetworkConfig(like=policy)  # the same network, untrained: the methods of a comparison act alike
    finetune(configured(data, "scratch", network=network, run="scratch"))
    assert VW2Agent.from_pretrained(tmp_path / "scratch").metadata["chunk_size"] == 4 * every


@pytest.mark.parametrize(
    ("target_hz", "gap_seconds", "latent_hz", "message"),
    [(60.0, None, [60.0], "60 frames per second.*give 30"), (None, 0.02, [200.0], "longer data.gap_seconds")],
)
def test_codes_of_a_rate_that_the_labeled_data_cannot_give_are_refused(
    configured, write_calvin, pretrained_at, target_hz, gap_seconds, latent_hz, message
):
    with pytest.raises(InputError, match=message):
        finetune(configured(write_calvin(), "full", policy=pretrained_at(target_hz, gap_seconds, latent_hz)))


@pytest.mark.parametrize("way", ["head", "lora", "last_n"])
def test_what_a_preset_keeps_stays_bit_equal_although_weight_decay_is_on(
    configured, write_calvin, tmp_path, pretrained, way
):
    config = configured(write_calvin(), way)
    optim = replace(config.loop.optim, weight_decay=0.5)
    finetune(replace(config, loop=replace(config.loop, optim=optim)))
    before, after = load_checkpoint(pretrained, kind="policy").weights, weights(tmp_path / "run")
    assert not moved(before, after, "dldm.")
    changed = moved(before, after, "policy.")
    adapted = {name for name in before if "proj" in name and name.startswith("policy.backbone.") and "layers" in name}
    if way == "head":
        assert not changed
    elif way == "lora":
        assert changed == adapted
    else:
        assert changed == {name for name in before if ".layers.0." in name}


def test_adapters_are_merged_into_what_is_saved(configured, write_calvin, tmp_path, monkeypatch):
    seen = {}
    save = train_head.save

    def spy(path, *, init, **others):
        prompt = init.policy.prompt(["do 1"], torch.zeros(1, 3, 8, 8))
        seen["states"] = init.policy.states(prompt, torch.zeros(1, 1, 4, dtype=torch.long)).detach()
        save(path, init=init, **others)

    monkeypatch.setattr(train_head, "save", spy)
    finetune(configured(write_calvin(), "lora"))
    policy = VW2Agent.from_pretrained(tmp_path / "run")._policy
    prompt = policy.prompt(["do 1"], torch.zeros(1, 3, 8, 8))
    with torch.no_grad():
        found = policy.states(prompt, torch.zeros(1, 1, 4, dtype=torch.long))
    torch.testing.assert_close(found, seen["states"], atol=1e-5, rtol=1e-5)


def test_more_last_layers_than_there_are_is_refused(configured, write_calvin):
    with pytest.raises(InputError, match="last_n=2, but the language model has 1 layers"):
        finetune(configured(write_calvin(), "last_n", last_n=2))


def test_the_share_of_sampled_codes_follows_its_schedule(configure):
    config = configure("unused", hindsight=HindsightConfig(0.2, 0.8))
    config = replace(config, loop=replace(config.loop, train_steps=5))
    assert [config.hindsight_share(step) for step in range(5)] == pytest.approx([0.2, 0.35, 0.5, 0.65, 0.8])
    with pytest.raises(ValueError, match=r"hindsight\.end must lie in \[0, 1\], found 1\.5"):
        HindsightConfig(0.0, 1.5)


def test_bce_is_that_of_the_gripper_logit_and_leaves_the_arm(configure):
    config = configure("unused", gripper_loss="bce", gripper_weight=0.3)
    predicted, actions = torch.randn(2, 4, 7), torch.rand(2, 4, 7)
    actions[..., 6] = torch.tensor([[1, -1, 1, -1], [-1, -1, 1, 1]])
    found = action_errors(config, predicted, actions, gripper_index=6)
    arm = (predicted - actions)[..., :6].square().sum(-1)
    gripper = F.binary_cross_entropy(predicted[..., 6].sigmoid(), (actions[..., 6] > 0).float(), reduction="none")
    torch.testing.assert_close(found, arm + 0.3 * gripper)


def test_without_codes_the_code_loss_is_nothing_and_no_video_is_encoded(configured, write_calvin, monkeypatch):
    monkeypatch.setattr(datasets.VideoWindows, "encode_codes", None)  # not to be called
    finetune(configured(write_calvin(), "no code loss"))


def test_unlabeled_video_trains_on_codes_and_its_actions_are_never_opened(
    configured, write_calvin, tmp_path, monkeypatch
):
    """The trajectories outside the fraction hold NaN where their actions were."""
    data, opened = write_calvin(), []

    class Spied(datasets.CalvinDataset):
        def __init__(self, *args):
            super().__init__(*args)
            opened.append(self)

    finetune(configured(data, "full", run="plain"))
    labeled = set(read_labels(tmp_path / "plain" / "labels.json").episode_ids)
    dataset = datasets.CalvinDataset(data)
    frames = datasets.cache_trajectories(dataset, tmp_path / "f", height=8, width=8)
    split = datasets.split_trajectories(dataset, frames, label_fraction=0.5, label_seed=0, validation_fraction=0.25)
    assert len(split.unlabeled) == 3
    assert not {dataset.trajectories[i].trajectory_id for i in split.unlabeled} & labeled
    assert not set(split.unlabeled) & set(split.validation)
    for i in split.unlabeled:
        for frame in range(dataset.trajectories[i].start, dataset.trajectories[i].end + 1):
            path = data / "training" / f"episode_{frame:07d}.npz"
            with np.load(path) as file:
                content = {name: file[name] for name in file.files}
            np.savez(path, **(content | {name: np.full(7, np.nan) for name in ("rel_actions", "actions")}))
    monkeypatch.setattr(datasets, "CalvinDataset", Spied)
    finetune(configured(data, "unlabeled"))
    assert opened[0].reads == {"rgb_static": 8 * 7, "rel_actions": (3 + 2) * 7}
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["finetune/unlabeled_loss"]) for line in lines)
    plain, more = weights(tmp_path / "plain"), weights(tmp_path / "run")
    assert all(torch.isfinite(value).all() for value in more.values())
    assert moved(plain, more, "policy.")  # the video made a difference
    assert [lines[0][key] for key in ("finetune/action_l2", "finetune/code_loss")] == [
        json.loads((tmp_path / "plain" / "metrics.jsonl").read_text().splitlines()[0])[key]
        for key in ("finetune/action_l2", "finetune/code_loss")
    ]  # and the labeled batches are the same


def test_unlabeled_video_may_come_from_another_data_set(configured, write_calvin, monkeypatch, tmp_path):
    more = write_calvin(3, name="more")
    for path in (more / "training").glob("episode_*.npz"):
        with np.load(path) as file:
            np.savez(path, rgb_static=file["rgb_static"])
    settings = UnlabeledConfig(weight=0.5, path=str(more), batch_size=3)
    finetune(configured(write_calvin(), "full", label_fraction=1.0, unlabeled=settings))
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "3 trajectories without labels (6 windows) keep the code loss" in log  # 7 frames: starts 0 and 4


def test_a_lack_of_unlabeled_video_is_logged_and_changes_nothing(configured, write_calvin, tmp_path):
    data = write_calvin()
    finetune(configured(data, "full", label_fraction=1.0, run="plain"))
    finetune(configured(data, "unlabeled", label_fraction=1.0))
    assert "every trajectory is labeled" in (tmp_path / "run" / "log.txt").read_text()
    plain, more = weights(tmp_path / "plain"), weights(tmp_path / "run")
    assert all(torch.equal(plain[name], more[name]) for name in plain)


def test_scratch_has_the_network_of_the_pretrained_policy_and_none_of_its_weights(configured, write_calvin, pretrained):
    config = configured("unused", "scratch")
    start = init_policy(config)
    before = load_checkpoint(pretrained, kind="policy")
    assert start.dldm is None
    assert start.stride == 4
    found = start.policy.state_dict()
    wanted = {name.removeprefix("policy."): v for name, v in before.weights.items() if name.startswith("policy.")}
    assert {name: v.shape for name, v in found.items()} == {name: v.shape for name, v in wanted.items()}
    random = {name: v for name, v in wanted.items() if v.ndim > 1 and v.any()}  # FiLM begins at 0
    assert not any(torch.equal(found[name], v) for name, v in random.items())
    again = init_policy(config).policy.state_dict()
    assert all(torch.equal(found[name], again[name]) for name in found)
    other = init_policy(replace(config, seed=1)).policy.state_dict()
    assert not torch.equal(found["image.project.weight"], other["image.project.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preset": "head"}, "nothing to keep frozen"),
        ({"aids": FinetuneAids(standardize="labeled")}, "no dLDM to measure"),
        ({"acting": "argmax"}, "no dLDM to take codes from.*acting=argmax, code_source=hindsight"),
        ({"lambda_ce": 0.1}, "lambda_ce=0 and .*'lambda_ce'"),
        ({"unlabeled": UnlabeledConfig(weight=1.0)}, r"unlabeled\.weight"),
    ],
)
def test_scratch_refuses_what_needs_a_pretrained_policy(configured, change, message):
    with pytest.raises(ValueError, match=message):
        configured("unused", "scratch", **change)


def test_a_policy_from_scratch_is_no_start_for_codes(configured, write_calvin, tmp_path):
    data = write_calvin()
    finetune(configured(data, "scratch", run="first"))
    with pytest.raises(InputError, match="has no dLDM, it was trained from scratch"):
        finetune(configured(data, "full", policy=str(tmp_path / "first")))


def test_another_split_can_be_held_out(configured, write_calvin, tmp_path):
    data = write_calvin(6)
    other = write_calvin(3, name="other")
    (other / "training").rename(data / "validation")
    config = configured(data, "full", label_fraction=1.0)
    finetune(replace(config, data=LabeledDataConfig(str(data), validation_split="validation")))
    assert len(read_labels(tmp_path / "run" / "labels.json").episode_ids) == 6
    assert json.loads((tmp_path / "run" / "validation.json").read_text())["trajectories"] == 3
    with pytest.raises(ValueError, match="nothing would be held out"):
        LabeledDataConfig(str(data), validation_split="training")


def test_runs_that_share_images_decode_them_once_and_wait_for_one_another(
    configured, write_calvin, tmp_path, monkeypatch
):
    data = write_calvin()
    calls = tmp_path / "calls.txt"
    cache = datasets.cache_trajectories

    def slowly(dataset, out, **size):
        with calls.open("a") as file:
            file.write("opened\n" if (out / "index.json").is_file() else "decoded\n")
        time.sleep(0.2)
        return cache(dataset, out, **size)

    monkeypatch.setattr(datasets, "cache_trajectories", slowly)
    dataset = datasets.CalvinDataset(data)
    # Processes, since one process that asks for its own lock again gets it.
    fork = multiprocessing.get_context("fork")
    runs = [fork.Process(target=datasets.cache_size, args=(dataset, tmp_path / "shared", (8, 8))) for _ in range(2)]
    for process in runs:
        process.start()
    for process in runs:
        process.join(60)
    assert [process.exitcode for process in runs] == [0, 0]
    assert calls.read_text().split() == ["decoded", "opened"]
    config = configured(data, "full")
    finetune(replace(config, data=replace(config.data, frame_cache=str(tmp_path / "shared"))))
    assert calls.read_text().split() == ["decoded", "opened", "opened"]
    assert not (tmp_path / "run" / "frames").exists()


def test_images_of_the_policy_are_resized_once_as_the_agent_does(configured, write_calvin, monkeypatch):
    """The dLDM's images are 8 pixels wide; a policy that sees 16 must not see them enlarged."""
    made = []

    class Spied(datasets.LabeledWindows):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            made.append(self)

    monkeypatch.setattr(datasets, "LabeledWindows", Spied)
    config = configured(write_calvin(), "full")
    start = init_policy(config)
    large = replace(start.policy.config, image_px=16)
    object.__setattr__(start.policy, "config", large)
    run = train_head.open_run(config)
    datasets.open_datasets(config, start, run, torch.device("cpu"))
    assert made[0].frame_cache.height == 8
    assert made[0].policy_frame_cache.height == 16


@pytest.mark.parametrize("acting", ["expected", "argmax", "parallel", "none"])
def test_validation_acts_as_the_agent_does(configured, write_calvin, tmp_path, acting):
    """As in control, no shift: the reported error is that of `VW2Agent.infer` on the held-out images."""
    data = write_calvin()
    finetune(configured(data, "full", acting=acting))
    agent = VW2Agent.from_pretrained(tmp_path / "run")
    dataset = datasets.CalvinDataset(data)
    frames = datasets.cache_trajectories(dataset, tmp_path / "again", height=8, width=8)
    held = datasets.split_trajectories(
        dataset, frames, label_fraction=0.5, label_seed=0, validation_fraction=0.25
    ).validation
    windows = datasets.VideoWindows(dataset, frames, held, latent_steps=1, stride=4)
    windows.encode_codes(load_pretrained(str(tmp_path / "run"))[1].eval(), torch.device("cpu"))
    right, row = [], 0
    statistics, raw = agent._statistics, []
    agent._head.register_forward_hook(lambda module, args, out: raw.append(out.numpy().copy()))
    errors = []
    for i in held:
        trajectory = dataset.trajectories[i]
        actions = statistics.normalize(dataset.read_actions(trajectory))
        for start, image in enumerate(dataset.read_images(trajectory)[:-1]):
            raw.clear()
            out = agent.infer({"images": {"static": image}, "prompt": trajectory.instruction})
            if windows.valid[row, 0] and acting != "none":
                right.append(out["latent_tokens"] == windows.codes[row])
            row += 1
            real = actions[start : start + 4]
            errors.append(np.abs(raw[0][0][: len(real)] - real)[:, :6])
    found = json.loads((tmp_path / "run" / "validation.json").read_text())
    assert found["arm_error"] == pytest.approx(np.concatenate(errors).mean(), rel=1e-4)
    assert found["code_loss"] > 0  # all modes learn codes, since lambda_ce > 0
    assert (found["ground_truth_codes_accuracy"] is not None) == (acting in ("expected", "argmax"))
    if acting != "none":
        assert found["code_accuracy"] == pytest.approx(np.mean(right), abs=1e-9)


def test_the_log_has_the_error_with_predicted_and_with_ground_truth_codes(configured, write_calvin, tmp_path):
    finetune(configured(write_calvin(), "expected"))
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    predicted = line["finetune/validation_action_l2"]
    ground_truth = line["finetune/validation_ground_truth_codes_l2"]
    assert line["finetune/validation_code_gap"] == pytest.approx(predicted - ground_truth, abs=1e-6)
    assert predicted != ground_truth
    assert line["finetune/validation_action_l2_low"] <= predicted <= line["finetune/validation_action_l2_high"]


def test_no_code_loss_is_counted_without_ground_truth_codes(configured, write_calvin, tmp_path):
    config = configured(write_calvin(), "no code loss")
    start = init_policy(config)
    found = datasets.open_datasets(config, start, train_head.open_run(config), torch.device("cpu"))
    head = train_head.build_head(config, start)
    rows = np.arange(3)
    batch = window_batch(
        config,
        start.policy,
        found.train,
        rows,
        device=torch.device("cpu"),
        hindsight_share=0.0,
        noise=SampleNoise(0, 0, stream=0, samples=rows),
    )
    totals = totals_of(found.train, rows, torch.device("cpu"))
    assert int(totals.codes) == 0
    losses = window_losses(config, start.policy, head, found.train, batch, totals)
    assert float(losses.metrics["code"]) == 0
    torch.testing.assert_close(losses.loss.detach(), losses.metrics["action"])
