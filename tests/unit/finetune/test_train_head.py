import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vw2_robot.agent import VW2Agent
from vw2_robot.checkpoint import load_checkpoint, resolve
from vw2_robot.data.labels import read_labels
from vw2_robot.data.statistics import ActionStatistics
from vw2_robot.errors import InputError
from vw2_robot.finetune import datasets
from vw2_robot.finetune.config import FinetuneAids, FinetuneLoopConfig
from vw2_robot.finetune.losses import (
    action_loss,
    input_codes,
    totals_of,
    unlabeled_loss,
    window_batch,
    window_losses,
)
from vw2_robot.finetune.pretrained_init import load_pretrained
from vw2_robot.finetune.train_head import finetune
from vw2_robot.models.policy.acting import act
from vw2_robot.models.policy.action_head import ActionHead
from vw2_robot.models.policy.ar_policy import NULL_CODE
from vw2_robot.models.policy.config import ActionHeadConfig
from vw2_robot.random_numbers import SampleNoise
from vw2_robot.schedule import OptimConfig


def noise_of(count, seed=0):
    return SampleNoise(seed, 0, stream=0, samples=range(count))


def weights(run_dir):
    return load_checkpoint(run_dir, kind="policy").weights


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_action_loss_is_the_mean_over_valid_actions_with_a_weight_on_the_gripper(configure):
    half = configure("unused", gripper_weight=0.5)
    whole = configure("unused")
    predicted = torch.zeros(2, 4, 7)
    actions = torch.zeros(2, 4, 7)
    actions[..., 0] = 2.0
    actions[..., 6] = 1.0
    mask = torch.tensor([[True] * 4, [True, False, False, False]])
    actions[1, 1:] = 100.0  # past the end of the trajectory
    assert float(action_loss(half, predicted, actions, mask, gripper_index=6)) == pytest.approx(4.5)
    actions[0, 0, 3] = 5.0
    assert float(action_loss(half, predicted, actions, mask, gripper_index=6)) == pytest.approx(4.5 + 25 / 5)
    assert float(action_loss(whole, predicted, actions, torch.zeros_like(mask), gripper_index=6)) == 0


class FewWindows:
    """Three windows with known codes."""

    def __init__(self, codes):
        self.codes = codes
        self.has_codes = True
        self.statistics = SimpleNamespace(gripper_index=6)
        self.valid = np.array([[True], [True], [False]])
        self.actions = np.zeros((3, 4, 7), np.float32)
        self.action_mask = np.ones((3, 4), bool)

    def images(self, rows, *, image_px, device):
        return torch.linspace(-1, 1, 3 * 192).view(3, 3, 8, 8)[rows]

    def instructions(self, rows):
        return [f"do {row}" for row in rows]


def parts_of(config, policy, windows, division, *, hindsight_share=0.5, seed=0):
    """What `window_losses` gets of each part of a batch of all windows."""
    cpu = torch.device("cpu")
    batches = [
        window_batch(
            config,
            policy,
            windows,
            rows,
            device=cpu,
            hindsight_share=hindsight_share,
            noise=SampleNoise(seed, 0, stream=0, samples=rows),
        )
        for rows in division
    ]
    totals = totals_of(windows, np.concatenate(division), cpu)
    return [(batch, totals) for batch in batches]


