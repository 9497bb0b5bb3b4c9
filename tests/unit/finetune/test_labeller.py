"""A labeller reads actions from codes; the policy that follows it learns them as if they were labels."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from vw2_robot.agent import VW2Agent
from vw2_robot.checkpoint import load_checkpoint
from vw2_robot.contracts import GRIPPER_INDEX
from vw2_robot.data.calvin import CalvinDataset
from vw2_robot.data.statistics import ActionStatistics
from vw2_robot.errors import InputError
from vw2_robot.finetune import material, train_head
from vw2_robot.finetune.config import Unlabelled
from vw2_robot.finetune.losses import action_errors, unlabelled_losses
from vw2_robot.finetune.material import open_material
from vw2_robot.finetune.starting_point import starting_point
from vw2_robot.finetune.train_head import finetune
from vw2_robot.finetune.validation import validate
from vw2_robot.models.acting import blank_codes

CPU = torch.device("cpu")
FOLLOWER = {"code_source": "none", "lambda_ce": 0.0}


@pytest.fixture
def data(write_calvin):
    return write_calvin()


@pytest.fixture
def labeller(configure, data, tmp_path):
    finetune(configure(data, run="labeller", code_source="known", lambda_ce=0.0))
    return str(tmp_path / "labeller")


def material_of(config):
    start = starting_point(config)
    return start, open_material(config, start, train_head._open_run(config), CPU)


def test_its_answers_are_what_its_head_says_to_the_codes_with_a_gripper_that_is_open_or_closed(
    configure, data, labeller
):
    config = configure(data, **FOLLOWER, unlabelled=Unlabelled(labeller=labeller))
    start, material = material_of(config)
    windows = material.unlabelled
    assert windows.answers.shape == (len(windows), 4, 7)
    assert windows.answers.dtype == np.float32
    assert set(np.unique(windows.answers[..., GRIPPER_INDEX])) <= {-1.0, 1.0}
    teacher = replace(config, policy=labeller)
    policy, head = starting_point(teacher).policy.eval(), train_head._new_head(config, start)
    load_checkpoint(labeller, kind="policy").load_into(head=head)
    rows = np.arange(len(windows))
    prompt = policy.prompt(windows.words(rows), windows.images(rows, image_px=8, device=CPU))
    with torch.no_grad():
        said = head(policy.states_after(prompt, torch.from_numpy(windows.codes))).numpy()
    np.testing.assert_allclose(windows.answers[..., :2], said[..., :2].clip(-1, 1), atol=1e-5)  # as labels are
    assert np.abs(windows.answers).max() <= 1


@pytest.mark.parametrize("source", ["none", "self"])
def test_the_policy_learns_them_as_it_acts(configure, data, labeller, source):
    settings = Unlabelled(labeller=labeller, actions=2.0, weight=0.0)
    config = configure(data, code_source=source, lambda_ce=0.0, image_shift_px=0, unlabelled=settings)
    start, material = material_of(config)
    policy, head, windows = start.policy.eval(), train_head._new_head(config, start), material.unlabelled
    rows = np.arange(3)
    found = unlabelled_losses(config, policy, head, windows, rows, device=CPU, draw=torch.Generator().manual_seed(0))
    prompt = policy.prompt(windows.words(rows), windows.images(rows, image_px=8, device=CPU))
    own = source == "self"
    fed = policy.decode(prompt, steps=1).codes_BHN if own else blank_codes(policy, 3, steps=1, device=CPU)
    real = torch.from_numpy(windows.valid[rows]).repeat_interleave(4, dim=1)
    errors = action_errors(config, head(policy.states(prompt, fed)), torch.from_numpy(windows.answers[rows]))
    torch.testing.assert_close(found.action, errors[real].mean().detach())
    torch.testing.assert_close(found.total.detach(), 2 * found.action)
    assert found.code.item() == 0


def test_a_policy_that_acts_without_codes_predicts_those_of_other_video_without_them(configure, data, labeller):
    config = configure(data, code_source="none", lambda_ce=0.0, image_shift_px=0, unlabelled=Unlabelled(weight=0.5))
    start, material = material_of(config)
    policy, head, windows = start.policy.eval(), train_head._new_head(config, start), material.unlabelled
    rows = np.arange(3)
    found = unlabelled_losses(config, policy, head, windows, rows, device=CPU, draw=torch.Generator().manual_seed(0))
    prompt = policy.prompt(windows.words(rows), windows.images(rows, image_px=8, device=CPU))
    blank = blank_codes(policy, 3, steps=1, device=CPU)
    teacher, valid = torch.from_numpy(windows.codes[rows]), torch.from_numpy(windows.valid[rows])
    wanted, _ = policy.code_loss(policy.states(prompt, blank), teacher, valid)
    torch.testing.assert_close(found.code, wanted.detach())
    torch.testing.assert_close(found.total.detach(), 0.5 * found.code)


def test_a_run_that_follows_a_labeller_is_moved_by_it_and_never_opens_an_action(configure, data, labeller, tmp_path):
    labelled = set(json.loads((tmp_path / "labeller" / "labels.json").read_text())["episode_ids"])
    finetune(configure(data, run="alone", **FOLLOWER))
    _, material = material_of(configure(data, run="look", **FOLLOWER))
    dataset = CalvinDataset(data)
    for i in material.split.unlabelled:
        for frame in range(dataset.trajectories[i].start, dataset.trajectories[i].end + 1):
            path = data / "training" / f"episode_{frame:07d}.npz"
            with np.load(path) as file:
                content = {name: file[name] for name in file.files}
            np.savez(path, **(content | {name: np.full(7, np.nan) for name in ("rel_actions", "actions")}))
    finetune(configure(data, run="following", **FOLLOWER, unlabelled=Unlabelled(labeller=labeller, batch=3)))
    alone, following = (load_checkpoint(tmp_path / run, kind="policy").weights for run in ("alone", "following"))
    assert any(not torch.equal(alone[name], following[name]) for name in alone)
    assert all(torch.isfinite(value).all() for value in following.values())
    assert set(json.loads((tmp_path / "following" / "labels.json").read_text())["episode_ids"]) == labelled
    lines = [json.loads(line) for line in (tmp_path / "following" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["finetune/unlabelled_action_l2"] > 0 for line in lines)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label_seed": 1}, "was taught with other labels"),
        ({"latent_steps": 2}, "answers 1 latent steps of 4 actions, expected 2 of 4"),
    ],
)
def test_another_labeller_than_the_data_ask_for_is_refused_before_any_work(
    configure, data, labeller, change, message, monkeypatch
):
    monkeypatch.setattr(material.VideoWindows, "teach", None)  # not to be called
    with pytest.raises(InputError, match=message):
        material_of(configure(data, **FOLLOWER, **change, unlabelled=Unlabelled(labeller=labeller)))


def test_a_policy_that_never_read_codes_is_no_labeller(configure, data, tmp_path):
    finetune(configure(data, run="blind", **FOLLOWER))
    config = configure(data, **FOLLOWER, unlabelled=Unlabelled(labeller=str(tmp_path / "blind")))
    with pytest.raises(InputError, match="found a policy that acts with codes=none"):
        material_of(config)


def test_a_labeller_for_another_dldm_is_refused(configure, data, labeller, tmp_path):
    config = configure(data, **FOLLOWER, unlabelled=Unlabelled(labeller=labeller))
    start = starting_point(config)
    with torch.no_grad():
        next(start.dldm.parameters()).add_(1)
    with pytest.raises(InputError, match="reads the codes of another dLDM"):
        open_material(config, start, train_head._open_run(config), CPU)


def test_statistics_of_the_labeller_are_undone(configure, data, labeller):
    """Normalised in another way, the policy is still taught the same actions."""
    config = configure(data, **FOLLOWER, unlabelled=Unlabelled(labeller=labeller))
    _, one = material_of(config)
    _, other = material_of(replace(config, normalisation="mean_std", run_dir=config.run_dir + "_other"))
    stored = load_checkpoint(labeller, kind="policy").files["stats"]["calvin"]
    assert one.train.statistics.to_json() == ActionStatistics.from_json(stored).to_json()
    inside = np.abs(one.unlabelled.answers) < 1  # q01_q99 cuts off what lies outside
    assert inside.any()
    np.testing.assert_allclose(
        one.train.statistics.unnormalise(one.unlabelled.answers)[inside],
        other.train.statistics.unnormalise(other.unlabelled.answers)[inside],
        atol=1e-5,
    )


def test_a_labeller_reads_every_code_and_its_held_out_error_is_that_of_its_labels(configure, data):
    config = configure(data, code_source="known", lambda_ce=0.0)
    start, material = material_of(config)
    policy, head, windows = start.policy.eval(), train_head._new_head(config, start), material.held_out
    rows = np.arange(2)
    prompt = policy.prompt(windows.words(rows), windows.images(rows, image_px=8, device=CPU))
    codes = torch.from_numpy(windows.codes[rows])
    last = codes.clone()
    last[:, -1, -1] = (last[:, -1, -1] + 1) % 5
    with torch.no_grad():
        assert torch.equal(policy.states(prompt, codes), policy.states(prompt, last))
        known = policy.states_after(prompt, codes)
        assert not torch.allclose(known, policy.states_after(prompt, last))
        torch.testing.assert_close(known[:, :, :-1], policy.states(prompt, codes)[:, :, 1:])
    found = validate(config, policy, head, windows, device=CPU)
    assert found.teacher_loss is None
    everything = np.arange(len(windows))
    prompt = policy.prompt(windows.words(everything), windows.images(everything, image_px=8, device=CPU))
    with torch.no_grad():
        said = head(policy.states_after(prompt, torch.from_numpy(windows.codes)))
    errors = action_errors(config, said, torch.from_numpy(windows.actions))[torch.from_numpy(windows.real)]
    assert found.action_loss == pytest.approx(errors.mean().item(), rel=1e-5)


def test_a_labeller_cannot_act(labeller):
    with pytest.raises(InputError, match="labels video from the codes of what happened"):
        VW2Agent.from_pretrained(labeller)


@pytest.mark.parametrize(
    "change", [{"lambda_ce": 0.1}, {"lambda_ce": 0.0, "unlabelled": Unlabelled(weight=0.1)}], ids=str
)
def test_a_labeller_learns_from_labels_alone(configure, change):
    with pytest.raises(ValueError, match="code_source=known"):
        configure("unused", code_source="known", **change)
