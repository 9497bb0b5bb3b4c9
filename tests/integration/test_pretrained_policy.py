"""The policy stage on models from folders: trained, killed, resumed, fine-tuned, and loaded as an agent."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from vw2_robot.agent import VW2Agent
from vw2_robot.checkpoint import load_checkpoint
from vw2_robot.command_line.config_tree import config_from
from vw2_robot.errors import InputError
from vw2_robot.finetune.config import FinetuneConfig
from vw2_robot.finetune.train_head import finetune
from vw2_robot.models.policy.ar_policy import NULL_CODE, LatentPolicy
from vw2_robot.pretrain import train_policy as stage
from vw2_robot.pretrain.config import PretrainConfig
from vw2_robot.pretrain.pretrain_on_openx import pretrain_on_openx

torch.set_num_threads(1)
# (family of the folder, overrides of the policy)
POLICIES = [
    ("llama", ["++policy.backbone.train=lora", "++policy.backbone.lora={rank: 2}", "policy.image=features"]),
    ("qwen3", ["++policy.backbone.train=freeze_base", "policy.image=discrete", "++policy.image_patch=4"]),
    ("smolvlm", ["policy.image=vlm"]),
]


def configure(cls, name, overrides):
    with initialize_config_module("vw2_robot.configs", version_base="1.3"):
        return config_from(cls, OmegaConf.to_container(compose(name, overrides), resolve=True))


@pytest.fixture
def run(pretrained, tmp_path):
    """A run that has its latent cache."""
    return shutil.copytree(pretrained, tmp_path / "run", ignore=shutil.ignore_patterns("policy"))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_share_of_the_samples_is_fed_no_codes(share, miniature, run, monkeypatch):
    mine = [
        *miniature(run),
        f"aids.policy_code_dropout={share}",
        "train_policy.loop.train_steps=8",
        "stages=[policy]",
    ]
    is_null = []

    def watched(policy, prompt, codes, real=LatentPolicy.states):
        if torch.is_grad_enabled():
            is_null.extend((codes == NULL_CODE).all(dim=(1, 2)).tolist())
        return real(policy, prompt, codes)

    monkeypatch.setattr(LatentPolicy, "states", watched)
    pretrain_on_openx(configure(PretrainConfig, "pretrain", mine))
    assert len(is_null) >= 16
    assert {0.0: not any(is_null), 0.5: 0 < sum(is_null) < len(is_null), 1.0: all(is_null)}[share]


def test_a_policy_predicts_further_than_a_clip_of_the_dldm(miniature, run, monkeypatch):
    shapes, real = set(), LatentPolicy.states
    monkeypatch.setattr(LatentPolicy, "states", lambda *args: shapes.add(args[2].shape[1:]) or real(*args))
    overrides = [*miniature(run), "++train_policy.latent_steps=2", "train_policy.loop.train_steps=2", "stages=[policy]"]
    pretrain_on_openx(configure(PretrainConfig, "pretrain", overrides))
    assert shapes == {(2, 4)}
    with pytest.raises(InputError, match=r"condition_every=2 must be .* train_policy\.latent_steps=2"):
        configure(PretrainConfig, "pretrain", [*overrides, "++train_policy.condition_every=2"])


def test_a_plan_that_is_conditioned_on_later_frames_is_trained_on_each_of_them(miniature, run):
    overrides = [*miniature(run), "++train_policy.latent_steps=2", "train_policy.loop.train_steps=1", "stages=[policy]"]
    plain, renewed = (
        stage.open_datasets(configure(PretrainConfig, "pretrain", [*overrides, *more])).train.windows
        for more in ([], ["++train_policy.condition_every=1"])
    )
    assert renewed.valid.sum() == plain.valid.sum()
    assert renewed.valid.sum(axis=1).tolist() == [1] * len(renewed.valid)
    later = renewed.valid[:, 1]
    assert later.any()
    # The frame of the second clip is where the window of its codes begins.
    first_code = {(e, s): c[0].tolist() for e, s, c in zip(plain.episode, plain.start, plain.codes, strict=True)}
    for episode, start, codes in zip(renewed.episode[later], renewed.start[later], renewed.codes[later], strict=True):
        assert first_code[episode, start] == codes[1].tolist()
    pretrain_on_openx(configure(PretrainConfig, "pretrain", [*overrides, "++train_policy.condition_every=1"]))
    facts = load_checkpoint(run / "policy", kind="policy").facts
    assert (facts["condition_every"], facts["plan_steps"]) == (1, 2)


def test_windows_that_never_meet_are_refused(miniature, run):
    shutil.rmtree(run / "latents")
    overrides = [*miniature(run), "++extract_latents.cache_stride=3", "++train_policy.latent_steps=2"]
    with pytest.raises(InputError, match=r"begins where another one ends, 4 frames later.*cache_stride=3"):
        pretrain_on_openx(configure(PretrainConfig, "pretrain", overrides))


@pytest.mark.parametrize(("family", "overrides"), POLICIES, ids=[family for family, _ in POLICIES])
def test_from_a_folder_to_actions(
    family, overrides, miniature, run, model_folder, calvin_folder, tmp_path, monkeypatch
):
    mine = [*miniature(run), f"++policy.backbone.weights={model_folder(family)}", *overrides]
    config = configure(PretrainConfig, "pretrain", [*mine, "stages=[policy]"])
    real, steps = stage.optimizer_step, []

    def dies_once(loss, optimizer, *, step, **rest):
        steps.append(step)
        if step == 3 and steps.count(3) == 1:
            raise KeyboardInterrupt
        return real(loss, optimizer, step=step, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(stage, "optimizer_step", dies_once)
        with pytest.raises(KeyboardInterrupt):
            stage.train_policy(config)
        stage.train_policy(config)
    assert steps == [0, 1, 2, 3, 2, 3, 4]

    trained = LatentPolicy.from_checkpoint(load_checkpoint(run / "policy", kind="policy"))
    fresh = stage.build_policy(config, stage.DLDM(config.dldm))
    moved = not torch.equal(
        trained.backbone.embed(torch.arange(300, 1300)), fresh.backbone.embed(torch.arange(300, 1300))
    )
    assert moved
    kept = torch.equal(trained.backbone.embed(torch.arange(300)), fresh.backbone.embed(torch.arange(300)))
    assert kept == (family != "smolvlm")  # the base stays in freeze_base and lora, and moves in full

    loop = "{train_steps: 2, batch_size: 4, log_every: 1, save_every: 2, optim: {lr: 0.003, warmup_steps: 2}}"
    finetune(
        configure(
            FinetuneConfig,
            "finetune",
            [
                f"run_dir={tmp_path / 'finetune'}",
                f"policy={run}",
                f"data.path={calvin_folder}",
                "data.validation_fraction=0.25",
                "head.hidden=8",
                f"++loop={loop}",
                "++hardware={device: cpu, threads: 1}",
                *(["acting=argmax"] if family == "smolvlm" else []),
            ],
        )
    )
    monkeypatch.setattr("vw2_robot.models.policy.backbone.read_pretrained", None)  # the folder is needed no more
    agent = VW2Agent.from_pretrained(tmp_path / "finetune")
    observations = [
        {"images": {"static": np.full((20, 30, 3), shade, np.uint8)}, "prompt": instruction}
        for shade, instruction in ((0, "push"), (255, "push the square to the left"))
    ]
    together, alone = agent.infer_batch(observations), [agent.infer(observation) for observation in observations]
    for one, other in zip(together, alone, strict=True):
        assert one["actions"].shape == (4, 7)
        np.testing.assert_allclose(one["actions"], other["actions"], atol=1e-5)