@pytest.mark.parametrize(
    ("acting", "source"),
    [
        ("expected", "ground_truth"),
        ("expected", "hindsight"),
        ("expected", "predicted"),
        ("argmax", "predicted"),
        ("sampled", "predicted"),
        ("parallel", "hindsight"),
        ("none", "hindsight"),
    ],
)
def test_the_code_loss_is_that_of_all_valid_ground_truth_codes_whatever_is_read(pretrained, configure, acting, source):
    policy, _, _ = load_pretrained(str(pretrained))
    policy.eval()
    torch.manual_seed(0)
    head = ActionHead(ActionHeadConfig(8), width=16, queries=4, stride=4, action_size=7)
    rows = np.arange(3)
    windows = FewWindows(np.arange(12).reshape(3, 1, 4))
    config = configure("unused", acting=acting, code_source=source, image_shift_px=0, lambda_ce=2.0)
    ((batch, totals),) = parts_of(config, policy, windows, [rows])
    total, found, _ = window_losses(config, policy, head, windows, batch, totals)
    # What is read, by another way.
    prompt = policy.prompt(windows.instructions(rows), windows.images(rows, image_px=8, device=None))
    ground_truth = torch.from_numpy(windows.codes)
    if acting in ("parallel", "none"):
        read = torch.full((3, 1, 4), NULL_CODE)
    elif source == "predicted":
        read = act(policy, prompt, latent_steps=1, acting=acting, last_code=True, generator=noise_of(3)).read
        assert read.is_floating_point() == (acting == "expected")
    else:
        read = ground_truth
        changed = batch.inputs != ground_truth
        assert changed.any() == (source == "hindsight")
        assert not changed.all()
        if source == "hindsight":
            read = batch.inputs
    torch.testing.assert_close(batch.inputs, read)
    states = policy.states(prompt, read, last_code=True)
    log_p = policy.backbone.latent_logits(states[:, :, :4]).log_softmax(-1).gather(-1, ground_truth[..., None])
    valid = torch.from_numpy(windows.valid)[:, 0]
    torch.testing.assert_close(found["code"], -log_p[valid].mean().detach())
    l2 = action_loss(config, head(states), torch.zeros(3, 4, 7), torch.ones(3, 4, dtype=torch.bool), gripper_index=6)
    torch.testing.assert_close(found["action"], l2.detach())
    torch.testing.assert_close(total.detach(), l2.detach() + 2.0 * found["code"])


def test_hindsight_replaces_a_share_of_the_slots_by_samples_of_the_policy_after_the_truth(pretrained, configure):
    policy, _, _ = load_pretrained(str(pretrained))
    policy.eval()
    with torch.no_grad():  # sure of itself: what it samples is its likeliest code
        policy.backbone.model.get_output_embeddings().weight.mul_(1e6)
    rows = np.arange(3).repeat(200)
    windows = FewWindows(np.arange(12).reshape(3, 1, 4))
    image = windows.images(rows, image_px=8, device=None)
    codes = torch.from_numpy(windows.codes[rows])
    config = configure("unused", acting="expected")

    def inputs(share):
        return input_codes(
            config,
            policy,
            windows,
            rows,
            image,
            source="hindsight",
            hindsight_share=share,
            noise=SampleNoise(0, 0, stream=0, samples=range(600)),
        )

    assert torch.equal(inputs(0.0), codes)
    states = policy.states(policy.prompt(windows.instructions(rows), image), codes)
    likeliest = policy.backbone.latent_logits(states).argmax(-1)
    assert torch.equal(inputs(1.0), likeliest)
    mixed = inputs(0.25)
    assert bool(((mixed == codes) | (mixed == likeliest)).all())
    assert (mixed != codes).double().mean().item() == pytest.approx(0.25, abs=0.03)


def test_the_action_loss_reaches_the_last_code_of_a_step(pretrained, configure):
    """N states predict the codes; the state after the last one is the only one that has read it."""
    policy, _, _ = load_pretrained(str(pretrained))
    torch.manual_seed(0)
    prompt = policy.prompt(["do 1", "do 1"], torch.zeros(2, 3, 8, 8))
    codes = torch.tensor([[[1, 2, 3, 4]], [[1, 2, 3, 5]]])
    for last_code in (True, False):
        head = ActionHead(ActionHeadConfig(8, last_code=last_code), width=16, queries=4, stride=4, action_size=7)
        actions = head(policy.states(prompt, codes, last_code=last_code))
        assert torch.equal(actions[0], actions[1]) != last_code


@pytest.mark.parametrize(
    ("acting", "source"), [("expected", "ground_truth"), ("argmax", "hindsight"), ("sampled", "predicted")]
)
def test_losses_of_the_parts_of_a_batch_add_up_to_its_losses(pretrained, configure, acting, source):
    policy, _, _ = load_pretrained(str(pretrained))
    policy.eval()
    torch.manual_seed(0)
    head = ActionHead(ActionHeadConfig(8, pose=True), width=16, queries=4, stride=4, action_size=7)
    windows = FewWindows(np.arange(12).reshape(3, 1, 4))
    windows.actions = np.random.default_rng(0).normal(size=(3, 4, 7)).astype(np.float32)
    windows.action_mask[1, 2:] = False
    windows.poses = np.ones((3, head.end_effector_pose(torch.zeros(1, 1, 5, 16)).shape[1]), np.float32)
    config = configure(
        "unused",
        acting=acting,
        code_source=source,
        image_shift_px=1,
        image_color_jitter=0.3,
        lambda_ce=2.0,
        aids=FinetuneAids(pose_weight=0.5),
    )
    found = []
    for division in ([np.arange(3)], [np.arange(1), np.arange(1, 3)]):
        parts = parts_of(config, policy, windows, division)
        losses = [window_losses(config, policy, head, windows, *part) for part in parts]
        found.append(
            {"total": sum(one.loss.detach() for one in losses)}
            | {name: sum(one.metrics[name] for one in losses) for name in losses[0].metrics}
        )
    assert found[0].keys() == {"total", "action", "pose", "code", "accuracy"}
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value)


def test_unlabeled_losses_of_the_parts_of_a_batch_add_up_to_its_loss(pretrained, configure):
    policy, _, _ = load_pretrained(str(pretrained))
    policy.eval()
    windows = FewWindows(np.arange(12).reshape(3, 1, 4))
    config = configure("unused", image_shift_px=1, image_color_jitter=0.3)

    def loss(first, end, codes=None):
        noise = SampleNoise(0, 0, stream=0, samples=range(first, end))
        rows = np.arange(first, end)
        cpu = torch.device("cpu")
        return unlabeled_loss(config, policy, windows, rows, device=cpu, noise=noise, codes_in_batch=codes)

    count = torch.tensor(4 * windows.valid.sum())
    torch.testing.assert_close(loss(0, 1, count) + loss(1, 3, count), loss(0, 3))


@pytest.mark.parametrize("acting", ["argmax", "parallel"])
def test_unlabeled_codes_are_predicted_as_the_policy_acts_with_or_without_those_before(pretrained, configure, acting):
    policy, _, _ = load_pretrained(str(pretrained))
    policy.eval()
    rows = np.arange(3)
    cpu = torch.device("cpu")
    windows = FewWindows(np.arange(12).reshape(3, 1, 4))
    config = configure("unused", acting=acting, image_shift_px=0, lambda_ce=0.0)
    found = unlabeled_loss(config, policy, windows, rows, device=cpu, noise=noise_of(3))
    ground_truth = torch.from_numpy(windows.codes)
    inputs = ground_truth if acting == "argmax" else torch.full((3, 1, 4), NULL_CODE)
    prompt = policy.prompt(windows.instructions(rows), windows.images(rows, image_px=8, device=None))
    wanted, _ = policy.code_loss(policy.states(prompt, inputs), ground_truth, torch.from_numpy(windows.valid))
    torch.testing.assert_close(found, wanted)


def test_two_steps_leave_a_policy_that_acts(configure, write_calvin, tmp_path):
    data = write_calvin()
    finetune(configure(data))
    run = tmp_path / "run"
    labels = read_labels(run / "labels.json")
    assert len(labels.episode_ids) == 3  # half of the six that are not held out
    checkpoint = load_checkpoint(run, kind="policy")
    assert checkpoint.facts["labels_digest"] == labels.digest
    assert checkpoint.facts["label_fraction"] == 0.5
    assert checkpoint.facts["control_hz"] == 30.0
    assert checkpoint.facts["encoder_hash"] == "e" * 64
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert {"finetune/action_l2", "finetune/validation_action_l2", "finetune/code_loss"} <= lines[0].keys()
    out = VW2Agent.from_pretrained(run).infer({"images": {"static": np.zeros((8, 8, 3), np.uint8)}, "prompt": "do 1"})
    assert out["actions"].shape == (4, 7)
    finetune(configure(data))  # complete: nothing is done
    assert (run / "metrics.jsonl").read_text().count("\n") == 2


def test_the_end_effector_pose_is_learned_beside_the_actions_and_not_needed_to_act(configure, write_calvin, tmp_path):
    data = write_calvin()
    config = configure(data, run="without")
    # Slow enough that two steps lower the loss.
    config = replace(config, loop=replace(config.loop, optim=OptimConfig(lr=1e-3, warmup_steps=1)))
    finetune(config)
    finetune(replace(config, run_dir=str(tmp_path / "run"), aids=FinetuneAids(pose_weight=1.0)))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["finetune/pose_loss"] > lines[1]["finetune/pose_loss"] > 0
    found, plain = weights(tmp_path / "run"), weights(tmp_path / "without")
    assert found.keys() - plain.keys() == {"head.pose.weight", "head.pose.bias"}
    assert any(not torch.equal(found[name], plain[name]) for name in plain if name.startswith("policy.image"))
    agent = VW2Agent.from_pretrained(tmp_path / "run")
    assert agent.metadata["aids"] == ["restrict_softmax", "pose_weight=1.0"]  # those of pre-training, then its own
    out = agent.infer({"images": {"static": np.zeros((8, 8, 3), np.uint8)}, "prompt": "do 1"})
    assert out["actions"].shape == (4, 7)
    head = ActionHead(ActionHeadConfig(8), width=16, queries=4, stride=4, action_size=7)
    with pytest.raises(ValueError, match=r"without head\.pose"):
        head.end_effector_pose(torch.zeros(1, 1, 4, 16))


def test_a_pretrained_run_folder_is_accepted_as_the_policy(pretrained, tmp_path):
    stage = tmp_path / "chain" / "policy"
    (stage / "checkpoints").mkdir(parents=True)
    pretrained.rename(stage / "checkpoints" / "step_9")
    (stage / "latest").write_text("step_9\n")
    for path in (tmp_path / "chain", stage):
        assert load_pretrained(str(path))[2]["encoder_hash"] == "e" * 64


@pytest.mark.parametrize("how", ["nan", "deleted"])
def test_unlabeled_actions_are_never_read(configure, write_calvin, tmp_path, how):
    data = write_calvin()
    finetune(configure(data, run="clean"))
    wanted = set(read_labels(tmp_path / "clean" / "labels.json").episode_ids)
    poisoned = 0
    dataset = datasets.CalvinDataset(data)
    frames = datasets.cache_trajectories(dataset, tmp_path / "f", height=8, width=8)
    held = datasets.split_trajectories(
        dataset, frames, label_fraction=0.5, label_seed=0, validation_fraction=0.25
    ).validation
    for i, trajectory in enumerate(dataset.trajectories):
        if trajectory.trajectory_id in wanted or i in held:
            continue
        poisoned += 1
        for frame in range(trajectory.start, trajectory.end + 1):
            path = data / "training" / f"episode_{frame:07d}.npz"
            with np.load(path) as file:
                content = {name: file[name] for name in file.files}
            for name in ("rel_actions", "actions"):
                if how == "deleted":
                    del content[name]
                else:
                    content[name] = np.full(7, np.nan)
            np.savez(path, **content)
    assert poisoned == 3
    finetune(configure(data, run="poisoned"))
    assert equal(weights(tmp_path / "clean"), weights(tmp_path / "poisoned"))
    with pytest.raises(InputError, match="rel_actions"):  # the poison is deadly where it is read
        finetune(configure(data, run="all", label_fraction=1.0))


def test_reads_of_actions_are_exactly_those_of_labeled_and_held_out_steps(configure, write_calvin, monkeypatch):
    opened = []

    class Spied(datasets.CalvinDataset):
        def __init__(self, *args):
            super().__init__(*args)
            opened.append(self)

    monkeypatch.setattr(datasets, "CalvinDataset", Spied)
    finetune(configure(write_calvin()))
    assert opened[0].reads == {"rgb_static": 8 * 7, "rel_actions": (3 + 2) * 7}


def test_larger_fractions_contain_smaller_ones(configure, write_calvin, tmp_path):
    data = write_calvin(12)
    chosen = []
    for share in (0.25, 0.5, 1.0):
        finetune(configure(data, run=f"run{share}", label_fraction=share))
        chosen.append(set(read_labels(tmp_path / f"run{share}" / "labels.json").episode_ids))
    assert [len(ids) for ids in chosen] == [2, 5, 9]
    assert chosen[0] < chosen[1] < chosen[2]


@pytest.mark.parametrize("preset", ["full", "head"])
def test_a_probe_moves_the_head_alone_although_weight_decay_is_on(
    configure, write_calvin, tmp_path, pretrained, preset
):
    optim = OptimConfig(lr=1e-2, weight_decay=0.5, warmup_steps=1)
    config = configure(write_calvin(), preset=preset)
    finetune(replace(config, loop=replace(config.loop, optim=optim)))
    before, after = load_checkpoint(pretrained, kind="policy").weights, weights(tmp_path / "run")
    assert all(torch.equal(after[name], value) for name, value in before.items() if name.startswith("dldm."))
    moved = {
        name for name, value in before.items() if name.startswith("policy.") and not torch.equal(after[name], value)
    }
    assert bool(moved) == (preset == "full")


def test_statistics_in_the_checkpoint_are_of_the_labels(configure, write_calvin, tmp_path):
    data = write_calvin()
    finetune(configure(data))
    wanted = set(read_labels(tmp_path / "run" / "labels.json").episode_ids)
    dataset = datasets.CalvinDataset(data)
    raw = np.concatenate([dataset.read_actions(t) for t in dataset.trajectories if t.trajectory_id in wanted])
    stored = json.loads((resolve(tmp_path / "run") / "stats.json").read_text())
    assert stored == {"calvin": ActionStatistics.from_actions(raw).to_json()}


def test_held_out_actions_are_measured_in_the_units_of_the_labels(configure, write_calvin, monkeypatch):
    made = []

    class Spied(datasets.LabeledWindows):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            made.append(self)

    monkeypatch.setattr(datasets, "LabeledWindows", Spied)
    finetune(configure(write_calvin()))
    train, held_out = made
    assert held_out.statistics is train.statistics
    assert not set(train.episode) & set(held_out.episode)


def test_no_more_checkpoints_are_kept_than_a_disk_can_hold():
    loop = FinetuneLoopConfig(train_steps=1000, batch_size=1, optim=OptimConfig(), keep_every=50)
    for keep_every in (-1, 49):
        with pytest.raises(ValueError, match=f"keep_every={keep_every}, expected 0, or at least 50"):
            replace(loop, keep_every=keep_every)


def test_another_configuration_in_the_same_folder_is_refused(configure, write_calvin):
    data = write_calvin()
    finetune(configure(data))
    with pytest.raises(InputError, match=r"these keys differ: label_fraction \(0\.5 -> 1\.0\)"):
        finetune(configure(data, label_fraction=1.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label_fraction": 0.0}, "label_fraction"),
        ({"label_fraction": 1.5}, "label_fraction"),
        ({"latent_steps": 0}, "latent_steps"),
        ({"n_action_steps": 0}, "n_action_steps"),
        ({"n_action_steps": 5}, r"n_action_steps.*5.*4 actions"),
        ({"head_lr_mult": 0.0}, "head_lr_mult"),
        ({"lambda_ce": -1.0}, "lambda_ce"),
    ],
)
def test_impossible_settings_are_refused(configure, write_calvin, change, message):
    with pytest.raises(ValueError, match=message):
        finetune(configure(write_calvin(), **change))
